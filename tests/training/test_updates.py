"""What each update sees: every pair once an epoch, however many share it, exact to resume."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.updates import Update, UpdateStream, pair_lengths

SETTINGS = TrainingSettings(max_source_tokens=128, max_target_tokens=128)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    text = generate_translation("train", 50)
    return train_tokenizer((side for pair in text for side in pair.values()), 300)


@pytest.fixture(scope="module")
def pairs(tokenizer: PreTrainedTokenizerBase) -> Iterator[Dataset]:
    datasets.disable_progress_bars()
    yield encode_pairs(Dataset.from_list(list(generate_translation("train", 60))), tokenizer)[0]
    datasets.enable_progress_bars()


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
        assert (one.rows, one.target_tokens) == (other.rows, other.target_tokens)
        for piece, like in zip(one.pieces, other.pieces, strict=True):
            assert piece.keys() == like.keys()
            assert all(torch.equal(piece[name], like[name]) for name in piece)


@pytest.mark.parametrize(("processes", "pieces"), [(1, 1), (2, 1), (3, 2), (7, 3)])
def test_every_pair_comes_once_an_epoch_however_many_share_it(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, processes: int, pieces: int
) -> None:
    settings = dataclasses.replace(SETTINGS, accumulation_steps=pieces)
    streams = [
        UpdateStream(pairs, tokenizer, settings, process_index=i, num_processes=processes)
        for i in range(processes)
    ]
    epochs = [take(stream, 2 * len(stream)) for stream in streams]
    alone = UpdateStream(pairs, tokenizer, SETTINGS)
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
            assert share.target_tokens == sum(len(target) for _, target in together)
            assert share.rows == whole.rows
        if number == len(alone) - 1:
            assert sorted(seen) == everything
    assert sorted(seen) == sorted(everything * 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stream_goes_on_exactly_where_its_state_was_taken(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, workers: int, is_streamed: bool
) -> None:
    data: Dataset | IterableDataset = pairs.to_iterable_dataset() if is_streamed else pairs
    settings = dataclasses.replace(SETTINGS, num_workers=workers)
    length = len(UpdateStream(pairs, tokenizer, settings))
    straight = take(UpdateStream(data, tokenizer, settings), 2 * length + 3)
    # In mid-epoch, at its very end, in the next one.
    for done in (1, length - 1, length, length + 2):
        stream = UpdateStream(data, tokenizer, settings)
        take(stream, done)
        state = stream.state_dict()
        assert stream.epoch == pytest.approx(
            done // length if is_streamed else done / length, abs=1
        )
        other = UpdateStream(data, tokenizer, settings)
        other.load_state_dict(state)
        assert_equal(take(other, 2 * length + 3 - done), straight[done:])


@examples(max_examples=25, deadline=None)
@given(done=st.integers(0, 60), more=st.integers(1, 10), processes=st.integers(1, 3))
def test_any_position_resumes(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    done: int,
    more: int,
    processes: int,
) -> None:
    place = {"process_index": processes - 1, "num_processes": processes}
    stream = UpdateStream(pairs, tokenizer, SETTINGS, **place)
    take(stream, done)
    other = UpdateStream(pairs, tokenizer, SETTINGS, **place)
    other.load_state_dict(stream.state_dict())
    assert_equal(take(other, more), take(stream, more))


def test_the_state_of_other_data_is_refused(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    stream = UpdateStream(pairs, tokenizer, SETTINGS)
    take(stream, 3)
    for changed in (
        UpdateStream(pairs.select(range(40)), tokenizer, SETTINGS),
        UpdateStream(pairs, tokenizer, dataclasses.replace(SETTINGS, seed=2)),
        UpdateStream(pairs, tokenizer, dataclasses.replace(SETTINGS, max_source_tokens=100)),
    ):
        with pytest.raises(ValueError, match="belongs to other batches"):
            changed.load_state_dict(stream.state_dict())
    # Accumulation and processes divide the same batches.
    UpdateStream(
        pairs, tokenizer, dataclasses.replace(SETTINGS, accumulation_steps=2), num_processes=4
    ).load_state_dict(stream.state_dict())


def test_a_stream_that_changed_on_the_way_is_refused(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    stream = UpdateStream(pairs.to_iterable_dataset(), tokenizer, SETTINGS)
    take(stream, 5)
    state = stream.state_dict()
    for changed, message in (
        (pairs.select(range(59, -1, -1)), "not those that the run was trained on"),
        (pairs.select(range(4)), "was trained on 5"),
    ):
        other = UpdateStream(changed.to_iterable_dataset(), tokenizer, SETTINGS)
        other.load_state_dict(state)
        with pytest.raises(ValueError, match=message):
            take(other, 1)
    with pytest.raises(ValueError, match="with streamed data"):
        UpdateStream(pairs, tokenizer, SETTINGS).load_state_dict(state)
    mapped = UpdateStream(pairs, tokenizer, SETTINGS).state_dict()
    with pytest.raises(ValueError, match="without streamed data"):
        UpdateStream(pairs.to_iterable_dataset(), tokenizer, SETTINGS).load_state_dict(mapped)


def test_padding_share_is_that_of_the_tensors(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    for update in take(UpdateStream(pairs, tokenizer, SETTINGS), 3):
        [piece] = update.pieces
        filled = int((piece["input_ids"] != 0).sum() + (piece["labels"] != -100).sum())
        padded = piece["input_ids"].numel() + piece["labels"].numel()
        assert update.padding_share == pytest.approx(1 - filled / padded)


def test_preparing_batches_draws_no_random_number(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    def state() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()

    before = state()
    take(UpdateStream(pairs, tokenizer, SETTINGS), 5)
    assert state() == before


def test_lengths_of_pairs(pairs: Dataset) -> None:
    source, target = pair_lengths(pairs)
    np.testing.assert_array_equal(source, [len(ids) for ids in pairs["input_ids"]])
    np.testing.assert_array_equal(target, [len(ids) for ids in pairs["labels"]])
    # After a selection, indices and rows differ.
    source, _ = pair_lengths(pairs.select([5, 3]))
    assert source.tolist() == [len(pairs[5]["input_ids"]), len(pairs[3]["input_ids"])]


def test_an_unknown_number_of_updates_is_no_length(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    stream = UpdateStream(pairs.to_iterable_dataset(), tokenizer, SETTINGS)
    with pytest.raises(TypeError, match="no known number of updates"):
        len(stream)
