"""Translations scored from files and models scored by a suite, as typed on a command line."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch

from tests.recipes.conftest import PAIRS, QUESTIONS, TRANSLATION, config_of
from vanilla_transformer import cli
from vanilla_transformer.evaluation.domains import (
    Domain,
    domain_report,
    format_domains,
    split_domains,
)
from vanilla_transformer.evaluation.scoring import format_scores, score_systems
from vanilla_transformer.recipes import write_recipe
from vanilla_transformer.recipes.prediction import Task, read_data
from vanilla_transformer.recipes.suite import evaluate_suite, format_suite, parse_test_sets
from vanilla_transformer.tokenization import train_tokenizer

TEXTS = {
    "references": ["Der Hund schläft heute.", "Die Rote-Kreuz-Station ist zu.", "Ja.", "Es regnet"],
    "one": ["Der Hund schlief heute.", "Die Rote-Kreuz-Station ist auf.", "ja.", "Es regnet nie"],
    "two": ["Der Hund schläft heute.", "Das Rote Kreuz ist zu.", "", "Es regnet"],
    "source": [
        "The dog sleeps today.",
        "The Red Cross station is closed.",
        "Yes.",
        "It is raining",
    ],
    "domains": ["pets", "news", "pets", "news"],
    "training": ["the dog sleeps", "is it raining the dog"],
}


class Outcome(NamedTuple):
    status: Any
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["vanilla-transformer", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Outcome(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    # `main` asks for it by an environment variable, which is read when `datasets` is imported.
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, lines in TEXTS.items():
        found[name] = tmp_path / name
        # The last line may end without a line break, the others in any of them.
        ending = "\r\n" if name == "two" else "\n"
        found[name].write_text(ending.join(lines), encoding="utf-8", newline="")
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    """Untrained runs of each task."""
    tokenizer = train_tokenizer(["The dog sees the cat.", "Der Hund sieht die Katze."] * 20, 280)
    found: dict[Task, Path] = {}
    recipes: dict[Task, Any] = {
        "translation": TRANSLATION,
        "question_answering": QUESTIONS,
        "inference": PAIRS,
    }
    for task, recipe in recipes.items():
        found[task] = tmp_path_factory.mktemp(task)
        torch.manual_seed(2)
        recipe.model_class(config_of(recipe)).save_pretrained(found[task] / "model")
        tokenizer.save_pretrained(found[task] / "model")
        write_recipe(recipe, found[task] / "recipe.json")
    return found


# score


def test_systems_are_scored_and_compared(
    command: Command, files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "scores.json"
    done = command(
        "score", files["references"], files["one"], files["two"], "--samples", 20, "--json", file
    )
    systems = {name: TEXTS[name] for name in ("one", "two")}
    expected = score_systems(systems, TEXTS["references"], num_samples=20)
    assert done == (0, format_scores(expected), "")
    assert json.loads(file.read_text()) == expected
    # Each convention with its signature, and a p-value by each test.
    for tokenizer in ("13a|", "intl", "13a+hyphens"):
        assert f"|tok:{tokenizer}" in done.out
    assert re.search(
        r"^two +\d+\.\d\d +\[.*\] +[+-]\d+\.\d\d +[01]\.\d{4} +[01]\.\d{4}$", done.out, re.M
    )


def test_metrics_and_a_language_are_chosen(command: Command, files: dict[str, Path]) -> None:
    pytest.importorskip("sacremoses", reason="sacremoses is not installed (extra conversion)")
    options = ("--metric", "bleu", "--metric", "chrf++", "--lang", "de", "--samples", 5)
    done = command("score", files["references"], files["one"], *options)
    expected = score_systems(
        {"one": TEXTS["one"]},
        TEXTS["references"],
        metrics=("bleu", "chrf++"),
        language="de",
        num_samples=5,
    )
    assert done == (0, format_scores(expected), "")
    assert "tok:moses.de+hyphens" in done.out
    assert "TER" not in done.out


def test_domains_are_reported_for_every_system(
    command: Command, files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "scores.json"
    arguments = ["score", files["references"], files["one"], files["two"], "--metric", "chrf"]
    arguments += ["--source", files["source"], "--samples", 5, "--json", file]
    chosen = ["--domains", files["domains"], "--training-text", files["training"], "--worst", 1]
    done = command(*arguments, *chosen)
    assert (done.status, done.err) == (0, "")
    found = json.loads(file.read_text())["domains"]
    for system in ("one", "two"):
        texts = Domain(TEXTS["source"], TEXTS[system], TEXTS["references"])
        report = domain_report(
            split_domains(TEXTS["domains"], texts),
            training_text=TEXTS["training"],
            num_worst=1,
            num_resamples=5,
        )
        assert found[system] == report
        assert f"# {system}\n\n{format_domains(report)}" in done.out
    # Without labels all of it is one domain.
    assert command(*arguments).status == 0
    (everything,) = json.loads(file.read_text())["domains"]["one"].values()
    assert (everything["segments"], everything["by_rarest_word"]) == (4, None)


def test_systems_of_one_name_are_told_apart(
    command: Command, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "one"
    other.write_text("\n".join(TEXTS["two"]), encoding="utf-8")
    options = ("--metric", "chrf", "--samples", 5)
    done = command("score", files["references"], files["one"], other, *options)
    assert done.status == 0
    assert f"\n{files['one']}" in done.out
    assert f"\n{other}" in done.out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["references", "short"], 1, "short has 2 lines and references has 4"),
        (["references", "one", "one"], 1, "each system must be another file"),
        (["references", "absent"], 1, "absent"),
        (["references", "binary"], 1, "binary, line 1: byte 1 (0xff) is not UTF-8"),
        (["references", "one", "--metric", "bleurt"], 1, "'bleurt') must be one of bleu, chrf"),
        (["references", "one", "--metric", "comet"], 1, "COMET reads the source too"),
        (
            ["references", "one", "--domains", "domains"],
            2,
            "--domains is of no use with no --source",
        ),
        (["references", "one", "--comet-model", "m"], 2, "no use with no --metric comet"),
        (["references", "one", "--source", "short"], 1, "short has 2 lines"),
        (["references", "one", "--json", "absent/file"], 1, "there is no directory"),
        (["references", "one", "--lang", "ja"], 1, "apanese"),
    ],
)
def test_what_cannot_be_scored_is_named_in_one_line(
    command: Command,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    pytest.importorskip("sacremoses", reason="sacremoses is not installed (extra conversion)")
    monkeypatch.chdir(tmp_path)
    # As where the tokenizer of Japanese is not installed.
    monkeypatch.setitem(sys.modules, "MeCab", None)
    Path("short").write_text("a\nb\n")
    Path("binary").write_bytes(b"\xff\n")
    done = command("score", *arguments)
    assert (done.status, done.out) == (status, "")
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1
    assert message in done.err


# suite


def test_all_models_on_their_sets_in_one_table(
    command: Command, runs: dict[Task, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "suite.json"
    sets = ("translation=tiny_world:test", "inference=tiny_world:test")
    sets += ("question-answering=tiny_world:validation", "translation=tiny_world:validation")
    options: list[Any] = [one for text in sets for one in ("--data", text)]
    options += ["--limit", 6, "--samples", 10, "--device", "cpu", "--json", file]
    done = command("suite", *runs.values(), *options)
    assert (done.status, done.err) == (0, "")
    parsed = parse_test_sets(sets)
    expected = evaluate_suite(
        {task: str(path) for task, path in runs.items()},
        parsed,
        limit=6,
        device="cpu",
        num_resamples=10,
    )
    assert done.out == format_suite(expected)
    found = json.loads(file.read_text())
    assert [one["task"] for one in found.values()] == [one.task for one in parsed]
    for name, one in found.items():
        assert one["figures"] == expected[name]["figures"]


def test_a_suite_reports_translations_by_domain(
    command: Command, runs: dict[Task, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "suite.json"
    arguments = ["suite", runs["translation"], "--limit", 4, "--samples", 5, "--json", file]
    for split in ("test", "validation"):
        arguments += ["--data", f"translation=tiny_world:{split}"]
    done = command(*arguments, "--by-domain", "--training-text", files["training"], "--worst", 2)
    assert (done.status, done.err) == (0, "")
    found = {name: one["domain"] for name, one in json.loads(file.read_text()).items()}
    assert list(found) == ["tiny_world test", "tiny_world validation"]
    assert done.out.endswith("\n" + format_domains(found))
    assert [len(one["worst"]) for one in found.values()] == [2, 2]
    assert found["tiny_world test"]["by_rarest_word"]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--data", "tiny_world"], 1, "must be TASK=CORPUS"),
        (["--data", "inference=tiny_world"], 1, "one or more test sets for the models' tasks"),
        (["--worst", "3"], 2, "--worst is of no use with no --by-domain"),
        (["--data", "translation=tiny_world"] * 2, 1, "each of another name"),
    ],
)
def test_a_suite_that_cannot_be_is_named_in_one_line(
    command: Command, runs: dict[Task, Path], options: list[str], status: int, message: str
) -> None:
    done = command("suite", runs["translation"], *options)
    assert (done.status, done.out) == (status, "")
    assert len(done.err.splitlines()) == 1
    assert message in done.err


# evaluate


def test_evaluate_reports_on_domains(
    command: Command, runs: dict[Task, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    texts, file = tmp_path / "translations", tmp_path / "scores.json"
    arguments = ["evaluate", runs["translation"], "tiny_world", "--limit", 4, "--device", "cpu"]
    arguments += ["--domains", files["domains"], "--training-text", files["training"]]
    done = command(*arguments, "--worst", 1, "--predictions", texts, "--json", file)
    assert done.status == 0
    pairs, _ = read_data("translation", "tiny_world", "test", limit=4)
    domain = Domain(list(pairs["source"]), texts.read_text().splitlines(), list(pairs["target"]))
    expected = domain_report(
        split_domains(TEXTS["domains"], domain), training_text=TEXTS["training"], num_worst=1
    )
    scores = json.loads(file.read_text())
    for name, report in expected.items():
        found = scores["domains"][name]
        assert found["by_rarest_word"] == report["by_rarest_word"]
        assert found["bleu"] == report["bleu"]
        assert found["worst"] == report["worst"]
    assert done.out.endswith("\n\n" + format_domains(scores["domains"]))
    assert "domains" not in done.out.split("\n| domain")[0]


def test_domains_that_evaluate_cannot_use_are_refused(
    command: Command, runs: dict[Task, Path], files: dict[str, Path]
) -> None:
    done = command(
        "evaluate", runs["translation"], "tiny_world", "--limit", 5, "--domains", files["domains"]
    )
    assert (done.status, done.out) == (1, "")
    assert f"{files['domains']} has 4 lines and there are 5 pairs" in done.err
    done = command("evaluate", runs["translation"], "tiny_world", "--worst", 2)
    assert (done.status, done.out) == (2, "")
    assert "--worst is of no use with no --domains" in done.err
    done = command("evaluate", runs["inference"], "tiny_world", "--domains", files["domains"])
    assert (done.status, done.out) == (2, "")
    assert "--domains is of no use with inference" in done.err
