"""Which Auto class builds which head, in one table."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
)

from .configuration_vanilla_transformer import VanillaTransformerConfig
from .modeling_vanilla_transformer import (
    VanillaTransformerEncoderModel,
    VanillaTransformerForCausalLM,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
    VanillaTransformerModel,
)

AUTO_CLASSES = {
    AutoModel: VanillaTransformerModel,
    AutoModelForSeq2SeqLM: VanillaTransformerForConditionalGeneration,
    AutoModelForMaskedLM: VanillaTransformerForMaskedLM,
    AutoModelForCausalLM: VanillaTransformerForCausalLM,
    AutoModelForQuestionAnswering: VanillaTransformerForQuestionAnswering,
    AutoModelForSequenceClassification: VanillaTransformerForSequenceClassification,
    AutoModelForTextEncoding: VanillaTransformerEncoderModel,
}


def register() -> None:
    """Makes the Auto classes know this package's; importing the package calls it."""
    AutoConfig.register(VanillaTransformerConfig.model_type, VanillaTransformerConfig)
    for auto_class, head in AUTO_CLASSES.items():
        auto_class.register(VanillaTransformerConfig, head)
