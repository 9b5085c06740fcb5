"""Tensor2Tensor's TensorFlow checkpoints, those of the paper's authors.

Names and equations are those of Tensor2Tensor 1.15.7 (`models/transformer.py`, `layers/
transformer_layers.py`, `layers/common_attention.py`, `layers/modalities.py`). Kernels are stored
`[in, out]`, embeddings in shards of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from .opennmt import Rules, check_options
from .pytorch_files import plain
from .source import Checkpoint, Converted, Family, TensorReader, Tokenizers
from .subwords import read_subwords, subword_tokenizer
from .tensorflow_checkpoint import (
    index_of,
    is_checkpoint,
    load_tensors,
    newest_checkpoint,
    tensor_shapes,
)

PAD, EOS = 0, 1
"""`data_generators/text_encoder.py`: the same in every vocabulary."""

_SCOPES = re.compile(r"(?:(?:transformer|body|model|parallel_\d+(?:_\d+)*)/)*")
"""What stands before a variable's own name, differently from version to version."""

IGNORED = (
    r"global_step",
    r"(losses_avg|train_stats|training|report_uninitialized|OptimizeLoss|optimize_loss)/.*",
    r"(beta[12]_power|loss_scale|good_steps|learning_rate|Variable(_\d+)?)",
    # What optimizers keep of each variable.
    r".*/(Adam|Adam_1|Adafactor|Momentum|AdamW|Adagrad|vr|vc|v|m|grad_acc|ExponentialMovingAverage)"
    r"(_\d+)?",
)
"""Tensors that are no weights, by whole names."""

_SPACES = "target_space_embedding/kernel"
_NUM_SPACES = 32

_KNOWN_SETS: dict[str, dict[str, Any]] = {
    "transformer_base_v1": {
        "num_heads": 8,
        "layer_preprocess_sequence": "none",
        "layer_postprocess_sequence": "dan",
        "layer_prepostprocess_dropout": 0.1,
    },
    **{
        name: {
            "num_heads": heads,
            "layer_preprocess_sequence": "n",
            "layer_postprocess_sequence": "da",
            "layer_prepostprocess_dropout": dropout,
        }
        for name, heads, dropout in (
            ("transformer_base_v2", 8, 0.1),
            ("transformer_base_v3", 8, 0.1),
            ("transformer_base", 8, 0.1),
            ("transformer_base_single_gpu", 8, 0.1),
            ("transformer_base_multistep8", 8, 0.1),
            ("transformer_big", 16, 0.3),
            ("transformer_big_single_gpu", 16, 0.1),
            ("transformer_big_enfr", 16, 0.1),
            ("transformer_tpu", 8, 0.1),
            ("transformer_big_tpu", 16, 0.3),
            ("transformer_small", 4, 0.1),
            ("transformer_tiny", 4, 0.1),
            ("transformer_test", 2, 0.1),
        )
    },
}
"""What the tensors do not tell of the sets of hyperparameters that people trained."""

_REMEDY = (
    "put the hparams.json that Tensor2Tensor wrote beside the checkpoint, or a flags_t2t.txt with "
    f"a line --hparams_set=NAME of one of {', '.join(_KNOWN_SETS)}"
)

# Of an option: values that fit, the default first, and what the others make of the model.
_RULES: Rules = (
    ("model", ("transformer",), "it is another of Tensor2Tensor's models"),
    ("ffn_layer", ("dense_relu_dense", "conv_hidden_relu"), "other feed-forward sub-layers"),
    ("self_attention_type", ("dot_product",), "relative or local attention"),
    ("pos", ("timing",), "positions that are no sinusoids"),
    ("norm_type", ("layer",), "norms of another kind"),
    ("multiply_embedding_mode", ("sqrt_depth",), "embeddings that are not scaled so"),
    ("proximity_bias", (False,), "attention that prefers what is near"),
    ("unidirectional_encoder", (False,), "an encoder that sees only what came before"),
    ("causal_decoder_self_attention", (True,), "a decoder that sees what comes after"),
    ("prepend_mode", ("none",), "a decoder that reads the source again"),
    ("num_area_layers", (0,), "attention to areas"),
    ("hard_attention_k", (0,), "attention to the best few alone"),
    ("attention_variables_3d", (False,), "projections stored by head"),
    ("symbol_modality_skip_top", (False,), "no output layer"),
    ("input_modalities", ("default",), "inputs other than text"),
    ("target_modality", ("default",), "outputs other than text"),
    ("nbr_decoder_problems", (1,), "several decoders"),
)

