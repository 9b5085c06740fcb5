"""Tiny runs of question answering, inference and pretraining, for the tests of these tasks.

It is also the program that they start under torchrun:

    torchrun --nproc-per-node 2 tiny_tasks.py FOLDER [--again] KIND...

trains each kind in `FOLDER/KIND` and writes what the trained model predicts to
`FOLDER/KIND/predictions-RANK.json`; with `--again` it only predicts.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator, PartialState
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tests.training.tiny_run import read_log
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.data.inference_corpora import LABELS
from vanilla_transformer.data.tiny_world import generate_inference, generate_question_answering
from vanilla_transformer.generation import DecodingSettings
from vanilla_transformer.tasks.natural_language_inference import (
    encode_inference,
    inference_as_text,
)
from vanilla_transformer.tasks.question_answering import encode_questions, generative_pairs
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.inference import (
    InferenceTask,
    LabelWritingTask,
    classify_pairs,
    write_labels,
)
from vanilla_transformer.training.loop import TrainingResult, train
from vanilla_transformer.training.pretraining import MaskedLanguageModelingTask, encode_blocks
from vanilla_transformer.training.question_answering import (
    AnswerWritingTask,
    QuestionAnsweringTask,
    answer_questions,
    write_answers,
)
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.task import Task

REPOSITORY = Path(__file__).resolve().parents[2]

SETTINGS = TrainingSettings(
    updates=8,
    warmup=4,
    learning_rate_factor=0.5,
    max_source_tokens=400,
    max_target_tokens=400,
    max_gradient_norm=1.0,
    validate_every=3,
    validation_examples=9,
    checkpoint_every=2,
    average_last=2,
    log_every=1,
    trackers=(),
)
DECODING = DecodingSettings(num_beams=2, max_tokens_over_source=2)
# Windows so short that each context of three or four sentences makes several.
WINDOWS = {"max_length": 48, "stride": 12, "max_question_length": 20}
_SQUAD = Features(
    {
        **{name: Value("string") for name in ("id", "title", "context", "question")},
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)
_PAIRS = Features(
    {
        **{name: Value("string") for name in ("premise", "hypothesis", "phenomenon")},
        "label": ClassLabel(names=list(LABELS)),
    }
)


@dataclass(frozen=True)
class Case:
    """All that `train` needs, and what to predict with the trained model.

    Attributes:
        task: To learn.
        examples: Encoded for training.
        model: Makes one with the same weights whenever it is called, given a dropout.
        predict: What the model says about some data, as JSON values.
    """

    task: Task
    examples: Dataset
    model: Callable[..., PreTrainedModel]
    predict: Callable[[Accelerator, PreTrainedModel], Any]

    def train(
        self,
        run_dir: Path,
        driver: Callable[..., TrainingResult] = train,
        *,
        model: PreTrainedModel | None = None,
        dropout: float = 0.1,
        resume: bool = False,
        **settings: Any,
    ) -> TrainingResult:
        """A run with what differs from `SETTINGS`."""
        model = self.model(dropout) if model is None else model
        changed = dataclasses.replace(SETTINGS, **settings)
        return driver(model, tokenizer(), self.task, self.examples, run_dir, changed, resume=resume)


@functools.cache
def questions(split: str = "train", count: int = 60) -> Dataset:
    """Of the tiny world."""
    return Dataset.from_list(list(generate_question_answering(split, count)), features=_SQUAD)


@functools.cache
def pairs(split: str = "train", count: int = 120) -> Dataset:
    """Of the tiny world."""
    return Dataset.from_list(list(generate_inference(split, count)), features=_PAIRS)


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    """Of 400 tokens."""
    columns = (questions()["context"], questions()["question"], pairs()["premise"])
    return train_tokenizer((text for column in columns for text in column), 400)


def config(dropout: float = 0.0, **options: Any) -> VanillaTransformerConfig:
    """A tiny one."""
    return VanillaTransformerConfig(
        vocab_size=len(tokenizer()),
        d_model=16,
        d_ff=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_segments=2,
        dropout=dropout,
        **options,
    )


def maker(head: Any, **options: Any) -> Callable[..., PreTrainedModel]:
    """What makes models with the same weights."""

    def make(dropout: float = 0.0) -> PreTrainedModel:
        set_seed(7)
        return head(config(dropout, **options))

    return make


def unanswerable(several: Dataset, every: int = 3) -> Dataset:
    """Every third question has its answer taken away."""
    rows = [
        {**row, "answers": {"text": [], "answer_start": []}} if number % every == 0 else row
        for number, row in enumerate(several)
    ]
    return Dataset.from_list(rows, features=several.features)


def spans(*, has_no_answer: bool = False) -> Case:
    """Extractive question answering, with every third question unanswerable if `has_no_answer`."""
    given, validation = questions(), questions("validation", 14)
    if has_no_answer:
        given, validation = unanswerable(given), unanswerable(validation)
    examples, _ = encode_questions(
        given, tokenizer(), for_training=True, has_no_answer=has_no_answer, **WINDOWS
    )

    def predict(accelerator: Accelerator, model: PreTrainedModel) -> Any:
        found = answer_questions(accelerator, model, tokenizer(), validation, **WINDOWS)
        return [dataclasses.asdict(one) for one in found]

    return Case(
        QuestionAnsweringTask(tokenizer(), validation, has_no_answer=has_no_answer, **WINDOWS),
        examples,
        maker(VanillaTransformerForQuestionAnswering, has_no_answer=has_no_answer),
        predict,
    )


def answers() -> Case:
    """Question answering by writing."""
    validation = questions("validation", 14)
    examples, _ = encode_pairs(generative_pairs(questions()), tokenizer())

    def predict(accelerator: Accelerator, model: PreTrainedModel) -> Any:
        return write_answers(accelerator, model, tokenizer(), validation, DECODING)

    return Case(
        AnswerWritingTask(tokenizer(), validation, decoding=DECODING),
        examples,
        maker(VanillaTransformerForConditionalGeneration),
        predict,
    )


def classes() -> Case:
    """Inference with a classifier, whose labels are in an order of their own."""
    names = {"id2label": dict(enumerate(reversed(LABELS)))}
    validation = pairs("validation", 14)
    examples, _ = encode_inference(pairs(), tokenizer(), config(**names), for_training=True)

    def predict(accelerator: Accelerator, model: PreTrainedModel) -> Any:
        return classify_pairs(accelerator, model, tokenizer(), validation).tolist()

    return Case(
        InferenceTask(tokenizer(), config(**names), validation),
        examples,
        maker(VanillaTransformerForSequenceClassification, **names),
        predict,
    )


def labels() -> Case:
    """Inference by writing."""
    validation = pairs("validation", 14)
    examples, _ = encode_pairs(inference_as_text(pairs()), tokenizer())

    def predict(accelerator: Accelerator, model: PreTrainedModel) -> Any:
        return write_labels(accelerator, model, tokenizer(), validation, DECODING).tolist()

    return Case(
        LabelWritingTask(tokenizer(), validation, decoding=DECODING),
        examples,
        maker(VanillaTransformerForConditionalGeneration),
        predict,
    )


def masks() -> Case:
    """Masked language modelling on contexts."""
    texts = [
        Dataset.from_dict({"text": questions(*of)["context"]})
        for of in (("train", 60), ("validation", 14))
    ]
    examples, validation = (encode_blocks(text, tokenizer(), max_length=32) for text in texts)
    return Case(
        MaskedLanguageModelingTask(tokenizer(), validation),
        examples,
        maker(VanillaTransformerForMaskedLM),
        lambda accelerator, model: None,
    )


CASES: dict[str, Callable[[], Case]] = {
    "spans": spans,
    "spans-or-none": lambda: spans(has_no_answer=True),
    "answers": answers,
    "classes": classes,
    "labels": labels,
    "masks": masks,
}


class ToldToFailError(Exception):
    """What a test asked for."""


def break_at(model: PreTrainedModel, number: int) -> None:
    """Lets the forward pass of that number, counted from 1, fail in training."""
    passes = iter(range(1, number + 1))

    def fail(module: torch.nn.Module, inputs: Any) -> None:
        if module.training and next(passes) == number:
            raise ToldToFailError

    model.register_forward_pre_hook(fail)


def forget(model: PreTrainedModel) -> PreTrainedModel:
    """The model with other weights: what was saved must come back from a checkpoint."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    torch.manual_seed(99)
    return model


