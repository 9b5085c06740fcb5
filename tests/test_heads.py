"""Question answering, sequence classification and segments: the encoder read by other heads."""

import copy
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from transformers import Trainer, TrainingArguments, pipeline
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from tests.conftest import build, tiny
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerEncoderModel,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
    VanillaTransformerPreTrainedModel,
)
from vanilla_transformer.tokenization import train_tokenizer

QA, Classifier = (
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
Builder = type[VanillaTransformerPreTrainedModel]
V, D = 29, 16
POOLINGS = ["mean", "max", "decoder"]
# question </s> context </s>, of three lengths.
PAIRS = [
    [5, 6, 7, 2, 8, 9, 10, 11, 2],
    [12, 2, 13, 14, 2],
    [15, 16, 2, 17, 18, 19, 2],
]
CONTEXTS = [range(4, 8), range(2, 4), range(3, 6)]


pytestmark = pytest.mark.usefixtures("seeded")


def pad_batch(rows: list[list[int]], left: int = 0, right: int = 0) -> dict[str, torch.Tensor]:
    """One batch of the rows; `left` and `right` pad the longest, the others go to the same side."""
    length = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        missing = length - len(row)
        before = left + (missing if left > right else 0)
        after = right + (0 if left > right else missing)
        ids.append([0] * before + row + [0] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def starts_of(batch: dict[str, torch.Tensor]) -> list[int]:
    """Where each row's first real token is."""
    return [int(row.nonzero()[0]) for row in batch["attention_mask"]]


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# ------------------------------------------------------------------------------------- segments


@pytest.mark.parametrize(
    "cls", [VanillaTransformerForConditionalGeneration, VanillaTransformerForMaskedLM, QA]
)
@torch.no_grad()
def test_a_checkpoint_starts_unchanged_with_segments(cls: Builder, tmp_path: Path) -> None:
    model = build(cls)
    model.save_pretrained(tmp_path)
    loaded, report = cls.from_pretrained(tmp_path, num_segments=2, output_loading_info=True)
    assert set(report["missing_keys"]) == {"model.encoder.embed_segments.weight"}
    assert (loaded.model.encoder.embed_segments.weight == 0).all()
    inputs = pad_batch(PAIRS)
    if cls is VanillaTransformerForConditionalGeneration:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])
    # Trained, saved and loaded again they are what they were.
    nn.init.normal_(loaded.model.encoder.embed_segments.weight)
    loaded.save_pretrained(tmp_path / "trained")
    again, report = cls.from_pretrained(tmp_path / "trained", output_loading_info=True)
    assert not any(report.values()), report
    expected = loaded.model.encoder.embed_segments.weight
    assert torch.equal(again.model.encoder.embed_segments.weight, expected)


@torch.no_grad()
def test_segments_are_added_to_the_scaled_and_positioned_input() -> None:
    model = build(VanillaTransformerEncoderModel, num_segments=2)
    inputs = pad_batch(PAIRS[:1])
    with_segments = model(**inputs, output_hidden_states=True).hidden_states[0]
    table = model.encoder.embed_segments.weight.clone()
    model.encoder.embed_segments.weight.zero_()
    without = model(**inputs, output_hidden_states=True).hidden_states[0]
    expected = table[torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])]
    torch.testing.assert_close(with_segments - without, expected)


@pytest.mark.parametrize(
    ("rows", "eos", "segments"),
    [
        ([[5, 2, 6, 2]], 2, [[0, 0, 1, 1]]),
        # Padding on either side, which may itself be written with the separator's id.
        ([[0, 0, 5, 2, 6, 2, 0]], 2, [[0, 0, 0, 0, 1, 1, 1]]),
        ([[2, 2, 5, 3, 6, 3]], [2, 3], [[0, 0, 0, 0, 1, 1]]),
        ([[5, 6, 7, 2], [5, 6, 7, 8]], 2, [[0, 0, 0, 0], [0, 0, 0, 0]]),
        ([[5, 2, 2, 6, 2, 7, 2]], 2, [[0, 0, 1, 1, 1, 1, 1]]),
    ],
)
@torch.no_grad()
def test_segments_follow_from_the_ids(
    rows: list[list[int]], eos: Any, segments: list[list[int]]
) -> None:
    model = build(VanillaTransformerEncoderModel, num_segments=2, eos_token_id=eos)
    ids = torch.tensor(rows)
    mask = (ids != 0).long()
    if rows[0][0] == 2:
        mask[:, :2] = 0
    derived = model.encoder.derive_segments(ids, mask)
    assert derived.tolist() == segments
    ours = model(ids, mask).last_hidden_state
    given = model(ids, mask, token_type_ids=torch.tensor(segments)).last_hidden_state
    assert torch.equal(ours, given)
    flipped = model(ids, mask, token_type_ids=1 - torch.tensor(segments)).last_hidden_state
    assert not torch.allclose(ours, flipped)


