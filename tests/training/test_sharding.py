"""Two processes, each with half of the model (FSDP2): trained, saved, resumed on any number.

Run under torchrun this file is the program of those processes: see `main`.
"""

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import filesystem
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler

from tests.training.tiny_run import SETTINGS, make_model, make_world, read_log
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.training import loop
from vanilla_transformer.training.checkpointing import (
    LoadedState,
    export_model,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from vanilla_transformer.training.optimization import build_optimizer, build_scheduler
from vanilla_transformer.training.sharding import shard_model

# An odd vocabulary: the processes have parts of unlike size.
CONFIG = VanillaTransformerConfig(
    vocab_size=41,
    d_model=16,
    d_ff=24,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout=0.0,
)
TYING: dict[str, dict[str, bool]] = {
    "all tied": {},
    "output tied": {"share_embeddings": False},
    "none tied": {"share_embeddings": False, "tie_word_embeddings": False},
}


class Tokenizer:
    """As much of one as a checkpoint asks for."""

    def save_pretrained(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


@dataclass
class Run:
    """A tiny training run: the same global batches on any number of processes."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    done: int = 0

    @property
    def inner(self) -> nn.Module:
        inner: nn.Module = self.accelerator.unwrap_model(self.model)
        return inner

    def update(self) -> tuple[float, float]:
        """Two pieces a process, clipped, as the loop does it. Returns loss and gradient norm."""
        accelerator = self.accelerator
        generator = torch.Generator().manual_seed(self.done)
        ids = torch.randint(4, 41, (8, 5), generator=generator)
        total = torch.zeros(())
        for number in range(2):
            piece = ids[number::2][accelerator.process_index :: accelerator.num_processes]
            waiting = accelerator.no_sync(self.model) if number == 0 else contextlib.nullcontext()
            with waiting:
                loss = self.model(input_ids=piece, labels=piece, num_items_in_batch=40).loss
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.done += 1
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        summed: Any = accelerator.reduce(total, "sum")
        return float(summed), float(norm)

    def look(self) -> None:
        """A forward pass without a backward one: the outermost weights then lie there gathered."""
        with torch.no_grad():
            self.model(input_ids=torch.tensor([[5]]), labels=torch.tensor([[5]]))

    def save(self, run_dir: Path, **options: Any) -> Path:
        extra = {n: p.detach() * 2 for n, p in self.inner.named_parameters()}
        self.look()
        arguments: dict[str, Any] = {
            **self.parts(),
            "tokenizer": Tokenizer(),
            "position": {"next_batch": self.done},
            "progress": {},
            # A name of no parameter too: such a tensor is whole.
            "extra_tensors": {**extra, "steps": torch.tensor([7])},
        }
        return save_checkpoint(run_dir, self.done, **{**arguments, **options})

    def load(self, path: Path) -> LoadedState:
        self.look()
        state = load_checkpoint(path, **self.parts())
        self.done = state.position["next_batch"]
        for name, parameter in self.inner.named_parameters():
            average = state.extra_tensors[name]
            assert type(average) is type(parameter.detach()), name
            assert torch.equal(local(average), local(parameter * 2)), name
        assert torch.equal(state.extra_tensors["steps"], torch.tensor([7]))
        return state

    def parts(self) -> dict[str, Any]:
        return {
            "accelerator": self.accelerator,
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def state(self) -> dict[str, torch.Tensor]:
        """This process's part of all that training changes, but for the generators."""
        moments = self.optimizer.state_dict()["state"]
        tensors = {f"{i}.{name}": t for i, s in moments.items() for name, t in s.items()}
        parameters = {n: p.detach().clone() for n, p in self.inner.named_parameters()}
        return {name: local(t).clone() for name, t in {**parameters, **tensors}.items()}


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def start(accelerator: Accelerator, kind: str, seed: int = 1, **config: Any) -> Run:
    """A run of a `kind`: "prepared" by Accelerate as its settings are, "bare", or "by hand"."""
    # Accelerate's clipping of sharded gradients knows one model at a time.
    accelerator.free_memory()
    torch.manual_seed(seed)
    architecture = VanillaTransformerConfig(**{**CONFIG.to_dict(), **config})
    model: Any = VanillaTransformerForConditionalGeneration(architecture).train()
    if kind == "by hand":
        for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
            fully_shard(layer)
        fully_shard(model)
    elif kind == "prepared":
        shard_model(accelerator, model)
    optimizer: torch.optim.Optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer, d_model=16, warmup=4)
    if kind == "prepared":
        model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(100 * seed + accelerator.process_index)
    return Run(accelerator, model, optimizer, scheduler)


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# ------------------------------------------------------- what every one of the two processes does


def choose(accelerator: Accelerator, engine: DistributedType) -> None:
    """Without GPUs Accelerate shards nothing, whatever it is told; the engine itself can."""
    # Each new `AcceleratorState`, of which Accelerate makes many, copies from the partial one.
    for state in (PartialState(), accelerator.state):
        state.distributed_type = engine
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
    )


