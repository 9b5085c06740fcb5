"""What transformers expects of a model: saving, tying, caches, padding, recording, compilation."""

import copy
import itertools
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    EncoderDecoderCache,
    StaticCache,
)
from transformers.modeling_outputs import BaseModelOutput

from tests.conftest import build, tiny
from vanilla_transformer import (
    VanillaTransformerConfig,
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
from vanilla_transformer.modeling_vanilla_transformer import (
    VanillaTransformerAttention,
)

V, D = 29, 16
CLASSES = [
    VanillaTransformerEncoder,
    VanillaTransformerDecoder,
    VanillaTransformerModel,
    VanillaTransformerEncoderModel,
    VanillaTransformerDecoderModel,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForCausalLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
]
HEADS = CLASSES[-5:]
# Linear layers that no plan splits: what they write is small, or tied to the embedding.
OUTPUT_LAYERS = {"lm_head", "qa_outputs", "no_answer_outputs", "classifier"}
# One matrix for all, the decoder's two, none; and the last two with a vocabulary for each side.
TYINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "decoder": {"share_embeddings": False},
    "none": {"tie_word_embeddings": False},
    "decoder, two vocabularies": {"decoder_vocab_size": 23},
    "none, two vocabularies": {"decoder_vocab_size": 23, "tie_word_embeddings": False},
}
Builder = type[VanillaTransformerPreTrainedModel]


pytestmark = pytest.mark.usefixtures("seeded")


def tokens(*shape: int, high: int = 23) -> torch.Tensor:
    return torch.randint(5, high, shape)


