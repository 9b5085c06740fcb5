"""The benchmark of decoding: peers have the same weights, and what it writes is whole."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging as transformers_logging

from tests.conftest import build, randomise
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.tokenization import train_tokenizer

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
QUICK = [
    *("--size", "tiny", "--limit", "3", "--batches", "1", "3", "--beams", "1", "2"),
    *("--length", "4", "--max-batch-tokens", "128", "--rounds", "1", "--warmup", "0"),
    "--no-memory",
]
ROW = {
    "contender",
    "setting",
    "tokens_per_second",
    "ratio",
    "ours_over_it",
    "median_seconds",
    "best_seconds",
    "rounds",
    "output_tokens",
    "flops_per_second",
    "share_of_peak",
}
# What published checkpoints differ in, as far as the peers can hold it. d_k = d_model / num_heads.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fairseq": {
        "position_encoding": "concatenated_inclusive",
        "position_offset": 2,
        "attention_bias": True,
        "layer_norm_eps": 1e-5,
    },
    "opus": {"activation": "swish", "output_bias": True, "decoder_start_token_id": 0},
    "two vocabularies": {"vocab_size": 31, "decoder_vocab_size": 29},
    "untied": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The scripts import each other by bare names, as when they are run."""
    sys.path.insert(0, str(SCRIPTS))
    module = importlib.import_module("benchmark_generation")
    product_peak = module.product_peak
    # One second is much here.
    module.product_peak = partial(product_peak, seconds=0.1)
    yield module
    module.product_peak = product_peak
    sys.path.remove(str(SCRIPTS))
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def decoders(benchmark: ModuleType) -> ModuleType:
    return importlib.import_module("benchmark_decoders")


@pytest.fixture
def ctranslate2(decoders: ModuleType) -> ModuleType:
    return pytest.importorskip("ctranslate2", reason=f"a peer that is optional: {decoders.INSTALL}")


def variant(name: str) -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(0)
    model = build(VanillaTransformerForConditionalGeneration, d_k=8, d_v=8, **VARIANTS[name])
    randomise(model, 0.3)
    return model


SOURCES = [[5, 6, 7, 2], [9, 2], [11, 12, 13, 14, 15, 2], [28, 27, 2]]


def runs(path: Path) -> dict[str, dict[str, Any]]:
    """Of a results file, by what was measured."""
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["name"] == "generation"
    return {run["setting"]["measured"]: run for run in written["runs"]}


# --------------------------------------------------------------------------------- equal weights


@pytest.mark.parametrize("name", VARIANTS)
def test_marian_has_the_same_logits(decoders: ModuleType, name: str) -> None:
    model = variant(name)
    marian = decoders.marian_copy(model)
    assert decoders.largest_logit_difference(model, marian, SOURCES) < 1e-5


def test_any_other_weight_shows_in_the_logits(decoders: ModuleType) -> None:
    model, _ = decoders.random_model("tiny", 1)
    marian = decoders.marian_copy(model)
    for name, parameter in marian.named_parameters():
        # A bias of keys moves all scores of a query alike.
        if not parameter.requires_grad or name.endswith("k_proj.bias"):
            continue
        held = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
            apart = decoders.largest_logit_difference(model, marian, SOURCES)
            parameter.copy_(held)
        assert apart > decoders.SAME_LOGITS, name


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_of_marian_loads_as_the_same_model(
    decoders: ModuleType, name: str, tmp_path: Path
) -> None:
    model = variant(name)
    _, tokenizer = decoders.random_model("tiny", 1)
    checkpoints = decoders.Checkpoints.write(model, tokenizer, tmp_path)
    marian = checkpoints.load(decoders.MARIAN, tokenizer).model
    assert decoders.largest_logit_difference(model, marian, SOURCES) < 1e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layer_norm_position": "pre"}, "layer_norm_position"),
        ({"d_k": 16}, "d_k"),
        ({"d_v": 16}, "d_v"),
        ({"num_segments": 2}, "num_segments"),
        ({"position_encoding": "learned", "max_position_embeddings": 9}, "learned"),
        ({"eos_token_id": [2, 3]}, "eos_token_id"),
    ],
)
def test_what_peers_cannot_hold_is_refused(
    decoders: ModuleType, overrides: dict[str, Any], message: str
) -> None:
    model = build(VanillaTransformerForConditionalGeneration, **{"d_k": 8, "d_v": 8, **overrides})
    with pytest.raises(ValueError, match=message):
        decoders.marian_copy(model)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_ctranslate2_finds_the_same_ids(
    decoders: ModuleType, ctranslate2: ModuleType, name: str, num_beams: int, tmp_path: Path
) -> None:
    model = variant(name)
    _, tokenizer = decoders.random_model("tiny", 1)
    checkpoints = decoders.Checkpoints.write(model, tokenizer, tmp_path)
    contenders = {
        each: checkpoints.load(each, tokenizer)
        for each in (decoders.OURS, decoders.MARIAN, *decoders.CTRANSLATE2)
    }
    search = decoders.Search(num_beams, 7, is_forced=True)
    least = {decoders.MARIAN: 1.0, "CTranslate2": 1.0}
    shares = decoders.check_outputs(contenders, SOURCES, search, least)
    assert shares["CTranslate2"] == 1
    assert set(shares) == set(contenders)


