"""The model's forward pass as decoding needs it: no modules, no gradients, no masks made twice.

What it computes is what `VanillaTransformerForConditionalGeneration` computes in evaluation mode.
What differs is where the numbers lie:

- The encoder sees the real tokens side by side, `[N, d]`; attention alone sees sentences.
- Queries, keys and values of self-attention come from one product.
- Keys and values of the source are stored once a sentence, whatever the number of its beams.
- So are those of the target: hypotheses of one sentence share what they have in common. A token of
  a hypothesis has a slot, and a mask says which hypothesis sees which slot. To go on with other
  hypotheses moves rows of the mask and no keys; a slot that none sees any more is used again.

Shapes: B sentences, k hypotheses of each (1 for greedy search), S source length, N real source
tokens, P slots in use, h heads, d = d_model, V target vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..modeling_vanilla_transformer import (
    PackedAttention,
    PackedTokens,
    VanillaTransformerAttention,
    VanillaTransformerDecoderLayer,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerLayer,
    VanillaTransformerStack,
    count_separators,
    position_ids_from_mask,
    sinusoidal_positions,
)
from .weights import Precision, Product, make_product

# Slots that a sentence has room for at first.
_FIRST_SLOTS = 32


class Norm:
    """Layer normalisation."""

    def __init__(self, module: nn.LayerNorm):
        self.shape, self.epsilon = module.normalized_shape, module.eps
        self.weight, self.bias = module.weight, module.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, d]` to `[rows, d]`."""
        return torch.layer_norm(x, self.shape, self.weight, self.bias, self.epsilon)


class Attention:
    """An attention layer (3.2.2) without what is stored.

    Attributes:
        inner: Product of the queries and, side by side with them, `stored_size` numbers of keys
            and values; for attention to the source of the queries alone.
        memory: Product of the source's keys and values, or None.
        outer: W^O.
        module: The layer itself, which transformers' attention functions ask for.
    """

    def __init__(self, module: VanillaTransformerAttention, is_cross: bool, precision: Precision):
        self.module = module
        self.d_k, self.d_v = module.d_k, module.d_v
        self.key_size, self.value_size = module.k_proj.out_features, module.v_proj.out_features
        self.stored_size = self.key_size + self.value_size
        queries, stored = [module.q_proj], [module.k_proj, module.v_proj]
        self.inner = _product(queries if is_cross else queries + stored, precision)
        self.memory = _product(stored, precision) if is_cross else None
        self.outer = _product([module.o_proj], precision)

    def split(self, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of `[B, P, stored_size]`: keys `[B, h, P, d_k]` and values `[B, h, P, d_v]`."""
        keys, values = stored.split([self.key_size, self.value_size], dim=-1)
        return (
            keys.unflatten(-1, (-1, self.d_k)).transpose(1, 2),
            values.unflatten(-1, (-1, self.d_v)).transpose(1, 2),
        )

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Softmax(Q K^T / sqrt(d_k)) V (3.2.1, eq. 1); W^O comes after it.

        Args:
            query: `[B L, h d_k]`, L queries a sentence.
            keys: `[B, h, P, d_k]`.
            values: `[B, h, P, d_v]`.
            mask: Added to the scores, `[B, 1, 1 or L, P]`.

        Returns:
            `[B L, h d_v]`.
        """
        query = query.view(keys.shape[0], -1, keys.shape[1], self.d_k).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, keys, values, mask)
        return attended.transpose(1, 2).reshape(-1, self.value_size)

    def attend_within(self, sentences: PackedAttention, inner: torch.Tensor) -> torch.Tensor:
        """The same for packed sentences, each within itself.

        Args:
            sentences: Who attends to whom.
            inner: Queries, keys and values, `[N, h d_k + stored_size]`.

        Returns:
            `[N, h d_v]`.
        """
        query, keys, values = inner.split([self.key_size, self.key_size, self.value_size], dim=1)
        return sentences.attend(
            ALL_ATTENTION_FUNCTIONS["sdpa"],
            self.module,
            query,
            keys,
            values,
            self.d_k,
            self.d_v,
            self.module.scaling,
        )


