"""OpenNMT-py's `.pt` checkpoints, and what its successor eole has in common with it.

Names and equations are those of OpenNMT-py 3.5.1 (`onmt/model_builder.py`, `onmt/encoders/
transformer.py`, `onmt/decoders/transformer.py`, `onmt/modules/`): pre-norm with a final norm. eole
has the same equations under other names: see `eole.py`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from .opennmt_tokenizers import special_tokens, subword_tokenizers
from .pytorch_files import load_pickled, load_safetensors, mentions, plain
from .sinusoids import recognise_sinusoids
from .source import Checkpoint, Converted, Family, Reference, TensorReader, Tokenizers, refuse

SIDES = ("encoder", "decoder")

LAYOUTS = {"SinusoidalInterleaved": "interleaved", "SinusoidalConcat": "concatenated_inclusive"}
"""`position_encoding_type` to the config's `position_encoding`."""

PROJECTIONS = {
    "q_proj": "linear_query",
    "k_proj": "linear_keys",
    "v_proj": "linear_values",
    "o_proj": "final_linear",
}

# What OpenNMT-py and eole decode with unless told otherwise: `onmt/opts.py` and
# `eole/config/inference.py`. Their 250 tokens do not count the decoder's start.
_DECODING = {
    "num_beams": 5,
    "length_penalty": 1.0,
    "length_penalty_formula": "power",
    "max_length": 251,
}

_BEAM_REMARK = (
    "The source's own beam search ends a sentence as soon as its best hypothesis ends, keeps ended "
    "hypotheses in the beam, counts one token more in the length penalty and ends outputs by a "
    "ratio to the source's length: its translations may differ from those of the same beam here."
)

Rules = Iterable[tuple[str, tuple[Any, ...], str]]
"""Option, values that fit, of which the first is the default, and what the others make of it."""

_RULES: Rules = (
    ("model_task", ("seq2seq",), "it is a language model without an encoder"),
    ("model_type", ("text",), "it does not read text"),
    ("encoder_type", ("transformer",), "its encoder is another one"),
    ("decoder_type", ("transformer",), "its decoder is another one"),
    ("self_attn_type", ("scaled-dot", "scaled-dot-flash"), "its decoder averages"),
    ("max_relative_positions", (0,), "relative, rotary (-1) or ALiBi (-2) positions"),
    ("relative_positions_buckets", (0,), "relative positions"),
    ("position_encoding", (True,), "no positions are added to its inputs"),
    ("position_encoding_type", tuple(LAYOUTS), "positions that are no sinusoids"),
    # `onmt/modules/position_ffn.py` multiplies by a third matrix for "silu".
    ("pos_ffn_activation_fn", ("relu", "gelu"), "gated feed-forward sub-layers"),
    ("layer_norm", ("standard",), "norms that do not subtract the mean"),
    ("parallel_residual", (False,), "sub-layers side by side"),
    ("multiquery", (False,), "heads that share keys and values"),
    ("num_kv", (0,), "heads that share keys and values"),
    ("num_experts", (0,), "mixtures of feed-forward sub-layers"),
    ("sliding_window", (0,), "attention to the last few tokens alone"),
    ("copy_attn", (False,), "an output layer that copies from the source"),
    ("generator_function", ("softmax",), "another output distribution"),
    ("n_src_feats", (0,), "features beside the words"),
)


@dataclass(frozen=True)
class Names:
    """What a checkpoint calls what both toolkits have, for the encoder and the decoder each.

    Attributes:
        embedding: The embedding matrix.
        table: The table of positions.
        modules: Those of a layer: the name here to the source's, in which `{}` is the number.
    """

    embedding: dict[str, str]
    table: dict[str, str]
    modules: dict[str, dict[str, str]]


def layer_modules(
    layers: str, attentions: Mapping[str, str], others: Mapping[str, str]
) -> dict[str, str]:
    """Modules of the layers whose names begin with `layers`, for `Names`."""
    names = {f"{ours}_layer_norm" if "fc" not in ours else ours: n for ours, n in others.items()}
    for ours, theirs in attentions.items():
        names |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in PROJECTIONS.items()}
    return {ours: f"{layers}.{{}}.{theirs}" for ours, theirs in names.items()}


_FEED_FORWARD = {
    "ffn": "feed_forward.layer_norm",
    "fc1": "feed_forward.w_1",
    "fc2": "feed_forward.w_2",
}
_NAMES = Names(
    embedding={side: f"{side}.embeddings.make_embedding.emb_luts.0.weight" for side in SIDES},
    table={side: f"{side}.embeddings.make_embedding.pe.pe" for side in SIDES},
    modules={
        "encoder": layer_modules(
            "encoder.transformer",
            {"self_attn": "self_attn"},
            _FEED_FORWARD | {"self_attn": "layer_norm"},
        ),
        "decoder": layer_modules(
            "decoder.transformer_layers",
            {"self_attn": "self_attn", "cross_attn": "context_attn"},
            _FEED_FORWARD | {"self_attn": "layer_norm_1", "cross_attn": "layer_norm_2"},
        ),
    },
)