def inputs_for(model: VanillaTransformerPreTrainedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = {"input_ids": torch.randint(5, 23, (2, 6), generator=generator)}
    if model.config.is_encoder_decoder and isinstance(
        model, (VanillaTransformerModel, VanillaTransformerForConditionalGeneration)
    ):
        inputs["decoder_input_ids"] = torch.randint(5, 23, (2, 4), generator=generator)
    if isinstance(model, VanillaTransformerForQuestionAnswering):
        # Two tokens of question, two of context.
        inputs["input_ids"][:, [2, 5]] = 2
    return inputs


def labels_for(model: VanillaTransformerPreTrainedModel) -> dict[str, torch.Tensor]:
    """What each head learns, for `inputs_for`."""
    if isinstance(model, VanillaTransformerForQuestionAnswering):
        return {"start_positions": torch.tensor([3, 4]), "end_positions": torch.tensor([3, 4])}
    if isinstance(model, VanillaTransformerForSequenceClassification):
        return {"labels": torch.tensor([1, 0])}
    return {"labels": tokens(2, 6, high=18)}


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits; of question answering those of the context."""
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)[:, 3:5]
    found: torch.Tensor = outputs.logits
    return found


@torch.no_grad()
def result(model: VanillaTransformerPreTrainedModel) -> torch.Tensor:
    """Logits, or the last hidden state where there is no head."""
    outputs = model(**inputs_for(model))
    if "last_hidden_state" not in outputs:
        return logits_of(outputs)
    found: torch.Tensor = outputs.last_hidden_state
    return found


def same_parameters(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def assert_tied(model: VanillaTransformerPreTrainedModel, tying: str) -> None:
    """Which of the three matrices are one piece of memory."""
    base = model.base_model
    stacks = [base._modules[n] for n in ("encoder", "decoder") if n in base._modules]
    places = [stack.embed_tokens.weight.data_ptr() for stack in stacks]
    if tying == "all":
        assert set(places) == {base.shared.weight.data_ptr()}
    else:
        assert len(set(places)) == len(places)
        assert not hasattr(base, "shared")
    if (lm_head := model.get_output_embeddings()) is not None:
        # A masked LM's output layer goes with its only embedding, the encoder's.
        is_tied = lm_head.weight.data_ptr() == places[-1]
        assert is_tied == (not tying.startswith("none"))


# -------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("tying", TYINGS)
def test_every_class_comes_back_as_it_was_saved(cls: Builder, tying: str, tmp_path: Path) -> None:
    model = build(cls, **TYINGS[tying], output_bias=True)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert same_parameters(model, loaded)
    assert not loaded.training
    assert torch.equal(result(model), result(loaded))
    # Saved again it is the same file.
    loaded.save_pretrained(tmp_path / "again")
    stored = (tmp_path / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == stored


@pytest.mark.parametrize("cls", CLASSES)
def test_shards(cls: Builder, tmp_path: Path) -> None:
    model = build(cls)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(result(cls.from_pretrained(tmp_path)), result(model))


@pytest.mark.parametrize("cls", CLASSES)
def test_loading_as_bfloat16(cls: Builder, tmp_path: Path) -> None:
    """The sinusoids stay exact: they are computed in double precision, then rounded once."""
    model = build(cls)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    output = result(loaded)
    assert output.dtype == torch.bfloat16
    assert (output.float() - result(model)).abs().max() < 0.15


@pytest.mark.parametrize("position_encoding", ["interleaved", "concatenated_inclusive", "learned"])
def test_positions_survive_the_meta_device(position_encoding: str, tmp_path: Path) -> None:
    """`from_pretrained` builds without memory; a table of sinusoids would come out as garbage."""
    model = build(
        VanillaTransformerForConditionalGeneration,
        position_encoding=position_encoding,
        max_position_embeddings=40,
    )
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = VanillaTransformerForConditionalGeneration(model.config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(
        tmp_path, low_cpu_mem_usage=True
    )
    assert torch.equal(result(loaded), result(model))
    # And by hand, in memory filled with what it held before.
    empty.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.fill_(float("nan"))
    empty.load_state_dict(model.state_dict())
    empty.tie_weights()
    assert torch.equal(result(empty.eval()), result(model))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_state_dict_holds_parameters_only(cls: Builder) -> None:
    model = build(cls, attention_bias=True, output_bias=True)
    assert list(model.named_buffers()) == []
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert set(model.state_dict()) == names


def test_parameter_names_are_for_ever() -> None:
    """Published checkpoints carry them: a change here breaks every one."""
    model = VanillaTransformerForConditionalGeneration(
        tiny(num_encoder_layers=1, num_decoder_layers=1, attention_bias=True, output_bias=True)
    )
    projections = [
        f"{projection}_proj.{kind}" for projection in "qkvo" for kind in ("weight", "bias")
    ]
    norm, feed = ("weight", "bias"), ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    expected = {"model.shared.weight", "lm_head.weight", "lm_head.bias"}
    for stack, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "cross_attn"])):
        layer = f"model.{stack}.layers.0"
        expected.add(f"model.{stack}.embed_tokens.weight")
        expected |= {f"{layer}.{a}.{p}" for a in attentions for p in projections}
        expected |= {f"{layer}.{a}_layer_norm.{kind}" for a in attentions for kind in norm}
        expected |= {f"{layer}.ffn_layer_norm.{kind}" for kind in norm}
        expected |= {f"{layer}.{name}" for name in feed}
    assert set(model.state_dict()) == expected


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(cls: Builder, copy_of: Callable[[Any], Any]) -> None:
    model = build(cls)
    twin = copy_of(model)
    assert torch.equal(result(model), result(twin))
    if hasattr(model, "base_model") and hasattr(model.base_model, "shared"):
        assert_tied(twin, "all")
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not same_parameters(model, twin)


# ---------------------------------------------------------------------- one checkpoint, all heads


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize(
    ("cls", "stacks"),
    [
        (VanillaTransformerModel, {"encoder", "decoder"}),
        (VanillaTransformerEncoderModel, {"encoder"}),
        (VanillaTransformerDecoderModel, {"decoder"}),
        (VanillaTransformerForCausalLM, {"decoder"}),
    ],
)
def test_a_translation_checkpoint_serves_the_halves(
    cls: Builder, stacks: set[str], tying: str, tmp_path: Path
) -> None:
    """Their weights are bit for bit the translation model's, and nothing is made up."""
    whole = build(VanillaTransformerForConditionalGeneration, **TYINGS[tying])
    whole.save_pretrained(tmp_path)
    part, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["mismatched_keys"], report
    # The output layer is not for `Model`, and unlike a half it has no reason to keep quiet.
    unexpected = {"lm_head.weight"} if tying.startswith("none") and len(stacks) == 2 else set()
    assert set(report["unexpected_keys"]) == unexpected
    assert {n for n in ("encoder", "decoder") if n in part.base_model._modules} == stacks
    original = whole.model.state_dict()
    for name, tensor in part.base_model.state_dict().items():
        assert torch.equal(tensor, original[name]), name
    if part.get_output_embeddings() is not None:
        assert torch.equal(part.lm_head.weight, whole.lm_head.weight)
    assert_tied(part, tying)
    assert not any(".cross_attn" in name for name in part.state_dict()) or len(stacks) == 2


@pytest.mark.parametrize("tying", ["all", "decoder"])
def test_a_translation_checkpoint_serves_a_masked_lm(tying: str, tmp_path: Path) -> None:
    whole = build(VanillaTransformerForConditionalGeneration, **TYINGS[tying])
    whole.save_pretrained(tmp_path)
    masked, report = VanillaTransformerForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    original = whole.model.state_dict()
    for name, tensor in masked.model.state_dict().items():
        assert torch.equal(tensor, original[name]), name
    assert_tied(masked, tying)
    assert torch.equal(masked.lm_head.weight, whole.model.encoder.embed_tokens.weight)


def test_a_base_checkpoint_serves_a_head_with_a_new_output_layer(tmp_path: Path) -> None:
    base = build(VanillaTransformerModel, tie_word_embeddings=False)
    base.save_pretrained(tmp_path)
    model, report = VanillaTransformerForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"lm_head.weight"}
    assert not report["unexpected_keys"]
    assert same_parameters(model.model, base)
    bound = math.sqrt(6 / (V + D))
    assert 0.8 * bound < model.lm_head.weight.abs().max() <= bound


def test_the_pad_row_of_a_checkpoint_is_kept(tmp_path: Path) -> None:
    """It is zero in a new model; OPUS-MT's start symbol is a pad, whatever its row holds."""
    model = build(VanillaTransformerForConditionalGeneration)
    assert (model.model.shared.weight[0] != 0).any()
    model.save_pretrained(tmp_path)
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.shared.weight, model.model.shared.weight)


