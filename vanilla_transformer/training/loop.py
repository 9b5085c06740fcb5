"""The training loop, on Accelerate, readable top to bottom.

One update sees one global batch. Each process takes its part of it, in `accumulation_steps`
pieces, and every piece's loss is divided by the target tokens of the whole: the gradient is the
same whatever the number of processes and pieces.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import TokenBudgetBatchSampler, split_batch, stream_batches
from ..evaluation import load_metric
from ..generation import PAPER_DECODING, DecodingSettings, translate
from ..tasks.translation import encode_pairs, translation_collator
from .checkpointing import (
    atomic_directory,
    average_checkpoints,
    capture_random_state,
    find_checkpoints,
    latest_checkpoint,
    load_training_state,
    new_checkpoint,
    rotate_checkpoints,
    save_training_state,
)
from .optimization import build_optimizer, build_scheduler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything about a training run that is neither model nor data. Defaults: the paper's base.

    Attributes:
        updates: Optimizer updates (5.2).
        warmup: Updates over which the learning rate rises (5.3).
        learning_rate_factor: Multiplies the rate of equation 3.
        max_source_tokens: Padded source tokens of a global batch (5.1).
        max_target_tokens: Padded target tokens of a global batch (5.1).
        accumulation_steps: Pieces in which a process computes its part of a batch.
        max_gradient_norm: Gradients are scaled down to this norm; None leaves them.
        validate_every: Updates between validations.
        validation_beams: Beam width for the BLEU of a validation; 1 is greedy.
        validation_sentences: How many validation sentences are translated for it; None for all.
        checkpoint_every: Updates between resumable checkpoints.
        average_last: Checkpoints kept, and averaged for the final model (6.1: 5 for base, 20 for
            big); 1 takes the last weights as they are.
        log_every: Updates between lines of the log.
        precision: Of the forward pass: "no" is float32 throughout.
        max_minutes: Stops after the update at which this much time has passed.
        num_workers: Processes that prepare batches ahead.
        seed: Of parameters, dropout and the order of batches.
    """

    updates: int = 100_000
    warmup: int = 4000
    learning_rate_factor: float = 1.0
    max_source_tokens: int = 25_000
    max_target_tokens: int = 25_000
    accumulation_steps: int = 1
    max_gradient_norm: float | None = None
    validate_every: int = 1000
    validation_beams: int = 1
    validation_sentences: int | None = None
    checkpoint_every: int = 1000
    average_last: int = 5
    log_every: int = 50
    precision: Literal["no", "bf16", "fp16"] = "no"
    max_minutes: float | None = None
    num_workers: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        for name in (
            "updates",
            "warmup",
            "max_source_tokens",
            "max_target_tokens",
            "accumulation_steps",
            "validate_every",
            "validation_beams",
            "checkpoint_every",
            "average_last",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.validation_sentences is not None and self.validation_sentences < 1:
            raise ValueError(
                f"validation_sentences ({self.validation_sentences}) must be at least 1, or unset "
                "for all"
            )
        for name in ("learning_rate_factor", "max_gradient_norm", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} ({value}) must be above 0")
        if self.num_workers < 0 or self.seed < 0:
            raise ValueError(
                f"num_workers ({self.num_workers}) and seed ({self.seed}) must be at least 0"
            )


@dataclass
class Window:
    """Sums since the last line of the log.

    Attributes:
        updates: Optimizer updates.
        tokens: Target tokens, over all processes.
        loss: Of this process's shares, in nats, summed over tokens.
        padding: Padding shares of the updates, added up.
        seconds: Time spent on them before a resumption.
    """

    updates: int = 0
    tokens: int = 0
    loss: torch.Tensor | float = 0.0
    padding: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Update:
    """What one process computes for one optimizer update.

    Attributes:
        pieces: Batches of tensors to accumulate over.
        target_tokens: Tokens that count in the loss of the whole global batch.
        padding_share: Of the padded source and target of this process's pieces, in [0, 1].
    """

    pieces: list[dict[str, torch.Tensor]]
    target_tokens: int
    padding_share: float


class UpdatePlan(TorchDataset):
    """The updates of one epoch as a data set, so that a `DataLoader` can prepare them ahead."""

    def __init__(
        self,
        pairs: Dataset,
        batches: Sequence[Sequence[int]],
        lengths: np.ndarray,
        make_update: Callable[[list[list[dict[str, Any]]]], Update],
        parts: int,
    ):
        self.pairs, self.batches, self.lengths = pairs, batches, lengths
        self.make_update, self.parts = make_update, parts

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> Update:
        batch = list(self.batches[position])
        fetched = self.pairs[batch]
        rows = dict(
            zip(
                batch,
                (
                    {"input_ids": input_ids, "labels": labels}
                    for input_ids, labels in zip(
                        fetched["input_ids"], fetched["labels"], strict=True
                    )
                ),
                strict=True,
            )
        )
        parts = split_batch(batch, self.parts, self.lengths)
        return self.make_update([[rows[i] for i in part] for part in parts])


class Trainee:
    """A model in training: everything `train` passes from step to step."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        run_dir: Path,
        settings: TrainingSettings,
        decoding: DecodingSettings,
    ):
        self.settings = settings
        self.decoding = decoding
        self.tokenizer = tokenizer
        self.run_dir = run_dir
        self.accelerator = Accelerator(
            mixed_precision=settings.precision,
            # Otherwise a prepared scheduler steps once for each process at every update.
            step_scheduler_with_optimizer=False,
            log_with="tensorboard",
            project_dir=run_dir,
        )
        optimizer = build_optimizer(model)
        scheduler = build_scheduler(
            optimizer, model.config.d_model, settings.warmup, settings.learning_rate_factor
        )
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(
            model, optimizer, scheduler
        )
        self.collate = translation_collator(tokenizer)
        self.updates_done = 0
        self.best: dict[str, float] = {}
        self.window = Window()

    # ------------------------------------------------------------------------------- batches

    @property
    def parts(self) -> int:
        """Pieces that a global batch is divided into, over all processes."""
        return self.accelerator.num_processes * self.settings.accumulation_steps

    def make_update(self, parts: list[list[dict[str, Any]]]) -> Update:
        """This process's share of a global batch that has been divided into `parts`."""
        first = self.accelerator.process_index * self.settings.accumulation_steps
        mine = parts[first : first + self.settings.accumulation_steps]
        # A batch of fewer sentences than parts leaves some empty. Every process must still run
        # backward once a piece, or the others wait for ever: a sentence that teaches nothing.
        example = next(part[0] for part in parts if part)
        idle = {**example, "labels": [-100] * len(example["labels"])}
        pieces = [dict(self.collate(part or [idle])) for part in mine]
        padded = sum(piece["input_ids"].numel() + piece["labels"].numel() for piece in pieces)
        filled = sum(
            int(piece["attention_mask"].sum() + (piece["labels"] != -100).sum()) for piece in pieces
        )
        tokens = sum(len(example["labels"]) for part in parts for example in part)
        return Update(pieces, tokens, 1 - filled / padded)

    # ---------------------------------------------------------------------------- one update

    def step(self, update: Update) -> torch.Tensor:
        """Forward, backward and one optimizer update.

        Returns:
            Loss of this process's share: its sum over tokens divided by the tokens of all.
        """
        accelerator = self.accelerator
        total = torch.zeros((), device=accelerator.device)
        last = len(update.pieces) - 1
        for i, piece in enumerate(update.pieces):
            piece = {k: v.to(accelerator.device, non_blocking=True) for k, v in piece.items()}
            # Gradients travel between processes once an update, with the last piece.
            with accelerator.no_sync(self.model) if i < last else contextlib.nullcontext():
                loss = self.model(**piece, num_items_in_batch=update.target_tokens).loss
                # DistributedDataParallel averages gradients over processes; they are to add up.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        return total

    # ---------------------------------------------------------------------------- validation

    @torch.no_grad()
    def validation_loss(self, pairs: Dataset) -> float:
        """Plain negative log-likelihood in nats per target token."""
        accelerator, model = self.accelerator, self.accelerator.unwrap_model(self.model)
        sampler = TokenBudgetBatchSampler(
            *pair_lengths(pairs), max_source_tokens=10**6, max_target_tokens=8192, shuffle=False
        )
        mine = list(sampler)[accelerator.process_index :: accelerator.num_processes]
        sums = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
        for batch in mine:
            rows = [pairs[i] for i in batch]
            piece = {k: v.to(accelerator.device) for k, v in self.collate(rows).items()}
            tokens = int((piece["labels"] != -100).sum())
            with accelerator.autocast():
                loss = model(**piece, num_items_in_batch=1).loss
            sums += torch.tensor([float(loss), tokens], device=sums.device, dtype=sums.dtype)
        total, tokens = accelerator.reduce(sums).tolist()
        return total / tokens

    def translate(self, sources: list[str], decoding: DecodingSettings) -> list[str]:
        """Best translations of `sources`, shared out among the processes."""
        accelerator, model = self.accelerator, self.accelerator.unwrap_model(self.model)
        mine = list(range(accelerator.process_index, len(sources), accelerator.num_processes))
        with accelerator.autocast():
            found = translate(model, self.tokenizer, [sources[i] for i in mine], decoding)
            texts = [(i, hypotheses[0].text) for i, hypotheses in zip(mine, found, strict=True)]
        return [text for _, text in sorted(gather_object(texts))]

    def validate(self, pairs: Dataset, text: Dataset, bleu: dict[str, Any]) -> dict[str, float]:
        """Loss, perplexity and BLEU on the validation data."""
        model = self.accelerator.unwrap_model(self.model).eval()
        loss = self.validation_loss(pairs)
        sample = text
        if self.settings.validation_sentences is not None:
            sample = text.select(range(min(len(text), self.settings.validation_sentences)))
        search = dataclasses.replace(
            self.decoding, num_beams=self.settings.validation_beams, num_hypotheses=1
        )
        translations = self.translate(list(sample["source"]), search)
        # `force`: text that is tokenised already is meant to be.
        score = load_metric("bleu", force=True, **bleu).compute(
            predictions=translations, references=list(sample["target"])
        )
        model.train()
        return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bleu": score["score"]}

    def is_finite(self) -> bool:
        """Whether training has not diverged: an update may spoil the weights after a good loss."""
        parameters = self.accelerator.unwrap_model(self.model).parameters()
        return all(bool(torch.isfinite(parameter.detach().sum())) for parameter in parameters)

    def divergence(self, what: str) -> str:
        """Message for a loss or weights that are no longer numbers."""
        return (
            f"{what} by update {self.updates_done}; lower learning_rate_factor "
            f"({self.settings.learning_rate_factor}) or raise warmup ({self.settings.warmup}), "
            "then resume, or begin a new run"
        )

    # --------------------------------------------------------------------------------- saving

    def save_model(self, directory: Path) -> None:
        """Model, tokenizer and the decoding that `generate` is to use, loadable as one."""
        model = self.accelerator.unwrap_model(self.model)
        for name, value in self.decoding.generation_arguments().items():
            setattr(model.generation_config, name, value)
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def save_checkpoint(self, sampler_state: dict[str, Any], seconds: float) -> None:
        """A checkpoint to resume from, written whole or not at all."""
        random_states = gather_object([capture_random_state()])
        loss = self.accelerator.reduce(torch.as_tensor(self.window.loss))
        if not self.is_finite():
            raise FloatingPointError(self.divergence("a parameter is not a finite number"))
        if self.accelerator.is_main_process:
            with new_checkpoint(self.run_dir, self.updates_done) as directory:
                self.save_model(directory)
                save_training_state(
                    directory,
                    optimizer=self.optimizer,
                    scheduler=self.scheduler,
                    sampler_state=sampler_state,
                    progress={
                        "updates": self.updates_done,
                        "seconds": seconds,
                        "best": self.best,
                        "window": {**vars(self.window), "loss": float(loss)},
                    },
                    random_states=random_states,
                )
            rotate_checkpoints(self.run_dir, keep=self.settings.average_last)
        self.accelerator.wait_for_everyone()


def pair_lengths(pairs: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Source and target tokens of each encoded pair, two arrays `[N]`."""
    table = pairs.with_format("arrow")[:]
    source, target = (
        pc.list_value_length(table[name]).to_numpy() for name in ("input_ids", "labels")
    )
    return source, target


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        updates: Optimizer updates done.
        seconds: Time spent training, validation and saving included, over all resumed parts.
        target_tokens_per_second: Mean over the updates of this process's life, validation excluded.
        validation: Loss, perplexity and BLEU of the final (averaged) model.
        best: The same of the best model on the way, by BLEU.
    """

    updates: int
    seconds: float
    target_tokens_per_second: float
    validation: dict[str, float]
    best: dict[str, float]


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_pairs: Dataset | IterableDataset,
    validation_text: Dataset,
    run_dir: Path,
    settings: TrainingSettings,
    *,
    decoding: DecodingSettings = PAPER_DECODING,
    bleu: dict[str, Any] | None = None,
    resume: bool = False,
) -> TrainingResult:
    """Trains `model` and leaves a run in `run_dir`.

    Writes `model/` (the final model, weights averaged over the last checkpoints), `best/` (by
    validation BLEU), `checkpoints/`, `training_log.jsonl` and `tensorboard/`.

    Args:
        model: Fresh or pre-trained; trained in place.
        tokenizer: Saved beside every model.
        train_pairs: Encoded pairs, from `encode_pairs`; streamed ones are shuffled in a buffer.
        validation_text: Columns `source` and `target`.
        run_dir: A new directory, or with `resume` that of the run to go on with.
        settings: How to train.
        decoding: Stored in the model's generation config.
        bleu: Options of the BLEU metric, such as `tokenize`.
        resume: Go on from the newest whole checkpoint.

    Raises:
        ValueError: `run_dir` holds a run and `resume` is not set, or there is none to resume, or
            streamed data cannot be resumed exactly.
        FloatingPointError: The loss is no longer a number.
    """
    checkpoints = run_dir / "checkpoints"
    if checkpoints.exists() and not resume:
        raise ValueError(
            f"{run_dir} already holds a run; resume it (--resume) or choose another directory"
        )
    set_seed(settings.seed)
    run = Trainee(model, tokenizer, run_dir, settings, decoding)
    accelerator = run.accelerator
    accelerator.init_trackers("tensorboard")
    log_path = run_dir / "training_log.jsonl"
    if not resume and accelerator.is_main_process:
        # Of a run that ended before its first checkpoint.
        log_path.unlink(missing_ok=True)

    is_streamed = isinstance(train_pairs, IterableDataset)
    sampler = None
    if not is_streamed:
        sampler = TokenBudgetBatchSampler(
            *pair_lengths(train_pairs),
            max_source_tokens=settings.max_source_tokens,
            max_target_tokens=settings.max_target_tokens,
            seed=settings.seed,
        )
    validation_pairs, _ = encode_pairs(validation_text, tokenizer, max_length=None)
    seconds_before = 0.0
    if resume:
        seconds_before = resume_run(run, sampler, log_path)

    def log(kind: str, values: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            with open(log_path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, **values}) + "\n")
        scalars = {f"{kind}/{name}": value for name, value in values.items() if name != "update"}
        accelerator.log(scalars, step=run.updates_done)

    # A bar on a terminal; elsewhere a line for every entry of the log.
    bar = tqdm(
        total=settings.updates,
        initial=run.updates_done,
        unit="update",
        disable=None if accelerator.is_main_process else True,
        smoothing=0.05,
    )

    def say(line: str) -> None:
        if accelerator.is_main_process:
            (bar.write if not bar.disable else print)(line)

    started = time.monotonic()

    def seconds() -> float:
        return seconds_before + time.monotonic() - started

    def validate() -> dict[str, float]:
        scores = run.validate(validation_pairs, validation_text, bleu or {})
        log(
            "validation",
            {"update": run.updates_done, "epoch": epoch, **scores, "seconds": seconds()},
        )
        say(
            f"update {run.updates_done}: validation loss {scores['loss']:.3f}, perplexity "
            f"{scores['perplexity']:.2f}, BLEU {scores['bleu']:.2f}, {seconds() / 60:.1f} min"
        )
        if not run.best or scores["bleu"] > run.best["bleu"]:
            run.best = scores
            if accelerator.is_main_process:
                with atomic_directory(run_dir / "best") as directory:
                    run.save_model(directory)
            accelerator.wait_for_everyone()
        return scores

    tokens_trained, seconds_training = 0, 0.0
    epoch = (
        0.0
        if sampler is None
        else sampler.epoch + sampler.state_dict()["next_batch"] / len(sampler)
    )
    model.train()
    clock = time.monotonic() - run.window.seconds
    # A run resumed at its end has nothing left but to average and to validate.
    is_complete = run.updates_done >= settings.updates
    for epoch, update, sampler_state in (
        () if is_complete else iterate_updates(run, train_pairs, sampler)
    ):
        loss = run.step(update)
        is_logged = (run.updates_done + 1) % settings.log_every == 0
        gradient_norm = math.nan
        if settings.max_gradient_norm is not None or is_logged:
            limit = settings.max_gradient_norm or math.inf
            gradient_norm = accelerator.clip_grad_norm_(run.model.parameters(), limit)
        run.optimizer.step()
        learning_rate = run.scheduler.get_last_lr()[0]
        run.scheduler.step()
        run.optimizer.zero_grad()
        run.updates_done += 1
        bar.update()

        window = run.window
        window.tokens += update.target_tokens
        window.loss = window.loss + loss * update.target_tokens
        window.padding += update.padding_share
        window.updates += 1
        if is_logged:
            total = float(accelerator.reduce(torch.as_tensor(window.loss))) / window.tokens
            if not math.isfinite(total):
                raise FloatingPointError(run.divergence(f"the loss is {total}"))
            window.seconds = time.monotonic() - clock
            speed = window.tokens / window.seconds
            tokens_trained += window.tokens
            seconds_training += window.seconds
            log(
                "train",
                {
                    "update": run.updates_done,
                    "epoch": epoch,
                    "loss": total,
                    "learning_rate": learning_rate,
                    "gradient_norm": float(gradient_norm),
                    "tokens_per_second": speed,
                    "padding_share": window.padding / window.updates,
                    "seconds": seconds(),
                },
            )
            bar.set_postfix_str(f"loss {total:.3f}, {speed:,.0f} tokens/s")
            if bar.disable:
                left = (settings.updates - run.updates_done) * window.seconds / window.updates
                say(
                    f"update {run.updates_done}/{settings.updates}: loss {total:.3f}, "
                    f"{speed:,.0f} tokens/s, {left / 60:.1f} min left"
                )
            run.window = Window()
            clock = time.monotonic()

        pause = time.monotonic()
        is_late = settings.max_minutes is not None and seconds() > 60 * settings.max_minutes
        is_last = run.updates_done >= settings.updates or is_late
        if run.updates_done % settings.validate_every == 0 and not is_last:
            validate()
        if run.updates_done % settings.checkpoint_every == 0 or is_last:
            run.window.seconds = pause - clock
            run.save_checkpoint(sampler_state, seconds())
        if is_last:
            break
        # Speed is that of training alone.
        clock += time.monotonic() - pause
    bar.close()

    finish(run)
    final = validate()
    accelerator.end_training()
    speed = tokens_trained / seconds_training if seconds_training else 0.0
    return TrainingResult(run.updates_done, seconds(), speed, final, run.best)


