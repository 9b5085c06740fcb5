"""`vanilla-transformer VERB`: parses the arguments, calls one function, prints what it gives."""

import io
import itertools
import json
import logging
import os
import sys
import tempfile
import textwrap
import typing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import typer

from .atomic_file import atomic_file

# typer brings its own copy of click since 0.2x, and before took the installed one: BadParameter is
# the one error of either that typer exports, and these are what it is a kind of.
_UsageError, _CommandLineError = typer.BadParameter.__mro__[1:3]

app = typer.Typer(
    name="vanilla-transformer",
    help='The Transformer of "Attention Is All You Need": train it, use it, score it.',
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SourceLang = Annotated[
    str, typer.Option("--source-lang", "-s", help="Language to translate from, as DATA names it.")
]
TargetLang = Annotated[
    str, typer.Option("--target-lang", "-t", help="Language to translate into, as DATA names it.")
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps ...; by default a GPU where there is one."),
]
ModelBeams = Annotated[
    int | None, typer.Option(min=1, help="Beam width; 1 is greedy search. [MODEL; 4]")
]
ModelAlpha = Annotated[
    float | None,
    typer.Option(
        help="Length penalty alpha: scores are divided by ((5 + n) / 6)^alpha, or by n^alpha where "
        "MODEL says so. [MODEL; 0.6]"
    ),
]
ModelLimitOver = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens an output may have beyond those of its source. [MODEL; 50]"),
]
# As above, for what a recipe decides where no option does.
RunSourceLang = Annotated[
    str | None,
    typer.Option("--source-lang", "-s", help="Language to translate from. [RUN; en]"),
]
RunTargetLang = Annotated[
    str | None,
    typer.Option("--target-lang", "-t", help="Language to translate into. [RUN; de]"),
]
RunBeams = Annotated[
    int | None, typer.Option(min=1, help="Beam width; 1 is greedy search. [RUN; 4]")
]
RunAlpha = Annotated[float | None, typer.Option(help="Length penalty alpha. [RUN; 0.6]")]
RunLimitOver = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens an output may have beyond those of its source. [RUN; 50]"),
]
Precision = Annotated[
    Literal["no", "bf16", "fp16"] | None,
    typer.Option(help="Of computing, with 32 bits, or fewer where that is sound. [RUN; no]"),
]
BatchTokens = Annotated[
    int, typer.Option(min=1, help="Source tokens in a batch; memory grows with it and with beams.")
]
MaxSourceTokens = Annotated[
    int, typer.Option(min=1, help="A longer text is left out: nothing is written for it.")
]
Int8 = Annotated[
    bool,
    typer.Option(
        "--int8",
        help="Write with linear layers in 8 bits: faster on a CPU, and a little different.",
    ),
]
TaskName = Literal["translation", "question-answering", "inference"]
TaskOfWriter = Annotated[
    TaskName | None,
    typer.Option(help="What a model that writes text is to do. [RUN; translation]"),
]
Split = Annotated[
    str | None,
    typer.Option(help="Part of the corpus. [test; validation for question answering]"),
]
HubName = Annotated[
    str | None, typer.Option("--name", help="Configuration of a Hub data set, such as de of XNLI.")
]
LabelNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME,...",
        help="Inference: what the labels 0, 1 ... mean in data that do not say so.",
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens of a window over question and context [RUN; 384], or of premise and "
        "hypothesis, whose longer side is cut [RUN; 256].",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        min=0, help="Spans: tokens of context that neighbouring windows share. [RUN; 128]"
    ),
]
MaxQuestionLength = Annotated[
    int | None, typer.Option(min=1, help="Spans: longer questions lose their end. [RUN; 64]")
]
MaxAnswerLength = Annotated[
    int | None, typer.Option(min=1, help="Spans: tokens of the longest answer. [RUN; 30]")
]
NoAnswerThreshold = Annotated[
    float | None,
    typer.Option(help="Spans: no-answer score above which there is no answer. [the model's]"),
]
NoAnswerProbabilities = Annotated[
    Path | None,
    typer.Option(help="Spans: file for the probabilities of no answer, as SQuAD 2.0 takes them."),
]


TrainingText = Annotated[
    Path | None,
    typer.Option(help="Source side of the training text, a sentence a line, to know rare words."),
]
NumWorst = Annotated[int, typer.Option(min=0, help="Sentences to show of each domain.")]
Json = Annotated[Path | None, typer.Option("--json", help="File to write the scores to.")]
NumSamples = Annotated[
    int | None,
    typer.Option(min=1, help="Of every bootstrap (1000) and of randomisation (10000)."),
]


