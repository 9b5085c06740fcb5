"""Checkpoints: written whole or not at all, verified before use, resumed exactly, averaged.

A checkpoint is a directory `RUN/checkpoints/update-00001000/` that holds the model as
`save_pretrained` writes it, the training state of `save_training_state`, and a manifest with
the size and hash of every file. It is written aside and renamed when complete.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_OPTIMIZER = "optimizer.pt"
_TRAINING_STATE = "training_state.json"
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_CHECKPOINT_NAME = re.compile(r"update-(\d+)")


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
    temporary = path.with_name(f".tmp-{path.name}")
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

    with new_checkpoint(run_dir, update) as directory:
        model.save_pretrained(directory)
        save_training_state(directory, ...)

    Raises: as `atomic_directory`.
    """
    with atomic_directory(Path(run_dir) / "checkpoints" / f"update-{update:08d}") as directory:
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
        if file.is_file() and file != directory / _MANIFEST
    }
    _write_json(directory / _MANIFEST, {"files": files})


def verify_checkpoint(directory: str | os.PathLike[str]) -> None:
    """Checks that every file is there and is what was written. Other files are not looked at.

    Raises: ValueError naming the directory, the file and what is wrong with it.
    """
    directory = Path(directory)
    remedy = "the checkpoint cannot be used; resume from an older one"
    try:
        files = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))["files"]
        recorded = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except FileNotFoundError:
        raise ValueError(f"{directory} has no {_MANIFEST}: {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory / _MANIFEST} is damaged ({error!r}): {remedy}") from error
    for name, (size, digest) in recorded.items():
        file = directory / name
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

    If none of those verifies, the newest older one that does is kept as well.

    Raises: ValueError if `keep` < 1.
    """
    if keep < 1:
        raise ValueError(f"keep ({keep}) must be 1 or more; training could not be resumed")
    checkpoints = find_checkpoints(run_dir)
    surplus = checkpoints[:-keep]
    if not surplus:
        return []
    last_good = latest_checkpoint(run_dir)
    deleted = [directory for directory in surplus if directory != last_good]
    for directory in deleted:
        # Renamed first: a deletion cut short must not leave half a checkpoint by that name.
        doomed = directory.with_name(f".old-{directory.name}")
        directory.rename(doomed)
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


def save_training_state(
    directory: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    sampler_state: dict[str, Any],
    progress: dict[str, Any],
    random_states: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Writes all that the next update depends on besides the model, to resume bit for bit.

    Args:
        directory: an existing directory, usually that of `new_checkpoint`.
        sampler_state: `state_dict()` of the batch sampler, JSON values.
        progress: whatever the loop counts (update, epoch, best loss), JSON values.
        random_states: `capture_random_state()` of every process in order of rank; None for this
            process alone.
    """
    directory = Path(directory)
    # Through an open file a full disk shows in the error; given a path, torch hides the reason.
    with open(directory / _OPTIMIZER, "wb") as file:
        torch.save(optimizer.state_dict(), file)
    _write_json(
        directory / _TRAINING_STATE,
        {
            "scheduler": scheduler.state_dict(),
            "sampler_state": sampler_state,
            "progress": progress,
            "random_states": [capture_random_state()] if random_states is None else random_states,
        },
    )


def load_training_state(
    directory: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    process_index: int = 0,
) -> dict[str, Any]:
    """Restores optimizer, schedule and random states; the model is loaded by its own class.

    Args:
        optimizer: built over the parameters of the loaded model, in the same order.
        process_index: rank of this process, which gets the random state of that rank. With more
            processes than were saved, the others keep theirs and that is logged.

    Returns: {"sampler_state": ..., "progress": ...} as they were saved.

    Raises: ValueError if a file is missing or damaged, or belongs to another model.
    """
    directory = Path(directory)
    for name in (_OPTIMIZER, _TRAINING_STATE):
        if not (directory / name).is_file():
            raise ValueError(
                f"{directory} has no {name}, so training cannot be resumed from it; give a "
                f"directory RUN/checkpoints/update-..., or start a new run from this model"
            )
    saved = json.loads((directory / _TRAINING_STATE).read_text(encoding="utf-8"))
    # weights_only: a checkpoint from elsewhere must not be able to run code.
    moments = torch.load(directory / _OPTIMIZER, map_location="cpu", weights_only=True)
    _check_moments(directory / _OPTIMIZER, moments, optimizer)
    optimizer.load_state_dict(moments)
    scheduler.load_state_dict(saved["scheduler"])
    random_states = saved["random_states"]
    if process_index < len(random_states):
        restore_random_state(random_states[process_index])
    else:
        logger.warning(
            "%s was saved by %d processes: process %d has no random state to restore, so dropout "
            "will not repeat exactly",
            directory,
            len(random_states),
            process_index,
        )
    return {"sampler_state": saved["sampler_state"], "progress": saved["progress"]}