@pytest.mark.parametrize(
    ("auto", "cls"),
    [
        (AutoModel, VanillaTransformerModel),
        (AutoModelForSeq2SeqLM, VanillaTransformerForConditionalGeneration),
        (AutoModelForMaskedLM, VanillaTransformerForMaskedLM),
        (AutoModelForCausalLM, VanillaTransformerForCausalLM),
        (AutoModelForQuestionAnswering, VanillaTransformerForQuestionAnswering),
        (AutoModelForSequenceClassification, VanillaTransformerForSequenceClassification),
    ],
)
def test_auto_classes(auto: Any, cls: Builder, tmp_path: Path) -> None:
    config = tiny()
    assert type(auto.from_config(config)) is cls
    build(VanillaTransformerForConditionalGeneration).save_pretrained(tmp_path)
    loaded_config = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded_config) is VanillaTransformerConfig
    assert loaded_config.architectures == ["VanillaTransformerForConditionalGeneration"]
    assert type(auto.from_pretrained(tmp_path)) is cls


@pytest.mark.parametrize("cls", CLASSES)
def test_heads_leave_the_config_as_it_was(cls: Builder, tmp_path: Path) -> None:
    config = tiny()
    before = config.to_dict()
    model = cls(config)
    model(**inputs_for(model))
    model.save_pretrained(tmp_path)
    after = config.to_dict()
    for changed in ("architectures", "dtype", "_name_or_path"):
        before.pop(changed, None)
        after.pop(changed, None)
    assert after == before
    assert config.is_encoder_decoder


# -------------------------------------------------------------------------------- tied weights


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize("cls", HEADS)
def test_matrices_are_one_where_the_config_says_so(
    cls: Builder, tying: str, tmp_path: Path
) -> None:
    model = build(cls, **TYINGS[tying])
    assert_tied(model, tying)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert_tied(loaded, tying)
    assert_tied(loaded.to(torch.float64), tying)
    assert_tied(loaded.float(), tying)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in loaded.parameters()) == before


def test_two_vocabularies() -> None:
    model = build(VanillaTransformerForConditionalGeneration, decoder_vocab_size=50)
    assert model.model.encoder.embed_tokens.weight.shape == (V, D)
    assert model.model.decoder.embed_tokens.weight.shape == (50, D)
    target = torch.tensor([[1, 49, 30]])
    assert model(input_ids=tokens(1, 4), decoder_input_ids=target).logits.shape == (1, 3, 50)
    model.train()(input_ids=tokens(1, 4), labels=target).loss.backward()


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize("size", [V + 5, 20])
@pytest.mark.parametrize("cls", CLASSES[2:])
def test_resizing_the_embeddings(cls: Builder, size: int, tying: str, tmp_path: Path) -> None:
    """All matrices of one vocabulary change, old rows stay, and it learns, saves and loads."""
    model = build(cls, **TYINGS[tying], output_bias=True)
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    resized = model.resize_token_embeddings(size)
    assert resized is model.get_input_embeddings()
    assert resized.weight.shape == (size, D)
    assert_tied(model, tying)
    has_both = hasattr(model.base_model, "encoder") and hasattr(model.base_model, "decoder")
    keeps_target = has_both and "two" in tying
    changed = 0
    for name, tensor in model.state_dict().items():
        common = min(len(tensor), len(old[name]))
        assert torch.equal(tensor[:common], old[name][:common]), name
        if tensor.shape != old[name].shape:
            assert len(tensor) == size, name
            changed += 1
        else:
            is_vocabulary = "embed_tokens" in name or "shared" in name or "lm_head" in name
            assert not is_vocabulary or keeps_target, name
    assert changed
    if isinstance(model, tuple(HEADS)):
        # Ids of the smaller vocabulary.
        ids = {name: tensor.clamp_max(17) for name, tensor in inputs_for(model).items()}
        inputs = {**ids, **labels_for(model)}
        inputs.pop("decoder_input_ids", None)
        assert model.train()(**inputs).loss.isfinite()
        model.eval()
        assert model(**inputs).loss.isfinite()
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert same_parameters(model, loaded)
    assert loaded.config.vocab_size == model.config.vocab_size


def test_resizing_the_embeddings_of_an_explicitly_shared_pair(tmp_path: Path) -> None:
    """`decoder_vocab_size` may name the one vocabulary's size: it must follow."""
    model = build(
        VanillaTransformerForConditionalGeneration, decoder_vocab_size=V, share_embeddings=True
    )
    model.resize_token_embeddings(V + 3)
    assert model.config.target_vocab_size == V + 3
    model.save_pretrained(tmp_path)
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    assert same_parameters(model, loaded)


def test_resizing_to_a_multiple() -> None:
    for tying in ("all", "decoder", "none"):
        model = build(VanillaTransformerForConditionalGeneration, **TYINGS[tying])
        model.resize_token_embeddings(pad_to_multiple_of=16)
        assert model.config.vocab_size == 32
        assert model.lm_head.weight.shape == (32, D)
        assert model.model.decoder.embed_tokens.weight.shape == (32, D)


def test_asking_for_the_embeddings_changes_nothing() -> None:
    for tying in TYINGS:
        model = build(VanillaTransformerForConditionalGeneration, **TYINGS[tying])
        assert model.resize_token_embeddings() is model.get_input_embeddings()
        assert model.config.vocab_size == V


