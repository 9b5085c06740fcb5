"""Which Auto class builds which head, and which pipeline runs it, for this process and the Hub."""

import json
import shutil
from pathlib import Path

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
from transformers.pipelines import PIPELINE_REGISTRY

from . import (
    configuration_vanilla_transformer,
    modeling_vanilla_transformer,
    pipeline_vanilla_transformer,
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
from .pipeline_vanilla_transformer import QuestionAnsweringPipeline, TranslationPipeline

TRAVELLING = (
    configuration_vanilla_transformer,
    modeling_vanilla_transformer,
    pipeline_vanilla_transformer,
)
"""The modules whose files stand beside a model that loads without this package."""

AUTO_CLASSES = {
    AutoModel: VanillaTransformerModel,
    AutoModelForSeq2SeqLM: VanillaTransformerForConditionalGeneration,
    AutoModelForMaskedLM: VanillaTransformerForMaskedLM,
    AutoModelForCausalLM: VanillaTransformerForCausalLM,
    AutoModelForQuestionAnswering: VanillaTransformerForQuestionAnswering,
    AutoModelForSequenceClassification: VanillaTransformerForSequenceClassification,
    AutoModelForTextEncoding: VanillaTransformerEncoderModel,
}
# By the task's name in a model's configuration. transformers has removed these names, so that with
# the package imported they have a prefix.
PIPELINES = {
    "translation": (TranslationPipeline, AutoModelForSeq2SeqLM),
    "question-answering": (QuestionAnsweringPipeline, AutoModelForQuestionAnswering),
}


def register() -> None:
    """Makes the Auto classes and `pipeline` know this package's; importing the package calls it."""
    AutoConfig.register(VanillaTransformerConfig.model_type, VanillaTransformerConfig)
    for auto_class, head in AUTO_CLASSES.items():
        auto_class.register(VanillaTransformerConfig, head)
    for task, (pipeline_class, auto_class) in PIPELINES.items():
        # `register_pipeline` would warn of the second time, and mark the class in a way that makes
        # `save_pretrained` write the prefixed name for the Hub.
        PIPELINE_REGISTRY.supported_tasks[f"vanilla-{task}"] = {
            "impl": pipeline_class,
            "pt": (auto_class,),
            "type": "text",
        }


def add_remote_code(directory: Path) -> None:
    """Puts the model's code beside a saved model, which then loads without this package.

    The files that travel are copied, and `auto_map` in `config.json` names the class behind each
    Auto class, so that every head loads from the one directory with `trust_remote_code=True`; the
    head that was saved also gets its pipeline. With this package imported no trust is asked.
    """
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8"))
    classes = {AutoConfig: VanillaTransformerConfig, **AUTO_CLASSES}
    config["auto_map"] = {
        auto_class.__name__: f"{found.__module__.rpartition('.')[2]}.{found.__name__}"
        for auto_class, found in classes.items()
    }
    config["custom_pipelines"] = {
        task: {
            "impl": f"{found.__module__.rpartition('.')[2]}.{found.__name__}",
            "pt": [auto_class.__name__],
            "type": "text",
        }
        for task, (found, auto_class) in PIPELINES.items()
        if AUTO_CLASSES[auto_class].__name__ in (config.get("architectures") or ())
    }
    for module in TRAVELLING:
        shutil.copy(str(module.__file__), directory)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
