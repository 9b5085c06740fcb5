"""Decoding against naive searches, `generate` in its modes, bulk translation, and ten sentences.

Shapes: B batch, S source length, T target length, V vocabulary.
"""

import copy
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedTokenizerBase,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer, GenerationMixin, LogitsProcessor

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForCausalLM,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.generation import (
    DecodingSettings,
    Hypothesis,
    TranslationReport,
    translate,
    translation,
)
from vanilla_transformer.modeling_vanilla_transformer import OutputLengthLimit, PaperLengthPenalty
from vanilla_transformer.tokenization import train_tokenizer

PAD, START, EOS = 0, 1, 2
VOCAB = 24
GREEDY = DecodingSettings(num_beams=1)

# Two sentences, of five tokens and of three, padded on the right.
SOURCES = torch.tensor([[5, 9, 14, 7, EOS], [11, 6, EOS, PAD, PAD]])
MASK = (SOURCES != PAD).long()


# ------------------------------------------------------------------------- models and naive oracles


def tiny_config(**overrides: Any) -> VanillaTransformerConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "d_model": 16,
        "d_ff": 32,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "dropout": 0.0,
        "output_bias": True,
    }
    return VanillaTransformerConfig(**(settings | overrides))


def reversals(rows: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random sources `[rows, 8]` and labels that hold their tokens in reverse."""
    tokens = torch.randint(3, vocab_size, (rows, 7))
    lengths = torch.randint(1, 8, (rows, 1))
    positions = torch.arange(8).expand(rows, -1)
    source = torch.nn.functional.pad(tokens, (0, 1)).masked_fill(positions > lengths, PAD)
    source = torch.where(positions == lengths, EOS, source)
    target = source.gather(1, (lengths - 1 - positions).clamp_min(0))
    target = torch.where(positions == lengths, EOS, target).masked_fill(positions > lengths, -100)
    return source, target


@functools.cache
def trained(
    seed: int, updates: int, **overrides: Any
) -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(seed)
    model = VanillaTransformerForConditionalGeneration(tiny_config(**overrides)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    for _ in range(updates):
        source, labels = reversals(16, model.config.vocab_size)
        model(input_ids=source, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def make_model(
    seed: int = 0, updates: int = 50, eos_bias: float | None = None, **overrides: Any
) -> VanillaTransformerForConditionalGeneration:
    """A model that has half learned to reverse its source.

    A random one repeats one token for ever, whatever it reads, which hides mistakes; a good one is
    always sure. This one wavers, and its outputs differ in content and length.
    """
    model = copy.deepcopy(trained(seed, updates, **overrides))
    if eos_bias is not None:
        with torch.no_grad():
            model.lm_head.bias[EOS] = eos_bias
    return model


@pytest.fixture(scope="module")
def model() -> VanillaTransformerForConditionalGeneration:
    """Ends a sentence of its own accord, sooner or later."""
    return make_model(updates=150)


@pytest.fixture(scope="module")
def endless() -> VanillaTransformerForConditionalGeneration:
    """Never ends a sentence unless it must."""
    return make_model(updates=150, eos_bias=-100.0)


def length_penalty(n: int, alpha: float, formula: str = "paper") -> float:
    """6.1 and Wu et al. 2016, eq. 14; or transformers' own."""
    return ((5 + n) / 6) ** alpha if formula == "paper" else n**alpha


def next_log_probs(
    model: VanillaTransformerForConditionalGeneration,
    source: torch.Tensor,
    prefixes: list[tuple[int, ...]],
) -> list[list[float]]:
    """log P(token | prefix, source) for prefixes of one length, in double precision, no cache."""
    with torch.no_grad():
        logits = model(
            input_ids=source.expand(len(prefixes), -1),
            decoder_input_ids=torch.tensor([(START, *prefix) for prefix in prefixes]),
            use_cache=False,
        ).logits
    return logits[:, -1].log_softmax(dim=-1).tolist()


def tokens_of(row: torch.Tensor, prompt_length: int = 1) -> tuple[int, ...]:
    """What was generated, up to `</s>`."""
    tokens = row.tolist()[prompt_length:]
    return tuple(tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens)


def log_probability(
    model: VanillaTransformerForConditionalGeneration, source: torch.Tensor, tokens: tuple[int, ...]
) -> float:
    """log P(tokens | source), step by step."""
    double = copy.deepcopy(model).double()
    return sum(
        next_log_probs(double, source, [tokens[:i]])[0][token] for i, token in enumerate(tokens)
    )


Scored = tuple[float, tuple[int, ...]]


def exhaustive_search(
    model: VanillaTransformerForConditionalGeneration,
    source: torch.Tensor,
    limit: int,
    score: Callable[[float, int], float],
    must_end: bool,
) -> list[Scored]:
    """Every output of at most `limit` tokens with its score, best first.

    With `must_end` an output counts only if it ends in `</s>`; else also if it is cut off.
    """
    double = copy.deepcopy(model).double()
    finished: list[Scored] = []
    running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, limit + 1):
        table = next_log_probs(double, source, [tokens for _, tokens in running])
        extended = [
            (total + row[token], (*tokens, token))
            for (total, tokens), row in zip(running, table, strict=True)
            for token in range(len(row))
        ]
        running = [(total, tokens) for total, tokens in extended if tokens[-1] != EOS]
        finished += [(score(total, n), tokens) for total, tokens in extended if tokens[-1] == EOS]
    if not must_end:
        finished += [(score(total, limit), tokens) for total, tokens in running]
    return sorted(finished, reverse=True)


