"""Training through transformers: the stock `Seq2SeqTrainer`, and the run that shares the loop's.

The file is also the program that its own tests start under torchrun, with a directory to write to.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from tests.training.tiny_run import World, make_model, make_world, read_log
from tests.training.toy_task import make_toy_model, make_toys
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.evaluation import load_metric
from vanilla_transformer.generation import DecodingSettings
from vanilla_transformer.tasks.translation import decode_predictions, encode_pairs
from vanilla_transformer.training import loop
from vanilla_transformer.training.loop import TrainingResult, train
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.trainer import (
    ExponentialMovingAverageCallback,
    VanillaTransformerTrainer,
    train_with_trainer,
    training_arguments,
)
from vanilla_transformer.training.updates import UpdateStream

REPOSITORY = Path(__file__).resolve().parents[2]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal_weights(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], relative: float = 0.0
) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=relative, atol=relative / 10)


# What a user of Trainer writes by hand: nothing of ours but the model


def stock_trainer(
    world: World,
    model: VanillaTransformerForConditionalGeneration,
    output: Path,
    *,
    trainer_class: type[Seq2SeqTrainer] = Seq2SeqTrainer,
    pass_model: bool = True,
    **options: Any,
) -> Seq2SeqTrainer:
    """As transformers' own translation examples do it."""
    arguments = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    others = {"eval_dataset", "compute_metrics", "callbacks"}
    return trainer_class(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(output),
            **arguments | {k: v for k, v in options.items() if k not in others},
        ),
        train_dataset=world.pairs,
        data_collator=DataCollatorForSeq2Seq(world.tokenizer, model=model if pass_model else None),
        processing_class=world.tokenizer,
        **{k: v for k, v in options.items() if k in others},
    )


def losses_of(trainer: Seq2SeqTrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def encode_validation(world: World) -> Dataset:
    return encode_pairs(world.validation, world.tokenizer, max_length=None)[0]


def naive_loss(
    model: VanillaTransformerForConditionalGeneration, pairs: Dataset, smoothing: float
) -> float:
    """One sentence at a time, from logits in float64."""
    total, tokens = 0.0, 0
    for pair in pairs:
        labels = torch.tensor([pair["labels"]])
        start = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.no_grad():
            logits = (
                model.eval()(
                    input_ids=torch.tensor([pair["input_ids"]]),
                    decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1),
                )
                .logits[0]
                .double()
            )
        total += float(
            F.cross_entropy(logits, labels[0], label_smoothing=smoothing, reduction="sum")
        )
        tokens += labels.numel()
    return total / tokens


@pytest.mark.parametrize("pass_model", [True, False])
def test_stock_accumulation_changes_nothing(world: World, tmp_path: Path, pass_model: bool) -> None:
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model = make_model()
        trainer = stock_trainer(
            world,
            model,
            tmp_path / str(batch),
            pass_model=pass_model,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
        runs.append((losses_of(trainer), norms, weights(model)))
    (whole, whole_norms, large), (parts, part_norms, small) = runs
    assert len(whole) == 4
    assert parts == pytest.approx(whole, rel=1e-5)
    assert part_norms == pytest.approx(whole_norms, rel=1e-4)
    assert_equal_weights(small, large, relative=1e-3)


def test_stock_training_loss_is_smoothed_and_evaluation_loss_is_not(
    world: World, tmp_path: Path
) -> None:
    validation = encode_validation(world)
    whole: dict[str, Any] = {"per_device_train_batch_size": 100, "per_device_eval_batch_size": 7}
    model = make_model(label_smoothing=0.1)
    expected = naive_loss(model, world.pairs, smoothing=0.1)
    plain = naive_loss(model, validation, smoothing=0.0)
    assert abs(plain - naive_loss(model, validation, smoothing=0.1)) > 1e-3
    trainer = stock_trainer(
        world, model, tmp_path, eval_dataset=validation, max_steps=1, learning_rate=0.0, **whole
    )
    trainer.train()
    assert losses_of(trainer) == pytest.approx([expected], rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-5)


def test_trainer_s_own_label_smoothing_is_refused(world: World, tmp_path: Path) -> None:
    """It takes the labels away, and then the decoder has nothing to read."""
    trainer = stock_trainer(
        world, make_model(), tmp_path, pass_model=False, label_smoothing_factor=0.1
    )
    with pytest.raises(ValueError, match=r"label_smoothing_factor.*model's config"):
        trainer.train()


def test_trainer_s_own_label_smoothing_is_right_where_the_collator_shifts(
    world: World, tmp_path: Path
) -> None:
    """`DataCollatorForSeq2Seq(model=...)` makes the decoder's input before the labels go."""
    runs = []
    for smoothing, factor in ((0.1, 0.0), (0.0, 0.1)):
        model = make_model(label_smoothing=smoothing)
        trainer = stock_trainer(world, model, tmp_path, label_smoothing_factor=factor)
        trainer.train()
        runs.append((losses_of(trainer), weights(model)))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-5)


