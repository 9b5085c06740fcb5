"""Models, tokenizers, runs and data sets to the loopback Hub and back, and what can go wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import ADA, BOB, READER
from huggingface_hub import HfApi
from loopback import Fault, LoopbackHub
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    cli,
)
from vanilla_transformer.export import hub as export_hub
from vanilla_transformer.export.hub import check_card, push
from vanilla_transformer.recipes import RECIPES, write_recipe
from vanilla_transformer.registration import AUTO_CLASSES
from vanilla_transformer.tokenization import train_tokenizer

CODE = {
    "configuration_vanilla_transformer.py",
    "modeling_vanilla_transformer.py",
    "pipeline_vanilla_transformer.py",
}
CARD = "---\nlicense: apache-2.0\n---\n\n# A model\n\nIt ends each sentence with `</s>`.\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with tokenizer and card, as a run leaves it."""
    directory = tmp_path_factory.mktemp("saved") / "model"
    tokenizer = train_tokenizer(["a cat sits here", "eine Katze sitzt hier"], vocab_size=270)
    torch.manual_seed(0)
    config = VanillaTransformerConfig(
        vocab_size=len(tokenizer), d_model=16, d_ff=24, num_heads=2, num_encoder_layers=1,
        num_decoder_layers=1,
    )  # fmt: skip
    VanillaTransformerForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text(CARD)
    return directory


@pytest.fixture
def model_directory(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to do damage to."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=ids.ne(0), decoder_input_ids=ids).logits


def run(program: str, environment: dict[str, str], directory: Path) -> str:
    """Output of a Python program in a process of its own, where this package is not installed.

    Its finder stands in the site directory, and the checkout is not the working directory.
    """
    hidden = (
        "import sys\n"
        "sys.meta_path = [one for one in sys.meta_path if '__editable__' not in str(one)]\n"
        "sys.path = [one for one in sys.path if '__editable__' not in one]\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('vanilla_transformer') is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden + program],
        capture_output=True, text=True, env=environment, cwd=directory, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# ------------------------------------------------------------------------- push and come back


def test_push_and_come_back(online: LoopbackHub, model_directory: Path, transfer: str) -> None:
    before, said = contents(model_directory), []
    (model_directory / "training_args.bin").write_bytes(b"a pickle")
    pushed = push(model_directory, "ada/model", message="First", report=said.append)
    assert pushed.commit_url == f"{online.endpoint}/ada/model/commit/{pushed.oid}"
    head = online.head("ada/model")
    assert (head.oid, head.title) == (pushed.oid, "First")
    assert set(head.files) == {*before, *CODE, ".gitattributes"}
    assert any("training_args.bin" in line for line in said)
    # The user's own directory is as it was.
    assert contents(model_directory) == {**before, "training_args.bin": b"a pickle"}
    loaded = AutoModelForSeq2SeqLM.from_pretrained("ada/model")
    own = AutoModelForSeq2SeqLM.from_pretrained(model_directory)
    assert type(loaded) is VanillaTransformerForConditionalGeneration
    assert torch.equal(logits(loaded), logits(own))
    tokenizer = AutoTokenizer.from_pretrained("ada/model")
    stock = AutoTokenizer.from_pretrained(model_directory)
    assert tokenizer("a cat").input_ids == stock("a cat").input_ids
    # Again with nothing changed: no commit.
    assert push(model_directory, "ada/model").oid == pushed.oid


def test_revision_private_and_pull_request(online: LoopbackHub, model_directory: Path) -> None:
    first = push(model_directory, "ada/model", private=True)
    assert online.repos["model", "ada/model"].is_private
    assert not HfApi(endpoint=online.endpoint, token=BOB).repo_exists("ada/model")
    model = AutoModelForSeq2SeqLM.from_pretrained(model_directory)
    with torch.no_grad():
        model.model.shared.weight.add_(1)
    model.save_pretrained(model_directory)
    second = push(model_directory, "ada/model", revision="next")
    assert online.head("ada/model").oid == first.oid
    for revision in ("next", second.oid):
        loaded = AutoModelForSeq2SeqLM.from_pretrained("ada/model", revision=revision)
        assert torch.equal(logits(loaded), logits(model))
    main = AutoModelForSeq2SeqLM.from_pretrained("ada/model")
    assert not torch.equal(logits(main), logits(model))
    with pytest.raises(OSError, match="not a valid git identifier"):
        AutoModelForSeq2SeqLM.from_pretrained("ada/model", revision="unknown")


def test_pull_request_to_somebody_else(online: LoopbackHub, model_directory: Path) -> None:
    first = push(model_directory, "ada/model")
    (model_directory / "README.md").write_text(CARD + "\nBy Bob.\n")
    with pytest.raises(ValueError, match=r"may not write to ada/model; .*--create-pr"):
        push(model_directory, "ada/model", token=BOB)
    proposed = push(model_directory, "ada/model", token=BOB, create_pr=True)
    assert proposed.pr_url == f"{online.endpoint}/ada/model/discussions/1"
    assert online.head("ada/model").oid == first.oid
    card = huggingface_hub.hf_hub_download("ada/model", "README.md", revision="refs/pr/1")
    assert "By Bob." in Path(card).read_text()


def test_weights_of_two_models_are_never_mixed(online: LoopbackHub, model_directory: Path) -> None:
    push(model_directory, "ada/model")
    model = AutoModelForSeq2SeqLM.from_pretrained(model_directory)
    (model_directory / "model.safetensors").unlink()
    model.save_pretrained(model_directory, max_shard_size="5KB")
    push(model_directory, "ada/model")
    names = set(online.head("ada/model").files)
    assert "model.safetensors.index.json" in names
    assert "model.safetensors" not in names
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained("ada/model")), logits(model))


