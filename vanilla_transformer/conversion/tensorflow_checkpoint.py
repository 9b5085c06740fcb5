"""Reads TensorFlow's checkpoints of the second version ("tensor bundles"), without TensorFlow.

A checkpoint is an index, `NAME.index`, and its data, `NAME.data-00000-of-00002` and so on. The
index is a sorted table of LevelDB's format, from names to descriptions (`tensor_bundle.proto`) of
where the values lie. The formats are those of TensorFlow's `tensorflow/core/lib/io/format.cc`,
`table_format.txt` and `tensorflow/core/util/tensor_bundle/`.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_MAX_INDEX = 1 << 28
"""Bytes of an index; that of a model of thousands of tensors has less than a thousandth."""

_MAX_SHARDS = 100_000
"""What the five digits of a file's name can count."""

# `types.proto`; the others, strings above all, are no weights.
_DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    # bfloat16, the upper half of a float32.
    14: np.dtype("<u2"),
    19: np.dtype("<f2"),
}
_BFLOAT16 = 14

_SLICE = "\0"
"""What the keys of pieces of tensors begin with."""


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is one of a checkpoint's files, or their common name."""
    return index_of(path).is_file()


def index_of(path: Path) -> Path:
    """The index of a checkpoint that is named by its index, by its data, or as TensorFlow does."""
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    return path.with_name(f"{prefix}.index")


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint in a directory that its file `checkpoint` names, else the only one there.

    Raises:
        ValueError: There is none, or more than one and nothing says which.
    """
    state = folder / "checkpoint"
    if state.is_file():
        text = state.read_text("utf-8", errors="replace")
        found = re.search(r'^model_checkpoint_path: "(.*)"', text, re.MULTILINE)
        # The directory may have been moved since: only the name counts, and it leads nowhere else.
        name = found[1].replace("\\", "/").rpartition("/")[2] if found else ""
        if name and (path := folder / f"{name}.index").is_file():
            return path
    found_here = sorted(folder.glob("*.index"))
    if len(found_here) != 1:
        names = ", ".join(file.name for file in found_here)
        raise ValueError(
            f"{folder} holds {len(found_here)} checkpoints ({names}) and no file `checkpoint` that "
            "names one of them; give the .index file of one"
        )
    return found_here[0]


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint, of which its index alone is read.

    Raises:
        ValueError: The index is damaged, or none.
    """
    entries = _read_index(index_of(path))[1]
    return {name: entries[name].shape for name in entries if not name.startswith(_SLICE)}


