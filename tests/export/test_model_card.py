"""Cards: what a run wrote, by name and without the way to it, with a command that is true."""

import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset
from huggingface_hub import ModelCard, parse_eval_result_entries

from vanilla_transformer import VanillaTransformerConfig, recipes
from vanilla_transformer import modeling_vanilla_transformer as modeling
from vanilla_transformer.cli import parsed
from vanilla_transformer.data.inference_corpora import LABELS
from vanilla_transformer.evaluation.natural_language_inference import (
    HypothesisOnly,
    evaluate_inference,
)
from vanilla_transformer.evaluation.question_answering import evaluate_question_answering
from vanilla_transformer.export.hub import check_card
from vanilla_transformer.export.model_card import (
    Run,
    arguments_of,
    content_of,
    energy_of,
    eval_results_of,
    public_name,
    render_card,
    without_paths,
    write_card,
)
from vanilla_transformer.recipes import (
    RECIPES,
    InferenceRecipe,
    PretrainingRecipe,
    QuestionAnsweringRecipe,
    Recipe,
    changed,
    write_recipe,
)
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.settings import TrainingSettings

TINY = {"d_model": 16, "d_ff": 32, "num_heads": 2, "num_encoder_layers": 1, "dropout": 0.2}
TRAINING = TrainingSettings(updates=300, max_source_tokens=4096, max_target_tokens=64)

QA = QuestionAnsweringRecipe(
    name="qa", description="Questions", architecture=TINY, training=TRAINING
)
NLI = InferenceRecipe(name="nli", description="Pairs", corpus="snli", training=TRAINING)
MLM = PretrainingRecipe(
    name="mlm", description="Masks", kind="inference", architecture=TINY, training=TRAINING
)

# Where no card may say that anything lies.
HOME = "/home/somebody/work"

PRETRAINED = {"accuracy": 41.0, "perplexity": 20.1}