@app.command()
def tokenizer(
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Argument(help="A corpus: folder, file, Hub id or tiny_world; or two text files."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    task: Annotated[
        TaskName, typer.Option(help="How DATA is read: what it is data for.")
    ] = "translation",
    source_lang: SourceLang = "en",
    target_lang: TargetLang = "de",
    split: Annotated[str, typer.Option(help="Part of the corpus to learn from.")] = "train",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pairs or questions to learn from; all.")
    ] = None,
    vocab_size: Annotated[
        int, typer.Option(help="Tokens wanted, special ones and 256 bytes included.")
    ] = 37_000,
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="Take capital letters for small ones.")
    ] = False,
    strip_punctuation: Annotated[
        bool, typer.Option("--strip-punctuation", help="Take punctuation for blanks.")
    ] = False,
) -> None:
    """Train the byte-pair encoding that all texts of a corpus share (paper 5.1)."""
    from .recipes.prediction import default_recipe, read_data
    from .tokenization import train_tokenizer
    from .training.checkpointing import atomic_directory

    kind = as_task(task)
    if kind != "translation":
        refuse(context, ("source_lang", "target_lang"), f"--task {task}")
    languages = (source_lang, target_lang)
    examples, report = read_data(kind, as_corpus(data), split, languages=languages, limit=limit)
    trained = train_tokenizer(
        default_recipe(kind).all_text(examples),
        vocab_size,
        lowercase=lowercase,
        strip_punctuation=strip_punctuation,
        show_progress=sys.stderr.isatty(),
    )
    with atomic_directory(output) as directory:
        trained.save_pretrained(directory)
    noun = NOUNS[kind]
    print(f"{output}: {len(trained)} tokens, learned from {report.kept} {noun} of {report.corpus}")
    print_skipped(report.skipped, noun)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe; --list shows them.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's directory. [runs/RECIPE]")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder, file or Hub id in place of the recipe's; twice for text files."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use this tokenizer instead of training one.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Go on from this model, with its tokenizer (fine-tuning).")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --output, by its own recipe."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would cost, and stop there.")
    ] = False,
    updates: Annotated[int | None, typer.Option(min=1, help="training.updates")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="training.max_minutes")] = None,
    precision: Annotated[
        str | None, typer.Option(help="training.precision: no, bf16, fp16")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="training.seed")] = None,
    driver: Annotated[
        str | None,
        typer.Option(help="What trains: loop, the explicit one, or trainer, transformers' own."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change any field of the recipe, such as --set training.warmup=2000, "
            "--set architecture.dropout=0.2 or --set target_lang=fr; may be repeated.",
        ),
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read training data as a stream, with no copy.")
    ] = False,
    num_proc: Annotated[int | None, typer.Option(min=1, help="Processes to tokenise with.")] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="List the recipes and exit.")
    ] = False,
) -> None:
    """Train a model by a recipe, from text to test scores.

    On several GPUs: torchrun --nproc-per-node 8 -m vanilla_transformer train RECIPE
    """
    from accelerate import PartialState

    from .inspection.curves import plot_training
    from .recipes import RECIPES, changed, estimate, execute, find_recipe, read_recipe

    if list_recipes:
        if is_main_process():
            print_recipes()
        return
    if resume:
        if output is None and not recipe:
            raise typer.BadParameter("--resume needs --output, the directory of the run")
        output = output or Path("runs") / recipe
        chosen = read_recipe(output / "recipe.json")
        if recipe and recipe != chosen.name:
            raise ValueError(f"{output} is a run of {chosen.name}, not of {recipe}; leave it out")
    elif not recipe:
        raise typer.BadParameter(f"name a recipe: {', '.join(RECIPES)}")
    else:
        chosen = find_recipe(recipe)
        output = output or Path("runs") / chosen.name
    if data is not None and len(data) > 2:
        raise ValueError(f"give one corpus or two text files, not {len(data)}: {', '.join(data)}")
    shortcuts = {
        "training.updates": updates,
        "training.max_minutes": max_minutes,
        "training.precision": precision,
        "training.seed": seed,
        "driver": driver,
        "corpus": data[0] if data is not None and len(data) == 1 else data,
        "initial_model": init,
        "streaming": streaming or None,
    }
    for name, value in shortcuts.items():
        if value is not None:
            chosen = changed(chosen, name, value)
    for item in change or []:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r} must be NAME=VALUE, such as training.warmup=2000")
        chosen = changed(chosen, name, parsed(text))
    if dry_run:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
        known = output / "tokenizer" if resume else tokenizer
        if is_main_process():
            costs, corpus = estimate(
                chosen, tokenizer=known, processes=processes, is_sharded=is_sharded
            )
            print_estimate(chosen, costs, corpus)
        return
    results = execute(chosen, output, tokenizer=tokenizer, num_proc=num_proc, resume=resume)
    # The processes part here: left to the interpreter's end, a group may abort in it.
    PartialState().destroy_process_group()
    if not is_main_process():
        return
    plot_training(output / "training_log.jsonl", output / "training.png")
    noun = NOUNS[chosen.task]
    print_skipped(results["data"]["skipped"], noun)
    print_skipped(results["data"].get("mended", {}), noun, "mended")
    counts = [
        f"{count} {name.replace('_', ' ')}" for name, count in results["data"]["encoding"].items()
    ]
    print(f"encoded: {', '.join(counts)}")
    for split, scores in results["tests"].items():
        print(chosen.describe(split, scores))
    print(f"model: {output / 'model'}\nresults: {output / 'results.json'}")


@app.command()
def average(
    models: Annotated[
        list[Path],
        typer.Argument(help="A run's directory, or the directories of models, oldest first."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    last: Annotated[
        int, typer.Option(min=1, help="Checkpoints of the run to average: the paper's 5, or 20.")
    ] = 5,
    ema_decay: Annotated[
        float | None,
        typer.Option(help="Weigh each checkpoint this much less than the next; all alike."),
    ] = None,
) -> None:
    """Average the last checkpoints of a run, or several models, into one (paper 6.1)."""
    from .training.averaging import average_checkpoints
    from .training.checkpointing import find_checkpoints

    paths = models
    if len(models) == 1:
        paths = find_checkpoints(models[0])[-last:]
        if not paths:
            raise ValueError(
                f"{models[0]} holds no checkpoints; give a run's directory, or several models"
            )
    average_checkpoints(paths, output, decay=ema_decay)
    weights = "equal weights" if ema_decay is None else f"decay {ema_decay}"
    print(
        f"{output}: mean of {len(paths)} with {weights}: {', '.join(path.name for path in paths)}"
    )


@app.command()
def export_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint, such as RUN/checkpoints/update-00001000.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
) -> None:
    """Write a training checkpoint, sharded or not, as one model that from_pretrained loads."""
    from .training.checkpointing import export_model

    print(f"{export_model(checkpoint, output)}: the model of {checkpoint}")


@app.command()
def export(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model directory, run directory or Hub id.")],
    to: Annotated[
        Literal["ctranslate2", "onnx", "torch"],
        typer.Option(help="What is to run it; torch: programs of torch.export."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Translations to compare the two on, as for evaluate. [tiny_world]"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="Of the weights; fewer bits for ctranslate2 only."),
    ] = "float32",
    split: Annotated[str, typer.Option(help="Part of the corpus.")] = "test",
    limit: Annotated[int, typer.Option(min=1, help="Sentences to compare the two on.")] = 100,
    source_lang: RunSourceLang = None,
    target_lang: RunTargetLang = None,
) -> None:
    """Write a translator for another engine, and show that it translates as the model does.

    Both translate DATA greedily and with a beam: how many outputs are the same, and what BLEU is
    lost. An export in float32 that does not agree is not written.
    """
    from .export.ctranslate2 import export_ctranslate2
    from .export.onnx import export_onnx
    from .export.torch_export import export_torch
    from .recipes.prediction import read_data

    if to != "ctranslate2":
        refuse(context, ("dtype",), f"--to {to}, which is in float32")
    recipe, _ = find_use(context, "translation")
    languages = (recipe.source_lang, recipe.target_lang)
    corpus = as_corpus(data or ["tiny_world"])
    pairs, report = read_data("translation", corpus, split, languages=languages, limit=limit)
    chosen: dict[str, Any] = {
        "sentences": pairs["source"],
        "references": pairs["target"],
        "report": print,
    }
    if to == "ctranslate2":
        export_ctranslate2(model, output, precision=dtype, **chosen)
    elif to == "onnx":
        export_onnx(model, output, **chosen)
    else:
        export_torch(model, output, **chosen)
    print_report(report, "translation")


@app.command()
def convert(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(help="File, directory or Hub id of a published checkpoint.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to write.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Where SOURCE is from. [recognised by its files]")
    ] = None,
    to: Annotated[
        Literal["vanilla_transformer", "marian"],
        typer.Option(help="marian: a model of this package for what knows MarianMT alone."),
    ] = "vanilla_transformer",
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the families, and the public checkpoints known.")
    ] = False,
) -> None:
    """Convert a checkpoint of this architecture, tokenizer included, and prove that it agrees."""
    from .conversion import convert as convert_checkpoint
    from .conversion import to_marian
    from .recipes.models import locate_model

    if show_list:
        print_checkpoints()
        return
    if source is None or output is None:
        raise typer.BadParameter("give SOURCE and --output; or --list to see what can be converted")
    if to == "marian":
        refuse(context, ("family",), "a model of this package, which is of no other family")
        for line in to_marian(Path(locate_model(source)), output):
            print(line)
    else:
        found = convert_checkpoint(source, output, family=family, report=print)
        for remark in found.remarks:
            print_entry("remark:", remark, width=8)
    print(f"model: {output}")


