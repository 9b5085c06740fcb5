"""Reads what `torch.save` and safetensors wrote, without running any code that a file may carry."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file

_HEAD = 1 << 23
"""Bytes at a file's start in which names stand: of safetensors, and of torch before 1.6."""

_LONGEST_NAME = 1000
"""Letters of a class in a pickle: torch searches messages that name it in the square of that."""

_MOST_EXPANSION = 20
"""Times its own size that an archive may unpack to; weights hardly shrink when they are packed."""


def mentions(path: Path, *names: str) -> bool:
    """Whether a file of tensors knows all these names, of tensors or of options; loads nothing."""
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            text = b"".join(_beginning(archive, name) for name in pickles)
    except (zipfile.BadZipFile, OSError):
        # Also a truncated archive, whose first entry is the pickle.
        with path.open("rb") as file:
            text = file.read(_HEAD)
    return all(name.encode() in text for name in names)


def refuse_bomb(path: Path) -> None:
    """Refuses an archive that would unpack to many times its size; any other file passes.

    Raises:
        ValueError: It would.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError):
        return
    size = path.stat().st_size
    if unpacked > _MOST_EXPANSION * max(size, 1 << 16):
        raise ValueError(
            f"{path} is {size:,} bytes and would unpack to {unpacked:,}; weights are not packed so "
            "tightly: get it from where it was published"
        )


def load_pickled(path: Path, remedy: str, safe: Iterable[Any] = ()) -> Any:
    """What a file of `torch.save` holds: tensors and plain values.

    Args:
        path: The file.
        remedy: What to do where it holds objects, whose loading would run their code.
        safe: Classes and functions that do no harm, as `torch.serialization.safe_globals` has them.

    Raises:
        ValueError: The file is truncated, no such file at all, holds objects, or unpacks to many
            times its size.
    """
    refuse_bomb(path)
    try:
        _check_names(path)
        with torch.serialization.safe_globals(list(safe)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"objects of {found[1]}" if found else "something else than tensors and plain values"
        raise ValueError(
            f"{path} holds {what}; to load them would run code that came with the file, which is "
            f"not done here; {remedy}"
        ) from error
    # The machine that reads a pickle believes what it says, up to where that cannot be.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or repr(error)
        raise ValueError(
            f"{path} cannot be read ({reason}): it is truncated or was not written by torch.save; "
            "get it again"
        ) from error


def _check_names(path: Path) -> None:
    """Looks through the pickles of a file of `torch.save` for names as long as none is.

    Raises:
        ValueError: There is one, or what stands there is no pickle.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            heads, count = [_beginning(archive, name) for name in names], 1
    except (zipfile.BadZipFile, NotImplementedError):
        with path.open("rb") as file:
            # Before 1.6: a mark, a version, sizes of types, the object, the names of storages.
            heads, count = [file.read(_HEAD)], 5
    for head in heads:
        stream, longest = io.BytesIO(head), 0
        try:
            for _ in range(count):
                if stream.tell() < len(head):
                    for operation, name, _ in pickletools.genops(stream):
                        if operation.name == "GLOBAL":
                            longest = max(longest, len(str(name)))
        except ValueError:
            # One that is cut off here may be whole.
            if len(head) < _HEAD:
                raise
        if longest > _LONGEST_NAME:
            raise ValueError(f"a name in it has {longest:,} letters")


def _beginning(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        return file.read(_HEAD)


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: The file is truncated, or none of safetensors.
    """
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it is truncated or no safetensors file; get it again"
        ) from error


def plain(value: Any) -> Any:
    """`value` with what JSON has no word for written as text, so that options can be stored."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return str(value)
