"""What every export does: load, write aside, prove, and only then give it its name."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from ..recipes.models import load_model
from ..training.checkpointing import atomic_directory
from .parity import Agreement, default_sentences, measure_agreement
from .translator import RECORD, ExportedTranslator

logger = logging.getLogger(__package__)


@dataclass(frozen=True)
class Export:
    """What came of an export.

    Attributes:
        output: Directory of the exported model.
        size: Bytes of all files in it.
        agreements: One for each search that was compared.
    """

    output: Path
    size: int
    agreements: list[Agreement]


def write_export(
    model_directory: str | Path,
    output: str | Path,
    write: Callable[[VanillaTransformerForConditionalGeneration, Any, Path], None],
    translator: Callable[[Path], ExportedTranslator],
    *,
    record: dict[str, Any],
    is_exact: bool = True,
    sentences: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    report: Callable[[str], None] = logger.info,
    **arguments: Any,
) -> Export:
    """Writes a model in another format, with its tokenizer, and proves that it is the same model.

    Args:
        model_directory: A model directory, a run directory or a Hub id.
        output: Directory to write; must not be there yet, or be empty.
        write: Writes model, tokenizer's vocabulary and all else of the format into a directory.
        translator: Opens what was written.
        record: What to note down of the format; `max_positions` where it has fewer than the model.
        is_exact: Whether an export that does not agree is refused; one of less precision is not.
        sentences: To compare outputs on; by default some of the embedded corpus.
        references: Their translations, for BLEU.
        report: Told of each step.
        **arguments: Of `generate` with a beam, for the comparison.

    Raises:
        ValueError: `output` is in use; no such model, or one that the format cannot hold; outputs
            do not agree; there are not as many references as sentences. Nothing is written then.
    """
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is in use; give a directory that is not there yet, or empty")
    if references is not None and (sentences is None or len(references) != len(sentences)):
        count = "none" if sentences is None else len(sentences)
        raise ValueError(
            f"there are {len(references)} references for {count} sentences; give one for each"
        )
    model, tokenizer = load_model(model_directory, "cpu")
    if not isinstance(model, VanillaTransformerForConditionalGeneration):
        raise ValueError(
            f"{model_directory} is a {type(model).__name__}; convert it to this package first, "
            "with vanilla-transformer convert"
        )
    model = model.float()
    with atomic_directory(output) as directory:
        write(model, tokenizer, directory)
        tokenizer.save_pretrained(directory)
        model.generation_config.save_pretrained(directory)
        config = model.config
        record = {
            "source": Path(model_directory).name,
            "max_positions": None,
            **record,
            "torch": torch.__version__,
        }
        if config.position_encoding == "learned":
            record["max_positions"] = config.max_position_embeddings - config.position_offset
        _write_record(record, directory)
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        native = 4 * sum(parameter.numel() for parameter in model.parameters())
        report(f"{output}: {size / 1e6:,.1f} MB, the model itself {native / 1e6:,.1f} MB")
        chosen = default_sentences() if sentences is None else sentences
        agreements = measure_agreement(
            model, tokenizer, translator(directory), chosen, references, **arguments
        )
        for agreement in agreements:
            report(str(agreement))
            if is_exact and not agreement.holds:
                raise ValueError(
                    f"the export of {model_directory} does not write what the model writes "
                    f"({agreement}); nothing was written. Please report the model"
                )
        if references is not None:
            report(f"BLEU: {agreements[0].signature}")
        record["agreement"] = [dataclasses.asdict(agreement) for agreement in agreements]
        _write_record(record, directory)
    return Export(output, size, agreements)


def _write_record(record: dict[str, Any], directory: Path) -> None:
    (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def require(name: str) -> ModuleType:
    """A library that only an export needs.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name.split('.')[0]} is not installed ({error}); "
            "pip install 'vanilla_transformer[export]'"
        ) from error
