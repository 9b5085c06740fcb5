"""The training loop: what it writes, what it computes, and how it ends, goes on and fails."""

import dataclasses
import errno
import itertools
import json
import math
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.training.tiny_run import World, make_model, make_world, read_log
from tests.training.toy_task import ToyTask, make_toy_model, make_toys
from vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.data.batching import TokenBudgetBatchSampler
from vanilla_transformer.generation import DecodingSettings, translate
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.training import loop
from vanilla_transformer.training.checkpointing import find_checkpoints, verify_checkpoint
from vanilla_transformer.training.loop import TrainingResult, train
from vanilla_transformer.training.optimization import learning_rate
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.task import Task, Validation, example_lengths
from vanilla_transformer.training.translation import TranslationTask
from vanilla_transformer.training.updates import Update, UpdateStream

SETTINGS = TrainingSettings(
    updates=12,
    warmup=8,
    learning_rate_factor=0.5,
    max_source_tokens=256,
    max_target_tokens=256,
    max_gradient_norm=1.0,
    validate_every=5,
    validation_examples=4,
    checkpoint_every=4,
    average_last=2,
    log_every=3,
)
# Short outputs: an untrained model seldom ends a sentence, and validation would take the time.
DECODING = DecodingSettings(num_beams=3, length_penalty=0.7, max_tokens_over_source=2)


def run_training(
    world: World,
    run_dir: Path,
    settings: TrainingSettings = SETTINGS,
    *,
    model: VanillaTransformerForConditionalGeneration | None = None,
    pairs: Dataset | IterableDataset | None = None,
    **options: Any,
) -> TrainingResult:
    return train(
        make_model(dropout=0.1) if model is None else model,
        world.tokenizer,
        world.task(decoding=DECODING),
        world.pairs if pairs is None else pairs,
        run_dir,
        settings,
        **options,
    )


def read_times(run_dir: Path) -> list[dict[str, Any]]:
    """The log, the times too."""
    return [json.loads(line) for line in (run_dir / "training_log.jsonl").open(encoding="utf-8")]


