"""Question answering recipes, and what such a run consists of."""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..atomic_file import atomic_file
from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..data.corpora import hold_out, is_hub_id
from ..data.question_answering_corpora import cloze_questions, load_question_answering
from ..evaluation.question_answering import evaluate_question_answering, format_report
from ..generation import PAPER_DECODING, DecodingSettings
from ..modeling_vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForQuestionAnswering,
)
from ..tasks.question_answering import (
    SpanPrediction,
    encode_questions,
    generative_pairs,
    with_threshold,
    write_n_best,
    write_no_answer_probabilities,
)
from ..tasks.translation import encode_pairs
from ..training.estimation import CorpusSize, estimate_tokens, measure_pairs
from ..training.question_answering import (
    AnswerWritingTask,
    QuestionAnsweringTask,
    answer_questions,
    fit_threshold,
    write_answers,
)
from ..training.settings import TrainingSettings
from ..training.task import Task
from .recipe import Recipe, Texts


@dataclass(frozen=True)
class Answers:
    """Answers to the questions of a corpus, in its order.

    Attributes:
        questions: What was asked.
        texts: By id; "" for no answer.
        spans: Where the answers stand in their contexts; None for answers that were written.
        settings: How they were found.
        seconds: What it took.
    """

    questions: Dataset
    texts: dict[str, str]
    spans: list[SpanPrediction] | None
    settings: dict[str, Any]
    seconds: float

    def score(self) -> dict[str, Any]:
        """As `evaluate_question_answering`, with the settings and the seconds."""
        scores = evaluate_question_answering(self.questions, self.texts)
        return {**scores, "seconds": self.seconds, "settings": self.settings}

    def write(self, path: Path) -> None:
        """{id: text}, which both official SQuAD scripts take."""
        with atomic_file(path) as file:
            file.write_text(json.dumps(self.texts, ensure_ascii=False) + "\n", "utf-8")

    def as_spans(self) -> list[SpanPrediction]:
        """The spans; answers that were written stand nowhere and have no probability."""
        if self.spans is not None:
            return self.spans
        return [SpanPrediction(one, text, (), None) for one, text in self.texts.items()]

    def write_n_best(self, path: Path) -> None:
        """As `write_n_best` of `tasks.question_answering`."""
        assert self.spans is not None
        write_n_best(self.spans, path)

    def write_no_answer_probabilities(self, path: Path) -> None:
        """As `write_no_answer_probabilities` of `tasks.question_answering`."""
        assert self.spans is not None
        write_no_answer_probabilities(self.spans, path)

    def fit_threshold(self) -> float:
        """The no-answer score above which these questions had better be left unanswered.

        Raises:
            ValueError: The answers have no such score.
        """
        return fit_threshold(self.questions, self.spans or [])

    def at_threshold(self, threshold: float) -> "Answers":
        """The same, with "" where the no-answer score is above `threshold`."""
        spans = with_threshold(self.spans or [], threshold)
        return dataclasses.replace(
            self,
            spans=spans,
            texts={one.id: one.text for one in spans},
            settings={**self.settings, "no_answer_threshold": threshold},
        )


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringRecipe(Recipe):
    """A complete question answering run.

    Texts held out are contexts, with all their questions. `max_length` is that of a window over
    the context, question included; a written answer needs question and context in as many tokens.

    Attributes:
        route: Whether the answer is a span of the context or is written.
        has_no_answer: Whether a question may have none (SQuAD 2.0). Its threshold is fitted on the
            validation data and saved with the final model.
        cloze_questions: Train on so many questions made out of the training contexts instead of
            on the real ones: pretraining on the task's own text. None for the real ones.
        stride: Tokens of context that neighbouring windows share.
        max_question_length: Longer questions lose their end.
        max_answer_length: Longest span, in tokens.
        decoding: How answers are written.
    """

    task: ClassVar[str] = "question_answering"

    max_length: int = 384
    route: Literal["span", "written"] = "span"
    has_no_answer: bool = False
    cloze_questions: int | None = None
    stride: int = 128
    max_question_length: int = 64
    max_answer_length: int = 30
    decoding: DecodingSettings = PAPER_DECODING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_no_answer and (self.route == "written" or self.cloze_questions is not None):
            raise ValueError(
                "has_no_answer goes with route='span' and real questions only: cloze questions "
                "all have an answer, and a written one is empty where there is none"
            )

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """Spans are read off the encoder, words are written by the decoder."""
        if self.route == "written":
            return VanillaTransformerForConditionalGeneration
        return VanillaTransformerForQuestionAnswering

    def task_options(self) -> dict[str, Any]:
        """Whether there may be no answer."""
        return {"has_no_answer": True} if self.has_no_answer else {}

    @property
    def _windows(self) -> dict[str, int]:
        return {
            "max_length": self.max_length,
            "stride": self.stride,
            "max_question_length": self.max_question_length,
        }

    def read(self) -> Texts:
        """As `load_question_answering` gives them."""
        corpus = self.given_corpus()
        train, report = load_question_answering(corpus, self.train_split, limit=self.train_limit)
        if self.validation_split is None:
            train, validation = hold_out(train, self.held_out, column="context")
        else:
            validation, _ = load_question_answering(corpus, self.validation_split)
        if self.cloze_questions is not None:
            # In the order of the corpus, each once.
            contexts = list(dict.fromkeys(train["context"]))
            train = cloze_questions(contexts, self.cloze_questions, seed=self.training.seed)
        tests = {split: load_question_answering(corpus, split)[0] for split in self.test_splits}
        return Texts(train, validation, tests, report)

    def all_text(self, examples: Dataset | IterableDataset) -> Iterator[str]:
        """Each context once, and every question."""
        return itertools.chain(dict.fromkeys(examples["context"]), examples["question"])

    def encode(
        self,
        examples: Dataset | IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        config: VanillaTransformerConfig,
        num_proc: int | None,
    ) -> tuple[Dataset | IterableDataset, Any]:
        """As `encode_questions`, or `encode_pairs` for answers to be written."""
        if self.route == "written":
            return encode_pairs(
                generative_pairs(examples),
                tokenizer,
                max_length=self.max_length,
                num_proc=num_proc,
            )
        return encode_questions(
            examples,
            tokenizer,
            for_training=True,
            has_no_answer=self.has_no_answer,
            num_proc=num_proc,
            **self._windows,
        )

    def build_task(
        self, texts: Texts, tokenizer: PreTrainedTokenizerBase, config: VanillaTransformerConfig
    ) -> Task:
        """Validated with F1 and exact match."""
        if self.route == "written":
            return AnswerWritingTask(tokenizer, texts.validation, decoding=self.decoding)
        return QuestionAnsweringTask(
            tokenizer,
            texts.validation,
            has_no_answer=self.has_no_answer,
            max_answer_length=self.max_answer_length,
            **self._windows,
        )

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Texts,
        accelerator: Accelerator,
    ) -> dict[str, Any]:
        """The threshold above which a question is left unanswered."""
        if not self.has_no_answer:
            return {}
        found = self.predict(model, tokenizer, texts.validation, accelerator)
        return {"no_answer_threshold": found.fit_threshold()}

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Dataset,
        accelerator: Accelerator,
        **limits: Any,
    ) -> Answers:
        """Answers, or none above the threshold of the model's configuration.

        The questions are shared out among the processes, each of which gets all answers.

        Args:
            limits: For written answers, the options of `translate` about batches and precision.

        Raises:
            ValueError: As `answer_questions` and `write_answers`.
        """
        started = time.monotonic()
        spans = None
        settings: dict[str, Any]
        if self.route == "written":
            texts = write_answers(accelerator, model, tokenizer, questions, self.decoding, **limits)
            settings = {"decoding": dataclasses.asdict(self.decoding), **limits}
        else:
            settings = {
                **self._windows,
                "max_answer_length": self.max_answer_length,
                "no_answer_threshold": model.config.no_answer_threshold,
            }
            spans = answer_questions(accelerator, model, tokenizer, questions, **settings, **limits)
            texts = {one.id: one.text for one in spans}
        return Answers(questions, texts, spans, settings, time.monotonic() - started)

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Texts,
        accelerator: Accelerator,
    ) -> dict[str, dict[str, Any]]:
        """As `Answers.score`."""
        return {
            split: self.predict(model, tokenizer, questions, accelerator).score()
            for split, questions in texts.tests.items()
        }

    def describe(self, split: str, scores: dict[str, Any]) -> str:
        """A table by kind of question."""
        return f"{split}: {format_report(scores)}"

    def measure(self, tokenizer: PreTrainedTokenizerBase | None = None) -> CorpusSize | None:
        """Windows of average size that teach, or the texts of written answers.

        None if the questions are on the Hub or yet to be given.

        Raises:
            ValueError: As `read`, test sets left out.
        """
        if not self.corpus or is_hub_id(self.given_corpus()):
            return None
        # Cloze questions are taken to be like the real ones rather than made.
        train = dataclasses.replace(self, test_splits=(), cloze_questions=None).read().train
        if self.route == "written":
            pairs = generative_pairs(train)
            size = measure_pairs(pairs["source"], pairs["target"], tokenizer, self.max_length)
        else:
            questions = estimate_tokens(train["question"], tokenizer)
            questions = np.minimum(questions, self.max_question_length)
            contexts = np.maximum(estimate_tokens(train["context"], tokenizer), 1)
            # `question </s> context </s>`
            room = self.max_length - questions - 2
            further = np.maximum(contexts - room, 0) / np.maximum(room - self.stride, 1)
            windows = 1 + np.ceil(further)
            shown = contexts + (windows - 1) * self.stride
            # Of windows that overlap so, a place in the context is in this many.
            teaching = windows if self.has_no_answer else shown / contexts
            tokens = teaching * (questions + 2 + shown / windows)
            count = int(teaching.sum())
            size = CorpusSize(count, float(tokens.sum()), count, tokenizer is not None)
        if self.cloze_questions is None:
            return size
        share = self.cloze_questions / len(train)
        return CorpusSize(
            int(share * size.examples),
            share * size.source_tokens,
            share * size.target_tokens,
            size.is_counted,
        )


