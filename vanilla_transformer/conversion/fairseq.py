"""fairseq's `.pt` checkpoints: transformer.wmt14.en-fr, wmt16.en-de, wmt18, wmt19, iwslt.

Names and equations are those of fairseq 0.12.2: `models/transformer/`, and in `modules/`
`transformer_layer.py`, `multihead_attention.py` and `sinusoidal_positional_embedding.py`, whose
methods `upgrade_state_dict_named` say how older versions called the same tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from .bpe import (
    build_tokenizers,
    check_symbols,
    missing_symbols,
    read_codes,
    symbols_of_dictionary,
)
from .fairseq_weights import ACTIVATIONS, POSITIONS_AND_NORMS, take_embeddings, take_stacks
from .pytorch_files import load_pickled, mentions, plain
from .source import Checkpoint, Converted, Family, Reference, TensorReader, Tokenizers, refuse

# `hub_utils.py`.
_CODES = ("bpecodes", "code")
_SIDES = ("source", "target")

# `data/dictionary.py`: every dictionary begins with these.
_BOS, _PAD, _EOS, _UNK = range(4)

_REMEDY = (
    "where you trust it, load it with fairseq.checkpoint_utils.load_checkpoint_to_cpu and save "
    "{'args': dict(state['cfg']['model']) or vars(state['args']), 'model': state['model']} with "
    "torch.save"
)

# `models/transformer/transformer_legacy.py`, base_architecture: what an option is where the file
# does not say.
_DEFAULTS: dict[str, Any] = {
    "encoder_embed_dim": 512,
    "encoder_ffn_embed_dim": 2048,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_layers": 6,
    "encoder_normalize_before": False,
    "activation_fn": "relu",
    "dropout": 0.1,
    "share_all_embeddings": False,
    "share_decoder_input_output_embed": False,
}
# What makes another model.
_OFF = (
    "no_scale_embedding",
    "encoder_learned_pos",
    "decoder_learned_pos",
    "no_token_positional_embeddings",
    "layernorm_embedding",
    "adaptive_input",
    "adaptive_softmax_cutoff",
    "tie_adaptive_weights",
    "cross_self_attention",
    "no_cross_attention",
    "no_decoder_final_norm",
    "char_inputs",
    "base_layers",
    "encoder_layers_to_keep",
    "decoder_layers_to_keep",
)
# The decoder's are the encoder's where they are not set.
_EQUAL = (
    ("decoder_embed_dim", "encoder_embed_dim"),
    ("decoder_input_dim", "encoder_embed_dim"),
    ("decoder_output_dim", "encoder_embed_dim"),
    ("decoder_attention_heads", "encoder_attention_heads"),
    ("decoder_normalize_before", "encoder_normalize_before"),
)

_OLD_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}

_IGNORED = (
    r"(en|de)coder\.(version|embed_positions\.(_float_tensor|weights))",
    # Since fairseq 0.12 an encoder layer has copies of its weights, for torch's fast path.
    r"encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)",
)
_UNUSED_NORMS = r"(en|de)coder\.layer_norm\.(weight|bias)"

# `sequence_generator.py` and `dataclass/configs.py`: at most 200 tokens, then the end is forced;
# never an empty sentence, never a pad. Here the decoder's start counts as well.
_DECODING = {
    "num_beams": 5,
    "length_penalty": 1.0,
    "length_penalty_formula": "power",
    "early_stopping": True,
    "max_length": 202,
    "min_new_tokens": 1,
    "forced_eos_token_id": _EOS,
    "suppress_tokens": [_PAD],
}


class _Statistic:
    """Stands for averages of losses, which old fairseq pickled beside the weights; does nothing."""


_SAFE = (
    argparse.Namespace,
    *((_Statistic, f"fairseq.meters.{name}Meter") for name in ("Average", "Time", "Stopwatch")),
)


class FairseqFamily(Family):
    """A `.pt` of fairseq's `transformer`, or a directory that holds one beside its dictionaries."""

    name = "fairseq"
    title = "fairseq"

    def recognises(self, path: Path) -> bool:
        """A `.pt` with the options of fairseq's transformer, or a directory of such files."""
        files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        return any(mentions(file, "encoder_ffn_embed_dim", "encoder_embed_dim") for file in files)

    def read(self, path: Path) -> Checkpoint:
        """As `checkpoint_utils.py` wrote it: `args` of old, `cfg` of newer versions, and `model`.

        Raises:
            ValueError: The file is truncated, is none of fairseq or holds objects other than plain
                values; the directory holds several models, which fairseq averages as an ensemble.
        """
        file = _model_file(path)
        stored = load_pickled(file, _REMEDY, _SAFE)
        if not isinstance(stored, Mapping) or not isinstance(stored.get("model"), Mapping):
            raise ValueError(f"{file} is no checkpoint of fairseq: it has no 'model'")
        args = stored.get("args")
        if args is None:
            cfg = stored.get("cfg") or {}
            args = {**_values(cfg.get("task")), **_values(cfg.get("model"))}
        options: dict[str, Any] = {"args": plain(_values(args))}
        texts = _text_files(file.parent, options["args"])
        if texts is not None:
            symbols = symbols_of_dictionary(texts[0])
            options["unlisted"] = len(missing_symbols(symbols, read_codes(texts[2])))
        return Checkpoint(dict(stored["model"]), options, file)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks.

        Raises:
            ValueError: An option makes it another architecture, or the tensors are not those of the
                options.
        """
        args = _DEFAULTS | checkpoint.options["args"]
        _check(args)
        reader = TensorReader(_modern_names(checkpoint.tensors), str(checkpoint.path or "fairseq"))
        is_pre_norm = args["encoder_normalize_before"]
        if is_pre_norm:
            _check_versions(checkpoint.tensors)
        fields, weights = take_embeddings(
            reader,
            "",
            args["encoder_embed_dim"],
            shares_all=args["share_all_embeddings"],
            shares_output=args["share_decoder_input_output_embed"],
            num_unlisted=checkpoint.options.get("unlisted", 0),
            unknown=_UNK,
        )
        config = VanillaTransformerConfig(
            **fields,
            **POSITIONS_AND_NORMS,
            d_ff=args["encoder_ffn_embed_dim"],
            decoder_d_ff=args.get("decoder_ffn_embed_dim"),
            num_heads=args["encoder_attention_heads"],
            num_encoder_layers=args["encoder_layers"],
            num_decoder_layers=args["decoder_layers"],
            layer_norm_position="pre" if is_pre_norm else "post",
            activation=ACTIVATIONS[args["activation_fn"]],
            dropout=args["dropout"],
            label_smoothing=args.get("label_smoothing") or 0.0,
            position_offset=_PAD + 1,
            pad_token_id=_PAD,
            bos_token_id=_BOS,
            eos_token_id=_EOS,
            decoder_start_token_id=_EOS,
        )
        weights |= take_stacks(reader, "", config)
        ignored = reader.finish(_IGNORED if is_pre_norm else (*_IGNORED, _UNUSED_NORMS))
        remarks = [
            "In a translation cut at 200 tokens the forced </s> costs nothing; fairseq counts "
            "its probability, and with a beam may choose another one."
        ]
        if any(".layer_norm." in name for name in ignored):
            remarks.append(
                "The norms that the file has after both stacks were left out: no fairseq applies "
                "them to a model that normalises after the residual sums."
            )
        return Converted(config, weights, dict(_DECODING), remarks)

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """The dictionaries, byte-pair codes and Moses rules that fairseq's hub interface applies.

        Raises:
            ValueError: sacremoses, whose rules are written into the tokenizers, is not installed; a
                dictionary is of another checkpoint.
        """
        args = checkpoint.options["args"]
        texts = _text_files(checkpoint.path.parent, args) if checkpoint.path else None
        if texts is None:
            names = [f"dict.{args.get(f'{side}_lang') or side.upper()}.txt" for side in _SIDES]
            remark = (
                f"No tokenizer: {', '.join(names)} and byte-pair codes ({' or '.join(_CODES)}) "
                "did not lie beside the checkpoint."
            )
            return Tokenizers(remarks=[remark])
        source, target = map(symbols_of_dictionary, texts[:2])
        config = converted.config
        rows = config.vocab_size - checkpoint.options.get("unlisted", 0)
        check_symbols(texts[0], source, rows)
        check_symbols(texts[1], target, config.target_vocab_size)
        return build_tokenizers(
            source,
            target,
            read_codes(texts[2]),
            (args["source_lang"], args["target_lang"]),
            normalises_punctuation=False,
        )

    def reference(self, checkpoint: Checkpoint) -> Reference:
        """Fairseq's own `TransformerModel`, which takes old names by its own means."""
        return _FairseqReference(checkpoint)


