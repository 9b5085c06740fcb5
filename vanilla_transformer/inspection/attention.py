"""Attention weights as one self-contained HTML page, and as a picture.

A heat map for each kind, layer and head; one token across all heads; which words are paired; what
each head does; the tree of the beam. Shapes: as in `recording`, of one sentence.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch

from ..atomic_file import atomic_file
from .beam import BeamNode, beam_tree
from .heads import HeadSummary, align_words, summarise_heads, word_spans
from .recording import attention, observed, readable_tokens, start_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The page holds all weights: 6 layers of 8 heads at 200 tokens are 15 MB, and a map of more
# tokens cannot be read anyway.
MAX_TOKENS = 200
# Weights travel as 16-bit integers, exact to 1/131070: a page holds up to a million of them.
STEPS = 65_535


@dataclass(frozen=True)
class AttentionExample:
    """What the page shows of one sentence pair.

    Attributes:
        title: Its heading.
        source: The S source tokens, as they are to be read.
        target: The T tokens that label the decoder's rows.
        kinds: Maps as the page reads them.
        alignment: Words of both sides and which are paired: `source`, `target`, `pairs`.
        heads: What each head does.
        tree: Of a beam search, chains of tokens without a branch joined: `text`,
            `log_probability`, `score`, `rank`, `children`.
    """

    title: str
    source: list[str]
    target: list[str]
    kinds: list[dict[str, Any]]
    alignment: dict[str, Any] | None = None
    heads: list[HeadSummary] = dataclasses.field(default_factory=list)
    tree: dict[str, Any] | None = None


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
    kinds = _kinds(
        source_tokens,
        target_tokens,
        encoder_attentions,
        decoder_attentions,
        cross_attentions,
        written_tokens,
    )
    rows = target_tokens if written_tokens is None else written_tokens
    return examples_page([AttentionExample(title, list(source_tokens), list(rows), kinds)])


def examples_page(examples: Sequence[AttentionExample], *, word: str | None = None) -> str:
    """Write the page of one or more sentences, one below the other.

    Args:
        examples: At least one.
        word: Where a token of a sentence reads so, it is the one first shown across all heads.
    """
    template = Path(__file__).with_name("attention.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [
        {"kinds": example.kinds, "alignment": example.alignment, "word": word}
        for example in examples
    ]
    return environment.from_string(template).render(examples=examples, shown=shown, steps=STEPS)


def _kinds(
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    encoder_attentions: Sequence[np.ndarray],
    decoder_attentions: Sequence[np.ndarray],
    cross_attentions: Sequence[np.ndarray],
    written_tokens: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """The three kinds of maps, checked."""
    rows = target_tokens if written_tokens is None else written_tokens
    if len(rows) != len(target_tokens):
        raise ValueError(
            f"there are {len(rows)} written_tokens for {len(target_tokens)} target_tokens; "
            "each position that reads one token writes one"
        )
    action = "row: the token read" if written_tokens is None else "row: the token being written"
    return [
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


def explain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    target: str | None = None,
    num_beams: int | None = None,
) -> AttentionExample:
    """Run a sequence-to-sequence model on one sentence and record what the page shows of it.

    The model comes back as it was: training or evaluation mode, attention implementation.

    Args:
        model: any transformers encoder-decoder model.
        tokenizer: its tokenizer.
        source: the sentence to translate.
        target: the translation to look at; without it the model's own greedy one.
        num_beams: width of the beam search whose tree is shown; None for none.

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
    if target is None:
        with observed(model), torch.no_grad():
            output = model.generate(
                **inputs,
                num_beams=1,
                do_sample=False,
                # The paper's limit (6.1), and no more than the page shows.
                max_new_tokens=min(len(source_ids) + 50, MAX_TOKENS),
            )
        sequence = output[0].tolist()
    else:
        sequence = [start_token_id(model), *tokenizer(text_target=target)["input_ids"]]
        _check_length("target", sequence)
    # A position reads one token and writes the next: the two lists are shifted by one.
    read_ids, written_ids = sequence[:-1], sequence[1:]
    read = torch.tensor([read_ids], device=model.device)
    record = attention(model, {**inputs, "decoder_input_ids": read})
    assert record.encoder is not None
    assert record.decoder is not None
    assert record.cross is not None
    side = getattr(tokenizer, "target", tokenizer)
    source_tokens = readable_tokens(source_ids, tokenizer)
    written = readable_tokens(written_ids, side)
    sources, targets = word_spans(source_tokens), word_spans(written)
    return AttentionExample(
        title=f"{source.strip()} → {tokenizer.decode(written_ids, skip_special_tokens=True)}",
        source=source_tokens,
        target=written,
        kinds=_kinds(
            source_tokens,
            readable_tokens(read_ids, side),
            list(record.encoder[:, 0]),
            list(record.decoder[:, 0]),
            list(record.cross[:, 0]),
            written,
        ),
        alignment={
            "source": [_word(source_tokens, span) for span in sources],
            "target": [_word(written, span) for span in targets],
            "pairs": align_words(record.cross[:, 0], source_tokens, written),
        },
        heads=summarise_heads(record),
        tree=None
        if num_beams is None
        else _joined(beam_tree(model, tokenizer, source, num_beams=num_beams)),
    )


