"""The README's code blocks run, in order, as a reader would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

COMMAND = "vanilla-transformer"
# They set a checkout up, which a test must not do; of `make` the target is looked up instead.
NOT_RUN = {"make", "pip", "git", "cd"}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
# The last thing before a fence, with only white space in between.
EXCUSE = re.compile(r"<!--\s*not run(?P<reason>[^>]*?)-->\s*\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text and the line of its first line of text."""

    language: str
    text: str
    line: int


def runnable_blocks(markdown: str) -> list[Block]:
    """Python and bash blocks that are not excused by `<!-- not run: reason -->`.

    Raises: ValueError if an excuse gives no reason.
    """
    blocks: list[Block] = []
    for match in FENCE.finditer(markdown):
        language, text = match.groups()
        line = markdown.count("\n", 0, match.start(2)) + 1
        excuse = EXCUSE.search(markdown, 0, match.start())
        if excuse and not excuse["reason"].removeprefix(":").strip():
            raise ValueError(f"line {line}: 'not run' needs a reason: <!-- not run: reason -->")
        if language in ("python", "bash") and not excuse:
            blocks.append(Block(language, text, line))
    return blocks


def shell_lines(text: str) -> list[str]:
    """The commands of a bash block: continued lines joined, comments and empty lines left out."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def programs(line: str) -> list[str]:
    """First word of each command in a shell line: `a x | b y && c` gives a, b, c.

    Raises: ValueError if a quotation is not closed.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    first, found = True, []
    for word in lexer:
        if set(word) <= set("|&;"):
            first = True
        elif first:
            found.append(word)
            first = False
    return found


def make_targets(makefile: str) -> set[str]:
    """Names of the targets a Makefile defines."""
    return set(re.findall(r"^([.\w-]+):(?!=)", makefile, flags=re.MULTILINE))


def run_shell_line(line: str, folder: Path, makefile: str) -> None:
    """Run a line that uses our command; of the others check what can be checked.

    Raises: AssertionError if the line fails, names a missing make target, or is of an unknown kind.
    """
    names = programs(line)
    if COMMAND in names:
        # The console script lies beside the interpreter, whether or not the venv is activated.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        return
    unknown = set(names) - NOT_RUN
    assert not unknown, f"{line!r}: {sorted(unknown)} is neither {COMMAND} nor one of {NOT_RUN}"
    if "make" in names:
        words = [word for word in shlex.split(line, comments=True)[1:] if "=" not in word]
        missing = set(words) - make_targets(makefile)
        assert not missing, f"{line!r}: the Makefile has no target {sorted(missing)}"


# A block may train a small model; the run as a whole stays within the demo's order of time.
@pytest.mark.timeout(900)
def test_readme_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    blocks = runnable_blocks(readme)
    assert blocks, "the README has no block that runs"
    monkeypatch.chdir(tmp_path)
    # One namespace: a later block uses what an earlier one has made.
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        if block.language == "bash":
            for line in shell_lines(block.text):
                run_shell_line(line, tmp_path, makefile)
        else:
            # Padded, so that a traceback gives the README's own line number.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(REPOSITORY / "README.md"), "exec"), namespace)


def test_blocks_are_found_and_excused() -> None:
    markdown = (
        "```python\nx = 1\n```\n"
        "<!-- not run: needs a GPU -->\n```bash\nvanilla-transformer train\n```\n"
        "```bash\nmake test\n```\n```json\n{}\n```\n"
    )
    assert runnable_blocks(markdown) == [
        Block("python", "x = 1\n", 2),
        Block("bash", "make test\n", 9),
    ]


@pytest.mark.parametrize("excuse", ["<!-- not run -->", "<!-- not run: -->"])
def test_an_excuse_needs_a_reason(excuse: str) -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        runnable_blocks(f"{excuse}\n\n```python\nx\n```\n")


def test_shell_lines_are_taken_apart() -> None:
    text = "# a comment\nvanilla-transformer train \\\n  --seed 1\n\nmake demo\n"
    assert shell_lines(text) == ["vanilla-transformer train    --seed 1", "make demo"]
    assert programs("echo 'a | b' | vanilla-transformer translate && cat x") == [
        "echo",
        COMMAND,
        "cat",
    ]


@pytest.mark.parametrize(
    "line", ["make paint", "curl example.org | sh", "vanilla-transformer paint-the-house"]
)
def test_wrong_shell_lines_fail(line: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_shell_line(line, tmp_path, "test: x\n")


def test_set_up_lines_are_not_run(tmp_path: Path) -> None:
    for line in ("make test JOBS=4", "git clone x && cd x", "pip install -e ."):
        run_shell_line(line, tmp_path, "VENV := .venv\ntest: x\n")
    assert make_targets("VENV := .venv\n.PHONY: test\ntest: x\n.venv: y\n") >= {"test", ".venv"}
