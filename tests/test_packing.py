"""Packed tokens: what training on a CPU computes without padding is what it computes with it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForCausalLM,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.modeling_vanilla_transformer import (
    PackedAttention,
    PackedTokens,
    VanillaTransformerStack,
    until_last_label,
)

PAD, EOS = 0, 2
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "pre": {"layer_norm_position": "pre", "d_k": 5, "d_v": 3},
    "offset": {"position_offset": 1, "position_encoding": "concatenated"},
    "learned": {"position_encoding": "learned", "max_position_embeddings": 16},
    "untied": {"share_embeddings": False, "tie_word_embeddings": False, "attention_bias": False},
}
LENGTHS = [(9, 3), (1, 1), (4, 11), (2, 7), (9, 11), (5, 5)]


def build(model_class: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 32, "num_heads": 2}
    depth = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    config = VanillaTransformerConfig(
        vocab_size=40, dropout=0.0, label_smoothing=0.1, **sizes, **depth, **options
    )
    return model_class(config).train()


def ragged(lengths: list[int], side: str, pad: int) -> torch.Tensor:
    """Random ids, padded on the right, the left or on both sides."""
    width = max(lengths) + (1 if side == "both" else 0)
    ids = torch.full((len(lengths), width), pad)
    for row, length in enumerate(lengths):
        start = {"right": 0, "left": width - length, "both": min(1, width - length)}[side]
        ids[row, start : start + length] = torch.randint(4, 40, (length,))
    return ids


def pairs(side: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    sources, targets = ([pair[i] for pair in LENGTHS] for i in (0, 1))
    return {"input_ids": ragged(sources, side, PAD), "labels": ragged(targets, side, -100)}


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all batches that were packed."""
    seen: list[tuple[int, ...]] = []
    begin = PackedTokens.__init__

    def note(self: PackedTokens, is_real: torch.Tensor) -> None:
        seen.append(tuple(is_real.shape))
        begin(self, is_real)

    monkeypatch.setattr(PackedTokens, "__init__", note)
    return seen


