"""Token-budget batches: the budget, determinism, exact resume, little padding, sharing out."""

import itertools
import json
import time
from collections.abc import Sequence

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vanilla_transformer.data.batching import (
    TokenBudgetBatchSampler,
    padding_share,
    split_batch,
    stream_batches,
)

Lengths = tuple[np.ndarray, np.ndarray]


def lengths_like_multi30k(count: int, seed: int = 0) -> Lengths:
    """Mean 14, spread 4.3, correlation 0.86: what the words of Multi30k en-de measure."""
    random = np.random.default_rng(seed)
    source = np.clip(np.round(random.lognormal(2.59, 0.30, count)), 4, 41)
    target = np.clip(np.round(0.88 * source + 1.1 + random.normal(0, 2.1, count)), 3, 45)
    return source.astype(int), target.astype(int)


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=80),
    source_budget=st.integers(30, 120),
    target_budget=st.integers(30, 120),
    max_sentences=st.none() | st.integers(1, 6),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_every_example_once_and_every_batch_within_the_budgets(
    pairs: list[tuple[int, int]],
    source_budget: int,
    target_budget: int,
    max_sentences: int | None,
    seed: int,
    shuffle: bool,
) -> None:
    sampler = TokenBudgetBatchSampler(
        [pair[0] for pair in pairs],
        [pair[1] for pair in pairs],
        max_source_tokens=source_budget,
        max_target_tokens=target_budget,
        max_sentences=max_sentences,
        seed=seed,
        shuffle=shuffle,
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(itertools.chain(*batches)) == list(range(len(pairs)))
        for batch in batches:
            assert len(batch) * max(pairs[row][0] for row in batch) <= source_budget
            assert len(batch) * max(pairs[row][1] for row in batch) <= target_budget
            assert max_sentences is None or len(batch) <= max_sentences


def test_batches_are_as_large_as_the_budget_allows() -> None:
    sampler = TokenBudgetBatchSampler(
        [10] * 95, [5] * 95, max_source_tokens=100, max_target_tokens=100, shuffle=False
    )
    assert [len(batch) for batch in sampler] == [10] * 9 + [5]


def test_order_depends_on_seed_and_epoch_only() -> None:
    source, target = lengths_like_multi30k(2_000)

    def epochs(seed: int) -> list[list[list[int]]]:
        sampler = TokenBudgetBatchSampler(
            source, target, max_source_tokens=500, max_target_tokens=500, seed=seed
        )
        result = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            result.append(list(sampler))
        return result

    first, second = epochs(0)
    assert epochs(0) == [first, second]
    assert first != second
    assert epochs(1)[0] != first
    # Not only the order of the batches but also what falls together changes.
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    # Lengths do not rise or fall through the epoch.
    longest = np.array([source[batch].max() for batch in first])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.35


def test_without_shuffling_lengths_rise_and_epochs_agree() -> None:
    source, target = lengths_like_multi30k(2_000)
    sampler = TokenBudgetBatchSampler(
        source, target, max_source_tokens=500, max_target_tokens=500, shuffle=False
    )
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first
    longest = [max(source[batch].max(), target[batch].max()) for batch in first]
    assert longest == sorted(longest)


@pytest.mark.parametrize("consumed", [0, 1, 7, None])
def test_resuming_goes_on_exactly_where_it_stopped(consumed: int | None) -> None:
    source, target = lengths_like_multi30k(1_000)

    def build() -> TokenBudgetBatchSampler:
        return TokenBudgetBatchSampler(
            source, target, max_source_tokens=400, max_target_tokens=400, seed=3
        )

    straight = build()
    straight.set_epoch(2)
    whole = list(straight)
    straight.set_epoch(3)
    following = list(straight)

    stopped = build()
    stopped.set_epoch(2)
    consumed = len(stopped) if consumed is None else consumed
    assert list(itertools.islice(stopped, consumed)) == whole[:consumed]
    state = json.loads(json.dumps(stopped.state_dict()))
    assert state["next_batch"] == consumed

    resumed = build()
    resumed.load_state_dict(state)
    assert resumed.epoch == 2
    # A loop sets the epoch that it resumes in once more.
    resumed.set_epoch(2)
    assert len(resumed) == len(whole)
    assert list(resumed) == whole[consumed:]
    # The position is used up: the same epoch again is whole, and so is the next one.
    assert list(resumed) == whole
    resumed.set_epoch(3)
    assert list(resumed) == following


def test_state_of_a_loader_that_reads_ahead() -> None:
    source, target = lengths_like_multi30k(1_000)
    sampler = TokenBudgetBatchSampler(source, target, max_source_tokens=400, max_target_tokens=400)
    whole = list(sampler)
    reading_ahead = iter(sampler)
    for _ in range(9):
        next(reading_ahead)
    state = sampler.state_dict(next_batch=5)
    sampler.load_state_dict(state)
    assert list(sampler) == whole[5:]


def test_state_is_cheap_and_follows_the_epoch() -> None:
    source, target = lengths_like_multi30k(300_000)
    sampler = TokenBudgetBatchSampler(source, target)
    first = sampler.state_dict()
    start = time.perf_counter()
    for done in range(300):
        # Fixed but for the position.
        assert sampler.state_dict(next_batch=done) == first | {"next_batch": done}
    # Planning the epoch anew each time takes 300 x 30 ms.
    assert time.perf_counter() - start < 3
    sampler.set_epoch(1)
    assert sampler.state_dict()["fingerprint"] != first["fingerprint"]


@pytest.mark.parametrize("change", ["data", "budget", "seed", "position"])
def test_a_position_in_other_batches_is_refused(change: str) -> None:
    source, target = lengths_like_multi30k(500)
    state = TokenBudgetBatchSampler(
        source, target, max_source_tokens=400, max_target_tokens=400
    ).state_dict()
    if change == "data":
        source = source[::-1]
    if change == "position":
        state["next_batch"] = 10_000
    other = TokenBudgetBatchSampler(
        source,
        target,
        max_source_tokens=300 if change == "budget" else 400,
        max_target_tokens=400,
        seed=1 if change == "seed" else 0,
    )
    with pytest.raises(ValueError, match="same data, tokenizer, token budgets and seed"):
        other.load_state_dict(state)


def test_works_as_a_data_loaders_batch_sampler() -> None:
    source, target = lengths_like_multi30k(200)
    sampler = TokenBudgetBatchSampler(source, target, max_source_tokens=300, max_target_tokens=300)
    rows = Dataset.from_dict({"row": range(200)})
    loader: DataLoader[list[int]] = DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=lambda examples: [example["row"] for example in examples],
    )
    assert len(loader) == len(sampler)
    assert list(loader) == list(sampler)


