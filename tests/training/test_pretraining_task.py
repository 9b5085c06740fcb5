"""Masked language modelling as a run learns it: blocks, masks, loss and whole runs."""

import dataclasses
import pickle
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.training import tiny_tasks
from tests.training.tiny_run import assert_same_run, read_log
from tests.training.tiny_tasks import SETTINGS, Case, tokenizer
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.pretraining import MaskedLanguageModelingTask, encode_blocks
from vanilla_transformer.training.trainer import train_with_trainer
from vanilla_transformer.training.updates import Share, UpdateStream

# Of tokenizers made here: <pad>, <s>, </s>, <unk>, <mask>.
NUM_SPECIAL, END, MASK = 5, 2, 4


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def case() -> Case:
    return tiny_tasks.masks()


@pytest.fixture(scope="module")
def model(case: Case) -> PreTrainedModel:
    model = case.model(0.5).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


# ------------------------------------------------------------------------------------- the blocks


@pytest.mark.parametrize("num_proc", [None, 2])
def test_blocks_hold_every_token_once_and_end_in_the_end(num_proc: int | None) -> None:
    texts = [*tiny_tasks.questions()["context"][:7], "", "One.", "One </s> two."]
    ids = [tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]
    # A block that is exactly full, and one more by a single token.
    full = tokenizer().decode(ids[0][:19])
    assert len(tokenizer()(full)["input_ids"]) == 20
    texts, ids = [*texts, full], [*ids, ids[0][:19]]
    blocks = encode_blocks(
        Dataset.from_dict({"text": texts, "id": range(len(texts))}),
        tokenizer(),
        max_length=20,
        num_proc=num_proc,
    )
    assert blocks.column_names == ["input_ids"]
    assert max(map(len, blocks["input_ids"])) == 20
    assert min(map(len, blocks["input_ids"])) >= 2
    for block in blocks["input_ids"]:
        assert [token for token in block if token < NUM_SPECIAL] == [END]
        assert block[-1] == END
    assert [token for block in blocks["input_ids"] for token in block[:-1]] == list(chain(*ids))
    assert len(blocks) == sum(-(-len(one) // 19) for one in ids)


def test_blocks_need_room_and_an_end() -> None:
    texts = Dataset.from_dict({"text": ["A text."]})
    with pytest.raises(ValueError, match=r"max_length \(1\) must be at least 2"):
        encode_blocks(texts, tokenizer(), max_length=1)
    endless = pickle.loads(pickle.dumps(tokenizer()))
    endless.eos_token = None
    with pytest.raises(ValueError, match="no </s>"):
        encode_blocks(texts, endless)


# -------------------------------------------------------------------------------------- the masks


def draw(task: MaskedLanguageModelingTask, blocks: list[list[int]], seed: int = 0) -> Any:
    batch = [{"input_ids": block} for block in blocks]
    before = pickle.dumps(batch)
    drawn = task.draw(batch, np.random.default_rng(seed))
    assert pickle.dumps(batch) == before
    return drawn


def test_masks_are_those_of_bert(case: Case) -> None:
    random = np.random.default_rng(5)
    size = len(tokenizer())
    blocks = [[*random.integers(NUM_SPECIAL, size, 200).tolist(), END] for _ in range(600)]
    drawn = draw(case.task, blocks)
    kinds = {"masked": 0, "same": 0, "other": 0}
    others = []
    for block, one in zip(blocks, drawn, strict=True):
        assert set(one) == {"input_ids", "labels"}
        assert all(type(token) is int for token in one["input_ids"] + one["labels"])
        # 15 % of 200, exactly.
        assert len(block) - one["labels"].count(-100) == 30
        for given, found, label in zip(block, one["input_ids"], one["labels"], strict=True):
            if label == -100:
                assert found == given
                continue
            assert label == given
            assert given >= NUM_SPECIAL
            kind = "masked" if found == MASK else "same" if found == given else "other"
            kinds[kind] += 1
            if kind == "other":
                others.append(found)
    count = sum(kinds.values())
    assert count == 600 * 30
    # Of the 10 % that any token replaces, one in `size` comes out the same.
    for kind, share in (("masked", 0.8), ("same", 0.1), ("other", 0.1)):
        assert abs(kinds[kind] - share * count) < 4 * np.sqrt(share * (1 - share) * count), kind
    assert min(others) >= NUM_SPECIAL
    assert max(others) < size
    counts = np.bincount(others, minlength=size)[NUM_SPECIAL:]
    expected = len(others) / len(counts)
    # Chi squared, more than four standard deviations off.
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - len(counts)) < 4.5 * np.sqrt(2 * len(counts))
    # Every place is as likely as another.
    places = np.sum([[label != -100 for label in one["labels"]] for one in drawn], axis=0)
    assert places[-1] == 0
    assert abs(places[:-1] - 90).max() < 5 * np.sqrt(600 * 0.15 * 0.85)


def test_each_block_has_something_to_guess_and_no_special_token(case: Case) -> None:
    blocks = [[NUM_SPECIAL + row, END] for row in range(50)]
    blocks += [[1, 50, END, 60, END, 0, 0] for _ in range(50)]
    for one, block in zip(draw(case.task, blocks), blocks, strict=True):
        guessed = [place for place, label in enumerate(one["labels"]) if label != -100]
        assert len(guessed) == 1
        assert block[guessed[0]] >= NUM_SPECIAL
        assert [one["input_ids"][place] for place, token in enumerate(block) if token < 5] == [
            token for token in block if token < 5
        ]
    nothing = draw(case.task, [[1, END]])
    assert nothing == [{"input_ids": [1, END], "labels": [-100, -100]}]


@pytest.mark.parametrize(("share", "expected"), [(0.15, 3), (0.5, 10), (1.0, 20), (0.01, 1)])
def test_the_share_is_kept(case: Case, share: float, expected: int) -> None:
    task = MaskedLanguageModelingTask(tokenizer(), case.task.blocks, masked_share=share)
    drawn = draw(task, [[*range(10, 30), END]] * 3)
    assert task.count(drawn) == 3 * expected


def test_masks_follow_from_the_seed(case: Case) -> None:
    blocks = list(case.examples["input_ids"])
    assert draw(case.task, blocks) == draw(case.task, blocks)
    assert draw(case.task, blocks) != draw(case.task, blocks, seed=1)


def test_masks_are_new_in_each_epoch_and_after_resuming_the_same(case: Case) -> None:
    settings = dataclasses.replace(SETTINGS, max_source_tokens=320)
    examples = case.examples.select(range(30))
    stream = UpdateStream(examples, case.task, settings)
    epochs: list[dict[int, list[int]]] = [{}, {}]
    seen, states = [], []
    for number, update in zip(range(2 * len(stream)), stream, strict=False):
        states.append(stream.state_dict())
        seen.append(update)
        (piece,) = update.pieces
        for row, ids in zip(update.rows, piece["input_ids"].tolist(), strict=True):
            epochs[number // len(stream)][row] = ids[: len(examples[row]["input_ids"])]
    first, second = epochs
    assert first.keys() == second.keys() == set(range(30))
    assert sum(first[row] != second[row] for row in first) > 20
    resumed = UpdateStream(examples, case.task, settings)
    resumed.load_state_dict(states[2])
    update = next(iter(resumed))
    assert update.rows == seen[3].rows
    assert torch.equal(update.pieces[0]["input_ids"], seen[3].pieces[0]["input_ids"])
    assert torch.equal(update.pieces[0]["labels"], seen[3].pieces[0]["labels"])


def test_what_cannot_be_masked_is_refused(case: Case) -> None:
    for share in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="masked_share"):
            MaskedLanguageModelingTask(tokenizer(), case.task.blocks, masked_share=share)
    with pytest.raises(ValueError, match="no block of text to validate on"):
        MaskedLanguageModelingTask(tokenizer(), case.task.blocks.select([]))
    maskless = pickle.loads(pickle.dumps(tokenizer()))
    maskless.mask_token = None
    with pytest.raises(ValueError, match="no <mask>"):
        MaskedLanguageModelingTask(maskless, case.task.blocks)


# --------------------------------------------------------------------------------------- the loss


@torch.no_grad()
def by_hand(model: PreTrainedModel, block: dict[str, Any]) -> tuple[float, int, int]:
    """Of one masked block by itself: its loss summed, tokens guessed right, and all."""
    logits = model(input_ids=torch.tensor([block["input_ids"]])).logits[0].double()
    places = [place for place, label in enumerate(block["labels"]) if label != -100]
    labels = [block["labels"][place] for place in places]
    logs = F.log_softmax(logits, dim=-1)
    right = sum(
        int(logits[place].argmax()) == label for place, label in zip(places, labels, strict=True)
    )
    total = -sum(float(logs[place, label]) for place, label in zip(places, labels, strict=True))
    return total, right, len(places)


@pytest.mark.parametrize(("processes", "steps"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 4)])
def test_the_loss_of_an_update_is_the_mean_over_masked_tokens(
    case: Case, model: PreTrainedModel, processes: int, steps: int
) -> None:
    batch = list(case.examples.select(range(9)))
    drawn = case.task.draw(batch, np.random.default_rng((1, 2, 3)))
    sums = [by_hand(model, block) for block in drawn]
    items = sum(one[2] for one in sums)
    losses = []
    for process in range(processes):
        update = Share(case.task, steps, process, processes).take(batch, (1, 2, 3))
        assert update.items == items
        for piece in update.pieces:
            losses.append(model(**piece, num_items_in_batch=update.items).loss.item())
    assert sum(losses) == pytest.approx(sum(one[0] for one in sums) / items, abs=1e-5)
    assert losses.count(0.0) == max(0, processes * steps - len(batch))


