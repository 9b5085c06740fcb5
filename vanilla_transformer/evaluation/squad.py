"""SQuAD's exact match and F1 as an Evaluate metric, 1.1 and 2.0 in one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import datasets
import evaluate

from .question_answering import evaluate_question_answering

_INPUTS = """
Args:
    predictions: {"id": str, "prediction_text": str} for each question; "" says that it has no
        answer.
    references: {"id": str, "answers": {"text": [str], "answer_start": [int]}} for each question,
        in the same order.
    version: "1.1" or "2.0"; by default 2.0 if any question has no answer.

Returns:
    A dictionary with `exact_match`, `f1`, `precision`, `recall` (percent) and `total`.
"""


class Squad(evaluate.Metric):
    """Exact match and F1 over words, best over the answers of each question, 0 to 100.

    Takes the predictions and references that Evaluate's own `squad` takes, without a network.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        answers = {
            "text": datasets.List(text),
            "answer_start": datasets.List(datasets.Value("int32")),
        }
        return evaluate.MetricInfo(
            description="SQuAD: how many answers are exactly right, and how many of their words.",
            citation="Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of "
            "Text, EMNLP 2016. Rajpurkar et al., Know What You Don't Know, ACL 2018.",
            inputs_description=_INPUTS,
            homepage="https://rajpurkar.github.io/SQuAD-explorer/",
            features=datasets.Features(
                {
                    "predictions": {"id": text, "prediction_text": text},
                    "references": {"id": text, "answers": answers},
                }
            ),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Keep one question for the next `compute()`; raises as `add_batch`."""
        # A combined metric hands on the same two under the names of the columns.
        question = {"predictions": prediction, "references": reference, **columns}
        self.add_batch(**{name: [value] for name, value in question.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Keep a batch of questions for the next `compute()`.

        Raises:
            ValueError: unequal lengths, an entry without its keys, or a prediction of one question
                beside the answers of another.
        """
        super().add_batch(**_checked(predictions, references))

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        version: str | None = None,
    ) -> dict[str, Any] | None:
        """Score the questions given here and those added before.

        Raises:
            ValueError: as `add_batch`, an unknown version, or no question.
        """
        # Found before Evaluate closes its file, which an error in its `compute` would leave behind.
        if version not in (None, "1.1", "2.0"):
            raise ValueError(f"version ({version!r}) must be '1.1' or '2.0'")
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.num_process == 1 and len(self) == 0:
            raise ValueError("squad needs at least one question and got none")
        result: dict[str, Any] | None = super().compute(version=version)
        return result

    def _compute(
        self, *, predictions: list[Any], references: list[Any], version: Any = None
    ) -> dict[str, Any]:
        texts = {one["id"]: one["prediction_text"] for one in predictions}
        result = evaluate_question_answering(
            references, texts, version=version, bootstrap_samples=0
        )
        return {key: result[key] for key in ("exact_match", "f1", "precision", "recall", "total")}


def _checked(predictions: Any, references: Any) -> dict[str, list[Any]]:
    """Bring questions into the metric's features, and check that they belong together."""
    for name, column in (("predictions", predictions), ("references", references)):
        if isinstance(column, str) or not isinstance(column, Collection):
            raise ValueError(f"{name} must be a list with one entry per question")
    if len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions and {len(references)} references; give one "
            "of each for every question"
        )
    kept: dict[str, list[Any]] = {"predictions": [], "references": []}
    for position, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        for name, entry, key in (
            ("prediction", prediction, "prediction_text"),
            ("reference", reference, "answers"),
        ):
            if not (isinstance(entry, Mapping) and "id" in entry and key in entry):
                raise ValueError(f"{name} {position} must have 'id' and {key!r}, not {entry!r}")
        if prediction["id"] != reference["id"]:
            raise ValueError(
                f"prediction {position} is for question {prediction['id']!r} and its reference for "
                f"{reference['id']!r}; give both in the same order"
            )
        if not isinstance(prediction["prediction_text"], str):
            raise ValueError(f"prediction {position} must be a string, not {prediction!r}")
        kept["predictions"].append({key: prediction[key] for key in ("id", "prediction_text")})
        kept["references"].append({key: reference[key] for key in ("id", "answers")})
    return kept
