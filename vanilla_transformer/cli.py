"""`vanilla-transformer VERB`: parses the arguments, calls one function, prints what it gives."""

import io
import json
import logging
import os
import sys
import textwrap
import typing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from .atomic_file import atomic_file

# typer brings its own copy of click since 0.2x, and before took the installed one: BadParameter is
# the one error of either that typer exports, and these are what it is a kind of.
_UsageError, _CommandLineError = typer.BadParameter.__mro__[1:3]

app = typer.Typer(
    name="vanilla-transformer",
    help='The Transformer of "Attention Is All You Need": train it, translate with it, score it.',
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
Beams = Annotated[int, typer.Option(min=1, help="Beam width; 1 is greedy search.")]
Alpha = Annotated[
    float, typer.Option(help="Length penalty alpha: scores are divided by ((5 + n) / 6)^alpha.")
]
LimitOver = Annotated[
    int, typer.Option(min=1, help="Tokens that an output may have beyond those of its source.")
]
BatchTokens = Annotated[
    int, typer.Option(min=1, help="Source tokens in a batch; memory grows with it and with beams.")
]
MaxSourceTokens = Annotated[
    int, typer.Option(min=1, help="A longer sentence is left out: it gives an empty line.")
]


@app.command()
def tokenizer(
    data: Annotated[
        list[str],
        typer.Argument(help="A corpus: folder, file, Hub id or tiny_world; or two text files."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    source_lang: SourceLang = "en",
    target_lang: TargetLang = "de",
    split: Annotated[str, typer.Option(help="Part of the corpus to learn from.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Pairs to learn from; all.")] = None,
    vocab_size: Annotated[
        int, typer.Option(help="Tokens wanted, special ones and 256 bytes included.")
    ] = 37_000,
) -> None:
    """Train the byte-pair encoding that both languages share (paper 5.1)."""
    from .data.corpora import load_parallel
    from .recipes import both_sides
    from .tokenization import train_tokenizer
    from .training.checkpointing import atomic_directory

    pairs, report = load_parallel(as_corpus(data), source_lang, target_lang, split, limit=limit)
    trained = train_tokenizer(both_sides(pairs), vocab_size, show_progress=sys.stderr.isatty())
    with atomic_directory(output) as directory:
        trained.save_pretrained(directory)
    print(f"{output}: {len(trained)} tokens, learned from {report.kept} pairs of {report.corpus}")
    print_skipped(report.skipped)


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
    print_skipped(results["data"]["skipped"] | {"too long": results["data"]["too_long"]})
    for split, scores in results["tests"].items():
        print_scores(f"{split} ({scores['sentences']} sentences)", scores)
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
def translate(
    model: Annotated[str, typer.Argument(help="Model directory, run directory or Hub id.")],
    source: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", help="Text, a sentence a line. [stdin]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the translations. [stdout]")
    ] = None,
    beams: Beams = 4,
    alpha: Alpha = 0.6,
    max_over_source: LimitOver = 50,
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
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Lines read ahead to sort by length. [4096; 1 from a terminal]"),
    ] = None,
    device: Device = None,
) -> None:
    """Translate a file or standard input, line by line, in the input's order."""
    from transformers import set_seed

    from .generation import DecodingSettings, TranslationReport
    from .generation import translate as translate_lines
    from .recipes import load_model

    decoding = DecodingSettings(
        num_beams=1 if sample else beams,
        length_penalty=alpha,
        max_tokens_over_source=max_over_source,
        num_hypotheses=n_best,
        do_sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    set_seed(seed)
    report = TranslationReport()
    is_interactive = source is None and sys.stdin.isatty()
    with opened_input(source) as lines, opened_output(output) as file:
        network, vocabulary = load_model(model, device)
        found = translate_lines(
            network,
            vocabulary,
            lines,
            decoding,
            max_batch_tokens=batch_tokens,
            max_source_tokens=max_source_tokens,
            window=window or (1 if is_interactive else 4096),
            report=report,
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
    model: Annotated[str, typer.Argument(help="Model directory, run directory or Hub id.")],
    data: Annotated[
        list[str],
        typer.Argument(help="A corpus: folder, file, Hub id or tiny_world; or two text files."),
    ],
    source_lang: SourceLang = "en",
    target_lang: TargetLang = "de",
    split: Annotated[str, typer.Option(help="Part of the corpus to score.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Pairs to score; all.")] = None,
    beams: Beams = 4,
    alpha: Alpha = 0.6,
    max_over_source: LimitOver = 50,
    tokenize: Annotated[
        str, typer.Option(help="sacreBLEU's tokenizer for BLEU; none for text tokenised already.")
    ] = "13a",
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Compare without case.")] = False,
    batch_tokens: BatchTokens = 4096,
    max_source_tokens: MaxSourceTokens = 1024,
    predictions: Annotated[
        Path | None, typer.Option(help="File to write the translations to.")
    ] = None,
    json_output: Annotated[
        Path | None, typer.Option("--json", help="File to write the scores to.")
    ] = None,
    device: Device = None,
) -> None:
    """Translate a test set and score it: BLEU, chrF and TER with sacreBLEU's signatures."""
    from .data.corpora import load_parallel
    from .generation import DecodingSettings
    from .recipes import load_model, score_corpus

    decoding = DecodingSettings(
        num_beams=beams, length_penalty=alpha, max_tokens_over_source=max_over_source
    )
    pairs, report = load_parallel(as_corpus(data), source_lang, target_lang, split, limit=limit)
    # Opened first: a file that cannot be written should not come to light after the translation.
    with ExitStack() as files:
        text_file, json_file = (
            None if path is None else files.enter_context(opened_output(path))
            for path in (predictions, json_output)
        )
        network, vocabulary = load_model(model, device)
        scores, translations = score_corpus(
            network,
            vocabulary,
            pairs,
            decoding,
            {"tokenize": tokenize, "lowercase": lowercase},
            max_batch_tokens=batch_tokens,
            max_source_tokens=max_source_tokens,
        )
        if text_file is not None:
            text_file.writelines(" ".join(text.splitlines()) + "\n" for text in translations)
        if json_file is not None:
            json_file.write(json.dumps(scores, indent=2) + "\n")
    print_scores(f"{report.corpus}: {scores['sentences']} sentences", scores)
    print_skipped(report.skipped)


# ---------------------------------------------------------------------------------- parsing


def as_corpus(data: list[str]) -> Any:
    """One name or path as it is, two as a pair of text files.

    Raises:
        ValueError: More than two.
    """
    if len(data) > 2:
        raise ValueError(f"give one corpus or two text files, not {len(data)}: {', '.join(data)}")
    return data[0] if len(data) == 1 else [Path(path) for path in data]


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


def is_main_process() -> bool:
    """Whether this process is the one of those launched together that prints."""
    return os.environ.get("RANK", "0") == "0"


def print_recipes() -> None:
    """The recipes, each with the figure it aims at."""
    from .recipes import RECIPES

    for recipe in RECIPES.values():
        print(recipe.name)
        print_entry("", recipe.description, width=4)
        if recipe.published:
            print_entry("", f"published: {recipe.published}", width=4)


def print_estimate(recipe: Any, costs: Any, corpus: Any) -> None:
    """What a run would cost, in lines of at most 80 columns."""
    from .recipes import describe_machine

    config, training, update, piece = costs.config, recipe.training, costs.update, costs.piece
    print(recipe.name)
    print_entry("", recipe.description)
    print_entry("published", recipe.published or "no figure")
    print_entry(
        "model",
        f"{costs.parameters:,} parameters: {config.num_encoder_layers} + "
        f"{config.num_decoder_layers} layers, d_model {config.d_model}, d_ff {config.d_ff}, "
        f"{config.num_heads} heads, {config.vocab_size:,} tokens",
    )
    if corpus is None:
        where = f"{recipe.corpus} on the Hub" if recipe.corpus else "to be given with --data"
        text = (
            f"{where}{recipe.data_source and f' ({recipe.data_source})'}: epochs unknown, "
            f"sentences taken to have {update.source_length} tokens"
        )
    else:
        how = "counted" if corpus.is_counted else "estimated from the words"
        text = (
            f"{corpus.pairs:,} pairs, about {corpus.source_tokens:,.0f} source and "
            f"{corpus.target_tokens:,.0f} target tokens ({how})"
        )
    print_entry("text", text)
    print_entry(
        "update",
        f"up to {training.max_source_tokens:,} source and {training.max_target_tokens:,} target "
        f"tokens with padding, about {update.target_tokens / update.target_length:,.0f} sentences, "
        "however many processes share them",
    )
    pieces = (
        "1 piece" if training.accumulation_steps == 1 else f"{training.accumulation_steps} pieces"
    )
    print_entry(
        "processes",
        f"{costs.processes}, each with {pieces} of about {piece.source_tokens:,.0f} + "
        f"{piece.target_tokens:,.0f} tokens",
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


def print_scores(title: str, scores: dict[str, Any]) -> None:
    """BLEU, chrF and TER, each with its signature."""
    print(title)
    for metric, name in (("bleu", "BLEU"), ("chrf", "chrF"), ("ter", "TER")):
        print(f"  {name:5} {scores[metric]['score']:6.2f}  {scores[metric]['signature']}")


def print_skipped(skipped: dict[str, int]) -> None:
    """How many pairs were left out and why."""
    for reason, count in skipped.items():
        if count:
            print(f"left out: {count} pairs, {reason}", file=sys.stderr)


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
