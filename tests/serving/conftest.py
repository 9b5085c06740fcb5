"""A tiny model for each task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.tokenization import train_tokenizer

TEXTS = [
    "the cat sat on the mat",
    "a dog and a cat saw the bird that sang in the tall tree behind the house",
    "who is it",
    "the bird sings",
]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by task."""
    tokenizer = train_tokenizer(TEXTS * 5, 300)
    sizes = {"d_model": 32, "d_ff": 32, "num_heads": 2, "num_encoder_layers": 2}
    classes = {
        "translation": (VanillaTransformerForConditionalGeneration, {"tie_word_embeddings": False}),
        "question_answering": (VanillaTransformerForQuestionAnswering, {"num_segments": 2}),
        "inference": (VanillaTransformerForSequenceClassification, {"num_segments": 2}),
    }
    torch.manual_seed(3)
    folders = {}
    for task, (model_class, options) in classes.items():
        config = VanillaTransformerConfig(
            vocab_size=len(tokenizer), **sizes, num_decoder_layers=1, dropout=0.0, **options
        )
        if task == "inference":
            config.id2label = {0: "entailment", 1: "neutral", 2: "contradiction"}
        model = model_class(config)
        # Else outputs would all be alike, whatever the source.
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2:
                    weight.normal_(std=1.0 if "embed" in name else 0.6)
        folders[task] = tmp_path_factory.mktemp("models") / task
        model.save_pretrained(folders[task])
        tokenizer.save_pretrained(folders[task])
    return folders
