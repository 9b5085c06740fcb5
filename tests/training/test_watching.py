"""What a run writes and shows while it trains, and what stops it."""

import fcntl
import json
import math
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing import event_accumulator
from transformers import PreTrainedTokenizerBase

from tests.training.tiny_run import World
from vanilla_transformer.training import watching
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.updates import Update
from vanilla_transformer.training.watching import (
    Interruption,
    LossMonitor,
    RunLog,
    describe_scores,
    explain_out_of_memory,
    save_failed_update,
    show_samples,
)

PROGRESS: dict[str, Any] = {
    "loss": 4.2149,
    "items_per_second": 12345.6,
    "padding_share": 0.031,
    "gradient_norm": 0.94,
    "learning_rate": 7e-4,
    "seconds_left": 738.0,
    "item": "target tokens",
}


def make_log(run_dir: Path, updates: int = 10, *trackers: str) -> RunLog:
    settings = TrainingSettings(updates=updates, trackers=trackers)
    return RunLog(run_dir, Accelerator(cpu=True), settings)


def another_process() -> Any:
    """Stands for the accelerator of a process that is not the main one."""
    accelerator: Any = Accelerator(cpu=True)
    return SimpleNamespace(
        is_main_process=False,
        process_index=1,
        num_processes=2,
        project_configuration=accelerator.project_configuration,
        init_trackers=lambda *args, **options: None,
        log=lambda *args, **options: None,
        wait_for_everyone=lambda: None,
        trackers=[],
    )


# The record


def test_a_line_is_one_json_object_and_not_a_number_is_null(tmp_path: Path) -> None:
    log = make_log(tmp_path / "run")
    assert log.read() == []
    log.write("train", 5, {"loss": 1.5, "gradient_norm": math.inf, "note": "ü"})
    log.write("validation", 5, {"loss": math.nan, "is_final": True})
    lines = (tmp_path / "run" / "training_log.jsonl").read_text("utf-8").split("\n")
    assert lines[-1] == ""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert [json.loads(line, parse_constant=refuse) for line in lines[:-1]] == log.read()
    assert log.read() == [
        {"kind": "train", "update": 5, "loss": 1.5, "gradient_norm": None, "note": "ü"},
        {"kind": "validation", "update": 5, "loss": None, "is_final": True},
    ]
    log.clear()
    assert log.read() == []


