"""Recorded attention is what the model computes; what heads do, and words paired, by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForCausalLM,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
)
from vanilla_transformer.inspection.heads import align_words, summarise_heads, word_spans
from vanilla_transformer.inspection.recording import AttentionRecord, attention

IDS = torch.tensor([[5, 6, 7, 2], [8, 2, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
TARGET = torch.tensor([[1, 9, 10], [1, 11, 0]])
TARGET_MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def build(cls: Any) -> Any:
    torch.manual_seed(1)
    sizes = {"vocab_size": 20, "d_model": 16, "d_ff": 16, "num_heads": 2}
    layers = {"num_encoder_layers": 3, "num_decoder_layers": 2, "dropout": 0.5}
    return cls(VanillaTransformerConfig(**sizes, **layers))


def test_what_is_recorded_is_what_the_model_computes() -> None:
    model = build(VanillaTransformerForConditionalGeneration).train()
    model.set_attn_implementation("sdpa")
    inputs = {
        "input_ids": IDS,
        "attention_mask": MASK,
        "decoder_input_ids": TARGET,
        "decoder_attention_mask": TARGET_MASK,
    }
    record = attention(model, inputs)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert {kind: weights.shape for kind, weights in record.kinds.items()} == {
        "encoder": (3, 2, 2, 4, 4),
        "decoder": (2, 2, 2, 3, 3),
        "cross": (2, 2, 2, 3, 4),
    }
    # The first encoder layer by 3.2.1, from the model's own projections.
    model.eval()
    layer = model.get_encoder().layers[0].self_attn
    states = model.get_encoder().embed(model.get_input_embeddings()(IDS), torch.arange(4)[None])
    q, k = (
        projection(states).view(2, 4, 2, 8).transpose(1, 2)
        for projection in (layer.q_proj, layer.k_proj)
    )
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(
        ~MASK.bool()[:, None, None, :], -torch.inf
    )
    expected = scores.softmax(-1).detach().numpy()
    assert record.encoder is not None
    for sentence, is_real in enumerate(MASK.bool().numpy()):
        found = record.encoder[0, sentence, :, is_real]
        np.testing.assert_allclose(found, expected[sentence, :, is_real], atol=1e-6)
    for summary in summarise_heads(record):
        assert summary.shares["padding"] == 0


@pytest.mark.parametrize(
    ("cls", "kind"),
    [(VanillaTransformerForMaskedLM, "encoder"), (VanillaTransformerForCausalLM, "decoder")],
)
def test_one_stack_alone(cls: Any, kind: str) -> None:
    record = attention(build(cls), {"input_ids": IDS, "attention_mask": MASK})
    assert list(record.kinds) == [kind]
    assert record.real_keys(kind).tolist() == MASK.bool().tolist()
    if kind == "decoder":
        assert not np.triu(record.kinds[kind], 1).any()


def test_no_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="needs input_ids"):
        attention(build(VanillaTransformerForMaskedLM), {"inputs_embeds": torch.zeros(1, 2, 16)})


def record_of(kind: str, *heads: np.ndarray) -> AttentionRecord:
    """One layer and one sentence, nothing of it padding."""
    weights = np.stack(heads)[None, None].astype(np.float32)
    masks = [np.ones((1, size), bool) for size in heads[0].shape]
    return AttentionRecord(**{kind: weights}, target_mask=masks[0], source_mask=masks[1])


def test_heads_are_named_after_where_they_look() -> None:
    size = 6
    eye, spread = np.eye(size), np.full((size, size), 1 / size)
    previous = np.eye(size, k=-1)
    previous[0, 0] = 1
    following = np.eye(size, k=1)
    following[-1, -1] = 1
    first, last = np.zeros((2, size, size))
    first[:, 0] = last[:, -1] = 1
    heads = summarise_heads(record_of("encoder", eye, spread, previous, following, first, last))
    assert [head.role for head in heads] == ["self", "broad", "previous", "next", "first", "last"]
    assert [head.head for head in heads] == [1, 2, 3, 4, 5, 6]
    assert heads[1].entropy == pytest.approx(np.log(6))
    assert heads[1].entropy_share == pytest.approx(1)
    assert heads[0].entropy == pytest.approx(0)
    # From each of six tokens one step, but from the first none.
    assert heads[2].distance == pytest.approx(5 / 6)
    assert heads[1].distance == pytest.approx(np.abs(np.subtract.outer(range(6), range(6))).mean())


def test_entropy_is_measured_against_what_is_visible() -> None:
    spread = np.tril(np.ones((5, 5)))
    spread /= spread.sum(1, keepdims=True)
    (head,) = summarise_heads(record_of("decoder", spread))
    assert head.entropy_share == pytest.approx(1)
    assert head.role == "broad"


def test_weight_on_padding_shows() -> None:
    weights = np.array([[0.25, 0.75], [0.25, 0.75]])
    record = record_of("encoder", weights)
    assert record.source_mask is not None
    record.source_mask[0, 1] = False
    (head,) = summarise_heads(record)
    assert head.shares["padding"] == 0.75
    assert head.role == "padding"


def test_tokens_make_words() -> None:
    assert word_spans(["The", "▁do", "g", "<C3>", "<A4>", "</s>"]) == [(0, 1), (1, 5), (5, 6)]
    assert word_spans(["<s>", "a", "b", "▁c"]) == [(0, 1), (1, 3), (3, 4)]


def test_words_are_paired_by_the_last_layer_but_one() -> None:
    source, written = ["the", "▁do", "g", "</s>"], ["der", "▁Hu", "nd", "</s>"]
    wrong = np.full((2, 4, 4), 0.25)
    right = np.zeros((2, 4, 4))
    right[:, 0] = [0.7, 0.1, 0.1, 0.1]
    # Each token of "Hund" prefers "the", and yet the two of "dog" have more together.
    right[:, 1] = right[:, 2] = [0.4, 0.3, 0.3, 0.0]
    right[0, 3] = [0, 0, 0, 1.0]
    right[1, 3] = [0, 0.2, 0, 0.8]
    pairs = align_words(np.stack([right, wrong]), source, written)
    assert [pair[:2] for pair in pairs] == [(0, 0), (1, 1), (2, 2)]
    assert [pair[2] for pair in pairs] == pytest.approx([0.7, 0.6, 0.9])
    with pytest.raises(ValueError, match=r"layer \(3\) must be from 1 to 2"):
        align_words(np.stack([right, wrong]), source, written, layer=3)
    with pytest.raises(ValueError, match="must be"):
        align_words(np.stack([right, wrong]), source[:3], written)
