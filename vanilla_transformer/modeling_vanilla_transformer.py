"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017), top to bottom.

Read in order: positions (3.5), attention (3.2), encoder and decoder layers (3.1, 3.3), the two
stacks, the loss (5.4), the model and its heads. This file travels to the Hub with every model: it
imports nothing but torch, transformers and the configuration.

Shapes: B batch, S source length, T target length, L length of either, K keys attended to,
h heads, d = d_model, V target vocabulary, N target tokens that count in the loss.
"""

import copy
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    Seq2SeqSequenceClassifierOutput,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import (
    ALL_ATTENTION_FUNCTIONS,
    PreTrainedModel,
    slice_logits_to_keep,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_vanilla_transformer import VanillaTransformerConfig

if TYPE_CHECKING:
    # Not used here: what a model's code is saved with is what this file names.
    from .pipeline_vanilla_transformer import TranslationPipeline as _TranslationPipeline  # noqa: F401

# Labels of padding and of whatever else the loss leaves out.
IGNORE_INDEX = -100

_LOG2_E = math.log2(math.e)

# ----------------------------------------------------------------------------------- positions


def sinusoidal_positions(positions: torch.Tensor, d_model: int, layout: str) -> torch.Tensor:
    """Positional encoding of any positions (3.5): no table, hence no last position.

    Args:
        positions: `[..., L]`, integers.
        d_model: d, even.
        layout: A sinusoidal value of the config's `position_encoding`.

    Returns:
        `[..., L, d]`, computed in double precision (single on Apple GPUs, which have no other)
        so that far positions keep their digits; float32.
    """
    dtype = torch.float32 if positions.device.type == "mps" else torch.float64
    half = d_model // 2
    pair = torch.arange(half, device=positions.device, dtype=dtype)
    if layout == "concatenated_inclusive":
        exponent = pair / (half - 1)
    else:
        exponent = 2 * pair / d_model
    angles = positions.to(dtype).unsqueeze(-1) * torch.pow(10000.0, -exponent)
    if layout == "interleaved":
        encoding = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    else:
        encoding = torch.cat((angles.sin(), angles.cos()), dim=-1)
    return encoding.float()


def position_ids_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions counted over real tokens only, so that padding on either side moves nothing.

    Args:
        attention_mask: `[B, L]`, 1 for tokens and 0 for padding.

    Returns:
        `[B, L]`; padding gets a position too, which nothing attends to.
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)


def count_separators(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    eos_token_id: int | list[int] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the texts of `A </s> B </s>` end, and so what belongs to A and what to B.

    Args:
        input_ids: `[B, L]`.
        attention_mask: `[B, L]`, or None where every token counts. Padding separates nothing, even
            where a model pads with `</s>`.
        eos_token_id: `</s>`, one id or several.

    Returns:
        Which tokens are separators, `[B, L]`, and how many stand before each token, `[B, L]`.

    Raises:
        ValueError: The model has no `</s>`.
    """
    if eos_token_id is None:
        raise ValueError(
            "eos_token_id is None, so that nothing tells the first text from the second: set it "
            "in the config, or pass token_type_ids (segments) or context_mask (question answering)"
        )
    ids = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
    is_separator = torch.stack([input_ids == token_id for token_id in ids]).any(dim=0)
    if attention_mask is not None and attention_mask.ndim == 2:
        is_separator = is_separator & attention_mask.bool()
    return is_separator, is_separator.long().cumsum(dim=-1) - is_separator.long()