# --------------------------------------------------------------------------------- files, options


def _text_files(folder: Path, args: Mapping[str, Any]) -> tuple[Path, Path, Path] | None:
    """Both dictionaries and the codes, where all of them lie there."""
    source, target = (folder / f"dict.{args.get(f'{side}_lang')}.txt" for side in _SIDES)
    codes = next((folder / name for name in _CODES if (folder / name).is_file()), None)
    return (source, target, codes) if codes and source.is_file() and target.is_file() else None


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        names = ", ".join(str(file) for file in files) or "no .pt file"
        raise ValueError(
            f"{path} holds {names}: fairseq averages what the models of an ensemble predict, while "
            "one model is converted at a time; give one of these files"
        )
    return files[0]


def _values(args: Any) -> dict[str, Any]:
    return dict(args) if isinstance(args, Mapping) else vars(args) if args is not None else {}


def _check(args: Mapping[str, Any]) -> None:
    remedy = "give a checkpoint of fairseq's plain `transformer`"
    arch = str(args.get("arch", args.get("_name", "transformer")))
    if not arch.startswith("transformer") or "_lm" in arch:
        raise refuse("arch", arch, "that is another model of fairseq", remedy)
    for name in _OFF:
        # Off is now False, now None, now 0.
        if args.get(name):
            raise refuse(name, args[name], "it makes another model", remedy)
    for name, other in _EQUAL:
        if args.get(name, args[other]) != args[other]:
            raise refuse(name, args[name], f"it differs from {other} ({args[other]!r})", remedy)
    if args["activation_fn"] not in ACTIVATIONS:
        reason = f"only {', '.join(ACTIVATIONS)} are known"
        raise refuse("activation_fn", args["activation_fn"], reason, remedy)


