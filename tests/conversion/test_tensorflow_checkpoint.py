"""TensorFlow's checkpoints, written here by the format's description and read back or refused."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vanilla_transformer.conversion.tensorflow_checkpoint import (
    crc32c,
    is_checkpoint,
    load_tensors,
    newest_checkpoint,
    tensor_shapes,
)

MAGIC = 0xDB4775248B80FB57
TYPES = {
    np.dtype("<f4"): 1,
    np.dtype("<f8"): 2,
    np.dtype("<i4"): 3,
    np.dtype("<i8"): 9,
    np.dtype("<f2"): 19,
}
GENERATOR = np.random.default_rng(0)
VALUES: dict[str, np.ndarray] = {
    "global_step": np.array(7, dtype="<i8"),
    "model/a/bias": GENERATOR.normal(size=5).astype("<f4"),
    "model/a/kernel": GENERATOR.normal(size=(3, 5)).astype("<f4"),
    "model/b/kernel": GENERATOR.normal(size=(2, 0)).astype("<f4"),
    "model/half": GENERATOR.normal(size=4).astype("<f2"),
    "model/double": GENERATOR.normal(size=(2, 2)).astype("<f8"),
    "model/ids": np.arange(6, dtype="<i4"),
}


def slow_crc(data: bytes) -> int:
    """RFC 3720: bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = slow_crc(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def number(tag: int, value: int) -> bytes:
    return varint(tag << 3) + varint(value)


def text(tag: int, value: bytes) -> bytes:
    return varint(tag << 3 | 2) + varint(len(value)) + value


def fixed(tag: int, value: int) -> bytes:
    return varint(tag << 3 | 5) + struct.pack("<I", value)


def block(pairs: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """With every key given by what differs from the one before, and one restart."""
    body, before = b"", b""
    for key, value in pairs:
        same = 0
        while same < min(len(key), len(before)) and key[same] == before[same]:
            same += 1
        body += varint(same) + varint(len(key) - same) + varint(len(value)) + key[same:] + value
        before = key
    body += struct.pack("<II", 0, 1) + bytes([kind])
    return body + struct.pack("<I", masked(body))


def table(pairs: list[tuple[bytes, bytes]], per_block: int = 3, kind: int = 0) -> bytes:
    raw, handles = b"", []
    for i in range(0, len(pairs), per_block):
        written = block(pairs[i : i + per_block], kind)
        place = varint(len(raw)) + varint(len(written) - 5)
        handles.append((pairs[i : i + per_block][-1][0], place))
        raw += written
    meta, index = block([]), block(handles)
    footer = varint(len(raw)) + varint(len(meta) - 5)
    footer += varint(len(raw) + len(meta)) + varint(len(index) - 5)
    return raw + meta + index + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def shape_of(shape: tuple[int, ...]) -> bytes:
    return text(2, b"".join(text(2, number(1, size)) for size in shape))


def entry(
    shape: tuple[int, ...], dtype: int, size: int, checksum: int, shard: int = 0, offset: int = 0
) -> bytes:
    place = number(3, shard) + number(4, offset) + number(5, size)
    return number(1, dtype) + shape_of(shape) + place + fixed(6, checksum)


def header(shards: int, endianness: int = 0) -> tuple[bytes, bytes]:
    return b"", number(1, shards) + number(2, endianness)


def write(folder: Path, values: dict[str, np.ndarray] = VALUES, shards: int = 2) -> Path:
    """A checkpoint of these values, which its data files have in turn."""
    data = [b""] * shards
    pairs = []
    for i, (name, value) in enumerate(sorted(values.items())):
        raw, shard = value.tobytes(), i % shards
        pairs.append(
            (
                name.encode(),
                entry(
                    value.shape, TYPES[value.dtype], len(raw), masked(raw), shard, len(data[shard])
                ),
            )
        )
        data[shard] += raw
    for i, raw in enumerate(data):
        (folder / f"model.ckpt-7.data-{i:05d}-of-{shards:05d}").write_bytes(raw)
    path = folder / "model.ckpt-7.index"
    path.write_bytes(table([header(shards), *pairs]))
    return path


def one(folder: Path, described: bytes, data: bytes = bytes(16), shards: int = 1) -> Path:
    """A checkpoint of one tensor, `x`, described as one pleases."""
    (folder / "x.data-00000-of-00001").write_bytes(data)
    path = folder / "x.index"
    path.write_bytes(table([header(shards), (b"x", described)]))
    return path


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_values_come_back(tmp_path: Path, shards: int) -> None:
    path = write(tmp_path, shards=shards)
    assert is_checkpoint(path)
    assert tensor_shapes(path) == {name: value.shape for name, value in VALUES.items()}
    # By the index, by the name that TensorFlow uses, by a data file.
    for name in ("model.ckpt-7.index", "model.ckpt-7", f"model.ckpt-7.data-00000-of-{shards:05d}"):
        found = load_tensors(tmp_path / name)
        assert found.keys() == VALUES.keys()
        for key, value in VALUES.items():
            assert found[key].numpy().dtype == value.dtype
            np.testing.assert_array_equal(found[key].numpy(), value)
    assert load_tensors(path, lambda name: name.endswith("bias")).keys() == {"model/a/bias"}


def test_bfloat16_is_the_upper_half_of_a_float(tmp_path: Path) -> None:
    value = torch.tensor([1.0, -2.5, 3.14, 1e30]).bfloat16()
    raw = value.view(torch.int16).numpy().tobytes()
    path = one(tmp_path, entry((4,), 14, 8, masked(raw)), raw)
    assert torch.equal(load_tensors(path)["x"], value.float())


def test_checksums_are_those_of_the_standard() -> None:
    # RFC 3720, B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    for size in (0, 1, 3, 4, 5, 255, 4097, 70_001):
        data = GENERATOR.bytes(size)
        assert crc32c(data) == slow_crc(data)


def test_the_newest_of_a_directory(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert newest_checkpoint(tmp_path) == path
    (tmp_path / "other.index").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="holds 2 checkpoints"):
        newest_checkpoint(tmp_path)
    state = tmp_path / "checkpoint"
    state.write_text('model_checkpoint_path: "/elsewhere/model.ckpt-7"\n')
    assert newest_checkpoint(tmp_path) == path
    # It names a file of this directory whatever it says.
    state.write_text('model_checkpoint_path: "../../other"\n')
    assert newest_checkpoint(tmp_path) == tmp_path / "other.index"
    state.write_text('model_checkpoint_path: "gone"\n')
    with pytest.raises(ValueError, match="holds 2 checkpoints"):
        newest_checkpoint(tmp_path)


GOOD = masked(bytes(16))


@pytest.mark.parametrize(
    ("described", "complaint"),
    [
        (entry((4,), 1, 16, GOOD ^ 1), "does not have its checksum"),
        (entry((4,), 1, 16, GOOD, shard=1), "data file 1 of 1"),
        (entry((4,), 1, 16, GOOD, shard=2**63), "data file"),
        (entry((4,), 1, 16, GOOD, offset=1), "ends before its tensors do"),
        (entry((4,), 1, 16, GOOD, offset=2**62), "ends before its tensors do"),
        (entry((2**60,), 1, 2**62, GOOD), "x is .* and yet has|ends before"),
        (entry((2**32, 2**32), 1, 0, GOOD), "and yet has 0 bytes"),
        (entry((5,), 1, 16, GOOD), "and yet has 16 bytes"),
        (entry((2**63, 0), 1, 0, masked(b"")), "and yet has 0 bytes"),
        (entry((4,), 7, 16, GOOD), "type 7, which is no plain number"),
        (number(1, 1) + b"\x12\xff\xff\xff\xff\x7f", "cut off"),
        (b"\xff" * 11, "cut off"),
        (b"\x0b", "no known form"),
        (number(1, 1) + shape_of((4,)) + text(7, text(1, b"")) + number(5, 16), "is missing"),
    ],
)
def test_what_an_index_cannot_say_is_refused(
    tmp_path: Path, described: bytes, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        load_tensors(one(tmp_path, described))
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda raw: raw[:-1], "mark at the end"),
        (lambda raw: raw[:20], "mark at the end"),
        (lambda raw: b"", "mark at the end"),
        (lambda raw: raw[:-8] + bytes(8), "mark at the end"),
        (lambda raw: raw[:4] + b"\x00" + raw[5:], "checksum"),
        (lambda raw: raw[-48:], "beyond its end"),
        (lambda raw: table([header(1)], kind=1), "compressed"),
        (lambda raw: table([header(0)]), "0 data files"),
        (lambda raw: table([header(2**40)]), "data files"),
        (lambda raw: table([header(1, endianness=1)]), "big-endian"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, change: Any, complaint: str) -> None:
    path = write(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    for read in (load_tensors, tensor_shapes):
        with pytest.raises(ValueError, match=complaint):
            read(path)


def test_damaged_and_missing_data_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, shards=1)
    data = tmp_path / "model.ckpt-7.data-00000-of-00001"
    raw = data.read_bytes()
    data.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match="data-00000-of-00001 cannot be read"):
        load_tensors(path)
    data.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(ValueError, match="does not have its checksum"):
        load_tensors(path)
    data.unlink()
    with pytest.raises(ValueError, match="No such file"):
        load_tensors(path)
    path.unlink()
    with pytest.raises(ValueError, match="No such file"):
        load_tensors(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.floats(0, 1, exclude_max=True), replaced=st.binary(max_size=6), cut=st.integers(0, 3)
)
def test_random_damage_is_refused_or_harmless(
    tmp_path: Path, place: float, replaced: bytes, cut: int
) -> None:
    path = write(tmp_path)
    raw = path.read_bytes()
    start = math.floor(place * len(raw))
    changed = raw[:start] + replaced + raw[start + len(replaced) + cut :]
    path.write_bytes(changed)
    try:
        found = load_tensors(path)
    except ValueError:
        return
    # What was changed lay where nothing is read: it is all there, as it was.
    assert found.keys() == VALUES.keys()
    for key, value in VALUES.items():
        np.testing.assert_array_equal(found[key].numpy(), value)


def ordered(value: int) -> bytes:
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def small(value: int) -> bytes:
    """A signed number of -64 to 63 in TensorFlow's ordered code: one byte, its sign bit turned."""
    return bytes([value & 0xFF ^ 0x80])


def test_pieces_are_put_together(tmp_path: Path) -> None:
    whole = np.arange(12, dtype="<f4").reshape(4, 3)
    rows = [(0, 1), (1, 3)]
    pairs, data = [], b""
    extents = b""
    for start, length in rows:
        key = ordered(0) + b"x\0\1" + ordered(2) + small(start) + small(length) + small(0)
        key += small(-1)
        raw = whole[start : start + length].tobytes()
        pairs.append((key, entry((length, 3), 1, len(raw), masked(raw), offset=len(data))))
        data += raw
        first = (number(1, start) if start else b"") + number(2, length)
        extents += text(7, text(1, first) + text(1, b""))
    described = number(1, 1) + shape_of((4, 3)) + extents
    (tmp_path / "x.data-00000-of-00001").write_bytes(data)
    path = tmp_path / "x.index"
    path.write_bytes(table(sorted([header(1), *pairs, (b"x", described)])))
    np.testing.assert_array_equal(load_tensors(path)["x"].numpy(), whole)
    assert tensor_shapes(path) == {"x": (4, 3)}
    # A piece less, and a shape that no piece fills.
    path.write_bytes(table(sorted([header(1), pairs[0], (b"x", described)])))
    with pytest.raises(ValueError, match="a piece of x is missing"):
        load_tensors(path)
    huge = number(1, 1) + shape_of((2**40, 3)) + extents
    path.write_bytes(table(sorted([header(1), *pairs, (b"x", huge)])))
    with pytest.raises(ValueError, match="larger than its pieces"):
        load_tensors(path)