@pytest.fixture(scope="module")
def script(repository: Path) -> Any:
    path = repository / "scripts" / "render_card.py"
    spec = importlib.util.spec_from_file_location("render_card", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in (QA, NLI, MLM):
        monkeypatch.setitem(RECIPES, recipe.name, recipe)


def write_run(
    directory: Path,
    recipe: Recipe,
    encoding: dict[str, int],
    tests: dict[str, Any],
    validation: dict[str, float],
    **results: Any,
) -> Path:
    """A finished run as `execute` leaves it, made up."""
    directory.mkdir()
    write_recipe(recipe, directory / "recipe.json")
    rows: list[dict[str, Any]] = []
    for update in (100, 200, 300):
        common = {"update": update, "epoch": update / 100, "seconds": 0.6 * update}
        rows.append({"kind": "train", **common, "loss": 4.0, "items_per_second": 90.0})
        scores = {name: value * update / 300 for name, value in validation.items()}
        rows.append({"kind": "validation", **common, "loss": 3.0, **scores, "is_final": False})
    (directory / "training_log.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), "utf-8"
    )
    content = {
        "recipe": recipe.name,
        "task": recipe.task,
        "parameters": 123_456,
        "vocabulary": 1000,
        "initialised": {"newly_initialised": [], "left_out": []},
        "training": {
            "updates": 300,
            "seconds": 180.0,
            "items_per_second": 91.6,
            "validation": {"loss": 3.0, **validation},
            "best": {},
        },
        "data": {
            "corpus": f"{recipe.corpus}/train.json and 2 more",
            "kept": 50,
            "skipped": {"empty question": 1},
            "rows": {"empty question": [f"{recipe.corpus}/train.json, article 1, question 3"]},
            "encoding": encoding,
        },
        "fitted": {},
        "tests": tests,
        "environment": {
            "device": "AMD EPYC",
            "threads": 2,
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "python": "3.11.7",
            "processes": 1,
        },
    }
    (directory / "results.json").write_text(json.dumps(content | results), "utf-8")
    VanillaTransformerConfig(vocab_size=1000, **TINY).save_pretrained(directory / "model")
    return directory


def rendered(
    script: Any, monkeypatch: pytest.MonkeyPatch, run: Path, *options: str
) -> tuple[str, dict[str, Any]]:
    """The card and the results beside it."""
    output = run.parent / "cards"
    arguments = [str(run), "--hardware", "a laptop", "--output", str(output), *options]
    monkeypatch.setattr("sys.argv", ["render_card.py", *arguments])
    script.main()
    name = json.loads((run / "recipe.json").read_text("utf-8"))["name"]
    written = {path.suffix for path in output.iterdir() if path.stem == name}
    assert written == {".md", ".json", ".jsonl", ".png"}
    card, results = ((output / f"{name}.{end}").read_text("utf-8") for end in ("md", "json"))
    for text in (card, results):
        assert "somebody" not in text
        assert "/home" not in text
        assert str(run.parent) not in text
    assert "\n\n\n" not in card
    return card, json.loads(results)


def repeated(card: str) -> Recipe:
    """The recipe that the card's command runs."""
    [line] = [line for line in card.splitlines() if line.startswith("| command")]
    program, verb, name, *arguments = shlex.split(line.split("`")[1])
    assert (program, verb) == ("vanilla-transformer", "train")
    recipe = RECIPES[name]
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        if option == "--set":
            field, _, text = value.partition("=")
            recipe = changed(recipe, field, parsed(text))
        else:
            fields = {"--data": "corpus", "--init": "initial_model"}
            recipe = changed(recipe, fields[option], value)
    return recipe


def question_scores(has_no_answer: bool) -> dict[str, Any]:
    questions = [
        {"id": str(n), "question": question, "answers": {"text": answers}}
        for n, (question, answers) in enumerate(
            [
                ("Who sees the dog?", ["the cat"]),
                ("Where is it?", ["at home"]),
                ("Who is there?", [] if has_no_answer else ["the cat"]),
            ]
        )
    ]
    answers = {"0": "cat", "1": "home", "2": ""}
    return {**evaluate_question_answering(questions, answers), "seconds": 4.2}


def inference_scores(unanswered: bool = False) -> dict[str, Any]:
    pairs = Dataset.from_dict(
        {
            "premise": ["a dog does not sleep", "a cat sleeps", "all dogs run", "he runs"],
            "hypothesis": ["a dog sleeps", "a cat sleeps", "some dogs run", "nobody runs"],
            "label": [2, 0, 0, 2],
        }
    ).cast_column("label", ClassLabel(names=list(LABELS)))
    predictions = [2, 0, 1, -1 if unanswered else 2]
    return {**evaluate_inference(pairs, predictions, hypothesis_only=HypothesisOnly(pairs))}


def test_card_of_question_answering(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        QA,
        corpus=f"{HOME}/squad_v2",
        has_no_answer=True,
        max_length=256,
        test_splits=("validation", "odd"),
        validation_split=None,
        initial_model=f"{HOME}/runs/words/model",
        training=dataclasses.replace(TRAINING, precision="bf16", warmup=50),
    )
    encoding = {"questions": 1300, "windows": 1424}
    run = write_run(
        tmp_path / "run",
        recipe,
        encoding,
        {"validation": question_scores(True)},
        {"f1": 60.0, "exact_match": 51.0},
        fitted={"no_answer_threshold": -1.25},
        initialised={
            "newly_initialised": ["qa_outputs.bias", "qa_outputs.weight"],
            "left_out": [f"lm_head.dense.{n}" for n in range(8)],
        },
    )
    stage = write_run(
        tmp_path / "words",
        dataclasses.replace(MLM, corpus=f"{HOME}/squad_v2", masked_share=0.2),
        {"texts": 900, "blocks": 950},
        {"held out": {"loss": 3.0, **PRETRAINED}},
        PRETRAINED,
    )
    other = tmp_path / "xquad.json"
    other.write_text(json.dumps(question_scores(False)), "utf-8")
    card, results = rendered(
        *(script, monkeypatch, run, "--stage", str(stage)),
        *("--evaluation", f"XQuAD, English={other}"),
    )
    assert repeated(card) == dataclasses.replace(recipe, corpus="squad_v2", initial_model="words")
    assert "\npipeline_tag: question-answering\n" in card
    assert "| validation | 3 | 66.67 [" in card
    assert "| XQuAD, English | 3 |" in card
    assert "as the official script counts (SQuAD 1.1 and 2.0)" in card
    assert "| no answer | 1 | 100.00 [100.0, 100.0] |" in card
    assert "| who | 2 | 100.00 [100.0, 100.0] |" in card
    assert "| training questions | 1,300 in 1,424 windows |" in card
    assert "| windows | 256 tokens, 128 of them shared" in card
    assert "| no answer | scores above -1.250, fitted" in card
    assert (
        "| starts from | words; newly initialised: `qa_outputs.bias`, `qa_outputs.weight`; left "
        "out: `lm_head.dense` (8 tensors) |" in card
    )
    assert "d_model 16, d_ff 32, num_heads 2, num_encoder_layers 1" in card
    assert "| speed | 92 questions a second |" in card
    assert "| 300 of at most 4,096 padded tokens and 64 examples |" in card
    assert (
        "| mlm (as words) | `vanilla-transformer train mlm --data squad_v2 --set masked_share=0.2`"
        " | 300 | 3.0 | loss 3.000, accuracy 41.00, perplexity 20.10 |" in card
    )
    assert "| update | minutes | validation loss | validation F1 | validation exact match |" in card
    assert "| 300 | 3.0 | 3.000 | 60.00 | 51.00 |" in card
    assert results["evaluations"]["XQuAD, English"]["version"] == "1.1"
    assert results["stages"][0]["updates"] == 300
    assert results["results"]["data"]["corpus"] == "squad_v2/train.json and 2 more"
    assert results["recipe"]["initial_model"] == "words"


def test_card_of_inference(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        NLI,
        {"read": 50, "kept": 48, "dropped_too_long": 2, "truncated": 0},
        {"test": inference_scores()},
        {"accuracy": 75.0, "macro_f1": 70.0},
    )
    hard = tmp_path / "hard.json"
    hard.write_text(json.dumps(inference_scores(unanswered=True)), "utf-8")
    card, _ = rendered(script, monkeypatch, run, "--evaluation", f"hard={hard}")
    assert repeated(card) == NLI
    assert "| test | 4 | 75.00 [30.1, 95.4] | 55.56 | 50.00 | 100.00 |" in card
    assert "| hard | 4 | 50.00 [" in card
    assert "| neutral | 0 | 0 | 0 | 0.00 | 0.00 | 0.00 |" in card
    assert "| entailment | 1 | 1 | 0 | 100.00 | 50.00 | 66.67 |" in card
    # One of the other set has no label.
    assert "| contradiction | 0 | 0 | 1 | 1 | 100.00 | 50.00 | 66.67 |" in card
    assert "| negation: in the premise only | 1 | 100.00 [" in card
    assert "| training pairs | 48 |" in card
    assert "| data | snli: train; validated on validation |" in card
    assert "validation accuracy | validation macro-F1 |" in card


def test_card_of_pretraining(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = dataclasses.replace(MLM, corpus=f"{HOME}/snli", kind="question_answering")
    run = write_run(
        tmp_path / "run",
        recipe,
        {"texts": 900, "blocks": 950},
        {"held out": {"loss": 3.0, **PRETRAINED}},
        PRETRAINED,
    )
    card, _ = rendered(script, monkeypatch, run, "--remark", "Stopped once.")
    assert repeated(card) == dataclasses.replace(recipe, corpus="snli")
    assert "| held out | 3.000 | 20.10 | 41.00 |" in card
    assert "| data | snli: train; validated on 2,000 texts held out of it |" in card
    assert "| training texts | 900 in 950 blocks of at most 256 tokens |" in card
    assert "| masked | 15 % of the tokens |" in card
    assert "| speed | 92 masked tokens a second |" in card
    assert "\n\nStopped once.\n\n" in card


def test_card_of_written_answers(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(QA, corpus="tiny_world", route="written", max_length=512)
    run = write_run(
        tmp_path / "run",
        recipe,
        {"read": 50, "kept": 49, "too_long": 1},
        {"test": question_scores(False)},
        {"perplexity": 3.0, "f1": 60.0, "exact_match": 51.0},
    )
    card, _ = rendered(script, monkeypatch, run)
    assert repeated(card) == recipe
    assert "| training pairs | 49 |" in card
    assert "| 300 of at most 64 padded target tokens |" in card
    assert "| perplexity | validation F1 (beam 1) | validation exact match (beam 1) |" in card


def test_card_of_the_translation_run_is_the_one_that_is_kept(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Path
) -> None:
    kept = repository / "model_cards"
    name = "multi30k-en-de-hour"
    content = json.loads((kept / f"{name}.json").read_text("utf-8"))
    results = content["results"]
    translation = {"bleu": 37.27, "perplexity": 6.7}
    texts = {field: content["recipe"][field] for field in ("description", "published")}
    recipe = dataclasses.replace(RECIPES[name], corpus=f"{HOME}/multi30k_tok", **texts)
    run = write_run(
        tmp_path / "run",
        recipe,
        {"read": 29_000, "kept": 29_000, "too_long": 0},
        results["tests"],
        translation,
        environment=results["environment"],
        vocabulary=results["vocabulary"],
        parameters=results["parameters"],
    )
    card, _ = rendered(script, monkeypatch, run)
    # What depends on neither the log nor the words typed beside it.
    before = (kept / f"{name}.md").read_text("utf-8")
    expected = [
        line
        for line in before.partition("![Learning curve]")[0].splitlines()
        if not line.startswith(
            (
                "| hardware",
                "| energy",
                "| updates",
                "| time",
                "| speed",
                "The run was",
                "- Training ended",
            )
        )
    ]
    lines = card.splitlines()
    assert [line for line in expected if line not in lines] == []
    same = tmp_path / "same.json"
    same.write_text(json.dumps(results["tests"]["test_2016_flickr"]), "utf-8")
    changed_beam = tmp_path / "greedy.json"
    greedy = json.loads(same.read_text("utf-8"))
    greedy["decoding"]["num_beams"] = 1
    changed_beam.write_text(json.dumps(greedy), "utf-8")
    card, _ = rendered(
        *(script, monkeypatch, run, "--evaluation", f"again={same}"),
        *("--evaluation", f"greedy={changed_beam}"),
    )
    assert "| again | 1000 | 36.97 |" in card
    assert "again differs" not in card
    assert "greedy differs: Signatures:" in card
    assert "Beam 1, alpha 0.6" in card


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/me/data/squad", "squad"),
        ("~/data/squad.json", "squad.json"),
        ("runs/mlm/model", "mlm"),
        ("/home/me/runs/mlm/best", "mlm/best"),
        ("rajpurkar/squad", "rajpurkar/squad"),
        ("snli", "snli"),
        ("tiny_world", "tiny_world"),
    ],
)
def test_names_without_paths(place: str, name: str) -> None:
    assert public_name(place) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/somebody/x/train.json, line 3", "train.json, line 3"),
        ("read ../data/x.json and ~/y/z.csv", "read x.json and z.csv"),
        ("https://a.org/b/c and/or 1/2 of wmt/wmt14", "https://a.org/b/c and/or 1/2 of wmt/wmt14"),
        ("test </s> a / b", "test </s> a / b"),
        ("a/b/c.json", "c.json"),
    ],
)
def test_no_folder_is_left_in_a_text(text: str, expected: str) -> None:
    assert without_paths({"x": [text, 1]}, ["a/b/c.json"]) == {"x": [expected, 1]}


