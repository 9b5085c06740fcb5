"""The way back: a model of this package as a MarianMT, for tools that know only that.

MarianMT's options are those of transformers 5.23 (`models/marian/configuration_marian.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, MarianConfig, MarianMTModel

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from ..tokenization import TwoSidedTokenizer, load_tokenizer
from .marian import LAYER_NORM_EPS, MarianReference, layer_names
from .parity import TOLERANCE, compare

MAX_POSITIONS = 1024
"""Rows of MarianMT's table of sinusoids, and so the longest sentence; ours has no last position."""

OTHER_EPS_TOLERANCE = 1e-3
"""Of log-probabilities, where MarianMT's norms have another epsilon than the model's."""


def to_marian(source: Path, output: Path) -> Iterator[str]:
    """Writes a model of this package as a directory of MarianMT's, and says what was done.

    Interleaved sinusoids become MarianMT's by reordering the d_model dimensions, in which every
    sub-layer is indifferent to order. Nothing is written unless MarianMT, loaded from what was
    written, agrees with the model.

    Args:
        source: Directory of a `VanillaTransformerForConditionalGeneration`.
        output: Directory to write; must not be there yet, or be empty.

    Yields:
        Lines to print.

    Raises:
        ValueError: `source` is no such directory, an option is one that MarianMT lacks, the two
            disagree, or `output` is in use.
    """
    output = output.expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is in use; give a directory that is not there yet, or empty")
    model = _load(source)
    _check(model.config)
    remarks: list[str] = []
    marian = _marian(model)
    marian.generation_config = _generation(model, remarks)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".tmp-{os.getpid()}-{output.name}")
    try:
        marian.save_pretrained(temporary)
        remarks.append(_save_tokenizer(source, temporary))
        reference = _Reference(MarianMTModel.from_pretrained(temporary), order(model.config))
        parity = compare(model, reference, reference.name)
        yield str(parity)
        limit = TOLERANCE
        if model.config.layer_norm_eps != LAYER_NORM_EPS:
            limit = OTHER_EPS_TOLERANCE
            yield (
                f"its norms have an epsilon of {LAYER_NORM_EPS}, which MarianMT fixes, in place of "
                f"{model.config.layer_norm_eps}"
            )
        # So written, no number at all is no agreement.
        if not parity.log_probabilities <= limit:
            raise ValueError(
                f"MarianMT does not agree with {source}: {parity}; at most {limit} is rounding. "
                "Nothing was written. Please report the model"
            )
        if output.exists():
            output.rmdir()
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    yield from remarks


def order(config: VanillaTransformerConfig) -> torch.Tensor:
    """Which dimension of the model stands where in MarianMT, `[d_model]`: sines first."""
    dimensions = torch.arange(config.d_model)
    if config.position_encoding == "interleaved":
        return torch.cat((dimensions[0::2], dimensions[1::2]))
    return dimensions


class _Reference(MarianReference):
    """MarianMT, its encoder states in the order of the model's dimensions."""

    def __init__(self, model: MarianMTModel, places: torch.Tensor):
        super().__init__(model)
        self.places = places.argsort()

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        return super().encode(input_ids, attention_mask)[..., self.places]


def _load(source: Path) -> VanillaTransformerForConditionalGeneration:
    kind = VanillaTransformerForConditionalGeneration
    try:
        stored, _ = VanillaTransformerConfig.get_config_dict(source.expanduser())
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source} holds no model of this package ({reason})") from error
    # Before transformers reports every weight of another model.
    if stored.get("architectures") != [kind.__name__]:
        raise ValueError(
            f"{source} holds no model of this package that MarianMT could be: its config.json says "
            f"architectures={stored.get('architectures')}; give the directory of a {kind.__name__}"
        )
    try:
        model, found = kind.from_pretrained(
            source.expanduser(), dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source} holds no model of this package ({reason})") from error
    problems = {what: sorted(map(str, names)) for what, names in found.items() if names}
    if problems:
        raise ValueError(
            f"{source} is no whole translation model: {problems}; give the directory of a "
            f"{kind.__name__}"
        )
    return model.eval()


def _check(config: VanillaTransformerConfig) -> None:
    """Refuses what MarianMT cannot hold.

    Raises:
        ValueError: The first such option, with value, rule and remedy.
    """
    d_k = config.d_model // config.num_heads
    remedy = "another export (CTranslate2, ONNX) takes it as it is"
    for name, allowed, rule in (
        ("layer_norm_position", ("post",), "MarianMT normalises after each sub-layer"),
        ("final_layer_norm", (False,), "MarianMT has no norm after its stacks"),
        (
            "position_encoding",
            ("interleaved", "concatenated"),
            "MarianMT computes its positions anew when it is saved, with the frequencies of these",
        ),
        ("position_offset", (0,), "MarianMT counts positions from 0"),
        ("d_k", (d_k,), "MarianMT's heads have d_model / num_heads dimensions"),
        ("d_v", (d_k,), "MarianMT's heads have d_model / num_heads dimensions"),
        ("num_segments", (0,), "MarianMT has no segments"),
    ):
        value = getattr(config, name)
        if value not in allowed:
            choice = " or ".join(map(repr, allowed))
            raise ValueError(f"{name} ({value!r}) must be {choice}: {rule}; {remedy}")