def naive_beam_search(
    model: VanillaTransformerForConditionalGeneration,
    source: torch.Tensor,
    beams: int,
    limit: int,
    score: Callable[[float, int], float],
    early_stopping: bool | str,
    must_end: bool,
) -> list[Scored]:
    """Beam search in plain lists, best first.

    Of the best 2 k continuations, those among the first k that end are kept as results and the
    first k that do not end go on. The search is over when there are k results of which the worst
    is at least as good as the best running one may become.
    """
    double = copy.deepcopy(model).double()
    finished: list[Scored] = []
    running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, limit + 1):
        table = next_log_probs(double, source, [tokens for _, tokens in running])
        candidates = sorted(
            (
                (total + row[token], (*tokens, token))
                for (total, tokens), row in zip(running, table, strict=True)
                for token in range(len(row))
                if token == EOS or not (must_end and n == limit)
            ),
            reverse=True,
        )[: 2 * beams]
        ended = [(t, tokens) for t, tokens in candidates[:beams] if tokens[-1] == EOS or n == limit]
        finished += [(score(total, n), tokens) for total, tokens in ended]
        finished = sorted(finished, reverse=True)[:beams]
        running = [(t, tokens) for t, tokens in candidates if tokens[-1] != EOS][:beams]
        if n == limit or len(finished) < beams:
            continue
        hoped_for = score(running[0][0], limit if early_stopping == "never" else n)
        if early_stopping is True or hoped_for <= finished[-1][0]:
            break
    return finished


def assert_same_search(output: Any, expected: list[Scored], tolerance: float = 1e-5) -> None:
    """The n-best of one sentence: the same outputs in the same order, the same scores."""
    found = [tokens_of(row) for row in output.sequences]
    assert found == [tokens for _, tokens in expected[: len(found)]]
    scores = output.sequences_scores.tolist()
    assert scores == pytest.approx([s for s, _ in expected[: len(found)]], abs=tolerance)


# ------------------------------------------------------------------------------- length penalty


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.5])
def test_an_exponent_gives_the_papers_length_penalty(alpha):
    for n in (1, 2, 7, 100):
        assert n ** PaperLengthPenalty(alpha) == pytest.approx(((5 + n) / 6) ** alpha, rel=1e-12)
    # transformers asks this of it, too.
    assert (PaperLengthPenalty(alpha) > 0.0) == (alpha > 0)


