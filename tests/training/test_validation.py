"""Validation on one process; `test_processes.py` compares it with that on several."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator

from tests.training.tiny_run import DECODING, World, make_model
from tests.training.toy_task import make_toy_model, make_toys
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.translation import translate_texts
from vanilla_transformer.training.validation import validation_loss, whole_model


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_loss_is_per_token_whatever_the_batches(
    world: World, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, tokens = 0.0, 0
    model = make_model(dropout=0.1).eval()
    pairs, _ = encode_pairs(world.validation, world.tokenizer)
    for pair in pairs:
        labels = torch.tensor([pair["labels"]])
        with torch.no_grad():
            out = model(input_ids=torch.tensor([pair["input_ids"]]), labels=labels)
        rows = out.logits[0].double().log_softmax(-1)
        total -= float(rows[torch.arange(len(rows)), labels[0]].sum())
        tokens += len(rows)
    for budget in (1, 60, 8192):
        monkeypatch.setattr("vanilla_transformer.training.validation._LOSS_BATCH_TOKENS", budget)
        found = validation_loss(accelerator, model, world.task(), pairs)
        assert found == pytest.approx(total / tokens, rel=1e-6)


def test_loss_is_per_item_of_the_task_and_what_is_drawn_is_always_the_same(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, toys = make_toys()
    model = make_toy_model(dropout=0.1).eval()
    drawn = validation_loss(accelerator, model, task, toys)
    torch.manual_seed(5)
    assert validation_loss(accelerator, model, task, toys) == drawn
    monkeypatch.setattr(task, "draw", lambda batch, random: batch)
    total = 0.0
    for toy in toys:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([toy["input_ids"]])).logits[0].double()
        total -= float(logits.log_softmax(-1)[toy["labels"]])
    plain = validation_loss(accelerator, model, task, toys)
    assert plain == pytest.approx(total / len(toys), rel=1e-6)
    assert plain != drawn


def test_validating_leaves_the_model_in_training(accelerator: Accelerator) -> None:
    task, _ = make_toys()
    model = make_toy_model().train()
    found = task.validate(accelerator, model, TrainingSettings(sample_predictions=1))
    assert model.training
    assert list(found.scores) == ["loss", "perplexity", "accuracy"]
    assert len(found.samples) == 1
    assert dataclasses.replace(found, samples=()).scores == found.scores


def test_translating_compiles_nothing(world: World, accelerator: Accelerator) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a graph was compiled")

    model = make_model()
    model.compile(backend=refuse)
    with whole_model(accelerator, model) as whole:
        assert not whole.training
        found = translate_texts(accelerator, whole, world.tokenizer, ["A dog."], DECODING)
        assert len(found) == 1
