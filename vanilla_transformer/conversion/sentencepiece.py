"""SentencePiece models as stock fast tokenizers, with the ids of a vocabulary of their own.

So works `MarianTokenizer` of transformers 5.23 (`models/marian/tokenization_marian.py`): the model
of each side cuts a text into pieces, and ids are those that the vocabulary, often one for both
sides, gives to the letters of a piece, wherever it is from.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from .source import Tokenizers

# No text has these: Unicode keeps them free for use within programs. Around tokens that the side's
# own model does not cut; around a code of a language; what either becomes where a text has it.
_MARK, _CODE, _NO_MARK = "\ufdd0", "\ufdd1", "\ufdd2"

_BLANK = "\u2581"
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

# Of `sentencepiece_model.proto`: a type of model, types of pieces.
_UNIGRAM = 1
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED = 1, 2, 3, 5

_MOST_TOKENS = 512
"""MarianTokenizer's own limit."""


def marian_tokenizers(
    files: tuple[Path, Path],
    vocabularies: tuple[Mapping[str, int], Mapping[str, int]],
    pad: int,
) -> Tokenizers:
    """A tokenizer for each side.

    Args:
        files: SentencePiece models of source and target.
        vocabularies: Tokens and ids of source and target, which may be the same.
        pad: Id of the token that pads, for vocabularies that do not list it.

    Raises:
        ValueError: A file is damaged or not of the kind that Marian has, or what reads it is not
            installed.
    """
    remarks = [
        "Of two equally likely ways to cut a word rounding chooses, here at times the other. "
        "In the tests all but one of 113,979 lines of newstest, in English, German and French, "
        "gave the same ids as the source's tokenizer gives, and all the same texts."
    ]
    tokenizers = []
    for path, vocabulary in zip(files, vocabularies, strict=True):
        model = _read(path)
        scores = {p.piece: p.score for p in model.pieces if p.type == _NORMAL}
        if lost := sum(piece not in vocabulary for piece in scores):
            remarks.append(
                f"{lost} of the {len(scores)} pieces of {path.name} are not in the vocabulary. The "
                "source's tokenizer makes <unk> of them; this one cuts such words otherwise."
            )
        tokenizers.append(_build(model, scores, dict(vocabulary), pad))
    return Tokenizers(tokenizers[0], tokenizers[1], remarks)


def vocabulary_of(path: Path) -> dict[str, int]:
    """Tokens and ids of a vocabulary of Marian: YAML or JSON, or a SentencePiece model.

    Raises:
        ValueError: The file is damaged, or of another kind.
    """
    if path.suffix == ".spm":
        return {piece.piece: id for id, piece in enumerate(_read(path).pieces)}
    import yaml

    try:
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            found = json.loads(text)
        else:
            # All as it is written: `no` and `1_000` are words.
            found = yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
        return {token: int(id) for token, id in found.items()}
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no vocabulary of tokens and ids; get it again") from error


def _read(path: Path) -> Any:
    """The `ModelProto` of a file.

    Raises:
        ValueError: See `marian_tokenizers`.
    """
    try:
        # Generated code, which type checkers cannot see into.
        protobuf = importlib.import_module("google.protobuf.message")
        generated = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise ValueError(
            f"{path} is a SentencePiece model; to read it: pip install "
            "'vanilla_transformer[conversion]'"
        ) from error
    model = generated.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, protobuf.DecodeError) as error:
        raise ValueError(f"{path} is no whole SentencePiece model; get it again") from error
    rules = model.normalizer_spec
    types = {piece.type for piece in model.pieces}
    for name, holds in (
        ("model_type unigram", model.trainer_spec.model_type == _UNIGRAM),
        ("add_dummy_prefix", rules.add_dummy_prefix),
        ("remove_extra_whitespaces", rules.remove_extra_whitespaces),
        ("escape_whitespaces", rules.escape_whitespaces),
        (
            "neither user_defined_symbols nor byte_fallback",
            types <= {_NORMAL, _UNKNOWN, _CONTROL, _UNUSED},
        ),
        ("treat_whitespace_as_suffix=false", not model.trainer_spec.treat_whitespace_as_suffix),
    ):
        if not holds:
            raise ValueError(
                f"{path} is not trained with {name}, which the tokenizers of Marian's models are "
                "and this conversion relies on; move it away to convert the model without"
            )
    return model


