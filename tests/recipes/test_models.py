"""Models found by their directories, and loaded for what they were trained to do."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase

from tests.recipes.conftest import TINY
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.recipes import (
    describe_machine,
    environment,
    load_model,
    locate_model,
    model_kind,
)

HEADS: dict[Any, Any] = {
    "text": VanillaTransformerForConditionalGeneration,
    "question_answering": VanillaTransformerForQuestionAnswering,
    "inference": VanillaTransformerForSequenceClassification,
}


def test_a_model_is_found_by_its_directory_or_its_run(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    model = VanillaTransformerForConditionalGeneration(config)
    for directory in (tmp_path / "single", tmp_path / "run" / "model"):
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    assert locate_model(tmp_path / "single") == str(tmp_path / "single")
    assert locate_model(str(tmp_path / "run")) == str(tmp_path / "run" / "model")
    loaded, vocabulary = load_model(tmp_path / "run", "cpu")
    assert not loaded.training
    assert loaded.device.type == "cpu"
    assert len(vocabulary) == len(tokenizer)
    with pytest.raises(ValueError, match="holds no model"):
        locate_model(tmp_path)


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(HfApi, "model_info", lambda self, name, **_: asked.append(name))
    assert locate_model("someone/model") == "someone/model"
    assert asked == ["someone/model"]
    with pytest.raises(ValueError, match="neither a directory nor a model that the Hub gave"):
        locate_model("a/b/c")


@pytest.mark.parametrize("kind", HEADS)
def test_a_model_is_loaded_for_what_it_was_trained_to_do(
    kind: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    HEADS[kind](VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    assert model_kind(tmp_path) == kind
    model, _ = load_model(tmp_path, "cpu", kind=kind)
    assert type(model) is HEADS[kind]
    for other in HEADS.keys() - {kind}:
        with pytest.raises(ValueError, match=r"is a model for .*, not for .*--init"):
            load_model(tmp_path, "cpu", kind=other)


def test_a_pretrained_model_has_to_be_trained_for_a_task_first(tmp_path: Path) -> None:
    VanillaTransformerForMaskedLM(VanillaTransformerConfig(vocab_size=9, **TINY)).save_pretrained(
        tmp_path
    )
    message = "is a VanillaTransformerForMaskedLM, which has no head for a task; .* train --init"
    with pytest.raises(ValueError, match=message):
        model_kind(tmp_path)


def test_a_device_that_is_not_there_is_named(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"device \('nowhere'\) cannot be used"):
        load_model(tmp_path, "nowhere")


def test_the_machine_is_told() -> None:
    assert set(environment()) == {"device", "threads", "python", "torch", "transformers"}
    assert "GPU" in describe_machine() or "GiB" in describe_machine()