@app.command()
def push(
    model: Annotated[Path, typer.Argument(help="Model directory or run directory.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME of the repository; made if new.")],
    hub_endpoint: Annotated[
        str | None, typer.Option(help="Address of the Hub. [HF_ENDPOINT or huggingface.co]")
    ] = None,
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to; made if new. [main]")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request in place of a commit.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
) -> None:
    """Push a model with its tokenizer, card and code to the Hub, in one commit.

    The token is the one that `hf auth login` keeps, or HF_TOKEN. Nothing is sent before all of it
    is checked; what the card leaves to fill in is refused. A run without a card gets the one that
    is rendered from its results.
    """
    from .export.hub import push as push_model

    commit = push_model(
        model,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        endpoint=hub_endpoint,
        message=message,
        report=print,
    )
    print(f"commit: {commit.commit_url}")
    if commit.pr_url:
        print(f"pull request: {commit.pr_url}")


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Model or run directories or Hub ids, one for each task; a translator also as an "
            "export has written it."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    batch_tokens: BatchTokens = 4096,
    max_source_tokens: MaxSourceTokens = 1024,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Texts that may wait; more are refused.")
    ] = 1024,
    int8: Int8 = False,
    device: Device = None,
) -> None:
    """Serve models: a web page, a JSON API with its documentation at /docs, health and metrics."""
    try:
        from .serving import Limits, build_app, listen, load_engines
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed; pip install 'vanilla_transformer[serve]'"
        ) from error

    limits = Limits(
        max_batch_tokens=batch_tokens, max_source_tokens=max_source_tokens, max_waiting=max_waiting
    )
    engines = load_engines(models, device=device, precision="int8" if int8 else "model")
    listen(build_app(engines, limits), host, port, report=print)


@app.command()
def attend(
    model: Annotated[str, typer.Argument(help="Model directory, run directory or Hub id.")],
    sentences: Annotated[list[str], typer.Argument(help="One, or several to compare.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page, self-contained.")
    ] = Path("attention.html"),
    target: Annotated[
        str | None, typer.Option(help="The translation to look at. [the model's own, greedy]")
    ] = None,
    word: Annotated[
        str | None, typer.Option(help="The token first shown across all heads.")
    ] = None,
    beams: Annotated[int, typer.Option(min=0, help="Beam whose tree is shown; 0 for none.")] = 4,
    picture: Annotated[
        Path | None, typer.Option(help="Also all heads of the first sentence as a PNG.")
    ] = None,
    walk: Annotated[
        Path | None,
        typer.Option(help="Also a page that follows the first sentence through the model."),
    ] = None,
    device: Device = None,
) -> None:
    """Draw what a model attends to: every layer and head, words paired, what each head does."""
    from .inspection.attention import explain, write_attention_page, write_attention_picture
    from .inspection.walkthrough import write_walkthrough
    from .recipes import load_model

    network, vocabulary = load_model(model, device)
    written = [
        write_attention_page(
            network,
            vocabulary,
            sentences,
            output,
            target=target,
            word=word,
            num_beams=beams or None,
        )
    ]
    if picture is not None:
        example = explain(network, vocabulary, sentences[0], target=target)
        written.append(write_attention_picture(example, picture))
    if walk is not None:
        written.append(write_walkthrough(network, vocabulary, sentences[0], walk, target=target))
    for path in written:
        print(path)


