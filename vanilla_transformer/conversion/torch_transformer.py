"""State dicts of `torch.nn.Transformer`, and the Annotated Transformer, which is refused.

Names and equations are those of torch 2.13's `nn/modules/transformer.py` and `activation.py`.
PyTorch's classes end at the two stacks: embeddings, positions and output layer are everybody's own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..modeling_vanilla_transformer import sinusoidal_positions
from .pytorch_files import load_pickled, load_safetensors, mentions
from .sinusoids import recognise_sinusoids
from .source import Checkpoint, Converted, Family, Reference, TensorReader, Tokenizers, refuse

_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_NESTED = ("state_dict", "model_state_dict", "model")

# What a state dict does not say. torch's own defaults hold for its own arguments.
_DEFAULTS: dict[str, Any] = {
    "norm_first": False,
    "activation": "relu",
    "layer_norm_eps": 1e-5,
    "dropout": 0.1,
    "position_encoding": None,
    "decoder_start_token_id": None,
}
_REQUIRED = {
    "nhead": "attention heads",
    "scale_embedding": "whether embeddings are multiplied by sqrt(d_model)",
    "pad_token_id": "id of the padding",
    "bos_token_id": "id that the decoder starts with",
    "eos_token_id": "id that ends a sentence",
}
_ACTIVATIONS = ("relu", "gelu")
_LAYOUTS = ("interleaved", "concatenated", "concatenated_inclusive")

_EMBEDDING = r"(tok_|token_|word_)?(emb|embed|embedder|embedding|embeddings)(\.\w+)?\.weight"
_SOURCE = rf"(.*\.)?(src|source|encoder|enc)_?{_EMBEDDING}"
_TARGET = rf"(.*\.)?(tgt|trg|target|decoder|dec)_?{_EMBEDDING}"
_SHARED = rf"(.*\.)?(shared_?)?{_EMBEDDING}"
_OUTPUT = (
    r"(.*\.)?(generator|fc_out|fc|out|output|output_layer|output_projection|linear|lm_head|head|proj"
    r"|projection)(\.\w+)?\.weight"
)
_POSITIONS = r"(.*[._])?(pe|pos|position|positions|positional)([._].*)?"


class TorchTransformerFamily(Family):
    """A state dict with an `nn.Transformer`, or an `nn.TransformerEncoder` and its decoder, in it.

    A `.pt`, `.pth`, `.bin` or `.safetensors`, or a directory that holds one. What the tensors do
    not say stands in a JSON file of the same name, or in `config.json` beside it:

    - `nhead`, `norm_first` (false), `activation` (`"relu"` or `"gelu"`), `layer_norm_eps` (1e-5)
      and `dropout` (0.1), as `nn.Transformer` takes them;
    - `scale_embedding`: whether embeddings are multiplied by sqrt(d_model);
    - `position_encoding`, `"interleaved"`, `"concatenated"` or `"concatenated_inclusive"`, where no
      table of positions (`pos_encoder.pe`, `positional_encoding.pos_embedding`) is stored;
    - `pad_token_id`, `bos_token_id`, `eos_token_id`, and `decoder_start_token_id`, which is
      `bos_token_id` unless given.

    The embeddings may be called `src_embedding.weight`, `src_tok_emb.embedding.weight`,
    `encoder_embedding.weight` and so on, likewise `tgt`, `trg`, `target`, `decoder`, or be one
    `embedding.weight`; the output layer `generator`, `fc_out`, `output_layer`, `lm_head`, `linear`.
    """

    name = "torch"
    title = "torch.nn.Transformer"

    def recognises(self, path: Path) -> bool:
        """A file with the attention of torch's decoder layer in it, or a directory of such."""
        names = ("self_attn.in_proj_weight", "multihead_attn.in_proj_weight")
        return any(mentions(file, *names) for file in _files(path))

    def read(self, path: Path) -> Checkpoint:
        """The state dict, also out of a training checkpoint, and the options beside it.

        Raises:
            ValueError: There is not one file, it is truncated, or holds a whole model, whose
                loading would run code.
        """
        files = _files(path)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "no file of tensors"
            raise ValueError(f"{path} holds {names}; give one file with a state dict")
        file = files[0]
        if file.suffix == ".safetensors":
            stored: Any = load_safetensors(file)
        else:
            stored = load_pickled(file, "save model.state_dict() with torch.save instead")
        for name in _NESTED:
            if isinstance(stored, Mapping) and isinstance(stored.get(name), Mapping):
                stored = stored[name]
        if not isinstance(stored, Mapping) or not all(map(torch.is_tensor, stored.values())):
            raise ValueError(f"{file} is no state dict, of names and tensors; save one")
        options = {}
        for beside in (file.with_suffix(".json"), file.parent / "config.json"):
            if beside.is_file():
                try:
                    options = json.loads(beside.read_text("utf-8"))
                except ValueError as error:
                    raise ValueError(f"{beside} is no whole JSON file ({error})") from error
                break
        return Checkpoint(dict(stored), options, file)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks.

        Raises:
            ValueError: Options are missing, which the message lists, or make another architecture;
                the tensors are not those of a Transformer.
        """
        model = _Model(checkpoint)
        options, reader = model.options, model.reader
        fields, weights = place_embeddings(*model.embeddings(), options["scale_embedding"])
        layout, offset, tables = model.positions()
        weights |= tables
        depth = {side: model.depth(side) for side in model.stacks}
        d_ff = len(reader.tensors.get(f"{model.stacks['encoder']}layers.0.linear1.weight", ()))
        config = VanillaTransformerConfig(
            **fields,
            d_ff=d_ff or 1,
            num_heads=options["nhead"],
            num_encoder_layers=depth["encoder"],
            num_decoder_layers=depth["decoder"],
            dropout=options["dropout"],
            layer_norm_position="pre" if options["norm_first"] else "post",
            final_layer_norm=model.has_norms,
            layer_norm_eps=options["layer_norm_eps"],
            position_encoding=layout,
            max_position_embeddings=len(next(iter(tables.values()))) if tables else None,
            position_offset=offset,
            activation=options["activation"],
            attention_bias=True,
            output_bias=model.output_bias in reader,
            pad_token_id=options["pad_token_id"],
            bos_token_id=options["bos_token_id"],
            eos_token_id=options["eos_token_id"],
            decoder_start_token_id=options["decoder_start_token_id"],
        )
        if config.output_bias:
            weights["lm_head.bias"] = reader.take(model.output_bias, (config.target_vocab_size,))
        weights |= _take_stacks(reader, model.stacks, config)
        reader.finish()
        return Converted(config, weights)

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """None: a state dict comes with none."""
        return Tokenizers(remarks=["No tokenizer: the source is a state dict alone."])

    def reference(self, checkpoint: Checkpoint) -> Reference:
        """Torch's own stacks between the embeddings and the output layer of the checkpoint."""
        return _TorchReference(checkpoint)


