"""The forward pass and one update against the paper's formulas, written out here in NumPy.

Nothing below uses the model's own functions for what it expects: `Paper` is the whole Transformer
in float64, from sections 3.1 to 3.5.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from tests.conftest import randomise, tiny
from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.modeling_vanilla_transformer import (
    VanillaTransformerAttention,
    VanillaTransformerDecoderLayer,
    VanillaTransformerDropout,
    VanillaTransformerEncoderLayer,
    position_ids_from_mask,
    sinusoidal_positions,
)

Array = np.ndarray[Any, np.dtype[np.float64]]
LAYOUTS = ["interleaved", "concatenated", "concatenated_inclusive"]
pytestmark = pytest.mark.usefixtures("seeded")


def numbers(module: nn.Module) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


# ----------------------------------------------------------------------------- naive formulas


@functools.cache
def naive_sinusoid(position: int, dimension: int, d_model: int, layout: str) -> float:
    half = d_model // 2
    if layout == "interleaved":
        pair, is_sine = dimension // 2, dimension % 2 == 0
    else:
        pair, is_sine = dimension % half, dimension < half
    if layout == "concatenated_inclusive":
        angle = position * math.exp(-pair * math.log(10000) / (half - 1))
    else:
        angle = position / 10000 ** (2 * pair / d_model)
    return math.sin(angle) if is_sine else math.cos(angle)


def naive_attention(
    weights: dict[str, Array], asking: Array, asked: Array, heads: int, allowed: Array
) -> tuple[Array, Array]:
    """Equation 1 and section 3.2.2, one head and one position at a time.

    Args:
        weights: `q_proj.weight` and so on, and biases where there are any.
        asking: `[L, d]`, which the queries come from.
        asked: `[K, d]`, which keys and values come from.
        heads: h.
        allowed: `[L, K]`, whether position l may look at k.

    Returns:
        Output `[L, d]` and weights `[h, L, K]`.
    """

    def project(name: str, rows: Array) -> Array:
        result: Array = rows @ weights[f"{name}.weight"].T
        return result + weights.get(f"{name}.bias", 0.0)

    queries, keys = project("q_proj", asking), project("k_proj", asked)
    values = project("v_proj", asked)
    d_k, d_v = queries.shape[1] // heads, values.shape[1] // heads
    outputs = np.zeros((len(asking), heads * d_v))
    probabilities = np.zeros((heads, len(asking), len(asked)))
    for head in range(heads):
        for position in range(len(asking)):
            query = queries[position, head * d_k : (head + 1) * d_k]
            total = 0.0
            for other in range(len(asked)):
                if allowed[position, other]:
                    key = keys[other, head * d_k : (head + 1) * d_k]
                    share = math.exp(float(query @ key) / math.sqrt(d_k))
                    probabilities[head, position, other] = share
                    total += share
            probabilities[head, position] /= total
            for other in range(len(asked)):
                value = values[other, head * d_v : (head + 1) * d_v]
                part = probabilities[head, position, other] * value
                outputs[position, head * d_v : (head + 1) * d_v] += part
    return project("o_proj", outputs), probabilities


def naive_layer_norm(weights: dict[str, Array], name: str, rows: Array, eps: float) -> Array:
    mean = rows.mean(axis=-1, keepdims=True)
    variance = ((rows - mean) ** 2).mean(axis=-1, keepdims=True)
    normal = (rows - mean) / np.sqrt(variance + eps)
    result: Array = normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return result


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0.0),
    "swish": lambda x: x / (1.0 + np.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0))),
}


def naive_feed_forward(weights: dict[str, Array], rows: Array, activation: str = "relu") -> Array:
    """Equation 2."""
    inner = ACTIVATIONS[activation](rows @ weights["fc1.weight"].T + weights["fc1.bias"])
    result: Array = inner @ weights["fc2.weight"].T + weights["fc2.bias"]
    return result


def under(weights: dict[str, Array], prefix: str) -> dict[str, Array]:
    start = prefix + "."
    return {name[len(start) :]: w for name, w in weights.items() if name.startswith(start)}


class Paper:
    """The whole model (Figure 1) for one sentence pair without padding, in float64."""

    def __init__(self, weights: dict[str, Array], layers: int, heads: int, eps: float):
        self.weights, self.layers, self.heads, self.eps = weights, layers, heads, eps

    def attention(self, weights: dict[str, Array], x: Array, y: Array, causal: bool) -> Array:
        heads = []
        queries, keys, values = (
            rows @ weights[f"{name}_proj.weight"].T
            for name, rows in zip("qkv", (x, y, y), strict=True)
        )
        d_k, d_v = queries.shape[1] // self.heads, values.shape[1] // self.heads
        for i in range(self.heads):
            q, k = queries[:, i * d_k : (i + 1) * d_k], keys[:, i * d_k : (i + 1) * d_k]
            scores = q @ k.T / np.sqrt(d_k)
            if causal:
                scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = scores / scores.sum(axis=1, keepdims=True)
            heads.append(scores @ values[:, i * d_v : (i + 1) * d_v])
        result: Array = np.concatenate(heads, axis=1) @ weights["o_proj.weight"].T
        return result

    def embed(self, tokens: list[int]) -> Array:
        matrix = self.weights["lm_head.weight"]
        d_model = matrix.shape[1]
        positions = [
            [naive_sinusoid(p, i, d_model, "interleaved") for i in range(d_model)]
            for p in range(len(tokens))
        ]
        result: Array = matrix[tokens] * np.sqrt(d_model) + np.array(positions)
        return result

    def logits(self, source: list[int], target: list[int]) -> Array:
        """`[T, V]` for the decoder's input `target`."""
        encoded = self.embed(source)
        for layer in range(self.layers):
            w = under(self.weights, f"model.encoder.layers.{layer}")
            attended = self.attention(under(w, "self_attn"), encoded, encoded, causal=False)
            encoded = naive_layer_norm(w, "self_attn_layer_norm", encoded + attended, self.eps)
            fed = naive_feed_forward(w, encoded)
            encoded = naive_layer_norm(w, "ffn_layer_norm", encoded + fed, self.eps)
        x = self.embed(target)
        for layer in range(self.layers):
            w = under(self.weights, f"model.decoder.layers.{layer}")
            attended = self.attention(under(w, "self_attn"), x, x, causal=True)
            x = naive_layer_norm(w, "self_attn_layer_norm", x + attended, self.eps)
            attended = self.attention(under(w, "cross_attn"), x, encoded, causal=False)
            x = naive_layer_norm(w, "cross_attn_layer_norm", x + attended, self.eps)
            x = naive_layer_norm(w, "ffn_layer_norm", x + naive_feed_forward(w, x), self.eps)
        result: Array = x @ self.weights["lm_head.weight"].T
        return result

    def loss(self, pairs: list[tuple[list[int], list[int]]], smoothing: float) -> float:
        """Section 5.4, in nats per target token, decoding from `<s>` = 1."""
        total, count = 0.0, 0
        for source, labels in pairs:
            z = self.logits(source, [1, *labels[:-1]])
            log_p = z - z.max(axis=1, keepdims=True)
            log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
            for row, label in zip(log_p, labels, strict=True):
                total -= (1 - smoothing) * row[label] + smoothing * row.mean()
                count += 1
        return total / count


