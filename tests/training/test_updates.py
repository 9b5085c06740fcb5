"""What each update sees: every example once an epoch, however many share it, exact to resume."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.training.tiny_run import World
from tests.training.toy_task import ToyTask, make_toys
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.task import Task
from vanilla_transformer.training.translation import TranslationTask
from vanilla_transformer.training.updates import Update, UpdateStream

SETTINGS = TrainingSettings(max_source_tokens=128, max_target_tokens=128)


@pytest.fixture(scope="module")
def pairs(world: World) -> Dataset:
    return world.pairs.select(range(60))


@pytest.fixture(scope="module")
def task(world: World) -> Task:
    return world.task()


def sentences(update: Update) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Source and target of every pair that teaches something, as they were before padding."""
    found = []
    for piece in update.pieces:
        rows = zip(piece["input_ids"], piece["attention_mask"], piece["labels"], strict=True)
        for ids, mask, labels in rows:
            if (labels != -100).any():
                target = labels[labels != -100]
                found.append((tuple(ids[mask == 1].tolist()), tuple(target.tolist())))
    return found


def take(stream: UpdateStream, count: int) -> list[Update]:
    return list(itertools.islice(stream, count))


def assert_equal(found: list[Update], expected: list[Update]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.rows, one.items) == (other.rows, other.items)
        for piece, like in zip(one.pieces, other.pieces, strict=True):
            assert piece.keys() == like.keys()
            assert all(torch.equal(piece[name], like[name]) for name in piece)