def test_segments_cannot_be_guessed() -> None:
    model = build(VanillaTransformerEncoderModel, num_segments=2)
    inputs = pad_batch(PAIRS)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    mask = inputs["attention_mask"]
    with pytest.raises(ValueError, match=r"num_segments \(2\) needs token_type_ids"):
        model(inputs_embeds=embeds, attention_mask=mask)
    types = model.encoder.derive_segments(**inputs)
    given = model(inputs_embeds=embeds, attention_mask=mask, token_type_ids=types)
    expected = model(**inputs).last_hidden_state
    torch.testing.assert_close(given.last_hidden_state, expected)
    endless = build(VanillaTransformerEncoderModel, num_segments=2, eos_token_id=None)
    with pytest.raises(ValueError, match=r"eos_token_id is None.*token_type_ids"):
        endless(**inputs)


@torch.no_grad()
def test_every_class_with_an_encoder_takes_segments() -> None:
    """And hands them to the encoder alone, in generation too."""
    inputs = pad_batch(PAIRS)
    types = torch.ones_like(inputs["input_ids"])
    for cls in (VanillaTransformerForMaskedLM, QA, Classifier):
        model = build(cls, num_segments=2)
        moved = model(**inputs, token_type_ids=types)[0]
        assert not torch.allclose(moved, model(**inputs)[0]), cls
        # A model without segments takes what a tokenizer hands it all the same.
        plain = build(cls)
        assert torch.equal(plain(**inputs, token_type_ids=types)[0], plain(**inputs)[0])
    model = build(VanillaTransformerForConditionalGeneration, num_segments=2)
    options: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 2, "output_scores": True}
    options["return_dict_in_generate"] = True
    mask = inputs["attention_mask"]
    encoded = model.get_encoder()(**inputs, token_type_ids=types)
    expected = model.generate(encoder_outputs=encoded, attention_mask=mask, **options)
    given = model.generate(**inputs, token_type_ids=types, **options)
    torch.testing.assert_close(given.sequences_scores, expected.sequences_scores)
    derived = model.generate(**inputs, **options)
    assert not torch.allclose(derived.sequences_scores, expected.sequences_scores)


# --------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("num_segments", [-1, 1])
def test_one_segment_tells_nothing_apart(num_segments: int) -> None:
    with pytest.raises(ValueError, match=r"num_segments.*must be 0.*try num_segments=2"):
        tiny(num_segments=num_segments)


@pytest.mark.parametrize(
    "wrong", [{"pooling": "first"}, {"has_no_answer": "yes"}, {"num_segments": 2.5}]
)
def test_fields_of_the_wrong_type_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError):
        tiny(**wrong)


def test_the_heads_fields_survive_json_and_old_configs_lack_them(tmp_path: Path) -> None:
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    options = {"num_segments": 2, "has_no_answer": True, "pooling": "max"}
    config = tiny(**options, id2label=names, label2id={n: i for i, n in names.items()})
    config.save_pretrained(tmp_path)
    loaded = VanillaTransformerConfig.from_pretrained(tmp_path)
    assert (loaded.num_segments, loaded.has_no_answer, loaded.pooling) == (2, True, "max")
    assert loaded.id2label == names
    assert loaded.label2id == {"entailment": 0, "neutral": 1, "contradiction": 2}
    assert loaded.num_labels == 3
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    for name in options:
        del stored[name]
    file.write_text(json.dumps(stored))
    old = VanillaTransformerConfig.from_pretrained(tmp_path)
    assert (old.num_segments, old.has_no_answer, old.pooling) == (0, False, "mean")


# ------------------------------------------------------------------- one checkpoint, these heads


def variants() -> list[tuple[Builder, dict[str, Any], set[str]]]:
    """Each head with its options, and what a translation checkpoint cannot give it."""
    span = {"qa_outputs.weight", "qa_outputs.bias"}
    no_answer = {"no_answer_outputs.weight", "no_answer_outputs.bias"}
    label = {"classifier.weight", "classifier.bias"}
    return [
        (QA, {}, span),
        (QA, {"has_no_answer": True}, span | no_answer),
        (QA, {"num_segments": 2}, span | {"model.encoder.embed_segments.weight"}),
        *((Classifier, {"pooling": pooling, "num_labels": 3}, label) for pooling in POOLINGS),
    ]


