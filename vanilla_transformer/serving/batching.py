"""Requests of many clients, run together in batches bounded by tokens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class _Item:
    kind: Hashable
    value: Any
    tokens: int
    future: Future[Any] = field(default_factory=Future)


class BatchingQueue:
    """One thread that works on whatever waits, without waiting itself for a batch to be full.

    Whenever it is free it takes the item that has waited longest, fills the batch with others of
    its kind, those nearest in length first, and so on until nothing waits. Alone, an item is thus
    run at once; under load batches grow by themselves to the budget. What is cancelled while it
    waits is not run.

    Args:
        run: Called with a kind and the values of a batch; gives a result for each. An exception
            is that of each of its items, and of no other.
        max_batch_tokens: Bound on items times tokens of the longest; a longer item goes alone.
        max_waiting: Items that may wait.
        observe: Told of each batch before it is run: kind and numbers of tokens.
    """

    def __init__(
        self,
        run: Callable[[Any, list[Any]], Sequence[Any]],
        *,
        max_batch_tokens: int = 4096,
        max_waiting: int = 1024,
        observe: Callable[[Any, list[int]], None] | None = None,
    ):
        if max_batch_tokens < 1 or max_waiting < 1:
            raise ValueError(
                f"max_batch_tokens ({max_batch_tokens}) and max_waiting ({max_waiting}) must be at "
                "least 1"
            )
        self.max_batch_tokens, self.max_waiting = max_batch_tokens, max_waiting
        self._run, self._observe = run, observe
        self._items: list[_Item] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that wait, cancelled ones left out."""
        with self._changed:
            return sum(not item.future.cancelled() for item in self._items)

    @property
    def is_working(self) -> bool:
        """Whether what is submitted will be run."""
        return self._thread.is_alive() and not self._is_closed

    def submit(self, kind: Hashable, values: Sequence[Any], tokens: Sequence[int]) -> list[Future]:
        """Queues items, all or none.

        Args:
            kind: Only items of one kind share a batch.
            values: What `run` is given.
            tokens: Of each.

        Returns:
            A future for each.

        Raises:
            queue.Full: There is no room for all of them.
            RuntimeError: The queue is closed.
        """
        items = [_Item(kind, *pair) for pair in zip(values, tokens, strict=True)]
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the queue is closed")
            self._items = [item for item in self._items if not item.future.cancelled()]
            if len(self._items) + len(items) > self.max_waiting:
                raise queue.Full(
                    f"{len(self._items)} texts wait and {len(items)} more would exceed "
                    f"{self.max_waiting}; try again later"
                )
            self._items += items
            self._changed.notify()
        return [item.future for item in items]

    def close(self, timeout: float | None = None) -> None:
        """Runs what waits, takes nothing new, and ends; what is left after `timeout` is cancelled.

        Args:
            timeout: Seconds; None waits for all.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            for item in self._items:
                item.future.cancel()
            self._items.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._items:
                    if self._is_closed:
                        return
                    self._changed.wait()
                batch = self._take()
            # From here on they cannot be cancelled any more.
            batch = [item for item in batch if item.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                if self._observe is not None:
                    self._observe(batch[0].kind, [item.tokens for item in batch])
                results = self._run(batch[0].kind, [item.value for item in batch])
                for item, result in zip(batch, results, strict=True):
                    item.future.set_result(result)
            # The thread outlives whatever one batch meets; its items are told.
            except BaseException as error:
                for item in batch:
                    if not item.future.done():
                        item.future.set_exception(error)

    def _take(self) -> list[_Item]:
        """The next batch, taken from what waits: the oldest and its nearest in length."""
        first = self._items[0]
        alike = [item for item in self._items if item.kind == first.kind and item is not first]
        batch, longest = [first], first.tokens
        for item in sorted(alike, key=lambda item: abs(item.tokens - first.tokens)):
            longest = max(longest, item.tokens)
            if longest * (len(batch) + 1) > self.max_batch_tokens:
                break
            batch.append(item)
        taken = set(map(id, batch))
        self._items = [item for item in self._items if id(item) not in taken]
        return batch