class Finished(NamedTuple):
    run_dir: Path
    result: TrainingResult
    model: VanillaTransformerForConditionalGeneration


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One uninterrupted run, which tests must not change."""
    run_dir = tmp_path_factory.mktemp("loop") / "run"
    model = make_model(dropout=0.1)
    result = run_training(world, run_dir, model=model)
    return Finished(run_dir, result, model)


# What a run leaves behind


def test_log_has_both_kinds_of_line(finished: Finished) -> None:
    log = read_times(finished.run_dir)
    common = {"kind", "update", "epoch", "loss", "seconds"}
    training = [row for row in log if row["kind"] == "train"]
    validation = [row for row in log if row["kind"] == "validation"]
    assert [row["update"] for row in log] == [3, 5, 6, 9, 10, 12, 12]
    assert [row["update"] for row in training] == [3, 6, 9, 12]
    assert [row["update"] for row in validation] == [5, 10, 12]
    for row in training:
        assert row.keys() == common | {
            "learning_rate",
            "gradient_norm",
            "items_per_second",
            "padding_share",
        }
        assert 0 < row["padding_share"] < 0.5
        assert row["items_per_second"] > 0
        assert 0 < row["gradient_norm"] < 100
    assert [row["is_final"] for row in validation] == [False, False, True]
    for row in validation:
        assert row.keys() == common | {"perplexity", "bleu", "is_final"}
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert 0 <= row["bleu"] <= 100
    for before, after in itertools.pairwise(log):
        assert before["seconds"] <= after["seconds"]
        assert before["epoch"] <= after["epoch"]


def test_epochs_count_updates(world: World, finished: Finished) -> None:
    sampler = TokenBudgetBatchSampler(
        *example_lengths(world.pairs),
        max_source_tokens=SETTINGS.max_source_tokens,
        max_target_tokens=SETTINGS.max_target_tokens,
    )
    for row in read_log(finished.run_dir):
        assert row["epoch"] == pytest.approx(row["update"] / len(sampler))


def test_logged_rate_is_the_schedule(finished: Finished) -> None:
    for row in read_log(finished.run_dir):
        if row["kind"] == "train":
            expected = learning_rate(row["update"], 16, SETTINGS.warmup, 0.5)
            assert row["learning_rate"] == pytest.approx(expected, rel=1e-12)


def test_result_is_that_of_the_log(finished: Finished) -> None:
    validation = [row for row in read_times(finished.run_dir) if row["kind"] == "validation"]
    result = finished.result
    assert result.updates == 12
    assert result.seconds >= validation[-1]["seconds"] > 0
    assert result.items_per_second > 0
    scores = ("loss", "perplexity", "bleu")
    assert result.validation == {name: validation[-1][name] for name in scores}
    assert result.best["bleu"] == max(row["bleu"] for row in validation)


def test_tensorboard_has_every_scalar(finished: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.run_dir / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "validation/bleu"} <= set(events.Tags()["scalars"])
    logged = [row["loss"] for row in read_log(finished.run_dir) if row["kind"] == "train"]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(logged)
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 9, 12]


@pytest.mark.parametrize("directory", ["model", "best", "checkpoints/update-00000012"])
def test_saved_models_load_and_translate(finished: Finished, directory: str) -> None:
    path = finished.run_dir / directory
    model = AutoModelForSeq2SeqLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert isinstance(model, VanillaTransformerForConditionalGeneration)
    generation = model.generation_config
    assert generation.num_beams == DECODING.num_beams
    assert generation.length_penalty == DECODING.length_penalty
    assert generation.length_penalty_formula == "paper"
    assert generation.max_tokens_over_source == DECODING.max_tokens_over_source
    [[hypothesis]] = translate(model.eval(), tokenizer, ["The dog sleeps."], DECODING)
    assert isinstance(hypothesis.text, str)
    assert hypothesis.score is not None


def test_final_model_is_the_mean_of_the_last_checkpoints(finished: Finished) -> None:
    checkpoints = find_checkpoints(finished.run_dir)
    assert [path.name for path in checkpoints] == ["update-00000008", "update-00000012"]
    first, last = (load_file(path / "model.safetensors") for path in checkpoints)
    mean = load_file(finished.run_dir / "model" / "model.safetensors")
    assert mean.keys() == first.keys()
    for name, tensor in mean.items():
        expected = ((first[name].double() + last[name].double()) / 2).float()
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    assert any(not torch.equal(first[name], last[name]) for name in mean)
    # And the caller's model is that one.
    trained = finished.model.state_dict()
    for name, tensor in mean.items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=0)


def test_validation_loss_is_the_naive_one(world: World, finished: Finished) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(finished.run_dir / "model").eval()
    pairs, _ = encode_pairs(world.validation, world.tokenizer, max_length=None)
    total, tokens = 0.0, 0
    for pair in pairs:
        source, target = (torch.tensor([pair[name]]) for name in ("input_ids", "labels"))
        shifted = torch.cat([torch.tensor([[1]]), target[:, :-1]], dim=1)
        with torch.no_grad():
            logits = model(input_ids=source, decoder_input_ids=shifted).logits
        rows = logits[0].double().log_softmax(-1)
        total -= float(rows[torch.arange(len(rows)), target[0]].sum())
        tokens += len(rows)
    assert finished.result.validation["loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_training_learns(finished: Finished) -> None:
    losses = [row["loss"] for row in read_log(finished.run_dir) if row["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.2


# Going on


class Interruption:
    """Raises Ctrl-C in place of the update after `updates`."""

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self.compute_gradients = loop.Run.compute_gradients

    def __call__(self, run: loop.Run, update: Update) -> torch.Tensor:
        if run.progress.updates == self.updates:
            raise KeyboardInterrupt
        return self.compute_gradients(run, update)


def interrupt(
    world: World, run_dir: Path, monkeypatch: pytest.MonkeyPatch, updates: int, **options: Any
) -> None:
    with monkeypatch.context() as patch:
        interruption = Interruption(updates)
        patch.setattr(
            loop.Run, "compute_gradients", lambda self, update: interruption(self, update)
        )
        with pytest.raises(KeyboardInterrupt):
            run_training(world, run_dir, **options)


# Either way in mid-epoch, with checkpoints that fall between two lines of the log.
@pytest.mark.parametrize("updates", [5, 11])
def test_a_resumed_run_is_the_uninterrupted_one(
    world: World,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    updates: int,
) -> None:
    run_dir = tmp_path / "run"
    interrupt(world, run_dir, monkeypatch, updates)
    assert not (run_dir / "model").exists()
    torch.manual_seed(12345)
    # Its weights must come from the checkpoint.
    other = make_model(dropout=0.1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    result = run_training(world, run_dir, model=other, resume=True)

    assert read_log(run_dir) == read_log(finished.run_dir)
    assert result.validation == finished.result.validation
    assert result.best == finished.result.best
    for name in ("model", "best", "checkpoints/update-00000012"):
        expected, found = (
            load_file(folder / name / "model.safetensors") for folder in (finished.run_dir, run_dir)
        )
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)


def test_resuming_a_finished_run_trains_no_more(world: World, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, updates=4)
    run_dir = tmp_path / "run"
    first = run_training(world, run_dir, settings)
    weights = load_file(run_dir / "model" / "model.safetensors")
    again = run_training(world, run_dir, settings, resume=True)
    assert again.updates == 4
    assert [row["update"] for row in read_log(run_dir)] == [3, 4]
    assert again.validation == first.validation
    found = load_file(run_dir / "model" / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    more = run_training(world, run_dir, dataclasses.replace(settings, updates=6), resume=True)
    assert more.updates == 6


def test_a_new_run_needs_a_new_directory(world: World, finished: Finished, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("*")}
    with pytest.raises(ValueError, match="already holds a run"):
        run_training(world, finished.run_dir)
    assert {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("*")} == before
    with pytest.raises(ValueError, match="no whole checkpoint to resume"):
        run_training(world, tmp_path / "empty", resume=True)


def test_a_run_begun_anew_begins_its_log_anew(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ended after the first line of the log and before the first checkpoint.
    interrupt(world, tmp_path / "run", monkeypatch, 3)
    assert [row["update"] for row in read_log(tmp_path / "run")] == [3]
    run_training(world, tmp_path / "run", dataclasses.replace(SETTINGS, updates=3))
    assert [row["update"] for row in read_log(tmp_path / "run")] == [3, 3]


def test_resuming_with_another_architecture_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(world, tmp_path / "run", monkeypatch, 5)
    with pytest.raises(ValueError, match=r"fc1.weight is \(32, 16\).*architecture"):
        run_training(world, tmp_path / "run", model=make_model(0.1, d_ff=64), resume=True)


# One update


def first_losses(world: World, run_dir: Path, accumulation_steps: int) -> list[float]:
    settings = dataclasses.replace(
        SETTINGS, updates=6, log_every=1, accumulation_steps=accumulation_steps
    )
    run_training(world, run_dir, settings, model=make_model())
    return [row["loss"] for row in read_log(run_dir) if row["kind"] == "train"]


def test_accumulation_changes_nothing(world: World, tmp_path: Path) -> None:
    whole, halves, thirds = (first_losses(world, tmp_path / str(n), n) for n in (1, 2, 3))
    assert len(whole) == 6
    assert halves == pytest.approx(whole, rel=1e-6)
    assert thirds == pytest.approx(whole, rel=1e-6)


def test_more_pieces_than_sentences(world: World, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, updates=2, accumulation_steps=5, log_every=1)
    few = world.pairs.select(range(3))
    run_training(world, tmp_path / "run", settings, pairs=few)
    losses = [row["loss"] for row in read_log(tmp_path / "run") if row["kind"] == "train"]
    assert all(math.isfinite(loss) for loss in losses)


def test_loss_of_the_first_update_is_that_of_its_batch(world: World, tmp_path: Path) -> None:
    model = make_model()
    sampler = TokenBudgetBatchSampler(
        *example_lengths(world.pairs), max_source_tokens=256, max_target_tokens=256, seed=1
    )
    total, tokens = 0.0, 0
    smoothing, size = 0.1, len(world.tokenizer)
    for i in next(iter(sampler)):
        pair = world.pairs[i]
        labels = torch.tensor([pair["labels"]])
        shifted = torch.cat([torch.tensor([[1]]), labels[:, :-1]], dim=1)
        with torch.no_grad():
            logits = model.eval()(
                input_ids=torch.tensor([pair["input_ids"]]), decoder_input_ids=shifted
            ).logits
        rows = logits[0].double().log_softmax(-1)
        target = torch.full_like(rows, smoothing / size)
        target[torch.arange(len(rows)), labels[0]] += 1 - smoothing
        total -= float((target * rows).sum())
        tokens += len(rows)
    settings = dataclasses.replace(SETTINGS, updates=1, log_every=1)
    run_training(world, tmp_path / "run", settings, model=model)
    assert read_log(tmp_path / "run")[0]["loss"] == pytest.approx(total / tokens, rel=1e-5)


# Streams


def streamed(world: World, max_length: int = 100) -> IterableDataset:
    text = world.text.to_iterable_dataset()
    return encode_pairs(text, world.tokenizer, max_length=max_length)[0]


def test_streamed_training(world: World, tmp_path: Path) -> None:
    # More updates than an epoch has: the stream begins again.
    settings = dataclasses.replace(SETTINGS, updates=40, validate_every=40, checkpoint_every=20)
    result = run_training(world, tmp_path / "run", settings, pairs=streamed(world))
    assert result.updates == 40
    log = [row for row in read_log(tmp_path / "run") if row["kind"] == "train"]
    assert {0.0, 1.0} <= {row["epoch"] for row in log}
    assert log[-1]["loss"] < log[0]["loss"] - 0.2
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "model")


# In the first epoch and in the second.
@pytest.mark.parametrize("updates", [6, 26])
def test_streamed_training_resumes_exactly(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    settings = dataclasses.replace(SETTINGS, updates=30, validate_every=30)
    run_training(world, tmp_path / "straight", settings, pairs=streamed(world))
    broken = tmp_path / "broken"
    interrupt(world, broken, monkeypatch, updates, settings=settings, pairs=streamed(world))
    other = streamed(world, max_length=20)
    with pytest.raises(ValueError, match=r"not those that the run was trained on|the stream gave"):
        run_training(world, broken, settings, pairs=other, resume=True)
    with pytest.raises(ValueError, match="with streamed data; resume it so"):
        run_training(world, broken, settings, resume=True)
    run_training(world, broken, settings, pairs=streamed(world), resume=True)
    assert read_log(broken) == read_log(tmp_path / "straight")


def test_no_pair_to_train_on(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no example to train on"):
        run_training(world, tmp_path / "stream", pairs=streamed(world, max_length=2))
    with pytest.raises(ValueError, match="no examples to batch"):
        run_training(world, tmp_path / "mapped", pairs=world.pairs.select([]))


# Ends


def test_divergence_stops_with_the_batch_and_a_remedy(world: World, tmp_path: Path) -> None:
    # A checkpoint at every update: none may be made of weights that are no numbers.
    settings = dataclasses.replace(
        SETTINGS, learning_rate_factor=1e30, max_gradient_norm=None, checkpoint_every=1
    )
    with pytest.raises(FloatingPointError, match=r"update 2: .*lower\s+learning_rate_factor") as e:
        run_training(world, tmp_path / "run", settings)
    saved = tmp_path / "run" / "failed_update-00000002.json"
    assert str(saved) in str(e.value)
    stream = UpdateStream(world.pairs, world.task(), settings)
    _, second = itertools.islice(stream, 2)
    assert json.loads(saved.read_text("utf-8"))["rows"] == list(second.rows)
    assert not (tmp_path / "run" / "model").exists()
    [first] = find_checkpoints(tmp_path / "run")
    weights = load_file(first / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_leap_of_the_loss_stops_before_the_weights_change(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SETTINGS, updates=30, warmup=5, checkpoint_every=25)
    compute = loop.Run.compute_gradients

    def leaps(run: loop.Run, update: Update) -> torch.Tensor:
        loss = compute(run, update)
        return loss + 5 if run.progress.updates == 26 else loss

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "compute_gradients", leaps)
        with pytest.raises(FloatingPointError, match=r"update 27: .*failed_update-00000027"):
            run_training(world, tmp_path / "run", settings)
    allowed = dataclasses.replace(settings, max_loss_spike=None)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "compute_gradients", leaps)
        assert run_training(world, tmp_path / "run", allowed, resume=True).updates == 30


def test_out_of_memory_names_the_batch_and_the_remedy(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(VanillaTransformerForConditionalGeneration, "forward", full)
    with pytest.raises(RuntimeError, match=r"\d+ .*max_source_tokens.*accumulation_steps"):
        run_training(world, tmp_path / "run")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_a_signal_the_run_saves_and_goes_on_exactly(
    world: World,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: signal.Signals,
) -> None:
    run_dir = tmp_path / "run"
    compute = loop.Run.compute_gradients

    def interrupted(run: loop.Run, update: Update) -> torch.Tensor:
        if run.progress.updates == 6:
            os.kill(os.getpid(), kind)
        return compute(run, update)

    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "compute_gradients", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"stopped at update \d+; .*--resume"):
            run_training(world, run_dir)
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    assert find_checkpoints(run_dir)[-1].name in ("update-00000007", "update-00000008")
    run_training(world, run_dir, resume=True)
    assert read_log(run_dir) == read_log(finished.run_dir)


def test_early_stopping_by_loss_keeps_the_best(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.4])

    def scripted(*_: Any) -> Validation:
        loss = next(losses)
        # BLEU would choose otherwise.
        return Validation({"loss": loss, "perplexity": math.exp(loss), "bleu": loss})

    monkeypatch.setattr(TranslationTask, "validate", scripted)
    settings = dataclasses.replace(
        SETTINGS, updates=100, validate_every=2, patience=2, monitor="loss"
    )
    result = run_training(world, tmp_path / "run", settings)
    assert result.updates == 8
    assert result.best["loss"] == 2.0
    # Resumed, it has nothing left to train.
    losses = iter([2.4])
    assert run_training(world, tmp_path / "run", settings, resume=True).updates == 8


@pytest.mark.parametrize(
    ("monitor", "best"),
    [("loss", 1), ("perplexity", 2), ("bleu", 3), (None, 3)],
)
def test_any_score_can_tell_which_validation_is_best(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    monitor: str | None,
    best: int,
) -> None:
    """Loss and perplexity are good when low, all others when high; the task's first by default."""
    scores = [
        (3.0, 9.0, 20.0),
        (2.0, 9.0, 10.0),
        (2.5, 7.0, 10.0),
        (4.0, 7.5, 30.0),
        (3.5, 8.0, 30),
    ]
    seen = iter([*scores, scores[-1]])

    def scripted(*_: Any) -> Validation:
        return Validation(dict(zip(("loss", "perplexity", "bleu"), next(seen), strict=True)))

    monkeypatch.setattr(TranslationTask, "validate", scripted)
    settings = dataclasses.replace(SETTINGS, updates=6, validate_every=1, monitor=monitor)
    result = run_training(world, tmp_path / "run", settings)
    assert tuple(result.best.values()) == scores[best]
    # The model that was best is kept, and not one that only came up to it later.
    kept = load_file(tmp_path / "run" / "best" / "model.safetensors")
    again = dataclasses.replace(settings, updates=best + 1, average_last=1)
    seen = iter(scores)
    run_training(world, tmp_path / "again", again)
    expected = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_a_score_that_the_task_has_not_cannot_be_monitored(world: World, tmp_path: Path) -> None:
    message = r"monitor \(f1\) is no score of TranslationTask; choose from loss, bleu, perplexity"
    with pytest.raises(ValueError, match=message):
        run_training(world, tmp_path / "run", dataclasses.replace(SETTINGS, monitor="f1"))
    assert not (tmp_path / "run").exists()


