"""OpenNMT-py's and eole's checkpoints: against both where they are installed, and equations."""

import argparse
import functools
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conversion.naive_opennmt import (
    BASE,
    BOS,
    EOS,
    NAMES,
    PAD,
    SPECIAL,
    UNK,
    NaiveTransformer,
    make_tensors,
    search,
)
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.conversion import FAMILIES, convert
from vanilla_transformer.conversion.eole import EoleFamily
from vanilla_transformer.conversion.opennmt import OpenNMTFamily
from vanilla_transformer.conversion.parity import random_batches
from vanilla_transformer.conversion.source import Family, Reference
from vanilla_transformer.conversion.weights import build_model

CHANGES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "biases, gelu, concatenated": {
        "attention_bias": True,
        "ffn_bias": True,
        "activation": "gelu",
        "layout": "SinusoidalConcat",
        "heads": 4,
    },
    "one matrix": {"share_embeddings": True, "share_output": True, "targets": 23, "eps": 1e-5},
    "shared inputs": {"share_embeddings": True, "targets": 23, "attention_bias": True},
    "shared output, deep and shallow": {
        "share_output": True,
        "encoder_layers": 4,
        "decoder_layers": 1,
        "ffn_bias": True,
    },
    "larger": {"d": 64, "heads": 8, "ff": 96, "sources": 300, "targets": 200, "ffn_bias": True},
}
CASES = {name: BASE | changes for name, changes in CHANGES.items()}
FAMILY: dict[str, Family] = {"opennmt": OpenNMTFamily(), "eole": EoleFamily()}
PACKAGES = {"opennmt": "onmt", "eole": "eole"}
SEARCH_MODULES = {"opennmt": "translate.beam_search", "eole": "predict.beam_search"}
# Beam and most tokens.
SEARCHES = ((1, 10), (5, 20))
LIVE = [
    pytest.param(
        toolkit,
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(
                importlib.util.find_spec(package) is None,
                reason=f"{package} is not installed; its equations are tested all the same",
            ),
        ],
    )
    for toolkit, package in PACKAGES.items()
]


def vocabulary(case: dict[str, Any]) -> dict[str, Any]:
    side = {"src": case["sources"], "tgt": case["targets"]}
    shared = "w" if case["share_embeddings"] else None
    return {
        name: SPECIAL + [f"{shared or name}{i}" for i in range(len(SPECIAL), rows)]
        for name, rows in side.items()
    } | {"decoder_start_token": "<s>", "data_task": "seq2seq"}


def opennmt_options(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_task": "seq2seq",
        "model_type": "text",
        "encoder_type": "transformer",
        "decoder_type": "transformer",
        "position_encoding": True,
        "position_encoding_type": case["layout"],
        "max_relative_positions": 0,
        "hidden_size": case["d"],
        "word_vec_size": case["d"],
        "enc_layers": case["encoder_layers"],
        "dec_layers": case["decoder_layers"],
        "layers": -1,
        "heads": case["heads"],
        "transformer_ff": case["ff"],
        "pos_ffn_activation_fn": case["activation"],
        "norm_eps": case["eps"],
        "add_qkvbias": case["attention_bias"],
        "add_ffnbias": case["ffn_bias"],
        "share_embeddings": case["share_embeddings"],
        "share_decoder_embeddings": case["share_output"],
        "dropout": [0.2],
        "label_smoothing": 0.1,
    }


def eole_options(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "architecture": "transformer",
        "hidden_size": case["d"],
        "heads": case["heads"],
        "transformer_ff": case["ff"],
        "mlp_activation_fn": case["activation"],
        "norm_eps": case["eps"],
        "add_qkvbias": case["attention_bias"],
        "add_final_linear_bias": case["attention_bias"],
        "add_ffnbias": case["ffn_bias"],
        "share_embeddings": case["share_embeddings"],
        "share_decoder_embeddings": case["share_output"],
        "embeddings": {"word_vec_size": case["d"], "position_encoding_type": case["layout"]},
        "encoder": {"encoder_type": "transformer", "layers": case["encoder_layers"]},
        "decoder": {"decoder_type": "transformer", "layers": case["decoder_layers"]},
    }