def test_stock_ways_of_transformers(online: LoopbackHub, saved: Path, tmp_path: Path) -> None:
    """`push_to_hub` of model and tokenizer, and that of `Trainer`."""
    model = AutoModelForSeq2SeqLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model.push_to_hub("ada/stock")
    tokenizer.push_to_hub("ada/stock")
    loaded = AutoModelForSeq2SeqLM.from_pretrained("ada/stock")
    assert torch.equal(logits(loaded), logits(model))
    assert AutoTokenizer.from_pretrained("ada/stock").vocab_size == tokenizer.vocab_size
    ids = tokenizer("a cat", return_tensors="pt").input_ids[0]
    arguments = TrainingArguments(
        str(tmp_path / "run"), push_to_hub=True, hub_model_id="ada/trained", max_steps=2,
        save_steps=1, report_to="none", use_cpu=True, hub_token=ADA, hub_strategy="every_save",
    )  # fmt: skip
    data = [{"input_ids": ids, "labels": ids}] * 4
    trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
    loaded = AutoModelForSeq2SeqLM.from_pretrained("ada/trained")
    assert torch.equal(logits(loaded), logits(trainer.model))
    assert "README.md" in online.head("ada/trained").files


def test_where_the_package_is_not_installed(
    online: LoopbackHub,
    saved: Path,
    tmp_path: Path,
    clean_environment: Callable[..., dict[str, str]],
) -> None:
    """Every head, from one repository; saved again, the code is still there."""
    push(saved, "ada/model")
    heads = {auto.__name__: head.__name__ for auto, head in AUTO_CLASSES.items()}
    program = f"""
import torch, transformers
for auto, head in {heads!r}.items():
    model = getattr(transformers, auto).from_pretrained("ada/model", trust_remote_code=True)
    assert type(model).__name__ == head, (auto, type(model))
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    if auto == "AutoModelForSeq2SeqLM":
        model.save_pretrained("again")
        again = transformers.AutoModelForQuestionAnswering
        again = again.from_pretrained("again", trust_remote_code=True)
        assert type(again).__name__.endswith("ForQuestionAnswering")
        ids = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=ids.ne(0), decoder_input_ids=ids).logits
        torch.save(logits, "logits.pt")
tokenizer = transformers.AutoTokenizer.from_pretrained("ada/model", trust_remote_code=True)
print(type(tokenizer).__module__.split(".")[0], tokenizer("a cat").input_ids)
try:
    transformers.AutoModel.from_pretrained("ada/model", trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("code of the Hub has been run unasked")
"""
    out = run(program, clean_environment(), tmp_path)
    ids = AutoTokenizer.from_pretrained(saved)("a cat").input_ids
    assert out.splitlines()[-1] == f"transformers {ids}"
    own = AutoModelForSeq2SeqLM.from_pretrained(saved)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(own))
    again = tmp_path / "again"
    assert {path.name for path in again.glob("*.py")} == CODE
    # With the package imported, it can be pushed on, and names its own code again.
    shutil.copy(saved / "README.md", again)
    push(again, "ada/again")
    head = online.head("ada/again")
    config = json.loads(online.store.content(head.files["config.json"]))
    assert set(head.files) >= CODE
    assert config["auto_map"]["AutoModel"] == "modeling_vanilla_transformer.VanillaTransformerModel"
    assert set(config["auto_map"]) == {"AutoConfig", *heads}