def test_moving_average_is_saved_and_resumed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SETTINGS, ema_decay=0.8, checkpoint_every=1, average_last=12)
    model = make_model(dropout=0.1)
    shadow = {name: tensor.double().clone() for name, tensor in model.state_dict().items()}
    run_training(world, tmp_path / "straight", settings, model=model)
    for path in find_checkpoints(tmp_path / "straight"):
        for name, tensor in load_file(path / "model.safetensors").items():
            shadow[name] = 0.8 * shadow[name] + 0.2 * tensor.double()
    average = load_file(tmp_path / "straight" / "ema" / "model.safetensors")
    for name, tensor in average.items():
        torch.testing.assert_close(tensor.double(), shadow[name], rtol=1e-5, atol=1e-6)
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "straight" / "ema")

    interrupt(world, tmp_path / "broken", monkeypatch, 7, settings=settings)
    run_training(world, tmp_path / "broken", settings, resume=True)
    again = load_file(tmp_path / "broken" / "ema" / "model.safetensors")
    assert all(torch.equal(again[name], average[name]) for name in average)
    with_none = dataclasses.replace(SETTINGS, updates=4)
    run_training(world, tmp_path / "none", with_none)
    begun = dataclasses.replace(with_none, ema_decay=0.8)
    with pytest.raises(ValueError, match="begun without ema_decay"):
        run_training(world, tmp_path / "none", begun, resume=True)


