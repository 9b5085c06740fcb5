"""Greedy and beam search, as `generate` of transformers does them and with the same outcome.

A beam of k keeps the k likeliest unfinished hypotheses and the k best finished ones, by
log-probability over length penalty. Each step looks at the likeliest continuations, 2 k of them
where there is one `</s>`, so that k are left when k end. It is over when all finished ones are at
least as good as the best unfinished one is hoped to become.

A sentence that is over leaves the batch; the others go on.

Shapes: B sentences, k beams, C = 2 k candidates or more, L tokens of an output.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from ..modeling_vanilla_transformer import PaperLengthPenalty
from .network import Decoder, Network
from .weights import Product

# Stands for "no hypothesis yet", as in transformers; above minus infinity, which is "impossible".
_NOTHING = -1e9
# Logits exist for so many rows at a time: memory of 32 MB and more is mapped anew at each step,
# which costs a quarter of the output layer's time.
_ROWS = 64
# Maxima of so many numbers each are looked at before the numbers.
_FOLDS = 32
# The batch is made smaller when a part of it of at least this share is over.
_LEAVING = 1 / 8


@dataclass(frozen=True)
class SearchSettings:
    """How to search, and for what.

    Attributes:
        num_beams: 1 is greedy search.
        num_hypotheses: Outputs of each sentence, at most `num_beams`.
        max_new_tokens: Of every output, `</s>` included.
        limits: Where each sentence's outputs must end in `</s>`, tokens `[B]`; or None.
        min_new_tokens: Before so many tokens `</s>` is not allowed.
        length_penalty: alpha.
        length_penalty_formula: `"paper"`, ((5 + n) / 6)^alpha, or `"power"`, n^alpha.
        early_stopping: False: an unfinished hypothesis is hoped to score what it does now. True: a
            sentence is over when it has k finished ones. `"never"`: it is hoped to get no worse up
            to `max_new_tokens`.
        start_token_id: What the decoder reads first.
        eos_token_ids: Each ends an output.
        pad_token_id: Follows the end of a greedy output.
        filler: Follows the end of a beam's output.
        suppressed: Tokens never chosen.
        is_end_forced: Whether the last of `max_new_tokens` is the first of `eos_token_ids`,
            whatever the model says; it is taken for certain.
        is_renormalized: Whether probabilities are those among the tokens allowed.
    """

    num_beams: int
    max_new_tokens: int
    start_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    filler: int
    num_hypotheses: int = 1
    limits: torch.Tensor | None = None
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    length_penalty_formula: Literal["paper", "power"] = "power"
    early_stopping: bool | str = False
    suppressed: tuple[int, ...] = ()
    is_end_forced: bool = False
    is_renormalized: bool = False

    @property
    def num_candidates(self) -> int:
        """Continuations that a beam looks at."""
        return max(2, 1 + len(self.eos_token_ids)) * self.num_beams

    def is_end_open(self, length: int) -> bool:
        """Whether `</s>` may be the token that makes an output so long."""
        return length > self.min_new_tokens and not set(self.eos_token_ids) <= set(self.suppressed)


@dataclass
class Found:
    """What a search found.

    Attributes:
        sequences: `[B, num_hypotheses, L]`, best first, without the start token.
        lengths: Tokens of each that are no filling, `[B, num_hypotheses]`.
        scores: log P over length penalty, `[B, num_hypotheses]`; None for greedy search.
    """

    sequences: torch.Tensor
    lengths: torch.Tensor
    scores: torch.Tensor | None = None


@torch.inference_mode()
def search(
    network: Network, input_ids: torch.Tensor, is_real: torch.Tensor, settings: SearchSettings
) -> Found:
    """Searches for the outputs of a batch.

    Args:
        network: The model.
        input_ids: `[B, S]`, on the model's device.
        is_real: `[B, S]`, False for padding; a token in every row.
        settings: For all sentences.
    """
    source = network.encode(input_ids, is_real)
    decoder = Decoder(network, source, settings.max_new_tokens)
    if settings.num_beams == 1:
        return _GreedySearch(decoder, settings).run()
    return _BeamSearch(decoder, settings).run()


class _Search:
    """What both searches share.

    Attributes:
        sentences: Numbers in the whole batch of those that go on, `[B]`.
        is_over: Which of them need no more; they stay until it pays to make the batch smaller.
    """

    def __init__(self, decoder: Decoder, settings: SearchSettings):
        self.decoder, self.settings = decoder, settings
        self.chooser = _Chooser(decoder.network.output, settings, decoder.source.lengths.device)
        lengths = decoder.source.lengths
        self.device, self.count = lengths.device, len(lengths)
        self.sentences = torch.arange(self.count, device=self.device)
        self.is_over = torch.zeros_like(self.sentences, dtype=torch.bool)
        limits = settings.limits
        self.limits = None if limits is None else limits.to(self.device)
        self.first_limit = 0 if limits is None else int(limits.min())
        self.ends = torch.tensor(settings.eos_token_ids, device=self.device)

    def must_end(self, length: int) -> torch.Tensor | None:
        """Which sentences can add `</s>` alone as token number `length`, `[B]`; None if none."""
        settings = self.settings
        if settings.is_end_forced and length == settings.max_new_tokens:
            return torch.ones_like(self.is_over)
        # What forbids the end goes first: some token must remain.
        if self.limits is None or length < self.first_limit or not settings.is_end_open(length):
            return None
        return self.limits <= length

    def is_end(self, ids: torch.Tensor) -> torch.Tensor:
        """Where the tokens are `</s>`."""
        return ids == self.ends if len(self.ends) == 1 else torch.isin(ids, self.ends)

    def leave(self) -> torch.Tensor | None:
        """The places of the sentences that go on, if it pays to forget the others."""
        over = int(self.is_over.sum())
        if over == 0 or over < _LEAVING * len(self.is_over):
            return None
        kept = (~self.is_over).nonzero().squeeze(1)
        self.decoder.keep(kept)
        self.sentences, self.is_over = self.sentences[kept], self.is_over[kept]
        if self.limits is not None:
            self.limits = self.limits[kept]
        return kept


class _GreedySearch(_Search):
    """The likeliest token at each step."""

    def run(self) -> Found:
        """Searches."""
        settings = self.settings
        tokens = torch.full((self.count,), settings.start_token_id, device=self.device)
        lengths = torch.zeros(self.count, dtype=torch.long, device=self.device)
        columns = []
        for length in range(1, settings.max_new_tokens + 1):
            states = self.decoder.step(tokens.unsqueeze(1))
            must_end = self.must_end(length)
            _, ids, ends = self.chooser(states, length, 1, is_scored=False)
            tokens = ids.squeeze(1)
            if must_end is not None:
                last = self.chooser.ends[ends.argmax(dim=1)]
                tokens = torch.where(must_end, last, tokens)
            tokens = tokens.masked_fill(self.is_over, settings.pad_token_id)
            column = torch.full_like(lengths, settings.pad_token_id)
            columns.append(column.index_copy_(0, self.sentences, tokens))
            lengths.index_add_(0, self.sentences, (~self.is_over).long())
            self.is_over = self.is_over | self.is_end(tokens)
            if bool(self.is_over.all()):
                break
            kept = self.leave()
            tokens = tokens if kept is None else tokens[kept]
        return Found(torch.stack(columns, dim=1).unsqueeze(1), lengths.unsqueeze(1))


class _BeamSearch(_Search):
    """Several hypotheses side by side.

    Attributes:
        running: Log-probabilities of the unfinished hypotheses, best first, `[B, k]`.
        sequences: Their tokens, `[B, k, L]`.
        finished: Scores of the finished ones, best first, `[B, k]`; `_NOTHING` where none is.
        finished_sequences: Their tokens, `[B, k, L']`.
        finished_lengths: How many of these tokens are theirs, `[B, k]`; 0 where none is.
    """

    def __init__(self, decoder: Decoder, settings: SearchSettings):
        super().__init__(decoder, settings)
        beams = settings.num_beams
        alpha = settings.length_penalty
        is_paper = settings.length_penalty_formula == "paper"
        self.penalty = PaperLengthPenalty(alpha) if is_paper else alpha
        # At first there is one, which has no token.
        self.running = torch.zeros(self.count, 1, device=self.device)
        self.sequences = self.sentences.new_empty(self.count, 1, 0)
        self.finished = torch.full((self.count, beams), _NOTHING, device=self.device)
        self.finished_sequences = self.sentences.new_empty(self.count, beams, 0)
        self.finished_lengths = self.sentences.new_zeros(self.count, beams)
        self.can_stop = False
        # Of sentences that are over: their numbers, sequences, lengths, scores.
        self.results: list[tuple[torch.Tensor, ...]] = []

    def run(self) -> Found:
        """Searches."""
        settings, beams = self.settings, self.settings.num_beams
        tokens = torch.full((self.count, 1), settings.start_token_id, device=self.device)
        for length in range(1, settings.max_new_tokens + 1):
            states = self.decoder.step(tokens)
            scores, ids, parents = self.continuations(states, length)
            is_last = length == settings.max_new_tokens
            is_end = torch.ones_like(ids, dtype=torch.bool) if is_last else self.is_end(ids)
            if bool(is_end.any()):
                self.finish(
                    scores[:, :beams], ids[:, :beams], parents[:, :beams], is_end[:, :beams]
                )
                scores, picks = (scores + is_end * _NOTHING).topk(beams)
                ids, parents = ids.gather(1, picks), parents.gather(1, picks)
            else:
                scores, ids, parents = scores[:, :beams], ids[:, :beams], parents[:, :beams]
            self.running = scores
            if self.can_stop or is_last:
                self.stop(length)
                if bool(self.is_over.all()):
                    break
            self.sequences = torch.cat([_rows(self.sequences, parents), ids.unsqueeze(2)], dim=2)
            self.decoder.follow(parents)
            kept = self.leave()
            tokens = ids if kept is None else ids[kept]
        return self.collect()

    def continuations(
        self, states: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The likeliest ways to go on: log-probabilities, tokens, hypotheses; `[B, C]` each."""
        count = self.settings.num_candidates
        must_end = self.must_end(length)
        scores, ids, ends = self.chooser(states, length, count)
        sentences, hypotheses = self.running.shape
        before = self.running.unsqueeze(2)
        scores = (scores.view(sentences, hypotheses, count) + before).flatten(1)
        ids = ids.view(sentences, -1)
        if hypotheses == 1:
            parents = torch.zeros_like(ids)
        else:
            scores, picks = scores.topk(count)
            ids, parents = ids.gather(1, picks), picks // count
        if must_end is not None:
            kinds = ends.shape[1]
            ends = (ends.view(sentences, hypotheses, kinds) + before).flatten(1)
            # As many as otherwise; what is impossible comes last.
            last, picks = F.pad(ends, (0, count), value=-math.inf).topk(count)
            is_forced = must_end.unsqueeze(1)
            scores = torch.where(is_forced, last, scores)
            ids = torch.where(is_forced, self.chooser.ends[picks % kinds], ids)
            parents = torch.where(is_forced, (picks // kinds).clamp_max(hypotheses - 1), parents)
        return scores, ids, parents

    def finish(
        self,
        scores: torch.Tensor,
        ids: torch.Tensor,
        parents: torch.Tensor,
        is_end: torch.Tensor,
    ) -> None:
        """Keeps the best of the finished hypotheses and those that end now; all are `[B, k]`."""
        length = self.sequences.shape[2] + 1
        scores = (scores / length**self.penalty).masked_fill(~is_end, -math.inf)
        self.finished, picks = torch.cat([self.finished, scores], dim=1).topk(scores.shape[1])
        sequences = torch.cat([_rows(self.sequences, parents), ids.unsqueeze(2)], dim=2)
        missing = length - self.finished_sequences.shape[2]
        before = F.pad(self.finished_sequences, (0, missing), value=self.settings.filler)
        self.finished_sequences = _rows(torch.cat([before, sequences], dim=1), picks)
        lengths = torch.cat([self.finished_lengths, torch.full_like(ids, length)], dim=1)
        self.finished_lengths = lengths.gather(1, picks)
        self.can_stop = bool((self.finished_lengths > 0).all(dim=1).any())

    def stop(self, length: int) -> None:
        """Notes which sentences are over after so many tokens, and what they gave."""
        settings = self.settings
        is_hopeful = settings.early_stopping == "never" and settings.length_penalty > 0
        hoped_length = settings.max_new_tokens if is_hopeful else length
        is_full = (self.finished_lengths > 0).all(dim=1)
        worst = self.finished.amin(dim=1).masked_fill(~is_full, _NOTHING)
        is_over = ~(self.running[:, 0] / hoped_length**self.penalty > worst)
        if settings.early_stopping is True:
            is_over |= is_full
        if length == settings.max_new_tokens:
            is_over.fill_(True)
        now = (is_over & ~self.is_over).nonzero().squeeze(1)
        if len(now):
            best = settings.num_hypotheses
            found = (self.finished_sequences, self.finished_lengths, self.finished)
            self.results.append((self.sentences[now], *(x[now, :best] for x in found)))
            self.is_over = self.is_over | is_over

    def leave(self) -> torch.Tensor | None:
        """See `_Search`."""
        kept = super().leave()
        if kept is not None:
            self.running, self.sequences = self.running[kept], self.sequences[kept]
            self.finished = self.finished[kept]
            self.finished_sequences = self.finished_sequences[kept]
            self.finished_lengths = self.finished_lengths[kept]
        return kept

    def collect(self) -> Found:
        """All results in the order of the batch."""
        sentences, sequences, lengths, scores = zip(*self.results, strict=True)
        order = torch.cat(sentences).argsort()
        longest = max(x.shape[2] for x in sequences)
        filler = self.settings.filler
        padded = [F.pad(x, (0, longest - x.shape[2]), value=filler) for x in sequences]
        return Found(torch.cat(padded)[order], torch.cat(lengths)[order], torch.cat(scores)[order])


class _Chooser:
    """Which tokens are likeliest.

    Attributes:
        ends: The tokens `</s>` that are allowed at all.
    """

    def __init__(self, output: Product, settings: SearchSettings, device: torch.device):
        self.output, self.settings = output, settings
        ends = [i for i in settings.eos_token_ids if i not in settings.suppressed]
        without_ends = sorted({*settings.suppressed, *settings.eos_token_ids})
        self.ends = torch.tensor(ends, dtype=torch.long, device=device)
        # What is not to be chosen, while `</s>` is allowed and while it is not.
        self.closed = {
            True: torch.tensor(settings.suppressed, dtype=torch.long, device=device),
            False: torch.tensor(without_ends, dtype=torch.long, device=device),
        }

    def __call__(
        self, states: torch.Tensor, length: int, count: int, is_scored: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The likeliest tokens for each row, best first.

        Args:
            states: `[rows, d]`.
            length: Tokens of an output with this one.
            count: How many.
            is_scored: Whether scores are log-probabilities; otherwise logits.

        Returns:
            Scores and ids, `[rows, count]`, and the scores of `ends`, `[rows, len(ends)]`.
        """
        parts = [self._choose(rows, length, count, is_scored) for rows in states.split(_ROWS)]
        if len(parts) == 1:
            return parts[0]
        scores, ids, ends = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return scores, ids, ends

    def _choose(
        self, states: torch.Tensor, length: int, count: int, is_scored: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        settings = self.settings
        scores = self.output(states).float()
        if is_scored:
            scores = scores.log_softmax(dim=1)
        closed = self.closed[settings.is_end_open(length)]
        if len(closed):
            scores.index_fill_(1, closed, -math.inf)
            if is_scored and settings.is_renormalized:
                scores = scores.log_softmax(dim=1)
        ends = scores[:, self.ends]
        if settings.is_end_forced and length == settings.max_new_tokens:
            ends = torch.zeros_like(ends)
        elif is_scored and settings.is_renormalized:
            # They are what a sentence that must end is left with.
            ends = ends.log_softmax(dim=1)
        return *largest(scores, count), ends


def largest(numbers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`numbers.topk(count)` of `[rows, columns]` at a fifth of the cost where there are many.

    The largest are among those `count` columns of `[folds, columns / folds]` with the largest
    maxima, which take one pass.
    """
    width = numbers.shape[1] // _FOLDS
    if width < 2 * count:
        values, where = numbers.topk(count)
        return values, where
    rows = len(numbers)
    even = width * _FOLDS
    maxima = numbers[:, :even].view(rows, _FOLDS, width).amax(dim=1)
    columns = maxima.topk(count).indices.unsqueeze(2)
    places = (columns + torch.arange(0, even, width, device=numbers.device)).flatten(1)
    rest = torch.arange(even, numbers.shape[1], device=numbers.device).expand(rows, -1)
    places = torch.cat([places, rest], dim=1)
    values, picks = numbers.gather(1, places).topk(count)
    return values, places.gather(1, picks)


def _rows(sequences: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Some sequences of each sentence, `[B, k, L]` and `[B, k']` to `[B, k', L]`."""
    return sequences.gather(1, picks.unsqueeze(2).expand(-1, -1, sequences.shape[2]))