class AnnotatedTransformerFamily(Family):
    """The Annotated Transformer (Harvard NLP, `the_annotated_transformer.py`)."""

    name = "annotated"
    title = "The Annotated Transformer"

    def recognises(self, path: Path) -> bool:
        """A file with one of its norms in it, or a directory of such."""
        names = ("self_attn.linears.0.weight", "sublayer.0.norm.a_2")
        return any(mentions(file, *names) for file in _files(path))

    def read(self, path: Path) -> Checkpoint:
        """Nothing: no tensor of it can be used."""
        return Checkpoint({}, {}, path)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Refuses.

        Raises:
            ValueError: Always.
        """
        raise refuse(
            "LayerNorm",
            "a_2 * (x - mean) / (std + eps) + b_2",
            "it divides by the unbiased standard deviation plus eps, while a layer norm divides by "
            "the root of the variance plus eps. A factor sqrt((d - 1) / d) in a_2 makes up for the "
            "first, nothing for the second",
            "replace its class LayerNorm by torch.nn.LayerNorm(d_model, eps=1e-6), train on, and "
            "save the weights under the names of torch.nn.Transformer with norm_first",
        )


def place_embeddings(
    source: torch.Tensor, target: torch.Tensor, output: torch.Tensor, is_scaled: bool
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Both embeddings and the output layer, `[V, d]` each, and what the config says of them.

    Equal matrices become one. Where the source does not multiply embeddings by sqrt(d_model) they
    are divided by it here, which parts them from the output layer.
    """
    d_model = source.shape[1]
    if not is_scaled:
        source, target = source / math.sqrt(d_model), target / math.sqrt(d_model)
    is_tied = torch.equal(target, output)
    is_one = is_tied and torch.equal(source, target)
    weights = {"model.encoder.embed_tokens.weight": source}
    if not is_one:
        weights["model.decoder.embed_tokens.weight"] = target
    if not is_tied:
        weights["lm_head.weight"] = output
    fields = {
        "vocab_size": len(source),
        "decoder_vocab_size": None if len(source) == len(target) else len(target),
        "d_model": d_model,
        "tie_word_embeddings": is_tied,
        "share_embeddings": is_one,
    }
    return fields, weights