def iterate_updates(
    run: Trainee, pairs: Dataset | IterableDataset, sampler: TokenBudgetBatchSampler | None
) -> Iterator[tuple[float, Update, dict[str, Any]]]:
    """Epoch after epoch: the epoch as a fraction, an update, and the position after it."""
    if sampler is None:
        for epoch in itertools.count():
            batches = stream_batches(
                pairs,
                max_source_tokens=run.settings.max_source_tokens,
                max_target_tokens=run.settings.max_target_tokens,
                seed=run.settings.seed + epoch,
            )
            is_empty = True
            for batch in batches:
                is_empty = False
                lengths = [len(row["input_ids"]) + len(row["labels"]) for row in batch]
                parts = split_batch(range(len(batch)), run.parts, lengths)
                update = run.make_update([[batch[i] for i in part] for part in parts])
                yield float(epoch), update, {"streamed": True}
            if is_empty:
                raise ValueError("the stream gave no pair to train on; check data and max_length")
        return
    source_lengths, target_lengths = pair_lengths(pairs)
    lengths = source_lengths + target_lengths
    while True:
        epoch = sampler.epoch
        first = sampler.state_dict()["next_batch"]
        # Taken whole: the loader may read ahead, and the position to resume at is counted here.
        plan = UpdatePlan(pairs, list(sampler), lengths, run.make_update, run.parts)
        loader = DataLoader(
            plan,
            batch_size=None,
            shuffle=False,
            num_workers=run.settings.num_workers,
            pin_memory=run.accelerator.device.type == "cuda",
            # Its own: the loader would draw a seed from the generator that dropout draws from, and
            # a resumed run would then drop out otherwise.
            generator=torch.Generator(),
        )
        for done, update in enumerate(loader, start=first + 1):
            yield epoch + done / len(sampler), update, sampler.state_dict(next_batch=done)
        sampler.set_epoch(epoch + 1)


