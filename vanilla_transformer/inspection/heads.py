"""What each head does: how widely it looks, how far, and at whom; which words it pairs.

Shapes: as in `recording`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .recording import AttentionRecord

ROLE_SHARE = 0.5
"""Of a head's weight, for it to be named after where that goes."""

BROAD_SHARE = 0.8
"""Of the greatest entropy there could be, for a head to be called broad."""


@dataclass(frozen=True)
class HeadSummary:
    """One head, over all real positions of a batch.

    Attributes:
        kind: `encoder`, `decoder` or `cross`.
        layer: From 1.
        head: From 1.
        entropy: Of the weights of a position, in nats, the mean.
        entropy_share: The same as a share of what evenly spread weights would have, 0 to 1.
        distance: Mean distance looked at, in tokens; None for cross-attention, whose two sides do
            not count alike.
        shares: Mean weight, over the positions that have one, on the token itself (`self`), the
            one before (`previous`) and after (`next`), the `first` and the `last` of the sentence
            and on `padding`. For cross-attention only the last three.
        role: The one of `shares` that gets the most, where that is half of the weight; `broad`
            where the entropy is near its greatest; else `mixed`.
    """

    kind: str
    layer: int
    head: int
    entropy: float
    entropy_share: float
    distance: float | None
    shares: dict[str, float]
    role: str


def summarise_heads(record: AttentionRecord) -> list[HeadSummary]:
    """Says of every head of a record what it does."""
    return [
        _summary(record, kind, layer, head)
        for kind, weights in record.kinds.items()
        for layer in range(weights.shape[0])
        for head in range(weights.shape[2])
    ]


def _summary(record: AttentionRecord, kind: str, layer: int, head: int) -> HeadSummary:
    entropies, greatest, distances = [], [], []
    shares: dict[str, list[float]] = {}
    for rows, padding, is_causal in _sentences(record, kind, layer, head):
        queries, keys = np.indices(rows.shape)
        entropies += list(-(rows * np.log(np.maximum(rows, 1e-30))).sum(axis=1))
        visible = np.arange(1, len(rows) + 1) if is_causal else np.full(len(rows), rows.shape[1])
        greatest += list(np.log(visible))
        last = rows.shape[1] - 1
        places = {"first": keys == 0, "last": keys == last}
        if kind != "cross":
            distances += list((rows * np.abs(queries - keys)).sum(axis=1))
            places |= {
                "self": queries == keys,
                "previous": queries - 1 == keys,
                "next": queries + 1 == keys,
            }
            if is_causal:
                # It stands there at the end of the sentence alone, where it is the token itself.
                del places["next"], places["last"]
        for name, place in places.items():
            exists = place.any(axis=1)
            shares.setdefault(name, []).extend((rows * place).sum(axis=1)[exists].tolist())
        shares.setdefault("padding", []).extend(padding.tolist())
    means = {name: float(np.mean(values)) if values else 0.0 for name, values in shares.items()}
    entropy, most = float(np.mean(entropies)), float(np.mean(greatest))
    entropy_share = entropy / most if most else 0.0
    best = max(means, key=lambda name: means[name])
    role = "broad" if entropy_share >= BROAD_SHARE else "mixed"
    if means[best] >= ROLE_SHARE:
        role = best
    distance = float(np.mean(distances)) if distances else None
    return HeadSummary(kind, layer + 1, head + 1, entropy, entropy_share, distance, means, role)


def _sentences(
    record: AttentionRecord, kind: str, layer: int, head: int
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Of each sentence its weights among real tokens, and what each query gives to padding."""
    for sentence, weights in enumerate(record.kinds[kind][layer, :, head]):
        queries = record.real_queries(kind)[sentence]
        keys = record.real_keys(kind)[sentence]
        padding = weights[queries][:, ~keys].sum(axis=1)
        yield weights[queries][:, keys].astype(np.float64), padding, kind == "decoder"


def word_spans(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where words begin and end among readable tokens: a word begins at a `▁`, a sentence does too.

    Special tokens, such as `</s>`, are words of their own.
    """
    spans: list[list[int]] = []
    after_special = True
    for i, token in enumerate(tokens):
        is_special = token.startswith("<") and token.endswith(">") and not token.startswith("<U+")
        if is_special and len(token) > 2 and token[1:3].isalnum() and token == token.upper():
            # Bytes of a character, as `readable_tokens` writes them.
            is_special = False
        if is_special or after_special or token.startswith("▁"):
            spans.append([i, i])
        spans[-1][1] = i + 1
        after_special = is_special
    return [(begin, end) for begin, end in spans]


def align_words(
    cross: np.ndarray,
    source_tokens: Sequence[str],
    written_tokens: Sequence[str],
    layer: int | None = None,
) -> list[tuple[int, int, float]]:
    """Pairs each word that is written with the source word it attends to most.

    The mean over heads of the layer before the last, which aligns best in trained models (Garg et
    al. 2019, arXiv:1909.02074, section 3), summed over the tokens of a source word and averaged
    over those of a target word.

    Args:
        cross: `[N, h, T, S]`, weights from decoder to encoder of one sentence.
        source_tokens: S readable tokens.
        written_tokens: The T tokens that the rows write.
        layer: From 1; default: the last but one, or the only one.

    Returns:
        For each target word its number, the source word's number and the weight, 0 to 1. Special
        tokens are words too.

    Raises:
        ValueError: Tokens and weights that do not go together, no such layer.
    """
    if cross.shape[2:] != (len(written_tokens), len(source_tokens)):
        raise ValueError(
            f"cross ({list(cross.shape)}) must be [layers, heads, {len(written_tokens)} written "
            f"tokens, {len(source_tokens)} source tokens]"
        )
    layer = max(1, len(cross) - 1) if layer is None else layer
    if not 1 <= layer <= len(cross):
        raise ValueError(f"layer ({layer}) must be from 1 to {len(cross)}")
    weights = cross[layer - 1].mean(axis=0)
    sources, targets = word_spans(source_tokens), word_spans(written_tokens)
    found = []
    for number, (begin, end) in enumerate(targets):
        by_word = [float(weights[begin:end, a:b].sum(axis=1).mean()) for a, b in sources]
        best = int(np.argmax(by_word))
        found.append((number, best, by_word[best]))
    return found
