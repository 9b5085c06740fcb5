"""An exported model from its directory, whatever runs it."""

from __future__ import annotations

import json
from pathlib import Path

from .ctranslate2 import CTranslate2Translator
from .onnx import OnnxTranslator
from .torch_export import TorchTranslator
from .translator import RECORD, ExportedTranslator

FORMATS: dict[str, type[ExportedTranslator]] = {
    "ctranslate2": CTranslate2Translator,
    "onnx": OnnxTranslator,
    "torch": TorchTranslator,
}


def is_export(model: str | Path) -> bool:
    """Whether an export has written this directory."""
    return (Path(model).expanduser() / RECORD).is_file()


def open_export(directory: str | Path) -> ExportedTranslator:
    """Opens a directory that an export has written.

    Raises:
        ValueError: It is not whole, or of no format of `FORMATS`.
    """
    path = Path(directory).expanduser() / RECORD
    try:
        found = FORMATS[json.loads(path.read_text("utf-8"))["format"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} names no format of {', '.join(FORMATS)} ({error}); export the model again"
        ) from error
    return found(directory)