class OpenNMTFamily(Family):
    """OpenNMT-py 3: a `.pt` of options, vocabularies and tensors, or one beside safetensors."""

    name = "opennmt"
    title = "OpenNMT-py"

    def recognises(self, path: Path) -> bool:
        """A `.pt` with the options of OpenNMT-py."""
        return mentions(path, "transformer_ff", "max_relative_positions", "decoder_type")

    def read(self, path: Path) -> Checkpoint:
        """As `onmt/models/model_saver.py` wrote it; its options are a plain `Namespace`.

        Raises:
            ValueError: The file is truncated, lacks a part, or is of OpenNMT-py before 3.0, whose
                vocabularies are pickled objects of torchtext.
        """
        remedy = (
            "models of OpenNMT-py before 3.0 keep their vocabularies so: convert it with "
            "tools/convertv2_v3.py of OpenNMT-py 3 first"
        )
        stored = load_pickled(path, remedy, [argparse.Namespace])
        lacking = sorted({"opt", "vocab"} - set(stored))
        if lacking:
            raise ValueError(f"{path} is no checkpoint of OpenNMT-py: it has no {lacking}")
        if "model" in stored:
            tensors = dict(stored["model"])
            for name, tensor in (stored.get("generator") or {}).items():
                # OpenNMT-py 2 had a Sequential there, of this linear layer and a softmax.
                tensors[f"generator.{name.removeprefix('0.')}"] = tensor
        else:
            beside = sorted(path.parent.glob(f"{path.stem}*.safetensors"))
            if not beside:
                raise ValueError(
                    f"{path} holds options alone; put {path.stem}.00.safetensors, which OpenNMT-py "
                    "wrote with it, beside it"
                )
            tensors = {}
            for file in beside:
                tensors |= load_safetensors(file)
        options = {"opt": plain(vars(stored["opt"])), "vocab": plain(stored["vocab"])}
        return Checkpoint(tensors, options, path)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks; see the module's docstring for where the names are from."""
        opt, tensors = checkpoint.options["opt"], checkpoint.tensors
        kv = 0 if opt.get("num_kv") == opt.get("heads") else opt.get("num_kv", 0)
        d_model = _size(opt, "hidden_size", "enc_hid_size")
        check_options(opt | {"num_kv": kv}, _RULES)
        biased = set(PROJECTIONS) if opt.get("add_qkvbias") else set()
        # OpenNMT-py too believes the tensors here: older versions have no such option.
        if opt.get("add_ffnbias") or any(name.endswith("w_1.bias") for name in tensors):
            biased |= {"fc1", "fc2"}
        dropout = opt.get("dropout", 0.1)
        return convert_model(
            checkpoint,
            _NAMES,
            dict.fromkeys(SIDES, biased),
            shares_embeddings=opt["share_embeddings"],
            shares_output=opt["share_decoder_embeddings"],
            positions=opt.get("position_encoding_type", "SinusoidalInterleaved"),
            d_model=d_model,
            d_ff=opt["transformer_ff"],
            num_heads=opt["heads"],
            num_encoder_layers=_size(opt, "layers", "enc_layers"),
            num_decoder_layers=_size(opt, "layers", "dec_layers"),
            dropout=dropout[0] if isinstance(dropout, list) else dropout,
            label_smoothing=opt.get("label_smoothing", 0.0),
            layer_norm_eps=opt.get("norm_eps", 1e-6),
            activation=opt.get("pos_ffn_activation_fn", "relu"),
            output_bias=True,
        )

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """What the transforms did, where their files lie beside the checkpoint under their names.

        The options say where they lay when the model was trained.
        """
        opt = checkpoint.options["opt"]
        return subword_tokenizers(
            opt.get("transforms") or [],
            opt,
            [checkpoint.path.parent] if checkpoint.path else [],
            checkpoint.options["vocab"],
            converted.config,
        )

    def reference(self, checkpoint: Checkpoint) -> Reference:
        """The model that OpenNMT-py's own `build_base_model` makes of the options."""
        return _OpenNMTReference(checkpoint)


def _size(opt: Mapping[str, Any], common: str, own: str) -> int:
    """`common` where it is set (OpenNMT-py's -1 is not), else `own`."""
    return opt[common] if opt.get(common, -1) > 0 else opt[own]


# ---------------------------------------------------------------------- what eole has in common


