"""The model as two graphs that need none of this package's code, and what drives them.

- *Encoder*: `input_ids` `[B, S]` and `attention_mask` `[B, S]` to the keys and values that each
  decoder layer reads of the source, `source_i_key` `[B, h, S, d_k]` and `source_i_value`
  `[B, h, S, d_v]`. They are computed once a sentence.
- *Decoder*: one step. `tokens` `[B, k]`, the last token of each of k hypotheses, `attention_mask`
  `[B, S]` and the keys and values of the source, and `past_i_key` `[B, k, h, P, d_k]` and
  `past_i_value` of the P tokens before; P is 0 at the first step, where the start token is read. It
  gives `logits` `[B, k, V]` and, as `present_i_...`, the past of the next step.

All of B, S, k and P are free. Hypotheses of one sentence share its source. Padding stands on the
right of the source, and nowhere in the target.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.rnn import pad_sequence

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..generation.lean import plan

# The searches themselves, which ask of a decoder no more than `_Steps` has.
from ..generation.search import _BeamSearch, _GreedySearch
from ..modeling_vanilla_transformer import (
    VanillaTransformerDecoderLayer,
    VanillaTransformerForConditionalGeneration,
)
from .translator import ExportedTranslator, reading, without_limit

ENCODER, DECODER = "encoder", "decoder"


class EncoderGraph(nn.Module):
    """See the module's docstring."""

    def __init__(self, model: VanillaTransformerForConditionalGeneration):
        super().__init__()
        self.encoder = model.model.encoder
        attentions = [layer.cross_attn for layer in model.model.decoder.layers]
        # Nothing else of the decoder, lest it be stored twice.
        self.keys = nn.ModuleList(attention.k_proj for attention in attentions)
        self.values = nn.ModuleList(attention.v_proj for attention in attentions)
        self.d_k, self.d_v = attentions[0].d_k, attentions[0].d_v

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        """Of each decoder layer the keys, then the values of the source."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        memory = []
        for keys, values in zip(self.keys, self.values, strict=True):
            memory += [_split(keys(states), self.d_k), _split(values(states), self.d_v)]
        return memory


class DecoderGraph(nn.Module):
    """See the module's docstring."""

    def __init__(self, model: VanillaTransformerForConditionalGeneration):
        super().__init__()
        self.decoder, self.lm_head = model.model.decoder, model.lm_head

    def forward(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor,
        source: list[torch.Tensor],
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits, and of each layer the keys, then the values of the target with this token."""
        decoder = self.decoder
        position_ids = torch.full_like(tokens[:1, :1], past[0].shape[3])
        x = decoder.embed(decoder.embed_tokens(tokens), position_ids)
        is_real = attention_mask.bool()[:, None, None]
        present = []
        for i, layer in enumerate(decoder.layers):
            pair = slice(2 * i, 2 * i + 2)
            x, stored = _step(layer, x, is_real, source[pair], past[pair])
            present += stored
        if decoder.config.final_layer_norm:
            x = decoder.layer_norm(x)
        return self.lm_head(x), present


def _split(x: torch.Tensor, width: int) -> torch.Tensor:
    """`[B, L, h width]` to `[B, h, L, width]`."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def _step(
    layer: VanillaTransformerDecoderLayer,
    x: torch.Tensor,
    is_real: torch.Tensor,
    source: list[torch.Tensor],
    past: list[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One layer (3.1) for one token of each hypothesis, `[B, k, d]`; and what it stores."""
    stored: list[torch.Tensor] = []

    def attend_to_self(x: torch.Tensor) -> torch.Tensor:
        attention = layer.self_attn
        # Each hypothesis has its own past: [B, k, h, 1, d_k] and [B, k, h, P + 1, d_k].
        query = attention.q_proj(x).unflatten(-1, (-1, attention.d_k)).unsqueeze(3)
        key = attention.k_proj(x).unflatten(-1, (-1, attention.d_k)).unsqueeze(3)
        value = attention.v_proj(x).unflatten(-1, (-1, attention.d_v)).unsqueeze(3)
        stored.extend((torch.cat([past[0], key], dim=3), torch.cat([past[1], value], dim=3)))
        weights = (query @ stored[0].transpose(-1, -2) * attention.scaling).softmax(dim=-1)
        return attention.o_proj((weights @ stored[1]).squeeze(3).flatten(2))

    def attend_to_source(x: torch.Tensor) -> torch.Tensor:
        attention = layer.cross_attn
        query = _split(attention.q_proj(x), attention.d_k)
        scores = query @ source[0].transpose(-1, -2) * attention.scaling
        weights = scores.masked_fill(~is_real, torch.finfo(scores.dtype).min).softmax(dim=-1)
        return attention.o_proj((weights @ source[1]).transpose(1, 2).flatten(2))

    x = layer.add_sublayer(x, layer.self_attn_layer_norm, attend_to_self)
    x = layer.add_sublayer(x, layer.cross_attn_layer_norm, attend_to_source)
    return layer.add_sublayer(x, layer.ffn_layer_norm, layer.feed_forward), stored


def export_graphs(
    model: VanillaTransformerForConditionalGeneration,
) -> dict[str, ExportedProgram]:
    """Both graphs by name, by `torch.export`, with B, S, k and P free.

    Args:
        model: In evaluation mode.
    """
    config = model.config
    # Sizes that differ wherever one could be taken for another, none of them 0 or 1.
    batch, length, hypotheses, before = 2, 7, 3, 5
    ids = torch.full((batch, length), config.decoder_start_token_id)
    mask = torch.ones_like(ids)
    tokens = ids[:, :1].expand(-1, hypotheses).contiguous()
    encoder, decoder = EncoderGraph(model).eval(), DecoderGraph(model).eval()
    with torch.no_grad():
        source = encoder(ids, mask)
    past = [
        torch.zeros(batch, hypotheses, tensor.shape[1], before, tensor.shape[3])
        for tensor in source
    ]
    # A learned table of positions has an end.
    last = None
    if config.position_encoding == "learned" and config.max_position_embeddings is not None:
        last = config.max_position_embeddings - config.position_offset
    b, s, k, p = Dim("batch"), Dim("source", max=last), Dim("hypotheses"), Dim("past", max=last)
    shapes: dict[str, Any] = {
        "tokens": {0: b, 1: k},
        "attention_mask": {0: b, 1: s},
        "source": [{0: b, 2: s}] * len(source),
        "past": [{0: b, 1: k, 3: p}] * len(past),
    }
    with torch.no_grad():
        return {
            ENCODER: torch.export.export(
                encoder,
                (ids, mask),
                dynamic_shapes={"input_ids": {0: b, 1: s}, "attention_mask": {0: b, 1: s}},
            ),
            DECODER: torch.export.export(
                decoder, (tokens, mask, source, past), dynamic_shapes=shapes
            ),
        }


def write_graphs(
    model: VanillaTransformerForConditionalGeneration, directory: Path
) -> dict[str, ExportedProgram]:
    """Makes the graphs, and writes the configuration that `GraphTranslator` reads."""
    model.config.save_pretrained(directory)
    return export_graphs(model)


def tensor_names(num_layers: int, *prefixes: str) -> list[str]:
    """`source_0_key`, `source_0_value`, `source_1_key` ...; for each prefix in turn."""
    return [
        f"{prefix}_{i}_{part}"
        for prefix in prefixes
        for i in range(num_layers)
        for part in ("key", "value")
    ]


class GraphTranslator(ExportedTranslator, ABC):
    """Runs the two graphs under the search of this package, with all that it follows.

    Args:
        directory: Of the export.
    """

    def __init__(self, directory: str | Path):
        super().__init__(directory)
        with reading(self.directory):
            self.config = VanillaTransformerConfig.from_pretrained(self.directory)
            few = copy.deepcopy(self.config)
            few.num_encoder_layers = few.num_decoder_layers = 1
            # Without weights, and with one layer of as many as a file may say, it still knows how
            # to search.
            with torch.device("meta"):
                self.plan = VanillaTransformerForConditionalGeneration(few)

    def check_inputs(self, count: int) -> None:
        """Refuses a decoder that is not of the configuration beside it.

        Args:
            count: Tensors that the decoder reads.

        Raises:
            ValueError: The configuration has another number of layers.
        """
        layers = self.config.num_decoder_layers
        # Tokens and mask; keys and values of the source and of the past for each layer.
        if count != 2 + 4 * layers:
            raise ValueError(
                f"num_decoder_layers ({layers}) in config.json of {self.directory} must be "
                f"{(count - 2) // 4}, as the decoder beside it has; export the model again"
            )

    @abstractmethod
    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Runs the encoder."""

    @abstractmethod
    def step(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        source: list[torch.Tensor],
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs the decoder: logits `[B, k, V]`, and the past of the next step."""

    @torch.inference_mode()
    def generate(self, sources: Sequence[Sequence[int]], **arguments: Any) -> list[list[int]]:
        """See `ExportedTranslator`.

        Raises:
            ValueError: Settings that the search of this package does not follow.
        """
        rows = [torch.tensor(source) for source in sources]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        has_limit = "max_new_tokens" in arguments
        config = self.generation_config
        self.plan.generation_config = without_limit(config) if has_limit else config
        settings = plan(self.plan, None, arguments, lengths, ids.shape[1])
        if settings is None:
            raise ValueError(
                "the generation config, or an argument, asks for what the search here does not do, "
                f"or for more positions than the model has; arguments: {arguments}"
            )
        search = _GreedySearch if settings.num_beams == 1 else _BeamSearch
        decoder: Any = _Steps(self, ids, lengths)
        found = search(decoder, settings).run()
        return [
            row[0, : int(count[0])].tolist()
            for row, count in zip(found.sequences, found.lengths, strict=True)
        ]


class _Steps:
    """What the searches of `generation` ask of a decoder, done by the graphs."""

    def __init__(self, translator: GraphTranslator, ids: torch.Tensor, lengths: torch.Tensor):
        self.translator = translator
        # What `step` gives are logits already.
        self.network = SimpleNamespace(output=lambda logits: logits)
        self.source = SimpleNamespace(lengths=lengths)
        self.mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        self.memory = translator.encode(ids, self.mask)
        self.past = [
            torch.zeros(len(ids), 1, tensor.shape[1], 0, tensor.shape[3]) for tensor in self.memory
        ]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after the next token of each hypothesis, `[B, k]` to `[B k, V]`."""
        logits, self.past = self.translator.step(tokens, self.mask, self.memory, self.past)
        return logits.flatten(0, 1)

    def follow(self, parents: torch.Tensor) -> None:
        """Goes on with these hypotheses, `[B, k]`."""
        rows = torch.arange(len(parents))[:, None]
        self.past = [tensor[rows, parents] for tensor in self.past]

    def keep(self, sentences: torch.Tensor) -> None:
        """Forgets all but some sentences."""
        self.source.lengths = self.source.lengths[sentences]
        longest = int(self.source.lengths.max())
        self.mask = self.mask[sentences, :longest]
        self.memory = [tensor[sentences, :, :longest] for tensor in self.memory]
        self.past = [tensor[sentences] for tensor in self.past]
