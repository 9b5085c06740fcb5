"""Checkpoints: whole or absent, damage detected, resumed bit for bit, averaged in float64."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.modeling_vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.training.checkpointing import (
    atomic_directory,
    average_checkpoints,
    capture_random_state,
    find_checkpoints,
    latest_checkpoint,
    load_training_state,
    new_checkpoint,
    restore_random_state,
    rotate_checkpoints,
    save_training_state,
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


def test_a_killed_writer_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from vanilla_transformer.training.checkpointing import new_checkpoint\n"
        "with new_checkpoint(sys.argv[1], 2) as directory:\n"
        "    (directory / 'model.safetensors').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with new_checkpoint(tmp_path, 1) as directory:
        (directory / "model.safetensors").write_text("whole")
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in find_checkpoints(tmp_path)] == ["update-00000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "update-00000001"
    # The next writer of that update clears up.
    with new_checkpoint(tmp_path, 2) as directory:
        assert list(directory.iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "update-00000001",
        "update-00000002",
    ]


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


@pytest.mark.parametrize("writer", ["python", "torch", "torch on tmpfs", "safetensors"])
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
            elif writer == "torch":
                (directory / "optimizer.pt").symlink_to("/dev/full")
                run = Run(seed=0)
                run.update()
                run.save(directory)
            elif writer == "torch on tmpfs":
                # What torch.save made of it there: the reason is only in the chain.
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


# Training state


class Run:
    """A tiny training run whose every update draws from all three generators."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.device = device
        layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 6))
        self.model = layers.to(device)
        self.optimizer = build_optimizer(self.model)
        self.scheduler: LambdaLR = build_scheduler(self.optimizer, d_model=16, warmup=4)
        self.losses: list[float] = []

    def update(self) -> None:
        inputs = torch.randn(5, 6) * random.gauss(1, 0.1) + float(np.random.standard_normal())
        loss = self.model(inputs.to(self.device)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    def save(self, directory: Path, **options: Any) -> None:
        save_file(self.model.state_dict(), directory / "model.safetensors")
        save_training_state(
            directory,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            sampler_state={"epoch": 1, "next_batch": 17},
            progress={"update": 3, "best_loss": 0.1 + 0.2, "worst_loss": float("inf")},
            **options,
        )

    def load(self, directory: Path, **options: Any) -> dict[str, Any]:
        self.model.load_state_dict(load_file(directory / "model.safetensors"))
        return load_training_state(
            directory, optimizer=self.optimizer, scheduler=self.scheduler, **options
        )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("updates_before", [0, 3])
def test_resumed_run_is_bit_for_bit_the_straight_one(
    tmp_path: Path, device: str, updates_before: int
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    straight = Run(seed=1, device=device)
    for _ in range(updates_before):
        straight.update()
    # An odd number of draws leaves a cached second normal deviate in both generators.
    np.random.standard_normal()
    random.gauss(0, 1)
    with new_checkpoint(tmp_path, 3) as directory:
        straight.save(directory)
    for _ in range(4):
        straight.update()

    resumed = Run(seed=2, device=device)
    resumed.update()
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    state = resumed.load(checkpoint)
    assert state == {
        "sampler_state": {"epoch": 1, "next_batch": 17},
        "progress": {"update": 3, "best_loss": 0.1 + 0.2, "worst_loss": float("inf")},
    }
    for _ in range(4):
        resumed.update()
    assert resumed.losses[1:] == straight.losses[updates_before:]
    for name, parameter in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], parameter)
    assert resumed.scheduler.get_last_lr() == straight.scheduler.get_last_lr()


def test_each_process_gets_its_own_random_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(seed=1)
    states = []
    draws = []
    for rank in range(2):
        torch.manual_seed(rank)
        states.append(capture_random_state())
        draws.append(torch.rand(3).tolist())
    run.save(tmp_path, random_states=states)
    for rank in (1, 0):
        run.load(tmp_path, process_index=rank)
        assert torch.rand(3).tolist() == draws[rank]
    assert not caplog.records
    run.load(tmp_path, process_index=2)
    assert "saved by 2 processes" in caplog.text


