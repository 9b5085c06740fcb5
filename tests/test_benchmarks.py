"""The benchmarks: measured in turns, on alike models, with figures that the README repeats."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
# Models of our architecture.
ALIKE = ("MarianMT", "torch.nn.Transformer", "JoeyNMT")
CHOSEN = (
    "vanilla_transformer",
    "vanilla_transformer under Trainer",
    "MarianMT under Trainer",
    "torch.nn.Transformer",
    "JoeyNMT",
)


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Iterator[None]:
    """The scripts import each other by bare names, as when they are run."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def benchmarking() -> ModuleType:
    return importlib.import_module("benchmarking")


@pytest.fixture
def peers() -> ModuleType:
    return importlib.import_module("benchmark_peers")


@pytest.fixture
def training() -> ModuleType:
    return importlib.import_module("benchmark_training")


@pytest.fixture
def rendering() -> ModuleType:
    return importlib.import_module("render_benchmarks")


# ------------------------------------------------------------------------------------------- turns


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
def test_contenders_take_turns_in_changing_order(
    benchmarking: ModuleType, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    calls: list[str] = []
    collections: list[int] = []
    monkeypatch.setattr(
        benchmarking, "gc", SimpleNamespace(collect=lambda: collections.append(len(calls)))
    )
    contenders = {name: functools.partial(calls.append, name) for name in names}
    count = 2 * len(names)
    timings = benchmarking.measure(contenders, warmup=1, rounds=count)
    assert {name: len(timing.seconds) for name, timing in timings.items()} == dict.fromkeys(
        names, count
    )
    # Before each call.
    assert collections == list(range(len(calls)))
    rounds = [calls[i : i + len(names)] for i in range(0, len(calls), len(names))]
    assert len(rounds) == count + 1
    assert all(sorted(one) == list(names) for one in rounds)
    cycle = rounds[:count]
    for place in (0, -1):
        assert sorted(one[place] for one in cycle) == sorted(2 * names)
    followed = Counter(pair for one in cycle for pair in itertools.pairwise(one))
    assert all(followed[x, y] == followed[y, x] for x, y in followed)


def test_timing_is_of_the_rounds_that_count(
    benchmarking: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A round to warm up, ab, and three that count: ba, ba, ab. The clock is read twice a call.
    durations = [90.0, 80.0, 10.0, 1.0, 30.0, 3.0, 2.0, 20.0]
    readings = iter([moment for seconds in durations for moment in (100.0, 100.0 + seconds)])
    clock = SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr(benchmarking, "time", clock)
    monkeypatch.setattr(benchmarking, "gc", SimpleNamespace(collect=int))
    nothing: dict[str, Any] = {"a": int, "b": int}
    timings = benchmarking.measure(nothing, warmup=1, rounds=3)
    assert timings["a"].seconds == [1.0, 3.0, 2.0]
    assert (timings["a"].median, timings["a"].best) == (2.0, 1.0)
    assert (timings["b"].median, timings["b"].best) == (20.0, 10.0)
    ticks = itertools.count(0, 5)
    ticked = benchmarking.measure(nothing, warmup=0, rounds=1, clock=lambda: float(next(ticks)))
    assert ticked["a"].seconds == ticked["b"].seconds == [5.0]


def test_nothing_to_measure_is_refused(benchmarking: ModuleType) -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        benchmarking.measure({}, warmup=0, rounds=1)
    with pytest.raises(ValueError, match=r"rounds \(0\)"):
        benchmarking.measure({"a": int}, warmup=0, rounds=0)
    with pytest.raises(ValueError, match=r"allocator \(fast\) must be one of default, tuned"):
        benchmarking.set_allocator("fast")


def test_load_tells_own_work_from_that_of_others(
    benchmarking: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Busy, busy with this process, all: of 20 core seconds 7 were busy, 5 of them ours.
    readings = iter([(100.0, 50.0, 300.0), (107.0, 55.0, 320.0)])
    monkeypatch.setattr(benchmarking, "_cpu_seconds", lambda: next(readings))
    with benchmarking.Load() as load:
        pass
    assert load.others == pytest.approx(2 / 20)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks can be reset on Linux only")
def test_memory_that_is_held_and_that_a_call_adds(
    benchmarking: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import torch
def build(held):
    weights = torch.ones(held * 2**18)
    def call():
        # 48 MiB at once, and then 32 MiB.
        torch.ones(48 * 2**18)
        return float(torch.ones(32 * 2**18).sum() + weights[0])
    return call
"""
    (tmp_path / "holding.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    holding = importlib.import_module("holding")
    memory = benchmarking.peak_memory(
        # Such big blocks go back to the system at once, which makes the figures exact.
        functools.partial(holding.build, 24),
        allocator="default",
        imports=["holding"],
    )
    mib = 2**20
    assert memory.held == pytest.approx(24 * mib, abs=8 * mib)
    assert memory.added == pytest.approx(48 * mib, abs=8 * mib)
    assert memory.total == memory.held + memory.added


# ----------------------------------------------------------------------------------------- results


def test_a_run_replaces_the_one_of_its_setting(benchmarking: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"

    def write(size: str, speed: float, name: str = "training") -> None:
        rows = [{"contender": "a", "setting": {}, "tokens_per_second": speed, "ratio": 1.0}]
        benchmarking.write_results(
            path, name, rows, setting={"size": size}, machine={"cores": 2}, load=0.0
        )

    write("small", 1.0)
    write("base", 2.0)
    write("small", 3.0)
    content = json.loads(path.read_text())
    assert content["name"] == "training"
    assert [run["setting"]["size"] for run in content["runs"]] == ["base", "small"]
    assert content["runs"][1]["rows"][0]["tokens_per_second"] == 3.0
    assert {"date", "command", "machine", "load"} <= set(content["runs"][0])
    with pytest.raises(ValueError, match="results of training, not of generation"):
        write("small", 1.0, "generation")


def test_the_command_shows_no_path(
    benchmarking: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["/a/b/script.py", "--size", "tiny", "--output", "/x/y.json", "--data", "/d/e.parquet"]
    monkeypatch.setattr(sys, "argv", given)
    assert benchmarking.command_line() == "python scripts/script.py --size tiny --data e.parquet"


# ----------------------------------------------------------------------------------------- batches


def test_bucketed_and_random_batches(training: ModuleType, peers: ModuleType) -> None:
    setup = peers.Setup(peers.SIZES["tiny"])
    padding = {}
    for mode in training.MODES:
        workload = training.Workload(mode, tokens=512, count=4)
        batches = workload.batches(setup)
        again = workload.batches(setup)
        assert all(
            torch.equal(one[name], other[name])
            for one, other in zip(batches, again, strict=True)
            for name in one
        )
        padding[mode] = training.share_of_padding(batches)
        sentences = {len(batch["labels"]) for batch in batches}
        if mode == "bucketed":
            assert all(batch["labels"].numel() <= 512 for batch in batches)
            # Short sentences in the first batch, long ones in the last.
            widths = [batch["labels"].shape[1] for batch in batches]
            assert widths == sorted(widths)
            assert widths[-1] > 2 * widths[0]
        else:
            assert len(sentences) == 1
        tokens = sum(map(peers.target_tokens, batches)) / 4
        assert 512 * 0.6 < tokens < 512 * 1.6
    assert padding["bucketed"] < 0.12
    assert padding["random"] > 0.3


def test_a_batch_is_what_trainers_collator_makes(training: ModuleType) -> None:
    lengths = np.array([3, 5]), np.array([4, 2])
    batch = training.make_batch(*lengths, 50, np.random.default_rng(0))
    assert training.batch_lengths(batch) == ([3, 5], [4, 2])
    assert batch["input_ids"][0, 2:].tolist() == [2, 0, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    labels, started = batch["labels"], batch["decoder_input_ids"]
    assert labels[1].tolist()[1:] == [2, -100, -100]
    assert started[:, 0].tolist() == [1, 1]
    assert started[0, 1:].tolist() == labels[0, :3].tolist()
    assert started[1].tolist() == [1, labels[1, 0].item(), 0, 0]
    assert (labels[labels != -100] < 50).all()


def test_lengths_are_those_of_newstest(training: ModuleType, shared_data: Path) -> None:
    corpus = shared_data / "wmt_newstest" / "newstest2013_en-de.parquet"
    if not corpus.exists():
        pytest.skip(f"no {corpus.name}")
    source, target = training.read_lengths(str(corpus), None)
    drawn_source, drawn_target = training.draw_lengths(20_000, 1)
    for real, drawn in ((source, drawn_source), (target, drawn_target)):
        assert np.median(drawn) == pytest.approx(np.median(real), rel=0.1)
        assert drawn.mean() == pytest.approx(real.mean(), rel=0.1)
        assert np.percentile(drawn, 95) == pytest.approx(np.percentile(real, 95), rel=0.2)


def test_operations_are_those_that_torch_counts(training: ModuleType, peers: ModuleType) -> None:
    size = peers.Size(d_model=12, d_ff=20, num_heads=3, num_layers=2, vocab_size=29)
    setup = peers.Setup(size, dropout=0.0)
    model = peers.build_marian(setup)
    model.set_attn_implementation("eager")
    # Equal lengths: a model that pads computes nothing more.
    lengths = np.full(4, 7), np.full(4, 5)
    batch = training.make_batch(*lengths, size.vocab_size, np.random.default_rng(0))
    expected = training.forward_flops(size, *training.batch_lengths(batch))
    with FlopCounterMode(display=False) as forward:
        loss = peers.trainer_loss(model.train(), batch, setup)
    assert forward.get_total_flops() == expected
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == 2 * expected


def test_operations_of_the_base_model(training: ModuleType, peers: ModuleType) -> None:
    # Counted by hand for one token a side, without its attention: 6 layers each.
    d, ff, vocab = 512, 2048, 37_000
    encoder = 6 * 2 * (4 * d * d + 2 * d * ff)
    decoder = 6 * 2 * (8 * d * d + 2 * d * ff)
    attention = 3 * 6 * 4 * d
    found = training.forward_flops(peers.SIZES["base"], [1], [1])
    assert found == encoder + decoder + 2 * d * vocab + attention


# ------------------------------------------------------------------------------------------ models


def test_models_with_our_weights_are_our_model(training: ModuleType, peers: ModuleType) -> None:
    names = [name for name in peers.MODELS if name not in peers.find_missing(list(peers.MODELS))]
    setup = peers.Setup(peers.SIZES["tiny"])
    batch = training.Workload("random", tokens=128).batches(setup)[0]
    differences = peers.compare(names, setup, batch)
    assert set(differences) == {name for name in ALIKE if name in names}
    assert {"MarianMT", "torch.nn.Transformer"} <= set(differences)


@pytest.mark.parametrize(
    "part", ["decoder.layers.1.cross_attn.v_proj.bias", "encoder.layers.0.fc1.weight"]
)
def test_another_model_is_found_out(
    training: ModuleType, peers: ModuleType, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    entry = peers.MODELS["MarianMT"]

    def spoiled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return entry.weights(
            {name: t * (1.2 if name.endswith(part) else 1.0) for name, t in weights.items()}
        )

    monkeypatch.setitem(peers.MODELS, "MarianMT", dataclasses.replace(entry, weights=spoiled))
    setup = peers.Setup(peers.SIZES["tiny"])
    batch = training.Workload("random", tokens=128).batches(setup)[0]
    with pytest.raises(AssertionError, match="MarianMT, our weights"):
        peers.compare(["MarianMT"], setup, batch)


def test_a_weight_without_a_place_is_found_out(peers: ModuleType) -> None:
    setup = peers.Setup(peers.SIZES["tiny"])
    ours = peers.build_ours(setup)
    deeper = dataclasses.replace(setup, size=dataclasses.replace(setup.size, num_layers=3))
    with pytest.raises(AssertionError, match="got no weights for"):
        peers.copy_weights("MarianMT", peers.build_marian(deeper), ours)
    shallower = dataclasses.replace(setup, size=dataclasses.replace(setup.size, num_layers=1))
    with pytest.raises(AssertionError, match="MarianMT has no"):
        peers.copy_weights("MarianMT", peers.build_marian(shallower), ours)
    with pytest.raises(AssertionError, match="BART is another architecture"):
        peers.copy_weights("BART", peers.build_bart(setup), ours)


def test_peers_tie_their_embeddings_and_have_equal_sizes(peers: ModuleType) -> None:
    setup = peers.Setup(peers.SIZES["small"])
    missing = peers.find_missing(list(peers.MODELS))
    counts = {}
    for name, entry in peers.MODELS.items():
        if name not in missing:
            with torch.device("meta"):
                model = entry.build(setup)
            counts[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for name, count in counts.items():
        # Positions, biases and norms differ; a second embedding matrix would add more than half.
        assert count == pytest.approx(counts[peers.OURS], rel=0.02), name


class DropCounter(TorchDispatchMode):
    """Counts the elements for which somebody decides whether to drop them."""

    drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.bernoulli_.float, torch.ops.aten.bernoulli.p):
            self.drawn += result.numel()
        elif func is torch.ops.aten.native_dropout.default:
            self.drawn += result[0].numel()
        return result


def test_peers_drop_out_where_the_paper_does(training: ModuleType, peers: ModuleType) -> None:
    setup = peers.Setup(peers.SIZES["tiny"])
    batch = training.Workload("random", tokens=128).batches(setup)[0]
    layers, d = setup.size.num_layers, setup.size.d_model
    source, target = (batch[name].numel() * d for name in ("input_ids", "labels"))
    # The sum of embeddings and each sub-layer's output.
    expected = source * (1 + 2 * layers) + target * (1 + 3 * layers)
    missing = peers.find_missing(list(peers.MODELS))
    for name, entry in peers.MODELS.items():
        # Ours draws in a way of its own.
        if name in missing or name == peers.OURS:
            continue
        with DropCounter() as counter:
            entry.loss(entry.build(setup).train(), batch, setup)
        # T5 drops out behind its last norms, too.
        extra = source + target if name == "T5" else 0
        assert counter.drawn == expected + extra, name


# ------------------------------------------------------------------------------------- the script


def run_script(
    arguments: list[str], path: list[Path], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "benchmark_training.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        cwd=folder,
        timeout=800,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_run(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The script with a peer that is installed but does not fit."""
    folder = tmp_path_factory.mktemp("benchmark")
    broken = folder / "modules" / "joeynmt"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('it wants another protobuf')\n")
    output = folder / "results" / "benchmark_training.json"
    options = "--size tiny --no-memory --tokens 64 --count 2 --rounds 2 --threads 1 --device cpu"
    done = run_script(
        [*options.split(), "--output", str(output), "--contenders", *CHOSEN],
        [broken.parent, repository],
        folder,
    )
    return done, output


def test_the_script_measures_all_contenders(
    tiny_run: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, output = tiny_run
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text(encoding="utf-8"))
    assert str(output.parent) not in json.dumps(content)
    runs = content["runs"]
    assert [run["setting"] for run in runs] == [
        {"size": "tiny", "malloc": "default", "device": "cpu", "batches": mode}
        for mode in ("bucketed", "random")
    ]
    for run in runs:
        assert run["machine"]["threads"] == 1
        assert run["product_peak"] > 0
        assert run["command"].startswith("python scripts/benchmark_training.py --size tiny")
        assert set(run["differences"]) == {"MarianMT", "torch.nn.Transformer"}
        rows = {row["contender"]: row for row in run["rows"]}
        assert len(rows) == len(run["rows"]) == 4
        reference = rows["MarianMT under Trainer"]
        ours = rows["vanilla_transformer"]
        assert reference["ratio"] == 1.0
        assert ours["ours_over_it"] == 1.0
        for name, row in rows.items():
            assert name in done.stdout
            assert row["best_seconds"] <= row["median_seconds"]
            speed = row["target_tokens"] / row["median_seconds"]
            assert row["tokens_per_second"] == pytest.approx(speed)
            assert row["ratio"] == pytest.approx(
                reference["median_seconds"] / row["median_seconds"]
            )
            assert row["ours_over_it"] == pytest.approx(
                row["median_seconds"] / ours["median_seconds"]
            )
            assert row["share_of_peak"] == pytest.approx(
                row["flops_per_target_token"] * speed / run["product_peak"]
            )
    assert runs[1]["padding_share"] > runs[0]["padding_share"]


def test_a_peer_that_cannot_be_imported_is_named(
    tiny_run: tuple[subprocess.CompletedProcess[str], Path], peers: ModuleType
) -> None:
    done, output = tiny_run
    assert "JoeyNMT is left out (ImportError: it wants another protobuf)" in done.stderr
    assert peers.INSTALL in done.stderr
    for run in json.loads(output.read_text(encoding="utf-8"))["runs"]:
        assert run["missing"] == {"JoeyNMT": "ImportError: it wants another protobuf"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="peaks can be reset on Linux only")
def test_the_script_measures_memory_and_every_installed_peer(
    repository: Path, tmp_path: Path, peers: ModuleType
) -> None:
    output = tmp_path / "benchmark_training.json"
    options = "--size tiny --tokens 512 --count 1 --rounds 1 --batches random --malloc tuned"
    done = run_script(
        [*options.split(), "--device", "cpu", "--output", str(output)], [repository], tmp_path
    )
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(output.read_text(encoding="utf-8"))["runs"]
    missing = peers.find_missing(list(peers.MODELS))
    assert set(run["missing"]) == set(missing)
    assert len(run["rows"]) == 9 - len(missing)
    for row in run["rows"]:
        assert 0 < row["memory_added"] < row["memory_total"] < 2**30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "0 must be a whole number, 1 or more"),
        (["--warmup", "-1"], "-1 must be a whole number, 0 or more"),
        (["--growth", "many"], "many must be a whole number, 1 or more"),
        (["--device", "abacus"], "abacus cannot be used here"),
        (["--tokenizer", "x"], "--tokenizer needs --data"),
        (["--contenders", "Abacus"], "invalid choice: 'Abacus'"),
    ],
)
def test_what_cannot_be_is_refused(
    training: ModuleType,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        training.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_growth_compares_a_corpus_with_ten_times_as_many_pairs(training: ModuleType) -> None:
    rows = training.measure_growth(40, tokens=512, rounds=2, updates=3, vocab_size=101, seed=1)
    assert [row["setting"]["corpus"] for row in rows] == ["40 pairs", "400 pairs"]
    assert rows[0]["ratio"] == 1.0
    speeds = [row["tokens_per_second"] for row in rows]
    assert rows[1]["ratio"] == pytest.approx(speeds[1] / speeds[0])
    assert all(row["seconds_to_first_update"] > 0 for row in rows)


# --------------------------------------------------------------------------------------- the table


def make_run(size: str, **more: Any) -> dict[str, Any]:
    rows = [
        {
            "contender": contender,
            "setting": {"batches": mode},
            "tokens_per_second": speed,
            "ratio": speed / 1000,
            "ours_over_it": 1600 / speed,
            "flops_per_target_token": 365e6,
            "share_of_peak": 0.5,
            "memory_added": memory * 2**20,
            "memory_total": 2 * memory * 2**20,
        }
        for mode in ("bucketed", "random")
        for contender, speed, memory in (
            ("vanilla_transformer", 1600.0, 60),
            ("MarianMT", 1000.0, 100),
            ("eole", 1250.0, 120),
        )
    ]
    return {
        "date": "2026-11-23 04:00 UTC",
        "command": f"python scripts/benchmark_training.py --size {size}",
        "setting": {"size": size, "malloc": "tuned"},
        "machine": {"processor": "EPYC", "threads": 2, "torch": "2.13.0", "transformers": "5.23.0"},
        "reference": "MarianMT",
        "rows": rows,
        **more,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    runs = [make_run("small"), make_run("base", product_peak=215e9, load=0.02)]
    runs[1]["peers"] = {"x-transformers": "2.31.10"}
    runs[1]["missing"] = {"eole": "ModuleNotFoundError"}
    content = {"name": "training", "runs": runs}
    (folder / "benchmark_training.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_tables_have_contenders_down_and_settings_across(
    rendering: ModuleType, results: Path
) -> None:
    lines = rendering.render(results).splitlines()
    header = "|  | small, bucketed | small, random | base, bucketed | base, random |"
    place = lines.index(header)
    assert lines[place + 1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[place + 2] == "| vanilla_transformer" + 4 * " | **1,600 (1.60×, 50%)**" + " |"
    assert lines[place + 3] == "| MarianMT" + 4 * " | 1,000 (1.00×, 50%)" + " |"
    assert lines[place + 5] == (
        "| *vanilla_transformer against the fastest peer*" + 4 * " | *1.28× (eole)*" + " |"
    )
    caption = lines[place - 2]
    assert "malloc tuned; columns: size, batches" in caption
    assert "ratio to MarianMT, share of the machine's measured matrix-product peak" in caption
    memory = lines.index(header, place + 1)
    assert (
        lines[memory + 2] == "| vanilla_transformer" + 4 * " | **60 (0.60×) / 120 (0.60×)**" + " |"
    )
    assert lines[-1] == (
        "- `python scripts/benchmark_training.py --size base`: 2026-11-23; EPYC, 2 threads; "
        "torch 2.13.0, transformers 5.23.0, x-transformers 2.31.10; matrix products at "
        "215 GFLOP/s; 365 MFLOP a target token; other processes took 2% of the machine; "
        "not installed: eole"
    )


def test_one_item_for_the_runs_of_a_command(rendering: ModuleType) -> None:
    runs = [make_run("base", load=share) for share in (0.01, 0.03)]
    text = rendering.describe_runs([*runs, make_run("small")])
    first, second = text.splitlines()
    assert "--size base`" in first
    assert "took 3% of" in first
    assert "--size small`" in second


def test_weights_of_8_bits_are_compared_with_their_like(rendering: ModuleType) -> None:
    setting = (("batch", "16"),)
    rows = {
        (name, setting): {"ours_over_it": value}
        for name, value in (
            ("vanilla_transformer", 1.0),
            ("vanilla_transformer int8", 0.5),
            ("MarianMT", 2.0),
            ("CTranslate2", 1.25),
            ("CTranslate2 int8", 0.4),
        )
    }
    other = (("batch", "64"),)
    assert rendering.compare_with_peers(rows, [setting, other]) == [
        ["*vanilla_transformer against the fastest peer*", "*1.25× (CTranslate2)*", "–"],
        ["*vanilla_transformer int8 against the fastest peer*", "*0.80× (CTranslate2 int8)*", "–"],
    ]


def test_many_settings_make_several_tables(rendering: ModuleType, results: Path) -> None:
    path = results / "benchmark_training.json"
    content = json.loads(path.read_text())
    content["runs"].append(make_run("big"))
    del content["runs"][2]["rows"][1]  # MarianMT, bucketed.
    path.write_text(json.dumps(content))
    lines = rendering.render(results).splitlines()
    places = [i for i, line in enumerate(lines) if line == "|  | bucketed | random |"]
    # Three sizes, each with a table of speeds and one of memory.
    assert len(places) == 6
    assert "size big, malloc tuned; columns: batches" in lines[places[2] - 2]
    assert lines[places[2] + 4] == "| MarianMT | – | 1,000 (1.00×, 50%) |"


def test_what_takes_seconds_is_best_when_short(rendering: ModuleType, tmp_path: Path) -> None:
    run = make_run("base")
    run["rows"] = [
        {"contender": name, "setting": {"measured": "loading"}, "seconds": seconds, "ratio": ratio}
        for name, seconds, ratio in (("ours", 1.234, 0.62), ("MarianMT", 2.0, 1.0))
    ]
    content = {"name": "generation", "runs": [run]}
    (tmp_path / "benchmark_generation.json").write_text(json.dumps(content))
    text = rendering.render(tmp_path)
    assert "| ours | **1.23 (0.62×)** |" in text
    assert "| MarianMT | 2.00 (1.00×) |" in text


def render(arguments: list[str], rendering: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["render_benchmarks.py", *arguments])
    rendering.main()


def test_the_readme_is_written_and_checked(
    rendering: ModuleType,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{rendering.BEGIN}\nold\n{rendering.END}\n\nThe end.\n")
    arguments = ["--results", str(results), "--readme", str(readme)]
    with pytest.raises(SystemExit) as stopped:
        render([*arguments, "--check"], rendering, monkeypatch)
    assert stopped.value.code == 1
    assert "-old" in capsys.readouterr().out
    assert "old" in readme.read_text()

    render(arguments, rendering, monkeypatch)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# Title\n\n{rendering.BEGIN}\n**Training**")
    assert text.endswith(f"\n{rendering.END}\n\nThe end.\n")
    assert "old" not in text
    render([*arguments, "--check"], rendering, monkeypatch)
    assert capsys.readouterr().out == ""
    # A figure that somebody typed.
    readme.write_text(text.replace("1,600", "9,600"), encoding="utf-8")
    with pytest.raises(SystemExit):
        render([*arguments, "--check"], rendering, monkeypatch)


def test_a_readme_without_markers_is_refused(
    rendering: ModuleType, results: Path, tmp_path: Path
) -> None:
    for text in ("", rendering.BEGIN, f"{rendering.END}{rendering.BEGIN}", rendering.BEGIN * 2):
        with pytest.raises(ValueError, match="the README must have one"):
            rendering.insert(text, "tables")
    with pytest.raises(ValueError, match="run the benchmarks with --output first"):
        rendering.render(tmp_path)


def test_the_readme_says_what_the_results_say(
    rendering: ModuleType, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    if rendering.BEGIN not in readme or not any(rendering.RESULTS.glob("*.json")):
        pytest.skip("there are no results yet")
    render(["--check"], rendering, monkeypatch)


def test_shares_are_shares(training: ModuleType) -> None:
    batch = training.make_batch(np.array([2, 4]), np.array([3, 3]), 50, np.random.default_rng(0))
    # 6 of 8 source and 6 of 6 target tokens are real.
    assert math.isclose(training.share_of_padding([batch]), 2 / 14)