def test_a_resumed_run_loses_what_it_will_do_again(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    for update in (1, 2, 3, 4):
        log.write("train", update, {"loss": 1.0 / update})
    log.write("validation", 2, {"loss": 1.0, "is_final": False})
    log.write("validation", 2, {"loss": 2.0, "is_final": True})
    with open(log.path, "a", encoding="utf-8") as file:
        # Killed in the middle of a line.
        file.write('{"kind": "train", "update": 5, "lo')
    log.cut(2)
    assert log.read() == [
        {"kind": "train", "update": 1, "loss": 1.0},
        {"kind": "train", "update": 2, "loss": 0.5},
        {"kind": "validation", "update": 2, "loss": 1.0, "is_final": False},
    ]
    log.write("train", 3, {"loss": 0.25})
    assert log.read()[-1] == {"kind": "train", "update": 3, "loss": 0.25}
    assert [file.name for file in tmp_path.iterdir()] == ["training_log.jsonl"]


def test_cutting_short_the_cut_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log(tmp_path)
    log.write("train", 1, {"loss": 1.0})
    before = log.path.read_bytes()

    def die(self: Path, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        log.cut(0)
    assert log.path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["training_log.jsonl"]


def test_a_damaged_line_amid_the_log_is_named(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.path.write_text('{"kind": "train", "update": 1}\n{"ki\n{"kind": "train", "update": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*training_log\.jsonl is damaged"):
        log.cut(1)


def test_only_the_main_process_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    log = RunLog(run_dir, another_process(), TrainingSettings())
    log.write("train", 1, {"loss": 1.0})
    log.say("hello")
    log.advance()
    log.progress(1, **PROGRESS)
    assert not run_dir.exists()
    # What the main process has written stays.
    main = make_log(run_dir)
    main.write("train", 1, {"loss": 1.0})
    log.cut(0)
    log.clear()
    log.close()
    assert len(main.read()) == 1
    assert capfd.readouterr() == ("", "")


def scalars_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = event_accumulator.EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_gets_the_numbers_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    log = make_log(tmp_path, 10, "tensorboard")
    for update in (1, 2, 3):
        log.write("train", update, {"loss": update / 2, "note": "x", "is_final": False})
    log.close()
    assert log.accelerator.trackers == []
    assert scalars_of(tmp_path) == {"train/loss": [(1, 0.5), (2, 1.0), (3, 1.5)]}
    # A run is resumed in another second: TensorBoard reads its files in the order of their names,
    # which begin with the second and end with a number that 10 does not follow 9 in.
    time.sleep(1.1)
    log = make_log(tmp_path, 10, "tensorboard")
    log.cut(1)
    log.write("train", 2, {"loss": 8.0})
    log.close()
    assert scalars_of(tmp_path) == {"train/loss": [(1, 0.5), (2, 8.0)]}


def test_trackio_writes_into_the_run_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed (extra `trackio`)")
    # Set first, so that what the log sets is taken back.
    monkeypatch.setenv("TRACKIO_DIR", "elsewhere")
    del os.environ["TRACKIO_DIR"]
    # It reads the variable when it is imported.
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)

    def refuse(self: Any, address: Any) -> None:
        raise AssertionError(f"trackio wants to connect to {address}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    log = make_log(tmp_path, 10, "trackio")
    log.write("train", 3, {"loss": 1.5})
    log.close()
    import sqlite3

    [database] = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        [(step, metrics)] = connection.execute("select step, metrics from metrics").fetchall()
    assert (step, json.loads(metrics)) == (3, {"train/loss": 1.5})


def test_trackers_that_cannot_be_had_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(ValueError, match=r"no 'tensorbord'; choose among .*tensorboard"):
        make_log(run_dir, 10, "tensorboard", "tensorbord")
    monkeypatch.setattr(watching, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"package of comet_ml is not.*pip install comet-ml"):
        make_log(run_dir, 10, "tensorboard", "comet_ml")
    assert not run_dir.exists()


# The screen


def test_without_a_terminal_progress_is_one_short_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = make_log(tmp_path, 8000)
    log.advance(500)
    log.progress(500, **PROGRESS)
    log.say("above")
    log.progress(500, **{**PROGRESS, "seconds_left": 86400.0, "item": "questions"})
    log.close()
    first, above, second = capfd.readouterr().out.splitlines()
    assert first == (
        "update 500/8000: loss 4.21, 12,346 target tokens/s, 3% padding, gradient norm 0.9, "
        "rate 7.0e-04, 12.3 min left"
    )
    assert above == "above"
    assert "12,346 questions/s, " in second
    assert second.endswith("24.0 h left")


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Makes a terminal of 100 columns of stderr and stdout; gives what was written since."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with monkeypatch.context() as patch, open(theirs, "w", encoding="utf-8") as screen:
        patch.setattr(sys, "stderr", screen)
        patch.setattr(sys, "stdout", screen)

        def read() -> str:
            screen.flush()
            content = b""
            # The system passes it on in its own time.
            while select.select([ours], [], [], 0.3)[0]:
                content += os.read(ours, 65536)
            return content.decode("utf-8")

        yield read
    os.close(ours)


@pytest.mark.parametrize(
    ("item", "word"), [("target tokens", "tokens"), ("questions", "questions")]
)
def test_on_a_terminal_the_bar_shows_all_in_100_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: str, word: str
) -> None:
    values = {**PROGRESS, "items_per_second": 1234567.0, "seconds_left": 359999.0, "item": item}
    with terminal(monkeypatch) as read:
        log = make_log(tmp_path, 100_000)
        log.advance(99_999)
        log.progress(99_999, **values)
        bar = re.split(r"[\r\n]", read())[-1]
        log.say("a line\nand another")
        said = re.split(r"[\r\n]+", read().strip("\r\n"))
        log.close()
    assert bar.startswith("99999/100000 ")
    assert bar.endswith(
        f" loss 4.21, 1,234,567 {word}/s, 3% padding, norm 0.9, rate 7.0e-04, 100.0 h left"
    )
    assert len(bar) <= 100
    assert [line.strip() for line in said[-3:]] == ["a line", "and another", bar]


def test_samples_are_shown_one_below_the_other() -> None:
    text = show_samples([("ein Hund", "a dog", "a cat"), ("zwei", "two", "")])
    assert text.splitlines() == [
        "  given      ein Hund",
        "  expected   a dog",
        "  predicted  a cat",
        "  given      zwei",
        "  expected   two",
        "  predicted  ",
    ]
    assert show_samples([]) == ""


def test_scores_of_any_task_are_one_line() -> None:
    scores = {"loss": 3.2137, "perplexity": 24.8761, "bleu": 31.0249}
    assert describe_scores(scores) == "loss 3.214, perplexity 24.88, BLEU 31.02"
    scores = {"loss": 0.5, "f1": 88.0, "exact_match": 81.5, "macro_f1": 70.0, "accuracy": 100.0}
    assert describe_scores(scores) == (
        "loss 0.500, F1 88.00, exact match 81.50, macro-F1 70.00, accuracy 100.00"
    )


# What stops a run


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_a_number_stops_at_once(loss: float) -> None:
    assert LossMonitor(None, warmup=1000).check(1, loss) == f"the loss is {loss}"
    reason = LossMonitor(None, warmup=1000).check(1, 2.0, loss)
    assert reason == f"the gradient norm is {loss} (the loss is 2.000)"
    assert LossMonitor(None, warmup=1000).check(1, 2.0) is None


def test_a_spike_stops_after_warmup_and_not_before() -> None:
    monitor = LossMonitor(4.0, warmup=50)
    for update in range(1, 50):
        assert monitor.check(update, 3.0) is None
    assert monitor.check(50, 7.5) is None
    mean = monitor.mean
    assert 3.0 < mean < 3.2
    assert monitor.check(51, mean + 3.9) is None
    reason = monitor.check(52, 7.5)
    assert reason is not None
    assert "the loss is 7.500, more than max_loss_spike (4.0) above its running mean" in reason


def test_a_spike_needs_twenty_losses_to_be_one() -> None:
    for seen, stops in ((19, False), (20, True)):
        monitor = LossMonitor(1.0, warmup=1)
        for update in range(1, seen + 1):
            assert monitor.check(update, 3.0) is None
        assert (monitor.check(seen + 1, 5.0) is not None) == stops


def test_no_spike_stops_a_run_that_does_not_ask() -> None:
    monitor = LossMonitor(None, warmup=1)
    assert all(monitor.check(update, 1.0 if update < 99 else 1e6) is None for update in range(150))


def test_the_running_mean_weighs_the_last_hundred_losses_most() -> None:
    monitor = LossMonitor(None, warmup=1)
    assert math.isnan(monitor.mean)
    losses = [10.0 / (1 + n / 7) for n in range(150)]
    for update, loss in enumerate(losses, start=1):
        monitor.check(update, loss)
        weights = [0.99 ** (update - i) for i in range(1, update + 1)]
        naive = sum(w * x for w, x in zip(weights, losses[:update], strict=True)) / sum(weights)
        assert monitor.mean == pytest.approx(naive, rel=1e-12)


def test_a_resumed_monitor_decides_the_same() -> None:
    monitor = LossMonitor(1.0, warmup=1)
    for update in range(1, 31):
        monitor.check(update, 3.0 + math.sin(update))
    again = LossMonitor(1.0, warmup=1)
    again.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert again.mean == monitor.mean
    # To the last bit: on either side of the limit.
    limit = monitor.mean + 1.0
    for one in (monitor, again):
        assert one.check(31, math.nextafter(limit, math.inf)) is not None
        assert one.check(31, limit) is None
    assert again.state_dict() == monitor.state_dict()


# The batch that stopped it


@pytest.fixture(scope="module")
def tokenizer(world: World) -> PreTrainedTokenizerBase:
    return world.tokenizer


def failed_update(tokenizer: PreTrainedTokenizerBase) -> Update:
    batch = tokenizer(["The dog sleeps.", "The dog."], padding=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    labels[1, -2:] = -100
    piece = {**batch, "labels": labels}
    return Update([piece, piece], items=9, padding_share=0.1, rows=(7, 3))


def test_the_failed_batch_is_written_with_rows_ids_and_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    update = failed_update(tokenizer)
    path = save_failed_update(tmp_path, Accelerator(cpu=True), tokenizer, update, 12, "a reason")
    assert path == tmp_path / "failed_update-00000012.json"
    saved = json.loads(path.read_text("utf-8"))
    assert (saved["reason"], saved["update"], saved["rows"]) == ("a reason", 12, [7, 3])
    assert saved["items"] == 9
    [process] = saved["processes"]
    assert process["process"] == 0
    assert len(process["pieces"]) == 2
    piece = process["pieces"][1]
    assert piece["input_ids"] == update.pieces[1]["input_ids"].tolist()
    assert piece["labels"] == update.pieces[1]["labels"].tolist()
    assert piece["source"] == ["The dog sleeps.", "The dog."]
    assert piece["target"][0] == "The dog sleeps."
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"labels": torch.tensor([1, -100])},
        {"labels": torch.tensor([[0.0, 1.0], [1.0, 0.0]])},
        {"start_positions": torch.tensor([3, 0]), "end_positions": torch.tensor([4, 0])},
    ],
    ids=["none", "one a row", "several a row", "spans"],
)
def test_a_failed_batch_without_target_text_is_written_as_it_is(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, labels: dict[str, torch.Tensor]
) -> None:
    batch = tokenizer(["The dog sleeps.", "The dog."], padding=True, return_tensors="pt")
    update = Update([{**batch, **labels}], items=2, padding_share=0.1)
    path = save_failed_update(tmp_path, Accelerator(cpu=True), tokenizer, update, 1, "a reason")
    [process] = json.loads(path.read_text("utf-8"))["processes"]
    [piece] = process["pieces"]
    assert piece["source"] == ["The dog sleeps.", "The dog."]
    assert "target" not in piece
    for name, tensor in update.pieces[0].items():
        assert piece[name] == tensor.tolist()


def test_only_the_main_process_writes_the_failed_batch(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = []

    def gather(objects: list[Any]) -> list[Any]:
        gathered.extend(objects)
        return objects

    monkeypatch.setattr(watching, "gather_object", gather)
    update = failed_update(tokenizer)
    path = save_failed_update(tmp_path, another_process(), tokenizer, update, 1, "a reason")
    assert path.name == "failed_update-00000001.json"
    assert [part["process"] for part in gathered] == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_batch_that_cannot_be_written_leaves_no_part_and_nobody_waiting(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = Accelerator(cpu=True)
    waited = []
    monkeypatch.setattr(accelerator, "wait_for_everyone", lambda: waited.append(True))

    def fail(self: Path, *_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_failed_update(
            tmp_path, accelerator, tokenizer, failed_update(tokenizer), 1, "a reason"
        )
    assert list(tmp_path.iterdir()) == []
    assert waited == [True]


# Memory

PIECE = {
    "input_ids": torch.zeros(12, 100, dtype=torch.long),
    "labels": torch.zeros(12, 90, dtype=torch.long),
}


def error_of_the_cpu_allocator() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("whatever it says"),
        MemoryError(),
        error_of_the_cpu_allocator(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_names_the_batch_and_what_helps(error: BaseException) -> None:
    explanation = explain_out_of_memory(error, PIECE, TrainingSettings(max_target_tokens=4321))
    assert explanation is not None
    assert "12 sentences x 100 source tokens x 90 labels on cpu" in explanation
    for remedy in (
        "max_source_tokens (25000)",
        "max_target_tokens (4321)",
        "raise accumulation_steps (1)",
        "activation_checkpointing=true",
        "precision=bf16",
    ):
        assert remedy in explanation


@pytest.mark.parametrize("labels", [{}, {"labels": torch.zeros(12, dtype=torch.long)}])
def test_out_of_memory_names_a_batch_without_target_text(labels: dict[str, torch.Tensor]) -> None:
    piece = {"input_ids": PIECE["input_ids"], **labels}
    explanation = explain_out_of_memory(MemoryError(), piece, TrainingSettings())
    assert explanation is not None
    assert "a batch of 12 sentences x 100 source tokens on cpu: " in explanation
    assert "raise accumulation_steps (1)" in explanation


def test_no_remedy_is_named_that_is_taken_or_cannot_help() -> None:
    settings = TrainingSettings(activation_checkpointing=True, precision="bf16")
    one = {name: tensor[:1] for name, tensor in PIECE.items()}
    explanation = explain_out_of_memory(MemoryError(), one, settings)
    assert explanation is not None
    assert "max_source_tokens" in explanation
    for remedy in ("accumulation_steps", "activation_checkpointing", "precision"):
        assert remedy not in explanation


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()]
)
def test_other_errors_are_not_taken_for_out_of_memory(error: BaseException) -> None:
    assert explain_out_of_memory(error, PIECE, TrainingSettings()) is None


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_told_once(
    number: signal.Signals, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.requested
        signal.raise_signal(number)
        assert interruption.requested
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(number) == before
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.count(f"{number.name}: saving after this update, then stopping") == 1


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt_twice() -> None:
        with Interruption():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert signal.getsignal(signal.SIGINT) == before


def test_one_process_of_many_tells(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
    assert interruption.requested
    assert capfd.readouterr().err == ""


def test_a_forked_worker_does_not_answer_for_the_run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Interruption() as interruption:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert not interruption.requested
    assert capfd.readouterr().err == ""


def test_off_the_main_thread_nothing_is_done() -> None:
    handlers = []
    requested = []

    def work() -> None:
        with Interruption() as interruption:
            handlers.append(signal.getsignal(signal.SIGINT))
            requested.append(interruption.requested)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (handlers, requested) == ([before], [False])
