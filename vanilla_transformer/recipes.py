"""Named complete runs as typed Python: architecture, data, optimisation, decoding, scoring."""

import dataclasses
import difflib
import json
import platform
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, IterableDataset
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .configuration_vanilla_transformer import VanillaTransformerConfig
from .data.corpora import load_parallel
from .evaluation import score_translations
from .generation import PAPER_DECODING, DecodingSettings, TranslationReport, translate
from .modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .tasks.translation import encode_pairs
from .tokenization import load_tokenizer, train_tokenizer
from .training.checkpointing import atomic_directory
from .training.loop import TrainingSettings, train


@dataclass(frozen=True)
class Recipe:
    """A complete translation run.

    Attributes:
        name: What the command line calls it.
        description: One line.
        source_lang, target_lang: Languages as the corpus names them.
        corpus: Hub id, path or `"tiny_world"`; a path given at run time takes its place.
        train_split, validation_split: Names in the corpus.
        test_splits: Scored at the end, with the final model.
        train_limit: Pairs taken from the front of the training split; None for all.
        vocab_size: Of the shared byte-pair encoding (5.1).
        max_length: Longer training pairs are left out, in tokens of either side.
        architecture: Arguments of `VanillaTransformerConfig`; the vocabulary comes from the data.
        training: How to train.
        decoding: How to translate the test sets.
        bleu: Options of BLEU, such as `tokenize` and `lowercase`.
        published: The figure aimed at and its source.
    """

    name: str
    description: str
    source_lang: str
    target_lang: str
    corpus: str
    train_split: str = "train"
    validation_split: str = "validation"
    test_splits: tuple[str, ...] = ("test",)
    train_limit: int | None = None
    vocab_size: int = 37_000
    max_length: int = 256
    architecture: dict[str, Any] = field(default_factory=dict)
    training: TrainingSettings = field(default_factory=TrainingSettings)
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
    corpus="multi30k_tok",
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
    published="41.02 BLEU on test_2016_flickr (Transformer-Tiny, Revisit-MMT README)",
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
            name="wmt14-en-de-base",
            description="The paper's base model on WMT14 English to German",
            source_lang="en",
            target_lang="de",
            corpus="wmt14",
            vocab_size=37_000,
            training=TrainingSettings(
                validate_every=5000, checkpoint_every=1500, precision="bf16", num_workers=2
            ),
            published="27.3 BLEU on newstest2014 (paper, Table 2)",
        ),
        Recipe(
            name="wmt14-en-de-big",
            description="The paper's big model on WMT14 English to German",
            source_lang="en",
            target_lang="de",
            corpus="wmt14",
            vocab_size=37_000,
            architecture={"d_model": 1024, "d_ff": 4096, "num_heads": 16, "dropout": 0.3},
            training=TrainingSettings(
                updates=300_000,
                validate_every=5000,
                checkpoint_every=500,
                average_last=20,
                precision="bf16",
                num_workers=2,
            ),
            published="28.4 BLEU on newstest2014 (paper, Table 2)",
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


def execute(
    recipe: Recipe,
    output: Path,
    *,
    data: str | Path | Sequence[Path] | None = None,
    tokenizer: str | Path | None = None,
    initial_model: str | Path | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Runs `recipe` from text to test scores.

    Args:
        recipe: What to run.
        output: The run's directory; see `train` for what it holds. `recipe.json` and
            `results.json` are written beside that.
        data: Corpus in place of the recipe's: a folder, files or a Hub id.
        tokenizer: Directory of a tokenizer to use instead of training one.
        initial_model: Directory or Hub id of a model to go on from (fine-tuning), whose
            tokenizer is then used.
        streaming: Read the training data as a stream instead of memory-mapping it.
        num_proc: Processes to tokenise with.
        resume: Go on with the run in `output`.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: Data or settings that cannot be used; see `load_parallel` and `train`.
    """
    started = time.time()
    beginnings = {"resume": resume, "initial_model": initial_model, "tokenizer": tokenizer}
    given = [name for name, value in beginnings.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: each brings a tokenizer")
    has_run = (output / "checkpoints").exists()
    if has_run and not resume:
        raise ValueError(
            f"{output} already holds a run; resume it (--resume) or choose another directory"
        )
    if resume and not has_run:
        raise ValueError(f"{output} holds no run to resume; leave --resume out to begin one")
    if initial_model is not None:
        initial_model = locate_model(initial_model)
    corpus = recipe.corpus if data is None else data
    languages = (recipe.source_lang, recipe.target_lang)
    train_text, train_report = load_parallel(
        corpus, *languages, recipe.train_split, limit=recipe.train_limit, streaming=streaming
    )
    validation_text, _ = load_parallel(corpus, *languages, recipe.validation_split)
    # The test sets are opened now: a missing one should not come to light after hours.
    tests = {split: load_parallel(corpus, *languages, split)[0] for split in recipe.test_splits}

    set_seed(recipe.training.seed)
    if resume:
        vocabulary = load_tokenizer(output / "tokenizer")
    elif initial_model is not None:
        vocabulary = load_tokenizer(initial_model)
    elif tokenizer is not None:
        vocabulary = load_tokenizer(tokenizer)
    else:
        vocabulary = train_tokenizer(both_sides(train_text), recipe.vocab_size)
    model = build_model(recipe, vocabulary, initial_model)
    if not resume:
        with atomic_directory(output / "tokenizer") as directory:
            vocabulary.save_pretrained(directory)
        data_name = (
            str(corpus) if isinstance(corpus, str | Path) else [str(path) for path in corpus]
        )
        (output / "recipe.json").write_text(
            json.dumps(dataclasses.asdict(recipe) | {"data": data_name}, indent=2) + "\n", "utf-8"
        )
    pairs, encoding_report = encode_pairs(
        train_text, vocabulary, max_length=recipe.max_length, num_proc=num_proc
    )
    result = train(
        model,
        vocabulary,
        pairs,
        validation_text,
        output,
        recipe.training,
        decoding=recipe.decoding,
        bleu=recipe.bleu,
        resume=resume,
    )
    model.eval()
    results = {
        "recipe": recipe.name,
        "parameters": model.num_parameters(),
        "vocabulary": len(vocabulary),
        "training": dataclasses.asdict(result),
        "data": dataclasses.asdict(train_report) | {"too_long": encoding_report.too_long},
        "tests": {
            split: score_corpus(model, vocabulary, text, recipe.decoding, recipe.bleu)[0]
            for split, text in tests.items()
        },
        "total_seconds": time.time() - started,
        "environment": environment(),
    }
    path = output / "results.json"
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)
    return results


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, initial_model: str | Path | None = None
) -> PreTrainedModel:
    """A fresh model with the recipe's architecture and the tokenizer's vocabulary, or a loaded one.

    Raises:
        ValueError: The loaded model's vocabulary is not the tokenizer's.
    """
    if initial_model is None:
        config = VanillaTransformerConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.bos_token_id,
            **recipe.architecture,
        )
        return VanillaTransformerForConditionalGeneration(config)
    model = VanillaTransformerForConditionalGeneration.from_pretrained(initial_model)
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"{initial_model} has {model.config.vocab_size} embeddings for a tokenizer of "
            f"{len(tokenizer)} tokens; save the model together with its own tokenizer"
        )
    return model


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
    **limits: int,
) -> tuple[dict[str, Any], list[str]]:
    """Translates `pairs` and scores the translations.

    Args:
        bleu: `tokenize` and `lowercase` of `score_translations`.
        limits: `max_batch_tokens` and `max_source_tokens` of `translate`.

    Returns:
        Scores with sacreBLEU's signatures, the decoding, sentences and seconds; and the
        translations.
    """
    started = time.monotonic()
    report = TranslationReport()
    found = translate(model, tokenizer, pairs["source"], decoding, report=report, **limits)
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


def environment() -> dict[str, Any]:
    """Hardware and versions that a measured figure depends on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


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