def test_activation_checkpointing_changes_nothing_but_memory(
    world: World, finished: Finished, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, activation_checkpointing=True)
    run_training(world, tmp_path / "run", settings)
    assert read_log(tmp_path / "run") == read_log(finished.run_dir)


def test_precision_that_the_machine_has_not_is_refused(world: World, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine can train in fp16")
    with pytest.raises(ValueError, match="fp16"):
        run_training(world, tmp_path / "run", dataclasses.replace(SETTINGS, precision="fp16"))


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one(world: World, tmp_path: Path) -> None:
    # No dropout: a compiled graph draws other masks.
    settings = dataclasses.replace(SETTINGS, log_every=1, accumulation_steps=2)
    run_training(world, tmp_path / "plain", settings, model=make_model())
    compiled = dataclasses.replace(settings, compile=True, activation_checkpointing=True)
    run_training(world, tmp_path / "compiled", compiled, model=make_model())
    expected, found = read_log(tmp_path / "plain"), read_log(tmp_path / "compiled")
    assert len(found) == len(expected)
    for row, same in zip(found, expected, strict=True):
        assert row["loss"] == pytest.approx(same["loss"], rel=1e-5)
    saved = load_file(tmp_path / "compiled" / "model" / "model.safetensors")
    assert saved.keys() == load_file(tmp_path / "plain" / "model" / "model.safetensors").keys()


def test_compiling_a_sharded_model_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "is_fsdp2", property(lambda _: True))
    with pytest.raises(ValueError, match="compile and FSDP2"):
        run_training(world, tmp_path / "run", dataclasses.replace(SETTINGS, compile=True))