def _build(
    model: Any, scores: Mapping[str, float], vocabulary: dict[str, int], pad: int
) -> PreTrainedTokenizerFast:
    vocabulary.setdefault(_SPECIAL["pad_token"], pad)
    codes = [token for token in vocabulary if re.fullmatch(r">>.*<<", token)]
    letters = {piece for piece in scores if len(piece) == 1} | {_BLANK}
    strangers = [
        token for token in vocabulary if token not in scores and not letters.intersection(token)
    ]
    letters.update(letter for code in codes for letter in code if letter not in vocabulary)
    normalizer = _normalizer(model, codes, letters, strangers)
    # A row for each id. What this side's model does not cut stands between marks, so that no text
    # becomes it, and scores nothing: an unknown letter scores 10 less than the least of all.
    size = max(vocabulary.values()) + 1
    rows = [(f"{_MARK}<unused{id}>{_MARK}", 0.0) for id in range(size)]
    for token, id in vocabulary.items():
        if token in _SPECIAL.values():
            rows[id] = (token, 0.0)
        elif token in codes:
            rows[id] = (normalizer.normalize_str(token), 0.0)
        elif token in scores:
            rows[id] = (token, scores[token])
        elif token in strangers:
            # More than its parts together, should these be tokens as well.
            rows[id] = (token, float(len(token) ** 2))
        else:
            rows[id] = (f"{_MARK}{token}{_MARK}", 0.0)
    backend = Tokenizer(models.Unigram(rows, vocabulary[_SPECIAL["unk_token"]]))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"\A{_CODE}[^{_CODE}]*{_CODE}"), "isolated"),
            pre_tokenizers.Metaspace(
                prepend_scheme="always", split=not any(_BLANK in piece[1:] for piece in scores)
            ),
            pre_tokenizers.Split(Regex(f"{_BLANK}(?={_CODE})"), "removed"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(f"[{_MARK}{_CODE}]"), ""),
            decoders.Replace(_BLANK, " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"\A\s+|\s+\z"), ""),
        ]
    )
    eos = _SPECIAL["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A $B {eos}", special_tokens=[(eos, vocabulary[eos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **_SPECIAL,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=_MOST_TOKENS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _normalizer(
    model: Any, codes: list[str], letters: set[str], strangers: list[str]
) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex(f"[{_MARK}{_CODE}]"), _NO_MARK)
    ]
    # At a text's start `>>fra<<` is one token; where the vocabulary lacks it, an unknown one.
    if codes:
        names = [re.escape(code[2:-2]) for code in codes]
        before = "|".join(rf"\A{_CODE}>>{name}" for name in names)
        steps += [
            normalizers.Replace(Regex(rf"\A>>(?=(?:{'|'.join(names)})<<)"), f"{_CODE}>>"),
            normalizers.Replace(Regex(f"(?<={before})<<"), f"<<{_CODE}"),
        ]
    steps.append(normalizers.Replace(Regex(r"\A>>[\s\S]*?<<"), 2 * _CODE))
    if rules := model.normalizer_spec.precompiled_charsmap:
        # `Precompiled` looks up a letter and its accents as one only where they are few.
        steps += [normalizers.NFC(), normalizers.Precompiled(rules)]
    steps += [
        normalizers.Replace(Regex(" +"), _BLANK),
        normalizers.Replace(Regex(rf"{_BLANK}+\z"), ""),
    ]
    if strangers:
        # SentencePiece gives a run of letters that it does not know as one piece, and where that is
        # a token all the same, of the other side's, the source's tokenizer takes it.
        unknown = "".join(rf"\x{{{ord(letter):x}}}" for letter in sorted(letters | {_MARK, _CODE}))
        unknown = f"[^{unknown}]"
        known = "|".join(map(re.escape, strangers))
        steps.append(
            normalizers.Replace(
                Regex(f"(?<!{unknown})(?!(?:{known})(?!{unknown})){unknown}+"), _NO_MARK
            )
        )
    return normalizers.Sequence(steps)
