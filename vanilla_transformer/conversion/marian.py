"""MarianMT of transformers: OPUS-MT and the models of the Tatoeba Challenge (tc-big).

Names and equations are those of transformers' `models/marian/modeling_marian.py`, as of 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, MarianConfig, MarianMTModel

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..tokenization import TARGET_TOKENIZER, TwoSidedTokenizer, load_tokenizer
from .pytorch_files import load_pickled, load_safetensors
from .sentencepiece import marian_tokenizers
from .sinusoids import recognise_sinusoids
from .source import Checkpoint, Converted, Family, TensorReader, Tokenizers, refuse

LAYER_NORM_EPS = 1e-5
"""MarianMT's norms are torch's, with torch's default: no option says another."""

# A layer's names here, without `weight` and `bias`, and in MarianMT; those of norms below.
PROJECTIONS = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}
ATTENTIONS = {"self_attn": "self_attn", "cross_attn": "encoder_attn"}

_GENERATION = (
    "bad_words_ids",
    "early_stopping",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "no_repeat_ngram_size",
    "num_beams",
    "renormalize_logits",
    "repetition_penalty",
)


def layer_names(side: str) -> dict[str, str]:
    """Modules of a layer of the encoder or the decoder: the name here to that of MarianMT."""
    names = {"fc1": "fc1", "fc2": "fc2", "ffn_layer_norm": "final_layer_norm"}
    for ours, theirs in ATTENTIONS.items():
        if (side, ours) != ("encoder", "cross_attn"):
            names[f"{ours}_layer_norm"] = f"{theirs}_layer_norm"
            names |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in PROJECTIONS.items()}
    return names


