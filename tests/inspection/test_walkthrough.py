"""The walk's numbers are the model's, station by station."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.inspection.walkthrough import (
    MAX_TOKENS,
    Matrix,
    Step,
    walk,
    write_walkthrough,
)
from vanilla_transformer.tokenization import train_tokenizer

TEXTS = ["the cat sat on the mat", "die Katze saß auf der Matte"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 5, 290)


def build(tokenizer: Any, **options: Any) -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(2)
    config = VanillaTransformerConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        d_ff=24,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=3,
        dropout=0.3,
        **options,
    )
    return VanillaTransformerForConditionalGeneration(config)


def matrix(steps: list[Step], title: str, name: str) -> Matrix:
    (found,) = [
        found
        for step in steps
        if step.title == title
        for found in step.matrices
        if found.name == name
    ]
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "pre-norm": {"layer_norm_position": "pre", "attention_bias": False},
    "learned": {"position_encoding": "learned", "max_position_embeddings": 64, "d_k": 5, "d_v": 3},
    "untied": {"share_embeddings": False, "tie_word_embeddings": False, "activation": "gelu"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_numbers_are_the_models(tokenizer: Any, name: str) -> None:
    model = build(tokenizer, **OPTIONS[name]).train()
    steps = walk(model, tokenizer, TEXTS[0], TEXTS[1])
    assert model.training
    model.eval()
    model.set_attn_implementation("eager")
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    labels = tokenizer(text_target=TEXTS[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        outputs = model(ids, labels=labels, output_hidden_states=True, output_attentions=True)
        layer = model.model.decoder.layers[0]
        inner = outputs.decoder_hidden_states[1]
    title = "Encoder: all 2 layers"
    found = matrix(steps, title, "output of the last layer")
    assert found.shape == (ids.shape[1], 16)
    last = outputs.encoder_hidden_states[-1][0, :, :8]
    np.testing.assert_allclose(found.values, last, atol=1e-5)
    # From the last addition of the first decoder layer follows its output.
    title = "Decoder, layer 1: add and norm"
    if name == "pre-norm":
        sums = [
            m for s in steps if s.title == title for m in s.matrices if m.name == "x + Sublayer"
        ]
    else:
        sums = [m for s in steps if s.title == title for m in s.matrices if "LayerNorm" in m.name]
    assert len(sums) == 3
    np.testing.assert_allclose(sums[-1].values, inner[0, :, :8], atol=1e-5)
    assert layer.is_pre_norm == (name == "pre-norm")
    title = "Decoder, layer 1: attention to the encoder's output: who looks at whom"
    found = matrix(steps, title, "softmax, each row sums to 1")
    np.testing.assert_allclose(found.values, outputs.cross_attentions[0][0, 0], atol=1e-5)
    found = matrix(steps, "Output probabilities", "probability of the token written")
    expected = outputs.logits[0].softmax(-1).gather(1, labels[0, :, None])
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    hidden = matrix(steps, "Decoder, layer 1: self-attention: who looks at whom", "with the mask")
    assert np.array_equal(np.isnan(hidden.values), np.triu(np.ones(hidden.shape), 1) == 1)


def test_positions_are_those_of_the_paper(tokenizer: Any) -> None:
    steps = walk(build(tokenizer), tokenizer, TEXTS[0], TEXTS[1])
    found = matrix(steps, "Encoder: embeddings and positions", "positions").values
    for position, row in enumerate(found):
        for i, value in enumerate(row):
            angle = position / 10_000 ** (2 * (i // 2) / 16)
            assert value == pytest.approx(np.cos(angle) if i % 2 else np.sin(angle), abs=1e-4)


def test_the_page_needs_nothing_and_runs_nothing(tokenizer: Any, tmp_path: Path) -> None:
    source = "the </bdi><script>alert(1)</script> cat"
    path = write_walkthrough(build(tokenizer), tokenizer, source, tmp_path / "new" / "walk.html")
    text = path.read_text("utf-8")
    assert "<script" not in text
    assert "&lt;/bdi&gt;" in text
    assert "default-src 'none'" in text
    assert "://" not in text
    assert "√d_k = 2.83" in text
    assert [entry.name for entry in path.parent.iterdir()] == ["walk.html"]


def test_what_is_too_long_or_empty_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = build(tokenizer)
    with pytest.raises(ValueError, match="must hold some text"):
        walk(model, tokenizer, "\n")
    with pytest.raises(ValueError, match=f"source has .* at most {MAX_TOKENS}"):
        write_walkthrough(model, tokenizer, "xyz" * 30, tmp_path / "walk.html", target="a")
    assert not (tmp_path / "walk.html").exists()
