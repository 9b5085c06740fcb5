"""How OpenNMT-py and eole cut texts, against SentencePiece and, where it is installed, eole."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.conversion.naive_opennmt import BASE, SPECIAL
from tests.conversion.test_opennmt import FAMILY, save
from tests.conversion.test_sentencepiece import NASTY, pieces_of, train
from vanilla_transformer.conversion.source import Tokenizers
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.tokenization import TwoSidedTokenizer, load_tokenizer

spm = pytest.importorskip("sentencepiece", reason="sentencepiece, of the extra conversion")

# The remark says what becomes of the others.
LINES = [line for line in NASTY if not line.startswith(">>") and "<" not in line]
SIDES = {"source": "src", "target": "tgt"}


def make(folder: Path, lines: dict[str, list[str]], **options: Any) -> Tokenizers:
    """A checkpoint of eole with SentencePiece models of both sides, and what becomes of them."""
    case = BASE
    for side, short in SIDES.items():
        train(folder / f"{short}.spm.model", lines[side], **options)
        pieces = [p for p in pieces_of(folder / f"{short}.spm.model") if p not in SPECIAL]
        case = case | {f"{side}s": len(SPECIAL) + len(pieces)}
        (folder / f"{short}.vocab").write_text(json.dumps(SPECIAL + pieces))
    save("eole", folder, case)
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab |= {s: json.loads((folder / f"{s}.vocab").read_text()) for s in SIDES.values()}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    config = json.loads((folder / "config.json").read_text())
    models = {f"{s}_subword_model": f"${{MODEL_PATH}}/{s}.spm.model" for s in SIDES.values()}
    config |= {
        "transforms": ["sentencepiece", "filtertoolong"],
        "transforms_configs": {"sentencepiece": models, "filtertoolong": {"src_seq_length": 9}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return converted(folder)


def converted(folder: Path, toolkit: str = "eole") -> Tokenizers:
    family = FAMILY[toolkit]
    checkpoint = family.read(folder)
    return family.tokenizers(checkpoint, family.convert(checkpoint))


def by_eole(folder: Path, short: str) -> tuple[Callable[[str], list[int]], Callable[..., str]]:
    """From text to ids and back as eole does, by the tokens of SentencePiece."""
    model = spm.SentencePieceProcessor(str(folder / f"{short}.spm.model"))
    vocab = {t: i for i, t in enumerate(json.loads((folder / f"{short}.vocab").read_text()))}
    tokens = list(vocab)

    def ids(text: str) -> list[int]:
        return [vocab.get(piece, 0) for piece in model.encode(text, out_type=str)]

    return ids, lambda ids: model.decode_pieces([tokens[id] for id in ids])


def assert_same(folder: Path, found: Tokenizers, lines: dict[str, Iterable[str]]) -> None:
    for side, short in SIDES.items():
        tokenizer: PreTrainedTokenizerBase = getattr(found, side)
        end = [3] if side == "target" else []
        ids, text = by_eole(folder, short)
        for line in lines[side]:
            assert tokenizer(line).input_ids == ids(line) + end, line
            kept = [id for id in ids(line) if id != 0]
            decoded = tokenizer.decode([2, *kept, 3, 1], skip_special_tokens=True)
            assert decoded == text(kept).strip()


@pytest.mark.parametrize("size", [90, 300])
def test_ids_and_texts_are_those_of_eole(tmp_path: Path, size: int) -> None:
    pairs = list(generate_translation("train", 300))
    lines = {side: [pair[side] for pair in pairs] for side in SIDES}
    found = make(tmp_path, lines, vocab_size=size)
    assert_same(tmp_path, found, {side: [*some[:100], *LINES] for side, some in lines.items()})
    assert "the ids and texts of the source's own" in found.remarks[-1]


@pytest.mark.slow
def test_the_toolkits_own_transforms_agree(tmp_path: Path) -> None:
    """eole's, and OpenNMT's Tokenizer, which leaves all to SentencePiece in mode none."""
    eole = pytest.importorskip("eole.transforms.tokenize", reason="eole is not installed")
    onmt = pytest.importorskip("pyonmttok", reason="pyonmttok is not installed")
    pairs = list(generate_translation("train", 300))
    lines = {side: [pair[side] for pair in pairs] for side in SIDES}
    found = make(tmp_path, lines, vocab_size=200)
    assert found.source is not None
    path = str(tmp_path / "src.spm.model")
    own = object.__new__(eole.SentencePieceTransform)
    own.load_models = {"src": spm.SentencePieceProcessor(path)}
    own.replace_newline_sentinel, own.src_subword_nbest, own.mapped_tokens = True, 1, []
    own.eos_token = "</s>"
    vocab = json.loads((tmp_path / "src.vocab").read_text())
    # Nothing but blanks is one token to OpenNMT's.
    for line in [*lines["source"][:100], *filter(str.strip, LINES)]:
        eoles = own._tokenize(line)
        if line.endswith(" "):
            # Blanks at the end are a token to eole; the remarks say that they are none here.
            assert eoles.pop() == "▁"
        for tokens in (eoles, onmt.Tokenizer("none", sp_model_path=path)(line)):
            expected = [vocab.index(t) if t in vocab else 0 for t in tokens]
            assert found.source(line).input_ids == expected, line


def test_saved_tokenizers_are_stock_ones(tmp_path: Path) -> None:
    lines = {side: ["the red cat", "a cat sat"] * 20 for side in SIDES}
    for tokenizers in (make(tmp_path, lines, vocab_size=30), converted(words(tmp_path))):
        assert tokenizers.source is not None
        assert tokenizers.target is not None
        both = TwoSidedTokenizer.join(tokenizers.source, tokenizers.target)
        both.save_pretrained(tmp_path / "saved")
        loaded = load_tokenizer(tmp_path / "saved")
        for text in ("the red cat", "src7 src8"):
            ids = tokenizers.source(text).input_ids
            assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text).input_ids == ids
            assert loaded(text, text_target=text).input_ids == ids
            labels = loaded(text_target=text).input_ids
            assert labels == tokenizers.target(text).input_ids
            assert (labels[-1], loaded.pad_token_id, loaded.bos_token_id) == (3, 1, 2)


def words(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["transforms_configs"]["sentencepiece"]["src_subword_model"] = "missing.model"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("transforms", "remark"),
    [
        ([], None),
        (["filtertoolong"], None),
        (["sentencepiece"], r"SentencePiece models \(en\.model\) are not beside the checkpoint"),
        (["bpe"], r"Its transforms \(bpe\) are not converted"),
        (["onmt_tokenize", "terminology"], r"\(onmt_tokenize, terminology\) are not converted"),
    ],
)
def test_without_a_model_words_are_tokens(
    tmp_path: Path, transforms: list[str], remark: str | None
) -> None:
    changes: dict[str, Any] = {"transforms": transforms, "src_subword_model": "/home/me/en.model"}
    path = save("opennmt", tmp_path, BASE, **changes)
    found = converted(path, "opennmt")
    assert found.source is not None
    assert found.target is not None
    assert found.source(" src7 src8 other \n").input_ids == [7, 8, 0]
    assert found.target("tgt7 src8").input_ids == [7, 0, 3]
    assert found.target.decode([2, 7, 8, 3, 1], skip_special_tokens=True) == "tgt7 tgt8"
    assert found.source(["src7", "src7 src8"], padding=True).input_ids == [[7, 1], [7, 8]]
    assert "splits at spaces" in found.remarks[-1]
    assert len(found.remarks) == 1 + (remark is not None)
    if remark is not None:
        assert re.search(remark, found.remarks[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_lines_of_newstest(tmp_path: Path, shared_data: Path) -> None:
    import pyarrow.parquet

    lines = {}
    for side, pattern, name in (("source", "*.parquet", "en"), ("target", "*_en-de.parquet", "de")):
        files = sorted((shared_data / "wmt_newstest").glob(pattern))
        rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
        lines[side] = list(dict.fromkeys(row["translation"][name] for row in rows))[:10_000]
    assert (len(lines["source"]), len(lines["target"]) > 8900) == (10_000, True)
    # Learnt from a part, so that some words and letters are new.
    found = make(tmp_path, {side: some[::3] for side, some in lines.items()}, vocab_size=8000)
    assert_same(tmp_path, found, lines)
