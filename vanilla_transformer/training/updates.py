"""What each optimizer update sees, on every process: the data side of a run, exact to resume.

One update sees one global batch. Each process takes its part of it, in `accumulation_steps`
pieces, and every piece's loss is divided by the items of the whole (target tokens, questions): the
gradient is the same whatever the number of processes and pieces.
"""

import hashlib
import itertools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..data.batching import TokenBudgetBatchSampler, split_batch, stream_batches
from .settings import TrainingSettings
from .task import Task, example_lengths


@dataclass(frozen=True)
class Update:
    """What one process computes for one optimizer update.

    Attributes:
        pieces: Batches of tensors to accumulate over.
        items: What counts in the loss of the whole global batch: target tokens, questions.
        padding_share: Of the padded tensors of this process's pieces, in [0, 1].
        rows: Where the global batch lies in the training data; empty for streamed data.
    """

    pieces: list[dict[str, torch.Tensor]]
    items: int
    padding_share: float
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a process computes."""

    task: Task
    accumulation_steps: int = 1
    process_index: int = 0
    num_processes: int = 1

    def take(
        self, batch: list[dict[str, Any]], seed: Sequence[int], rows: Sequence[int] = ()
    ) -> Update:
        """This process's update for a global batch of encoded examples.

        Args:
            seed: Of what the task draws: the run's, the epoch and the batch's place in it.
        """
        batch = self.task.draw(batch, np.random.default_rng(seed))
        lengths = [sum(_lengths(example)) for example in batch]
        parts = split_batch(
            range(len(batch)), self.num_processes * self.accumulation_steps, lengths
        )
        first = self.process_index * self.accumulation_steps
        # A batch of fewer examples than parts leaves some empty. Every process must still run
        # backward once a piece, or the others wait for ever: an example that teaches nothing.
        idle = self.task.idle(batch[0])
        pieces = [
            dict(self.task.collate([batch[i] for i in part] or [idle]))
            for part in parts[first : first + self.accumulation_steps]
        ]
        filled, padded = np.sum([self.task.padding(piece) for piece in pieces], axis=0)
        return Update(pieces, self.task.count(batch), float(1 - filled / padded), tuple(rows))


class EpochPlan(TorchDataset):
    """The updates of one epoch as a data set, so that a `DataLoader` can prepare them ahead.

    Args:
        batches: Rows of each, from the batch `first` of the epoch.
        seed: Of what the task draws, beside the place of a batch in the epoch.
    """

    def __init__(
        self,
        examples: Dataset,
        batches: Sequence[Sequence[int]],
        share: Share,
        seed: Sequence[int] = (),
        first: int = 0,
    ):
        self.examples = examples.select_columns(list(share.task.columns))
        self.batches, self.share = batches, share
        self.seed, self.first = tuple(seed), first

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> Update:
        rows = list(self.batches[position])
        fetched = self.examples[rows]
        columns = self.share.task.columns
        values = zip(*(fetched[name] for name in columns), strict=True)
        batch = [dict(zip(columns, row, strict=True)) for row in values]
        return self.share.take(batch, (*self.seed, self.first + position), rows)


class UpdateStream:
    """The updates of a whole run, epoch after epoch without end, for one process.

    `state_dict` tells the position after the update handed out last, however far a loader reads
    ahead; a stream that has loaded it goes on with the very next one. Streamed data are read again
    from the beginning of the epoch to get there, and compared on the way.

    Args:
        examples: Encoded examples; a stream only of texts and their targets, from `encode_pairs`.
        task: What they teach.
        settings: Token budgets, accumulation, seed and workers.
        process_index, num_processes: Which share of each update to give.
        pin_memory: Whether tensors go to a GPU.

    Raises:
        ValueError: An example over the token budgets, no example at all, or one that lacks a column
            that the task needs.
    """

    def __init__(
        self,
        examples: Dataset | IterableDataset,
        task: Task,
        settings: TrainingSettings,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        pin_memory: bool = False,
    ):
        missing = set(task.columns) - set(examples.column_names or task.columns)
        if missing:
            raise ValueError(
                f"the examples lack the columns {', '.join(sorted(missing))} that "
                f"{type(task).__name__} needs; encode them for training"
            )
        if isinstance(examples, IterableDataset) and not task.can_be_streamed:
            raise ValueError(
                f"{type(task).__name__} cannot learn from streamed data: only texts with their "
                "targets are streamed; load the data as a Dataset"
            )
        self.examples, self.task, self.settings = examples, task, settings
        self.pin_memory = pin_memory
        self.share = Share(task, settings.accumulation_steps, process_index, num_processes)
        self.sampler: TokenBudgetBatchSampler | None = None
        if not isinstance(examples, IterableDataset):
            self.sampler = TokenBudgetBatchSampler(
                *example_lengths(examples),
                max_source_tokens=settings.max_source_tokens,
                max_target_tokens=settings.max_target_tokens,
                seed=settings.seed,
            )
        self._epoch = 0
        self._done = 0
        self._digest = ""

    @property
    def epoch(self) -> float:
        """Epochs done; whole ones only where the length of an epoch is unknown."""
        return self._epoch + (self._done / len(self.sampler) if self.sampler else 0.0)

    def __len__(self) -> int:
        """Updates in an epoch.

        Raises:
            TypeError: Streamed data have no known length.
        """
        if self.sampler is None:
            raise TypeError("streamed data have no known number of updates in an epoch")
        return len(self.sampler)

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain JSON values."""
        if self.sampler is not None:
            self.sampler.set_epoch(self._epoch)
            return self.sampler.state_dict(next_batch=self._done)
        return {"epoch": self._epoch, "next_batch": self._done, "digest": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next `for` go on exactly after the update at which `state` was taken.

        Raises:
            ValueError: The state belongs to other batches: other data, budgets or seed.
        """
        if ("digest" in state) != (self.sampler is None):
            raise ValueError(
                "the saved position is that of a run "
                f"{'with' if 'digest' in state else 'without'} streamed data; resume it so"
            )
        if self.sampler is not None:
            self.sampler.load_state_dict(state)
        self._digest = state.get("digest", "")
        self._epoch, self._done = state["epoch"], state["next_batch"]

    def __iter__(self) -> Iterator[Update]:
        return self._iterate_stream() if self.sampler is None else self._iterate_plan(self.sampler)

    def _iterate_plan(self, sampler: TokenBudgetBatchSampler) -> Iterator[Update]:
        for epoch in itertools.count(self._epoch):
            if epoch != self._epoch:
                self._epoch, self._done = epoch, 0
            # Loaded anew, so that a second `for` does not begin the epoch again.
            sampler.set_epoch(epoch)
            sampler.load_state_dict(sampler.state_dict(next_batch=self._done))
            # Taken whole: the loader may read ahead, and the position is counted here.
            seed = (self.settings.seed, epoch)
            plan = EpochPlan(self.examples, list(sampler), self.share, seed, self._done)
            loader = DataLoader(
                plan,
                batch_size=None,
                shuffle=False,
                num_workers=self.settings.num_workers,
                pin_memory=self.pin_memory,
                # Its own: the loader would draw a seed from the generator that dropout draws from,
                # and a resumed run would then drop out otherwise.
                generator=torch.Generator(),
                worker_init_fn=_ignore_signals,
            )
            for update in loader:
                self._done += 1
                yield update

    def _iterate_stream(self) -> Iterator[Update]:
        expected = self._digest if self._done else None
        for epoch in itertools.count(self._epoch):
            skipped = self._done if epoch == self._epoch else 0
            self._epoch, self._done, self._digest = epoch, 0, ""
            for batch in stream_batches(
                self.examples,
                max_source_tokens=self.settings.max_source_tokens,
                max_target_tokens=self.settings.max_target_tokens,
                seed=self.settings.seed,
                epoch=epoch,
            ):
                self._done += 1
                self._digest = _chain(self._digest, batch, self.task.columns)
                if self._done < skipped:
                    continue
                if self._done == skipped:
                    if self._digest != expected:
                        raise ValueError(
                            f"the first {skipped} batches of the stream are not those that the run "
                            "was trained on; resume with the same data, tokenizer, token budgets "
                            "and seed, or begin a new run"
                        )
                    continue
                yield self.share.take(batch, (self.settings.seed, epoch, self._done))
            if not self._done:
                raise ValueError(
                    "the stream gave no example to train on; check data and max_length"
                )
            if self._done < skipped:
                raise ValueError(
                    f"the stream gave {self._done} batches, the run was trained on {skipped}; "
                    "resume with the same data, or begin a new run"
                )


def _ignore_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: the one that trains answers for its workers."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


def _lengths(example: dict[str, Any]) -> tuple[int, int]:
    """Of one encoded example what `example_lengths` gives of all."""
    labels = example.get("labels")
    return len(example["input_ids"]), len(labels) if isinstance(labels, list) else 1


def _chain(digest: str, batch: list[dict[str, Any]], columns: Sequence[str]) -> str:
    """Hash of all batches up to this one, from that of all before it."""
    content = hashlib.sha256(digest.encode())
    for example in batch:
        for name in columns:
            content.update(np.asarray(example[name], dtype="<i8").tobytes())
            content.update(b"|")
    return content.hexdigest()