def test_a_command_that_needs_its_changes_in_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    # A written answer and `has_no_answer` exclude each other, and `route` is the earlier field.
    monkeypatch.setitem(RECIPES, "qa", dataclasses.replace(QA, has_no_answer=True))
    arguments = arguments_of(dataclasses.replace(QA, route="written"))
    assert arguments == ["--set", "has_no_answer=false", "--set", "route=written"]


def test_what_has_no_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recipe is called 'mine'"):
        arguments_of(dataclasses.replace(QA, name="mine"))
    write_recipe(QA, tmp_path / "recipe.json")
    with pytest.raises(ValueError, match="no results"):
        Run.read(tmp_path)
    assert recipes.read_recipe(tmp_path / "recipe.json") == QA


# --------------------------------------------------------------- what stands in every kept card


def test_kept_cards_are_what_their_files_give(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, repository: Path, tmp_path: Path
) -> None:
    cards = Path(shutil.copytree(repository / "model_cards", tmp_path / "cards"))
    monkeypatch.setattr("sys.argv", ["render_card.py", "--again", "--output", str(cards)])
    script.main()
    assert capsys.readouterr().out == "", "make them so: python scripts/render_card.py --again"
    path = cards / "nli-small.json"
    path.write_text(path.read_text("utf-8").replace("one core of an", "two cores of an"), "utf-8")
    script.main()
    assert capsys.readouterr().out.split() == [str(cards / "nli-small.md")]
    assert "| hardware | two cores of an AMD EPYC" in (cards / "nli-small.md").read_text("utf-8")