def launch(folder: Path, *kinds: str, processes: int = 2) -> None:
    """Runs this program on some processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), __file__, str(folder), *kinds]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-5000:]


def run_and_predict(folder: Path, kind: str) -> None:
    """Trains without dropout, of which each process draws its own, and predicts."""
    case = CASES[kind]()
    model = case.model()
    case.train(folder / kind, model=model)
    predictions = case.predict(Accelerator(), model)
    path = folder / kind / f"predictions-{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps(predictions), "utf-8")


def predict_again(folder: Path, kind: str) -> None:
    """Predicts with the model that a run has left."""
    case = CASES[kind]()
    model = type(case.model()).from_pretrained(folder / kind / "model")
    path = folder / kind / "predictions-again.json"
    path.write_text(json.dumps(case.predict(Accelerator(), model)), "utf-8")


def compare_processes(folder: Path, *kinds: str) -> None:
    """Asserts that two processes and one log the same and, of one model, predict the same."""
    launch(folder / "two", *kinds)
    launch(folder / "one", *kinds, processes=1)
    launch(folder / "two", "--again", *kinds, processes=1)
    for kind in kinds:
        two, one = (read_log(folder / name / kind) for name in ("two", "one"))
        assert len(two) == len(one)
        for row, expected in zip(two, one, strict=True):
            assert row.keys() == expected.keys()
            for name, value in expected.items():
                if isinstance(value, float):
                    # Sums are added up in another order.
                    value = pytest.approx(value, rel=2e-4)
                # What each pads is its own.
                assert name == "padding_share" or row[name] == value, (name, row, expected)
        names = ("0", "1", "again")
        paths = [folder / "two" / kind / f"predictions-{name}.json" for name in names]
        texts = {path.read_text("utf-8") for path in paths}
        assert len(texts) == 1, kind


def main(folder: Path, kinds: list[str]) -> None:
    """Trains and predicts."""
    datasets.disable_progress_bars()
    work = predict_again if kinds[0] == "--again" else run_and_predict
    for kind in kinds:
        if kind in CASES:
            work(folder, kind)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
