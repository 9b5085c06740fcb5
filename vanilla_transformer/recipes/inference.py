"""Natural language inference recipes, and what such a run consists of."""

import dataclasses
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
from ..data.inference_corpora import LABELS, TWO_WAY_LABELS, load_inference
from ..evaluation.natural_language_inference import (
    HypothesisOnly,
    evaluate_inference,
    format_report,
)
from ..generation import PAPER_DECODING, DecodingSettings
from ..modeling_vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForSequenceClassification,
)
from ..tasks.natural_language_inference import (
    encode_inference,
    inference_as_text,
    write_glue_tsv,
)
from ..tasks.translation import encode_pairs
from ..training.estimation import CorpusSize, estimate_tokens, measure_pairs
from ..training.inference import InferenceTask, LabelWritingTask, classify_pairs, write_labels
from ..training.settings import TrainingSettings
from ..training.task import Task
from .recipe import Recipe, Texts


@dataclass(frozen=True)
class Labels:
    """Labels of the pairs of a corpus, in its order.

    Attributes:
        pairs: What was compared.
        names: What the labels are called.
        labels: [N], positions in `names`, -1 for what was written and is no label.
        probabilities: [N, C], as `evaluate_inference` takes them; None for labels that were
            written.
        settings: How they were found.
        seconds: What it took.
    """

    pairs: Dataset
    names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray | None
    settings: dict[str, Any]
    seconds: float

    def score(self, hypothesis_only: HypothesisOnly | None = None) -> dict[str, Any]:
        """As `evaluate_inference`, with the settings and the seconds."""
        found = self.labels if self.probabilities is None else self.probabilities
        scores = evaluate_inference(self.pairs, found, hypothesis_only=hypothesis_only)
        return {**scores, "seconds": self.seconds, "settings": self.settings}

    def write(self, path: Path) -> None:
        """The columns `index` and `prediction`, by tab, as GLUE takes them.

        Where the ids are no numbers, each once, or a label is none ("-"), which GLUE refuses, the
        rows stand in the order of the corpus.
        """
        ids, labels = [str(one) for one in self.pairs["id"]], self.labels.tolist()
        is_numbered = all(map(str.isdecimal, ids)) and len(set(map(int, ids))) == len(ids)
        if is_numbered and min(labels) >= 0:
            write_glue_tsv(path, ids, labels, self.names)
            return
        rows = (
            f"{one}\t{self.names[label] if label >= 0 else '-'}\n"
            for one, label in zip(ids, labels, strict=True)
        )
        with atomic_file(path) as file:
            file.write_text(f"index\tprediction\n{''.join(rows)}", "utf-8")


