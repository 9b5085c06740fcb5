"""A task of no more than `Task` asks for: to tell long sentences from short ones, words left out.

It has no target text, draws at random, and its labels are numbers: all that translation is not.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import set_seed

from tests.training.tiny_run import make_world
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.task import Task, Validation
from vanilla_transformer.training.validation import validation_loss, whole_model

# Ids below are special tokens.
_FIRST_WORD = 5
_LEFT_OUT = 3


class ToyTask(Task):
    """Which of two kinds a sentence is of; a word in ten is left out."""

    metrics = ("accuracy", "perplexity")
    item = "sentences"
    columns = ("input_ids", "labels")

    def __init__(self, validation: Dataset):
        self.validation = validation

    def draw(
        self, batch: list[dict[str, Any]], random: np.random.Generator
    ) -> list[dict[str, Any]]:
        """A tenth of the words give way to one that says nothing."""

        def leave_out(ids: list[int]) -> list[int]:
            is_left_out = random.random(len(ids)) < 0.1
            return [
                _LEFT_OUT if left_out and token >= _FIRST_WORD else token
                for token, left_out in zip(ids, is_left_out, strict=True)
            ]

        return [{**example, "input_ids": leave_out(example["input_ids"])} for example in batch]

    def count(self, batch: Sequence[dict[str, Any]]) -> int:
        return len(batch)

    def idle(self, example: dict[str, Any]) -> dict[str, Any]:
        return {**example, "labels": -100}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)
        rows = [
            example["input_ids"] + [0] * (longest - len(example["input_ids"]))
            for example in examples
        ]
        input_ids = torch.tensor(rows)
        labels = torch.tensor([example["labels"] for example in examples])
        return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long(), "labels": labels}

    def validate(
        self, accelerator: Accelerator, model: nn.Module, settings: TrainingSettings
    ) -> Validation:
        with whole_model(accelerator, model) as inner:
            loss = validation_loss(accelerator, inner, self, self.validation)
            piece = self.collate(list(self.validation))
            with torch.no_grad():
                given = {name: tensor.to(inner.device) for name, tensor in piece.items()}
                found = inner(**given).logits.argmax(-1).cpu()
        accuracy = 100 * float((found == piece["labels"]).float().mean())
        scores = {"loss": loss, "perplexity": math.exp(loss), "accuracy": accuracy}
        shown = zip(piece["labels"].tolist(), found.tolist(), strict=True)
        samples = tuple(("a sentence", str(label), str(guess)) for label, guess in shown)
        return Validation(scores, samples[: settings.sample_predictions])


def make_toys() -> tuple[ToyTask, Dataset]:
    """The task and the examples to train on: 90 of the pairs of `make_world`, the rest to validate.

    A column more than the task needs, and of another kind, goes with them.
    """
    pairs = make_world().pairs
    lengths = [len(ids) for ids in pairs["input_ids"]]
    middle = sorted(lengths)[len(lengths) // 2]
    examples = Dataset.from_dict(
        {
            "id": [f"number {number}" for number in range(len(lengths))],
            "input_ids": pairs["input_ids"],
            "labels": [int(length > middle) for length in lengths],
        }
    )
    return ToyTask(examples.select(range(90, 100))), examples.select(range(90))


def make_toy_model(dropout: float = 0.0) -> VanillaTransformerForSequenceClassification:
    """The same weights whenever it is called."""
    set_seed(7)
    return VanillaTransformerForSequenceClassification(
        VanillaTransformerConfig(
            vocab_size=len(make_world().tokenizer),
            d_model=16,
            d_ff=32,
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=1,
            num_labels=2,
            dropout=dropout,
        )
    )
