"""The Transformer of "Attention Is All You Need" as a Hugging Face model package.

Importing it registers the model with transformers' Auto classes, and lets `generate` decode by the
lean loop where that gives the same tokens.
"""

from .configuration_vanilla_transformer import PAPER_ARCHITECTURES, VanillaTransformerConfig
from .generation import lean_generate
from .modeling_vanilla_transformer import (
    VanillaTransformerDecoder,
    VanillaTransformerDecoderModel,
    VanillaTransformerEncoder,
    VanillaTransformerEncoderModel,
    VanillaTransformerForCausalLM,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
    VanillaTransformerModel,
    VanillaTransformerPreTrainedModel,
)
from .registration import register

__version__ = "0.1.0"

__all__ = [
    "PAPER_ARCHITECTURES",
    "VanillaTransformerConfig",
    "VanillaTransformerDecoder",
    "VanillaTransformerDecoderModel",
    "VanillaTransformerEncoder",
    "VanillaTransformerEncoderModel",
    "VanillaTransformerForCausalLM",
    "VanillaTransformerForConditionalGeneration",
    "VanillaTransformerForMaskedLM",
    "VanillaTransformerForQuestionAnswering",
    "VanillaTransformerForSequenceClassification",
    "VanillaTransformerModel",
    "VanillaTransformerPreTrainedModel",
]

register()
VanillaTransformerForConditionalGeneration._lean_generate = lean_generate
