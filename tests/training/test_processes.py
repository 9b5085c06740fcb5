"""Training on several processes under torchrun, compared with one.

`tiny_run.py` is the program; starting it costs most of the time, so that one start does many jobs.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.tiny_run import assert_same_run, read_log
from vanilla_transformer.training.checkpointing import find_checkpoints, verify_checkpoint

PROGRAM = Path(__file__).with_name("tiny_run.py")
REPOSITORY = PROGRAM.parent.parent.parent
# A run with dropout, in which checkpoints, lines of the log and validations fall apart.
WATCHED = {
    "settings": {"updates": 12, "checkpoint_every": 4, "log_every": 3, "validate_every": 5},
    "dropout": 0.1,
}

pytestmark = pytest.mark.timeout(200)


def launch(
    folder: Path, jobs: list[dict[str, Any]], processes: int, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs jobs, whose `run_dir` are names in `folder`, on some processes."""
    path = folder / f"jobs-{processes}.json"
    jobs = [{**job, "run_dir": str(folder / job["run_dir"])} for job in jobs]
    path.write_text(json.dumps(jobs), "utf-8")
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.run(
        [*command, str(PROGRAM), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )


def report(run_dir: Path, process: int = 0) -> dict[str, Any]:
    return json.loads((run_dir / f"process-{process}.json").read_text("utf-8"))


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_log(run_dir) if row["kind"] == "train"]


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


