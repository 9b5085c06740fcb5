"""`vanilla-transformer convert` from end to end, and one line for everything wrong."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, MarianConfig, MarianMTModel, MarianTokenizer

from tests.conversion import test_marian_native, test_opennmt, test_to_marian
from tests.conversion.test_sentencepiece import SIDES, make, theirs
from vanilla_transformer import cli
from vanilla_transformer.conversion import CATALOGUE, FAMILIES
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.tokenization import load_tokenizer, train_tokenizer

PAIRS = list(generate_translation("train", 200))
LINES = {side: [pair[side] for pair in PAIRS] for side in SIDES}
SENTENCES = LINES["source"][:4]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["vanilla-transformer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err)

    return run


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MarianMT with SentencePiece models, which tests must not change."""
    folder = tmp_path_factory.mktemp("cli") / "opus-mt-tiny"
    make(folder, LINES, True, vocab_size=200)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    torch.manual_seed(0)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=len(vocabulary),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            scale_embedding=True,
            pad_token_id=vocabulary["<pad>"],
            decoder_start_token_id=vocabulary["<pad>"],
            eos_token_id=0,
            forced_eos_token_id=0,
        )
    )
    model.generation_config.update(num_beams=3, max_length=16)
    model.save_pretrained(folder)
    return folder


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


