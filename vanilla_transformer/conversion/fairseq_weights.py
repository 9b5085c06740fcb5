"""Weights under the names that fairseq gave them and FSMT kept.

`models/transformer/` and `modules/transformer_layer.py` of fairseq 0.12.2.
"""

from __future__ import annotations

from typing import Any

import torch

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from .source import TensorReader

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}

POSITIONS_AND_NORMS: dict[str, Any] = {
    "attention_bias": True,
    "position_encoding": "concatenated_inclusive",
    # torch's default, which fairseq keeps.
    "layer_norm_eps": 1e-5,
}

_ENCODER_NORMS = {"self_attn": "self_attn_layer_norm", "ffn": "final_layer_norm"}
_DECODER_NORMS = _ENCODER_NORMS | {"cross_attn": "encoder_attn_layer_norm"}


def take_embeddings(
    reader: TensorReader,
    prefix: str,
    d_model: int,
    *,
    shares_all: bool,
    shares_output: bool,
    num_unlisted: int,
    unknown: int,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The embeddings and the output layer, and the config's fields that they decide.

    Files hold a shared matrix once or several times; what is equal is shared.

    Args:
        reader: Of the checkpoint.
        prefix: What all names begin with.
        d_model: Columns.
        shares_all: Whether the options say that the three are one.
        shares_output: Whether they say that the output layer is the target embedding.
        num_unlisted: Rows to add to the source embedding, each the one of `unknown`: symbols on the
            way of the byte-pair encoding that the vocabulary lacks. To the model they are unknown,
            but a tokenizer has to know them apart (see `bpe.py`).
        unknown: Id of `<unk>`.
    """
    names = [
        f"{prefix}encoder.embed_tokens.weight",
        f"{prefix}decoder.embed_tokens.weight",
        f"{prefix}decoder.output_projection.weight",
    ]
    stored_under = dict(zip(names, names, strict=True))
    if shares_all:
        found = next((name for name in names if name in reader), names[0])
        stored_under |= {name: found for name in names if name not in reader}
    elif shares_output and names[2] not in reader:
        stored_under[names[2]] = names[1]

    def take(name: str) -> torch.Tensor:
        stored = reader.tensors.get(name)
        rows = len(stored) if stored is not None and stored.ndim == 2 else 1
        return reader.take(name, (rows, d_model))

    taken = {name: take(name) for name in dict.fromkeys(stored_under.values())}
    encoder, decoder, output = (taken[stored_under[name]] for name in names)
    ties = torch.equal(decoder, output)
    shares = ties and torch.equal(encoder, decoder)
    is_whole = not reader.missing and not reader.mismatched
    if is_whole and ((shares_output and not ties) or (shares_all and not shares)):
        raise ValueError(
            f"the options of {reader.place} say that {' and '.join(names[not shares_all :])} are "
            "one matrix, which they are not; get the checkpoint again"
        )
    if num_unlisted:
        encoder = torch.cat((encoder, encoder[unknown].expand(num_unlisted, -1)))
        shares = False
    weights = {"model.encoder.embed_tokens.weight": encoder}
    if not shares:
        weights["model.decoder.embed_tokens.weight"] = decoder
    if not ties:
        weights["lm_head.weight"] = output
    fields = {
        "d_model": d_model,
        "vocab_size": len(encoder),
        "decoder_vocab_size": None if len(encoder) == len(decoder) else len(decoder),
        "tie_word_embeddings": ties,
        "share_embeddings": shares,
    }
    return fields, weights


def take_stacks(
    reader: TensorReader, prefix: str, config: VanillaTransformerConfig
) -> dict[str, torch.Tensor]:
    """The layers of both stacks, and their final norms where there are any."""
    weights = {}
    d_model = config.d_model
    assert config.decoder_d_ff is not None

    def take(ours: str, theirs: str, *shape: int) -> None:
        weights[f"{ours}.weight"] = reader.take(f"{theirs}.weight", shape)
        weights[f"{ours}.bias"] = reader.take(f"{theirs}.bias", shape[:1])

    for side, depth, d_ff, norms in (
        ("encoder", config.num_encoder_layers, config.d_ff, _ENCODER_NORMS),
        ("decoder", config.num_decoder_layers, config.decoder_d_ff, _DECODER_NORMS),
    ):
        for number in range(depth):
            ours = f"model.{side}.layers.{number}"
            theirs = f"{prefix}{side}.layers.{number}"
            for attention, name in (("self_attn", "self_attn"), ("cross_attn", "encoder_attn")):
                if attention in norms:
                    for letter, part in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
                        projection = f"{theirs}.{name}.{part}_proj"
                        take(f"{ours}.{attention}.{letter}_proj", projection, d_model, d_model)
            take(f"{ours}.fc1", f"{theirs}.fc1", d_ff, d_model)
            take(f"{ours}.fc2", f"{theirs}.fc2", d_model, d_ff)
            for sublayer, name in norms.items():
                take(f"{ours}.{sublayer}_layer_norm", f"{theirs}.{name}", d_model)
        if config.layer_norm_position == "pre":
            take(f"model.{side}.layer_norm", f"{prefix}{side}.layer_norm", d_model)
    return weights