def test_an_older_file_is_rendered_with_what_it_has(repository: Path) -> None:
    path = repository / "model_cards" / "multi30k-en-de-hour.json"
    content = json.loads(path.read_text("utf-8"))
    assert "task" not in content["recipe"]
    del content["results"]["environment"]["threads"]
    del content["results"]["training"]["target_tokens_per_second"]
    del content["remark"]
    card = render_card(content, [], has_curve=False)
    for row in ("| energy", "| speed", "| data set", "![Learning curve]", "None", "The run was"):
        assert row not in card
    assert "| test_2016_flickr | 1000 | 36.97 |" in card


def hub_run(directory: Path, **results: Any) -> Path:
    """A run on data of the Hub."""
    recipe = dataclasses.replace(QA, corpus="squad", test_splits=("validation",))
    counts = {"questions": 1300, "windows": 1424}
    run = write_run(directory, recipe, counts, {"validation": question_scores(False)}, {"f1": 1.0})
    path = run / "results.json"
    content = json.loads(path.read_text("utf-8"))
    content["data"] |= {"corpus": "rajpurkar/squad train", **results}
    path.write_text(json.dumps(content), "utf-8")
    return run


def test_both_formats_of_the_scores(tmp_path: Path) -> None:
    content = content_of(Run.read(hub_run(tmp_path / "run", revision="5fe3c6b")))
    card = ModelCard(render_card(content, []))
    data = card.data
    assert data.datasets == ["rajpurkar/squad"]
    assert (data.pipeline_tag, data.library_name) == ("question-answering", "transformers")
    assert data.metrics == ["exact_match", "f1"]
    exact, f1 = data.eval_results
    assert (exact.dataset_type, exact.dataset_split) == ("rajpurkar/squad", "validation")
    assert (exact.dataset_revision, exact.metric_type) == ("5fe3c6b", "exact_match")
    expected = question_scores(False)
    assert (exact.metric_value, f1.metric_value) == (
        round(expected["exact_match"], 2),
        round(expected["f1"], 2),
    )
    assert f1.metric_args == {"version": "1.1"}
    assert "| data set | rajpurkar/squad, commit 5fe3c6b |" in card.text
    entries = parse_eval_result_entries(yaml.safe_load(eval_results_of(content) or ""))
    assert [(entry.dataset_id, entry.dataset_revision) for entry in entries] == [
        ("rajpurkar/squad", "5fe3c6b")
    ] * 2
    assert [entry.task_id for entry in entries] == ["validation_exact_match", "validation_f1"]
    assert [entry.value for entry in entries] == [exact.metric_value, f1.metric_value]


