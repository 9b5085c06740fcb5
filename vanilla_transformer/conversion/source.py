"""What every family of checkpoints has to say for itself, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from ..configuration_vanilla_transformer import VanillaTransformerConfig


@dataclass
class Checkpoint:
    """What was read of a source, nothing of it interpreted yet.

    Attributes:
        tensors: By the source's own names, in the source's own layout.
        options: The source's own options and dimensions, plain values as JSON has them.
        path: Where it was read.
    """

    tensors: dict[str, torch.Tensor]
    options: dict[str, Any]
    path: Path | None = None


@dataclass
class Converted:
    """A source's model in the names of `VanillaTransformerForConditionalGeneration`.

    Attributes:
        config: Dimensions and options.
        weights: Each matrix once: `model.decoder.embed_tokens.weight` only where it is not shared
            with the encoder, `lm_head.weight` only where it is not tied.
        generation: Fields of the generation config, among them `length_penalty_formula`.
        remarks: What was left out or added on the way, a sentence each; they stand on the card.
    """

    config: VanillaTransformerConfig
    weights: dict[str, torch.Tensor]
    generation: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass
class Tokenizers:
    """How text becomes ids: `target` is None where both sides are read by one tokenizer.

    Both are stock fast tokenizers. Where the source has one vocabulary for two languages, `source`
    also decodes what the model writes; with two vocabularies only `target` does.
    """

    source: PreTrainedTokenizerBase | None = None
    target: PreTrainedTokenizerBase | None = None
    remarks: list[str] = field(default_factory=list)


class Reference(Protocol):
    """A source's model run by the source's own code, in evaluation mode and float32.

    Attributes:
        name: Of that code, with its version: `fairseq 0.12.2`.
    """

    name: str

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states `[B, S, d]` of right-padded ids; those of padding are not compared."""

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """`[B, T, V]`, unnormalised or log-probabilities, for a decoder input without padding."""


class Family:
    """One source of checkpoints. A file of this room defines one or more.

    What a checkpoint of the family that does not fit raises is a ValueError that names the option
    or the tensors at fault and the remedy, wherever it comes up.
    """

    name: ClassVar[str]
    """On the command line: `marian`, `fsmt`, ..."""

    title: ClassVar[str]
    """In the card and the table of families."""

    hub_patterns: ClassVar[tuple[str, ...]] = ()
    """Files to fetch where the source is a Hub id; empty for families that are not on the Hub."""

    def recognises(self, path: Path) -> bool:
        """Whether the file or directory looks like one of this family, without loading it."""
        raise NotImplementedError

    def read(self, path: Path) -> Checkpoint:
        """Reads tensors and options, without running any code that the files may carry."""
        raise NotImplementedError

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Names, layouts and options of this package; a pure function of the checkpoint."""
        raise NotImplementedError

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """The source's text handling as stock fast tokenizers; empty where it comes with none."""
        return Tokenizers()

    def reference(self, checkpoint: Checkpoint) -> Reference:
        """The same checkpoint in the source's own code.

        Raises:
            ImportError: That code is not installed; the message says how to get it.
        """
        raise ImportError(f"{self.title} has no code that could be installed")


class TensorReader:
    """Takes tensors out of a checkpoint by name and shape, and keeps account of every one.

    ```python
    reader = TensorReader(checkpoint.tensors, "model.safetensors")
    weights["lm_head.weight"] = reader.take("decoder.output", (V, d))
    reader.finish(ignore=[r"guided_alignment.*"])
    ```
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], place: str):
        self.tensors = tensors
        self.place = place
        self.taken: set[str] = set()
        self.missing: list[str] = []
        self.mismatched: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor in float32; where it is missing or of another shape, zeros until `finish`."""
        found = self.tensors.get(name)
        self.taken.add(name)
        if found is None:
            self.missing.append(name)
        elif tuple(found.shape) != tuple(shape):
            self.mismatched.append(f"{name} is {list(found.shape)}, not {list(shape)}")
        else:
            return found.detach().to(torch.float32).clone()
        return torch.zeros(shape)

    def finish(self, ignore: Iterable[str] = ()) -> list[str]:
        """Names that `ignore`, regular expressions of whole names, left out.

        Raises:
            ValueError: Tensors are missing, of another shape, or nobody's; all of them are listed.
        """
        patterns = [re.compile(pattern) for pattern in ignore]
        rest = sorted(set(self.tensors) - self.taken)
        ignored = [name for name in rest if any(p.fullmatch(name) for p in patterns)]
        unexpected = sorted(set(rest) - set(ignored))
        problems = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("missing", self.missing),
                ("of another shape", self.mismatched),
                ("unknown to this architecture", unexpected),
            )
            if names
        ]
        if problems:
            raise ValueError(
                f"the tensors of {self.place} are not those of its options; "
                f"{'; '.join(problems)}. Get the checkpoint again, or give the one whose options "
                "these are"
            )
        return ignored


def refuse(option: str, value: Any, reason: str, remedy: str) -> ValueError:
    """The error for a checkpoint that is of another architecture, to be raised."""
    return ValueError(
        f"this checkpoint has {option}={value!r}: {reason}, which the Transformer of "
        f'"Attention Is All You Need" does not have; {remedy}'
    )
