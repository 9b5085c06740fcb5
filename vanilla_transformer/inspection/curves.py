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

# What a validation row has beside the task's scores; perplexity only says the loss once more.
_NO_SCORES = frozenset(("kind", "update", "epoch", "loss", "perplexity", "seconds", "is_final"))
_LOW_IS_GOOD = ("loss", "perplexity")
_SCORE_NAMES = {"bleu": "BLEU", "f1": "F1", "macro_f1": "macro-F1"}


class TrainingLog(NamedTuple):
    """The lines of a training log by kind, each in the order of its updates.

    Attributes:
        training: "update", "epoch", "loss" (in training mode, nats per item), "learning_rate",
            "gradient_norm", "items_per_second", "padding_share", "seconds" and what else is there.
        validation: "update", "epoch", "loss" (plain negative log-likelihood, nats per item), the
            task's scores such as "perplexity" and "bleu" (0 to 100, or None), "seconds" and what
            else is there.
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
    # A pipe would be waited for, and a device read without end.
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the training_log.jsonl of a run")
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
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


def score_name(score: str) -> str:
    """A score as people write it: "bleu" is BLEU, "exact_match" is exact match."""
    return _SCORE_NAMES.get(score, score.replace("_", " "))


def plot_training(
    log_path: str | Path, output_png: str | Path, *, score: str | None = None
) -> Path:
    """Draw loss, learning rate and, where it was measured, a score against optimizer updates.

    Args:
        log_path: the run's `training_log.jsonl`.
        output_png: where the picture goes; parent folders are made.
        score: which of the validations' scores; by default the task's first, such as BLEU, F1 or
            accuracy.

    Returns:
        The picture's path.

    Raises:
        ValueError: the log has no line to draw, or one that cannot be read; or no validation has
            the score.
    """
    # matplotlib takes a second to load; a `Figure` of its own needs no display and no pyplot state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    log = read_training_log(log_path)
    if not log.training and not log.validation:
        raise ValueError(f"{log_path} has no training and no validation line; nothing to draw")
    if score is None:
        score = _first_score(log.validation)
    elif all(row.get(score) is None for row in log.validation):
        raise ValueError(f"{log_path}: no validation has the score {score!r}; leave it out")
    scored = [row for row in log.validation if score and row.get(score) is not None]
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
    if scored and score:
        axes = next(remaining)
        updates, values = _column(scored, "update"), _column(scored, score)
        axes.plot(updates, values, color=VALIDATION_COLOR, marker="o", markersize=3.5)
        is_low_good = score in _LOW_IS_GOOD
        best = int(np.argmin(values) if is_low_good else np.argmax(values))
        name = score_name(score)
        axes.set_ylabel(f"validation {name}" + ("" if is_low_good else "\n(0 to 100)"))
        axes.set_title(
            f"best {name} {values[best]:.2f} at update {int(updates[best]):,}",
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


def _first_score(rows: list[dict[str, Any]]) -> str | None:
    """The first score of the task that any of the validations has."""
    for row in rows:
        for name, value in row.items():
            if name not in _NO_SCORES and isinstance(value, int | float):
                return name
    return None


def _plot_losses(axes: Axes, log: TrainingLog) -> None:
    """Training loss, its running mean where there are many points, and validation loss."""
    updates, losses = _column(log.training, "update"), _column(log.training, "loss")
    name = "training (with dropout, and label smoothing if any)"
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
    axes.set_ylabel("loss (nats per item)")
    axes.legend(frameon=False)


def _column(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=np.float64)
