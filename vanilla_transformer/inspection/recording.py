"""What a model attends to: its weights, recorded without changing what it computes.

Shapes: `N` layers, `B` sentences, `h` heads, `S` source length, `T` target length. Of a matrix of
weights a row is a query, the position that attends, and a column a key, attended to.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class AttentionRecord:
    """Attention of a batch, float32 in [0, 1]; the weights of a row sum to 1.

    Attributes:
        encoder: `[N, B, h, S, S]`; None where a model has no encoder.
        decoder: `[N, B, h, T, T]`; None where none was run.
        cross: `[N, B, h, T, S]`, from decoder to encoder; None where none was run.
        source_mask: `[B, S]`, which positions are real.
        target_mask: `[B, T]`.
        source_ids: `[B, S]`.
        target_ids: `[B, T]`, what the decoder reads, its start first.
    """

    encoder: np.ndarray | None = None
    decoder: np.ndarray | None = None
    cross: np.ndarray | None = None
    source_mask: np.ndarray | None = None
    target_mask: np.ndarray | None = None
    source_ids: np.ndarray | None = None
    target_ids: np.ndarray | None = None
    kinds: dict[str, np.ndarray] = field(init=False, repr=False)
    """Those that there are, by name."""

    def __post_init__(self) -> None:
        """Collects the kinds."""
        named = {"encoder": self.encoder, "decoder": self.decoder, "cross": self.cross}
        kinds = {name: weights for name, weights in named.items() if weights is not None}
        object.__setattr__(self, "kinds", kinds)

    def real_queries(self, kind: str) -> np.ndarray:
        """Which rows of a kind are no padding, `[B, queries]`."""
        mask = self.source_mask if kind == "encoder" else self.target_mask
        assert mask is not None
        return mask

    def real_keys(self, kind: str) -> np.ndarray:
        """Which columns of a kind are no padding, `[B, keys]`."""
        mask = self.target_mask if kind == "decoder" else self.source_mask
        assert mask is not None
        return mask


def attention(model: PreTrainedModel, inputs: Mapping[str, Any]) -> AttentionRecord:
    """Runs a model on a batch and records all of its attention.

    Works with any of this package's heads and with other models of transformers that give their
    weights. The model comes back as it was, and its results are those it has without being watched.

    Args:
        model: With an encoder, a decoder or both.
        inputs: What the model takes: `input_ids` and `attention_mask` `[B, S]`, and for a decoder
            `decoder_input_ids` (and `decoder_attention_mask`) or `labels`.

    Raises:
        ValueError: No `input_ids`.
    """
    if "input_ids" not in inputs:
        raise ValueError("attention needs input_ids [B, S]; give the tokenizer's output")
    given = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    with observed(model), torch.no_grad():
        outputs = model(**given, output_attentions=True, return_dict=True)
    ids = given["input_ids"]
    mask = given.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    target = given.get("decoder_input_ids")
    if target is None and given.get("labels") is not None and model.config.is_encoder_decoder:
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        target = None if shift is None else shift(labels=given["labels"])
    target_mask = given.get("decoder_attention_mask")
    if target is not None and target_mask is None:
        target_mask = torch.ones_like(target)
    encoder = outputs.get("encoder_attentions")
    decoder = outputs.get("decoder_attentions")
    alone = outputs.get("attentions")
    if encoder is None and decoder is None and alone is not None:
        # One stack alone: which one shows in whether it looks ahead.
        looks_ahead = any(bool(layer.float().triu(1).any()) for layer in alone)
        if looks_ahead or ids.shape[1] == 1:
            encoder = alone
        else:
            decoder, target, target_mask = alone, ids, mask
    has_source = encoder is not None or outputs.get("cross_attentions") is not None
    return AttentionRecord(
        encoder=_stacked(encoder),
        decoder=_stacked(decoder),
        cross=_stacked(outputs.get("cross_attentions")),
        source_mask=_array(mask).astype(bool) if has_source else None,
        target_mask=None if target_mask is None else _array(target_mask).astype(bool),
        source_ids=_array(ids) if has_source else None,
        target_ids=None if target is None else _array(target),
    )


@contextmanager
def observed(model: PreTrainedModel) -> Iterator[None]:
    """Put the model in evaluation mode with eager attention, and put it back afterwards."""
    implementation, was_training = model.config._attn_implementation, model.training
    # Only the eager implementation has the weights to give: the others never form the matrix.
    model.set_attn_implementation("eager")
    # Dropout would show weights that were dropped and scaled up.
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        model.set_attn_implementation(implementation)


def _stacked(layers: Any) -> np.ndarray | None:
    """`[B, h, T, S]` of each layer to `[N, B, h, T, S]`."""
    return None if layers is None else _array(torch.stack([layer.float() for layer in layers]))


def _array(values: torch.Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().numpy()
    return array


def start_token_id(model: PreTrainedModel) -> int:
    """What the model's decoder reads first.

    Raises:
        ValueError: Neither of the model's configurations says.
    """
    for config in (model.generation_config, model.config):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError(
        "the model's configuration has no decoder_start_token_id; set "
        "model.generation_config.decoder_start_token_id"
    )


def readable_tokens(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens as they are to be read: spaces as ▁, part of a character as its bytes <C3>."""
    readable = []
    for token_id in ids:
        token = str(tokenizer.convert_ids_to_tokens(token_id))
        # SentencePiece's own marker would be lost in decoding a single token.
        if token.startswith("▁"):
            readable.append(token)
            continue
        text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        if "\N{REPLACEMENT CHARACTER}" in text and all(symbol in _BYTES for symbol in token):
            text = f"<{bytes(_BYTES[symbol] for symbol in token).hex(' ').upper()}>"
        readable.append("".join(map(_visible, text)))
    return readable


def _visible(character: str) -> str:
    if character == " ":
        return "▁"
    # Line breaks, other control characters and those that turn the direction of writing around.
    if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp"):
        return f"<U+{ord(character):04X}>"
    return character


def _byte_symbols() -> dict[str, int]:
    """Byte-level BPE's symbols: printable Latin-1 stands for itself, other bytes from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + position): byte for position, byte in enumerate(others)
    }


_BYTES = _byte_symbols()