@pytest.mark.parametrize("tying", [{}, {"share_embeddings": False}, {"decoder_vocab_size": 23}])
@pytest.mark.parametrize(("cls", "options", "new"), variants())
def test_a_translation_checkpoint_serves_the_head(
    cls: Builder, options: dict[str, Any], new: set[str], tying: dict[str, Any], tmp_path: Path
) -> None:
    """The stacks are its own, bit for bit, and what is newly initialised is reported."""
    whole = build(VanillaTransformerForConditionalGeneration, **tying)
    whole.save_pretrained(tmp_path)
    head, report = cls.from_pretrained(tmp_path, **options, output_loading_info=True)
    assert set(report["missing_keys"]) == new
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    original = whole.model.state_dict()
    kept = {n: t for n, t in head.model.state_dict().items() if "embed_segments" not in n}
    for name, tensor in kept.items():
        assert torch.equal(tensor, original[name]), name
    stacks = {name.split(".")[0] for name in kept} - {"shared"}
    is_decoded = options.get("pooling") == "decoder"
    assert stacks == ({"encoder", "decoder"} if is_decoded else {"encoder"})
    # The new layers are of the right size and not what the memory held.
    assert head(**pad_batch(PAIRS))[0].isfinite().all()
    # With an output layer of its own, which these heads have no use for.
    untied = build(VanillaTransformerForConditionalGeneration, tie_word_embeddings=False)
    untied.save_pretrained(tmp_path / "untied")
    _, report = cls.from_pretrained(tmp_path / "untied", **options, output_loading_info=True)
    assert not report["unexpected_keys"]


@pytest.mark.parametrize(("cls", "options", "new"), variants())
def test_a_masked_lm_checkpoint_serves_the_head(
    cls: Builder, options: dict[str, Any], new: set[str], tmp_path: Path
) -> None:
    masked = build(VanillaTransformerForMaskedLM)
    masked.save_pretrained(tmp_path)
    head, report = cls.from_pretrained(tmp_path, **options, output_loading_info=True)
    missing = set(report["missing_keys"])
    if options.get("pooling") == "decoder":
        # It never had a decoder, which is said rather than made up in silence.
        assert any(name.startswith("model.decoder.layers.2.cross_attn") for name in missing)
        missing = {name for name in missing if not name.startswith("model.decoder.")}
        assert head.config.is_encoder_decoder
    assert missing == new
    assert not report["unexpected_keys"]
    assert torch.equal(
        head.model.encoder.layers[1].fc1.weight, masked.model.encoder.layers[1].fc1.weight
    )


@pytest.mark.parametrize(("cls", "options", "new"), variants())
@torch.no_grad()
def test_every_variant_comes_back_as_it_was_saved(
    cls: Builder, options: dict[str, Any], new: set[str], tmp_path: Path
) -> None:
    model = build(cls, **options)
    assert new <= set(model.state_dict())
    model.save_pretrained(tmp_path)
    loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    inputs = pad_batch(PAIRS)
    assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])
    assert loaded.config.is_encoder_decoder == (options.get("pooling") == "decoder")


# ---------------------------------------------------------------------------- question answering

PADDINGS = [(0, 0), (0, 3), (3, 0), (4, 2)]