# ---------------------------------------------------------------------- world size changes nothing


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many runs, on two processes and on one; the folder that holds them, which tests only read."""
    folder = tmp_path_factory.mktemp("runs")
    few = {"settings": {"updates": 6, "max_source_tokens": 58, "max_target_tokens": 58}, "pairs": 5}
    two = launch(
        folder,
        [
            {"run_dir": "2x1"},
            {"run_dir": "2x2", "settings": {"accumulation_steps": 2}},
            {"run_dir": "few-2", **few},
            {"run_dir": "copies", "settings": {"updates": 1}, "pairs": 2, "repeat": True},
            {
                "run_dir": "copies-dropout",
                "settings": {"updates": 1},
                "pairs": 2,
                "repeat": True,
                "dropout": 0.5,
            },
            {"run_dir": "whole", **WATCHED},
            {"run_dir": "broken", **WATCHED, "at": 10, "what": "raise"},
            {"run_dir": "broken", **WATCHED, "resume": True},
            {"run_dir": "for-one", **WATCHED, "at": 10, "what": "raise"},
            {"run_dir": "told", **WATCHED, "at": 6, "what": "SIGTERM", "on": [1]},
            {"run_dir": "told", **WATCHED, "resume": True},
            {"run_dir": "nan", **WATCHED, "at": 6, "what": "nan", "on": [1]},
            {"run_dir": "validation-2", "validate": str(folder / "whole" / "best")},
        ],
        processes=2,
    )
    assert two.returncode == 0, two.stderr[-5000:]
    one = launch(
        folder,
        [
            {"run_dir": "1x1"},
            {"run_dir": "1x2", "settings": {"accumulation_steps": 2}},
            {"run_dir": "few-1", **few},
            {"run_dir": "for-one", **WATCHED, "resume": True},
            {"run_dir": "validation-1", "validate": str(folder / "whole" / "best")},
        ],
        processes=1,
    )
    assert one.returncode == 0, one.stderr[-5000:]
    (folder / "one.txt").write_text(one.stderr, "utf-8")
    return folder


@pytest.mark.parametrize("name", ["2x1", "2x2", "1x2"])
def test_processes_and_pieces_change_nothing(runs: Path, name: str) -> None:
    expected, found = losses(runs / "1x1"), losses(runs / name)
    assert len(expected) == 20
    assert expected[-1] < expected[0] - 0.2
    assert found == pytest.approx(expected, rel=1e-5)
    norms, expected_norms = (
        [row["gradient_norm"] for row in read_log(runs / run) if row["kind"] == "train"]
        for run in (name, "1x1")
    )
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    one, other = weights(runs / name), weights(runs / "1x1")
    for key in other:
        torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-5)


def test_batches_of_fewer_sentences_than_processes_count_once(runs: Path) -> None:
    expected = losses(runs / "few-1")
    assert losses(runs / "few-2") == pytest.approx(expected, rel=1e-5)
    # Most batches are of one sentence: the second process had nothing to teach then.
    idle = [loss for loss in report(runs / "few-2", 1)["losses"] if loss == 0]
    assert 0 < len(idle) < 6
    assert all(loss > 0 for loss in report(runs / "few-1")["losses"])


def test_processes_draw_dropout_of_their_own(runs: Path) -> None:
    """Both compute copies of the same sentence."""
    first, second = (report(runs / "copies", process)["losses"] for process in (0, 1))
    assert first == second
    first, second = (report(runs / "copies-dropout", process)["losses"] for process in (0, 1))
    assert first != second


def test_validation_is_the_same_on_two_processes(runs: Path) -> None:
    alone = report(runs / "validation-1")
    for process in (0, 1):
        found = report(runs / "validation-2", process)
        scores, expected = found["scores"], alone["scores"]
        assert scores["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert scores["bleu"] == expected["bleu"]
        assert found["samples"] == alone["samples"]
        # Exactly n for n, an odd number and fewer than processes included.
        assert [len(texts) for texts in found["translations"]] == [7, 3, 1, 0]
        assert found["translations"] == alone["translations"]
    assert len({text for [text] in alone["translations"][0]}) > 1


# ------------------------------------------------------------------------------------- going on


def test_a_run_resumed_on_two_processes_is_the_uninterrupted_one(runs: Path) -> None:
    assert_same_run(runs / "broken", runs / "whole")
    # It went on from update 8, not from the beginning.
    assert len(report(runs / "broken")["losses"]) == 4
    state = json.loads(
        (find_checkpoints(runs / "whole")[-1] / "training_state.json").read_text("utf-8")
    )
    assert len(state["random_states"]) == 2
    assert state["random_states"][0] != state["random_states"][1]


def test_a_run_of_two_processes_goes_on_with_one(runs: Path) -> None:
    """Up to dropout, which a process draws that is no more."""
    assert "2 processes" in (runs / "one.txt").read_text("utf-8")
    expected, found = read_log(runs / "whole"), read_log(runs / "for-one")
    assert [(row["kind"], row["update"]) for row in found] == [
        (row["kind"], row["update"]) for row in expected
    ]
    for row, other in zip(found, expected, strict=True):
        if row["update"] <= 8:
            assert row == other
        else:
            assert row["loss"] == pytest.approx(other["loss"], rel=0.05)
    assert report(runs / "for-one")["updates"] == 12


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_exactly(runs: Path) -> None:
    assert_same_run(runs / "told", runs / "whole")
    # The checkpoint of the interruption was there: only the updates after it were left.
    assert len(report(runs / "told")["losses"]) == 6


# ---------------------------------------------------------------------------------------- failing


def test_a_loss_that_is_no_number_on_one_process_stops_all_and_is_explained(runs: Path) -> None:
    for process in (0, 1):
        found = report(runs / "nan", process)
        assert found["error"] == "FloatingPointError"
        assert "update 6" in found["message"]
        assert "failed_update-00000006.json" in found["message"]
    saved = json.loads((runs / "nan" / "failed_update-00000006.json").read_text("utf-8"))
    text = json.dumps(saved)
    assert "nan" in text
    assert not (runs / "nan" / "model").exists()
    # What was good before is there to go on from.
    assert [path.name for path in find_checkpoints(runs / "nan")] == ["update-00000004"]


def test_a_process_that_fails_ends_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    run = launch(
        tmp_path, [{"run_dir": "run", **WATCHED, "at": 5, "what": "raise", "on": [1]}], processes=2
    )
    assert run.returncode != 0
    assert "process 1 was told to fail" in run.stderr
    # The start takes most of it. Nobody waits for the other until a time-out of many minutes.
    assert time.monotonic() - started < 60
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["update-00000004"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_launcher_saves_and_leaves(name: str, tmp_path: Path) -> None:
    settings = {"updates": 6, "checkpoint_every": 4, "num_workers": 1}
    job = {"run_dir": "run", "settings": settings, "dropout": 0.1}
    run = launch(tmp_path, [{**job, "at": 3, "what": name, "to_launcher": True}], processes=2)
    assert run.returncode != 0
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["update-00000003"]
    verify_checkpoint(tmp_path / "run" / "checkpoints" / "update-00000003")
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    for process in (0, 1):
        found = report(tmp_path / "run", process)
        assert found["error"] == "KeyboardInterrupt"
        assert "--resume" in found["message"]
    # Nothing but that: no data worker fell to the signal, no process was killed in the end.
    assert "DataLoader" not in run.stderr
    assert "forcefully" not in run.stderr


def test_processes_that_do_not_know_each_other_are_refused(tmp_path: Path) -> None:
    # What each of two processes sees that torchrun starts.
    variables = {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "false"}
    run = launch(tmp_path, [{"run_dir": "run"}], processes=1, **variables)
    assert run.returncode != 0
    assert "2 processes were launched and Accelerate uses 1" in run.stderr
    assert "ACCELERATE_USE_CPU" in run.stderr
    assert not (tmp_path / "run" / "training_log.jsonl").exists()


def test_sharding_that_would_not_happen_is_refused(tmp_path: Path) -> None:
    run = launch(tmp_path, [{"run_dir": "run"}], processes=1, ACCELERATE_USE_FSDP="true")
    assert run.returncode != 0
    assert "FSDP was asked for" in run.stderr
    assert not (tmp_path / "run" / "training_log.jsonl").exists()