def learned(model: nn.Module, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_packing_changes_nothing(
    model: nn.Module, packings: list, monkeypatch: pytest.MonkeyPatch, **inputs: Any
) -> None:
    packings.clear()
    loss, gradients = learned(model, **inputs)
    assert packings
    packings.clear()
    with monkeypatch.context() as patch:
        patch.setattr(VanillaTransformerStack, "can_pack", lambda *_, **__: False)
        expected_loss, expected = learned(model, **inputs)
    assert not packings
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert gradients.keys() == expected.keys()
    # Those of biases that softmax cancels are rounding alone.
    floor = 1e-2 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).norm() / expected[name].norm().clamp_min(floor)
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("options", OPTIONS)
def test_translation_learns_the_same(
    options: str, side: str, packings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(VanillaTransformerForConditionalGeneration, **OPTIONS[options])
    assert_packing_changes_nothing(model, packings, monkeypatch, **pairs(side))


def test_what_collators_give_is_packed_on_both_sides(
    packings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They make the decoder's input, and no mask for it."""
    model = build(VanillaTransformerForConditionalGeneration)
    batch = pairs("right")
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    batch["attention_mask"] = (batch["input_ids"] != PAD).long()
    assert_packing_changes_nothing(model, packings, monkeypatch, **batch)
    learned(model, **batch)
    # The encoder, the decoder and what the decoder sees of the source.
    assert len(packings) == 3


@pytest.mark.parametrize(
    "model_class",
    [
        VanillaTransformerForCausalLM,
        VanillaTransformerForMaskedLM,
        VanillaTransformerForQuestionAnswering,
        VanillaTransformerForSequenceClassification,
    ],
)
def test_every_head_learns_the_same(
    model_class: Any, packings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_segments = model_class in (
        VanillaTransformerForQuestionAnswering,
        VanillaTransformerForSequenceClassification,
    )
    model = build(model_class, num_segments=2 if has_segments else 0)
    if has_segments:
        nn.init.normal_(model.model.encoder.embed_segments.weight)
    torch.manual_seed(2)
    lengths = [8, 5, 12, 6]
    ids = ragged(lengths, "right", PAD)
    batch: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if has_segments:
        for row, length in enumerate(lengths):
            ids[row, [1, length - 1]] = EOS
    if model_class is VanillaTransformerForQuestionAnswering:
        batch |= {"start_positions": torch.tensor([2, 3, 9, 4])}
        batch |= {"end_positions": torch.tensor([3, 3, 10, 4])}
    elif has_segments:
        batch |= {"labels": torch.tensor([0, 1, 1, 0])}
    else:
        batch |= {"labels": ids.masked_fill(ids == PAD, -100)}
    assert_packing_changes_nothing(model, packings, monkeypatch, **batch)


def test_linear_layers_compute_no_padding() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    rows = []
    for stack in (model.model.encoder, model.model.decoder):
        stack.layers[0].fc1.register_forward_hook(lambda _, args, out: rows.append(out.shape))
    learned(model, **pairs("right"))
    assert rows == [(sum(pair[0] for pair in LENGTHS), 32), (sum(pair[1] for pair in LENGTHS), 32)]


def test_activation_checkpointing_goes_with_it(
    packings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    _, expected = learned(model, **pairs("right"))
    model.activation_checkpointing_enable()
    packings.clear()
    _, gradients = learned(model, **pairs("right"))
    assert packings
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


def test_states_of_padding_are_not_shown_packed(packings: list) -> None:
    """Whatever is recorded or hooked has the shape that everybody expects."""
    model = build(VanillaTransformerForConditionalGeneration)
    batch = pairs("right")
    outputs = model(**batch, output_hidden_states=True)
    assert outputs.encoder_hidden_states[1].shape == (6, 9, 16)
    model.config.output_hidden_states = True
    assert model(**batch).decoder_hidden_states[1].shape == (6, 11, 16)
    model.config.output_hidden_states = False
    assert not packings
    # What transformers leaves behind does not count as somebody's hook.
    model(**batch)
    assert packings
    packings.clear()
    shapes = []
    for stack in (model.model.encoder, model.model.decoder):
        stack.layers[1].register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    model(**batch)
    assert shapes == [(6, 9, 16), (6, 11, 16)]
    assert not packings


def test_only_training_with_sdpa_is_packed(packings: list) -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    batch = pairs("right")
    model.eval()(**batch)
    # The lean loop packs the source by itself.
    model._lean_generate = None
    model.generate(batch["input_ids"], max_new_tokens=3)
    model.train().set_attn_implementation("eager")
    model(**batch)
    assert not packings


def test_a_row_without_tokens_is_computed_with_padding(packings: list) -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    batch = pairs("right")
    batch["input_ids"][2] = PAD
    loss, gradients = learned(model, **batch)
    assert not packings
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_until_last_label() -> None:
    labels = torch.tensor([[5, -100, 6, -100], [-100] * 4, [-100, 7, 8, 9]])
    expected = [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert until_last_label(labels).long().tolist() == expected


masks = st.lists(
    st.lists(st.booleans(), min_size=7, max_size=7).filter(any), min_size=1, max_size=9
)


@settings(max_examples=100, deadline=None)
@given(masks, st.data())
def test_attention_is_that_of_each_sentence_by_itself(mask: list, data: st.DataObject) -> None:
    """Against a naive loop over sentences, with tokens and padding anywhere."""
    queries = torch.tensor(mask)
    keys = torch.tensor(
        data.draw(st.lists(masks.map(lambda m: m[0]), min_size=len(mask), max_size=len(mask)))
    )
    is_causal = data.draw(st.booleans())
    if is_causal:
        keys = queries
    sides = [PackedTokens(queries), PackedTokens(keys)]
    packed = PackedAttention(*sides, is_causal=is_causal)
    for _, longest, longest_key in packed.shapes:
        assert 0 < longest <= 7
        assert 0 < longest_key <= 7
    q, k, v = (torch.randn(*m.shape, 6) for m in (queries, keys, keys))
    q.requires_grad_()
    v.requires_grad_()

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **_: Any) -> Any:
        scores = q @ k.transpose(-1, -2) * scaling
        if is_causal:
            assert mask is None
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        elif mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2), None

    found = packed.attend(
        attend, nn.Module(), sides[0].pack(q), sides[1].pack(k), sides[1].pack(v), 3, 3, 0.5
    )
    expected = []
    for row in range(len(mask)):
        mine, others = q[row][queries[row]], keys[row]
        heads = [
            x.view(len(x), 2, 3).transpose(0, 1) for x in (mine, k[row][others], v[row][others])
        ]
        scores = heads[0] @ heads[1].transpose(1, 2) * 0.5
        if is_causal:
            scores += torch.full(scores.shape[1:], -torch.inf).triu(1)
        expected.append((scores.softmax(-1) @ heads[2]).transpose(0, 1).flatten(1))
    expected = torch.cat(expected)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weights).sum(), (q, v), retain_graph=True)
    others = torch.autograd.grad((expected * weights).sum(), (q, v))
    torch.testing.assert_close(gradients, others)
    assert torch.equal(sides[0].unpack(sides[0].pack(q)), q * queries.unsqueeze(-1))


def test_blocks_hold_sentences_of_like_length() -> None:
    lengths = torch.tensor([3, 100, 80, 4, 74, 1, 76])
    is_real = torch.arange(100) < lengths.unsqueeze(1)
    tokens = PackedTokens(is_real)
    blocks = PackedAttention(tokens, tokens, is_causal=True).shapes
    assert blocks == [(3, 100, 100), (1, 74, 74), (2, 4, 4), (1, 1, 1)]
