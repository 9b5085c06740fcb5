"""Translation and question answering as pipelines, with this package and without."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, pipeline

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerEncoderModel,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerModel,
)
from vanilla_transformer.registration import add_remote_code
from vanilla_transformer.tasks.question_answering import encode_questions, predict_spans
from vanilla_transformer.tokenization import (
    SPECIAL_TOKENS,
    TwoSidedTokenizer,
    load_tokenizer,
    train_tokenizer,
)

TEXTS = [
    "the cat sat on the mat",
    "a dog and a cat saw the bird that sang in the tall tree behind the house",
    "who is it",
    "the bird sings",
]
CONTEXT = " ".join(TEXTS * 4)


def config(tokenizer: PreTrainedTokenizerBase, **options: Any) -> VanillaTransformerConfig:
    torch.manual_seed(3)
    sizes = {"d_model": 32, "d_ff": 32, "num_heads": 2}
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 1, "dropout": 0.0}
    return VanillaTransformerConfig(vocab_size=len(tokenizer), **sizes, **layers, **options)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS * 5, 300)


@pytest.fixture(scope="module")
def translator(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("translator")
    model = VanillaTransformerForConditionalGeneration(config(tokenizer, tie_word_embeddings=False))
    # Else outputs would all be alike, whatever the source.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=1.0 if "embed" in name or "shared" in name else 0.6)
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_remote_code(folder)
    return folder


@pytest.fixture(scope="module")
def answerer(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("answerer")
    settings = config(tokenizer, num_segments=2, has_no_answer=True)
    VanillaTransformerForQuestionAnswering(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_remote_code(folder)
    return folder


def generated(folder: Path, text: str, **options: Any) -> list[str]:
    """By `generate`, one at a time."""
    model = VanillaTransformerForConditionalGeneration.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    inputs = tokenizer(text, return_tensors="pt")
    return tokenizer.batch_decode(model.generate(**inputs, **options), skip_special_tokens=True)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "max_new_tokens": 5}])
def test_texts_come_back_translated_in_their_order(
    translator: Path, options: dict[str, Any]
) -> None:
    translate = pipeline("vanilla-translation", model=str(translator), device="cpu")
    texts = [*TEXTS, "", "  ", *TEXTS[::-1]]
    expected = [
        {"translation_text": generated(translator, text, **options)[0] if text.strip() else ""}
        for text in texts
    ]
    assert len({found["translation_text"] for found in expected}) > 3
    for budget in (1, 40, 4096):
        assert translate(texts, max_batch_tokens=budget, **options) == expected
    stream = translate((text for text in texts), **options)
    assert next(stream) == expected[0]
    assert list(stream) == expected[1:]
    assert translate(texts[0], **options) == expected[:1]
    assert translate([texts[0]], **options) == expected[:1]
    made = pipeline("vanilla-translation", model=str(translator), device="cpu", **options)
    assert made(texts) == expected


def test_several_translations_of_each(translator: Path) -> None:
    translate = pipeline("vanilla-translation", model=str(translator), device="cpu")
    options = {"num_beams": 4, "num_return_sequences": 3}
    expected = [
        [{"translation_text": found} for found in generated(translator, text, **options)]
        for text in TEXTS
    ]
    assert translate(TEXTS, **options) == expected
    assert translate(TEXTS[0], **options) == expected[0]
    assert translate([""], **options) == [[{"translation_text": ""}] * 3]


def test_batches_keep_to_their_budget(translator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translate = pipeline("vanilla-translation", model=str(translator), device="cpu")
    shapes: list[torch.Size] = []
    generate = translate.model.generate

    def watched(**inputs: Any) -> Any:
        shapes.append(inputs["input_ids"].shape)
        return generate(**inputs)

    monkeypatch.setattr(translate.model, "generate", watched)
    translate(TEXTS * 10, max_batch_tokens=60)
    assert len(shapes) > 3
    assert max(shape.numel() for shape in shapes) <= 60
    assert sum(shape[0] for shape in shapes) == 40


def test_the_target_side_may_have_its_own_tokenizer(
    tokenizer: PreTrainedTokenizerBase, translator: Path, tmp_path: Path
) -> None:
    names = {token: i for i, token in enumerate(SPECIAL_TOKENS.values())}
    words = names | {f"word{i}": i for i in range(len(names), len(tokenizer))}
    backend = Tokenizer(models.WordLevel(words, "<unk>"))
    other = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)
    VanillaTransformerForConditionalGeneration.from_pretrained(translator).save_pretrained(tmp_path)
    TwoSidedTokenizer.join(tokenizer, other).save_pretrained(tmp_path)
    expected = [{"translation_text": generated(tmp_path, text)[0]} for text in TEXTS]
    assert all("word" in found["translation_text"] for found in expected)
    # The stock tokenizer that `pipeline` loads knows the source alone.
    translate = pipeline("vanilla-translation", model=str(tmp_path), device="cpu")
    assert translate(TEXTS) == expected
    both = load_tokenizer(tmp_path)
    translate = pipeline("vanilla-translation", model=translate.model, tokenizer=both, device="cpu")
    assert translate(TEXTS) == expected


def test_what_is_no_text_is_refused(translator: Path) -> None:
    translate = pipeline("vanilla-translation", model=str(translator), device="cpu")
    with pytest.raises(ValueError, match="7 is not a text"):
        translate(["a", 7])
    with pytest.raises(ValueError, match=r"max_batch_tokens \(0\)"):
        translate("a", max_batch_tokens=0)
    with pytest.raises(ValueError, match="num_beans"):
        translate("a", num_beans=4)


@pytest.mark.parametrize("has_none", [False, True])
def test_answers_are_those_of_the_task(answerer: Path, has_none: bool) -> None:
    answer = pipeline("vanilla-question-answering", model=str(answerer), device="cpu")
    examples = [
        {"question": "who is it", "context": CONTEXT},
        {"question": "what sings?" * 9, "context": " the bird sings  "},
    ]
    options = {"max_seq_len": 40, "doc_stride": 8, "max_question_len": 9, "max_answer_len": 4}
    found = answer(examples, top_k=5, handle_impossible_answer=has_none, **options)
    rows = [
        {"id": str(i), "answers": {"text": [], "answer_start": []}, **example}
        for i, example in enumerate(examples)
    ]
    windows, _ = encode_questions(
        Dataset.from_list(rows),
        answer.tokenizer,
        for_training=False,
        has_no_answer=True,
        max_length=40,
        stride=8,
        max_question_length=9,
    )
    assert len(windows) > 5
    logits: list[list[np.ndarray]] = [[], []]
    for window in windows:
        ids = {name: torch.tensor([window[name]]) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            output = answer.model(**ids)
        logits[0].append(output.start_logits[0].numpy())
        logits[1].append(output.end_logits[0].numpy())
    expected = predict_spans(rows, windows, *logits, n_best=5, max_answer_length=4)
    for example, answers, prediction in zip(examples, found, expected, strict=True):
        spans = [entry for entry in answers if entry["answer"]]
        kept = prediction.n_best[: len(spans)]
        assert [entry["answer"] for entry in spans] == [span.text for span in kept]
        assert [entry["start"] for entry in spans] == [span.start for span in kept]
        assert [entry["end"] for entry in spans] == [span.end for span in kept]
        for entry in spans:
            assert example["context"][entry["start"] : entry["end"]] == entry["answer"]
        ratio = spans[1]["score"] / spans[0]["score"]
        assert ratio == pytest.approx(np.exp(kept[1].score - kept[0].score), rel=1e-4)
        none = [entry for entry in answers if not entry["answer"]]
        if has_none and none:
            assert prediction.no_answer_score is not None
            odds = none[0]["score"] / spans[0]["score"]
            assert odds == pytest.approx(np.exp(prediction.no_answer_score), rel=1e-4)
        assert has_none or not none


def test_scores_are_probabilities(answerer: Path) -> None:
    answer = pipeline("vanilla-question-answering", model=str(answerer), device="cpu")
    everything = answer(question="who", context="a cat", top_k=1000, handle_impossible_answer=True)
    assert any(entry["answer"] == "" for entry in everything)
    assert sum(entry["score"] for entry in everything) == pytest.approx(1.0, abs=1e-4)
    best = answer(question="who", context="a cat", handle_impossible_answer=True)
    assert best == everything[0]


def test_questions_come_in_several_ways(answerer: Path) -> None:
    answer = pipeline("vanilla-question-answering", model=str(answerer), device="cpu")
    one = answer(question="who sat?", context=TEXTS[0])
    assert set(one) == {"score", "start", "end", "answer"}
    assert answer({"question": "who sat?", "context": TEXTS[0]}) == one
    assert answer(question=["who sat?"], context=[TEXTS[0]]) == [one]
    assert answer(question=["who sat?", "who sat?"], context=TEXTS[0]) == [one, one]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"question": "who?"}, "a question and a context"),
        ({"question": "who?", "context": " "}, r"context \(' '\) must be a text"),
        ({"question": ["a", "b"], "context": ["c"]}, "2 questions do not go with 1 contexts"),
        ({"question": "a", "context": "b", "topk": 3}, "no option 'topk'"),
        ({"question": "a", "context": "b", "top_k": 0}, r"top_k \(0\) must be at least 1"),
        ({"question": "a", "context": "b", "max_seq_len": 20}, "leaves 17 tokens of context"),
    ],
)
def test_bad_questions_are_refused(answerer: Path, given: dict[str, Any], complaint: str) -> None:
    answer = pipeline("vanilla-question-answering", model=str(answerer), device="cpu")
    with pytest.raises(ValueError, match=complaint):
        answer(**given)


WITHOUT_THE_PACKAGE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vanilla_transformer":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForQuestionAnswering, pipeline
translator, answerer, output = sys.argv[1:]
trust = {"trust_remote_code": True, "device": "cpu"}
def results(translator, answerer):
    return [
        pipeline("translation", model=translator, **trust)(["the cat sat", "who is it"]),
        pipeline("question-answering", model=answerer, **trust)(question="who?", context="a cat"),
    ]
first = results(translator, answerer)
# The only pipeline of a model need not be named.
assert pipeline(model=translator, **trust)("the cat sat") == first[0][:1]
pipeline("translation", model=translator, **trust).save_pretrained(output + "/t")
model = AutoModelForQuestionAnswering.from_pretrained(answerer, trust_remote_code=True)
model.save_pretrained(output + "/a")
pipeline("translation", model=translator, **trust).tokenizer.save_pretrained(output + "/a")
print(json.dumps([first, results(output + "/t", output + "/a")]))
"""