def test_other_outputs_stop_the_run(decoders: ModuleType) -> None:
    model, tokenizer = decoders.random_model("tiny", 1)
    marian = decoders.marian_copy(model)
    contenders = {
        decoders.OURS: decoders.OurContender(model, tokenizer),
        decoders.MARIAN: decoders.TransformersContender(marian, tokenizer),
    }
    check = partial(decoders.check_outputs, contenders, SOURCES)
    for num_beams in (1, 4):
        search = decoders.Search(num_beams, 6, is_forced=True)
        assert check(search, {decoders.MARIAN: 1.0}) == {decoders.OURS: 1, decoders.MARIAN: 1}
    with torch.no_grad():
        weight = marian.model.decoder.layers[1].fc2.weight
        weight.add_(torch.randn_like(weight))
    with pytest.raises(decoders.UnequalError, match=r"MarianMT finds other outputs .* of 4"):
        check(search, {decoders.MARIAN: 1.0})
    # One that is not exact, with weights of 8 bits, is judged.
    assert check(search, {})[decoders.MARIAN] < 1


def test_random_sentences_depend_on_their_source(decoders: ModuleType) -> None:
    model, tokenizer = decoders.random_model("tiny", 1)
    lengths = decoders.news_lengths(8, 1)
    lines = decoders.random_lines(lengths, model.config.vocab_size, 1)
    assert lines == decoders.random_lines(lengths, model.config.vocab_size, 1)
    assert [len(line.split()) for line in lines] == lengths
    sources = tokenizer(lines)["input_ids"]
    assert all(source[-1] == model.config.eos_token_id for source in sources)
    assert [len(source) - 1 for source in sources] == [len(line.split()) for line in lines]
    found = decoders.OurContender(model, tokenizer).generate(
        sources, decoders.Search(1, 8, is_forced=True)
    )
    assert all(len(ids) == 8 for ids in found)
    assert len(set(map(tuple, found))) >= 6
    assert sum(len(set(ids)) for ids in found) >= 16


# ------------------------------------------------------------------------------------- in batches


def test_batches_are_sorted_and_within_the_budget(decoders: ModuleType) -> None:
    lengths = [3, 9, 1, 9, 4, 30, 2, 8]
    batches = decoders.sorted_batches(lengths, 20)
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)
    # The longest exceeds the budget alone.
    assert [len(batch) for batch in batches] == [1, 2, 2, 3]
    assert decoders.sorted_batches([], 20) == []


def test_the_sorted_loop_keeps_the_order(decoders: ModuleType) -> None:
    model, tokenizer = decoders.random_model("tiny", 1)
    batches = []

    class Echo(decoders.TransformersContender):  # type: ignore[name-defined, misc]
        def generate(self, sources: list[list[int]], search: Any) -> list[list[int]]:
            batches.append((len(sources), search.max_new_tokens))
            return sources

    lines = decoders.random_lines(decoders.news_lengths(20, 2), model.config.vocab_size, 2)
    bulk = decoders.Bulk(4, 100, is_trained=True)
    assert Echo(model, tokenizer).translate(lines, bulk) == lines
    assert len(batches) > 3
    longest = max(len(line.split()) for line in lines) + 1
    assert batches[0][1] == longest + 50


