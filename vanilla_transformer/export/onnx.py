"""To ONNX, for onnxruntime and whatever else reads it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .graphs import DECODER, ENCODER, GraphTranslator, tensor_names, write_graphs
from .procedure import Export, require, write_export
from .translator import reading

logger = logging.getLogger(__package__)


def export_onnx(
    model_directory: str | Path,
    output: str | Path,
    *,
    sentences: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    report: Callable[[str], None] = logger.info,
) -> Export:
    """Writes `encoder.onnx` and `decoder.onnx`, the graphs of `graphs`, each with a `.data` file.

    One decoder serves all steps: at the first its past has no tokens.

    Args:
        model_directory: A model directory, a run directory or a Hub id.
        output: Directory to write; must not be there yet, or be empty.
        sentences: To compare outputs on; by default some of the embedded corpus.
        references: Their translations, for BLEU.
        report: Told of the size and the agreement.

    Raises:
        ValueError: `output` is in use; outputs do not agree; a library is not installed. Nothing
            is written.
    """
    versions = {name: require(name).__version__ for name in ("onnx", "onnxscript", "onnxruntime")}
    return write_export(
        model_directory,
        output,
        _write,
        OnnxTranslator,
        record={"format": "onnx", "precision": "float32", **versions},
        sentences=sentences,
        references=references,
        report=report,
    )


def _write(
    model: VanillaTransformerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> None:
    layers = model.config.num_decoder_layers
    memory = tensor_names(layers, "source")
    names = {
        ENCODER: (["input_ids", "attention_mask"], memory),
        DECODER: (
            ["tokens", "attention_mask", *memory, *tensor_names(layers, "past")],
            ["logits", *tensor_names(layers, "present")],
        ),
    }
    for name, program in write_graphs(model, directory).items():
        inputs, outputs = names[name]
        with _quiet():
            torch.onnx.export(
                program,
                f=directory / f"{name}.onnx",
                input_names=inputs,
                output_names=outputs,
                dynamo=True,
                external_data=True,
                verbose=False,
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words on operators and on itself, none of which is about the model."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


class OnnxTranslator(GraphTranslator):
    """A model that `export_onnx` has written, run by onnxruntime.

    ```python
    OnnxTranslator("model-onnx").translate(["The dog sees the cat."])
    ```

    Args:
        directory: Of the export.
        providers: What onnxruntime is to run on.
        threads: Of a CPU; 0 leaves it to onnxruntime.
    """

    def __init__(
        self,
        directory: str | Path,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
    ):
        super().__init__(directory)
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        # What it would print of a broken file is in the error.
        options.log_severity_level = 4
        with reading(self.directory):
            self.sessions = {
                name: runtime.InferenceSession(
                    str(self.directory / f"{name}.onnx"), options, providers=list(providers)
                )
                for name in (ENCODER, DECODER)
            }
        self.inputs = {
            name: [entry.name for entry in session.get_inputs()]
            for name, session in self.sessions.items()
        }
        self.check_inputs(len(self.inputs[DECODER]))

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """See `GraphTranslator`."""
        return self._run(ENCODER, [ids, mask])

    def step(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        source: list[torch.Tensor],
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See `GraphTranslator`."""
        logits, *present = self._run(DECODER, [tokens, mask, *source, *past])
        return logits, present

    def _run(self, name: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        values: Any = [tensor.contiguous().numpy() for tensor in tensors]
        found = self.sessions[name].run(None, dict(zip(self.inputs[name], values, strict=True)))
        return [torch.from_numpy(array) for array in found]
