"""Translation recipes, and what a translation run consists of."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..atomic_file import atomic_file
from ..configuration_vanilla_transformer import PAPER_ARCHITECTURES, VanillaTransformerConfig
from ..data.corpora import hold_out, is_hub_id, load_parallel
from ..evaluation import score_translations
from ..evaluation.domains import Domain, domain_report, split_domains
from ..generation import PAPER_DECODING, DecodingSettings, TranslationReport
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from ..tasks.translation import EncodingReport, encode_pairs
from ..training.estimation import CorpusSize, measure_pairs
from ..training.settings import TrainingSettings
from ..training.task import Task
from ..training.translation import TranslationTask, translate_texts
from .recipe import Recipe, Texts, check_names

# Pairs measured at a time: a corpus need not fit into memory to be counted.
_MEASURED_AT_ONCE = 50_000


@dataclass(frozen=True)
class Translations:
    """Translations of a corpus, in its order.

    Attributes:
        pairs: What was translated.
        texts: One a pair.
        too_long: How many were left empty for their length.
        settings: How they were found.
        bleu: Options of BLEU.
        seconds: What it took.
    """

    pairs: Dataset
    texts: list[str]
    too_long: int
    settings: dict[str, Any]
    bleu: dict[str, Any]
    seconds: float

    def score(self) -> dict[str, Any]:
        """BLEU, chrF and TER with sacreBLEU's signatures; the settings, sentences and seconds."""
        scores = score_translations(self.texts, list(self.pairs["target"]), **self.bleu)
        return {
            "sentences": len(self.texts),
            "too_long": self.too_long,
            "seconds": self.seconds,
            **self.settings,
        } | {
            metric: {key: values[key] for key in ("score", "signature")}
            for metric, values in scores.items()
        }

    def sacrebleu_options(self) -> dict[str, dict[str, Any]]:
        """Options of sacreBLEU's BLEU and chrF by which `score` scores."""
        chrf = {key: value for key, value in self.bleu.items() if key == "lowercase"}
        # `force` silences a warning about full stops that stand alone, and changes no figure.
        return {"bleu": {**self.bleu, "force": self.bleu.get("tokenize") == "none"}, "chrf": chrf}

    def by_domain(self, labels: Sequence[str], **options: Any) -> dict[str, dict[str, Any]]:
        """Scores of each domain by length and rare words, and its worst sentences.

        Args:
            labels: The domain of each pair.
            **options: As `domain_report` takes them.

        Raises:
            ValueError: As `split_domains`.
        """
        texts = Domain(list(self.pairs["source"]), self.texts, list(self.pairs["target"]))
        return domain_report(
            split_domains(labels, texts), options=self.sacrebleu_options(), **options
        )

    def write(self, path: Path) -> None:
        """A line a translation: a line break inside one would shift all others."""
        with atomic_file(path) as file:
            lines = (" ".join(text.splitlines()) + "\n" for text in self.texts)
            file.write_text("".join(lines), "utf-8")