def resume_run(run: Trainee, sampler: TokenBudgetBatchSampler | None, log_path: Path) -> float:
    """Puts `run` where its newest whole checkpoint was, and cuts its log there.

    Returns:
        Seconds trained until then.
    """
    if sampler is None:
        raise ValueError(
            "streamed data cannot be resumed exactly: examples in the shuffle buffer would be lost "
            "or repeated; train on a memory-mapped corpus, or begin a new run"
        )
    path = latest_checkpoint(run.run_dir)
    if path is None:
        raise ValueError(f"{run.run_dir} has no whole checkpoint to resume from; begin a new run")
    model = run.accelerator.unwrap_model(run.model)
    loaded = type(model).from_pretrained(path)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in loaded.state_dict().items()}:
        raise ValueError(
            f"{path} is of another architecture or vocabulary than the model to train; resume with "
            f"the run's own settings, in {run.run_dir / 'recipe.json'}"
        )
    model.load_state_dict(loaded.state_dict())
    state = load_training_state(
        path,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        process_index=run.accelerator.process_index,
    )
    sampler.load_state_dict(state["sampler_state"])
    run.updates_done = state["progress"]["updates"]
    run.best = state["progress"]["best"]
    window = state["progress"]["window"]
    # The sum over all processes: one of them goes on with it.
    run.window = (
        Window(**window)
        if run.accelerator.is_main_process
        else Window(updates=window["updates"], tokens=window["tokens"])
    )
    if run.accelerator.is_main_process and log_path.exists():
        # What was logged after the checkpoint happens again.
        entries = [json.loads(line) for line in log_path.read_text("utf-8").splitlines()]
        kept = [entry for entry in entries if entry["update"] <= run.updates_done]
        partial = log_path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), "utf-8")
        partial.replace(log_path)
    return state["progress"]["seconds"]


def finish(run: Trainee) -> None:
    """Averages the last checkpoints (6.1) into the final model and loads it into `run`."""
    final = run.run_dir / "model"
    if run.accelerator.is_main_process:
        last = find_checkpoints(run.run_dir)[-run.settings.average_last :]
        average_checkpoints(last, final, overwrite=True)
    run.accelerator.wait_for_everyone()
    model = run.accelerator.unwrap_model(run.model)
    averaged = type(model).from_pretrained(final)
    model.load_state_dict(averaged.state_dict())