@app.command()
def translate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="Model directory, run directory, Hub id, or what export has written."),
    ],
    source: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", help="Text, a sentence a line. [stdin]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the translations. [stdout]")
    ] = None,
    beams: ModelBeams = None,
    alpha: ModelAlpha = None,
    max_over_source: ModelLimitOver = None,
    n_best: Annotated[
        int,
        typer.Option(min=1, help="Translations a sentence, each as `line ||| text ||| score`."),
    ] = 1,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw at random (with --beams 1) instead of searching.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="For --sample.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="For --sample; 0 for all tokens.")] = 0,
    top_p: Annotated[float, typer.Option(help="For --sample.")] = 1.0,
    seed: Annotated[int, typer.Option(help="For --sample.")] = 1,
    batch_tokens: BatchTokens = 4096,
    max_source_tokens: MaxSourceTokens = 1024,
    int8: Int8 = False,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Lines read ahead to sort by length. [4096; 1 from a terminal]"),
    ] = None,
    device: Device = None,
) -> None:
    """Translate a file or standard input, line by line, in the input's order."""
    import dataclasses

    from transformers import set_seed

    from .export.opening import is_export, open_export
    from .generation import DecodingSettings, Hypothesis, TranslationReport
    from .generation import translate as translate_lines
    from .recipes import load_model

    if is_export(model):
        no_use = ("n_best", "sample", "temperature", "top_k", "top_p", "seed", "int8", "device")
        refuse(context, no_use, "an exported model")
    chosen: dict[str, Any] = {
        "num_beams": 1 if sample else beams,
        "length_penalty": alpha,
        "max_tokens_over_source": max_over_source,
        "num_hypotheses": n_best,
        "do_sample": sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    set_seed(seed)
    report = TranslationReport()
    is_interactive = source is None and sys.stdin.isatty()
    with opened_input(source) as lines, opened_output(output) as file:
        given = {name: value for name, value in chosen.items() if value is not None}
        reading: dict[str, Any] = {
            "max_batch_tokens": batch_tokens,
            "max_source_tokens": max_source_tokens,
            "window": window or (1 if is_interactive else 4096),
            "report": report,
        }
        found: Iterator[list[Hypothesis]]
        if is_export(model):
            translator = open_export(model)
            decoding = dataclasses.replace(translator.decoding, **given)
            texts = translator.stream(lines, decoding, **reading)
            found = ([Hypothesis(text, None)] for text in texts)
        else:
            network, vocabulary = load_model(model, device)
            decoding = dataclasses.replace(
                DecodingSettings.of_model(network.generation_config), **given
            )
            precision: Literal["model", "int8"] = "int8" if int8 else "model"
            found = translate_lines(
                network, vocabulary, lines, decoding, precision=precision, **reading
            )
        for number, hypotheses in enumerate(found, start=1):
            for hypothesis in hypotheses:
                # A line is a sentence: a line break inside a translation would shift all others.
                text = " ".join(hypothesis.text.splitlines())
                if n_best > 1:
                    score = "-" if hypothesis.score is None else f"{hypothesis.score:.4f}"
                    text = f"{number} ||| {text} ||| {score}"
                file.write(text + "\n")
            if is_interactive:
                file.flush()
    if report.empty or report.skipped:
        print(
            f"{report.lines} lines, {report.empty} of them empty, {len(report.skipped)} too long "
            "and left empty",
            file=sys.stderr,
        )


@app.command()
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model directory, run directory or Hub id.")],
    data: Annotated[
        list[str],
        typer.Argument(help="A corpus: folder, file, Hub id or tiny_world; or two text files."),
    ],
    task: TaskOfWriter = None,
    split: Split = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pairs or questions to score; all.")
    ] = None,
    name: HubName = None,
    source_lang: RunSourceLang = None,
    target_lang: RunTargetLang = None,
    beams: RunBeams = None,
    alpha: RunAlpha = None,
    max_over_source: RunLimitOver = None,
    tokenize: Annotated[
        str | None,
        typer.Option(
            help="sacreBLEU's tokenizer for BLEU; none for text tokenised already. [RUN; 13a]"
        ),
    ] = None,
    lowercase: Annotated[
        bool | None,
        typer.Option(help="BLEU and chrF: compare without case. [RUN; no]"),
    ] = None,
    batch_tokens: BatchTokens = 4096,
    max_source_tokens: MaxSourceTokens = 1024,
    int8: Int8 = False,
    max_length: MaxLength = None,
    stride: Stride = None,
    max_question_length: MaxQuestionLength = None,
    max_answer_length: MaxAnswerLength = None,
    no_answer_threshold: NoAnswerThreshold = None,
    fit_threshold_on: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="Spans: fit that threshold on this part of DATA."),
    ] = None,
    label_names: LabelNames = None,
    hypothesis_only: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS[:SPLIT]",
            help="Inference: what the model was trained on, for the hypothesis-only baseline.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="File for the predictions: a translation a line, SQuAD's JSON, GLUE's TSV."
        ),
    ] = None,
    no_answer_probabilities: NoAnswerProbabilities = None,
    errors: Annotated[
        Path | None,
        typer.Option(help="HTML file to look through questions or pairs and their errors in."),
    ] = None,
    domains: Annotated[
        Path | None,
        typer.Option(
            help="Translation: the domain of each pair, one a line, to report on each by sentence "
            "length, rare words and worst sentences."
        ),
    ] = None,
    training_text: TrainingText = None,
    worst: NumWorst = 5,
    json_output: Json = None,
    precision: Precision = None,
    device: Device = None,
) -> None:
    """Score a model on a test set, by the measures of what it was trained for.

    Translation: BLEU, chrF and TER with sacreBLEU's signatures. Question answering: exact match and
    F1 as the official SQuAD scripts have them. Inference: accuracy and F1 beside their baselines,
    calibration and slices of hard cases. Options that begin with "Spans" are for models that point
    at the answer in its context.

    Where MODEL is a run or in one, its recipe decides what no option does, [RUN] below: the figures
    are then those of its results.json.
    """
    from .evaluation.domains import format_domains
    from .recipes import prediction

    with ExitStack() as outputs:
        # First of all: a file that cannot be written should not come to light after the work.
        paths = open_outputs(outputs, predictions, no_answer_probabilities, errors, json_output)
        text_path, odds_path, errors_path, json_path = paths
        recipe, settings = find_use(context, None if task is None else as_task(task))
        if no_answer_threshold is not None and fit_threshold_on is not None:
            raise ValueError("--no-answer-threshold and --fit-threshold-on exclude each other")
        examples, report = read_examples(context, recipe, as_corpus(data))
        # Before the work as well.
        breakdown = domain_options(context, examples)
        options: dict[str, Any] = {}
        if hypothesis_only is not None:
            options["hypothesis_only"] = prediction.read_hypotheses(hypothesis_only)
        validation = None
        if fit_threshold_on is not None:
            corpus = as_corpus(data)
            validation, _ = prediction.read_data(recipe.task, corpus, fit_threshold_on, name=name)
        predict_all = load_predictor(context, recipe)
        found = predict_all(examples)
        if validation is not None:
            found = found.at_threshold(predict_all(validation).fit_threshold())
        scores = found.score(**options)
        if breakdown is not None:
            scores["domains"] = found.by_domain(**breakdown)
        if text_path is not None:
            found.write(text_path)
        if odds_path is not None:
            found.write_no_answer_probabilities(odds_path)
        if errors_path is not None:
            write_errors(found, errors_path, report.corpus)
        if json_path is not None:
            json_path.write_text(json.dumps(scores, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(recipe.describe(report.corpus, scores).rstrip("\n"))
    if breakdown is not None:
        print("\n" + format_domains(scores["domains"]).rstrip("\n"))
    print(settings, file=sys.stderr)
    print_report(report, recipe.task)


@app.command()
def score(
    context: typer.Context,
    references: Annotated[Path, typer.Argument(help="The right translations, one a line.")],
    systems: Annotated[
        list[Path],
        typer.Argument(metavar="SYSTEM...", help="A file of translations; more, to compare."),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="bleu, chrf, chrf++, ter, comet, or meteor, which is for English; may be "
            "repeated. [bleu, chrf and ter]"
        ),
    ] = None,
    lang: Annotated[
        str | None,
        typer.Option(
            help="Language of the translations, such as de: compounds are then split over Moses's "
            "tokens, as in papers; zh, ja, ko are also cut as sacreBLEU does it."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="What was translated, for COMET and for the report by length."),
    ] = None,
    domains: Annotated[
        Path | None,
        typer.Option(help="The domain of each line, for a report on each. [one domain]"),
    ] = None,
    training_text: TrainingText = None,
    worst: NumWorst = 5,
    comet_model: Annotated[
        str | None, typer.Option(help="Checkpoint file or Hub id. [Unbabel/wmt22-comet-da]")
    ] = None,
    samples: NumSamples = None,
    json_output: Json = None,
) -> None:
    """Score files of translations, and say whether systems differ from the first by chance.

    BLEU stands there by each of its usual conventions, since figures by different ones do not
    compare. Of several systems there are two p-values, of the paired bootstrap and of approximate
    randomisation. With --source follows a report by domain, sentence length and rare words.
    """
    from .evaluation.domains import Domain, domain_report, format_domains, split_domains
    from .evaluation.scoring import USUAL_METRICS, format_scores, score_systems

    metrics = metric or USUAL_METRICS
    if source is None:
        refuse(context, ("domains", "training_text", "worst"), "no --source")
    if "comet" not in metrics:
        refuse(context, ("comet_model",), "no --metric comet")
    with ExitStack() as outputs:
        (json_path,) = open_outputs(outputs, json_output)
        right = read_lines(references)
        names = [path.name for path in systems]
        if len(set(names)) < len(names):
            names = [str(path) for path in systems]
        if len(set(names)) < len(names):
            raise ValueError(f"each system must be another file: {', '.join(names)}")
        texts = {
            name: read_lines(path, references, len(right))
            for name, path in zip(names, systems, strict=True)
        }
        sources = None if source is None else read_lines(source, references, len(right))
        labels = ["all"] * len(right)
        if domains is not None:
            labels = read_lines(domains, references, len(right))
        words = count_training_words(training_text)
        result = score_systems(
            texts,
            right,
            metrics=metrics,
            language=lang,
            sources=sources,
            comet_model=comet_model,
            num_samples=samples,
        )
        print(format_scores(result).rstrip("\n"))
        if sources is not None:
            result["domains"] = {
                name: domain_report(
                    split_domains(labels, Domain(sources, lines, right)),
                    training_text=words,
                    num_worst=worst,
                    num_resamples=samples or 1000,
                )
                for name, lines in texts.items()
            }
            for name, report in result["domains"].items():
                print(f"\n# {name}\n\n{format_domains(report)}".rstrip("\n"))
        if json_path is not None:
            json_path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")


@app.command()
def suite(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Model or run directories or Hub ids, one for each task; TASK=MODEL for one that "
            "writes text and is in no run.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=CORPUS[:SPLIT]",
            help="Score on this instead, such as translation=FOLDER:test; may be repeated. "
            "[WMT14 en-de, SQuAD 1.1 and SNLI from the Hub]",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each set; all.")] = None,
    by_domain: Annotated[
        bool,
        typer.Option(
            "--by-domain",
            help="Take each set of translations for a domain, and report on it by sentence "
            "length, rare words and worst sentences.",
        ),
    ] = False,
    training_text: TrainingText = None,
    worst: NumWorst = 5,
    samples: NumSamples = None,
    json_output: Json = None,
    device: Device = None,
) -> None:
    """Score models on the usual sets of translation, questions and inference, in one table."""
    from .evaluation.domains import format_domains
    from .recipes.suite import (
        STANDARD_TEST_SETS,
        evaluate_suite,
        format_suite,
        models_by_task,
        parse_test_sets,
    )

    if not by_domain:
        refuse(context, ("training_text", "worst"), "no --by-domain")
    with ExitStack() as outputs:
        (json_path,) = open_outputs(outputs, json_output)
        sets = STANDARD_TEST_SETS if data is None else parse_test_sets(data)
        breakdown = None
        if by_domain:
            breakdown = {"training_text": count_training_words(training_text), "num_worst": worst}
        results = evaluate_suite(
            models_by_task(models),
            sets,
            limit=limit,
            device=device,
            num_resamples=samples or 1000,
            breakdown=breakdown,
        )
        print(format_suite(results).rstrip("\n"))
        domains = {name: one["domain"] for name, one in results.items() if "domain" in one}
        if domains:
            print("\n" + format_domains(domains).rstrip("\n"))
        if json_path is not None:
            json_path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")


@app.command()
def predict(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model directory, run directory or Hub id.")],
    data: Annotated[
        list[str] | None,
        typer.Argument(help="A corpus, as for evaluate; or none, and a question or a pair below."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File for the predictions: a translation a line, SQuAD's JSON, GLUE's TSV.",
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="One question to answer.")] = None,
    context_text: Annotated[
        str | None,
        typer.Option(
            "--context", help="What to answer it from: text, @FILE, or - for standard input."
        ),
    ] = None,
    premise: Annotated[str | None, typer.Option(help="What is given, to infer from.")] = None,
    hypothesis: Annotated[
        str | None, typer.Option(help="What may follow from the premise, or contradict it.")
    ] = None,
    task: TaskOfWriter = None,
    split: Split = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pairs or questions to predict; all.")
    ] = None,
    name: HubName = None,
    source_lang: RunSourceLang = None,
    target_lang: RunTargetLang = None,
    beams: RunBeams = None,
    alpha: RunAlpha = None,
    max_over_source: RunLimitOver = None,
    batch_tokens: BatchTokens = 4096,
    max_source_tokens: MaxSourceTokens = 1024,
    int8: Int8 = False,
    max_length: MaxLength = None,
    stride: Stride = None,
    max_question_length: MaxQuestionLength = None,
    max_answer_length: MaxAnswerLength = None,
    no_answer_threshold: NoAnswerThreshold = None,
    label_names: LabelNames = None,
    n_best: Annotated[
        Path | None, typer.Option(help="Spans: JSON file for the best answers of each question.")
    ] = None,
    no_answer_probabilities: NoAnswerProbabilities = None,
    precision: Precision = None,
    device: Device = None,
) -> None:
    """Predict a data set into the file that its makers take, or answer one question.

    Labels and answers need not be known. For plain text to translate see translate. Options that
    begin with "Spans" are for models that point at the answer in its context. Where MODEL is a run
    or in one, its recipe decides what no option does, [RUN] below.
    """
    wanted = None if task is None else as_task(task)
    if not data:
        implied, example = one_example(context)
        refuse(context, OF_DATA, "one question or pair")
        if wanted not in (None, implied):
            refuse(context, ("task",), "a question or pair of another task")
        recipe, settings = find_use(context, implied)
        print_one(load_predictor(context, recipe)(example))
        print(settings, file=sys.stderr)
        return
    refuse(context, ("question", "context_text", "premise", "hypothesis"), "a corpus")
    if output is None:
        raise typer.BadParameter("name the file to write with --output")
    with ExitStack() as outputs:
        paths = open_outputs(outputs, output, n_best, no_answer_probabilities)
        path, n_best_path, odds_path = paths
        recipe, settings = find_use(context, wanted)
        examples, report = read_examples(context, recipe, as_corpus(data), keep_unlabelled=True)
        found = load_predictor(context, recipe)(examples)
        found.write(path)
        if n_best_path is not None:
            found.write_n_best(n_best_path)
        if odds_path is not None:
            found.write_no_answer_probabilities(odds_path)
    print(settings, file=sys.stderr)
    print(f"{output}: {len(examples)} predictions for {report.corpus}", file=sys.stderr)
    print_report(report, recipe.task)


