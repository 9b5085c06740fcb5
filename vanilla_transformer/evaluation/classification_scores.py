"""Figures of a classifier from its counts and its certainty: F1, Matthews, calibration.

The metric `classification.py` takes this file with it, which therefore imports nothing of this
package.

Shapes: N examples, C labels.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np


def classification_figures(
    given: np.ndarray, gold: np.ndarray, num_bins: int = 10
) -> dict[str, Any]:
    """The figures of the metric `classification`.

    Args:
        given: Predicted labels [N], -1 for none, or probabilities [N, C].
        gold: Labels [N].
        num_bins: As `calibration` takes it.
    """
    predicted = given if given.ndim == 1 else given.argmax(axis=1)
    confusion = confusion_counts(gold, predicted, max(int(gold.max()), int(predicted.max())) + 1)
    error = None
    if given.ndim == 2:
        certainty = given[np.arange(len(gold)), predicted]
        error = calibration(certainty, predicted == gold, num_bins)["expected_error"]
    return {
        "accuracy": 100 * float((predicted == gold).mean()),
        "macro_f1": float(macro_f1(confusion)),
        "micro_f1": micro_f1(confusion),
        "matthews_correlation": matthews_correlation(confusion),
        "expected_calibration_error": error,
        "examples": len(gold),
    }


def confusion_counts(gold: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts [C, C + 1]: rows gold, columns predicted, the last one for no label."""
    columns = np.where(predicted < 0, num_labels, predicted)
    cells = np.bincount(gold * (num_labels + 1) + columns, minlength=num_labels * (num_labels + 1))
    return cells.reshape(num_labels, num_labels + 1)


def label_scores(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 [..., C] as shares; 0 where nothing was predicted or is gold."""
    square = confusion[..., :-1]
    right = np.diagonal(square, axis1=-2, axis2=-1).astype(np.float64)
    answered, golden = square.sum(axis=-2), confusion.sum(axis=-1)
    return (
        right / np.maximum(answered, 1),
        right / np.maximum(golden, 1),
        2 * right / np.maximum(answered + golden, 1),
    )


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 in percent over the labels that are gold or predicted, of counts [..., C, C + 1]."""
    _, _, f1 = label_scores(confusion)
    occurring = confusion[..., :-1].sum(axis=-2) + confusion.sum(axis=-1) > 0
    mean: np.ndarray = 100 * f1.sum(axis=-1) / occurring.sum(axis=-1)
    return mean


def micro_f1(confusion: np.ndarray) -> float:
    """F1 in percent over all decisions together, of counts [C, C + 1].

    It is the accuracy, unless answers that are no label, which are not held against precision,
    are among them.
    """
    right = np.trace(confusion)
    return 200 * float(right / (confusion[:, :-1].sum() + confusion.sum()))


def matthews_correlation(confusion: np.ndarray) -> float:
    """Correlation of gold and predicted labels (Gorodkin 2004), -100 to 100, of counts [C, C + 1].

    0 where all gold or all predicted labels are one. For two labels it is that of Matthews (1975).
    """
    counts = confusion.astype(np.float64)
    examples, right = counts.sum(), np.trace(counts)
    # Answers that are no label are one more, which is never gold.
    predicted, gold = counts.sum(axis=0), np.append(counts.sum(axis=1), 0.0)
    spread = np.sqrt((examples**2 - (predicted**2).sum()) * (examples**2 - (gold**2).sum()))
    return 100 * float((right * examples - predicted @ gold) / spread) if spread else 0.0


def calibration(certainty: np.ndarray, right: np.ndarray, num_bins: int = 10) -> dict[str, Any]:
    """Compare how sure the model is with how often it is right (Guo et al. 2017, section 2).

    Args:
        certainty: Probability [N] of the predicted label.
        right: Whether [N] it is the gold one.
        num_bins: Bins of equal width; a probability on an edge belongs to the bin below it.

    Returns:
        {"expected_error": mean distance of certainty and accuracy over the bins, weighted by their
        examples, "bins": [{"from", "to", "examples", "certainty", "accuracy"}]}, in percent;
        certainty and accuracy of an empty bin are None.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    places = np.clip(np.digitize(certainty, edges, right=True) - 1, 0, num_bins - 1)
    bins, error = [], 0.0
    for place, (lower, upper) in enumerate(itertools.pairwise(edges)):
        here = places == place
        count = int(here.sum())
        mean = 100 * float(certainty[here].mean()) if count else None
        accuracy = 100 * float(right[here].mean()) if count else None
        if mean is not None and accuracy is not None:
            error += count / len(certainty) * abs(mean - accuracy)
        bins.append(
            {
                "from": 100 * float(lower),
                "to": 100 * float(upper),
                "examples": count,
                "certainty": mean,
                "accuracy": accuracy,
            }
        )
    return {"expected_error": error, "bins": bins}
