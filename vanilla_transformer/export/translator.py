"""Text from text by an exported model, whatever runs it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..generation import DecodingSettings, TranslationReport
from ..tokenization import load_tokenizer

logger = logging.getLogger(__package__)

RECORD = "export.json"
"""Beside every exported model: how it was made, and how far it agrees with the model itself."""


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Around what opens an export: whatever a library says of its files becomes a ValueError.

    Raises:
        ValueError: A file is missing, cut short or edited into something else.
    """
    try:
        yield
    except ValueError as error:
        # Some library's; or this package's, of a generation config or of a tokenizer.
        raise ValueError(f"{directory} holds no whole export: {error}") from error
    except Exception as error:
        # onnxruntime, CTranslate2 and torch each raise classes of their own, of no common base.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{directory} holds no whole export ({type(error).__name__}: {reason}); export the "
            "model again"
        ) from error


class ExportedTranslator(ABC):
    """An exported model with its tokenizer and its own way to search.

    Attributes:
        record: What the export has noted down.
        generation_config: The model's.
        decoding: How it is meant to search.
        max_positions: That it has, on either side; None where there is no last.
        max_source_tokens: A longer text is left untranslated.

    Raises:
        ValueError: The directory holds no export, or one that is not whole.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).expanduser()
        path = self.directory / RECORD
        try:
            self.record: dict[str, Any] = json.loads(path.read_text("utf-8"))
            self.max_positions: int | None = self.record["max_positions"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); give a directory that an export has written"
            ) from error
        last = self.max_positions
        if last is not None and (type(last) is not int or last < 1):
            raise ValueError(
                f"max_positions ({last!r}) of {path} must be null or a number from 1; export the "
                "model again"
            )
        self.max_source_tokens = min(1024, last or 1024)
        with reading(self.directory):
            self.tokenizer = load_tokenizer(self.directory)
            self.generation_config = GenerationConfig.from_pretrained(self.directory)
            self.decoding = DecodingSettings.of_model(self.generation_config)

    @abstractmethod
    def generate(self, sources: Sequence[Sequence[int]], **arguments: Any) -> list[list[int]]:
        """The best output for each source of a batch.

        Args:
            sources: Token ids as the tokenizer gives them, without padding; none is empty.
            **arguments: Of `generate`: `num_beams`, `length_penalty`, `length_penalty_formula`,
                `early_stopping`, and `max_new_tokens` or `max_tokens_over_source`. All others are
                the model's own.

        Returns:
            Token ids without the start; `</s>` is the last where the output ended by itself.
        """

    def translate(
        self,
        lines: Iterable[str],
        decoding: DecodingSettings | None = None,
        *,
        max_batch_tokens: int = 4096,
    ) -> list[str]:
        """The best translation of each line.

        Args:
            lines: One sentence each. An empty one translates to an empty one, and so, with a
                warning, does one that is too long.
            decoding: How to search; by default as the model is meant to.
            max_batch_tokens: Bound on sentences times longest source in a batch.

        Raises:
            ValueError: A search that this format does not have.
        """
        return list(self.stream(lines, decoding, max_batch_tokens=max_batch_tokens))

    def stream(
        self,
        lines: Iterable[str],
        decoding: DecodingSettings | None = None,
        *,
        max_batch_tokens: int = 4096,
        max_source_tokens: int = 1024,
        window: int = 4096,
        report: TranslationReport | None = None,
    ) -> Iterator[str]:
        """`translate` for any number of lines, in bounded memory, as `generation.translate` does.

        Args:
            lines: See `translate`.
            decoding: See `translate`.
            max_batch_tokens: See `translate`.
            max_source_tokens: A longer line is left out, as one that the export has no positions
                for.
            window: Lines read ahead to sort by length; 1 answers each line at once.
            report: Filled in on the way.

        Raises:
            ValueError: A search that this format does not have; `window` is below 1.
        """
        decoding = self.decoding if decoding is None else decoding
        if decoding.num_hypotheses > 1 or decoding.do_sample:
            raise ValueError(
                "an exported model gives the best translation of a beam: num_hypotheses "
                f"({decoding.num_hypotheses}) must be 1 and do_sample ({decoding.do_sample}) "
                "False; use the model itself for more"
            )
        if window < 1:
            raise ValueError(f"window ({window}) must be at least 1 line")
        report = TranslationReport() if report is None else report
        longest = min(max_source_tokens, self.max_source_tokens)
        arguments = decoding.generation_arguments()
        rest = iter(lines)
        while block := list(itertools.islice(rest, window)):
            texts = [line.strip() for line in block]
            translations = [""] * len(texts)
            sources = {}
            for i, ids in enumerate(self.tokenizer(texts, verbose=False)["input_ids"]):
                if not texts[i]:
                    report.empty += 1
                elif len(ids) > longest:
                    number = report.lines + i + 1
                    report.skipped[number] = f"{len(ids)} tokens exceed {longest}"
                    logger.warning(
                        "line %d is left untranslated: %s", number, report.skipped[number]
                    )
                else:
                    sources[i] = ids
            for batch in sorted_batches(sources, max_batch_tokens):
                found = self.generate([sources[i] for i in batch], **arguments)
                for i, ids in zip(batch, found, strict=True):
                    translations[i] = self.tokenizer.decode(ids, skip_special_tokens=True)
            report.lines += len(block)
            yield from translations


def without_limit(config: GenerationConfig) -> GenerationConfig:
    """A copy that says nothing of how long an output may be."""
    config = copy.deepcopy(config)
    config.max_length = config.max_new_tokens = None
    return config


def sorted_batches(sources: dict[int, list[int]], max_batch_tokens: int) -> Iterator[list[int]]:
    """Keys of sources of like length, longest first, within a budget of padded tokens."""
    batch: list[int] = []
    for i in sorted(sources, key=lambda i: (-len(sources[i]), i)):
        if batch and len(sources[batch[0]]) * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
