"""Named complete runs as typed Python: architecture, data, optimisation, decoding, scoring."""

import dataclasses
import difflib
import json
import os
import platform
import time
import types
import typing
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from datasets import Dataset, IterableDataset
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .atomic_file import atomic_file
from .configuration_vanilla_transformer import PAPER_ARCHITECTURES, VanillaTransformerConfig
from .data.corpora import CorpusReport, hold_out, is_hub_id, load_parallel
from .evaluation import score_translations
from .generation import PAPER_DECODING, DecodingSettings, TranslationReport, translate
from .modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .tasks.translation import encode_pairs
from .tokenization import load_tokenizer, train_tokenizer
from .training.checkpointing import atomic_directory, find_checkpoints
from .training.estimation import CorpusSize, RunEstimate, estimate_run
from .training.loop import build_accelerator, train
from .training.settings import TrainingSettings
from .training.validation import translate_texts

# For what the main process does alone, training a tokenizer above all: the others wait for it in a
# collective operation, which by default gives up after ten minutes.
_PATIENCE = timedelta(hours=12)

# Byte-level BPE gives 1.1 to 1.5 tokens a word on the corpora below.
_TOKENS_PER_WORD = 1.3


@dataclass(frozen=True)
class Recipe:
    """A complete translation run.

    Token budgets are those of a global batch: however many processes share it, and in however many
    pieces each computes its part, an update sees the same sentences.

    Attributes:
        name: What the command line calls it.
        description: One line.
        source_lang, target_lang: Languages as the corpus names them.
        corpus: Hub id, path, two text files or `"tiny_world"`; empty where the text has to be
            given at run time.
        data_source: Where to get a corpus that is to be given.
        train_split: Name in the corpus.
        validation_split: Name in the corpus; None holds `held_out` sentences out of the training
            split.
        held_out: How many, see `hold_out`.
        test_splits: Scored at the end, with the final model.
        train_limit: Pairs taken from the front of the training split; None for all.
        streaming: Read the training data as a stream instead of memory-mapping it.
        vocab_size: Of the shared byte-pair encoding (5.1).
        max_length: Longer training pairs are left out, in tokens of either side.
        initial_model: Directory or Hub id of a model to go on from (fine-tuning), whose tokenizer
            and architecture are then used; None trains from scratch.
        architecture: Arguments of `VanillaTransformerConfig`; the vocabulary comes from the data.
        training: How to train.
        driver: What runs the training: the explicit loop or transformers' trainer.
        decoding: How to translate the test sets.
        bleu: Options of BLEU, such as `tokenize` and `lowercase`.
        published: The figure aimed at, how it was measured, and its source.
    """

    name: str
    description: str
    source_lang: str
    target_lang: str
    corpus: str | tuple[str, ...] = ""
    data_source: str = ""
    train_split: str = "train"
    validation_split: str | None = "validation"
    held_out: int = 2000
    test_splits: tuple[str, ...] = ("test",)
    train_limit: int | None = None
    streaming: bool = False
    vocab_size: int = 37_000
    max_length: int = 256
    initial_model: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    driver: Literal["loop", "trainer"] = "loop"
    decoding: DecodingSettings = PAPER_DECODING
    bleu: dict[str, Any] = field(default_factory=dict)
    published: str = ""

    def __post_init__(self) -> None:
        _check_names("architecture", self.architecture, _ARCHITECTURE_NAMES)
        _check_names("bleu", self.bleu, ("tokenize", "lowercase"))
        # Dimensions that cannot work should not come to light after the data are read.
        VanillaTransformerConfig(vocab_size=self.vocab_size, **self.architecture)


# Sizes and ids of the vocabulary come from the tokenizer.
_ARCHITECTURE_NAMES = (
    set(VanillaTransformerConfig.__dataclass_fields__) | set(VanillaTransformerConfig.attribute_map)
) - {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"}


def _check_names(field_name: str, given: dict[str, Any], known: Collection[str]) -> None:
    """Refuses a name that would have no effect."""
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"{field_name} has no field {name!r}{hint}")


