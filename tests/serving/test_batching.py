"""Batches of what waits: nothing lost, nothing mixed, nothing run in vain."""

import queue
import random
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from vanilla_transformer.serving import BatchingQueue


class Worker:
    """Notes its batches; holds the first until it is let go."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.gate = threading.Event()
        self.started = threading.Event()

    def __call__(self, kind: str, values: list[int]) -> list[int]:
        self.started.set()
        self.gate.wait(30)
        if -1 in values:
            raise ValueError("a bad one")
        self.batches.append((kind, values))
        return [10 * value for value in values]


def test_what_waits_shares_batches_of_like_length_within_the_budget() -> None:
    worker = Worker()
    waiting = BatchingQueue(worker, max_batch_tokens=20)
    first = waiting.submit("a", [0], [5])
    worker.started.wait(30)
    # While the first is run these come in.
    lengths = {1: 5, 2: 9, 3: 4, 4: 6, 5: 30, 6: 5}
    rest = waiting.submit("a", list(lengths), list(lengths.values()))
    other = waiting.submit("b", [7], [5])
    assert waiting.waiting == 7
    worker.gate.set()
    assert [future.result(30) for future in first + rest + other] == [10 * i for i in range(8)]
    # 1 waits longest; 6 and 3 are nearest; with 4, of 6 tokens, it would be 24.
    assert worker.batches[:2] == [("a", [0]), ("a", [1, 6, 3])]
    assert ("a", [5]) in worker.batches
    assert ("b", [7]) in worker.batches
    waiting.close()
    assert not waiting.is_working


def test_a_failing_batch_is_told_to_its_own_and_the_next_one_runs() -> None:
    worker = Worker()
    worker.gate.set()
    waiting = BatchingQueue(worker)
    (bad,) = waiting.submit("a", [-1], [1])
    with pytest.raises(ValueError, match="a bad one"):
        bad.result(30)
    (good,) = waiting.submit("a", [4], [1])
    assert good.result(30) == 40
    waiting.close()


def test_a_full_queue_takes_all_of_a_request_or_nothing() -> None:
    worker = Worker()
    waiting = BatchingQueue(worker, max_waiting=3)
    (running,) = waiting.submit("a", [0], [1])
    worker.started.wait(30)
    held = waiting.submit("a", [1, 2], [1, 1])
    with pytest.raises(queue.Full, match="2 texts wait and 2 more would exceed 3"):
        waiting.submit("a", [3, 4], [1, 1])
    assert waiting.waiting == 2
    # What nobody waits for any more makes room, and is not run.
    held[0].cancel()
    more = waiting.submit("a", [3, 4], [1, 1])
    worker.gate.set()
    assert [future.result(30) for future in [running, held[1], *more]] == [0, 20, 30, 40]
    assert sorted(value for _, values in worker.batches for value in values) == [0, 2, 3, 4]
    waiting.close()


def test_closing_runs_what_waits_and_after_its_time_cancels_it() -> None:
    worker = Worker()
    waiting = BatchingQueue(worker)
    futures = waiting.submit("a", [1, 2], [1, 1])
    worker.gate.set()
    waiting.close()
    assert [future.result(0) for future in futures] == [10, 20]
    with pytest.raises(RuntimeError, match="closed"):
        waiting.submit("a", [1], [1])

    stuck = Worker()
    waiting = BatchingQueue(stuck)
    waiting.submit("a", [1], [1])
    stuck.started.wait(30)
    (late,) = waiting.submit("a", [2], [1])
    start = time.monotonic()
    waiting.close(timeout=0.2)
    assert time.monotonic() - start < 5
    with pytest.raises(CancelledError):
        late.result(5)
    stuck.gate.set()


def test_many_threads_get_each_their_own() -> None:
    def work(kind: int, values: list[int]) -> list[int]:
        time.sleep(0.001)
        return [kind * 1000 + value for value in values]

    waiting = BatchingQueue(work, max_batch_tokens=64, max_waiting=10_000)

    def ask(seed: int) -> bool:
        draw = random.Random(seed)
        kind, values = draw.randrange(3), [draw.randrange(1000) for _ in range(4)]
        futures = waiting.submit(kind, values, [draw.randrange(1, 40) for _ in values])
        return [future.result(30) for future in futures] == [kind * 1000 + v for v in values]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(300)))
    waiting.close()


@pytest.mark.parametrize("bounds", [{"max_batch_tokens": 0}, {"max_waiting": 0}])
def test_impossible_bounds_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1"):
        BatchingQueue(lambda kind, values: values, **bounds)