# The norms before and after a sub-layer ("n"), its dropout ("d") and the sum ("a").
_NORMS = {("none", "dan"): "post", ("none", "an"): "post", ("n", "da"): "pre", ("n", "a"): "pre"}

_ATTENTIONS = {"self_attn": "self_attention", "cross_attn": "encdec_attention"}
_PROJECTIONS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "output_transform"}

_DECODING = {
    "num_beams": 4,
    "length_penalty": 0.6,
    "length_penalty_formula": "paper",
    "max_tokens_over_source": 50,
}
"""The paper's (6.1); Tensor2Tensor's own differs in ending outputs at the source's length + 100."""


class Tensor2TensorFamily(Family):
    """A checkpoint of `.index` and `.data` files, or a directory with one and its hparams.json."""

    name = "tensor2tensor"
    title = "Tensor2Tensor"

    def recognises(self, path: Path) -> bool:
        """A checkpoint of TensorFlow with Tensor2Tensor's names."""
        try:
            file = newest_checkpoint(path) if path.is_dir() else path
            return is_checkpoint(file) and any(
                "symbol_modality_" in name for name in tensor_shapes(file)
            )
        except ValueError:
            return False

    def read(self, path: Path) -> Checkpoint:
        """Weights, and the options of `hparams.json` or `flags_t2t.txt` beside them.

        What optimizers keep stays unread, but for that of the embedding of target spaces, which
        tells what the model was trained for.

        Raises:
            ValueError: A file is missing, truncated or damaged.
        """
        file = index_of(newest_checkpoint(path) if path.is_dir() else path)
        patterns = [re.compile(pattern) for pattern in IGNORED]

        def is_wanted(name: str) -> bool:
            is_weight = not any(pattern.fullmatch(name) for pattern in patterns)
            return is_weight or f"/{_SPACES}/" in name

        tensors = load_tensors(file, is_wanted)
        return Checkpoint(tensors, _read_options(file.parent), file)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks; embeddings and output layer are matrices of their own.

        Tensor2Tensor reads the pad, which the decoder starts with too, as a vector of zeros, and
        yet scores it as an output by its row of the same matrix. And it adds a constant vector to
        whatever the encoder reads, which goes into the source's embedding here.
        """
        options = checkpoint.options
        check_options(options, _RULES)
        before, after = (options.get(f"layer_{part}process_sequence") for part in ("pre", "post"))
        if "num_heads" not in options or before is None or after is None:
            raise ValueError(
                "this checkpoint comes without its num_heads, layer_preprocess_sequence and "
                f"layer_postprocess_sequence, which its tensors do not tell; {_REMEDY}"
            )
        position = _NORMS.get((before or "none", after))
        if position is None:
            raise ValueError(
                f"this checkpoint has layer_preprocess_sequence={before!r} and "
                f"layer_postprocess_sequence={after!r}; known here are the pairs "
                f"{sorted(_NORMS)}, each sub-layer's one norm before it or after the sum: give a "
                "checkpoint that was trained so"
            )
        place = str(checkpoint.path or "the checkpoint")
        reader = TensorReader(_plain_names(checkpoint.tensors, place), place)
        embeddings = _embeddings(reader.tensors, place)
        source, target, output = (_take_shards(reader, names) for names in embeddings)
        d_model = source.shape[1]
        heads = options["num_heads"]
        keys, values = (
            options.get(f"attention_{kind}_channels") or d_model for kind in ("key", "value")
        )
        if keys % heads or values % heads:
            raise ValueError(
                f"this checkpoint has num_heads={heads}, which does not divide its {keys} and "
                f"{values} channels of attention; {_REMEDY}"
            )
        config = VanillaTransformerConfig(
            vocab_size=source.shape[0],
            decoder_vocab_size=None if len(source) == len(target) else len(target),
            d_model=d_model,
            d_ff=options.get("filter_size") or _width(reader.tensors, d_model),
            num_heads=heads,
            d_k=keys // heads,
            d_v=values // heads,
            num_encoder_layers=_depth(options, reader.tensors, "encoder"),
            num_decoder_layers=_depth(options, reader.tensors, "decoder"),
            dropout=options.get("layer_prepostprocess_dropout", 0.1),
            label_smoothing=options.get("label_smoothing", 0.1),
            layer_norm_position=position,
            layer_norm_eps=options.get("norm_epsilon", 1e-6),
            position_encoding="concatenated_inclusive",
            tie_word_embeddings=False,
            share_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=EOS,
            decoder_start_token_id=PAD,
        )
        remarks = [
            "The pad is read as zeros and yet scored as an output, by one row of one matrix in "
            "Tensor2Tensor; so embeddings and output layer are matrices of their own here.",
            "Outputs end 50 tokens beyond their source, as in the paper; Tensor2Tensor's own "
            "decoder ends them after 100.",
        ]
        source = source + _target_space(reader, options, d_model, remarks) / d_model**0.5
        weights = {
            "model.encoder.embed_tokens.weight": source,
            "model.decoder.embed_tokens.weight": target,
            "lm_head.weight": output,
        }
        for name in ("encoder", "decoder"):
            weights[f"model.{name}.embed_tokens.weight"][PAD] = 0.0
            weights |= _take_layers(reader, config, name)
        reader.finish(IGNORED)
        return Converted(config, weights, dict(_DECODING), remarks)

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """The subwords of a `vocab.*.subwords` beside the checkpoint, for both sides.

        Raises:
            ValueError: There are several, or it is of another checkpoint.
        """
        folder = checkpoint.path.parent if checkpoint.path else None
        found = sorted(folder.glob("*.subwords")) if folder else []
        if not found:
            return Tokenizers(
                remarks=[
                    "Without its tokenizer: no vocabulary (vocab.*.subwords) lay beside the "
                    "checkpoint."
                ]
            )
        if len(found) > 1:
            raise ValueError(
                f"{folder} holds {len(found)} vocabularies "
                f"({', '.join(file.name for file in found)}); leave the checkpoint's own there, "
                "which serves both languages"
            )
        subwords = read_subwords(found[0])
        rows = converted.config.vocab_size
        if len(subwords) > rows or converted.config.decoder_vocab_size is not None:
            raise ValueError(
                f"{found[0]} lists {len(subwords)} subwords, the model has {rows} and "
                f"{converted.config.target_vocab_size}; put the vocabulary that came with the "
                "checkpoint beside it, or none to convert the model alone"
            )
        tokenizer, remarks = subword_tokenizer(subwords)
        return Tokenizers(source=tokenizer, remarks=remarks)


# --------------------------------------------------------------------------------------- options


def _read_options(folder: Path) -> dict[str, Any]:
    """Hyperparameters: of the named set, then what `hparams.json` says, then the command line's.

    Raises:
        ValueError: A file is damaged.
    """
    flags: dict[str, str] = {}
    for name in ("flags.txt", "flags_t2t.txt"):
        if (file := folder / name).is_file():
            text = file.read_text("utf-8", errors="replace")
            flags |= dict(re.findall(r"^--(\w+)=(.*?)\s*$", text, re.MULTILINE))
    options: dict[str, Any] = dict(_KNOWN_SETS.get(flags.get("hparams_set", ""), {}))
    for item in filter(None, flags.get("hparams", "").split(",")):
        name, _, value = item.partition("=")
        options[name.strip()] = _value(value.strip())
    if (file := folder / "hparams.json").is_file():
        # Written when all of it was known, the command line included.
        try:
            stored = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON ({error}); get it again") from error
        if not isinstance(stored, dict):
            raise ValueError(f"{file} holds no options by name; get it again")
        options |= plain(stored)
    if model := flags.get("model"):
        options["model"] = model
    return options


def _value(text: str) -> Any:
    """What a value on the command line stands for."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def _depth(options: Mapping[str, Any], tensors: Iterable[str], side: str) -> int:
    stored = options.get(f"num_{side}_layers") or options.get("num_hidden_layers")
    if stored:
        return stored
    found = [re.match(rf"{side}/layer_(\d+)/", name) for name in tensors]
    return max((int(match[1]) + 1 for match in found if match), default=1)


