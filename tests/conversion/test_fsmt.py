"""FSMT's directories, against transformers' own FSMT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FSMTConfig, FSMTForConditionalGeneration

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.conversion import convert
from vanilla_transformer.conversion.fsmt import FSMTFamily
from vanilla_transformer.conversion.parity import random_batches
from vanilla_transformer.conversion.weights import build_model

FAMILY = FSMTFamily()
PAD, EOS = 1, 2
BASE: dict[str, Any] = {
    "langs": ["en", "de"],
    "src_vocab_size": 23,
    "tgt_vocab_size": 23,
    "d_model": 16,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "tied": BASE | {"tie_word_embeddings": True},
    "two vocabularies": BASE | {"tgt_vocab_size": 31, "langs": ["en", "ru"]},
    # allenai/wmt16-en-de-12-1, and d_ff of facebook/wmt19-*, on a smaller scale.
    "deep and shallow": BASE | {"encoder_layers": 6, "decoder_layers": 1, "decoder_ffn_dim": 128},
    "larger, gelu": BASE
    | {
        "d_model": 64,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "activation_function": "gelu",
        "src_vocab_size": 300,
        "tgt_vocab_size": 200,
    },
}


def make_source(case: str, **options: Any) -> FSMTForConditionalGeneration:
    torch.manual_seed(0)
    model = FSMTForConditionalGeneration(FSMTConfig(**CASES[case] | options)).eval()
    d_model = model.config.d_model
    for name, parameter in model.named_parameters():
        if "embed_positions" not in name:
            std = 4 / d_model**0.5 if "norm.weight" in name else 0.3
            torch.nn.init.normal_(parameter, std=std)
    decoder = model.model.decoder
    with torch.no_grad():
        # Ends are likely, so that searches have to deal with them.
        decoder.embed_tokens.weight[EOS] = 16 / d_model * decoder.layers[-1].final_layer_norm.bias
    if not model.config.tie_word_embeddings:
        # As all versions before 5 did, and as all of facebook's are.
        decoder.output_projection.weight = decoder.embed_tokens.weight
    return model


def save(model: FSMTForConditionalGeneration, path: Path, layout: str) -> Path:
    model.save_pretrained(path)
    if layout == "bin":
        # As transformers 3 and 4 wrote it: every setting in the config, no tables of positions.
        (path / "model.safetensors").unlink()
        (path / "generation_config.json").unlink()
        state = model.state_dict()
        torch.save(
            {name: tensor for name, tensor in state.items() if "positions" not in name},
            path / "pytorch_model.bin",
        )
        config = json.loads((path / "config.json").read_text())
        decoding = {"num_beams": 4, "length_penalty": 1.1, "early_stopping": True}
        (path / "config.json").write_text(json.dumps(config | decoding | {"max_length": 33}))
    return path


def assert_agreement(
    model: VanillaTransformerForConditionalGeneration, source: FSMTForConditionalGeneration
) -> None:
    for ids, mask, decoder_ids in random_batches(model):
        found = model(ids, attention_mask=mask, decoder_input_ids=decoder_ids)
        # With a cache FSMT does not mask the future.
        expected = source(ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False)
        states = found.encoder_last_hidden_state - expected.encoder_last_hidden_state
        assert states[mask.bool()].abs().max() <= 1e-5
        assert (found.logits - expected.logits).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("case", CASES)
def test_transformers_fsmt_agrees(tmp_path: Path, case: str, layout: str) -> None:
    source = make_source(case)
    path = save(source, tmp_path, layout)
    assert FAMILY.recognises(path)
    checkpoint = FAMILY.read(path)
    converted = FAMILY.convert(checkpoint)
    assert converted.config.share_embeddings == (case == "tied")
    assert converted.config.tie_word_embeddings
    model = build_model(converted)
    assert_agreement(model, source)
    assert_agreement(model, FAMILY.reference(checkpoint).model)  # type: ignore[attr-defined]

    ids, mask, _ = next(iter(random_batches(model, lengths=(9,), sentences=6, seed=3)))
    ids[range(len(ids)), mask.sum(1) - 1] = EOS
    stored = {"num_beams": 4, "length_penalty": 1.1, "early_stopping": True}
    for options in ({"num_beams": 1}, {}, {"num_beams": 3}):
        settings = (stored if layout == "bin" else {}) | {"max_length": 14} | options
        expected = source.generate(ids, attention_mask=mask, **settings)
        for use_cache in (True, False):
            # Without a cache FSMT's own generation does not mask the future.
            found = model.generate(
                ids, attention_mask=mask, max_length=14, use_cache=use_cache, **options
            )
            assert found.tolist() == expected.tolist()


@torch.no_grad()
def test_an_output_layer_of_its_own_stays_its_own(tmp_path: Path) -> None:
    source = make_source("two vocabularies")
    source.model.decoder.output_projection.weight = torch.nn.Parameter(0.3 * torch.randn(31, 16))
    converted = FAMILY.convert(FAMILY.read(save(source, tmp_path, "safetensors")))
    assert not converted.config.tie_word_embeddings
    assert_agreement(build_model(converted), source)


def test_settings_of_generate_are_the_sources(tmp_path: Path) -> None:
    old = FAMILY.convert(FAMILY.read(save(make_source("tied"), tmp_path / "old", "bin")))
    assert old.generation == {
        "num_beams": 4,
        "length_penalty": 1.1,
        "early_stopping": True,
        "max_length": 33,
        "forced_eos_token_id": 2,
        "length_penalty_formula": "power",
    }
    new = FAMILY.convert(FAMILY.read(save(make_source("tied"), tmp_path / "new", "safetensors")))
    assert new.generation | {"forced_eos_token_id": 2} == {
        "num_beams": 5,
        "length_penalty": 1.0,
        "early_stopping": False,
        "max_length": 200,
        "forced_eos_token_id": 2,
        "length_penalty_formula": "power",
    }


def test_the_whole_conversion_is_proved(tmp_path: Path) -> None:
    source = save(make_source("two vocabularies"), tmp_path / "source", "safetensors")
    result = convert(source, tmp_path / "out")
    assert result.family.name == "fsmt"
    assert result.is_live
    assert result.parity.log_probabilities <= 1e-5
    assert result.parity.same_choices == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_embedding": False}, "scale_embedding=False"),
        ({"activation_function": "tanh"}, "activation_function='tanh'"),
        ({"decoder_attention_heads": 4}, "decoder_attention_heads=4: it differs from encoder_att"),
        ({"encoder_layers": 1}, "unknown to this architecture: model.encoder.layers.1.fc1.bias, m"),
        ({"encoder_layers": 3}, "missing: model.encoder.layers.2.self_attn.q_proj.weight, model."),
        ({"d_model": 32}, r"of another shape: model.decoder.embed_tokens.weight is \[23, 16\], no"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = save(make_source("tied"), tmp_path / "source", "safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | options))
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_positions_and_broken_files_are_refused(tmp_path: Path) -> None:
    source = make_source("tied")
    torch.nn.init.normal_(source.model.encoder.embed_positions.weight)
    path = save(source, tmp_path / "source", "safetensors")
    with pytest.raises(ValueError, match="these are not FSMT's sinusoids"):
        FAMILY.convert(FAMILY.read(path))
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="truncated"):
        FAMILY.read(path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        FAMILY.read(path)
    assert not FAMILY.recognises(tmp_path)
    assert not FAMILY.recognises(weights)