def test_datasets(
    hub: LoopbackHub,
    tmp_path: Path,
    repository: Path,
    clean_environment: Callable[..., dict[str, str]],
) -> None:
    program = """
import datasets
rows = {"translation": [{"en": f"a cat {n}", "de": f"eine Katze {n}"} for n in range(50)]}
data = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows))
data["test"] = data["train"].select(range(5))
data.push_to_hub("ada/pairs")
data["test"].push_to_hub("ada/pairs", split="validation")
for split, rows in {"train": 50, "test": 5, "validation": 5}.items():
    found = datasets.load_dataset("ada/pairs", split=split)
    assert len(found) == rows, (split, found)
streamed = datasets.load_dataset("ada/pairs", split="train", streaming=True)
print(next(iter(streamed))["translation"]["de"])
# The card of a run names the commit of its data.
sys.path.insert(0, {repository!r})
from vanilla_transformer.data.corpora import load_parallel
pairs, report = load_parallel("ada/pairs", "en", "de", "train")
print(pairs[0]["target"], report.corpus, report.revision, sep=", ")
"""
    program = program.replace("{repository!r}", repr(str(repository)))
    first, second = run(program, clean_environment(), tmp_path).splitlines()[-2:]
    head = hub.head("ada/pairs", "dataset")
    assert first == "eine Katze 0"
    assert second == f"eine Katze 0, ada/pairs train, {head.oid}"
    assert "data/train-00000-of-00001.parquet" in head.files


