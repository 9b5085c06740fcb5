"""Byte-pair codes of subword-nmt and fastBPE behind Moses' rules, as stock fast tokenizers.

So work fairseq's hub interface (`data/encoders/moses_tokenizer.py`, `subword_nmt_bpe.py`,
`fastbpe.py`) and FSMT's tokenizer (`tokenization_fsmt.py` of transformers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from . import moses
from .source import Tokenizers

_END = "</w>"
_SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def symbols_of_dictionary(path: Path) -> dict[str, int]:
    """A `dict.LANGUAGE.txt` of fairseq (`data/dictionary.py`): a symbol and its count a line.

    `lo` after `hel@@` ends a word; here, as in FSMT and in the codes, these are `lo</w>` and `hel`.
    """
    symbols = {token: number for number, token in enumerate(_SPECIAL.values())}
    for line in path.read_text("utf-8").rstrip("\n").split("\n"):
        symbol = line.removesuffix(" #fairseq:overwrite").rpartition(" ")[0]
        number = len(symbols)
        if symbol.endswith("@@") and symbol != "@@":
            symbols[symbol[:-2]] = number
        else:
            symbols[symbol + _END] = number
        if len(symbols) == number:
            raise ValueError(f"{path} has {symbol!r} twice; get the dictionary again")
    return symbols


def read_codes(path: Path) -> list[tuple[str, str]]:
    """Pairs in the order in which they are merged, of subword-nmt 0.2 or fastBPE.

    Raises:
        ValueError: They are of subword-nmt 0.1, which ends words otherwise.
    """
    lines = [line.split() for line in path.read_text("utf-8").split("\n")]
    merges = [(line[0], line[1]) for line in lines if len(line) > 1 and line[0] != "#version:"]
    if any(second == _END for _, second in merges):
        raise ValueError(
            f"{path} has codes of subword-nmt 0.1, in which the end of a word is a symbol of its "
            "own; move them away to convert the model without its tokenizer"
        )
    return merges


def missing_symbols(symbols: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> list[str]:
    """What the codes need on their way and the dictionary lacks, as it did not occur in the end.

    Such a symbol is unknown to the model, and yet a tokenizer must know it from others.
    """
    needed = (symbol for pair in merges for symbol in (*pair, "".join(pair)))
    return [symbol for symbol in dict.fromkeys(needed) if symbol not in symbols]


def check_symbols(place: Path, symbols: Mapping[str, int], rows: int) -> None:
    """Refuses a vocabulary that is not the one of an embedding with so many rows.

    Raises:
        ValueError: Their numbers differ.
    """
    if sorted(symbols.values()) != list(range(rows)):
        raise ValueError(
            f"{place} lists {len(symbols)} symbols, the model has {rows}; put the vocabularies "
            "that came with the checkpoint beside it"
        )


def build_tokenizers(
    source: Mapping[str, int],
    target: Mapping[str, int],
    merges: list[tuple[str, str]],
    languages: tuple[str, str],
    *,
    normalises_punctuation: bool,
) -> Tokenizers:
    """One tokenizer for each language, which reads by its rules.

    Args:
        source: Symbols and ids. Symbols that are missing get the ids after these.
        target: The same of the target; without them, lest labels be out of the vocabulary.
        merges: For both.
        languages: Source and target, `en` and so on.
        normalises_punctuation: Whether to make punctuation alike and drop control characters
            before, as FSMT does and fairseq does not.

    Raises:
        ValueError: sacremoses is not installed.
    """
    added = missing_symbols(source, merges)
    extended = dict(source) | {symbol: len(source) + i for i, symbol in enumerate(added)}
    lacking = set(missing_symbols(target, merges))
    kept = [pair for pair in merges if not lacking & {*pair, "".join(pair)}]
    remarks = [
        "Texts are cut into words and put together by regular expressions that stand for the rules "
        f"of sacremoses {moses.sacremoses().__version__}. In the tests 10,000 lines of newstest in "
        "English, and 9,000 each in German and French, all gave the same ids and the same text."
    ]
    if added:
        remarks.append(
            f"{len(added)} symbols that the byte-pair encoding passes on its way are not in the "
            f"source vocabulary. They are ids from {len(source)} on, whose embeddings are that of "
            "<unk>, which the source's tokenizer makes of them."
        )
    if lacking:
        remarks.append(
            f"Of {len(merges)} byte-pair merges the tokenizer of target texts leaves out "
            f"{len(merges) - len(kept)}, whose symbols are not in the target vocabulary."
        )
    if others := [language for language in languages if language in moses.OTHER_RULES]:
        remarks.append(
            f"Of Moses' rules those that are only for {', '.join(others)} are left out, so that "
            "some words are cut or put together otherwise than by the source."
        )
    one_vocabulary = source == target
    return Tokenizers(
        _build(
            extended,
            merges,
            reads=languages[0],
            writes=languages[1] if one_vocabulary else languages[0],
            normalises_punctuation=normalises_punctuation,
        ),
        _build(
            target,
            kept,
            reads=languages[1],
            writes=languages[1],
            normalises_punctuation=normalises_punctuation,
        ),
        remarks,
    )


def _build(
    symbols: Mapping[str, int],
    merges: list[tuple[str, str]],
    *,
    reads: str,
    writes: str,
    normalises_punctuation: bool,
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.BPE(
            dict(symbols),
            # The first of a pair that comes twice counts.
            list(dict.fromkeys(merges)),
            unk_token=_SPECIAL["unk_token"],
            end_of_word_suffix=_END,
        )
    )
    rules = moses.words(reads)
    if normalises_punctuation:
        rules = moses.unicode_punctuation() + moses.punctuation(reads) + rules
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(pattern), text) for pattern, text in rules]
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Sequence(
        [
            decoders.BPEDecoder(suffix=_END),
            decoders.Fuse(),
            *(decoders.Replace(Regex(pattern), text) for pattern, text in moses.text(writes)),
        ]
    )
    eos = _SPECIAL["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, symbols[eos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **_SPECIAL,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        # FSMT's tokenizer takes "</s>" in a text for the end of the sentence.
        split_special_tokens=not normalises_punctuation,
    )