def test_scores_on_other_data_are_no_results_of_a_hub_set(tmp_path: Path, repository: Path) -> None:
    run = Run.read(hub_run(tmp_path / "run", corpus=f"{HOME}/squad/train.json"))
    content = content_of(run, evaluations={"mine": question_scores(False)})
    assert eval_results_of(content) is None
    results = ModelCard(render_card(content, [])).data.eval_results
    assert {result.dataset_type for result in results} == {"squad", "mine"}
    assert {result.dataset_revision for result in results} == {None}
    kept = ModelCard.load(repository / "model_cards" / "multi30k-en-de-hour.md").data
    assert kept.language == ["en", "de"]
    assert kept.eval_results[0].metric_value == 36.97
    signature = "nrefs:1|case:lc|eff:no|tok:none|smooth:exp|version:2.6.0"
    assert kept.eval_results[0].metric_args == {"signature": signature}
    # Sets that the model was evaluated on later are none of the corpus, and not one set.
    kept = ModelCard.load(repository / "model_cards" / "nli-small.md").data
    sets = {result.dataset_type for result in kept.eval_results}
    assert {"nli_small", "SNLI test", "HANS"} <= sets


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"device": "AMD EPYC 9354", "threads": 4}, "about 40 Wh"),
        ({"device": "AMD EPYC 9354", "threads": 4, "processes": 2}, "about 80 Wh"),
        ({"device": "NVIDIA H200", "threads": 8, "processes": 2}, "about 1,400 Wh"),
        ({"device": "NVIDIA H100 PCIe", "threads": 8}, "about 350 Wh"),
        ({"device": "NVIDIA Nothing 1", "threads": 8}, None),
        ({"device": "AMD EPYC 9354"}, None),
    ],
)
def test_energy(environment: dict[str, Any], expected: str | None) -> None:
    found = energy_of({"environment": environment, "training": {"seconds": 3600.0}})
    assert (found and found.partition(", est")[0]) == expected
    assert found is None or "estimated and not measured" in found


