"""Fuzzing: hostile files, options and requests, by the thousand, each judged by the same rules.

    python scripts/fuzz.py readers --minutes 10 --seed 1 --corpus findings --record
    python scripts/fuzz.py --replay tests/fuzzing/corpus

Each case is a valid one that was changed in a few places (`fuzzing.py`), run in a process of its
own. What breaks a rule - only documented errors, no hang, bounded memory, nothing touched outside
the case's own directory - is made smaller and stored in the corpus. Cases that end in a way that is
new are changed further. `--record` adds the run to `results/fuzz.json`.
"""

import argparse
import dataclasses
import gc
import importlib
import json
import logging
import os
import random
import shutil
import struct
import sys
import tempfile
import time
import typing
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzzing import (
    NASTY,
    Case,
    Target,
    WrongAnswerError,
    hardware,
    judge,
    mutated,
    read_files,
    shrunk,
)

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.atomic_file import atomic_file
from vanilla_transformer.conversion import FAMILIES, convert
from vanilla_transformer.inspection.curves import read_training_log
from vanilla_transformer.recipes import RECIPES, changed, load_model, read_recipe, write_recipe
from vanilla_transformer.recipes.model_directory import read_config
from vanilla_transformer.recipes.models import model_kind
from vanilla_transformer.recipes.prediction import model_decoding, read_data, recipe_of
from vanilla_transformer.tokenization import load_tokenizer, train_tokenizer
from vanilla_transformer.training import checkpointing
from vanilla_transformer.training.averaging import average_checkpoints

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results" / "fuzz.json"
TEXTS = ["the cat sat on the mat", "Der Hund schläft auf der Matte.", "who is it?"]
TINY = {"d_model": 8, "d_ff": 8, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}

Seeds = Callable[[random.Random, Path], list[Case]]


# ------------------------------------------------------------------------------------- readers


def run_readers(directory: Path, argument: Any) -> None:
    """Reads data of a task and goes through all of them."""
    corpus: Any = [directory / str(name) for name in argument["corpus"]]
    data, report = read_data(
        argument["task"], corpus[0] if len(corpus) == 1 else corpus, argument["split"], limit=50
    )
    if len(list(data)) != report.kept:
        raise WrongAnswerError(f"{len(data)} rows where {report.kept} were kept")


