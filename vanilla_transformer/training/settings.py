"""How to train, as one validated dataclass that both drivers (loop and trainer) read."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingSettings:
    """Everything about a training run that is neither model nor data. Defaults: the paper's base.

    Attributes:
        updates: Optimizer updates (5.2).
        warmup: Updates over which the learning rate rises (5.3).
        learning_rate_factor: Multiplies the rate of equation 3.
        max_source_tokens: Padded source tokens of a global batch (5.1).
        max_target_tokens: Padded target tokens of a global batch (5.1); where there is no target
            text, its examples.
        accumulation_steps: Pieces in which a process computes its part of a batch.
        max_gradient_norm: Gradients are scaled down to this norm; None leaves them.
        validate_every: Updates between validations.
        validation_beams: Beam width where a validation writes text; 1 is greedy.
        validation_examples: How many validation examples are predicted and scored; None for all.
        sample_predictions: How many of them are shown with each validation.
        monitor: The score that makes a validation the best, such as bleu, f1, accuracy or loss; by
            default the task's first.
        patience: Stops after so many validations in a row that are not the best; None never.
        checkpoint_every: Updates between resumable checkpoints.
        average_last: Checkpoints kept, and averaged for the final model (6.1: 5 for base, 20 for
            big); 1 takes the last weights as they are.
        ema_decay: Of an exponential moving average of the weights, kept beside them and saved
            as `RUN/ema`; None for none.
        log_every: Updates between lines of the log.
        trackers: Where metrics go besides the log: names that Accelerate knows, such as
            tensorboard, trackio, wandb.
        max_loss_spike: Stops the run at an update whose loss lies this many nats per item above
            the running mean, once warm-up is over; None never. What is not a number always stops
            it.
        precision: Of the forward pass: "no" is float32 throughout.
        activation_checkpointing: Recompute activations in the backward pass: less memory for one
            more forward pass.
        compile: Compile the forward and backward pass with `torch.compile`.
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
    validation_examples: int | None = None
    sample_predictions: int = 2
    monitor: str | None = None
    patience: int | None = None
    checkpoint_every: int = 1000
    average_last: int = 5
    ema_decay: float | None = None
    log_every: int = 50
    trackers: tuple[str, ...] = ("tensorboard",)
    max_loss_spike: float | None = 4.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    activation_checkpointing: bool = False
    compile: bool = False
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
        for name, meaning in (("validation_examples", "all"), ("patience", "no early stopping")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1, or unset for {meaning}")
        for name in (
            "learning_rate_factor",
            "max_gradient_norm",
            "max_minutes",
            "max_loss_spike",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} ({value}) must be above 0")
        for name in ("num_workers", "seed", "sample_predictions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"ema_decay ({self.ema_decay}) must lie between 0 and 1, such as 0.999"
            )