# ---------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d_model", [4, 16, 512])
def test_sinusoids_are_the_formula_s(layout: str, d_model: int) -> None:
    positions = [0, 1, 2, 63, 5000, 100_000]
    encoding = sinusoidal_positions(torch.tensor([positions]), d_model, layout)
    assert encoding.shape == (1, len(positions), d_model)
    assert encoding.dtype == torch.float32
    expected = [[naive_sinusoid(p, i, d_model, layout) for i in range(d_model)] for p in positions]
    # Half a unit in the last place of float32, at position 100,000 too: single-precision angles
    # would be wrong by 0.004 there.
    np.testing.assert_allclose(encoding[0].numpy(), expected, rtol=0, atol=6e-8)


def test_concatenated_is_the_table_of_marian_in_transformers() -> None:
    modeling_marian = pytest.importorskip("transformers.models.marian.modeling_marian")
    table = modeling_marian.MarianSinusoidalPositionalEmbedding(64, 32).create_weight()
    ours = sinusoidal_positions(torch.arange(64), 32, "concatenated")
    torch.testing.assert_close(ours, table, rtol=0, atol=1e-6)


def test_concatenated_inclusive_is_the_table_of_fsmt_in_transformers() -> None:
    modeling_fsmt = pytest.importorskip("transformers.models.fsmt.modeling_fsmt")
    table = modeling_fsmt.SinusoidalPositionalEmbedding.get_embedding(64, 32, None)
    ours = sinusoidal_positions(torch.arange(64), 32, "concatenated_inclusive")
    torch.testing.assert_close(ours, table, rtol=0, atol=1e-5)


