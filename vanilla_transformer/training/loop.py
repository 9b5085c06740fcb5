"""The training loop, on Accelerate, readable top to bottom.

On one process or many the same global batches give the same updates (`updates.py`), and a run that
was killed at any moment goes on bit for bit from its newest checkpoint (`checkpointing.py`).
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from datasets import Dataset, IterableDataset
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .averaging import ExponentialMovingAverage, average_checkpoints
from .checkpointing import (
    atomic_directory,
    find_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    rotate_checkpoints,
    save_checkpoint,
)
from .optimization import build_optimizer, build_scheduler
from .settings import TrainingSettings
from .sharding import shard_model
from .task import LOW_IS_GOOD, Task, Validation
from .updates import Update, UpdateStream
from .validation import whole_model
from .watching import (
    Interruption,
    LossMonitor,
    RunLog,
    describe_scores,
    explain_out_of_memory,
    save_failed_update,
    show_samples,
)

# Updates in a row that a gradient scaler may refuse before the run is given up.
_MAX_SKIPPED = 50


@dataclass
class Window:
    """Sums since the last line of the log.

    Attributes:
        updates: Optimizer updates.
        items: What the loss is averaged over, over all processes.
        loss: In nats, summed over items, over all processes.
        padding: Padding shares of the updates, added up, of the main process.
        seconds: Time spent on them before a resumption.
    """

    updates: int = 0
    items: int = 0
    loss: float = 0.0
    padding: float = 0.0
    seconds: float = 0.0


@dataclass
class Progress:
    """What a run counts: all that a checkpoint must hold beside tensors and generators.

    Attributes:
        updates: Optimizer updates done.
        seconds: Time spent, validation and saving included.
        best: Scores of the best validation.
        stale: Validations since the best.
        window: Sums since the last line of the log.
    """

    updates: int = 0
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    window: Window = field(default_factory=Window)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        updates: Optimizer updates done.
        seconds: Time spent training, validation and saving included, over all resumed parts.
        items_per_second: Target tokens, questions, whatever the loss is averaged over: mean over
            the updates of this process's life, validation excluded.
        validation: Scores of the final (averaged) model.
        best: The same of the best model on the way.
    """

    updates: int
    seconds: float
    items_per_second: float
    validation: dict[str, float]
    best: dict[str, float]


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Dataset | IterableDataset,
    run_dir: Path,
    settings: TrainingSettings,
    *,
    resume: bool = False,
) -> TrainingResult:
    """Trains `model` and leaves a run in `run_dir`; with several processes each of them calls it.

    Writes `model/` (the final model, weights averaged over the last checkpoints), `best/` (by
    validation), `ema/` where asked for, `checkpoints/`, `training_log.jsonl` and what the trackers
    write.

    Args:
        model: Fresh or pre-trained, the same on every process; trained in place, and unless it was
            sharded the final model at the end.
        tokenizer: Saved beside every model.
        task: What to learn, with the data to validate on.
        examples: Encoded for training; streamed ones are shuffled in a buffer.
        run_dir: A new directory, or with `resume` that of the run to go on with.
        settings: How to train.
        resume: Go on from the newest whole checkpoint.

    Raises:
        ValueError: `run_dir` holds a run and `resume` is not set, or there is none to resume, or
            the data or settings are not those of the run.
        FloatingPointError: The loss is no longer a number or has leapt up; the batch is saved.
        RuntimeError: Out of memory; the message names the batch and the remedies.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint to resume from has been written.
    """
    check_run_directory(run_dir, resume)
    accelerator = build_accelerator(settings)
    run = Run(accelerator, model, tokenizer, task, examples, run_dir, settings)
    shard_model(accelerator, model)
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(
        optimizer, model.config.d_model, settings.warmup, settings.learning_rate_factor
    )
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)
    run.adopt(prepared, optimizer, scheduler)
    with contextlib.closing(run.log), Interruption() as run.interruption:
        run.begin(resume)
        # A run resumed at its end has nothing left but to average and to validate.
        if not run.is_complete():
            for update in run.stream:
                is_applied = run.apply(update)
                if is_applied and run.attend():
                    break
        return run.finish()


