"""A whole run whose model is sharded over two processes (FSDP2) is the run of one process.

Under torchrun this file is the program of those processes. Accelerate shards on GPUs only: the
program tells it otherwise, and what it does then goes over gloo.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny_run import (
    DECODING,
    SETTINGS,
    make_model,
    make_world,
    read_log,
    without_times,
)
from vanilla_transformer.training import loop
from vanilla_transformer.training.checkpointing import find_checkpoints

REPOSITORY = Path(__file__).parent.parent.parent
RUN = dataclasses.replace(
    SETTINGS,
    updates=12,
    validate_every=5,
    checkpoint_every=4,
    accumulation_steps=2,
    ema_decay=0.8,
    activation_checkpointing=True,
)


def run(run_dir: Path, **options: Any) -> None:
    tokenizer, pairs, validation = make_world()
    loop.train(
        make_model(0.0), tokenizer, pairs, validation, run_dir, RUN, decoding=DECODING, **options
    )


def main(folder: Path) -> None:
    """Three runs: straight, broken off and resumed, and one whose sharding is only asked for."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FSDPModule

    build, compute = loop.build_accelerator, loop.Run.compute_gradients

    def sharding(settings: Any) -> Accelerator:
        accelerator = build(settings)
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            cpu_ram_efficient_loading=False,
            reshard_after_forward=True,
        )
        return accelerator

    def breaking(run: loop.Run, update: Any) -> torch.Tensor:
        assert isinstance(run.accelerator.unwrap_model(run.model), FSDPModule)
        if run.progress.updates == 6 and not (run.run_dir / "broken").exists():
            run.accelerator.wait_for_everyone()
            (run.run_dir / "broken").touch()
            raise InterruptedError
        return compute(run, update)

    loop.build_accelerator = sharding
    run(folder / "straight")
    loop.Run.compute_gradients = breaking
    try:
        run(folder / "resumed")
    except InterruptedError:
        run(folder / "resumed", resume=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sharded runs of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    found = subprocess.run(
        [*command, __file__, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-5000:]
    return folder


def test_a_sharded_run_is_that_of_one_process(folder: Path, tmp_path: Path) -> None:
    run(tmp_path / "alone")
    expected, found = read_log(tmp_path / "alone"), read_log(folder / "straight")
    assert len(found) == len(expected) == 15
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert (one["kind"], one["update"]) == (other["kind"], other["update"])
        if one["kind"] == "train":
            assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    for name in ("model", "best", "ema"):
        weights, like = (
            load_file(place / name / "model.safetensors")
            for place in (folder / "straight", tmp_path / "alone")
        )
        assert weights.keys() == like.keys()
        for key in like:
            torch.testing.assert_close(weights[key], like[key], rtol=1e-3, atol=1e-5)
    # And what it was resumed from was sharded.
    names = {path.name for path in find_checkpoints(folder / "straight")[-1].iterdir()}
    assert sum(name.startswith("shard-") for name in names) == 2
    assert "model.safetensors" not in names


def test_a_sharded_run_resumes_exactly(folder: Path) -> None:
    resumed, straight = folder / "resumed", folder / "straight"
    assert (resumed / "broken").exists()
    assert read_log(resumed) == read_log(straight)
    last = f"checkpoints/{find_checkpoints(straight)[-1].name}"
    files = {
        path.relative_to(straight).as_posix()
        for name in ("model", "best", "ema", last)
        for path in (straight / name).glob("*.safetensors")
    }
    assert len(files) == 5
    for name in files:
        # Not the bytes: the header of a shard names its fields in any order.
        found, expected = load_file(resumed / name), load_file(straight / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    states = [
        json.loads((run / last / "training_state.json").read_text()) for run in (resumed, straight)
    ]
    assert without_times(states[0]) == without_times(states[1])


def test_compiling_a_sharded_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(RUN, compile=True)
    tokenizer, pairs, validation = make_world()
    accelerator = loop.build_accelerator(settings)
    monkeypatch.setattr(type(accelerator), "is_fsdp2", property(lambda _: True))
    with pytest.raises(ValueError, match="compile and FSDP2"):
        loop.Run(
            accelerator,
            make_model(0.0),
            tokenizer,
            pairs,
            validation,
            Path("nowhere"),
            settings,
            decoding=DECODING,
            bleu=None,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