@pytest.mark.parametrize("tying", [name for name in TYINGS if "two" in name])
def test_resizing_the_target_vocabulary(tying: str, tmp_path: Path) -> None:
    model = build(VanillaTransformerForConditionalGeneration, **TYINGS[tying], output_bias=True)
    resized = model.resize_decoder_token_embeddings(40)
    assert resized is model.model.decoder.embed_tokens
    assert (model.config.vocab_size, model.config.decoder_vocab_size) == (V, 40)
    assert model.model.encoder.embed_tokens.weight.shape == (V, D)
    assert model.lm_head.weight.shape == (40, D)
    assert model.lm_head.bias.shape == (40,)
    assert_tied(model, tying)
    labels = torch.tensor([[39, 30, 2]])
    assert model.train()(input_ids=tokens(1, 4), labels=labels).loss.isfinite()
    model.save_pretrained(tmp_path)
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    assert same_parameters(model, loaded)


def test_one_vocabulary_has_no_target_to_resize() -> None:
    for tying in ("all", "decoder", "none"):
        model = build(VanillaTransformerForConditionalGeneration, **TYINGS[tying])
        with pytest.raises(ValueError, match=r"two vocabularies.*resize_token_embeddings"):
            model.resize_decoder_token_embeddings(40)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("tying", TYINGS)
def test_replacing_the_embeddings(cls: Builder, tying: str) -> None:
    model = build(cls, **TYINGS[tying])
    replacement = nn.Embedding(*model.get_input_embeddings().weight.shape)
    model.set_input_embeddings(replacement)
    assert model.get_input_embeddings() is replacement


# ------------------------------------------------------------------------------------ recording


def test_hidden_states_and_attentions() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    model.set_attn_implementation("eager")
    source, target = tokens(2, 6), tokens(2, 4)
    outputs = model(
        input_ids=source,
        decoder_input_ids=target,
        output_hidden_states=True,
        output_attentions=True,
    )
    shapes = {
        "encoder_hidden_states": (3, (2, 6, D)),
        "decoder_hidden_states": (4, (2, 4, D)),
        "encoder_attentions": (2, (2, 2, 6, 6)),
        "decoder_attentions": (3, (2, 2, 4, 4)),
        "cross_attentions": (3, (2, 2, 4, 6)),
    }
    for name, (count, shape) in shapes.items():
        assert len(outputs[name]) == count, name
        assert {tuple(tensor.shape) for tensor in outputs[name]} == {shape}, name
        if name.endswith("attentions"):
            for weights in outputs[name]:
                torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    for weights in outputs.decoder_attentions:
        assert (weights.triu(1) == 0).all()
    encoder, decoder = model.model.encoder, model.model.decoder
    assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
    embedded = encoder.embed(encoder.embed_tokens(source), torch.arange(6).unsqueeze(0))
    torch.testing.assert_close(outputs.encoder_hidden_states[0], embedded)
    embedded = decoder.embed(decoder.embed_tokens(target), torch.arange(4).unsqueeze(0))
    torch.testing.assert_close(outputs.decoder_hidden_states[0], embedded)
    torch.testing.assert_close(outputs.logits, model.lm_head(outputs.decoder_hidden_states[-1]))
    bare = model(input_ids=source, decoder_input_ids=target)
    assert not set(shapes) & set(bare.keys())


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_records(cls: Builder) -> None:
    model = build(cls)
    model.set_attn_implementation("eager")
    outputs = model(**inputs_for(model), output_hidden_states=True, output_attentions=True)
    has_both = "decoder_input_ids" in inputs_for(model)
    prefix = "decoder_" if has_both else ""
    is_encoder = not has_both and "Decoder" not in cls.__name__ and "Causal" not in cls.__name__
    depth = 2 if is_encoder else 3
    assert len(outputs[prefix + "hidden_states"]) == depth + 1
    assert len(outputs[prefix + "attentions"]) == depth
    as_tuple = model(**inputs_for(model), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], outputs[0])


def test_the_config_can_ask_for_hidden_states() -> None:
    model = build(VanillaTransformerForConditionalGeneration, output_hidden_states=True)
    outputs = model(**inputs_for(model))
    assert len(outputs.decoder_hidden_states) == 4