# ------------------------------------------------------------------------------------ the recipes

_TINY = {
    "d_model": 128,
    "d_ff": 256,
    "num_heads": 4,
    "num_encoder_layers": 4,
    "num_decoder_layers": 4,
    "dropout": 0.3,
}
_MULTI30K_TINY = Recipe(
    name="multi30k-en-de",
    description="Transformer-Tiny on Multi30k English to German, tokenised and lower-cased text",
    source_lang="en",
    target_lang="de",
    data_source="a folder of Multi30k in tokenised, lower-cased form: train, validation, "
    "test_2016_flickr, test_2017_flickr, test_2017_mscoco",
    test_splits=("test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"),
    vocab_size=8000,
    architecture=_TINY,
    training=TrainingSettings(
        updates=8000,
        warmup=2000,
        # A peak of 0.005, as published.
        learning_rate_factor=2.5,
        max_source_tokens=8192,
        max_target_tokens=8192,
        validate_every=500,
        checkpoint_every=100,
        average_last=10,
    ),
    decoding=DecodingSettings(num_beams=5, length_penalty=0.6),
    # The text is tokenised already: the published figures are of its tokens as they stand.
    bleu={"tokenize": "none", "lowercase": True},
    published="41.02 BLEU on test_2016_flickr, of lower-cased tokens, beam 5 (Transformer-Tiny, "
    "README-baseline.md of LividWo/Revisit-MMT)",
)

# What the published settings need hours for on a processor, in an hour: less dropout and smaller
# batches, with which the decoder learns to look at the source much earlier.
_MULTI30K_TINY_HOUR = dataclasses.replace(
    _MULTI30K_TINY,
    name="multi30k-en-de-hour",
    description="The same model in less than an hour on 2 cores: dropout 0.1, small batches",
    architecture={**_TINY, "dropout": 0.1},
    training=TrainingSettings(
        updates=9000,
        warmup=600,
        learning_rate_factor=0.42,
        max_source_tokens=2048,
        max_target_tokens=2048,
        validate_every=500,
        checkpoint_every=250,
        average_last=8,
        log_every=100,
        max_minutes=42.0,
    ),
)

_BIG = PAPER_ARCHITECTURES["big"]
# 5.1: 25,000 source and 25,000 target tokens a batch; 5.2: 100,000 updates of 0.4 seconds for base,
# 300,000 of 1.0 seconds for big; 5.3: 4,000 of them for the warm-up. 6.1 averages checkpoints
# written at 10-minute intervals: 1,500 updates of base, 600 of big, on the paper's machine.
_PAPER_BASE = TrainingSettings(
    validate_every=5000, checkpoint_every=1500, precision="bf16", num_workers=2
)
_PAPER_BIG = dataclasses.replace(
    _PAPER_BASE, updates=300_000, checkpoint_every=600, average_last=20
)
_WMT14_EN_DE = Recipe(
    name="wmt14-en-de-base",
    description="The paper's base model on WMT14 English to German",
    source_lang="en",
    target_lang="de",
    corpus="wmt14",
    vocab_size=37_000,
    training=_PAPER_BASE,
    published="27.3 BLEU on newstest2014 (paper, Table 2; it does not name its scorer: "
    "Tensor2Tensor's get_ende_bleu.sh scores tokens with compounds split, which "
    "comes out higher than sacreBLEU's 13a)",
)
_WMT14_EN_FR = Recipe(
    name="wmt14-en-fr-base",
    description="The paper's base model on WMT14 English to French",
    source_lang="en",
    target_lang="fr",
    corpus="wmt14",
    # The paper's are word pieces; here, as for German, byte-pair encoding.
    vocab_size=32_000,
    training=_PAPER_BASE,
    published="38.1 BLEU on newstest2014 (paper, Table 2; it does not name its scorer)",
)

