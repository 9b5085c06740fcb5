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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import sacrebleu
import torch
import typer
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from vanilla_transformer import cli, recipes
from vanilla_transformer.data.tiny_world import generate_translation
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
    "training.validation_sentences=2",
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
        "too_long": 0,
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
    assert "test (3 sentences)" in done.out
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


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_dry_run_of_every_recipe(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise AssertionError("a dry run must not train or download")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "train_tokenizer", too_much)
    monkeypatch.setattr(recipes, "train", too_much)
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
    assert f"up to {recipe.training.max_source_tokens:,} source" in text
    assert f"updates {recipe.training.updates:,}, of which" in text
    assert f"{costs.total_flops:.2g} FLOP in all" in text
    assert f"about {cli.in_bytes(costs.memory.total)} a process, an estimate" in text
    assert ("epochs unknown" in text) == (name != "tiny-world")
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
    assert done.stdout.count("test (5 sentences)") == 1
    assert done.stdout.count(f"results: {output / 'results.json'}") == 1
    results = json.loads((output / "results.json").read_text())
    assert results["tests"]["test"]["sentences"] == 5
    assert results["environment"]["processes"] == 2
    model, vocabulary = recipes.load_model(output, "cpu")
    pairs, _ = recipes.load_parallel(data, "en", "de", "test")
    recipe = recipes.read_recipe(output / "recipe.json")
    scores, _ = recipes.score_corpus(model, vocabulary, pairs, recipe.decoding, recipe.bleu)
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
        "average",
        "evaluate",
        "export-checkpoint",
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
        (["--set", "warm=3"], "Recipe has no field 'warm'"),
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
    for verb in (["translate", "runs/nope"], ["evaluate", "runs/nope", "tiny_world"]):
        line = one_line(command(*verb))
        assert "runs/nope is neither a directory nor a model that the Hub gave" in line
        assert "Name or service not known" in line
    assert asked == ["runs/nope"] * 2


def test_unknown_device(command: Command, run_dir: Path) -> None:
    line = one_line(command("translate", run_dir, "--device", "abacus"))
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


@pytest.mark.parametrize("option", ["--output", "--predictions", "--json"])
def test_output_that_cannot_be_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(recipes, "load_model", too_late)
    verb = ["translate", "x"] if option == "--output" else ["evaluate", "x", "tiny_world"]
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
