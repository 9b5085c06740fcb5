"""The figures of classifiers are scikit-learn's, and the naive ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vanilla_transformer.evaluation import load_metric

GENERATOR = np.random.default_rng(5)
GOLD = GENERATOR.integers(3, size=60).tolist()
PROBABILITIES = GENERATOR.dirichlet([0.7, 1.0, 1.3], size=60)
# What was written and is no label is -1.
CASES = {
    "of three": (GOLD, GENERATOR.integers(3, size=60).tolist()),
    "some no label": (GOLD, GENERATOR.integers(-1, 3, size=60).tolist()),
    "of two": ([one % 2 for one in GOLD], GENERATOR.integers(2, size=60).tolist()),
    "one never predicted": (GOLD, GENERATOR.integers(2, size=60).tolist()),
    "one predicted, never gold": ([one % 2 for one in GOLD], GOLD),
    "all one": ([0] * 6, [0] * 6),
    "all wrong": ([0] * 6, [1] * 6),
}


def naive(gold: list[int], predicted: list[int]) -> dict[str, float]:
    """From the definitions, one example at a time."""
    f1 = []
    counts = [0, 0, 0]
    for label in {*gold, *predicted} - {-1}:
        true = sum(g == p == label for g, p in zip(gold, predicted, strict=True))
        false = predicted.count(label) - true
        missed = gold.count(label) - true
        f1.append(2 * true / (2 * true + false + missed))
        counts = [a + b for a, b in zip(counts, (true, false, missed), strict=True)]
    # Correlation of the one-hot rows, which is what Gorodkin's coefficient is.
    labels = sorted({*gold, *predicted})
    x, y = (
        np.array([[one == label for label in labels] for one in z]) * 1.0 for z in (gold, predicted)
    )
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    return {
        "accuracy": 100 * sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold),
        "macro_f1": 100 * sum(f1) / len(f1),
        "micro_f1": 200 * counts[0] / (2 * counts[0] + counts[1] + counts[2]),
        "matthews_correlation": 100 * float((x * y).sum()) / spread if spread else 0.0,
    }


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definitions(case: str) -> None:
    gold, predicted = CASES[case]
    result = load_metric("classification").compute(predictions=predicted, references=gold)
    expected = naive(gold, predicted)
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    assert (result["expected_calibration_error"], result["examples"]) == (None, len(gold))


@pytest.mark.parametrize("case", CASES)
def test_equals_scikit_learn(case: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    gold, predicted = CASES[case]
    labels = sorted({*gold, *predicted} - {-1})
    result = load_metric("classification").compute(predictions=predicted, references=gold)
    assert result["accuracy"] == pytest.approx(100 * metrics.accuracy_score(gold, predicted))
    for average in ("macro", "micro"):
        f1 = metrics.f1_score(gold, predicted, labels=labels, average=average, zero_division=0)
        assert result[f"{average}_f1"] == pytest.approx(100 * f1)
    matthews = metrics.matthews_corrcoef(gold, predicted)
    assert result["matthews_correlation"] == pytest.approx(100 * matthews)


@pytest.mark.parametrize("num_bins", [1, 4, 10])
def test_calibration_by_the_definition(num_bins: int) -> None:
    result = load_metric("classification").compute(
        predictions=PROBABILITIES, references=GOLD, num_bins=num_bins
    )
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, gold in zip(PROBABILITIES.tolist(), GOLD, strict=True):
        place = math.ceil(max(row) * num_bins)
        bins.setdefault(place, []).append((max(row), row.index(max(row)) == gold))
    error = sum(
        abs(sum(sure for sure, _ in one) - sum(right for _, right in one)) for one in bins.values()
    )
    assert result["expected_calibration_error"] == pytest.approx(100 * error / len(GOLD))
    labels = PROBABILITIES.argmax(axis=1).tolist()
    assert result["accuracy"] == pytest.approx(naive(GOLD, labels)["accuracy"])


@pytest.mark.parametrize("predictions", [PROBABILITIES, PROBABILITIES.argmax(axis=1)])
def test_bit_by_bit_equals_at_once(predictions: np.ndarray) -> None:
    metric = load_metric("classification")
    at_once = metric.compute(predictions=predictions, references=GOLD)
    metric.add(prediction=predictions[0], reference=GOLD[0])
    metric.add_batch(predictions=[], references=[])
    metric.add_batch(predictions=predictions[1:40], references=GOLD[1:40])
    assert metric.compute(predictions=predictions[40:], references=np.array(GOLD[40:])) == at_once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "at least one example"),
        ({"predictions": [1]}, "both predictions and references"),
        ({"predictions": [1], "references": [1, 2]}, "1 predictions and 2 references"),
        ({"predictions": [-2], "references": [1]}, "-1 for no label"),
        ({"predictions": ["a"], "references": [1]}, "-1 for no label"),
        ({"predictions": [0.5], "references": [1]}, "-1 for no label"),
        ({"predictions": [1], "references": [-1]}, "references must be whole numbers"),
        ({"predictions": [1], "references": ["a"]}, "references must be whole numbers"),
        ({"predictions": [[2.0, -1.0]], "references": [1]}, "softmax"),
        ({"predictions": [[math.nan, 1.0]], "references": [1]}, "softmax"),
        ({"predictions": [1], "references": [1], "num_bins": 0}, "num_bins"),
    ],
)
def test_bad_input_is_named_and_leaves_the_metric_usable(
    arguments: dict[str, Any], message: str
) -> None:
    metric = load_metric("classification")
    with pytest.raises(ValueError, match=message):
        metric.compute(**arguments)
    assert metric.compute(predictions=[1], references=[1])["accuracy"] == 100
