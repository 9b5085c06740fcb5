"""What the benchmarks share: options, interleaved timing, peak memory, machine, results file.

Contenders run in one process, in turns, on the same inputs, so that whatever else the machine is
doing slows all of them alike: a ratio of two medians holds where the seconds themselves do not.
"""

import argparse
import ctypes
import dataclasses
import datetime
import gc
import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.atomic_file import atomic_file

RESULTS = Path(__file__).resolve().parent / "results"
ALLOCATORS = ("default", "tuned")
# What the contenders of this package are called; the names of all others are peers'. What has
# weights of 8 bits is compared with its like.
OURS, INT8 = "vanilla_transformer", " int8"

# malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GIB = 2**30
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


# --------------------------------------------------------------------------------------- options


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Adds what both benchmarks are told alike."""
    add = parser.add_argument
    add("--rounds", type=whole_number(1), default=5, metavar="N", help="timed calls of each [5]")
    add("--warmup", type=whole_number(0), default=1, metavar="N", help="rounds before them [1]")
    add("--threads", type=whole_number(1), metavar="N", help="of every contender [torch's choice]")
    add("--malloc", choices=ALLOCATORS, default="default", help="glibc's allocator [default]")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device, default=default, help="[a GPU if there is one]")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure it [yes]")
    add("--seed", type=int, default=1, metavar="N", help="of random weights and words [1]")
    add("--output", type=Path, metavar="FILE", help="results file (JSON) to add the runs to")


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Makes the process what the shared options say; gives and prints `machine()`."""
    set_allocator(options.malloc)
    if options.threads:
        torch.set_num_threads(options.threads)
    before = machine()
    print(", ".join(f"{name} {value}" for name, value in before.items()), flush=True)
    return before