_SMALL = {
    "d_model": 128,
    "d_ff": 256,
    "num_heads": 4,
    "num_encoder_layers": 3,
    "num_segments": 2,
    "dropout": 0.0,
    "layer_norm_position": "pre",
}
_TINY_WORLD = QuestionAnsweringRecipe(
    name="tiny-world-questions",
    description="Questions about paragraphs of the embedded corpus, in minutes on a laptop",
    corpus="tiny_world",
    train_limit=20_000,
    vocab_size=1000,
    max_length=128,
    stride=32,
    max_question_length=48,
    architecture=_SMALL,
    training=TrainingSettings(
        updates=3000,
        warmup=400,
        # A peak of 0.0013.
        learning_rate_factor=0.3,
        max_source_tokens=768,
        # Questions, since there is no target text.
        max_target_tokens=64,
        # Sentences of one length are of one pattern here, and whole batches may be wrong at once.
        max_loss_spike=None,
        max_gradient_norm=1.0,
        validate_every=1000,
        validation_examples=500,
        checkpoint_every=100,
        average_last=5,
        log_every=250,
    ),
    # Without it twice the updates gave an F1 of 94.
    keys_like_queries=0.9,
)

_SQUAD_CPU = QuestionAnsweringRecipe(
    name="squad-v1-cpu",
    description="SQuAD v1.1 from scratch within two hours on 2 cores, with nothing borrowed",
    corpus="squad",
    # The development set is what the figures are of: models are chosen on other contexts.
    validation_split=None,
    held_out=500,
    test_splits=("validation",),
    vocab_size=8000,
    lowercase=True,
    max_length=256,
    stride=85,
    max_question_length=48,
    architecture={**_SMALL, "num_heads": 8, "num_encoder_layers": 4, "dropout": 0.1},
    training=TrainingSettings(
        updates=100_000,
        warmup=500,
        # A peak of 0.0014.
        learning_rate_factor=0.35,
        max_source_tokens=2048,
        max_target_tokens=64,
        max_gradient_norm=1.0,
        validate_every=2000,
        validation_examples=1000,
        checkpoint_every=500,
        average_last=10,
        log_every=250,
        max_minutes=110.0,
    ),
    published="13.2 EM and 20.2 F1 by the sliding window, 40.1 and 51.0 by logistic regression, "
    "on the development set (Rajpurkar et al. 2016; the second by its published predictions)",
)