# ---------------------------------------------------------------------------------- parsing


def as_corpus(data: list[str]) -> Any:
    """One name or path as it is, two as a pair of text files.

    Raises:
        ValueError: More than two.
    """
    if len(data) > 2:
        raise ValueError(f"give one corpus or two text files, not {len(data)}: {', '.join(data)}")
    return data[0] if len(data) == 1 else [Path(path) for path in data]


def as_task(name: TaskName) -> Any:
    """A task as the recipes name it."""
    return name.replace("-", "_")


def refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuses options that were given and would have no effect.

    Args:
        context: Of the command.
        names: Its parameters that are of no use.
        why: What makes them so.
    """
    for name in names:
        # The sources are an enumeration of click's, which typer does not export.
        source = context.get_parameter_source(name)
        if source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP"):
            raise typer.BadParameter(
                f"{option_of(context, name)} is of no use with {why}; leave it out", ctx=context
            )


def option_of(context: typer.Context, name: str) -> str:
    """A parameter of a command as it is typed."""
    spellings = {parameter.name: parameter.opts for parameter in context.command.params}
    return max(spellings[name], key=len)


def find_use(context: typer.Context, task: Any) -> tuple[Any, str]:
    """How the model of a command is used: by its run's recipe, or the defaults, and by the options.

    Refuses options of another task, or of another way to do it, than the model's.

    Returns:
        The recipe; and what it comes to, as options, and where it is from, for people.
    """
    from .recipes import changed
    from .recipes.prediction import recipe_of

    given = context.params
    recipe: Any
    recipe, file = recipe_of(given["model"], task)
    use = recipe.task
    if hasattr(recipe, "route"):
        use += f" by {WAYS[recipe.route]}"
    for names, uses in OPTIONS_OF.items():
        if use not in uses:
            present = tuple(name for name in names if name in given)
            refuse(context, present, f"{use.replace('_', ' ')}, which {given['model']} is used for")
    settings = []
    for name, field in RECIPE_FIELDS.items():
        uses = next((uses for names, uses in OPTIONS_OF.items() if name in names), (use,))
        if name not in given or use not in uses:
            continue
        if given[name] is not None:
            recipe = changed(recipe, field, given[name])
        value = recipe
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else getattr(value, part)
        option = option_of(context, name)
        if isinstance(value, bool):
            settings += [option] * value
        elif value is not None:
            settings.append(f"{option} {value}")
    origin = file or f"the library's defaults, as {given['model']} is in no run of this task"
    return recipe, f"settings: {' '.join(settings)} (from {origin}, unless given)"


def read_examples(
    context: typer.Context, recipe: Any, corpus: Any, *, keep_unlabelled: bool = False
) -> tuple[Any, Any]:
    """The data that the options of a command describe, and what was read and skipped."""
    from .recipes.prediction import read_data

    given = context.params
    names = given["label_names"]
    languages = {}
    if recipe.task == "translation":
        languages = {"languages": (recipe.source_lang, recipe.target_lang)}
    return read_data(
        recipe.task,
        corpus,
        given["split"],
        **languages,
        limit=given["limit"],
        name=given["name"],
        label_names=None if names is None else [one.strip() for one in names.split(",")],
        keep_unlabelled=keep_unlabelled,
    )


def domain_options(context: typer.Context, examples: Any) -> dict[str, Any] | None:
    """What the options of `evaluate` say of domains, as `Translations.by_domain` takes it.

    Raises:
        ValueError: Not one domain for each pair.
    """
    given = context.params
    path = given["domains"]
    if path is None:
        refuse(context, ("training_text", "worst"), "no --domains")
        return None
    labels = read_lines(path)
    if len(labels) != len(examples):
        raise ValueError(
            f"{path} has {len(labels)} lines and there are {len(examples)} pairs to score; name "
            "the domain of each of them, in their order"
        )
    words = count_training_words(given["training_text"])
    return {"labels": labels, "training_text": words, "num_worst": given["worst"]}


def count_training_words(path: Path | None) -> Any:
    """How often each word occurs in a file, if there is one."""
    from .evaluation.domains import count_words

    if path is None:
        return None
    with opened_input(path) as lines:
        return count_words(lines)


def load_predictor(context: typer.Context, recipe: Any) -> Callable[[Any], Any]:
    """Loads the model of a command, and gives what predicts a data set by a recipe."""
    from .recipes import load_model
    from .recipes.prediction import recipe_kind
    from .training.loop import build_accelerator

    given = context.params
    kind = recipe_kind(recipe)
    network, vocabulary = load_model(given["model"], given["device"], kind=kind)
    needing = [name for name in NEEDS_NO_ANSWER if given.get(name) is not None]
    if needing and not getattr(network.config, "has_no_answer", True):
        raise ValueError(
            f"{option_of(context, needing[0])} is for a model that knows when there is no answer, "
            f"and {given['model']} was trained without has_no_answer; leave it out"
        )
    limits = {}
    if kind == "text":
        limits = {
            "max_batch_tokens": given["batch_tokens"],
            "max_source_tokens": given["max_source_tokens"],
        } | ({"precision": "int8"} if given["int8"] else {})
    accelerator = build_accelerator(recipe.training)

    def predict_all(examples: Any) -> Any:
        found = recipe.predict(network, vocabulary, examples, accelerator, **limits)
        threshold = given["no_answer_threshold"]
        return found if threshold is None else found.at_threshold(threshold)

    return predict_all


def one_example(
    context: typer.Context,
) -> tuple[Any, Any]:
    """The one question or pair that a command was given, as a data set, and its task."""
    from .recipes.prediction import as_pair, as_question

    given = context.params
    question, premise, hypothesis = (given[name] for name in ("question", "premise", "hypothesis"))
    if question is not None:
        refuse(context, ("premise", "hypothesis"), "--question")
        text = given["context_text"]
        return "question_answering", as_question(question, "" if text is None else read_text(text))
    refuse(context, ("context_text",), "no --question")
    if premise is None and hypothesis is None:
        raise typer.BadParameter(
            "name a corpus, or give --question and --context, or --premise and --hypothesis",
            ctx=context,
        )
    if premise is None or hypothesis is None:
        raise typer.BadParameter("--premise and --hypothesis go together", ctx=context)
    return "inference", as_pair(premise, hypothesis)


# Parameters of `evaluate` and `predict` that change a recipe, and the fields that they change.
RECIPE_FIELDS = {
    "source_lang": "source_lang",
    "target_lang": "target_lang",
    "max_length": "max_length",
    "stride": "stride",
    "max_question_length": "max_question_length",
    "max_answer_length": "max_answer_length",
    "beams": "decoding.num_beams",
    "alpha": "decoding.length_penalty",
    "max_over_source": "decoding.max_tokens_over_source",
    "tokenize": "bleu.tokenize",
    "lowercase": "bleu.lowercase",
    "precision": "training.precision",
}
# How a route of a recipe goes about its task.
WAYS = {"span": "spans", "class": "classes", "written": "writing"}
# What parameters are of use for, where that is not everything.
_BY_WRITING = ("translation", "question_answering by writing", "inference by writing")
_INFERENCE = ("inference by classes", "inference by writing")
OPTIONS_OF: dict[tuple[str, ...], tuple[str, ...]] = {
    (
        "source_lang",
        "target_lang",
        "tokenize",
        "lowercase",
        "domains",
        "training_text",
        "worst",
    ): ("translation",),
    ("beams", "alpha", "max_over_source", "batch_tokens", "max_source_tokens", "int8"): _BY_WRITING,
    ("max_length",): ("question_answering by spans", "inference by classes"),
    (
        "stride",
        "max_question_length",
        "max_answer_length",
        "no_answer_threshold",
        "fit_threshold_on",
        "no_answer_probabilities",
        "n_best",
    ): ("question_answering by spans",),
    ("label_names", "hypothesis_only"): _INFERENCE,
    ("errors",): (
        "question_answering by spans",
        "question_answering by writing",
        "inference by classes",
        "inference by writing",
    ),
}
NEEDS_NO_ANSWER = ("no_answer_threshold", "fit_threshold_on", "no_answer_probabilities")
# Of `predict`, what is of use for a corpus and not for one question or pair.
OF_DATA = (
    "output",
    "split",
    "limit",
    "name",
    "label_names",
    "n_best",
    "no_answer_probabilities",
)
# What the data of a task are made of.
NOUNS = {
    "translation": "pairs",
    "question_answering": "questions",
    "inference": "pairs",
    "pretraining": "rows",
}
# What a model that writes no text is given of them, one at a time.
EXAMPLES = {
    "question_answering": "windows",
    "inference": "pairs",
    "pretraining": "blocks",
}


def parsed(text: str) -> Any:
    """A number, `true`, `null`, a list ... as JSON writes it, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


