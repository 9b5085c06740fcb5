"""The run of `loop.py` through transformers' `Trainer`, and what any `Trainer` may borrow from it.

Both drivers work on the same `Run`: data, log, validation, checkpoints and the end are its own,
and a run that one of them began, the other can resume. Here transformers computes the gradients and
applies them.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from .averaging import ExponentialMovingAverage
from .checkpointing import atomic_directory
from .loop import Run, TrainingResult, check_launch, check_run_directory
from .optimization import build_optimizer, build_scheduler
from .settings import TrainingSettings
from .sharding import shard_model
from .task import Task
from .updates import Update, UpdateStream
from .watching import Interruption

# Beside the weights in each of a Trainer's own checkpoints.
_AVERAGE = "exponential_moving_average.safetensors"


def train_with_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Dataset | IterableDataset,
    run_dir: Path,
    settings: TrainingSettings,
    *,
    resume: bool = False,
) -> TrainingResult:
    """`loop.train` by other means: same arguments, result, files and errors."""
    check_run_directory(run_dir, resume)
    trainer = RunTrainer(model=model, args=training_arguments(run_dir, settings, model))
    trainer.remove_callback(PrinterCallback)
    accelerator = trainer.accelerator
    check_launch(accelerator)
    trainer.run = run = Run(accelerator, model, tokenizer, task, examples, run_dir, settings)
    trainer.add_callback(RunCallback(trainer, resume))
    shard_model(accelerator, model)
    with contextlib.closing(run.log), Interruption() as run.interruption:
        with contextlib.suppress(_NothingLeft):
            trainer.train()
        return run.finish()


def training_arguments(
    run_dir: Path, settings: TrainingSettings, model: PreTrainedModel
) -> Seq2SeqTrainingArguments:
    """`settings` in Trainer's words. What `Run` does itself is turned off.

    Raises:
        ValueError: One process and several GPUs, over which Trainer would spread each batch.
    """
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(run_dir),
        max_steps=settings.updates,
        gradient_accumulation_steps=settings.accumulation_steps,
        # Unset, it would be 1.
        max_grad_norm=settings.max_gradient_norm or 0.0,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        use_cpu=not torch.accelerator.is_available(),
        seed=settings.seed,
        ddp_find_unused_parameters=False,
        # Trainer writes it into the model's config.
        use_cache=model.config.use_cache,
        # It would report the mean of the other losses in place of one that is not a number.
        logging_nan_inf_filter=False,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        raise ValueError(
            f"one process was launched on a machine of {arguments.n_gpu} GPUs; launch one for each "
            "(torchrun --nproc-per-node) or show it one of them (CUDA_VISIBLE_DEVICES=0)"
        )
    return arguments


class VanillaTransformerTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` that predicts each sentence once, on any number of processes.

    The original gathers the sentences, too, with which the last batch was filled up.
    """

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As in transformers; `evaluate` and `predict` pass through here."""
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)


class RunTrainer(VanillaTransformerTrainer):
    """Trains what its `run` tells it to.

    Attributes:
        run: Set before training.
        update: The update in progress, this process's share.
        loss: Of the pieces computed so far: their sum over items divided by the items of all.
        gradient_norm: Of the whole update, before clipping.
    """

    run: Run
    update: Update
    loss: torch.Tensor
    gradient_norm: Any

    def get_train_dataloader(self) -> Any:
        """The pieces of the updates one after another; each process reads its own."""
        return _Pieces(self)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The pieces of one update, with the items of the whole: Trainer counts `labels` only."""
        pieces = list(itertools.islice(epoch_iterator, num_batches))
        return pieces, torch.tensor(self.update.items, device=device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The paper's Adam."""
        self.optimizer = build_optimizer(self.model if model is None else model)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """The paper's schedule."""
        settings = self.run.settings
        self.lr_scheduler = build_scheduler(
            self.optimizer if optimizer is None else optimizer,
            self.model.config.d_model,
            settings.warmup,
            settings.learning_rate_factor,
        )
        return self.lr_scheduler

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """As in transformers, and adds up the loss of the update."""
        with self.run.explaining(inputs):
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        # DDP and FSDP average gradients over processes, so that Trainer multiplies the loss by
        # their number.
        self.loss = self.loss + loss / self.accelerator.num_processes
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # The one place that knows it. Were it gone, there would be no `gradient_norm` to check.
        self.gradient_norm = super()._get_grad_norm(model, grad_norm)
        return self.gradient_norm


class _Pieces:
    """The pieces of every update, flat, as Trainer wants them: it takes those of one at a time.

    A plain iterable: a `DataLoader` would be divided among the processes a second time, and would
    draw from the generator that dropout draws from.
    """

    def __init__(self, trainer: RunTrainer):
        self.trainer = trainer

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        stream: UpdateStream = self.trainer.run.stream
        for update in stream:
            self.trainer.update = update
            self.trainer.loss = torch.zeros((), device=self.trainer.accelerator.device)
            yield from update.pieces


# A signal, not an error.
class _NothingLeft(Exception):  # noqa: N818
    """A run resumed at its end; Trainer would do one more update before it asked."""


class RunCallback(TrainerCallback):
    """Hands what Trainer has computed to the run, and what the run decides to Trainer."""

    def __init__(self, trainer: RunTrainer, resume: bool):
        self.trainer, self.resume = trainer, resume

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything is prepared: begin, or go on where the newest checkpoint ends."""
        trainer, run = self.trainer, self.trainer.run
        run.adopt(trainer.model_wrapped, trainer.optimizer, trainer.lr_scheduler)
        run.begin(self.resume)
        if run.is_complete():
            raise _NothingLeft

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the weights change: they stay good."""
        trainer = self.trainer
        trainer.run.check(trainer.update, trainer.loss, trainer.gradient_norm)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts the update, logs, validates and saves."""
        run = self.trainer.run
        is_counted = run.count(self.trainer.update)
        # Set either way: by Trainer's own count, which knows nothing of resumed runs and of updates
        # that a gradient scaler refused, it may have decided to stop.
        control.should_training_stop = is_counted and run.attend()


class ExponentialMovingAverageCallback(TrainerCallback):
    """An exponential moving average of the weights, beside those that any `Trainer` trains.

    It is saved in every checkpoint, restored on resume, and in the end written as a model of its
    own, `OUTPUT_DIR/ema`.

    Args:
        decay: Of the average at each update, such as 0.999.
        resume_from: The checkpoint that `train` is told to resume from, where it does not lie in
            the output directory.
    """

    average: ExponentialMovingAverage

    def __init__(self, decay: float, resume_from: Path | None = None):
        self.decay, self.resume_from = decay, resume_from

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins at the weights as they are, or goes on with the average of the checkpoint.

        Raises:
            ValueError: The checkpoint has none, or the model is sharded.
        """
        model = kwargs["model"]
        if isinstance(model, FSDPModule):
            raise ValueError(
                "ExponentialMovingAverageCallback cannot save a sharded model; train with "
                "ema_decay in TrainingSettings, or without FSDP"
            )
        self.average = ExponentialMovingAverage(model, self.decay)
        if state.global_step:
            file = (self.resume_from or _checkpoint(args, state)) / _AVERAGE
            if not file.is_file():
                raise ValueError(
                    f"{file} is missing: the moving average cannot go on from there. Give "
                    "resume_from=CHECKPOINT, or leave the callback out"
                )
            self.average.load_state_dict(load_file(file))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Follows the weights, unless a gradient scaler left them as they were."""
        if not getattr(kwargs["optimizer"], "step_was_skipped", False):
            self.average.update()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds the average to the checkpoint."""
        if state.is_world_process_zero:
            save_file(self.average.state_dict(), _checkpoint(args, state) / _AVERAGE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes the averaged model."""
        if not state.is_world_process_zero:
            return
        with self.average.applied(), atomic_directory(Path(args.output_dir) / "ema") as directory:
            kwargs["model"].save_pretrained(directory)
            if kwargs["processing_class"] is not None:
                kwargs["processing_class"].save_pretrained(directory)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Where Trainer saves what it has after `state.global_step` updates."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
