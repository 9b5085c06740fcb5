"""Which sinusoids a stored table of positions holds."""

from __future__ import annotations

import torch

from ..modeling_vanilla_transformer import sinusoidal_positions

_LAYOUTS = ("interleaved", "concatenated", "concatenated_inclusive")
_FIRST_POSITIONS = range(4)
"""0, or what fairseq and its kin count from: a pad's id + 1."""

_ROWS = 100
"""Compared; a float32 table strays from the exact one by some 1e-7 of its position."""


def recognise_sinusoids(table: torch.Tensor) -> tuple[str, int] | None:
    """The config's `position_encoding` and `position_offset` that give `table`, `[L, d]`.

    Returns:
        None for a learned table, or any other.
    """
    rows = table[:_ROWS].float()
    d_model = rows.shape[1]
    # Some tables have 16 bits.
    tolerance = 1e-4 if table.dtype in (torch.float32, torch.float64) else 1e-2
    if d_model % 2:
        return None
    for first in _FIRST_POSITIONS:
        positions = torch.arange(first, first + len(rows))
        for layout in _LAYOUTS:
            if layout == "concatenated_inclusive" and d_model < 4:
                continue
            if (sinusoidal_positions(positions, d_model, layout) - rows).abs().max() < tolerance:
                return layout, first
    return None
