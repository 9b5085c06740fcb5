"""Files of torch and safetensors: what stands in them, and that none of their code runs."""

import argparse
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vanilla_transformer.conversion.pytorch_files import (
    load_pickled,
    load_safetensors,
    mentions,
    plain,
    refuse_bomb,
)
from vanilla_transformer.conversion.sinusoids import recognise_sinusoids
from vanilla_transformer.modeling_vanilla_transformer import sinusoidal_positions

STATE = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "step": 7, "opt": {"heads": 8}}
LAYOUTS = ("interleaved", "concatenated", "concatenated_inclusive")


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_names_are_found_and_tensors_read(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=is_zip)
    assert mentions(path, "encoder.weight", "heads")
    assert not mentions(path, "encoder.weight", "decoder.weight")
    found = load_pickled(path, "unused")
    assert found.keys() == STATE.keys()
    torch.testing.assert_close(found["encoder.weight"], STATE["encoder.weight"])


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_code_is_not_run(tmp_path: Path, is_zip: bool) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    torch.save({"x": Malicious(mark)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(
        ValueError, match=r"holds .*would run code that came with the file.*; do so"
    ):
        load_pickled(path, "do so")
    assert not mark.exists()
    # And it is one that would have run.
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_only_what_is_named_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"opt": argparse.Namespace(heads=8)}, path)
    with pytest.raises(ValueError, match=r"holds objects of argparse\.Namespace"):
        load_pickled(path, "do so")
    assert load_pickled(path, "do so", [argparse.Namespace])["opt"].heads == 8
    with pytest.raises(ValueError, match=r"holds objects of argparse\.Namespace"):
        load_pickled(path, "do so")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "model"
    for write, read in (
        (lambda: torch.save(STATE, path), lambda: load_pickled(path, "do so")),
        (
            lambda: torch.save(STATE, path, _use_new_zipfile_serialization=False),
            lambda: load_pickled(path, "do so"),
        ),
        (lambda: save_file({"w": torch.ones(9)}, path), lambda: load_safetensors(path)),
    ):
        write()
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"truncated.*get it again|; do so"):
            read()


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert not mentions(tmp_path, "anything")
    assert not mentions(tmp_path / "missing", "anything")
    path = tmp_path / "model"
    for content in (b"hello, this is text\n" * 99, b"PK\x03\x04" + b"0" * 99):
        path.write_bytes(content)
        assert not mentions(path, "encoder.weight")
        with pytest.raises(ValueError, match="get it again"):
            load_safetensors(path)
        with pytest.raises(ValueError, match=r"model (cannot be read|holds)"):
            load_pickled(path, "do so")


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(2, 3)}, tmp_path / "model")
    assert mentions(tmp_path / "model", "encoder.weight")
    assert load_safetensors(tmp_path / "model")["encoder.weight"].shape == (2, 3)


def test_options_become_plain() -> None:
    given = OrderedDict(a=(1, 2.5, None), b={"x": {True}}, c=Path("d"), e=np.float32)
    assert plain(given) == {"a": [1, 2.5, None], "b": {"x": [True]}, "c": "d", "e": str(np.float32)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sinusoids_are_recognised(layout: str, first: int, dtype: torch.dtype) -> None:
    for d_model, rows in ((16, 30), (512, 1024)):
        table = sinusoidal_positions(torch.arange(first, first + rows), d_model, layout)
        assert recognise_sinusoids(table.to(dtype)) == (layout, first)


def test_other_tables_are_not() -> None:
    torch.manual_seed(0)
    table = sinusoidal_positions(torch.arange(50), 16, "interleaved")
    for other in (torch.randn(50, 16), table * 1.01, table.flip(1), table[:, :15], table[7:]):
        assert recognise_sinusoids(other) is None


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 25))
    assert path.stat().st_size < 1 << 16
    for read in (refuse_bomb, lambda path: load_pickled(path, "unused")):
        with pytest.raises(ValueError, match="would unpack to 33,554,432"):
            read(path)
    assert not mentions(path, "encoder.weight")
    # Small archives of padded entries, files that are none and files that are not there pass.
    torch.save({"ones": torch.ones(3)}, path)
    refuse_bomb(path)
    path.write_bytes(b"PK")
    refuse_bomb(path)
    refuse_bomb(tmp_path / "missing.pt")