class Layer:
    """What an encoder and a decoder layer share (3.1, 3.3)."""

    def __init__(self, module: VanillaTransformerLayer, precision: Precision, activation: str):
        self.is_pre_norm = module.is_pre_norm
        self.attention = Attention(module.self_attn, is_cross=False, precision=precision)
        self.attention_norm = Norm(module.self_attn_layer_norm)
        self.expand = _product([module.fc1], precision, activation)
        self.contract = _product([module.fc2], precision)
        self.feed_forward_norm = Norm(module.ffn_layer_norm)

    def enter(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """What a sub-layer reads, `[rows, d]`."""
        return norm(x) if self.is_pre_norm else x

    def leave(self, x: torch.Tensor, output: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The residual connection around a sub-layer, `[rows, d]`; overwrites its output."""
        output.add_(x)
        return output if self.is_pre_norm else norm(output)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last sub-layer, `[rows, d]` to `[rows, d]`."""
        output = self.contract(self.expand(self.enter(x, self.feed_forward_norm)))
        return self.leave(x, output, self.feed_forward_norm)


class DecoderLayer(Layer):
    """With attention to the source."""

    def __init__(
        self, module: VanillaTransformerDecoderLayer, precision: Precision, activation: str
    ):
        super().__init__(module, precision, activation)
        self.cross_attention = Attention(module.cross_attn, is_cross=True, precision=precision)
        self.cross_attention_norm = Norm(module.cross_attn_layer_norm)


class Embedding:
    """Embeddings times sqrt(d), positions added (3.4, 3.5)."""

    def __init__(self, stack: VanillaTransformerStack):
        config = stack.config
        self.matrix = stack.embed_tokens.weight
        self.scale = math.sqrt(config.d_model)
        self.offset, self.layout = config.position_offset, config.position_encoding
        is_learned = self.layout == "learned"
        self.table = stack.embed_positions.weight if is_learned else self.matrix[:0]

    def positions(self, count: int) -> torch.Tensor:
        """Encodings of the positions from 0, at least `count` of them: `[count or more, d]`."""
        if self.layout != "learned" and len(self.table) < count + self.offset:
            numbers = torch.arange(2 * (count + self.offset), device=self.matrix.device)
            table = sinusoidal_positions(numbers, self.matrix.shape[1], self.layout)
            self.table = table.to(self.matrix.dtype)
        return self.table[self.offset :]

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Ids `[rows]` and encodings `[rows, d]` or `[d]` to `[rows, d]`."""
        return F.embedding(ids, self.matrix).mul_(self.scale).add_(positions)


class Source:
    """What the decoder sees of the source.

    Attributes:
        stored: Of each decoder layer keys and values, `[B, S, stored_size]`.
        lengths: Real tokens, `[B]`; they stand first, padding after them.
    """

    def __init__(self, stored: list[torch.Tensor], lengths: torch.Tensor):
        self.stored, self.lengths = stored, lengths

    def keep(self, sentences: torch.Tensor) -> None:
        """Forgets all but some sentences."""
        self.lengths = self.lengths[sentences]
        longest = int(self.lengths.max())
        self.stored = [stored[:, :longest].index_select(0, sentences) for stored in self.stored]

    def mask(self) -> torch.Tensor | None:
        """What to add to scores, `[B, 1, 1, S]`; None where there is no padding."""
        length = self.stored[0].shape[1]
        if int(self.lengths.min()) == length:
            return None
        steps = torch.arange(length, device=self.lengths.device)
        return _closed(steps >= self.lengths.unsqueeze(1), self.stored[0].dtype)[:, None, None]


class Network:
    """The whole model on weights that are ready for decoding.

    It refers to the model's embeddings and norms and has a copy of all other matrices: 4 bytes a
    parameter of linear layers, 1 byte for int8.

    Args:
        model: Its weights must stay as they are.
        precision: Of its linear layers.
    """

    def __init__(self, model: VanillaTransformerForConditionalGeneration, precision: Precision):
        encoder, decoder = model.model.encoder, model.model.decoder
        self.config = config = model.config
        self.is_pre_norm = config.layer_norm_position == "pre"
        self.source_embedding, self.target_embedding = Embedding(encoder), Embedding(decoder)
        self.segments = encoder.embed_segments.weight if config.num_segments else None
        self.encoder_layers = [
            Layer(layer, precision, config.activation) for layer in encoder.layers
        ]
        self.decoder_layers = [
            DecoderLayer(layer, precision, config.activation) for layer in decoder.layers
        ]
        has_norm = config.final_layer_norm
        self.encoder_norm = Norm(encoder.layer_norm) if has_norm else None
        self.decoder_norm = Norm(decoder.layer_norm) if has_norm else None
        self.output = _product([model.lm_head], precision)

    def encode(self, input_ids: torch.Tensor, is_real: torch.Tensor) -> Source:
        """Reads the source.

        Args:
            input_ids: `[B, S]`.
            is_real: `[B, S]`, False for padding on either side; a token in every row.
        """
        tokens = PackedTokens(is_real)
        sentences = PackedAttention(tokens, tokens, is_causal=False)
        table = self.source_embedding.positions(input_ids.shape[1])
        positions = table.index_select(0, tokens.pack(position_ids_from_mask(is_real)))
        x = self.source_embedding(tokens.pack(input_ids), positions)
        if self.segments is not None:
            _, before = count_separators(input_ids, is_real, self.config.eos_token_id)
            x = x.add_(F.embedding(tokens.pack((before > 0).long()), self.segments))
        for layer in self.encoder_layers:
            inner = layer.attention.inner(layer.enter(x, layer.attention_norm))
            attended = layer.attention.outer(layer.attention.attend_within(sentences, inner))
            x = layer.leave(x, attended, layer.attention_norm)
            x = layer.feed_forward(x)
        if self.encoder_norm is not None:
            x = self.encoder_norm(x)
        # In a row of its own each sentence begins at the left, wherever its padding was.
        rows, _ = tokens.rows_of(torch.arange(len(input_ids), device=input_ids.device))
        stored = []
        for layer in self.decoder_layers:
            assert layer.cross_attention.memory is not None
            memory = layer.cross_attention.memory(x)
            stored.append(memory.index_select(0, rows.flatten()).view(*rows.shape, -1))
        return Source(stored, tokens.lengths)


class Decoder:
    """The decoder in the middle of its work: what it has stored, and its next step.

    It starts with one hypothesis a sentence.

    Args:
        network: Weights.
        source: Of each sentence; `keep` changes it.
        num_steps: At most. Memory for 32 is taken at first, and twice as much where it ends.
    """

    def __init__(self, network: Network, source: Source, num_steps: int):
        self.network, self.source = network, source
        self.step_number = 0
        # Slots in use, of all sentences' hypotheses.
        self.used = 0
        # Which hypothesis sees which slot, `[B, k, slots]`; None while there is one hypothesis.
        self.is_seen: torch.Tensor | None = None
        count, first = len(source.lengths), source.stored[0]
        slots = min(num_steps, _FIRST_SLOTS)
        # Zeros: what was never written is masked, yet times 0 must not be NaN.
        self.stored = [
            first.new_zeros(count, slots, layer.attention.stored_size)
            for layer in network.decoder_layers
        ]
        self._make_views()

    def _make_views(self) -> None:
        layers = self.network.decoder_layers
        self.views = [
            (*layer.attention.split(stored), *layer.cross_attention.split(memory))
            for layer, stored, memory in zip(layers, self.stored, self.source.stored, strict=True)
        ]
        self.source_mask = self.source.mask()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reads the next token of each hypothesis, `[B, k]`, and gives its state `[B k, d]`."""
        network, position = self.network, self.step_number
        self.step_number += 1
        self._grow(self.used + tokens.shape[1])
        slots = mask = None
        if self.is_seen is None:
            self.used += 1
        else:
            slots = self._take_slots(self.is_seen)
            mask = _closed(~self.is_seen[:, :, : self.used], self.stored[0].dtype).unsqueeze(1)
        table = network.target_embedding.positions(position + 1)
        x = network.target_embedding(tokens.flatten(), table[position])
        for layer, stored, views in zip(
            network.decoder_layers, self.stored, self.views, strict=True
        ):
            attention, norm = layer.attention, layer.attention_norm
            inner = attention.inner(layer.enter(x, norm))
            new = inner[:, -attention.stored_size :]
            if slots is None:
                stored[:, self.used - 1] = new
            else:
                stored.view(-1, attention.stored_size).index_copy_(0, slots, new)
            keys, values, source_keys, source_values = views
            attended = attention.attend(
                inner[:, : -attention.stored_size],
                keys[:, :, : self.used],
                values[:, :, : self.used],
                mask,
            )
            x = layer.leave(x, attention.outer(attended), norm)
            attention, norm = layer.cross_attention, layer.cross_attention_norm
            query = attention.inner(layer.enter(x, norm))
            attended = attention.attend(query, source_keys, source_values, self.source_mask)
            x = layer.leave(x, attention.outer(attended), norm)
            x = layer.feed_forward(x)
        return x if network.decoder_norm is None else network.decoder_norm(x)

    def _take_slots(self, is_seen: torch.Tensor) -> torch.Tensor:
        """A free slot for the next token of each hypothesis, as rows of all slots: `[B k]`."""
        sentences, hypotheses, capacity = is_seen.shape
        reach = self.used + hypotheses
        numbers = torch.arange(reach, device=is_seen.device)
        # The first that are free: the others stay together, and few have to be masked.
        taken = is_seen[:, :, :reach].any(dim=1)
        slots = (numbers + taken * reach).topk(hypotheses, largest=False).values
        is_seen.scatter_(2, slots.unsqueeze(2), True)
        self.used = max(self.used, int(slots.max()) + 1)
        rows = torch.arange(sentences, device=is_seen.device).unsqueeze(1) * capacity
        return (slots + rows).flatten()

    def _grow(self, slots: int) -> None:
        """Makes room for so many slots a sentence."""
        capacity = self.stored[0].shape[1]
        if slots <= capacity:
            return
        more = max(slots, 2 * capacity) - capacity
        self.stored = [F.pad(stored, (0, 0, 0, more)) for stored in self.stored]
        if self.is_seen is not None:
            self.is_seen = F.pad(self.is_seen, (0, more))
        self._make_views()

    def follow(self, parents: torch.Tensor) -> None:
        """Goes on with other hypotheses: of each the number of the one that it continues, `[B, k]`.

        The first time the only hypothesis has several continuations.
        """
        if self.is_seen is None:
            capacity = self.stored[0].shape[1]
            self.is_seen = torch.zeros(
                *parents.shape, capacity, dtype=torch.bool, device=parents.device
            )
            self.is_seen[:, :, : self.used] = True
        else:
            index = parents.unsqueeze(2).expand(-1, -1, self.is_seen.shape[2])
            self.is_seen = self.is_seen.gather(1, index)

    def keep(self, sentences: torch.Tensor) -> None:
        """Forgets all but some sentences, `[B']`."""
        self.source.keep(sentences)
        self.stored = [stored.index_select(0, sentences) for stored in self.stored]
        if self.is_seen is not None:
            self.is_seen = self.is_seen.index_select(0, sentences)
            self.used = int(self.is_seen.any(dim=1).any(dim=0).nonzero().max()) + 1
        self._make_views()


def _product(
    modules: Sequence[nn.Linear], precision: Precision, activation: str | None = None
) -> Product:
    weights, biases = [m.weight for m in modules], [m.bias for m in modules]
    return make_product(weights, biases, precision, activation)


def _closed(is_closed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Minus infinity where something must not be looked at, zero elsewhere."""
    zeros = torch.zeros(is_closed.shape, dtype=dtype, device=is_closed.device)
    return zeros.masked_fill_(is_closed, -math.inf)
