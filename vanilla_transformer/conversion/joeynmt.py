"""JoeyNMT's model directories: `config.yaml`, a `.ckpt` and two vocabularies.

Names and equations are those of JoeyNMT 2.3.0: `model.py`, `encoders.py`, `decoders.py`,
`transformer_layers.py`, `embeddings.py`, `vocabulary.py` and `search.py`. Those of 1.x are the
same where `layer_norm` is `pre`, which was all that 1.x had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from . import moses
from .bpe import check_symbols, missing_symbols, read_codes
from .pytorch_files import load_pickled, mentions, plain
from .sentencepiece import marian_tokenizers
from .sinusoids import recognise_sinusoids
from .source import Checkpoint, Converted, Family, Reference, TensorReader, Tokenizers, refuse
from .torch_transformer import place_embeddings

# `vocabulary.py` puts these before all other tokens.
_UNK, _PAD, _BOS, _EOS = range(4)

# `transformer_layers.py`; no option says another.
_LAYER_NORM_EPS = 1e-6

_STEMS = ("config", "config_v2")
_REMEDY = (
    "where you trust it, load it with torch.load and save {'model_state': state['model_state']}"
)

# A layer's attention and norms: our name to JoeyNMT's.
_ATTENTIONS = {
    "encoder": {"self_attn": "src_src_att"},
    "decoder": {"self_attn": "trg_trg_att", "cross_attn": "src_trg_att"},
}
_NORMS = {
    "encoder": {"self_attn": "layer_norm", "ffn": "feed_forward.layer_norm"},
    "decoder": {
        "self_attn": "x_layer_norm",
        "cross_attn": "dec_layer_norm",
        "ffn": "feed_forward.layer_norm",
    },
}
_PROJECTIONS = {
    "q_proj": "q_layer",
    "k_proj": "k_layer",
    "v_proj": "v_layer",
    "o_proj": "output_layer",
}

# What `build_model` takes where the file is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "encoder": {"type": "recurrent", "num_layers": 8, "num_heads": 4},
    "decoder": {"type": "transformer", "num_layers": 4, "num_heads": 8},
}
_COMMON: dict[str, Any] = {
    "hidden_size": 512,
    "ff_size": 2048,
    "dropout": 0.1,
    "alpha": 1.0,
    "activation": "relu",
}

_SPECIAL = ("unk_token", "pad_token", "bos_token", "eos_token")

# `remove_extra_spaces` of `helpers.py`.
_SPACES = [
    ("\u200b", ""),
    ("[ \u3000]+", " "),
    (" (?=[?!,.:])", ""),
    (r"\A\s+|\s+\z", ""),
]

_NO_TOKENIZER = (
    "No tokenizer: those of subword-nmt and SentencePiece are converted, where config.yaml names "
    "their codes or models, of one kind, and these and both vocabularies lie beside it."
)

_BEAM_REMARK = (
    "JoeyNMT's beam search keeps hypotheses that have ended in its beam, so that its translations "
    "may now and then differ from those of the same beam here; in the tests they were the same."
)


class JoeyNMTFamily(Family):
    """A model directory, or a `.ckpt` in one."""

    name = "joeynmt"
    title = "JoeyNMT"
    hub_patterns = ("*.yaml", "*.ckpt", "*.txt", "*.model", "*.vocab", "*codes*", "*bpe*")

    def recognises(self, path: Path) -> bool:
        """A `.ckpt` with the names of JoeyNMT's Transformer, or a directory that holds one."""
        files = sorted(path.glob("*.ckpt")) if path.is_dir() else [path]
        return any(mentions(file, "src_embed.lut.weight", "trg_trg_att") for file in files)

    def read(self, path: Path) -> Checkpoint:
        """Tensors of `best.ckpt`, or of the only `.ckpt`, and the options beside it.

        Raises:
            ValueError: A file is missing, truncated, or holds objects other than plain values.
        """
        file = _checkpoint_file(path)
        # Scores in the state of the training are numbers of NumPy.
        scalar = np.float64(0).__reduce__()[0]
        safe = (scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype("f8")))
        stored = load_pickled(file, _REMEDY, safe)
        if not isinstance(stored, Mapping) or not isinstance(stored.get("model_state"), Mapping):
            raise ValueError(f"{file} is no checkpoint of JoeyNMT: it has no 'model_state'")
        options = plain(_config(file.parent))
        source, _ = _texts(file.parent, options["data"])
        if source is not None:
            options["unlisted"] = len(missing_symbols(source.symbols, source.merges))
        return Checkpoint(dict(stored["model_state"]), options, file)

    def convert(self, checkpoint: Checkpoint) -> Converted:
        """Weights of both stacks.

        Raises:
            ValueError: An option makes it another architecture, or the tensors are not those of the
                options.
        """
        options = checkpoint.options
        model = _model_options(checkpoint)
        encoder, decoder = model["encoder"], model["decoder"]
        reader = TensorReader(checkpoint.tensors, str(checkpoint.path or "the checkpoint"))
        d_model = encoder["hidden_size"]

        def matrix(name: str) -> torch.Tensor:
            return reader.take(name, (len(reader.tensors.get(name, range(4))), d_model))

        source, target, output = map(
            matrix, ("src_embed.lut.weight", "trg_embed.lut.weight", "decoder.output_layer.weight")
        )
        # Rows for symbols that a tokenizer has to know and the model does not (see `bpe.py`).
        added = source[_UNK].expand(options.get("unlisted", 0), -1)
        is_scaled = encoder["embeddings"].get("scale", False)
        fields, weights = place_embeddings(torch.cat((source, added)), target, output, is_scaled)
        for side in ("encoder", "decoder"):
            _take_positions(reader, f"{side}.pe.pe")
        config = VanillaTransformerConfig(
            **fields,
            d_ff=encoder["ff_size"],
            decoder_d_ff=decoder["ff_size"],
            num_heads=encoder["num_heads"],
            num_encoder_layers=encoder["num_layers"],
            num_decoder_layers=decoder["num_layers"],
            dropout=encoder["dropout"],
            label_smoothing=(options.get("training") or {}).get("label_smoothing", 0.0),
            layer_norm_position=encoder["layer_norm"],
            layer_norm_eps=_LAYER_NORM_EPS,
            activation=encoder["activation"],
            attention_bias=True,
            pad_token_id=_PAD,
            bos_token_id=_BOS,
            eos_token_id=_EOS,
            decoder_start_token_id=_BOS,
        )
        for side in ("encoder", "decoder"):
            weights |= _take_stack(reader, side, model[side])
        reader.finish()
        generation, remarks = _decoding(options)
        return Converted(config, weights, generation, remarks)

    def tokenizers(self, checkpoint: Checkpoint, converted: Converted) -> Tokenizers:
        """JoeyNMT's own cutting of texts, by codes of subword-nmt or models of SentencePiece.

        Raises:
            ValueError: A vocabulary is of another checkpoint, a model is not unigram, or what reads
                it is not installed, or sacremoses, whose rules are written into the tokenizers
                where JoeyNMT applies them.
        """
        if checkpoint.path is None:
            return Tokenizers()
        source, target = _texts(checkpoint.path.parent, checkpoint.options["data"])
        if source is None or target is None:
            return Tokenizers(remarks=[_NO_TOKENIZER])
        config, added = converted.config, missing_symbols(source.symbols, source.merges)
        check_symbols(source.file, source.symbols, config.vocab_size - len(added))
        check_symbols(target.file, target.symbols, config.target_vocab_size)
        remarks = []
        if source.model is not None and target.model is not None:
            remarks.append(
                "Where two ways to cut a word are equally likely, rounding decides, now and then "
                "otherwise than in SentencePiece: in the tests in one of 10,000 lines of newstest. "
                "</s>, <unk> and <pad> in a text are taken for the tokens of these names."
            )
        if added:
            remarks.append(
                f"{len(added)} symbols that the byte-pair encoding passes on its way are not in "
                f"the source vocabulary. They are ids from {len(source.symbols)} on with the "
                "embedding of <unk>, where JoeyNMT cuts a word into smaller symbols that it knows. "
                "In the tests 25 to 43 of 10,000 lines of newstest had such a word; all others "
                "gave the same ids, and all the same text."
            )
        languages = {source.language, target.language} & set(moses.OTHER_RULES)
        if languages:
            remarks.append(
                f"Of Moses' rules those that are only for {', '.join(sorted(map(str, languages)))} "
                "are left out."
            )
        backends = _backends(source, target, added)
        writes = target if source.symbols == target.symbols else source
        return Tokenizers(
            _finish(backends[0], source, writes), _finish(backends[1], target, target), remarks
        )

    def reference(self, checkpoint: Checkpoint) -> Reference:
        """The model that JoeyNMT's own `build_model` makes of the options."""
        return _JoeyReference(checkpoint)


