"""Recipes for masked language modelling on the text of a task, to start its heads from."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..data.corpora import hold_out, is_hub_id
from ..data.inference_corpora import load_inference
from ..data.question_answering_corpora import load_question_answering
from ..modeling_vanilla_transformer import VanillaTransformerForMaskedLM
from ..training.estimation import CorpusSize, estimate_tokens
from ..training.pretraining import MaskedLanguageModelingTask, encode_blocks
from ..training.settings import TrainingSettings
from ..training.task import Task
from ..training.watching import describe_scores
from .recipe import Recipe, Texts


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe(Recipe):
    """Masked language modelling (Devlin et al. 2019, 3.1) on the text of a corpus.

    Each different text of the training split is read once an epoch: contexts of questions,
    premises and hypotheses. Longer ones are cut into blocks of `max_length` tokens.

    Attributes:
        kind: What the corpus is of, and so how it is read.
        masked_share: Of the tokens, how many the model has to guess.
    """

    task: ClassVar[str] = "pretraining"
    model_class = VanillaTransformerForMaskedLM

    kind: Literal["question_answering", "inference"]
    validation_split: str | None = None
    test_splits: tuple[str, ...] = ()
    masked_share: float = 0.15

    def read(self) -> Texts:
        """The different texts, in a column `text`."""
        corpus = self.given_corpus()
        report: Any
        if self.kind == "inference":
            pairs, report = load_inference(corpus, self.train_split, limit=self.train_limit)
            columns = [pairs["premise"], pairs["hypothesis"]]
        else:
            questions, report = load_question_answering(
                corpus, self.train_split, limit=self.train_limit
            )
            columns = [questions["context"], questions["question"]]
        # Each once, in the order of the corpus.
        different = dict.fromkeys(text for column in columns for text in column if text)
        texts = Dataset.from_dict({"text": list(different)})
        train, validation = hold_out(texts, self.held_out, column="text")
        return Texts(train, validation, {"held out": validation}, report)

    def all_text(self, examples: Dataset | IterableDataset) -> Iterator[str]:
        """Every text."""
        for batch in examples.iter(batch_size=1000):
            yield from batch["text"]

    def encode(
        self,
        examples: Dataset | IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        config: VanillaTransformerConfig,
        num_proc: int | None,
    ) -> tuple[Dataset | IterableDataset, Any]:
        """As `encode_blocks`."""
        blocks = encode_blocks(examples, tokenizer, max_length=self.max_length, num_proc=num_proc)
        return blocks, BlocksReport(len(examples), len(blocks))

    def build_task(
        self, texts: Texts, tokenizer: PreTrainedTokenizerBase, config: VanillaTransformerConfig
    ) -> Task:
        """Validated with accuracy on tokens that were masked."""
        return MaskedLanguageModelingTask(
            tokenizer,
            encode_blocks(texts.validation, tokenizer, max_length=self.max_length),
            masked_share=self.masked_share,
        )

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Texts,
        accelerator: Accelerator,
    ) -> dict[str, dict[str, Any]]:
        """Loss, perplexity and accuracy on the texts held out."""
        task = self.build_task(texts, tokenizer, model.config)
        # All of them, however few a validation looks at.
        settings = dataclasses.replace(self.training, validation_examples=None)
        return {"held out": task.validate(accelerator, model, settings).scores}

    def describe(self, split: str, scores: dict[str, Any]) -> str:
        """In one line."""
        return f"{split}: {describe_scores(scores)}"

    def measure(self, tokenizer: PreTrainedTokenizerBase | None = None) -> CorpusSize | None:
        """Of all different texts; None if they are on the Hub or yet to be given.

        Raises:
            ValueError: As `read`.
        """
        if not self.corpus or is_hub_id(self.given_corpus()):
            return None
        lengths = estimate_tokens(self.read().train["text"], tokenizer)
        # Each block ends in `</s>`.
        blocks = int(np.ceil(lengths / (self.max_length - 1)).sum())
        tokens = float(lengths.sum()) + blocks
        return CorpusSize(blocks, tokens, blocks, is_counted=tokenizer is not None)


@dataclass
class BlocksReport:
    """How many texts gave how many blocks."""

    texts: int
    blocks: int


RECIPES: tuple[PretrainingRecipe, ...] = (
    PretrainingRecipe(
        name="nli-small-pretraining",
        description="Masked language modelling on the sentences of nli-small, to start it from",
        data_source="the folder that nli-small is given",
        kind="inference",
        held_out=1000,
        vocab_size=6000,
        lowercase=True,
        strip_punctuation=True,
        max_length=64,
        architecture={
            "d_model": 64,
            "d_ff": 256,
            "num_heads": 2,
            "num_encoder_layers": 2,
            "dropout": 0.1,
            "layer_norm_position": "pre",
        },
        keys_like_queries=0.9,
        training=TrainingSettings(
            updates=20_000,
            warmup=300,
            # A peak of 0.003.
            learning_rate_factor=0.416,
            max_source_tokens=2048,
            max_target_tokens=256,
            max_gradient_norm=1.0,
            validate_every=1000,
            validation_examples=500,
            checkpoint_every=500,
            average_last=5,
            log_every=250,
            max_minutes=15.0,
        ),
    ),
)
