"""Checkpoints: whole or absent, damage detected, resumed bit for bit; of one process.

Several processes, and sharded models, are the business of `test_sharding.py`.
"""

import errno
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.training.checkpointing import (
    LoadedState,
    atomic_directory,
    capture_random_state,
    export_model,
    find_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    new_checkpoint,
    restore_random_state,
    rotate_checkpoints,
    save_checkpoint,
    verify_checkpoint,
    write_manifest,
)
from vanilla_transformer.training.optimization import build_optimizer, build_scheduler


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones included."""
    files = (file for file in directory.rglob("*") if file.is_file())
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in files}


# Atomic directories


def test_directory_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "best"
    with atomic_directory(path) as directory:
        (directory / "a").write_text("1")
        (directory / "inner").mkdir()
        (directory / "inner" / "b").write_text("2")
        assert not path.exists()
    assert contents(tmp_path) == {"deep/best/a": b"1", "deep/best/inner/b": b"2"}
    with atomic_directory(str(path)) as directory:
        assert list(directory.iterdir()) == []
        (directory / "c").write_text("3")
        assert contents(path) == {"a": b"1", "inner/b": b"2"}
    assert contents(tmp_path) == {"deep/best/c": b"3"}


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("has_old", [True, False])
def test_after_an_error_all_is_as_it_was(
    tmp_path: Path, error: BaseException, has_old: bool
) -> None:
    path = tmp_path / "best"
    if has_old:
        path.mkdir()
        (path / "a").write_text("old")
    before = contents(tmp_path)

    def write() -> None:
        with atomic_directory(path) as directory:
            (directory / "a").write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert contents(tmp_path) == before
    assert path.exists() == has_old
    assert len(list(tmp_path.iterdir())) == has_old


@pytest.mark.parametrize("failing", ["fsync", "first rename", "second rename"])
def test_errors_while_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "best"
    path.mkdir()
    (path / "a").write_text("old")
    real = Path.rename

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "no luck")

    def rename(self: Path, target: Path) -> Path:
        if (failing == "first rename") == (self == path) and ".old" not in self.name:
            fail()
        return real(self, target)

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no luck"), atomic_directory(path) as directory:
        (directory / "a").write_text("new")
    assert contents(tmp_path) == {"best/a": b"old"}


def test_what_is_renamed_has_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("descriptors can be named on Linux only")
    synchronised: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        # Renaming must come after the last file and before its parent directory.
        state = "after" if (tmp_path / "best").exists() else "before"
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        synchronised.append(f"{state} {name}")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_directory(tmp_path / "best") as directory:
        (directory / "inner").mkdir()
        (directory / "inner" / "b").write_text("2")
    assert sorted(synchronised[:-1]) == ["before .tmp-best", "before b", "before inner"]
    assert synchronised[-1] == f"after {tmp_path.name}"


def test_a_directory_moved_aside_by_a_killed_writer_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".old-best").mkdir()
    (tmp_path / ".old-best" / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "best"):
        raise RuntimeError
    assert contents(tmp_path) == {"best/a": b"old"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("a file")
    with pytest.raises(NotADirectoryError, match="is a file"), atomic_directory(tmp_path / "best"):
        pass
    assert contents(tmp_path) == {"best": b"a file"}


@pytest.mark.parametrize("writer", ["python", "behind another error", "safetensors"])
def test_full_disk_is_one_clear_error(tmp_path: Path, writer: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which takes no byte, as on Linux")
    path = tmp_path / "checkpoints" / "update-00000002"
    path.mkdir(parents=True)
    (path / "a").write_text("old")

    def write() -> None:
        with new_checkpoint(tmp_path, 2) as directory:
            if writer == "python":
                (directory / "config.json").symlink_to("/dev/full")
                (directory / "config.json").write_text("{}")
            elif writer == "behind another error":
                # Torch raises errors of its own: the reason is only in the chain.
                reason = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise RuntimeError("unexpected pos 704 vs 598") from reason
            else:
                # What safetensors raises on a full disk (seen on a full tmpfs): no OSError.
                raise SafetensorError(
                    "Error while serializing: I/O error: No space left on device (os error 28)"
                )

    with pytest.raises(OSError, match=r"Free some space") as caught:
        write()
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert "bytes free" in str(caught.value)
    assert contents(tmp_path) == {"checkpoints/update-00000002/a": b"old"}


# Manifests, and which checkpoint to use


def write_checkpoint(run_dir: Path, update: int) -> Path:
    with new_checkpoint(run_dir, update) as directory:
        (directory / "model.safetensors").write_bytes(bytes(range(256)) * 4)
        (directory / "code").mkdir()
        (directory / "code" / "inner.json").write_text("{}")
    return run_dir / "checkpoints" / f"update-{update:08d}"


def damage(checkpoint: Path, kind: str) -> str:
    """Damages one file and returns its name."""
    model = checkpoint / "model.safetensors"
    if kind == "cut short":
        model.write_bytes(model.read_bytes()[:-1])
    elif kind == "one bit":
        data = bytearray(model.read_bytes())
        data[700] ^= 1
        model.write_bytes(data)
    elif kind == "gone":
        model.unlink()
    elif kind == "deep":
        (checkpoint / "code" / "inner.json").write_text("[]")
        return "inner.json"
    elif kind == "no manifest":
        (checkpoint / "manifest.json").unlink()
        return "manifest.json"
    elif kind == "bad manifest":
        (checkpoint / "manifest.json").write_text('{"files": {"model.safetensors": ')
        return "manifest.json"
    elif kind == "odd manifest":
        (checkpoint / "manifest.json").write_text('{"files": [1]}')
        return "manifest.json"
    return "model.safetensors"


DAMAGES = ["cut short", "one bit", "gone", "deep", "no manifest", "bad manifest", "odd manifest"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_the_file_named(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = write_checkpoint(tmp_path, 1), write_checkpoint(tmp_path, 2)
    verify_checkpoint(newer)
    assert latest_checkpoint(tmp_path) == newer
    assert not caplog.records
    name = damage(newer, kind)
    with pytest.raises(ValueError, match=name) as caught:
        verify_checkpoint(newer)
    assert newer.name in str(caught.value)
    assert latest_checkpoint(tmp_path) == older
    assert newer.name in caplog.text
    assert name in caplog.text


def test_a_short_file_is_told_from_an_altered_one(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 1)
    damage(checkpoint, "cut short")
    with pytest.raises(ValueError, match=r"has 1,023 bytes, 1,024 were written"):
        verify_checkpoint(checkpoint)


def test_manifest_lists_sizes_and_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    write_manifest(tmp_path)
    # The hash is the published test vector of SHA-256.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "files": {"a": {"bytes": 3, "sha256": digest}}
    }
    # Written again, it does not list itself.
    write_manifest(tmp_path)
    verify_checkpoint(tmp_path)


def test_checkpoints_sort_by_update(tmp_path: Path) -> None:
    assert find_checkpoints(tmp_path) == []
    assert latest_checkpoint(tmp_path) is None
    # The last number outgrows its eight digits.
    for update in (900, 100_000_000, 99_999_999):
        write_checkpoint(tmp_path, update)
    (tmp_path / "checkpoints" / "update-00000007.zip").write_text("a file")
    (tmp_path / "checkpoints" / "other").mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == [
        "update-00000900",
        "update-99999999",
        "update-100000000",
    ]


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    written = [write_checkpoint(tmp_path, update) for update in range(1, 6)]
    assert rotate_checkpoints(tmp_path, 9) == []
    assert rotate_checkpoints(tmp_path, 2) == written[:3]
    assert find_checkpoints(tmp_path) == written[3:]
    assert sorted((tmp_path / "checkpoints").iterdir()) == written[3:]
    with pytest.raises(ValueError, match=r"keep \(0\)"):
        rotate_checkpoints(tmp_path, 0)


def test_rotation_never_deletes_the_last_good_one(tmp_path: Path) -> None:
    written = [write_checkpoint(tmp_path, update) for update in range(1, 6)]
    for torn in written[2:]:
        damage(torn, "one bit")
    assert rotate_checkpoints(tmp_path, 2) == [written[0], written[2]]
    assert find_checkpoints(tmp_path) == [written[1], *written[3:]]
    assert latest_checkpoint(tmp_path) == written[1]


# Saving and loading


class Tokenizer:
    """As much of one as a checkpoint asks for."""

    def save_pretrained(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    # Its state is one for the whole process: other tests may have made another.
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """A tiny training run whose every update draws from all three generators."""

    def __init__(self, accelerator: Accelerator, seed: int, device: str = "cpu", **config: Any):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        sizes = {"vocab_size": 40, "d_model": 16, "d_ff": 24, "num_heads": 2}
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
        architecture = VanillaTransformerConfig(**{**sizes, **layers, "dropout": 0.1, **config})
        model = VanillaTransformerForConditionalGeneration(architecture).train().to(device)
        self.accelerator, self.device = accelerator, device
        self.model: nn.Module = model
        self.optimizer: torch.optim.Optimizer = build_optimizer(model)
        self.scheduler: LambdaLR = build_scheduler(self.optimizer, d_model=16, warmup=4)
        self.losses: list[float] = []

    def update(self) -> None:
        ids = torch.randint(4, 40, (3, 5)).to(self.device)
        loss = self.model(input_ids=ids, labels=ids).loss
        loss = loss * random.gauss(1, 0.1) + float(np.random.standard_normal())
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    def save(self, run_dir: Path, update: int = 3, **options: Any) -> Path:
        arguments: dict[str, Any] = {
            "accelerator": self.accelerator,
            "model": self.model,
            "tokenizer": Tokenizer(),
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "position": {"epoch": 1, "next_batch": 17},
            "progress": {"best_loss": 0.1 + 0.2, "worst_loss": float("inf")},
        }
        return save_checkpoint(run_dir, update, **{**arguments, **options})

    def load(self, path: Path) -> LoadedState:
        return load_checkpoint(
            path,
            accelerator=self.accelerator,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training changes, but for the generators."""
        state = self.optimizer.state_dict()["state"]
        moments = {f"{i}.{name}": t for i, s in state.items() for name, t in s.items()}
        return {**self.model.state_dict(), **moments}