@pytest.mark.parametrize("formula", ["paper", "power"])
def test_beam_scores_are_log_probabilities_over_the_length_penalty(model, formula):
    output = model.generate(
        SOURCES,
        attention_mask=MASK,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.6,
        length_penalty_formula=formula,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = output.sequences_scores.view(2, 4).tolist()
    outputs = [tokens_of(row) for row in output.sequences]
    # Lengths differ, or a wrong n would go unseen.
    assert len({len(tokens) for tokens in outputs}) > 2
    for i, source in enumerate([SOURCES[0], SOURCES[1, :3]]):
        for j in range(4):
            tokens = outputs[4 * i + j]
            assert tokens[-1] == EOS
            total = log_probability(model, source, tokens)
            # n counts every generated token, </s> too.
            expected = total / length_penalty(len(tokens), 0.6, formula)
            assert scores[i][j] == pytest.approx(expected, abs=1e-5)
        assert scores[i] == sorted(scores[i], reverse=True)


class PlainBeamSearch(VanillaTransformerForConditionalGeneration):
    """The model with the beam search that transformers brings."""

    _beam_search = GenerationMixin._beam_search


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_power_is_transformers_own_formula(model, early_stopping):
    plain = PlainBeamSearch(model.config).eval()
    plain.load_state_dict(model.state_dict())
    options = {
        "attention_mask": MASK,
        "num_beams": 3,
        "num_return_sequences": 3,
        "length_penalty": 1.7,
        "early_stopping": early_stopping,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    theirs = plain.generate(SOURCES, **options)
    ours = model.generate(SOURCES, length_penalty_formula="power", **options)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert ours.sequences_scores.tolist() == theirs.sequences_scores.tolist()
    # The paper's is the default, and another one.
    paper = model.generate(SOURCES, **options)
    assert paper.sequences_scores.tolist() != theirs.sequences_scores.tolist()


def test_an_unknown_formula_is_refused(model):
    with pytest.raises(ValueError, match=r"length_penalty_formula \('log'\) must be 'paper'"):
        model.generate(SOURCES, attention_mask=MASK, num_beams=2, length_penalty_formula="log")


def test_the_callers_generation_config_stays_as_it_is(model):
    config = GenerationConfig(num_beams=2, length_penalty=0.6, pad_token_id=PAD, eos_token_id=EOS)
    before, models_own = config.to_dict(), model.generation_config.to_dict()
    model.generate(SOURCES, attention_mask=MASK, generation_config=config)
    assert config.to_dict() == before
    assert type(config.length_penalty) is float
    assert model.generation_config.to_dict() == models_own


# ---------------------------------------------------------------- beam search on a toy vocabulary

TOY_SOURCES = [[3, EOS], [5, EOS], [4, EOS]]


@pytest.mark.parametrize("formula", ["paper", "power"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wide_beam_finds_what_exhaustive_search_finds(seed, alpha, formula):
    toy = make_model(seed, updates=20, vocab_size=6)
    source = torch.tensor([TOY_SOURCES[seed]])

    def score(total: float, n: int) -> float:
        return total / length_penalty(n, alpha, formula)

    # 5^3 unfinished outputs of three tokens have 750 continuations: none of them is dropped.
    options = {
        "num_beams": 750,
        "num_return_sequences": 20,
        "length_penalty": alpha,
        "length_penalty_formula": formula,
        "early_stopping": "never",
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    output = toy.generate(source, max_new_tokens=4, **options)
    assert_same_search(output, exhaustive_search(toy, source, 4, score, must_end=False))
    # The paper's limit, here 2 + 2 tokens, ends an output instead of cutting it off.
    output = toy.generate(source, max_tokens_over_source=2, **options)
    assert_same_search(output, exhaustive_search(toy, source, 4, score, must_end=True))


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize(("seed", "alpha"), [(0, 0.6), (1, 0.0), (2, 0.6), (3, 2.0)])
def test_a_narrow_beam_finds_what_a_naive_one_finds(seed, alpha, beams, early_stopping):
    toy = make_model(seed, updates=30, vocab_size=12)
    source = torch.tensor([[3 + seed, 7, EOS]])

    def score(total: float, n: int) -> float:
        return total / length_penalty(n, alpha)

    options = {
        "num_beams": beams,
        "num_return_sequences": beams,
        "length_penalty": alpha,
        "early_stopping": early_stopping,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    for limits, must_end in (({"max_new_tokens": 8}, False), ({"max_tokens_over_source": 5}, True)):
        expected = naive_beam_search(toy, source, beams, 8, score, early_stopping, must_end)
        assert_same_search(toy.generate(source, **limits, **options), expected)


# ------------------------------------------------------------------------------------- caches

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.6},
    "sampling": {"do_sample": True, "top_k": 0},
    "beam sampling": {"do_sample": True, "top_k": 0, "num_beams": 3},
}


def static_cache(config: VanillaTransformerConfig) -> EncoderDecoderCache:
    return EncoderDecoderCache(
        StaticCache(config=config.get_text_config(decoder=True), max_cache_len=40),
        StaticCache(config=config.get_text_config(decoder=True), max_cache_len=SOURCES.shape[1]),
    )


def dynamic_cache(config: VanillaTransformerConfig) -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_encoder_layers": 1, "num_decoder_layers": 3},
        {"num_encoder_layers": 3, "num_decoder_layers": 1},
        {"d_k": 6, "d_v": 10},
        {"layer_norm_position": "pre", "position_encoding": "concatenated", "position_offset": 1},
        {"position_encoding": "learned", "max_position_embeddings": 40},
    ],
    ids=["base", "deep decoder", "deep encoder", "d_k and d_v", "pre-norm", "learned"],
)
def test_a_cache_changes_nothing(search, overrides):
    model = make_model(**overrides)
    options = {
        "inputs": SOURCES,
        "attention_mask": MASK,
        "max_new_tokens": 12,
        "return_dict_in_generate": True,
        "output_logits": True,
        "output_scores": True,
        **SEARCHES[search],
    }

    def run(**arguments: Any) -> Any:
        torch.manual_seed(0)
        return model.generate(**options, **arguments)

    expected = run(use_cache=False)
    outputs = [
        run(),
        run(past_key_values=dynamic_cache(model.config)),
        run(cache_implementation="static"),
        run(past_key_values=static_cache(model.config)),
    ]
    for output in outputs:
        assert output.sequences.tolist() == expected.sequences.tolist()
        for logits, expected_logits in zip(output.logits, expected.logits, strict=True):
            torch.testing.assert_close(logits, expected_logits, atol=2e-5, rtol=0)
        if "num_beams" in options:
            scores = expected.sequences_scores
            torch.testing.assert_close(output.sequences_scores, scores, atol=2e-5, rtol=0)


# ---------------------------------------------------------------------------- generate's modes


def test_greedy_takes_the_likeliest_token(model):
    output = model.generate(SOURCES, attention_mask=MASK, max_new_tokens=10)
    for row, source in zip(output, [SOURCES[0], SOURCES[1, :3]], strict=True):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 10 and EOS not in tokens:
            log_probs = next_log_probs(model, source, [tokens])[0]
            tokens = (*tokens, max(range(VOCAB), key=log_probs.__getitem__))
        assert row[0] == START
        assert tokens_of(row) == tokens
        assert all(token == PAD for token in row[1 + len(tokens) :])


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_batch_gives_what_its_sentences_give_alone(model, search):
    sources = [[*torch.arange(3, 3 + n).flip(0).tolist(), EOS] for n in (1, 2, 4, 7, 3, 12, 1, 9)]
    longest = max(map(len, sources))
    padded = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids in sources])
    options = SEARCHES[search] | {"max_tokens_over_source": 6}
    together = model.generate(padded, attention_mask=(padded != PAD).long(), **options)
    alone = [
        row for ids in sources for row in model.generate(torch.tensor([ids]), **options).unbind()
    ]
    assert [tokens_of(row) for row in together] == [tokens_of(row) for row in alone]


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_padding_counts_for_nothing_on_either_side_with_or_without_a_mask(model, search):
    options = SEARCHES[search] | {"max_new_tokens": 12}
    expected = [tokens_of(row) for row in model.generate(SOURCES[1:, :3], **options)]
    for left, right in ((0, 2), (2, 0), (1, 3)):
        padded = torch.nn.functional.pad(SOURCES[1:, :3], (left, right), value=PAD)
        for arguments in ({}, {"attention_mask": (padded != PAD).long()}):
            output = model.generate(padded, **arguments, **options)
            assert [tokens_of(row) for row in output] == expected


