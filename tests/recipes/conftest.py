"""A recipe of each task that runs in seconds, and a tokenizer of two sentences."""

import pytest
from transformers import PreTrainedTokenizerBase

from vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.recipes import (
    InferenceRecipe,
    PretrainingRecipe,
    QuestionAnsweringRecipe,
    Recipe,
    TranslationRecipe,
)
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.settings import TrainingSettings

TINY = {
    "d_model": 16,
    "d_ff": 32,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
_TRAINING = TrainingSettings(
    updates=4,
    warmup=2,
    max_source_tokens=1024,
    max_target_tokens=512,
    validate_every=2,
    validation_examples=4,
    sample_predictions=1,
    checkpoint_every=2,
    average_last=2,
    log_every=2,
    trackers=(),
)
_COMMON = {
    "description": "In seconds",
    "corpus": "tiny_world",
    "train_limit": 60,
    "vocab_size": 300,
    "architecture": TINY,
    "training": _TRAINING,
}

TRANSLATION = TranslationRecipe(name="texts", source_lang="en", target_lang="de", **_COMMON)
QUESTIONS = QuestionAnsweringRecipe(
    name="questions", max_length=64, stride=16, max_question_length=32, **_COMMON
)
PAIRS = InferenceRecipe(name="pairs", **_COMMON)
BLOCKS = PretrainingRecipe(name="blocks", kind="inference", max_length=32, held_out=10, **_COMMON)
ONE_OF_EACH: tuple[Recipe, ...] = (TRANSLATION, QUESTIONS, PAIRS, BLOCKS)


def config_of(recipe: Recipe) -> VanillaTransformerConfig:
    return VanillaTransformerConfig(
        vocab_size=recipe.vocab_size, **recipe.architecture, **recipe.task_options()
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["The dog sees the cat.", "Der Hund sieht die Katze."] * 20, 280)
