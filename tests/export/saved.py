"""Small models saved with a real tokenizer, to be exported."""

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tests.generation.cases import EOS, small_model
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.tokenization import TwoSidedTokenizer, train_tokenizer

PAIRS = list(generate_translation("test", 12))
SENTENCES = [pair["source"] for pair in PAIRS]
REFERENCES = [pair["target"] for pair in PAIRS]


@functools.cache
def tokenizer_of(side: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """Trained on "source", "target" or "both"."""
    pairs = generate_translation("train", 200)
    sides = ("source", "target") if side == "both" else (side,)
    return train_tokenizer([pair[name] for pair in pairs for name in sides], vocab_size)


def save_model(
    directory: Path, *, is_two_sided: bool = False, **overrides: Any
) -> VanillaTransformerForConditionalGeneration:
    """A random model whose sentences end by themselves, saved; 3 of its ids are no tokens."""
    if is_two_sided:
        source, target = tokenizer_of("source", 350), tokenizer_of("target", 380)
        overrides["decoder_vocab_size"] = len(target) + 3
        tokenizer: PreTrainedTokenizerBase = TwoSidedTokenizer.join(source, target)
    else:
        source = tokenizer = tokenizer_of("both", 400)
    model = small_model(vocab_size=len(source) + 3, **overrides)
    if model.lm_head.bias is not None:
        with torch.no_grad():
            model.lm_head.bias[EOS] += 3
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model
