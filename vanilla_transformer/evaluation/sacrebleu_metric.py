"""What BLEU, chrF and TER have in common: an Evaluate metric whose scores sacreBLEU computes.

`evaluate.load` copies a metric's script and the files it imports relatively to a cache of modules
and runs them there. This file is one of those copied, so it imports nothing of this package: the
metrics load, without a network, even where only `evaluate` and `sacrebleu` are installed.
"""

from __future__ import annotations

import abc
import difflib
import inspect
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate

INPUTS_DESCRIPTION = """
Args:
    predictions: one string per segment.
    references: per segment one string, or a list of one or more strings.
    **options: the options of the metric, which are sacreBLEU's for its metrics.

Returns:
    A dictionary with `score` (0 to 100), the `signature` and the parts of the score.
"""


class SacreBleuMetric(evaluate.Metric, abc.ABC):
    """Evaluate's interface (`compute`, `add`, `add_batch`, `combine`) over one sacreBLEU metric.

    Options given when the metric is loaded are defaults for every `compute`; those given to
    `compute` come on top.

    Raises:
        ValueError: an option that the sacreBLEU metric does not have.
    """

    # Being abstract keeps this class from being taken for the metric itself: `evaluate.load`
    # picks the first concrete metric class that it finds in the script's namespace.

    # A sacreBLEU metric, or a class with the same `corpus_score` and `get_signature`.
    scorer: ClassVar[type[Any]]
    choices: ClassVar[Mapping[str, Collection[str]]] = {}
    description_text: ClassVar[str]
    citation_text: ClassVar[str]
    homepage: ClassVar[str] = "https://github.com/mjpost/sacrebleu"

    def __init__(self, **kwargs: Any) -> None:
        """Take Evaluate's own keywords (`num_process`, `cache_dir`, ...) and default options."""
        # Evaluate swallows keywords that it does not know, and with them misspelt options.
        known = inspect.signature(evaluate.Metric.__init__).parameters
        self.defaults = {key: value for key, value in kwargs.items() if key not in known}
        self._check_options(self.defaults)
        super().__init__(**{key: value for key, value in kwargs.items() if key in known})

    @abc.abstractmethod
    def parts(self, score: Any) -> dict[str, Any]:
        """The numbers that `score`, sacreBLEU's score object, was computed from."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.description_text,
            citation=self.citation_text,
            inputs_description=INPUTS_DESCRIPTION,
            homepage=self.homepage,
            features=datasets.Features({"predictions": text, "references": [text]}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Keep one segment for the next `compute()`.

        Raises:
            ValueError: the segment is not text.
        """
        # A combined metric hands on the same two under the names of the columns.
        segment = {"predictions": prediction, "references": reference, **columns}
        self.add_batch(**{name: [value] for name, value in segment.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Keep a batch of segments for the next `compute()`; an empty batch is allowed.

        Raises:
            ValueError: unequal lengths, or a segment that is not text.
        """
        predictions, references = check_segments(predictions, references)
        if predictions:
            super().add_batch(predictions=predictions, references=references)

    def compute(
        self, *, predictions: Any = None, references: Any = None, **options: Any
    ) -> dict[str, Any] | None:
        """Score the segments given here and those added before.

        Raises:
            ValueError: no segments, unequal lengths, a segment that is not text, or an option that
                the sacreBLEU metric does not have.
        """
        # All that can be wrong is found before Evaluate closes its file of segments: an
        # error in the midst of its `compute` would leave that file and its lock behind.
        self._check_options(options)
        self._scorer = self.scorer(**{**self.defaults, **options})
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.num_process == 1 and len(self) == 0:
            raise ValueError(
                f"{self.name} needs at least one segment and got none; give predictions and "
                "references to compute(), or call add() or add_batch() before it"
            )
        result: dict[str, Any] | None = super().compute()
        return result

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        score = self._scorer.corpus_score(list(predictions), reference_streams(references))
        signature = str(self._scorer.get_signature())
        return {"score": float(score.score), "signature": signature, **self.parts(score)}

    def _check_options(self, options: Mapping[str, Any]) -> None:
        parameters = inspect.signature(self.scorer).parameters
        known = [key for key in parameters if key != "references"]
        for key, value in options.items():
            name = type(self).__name__
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known)}"
                raise ValueError(f"{name} has no option {key!r}; {hint}")
            allowed = self.choices.get(key)
            if allowed is not None and value is not None and value not in allowed:
                raise ValueError(
                    f"{key} ({value!r}) must be one of {', '.join(allowed)} for {name}"
                )


def check_segments(predictions: Any, references: Any) -> tuple[list[str], list[list[str]]]:
    """Bring segments to one shape: predictions as strings, references as lists of strings.

    Args:
        predictions: one string per segment.
        references: per segment one string, or a list of one or more strings.

    Raises:
        ValueError: unequal lengths, or a segment that is not text.
    """
    for name, column in (("predictions", predictions), ("references", references)):
        if isinstance(column, str) or not isinstance(column, Collection):
            raise ValueError(
                f"{name} must be a list with one entry per segment, not {_shown(column)}; "
                "a single segment goes in a list of one"
            )
    if len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions and {len(references)} references; they are "
            "compared segment by segment, so give as many of one as of the other"
        )
    checked_references: list[list[str]] = []
    for position, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise ValueError(f"prediction {position} must be a string, not {_shown(prediction)}")
        alternatives = [reference] if isinstance(reference, str) else reference
        if (
            not isinstance(alternatives, Sequence)
            or not alternatives
            or not all(isinstance(alternative, str) for alternative in alternatives)
        ):
            raise ValueError(
                f"reference {position} must be a string or a list of one or more strings, "
                f"not {_shown(reference)}"
            )
        checked_references.append(list(alternatives))
    return list(predictions), checked_references


def reference_streams(references: Sequence[Sequence[str]]) -> list[Any]:
    """Lists per segment as sacreBLEU wants them: a stream of segments for each reference.

    None stands where a segment has fewer than others, which sacreBLEU's annotations do not know.
    """
    return [list(stream) for stream in itertools.zip_longest(*references)]


def _shown(value: object) -> str:
    """`value` for an error message, cut to a length that can be read."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
