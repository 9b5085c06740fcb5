"""What fuzzing is made of: cases, the judge that runs one, mutations, and the way to a small case.

A case is a few files and an argument. The judge writes the files into a directory of its own,
forks, runs the target there under limits, and says what broke the rules:

- `error`: an exception that is not documented, or an answer that is none;
- `crash`: the process died of a signal;
- `hang`: it took longer than it may;
- `memory`: it wanted more memory, or longer files, than it may;
- `touched`: it changed its input, wrote outside its own directory, opened what lies beside it, or
  started a program.
"""

import atexit
import base64
import contextlib
import ctypes
import dataclasses
import faulthandler
import hashlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Read once, when the libraries are imported: no network, one thread, and no cache of the user's.
os.environ.update(
    HF_HOME=tempfile.mkdtemp(prefix="fuzz-home-"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    ACCELERATE_USE_CPU="true",
)
for _name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "RANK", "WORLD_SIZE"):
    os.environ.pop(_name, None)
os.environ["MPLCONFIGDIR"] = os.environ["HF_HOME"]
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

PACKAGE = Path(__file__).resolve().parent.parent / "vanilla_transformer"
MEMORY = 1 << 30
FILE_SIZE = 1 << 28
FIFO = "fifo:"
# What lies beside the files of a case and is none of its business.
OUTSIDE = ("secret", "model.safetensors", "config.json")

