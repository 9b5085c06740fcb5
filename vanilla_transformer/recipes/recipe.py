"""What a complete run is, as one dataclass a task, and how a recipe is changed and read back."""

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..atomic_file import atomic_file
from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..training.estimation import CorpusSize
from ..training.initialization import align_keys_with_queries
from ..training.settings import TrainingSettings
from ..training.task import Task


@dataclass(frozen=True)
class Texts:
    """The data of a recipe, and what was read and skipped of the training split.

    Attributes:
        train, validation: As the task's loader gives them.
        tests: By split.
        report: A dataclass of counts, with at least `corpus`, `kept` and `skipped`. For streamed
            data they are filled in as the data are consumed.
    """

    train: Dataset | IterableDataset
    validation: Dataset
    tests: dict[str, Dataset]
    report: Any


# What decides the shapes of weights cannot be changed in a model that has them.
_FREE_OF_WEIGHTS = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "label_smoothing",
    "num_segments",
    "pooling",
    "has_no_answer",
)

# Sizes and ids of the vocabulary come from the tokenizer.
_ARCHITECTURE_NAMES = (
    set(VanillaTransformerConfig.__dataclass_fields__) | set(VanillaTransformerConfig.attribute_map)
) - {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"}


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """A complete run, from text to test scores.

    Token budgets are those of a global batch: however many processes share it, and in however many
    pieces each computes its part, an update sees the same examples.

    Attributes:
        name: What the command line calls it.
        description: One line.
        corpus: Hub id, path or `"tiny_world"`; empty where the data have to be given at run time.
        data_source: Where to get a corpus that is to be given.
        train_split: Name in the corpus.
        validation_split: Name in the corpus; None holds `held_out` texts out of the training split.
        held_out: How many, see `hold_out`.
        test_splits: Scored at the end, with the final model.
        train_limit: Examples taken from the front of the training split; None for all.
        vocab_size: Of the byte-pair encoding (5.1).
        lowercase: The tokenizer ignores case.
        strip_punctuation: The tokenizer ignores punctuation, see `train_tokenizer`.
        max_length: In tokens; what becomes of longer examples, the task says.
        initial_model: Directory or Hub id of a model to go on from (fine-tuning), whose tokenizer
            and dimensions are then used; None trains from scratch.
        architecture: Arguments of `VanillaTransformerConfig`; the vocabulary comes from the data.
        keys_like_queries: How much W^K resembles W^Q in the self-attention of a fresh model, from 0
            (the paper's independent draws) to 1; see `align_keys_with_queries`.
        training: How to train.
        driver: What runs the training: the explicit loop or transformers' trainer.
        published: The figure aimed at, how it was measured, and its source.
    """

    task: ClassVar[str]

    name: str
    description: str
    corpus: str | tuple[str, ...] = ""
    data_source: str = ""
    train_split: str = "train"
    validation_split: str | None = "validation"
    held_out: int = 2000
    test_splits: tuple[str, ...] = ("test",)
    train_limit: int | None = None
    vocab_size: int = 37_000
    lowercase: bool = False
    strip_punctuation: bool = False
    max_length: int = 256
    initial_model: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    keys_like_queries: float = 0.0
    training: TrainingSettings = field(default_factory=TrainingSettings)
    driver: Literal["loop", "trainer"] = "loop"
    published: str = ""

    def __post_init__(self) -> None:
        check_names("architecture", self.architecture, _ARCHITECTURE_NAMES)
        # Dimensions that cannot work should not come to light after the data are read.
        try:
            VanillaTransformerConfig(vocab_size=self.vocab_size, **self.architecture)
        except StrictDataclassError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"architecture ({self.architecture}): {reason}") from error
        if not 0.0 <= self.keys_like_queries <= 1.0:
            raise ValueError(
                f"keys_like_queries ({self.keys_like_queries}) must lie between 0 and 1; "
                "try 0.9, or 0 to leave them random"
            )

    # ------------------------------------------------------------------ what each task defines

    @property
    @abstractmethod
    def model_class(self) -> type[PreTrainedModel]:
        """The head that is trained."""

    @abstractmethod
    def read(self) -> Texts:
        """Reads all the data, the test sets too: a missing one should not wait.

        Raises:
            ValueError: There are none, or they cannot be used.
        """

    @abstractmethod
    def all_text(self, examples: Dataset | IterableDataset) -> Iterator[str]:
        """Every text of the training data, for the tokenizer to learn from."""

    @abstractmethod
    def encode(
        self,
        examples: Dataset | IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        config: VanillaTransformerConfig,
        num_proc: int | None,
    ) -> tuple[Dataset | IterableDataset, Any]:
        """Examples encoded for training, and a dataclass of counts."""

    @abstractmethod
    def build_task(
        self, texts: Texts, tokenizer: PreTrainedTokenizerBase, config: VanillaTransformerConfig
    ) -> Task:
        """What the run learns."""

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Texts,
        accelerator: Accelerator,
    ) -> dict[str, Any]:
        """Fields of the final model's configuration that are fitted on the validation data.

        Every process calls it and gets the same; by default there are none.
        """
        return {}

    @abstractmethod
    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Texts,
        accelerator: Accelerator,
    ) -> dict[str, dict[str, Any]]:
        """Scores of the final model by test split; every process calls it and gets the same."""

    @abstractmethod
    def describe(self, split: str, scores: dict[str, Any]) -> str:
        """Scores of one test split, for people."""

    @abstractmethod
    def measure(self, tokenizer: PreTrainedTokenizerBase | None = None) -> CorpusSize | None:
        """Reads through the training data and counts; None if they are not on this machine.

        Raises:
            ValueError: The corpus is named and not there, or cannot be read.
        """

    def task_options(self) -> dict[str, Any]:
        """Fields of the configuration that the task decides, such as the names of labels."""
        return {}

    # ------------------------------------------------------------------------------- the model

    def given_corpus(self) -> str:
        """The corpus, which must have been named.

        Raises:
            ValueError: It has not.
        """
        if not self.corpus:
            raise ValueError(
                f"{self.name} needs its data: give --data {self.data_source or 'a corpus'}"
            )
        if not isinstance(self.corpus, str):
            raise ValueError(f"{self.name} takes one corpus, not {len(self.corpus)} files")
        return self.corpus

    def config(self, tokenizer: PreTrainedTokenizerBase) -> VanillaTransformerConfig:
        """The architecture with the tokenizer's vocabulary, or that of the initial model.

        Of `architecture` an initial model takes over what has no weights, such as dropout.

        Raises:
            ValueError: The initial model's vocabulary is not the tokenizer's.
        """
        if self.initial_model is None:
            return VanillaTransformerConfig(
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                decoder_start_token_id=tokenizer.bos_token_id,
                **self.architecture,
                **self.task_options(),
            )
        changes = {
            name: value for name, value in self.architecture.items() if name in _FREE_OF_WEIGHTS
        }
        config: VanillaTransformerConfig = VanillaTransformerConfig.from_pretrained(
            self.initial_model, **changes, **self.task_options()
        )
        if config.vocab_size < len(tokenizer):
            raise ValueError(
                f"{self.initial_model} has {config.vocab_size} embeddings for a tokenizer of "
                f"{len(tokenizer)} tokens; save the model together with its own tokenizer"
            )
        return config

    def build_model(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[PreTrainedModel, dict[str, list[str]]]:
        """A fresh model, or the initial one loaded.

        Returns:
            The model, and by name what of it is `newly_initialised` and what weights of the initial
            model were `left_out`; both are empty without one.

        Raises:
            ValueError: As `config`.
        """
        config = self.config(tokenizer)
        if self.initial_model is None:
            model = self.model_class(config)
            align_keys_with_queries(model, self.keys_like_queries)
            return model, {"newly_initialised": [], "left_out": []}
        model, report = self.model_class.from_pretrained(
            self.initial_model, config=config, output_loading_info=True
        )
        return model, {
            "newly_initialised": sorted(report["missing_keys"]),
            "left_out": sorted(report["unexpected_keys"]),
        }


def check_names(field_name: str, given: dict[str, Any], known: Collection[str]) -> None:
    """Refuses a name that would have no effect."""
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"{field_name} has no field {name!r}{hint}")