def whole_number(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` on."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number, {least} or more")
        return int(text)

    return read


def device(text: str) -> str:
    """A type for argparse: a device that is here."""
    try:
        torch.empty(1, device=text)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(
            f"{text} cannot be used here ({reason}); try cpu"
        ) from None
    return text


# ------------------------------------------------------------------------------------------ time


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long the calls of one contender took, in seconds, warm-up left out."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """What the tables show."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """The least disturbed call."""
        return min(self.seconds)


def measure(
    contenders: Mapping[str, Callable[[], object]],
    *,
    warmup: int,
    rounds: int,
    device: str = "cpu",
    clock: Callable[[], float] | None = None,
) -> dict[str, Timing]:
    """Times the contenders in turns: every round calls each of them once.

    The order changes from round to round (`orders`), and garbage is collected between calls, so
    that none pays for what another one left behind.

    Args:
        contenders: What to call, by name.
        warmup: Rounds that do not count.
        rounds: Rounds that do.
        device: Waited for before and after each call.
        clock: What seconds are of; by default `time.perf_counter`.

    Raises:
        ValueError: No contender, or no round.
    """
    if not contenders:
        raise ValueError("contenders is empty: there is nothing to measure; name at least one")
    if rounds < 1 or warmup < 0:
        raise ValueError(
            f"rounds ({rounds}) must be 1 or more and warmup ({warmup}) 0 or more: a median needs "
            "a measurement"
        )
    clock = clock or time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number, order in enumerate(itertools.islice(orders(list(contenders)), warmup + rounds)):
        for name in order:
            gc.collect()
            synchronize(device)
            started = clock()
            contenders[name]()
            synchronize(device)
            elapsed = clock() - started
            if number >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing(values) for name, values in seconds.items()}


def orders(names: list[str]) -> Iterable[list[str]]:
    """An order for each round, without end.

    Rounds come in pairs, there and back, and every pair begins with the next name: over 2n rounds
    each contender is first twice and last twice, and comes before its neighbours as often as after.
    """
    for number in itertools.count():
        first = number // 2 % len(names)
        order = names[first:] + names[:first]
        yield order[::-1] if number % 2 else order


def synchronize(device: str) -> None:
    """Waits until a GPU has done what it was given; a processor always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def product_peak(
    dtype: torch.dtype = torch.float32, device: str = "cpu", *, seconds: float = 1.0
) -> float:
    """The machine's best at a product of two big square matrices, in FLOP/s.

    A benchmark's FLOP/s over this one is the share of what the machine can do, whatever its data
    sheet says. Measured on the threads that the benchmark has: run it in the same process.

    Args:
        dtype: Of the matrices.
        device: Where.
        seconds: How long to try; the best product counts.
    """
    size = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    count = 0
    while count < 5 or time.perf_counter() < end:
        synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
        count += 1
    return 2 * size**3 / best


# ---------------------------------------------------------------------------------------- memory


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that one contender takes, alone in a process.

    Attributes:
        held: Between two calls, over an empty process that has imported the same: weights,
            optimizer state, what caches keep.
        added: What a call takes on top of `held` at its peak: activations, gradients, logits.
    """

    held: int
    added: int

    @property
    def total(self) -> int:
        """The peak over an empty process."""
        return self.held + self.added


def peak_memory(
    build: Callable[[], Callable[[], object]],
    *,
    device: str = "cpu",
    allocator: str = "default",
    calls: int = 2,
    imports: Sequence[str] = (),
) -> Memory:
    """What a call takes, measured in a fresh process that does nothing else.

    The process imports what `build` needs, builds, calls once (which makes the optimizer's state),
    and then looks at the peak of `calls` more. On a processor that is the resident set: besides
    what is in use it holds what the allocator keeps, more so if it is tuned to keep big blocks.
    What is free is handed back before the calls.
    On a GPU it is what torch has allocated.

    Args:
        build: Makes what is measured. It travels to the other process: a function of a module, or
            a `functools.partial` of one, not a lambda.
        device: Where it computes.
        allocator: Of `ALLOCATORS`.
        calls: After the first one.
        imports: Modules that `build` imports, which do not count.

    Raises:
        RuntimeError: The other process failed; its own message is on stderr. Or a system other
            than Linux, whose peak cannot be reset.
    """
    if torch.device(device).type != "cuda" and not _CLEAR_REFS.exists():
        raise RuntimeError(
            f"peak memory is measured on Linux or on a GPU, not on {platform.system()} with "
            f"device={device}; leave it out there"
        )
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_measure_alone,
        args=(sender, build, device, allocator, calls, imports, torch.get_num_threads()),
    )
    process.start()
    sender.close()
    try:
        memory: Memory = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process that measures memory ended with {process.exitcode}; what it said is above"
        ) from None
    process.join()
    return memory


def _measure_alone(
    sender: Connection,
    build: Callable[[], Callable[[], object]],
    device: str,
    allocator: str,
    calls: int,
    imports: Sequence[str],
    threads: int,
) -> None:
    set_allocator(allocator)
    # Some tell at length what else one could install.
    with warnings.catch_warnings(action="ignore"):
        for module in imports:
            importlib.import_module(module)
    torch.set_num_threads(threads)
    on_gpu = torch.device(device).type == "cuda"
    empty = 0 if on_gpu else _resident()
    call = build()
    call()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    else:
        held = _resident()
        # From now on Linux counts the peak anew.
        _CLEAR_REFS.write_text("5")
    for _ in range(calls):
        call()
    synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _status("VmHWM")
    sender.send(Memory(held - empty, peak - held))
    sender.close()


def _resident() -> int:
    """Bytes of this process in memory, once what was freed has been handed back."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no line {name}: this kernel does not count it")


def set_allocator(name: str) -> None:
    """Chooses how glibc's malloc treats big blocks; call it before anything is computed.

    `"default"` maps every block over 32 MiB anew and gives it back when it is freed, so that the
    kernel zeroes the logits' pages at every step. `"tuned"` keeps blocks up to 1 GiB in the heap.
    It is one line in front of any program (`MALLOC_MMAP_THRESHOLD_=1073741824
    MALLOC_TRIM_THRESHOLD_=1073741824`), and here it applies to all contenders alike.

    Raises:
        ValueError: No such setting.
        RuntimeError: `"tuned"` without glibc.
    """
    if name not in ALLOCATORS:
        raise ValueError(f"allocator ({name}) must be one of {', '.join(ALLOCATORS)}")
    if name == "default":
        return
    library = ctypes.CDLL(None)
    # Each returns 1 where the allocator has taken the value.
    if not hasattr(library, "mallopt") or not all(
        library.mallopt(option, _GIB) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    ):
        raise RuntimeError(
            "allocator (tuned) needs glibc's mallopt, which is missing here or refuses 1 GiB; "
            "leave it at default"
        )


# --------------------------------------------------------------------------------------- machine


def machine() -> dict[str, Any]:
    """Where a benchmark runs: hardware, versions, and how busy it is already."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": _blas(),
        **versions("torch", "transformers", "vanilla_transformer"),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def versions(*packages: str) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _blas() -> str:
    for line in torch.__config__.show().splitlines():
        if "Math Kernel Library Version" in line:
            return line.strip(" -").partition(" Product")[0]
    return "without MKL"


class Load:
    """How much of the machine others took while a block ran.

    A benchmark beside which something else ran is worth little; this tells, where the load average
    cannot, since the benchmark itself is part of that.

        with Load() as load:
            ...
        load.others  # 0.02: other processes took 2% of all cores' time. None: unknown here.
    """

    others: float | None = None

    def __enter__(self) -> "Load":
        self._before = _cpu_seconds()
        return self

    def __exit__(self, *exception: object) -> None:
        after = _cpu_seconds()
        if self._before is not None and after is not None:
            busy, own, total = (b - a for a, b in zip(self._before, after, strict=True))
            # Clocks of different grain: a short block may come out below zero.
            self.others = max(0.0, (busy - own) / total) if total else None


def _cpu_seconds() -> tuple[float, float, float] | None:
    """All cores together since they were started: busy, busy with this process, at all."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
    ticks = [int(field) for field in path.read_text().splitlines()[0].split()[1:9]]
    seconds = [tick / os.sysconf("SC_CLK_TCK") for tick in ticks]
    idle = seconds[3] + seconds[4]
    return sum(seconds) - idle, sum(os.times()[:4]), sum(seconds)


# --------------------------------------------------------------------------------------- results


def write_results(
    path: Path,
    name: str,
    rows: list[dict[str, Any]],
    *,
    setting: Mapping[str, str],
    machine: Mapping[str, Any],
    **more: Any,
) -> None:
    """Adds a run to a results file, in place of an older one of the same setting.

    The file is `{"name": name, "runs": [run, ...]}`, a run
    `{"date", "command", "setting", "machine", "rows", **more}`. Of a row `render_benchmarks.py`
    reads `contender`; `setting`, its own part of the setting (such as `{"batches": "random"}`);
    `tokens_per_second`; `ratio` to the reference, None where that was left out.

    Args:
        path: JSON.
        name: Of the benchmark, `"training"` or `"generation"`.
        rows: One for each contender and setting.
        setting: What was the same for all rows (`{"size": "base", "malloc": "tuned"}`).
        machine: `machine()`, from before the run.
        more: Other facts about the run.

    Raises:
        ValueError: The file holds another benchmark.
    """
    runs: list[dict[str, Any]] = []
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["name"] != name:
            raise ValueError(
                f"{path} holds the results of {held['name']}, not of {name}; choose another file"
            )
        runs = [run for run in held["runs"] if run["setting"] != dict(setting)]
    run = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command_line(),
        "setting": dict(setting),
        "machine": dict(machine),
        **more,
        "rows": rows,
    }
    with atomic_file(path) as temporary:
        text = json.dumps({"name": name, "runs": [*runs, run]}, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def command_line() -> str:
    """What was typed, without the way to where it lies; `--output` is left out."""
    arguments = iter(sys.argv[1:])
    kept = []
    for argument in arguments:
        if argument == "--output":
            next(arguments, None)
        elif not argument.startswith("--output="):
            kept.append(Path(argument).name if Path(argument).is_absolute() else argument)
    return shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *kept])
