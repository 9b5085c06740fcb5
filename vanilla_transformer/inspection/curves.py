"""The curves of a training run, from the `training_log.jsonl` that training writes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..atomic_file import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

# Of Okabe and Ito's palette, which stays legible to colour-blind readers and in grey.
TRAINING_COLOR = "#0072b2"
VALIDATION_COLOR = "#d55e00"
# Below so many points the training loss is drawn as it is; above, a running mean lies over it.
POINTS_BEFORE_SMOOTHING = 40


class TrainingLog(NamedTuple):
    """The lines of a training log by kind, each in the order of its updates.

    Attributes:
        training: "update", "epoch", "loss" (label-smoothed, nats per token), "learning_rate",
            "gradient_norm", "tokens_per_second", "padding_share", "seconds" and what else is there.
        validation: "update", "epoch", "loss" (plain negative log-likelihood, nats per token),
            "perplexity", "bleu" (0 to 100, or None), "seconds" and what else is there.
    """

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]


def read_training_log(path: str | Path) -> TrainingLog:
    """Read a training log, one JSON object a line; kinds other than the two are left out.

    A run that was resumed writes again the updates after its checkpoint: the later lines count, the
    earlier ones from that update on are dropped. A last line that is cut off, as a killed run
    leaves it, is dropped with a warning.

    Raises:
        ValueError: a line that is not a JSON object with "kind", "update" and "loss".
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    log = TrainingLog([], [])
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            # Every whole line ends in a newline, so only a line cut off comes last in the split.
            if number == len(lines):
                logger.warning("%s: line %d is cut off and left out", path, number)
                continue
            raise ValueError(
                f"{path}: line {number} is not JSON ({error}); remove or repair it"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
            raise ValueError(f"{path}: line {number} must be a JSON object with a 'kind'")
        if row["kind"] not in ("train", "validation"):
            continue
        missing = [key for key in ("update", "loss") if not isinstance(row.get(key), int | float)]
        if missing:
            raise ValueError(f"{path}: line {number} must have a number as {' and '.join(missing)}")
        update = row["update"]
        is_training = row["kind"] == "train"
        # Validation after an update follows that update's training line, so a training line
        # supersedes validations of its own update, and not the other way round.
        _drop_from(log.training, update if is_training else update + 1)
        _drop_from(log.validation, update)
        (log.training if is_training else log.validation).append(row)
    return log


def _drop_from(rows: list[dict[str, Any]], update: float) -> None:
    while rows and rows[-1]["update"] >= update:
        rows.pop()


def plot_training(log_path: str | Path, output_png: str | Path) -> Path:
    """Draw loss, learning rate and, where it was measured, BLEU against optimizer updates.

    Args:
        log_path: the run's `training_log.jsonl`.
        output_png: where the picture goes; parent folders are made.

    Returns:
        The picture's path.

    Raises:
        ValueError: the log has no line to draw, or one that cannot be read.
    """
    # matplotlib takes a second to load; a `Figure` of its own needs no display and no pyplot state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    log = read_training_log(log_path)
    if not log.training and not log.validation:
        raise ValueError(f"{log_path} has no training and no validation line; nothing to draw")
    scored = [row for row in log.validation if row.get("bleu") is not None]
    rated = [row for row in log.training if row.get("learning_rate") is not None]

    heights = [3.0, *([1.2] if rated else []), *([1.6] if scored else [])]
    figure = Figure(figsize=(8, 1.2 + 1.25 * sum(heights)), dpi=150, layout="constrained")
    panels = figure.subplots(
        len(heights), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    remaining = iter(panels)
    _plot_losses(next(remaining), log)
    if rated:
        axes = next(remaining)
        axes.plot(_column(rated, "update"), _column(rated, "learning_rate"), color=TRAINING_COLOR)
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)
        # Rates are around 1e-4 and a shared "1e-4" in the corner is easily overlooked.
        axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.1e}" if rate else "0")
    if scored:
        axes = next(remaining)
        updates, bleu = _column(scored, "update"), _column(scored, "bleu")
        axes.plot(updates, bleu, color=VALIDATION_COLOR, marker="o", markersize=3.5)
        best = int(np.argmax(bleu))
        axes.set_ylabel("validation BLEU\n(0 to 100)")
        axes.set_title(
            f"best BLEU {bleu[best]:.2f} at update {int(updates[best]):,}",
            loc="right",
            fontsize="small",
        )
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("optimizer updates")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))

    output = Path(output_png)
    with atomic_file(output) as temporary:
        figure.savefig(temporary, format="png")
    return output


def _plot_losses(axes: Axes, log: TrainingLog) -> None:
    """Training loss, its running mean where there are many points, and validation loss."""
    updates, losses = _column(log.training, "update"), _column(log.training, "loss")
    name = "training (label-smoothed, with dropout)"
    if len(losses) > POINTS_BEFORE_SMOOTHING:
        # Odd, so that each mean stands at the update in its middle: a trailing mean would lag.
        window = 2 * max(2, len(losses) // 100) + 1
        mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        axes.plot(updates, losses, color=TRAINING_COLOR, alpha=0.25, linewidth=0.8)
        axes.plot(
            updates[window // 2 : -(window // 2)],
            mean,
            color=TRAINING_COLOR,
            label=f"{name}, mean of {window} points",
        )
    elif len(losses):
        axes.plot(updates, losses, color=TRAINING_COLOR, label=name)
    if log.validation:
        axes.plot(
            _column(log.validation, "update"),
            _column(log.validation, "loss"),
            color=VALIDATION_COLOR,
            marker="o",
            markersize=3.5,
            label="validation (negative log-likelihood)",
        )
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)


def _column(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=np.float64)
