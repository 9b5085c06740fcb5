"""FSMT of transformers, its port of fairseq: facebook/wmt19-*, allenai/wmt16-* and wmt19-*.

Names and equations are those of transformers 5.23: `models/fsmt/modeling_fsmt.py`,
`configuration_fsmt.py` and `tokenization_fsmt.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from .bpe import build_tokenizers, check_symbols, missing_symbols, read_codes
from .fairseq_weights import ACTIVATIONS, POSITIONS_AND_NORMS, take_embeddings, take_stacks
from .pytorch_files import load_pickled, load_safetensors, plain
from .sinusoids import recognise_sinusoids
from .source import Checkpoint, Converted, Family, Reference, TensorReader, Tokenizers, refuse

_TEXT_FILES = ("vocab-src.json", "vocab-tgt.json", "merges.txt")

# The dictionaries of fairseq, from which these models come, have it at this place.
_UNK = 3

# `configuration_fsmt.py`: what holds where config.json is silent.
_DEFAULTS: dict[str, Any] = {
    "activation_function": "relu",
    "d_model": 1024,
    "encoder_ffn_dim": 4096,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "dropout": 0.1,
    "scale_embedding": True,
    "tie_word_embeddings": False,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_DECODING: dict[str, Any] = {
    "num_beams": 5,
    "length_penalty": 1.0,
    "early_stopping": False,
    "max_length": 200,
    "forced_eos_token_id": 2,
}
_MORE_DECODING = ("bad_words_ids", "suppress_tokens", "no_repeat_ngram_size", "min_length")


class FSMTFamily(Family):
    """A directory of config.json, weights, two vocabularies and merges."""

    name = "fsmt"
    title = "FSMT (transformers)"
    hub_patterns = (
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "model.safetensors",
        "pytorch_model.bin",
        *_TEXT_FILES,
    )

    def recognises(self, path: Path) -> bool:
        """A directory whose config.json is of the model type `fsmt`."""
        try:
            return json.loads((path / "config.json").read_text("utf-8"))["model_type"] == "fsmt"
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def read(self, path: Path) -> Checkpoint:
        """As `save_pretrained` wrote it.

        Raises:
            ValueError: A file is missing, truncated or holds code.
        """
        files = [path / "model.safetensors", path / "pytorch_model.bin"]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise ValueError(f"{path} has neither model.safetensors nor pytorch_model.bin")
        if file.suffix == ".safetensors":
            tensors = load_safetensors(file)
        else:
            tensors = dict(load_pickled(file, "get the checkpoint where it was published"))
        options: dict[str, Any] = {
            "config": _load_json(path / "config.json"),
            "generation": _load_json(path / "generation_config.json"),
            "tokenizer": _load_json(path / "tokenizer_config.json"),
        }
        if _has_texts(path):
            source = _load_json(path / "vocab-src.json")
            merges = read_codes(path / "merges.txt")
            options["unlisted"] = len(missing_symbols(source, merges))
        return Checkpoint(tensors, plain(options), path)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks.

        Raises:
            ValueError: An option makes it another architecture, or the tensors are not those of the
                options.
        """
        options = _DEFAULTS | checkpoint.options["config"]
        _check(options)
        pad = options["pad_token_id"]
        reader = TensorReader(checkpoint.tensors, str(checkpoint.path or "FSMT"))
        _check_positions(checkpoint.tensors, pad)
        fields, weights = take_embeddings(
            reader,
            "model.",
            options["d_model"],
            shares_all=options["tie_word_embeddings"],
            # Before transformers 5 the output layer was always the target embedding.
            shares_output="model.decoder.output_projection.weight" not in reader,
            num_unlisted=checkpoint.options.get("unlisted", 0),
            unknown=_UNK,
        )
        config = VanillaTransformerConfig(
            **fields,
            **POSITIONS_AND_NORMS,
            d_ff=options["encoder_ffn_dim"],
            decoder_d_ff=options["decoder_ffn_dim"],
            num_heads=options["encoder_attention_heads"],
            num_encoder_layers=options["encoder_layers"],
            num_decoder_layers=options["decoder_layers"],
            activation=ACTIVATIONS[options["activation_function"]],
            dropout=options["dropout"],
            position_offset=pad + 1,
            pad_token_id=pad,
            bos_token_id=options["bos_token_id"],
            eos_token_id=options["eos_token_id"],
            decoder_start_token_id=options["decoder_start_token_id"],
        )
        weights |= take_stacks(reader, "model.", config)
        reader.finish([r"model\.(en|de)coder\.embed_positions\.weight"])
        return Converted(config, weights, _decoding(checkpoint.options))

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """What `FSMTTokenizer` does, with the rules of sacremoses written into stock tokenizers.

        Raises:
            ValueError: sacremoses is not installed.
        """
        path = checkpoint.path
        if path is None or not _has_texts(path):
            return Tokenizers(remarks=[f"No tokenizer: {', '.join(_TEXT_FILES)} were not there."])
        settings = checkpoint.options["tokenizer"]
        if settings.get("do_lower_case"):
            raise refuse("do_lower_case", True, "its tokenizer makes capitals small", "ask for it")
        languages = settings.get("langs") or checkpoint.options["config"]["langs"]
        source, target = (_load_json(path / f"vocab-{side}.json") for side in ("src", "tgt"))
        config = converted.config
        rows = config.vocab_size - checkpoint.options.get("unlisted", 0)
        check_symbols(path / "vocab-src.json", source, rows)
        check_symbols(path / "vocab-tgt.json", target, config.target_vocab_size)
        return build_tokenizers(
            source,
            target,
            read_codes(path / "merges.txt"),
            (languages[0], languages[1]),
            normalises_punctuation=True,
        )

    def reference(self, checkpoint: Checkpoint) -> Reference:
        """`FSMTForConditionalGeneration` of transformers."""
        return _FSMTReference(checkpoint)