class _Model:
    """What the names and shapes of a state dict say.

    Attributes:
        options: Complete and checked.
        stacks: What names begin with in the `encoder` and the `decoder`.
        reader: Of all tensors.
        has_norms: Whether a norm ends each stack, which `nn.Transformer` itself always has.
    """

    def __init__(self, checkpoint: Checkpoint):
        tensors = checkpoint.tensors
        self.options = _options(checkpoint.options)
        self.reader = TensorReader(tensors, str(checkpoint.path or "the state dict"))
        starts = {
            (match[2] == "multihead_attn", match[1])
            for match in map(
                re.compile(r"(.*)layers\.0\.(self_attn|multihead_attn)\.in_proj_weight").fullmatch,
                tensors,
            )
            if match
        }
        decoders = [start for is_cross, start in starts if is_cross]
        encoders = [start for is_cross, start in starts if start not in decoders]
        if len(encoders) != 1 or len(decoders) != 1:
            raise ValueError(
                f"{self.reader.place} has {len(encoders)} encoders and {len(decoders)} decoders of "
                "torch.nn.Transformer; give a state dict with one of each"
            )
        self.stacks = {"encoder": encoders[0], "decoder": decoders[0]}
        self.has_norms = self._has_norms()
        self._others = [n for n in tensors if not n.startswith(tuple(self.stacks.values()))]
        self._sources, self._targets, self._outputs, self._tables = (
            [name for name in self._others if re.fullmatch(pattern, name)]
            for pattern in (_SOURCE, _TARGET, _OUTPUT, _POSITIONS)
        )
        if not self._sources and not self._targets:
            self._sources = [n for n in self._others if re.fullmatch(_SHARED, n)]
            self._targets = self._sources
        for what, names in (
            ("source embedding", self._sources),
            ("target embedding", self._targets),
            ("output layer", self._outputs),
        ):
            if len(names) != 1:
                raise ValueError(
                    f"which tensor of {self.reader.place} is the {what} cannot be told: "
                    f"{', '.join(names) or 'none'} of {', '.join(self._others)}. Name them "
                    "src_embedding.weight, tgt_embedding.weight and generator.weight"
                )
        self.output_bias = self._outputs[0].removesuffix("weight") + "bias"

    def _has_norms(self) -> bool:
        norms = {f"{start}norm.weight" in self.reader for start in self.stacks.values()}
        if len(norms) > 1:
            raise ValueError(
                f"{self.reader.place} has a norm after one of its two stacks alone; give one with "
                "both or none"
            )
        return norms.pop()

    def depth(self, side: str) -> int:
        pattern = re.compile(re.escape(self.stacks[side]) + r"layers\.(\d+)\..*")
        return 1 + max(
            int(match[1]) for match in map(pattern.fullmatch, self.reader.tensors) if match
        )

    def embeddings(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        names = self._sources[0], self._targets[0], self._outputs[0]
        d_model = self.reader.tensors[names[0]].shape[-1]

        def take(name: str) -> torch.Tensor:
            return self.reader.take(name, (len(self.reader.tensors[name]), d_model))

        source, target, output = map(take, names)
        return source, target, output

    def positions(self) -> tuple[str, int, dict[str, torch.Tensor]]:
        """Layout, first position and, where they are learned, the tables in our names."""
        found = {}
        for name in self._tables:
            stored = self.reader.tensors[name]
            # [L, d], [1, L, d] or [L, 1, d].
            table = self.reader.take(name, tuple(stored.shape)).reshape(-1, stored.shape[-1])
            found[name] = recognise_sinusoids(table), table
        kinds = {kind for kind, _ in found.values()}
        given = self.options["position_encoding"]
        if not found and given in _LAYOUTS:
            return given, 0, {}
        if len(kinds) != 1:
            raise ValueError(
                f"{self.reader.place} has {', '.join(found) or 'no table'} for its positions; "
                f"give one table, or position_encoding, one of {', '.join(_LAYOUTS)}, as an option"
            )
        kind = kinds.pop()
        if kind is not None:
            return *kind, {}
        tables = [table for _, table in found.values()]
        if len(tables) > 1:
            raise refuse(
                "positions",
                list(found),
                "which learned table is whose is not known",
                "store one table, which serves both stacks",
            )
        sides = ("encoder", "decoder")
        return "learned", 0, {f"model.{side}.embed_positions.weight": tables[0] for side in sides}


def _options(stored: Mapping[str, Any]) -> dict[str, Any]:
    options = _DEFAULTS | dict(stored)
    missing = [f"{name} ({what})" for name, what in _REQUIRED.items() if name not in options]
    if missing:
        raise ValueError(
            f"the state dict does not say {', '.join(missing)}; write them into a config.json "
            f"beside it, with what differs from the defaults {json.dumps(_DEFAULTS)}"
        )
    unknown = sorted(set(options) - set(_DEFAULTS) - set(_REQUIRED))
    if unknown:
        raise ValueError(f"the options {', '.join(unknown)} of the state dict are not known here")
    if options["activation"] not in _ACTIVATIONS:
        remedy = f"give one of {', '.join(_ACTIVATIONS)}"
        raise refuse("activation", options["activation"], "it is another one", remedy)
    if options["decoder_start_token_id"] is None:
        options["decoder_start_token_id"] = options["bos_token_id"]
    return options


def _take_stacks(
    reader: TensorReader, stacks: Mapping[str, str], config: VanillaTransformerConfig
) -> dict[str, torch.Tensor]:
    d_model, d_ff = config.d_model, config.d_ff
    weights = {}

    def take(ours: str, theirs: str, *shape: int) -> None:
        weights[f"{ours}.weight"] = reader.take(f"{theirs}.weight", shape)
        weights[f"{ours}.bias"] = reader.take(f"{theirs}.bias", shape[:1])

    for side, depth, attentions, norms in (
        ("encoder", config.num_encoder_layers, ("self_attn",), ("self_attn", "ffn")),
        (
            "decoder",
            config.num_decoder_layers,
            ("self_attn", "cross_attn"),
            ("self_attn", "cross_attn", "ffn"),
        ),
    ):
        for number in range(depth):
            ours, theirs = f"model.{side}.layers.{number}", f"{stacks[side]}layers.{number}"
            for attention in attentions:
                name = attention.replace("cross_attn", "multihead_attn")
                for part, shape in (("weight", (3 * d_model, d_model)), ("bias", (3 * d_model,))):
                    packed = reader.take(f"{theirs}.{name}.in_proj_{part}", shape)
                    for letter, one in zip("qkv", packed.chunk(3), strict=True):
                        weights[f"{ours}.{attention}.{letter}_proj.{part}"] = one.clone()
                take(f"{ours}.{attention}.o_proj", f"{theirs}.{name}.out_proj", d_model, d_model)
            take(f"{ours}.fc1", f"{theirs}.linear1", d_ff, d_model)
            take(f"{ours}.fc2", f"{theirs}.linear2", d_model, d_ff)
            for place, norm in enumerate(norms, 1):
                take(f"{ours}.{norm}_layer_norm", f"{theirs}.norm{place}", d_model)
        if config.final_layer_norm:
            take(f"model.{side}.layer_norm", f"{stacks[side]}norm", d_model)
    return weights


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)