def _width(tensors: Mapping[str, torch.Tensor], default: int) -> int:
    name = "encoder/layer_0/ffn/conv1/bias"
    return tensors[name].shape[0] if name in tensors else default


# --------------------------------------------------------------------------------------- tensors


def _plain_names(tensors: Mapping[str, torch.Tensor], place: str) -> dict[str, torch.Tensor]:
    """Tensors by their names without scopes: `encoder/layer_0/...`, `symbol_modality_...`.

    Raises:
        ValueError: Two of them are one without scopes.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        scopes = _SCOPES.match(name)
        short = name[scopes.end() :] if scopes else name
        # Before `dense_relu_dense` the products were convolutions of width one; and norms after a
        # sub-layer have a scope of their own in newer versions.
        if re.search(r"/conv[12]/kernel$", short) and tensor.ndim == 3 and tensor.shape[0] == 1:
            tensor = tensor[0]
        short = re.sub(r"/layer_(pre)?postprocess(_\d+)?/layer_norm/", "/layer_norm/", short)
        if short in found:
            raise ValueError(
                f"{place} has {short} twice, in different scopes; give a checkpoint of one model"
            )
        found[short] = tensor
    return found


def _embeddings(tensors: Iterable[str], place: str) -> tuple[list[str], list[str], list[str]]:
    """Names of the shards of source embedding, target embedding and output layer.

    Raises:
        ValueError: They are not there, or it is not known which is which.
    """
    groups: dict[str, dict[str, dict[int, str]]] = {}
    for name in tensors:
        match = re.fullmatch(r"(symbol_modality_\w+)/(\w+)/weights_(\d+)", name)
        if match:
            groups.setdefault(match[2], {}).setdefault(match[1], {})[int(match[3])] = name

    def shards(kind: str) -> list[str]:
        modalities = groups[kind]
        if len(modalities) > 1:
            raise ValueError(
                f"{place} has {kind} of {', '.join(sorted(modalities))}, and nothing says which is "
                "the source's; give a checkpoint with one vocabulary"
            )
        (modality,) = modalities
        numbers = modalities[modality]
        if sorted(numbers) != list(range(len(numbers))):
            raise ValueError(
                f"{place} lacks shards of {modality}/{kind}: there are {sorted(numbers)}; get the "
                "checkpoint again"
            )
        return [numbers[number] for number in range(len(numbers))]

    if "shared" in groups:
        shared = shards("shared")
        return shared, shared, shards("softmax") if "softmax" in groups else shared
    lacking = sorted({"input_emb", "target_emb", "softmax"} - set(groups))
    if lacking:
        raise ValueError(
            f"{place} has no embeddings of text: neither symbol_modality_*/shared nor "
            f"{', '.join(lacking)}; give a checkpoint of a model of translation"
        )
    return shards("input_emb"), shards("target_emb"), shards("softmax")


def _take_shards(reader: TensorReader, names: list[str]) -> torch.Tensor:
    """The matrix of consecutive rows; its modality's name tells its shape."""
    match = re.match(r"symbol_modality_(\d+)_(\d+)", names[0])
    assert match is not None
    rows, d_model = int(match[1]), int(match[2])
    sizes = [rows // len(names) + (i < rows % len(names)) for i in range(len(names))]
    return torch.cat(
        [reader.take(name, (size, d_model)) for name, size in zip(names, sizes, strict=True)]
    )


def _target_space(
    reader: TensorReader, options: Mapping[str, Any], d_model: int, remarks: list[str]
) -> torch.Tensor:
    """The vector `[d]` of the task, which Tensor2Tensor adds to all that the encoder reads.

    Which of the rows it is depends on the task and on Tensor2Tensor's version. It is the one that
    was trained: where the optimizer's moments are there, only its are not zero.

    Raises:
        ValueError: The moments are not there, as in averaged checkpoints, and nothing else tells.
    """
    if not options.get("use_target_space_embedding", True) or _SPACES not in reader:
        return torch.zeros(d_model)
    table = reader.take(_SPACES, (_NUM_SPACES, d_model))
    moments = [
        tensor
        for name, tensor in reader.tensors.items()
        if f"{_SPACES}/" in name and tuple(tensor.shape) == (_NUM_SPACES, d_model)
    ]
    trained = sorted({i for m in moments for i in m.abs().sum(1).nonzero().flatten().tolist()})
    if "target_space_id" in options:
        row, reason = options["target_space_id"], "as target_space_id in hparams.json says"
    elif len(trained) == 1:
        row, reason = trained[0], "the only one that was trained"
    else:
        raise ValueError(
            f"this checkpoint has {_NUM_SPACES} embeddings of target spaces, and without the "
            'optimizer\'s moments nothing tells which was trained; add "target_space_id" to the '
            "hparams.json beside it: 0 where Tensor2Tensor 1.15 trained it to translate, in older "
            "versions 8 for German, 6 for French, 3 for English (data_generators/problem.py)"
        )
    if not isinstance(row, int) or not 0 <= row < _NUM_SPACES:
        raise ValueError(
            f"target_space_id ({row!r}) must lie in 0 to {_NUM_SPACES - 1}; correct hparams.json"
        )
    remarks.append(
        f"Row {row} of Tensor2Tensor's embedding of target spaces, {reason}, is part of the "
        "source's embedding here."
    )
    return table[row]


def _take_layers(
    reader: TensorReader, config: VanillaTransformerConfig, side: str
) -> dict[str, torch.Tensor]:
    d_model = config.d_model
    weights: dict[str, torch.Tensor] = {}
    assert config.d_k is not None
    assert config.d_v is not None
    keys, values = config.num_heads * config.d_k, config.num_heads * config.d_v
    shapes = {"q": (d_model, keys), "k": (d_model, keys), "v": (d_model, values)}
    shapes["output_transform"] = (values, d_model)

    def take_norm(ours: str, theirs: str) -> None:
        for part, name in (("weight", "scale"), ("bias", "bias")):
            found = reader.take(f"{theirs}/layer_norm/layer_norm_{name}", (d_model,))
            weights[f"{ours}.{part}"] = found

    depth = config.num_encoder_layers if side == "encoder" else config.num_decoder_layers
    for number in range(depth):
        layer, prefix = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
        for ours, theirs in list(_ATTENTIONS.items())[: 1 + (side == "decoder")]:
            for projection, kernel in _PROJECTIONS.items():
                name = f"{layer}/{theirs}/multihead_attention/{kernel}/kernel"
                weights[f"{prefix}.{ours}.{projection}.weight"] = reader.take(
                    name, shapes[kernel]
                ).T.contiguous()
            take_norm(f"{prefix}.{ours}_layer_norm", f"{layer}/{theirs}")
        for ours, theirs, shape in (
            ("fc1", "conv1", (d_model, config.d_ff)),
            ("fc2", "conv2", (config.d_ff, d_model)),
        ):
            matrix = reader.take(f"{layer}/ffn/{theirs}/kernel", shape)
            weights[f"{prefix}.{ours}.weight"] = matrix.T.contiguous()
            weights[f"{prefix}.{ours}.bias"] = reader.take(f"{layer}/ffn/{theirs}/bias", shape[1:])
        take_norm(f"{prefix}.ffn_layer_norm", f"{layer}/ffn")
    if config.layer_norm_position == "pre":
        take_norm(f"model.{side}.layer_norm", side)
    return weights