class MarianFamily(Family):
    """A directory of `config.json` and `pytorch_model.bin` or `model.safetensors`."""

    name = "marian"
    title = "MarianMT (transformers)"
    hub_patterns = (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        f"{TARGET_TOKENIZER}/*",
        "vocab.json",
        "target_vocab.json",
        "source.spm",
        "target.spm",
    )

    def recognises(self, path: Path) -> bool:
        """A directory whose `config.json` has the model type `marian`."""
        config = path / "config.json"
        try:
            return config.is_file() and _load_json(config).get("model_type") == "marian"
        except ValueError:
            return False

    def read(self, path: Path) -> Checkpoint:
        """As transformers' `save_pretrained` wrote it; safetensors are preferred.

        Raises:
            ValueError: A file is missing or truncated, or holds more than tensors.
        """
        options = {"config": _load_json(path / "config.json"), "generation": {}}
        if (path / "generation_config.json").is_file():
            options["generation"] = _load_json(path / "generation_config.json")
        if (path / "model.safetensors").is_file():
            tensors = load_safetensors(path / "model.safetensors")
        elif (path / "pytorch_model.bin").is_file():
            remedy = "get its safetensors, or the original from the Hub"
            tensors = dict(load_pickled(path / "pytorch_model.bin", remedy))
        else:
            raise ValueError(
                f"{path} holds no weights: neither model.safetensors nor pytorch_model.bin is "
                "there; get the checkpoint again"
            )
        return Checkpoint(tensors, options, path)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks; see the module's docstring for where the names are from."""
        theirs = _marian_config(checkpoint)
        _check(theirs)
        reader = TensorReader(checkpoint.tensors, str(checkpoint.path or "the checkpoint"))
        has_output_bias = "final_logits_bias" in reader
        config = VanillaTransformerConfig(
            vocab_size=theirs.vocab_size,
            decoder_vocab_size=(
                None if theirs.share_encoder_decoder_embeddings else theirs.decoder_vocab_size
            ),
            d_model=theirs.d_model,
            d_ff=theirs.encoder_ffn_dim,
            decoder_d_ff=theirs.decoder_ffn_dim,
            num_heads=theirs.encoder_attention_heads,
            num_encoder_layers=theirs.encoder_layers,
            num_decoder_layers=theirs.decoder_layers,
            dropout=theirs.dropout,
            layer_norm_eps=LAYER_NORM_EPS,
            position_encoding=_positions(reader),
            activation={"silu": "swish"}.get(
                theirs.activation_function, theirs.activation_function
            ),
            attention_bias=True,
            tie_word_embeddings=theirs.tie_word_embeddings,
            share_embeddings=theirs.share_encoder_decoder_embeddings,
            output_bias=has_output_bias,
            pad_token_id=theirs.pad_token_id,
            bos_token_id=theirs.bos_token_id,
            eos_token_id=theirs.eos_token_id,
            decoder_start_token_id=theirs.decoder_start_token_id,
        )
        weights = _take_embeddings(reader, config)
        if has_output_bias:
            bias = reader.take("final_logits_bias", (1, config.target_vocab_size))
            weights["lm_head.bias"] = bias.squeeze(0)
        for side in ("encoder", "decoder"):
            weights |= _take_layers(reader, config, side)
        reader.finish()
        return Converted(config, weights, _generation(checkpoint))

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """Of `source.spm`, `target.spm`, `vocab.json` and, if there are two, `target_vocab.json`.

        Without these, the stock tokenizer that lies there, such as `to_marian` writes.

        Raises:
            ValueError: A file is damaged, or what reads SentencePiece models is not installed.
        """
        path = checkpoint.path
        if path is None:
            return Tokenizers()
        if not (path / "source.spm").is_file():
            return _stock_tokenizers(path)
        vocabularies = [_load_json(path / "vocab.json")] * 2
        if (path / "target_vocab.json").is_file() and not converted.config.share_embeddings:
            vocabularies[1] = _load_json(path / "target_vocab.json")
        pad = converted.config.pad_token_id
        assert pad is not None
        return marian_tokenizers(
            (path / "source.spm", path / "target.spm"), (vocabularies[0], vocabularies[1]), pad
        )

    def reference(self, checkpoint: Checkpoint) -> MarianReference:
        """MarianMT of transformers with the tensors of the checkpoint."""
        model = MarianMTModel.from_pretrained(
            None,
            config=_marian_config(checkpoint),
            state_dict=dict(checkpoint.tensors),
            dtype=torch.float32,
        )
        settings = _generation(checkpoint)
        settings.pop("length_penalty_formula")
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        ids = {name: getattr(model.config, name) for name in names}
        model.generation_config = GenerationConfig(**ids, **settings)
        return MarianReference(model)