def test_all_translate_a_file_alike(decoders: ModuleType, tmp_path: Path) -> None:
    model, tokenizer = decoders.random_model("tiny", 1)
    checkpoints = decoders.Checkpoints.write(model, tokenizer, tmp_path)
    names = [decoders.OURS, decoders.MARIAN]
    names += ["CTranslate2"] if decoders.find_ctranslate2() else []
    lines = decoders.random_lines(decoders.news_lengths(7, 2), model.config.vocab_size, 2)
    bulk = decoders.Bulk(2, 128, is_trained=False)
    found = {name: checkpoints.load(name, tokenizer).translate(lines, bulk) for name in names}
    for texts in found.values():
        assert len(texts) == len(lines)
        # Each has its source's length and, by its neighbours' limit, perhaps some more.
        for text, line in zip(texts, lines, strict=True):
            assert len(text.split()) >= len(line.split())
    sizes = [len(text.split()) for text in found[decoders.OURS]]
    assert sizes == [len(line.split()) + 1 for line in lines]
    # Where ours must end, the others go on, so only the beginnings are alike.
    for texts in found.values():
        first = [text.split()[0] for text in texts]
        assert first == [text.split()[0] for text in found[decoders.OURS]]


def test_counted_operations_are_those_of_the_products(benchmark: ModuleType) -> None:
    model = variant("paper")
    model.set_attn_implementation("eager")
    config = model.config
    source, target = torch.tensor([[5, 6, 7, 8, 2]]), torch.tensor([[1, 9, 10]])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=source, decoder_input_ids=target)
    counts = counter.get_flop_counts()["Global"]
    # Attention, which is left out, is products of batches.
    expected = sum(n for operation, n in counts.items() if "bmm" not in str(operation))
    assert benchmark.product_flops(config, [5], [3], 1) == expected
    encoded = benchmark.product_flops(config, [5], [], 1)
    assert benchmark.product_flops(config, [2, 3], [1, 2], 4) == encoded + 4 * (expected - encoded)


# --------------------------------------------------------------------------------- the whole run


