"""The model that holds converted weights."""

from __future__ import annotations

from transformers import GenerationConfig

from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .source import Converted


def build_model(converted: Converted) -> VanillaTransformerForConditionalGeneration:
    """The model with the converted weights, each of which must be there and fit.

    Raises:
        ValueError: A weight is missing, left over or of another shape.
    """
    weights = dict(converted.weights)
    if converted.config.share_embeddings:
        # The name of the one matrix that serves both sides.
        weights["model.shared.weight"] = weights.pop("model.encoder.embed_tokens.weight")
    model, found = VanillaTransformerForConditionalGeneration.from_pretrained(
        None,
        config=converted.config,
        state_dict=weights,
        output_loading_info=True,
    )
    problems = {what: sorted(map(str, names)) for what, names in found.items() if names}
    if problems:
        raise ValueError(f"the converted weights are not those of the model: {problems}")
    model.generation_config = GenerationConfig(
        **{
            name: getattr(converted.config, name)
            for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        },
        **converted.generation,
    )
    model._complete_generation_config()
    return model.eval()