# --------------------------------------------------------------------------- files and printing


@contextmanager
def opened_input(path: Path | None) -> Iterator[Iterator[str]]:
    """Lines of a file or of standard input, decoded as UTF-8."""
    if path is None:
        yield decoded(sys.stdin.buffer, "standard input")
        return
    with open(path, "rb") as file:
        yield decoded(file, str(path))


def decoded(file: BinaryIO, name: str) -> Iterator[str]:
    """Lines of text without their ends.

    Raises:
        ValueError: Bytes that are not UTF-8, with the line and the byte.
    """
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number}: byte {error.start + 1} "
                f"(0x{line[error.start]:02x}) is not UTF-8; convert the text, "
                "for instance with iconv"
            ) from error


def read_lines(path: Path, beside: Path | None = None, count: int = 0) -> list[str]:
    """All lines of a file.

    Raises:
        ValueError: Not as many as the `count` of the file `beside`.
    """
    with opened_input(path) as lines:
        found = list(lines)
    if beside is not None and len(found) != count:
        raise ValueError(
            f"{path} has {len(found)} lines and {beside} has {count}; line n of one must go with "
            "line n of the other"
        )
    return found


@contextmanager
def opened_output(path: Path | None) -> Iterator[typing.TextIO]:
    """Standard output, or a file that appears under its name only when it is complete."""
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        sys.stdout.flush()
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no directory {path.parent}")
    if path.exists() and not path.is_file():
        # A pipe or a device such as /dev/null must not be replaced by a file.
        with open(path, "w", encoding="utf-8") as file:
            yield file
        return
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        yield file


