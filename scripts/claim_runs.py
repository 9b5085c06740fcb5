"""Small translation runs for the claims: one corpus, one loop, any model, so that all are equal.

The package's own driver is for its own models and keeps checkpoints, logs and validation of a
whole run. Here a run lasts a minute, may be of a recurrent model, and may diverge on purpose.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import sacrebleu
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.batching import TokenBudgetBatchSampler
from vanilla_transformer.data.corpora import load_parallel
from vanilla_transformer.tasks.translation import encode_pairs, translation_collator
from vanilla_transformer.tokenization import train_tokenizer

Batch = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The embedded corpus, encoded.

    Attributes:
        tokenizer: One vocabulary for both languages.
        training: Pairs as `input_ids` and `labels`.
        validation: Likewise, of combinations not seen in training.
        sources: Sentences of the test set.
        references: Their translations.
    """

    tokenizer: PreTrainedTokenizerBase
    training: list[dict[str, list[int]]]
    validation: list[dict[str, list[int]]]
    sources: list[str]
    references: list[str]


def load_corpus(pairs: int = 20_000, vocab_size: int = 600, test: int = 300) -> Corpus:
    """Reads and encodes.

    Args:
        pairs: To train on.
        vocab_size: Of the tokenizer, trained on these pairs.
        test: Sentences to translate.
    """
    training, _ = load_parallel("tiny_world", "en", "de", "train", limit=pairs)
    validation, _ = load_parallel("tiny_world", "en", "de", "validation", limit=500)
    unseen, _ = load_parallel("tiny_world", "en", "de", "test", limit=test)
    texts = itertools.chain(training["source"], training["target"])
    tokenizer = train_tokenizer(texts, vocab_size)
    return Corpus(
        tokenizer,
        training=list(encode_pairs(training, tokenizer)[0]),
        validation=list(encode_pairs(validation, tokenizer)[0]),
        sources=list(unseen["source"]),
        references=list(unseen["target"]),
    )


def batches(
    corpus: Corpus, *, max_tokens: int = 1024, seed: int = 1, device: str = "cpu"
) -> Iterator[Batch]:
    """Endless batches of pairs of like length.

    Args:
        corpus: Whose training pairs.
        max_tokens: Bound on either side, padding included.
        seed: Of the order.
        device: Where to.
    """
    collate = translation_collator(corpus.tokenizer)
    lengths = [[len(pair[side]) for pair in corpus.training] for side in ("input_ids", "labels")]
    sampler = TokenBudgetBatchSampler(
        *lengths, max_source_tokens=max_tokens, max_target_tokens=max_tokens, seed=seed
    )
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        for batch in sampler:
            yield moved(collate([corpus.training[i] for i in batch]), device)


def moved(batch: Any, device: str) -> Batch:
    """A batch, on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


@dataclasses.dataclass
class Run:
    """What a run has left behind.

    Attributes:
        losses: Of each update, nats per token.
        norms: Of the gradient, before it is clipped.
        tokens: Target tokens read.
        seconds: Of training alone.
        diverged: Whether it ended with a loss that is no number.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    diverged: bool = False


def train(
    model: nn.Module,
    data: Iterator[Batch],
    rate: Callable[[int], float],
    *,
    updates: int | None = None,
    seconds: float | None = None,
    max_norm: float | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Trains by the paper's Adam, for a number of updates or for a time.

    Args:
        model: Called with a batch; its output has `loss`.
        data: Batches.
        rate: Of each update, from 1.
        updates: To make; or else
        seconds: To train.
        max_norm: Gradients are clipped to it.
        watch: Called after each update's gradients, before they are applied.
        clock: What seconds are of; `time.process_time` leaves out what other programs took of a
            shared processor, and counts each thread's.
    """
    if (updates is None) == (seconds is None):
        raise ValueError("give updates or seconds, one of them")
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    run = Run()
    model.train()
    for update in itertools.count(1):
        if update > (updates or math.inf) or run.seconds > (seconds or math.inf):
            break
        batch = next(data)
        start = clock()
        optimizer.param_groups[0]["lr"] = rate(update)
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            run.diverged = True
            break
        if watch is not None:
            watch(update, model)
        optimizer.step()
        run.seconds += clock() - start
        run.losses.append(value)
        run.norms.append(float(norm))
        run.tokens += int((batch["labels"] != -100).sum())
    return run


@torch.no_grad()
def validation_loss(model: nn.Module, corpus: Corpus, device: str = "cpu") -> float:
    """Mean negative log-likelihood of validation tokens, nats; smoothing does not count."""
    collate = translation_collator(corpus.tokenizer)
    model.eval()
    total, count = 0.0, 0
    ordered = sorted(corpus.validation, key=lambda pair: len(pair["labels"]))
    for i in range(0, len(ordered), 50):
        batch = moved(collate(ordered[i : i + 50]), device)
        logits = model(**batch).logits.float()
        labels = batch["labels"]
        total += float(
            nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        )
        count += int((labels != -100).sum())
    return total / count


@torch.no_grad()
def greedy_bleu(
    model: nn.Module, corpus: Corpus, *, device: str = "cpu", max_tokens: int = 60
) -> float:
    """SacreBLEU (13a) of greedy translations of the test sentences, by whole decoder passes.

    Nothing is cached, so that any model can be searched that gives logits for labels.
    """
    tokenizer = corpus.tokenizer
    model.eval()
    outputs: dict[int, str] = {}
    order = sorted(range(len(corpus.sources)), key=lambda i: len(corpus.sources[i]))
    for begin in range(0, len(order), 50):
        some = order[begin : begin + 50]
        inputs = moved(
            tokenizer([corpus.sources[i] for i in some], padding=True, return_tensors="pt"), device
        )
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        written = torch.full((len(some), 0), 0, device=device)
        ended = torch.zeros(len(some), dtype=torch.bool, device=device)
        for _ in range(max_tokens):
            # The labels are shifted right inside: the last of them is never read.
            unread = written.new_zeros(len(some), 1)
            logits = model(**inputs, labels=torch.cat((written, unread), dim=1)).logits
            written = torch.cat((written, logits[:, -1:].argmax(-1)), dim=1)
            ended |= written[:, -1] == tokenizer.eos_token_id
            if ended.all():
                break
        for i, row in zip(some, written.tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            outputs[i] = tokenizer.decode(row[:end], skip_special_tokens=True)
    hypotheses = [outputs[i] for i in range(len(corpus.sources))]
    return float(sacrebleu.corpus_bleu(hypotheses, [corpus.references]).score)


def parameters_of(model: nn.Module) -> int:
    """Trained numbers, each once."""
    return sum(parameter.numel() for parameter in model.parameters())