@pytest.mark.parametrize(("processes", "pieces"), [(1, 1), (2, 1), (3, 2), (7, 3)])
def test_every_pair_comes_once_an_epoch_however_many_share_it(
    pairs: Dataset, task: Task, processes: int, pieces: int
) -> None:
    settings = dataclasses.replace(SETTINGS, accumulation_steps=pieces)
    streams = [
        UpdateStream(pairs, task, settings, process_index=i, num_processes=processes)
        for i in range(processes)
    ]
    epochs = [take(stream, 2 * len(stream)) for stream in streams]
    alone = UpdateStream(pairs, task, SETTINGS)
    everything = sorted((tuple(pair["input_ids"]), tuple(pair["labels"])) for pair in pairs)
    seen = []
    for number, (whole, *shares) in enumerate(
        zip(take(alone, 2 * len(alone)), *epochs, strict=True)
    ):
        together = sorted(itertools.chain.from_iterable(map(sentences, shares)))
        assert together == sorted(sentences(whole))
        seen += together
        for share in shares:
            # As many backward passes on every process, or one would wait for ever.
            assert len(share.pieces) == pieces
            assert share.items == sum(len(target) for _, target in together)
            assert share.rows == whole.rows
        if number == len(alone) - 1:
            assert sorted(seen) == everything
    assert sorted(seen) == sorted(everything * 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stream_goes_on_exactly_where_its_state_was_taken(
    pairs: Dataset, task: Task, workers: int, is_streamed: bool
) -> None:
    data: Dataset | IterableDataset = pairs.to_iterable_dataset() if is_streamed else pairs
    settings = dataclasses.replace(SETTINGS, num_workers=workers)
    length = len(UpdateStream(pairs, task, settings))
    straight = take(UpdateStream(data, task, settings), 2 * length + 3)
    # In mid-epoch, at its very end, in the next one.
    for done in (1, length - 1, length, length + 2):
        stream = UpdateStream(data, task, settings)
        take(stream, done)
        state = stream.state_dict()
        assert stream.epoch == pytest.approx(
            done // length if is_streamed else done / length, abs=1
        )
        other = UpdateStream(data, task, settings)
        other.load_state_dict(state)
        assert_equal(take(other, 2 * length + 3 - done), straight[done:])


@examples(max_examples=25, deadline=None)
@given(done=st.integers(0, 60), more=st.integers(1, 10), processes=st.integers(1, 3))
def test_any_position_resumes(
    pairs: Dataset,
    task: Task,
    done: int,
    more: int,
    processes: int,
) -> None:
    place = {"process_index": processes - 1, "num_processes": processes}
    stream = UpdateStream(pairs, task, SETTINGS, **place)
    take(stream, done)
    other = UpdateStream(pairs, task, SETTINGS, **place)
    other.load_state_dict(stream.state_dict())
    assert_equal(take(other, more), take(stream, more))


def test_the_state_of_other_data_is_refused(pairs: Dataset, task: Task) -> None:
    stream = UpdateStream(pairs, task, SETTINGS)
    take(stream, 3)
    for changed in (
        UpdateStream(pairs.select(range(40)), task, SETTINGS),
        UpdateStream(pairs, task, dataclasses.replace(SETTINGS, seed=2)),
        UpdateStream(pairs, task, dataclasses.replace(SETTINGS, max_source_tokens=100)),
    ):
        with pytest.raises(ValueError, match="belongs to other batches"):
            changed.load_state_dict(stream.state_dict())
    # Accumulation and processes divide the same batches.
    UpdateStream(
        pairs, task, dataclasses.replace(SETTINGS, accumulation_steps=2), num_processes=4
    ).load_state_dict(stream.state_dict())


def test_a_stream_that_changed_on_the_way_is_refused(
    world: World, pairs: Dataset, task: Task
) -> None:
    stream = UpdateStream(pairs.to_iterable_dataset(), task, SETTINGS)
    take(stream, 5)
    state = stream.state_dict()
    for changed, message in (
        (world.pairs.select(range(40, 100)), "not those that the run was trained on"),
        (pairs.select(range(4)), "was trained on 5"),
    ):
        other = UpdateStream(changed.to_iterable_dataset(), task, SETTINGS)
        other.load_state_dict(state)
        with pytest.raises(ValueError, match=message):
            take(other, 1)
    with pytest.raises(ValueError, match="with streamed data"):
        UpdateStream(pairs, task, SETTINGS).load_state_dict(state)
    mapped = UpdateStream(pairs, task, SETTINGS).state_dict()
    with pytest.raises(ValueError, match="without streamed data"):
        UpdateStream(pairs.to_iterable_dataset(), task, SETTINGS).load_state_dict(mapped)


def test_padding_share_is_that_of_the_tensors(pairs: Dataset, task: Task) -> None:
    for update in take(UpdateStream(pairs, task, SETTINGS), 3):
        [piece] = update.pieces
        filled = int((piece["input_ids"] != 0).sum() + (piece["labels"] != -100).sum())
        padded = piece["input_ids"].numel() + piece["labels"].numel()
        assert update.padding_share == pytest.approx(1 - filled / padded)


def test_preparing_batches_draws_no_random_number(pairs: Dataset, task: Task) -> None:
    def state() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()

    before = state()
    take(UpdateStream(pairs, task, SETTINGS), 5)
    assert state() == before


def test_an_unknown_number_of_updates_is_no_length(pairs: Dataset, task: Task) -> None:
    stream = UpdateStream(pairs.to_iterable_dataset(), task, SETTINGS)
    with pytest.raises(TypeError, match="no known number of updates"):
        len(stream)


# What the task decides


def test_examples_without_a_column_of_the_task_are_refused(world: World) -> None:
    task = world.task()
    pairs = world.pairs.remove_columns("labels")
    message = (
        "the examples lack the columns labels that TranslationTask needs; encode them for training"
    )
    for data in (pairs, pairs.to_iterable_dataset()):
        with pytest.raises(ValueError, match=message):
            UpdateStream(data, task, SETTINGS)


def test_items_are_counted_by_the_task_over_the_whole_batch(world: World) -> None:
    task, toys = make_toys()
    alone = UpdateStream(toys, task, SETTINGS)
    for processes in (1, 3):
        streams = [
            UpdateStream(toys, task, SETTINGS, process_index=i, num_processes=processes)
            for i in range(processes)
        ]
        seen = 0
        for shares in zip(*(take(stream, len(alone)) for stream in streams), strict=True):
            assert {share.items for share in shares} == {len(shares[0].rows)}
            # The rest are idle ones, which fill up what has nothing to do.
            labels = torch.cat([piece["labels"] for share in shares for piece in share.pieces])
            assert int((labels != -100).sum()) == shares[0].items
            seen += shares[0].items
        assert seen == len(toys) == 90
    # Columns that the task does not name stay where they are.
    assert take(alone, 1)[0].pieces[0].keys() == {"input_ids", "attention_mask", "labels"}


def test_padding_is_counted_by_the_task(world: World) -> None:
    task, toys = make_toys()
    [update] = take(UpdateStream(toys, task, SETTINGS), 1)
    [piece] = update.pieces
    filled = int(piece["attention_mask"].sum())
    assert update.padding_share == pytest.approx(1 - filled / piece["input_ids"].numel())


def test_the_budget_of_targets_is_one_of_examples_where_there_are_none(world: World) -> None:
    task, toys = make_toys()
    stream = UpdateStream(toys, task, dataclasses.replace(SETTINGS, max_target_tokens=4))
    sizes = [update.items for update in take(stream, len(stream))]
    assert max(sizes) == 4
    assert sum(sizes) == 90


class ScribbleTask(TranslationTask):
    """Writes a number of its own into the source of every pair."""

    def draw(
        self, batch: list[dict[str, Any]], random: np.random.Generator
    ) -> list[dict[str, Any]]:
        numbers = random.integers(1000, 2**31, len(batch)).tolist()
        return [
            {**pair, "input_ids": [number, *pair["input_ids"][1:]]}
            for number, pair in zip(numbers, batch, strict=True)
        ]


@pytest.fixture(scope="module")
def scribbles(world: World) -> ScribbleTask:
    return ScribbleTask(world.tokenizer, world.validation)


def drawn(*shares: Update) -> list[int]:
    """The numbers of `ScribbleTask` in all shares of an update, in any order."""
    return sorted(source[0] for share in shares for source, _ in sentences(share))


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("processes", "pieces"), [(2, 1), (3, 2)])
def test_what_is_drawn_is_the_same_however_many_share_it(
    pairs: Dataset, scribbles: Task, processes: int, pieces: int, is_streamed: bool
) -> None:
    data = pairs.to_iterable_dataset() if is_streamed else pairs
    settings = dataclasses.replace(SETTINGS, accumulation_steps=pieces)
    shares = [
        take(UpdateStream(data, scribbles, settings, process_index=i, num_processes=processes), 30)
        for i in range(processes)
    ]
    whole = take(UpdateStream(data, scribbles, SETTINGS), 30)
    for expected, *parts in zip(whole, *shares, strict=True):
        assert drawn(*parts) == drawn(expected)
    # Nowhere twice: in the next batch and in the next epoch others are drawn.
    everything = [number for update in whole for number in drawn(update)]
    assert len(everything) > len(pairs)
    assert len(set(everything)) == len(everything)