def test_exports_stand_in_the_card(tmp_path: Path) -> None:
    agreement = {
        "search": "beam 4", "sentences": 1000, "same": 997, "ties": 3,
        "bleu_against_native": 100.0, "bleu": 30.5, "native_bleu": None,
    }  # fmt: skip
    record = {"format": "onnx", "precision": "float32", "agreement": [agreement]}
    card = render_card(content_of(Run.read(hub_run(tmp_path / "run")), exports=[record]), [])
    row = "| onnx | float32 | beam 4 | 1,000 | 997 | 3 | 100.00 | 30.50 | – |"
    assert row in card


HEADS = {
    "translation": (modeling.VanillaTransformerForConditionalGeneration, "multi30k-en-de-hour"),
    "inference": (modeling.VanillaTransformerForSequenceClassification, "nli-small"),
    "question_answering": (modeling.VanillaTransformerForQuestionAnswering, "squad-v1-cpu"),
}


@pytest.mark.parametrize("task", HEADS)
def test_the_snippet_runs(
    task: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    head, name = HEADS[task]
    card = (repository / "model_cards" / f"{name}.md").read_text("utf-8")
    snippet = card.partition("```python\n")[2].partition("```")[0]
    # Where the run leaves it.
    directory = tmp_path / "runs" / name / "model"
    tokenizer = train_tokenizer(["A dog runs on the grass."], vocab_size=270)
    torch.manual_seed(0)
    config = VanillaTransformerConfig(
        vocab_size=len(tokenizer), num_decoder_layers=1, num_segments=2, **TINY
    )
    head(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "card", "exec"), {})
    printed = capsys.readouterr().out
    word = {"translation": "translation_text", "inference": "label"}.get(task, "answer")
    assert f"'{word}'" in printed


def test_what_a_repository_gets(tmp_path: Path) -> None:
    run = hub_run(tmp_path / "run", revision="5fe3c6b")
    folder = tmp_path / "folder"
    folder.mkdir()
    write_card(run, folder, "ada/reader")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"README.md", "qa.json", "qa.jsonl", ".eval_results/qa.yaml"}
    check_card(folder / "README.md")
    card = (folder / "README.md").read_text("utf-8")
    assert 'pipeline("question-answering", model="ada/reader", trust_remote_code=True)' in card
    assert "| hardware | 1 × AMD EPYC" in card
    # All that is linked is there.
    linked = set(re.findall(r"\]\(([\w.-]+)\)", card))
    assert linked == {"qa.json", "qa.jsonl"}