def test_little_padding() -> None:
    source, target = lengths_like_multi30k(29_000)
    sampler = TokenBudgetBatchSampler(
        source, target, max_source_tokens=4096, max_target_tokens=4096
    )
    share = padding_share(sampler, source, target)
    assert 0 < share < 0.04
    in_order = [list(range(start, start + 200)) for start in range(0, 29_000, 200)]
    assert padding_share(in_order, source, target) > 0.4


def test_half_a_million_pairs_in_a_moment() -> None:
    random = np.random.default_rng(0)
    source = np.clip(random.lognormal(3.2, 0.6, 500_000).astype(int), 1, 250)
    target = np.clip((source * random.normal(1.05, 0.2, 500_000)).astype(int), 1, 250)
    start = time.perf_counter()
    count = sum(len(batch) for batch in TokenBudgetBatchSampler(source, target))
    # About 0.25 s alone; a Python loop over the pairs takes longer than this generous bound.
    assert time.perf_counter() - start < 3
    assert count == 500_000


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ([5, 60, 7], [5, 5, 5], {}, r"row 1: its source has 60 tokens.*max_source_tokens \(50\)"),
        ([5, 6, 7], [5, 5, 100_000], {}, r"row 2: its target has 100000 tokens.*max_length=50"),
        ([5, 6], [5], {}, "equally long"),
        ([], [], {}, "no examples"),
        ([5, 0], [5, 5], {}, r"row 1: source length \(0\)"),
        ([5], [5], {"max_sentences": 0}, r"max_sentences \(0\)"),
        ([5], [5], {"max_target_tokens": 0}, r"max_target_tokens \(0\)"),
    ],
)
def test_bad_lengths_and_bounds_are_named(
    source: list[int], target: list[int], options: dict[str, int], message: str
) -> None:
    options = {"max_source_tokens": 50, "max_target_tokens": 50} | options
    with pytest.raises(ValueError, match=message):
        TokenBudgetBatchSampler(source, target, **options)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    parts=st.integers(1, 9),
    data=st.data(),
)
def test_split_batch_shares_out_evenly(lengths: list[int], parts: int, data: st.DataObject) -> None:
    batch = data.draw(st.permutations(range(len(lengths))))
    pieces = split_batch(batch, parts, lengths)
    assert pieces == split_batch(batch, parts, np.array(lengths))
    assert len(pieces) == parts
    assert sorted(itertools.chain(*pieces)) == sorted(batch)
    assert sum(not piece for piece in pieces) == max(0, parts - len(batch))
    # Graham's bound for this rule, in a form that needs no optimum: no two loads differ by more
    # than the longest example.
    loads = [sum(lengths[row] for row in piece) for piece in pieces]
    assert max(loads) - min(loads) <= max(lengths)
    # Each piece keeps the order of the batch.
    place = {row: position for position, row in enumerate(batch)}
    for piece in pieces:
        assert piece == sorted(piece, key=place.__getitem__)