def test_random_state_survives_json_and_other_gpus(caplog: pytest.LogCaptureFixture) -> None:
    state = json.loads(json.dumps(capture_random_state()))
    drawn = [random.random(), float(np.random.rand()), torch.rand(1).item()]
    restore_random_state(state)
    assert [random.random(), float(np.random.rand()), torch.rand(1).item()] == drawn
    assert not caplog.records
    state["cuda"] = [state["torch"]] * 99
    restore_random_state(state)
    assert "99 GPUs" in caplog.text


def test_training_state_of_another_model_is_refused(tmp_path: Path) -> None:
    run = Run(seed=1)
    run.update()
    run.save(tmp_path)

    def load(model: nn.Module) -> None:
        optimizer = build_optimizer(model)
        scheduler = build_scheduler(optimizer, 16, 4)
        load_training_state(tmp_path, optimizer=optimizer, scheduler=scheduler)

    with pytest.raises(ValueError, match="is for 4 parameters, the optimizer has 2"):
        load(nn.Linear(6, 8))
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 is \(8, 6\)"):
        load(nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 6)))


def test_a_directory_without_training_state_is_refused(tmp_path: Path) -> None:
    run = Run(seed=1)
    run.save(tmp_path)
    (tmp_path / "training_state.json").unlink()
    with pytest.raises(ValueError, match=r"has no training_state\.json"):
        run.load(tmp_path)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Intruder:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "intruded").touch, ())

    run = Run(seed=1)
    run.save(tmp_path)
    torch.save({"state": Intruder(), "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
        run.load(tmp_path)
    assert not (tmp_path / "intruded").exists()


# Averaging


def write_model(directory: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"d_model": 8} | config))
    return directory


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "single": torch.randn(40, 30, generator=generator),
        "half": torch.randn(40, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor([3, 4]),
    }


def test_average_is_the_mean_in_double_precision(tmp_path: Path) -> None:
    models = [random_tensors(seed) for seed in range(5)]
    paths = [write_model(tmp_path / str(seed), models[seed]) for seed in range(5)]
    output = average_checkpoints(paths, tmp_path / "mean")
    averaged = load_file(output / "model.safetensors")
    assert averaged.keys() == models[0].keys()
    for name in ("single", "half"):
        stacked = np.stack([model[name].double().numpy() for model in models])
        expected = torch.from_numpy(stacked.mean(axis=0)).to(models[0][name].dtype)
        assert averaged[name].dtype == expected.dtype
        torch.testing.assert_close(averaged[name], expected, rtol=1e-7, atol=0)
    assert torch.equal(averaged["steps"], models[0]["steps"])
    assert sorted(contents(output)) == ["config.json", "model.safetensors"]


def test_average_does_not_lose_small_parts(tmp_path: Path) -> None:
    # In bfloat16, and in float32 as well, 2^25 + 1 - 2^25 is 0.
    values = [2.0**25, 1.0, -(2.0**25), 1.0]
    paths = [
        write_model(tmp_path / str(index), {"x": torch.tensor([value]).to(torch.bfloat16)})
        for index, value in enumerate(values)
    ]
    averaged = load_file(average_checkpoints(paths, tmp_path / "mean") / "model.safetensors")
    assert averaged["x"].item() == 0.5