# transformer_iwslt_de_en of fairseq with the settings of its README; LayerNorm and embeddings are
# the paper's, and one vocabulary serves both languages.
_IWSLT = {"d_model": 512, "d_ff": 1024, "num_heads": 4, "dropout": 0.3}
_IWSLT14 = Recipe(
    name="iwslt14-de-en",
    description="IWSLT14 German to English by fairseq's settings, tokenised and lower-cased text",
    source_lang="de",
    target_lang="en",
    corpus="iwslt14",
    data_source="where the Hub is out of reach, the folder tmp/ that fairseq's prepare-iwslt14.sh "
    "leaves, with --set validation_split=valid",
    vocab_size=10_000,
    architecture=_IWSLT,
    training=TrainingSettings(
        updates=50_000,
        # A peak of 5e-4.
        learning_rate_factor=0.7155,
        max_source_tokens=4096,
        max_target_tokens=4096,
        # About an epoch.
        validate_every=1000,
        checkpoint_every=1000,
        average_last=10,
        precision="bf16",
        num_workers=2,
    ),
    decoding=DecodingSettings(num_beams=5, length_penalty=1.0, length_penalty_formula="power"),
    # The text is tokenised and lower-cased already.
    bleu={"tokenize": "none"},
    published="34.54 BLEU on test, of lower-cased tokens (fairseq's model, as reported in "
    "examples/translation-iwslt14-en-de/README.md of YongfeiYan/lessdl)",
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="tiny-world",
            description="The embedded corpus, English to German, in minutes on a laptop",
            source_lang="en",
            target_lang="de",
            corpus="tiny_world",
            train_limit=20_000,
            vocab_size=1000,
            architecture={
                "d_model": 128,
                "d_ff": 512,
                "num_heads": 4,
                "num_encoder_layers": 2,
                "num_decoder_layers": 2,
                # Unlimited data of one grammar: there is nothing to overfit to.
                "dropout": 0.0,
            },
            training=TrainingSettings(
                updates=900,
                warmup=100,
                learning_rate_factor=0.25,
                max_source_tokens=2048,
                max_target_tokens=2048,
                validate_every=300,
                validation_sentences=200,
                checkpoint_every=20,
                average_last=10,
                log_every=20,
            ),
        ),
        _MULTI30K_TINY,
        _MULTI30K_TINY_HOUR,
        Recipe(
            name="tatoeba-en-fr",
            description="A small model on Tatoeba's short sentences, English to French",
            source_lang="en",
            target_lang="fr",
            data_source="a folder of Tatoeba English-French with the splits train and test",
            # The corpus has no other split; its pairs are sorted by length.
            validation_split=None,
            held_out=2000,
            vocab_size=12_000,
            architecture={
                "d_model": 256,
                "d_ff": 1024,
                "num_heads": 4,
                "num_encoder_layers": 4,
                "num_decoder_layers": 4,
                "dropout": 0.2,
            },
            training=TrainingSettings(
                updates=12_000,
                warmup=2000,
                max_source_tokens=8192,
                max_target_tokens=8192,
                validate_every=1000,
                validation_sentences=1000,
                checkpoint_every=200,
                average_last=10,
            ),
            published="none for training on this set alone; 50.5 BLEU on Tatoeba.en.fr by "
            "opus-mt-en-fr, trained on all of OPUS (model card of Helsinki-NLP/opus-mt-en-fr)",
        ),
        _IWSLT14,
        dataclasses.replace(
            _IWSLT14,
            name="iwslt17-de-en",
            description="IWSLT17 (TED talks) German to English by fairseq's IWSLT settings",
            corpus="iwslt2017",
            data_source="",
            vocab_size=16_000,
            training=dataclasses.replace(
                _IWSLT14.training,
                updates=10_000,
                # 8 times 4,000, as fairseq's README has it for IWSLT17.
                max_source_tokens=32_000,
                max_target_tokens=32_000,
                validate_every=500,
                checkpoint_every=170,
            ),
            decoding=DecodingSettings(num_beams=5, length_penalty=1.0),
            bleu={},
            published="none known for this test set, tst2010 to tst2015 in one (8,079 pairs), in "
            "raw text; fairseq's README, whose settings these are, reports none",
        ),
        Recipe(
            name="wmt16-en-ro",
            description="The base model on WMT16 English to Romanian",
            source_lang="en",
            target_lang="ro",
            corpus="wmt16",
            vocab_size=32_768,
            training=dataclasses.replace(
                _PAPER_BASE,
                updates=30_000,
                # 4 GPUs with 4,096 each.
                max_source_tokens=16_384,
                max_target_tokens=16_384,
                validate_every=1000,
                checkpoint_every=1000,
            ),
            published="33.58 BLEU on newstest2016, of tokens by multi-bleu.perl, which sacreBLEU's "
            "13a need not match (base size, pre-norm; README of Jason-Young-AI/YoungS-configs)",
        ),
        _WMT14_EN_DE,
        dataclasses.replace(
            _WMT14_EN_DE,
            name="wmt14-en-de-big",
            description="The paper's big model on WMT14 English to German",
            architecture=_BIG,
            training=_PAPER_BIG,
            published=_WMT14_EN_DE.published.replace("27.3", "28.4"),
        ),
        _WMT14_EN_FR,
        dataclasses.replace(
            _WMT14_EN_FR,
            name="wmt14-en-fr-big",
            description="The paper's big model on WMT14 English to French",
            # 6.1: dropout 0.1 instead of 0.3.
            architecture={**_BIG, "dropout": 0.1},
            training=_PAPER_BIG,
            published=_WMT14_EN_FR.published.replace("38.1", "41.8"),
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


# ------------------------------------------------------------------------- changing and reading one


def changed(instance: Any, name: str, value: Any) -> Any:
    """A copy of a dataclass with the field `name`, dotted for one inside another, set to `value`.

    Raises:
        ValueError: There is no such field, or the value is of another type.
    """
    first, _, rest = name.partition(".")
    kinds = typing.get_type_hints(type(instance))
    if first not in kinds:
        known = ", ".join(kinds)
        raise ValueError(f"{type(instance).__name__} has no field {first!r}; it has {known}")
    current = getattr(instance, first)
    if rest:
        if dataclasses.is_dataclass(current):
            value = changed(current, rest, value)
        elif isinstance(current, dict):
            value = {**current, rest: value}
        else:
            raise ValueError(f"{first} has no parts, so {name} names nothing")
    return dataclasses.replace(instance, **{first: _fitted(name, value, kinds[first])})


def _fitted(name: str, value: Any, annotation: Any) -> Any:
    """`value` as a field of that annotation holds it: 3 as 3.0, a list as a tuple, {} as an object.

    Raises:
        ValueError: It cannot be one.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _fitted(name, value, argument)
            except ValueError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_fitted(name, part, arguments[0]) for part in value)
    elif dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        return _from_values(annotation, value)
    elif annotation in (int, float):
        kinds = int if annotation is int else (int, float)
        # True is an int to Python, and a slip to a reader.
        if isinstance(value, kinds) and not isinstance(value, bool):
            return annotation(value)
    elif isinstance(value, origin or annotation):
        return value
    expected = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if origin is Literal:
        expected = f"one of {', '.join(arguments)}"
    raise ValueError(f"{name} ({value!r}) must be {expected}")


def _from_values(kind: Any, values: dict[str, Any]) -> Any:
    """An instance of a dataclass from the JSON values of its fields."""
    kinds = typing.get_type_hints(kind)
    _check_names(kind.__name__, values, kinds)
    for entry in dataclasses.fields(kind):
        is_required = entry.default is entry.default_factory is dataclasses.MISSING
        if is_required and entry.name not in values:
            raise ValueError(f"{kind.__name__} lacks the field {entry.name!r}")
    return kind(**{name: _fitted(name, value, kinds[name]) for name, value in values.items()})


def read_recipe(path: Path) -> Recipe:
    """The recipe of a run, from its `recipe.json`.

    Raises:
        ValueError: There is no such file, or it holds no recipe; unknown fields are refused.
    """
    try:
        return _from_values(Recipe, json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no run: there is no {path.name} in it") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} holds no recipe of this version: {error}") from error


# What a run may change when it goes on: how long, how often it looks, how it computes the same.
_CHANGEABLE = frozenset(
    (
        "description",
        "data_source",
        "published",
        # Each driver resumes what the other began.
        "driver",
        "test_splits",
        "decoding",
        "bleu",
        "training.updates",
        "training.max_minutes",
        "training.validate_every",
        "training.validation_beams",
        "training.validation_sentences",
        "training.sample_translations",
        "training.patience",
        "training.checkpoint_every",
        "training.average_last",
        "training.log_every",
        "training.trackers",
        "training.max_loss_spike",
        "training.precision",
        "training.activation_checkpointing",
        "training.compile",
        "training.accumulation_steps",
        "training.num_workers",
    )
)


def check_goes_on(saved: Recipe, wanted: Recipe) -> None:
    """Refuses to go on with a run by settings that would make it another one.

    Raises:
        ValueError: Naming the setting, both values and what to do.
    """
    before, after = (_flat(recipe) for recipe in (saved, wanted))
    for name, value in after.items():
        if name in _CHANGEABLE or value == before[name]:
            continue
        remedy = "begin a new run in another directory, or with --init go on from this one's model"
        if name == "corpus":
            remedy += "; if the same data have moved, change corpus in recipe.json"
        raise ValueError(
            f"{name} cannot change from {before[name]!r} to {value!r} while a run goes on: it "
            f"would be another run; {remedy}"
        )


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Fields by name, those of `training` one by one."""
    values = dataclasses.asdict(recipe)
    training = values.pop("training")
    return values | {f"training.{name}": value for name, value in training.items()}


# ---------------------------------------------------------------------------------- a whole run


def execute(
    recipe: Recipe,
    output: Path,
    *,
    tokenizer: str | Path | None = None,
    num_proc: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Runs `recipe` from text to test scores.

    With several processes (`torchrun`, `accelerate launch`) each of them calls it. The main process
    trains the tokenizer and writes the files; `output` must be the same directory for all of them.

    Args:
        recipe: What to run; with `resume` the run's own, but for what `check_goes_on` lets pass.
        output: The run's directory; see `train` for what it holds. `recipe.json` and
            `results.json` are written beside that.
        tokenizer: Directory of a tokenizer to use instead of training one.
        num_proc: Processes to tokenise with.
        resume: Go on with the run in `output`. One that was interrupted while it was scored is
            averaged and scored again.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: Data or settings that cannot be used; see `load_parallel` and `train`.
    """
    started = time.time()
    beginnings = {
        "resume": resume,
        "initial_model": recipe.initial_model and not resume,
        "tokenizer": tokenizer,
    }
    given = [name for name, value in beginnings.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: each brings a tokenizer")
    has_run = bool(find_checkpoints(output))
    if has_run and not resume:
        raise ValueError(
            f"{output} already holds a run; resume it (--resume) or choose another directory"
        )
    if resume and not has_run:
        raise ValueError(f"{output} holds no run to resume; leave --resume out to begin one")
    if resume:
        check_goes_on(read_recipe(output / "recipe.json"), recipe)
    elif recipe.initial_model is not None:
        recipe = dataclasses.replace(recipe, initial_model=locate_model(recipe.initial_model))

    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_PATIENCE)
    accelerator = build_accelerator(recipe.training)
    # The first process of a machine fills its cache, from which the others read.
    with accelerator.local_main_process_first():
        texts = read_texts(recipe)
    set_seed(recipe.training.seed)
    if accelerator.is_main_process:
        if not resume:
            write_tokenizer(recipe, output / "tokenizer", texts.train, tokenizer)
        with atomic_file(output / "recipe.json") as path:
            path.write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n", "utf-8")
    accelerator.wait_for_everyone()
    vocabulary = load_tokenizer(output / "tokenizer")
    with accelerator.local_main_process_first():
        pairs, encoding_report = encode_pairs(
            texts.train, vocabulary, max_length=recipe.max_length, num_proc=num_proc
        )
    model = build_model(recipe, vocabulary)
    run = train
    if recipe.driver == "trainer":
        from .training.trainer import train_with_trainer

        run = train_with_trainer
    result = run(
        model,
        vocabulary,
        pairs,
        texts.validation,
        output,
        recipe.training,
        decoding=recipe.decoding,
        bleu=recipe.bleu,
        resume=resume,
    )
    # Scored is what was saved, whole on every process however it was sharded in training.
    del model
    accelerator = build_accelerator(recipe.training)
    final = AutoModelForSeq2SeqLM.from_pretrained(output / "model").eval().to(accelerator.device)
    results = {
        "recipe": recipe.name,
        "parameters": final.num_parameters(),
        "vocabulary": len(vocabulary),
        "training": dataclasses.asdict(result),
        "data": dataclasses.asdict(texts.report) | {"too_long": encoding_report.too_long},
        "tests": {
            split: score_corpus(
                final, vocabulary, text, recipe.decoding, recipe.bleu, accelerator=accelerator
            )[0]
            for split, text in texts.tests.items()
        },
        "total_seconds": time.time() - started,
        "environment": environment()
        | {"processes": accelerator.num_processes, "precision": recipe.training.precision},
    }
    if accelerator.is_main_process:
        with atomic_file(output / "results.json") as path:
            path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
    accelerator.wait_for_everyone()
    return results


@dataclass(frozen=True)
class Texts:
    """The parallel text of a recipe, and what was read and skipped of the training split."""

    train: Dataset | IterableDataset
    validation: Dataset
    tests: dict[str, Dataset]
    report: CorpusReport


def read_texts(recipe: Recipe) -> Texts:
    """Reads all the text a recipe needs, the test sets too: a missing one should not wait.

    Raises:
        ValueError: There is no text, or it cannot be used; see `load_parallel`.
    """
    languages = (recipe.source_lang, recipe.target_lang)
    corpus = _corpus(recipe)
    train_text, report = load_parallel(
        corpus,
        *languages,
        recipe.train_split,
        limit=recipe.train_limit,
        streaming=recipe.streaming,
    )
    if recipe.validation_split is not None:
        validation_text, _ = load_parallel(corpus, *languages, recipe.validation_split)
    elif recipe.streaming:
        raise ValueError(
            "sentences cannot be held out of streamed data; set validation_split to a split of the "
            "corpus, or leave --streaming out"
        )
    else:
        train_text, validation_text = hold_out(train_text, recipe.held_out)
    tests = {split: load_parallel(corpus, *languages, split)[0] for split in recipe.test_splits}
    return Texts(train_text, validation_text, tests, report)


def _corpus(recipe: Recipe) -> str | list[Path]:
    """What `load_parallel` is to be given."""
    if not recipe.corpus:
        raise ValueError(
            f"{recipe.name} needs its text: give --data {recipe.data_source or 'a corpus'}"
        )
    if isinstance(recipe.corpus, str):
        return recipe.corpus
    return [Path(path) for path in recipe.corpus]


def write_tokenizer(
    recipe: Recipe,
    folder: Path,
    train_text: Dataset | IterableDataset,
    given: str | Path | None = None,
) -> None:
    """Saves the tokenizer of a new run: that of its initial model, the one given or a new one.

    Raises:
        ValueError: It cannot be loaded or trained, or is not that of the initial model.
    """
    source = recipe.initial_model or given
    if source is None:
        tokenizer = train_tokenizer(both_sides(train_text), recipe.vocab_size)
    else:
        tokenizer = load_tokenizer(source)
    # What does not fit should leave no run behind.
    model_config(recipe, tokenizer)
    with atomic_directory(folder) as directory:
        tokenizer.save_pretrained(directory)


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> VanillaTransformerConfig:
    """The recipe's architecture with the tokenizer's vocabulary, or the initial model's.

    Raises:
        ValueError: The initial model's vocabulary is not the tokenizer's.
    """
    if recipe.initial_model is None:
        return VanillaTransformerConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.bos_token_id,
            **recipe.architecture,
        )
    config = VanillaTransformerConfig.from_pretrained(recipe.initial_model)
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"{recipe.initial_model} has {config.vocab_size} embeddings for a tokenizer of "
            f"{len(tokenizer)} tokens; save the model together with its own tokenizer"
        )
    return config


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A fresh model, or the initial one loaded.

    Raises:
        ValueError: As `model_config`.
    """
    config = model_config(recipe, tokenizer)
    if recipe.initial_model is None:
        return VanillaTransformerForConditionalGeneration(config)
    return VanillaTransformerForConditionalGeneration.from_pretrained(recipe.initial_model)


def locate_model(path_or_id: str | Path) -> str:
    """What `from_pretrained` is to be given: a model's directory, or a Hub id that is there.

    Args:
        path_or_id: A model directory, a run directory (its `model/` is taken) or a Hub id.

    Raises:
        ValueError: There is no model.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        for directory in (path, path / "model"):
            if (directory / "config.json").exists():
                return str(directory)
        raise ValueError(
            f"{path} holds no model: neither config.json nor model/config.json is there; "
            "give the directory of a model or of a finished run"
        )
    name = str(path_or_id)
    if path.exists():
        raise ValueError(f"{path} is a file; give the directory of a model or of a run")
    try:
        is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        if not is_cached:
            # Asked once: `from_pretrained` would repeat itself for the better part of a minute.
            HfApi().model_info(name, timeout=10)
    # The errors of the Hub's client and of its HTTP library have no common base.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name} is neither a directory nor a model that the Hub gave ({reason}); check the "
            "path, or the id and the network"
        ) from error
    return name


def load_model(
    path_or_id: str | Path, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained model and its tokenizer, ready to translate.

    Args:
        path_or_id: A model directory, a run directory (its `model/` is taken) or a Hub id.
        device: Where to; by default a GPU where there is one.

    Raises:
        ValueError: There is no model, or no tokenizer, or no such device.
    """
    name = locate_model(path_or_id)
    tokenizer = load_tokenizer(name)
    model = AutoModelForSeq2SeqLM.from_pretrained(name)
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else accelerator.type
    try:
        return model.eval().to(device), tokenizer
    except RuntimeError as error:
        raise ValueError(f"device ({device!r}) cannot be used: {error}") from error


def score_corpus(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    decoding: DecodingSettings,
    bleu: dict[str, Any],
    *,
    accelerator: Accelerator | None = None,
    **limits: int,
) -> tuple[dict[str, Any], list[str]]:
    """Translates `pairs` and scores the translations.

    Args:
        bleu: `tokenize` and `lowercase` of `score_translations`.
        accelerator: Shares the sentences out among its processes, each of which gets the same
            scores of all translations; by default this process translates them all.
        limits: `max_batch_tokens` and `max_source_tokens` of `translate`.

    Returns:
        Scores with sacreBLEU's signatures, the decoding, sentences and seconds; and the
        translations.
    """
    started = time.monotonic()
    report = TranslationReport()
    sources = list(pairs["source"])
    found = (
        translate(model, tokenizer, sources, decoding, report=report, **limits)
        if accelerator is None
        else translate_texts(
            accelerator, model, tokenizer, sources, decoding, report=report, **limits
        )
    )
    predictions = [hypotheses[0].text for hypotheses in found]
    seconds = time.monotonic() - started
    scores = score_translations(predictions, list(pairs["target"]), **bleu)
    results = {
        "sentences": len(predictions),
        "too_long": len(report.skipped),
        "seconds": seconds,
        "decoding": dataclasses.asdict(decoding),
    }
    for metric, values in scores.items():
        results[metric] = {key: values[key] for key in ("score", "signature")}
    return results, predictions


def estimate(
    recipe: Recipe,
    *,
    tokenizer: str | Path | None = None,
    processes: int = 1,
    is_sharded: bool = False,
) -> tuple[RunEstimate, CorpusSize | None]:
    """What a run of `recipe` will cost, and how much text it has; nothing is downloaded or trained.

    Args:
        recipe: What would be run.
        tokenizer: Directory of the tokenizer that would be used, to count tokens instead of
            estimating them.
        processes: How many would share an update.
        is_sharded: Parameters, gradients and optimizer would be shared out too (FSDP2).

    Raises:
        ValueError: The corpus or the initial model that is named is not there.
    """
    if recipe.initial_model is not None:
        if not Path(recipe.initial_model).expanduser().is_dir():
            raise ValueError(
                f"{recipe.initial_model} is not on this machine, and an estimate downloads "
                "nothing; give the directory of a model"
            )
        model = locate_model(recipe.initial_model)
        config = VanillaTransformerConfig.from_pretrained(model)
        tokenizer = tokenizer or model
    else:
        config = VanillaTransformerConfig(vocab_size=recipe.vocab_size, **recipe.architecture)
    vocabulary = None if tokenizer is None else load_tokenizer(tokenizer)
    if vocabulary is not None and recipe.initial_model is None:
        config = model_config(recipe, vocabulary)
    corpus = measure_corpus(recipe, vocabulary)
    costs = estimate_run(
        config,
        recipe.training,
        corpus=corpus,
        processes=processes,
        is_sharded=is_sharded,
        on_gpu=torch.cuda.is_available(),
    )
    return costs, corpus


def measure_corpus(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None = None
) -> CorpusSize | None:
    """Reads through the training text and counts; None if it is on the Hub or yet to be given.

    Raises:
        ValueError: The corpus is named and not there, or cannot be read.
    """
    if not recipe.corpus or (isinstance(recipe.corpus, str) and is_hub_id(recipe.corpus)):
        return None
    pairs, _ = load_parallel(
        _corpus(recipe),
        recipe.source_lang,
        recipe.target_lang,
        recipe.train_split,
        limit=recipe.train_limit,
        streaming=True,
    )
    count = 0
    words: Counter[str] = Counter()
    sampled: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for number, batch in enumerate(pairs.iter(batch_size=1000)):
        count += len(batch["source"])
        for side in ("source", "target"):
            found = sum(len(text.split()) for text in batch[side])
            words[side] += found
            # A tenth, spread over the corpus, which may be sorted by length.
            if tokenizer is not None and number % 10 == 0:
                sampled[side] += found
                ids = tokenizer(batch[side], add_special_tokens=False)["input_ids"]
                tokens[side] += sum(map(len, ids))
    # The end of sentence is a token too.
    source, target = (
        words[side] * (tokens[side] / sampled[side] if sampled[side] else _TOKENS_PER_WORD) + count
        for side in ("source", "target")
    )
    return CorpusSize(count, source, target, is_counted=tokenizer is not None)


def environment() -> dict[str, Any]:
    """Hardware and versions that a measured figure depends on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def describe_machine() -> str:
    """The device a run would use here, with its memory, and how many there are."""
    count = torch.cuda.device_count()
    if not count:
        return f"{_processor()}, {os.cpu_count()} cores, no GPU"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{count} x {torch.cuda.get_device_name()} ({memory:.0f} GiB)"


def _processor() -> str:
    # Linux tells the model of its processor in a file only.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(models)) or platform.processor() or platform.machine()


def both_sides(pairs: Dataset | IterableDataset) -> Iterator[str]:
    """Every source and every target of parallel text."""
    for batch in pairs.iter(batch_size=1000):
        yield from batch["source"]
        yield from batch["target"]
