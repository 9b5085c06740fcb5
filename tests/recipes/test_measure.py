"""What an estimate says of each task, against the batches and the model that a run would have."""

import dataclasses
from pathlib import Path

import pytest
from datasets import Dataset

from vanilla_transformer.data.question_answering_corpora import load_question_answering
from vanilla_transformer.recipes import (
    InferenceRecipe,
    PretrainingRecipe,
    QuestionAnsweringRecipe,
    Recipe,
    estimate,
)
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.updates import UpdateStream

TINY = {"d_model": 16, "d_ff": 32, "num_heads": 2, "num_encoder_layers": 1}
# Both budgets count: short examples fill the second first.
TRAINING = TrainingSettings(max_source_tokens=2048, max_target_tokens=64)

QA = QuestionAnsweringRecipe(
    name="qa",
    description="Questions",
    corpus="tiny_world",
    train_limit=1500,
    vocab_size=400,
    max_length=64,
    stride=16,
    max_question_length=32,
    architecture=TINY,
    training=TRAINING,
)
NLI = InferenceRecipe(
    name="nli",
    description="Pairs",
    corpus="tiny_world",
    train_limit=1500,
    vocab_size=400,
    architecture=TINY,
    training=TRAINING,
)
MLM = PretrainingRecipe(
    name="mlm",
    description="Masks",
    kind="question_answering",
    corpus="tiny_world",
    train_limit=1500,
    held_out=100,
    vocab_size=400,
    max_length=32,
    masked_share=0.3,
    architecture=TINY,
    training=TRAINING,
)
WRITING = dataclasses.replace(TRAINING, max_target_tokens=512)


@pytest.mark.parametrize(
    "recipe",
    [
        QA,
        dataclasses.replace(QA, has_no_answer=True),
        dataclasses.replace(QA, cloze_questions=700),
        dataclasses.replace(QA, route="written", max_length=256, training=WRITING),
        NLI,
        dataclasses.replace(NLI, validation_split=None, held_out=100),
        dataclasses.replace(NLI, architecture={**TINY, "pooling": "decoder"}),
        dataclasses.replace(NLI, route="written", training=WRITING),
        MLM,
        dataclasses.replace(MLM, kind="inference"),
    ],
    ids=lambda recipe: f"{recipe.task}-{getattr(recipe, 'route', '')}",
)
def test_an_estimate_is_of_the_run_that_would_follow(recipe: Recipe, tmp_path: Path) -> None:
    texts = recipe.read()
    tokenizer = train_tokenizer(recipe.all_text(texts.train), recipe.vocab_size)
    tokenizer.save_pretrained(tmp_path)
    model, _ = recipe.build_model(tokenizer)
    examples, _ = recipe.encode(texts.train, tokenizer, model.config, None)
    task = recipe.build_task(texts, tokenizer, model.config)
    stream = UpdateStream(examples, task, recipe.training)

    costs, corpus = estimate(recipe, tokenizer=tmp_path)
    assert costs.parameters == model.num_parameters()
    assert corpus is not None
    assert corpus.is_counted
    # Cloze questions are taken to be as long as the real ones.
    tolerance = 0.25 if getattr(recipe, "cloze_questions", None) else 0.1
    assert corpus.examples == pytest.approx(len(examples), rel=tolerance)
    assert corpus.source_tokens == pytest.approx(
        sum(map(len, examples["input_ids"])), rel=tolerance
    )
    assert costs.updates_per_epoch == pytest.approx(len(stream), rel=2 * tolerance)
    words, corpus = estimate(recipe)
    assert corpus is not None
    assert not corpus.is_counted
    assert words.has_decoder == any("decoder" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("recipe", [QA, NLI, MLM], ids=lambda recipe: recipe.task)
def test_what_is_not_on_this_machine_is_not_read(recipe: Recipe) -> None:
    for corpus in ("", "someone/corpus"):
        costs, size = estimate(dataclasses.replace(recipe, corpus=corpus))
        assert size is None
        assert costs.epochs is None
        assert costs.parameters > 0
    with pytest.raises(ValueError, match="no such file"):
        estimate(dataclasses.replace(recipe, corpus="./nowhere.json"))


def test_the_share_of_masked_tokens_counts() -> None:
    few, many = (
        estimate(dataclasses.replace(MLM, masked_share=share))[0].update_flops
        for share in (0.15, 0.3)
    )
    assert few < many < 2 * few


def test_long_contexts_count_as_the_windows_that_hold_the_answer(tmp_path: Path) -> None:
    # A window is far shorter than a context, and the answers lie anywhere in it.
    questions, _ = load_question_answering("tiny_world", "train", limit=400)
    joined = []
    for first in range(0, 400, 5):
        rows = [questions[number] for number in range(first, first + 5)]
        before = ""
        for row in rows:
            start = len(before) + row["answers"]["answer_start"][0]
            joined.append(
                {
                    "id": row["id"],
                    "question": row["question"],
                    "context": " ".join(one["context"] for one in rows),
                    "answers": {"text": row["answers"]["text"][:1], "answer_start": [start]},
                }
            )
            before += row["context"] + " "
    Dataset.from_list(joined).to_parquet(tmp_path / "train.parquet")
    for has_no_answer in (False, True):
        recipe = dataclasses.replace(
            QA,
            corpus=str(tmp_path),
            train_limit=None,
            validation_split=None,
            held_out=5,
            test_splits=(),
            has_no_answer=has_no_answer,
        )
        texts = recipe.read()
        tokenizer = train_tokenizer(recipe.all_text(texts.train), recipe.vocab_size)
        config = recipe.config(tokenizer)
        windows, _ = recipe.encode(texts.train, tokenizer, config, None)
        assert len(windows) > 1.1 * len(texts.train)
        corpus = recipe.measure(tokenizer)
        assert corpus is not None
        assert corpus.examples == pytest.approx(len(windows), rel=0.12)
        tokens = sum(map(len, windows["input_ids"]))
        assert corpus.source_tokens == pytest.approx(tokens, rel=0.12)