def test_stock_training_learns(world: World, tmp_path: Path) -> None:
    trainer = stock_trainer(world, make_model(dropout=0.1), tmp_path, max_steps=30)
    trainer.train()
    losses = losses_of(trainer)
    assert losses[-1] < losses[0] - 0.5


def test_stock_training_resumes_exactly(world: World, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    model = make_model(dropout=0.1)
    whole = stock_trainer(world, model, tmp_path, **options)
    whole.train()
    # Its weights must come from the checkpoint.
    other = make_model(dropout=0.1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    torch.manual_seed(12345)
    resumed = stock_trainer(world, other, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal_weights(weights(other), weights(model))
    assert losses_of(resumed) == losses_of(whole)
    saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoint-6")
    assert_equal_weights(weights(saved), weights(model))


def test_stock_predict_with_generate_translates_as_generate_does(
    world: World, tmp_path: Path
) -> None:
    validation = encode_validation(world)
    bleu = load_metric("bleu")
    references = list(world.validation["target"])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        texts = decode_predictions(prediction.predictions, world.tokenizer)
        assert decode_predictions(prediction.label_ids, world.tokenizer) == references
        return {"bleu": bleu.compute(predictions=texts, references=references)["score"]}

    def translate(model: VanillaTransformerForConditionalGeneration) -> list[str]:
        ids = [model.eval().generate(torch.tensor([row]))[0] for row in validation["input_ids"]]
        return decode_predictions(ids, world.tokenizer)

    model = make_model()
    # An untrained model seldom ends a sentence: every output runs to its own limit.
    model.generation_config.max_tokens_over_source = 30
    expected = translate(model)

    trainer = stock_trainer(
        world,
        model,
        tmp_path,
        eval_dataset=validation,
        compute_metrics=compute_metrics,
        predict_with_generate=True,
    )
    output = trainer.predict(validation)
    assert output.predictions.shape[0] == len(validation) == 7
    assert output.predictions.shape[1] > 30
    assert decode_predictions(output.predictions, world.tokenizer) == expected
    score = bleu.compute(predictions=expected, references=references)["score"]
    assert output.metrics["test_bleu"] == pytest.approx(score)
    assert trainer.evaluate()["eval_bleu"] == pytest.approx(score)
    assert math.isfinite(output.metrics["test_loss"])
    # Its evaluation has left nothing in the generation config that would cut translations short.
    trainer.save_model(str(tmp_path / "saved"))
    assert translate(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")) == expected


# The moving average, in any Trainer


class WeightsAfterEachUpdate(TrainerCallback):
    """Keeps what the average is to be computed from."""

    def __init__(self) -> None:
        self.history: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.history.append(weights(kwargs["model"]))

    on_step_end = on_train_begin


def test_moving_average_is_the_naive_one(world: World, tmp_path: Path) -> None:
    decay, seen = 0.8, WeightsAfterEachUpdate()
    model = make_model(dropout=0.1)
    callbacks = [ExponentialMovingAverageCallback(decay), seen]
    trainer = stock_trainer(world, model, tmp_path, max_steps=6, callbacks=callbacks)
    trainer.train()
    assert len(seen.history) == 7
    saved = weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ema"))
    for name, tensor in saved.items():
        mean = seen.history[0][name].double()
        for after in seen.history[1:]:
            mean = decay * mean + (1 - decay) * after[name].double()
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-5, atol=1e-7)
        assert not torch.equal(tensor, seen.history[-1][name])
    # The model in training keeps its own weights.
    assert_equal_weights(weights(model), seen.history[-1])


def test_moving_average_goes_on_exactly_after_resuming(world: World, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}

    def trainer(output: Path, **arguments: Any) -> Seq2SeqTrainer:
        return stock_trainer(
            world,
            make_model(dropout=0.1),
            output,
            callbacks=[ExponentialMovingAverageCallback(0.8, **arguments)],
            **options,
        )

    trainer(tmp_path / "run").train()
    expected = load_file(tmp_path / "run" / "ema" / "model.safetensors")
    checkpoint = tmp_path / "run" / "checkpoint-4"
    (tmp_path / "run" / "ema").rename(tmp_path / "first")
    trainer(tmp_path / "run").train(resume_from_checkpoint=str(checkpoint))
    trainer(tmp_path / "other", resume_from=checkpoint).train(
        resume_from_checkpoint=str(checkpoint)
    )
    for output in ("run", "other"):
        found = load_file(tmp_path / output / "ema" / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=r"checkpoint-4.*is missing.*resume_from=CHECKPOINT"):
        trainer(tmp_path / "third").train(resume_from_checkpoint=str(checkpoint))


def test_moving_average_stays_where_the_gradient_scaler_left_the_weights(
    world: World, tmp_path: Path
) -> None:
    model, callback = make_model(), ExponentialMovingAverageCallback(0.8)
    trainer = stock_trainer(world, model, tmp_path, max_steps=1, callbacks=[callback])
    trainer.train()
    before = {name: tensor.clone() for name, tensor in callback.average.state_dict().items()}
    for was_skipped in (True, False):
        callback.on_optimizer_step(
            trainer.args,
            trainer.state,
            trainer.control,
            optimizer=SimpleNamespace(step_was_skipped=was_skipped),
        )
        after = callback.average.state_dict()
        assert was_skipped == all(torch.equal(after[name], before[name]) for name in before)


# One run, two drivers

SETTINGS = TrainingSettings(
    updates=20,
    warmup=8,
    learning_rate_factor=0.5,
    max_source_tokens=256,
    max_target_tokens=256,
    max_gradient_norm=0.5,
    validate_every=8,
    validation_examples=5,
    checkpoint_every=5,
    average_last=2,
    ema_decay=0.8,
    log_every=1,
)
# Short outputs: an untrained model seldom ends a sentence, and validation would take the time.
DECODING = DecodingSettings(num_beams=3, length_penalty=0.7, max_tokens_over_source=2)


def run_training(
    world: World,
    run_dir: Path,
    settings: TrainingSettings = SETTINGS,
    *,
    driver: Callable[..., TrainingResult] = train_with_trainer,
    dropout: float = 0.1,
    **options: Any,
) -> TrainingResult:
    return driver(
        make_model(dropout),
        world.tokenizer,
        world.task(decoding=DECODING),
        world.pairs,
        run_dir,
        settings,
        **options,
    )


def logged_losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_log(run_dir) if row["kind"] == "train"]


def saved_files(run_dir: Path) -> set[str]:
    """Names of all files, without the trackers' own."""
    files = {path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file()}
    return {str(file) for file in files if file.parts[0] != "tensorboard"}


def assert_equal_runs(found: Path, expected: Path) -> None:
    """Every file of the one is in the other; logs and tensors are the same."""
    assert saved_files(found) == saved_files(expected)
    assert read_log(found) == read_log(expected)
    for name in sorted(saved_files(expected)):
        if name.endswith(".safetensors"):
            tensors, others = load_file(found / name), load_file(expected / name)
            assert tensors.keys() == others.keys()
            assert all(torch.equal(tensors[key], others[key]) for key in others), name
        elif name.endswith("config.json"):
            assert (found / name).read_text() == (expected / name).read_text(), name


class Pair(NamedTuple):
    """The same run by both drivers, which tests must not change."""

    loop: Path
    trainer: Path
    results: tuple[TrainingResult, TrainingResult]


@pytest.fixture(scope="module")
def both(world: World, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("drivers")
    drivers = {"loop": train, "trainer": train_with_trainer}
    results = [
        run_training(world, folder / name, driver=driver) for name, driver in drivers.items()
    ]
    return Pair(folder / "loop", folder / "trainer", (results[0], results[1]))


def test_both_drivers_leave_the_same_run(both: Pair) -> None:
    """Bit for bit, dropout included: the same model, best, ema, checkpoints and log."""
    assert {"model/model.safetensors", "best/config.json", "ema/model.safetensors"} <= saved_files(
        both.trainer
    )
    assert len(logged_losses(both.trainer)) == 20
    assert_equal_runs(both.trainer, both.loop)
    by_loop, by_trainer = both.results
    assert by_trainer.updates == by_loop.updates == 20
    assert by_trainer.validation == by_loop.validation
    assert by_trainer.best == by_loop.best


def test_a_run_learns(both: Pair) -> None:
    losses = logged_losses(both.trainer)
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation_steps": 1},
        {"accumulation_steps": 2},
        # Off is off: Trainer's own default would be 1.
        {"max_gradient_norm": None, "learning_rate_factor": 3.0},
        {"precision": "bf16"},
        {"activation_checkpointing": True},
    ],
    ids=lambda changes: next(iter(changes)) + "=" + str(next(iter(changes.values()))),
)
def test_both_drivers_compute_the_same_losses(
    world: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = dataclasses.replace(
        SETTINGS, validate_every=100, checkpoint_every=100, ema_decay=None, **changes
    )
    for name, driver in (("loop", train), ("trainer", train_with_trainer)):
        # A process has one precision, unless it begins again.
        AcceleratorState._reset_state(reset_partial_state=True)
        run_training(world, tmp_path / name, settings, driver=driver, dropout=0.0)
    AcceleratorState._reset_state(reset_partial_state=True)
    expected, found = (read_log(tmp_path / name) for name in ("loop", "trainer"))
    assert len(found) == 21
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"kind"}:
            assert row[key] == pytest.approx(other[key], rel=1e-5), (key, row["update"])


def test_no_clipping_is_asked_for_as_such(world: World, tmp_path: Path) -> None:
    model = make_model()
    assert training_arguments(tmp_path, SETTINGS, model).max_grad_norm == 0.5
    settings = dataclasses.replace(SETTINGS, max_gradient_norm=None)
    assert training_arguments(tmp_path, settings, model).max_grad_norm == 0


def stop_before_update(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process were killed there: nothing is saved."""
    check = loop.Run.check

    def stop(run: loop.Run, *args: Any) -> None:
        if run.progress.updates + 1 == number:
            raise KeyboardInterrupt
        check(run, *args)

    monkeypatch.setattr(loop.Run, "check", stop)


@pytest.mark.parametrize("first", [train, train_with_trainer])
def test_a_resumed_run_is_the_uninterrupted_one(
    world: World,
    both: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: Callable[..., TrainingResult],
) -> None:
    """Whichever driver began it."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_before_update(13, patch)
        with pytest.raises(KeyboardInterrupt):
            run_training(world, run_dir, driver=first)
    assert not (run_dir / "model").exists()
    torch.manual_seed(12345)
    result = run_training(world, run_dir, resume=True)
    assert_equal_runs(run_dir, both.trainer)
    assert result.best == both.results[1].best


def test_a_run_resumed_at_its_end_trains_no_more(world: World, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, updates=3)
    run_training(world, tmp_path, settings)
    before = load_file(tmp_path / "model" / "model.safetensors")
    losses = logged_losses(tmp_path)
    result = run_training(world, tmp_path, settings, resume=True)
    assert result.updates == 3
    assert logged_losses(tmp_path) == losses
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="already holds a run"):
        run_training(world, tmp_path, settings)


def test_asked_to_stop_it_saves_and_leaves(
    world: World, both: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = loop.Run.check

    def ask(run: loop.Run, *args: Any) -> None:
        if run.progress.updates + 1 == 7:
            run.interruption.requested = True
        check(run, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "check", ask)
        with pytest.raises(KeyboardInterrupt, match="stopped at update 7"):
            run_training(world, tmp_path)
    assert (tmp_path / "checkpoints" / "update-00000007").is_dir()
    run_training(world, tmp_path, resume=True)
    assert read_log(tmp_path) == read_log(both.trainer)


def test_an_update_that_the_scaler_refuses_counts_for_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one as well, on which Trainer, which counts it, would end."""
    done = 0
    refused = {2, 6}

    def was_skipped(accelerator: Accelerator) -> bool:
        return done in refused

    step = torch.optim.Adam.step

    def count(optimizer: torch.optim.Adam, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        return None if done in refused else step(optimizer, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(was_skipped))
    monkeypatch.setattr(torch.optim.Adam, "step", count)
    settings = dataclasses.replace(SETTINGS, updates=5, ema_decay=None)
    assert run_training(world, tmp_path, settings).updates == 5
    assert done == 7
    assert [row["update"] for row in read_log(tmp_path)] == [1, 2, 3, 4, 5, 5]
    rates = [row["learning_rate"] for row in read_log(tmp_path)[:-1]]
    assert rates == pytest.approx([rates[0] * update for update in (1, 2, 3, 4, 5)])


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = loop.Run.check

    def spoil(run: loop.Run, update: Any, loss: torch.Tensor, *rest: Any) -> None:
        check(run, update, loss * math.nan if run.progress.updates == 3 else loss, *rest)

    monkeypatch.setattr(loop.Run, "check", spoil)
    with pytest.raises(FloatingPointError, match=r"update 4.*failed_update-00000004\.json"):
        run_training(world, tmp_path)
    assert (tmp_path / "failed_update-00000004.json").exists()


def test_out_of_memory_names_the_batch_and_the_remedy(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VanillaTransformerForConditionalGeneration, "_loss_and_logits", exhaust)
    with pytest.raises(RuntimeError, match="max_target_tokens"):
        run_training(world, tmp_path)


def train_on_toys(
    driver: Callable[..., TrainingResult], run_dir: Path, settings: TrainingSettings, **options: Any
) -> TrainingResult:
    task, toys = make_toys()
    return driver(
        make_toy_model(), make_world().tokenizer, task, toys, run_dir, settings, **options
    )


@pytest.mark.parametrize("pieces", [1, 3])
def test_both_drivers_train_any_task_alike(tmp_path: Path, pieces: int) -> None:
    """Trainer would count labels that are not -100, of each process and by itself."""
    settings = dataclasses.replace(SETTINGS, accumulation_steps=pieces, learning_rate_factor=0.1)
    by_loop = train_on_toys(train, tmp_path / "loop", settings)
    by_trainer = train_on_toys(train_with_trainer, tmp_path / "trainer", settings)
    assert by_trainer.best == by_loop.best
    assert by_trainer.best.keys() == {"loss", "perplexity", "accuracy"}
    if pieces == 1:
        assert_equal_runs(tmp_path / "trainer", tmp_path / "loop")
    expected, found = (read_log(tmp_path / name) for name in ("loop", "trainer"))
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"kind"}:
            assert row[key] == pytest.approx(other[key], rel=1e-5), (key, row["update"])


def test_a_piece_is_divided_by_what_the_task_counts_and_not_by_its_labels(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the items are half the loss; Trainer's own count would not know."""
    task = world.task(decoding=DECODING)
    count = task.count
    losses = []
    for factor in (1, 2):
        monkeypatch.setattr(task, "count", lambda batch, factor=factor: factor * count(batch))
        settings = dataclasses.replace(SETTINGS, updates=1, accumulation_steps=2)
        train_with_trainer(
            make_model(), world.tokenizer, task, world.pairs, tmp_path / str(factor), settings
        )
        losses += logged_losses(tmp_path / str(factor))
    assert losses[1] == pytest.approx(losses[0] / 2, rel=1e-6)


def test_several_gpus_and_one_process_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seq2SeqTrainingArguments, "n_gpu", 8)
    with pytest.raises(ValueError, match="one process was launched on a machine of 8 GPUs"):
        training_arguments(tmp_path, SETTINGS, make_model())


# Two processes


def note_counts(model: VanillaTransformerForConditionalGeneration) -> list[int]:
    """By how many tokens the model is told to divide the loss of each piece."""
    counts: list[int] = []
    compute = model._loss_and_logits

    def note(hidden: Any, labels: Any, keep: Any, count: Any) -> Any:
        if model.training:
            counts.append(int(count))
        return compute(hidden, labels, keep, count)

    setattr(model, compute.__name__, note)
    return counts


def program(output: Path) -> None:
    """What runs on one process and on two; each writes what it has found."""
    world = make_world()
    accelerator = Accelerator()
    processes, rank = accelerator.num_processes, accelerator.process_index
    found: dict[str, Any] = {"processes": processes}

    for accumulation in (1, 2):
        name = f"accumulation_{accumulation}"
        settings = dataclasses.replace(SETTINGS, accumulation_steps=accumulation)
        model = make_model()
        counts = note_counts(model)
        train_with_trainer(
            model,
            world.tokenizer,
            world.task(decoding=DECODING),
            world.pairs,
            output / name,
            settings,
        )
        found[name] = counts

    task, toys = make_toys()
    toy_settings = dataclasses.replace(SETTINGS, learning_rate_factor=0.1)
    train_with_trainer(make_toy_model(), world.tokenizer, task, toys, output / "toys", toy_settings)

    model = make_model(label_smoothing=0.1)
    trainer = stock_trainer(
        world, model, output / "stock", per_device_train_batch_size=8 // processes
    )
    trainer.train()
    found["stock"] = losses_of(trainer)

    # 7 sentences: neither batches nor processes divide them.
    validation = encode_validation(world)
    trainer = stock_trainer(
        world,
        make_model(),
        output / "predict",
        trainer_class=VanillaTransformerTrainer,
        per_device_eval_batch_size=2,
        predict_with_generate=True,
    )
    predictions = {}
    for count in (7, 1):
        output_of = trainer.predict(validation.select(range(count)))
        predictions[count] = decode_predictions(output_of.predictions, world.tokenizer)
        assert len(output_of.label_ids) == count
    found["predictions"] = predictions
    (output / f"found-{rank}.json").write_text(json.dumps(found))


def read_found(output: Path) -> list[dict[str, Any]]:
    files = sorted(output.glob("found-*.json"))
    return [json.loads(file.read_text()) for file in files]


class Programmed(NamedTuple):
    """What a run of `program` left and what each of its processes found."""

    output: Path
    found: list[dict[str, Any]]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Programmed:
    output = tmp_path_factory.mktemp("one")
    program(output)
    return Programmed(output, read_found(output))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Programmed:
    output = tmp_path_factory.mktemp("two")
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [sys.executable, *torchrun, __file__, str(output)],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        # It ends its own children, which `kill` would leave behind.
        process.terminate()
        process.wait(timeout=60)
    assert process.returncode == 0, errors[-4000:]
    return Programmed(output, read_found(output))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_train_as_one(one: Programmed, two: Programmed, accumulation: int) -> None:
    assert [found["processes"] for found in two.found] == [2, 2]
    name = f"accumulation_{accumulation}"
    expected = logged_losses(one.output / "accumulation_1")
    assert len(expected) == 20
    assert logged_losses(two.output / name) == pytest.approx(expected, rel=1e-5)
    rows, others = (
        [row for row in read_log(programmed.output / name) if row["kind"] == "validation"]
        for programmed in (one, two)
    )
    assert len(rows) == 3
    for row, other in zip(rows, others, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)
    norms, other_norms = (
        [
            row["gradient_norm"]
            for row in read_log(programmed.output / name)
            if "gradient_norm" in row
        ]
        for programmed in (one, two)
    )
    assert other_norms == pytest.approx(norms, rel=1e-4)


def test_two_processes_train_another_task_as_one(one: Programmed, two: Programmed) -> None:
    """Which counts its own items, and draws the same on both."""
    expected = logged_losses(one.output / "toys")
    assert len(expected) == 20
    assert logged_losses(two.output / "toys") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_piece_is_divided_by_the_tokens_of_the_whole_update(
    world: World, two: Programmed, accumulation: int
) -> None:
    stream = iter(UpdateStream(world.pairs, world.task(), SETTINGS))
    expected = [next(stream).items for _ in range(SETTINGS.updates)]
    for found in two.found:
        counts = found[f"accumulation_{accumulation}"]
        assert counts == [count for count in expected for _ in range(accumulation)]


def test_the_stock_trainer_trains_on_two_processes_as_on_one(
    one: Programmed, two: Programmed
) -> None:
    expected = one.found[0]["stock"]
    assert len(expected) == 4
    for found in two.found:
        assert found["stock"] == pytest.approx(expected, rel=1e-5)


def test_predictions_are_as_many_as_the_sentences(one: Programmed, two: Programmed) -> None:
    """And the same on any number of processes, in their order."""
    expected = one.found[0]["predictions"]
    assert {count: len(texts) for count, texts in expected.items()} == {"7": 7, "1": 1}
    for found in two.found:
        assert found["predictions"] == expected


if __name__ == "__main__":
    program(Path(sys.argv[1]))
    # Left to the interpreter's end, a process group may abort in it.
    PartialState().destroy_process_group()
