"""To CTranslate2 (https://opennmt.net/CTranslate2), a fast engine for CPUs and GPUs.

How its search relates to this package's, for what `DecodingSettings` and a generation config say:

- Greedy search and the hypotheses that a beam visits are the same.
- CTranslate2 knows n^alpha alone. `CTranslate2Translator` therefore asks for all finished
  hypotheses and ranks them by either formula itself, which is exact: in both programs the formula
  chooses among finished hypotheses and never steers the beam.
- CTranslate2 stops when patience times `num_beams` hypotheses have finished. With patience 1 that
  is `early_stopping=True` here, exactly. The default here goes on where an unfinished one may still
  win, which patience 2 stands for: near, not exact. Of 1,000 sentences of a tiny trained model it
  gave 1,000 the same output, and patience 1 gave 991.
- An output's own limit, its source and 50 tokens, holds: outputs beyond it are searched again by
  themselves. At the limit the model's `</s>` is forced, CTranslate2's output cut one token before
  it: the same text, but a beam has not scored that `</s>`.
- `suppress_tokens`, `bad_words_ids` and `min_new_tokens` are kept, and probabilities are always
  those among the tokens allowed, `renormalize_logits=True` here. Whatever else a generation config
  asks for is refused.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..modeling_vanilla_transformer import (
    PaperLengthPenalty,
    VanillaTransformerForConditionalGeneration,
    sinusoidal_positions,
)
from .procedure import Export, require, write_export
from .translator import ExportedTranslator, reading

logger = logging.getLogger(__package__)

Precision = Literal["float32", "float16", "int8"]

MAX_POSITIONS = 2048
"""Rows of the tables that stand for sinusoids, which have no last position here."""

# Fields of a generation config that `CTranslate2Translator` follows, or that change no outcome.
_FOLLOWED = frozenset(
    {
        "bad_words_ids",
        "bos_token_id",
        "decoder_start_token_id",
        "early_stopping",
        "eos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "length_penalty_formula",
        "max_length",
        "max_new_tokens",
        "max_tokens_over_source",
        "min_new_tokens",
        "num_beams",
        "pad_token_id",
        "renormalize_logits",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "transformers_version",
        "use_cache",
    }
)


def export_ctranslate2(
    model_directory: str | Path,
    output: str | Path,
    *,
    precision: Precision = "float32",
    sentences: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    report: Callable[[str], None] = logger.info,
) -> Export:
    """Writes a model as CTranslate2's `Translator` loads it, with vocabularies and tokenizer.

    Outputs are compared with the model's own, on the CPU, by a beam that stops early in both.

    Args:
        model_directory: A model directory, a run directory or a Hub id.
        output: Directory to write; must not be there yet, or be empty.
        precision: Of the weights in the file. CTranslate2 computes in it where the device can;
            where not, as with float16 on a CPU, in float32.
        sentences: To compare outputs on; by default some of the embedded corpus.
        references: Their translations, for BLEU.
        report: Told of the size and the agreement.

    Raises:
        ValueError: An option of the model that CTranslate2 does not have; `output` is in use;
            outputs in float32 do not agree; CTranslate2 is not installed. Nothing is written.
    """
    if precision not in ("float32", "float16", "int8"):
        raise ValueError(f"precision ({precision!r}) must be float32, float16 or int8")
    library = require("ctranslate2")

    def write(
        model: VanillaTransformerForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        directory: Path,
    ) -> None:
        check_generation(model.generation_config)
        write_ctranslate2(model, tokenizer, directory, precision=precision)

    return write_export(
        model_directory,
        output,
        write,
        CTranslate2Translator,
        record={
            "format": "ctranslate2",
            "precision": precision,
            "max_positions": MAX_POSITIONS,
            "ctranslate2": library.__version__,
        },
        is_exact=precision == "float32",
        sentences=sentences,
        references=references,
        report=report,
        early_stopping=True,
    )


def check_architecture(config: VanillaTransformerConfig) -> None:
    """Refuses what CTranslate2 does not compute.

    Raises:
        ValueError: With the option.
    """
    width = config.d_model // config.num_heads
    for name, held in {"d_k": width, "d_v": width, "num_segments": 0}.items():
        if getattr(config, name) != held:
            raise ValueError(
                f"{name} ({getattr(config, name)}) must be {held} for CTranslate2; export to "
                "another format"
            )
    if config.d_model % config.num_heads:
        raise ValueError(
            f"d_model ({config.d_model}) must be divisible by num_heads ({config.num_heads}) for "
            "CTranslate2; export to another format"
        )
    if config.final_layer_norm != (config.layer_norm_position == "pre"):
        raise ValueError(
            f"final_layer_norm ({config.final_layer_norm}) must be what CTranslate2 derives from "
            f"layer_norm_position ({config.layer_norm_position!r}); export to another format"
        )
    if not isinstance(config.eos_token_id, int):
        raise ValueError(
            f"eos_token_id ({config.eos_token_id}) must be one id for CTranslate2; set it in the "
            "config"
        )


def check_generation(config: GenerationConfig) -> None:
    """Refuses a way to search that CTranslate2 is not told of.

    Raises:
        ValueError: With the setting.
    """
    defaults = {**GenerationConfig().__dict__, **config._get_default_generation_params()}
    for name, value in config.__dict__.items():
        if name.startswith("_") or name in _FOLLOWED:
            continue
        if value not in (None, False, defaults.get(name)):
            raise ValueError(
                f"{name} ({value!r}) of the generation config is not carried over to CTranslate2; "
                "set it to None there, or export to another format"
            )


def write_ctranslate2(
    model: VanillaTransformerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    precision: Precision = "float32",
) -> None:
    """Writes weights, vocabularies and `config.json` of a model of CTranslate2.

    Args:
        model: Any; it stays as it is.
        tokenizer: Its tokens become the vocabularies.
        directory: There, without such files.
        precision: Of the weights.

    Raises:
        ValueError: An option of the model that CTranslate2 does not have.
    """
    config = model.config
    check_architecture(config)
    assert isinstance(config.eos_token_id, int)
    specs = require("ctranslate2.specs")
    activations = {"relu": "RELU", "swish": "SWISH", "gelu": "GELU"}
    spec = specs.TransformerSpec.from_config(
        (config.num_encoder_layers, config.num_decoder_layers),
        config.num_heads,
        pre_norm=config.layer_norm_position == "pre",
        activation=getattr(specs.Activation, activations[config.activation]),
    )
    # Copies: to quantise, CTranslate2 writes into the memory it is given.
    weights = {
        name: tensor.to("cpu", torch.float32, copy=True)
        for name, tensor in model.state_dict().items()
    }

    def set_linear(linear: Any, *names: str) -> None:
        linear.weight = torch.cat([weights[f"{name}.weight"] for name in names]).numpy()
        if f"{names[0]}.bias" in weights:
            linear.bias = torch.cat([weights[f"{name}.bias"] for name in names]).numpy()

    def set_norm(norm: Any, name: str) -> None:
        norm.gamma = weights[f"{name}.weight"].numpy()
        norm.beta = weights[f"{name}.bias"].numpy()

    for stack, embeddings in (
        ("encoder", spec.encoder.embeddings[0]),
        ("decoder", spec.decoder.embeddings),
    ):
        part, prefix = getattr(spec, stack), f"model.{stack}"
        embeddings.weight = weights[f"{prefix}.embed_tokens.weight"].numpy()
        part.scale_embeddings = math.sqrt(config.d_model)
        learned = weights.get(f"{prefix}.embed_positions.weight")
        part.position_encodings.encodings = position_table(config, learned).numpy()
        if config.layer_norm_position == "pre":
            set_norm(part.layer_norm, f"{prefix}.layer_norm")
        for i, layer in enumerate(part.layer):
            name = f"{prefix}.layers.{i}"
            queries, keys, values, outputs = (f"{name}.self_attn.{x}_proj" for x in "qkvo")
            set_linear(layer.self_attention.linear[0], queries, keys, values)
            set_linear(layer.self_attention.linear[1], outputs)
            set_norm(layer.self_attention.layer_norm, f"{name}.self_attn_layer_norm")
            if stack == "decoder":
                queries, keys, values, outputs = (f"{name}.cross_attn.{x}_proj" for x in "qkvo")
                set_linear(layer.attention.linear[0], queries)
                set_linear(layer.attention.linear[1], keys, values)
                set_linear(layer.attention.linear[2], outputs)
                set_norm(layer.attention.layer_norm, f"{name}.cross_attn_layer_norm")
            set_linear(layer.ffn.linear_0, f"{name}.fc1")
            set_linear(layer.ffn.linear_1, f"{name}.fc2")
            set_norm(layer.ffn.layer_norm, f"{name}.ffn_layer_norm")
    set_linear(spec.decoder.projection, "lm_head")

    source = vocabulary(tokenizer, config.vocab_size)
    target = vocabulary(getattr(tokenizer, "target", tokenizer), config.target_vocab_size)
    spec.register_source_vocabulary(source)
    spec.register_target_vocabulary(target)
    unknown = tokenizer.unk_token_id
    bos = config.decoder_start_token_id if config.bos_token_id is None else config.bos_token_id
    # It asks for an unknown token, although no id is.
    spec.config.unk_token = source[config.pad_token_id if unknown is None else unknown]
    spec.config.bos_token = target[bos]
    spec.config.eos_token = target[config.eos_token_id]
    spec.config.decoder_start_token = target[config.decoder_start_token_id]
    # The tokenizer has already put it there.
    spec.config.add_source_eos = False
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.validate()
    spec.optimize(None if precision == "float32" else precision)
    spec.save(str(directory))


def position_table(
    config: VanillaTransformerConfig, learned: torch.Tensor | None = None
) -> torch.Tensor:
    """Encodings of positions 0, 1, ... with the offset, `[rows, d]`."""
    if learned is not None:
        return learned[config.position_offset :].clone()
    positions = torch.arange(MAX_POSITIONS) + config.position_offset
    return sinusoidal_positions(positions, config.d_model, config.position_encoding)


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """The token of each id; ids that no text gives have a name of their own."""
    tokens = {i: token for token, i in tokenizer.get_vocab().items()}
    return [tokens.get(i, f"<unused {i}>") for i in range(size)]


class CTranslate2Translator(ExportedTranslator):
    """A model that `export_ctranslate2` has written.

    ```python
    CTranslate2Translator("model-ct2").translate(["The dog sees the cat."])
    ```

    Args:
        directory: Of the export.
        device: "cpu", "cuda" or "auto".
        compute_type: "default" is that of the file where the device can.
        threads: Of a CPU; 0 leaves it to CTranslate2.
    """

    def __init__(
        self,
        directory: str | Path,
        device: str = "cpu",
        compute_type: str = "default",
        threads: int = 0,
    ):
        super().__init__(directory)
        library = require("ctranslate2")
        check_generation(self.generation_config)
        config = self.generation_config
        for name in ("min_new_tokens", "max_new_tokens", "max_length"):
            value = getattr(config, name)
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(
                    f"{name} ({value!r}) in generation_config.json of {self.directory} must be a "
                    "number of tokens"
                )
        self.source_tokens, self.target_tokens = (
            read_vocabulary(self.directory, side) for side in ("source", "target")
        )
        target = getattr(self.tokenizer, "target", self.tokenizer)
        for side, tokens, tokenizer in (
            ("source", self.source_tokens, self.tokenizer),
            ("target", self.target_tokens, target),
        ):
            if len(tokens) < len(tokenizer) or tokens != vocabulary(tokenizer, len(tokens)):
                raise ValueError(
                    f"the {side} vocabulary of {self.directory} is not that of the tokenizer "
                    "beside it; export the model again"
                )
        self.target_ids = {token: i for i, token in enumerate(self.target_tokens)}
        with reading(self.directory):
            suppressed = [[i] for i in config.suppress_tokens or []] + (config.bad_words_ids or [])
            self.arguments = {
                "suppress_sequences": [[self.target_tokens[i] for i in ids] for ids in suppressed]
                or None,
                "min_decoding_length": config.min_new_tokens or 0,
            }
        # As in `generate`, it goes before the limit over the source.
        self.max_new_tokens = config.max_new_tokens
        if config.max_length is not None and self.max_new_tokens is None:
            self.max_new_tokens = max(1, config.max_length - 1)
        if compute_type == "default" and self.record.get("precision") == "float16":
            # What CTranslate2 falls back on too, but with a warning each time.
            can = "float16" in library.get_supported_compute_types(device)
            compute_type = "float16" if can else "float32"
        with reading(self.directory):
            self.translator = library.Translator(
                str(self.directory), device=device, compute_type=compute_type, intra_threads=threads
            )

    def generate(self, sources: Sequence[Sequence[int]], **arguments: Any) -> list[list[int]]:
        """See `ExportedTranslator`, and the module's docstring for what is exact."""
        config = self.decoding
        beams = arguments.get("num_beams", config.num_beams)
        alpha = arguments.get("length_penalty", config.length_penalty)
        formula = arguments.get("length_penalty_formula", config.length_penalty_formula)
        penalty = PaperLengthPenalty(alpha) if formula == "paper" else alpha
        over = arguments.get("max_tokens_over_source", config.max_tokens_over_source)
        stopping = arguments.get("early_stopping", self.generation_config.early_stopping)
        patience = 1 if beams == 1 or stopping is True else 2
        most = arguments.get("max_new_tokens", self.max_new_tokens)
        # Of an own limit `</s>` would be the last token.
        limits = [
            min(most or max(1, len(source) + over - 1), self.max_positions or MAX_POSITIONS)
            for source in sources
        ]
        best: list[list[int]] = [[]] * len(sources)
        rest: dict[int, list[int]] = {max(limits): list(range(len(sources)))}
        while rest:
            limit, batch = rest.popitem()
            found = self._search([sources[i] for i in batch], beams, patience, alpha, limit)
            again = defaultdict(list)
            for i, hypotheses in zip(batch, found, strict=True):
                if max(len(ids) for ids, _ in hypotheses) > limits[i]:
                    again[limits[i]].append(i)
                else:
                    best[i] = max(hypotheses, key=lambda pair: pair[1] / len(pair[0]) ** penalty)[0]
            # Only the first search, whose limit is the largest, leaves any.
            rest |= again
        return best

    def _search(
        self,
        sources: Sequence[Sequence[int]],
        beams: int,
        patience: int,
        alpha: float,
        limit: int,
    ) -> list[list[tuple[list[int], float]]]:
        """All finished hypotheses of each source, with their log-probabilities."""
        results = self.translator.translate_batch(
            [[self.source_tokens[i] for i in source] for source in sources],
            beam_size=beams,
            patience=patience,
            num_hypotheses=beams * patience,
            length_penalty=alpha,
            max_decoding_length=limit,
            max_input_length=0,
            return_scores=True,
            return_end_token=True,
            **self.arguments,
        )
        found = []
        for result in results:
            hypotheses = [[self.target_ids[t] for t in tokens] for tokens in result.hypotheses]
            # It gives log P / n^alpha.
            totals = [
                score * len(ids) ** alpha
                for ids, score in zip(hypotheses, result.scores, strict=True)
            ]
            found.append(list(zip(hypotheses, totals, strict=True)))
        return found


def read_vocabulary(directory: Path, side: str) -> list[str]:
    """The tokens of "source" or "target" of a model of CTranslate2.

    Raises:
        ValueError: There are none.
    """
    for name in ("shared", side):
        path = directory / f"{name}_vocabulary.json"
        if path.exists():
            with reading(directory):
                tokens = json.loads(path.read_text("utf-8"))
            if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
                raise ValueError(f"{path} must hold a list of tokens; export the model again")
            return tokens
    raise ValueError(
        f"{directory} holds no {side}_vocabulary.json; give a directory that export has written"
    )