def test_command_line(
    online: LoopbackHub, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def call(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["vanilla-transformer", "push", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        # Remarks of the model's directory are printed before it, progress goes to stderr.
        out, err = capsys.readouterr()
        return int(left.value.code), (err if left.value.code else out).splitlines()

    address = ("--hub-endpoint", online.endpoint)
    status, lines = call(str(saved.parent), "ada/model", *address, "--private", "--message", "One")
    head = online.head("ada/model")
    assert (status, lines[-1]) == (0, f"commit: {online.endpoint}/ada/model/commit/{head.oid}")
    assert (head.title, online.repos["model", "ada/model"].is_private) == ("One", True)
    status, lines = call(str(saved), "ada/model", *address, "--revision", "next", "--create-pr")
    assert (status, "next" in lines[-1]) == (1, True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    status, lines = call(str(saved), "ada/model", *address)
    assert status == 1
    assert lines[-1].startswith("vanilla-transformer: the Hub does not know the token")


@pytest.fixture
def run_directory(saved: Path, repository: Path, tmp_path: Path) -> Path:
    """A run, with the results of a real one and a small model, which has no card yet."""
    name = "multi30k-en-de-hour"
    kept = repository / "model_cards"
    directory = tmp_path / "run"
    shutil.copytree(saved, directory / "model", ignore=shutil.ignore_patterns("README.md"))
    content = json.loads((kept / f"{name}.json").read_text("utf-8"))
    (directory / "results.json").write_text(json.dumps(content["results"]), "utf-8")
    shutil.copy(kept / f"{name}.jsonl", directory / "training_log.jsonl")
    shutil.copy(kept / f"{name}.png", directory / "training.png")
    write_recipe(
        dataclasses.replace(RECIPES[name], corpus="multi30k_tok"), directory / "recipe.json"
    )
    return directory


def test_a_run_is_pushed_with_its_card(
    online: LoopbackHub,
    run_directory: Path,
    tmp_path: Path,
    clean_environment: Callable[..., dict[str, str]],
) -> None:
    before = contents(run_directory)
    # Without the owner, who is whoever the token is of.
    push(run_directory, "small")
    head = online.head("ada/small")
    own = {f"multi30k-en-de-hour.{kind}" for kind in ("json", "jsonl", "png")}
    assert own | CODE | {"README.md", "model.safetensors"} <= set(head.files)
    assert contents(run_directory) == before
    info = HfApi(endpoint=online.endpoint, token=ADA).model_info("ada/small")
    [bleu] = [
        result for result in info.card_data.eval_results
        if (result.metric_type, result.dataset_split) == ("bleu", "test_2016_flickr")
    ]  # fmt: skip
    assert bleu.metric_value == 36.97
    assert bleu.metric_args["signature"].startswith("nrefs:1|case:lc")
    card = online.store.content(head.files["README.md"]).decode()
    snippet = card.partition("```python\n")[2].partition("```")[0]
    assert 'model="ada/small", trust_remote_code=True' in snippet
    assert run(snippet, clean_environment(), tmp_path).startswith("[{'translation_text': ")


def test_a_run_whose_card_cannot_be_rendered(online: LoopbackHub, run_directory: Path) -> None:
    (run_directory / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"the card of .* cannot be rendered .*write one yourself"):
        push(run_directory, "ada/model")
    (run_directory / "results.json").unlink()
    with pytest.raises(ValueError, match=r"has no results\.json: finish the run with --resume"):
        push(run_directory, "ada/model")
    assert online.requests == []


# ----------------------------------------------------------------------------- what is refused


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def cut_short(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def of_another_size(directory: Path) -> None:
    edit_config(directory, d_ff=32)


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_a_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.weight"]
    save_file(weights, directory / "model.safetensors")


def shard_is_missing(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no model": (shutil.rmtree, "holds no model"),
    "no weights": (remove("model.safetensors"), r"has no model\.safetensors"),
    "no card": (remove("README.md"), r"README\.md is missing"),
    "cut short": (cut_short, r"cannot be read .*cut short"),
    "no weights at all": (
        lambda directory: (directory / "model.safetensors").write_bytes(b""),
        r"cannot be read .*cut short",
    ),
    "another size": (of_another_size, r"fc1\.weight is \[24, 16\] for \[32, 16\]"),
    "a weight missing": (without_a_weight, r"encoder\.layers\.0\.fc1\.weight is missing"),
    "a shard missing": (shard_is_missing, "files that are not there: model-00001"),
    "no JSON": (lambda directory: (directory / "config.json").write_text("{"), "none of this"),
    "a list": (lambda directory: (directory / "config.json").write_text("[]"), "none of this"),
    "hostile": (lambda directory: edit_config(directory, d_model=-8), "none of this"),
    "BERT": (lambda directory: edit_config(directory, model_type="bert"), "'bert' and not"),
    "no class": (lambda directory: edit_config(directory, architectures=None), "must name one of"),
    "another tokenizer": (
        lambda directory: (
            train_tokenizer(["abc"] * 9, vocab_size=262).save_pretrained(directory)
            and edit_vocabulary(directory)
        ),
        "save the tokenizer that the model was trained with",
    ),
    "half a tokenizer": (
        lambda directory: (directory / "tokenizer.json").write_text('{"version": "1.0"'),
        "holds no whole tokenizer",
    ),
}


def edit_vocabulary(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([f"new{number}" for number in range(300)])
    tokenizer.save_pretrained(directory)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_that_is_not_whole(online: LoopbackHub, model_directory: Path, damage: str) -> None:
    do, message = DAMAGES[damage]
    do(model_directory)
    with pytest.raises(ValueError, match=message):
        push(model_directory, "ada/model")
    assert online.requests == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[More Information Needed]", r"line 9: '\[More Information Needed\]' is a placeholder"),
        ("trained for TODO hours", "'TODO' is a placeholder"),
        ("{{ model_name }}", "'{{' is a placeholder"),
        ("scores <…> BLEU", "'<…>' is a placeholder"),
        ("from_pretrained('<your model>')", "'<your model>' is a placeholder"),
        ("from_pretrained('<MODEL_NAME>')", "'<MODEL_NAME>' is a placeholder"),
    ],
)
def test_an_unfinished_card(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "README.md").write_text(f"{CARD}\n{text}\n", "utf-8")
    with pytest.raises(ValueError, match=message):
        check_card(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# No metadata\n", "says no license"),
        ("---\nlanguage: de\n---\n", "says no license"),
        ("---\n- a list\n---\n", "metadata cannot be read"),
        ("---\na: [b\n---\n", "metadata cannot be read"),
    ],
)
def test_a_card_without_metadata(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_card(tmp_path / "README.md")


def test_cards_of_this_repository_are_finished(repository: Path) -> None:
    cards = sorted((repository / "model_cards").glob("*.md"))
    assert cards
    for card in cards:
        check_card(card)


def test_a_tokenizer_may_be_missing(online: LoopbackHub, model_directory: Path) -> None:
    said: list[str] = []
    for path in model_directory.glob("tokenizer*"):
        path.unlink()
    push(model_directory, "ada/model", report=said.append)
    assert any(line.startswith("there is no tokenizer.json") for line in said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token": "hf_wrong"}, "the Hub does not know the token"),
        ({"token": READER}, "the token of ada may only read"),
        ({"token": BOB}, "the token may not write to ada/model"),
        ({"endpoint": "http://127.0.0.1:9"}, "the Hub cannot be reached"),
        ({"repo_id": "ada/no spaces"}, r"repository \('ada/no spaces'\) must be OWNER/NAME"),
        ({"revision": "refs/pr/7"}, "is not on the Hub"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_who_may_not_push(
    online: LoopbackHub, saved: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        push(saved, **{"repo_id": "ada/model", **arguments})
    for repo in online.repos.values():
        assert set(repo.refs["refs/heads/main"].files) == {".gitattributes"}


def test_no_token(online: LoopbackHub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match=r"there is no token to push with; .*hf auth login"):
        push(saved, "ada/model")
    assert online.requests == []


def test_a_public_repository_does_not_become_private(online: LoopbackHub, saved: Path) -> None:
    HfApi(endpoint=online.endpoint, token=ADA).create_repo("ada/model")
    with pytest.raises(ValueError, match="is there and public"):
        push(saved, "ada/model", private=True)
    assert set(online.head("ada/model").files) == {".gitattributes"}


# -------------------------------------------------------------------------- the Hub gives way


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_hub, "_WAITS", (0.0, 0.0))


@pytest.mark.usefixtures("_no_waiting")
def test_the_hub_fails_for_a_moment(online: LoopbackHub, saved: Path, transfer: str) -> None:
    """The client's own retries take the upload's failure, this package's that of the commit."""
    online.faults += [Fault("PUT", "/large/", 502), Fault("POST", "/commit/", 503, times=2)]
    pushed = push(saved, "ada/model")
    assert online.head("ada/model").oid == pushed.oid
    assert [fault.times for fault in online.faults] == [transfer == "xet", 0]
    own = AutoModelForSeq2SeqLM.from_pretrained(saved)
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained("ada/model")), logits(own))


@pytest.mark.usefixtures("_no_waiting")
def test_the_hub_fails_for_good(online: LoopbackHub, saved: Path, transfer: str) -> None:
    before = contents(saved)
    online.faults.append(Fault("POST", "/commit/", 500, times=3))
    with pytest.raises(ValueError, match=r"refused .*\(500: .*run the push again"):
        push(saved, "ada/model")
    # No half model, though the weights have arrived.
    assert set(online.head("ada/model").files) == {".gitattributes"}
    online.requests.clear()
    push(saved, "ada/model")
    assert not any(request.startswith("PUT") for request in online.requests)
    assert "model.safetensors" in online.head("ada/model").files
    assert contents(saved) == before


@pytest.mark.usefixtures("_no_waiting")
def test_only_the_answer_is_lost(online: LoopbackHub, saved: Path) -> None:
    online.faults.append(Fault("POST", "/commit/", 504, is_late=True))
    pushed = push(saved, "ada/model")
    assert online.head("ada/model").oid == pushed.oid
    assert online.head("ada/model").parent.title == "initial commit"


def test_somebody_else_pushes_meanwhile(
    online: LoopbackHub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(api: HfApi, *arguments: Any, **options: Any) -> Any:
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id="lab/model")
        return preupload(api, *arguments, **options)

    preupload = HfApi.list_repo_files
    monkeypatch.setattr(HfApi, "list_repo_files", meanwhile)
    with pytest.raises(ValueError, match="lab/model has changed during the push"):
        push(saved, "lab/model")
    assert set(online.head("lab/model").files) == {".gitattributes", "a.txt"}


def test_a_download_breaks_off(online: LoopbackHub, saved: Path, transfer: str) -> None:
    push(saved, "ada/model")
    online.faults.append(Fault("GET", "/large/", cut=100))
    own = AutoModelForSeq2SeqLM.from_pretrained(saved)
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained("ada/model")), logits(own))


@pytest.mark.parametrize("damage", ["a file missing", "cut short"])
def test_a_broken_repository(online: LoopbackHub, model_directory: Path, damage: str) -> None:
    """As others' tools may leave one behind: a clear error, nothing half loaded."""
    (remove("model.safetensors") if damage == "a file missing" else cut_short)(model_directory)
    api = HfApi(endpoint=online.endpoint, token=ADA)
    api.create_repo("ada/broken")
    api.upload_folder(repo_id="ada/broken", folder_path=model_directory)
    # Of safetensors, or OSError of transformers.
    with pytest.raises(Exception, match=r"does not appear to have a file|not fully covered"):
        AutoModelForSeq2SeqLM.from_pretrained("ada/broken")