# --------------------------------------------------------------------------------- files, options


def _checkpoint_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.ckpt"))
    best = path / "best.ckpt"
    if best in files:
        return best
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "no .ckpt"
        raise ValueError(f"{path} holds {names} and no best.ckpt; give one .ckpt of it")
    return files[0]


def _config(folder: Path) -> dict[str, Any]:
    import yaml

    files = [folder / f"{stem}.yaml" for stem in _STEMS]
    found = [file for file in files if file.is_file()] or sorted(folder.glob("*.yaml"))
    if not found:
        raise ValueError(f"{folder} has no config.yaml; put the one of the checkpoint there")
    try:
        config = yaml.safe_load(found[0].read_text("utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{found[0]} is no whole YAML file ({error}); get it again") from error
    if not isinstance(config, dict) or not {"model", "data"} <= set(config):
        raise ValueError(f"{found[0]} is no configuration of JoeyNMT: it needs 'model' and 'data'")
    return config


def _model_options(checkpoint: Checkpoint) -> dict[str, Any]:
    """The part `model`, complete; refuses what makes another architecture."""
    model = dict(checkpoint.options["model"])
    for side in ("encoder", "decoder"):
        model[side] = _COMMON | _DEFAULTS[side] | model[side]
        # JoeyNMT 1.x had no such option and this norm; 2.x without the option has none.
        if f"{side}.layer_norm.weight" in checkpoint.tensors:
            model[side].setdefault("layer_norm", "pre")
    encoder, decoder = model["encoder"], model["decoder"]
    symbols = checkpoint.options["data"].get("special_symbols") or {}
    remedy = "give a checkpoint of a plain Transformer"
    for side, options in (("encoder", encoder), ("decoder", decoder)):
        for name, allowed, reason in (
            ("type", ("transformer",), "another kind of network"),
            ("alpha", (1.0,), "a weight of the residual connections"),
            ("activation", ("relu", "gelu", "swish"), "another activation"),
            ("layer_norm", ("pre", "post"), "an encoder of pre-norm without a final norm"),
        ):
            value = options.get(name)
            if value not in allowed:
                raise refuse(f"model.{side}.{name}", value, reason, remedy)
    for name in ("hidden_size", "num_heads", "layer_norm", "activation"):
        if encoder[name] != decoder[name]:
            reason = f"the encoder has {encoder[name]!r}"
            raise refuse(f"model.decoder.{name}", decoder[name], reason, remedy)
    scales = [options["embeddings"].get("scale", False) for options in (encoder, decoder)]
    # Tied embeddings are made by the encoder's options.
    if scales[0] != scales[1] and not model.get("tied_embeddings"):
        reason = f"the encoder has {scales[0]!r}"
        raise refuse("model.decoder.embeddings.scale", scales[1], reason, remedy)
    if model.get("initializer") == "xavier_normal":
        reason = "JoeyNMT then weighs the residual connections, as DeepNet does"
        raise refuse("model.initializer", "xavier_normal", reason, remedy)
    if symbols.get("sep_token"):
        reason = "the embedding of a mark is added to each token of a prompt and after it"
        raise refuse("data.special_symbols.sep_token", symbols["sep_token"], reason, remedy)
    return model


def _decoding(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """How JoeyNMT searches, as `parse_test_args` of its `config.py` reads it, and remarks."""
    testing = options.get("testing") or {}
    symbols = options["data"].get("special_symbols") or {}
    tags = symbols.get("lang_tags") or []
    beam = max(1, testing.get("beam_size", 1))
    # Up to 1.x it was called alpha; below 0 it is off.
    alpha = testing.get("alpha", testing.get("beam_alpha", -1))
    longest = testing.get("max_output_length")
    if longest is None:
        longest = (options.get("training") or {}).get("max_output_length") or -1
    suppressed = [_PAD, _BOS, *range(_EOS + 1, _EOS + 1 + len(tags))]
    generation: dict[str, Any] = {
        "num_beams": beam,
        "length_penalty": float(max(alpha, 0)),
        "length_penalty_formula": "paper",
        "min_new_tokens": testing.get("min_output_length", 1),
        "suppress_tokens": suppressed + [_UNK] * (not testing.get("generate_unk", True)),
    }
    remarks = [_BEAM_REMARK] if beam > 1 else []
    if longest > 0:
        # The start counts here.
        generation["max_length"] = longest + 1
    else:
        remarks.append(
            "JoeyNMT ends outputs at one and a half times the longest source of a batch; here they "
            "end 50 tokens after their own source's length."
        )
    for name in ("no_repeat_ngram_size", "repetition_penalty"):
        if testing.get(name, -1) > 1:
            remarks.append(
                f"Its {name} ({testing[name]}) was left out: JoeyNMT counts the source's tokens in."
            )
    return generation, remarks


# ------------------------------------------------------------------------------------------ texts


@dataclass(frozen=True)
class _Text:
    """How a side's texts are cut.

    Attributes:
        symbols: Ids, in the names of `bpe.py`: `lo</w>` for `lo`, `hel` for `hel@@`.
        merges: In order; none where `model` cuts.
        model: Of SentencePiece.
        language: By whose rules Moses cuts; None where it does not.
        normalises: Whether characters and blanks are made alike.
        lowercases: Whether texts are put into lower case.
        file: Of the vocabulary.
    """

    symbols: dict[str, int]
    merges: list[tuple[str, str]]
    model: Path | None
    language: str | None
    normalises: bool
    lowercases: bool
    file: Path


def _texts(folder: Path, data: Mapping[str, Any]) -> tuple[_Text, _Text] | tuple[None, None]:
    """Of both sides; None where one is cut otherwise or a file is missing."""
    source, target = (_text(folder, data, side) for side in ("src", "trg"))
    if source is None or target is None or (source.model is None) != (target.model is None):
        return None, None
    return source, target


def _text(folder: Path, data: Mapping[str, Any], side: str) -> _Text | None:
    options = data.get(side)
    # JoeyNMT 1.x, which has the language's name here, reads what was cut before.
    if not isinstance(options, Mapping) or options.get("level") != "bpe":
        return None
    kind = options.get("tokenizer_type", options.get("bpe_type", "sentencepiece"))
    chosen = options.get("tokenizer_cfg") or {}
    file = folder / Path(options.get("voc_file") or f"{side}_vocab.txt").name
    if not file.is_file():
        file = folder / f"{side}_vocab.txt"
    codes = folder / Path(chosen.get("codes") or chosen.get("model_file") or "").name
    if not file.is_file() or not codes.is_file():
        return None
    stored = data.get("special_symbols") or {}
    names = (("unk", "<unk>"), ("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"))
    special = [stored.get(f"{name}_token", default) for name, default in names]
    if kind == "sentencepiece" and special != [default for _, default in names]:
        return None
    special += stored.get("lang_tags") or []
    # As `read_list_from_file` and `Vocabulary` have it: line ends of any kind, the first counts.
    tokens = dict.fromkeys((*special, *file.read_text("utf-8").splitlines()))
    symbols = {token: number for number, token in enumerate(tokens)}
    if kind == "subword-nmt":
        mark = chosen.get("separator", "@@")
        symbols = {
            token
            if number < len(special)
            else token[: -len(mark)]
            if token.endswith(mark) and token != mark
            else f"{token}</w>": number
            for token, number in symbols.items()
        }
    return _Text(
        symbols,
        read_codes(codes) if kind == "subword-nmt" else [],
        codes if kind == "sentencepiece" else None,
        options["lang"] if chosen.get("pretokenizer") == "moses" else None,
        bool(options.get("normalize")),
        bool(options.get("lowercase")),
        file,
    )


def _backends(source: _Text, target: _Text, added: list[str]) -> list[Tokenizer]:
    """What cuts words into symbols, of both sides; `added` are the source's alone."""
    if source.model is not None and target.model is not None:
        models = source.model, target.model
        found = marian_tokenizers(models, (source.symbols, target.symbols), _PAD)
        return [side.backend_tokenizer for side in (found.source, found.target) if side is not None]
    lacking = set(missing_symbols(target.symbols, target.merges))
    kept = [pair for pair in target.merges if not lacking & {*pair, "".join(pair)}]
    extended = source.symbols | {s: len(source.symbols) + i for i, s in enumerate(added)}
    backends = []
    for symbols, merges in ((extended, source.merges), (target.symbols, kept)):
        backend = Tokenizer(
            BPE(
                symbols,
                # The first of a pair that comes twice counts.
                list(dict.fromkeys(merges)),
                unk_token=next(iter(symbols)),
                end_of_word_suffix="</w>",
            )
        )
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
        backend.decoder = decoders.Sequence([decoders.BPEDecoder(suffix="</w>"), decoders.Fuse()])
        backends.append(backend)
    return backends


def _finish(backend: Tokenizer, reads: _Text, writes: _Text) -> PreTrainedTokenizerFast:
    """`tokenizers.py`, and `helpers.py` for characters and blanks."""
    steps: list[Any] = []
    if reads.normalises:
        steps = [normalizers.NFKC(), *_replace([("’", "'"), ("[“”]", '"'), *_SPACES])]
    if reads.language is not None:
        # JoeyNMT normalises by the rules of English, and keeps control characters.
        rules = moses.punctuation("en")[:-1] if reads.normalises else []
        # It does not split at hyphens.
        rules += [rule for rule in moses.words(reads.language) if rule[1] != " @-@ "]
        steps += _replace(rules)
    if reads.lowercases:
        steps.append(normalizers.Lowercase())
    own = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence(steps + own)
    after = moses.text(writes.language) if writes.language else []
    after += _SPACES if writes.normalises else []
    backend.decoder = decoders.Sequence(
        [backend.decoder, *(decoders.Replace(Regex(pattern), text) for pattern, text in after)]
    )
    special = dict(zip(_SPECIAL, reads.symbols, strict=False))
    eos = special["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, _EOS)]
    )
    if reads.model is not None:
        # There it stands between marks, so that no text becomes it.
        del special["bos_token"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **special,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def _replace(rules: moses.Rules) -> list[normalizers.Normalizer]:
    return [normalizers.Replace(Regex(pattern), text) for pattern, text in rules]


# ---------------------------------------------------------------------------------------- tensors


def _take_positions(reader: TensorReader, name: str) -> None:
    """The table that is stored with the weights, which must be the usual one.

    Raises:
        ValueError: It is another.
    """
    if name in reader:
        table = reader.take(name, tuple(reader.tensors[name].shape))
        if recognise_sinusoids(table.flatten(0, -2)) != ("interleaved", 0):
            raise ValueError(
                f"{name} of {reader.place} does not hold JoeyNMT's sinusoids; get the checkpoint "
                "again"
            )


def _take_stack(
    reader: TensorReader, side: str, options: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    d_model, d_ff = options["hidden_size"], options["ff_size"]
    weights = {}

    def take(ours: str, theirs: str, *shape: int) -> None:
        weights[f"{ours}.weight"] = reader.take(f"{theirs}.weight", shape)
        weights[f"{ours}.bias"] = reader.take(f"{theirs}.bias", shape[:1])

    for number in range(options["num_layers"]):
        ours, theirs = f"model.{side}.layers.{number}", f"{side}.layers.{number}"
        for attention, name in _ATTENTIONS[side].items():
            for projection, part in _PROJECTIONS.items():
                take(
                    f"{ours}.{attention}.{projection}", f"{theirs}.{name}.{part}", d_model, d_model
                )
        take(f"{ours}.fc1", f"{theirs}.feed_forward.pwff_layer.0", d_ff, d_model)
        take(f"{ours}.fc2", f"{theirs}.feed_forward.pwff_layer.3", d_model, d_ff)
        for sublayer, name in _NORMS[side].items():
            take(f"{ours}.{sublayer}_layer_norm", f"{theirs}.{name}", d_model)
    if options["layer_norm"] == "pre":
        take(f"model.{side}.layer_norm", f"{side}.layer_norm", d_model)
    return weights


# -------------------------------------------------------------------------------------- reference


class _JoeyReference:
    """JoeyNMT's own model in evaluation mode."""

    def __init__(self, checkpoint: Checkpoint):
        try:
            import joeynmt
            from joeynmt.model import build_model
            from joeynmt.vocabulary import Vocabulary
        except ImportError as error:
            raise ImportError(
                "JoeyNMT is not installed; pip install joeynmt==2.3.0 subword-nmt sentencepiece"
            ) from error
        self.name = f"JoeyNMT {joeynmt.__version__}"
        tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
        symbols = SimpleNamespace(
            **{f"{name}_id": number for number, name in enumerate(("unk", "pad", "bos", "eos"))},
            **{f"{name}_token": f"<{name}>" for name in ("unk", "pad", "bos", "eos")},
            sep_token=None,
            lang_tags=[],
        )
        source, target = (
            Vocabulary([f"token{number}" for number in range(len(tensors[name]) - 4)], symbols)
            for name in ("src_embed.lut.weight", "trg_embed.lut.weight")
        )
        self.model = build_model(_model_options(checkpoint), source, target)
        missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        # The tables of positions are JoeyNMT's own where the checkpoint has none.
        assert not unexpected, unexpected
        assert all(name.endswith(".pe") for name in missing), missing
        self.model.eval()

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encoder states."""
        size = self.model.src_embed.vocab_size
        return self.model(
            return_type="encode",
            # Rows that were added are of symbols that JoeyNMT does not know.
            src=input_ids.masked_fill(input_ids >= size, _UNK),
            src_length=attention_mask.sum(dim=1),
            src_mask=attention_mask.bool().unsqueeze(1),
        )[0]

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of every target position."""
        return self.model(
            return_type="decode",
            trg_input=decoder_input_ids,
            encoder_output=self.encode(input_ids, attention_mask),
            encoder_hidden=None,
            src_mask=attention_mask.bool().unsqueeze(1),
            unroll_steps=None,
            trg_mask=attention_mask.new_ones((1, 1, 1), dtype=torch.bool),
        )[0]
