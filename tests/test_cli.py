"""The command line from end to end on the embedded corpus, and one line for everything wrong."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import sacrebleu
import torch
import typer
from accelerate import Accelerator
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
    cli,
    recipes,
)
from vanilla_transformer.data.corpora import load_parallel
from vanilla_transformer.data.inference_corpora import LABELS, TWO_WAY_LABELS, load_inference
from vanilla_transformer.data.question_answering_corpora import load_question_answering
from vanilla_transformer.data.tiny_world import (
    Split,
    generate_inference,
    generate_question_answering,
    generate_translation,
)
from vanilla_transformer.evaluation.natural_language_inference import (
    HypothesisOnly,
    evaluate_inference,
)
from vanilla_transformer.evaluation.question_answering import (
    evaluate_question_answering,
    fit_no_answer_threshold,
)
from vanilla_transformer.generation import preparation
from vanilla_transformer.recipes import execution, prediction
from vanilla_transformer.recipes.question_answering import Answers
from vanilla_transformer.tasks.natural_language_inference import (
    encode_inference,
    label_probabilities,
    predict_logits,
)
from vanilla_transformer.tasks.question_answering import (
    SpanCandidate,
    SpanPrediction,
    encode_questions,
    predict_spans,
    question_answering_collator,
)
from vanilla_transformer.training import trainer
from vanilla_transformer.training.checkpointing import find_checkpoints
from vanilla_transformer.training.trainer import train_with_trainer

TINY_ARCHITECTURE = {
    "d_model": 16,
    "d_ff": 32,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
TINY = [
    "train",
    "tiny-world",
    "--set",
    "train_limit=100",
    "--set",
    "vocab_size=300",
    "--set",
    f"architecture={json.dumps(TINY_ARCHITECTURE)}",
    "--set",
    "training.max_source_tokens=256",
    "--set",
    "training.validation_examples=2",
    "--set",
    "training.checkpoint_every=5",
    "--set",
    "training.log_every=5",
    # The whole test split would be translated at the end.
    "--set",
    "test_splits=[]",
    "--set",
    "decoding.max_tokens_over_source=3",
]
SENTENCES = [pair["source"] for pair in generate_translation("test", 6)]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["vanilla-transformer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err)

    return run


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    # `main` asks for it by an environment variable, which is read when `datasets` is imported.
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10 updates, which tests must not change."""
    output = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["vanilla-transformer", *TINY, "--updates", "10", "--output", str(output)]
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    return output


def one_line(outcome: Outcome, status: int = 1) -> str:
    """The one line of an error."""
    assert "Traceback" not in outcome.err
    assert outcome.status == status, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("vanilla-transformer: ")
    return lines[0]


def entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# From end to end


