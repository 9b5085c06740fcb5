"""Whether an exported model writes what the model itself writes, on real sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sacrebleu
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..data.tiny_world import generate_translation
from ..generation import DecodingSettings
from ..modeling_vanilla_transformer import (
    PaperLengthPenalty,
    VanillaTransformerForConditionalGeneration,
)
from .translator import ExportedTranslator, sorted_batches, without_limit

TIE = 1e-4
"""Scores in nats that differ by no more are a matter of float32's rounding."""

LEAST_AGREEMENT = 0.99
"""Share of sentences that a float32 export must agree on, with ties.

A tie in the middle of a beam shows in no final score, so that not all is asked for.
"""

SENTENCES = 100
"""Of the embedded corpus, where no others are given."""


@dataclass(frozen=True)
class Agreement:
    """Outputs of the exported model beside those of the model itself.

    Attributes:
        search: "greedy" or "beam 4".
        sentences: How many were translated.
        same: Of these, how many got the same ids.
        ties: How many others got ids that the model scores the same.
        bleu_against_native: Of the exported model's text, the model's own for a reference; without
            sacreBLEU's tokenization.
        bleu: Of the exported model's text against the references, if there are any.
        native_bleu: Of the model's own.
        signature: sacreBLEU's, of the last two.
    """

    search: str
    sentences: int
    same: int
    ties: int
    bleu_against_native: float
    bleu: float | None = None
    native_bleu: float | None = None
    signature: str = ""

    @property
    def holds(self) -> bool:
        """Whether the two are one model up to rounding."""
        return self.same + self.ties >= LEAST_AGREEMENT * self.sentences

    def __str__(self) -> str:
        text = f"{self.search}: {self.same} of {self.sentences} sentences have the same ids"
        if self.ties:
            text += f", {self.ties} more the same score"
        if self.bleu is not None and self.native_bleu is not None:
            # Of what is printed, so that the three figures fit together.
            bleu, native = round(self.bleu, 2), round(self.native_bleu, 2)
            text += f"; BLEU {bleu:.2f}, the model's own {native:.2f} ({bleu - native:+.2f})"
        elif self.same + self.ties < self.sentences:
            text += f"; BLEU {self.bleu_against_native:.2f} against the model's own output"
        return text


def default_sentences() -> list[str]:
    """English test sentences of the embedded corpus."""
    return [pair["source"] for pair in generate_translation("test", SENTENCES)]


def measure_agreement(
    model: VanillaTransformerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    exported: ExportedTranslator,
    sentences: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    max_batch_tokens: int = 1024,
    **arguments: Any,
) -> list[Agreement]:
    """Lets both translate the sentences, greedily and with a beam of 4.

    Args:
        model: In evaluation mode, in float32; its generation config loses its limits of length.
        tokenizer: Its own.
        exported: What was made of it.
        sentences: In the model's source language; empty ones are left out.
        references: Of every sentence.
        max_batch_tokens: Bound on sentences times longest source in a batch.
        **arguments: Of `generate`, for both, beyond the model's own length penalty. Outputs have at
            most 50 tokens more than the longest source of their batch, or what the model says.
    """
    ids = tokenizer(list(sentences), verbose=False)["input_ids"]
    sources = {
        i: source
        for i, source in enumerate(ids)
        if sentences[i].strip() and len(source) <= exported.max_source_tokens
    }
    if not sources:
        raise ValueError("there is no sentence to compare the outputs on; give at least one")
    # The model's own limit would hold for it and not for the export.
    model.generation_config = without_limit(model.generation_config)
    decoding = DecodingSettings.of_model(model.generation_config)
    found = []
    for num_beams in (1, 4):
        search: dict[str, Any] = {"num_beams": num_beams}
        if num_beams > 1:
            search["length_penalty"] = decoding.length_penalty
            search["length_penalty_formula"] = decoding.length_penalty_formula
            search |= arguments
        ours: dict[int, list[int]] = {}
        theirs: dict[int, list[int]] = {}
        ties = 0
        for batch in sorted_batches(sources, max_batch_tokens):
            rows = [sources[i] for i in batch]
            limit = len(rows[0]) + decoding.max_tokens_over_source
            search["max_new_tokens"] = min(limit, exported.max_positions or limit)
            expected = native_outputs(model, rows, **search)
            given = exported.generate(rows, **search)
            ours.update(zip(batch, expected, strict=True))
            theirs.update(zip(batch, given, strict=True))
            for row, one, other in zip(rows, expected, given, strict=True):
                if one != other:
                    ties += _gap(model, row, one, other, decoding, num_beams) <= TIE
        same = sum(ours[i] == theirs[i] for i in sources)
        name = "greedy" if num_beams == 1 else f"beam {num_beams}"
        agreement = Agreement(
            name,
            len(sources),
            same,
            ties,
            **_bleu(tokenizer, ours, theirs, references),
        )
        found.append(agreement)
    return found