def test_a_run_writes_what_it_measured(
    benchmark: ModuleType, decoders: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    measures = ["--measure", "generate", "bulk", "growth"]
    benchmark.main([*QUICK, *measures, "--output", str(output)])
    written = runs(output)
    assert set(written) == {"generate", "bulk", "growth"}
    names = set(decoders.CONTENDERS)
    if not decoders.find_ctranslate2():
        names -= set(decoders.CTRANSLATE2)
    generators = names - {decoders.OURS_INT8}
    generate = written["generate"]
    assert generate["setting"] == {
        "measured": "generate",
        "weights": "random (tiny)",
        "malloc": "default",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "dtype": "float32",
    }
    settings = [(row["setting"]["search"], row["setting"]["batch"]) for row in generate["rows"]]
    assert set(settings) == {(s, b) for s in ("greedy", "beam 2") for b in ("1", "3")}
    assert len(generate["rows"]) == 4 * len(generators)
    for row in generate["rows"]:
        assert set(row) >= ROW | {"identical"}
        assert row["contender"] in generators
        assert row["setting"]["length"] == "4 tokens"
        assert row["output_tokens"] == 4 * int(row["setting"]["batch"])
        assert row["rounds"] == 1
        assert row["best_seconds"] <= row["median_seconds"]
        if "int8" not in row["contender"]:
            assert row["identical"] == 1
        if row["contender"] == decoders.MARIAN:
            assert row["ratio"] == 1
    assert {row["contender"] for row in written["bulk"]["rows"]} == names
    tokens = {row["output_tokens"] for row in written["bulk"]["rows"]}
    for row in written["bulk"]["rows"]:
        assert set(row) >= ROW
        assert row["lines"] == 3
        # What goes beyond a line's limit does not count.
        assert tokens == {row["output_tokens"]}
    small, large = written["growth"]["rows"]
    assert small["setting"] == {"file": "3 lines"}
    assert large["setting"] == {"file": "30 lines"}
    assert large["output_tokens"] == 10 * small["output_tokens"]
    assert small["ratio"] == 1
    for run in written.values():
        assert run["machine"]["threads"] == torch.get_num_threads()
        assert run["product_peak"] > 0
        assert run["missing"] == sorted(set(decoders.CTRANSLATE2) - names)
        assert run["reference"] == (
            "the smaller file" if run is written["growth"] else decoders.MARIAN
        )
    printed = capsys.readouterr().out
    assert "generate, search beam 2, batch 3, length 4 tokens" in printed
    assert "of peak" in printed


def test_a_trained_model_ends_its_sentences_and_is_scored(
    benchmark: ModuleType, decoders: ModuleType, tmp_path: Path
) -> None:
    pairs = list(generate_translation("test", 3))
    # Without merges: 5 special tokens and 256 bytes.
    tokenizer = train_tokenizer((side for pair in pairs for side in pair.values()), 261)
    torch.manual_seed(0)
    model = build(
        VanillaTransformerForConditionalGeneration, vocab_size=261, d_k=8, d_v=8, output_bias=True
    )
    randomise(model, 0.3)
    with torch.no_grad():
        # One sentence ends at once, the others are cut.
        model.lm_head.bias[model.config.eos_token_id] = 3.0
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name in ("source", "target"):
        text = "\n".join(pair[name] for pair in pairs)
        (tmp_path / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    output = tmp_path / "results.json"
    data = [str(tmp_path / "source.txt"), str(tmp_path / "target.txt")]
    benchmark.main(
        [
            *(*QUICK, "--measure", "generate", "bulk", "--contenders", "vanilla_transformer"),
            *("MarianMT", "--model", str(tmp_path / "model"), "--data", *data),
            *("--max-batch-tokens", "1024", "--beams", "2", "--batches", "3"),
            *("--output", str(output)),
        ]
    )
    written = runs(output)
    assert written["bulk"]["setting"]["weights"] == "model"
    for row in written["bulk"]["rows"]:
        assert row["lines"] == 3
        # The same limit for all of a batch lets MarianMT go on.
        assert row["identical"] == (
            1 if row["contender"] == decoders.OURS else pytest.approx(1 / 3)
        )
        assert 0 <= row["bleu"] <= 100
    lengths = {row["setting"]["length"] for row in written["generate"]["rows"]}
    assert lengths == {"4 tokens", "own"}
    own = [row for row in written["generate"]["rows"] if row["setting"]["length"] == "own"]
    assert all(row["identical"] == 1 for row in own)
    longest = max(len(tokenizer(pair["source"])["input_ids"]) for pair in pairs[:3])
    # The end of each is counted.
    assert [row["output_tokens"] for row in own] == [2 * (longest + 51) + 1] * 2


def test_loading_is_timed_from_the_checkpoint(
    benchmark: ModuleType, decoders: ModuleType, tmp_path: Path
) -> None:
    model, tokenizer = decoders.random_model("tiny", 1)
    checkpoints = decoders.Checkpoints.write(
        model, tokenizer, tmp_path, threads=torch.get_num_threads()
    )
    bulk = decoders.Bulk(2, 64, is_trained=False)
    for name in (decoders.OURS, decoders.MARIAN):
        parts = benchmark.load_and_translate(checkpoints, name, "w7 w8 w9", bulk, "default")
        assert len(parts) == 2
        assert all(seconds > 0 for seconds in parts)


def test_loading_is_compared_by_its_time(
    benchmark: ModuleType, decoders: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Executor:
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Executor:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def submit(self, _: Any, __: Any, name: str, *___: Any) -> SimpleNamespace:
            parts = (1.0, 0.5) if name == decoders.OURS else (1.5, 0.5)
            return SimpleNamespace(result=lambda: parts)

    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", Executor)
    options = [*QUICK, "--contenders", decoders.OURS, decoders.MARIAN]
    prepared = benchmark.prepare(benchmark.parse_arguments(options), tmp_path)
    (rows,) = prepared.measure_loading()
    ours, marian = rows
    assert (ours["seconds"], ours["loading_seconds"], ours["translating_seconds"]) == (1.5, 1, 0.5)
    assert ours["ratio"] == 0.75
    assert marian["ratio"] == 1


@pytest.mark.slow
def test_loading_and_memory_in_processes_of_their_own(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    output = tmp_path / "results.json"
    arguments = [argument for argument in QUICK if argument != "--no-memory"]
    benchmark.main([*arguments, "--measure", "loading", "bulk", "--output", str(output)])
    written = runs(output)
    for row in written["loading"]["rows"]:
        assert row["seconds"] == row["median_seconds"] > 0
        assert row["loading_seconds"] > 0
        assert row["translating_seconds"] > 0
        assert row["rounds"] == 1
    marian = next(row for row in written["loading"]["rows"] if row["contender"] == "MarianMT")
    assert marian["ratio"] == 1
    assert all(row["memory_total"] >= row["memory_added"] for row in written["bulk"]["rows"])


def test_a_missing_peer_is_named(
    benchmark: ModuleType,
    decoders: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (benchmark, decoders):
        monkeypatch.setattr(module, "find_ctranslate2", lambda: None)
    prepared = benchmark.prepare(benchmark.parse_arguments(QUICK), tmp_path)
    assert set(prepared.contenders) == {decoders.OURS, decoders.OURS_INT8, decoders.MARIAN}
    assert prepared.missing == list(decoders.CTRANSLATE2)
    said = capsys.readouterr().err
    assert "CTranslate2, CTranslate2 int8 left out" in said
    assert decoders.INSTALL in said
    assert not (tmp_path / "ctranslate2").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "1", "0"], "0 must be a whole number, 1 or more"),
        (["--limit", "some"], "some must be a whole number, 1 or more"),
        (["--model", "x"], "--model needs --data"),
        (["--contenders", "MarianMT"], "--contenders must have vanilla_transformer"),
    ],
)
def test_contradictions_are_refused(
    benchmark: ModuleType,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_a_line_that_fits_no_batch_is_refused(benchmark: ModuleType, tmp_path: Path) -> None:
    """`translate` would pass it over, and so be faster than the others."""
    options = benchmark.parse_arguments([*QUICK, "--max-batch-tokens", "4096", "2"])
    with pytest.raises(ValueError, match=r"--max-batch-tokens \(2\)"):
        benchmark.prepare(options, tmp_path)


def test_lines_come_with_translations_or_without(benchmark: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\nThree.\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("Eins.\n\nZwei.\nDrei.\n", encoding="utf-8")
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")

    def read(*files: str) -> tuple[list[str], list[str] | None]:
        options = benchmark.parse_arguments(["--limit", "2", "--data", *files])
        found: tuple[list[str], list[str] | None] = benchmark.read_data(options, tmp_path)
        return found

    assert read(a) == (["One.", "Two."], None)
    assert read(a, b) == (["One.", "Two."], ["Eins.", "Zwei."])
    with pytest.raises(ValueError, match="one file or two"):
        read(a, b, a)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read(str(tmp_path / "c.txt"))


def test_a_batch_that_the_lines_do_not_fill_is_refused(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    options = benchmark.parse_arguments([*QUICK, "--batches", "1", "4"])
    with pytest.raises(ValueError, match="there are 3 lines, too few for a batch of 4"):
        benchmark.prepare(options, tmp_path)


def test_random_weights_translate_lines_as_long_as_the_data(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(f"One two three.\n{'Word ' * 24}\n")
    options = benchmark.parse_arguments(
        [*QUICK, "--batches", "2", "--data", str(tmp_path / "a.txt")]
    )
    prepared = benchmark.prepare(options, tmp_path)
    # 3 × 1.3 and 24 × 1.3, to the next multiple of 16.
    assert [len(line.split()) for line in prepared.lines] == [16, 32]
    assert prepared.references is None
    assert not prepared.is_trained