def write_attention_page(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str | Sequence[str],
    path: str | Path,
    *,
    target: str | None = None,
    word: str | None = None,
    num_beams: int | None = None,
) -> Path:
    """Run a sequence-to-sequence model on sentences and write the page of its attention.

    Args:
        model: any transformers encoder-decoder model; it comes back as it was.
        tokenizer: its tokenizer.
        source: the sentence to translate, or several to compare.
        path: where the HTML goes, whole or not at all; parent folders are made.
        target: the translation to look at; without it the model's own greedy one.
        word: the token that is first shown across all heads, in each sentence that has it.
        num_beams: width of the beam search whose tree is shown; None for none.

    Returns:
        The page's path.

    Raises:
        ValueError: no source text, more tokens than a page can show, or a target for several.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources or (target is not None and len(sources) > 1):
        raise ValueError(f"give one sentence for the target {target!r}, not {len(sources)}")
    examples = [
        explain(model, tokenizer, one, target=target, num_beams=num_beams) for one in sources
    ]
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(examples_page(examples, word=word), encoding="utf-8")
    return Path(path)


def write_attention_picture(example: AttentionExample, path: str | Path) -> Path:
    """Draw all of an example's heads, a row of maps for each layer, as a picture.

    Args:
        example: What `explain` recorded.
        path: A PNG, or what else matplotlib writes; parent folders are made.
    """
    from matplotlib.figure import Figure

    heads = max(kind["num_heads"] for kind in example.kinds)
    layers = sum(kind["num_layers"] for kind in example.kinds)
    figure = Figure(figsize=(1.5 * heads + 1.5, 1.5 * layers + 1.5), layout="constrained")
    grid = figure.add_gridspec(layers, heads)
    row = 0
    for kind in example.kinds:
        weights = _unpacked(kind)
        for layer in range(kind["num_layers"]):
            for head in range(kind["num_heads"]):
                axes = figure.add_subplot(grid[row, head])
                axes.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=1, aspect="auto")
                is_left, is_short = head == 0, max(weights.shape[2:]) <= 30
                axes.set_xticks(range(weights.shape[3]) if is_short else [])
                axes.set_yticks(range(weights.shape[2]) if is_left and is_short else [])
                axes.set_xticklabels(kind["columns"] if is_short else [], rotation=90, fontsize=5)
                axes.set_yticklabels(kind["rows"] if is_left and is_short else [], fontsize=5)
                if is_left:
                    axes.set_ylabel(f"{kind['name'].split()[0]} {layer + 1}", fontsize=8)
                if row == 0:
                    axes.set_title(f"head {head + 1}", fontsize=8)
            row += 1
    # A dollar sign would begin a formula.
    figure.suptitle(example.title.replace("$", r"\$"), fontsize=10)
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip(".") or "png", dpi=150)
    return Path(path)


def _check_length(name: str, ids: list[int]) -> None:
    if len(ids) > MAX_TOKENS:
        raise ValueError(
            f"{name} has {len(ids)} tokens and a page shows at most {MAX_TOKENS}; give a shorter "
            "sentence"
        )


def _unpacked(kind: dict[str, Any]) -> np.ndarray:
    """A map's weights again, `[N, h, rows, columns]`."""
    integers = np.frombuffer(base64.b64decode(kind["weights"]), dtype="<u2")
    shape = (kind["num_layers"], kind["num_heads"], len(kind["rows"]), len(kind["columns"]))
    weights: np.ndarray = integers.reshape(shape) / STEPS
    return weights


def _word(tokens: Sequence[str], span: tuple[int, int]) -> str:
    return "".join(tokens[span[0] : span[1]]).lstrip("▁") or "▁"


def _joined(node: BeamNode) -> dict[str, Any]:
    """A tree in which what has no branch is one node."""
    text = node.token
    while len(node.children) == 1 and node.rank is None:
        (node,) = node.children.values()
        text += node.token
    children = sorted(node.children.values(), key=lambda child: -child.log_probability)
    return {
        "text": text.replace("▁", " "),
        "log_probability": node.log_probability,
        "score": node.score,
        "rank": node.rank,
        "children": [_joined(child) for child in children],
    }
