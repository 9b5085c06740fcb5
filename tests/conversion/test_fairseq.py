"""fairseq's checkpoints, against fairseq where it is installed and its equations everywhere."""

import argparse
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conversion.naive_fairseq import EOS, PAD, NaiveTransformer, tensor_shapes
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.conversion import convert
from vanilla_transformer.conversion.fairseq import FairseqFamily, _dataclasses_as_before
from vanilla_transformer.conversion.parity import random_batches
from vanilla_transformer.conversion.source import Reference
from vanilla_transformer.conversion.weights import build_model

FAMILY = FairseqFamily()
BASE: dict[str, Any] = {
    "arch": "transformer_vaswani_wmt_en_de_big",
    "source_lang": "en",
    "target_lang": "de",
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 40,
    "decoder_ffn_embed_dim": 40,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "activation_fn": "relu",
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "dropout": 0.3,
    "label_smoothing": 0.1,
}
ONE_SIDE = {"share_all_embeddings": False}
NONE = ONE_SIDE | {"share_decoder_input_output_embed": False}
PRE = {"encoder_normalize_before": True, "decoder_normalize_before": True}
# Options and the sizes of both vocabularies.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "one matrix": (BASE, 23, 23),
    "decoder's shared, deep and shallow": (
        BASE | ONE_SIDE | {"encoder_layers": 4, "decoder_layers": 1, "decoder_ffn_embed_dim": 56},
        23,
        31,
    ),
    "none shared": (
        BASE | NONE | {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
        23,
        23,
    ),
    "pre-norm": (BASE | PRE | {"encoder_embed_dim": 32, "activation_fn": "gelu"}, 37, 37),
}
HAS_FAIRSEQ = importlib.util.find_spec("fairseq") is not None
needs_fairseq = pytest.mark.skipif(
    not HAS_FAIRSEQ, reason="fairseq 0.12.2 is not installed; its equations are tested all the same"
)


def make_tensors(case: str, seed: int = 0) -> dict[str, torch.Tensor]:
    args, sources, targets = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (1 if "norm.weight" in name else 0.3) * torch.randn(shape, generator=generator)
        for name, shape in tensor_shapes(args, sources, targets).items()
    }
    for side in ("encoder", "decoder"):
        tensors[f"{side}.version"] = torch.tensor([3.0])
    # Pads and ends are likely, so that searches have to deal with them.
    last = "" if args["encoder_normalize_before"] else f"layers.{args['decoder_layers'] - 1}.final_"
    likely = tensors[f"decoder.{last}layer_norm.bias"]
    for matrix in ("embed_tokens", "output_projection"):
        tensors[f"decoder.{matrix}.weight"][[PAD, EOS]] = torch.stack((2 * likely, 2.8 * likely))
    if args["share_all_embeddings"]:
        tensors["encoder.embed_tokens.weight"] = tensors["decoder.embed_tokens.weight"]
    if args["share_decoder_input_output_embed"]:
        tensors["decoder.output_projection.weight"] = tensors["decoder.embed_tokens.weight"]
    return tensors


