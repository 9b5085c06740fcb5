"""A directory that holds no whole model of this package is refused before anything is built."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.recipes.conftest import TINY
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
)
from vanilla_transformer.recipes import load_model
from vanilla_transformer.recipes.model_directory import check_weights, read_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    VanillaTransformerForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


class Code:
    """What a hostile pickle runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def set_config(**values: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (directory / name).write_bytes(data)

    return change


def shard(target: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        shutil.copytree(directory, directory.parent / "other")
        (directory / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": {"model.shared.weight": target}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")

    return change


def header(content: dict[str, Any], data: bytes = b"0" * 16) -> bytes:
    encoded = json.dumps(content).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def cut_short(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only_a_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"weight": Code(directory / "was here")}, directory / "pytorch_model.bin")


def endless(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("/dev/zero")


def waiting(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")


def foreign_code(directory: Path) -> None:
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForSeq2SeqLM": "evil.Model"}
    set_config(model_type="other", auto_map=auto_map)(directory)
    code = f"from pathlib import Path\nPath({str(directory / 'was here')!r}).touch()\n"
    (directory / "evil.py").write_text(code, "utf-8")


HUGE = {"model.shared.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]}}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (set_config(num_encoder_layers=9), r"encoder\.layers\.[1-8]\..* is missing"),
        (set_config(num_encoder_layers=2**31), "speaks of 2,147,483,648 layers"),
        (set_config(d_model=2**40), r"is \[280, 16\] for \[280, 1099511627776\]"),
        (set_config(d_model=2**40, d_ff=2**40), "describes no model"),
        (set_config(vocab_size=2**30), r"is \[\d+, \d+\] for \[1073741824, \d+\]"),
        (set_config(vocab_size=-5), r"vocab_size \(-5\)"),
        (set_config(pad_token_id=10**9), r"pad_token_id \(1000000000\)"),
        (set_config(layer_norm_eps="much"), "config.json is none of this package's models"),
        (set_config(architectures=["os.system"]), "os.system|architectures must name"),
        (write("config.json", "[" * 200_000 + "]" * 200_000), "config.json cannot be read"),
        (write("config.json", b"\xff\xfe{"), "config.json cannot be read"),
        (write("config.json", "[]"), "config.json cannot be read"),
        (
            write("tokenizer.json", '{"a":' * 200_000 + "1" + "}" * 200_000),
            "holds no whole tokenizer",
        ),
        (write("model.safetensors", b""), "model.safetensors cannot be read"),
        (write("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), "cannot be read"),
        (write("model.safetensors", header(HUGE)), "cannot be read"),
        (cut_short, "cut short or no safetensors file"),
        (shard("../other/model.safetensors"), r"outside its directory: \.\./other"),
        (shard("/etc/passwd"), "outside its directory: /etc/passwd"),
        (shard("model-00001-of-00002.safetensors"), "names files that are not there"),
        (only_a_pickle, "no other format is read"),
        (endless, "has no model.safetensors"),
        (waiting, "has no model.safetensors"),
        (foreign_code, "custom code"),
    ],
)
def test_what_is_not_whole_is_refused_at_once(
    change: Callable[[Path], None], complaint: str, model: Path
) -> None:
    change(model)
    before = sorted(model.iterdir())
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=complaint):
        load_model(model, "cpu")
    assert time.perf_counter() - begin < 20
    # No code ran, nothing was written.
    assert sorted(model.iterdir()) == before


def test_what_is_whole_is_not(model: Path, whole: Path, tmp_path: Path) -> None:
    load_model(model, "cpu")
    network, tokenizer = load_model(whole, "cpu")
    network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    load_model(tmp_path / "shards", "cpu")
    # The encoder alone, whose configuration still counts the layers of the decoder.
    masked = VanillaTransformerForMaskedLM.from_pretrained(whole)
    masked.save_pretrained(tmp_path / "masked")
    config = read_config(tmp_path / "masked")
    check_weights(tmp_path / "masked", config, "VanillaTransformerForMaskedLM")


def test_links_to_weights_are_followed(model: Path, tmp_path: Path) -> None:
    """As in the Hub's cache, where every file is a link."""
    (model / "model.safetensors").rename(tmp_path / "blob")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    load_model(model, "cpu")
