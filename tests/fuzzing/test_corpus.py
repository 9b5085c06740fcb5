"""What fuzzing once found stays mended, and the judge that says so sees every kind of bug."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("fastapi", reason="pip install 'vanilla_transformer[serve]'")

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the judge watches as Linux does")


@pytest.fixture
def fuzzing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "scripts")
    # It sets the environment up for a program of its own.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return importlib.import_module("fuzzing")


def lines_of(*command: str | Path) -> list[dict[str, str | None]]:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=280
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return lines


def test_no_case_of_the_corpus_breaks_a_rule(repository: Path) -> None:
    verdicts = lines_of(repository / "scripts" / "fuzz.py", "--replay", CORPUS)
    assert {verdict["case"] for verdict in verdicts} == {path.name for path in CORPUS.iterdir()}
    assert [verdict for verdict in verdicts if verdict["rule"] is not None] == []


def test_the_judge_sees_every_kind_of_bug() -> None:
    found = lines_of(HERE / "planted.py")
    assert [one for one in found if one["found"] != one["expected"]] == []
    assert {one["found"] for one in found} == {None, "error", "hang", "memory", "crash", "touched"}


def test_cases_are_stored_whole_and_the_corpus_is_small(fuzzing: ModuleType) -> None:
    files = {"a/x": b"\x00\xff" * 500, "y": "é\ud83d".encode("utf-8", "surrogatepass"), "z": b"{}"}
    case = fuzzing.Case("readers", {"free": ["\ud800", float("inf")]}, files, {"l": "/dev/zero"})
    assert fuzzing.Case.from_json(case.to_json()) == case
    paths = sorted(CORPUS.iterdir())
    assert sum(path.stat().st_size for path in paths) < 300 * 1024
    for path in paths:
        assert fuzzing.Case.from_json(path.read_text("utf-8")).name == path.name


def test_mutations_are_those_of_the_seed_and_change_every_format(fuzzing: ModuleType) -> None:
    contents = [b'{"a": [1, "x"]}', b"a,b\n1,2\n", bytes(range(256)), b""]
    case = fuzzing.Case("x", {"free": {"n": 1}}, {str(i): c for i, c in enumerate(contents)})
    many = [
        [fuzzing.mutated(case, [case], random_) for _ in range(200)]
        for random_ in (random.Random(5), random.Random(5))
    ]
    assert [one.to_json() for one in many[0]] == [one.to_json() for one in many[1]]
    for name, content in case.files.items():
        assert any(one.files.get(name, content) != content for one in many[0])
    assert any(one.argument != case.argument for one in many[0])
    assert any(one.links for one in many[0])


def test_what_does_not_matter_goes(fuzzing: ModuleType) -> None:
    files = {
        "x": b"abc" * 100 + b"BUG" + b"def" * 100,
        "y": b"1",
        "z.json": b'{"a": {"b": [1, 2]}}',
    }
    case = fuzzing.Case("x", {"free": {"n": [1, 2, 3], "m": "long"}}, files, {"l": "x"})

    def is_same(one: object) -> bool:
        content = one.files  # type: ignore[attr-defined]
        return b"BUG" in content.get("x", b"") and b'"b"' in content.get("z.json", b"")

    small = fuzzing.shrunk(case, is_same)
    assert (small.links, set(small.files), small.argument["free"]) == ({}, {"x", "z.json"}, {})
    assert len(small.files["x"]) < 25
    assert small.files["z.json"] == b'"b"'
