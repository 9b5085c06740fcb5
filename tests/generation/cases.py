"""Small models of all kinds, and the plain path that the lean loop is compared with."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)

PAD, START, EOS = 0, 1, 2

# Two sentences, of five tokens and of three, padded on the right.
SOURCES = torch.tensor([[5, 9, 14, 7, EOS], [11, 6, EOS, PAD, PAD]])
MASK = (SOURCES != PAD).long()


@contextmanager
def plain_path() -> Iterator[None]:
    """`generate` as transformers does it, without the lean loop."""
    lean = VanillaTransformerForConditionalGeneration._lean_generate
    VanillaTransformerForConditionalGeneration._lean_generate = None
    try:
        yield
    finally:
        VanillaTransformerForConditionalGeneration._lean_generate = lean


def plain(model: Any, *args: Any, **kwargs: Any) -> Any:
    """What the plain path of `model.generate` returns."""
    with plain_path():
        return model.generate(*args, **kwargs)


def small_model(
    seed: int = 0, spread: float = 2.0, **overrides: Any
) -> VanillaTransformerForConditionalGeneration:
    """Weights and biases large enough for outputs to differ, in evaluation mode.

    Args:
        seed: Of the weights.
        spread: What random matrices are multiplied by.
        **overrides: Of the configuration.
    """
    sizes: dict[str, Any] = {
        "vocab_size": 24,
        "d_model": 16,
        "d_ff": 24,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "output_bias": True,
    }
    torch.manual_seed(seed)
    model = VanillaTransformerForConditionalGeneration(
        VanillaTransformerConfig(**(sizes | overrides))
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in name and "shared" not in name:
                parameter.mul_(spread)
        if model.lm_head.bias is not None:
            model.lm_head.bias.normal_()
            model.lm_head.bias[EOS] += 1
    return model


@dataclass
class Case:
    """A model, a batch of sources, and arguments of `generate`."""

    model: VanillaTransformerForConditionalGeneration
    ids: torch.Tensor
    options: dict[str, Any]


def random_case(seed: int) -> Case:
    """Any architecture, any batch, any search that the lean loop does."""
    draw = random.Random(seed)

    def maybe(share: float) -> bool:
        return draw.random() < share

    config: dict[str, Any] = {
        "vocab_size": draw.choice([40, 60, 300, 2500]),
        "d_ff": draw.choice([16, 40]),
        "num_heads": draw.choice([1, 2, 4]),
        "num_encoder_layers": draw.choice([1, 2, 4]),
        "num_decoder_layers": draw.choice([1, 2, 3]),
        "layer_norm_position": draw.choice(["post", "pre"]),
        "position_encoding": draw.choice(
            ["interleaved", "concatenated", "concatenated_inclusive", "learned"]
        ),
        "activation": draw.choice(["relu", "swish", "gelu"]),
        "attention_bias": maybe(0.5),
        "output_bias": maybe(0.5),
        "num_segments": draw.choice([0, 0, 2]),
        "position_offset": draw.choice([0, 0, 2]),
    }
    if config["position_encoding"] == "learned":
        config["max_position_embeddings"] = 100
    for name, values, share in (
        ("d_k", [3, 8], 0.3),
        ("d_v", [5, 8], 0.3),
        ("decoder_d_ff", [24], 0.2),
        ("eos_token_id", [[EOS, 4]], 0.2),
        ("decoder_start_token_id", [PAD], 0.3),
    ):
        if maybe(share):
            config[name] = draw.choice(values)
    if maybe(0.3):
        config["decoder_vocab_size"] = draw.choice([40, 400])
    elif maybe(0.3):
        config["tie_word_embeddings"] = False
    model = small_model(seed, draw.choice([1.0, 1.5, 2.5]), **config)

    lengths = [draw.randint(1, 12) for _ in range(draw.choice([1, 2, 5, 9, 16]))]
    width = max(lengths) + draw.choice([0, 2])
    ids = torch.full((len(lengths), width), PAD)
    is_left = maybe(0.3)
    for row, length in zip(ids, lengths, strict=True):
        tokens = torch.randint(3, model.config.vocab_size, (length,))
        tokens[-1] = EOS
        row[slice(width - length, width) if is_left else slice(length)] = tokens

    beams = draw.choice([1, 1, 2, 3, 4, 5, 8])
    options: dict[str, Any] = {"num_beams": beams}
    if beams > 1:
        options |= {
            "num_return_sequences": draw.randint(1, beams),
            "length_penalty": draw.choice([0.0, 0.6, 1.0, 1.7]),
            "length_penalty_formula": draw.choice(["paper", "power"]),
            "early_stopping": draw.choice([False, False, True, "never"]),
        }
    limit = draw.random()
    if limit < 0.3:
        options["max_new_tokens"] = draw.choice([2, 5, 20])
        if maybe(0.3):
            options["min_new_tokens"] = draw.choice([1, 2, options["max_new_tokens"]])
    elif limit < 0.45:
        options["max_length"] = draw.choice([5, 9, 20])
        if maybe(0.3):
            options["min_length"] = draw.choice([3, 5])
    else:
        options["max_tokens_over_source"] = draw.choice([1, 5, 12])
        if maybe(0.3):
            options["min_new_tokens"] = draw.choice([1, 2])
    if maybe(0.2):
        options["bad_words_ids"] = [[PAD]]
    if maybe(0.2):
        options["suppress_tokens"] = [5, 6]
    if maybe(0.2):
        options["renormalize_logits"] = True
    if maybe(0.2) and model.config.eos_token_id == EOS:
        options["forced_eos_token_id"] = EOS
    if maybe(0.7):
        options["attention_mask"] = (ids != PAD).long()
    return Case(model, ids, options)
