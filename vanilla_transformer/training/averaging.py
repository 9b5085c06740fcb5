"""One model out of several (paper 6.1): the mean of a run's last checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule

from .checkpointing import (
    MANIFEST,
    TRAINING_STATE,
    WEIGHTS,
    WEIGHTS_INDEX,
    atomic_directory,
    copy_all_but_weights,
    export_model,
    verify_checkpoint,
)


def average_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    decay: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the model whose parameters are the mean of several (paper 6.1: the last 5 or 20).

    With `decay` newer models weigh more: of n, oldest first, the i-th (from 1) weighs
    decay^(n - i), divided by the sum of all weights. The mean is taken in float64, one tensor at a
    time, and cast back. Tensors that are not floating point must agree. Configuration, generation
    configuration, tokenizer and code are copied from the newest model. Checkpoints of a sharded
    model are exported first, beside `output`, and need the room for it.

    Args:
        paths: directories that `save_pretrained` or `save_checkpoint` has written, oldest first.
        decay: what a model's weight is multiplied by for each one newer; None weighs all alike.
        output: directory to write; it becomes loadable with `from_pretrained`.
        overwrite: replace `output`, and all that is in it, if it exists.

    Returns: `output`.

    Raises: ValueError if `decay` is not between 0 and 1, there is nothing to average, the models
        differ in architecture, a checkpoint is damaged, or `output` exists.
    """
    directories = [Path(path).absolute() for path in paths]
    output = Path(output).absolute()
    if decay is not None:
        _check_decay(decay)
    if not directories:
        raise ValueError("no checkpoints to average; give at least one model directory")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; choose another name, or allow it to be overwritten")
    for directory in directories:
        if output.resolve() in (directory.resolve(), *directory.resolve().parents):
            raise ValueError(
                f"the output {output} contains {directory}, which would be lost; choose another"
            )
        if (directory / MANIFEST).exists():
            verify_checkpoint(directory)
    _check_same_architecture(directories)
    with atomic_directory(output) as temporary, TemporaryDirectory(dir=temporary) as exported:
        directories = [
            export_model(directory, Path(exported) / str(number))
            if _is_sharded_checkpoint(directory)
            else directory
            for number, directory in enumerate(directories)
        ]
        copy_all_but_weights(directories[-1], temporary)
        tensors = _mean_tensors(directories, _relative_weights(len(directories), decay))
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
    return output