def _load_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); get it again") from error


def _has_texts(path: Path) -> bool:
    return all((path / name).is_file() for name in _TEXT_FILES)


def _check(options: Mapping[str, Any]) -> None:
    remedy = "give a checkpoint that has FSMT's default"
    if not options["scale_embedding"]:
        raise refuse("scale_embedding", False, "its embeddings are not scaled", remedy)
    if options["activation_function"] not in ACTIVATIONS:
        reason = f"only {', '.join(ACTIVATIONS)} are known"
        raise refuse("activation_function", options["activation_function"], reason, remedy)
    encoder, decoder = (options[f"{side}_attention_heads"] for side in ("encoder", "decoder"))
    if encoder != decoder:
        reason = f"it differs from encoder_attention_heads ({encoder})"
        raise refuse("decoder_attention_heads", decoder, reason, remedy)


def _check_positions(tensors: Mapping[str, torch.Tensor], pad: int) -> None:
    """Refuses tables, which newer transformers save, that are no sinusoids."""
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        # That of a pad is zero.
        if name in tensors and pad < 3:
            found = recognise_sinusoids(tensors[name][pad + 1 :])
            if found != ("concatenated_inclusive", pad + 1):
                raise refuse(name, found, "these are not FSMT's sinusoids", "get it again")


def _decoding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `generate`: of generation_config.json, else of the config as transformers 4 had.

    transformers divides by n^length_penalty.
    """
    given = {**options["config"], **options["generation"]}
    chosen = {name: given.get(name, default) for name, default in _DECODING.items()}
    chosen |= {name: given[name] for name in _MORE_DECODING if given.get(name)}
    return {name: value for name, value in chosen.items() if value is not None} | {
        "length_penalty_formula": "power"
    }


class _FSMTReference:
    """transformers' own model in evaluation mode."""

    def __init__(self, checkpoint: Checkpoint):
        import transformers
        from transformers import FSMTConfig, FSMTForConditionalGeneration

        self.name = f"transformers {transformers.__version__} (FSMT)"
        tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
        config = FSMTConfig(**checkpoint.options["config"])
        output = "model.decoder.output_projection.weight"
        if output not in tensors and not config.tie_word_embeddings:
            tensors[output] = tensors["model.decoder.embed_tokens.weight"]
        self.model = FSMTForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=tensors
        ).eval()
        self.num_symbols = config.src_vocab_size

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        encoder = self.model.get_encoder()
        return encoder(self._known(input_ids), attention_mask=attention_mask).last_hidden_state

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of every target position."""
        return self.model(
            self._known(input_ids),
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            # With a cache FSMT does not mask the future.
            use_cache=False,
        ).logits

    def _known(self, input_ids: torch.Tensor) -> torch.Tensor:
        # Rows that were added are of symbols that FSMT does not know.
        return input_ids.masked_fill(input_ids >= self.num_symbols, _UNK)