def seed_readers(random_: random.Random, folder: Path) -> list[Case]:
    """Each kind of file that each task reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    pairs = [{"source": a, "target": b} for a, b in zip(TEXTS, reversed(TEXTS), strict=True)]
    nested = [{"translation": {"en": row["source"], "de": row["target"]}} for row in pairs]
    questions = [
        {
            "id": str(number),
            "title": "t",
            "context": TEXTS[0],
            "question": "who sat?",
            "answers": {"text": ["the cat"], "answer_start": [0]},
        }
        for number in range(3)
    ]
    triples = [{"premise": TEXTS[0], "hypothesis": TEXTS[2], "label": 1 + i % 2} for i in range(3)]
    answer = {"id": "1", "question": "who sat?", "answers": [{"text": "cat", "answer_start": 4}]}
    squad: Any = {"version": "1.1", "data": [{"title": "t", "paragraphs": []}]}
    squad["data"][0]["paragraphs"] = [{"context": TEXTS[0], "qas": [answer]}]
    rows_of: dict[str, list[Any]] = {
        "translation": pairs,
        "question_answering": questions,
        "inference": triples,
    }
    cases = []

    def add(task: str, corpus: list[str], files: dict[str, bytes], split: str = "test") -> None:
        cases.append(Case("readers", {"task": task, "corpus": corpus, "split": split}, files))

    for task, rows in [*rows_of.items(), ("translation", nested)]:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        add(task, ["x.jsonl"], {"x.jsonl": lines})
        add(task, ["x.json"], {"x.json": json.dumps(rows).encode()})
        add(task, ["."], {"test.jsonl": lines, "data/test-00000-of-00001.jsonl": lines})
        pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
        add(task, ["x.parquet"], {"x.parquet": (folder / "x.parquet").read_bytes()})
        Dataset.from_list(rows).to_parquet(folder / "x.parquet")
        add(task, ["."], {"test.parquet": (folder / "x.parquet").read_bytes()})
        Dataset.from_list(rows).save_to_disk(folder / "saved")
        add(task, ["."], read_files(folder / "saved"))
        shutil.rmtree(folder / "saved")
    for task in ("translation", "inference"):
        rows = rows_of[task]
        for name, mark in (("x.csv", ","), ("x.tsv", "\t")):
            table = "".join(mark.join(map(str, row.values())) + "\r\n" for row in rows)
            add(task, [name], {name: (mark.join(rows[0]) + "\n" + table).encode()})
    text = "\n".join(TEXTS).encode()
    add("translation", ["x.en", "x.de"], {"x.en": text, "x.de": text})
    add("translation", ["."], {"test.en": text, "test.de": text})
    add("question_answering", ["x.json"], {"x.json": json.dumps(squad).encode()})
    return cases


# -------------------------------------------------------------------------------------- config


def run_config(directory: Path, argument: Any) -> None:
    """Reads a configuration, a generation configuration, a recipe, a tokenizer or a log."""
    what = argument["what"]
    if what == "config":
        config = read_config(directory)
        read_again = VanillaTransformerConfig.from_dict(json.loads(config.to_json_string()))
        if read_again.to_dict() != config.to_dict() and "nan" not in str(config).lower():
            raise WrongAnswerError("a configuration that is not the same when it is read again")
    elif what == "use":
        recipe_of(directory)
        model_kind(directory)
    elif what == "decoding":
        model_decoding(directory)
    elif what == "recipe":
        recipe = read_recipe(directory / "recipe.json")
        if isinstance(setting := argument.get("free"), dict):
            for name, value in setting.items():
                recipe = changed(recipe, name, value)
        write_recipe(recipe, Path("recipe.json"))
        if str(read_recipe(Path("recipe.json"))) != str(recipe):
            raise WrongAnswerError("a recipe that is not the same when it is read again")
    elif what == "tokenizer":
        load_tokenizer(str(directory))
    elif what == "log":
        read_training_log(directory / "training_log.jsonl")


def seed_config(random_: random.Random, folder: Path) -> list[Case]:
    """A tiny model's configurations, a recipe of each task, settings of recipes."""
    model = tiny_models()["translation"]
    configs = {name: content for name, content in model.items() if name.endswith(".json")}
    config = {"config.json": configs["config.json"]}
    cases = [Case("config", {"what": "config"}, config) for _ in range(4)]
    cases += [Case("config", {"what": "use"}, configs)]
    cases += [
        Case("config", {"what": "decoding"}, {name: configs[name] for name in sorted(configs)[:2]})
        for _ in range(2)
    ]
    cases += [Case("config", {"what": "tokenizer"}, configs)]
    log = "".join(json.dumps({"kind": "train", "update": i, "loss": 1.5}) + "\n" for i in range(3))
    cases += [Case("config", {"what": "log"}, {"training_log.jsonl": log.encode()})]
    by_task = {recipe.task: recipe for recipe in RECIPES.values()}
    for recipe in by_task.values():
        write_recipe(recipe, folder / "recipe.json")
        files = {"recipe.json": (folder / "recipe.json").read_bytes()}
        cases.append(Case("config", {"what": "recipe"}, files))
        cases.append(Case("config", {"what": "use"}, files | configs))
        names = ["training.updates", "architecture.d_model", "architecture", "training", "corpus"]
        names += [entry.name for entry in dataclasses.fields(recipe)]
        names += [f"training.{entry.name}" for entry in dataclasses.fields(recipe.training)]
        for name in random_.sample(names, 20):
            setting = {"what": "recipe", "free": {name: random_.choice(NASTY)}}
            cases.append(Case("config", setting, files))
    return cases


# ---------------------------------------------------------------------------------- checkpoint


def run_checkpoint(directory: Path, argument: Any) -> None:
    """Loads a model, or does with a training checkpoint what the command line does."""
    what = argument["what"]
    if what == "model":
        kind: Any = argument["kind"]
        model, _ = load_model(directory, "cpu", kind=kind)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise WrongAnswerError("a model without its weights")
        return
    # As whoever is hostile would: with a manifest that fits.
    run = Path("run")
    shutil.copytree(directory, run, symlinks=True, ignore=_pipes)
    newest = run / "checkpoints" / "update-00000002"
    if argument.get("is_signed") and newest.is_dir():
        checkpointing.write_manifest(newest)
    checkpoints = checkpointing.find_checkpoints(run)
    if what == "latest":
        checkpointing.latest_checkpoint(run)
    elif what == "export":
        checkpointing.export_model(newest, "exported")
    elif what == "average":
        average_checkpoints(checkpoints, "averaged", decay=argument.get("decay"))
    elif what == "resume":
        checkpointing.verify_checkpoint(newest)
        _load_checkpoint(newest)