REMOTE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vanilla_transformer":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
folder, *texts = sys.argv[1:]
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
source = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
target = AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer", trust_remote_code=True)
outputs = model.generate(**source(texts, padding=True, return_tensors="pt"))
print(json.dumps(target.batch_decode(outputs, skip_special_tokens=True)))
assert "vanilla_transformer" not in sys.modules
"""


def test_a_published_directory_is_converted_and_translates(
    command: Command, marian: Path, tmp_path: Path
) -> None:
    done = command("convert", marian, "-o", tmp_path / "out")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"{marian}: MarianMT (transformers)"
    assert re.fullmatch(r"[0-9]+ tensors, [0-9,]+ parameters", lines[1])
    assert "against this package on 16 random sentences" in lines[2]
    assert "remark: Of two equally likely ways to cut a word" in done.out
    assert lines[-1] == f"model: {tmp_path / 'out'}"
    tokenizer: Any = theirs(marian, True)
    assert isinstance(tokenizer, MarianTokenizer)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    outputs = MarianMTModel.from_pretrained(marian).eval().generate(**batch)
    expected = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    ours = load_tokenizer(tmp_path / "out")
    batch = ours(SENTENCES, padding=True, return_tensors="pt")
    outputs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval().generate(**batch)
    assert ours.batch_decode(outputs, skip_special_tokens=True) == expected
    # Where this package is not installed.
    arguments = [sys.executable, "-c", REMOTE, str(tmp_path / "out"), *SENTENCES]
    environment = {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    remote = subprocess.run(
        arguments, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert remote.returncode == 0, remote.stderr
    assert json.loads(remote.stdout) == expected


def test_the_list_names_every_family_and_checkpoint(command: Command) -> None:
    done = command("convert", "--list")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    for family in FAMILIES:
        assert f"# {family.name}: {family.title}" in lines
    whole = " ".join(done.out.split())
    for entry in CATALOGUE:
        assert entry.name in lines
        assert entry.licence in whole
        assert entry.reference in whole
        assert entry.bleu is None or f"BLEU {entry.bleu}" in whole


def test_a_run_becomes_a_marian_and_comes_back(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    test_to_marian.save(run / "model", vocab_size=300)
    tokenizer = train_tokenizer(LINES["source"], 290)
    tokenizer.save_pretrained(run / "model")
    done = command("convert", run, "--to", "marian", "-o", tmp_path / "marian")
    assert (done.status, done.err) == (0, "")
    assert "MarianMT of transformers" in done.out
    assert done.out.splitlines()[-1] == f"model: {tmp_path / 'marian'}"
    done = command("convert", tmp_path / "marian", "-o", tmp_path / "back")
    assert (done.status, done.err) == (0, "")
    models = [
        AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        for folder in (run / "model", tmp_path / "back")
    ]
    tokenizers = [load_tokenizer(folder) for folder in (run / "model", tmp_path / "back")]
    batch, again = (t(SENTENCES, padding=True, return_tensors="pt") for t in tokenizers)
    assert torch.equal(batch["input_ids"], again["input_ids"])
    with torch.inference_mode():
        logits = [model(**batch, labels=batch["input_ids"]).logits for model in models]
    assert (logits[0] - logits[1]).abs().max() <= 1e-5


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("ran"), "ran"))


def bergamot(folder: Path, marian: Path) -> Path:
    found = test_marian_native.save(folder)
    options = test_marian_native.STORED | {"transformer-decoder-autoreg": "rnn"}

    def change(arrays: dict[str, Any]) -> None:
        text = yaml.safe_dump(options).encode() + b"\0"
        arrays["special:model.yml"] = np.frombuffer(text, dtype=np.int8)

    test_marian_native.change_arrays(found, change)
    return found


def rotary(folder: Path, marian: Path) -> Path:
    folder.mkdir()
    return test_opennmt.save("opennmt", folder, test_opennmt.BASE, max_relative_positions=-1)


def with_code(folder: Path, marian: Path) -> Path:
    copy(marian, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.shared.weight": Payload()}, folder / "pytorch_model.bin")
    return folder


def without_tensors(folder: Path, marian: Path) -> Path:
    copy(marian, folder)
    (folder / "model.safetensors").unlink()
    tensors = MarianMTModel.from_pretrained(marian).state_dict()
    del tensors["model.encoder.layers.0.fc1.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def truncated(folder: Path, marian: Path) -> Path:
    file = copy(marian, folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


def damaged_tokenizer(folder: Path, marian: Path) -> Path:
    file = copy(marian, folder) / "source.spm"
    file.write_bytes(file.read_bytes()[:-3])
    return folder


def nothing(folder: Path, marian: Path) -> Path:
    return folder


@pytest.mark.parametrize(
    ("make_source", "message"),
    [
        (bergamot, "its decoder is recurrent (SSRU, as Firefox and Bergamot have it)"),
        (rotary, "max_relative_positions=-1: relative, rotary (-1)"),
        (with_code, "to load them would run code that came with the file, which is not done here"),
        (without_tensors, "missing: model.encoder.layers.0.fc1.weight"),
        (truncated, "it is truncated or no safetensors file; get it again"),
        (damaged_tokenizer, "source.spm is no whole SentencePiece model; get it again"),
        (nothing, "is neither a file or directory nor a model that the Hub gave"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_writes_nothing(
    make_source: Callable[[Path, Path], Path],
    message: str,
    command: Command,
    marian: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Code that a file may carry writes into the working directory.
    monkeypatch.chdir(tmp_path)
    source = make_source(tmp_path / "source", marian)
    before = sorted(tmp_path.rglob("*"))
    done = command("convert", source, "-o", tmp_path / "out")
    assert done.status == 1
    assert len(done.err.splitlines()) == 1
    assert message in done.err
    assert "model:" not in done.out
    assert sorted(tmp_path.rglob("*")) == before


def test_arguments_that_do_not_fit_are_one_line(
    command: Command, marian: Path, tmp_path: Path
) -> None:
    for arguments, message in (
        ((), "give SOURCE and --output; or --list"),
        ((marian,), "give SOURCE and --output; or --list"),
        ((marian, "-o", marian), "is in use; give a directory that is not there yet"),
        ((marian, "-o", tmp_path / "out", "--family", "bert"), "family ('bert') must be one of"),
        ((marian, "-o", tmp_path / "out", "--to", "marian"), "holds no model of this package"),
    ):
        done = command("convert", *arguments)
        assert done.status in (1, 2)
        assert len(done.err.splitlines()) == 1
        assert message in done.err
    assert list(tmp_path.iterdir()) == []
