"""The procedure that all families share: what is written, what is refused, what stays as it was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.conversion import CATALOGUE, FAMILIES, convert, fingerprints
from vanilla_transformer.conversion import convert as convert_function
from vanilla_transformer.conversion.fingerprints import check_fingerprint, record_fingerprint
from vanilla_transformer.conversion.parity import TOLERANCE
from vanilla_transformer.conversion.source import (
    Checkpoint,
    Converted,
    Family,
    TensorReader,
    Tokenizers,
)
from vanilla_transformer.conversion.weights import build_model
from vanilla_transformer.tokenization import TwoSidedTokenizer, load_tokenizer, train_tokenizer

module = sys.modules[convert_function.__module__]
TIED = ("lm_head", "model.decoder.embed", "model.shared")
TEXTS = ["the cat sat on the mat"] * 9, ["die Katze saß auf der Matte"] * 9


class ToyReference:
    """A model of this package, as if it were somebody else's."""

    name = "toy 1.0"

    def __init__(self, model: VanillaTransformerForConditionalGeneration):
        self.model = model.eval()

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.get_encoder()(ids, attention_mask=mask).last_hidden_state

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # A constant more, as a source may have that normalises otherwise.
        return self.model(ids, attention_mask=mask, decoder_input_ids=target).logits + 7


class Toy(Family):
    """Weights under names of their own, the projections transposed."""

    name, title = "toy", "Toy"
    has_code = True
    tokenizers_given = Tokenizers()
    error = 0.0

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".toy"

    def read(self, path: Path) -> Checkpoint:
        return Checkpoint(load_file(path), {"vocab_size": 300, "d_model": 16, "heads": 2}, path)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        options = checkpoint.options
        config = VanillaTransformerConfig(
            vocab_size=options["vocab_size"],
            d_model=options["d_model"],
            num_heads=options["heads"],
            d_ff=32,
            num_encoder_layers=1,
            num_decoder_layers=1,
        )
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in empty(config).state_dict().items()
            if name in checkpoint.tensors
            or not name.startswith(("lm_head", "model.decoder.embed", "model.shared"))
        }
        reader = TensorReader(checkpoint.tensors, "toy")
        weights = {name: reader.take(name, shape) for name, shape in shapes.items()}
        reader.finish(ignore=["extra"])
        weights["model.encoder.embed_tokens.weight"][::2] += self.error
        return Converted(config, weights, {"num_beams": 3}, ["A remark of the toy."])

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        return self.tokenizers_given

    def reference(self, checkpoint: Checkpoint) -> ToyReference:
        if not self.has_code:
            raise ImportError("toy is not installed: pip install toy")
        error, self.error = self.error, 0.0
        try:
            return ToyReference(build_model(self.convert(checkpoint)))
        finally:
            self.error = error


def empty(config: VanillaTransformerConfig) -> VanillaTransformerForConditionalGeneration:
    with torch.device("meta"):
        return VanillaTransformerForConditionalGeneration(config)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    family = Toy()
    monkeypatch.setattr(module, "FAMILIES", (family,))
    return family


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = VanillaTransformerConfig(
        vocab_size=300,
        d_model=16,
        num_heads=2,
        d_ff=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    model = VanillaTransformerForConditionalGeneration(config)
    weights = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith(TIED)
    }
    path = tmp_path / "model.toy"
    save_file(weights, path)
    return path


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_a_checkpoint_is_converted_proved_and_written(
    toy: Toy, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.tokenizers_given = Tokenizers(train_tokenizer(TEXTS[0], 270))
    lines: list[str] = []
    found = convert(source, tmp_path / "out", report=lines.append)
    assert found.is_live
    assert found.parity.log_probabilities <= 1e-5
    assert found.parity.same_choices == 1
    assert found.remarks == ("A remark of the toy.",)
    assert "toy 1.0 against this package on 16 random sentences" in lines[-1]
    assert entries(tmp_path / "out") == [
        "README.md",
        "config.json",
        "configuration_vanilla_transformer.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_vanilla_transformer.py",
        "pipeline_vanilla_transformer.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert type(model) is VanillaTransformerForConditionalGeneration
    assert model.generation_config.num_beams == 3
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    parity = found.parity
    row = f"| {parity.reference} | {parity.sentences} | {parity.encoder:.1e} |"
    assert f"{row} {parity.log_probabilities:.1e} | 100.00 % |" in card
    # As a reader would run it, beside the directory.
    monkeypatch.chdir(tmp_path)
    snippet = card.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(snippet, "card", "exec"), names)
    assert len(names["outputs"]) == 1
    assert "- A remark of the toy." in card
    # Where it was is nobody's business.
    assert str(tmp_path) not in card
    assert "The model `model.toy` (Toy)" in card
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the cat")["input_ids"][-1] == 2


def test_two_tokenizers_are_two_stock_ones(toy: Toy, source: Path, tmp_path: Path) -> None:
    both = [train_tokenizer(texts, 270) for texts in TEXTS]
    toy.tokenizers_given = Tokenizers(*both)
    convert(source, tmp_path / "out")
    joined = load_tokenizer(tmp_path / "out")
    assert isinstance(joined, TwoSidedTokenizer)
    encoded = joined("the cat", text_target="die Katze")
    assert encoded["input_ids"] == both[0]("the cat")["input_ids"]
    assert encoded["labels"] == both[1]("die Katze")["input_ids"]
    assert joined.batch_decode([encoded["labels"]], skip_special_tokens=True) == ["die Katze"]
    # Errors in the middle leave no side switched.
    with pytest.raises((TypeError, ValueError)):
        joined("the cat", text_target=3)
    assert joined("the cat")["input_ids"] == encoded["input_ids"]
    joined.save_pretrained(tmp_path / "again")
    assert (
        load_tokenizer(tmp_path / "again")(text_target="die")["input_ids"]
        == both[1]("die")["input_ids"]
    )
    stock = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(stock) is type(both[0])
    assert stock("the cat")["input_ids"] == encoded["input_ids"]
    stock = AutoTokenizer.from_pretrained(tmp_path / "out" / "target_tokenizer")
    assert stock("die Katze")["input_ids"] == encoded["labels"]


REMOTE = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vanilla_transformer":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import (
    AutoModelForMaskedLM, AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM, AutoTokenizer
)
directory, output = sys.argv[1:]
model = AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
ids = tokenizer("the cat sat", return_tensors="pt")["input_ids"]
torch.save((model(ids, decoder_input_ids=ids).logits, model.generate(ids, num_beams=2)), output)
for auto in (AutoModelForMaskedLM, AutoModelForQuestionAnswering):
    assert auto.from_pretrained(directory, trust_remote_code=True).num_parameters()
