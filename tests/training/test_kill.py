"""Kill -9 at random moments, go on, and nothing of the run is another one's."""

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

PROGRAM = Path(__file__).with_name("tiny_run.py")
REPOSITORY = PROGRAM.parent.parent.parent
KILLS = 20
# Of an attempt: what is killed must not come far, or the run ends before the last kill.
LONGEST = 1.0
# Some part of the time goes into writing checkpoints; lines of the log fall between them.
JOB = {
    "settings": {
        "updates": 60,
        "checkpoint_every": 2,
        "log_every": 3,
        "validate_every": 20,
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
        process.join(60)
        assert process.exitcode is not None, "still running after a minute"
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
    return Process(process.pid, lambda: process.wait(60))


def kill(run_dir: Path, process: Process, processes: int, chance: random.Random) -> str:
    """Kills one process of a run, or all; says when it was and what was going on."""
    started = time.monotonic()
    pids = [run_dir / f"pid-{rank}" for rank in range(processes)]
    while not all(path.exists() and path.read_text() for path in pids):
        assert time.monotonic() - started < 60, "the run did not start"
        time.sleep(0.01)
    ready = time.monotonic()
    delay, is_aimed = chance.uniform(0, LONGEST), chance.random() < 0.3
    checkpoints = run_dir / "checkpoints"

    def is_saving() -> bool:
        return any(not path.name.startswith("update-") for path in checkpoints.glob("*"))

    time.sleep(delay)
    while is_aimed and not is_saving() and time.monotonic() - ready < 2 * LONGEST:
        time.sleep(0.0005)
    victims = [int(path.read_text()) for path in pids]
    if processes > 1:
        # A machine that fails takes all with it, the killer of a full memory one alone.
        victims = chance.choice([[process.pid, *victims], victims[:1], victims[1:]])
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    moment = time.monotonic() - ready
    process.wait()
    was = "saving" if is_saving() else "working"
    return f"killed {len(victims)} after {moment:.3f} s, {was}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("processes", "start"), [(1, start_alone), (2, start_two)])
def test_a_run_killed_at_any_moment_ends_as_the_uninterrupted_one(
    processes: int, start: Start, tmp_path: Path
) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    chance = random.Random(processes)
    for number in range(1, KILLS + 1):
        for path in run_dir.glob("pid-*"):
            path.unlink()
        print(f"{number}: {kill(run_dir, start(run_dir), processes, chance)}")
    assert start(run_dir).wait() == 0
    assert_same_run(run_dir, whole)