def _pipes(folder: str, names: list[str]) -> list[str]:
    """Those of the names that cannot be copied."""
    return [name for name in names if Path(folder, name).is_fifo()]


def _trainable() -> dict[str, Any]:
    """What a checkpoint is of: a tiny model, its optimizer and its schedule."""
    from accelerate import Accelerator

    model = VanillaTransformerForConditionalGeneration(
        VanillaTransformerConfig(vocab_size=300, **TINY)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    return {
        "accelerator": Accelerator(cpu=True),
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    }


def _load_checkpoint(path: Path) -> None:
    checkpointing.load_checkpoint(path, **_trainable())


def seed_checkpoint(random_: random.Random, folder: Path) -> list[Case]:
    """Whole models, one of them in shards, and a run with two checkpoints."""
    models = tiny_models()
    cases = [
        Case("checkpoint", {"what": "model", "kind": "text" if kind == "translation" else kind}, f)
        for kind, f in models.items()
    ]
    whole = models["translation"]
    weights = whole["model.safetensors"]
    (length,) = struct.unpack_from("<Q", weights)
    names = [name for name in json.loads(weights[8 : 8 + length]) if name != "__metadata__"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    sharded = {name: content for name, content in whole.items() if name != "model.safetensors"}
    sharded["model-00001-of-00001.safetensors"] = weights
    sharded["model.safetensors.index.json"] = json.dumps(index).encode()
    cases.append(Case("checkpoint", {"what": "model", "kind": "text"}, sharded))
    trainable = _trainable()
    for parameter in trainable["model"].parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.data.zero_()
    trainable["optimizer"].step()
    (folder / "tokenizer").mkdir()
    for name, content in whole.items():
        if name.startswith("tokenizer"):
            (folder / "tokenizer" / name).write_bytes(content)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    for update in (1, 2):
        checkpointing.save_checkpoint(
            folder / "run", update, tokenizer=tokenizer, position={}, progress={}, **trainable
        )
    run = read_files(folder / "run")
    for what in ("latest", "export", "average", "resume", "resume", "resume"):
        argument = {"what": what, "is_signed": what != "latest", "decay": None}
        cases.append(Case("checkpoint", argument, run))
    as_saved = {
        f"checkpoints/update-0000000{n}/{name}": c for n in (1, 2) for name, c in sharded.items()
    }
    cases.append(Case("checkpoint", {"what": "average", "decay": 0.5}, as_saved))
    return cases


# ---------------------------------------------------------------------------------- converters


def run_converters(directory: Path, argument: Any) -> None:
    """Converts, and loads what was written."""
    convert(directory / str(argument["path"]), "converted", family=argument["family"])
    load_model("converted", "cpu")


def seed_converters(random_: random.Random, folder: Path) -> list[Case]:
    """What the tests of each family write of it."""
    sys.path.insert(0, str(REPOSITORY))
    tests = {
        name: importlib.import_module(f"tests.conversion.{name}")
        for name in (
            "test_bpe",
            "test_fairseq",
            "test_fsmt",
            "test_joeynmt",
            "test_marian",
            "test_marian_native",
            "test_opennmt",
            "test_sentencepiece",
            "test_tensor2tensor",
            "test_tensorflow_checkpoint",
            "test_torch_transformer",
        )
    }
    cases: list[Case] = []

    def add(family: str | None, path: str = ".") -> None:
        files = read_files(folder / "one")
        if sum(map(len, files.values())) < 400_000:
            cases.append(Case("converters", {"path": path, "family": family}, files))
        shutil.rmtree(folder / "one")
        (folder / "one").mkdir()

    one = folder / "one"
    one.mkdir()
    fairseq = tests["test_fairseq"]
    for layout in ("args", "dict", "cfg", "old"):
        fairseq.save(one / "model.pt", next(iter(fairseq.CASES)), layout)
        add(None, "model.pt")
    joey = tests["test_joeynmt"]
    shutil.rmtree(one)
    joey.save(one, next(iter(joey.CASES)))
    for name in ("5.ckpt", "best.ckpt"):
        (one / name).unlink()
    # The tables of positions are large, and left out they are computed.
    state = torch.load(one / "10.ckpt", weights_only=False)
    state = {"model_state": {n: t for n, t in state["model_state"].items() if ".pe." not in n}}
    torch.save(state, one / "10.ckpt")
    add(None)
    tests["test_marian_native"].save(one)
    add(None)
    tests["test_marian"].marian_model().save_pretrained(one)
    add(None)
    opennmt = tests["test_opennmt"]
    for toolkit in ("opennmt", "eole"):
        path = opennmt.save(toolkit, one, opennmt.BASE)
        add(None, "." if toolkit == "eole" else path.name)
    fsmt = tests["test_fsmt"]
    for layout in ("safetensors", "bin"):
        fsmt.save(fsmt.make_source(next(iter(fsmt.CASES))), one, layout)
        add(None)
    bpe = tests["test_bpe"]
    lines = {"en": TEXTS * 2, "de": TEXTS * 2}
    for save, is_fsmt in ((bpe.save_fsmt, True), (bpe.save_fairseq, False)):
        shutil.rmtree(one)
        save(one, bpe.make_world(lines, is_fsmt, False, 30, 40), ("en", "de"))
        add(None)
    tests["test_marian"].marian_model().save_pretrained(one)
    try:
        tests["test_sentencepiece"].make(one, {"source": TEXTS * 9, "target": TEXTS * 9}, True)
    except (KeyError, ImportError, RuntimeError) as error:
        print(f"no sentencepiece: {error}", flush=True)
    add(None)
    tensorflow, t2t = tests["test_tensorflow_checkpoint"], tests["test_tensor2tensor"]
    case = next(iter(t2t.CASES.values()))
    arrays = {name: tensor.numpy() for name, tensor in t2t.make_tensors(case).items()}
    (one / "hparams.json").write_text(json.dumps(t2t.options_of(case)))
    tensorflow.write(one, arrays)
    add(None)
    # Checksums guard what is in these files: nonsense has to be written with the right ones.
    sizes = (0, 1, 4, 16, -1, 2**31, 2**62, 2**63 - 1)
    for _ in range(12):
        described = tensorflow.entry(
            tuple(random_.choice(sizes) % 2**64 for _ in range(random_.randrange(4))),
            random_.choice((0, 1, 2, 7, 14, 100)),
            random_.choice(sizes) % 2**64,
            tensorflow.masked(bytes(16)),
            random_.choice((0, 1, 2**31)),
            random_.choice(sizes) % 2**64,
        )
        tensorflow.one(one, described)
        (one / "hparams.json").write_text(json.dumps(t2t.options_of(case)))
        add("tensor2tensor")
    tutorial = tests["test_torch_transformer"]
    name = next(iter(tutorial.CASES))
    torch.save(tutorial.make(name).state_dict(), one / "model.pt")
    (one / "config.json").write_text(json.dumps(tutorial.CASES[name][1]))
    add("torch", "model.pt")
    # What would run code if anybody let it.
    for content in (b"cposix\nsystem\n(Vtouch ../outside/secret\ntR.", b"\x80\x02c__builtin__\n"):
        for family in FAMILIES:
            (one / "model.pt").write_bytes(content)
            (one / "config.json").write_text("{}")
            add(family.name, random_.choice(("model.pt", ".")))
    return cases


# ----------------------------------------------------------------------------------------- cli


def run_cli(directory: Path, argument: Any) -> None:
    """The command line as it is called: it ends with a status and at most one line of error."""
    from vanilla_transformer import cli

    words = argument["free"] if isinstance(argument["free"], list) else [argument["free"]]
    # Here, because what is named as an output is to be written, whatever it was before.
    shutil.copytree(directory, "data", symlinks=True, ignore=_pipes)
    words = [str(word).replace("{in}", "data") for word in words]
    if any("\0" in word for word in words):
        # No system passes such a word.
        return
    # As the system hands over what is no text.
    sys.argv = ["vanilla-transformer"]
    sys.argv += [os.fsdecode(word.encode("utf-8", "surrogatepass")) for word in words]
    try:
        cli.main()
    except SystemExit as error:
        if error.code not in (0, 1, 2, None):
            raise WrongAnswerError(f"exit status {error.code!r}") from None
        sys.stdout.flush()
        sys.stderr.flush()
        said = (directory.parent / "output").read_text("utf-8", "replace")
        if "Traceback (most recent" in said:
            raise WrongAnswerError("a traceback: " + said[-600:]) from None
        if error.code and "vanilla-transformer: " not in said:
            raise WrongAnswerError(f"status {error.code} without a word") from None


def seed_cli(random_: random.Random, folder: Path) -> list[Case]:
    """Verbs with options and values, likely ones and others."""
    import typer

    from vanilla_transformer import cli

    files = {
        f"{task}/{name}": content
        for task, model in tiny_models().items()
        for name, content in model.items()
    }
    rows = [
        {
            "id": str(number),
            "source": text,
            "target": text,
            "premise": text,
            "hypothesis": text,
            "label": "neutral",
            "context": text,
            "question": "who?",
            "answers": {"text": ["the"], "answer_start": [0]},
        }
        for number, text in enumerate(TEXTS)
    ]
    pairs = [{"source": row["source"], "target": row["target"]} for row in rows]
    triples = [{name: row[name] for name in ("premise", "hypothesis", "label")} for row in rows]
    for name, some in (("pairs", pairs), ("triples", triples), ("questions", rows)):
        text = "".join(json.dumps(row) + "\n" for row in some)
        files[f"{name}.jsonl"] = text.encode()
    files |= {"text.en": "\n".join(TEXTS).encode(), "text.de": "\n".join(TEXTS).encode()}
    places = [f"{{in}}/{name}" for name in ("translation", "question_answering", "inference")]
    places += [f"{{in}}/{name}" for name in files if "/" not in name]
    places += ["{in}", "nowhere", "out.txt", "tiny_world", "tiny_world", "-", "", *RECIPES]
    nasty = [str(value)[:1000] for value in NASTY]
    numbers = ["1", "2", "0", "-1", "0.5", "3", "100000000000000000000", "nan", "inf", "1e400"]
    group: Any = typer.main.get_command(cli.app)
    cases = []
    for _ in range(1500):
        verb = random_.choice([name for name in group.commands if name != "serve"])
        words = [verb]
        annotations = typing.get_type_hints(group.commands[verb].callback)
        for parameter in group.commands[verb].params:
            is_argument = parameter.param_type_name == "argument"
            if random_.random() > (0.95 if is_argument or parameter.required else 0.15):
                continue
            options = [] if is_argument else [random_.choice(parameter.opts)]
            if annotations[parameter.name] is bool:
                words += options
                continue
            # One of them may be None, which is none of a word's.
            annotation = annotations[parameter.name]
            kinds = (annotation, *typing.get_args(annotation))
            choices = [one for kind in kinds for one in typing.get_args(kind) if str(one) == one]
            pool = choices or (numbers if {int, float} & {*kinds} else places)
            value = random_.choice(nasty if random_.random() < 0.1 else pool)
            words += [*options, value]
        # Hours of training or of tracing are no case.
        if verb == "train":
            words.append("--dry-run")
        if verb == "export":
            words += ["--to", "ctranslate2"]
        cases.append(Case("cli", {"free": words}, files))
    for verb in group.commands:
        cases.append(Case("cli", {"free": [verb, "--help"]}))
    for options in (["--port", "-1"], ["--host", "nowhere.invalid"], ["--max-batch-tokens", "0"]):
        cases.append(Case("cli", {"free": ["serve", "nowhere", *options]}))
    return cases


# --------------------------------------------------------------------------------------- serve


def run_serve(directory: Path, argument: Any) -> None:
    """Sends requests to the application; each has to be answered, and the server to live on."""
    from fastapi.testclient import TestClient

    from vanilla_transformer.serving import Limits, build_app

    limits = Limits(max_source_tokens=64, max_context_tokens=200, max_texts=8, max_body=50_000)
    with TestClient(build_app(_engines(), limits)) as client:
        requests = argument["free"] if isinstance(argument["free"], list) else []
        for number, request in enumerate(requests[:20]):
            if not isinstance(request, dict):
                continue
            file = directory / f"{number}"
            body = file.read_bytes() if file.is_file() else json.dumps(request.get("json")).encode()
            headers = {"content-type": "application/json"}
            given = request.get("headers")
            for name, value in given.items() if isinstance(given, dict) else ():
                headers[_header(name)] = _header(value)
            path = str(request.get("path")).lstrip("/")[:2000]
            url = "/" + urllib.parse.quote(path, "/?=&%", errors="replace")
            method = str(request.get("method"))
            if not method.isalpha() or not method.isascii():
                method = "POST"
            response = client.request(method, url, content=body, headers=headers)
            if response.status_code >= 500 and response.status_code != 503:
                raise WrongAnswerError(f"status {response.status_code} of {url[:40]}")
            if response.headers.get("content-type", "").startswith("application/json"):
                json.loads(response.content or b"null", parse_constant=_refuse_constant)
            if client.get("/health").json()["status"] != "ok":
                raise WrongAnswerError(f"the server has stopped after {url[:40]}")


def _header(value: Any) -> str:
    """What a client could send as a header."""
    return "".join(letter for letter in str(value) if " " < letter < "\x7f")[:500] or "x"


def _refuse_constant(name: str) -> None:
    raise WrongAnswerError(f"the answer holds {name}, which is no JSON")


def _engines() -> Any:
    """The models, loaded before the first case."""
    from vanilla_transformer.serving import load_engines

    if not _ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            for task, files in tiny_models().items():
                Case("", {}, files).write(Path(folder) / task)
            _ENGINES.update(load_engines(sorted(Path(folder).iterdir()), device="cpu"))
    return _ENGINES


_ENGINES: dict[str, Any] = {}


def seed_serve(random_: random.Random, folder: Path) -> list[Case]:
    """One request of each kind, and some together."""
    _engines()
    bodies: dict[str, Any] = {
        "api/translate": {
            "texts": [TEXTS[0], " ", ""],
            "num_beams": 3,
            "num_hypotheses": 2,
            "length_penalty": 0.6,
        },
        "api/answer": {"question": "who sat?", "context": TEXTS[0], "top_k": 2},
        "api/infer": {"premise": TEXTS[0], "hypothesis": TEXTS[2]},
        "api/attention": {"text": TEXTS[0], "num_beams": 2},
        "api/translate?x=1": {"texts": TEXTS, "num_beams": 1},
    }
    requests = [
        {"method": "POST", "path": path, "headers": {"accept": "*/*"}, "json": body}
        for path, body in bodies.items()
    ]
    plain: list[dict[str, Any]] = [
        {"method": "GET", "path": path, "headers": {}, "json": None}
        for path in ("health", "metrics", "", "docs", "openapi.json", "static-offline-docs/x")
    ]
    cases = [Case("serve", {"free": [request]}) for request in requests * 3]
    cases += [Case("serve", {"free": plain})]
    for _ in range(10):
        cases.append(Case("serve", {"free": random_.choices(requests + plain, k=4)}))
    for request in requests:
        body = json.dumps(request["json"]).encode()
        headers = {"content-length": str(len(body)), "transfer-encoding": "chunked"}
        cases.append(Case("serve", {"free": [request | {"headers": headers}]}, {"0": body}))
    return cases


# ------------------------------------------------------------------------------------- targets

_MODELS: dict[str, dict[str, bytes]] = {}


def tiny_models() -> dict[str, dict[str, bytes]]:
    """Files of a model for each task; their weights are zeros, which take no room in a corpus."""
    if _MODELS:
        return _MODELS
    tokenizer = train_tokenizer(TEXTS * 5, 280)
    classes: dict[str, Any] = {
        "translation": VanillaTransformerForConditionalGeneration,
        "question_answering": VanillaTransformerForQuestionAnswering,
        "inference": VanillaTransformerForSequenceClassification,
    }
    for task, model_class in classes.items():
        config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
        if task == "inference":
            config.id2label = {0: "entailment", 1: "neutral", 2: "contradiction"}
        model = model_class(config)
        for parameter in model.parameters():
            parameter.data.zero_()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            _MODELS[task] = read_files(Path(folder))
    return _MODELS


TARGETS: dict[str, tuple[Target, Seeds]] = {
    "readers": (Target(run_readers), seed_readers),
    "config": (Target(run_config), seed_config),
    "checkpoint": (Target(run_checkpoint), seed_checkpoint),
    "converters": (Target(run_converters, seconds=20), seed_converters),
    # It reports errors by itself.
    "cli": (Target(run_cli, documented=(), seconds=30), seed_cli),
    "serve": (Target(run_serve, documented=(), seconds=20), seed_serve),
}


# ------------------------------------------------------------------------------------- the run


def fuzz(name: str, minutes: float, seed: int, corpus: Path) -> dict[str, Any]:
    """Changes and judges cases until the time is over; what of them to record."""
    random_ = random.Random(f"{name} {seed}")
    target, seeds = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        pool = seeds(random_, Path(folder))
    gc.freeze()
    start = time.monotonic()
    outcomes: dict[str, int] = {}
    found: dict[str, str] = {}
    number = count = 0
    while time.monotonic() < start + 60 * minutes:
        # Seeds first as they are.
        case = pool[number] if number < len(pool) else mutated(random_.choice(pool), pool, random_)
        number += 1
        verdict = judge(target, case)
        count += 1
        is_new = verdict.signature not in outcomes
        outcomes[verdict.signature] = outcomes.get(verdict.signature, 0) + 1
        if verdict.rule is None:
            if is_new and number > len(pool):
                pool.append(case)
                number += 1
            continue
        if verdict.signature in found:
            continue
        # The machine may have been busy.
        if judge(target, case).signature != verdict.signature:
            continue
        signature = verdict.signature
        small = shrunk(case, lambda one: judge(target, one).signature == signature, seconds=20)  # noqa: B023
        found[signature] = small.name
        corpus.mkdir(parents=True, exist_ok=True)
        (corpus / small.name).write_text(small.to_json(), "utf-8")
        print(f"\n{small.name} {signature}\n{verdict.detail}", flush=True)
    common = sorted(outcomes.items(), key=lambda entry: -entry[1])
    print(f"\n{name}: {count:,} cases, {len(outcomes)} outcomes, {len(found)} findings", flush=True)
    for signature, times in common[:15]:
        print(f"{times:8,}  {signature}", flush=True)
    return {
        "target": name,
        "minutes": minutes,
        "seed": seed,
        "cases": count,
        "outcomes": len(outcomes),
        "findings": sorted(found),
        "hardware": hardware(),
    }


def replay(paths: list[Path]) -> int:
    """Judges stored cases anew, a line of JSON each; how many break a rule."""
    gc.freeze()
    broken = 0
    for path in paths:
        case = Case.from_json(path.read_text("utf-8"))
        verdict = judge(TARGETS[case.target][0], case)
        broken += verdict.rule is not None
        print(json.dumps({"case": path.name, **dataclasses.asdict(verdict)}), flush=True)
    return broken


def record(result: dict[str, Any], path: Path = RESULTS) -> None:
    """Puts a run in the place of the one of the same target and seed."""
    runs = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else []
    same = (result["target"], result["seed"])
    runs = [run for run in runs if (run["target"], run["seed"]) != same] + [result]
    runs.sort(key=lambda run: (list(TARGETS).index(run["target"]), run["seed"]))
    with atomic_file(path) as file:
        file.write_text(json.dumps({"runs": runs}, indent=2) + "\n", "utf-8")


def main() -> None:
    """Parses, then fuzzes or replays; the status says whether a rule was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("target", choices=TARGETS, nargs="?", help="what is fuzzed")
    add("--minutes", type=float, default=10.0, metavar="N", help="how long [10]")
    add("--seed", type=int, default=1, metavar="N", help="of the mutations [1]")
    add("--corpus", type=Path, default=Path("findings"), metavar="DIR", help="gets what is found")
    add("--record", action="store_true", help=f"add the run to {RESULTS.name}")
    add("--replay", type=Path, nargs="+", metavar="PATH", help="cases to judge, or their folders")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if options.replay:
        paths = [
            p
            for one in options.replay
            for p in (sorted(one.glob("*.json")) if one.is_dir() else [one])
        ]
        sys.exit(replay(paths) > 0)
    if options.target is None:
        parser.error("give a target, or --replay")
    result = fuzz(options.target, options.minutes, options.seed, options.corpus)
    if options.record:
        record(result)
    sys.exit(bool(result["findings"]))


if __name__ == "__main__":
    main()