def test_what_is_drawn_depends_on_the_seed_of_the_run(pairs: Dataset, scribbles: Task) -> None:
    def first(seed: int) -> set[int]:
        settings = dataclasses.replace(SETTINGS, seed=seed, max_source_tokens=10_000)
        settings = dataclasses.replace(settings, max_target_tokens=10_000)
        return set(drawn(*take(UpdateStream(pairs, scribbles, settings), 1)))

    assert first(1) == first(1)
    assert first(1).isdisjoint(first(2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_is_drawn_is_the_same_after_a_resumption(
    pairs: Dataset, scribbles: Task, workers: int, is_streamed: bool
) -> None:
    data = pairs.to_iterable_dataset() if is_streamed else pairs
    length = len(UpdateStream(pairs, scribbles, SETTINGS))
    straight = take(UpdateStream(data, scribbles, SETTINGS), length + 4)
    settings = dataclasses.replace(SETTINGS, num_workers=workers)
    # In mid-epoch, at its end, in the next one.
    for done in (3, length, length + 2):
        stream = UpdateStream(data, scribbles, SETTINGS)
        take(stream, done)
        other = UpdateStream(data, scribbles, settings)
        other.load_state_dict(stream.state_dict())
        assert_equal(take(other, length + 4 - done), straight[done:])


def test_a_stream_without_target_texts_is_refused_by_name(pairs: Dataset) -> None:
    toy = ToyTask(pairs)
    with pytest.raises(ValueError, match="ToyTask cannot learn from streamed data"):
        UpdateStream(pairs.to_iterable_dataset(), toy, SETTINGS)