class ExponentialMovingAverage:
    """The mean of a model's weights over its past, newest weighing most; kept beside them.

    After each update `average = decay * average + (1 - decay) * weights`, in float32, beginning
    with the weights as they are: nothing is biased towards zero. The averages lie where the weights
    lie, and are sharded as they are (FSDP2), so make it of the prepared model.

    Args:
        model: Its trainable parameters are averaged, tied ones once.
        decay: Such as 0.999: about the last 1000 updates count.

    Raises:
        ValueError: `decay` is not between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        _check_decay(decay)
        self.decay = decay
        self._sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._reshard()
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._averages = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in self._parameters.items()
        }

    def _reshard(self) -> None:
        # A forward pass without a backward leaves the outermost weights gathered: the next one
        # would not look at the shards.
        for module in self._sharded:
            module.reshard()

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are now; call it after each optimizer update."""
        for name, parameter in self._parameters.items():
            average = self._averages[name]
            average.lerp_(parameter.detach().to(average.dtype), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averages for weights, after it exactly its own."""
        weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        try:
            self._set_weights(self._averages)
            yield
        finally:
            self._set_weights(weights)

    @torch.no_grad()
    def _set_weights(self, tensors: dict[str, torch.Tensor]) -> None:
        self._reshard()
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages by name of the parameter; not copies of them."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on with the averages in `state`, sharded as the model is.

        Raises:
            ValueError: They are those of another model.
        """
        if different := sorted(state.keys() ^ self._averages.keys()):
            raise ValueError(
                f"the saved averages are of other parameters than the model's "
                f"({', '.join(different[:5])}, {len(different)} in all); resume with the same model"
            )
        for name, average in self._averages.items():
            saved = state[name]
            if saved.shape != average.shape:
                raise ValueError(
                    f"the saved average of {name} is {tuple(saved.shape)}, the parameter is "
                    f"{tuple(average.shape)}; resume with the same model"
                )
            average.copy_(saved)


def _check_decay(decay: float) -> None:
    if not 0 < decay < 1:
        raise ValueError(f"decay ({decay}) must lie between 0 and 1, such as 0.9 or 0.999")


def _relative_weights(count: int, decay: float | None) -> list[float]:
    """Of models, oldest first; they need not add up to 1."""
    return [1.0 if decay is None else decay ** (count - i) for i in range(1, count + 1)]


def _mean_tensors(directories: list[Path], weights: list[float]) -> dict[str, torch.Tensor]:
    locations = [_locate_tensors(directory) for directory in directories]
    names = locations[0].keys()
    for directory, location in zip(directories, locations, strict=True):
        if different := sorted(names ^ location.keys()):
            raise ValueError(
                f"{directory} and {directories[0]} have different parameters "
                f"({', '.join(different[:5])}, {len(different)} in all); average checkpoints of "
                f"one run"
            )
    return {
        name: _mean_tensor(name, [location[name] for location in locations], weights)
        for name in sorted(names)
    }


def _mean_tensor(name: str, files: list[Path], weights: list[float]) -> torch.Tensor:
    first = _read_tensor(files[0], name)
    total = first.to(torch.float64) * weights[0] if first.is_floating_point() else first
    for file, weight in zip(files[1:], weights[1:], strict=True):
        other = _read_tensor(file, name)
        if other.shape != first.shape or other.dtype != first.dtype:
            raise ValueError(
                f"{name} is {tuple(other.shape)} {other.dtype} in {file} but {tuple(first.shape)} "
                f"{first.dtype} in {files[0]}; average checkpoints of one run"
            )
        if first.is_floating_point():
            total = total + other.to(torch.float64) * weight
        elif not torch.equal(other, first):
            raise ValueError(
                f"{name} ({first.dtype}) has no mean and differs between {file} and {files[0]}; "
                f"average checkpoints of one run"
            )
    return (total / sum(weights)).to(first.dtype) if first.is_floating_point() else first


def _locate_tensors(directory: Path) -> dict[str, Path]:
    """Name of each tensor of a saved model -> the file that holds it."""
    if (directory / WEIGHTS_INDEX).is_file():
        path = directory / WEIGHTS_INDEX
        try:
            weight_map: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            # A path could make any file of the machine part of the model.
            strange = [file for file in weight_map.values() if Path(file).name != file]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); leave it out") from error
        if strange:
            raise ValueError(f"{path} names a file outside its directory: {strange[0]}")
        return {name: directory / file for name, file in weight_map.items()}
    file = directory / WEIGHTS
    if not file.is_file():
        raise ValueError(
            f"{directory} has neither {WEIGHTS} nor {WEIGHTS_INDEX}; give directories "
            f"written by save_pretrained"
        )
    try:
        with safe_open(file, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}); leave it out") from error


def _read_tensor(file: Path, name: str) -> torch.Tensor:
    try:
        with safe_open(file, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{name} cannot be read from {file} ({error}); leave it out") from error


def _check_same_architecture(directories: list[Path]) -> None:
    """Equal shapes do not make equal models: activation or normalisation may differ."""
    configs = []
    for directory in directories:
        file = directory / "config.json"
        if not file.is_file():
            raise ValueError(f"{file} is missing; give directories written by save_pretrained")
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            configs.append({k: v for k, v in config.items() if k != "transformers_version"})
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} is damaged ({error}); leave it out") from error
    for directory, config in zip(directories, configs, strict=True):
        for key in sorted(config.keys() | configs[0].keys()):
            if config.get(key) != configs[0].get(key):
                raise ValueError(
                    f"{key} is {config.get(key)!r} in {directory} but {configs[0].get(key)!r} in "
                    f"{directories[0]}; average checkpoints of one run"
                )


def _is_sharded_checkpoint(directory: Path) -> bool:
    has_weights = (directory / WEIGHTS).is_file() or (directory / WEIGHTS_INDEX).is_file()
    return not has_weights and (directory / TRAINING_STATE).is_file()