def save(toolkit: str, folder: Path, case: dict[str, Any], **changes: Any) -> Path:
    """A checkpoint in the toolkit's format, `changes` made to its options."""
    tensors = make_tensors(toolkit, case)
    if toolkit == "opennmt":
        generator = {
            n: tensors.pop(f"generator.{n}")
            for n in ("bias", "weight")
            if f"generator.{n}" in tensors
        }
        options = argparse.Namespace(**(opennmt_options(case) | changes))
        state = {"model": tensors, "generator": generator, "opt": options, "optim": None}
        torch.save(state | {"vocab": vocabulary(case)}, folder / "model_step_7.pt")
        return folder / "model_step_7.pt"
    for number in range(case["decoder_layers"]):
        tensors[f"decoder.transformer_layers.{number}.layer_scalar"] = torch.ones(1)
    save_file(tensors, folder / "model.00.safetensors")
    config = {"model": eole_options(case) | changes, "training": {"dropout": [0.2]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text(json.dumps(vocabulary(case)))
    return folder


def assert_agreement(
    model: VanillaTransformerForConditionalGeneration, reference: Reference
) -> None:
    for ids, mask, decoder_ids in random_batches(model):
        found = model(ids, attention_mask=mask, decoder_input_ids=decoder_ids)
        states = found.encoder_last_hidden_state - reference.encode(ids, mask)
        assert states[mask.bool()].abs().max() <= 1e-5
        logits = found.logits - reference.logits(ids, mask, decoder_ids)
        assert logits.abs().max() <= 1e-5


def sentences(model: VanillaTransformerForConditionalGeneration) -> tuple[torch.Tensor, ...]:
    ids, mask, _ = next(iter(random_batches(model, lengths=(7,), sentences=4, seed=3)))
    return ids, mask


def generated(
    model: VanillaTransformerForConditionalGeneration, **settings: Any
) -> list[list[int]]:
    ids, mask = sentences(model)
    rows = model.generate(ids, attention_mask=mask, **settings)[:, 1:].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


@torch.no_grad()
@pytest.mark.parametrize("toolkit", FAMILY)
@pytest.mark.parametrize("case", CASES)
def test_weights_give_what_the_equations_give(tmp_path: Path, toolkit: str, case: str) -> None:
    family, options = FAMILY[toolkit], CASES[case]
    path = save(toolkit, tmp_path, options)
    assert [f.name for f in FAMILIES if f.recognises(path)] == [toolkit]
    checkpoint = family.read(path)
    converted = family.convert(checkpoint)
    config = converted.config
    assert config.share_embeddings == (options["share_embeddings"] and options["share_output"])
    assert config.tie_word_embeddings == options["share_output"]
    assert (config.dropout, config.pad_token_id, config.eos_token_id) == (0.2, PAD, EOS)
    assert (config.bos_token_id, config.decoder_start_token_id) == (BOS, BOS)
    model = build_model(converted)
    model.save_pretrained(tmp_path / "saved")
    naive = NaiveTransformer(toolkit, checkpoint.tensors, options)
    assert_agreement(model, naive)
    if case == "larger":
        return
    # Greedily to the forced end, with a beam to ends of its own.
    ids, mask = sentences(model)
    for beam, longest in SEARCHES:
        expected = [
            search(naive.next_scores(row[: int(n)]), beam, longest)
            for row, n in zip(ids, mask.sum(1), strict=True)
        ]
        assert generated(model, num_beams=beam, max_length=longest + 1) == expected


def live_checkpoint(toolkit: str, folder: Path, case: dict[str, Any]) -> Path:
    """A model that the toolkit built and saved itself."""
    torch.manual_seed(1)
    vocab = vocabulary(case)
    if toolkit == "opennmt":
        from onmt import opts
        from onmt.inputters.inputter import dict_to_vocabs
        from onmt.model_builder import build_model as build
        from onmt.models.model_saver import build_model_saver
        from onmt.utils.parse import ArgumentParser

        parser = ArgumentParser()
        opts.train_opts(parser)
        options = parser.parse_args(["-data", "none", "-src_vocab", "none"])
        vars(options).update(opennmt_options(case) | {"save_model": str(folder / "live")})
        if case["heads"] == 4:
            options.save_format = "safetensors"
        ArgumentParser.update_model_opts(options)
        ArgumentParser.validate_model_opts(options)
        vocabs = dict_to_vocabs(vocab)
        built = build(options, options, vocabs, None, -1)
        more = (vocabs, torch.optim.Adam(built.parameters()), -1)
        saver = build_model_saver(options, options, built, *more)
        path = folder / "live_step_7.pt"
    else:
        from eole.config.run import TrainConfig
        from eole.inputters.inputter import dict_to_vocabs
        from eole.models.model import get_model_class
        from eole.models.model_saver import TrainingModelSaver

        path = folder / "live"
        config = TrainConfig(
            data={},
            src_vocab="none",
            tgt_vocab="none",
            model=eole_options(case),
            training={"model_path": str(path), "dropout": [0.2]},
        )
        specials = dict(
            zip(("unk_token", "pad_token", "bos_token", "eos_token"), SPECIAL, strict=True)
        )
        vocabs = dict_to_vocabs(vocab | {"specials": specials})
        built = get_model_class(config.model).build(config.model, vocabs, config.training)
        adam = torch.optim.Adam(built.parameters())
        saver = TrainingModelSaver(str(path), built, config, vocabs, adam, -1, "safetensors")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.4)
        built.generator.bias[[PAD, EOS]] += torch.tensor([1.0, 2.0])
    saver.save(7)
    return path


def live_search(toolkit: str, reference: Reference, ids: torch.Tensor, longest: int) -> list[int]:
    """What the toolkit's own search chooses with a beam of one."""
    own = importlib.import_module(f"{PACKAGES[toolkit]}." + SEARCH_MODULES[toolkit])
    ids = ids[None]
    mask = torch.ones_like(ids)
    chosen = own.BeamSearch(
        beam_size=1,
        batch_size=1,
        pad=PAD,
        bos=BOS,
        eos=EOS if toolkit == "opennmt" else [EOS],
        unk=UNK,
        start=BOS,
        n_best=1,
        global_scorer=own.GNMTGlobalScorer(1.0, 0.0, "avg", "none"),
        min_length=0,
        max_length=longest,
        return_attention=False,
        block_ngram_repeat=0,
        exclusion_tokens=set(),
        stepwise_penalty=False,
        ratio=0,
        ban_unk_token=False,
    )
    chosen.initialize(reference.encode(ids, mask), mask.sum(1))
    while not chosen.done:
        scores = reference.logits(ids, mask, chosen.alive_seq)[:, -1].log_softmax(-1)
        chosen.advance(scores, None)
        if any(map(any, chosen.is_finished_list)):
            chosen.update_finished()
    return chosen.predictions[0][0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("toolkit", LIVE)
@pytest.mark.parametrize("case", CASES)
def test_the_toolkit_itself_agrees(tmp_path: Path, toolkit: str, case: str) -> None:
    """With what it built and saved itself, by its own model and its own search."""
    path = live_checkpoint(toolkit, tmp_path, CASES[case])
    result = convert(path, tmp_path / "out")
    assert (result.family.name, result.is_live) == (toolkit, True)
    assert result.parity.log_probabilities <= 1e-5
    assert result.parity.same_choices == 1
    model = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path / "out")
    reference = FAMILY[toolkit].reference(FAMILY[toolkit].read(path))
    assert_agreement(model, reference)
    ids, mask = sentences(model)
    rows = [row[: int(n)] for row, n in zip(ids, mask.sum(1), strict=True)]
    greedy = [live_search(toolkit, reference, row, 10) for row in rows]
    assert generated(model, num_beams=1, max_length=11) == greedy

    def score(row: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        decoder_ids = torch.tensor([[BOS, *tokens]])
        return reference.logits(row[None], torch.ones_like(row[None]), decoder_ids)[
            0, -1
        ].log_softmax(-1)

    beam = [search(functools.partial(score, row), 5, 20) for row in rows]
    assert generated(model, num_beams=5, max_length=21) == beam


REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "opennmt": [
        ({"max_relative_positions": -1}, r"max_relative_positions=-1: relative, rotary \(-1\)"),
        ({"max_relative_positions": 20}, "max_relative_positions=20: relative"),
        ({"position_encoding": False}, "position_encoding=False: no positions"),
        ({"pos_ffn_activation_fn": "silu"}, "pos_ffn_activation_fn='silu': gated"),
        ({"layer_norm": "rms"}, "layer_norm='rms': norms that do not subtract the mean"),
        ({"copy_attn": True}, "copy_attn=True: an output layer that copies"),
        ({"num_experts": 4}, "num_experts=4: mixtures"),
        ({"num_kv": 1}, "num_kv=1: heads that share"),
        ({"decoder_type": "rnn"}, "decoder_type='rnn': its decoder is another one"),
        ({"self_attn_type": "average"}, "self_attn_type='average'"),
        ({"add_qkvbias": True}, r"missing: .*linear_query\.bias"),
        ({"enc_layers": 1}, r"unknown to this architecture: encoder\.transformer\.1\."),
        ({"dec_layers": 3}, r"missing: decoder\.transformer_layers\.2\."),
        ({"transformer_ff": 48}, r"w_1\.weight is \[40, 16\], not \[48, 16\]"),
        ({"share_embeddings": True}, "share_embeddings=True and two vocabularies, of 23 and 29"),
        ({"share_decoder_embeddings": True}, r"generator\.weight differs from the matrix"),
    ],
    "eole": [
        ({"embeddings": {"position_encoding_type": "Rotary"}}, "='Rotary': no sinusoids are"),
        ({"embeddings": {"embedding_type": "roberta"}}, "embedding_type='roberta'"),
        ({"mlp_activation_fn": "gated-silu"}, r"model\.encoder\.mlp_activation_fn='gated-silu'"),
        ({"layer_norm": "rms"}, "layer_norm='rms': norms that do not subtract the mean"),
        ({"num_experts": 4}, "num_experts=4: mixtures"),
        ({"heads_kv": 1}, "heads_kv=1: heads that share"),
        ({"add_estimator": True}, r"model\.add_estimator=True"),
        ({"architecture": "custom", "encoder": {"encoder_type": "rnn"}}, "encoder_type='rnn'"),
        (
            {"encoder": {"layers": 2, "encoder_layer_style": "postnorm"}},
            "encoder_layer_style='postnorm'",
        ),
        ({"decoder": {"layers": 2, "norm_eps": 1e-5}}, "norm_eps=1e-05: the encoder has 1e-06"),
        ({"add_qkvbias": True}, r"missing: .*linear_query\.bias"),
        ({"add_ffnbias": True}, r"missing: .*gate_up_proj\.bias"),
        ({"hidden_size": 32}, r"src_emb\.embeddings\.weight is \[23, 16\], not \[23, 32\]"),
    ],
}


@pytest.mark.parametrize(
    ("toolkit", "changes", "message"),
    [(toolkit, *case) for toolkit, cases in REFUSED.items() for case in cases],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, toolkit: str, changes: dict[str, Any], message: str
) -> None:
    path = save(toolkit, tmp_path, BASE, **changes)
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("toolkit", FAMILY)
def test_damaged_vocabularies_are_refused(tmp_path: Path, toolkit: str) -> None:
    checkpoint = FAMILY[toolkit].read(save(toolkit, tmp_path, BASE))
    vocab = checkpoint.options["vocab"]
    vocab["src"] = ["<blank>", "<unk>", *vocab["src"][2:]]
    with pytest.raises(ValueError, match="must both have '<blank>', under one number"):
        FAMILY[toolkit].convert(checkpoint)
    vocab["src"].remove("<blank>")
    with pytest.raises(ValueError, match="must both have '<blank>', under one number"):
        FAMILY[toolkit].convert(checkpoint)


class Code:
    """What a pickle would run."""


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = save("opennmt", tmp_path, BASE)
    family = FAMILY["opennmt"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        convert(path, tmp_path / "out")
    options = argparse.Namespace(**opennmt_options(BASE))
    torch.save({"model": {}, "opt": options, "vocab": Code()}, path)
    with pytest.raises(ValueError, match=r"holds objects of .*Code; .*convertv2_v3\.py"):
        convert(path, tmp_path / "out")
    torch.save({"model": {}, "opt": options}, path)
    with pytest.raises(ValueError, match=r"it has no \['vocab'\]"):
        family.read(path)
    torch.save({"opt": options, "vocab": vocabulary(BASE)}, path)
    with pytest.raises(ValueError, match="holds options alone"):
        family.read(path)
    folder = save("eole", tmp_path, BASE)
    tensors = folder / "model.00.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        convert(folder, tmp_path / "out")
    (folder / "vocab.json").write_text('{"src": [')
    save_file(make_tensors("eole", BASE), tensors)
    with pytest.raises(ValueError, match=r"vocab\.json is no whole JSON file"):
        FAMILY["eole"].read(folder)
    tensors.unlink()
    assert not FAMILY["eole"].recognises(folder)
    with pytest.raises(ValueError, match="is no model of eole"):
        FAMILY["eole"].read(folder)
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_sides_of_eole_have_options_of_their_own(tmp_path: Path) -> None:
    """Keys without a bias, a final layer without one, swish."""
    case = BASE | {"attention_bias": True, "activation": "silu"}
    path = save("eole", tmp_path, case, add_key_bias=False, add_final_linear_bias=False)
    tensors = {
        name: tensor
        for name, tensor in make_tensors("eole", case).items()
        if not name.endswith(("linear_keys.bias", "final_linear.bias"))
    }
    save_file(tensors, path / "model.00.safetensors")
    model = build_model(FAMILY["eole"].convert(FAMILY["eole"].read(path)))
    assert_agreement(model, NaiveTransformer("eole", tensors, case))


@torch.no_grad()
def test_directories_around_one_of_eole_and_tables_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "eole-model").mkdir()
    save("eole", tmp_path / "eole-model", BASE)
    family = FAMILY["eole"]
    assert family.recognises(tmp_path)
    checkpoint = family.read(tmp_path)
    assert family.convert(checkpoint).config.position_offset == 0
    for side in ("encoder", "decoder"):
        name = NAMES["eole"][f"{side}.table"]
        checkpoint.tensors[name] = checkpoint.tensors[name][2:]
    assert family.convert(checkpoint).config.position_offset == 2
    checkpoint.tensors[name] = torch.randn(60, 1, 16)
    with pytest.raises(ValueError, match="no sinusoids, or not the same ones on both sides"):
        family.convert(checkpoint)
