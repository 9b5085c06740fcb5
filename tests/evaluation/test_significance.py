"""Intervals and p-values are those of sacreBLEU's command line, and of naive computations."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vanilla_transformer.evaluation.significance import (
    compare_examples,
    compare_systems,
    confidence_intervals,
    format_comparison,
)

GENERATOR = np.random.default_rng(3)
REFERENCES = [
    " ".join(GENERATOR.choice(["the", "a", "dog", "cat", "runs", "sleeps", "now", "."], size=8))
    for _ in range(40)
]


def worsened(share: float, seed: int) -> list[str]:
    """The references with so many words replaced."""
    generator = np.random.default_rng(seed)
    return [
        " ".join("x" if generator.random() < share else word for word in line.split())
        for line in REFERENCES
    ]


SYSTEMS = {"base": worsened(0.3, 1), "better": worsened(0.15, 2), "alike": worsened(0.3, 5)}


# Means of bootstraps, and TER, come as NumPy's numbers, which sacreBLEU itself cannot write as
# JSON.
SACREBLEU = """
import json, runpy
json.JSONEncoder.default = lambda encoder, number: number.item()
runpy.run_module("sacrebleu", run_name="__main__")
"""


def command_line(folder: Path, *options: str) -> Any:
    """What `sacrebleu references --format json` prints, with the systems in files beside it."""
    for name, lines in {**SYSTEMS, "references": REFERENCES}.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = "references --format json --width 12"
    finished = subprocess.run(
        [sys.executable, "-c", SACREBLEU, *arguments.split(), *options],
        check=True,
        capture_output=True,
        cwd=folder,
        timeout=120,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    return json.loads(finished.stdout)


@pytest.mark.parametrize(
    ("test", "options"),
    [
        ("bootstrap", ["--paired-bs", "--paired-bs-n", "60"]),
        ("randomisation", ["--paired-ar", "--paired-ar-n", "60"]),
    ],
)
def test_equals_sacrebleu_command_line(tmp_path: Path, test: Any, options: list[str]) -> None:
    theirs = command_line(tmp_path, "-i", *SYSTEMS, "--metrics", "bleu", "chrf", "ter", *options)
    ours = compare_systems(SYSTEMS, REFERENCES, test=test, num_samples=60)
    assert (ours["baseline"], ours["segments"], ours["samples"]) == ("base", 40, 60)
    assert list(ours["metrics"]) == ["bleu", "chrf", "ter"]
    own_names = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}
    for system, row in zip(SYSTEMS, theirs, strict=True):
        assert row["system"].endswith(system)
        for name, own_name in own_names.items():
            one, expected = ours["metrics"][name], row[own_name]
            found = one["systems"][system]
            assert found["score"] == pytest.approx(expected["score"], abs=1e-9)
            low, high = found["interval"]
            # With randomisation the command line gives no intervals.
            if test == "bootstrap":
                assert found["mean"] == pytest.approx(expected["mean"], abs=1e-9)
                assert (high - low) / 2 == pytest.approx(expected["ci"], abs=1e-9)
            if system != "base":
                difference = found["score"] - one["systems"]["base"]["score"]
                assert found["difference"] == pytest.approx(difference)
                # Ours alone says of no difference at all that chance explains it.
                p_value = expected["p_value"] if difference else 1.0
                assert found["p_value"] == pytest.approx(p_value, abs=1e-9)
            assert "seed:12345" in one["signature"]
    # A real difference is told from none.
    bleu = ours["metrics"]["bleu"]["systems"]
    assert bleu["better"]["p_value"] < 0.05 < bleu["alike"]["p_value"]


def test_intervals_equal_those_of_the_command_line(tmp_path: Path) -> None:
    options = "--metrics bleu chrf ter --confidence --confidence-n 80 --chrf-word-order 2"
    theirs = command_line(tmp_path, "-i", "base", *options.split())
    ours = confidence_intervals(
        SYSTEMS["base"],
        [[line] for line in REFERENCES],
        metrics={"bleu": {}, "chrf": {"word_order": 2}, "ter": {}},
        num_resamples=80,
    )
    for found, expected in zip(ours.values(), theirs, strict=True):
        low, high = found["interval"]
        assert found["score"] == pytest.approx(expected["score"], abs=1e-9)
        assert (low + high) / 2 == pytest.approx(expected["confidence_mean"], abs=1e-9)
        assert (high - low) / 2 == pytest.approx(expected["confidence_var"], abs=1e-9)
        assert found["signature"] == expected["signature"]


def test_equal_systems_do_not_differ() -> None:
    for test in ("bootstrap", "randomisation"):
        found = compare_systems(
            {"one": SYSTEMS["base"], "same": list(SYSTEMS["base"])},
            REFERENCES,
            test=test,  # type: ignore[arg-type]
            metrics=("bleu",),
            num_samples=20,
        )
        row = found["metrics"]["bleu"]["systems"]["same"]
        assert (row["difference"], row["p_value"]) == (0, 1)


def test_several_references_and_the_table() -> None:
    references = [
        [line, SYSTEMS["better"][0]] if not i else [line] for i, line in enumerate(REFERENCES)
    ]
    found = compare_systems(SYSTEMS, references, metrics=("bleu",), num_samples=20)
    assert "nrefs:var" in found["metrics"]["bleu"]["signature"]
    lines = format_comparison(found).splitlines()
    assert lines[0] == "40 segments, paired bootstrap, 20 samples; differences from base"
    assert [line.split()[0] for line in lines[3:6]] == list(SYSTEMS)
    assert found["metrics"]["bleu"]["signature"] == lines[6]

    other = compare_systems(
        SYSTEMS, references, test="randomisation", metrics=("bleu",), num_samples=30
    )
    lines = format_comparison(found, other).splitlines()
    assert lines[:2] == [
        "40 segments, paired bootstrap, 20 samples; differences from base",
        "40 segments, paired randomisation, 30 samples; differences from base",
    ]
    rows = {line.split()[0]: line.split()[-2:] for line in lines[5:7]}
    for system, shown in rows.items():
        p_values = [one["metrics"]["bleu"]["systems"][system]["p_value"] for one in (found, other)]
        assert [float(one) for one in shown] == pytest.approx(p_values, abs=1e-4)
    assert lines[7:] == [one["metrics"]["bleu"]["signature"] for one in (found, other)]

    alone = compare_systems(
        {"base": SYSTEMS["base"]}, REFERENCES, metrics=("bleu",), num_samples=20
    )
    assert format_comparison(alone).splitlines()[0] == "40 segments, bootstrap, 20 samples"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": "t"}, "must be 'bootstrap' or 'randomisation'"),
        ({"metrics": ("bleurt",)}, r"'bleurt'.*bleu, chrf, ter"),
        ({"num_samples": 0}, "num_samples"),
        ({"systems": {}}, "no system"),
        ({"systems": {"one": ["a"]}}, "1 predictions and 40 references"),
        ({"systems": {"one": []}, "references": []}, "no segment"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"systems": SYSTEMS, "references": REFERENCES, **arguments}
    with pytest.raises(ValueError, match=message):
        compare_systems(**given)


# Scores of single examples


def test_randomisation_equals_all_the_swaps_there_are() -> None:
    first = np.array([1, 0, 0, 1, 0, 0, 1, 0, 0, 0.5])
    second = np.array([1, 1, 1, 1, 0, 1, 1, 0, 1, 0.25])
    found = compare_examples(first, second, num_samples=40_000)
    differences = second - first
    swaps = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=10)]
    exact = np.mean(np.abs(swaps) >= abs(differences.sum()) - 1e-12)
    assert 0.05 < exact < 0.5
    # Three standard deviations of a share of so many draws.
    assert found["p_value"] == pytest.approx(exact, abs=3 * (exact / 40_000) ** 0.5)
    assert found["difference"] == pytest.approx(differences.mean())
    assert (found["baseline"], found["system"]) == (first.mean(), second.mean())


def test_bootstrap_equals_a_naive_one() -> None:
    first = GENERATOR.integers(2, size=60)
    second = np.where(GENERATOR.random(60) < 0.25, 1, first)
    found = compare_examples(first, second, test="bootstrap", num_samples=4000)
    generator = np.random.default_rng(99)
    observed, as_great, means = (second - first).mean(), 0, []
    for _ in range(4000):
        rows = generator.choice(60, 60)
        means.append(second[rows].mean() - first[rows].mean())
        as_great += abs(means[-1] - observed) >= observed - 1e-12
    assert found["p_value"] == pytest.approx((as_great + 1) / 4001, abs=0.02)
    low, high = np.quantile(means, [0.025, 0.975])
    assert found["interval"] == pytest.approx([low, high], abs=0.02)
    assert compare_examples(first, second, seed=1) == compare_examples(first, second, seed=1)
    assert compare_examples(first, second, seed=1) != compare_examples(first, second, seed=2)


@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
def test_chance_alone_is_significant_as_often_as_it_says(test: Any) -> None:
    generator = np.random.default_rng(7)
    found = [
        compare_examples(*generator.integers(2, size=(2, 80)), test=test, num_samples=200)[
            "p_value"
        ]
        for _ in range(300)
    ]
    assert 0.01 < np.mean(np.array(found) <= 0.05) < 0.1
    same = generator.integers(2, size=80)
    assert compare_examples(same, same, test=test, num_samples=50)["p_value"] == 1


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], []), "one for each example"),
        (([1], [1, 2]), "one for each example"),
        (([[1]], [[1]]), "one for each example"),
        (([1], [np.nan]), "finite"),
    ],
)
def test_bad_scores_are_named(pair: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_examples(*pair)