@dataclass(frozen=True, kw_only=True)
class InferenceRecipe(Recipe):
    """A complete run of natural language inference.

    Texts held out are premises, with all their hypotheses. Training pairs of more than
    `max_length` tokens are left out; in evaluation the longer side is cut.

    Attributes:
        route: Whether the label is a class or is written.
        decoding: How labels are written.
    """

    task: ClassVar[str] = "inference"

    route: Literal["class", "written"] = "class"
    decoding: DecodingSettings = PAPER_DECODING

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """A classifier, or the whole model that writes a word."""
        if self.route == "written":
            return VanillaTransformerForConditionalGeneration
        return VanillaTransformerForSequenceClassification

    def task_options(self) -> dict[str, Any]:
        """The names of the labels."""
        if self.route == "written":
            return {}
        return {
            "id2label": dict(enumerate(LABELS)),
            "label2id": {label: number for number, label in enumerate(LABELS)},
        }

    def read(self) -> Texts:
        """As `load_inference` gives them."""
        corpus = self.given_corpus()
        train, report = load_inference(corpus, self.train_split, limit=self.train_limit)
        if self.validation_split is None:
            train, validation = hold_out(train, self.held_out, column="premise")
        else:
            validation, _ = load_inference(corpus, self.validation_split)
        tests = {split: load_inference(corpus, split)[0] for split in self.test_splits}
        return Texts(train, validation, tests, report)

    def all_text(self, examples: Dataset | IterableDataset) -> Iterator[str]:
        """Every premise and every hypothesis."""
        for batch in examples.iter(batch_size=1000):
            yield from batch["premise"]
            yield from batch["hypothesis"]

    def encode(
        self,
        examples: Dataset | IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        config: VanillaTransformerConfig,
        num_proc: int | None,
    ) -> tuple[Dataset | IterableDataset, Any]:
        """As `encode_inference`, or `encode_pairs` for labels to be written."""
        if self.route == "written":
            return encode_pairs(
                inference_as_text(examples),
                tokenizer,
                max_length=self.max_length,
                num_proc=num_proc,
            )
        return encode_inference(
            examples,
            tokenizer,
            config,
            for_training=True,
            max_length=self.max_length,
            num_proc=num_proc,
        )

    def build_task(
        self, texts: Texts, tokenizer: PreTrainedTokenizerBase, config: VanillaTransformerConfig
    ) -> Task:
        """Validated with accuracy."""
        if self.route == "written":
            return LabelWritingTask(tokenizer, texts.validation, decoding=self.decoding)
        return InferenceTask(tokenizer, config, texts.validation, max_length=self.max_length)

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Dataset,
        accelerator: Accelerator,
        **limits: Any,
    ) -> Labels:
        """Infers labels; the pairs are shared out among the processes, each of which gets all.

        Args:
            limits: For written labels, the options of `translate` about batches and precision.

        Raises:
            ValueError: As `classify_pairs` and `write_labels`.
        """
        started = time.monotonic()
        names = tuple(pairs.features["label"].names)
        probabilities = None
        settings: dict[str, Any]
        if self.route == "written":
            labels = write_labels(accelerator, model, tokenizer, pairs, self.decoding, **limits)
            settings = {"decoding": dataclasses.asdict(self.decoding), **limits}
        else:
            settings = {"max_length": self.max_length}
            probabilities = classify_pairs(
                accelerator, model, tokenizer, pairs, **settings, **limits
            )
            labels = probabilities.argmax(axis=1)
            if names == TWO_WAY_LABELS:
                # The likeliest of the three first (McCoy et al. 2019), as `evaluate_inference`.
                labels = np.minimum(labels, 1)
            elif probabilities.shape[1] == len(TWO_WAY_LABELS):
                names = TWO_WAY_LABELS
        seconds = time.monotonic() - started
        return Labels(pairs, names, labels, probabilities, settings, seconds)

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Texts,
        accelerator: Accelerator,
    ) -> dict[str, dict[str, Any]]:
        """As `Labels.score`, beside both baselines."""
        baseline = HypothesisOnly(texts.train)
        return {
            split: self.predict(model, tokenizer, pairs, accelerator).score(baseline)
            for split, pairs in texts.tests.items()
        }

    def describe(self, split: str, scores: dict[str, Any]) -> str:
        """Figures, confusion matrix, calibration and slices."""
        return format_report(scores, split)

    def measure(self, tokenizer: PreTrainedTokenizerBase | None = None) -> CorpusSize | None:
        """Of premise and hypothesis together; None if they are on the Hub or yet to be given.

        Raises:
            ValueError: As `read`, test sets left out.
        """
        if not self.corpus or is_hub_id(self.given_corpus()):
            return None
        train = dataclasses.replace(self, test_splits=()).read().train
        if self.route == "written":
            pairs = inference_as_text(train)
            return measure_pairs(pairs["source"], pairs["target"], tokenizer, self.max_length)
        # `premise </s> hypothesis </s>`
        premises, hypotheses = (
            estimate_tokens(train[side], tokenizer) for side in ("premise", "hypothesis")
        )
        lengths = premises + hypotheses + 2
        count = int((lengths <= self.max_length).sum())
        tokens = float(lengths[lengths <= self.max_length].sum())
        return CorpusSize(count, tokens, count, is_counted=tokenizer is not None)


_TINY_WORLD = InferenceRecipe(
    name="tiny-world-inference",
    description="Pairs of sentences of the embedded corpus, in minutes on a laptop",
    corpus="tiny_world",
    train_limit=60_000,
    vocab_size=800,
    max_length=64,
    # In trials of a smaller model post-norm, the paper's, learned more slowly, and not at all at
    # three times this rate.
    architecture={
        "d_model": 128,
        "d_ff": 256,
        "num_heads": 8,
        "num_encoder_layers": 3,
        "num_segments": 2,
        "pooling": "max",
        "dropout": 0.0,
        "layer_norm_position": "pre",
    },
    training=TrainingSettings(
        updates=3500,
        warmup=500,
        # A peak of 0.0013.
        learning_rate_factor=0.33,
        max_source_tokens=864,
        # Pairs, since there is no target text.
        max_target_tokens=32,
        # Sentences of one length are of one pattern here, and whole batches may be wrong at once.
        max_loss_spike=None,
        max_gradient_norm=1.0,
        validate_every=1000,
        checkpoint_every=100,
        average_last=5,
        log_every=250,
    ),
    # Without it 5,500 updates gave an accuracy of 94.
    keys_like_queries=0.9,
)

_NLI_SMALL = InferenceRecipe(
    name="nli-small",
    description="48,000 pairs of SNLI, SICK, ConjNLI, JOCI and MultiNLI, in minutes on one core",
    data_source="a folder with train, validation_sick, test_sick and test_cad",
    validation_split="validation_sick",
    test_splits=("test_sick", "test_cad"),
    vocab_size=6000,
    # As SNLI's test set comes.
    lowercase=True,
    strip_punctuation=True,
    max_length=64,
    # The smallest of those tried learned the most in the time.
    architecture={
        "d_model": 64,
        "d_ff": 256,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_segments": 2,
        "pooling": "max",
        "dropout": 0.1,
        "layer_norm_position": "pre",
    },
    keys_like_queries=0.9,
    training=TrainingSettings(
        updates=30_000,
        warmup=300,
        # A peak of 0.003.
        learning_rate_factor=0.416,
        max_source_tokens=1024,
        max_target_tokens=128,
        max_gradient_norm=1.0,
        validate_every=1000,
        checkpoint_every=250,
        average_last=10,
        log_every=1000,
        max_minutes=16.0,
    ),
    published="none for this mixture; the majority class has 56.7 on test_sick",
)

RECIPES: tuple[InferenceRecipe, ...] = (_TINY_WORLD, _NLI_SMALL)
