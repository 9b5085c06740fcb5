"""Accuracy, F1, Matthews' correlation and calibration of a classifier as an Evaluate metric."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from .classification_scores import classification_figures

_INPUTS = """
Args:
    predictions: for each example the number of a label, -1 for an answer that is none; or the
        probability of each label, of which the greatest is the answer.
    references: for each example the number of its label.
    num_bins: of equal width, for the calibration.

Returns:
    A dictionary with `accuracy`, `macro_f1`, `micro_f1` (percent), `matthews_correlation` (-100 to
    100), `expected_calibration_error` (percent; None without probabilities) and `examples`.
"""


class Classification(evaluate.Metric):
    """How often the label is right, over all and over the labels, and whether certainty is earned.

    Macro-F1 is over the labels that are gold or predicted, as in scikit-learn. Matthews'
    correlation is in percent, as GLUE prints it for CoLA.
    """

    # Evaluators hand over what they have: not every metric of labels takes probabilities.
    takes_probabilities = True

    def _info(self) -> evaluate.MetricInfo:
        label, share = datasets.Value("int64"), datasets.Value("float64")
        return evaluate.MetricInfo(
            description="How often the label is right, and how often as sure as it was.",
            citation="Gorodkin, Comparing two K-category assignments by a K-category correlation "
            "coefficient, 2004. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.",
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": datasets.List(share), "references": label}),
                datasets.Features({"predictions": label, "references": label}),
            ],
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Keep one example for the next `compute()`; raises as `add_batch`."""
        # A combined metric hands on the same two under the names of the columns.
        example = {"predictions": prediction, "references": reference, **columns}
        self.add_batch(**{name: [value] for name, value in example.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Keep a batch of examples for the next `compute()`.

        Raises:
            ValueError: unequal lengths, a label that is no whole number or below 0 (-1 as a
                prediction), or numbers that are no probabilities.
        """
        given, gold = _checked(predictions, references)
        if len(gold):
            super().add_batch(predictions=given.tolist(), references=gold.tolist())

    def compute(
        self, *, predictions: Any = None, references: Any = None, num_bins: int = 10
    ) -> dict[str, Any] | None:
        """Score the examples given here and those added before.

        Raises:
            ValueError: as `add_batch`, no example, or no bin.
        """
        # Found before Evaluate closes its file, which an error in its `compute` would leave behind.
        if num_bins < 1:
            raise ValueError(f"num_bins ({num_bins}) must be at least 1")
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.num_process == 1 and len(self) == 0:
            raise ValueError("classification needs at least one example and got none")
        result: dict[str, Any] | None = super().compute(num_bins=num_bins)
        return result

    def _compute(
        self, *, predictions: list[Any], references: list[int], num_bins: int = 10
    ) -> dict[str, Any]:
        given, gold = np.asarray(predictions), np.asarray(references)
        return classification_figures(given, gold, num_bins)


def _checked(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [N] or [N, C] and references [N]."""
    if predictions is None or references is None:
        raise ValueError("give both predictions and references")
    given, gold = (np.asarray(column) for column in (predictions, references))
    if len(given) != len(gold):
        raise ValueError(
            f"there are {len(given)} predictions and {len(gold)} references; give one of each for "
            "every example"
        )
    if not len(gold):
        return given, gold
    if gold.ndim != 1 or not np.issubdtype(gold.dtype, np.integer) or gold.min() < 0:
        raise ValueError("references must be whole numbers from 0, one for each example")
    if given.ndim == 2 and np.issubdtype(given.dtype, np.number):
        given = given.astype(np.float64)
        # Sums of 16-bit probabilities miss 1 by less than this. A NaN fails every comparison.
        if not ((given >= 0).all() and (np.abs(given.sum(axis=1) - 1) < 0.01).all()):
            raise ValueError(
                "predictions with several numbers for each example must be probabilities, which "
                "lie between 0 and 1 and sum to 1; take the softmax of logits"
            )
    elif given.ndim != 1 or not np.issubdtype(given.dtype, np.integer) or given.min() < -1:
        raise ValueError(
            "predictions must be whole numbers, one for each example and -1 for no label, or "
            "probabilities, one for each label of each example"
        )
    return given, gold