def test_an_idle_block_gives_no_loss_and_no_gradient(case: Case) -> None:
    model = case.model(0.1).train()
    for example in (case.examples[0], draw(case.task, [case.examples[0]["input_ids"]])[0]):
        idle = case.task.idle(example)
        assert case.task.count([idle]) == 0
        model.zero_grad()
        loss = model(**case.task.collate([idle]), num_items_in_batch=17).loss
        loss.backward()
        assert loss.item() == 0.0
        for name, parameter in model.named_parameters():
            # One without a gradient would let DistributedDataParallel wait for ever.
            assert parameter.grad is not None, name
            assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_collated_blocks_are_padded_to_the_longest(case: Case) -> None:
    piece = case.task.collate(draw(case.task, [[10, 11, 12, END], [20, END]]))
    assert piece["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert piece["input_ids"][1, 2:].tolist() == [0, 0]
    assert piece["labels"][1, 1:].tolist() == [-100] * 3
    assert piece["labels"][1, 0] == 20
    assert case.task.padding(piece) == (6, 8)


def test_a_task_goes_to_other_processes(case: Case) -> None:
    copy = pickle.loads(pickle.dumps(case.task))
    blocks = list(case.examples["input_ids"])
    assert draw(copy, blocks) == draw(case.task, blocks)


# ------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("examples", [7, None])
def test_validation_is_what_each_block_by_itself_gives(
    case: Case,
    model: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    examples: int | None,
) -> None:
    blocks = case.task.blocks
    batches: list[list[dict[str, Any]]] = []
    original = case.task.draw

    def watch(batch: Any, random: Any) -> Any:
        batches.append(original(batch, random))
        return batches[-1]

    monkeypatch.setattr(case.task, "draw", watch)
    monkeypatch.setattr("vanilla_transformer.training.validation._LOSS_BATCH_TOKENS", 100)
    settings = dataclasses.replace(SETTINGS, validation_examples=examples, sample_predictions=0)
    model.train()
    found = case.task.validate(Accelerator(), model, settings)
    assert model.training
    model.eval()
    assert len(batches) > 2
    drawn = list(chain(*batches))
    assert len(drawn) == (examples or len(blocks))
    total, right, count = np.sum([by_hand(model, block) for block in drawn], axis=0)
    assert found.scores["loss"] == pytest.approx(total / count, abs=1e-5)
    assert found.scores["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)
    assert found.scores["accuracy"] == pytest.approx(100 * right / count)
    assert found.samples == ()
    # Always the same masks.
    assert case.task.validate(Accelerator(), model, settings) == found


def test_accuracy_is_of_what_the_model_guesses(case: Case, model: PreTrainedModel) -> None:
    """A model that repeats what it reads is right where a token was left as it was."""
    blocks = Dataset.from_dict({"input_ids": [[*range(10, 110), END]] * 20})
    task = MaskedLanguageModelingTask(tokenizer(), blocks, masked_share=0.5)
    echo = case.model().eval()

    def repeat(module: Any, arguments: Any, inputs: dict[str, Any], output: Any) -> Any:
        output.logits = F.one_hot(inputs["input_ids"], len(tokenizer())).float()
        return output

    echo.register_forward_hook(repeat, with_kwargs=True)
    settings = dataclasses.replace(SETTINGS, validation_examples=None, sample_predictions=2)
    found = task.validate(Accelerator(), echo, settings)
    # A tenth of 1,000 tokens.
    assert 6 < found.scores["accuracy"] < 14
    given, expected, predicted = found.samples[0]
    assert len(expected.split(" / ")) == len(predicted.split(" / ")) == 20
    assert given.count("<mask>") == predicted.split(" / ").count("<mask>") > 10
    assert "<mask>" not in expected


# ------------------------------------------------------------------------------------- whole runs


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_log(run_dir) if row["kind"] == "train"]


def test_both_drivers_train_the_same_and_a_broken_run_goes_on(case: Case, tmp_path: Path) -> None:
    for name, driver in (("loop", train), ("trainer", train_with_trainer)):
        whole, broken = tmp_path / name, tmp_path / f"broken-{name}"
        result = case.train(whole, driver)
        assert set(result.validation) == {"loss", "accuracy", "perplexity"}
        model = case.model(0.1)
        tiny_tasks.break_at(model, 6)
        with pytest.raises(tiny_tasks.ToldToFailError):
            case.train(broken, driver, model=model)
        case.train(broken, driver, model=tiny_tasks.forget(case.model(0.1)), resume=True)
        assert_same_run(broken, whole)
    assert_same_run(tmp_path / "trainer", tmp_path / "loop")
    found = losses(tmp_path / "loop")
    assert len(found) == SETTINGS.updates
    assert np.mean(found[-2:]) < found[0] - 0.5


def test_pieces_change_nothing(case: Case, tmp_path: Path) -> None:
    options = {"dropout": 0.0, "updates": 5}
    case.train(tmp_path / "one", **options)
    case.train(tmp_path / "three", accumulation_steps=3, **options)
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    tiny_tasks.compare_processes(tmp_path, "masks")
