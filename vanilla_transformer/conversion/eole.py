"""eole's checkpoints: directories of `config.json`, `vocab.json` and safetensors.

Names and equations are those of eole 0.6.4: `eole/models/model.py`, `eole/encoders/transformer.py`,
`eole/decoders/transformer.py`, `eole/modules/`; the equations are OpenNMT-py's.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .opennmt import (
    LAYOUTS,
    SIDES,
    Names,
    Rules,
    check_options,
    convert_model,
    layer_modules,
    load_whole,
)
from .opennmt_tokenizers import special_tokens, subword_tokenizers
from .pytorch_files import load_safetensors, plain
from .source import Checkpoint, Converted, Family, Reference, Tokenizers, refuse

_SHORT = {"encoder": "src", "decoder": "tgt"}

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "swish"}

_MODULES = {
    "self_attn": "input_layernorm",
    "ffn": "post_attention_layernorm",
    "fc1": "mlp.gate_up_proj",
    "fc2": "mlp.down_proj",
}
_NAMES = Names(
    embedding={side: f"{short}_emb.embeddings.weight" for side, short in _SHORT.items()},
    table={side: f"{short}_emb.pe.pe" for side, short in _SHORT.items()},
    modules={
        "encoder": layer_modules(
            "encoder.transformer_layers", {"self_attn": "self_attn"}, _MODULES
        ),
        "decoder": layer_modules(
            "decoder.transformer_layers",
            {"self_attn": "self_attn", "cross_attn": "context_attn"},
            _MODULES | {"cross_attn": "precontext_layernorm"},
        ),
    },
)

# Sizes that may be set for both sides at once, and `eole/config/models.py`'s own where
# config.json, which lists only what was set, is silent.
_DEFAULTS: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 512,
    "heads": 8,
    "heads_kv": None,
    "head_dim": None,
    "transformer_ff": 2048,
    "norm_eps": 1e-5,
}

_MODEL_RULES: Rules = (
    ("generator_function", ("softmax",), "another output distribution"),
    ("add_estimator", (False,), "an estimator of quality beside the translation"),
    ("left_pad", (False,), "padding before the words"),
)
_EMBEDDING_RULES: Rules = (
    ("embedding_type", ("standard",), "embeddings with more than words and positions"),
    ("position_encoding_type", ("SinusoidalInterleaved", *LAYOUTS), "no sinusoids are added"),
    ("embedding_layer_norm", (False,), "a norm after the embeddings"),
)
_SIDE_RULES: Rules = (
    ("heads_kv", (None,), "heads that share keys and values"),
    ("relative_positions_buckets", (0,), "relative positions"),
    ("mlp_activation_fn", tuple(_ACTIVATIONS), "gated or other feed-forward sub-layers"),
    ("layer_norm", ("standard", "standardFP32"), "norms that do not subtract the mean"),
    ("parallel_residual", (False,), "sub-layers side by side"),
    ("ffn_layernorm", (False,), "norms on both sides of a sub-layer"),
    ("attn_scaling", (None,), "another scale of attention"),
    ("sliding_window", (0,), "attention to the last few tokens alone"),
    ("num_experts", (0,), "mixtures of feed-forward sub-layers"),
    ("num_mtp_heads", (0,), "more than one token predicted at a time"),
    ("q_gating", (False,), "gated attention"),
    ("query_norm", (False,), "norms inside attention"),
    ("key_norm", (False,), "norms inside attention"),
    ("value_norm", (False,), "norms inside attention"),
    ("layer_types", (None,), "layers of several kinds"),
    ("encoder_layer_style", ("standard",), "norms after the encoder's sub-layers alone"),
    ("final_encoder_layer_norm", (True,), "pre-norm without a final norm"),
)


class EoleFamily(Family):
    """eole: a directory of `config.json`, `vocab.json` and safetensors."""

    name = "eole"
    title = "eole"
    hub_patterns = (
        "config.json",
        "vocab.json",
        "model.*.safetensors",
        "*.model",
        "eole-model/*",
    )

    def recognises(self, path: Path) -> bool:
        """A directory of eole's, or one that holds such a directory as `eole-model`."""
        return _folder(path) is not None

    def read(self, path: Path) -> Checkpoint:
        """As `eole/models/model_saver.py` wrote it.

        Raises:
            ValueError: A file is missing or truncated.
        """
        folder = _folder(path)
        if folder is None:
            raise ValueError(
                f"{path} is no model of eole: it needs config.json with a key 'model', vocab.json "
                "and model.00.safetensors"
            )
        config = _load_json(folder / "config.json")
        training = config.get("training") or {}
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("model.*.safetensors")):
            tensors |= load_safetensors(file)
        options = {
            "model": config["model"],
            "training": {
                name: training[name] for name in ("dropout", "label_smoothing") if name in training
            },
            "transforms": config.get("transforms") or [],
            "transforms_configs": config.get("transforms_configs") or {},
            "vocab": _load_json(folder / "vocab.json"),
        }
        return Checkpoint(tensors, plain(options), folder)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks; see the module's docstring for where the names are from."""
        model, training = checkpoint.options["model"], checkpoint.options["training"]
        check_options(model, _MODEL_RULES, "model.")
        embeddings = model.get("embeddings") or {}
        check_options(embeddings, _EMBEDDING_RULES, "model.embeddings.")
        encoder, decoder = (_side(model, side) for side in SIDES)
        for name in ("heads", "head_dim", "norm_eps", "mlp_activation_fn", "hidden_size"):
            if encoder[name] != decoder[name]:
                reason = f"the encoder has {encoder[name]!r}, so that the two stacks differ"
                remedy = "give a checkpoint with one value for both"
                raise refuse(f"model.decoder.{name}", decoder[name], reason, remedy)
        dropout = training.get("dropout", [0.1])
        return convert_model(
            checkpoint,
            _NAMES,
            {"encoder": _biased(encoder), "decoder": _biased(decoder)},
            shares_embeddings=model.get("share_embeddings", False),
            shares_output=model.get("share_decoder_embeddings", False),
            positions=embeddings.get("position_encoding_type", "SinusoidalInterleaved"),
            # A number of other models' layers, which this architecture does not multiply by.
            ignore=[r"(en|de)coder\.transformer_layers\.\d+\.layer_scalar"],
            d_model=encoder["hidden_size"],
            d_ff=encoder["transformer_ff"],
            decoder_d_ff=decoder["transformer_ff"],
            num_heads=encoder["heads"],
            d_k=encoder["head_dim"],
            d_v=encoder["head_dim"],
            num_encoder_layers=encoder["layers"],
            num_decoder_layers=decoder["layers"],
            dropout=dropout[0] if isinstance(dropout, list) else dropout,
            label_smoothing=training.get("label_smoothing", 0.0),
            layer_norm_eps=encoder["norm_eps"],
            activation=_ACTIVATIONS[encoder["mlp_activation_fn"]],
            output_bias=model.get("generator_bias", True),
        )

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """What the transforms did, whose files eole stores in the same directory."""
        names = checkpoint.options["transforms"]
        settings = checkpoint.options["transforms_configs"]
        cutting = [
            settings[name] for name in names if "src_subword_model" in settings.get(name, {})
        ]
        folder = checkpoint.path
        return subword_tokenizers(
            names,
            cutting[0] if cutting else {},
            [folder, folder.parent] if folder else [],
            checkpoint.options["vocab"],
            converted.config,
        )

    def reference(self, checkpoint: Checkpoint) -> Reference:
        """The model that eole's own classes make of the configuration."""
        return _EoleReference(checkpoint)