@pytest.mark.parametrize("layer_norm_position", ["post", "pre"])
def test_gradient_checkpointing_changes_no_gradient(layer_norm_position: str) -> None:
    """With dropout: the recomputed pass has to drop the same elements."""
    model = build(
        VanillaTransformerForConditionalGeneration,
        dropout=0.3,
        layer_norm_position=layer_norm_position,
    ).train()
    inputs = {"input_ids": tokens(2, 6), "labels": tokens(2, 5), "output_hidden_states": True}

    def gradients() -> tuple[float, dict[str, torch.Tensor], Any]:
        model.zero_grad()
        torch.manual_seed(7)
        outputs = model(**inputs)
        outputs.loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return outputs.loss.item(), grads, outputs.decoder_hidden_states

    loss, plain, states = gradients()
    assert set(plain) == {name for name, _ in model.named_parameters()}
    calls = itertools.count()
    layer = model.model.decoder.layers[0]

    def count(*_: Any) -> None:
        next(calls)

    layer.fc1.register_forward_hook(count)
    for use_reentrant in (False, True):
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        before = next(calls)
        again, checkpointed, checkpointed_states = gradients()
        # Forward, and once more during backward.
        assert next(calls) - before - 1 == 2
        assert again == pytest.approx(loss, rel=1e-6)
        assert set(checkpointed) == set(plain)
        for name, gradient in plain.items():
            torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)
        assert len(checkpointed_states) == len(states) == 4
        for one, other in zip(checkpointed_states, states, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tying", ["all", "decoder"])
def test_embeddings_in_place_of_ids(tying: str) -> None:
    model = build(VanillaTransformerForConditionalGeneration, **TYINGS[tying])
    source, target = tokens(2, 6), tokens(2, 4)
    expected = model(input_ids=source, decoder_input_ids=target).logits
    embedded = model(
        inputs_embeds=model.model.encoder.embed_tokens(source),
        decoder_inputs_embeds=model.model.decoder.embed_tokens(target),
    ).logits
    torch.testing.assert_close(embedded, expected)
    for cls in (VanillaTransformerForMaskedLM, VanillaTransformerForCausalLM):
        half = build(cls)
        embeds = half.get_input_embeddings()(source)
        expected = half(input_ids=source).logits
        torch.testing.assert_close(half(inputs_embeds=embeds).logits, expected)


def test_ids_and_embeddings_exclude_each_other() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    ids = tokens(1, 3)
    embeds = model.model.shared(ids)
    with pytest.raises(ValueError, match=r"exactly one of input_ids and inputs_embeds; both"):
        model(input_ids=ids, inputs_embeds=embeds, decoder_input_ids=ids)
    with pytest.raises(ValueError, match=r"exactly one of input_ids and inputs_embeds; neither"):
        model(decoder_input_ids=ids)
    with pytest.raises(ValueError, match=r"decoder_input_ids and decoder_inputs_embeds; both"):
        model(input_ids=ids, decoder_input_ids=ids, decoder_inputs_embeds=embeds)
    with pytest.raises(ValueError, match=r"decoder_input_ids and decoder_inputs_embeds; neither"):
        model.model(input_ids=ids)


@pytest.mark.parametrize(
    "cls", [VanillaTransformerForConditionalGeneration, VanillaTransformerForCausalLM]
)
def test_logits_to_keep(cls: Builder) -> None:
    model = build(cls)
    inputs = inputs_for(model)
    logits = result(model)
    torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, logits[:, -1:])
    torch.testing.assert_close(model(**inputs, logits_to_keep=3).logits, logits[:, -3:])
    indices = torch.tensor([0, 2])
    torch.testing.assert_close(model(**inputs, logits_to_keep=indices).logits, logits[:, indices])
    # The loss is still that of all positions.
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    whole, kept = model(**inputs, labels=labels), model(**inputs, labels=labels, logits_to_keep=1)
    assert kept.logits.shape[1] == 1
    assert kept.loss.item() == pytest.approx(whole.loss.item(), rel=1e-6)


def test_encoder_outputs_in_place_of_the_source() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    source, target = tokens(2, 6), tokens(2, 4)
    source[1, 4:] = 0
    mask = (source != 0).long()
    expected = model(input_ids=source, decoder_input_ids=target).logits
    encoded = model.get_encoder()(input_ids=source, attention_mask=mask)
    for given in (encoded, (encoded.last_hidden_state,), BaseModelOutput(encoded[0])):
        outputs = model(encoder_outputs=given, attention_mask=mask, decoder_input_ids=target)
        torch.testing.assert_close(outputs.logits, expected)


# --------------------------------------------------------------------------------------- caches


def step_by_step(
    model: VanillaTransformerPreTrainedModel,
    inputs: dict[str, torch.Tensor],
    ids: torch.Tensor,
    cache: Any,
    name: str,
    sizes: tuple[int, ...],
) -> torch.Tensor:
    """Logits of all positions, read a few at a time."""
    logits, start = [], 0
    for size in sizes:
        part = {name: ids[:, start : start + size]}
        outputs = model(**inputs, **part, past_key_values=cache, use_cache=True)
        logits.append(outputs.logits)
        cache, start = outputs.past_key_values, start + size
    assert start == ids.shape[1]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("depths", [(1, 3), (3, 1), (2, 2)])
@pytest.mark.parametrize("kind", ["given by the model", "dynamic", "static"])
@pytest.mark.parametrize("implementation_name", ["eager", "sdpa"])
@torch.no_grad()
def test_cached_and_uncached_logits_agree(
    depths: tuple[int, int], kind: str, implementation_name: str
) -> None:
    model = build(
        VanillaTransformerForConditionalGeneration,
        num_encoder_layers=depths[0],
        num_decoder_layers=depths[1],
    )
    model.set_attn_implementation(implementation_name)
    source, target = tokens(2, 6), tokens(2, 7)
    source[0, 4:] = 0
    inputs = {"input_ids": source}
    expected = model(**inputs, decoder_input_ids=target, use_cache=False).logits
    for sizes in ((1,) * 7, (3, 1, 1, 2), (7,)):
        cache = None
        if kind == "dynamic":
            cache = EncoderDecoderCache(
                DynamicCache(config=model.config), DynamicCache(config=model.config)
            )
        elif kind == "static":
            cache = EncoderDecoderCache(
                StaticCache(config=model.config, max_cache_len=12),
                StaticCache(config=model.config, max_cache_len=6),
            )
        cached = step_by_step(model, inputs, target, cache, "decoder_input_ids", sizes)
        torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["given by the model", "dynamic", "static"])
