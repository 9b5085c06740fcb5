"""Products that are ready for decoding compute what linear layers compute."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.generation.cases import MASK, SOURCES, small_model
from vanilla_transformer.generation import DecodingSettings, translate, weights
from vanilla_transformer.generation.weights import make_product
from vanilla_transformer.tokenization import train_tokenizer

TEXT = ["The dog sees the house.", "no", "What does the old woman give?", "Yes!", "x y z"]


def needs_int8() -> None:
    """Skips the test where torch has no quantised linear layers; where it has, ours must work."""
    if not {"x86", "fbgemm", "onednn"} & {*torch.backends.quantized.supported_engines}:
        pytest.skip("this torch has no quantised linear layers for this machine")
    assert weights._works(weights.Int8Product)


@pytest.mark.parametrize("precision", ["model", "int8"])
@pytest.mark.parametrize("activation", [None, *weights.ACTIVATIONS])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_a_linear_layer_with_its_activation(seeded, precision, activation, has_bias):
    if precision == "int8":
        needs_int8()
    matrices = [torch.randn(24, 40) / 6, torch.randn(8, 40) / 6]
    biases = [torch.randn(24), torch.randn(8)] if has_bias else [None, None]
    product = make_product(matrices, biases, precision, activation)
    for rows in (1, 2, 33):
        x = torch.randn(rows, 40)
        wanted = torch.cat(
            [F.linear(x, m, b) for m, b in zip(matrices, biases, strict=True)], dim=1
        )
        if activation is not None:
            wanted = weights.ACTIVATIONS[activation][0](wanted)
        found = product(x)
        if precision == "model":
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        else:
            assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_a_product_keeps_no_ties_to_its_weights(seeded):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    assert weights._works(weights.PackedProduct)
    matrix = torch.randn(24, 40)
    product = make_product([matrix], [None], "model")
    x = torch.randn(3, 40)
    before = product(x)
    matrix.zero_()
    assert torch.equal(product(x), before)


def test_operators_that_compute_something_else_are_not_used(monkeypatch):
    monkeypatch.setattr(weights.PackedProduct, "__call__", lambda self, rows: rows.sum())
    weights._works.cache_clear()
    try:
        assert type(make_product([torch.randn(4, 6)], [None], "model")) is weights.PlainProduct
    finally:
        weights._works.cache_clear()


def test_int8_is_refused_where_it_cannot_be_had():
    tokenizer = train_tokenizer(TEXT, 300)
    model = small_model(vocab_size=len(tokenizer))
    sampling = DecodingSettings(num_beams=1, do_sample=True)
    for refused, decoding, message in (
        (model, sampling, "these settings"),
        (copy.deepcopy(model).double(), DecodingSettings(), "float64"),
        (copy.deepcopy(model).train(), DecodingSettings(), "training mode"),
    ):
        with pytest.raises(ValueError, match=rf"precision='int8' cannot be used: .*{message}"):
            list(translate(refused, tokenizer, TEXT, decoding, precision="int8"))


@pytest.mark.parametrize("beams", [1, 4])
def test_int8_translates_nearly_alike(beams):
    needs_int8()
    tokenizer = train_tokenizer(TEXT, 300)
    model = small_model(vocab_size=len(tokenizer), d_model=64, d_ff=96, num_heads=4)
    lines = TEXT * 4
    decoding = DecodingSettings(num_beams=beams, max_tokens_over_source=4)
    wanted = [found[0].text for found in translate(model, tokenizer, lines, decoding)]
    found = [x[0].text for x in translate(model, tokenizer, lines, decoding, precision="int8")]
    assert len(set(wanted)) > 2
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= 10
    # And it does not stay: the model's own precision is what it was.
    assert [x[0].text for x in translate(model, tokenizer, lines, decoding)] == wanted
    model.generate(SOURCES, attention_mask=MASK)