def load_tensors(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, each checked against its checksum.

    Args:
        path: Of the index, or the checkpoint's name without an ending.
        wanted: Which tensors to read, by name; the data of others need not be there.

    Raises:
        ValueError: A file is missing, truncated or damaged, or a tensor holds no numbers.
    """
    index = index_of(path)
    shards, entries = _read_index(index)
    chosen = {
        name: entry
        for name, entry in entries.items()
        if not name.startswith(_SLICE) and wanted(name)
    }
    data = _Data(index, shards)
    return {name: _read_tensor(name, entry, entries, data) for name, entry in chosen.items()}


# ---------------------------------------------------------------------------------------- index


@dataclass
class _Entry:
    """Where a tensor's values lie (`BundleEntryProto`).

    Attributes:
        slices: Of a partitioned variable: its pieces, each `(start, length)` by dimension with
            length None for all. Each piece has an entry of its own.
    """

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int | None = None
    slices: list[list[tuple[int, int | None]]] = field(default_factory=list)


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} cannot be read ({reason}): it is truncated, damaged or no TensorFlow checkpoint "
        "of the second version (.index and .data files); get it again"
    )


def _read_index(path: Path) -> tuple[int, dict[str, _Entry]]:
    """The number of data files, and the entries by name; those of slices are under their keys."""
    try:
        if path.stat().st_size > _MAX_INDEX:
            raise _damaged(path, f"{path.stat().st_size} bytes are no index")
        raw = path.read_bytes()
    except OSError as error:
        raise _damaged(path, str(error)) from error
    shards, entries = 1, {}
    try:
        for key, value in _table(raw):
            if key:
                entries[key.decode("utf-8", errors="surrogateescape")] = _entry(value)
                continue
            header = dict(_fields(value))
            shards = header.get(1, 0)
            if header.get(2, 0) != 0:
                raise ValueError("its numbers are big-endian")
            if not 1 <= shards <= _MAX_SHARDS:
                raise ValueError(f"it tells of {shards} data files")
    except (ValueError, IndexError, struct.error, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    return shards, entries


def _table(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted table, by its blocks."""
    if len(raw) < _FOOTER or struct.unpack("<Q", raw[-8:])[0] != _MAGIC:
        raise ValueError("the mark at the end of an index is missing")
    footer = raw[-_FOOTER:]
    position = 0
    for _ in range(2):
        _, position = _varint(footer, position)
    offset, position = _varint(footer, position)
    size, _ = _varint(footer, position)
    for _, handle in _block(raw, offset, size):
        start, after = _varint(handle, 0)
        yield from _block(raw, start, _varint(handle, after)[0])


def _block(raw: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block, whose keys are given by what differs from the one before."""
    # After the block: one byte for how it is compressed, four of a checksum of both.
    if offset + size + 5 > len(raw) - _FOOTER or size < 4:
        raise ValueError("a block lies beyond its end")
    block, kind = raw[offset : offset + size], raw[offset + size]
    stored = struct.unpack_from("<I", raw, offset + size + 1)[0]
    if _mask(crc32c(raw[offset : offset + size + 1])) != stored:
        raise ValueError("a block does not have its checksum")
    if kind != 0:
        raise ValueError("a block is compressed, which TensorFlow does not do to checkpoints")
    restarts = struct.unpack("<I", block[-4:])[0]
    end = size - 4 * (restarts + 1)
    if end < 0:
        raise ValueError("a block has more restarts than it has room for")
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        length, position = _varint(block, position)
        if shared > len(key) or position + rest + length > end:
            raise ValueError("a block's keys do not follow from each other")
        key = key[:shared] + block[position : position + rest]
        position += rest
        yield key, block[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        if position >= len(raw) or shift > 63:
            raise ValueError("a number is cut off")
        byte = raw[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value & (1 << 64) - 1, position


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields: int, or bytes of what has a length."""
    position = 0
    value: Any
    while position < len(raw):
        tag, position = _varint(raw, position)
        if tag & 7 == 0:
            value, position = _varint(raw, position)
        elif tag & 7 == 2:
            length, position = _varint(raw, position)
            value, position = raw[position : position + length], position + length
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
            value = int.from_bytes(raw[position : position + size], "little")
            position += size
        else:
            raise ValueError("a description is of no known form")
        if position > len(raw):
            raise ValueError("a description is cut off")
        yield tag >> 3, value


def _entry(raw: bytes) -> _Entry:
    """A `BundleEntryProto`."""
    entry = _Entry()
    for number, value in _fields(raw):
        if number == 1:
            entry.dtype = value
        elif number == 2:
            sizes = [dict(_fields(item)).get(1, 0) for key, item in _fields(value) if key == 2]
            entry.shape = tuple(sizes)
        elif number == 3:
            entry.shard = value
        elif number == 4:
            entry.offset = value
        elif number == 5:
            entry.size = value
        elif number == 6:
            entry.checksum = value
        elif number == 7:
            extents = (dict(_fields(item)) for key, item in _fields(value) if key == 1)
            entry.slices.append([(extent.get(1, 0), extent.get(2)) for extent in extents])
    return entry


# ---------------------------------------------------------------------------------------- values


class _Data:
    """The data files of a checkpoint."""

    def __init__(self, index: Path, shards: int):
        self.index = index
        self.shards = shards

    def read(self, entry: _Entry) -> bytes:
        """The bytes of an entry, checked."""
        if not 0 <= entry.shard < self.shards:
            raise _damaged(self.index, f"it tells of data file {entry.shard} of {self.shards}")
        prefix = self.index.name.removesuffix(".index")
        path = self.index.with_name(f"{prefix}.data-{entry.shard:05d}-of-{self.shards:05d}")
        try:
            with path.open("rb") as file:
                # Before memory is asked for: a damaged index may tell of any size.
                if entry.offset + entry.size > path.stat().st_size:
                    raise _damaged(path, "it ends before its tensors do")
                file.seek(entry.offset)
                raw = file.read(entry.size)
        except OSError as error:
            raise _damaged(path, str(error)) from error
        if entry.checksum is not None and _mask(crc32c(raw)) != entry.checksum:
            raise _damaged(path, "a tensor does not have its checksum")
        return raw


def _read_tensor(name: str, entry: _Entry, entries: dict[str, _Entry], data: _Data) -> torch.Tensor:
    if entry.slices:
        return _join_slices(name, entry, entries, data)
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise ValueError(
            f"{name} of {data.index} is of TensorFlow's type {entry.dtype}, which is no plain "
            "number; give a checkpoint of weights"
        )
    if math.prod(entry.shape) * dtype.itemsize != entry.size or max(entry.shape, default=0) >> 40:
        raise _damaged(data.index, f"{name} is {list(entry.shape)} and yet has {entry.size} bytes")
    values = np.frombuffer(data.read(entry), dtype).reshape(entry.shape)
    if entry.dtype == _BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return torch.from_numpy(values.copy())


def _join_slices(name: str, entry: _Entry, entries: dict[str, _Entry], data: _Data) -> torch.Tensor:
    """A partitioned variable, whose pieces have entries under keys made of name and place."""
    whole: torch.Tensor | None = None
    filled = 0
    for extents in entry.slices:
        piece = entries.get(_slice_key(name, extents))
        if piece is None or piece.slices or len(extents) != len(entry.shape):
            raise _damaged(data.index, f"a piece of {name} is missing")
        values = _read_tensor(name, piece, entries, data)
        if whole is None:
            # Not before a piece was found to be there: the sizes may be anything.
            if math.prod(entry.shape) > 64 * len(entry.slices) * max(1, values.numel()):
                raise _damaged(data.index, f"{name} is larger than its pieces")
            whole = torch.zeros(entry.shape, dtype=values.dtype)
        place = tuple(
            slice(start, size if length is None else start + length)
            for (start, length), size in zip(extents, entry.shape, strict=True)
        )
        if whole[place].shape != values.shape:
            raise _damaged(data.index, f"a piece of {name} does not fit")
        whole[place] = values
        filled += values.numel()
    if whole is None or filled != whole.numel():
        raise _damaged(data.index, f"{name} lacks a piece")
    return whole


def _slice_key(name: str, extents: list[tuple[int, int | None]]) -> str:
    """TensorFlow's `EncodeTensorNameSlice`, in its ordered code: a string and numbers.

    Names of variables have no zero bytes, which alone would have to be escaped.
    """
    raw = name.encode("utf-8", errors="surrogateescape")
    key = _ordered(0) + raw + b"\0\1" + _ordered(len(extents))
    for start, length in extents:
        key += _signed(start) + _signed(-1 if length is None else length)
    return key.decode("utf-8", errors="surrogateescape")


def _ordered(number: int) -> bytes:
    """A natural number whose bytes sort as it does: their count, then they."""
    digits = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _signed(number: int) -> bytes:
    """A number whose bytes sort as it does; its first bits tell its sign and length."""
    size = 1
    while not -(1 << 7 * size - 1) <= number < 1 << 7 * size - 1:
        size += 1
    bits = 8 * size
    header = (1 << bits) - (1 << bits - size)
    return ((number & (1 << bits) - 1) ^ header).to_bytes(size, "big")


# -------------------------------------------------------------------------------------- checksum


def _mask(checksum: int) -> int:
    """What is stored for a checksum, so that checksums of what holds checksums are sound."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _advance_byte(states: np.ndarray) -> np.ndarray:
    """Registers after a further byte of zeros: CRC-32C's polynomial, its lowest bit first."""
    for _ in range(8):
        states = (states >> np.uint32(1)) ^ (states & np.uint32(1)) * np.uint32(0x82F63B78)
    return states


def _advance_word(states: np.ndarray) -> np.ndarray:
    for _ in range(4):
        states = _advance_byte(states)
    return states


_HALVES = np.arange(1 << 16, dtype=np.uint32)
_LOW, _HIGH = _advance_word(_HALVES), _advance_word(_HALVES << np.uint32(16))
_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)
_MAX_LANES = 1 << 14


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, B.4) of `data`, some hundreds of MB a second.

    The register is linear in what was read, so that parts of equal length can be read side by side
    and put together, and zeros in front of it all change nothing.
    """
    if len(data) < 4:
        state = np.full(1, 0xFFFFFFFF, dtype=np.uint32)
        for byte in data:
            state = _advance_byte(state ^ np.uint32(byte))
        return int(state[0]) ^ 0xFFFFFFFF
    words = -(-len(data) // 4)
    lanes = min(_MAX_LANES, 1 << max(0, words.bit_length() - 8))
    length = -(-words // lanes)
    padded = np.zeros(4 * lanes * length, dtype=np.uint8)
    padded[len(padded) - len(data) :] = np.frombuffer(data, dtype=np.uint8)
    first = len(padded) - len(data)
    # What the register starts with is as if the first four bytes were their complements.
    padded[first : first + 4] ^= 255
    columns = np.ascontiguousarray(padded.view("<u4").reshape(lanes, length).T)
    states = np.zeros(lanes, dtype=np.uint32)
    for column in columns:
        states = states ^ column
        states = _LOW[states & np.uint32(0xFFFF)] ^ _HIGH[states >> np.uint32(16)]
    # Where each bit goes in `length` words of zeros: a matrix over GF(2), by its columns.
    matrix = _power(_advance_word(_BITS), length if lanes > 1 else 0)
    while len(states) > 1:
        states = _apply(matrix, states[0::2]) ^ states[1::2]
        matrix = _apply(matrix, matrix)
    return int(states[0]) ^ 0xFFFFFFFF


def _apply(matrix: np.ndarray, states: np.ndarray) -> np.ndarray:
    result = np.zeros_like(states)
    for bit in range(32):
        result ^= (states >> np.uint32(bit) & np.uint32(1)) * matrix[bit]
    return result


def _power(matrix: np.ndarray, exponent: int) -> np.ndarray:
    result = _BITS
    while exponent:
        if exponent & 1:
            result = _apply(matrix, result)
        matrix = _apply(matrix, matrix)
        exponent >>= 1
    return result