def _check_versions(tensors: Mapping[str, torch.Tensor]) -> None:
    for side, since in (("encoder", 2), ("decoder", 3)):
        stored = tensors.get(f"{side}.version")
        version = 1 if stored is None else int(stored.flatten()[0])
        if version < since:
            raise refuse(
                f"{side}.version",
                version,
                f"fairseq before version {since} of its {side}s applied no norm after the stack, "
                "though it normalised the inputs of the sub-layers",
                "give a checkpoint of a later version, or one of post-norm",
            )


def _modern_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Old names made new: `layer_norms.N`, the three projections in one, `embed_out`."""
    modern = {}
    for name, tensor in tensors.items():
        norm = re.fullmatch(r"(encoder|decoder)(\.layers\.\d+\.)layer_norms\.(\d)\.(\w+)", name)
        packed = re.fullmatch(r"(.*_attn\.)in_proj_(weight|bias)", name)
        if norm and int(norm[3]) < len(_OLD_NORMS[norm[1]]):
            modern[f"{norm[1]}{norm[2]}{_OLD_NORMS[norm[1]][int(norm[3])]}.{norm[4]}"] = tensor
        elif packed and tensor.shape[0] % 3 == 0:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                modern[f"{packed[1]}{letter}_proj.{packed[2]}"] = part
        elif name == "decoder.embed_out":
            modern["decoder.output_projection.weight"] = tensor
        else:
            modern[name] = tensor
    return modern


# -------------------------------------------------------------------------------------- reference


class _FairseqReference:
    """fairseq's own model in evaluation mode."""

    def __init__(self, checkpoint: Checkpoint):
        with _dataclasses_as_before():
            try:
                import fairseq
                from fairseq.data import Dictionary
                from fairseq.models.transformer import TransformerModel
            except ImportError as error:
                raise ImportError(
                    "fairseq is not installed; pip install fairseq==0.12.2 --no-deps, and what it "
                    "then says is missing"
                ) from error
        self.name = f"fairseq {fairseq.__version__}"
        args = argparse.Namespace(**_DEFAULTS | checkpoint.options["args"])
        # fairseq writes into what it is given.
        tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
        if not args.encoder_normalize_before:
            # Versions that never applied these norms saved them; today's refuses to load them.
            for name in [name for name in tensors if re.fullmatch(_UNUSED_NORMS, name)]:
                del tensors[name]

        def dictionary(side: str) -> Any:
            made = Dictionary()
            for number in range(len(made), len(tensors[f"{side}.embed_tokens.weight"])):
                made.add_symbol(f"symbol{number}")
            return made

        task = argparse.Namespace(
            source_dictionary=dictionary("encoder"), target_dictionary=dictionary("decoder")
        )
        self.num_symbols = len(task.source_dictionary)
        self.model = TransformerModel.build_model(args, task)
        self.model.load_state_dict(tensors, strict=True)
        self.model.eval()

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        return self._encode(input_ids)["encoder_out"][0].transpose(0, 1)

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of every target position."""
        return self.model.decoder(decoder_input_ids, encoder_out=self._encode(input_ids))[0]

    def _encode(self, input_ids: torch.Tensor) -> Any:
        # Rows that were added are of symbols that fairseq does not know.
        known = input_ids.masked_fill(input_ids >= self.num_symbols, _UNK)
        return self.model.encoder(known, src_lengths=known.ne(_PAD).sum(dim=1))


@contextlib.contextmanager
def _dataclasses_as_before() -> Iterator[None]:
    """Lets fairseq 0.12.2 be imported by Python 3.11 and later.

    Its dataclasses have other dataclasses as defaults, which Python since refuses unless they can
    be hashed.
    """
    real = dataclasses.dataclass

    def hashable(cls: Any = None, /, **options: Any) -> Any:
        if cls is None:
            return functools.partial(hashable, **options)
        if cls.__module__.startswith(("fairseq.", "hydra.")):
            options["unsafe_hash"] = True
        return real(cls, **options)

    level, handlers = logging.root.level, list(logging.root.handlers)
    dataclasses.dataclass = hashable
    try:
        yield
    finally:
        dataclasses.dataclass = real
        # fairseq sets up logging for everybody.
        logging.root.setLevel(level)
        logging.root.handlers[:] = handlers