def assert_same_state(one: Run, other: Run) -> None:
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
        assert tensor.dtype == other.tensors()[name].dtype, name
    groups = [run.optimizer.state_dict()["param_groups"] for run in (one, other)]
    assert groups[0] == groups[1]
    assert one.scheduler.state_dict() == other.scheduler.state_dict()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("updates_before", [0, 3])
def test_resumed_run_is_bit_for_bit_the_straight_one(
    tmp_path: Path, accelerator: Accelerator, device: str, updates_before: int
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    straight = Run(accelerator, seed=1, device=device)
    for _ in range(updates_before):
        straight.update()
    # An odd number of draws leaves a cached second normal deviate in both generators.
    np.random.standard_normal()
    random.gauss(0, 1)
    written = straight.save(tmp_path)
    for _ in range(4):
        straight.update()

    resumed = Run(accelerator, seed=2, device=device)
    resumed.update()
    assert latest_checkpoint(tmp_path) == written
    assert resumed.load(written) == LoadedState(
        position={"epoch": 1, "next_batch": 17},
        progress={"best_loss": 0.1 + 0.2, "worst_loss": float("inf")},
        extra_tensors={},
        saved_processes=1,
    )
    for _ in range(4):
        resumed.update()
    assert resumed.losses[1:] == straight.losses[updates_before:]
    assert_same_state(straight, resumed)


def test_prepared_objects_are_saved_as_bare_ones(tmp_path: Path, accelerator: Accelerator) -> None:
    bare = Run(accelerator, seed=1)
    bare.update()
    written = bare.save(tmp_path / "bare")
    wrapped = Run(accelerator, seed=1)
    wrapped.model, wrapped.optimizer = accelerator.prepare(wrapped.model, wrapped.optimizer)
    wrapped.update()
    also_written = wrapped.save(tmp_path / "wrapped")
    assert sorted(contents(written)) == sorted(contents(also_written))
    assert load_file(written / "optimizer.safetensors").keys() == (
        load_file(also_written / "optimizer.safetensors").keys()
    )
    restored = Run(accelerator, seed=2)
    restored.model, restored.optimizer = accelerator.prepare(restored.model, restored.optimizer)
    restored.load(also_written)
    assert_same_state(bare, restored)


def test_a_checkpoint_is_the_saved_model_and_more(tmp_path: Path, accelerator: Accelerator) -> None:
    run = Run(accelerator, seed=1)
    run.update()
    path = run.save(tmp_path, extra_tensors={"average": torch.ones(2)})
    assert path == tmp_path / "checkpoints" / "update-00000003"
    model: Any = run.model
    model.save_pretrained(tmp_path / "model")
    model_files = contents(tmp_path / "model")
    found = contents(path)
    assert {name: found[name] for name in model_files} == model_files
    # Nothing here can run code: no pickle.
    assert sorted(found.keys() - model_files.keys()) == [
        "extra.safetensors",
        "manifest.json",
        "optimizer.safetensors",
        "tokenizer.json",
        "training_state.json",
    ]
    verify_checkpoint(path)
    # Tied matrices and their moments are there once.
    assert vocabulary_sized(path / "model.safetensors") == ["model.shared.weight"]
    assert vocabulary_sized(path / "optimizer.safetensors") == [
        "optimizer.model.shared.weight.exp_avg",
        "optimizer.model.shared.weight.exp_avg_sq",
    ]


def vocabulary_sized(file: Path) -> list[str]:
    return sorted(name for name, tensor in load_file(file).items() if tensor.shape == (40, 16))


def test_no_pickle_is_read(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(accelerator, seed=1)
    run.update()
    path = run.save(tmp_path)
    (path / "optimizer.pt").write_bytes(b"planted")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was opened")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    restored = Run(accelerator, seed=2)
    restored.load(path)
    assert_same_state(run, restored)


def test_extra_tensors_come_back(tmp_path: Path, accelerator: Accelerator) -> None:
    run = Run(accelerator, seed=1)
    average = {name: torch.randn_like(p).detach() for name, p in run.model.named_parameters()}
    extra = {**average, "steps": torch.tensor([7]), "half": torch.ones(2, dtype=torch.bfloat16)}
    loaded = run.load(run.save(tmp_path, extra_tensors=extra)).extra_tensors
    assert loaded.keys() == extra.keys()
    for name, tensor in extra.items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].dtype == tensor.dtype, name
        assert not loaded[name].requires_grad


def test_the_gradient_scaler_is_restored(tmp_path: Path, accelerator: Accelerator) -> None:
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, growth_interval=3)
    run = Run(accelerator, seed=1)
    loss = accelerator.scaler.scale(
        run.model(input_ids=torch.tensor([[5]]), labels=torch.tensor([[5]])).loss
    )
    loss.backward()
    accelerator.scaler.step(run.optimizer)
    accelerator.scaler.update()
    saved = accelerator.scaler.state_dict()
    assert saved["_growth_tracker"] == 1
    path = run.save(tmp_path)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    Run(accelerator, seed=2).load(path)
    assert accelerator.scaler.state_dict() == saved
    # Without a scaler, as in another precision, there is nothing to restore.
    accelerator.scaler = None
    Run(accelerator, seed=2).load(path)


