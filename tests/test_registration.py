"""The Auto classes build the right heads, from a config and from a directory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
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

import vanilla_transformer
from vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.registration import AUTO_CLASSES, register

# Written out: the table under test must not be its own witness.
EXPECTED = {
    AutoModel: "VanillaTransformerModel",
    AutoModelForSeq2SeqLM: "VanillaTransformerForConditionalGeneration",
    AutoModelForMaskedLM: "VanillaTransformerForMaskedLM",
    AutoModelForCausalLM: "VanillaTransformerForCausalLM",
    AutoModelForQuestionAnswering: "VanillaTransformerForQuestionAnswering",
    AutoModelForSequenceClassification: "VanillaTransformerForSequenceClassification",
    AutoModelForTextEncoding: "VanillaTransformerEncoderModel",
}
TINY = {
    "vocab_size": 20,
    "d_model": 8,
    "d_ff": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}


@pytest.mark.parametrize("auto_class", EXPECTED, ids=lambda auto: auto.__name__)
def test_auto_class_builds_its_head(auto_class: Any, tmp_path: Path) -> None:
    head = getattr(vanilla_transformer, EXPECTED[auto_class])
    assert AUTO_CLASSES[auto_class] is head
    model = auto_class.from_config(VanillaTransformerConfig(**TINY))
    assert type(model) is head
    model.save_pretrained(tmp_path)
    loaded, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is head
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (loaded.config.d_model, loaded.config.num_heads) == (8, 2)


def test_table_is_complete() -> None:
    assert AUTO_CLASSES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("auto_class", EXPECTED, ids=lambda auto: auto.__name__)
def test_every_head_loads_from_the_whole_model(auto_class: Any, tmp_path: Path) -> None:
    AutoModelForSeq2SeqLM.from_config(VanillaTransformerConfig(**TINY)).save_pretrained(tmp_path)
    assert type(auto_class.from_pretrained(tmp_path)).__name__ == EXPECTED[auto_class]


def test_auto_config(tmp_path: Path) -> None:
    assert type(AutoConfig.for_model("vanilla_transformer")) is VanillaTransformerConfig
    VanillaTransformerConfig(**TINY).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is VanillaTransformerConfig
    assert config.d_ff == 16


def test_registering_again_changes_nothing() -> None:
    register()
    register()
    model = AutoModel.from_config(VanillaTransformerConfig(**TINY))
    assert type(model) is vanilla_transformer.VanillaTransformerModel
    # Another model keeps its own.
    marian = transformers.MarianConfig(
        d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, vocab_size=30,
        decoder_attention_heads=2, pad_token_id=0, encoder_ffn_dim=8, decoder_ffn_dim=8,
    )  # fmt: skip
    assert type(AutoModelForSeq2SeqLM.from_config(marian)) is transformers.MarianMTModel


def test_importing_the_package_is_enough(repository: Path, tmp_path: Path) -> None:
    AutoModelForSeq2SeqLM.from_config(VanillaTransformerConfig(**TINY)).save_pretrained(tmp_path)
    code = (
        "import transformers, vanilla_transformer\n"
        f"model = transformers.AutoModelForSeq2SeqLM.from_pretrained({str(tmp_path)!r})\n"
        "print(type(model).__module__, type(model).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True
    )
    assert done.stdout == (
        "vanilla_transformer.modeling_vanilla_transformer "
        "VanillaTransformerForConditionalGeneration\n"
    )