def check_options(options: Mapping[str, Any], rules: Rules, prefix: str = "") -> None:
    """Refuses what is another architecture.

    Raises:
        ValueError: The first such option, with value, reason and remedy.
    """
    for name, allowed, reason in rules:
        value = options.get(name, allowed[0])
        if value not in allowed:
            remedy = "give a checkpoint that was trained without it"
            raise refuse(f"{prefix}{name}", value, reason, remedy)


def convert_model(
    checkpoint: Checkpoint,
    names: Names,
    biased: Mapping[str, Collection[str]],
    *,
    shares_embeddings: bool,
    shares_output: bool,
    positions: str,
    ignore: Iterable[str] = (),
    **sizes: Any,
) -> Converted:
    """The model of a checkpoint whose options fit.

    Args:
        checkpoint: Its options have a `vocab`.
        names: What its tensors are called.
        biased: Modules of the encoder and of the decoder that have biases, by their last names.
        shares_embeddings: Whether both sides have one embedding matrix.
        shares_output: Whether the output layer is the target's embedding.
        positions: A key of `LAYOUTS`, for where no table is stored.
        ignore: Tensors to leave out.
        sizes: Further fields of the config.

    Raises:
        ValueError: The tensors are not those of the options, or the vocabularies are damaged.
    """
    reader = TensorReader(checkpoint.tensors, str(checkpoint.path or "the checkpoint"))
    vocabulary = _vocabulary_fields(checkpoint.options["vocab"])
    rows = vocabulary["vocab_size"], vocabulary["decoder_vocab_size"] or vocabulary["vocab_size"]
    if shares_embeddings and vocabulary["decoder_vocab_size"] is not None:
        raise ValueError(
            f"this checkpoint has share_embeddings=True and two vocabularies, of {rows[0]} and "
            f"{rows[1]} tokens; one matrix cannot serve both: get the checkpoint again"
        )
    layout, offset = _positions(reader, names, positions)
    config = VanillaTransformerConfig(
        **sizes,
        **vocabulary,
        layer_norm_position="pre",
        position_encoding=layout,
        position_offset=offset,
        attention_bias=any(set(modules) & set(PROJECTIONS) for modules in biased.values()),
        tie_word_embeddings=shares_output,
        share_embeddings=shares_embeddings and shares_output,
    )
    remarks = [_BEAM_REMARK]
    shape = (rows[1], config.d_model)
    source = reader.take(names.embedding["encoder"], (rows[0], config.d_model))
    same = source if shares_embeddings else None
    target = _take(reader, names.embedding["decoder"], shape, same, "share_embeddings")
    same = target if shares_output else None
    output = _take(reader, "generator.weight", shape, same, "share_decoder_embeddings")
    weights = {"model.encoder.embed_tokens.weight": source}
    if not config.share_embeddings:
        weights["model.decoder.embed_tokens.weight"] = target
    if not shares_output:
        weights["lm_head.weight"] = output
        if shares_embeddings:
            remarks.append(
                "Its two embeddings were one matrix; here each stack has a copy, since the output "
                "layer has another."
            )
    if config.output_bias:
        weights["lm_head.bias"] = reader.take("generator.bias", shape[:1])
    for side in SIDES:
        weights |= _take_layers(reader, config, names.modules[side], side, biased[side])
    reader.finish(ignore)
    return Converted(config, weights, dict(_DECODING), remarks)


def _take(
    reader: TensorReader,
    name: str,
    shape: tuple[int, int],
    same: torch.Tensor | None,
    option: str,
) -> torch.Tensor:
    """A matrix, or `same`, which by `option` it is; files hold such a one once or twice."""
    if same is not None and name not in reader:
        return same.clone()
    found = reader.take(name, shape)
    if same is not None and not torch.equal(found, same):
        raise ValueError(
            f"this checkpoint has {option}=True, and yet {name} differs from the matrix that it "
            "shares; get the checkpoint again"
        )
    return found


def _take_layers(
    reader: TensorReader,
    config: VanillaTransformerConfig,
    modules: Mapping[str, str],
    side: str,
    biased: Collection[str],
) -> dict[str, torch.Tensor]:
    d_model, inner = config.d_model, config.num_heads * (config.d_k or 0)
    d_ff = config.d_ff if side == "encoder" else config.decoder_d_ff or config.d_ff
    shapes = {"o_proj": (d_model, inner), "fc1": (d_ff, d_model), "fc2": (d_model, d_ff)}
    shapes |= dict.fromkeys(("q_proj", "k_proj", "v_proj"), (inner, d_model))
    count = config.num_encoder_layers if side == "encoder" else config.num_decoder_layers
    prefix, weights = f"model.{side}", {}
    for number in range(count):
        for ours, pattern in modules.items():
            last, theirs = ours.rpartition(".")[2], pattern.format(number)
            ours = f"{prefix}.layers.{number}.{ours}"
            shape = shapes.get(last, (d_model,))
            weights[f"{ours}.weight"] = reader.take(f"{theirs}.weight", shape)
            if last not in shapes or last in biased:
                weights[f"{ours}.bias"] = reader.take(f"{theirs}.bias", shape[:1])
            elif last not in PROJECTIONS or config.attention_bias:
                # No bias is a bias of zero.
                weights[f"{ours}.bias"] = torch.zeros(shape[0])
    for part in ("weight", "bias"):
        weights[f"{prefix}.layer_norm.{part}"] = reader.take(
            f"{side}.layer_norm.{part}", (d_model,)
        )
    return weights


