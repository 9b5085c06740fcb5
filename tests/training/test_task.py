"""What every task is given, and what the core asks of an encoded example."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.training.tiny_run import World, make_model
from tests.training.toy_task import make_toys
from vanilla_transformer.training.task import LOW_IS_GOOD, Task, Validation, example_lengths


def test_lengths_of_pairs(world: World) -> None:
    pairs = world.pairs
    source, target = example_lengths(pairs)
    np.testing.assert_array_equal(source, [len(ids) for ids in pairs["input_ids"]])
    np.testing.assert_array_equal(target, [len(ids) for ids in pairs["labels"]])
    # After a selection, indices and rows differ.
    source, _ = example_lengths(pairs.select([5, 3]))
    assert source.tolist() == [len(pairs[5]["input_ids"]), len(pairs[3]["input_ids"])]


@pytest.mark.parametrize("labels", [None, [0, 1, 1], [0.5, 1.0, 2.0]])
def test_examples_without_a_target_text_count_one_each(labels: list[Any] | None) -> None:
    columns: dict[str, Any] = {"input_ids": [[5, 2], [5, 6, 7, 2], [2]]}
    if labels is not None:
        columns["labels"] = labels
    source, target = example_lengths(Dataset.from_dict(columns))
    assert source.tolist() == [2, 4, 1]
    assert target.tolist() == [1, 1, 1]


def test_a_task_that_says_nothing_more_draws_nothing_and_stores_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, toys = make_toys()
    monkeypatch.delattr(type(task), "draw")
    batch = [dict(row) for row in toys.select(range(3))]
    random = np.random.default_rng(1)
    assert task.draw(batch, random) is batch
    assert random.random() == np.random.default_rng(1).random()
    model = make_model()
    before = model.generation_config.to_dict(), model.config.to_dict()
    task.prepare(model)
    assert (model.generation_config.to_dict(), model.config.to_dict()) == before
    piece = {"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    assert task.padding(piece) == (4, 6)


def test_a_task_must_say_what_it_is(world: World) -> None:
    with pytest.raises(TypeError, match=r"collate.*count.*idle.*validate"):
        Task()


def test_what_is_low_when_it_is_good() -> None:
    assert set(LOW_IS_GOOD) == {"loss", "perplexity"}
    assert Validation({"loss": 1.0}).samples == ()
