"""Checkpoints: written whole or not at all, verified before use, resumed exactly.

A checkpoint is a directory `RUN/checkpoints/update-00001000/`, written aside and renamed when
complete. Besides configuration, tokenizer, `training_state.json` and a manifest with the size and
hash of every file it holds tensors, all of them in safetensors:

- of a model that is whole on every process (one process, DDP): `model.safetensors` as
  `save_pretrained` writes it, `optimizer.safetensors` and `extra.safetensors`;
- of a sharded one (FSDP2): from each process one `shard-...safetensors` with its part of all.

The tensors have the same names in both, so that either is loaded into any number of processes.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
EXTRA = "extra.safetensors"
TRAINING_STATE = "training_state.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# What the names of tensors begin with that are not the model's own.
_MOMENTS_PREFIX = "optimizer."
_EXTRA_PREFIX = "extra."
_CHECKPOINT_NAME = re.compile(r"update-(\d+)")


@dataclass(frozen=True)
class LoadedState:
    """What `load_checkpoint` hands back to the loop.

    Attributes:
        position: As it was saved.
        progress: As it was saved.
        extra_tensors: As they were saved; those named like a parameter lie and are sharded as it.
        saved_processes: How many processes wrote the checkpoint.
    """

    position: dict[str, Any]
    progress: dict[str, Any]
    extra_tensors: dict[str, torch.Tensor]
    saved_processes: int


def save_checkpoint(
    run_dir: str | os.PathLike[str],
    update: int,
    *,
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    position: dict[str, Any],
    progress: dict[str, Any],
    extra_tensors: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Writes all that the next update depends on, to resume bit for bit; every process calls it.

    Args:
        run_dir: The same on every process, in a file system that they share.
        update: Number of the last update done.
        accelerator: Knows the main process and the gradient scaler.
        model: A `PreTrainedModel`, prepared (DDP, FSDP2, compiled) or not.
        tokenizer: Saved beside the model.
        optimizer: Over parameters of `model`; Adam, AdamW or SGD.
        scheduler: Its state is JSON values.
        position: Where the run is in its data, JSON values.
        progress: Whatever the loop counts, JSON values.
        extra_tensors: More tensors by name, such as an average of the weights; sharded ones where
            the model is sharded.

    Returns:
        `RUN/checkpoints/update-...`.

    Raises:
        OSError: The disk is full; on other processes than the main one a RuntimeError. After this
            or any other error, which every process sees, there is no new checkpoint.
    """
    inner = accelerator.unwrap_model(model)
    weights = _model_tensors(inner)
    moments, optimizer_state = _split_optimizer_state(optimizer, weights)
    extra = {_EXTRA_PREFIX + name: tensor for name, tensor in (extra_tensors or {}).items()}
    state = {
        "optimizer": optimizer_state,
        "scheduler": scheduler.state_dict(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        "position": position,
        "progress": progress,
        "random_states": _gather(capture_random_state()),
    }
    is_sharded = any(isinstance(tensor, DTensor) for tensor in weights.values())
    with _shared_checkpoint(run_dir, update, accelerator.is_main_process) as directory:
        with _agreement():
            if accelerator.is_main_process:
                # Without tensors it writes what belongs to them: configuration, code.
                inner.save_pretrained(directory, state_dict={} if is_sharded else None)
                tokenizer.save_pretrained(directory)
                _write_json(directory / TRAINING_STATE, state)
                if is_sharded:
                    (directory / WEIGHTS).unlink(missing_ok=True)
                else:
                    _write_tensors(directory / OPTIMIZER, moments)
                    _write_tensors(directory / EXTRA, extra)
        if is_sharded:
            with _agreement():
                _write_shards(directory, {**weights, **moments, **extra})
    return _checkpoint_path(run_dir, update)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
) -> LoadedState:
    """Restores what `save_checkpoint` has written, in place; every process calls it.

    The number of processes and the way the model is sharded may differ from those that saved it.
    Where they are the same, the run goes on bit for bit.

    Args:
        path: A checkpoint that verifies.
        accelerator: As for `save_checkpoint`.
        model: Of the same architecture as the saved one.
        optimizer: Of the same kind, over the same parameters.
        scheduler: Of the same kind.

    Raises:
        ValueError: A file is missing or damaged, or the model or optimizer is another one.
    """
    directory = Path(path)
    with _agreement(), _damage_named(directory):
        saved = _read_training_state(directory)
        weights = _model_tensors(accelerator.unwrap_model(model))
        written = _list_tensors(directory)
        _check_weights(directory, written, weights)
        moments, optimizer_state = _place_optimizer_state(
            directory, saved["optimizer"], written, optimizer, weights
        )
        extra = {
            name: _place_like(weights.get(name.removeprefix(_EXTRA_PREFIX)), entry)
            for name, entry in written.items()
            if name.startswith(_EXTRA_PREFIX)
        }
        _read_into(directory, {**weights, **moments, **extra})
        optimizer.load_state_dict(optimizer_state)
        scheduler.load_state_dict(saved["scheduler"])
        if accelerator.scaler is not None and saved["scaler"] is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
        random_states = saved["random_states"]
        _restore_own_random_state(
            directory, random_states, accelerator.process_index, accelerator.num_processes
        )
        return LoadedState(
            position=saved["position"],
            progress=saved["progress"],
            extra_tensors={name.removeprefix(_EXTRA_PREFIX): t for name, t in extra.items()},
            saved_processes=len(random_states),
        )