def test_average_of_saved_models_in_shards_loads(tmp_path: Path) -> None:
    paths = []
    models = []
    for update in (1, 2):
        torch.manual_seed(update)
        config = VanillaTransformerConfig(
            vocab_size=40,
            d_model=16,
            d_ff=32,
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=1,
        )
        model = VanillaTransformerForConditionalGeneration(config)
        optimizer = build_optimizer(model)
        with new_checkpoint(tmp_path, update) as directory:
            # One in shards, one whole: both layouts, and mixed.
            model.save_pretrained(directory, max_shard_size="4KB" if update == 1 else "1GB")
            (directory / "tokenizer.json").write_text(f"tokenizer of {update}")
            save_training_state(
                directory,
                optimizer=optimizer,
                scheduler=build_scheduler(optimizer, 16),
                sampler_state={},
                progress={},
            )
        paths.append(tmp_path / "checkpoints" / f"update-{update:08d}")
        models.append(model.state_dict())
    assert len(list(paths[0].glob("model-*.safetensors"))) > 1
    output = average_checkpoints(find_checkpoints(tmp_path), tmp_path / "mean")
    assert sorted(contents(output)) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (output / "tokenizer.json").read_text() == "tokenizer of 2"
    mean, report = VanillaTransformerForConditionalGeneration.from_pretrained(
        output, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, parameter in mean.state_dict().items():
        expected = (models[0][name].double() + models[1][name].double()) / 2
        assert torch.equal(parameter, expected.to(parameter.dtype)), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"single": torch.zeros(30, 40)}, r"single is \(30, 40\) torch.float32"),
        ({"half": torch.zeros(40)}, r"half is \(40,\) torch.float32"),
        ({"steps": torch.tensor([3, 5])}, r"steps \(torch.int64\) has no mean and differs"),
        ({"extra": torch.zeros(1)}, r"different parameters \(extra, 1 in all\)"),
    ],
)
def test_unlike_models_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    paths = [
        write_model(tmp_path / "a", random_tensors(0)),
        write_model(tmp_path / "b", random_tensors(1) | change),
    ]
    with pytest.raises(ValueError, match=message):
        average_checkpoints(paths, tmp_path / "mean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_models_of_unlike_configuration_are_refused(tmp_path: Path) -> None:
    paths = [
        write_model(tmp_path / "a", random_tensors(0), activation="relu"),
        write_model(tmp_path / "b", random_tensors(1), activation="gelu", transformers_version="6"),
    ]
    with pytest.raises(ValueError, match=r"activation is 'gelu' in .*b but 'relu' in"):
        average_checkpoints(paths, tmp_path / "mean")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    good = write_model(tmp_path / "good", random_tensors(0))
    with pytest.raises(ValueError, match="no checkpoints"):
        average_checkpoints([], tmp_path / "mean")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        average_checkpoints([good, tmp_path / "absent"], tmp_path / "mean")
    empty = write_model(tmp_path / "empty", random_tensors(0))
    (empty / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has neither model\.safetensors"):
        average_checkpoints([good, empty], tmp_path / "mean")
    torn = write_model(tmp_path / "torn", random_tensors(0))
    (torn / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"torn.*is damaged"):
        average_checkpoints([good, torn], tmp_path / "mean")
    # One bit off can still be read; only the manifest tells.
    altered = write_model(tmp_path / "altered", random_tensors(0))
    write_manifest(altered)
    damage(altered, "one bit")
    with pytest.raises(ValueError, match="other contents than were written"):
        average_checkpoints([good, altered], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_average_overwrites_only_when_asked_and_never_its_input(tmp_path: Path) -> None:
    paths = [
        write_model(tmp_path / "a", random_tensors(0)),
        write_model(tmp_path / "b", random_tensors(1)),
    ]
    output = average_checkpoints(paths, tmp_path / "mean")
    with pytest.raises(ValueError, match="mean exists"):
        average_checkpoints(paths[:1], output)
    average_checkpoints(paths[:1], output, overwrite=True)
    assert torch.equal(
        load_file(output / "model.safetensors")["single"], random_tensors(0)["single"]
    )
    for lost in (paths[1], tmp_path):
        with pytest.raises(ValueError, match="would be lost"):
            average_checkpoints(paths, lost, overwrite=True)


def test_full_disk_while_averaging_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "a", random_tensors(0))

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", no_space)
    with pytest.raises(OSError, match="Free some space"):
        average_checkpoints([path], tmp_path / "mean")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