def test_a_random_state_that_is_not_there_is_said(
    tmp_path: Path, accelerator: Accelerator, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(accelerator, seed=1)
    path = run.save(tmp_path)
    file = path / "training_state.json"
    state = json.loads(file.read_text())
    state["random_states"] *= 2
    file.write_text(json.dumps(state))
    drawn = torch.rand(3)
    assert run.load(path).saved_processes == 2
    assert "saved by 2 processes, here are 1" in caplog.text
    assert torch.equal(torch.rand(3), drawn)
    state["random_states"] = []
    file.write_text(json.dumps(state))
    run.load(path)
    assert "process 0 begins with its own" in caplog.text
    assert not torch.equal(torch.rand(3), drawn)


def test_random_state_survives_json_and_other_gpus(caplog: pytest.LogCaptureFixture) -> None:
    state = json.loads(json.dumps(capture_random_state()))
    drawn = [random.random(), float(np.random.rand()), torch.rand(1).item()]
    restore_random_state(state)
    assert [random.random(), float(np.random.rand()), torch.rand(1).item()] == drawn
    assert not caplog.records
    state["cuda"] = [state["torch"]] * 99
    restore_random_state(state)
    assert "99 GPUs" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"vocab_size": 41},
            r"model\.shared\.weight is \(40, 16\) torch\.float32 in .* but \(41, 16\)",
        ),
        ({"d_ff": 32}, r"layers\.0\.fc1\.weight is \(24, 16\) .* but \(32, 16\)"),
        ({"num_decoder_layers": 2}, r"has 31 tensors, this one 49 .*decoder\.layers\.1\."),
        ({"share_embeddings": False}, r"has 31 tensors, this one 32 .*embed_tokens\.weight"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    tmp_path: Path, accelerator: Accelerator, config: dict[str, Any], message: str
) -> None:
    path = Run(accelerator, seed=1).save(tmp_path)
    other = Run(accelerator, seed=2, **config)
    with pytest.raises(ValueError, match=f"{message}.*resume with the architecture"):
        other.load(path)


