"""Moses' rules and byte-pair codes as stock tokenizers, against sacremoses and FSMT's tokenizer."""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import FSMTConfig, FSMTForConditionalGeneration, FSMTTokenizer

from tests.conversion.naive_fairseq import UNK, tensor_shapes
from vanilla_transformer.conversion import convert
from vanilla_transformer.conversion.bpe import read_codes, symbols_of_dictionary
from vanilla_transformer.conversion.fairseq import FairseqFamily, _dataclasses_as_before
from vanilla_transformer.conversion.fsmt import FSMTFamily
from vanilla_transformer.conversion.source import Tokenizers
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.tokenization import TwoSidedTokenizer, load_tokenizer

sacremoses = pytest.importorskip("sacremoses", reason="sacremoses, of the extra conversion")
needs_fairseq = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fairseq", "subword_nmt")),
    reason="fairseq 0.12.2 and subword_nmt are not installed",
)

NASTY = [
    "",
    "",
    "Hello, world!  This  is   a test.",
    'He said: "It\'s 5\'10" tall," and left.',
    "\"Quoted,\" she said. \"Again...\" and ''double singles''.",
    "The Jones' house, the dogs' bowls, rock'n'roll, 'tis, it's, I'd've",
    "o'clock, '90s, 1990's, 5's",
    "http://www.example.com/path/to?x=1&y=2#frag user.name+tag@example.co.uk @handle #hashtag",
    "Mr. Smith vs. Mrs. Jones, Dr. No. 5, No. x, e.g. this, i.e. that, U.S.A. is big. U.S. army",
    "1,000,000.50 and 3.14, 5,6 ,7 a,b,c ,,, 1,,2 ,5",
    "A--B -- C – D — E - F-G-H x-y-z 1-2 well-known state-of-the-art",
    "Tab\tseparated\ttext and nbsp 1\xa0000\xa0000 and 5\xa0% or 5 % and 1\xa02\xa03",
    "«\xa0Bonjour\xa0» dit-il\xa0: « Ça va ? » — l’homme d’État, aujourd'hui l'eau qu'il n'y a",
    "„Guten Tag“, sagte er, „wie geht’s?“ Das ist z.B. gut. Am 3. Oktober usw. und Nr. 5.",
    "Машинное обучение — это здорово, не так ли? «Да», — сказал он. т.е. 5 руб. и т.д.",
    "日本語のテキスト。これはテストです。 中文，测试！（括号）【方括号】《书名》 한국어",
    "Ｆｕｌｌｗｉｄｔｈ １２３４５６７８９０ ％ ～ ：；？！",
    "emoji 😀👍🏽 👨\u200d👩\u200d👧 flags 🇩🇪 and ☃ ™ © ® € £ ¥ $5 5$ ¿Qué? ¡Hola!",
    "zero\u200bwidth soft\xadhyphen bom\ufeff control\x07 \x01chars\x1f \x1cbell\x7f \x85 x\u2028y",
    "<b>bold</b> & &amp; &lt;tag&gt; | pipe [brackets] {braces} (parens) ( spaced )",
    "< > \\ / ^ ~ ` ``x''",
    "....... a..b ...c d... .. . .' end.'",
    "He said 'hello.'",
    '"...", \'...\', ("x"), [\'y\'] {"z": 1}',
    "ﬁ ½ ² ³ Ⅻ ① ª º nº\xa05 ºC 5\xa0ºC 5\xa0cm ´´acute´´ ‘a’ ‚b‘ a‘b naïve café é ñ ẞ İ ı ǆ",
    'a"b"c "." "," "x." y" z",w ."< ."a ..", "',
    "'Hello' \"Hello' `hello' ''' \"\"\" '' \"",
    "5' 6\" 5'2'3 a'b'c'd x'' y ''z",
    "ends with comma, 5,",
    ", starts with comma",
    ".start . middle .end",
    "@-@ a @-@ b @,@ -a- --a-- a- -b",
    "देवनागरी पाठ। العربية، نص؟ עברית ไทย ελληνικά; ქართული",
    "5 ,000 and 5, 000 ; semicolon : colon ! bang ? q",
    "I can't, won't, shouldn't've. He'll they're we've I'm you'd",
    "x\u2003y\u3000ideographic space thin\u2009nar\u202f",
    "",
]


def lines_of(language: str) -> list[str]:
    pairs = generate_translation("train", 300)
    return [pair["target" if language == "de" else "source"] for pair in pairs] + NASTY


