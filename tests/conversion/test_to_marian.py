"""A model of this package beside the MarianMT that is made of it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianMTModel

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.conversion import convert, to_marian
from vanilla_transformer.conversion.parity import random_batches
from vanilla_transformer.conversion.to_marian import order
from vanilla_transformer.tokenization import TwoSidedTokenizer, load_tokenizer, train_tokenizer

OPTIONS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "as MarianMT's": {
        "position_encoding": "concatenated",
        "attention_bias": True,
        "output_bias": True,
        "activation": "swish",
    },
    "two vocabularies, sides apart": {
        "decoder_vocab_size": 53,
        "num_encoder_layers": 3,
        "decoder_d_ff": 56,
        "attention_bias": True,
        "activation": "gelu",
    },
    "output of its own": {"tie_word_embeddings": False, "output_bias": True},
    "decoder starts elsewhere": {"decoder_start_token_id": 2, "d_model": 64, "num_heads": 8},
}


def save(path: Path, **overrides: Any) -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 41,
        "d_model": 32,
        "d_ff": 48,
        "num_heads": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "layer_norm_eps": 1e-5,
    }
    model = VanillaTransformerForConditionalGeneration(
        VanillaTransformerConfig(**(sizes | overrides))
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if "embed" in name or "shared" in name else 0.3
            parameter.normal_(float("layer_norm.weight" in name), scale)
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize("name", OPTIONS)
def test_marian_computes_the_same(name: str, tmp_path: Path) -> None:
    ours = save(tmp_path / "model", **OPTIONS[name])
    lines = list(to_marian(tmp_path / "model", tmp_path / "marian"))
    assert "MarianMT of transformers" in lines[0]
    assert not any("epsilon" in line for line in lines)
    # Saved once more, as after fine-tuning, it is the same model still.
    MarianMTModel.from_pretrained(tmp_path / "marian").save_pretrained(tmp_path / "again")
    for folder in ("marian", "again"):
        marian = MarianMTModel.from_pretrained(tmp_path / folder).eval()
        places = order(ours.config)
        for ids, mask, decoder_ids in random_batches(ours):
            inputs = {"attention_mask": mask, "decoder_input_ids": decoder_ids}
            with torch.inference_mode():
                expected, found = ours(ids, **inputs), marian(ids, **inputs)
            assert (found.logits - expected.logits).abs().max() <= 1e-5
            states = expected.encoder_last_hidden_state[..., places]
            apart = (found.encoder_last_hidden_state - states)[mask.bool()]
            assert apart.abs().max() <= 1e-5
            settings = {"max_length": 24, "length_penalty": 1.0}
            for beams in (1, 4):
                settings["num_beams"] = beams
                power = {"length_penalty_formula": "power"}
                expected = ours.generate(ids, attention_mask=mask, **settings, **power)
                assert torch.equal(marian.generate(ids, attention_mask=mask, **settings), expected)


TEXTS = ["the cat sat on the mat"] * 9, ["die Katze saß auf der Matte"] * 9


@pytest.mark.parametrize(
    ("position_encoding", "limit"), [("interleaved", 1e-5), ("concatenated", 0)]
)
def test_there_and_back(position_encoding: str, limit: float, tmp_path: Path) -> None:
    """Where no dimension changes its place, not even rounding is left."""
    options = {"vocab_size": 300, "position_encoding": position_encoding, "attention_bias": True}
    ours = save(tmp_path / "model", **options)
    tokenizer = train_tokenizer([*TEXTS[0], *TEXTS[1]], 290)
    tokenizer.save_pretrained(tmp_path / "model")
    list(to_marian(tmp_path / "model", tmp_path / "marian"))
    found = convert(tmp_path / "marian", tmp_path / "back")
    assert found.parity.log_probabilities <= 1e-5
    assert found.remarks == ()
    back = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").eval()
    for ids, mask, decoder_ids in random_batches(ours):
        inputs = {"attention_mask": mask, "decoder_input_ids": decoder_ids}
        with torch.inference_mode():
            assert (back(ids, **inputs).logits - ours(ids, **inputs).logits).abs().max() <= limit
    lines = [*TEXTS[0], *TEXTS[1], "", "Größe </s> 日本"]
    again = load_tokenizer(tmp_path / "back")
    assert again(lines)["input_ids"] == tokenizer(lines)["input_ids"]
    assert again.batch_decode(again(lines)["input_ids"], skip_special_tokens=True) == lines


def test_two_tokenizers_come_back(tmp_path: Path) -> None:
    save(tmp_path / "model", vocab_size=300, decoder_vocab_size=290)
    both = [train_tokenizer(texts, 270) for texts in TEXTS]
    TwoSidedTokenizer.join(*both).save_pretrained(tmp_path / "model")
    list(to_marian(tmp_path / "model", tmp_path / "marian"))
    convert(tmp_path / "marian", tmp_path / "back")
    again = load_tokenizer(tmp_path / "back")
    assert isinstance(again, TwoSidedTokenizer)
    encoded = again("the cat", text_target="die Katze")
    assert encoded["input_ids"] == both[0]("the cat")["input_ids"]
    assert encoded["labels"] == both[1]("die Katze")["input_ids"]
    assert again.batch_decode([encoded["labels"]], skip_special_tokens=True) == ["die Katze"]


def test_a_tokenizer_that_is_missing_is_said_and_a_damaged_one_refused(tmp_path: Path) -> None:
    save(tmp_path / "model")
    list(to_marian(tmp_path / "model", tmp_path / "marian"))
    found = convert(tmp_path / "marian", tmp_path / "back")
    assert found.remarks == (
        "No tokenizer: neither source.spm nor tokenizer.json is beside the weights.",
    )
    (tmp_path / "marian" / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ValueError, match=r"tokenizer.json .* is no whole tokenizer"):
        convert(tmp_path / "marian", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_it_says_what_marian_does_otherwise(tmp_path: Path) -> None:
    model = save(tmp_path / "model", vocab_size=300, layer_norm_eps=1e-6)
    model.generation_config.num_beams = 4
    model.generation_config.length_penalty = 0.6
    model.save_pretrained(tmp_path / "model")
    lines = list(to_marian(tmp_path / "model", tmp_path / "marian"))
    assert "epsilon of 1e-05, which MarianMT fixes, in place of 1e-06" in lines[1]
    assert "1024 tokens; MarianMT cannot end them 50 beyond" in lines[2]
    assert "((5 + n) / 6)^length_penalty" in lines[3]
    assert "no tokenizer was written" in lines[4]
    settings = MarianMTModel.from_pretrained(tmp_path / "marian").generation_config
    assert (settings.num_beams, settings.length_penalty, settings.max_length) == (4, 0.6, 1024)
    tokenizer = train_tokenizer(["the cat sat"] * 9, 270)
    tokenizer.save_pretrained(tmp_path / "model")
    lines = list(to_marian(tmp_path / "model", tmp_path / "with"))
    assert "load it with AutoTokenizer" in lines[-1]
    stock = AutoTokenizer.from_pretrained(tmp_path / "with")
    assert stock("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_norm_position": "pre"}, r"layer_norm_position \('pre'\) must be 'post'"),
        (
            {"position_encoding": "concatenated_inclusive"},
            "must be 'interleaved' or 'concatenated': MarianMT computes its positions anew",
        ),
        ({"position_encoding": "learned", "max_position_embeddings": 64}, r"\('learned'\)"),
        ({"position_offset": 1}, r"position_offset \(1\) must be 0"),
        ({"d_k": 16}, r"d_k \(16\) must be 8"),
        ({"d_v": 4}, r"d_v \(4\) must be 8"),
        ({"num_segments": 2}, r"num_segments \(2\) must be 0"),
    ],
)
def test_what_marian_cannot_hold_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "model", **options)
    with pytest.raises(ValueError, match=message):
        list(to_marian(tmp_path / "model", tmp_path / "marian"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_or_in_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="holds no model of this package"):
        list(to_marian(tmp_path, tmp_path / "marian"))
    save(tmp_path / "model")
    with pytest.raises(ValueError, match="is in use"):
        list(to_marian(tmp_path / "model", tmp_path / "model"))
    # A mistake in the weights would be noticed, and nothing written.
    module = sys.modules[to_marian.__module__]
    monkeypatch.setattr(module, "order", lambda config: torch.arange(config.d_model))
    with pytest.raises(ValueError, match="does not agree"):
        list(to_marian(tmp_path / "model", tmp_path / "marian"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