@torch.no_grad()
def test_cached_and_uncached_logits_of_the_decoder_alone_agree(kind: str) -> None:
    model = build(VanillaTransformerForCausalLM, num_encoder_layers=1, num_decoder_layers=3)
    ids = tokens(2, 7)
    cache: Any = None
    if kind == "dynamic":
        cache = DynamicCache(config=model.config)
    elif kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=12)
    expected = model(input_ids=ids, use_cache=False).logits
    cached = step_by_step(model, {}, ids, cache, "input_ids", (2, 1, 1, 3))
    torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cached_positions_follow_the_mask() -> None:
    """A left-padded prompt continues at the position of its real tokens."""
    model = build(VanillaTransformerForCausalLM)
    prompt, more = tokens(1, 4), tokens(1, 2)
    expected = model(input_ids=torch.cat([prompt, more], dim=1)).logits[:, -2:]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    cache = model(input_ids=padded, attention_mask=mask, use_cache=True).past_key_values
    longer = torch.cat([mask, torch.ones(1, 2, dtype=torch.long)], dim=1)
    outputs = model(input_ids=more, attention_mask=longer, past_key_values=cache)
    torch.testing.assert_close(outputs.logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_source_is_projected_once() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    for name, module in model.named_modules():
        if re.search(r"decoder.*\.(k_proj|v_proj|q_proj)$", name):
            module.register_forward_hook(count(name))
    encoded = model.get_encoder()(input_ids=tokens(2, 6))
    step_by_step(
        model, {"encoder_outputs": encoded}, tokens(2, 5), None, "decoder_input_ids", (1,) * 5
    )
    assert len(calls) == 3 * 2 * 3
    for name, times in calls.items():
        is_once = "cross_attn" in name and "q_proj" not in name
        assert times == (1 if is_once else 5), name


@torch.no_grad()
def test_cache_is_for_evaluation_and_only_where_wanted() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    inputs = inputs_for(model)
    assert isinstance(model(**inputs).past_key_values, EncoderDecoderCache)
    assert model(**inputs, use_cache=False).past_key_values is None
    assert model(**inputs, labels=inputs["decoder_input_ids"]).past_key_values is None
    model.config.use_cache = False
    assert model(**inputs).past_key_values is None
    model.config.use_cache = True
    assert model.train()(**inputs).past_key_values is None
    layers = build(VanillaTransformerForCausalLM)(input_ids=tokens(1, 3)).past_key_values.layers
    # One layer of keys and values for each of the decoder's, not the encoder's.
    assert len(layers) == 3


# -------------------------------------------------------------------------------------- padding


def pad(ids: torch.Tensor, left: int, right: int, value: int = 0) -> torch.Tensor:
    return nn.functional.pad(ids, (left, right), value=value)


PADDINGS = [(0, 3), (3, 0), (2, 4)]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("position_encoding", ["interleaved", "learned"])
@pytest.mark.parametrize("layer_norm_position", ["post", "pre"])
@torch.no_grad()
def test_padding_moves_nothing(
    padding: tuple[int, int], position_encoding: str, layer_norm_position: str, implementation: str
) -> None:
    """Padded on either side or both, encoder and decoder: the real tokens' logits are the same."""
    left, right = padding
    options = {
        "position_encoding": position_encoding,
        "max_position_embeddings": 20,
        "layer_norm_position": layer_norm_position,
        "position_offset": 1,
    }
    source, target = tokens(1, 5), tokens(1, 4)
    # A second row, which has no padding, so that the batch has rows of both kinds.
    full_source, full_target = tokens(1, 5 + left + right), tokens(1, 4 + left + right)
    sources = torch.cat([pad(source, left, right), full_source])
    targets = torch.cat([pad(target, left, right), full_target])
    source_mask, target_mask = (
        torch.cat([pad(torch.ones_like(ids), left, right), torch.ones_like(full)])
        for ids, full in ((source, full_source), (target, full_target))
    )

    def compare(padded: torch.Tensor, alone: torch.Tensor, full: torch.Tensor) -> None:
        real = slice(left, padded.shape[1] - right)
        torch.testing.assert_close(padded[:1, real], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(padded[1:], full, rtol=1e-5, atol=1e-5)

    model = build(VanillaTransformerForConditionalGeneration, **options)
    model.set_attn_implementation(implementation)
    padded = model(
        input_ids=sources,
        attention_mask=source_mask,
        decoder_input_ids=targets,
        decoder_attention_mask=target_mask,
    )
    alone = model(input_ids=source, decoder_input_ids=target)
    full = model(input_ids=full_source, decoder_input_ids=full_target)
    compare(padded.logits, alone.logits, full.logits)
    compare(
        padded.encoder_last_hidden_state,
        alone.encoder_last_hidden_state,
        full.encoder_last_hidden_state,
    )
    # Without a mask the pads of the source are known by their id.
    unmasked = model(
        input_ids=sources, decoder_input_ids=targets, decoder_attention_mask=target_mask
    )
    compare(unmasked.logits, alone.logits, full.logits)

    for cls in (VanillaTransformerForMaskedLM, VanillaTransformerForCausalLM):
        half = build(cls, **options)
        half.set_attn_implementation(implementation)
        padded = half(input_ids=sources, attention_mask=source_mask)
        alone, full = half(input_ids=source), half(input_ids=full_source)
        compare(padded.logits, alone.logits, full.logits)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
@torch.no_grad()
def test_masks_of_any_type(dtype: torch.dtype) -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    source, target = tokens(2, 6), tokens(2, 4)
    mask, target_mask = torch.ones(2, 6), torch.ones(2, 4)
    mask[0, 4:], target_mask[1, :2] = 0, 0
    expected, logits = (
        model(
            input_ids=source,
            attention_mask=mask.to(kind),
            decoder_input_ids=target,
            decoder_attention_mask=target_mask.to(kind),
        ).logits
        for kind in (torch.long, dtype)
    )
    torch.testing.assert_close(logits, expected)


@torch.no_grad()
def test_what_padding_holds_does_not_matter() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    source, target, mask = tokens(2, 6), tokens(2, 4), torch.ones(2, 6)
    mask[:, 4:] = 0
    expected = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    source[:, 4:] = tokens(2, 2)
    again = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_row_of_padding_alone_stays_finite(implementation: str, training: bool) -> None:
    if implementation == "flex_attention" and training and not torch.cuda.is_available():
        pytest.skip("FlexAttention has no backward pass on a CPU")
    model = build(VanillaTransformerForConditionalGeneration).train(training)
    model.set_attn_implementation(implementation)
    source, labels = tokens(2, 6), tokens(2, 4)
    source[0] = 0
    labels[0] = -100
    with torch.set_grad_enabled(training):
        outputs = model(input_ids=source, labels=labels)
    assert outputs.loss.isfinite()
    if training:
        outputs.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        return
    assert outputs.logits.isfinite().all()
    with torch.no_grad():
        alone = model(input_ids=source[1:], labels=labels[1:])
    torch.testing.assert_close(outputs.logits[1:], alone.logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_decoder_may_start_with_a_pad() -> None:
    """Marian's do: without a mask no token of the decoder is padding."""
    model = build(VanillaTransformerForConditionalGeneration, decoder_start_token_id=0)
    source, labels = tokens(1, 5), tokens(1, 4)
    start = torch.cat([torch.zeros(1, 1, dtype=torch.long), labels[:, :-1]], dim=1)
    expected = model(
        input_ids=source, decoder_input_ids=start, decoder_attention_mask=torch.ones(1, 4)
    ).logits
    torch.testing.assert_close(model(input_ids=source, decoder_input_ids=start).logits, expected)
    torch.testing.assert_close(model(input_ids=source, labels=labels).logits, expected)


# ------------------------------------------------------------------------------------ positions


@torch.no_grad()
def test_there_is_no_last_position() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    outputs = model(input_ids=tokens(1, 5200), decoder_input_ids=tokens(1, 5100), logits_to_keep=1)
    assert outputs.logits.isfinite().all()
    far = torch.tensor([[10_000_000, 10_000_001]])
    ids = tokens(1, 2)
    outputs = model(
        input_ids=ids, position_ids=far, decoder_input_ids=ids, decoder_position_ids=far
    )
    assert outputs.logits.isfinite().all()


@torch.no_grad()
def test_a_learned_table_ends() -> None:
    options = {"position_encoding": "learned", "max_position_embeddings": 6}
    model = build(VanillaTransformerForConditionalGeneration, **options)
    model(input_ids=tokens(1, 6), decoder_input_ids=tokens(1, 6))
    message = r"7 positions exceed max_position_embeddings \(6\).*shorten"
    with pytest.raises(ValueError, match=message):
        model(input_ids=tokens(1, 7), decoder_input_ids=tokens(1, 2))
    with pytest.raises(ValueError, match=message):
        model(input_ids=tokens(1, 2), decoder_input_ids=tokens(1, 7))
    # Token by token too.
    cache = model(input_ids=tokens(1, 2), decoder_input_ids=tokens(1, 6)).past_key_values
    with pytest.raises(ValueError, match=message):
        model(input_ids=tokens(1, 2), decoder_input_ids=tokens(1, 1), past_key_values=cache)
    offset = build(VanillaTransformerForConditionalGeneration, **options, position_offset=2)
    with pytest.raises(ValueError, match=r"5 positions exceed"):
        offset(input_ids=tokens(1, 5), decoder_input_ids=tokens(1, 2))


@torch.no_grad()
def test_positions_can_be_given() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    source, target = tokens(1, 5), tokens(1, 4)
    counted = model(input_ids=source, decoder_input_ids=target).logits
    named = {"position_ids": torch.arange(5)[None], "decoder_position_ids": torch.arange(4)[None]}
    given = model(input_ids=source, decoder_input_ids=target, **named).logits
    torch.testing.assert_close(given, counted)
    for name, ids in named.items():
        moved = model(input_ids=source, decoder_input_ids=target, **{name: ids * 2}).logits
        assert not torch.allclose(moved, counted)
    shifted = build(VanillaTransformerForConditionalGeneration, position_offset=3)
    shifted.load_state_dict(model.state_dict())
    moved = model(
        input_ids=source, decoder_input_ids=target, **{n: ids + 3 for n, ids in named.items()}
    ).logits
    offset = shifted(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(moved, offset)


# ------------------------------------------------------------- parallelism, compilation, export


@pytest.mark.parametrize("cls", CLASSES)
def test_the_tensor_parallel_plan_names_real_modules(cls: Builder) -> None:
    """Every linear layer of the stacks is in it once, split the way that needs one sum a pair."""
    model = cls(tiny())
    patterns = {key: re.compile(re.escape(key).replace(r"\*", r"\d+")) for key in model.tp_plan}
    used = set()
    for name, module in model.named_modules():
        matching = [key for key, pattern in patterns.items() if pattern.fullmatch(name)]
        used.update(matching)
        if isinstance(module, nn.Linear) and name not in OUTPUT_LAYERS:
            assert len(matching) == 1, name
            ends_split = name.endswith(("o_proj", "fc2"))
            assert model.tp_plan[matching[0]] == ("rowwise" if ends_split else "colwise"), name
    # Nothing else: transformers warns of lines that match nothing, and a slice of an embedding is
    # of no use to the output layer that is tied to it.
    assert used == set(model.tp_plan)
    assert not any("embed" in key or "lm_head" in key for key in model.tp_plan)


PARALLEL_RUN = """
import sys

import torch
from vanilla_transformer import VanillaTransformerForConditionalGeneration as Model

ids = torch.tensor([[7, 5, 9, 2], [6, 8, 2, 0]])
inputs = {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100)}
for path in sys.argv[1:]:
    whole = Model.from_pretrained(path)
    split = Model.from_pretrained(path, tp_plan="auto")
    layer = split.model.decoder.layers[0]
    assert layer.fc1.weight.to_local().shape[0] == whole.config.d_ff // 2
    assert layer.cross_attn.o_proj.weight.to_local().shape[1] == 16
    torch.testing.assert_close(split(**inputs).logits, whole(**inputs).logits, rtol=1e-5, atol=1e-5)
    for model in (whole, split):
        model.train()(**inputs).loss.backward()
    expected = dict(whole.named_parameters())
    for name, parameter in split.named_parameters():
        gradient = parameter.grad
        if hasattr(gradient, "full_tensor"):
            gradient = gradient.full_tensor()
        torch.testing.assert_close(gradient, expected[name].grad, rtol=1e-4, atol=1e-5)
    print("alike")
# Left to the interpreter's end, a process group may abort in it.
torch.distributed.destroy_process_group()
"""


@pytest.mark.timeout(120)
def test_two_processes_compute_what_one_does(tmp_path: Path, repository: Path) -> None:
    """Tensor parallelism for real: logits, and gradients of the training loss, however tied."""
    models = [tmp_path / tying for tying in TYINGS]
    for path in models:
        build(VanillaTransformerForConditionalGeneration, **TYINGS[path.name]).save_pretrained(path)
    script = tmp_path / "run.py"
    script.write_text(PARALLEL_RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), *map(str, models)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(repository),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("alike") == 2 * len(models)
    assert "match nothing" not in run.stderr


@torch.no_grad()
def test_a_process_may_hold_a_part_of_the_heads() -> None:
    """What tensor parallelism does to one layer: two halves of its heads, summed."""
    config = tiny(num_heads=4, d_k=5, d_v=3)
    whole = VanillaTransformerAttention(config, 0).eval()
    x = torch.randn(2, 6, D)
    total = torch.zeros_like(x)
    for half in range(2):
        part = copy.deepcopy(whole)
        for name, width in (("q_proj", 5), ("k_proj", 5), ("v_proj", 3)):
            rows = getattr(whole, name).weight[half * 2 * width : (half + 1) * 2 * width]
            getattr(part, name).weight = nn.Parameter(rows.clone())
        columns = whole.o_proj.weight[:, half * 6 : (half + 1) * 6]
        part.o_proj.weight = nn.Parameter(columns.clone())
        total += part(x)[0]
    torch.testing.assert_close(total, whole(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation_name", ["eager", "sdpa"])
@pytest.mark.parametrize("cls", HEADS)
@torch.no_grad()
def test_compiles_as_one_graph(cls: Builder, implementation_name: str) -> None:
    model = build(cls)
    model.set_attn_implementation(implementation_name)
    inputs = inputs_for(model)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, 4:] = 0
    expected = logits_of(model(**inputs))
    # Graphs of other tests count towards the limit of recompilations.
    torch.compiler.reset()
    # "aot_eager" traces all that the default backend does, without its C++ compiler.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits_of(compiled(**inputs)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_step_with_a_static_cache_compiles_as_one_graph() -> None:
    model = build(VanillaTransformerForConditionalGeneration)
    source, target = tokens(2, 6), tokens(2, 4)
    expected = model(input_ids=source, decoder_input_ids=target).logits
    cache = EncoderDecoderCache(
        StaticCache(config=model.config, max_cache_len=8),
        StaticCache(config=model.config, max_cache_len=6),
    )
    encoded = model.get_encoder()(input_ids=source)
    # The first step fills the cache of the source; the next ones are all alike.
    first = model(
        encoder_outputs=encoded, decoder_input_ids=target[:, :1], past_key_values=cache
    ).logits
    # Graphs of other tests count towards the limit of recompilations.
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits = [first]
    for place in range(1, 4):
        outputs = compiled(
            encoder_outputs=encoded,
            decoder_input_ids=target[:, place : place + 1],
            decoder_position_ids=torch.tensor([[place]]),
            past_key_values=cache,
        )
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cls",
    [
        VanillaTransformerForConditionalGeneration,
        VanillaTransformerForQuestionAnswering,
        VanillaTransformerForSequenceClassification,
    ],
)
@torch.no_grad()
def test_exports(cls: Builder) -> None:
    model = build(cls)
    inputs: dict[str, Any] = inputs_for(model)
    if cls is VanillaTransformerForConditionalGeneration:
        inputs["use_cache"] = False
    exported = torch.export.export(model, (), inputs, strict=False)
    outputs = logits_of(exported.module()(**inputs))
    torch.testing.assert_close(outputs, logits_of(model(**inputs)), rtol=1e-5, atol=1e-5)
