"""The soak: its rules find what grows and what slows, and it runs from end to end."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("fastapi", reason="pip install 'vanilla_transformer[serve]'")


@pytest.fixture
def soak(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "scripts")
    return importlib.import_module("soak")


def parts(
    soak: ModuleType, memory: Callable[[float], float], speed: Callable[[float], float]
) -> list[dict[str, float]]:
    """Tenths of a run of 1,000 samples, whose memory and speed go with time from 0 to 1."""
    samples, done = [], 0.0
    for number in range(1001):
        samples.append(soak.Sample(number, int(2**20 * memory(number / 1000)), number / 2, done))
        done += speed(number / 1000)
    return soak.tenths(samples, lambda sample: sample.seconds)


def test_tenths_are_medians_and_rates(soak: ModuleType) -> None:
    found = parts(soak, lambda time: 100 + 10 * time, lambda time: 4)
    assert [one["memory"] for one in found] == pytest.approx(
        [100.5 + number for number in range(10)], abs=1e-3
    )
    assert [one["texts_per_second"] for one in found] == pytest.approx([4] * 10)
    assert [one["texts_per_processor_second"] for one in found] == pytest.approx([8] * 10)
    with pytest.raises(ValueError, match="run longer"):
        soak.tenths([soak.Sample(n, 1, n, n) for n in range(5)], lambda sample: sample.seconds)


def test_what_grows_and_what_slows_is_told(soak: ModuleType) -> None:
    def told(memory: Callable[[float], float], speed: Callable[[float], float]) -> list[str]:
        return soak.broken_rules(parts(soak, memory, speed), "texts_per_second")

    def flat(time: float) -> float:
        return 100

    assert told(flat, flat) == []
    # What the first tenth allocates is no leak.
    assert told(lambda time: 50 if time < 0.1 else 100, flat) == []
    assert "answered nothing" in " ".join(told(flat, lambda time: 0.0 if time < 0.2 else 1.0))
    assert "memory grew by a factor of 1.1" in " ".join(told(lambda time: 90 + 20 * time, flat))
    assert "speed fell to 0.9" in " ".join(told(flat, lambda time: 100 - 10 * time))


def test_every_tenth_has_the_same_loads(soak: ModuleType) -> None:
    found = list(soak.loads(10, 1))
    untils = [until for until, _ in found]
    assert untils == sorted(untils)
    assert untils[-1] == pytest.approx(600)
    tenths = [[clients for _, clients in found[i : i + 6]] for i in range(0, 60, 6)]
    assert all(Counter(tenth) == Counter(soak.LOADS) for tenth in tenths)
    assert len(set(map(tuple, tenths))) > 1


@pytest.mark.parametrize("measure", ["serving", "streaming"])
def test_it_runs(
    soak: ModuleType, models: dict[str, Path], measure: str, tmp_path: Path, repository: Path
) -> None:
    script = repository / "scripts" / "soak.py"
    size = {"serving": ["--minutes", "0.15"], "streaming": ["--lines", "500", "--window", "50"]}
    record = tmp_path / "soak.json"
    command = [sys.executable, script, measure, models["translation"], *size[measure]]
    command += ["--sentences", "5", "--interval", "0.01", "--record", record]
    run = subprocess.run(command, capture_output=True, text=True)
    # So short a run may break the rules of speed and memory; what it counts it counts.
    assert run.returncode in (0, 1), run.stderr
    assert record.exists(), run.stderr
    written = json.loads(record.read_text("utf-8"))[measure]
    assert len(written["tenths"]) == 10
    assert not [rule for rule in written["broken"] if "memory" not in rule and "speed" not in rule]
    counts = written["counts"]
    assert counts["different"] == 0
    if measure == "streaming":
        assert counts["texts"] == counts["compared"] == 500
    else:
        assert counts["texts"] > counts["compared"] > 0
        assert counts["refused"] > 0
        assert counts["hung up"] > 0