def test_a_checkpoint_of_another_type_of_number_is_refused(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    path = Run(accelerator, seed=1).save(tmp_path)
    other = Run(accelerator, seed=2)
    other.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.float32 in .* but .* torch\.bfloat16"):
        other.load(path)


def test_another_optimizer_is_refused(tmp_path: Path, accelerator: Accelerator) -> None:
    run = Run(accelerator, seed=1)
    path = run.save(tmp_path)
    other = Run(accelerator, seed=2)
    other.optimizer = torch.optim.AdamW(other.model.parameters(), lr=1.0)
    with pytest.raises(ValueError, match=r"with Adam over 31 .* is AdamW .*resume with the opt"):
        other.load(path)
    # The same kind over fewer parameters: a frozen embedding.
    next(other.model.parameters()).requires_grad_(False)
    other.optimizer = build_optimizer(other.model)
    with pytest.raises(ValueError, match=r"over 31 .* over 30 in 1 .*model\.shared\.weight"):
        other.load(path)


def test_frozen_parameters_resume(tmp_path: Path, accelerator: Accelerator) -> None:
    runs = [Run(accelerator, seed=1), Run(accelerator, seed=2)]
    for run in runs:
        next(run.model.parameters()).requires_grad_(False)
        run.optimizer = build_optimizer(run.model)
        run.scheduler = build_scheduler(run.optimizer, d_model=16, warmup=4)
    runs[0].update()
    runs[1].load(runs[0].save(tmp_path))
    assert_same_state(*runs)


def test_momentum_and_the_lack_of_it_resume(tmp_path: Path, accelerator: Accelerator) -> None:
    for momentum in (0.0, 0.9):
        runs = [Run(accelerator, seed=1), Run(accelerator, seed=2)]
        for run in runs:
            run.optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0, momentum=momentum)
            run.scheduler = build_scheduler(run.optimizer, d_model=16, warmup=4)
        runs[0].update()
        path = runs[0].save(tmp_path / str(momentum))
        assert (path / "optimizer.safetensors").exists() == bool(momentum)
        runs[1].load(path)
        assert_same_state(*runs)


