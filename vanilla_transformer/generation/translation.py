"""Bulk translation by token budget."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .lean import plan
from .preparation import network_of, obstacle
from .search import search
from .settings import PAPER_DECODING, DecodingSettings
from .weights import Precision

logger = logging.getLogger(__package__)


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
    precision: Precision = "model",
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
        precision: `"model"`: as the weights are. `"int8"`: linear layers in 8 bits, on a CPU, which
            is faster and changes translations a little; each then depends a little on its
            neighbours.

    Yields:
        For each line its hypotheses, best first.

    Raises:
        ValueError: `max_source_tokens` exceeds `max_batch_tokens`, `window` is below 1, or
            `"int8"` where it cannot be had: with sampling, and for a model that is not float32 on a
            CPU in evaluation mode.
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
        texts = [line.strip() for line in block]
        for i, ids in enumerate(tokenizer(texts, verbose=False)["input_ids"]):
            if not texts[i]:
                report.empty += 1
                results[i] = [Hypothesis("", None)] * decoding.num_hypotheses
                continue
            if len(ids) > max_source_tokens:
                number = report.lines + i + 1
                reason = f"{len(ids)} tokens exceed max_source_tokens ({max_source_tokens})"
                report.skipped[number] = reason
                logger.warning("line %d is left untranslated: %s", number, reason)
                results[i] = [Hypothesis("", None)] * decoding.num_hypotheses
                continue
            sources[i] = ids
        for batch in _batches(sources, max_batch_tokens):
            batch_sources = [sources[i] for i in batch]
            hypotheses = _translate_batch(model, tokenizer, batch_sources, decoding, precision)
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
    precision: Precision,
) -> list[list[Hypothesis]]:
    batch = tokenizer.pad({"input_ids": sources}, return_tensors="pt").to(model.device)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    arguments = decoding.generation_arguments()
    reason = obstacle(model)
    settings = None
    if reason is None:
        # `obstacle` has made sure of the model's class.
        settings = plan(model, None, arguments, mask.sum(dim=1), ids.shape[1])
        reason = "these settings, or the model's generation_config, need `generate`"
    n = decoding.num_hypotheses
    if settings is not None:
        network = network_of(model, precision)
        found = search(network, ids, mask.bool(), settings)
        lengths = found.lengths.flatten().tolist()
        rows = found.sequences.flatten(0, 1).tolist()
        outputs = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        scores = found.scores
    elif precision != "model":
        raise ValueError(f"precision={precision!r} cannot be used: {reason}; try precision='model'")
    else:
        with torch.inference_mode():
            generated = model.generate(
                input_ids=ids,
                attention_mask=mask,
                return_dict_in_generate=True,
                output_scores=decoding.num_beams > 1,
                **arguments,
            )
        outputs = generated.sequences
        scores = getattr(generated, "sequences_scores", None)
    texts = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    values = [None] * len(texts) if scores is None else scores.flatten().tolist()
    hypotheses = [Hypothesis(text, score) for text, score in zip(texts, values, strict=True)]
    return [hypotheses[i : i + n] for i in range(0, len(hypotheses), n)]
