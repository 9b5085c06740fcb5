"""Tensor2Tensor's TensorFlow checkpoints, those of the paper's authors."""

from __future__ import annotations

from pathlib import Path

from .source import Family


class Tensor2TensorFamily(Family):
    """To be written."""

    name = "tensor2tensor"
    title = "Tensor2Tensor"

    def recognises(self, path: Path) -> bool:  # noqa: D102
        return False