def test_samples_are_shown_with_each_validation(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dataclasses.replace(SETTINGS, updates=5, sample_predictions=1)
    run_training(world, tmp_path / "run", settings)
    output = capsys.readouterr().out
    assert output.count(world.validation[0]["source"]) == 1
    assert world.validation[0]["target"] in output
    assert world.validation[1]["source"] not in output


def test_full_disk_leaves_the_earlier_checkpoint(
    world: World, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    save = type(world.tokenizer).save_pretrained

    def fills_up(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
        save(tokenizer, directory)
        if "update-00000008" in str(directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(type(world.tokenizer), "save_pretrained", fills_up)
        with pytest.raises(OSError, match="no space left to write") as caught:
            run_training(world, run_dir)
    assert caught.value.errno == errno.ENOSPC
    assert "update-00000008" in str(caught.value)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["update-00000004"]
    verify_checkpoint(run_dir / "checkpoints" / "update-00000004")
    run_training(world, run_dir, resume=True)
    assert read_log(run_dir) == read_log(finished.run_dir)


def test_time_limit_finishes_the_run(world: World, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, updates=100_000, max_minutes=1e-6)
    result = run_training(world, tmp_path / "run", settings)
    assert result.updates == 1
    assert math.isfinite(result.validation["loss"])
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["update-00000001"]


# Another task


def train_on_toys(
    run_dir: Path, settings: TrainingSettings, *, task: Task | None = None, **options: Any
) -> TrainingResult:
    own, toys = make_toys()
    return train(
        make_toy_model(dropout=0.1),
        make_world().tokenizer,
        own if task is None else task,
        toys,
        run_dir,
        dataclasses.replace(settings, learning_rate_factor=0.1),
        **options,
    )


def test_a_run_of_another_task_writes_its_scores_and_counts_its_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train_on_toys(tmp_path / "run", dataclasses.replace(SETTINGS, updates=60))
    output = capsys.readouterr().out
    log = read_times(tmp_path / "run")
    training = [row for row in log if row["kind"] == "train"]
    validation = [row for row in log if row["kind"] == "validation"]
    assert validation[0].keys() >= {"loss", "perplexity", "accuracy"}
    assert "bleu" not in validation[0]
    assert result.validation == {
        name: validation[-1][name] for name in ("loss", "perplexity", "accuracy")
    }
    assert result.best["accuracy"] == max(row["accuracy"] for row in validation)
    assert training[-1]["loss"] < training[0]["loss"] - 0.2
    assert all(row["items_per_second"] > 0 for row in training)
    assert " sentences/s, " in output
    last = result.validation
    assert (
        f"validation loss {last['loss']:.3f}, perplexity {last['perplexity']:.2f}, "
        f"accuracy {last['accuracy']:.2f}, "
    ) in output
    assert "  given      a sentence\n  expected   " in output
    model = VanillaTransformerForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.num_labels == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_task_that_draws_at_random_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    settings = dataclasses.replace(SETTINGS, updates=40, num_workers=workers)
    whole = train_on_toys(tmp_path / "whole", settings)
    # In mid-epoch of the second: there are 17 updates in each.
    interruption = Interruption(27)
    with monkeypatch.context() as patch:
        patch.setattr(
            loop.Run, "compute_gradients", lambda self, update: interruption(self, update)
        )
        with pytest.raises(KeyboardInterrupt):
            train_on_toys(tmp_path / "broken", settings)
    assert train_on_toys(tmp_path / "broken", settings, resume=True).best == whole.best
    assert read_log(tmp_path / "broken") == read_log(tmp_path / "whole")
    found, expected = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("broken", "whole")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_pieces_change_nothing_whatever_the_task_counts(tmp_path: Path) -> None:
    """Not even where there are more of them than examples: some of the batches are of one."""
    settings = dataclasses.replace(SETTINGS, log_every=1, max_source_tokens=60)
    logs = []
    for pieces in (1, 2, 5):
        settings = dataclasses.replace(settings, accumulation_steps=pieces)
        task, toys = make_toys()
        train(
            make_toy_model(),
            make_world().tokenizer,
            task,
            toys,
            tmp_path / str(pieces),
            settings,
        )
        logs.append([row for row in read_log(tmp_path / str(pieces)) if row["kind"] == "train"])
    for log in logs[1:]:
        for row, whole in zip(log, logs[0], strict=True):
            assert row["loss"] == pytest.approx(whole["loss"], rel=1e-5)
            assert row["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-4)


def test_what_a_task_stores_is_in_every_model_that_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ToyTask,
        "prepare",
        lambda self, model: model.config.update({"id2label": {0: "short", 1: "long"}}),
    )
    train_on_toys(tmp_path / "run", dataclasses.replace(SETTINGS, updates=5))
    for name in ("model", "best", "checkpoints/update-00000005"):
        config = json.loads((tmp_path / "run" / name / "config.json").read_text("utf-8"))
        assert config["id2label"] == {"0": "short", "1": "long"}


# Settings and fine-tuning


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("updates", 0),
        ("warmup", 0),
        ("log_every", 0),
        ("average_last", 0),
        ("accumulation_steps", 0),
        ("validation_examples", 0),
        ("learning_rate_factor", 0.0),
        ("learning_rate_factor", math.nan),
        ("max_gradient_norm", 0.0),
        ("max_minutes", -1.0),
        ("num_workers", -1),
        ("seed", -1),
        ("patience", 0),
        ("ema_decay", 1.0),
        ("max_loss_spike", 0.0),
        ("sample_predictions", -1),
    ],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TrainingSettings(**{name: value})


def test_fine_tuning_goes_on_from_the_weights_given(
    world: World, finished: Finished, tmp_path: Path
) -> None:
    path = finished.run_dir / "model"
    model = VanillaTransformerForConditionalGeneration.from_pretrained(path)
    settings = dataclasses.replace(
        SETTINGS, updates=1, learning_rate_factor=1e-6, log_every=1, average_last=1
    )
    result = run_training(world, tmp_path / "run", settings, model=model)
    assert result.validation["loss"] == pytest.approx(finished.result.validation["loss"], abs=1e-4)