def old_names(tensors: dict[str, torch.Tensor], shares_output: bool) -> dict[str, torch.Tensor]:
    """As fairseq of 2018 called them."""
    old = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(.*)\.q_proj\.(weight|bias)", name):
            parts = [old.pop(f"{match[1]}.{letter}_proj.{match[2]}") for letter in "qkv"]
            old[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
    norms = {
        "encoder": ["self_attn", "final"],
        "decoder": ["self_attn", "encoder_attn", "final"],
    }
    for name in list(old):
        match = re.fullmatch(r"(encoder|decoder)(\.layers\.\d+)\.(\w+)_layer_norm\.(\w+)", name)
        if match:
            number = norms[match[1]].index(match[3])
            old[f"{match[1]}{match[2]}.layer_norms.{number}.{match[4]}"] = old.pop(name)
    output = old.pop("decoder.output_projection.weight")
    if not shares_output:
        old["decoder.embed_out"] = output
    # Norms after the stacks that post-norm never had applied.
    for side in ("encoder", "decoder"):
        for part in ("weight", "bias"):
            old.setdefault(f"{side}.layer_norm.{part}", torch.randn(16))
    return old


def save(path: Path, case: str, layout: str = "args") -> Path:
    args = dict(CASES[case][0])
    tensors = make_tensors(case)
    if layout == "old":
        tensors = old_names(tensors, args["share_decoder_input_output_embed"])
    state: dict[str, Any] = {"model": tensors, "extra_state": {"epoch": 3, "val_loss": 2.0}}
    if layout == "cfg":
        state |= {"args": None, "cfg": {"model": argparse.Namespace(**args), "task": {}}}
    elif layout == "dict":
        state |= {"args": args}
    else:
        state |= {"args": argparse.Namespace(**args)}
    torch.save(state, path, _use_new_zipfile_serialization=layout != "old")
    return path


def assert_agreement(
    model: VanillaTransformerForConditionalGeneration, reference: Reference
) -> None:
    for ids, mask, decoder_ids in random_batches(model):
        found = model(ids, attention_mask=mask, decoder_input_ids=decoder_ids)
        states = found.encoder_last_hidden_state - reference.encode(ids, mask)
        assert states[mask.bool()].abs().max() <= 1e-5
        logits = found.logits - reference.logits(ids, mask, decoder_ids)
        assert logits.abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("layout", ["args", "dict", "cfg", "old"])
@pytest.mark.parametrize("case", CASES)
def test_weights_give_what_the_equations_give(tmp_path: Path, case: str, layout: str) -> None:
    if layout == "old" and case == "pre-norm":
        pytest.skip("fairseq of that time had no such model with these norms")
    path = save(tmp_path / "model.pt", case, layout)
    assert FAMILY.recognises(path)
    assert FAMILY.recognises(tmp_path)
    checkpoint = FAMILY.read(path)
    converted = FAMILY.convert(checkpoint)
    assert converted.config.share_embeddings == CASES[case][0]["share_all_embeddings"]
    assert any("after both stacks" in remark for remark in converted.remarks) == (layout == "old")
    model = build_model(converted)
    assert_agreement(model, NaiveTransformer(make_tensors(case), CASES[case][0]))


def sentences(model: VanillaTransformerForConditionalGeneration) -> tuple[torch.Tensor, ...]:
    ids, mask, _ = next(iter(random_batches(model, lengths=(9,), sentences=6, seed=3)))
    ids[range(len(ids)), mask.sum(1) - 1] = EOS
    return ids, mask


def generated(
    model: VanillaTransformerForConditionalGeneration, beam: int, longest: int
) -> list[list[int]]:
    ids, mask = sentences(model)
    settings = {} if beam == 5 else {"num_beams": beam}
    out = model.generate(ids, attention_mask=mask, **settings, max_length=longest + 2)
    return [[int(i) for i in row[1:] if i != PAD] for row in out]


# Greedily to the forced end, with a beam to ends of its own: see the converter's remark.
SEARCHES = ((1, 12), (5, 40))


@torch.no_grad()
@pytest.mark.parametrize(("beam", "longest"), SEARCHES)
@pytest.mark.parametrize("case", CASES)
def test_searches_choose_what_the_equations_choose(
    tmp_path: Path, case: str, beam: int, longest: int
) -> None:
    model = build_model(FAMILY.convert(FAMILY.read(save(tmp_path / "model.pt", case))))
    naive = NaiveTransformer(make_tensors(case), CASES[case][0])
    ids, mask = sentences(model)
    expected = [
        naive.search(row[: int(n)], beam, longest) for row, n in zip(ids, mask.sum(1), strict=True)
    ]
    assert generated(model, beam, longest) == expected


@pytest.mark.slow
@needs_fairseq
@torch.no_grad()
@pytest.mark.parametrize("layout", ["args", "old"])
@pytest.mark.parametrize("case", CASES)
def test_fairseq_itself_agrees(tmp_path: Path, case: str, layout: str) -> None:
    if layout == "old" and case == "pre-norm":
        pytest.skip("fairseq of that time had no such model with these norms")
    checkpoint = FAMILY.read(save(tmp_path / "model.pt", case, layout))
    model = build_model(FAMILY.convert(checkpoint))
    reference: Any = FAMILY.reference(checkpoint)
    assert reference.name == "fairseq 0.12.2"
    assert_agreement(model, reference)
    from fairseq.sequence_generator import SequenceGenerator

    dictionary = reference.model.decoder.dictionary
    ids, mask = sentences(model)
    sample = {"net_input": {"src_tokens": ids, "src_lengths": mask.sum(1)}}
    for beam, longest in SEARCHES:
        search = SequenceGenerator([reference.model], dictionary, beam_size=beam, max_len_b=longest)
        expected = [
            best[0]["tokens"].tolist() for best in search.generate([reference.model], sample)
        ]
        assert generated(model, beam, longest) == expected


@pytest.mark.slow
@needs_fairseq
@torch.no_grad()
def test_what_fairseq_builds_and_saves_is_converted(tmp_path: Path) -> None:
    """Its own initialisation and its own file, at a larger size."""
    args = BASE | {
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 128,
        "decoder_ffn_embed_dim": 96,
    }
    with _dataclasses_as_before():
        from fairseq.data import Dictionary
        from fairseq.models.transformer import TransformerModel

    torch.manual_seed(1)
    dictionary = Dictionary()
    for number in range(200 - len(dictionary)):
        dictionary.add_symbol(f"symbol{number}")
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    built = TransformerModel.build_model(argparse.Namespace(**args), task)
    path = tmp_path / "built.pt"
    torch.save({"args": argparse.Namespace(**args), "model": built.state_dict()}, path)
    result = convert(path, tmp_path / "out", family="fairseq")
    assert result.is_live
    assert result.parity.log_probabilities <= 1e-5
    assert result.parity.same_choices == 1


def save_with(path: Path, case: str = "one matrix", **options: Any) -> Path:
    torch.save({"args": CASES[case][0] | options, "model": make_tensors(case)}, path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "lightconv"}, "arch='lightconv': that is another model"),
        ({"arch": "transformer_lm_gpt"}, "arch='transformer_lm_gpt'"),
        ({"encoder_learned_pos": True}, "encoder_learned_pos=True: it makes another model"),
        ({"layernorm_embedding": True}, "layernorm_embedding=True"),
        ({"no_scale_embedding": True}, "no_scale_embedding=True"),
        ({"adaptive_softmax_cutoff": "100,200"}, "adaptive_softmax_cutoff='100,200'"),
        ({"decoder_attention_heads": 4}, "decoder_attention_heads=4: it differs from encoder_att"),
        ({"decoder_normalize_before": True}, "decoder_normalize_before=True: it differs from"),
        ({"activation_fn": "tanh"}, "activation_fn='tanh': only relu, gelu, swish, silu"),
        ({"encoder_layers": 1}, r"unknown to this architecture: encoder\.layers\.1\.fc1\.bias, e"),
        ({"decoder_layers": 3}, r"missing: decoder\.layers\.2\.self_attn\.q_proj\.weight, decod"),
        ({"encoder_ffn_embed_dim": 48}, r"fc1\.weight is \[40, 16\], not \[48, 16\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = save_with(tmp_path / "model.pt", **options)
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_matrices_that_should_be_one_and_norms_of_old_are_refused(tmp_path: Path) -> None:
    path = save_with(tmp_path / "shared.pt", "none shared", share_all_embeddings=True)
    with pytest.raises(ValueError, match="are one matrix, which they are not"):
        FAMILY.convert(FAMILY.read(path))
    checkpoint = FAMILY.read(save(tmp_path / "pre.pt", "pre-norm"))
    checkpoint.tensors["encoder.version"] = torch.tensor([1.0])
    with pytest.raises(ValueError, match=r"encoder\.version=1: fairseq before version 2"):
        FAMILY.convert(checkpoint)


class Code:
    """What a pickle would run."""


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"args": BASE, "model": {}, "extra_state": Code()}, path)
    with pytest.raises(ValueError, match=r"holds objects of .*Code; .* save \{'args'"):
        convert(path, tmp_path / "out", family="fairseq")
    torch.save({"args": BASE}, path)
    with pytest.raises(ValueError, match="it has no 'model'"):
        FAMILY.read(path)
    for layout in ("args", "old"):
        save(path, "one matrix", layout)
        path.write_bytes(path.read_bytes()[:-2000])
        assert FAMILY.recognises(path)
        with pytest.raises(ValueError, match="truncated"):
            FAMILY.read(path)
    assert not FAMILY.recognises(tmp_path / "out")