@torch.inference_mode()
def native_outputs(
    model: VanillaTransformerForConditionalGeneration,
    sources: Sequence[Sequence[int]],
    **arguments: Any,
) -> list[list[int]]:
    """What `model.generate` writes, as `ExportedTranslator.generate` gives it."""
    config = model.config
    rows = [torch.tensor(source) for source in sources]
    ids = pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    outputs = model.generate(input_ids=ids, attention_mask=mask, **arguments)
    ends = model.generation_config.eos_token_id
    ends = config.eos_token_id if ends is None else ends
    stops = {ends} if isinstance(ends, int) else set(ends or ())
    return [until_end(row, stops) for row in outputs[:, 1:].tolist()]


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """Ids up to and with the first end."""
    length = next((i for i, token in enumerate(ids, start=1) if token in ends), len(ids))
    return ids[:length]


@torch.inference_mode()
def _gap(
    model: VanillaTransformerForConditionalGeneration,
    source: Sequence[int],
    one: list[int],
    other: list[int],
    decoding: DecodingSettings,
    num_beams: int,
) -> float:
    """By how much the model scores two outputs apart: where they part, or as a beam does."""
    if not one or not other:
        return float("inf")
    scores = []
    start = model.config.decoder_start_token_id
    for output in (one, other):
        logits = model(
            input_ids=torch.tensor([source]),
            attention_mask=torch.ones(1, len(source), dtype=torch.long),
            decoder_input_ids=torch.tensor([[start, *output[:-1]]]),
        ).logits
        chosen = logits[0].log_softmax(dim=-1).gather(1, torch.tensor(output)[:, None])[:, 0]
        scores.append(chosen)
    if num_beams == 1:
        where = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        return float("inf") if where is None else float((scores[0][where] - scores[1][where]).abs())
    alpha = decoding.length_penalty
    is_paper = decoding.length_penalty_formula == "paper"
    penalty = PaperLengthPenalty(alpha) if is_paper else alpha
    totals = [float(chosen.sum()) / len(chosen) ** penalty for chosen in scores]
    return abs(totals[0] - totals[1])


def _bleu(
    tokenizer: PreTrainedTokenizerBase,
    ours: dict[int, list[int]],
    theirs: dict[int, list[int]],
    references: Sequence[str] | None,
) -> dict[str, Any]:
    native, exported = (
        [tokenizer.decode(outputs[i], skip_special_tokens=True) for i in sorted(outputs)]
        for outputs in (ours, theirs)
    )
    # Text that is a model's own, whatever its language: blanks part words.
    plain = sacrebleu.BLEU(tokenize="none", force=True)
    found = {"bleu_against_native": plain.corpus_score(exported, [native]).score}
    if references is None:
        return found
    metric = sacrebleu.BLEU()
    gold = [[references[i] for i in sorted(ours)]]
    found["bleu"] = metric.corpus_score(exported, gold).score
    found["native_bleu"] = metric.corpus_score(native, gold).score
    return found | {"signature": str(metric.get_signature())}