def test_a_models_own_code_brings_the_pipelines(
    translator: Path, answerer: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, translator, answerer, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, again = json.loads(done.stdout)
    assert again == first
    assert first[0] == [
        {"translation_text": generated(translator, text)[0]}
        for text in ("the cat sat", "who is it")
    ]
    answer = pipeline("vanilla-question-answering", model=str(answerer), device="cpu")
    here = answer(question="who?", context="a cat")
    assert first[1] == {**here, "score": pytest.approx(here["score"], rel=1e-4)}


def test_stock_pipelines_read_the_encoder(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    VanillaTransformerForMaskedLM(config(tokenizer)).save_pretrained(tmp_path / "masked")
    tokenizer.save_pretrained(tmp_path / "masked")
    marked = load_tokenizer(tmp_path / "masked")
    marked.split_special_tokens = False
    fill = pipeline("fill-mask", model=str(tmp_path / "masked"), tokenizer=marked, device="cpu")
    guesses = fill("the <mask> sat", top_k=3)
    ids = marked("the <mask> sat", return_tensors="pt")
    with torch.no_grad():
        logits = fill.model(**ids).logits[0]
    place = ids["input_ids"][0].tolist().index(marked.mask_token_id)
    expected = logits[place].softmax(-1).topk(3)
    assert [guess["token"] for guess in guesses] == expected.indices.tolist()

    VanillaTransformerModel(config(tokenizer)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    model = VanillaTransformerEncoderModel.from_pretrained(tmp_path / "encoder")
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
    features = extract(TEXTS[:2])
    for text, found in zip(TEXTS, features, strict=False):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert torch.allclose(torch.tensor(found), states, atol=1e-5)