# ------------------------------------------------------------------------- changing and reading one


def changed(instance: Any, name: str, value: Any) -> Any:
    """A copy of a dataclass with the field `name`, dotted for one inside another, set to `value`.

    Raises:
        ValueError: There is no such field, or the value is of another type.
    """
    first, _, rest = name.partition(".")
    kinds = _field_types(type(instance))
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


def _field_types(kind: Any) -> dict[str, Any]:
    """Fields of a dataclass with their annotations."""
    hints = typing.get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}


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
            # A float has no room for every int.
            with contextlib.suppress(OverflowError):
                return annotation(value)
    elif isinstance(value, origin or annotation):
        return value
    expected = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if origin is Literal:
        expected = f"one of {', '.join(arguments)}"
    raise ValueError(f"{name} ({value!r}) must be {expected}")


def _from_values(kind: Any, values: dict[str, Any]) -> Any:
    """An instance of a dataclass from the JSON values of its fields."""
    kinds = _field_types(kind)
    check_names(kind.__name__, values, kinds)
    for entry in dataclasses.fields(kind):
        is_required = entry.default is entry.default_factory is dataclasses.MISSING
        if is_required and entry.name not in values:
            raise ValueError(f"{kind.__name__} lacks the field {entry.name!r}")
    return kind(**{name: _fitted(name, value, kinds[name]) for name, value in values.items()})


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes a recipe down as `read_recipe` reads it, whole or not at all."""
    content = {"task": recipe.task, **dataclasses.asdict(recipe)}
    with atomic_file(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def read_recipe(path: Path) -> Recipe:
    """The recipe of a run, from its `recipe.json`.

    Raises:
        ValueError: There is no such file, or it holds no recipe; unknown fields are refused.
    """
    kinds: dict[str, type[Recipe]] = {kind.task: kind for kind in Recipe.__subclasses__()}
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no run: there is no {path.name} in it")
    try:
        values = json.loads(path.read_text("utf-8"))
        task = values.pop("task", None)
        if task not in kinds:
            raise ValueError(f"its task is {task!r}, not one of {', '.join(kinds)}")
        recipe: Recipe = _from_values(kinds[task], values)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} holds no recipe of this version: {error}") from error
    return recipe


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
        "training.validation_examples",
        "training.sample_predictions",
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