def span_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The last token but one of each context to its last."""
    starts = torch.tensor(starts_of(batch))
    last = torch.tensor([places[-1] for places in CONTEXTS])
    return {"start_positions": starts + last - 1, "end_positions": starts + last}


@pytest.mark.parametrize("has_no_answer", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("names_padding", [False, True])
@torch.no_grad()
def test_only_the_context_can_be_chosen(
    has_no_answer: bool, padding: tuple[int, int], names_padding: bool
) -> None:
    model = build(QA, has_no_answer=has_no_answer)
    batch = pad_batch(PAIRS, *padding)
    inputs = batch if names_padding else {"input_ids": batch["input_ids"]}
    outputs = model(**inputs)
    for logits in (outputs.start_logits, outputs.end_logits):
        assert logits.shape == batch["input_ids"].shape
        for row, start, context in zip(logits, starts_of(batch), CONTEXTS, strict=True):
            is_open = {start + place for place in context} | ({0} if has_no_answer else set())
            chosen = set((row > torch.finfo(row.dtype).min).nonzero().flatten().tolist())
            assert chosen == is_open
            assert (
                row[~torch.isin(torch.arange(len(row)), torch.tensor(list(is_open)))]
                .eq(torch.finfo(row.dtype).min)
                .all()
            )


@pytest.mark.parametrize("has_no_answer", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_padding_and_neighbours_move_neither_scores_nor_loss(
    has_no_answer: bool, padding: tuple[int, int], implementation: str
) -> None:
    model = build(QA, has_no_answer=has_no_answer, num_segments=2)
    model.set_attn_implementation(implementation)
    batch = pad_batch(PAIRS, *padding)
    together = model(**batch, **span_labels(batch))
    losses = []
    for i, (row, context) in enumerate(zip(PAIRS, CONTEXTS, strict=True)):
        alone = pad_batch([row])
        labels = {
            "start_positions": torch.tensor([context[-1] - 1]),
            "end_positions": torch.tensor([context[-1]]),
        }
        outputs = model(**alone, **labels)
        losses.append(outputs.loss)
        start = starts_of(batch)[i]
        for name in ("start_logits", "end_logits"):
            found = together[name][i, start + context[0] : start + context[-1] + 1]
            expected = outputs[name][0, context[0] : context[-1] + 1]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            if has_no_answer:
                torch.testing.assert_close(
                    together[name][i, 0], outputs[name][0, 0], rtol=1e-5, atol=1e-5
                )
    torch.testing.assert_close(together.loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_scores_are_those_of_the_formulas() -> None:
    """A linear layer on each state; no answer from the mean of what is not the context."""
    model = build(QA, has_no_answer=True)
    row, context = PAIRS[0], list(CONTEXTS[0])
    outputs = model(torch.tensor([row]), output_hidden_states=True)
    states = outputs.hidden_states[-1][0]
    question = [place for place in range(len(row)) if place not in context]
    scores = states[context] @ model.qa_outputs.weight.t() + model.qa_outputs.bias
    none = model.no_answer_outputs.weight @ states[question].mean(0) + model.no_answer_outputs.bias
    for end, name in enumerate(("start_logits", "end_logits")):
        torch.testing.assert_close(outputs[name][0, context], scores[:, end])
        torch.testing.assert_close(outputs[name][0, 0], none[end])
        # The loss is a cross-entropy over these alone.
    candidates = torch.cat([none.unsqueeze(0), scores]).log_softmax(dim=0)
    for start, end in ((5, 6), (4, 4), (0, 0)):
        places = [context.index(place) + 1 if place else 0 for place in (start, end)]
        expected = -(candidates[places[0], 0] + candidates[places[1], 1]) / 2
        labels = {"start_positions": torch.tensor([start]), "end_positions": torch.tensor([end])}
        assert model(torch.tensor([row]), **labels).loss.item() == pytest.approx(
            expected.item(), rel=1e-5
        )


@torch.no_grad()
def test_a_context_mask_overrides_what_the_ids_say() -> None:
    model = build(QA)
    batch = pad_batch(PAIRS[:1], 0, 2)
    mask = torch.zeros_like(batch["input_ids"])
    mask[:, [0, 1, 5, 9, 10]] = 1
    logits = model(**batch, context_mask=mask).start_logits
    # Padding stays closed.
    is_open = (logits > torch.finfo(logits.dtype).min).nonzero()[:, 1].tolist()
    assert is_open == [0, 1, 5]
    embeds = model.get_input_embeddings()(batch["input_ids"])
    inputs = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    torch.testing.assert_close(model(**inputs, context_mask=mask).start_logits, logits)
    with pytest.raises(ValueError, match=r"inputs_embeds needs context_mask"):
        model(**inputs)


@torch.no_grad()
def test_a_question_without_a_context_has_no_choice() -> None:
    # One text, an empty context, one that does not end, nothing at all.
    ids = torch.tensor([[5, 6, 7, 2], [5, 6, 2, 2], [5, 2, 6, 7], [0, 0, 0, 0]])
    outputs = build(QA)(ids)
    assert (outputs.start_logits == torch.finfo(torch.float32).min).all()
    with_none = build(QA, has_no_answer=True)(ids)
    assert with_none.start_logits[:, 0].isfinite().all()
    assert (with_none.start_logits[:, 0] > torch.finfo(torch.float32).min).all()
    assert (with_none.start_logits[:, 1:] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize(
    ("start", "end", "has_no_answer"),
    [
        (0, 0, False),  # No answer, which this model cannot say.
        (2, 5, False),  # The question.
        (5, 3, False),  # A separator.
        (6, 5, False),  # The end before the start.
        (5, 8, True),  # The last separator.
        (5, 9, True),  # Padding.
        (5, 11, False),  # Beyond the end,
        (-1, 5, True),  # before the beginning,
        (0, 5, True),  # half an answer.
    ],
)
def test_a_shifted_label_stops_the_run(start: int, end: int, has_no_answer: bool) -> None:
    model = build(QA, has_no_answer=has_no_answer)
    batch = pad_batch([PAIRS[0], PAIRS[0]], 0, 2)
    labels = {"start_positions": torch.tensor([5, start]), "end_positions": torch.tensor([6, end])}
    message = rf"start_positions \({start}\) and end_positions \({end}\) of example 1.*-100"
    with pytest.raises(ValueError, match=message):
        model(**batch, **labels)


def test_a_label_beyond_the_last_token_stops_the_run() -> None:
    """Where that last token could be chosen itself."""
    model, batch = build(QA), pad_batch(PAIRS[:1])
    mask, start = torch.ones_like(batch["input_ids"]), torch.tensor([5])
    model(**batch, context_mask=mask, start_positions=start, end_positions=start + 3)
    with pytest.raises(ValueError, match=r"end_positions \(9\) of example 0"):
        model(**batch, context_mask=mask, start_positions=start, end_positions=start + 4)


def test_one_end_of_an_answer_is_no_answer() -> None:
    with pytest.raises(ValueError, match=r"end_positions is missing"):
        build(QA)(**pad_batch(PAIRS), start_positions=torch.tensor([4, 2, 3]))


@pytest.mark.parametrize("training", [True, False])
def test_examples_of_which_either_end_is_ignored_cost_nothing(training: bool) -> None:
    model = build(QA).train(training)
    batch = pad_batch(PAIRS)
    labels = span_labels(batch)
    kept = model(**pad_batch(PAIRS[:1]), **{n: t[:1] for n, t in labels.items()}).loss
    labels["start_positions"][1] = -100
    labels["end_positions"][2] = -100
    assert model(**batch, **labels).loss.item() == pytest.approx(kept.item(), rel=1e-6)
    labels["end_positions"][0] = -100
    loss = model(**batch, **labels).loss
    loss.backward()
    assert loss.item() == 0
    assert (gradients(model) == 0).all()


# --------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_padding_and_neighbours_move_no_label(
    pooling: str, padding: tuple[int, int], implementation: str
) -> None:
    model = build(Classifier, pooling=pooling, num_segments=2, num_labels=3)
    model.set_attn_implementation(implementation)
    batch = pad_batch(PAIRS, *padding)
    expected = torch.cat([model(**pad_batch([row])).logits for row in PAIRS])
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    # Without a mask the pads are known by their id.
    unnamed = model(batch["input_ids"]).logits
    torch.testing.assert_close(unnamed, expected, rtol=1e-5, atol=1e-5)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    types = model.model.encoder.derive_segments(**batch)
    embedded = model(
        inputs_embeds=embeds, attention_mask=batch["attention_mask"], token_type_ids=types
    ).logits
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@torch.no_grad()
def test_pooled_states_are_the_mean_and_the_maximum(pooling: str) -> None:
    model = build(Classifier, pooling=pooling)
    outputs = model(**pad_batch([PAIRS[1]], 0, 4), output_hidden_states=True)
    states = outputs.hidden_states[-1][0, :5]
    pooled = states.mean(dim=0) if pooling == "mean" else states.max(dim=0).values
    torch.testing.assert_close(outputs.logits[0], model.classifier(pooled))


@torch.no_grad()
def test_the_decoder_pools_with_one_step() -> None:
    """Its state is that from which the translation model would write the first word."""
    model = build(Classifier, pooling="decoder", decoder_start_token_id=4)
    batch = pad_batch(PAIRS)
    model.set_attn_implementation("eager")
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    step = model.model(**batch, decoder_input_ids=torch.full((3, 1), 4)).last_hidden_state[:, 0]
    torch.testing.assert_close(outputs.logits, model.classifier(step))
    assert len(outputs.encoder_hidden_states) == 3
    assert len(outputs.decoder_hidden_states) == 4
    assert outputs.cross_attentions[0].shape == (3, 2, 1, 9)
    assert (outputs.cross_attentions[0][1, :, :, 5:] == 0).all()
    # What the start token is makes a difference, and what the pair says.
    model.config.decoder_start_token_id = 5
    assert not torch.allclose(model(**batch).logits, outputs.logits)
    other = pad_batch([[*PAIRS[0][:6], 20, *PAIRS[0][7:]]])
    assert not torch.allclose(model(**other).logits[0], outputs.logits[0])
    with pytest.raises(ValueError, match=r"exactly one of input_ids and inputs_embeds; neither"):
        model()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("training", [True, False])
def test_a_row_of_padding_alone_stays_finite(pooling: str, training: bool) -> None:
    model = build(Classifier, pooling=pooling).train(training)
    batch = pad_batch([PAIRS[0], PAIRS[1]])
    batch["input_ids"][1], batch["attention_mask"][1] = 0, 0
    outputs = model(**batch, labels=torch.tensor([0, 1]))
    assert outputs.logits.isfinite().all()
    outputs.loss.backward()
    assert gradients(model).isfinite().all()


# problem_type as given, number of labels, labels, what it amounts to
PROBLEMS: dict[str, tuple[str | None, int, torch.Tensor]] = {
    "derived single": (None, 3, torch.tensor([2, 0, 1])),
    "derived int32": (None, 3, torch.tensor([2, 0, 1], dtype=torch.int32)),
    "single": ("single_label_classification", 3, torch.tensor([2, 0, 1])),
    "derived regression": (None, 1, torch.tensor([0.5, -2.0, 3.0])),
    "regression": ("regression", 2, torch.tensor([[0.5, 1.0], [-2.0, 3.0], [0.0, 0.1]])),
    "derived multi": (None, 3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])),
    "multi": ("multi_label_classification", 2, torch.tensor([[1.0, 0], [0, 0], [1, 1]])),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_transformers_and_the_config_stays(problem: str, training: bool) -> None:
    problem_type, num_labels, labels = PROBLEMS[problem]
    model = build(Classifier, problem_type=problem_type, num_labels=num_labels).train(training)
    before = model.config.to_dict()
    outputs = model(**pad_batch(PAIRS), labels=labels)
    assert outputs.logits.shape == (3, num_labels)
    theirs = copy.deepcopy(model.config)
    expected_labels = labels.long() if "int32" in problem else labels
    expected = ForSequenceClassificationLoss(expected_labels, outputs.logits, theirs)
    torch.testing.assert_close(outputs.loss, expected)
    assert model.config.to_dict() == before
    assert model.config.problem_type == problem_type


def test_multi_labels_may_be_integers_where_the_config_says_so() -> None:
    model = build(Classifier, problem_type="multi_label_classification", num_labels=2)
    labels = torch.tensor([[1, 0], [0, 0], [1, 1]])
    loss = model(**pad_batch(PAIRS), labels=labels).loss
    expected = model(**pad_batch(PAIRS), labels=labels.float()).loss
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("training", [True, False])
def test_ignored_labels_cost_nothing(problem: str, training: bool) -> None:
    problem_type, num_labels, labels = PROBLEMS[problem]
    model = build(Classifier, problem_type=problem_type, num_labels=num_labels).train(training)
    labels = labels.clone()
    labels[1:] = -100
    loss = model(**pad_batch(PAIRS), labels=labels).loss
    kept = model(**pad_batch(PAIRS[:1]), labels=labels[:1]).loss
    assert loss.item() == pytest.approx(kept.item(), rel=1e-5)
    labels[0] = -100
    loss = model(**pad_batch(PAIRS), labels=labels).loss
    loss.backward()
    assert loss.item() == 0
    assert (gradients(model) == 0).all()


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_that_is_none_of_them_stops_the_run(label: int) -> None:
    model = build(Classifier, num_labels=3)
    message = rf"label {label} of example 2.*0 to 2, or -100.*-1: drop"
    with pytest.raises(ValueError, match=message):
        model(**pad_batch(PAIRS), labels=torch.tensor([0, -100, label]))


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "expected"),
    [
        (None, 3, torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]), r"\[3, 3\] must be \[3\]"),
        (None, 3, torch.tensor([1.0, 0.0, 2.0]), r"\[3\] must be \[3, 3\]"),
        ("regression", 2, torch.tensor([1.0, 0.0, 2.0]), r"\[3\] must be \[3, 2\]"),
        ("regression", 2, torch.zeros(6), r"\[6\] must be \[3, 2\]"),
        ("regression", 1, torch.tensor([1.0, 0.0]), r"\[2\] must be \[3\]"),
    ],
)
def test_labels_of_another_shape_are_refused(
    problem_type: str | None, num_labels: int, labels: torch.Tensor, expected: str
) -> None:
    model = build(Classifier, problem_type=problem_type, num_labels=num_labels)
    with pytest.raises(ValueError, match=rf"labels of shape {expected}.*problem_type"):
        model(**pad_batch(PAIRS), labels=labels)


def test_dropout_comes_before_the_labels_in_training_only() -> None:
    model = build(Classifier, dropout=0.5, num_encoder_layers=1)
    pooled: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        model.train()(**pad_batch(PAIRS))
        model.eval()(**pad_batch(PAIRS))
    assert 0.2 < (pooled[0] == 0).float().mean() < 0.8
    assert (pooled[1] != 0).all()


def test_pipelines_classify(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sleeps", "a dog runs"], 261, min_frequency=1)
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    for pooling in POOLINGS:
        model = build(
            Classifier,
            vocab_size=len(tokenizer),
            pooling=pooling,
            num_segments=2,
            id2label=names,
            label2id={name: i for i, name in names.items()},
        )
        folder = tmp_path / pooling
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        classify = pipeline("text-classification", model=str(folder))
        assert type(classify.model) is Classifier
        texts = [{"text": "the cat sleeps", "text_pair": "a cat"}, {"text": "a dog"}]
        found = classify(texts, batch_size=2, top_k=None)
        for text, scores in zip(texts, found, strict=True):
            inputs = tokenizer(**text, return_tensors="pt")
            with torch.no_grad():
                expected = model(**inputs).logits[0].softmax(dim=-1)
            assert {score["label"] for score in scores} == set(names.values())
            for score in scores:
                place = model.config.label2id[score["label"]]
                assert score["score"] == pytest.approx(expected[place].item(), abs=1e-5)
        guess = pipeline("zero-shot-classification", model=str(folder))
        answer = guess("the cat sleeps", candidate_labels=["animals", "money"])
        assert sorted(answer["labels"]) == ["animals", "money"]
        assert sum(answer["scores"]) == pytest.approx(1.0)
        # The label that counts is found by its name.
        assert guess.entailment_id == 0


# ---------------------------------------------------------------------------- training, both heads


def training_cases() -> dict[str, tuple[Builder, dict[str, Any]]]:
    return {
        "spans": (QA, {}),
        "spans or none": (QA, {"has_no_answer": True, "num_segments": 2}),
        **{f"labels by {pooling}": (Classifier, {"pooling": pooling}) for pooling in POOLINGS},
        "multi-label": (Classifier, {"problem_type": "multi_label_classification"}),
        "regression": (Classifier, {"problem_type": "regression"}),
    }


CASES = training_cases()


def examples_for(case: str) -> dict[str, torch.Tensor]:
    """Eight examples, of which one is left out."""
    cls, options = CASES[case]
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, V, (8, 10), generator=generator)
    ids[:, 3], ids[:, 9] = 2, 2
    lengths = torch.arange(8) % 4
    mask = torch.ones_like(ids)
    for row, shorter in zip(range(8), lengths.tolist(), strict=True):
        if shorter:
            ids[row, 9 - shorter], ids[row, 10 - shorter :], mask[row, 10 - shorter :] = 2, 0, 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if cls is QA:
        batch["start_positions"] = torch.full((8,), 4)
        batch["end_positions"] = 4 + torch.arange(8) % 2
        if "has_no_answer" in options:
            batch["start_positions"][3], batch["end_positions"][3] = 0, 0
        batch["start_positions"][1] = -100
        return batch
    problem_type = options.get("problem_type")
    if problem_type is None:
        batch["labels"] = torch.arange(8) % 2
    elif problem_type == "regression":
        batch["labels"] = torch.randn(8, 2, generator=generator)
    else:
        batch["labels"] = torch.randint(0, 2, (8, 2), generator=generator).float()
    batch["labels"][1] = -100
    return batch


def count_items(batch: dict[str, torch.Tensor]) -> int:
    return int((batch.get("labels", batch.get("start_positions")) != -100).sum())  # type: ignore[operator]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [int, torch.tensor, lambda n: torch.tensor([n])])
def test_four_micro_batches_are_one_large_batch(case: str, kind: Any) -> None:
    """Though one of them has an example less that counts."""
    cls, options = CASES[case]
    model, batch = build(cls, **options).train(), examples_for(case)
    loss = model(**batch).loss
    loss.backward()
    large = gradients(model)
    model.zero_grad()
    total = 0.0
    for i in range(4):
        part = {name: tensor[2 * i : 2 * i + 2] for name, tensor in batch.items()}
        part_loss = model(**part, num_items_in_batch=kind(count_items(batch))).loss
        assert part_loss.shape == ()
        part_loss.backward()
        total += part_loss.item()
    small = gradients(model)
    assert total == pytest.approx(loss.item(), rel=1e-5)
    assert (small.norm() / large.norm()).item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-6)


def arguments_for(folder: Path, **overrides: Any) -> TrainingArguments:
    arguments: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": 1,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **overrides,
    }
    return TrainingArguments(**arguments)


@pytest.mark.parametrize("case", CASES)
def test_one_trainer_update_does_not_depend_on_the_accumulation(case: str, tmp_path: Path) -> None:
    cls, options = CASES[case]
    batch = examples_for(case)
    if cls is QA:
        # `Trainer` counts `labels` only: for spans it averages micro-batches as if of one size.
        batch["start_positions"][1] = 4
    examples = [{name: tensor[i] for name, tensor in batch.items()} for i in range(8)]
    trained = []
    for size, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = build(cls, **options)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        arguments = arguments_for(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        Trainer(model=model, args=arguments, train_dataset=examples).train()
        trained.append(
            torch.cat([(p.detach() - before[n]).flatten() for n, p in model.named_parameters()])
        )
    large, small = trained
    assert large.norm() > 0.01
    assert (small.norm() / large.norm()).item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["spans", "labels by mean", "labels by decoder"])
def test_trainer_predicts_logits_and_nothing_else(case: str, tmp_path: Path) -> None:
    cls, options = CASES[case]
    batch = examples_for(case)
    examples = [{name: tensor[i] for name, tensor in batch.items()} for i in range(8)]
    model = build(cls, **options)
    trainer = Trainer(model=model, args=arguments_for(tmp_path))
    found = trainer.predict(examples)
    expected = model(**batch)
    if cls is QA:
        assert len(found.predictions) == len(found.label_ids) == 2
        torch.testing.assert_close(torch.tensor(found.predictions[1]), expected.end_logits)
    else:
        torch.testing.assert_close(torch.tensor(found.predictions), expected.logits)
    assert found.metrics["test_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)


@pytest.mark.parametrize("case", ["spans or none", "labels by mean", "labels by decoder"])
def test_gradient_checkpointing_changes_no_gradient(case: str) -> None:
    cls, options = CASES[case]
    model, batch = build(cls, **options, dropout=0.3).train(), examples_for(case)
    calls = itertools.count()

    def count(*_: Any) -> None:
        next(calls)

    model.model.encoder.layers[0].fc1.register_forward_hook(count)

    def run() -> torch.Tensor:
        model.zero_grad()
        torch.manual_seed(7)
        model(**batch).loss.backward()
        return gradients(model)

    plain = run()
    assert next(calls) == 1
    model.activation_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(run(), plain, rtol=1e-5, atol=1e-7)
    # Forward, and once more during backward.
    assert next(calls) == 4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_bfloat16_rounds_and_nothing_worse(case: str, way: str) -> None:
    cls, options = CASES[case]
    model, batch = build(cls, **options).train(), examples_for(case)
    expected = model(**batch)
    expected.loss.backward()
    plain = gradients(model)
    model.zero_grad()
    if way == "weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)
    rounded = gradients(model).float()
    # As in test_precision: the root of the share of units that rounding turns on or off.
    assert ((rounded - plain).norm() / plain.norm()).item() < 2 * 2.0**-4.5


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_training_loss_and_gradients_agree(case: str) -> None:
    """In one graph: no look at the data, and so no check of the labels."""
    cls, options = CASES[case]
    model, batch = build(cls, **options).train(), examples_for(case)
    loss = model(**batch).loss
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    # Graphs of other tests count towards the limit of recompilations.
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled_loss = compiled(**batch).loss
    compiled_loss.backward()
    assert compiled_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)
    if cls is QA:
        # What the check would have stopped is at least not to be overlooked.
        batch["start_positions"][0] = 1
        assert compiled(**batch).loss > 1e4


@pytest.mark.slow
@pytest.mark.parametrize("case", ["spans or none", "labels by max", "labels by decoder"])
@torch.no_grad()
def test_every_variant_compiles_and_exports_as_one_graph(case: str) -> None:
    cls, options = CASES[case]
    model = build(cls, **options)
    inputs = {n: t for n, t in examples_for(case).items() if n in ("input_ids", "attention_mask")}
    expected = model(**inputs)[0]
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs)[0], expected, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(model, (), inputs, strict=False)
    torch.testing.assert_close(exported.module()(**inputs)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ["spans or none", "labels by decoder"])
@torch.no_grad()
def test_flex_attention_agrees(case: str) -> None:
    if not torch.cuda.is_available() and not shutil.which("g++"):
        pytest.skip("FlexAttention on a CPU needs a C++ compiler (g++), and there is none")
    cls, options = CASES[case]
    model = build(cls, **options)
    inputs = {n: t for n, t in examples_for(case).items() if n in ("input_ids", "attention_mask")}
    expected = model(**inputs)[0]
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(**inputs)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_heads_learn_their_examples(case: str) -> None:
    """All parts get a gradient, and the loss can be driven down."""
    cls, options = CASES[case]
    model, batch = build(cls, **options).train(), examples_for(case)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model(**batch).loss
    first.backward()
    # Kernels round a gradient of nothing to almost nothing.
    without = {
        n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7
    }
    expected = set()
    if options.get("pooling") == "decoder":
        # A single key has weight 1 whatever the query: these learn where there is a longer target.
        expected = {
            f"model.decoder.layers.{layer}.self_attn.{name}_proj.weight"
            for layer in range(3)
            for name in "qk"
        }
    elif case == "spans":
        # What is added to the scores of all positions changes nothing of their softmax.
        expected = {"qa_outputs.bias", "model.encoder.layers.1.ffn_layer_norm.bias"}
    assert without == expected
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    assert loss < first / 4