class MarianReference:
    """MarianMT, run by transformers."""

    def __init__(self, model: MarianMTModel):
        self.model = model.eval()
        self.name = f"MarianMT of transformers {transformers.__version__}"

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        encoder = self.model.get_encoder()
        return encoder(input_ids, attention_mask=attention_mask).last_hidden_state

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of every target position."""
        return self.model(
            input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids
        ).logits


def _marian_config(checkpoint: Checkpoint) -> MarianConfig:
    # Old files have dozens of fields that are MBart's and BART's; MarianMT reads its own alone.
    known = {*MarianConfig.__dataclass_fields__}
    stored = checkpoint.options["config"]
    return MarianConfig(**{name: value for name, value in stored.items() if name in known})


def _check(config: MarianConfig) -> None:
    """Refuses what is another architecture.

    Raises:
        ValueError: The first such option, with value, reason and remedy.
    """
    shares = config.share_encoder_decoder_embeddings
    for name, allowed, reason in (
        ("scale_embedding", (True,), "embeddings that are not multiplied by sqrt(d_model)"),
        ("activation_function", ("relu", "swish", "silu", "gelu"), "another activation"),
        ("decoder_attention_heads", (config.encoder_attention_heads,), "heads differ by side"),
        (
            "tie_word_embeddings",
            (True,) if shares else (True, False),
            "shared embeddings with an output layer of its own",
        ),
    ):
        value = getattr(config, name)
        if value not in allowed:
            raise refuse(name, value, reason, f"give a checkpoint with one of {list(allowed)}")


def _positions(reader: TensorReader) -> str:
    """The layout of the stored tables; without one MarianMT computes its own.

    Raises:
        ValueError: A table is learned, or of another layout.
    """
    layouts = set()
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        found: tuple[str, int] | None = ("concatenated", 0)
        if name in reader:
            found = recognise_sinusoids(reader.take(name, tuple(reader.tensors[name].shape)))
        layouts.add(found)
    layout = layouts.pop()
    if layouts or layout is None or layout[1] != 0:
        raise ValueError(
            "this checkpoint's embed_positions are no sinusoids from position 0, or differ between "
            "encoder and decoder; MarianMT's are fixed: get the checkpoint again"
        )
    return layout[0]


def _take_embeddings(
    reader: TensorReader, config: VanillaTransformerConfig
) -> dict[str, torch.Tensor]:
    """Each matrix once; files hold one that is shared under some of its names or all.

    Raises:
        ValueError: What should be one matrix is not.
    """
    encoder, decoder = (f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder"))
    if config.share_embeddings:
        groups = [["model.shared.weight", encoder, decoder, "lm_head.weight"]]
    elif config.tie_word_embeddings:
        groups = [[encoder], [decoder, "lm_head.weight"]]
    else:
        groups = [[encoder], [decoder], ["lm_head.weight"]]
    weights = {}
    for names in groups:
        rows = config.vocab_size if encoder in names else config.target_vocab_size
        stored = [name for name in names if name in reader] or names[:1]
        matrices = [reader.take(name, (rows, config.d_model)) for name in stored]
        if not all(torch.equal(matrix, matrices[0]) for matrix in matrices):
            raise ValueError(
                f"this checkpoint's {' and '.join(stored)} differ, which are one matrix by its "
                "share_encoder_decoder_embeddings and tie_word_embeddings; get it again"
            )
        weights[encoder if encoder in names else names[0]] = matrices[0]
    return weights


def _take_layers(
    reader: TensorReader, config: VanillaTransformerConfig, side: str
) -> dict[str, torch.Tensor]:
    d_model = config.d_model
    d_ff = config.d_ff if side == "encoder" else config.decoder_d_ff
    assert d_ff is not None
    shapes: Mapping[str, tuple[int, ...]] = {"fc1": (d_ff, d_model), "fc2": (d_model, d_ff)}
    layers = config.num_encoder_layers if side == "encoder" else config.num_decoder_layers
    weights = {}
    for number in range(layers):
        prefix = f"model.{side}.layers.{number}"
        for ours, theirs in layer_names(side).items():
            default = (d_model,) if ours.endswith("norm") else (d_model, d_model)
            shape = shapes.get(ours, default)
            for part, size in (("weight", shape), ("bias", shape[:1])):
                weights[f"{prefix}.{ours}.{part}"] = reader.take(f"{prefix}.{theirs}.{part}", size)
    return weights


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the source decodes with; before transformers 4.25 it stood in `config.json`."""
    stored = checkpoint.options["generation"] or checkpoint.options["config"]
    found = {name: stored[name] for name in _GENERATION if stored.get(name) is not None}
    return found | {"length_penalty_formula": "power"}


def _stock_tokenizers(path: Path) -> Tokenizers:
    if not (path / "tokenizer.json").is_file():
        return Tokenizers(
            remarks=["No tokenizer: neither source.spm nor tokenizer.json is beside the weights."]
        )
    try:
        found = load_tokenizer(path)
    # A damaged file is of no class of its own in `tokenizers`.
    except Exception as error:
        raise ValueError(
            f"{path / 'tokenizer.json'} and what is beside it is no whole tokenizer; get it again, "
            "or move it away to convert the model without"
        ) from error
    return Tokenizers(found, found.target if isinstance(found, TwoSidedTokenizer) else None)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); get it again") from error