def _vocabulary_fields(vocab: Mapping[str, Any]) -> dict[str, Any]:
    """The config's fields of a checkpoint's `vocab`; see `special_tokens`."""
    source, target, special = vocab["src"], vocab["tgt"], special_tokens(vocab)
    pad = special["pad_token"]
    ids = {
        name: target.index(token) if token in target else None for name, token in special.items()
    }
    start = vocab.get("decoder_start_token") or special["bos_token"]
    pad_of_source = source.index(pad) if pad in source else None
    if start not in target or ids["pad_token"] is None or pad_of_source != ids["pad_token"]:
        raise ValueError(
            f"its vocabularies must both have {pad!r}, under one number, and that of the target "
            f"{start!r}, with which the decoder starts: get the checkpoint again"
        )
    return {
        "vocab_size": len(source),
        "decoder_vocab_size": None if source == target else len(target),
        "pad_token_id": ids["pad_token"],
        "bos_token_id": ids["bos_token"],
        "eos_token_id": ids["eos_token"],
        "decoder_start_token_id": target.index(start),
    }


def _positions(reader: TensorReader, names: Names, kind: str) -> tuple[str, int]:
    """Layout and first position: of the stored tables, which both toolkits use where there are any.

    Models brought to OpenNMT-py from elsewhere have tables that do not begin with position 0.
    """
    found = {}
    for name in names.table.values():
        if name in reader:
            table = reader.tensors[name]
            reader.take(name, tuple(table.shape))
            found[name] = recognise_sinusoids(table.flatten(1))
    if len(set(found.values())) > 1 or None in found.values():
        raise ValueError(
            f"this checkpoint's positions are no sinusoids, or not the same ones on both sides "
            f"({found}): what is stored there is learned or of another layout; give a checkpoint "
            "with sinusoidal positions"
        )
    return next(iter(found.values()), None) or (LAYOUTS[kind], 0)


# ------------------------------------------------------------------------------------ reference


class _OpenNMTReference:
    """OpenNMT-py's own model in evaluation mode, as its `load_test_model` builds it."""

    def __init__(self, checkpoint: Checkpoint):
        try:
            import onmt
            from onmt.inputters.inputter import dict_to_vocabs
            from onmt.model_builder import build_base_model
            from onmt.opts import train_opts
            from onmt.utils.parse import ArgumentParser
        except ImportError as error:
            raise ImportError(
                "OpenNMT-py is not installed; pip install OpenNMT-py==3.5.1 pyonmttok"
            ) from error
        self.name = f"OpenNMT-py {onmt.__version__}"
        # Checkpoints lack options that are younger than they.
        parser = ArgumentParser()
        train_opts(parser)
        opt = parser.parse_args(["-data", "none", "-src_vocab", "none"])
        vars(opt).update(copy.deepcopy(checkpoint.options["opt"]))
        ArgumentParser.update_model_opts(opt)
        opt.attention_dropout = opt.dropout = 0.0
        if any(name.endswith("w_1.bias") for name in checkpoint.tensors):
            opt.add_ffnbias = True
        self.model = build_base_model(opt, dict_to_vocabs(checkpoint.options["vocab"]))
        load_whole(self.model, checkpoint.tensors)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        return self.model.encoder(input_ids.unsqueeze(-1), attention_mask.sum(dim=1))[0]

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of every target position."""
        source, lengths = input_ids.unsqueeze(-1), attention_mask.sum(dim=1)
        states, final, lengths = self.model.encoder(source, lengths)
        self.model.decoder.init_state(source, states, final)
        target = decoder_input_ids.unsqueeze(-1)
        return self.model.generator(self.model.decoder(target, states, src_len=lengths)[0])


def load_whole(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Every tensor of the checkpoint, into what must hold it; shared ones may be left out."""
    stored = {name: tensor.float() for name, tensor in tensors.items()}
    # Not by their own methods, which read files.
    missing, unexpected = torch.nn.Module.load_state_dict(model, stored, strict=False)
    assert not unexpected, unexpected
    shared = ("generator.weight", "embeddings.weight", "emb_luts.0.weight", ".pe", "layer_scalar")
    assert all(name.endswith(shared) for name in missing), missing
    model.eval()