def words_of(text: str, language: str, is_fsmt: bool) -> list[str]:
    """By sacremoses, as FSMT's tokenizer and fairseq's hub interface call it."""
    if is_fsmt:
        from transformers.models.fsmt import tokenization_fsmt as fsmt

        text = fsmt.replace_unicode_punct(text)
        text = sacremoses.MosesPunctNormalizer(lang=language).normalize(text)
        text = fsmt.remove_non_printing_char(text)
    tokenizer = sacremoses.MosesTokenizer(language)
    words = tokenizer.tokenize(text, aggressive_dash_splits=True, return_str=True, escape=True)
    return words.split()


def learn_codes(words: Iterable[str], size: int) -> list[tuple[str, str]]:
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=size, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator([" ".join(words)], trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def cut(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """A word by the codes (Sennrich et al. 2016): the best pair, wherever it is, till none is."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        best = min(pairwise(pieces), key=lambda p: ranks.get(p, len(ranks)))
        if best not in ranks:
            break
        merged = []
        for piece in pieces:
            # What was just merged is not merged again before the next round.
            if merged and (merged[-1], piece) == best:
                merged[-1] = "".join(best) + "\0"
            else:
                merged.append(piece)
        pieces = [piece.rstrip("\0") for piece in merged]
    return pieces


@dataclass
class World:
    """Codes and vocabularies learnt from lines of two languages."""

    codes: list[tuple[str, str]]
    sources: list[str]
    targets: list[str]


def make_world(
    lines: dict[str, list[str]], is_fsmt: bool, is_joint: bool, size: int = 900, most: int = 700
) -> World:
    words = {
        language: [word for line in some for word in words_of(line, language, is_fsmt)]
        for language, some in lines.items()
    }
    codes = learn_codes((word for some in words.values() for word in some), size)
    ranks = {pair: i for i, pair in enumerate(codes)}
    # Only what occurs in the end is in a dictionary, and of that not the rarest.
    counts = [
        Counter(piece for word, n in Counter(some).items() for piece in cut(word, ranks) * n)
        for some in words.values()
    ]
    if is_joint:
        counts = [counts[0] + counts[1]] * 2
    sources, targets = ([piece for piece, _ in count.most_common(most)] for count in counts)
    return World(codes, sources, targets)


def numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}


def save_fsmt(path: Path, world: World, languages: tuple[str, str]) -> Path:
    torch.manual_seed(0)
    config = FSMTConfig(
        langs=list(languages),
        src_vocab_size=len(world.sources) + 4,
        tgt_vocab_size=len(world.targets) + 4,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=16,
        tie_word_embeddings=world.sources == world.targets,
    )
    FSMTForConditionalGeneration(config).save_pretrained(path)
    for side, pieces in (("src", world.sources), ("tgt", world.targets)):
        (path / f"vocab-{side}.json").write_text(json.dumps(numbered(pieces)), "utf-8")
    merges = "".join(f"{a} {b}\n" for a, b in world.codes)
    (path / "merges.txt").write_text(merges, "utf-8")
    return path


def read_fsmt(path: Path, languages: tuple[str, str], *, is_swapped: bool = False) -> Any:
    files = [str(path / f"vocab-{side}.json") for side in ("src", "tgt")]
    source, target = reversed(files) if is_swapped else files
    langs = list(reversed(languages) if is_swapped else languages)
    return FSMTTokenizer(
        langs=langs,
        src_vocab_file=source,
        tgt_vocab_file=target,
        merges_file=str(path / "merges.txt"),
    )


def known(ids: list[int], size: int) -> list[int]:
    """Ids that were added are those of symbols that the model does not know."""
    return [i if i < size else UNK for i in ids]


def assert_same_as_fsmt(
    path: Path, found: Any, lines: dict[str, list[str]], languages: tuple[str, str]
) -> None:
    source_lines, target_lines = lines.values()
    theirs = read_fsmt(path, languages)
    ids = [known(found(line)["input_ids"], len(theirs.encoder)) for line in source_lines]
    expected = [theirs(line)["input_ids"] for line in source_lines]
    assert [
        a
        for a, b in zip(source_lines, zip(ids, expected, strict=True), strict=True)
        if b[0] != b[1]
    ] == []
    other = read_fsmt(path, languages, is_swapped=True)
    outputs = [other(line)["input_ids"] for line in target_lines]
    texts = found.batch_decode(outputs, skip_special_tokens=True)
    expected_texts = [theirs.decode(output, skip_special_tokens=True) for output in outputs]
    assert [pair for pair in zip(texts, expected_texts, strict=True) if pair[0] != pair[1]] == []


@pytest.mark.parametrize(
    ("languages", "is_joint"),
    [(("en", "de"), True), (("de", "en"), True), (("en", "ru"), False), (("fr", "en"), False)],
)
def test_fsmts_tokenizer_gives_the_same(
    tmp_path: Path, languages: tuple[str, str], is_joint: bool
) -> None:
    lines = {language: lines_of(language) for language in languages}
    path = save_fsmt(tmp_path / "source", make_world(lines, True, is_joint), languages)
    result = convert(path, tmp_path / "out")
    assert result.parity.log_probabilities <= 1e-5
    assert any("symbols that the byte-pair encoding passes" in r for r in result.remarks)
    found = load_tokenizer(tmp_path / "out")
    assert isinstance(found, TwoSidedTokenizer)
    assert_same_as_fsmt(path, found, lines, languages)
    # Labels are in the vocabulary, whatever the text.
    size = len(json.loads((path / "vocab-tgt.json").read_text("utf-8")))
    labels = found(text_target=lines[languages[1]])["input_ids"]
    assert max(max(ids) for ids in labels) < size


def test_it_loads_without_sacremoses_and_this_package(tmp_path: Path) -> None:
    lines = {language: lines_of(language) for language in ("en", "de")}
    path = save_fsmt(tmp_path / "source", make_world(lines, True, True), ("en", "de"))
    convert(path, tmp_path / "out")
    code = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer('He said: "It\\'s the cat\\'s."')["input_ids"]
print(tokenizer.decode(ids, skip_special_tokens=True))
assert not {"sacremoses", "vanilla_transformer"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    environment = {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    # Decoded by the rules of German, which leave apostrophes as they find them.
    assert done.stdout.startswith('He said: "It ')


def save_fairseq(path: Path, world: World, languages: tuple[str, str]) -> Path:
    args = {
        "arch": "transformer",
        "source_lang": languages[0],
        "target_lang": languages[1],
        "encoder_embed_dim": 8,
        "encoder_ffn_embed_dim": 8,
        "decoder_ffn_embed_dim": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_normalize_before": False,
    }
    shapes = tensor_shapes(args, len(world.sources) + 4, len(world.targets) + 4)
    path.mkdir()
    torch.save(
        {"args": args, "model": {name: torch.randn(shape) for name, shape in shapes.items()}},
        path / "model.pt",
    )
    for language, pieces in zip(languages, (world.sources, world.targets), strict=True):
        symbols = [p.removesuffix("</w>") if p.endswith("</w>") else p + "@@" for p in pieces]
        lines = [f"{symbol} {1000 - i}" for i, symbol in enumerate(symbols)]
        (path / f"dict.{language}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    codes = "".join(f"{a} {b}\n" for a, b in world.codes)
    (path / "bpecodes").write_text(f"#version: 0.2\n{codes}", "utf-8")
    return path


def ids_of(line: str, language: str, world: World, ranks: dict[tuple[str, str], int]) -> list[int]:
    ids = numbered(world.sources)
    pieces = [piece for word in words_of(line, language, False) for piece in cut(word, ranks)]
    return [*(ids.get(piece, UNK) for piece in pieces), 2]


def assert_same_as_fairseq(found: Tokenizers, world: World, lines: dict[str, list[str]]) -> None:
    """As `Dictionary.encode_line` of the words in pieces, and `string` of `</s>`-ended ids."""
    (source, source_lines), (target, target_lines) = lines.items()
    assert found.source is not None
    assert found.target is not None
    ranks = {pair: i for i, pair in enumerate(world.codes)}
    wrong = []
    for line in source_lines:
        ids = known(found.source(line)["input_ids"], len(world.sources) + 4)
        wrong += [line] if ids != ids_of(line, source, world, ranks) else []
    assert wrong == []
    names = {i: piece for piece, i in numbered(world.targets).items()}
    detokenizer = sacremoses.MosesDetokenizer(target)
    for line in target_lines:
        ids = [i for i in found.target(line)["input_ids"] if i > UNK]
        text = "".join(names[i] for i in ids).replace("</w>", " ")
        expected_text = detokenizer.detokenize(text.split())
        assert found.target.decode([*ids, 2], skip_special_tokens=True) == expected_text


@pytest.mark.slow
@needs_fairseq
@pytest.mark.parametrize("languages", [("en", "fr"), ("de", "en")])
def test_the_reference_cuts_as_fairseq_itself(tmp_path: Path, languages: tuple[str, str]) -> None:
    """`words_of` and `cut`, against which the tokenizers are tested where fairseq is missing."""
    with _dataclasses_as_before():
        from fairseq.data import Dictionary, encoders
    lines = lines_of(languages[0])
    world = make_world({language: lines_of(language) for language in languages}, False, False)
    path = save_fairseq(tmp_path / "source", world, languages)
    options = argparse.Namespace(
        tokenizer="moses", source_lang=languages[0], target_lang=languages[1], bpe="subword_nmt"
    )
    options.bpe_codes = str(path / "bpecodes")
    moses, codes = encoders.build_tokenizer(options), encoders.build_bpe(options)
    dictionary = Dictionary.load(str(path / f"dict.{languages[0]}.txt"))
    ranks = {pair: i for i, pair in enumerate(world.codes)}
    for line in lines:
        expected = dictionary.encode_line(codes.encode(moses.encode(line)), add_if_not_exist=False)
        assert ids_of(line, languages[0], world, ranks) == expected.tolist()


@pytest.mark.parametrize("languages", [("en", "fr"), ("de", "en")])
def test_fairseqs_hub_interface_gives_the_same(tmp_path: Path, languages: tuple[str, str]) -> None:
    lines = {language: lines_of(language) for language in languages}
    world = make_world(lines, False, False)
    family = FairseqFamily()
    checkpoint = family.read(save_fairseq(tmp_path / "source", world, languages))
    converted = family.convert(checkpoint)
    assert converted.config.vocab_size == len(world.sources) + 4 + checkpoint.options["unlisted"]
    assert_same_as_fairseq(family.tokenizers(checkpoint, converted), world, lines)


def test_added_rows_are_those_of_unknown_symbols(tmp_path: Path) -> None:
    lines = {language: lines_of(language) for language in ("en", "de")}
    checkpoint = FSMTFamily().read(save_fsmt(tmp_path, make_world(lines, True, True), ("en", "de")))
    converted = FSMTFamily().convert(checkpoint)
    added = checkpoint.options["unlisted"]
    assert added > 0
    encoder = converted.weights["model.encoder.embed_tokens.weight"]
    assert torch.equal(encoder[-added:], encoder[UNK].expand(added, -1))
    assert converted.config.tie_word_embeddings
    assert not converted.config.share_embeddings


def test_dictionaries_and_codes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    lines = {language: lines_of(language) for language in ("en", "de")}
    path = save_fairseq(tmp_path / "source", make_world(lines, False, True), ("en", "de"))
    dictionary = path / "dict.en.txt"
    text = dictionary.read_text("utf-8")
    dictionary.write_text(text + "another 1\n", "utf-8")
    with pytest.raises(ValueError, match=r"dict.en.txt lists \d+ symbols, the model has \d+"):
        convert(path, tmp_path / "out", family="fairseq")
    dictionary.write_text(text + text.split("\n")[0] + "\n", "utf-8")
    with pytest.raises(ValueError, match="twice"):
        symbols_of_dictionary(dictionary)
    (path / "bpecodes").write_text("t h\nth e\nthe </w>\n", "utf-8")
    with pytest.raises(ValueError, match=r"subword-nmt 0\.1"):
        read_codes(path / "bpecodes")
    (path / "bpecodes").unlink()
    family = FairseqFamily()
    checkpoint = family.read(path)
    found = family.tokenizers(checkpoint, family.convert(checkpoint))
    assert found.source is None
    assert "No tokenizer" in found.remarks[0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("languages", [("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en")])
def test_ten_thousand_lines_of_newstest(
    tmp_path: Path, shared_data: Path, languages: tuple[str, str]
) -> None:
    import pyarrow.parquet

    lines: dict[str, list[str]] = {}
    for language in languages:
        # English is in both sets.
        pairs = ("en-de", "en-fr") if language == "en" else (f"en-{language}",)
        files = [
            shared_data / "wmt_newstest" / f"newstest{year}_{pair}.parquet"
            for pair in pairs
            for year in (2012, 2013, 2014)
        ]
        rows = [r for f in files for r in pyarrow.parquet.read_table(f).to_pylist()]
        lines[language] = list(dict.fromkeys(row["translation"][language] for row in rows))[:10_000]
        assert len(lines[language]) > 8900 + 1000 * (language == "en")
    for is_fsmt in (True, False):
        # Learnt from a part, so that some words are new.
        part = {language: some[::3] for language, some in lines.items()}
        world = make_world(part, is_fsmt, is_fsmt, size=8000, most=7000)
        if is_fsmt:
            path = save_fsmt(tmp_path / "fsmt", world, languages)
            convert(path, tmp_path / "out")
            assert_same_as_fsmt(path, load_tokenizer(tmp_path / "out"), lines, languages)
        else:
            family = FairseqFamily()
            checkpoint = family.read(save_fairseq(tmp_path / "fairseq", world, languages))
            found = family.tokenizers(checkpoint, family.convert(checkpoint))
            assert_same_as_fairseq(found, world, lines)