class _TorchReference:
    """torch's own `nn.TransformerEncoder` and `nn.TransformerDecoder`, in evaluation mode."""

    def __init__(self, checkpoint: Checkpoint):
        model = _Model(checkpoint)
        self.options = model.options
        self.name = f"torch.nn.Transformer of torch {torch.__version__}"
        self.source, self.target, self.output = model.embeddings()
        self.bias = checkpoint.tensors.get(model.output_bias)
        self.layout, self.offset, self.tables = model.positions()
        self.encoder: nn.Module = self._stack(model, "encoder")
        self.decoder: nn.Module = self._stack(model, "decoder")

    def _stack(self, model: _Model, side: str) -> nn.Module:
        start, tensors = model.stacks[side], model.reader.tensors
        options, d_model = self.options, self.source.shape[1]
        d_ff = len(tensors[f"{start}layers.0.linear1.weight"])
        shape: dict[str, Any] = {"d_model": d_model, "dim_feedforward": d_ff, "batch_first": True}
        shared = ("nhead", "activation", "norm_first", "layer_norm_eps")
        shape |= {name: options[name] for name in shared}
        has_norm = f"{start}norm.weight" in tensors
        norm = nn.LayerNorm(d_model, eps=options["layer_norm_eps"]) if has_norm else None
        stack: nn.Module
        if side == "encoder":
            encoder = nn.TransformerEncoderLayer(**shape)
            stack = nn.TransformerEncoder(encoder, model.depth(side), norm, False)
        else:
            decoder = nn.TransformerDecoderLayer(**shape)
            stack = nn.TransformerDecoder(decoder, model.depth(side), norm)
        own = {n.removeprefix(start): t.float() for n, t in tensors.items() if n.startswith(start)}
        stack.load_state_dict(own)
        return stack.eval()

    def _embed(self, side: str, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        scale = math.sqrt(table.shape[1]) if self.options["scale_embedding"] else 1.0
        length = ids.shape[1]
        if self.tables:
            positions = self.tables[f"model.{side}.embed_positions.weight"][:length]
        else:
            numbers = torch.arange(self.offset, self.offset + length)
            positions = sinusoidal_positions(numbers, table.shape[1], self.layout)
        return F.embedding(ids, table) * scale + positions

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        return self.encoder(
            self._embed("encoder", self.source, input_ids),
            src_key_padding_mask=attention_mask == 0,
        )

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of every target position."""
        length = decoder_input_ids.shape[1]
        states = self.decoder(
            self._embed("decoder", self.target, decoder_input_ids),
            self.encode(input_ids, attention_mask),
            tgt_mask=torch.ones(length, length).triu(1).bool(),
            memory_key_padding_mask=attention_mask == 0,
        )
        return F.linear(states, self.output, self.bias)
