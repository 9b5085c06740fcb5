"""What a person sees of a run while it trains, and what stops it: both drivers use it."""

import json
import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    TensorBoardTracker,
    get_available_trackers,
)
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..atomic_file import atomic_file
from .settings import TrainingSettings
from .updates import Update

# How a torch allocator that has no exception of its own says that memory is out.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

_SCORE_NAMES = {"bleu": "BLEU", "exact_match": "exact match", "f1": "F1", "macro_f1": "macro-F1"}


class RunLog:
    """The log of a run, its trackers, and its progress on the screen.

    Every process makes one and calls it; only the main process writes. `training_log.jsonl` is the
    truth: one JSON object a line with `kind` and `update`; what is not a finite number is null.
    Trackers get the same numbers as `kind/name`.

    Args:
        run_dir: Holds the log, and what TensorBoard and trackio write.
        accelerator: Gets the trackers that the settings name, whatever it had.
        settings: Number of updates, and the trackers.

    Raises:
        ValueError: A tracker that Accelerate does not know, or whose package is missing.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator, settings: TrainingSettings):
        check_trackers(settings.trackers)
        self.path = run_dir / "training_log.jsonl"
        self.accelerator, self.settings = accelerator, settings
        _start_trackers(run_dir, accelerator, settings.trackers)
        is_main = accelerator.is_main_process
        # Each checkpoint would leave a bar of its own on the screen.
        self._has_bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        self._bar = tqdm(
            total=settings.updates,
            # `None`: only on a terminal.
            disable=None if is_main else True,
            bar_format="{n_fmt}/{total_fmt} {bar} {desc}",
            dynamic_ncols=True,
        )

    # ------------------------------------------------------------------------------ the record

    def write(self, kind: str, update: int, values: dict[str, Any]) -> None:
        """Appends a line to the log and passes its numbers on to the trackers.

        Args:
            kind: Such as train or validation.
            update: How many are done.
            values: JSON values.
        """
        if self.accelerator.is_main_process:
            entry = {"kind": kind, "update": update, **values}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_as_line(entry))
        scalars = {f"{kind}/{name}": value for name, value in values.items() if _is_number(value)}
        self.accelerator.log(scalars, step=update)

    def read(self) -> list[dict[str, Any]]:
        """All lines, oldest first, without a last one that was torn when the process was killed.

        Raises:
            ValueError: Another line is damaged.
        """
        if not self.path.exists():
            return []
        entries: list[dict[str, Any]] = []
        lines = self.path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                if number == len(lines):
                    break
                raise ValueError(
                    f"line {number} of {self.path} is damaged ({error}); mend or delete it"
                ) from error
        return entries

    def cut(self, update: int) -> None:
        """Drops what was logged after `update`, and a final validation: it all happens again."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        kept = [
            entry
            for entry in self.read()
            if entry["update"] <= update and not entry.get("is_final", False)
        ]
        with atomic_file(self.path) as file:
            file.write_text("".join(map(_as_line, kept)), encoding="utf-8")
        for tracker in self.accelerator.trackers:
            if isinstance(tracker, TensorBoardTracker):
                # TensorBoard forgets the later steps when they are purged in a new file.
                tracker.finish()
                tracker.init_kwargs = {"purge_step": update + 1}
                tracker.start()

    def clear(self) -> None:
        """Begins the log anew."""
        if self.accelerator.is_main_process:
            self.path.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------ the screen

    def advance(self, updates: int = 1) -> None:
        """Moves the bar."""
        self._bar.update(updates)

    def progress(
        self,
        update: int,
        *,
        loss: float,
        items_per_second: float,
        padding_share: float,
        gradient_norm: float,
        learning_rate: float,
        seconds_left: float,
        item: str,
    ) -> None:
        """Shows how it goes: beside the bar, or where there is no terminal as a line of its own.

        Args:
            item: What is counted a second; see `Task`.
        """

        def describe(norm: str, item: str) -> str:
            return (
                f"loss {loss:.2f}, {items_per_second:,.0f} {item}/s, {padding_share:.0%} "
                f"padding, {norm} {gradient_norm:.1f}, rate {learning_rate:.1e}, "
                f"{_duration(seconds_left)} left"
            )

        if self._bar.disable:
            self.say(f"update {update}/{self.settings.updates}: {describe('gradient norm', item)}")
        else:
            # Room for 100 columns, large numbers and all.
            self._bar.set_description_str(describe("norm", item.split()[-1]))

    def say(self, text: str) -> None:
        """Prints, above the bar if there is one."""
        if not self.accelerator.is_main_process:
            return
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def close(self) -> None:
        """Leaves the screen to others and ends the trackers."""
        self._bar.close()
        if self._has_bars:
            transformers_logging.enable_progress_bar()
        # Not `accelerator.end_training`, which also ends all talk between the processes.
        while self.accelerator.trackers:
            self.accelerator.trackers.pop().finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuses what Accelerate would pass over in silence.

    Raises:
        ValueError: A tracker that Accelerate does not know, or whose package is missing.
    """
    available = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"trackers: Accelerate knows no {name!r}; choose among "
                f"{', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in available:
            raise ValueError(
                f"trackers: the package of {name} is not installed; install it "
                f"(pip install {name.replace('_', '-')}) or leave {name} out"
            )


def _start_trackers(run_dir: Path, accelerator: Accelerator, names: Sequence[str]) -> None:
    accelerator.project_configuration.set_directories(str(run_dir))
    # TensorBoard calls its folder after the project: this keeps it where it is looked for.
    accelerator.log_with = [
        TensorBoardTracker("tensorboard", run_dir) if name == "tensorboard" else name
        for name in names
    ]
    run_name = run_dir.resolve().name
    if "trackio" in names:
        # Into a local database, without a network. It is read once a process, at the import.
        os.environ.setdefault("TRACKIO_DIR", str(run_dir.resolve() / "trackio"))
    accelerator.init_trackers(
        "vanilla_transformer",
        init_kwargs={
            "trackio": {"name": run_name, "resume": "allow"},
            "wandb": {"name": run_name},
        },
    )


class LossMonitor:
    """Tells when a run should stop: the loss is not a number, or has leapt up.

    The loss is compared with its running mean, exponential over about 100 updates and corrected
    for the beginning as Adam's moments are. Every process sees the same losses and so decides the
    same.

    Args:
        max_spike: Nats above the mean that stop the run; None never.
        warmup: Updates in which no spike counts.
    """

    _DECAY = 0.99
    _FEWEST = 20

    def __init__(self, max_spike: float | None, warmup: int):
        self.max_spike, self.warmup = max_spike, warmup
        self._sum = 0.0
        self._seen = 0

    @property
    def mean(self) -> float:
        """Of the losses seen so far; not a number before the first."""
        if not self._seen:
            return math.nan
        return self._sum / (1 - self._DECAY**self._seen)

    def check(self, update: int, loss: float, gradient_norm: float | None = None) -> str | None:
        """Takes note of the loss of an update.

        Args:
            update: Its number, from 1.
            loss: Nats per token, over all processes.
            gradient_norm: Before clipping; None where it may overflow, as with fp16.

        Returns:
            The reason to stop, or None.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if gradient_norm is not None and not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm} (the loss is {loss:.3f})"
        is_watched = update > self.warmup and self._seen >= self._FEWEST
        if self.max_spike is not None and is_watched and loss > self.mean + self.max_spike:
            return (
                f"the loss is {loss:.3f}, more than max_loss_spike ({self.max_spike}) above its "
                f"running mean of {self.mean:.3f}"
            )
        self._sum = self._DECAY * self._sum + (1 - self._DECAY) * loss
        self._seen += 1
        return None

    def state_dict(self) -> dict[str, float]:
        """Plain JSON numbers, exact."""
        return {"sum": self._sum, "seen": self._seen}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on where `state` was taken."""
        self._sum, self._seen = float(state["sum"]), int(state["seen"])


def save_failed_update(
    run_dir: Path,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    update: Update,
    number: int,
    reason: str,
) -> Path:
    """Writes down the batch at which a run stopped; every process calls it.

    Args:
        run_dir: Gets `failed_update-%08d.json`.
        update: This process's share of it.
        number: Of the update, from 1.
        reason: Why it stopped.

    Returns:
        The file, for the error message. It holds the rows of the batch in the training data and,
        for each process and piece, token ids and text.
    """
    path = run_dir / f"failed_update-{number:08d}.json"
    mine = {
        "process": accelerator.process_index,
        "pieces": [_describe_piece(piece, tokenizer) for piece in update.pieces],
    }
    content = {
        "reason": reason,
        "update": number,
        "items": update.items,
        "rows": list(update.rows),
        "processes": gather_object([mine]),
    }
    try:
        if accelerator.is_main_process:
            with atomic_file(path) as file:
                file.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    finally:
        # A process that ends with an error ends the others, perhaps amid the writing.
        accelerator.wait_for_everyone()
    return path


def _describe_piece(
    piece: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    values = {name: tensor.tolist() for name, tensor in piece.items()}
    text = {"source": tokenizer.batch_decode(values["input_ids"], skip_special_tokens=True)}
    if "labels" in piece and piece["labels"].ndim == 2 and not piece["labels"].is_floating_point():
        targets = [[token for token in row if token >= 0] for row in values["labels"]]
        text["target"] = tokenizer.batch_decode(targets, skip_special_tokens=True)
    return values | text


def explain_out_of_memory(
    error: BaseException, piece: dict[str, torch.Tensor], settings: TrainingSettings
) -> str | None:
    """What was too large and what helps; None if `error` does not mean that memory is out.

    Args:
        error: What forward or backward raised.
        piece: The batch of tensors, `input_ids` `[B, S]` and perhaps `labels` `[B, T]`.
    """
    is_out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )
    if not is_out_of_memory:
        return None
    sentences, source = piece["input_ids"].shape
    size = f"{sentences} sentences x {source} source tokens"
    if "labels" in piece and piece["labels"].ndim == 2:
        size += f" x {piece['labels'].shape[1]} labels"
    remedies = [
        f"lower max_source_tokens ({settings.max_source_tokens}) and max_target_tokens "
        f"({settings.max_target_tokens})"
    ]
    if sentences > 1:
        remedies.append(
            f"raise accumulation_steps ({settings.accumulation_steps}), which leaves the global "
            "batch as it is"
        )
    if not settings.activation_checkpointing:
        remedies.append("set activation_checkpointing=true")
    if settings.precision == "no":
        remedies.append("set precision=bf16")
    return (
        f"out of memory with a batch of {size} on {piece['input_ids'].device}: "
        f"{'; or '.join(remedies)}"
    )


class Interruption:
    """Turns Ctrl-C and SIGTERM into a wish to stop, to be met when the run can be saved.

    A second Ctrl-C raises KeyboardInterrupt at once. Off the main thread, where Python allows no
    handlers, it does nothing.

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._replaced: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._replaced[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._replaced.items():
            # None: it was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._replaced.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A data worker forked from this process: its parent will end it.
            return
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested = True
        # Of several processes one speaks.
        if os.environ.get("RANK", "0") == "0":
            # Not `print`: the signal may have come amid one, which cannot be entered twice.
            message = f"\n{signal.Signals(number).name}: saving after this update, then stopping"
            hint = "; Ctrl-C again stops at once and saves nothing\n"
            os.write(2, (message + hint).encode())


def describe_scores(scores: dict[str, float]) -> str:
    """Scores in one line: `loss 3.214, perplexity 24.88, BLEU 31.02`."""
    return ", ".join(
        f"{_SCORE_NAMES.get(name, name)} {value:.{3 if name == 'loss' else 2}f}"
        for name, value in scores.items()
    )


def show_samples(samples: Sequence[tuple[str, str, str]]) -> str:
    """Lines that show predictions.

    Args:
        samples: What was given, what was expected and what came out, of each.
    """
    return "\n".join(
        f"  given      {given}\n  expected   {expected}\n  predicted  {predicted}"
        for given, expected, predicted in samples
    )


def _as_line(entry: dict[str, Any]) -> str:
    """JSON has no word for what is not a finite number, though Python would write one."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
    return json.dumps(finite) + "\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
