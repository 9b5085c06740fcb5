"""The tree that a beam search grows: every hypothesis that was ever in the beam, with its score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from .recording import readable_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class BeamNode:
    """A token of some hypotheses.

    Attributes:
        token: As it is to be read.
        log_probability: Of the hypothesis up to here, in nats.
        children: What followed while the hypothesis was in the beam.
        score: Of a finished hypothesis, as the search ranks it: its length penalty is in it.
        rank: Of a finished hypothesis that is among the n best, from 1.
    """

    token: str
    log_probability: float
    children: dict[int, BeamNode] = field(default_factory=dict)
    score: float | None = None
    rank: int | None = None


class _Watch(LogitsProcessor):
    """Sees each step's hypotheses and changes nothing."""

    def __init__(self) -> None:
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append((input_ids.clone(), scores.log_softmax(dim=-1)))
        return scores


def beam_tree(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    num_beams: int = 4,
) -> BeamNode:
    """Searches with a beam and keeps what it saw.

    Args:
        model: Sequence-to-sequence; its generation config says the rest of how it searches.
        tokenizer: Its own.
        source: One sentence.
        num_beams: Width.

    Returns:
        The start token's node.

    Raises:
        ValueError: No source text, or a beam of less than two.
    """
    if not source.strip():
        raise ValueError(f"source ({source!r}) must hold some text to translate")
    if num_beams < 2:
        raise ValueError(f"num_beams ({num_beams}) must be at least 2 for a tree")
    watch = _Watch()
    inputs = tokenizer(source, return_tensors="pt").to(model.device)
    was_training = model.training
    model.eval()
    try:
        found = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            num_beams=num_beams,
            num_return_sequences=num_beams,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=LogitsProcessorList([watch]),
        )
    finally:
        model.train(was_training)
    # Of each hypothesis seen, log-probabilities of what may follow.
    follows: dict[tuple[int, ...], torch.Tensor] = {}
    for ids, scores in watch.steps:
        for row, distribution in zip(ids.tolist(), scores, strict=True):
            follows.setdefault(tuple(row), distribution)
    start = watch.steps[0][0][0].tolist()
    tree = BeamNode(_readable(start[-1], tokenizer), 0.0)

    def reach(sequence: list[int]) -> BeamNode:
        node = tree
        for end in range(len(start), len(sequence)):
            token = sequence[end]
            if token not in node.children:
                step = float(follows[tuple(sequence[:end])][token])
                node.children[token] = BeamNode(
                    _readable(token, tokenizer), node.log_probability + step
                )
            node = node.children[token]
        return node

    for ids, _ in watch.steps[1:]:
        for row in ids.tolist():
            # A search that has ended fills its places with padding.
            if tuple(row[:-1]) in follows and all(
                tuple(row[:n]) in follows for n in range(1, len(row))
            ):
                reach(row)
    end_ids = _ends(model)
    for rank, (row, score) in enumerate(
        zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True), start=1
    ):
        length = next(
            (i + 1 for i, t in enumerate(row) if i >= len(start) and t in end_ids), len(row)
        )
        node = reach(row[:length])
        node.score, node.rank = score, rank
    return tree


def _ends(model: PreTrainedModel) -> set[int]:
    end = model.generation_config.eos_token_id
    return set(end) if isinstance(end, list) else {end}


def _readable(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return readable_tokens([token], tokenizer)[0]