class Run:
    """A run in progress on one process: everything that `train` passes from step to step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    interruption: Interruption

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        examples: Dataset | IterableDataset,
        run_dir: Path,
        settings: TrainingSettings,
    ):
        self.accelerator, self.tokenizer, self.task = accelerator, tokenizer, task
        self.run_dir, self.settings = run_dir, settings
        self.best_by = settings.monitor or task.metrics[0]
        if self.best_by not in ("loss", *task.metrics):
            raise ValueError(
                f"monitor ({self.best_by}) is no score of {type(task).__name__}; choose from "
                f"loss, {', '.join(task.metrics)}"
            )
        # Every process draws dropout of its own.
        set_seed(settings.seed, device_specific=True)
        self.stream = UpdateStream(
            examples,
            task,
            settings,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            pin_memory=accelerator.device.type == "cuda",
        )
        task.prepare(model)
        if settings.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if settings.compile:
            if accelerator.is_fsdp2:
                raise ValueError(
                    "compile and FSDP2 do not go together here: a sharded model gathers its "
                    "weights between the layers, where a graph would break; turn one of them off"
                )
            # In place: the parameters keep their names. One graph for batches of every shape.
            model.compile(dynamic=True)
        self.average: ExponentialMovingAverage | None = None
        self.monitor = LossMonitor(settings.max_loss_spike, settings.warmup)
        self.progress = Progress()
        self.must_stop = False
        self.is_late = False
        self.loss = math.nan
        self.gradient_norm = math.nan
        self.learning_rate = math.nan
        self.skipped = 0
        self.items_trained, self.seconds_training = 0, 0.0
        self.started = time.monotonic()
        self.clock = self.started
        # Last: what can be wrong with data and settings has been found by now.
        self.log = RunLog(run_dir, accelerator, settings)

    def adopt(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler
    ) -> None:
        """Takes over what the driver has prepared for training."""
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        if self.settings.ema_decay is not None:
            inner = self.accelerator.unwrap_model(model)
            self.average = ExponentialMovingAverage(inner, self.settings.ema_decay)

    def begin(self, resume: bool) -> None:
        """Goes on from the newest whole checkpoint, or begins a new log."""
        if resume:
            self.restore()
        else:
            # Of a run that ended before its first checkpoint.
            self.log.clear()
        self.log.advance(self.progress.updates)

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all its parts."""
        return self.progress.seconds + time.monotonic() - self.started

    def is_complete(self) -> bool:
        """Whether the run has come to its end: by updates, by validations or by time."""
        progress, settings = self.progress, self.settings
        return (
            progress.updates >= settings.updates
            or (settings.patience is not None and progress.stale >= settings.patience)
            or self.is_late
        )

    def _is_over_time(self, seconds: float) -> bool:
        limit = self.settings.max_minutes
        return limit is not None and seconds > 60 * limit

    # ---------------------------------------------------------------------------- one update

    def apply(self, update: Update) -> bool:
        """One optimizer update; on every process the same.

        Returns:
            Whether it counts: see `count`.
        """
        loss = self.compute_gradients(update)
        limit = self.settings.max_gradient_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        # Before the weights change: they stay good.
        self.check(update, loss, norm)
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        return self.count(update)

    def check(self, update: Update, loss: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Looks at an update before it is applied; every process calls it.

        Args:
            update: This process's share.
            loss: Of the share: its sum over items divided by the items of all.
            gradient_norm: Of the whole update, before it was clipped.

        Raises:
            FloatingPointError: Not to be applied; its batch has been saved.
        """
        # The processes agree on the loss, and on when to stop: each alone would leave the others
        # waiting for it.
        votes = (self.interruption.requested, self._is_over_time(self.seconds))
        share = torch.cat((loss.reshape(1), loss.new_tensor(votes)))
        self.loss, is_interrupted, is_late = self.accelerator.reduce(share, "sum").tolist()
        self.must_stop, self.is_late = is_interrupted > 0, is_late > 0
        if isinstance(gradient_norm, DTensor):
            gradient_norm = gradient_norm.full_tensor()
        self.gradient_norm = float(gradient_norm)
        self.learning_rate = float(self.scheduler.get_last_lr()[0])
        # Overflow under fp16 is the scaler's business.
        is_scaled = self.accelerator.scaler is not None
        reason = self.monitor.check(
            self.progress.updates + 1, self.loss, None if is_scaled else self.gradient_norm
        )
        if reason is not None:
            self._give_up(update, reason)

    def count(self, update: Update) -> bool:
        """Takes note of an update that was applied; every process calls it.

        Returns:
            Whether the weights were changed: with fp16 the gradient scaler refuses a step whose
            gradients overflow, and it counts for nothing.
        """
        if self.accelerator.optimizer_step_was_skipped:
            self.skipped += 1
            if self.skipped >= _MAX_SKIPPED:
                self._give_up(update, f"{self.skipped} updates in a row had infinite gradients")
            return False
        self.skipped = 0
        if self.average is not None:
            self.average.update()
        self.progress.updates += 1
        window = self.progress.window
        window.updates += 1
        window.items += update.items
        window.loss += self.loss * update.items
        window.padding += update.padding_share
        self.log.advance()
        return True

    def attend(self) -> bool:
        """Logs, validates and saves after an update where that is due; every process calls it.

        Returns:
            Whether the run is complete.

        Raises:
            KeyboardInterrupt: Somebody asked to stop; a checkpoint has been written.
        """
        done, settings = self.progress.updates, self.settings
        if done % settings.log_every == 0:
            self.write_log()
        if done % settings.validate_every == 0 and not self.is_complete():
            self.validate()
        is_last = self.is_complete()
        if done % settings.checkpoint_every == 0 or is_last or self.must_stop:
            self.save()
        if self.must_stop and not is_last:
            raise KeyboardInterrupt(
                f"stopped at update {done}; the run goes on from there with --resume "
                f"--output {self.run_dir}"
            )
        return is_last

    def compute_gradients(self, update: Update) -> torch.Tensor:
        """Forward and backward over this process's share of a global batch.

        Returns:
            Loss of the share: its sum over items divided by the items of all.

        Raises:
            RuntimeError: Out of memory.
        """
        accelerator = self.accelerator
        total = torch.zeros((), device=accelerator.device)
        last = len(update.pieces) - 1
        for number, piece in enumerate(update.pieces):
            piece = {k: v.to(accelerator.device, non_blocking=True) for k, v in piece.items()}
            # Gradients travel between processes once an update, with the last piece.
            is_synchronised = number == last
            waiting = (
                contextlib.nullcontext() if is_synchronised else accelerator.no_sync(self.model)
            )
            with waiting, self.explaining(piece):
                loss = self.model(**piece, num_items_in_batch=update.items).loss
                # DDP and FSDP average gradients over processes; they are to add up.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        return total

    @contextlib.contextmanager
    def explaining(self, piece: dict[str, torch.Tensor]) -> Iterator[None]:
        """Names the batch and the remedies if memory runs out over it.

        Raises:
            RuntimeError: It did.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            explanation = explain_out_of_memory(error, piece, self.settings)
            if explanation is None:
                raise
            raise RuntimeError(explanation) from error

    def _give_up(self, update: Update, reason: str) -> None:
        number = self.progress.updates + 1
        path = save_failed_update(
            self.run_dir, self.accelerator, self.tokenizer, update, number, reason
        )
        raise FloatingPointError(
            f"update {number}: {reason}; its batch is in {path}. Mend the data, lower "
            f"learning_rate_factor ({self.settings.learning_rate_factor}) or raise warmup "
            f"({self.settings.warmup}), then resume, or begin a new run"
        )

    # -------------------------------------------------------------------------------- telling

    def write_log(self) -> None:
        """A line of the log for the updates since the last one."""
        progress, window = self.progress, self.progress.window
        window.seconds += time.monotonic() - self.clock
        self.items_trained += window.items
        self.seconds_training += window.seconds
        values = {
            "loss": window.loss / window.items,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "items_per_second": window.items / window.seconds,
            "padding_share": window.padding / window.updates,
        }
        self.log.write(
            "train",
            progress.updates,
            {"epoch": self.stream.epoch, **values, "seconds": self.seconds},
        )
        left = (self.settings.updates - progress.updates) * window.seconds / window.updates
        if self.settings.max_minutes is not None:
            left = min(left, max(0.0, 60 * self.settings.max_minutes - self.seconds))
        self.log.progress(progress.updates, **values, seconds_left=left, item=self.task.item)
        progress.window = Window()
        self.clock = time.monotonic()

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        """Stops the clock of the training speed, which is that of training alone."""
        self.progress.window.seconds += time.monotonic() - self.clock
        yield
        self.clock = time.monotonic()

    # ----------------------------------------------------------------------------- validation

    def validate(self, is_final: bool = False) -> Validation:
        """Scores on the validation data; the best model so far is saved in `best/`."""
        with self._pause():
            found = self.task.validate(self.accelerator, self.model, self.settings)
            progress, scores = self.progress, found.scores
            self.log.write(
                "validation",
                progress.updates,
                {
                    "epoch": self.stream.epoch,
                    **scores,
                    "seconds": self.seconds,
                    "is_final": is_final,
                },
            )
            self.log.say(
                f"update {progress.updates}: validation {describe_scores(scores)}, "
                f"{self.seconds / 60:.1f} min"
            )
            if found.samples:
                self.log.say(show_samples(list(found.samples)))
            if self._is_best(scores):
                progress.best, progress.stale = scores, 0
                self.save_model(self.run_dir / "best")
            else:
                progress.stale += 1
        return found

    def _is_best(self, scores: dict[str, float]) -> bool:
        best, name = self.progress.best, self.best_by
        if not best:
            return True
        return scores[name] < best[name] if name in LOW_IS_GOOD else scores[name] > best[name]

    # --------------------------------------------------------------------------------- saving

    def save_model(self, path: Path) -> None:
        """The whole model with its tokenizer, loadable as one; every process calls it."""
        with whole_model(self.accelerator, self.model) as inner:
            if self.accelerator.is_main_process:
                with atomic_directory(path) as directory:
                    inner.save_pretrained(directory)
                    self.tokenizer.save_pretrained(directory)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """A checkpoint to resume from, written whole or not at all; every process calls it."""
        with self._pause():
            self._set_seconds(self.seconds)
            progress = {**vars(self.progress), "window": vars(self.progress.window)}
            save_checkpoint(
                self.run_dir,
                self.progress.updates,
                accelerator=self.accelerator,
                model=self.model,
                tokenizer=self.tokenizer,
                optimizer=self.optimizer,
                scheduler=self.scheduler,
                position=self.stream.state_dict(),
                progress={**progress, "monitor": self.monitor.state_dict()},
                extra_tensors=None if self.average is None else self.average.state_dict(),
            )
            if self.accelerator.is_main_process:
                rotate_checkpoints(self.run_dir, keep=self.settings.average_last)
            self.accelerator.wait_for_everyone()

    def _set_seconds(self, seconds: float) -> None:
        self.progress.seconds, self.started = seconds, time.monotonic()

    def restore(self) -> None:
        """Puts the run where its newest whole checkpoint was, and cuts its log there."""
        path = latest_checkpoint(self.run_dir)
        if path is None:
            raise ValueError(
                f"{self.run_dir} has no whole checkpoint to resume from; begin a new run elsewhere"
            )
        state = load_checkpoint(
            path,
            accelerator=self.accelerator,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
        )
        self.stream.load_state_dict(state.position)
        progress = dict(state.progress)
        self.monitor.load_state_dict(progress.pop("monitor"))
        self.progress = Progress(**{**progress, "window": Window(**progress["window"])})
        self._set_seconds(self.progress.seconds)
        self.clock = time.monotonic()
        # By the clock of the process that saved it: the same on all.
        self.is_late = self._is_over_time(self.progress.seconds)
        if self.average is not None:
            if not state.extra_tensors:
                raise ValueError(
                    f"{path} holds no moving average: the run was begun without ema_decay; resume "
                    "it without, or begin a new run"
                )
            self.average.load_state_dict(state.extra_tensors)
        # What was logged after the checkpoint happens again.
        self.log.cut(self.progress.updates)

    def finish(self) -> TrainingResult:
        """Averages the last checkpoints (6.1) into the final model, and validates that."""
        if self.average is not None:
            with self.average.applied():
                self.save_model(self.run_dir / "ema")
        final = self.run_dir / "model"
        if self.accelerator.is_main_process:
            last = find_checkpoints(self.run_dir)[-self.settings.average_last :]
            average_checkpoints(last, final, overwrite=True)
        self.accelerator.wait_for_everyone()
        inner = self.accelerator.unwrap_model(self.model)
        with whole_model(self.accelerator, self.model) as whole:
            averaged = type(whole).from_pretrained(final).to(self.accelerator.device)
        if whole is inner:
            inner.load_state_dict(averaged.state_dict())
        else:
            # A sharded model stays as it is: what is validated is the one on the disk.
            self.model = averaged
        found = self.validate(is_final=True)
        speed = self.items_trained / self.seconds_training if self.seconds_training else 0.0
        progress = self.progress
        return TrainingResult(progress.updates, self.seconds, speed, found.scores, progress.best)


def check_run_directory(run_dir: Path, resume: bool) -> None:
    """Keeps a new run from writing over an old one.

    Raises:
        ValueError: `run_dir` holds a run, and it is not to be resumed.
    """
    if find_checkpoints(run_dir) and not resume:
        raise ValueError(
            f"{run_dir} already holds a run; resume it (--resume) or choose another directory"
        )


def build_accelerator(settings: TrainingSettings) -> Accelerator:
    """The one Accelerator of a run.

    Raises:
        ValueError: Accelerate did not start what the environment asks for.
    """
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        # Otherwise a prepared scheduler steps once for each process at every update.
        step_scheduler_with_optimizer=False,
    )
    check_launch(accelerator)
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Compares what was launched with what Accelerate made of it.

    Raises:
        ValueError: Accelerate did not start what the environment asks for.
    """
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "precision (fp16) needs a GPU: on a processor Accelerate computes in float32 and does "
            "not say so; set precision to bf16 or no"
        )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate uses {accelerator.num_processes}; "
            "without GPUs set ACCELERATE_USE_CPU=true before launching"
        )
    wants_sharding = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
    if wants_sharding and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for and Accelerate chose {accelerator.distributed_type.value}: it "
            "shards on several GPUs only; use a configuration without FSDP"
        )
