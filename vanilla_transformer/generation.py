"""The paper's decoding (6.1) as settings, and bulk translation by token budget."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodingSettings:
    """How to search for a translation. The defaults are the paper's (6.1).

    Attributes:
        num_beams: Hypotheses kept at each step; 1 is greedy search.
        length_penalty: alpha.
        length_penalty_formula: `"paper"`, ((5 + n) / 6)^alpha, or `"power"`, n^alpha.
        max_tokens_over_source: Tokens an output may have beyond those of its source.
        num_hypotheses: Translations returned for each sentence, best first (n-best).
        do_sample: Draw tokens at random instead of searching for the likeliest.
        temperature: Divides the logits before sampling.
        top_k: Sample among this many likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens of this total probability.

    Raises:
        ValueError: Settings that contradict each other.
    """

    num_beams: int = 4
    length_penalty: float = 0.6
    length_penalty_formula: Literal["paper", "power"] = "paper"
    max_tokens_over_source: int = 50
    num_hypotheses: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.num_hypotheses < 1:
            raise ValueError(
                f"num_beams ({self.num_beams}) and num_hypotheses ({self.num_hypotheses}) must be "
                "at least 1"
            )
        is_plain_sampling = self.do_sample and self.num_beams == 1
        if self.num_hypotheses > self.num_beams and not is_plain_sampling:
            raise ValueError(
                f"num_hypotheses ({self.num_hypotheses}) cannot exceed num_beams "
                f"({self.num_beams}): a beam ends with that many; "
                f"try num_beams={self.num_hypotheses}, or sampling with num_beams=1"
            )
        if self.length_penalty_formula not in ("paper", "power"):
            raise ValueError(
                f"length_penalty_formula ({self.length_penalty_formula!r}) must be 'paper', "
                "((5 + n) / 6)^alpha, or 'power', n^alpha"
            )
        if self.max_tokens_over_source < 1:
            raise ValueError(
                f"max_tokens_over_source ({self.max_tokens_over_source}) must be at least 1, "
                "room for the end of the sentence"
            )
        if self.do_sample and not (
            self.temperature > 0 and 0 < self.top_p <= 1 and self.top_k >= 0
        ):
            raise ValueError(
                f"sampling needs temperature > 0, 0 < top_p <= 1 and top_k >= 0, not "
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k}"
            )

    def generation_arguments(self) -> dict[str, Any]:
        """These settings as arguments of `generate` or fields of a `GenerationConfig`."""
        arguments: dict[str, Any] = {
            "num_beams": self.num_beams,
            "max_tokens_over_source": self.max_tokens_over_source,
            "num_return_sequences": self.num_hypotheses,
            "do_sample": self.do_sample,
        }
        if self.num_beams > 1:
            arguments["length_penalty"] = self.length_penalty
            arguments["length_penalty_formula"] = self.length_penalty_formula
        if self.do_sample:
            arguments |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return arguments


PAPER_DECODING = DecodingSettings()


@dataclass(frozen=True)
class Hypothesis:
    """One translation; `score` is log P(y|x) / lp(n) in nats, known where a beam was used."""

    text: str
    score: float | None


@dataclass
class TranslationReport:
    """What bulk translation met: `skipped` maps the number of a line (from 1) to the reason."""

    lines: int = 0
    empty: int = 0
    skipped: dict[int, str] = field(default_factory=dict)


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Iterable[str],
    decoding: DecodingSettings = PAPER_DECODING,
    *,
    max_batch_tokens: int = 4096,
    max_source_tokens: int = 1024,
    window: int = 4096,
    report: TranslationReport | None = None,
) -> Iterator[list[Hypothesis]]:
    """Translates any number of lines, in their order, in bounded memory.

    A window of lines is read, sorted by length, translated in batches of sentences of like length,
    and given back in the order of the input before the next is read. Without sampling a
    sentence's translation does not depend on its neighbours.

    Args:
        model: In evaluation mode, on its device.
        tokenizer: The model's own.
        lines: One sentence each. An empty one translates to an empty one.
        decoding: How to search.
        max_batch_tokens: Bound on sentences times longest source in a batch; memory also grows
            with the number of beams.
        max_source_tokens: A longer sentence is not translated: it gives an empty line, a warning
            and an entry in `report`, since the work grows with the square of the length.
        window: Lines read ahead; 1 answers each line at once.
        report: Filled in on the way.

    Yields:
        For each line its hypotheses, best first.

    Raises:
        ValueError: `max_source_tokens` exceeds `max_batch_tokens`, or `window` is below 1.
    """
    if not 1 <= max_source_tokens <= max_batch_tokens:
        raise ValueError(
            f"max_source_tokens ({max_source_tokens}) must lie between 1 and max_batch_tokens "
            f"({max_batch_tokens}), so that the longest sentence fits into a batch"
        )
    if window < 1:
        raise ValueError(f"window ({window}) must be at least 1 line")
    report = TranslationReport() if report is None else report
    stream = iter(lines)
    while block := list(itertools.islice(stream, window)):
        sources: dict[int, list[int]] = {}
        results: list[list[Hypothesis]] = [[] for _ in block]
        for i, line in enumerate(block):
            if not line.strip():
                report.empty += 1
                results[i] = [Hypothesis("", None)] * decoding.num_hypotheses
                continue
            ids = tokenizer(line.strip(), verbose=False)["input_ids"]
            if len(ids) > max_source_tokens:
                number = report.lines + i + 1
                reason = f"{len(ids)} tokens exceed max_source_tokens ({max_source_tokens})"
                report.skipped[number] = reason
                logger.warning("line %d is left untranslated: %s", number, reason)
                results[i] = [Hypothesis("", None)] * decoding.num_hypotheses
                continue
            sources[i] = ids
        for batch in _batches(sources, max_batch_tokens):
            hypotheses = _translate_batch(model, tokenizer, [sources[i] for i in batch], decoding)
            for i, found in zip(batch, hypotheses, strict=True):
                results[i] = found
        report.lines += len(block)
        yield from results


def _batches(sources: dict[int, list[int]], max_batch_tokens: int) -> Iterator[list[int]]:
    """Keys of `sources`, longest first, in lists of at most `max_batch_tokens` padded tokens.

    Longest first: running out of memory then happens at once or not at all.
    """
    batch: list[int] = []
    longest = 0
    for i in sorted(sources, key=lambda i: (-len(sources[i]), i)):
        if batch and longest * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        if not batch:
            longest = len(sources[i])
        batch.append(i)
    if batch:
        yield batch


def _translate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: list[list[int]],
    decoding: DecodingSettings,
) -> list[list[Hypothesis]]:
    batch = tokenizer.pad({"input_ids": sources}, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            return_dict_in_generate=True,
            output_scores=decoding.num_beams > 1,
            **decoding.generation_arguments(),
        )
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    scores = getattr(output, "sequences_scores", None)
    values = [None] * len(texts) if scores is None else scores.tolist()
    found = [Hypothesis(text, score) for text, score in zip(texts, values, strict=True)]
    n = decoding.num_hypotheses
    return [found[i : i + n] for i in range(0, len(found), n)]