def export_model(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Writes the model of a checkpoint, sharded or not, alone and whole: one process calls it.

    Args:
        checkpoint: A directory that `save_checkpoint` has written.
        output: Directory to write, loadable with `from_pretrained`.
        overwrite: Replace `output`, and all that is in it, if it exists.

    Returns:
        `output`.

    Raises:
        ValueError: The checkpoint is damaged, or `output` exists or contains it.
    """
    checkpoint, output = Path(checkpoint).absolute(), Path(output).absolute()
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; choose another name, or allow it to be overwritten")
    if output.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents):
        raise ValueError(
            f"the output {output} contains {checkpoint}, which would be lost; choose another"
        )
    verify_checkpoint(checkpoint)
    with atomic_directory(output) as directory:
        copy_all_but_weights(checkpoint, directory)
        if (checkpoint / WEIGHTS).is_file():
            shutil.copyfile(checkpoint / WEIGHTS, directory / WEIGHTS)
        else:
            weights = {
                name: _place_like(None, entry)
                for name, entry in _list_tensors(checkpoint).items()
                if not name.startswith((_MOMENTS_PREFIX, _EXTRA_PREFIX))
            }
            _read_into(checkpoint, weights)
            save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    return output


def copy_all_but_weights(source: Path, target: Path) -> None:
    """Copies what lies beside the weights of a saved model, without the state of its training."""
    state = {MANIFEST, TRAINING_STATE, WEIGHTS_INDEX}
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name not in state:
            shutil.copyfile(file, target / file.name)


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty directory to write into, which becomes `path` when the block ends well.

    The directory lies beside `path` under a name that begins with `.tmp-`. At the end all is
    synchronised to the disk and renamed; an older `path` is replaced as a whole. After any
    error, also an interrupt, the new files are removed and the old directory is as it was. What
    a killed process left behind is removed, or put back, by the next writer of the same path;
    one process at a time may write it.

    Raises: OSError naming the path, the bytes free and the remedy when the disk is full,
        whatever error the writing library made of it; NotADirectoryError if `path` is a file.
    """
    path = Path(path).absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; remove it or choose another directory")
    temporary = _aside(path)
    displaced = path.with_name(f".old-{path.name}")
    if displaced.exists() and not path.exists():
        # A process was killed between the two renames below.
        displaced.rename(path)
    for leftover in (temporary, displaced):
        if leftover.exists():
            shutil.rmtree(leftover)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _synchronise(temporary)
        _replace_directory(temporary, path, displaced)
    except BaseException as error:
        free = shutil.disk_usage(_nearest_existing(path)).free
        disk_is_full = isinstance(error, Exception) and _means_disk_full(error)
        shutil.rmtree(temporary, ignore_errors=True)
        if disk_is_full:
            raise OSError(
                errno.ENOSPC,
                f"no space left to write {path} ({free:,} bytes free); nothing was changed there. "
                f"Free some space, keep fewer checkpoints, or choose a directory on another disk",
            ) from error
        raise


@contextmanager
def new_checkpoint(run_dir: str | os.PathLike[str], update: int) -> Iterator[Path]:
    """Gives a directory to save into; it becomes the checkpoint of `update`, with a manifest.

    Raises: as `atomic_directory`.
    """
    with atomic_directory(_checkpoint_path(run_dir, update)) as directory:
        yield directory
        write_manifest(directory)


def write_manifest(directory: str | os.PathLike[str]) -> None:
    """Writes down the size and the SHA-256 of every file in `directory`, at any depth."""
    directory = Path(directory)
    files = {
        file.relative_to(directory).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
        }
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file != directory / MANIFEST
    }
    _write_json(directory / MANIFEST, {"files": files})


