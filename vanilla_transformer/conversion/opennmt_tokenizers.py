"""How OpenNMT-py and eole cut texts, as stock fast tokenizers.

Their transforms (`transforms/tokenize.py` of both) make tokens of a text, separated by spaces; what
a vocabulary lacks is unknown. The encoder reads the tokens alone, without an end of the sentence
(`inputters/text_utils.py`), which targets have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from .sentencepiece import marian_tokenizers
from .source import Tokenizers

# `onmt/constants.py` and `eole/constants.py`, under the names of transformers.
_SPECIAL = {
    "pad_token": "<blank>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
_STANDARD = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

_ONLY_IN_TRAINING = {
    "bart",
    "clean",
    "filtertoolong",
    "filtertooshort",
    "switchout",
    "tokendrop",
    "tokenmask",
}


def special_tokens(vocab: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of a checkpoint's `vocab`; only eole stores them."""
    stored = vocab.get("specials") or {}
    return {name: stored.get(name) or token for name, token in _SPECIAL.items()}


def subword_tokenizers(
    transforms: Iterable[str],
    settings: Mapping[str, Any],
    folders: Iterable[Path],
    vocab: Mapping[str, Any],
    config: VanillaTransformerConfig,
) -> Tokenizers:
    """One tokenizer for the source and one for the target.

    Args:
        transforms: Names, in the order in which they were applied.
        settings: Of the transform that cuts words: `src_subword_model` and so on.
        folders: Where such files may lie.
        vocab: Of the checkpoint.
        config: Of the converted model.
    """
    names = [name for name in transforms if name not in _ONLY_IN_TRAINING]
    remarks, found = [], None
    if is_sentencepiece(names, settings):
        stored = [Path(settings.get(f"{side}_subword_model") or "").name for side in ("src", "tgt")]
        paths = [_find(name or stored[0], folders) for name in stored]
        if paths[0] and paths[1]:
            found = _sentencepiece((paths[0], paths[1]), vocab, config)
            remarks.append(
                "Its tokenizer has the ids and texts of the source's own; only texts that begin "
                "with >>...<< or hold a special token, such as </s>, may be read otherwise. Blanks "
                "at the end of a text, a token to eole, are none here, and texts that it writes "
                "neither begin nor end with blanks."
            )
        else:
            missing = ", ".join(sorted({*stored} - {""}))
            remarks.append(
                f"Its SentencePiece models ({missing}) are not beside the "
                "checkpoint: put them there and convert it again for a tokenizer that reads texts."
            )
    elif names:
        remarks.append(
            f"Its transforms ({', '.join(names)}) are not converted: apply them to texts before, "
            "and undo them afterwards."
        )
    if found is None:
        remarks.append("Its tokenizer splits at spaces and reads texts cut as for its training.")
        found = Tokenizers(
            _words(vocab["src"], vocab, is_target=False),
            _words(vocab["tgt"], vocab, is_target=True),
        )
    found.remarks += remarks
    return found


def is_sentencepiece(names: list[str], settings: Mapping[str, Any]) -> bool:
    """Whether SentencePiece alone cuts texts: itself, or within OpenNMT's Tokenizer."""
    if names == ["sentencepiece"]:
        return not settings.get("src_vocab_threshold") and not settings.get("tgt_vocab_threshold")
    return names == ["onmt_tokenize"] and all(
        settings.get(f"{side}_subword_type") == "sentencepiece"
        and settings.get(f"{side}_onmttok_kwargs") in (None, {"mode": "none"}, "{'mode': 'none'}")
        for side in ("src", "tgt")
    )


def _find(name: str, folders: Iterable[Path]) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _sentencepiece(
    paths: tuple[Path, Path], vocab: Mapping[str, Any], config: VanillaTransformerConfig
) -> Tokenizers:
    renamed = {
        token: _STANDARD[name] for name, token in special_tokens(vocab).items() if name in _STANDARD
    }
    ids = [
        {renamed.get(token, token): id for id, token in enumerate(vocab[side])}
        for side in ("src", "tgt")
    ]
    found = marian_tokenizers(paths, (ids[0], ids[1]), config.pad_token_id)
    for side in ("source", "target"):
        made = getattr(found, side)
        backend = made.backend_tokenizer
        if side == "source":
            _end(backend, None)
        start = made.convert_ids_to_tokens(config.decoder_start_token_id)
        settings = made.init_kwargs | {"bos_token": start}
        settings.pop("tokenizer_object", None)
        setattr(found, side, PreTrainedTokenizerFast(tokenizer_object=backend, **settings))
    return found


def _words(
    tokens: Iterable[str], vocab: Mapping[str, Any], *, is_target: bool
) -> PreTrainedTokenizerFast:
    ids = {token: id for id, token in enumerate(tokens)}
    special = {name: token for name, token in special_tokens(vocab).items() if token in ids}
    backend = Tokenizer(models.WordLevel(ids, special.get("unk_token", "<unk>")))
    backend.normalizer = normalizers.Strip()
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    eos = special.get("eos_token")
    _end(backend, (eos, ids[eos]) if is_target and eos else None)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **special,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _end(backend: Tokenizer, eos: tuple[str, int] | None) -> None:
    end = f" {eos[0]}" if eos else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A{end}", pair=f"$A $B{end}", special_tokens=[eos] if eos else []
    )