def test_statistics_that_old_fairseq_pickled_are_let_through(tmp_path: Path) -> None:
    """Its files hold the meters of losses, whose class is not looked for here."""
    meters = types.ModuleType("fairseq.meters")

    class AverageMeter:
        def __init__(self) -> None:
            self.avg = 2.5

    AverageMeter.__module__, AverageMeter.__qualname__ = "fairseq.meters", "AverageMeter"
    meters.AverageMeter = AverageMeter  # type: ignore[attr-defined]
    state = {"args": BASE, "model": make_tensors("one matrix")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fairseq.meters", meters)
        patch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
        torch.save(state | {"extra_state": {"train_loss": AverageMeter()}}, tmp_path / "model.pt")
    assert FAMILY.read(tmp_path / "model.pt").options["args"]["encoder_layers"] == 2


@torch.no_grad()
def test_of_an_ensemble_one_model_is_converted_at_a_time(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / f"model{number}.pt", "one matrix")
    assert FAMILY.recognises(tmp_path)
    with pytest.raises(ValueError, match=r"model1\.pt, .*model2\.pt: .* give one of these files"):
        convert(tmp_path, tmp_path / "out")
    model = build_model(FAMILY.convert(FAMILY.read(tmp_path / "model2.pt")))
    assert_agreement(model, NaiveTransformer(make_tensors("one matrix"), BASE))
