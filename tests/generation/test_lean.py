"""The lean loop gives what the plain path gives, or leaves the work to it.

Shapes: B batch, S source length.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    MaxTimeCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer, LogitsProcessor

from tests.generation.cases import (
    EOS,
    MASK,
    PAD,
    SOURCES,
    START,
    Case,
    plain,
    random_case,
    small_model,
)
from tests.test_generation import make_model
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.corpora import load_parallel
from vanilla_transformer.generation import (
    DecodingSettings,
    lean,
    lean_generate,
    preparation,
    search,
    translate,
    translation,
    weights,
)
from vanilla_transformer.tokenization import train_tokenizer

BEAM = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.6}


@pytest.fixture(scope="module")
def model() -> VanillaTransformerForConditionalGeneration:
    return make_model(updates=150)


@pytest.fixture
def searches(monkeypatch) -> list[Any]:
    """Settings of the searches that the lean loop runs."""
    found: list[Any] = []
    run = lean.search

    def recording(network: Any, ids: Any, is_real: Any, settings: Any) -> Any:
        found.append(settings)
        return run(network, ids, is_real, settings)

    monkeypatch.setattr(lean, "search", recording)
    return found


# ------------------------------------------------------------------------------------ same tokens


def assert_same(case: Case) -> None:
    """The lean loop's tokens, and the scores that it found them by, are the plain path's."""
    found = lean_generate(case.model, case.ids, None, case.options)
    assert found is not None, "the lean loop left this case to the plain path"
    wanted = plain(
        case.model,
        case.ids,
        **case.options,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert found.tolist() == wanted.sequences.tolist(), case.options
    if case.options["num_beams"] > 1:
        is_real = case.ids != PAD
        settings = lean.plan(case.model, None, case.options, is_real.sum(dim=1), case.ids.shape[1])
        assert settings is not None
        network = preparation.network_of(case.model)
        scores = search.search(network, case.ids, is_real, settings).scores
        assert scores is not None
        torch.testing.assert_close(scores.flatten(), wanted.sequences_scores, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("block", range(8))
def test_any_model_and_any_search_give_the_plain_paths_tokens(block):
    for seed in range(10 * block, 10 * block + 10):
        assert_same(random_case(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_more_give_the_plain_paths_tokens():
    unequal = 0
    for seed in range(1000, 2000):
        try:
            assert_same(random_case(seed))
        except AssertionError:
            unequal += 1
    # A random model may find two outputs equally good to the last digit.
    assert unequal <= 5


@pytest.mark.parametrize("options", [{}, BEAM], ids=["greedy", "beam"])
@pytest.mark.parametrize(
    "operators", ["oneDNN", "none"], ids=["prepacked", "without private operators"]
)
def test_generate_takes_the_lean_loop(model, searches, monkeypatch, options, operators):
    if operators == "none":

        def missing(*args: Any) -> None:
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")

        monkeypatch.setattr(weights.PackedProduct, "__init__", missing)
        weights._works.cache_clear()
        monkeypatch.setattr(preparation, "_networks", type(preparation._networks)())
    try:
        found = model.generate(SOURCES, attention_mask=MASK, **options)
        product = preparation.network_of(model).output
    finally:
        weights._works.cache_clear()
    assert len(searches) == 1
    is_packed = operators == "oneDNN" and weights._works(weights.PackedProduct)
    assert type(product) is (weights.PackedProduct if is_packed else weights.PlainProduct)
    assert found.tolist() == plain(model, SOURCES, attention_mask=MASK, **options).tolist()
    # What comes out is an ordinary tensor.
    assert not found.is_inference()


def test_many_rows_are_split_and_many_columns_folded():
    # 40 sentences of 4 hypotheses are more than 64 rows; 2,500 columns more than 32 folds of 8.
    model = small_model(vocab_size=2500)
    ids = torch.randint(3, 2500, (40, 6))
    assert_same(Case(model, ids, {"num_beams": 4, "max_new_tokens": 8}))


@pytest.mark.parametrize("shape", [(3, 7), (1, 512), (5, 517), (2, 4099)])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_the_largest_numbers_are_found(seeded, shape, count):
    numbers = torch.randn(shape)
    numbers[:, 2] = -math.inf
    values, places = search.largest(numbers, count)
    assert values.tolist() == numbers.topk(count).values.tolist()
    assert numbers.gather(1, places).tolist() == values.tolist()


def test_configurations_rule_as_on_the_plain_path(model, searches):
    chosen = copy.deepcopy(model)
    chosen.generation_config.num_beams = 3
    chosen.generation_config.length_penalty = 1.4
    chosen.generation_config.max_tokens_over_source = 4
    cases: list[dict[str, Any]] = [
        {},
        {"num_beams": 2},
        {"generation_config": GenerationConfig(num_beams=2, length_penalty_formula="power")},
        {"generation_config": GenerationConfig(max_length=7)},
        {"max_length": 6, "input_ids": SOURCES},
        {"labels": SOURCES},
        {"use_cache": False, "synced_gpus": False, "top_k": 3},
        {"token_type_ids": torch.zeros_like(SOURCES)},
    ]
    for number, case in enumerate(cases, start=1):
        arguments = {"attention_mask": MASK} | case
        if "input_ids" not in case:
            arguments["inputs"] = SOURCES
        found = chosen.generate(**arguments)
        assert len(searches) == number, case
        assert found.tolist() == plain(chosen, **arguments).tolist()


def test_beams_stop_when_those_of_the_plain_path_do():
    outputs: dict[Any, list[Any]] = {False: [], True: [], "never": []}
    for early_stopping, found in outputs.items():
        for seed in range(3):
            toy = make_model(seed, updates=30, vocab_size=12)
            for alpha in (0.6, 4.0):
                arguments: dict[str, Any] = {
                    "attention_mask": MASK,
                    "num_beams": 3,
                    "num_return_sequences": 3,
                    "length_penalty": alpha,
                    "early_stopping": early_stopping,
                    "max_new_tokens": 12,
                }
                sources = SOURCES.clamp_max(11)
                found.append(toy.generate(sources, **arguments).tolist())
                assert found[-1] == plain(toy, sources, **arguments).tolist()
    # Else one of them would do for all.
    assert outputs[False] != outputs[True]
    assert outputs[False] != outputs["never"]


@pytest.mark.parametrize("options", [{}, BEAM], ids=["greedy", "beam"])
def test_a_model_without_an_end_writes_to_its_limit(model, searches, options):
    endless = copy.deepcopy(model)
    endless.generation_config.eos_token_id = None
    for limit in ({"max_new_tokens": 6}, {"max_tokens_over_source": 2}):
        found = endless.generate(SOURCES, attention_mask=MASK, **limit, **options)
        wanted = plain(endless, SOURCES, attention_mask=MASK, **limit, **options)
        assert found.tolist() == wanted.tolist()
    assert len(searches) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("decoding", [DecodingSettings(num_beams=1), DecodingSettings()])
def test_real_sentences_are_translated_as_on_the_plain_path(shared_data, monkeypatch, decoding):
    pairs, _ = load_parallel(shared_data / "multi30k", "en", "de", "validation", limit=300)
    lines = list(pairs["source"])
    tokenizer = train_tokenizer(lines, 2000)
    model = small_model(
        spread=1.5,
        vocab_size=len(tokenizer),
        d_model=128,
        d_ff=512,
        num_heads=8,
        num_encoder_layers=6,
        num_decoder_layers=6,
    )
    found = [x[0] for x in translate(model, tokenizer, lines, decoding)]
    monkeypatch.setattr(translation, "obstacle", lambda model: "a comparison")
    monkeypatch.setattr(type(model), "_lean_generate", None)
    wanted = [x[0] for x in translate(model, tokenizer, lines, decoding)]
    assert len({hypothesis.text for hypothesis in wanted}) > 20
    assert [x.text for x in found] == [x.text for x in wanted]
    if decoding.num_beams > 1:
        assert [x.score for x in found] == pytest.approx([x.score for x in wanted], rel=1e-5)


# ------------------------------------------------------------------------- left to the plain path


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        pass


class Identity(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


def caches(model: Any) -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))


REQUESTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "a dictionary": lambda model: {"return_dict_in_generate": True, "output_scores": True},
    "a processor": lambda model: {"logits_processor": [Identity()]},
    "a criterion": lambda model: {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(60)])},
    "time": lambda model: {"max_time": 60.0},
    "a prefix": lambda model: {"prefix_allowed_tokens_fn": lambda i, ids: [4, 7, EOS]},
    "no repetitions": lambda model: {"no_repeat_ngram_size": 2},
    "few repetitions": lambda model: {"repetition_penalty": 1.5},
    "a first token": lambda model: {"forced_bos_token_id": 9},
    "words that are not said": lambda model: {"bad_words_ids": [[5, 6]]},
    "other starts": lambda model: {"decoder_input_ids": torch.tensor([[START, 8], [START, 9]])},
    "a cache": lambda model: {"past_key_values": caches(model)},
    "a static cache": lambda model: {"cache_implementation": "static"},
    "a streamer": lambda model: {"streamer": Collector(), "num_beams": 1},
    "samples": lambda model: {"do_sample": True, "top_k": 1, "num_return_sequences": 1},
    "one token": lambda model: {"max_new_tokens": 1},
    "decay": lambda model: {"exponential_decay_length_penalty": (2, 1.5)},
    "positions": lambda model: {"position_ids": torch.arange(5).expand(2, -1)},
    "a soft mask": lambda model: {"attention_mask": MASK.float() * 0.5},
}


@pytest.mark.parametrize("options", [{}, BEAM], ids=["greedy", "beam"])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_requests_for_more_take_the_plain_path(model, searches, request_, options):
    def generate(call: Callable[..., Any]) -> Any:
        options_ = {"inputs": SOURCES, "attention_mask": MASK} | options | request_(model)
        if isinstance(options_.get("streamer"), Collector):
            options_["inputs"], options_["attention_mask"] = SOURCES[:1], MASK[:1]
            options_.pop("num_return_sequences", None)
        torch.manual_seed(0)
        output = call(**options_)
        return getattr(output, "sequences", output).tolist()

    found = generate(model.generate)
    assert searches == []
    assert found == generate(lambda **kwargs: plain(model, **kwargs))


def test_sources_that_are_no_plain_ids_take_the_plain_path(model, searches):
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(SOURCES)
        encoded = model.get_encoder()(input_ids=SOURCES, attention_mask=MASK)
    wanted = model.generate(SOURCES, attention_mask=MASK).tolist()
    searches.clear()
    assert model.generate(inputs_embeds=embeddings, attention_mask=MASK).tolist() == wanted
    assert model.generate(encoder_outputs=encoded, attention_mask=MASK).tolist() == wanted
    # A row of padding alone has no token to start from.
    empty = torch.cat([SOURCES, torch.full_like(SOURCES[:1], PAD)])
    assert model.generate(empty).tolist() == plain(model, empty).tolist()
    assert searches == []


class Subclass(VanillaTransformerForConditionalGeneration):
    """Could compute anything."""


def with_own_linear(model: Any) -> Any:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -2 * super().forward(x)

    doubled = Doubled(16, 16, bias=False)
    doubled.load_state_dict(model.model.decoder.layers[1].cross_attn.o_proj.state_dict())
    model.model.decoder.layers[1].cross_attn.o_proj = doubled
    return model.eval()


def with_parametrization(model: Any) -> Any:
    class Negated(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    nn.utils.parametrize.register_parametrization(
        model.model.decoder.layers[0].fc1, "weight", Negated()
    )
    return model.eval()


def with_hook(model: Any) -> Any:
    model.model.decoder.layers[0].register_forward_hook(lambda module, args, output: -output)
    return model


def with_forward(model: Any) -> Any:
    layer = model.model.encoder.layers[1]
    layer.forward = lambda hidden_states, *args, **kwargs: -hidden_states
    return model


def as_subclass(model: Any) -> Any:
    changed = Subclass(model.config).eval()
    changed.load_state_dict(model.state_dict())
    return changed


def with_attention(name: str) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        model.set_attn_implementation(name)
        return model

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "training": lambda model: model.train(),
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "a subclass": as_subclass,
    "another layer": with_own_linear,
    "a parametrization": with_parametrization,
    "a hook": with_hook,
    "a forward": with_forward,
    "other attention": with_attention("flex_attention"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_models_that_compute_otherwise_take_the_plain_path(model, change):
    changed = change(copy.deepcopy(model))
    assert preparation.obstacle(changed) is not None
    assert lean_generate(changed, SOURCES, None, {"attention_mask": MASK}) is None


def test_autocast_takes_the_plain_path(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lean_generate(model, SOURCES, None, {"attention_mask": MASK}) is None


@pytest.mark.parametrize("change", [with_own_linear, with_hook, with_forward])
def test_changed_models_generate_what_they_compute(model, change):
    changed = change(copy.deepcopy(model))
    found = changed.generate(SOURCES, attention_mask=MASK)
    assert found.tolist() == plain(changed, SOURCES, attention_mask=MASK).tolist()
    assert found.tolist() != model.generate(SOURCES, attention_mask=MASK).tolist()


def test_what_was_recorded_before_is_no_obstacle(model, searches):
    recorded = copy.deepcopy(model)
    recorded.generate(
        SOURCES, attention_mask=MASK, return_dict_in_generate=True, output_hidden_states=True
    )
    assert searches == []
    recorded.generate(SOURCES, attention_mask=MASK)
    assert len(searches) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"length_penalty_formula": "log", "num_beams": 2},
        {"num_beam": 4},
        {"num_beams": 2, "num_return_sequences": 3},
        {"num_beams": 0},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_errors_are_those_of_the_plain_path(model, arguments):
    arguments = {"attention_mask": MASK} | arguments
    with pytest.raises(Exception) as wanted:  # noqa: PT011
        plain(model, SOURCES, **arguments)
    with pytest.raises(wanted.type) as found:
        model.generate(SOURCES, **arguments)
    assert str(found.value) == str(wanted.value)


def test_a_learned_table_that_is_too_short_is_reported(searches):
    model = small_model(position_encoding="learned", max_position_embeddings=8)
    with pytest.raises(ValueError, match=r"exceed max_position_embeddings \(8\)"):
        model.generate(SOURCES, attention_mask=MASK, min_new_tokens=12, max_new_tokens=20)
    assert searches == []
    model.generate(SOURCES, attention_mask=MASK, max_new_tokens=7)
    assert len(searches) == 1