def _side(model: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Options of the encoder or decoder: what a side does not set, the model sets for both.

    Raises:
        ValueError: One of them makes another architecture.
    """
    own = model.get(side) or {}
    default = "transformer" if model.get("architecture") == "transformer" else None
    kind = own.get(f"{side}_type", default)
    rule = (f"{side}_type", ("transformer",), f"its {side} is another one")
    check_options({f"{side}_type": kind}, [rule], f"model.{side}.")
    # -1 is eole's "not set" of the whole model's sizes.
    shared = {name: value for name, value in model.items() if value not in (None, -1)}
    chosen = _DEFAULTS | {"mlp_activation_fn": "relu"} | shared | own
    chosen["head_dim"] = chosen["head_dim"] or chosen["hidden_size"] // chosen["heads"]
    if chosen["heads_kv"] == chosen["heads"]:
        chosen["heads_kv"] = None
    check_options(chosen, _SIDE_RULES, f"model.{side}.")
    return chosen


def _biased(chosen: Mapping[str, Any]) -> set[str]:
    """Modules with biases: those of keys and of the output follow those of queries, unless set."""
    queries = chosen.get("add_qkvbias", False)
    key, output = chosen.get("add_key_bias"), chosen.get("add_final_linear_bias")
    given = {
        "q_proj": queries,
        "k_proj": queries if key is None else key,
        "v_proj": queries,
        "o_proj": queries if output is None else output,
        "fc1": chosen.get("add_ffnbias", False),
        "fc2": chosen.get("add_ffnbias", False),
    }
    return {name for name, has_bias in given.items() if has_bias}


def _folder(path: Path) -> Path | None:
    for folder in (path, path / "eole-model"):
        if (folder / "vocab.json").is_file() and any(folder.glob("model.*.safetensors")):
            config = folder / "config.json"
            if config.is_file() and '"model"' in config.read_text("utf-8"):
                return folder
    return None


def _load_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); get it again") from error


class _EoleReference:
    """eole's own model in evaluation mode."""

    def __init__(self, checkpoint: Checkpoint):
        try:
            import eole
            from eole.config.models import TransformerModelConfig
            from eole.inputters.inputter import dict_to_vocabs
            from eole.models.model import get_model_class
        except ImportError as error:
            raise ImportError("eole is not installed; pip install eole==0.6.4") from error
        self.name = f"eole {eole.__version__}"
        config = TransformerModelConfig(**copy.deepcopy(checkpoint.options["model"]))
        vocab = copy.deepcopy(checkpoint.options["vocab"])
        vocab["specials"] = special_tokens(vocab)
        running = argparse.Namespace(dropout=[0.0], attention_dropout=[0.0], use_ckpting=[])
        self.model = get_model_class(config).build(config, dict_to_vocabs(vocab), running)
        load_whole(self.model, checkpoint.tensors)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        padding = ~attention_mask.bool().unsqueeze(1)
        return self.model.encoder(self.model.src_emb(input_ids), pad_mask=padding)[0]

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of every target position."""
        # One token more, as eole takes a single one for a step of cached decoding.
        target = torch.cat((decoder_input_ids, decoder_input_ids[:, :1]), dim=1)
        decoded = self.model.decoder(
            self.model.tgt_emb(target),
            enc_out=self.encode(input_ids, attention_mask),
            src_pad_mask=~attention_mask.bool().unsqueeze(1),
            tgt_pad_mask=torch.zeros_like(target, dtype=torch.bool).unsqueeze(1),
        )[0]
        return self.model.generator(decoded[:, :-1])