# ----------------------------------------------------------------------------------- attention


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention, softmax(Q K^T / sqrt(d_k)) V (3.2.1, eq. 1), as written.

    Args:
        module: The attention layer; unused, part of transformers' attention interface.
        query: `[B, h, L, d_k]`.
        key: `[B, h, K, d_k]`.
        value: `[B, h, K, d_v]`.
        attention_mask: Added to the scores, `[B, 1, L, K]`: 0 or the lowest number.
        scaling: 1 / sqrt(d_k).

    Returns:
        Output `[B, L, h, d_v]` and weights `[B, h, L, K]`.
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class _SpreadRows(torch.autograd.Function):
    """`[N, d]` to `[R, d]` by `rows` `[R]`, in which rows that stand for padding repeat others.

    `places` `[N]` says where each row itself went. Nothing is ever learned from padding, so that
    the gradient is read there, which costs a tenth of summing over all that `rows` names.
    """

    @staticmethod
    def forward(
        ctx: Any, packed: torch.Tensor, rows: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(places)
        return packed.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _CollectRows(torch.autograd.Function):
    """`[R, d]` to `[N, d]` by `places` `[N]`, all different; what stands elsewhere is padding."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.count = rows.shape[0]
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        spread = grad.new_zeros(ctx.count, *grad.shape[1:])
        return spread.index_copy_(0, places, grad), None


class PackedTokens:
    """The real tokens of a padded batch side by side: `[N, d]` for `[B, L, d]`.

    What a Transformer computes for each token by itself (3.3: linear layers, norms, dropout) it
    computes for these rows alone; attention sees them through `PackedAttention`.

    Args:
        is_real: `[B, L]`; padding may be anywhere, but no row may be all padding.
    """

    def __init__(self, is_real: torch.Tensor):
        self.shape = is_real.shape
        self.places = is_real.flatten().nonzero().squeeze(1)
        self.lengths = is_real.sum(dim=1)
        # The packed row in which a sentence begins.
        self.starts = self.lengths.cumsum(0) - self.lengths

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """`[B, L, ...]`, or `[1, L, ...]` for all alike, to `[N, ...]`."""
        padded = padded.expand(*self.shape, *padded.shape[2:])
        return _CollectRows.apply(padded.flatten(0, 1), self.places)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """`[N, d]` to `[B, L, d]`, zero where padding is."""
        padded = packed.new_zeros(self.shape.numel(), packed.shape[-1])
        return padded.index_copy(0, self.places, packed).view(*self.shape, -1)

    def rows_of(self, sentences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed rows of some sentences `[b]`, and which of them are no padding: both `[b, l]`."""
        lengths = self.lengths[sentences].unsqueeze(1)
        steps = torch.arange(int(lengths.max()), device=sentences.device)
        return self.starts[sentences].unsqueeze(1) + steps.minimum(lengths - 1), steps < lengths


class PackedAttention:
    """Who attends to whom among packed tokens: takes an attention mask's place.

    Attention alone needs sentences apart. They come in padded blocks of like length, so that the
    longest sentence of a batch does not set the cost of all.

    Args:
        queries: The tokens that attend.
        keys: Those attended to, of the same sentences: `queries` itself, or the source.
        is_causal: Whether a token sees only itself and those before.
    """

    def __init__(self, queries: PackedTokens, keys: PackedTokens, is_causal: bool):
        self.masks: list[torch.Tensor | None] = []
        # Of each block: sentences, longest query, longest key.
        self.shapes: list[tuple[int, int, int]] = []
        rows: list[tuple[torch.Tensor, ...]] = []
        for sentences in self._blocks(torch.maximum(queries.lengths, keys.lengths)):
            query_rows, is_query = queries.rows_of(sentences)
            key_rows, is_key = keys.rows_of(sentences)
            self.shapes.append((len(sentences), query_rows.shape[1], key_rows.shape[1]))
            # Padding comes last, where a causal attention does not look.
            is_open = is_causal or bool(is_key.all())
            self.masks.append(None if is_open else is_key[:, None, None, :])
            rows.append(tuple(x.flatten() for x in (query_rows, is_query, key_rows, is_key)))
        self.query_rows, is_query, self.key_rows, is_key = map(torch.cat, zip(*rows, strict=True))
        self.query_places = self._places(self.query_rows, is_query)
        self.key_places = self._places(self.key_rows, is_key)

    @staticmethod
    def _blocks(lengths: torch.Tensor) -> list[torch.Tensor]:
        """Sentences, longest first, in groups none of which is below 3/4 of its group's longest."""
        sorted_lengths, order = lengths.sort(descending=True, stable=True)
        sizes: list[int] = []
        longest = 0
        for length in sorted_lengths.tolist():
            if not sizes or length < 0.75 * longest:
                sizes.append(0)
                longest = length
            sizes[-1] += 1
        return list(order.split(sizes))

    @staticmethod
    def _places(rows: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        """Where each packed row stands among `rows`."""
        positions = is_real.nonzero().squeeze(1)
        places = torch.empty_like(positions)
        places[rows[positions]] = positions
        return places

    def attend(
        self,
        attend: Callable,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        d_k: int,
        d_v: int,
        scaling: float,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention block by block, by an implementation of transformers' attention interface.

        Args:
            attend: The implementation, one that takes masks as SDPA does.
            module: The attention layer.
            query: `[N, h d_k]`.
            key: `[M, h d_k]`.
            value: `[M, h d_v]`.
            d_k: Of one head.
            d_v: Of one head.
            scaling: 1 / sqrt(d_k).

        Returns:
            `[N, h d_v]`.
        """
        query_sizes = [count * length for count, length, _ in self.shapes]
        key_sizes = [count * length for count, _, length in self.shapes]
        queries = _SpreadRows.apply(query, self.query_rows, self.query_places).split(query_sizes)
        keys = _SpreadRows.apply(key, self.key_rows, self.key_places).split(key_sizes)
        values = _SpreadRows.apply(value, self.key_rows, self.key_places).split(key_sizes)
        attended = []
        for (count, *_), mask, *block in zip(
            self.shapes, self.masks, queries, keys, values, strict=True
        ):
            q, k, v = (
                rows.view(count, -1, rows.shape[-1] // size, size).transpose(1, 2)
                for rows, size in zip(block, (d_k, d_k, d_v), strict=True)
            )
            output = attend(module, q, k, v, mask, scaling=scaling, dropout=0.0, **kwargs)[0]
            attended.append(output.reshape(-1, value.shape[-1]))
        return _CollectRows.apply(torch.cat(attended), self.query_places)


class VanillaTransformerAttention(nn.Module):
    """Multi-head attention (3.2.2), as self-attention and as encoder-decoder attention.

    `q_proj`, `k_proj`, `v_proj` hold the W_i^Q, W_i^K, W_i^V of all heads, `o_proj` is W^O.
    """

    def __init__(self, config: VanillaTransformerConfig, layer_idx: int, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        # SDPA takes an attention without this attribute for a causal one.
        self.is_causal = is_causal
        assert config.d_k is not None
        assert config.d_v is not None
        self.d_k, self.d_v = config.d_k, config.d_v
        self.scaling = self.d_k**-0.5
        keys, values = config.num_heads * self.d_k, config.num_heads * self.d_v
        self.q_proj = nn.Linear(config.d_model, keys, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.d_model, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.d_model, values, bias=config.attention_bias)
        self.o_proj = nn.Linear(values, config.d_model, bias=config.attention_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | PackedAttention | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends from `hidden_states` `[B, L, d]` to itself or to `key_value_states` `[B, S, d]`.

        With a `PackedAttention` for a mask both are packed, `[N, d]` and `[M, d]`.

        The cached keys and values of encoder-decoder attention are projected at the first step and
        only read after it: the encoder's output does not change while the decoder writes.

        Returns:
            Output `[B, L, d]`, and weights `[B, h, L, K]` where the implementation has them.
        """
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if isinstance(attention_mask, PackedAttention):
            source = hidden_states if key_value_states is None else key_value_states
            attended = attention_mask.attend(
                attend,
                self,
                self.q_proj(hidden_states),
                self.k_proj(source),
                self.v_proj(source),
                self.d_k,
                self.d_v,
                self.scaling,
                **kwargs,
            )
            return self.o_proj(attended), None

        shape = hidden_states.shape[:-1]
        # The number of heads is inferred: tensor parallelism leaves each process a part of them.
        query = self.q_proj(hidden_states).view(*shape, -1, self.d_k).transpose(1, 2)

        is_cross_attention = key_value_states is not None
        cache, is_filled = past_key_values, False
        if isinstance(past_key_values, EncoderDecoderCache):
            if is_cross_attention:
                cache = past_key_values.cross_attention_cache
                is_filled = past_key_values.is_updated.get(self.layer_idx, False)
            else:
                cache = past_key_values.self_attention_cache
        if cache is not None and is_filled:
            key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        else:
            source = hidden_states if key_value_states is None else key_value_states
            key = self.k_proj(source).view(*source.shape[:-1], -1, self.d_k).transpose(1, 2)
            value = self.v_proj(source).view(*source.shape[:-1], -1, self.d_v).transpose(1, 2)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
                if is_cross_attention and isinstance(past_key_values, EncoderDecoderCache):
                    past_key_values.is_updated[self.layer_idx] = True

        attended, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs
        )
        return self.o_proj(attended.reshape(*shape, -1).contiguous()), weights


# -------------------------------------------------------------------------------------- layers


class VanillaTransformerDropout(nn.Dropout):
    """Dropout (5.4) that costs a sixth of torch's on a CPU, and is torch's own elsewhere.

    torch draws there one number after another for each element. Here one 64-bit draw of the same
    generator decides four elements, by 16 bits each: P_drop is rounded to a multiple of 2^-16.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zeroes elements with probability P_drop and scales the others by 1 / (1 - P_drop)."""
        if (
            not self.training
            or self.p == 0
            or hidden_states.device.type != "cpu"
            or torch.compiler.is_compiling()
        ):
            return super().forward(hidden_states)
        count = hidden_states.numel()
        draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        lanes = draws.view(torch.int16)[:count].view(hidden_states.shape)
        is_kept = lanes >= round(self.p * 2**16) - 2**15
        return hidden_states * is_kept.to(hidden_states.dtype).mul_(1 / (1 - self.p))


class VanillaTransformerLayer(GradientCheckpointingLayer):
    """What an encoder and a decoder layer share: self-attention, feed-forward, residual sums."""

    def __init__(
        self, config: VanillaTransformerConfig, layer_idx: int, d_ff: int, is_causal: bool
    ):
        super().__init__()
        self.is_pre_norm = config.layer_norm_position == "pre"
        self.self_attn = VanillaTransformerAttention(config, layer_idx, is_causal=is_causal)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        # W_1 and W_2 of FFN(x) = max(0, x W_1 + b_1) W_2 + b_2 (3.3, eq. 2).
        self.fc1 = nn.Linear(config.d_model, d_ff)
        self.activation = ACT2FN[config.activation]
        self.fc2 = nn.Linear(d_ff, config.d_model)
        self.ffn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dropout = VanillaTransformerDropout(config.dropout)

    def add_sublayer(
        self,
        hidden_states: torch.Tensor,
        layer_norm: nn.LayerNorm,
        sublayer: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The residual connection around a sub-layer, `[B, L, d]` to `[B, L, d]`.

        Post-norm (3.1): LayerNorm(x + Sublayer(x)). Pre-norm is a different model: its checkpoints
        would load as post-norm in silence and translate badly.
        """
        if self.is_pre_norm:
            return hidden_states + self.dropout(sublayer(layer_norm(hidden_states)))
        return layer_norm(hidden_states + self.dropout(sublayer(hidden_states)))

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The position-wise feed-forward network (3.3, eq. 2), `[B, L, d]` to `[B, L, d]`."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class VanillaTransformerEncoderLayer(VanillaTransformerLayer):
    """Self-attention, then feed-forward (3.1)."""

    def __init__(self, config: VanillaTransformerConfig, layer_idx: int):
        super().__init__(config, layer_idx, d_ff=config.d_ff, is_causal=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """`[B, S, d]` to `[B, S, d]`; `attention_mask` as the implementation wants it."""

        def self_attention(x: torch.Tensor) -> torch.Tensor:
            return self.self_attn(x, attention_mask=attention_mask, **kwargs)[0]

        hidden_states = self.add_sublayer(hidden_states, self.self_attn_layer_norm, self_attention)
        return self.add_sublayer(hidden_states, self.ffn_layer_norm, self.feed_forward)


class VanillaTransformerDecoderLayer(VanillaTransformerLayer):
    """Masked self-attention, attention to the encoder's output, then feed-forward (3.1).

    The middle sub-layer is absent where there is no encoder (`is_encoder_decoder=False`).
    """

    def __init__(self, config: VanillaTransformerConfig, layer_idx: int):
        assert config.decoder_d_ff is not None
        super().__init__(config, layer_idx, d_ff=config.decoder_d_ff, is_causal=True)
        if config.is_encoder_decoder:
            self.cross_attn = VanillaTransformerAttention(config, layer_idx)
            self.cross_attn_layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """`[B, T, d]` and the encoder's `[B, S, d]` to `[B, T, d]`."""

        def self_attention(x: torch.Tensor) -> torch.Tensor:
            return self.self_attn(
                x, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
            )[0]

        def cross_attention(x: torch.Tensor) -> torch.Tensor:
            return self.cross_attn(
                x,
                key_value_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )[0]

        hidden_states = self.add_sublayer(hidden_states, self.self_attn_layer_norm, self_attention)
        if encoder_hidden_states is not None:
            hidden_states = self.add_sublayer(
                hidden_states, self.cross_attn_layer_norm, cross_attention
            )
        return self.add_sublayer(hidden_states, self.ffn_layer_norm, self.feed_forward)


# -------------------------------------------------------------------------------------- stacks


class VanillaTransformerPreTrainedModel(PreTrainedModel):
    """Initialisation and what the model can do, for every class below."""

    config: VanillaTransformerConfig
    config_class = VanillaTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VanillaTransformerEncoderLayer", "VanillaTransformerDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _tp_plan: dict[str, str]

    def init_parallel_plans(self) -> None:
        """Keeps what tensor parallelism splits to the linear layers that this model has.

        transformers adds the embeddings, as slices of the vocabulary, which the output layer and
        the other stack, tied to the same matrix, could not read.
        """
        super().init_parallel_plans()
        names = {re.sub(r"\.\d+\.", ".*.", name) for name, _ in self.named_modules()}
        self._tp_plan = {
            name: style
            for name, style in self._tp_plan.items()
            if name in names and not name.endswith("embed_tokens")
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform projections (Tensor2Tensor), embeddings N(0, 1/d_model), zero biases.

        The embedding's variance is what makes the product with sqrt(d_model) (3.4) of unit size.
        The pad's embedding is zero, and so are those of segments: a checkpoint that never knew
        any computes with them what it did without.
        """
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, VanillaTransformerSegmentEmbedding):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.d_model**-0.5)
            is_loaded = getattr(module.weight, "_is_hf_initialized", False)
            if module.padding_idx is not None and not is_loaded:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def _loss_and_logits(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The end of every language-modelling head, from `[B, T, d]`.

        Returns:
            In training mode with labels the smoothed loss and no logits; else logits `[B, T, V]`
            of the positions to keep and, with labels, the plain loss of all positions.
        """
        if labels is not None and self.training:
            smoothing = self.config.label_smoothing
            loss = language_model_loss(
                hidden_states, self.lm_head, labels, smoothing, num_items_in_batch
            )
            return loss, None
        if labels is not None:
            logits = self.lm_head(hidden_states)
            loss = negative_log_likelihood(logits, labels, num_items_in_batch)
            return loss, slice_logits_to_keep(logits, logits_to_keep)
        return None, self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As in transformers; where source and target have matrices of their own, both change.

        With two vocabularies (`decoder_vocab_size`) it resizes the source's, and
        `resize_decoder_token_embeddings` the target's.
        """
        is_resized = new_num_tokens is not None or pad_to_multiple_of is not None
        if self._has_separate_embeddings() and is_resized:
            resized = self._get_resized_embeddings(
                self.get_input_embeddings(), new_num_tokens, pad_to_multiple_of, mean_resizing
            )
            self.set_input_embeddings(resized)
            self.config.vocab_size = resized.weight.shape[0]
            if self.config.decoder_vocab_size is None:
                self._resize_decoder(new_num_tokens, pad_to_multiple_of, mean_resizing)
            return resized
        resized = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        # The one matrix is the target's too, except where there is no decoder.
        if self.config.decoder_vocab_size is not None and hasattr(self.base_model, "decoder"):
            self.config.decoder_vocab_size = resized.weight.shape[0]
        return resized

    def resize_decoder_token_embeddings(
        self,
        new_num_tokens: int,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resizes the target vocabulary of a model that has two.

        Raises:
            ValueError: There is one vocabulary only.
        """
        if self.config.decoder_vocab_size is None or not self._has_separate_embeddings():
            raise ValueError(
                "resize_decoder_token_embeddings needs a model with two vocabularies "
                "(decoder_vocab_size); here resize_token_embeddings changes all matrices"
            )
        resized = self._resize_decoder(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.decoder_vocab_size = resized.weight.shape[0]
        return resized

    def _has_separate_embeddings(self) -> bool:
        model = self.base_model
        has_both = hasattr(model, "encoder") and hasattr(model, "decoder")
        return has_both and not self.config.share_embeddings

    def _resize_decoder(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None, mean_resizing: bool
    ) -> nn.Embedding:
        decoder = self.base_model.decoder
        decoder.embed_tokens = self._get_resized_embeddings(
            decoder.embed_tokens, new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        if (lm_head := self.get_output_embeddings()) is not None:
            size = decoder.embed_tokens.weight.shape[0]
            resized_head = self._get_resized_lm_head(lm_head, size, mean_resizing=mean_resizing)
            self.set_output_embeddings(resized_head)
        self.tie_weights()
        return decoder.embed_tokens


class VanillaTransformerSegmentEmbedding(nn.Embedding):
    """What `token_type_ids` add; a class of its own, since it starts at zero (`_init_weights`)."""


class VanillaTransformerStack(VanillaTransformerPreTrainedModel):
    """What the encoder and the decoder share: embeddings in, layers, a final norm for pre-norm."""

    def __init__(self, config: VanillaTransformerConfig, vocab_size: int, layers: nn.ModuleList):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model, config.pad_token_id)
        if config.position_encoding == "learned":
            assert config.max_position_embeddings is not None
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.dropout = VanillaTransformerDropout(config.dropout)
        self.layers = layers
        if config.final_layer_norm:
            self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False

    def can_pack(self, *masks: torch.Tensor | None, **kwargs: Any) -> bool:
        """Whether the layers may be given packed tokens: nobody will see that they are.

        A layout for training on a CPU, where padding costs what tokens cost.

        Args:
            *masks: `[B, L]` of each side; the packed layout needs one of all, and a token in
                every row.
            **kwargs: What the caller of `forward` asks for.
        """
        if not self.training or torch.compiler.is_compiling():
            return False
        is_recorded = any(
            kwargs.get(name, getattr(self.config, name, False))
            for name in ("output_hidden_states", "output_attentions")
        )
        if is_recorded or self.config._attn_implementation != "sdpa":
            return False
        for mask in masks:
            if mask is None or mask.ndim != 2 or mask.device.type != "cpu":
                return False
            if not mask.any(dim=1).all():
                return False
        # Others' hooks expect `[B, L, d]`. transformers' own, which stay in place once something
        # was recorded, do nothing while nothing is.
        return not any(
            not hook.__module__.startswith("transformers.")
            for layer in self.layers
            for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
        )

    def embed(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        segments: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings times sqrt(d_model) plus positions, then dropout (3.4, 3.5, 5.4).

        Packed tokens, `[N, d]` and `[N]`, will do as well.

        Args:
            inputs_embeds: `[B, L, d]`, rows of the embedding matrix or whatever stands for them.
            position_ids: `[B, L]` or `[1, L]`, from 0.
            segments: `[B, L, d]`, embeddings of segments, which the paper does not have.
        """
        position_ids = position_ids + self.config.position_offset
        if self.config.position_encoding == "learned":
            positions = self.embed_positions(position_ids)
        else:
            where = None
            if position_ids.ndim == 1:
                # Of packed tokens many share a position; a sine costs as much as a row of products.
                position_ids, where = position_ids.unique(return_inverse=True)
            positions = sinusoidal_positions(
                position_ids, self.config.d_model, self.config.position_encoding
            ).to(inputs_embeds.dtype)
            positions = positions if where is None else positions[where]
        embedded = inputs_embeds * math.sqrt(self.config.d_model) + positions
        return self.dropout(embedded if segments is None else embedded + segments)

    def embed_inputs(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, names: str
    ) -> torch.Tensor:
        """`inputs_embeds`, or the rows of `input_ids`.

        Raises:
            ValueError: Both or neither are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            given = "both" if input_ids is not None else "neither"
            raise ValueError(f"give exactly one of {names}; {given} came")
        if inputs_embeds is not None:
            return inputs_embeds
        return self.embed_tokens(input_ids)

    def check_length(self, length: int) -> None:
        """Refuses more positions than a learned table has; sinusoids go on for ever.

        Raises:
            ValueError: `length` plus the offset exceeds `max_position_embeddings`.
        """
        limit = self.config.max_position_embeddings
        if self.config.position_encoding != "learned" or limit is None:
            return
        if length + self.config.position_offset > limit:
            raise ValueError(
                f"{length} positions exceed max_position_embeddings ({limit}): a learned table has "
                "no more rows; shorten the input or use a sinusoidal position_encoding"
            )


class VanillaTransformerEncoder(VanillaTransformerStack):
    """A stack of N identical layers over the source (3.1)."""

    _can_record_outputs = {
        "hidden_states": OutputRecorder(
            VanillaTransformerEncoderLayer, num_hidden_layers_key="num_encoder_layers"
        ),
        "attentions": OutputRecorder(VanillaTransformerAttention, index=1),
    }

    def __init__(self, config: VanillaTransformerConfig):
        layers = [
            VanillaTransformerEncoderLayer(config, i) for i in range(config.num_encoder_layers)
        ]
        super().__init__(config, config.vocab_size, nn.ModuleList(layers))
        if config.num_segments:
            self.embed_segments = VanillaTransformerSegmentEmbedding(
                config.num_segments, config.d_model
            )
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encodes the source.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]`, 1 for tokens and 0 for padding on either side. Without it,
                `pad_token_id` in `input_ids` is padding.
            inputs_embeds: `[B, S, d]` in place of `input_ids`; scaled by sqrt(d) like them.
            position_ids: `[B, S]`, from 0. Default: counted over the real tokens.
            token_type_ids: `[B, S]`, the segment of each token, where the config has
                `num_segments`; else they have no effect. Default: 0 up to and including the first
                `</s>`, 1 after it.

        Returns:
            `last_hidden_state` `[B, S, d]`; `hidden_states` and `attentions` where asked for.

        Raises:
            ValueError: Both or neither of `input_ids` and `inputs_embeds`; segments that neither
                come nor follow from `input_ids`.
        """
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids != self.config.pad_token_id
        inputs_embeds = self.embed_inputs(input_ids, inputs_embeds, "input_ids and inputs_embeds")
        length = inputs_embeds.shape[1]
        self.check_length(length)
        if position_ids is None:
            if attention_mask is not None and attention_mask.ndim == 2:
                position_ids = position_ids_from_mask(attention_mask)
            else:
                position_ids = torch.arange(length, device=inputs_embeds.device).unsqueeze(0)
        if self.config.num_segments and token_type_ids is None:
            token_type_ids = self.derive_segments(input_ids, attention_mask)
        tokens = None
        if attention_mask is not None and self.can_pack(attention_mask, **kwargs):
            tokens = PackedTokens(attention_mask.bool())
            inputs_embeds, position_ids = map(tokens.pack, (inputs_embeds, position_ids))
            if token_type_ids is not None:
                token_type_ids = tokens.pack(token_type_ids)
            mask = PackedAttention(tokens, tokens, is_causal=False)
        else:
            mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask
            )
        segments = self.embed_segments(token_type_ids) if self.config.num_segments else None
        hidden_states = self.embed(inputs_embeds, position_ids, segments)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        if self.config.final_layer_norm:
            hidden_states = self.layer_norm(hidden_states)
        if tokens is not None:
            hidden_states = tokens.unpack(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def derive_segments(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """0 up to and including the first `</s>`, 1 after it, `[B, S]`.

        Raises:
            ValueError: There are no ids to look at.
        """
        if input_ids is None:
            raise ValueError(
                f"num_segments ({self.config.num_segments}) needs token_type_ids together with "
                "inputs_embeds: without input_ids nothing says where the second text begins"
            )
        _, before = count_separators(input_ids, attention_mask, self.config.eos_token_id)
        return (before > 0).long()


class VanillaTransformerDecoder(VanillaTransformerStack):
    """A stack of N identical layers over the target; each position sees itself and those before.

    With `is_encoder_decoder=False` its layers have no encoder-decoder attention.
    """

    _can_record_outputs = {
        "hidden_states": OutputRecorder(
            VanillaTransformerDecoderLayer, num_hidden_layers_key="num_decoder_layers"
        ),
        "attentions": OutputRecorder(VanillaTransformerAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(
            VanillaTransformerAttention, index=1, layer_name="cross_attn"
        ),
    }

    def __init__(self, config: VanillaTransformerConfig):
        layers = [
            VanillaTransformerDecoderLayer(config, i) for i in range(config.num_decoder_layers)
        ]
        super().__init__(config, config.target_vocab_size, nn.ModuleList(layers))
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Reads the target written so far.

        Args:
            input_ids: `[B, T]`, with a cache only the tokens not yet in it.
            attention_mask: `[B, T]` with the cached positions included, 0 for padding on either
                side. Without it every token counts, pads too: some models start with one.
            encoder_hidden_states: `[B, S, d]`.
            encoder_attention_mask: `[B, S]`.
            past_key_values: Keys and values of the positions before.
            inputs_embeds: `[B, T, d]` in place of `input_ids`; scaled by sqrt(d) like them.
            position_ids: `[B, T]`, from 0. Default: counted over the real tokens.
            use_cache: Whether to return `past_key_values`. Default: the config's, and no while
                training.

        Returns:
            `last_hidden_state` `[B, T, d]` and `past_key_values`; `hidden_states`, `attentions`,
            `cross_attentions` where asked for.

        Raises:
            ValueError: Both or neither of `input_ids` and `inputs_embeds`.
        """
        inputs_embeds = self.embed_inputs(
            input_ids, inputs_embeds, "decoder_input_ids and decoder_inputs_embeds"
        )
        if use_cache is None:
            use_cache = self.config.use_cache
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
            if self.config.is_encoder_decoder:
                past_key_values = EncoderDecoderCache(
                    past_key_values, DynamicCache(config=self.config)
                )
        length = inputs_embeds.shape[1]
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        # A static cache counts in a tensor, which to look at would stop a compiled graph.
        if not isinstance(past_length, torch.Tensor):
            self.check_length(past_length + length)
        if position_ids is None:
            if attention_mask is not None and attention_mask.ndim == 2:
                position_ids = position_ids_from_mask(attention_mask)[:, -length:]
            else:
                position_ids = torch.arange(length, device=inputs_embeds.device) + past_length
                position_ids = position_ids.unsqueeze(0)
        masks = [attention_mask]
        if encoder_hidden_states is not None:
            masks.append(encoder_attention_mask)
        encoder_mask: Any = None
        tokens = None
        if past_key_values is None and self.can_pack(*masks, **kwargs):
            tokens, *sources = (PackedTokens(mask.bool()) for mask in masks if mask is not None)
            inputs_embeds, position_ids = map(tokens.pack, (inputs_embeds, position_ids))
            mask = PackedAttention(tokens, tokens, is_causal=True)
            if encoder_hidden_states is not None:
                encoder_hidden_states = sources[0].pack(encoder_hidden_states)
                encoder_mask = PackedAttention(tokens, sources[0], is_causal=False)
        else:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=getattr(past_key_values, "self_attention_cache", past_key_values),
            )
            if encoder_hidden_states is not None:
                encoder_mask = create_bidirectional_mask(
                    config=self.config,
                    inputs_embeds=inputs_embeds,
                    attention_mask=encoder_attention_mask,
                    encoder_hidden_states=encoder_hidden_states,
                )
        hidden_states = self.embed(inputs_embeds, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                mask,
                # By position: gradient checkpointing passes gradients to these alone.
                encoder_hidden_states,
                encoder_attention_mask=encoder_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        if self.config.final_layer_norm:
            hidden_states = self.layer_norm(hidden_states)
        if tokens is not None:
            hidden_states = tokens.unpack(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )


# ---------------------------------------------------------------------------------------- loss


def _projected_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    smoothing: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output layer, softmax and label-smoothed cross-entropy in one, a chunk of rows at a time.

    The gradients are computed along with the loss, while a chunk's logits are at hand, so that
    logits of one chunk exist at any moment instead of those of all rows. With
    q = (1 - eps) onehot(y) + eps / V a row's loss is logsumexp(z) - (1 - eps) z_y - eps mean(z) and
    its gradient softmax(z) - q; the uniform part of q is of rank one and never materialised.

    Args:
        hidden: `[M, d]`; rows whose label is ignored take no part.
        weight: `[V, d]`.
        bias: `[V]`.
        labels: `[M]`.
        smoothing: eps.
        dtype: Of the matrix products; sums and softmax are in float32.

    Returns:
        The loss, summed over the rows; its gradients by `hidden`, by `weight` and by `bias` (empty
        where there is none).
    """
    d_model, vocab_size = hidden.shape[1], weight.shape[0]
    confidence, uniform = 1.0 - smoothing, smoothing / vocab_size
    is_kept = labels != IGNORE_INDEX
    kept = is_kept.nonzero().squeeze(1)
    cast_weight = weight.to(dtype)
    mean_row = weight.sum(dim=0, dtype=torch.float32)
    bias_sum = 0.0 if bias is None else bias.sum(dtype=torch.float32)

    loss = hidden.new_zeros((), dtype=torch.float32)
    hidden_grad = torch.zeros_like(hidden)
    weight_grad = torch.zeros_like(weight, dtype=torch.float32)
    bias_grad = weight.new_zeros(0 if bias is None else vocab_size, dtype=torch.float32)
    # Rows of d_model keep the traffic of the weight gradient below that of the logits.
    chunk = max(256, d_model)
    # One buffer for the logits of all chunks: a fresh one each would be paged in each time.
    buffer = hidden.new_empty((min(len(kept), chunk), vocab_size), dtype=dtype)
    for rows in kept.split(chunk):
        h, y = hidden[rows].to(dtype), labels[rows]
        logits = torch.mm(h, cast_weight.t(), out=buffer[: len(rows)]).float()
        if bias is not None:
            logits += bias
        logit_sum = h.float() @ mean_row + bias_sum
        row_loss = -uniform * logit_sum - confidence * _pick(logits, y)
        # From here on in place: logits, then exp(logits), then the gradient by the logits less its
        # rank-one part.
        largest = logits.amax(dim=-1, keepdim=True)
        # exp2 for exp: vectorised everywhere, and no slow path for what underflows.
        exponentials = logits.sub_(largest).mul_(_LOG2_E).exp2_()
        normaliser = exponentials.sum(dim=-1, keepdim=True)
        row_loss += (largest + normaliser.log()).squeeze(1)
        loss += row_loss.sum()
        exponentials.div_(normaliser)
        logits.scatter_add_(1, y.unsqueeze(1), logits.new_full((len(rows), 1), -confidence))
        grad = logits.to(dtype)
        h_grad = torch.mm(grad, cast_weight).float().sub_(uniform * mean_row)
        hidden_grad[rows] = h_grad.to(hidden.dtype)
        if dtype == torch.float32:
            weight_grad.addmm_(grad.t(), h)
        else:
            weight_grad += torch.mm(grad.t(), h)
        if bias is not None:
            bias_grad += logits.sum(dim=0)
    weight_grad -= uniform * (is_kept.float() @ hidden.float())
    bias_grad -= uniform * len(kept)
    return loss, hidden_grad, weight_grad, bias_grad


# To a compiled graph the above is one operation: how many rows count, and so how many chunks there
# are, depends on the data, and following that would mean another graph for every batch. The name
# is the module's own, since a copy of this file may come from the Hub beside the package's.
_compiled_projected_cross_entropy = torch.library.custom_op(
    re.sub(r"\W", "_", __name__, flags=re.ASCII) + "::projected_cross_entropy",
    _projected_cross_entropy,
    mutates_args=(),
)


@_compiled_projected_cross_entropy.register_fake
def _(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    smoothing: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    """Shapes and types of what `_projected_cross_entropy` returns."""
    return (
        hidden.new_empty((), dtype=torch.float32),
        torch.empty_like(hidden),
        torch.empty_like(weight, dtype=torch.float32),
        weight.new_empty(0 if bias is None else weight.shape[0], dtype=torch.float32),
    )


class _ProjectedCrossEntropy(torch.autograd.Function):
    """`_projected_cross_entropy` times a scale, with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        scale: torch.Tensor,
        smoothing: float,
    ) -> torch.Tensor:
        device_type = hidden.device.type
        is_autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_autocast else hidden.dtype
        compute = (
            _compiled_projected_cross_entropy
            if torch.compiler.is_compiling()
            else _projected_cross_entropy
        )
        with torch.autocast(device_type, enabled=False):
            loss, *gradients = compute(hidden, weight, bias, labels, smoothing, dtype)
        # The division by the number of tokens waits for the backward pass, where a gradient scaler
        # meets it: the share of one token in a large update is below what fp16 can hold.
        ctx.save_for_backward(*gradients, scale)
        ctx.weight_dtype, ctx.has_bias = weight.dtype, bias is not None
        return loss * scale

    @staticmethod
    def backward(ctx: Any, loss_grad: torch.Tensor) -> tuple[Any, ...]:
        hidden_grad, weight_grad, bias_grad, scale = ctx.saved_tensors
        factor = loss_grad.float() * scale
        return (
            (hidden_grad.float() * factor).to(hidden_grad.dtype),
            (weight_grad * factor).to(ctx.weight_dtype),
            (bias_grad * factor).to(ctx.weight_dtype) if ctx.has_bias else None,
            None,
            None,
            None,
        )


def _pick(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logit of each row's label, `[N, V]` and `[N]` to `[N]`."""
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def language_model_loss(
    hidden_states: torch.Tensor,
    lm_head: nn.Linear,
    labels: torch.Tensor,
    label_smoothing: float,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Label-smoothed cross-entropy (5.4) of the output layer, without keeping its logits.

    The target distribution is (1 - eps) on the label plus eps / V on every token, the label too
    (Szegedy et al. 2015, section 7, which the paper cites).

    Args:
        hidden_states: `[B, T, d]`.
        lm_head: d to V.
        labels: `[B, T]`, -100 where nothing is learned.
        label_smoothing: eps in [0, 1).
        num_items_in_batch: What the sum over tokens is divided by: the N of all micro-batches that
            make up one update. Default: N of this batch.

    Returns:
        A scalar, in nats per token.
    """
    hidden, labels = hidden_states.flatten(0, 1), labels.flatten().to(hidden_states.device)
    if num_items_in_batch is None:
        count = (labels != IGNORE_INDEX).sum().clamp_min(1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        count = num_items_in_batch.to(hidden.device).reshape(())
    else:
        # `as_tensor` would make a compiled graph for each number.
        count = torch.full((), num_items_in_batch, device=hidden.device)
    return _ProjectedCrossEntropy.apply(
        hidden, lm_head.weight, lm_head.bias, labels, 1.0 / count, float(label_smoothing)
    )


def negative_log_likelihood(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Plain loss in nats per token, without smoothing: its exponential is the perplexity.

    Args:
        logits: `[B, T, V]`.
        labels: `[B, T]`, -100 where nothing counts.
        num_items_in_batch: As in `language_model_loss`.
    """
    labels = labels.flatten().to(logits.device)
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")
    if num_items_in_batch is None:
        return total / (labels != IGNORE_INDEX).sum().clamp_min(1)
    return total / num_items_in_batch


def shift_right(
    labels: torch.Tensor, start_token_id: int, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoder reads to write `labels`: the start token, then all labels but the last.

    Labels may be padded with -100 on either side; the start stands right before the first of them.

    Args:
        labels: `[B, T]`.

    Returns:
        Decoder input `[B, T]` and its mask `[B, T]`, False on padding before the start.
    """
    is_label = labels != IGNORE_INDEX
    seen = is_label.cumsum(dim=-1)
    is_first = is_label & (seen == 1)
    # A row without any label starts at its first position.
    is_first[:, 0] |= seen[:, -1] == 0
    previous = labels.roll(1, dims=-1)
    is_padding = (seen == 0) | (previous == IGNORE_INDEX)
    shifted = previous.masked_fill(is_padding, pad_token_id).masked_fill(is_first, start_token_id)
    return shifted, (seen > 0) | is_first


def until_last_label(labels: torch.Tensor) -> torch.Tensor:
    """True up to the last label of each row of `labels` `[B, T]`, and at the first position."""
    until_last = (labels != IGNORE_INDEX).flip(-1).cumsum(dim=-1).flip(-1) > 0
    until_last[:, 0] = True
    return until_last


def mean_over_items(
    total: torch.Tensor, is_kept: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """A summed loss divided by the items of the update or, unless given, of this batch.

    Args:
        total: A scalar, the sum over the labels that count.
        is_kept: Which labels those are, of any shape.
        num_items_in_batch: Of all micro-batches that make up one update.
    """
    if num_items_in_batch is None:
        return total / is_kept.sum().clamp_min(1)
    if isinstance(num_items_in_batch, torch.Tensor):
        return total / num_items_in_batch.to(total.device).reshape(())
    return total / num_items_in_batch


# ---------------------------------------------------------------------------- model and its halves


class VanillaTransformerStacks(VanillaTransformerPreTrainedModel):
    """Holds one stack or both, and the matrix that they share (3.4) under the name `shared`.

    Every class below uses these names, so one checkpoint serves the whole model and its halves.
    """

    def __init__(self, config: VanillaTransformerConfig, **stacks: VanillaTransformerStack):
        super().__init__(config)
        if config.share_embeddings:
            self.shared = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
            self._tied_weights_keys = {
                f"{name}.embed_tokens.weight": "shared.weight" for name in stacks
            }
        for name, stack in stacks.items():
            self.add_module(name, stack)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        if self.config.share_embeddings:
            return self.shared
        stack = self.encoder if "encoder" in self._modules else self.decoder
        return stack.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        stacks = [self._modules[name] for name in ("encoder", "decoder") if name in self._modules]
        if self.config.share_embeddings:
            self.shared = value
        else:
            stacks = stacks[:1]
        for stack in stacks:
            stack.embed_tokens = value


class VanillaTransformerModel(VanillaTransformerStacks):
    """Encoder and decoder, without an output layer (Figure 1)."""

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(
            config,
            encoder=VanillaTransformerEncoder(config),
            decoder=VanillaTransformerDecoder(config),
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Encodes the source, then decodes the target against it.

        Args:
            input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids: See
                `VanillaTransformerEncoder`.
            decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds, decoder_position_ids,
                past_key_values, use_cache: See `VanillaTransformerDecoder`.
            encoder_outputs: A former call's, in place of the source.

        Returns:
            `last_hidden_state` `[B, T, d]`, the cache, the encoder's output; hidden states and
            attentions of both stacks where asked for.

        Raises:
            ValueError: A side is given twice or not at all.
        """
        if attention_mask is None and input_ids is not None:
            # The decoder, too, must not attend to padding of the source.
            attention_mask = input_ids != self.config.pad_token_id
        if encoder_outputs is None:
            encoded = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                token_type_ids=token_type_ids,
                **kwargs,
            )
        elif isinstance(encoder_outputs, tuple):
            encoded = BaseModelOutput(*encoder_outputs)
        else:
            encoded = encoder_outputs
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            position_ids=decoder_position_ids,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class VanillaTransformerEncoderModel(VanillaTransformerStacks):
    """The encoder alone."""

    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\.", r"^lm_head\."]

    def __init__(self, config: VanillaTransformerConfig):
        config = as_single_stack(config)
        super().__init__(config, encoder=VanillaTransformerEncoder(config))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """See `VanillaTransformerEncoder`."""
        return self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            **kwargs,
        )


class VanillaTransformerDecoderModel(VanillaTransformerStacks):
    """The decoder alone.

    Without an encoder its layers have no encoder-decoder attention; that of a translation
    checkpoint is left out on loading.
    """

    _keys_to_ignore_on_load_unexpected = [
        r"^(model\.)?encoder\.",
        r"\.cross_attn(_layer_norm)?\.",
        r"^lm_head\.",
    ]

    def __init__(self, config: VanillaTransformerConfig):
        config = as_single_stack(config)
        super().__init__(config, decoder=VanillaTransformerDecoder(config))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """See `VanillaTransformerDecoder`."""
        return self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            use_cache=use_cache,
            **kwargs,
        )


def tied_matrix(config: VanillaTransformerConfig, stack: str) -> str:
    """Name of the embedding that the output layer after `stack` is tied to (3.4)."""
    return (
        "model.shared.weight" if config.share_embeddings else f"model.{stack}.embed_tokens.weight"
    )


def as_single_stack(config: VanillaTransformerConfig) -> VanillaTransformerConfig:
    """`config` for one stack alone; the caller's stays as it is."""
    if not config.is_encoder_decoder:
        return config
    config = copy.deepcopy(config)
    config.is_encoder_decoder = False
    return config


def as_encoder_decoder(config: VanillaTransformerConfig) -> VanillaTransformerConfig:
    """`config` for both stacks, which one saved with a half is not; the caller's stays as it is."""
    if config.is_encoder_decoder:
        return config
    config = copy.deepcopy(config)
    config.is_encoder_decoder = True
    return config


# ------------------------------------------------------------------------------------- pooling


def mask_padding(
    input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, pad_token_id: int
) -> torch.Tensor | None:
    """`attention_mask`, or where the ids are no padding; None where nothing is known of either."""
    if attention_mask is None and input_ids is not None:
        return input_ids != pad_token_id
    return attention_mask


def is_real_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """`[B, S]` from a mask `[B, S]`; a mask of another shape, or none, says that all are real."""
    if attention_mask is not None and attention_mask.ndim == 2:
        return attention_mask.bool()
    return torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)


def mean_over_tokens(hidden_states: torch.Tensor, is_counted: torch.Tensor) -> torch.Tensor:
    """Mean of the states `[B, S, d]` that are counted `[B, S]`: `[B, d]`, zero where none is."""
    kept = hidden_states.masked_fill(~is_counted.unsqueeze(-1), 0.0)
    return kept.sum(dim=1) / is_counted.sum(dim=-1, keepdim=True).clamp_min(1)


def max_over_tokens(hidden_states: torch.Tensor, is_counted: torch.Tensor) -> torch.Tensor:
    """Largest value in each dimension of the counted states: `[B, d]`, zero where none is."""
    lowest = torch.finfo(hidden_states.dtype).min
    largest = hidden_states.masked_fill(~is_counted.unsqueeze(-1), lowest).amax(dim=1)
    return largest.masked_fill(~is_counted.any(dim=-1, keepdim=True), 0.0)


# --------------------------------------------------------------------------------------- heads


class OutputLengthLimit(LogitsProcessor):
    """Ends each output by its own limit, so that it does not depend on its neighbours' lengths.

    Args:
        limits: `[B]`, generated tokens allowed per source, `</s>` included.
        prompt_length: Tokens the decoder was given.
        eos_token_id: One or more ids.
    """

    def __init__(self, limits: torch.Tensor, prompt_length: int, eos_token_id: int | list[int]):
        self.limits = limits
        self.prompt_length = prompt_length
        self.eos_token_ids = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` `[B * beams, L]`, `scores` `[B * beams, V]`: at the limit only `</s>`."""
        limits = self.limits.to(scores.device)
        limits = limits.repeat_interleave(scores.shape[0] // limits.shape[0])
        must_end = input_ids.shape[1] - self.prompt_length + 1 >= limits
        # What forbids the end, a minimal length say, goes first: some token must remain.
        must_end &= (scores[:, self.eos_token_ids] > -math.inf).any(dim=-1)
        ended = torch.full_like(scores, -math.inf)
        ended[:, self.eos_token_ids] = scores[:, self.eos_token_ids]
        return torch.where(must_end.unsqueeze(1), ended, scores)


class PaperLengthPenalty(float):
    """alpha of the paper's lp(n) = ((5 + n) / 6)^alpha (6.1; Wu et al. 2016, eq. 14).

    transformers divides the score of a beam of n tokens by `n ** length_penalty`; an exponent of
    this type gives that same expression the paper's value.
    """

    def __rpow__(self, length: float, modulo: None = None) -> float:
        return ((5.0 + length) / 6.0) ** float(self)


class VanillaTransformerForConditionalGeneration(
    VanillaTransformerPreTrainedModel, GenerationMixin
):
    """The paper's model: encoder, decoder and an output layer (Figure 1).

    `generate` follows the paper where `generation_config` says so, through two fields of this
    model, both also arguments of `generate`:

    - `length_penalty_formula`: `"paper"` (default), ((5 + n) / 6)^length_penalty, or `"power"`,
      transformers' own n^length_penalty.
    - `max_tokens_over_source`: without `max_length` or `max_new_tokens` an output ends this many
      tokens beyond its source, 50 by default (6.1), each sentence by its own length.
    """

    # A faster way to the same tokens, for arguments that it knows; it returns None for others.
    # Importing the package sets it. Alone, on the Hub, this file does without.
    _lean_generate: Callable | None = None

    def __init__(self, config: VanillaTransformerConfig):
        config = as_encoder_decoder(config)
        super().__init__(config)
        self.model = VanillaTransformerModel(config)
        self.lm_head = nn.Linear(config.d_model, config.target_vocab_size, bias=config.output_bias)
        self._tied_weights_keys = {"lm_head.weight": tied_matrix(config, "decoder")}
        self.post_init()
        self._complete_generation_config()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The decoder's input for `labels` `[B, T]`; `DataCollatorForSeq2Seq` calls it."""
        config = self.config
        return shift_right(labels, config.decoder_start_token_id, config.pad_token_id)[0]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Scores target tokens, and with `labels` computes the loss.

        Args:
            labels: `[B, T]`, -100 for padding on either side. The decoder's input is made from
                them, shifted right, unless it is given.
            logits_to_keep: How many of the last positions get logits; 0 for all. Or their indices.
            num_items_in_batch: Target tokens of the whole update, for exact gradient accumulation.

        The other arguments are those of `VanillaTransformerModel`.

        Returns:
            `logits` `[B, T, V]` and `loss`. In training mode with `labels` the loss is
            label-smoothed, and there are no logits: they are never held whole (see
            `language_model_loss`). In evaluation mode the loss is plain.

        Raises:
            ValueError: Neither the decoder's input nor labels, as `Trainer`'s own
                `label_smoothing_factor` leaves them.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError(
                    "the decoder has nothing to read: pass decoder_input_ids, "
                    "decoder_inputs_embeds or labels. (Trainer takes labels away where its "
                    "label_smoothing_factor is set: set label_smoothing in the model's config "
                    "instead.)"
                )
            decoder_input_ids, start_mask = shift_right(
                labels, self.config.decoder_start_token_id, self.config.pad_token_id
            )
            if decoder_attention_mask is None:
                decoder_attention_mask = start_mask
                if self.training:
                    # Nothing before the last label sees what comes after it (see `can_pack`).
                    decoder_attention_mask = start_mask & until_last_label(labels)
        elif (
            labels is not None
            and decoder_attention_mask is None
            and self.training
            and labels.device.type == "cpu"
        ):
            # Collators make the decoder's input and no mask for it.
            decoder_attention_mask = until_last_label(labels)
        outputs: Seq2SeqModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            position_ids=position_ids,
            decoder_position_ids=decoder_position_ids,
            use_cache=use_cache if labels is None else False,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        loss, logits = self._loss_and_logits(
            outputs.last_hidden_state, labels, logits_to_keep, num_items_in_batch
        )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict:
        """As in transformers, with positions from the decoder's mask before it becomes 4-D."""
        mask = kwargs.get("decoder_attention_mask")
        if mask is not None and mask.ndim == 2 and kwargs.get("decoder_position_ids") is None:
            kwargs["decoder_position_ids"] = position_ids_from_mask(mask)
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """`GenerationMixin.generate`, whose default limit is the paper's: source length + 50 (6.1).

        Args:
            inputs: `[B, S]` source tokens; also `input_ids`, `inputs_embeds`, `encoder_outputs`.
            generation_config: In place of the model's own.
            logits_processor: Applied before the length limit.
            **kwargs: Everything else `GenerationMixin.generate` takes, and this class's two fields.
        """
        self._complete_generation_config()
        if self._lean_generate is not None and not logits_processor:
            found = self._lean_generate(inputs, generation_config, kwargs)
            if found is not None:
                return found
        settings = generation_config if generation_config is not None else self.generation_config

        def setting(name: str) -> Any:
            if kwargs.get(name) is not None:
                return kwargs[name]
            value = getattr(settings, name, None)
            return value if value is not None else getattr(self.generation_config, name)

        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if ids is not None and kwargs.get("attention_mask") is None:
            # As in `forward`: the decoder, which never sees the ids, must not attend to padding.
            kwargs["attention_mask"] = (ids != self.config.pad_token_id).long()
        has_limit = setting("max_length") is not None or setting("max_new_tokens") is not None
        lengths = None if has_limit else self._source_lengths(kwargs)
        if lengths is not None:
            limits = lengths + setting("max_tokens_over_source")
            if generation_config is None:
                kwargs["max_new_tokens"] = int(limits.max())
            else:
                # transformers warns of a configuration together with arguments.
                generation_config = copy.copy(generation_config)
                generation_config.max_new_tokens = int(limits.max())
            prompt, prompt_length = kwargs.get("decoder_input_ids"), 1
            if prompt is not None:
                start = setting("decoder_start_token_id")
                start = torch.as_tensor(setting("bos_token_id") if start is None else start)
                # transformers puts the start before prompts of which none begins with it.
                is_started = bool((prompt[:, 0] == start.to(prompt.device)).any())
                prompt_length = prompt.shape[1] + (not is_started)
            if (eos_token_id := setting("eos_token_id")) is not None:
                limit = OutputLengthLimit(limits, prompt_length, eos_token_id)
                logits_processor = LogitsProcessorList([*(logits_processor or []), limit])
        return super().generate(
            inputs,
            generation_config=generation_config,
            logits_processor=logits_processor,
            **kwargs,
        )

    def _complete_generation_config(self) -> None:
        config = self.generation_config
        for name, default in (("length_penalty_formula", "paper"), ("max_tokens_over_source", 50)):
            if not hasattr(config, name):
                setattr(config, name, default)
        # One made from the model's config alone would lose these two when it is loaded again.
        config._from_model_config = False
        if config.max_length == 20:
            # transformers' default, which Seq2SeqTrainer writes into the model on its own: nobody's
            # wish, and shorter than most translations. Passed to `generate` it does hold.
            config.max_length = None

    def _source_lengths(self, kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Real source tokens of each sentence, `[B]`, from whatever `generate` was given."""
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2:
            return mask.sum(dim=-1)
        states = kwargs.get("inputs_embeds")
        if states is None and kwargs.get("encoder_outputs") is not None:
            states = kwargs["encoder_outputs"][0]
        if states is None:
            return None
        return torch.full((states.shape[0],), states.shape[1], device=states.device)

    def _beam_search(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        formula = generation_config.length_penalty_formula
        if formula not in ("paper", "power"):
            raise ValueError(
                f"length_penalty_formula ({formula!r}) must be 'paper', ((5 + n) / 6)^alpha, or "
                "'power', n^alpha"
            )
        if formula == "paper":
            generation_config = copy.copy(generation_config)
            generation_config.length_penalty = PaperLengthPenalty(generation_config.length_penalty)
        return super()._beam_search(
            input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )


class VanillaTransformerForCausalLM(VanillaTransformerPreTrainedModel, GenerationMixin):
    """The decoder alone as a language model: the half that GPT kept."""

    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?encoder\.", r"\.cross_attn(_layer_norm)?\."]

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(as_single_stack(config))
        self.model = VanillaTransformerDecoderModel(self.config)
        self.lm_head = nn.Linear(config.d_model, config.target_vocab_size, bias=config.output_bias)
        self._tied_weights_keys = {"lm_head.weight": tied_matrix(config, "decoder")}
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Scores the next token at every position, and with `labels` computes the loss.

        Args:
            labels: `[B, T]`, usually `input_ids` with -100 for padding; shifted here, so that
                position t is to predict label t + 1.
            logits_to_keep: How many of the last positions get logits; 0 for all. Or their indices.
            num_items_in_batch: Target tokens of the whole update, for exact gradient accumulation.

        The other arguments are those of `VanillaTransformerDecoder`.

        Returns:
            `logits` `[B, T, V]` (none in training mode with `labels`) and `loss`, as in
            `VanillaTransformerForConditionalGeneration`.
        """
        outputs: BaseModelOutputWithPastAndCrossAttentions = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            use_cache=use_cache if labels is None else False,
            **kwargs,
        )
        if labels is not None:
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        loss, logits = self._loss_and_logits(
            outputs.last_hidden_state, labels, logits_to_keep, num_items_in_batch
        )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VanillaTransformerForMaskedLM(VanillaTransformerPreTrainedModel):
    """The encoder alone, restoring masked tokens: the half that BERT kept."""

    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\."]

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(as_single_stack(config))
        self.model = VanillaTransformerEncoderModel(self.config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=config.output_bias)
        self._tied_weights_keys = {"lm_head.weight": tied_matrix(config, "encoder")}
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Scores the token of every position, and with `labels` computes the loss.

        Args:
            labels: `[B, S]`, the original tokens at masked positions and -100 elsewhere.
            num_items_in_batch: Masked tokens of the whole update, for exact accumulation.

        The other arguments are those of `VanillaTransformerEncoder`.

        Returns:
            `logits` `[B, S, V]` (none in training mode with `labels`) and `loss`, as in
            `VanillaTransformerForConditionalGeneration`.
        """
        outputs: BaseModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        loss, logits = self._loss_and_logits(
            outputs.last_hidden_state, labels, 0, num_items_in_batch
        )
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VanillaTransformerForQuestionAnswering(VanillaTransformerPreTrainedModel):
    """The encoder alone, pointing at an answer: where in the context it starts and where it ends.

    It reads `question </s> context </s>`. Only tokens of the context can be chosen: the logits of
    all others are the lowest number. With `has_no_answer` in the config, position 0, which is never
    the context's, stands for "no answer" (Devlin et al. 2018, section 4.3). Its two logits are
    computed from the mean state of the question and the separators, which have read the context
    and are not candidates themselves; no single token serves, since the tokenizer puts none before
    the question, and that of index 0 may be padding.
    """

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(as_single_stack(config))
        self.model = VanillaTransformerEncoderModel(self.config)
        self.qa_outputs = nn.Linear(config.d_model, 2)
        if config.has_no_answer:
            self.no_answer_outputs = nn.Linear(config.d_model, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Scores every token as first and as last of the answer; with positions, also the loss.

        Args:
            context_mask: `[B, S]`, 1 for tokens that may be chosen. Default: the real tokens
                between the first and the last `</s>` of `input_ids`.
            start_positions, end_positions: `[B]`, indices of the answer's first and last token
                (not the one after it); 0 and 0 for "no answer". An example of which either is -100
                is left out.
            num_items_in_batch: Examples of the whole update, for exact accumulation. transformers'
                `Trainer` does not count them: it averages the means of the micro-batches, which is
                the same where these are of one size.

        The other arguments are those of `VanillaTransformerEncoder`.

        Returns:
            `start_logits` and `end_logits`, `[B, S]`, and `loss`, the mean over examples of the
            mean of both cross-entropies. `label_smoothing` is the vocabulary's and plays no part.

        Raises:
            ValueError: Positions that cannot be chosen or in the wrong order, except in a compiled
                graph, where a look at them would wait for the device: there the loss of such a
                label is that of the lowest number, above 10^4 in any precision. One of the two
                positions without the other. `inputs_embeds` without `context_mask`.
        """
        if (start_positions is None) != (end_positions is None):
            missing = "start_positions" if start_positions is None else "end_positions"
            raise ValueError(f"{missing} is missing: the loss needs both ends of the answer")
        attention_mask = mask_padding(input_ids, attention_mask, self.config.pad_token_id)
        outputs: BaseModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        is_real = is_real_token(hidden_states, attention_mask)
        if context_mask is None:
            is_context = is_real & self.derive_context(input_ids, attention_mask)
        else:
            is_context = is_real & context_mask.bool()
        logits = self.qa_outputs(hidden_states)
        is_choice = is_context
        if self.config.has_no_answer:
            question = mean_over_tokens(hidden_states, is_real & ~is_context)
            no_answer = self.no_answer_outputs(question).unsqueeze(1)
            logits = torch.cat([no_answer, logits[:, 1:]], dim=1)
            is_choice = F.pad(is_context[:, 1:], (1, 0), value=True)
        lowest = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~is_choice.unsqueeze(-1), lowest)
        start_logits, end_logits = (part.contiguous() for part in logits.unbind(dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self._span_loss(
                start_logits, end_logits, start_positions, end_positions, num_items_in_batch
            )
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def derive_context(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Tokens between the first and the last `</s>`, `[B, S]`.

        Raises:
            ValueError: There are no ids to look at.
        """
        if input_ids is None:
            raise ValueError(
                "question answering from inputs_embeds needs context_mask [B, S]: without "
                "input_ids nothing says where the context is"
            )
        is_separator, before = count_separators(input_ids, attention_mask, self.config.eos_token_id)
        after = is_separator.sum(dim=-1, keepdim=True) - before
        return ~is_separator & (before > 0) & (after > 0)

    def _span_loss(
        self,
        start_logits: torch.Tensor,
        end_logits: torch.Tensor,
        start_positions: torch.Tensor,
        end_positions: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        start, end = (p.flatten().to(start_logits.device) for p in (start_positions, end_positions))
        is_kept = (start != IGNORE_INDEX) & (end != IGNORE_INDEX)
        if not torch.compiler.is_compiling():
            self._check_spans(start_logits, start, end, is_kept)
        start, end = (p.masked_fill(~is_kept, IGNORE_INDEX) for p in (start, end))
        total = F.cross_entropy(start_logits.float(), start, reduction="sum")
        total = total + F.cross_entropy(end_logits.float(), end, reduction="sum")
        return mean_over_items(total / 2, is_kept, num_items_in_batch)

    def _check_spans(
        self,
        start_logits: torch.Tensor,
        start: torch.Tensor,
        end: torch.Tensor,
        is_kept: torch.Tensor,
    ) -> None:
        length = start_logits.shape[1]
        is_choice = start_logits > torch.finfo(start_logits.dtype).min
        is_possible = (start >= 0) & (start <= end) & (end < length)
        for places in (start, end):
            inside = places.clamp(0, length - 1).unsqueeze(1)
            is_possible = is_possible & is_choice.gather(1, inside).squeeze(1)
        if self.config.has_no_answer:
            is_possible = is_possible & ((start == 0) == (end == 0))
        wrong = is_kept & ~is_possible
        if not wrong.any():
            return
        row = int(wrong.nonzero()[0])
        no_answer = (
            " or both be 0, for no answer"
            if self.config.has_no_answer
            else " (position 0, no answer, needs has_no_answer=True in the config)"
        )
        raise ValueError(
            f"start_positions ({int(start[row])}) and end_positions ({int(end[row])}) of example "
            f"{row} of the batch must be tokens of the context, in this order{no_answer}; -100 "
            "leaves an example out of the loss"
        )


class VanillaTransformerForSequenceClassification(VanillaTransformerPreTrainedModel):
    """One label, several, or a number for a text or a pair `A </s> B </s>`.

    What is read is the config's `pooling`. `"mean"` and `"max"` pool the encoder's states over the
    real tokens. `"decoder"` is the whole architecture: its decoder reads the start token, attends
    to the encoded pair, and the state of this one step, from which a translation model would
    write its first word, is classified. Its encoder-decoder attention thus is a pooling with
    weights that are learned and that a translation checkpoint has learned already. BART, which
    calls it the same, feeds the decoder the whole text again, at the cost of a second encoder.

    The head is dropout and one linear layer. The tanh layer that BERT has in between belongs to its
    pretraining on a single token; behind a mean it is a further d x d to learn from few labels,
    and without it the logits of `"mean"` are the mean of each token's own.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: VanillaTransformerConfig):
        is_decoded = config.pooling == "decoder"
        super().__init__(as_encoder_decoder(config) if is_decoded else as_single_stack(config))
        stacks = VanillaTransformerModel if is_decoded else VanillaTransformerEncoderModel
        self.model = stacks(self.config)
        self.dropout = VanillaTransformerDropout(config.dropout)
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput | Seq2SeqSequenceClassifierOutput:
        """Scores every label, and with `labels` computes the loss.

        Args:
            labels: By the config's `problem_type`: `"single_label_classification"`, `[B]` indices
                and cross-entropy; `"multi_label_classification"`, `[B, num_labels]` of 0 and 1 and
                binary cross-entropy; `"regression"`, `[B]` or `[B, num_labels]` numbers and squared
                error. Where it is None it follows from the labels, as everywhere in transformers:
                one label is regression, integers are single labels, all else is multi-label. -100
                is left out.
            num_items_in_batch: Labels of the whole update that are not -100, as transformers'
                `Trainer` counts them, for exact accumulation.

        The other arguments are those of `VanillaTransformerEncoder`.

        Returns:
            `logits` `[B, num_labels]` and `loss`; hidden states and attentions where asked for,
            those of both stacks where the decoder pools. `label_smoothing` is the vocabulary's and
            plays no part.

        Raises:
            ValueError: Labels of the wrong shape or, except in a compiled graph, that are no index
                of a label.
        """
        attention_mask = mask_padding(input_ids, attention_mask, self.config.pad_token_id)
        encoded: BaseModelOutput = self.model.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        hidden_states = encoded.last_hidden_state
        if self.config.pooling != "decoder":
            pool = mean_over_tokens if self.config.pooling == "mean" else max_over_tokens
            pooled = pool(hidden_states, is_real_token(hidden_states, attention_mask))
            logits = self.classifier(self.dropout(pooled))
            return SequenceClassifierOutput(
                loss=self._loss(logits, labels, num_items_in_batch),
                logits=logits,
                hidden_states=encoded.hidden_states,
                attentions=encoded.attentions,
            )
        decoded: Seq2SeqModelOutput = self.model(
            encoder_outputs=encoded,
            attention_mask=attention_mask,
            decoder_input_ids=torch.full(
                (hidden_states.shape[0], 1),
                self.config.decoder_start_token_id,
                device=hidden_states.device,
            ),
            use_cache=False,
            **kwargs,
        )
        logits = self.classifier(self.dropout(decoded.last_hidden_state.squeeze(1)))
        # `encoder_last_hidden_state` stays out: `Trainer` would gather it as a prediction.
        return Seq2SeqSequenceClassifierOutput(
            loss=self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            decoder_hidden_states=decoded.decoder_hidden_states,
            decoder_attentions=decoded.decoder_attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_hidden_states=decoded.encoder_hidden_states,
            encoder_attentions=decoded.encoder_attentions,
        )

    def _loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor | None:
        if labels is None:
            return None
        labels, logits = labels.to(logits.device), logits.float()
        problem_type, num_labels = self.config.problem_type, self.config.num_labels
        if problem_type is None:
            if num_labels == 1:
                problem_type = "regression"
            elif labels.dtype in (torch.int32, torch.int64):
                problem_type = "single_label_classification"
            else:
                problem_type = "multi_label_classification"
        is_single = problem_type == "single_label_classification"
        rows, columns = logits.shape[0], 1 if is_single else num_labels
        given, labels = labels.shape, labels.unsqueeze(1) if labels.ndim == 1 else labels
        if labels.shape != (rows, columns):
            raise ValueError(
                f"labels of shape {list(given)} must be "
                f"{[rows] if columns == 1 else [rows, columns]} for problem_type={problem_type!r} "
                f"with {num_labels} labels; set problem_type or num_labels in the config"
            )
        is_kept = labels != IGNORE_INDEX
        if is_single:
            labels = labels.squeeze(1).long()
            if not torch.compiler.is_compiling():
                self._check_labels(labels)
            total = F.cross_entropy(logits, labels, reduction="sum")
            return mean_over_items(total, is_kept, num_items_in_batch)
        labels = labels.float()
        if problem_type == "regression":
            losses = F.mse_loss(logits, labels, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return mean_over_items(losses.masked_fill(~is_kept, 0.0).sum(), is_kept, num_items_in_batch)

    def _check_labels(self, labels: torch.Tensor) -> None:
        wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= self.config.num_labels))
        if not wrong.any():
            return
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"label {int(labels[row])} of example {row} of the batch must be 0 to "
            f"{self.config.num_labels - 1}, or -100 to be left out; corpora mark examples without "
            "an agreed label with -1: drop these, or set num_labels in the config"
        )


__all__ = [
    "VanillaTransformerDecoder",
    "VanillaTransformerDecoderModel",
    "VanillaTransformerEncoder",
    "VanillaTransformerEncoderModel",
    "VanillaTransformerForCausalLM",
    "VanillaTransformerForConditionalGeneration",
    "VanillaTransformerForMaskedLM",
    "VanillaTransformerForQuestionAnswering",
    "VanillaTransformerForSequenceClassification",
    "VanillaTransformerModel",
    "VanillaTransformerPreTrainedModel",
]