def _marian(model: VanillaTransformerForConditionalGeneration) -> MarianMTModel:
    config = model.config
    marian = MarianMTModel(
        MarianConfig(
            vocab_size=config.vocab_size,
            decoder_vocab_size=config.target_vocab_size,
            max_position_embeddings=MAX_POSITIONS,
            encoder_layers=config.num_encoder_layers,
            encoder_ffn_dim=config.d_ff,
            encoder_attention_heads=config.num_heads,
            decoder_layers=config.num_decoder_layers,
            decoder_ffn_dim=config.decoder_d_ff,
            decoder_attention_heads=config.num_heads,
            activation_function=config.activation,
            d_model=config.d_model,
            dropout=config.dropout,
            decoder_start_token_id=config.decoder_start_token_id,
            scale_embedding=True,
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            bos_token_id=config.bos_token_id,
            forced_eos_token_id=None,
            share_encoder_decoder_embeddings=config.share_embeddings,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    result = marian.load_state_dict(_weights(model), strict=False)
    assert not result.unexpected_keys, result.unexpected_keys
    assert all("embed_positions" in name for name in result.missing_keys), result.missing_keys
    return marian.eval()


def _weights(model: VanillaTransformerForConditionalGeneration) -> dict[str, torch.Tensor]:
    """By MarianMT's names, the dimensions in MarianMT's order."""
    config, stored, places = model.config, model.state_dict(), order(model.config)
    target = "model.decoder.embed_tokens.weight"
    matrices = {
        "model.encoder.embed_tokens.weight": stored["model.encoder.embed_tokens.weight"],
        target: stored[target],
        "lm_head.weight": stored["lm_head.weight"],
    }
    if config.share_embeddings:
        matrices["model.shared.weight"] = stored[target]
    weights = {name: matrix[:, places] for name, matrix in matrices.items()}
    bias = stored.get("lm_head.bias")
    weights["final_logits_bias"] = torch.zeros(1, config.target_vocab_size)
    if bias is not None:
        weights["final_logits_bias"] = bias.unsqueeze(0)
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    for side, depth in depths.items():
        for number in range(depth):
            prefix = f"model.{side}.layers.{number}"
            for ours, theirs in layer_names(side).items():
                weight = stored[f"{prefix}.{ours}.weight"]
                bias = stored.get(f"{prefix}.{ours}.bias")
                if bias is None:
                    bias = torch.zeros(weight.shape[0])
                # What writes into the residual stream has its dimensions as rows, what reads it
                # as columns; a norm as its only ones.
                if ours.endswith(("o_proj", "fc2", "norm")):
                    weight, bias = weight[places], bias[places]
                else:
                    weight = weight[:, places]
                weights[f"{prefix}.{theirs}.weight"] = weight.contiguous()
                weights[f"{prefix}.{theirs}.bias"] = bias
    return weights


def _generation(
    model: VanillaTransformerForConditionalGeneration, remarks: list[str]
) -> GenerationConfig:
    """The model's own settings, without the two that are this package's."""
    settings = model.generation_config.to_diff_dict()
    formula = settings.pop("length_penalty_formula", "paper")
    over = settings.pop("max_tokens_over_source", None)
    settings.pop("transformers_version", None)
    generation = GenerationConfig(**settings)
    if generation.max_length is None and generation.max_new_tokens is None:
        generation.max_length = MAX_POSITIONS
        remarks.append(
            f"outputs end after {MAX_POSITIONS} tokens; MarianMT cannot end them {over} beyond "
            "their source"
        )
    is_beam = (generation.num_beams or 1) > 1 and generation.length_penalty != 0
    if formula == "paper" and is_beam:
        remarks.append(
            "its beam search divides by n^length_penalty, not by ((5 + n) / 6)^length_penalty: "
            "among hypotheses of different lengths it may choose others; greedy outputs are equal"
        )
    return generation


def _save_tokenizer(source: Path, folder: Path) -> str:
    try:
        tokenizer = load_tokenizer(source)
    except ValueError as error:
        return f"no tokenizer was written: {error}"
    if isinstance(tokenizer, TwoSidedTokenizer):
        tokenizer.save_pretrained(folder)
        return (
            "its tokenizers are stock fast ones, the target's in target_tokenizer/: load them with "
            "AutoTokenizer, not with MarianTokenizer"
        )
    tokenizer.save_pretrained(folder)
    return "its tokenizer is a stock fast one: load it with AutoTokenizer, not with MarianTokenizer"
