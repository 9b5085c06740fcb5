"""Averages of weights: over the checkpoints of a run in float64, and over all its updates."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.modeling_vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.training.averaging import ExponentialMovingAverage, average_checkpoints
from vanilla_transformer.training.checkpointing import (
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    write_manifest,
)


def tiny_model(seed: int) -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(seed)
    config = VanillaTransformerConfig(
        vocab_size=40,
        d_model=16,
        d_ff=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout=0.0,
    )
    return VanillaTransformerForConditionalGeneration(config)


# Of checkpoints


def file_names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.rglob("*") if file.is_file())


def flip_one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


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
    assert file_names(output) == ["config.json", "model.safetensors"]


def test_decay_lets_newer_models_weigh_more(tmp_path: Path) -> None:
    models = [random_tensors(seed) for seed in range(3)]
    paths = [write_model(tmp_path / str(seed), models[seed]) for seed in range(3)]
    averaged = load_file(
        average_checkpoints(paths, tmp_path / "mean", decay=0.5) / "model.safetensors"
    )
    for name in ("single", "half"):
        oldest, middle, newest = (model[name].double() for model in models)
        # 1/4, 1/2 and 1, divided by their sum.
        expected = ((oldest + 2 * middle + 4 * newest) / 7).to(models[0][name].dtype)
        torch.testing.assert_close(averaged[name], expected, rtol=1e-7, atol=0)
    assert torch.equal(averaged["steps"], models[0]["steps"])
    for decay in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=r"decay .* must lie between 0 and 1"):
            average_checkpoints(paths, tmp_path / "other", decay=decay)


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
        model = tiny_model(seed=update)
        directory = tmp_path / str(update)
        # One in shards, one whole: both layouts, and mixed.
        model.save_pretrained(directory, max_shard_size="4KB" if update == 1 else "1GB")
        (directory / "tokenizer.json").write_text(f"tokenizer of {update}")
        # What else a checkpoint holds has no business in a model to be used.
        (directory / "training_state.json").write_text("{}")
        save_file({"step": torch.zeros(1)}, directory / "optimizer.safetensors")
        write_manifest(directory)
        paths.append(directory)
        models.append(model.state_dict())
    assert len(list(paths[0].glob("model-*.safetensors"))) > 1
    output = average_checkpoints(paths, tmp_path / "mean")
    assert file_names(output) == [
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
    flip_one_bit(altered / "model.safetensors")
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


# Over all updates


def train_one_update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens = torch.randint(4, 40, (4, 6), generator=torch.Generator().manual_seed(seed))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def loss_of(model: torch.nn.Module) -> float:
    tokens = torch.randint(4, 40, (4, 6), generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        return float(model.eval()(input_ids=tokens, labels=tokens).loss)


def test_moving_average_is_that_of_the_naive_formula() -> None:
    model = tiny_model(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = ExponentialMovingAverage(model, decay=0.8)
    expected = {name: weight.double().numpy() for name, weight in weights_of(model).items()}
    for update in range(5):
        train_one_update(model, optimizer, seed=update)
        average.update()
        for name, weight in weights_of(model).items():
            expected[name] = 0.8 * expected[name] + 0.2 * weight.double().numpy()
    found = average.state_dict()
    # Each parameter once, the tied ones too.
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(tensor, weights_of(model)[name])


def test_moving_average_is_applied_and_taken_back_exactly() -> None:
    model = tiny_model(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = ExponentialMovingAverage(model, decay=0.8)
    train_one_update(model, optimizer, seed=1)
    average.update()
    before, loss_before = weights_of(model), loss_of(model)

    def look(error: BaseException | None = None) -> None:
        with average.applied():
            assert model.lm_head.weight is model.get_input_embeddings().weight
            for name, weight in weights_of(model).items():
                assert torch.equal(weight, average.state_dict()[name])
            assert loss_of(model) != loss_before
            if error is not None:
                raise error

    look()
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    for error in (RuntimeError("full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            look(error)
        assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    assert loss_of(model) == loss_before


def test_moving_average_of_bfloat16_weights_is_kept_in_float32() -> None:
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    average = ExponentialMovingAverage(model, decay=0.999)
    with torch.no_grad():
        model.weight.fill_(2)
    # A thousandth is less than bfloat16 can tell from 1.
    for _ in range(10):
        average.update()
    [tensor] = average.state_dict().values()
    assert tensor.dtype == torch.float32
    assert tensor.item() == pytest.approx(2 - 0.999**10, rel=1e-6)
    with average.applied():
        assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == 2


def test_only_trainable_parameters_are_averaged() -> None:
    model = torch.nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert ExponentialMovingAverage(model, decay=0.9).state_dict().keys() == {"bias"}


def test_moving_average_goes_on_from_its_state() -> None:
    model = tiny_model(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = ExponentialMovingAverage(model, decay=0.8)
    train_one_update(model, optimizer, seed=1)
    average.update()
    saved = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    again = ExponentialMovingAverage(model, decay=0.8)
    again.load_state_dict(saved)
    train_one_update(model, optimizer, seed=2)
    for one in (average, again):
        one.update()
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_state_of_another_model_is_refused() -> None:
    average = ExponentialMovingAverage(torch.nn.Linear(2, 3), decay=0.9)
    with pytest.raises(ValueError, match=r"other parameters than the model's \(bias, 1 in all\)"):
        average.load_state_dict({"weight": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"weight is \(2, 2\), the parameter is \(3, 2\)"):
        average.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(3)})
    for decay in (0.0, 1.0):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            ExponentialMovingAverage(torch.nn.Linear(2, 3), decay=decay)


# Of a model sharded between two processes (FSDP2)


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `main` leaves: two checkpoints and the mean of the same weights, never sharded."""
    run_dir = tmp_path_factory.mktemp("sharded")
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [*command, __file__, str(run_dir)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run_dir


def test_average_of_sharded_checkpoints_is_one_whole_model(
    sharded_run: Path, tmp_path: Path
) -> None:
    checkpoints = find_checkpoints(sharded_run)
    assert len(checkpoints) == 2
    assert not (checkpoints[0] / "model.safetensors").exists()
    output = average_checkpoints(checkpoints, tmp_path / "mean")
    assert file_names(output) == ["config.json", "generation_config.json", "model.safetensors"]
    model, report = VanillaTransformerForConditionalGeneration.from_pretrained(
        output, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = load_file(sharded_run / "mean.safetensors")
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7)


def test_moving_average_of_shards_is_that_of_the_whole_model(sharded_run: Path) -> None:
    assert (sharded_run / "averages-agree-0").exists()
    assert (sharded_run / "averages-agree-1").exists()


def gathered(average: ExponentialMovingAverage) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in average.state_dict().items():
        assert isinstance(tensor, DTensor), f"{name} is not sharded"
        tensors[name] = tensor.full_tensor()
    return tensors


def main(run_dir: Path) -> None:
    """What each of two processes does; it fails where the averages do not agree."""
    accelerator = Accelerator()
    mesh = init_device_mesh("cpu", (2,))
    whole, model = tiny_model(seed=1), tiny_model(seed=1)
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer_of_whole = torch.optim.SGD(whole.parameters(), lr=0.5)
    scheduler = LambdaLR(optimizer, lambda update: 1.0)
    average = ExponentialMovingAverage(model, decay=0.8)
    average_of_whole = ExponentialMovingAverage(whole, decay=0.8)
    without_files: Any = SimpleNamespace(save_pretrained=lambda directory: None)
    mean = {name: torch.zeros_like(weight) for name, weight in weights_of(whole).items()}
    for update in (1, 2):
        train_one_update(model, optimizer, seed=update)
        train_one_update(whole, optimizer_of_whole, seed=update)
        average.update()
        average_of_whole.update()
        path = save_checkpoint(
            run_dir,
            update,
            accelerator=accelerator,
            model=model,
            tokenizer=without_files,
            optimizer=optimizer,
            scheduler=scheduler,
            position={},
            progress={},
            extra_tensors=average.state_dict(),
        )
        for name, weight in weights_of(whole).items():
            mean[name] += weight / 2
    if accelerator.is_main_process:
        save_file(mean, run_dir / "mean.safetensors")
    expected = average_of_whole.state_dict()
    for name, tensor in gathered(average).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)
    # The forward pass without a backward leaves weights gathered: the averages must reach them.
    before = loss_of(model)
    with average_of_whole.applied(), average.applied():
        assert abs(loss_of(model) - loss_of(whole)) < 1e-5
        assert abs(loss_of(model) - before) > 1e-3
    assert loss_of(model) == before
    # They are gathered again: averages begun now must be of the shards.
    fresh = ExponentialMovingAverage(model, decay=0.8)
    state = load_checkpoint(
        path, accelerator=accelerator, model=model, optimizer=optimizer, scheduler=scheduler
    )
    fresh.load_state_dict(state.extra_tensors)
    saved = gathered(average)
    for name, tensor in gathered(fresh).items():
        assert torch.equal(tensor, saved[name]), name
    (run_dir / f"averages-agree-{accelerator.process_index}").touch()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