@contextmanager
def output_path(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path` when the block ends without an error.

    Raises:
        OSError: It cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no directory {path.parent}")
    if path.exists() and not path.is_file():
        # A pipe or a device such as /dev/stdout must not be replaced by a file.
        with tempfile.TemporaryDirectory() as folder, open(path, "wb") as file:
            partial = Path(folder) / path.name
            yield partial
            file.write(partial.read_bytes())
        return
    with atomic_file(path) as partial:
        # Fails now rather than after the work where the directory is read-only.
        partial.touch()
        yield partial


def open_outputs(outputs: ExitStack, *paths: Path | None) -> list[Path | None]:
    """As `output_path` for each path, and for None none.

    Raises:
        ValueError: Two are the same.
        OSError: One cannot be written.
    """
    given = [path.resolve() for path in paths if path is not None and not is_special(path)]
    for path, other in itertools.combinations(given, 2):
        if path == other:
            raise ValueError(f"{path} is named for two outputs; give each a file of its own")
    return [None if path is None else outputs.enter_context(output_path(path)) for path in paths]


def is_special(path: Path) -> bool:
    """Whether a path is a pipe or a device, to which anything can be written."""
    return path.exists() and not path.is_file()


def read_text(text: str) -> str:
    """A text given as it is, as @FILE, or as - for standard input."""
    if text != "-" and not text.startswith("@"):
        return text
    with opened_input(None if text == "-" else Path(text[1:])) as lines:
        return "\n".join(lines)


def write_errors(found: Any, path: Path, corpus: str) -> None:
    """Writes the page to look through predictions in."""
    from .inspection.errors import write_inference_errors, write_question_answering_errors
    from .recipes.question_answering import Answers

    if isinstance(found, Answers):
        write_question_answering_errors(found.questions, found.as_spans(), path, title=corpus)
    else:
        known = found.labels if found.probabilities is None else found.probabilities
        write_inference_errors(found.pairs, known, path, names=found.names, title=corpus)


def is_main_process() -> bool:
    """Whether this process is the one of those launched together that prints."""
    return os.environ.get("RANK", "0") == "0"


def print_recipes() -> None:
    """The recipes, each with the figure it aims at."""
    from .recipes import RECIPES

    task = ""
    # Those of one task stand together.
    for recipe in RECIPES.values():
        if recipe.task != task:
            task = recipe.task
            print(f"# {task.replace('_', ' ')}")
        print(recipe.name)
        print_entry("", recipe.description, width=4)
        if recipe.published:
            print_entry("", f"published: {recipe.published}", width=4)


def print_checkpoints() -> None:
    """The families of checkpoints, and what is published of each."""
    from .conversion import CATALOGUE, FAMILIES

    for family in FAMILIES:
        print(f"# {family.name}: {family.title}")
        for entry in CATALOGUE:
            if entry.family != family.name:
                continue
            print(entry.name)
            languages = "many languages" if "*" in entry.languages else "-".join(entry.languages)
            print_entry("", f"{languages}, {entry.licence}, {entry.architecture}", width=4)
            if entry.bleu:
                print_entry("", f"BLEU {entry.bleu} ({entry.reference})", width=4)
            else:
                print_entry("", f"published: {entry.reference}", width=4)


def print_estimate(recipe: Any, costs: Any, corpus: Any) -> None:
    """What a run would cost, in lines of at most 80 columns."""
    from .recipes import describe_machine

    config, training, update, piece = costs.config, recipe.training, costs.update, costs.piece
    noun = "pairs" if costs.writes_text else EXAMPLES[recipe.task]
    decoder = f" + {config.num_decoder_layers}" if costs.has_decoder else ""
    print(recipe.name)
    print_entry("", recipe.description)
    print_entry("published", recipe.published or "no figure")
    print_entry(
        "model",
        f"{costs.parameters:,} parameters: {config.num_encoder_layers}{decoder} layers, "
        f"d_model {config.d_model}, d_ff {config.d_ff}, {config.num_heads} heads, "
        f"{config.vocab_size:,} tokens",
    )
    if corpus is None:
        where = f"{recipe.corpus} on the Hub" if recipe.corpus else "to be given with --data"
        text = (
            f"{where}{recipe.data_source and f' ({recipe.data_source})'}: epochs unknown, "
            f"{noun} taken to have {update.source_length:.0f} tokens"
            f"{' a side' if costs.writes_text else ''}"
        )
    else:
        how = "counted" if corpus.is_counted else "estimated from the words"
        text = f"{corpus.examples:,} {noun}, about {corpus.source_tokens:,.0f}"
        if costs.writes_text:
            text += f" source and {corpus.target_tokens:,.0f} target"
        text += f" tokens ({how})"
    print_entry("text", text)
    # Where nothing is written the second budget is one of examples.
    budget = (
        f"{training.max_source_tokens:,} source and {training.max_target_tokens:,} target tokens"
        if costs.writes_text
        else f"{training.max_source_tokens:,} tokens and {training.max_target_tokens:,} {noun}"
    )
    print_entry(
        "update",
        f"up to {budget} with padding, about {update.target_tokens / update.target_length:,.0f} "
        f"{noun}, however many processes share them",
    )
    pieces = (
        "1 piece" if training.accumulation_steps == 1 else f"{training.accumulation_steps} pieces"
    )
    target = f" + {piece.target_tokens:,.0f}" if costs.writes_text else ""
    print_entry(
        "processes",
        f"{costs.processes}, each with {pieces} of about {piece.source_tokens:,.0f}{target} tokens",
    )
    epochs = "" if costs.epochs is None else f", about {costs.epochs:,.1f} epochs"
    print_entry("updates", f"{training.updates:,}, of which {training.warmup:,} to warm up{epochs}")
    print_entry(
        "compute",
        f"{costs.update_flops / 1e12:,.3g} TFLOP an update, {costs.total_flops:.2g} FLOP in all",
    )
    parts = ", ".join(
        f"{name.replace('_', ' ')} {in_bytes(size)}"
        for name, size in vars(costs.memory).items()
        if size
    )
    print_entry("memory", f"about {in_bytes(costs.memory.total)} a process, an estimate: {parts}")
    print_entry("machine", describe_machine())


def in_bytes(size: float) -> str:
    """A size in the unit that suits it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def print_entry(name: str, text: str, width: int = 11) -> None:
    """A name and its text, wrapped beside it."""
    wrapper = textwrap.TextWrapper(
        80,
        initial_indent=name.ljust(width),
        subsequent_indent=" " * width,
        # A name such as Jason-Young-AI/YoungS-configs stays in one piece.
        break_on_hyphens=False,
    )
    print(wrapper.fill(text))


def print_one(found: Any) -> None:
    """The answer or label of one question or pair, and what else it may be."""
    from .recipes.question_answering import Answers

    if isinstance(found, Answers):
        (text,) = found.texts.values()
        rows = []
        if found.spans is not None:
            (span,) = found.spans
            rows = [(one.probability, one.text) for one in span.n_best]
            if span.no_answer_score is not None:
                rows.append((1 - sum(probability for probability, _ in rows), ""))
        rows.sort(key=lambda row: -row[0])
    else:
        label = found.labels[0]
        text = found.names[label] if label >= 0 else ""
        rows = []
        if found.probabilities is not None:
            rows = sorted(
                zip(found.probabilities[0].tolist(), found.names, strict=True), reverse=True
            )
    nothing = "(no answer)" if isinstance(found, Answers) else "(no label)"
    print(text or nothing)
    for probability, other in rows:
        print(f"{probability:8.4f}  {' '.join(other.split()) or nothing}")


def print_report(report: Any, task: str) -> None:
    """What of a corpus was left out, and what was mended."""
    print_skipped(report.skipped, NOUNS[task])
    print_skipped(getattr(report, "mended", {}), NOUNS[task], "mended")


def print_skipped(skipped: dict[str, int], noun: str, verb: str = "left out") -> None:
    """How many examples were left out and why."""
    for reason, count in skipped.items():
        if count:
            print(f"{verb}: {count} {noun}, {reason}", file=sys.stderr)


def main() -> None:
    """Runs the command line; a wrong argument or a bad file gives one line, not a traceback."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(level=logging.WARNING, format=f"{signature()}: %(message)s")
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        # Read by `datasets` when it is imported: bars in a log file are noise.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    command = typer.main.get_command(app)
    try:
        # Not `app()`: that takes Ctrl-C and a closed pipe for itself.
        with command.make_context("vanilla-transformer", sys.argv[1:] or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort) as error:
        fail(str(error) or "interrupted", 130)
    except BrokenPipeError:
        # Whoever read the output has read enough. Leave quietly, also from the flush at exit.
        sys.stderr.close()
        sys.exit(141)
    except StrictDataclassError as error:
        fail(str(error).splitlines()[-1].strip(), 1)
    except (ValueError, OSError, FloatingPointError, RuntimeError, SafetensorError) as error:
        # RuntimeError: what torch says of a device that is full or weights that do not fit.
        fail(" ".join(str(error).split()), 1)
    except Exception as error:
        if not isinstance(error, _CommandLineError):
            raise
        problem: Any = error
        message = " ".join(problem.format_message().split())
        where = getattr(problem, "ctx", None)
        path = where.command_path if where else "vanilla-transformer"
        fail(f"{message} ({path} --help tells more)", 2 if isinstance(error, _UsageError) else 1)
    sys.exit(0)


def fail(message: str, status: int) -> typing.NoReturn:
    """Prints one line to standard error and exits."""
    print(f"{signature()}: {message}", file=sys.stderr)
    sys.exit(status)


def signature() -> str:
    """Who speaks: the program and, of several processes, all but the main one by number."""
    name = "vanilla-transformer"
    return name if is_main_process() else f"{name}, process {os.environ['RANK']}"