def test_split_batch_on_real_sizes_is_nearly_perfect() -> None:
    source, target = lengths_like_multi30k(29_000)
    batch = next(iter(TokenBudgetBatchSampler(source, target)))
    loads = [target[piece].sum() for piece in split_batch(batch, 8, target)]
    assert max(loads) / min(loads) < 1.01


def test_split_batch_counts_tokens_not_sentences() -> None:
    lengths = [1, 1, 9, 1, 1, 1, 1, 1, 1, 1]
    assert split_batch(range(10), 2, lengths) == [[2], [0, 1, 3, 4, 5, 6, 7, 8, 9]]


def test_split_batch_refuses_no_parts() -> None:
    with pytest.raises(ValueError, match=r"parts \(0\)"):
        split_batch([1], 0, [1, 1])


def examples_of(source: Sequence[int], target: Sequence[int]) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": [row] * source[row], "labels": [row] * target[row]}
        for row in range(len(source))
    ]


@pytest.mark.parametrize("shuffle", [True, False])
def test_stream_keeps_the_budget_and_every_example(shuffle: bool) -> None:
    source, target = lengths_like_multi30k(1_050)
    examples = examples_of(source.tolist(), target.tolist())

    def run(**options: int) -> list[list[int]]:
        stream = stream_batches(
            iter(examples),
            max_source_tokens=300,
            max_target_tokens=250,
            buffer_size=200,
            shuffle=shuffle,
            **options,
        )
        return [[example["labels"][0] for example in batch] for batch in stream]

    batches = run()
    assert sorted(itertools.chain(*batches)) == list(range(1_050))
    for batch in batches:
        assert len(batch) * source[batch].max() <= 300
        assert len(batch) * target[batch].max() <= 250
        # Nothing leaves the buffer that it came in.
        assert len({row // 200 for row in batch}) == 1
    assert run() == batches
    assert (run(seed=1) != batches) == shuffle
    assert (run(epoch=1) != batches) == shuffle
    assert max(len(batch) for batch in run(max_sentences=4)) == 4
    assert padding_share(batches, source, target) < 0.15


def test_stream_reads_no_further_than_its_buffer() -> None:
    source, target = lengths_like_multi30k(100)
    consumed = iter(examples_of(source.tolist(), target.tolist()))
    stream = stream_batches(consumed, max_source_tokens=100, max_target_tokens=100, buffer_size=30)
    next(stream)
    assert len(list(consumed)) == 70


def test_stream_names_the_place_of_an_example_over_the_budget() -> None:
    source, target = [5] * 25, [5] * 25
    target[23] = 99
    stream = stream_batches(
        examples_of(source, target), max_source_tokens=50, max_target_tokens=50, buffer_size=10
    )
    with pytest.raises(ValueError, match=r"row 23: its target has 99 tokens"):
        list(stream)
    with pytest.raises(ValueError, match=r"buffer_size \(0\)"):
        next(stream_batches([], buffer_size=0))


def test_padding_share_by_hand() -> None:
    # Lengths 2 and 4 fill 6 of 8 places; 3 fills its 3.
    assert padding_share([[0, 1], [2]], [2, 4, 3]) == pytest.approx(1 - 9 / 11)
    assert padding_share([[0, 1]], [2, 4], [1, 1]) == pytest.approx(1 - 8 / 10)
    assert padding_share([], [2]) == 0
