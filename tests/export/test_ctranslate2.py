"""A model in CTranslate2 writes what it writes here, and what it cannot hold is refused."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.export.saved import REFERENCES, SENTENCES, save_model
from tests.generation.cases import EOS, PAD
from vanilla_transformer.export import ctranslate2 as module
from vanilla_transformer.export.ctranslate2 import CTranslate2Translator, export_ctranslate2
from vanilla_transformer.export.parity import native_outputs
from vanilla_transformer.export.translator import RECORD
from vanilla_transformer.generation import DecodingSettings, translate
from vanilla_transformer.tokenization import load_tokenizer

ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "paper": {},
    "pre-norm": {"layer_norm_position": "pre", "attention_bias": True, "activation": "gelu"},
    "Marian": {
        "position_encoding": "concatenated",
        "activation": "swish",
        "attention_bias": True,
        "decoder_start_token_id": PAD,
        "layer_norm_eps": 1e-5,
    },
    "fairseq": {
        "position_encoding": "concatenated_inclusive",
        "position_offset": 2,
        "attention_bias": True,
        "decoder_start_token_id": EOS,
        "num_encoder_layers": 3,
        "decoder_d_ff": 40,
    },
    "learned": {
        "position_encoding": "learned",
        "max_position_embeddings": 60,
        "position_offset": 1,
        "output_bias": True,
        "tie_word_embeddings": False,
    },
    "two vocabularies": {"is_two_sided": True, "output_bias": False, "num_decoder_layers": 1},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_comes_through(name: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", **ARCHITECTURES[name])
    lines: list[str] = []
    export = export_ctranslate2(
        tmp_path / "model", tmp_path / "out", sentences=SENTENCES, report=lines.append
    )
    assert [one.same for one in export.agreements] == [len(SENTENCES)] * 2, lines
    assert lines[1:] == [f"{s}: 12 of 12 sentences have the same ids" for s in ("greedy", "beam 4")]
    # Ids hide small mistakes: the probabilities of a given target.
    translator = CTranslate2Translator(tmp_path / "out")
    source = translator.tokenizer(SENTENCES[0])["input_ids"]
    target = [7, 19, 300, 5, 44, EOS]
    (scored,) = translator.translator.score_batch(
        [[translator.source_tokens[i] for i in source]],
        [[translator.target_tokens[i] for i in target[:-1]]],
    )
    start = model.config.decoder_start_token_id
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([source]),
            attention_mask=torch.ones(1, len(source)),
            decoder_input_ids=torch.tensor([[start, *target[:-1]]]),
        ).logits[0]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0]
    assert scored.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 1, "max_new_tokens": 9},
        {"num_beams": 3, "max_new_tokens": 30, "length_penalty": 1.0},
        {"num_beams": 5, "max_new_tokens": 12, "length_penalty": 0.6},
        {
            "num_beams": 4,
            "max_new_tokens": 30,
            "length_penalty": 2.0,
            "length_penalty_formula": "power",
        },
        {"num_beams": 1, "max_tokens_over_source": 5},
        {"num_beams": 4, "max_tokens_over_source": 20},
    ],
    ids=str,
)
def test_searches_are_mapped(arguments: dict[str, Any], tmp_path: Path) -> None:
    model = save_model(tmp_path)
    model.generation_config.update(suppress_tokens=[PAD, 11], min_new_tokens=2, max_length=None)
    stop: dict[str, Any] = {}
    if arguments["num_beams"] > 1:
        # A beam that stops as CTranslate2's and counts as it does.
        arguments = {**arguments, "early_stopping": True}
        stop["renormalize_logits"] = True
    model.generation_config.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    module.write_ctranslate2(model, tokenizer, tmp_path)
    (tmp_path / RECORD).write_text(json.dumps({"max_positions": None}), "utf-8")
    sources = sorted(tokenizer(SENTENCES)["input_ids"], key=len, reverse=True)
    expected = native_outputs(model, sources, **arguments, **stop)
    found = CTranslate2Translator(tmp_path).generate(sources, **arguments)
    assert len({*map(tuple, found)}) > 1
    if "max_tokens_over_source" in arguments:
        # Where it is forced there is no `</s>`; the text is the same.
        expected, found = ([[i for i in ids if i != EOS] for ids in x] for x in (expected, found))
    assert found == expected


def test_text_is_translated_as_by_the_model(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", is_two_sided=True)
    export_ctranslate2(tmp_path / "model", tmp_path / "out", sentences=SENTENCES)
    translator = CTranslate2Translator(tmp_path / "out")
    lines = [*SENTENCES, "", "  ", "The dog sees the cat. " * 300]
    greedy = DecodingSettings(num_beams=1)
    found = translator.translate(lines, greedy, max_batch_tokens=100)
    tokenizer = load_tokenizer(tmp_path / "model")
    expected = translate(model, tokenizer, lines, greedy, max_batch_tokens=1024)
    assert found == [hypotheses[0].text for hypotheses in expected]
    assert found[-3:] == ["", "", ""]
    assert any(found)
    with pytest.raises(ValueError, match="num_hypotheses"):
        translator.translate(lines, DecodingSettings(num_hypotheses=2))


def test_directory_is_whole_and_stock(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    export = export_ctranslate2(tmp_path / "model", tmp_path / "out", sentences=SENTENCES)
    assert export.output == tmp_path / "out"
    record = json.loads((tmp_path / "out" / RECORD).read_text("utf-8"))
    assert record["format"] == "ctranslate2"
    assert record["agreement"][1] | {"same": 12, "search": "beam 4"} == record["agreement"][1]
    # By CTranslate2 and transformers alone, as their users would.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(SENTENCES[0])["input_ids"])
    translator = ctranslate2.Translator(str(tmp_path / "out"))
    (result,) = translator.translate_batch([tokens], beam_size=1, max_decoding_length=20)
    ids = tokenizer.convert_tokens_to_ids(result.hypotheses[0])
    text = CTranslate2Translator(tmp_path / "out").translate(
        SENTENCES[:1], DecodingSettings(num_beams=1)
    )
    assert text[0].startswith(tokenizer.decode(ids))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_less_precision_is_measured(precision: Any, tmp_path: Path) -> None:
    save_model(tmp_path / "model", d_model=64, d_ff=128, spread=1.0)
    lines: list[str] = []
    export = export_ctranslate2(
        tmp_path / "model",
        tmp_path / "out",
        precision=precision,
        sentences=SENTENCES,
        references=REFERENCES,
        report=lines.append,
    )
    # How much a random model loses is the processor's affair; that this much is told is ours.
    tokenizer = load_tokenizer(tmp_path / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    sources = sorted(tokenizer(SENTENCES)["input_ids"], key=len, reverse=True)
    search = {"num_beams": 1, "max_new_tokens": len(sources[0]) + 50}
    written = CTranslate2Translator(tmp_path / "out").generate(sources, **search)
    own = native_outputs(model, sources, **search)
    assert export.agreements[0].same == sum(map(list.__eq__, written, own))
    texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (written, own)]
    expected = sacrebleu.BLEU(tokenize="none", force=True).corpus_score(texts[0], texts[1:])
    assert export.agreements[0].bleu_against_native == pytest.approx(expected.score)
    exact = export_ctranslate2(tmp_path / "model", tmp_path / "exact", sentences=SENTENCES)
    assert export.size < exact.size
    for agreement, line in zip(export.agreements, lines[1:-1], strict=True):
        assert agreement.bleu is not None
        assert agreement.native_bleu is not None
        bleu, native = round(agreement.bleu, 2), round(agreement.native_bleu, 2)
        loss = f"{bleu - native:+.2f}"
        assert line.endswith(f"BLEU {bleu:.2f}, the model's own {native:.2f} ({loss})")
    assert lines[-1].startswith("BLEU: nrefs:1|case:mixed")


@pytest.mark.parametrize(
    ("architecture", "generation", "complaint"),
    [
        ({"d_k": 3}, {}, r"d_k \(3\) must be 8"),
        ({"d_v": 5}, {}, r"d_v \(5\) must be 8"),
        ({"num_segments": 2}, {}, r"num_segments \(2\) must be 0"),
        ({"eos_token_id": [2, 4]}, {}, r"eos_token_id .* must be one id"),
        ({}, {"repetition_penalty": 1.5}, r"repetition_penalty \(1.5\) .* not carried over"),
        ({}, {"no_repeat_ngram_size": 3}, r"no_repeat_ngram_size \(3\) .* not carried over"),
    ],
    ids=str,
)
def test_what_it_does_not_have_is_refused(
    architecture: dict[str, Any], generation: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", **architecture)
    model.generation_config.update(**generation)
    model.generation_config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=complaint):
        export_ctranslate2(tmp_path / "model", tmp_path / "out", sentences=SENTENCES)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_wrong_arguments_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, complaint in [
        ({"output": tmp_path / "full"}, "is in use"),
        ({"precision": "int4"}, r"precision \('int4'\)"),
        ({"references": ["one"], "sentences": SENTENCES}, "1 references for 12 sentences"),
        ({"sentences": ["", " "]}, "no sentence to compare"),
        ({"model_directory": tmp_path / "full"}, "holds no model"),
    ]:
        call: dict[str, Any] = {"model_directory": tmp_path / "model", "output": tmp_path / "out"}
        with pytest.raises(ValueError, match=complaint):
            export_ctranslate2(**(call | arguments))
    with pytest.raises(ValueError, match=r"export\.json cannot be read"):
        CTranslate2Translator(tmp_path / "model")

    def missing(name: str) -> Any:
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'vanilla_transformer\[export\]'"):
        export_ctranslate2(tmp_path / "model", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "model"]


def test_an_export_that_writes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model")
    table = module.position_table
    # As if it counted from 1.
    monkeypatch.setattr(module, "position_table", lambda *args: table(*args).roll(-1, 0))
    with pytest.raises(ValueError, match="does not write what the model writes"):
        export_ctranslate2(tmp_path / "model", tmp_path / "out", sentences=SENTENCES)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
