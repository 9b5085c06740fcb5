"""Pictures of what has no data in it: positional encodings, the learning rate; and neighbours.

Positions as the model computes them (3.5), the schedule as training applies it (5.3), and which
tokens' embeddings are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..atomic_file import atomic_file
from ..modeling_vanilla_transformer import sinusoidal_positions
from ..training.optimization import learning_rate
from .recording import readable_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHOWN_ROWS = (0.2, 0.5, 0.8)
"""Positions whose dot products with all others are drawn, as shares of the length."""


def plot_positions(
    path: str | Path, *, d_model: int = 512, length: int = 100, layout: str = "interleaved"
) -> Path:
    """Draws the sinusoids: a heat map, and their dot products by distance.

    The products of two positions depend on their distance alone and fall with it, which is how a
    linear layer can look at a relative position (3.5).

    Args:
        path: A PNG, or what else matplotlib writes; parent folders are made.
        d_model: Width.
        length: Positions.
        layout: `position_encoding` of the configuration.

    Raises:
        ValueError: Fewer than two positions.
    """
    from matplotlib.figure import Figure

    if length < 2:
        raise ValueError(f"length ({length}) must be at least 2 positions")
    table = sinusoidal_positions(torch.arange(length), d_model, layout).double().numpy()
    products = table @ table.T
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    image = left.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="none")
    left.set(xlabel="dimension", ylabel="position", title=f"Positional encoding, {layout}")
    figure.colorbar(image, ax=left)
    for share in _SHOWN_ROWS:
        position = int(share * (length - 1))
        distances = np.arange(length) - position
        right.plot(
            distances, products[position] / products[position, position], label=f"from {position}"
        )
    right.set(
        xlabel="distance", ylabel="dot product, of itself 1", title="How alike two positions are"
    )
    right.legend()
    return _save(figure, path)


def plot_learning_rate(
    path: str | Path, settings: Sequence[tuple[int, int]] = ((512, 4000), (512, 8000), (256, 4000))
) -> Path:
    """Draws the learning rate by update (5.3, eq. 3) for pairs of `d_model` and warm-up."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    updates = np.arange(1, 20_001)
    for d_model, warmup in settings:
        rates = [learning_rate(int(update), d_model, warmup) for update in updates]
        axes.plot(updates, rates, label=f"d_model {d_model}, warm-up {warmup:,}")
    axes.set(xlabel="update", ylabel="learning rate", title="The paper's schedule")
    axes.legend()
    return _save(figure, path)


def nearest_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, count: int = 8
) -> dict[str, list[tuple[str, float]]]:
    """Which tokens' embeddings point the same way as those of a text.

    Args:
        model: Any with input embeddings.
        tokenizer: Its own.
        text: Its tokens are looked up, special ones aside.
        count: Neighbours of each.

    Returns:
        By readable token the nearest others with the cosine, nearest first.

    Raises:
        ValueError: No token in the text, or no neighbour asked for.
    """
    ids = list(dict.fromkeys(tokenizer(text, add_special_tokens=False)["input_ids"]))
    if not ids or count < 1:
        raise ValueError(f"text ({text!r}) must hold a token, and count ({count}) be at least 1")
    matrix = model.get_input_embeddings().weight.detach().float()
    directions = torch.nn.functional.normalize(matrix, dim=1)
    cosines = directions[ids] @ directions.T
    cosines[torch.arange(len(ids)), torch.tensor(ids)] = -2
    best = cosines.topk(min(count, matrix.shape[0] - 1))
    names = readable_tokens(ids, tokenizer)
    return {
        name: list(zip(readable_tokens(places, tokenizer), values, strict=True))
        for name, places, values in zip(
            names, best.indices.tolist(), best.values.tolist(), strict=True
        )
    }


def _save(figure: Any, path: str | Path) -> Path:
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip(".") or "png", dpi=150)
    return Path(path)