assert "vanilla_transformer" not in sys.modules
"""


def test_it_loads_where_this_package_is_not(toy: Toy, source: Path, tmp_path: Path) -> None:
    toy.tokenizers_given = Tokenizers(train_tokenizer(TEXTS[0], 270))
    convert(source, tmp_path / "out")
    command = [sys.executable, "-c", REMOTE, str(tmp_path / "out"), str(tmp_path / "logits")]
    # As many threads: sums are then taken in the same order.
    threads = str(torch.get_num_threads())
    environment = {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": threads}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    logits, outputs = torch.load(tmp_path / "logits")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    ids = load_tokenizer(tmp_path / "out")("the cat sat", return_tensors="pt")["input_ids"]
    assert torch.equal(model(ids, decoder_input_ids=ids).logits, logits)
    assert torch.equal(model.generate(ids, num_beams=2), outputs)


def test_without_the_sources_code_the_stored_example_speaks(
    toy: Toy, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = record_fingerprint(toy, toy.read(source), "toy 1.0", seed=3)
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / fingerprints.FINGERPRINTS).write_text(json.dumps({"toy": entry}))
    monkeypatch.setattr(fingerprints, "__package__", "stored")
    monkeypatch.setattr(fingerprints.importlib.resources, "files", lambda _: stored)
    toy.has_code = False
    found = convert(source, tmp_path / "out")
    assert not found.is_live
    assert found.parity.holds
    assert "a stored example" in str(found.parity)
    assert "was not installed" in (tmp_path / "out" / "README.md").read_text("utf-8")
    # It would be noticed if the conversion went wrong.
    toy.error = 0.1
    assert check_fingerprint(toy).log_probabilities > TOLERANCE


def damaged(source: Path, change: Any) -> Path:
    weights = load_file(source)
    change(weights)
    path = source.with_name("damaged.toy")
    save_file(weights, path)
    return path


def test_what_does_not_agree_is_not_written(toy: Toy, source: Path, tmp_path: Path) -> None:
    toy.error = 0.1
    with pytest.raises(ValueError, match="does not agree with its source"):
        convert(source, tmp_path / "out")
    assert entries(tmp_path) == ["model.toy"]


def test_every_wrong_tensor_is_named(toy: Toy, source: Path, tmp_path: Path) -> None:
    layer = "model.encoder.layers.0"

    def change(weights: dict[str, torch.Tensor]) -> None:
        del weights[f"{layer}.fc1.weight"], weights[f"{layer}.fc1.bias"]
        weights[f"{layer}.fc2.bias"] = torch.zeros(3)
        weights["extra"] = weights["more"] = torch.zeros(1)
        weights["more"] = torch.zeros(2)

    with pytest.raises(ValueError, match="missing") as caught:
        convert(damaged(source, change), tmp_path / "out")
    message = str(caught.value)
    assert f"missing: {layer}.fc1.bias, {layer}.fc1.weight" in message or (
        f"missing: {layer}.fc1.weight, {layer}.fc1.bias" in message
    )
    assert f"of another shape: {layer}.fc2.bias is [3], not [16]" in message
    assert "unknown to this architecture: more." in message
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays(toy: Toy, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine").write_text("mine")
    with pytest.raises(ValueError, match="is in use"):
        convert(source, output)
    assert entries(output) == ["mine"]
    (output / "mine").unlink()
    convert(source, output)
    assert (output / "config.json").exists()


def test_a_tokenizer_of_another_model_is_refused(toy: Toy, source: Path, tmp_path: Path) -> None:
    toy.tokenizers_given = Tokenizers(train_tokenizer([*TEXTS[0], *TEXTS[1]], 400, min_frequency=1))
    toy.tokenizers_given.source.add_tokens([f"word{i}" for i in range(200)])  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="the source tokenizer knows"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("source_name", "family", "message"),
    [
        ("nothing.bin", None, "neither a file or directory nor a model that the Hub gave"),
        ("model.other", None, "of no family that is known here .toy.; .* --family"),
        ("model.other", "fsmt", r"family \('fsmt'\) must be one of toy"),
    ],
)
def test_sources_that_are_none(
    toy: Toy, tmp_path: Path, source_name: str, family: str | None, message: str
) -> None:
    (tmp_path / "model.other").write_text("?")
    source = tmp_path / source_name
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", family=family)


def test_names_of_families_are_one_each_and_the_catalogue_uses_them() -> None:
    names = [family.name for family in FAMILIES]
    assert len({*names}) == len(names)
    assert {entry.family for entry in CATALOGUE} <= {*names}
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