def verify_checkpoint(directory: str | os.PathLike[str]) -> None:
    """Checks that every file is there and is what was written. Other files are not looked at.

    Raises: ValueError naming the directory, the file and what is wrong with it.
    """
    directory = Path(directory)
    remedy = "the checkpoint cannot be used; resume from an older one"
    if not (directory / MANIFEST).is_file():
        raise ValueError(f"{directory} has no {MANIFEST}: {remedy}")
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
        recorded = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ValueError(f"{directory / MANIFEST} is damaged ({error!r}): {remedy}") from error
    for name, (size, digest) in recorded.items():
        file = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{directory / MANIFEST} names {name}, which is not in it: {remedy}")
        if not file.is_file():
            raise ValueError(f"{file} is missing: {remedy}")
        found = file.stat().st_size
        if found != size:
            raise ValueError(f"{file} has {found:,} bytes, {size:,} were written: {remedy}")
        if _sha256(file) != digest:
            raise ValueError(f"{file} has other contents than were written: {remedy}")


def find_checkpoints(run_dir: str | os.PathLike[str]) -> list[Path]:
    """All checkpoint directories of a run, oldest update first, whether whole or not."""
    found = [
        (int(match[1]), directory)
        for directory in Path(run_dir).glob("checkpoints/*")
        if (match := _CHECKPOINT_NAME.fullmatch(directory.name)) and directory.is_dir()
    ]
    return [directory for _, directory in sorted(found)]


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint that verifies, or None. Damaged ones are logged and passed over."""
    for directory in reversed(find_checkpoints(run_dir)):
        if _is_whole(directory):
            return directory
    return None


def rotate_checkpoints(run_dir: str | os.PathLike[str], keep: int) -> list[Path]:
    """Deletes all but the newest `keep` checkpoints, and returns the deleted ones.

    If none of those verifies, the newest older one that does is kept as well. One process calls it,
    while none is writing.

    Raises: ValueError if `keep` < 1.
    """
    if keep < 1:
        raise ValueError(f"keep ({keep}) must be 1 or more; training could not be resumed")
    # What a killed process left behind.
    for leftover in Path(run_dir).glob("checkpoints/.tmp-*"):
        shutil.rmtree(leftover)
    surplus = find_checkpoints(run_dir)[:-keep]
    if not surplus:
        return []
    last_good = latest_checkpoint(run_dir)
    deleted = [directory for directory in surplus if directory != last_good]
    for directory in deleted:
        # Renamed first: a deletion cut short must not leave half a checkpoint by that name.
        doomed = directory.rename(_aside(directory))
        shutil.rmtree(doomed)
    return deleted


def capture_random_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators (CPU and every GPU) as JSON values."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _encode_bytes(torch.get_rng_state()),
        "cuda": [_encode_bytes(state) for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Undoes everything drawn since `capture_random_state` gave `state`.

    GPU states are restored where as many GPUs are there; otherwise that is logged.
    """
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_decode_bytes(state["torch"]))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == len(state["cuda"]):
        for device, encoded in enumerate(state["cuda"]):
            torch.cuda.set_rng_state(_decode_bytes(encoded), device)
    else:
        logger.warning(
            "the checkpoint holds random states of %d GPUs, here are %d: dropout on GPUs will not "
            "repeat exactly",
            len(state["cuda"]),
            gpus,
        )


