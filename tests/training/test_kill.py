"""Kill -9 at random moments, go on, and nothing of the run is another one's."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.tiny_run import assert_same_run, main
from vanilla_transformer.training.checkpointing import find_checkpoints, latest_checkpoint

PROGRAM = Path(__file__).with_name("tiny_run.py")
REPOSITORY = PROGRAM.parent.parent.parent
KILLS = 20
# Some part of the time goes into writing checkpoints; lines of the log fall between them.
JOB = {
    "settings": {
        "updates": 120,
        "checkpoint_every": 2,
        "log_every": 3,
        "validate_every": 40,
        "ema_decay": 0.9,
    },
    "dropout": 0.1,
    "resume": None,
}
# Starts a run and gives the process to wait for.
Start = Callable[[Path], "Process"]


class Process:
    """A run in progress.

    Attributes:
        pid: Of the process started here, the launcher if there is one.
        wait: Waits for its end; gives its exit status.
    """

    def __init__(self, pid: int, wait: Callable[[], int]):
        self.pid, self.wait = pid, wait


def start_alone(run_dir: Path) -> Process:
    """One process, forked from a server that has imported everything: it is there at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.tiny_run"])
    process = context.Process(target=main, args=([{**JOB, "run_dir": str(run_dir)}],))
    process.start()
    assert process.pid is not None

    def wait() -> int:
        process.join(120)
        assert process.exitcode is not None, "still running after two minutes"
        return process.exitcode

    return Process(process.pid, wait)


def start_two(run_dir: Path) -> Process:
    """Two processes under torchrun."""
    jobs = run_dir.with_suffix(".json")
    jobs.write_text(json.dumps([{**JOB, "run_dir": str(run_dir)}]), "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(PROGRAM), str(jobs)]
    variables = {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    environment = {**os.environ, **variables, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with open(run_dir.with_suffix(".txt"), "a") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    return Process(process.pid, lambda: process.wait(120))


def unfinished(run_dir: Path) -> set[Path]:
    """Checkpoints that are being written, and those that a kill has left so."""
    return set((run_dir / "checkpoints").glob("*")) - set(find_checkpoints(run_dir))


def wait_for_start(run_dir: Path, processes: int) -> list[int]:
    """Waits until every process of a run has begun; gives their ids."""
    deadline = time.monotonic() + 60
    paths = [run_dir / f"pid-{rank}" for rank in range(processes)]
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.01)
    return [int(path.read_text()) for path in paths]


def kill(
    run_dir: Path, process: Process, processes: int, chance: random.Random, longest: float
) -> str:
    """Kills one process of a run, or all.

    Args:
        longest: Time that it is given, in seconds.

    Returns:
        What the run was at: saving a checkpoint, working, or nothing: it had ended.
    """
    before = unfinished(run_dir)
    victims = wait_for_start(run_dir, processes)
    deadline = time.monotonic() + 10
    is_aimed = chance.random() < 0.3
    time.sleep(chance.uniform(0, longest))
    while is_aimed and not unfinished(run_dir) - before and time.monotonic() < deadline:
        time.sleep(0.0005)
    if processes > 1:
        # A machine that fails takes all with it, the killer of a full memory one alone.
        victims = chance.choice([[process.pid, *victims], victims[:1], victims[1:]])
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    was_saving = bool(unfinished(run_dir) - before)
    if process.wait() == 0:
        return "nothing"
    return "saving" if was_saving else "working"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("processes", "start"), [(1, start_alone), (2, start_two)])
def test_a_run_killed_at_any_moment_ends_as_the_uninterrupted_one(
    processes: int, start: Start, tmp_path: Path
) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    wait_for_start(whole, processes)
    started = time.monotonic()
    assert process.wait() == 0
    # So that the run has not ended by the last kill.
    longest = 1.5 * (time.monotonic() - started) / KILLS
    chance = random.Random(processes)
    was_at: list[str] = []
    while len(was_at) - was_at.count("nothing") < KILLS:
        assert was_at.count("nothing") < KILLS, "the run ends before it can be killed"
        for path in run_dir.glob("pid-*"):
            path.unlink()
        was_at.append(kill(run_dir, start(run_dir), processes, chance, longest))
        print(f"{was_at[-1]}; goes on from {latest_checkpoint(run_dir)}")
    # Otherwise nothing was shown.
    assert {"saving", "working"} <= set(was_at)
    assert start(run_dir).wait() == 0
    assert_same_run(run_dir, whole)
