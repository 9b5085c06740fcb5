"""COMET (Rei et al. 2020) as an Evaluate metric: a trained judge of translations.

The package `unbabel-comet` computes it. As of its release 2.2.7 it asks for transformers below 5
and numpy below 2, so that it wants an environment of its own, where `evaluate.load` takes this file
by its path. Tested here against a stand-in for that package only, for want of its models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import evaluate

from .sacrebleu_metric import check_segments

_INPUTS = """
Args:
    sources: the text translated, one string per segment.
    predictions: one string per segment.
    references: one string per segment.
    model: a checkpoint file of COMET, or the id of one on the Hub, which COMET downloads.
    batch_size, gpus: of COMET's `predict`.

Returns:
    A dictionary with `score`, the mean over the segments (times 100), `scores`, one per segment as
    the model gives them, and a `signature` with model and version.
"""
DEFAULT_MODEL = "Unbabel/wmt22-comet-da"


class Comet(evaluate.Metric):
    """Mean judgement of a COMET model over the segments, times 100."""

    # The model that was used last, and its name: it takes seconds to load.
    _judge: tuple[str, Any] | None = None

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        columns = ("sources", "predictions", "references")
        return evaluate.MetricInfo(
            description="COMET: how good a trained model finds a translation, given source and "
            "reference.",
            citation="Rei et al., COMET: A Neural Framework for MT Evaluation, EMNLP 2020. "
            "Rei et al., COMET-22, WMT 2022.",
            inputs_description=_INPUTS,
            homepage="https://unbabel.github.io/COMET/html/index.html",
            features=datasets.Features(dict.fromkeys(columns, text)),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Keep one segment, its source as `sources`, for the next `compute()`."""
        # A combined metric hands on prediction and reference under the names of the columns.
        segment = {"predictions": prediction, "references": reference, **columns}
        self.add_batch(**{name: [value] for name, value in segment.items()})

    def add_batch(
        self, *, predictions: Any = None, references: Any = None, sources: Any = None
    ) -> None:
        """Keep a batch of segments for the next `compute()`.

        Raises:
            ValueError: unequal lengths, a segment that is not text, or no sources.
        """
        if sources is None:
            raise ValueError("COMET reads the source too: give sources beside predictions")
        _, checked = check_segments(predictions, references)
        if any(len(alternatives) > 1 for alternatives in checked):
            raise ValueError("COMET takes one reference per segment")
        check_segments(sources, references)
        if len(sources):
            super().add_batch(
                sources=list(sources),
                predictions=list(predictions),
                references=[alternatives[0] for alternatives in checked],
            )

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        sources: Any = None,
        model: str = DEFAULT_MODEL,
        batch_size: int = 8,
        gpus: int = 0,
    ) -> dict[str, Any] | None:
        """Score the segments given here and those added before.

        Raises:
            ValueError: as `add_batch`, no segment, COMET is not installed, or a file that is not
                there.
        """
        # Found before Evaluate closes its file, which an error in its `compute` would leave behind.
        if self._judge is None or self._judge[0] != model:
            self._judge = (model, load_judge(model))
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, sources=sources)
        if self.num_process == 1 and len(self) == 0:
            raise ValueError("COMET needs at least one segment and got none")
        result: dict[str, Any] | None = super().compute(
            judge=self._judge[1], model=model, batch_size=batch_size, gpus=gpus
        )
        return result

    def _compute(
        self,
        *,
        predictions: Any,
        references: Any,
        sources: Any,
        judge: Any,
        model: str,
        **limits: Any,
    ) -> dict[str, Any]:
        from importlib.metadata import version

        segments = [
            {"src": source, "mt": prediction, "ref": reference}
            for source, prediction, reference in zip(sources, predictions, references, strict=True)
        ]
        found = judge.predict(segments, **limits)
        return {
            "score": 100 * float(found.system_score),
            "signature": f"model:{Path(model).name}|unbabel-comet:{version('unbabel-comet')}",
            "scores": [float(score) for score in found.scores],
        }


def load_judge(model: str) -> Any:
    """A COMET model.

    Raises:
        ValueError: COMET is not installed, or a file that is not there.
    """
    try:
        from comet import download_model, load_from_checkpoint
    except ImportError as error:
        raise ValueError(
            "COMET needs its package, pip install unbabel-comet, in an environment whose "
            f"transformers it takes ({error})"
        ) from error
    if model.endswith(".ckpt"):
        if not Path(model).exists():
            raise ValueError(f"model ({model}) is not there; give a checkpoint of COMET or its id")
        return load_from_checkpoint(model)
    return load_from_checkpoint(download_model(model))
