"""To `torch.export` programs, which run without this package's code, also from C++."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .graphs import DECODER, ENCODER, GraphTranslator, write_graphs
from .procedure import Export, write_export
from .translator import reading

logger = logging.getLogger(__package__)


def export_torch(
    model_directory: str | Path,
    output: str | Path,
    *,
    sentences: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    report: Callable[[str], None] = logger.info,
) -> Export:
    """Writes `encoder.pt2` and `decoder.pt2`, the graphs of `graphs`, for `torch.export.load`.

    Args:
        model_directory: A model directory, a run directory or a Hub id.
        output: Directory to write; must not be there yet, or be empty.
        sentences: To compare outputs on; by default some of the embedded corpus.
        references: Their translations, for BLEU.
        report: Told of the size and the agreement.

    Raises:
        ValueError: `output` is in use; outputs do not agree. Nothing is written.
    """
    return write_export(
        model_directory,
        output,
        _write,
        TorchTranslator,
        record={"format": "torch", "precision": "float32"},
        sentences=sentences,
        references=references,
        report=report,
    )


def _write(
    model: VanillaTransformerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> None:
    for name, program in write_graphs(model, directory).items():
        torch.export.save(program, directory / f"{name}.pt2")


class TorchTranslator(GraphTranslator):
    """A model that `export_torch` has written.

    ```python
    TorchTranslator("model-torch").translate(["The dog sees the cat."])
    ```

    Args:
        directory: Of the export.
    """

    def __init__(self, directory: str | Path):
        super().__init__(directory)
        with reading(self.directory):
            loaded = {
                name: torch.export.load(self.directory / f"{name}.pt2")
                for name in (ENCODER, DECODER)
            }
            self.programs = {name: program.module() for name, program in loaded.items()}
        self.check_inputs(len(loaded[DECODER].graph_signature.user_inputs))

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """See `GraphTranslator`."""
        return list(self.programs[ENCODER](ids, mask))

    def step(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        source: list[torch.Tensor],
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See `GraphTranslator`."""
        logits, present = self.programs[DECODER](tokens, mask, source, past)
        return logits, list(present)
