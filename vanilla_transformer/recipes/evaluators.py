"""Evaluate's evaluators for translation, question answering and classification, made to work.

Evaluate 0.4.6 builds transformers' pipelines, of which transformers 5 has lost those for
translation and question answering, and asks for a TensorFlow class that is gone: not even a
classifier passes. These subclasses take the same arguments and give the same figures, with models
of this package in the place of pipelines:

    TranslationEvaluator().compute("runs/tiny-world", "tiny_world", split="test", metric="bleu")

They differ from Evaluate's in three things. Metrics are this package's, by name and without a
network, or any that is already loaded. Bootstrap intervals are of the percentile kind, need no
SciPy, and there are 1,000 resamples unless more are asked for. Columns are called what this
package's readers call them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import evaluate
import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value
from evaluate.evaluator import Evaluator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.inference_corpora import LABELS
from ..evaluation import METRICS, load_metric
from ..evaluation.classification_scores import classification_figures
from ..evaluation.question_answering import MEASURES, score_answer
from ..evaluation.significance import confidence_intervals
from ..generation import DecodingSettings
from ..training.loop import build_accelerator
from .models import class_kind, load_model
from .prediction import Task, default_recipe, read_data, recipe_kind, recipe_of

_TEXT = Value("string")


class _OurEvaluator:
    """What the evaluators have in common; it goes before Evaluate's class among the bases."""

    our_task: ClassVar[Task]
    evaluate_task: ClassVar[str]
    default_metric: ClassVar[str]

    def __init__(self) -> None:
        # Evaluate's own constructors refuse to work without SciPy, of which nothing is used here.
        self.task = self.evaluate_task
        self.default_metric_name = self.default_metric
        # Evaluate writes into this, and would into that of the class.
        self.PIPELINE_KWARGS: dict[str, Any] = {}

    def load_data(self, data: Any, subset: str | None = None, split: str | None = None) -> Dataset:
        """A data set as it is; else what this package's reader of the task makes of the name."""
        if isinstance(data, Dataset):
            return data
        return read_data(self.our_task, data, split, name=subset)[0]

    def prepare_metric(self, metric: Any) -> evaluate.EvaluationModule:
        """This package's metric of that name, or the metric given; others are loaded by path."""
        if metric is None:
            metric = self.default_metric_name
        if metric in METRICS:
            return load_metric(metric)
        return evaluate.load(metric) if isinstance(metric, str) else metric

    def prepare_pipeline(
        self,
        model_or_pipeline: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        feature_extractor: Any = None,
        device: int | str | None = None,
    ) -> Callable[..., Any]:
        """What computes predictions: a callable as it is, or a model by its recipe.

        Args:
            model_or_pipeline: A model directory, a run directory or a Hub id; a model; or a
                callable that takes and gives what transformers' pipeline of the task did.
            tokenizer: Needed with a model only.
            feature_extractor: Not used.
            device: As Evaluate numbers it, -1 for the CPU, or by name; for a model that is loaded.

        Raises:
            ValueError: A model without a tokenizer, or one of another task.
        """
        if isinstance(model_or_pipeline, str | Path):
            recipe, _ = recipe_of(model_or_pipeline, self.our_task)
            if isinstance(device, int):
                device = "cpu" if device < 0 else f"cuda:{device}"
            model, own = load_model(model_or_pipeline, device, kind=recipe_kind(recipe))
            return self.pipeline(recipe, model, tokenizer or own)
        if isinstance(model_or_pipeline, PreTrainedModel):
            kind = class_kind(type(model_or_pipeline).__name__)
            if tokenizer is None or kind not in ("text", self.our_task):
                raise ValueError(
                    f"{type(model_or_pipeline).__name__} must be a model for "
                    f"{self.our_task.replace('_', ' ')} and come with its tokenizer"
                )
            recipe = default_recipe(self.our_task, kind)
            if self.our_task == "translation":
                decoding = DecodingSettings.of_model(model_or_pipeline.generation_config)
                recipe = dataclasses.replace(cast(Any, recipe), decoding=decoding)
            return self.pipeline(recipe, model_or_pipeline.eval(), tokenizer)
        if not callable(model_or_pipeline):
            raise ValueError(
                f"model_or_pipeline ({model_or_pipeline!r}) must be the directory or id of a "
                "model, a model with its tokenizer, or a callable"
            )
        return cast(Callable[..., Any], model_or_pipeline)

    def pipeline(
        self, recipe: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[..., Any]:
        """What turns Evaluate's inputs into its outputs by a recipe's `predict`."""
        raise NotImplementedError

    def compute_metric(
        self,
        metric: evaluate.EvaluationModule,
        metric_inputs: dict[str, Any],
        strategy: Literal["simple", "bootstrap"] = "simple",
        confidence_level: float = 0.95,
        n_resamples: int = 1000,
        random_state: int | None = None,
    ) -> dict[str, Any]:
        """The metric's result; with "bootstrap" each figure that has an interval becomes a dict.

        Returns:
            As `metric.compute`; with "bootstrap" {figure: {"score", "confidence_interval" (low,
            high), "standard_error"}} for what could be resampled, the rest as it is. sacreBLEU's
            own intervals come with the "mean" of the resamples instead of the standard error.

        Raises:
            ValueError: An unknown strategy, or a level or number that cannot be.
        """
        if strategy not in ("simple", "bootstrap"):
            raise ValueError(f"strategy ({strategy!r}) must be 'simple' or 'bootstrap'")
        if not 0 < confidence_level < 1 or n_resamples < 1:
            raise ValueError(
                f"confidence_level ({confidence_level}) must lie between 0 and 1, n_resamples "
                f"({n_resamples}) must be at least 1"
            )
        result: dict[str, Any] = metric.compute(**metric_inputs)
        if strategy == "simple":
            return result
        intervals = self.intervals(
            metric, metric_inputs, confidence_level, n_resamples, random_state
        )
        return {
            key: {"score": value, **intervals[key]} if key in intervals else value
            for key, value in result.items()
        }

    def intervals(
        self,
        metric: evaluate.EvaluationModule,
        inputs: dict[str, Any],
        confidence_level: float,
        n_resamples: int,
        random_state: int | None,
    ) -> dict[str, dict[str, Any]]:
        """By figure, for any metric: it is computed anew for each resample."""
        columns = {name: list(column) for name, column in inputs.items()}

        def compute(rows: np.ndarray) -> Mapping[str, Any]:
            drawn = {name: [column[row] for row in rows] for name, column in columns.items()}
            found: dict[str, Any] = metric.compute(**drawn)
            return found

        return bootstrap(
            compute, len(columns["references"]), confidence_level, n_resamples, random_state
        )


def bootstrap(
    compute: Callable[[np.ndarray], Mapping[str, Any]],
    num_examples: int,
    confidence_level: float,
    n_resamples: int,
    random_state: int | None,
) -> dict[str, dict[str, Any]]:
    """Percentile intervals and standard errors of all figures that are floating-point numbers.

    Args:
        compute: Gives the figures of the examples of these numbers, some several times.
        num_examples: How many there are.
        confidence_level, n_resamples, random_state: As Evaluate has them.
    """
    generator = np.random.default_rng(random_state)
    samples: dict[str, list[float]] = {}
    for _ in range(n_resamples):
        rows = generator.integers(num_examples, size=num_examples)
        for key, value in compute(rows).items():
            if isinstance(value, float):
                samples.setdefault(key, []).append(value)
    tail = 50 * (1 - confidence_level)
    found = {}
    for key, values in samples.items():
        low, high = np.percentile(values, [tail, 100 - tail])
        found[key] = {
            "confidence_interval": (float(low), float(high)),
            "standard_error": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        }
    return found


class TranslationEvaluator(_OurEvaluator, evaluate.TranslationEvaluator):
    """Translations by any metric of text; BLEU unless another is named."""

    our_task = "translation"
    evaluate_task = "translation"
    default_metric = "bleu"

    def compute(self, model_or_pipeline: Any = None, data: Any = None, **options: Any) -> Any:
        """As Evaluate's, with columns `source` and `target`.

        Args:
            model_or_pipeline: As `prepare_pipeline` takes it.
            data: A data set, or a corpus as `load_parallel` takes it, English and German.
            **options: Evaluate's. `generation_kwargs` are fields of `DecodingSettings`.
        """
        usual = {"input_column": "source", "label_column": "target", "n_resamples": 1000}
        return super().compute(model_or_pipeline, data, **{**usual, **options})

    def pipeline(
        self, recipe: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[..., Any]:
        """Text to {"translation_text": text}."""

        def translate(sources: Iterable[str], **decoding: Any) -> list[dict[str, str]]:
            chosen = dataclasses.replace(
                recipe, decoding=dataclasses.replace(recipe.decoding, **decoding)
            )
            texts = list(sources)
            pairs = Dataset.from_dict({"source": texts, "target": texts})
            accelerator = build_accelerator(recipe.training)
            found = chosen.predict(model, tokenizer, pairs, accelerator)
            return [{"translation_text": text} for text in found.texts]

        return translate

    def intervals(
        self,
        metric: Any,
        inputs: dict[str, Any],
        confidence_level: float,
        n_resamples: int,
        random_state: int | None,
    ) -> dict[str, dict[str, Any]]:
        """By figure; the scores of sacreBLEU's metrics have sacreBLEU's intervals, of 95 %.

        Raises:
            ValueError: Another level or a seed for those: the seed is SACREBLEU_SEED.
        """
        if metric.name not in ("bleu", "chrf", "ter") or not hasattr(metric, "scorer"):
            return super().intervals(metric, inputs, confidence_level, n_resamples, random_state)
        if confidence_level != 0.95 or random_state is not None:
            raise ValueError(
                "sacreBLEU's intervals are of 95 % and take their seed from SACREBLEU_SEED; leave "
                "out confidence_level and random_state"
            )
        found = confidence_intervals(
            inputs["predictions"],
            inputs["references"],
            metrics={metric.name: metric.defaults},
            num_resamples=n_resamples,
        )[metric.name]
        return {"score": {"confidence_interval": tuple(found["interval"]), "mean": found["mean"]}}


class QuestionAnsweringEvaluator(_OurEvaluator, evaluate.QuestionAnsweringEvaluator):
    """Answers by exact match and F1."""

    our_task = "question_answering"
    evaluate_task = "question-answering"
    default_metric = "squad"

    def compute(self, model_or_pipeline: Any = None, data: Any = None, **options: Any) -> Any:
        """As Evaluate's. Whether a question may go unanswered is the model's own affair.

        Args:
            model_or_pipeline: As `prepare_pipeline` takes it.
            data: A data set, or a corpus as `load_question_answering` takes it.
            **options: Evaluate's; `squad_v2_format=True` only for a metric that wants
                `no_answer_probability`, which this package's does not.
        """
        usual = {"squad_v2_format": False, "n_resamples": 1000}
        return super().compute(model_or_pipeline, data, **{**usual, **options})

    def pipeline(
        self, recipe: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[..., Any]:
        """Questions and contexts to {"answer": text, "score": share}."""

        def answer(
            question: Iterable[str], context: Iterable[str], handle_impossible_answer: bool
        ) -> list[dict[str, Any]]:
            sides = list(zip(question, context, strict=True))
            features = {"id": _TEXT, "title": _TEXT, "context": _TEXT, "question": _TEXT}
            answers = {"text": List(_TEXT), "answer_start": List(Value("int32"))}
            questions = Dataset.from_dict(
                {
                    "id": [str(number) for number in range(len(sides))],
                    "title": [""] * len(sides),
                    "context": [one for _, one in sides],
                    "question": [one for one, _ in sides],
                    "answers": [{"text": [], "answer_start": []}] * len(sides),
                },
                features=Features({**features, "answers": answers}),
            )
            accelerator = build_accelerator(recipe.training)
            found = recipe.predict(model, tokenizer, questions, accelerator)
            shares = {
                one.id: one.n_best[0].probability if one.n_best else 0.0
                for one in found.spans or ()
            }
            return [
                # A written answer has no share.
                {"answer": found.texts[one], "score": shares.get(one, 1.0)}
                for one in questions["id"]
            ]

        return answer

    def intervals(
        self,
        metric: evaluate.EvaluationModule,
        inputs: dict[str, Any],
        confidence_level: float,
        n_resamples: int,
        random_state: int | None,
    ) -> dict[str, dict[str, Any]]:
        """Of exact match, F1, precision and recall, which are means over the questions."""
        answers = [reference["answers"]["text"] for reference in inputs["references"]]
        version: Literal["1.1", "2.0"] = "1.1" if all(answers) else "2.0"
        scores = 100 * np.array(
            [
                list(score_answer(prediction["prediction_text"], texts, version).values())
                for prediction, texts in zip(inputs["predictions"], answers, strict=True)
            ]
        )

        def compute(rows: np.ndarray) -> Mapping[str, float]:
            return dict(zip(MEASURES, scores[rows].mean(axis=0).tolist(), strict=True))

        return bootstrap(compute, len(answers), confidence_level, n_resamples, random_state)


class TextClassificationEvaluator(_OurEvaluator, evaluate.TextClassificationEvaluator):
    """Labels of pairs of sentences by accuracy, F1, Matthews' correlation and calibration."""

    our_task = "inference"
    evaluate_task = "text-classification"
    default_metric = "classification"

    def __init__(self) -> None:
        """Start with the labels of three-way inference."""
        super().__init__()
        self._label_names = LABELS
        self._takes_probabilities = False

    def compute(self, model_or_pipeline: Any = None, data: Any = None, **options: Any) -> Any:
        """As Evaluate's, with columns `premise`, `hypothesis` and `label`.

        Args:
            model_or_pipeline: As `prepare_pipeline` takes it.
            data: A data set, or a corpus as `load_inference` takes it.
            **options: Evaluate's. Labels are mapped by the names of the data set's, unless
                `label_mapping` says otherwise.
        """
        usual = {"input_column": "premise", "second_input_column": "hypothesis"}
        return super().compute(model_or_pipeline, data, **{**usual, "n_resamples": 1000, **options})

    def prepare_data(self, data: Dataset, *columns: Any, **named: Any) -> Any:
        """As Evaluate's; notes what the labels are called."""
        label = data.features.get(named.get("label_column", "label"))
        self._label_names = tuple(label.names) if isinstance(label, ClassLabel) else LABELS
        return super().prepare_data(data, *columns, **named)

    def prepare_metric(self, metric: Any) -> evaluate.EvaluationModule:
        """As the others'; notes whether it takes probabilities."""
        found = super().prepare_metric(metric)
        self._takes_probabilities = getattr(found, "takes_probabilities", False)
        return found

    def predictions_processor(
        self, predictions: Sequence[Mapping[str, Any]], label_mapping: Mapping[str, int] | None
    ) -> dict[str, Any]:
        """Numbers of labels, or probabilities where there are some and the metric takes them."""
        if label_mapping is None and self._takes_probabilities:
            rows = [one.get("probabilities") for one in predictions]
            if all(row is not None and len(row) == len(self._label_names) for row in rows):
                return {"predictions": rows}
        numbers = label_mapping or {name: i for i, name in enumerate(self._label_names)}
        return {"predictions": [numbers.get(one["label"], -1) for one in predictions]}

    def intervals(
        self,
        metric: evaluate.EvaluationModule,
        inputs: dict[str, Any],
        confidence_level: float,
        n_resamples: int,
        random_state: int | None,
    ) -> dict[str, dict[str, Any]]:
        """By figure; those of this package's metric without going through Evaluate each time."""
        if not self._takes_probabilities:
            return super().intervals(metric, inputs, confidence_level, n_resamples, random_state)
        given, gold = np.asarray(inputs["predictions"]), np.asarray(inputs["references"])

        def compute(rows: np.ndarray) -> Mapping[str, Any]:
            return classification_figures(given[rows], gold[rows])

        return bootstrap(compute, len(gold), confidence_level, n_resamples, random_state)

    def pipeline(
        self, recipe: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[..., Any]:
        """Pairs to {"label": name, "score": probability, "probabilities": of every label}."""
        names = self._label_names

        def classify(pairs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
            rows = [
                {"id": str(i), "premise": one["text"], "hypothesis": one["text_pair"], "label": -1}
                for i, one in enumerate(pairs)
            ]
            features = {"id": _TEXT, "premise": _TEXT, "hypothesis": _TEXT}
            examples = Dataset.from_list(
                rows, features=Features({**features, "label": ClassLabel(names=list(names))})
            )
            accelerator = build_accelerator(recipe.training)
            found = recipe.predict(model, tokenizer, examples, accelerator)
            shares = found.probabilities
            return [
                {
                    "label": found.names[label] if label >= 0 else "",
                    "score": None if shares is None else float(shares[row].max()),
                    "probabilities": None if shares is None else shares[row].tolist(),
                }
                for row, label in enumerate(found.labels.tolist())
            ]

        return classify


EVALUATORS: dict[Task, type[Evaluator]] = {
    "translation": TranslationEvaluator,
    "question_answering": QuestionAnsweringEvaluator,
    "inference": TextClassificationEvaluator,
}
