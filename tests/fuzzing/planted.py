"""Plants a bug of every kind and prints what the judge makes of it, a line of JSON each.

A program of its own: the judge forks, which a process with threads should not.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from fuzzing import Case, Target, WrongAnswerError, judge


def documented(directory: Path, argument: Any) -> None:
    raise ValueError("line 3 of x is no number; mend it")


def undocumented(directory: Path, argument: Any) -> None:
    {}["layers"]


def wrong_answer(directory: Path, argument: Any) -> None:
    raise WrongAnswerError("status 500")


def busy(directory: Path, argument: Any) -> None:
    while True:
        pass


def waiting(directory: Path, argument: Any) -> None:
    time.sleep(1000)


def allocates(directory: Path, argument: Any) -> None:
    bytearray(1 << 34)


def hides_allocation(directory: Path, argument: Any) -> None:
    try:
        bytearray(1 << 34)
    except MemoryError as error:
        raise ValueError("a file that is damaged") from error


def fills_disk(directory: Path, argument: Any) -> None:
    with open("long", "wb") as file:
        file.truncate(1 << 34)


def dies(directory: Path, argument: Any) -> None:
    os.abort()


def changes_input(directory: Path, argument: Any) -> None:
    (directory / "x").write_text("other", "utf-8")


def reads_beside(directory: Path, argument: Any) -> None:
    (directory / "../outside/secret").read_text("utf-8")


def writes_beside(directory: Path, argument: Any) -> None:
    (directory / "../outside/new").write_text("new", "utf-8")


def writes_elsewhere(directory: Path, argument: Any) -> None:
    (directory / "../new").write_text("new", "utf-8")


def removes(directory: Path, argument: Any) -> None:
    (directory / "x").unlink()


def starts_program(directory: Path, argument: Any) -> None:
    os.system("true")


def writes_its_own(directory: Path, argument: Any) -> None:
    Path("result").write_text((directory / "x").read_text("utf-8"), "utf-8")


EXPECTED = {
    documented: None,
    writes_its_own: None,
    undocumented: "error",
    wrong_answer: "error",
    busy: "hang",
    waiting: "hang",
    allocates: "memory",
    hides_allocation: "memory",
    fills_disk: "memory",
    dies: "crash",
    changes_input: "touched",
    removes: "touched",
    reads_beside: "touched",
    writes_beside: "touched",
    writes_elsewhere: "touched",
    starts_program: "touched",
}

if __name__ == "__main__":
    for run, expected in EXPECTED.items():
        verdict = judge(Target(run, seconds=1), Case("planted", {}, {"x": b"1"}))
        found = {"bug": run.__name__, "expected": expected, "found": verdict.rule}
        print(json.dumps(found | {"detail": verdict.detail}), flush=True)