def test_positions_count_real_tokens_only() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    expected = [[0, 1, 2, 2], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert position_ids_from_mask(mask).tolist() == expected
    assert position_ids_from_mask(mask.bool()).tolist() == expected


@pytest.mark.parametrize("position_encoding", [*LAYOUTS, "learned"])
@pytest.mark.parametrize("offset", [0, 3])
def test_embeddings_are_scaled_and_moved(position_encoding: str, offset: int) -> None:
    config = tiny(
        position_encoding=position_encoding, position_offset=offset, max_position_embeddings=12
    )
    encoder = VanillaTransformerForConditionalGeneration(config).eval().model.encoder
    ids = torch.tensor([[7, 5, 9, 2]])
    ours = encoder.embed(encoder.embed_tokens(ids), torch.arange(4).unsqueeze(0))[0]
    matrix = encoder.embed_tokens.weight.detach().double().numpy()
    for place, token in enumerate(ids[0].tolist()):
        if position_encoding == "learned":
            position = encoder.embed_positions.weight[place + offset].detach().double().numpy()
        else:
            position = np.array(
                [naive_sinusoid(place + offset, i, 16, position_encoding) for i in range(16)]
            )
        expected = matrix[token] * 4.0 + position
        np.testing.assert_allclose(ours[place].detach().numpy(), expected, atol=1e-6)


# ---------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("attention_bias", [False, True])
@pytest.mark.parametrize(("d_k", "d_v"), [(16, 16), (16, 32), (32, 16)])
@torch.no_grad()
def test_attention_is_equation_1(
    implementation: str, attention_bias: bool, d_k: int, d_v: int
) -> None:
    """Self-attention of the encoder, of the decoder, and attention to the encoder."""
    config = tiny(d_k=d_k, d_v=d_v, attention_bias=attention_bias)
    config._attn_implementation = implementation
    x, y = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    short, long = torch.ones(2, 5), torch.ones(2, 7)
    short[1, :2] = 0
    long[0, 4:] = 0
    masks = {
        "encoder": create_bidirectional_mask(config, x, short),
        "decoder": create_causal_mask(
            config=config, inputs_embeds=x, attention_mask=short, past_key_values=None
        ),
        "cross": create_bidirectional_mask(config, x, long, encoder_hidden_states=y),
    }
    for kind, mask in masks.items():
        attention = VanillaTransformerAttention(config, 0, is_causal=kind == "decoder").eval()
        randomise(attention)
        asked = y if kind == "cross" else None
        ours, weights = attention(x, key_value_states=asked, attention_mask=mask)
        real = long if kind == "cross" else short
        for row in range(2):
            allowed = np.tile(real[row].bool().numpy(), (5, 1))
            if kind == "decoder":
                allowed &= np.tri(5, dtype=bool)
            sees = allowed.any(axis=1)
            # What a position that sees nothing gets is not defined; it is padding itself.
            allowed[~sees] = True
            expected, probabilities = naive_attention(
                numbers(attention),
                x[row].double().numpy(),
                (x if asked is None else y)[row].double().numpy(),
                2,
                allowed,
            )
            np.testing.assert_allclose(ours[row, sees].numpy(), expected[sees], atol=1e-5)
            if implementation == "eager":
                assert weights is not None
                np.testing.assert_allclose(
                    weights[row][:, sees].numpy(), probabilities[:, sees], atol=1e-6
                )
            else:
                assert weights is None


@pytest.mark.parametrize("implementation_name", ["eager", "sdpa"])
@torch.no_grad()
def test_an_encoder_without_mask_sees_both_ways(implementation_name: str) -> None:
    """SDPA takes a module that does not say otherwise for a causal one."""
    config = tiny()
    config._attn_implementation = implementation_name
    attention = VanillaTransformerAttention(config, 0).eval()
    x = torch.randn(1, 4, 16)
    rows = x[0].double().numpy()
    expected, _ = naive_attention(
        numbers(attention), rows, rows, config.num_heads, np.ones((4, 4), bool)
    )
    np.testing.assert_allclose(attention(x)[0][0].numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_who_sees_whom(implementation: str) -> None:
    """Changing one token changes exactly what may see it."""
    model = VanillaTransformerForConditionalGeneration(tiny()).eval()
    model.set_attn_implementation(implementation)
    source, target = torch.randint(5, 19, (1, 6)), torch.randint(5, 19, (1, 5))

    def run(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = model(input_ids=source, decoder_input_ids=target)
        return outputs.encoder_last_hidden_state[0], outputs.logits[0]

    encoded, logits = run(source, target)
    changed = source.clone()
    changed[0, 5] = 5 + (changed[0, 5] - 4) % 14
    new_encoded, new_logits = run(changed, target)
    assert ((new_encoded - encoded).abs().amax(dim=-1) > 1e-4).all()
    assert ((new_logits - logits).abs().amax(dim=-1) > 1e-4).all()
    for place in range(5):
        changed = target.clone()
        changed[0, place] = 5 + (changed[0, place] - 4) % 14
        new_encoded, new_logits = run(source, changed)
        moved = (new_logits - logits).abs().amax(dim=-1) > 1e-4
        assert moved.tolist() == [p >= place for p in range(5)]
        torch.testing.assert_close(new_encoded, encoded)


# ------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("layer_norm_position", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "swish", "gelu"])
@torch.no_grad()
def test_encoder_layer(layer_norm_position: str, activation: str) -> None:
    config = tiny(layer_norm_position=layer_norm_position, activation=activation)
    layer = VanillaTransformerEncoderLayer(config, 0).eval()
    randomise(layer)
    w, x = numbers(layer), torch.randn(1, 5, 16)

    def attend(rows: Array) -> Array:
        everyone = np.ones((5, 5), dtype=bool)
        return naive_attention(under(w, "self_attn"), rows, rows, config.num_heads, everyone)[0]

    def feed(rows: Array) -> Array:
        return naive_feed_forward(w, rows, activation)

    expected = x[0].double().numpy()
    for name, sublayer in (("self_attn_layer_norm", attend), ("ffn_layer_norm", feed)):
        if layer_norm_position == "post":
            expected = naive_layer_norm(w, name, expected + sublayer(expected), 1e-6)
        else:
            expected = expected + sublayer(naive_layer_norm(w, name, expected, 1e-6))
    np.testing.assert_allclose(layer(x)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("layer_norm_position", ["post", "pre"])
@torch.no_grad()
def test_decoder_layer(layer_norm_position: str) -> None:
    """With a d_ff of its own; what it is to see, all of it or what is before, comes by the mask."""
    config = tiny(layer_norm_position=layer_norm_position, d_ff=8, decoder_d_ff=12)
    config._attn_implementation = "eager"
    layer = VanillaTransformerDecoderLayer(config, 0).eval()
    randomise(layer)
    assert layer.fc1.out_features == 12
    w, x, y = numbers(layer), torch.randn(1, 5, 16), torch.randn(1, 3, 16)
    memory = y[0].double().numpy()
    mask = torch.full((1, 1, 5, 5), torch.finfo(torch.float32).min).triu(1)

    def attend(rows: Array) -> Array:
        return naive_attention(
            under(w, "self_attn"), rows, rows, config.num_heads, np.tri(5, dtype=bool)
        )[0]

    def look(rows: Array) -> Array:
        everyone = np.ones((5, 3), dtype=bool)
        return naive_attention(under(w, "cross_attn"), rows, memory, config.num_heads, everyone)[0]

    def feed(rows: Array) -> Array:
        return naive_feed_forward(w, rows)

    expected = x[0].double().numpy()
    names = ("self_attn_layer_norm", "cross_attn_layer_norm", "ffn_layer_norm")
    for name, sublayer in zip(names, (attend, look, feed), strict=True):
        if layer_norm_position == "post":
            expected = naive_layer_norm(w, name, expected + sublayer(expected), 1e-6)
        else:
            # The encoder's output is no sub-layer input: only the queries are normalised.
            expected = expected + sublayer(naive_layer_norm(w, name, expected, 1e-6))
    ours = layer(x, mask, y)[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@torch.no_grad()
def test_pre_norm_normalises_the_output_of_each_stack() -> None:
    pre = VanillaTransformerForConditionalGeneration(tiny(layer_norm_position="pre")).eval()
    randomise(pre, 0.1)
    ids = torch.randint(5, 19, (1, 5))
    outputs = pre(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
    for stack, last in (
        (pre.model.encoder, outputs.encoder_last_hidden_state),
        (pre.model.decoder, outputs.decoder_hidden_states[-1]),
    ):
        w = {"n." + k: v for k, v in numbers(stack.layer_norm).items()}
        caught: list[torch.Tensor] = []
        handle = stack.layers[-1].register_forward_hook(
            lambda _module, _inputs, output, caught=caught: caught.append(output)
        )
        pre(input_ids=ids, decoder_input_ids=ids)
        handle.remove()
        expected = naive_layer_norm(w, "n", caught[0][0].double().numpy(), 1e-6)
        np.testing.assert_allclose(last[0].numpy(), expected, atol=1e-5)
    post = VanillaTransformerForConditionalGeneration(tiny())
    assert not hasattr(post.model.encoder, "layer_norm")
    assert not hasattr(post.model.decoder, "layer_norm")


# -------------------------------------------------------------------------------- whole model


@pytest.mark.parametrize(("d_k", "d_v"), [(None, None), (16, 32)])
@torch.no_grad()
def test_whole_forward_is_the_paper_s(
    implementation: str, d_k: int | None, d_v: int | None
) -> None:
    """Defaults everywhere but in size: what nobody sets must be what the paper says."""
    config = VanillaTransformerConfig(
        vocab_size=19,
        d_model=16,
        d_ff=24,
        num_heads=4,
        d_k=d_k,
        d_v=d_v,
        num_encoder_layers=2,
        num_decoder_layers=2,
    )
    model = VanillaTransformerForConditionalGeneration(config).eval()
    randomise(model, 0.2)
    model.set_attn_implementation(implementation)
    paper = Paper(numbers(model), layers=2, heads=4, eps=1e-6)
    source, target = [7, 12, 5, 18, 9, 2], [1, 6, 17, 8]
    ours = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits
    expected = paper.logits(source, target)
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours[0].numpy(), expected, rtol=1e-5, atol=2e-5)


def slopes(paper: Paper, pairs: list[tuple[list[int], list[int]]]) -> Iterator[tuple[str, Array]]:
    """The gradient of the paper's loss by each parameter, by central differences."""
    step = 1e-5
    for name, weight in paper.weights.items():
        gradient = np.zeros_like(weight)
        for place in np.ndindex(weight.shape):
            before = weight[place]
            weight[place] = before + step
            above = paper.loss(pairs, smoothing=0.1)
            weight[place] = before - step
            below = paper.loss(pairs, smoothing=0.1)
            weight[place] = before
            gradient[place] = (above - below) / (2 * step)
        yield name, gradient


def test_one_training_step_is_the_paper_s() -> None:
    """Smoothed loss, gradient and one update of Adam (5.3, 5.4), nothing shared with the model.

    The expected gradient comes from finite differences of the NumPy forward pass, sentence by
    sentence; the model sees both sentences in one padded batch.
    """
    config = VanillaTransformerConfig(
        vocab_size=9,
        d_model=4,
        d_ff=5,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout=0.0,
    )
    model = VanillaTransformerForConditionalGeneration(config).double().train()
    randomise(model, 0.3)
    names = [name for name, _ in model.named_parameters()]
    # The one matrix (3.4) goes by the output layer's name in `Paper`.
    tied = "model.shared.weight"
    weights = {"lm_head.weight" if n == tied else n: numbers(model)[n].copy() for n in names}
    paper = Paper(weights, layers=1, heads=2, eps=1e-6)
    pairs = [([7, 5, 8, 2], [6, 8, 2]), ([6, 2], [5, 5, 7, 8, 2])]

    input_ids = torch.tensor([[7, 5, 8, 2], [6, 2, 0, 0]])
    labels = torch.tensor([[6, 8, 2, -100, -100], [5, 5, 7, 8, 2]])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.98), eps=1e-9)
    loss = model(input_ids=input_ids, attention_mask=input_ids != 0, labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(paper.loss(pairs, smoothing=0.1), rel=1e-6)
    optimizer.step()

    parameters = dict(model.named_parameters())
    compared = 0
    for name, gradient in slopes(paper, pairs):
        parameter = parameters[tied if name == "lm_head.weight" else name]
        assert parameter.grad is not None
        np.testing.assert_allclose(
            parameter.grad.numpy(), gradient, rtol=1e-4, atol=1e-6, err_msg=name
        )
        # Kingma and Ba 2015, algorithm 1, at t = 1.
        first = (1 - 0.9) * gradient / (1 - 0.9)
        second = (1 - 0.98) * gradient**2 / (1 - 0.98)
        expected = weights[name] - 0.01 * first / (np.sqrt(second) + 1e-9)
        # Where the slope is nothing but rounding its sign, and so the step, is chance.
        sure = np.abs(gradient) > 1e-5
        compared += int(sure.sum())
        np.testing.assert_allclose(
            parameter.detach().numpy()[sure], expected[sure], rtol=0, atol=1e-6, err_msg=name
        )
    assert compared > 0.7 * sum(weight.size for weight in weights.values())


# ------------------------------------------------------------------------------------ dropout


def test_dropout_is_on_each_sublayer_s_output_and_on_the_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Section 5.4 names these places and no others: 1 + 2 N in the encoder, 1 + 3 N in the decoder.

    With each dropout replaced by zeros nothing but residuals is left, and they are all zero: it
    stands before the sum, not after it or the norm.
    """
    config = tiny(num_encoder_layers=3, num_decoder_layers=2, dropout=0.4)
    model = VanillaTransformerForConditionalGeneration(config).train()
    seen: list[nn.Dropout] = []
    stacks = {"encoder": 0, "decoder": 0}
    drops = {id(m): n.split(".")[1] for n, m in model.named_modules() if isinstance(m, nn.Dropout)}

    def forward(self: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        seen.append(self)
        stacks[drops[id(self)]] += 1
        return torch.zeros_like(x)

    monkeypatch.setattr(VanillaTransformerDropout, "forward", forward)
    ids = torch.randint(5, 19, (2, 6))
    outputs = model(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
    assert stacks == {"encoder": 1 + 2 * 3, "decoder": 1 + 3 * 2}
    assert all(drop.p == 0.4 for drop in seen)
    assert all(drop.training for drop in seen)
    assert (outputs.encoder_hidden_states[0] == 0).all()
    assert (outputs.logits == 0).all()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_is_torch_s_in_rate_and_scale(p: float) -> None:
    drop, x = VanillaTransformerDropout(p).train(), torch.ones(250, 403, requires_grad=True)
    y = drop(x)
    kept = y != 0
    # Three standard deviations of a binomial share of about 100,000 elements.
    sure = 3 * math.sqrt(p * (1 - p) / x.numel())
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=sure)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach())
    assert torch.equal(drop.eval()(x), x)


def test_dropout_decides_each_element_on_its_own() -> None:
    """Four elements come from one draw: no lane may follow another, nor be all the same."""
    drop = VanillaTransformerDropout(0.3).train()
    lanes = (drop(torch.ones(40_000)) != 0).float().reshape(-1, 4)
    assert (lanes.mean(dim=0) - 0.7).abs().max() < 3.5 * math.sqrt(0.21 / 10_000)
    correlation = torch.corrcoef(lanes.T) - torch.eye(4)
    assert correlation.abs().max() < 0.04
    neighbours = torch.corrcoef(torch.stack([lanes[:-1, 3], lanes[1:, 0]]))
    assert neighbours[0, 1].abs() < 0.04


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7), (0, 4)])
def test_dropout_of_any_shape_is_decided_by_the_seed(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    drop, x = VanillaTransformerDropout(0.5).train(), torch.randn(shape, dtype=dtype)
    torch.manual_seed(5)
    one = drop(x)
    torch.manual_seed(5)
    assert torch.equal(drop(x), one)
    assert one.shape == x.shape
    assert one.dtype == dtype
    # Not contiguous, as the attention's transposed output may be.
    assert drop(x.T if x.ndim == 2 else x).dtype == dtype


def test_nothing_drops_anywhere_else() -> None:
    """With the dropout modules switched off, training mode is evaluation mode."""
    for implementation in ("eager", "sdpa"):
        model = VanillaTransformerForConditionalGeneration(tiny(dropout=0.5))
        model.set_attn_implementation(implementation)
        ids = torch.randint(5, 19, (2, 6))
        evaluated = model.eval()(input_ids=ids, decoder_input_ids=ids).logits
        model.train()
        assert not torch.allclose(model(input_ids=ids, decoder_input_ids=ids).logits, evaluated)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trained = model(input_ids=ids, decoder_input_ids=ids).logits
        torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------ initialisation


@pytest.mark.parametrize("share", [True, False])
def test_initialisation(share: bool) -> None:
    """Xavier-uniform projections, embeddings N(0, 1/d_model), pad row and biases zero."""
    config = tiny(
        vocab_size=3000,
        d_model=64,
        d_ff=100,
        share_embeddings=share,
        pad_token_id=7,
        attention_bias=True,
        output_bias=True,
        tie_word_embeddings=share,
    )
    model = VanillaTransformerForConditionalGeneration(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if module.bias is not None:
                assert (module.bias == 0).all(), name
            if name == "lm_head" and share:
                continue
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert module.weight.abs().max() <= bound, name
            # The standard deviation of a uniform number is its bound / sqrt(3).
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        elif isinstance(module, nn.Embedding):
            others = torch.cat([module.weight[:7], module.weight[8:]])
            assert (module.weight[7] == 0).all(), name
            assert others.std().item() == pytest.approx(64**-0.5, rel=0.02), name
            assert others.mean().item() == pytest.approx(0.0, abs=1e-3), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name


def test_initialisation_is_decided_by_the_seed() -> None:
    def built(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return VanillaTransformerForConditionalGeneration(tiny()).state_dict()

    one, same, other = built(3), built(3), built(4)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