def _model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What there is to save of a model, by the name that `save_pretrained` gives; tied ones once.

    The tensors are the parameters and buffers themselves, of a sharded model the sharded ones.
    """
    tied = getattr(model, "all_tied_weights_keys", {})
    state = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name in sorted(state, key=lambda name: name in tied):
        names.setdefault(id(state[name]), name)
    return {name: state[name] for name in names.values()}


def _split_optimizer_state(
    optimizer: torch.optim.Optimizer, weights: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors shaped like parameters, and all the rest as JSON values; both by parameter's name."""
    names = {id(tensor): name for name, tensor in weights.items()}
    moments: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        parameter_name = names[id(parameter)]
        numbers[parameter_name] = {}
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                numbers[parameter_name][name] = value
            elif value.dim() == 0:
                numbers[parameter_name][name] = float(value)
            elif value.shape == parameter.shape:
                moments[f"{_MOMENTS_PREFIX}{parameter_name}.{name}"] = value
            else:
                raise ValueError(
                    f"the optimizer's {name} of {parameter_name} is {tuple(value.shape)}, the "
                    f"parameter is {tuple(parameter.shape)}: only state of a parameter's shape can "
                    f"be saved; use Adam, AdamW or SGD"
                )
    groups = [
        {**group, "params": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return moments, {"class": _optimizer_class(optimizer), "groups": groups, "numbers": numbers}


def _place_optimizer_state(
    directory: Path,
    saved: dict[str, Any],
    written: dict[str, TensorStorageMetadata],
    optimizer: torch.optim.Optimizer,
    weights: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors to read the moments into, and the `state_dict()` that they are part of."""
    names = {id(tensor): name for name, tensor in weights.items()}
    own_groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    saved_groups = [group["params"] for group in saved["groups"]]
    own_class = _optimizer_class(optimizer)
    if saved["class"] != own_class or saved_groups != own_groups:
        different = sorted(set(chain(*own_groups)) ^ set(chain(*saved_groups)))
        raise ValueError(
            f"{directory} was saved with {saved['class']} over "
            f"{sum(map(len, saved_groups))} parameters in {len(saved_groups)} groups, the "
            f"optimizer is {own_class} over {sum(map(len, own_groups))} in {len(own_groups)} "
            f"(different: {', '.join(different[:5]) or 'none'}); resume with the optimizer of the "
            f"run, or begin a new run from its weights"
        )
    indices = {name: index for index, name in enumerate(chain(*own_groups))}
    # Torch's own optimizers count steps in float tensors.
    states = {
        indices[parameter_name]: {
            name: torch.tensor(value) if isinstance(value, float) else value
            for name, value in numbers.items()
        }
        for parameter_name, numbers in saved["numbers"].items()
    }
    moments: dict[str, torch.Tensor] = {}
    for full_name, entry in written.items():
        if full_name.startswith(_MOMENTS_PREFIX):
            parameter_name, _, name = full_name.removeprefix(_MOMENTS_PREFIX).rpartition(".")
            moments[full_name] = _place_like(weights[parameter_name], entry)
            states[indices[parameter_name]][name] = moments[full_name]
    groups = [
        {
            # JSON has no tuples.
            **{key: tuple(v) if isinstance(v, list) else v for key, v in group.items()},
            "params": [indices[name] for name in group["params"]],
        }
        for group in saved["groups"]
    ]
    return moments, {"state": states, "param_groups": groups}


def _optimizer_class(optimizer: torch.optim.Optimizer) -> str:
    # Accelerate wraps it.
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


def _check_weights(
    directory: Path,
    written: dict[str, TensorStorageMetadata],
    weights: dict[str, torch.Tensor],
) -> None:
    remedy = "resume with the architecture and vocabulary of the run, or begin a new run"
    own = {name for name in written if not name.startswith((_MOMENTS_PREFIX, _EXTRA_PREFIX))}
    if different := sorted(own ^ weights.keys()):
        raise ValueError(
            f"the model in {directory} has {len(own)} tensors, this one {len(weights)} (only in "
            f"one of them: {', '.join(different[:5])}); {remedy}"
        )
    for name, tensor in weights.items():
        entry = written[name]
        saved = (tuple(entry.size), entry.properties.dtype)
        if saved != (tuple(tensor.shape), tensor.dtype):
            raise ValueError(
                f"{name} is {saved[0]} {saved[1]} in {directory} but {tuple(tensor.shape)} "
                f"{tensor.dtype} in this model; {remedy}"
            )


def _list_tensors(directory: Path) -> dict[str, TensorStorageMetadata]:
    """Size and type of every tensor in a checkpoint of either layout."""
    metadata = HuggingFaceStorageReader(str(directory)).read_metadata()
    return {
        name: entry
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _place_like(parameter: torch.Tensor | None, entry: TensorStorageMetadata) -> torch.Tensor:
    """A tensor for what was written: where `parameter` is and sharded as that if of its size."""
    dtype = entry.properties.dtype
    if parameter is not None and parameter.shape == entry.size:
        return torch.zeros_like(parameter.detach(), dtype=dtype)
    return torch.zeros(entry.size, dtype=dtype)


def _read_into(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fills tensors, of sharded ones this process's part, from a checkpoint of either layout."""
    with _unwrapped_error(), warnings.catch_warnings():
        # That each process reads for itself is what is wanted.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        reader = HuggingFaceStorageReader(str(directory))
        load_shards(dict(tensors), storage_reader=reader, no_dist=True)


def _write_shards(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes this process's part of sharded tensors; every process calls it."""
    with _unwrapped_error():
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        save_shards(dict(tensors), storage_writer=writer)


def _write_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    if tensors:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, file)


@contextmanager
def _unwrapped_error() -> Iterator[None]:
    """Torch raises a `CheckpointException`, not an `Exception`: raises what was behind it."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        raise RuntimeError(f"process {rank}: {type(cause).__name__}: {cause}") from cause


@contextmanager
def _shared_checkpoint(
    run_dir: str | os.PathLike[str], update: int, is_main: bool
) -> Iterator[Path]:
    """`new_checkpoint` by the main process, for all to write into."""
    directory = _aside(_checkpoint_path(run_dir, update))
    stack = ExitStack()
    with _agreement():
        if is_main:
            stack.enter_context(new_checkpoint(run_dir, update))
    with _agreement():
        if not directory.is_dir():
            raise FileNotFoundError(
                f"{directory} was made by the main process and is not seen here; choose a "
                f"directory in a file system that all machines share"
            )
    with stack:
        yield directory
        with _agreement():
            stack.close()


@contextmanager
def _agreement() -> Iterator[None]:
    """What is raised within the block on any process is raised at its end on every process."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        error = caught
    failures = _gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise RuntimeError(f"process {rank} failed: {failure}")


@contextmanager
def _damage_named(directory: Path) -> Iterator[None]:
    """What a file of the checkpoint leads to that it could not if it were whole is a ValueError."""
    try:
        yield
    except (ValueError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{directory} is damaged ({error!r}); resume from an older checkpoint"
        ) from error


def _gather(value: Any) -> list[Any]:
    """A picklable value of every process, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _read_training_state(directory: Path) -> dict[str, Any]:
    file = directory / TRAINING_STATE
    if not file.is_file():
        raise ValueError(
            f"{directory} has no {TRAINING_STATE}, so training cannot be resumed from it; give a "
            f"directory RUN/checkpoints/update-..., or start a new run from this model"
        )
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return state


def _restore_own_random_state(
    directory: Path, states: list[dict[str, Any]], process_index: int, num_processes: int
) -> None:
    if process_index < len(states):
        restore_random_state(states[process_index])
    if num_processes != len(states):
        logger.warning(
            "%s was saved by %d processes, here are %d: dropout will not repeat exactly%s",
            directory,
            len(states),
            num_processes,
            "" if process_index < len(states) else f", process {process_index} begins with its own",
        )


def _checkpoint_path(run_dir: str | os.PathLike[str], update: int) -> Path:
    return Path(run_dir).absolute() / "checkpoints" / f"update-{update:08d}"


def _aside(path: Path) -> Path:
    """Where `atomic_directory` writes what is to become `path`."""
    return path.with_name(f".tmp-{path.name}")


def _is_whole(directory: Path) -> bool:
    try:
        verify_checkpoint(directory)
    except ValueError as error:
        logger.warning("passing over a damaged checkpoint: %s", error)
        return False
    return True


def _replace_directory(new: Path, path: Path, displaced: Path) -> None:
    """Renames `new` to `path`. A directory cannot be renamed over one that has files in it."""
    if path.exists():
        path.rename(displaced)
    try:
        new.rename(path)
    except BaseException:
        if displaced.exists() and not path.exists():
            displaced.rename(path)
        raise
    _synchronise_one(path.parent)
    # `path` is whole from here on: a failing clean-up must not undo it.
    shutil.rmtree(displaced, ignore_errors=True)


def _synchronise(directory: Path) -> None:
    """Forces all files of a directory, and their names, out to the disk."""
    for parent, _, names in os.walk(directory):
        for name in names:
            _synchronise_one(Path(parent) / name)
        _synchronise_one(Path(parent))


def _synchronise_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _means_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error: safetensors and torch raise errors of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _nearest_existing(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())


def _sha256(file: Path) -> str:
    with open(file, "rb") as contents:
        return hashlib.file_digest(contents, "sha256").hexdigest()


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _encode_bytes(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode_bytes(encoded: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(encoded)), dtype=torch.uint8)