def average_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Writes the model whose parameters are the mean of several (paper 6.1: the last 5 or 20).

    The mean is taken in float64, one tensor at a time, and cast back. Tensors that are not floating
    point must agree. Configuration, generation configuration, tokenizer and code are copied
    from the newest model.

    Args:
        paths: model directories with `model.safetensors`, whole or in shards, oldest first.
        output: directory to write; it becomes loadable with `from_pretrained`.
        overwrite: replace `output`, and all that is in it, if it exists.

    Returns: `output`.

    Raises: ValueError if there is nothing to average, the models differ in architecture, a
        checkpoint is damaged, or `output` exists.
    """
    directories = [Path(path).absolute() for path in paths]
    output = Path(output).absolute()
    if not directories:
        raise ValueError("no checkpoints to average; give at least one model directory")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; choose another name, or allow it to be overwritten")
    for directory in directories:
        if output.resolve() in (directory.resolve(), *directory.resolve().parents):
            raise ValueError(
                f"the output {output} contains {directory}, which would be lost; choose another"
            )
        if (directory / _MANIFEST).exists():
            verify_checkpoint(directory)
    _check_same_architecture(directories)
    with atomic_directory(output) as temporary:
        _copy_all_but_weights(directories[-1], temporary)
        save_file(_mean_tensors(directories), temporary / _WEIGHTS, metadata={"format": "pt"})
    return output


def _mean_tensors(directories: list[Path]) -> dict[str, torch.Tensor]:
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
        name: _mean_tensor(name, [location[name] for location in locations])
        for name in sorted(names)
    }


def _mean_tensor(name: str, files: list[Path]) -> torch.Tensor:
    first = _read_tensor(files[0], name)
    total = first.to(torch.float64) if first.is_floating_point() else first
    for file in files[1:]:
        other = _read_tensor(file, name)
        if other.shape != first.shape or other.dtype != first.dtype:
            raise ValueError(
                f"{name} is {tuple(other.shape)} {other.dtype} in {file} but {tuple(first.shape)} "
                f"{first.dtype} in {files[0]}; average checkpoints of one run"
            )
        if first.is_floating_point():
            total = total + other.to(torch.float64)
        elif not torch.equal(other, first):
            raise ValueError(
                f"{name} ({first.dtype}) has no mean and differs between {file} and {files[0]}; "
                f"average checkpoints of one run"
            )
    return (total / len(files)).to(first.dtype) if first.is_floating_point() else first


def _locate_tensors(directory: Path) -> dict[str, Path]:
    """Name of each tensor of a saved model -> the file that holds it."""
    if (directory / _WEIGHTS_INDEX).is_file():
        index = json.loads((directory / _WEIGHTS_INDEX).read_text(encoding="utf-8"))
        return {name: directory / file for name, file in index["weight_map"].items()}
    file = directory / _WEIGHTS
    if not file.is_file():
        raise ValueError(
            f"{directory} has neither {_WEIGHTS} nor {_WEIGHTS_INDEX}; give directories "
            f"written by save_pretrained"
        )
    try:
        with safe_open(file, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); leave it out") from error


def _read_tensor(file: Path, name: str) -> torch.Tensor:
    try:
        with safe_open(file, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
            return tensor
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{name} cannot be read from {file} ({error}); leave it out") from error


def _check_same_architecture(directories: list[Path]) -> None:
    """Equal shapes do not make equal models: activation or normalisation may differ."""
    configs = []
    for directory in directories:
        file = directory / "config.json"
        if not file.is_file():
            raise ValueError(f"{file} is missing; give directories written by save_pretrained")
        config = json.loads(file.read_text(encoding="utf-8"))
        configs.append({k: v for k, v in config.items() if k != "transformers_version"})
    for directory, config in zip(directories, configs, strict=True):
        for key in sorted(config.keys() | configs[0].keys()):
            if config.get(key) != configs[0].get(key):
                raise ValueError(
                    f"{key} is {config.get(key)!r} in {directory} but {configs[0].get(key)!r} in "
                    f"{directories[0]}; average checkpoints of one run"
                )


def _copy_all_but_weights(source: Path, target: Path) -> None:
    state = {_MANIFEST, _OPTIMIZER, _TRAINING_STATE, _WEIGHTS_INDEX}
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name not in state:
            shutil.copyfile(file, target / file.name)


def _check_moments(file: Path, saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Torch compares the number of parameters; moments of a wrong shape fail only in `step`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if count != len(parameters):
        raise ValueError(
            f"{file} is for {count} parameters, the optimizer has {len(parameters)}; "
            f"resume with the model of the same checkpoint"
        )
    for index, moments in saved["state"].items():
        expected = tuple(parameters[index].shape)
        for name, moment in moments.items():
            if name != "step" and tuple(moment.shape) != expected:
                raise ValueError(
                    f"{file}: {name} of parameter {index} is {tuple(moment.shape)}, the parameter "
                    f"is {expected}; resume with the model of the same checkpoint"
                )


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