def test_tokenizer(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "tokenizer"
    done = command("tokenizer", "tiny_world", "-o", output, "--limit", 100, "--vocab-size", 300)
    assert done == (0, f"{output}: 300 tokens, learned from 100 pairs of tiny_world train\n", "")
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert len(tokenizer) == 300
    assert (
        tokenizer.decode(tokenizer(SENTENCES[0])["input_ids"], skip_special_tokens=True)
        == (SENTENCES[0])
    )


def test_run(run_dir: Path) -> None:
    assert entries(run_dir) == [
        "best",
        "checkpoints",
        "model",
        "recipe.json",
        "results.json",
        "tensorboard",
        "tokenizer",
        "training.png",
        "training_log.jsonl",
    ]
    recipe = json.loads((run_dir / "recipe.json").read_text())
    assert recipe["name"] == "tiny-world"
    assert recipe["corpus"] == "tiny_world"
    assert recipe["architecture"] == TINY_ARCHITECTURE
    assert recipe["training"]["updates"] == 10
    results = json.loads((run_dir / "results.json").read_text())
    assert results["recipe"] == "tiny-world"
    assert results["vocabulary"] == 300
    assert results["training"]["updates"] == 10
    assert results["data"] == {
        "corpus": "tiny_world train",
        "read": 100,
        "kept": 100,
        "skipped": {},
        # Of a data set from the Hub.
        "revision": None,
        "encoding": {"read": 100, "kept": 100, "too_long": 0},
    }
    model = AutoModelForSeq2SeqLM.from_pretrained(run_dir / "model")
    assert results["parameters"] == model.num_parameters()
    assert model.config.d_model == 16
    assert results["environment"]["torch"] == torch.__version__
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")


def test_train_with_a_tokenizer_and_test_scores(
    command: Command, run_dir: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 40), ("validation", 2), ("test", 3)):
        rows = [{"en": p["source"], "de": p["target"]} for p in generate_translation(split, count)]
        if split == "train":
            rows.append({"en": "A cat.", "de": " "})
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "run"
    options = ["--data", data, "--tokenizer", run_dir / "tokenizer", "--updates", 2]
    # A later --set goes before an earlier one.
    done = command(*TINY, *options, "--set", 'test_splits=["test"]', "-o", output)
    assert done.status == 0, done.err
    assert "left out: 1 pairs, empty target" in done.err
    assert "test: 3 sentences" in done.out
    assert re.search(r"BLEU +\d+\.\d\d +nrefs:1\|case:mixed\|eff:no\|tok:13a", done.out)
    tokenizers = [folder / "tokenizer" / "tokenizer.json" for folder in (run_dir, output)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()
    results = json.loads((output / "results.json").read_text())
    assert results["tests"]["test"]["sentences"] == 3
    assert results["tests"]["test"]["decoding"]["num_beams"] == 4
    assert results["data"]["skipped"] == {"empty target": 1}


def test_fine_tune(command: Command, run_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned"
    # The run's directory stands for its model.
    rate = ["--set", "training.learning_rate_factor=1e-9"]
    done = command(*TINY, *rate, "--init", run_dir, "--updates", 1, "-o", output)
    assert done.status == 0, done.err
    models = [AutoModelForSeq2SeqLM.from_pretrained(path / "model") for path in (run_dir, output)]
    states = [model.state_dict() for model in models]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-6)


def test_resume_needs_nothing_but_the_run(command: Command, run_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(run_dir, output)
    # As if it had been interrupted between the training and the scoring.
    (output / "results.json").unlink()
    done = command("train", "--resume", "-o", output)
    assert done.status == 0, done.err
    results = json.loads((output / "results.json").read_text())
    assert results["training"]["updates"] == 10
    assert (output / "model" / "model.safetensors").read_bytes() == (
        run_dir / "model" / "model.safetensors"
    ).read_bytes()
    # What goes on with more updates says so from then on.
    done = command("train", "--resume", "-o", output, "--updates", 12)
    assert done.status == 0, done.err
    assert "update 12: validation" in done.out
    assert json.loads((output / "results.json").read_text())["training"]["updates"] == 12
    assert json.loads((output / "recipe.json").read_text())["training"]["updates"] == 12


def test_the_other_driver(
    command: Command, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drove = []

    def drive(*arguments: Any, **options: Any) -> Any:
        drove.append(arguments)
        return train_with_trainer(*arguments, **options)

    monkeypatch.setattr(trainer, "train_with_trainer", drive)
    output = tmp_path / "run"
    done = command(*TINY, "--updates", 10, "--driver", "trainer", "-o", output)
    assert done.status == 0, done.err
    assert len(drove) == 1
    assert json.loads((output / "recipe.json").read_text())["driver"] == "trainer"
    results = json.loads((output / "results.json").read_text())
    assert results["training"]["updates"] == 10
    assert entries(output) == entries(run_dir)


def test_list_of_recipes(command: Command) -> None:
    done = command("train", "--list")
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= 80
    text = " ".join(done.out.split())
    for name, recipe in recipes.RECIPES.items():
        assert name in text
        assert recipe.description in text
        assert recipe.published in text
        # Under the heading of its task.
        headings = re.findall(r"# ([a-z ]+)\n", done.out[: done.out.index(f"\n{name}\n") + 1])
        assert headings[-1].replace(" ", "_") == recipe.task


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_dry_run_of_every_recipe(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise AssertionError("a dry run must not train or download")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution, "train_tokenizer", too_much)
    monkeypatch.setattr(execution, "train", too_much)
    monkeypatch.setattr(datasets, "load_dataset", too_much)
    done = command("train", name, "--dry-run", "--set", "train_limit=100")
    assert done.status == 0, done.err
    assert done.err == ""
    assert entries(tmp_path) == []
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80, done.out
    recipe = recipes.RECIPES[name]
    text = " ".join(done.out.split())
    assert text.startswith(f"{name} {recipe.description}")
    assert f"published {recipe.published or 'no figure'}" in text
    costs, _ = recipes.estimate(recipes.changed(recipe, "train_limit", 100))
    assert f"{costs.parameters:,} parameters" in text
    source = f"up to {recipe.training.max_source_tokens:,} "
    assert (f"{source}source and" if costs.writes_text else f"{source}tokens and") in text
    layers = re.search(r"parameters: (\d+)( \+ \d+)? layers", text)
    assert layers is not None
    assert (layers[2] is not None) == costs.has_decoder
    assert f"updates {recipe.training.updates:,}, of which" in text
    assert f"{costs.total_flops:.2g} FLOP in all" in text
    assert f"about {cli.in_bytes(costs.memory.total)} a process, an estimate" in text
    assert ("epochs unknown" in text) == (recipe.corpus != "tiny_world")
    assert recipe.data_source in text
    assert f"machine {recipes.describe_machine()}" in text


def test_dry_run_under_a_launcher(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # What torchrun sets; the first of the processes speaks for all.
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    done = command("train", "wmt14-en-de-base", "--dry-run")
    assert "8, each with 1 piece of about 3,125 + 3,125 tokens" in " ".join(done.out.split())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    sharded = command("train", "wmt14-en-de-base", "--dry-run")
    assert "optimizer 60 MiB" in sharded.out
    assert "optimizer 481 MiB" in done.out
    monkeypatch.setenv("RANK", "1")
    assert command("train", "wmt14-en-de-base", "--dry-run") == (0, "", "")
    assert command("train", "--list") == (0, "", "")
    line = command("train", "nothing").err
    assert line.startswith("vanilla-transformer, process 1: no recipe is called 'nothing'")


def test_average_a_run_and_several_models(command: Command, run_dir: Path, tmp_path: Path) -> None:
    names = [path.name for path in find_checkpoints(run_dir)]
    assert names == ["update-00000005", "update-00000010"]
    done = command("average", run_dir, "-o", tmp_path / "mean", "--last", 2)
    expected = f"{tmp_path / 'mean'}: mean of 2 with equal weights: {', '.join(names)}\n"
    assert done == (0, expected, "")
    # The run's own model is the same mean.
    states = [
        load_file(folder / "model.safetensors") for folder in (tmp_path / "mean", run_dir / "model")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    paths = find_checkpoints(run_dir)
    decayed = command("average", *paths, "-o", tmp_path / "decayed", "--ema-decay", 0.9)
    assert "mean of 2 with decay 0.9" in decayed.out
    state = load_file(tmp_path / "decayed" / "model.safetensors")
    old, new = (load_file(path / "model.safetensors") for path in paths)
    for name, tensor in state.items():
        expected_tensor = (0.9 * old[name].double() + new[name].double()) / 1.9
        torch.testing.assert_close(tensor.double(), expected_tensor, rtol=0, atol=1e-6)
    assert "holds no checkpoints" in one_line(command("average", tmp_path, "-o", tmp_path / "x"))
    assert "exists" in one_line(command("average", run_dir, "-o", tmp_path / "mean"))


def test_export_a_checkpoint(command: Command, run_dir: Path, tmp_path: Path) -> None:
    checkpoint = find_checkpoints(run_dir)[-1]
    done = command("export-checkpoint", checkpoint, "-o", tmp_path / "model")
    assert done == (0, f"{tmp_path / 'model'}: the model of {checkpoint}\n", "")
    model, tokenizer = recipes.load_model(tmp_path / "model", "cpu")
    state = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert len(tokenizer) == 300


def test_attend_writes_pages_and_a_picture(command: Command, run_dir: Path, tmp_path: Path) -> None:
    names = ("page.html", "heads.png", "walk.html")
    page, picture, walk = (tmp_path / "new" / name for name in names)
    sentences = ("The dog sleeps.", "The cat sees the dog.")
    options = ("--word", "dog", "--picture", picture, "--walk", walk, "--output", page)
    done = command("attend", run_dir, *sentences, *options)
    assert done.status == 0
    assert done.out.split("\n") == [str(page), str(picture), str(walk), ""]
    text = page.read_text("utf-8")
    assert all(f"<h1>{sentence} → " in text for sentence in sentences)
    assert "hypothesis 4, score" in text
    assert "What each head does" in text
    assert "“The dog sleeps.”" in walk.read_text("utf-8")
    assert picture.read_bytes().startswith(b"\x89PNG")
    plain = command("attend", run_dir, sentences[0], "--beams", 0, "-o", page, "--target", "Der.")
    assert plain.status == 0
    assert "hypothesis" not in page.read_text("utf-8")
    # What is there stays where nothing new can be written.
    before = page.read_bytes()
    wrong = command("attend", run_dir, *sentences, "--target", "Der Hund.", "-o", page)
    assert "give one sentence for the target" in one_line(wrong)
    assert "must hold some text" in one_line(command("attend", run_dir, " ", "-o", page))
    assert "num_beams (1)" in one_line(command("attend", run_dir, "a", "--beams", 1, "-o", page))
    assert page.read_bytes() == before


def test_translate_file_and_stdin_alike(command: Command, run_dir: Path, tmp_path: Path) -> None:
    lines = [*SENTENCES[:3], "", "  ", SENTENCES[3]]
    text = "\r\n".join(lines).encode()
    (tmp_path / "in.txt").write_bytes(text)
    file = command("translate", run_dir, tmp_path / "in.txt", "--max-over-source", 3)
    assert file.status == 0
    assert file.err == "6 lines, 2 of them empty, 0 too long and left empty\n"
    translations = file.out.split("\n")
    assert len(translations) == 7
    assert [bool(line) for line in translations] == [True] * 3 + [False] * 2 + [True, False]
    stdin = command("translate", run_dir / "model", "--max-over-source", 3, stdin=text)
    assert stdin == file
    output = tmp_path / "out.txt"
    one_by_one = ["--window", 1, "--batch-tokens", 1024]
    written = command(
        "translate", run_dir, tmp_path / "in.txt", "-o", output, "--max-over-source", 3, *one_by_one
    )
    assert written.out == ""
    assert output.read_text(encoding="utf-8") == file.out


def test_translate_greedy_beam_and_n_best(command: Command, run_dir: Path) -> None:
    def translations(*options: object) -> list[str]:
        text = "\n".join(SENTENCES[:2]).encode()
        done = command("translate", run_dir, "--max-over-source", 3, *options, stdin=text)
        assert done.status == 0, done.err
        return done.out.splitlines()

    rows = [line.split(" ||| ") for line in translations("--n-best", 3)]
    assert [row[0] for row in rows] == ["1"] * 3 + ["2"] * 3
    for first in (0, 3):
        scores = [float(row[2]) for row in rows[first : first + 3]]
        assert scores == sorted(scores, reverse=True)
    assert translations() == [rows[0][1], rows[3][1]]
    # Greedy and beams are two searches, and alpha reaches the scores.
    assert len(translations("--beams", 1)) == 2
    assert translations("--n-best", 3, "--alpha", 0) != translations("--n-best", 3, "--alpha", 2)


def test_translate_by_sampling(command: Command, run_dir: Path) -> None:
    def sample(*options: object) -> str:
        stdin = SENTENCES[0].encode()
        arguments = ["--max-over-source", 3, "--sample", *options]
        done = command("translate", run_dir, *arguments, stdin=stdin)
        assert done.status == 0, done.err
        return done.out

    assert sample("--seed", 5) == sample("--seed", 5)
    assert sample("--seed", 5) != sample("--seed", 6)
    rows = [line.split(" ||| ") for line in sample("--n-best", 3, "--top-k", 50).splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("1", "-")] * 3
    assert len({row[1] for row in rows}) > 1
    greedy = command("translate", run_dir, "--beams", 1, "--max-over-source", 3, stdin=b"A dog.")
    coldest = ["--sample", "--top-k", 1, "--max-over-source", 3]
    assert command("translate", run_dir, *coldest, stdin=b"A dog.").out == greedy.out


def test_eight_bits_are_used_and_recorded(
    command: Command, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def network_of(model: Any, precision: str) -> Any:
        used.append(precision)
        return preparation.network_of(model, precision)

    monkeypatch.setattr("vanilla_transformer.generation.translation.network_of", network_of)
    stdin = "\n".join(SENTENCES).encode()
    done = command("translate", run_dir, "--int8", "--max-over-source", 3, stdin=stdin)
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == len(SENTENCES)
    scores = tmp_path / "scores.json"
    options = ["--limit", 2, "--max-over-source", 3, "--json", scores]
    done = command("evaluate", run_dir, "tiny_world", "--int8", *options)
    assert done.status == 0, done.err
    assert json.loads(scores.read_text())["precision"] == "int8"
    assert set(used) == {"int8"}
    done = command("translate", run_dir, "--int8", "--sample", stdin=stdin)
    assert done.status == 1
    assert "precision='int8' cannot be used" in done.err


def test_a_very_long_line_is_skipped_and_counted(
    command: Command, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "\n".join([SENTENCES[0], "dog " * 100_000, SENTENCES[1]])
    done = command("translate", run_dir, "--max-over-source", 3, stdin=text.encode())
    assert done.status == 0
    lines = done.out.split("\n")
    assert [bool(line) for line in lines] == [True, False, True, False]
    assert "line 2 is left untranslated" in caplog.text
    assert "3 lines, 0 of them empty, 1 too long and left empty" in done.err


def test_evaluate_scores_what_it_writes(command: Command, run_dir: Path, tmp_path: Path) -> None:
    predictions, scores_file = tmp_path / "predictions.txt", tmp_path / "scores.json"
    files = ["--predictions", predictions, "--json", scores_file]
    options = ["--limit", 5, "--beams", 2, "--max-over-source", 3]
    done = command("evaluate", run_dir, "tiny_world", *options, *files)
    assert done.status == 0, done.err
    translations = predictions.read_text(encoding="utf-8").split("\n")[:-1]
    references = [[pair["target"] for pair in generate_translation("test", 5)]]
    assert len(translations) == 5
    scores = json.loads(scores_file.read_text(encoding="utf-8"))
    assert scores["sentences"] == 5
    assert scores["decoding"]["num_beams"] == 2
    bleu, chrf, ter = sacrebleu.BLEU(), sacrebleu.CHRF(), sacrebleu.TER()
    for name, metric in (("bleu", bleu), ("chrf", chrf), ("ter", ter)):
        expected = metric.corpus_score(translations, references)
        assert scores[name]["score"] == pytest.approx(expected.score, rel=1e-12)
        assert scores[name]["signature"] == str(metric.get_signature())
        assert f"{expected.score:.2f}  {metric.get_signature()}" in done.out
    assert "tiny_world test: 5 sentences" in done.out
    lowercase = command("evaluate", run_dir, "tiny_world", *options, "--lowercase")
    assert "case:lc|eff:no" in lowercase.out


def write_data(folder: Path, recipe: str, **counts: int) -> Path:
    """Rows of the embedded corpus for the task of a recipe, as many of each split as asked for."""
    folder.mkdir()
    for split, count in counts.items():
        rows: Iterable[Any]
        if "questions" in recipe:
            rows = generate_question_answering(split, count)  # type: ignore[arg-type]
        elif "inference" in recipe:
            pairs = generate_inference(split, count)  # type: ignore[arg-type]
            rows = ({**pair, "label": LABELS[pair["label"]]} for pair in pairs)
        else:
            sentences = generate_translation(split, count)  # type: ignore[arg-type]
            rows = ({"en": one["source"], "de": one["target"]} for one in sentences)
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("recipe", "changes", "described", "settings", "option"),
    [
        (
            "tiny-world-questions",
            ["max_length=90", "stride=11", "max_question_length=20", "max_answer_length=3"],
            "test: SQuAD 1.1, 25 questions",
            "--max-length 90 --stride 11 --max-question-length 20 --max-answer-length 3",
            ["--max-answer-length", 1],
        ),
        (
            "tiny-world-questions",
            ["max_length=256", "route=written", "decoding.length_penalty=0.5"],
            "test: SQuAD 1.1, 25 questions",
            "--beams 2 --alpha 0.5 --max-over-source 3",
            ["--max-over-source", 1],
        ),
        (
            "tiny-world-inference",
            ["max_length=44"],
            "expected error",
            "--max-length 44",
            ["--max-length", 8],
        ),
        (
            "tiny-world-inference",
            ["route=written"],
            "answers are no label",
            "--beams 2 --alpha 0.6 --max-over-source 3",
            ["--beams", 1],
        ),
        (
            "tiny-world",
            [
                "source_lang=de",
                "target_lang=en",
                'bleu={"tokenize": "char", "lowercase": true}',
            ],
            "case:lc|eff:no|tok:char",
            "--source-lang de --target-lang en --beams 2 --alpha 0.6 --max-over-source 3 "
            "--tokenize char --lowercase",
            ["--no-lowercase"],
        ),
    ],
    ids=["spans", "written answers", "classes", "written labels", "translation"],
)
def test_a_run_is_evaluated_as_it_was_scored(
    command: Command,
    tmp_path: Path,
    recipe: str,
    changes: list[str],
    described: str,
    settings: str,
    option: list[object],
) -> None:
    data = write_data(tmp_path / "data", recipe, train=30, validation=4, test=25)
    output, scores_file = tmp_path / "run", tmp_path / "scores.json"
    fields = [
        *("train_limit=null", "vocab_size=300", "training.max_target_tokens=64"),
        f"architecture={json.dumps(TINY_ARCHITECTURE)}",
        *changes,
    ]
    if recipe == "tiny-world" or "route=written" in changes:
        fields += ["decoding.num_beams=2", "decoding.max_tokens_over_source=3"]
        fields += ["training.max_source_tokens=512"]
    options = [part for setting in fields for part in ("--set", setting)]
    done = command("train", recipe, "--data", data, "--updates", 2, *options, "-o", output)
    assert done.status == 0, done.err
    assert "encoded: 30 " in done.out
    assert described in done.out
    assert done.out.endswith(f"model: {output / 'model'}\nresults: {output / 'results.json'}\n")
    results = json.loads((output / "results.json").read_text())["tests"]["test"]

    def evaluate(model: Path, *more: object) -> tuple[dict[str, Any], str]:
        arguments = ["--split", "test", "--json", scores_file, *more]
        if recipe == "tiny-world-inference":
            arguments += ["--hypothesis-only", data]
        done = command("evaluate", model, data, *arguments)
        assert done.status == 0, done.err
        return json.loads(scores_file.read_text()), done.err

    def figures(scores: dict[str, Any]) -> dict[str, Any]:
        """Without what is of the machine."""
        left_out = ("seconds", "settings", "max_batch_tokens", "max_source_tokens")
        kept = scores | scores.get("settings", {})
        return {name: value for name, value in kept.items() if name not in left_out}

    for model in (output, output / "model"):
        scores, said = evaluate(model)
        assert figures(scores) == figures(results)
        assert said == settings_line(model, settings, output / "recipe.json")
    # An option goes before the recipe.
    assert figures(evaluate(output, *option)[0]) != figures(results)
    # Out of its run the same model is used by the defaults.
    alone = shutil.copytree(output / "model", tmp_path / "alone")
    is_written = "route=written" in changes
    name = "question-answering" if "questions" in recipe else "inference"
    said = evaluate(alone, "--limit", 2, *(["--task", name] if is_written else []))[1]
    assert settings not in said
    assert f"(from the library's defaults, as {alone} is in no run of this task, unless" in said


# Models that answer and infer


def save_model(
    folder: Path, kind: type[PreTrainedModel], tokenizer: Path, **options: object
) -> Path:
    """An untrained model, whose figures are large enough to differ."""
    vocabulary = AutoTokenizer.from_pretrained(tokenizer)
    config = VanillaTransformerConfig(
        **TINY_ARCHITECTURE, dropout=0.0, vocab_size=len(vocabulary), **options
    )
    torch.manual_seed(1)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    return folder


class Models(NamedTuple):
    """Directories of models."""

    spans: Path
    spans_or_none: Path
    classes: Path
    two_classes: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, run_dir: Path) -> Models:
    folder, tokenizer = tmp_path_factory.mktemp("models"), run_dir / "tokenizer"
    questions = VanillaTransformerForQuestionAnswering
    pairs = VanillaTransformerForSequenceClassification
    # Neither in the order of ours, nor spelt like them.
    names = {0: "Contradiction", 1: "Entailment", 2: "NEUTRAL"}
    two = {0: "not-entailment", 1: "entailment"}
    return Models(
        save_model(folder / "spans", questions, tokenizer),
        save_model(folder / "spans_or_none", questions, tokenizer, has_no_answer=True),
        save_model(folder / "classes", pairs, tokenizer, id2label=names),
        save_model(folder / "two_classes", pairs, tokenizer, id2label=two),
    )


# What the library does where there is no recipe.
WINDOWS = {"max_length": 384, "stride": 128, "max_question_length": 64, "max_answer_length": 30}
SPANS_LINE = "--max-length 384 --stride 128 --max-question-length 64 --max-answer-length 30"


def settings_line(model: Path, settings: str, origin: str | Path | None = None) -> str:
    origin = origin or f"the library's defaults, as {model} is in no run of this task"
    return f"settings: {settings} --precision no (from {origin}, unless given)\n"


def answered(model_dir: Path, questions: datasets.Dataset, **windows: int) -> list[SpanPrediction]:
    """What the model answers, a window at a time."""
    longest = {"max_answer_length": windows.pop("max_answer_length", 30)}
    model = AutoModelForQuestionAnswering.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    features, _ = encode_questions(
        questions,
        tokenizer,
        for_training=False,
        has_no_answer=model.config.has_no_answer,
        **windows,
    )
    collate = question_answering_collator(tokenizer)
    logits: dict[str, list[torch.Tensor]] = {"start_logits": [], "end_logits": []}
    for row in features:
        batch = collate([row])
        with torch.inference_mode():
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for name, values in logits.items():
            values.append(output[name][0])
    return predict_spans(questions, features, **logits, **longest)


def texts_of(predictions: Iterable[SpanPrediction]) -> dict[str, str]:
    return {one.id: one.text for one in predictions}


def write_squad(
    path: Path,
    count: int,
    *,
    split: Split = "test",
    has_answers: bool = True,
    unanswerable: Iterable[int] = (),
) -> Path:
    """Questions of the embedded corpus in a file as SQuAD publishes it; some lose their answers."""
    paragraphs = []
    for number, row in enumerate(generate_question_answering(split, count)):
        question = {"id": row["id"], "question": row["question"]}
        if has_answers:
            texts = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            answers = [{"text": text, "answer_start": start} for text, start in texts]
            question |= {"answers": answers, "is_impossible": False}
        if number in unanswerable:
            question |= {"answers": [], "is_impossible": True}
        paragraphs.append({"context": row["context"], "qas": [question]})
    content = {"version": "2.0", "data": [{"title": "tiny", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_evaluate_question_answering(command: Command, models: Models, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("predictions.json", "scores.json", "errors.html")}
    outputs = ["--predictions", files["predictions.json"], "--json", files["scores.json"]]
    options = ["--limit", 12, *outputs, "--errors", files["errors.html"]]
    done = command("evaluate", models.spans, "tiny_world", *options)
    assert (done.status, done.err) == (0, settings_line(models.spans, SPANS_LINE))
    # The split that SQuAD publishes.
    questions, _ = load_question_answering("tiny_world", "validation", limit=12)
    found = json.loads(files["predictions.json"].read_text("utf-8"))
    assert found == texts_of(answered(models.spans, questions))
    scores = json.loads(files["scores.json"].read_text("utf-8"))
    expected = evaluate_question_answering(questions, found)
    assert {name: scores[name] for name in expected} == expected
    assert scores["settings"] == {**WINDOWS, "no_answer_threshold": None}
    assert done.out.startswith("tiny_world validation: SQuAD 1.1, 12 questions, 0 without")
    for name in ("all", *expected["by_question_word"]):
        assert f"\n{name} " in done.out
    page = files["errors.html"].read_text("utf-8")
    assert "tiny_world validation" in page
    assert questions[0]["question"] in page
    assert entries(tmp_path) == sorted(files)


def test_a_recipe_that_cannot_be_read_is_named(
    command: Command, models: Models, tmp_path: Path
) -> None:
    model = shutil.copytree(models.spans, tmp_path / "model")
    (tmp_path / "recipe.json").write_text('{"task": "cooking"}')
    line = one_line(command("evaluate", model, "tiny_world", "--limit", 2))
    assert f"{tmp_path / 'recipe.json'} holds no recipe of this version: its task is" in line
    assert "copy its directory out of the run" in line


def test_windows_of_questions(command: Command, models: Models, tmp_path: Path) -> None:
    windows = {"max_length": 60, "stride": 7, "max_question_length": 20, "max_answer_length": 3}
    options = [
        part for name, value in windows.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    outputs = ["--predictions", tmp_path / "texts", "--json", tmp_path / "scores"]
    data = ["tiny_world", "--split", "test", "--limit", 6]
    done = command("evaluate", models.spans, *data, *options, *outputs)
    assert done.status == 0, done.err
    questions, _ = load_question_answering("tiny_world", "test", limit=6)
    found = json.loads((tmp_path / "texts").read_text("utf-8"))
    assert found == texts_of(answered(models.spans, questions, **windows))
    assert found != texts_of(answered(models.spans, questions))
    settings = json.loads((tmp_path / "scores").read_text("utf-8"))["settings"]
    assert settings == {**windows, "no_answer_threshold": None}


def test_no_answer(command: Command, models: Models, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_squad(data / "validation.json", 10, unanswerable=(0, 3, 4, 7))
    write_squad(data / "dev.json", 8, split="validation", unanswerable=(1, 2, 6))
    texts, odds, scores_file = tmp_path / "texts", tmp_path / "odds", tmp_path / "scores"
    outputs = ["--predictions", texts, "--no-answer-probabilities", odds, "--json", scores_file]

    def evaluate(model: Path, *options: object) -> tuple[dict[str, str], dict[str, Any]]:
        done = command("evaluate", model, data, *options, *outputs)
        assert done.status == 0, done.err
        assert "SQuAD 2.0, 10 questions" in done.out
        assert "\nno answer " in done.out
        return json.loads(texts.read_text()), json.loads(scores_file.read_text())

    questions, _ = load_question_answering(data, "validation")
    best = answered(models.spans_or_none, questions)
    null_scores = [one.no_answer_score for one in best]
    assert all(score is not None for score in null_scores)
    # Without a threshold there is always an answer.
    found, scores = evaluate(models.spans_or_none)
    assert found == texts_of(best)
    probabilities = json.loads(odds.read_text())
    expected = [1 / (1 + np.exp(-score)) for score in null_scores]
    assert list(probabilities.values()) == pytest.approx(expected, rel=1e-4)
    # By the option, or by the model.
    middle = float(np.median(null_scores))
    unanswered = {one.id for one in best if one.no_answer_score > middle}
    found, scores = evaluate(models.spans_or_none, "--no-answer-threshold", middle)
    assert {one for one, text in found.items() if not text} == unanswered
    assert scores["settings"]["no_answer_threshold"] == middle
    fitted_model = tmp_path / "fitted"
    shutil.copytree(models.spans_or_none, fitted_model)
    config = json.loads((fitted_model / "config.json").read_text())
    config["no_answer_threshold"] = middle
    (fitted_model / "config.json").write_text(json.dumps(config))
    assert evaluate(fitted_model)[0] == found
    # The option goes before the model's.
    assert set(evaluate(fitted_model, "--no-answer-threshold", -1e9)[0].values()) == {""}
    # Fitted on another part of the data, whatever the model's own threshold is.
    held_out, _ = load_question_answering(data, "dev")
    spans = answered(models.spans_or_none, held_out)
    fitted = fit_no_answer_threshold(
        held_out, texts_of(spans), {one.id: one.no_answer_score or 0.0 for one in spans}
    )
    found, scores = evaluate(fitted_model, "--fit-threshold-on", "dev")
    assert scores["settings"]["no_answer_threshold"] == pytest.approx(fitted.threshold, rel=1e-4)
    threshold = scores["settings"]["no_answer_threshold"]
    assert [not text for text in found.values()] == [
        one.no_answer_score > threshold + 1e-4 for one in best
    ]


@pytest.mark.parametrize(
    "option", ["--no-answer-threshold", "--fit-threshold-on", "--no-answer-probabilities"]
)
def test_a_model_that_always_answers(
    command: Command, models: Models, tmp_path: Path, option: str
) -> None:
    value = {"--no-answer-threshold": 0, "--fit-threshold-on": "test"}.get(option, tmp_path / "x")
    line = one_line(command("evaluate", models.spans, "tiny_world", "--limit", 2, option, value))
    assert f"{option} is for a model that knows when there is no answer" in line
    assert entries(tmp_path) == []


def test_evaluate_inference(command: Command, models: Models, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("predictions.tsv", "scores.json", "errors.html")}
    outputs = ["--predictions", files["predictions.tsv"], "--json", files["scores.json"]]
    options = ["--limit", 40, *outputs, "--errors", files["errors.html"]]
    done = command(
        "evaluate", models.classes, "tiny_world", *options, "--hypothesis-only", "tiny_world:test"
    )
    assert (done.status, done.err) == (0, settings_line(models.classes, "--max-length 256"))
    pairs, _ = load_inference("tiny_world", "test", limit=40)
    model = AutoModelForSequenceClassification.from_pretrained(models.classes)
    tokenizer = AutoTokenizer.from_pretrained(models.classes)
    encoded, _ = encode_inference(pairs, tokenizer, model.config, for_training=False)
    probabilities = label_probabilities(predict_logits(model, encoded, tokenizer), model.config)
    baseline = HypothesisOnly(load_inference("tiny_world", "test")[0])
    expected = evaluate_inference(pairs, probabilities, hypothesis_only=baseline)
    scores = json.loads(files["scores.json"].read_text("utf-8"))
    for name in ("accuracy", "macro_f1", "hypothesis_only_accuracy", "confusion", "examples"):
        assert scores[name] == expected[name]
    assert scores["calibration"]["expected_error"] == pytest.approx(
        expected["calibration"]["expected_error"], abs=1e-3
    )
    header, *rows = files["predictions.tsv"].read_text().splitlines()
    assert header == "index\tprediction"
    labels = [LABELS[label] for label in probabilities.argmax(axis=1)]
    assert rows == [f"{one}\t{label}" for one, label in zip(pairs["id"], labels, strict=True)]
    assert done.out.startswith("tiny_world test\n")
    for part in ("gold \\ predicted", "expected error", "majority", "phenomena", "overlap"):
        assert part in done.out
    assert f"{expected['accuracy']:.1f}" in done.out
    page = files["errors.html"].read_text("utf-8")
    assert "tiny_world test" in page
    assert pairs[0]["hypothesis"] in page
    # Without the option the baseline is left out.
    command("evaluate", models.classes, "tiny_world", "--limit", 5, "--json", files["scores.json"])
    scores = json.loads(files["scores.json"].read_text("utf-8"))
    assert "hypothesis_only_accuracy" not in scores
    assert scores["settings"] == {"max_length": 256}


def test_labels_of_other_sets(command: Command, models: Models, tmp_path: Path) -> None:
    pairs = list(generate_inference("test", 6))
    rows = [
        {"pairID": f"{number}.jpg", "premise": p["premise"], "hypothesis": p["hypothesis"]}
        for number, p in enumerate(pairs)
    ]
    data, output = tmp_path / "pairs.jsonl", tmp_path / "out.tsv"

    def write(labels: Iterable[object]) -> None:
        lines = [json.dumps(row | {"label": x}) for row, x in zip(rows, labels, strict=True)]
        data.write_text("\n".join(lines))

    def evaluate(model: Path, *options: object) -> tuple[dict[str, Any], list[str]]:
        files = ["--predictions", output, "--json", tmp_path / "scores"]
        done = command("evaluate", model, data, *options, *files)
        assert done.status == 0, done.err
        return json.loads((tmp_path / "scores").read_text()), output.read_text().splitlines()

    # Three labels of the model on a set of two, with ids that GLUE would refuse.
    write(["entailment", "not_entailment"] * 3)
    scores, lines = evaluate(models.classes)
    assert scores["labels"] == list(TWO_WAY_LABELS)
    assert [line.split("\t")[0] for line in lines[1:]] == [row["pairID"] for row in rows]
    assert {line.split("\t")[1] for line in lines[1:]} <= set(TWO_WAY_LABELS)
    right = [line.split("\t")[1] == TWO_WAY_LABELS[n % 2] for n, line in enumerate(lines[1:])]
    assert scores["accuracy"] == pytest.approx(100 * np.mean(right))
    assert evaluate(models.two_classes)[0]["labels"] == list(TWO_WAY_LABELS)
    # Bare numbers mean nothing until someone says what.
    write([0, 1, 2] * 2)
    assert "nothing says what it means" in one_line(command("evaluate", models.classes, data))
    names = ["contradiction, neutral, entailment", "entailment,neutral,contradiction"]
    golds = [evaluate(models.classes, "--label-names", one)[0]["confusion"] for one in names]
    assert golds[0] == golds[1][::-1]
    # Two labels of the model cannot be told apart as three, but can be predicted.
    line = one_line(command("evaluate", models.two_classes, data, "--label-names", names[1]))
    assert "three" in line
    done = command("predict", models.two_classes, data, "-o", output, "--label-names", names[1])
    assert done.status == 0, done.err
    assert {line.split("\t")[1] for line in output.read_text().splitlines()[1:]} <= set(
        TWO_WAY_LABELS
    )


def test_long_pairs_are_cut(command: Command, models: Models, tmp_path: Path) -> None:
    files = [tmp_path / "short.json", tmp_path / "long.json"]
    for path, option in zip(files, (["--max-length", 8], []), strict=True):
        done = command(
            "evaluate", models.classes, "tiny_world", "--limit", 10, *option, "--json", path
        )
        assert done.status == 0, done.err
    short, long = (json.loads(path.read_text()) for path in files)
    assert short["settings"] == {"max_length": 8}
    assert short["calibration"] != long["calibration"]


def test_a_text_model_does_each_task(command: Command, run_dir: Path, tmp_path: Path) -> None:
    scores_file, texts = tmp_path / "scores", tmp_path / "texts"
    options = ["--limit", 3, "--max-over-source", 2, "--beams", 1, "--json", scores_file]
    options += ["--predictions", texts]
    errors = tmp_path / "errors.html"
    page = ["--errors", errors]
    task = ["--task", "question-answering"]
    done = command("evaluate", run_dir, "tiny_world", *task, *options, *page)
    assert done.status == 0, done.err
    questions, _ = load_question_answering("tiny_world", "validation", limit=3)
    assert "SQuAD 1.1, 3 questions" in done.out
    found = json.loads(texts.read_text("utf-8"))
    assert list(found) == list(questions["id"])
    scores = json.loads(scores_file.read_text())
    assert scores["f1"] == evaluate_question_answering(questions, found)["f1"]
    assert scores["settings"]["decoding"]["num_beams"] == 1
    assert questions[0]["question"] in errors.read_text("utf-8")

    done = command("evaluate", run_dir, "tiny_world", "--task", "inference", *options, *page)
    assert done.status == 0, done.err
    scores = json.loads(scores_file.read_text())
    # It was trained to translate: what it writes is no label, and is wrong.
    assert (scores["unanswered"], scores["accuracy"]) == (3, 0)
    assert scores["calibration"] is None
    assert "3 answers are no label" in done.out
    pairs, _ = load_inference("tiny_world", "test", limit=3)
    assert pairs[0]["hypothesis"] in errors.read_text("utf-8")
    assert "they have no probabilities" in errors.read_text("utf-8")
    assert [line.split("\t")[1] for line in texts.read_text().splitlines()[1:]] == ["-"] * 3

    # Without --task it translates.
    done = command("evaluate", run_dir, "tiny_world", *options)
    assert "tiny_world test: 3 sentences" in done.out


_SPANS, _CLASSES, _TEXT = "question answering by spans", "inference by classes", "translation"


@pytest.mark.parametrize(
    ("kind", "options", "what"),
    [
        ("spans", ["--beams", 2], _SPANS),
        ("spans", ["--source-lang", "en"], _SPANS),
        ("spans", ["--lowercase"], _SPANS),
        ("spans", ["--hypothesis-only", "tiny_world"], _SPANS),
        ("spans", ["--label-names", "a,b"], _SPANS),
        ("classes", ["--stride", 3], _CLASSES),
        ("classes", ["--no-answer-threshold", 0], _CLASSES),
        ("classes", ["--no-answer-probabilities", "file"], _CLASSES),
        ("classes", ["--batch-tokens", 4096], _CLASSES),
        ("text", ["--max-length", 30], _TEXT),
        ("text", ["--fit-threshold-on", "test"], _TEXT),
        ("text", ["--errors", "file"], _TEXT),
        ("text", ["--task", "inference", "--max-length", 9], "inference by writing"),
        ("text", ["--task", "question-answering", "--stride", 9], "question answering by writing"),
        ("text", ["--task", "question-answering", "-t", "de"], "question answering by writing"),
    ],
)
def test_options_of_another_task(
    command: Command,
    models: Models,
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: list[object],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = run_dir if kind == "text" else getattr(models, kind)
    arguments = ["evaluate", model, "tiny_world", "--limit", 2, *options, "--json", "scores"]
    line = one_line(command(*arguments), status=2)
    # The last one; a flag has no value.
    option = next(str(one) for one in reversed(options) if str(one).startswith("-"))
    option = "--target-lang" if option == "-t" else option
    assert f"{option} is of no use with {what}, which {model} is used for; leave it out" in line
    assert entries(tmp_path) == []


def test_models_of_another_task(command: Command, models: Models, tmp_path: Path) -> None:
    other = ["evaluate", models.spans, "tiny_world", "--task", "translation"]
    assert "is a model for question answering, which cannot be used for translation" in one_line(
        command(*other)
    )
    # To name what it does anyway is no mistake.
    same = ["evaluate", models.classes, "tiny_world", "--task", "inference", "--limit", 2]
    assert command(*same).status == 0
    assert "is a model for inference, not for writing text" in one_line(
        command("translate", models.classes)
    )
    config = VanillaTransformerConfig(**TINY_ARCHITECTURE, vocab_size=300)
    VanillaTransformerForMaskedLM(config).save_pretrained(tmp_path)
    assert "has no head for a task; go on from it with train --init" in one_line(
        command("evaluate", tmp_path, "tiny_world")
    )


def test_data_of_another_task(command: Command, models: Models, tmp_path: Path) -> None:
    data = tmp_path / "test.jsonl"
    data.write_text('{"en": "A dog.", "de": "Ein Hund."}\n')
    output = tmp_path / "scores"
    for model, column in ((models.spans, "question"), (models.classes, "premise")):
        line = one_line(command("evaluate", model, data, "--json", output))
        assert f"no column '{column}' among 'en', 'de'" in line
        line = one_line(command("evaluate", model, data, data, "--json", output))
        assert "takes one corpus, not 2 files" in line
    line = one_line(command("evaluate", models.spans, tmp_path, "--split", "dev"))
    assert "has no split 'dev'; it has test" in line
    assert entries(tmp_path) == ["test.jsonl"]


def test_predict_answers(command: Command, models: Models, tmp_path: Path) -> None:
    # Nobody knows the answers.
    data = write_squad(tmp_path / "data.json", 6, has_answers=False)
    output, n_best, odds = (tmp_path / name for name in ("out.json", "best.json", "odds.json"))
    files = ["-o", output, "--n-best", n_best, "--no-answer-probabilities", odds]
    done = command("predict", models.spans_or_none, data, *files)
    settings = settings_line(models.spans_or_none, SPANS_LINE)
    assert done == (0, "", f"{settings}{output}: 6 predictions for {data}\n")
    questions, _ = load_question_answering("tiny_world", "test", limit=6)
    expected = answered(models.spans_or_none, questions)
    assert json.loads(output.read_text("utf-8")) == texts_of(expected)
    best = json.loads(n_best.read_text("utf-8"))
    assert list(best) == [one.id for one in expected]
    for one in expected:
        assert [row["text"] for row in best[one.id]] == [span.text for span in one.n_best]
    assert list(json.loads(odds.read_text())) == list(best)


def test_predict_labels(command: Command, models: Models, tmp_path: Path) -> None:
    data, output = tmp_path / "test.tsv", tmp_path / "MNLI-m.tsv"
    pairs = list(generate_inference("test", 5))
    lines = ["index\tsentence1\tsentence2"]
    lines += [f"{n}\t{p['premise']}\t{p['hypothesis']}" for n, p in enumerate(pairs)]
    data.write_text("\n".join(lines) + "\n", "utf-8")
    done = command("predict", models.classes, data, "-o", output)
    settings = settings_line(models.classes, "--max-length 256")
    assert done == (0, "", f"{settings}{output}: 5 predictions for {data}\n")
    rows = [line.split("\t") for line in output.read_text().splitlines()]
    assert rows[0] == ["index", "prediction"]
    assert [row[0] for row in rows[1:]] == list("01234")
    assert {row[1] for row in rows[1:]} <= set(LABELS)
    # To score them the labels would have to be known.
    one_line(command("evaluate", models.classes, data))


def test_predict_translations(command: Command, run_dir: Path, tmp_path: Path) -> None:
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    options = ["tiny_world", "--limit", 3, "--max-over-source", 3]
    assert command("predict", run_dir, *options, "-o", files[0]).status == 0
    assert command("evaluate", run_dir, *options, "--predictions", files[1]).status == 0
    assert files[0].read_text("utf-8") == files[1].read_text("utf-8")
    assert len(files[0].read_text("utf-8").splitlines()) == 3


CONTEXT = "The dog sees the cat in the garden. The bird sings in the tall tree."


def test_predict_one_answer(command: Command, models: Models, tmp_path: Path) -> None:
    question = ["--question", "Who sees the cat?"]
    done = command("predict", models.spans_or_none, *question, "--context", CONTEXT)
    assert (done.status, done.err) == (0, settings_line(models.spans_or_none, SPANS_LINE))
    answer, *rows = done.out.splitlines()
    dataset = prediction.as_question("Who sees the cat?", CONTEXT)
    (expected,) = answered(models.spans_or_none, dataset)
    assert answer == expected.text
    shares = [float(row.split()[0]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-2)
    texts = [row.split(maxsplit=1)[1] for row in rows]
    assert sorted(texts) == sorted([*(span.text for span in expected.n_best), "(no answer)"])
    best = next(row for row in rows if row.endswith(f"  {answer}"))
    assert float(best.split()[0]) == pytest.approx(expected.n_best[0].probability, abs=1e-4)
    # The context from a file and from standard input; a line end is no part of it.
    file = tmp_path / "context.txt"
    file.write_text(CONTEXT + "\n", "utf-8")
    for given, stdin in ((f"@{file}", b""), ("-", CONTEXT.encode())):
        again = command("predict", models.spans_or_none, *question, "--context", given, stdin=stdin)
        assert again == done
    none = ["--context", CONTEXT, "--no-answer-threshold", -1e9]
    done = command("predict", models.spans_or_none, *question, *none)
    assert done.out.startswith("(no answer)\n")
    # A model that always answers has no such row.
    done = command("predict", models.spans, *question, "--context", CONTEXT)
    assert "(no answer)" not in done.out
    assert entries(tmp_path) == ["context.txt"]


def test_no_answer_stands_where_its_probability_puts_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spans = tuple(
        SpanCandidate(text, 0, 3, 1.0, share) for text, share in (("one", 0.3), ("b\nc", 0.1))
    )
    answer = SpanPrediction("1", "", spans, 0.7)
    question = prediction.as_question("Who?", "one b\nc")
    cli.print_one(Answers(question, {"1": ""}, [answer], {}, 0.0))
    rows = ["(no answer)", "  0.6000  (no answer)", "  0.3000  one", "  0.1000  b c"]
    assert capsys.readouterr().out.splitlines() == rows


def test_predict_one_label(command: Command, models: Models, run_dir: Path) -> None:
    pair = ["--premise", "The dog is big.", "--hypothesis", "The dog is small."]
    done = command("predict", models.classes, *pair)
    assert (done.status, done.err) == (0, settings_line(models.classes, "--max-length 256"))
    label, *rows = done.out.splitlines()
    assert sorted(row.split()[1] for row in rows) == sorted(LABELS)
    assert rows[0].split()[1] == label
    shares = [float(row.split()[0]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=2e-4)
    done = command("predict", models.two_classes, *pair)
    assert sorted(row.split()[1] for row in done.out.splitlines()[1:]) == sorted(TWO_WAY_LABELS)
    # A model that writes says one thing, and here nothing that is a label.
    fast = ["--beams", 1, "--max-over-source", 2]
    decoding = "--beams 1 --alpha 0.6 --max-over-source 2"
    expected = (0, "(no label)\n", settings_line(run_dir, decoding))
    assert command("predict", run_dir, *pair, *fast) == expected
    done = command("predict", run_dir, "--question", "Who sees the dog?", *fast)
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ([], 2, "name a corpus, or give --question and --context, or --premise and --hypothesis"),
        (["tiny_world"], 2, "name the file to write with --output"),
        (["tiny_world", "--question", "Who?"], 2, "--question is of no use with a corpus"),
        (["--question", "Who?"], 1, "has no context"),
        (["--question", " ", "--context", "A dog."], 1, "the question (' ') is blank"),
        (["--question", "Who?", "--context", "@nowhere.txt"], 1, "nowhere.txt"),
        (["--context", "A dog."], 2, "--context is of no use with no --question"),
        (
            ["--question", "Who?", "--premise", "A dog."],
            2,
            "--premise is of no use with --question",
        ),
        (["--premise", "A dog."], 2, "--premise and --hypothesis go together"),
        (["--hypothesis", "A dog."], 2, "--premise and --hypothesis go together"),
        (["--premise", " ", "--hypothesis", "A dog."], 1, "the premise (' ') is blank"),
        (["--premise", "A.", "--hypothesis", "B."], 1, "cannot be used for inference"),
        (["--question", "Who?", "--context", "A.", "-o", "x"], 2, "--output is of no use with one"),
        (["--question", "Who?", "--context", "A.", "--limit", "3"], 2, "--limit is of no use with"),
        (["--question", "Who?", "--context", "A.", "--beams", "3"], 2, "--beams is of no use with"),
        (
            ["--question", "Who?", "--context", "A.", "--task", "inference"],
            2,
            "--task is of no use with a question or pair of another task",
        ),
        (["tiny_world", "-o", "x", "--n-best", "x"], 1, "x is named for two outputs"),
        (["nowhere/nothing", "-o", "x"], 1, "nowhere/nothing"),
        (["tiny_world", "-o", "x", "--label-names", "a,b"], 2, "--label-names is of no use with"),
        (["tiny_world", "-o", "x", "--max-length", "20"], 1, "max_length (20)"),
    ],
)
def test_wrong_predictions(
    command: Command,
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in one_line(command("predict", models.spans, *options), status)
    assert entries(tmp_path) == []


def test_what_was_there_survives_an_error(
    command: Command, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("predictions", "scores", "errors")]
    for path in paths:
        path.write_text("old")

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no page today")

    monkeypatch.setattr(cli, "write_errors", broken)
    options = ["--limit", 2, "--predictions", paths[0], "--json", paths[1], "--errors", paths[2]]
    line = one_line(command("evaluate", models.spans, "tiny_world", *options))
    assert line.endswith("no page today")
    assert [path.read_text() for path in paths] == ["old"] * 3
    assert entries(tmp_path) == ["errors", "predictions", "scores"]


def test_predictions_to_a_pipe(command: Command, models: Models, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    done = command("predict", models.spans, "tiny_world", "--limit", 2, "-o", pipe)
    assert done.status == 0, done.err
    assert pipe.is_fifo()
    assert len(json.loads(reader.communicate(timeout=10)[0])) == 2


@pytest.mark.parametrize(
    ("task", "noun", "text"),
    [
        (
            "question-answering",
            "questions",
            next(generate_question_answering("train", 1))["context"],
        ),
        ("inference", "pairs", next(generate_inference("train", 1))["premise"]),
    ],
)
def test_tokenizer_of_other_data(
    command: Command, tmp_path: Path, task: str, noun: str, text: str
) -> None:
    options = ["--task", task, "--limit", 60, "--vocab-size", 320]
    kept, lowered, stripped = (tmp_path / name for name in ("kept", "lowered", "stripped"))
    done = command("tokenizer", "tiny_world", *options, "-o", kept)
    expected = f"{kept}: 320 tokens, learned from 60 {noun} of tiny_world train\n"
    assert done == (0, expected, "")
    done = command("tokenizer", "tiny_world", *options, "--lowercase", "-o", lowered)
    assert done.status == 0, done.err
    done = command("tokenizer", "tiny_world", *options, "--strip-punctuation", "-o", stripped)
    assert done.status == 0, done.err
    written = [
        tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        for tokenizer in map(AutoTokenizer.from_pretrained, (kept, lowered, stripped))
    ]
    words = " ".join("".join(one if one.isalnum() else " " for one in text).split())
    assert written == [text, text.lower(), words]
    line = one_line(command("tokenizer", "tiny_world", *options, "-s", "en", "-o", "x"), 2)
    assert f"--source-lang is of no use with --task {task}; leave it out" in line


# The console script, in a process of its own


def test_two_processes_score_each_sentence_once(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = [*TINY, "--updates", 4, "--set", 'test_splits=["test"]', "-o", output]
    data = tmp_path / "data"
    data.mkdir()
    # An odd number of sentences for two processes.
    for split, count in (("train", 100), ("validation", 3), ("test", 5)):
        rows = [{"en": p["source"], "de": p["target"]} for p in generate_translation(split, count)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [
            sys.executable,
            *launch,
            "-m",
            "vanilla_transformer",
            *map(str, arguments),
            "--data",
            str(data),
        ],
        capture_output=True,
        text=True,
        env={**environment(repository), "ACCELERATE_USE_CPU": "true"},
        cwd=tmp_path,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # One process speaks, and has the scores of all.
    assert done.stdout.count("test: 5 sentences") == 1
    assert done.stdout.count(f"results: {output / 'results.json'}") == 1
    results = json.loads((output / "results.json").read_text())
    assert results["tests"]["test"]["sentences"] == 5
    assert results["environment"]["processes"] == 2
    model, vocabulary = recipes.load_model(output, "cpu")
    pairs, _ = load_parallel(data, "en", "de", "test")
    recipe, _ = prediction.recipe_of(output)
    scores = recipe.predict(model, vocabulary, pairs, Accelerator()).score()
    for metric in ("bleu", "chrf", "ter"):
        assert results["tests"]["test"][metric] == scores[metric]


def script(*arguments: object) -> list[str]:
    """The installed script, or where the package is not installed what it would call."""
    installed = Path(sys.executable).with_name("vanilla-transformer")
    call = [str(installed)]
    if not installed.exists():
        call = [sys.executable, "-c", "from vanilla_transformer.cli import main; main()"]
    return [*call, *map(str, arguments)]


def environment(repository: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}


def test_console_script_is_main(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"vanilla-transformer": "vanilla_transformer.cli:main"}


def test_script_translates_and_leaves_a_closed_pipe_quietly(
    repository: Path, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("A dog.\n" * 300)
    arguments = ["translate", run_dir, tmp_path / "in.txt", "--beams", 1, "--max-over-source", 2]
    process = subprocess.Popen(
        script(*arguments, "--window", 50),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(repository),
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    # Whoever reads goes away at once: 300 lines are more than the process's own buffer holds.
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert error == b""


def test_help_of_the_script_is_light(repository: Path, tmp_path: Path) -> None:
    code = (
        "import sys, atexit\n"
        "def loaded():\n"
        "    heavy = {'datasets', 'evaluate', 'sacrebleu', 'matplotlib', 'pandas'}\n"
        "    print('LOADED', *sorted(heavy & sys.modules.keys()), file=sys.stderr)\n"
        "atexit.register(loaded)\n"
        "from vanilla_transformer.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--help"],
        capture_output=True,
        text=True,
        env=environment(repository),
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert "--max-minutes" in done.stdout
    assert done.stderr == "LOADED\n"


@pytest.mark.slow
def test_interrupt_from_the_keyboard(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(
        script(*TINY, "--updates", 10_000_000, "-o", output),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(repository),
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 120
    while not list(output.glob("checkpoints/update-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in error.splitlines() if line.startswith("vanilla-transformer: ")]
    assert len(lines) == 1
    assert f"--resume --output {output}" in lines[0]
    # What was being written is gone, and what stands is whole.
    assert not list(output.glob("**/.tmp-*"))
    recipes.load_model(max(output.glob("checkpoints/update-*")))


# Help


def test_every_option_is_explained(command: Command) -> None:
    application = typer.main.get_command(cli.app)
    verbs = application.commands  # type: ignore[attr-defined]
    assert sorted(verbs) == [
        "attend",
        "average",
        "convert",
        "evaluate",
        "export",
        "export-checkpoint",
        "predict",
        "push",
        "score",
        "serve",
        "suite",
        "tokenizer",
        "train",
        "translate",
    ]
    for verb, definition in verbs.items():
        help_page = command(verb, "--help")
        assert help_page.status == 0
        assert help_page.err == ""
        assert definition.help
        for parameter in definition.params:
            assert parameter.help, f"{verb}: {parameter.name}"
            spelling = max(parameter.opts, key=len)
            if spelling.startswith("-"):
                assert spelling in help_page.out
    assert all(verb in command("--help").out for verb in verbs)
    assert command() == command("--help")


# One line for everything wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["translate", "--frobnicate", "x"], "No such option: --frobnicate"),
        (["translate"], "Missing argument 'model'"),
        (["evaluate", "x"], "Missing argument 'data'"),
        (["tokenizer", "tiny_world"], "Missing option '--output'"),
        (["train"], "name a recipe: tiny-world, multi30k"),
        (["train", "--resume"], "--resume needs --output, the directory of the run"),
        (["average", "x"], "Missing option '--output'"),
        (["translate", "x", "--beams", "0"], "'--beams': Input should be greater than or equal"),
        (["translate", "x", "--beams", "two"], "'--beams': Input should be a valid integer"),
        (["translate", "x", "--n-best", "0"], "'--n-best'"),
        (["evaluate", "x", "y", "--limit", "0"], "'--limit'"),
        (["train", "tiny-world", "--updates", "0"], "'--updates'"),
        (["train", "tiny-world", "--max-minutes", "soon"], "'--max-minutes'"),
    ],
)
def test_wrong_arguments(command: Command, arguments: list[str], message: str) -> None:
    line = one_line(command(*arguments), status=2)
    assert message in line
    assert line.endswith("--help tells more)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "warm=3"], "TranslationRecipe has no field 'warm'"),
        (["--set", "training.warm=3"], "TrainingSettings has no field 'warm'"),
        (["--set", "training.warmup.x=3"], "warmup has no parts"),
        (["--set", "training.warmup=long"], "warmup ('long') must be int"),
        (["--set", "training.warmup=2.5"], "warmup (2.5) must be int"),
        (["--set", "training.warmup=true"], "warmup (True) must be int"),
        (["--set", "training.warmup"], "must be NAME=VALUE"),
        (["--set", "training.warmup=0"], "warmup (0) must be at least 1"),
        (["--set", "training.precision=fp8"], "must be one of no, bf16, fp16"),
        (["--precision", "fp8"], "must be one of no, bf16, fp16"),
        (["--max-minutes", "0"], "max_minutes (0.0) must be above 0"),
        (["--seed", "-1"], "seed (-1)"),
        (["--set", "architecture.dmodel=64"], "has no field 'dmodel'; did you mean d_model?"),
        (["--set", "architecture.vocab_size=64"], "architecture has no field 'vocab_size'"),
        (["--set", "architecture.d_model=30"], "d_model (30) must be divisible by num_heads (4)"),
        (["--set", "architecture.d_model=wide"], "'d_model' expected int, got str"),
        (["--set", "architecture=5"], "architecture (5) must be"),
        (["--set", "architecture.dropout=1.5"], "dropout (1.5) must lie in [0, 1)"),
        (["--set", "decoding.num_beams=0"], "num_beams (0)"),
        (["--set", "bleu.tokenizer=none"], "did you mean tokenize?"),
        (["--set", "target_lang=fr"], "tiny_world has English and German"),
        (["--set", "train_split=training"], "tiny_world has no split 'training'; it has test"),
        (["--set", "vocab_size=100"], "vocab_size (100) must be at least 261"),
        (["--data", "nowhere/nothing"], "nowhere/nothing is neither a local file or folder nor"),
        (["--data", "./nowhere"], "nowhere: no such file or folder"),
        (["--data", "a", "--data", "b", "--data", "c"], "give one corpus or two text files"),
        (["--tokenizer", "nowhere"], "nowhere: no such directory"),
        (["--init", "nowhere"], "nowhere is neither a directory nor a model"),
        (["--init", "x", "--tokenizer", "y"], "exclude each other"),
        (["--resume"], "holds no run: there is no recipe.json in it"),
        (["--driver", "horse"], "driver ('horse') must be one of loop, trainer"),
        (["--set", "validation_split=null", "--streaming"], "cannot be held out of streamed data"),
    ],
)
def test_wrong_training_options(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in one_line(command("train", "tiny-world", "-o", "run", *options))
    assert entries(tmp_path) == []


def test_unknown_recipe(command: Command) -> None:
    line = one_line(command("train", "tiny-word"))
    assert "no recipe is called 'tiny-word'; choose from tiny-world, multi30k-en-de" in line


def test_an_existing_run_is_left_alone(command: Command, run_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert "already holds a run; resume it" in one_line(command(*TINY, "-o", run_dir))
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_resuming_with_other_settings_is_refused(
    command: Command, run_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(run_dir, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    resume = ["train", "--resume", "-o", output, "--updates", 20]
    for setting in ("architecture.d_ff=64", "train_limit=90", "training.seed=3"):
        line = one_line(command(*resume, "--set", setting))
        assert "would be another run; begin a new run in another directory" in line
    assert "corpus cannot change" in one_line(command(*resume, "--data", "wmt14"))
    assert "initial_model cannot change" in one_line(command(*resume, "--init", run_dir))
    assert "exclude each other" in one_line(command(*resume, "--tokenizer", run_dir))
    other = ["train", "multi30k-en-de", "--resume", "-o", output]
    assert "is a run of tiny-world, not of multi30k-en-de" in one_line(command(*other))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_train_where_nothing_can_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = one_line(command(*TINY, "-o", tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\nc\n", b"x\ny\n", "text.en has 3 lines and"),
        (b"a\nb\xff\n", b"x\ny\n", "text.en, line 2, byte 2: 0xff is not UTF-8"),
        (b"\n\n", b"x\ny\n", "no pair with text on both sides among 2 rows (2 empty source)"),
        (b"a\n", None, "text.de: no such file"),
    ],
)
def test_bad_text_files(
    command: Command, tmp_path: Path, source: bytes, target: bytes | None, message: str
) -> None:
    paths = [tmp_path / "text.en", tmp_path / "text.de"]
    for path, text in zip(paths, (source, target), strict=True):
        if text is not None:
            path.write_bytes(text)
    output = tmp_path / "tokenizer"
    assert message in one_line(command("tokenizer", *paths, "-o", output, "--vocab-size", 300))
    assert not output.exists()


def test_missing_split_and_column(command: Command, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"en": "A dog.", "deu": "Ein Hund."}\n')
    line = one_line(command("evaluate", run_dir, tmp_path, "--split", "dev"))
    assert "has no split 'dev'; it has test" in line
    line = one_line(command("evaluate", run_dir, tmp_path))
    assert "line 1: no column 'de' among 'en', 'deu'; did you mean 'deu'?" in line


# Where a model cannot be loaded


def test_paths_that_are_no_model(command: Command, run_dir: Path, tmp_path: Path) -> None:
    assert "holds no model" in one_line(command("translate", tmp_path))
    (tmp_path / "file").write_text("x")
    assert "is a file" in one_line(command("translate", tmp_path / "file"))
    bare = tmp_path / "bare"
    shutil.copytree(run_dir / "model", bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    line = one_line(command("translate", bare))
    assert "holds no whole tokenizer; save the model's tokenizer there" in line


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_models(command: Command, run_dir: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(run_dir / "model", damaged)
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[: len(content) // 2])
    one_line(command("translate", damaged))


def test_a_mistyped_path_fails_at_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def unreachable(self: HfApi, name: str, **options: object) -> None:
        asked.append(name)
        raise RuntimeError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    verbs = [
        ["translate", "runs/nope"],
        ["evaluate", "runs/nope", "tiny_world"],
        ["predict", "runs/nope", "tiny_world", "-o", "x"],
    ]
    for verb in verbs:
        line = one_line(command(*verb))
        assert "runs/nope is neither a directory nor a model that the Hub gave" in line
        assert "Name or service not known" in line
    assert asked == ["runs/nope"] * 3
    assert entries(tmp_path) == []


def test_unknown_device(command: Command, run_dir: Path, models: Models) -> None:
    pair = ["--premise", "A dog.", "--hypothesis", "A cat."]
    for verb in (
        ["translate", run_dir],
        ["evaluate", models.spans, "tiny_world", "--limit", 2],
        ["predict", models.classes, *pair],
    ):
        line = one_line(command(*verb, "--device", "abacus"))
        assert "device ('abacus') cannot be used" in line


# Files for the output


def test_wrong_input_leaves_the_output_alone(
    command: Command, run_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.txt"
    stdin = b"A dog.\nA c\xe4t.\n"
    line = one_line(command("translate", run_dir, "-o", output, stdin=stdin))
    assert "standard input, line 2: byte 4 (0xe4) is not UTF-8" in line
    assert entries(tmp_path) == []
    output.write_text("old")
    (tmp_path / "in.txt").write_bytes(stdin)
    line = one_line(command("translate", run_dir, tmp_path / "in.txt", "-o", output))
    assert "in.txt, line 2: byte 4 (0xe4) is not UTF-8" in line
    assert "No such file" in one_line(command("translate", run_dir, "nowhere.txt", "-o", output))
    assert output.read_text() == "old"
    assert entries(tmp_path) == ["in.txt", "out.txt"]


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        (["translate", "x"], "--output"),
        (["evaluate", "x", "tiny_world"], "--predictions"),
        (["evaluate", "x", "tiny_world"], "--no-answer-probabilities"),
        (["evaluate", "x", "tiny_world"], "--errors"),
        (["evaluate", "x", "tiny_world"], "--json"),
        (["predict", "x", "tiny_world"], "--output"),
        (["predict", "x", "tiny_world", "--output", os.devnull], "--n-best"),
        (["predict", "x", "tiny_world", "--output", os.devnull], "--no-answer-probabilities"),
    ],
)
def test_output_that_cannot_be_written(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: list[str],
    option: str,
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("the model was looked at first")

    monkeypatch.setattr(recipes, "load_model", too_late)
    monkeypatch.setattr(prediction, "recipe_of", too_late)
    assert "is a directory; name a file" in one_line(command(*verb, option, tmp_path))
    nowhere = tmp_path / "no" / "file"
    line = one_line(command(*verb, option, nowhere))
    assert f"{nowhere} cannot be written: there is no directory" in line


def test_output_to_a_pipe_stays_a_pipe(command: Command, run_dir: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    done = command("translate", run_dir, "-o", pipe, "--max-over-source", 2, stdin=b"A dog.\n")
    assert done.status == 0, done.err
    assert pipe.is_fifo()
    assert reader.communicate(timeout=10)[0].endswith(b"\n")


def test_interrupt_in_process(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "load_model", interrupted)
    assert one_line(command("translate", "x"), status=130).endswith(": interrupted")


def test_a_full_device_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    monkeypatch.setattr(recipes, "load_model", full)
    line = one_line(command("translate", "x", "-o", tmp_path / "out.txt"))
    assert "out of memory. Tried to allocate" in line
    assert entries(tmp_path) == []
