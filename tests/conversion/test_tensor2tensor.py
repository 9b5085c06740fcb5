"""Tensor2Tensor's checkpoints against their equations, computed independently."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conversion.naive_tensor2tensor import (
    BASE,
    EOS,
    PAD,
    NaiveTransformer,
    make_tensors,
    search,
)
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.conversion.parity import random_batches
from vanilla_transformer.conversion.source import Checkpoint
from vanilla_transformer.conversion.tensor2tensor import Tensor2TensorFamily
from vanilla_transformer.conversion.weights import build_model

CHANGES: dict[str, dict[str, Any]] = {
    "v3": {},
    "v1": {"norm": "post"},
    "v2, apart, odd shards": {"kind": "apart", "shards": 3, "space": None},
    "output apart, deep and shallow": {
        "kind": "shared inputs",
        "shards": 1,
        "encoder_layers": 3,
        "decoder_layers": 1,
        "space": 0,
    },
    "larger, own channels, old scopes": {
        "d": 64,
        "heads": 8,
        "ff": 96,
        "keys": 32,
        "rows": 301,
        "scope": "transformer/parallel_0_5/transformer/transformer/body",
    },
}
CASES = {name: BASE | changes for name, changes in CHANGES.items()}
FAMILY = Tensor2TensorFamily()


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    is_pre = case["norm"] == "pre"
    return {
        "num_heads": case["heads"],
        "hidden_size": case["d"],
        "filter_size": case["ff"],
        "num_hidden_layers": case["encoder_layers"],
        "num_decoder_layers": case["decoder_layers"],
        "attention_key_channels": case["keys"],
        "attention_value_channels": case["keys"],
        "layer_preprocess_sequence": "n" if is_pre else "none",
        "layer_postprocess_sequence": "da" if is_pre else "dan",
        "use_target_space_embedding": case["space"] is not None,
        "ffn_layer": "dense_relu_dense",
        "pos": "timing",
    }


def checkpoint_of(case: dict[str, Any], **changes: Any) -> Checkpoint:
    return Checkpoint(make_tensors(case), options_of(case) | changes)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_weights_give_what_the_equations_give(tmp_path: Path, case: str) -> None:
    options = CASES[case]
    checkpoint = checkpoint_of(options)
    model = build_model(FAMILY.convert(checkpoint))
    naive = NaiveTransformer(checkpoint.tensors, options)
    for ids, mask, decoder_ids in random_batches(model):
        found = model(ids, attention_mask=mask, decoder_input_ids=decoder_ids)
        states = found.encoder_last_hidden_state - naive.encode(ids, mask)
        assert states[mask.bool()].abs().max() <= 1e-5
        expected = naive.logits(ids, mask, decoder_ids)
        # Logits of the larger model run to a hundred.
        assert (found.logits - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    model.save_pretrained(tmp_path)
    model = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path).eval()
    settings = model.generation_config
    assert (settings.num_beams, settings.length_penalty) == (4, 0.6)
    assert (settings.length_penalty_formula, settings.max_tokens_over_source) == ("paper", 50)
    if case.startswith("larger"):
        return
    ids, mask, _ = next(iter(random_batches(model, lengths=(7,), sentences=4, seed=3)))
    for beam, longest in ((1, 10), (4, 16)):
        rows = model.generate(ids, attention_mask=mask, num_beams=beam, max_length=longest + 1)
        found_ids = [r[: r.index(EOS) + 1] if EOS in r else r for r in rows[:, 1:].tolist()]
        expected_ids = [
            search(naive.next_scores(row[: int(n)]), beam, longest)
            for row, n in zip(ids, mask.sum(1), strict=True)
        ]
        assert found_ids == expected_ids


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("self_attention_type", "dot_product_relative"),
        ("ffn_layer", "local_moe"),
        ("pos", "emb"),
        ("norm_type", "batch"),
        ("unidirectional_encoder", True),
        ("model", "universal_transformer"),
        ("layer_postprocess_sequence", "dn"),
    ],
)
def test_other_architectures_are_refused_by_option(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        FAMILY.convert(checkpoint_of(BASE, **{option: value}))


def test_what_the_tensors_do_not_tell_is_asked_for() -> None:
    checkpoint = checkpoint_of(BASE)
    del checkpoint.options["num_heads"]
    with pytest.raises(ValueError, match=r"num_heads.*hparams_set"):
        FAMILY.convert(checkpoint)
    checkpoint = checkpoint_of(BASE)
    checkpoint.tensors = {n: t for n, t in checkpoint.tensors.items() if "Adam" not in n}
    with pytest.raises(ValueError, match="target_space_id"):
        FAMILY.convert(checkpoint)
    checkpoint.options["target_space_id"] = BASE["space"]
    told = FAMILY.convert(checkpoint).weights["model.encoder.embed_tokens.weight"]
    seen = FAMILY.convert(checkpoint_of(BASE)).weights["model.encoder.embed_tokens.weight"]
    assert torch.equal(told, seen)
    assert not seen[PAD].any()


def test_missing_and_unknown_tensors_are_named() -> None:
    for name in (
        "transformer/body/encoder/layer_1/ffn/conv1/bias",
        "transformer/symbol_modality_29_16/shared/weights_3",
    ):
        checkpoint = checkpoint_of(BASE)
        del checkpoint.tensors[name]
        short = "layer_1/ffn/conv1/bias" if "ffn" in name else "shards of symbol_modality_29_16"
        with pytest.raises(ValueError, match=short):
            FAMILY.convert(checkpoint)
    checkpoint = checkpoint_of(BASE)
    checkpoint.tensors["transformer/body/decoder/layer_0/gate/kernel"] = torch.zeros(2)
    with pytest.raises(ValueError, match="decoder/layer_0/gate/kernel"):
        FAMILY.convert(checkpoint)


def test_options_come_from_the_set_the_command_line_and_the_file(tmp_path: Path) -> None:
    from vanilla_transformer.conversion.tensor2tensor import _read_options

    (tmp_path / "flags.txt").write_text(
        "--model=transformer\n--hparams_set=transformer_big\n--hparams=num_heads=4,pos=timing\n"
    )
    found = _read_options(tmp_path)
    assert (found["num_heads"], found["layer_postprocess_sequence"]) == (4, "da")
    assert found["model"] == "transformer"
    (tmp_path / "hparams.json").write_text(json.dumps({"num_heads": 2}))
    assert _read_options(tmp_path)["num_heads"] == 2
    (tmp_path / "hparams.json").write_text("{")
    with pytest.raises(ValueError, match=r"hparams\.json"):
        _read_options(tmp_path)
