"""The loop of the claims: equal data, both ways to end, and a search that is greedy."""

import importlib
import itertools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sacrebleu
import torch

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.generation import DecodingSettings, translate


@pytest.fixture(scope="module")
def runs(repository: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "scripts")
        return importlib.import_module("claim_runs")


@pytest.fixture(scope="module")
def corpus(runs: ModuleType) -> Any:
    return runs.load_corpus(200, 300, 12)


def model(corpus: Any) -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(1)
    config = VanillaTransformerConfig(
        vocab_size=len(corpus.tokenizer),
        d_model=16,
        d_ff=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout=0.0,
    )
    return VanillaTransformerForConditionalGeneration(config)


def test_batches_hold_every_pair_once_and_begin_again(runs: ModuleType, corpus: Any) -> None:
    pairs = sorted(pair["labels"] for pair in corpus.training)
    for begin in (0, 1):
        seen: list[list[int]] = []
        for batch in itertools.islice(runs.batches(corpus, max_tokens=256), begin, None):
            assert batch["labels"].numel() <= 256
            seen += [[one for one in row if one >= 0] for row in batch["labels"].tolist()]
            if len(seen) >= len(pairs):
                break
        if begin == 0:
            assert sorted(seen) == pairs
        else:
            # One batch later the second pass has begun.
            assert len(seen) >= len(pairs)


def test_a_run_ends_by_updates_by_time_or_diverged(runs: ModuleType, corpus: Any) -> None:
    seen = []
    run = runs.train(
        model(corpus),
        runs.batches(corpus),
        lambda update: 1e-3 * update,
        updates=4,
        watch=lambda update, _: seen.append(update),
    )
    assert seen == [1, 2, 3, 4]
    assert len(run.losses) == len(run.norms) == 4
    assert run.losses[-1] < run.losses[0]
    assert run.tokens > 0
    timed = runs.train(model(corpus), runs.batches(corpus), lambda _: 1e-3, seconds=0.3)
    assert 0.3 <= timed.seconds < 10
    assert timed.losses[0] == pytest.approx(run.losses[0])
    ticks = itertools.count()
    ticked = runs.train(
        model(corpus),
        runs.batches(corpus),
        lambda _: 1e-3,
        seconds=3,
        clock=lambda: float(next(ticks)),
    )
    # Each update is one tick long, and it ends after the one that goes beyond three.
    assert len(ticked.losses) == 4
    lost = runs.train(model(corpus), runs.batches(corpus), lambda _: math.inf, updates=5)
    assert lost.diverged
    assert len(lost.losses) < 5
    with pytest.raises(ValueError, match="updates or seconds, one of them"):
        runs.train(model(corpus), runs.batches(corpus), lambda _: 1e-3)


def test_the_search_is_greedy_and_the_loss_plain(runs: ModuleType, corpus: Any) -> None:
    network = model(corpus)
    runs.train(network, runs.batches(corpus), lambda _: 3e-3, updates=40)
    settings = DecodingSettings(num_beams=1)
    lines = [
        found[0].text
        for found in translate(network.eval(), corpus.tokenizer, corpus.sources, settings)
    ]
    expected = sacrebleu.corpus_bleu(lines, [corpus.references]).score
    assert runs.greedy_bleu(network, corpus) == pytest.approx(expected)

    total, count = 0.0, 0
    for pair in corpus.validation[:500]:
        ids, labels = (torch.tensor([pair[side]]) for side in ("input_ids", "labels"))
        with torch.no_grad():
            logits = network(ids, labels=labels).logits[0]
        total -= float(logits.log_softmax(-1)[range(len(labels[0])), labels[0]].sum())
        count += len(labels[0])
    assert runs.validation_loss(network, corpus) == pytest.approx(total / count, rel=1e-4)


def test_parameters_are_counted_once(runs: ModuleType, corpus: Any) -> None:
    network = model(corpus)
    assert runs.parameters_of(network) == network.num_parameters()