# A case runs in `root / "out"`, may write there and in the last two, and reads `root / "in"`.
_WRITABLE = ("out", "tmp", "home")
_OUT_OF_MEMORY = re.compile(
    "can't allocate|not enough memory|bad_alloc|cannot allocate|unable to allocate|out of memory"
    "|malloc of size|realloc of size|file too large",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Input of a target.

    Attributes:
        target: Its name.
        argument: JSON values that say what is to be done with the files; what it has as `free` is
            hostile too.
        files: Content by relative path.
        links: Where a symbolic link leads, by its path; `FIFO` makes a pipe instead.
    """

    target: str
    argument: dict[str, Any]
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Writes the files and links."""
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, place in self.links.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if place == FIFO:
                os.mkfifo(path)
            else:
                path.symlink_to(place)

    def to_json(self) -> str:
        """As it is stored: text as text, all else packed."""
        files = {name: _packed(content) for name, content in sorted(self.files.items())}
        values = {"target": self.target, "argument": self.argument, "files": files}
        return json.dumps(values | {"links": dict(self.links)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "Case":
        """Reads what `to_json` wrote."""
        values = json.loads(text)
        values["files"] = {name: _unpacked(content) for name, content in values["files"].items()}
        return Case(**values)

    @property
    def name(self) -> str:
        """Of the file that it is stored in: the target and a hash."""
        return f"{self.target}-{hashlib.sha256(self.to_json().encode()).hexdigest()[:10]}.json"


def read_files(directory: Path) -> dict[str, bytes]:
    """Files of a directory as a case has them."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def _packed(content: bytes) -> dict[str, str]:
    packed = {"zlib": base64.b64encode(zlib.compress(content, 9)).decode()}
    with contextlib.suppress(UnicodeDecodeError):
        if len(json.dumps(text := content.decode())) <= 60 + len(packed["zlib"]):
            return {"text": text}
    return packed


def _unpacked(content: Mapping[str, str]) -> bytes:
    if "text" in content:
        return content["text"].encode()
    return zlib.decompress(base64.b64decode(content["zlib"]))


# ------------------------------------------------------------------------------------- the judge


@dataclasses.dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        run: Is given the directory of the case's files and its argument.
        documented: Exceptions that it may raise.
        seconds: Of processor time that a case may take; three times that by the clock.
    """

    run: Callable[[Path, Any], object]
    documented: tuple[type[BaseException], ...] = (ValueError, OSError)
    seconds: int = 10


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
        rule: The one that was broken, or None.
        outcome: The exception and where it was raised, or `ok`.
        detail: For people.
    """

    rule: str | None
    outcome: str
    detail: str = ""

    @property
    def signature(self) -> str:
        """Alike for two cases of one bug."""
        return f"{self.rule} {self.outcome}"


class WrongAnswerError(Exception):
    """An answer that none may be; a target raises it."""


def judge(target: Target, case: Case) -> Verdict:
    """Runs a case in a process of its own and judges what it did."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder).resolve()
        for name in ("in", "outside", *_WRITABLE):
            (root / name).mkdir()
        case.write(root / "in")
        for name in OUTSIDE:
            (root / "outside" / name).write_text("{}")
        before = [_snapshot(root / name) for name in ("in", "outside")]
        # Who links to a file wants it to be read.
        with _watched(root / "outside", is_on=not case.links) as opened:
            found = _run_apart(target, case, root)
            touched = list(found.pop("touched", ()))
            touched += [f"opened {name}" for name in opened()]
        if [_snapshot(root / name) for name in ("in", "outside")] != before:
            touched.append("files that it was given have changed")
    rule, outcome, detail = found["rule"], found["outcome"], found["detail"]
    if rule is None and touched:
        rule, detail = "touched", "; ".join(sorted(set(touched))[:5])
        detail = detail.replace(str(root), "")
    return Verdict(rule, outcome, detail.replace(str(root), "")[:2000])


def _run_apart(target: Target, case: Case, root: Path) -> dict[str, Any]:
    """Runs a case in a fork; what the fork says, or what became of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_child(target, case, root, writing)
    os.close(writing)
    deadline = time.monotonic() + 3 * target.seconds
    said = b""
    try:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([reading], [], [], left)[0]:
                if not (part := os.read(reading, 1 << 16)):
                    break
                said += part
        is_late = deadline <= time.monotonic()
        if is_late:
            # It says where it is.
            os.kill(pid, signal.SIGXCPU)
            time.sleep(0.2)
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(reading)
        _, status, usage = os.wait4(pid, 0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    output = (root / "output").read_text("utf-8", "replace")
    if is_late or (number and usage.ru_utime + usage.ru_stime >= target.seconds):
        return {"rule": "hang", "outcome": _where(output), "detail": output[-1500:]}
    if not said.endswith(b"}"):
        name = signal.Signals(number).name if number else f"status {status}"
        rule = "memory" if _OUT_OF_MEMORY.search(output) else "crash"
        return {"rule": rule, "outcome": name, "detail": output[-1500:]}
    found: dict[str, Any] = json.loads(said)
    return found


def _where(output: str) -> str:
    """The package's innermost line in what faulthandler wrote."""
    frames = re.findall(r'File "(.+)", line (\d+)', output)
    own = [frame for frame in frames if Path(frame[0]).is_relative_to(PACKAGE)] or frames
    return "/".join((*Path(own[0][0]).parts[-2:], own[0][1])) if own else "nowhere"


def _be_child(target: Target, case: Case, root: Path, pipe: int) -> None:
    """Runs the case under limits, says what came of it, and ends the process."""
    touched: list[str] = []
    try:
        output = os.open(root / "output", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        faulthandler.enable()
        # Of processor time the limit sends it too, and a second later an end.
        faulthandler.register(signal.SIGXCPU)
        os.chdir(root / "out")
        tempfile.tempdir = str(root / "tmp")
        os.environ["TMPDIR"] = str(root / "tmp")
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_DATASETS_CACHE = root / "home"
        _limit(target.seconds)
        _audit(root, touched)
        try:
            target.run(root / "in", case.argument)
            rule, outcome, detail = None, "ok", ""
        except BaseException as error:
            rule, outcome, detail = _describe(error, target.documented)
        said = {"rule": rule, "outcome": outcome, "detail": detail, "touched": touched[:20]}
        with open(pipe, "wb", closefd=False) as file:
            file.write(json.dumps(said).encode())
    finally:
        os._exit(0)


def _limit(seconds: int) -> None:
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
    bound = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _describe(
    error: BaseException, documented: tuple[type[BaseException], ...]
) -> tuple[str | None, str, str]:
    """Rule, outcome and detail of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    place = (own or frames)[-1]
    name = "/".join(Path(place.filename).parts[-2:])
    outcome = f"{type(error).__name__} {name}:{place.lineno}"
    lines = [f"{'/'.join(Path(f.filename).parts[-3:])}:{f.lineno} {f.name}" for f in frames[-8:]]
    text = f"{type(error).__name__}: {str(error)[:600]}"
    chain: BaseException | None = error
    while chain is not None:
        # Whatever it was made of in the end.
        if isinstance(chain, MemoryError) or _OUT_OF_MEMORY.search(str(chain)[:5000]):
            return "memory", outcome, "\n".join([text, *lines])
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, documented):
        return None, outcome, text
    if isinstance(error, WrongAnswerError):
        return "error", f"WrongAnswerError {str(error)[:60]}", text
    return "error", outcome, "\n".join([text, *lines])


# Arguments of the audited events that are paths, each with that of its directory's descriptor.
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
}
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _audit(root: Path, touched: list[str]) -> None:
    """Notes from here on whatever this process writes elsewhere, and the programs it starts."""
    allowed = (*(root / name for name in _WRITABLE), Path("/dev"), Path("/proc/self"))

    def check(path: Any, descriptor: Any = None) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.fsdecode(path)
        if isinstance(descriptor, int) and descriptor >= 0:
            place = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), place)
        parent, name = os.path.split(os.path.abspath(place))
        real = Path(os.path.realpath(parent), name)
        if not any(real.is_relative_to(folder) for folder in allowed):
            touched.append(f"wrote {real}")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        try:
            if event == "open":
                if isinstance(arguments[2], int) and arguments[2] & _FOR_WRITING:
                    check(arguments[0])
            elif event in _CHANGES:
                for path, descriptor in _CHANGES[event]:
                    check(arguments[path], None if descriptor is None else arguments[descriptor])
            elif event in _PROGRAMS:
                touched.append(f"{event} {arguments!r}"[:200])
        except (OSError, ValueError):
            # Of paths that cannot be: the call itself says so.
            return

    sys.addaudithook(hook)


def _snapshot(directory: Path) -> dict[str, tuple[int, str]]:
    """Kind and content of everything in a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (mode, content)
    return found


@contextlib.contextmanager
def _watched(directory: Path, is_on: bool) -> Iterator[Callable[[], list[str]]]:
    """Gives a function that names the files of the directory that anybody has opened meanwhile.

    Of the kernel, so that code in other languages is seen as well.
    """
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    # inotify(7): IN_MODIFY, IN_OPEN, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE.
    mask = 0x2 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200
    if descriptor < 0 or library.inotify_add_watch(descriptor, bytes(directory), mask) < 0:
        raise OSError(ctypes.get_errno(), f"{directory} cannot be watched")

    def opened() -> list[str]:
        if not is_on:
            return []
        try:
            events = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return []
        names, place = [], 0
        while place < len(events):
            length = struct.unpack_from("I", events, place + 12)[0]
            names.append(events[place + 16 : place + 16 + length].rstrip(b"\0").decode())
            place += 16 + length
        return sorted({name for name in names if name})

    try:
        yield opened
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------- mutations

_DEEP = 20_000
NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    255,
    2**31,
    2**32 - 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**4000,
    0.5,
    1e308,
    -1e308,
    5e-324,
    -0.0,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\ufeff",
    "\u2028",
    "x" * 20_000,
    "9" * 5000,
    "NaN",
    "1e400",
    "-1",
    "../outside/secret",
    "../outside/model.safetensors",
    "../outside",
    "..",
    ".",
    "/dev/zero",
    "/dev/full",
    "~",
    "~nobody-at-all/x",
    "$HOME",
    "{0.__class__}",
    "%s%n",
    "__class__",
    "<script>",
    "(" * 500,
    "(a+)+$",
    [],
    {},
    [[]],
    [None],
    {"": None},
    ["a"] * 3000,
]
_TOKENS: list[bytes] = [
    b"\0",
    b"\n",
    b"\r",
    b"\r\n",
    b"\t",
    b'"',
    b"'",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b"\x1c",
    b"\x85",
    b"NaN",
    b"1e400",
    b"-1",
    b"[" * _DEEP,
    b'{"a":' * _DEEP,
    b"9" * 5000,
    b"\n" * 2000,
    b"\xff" * 8,
    b"\0" * 8,
    b"\xff" * 7 + b"\x7f",
    b"../outside/secret",
    b"!!python/object/apply:os.system [id]",
    b"&a [*a, *a]",
]
_NUMBERS = [b"0", b"-1", b"1", b"2147483648", b"18446744073709551616", b"1e400", b"nan", b"0.5"]
_NUMBERS += [b"1" + b"0" * 12, b"9" * 4999, b"65536", b"true", b"null"]
_BOMB = bytes(1 << 26)


def mutated(case: Case, others: list[Case], random_: random.Random) -> Case:
    """A case that differs in one place to four."""
    for _ in range(random_.choice((1, 1, 1, 2, 2, 4))):
        if "free" in case.argument and (not case.files or random_.random() < 0.5):
            free = _mutated_value(case.argument["free"], random_)
            case = dataclasses.replace(case, argument=case.argument | {"free": free})
        elif case.files:
            case = _mutated_files(case, others, random_)
    return case


def _mutated_files(case: Case, others: list[Case], random_: random.Random) -> Case:
    files, links = dict(case.files), dict(case.links)
    name = random_.choice(sorted(files))
    chance = random_.random()
    if chance < 0.03:
        del files[name]
    elif chance < 0.06:
        files[random_.choice(sorted(files))] = files[name]
    elif chance < 0.09:
        files[str(Path(name).with_suffix(random_.choice(_endings(others))))] = files.pop(name)
    elif chance < 0.12:
        del files[name]
        places = (Path(name).name, "nowhere", ".", "/dev/zero", "../outside/secret", FIFO)
        links[name] = random_.choice(places)
    else:
        other = random_.choice(others).files
        donor = other[random_.choice(sorted(other))] if other else b""
        files[name] = mutated_bytes(files[name], donor, random_)
    # A name may now be a file here and a folder there.
    folders = {str(parent) for one in (*files, *links) for parent in Path(one).parents}
    files = {one: content for one, content in files.items() if one not in folders}
    links = {one: place for one, place in links.items() if one not in folders and one not in files}
    return dataclasses.replace(case, files=files, links=links)


def _endings(cases: list[Case]) -> list[str]:
    return sorted({Path(name).suffix for case in cases for name in case.files} | {""})


def mutated_bytes(content: bytes, donor: bytes, random_: random.Random) -> bytes:
    """Content changed as its format suggests, or as if it had none."""
    if random_.random() < 0.75:
        for change in (_mutated_zip, _mutated_safetensors, _mutated_json, _mutated_text):
            try:
                return change(content, donor, random_)
            except (ValueError, OSError, RecursionError, struct.error, zipfile.BadZipFile):
                continue
    return _mutated_raw(content, donor, random_)


def _mutated_zip(content: bytes, donor: bytes, random_: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    chosen = random_.randrange(len(entries))
    # The pickle is what is interpreted.
    for number, (entry, _) in enumerate(entries):
        if entry.filename.endswith("data.pkl") and random_.random() < 0.5:
            chosen = number
    written, chance = io.BytesIO(), random_.random()
    with zipfile.ZipFile(written, "w") as archive:
        for number, (entry, inner) in enumerate(entries):
            is_chosen, name = number == chosen, entry.filename
            if is_chosen and chance < 0.03:
                continue
            if is_chosen and chance < 0.05:
                archive.writestr(name, _BOMB, zipfile.ZIP_DEFLATED)
                continue
            if is_chosen and chance < 0.1:
                name = random_.choice(("../outside/secret", "/dev/zero", "", "x" * 300, name + "/"))
            elif is_chosen:
                inner = mutated_bytes(inner, donor, random_)
            archive.writestr(name or "x", inner)
    return written.getvalue()


def _mutated_safetensors(content: bytes, donor: bytes, random_: random.Random) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    changed, data = _dumped(_mutated_value(header, random_)), content[8 + length :]
    if random_.random() < 0.1:
        length = random_.choice((0, 1, 2**63, 2**64 - 1, 100_000_001, length + 1))
    else:
        length = len(changed)
    return struct.pack("<Q", length) + changed + data


def _mutated_json(content: bytes, donor: bytes, random_: random.Random) -> bytes:
    try:
        return _dumped(_mutated_value(json.loads(content), random_))
    except ValueError:
        lines = content.split(b"\n")
        number = random_.randrange(len(lines))
        value = json.loads(lines[number])
        if not isinstance(value, dict | list):
            raise
        lines[number] = _dumped(_mutated_value(value, random_))
        return b"\n".join(lines)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _mutated_value(value: Any, random_: random.Random) -> Any:
    """A JSON value with one part replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and random_.random() < 0.9:
        key = random_.choice(list(value))
        chance = random_.random()
        rest = {name: part for name, part in value.items() if name != key}
        if chance < 0.08:
            return rest
        if chance < 0.16:
            name = random_.choice([one for one in NASTY if isinstance(one, str)])
            return rest | {random_.choice((name, random_.choice(list(value)))): value[key]}
        return value | {key: _mutated_value(value[key], random_)}
    if isinstance(value, list) and value and random_.random() < 0.9:
        number = random_.randrange(len(value))
        chance = random_.random()
        if chance < 0.1:
            return value[:number] + value[number + 1 :]
        if chance < 0.2:
            return value[:number] + [value[number]] * random_.choice((2, 2, 50)) + value[number:]
        return [*value[:number], _mutated_value(value[number], random_), *value[number + 1 :]]
    if random_.random() < 0.15:
        nested: Any = value
        for _ in range(random_.choice((1, 3, 900))):
            nested = [nested] if random_.random() < 0.5 else {"a": nested}
        return nested
    if isinstance(value, int) and not isinstance(value, bool) and random_.random() < 0.3:
        return value + random_.choice((-1, 1, value, 1000))
    if isinstance(value, str) and value and random_.random() < 0.3:
        place = random_.randrange(len(value))
        return value[:place] + random_.choice(("", "\0", "\ud800", " ", "/", "é")) + value[place:]
    return random_.choice(NASTY)


def _mutated_text(content: bytes, donor: bytes, random_: random.Random) -> bytes:
    """Lines and numbers of what is, at least here and there, text."""
    numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?", content[:100_000]))
    if numbers and random_.random() < 0.5:
        found = random_.choice(numbers)
        return content[: found.start()] + random_.choice(_NUMBERS) + content[found.end() :]
    if b"\0" in content[:1000]:
        raise ValueError("this is no text")
    lines = content.split(b"\n")
    first, second = random_.randrange(len(lines)), random_.randrange(len(lines))
    chance = random_.random()
    if chance < 0.25:
        del lines[first]
    elif chance < 0.5:
        lines.insert(first, lines[second])
    elif chance < 0.7:
        lines[first], lines[second] = lines[second], lines[first]
    elif chance < 0.85:
        lines[first] = lines[first].replace(b" ", random_.choice(_TOKENS), 1)
    else:
        lines.insert(first, random_.choice(donor.split(b"\n"))[:10_000])
    return b"\n".join(lines)


def _mutated_raw(content: bytes, donor: bytes, random_: random.Random) -> bytes:
    place = random_.randrange(len(content) + 1)
    length = min(random_.choice((1, 1, 2, 4, 8, 64, 1000)), len(content) - place)
    chance = random_.random()
    if chance < 0.35 and place < len(content):
        flipped = content[place] ^ (1 << random_.randrange(8))
        return content[:place] + bytes([flipped]) + content[place + 1 :]
    if chance < 0.5:
        return content[:place]
    if chance < 0.6:
        return content[:place] + content[place + length :]
    if chance < 0.8:
        return content[:place] + random_.choice(_TOKENS) + content[place + length :]
    if chance < 0.9 and donor:
        start = random_.randrange(len(donor))
        return content[:place] + donor[start : start + 4096] + content[place + length :]
    return content[:place] + random_.randbytes(length) + content[place + length :]


# -------------------------------------------------------------------------------- a small case


def shrunk(case: Case, is_same: Callable[[Case], bool], seconds: float = 30) -> Case:
    """A smaller case of which `is_same` still holds: whatever can go has gone, in halves."""
    deadline = time.monotonic() + seconds
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for one in _smaller(case):
            if time.monotonic() > deadline:
                return case
            if is_same(one):
                case, is_smaller = one, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """Cases with less in them, those with much less first."""
    for name in case.links:
        rest = {one: place for one, place in case.links.items() if one != name}
        yield dataclasses.replace(case, links=rest)
    for name in sorted(case.files, key=lambda one: -len(case.files[one])):
        rest_of = {one: content for one, content in case.files.items() if one != name}
        yield dataclasses.replace(case, files=rest_of)
        for content in _smaller_bytes(case.files[name]):
            yield dataclasses.replace(case, files={**case.files, name: content})
    for free in _smaller_value(case.argument.get("free")):
        yield dataclasses.replace(case, argument=case.argument | {"free": free})


def _smaller_bytes(content: bytes) -> Iterator[bytes]:
    if not content:
        return
    yield b""
    if content.strip(b"\0"):
        yield bytes(len(content))
    with contextlib.suppress(ValueError, RecursionError):
        yield from map(_dumped, _smaller_value(json.loads(content)))
    parts = 2
    while parts <= min(32, len(content)):
        size = -(-len(content) // parts)
        for place in range(0, len(content), size):
            yield content[:place] + content[place + size :]
            # Where places count, emptiness is small too.
            blank = content[:place] + bytes(size) + content[place + size :]
            if len(content) > 2000 and content[place : place + size].strip(b"\0"):
                yield blank[: len(content)]
        parts *= 2


def _smaller_value(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield {name: other for name, other in value.items() if name != key}
            for smaller in _smaller_value(part):
                yield value | {key: smaller}
    elif isinstance(value, list):
        for number, part in enumerate(value[:50]):
            yield value[:number] + value[number + 1 :]
            for smaller in _smaller_value(part):
                yield [*value[:number], smaller, *value[number + 1 :]]
    elif isinstance(value, str) and len(value) > 1:
        yield value[: len(value) // 2]
        yield value[len(value) // 2 :]


def hardware() -> str:
    """The machine and the commit that a run was made on."""
    from vanilla_transformer.recipes.models import describe_machine

    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{describe_machine()}, at {done.stdout.strip() or 'no commit'}"
