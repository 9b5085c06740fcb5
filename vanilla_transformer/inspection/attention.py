"""Attention weights as one self-contained HTML page: a heat map for each kind, layer and head.

Shapes: `h` heads, `T` target length, `S` source length; a matrix has a row per query (the position
that attends) and a column per key (the position attended to).
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch

from ..atomic_file import atomic_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The page holds all weights: 6 layers of 8 heads at 200 tokens are 15 MB, and a map of more
# tokens cannot be read anyway.
MAX_TOKENS = 200
# Weights travel as 16-bit integers, exact to 1/131070: a page holds up to a million of them.
STEPS = 65_535


def attention_page(
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    encoder_attentions: Sequence[np.ndarray],
    decoder_attentions: Sequence[np.ndarray],
    cross_attentions: Sequence[np.ndarray],
    *,
    title: str,
    written_tokens: Sequence[str] | None = None,
) -> str:
    """Write the page that shows the three kinds of attention of one sentence pair.

    The page needs no network and no other file. Tokens may hold anything: they appear as text.

    Args:
        source_tokens: the encoder's S tokens, as they are to be read.
        target_tokens: the T tokens that the decoder reads, the start token first.
        encoder_attentions: per layer the encoder's self-attention weights, [h, S, S].
        decoder_attentions: per layer the decoder's self-attention weights, [h, T, T].
        cross_attentions: per layer the weights from decoder to encoder, [h, T, S].
        title: heading of the page.
        written_tokens: the T tokens that the decoder's positions predict. They label the rows of
            the decoder's maps, because a position attends in order to write its next token. Without
            them the tokens read do.

    Raises:
        ValueError: shapes that do not fit the tokens, or weights outside [0, 1].
    """
    rows = target_tokens if written_tokens is None else written_tokens
    if len(rows) != len(target_tokens):
        raise ValueError(
            f"there are {len(rows)} written_tokens for {len(target_tokens)} target_tokens; "
            "each position that reads one token writes one"
        )
    action = "row: the token read" if written_tokens is None else "row: the token being written"
    kinds = [
        _kind(
            "Encoder self-attention",
            "row: source token; column: source token it attends to",
            source_tokens,
            source_tokens,
            encoder_attentions,
        ),
        _kind(
            "Decoder self-attention",
            f"{action}; column: token read so far that it attends to",
            rows,
            target_tokens,
            decoder_attentions,
        ),
        _kind(
            "Cross-attention",
            f"{action}; column: source token it attends to",
            rows,
            source_tokens,
            cross_attentions,
        ),
    ]
    template = Path(__file__).with_name("attention.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title, source=list(source_tokens), target=list(rows), kinds=kinds, steps=STEPS
    )


def _kind(
    name: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    attentions: Sequence[np.ndarray],
) -> dict[str, Any]:
    """One kind of attention for the template, its weights as base64 of uint16 [layers, h, T, S]."""
    if len(attentions) == 0:
        raise ValueError(f"{name} has no layer; give one array [heads, rows, columns] per layer")
    layers = [np.asarray(attention, dtype=np.float64) for attention in attentions]
    shape = (layers[0].shape[0], len(rows), len(columns))
    for number, layer in enumerate(layers, start=1):
        if layer.shape != shape or layer.size == 0:
            raise ValueError(
                f"{name}, layer {number}, has shape {list(layer.shape)} and must have {list(shape)}"
                " and at least one weight: [heads, tokens in rows, tokens in columns]"
            )
        # Written so that NaN, for which every comparison is false, is refused too.
        if not (layer.min() >= -1e-3 and layer.max() <= 1 + 1e-3):
            raise ValueError(
                f"{name}, layer {number}, has weights from {layer.min()} to {layer.max()}; they "
                "must lie in [0, 1]: give the weights after the softmax and without dropout"
            )
    integers = np.rint(np.clip(np.stack(layers), 0, 1) * STEPS).astype("<u2")
    return {
        "name": name,
        "caption": caption,
        "rows": list(rows),
        "columns": list(columns),
        "num_layers": len(layers),
        "num_heads": shape[0],
        "weights": base64.b64encode(integers.tobytes()).decode("ascii"),
    }


def write_attention_page(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    path: str | Path,
    *,
    target: str | None = None,
) -> Path:
    """Run a sequence-to-sequence model on one sentence and write the page of its attention.

    The model comes back as it was: training or evaluation mode, attention implementation.

    Args:
        model: any transformers encoder-decoder model.
        tokenizer: its tokenizer.
        source: the sentence to translate.
        path: where the HTML goes, whole or not at all; parent folders are made.
        target: the translation to look at; without it the model's own greedy one.

    Returns:
        The page's path.

    Raises:
        ValueError: no source text, or more tokens than a page can show.
    """
    if not source.strip():
        raise ValueError(f"source ({source!r}) must hold some text to attend to")
    encoded = tokenizer(source, return_tensors="pt")
    inputs = {
        name: encoded[name].to(model.device)
        for name in ("input_ids", "attention_mask")
        if name in encoded
    }
    source_ids = inputs["input_ids"][0].tolist()
    _check_length("source", source_ids)
    with _observed(model), torch.no_grad():
        # A position reads one token and writes the next: the two lists are shifted by one.
        if target is None:
            output = model.generate(
                **inputs,
                num_beams=1,
                do_sample=False,
                # The paper's limit (6.1), and no more than the page shows.
                max_new_tokens=min(len(source_ids) + 50, MAX_TOKENS),
            )
            sequence = output[0].tolist()
        else:
            sequence = [_start_token_id(model), *tokenizer(text_target=target)["input_ids"]]
            _check_length("target", sequence)
        read_ids, written_ids = sequence[:-1], sequence[1:]
        outputs = model(
            **inputs,
            decoder_input_ids=torch.tensor([read_ids], device=model.device),
            output_attentions=True,
            use_cache=False,
            return_dict=True,
        )
    translation = tokenizer.decode(written_ids, skip_special_tokens=True)
    page = attention_page(
        _readable(source_ids, tokenizer),
        _readable(read_ids, tokenizer),
        _arrays(outputs.encoder_attentions),
        _arrays(outputs.decoder_attentions),
        _arrays(outputs.cross_attentions),
        title=f"{source.strip()} → {translation}",
        written_tokens=_readable(written_ids, tokenizer),
    )
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


@contextmanager
def _observed(model: PreTrainedModel) -> Iterator[None]:
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


def _start_token_id(model: PreTrainedModel) -> int:
    for config in (model.generation_config, model.config):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError(
        "the model's configuration has no decoder_start_token_id; set "
        "model.generation_config.decoder_start_token_id"
    )


def _check_length(name: str, ids: list[int]) -> None:
    if len(ids) > MAX_TOKENS:
        raise ValueError(
            f"{name} has {len(ids)} tokens and a page shows at most {MAX_TOKENS}; give a shorter "
            "sentence"
        )


def _arrays(attentions: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The first sentence's weights of each layer, [1, h, T, S] -> [h, T, S]."""
    return [layer[0].float().cpu().numpy() for layer in attentions]


def _readable(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
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
