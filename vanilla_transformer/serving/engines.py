"""What a server can do with the models it was given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextClassificationPipeline

from ..export.opening import is_export, open_export
from ..export.translator import ExportedTranslator
from ..generation import DecodingSettings, Hypothesis, translate
from ..generation.weights import Precision
from ..inspection.attention import MAX_TOKENS, examples_page, explain
from ..pipeline_vanilla_transformer import QuestionAnsweringPipeline
from ..recipes import load_model
from ..recipes.models import locate_model, model_kind
from ..recipes.prediction import recipe_of
from ..recipes.question_answering import QuestionAnsweringRecipe

# A task of the server, and what it is done with.
Run = Callable[[Any, list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Engine:
    """One thing that a server does.

    Attributes:
        name: Of the model, for people.
        run: From settings and a batch of values to a result for each; called by one thread only.
        count: Tokens of a value; called by another thread, so it has a tokenizer of its own.
        max_tokens: That the model has positions for; None without bound.
        has_windows: Whether a long value is read in windows.
        decoding: How a translator searches unless asked otherwise.
        max_hypotheses: Translations that it can give of one text.
    """

    name: str
    run: Run
    count: Callable[[Any], int]
    max_tokens: int | None = None
    has_windows: bool = False
    decoding: DecodingSettings | None = None
    max_hypotheses: int = 1


Engines = dict[str, Engine]
"""By task: `translation`, `attention`, `question_answering`, `inference`."""


def load_engines(
    models: Sequence[str | Path], *, device: str | None = None, precision: Precision = "model"
) -> Engines:
    """Loads models of different tasks.

    Args:
        models: Model directories, run directories or Hub ids; of a translator also a directory that
            an export has written (CTranslate2, ONNX), which then translates in place of the model,
            while a model given too draws its attention.
        device: Where to; by default a GPU where there is one.
        precision: Of a translator's linear layers; see `translate`.

    Raises:
        ValueError: A model cannot be loaded, or two are for the same task.
    """
    engines: Engines = {}

    def add(task: str, engine: Engine) -> None:
        if task in engines:
            raise ValueError(
                f"{engines[task].name} and {engine.name} are both for {task.replace('_', ' ')}; "
                "give one model for each task"
            )
        engines[task] = engine

    exported = [model for model in models if is_export(model)]
    for path in exported:
        add("translation", _exported_translation(_shown(path), open_export(path)))
    for path in models:
        if path in exported:
            continue
        name = _shown(path)
        kind = model_kind(locate_model(path))
        model, tokenizer = load_model(path, device, kind=kind)
        if kind == "question_answering":
            add(kind, _question_answering(name, path, model, tokenizer))
        elif kind == "inference":
            add(kind, _inference(name, model, tokenizer))
        else:
            if not exported:
                add("translation", _translation(name, model, tokenizer, precision))
            add("attention", _attention(name, model, tokenizer))
    return engines


def _shown(model: str | Path) -> str:
    """A Hub id, or of a directory its last part: clients need not know where it lies."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else str(model)


def _translation(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
) -> Engine:
    def run(decoding: DecodingSettings, texts: list[str]) -> list[list[Hypothesis]]:
        # The queue has made the batch; here it stays whole.
        longest = max(counter(text) for text in texts)
        return list(
            translate(
                model,
                tokenizer,
                texts,
                decoding,
                max_batch_tokens=longest * len(texts),
                max_source_tokens=longest,
                precision=precision,
            )
        )

    counter = _counter(tokenizer)
    return Engine(
        name,
        run,
        _counter(tokenizer),
        _positions(model),
        decoding=DecodingSettings.of_model(model.generation_config),
        max_hypotheses=16,
    )


def _exported_translation(name: str, translator: ExportedTranslator) -> Engine:
    def run(decoding: DecodingSettings, texts: list[str]) -> list[list[Hypothesis]]:
        return [[Hypothesis(text, None)] for text in translator.translate(texts, decoding)]

    return Engine(
        name,
        run,
        _counter(translator.tokenizer),
        translator.max_source_tokens,
        decoding=translator.decoding,
    )


def _attention(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Engine:
    def run(num_beams: int | None, texts: list[str]) -> list[str]:
        return [
            examples_page([explain(model, tokenizer, text, num_beams=num_beams)]) for text in texts
        ]

    return Engine(name, run, _counter(tokenizer), MAX_TOKENS)


def _question_answering(
    name: str, path: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Engine:
    pipeline = QuestionAnsweringPipeline(model=model, tokenizer=tokenizer)
    recipe, _ = recipe_of(path)
    assert isinstance(recipe, QuestionAnsweringRecipe)
    options = {
        "max_seq_len": recipe.max_length,
        "doc_stride": recipe.stride,
        "max_question_len": recipe.max_question_length,
        "max_answer_len": recipe.max_answer_length,
    }

    def run(top_k: int, questions: list[dict[str, str]]) -> list[list[dict[str, Any]]]:
        found = [pipeline(question, top_k=top_k, **options) for question in questions]
        return [one if isinstance(one, list) else [one] for one in found]

    counter = _counter(tokenizer)
    return Engine(
        name,
        run,
        lambda value: counter(value["question"]) + counter(value["context"]),
        has_windows=True,
    )


def _inference(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Engine:
    pipeline = TextClassificationPipeline(model=model, tokenizer=tokenizer, top_k=None)

    def run(_: None, pairs: list[dict[str, str]]) -> list[list[dict[str, Any]]]:
        inputs = [{"text": pair["premise"], "text_pair": pair["hypothesis"]} for pair in pairs]
        return list(pipeline(inputs, batch_size=len(inputs)))

    counter = _counter(tokenizer)
    return Engine(
        name,
        run,
        lambda value: counter(value["premise"]) + counter(value["hypothesis"]),
        _positions(model),
    )


def _counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int]:
    """Counts tokens with a tokenizer of its own: no other thread may use the same one."""
    own = copy.deepcopy(tokenizer)
    return lambda text: len(own(text.strip(), verbose=False)["input_ids"])


def _positions(model: PreTrainedModel) -> int | None:
    """Where positions were learned there are no more of them."""
    config = model.config
    return config.max_position_embeddings if config.position_encoding == "learned" else None


def decoding_for(
    engine: Engine, num_beams: int | None, num_hypotheses: int, length_penalty: float | None
) -> DecodingSettings:
    """The search of a request: the model's own but for what was asked.

    Raises:
        ValueError: Not to be had.
    """
    assert engine.decoding is not None
    if num_hypotheses > engine.max_hypotheses:
        raise ValueError(
            f"num_hypotheses ({num_hypotheses}) must not exceed {engine.max_hypotheses} for this "
            "model"
        )
    asked: dict[str, Any] = {"num_beams": num_beams, "length_penalty": length_penalty}
    return dataclasses.replace(
        engine.decoding,
        num_hypotheses=num_hypotheses,
        **{key: value for key, value in asked.items() if value is not None},
    )
