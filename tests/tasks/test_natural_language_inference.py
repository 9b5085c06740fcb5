"""Pairs to ids, ids to batches, logits to labels: in the model's order and never in another's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.data.inference_corpora import LABELS, TWO_WAY_LABELS, load_inference
from vanilla_transformer.tasks.natural_language_inference import (
    InferenceEncodingReport,
    check_label_names,
    encode_inference,
    inference_as_text,
    inference_collator,
    label_probabilities,
    labels_from_text,
    predict_logits,
    write_glue_tsv,
)
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.tokenization import train_tokenizer

REVERSED = ("contradiction", "neutral", "entailment")
TEXTS = ["A dog runs in the garden.", "An animal </s> moves.", "Nobody sleeps.", "Is it so?"]


def pairs(labels: list[int], names: tuple[str, ...] = LABELS) -> Dataset:
    """Pairs of short texts with these labels."""
    rows = [
        {"premise": TEXTS[row % 4], "hypothesis": TEXTS[(row + 1) % 4], "label": label}
        for row, label in enumerate(labels)
    ]
    text = {"premise": Value("string"), "hypothesis": Value("string")}
    features = Features({**text, "label": ClassLabel(names=list(names))})
    return Dataset.from_list(rows, features=features)


def config_with(names: tuple[str, ...], **options) -> VanillaTransformerConfig:
    sizes = {"d_model": 16, "d_ff": 32, "num_heads": 2, "vocab_size": 300}
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return VanillaTransformerConfig(id2label=dict(enumerate(names)), **sizes, **layers, **options)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS * 2, 300)


def test_pairs_become_ids_premise_first(tokenizer):
    dataset = pairs([0, 1, 2])
    encoded, report = encode_inference(dataset, tokenizer, config_with(LABELS), for_training=True)
    assert encoded.column_names == ["input_ids", "labels"]
    for row, pair in zip(encoded, dataset, strict=True):
        sides = [tokenizer(pair[side])["input_ids"] for side in ("premise", "hypothesis")]
        assert row["input_ids"] == sides[0] + sides[1]
        # Exactly two ends, of premise and of hypothesis, also where the text spells one.
        assert row["input_ids"].count(tokenizer.eos_token_id) == 2
    assert encoded["labels"] == [0, 1, 2]
    assert report == InferenceEncodingReport(read=3, kept=3)


@pytest.mark.parametrize(
    ("names", "model_names", "expected"),
    [
        (LABELS, LABELS, [0, 1, 2]),
        (LABELS, REVERSED, [2, 1, 0]),
        (LABELS, ("NEUTRAL", "Contradiction", "entailment"), [2, 0, 1]),
        (TWO_WAY_LABELS, ("not_entailment", "entailment"), [1, 0]),
        # A model with two labels learns from a set with three.
        (LABELS, ("entailment", "not-entailment"), [0, 1, 1]),
    ],
)
def test_labels_become_the_models_numbers(tokenizer, names, model_names, expected):
    config = config_with(model_names)
    assert check_label_names(names, config) == expected
    labels = list(range(len(names)))
    encoded, _ = encode_inference(pairs(labels, names), tokenizer, config, for_training=True)
    assert encoded["labels"] == expected


@pytest.mark.parametrize(
    ("model_names", "complaint"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), r"'LABEL_0', .* set config.id2label = \{0: 'entail"),
        (("entailment", "neutral"), "must be entailment, neutral, contradiction"),
        (("entailment", "neutral", "neutral"), "must be entailment, neutral, contradiction"),
        (("negative", "positive"), "'negative', 'positive'"),
    ],
)
def test_models_whose_labels_are_not_named_so_are_refused(tokenizer, model_names, complaint):
    with pytest.raises(ValueError, match=complaint):
        encode_inference(pairs([0]), tokenizer, config_with(model_names), for_training=False)


def test_three_label_model_is_evaluated_but_not_trained_on_two_labels(tokenizer):
    dataset = pairs([0, 1], TWO_WAY_LABELS)
    with pytest.raises(ValueError, match="has no label 'not_entailment'"):
        encode_inference(dataset, tokenizer, config_with(LABELS), for_training=True)
    encoded, _ = encode_inference(dataset, tokenizer, config_with(LABELS), for_training=False)
    assert encoded["labels"] == [-100, -100]


def test_long_pairs_are_dropped_in_training_and_cut_in_evaluation(tokenizer):
    dataset = Dataset.from_dict(
        {"premise": ["x" * 20, "xx"], "hypothesis": ["yy", "y"], "label": [0, 1]},
        features=pairs([0]).features,
    )
    config = config_with(LABELS)
    encoded, report = encode_inference(dataset, tokenizer, config, for_training=True, max_length=10)
    assert encoded["labels"] == [1]
    assert report == InferenceEncodingReport(read=2, kept=1, dropped_too_long=1)

    encoded, report = encode_inference(
        dataset, tokenizer, config, for_training=False, max_length=10
    )
    assert report == InferenceEncodingReport(read=2, kept=2, truncated=1)
    # The longer side is cut: the hypothesis is whole, and both ends are there.
    premise, hypothesis = (tokenizer(text)["input_ids"] for text in ("x" * 20, "yy"))
    room = 10 - len(hypothesis) - 1
    assert encoded["input_ids"][0] == [*premise[:room], tokenizer.eos_token_id, *hypothesis]
    whole = len(encoded["input_ids"][1])
    for budget, kept in ((whole, 1), (whole - 1, 0)):
        short = dataset.select([1])
        options = {"for_training": True, "max_length": budget}
        assert encode_inference(short, tokenizer, config, **options)[1].kept == kept
    with pytest.raises(ValueError, match=r"max_length \(3\) must be at least 4"):
        encode_inference(dataset, tokenizer, config, for_training=True, max_length=3)


def test_unlabelled_pairs_are_left_out_of_training_only(tokenizer):
    dataset, config = pairs([2, -1, 0]), config_with(REVERSED)
    trained, report = encode_inference(dataset, tokenizer, config, for_training=True)
    assert trained["labels"] == [0, 2]
    assert (report.read, report.kept, report.dropped_too_long) == (3, 2, 0)
    evaluated, _ = encode_inference(dataset, tokenizer, config, for_training=False)
    assert evaluated["labels"] == [0, -100, 2]


def test_batches_are_padded_and_train_the_model(tokenizer):
    encoded, _ = encode_inference(
        pairs([0, 1, 2]), tokenizer, config_with(LABELS), for_training=True
    )
    batch = inference_collator(tokenizer, pad_to_multiple_of=8)(list(encoded))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] % 8 == 0
    assert batch["labels"].tolist() == [0, 1, 2]
    lengths = [len(ids) for ids in encoded["input_ids"]]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    model = VanillaTransformerForSequenceClassification(config_with(LABELS, num_segments=2))
    assert torch.isfinite(model(**batch).loss)


def test_logits_come_in_the_order_of_the_pairs_whatever_the_batches(tokenizer):
    torch.manual_seed(0)
    model = VanillaTransformerForSequenceClassification(config_with(LABELS, num_segments=2))
    dataset = pairs([0, 1, 2, -1, 0, 1, 2])
    encoded, _ = encode_inference(dataset, tokenizer, model.config, for_training=False)
    model.train()
    logits = predict_logits(model, encoded, tokenizer, batch_size=2)
    assert model.training
    model.eval()
    with torch.inference_mode():
        alone = [model(torch.tensor([ids])).logits[0].numpy() for ids in encoded["input_ids"]]
    np.testing.assert_allclose(logits, np.stack(alone), atol=1e-5)
    # Else the comparison could not tell one order from another.
    assert np.abs(logits - logits[::-1]).max() > 1e-3


@pytest.mark.parametrize("names", [LABELS, REVERSED])
def test_probabilities_are_in_our_order_whatever_the_models(names):
    ours = np.array([[3.0, 1.0, -2.0], [1000.0, 0.0, 999.0]])
    logits = ours[:, [LABELS.index(name) for name in names]]
    probabilities = label_probabilities(logits, config_with(names))
    np.testing.assert_allclose(probabilities, torch.tensor(ours).softmax(1).numpy(), atol=1e-12)


def test_logits_that_are_none_are_refused():
    config = config_with(LABELS)
    with pytest.raises(ValueError, match=r"shape \(2, 4\) must be \[N, 3\]"):
        label_probabilities(np.zeros((2, 4)), config)
    with pytest.raises(ValueError, match="logits of row 1 are not finite"):
        label_probabilities(np.array([[0.0, 0, 0], [0, np.nan, 0]]), config)


def test_glue_file(tmp_path):
    path = tmp_path / "new" / "RTE.tsv"
    write_glue_tsv(path, ["1", "0", "10"], [1, 0, 0], TWO_WAY_LABELS)
    rows = ["index\tprediction", "0\tentailment", "1\tnot_entailment", "10\tentailment", ""]
    assert path.read_bytes().decode() == "\n".join(rows)


@pytest.mark.parametrize(
    ("ids", "labels", "complaint"),
    [
        (["0"], [0, 1], "1 ids and 2 labels"),
        (["a1"], [0], "id 'a1' is no number"),
        (["1", "01"], [0, 0], "comes twice"),
        (["1"], [-1], "id 1: label -1 is none of entailment, neutral"),
        (["1"], [3], "label 3"),
    ],
)
def test_glue_file_is_not_written_from_wrong_predictions(tmp_path, ids, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        write_glue_tsv(tmp_path / "MNLI-m.tsv", ids, labels, LABELS)
    assert list(tmp_path.iterdir()) == []


def test_generative_route_there_and_back(tokenizer):
    dataset, _ = load_inference("tiny_world", "validation", limit=12)
    text = inference_as_text(dataset)
    assert text.column_names == ["source", "target"]
    first = dataset[0]
    assert text[0]["source"] == f"hypothesis: {first['hypothesis']} premise: {first['premise']}"
    assert labels_from_text(text["target"], LABELS) == dataset["label"]
    # The rows are what translation encodes.
    assert encode_pairs(text, tokenizer)[1].kept == 12
    assert inference_as_text(pairs([-1]))["target"] == [""]


@pytest.mark.parametrize(
    ("names", "expected"), [(LABELS, [0, 2, 1, -1, -1]), (TWO_WAY_LABELS, [0, 1, 1, 1, -1])]
)
def test_generated_labels_are_read_back(names, expected):
    texts = [" Entailment.", "contradiction", "neutral", "not entailment", "entailment entailment"]
    assert labels_from_text(texts, names) == expected