def train_and_resume(folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    """Trained, saved after two updates, resumed: on the two, then by each on its own."""
    found: dict[str, Any] = {"losses": {}}
    for name, tying in TYING.items():
        run = start(accelerator, "prepared", **tying)
        assert isinstance(run.model, FSDPModule)
        losses = [run.update() for _ in range(2)]
        path = run.save(folder / "sharded" / name)
        losses += [run.update() for _ in range(2)]
        found["losses"][name] = losses
        resumed = start(accelerator, "prepared", seed=2, **tying)
        resumed.update()
        assert resumed.load(path).saved_processes == 2
        assert [resumed.update() for _ in range(2)] == losses[2:]
        assert_same_state(run.state(), resumed.state())
    # Each process has written its half.
    sizes = [file.stat().st_size for file in sorted(path.glob("shard-*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) < 1.1 * min(sizes)
    return found


def resume_with_dropout(folder: Path, accelerator: Accelerator) -> None:
    """Every process has masks of its own, and after a resumption the same ones."""
    for kind in ("prepared", "by hand"):
        run = start(accelerator, kind, dropout=0.3)
        run.update()
        path = run.save(folder / "dropout" / kind)
        expected = run.update(), torch.rand(2).tolist()
        draws: list[Any] = [None, None]
        dist.all_gather_object(draws, expected[1])
        assert draws[0] != draws[1]
        resumed = start(accelerator, kind, seed=2, dropout=0.3)
        resumed.update()
        resumed.load(path)
        assert (resumed.update(), torch.rand(2).tolist()) == expected
        assert_same_state(run.state(), resumed.state())


def train_in_bfloat16(accelerator: Accelerator, found: dict[str, Any]) -> None:
    """Weights travel and multiply in 16 bits; the loss, gradients added up and weights have 32."""
    accelerator.state.fsdp_plugin.set_mixed_precision("bf16")
    run = start(accelerator, "prepared")
    for expected in found["losses"]["all tied"]:
        updated = run.update()
        assert updated == pytest.approx(expected, rel=0.01)
        assert updated != pytest.approx(expected, rel=1e-5)
        loss = torch.tensor(updated[0])
        assert loss != loss.bfloat16()
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    choose(accelerator, DistributedType.FSDP)


def change_kind(folder: Path, accelerator: Accelerator, found: dict[str, Any]) -> None:
    """From whole to sharded, and back; the losses go on as those of the run that was saved."""
    expected = found["losses"]["all tied"]
    choose(accelerator, DistributedType.MULTI_CPU)
    whole = start(accelerator, "prepared", seed=3)
    assert isinstance(whole.model, nn.parallel.DistributedDataParallel)
    path = folder / "sharded" / "all tied" / "checkpoints" / "update-00000002"
    whole.load(path)
    saved_again = whole.save(folder / "whole")
    found["whole"] = [whole.update() for _ in range(2)]
    choose(accelerator, DistributedType.FSDP)
    sharded = start(accelerator, "prepared", seed=4)
    sharded.load(saved_again)
    found["whole to sharded"] = [sharded.update() for _ in range(2)]
    # Nothing was lost on the way there and back.
    assert found["whole to sharded"] == expected[2:]
    sharded = start(accelerator, "prepared", seed=5)
    sharded.load(folder / "alone" / "checkpoints" / "update-00000002")
    found["one to two"] = [sharded.update() for _ in range(2)]


def train_with_the_loop(folder: Path, accelerator: Accelerator, parts: tuple[int, ...]) -> None:
    """A whole run, from the first update to the averaged model, broken off after each part."""
    world = make_world()
    for updates in parts:
        accelerator.free_memory()
        settings = dataclasses.replace(
            SETTINGS, updates=updates, checkpoint_every=2, validate_every=2, ema_decay=0.5
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "build_accelerator", lambda _: accelerator)
            loop.train(
                make_model(),
                world.tokenizer,
                world.task(),
                world.pairs,
                folder,
                settings,
                resume=updates != parts[0],
            )


def fail(folder: Path, accelerator: Accelerator) -> list[str]:
    """What is wrong on one process is raised on both, and leaves nothing behind."""
    run = start(accelerator, "prepared")
    run.update()
    kept = run.save(folder / "failing")
    messages = []

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Broken(Tokenizer):
        def save_pretrained(self, directory: Path) -> None:
            no_space()

    # On the main process alone, then on the other one while it writes its shard.
    run.done = 2
    with pytest.raises((OSError, RuntimeError)) as caught:
        run.save(folder / "failing", tokenizer=Broken())
    messages.append(str(caught.value))
    with pytest.MonkeyPatch.context() as patch:
        if accelerator.process_index == 1:
            patch.setattr(filesystem, "_write_files_from_queue", no_space)
        with pytest.raises((OSError, RuntimeError)) as caught:
            run.save(folder / "failing")
    messages.append(str(caught.value))
    accelerator.wait_for_everyone()
    assert [entry.name for entry in (folder / "failing" / "checkpoints").iterdir()] == [kept.name]
    # Another model is refused on both.
    other = start(accelerator, "prepared", vocab_size=43)
    with pytest.raises(ValueError, match=r"shared\.weight is \(41, 16\).* but \(43, 16\)"):
        other.load(kept)
    # And the processes are still in step.
    run.load(kept)
    return messages


def main(folder: Path) -> None:
    accelerator = Accelerator(
        cpu=True,
        step_scheduler_with_optimizer=False,
        # One that waits for the other in vain gives up.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=60))],
    )
    assert accelerator.num_processes == 2
    choose(accelerator, DistributedType.FSDP)
    found = train_and_resume(folder, accelerator)
    resume_with_dropout(folder, accelerator)
    train_in_bfloat16(accelerator, found)
    train_with_the_loop(folder / "straight", accelerator, (4,))
    train_with_the_loop(folder / "resumed", accelerator, (2, 4))
    change_kind(folder, accelerator, found)
    found["messages"] = fail(folder, accelerator)
    (folder / f"found-{accelerator.process_index}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def alone() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    AcceleratorState._reset_state(reset_partial_state=True)


@dataclasses.dataclass(frozen=True)
class Pair:
    """What the two processes have left: files, and what each found."""

    folder: Path
    found: tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def pair(alone: Accelerator) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = start(alone, "bare")
        for _ in range(2):
            run.update()
        run.save(folder / "alone")
        launched = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", "2", __file__, name),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=240,
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        assert launched.returncode == 0, launched.stderr[-5000:]
        first, second = (
            json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)
        )
        yield Pair(folder, (first, second))


def test_two_processes_with_half_of_a_model_train_as_one_with_all(
    pair: Pair, alone: Accelerator
) -> None:
    for name, tying in TYING.items():
        run = start(alone, "bare", **tying)
        expected = [run.update() for _ in range(4)]
        for found in pair.found:
            for updates in zip(found["losses"][name], expected, strict=True):
                assert updates[0] == pytest.approx(updates[1], rel=1e-5), name


def test_a_sharded_run_goes_on_in_one_process(pair: Pair, alone: Accelerator) -> None:
    for name, tying in TYING.items():
        run = start(alone, "bare", seed=2, **tying)
        run.load(pair.folder / "sharded" / name / "checkpoints" / "update-00000002")
        for loss, expected in zip(
            [run.update() for _ in range(2)], pair.found[0]["losses"][name][2:], strict=True
        ):
            assert loss == pytest.approx(expected, rel=1e-5), name


def test_a_run_of_one_process_goes_on_in_shards(pair: Pair, alone: Accelerator) -> None:
    run = start(alone, "bare", seed=2)
    run.load(pair.folder / "alone" / "checkpoints" / "update-00000002")
    expected = [run.update() for _ in range(2)]
    for found in pair.found:
        for kind in ("one to two", "whole", "whole to sharded"):
            for updates in zip(found[kind], expected, strict=True):
                assert updates[0] == pytest.approx(updates[1], rel=1e-5), kind


@pytest.mark.parametrize("tying", TYING)
def test_the_model_of_a_sharded_checkpoint_is_exported_whole(
    pair: Pair, alone: Accelerator, tmp_path: Path, tying: str
) -> None:
    path = pair.folder / "sharded" / tying / "checkpoints" / "update-00000002"
    assert not (path / "model.safetensors").exists()
    output = export_model(path, tmp_path / "model")
    run = start(alone, "bare", seed=2, **TYING[tying])
    run.load(path)
    model: Any = run.model.eval()
    model.save_pretrained(tmp_path / "expected")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    exported = load_file(output / "model.safetensors")
    assert exported.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(exported[name], tensor), name
    for name in ("config.json", "generation_config.json"):
        assert (output / name).read_text() == (tmp_path / "expected" / name).read_text()
    assert sorted(file.name for file in output.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(output)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
        assert torch.equal(loaded.eval()(input_ids=ids, decoder_input_ids=ids).logits, logits)


def test_the_loop_trains_averages_and_resumes_in_shards(
    pair: Pair, alone: Accelerator, tmp_path: Path
) -> None:
    train_with_the_loop(tmp_path, alone, (4,))
    expected = [row for row in read_log(tmp_path) if row["kind"] == "train"]
    for name in ("straight", "resumed"):
        log = [row for row in read_log(pair.folder / name) if row["kind"] == "train"]
        for row, same in zip(log, expected, strict=True):
            assert row["loss"] == pytest.approx(same["loss"], rel=1e-5), name
            assert row["gradient_norm"] == pytest.approx(same["gradient_norm"], rel=1e-5), name
    for folder in ("model", "best", "ema"):
        path = f"{folder}/model.safetensors"
        found = load_file(pair.folder / "straight" / path)
        whole = load_file(tmp_path / path)
        assert found.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=path)
    # The part that ended at update 2 chose no best model there.
    for folder in ("checkpoints", "ema", "model"):
        files = sorted((pair.folder / "straight" / folder).rglob("*.safetensors"))
        assert files
        for file in files:
            again = pair.folder / "resumed" / file.relative_to(pair.folder / "straight")
            assert_same_state(load_file(again), load_file(file))


def test_a_failure_of_one_process_is_told_by_both(pair: Pair) -> None:
    main_process, other = (found["messages"] for found in pair.found)
    # The one that failed knows most.
    assert "Free some space" in main_process[0]
    assert "process 0 failed: OSError" in other[0]
    assert "Free some space" in main_process[1]
    assert "process 1" in other[1]
    assert "No space left" in other[1]


def test_a_checkpoint_of_a_sharded_run_is_found_and_kept(pair: Pair) -> None:
    (path,) = find_checkpoints(pair.folder / "failing")
    assert path.name == "update-00000001"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