@dataclass(frozen=True, kw_only=True)
class TranslationRecipe(Recipe):
    """A complete translation run.

    The corpus may also be two text files. Training pairs with a side of more than `max_length`
    tokens are left out.

    Attributes:
        source_lang, target_lang: Languages as the corpus names them.
        streaming: Read the training data as a stream instead of memory-mapping it.
        decoding: How to translate the test sets.
        bleu: Options of BLEU, such as `tokenize` and `lowercase`.
    """

    task = "translation"
    model_class = VanillaTransformerForConditionalGeneration

    source_lang: str
    target_lang: str
    streaming: bool = False
    decoding: DecodingSettings = PAPER_DECODING
    bleu: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("bleu", self.bleu, ("tokenize", "lowercase"))

    def read(self) -> Texts:
        """As `load_parallel` gives it."""
        languages = (self.source_lang, self.target_lang)
        corpus = self._corpus()
        train_text, report = load_parallel(
            corpus,
            *languages,
            self.train_split,
            limit=self.train_limit,
            streaming=self.streaming,
        )
        if self.validation_split is not None:
            validation_text, _ = load_parallel(corpus, *languages, self.validation_split)
        elif self.streaming:
            raise ValueError(
                "sentences cannot be held out of streamed data; set validation_split to a split of "
                "the corpus, or leave --streaming out"
            )
        else:
            train_text, validation_text = hold_out(train_text, self.held_out)
        tests = {split: load_parallel(corpus, *languages, split)[0] for split in self.test_splits}
        return Texts(train_text, validation_text, tests, report)

    def _corpus(self) -> str | list[Path]:
        """What `load_parallel` is to be given."""
        if isinstance(self.corpus, str):
            return self.given_corpus()
        return [Path(path) for path in self.corpus]

    def all_text(self, examples: Dataset | IterableDataset) -> Iterator[str]:
        """Both sides."""
        return both_sides(examples)

    def encode(
        self,
        examples: Dataset | IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        config: VanillaTransformerConfig,
        num_proc: int | None,
    ) -> tuple[Dataset | IterableDataset, EncodingReport]:
        """As `encode_pairs`."""
        return encode_pairs(examples, tokenizer, max_length=self.max_length, num_proc=num_proc)

    def build_task(
        self, texts: Texts, tokenizer: PreTrainedTokenizerBase, config: VanillaTransformerConfig
    ) -> Task:
        """Validated with BLEU."""
        return TranslationTask(tokenizer, texts.validation, decoding=self.decoding, bleu=self.bleu)

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Dataset,
        accelerator: Accelerator,
        **limits: Any,
    ) -> Translations:
        """Translates `pairs`, shared out among the processes, each of which gets all translations.

        Args:
            limits: `max_batch_tokens`, `max_source_tokens` and `precision` of `translate`.
        """
        started = time.monotonic()
        report = TranslationReport()
        sources = list(pairs["source"])
        found = translate_texts(
            accelerator, model, tokenizer, sources, self.decoding, report=report, **limits
        )
        texts = [hypotheses[0].text for hypotheses in found]
        seconds = time.monotonic() - started
        settings = {"decoding": dataclasses.asdict(self.decoding), **limits}
        return Translations(pairs, texts, len(report.skipped), settings, self.bleu, seconds)

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Texts,
        accelerator: Accelerator,
    ) -> dict[str, dict[str, Any]]:
        """As `Translations.score`."""
        return {
            split: self.predict(model, tokenizer, pairs, accelerator).score()
            for split, pairs in texts.tests.items()
        }

    def describe(self, split: str, scores: dict[str, Any]) -> str:
        """The three scores, each with its signature."""
        lines = [
            f"  {name:5} {scores[metric]['score']:6.2f}  {scores[metric]['signature']}"
            for metric, name in (("bleu", "BLEU"), ("chrf", "chrF"), ("ter", "TER"))
        ]
        return "\n".join([f"{split}: {scores['sentences']} sentences", *lines])

    def measure(self, tokenizer: PreTrainedTokenizerBase | None = None) -> CorpusSize | None:
        """Reads through the training text and counts; None if it is on the Hub or yet to be given.

        Raises:
            ValueError: The corpus is named and not there, or cannot be read.
        """
        if not self.corpus or (isinstance(self.corpus, str) and is_hub_id(self.corpus)):
            return None
        pairs, _ = load_parallel(
            self._corpus(),
            self.source_lang,
            self.target_lang,
            self.train_split,
            limit=self.train_limit,
            streaming=True,
        )
        sizes = [
            measure_pairs(batch["source"], batch["target"], tokenizer, self.max_length)
            for batch in pairs.iter(batch_size=_MEASURED_AT_ONCE)
        ]
        return CorpusSize(
            sum(size.examples for size in sizes),
            sum(size.source_tokens for size in sizes),
            sum(size.target_tokens for size in sizes),
            is_counted=tokenizer is not None,
        )


def both_sides(pairs: Dataset | IterableDataset) -> Iterator[str]:
    """Every source and every target of parallel text."""
    for batch in pairs.iter(batch_size=1000):
        yield from batch["source"]
        yield from batch["target"]


# ------------------------------------------------------------------------------------ the recipes

_TINY = {
    "d_model": 128,
    "d_ff": 256,
    "num_heads": 4,
    "num_encoder_layers": 4,
    "num_decoder_layers": 4,
    "dropout": 0.3,
}
_MULTI30K_TINY = TranslationRecipe(
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
_WMT14_EN_DE = TranslationRecipe(
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
_WMT14_EN_FR = TranslationRecipe(
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
_IWSLT14 = TranslationRecipe(
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

RECIPES: tuple[TranslationRecipe, ...] = (
    TranslationRecipe(
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
            updates=850,
            warmup=100,
            learning_rate_factor=0.25,
            max_source_tokens=2048,
            max_target_tokens=2048,
            validate_every=300,
            validation_examples=200,
            checkpoint_every=20,
            average_last=10,
            log_every=20,
        ),
    ),
    _MULTI30K_TINY,
    _MULTI30K_TINY_HOUR,
    TranslationRecipe(
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
            validation_examples=1000,
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
    TranslationRecipe(
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
