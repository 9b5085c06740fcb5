"""MarianMT of transformers beside its conversion."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, MarianConfig, MarianMTModel

from vanilla_transformer.conversion import convert
from vanilla_transformer.conversion.marian import MarianFamily
from vanilla_transformer.conversion.parity import compare, random_batches
from vanilla_transformer.conversion.weights import build_model
from vanilla_transformer.modeling_vanilla_transformer import sinusoidal_positions

PAD, VOCABULARY = 40, 41
FAMILY = MarianFamily()

OPTIONS: dict[str, dict[str, Any]] = {
    "as OPUS-MT": {},
    "relu, as tc-big": {"activation_function": "relu", "encoder_layers": 3, "decoder_layers": 1},
    "gelu, sides apart": {
        "activation_function": "gelu",
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 56,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    },
    "separate vocabularies": {"share_encoder_decoder_embeddings": False},
    "of two sizes": {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 53},
    "output of its own": {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
    "wide": {"d_model": 96, "encoder_ffn_dim": 200, "decoder_ffn_dim": 200},
}


def marian_config(**overrides: Any) -> MarianConfig:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "activation_function": "swish",
        "scale_embedding": True,
        "pad_token_id": PAD,
        "decoder_start_token_id": PAD,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }
    return MarianConfig(**(sizes | overrides))


def marian_model(**overrides: Any) -> MarianMTModel:
    torch.manual_seed(1)
    model = MarianMTModel(marian_config(**overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that whatever is mistaken shows, in biases and norms too.
            if "embed_positions" not in name:
                scale = 0.1 if "embed" in name or "shared" in name else 0.3
                parameter.normal_(float("layer_norm.weight" in name), scale)
        # The pad row of Marian is zero; not in every file, so that it must be kept as it is.
        model.final_logits_bias.normal_()
    model.generation_config = GenerationConfig(
        num_beams=4,
        max_length=24,
        bad_words_ids=[[PAD]],
        forced_eos_token_id=0,
        renormalize_logits=True,
        pad_token_id=PAD,
        eos_token_id=0,
        decoder_start_token_id=PAD,
    )
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "marian"
    marian_model().save_pretrained(path)
    return path


@pytest.mark.parametrize("name", OPTIONS)
def test_it_computes_what_its_source_does(name: str, tmp_path: Path) -> None:
    source = marian_model(**OPTIONS[name])
    source.save_pretrained(tmp_path / "marian")
    found = convert(tmp_path / "marian", tmp_path / "out")
    assert found.family.name == "marian"
    assert found.is_live
    assert found.parity.log_probabilities <= 1e-5
    assert found.parity.encoder <= 1e-5
    assert found.parity.same_choices == 1
    ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    for ids, mask, decoder_ids in random_batches(ours):
        both = [
            model(ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
            for model in (source, ours)
        ]
        assert (both[0] - both[1]).abs().max() <= 1e-5
        for beams in (1, 4):
            outputs = [
                model.generate(ids, attention_mask=mask, num_beams=beams)
                for model in (source, ours)
            ]
            assert torch.equal(*outputs)
            assert not (outputs[0][:, 1:-1] == PAD).all()


def test_a_bin_of_old_days_converts_alike(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    shared = weights["model.shared.weight"]
    table = sinusoidal_positions(torch.arange(64), 32, "concatenated")
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_tokens.weight"] = shared
        weights[f"model.{side}.embed_positions.weight"] = table.clone()
    weights["lm_head.weight"] = shared
    torch.save(weights, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    settings = json.loads((saved / "generation_config.json").read_text())
    (saved / "generation_config.json").unlink()
    config = json.loads((saved / "config.json").read_text())
    # As of 2020: what generates stands in the config, among options that MarianMT never read.
    old = {"extra_pos_embeddings": 41, "normalize_before": False, "add_bias_logits": False}
    config |= settings | old | {"static_position_embeddings": True}
    (saved / "config.json").write_text(json.dumps(config))
    found = convert(saved, tmp_path / "out")
    assert found.parity.log_probabilities <= 1e-5
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    expected = {"num_beams": 4, "max_length": 24, "bad_words_ids": [[PAD]]}
    expected |= {"forced_eos_token_id": 0, "renormalize_logits": True}
    assert {name: written[name] for name in expected} == expected
    assert written["length_penalty_formula"] == "power"


def test_another_table_is_recognised(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    table = sinusoidal_positions(torch.arange(64), 32, "concatenated_inclusive")
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_positions.weight"] = table.clone()
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    checkpoint = FAMILY.read(saved)
    converted = FAMILY.convert(checkpoint)
    assert converted.config.position_encoding == "concatenated_inclusive"
    parity = compare(build_model(converted), FAMILY.reference(checkpoint), "")
    assert parity.log_probabilities <= 1e-5


def test_half_precision_is_read_as_numbers(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    half = {name: tensor.half() for name, tensor in weights.items()}
    save_file(half, saved / "model.safetensors", {"format": "pt"})
    assert convert(saved, tmp_path / "out").parity.log_probabilities <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_embedding": False}, "scale_embedding=False"),
        ({"activation_function": "tanh"}, "activation_function='tanh'"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads=2"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"encoder_ffn_dim": 40}, r"fc1.bias is \[48\], not \[40\]"),
        ({"encoder_layers": 3}, "missing: model.encoder.layers.2.fc1"),
        (
            {"decoder_layers": 1},
            "unknown to this architecture: model.decoder.layers.1.encoder_attn",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        convert(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_and_matrices_that_are_not_one_are_refused(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    for name, size, message in (
        ("model.encoder.embed_positions.weight", 64, "embed_positions are no sinusoids"),
        ("lm_head.weight", VOCABULARY, "model.shared.weight and lm_head.weight differ"),
    ):
        changed = weights | {name: torch.randn(size, 32)}
        save_file(changed, saved / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            convert(saved, tmp_path / "out")


def test_files_that_are_none_are_refused(saved: Path, tmp_path: Path) -> None:
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated"):
        convert(saved, tmp_path / "out")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        convert(saved, tmp_path / "out")
    torch.save({"code": Path("x")}, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="run code that came with the file"):
        convert(saved, tmp_path / "out")
    (saved / "config.json").write_text("{")
    assert not FAMILY.recognises(saved)
    assert not FAMILY.recognises(tmp_path / "nothing")