def test_an_optimizer_with_state_of_another_shape_is_refused(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run = Run(accelerator, seed=1)
    run.optimizer = torch.optim.Adafactor(run.model.parameters(), lr=1.0)
    run.scheduler = build_scheduler(run.optimizer, d_model=16, warmup=4)
    run.update()
    with pytest.raises(ValueError, match=r"row_var of model\.shared\.weight is \(40, 1\)"):
        run.save(tmp_path)
    assert find_checkpoints(tmp_path) == []


def test_a_directory_without_training_state_is_refused(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run = Run(accelerator, seed=1)
    model: Any = run.model
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has no training_state\.json"):
        run.load(tmp_path / "model")


def test_an_error_while_saving_leaves_older_checkpoints_alone(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run = Run(accelerator, seed=1)
    run.save(tmp_path, 2)
    before = contents(tmp_path)

    class FullDisk(Tokenizer):
        def save_pretrained(self, directory: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"update-00000003 .*Free some space"):
        run.save(tmp_path, 3, tokenizer=FullDisk())
    with pytest.raises(TypeError, match="not JSON serializable"):
        run.save(tmp_path, 4, progress={"oops": torch.ones(1)})
    assert contents(tmp_path) == before
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "update-00000002"


# Killed while saving

KILLED_AT_EVERY_MOMENT = r"""
import os, signal, sys
from pathlib import Path
from test_checkpointing import Run
from accelerate import Accelerator
from vanilla_transformer.training.checkpointing import *

run_dir = Path(sys.argv[1])
accelerator = Accelerator(cpu=True)
run = Run(accelerator, seed=1)
weights = {}


def save(update):
    run.save(run_dir, update, progress={"update": update})
    rotate_checkpoints(run_dir, keep=1)


def die_at(moment):
    # Files are opened, renamed, made and removed through events that an audit hook sees.
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if not any(str(run_dir) in str(argument) for argument in arguments[:2]):
            return
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def norm():
    return float(sum(p.detach().double().abs().sum() for p in run.model.parameters()))


run.update()
save(1)
weights[1] = norm()
current, moment, survived = 1, 0, False
while not survived:
    moment += 1
    run.update()
    target = current + 1
    weights[target] = norm()
    child = os.fork()
    if child == 0:
        die_at(moment)
        save(target)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    survived = status == 0
    # Whatever bears the name of a checkpoint is a whole one.
    for path in find_checkpoints(run_dir):
        verify_checkpoint(path)
    latest = latest_checkpoint(run_dir)
    state = run.load(latest)
    # The newest whole one is the old or the new, and what is in it belongs together.
    assert state.progress["update"] in (current, target), (moment, latest)
    assert norm() == weights[state.progress["update"]], (moment, latest)
    current = state.progress["update"]
assert current == target
assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [latest.name]
print("moments", moment, "updates", current)
"""


def test_killed_at_any_moment_of_saving_there_is_a_checkpoint_to_resume_from(
    tmp_path: Path,
) -> None:
    program = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_MOMENT, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert program.returncode == 0, program.stderr[-3000:]
    _, moments, _, updates = program.stdout.split()[-4:]
    # Some died before the rename, some after it.
    assert int(moments) > 30
    assert 2 < int(updates) < int(moments)


# Exporting


def test_the_model_of_a_checkpoint_is_exported_alone(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run = Run(accelerator, seed=1)
    path = run.save(tmp_path)
    output = export_model(path, tmp_path / "model")
    assert output == tmp_path / "model"
    model: Any = run.model
    model.save_pretrained(tmp_path / "expected")
    assert contents(output) == {**contents(tmp_path / "expected"), "tokenizer.json": b"{}"}
    verify_checkpoint(path)


def test_export_overwrites_only_when_asked_and_never_its_input(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    path = Run(accelerator, seed=1).save(tmp_path)
    output = tmp_path / "model"
    output.mkdir()
    (output / "old").write_text("1")
    with pytest.raises(ValueError, match="model exists"):
        export_model(path, output)
    export_model(path, output, overwrite=True)
    assert not (output / "old").exists()
    for lost in (path, tmp_path):
        with pytest.raises(ValueError, match="would be lost"):
            export_model(path, lost, overwrite=True)


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path, accelerator: Accelerator) -> None:
    path = Run(accelerator, seed=1).save(tmp_path)
    damage(path, "one bit")
    with pytest.raises(ValueError, match=r"model\.safetensors has other contents"):
        export_model(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