def test_n_best_come_best_first_and_differ(model):
    options = {"attention_mask": MASK, "num_beams": 5, "length_penalty": 0.6}
    output = model.generate(
        SOURCES,
        num_return_sequences=5,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = [tokens_of(row) for row in output.sequences]
    best = [tokens_of(row) for row in model.generate(SOURCES, **options)]
    assert best == [rows[0], rows[5]]
    for first in (0, 5):
        assert len(set(rows[first : first + 5])) == 5
        scores = output.sequences_scores[first : first + 5].tolist()
        assert scores == sorted(scores, reverse=True)


def test_sampling_draws_from_the_distribution_it_is_told(model):
    draws = 4000
    log_probs = torch.tensor(next_log_probs(model, SOURCES[0], [()])[0])
    cases: list[tuple[dict[str, Any], torch.Tensor]] = []
    cases.append(({"top_k": 0}, log_probs.softmax(-1)))
    cases.append(({"top_k": 0, "temperature": 2.0}, (log_probs / 2).softmax(-1)))
    kept = log_probs >= log_probs.topk(3).values[-1]
    cases.append(({"top_k": 3}, log_probs.masked_fill(~kept, -math.inf).softmax(-1)))
    # The fewest tokens that together have at least this probability.
    ranked = (log_probs / 2).softmax(-1).sort(descending=True)
    count = int((ranked.values.cumsum(0) < 0.7).sum()) + 1
    nucleus = torch.zeros(VOCAB).scatter(0, ranked.indices[:count], ranked.values[:count])
    assert 1 < count < VOCAB
    cases.append(({"top_k": 0, "temperature": 2.0, "top_p": 0.7}, nucleus / nucleus.sum()))
    for options, expected in cases:
        torch.manual_seed(1)
        output = model.generate(
            SOURCES[:1],
            do_sample=True,
            num_return_sequences=draws,
            max_new_tokens=1,
            **options,
        )
        frequency = torch.bincount(output[:, 1], minlength=VOCAB) / draws
        assert frequency[expected == 0].sum() == 0
        deviation = (expected * (1 - expected) / draws).sqrt()
        assert ((frequency - expected).abs() <= 5 * deviation + 1e-9).all()


def test_sampling_repeats_with_its_seed_and_nears_greedy_as_it_cools(model):
    def sample(seed: int, **options: Any) -> list[list[int]]:
        torch.manual_seed(seed)
        output = model.generate(SOURCES, attention_mask=MASK, do_sample=True, **options)
        return output.tolist()

    assert sample(0, top_k=0) == sample(0, top_k=0)
    assert sample(0, top_k=0) != sample(1, top_k=0)
    greedy = model.generate(SOURCES, attention_mask=MASK).tolist()
    assert sample(0, top_k=1) == greedy
    assert sample(0, top_k=0, top_p=1e-6) == greedy
    assert sample(0, top_k=0, temperature=1e-3) == greedy


def test_beam_sampling_scores_what_it_draws_and_ends_at_the_limit(endless, model):
    for sampler in (endless, model):
        torch.manual_seed(0)
        output = sampler.generate(
            SOURCES,
            attention_mask=MASK,
            do_sample=True,
            top_k=0,
            num_beams=3,
            num_return_sequences=2,
            length_penalty=0.6,
            max_tokens_over_source=4,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for i, source in enumerate([SOURCES[0], SOURCES[1, :3]]):
            for row in (2 * i, 2 * i + 1):
                tokens = tokens_of(output.sequences[row])
                assert tokens[-1] == EOS
                assert len(tokens) <= len(source) + 4
                score = log_probability(sampler, source, tokens) / length_penalty(len(tokens), 0.6)
                assert output.sequences_scores[row].item() == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("limit", [{}, {"max_new_tokens": 9}, {"max_tokens_over_source": 3}])
def test_assisted_decoding_is_greedy_decoding(model, endless, limit):
    source = SOURCES[:1]
    for decoder in (model, endless):
        expected = decoder.generate(source, **limit).tolist()
        smaller = make_model(seed=8, num_decoder_layers=1)
        for assistant in (smaller, copy.deepcopy(decoder)):
            output = decoder.generate(source, assistant_model=assistant, **limit)
            assert output.tolist() == expected
        assert decoder.generate(source, prompt_lookup_num_tokens=2, **limit).tolist() == expected


@pytest.mark.parametrize("cache", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_prompts_padded_on_the_left_continue_as_they_do_alone(model, search, cache):
    prompts = torch.tensor([[START, 8, 4, 10], [PAD, PAD, START, 6]])
    options = SEARCHES[search] | cache
    together = model.generate(
        SOURCES,
        attention_mask=MASK,
        decoder_input_ids=prompts,
        decoder_attention_mask=(prompts != PAD).long(),
        max_tokens_over_source=5,
        **options,
    )
    alone = [
        (row, prompt.shape[1])
        for source, prompt in ((SOURCES[:1], prompts[:1]), (SOURCES[1:, :3], prompts[1:, 2:]))
        for row in model.generate(
            source, decoder_input_ids=prompt, max_tokens_over_source=5, **options
        )
    ]
    assert [tokens_of(row, 4) for row in together] == [tokens_of(row, n) for row, n in alone]
    assert together[0, :4].tolist() == prompts[0].tolist()


def test_a_prompt_steers_what_follows(model):
    plain = tokens_of(model.generate(SOURCES[:1])[0])
    prompt = torch.tensor([[START, *plain[:2]]])
    continued = model.generate(SOURCES[:1], decoder_input_ids=prompt)
    assert tokens_of(continued[0]) == plain
    other = torch.tensor([[START, (plain[0] + 1) % VOCAB]])
    assert tokens_of(model.generate(SOURCES[:1], decoder_input_ids=other)[0], 2) != plain[1:]


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_source_may_come_as_embeddings_or_encoded(model, search):
    options = SEARCHES[search] | {"attention_mask": MASK, "max_tokens_over_source": 4}
    expected = model.generate(SOURCES, **options).tolist()
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(SOURCES)
        encoded = model.get_encoder()(input_ids=SOURCES, attention_mask=MASK)
    assert model.generate(input_ids=SOURCES, **options).tolist() == expected
    assert model.generate(inputs_embeds=embeddings, **options).tolist() == expected
    # `generate` spreads an encoder's output over the beams in place.
    assert model.generate(encoder_outputs=copy.deepcopy(encoded), **options).tolist() == expected


def test_everything_recorded_has_its_shape():
    model = make_model(updates=0, num_encoder_layers=3)
    model.set_attn_implementation("eager")
    output = model.generate(
        SOURCES,
        attention_mask=MASK,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    steps = output.sequences.shape[1] - 1
    assert len(output.scores) == len(output.logits) == steps
    assert all(scores.shape == (2, VOCAB) for scores in output.scores)
    assert [a.shape for a in output.encoder_attentions] == [(2, 2, 5, 5)] * 3
    assert [h.shape for h in output.encoder_hidden_states] == [(2, 5, 16)] * 4
    for step in range(steps):
        assert [a.shape for a in output.decoder_attentions[step]] == [(2, 2, 1, step + 1)] * 2
        assert [a.shape for a in output.cross_attentions[step]] == [(2, 2, 1, 5)] * 2
        assert [h.shape for h in output.decoder_hidden_states[step]] == [(2, 1, 16)] * 3
        # Nothing looks at the padding of the second source.
        assert all(
            attention[1, :, :, 3:].max() < 1e-6 for attention in output.cross_attentions[step]
        )
    with torch.no_grad():
        logits = model(
            input_ids=SOURCES, attention_mask=MASK, decoder_input_ids=output.sequences[:, :-1]
        ).logits
    torch.testing.assert_close(torch.stack(output.logits, dim=1), logits, atol=2e-5, rtol=0)


def test_transition_scores_add_up(model):
    output = model.generate(
        SOURCES,
        attention_mask=MASK,
        num_beams=3,
        length_penalty=0.6,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    transitions = model.compute_transition_scores(
        output.sequences, output.scores, output.beam_indices, normalize_logits=False
    )
    for row, score, steps in zip(
        output.sequences, output.sequences_scores.tolist(), transitions, strict=True
    ):
        n = len(tokens_of(row))
        assert steps[:n].sum().item() / length_penalty(n, 0.6) == pytest.approx(score, abs=1e-5)


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.is_over = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.is_over = True


class StopAt(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        is_long = input_ids.shape[1] >= self.length
        return torch.full((input_ids.shape[0],), is_long, dtype=torch.bool)


class Only(LogitsProcessor):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = torch.full_like(scores, -math.inf)
        allowed[:, [self.token, EOS]] = scores[:, [self.token, EOS]]
        return allowed


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_constraints_hold(endless, search):
    options = SEARCHES[search] | {"attention_mask": MASK}
    rows = [tokens_of(row) for row in endless.generate(SOURCES, max_new_tokens=20, **options)]
    favourite = rows[0][3]

    def generate(**arguments: Any) -> list[tuple[int, ...]]:
        return [tokens_of(row) for row in endless.generate(SOURCES, **arguments, **options)]

    def pairs(tokens: tuple[int, ...]) -> list[tuple[int, int]]:
        return list(itertools.pairwise(tokens))

    assert any(len(set(pairs(row))) < len(pairs(row)) for row in rows)
    for row in generate(max_new_tokens=20, no_repeat_ngram_size=2):
        assert len(set(pairs(row))) == len(pairs(row))
    for row in generate(max_new_tokens=20, bad_words_ids=[[favourite]]):
        assert favourite not in row
    for row in generate(prefix_allowed_tokens_fn=lambda i, ids: [4, 7, EOS], max_new_tokens=6):
        assert set(row) <= {4, 7, EOS}
    for row in generate(forced_bos_token_id=9, max_new_tokens=6):
        assert row[0] == 9
    # A processor of the caller's works beside the limit of the output.
    for row in generate(logits_processor=[Only(6)], max_tokens_over_source=1):
        assert set(row) <= {6, EOS}
        assert row[-1] == EOS
    for row in generate(stopping_criteria=StoppingCriteriaList([StopAt(4)])):
        assert len(row) == 3


def test_a_minimal_length_holds():
    short = make_model(eos_bias=50.0)
    assert [tokens_of(row) for row in short.generate(SOURCES, attention_mask=MASK)] == [(EOS,)] * 2
    for options in SEARCHES.values():
        output = short.generate(SOURCES, attention_mask=MASK, min_new_tokens=6, **options)
        assert {len(tokens_of(row)) for row in output} == {7}
        # It goes before the limit, which would be 6 and 4.
        rows = []
        for limit in ({"max_tokens_over_source": 1}, {"max_new_tokens": 6}):
            torch.manual_seed(0)
            output = short.generate(
                SOURCES, attention_mask=MASK, min_new_tokens=6, **limit, **options
            )
            rows.append(output.tolist())
        assert rows[0] == rows[1]
        assert all(EOS not in row for row in rows[0])


def test_a_streamer_gets_every_token(model):
    streamer = Collector()
    output = model.generate(SOURCES[:1], streamer=streamer)
    assert streamer.tokens == output[0].tolist()
    assert streamer.is_over


# ------------------------------------------------------------------------- the limit of an output


def lengths_of(output: torch.Tensor, prompt_length: int = 1) -> list[int]:
    """Generated tokens of each row; each must end in `</s>`."""
    rows = [tokens_of(row, prompt_length) for row in output]
    assert all(row[-1] == EOS for row in rows)
    return [len(row) for row in rows]


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_an_output_ends_fifty_tokens_beyond_its_source(endless, options):
    repeats = options.get("num_return_sequences", 1)
    output = endless.generate(SOURCES, attention_mask=MASK, **options)
    # Each by its own source, whatever is beside it and however it is padded.
    assert lengths_of(output) == [55] * repeats + [53] * repeats
    assert lengths_of(endless.generate(SOURCES[1:, :3], **options)) == [53] * repeats


def test_padding_does_not_lengthen_an_output(endless):
    left = torch.tensor([[PAD, PAD, 4, EOS]])
    inputs: list[dict[str, Any]] = [
        {"inputs": left},
        {"input_ids": left},
        {"input_ids": left, "attention_mask": (left != PAD).long()},
        {"input_ids": left.flip(1)},
    ]
    for arguments in inputs:
        assert lengths_of(endless.generate(**arguments, max_tokens_over_source=3)) == [5]


def test_the_limit_counts_a_source_however_it_comes(endless):
    with torch.no_grad():
        embeddings = endless.get_input_embeddings()(SOURCES)
        encoded = endless.get_encoder()(input_ids=SOURCES, attention_mask=MASK)
    inputs: list[dict[str, Any]] = [
        {"inputs": SOURCES},
        {"input_ids": SOURCES},
        {"inputs_embeds": embeddings},
        {"encoder_outputs": encoded},
    ]
    for arguments in inputs:
        output = endless.generate(**arguments, attention_mask=MASK, max_tokens_over_source=2)
        assert lengths_of(output) == [7, 5]
    # Without a mask there is nothing to tell padding by.
    for arguments in inputs[2:]:
        assert lengths_of(endless.generate(**arguments, max_tokens_over_source=2)) == [7, 7]


def test_the_limit_counts_from_the_end_of_a_prompt(endless):
    with_start = torch.tensor([[START, 8, 4], [START, 9, 4]])
    options = {"attention_mask": MASK, "max_tokens_over_source": 2}
    output = endless.generate(SOURCES, decoder_input_ids=with_start, **options)
    assert lengths_of(output, prompt_length=3) == [7, 5]
    # transformers puts the start token before a prompt that lacks it.
    without = endless.generate(SOURCES, decoder_input_ids=with_start[:, 1:], **options)
    assert without.tolist() == output.tolist()


def test_where_the_limit_can_be_set(endless, tmp_path):
    model = copy.deepcopy(endless)

    def lengths(**arguments: Any) -> list[int]:
        return lengths_of(model.generate(SOURCES, attention_mask=MASK, **arguments))

    assert lengths(max_tokens_over_source=1) == [6, 4]
    model.generation_config.max_tokens_over_source = 4
    assert lengths() == [9, 7]
    assert lengths(max_tokens_over_source=1) == [6, 4]
    # What a configuration of the caller's leaves open, the model's own decides.
    assert lengths(generation_config=GenerationConfig(num_beams=2)) == [9, 7]
    given = GenerationConfig(max_tokens_over_source=2)
    assert lengths(generation_config=given) == [7, 5]

    model.generation_config.length_penalty_formula = "power"
    model.save_pretrained(tmp_path)
    model = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    assert model.generation_config.length_penalty_formula == "power"
    assert lengths() == [9, 7]


def test_an_explicit_limit_wins(endless):
    model = copy.deepcopy(endless)

    def shape(**arguments: Any) -> tuple[int, ...]:
        return tuple(model.generate(SOURCES, attention_mask=MASK, **arguments).shape)

    # The start token counts in max_length, not in max_new_tokens.
    assert shape(max_length=7) == (2, 7)
    assert shape(max_new_tokens=4) == (2, 5)
    assert shape(generation_config=GenerationConfig(max_length=6)) == (2, 6)
    assert shape(generation_config=GenerationConfig(max_new_tokens=4)) == (2, 5)
    assert shape(max_new_tokens=70) == (2, 71)
    model.generation_config.max_new_tokens = 8
    assert shape() == (2, 9)


def test_any_of_several_ends_will_do(endless):
    model = copy.deepcopy(endless)
    with torch.no_grad():
        model.lm_head.bias[3] = -50.0
    model.generation_config.eos_token_id = [EOS, 3]
    output = model.generate(SOURCES, attention_mask=MASK, max_tokens_over_source=2)
    # The likelier of the two.
    assert [row.tolist().index(3) for row in output] == [7, 5]


def test_the_limit_leaves_other_rows_alone():
    limit = OutputLengthLimit(torch.tensor([2, 4]), prompt_length=1, eos_token_id=EOS)
    scores = torch.arange(16.0).view(4, 4)
    # Two beams a sentence, the second token to come.
    limited = limit(torch.zeros(4, 2, dtype=torch.long), scores.clone())
    for row in (0, 1):
        assert limited[row].tolist() == [-math.inf, -math.inf, scores[row, EOS].item(), -math.inf]
    assert limited[2:].tolist() == scores[2:].tolist()
    early = limit(torch.zeros(4, 1, dtype=torch.long), scores.clone())
    assert early.tolist() == scores.tolist()


class Messages(logging.Handler):
    """Keeps what a library says; transformers' loggers do not pass it on to pytest's."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_the_limit_makes_no_noise(endless):
    # transformers says some things once only.
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    messages = Messages()
    logger = logging.getLogger("transformers")
    logger.addHandler(messages)
    try:
        endless.generate(SOURCES, attention_mask=MASK)
        endless.generate(
            SOURCES, attention_mask=MASK, generation_config=GenerationConfig(num_beams=2)
        )
    finally:
        logger.removeHandler(messages)
    assert messages.texts == []


@pytest.mark.parametrize("formula", [None, "paper", "power"])
def test_a_stock_generation_config_works(model, tmp_path, formula):
    model.save_pretrained(tmp_path)
    stock = GenerationConfig(
        bos_token_id=START, decoder_start_token_id=START, eos_token_id=EOS, pad_token_id=PAD
    )
    stock.save_pretrained(tmp_path)
    assert "formula" not in (tmp_path / "generation_config.json").read_text()
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    options: dict[str, Any] = {
        "attention_mask": MASK,
        "num_beams": 3,
        "length_penalty": 2.0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    arguments = {} if formula is None else {"length_penalty_formula": formula}
    found = loaded.generate(SOURCES, **arguments, **options)
    expected = model.generate(SOURCES, length_penalty_formula=formula or "paper", **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert found.sequences_scores.tolist() == expected.sequences_scores.tolist()


# ---------------------------------------------------------------------------- the decoder alone


@functools.cache
def causal_model() -> VanillaTransformerForCausalLM:
    """Has half learned to say what it has read in reverse."""
    torch.manual_seed(0)
    model = VanillaTransformerForCausalLM(tiny_config()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    for _ in range(50):
        source, _ = reversals(16, VOCAB)
        sequence = torch.cat((source.flip(1), source), dim=1)
        labels = sequence.masked_fill(sequence == PAD, -100)
        mask = (sequence != PAD).long()
        model(input_ids=sequence, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_causal_model_continues_prompts_padded_on_the_left(search):
    model = causal_model()
    prompts = torch.tensor([[5, 9, 14, 7], [PAD, PAD, 11, 6]])
    mask = (prompts != PAD).long()
    options = SEARCHES[search] | {"max_new_tokens": 10}
    expected = [
        (tokens_of(row, prompt.shape[1]))
        for prompt in (prompts[:1], prompts[1:, 2:])
        for row in model.generate(prompt, use_cache=False, **options)
    ]
    for cache in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        together = model.generate(prompts, attention_mask=mask, **cache, **options)
        assert [tokens_of(row, 4) for row in together] == expected


def test_a_causal_model_continues_embeddings():
    model = causal_model()
    prompt = torch.tensor([[5, 9, 14, 7]])
    expected = model.generate(prompt, max_new_tokens=8)[:, 4:]
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(prompt)
    assert model.generate(inputs_embeds=embeddings, max_new_tokens=8).tolist() == expected.tolist()


# ----------------------------------------------------------------------------- bulk translation


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, r"num_beams \(0\)"),
        ({"num_hypotheses": 0}, r"num_hypotheses \(0\)"),
        ({"num_hypotheses": 5}, r"num_hypotheses \(5\) cannot exceed num_beams \(4\)"),
        ({"num_hypotheses": 5, "do_sample": True}, r"num_hypotheses \(5\) cannot exceed"),
        ({"max_tokens_over_source": 0}, r"max_tokens_over_source \(0\)"),
        ({"do_sample": True, "temperature": 0.0}, r"temperature=0\.0"),
        ({"do_sample": True, "top_p": 0.0}, r"top_p=0\.0"),
        ({"do_sample": True, "top_p": 1.5}, r"top_p=1\.5"),
        ({"do_sample": True, "top_k": -1}, r"top_k=-1"),
        ({"length_penalty_formula": "log"}, r"length_penalty_formula \('log'\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DecodingSettings(**settings)


def test_the_default_settings_are_the_papers():
    assert DecodingSettings().generation_arguments() == {
        "num_beams": 4,
        "length_penalty": 0.6,
        "length_penalty_formula": "paper",
        "max_tokens_over_source": 50,
        "num_return_sequences": 1,
        "do_sample": False,
    }
    sampling = DecodingSettings(num_beams=1, num_hypotheses=3, do_sample=True, top_k=7, top_p=0.9)
    assert sampling.generation_arguments() == {
        "num_beams": 1,
        "max_tokens_over_source": 50,
        "num_return_sequences": 3,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 7,
        "top_p": 0.9,
    }


TEXT = [
    "The dog sees the house.",
    "no",
    "A very long sentence, in which one thing is said after the other, and then one more.",
    "  Spaces before and after  ",
    "Der Hund läuft zum Fluss, weil er Durst hat.",
    "a",
    "What does the old woman give to the child that sits beside the door?",
    "Yes!",
    "x y z",
    "Ein Haus.",
]


def train_on(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], updates: int
) -> VanillaTransformerForConditionalGeneration:
    """A tiny model after so many updates on all pairs at once, or when it knows them."""
    torch.manual_seed(0)
    model = VanillaTransformerForConditionalGeneration(
        tiny_config(
            vocab_size=len(tokenizer), d_model=64, d_ff=128, num_heads=4, label_smoothing=0.0
        )
    )
    sources = tokenizer([source for source, _ in pairs], padding=True, return_tensors="pt")
    targets = tokenizer([target for _, target in pairs], padding=True, return_tensors="pt")
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98), eps=1e-9)
    for update in range(1, updates + 1):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, update / 30)
        loss = model(**sources, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXT * 2, 300)


@pytest.fixture(scope="module")
def translator(tokenizer) -> VanillaTransformerForConditionalGeneration:
    """Has half learned to answer each line with the next."""
    return train_on(tokenizer, list(zip(TEXT, TEXT[1:] + TEXT[:1], strict=True)), updates=60)


def alone(
    model: VanillaTransformerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    line: str,
    decoding: DecodingSettings,
) -> list[tuple[str, float | None]]:
    """One line through `generate`, unpadded and with nothing beside it."""
    output = model.generate(
        torch.tensor([tokenizer(line.strip())["input_ids"]]),
        return_dict_in_generate=True,
        output_scores=True,
        **decoding.generation_arguments(),
    )
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in output.sequences]
    scores = [None] * len(texts) if decoding.num_beams == 1 else output.sequences_scores.tolist()
    return list(zip(texts, scores, strict=True))


@pytest.mark.parametrize(
    "decoding",
    [
        DecodingSettings(num_beams=1, max_tokens_over_source=6),
        DecodingSettings(max_tokens_over_source=6),
        DecodingSettings(max_tokens_over_source=6, num_hypotheses=3, length_penalty=1.0),
    ],
    ids=["greedy", "beam", "n-best"],
)
def test_a_translation_does_not_depend_on_its_neighbours(translator, tokenizer, decoding):
    lines = [(TEXT * 2)[i][i // 10 :] or "b" for i in range(20)]
    expected = [alone(translator, tokenizer, line, decoding) for line in lines]
    assert len({hypotheses[0][0] for hypotheses in expected}) > 5
    for max_batch_tokens, window in ((120, 1), (120, 7), (300, 100), (4096, 5), (4096, 100)):
        found = list(
            translate(
                translator,
                tokenizer,
                lines,
                decoding,
                max_batch_tokens=max_batch_tokens,
                max_source_tokens=120,
                window=window,
            )
        )
        for hypotheses, wanted in zip(found, expected, strict=True):
            assert [hypothesis.text for hypothesis in hypotheses] == [text for text, _ in wanted]
            if decoding.num_beams == 1:
                assert [hypothesis.score for hypothesis in hypotheses] == [None]
            else:
                scores = [hypothesis.score for hypothesis in hypotheses]
                assert scores == pytest.approx([score for _, score in wanted], abs=1e-4)
            assert len(hypotheses) == decoding.num_hypotheses


@pytest.fixture
def batches(monkeypatch) -> list[tuple[int, int]]:
    """Sentences and longest source of the batches that are translated."""
    shapes: list[tuple[int, int]] = []
    translate_batch = translation._translate_batch

    def recording(model: Any, tokenizer: Any, sources: list[list[int]], *args: Any) -> Any:
        shapes.append((len(sources), max(map(len, sources))))
        return translate_batch(model, tokenizer, sources, *args)

    monkeypatch.setattr(translation, "_translate_batch", recording)
    return shapes


def test_batches_keep_to_their_budget_and_hold_lines_of_like_length(translator, tokenizer, batches):
    lines = TEXT * 3
    lengths = [len(tokenizer(line.strip())["input_ids"]) for line in lines]
    list(
        translate(translator, tokenizer, lines, GREEDY, max_batch_tokens=100, max_source_tokens=80)
    )
    assert sum(n for n, _ in batches) == len(lines)
    assert all(n * longest <= 100 for n, longest in batches)
    # The longest go first, so that running out of memory happens at once.
    assert [longest for _, longest in batches] == sorted((s for _, s in batches), reverse=True)
    assert sum(n * longest for n, longest in batches) < 1.3 * sum(lengths)
    # One more line in any but the last would have broken the budget.
    ordered = sorted(lengths, reverse=True)
    start = 0
    for n, longest in batches[:-1]:
        assert ordered[start] == longest
        assert (n + 1) * longest > 100
        start += n


def test_lines_are_read_no_further_than_the_window(translator, tokenizer):
    read: list[int] = []

    def endless_lines() -> Iterator[str]:
        for i in itertools.count():
            read.append(i)
            yield f"{i} x"

    results = translate(translator, tokenizer, endless_lines(), GREEDY, window=3)
    assert read == []
    for n, wanted in enumerate((3, 3, 3, 6, 6, 6, 9), start=1):
        next(results)
        assert len(read) == wanted, f"after {n} results"
    # A window of one answers each line before it reads the next.
    read.clear()
    results = translate(translator, tokenizer, endless_lines(), GREEDY, window=1)
    for n in (1, 2, 3):
        next(results)
        assert len(read) == n


@pytest.mark.parametrize("num_hypotheses", [1, 2])
def test_empty_and_overlong_lines_keep_their_place(translator, tokenizer, num_hypotheses, caplog):
    decoding = DecodingSettings(
        num_beams=2, num_hypotheses=num_hypotheses, max_tokens_over_source=4
    )
    lines = ["a", "", "x y z\n", " \t ", "no", "Yes!", "\n", "a b " * 50_000, "Ein Haus."]
    assert len(tokenizer(lines[7].strip())["input_ids"]) >= 100_000
    report = TranslationReport()
    with caplog.at_level(logging.WARNING, logger="vanilla_transformer.generation"):
        found = list(translate(translator, tokenizer, lines, decoding, window=3, report=report))
    nothing = [Hypothesis("", None)] * num_hypotheses
    for i, line in enumerate(lines):
        if i in (1, 3, 6, 7):
            assert found[i] == nothing
        else:
            wanted = alone(translator, tokenizer, line, decoding)
            assert [hypothesis.text for hypothesis in found[i]] == [text for text, _ in wanted]
    assert len(found) == report.lines == len(lines)
    assert report.empty == 3
    # Lines count from 1, as in an editor.
    assert list(report.skipped) == [8]
    assert "exceed max_source_tokens (1024)" in report.skipped[8]
    assert "line 8 is left untranslated" in caplog.text


def test_nothing_gives_nothing(translator, tokenizer, batches):
    report = TranslationReport()
    assert list(translate(translator, tokenizer, [], report=report)) == []
    assert (
        list(translate(translator, tokenizer, ["", " "], report=report))
        == [[Hypothesis("", None)]] * 2
    )
    assert (report.lines, report.empty, report.skipped) == (2, 2, {})
    assert batches == []


def test_sampled_translations(translator, tokenizer):
    decoding = DecodingSettings(num_beams=1, do_sample=True, num_hypotheses=6, top_k=0)

    def sample(seed: int) -> list[list[Hypothesis]]:
        torch.manual_seed(seed)
        return list(translate(translator, tokenizer, TEXT[:3], decoding))

    found = sample(0)
    assert [len(hypotheses) for hypotheses in found] == [6, 6, 6]
    assert len({hypothesis.text for hypothesis in found[0]}) > 1
    assert all(hypothesis.score is None for hypothesis in found[0])
    assert sample(0) == found
    assert sample(1) != found
    beams = DecodingSettings(do_sample=True, num_hypotheses=2, max_tokens_over_source=5)
    torch.manual_seed(0)
    for hypotheses in translate(translator, tokenizer, TEXT[:3], beams):
        assert [hypothesis.score is not None for hypothesis in hypotheses] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"window \(0\)"),
        ({"max_batch_tokens": 100}, r"max_source_tokens \(1024\) must lie between 1 and"),
        ({"max_source_tokens": 0}, r"max_source_tokens \(0\)"),
    ],
)
def test_budgets_that_cannot_work_are_refused(translator, tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        next(translate(translator, tokenizer, ["a"], **arguments))


# ----------------------------------------------------------------------------- ten sentence pairs

# Small differences decide: who acts, how many, what is denied.
PAIRS = [
    ("The dog sees the cat.", "Der Hund sieht die Katze."),
    ("The cat sees the dog.", "Die Katze sieht den Hund."),
    ("The dog does not see the cat.", "Der Hund sieht die Katze nicht."),
    ("The dogs see the cats.", "Die Hunde sehen die Katzen."),
    ("I know that the dog sees the cat.", "Ich weiß, dass der Hund die Katze sieht."),
    ("Yes.", "Ja."),
    (
        "The old woman gives the child a red apple.",
        "Die alte Frau gibt dem Kind einen roten Apfel.",
    ),
    (
        "The child gives the old woman a red apple.",
        "Das Kind gibt der alten Frau einen roten Apfel.",
    ),
    ("Why are you laughing?", "Warum lachst du?"),
    ("It has been raining since yesterday.", "Es regnet seit gestern."),
]


def test_ten_sentences_are_learned_by_heart():
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair], 400)
    model = train_on(tokenizer, PAIRS, updates=300)
    sources = [source for source, _ in PAIRS]
    for decoding in (GREEDY, DecodingSettings()):
        found = translate(model, tokenizer, sources, decoding)
        assert [hypotheses[0].text for hypotheses in found] == [target for _, target in PAIRS]
