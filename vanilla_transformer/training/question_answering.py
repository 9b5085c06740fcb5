"""Question answering as a run learns it: spans of a context, or answers that are written.

Either way it is scored as SQuAD is: exact match and F1 in percent, over all gold answers.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import TokenBudgetBatchSampler
from ..evaluation.question_answering import (
    evaluate_question_answering,
    fit_no_answer_threshold,
)
from ..generation import PAPER_DECODING, DecodingSettings
from ..tasks.question_answering import (
    SpanPrediction,
    WindowSpans,
    encode_questions,
    generative_pairs,
    join_windows,
    question_answering_collator,
    search_windows,
    with_threshold,
)
from .settings import TrainingSettings
from .task import Task, Validation, example_lengths
from .translation import TextToTextTask, translate_texts
from .validation import validation_loss, whole_model

# What the loss leaves out.
_IGNORED = -100
# Of a batch of windows to predict.
_BATCH_TOKENS = 8192
# Of a context that is shown, on either side of the answer.
_SHOWN_CHARACTERS = 60


class QuestionAnsweringTask(Task):
    """Extractive question answering: the first and the last token of the answer.

    What the loss is averaged over are windows that teach: those that hold an answer whole and, with
    `has_no_answer`, also the others, which teach position 0.

    Args:
        tokenizer: Of the model.
        questions: To validate on, as `load_question_answering` gives them.
        has_no_answer: Whether the model can answer "none"; as in its configuration. While a model
            trains no threshold is fitted: a question is left unanswered where "none" scores higher
            than the best span.
        max_length, stride, max_question_length: Of the windows; see `encode_questions`.
        n_best: Spans of a window and of a question that are considered.
        max_answer_length: In tokens.

    Raises:
        ValueError: There is no question, or none with an answer to learn from; otherwise as
            `encode_questions`.
    """

    metrics = ("f1", "exact_match")
    item = "questions"
    columns = ("input_ids", "start_positions", "end_positions")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: Dataset,
        *,
        has_no_answer: bool = False,
        max_length: int = 384,
        stride: int = 128,
        max_question_length: int = 64,
        n_best: int = 20,
        max_answer_length: int = 30,
    ):
        self.tokenizer, self.questions, self.has_no_answer = tokenizer, questions, has_no_answer
        self.search = {"n_best": n_best, "max_answer_length": max_answer_length}
        self.windows, _ = encode_questions(
            questions,
            tokenizer,
            for_training=False,
            has_no_answer=has_no_answer,
            max_length=max_length,
            stride=stride,
            max_question_length=max_question_length,
        )
        if not len(_teaching(self.windows)):
            raise ValueError(
                f"none of the {len(questions)} validation questions has an answer that lies in a "
                "window whole; give other questions, a larger max_length or, for questions that "
                "have none, has_no_answer=True"
            )

    def prepare(self, model: PreTrainedModel) -> None:
        """Checks that the model can answer what the questions ask for.

        Raises:
            ValueError: `has_no_answer` of the task and of the model's configuration differ.
        """
        if model.config.has_no_answer != self.has_no_answer:
            raise ValueError(
                f"has_no_answer is {self.has_no_answer} in the task and "
                f"{model.config.has_no_answer} in the model's configuration; give both the same"
            )

    def count(self, batch: Sequence[dict[str, Any]]) -> int:
        """Windows with a label at both ends."""
        return sum(
            _IGNORED not in (window["start_positions"], window["end_positions"]) for window in batch
        )

    def idle(self, example: dict[str, Any]) -> dict[str, Any]:
        """The window with its label ignored."""
        return {**example, "start_positions": _IGNORED, "end_positions": _IGNORED}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """As `question_answering_collator`."""
        # Made here: a function that is kept would not go with the task to other processes.
        return question_answering_collator(self.tokenizer)(examples)

    def validate(
        self, accelerator: Accelerator, model: nn.Module, settings: TrainingSettings
    ) -> Validation:
        """Loss and scores on as many questions as the settings say."""
        count = min(len(self.questions), settings.validation_examples or len(self.questions))
        questions = self.questions.select(range(count))
        ids = set(questions["id"])
        windows = self.windows.select(
            [row for row, one in enumerate(self.windows["example_id"]) if one in ids]
        )
        teaching = _teaching(windows)
        with whole_model(accelerator, model) as inner:
            # There may be none among a few questions, though there are some among all.
            loss = (
                validation_loss(accelerator, inner, self, teaching) if len(teaching) else math.nan
            )
            found = _answer_windows(accelerator, inner, self.tokenizer, windows, **self.search)
        predictions = join_windows(
            questions,
            found,
            n_best=self.search["n_best"],
            no_answer_threshold=0.0 if self.has_no_answer else None,
        )
        scores = evaluate_question_answering(
            questions,
            {prediction.id: prediction.text for prediction in predictions},
            version="2.0" if self.has_no_answer else None,
            bootstrap_samples=0,
        )
        shown = range(min(count, settings.sample_predictions))
        samples = tuple(_sample(questions[row], predictions[row].text) for row in shown)
        return Validation({"loss": loss, **{name: scores[name] for name in self.metrics}}, samples)


class AnswerWritingTask(TextToTextTask):
    """Question answering by writing the answer, scored over all gold answers.

    Args:
        tokenizer: Of the model.
        questions: To validate on, as `load_question_answering` gives them.
        decoding: See `TextToTextTask`.
        with_context: False leaves out the context; see `generative_pairs`.
    """

    metrics = ("f1", "exact_match", "perplexity")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: Dataset,
        *,
        decoding: DecodingSettings = PAPER_DECODING,
        with_context: bool = True,
    ):
        pairs = generative_pairs(questions, with_context=with_context)
        super().__init__(tokenizer, pairs, decoding=decoding)
        self.questions = questions

    def score(self, predictions: list[str], validation: Dataset) -> dict[str, float]:
        """F1 and exact match."""
        scores = evaluate_question_answering(
            self.questions.select(range(len(predictions))),
            dict(zip(validation["id"], predictions, strict=True)),
            bootstrap_samples=0,
        )
        return {name: scores[name] for name in ("f1", "exact_match")}


def answer_questions(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Dataset,
    *,
    max_length: int = 384,
    stride: int = 128,
    max_question_length: int = 64,
    n_best: int = 20,
    max_answer_length: int = 30,
    no_answer_threshold: float | None = None,
) -> list[SpanPrediction]:
    """Answers `questions` with spans; every process computes a share and gets all answers.

    Args:
        model: As `whole_model` gives it, or one that was loaded.
        tokenizer: The model's own.
        questions: As `load_question_answering` gives them; their answers are not looked at.
        max_length, stride, max_question_length: Of the windows; see `encode_questions`.
        n_best, max_answer_length, no_answer_threshold: See `predict_spans`.

    Returns:
        A prediction for each question, in their order, the same on any number of processes.

    Raises:
        ValueError: As `encode_questions` and `predict_spans`.
    """
    windows, _ = encode_questions(
        questions,
        tokenizer,
        for_training=False,
        has_no_answer=model.config.has_no_answer,
        max_length=max_length,
        stride=stride,
        max_question_length=max_question_length,
    )
    found = _answer_windows(
        accelerator, model, tokenizer, windows, n_best=n_best, max_answer_length=max_answer_length
    )
    return join_windows(questions, found, n_best=n_best, no_answer_threshold=no_answer_threshold)


def fit_threshold(questions: Dataset, predictions: Sequence[SpanPrediction]) -> float:
    """The no-answer score above which a question had better be left unanswered, by F1.

    Args:
        questions: Validation data, as `load_question_answering` gives them.
        predictions: Of all of them, at whatever threshold.

    Raises:
        ValueError: The predictions have no no-answer score.
    """
    texts = {one.id: one.text for one in with_threshold(predictions, math.inf)}
    scores = {one.id: one.no_answer_score for one in predictions if one.no_answer_score is not None}
    return fit_no_answer_threshold(questions, texts, scores).threshold


def write_answers(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Dataset,
    decoding: DecodingSettings,
    *,
    with_context: bool = True,
    **limits: Any,
) -> dict[str, str]:
    """Writes an answer to each question; every process computes a share and gets all answers.

    Args:
        model: As `whole_model` gives it, or one that was loaded.
        questions: As `load_question_answering` gives them; their answers are not looked at.
        with_context: False leaves out the context; see `generative_pairs`.
        limits: `max_batch_tokens`, `max_source_tokens` and `window` of `translate`; a longer source
            is answered with "".

    Returns:
        Text by id of the question.
    """
    pairs = generative_pairs(questions, with_context=with_context)
    found = translate_texts(
        accelerator, model, tokenizer, list(pairs["source"]), decoding, **limits
    )
    texts = [hypotheses[0].text for hypotheses in found]
    return dict(zip(pairs["id"], texts, strict=True))


@torch.inference_mode()
def _answer_windows(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Dataset,
    *,
    n_best: int,
    max_answer_length: int,
) -> list[WindowSpans]:
    """What is found in all windows, on every process, of which each computes some batches.

    The batches are the same however many processes share them, and so is every bit of the result.
    """
    names = [name for name in tokenizer.model_input_names if name in windows.column_names]
    inputs = windows.select_columns(names)
    lengths = example_lengths(inputs)
    budget = max(_BATCH_TOKENS, int(lengths[0].max()))
    batches = TokenBudgetBatchSampler(
        *lengths, max_source_tokens=budget, max_target_tokens=budget, shuffle=False
    )
    collate = question_answering_collator(tokenizer)
    was_training = model.training
    model.eval()
    found: list[WindowSpans] = []
    for number, rows in enumerate(batches):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        batch = collate([inputs[row] for row in rows])
        with accelerator.autocast():
            output = model(**{name: part.to(model.device) for name, part in batch.items()})
        found += search_windows(
            windows.select(rows),
            output.start_logits.float(),
            output.end_logits.float(),
            n_best=n_best,
            max_answer_length=max_answer_length,
        )
    model.train(was_training)
    gathered: list[WindowSpans] = gather_object(found)
    return gathered


def _teaching(windows: Dataset) -> Dataset:
    """The windows that a loss is computed for."""
    return windows.select(np.flatnonzero(np.asarray(windows["start_positions"]) != _IGNORED))


def _sample(question: dict[str, Any], predicted: str) -> tuple[str, str, str]:
    """A question with the part of the context where its answer is, its answers and the model's."""
    context, answers = question["context"], question["answers"]
    places = [
        (start, start + len(text))
        for text, start in zip(answers["text"], answers["answer_start"], strict=True)
        if start >= 0
    ]
    start, end = places[0] if places else (0, _SHOWN_CHARACTERS)
    begin, stop = max(0, start - _SHOWN_CHARACTERS), end + _SHOWN_CHARACTERS
    shown = " ".join(context[begin:stop].split())
    before, after = "... " if begin else "", " ..." if stop < len(context) else ""
    expected = " / ".join(dict.fromkeys(answers["text"]))
    return f"{question['question']} | {before}{shown}{after}", expected, predicted
