"""What a run learns: the one place where translation, question answering and inference differ.

Everything else about a run, from the order of its batches to its checkpoints, is the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from .settings import TrainingSettings

# Scores that are better the lower they are; all others are better the higher.
LOW_IS_GOOD = ("loss", "perplexity")


@dataclass(frozen=True)
class Validation:
    """How good a model is on the validation data.

    Attributes:
        scores: Figures by name: `loss`, in nats per item, and the `metrics` of the task.
        samples: Some predictions: what was given, what was expected, what came out.
    """

    scores: dict[str, float]
    samples: tuple[tuple[str, str, str], ...] = ()


class Task(ABC):
    """What a run learns from encoded examples, and how it finds out how well.

    An encoded example holds at least `input_ids`, a list of tokens; `labels` that are a list, too,
    are what a decoder is to write. The loss of an update is the sum over its items divided by their
    number, over all processes and pieces.

    Attributes:
        metrics: Names of the scores beside `loss`; the first one tells which validation is best.
        item: What the loss is averaged over, in the plural: `target tokens`, `questions`.
        columns: Of an encoded example, those that `collate` needs.
        can_be_streamed: Whether examples may come as a stream: those with a target text can.
    """

    metrics: ClassVar[tuple[str, ...]]
    item: ClassVar[str]
    columns: tuple[str, ...]
    can_be_streamed: ClassVar[bool] = False

    # Not every task has something to prepare.
    def prepare(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Stores in a fresh model what is to be saved with it; by default nothing.

        Raises:
            ValueError: The model is not one for this task.
        """

    def draw(
        self, batch: list[dict[str, Any]], random: np.random.Generator
    ) -> list[dict[str, Any]]:
        """What is random in a global batch, such as masks; by default nothing.

        Every process draws the same from the same `random`, whatever its share of the batch.
        """
        return batch

    @abstractmethod
    def count(self, batch: Sequence[dict[str, Any]]) -> int:
        """Items of a batch that was drawn."""

    @abstractmethod
    def idle(self, example: dict[str, Any]) -> dict[str, Any]:
        """`example` without anything to learn: it counts for no item and its loss is 0."""

    @abstractmethod
    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Padded tensors, as the model takes them."""

    def padding(self, piece: dict[str, torch.Tensor]) -> tuple[int, int]:
        """Tokens of a collated batch, and positions that hold them or padding."""
        return int(piece["attention_mask"].sum()), piece["input_ids"].numel()

    @abstractmethod
    def validate(
        self, accelerator: Accelerator, model: nn.Module, settings: TrainingSettings
    ) -> Validation:
        """Scores on the validation data; every process calls it and gets the same.

        Args:
            model: The model in training, wrapped and sharded as it may be; see `whole_model`.
            settings: How many examples to look at and to show.
        """


def example_lengths(examples: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that the two stacks read of each encoded example, two arrays `[N]`.

    The second is 1 for examples without a target text: its budget is then one of examples.
    """
    table = examples.with_format("arrow")[:]
    source = pc.list_value_length(table["input_ids"]).to_numpy()
    names = table.column_names
    if "labels" not in names or not pa.types.is_list(table.schema.field("labels").type):
        return source, np.ones_like(source)
    return source, pc.list_value_length(table["labels"]).to_numpy()