_SQUAD = QuestionAnsweringRecipe(
    name="squad-v1",
    description="SQuAD v1.1 from scratch on a GPU",
    corpus="squad",
    validation_split=None,
    held_out=500,
    test_splits=("validation",),
    vocab_size=16_000,
    lowercase=True,
    architecture={
        "d_model": 256,
        "d_ff": 1024,
        "num_heads": 8,
        "num_encoder_layers": 6,
        "num_segments": 2,
        "dropout": 0.2,
        "layer_norm_position": "pre",
    },
    training=TrainingSettings(
        updates=60_000,
        warmup=2000,
        learning_rate_factor=0.5,
        max_source_tokens=16_384,
        max_target_tokens=256,
        max_gradient_norm=1.0,
        validate_every=2000,
        checkpoint_every=1000,
        average_last=10,
        precision="bf16",
        num_workers=2,
    ),
    published="67.6 EM and 76.8 F1 by Match-LSTM, which starts from GloVe vectors (README of the "
    "SQuAD explorer)",
)

RECIPES: tuple[QuestionAnsweringRecipe, ...] = (
    _TINY_WORLD,
    _SQUAD_CPU,
    _SQUAD,
    dataclasses.replace(
        _SQUAD,
        name="squad-v2",
        description="SQuAD v2.0 from scratch on a GPU, with questions that have no answer",
        corpus="squad_v2",
        has_no_answer=True,
        published="none known from scratch",
    ),
)
