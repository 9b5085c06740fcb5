"""The halves: what is learned of a dialogue, how it is continued, and from where a run starts."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vanilla_transformer import VanillaTransformerForCausalLM


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "scripts")
        return importlib.import_module("claim_halves")


@pytest.fixture(scope="module")
def size(script: ModuleType) -> Any:
    return script.Size(24, 8, 24, 4, 24, 3, 300, 16, 1, 2, 2, 512)


@pytest.fixture(scope="module")
def material(script: ModuleType, size: Any) -> Any:
    return script.load_material(size)


@pytest.fixture(scope="module")
def model(script: ModuleType, size: Any, material: Any) -> VanillaTransformerForCausalLM:
    torch.manual_seed(3)
    return VanillaTransformerForCausalLM(script.configuration(size, material.tokenizer)).eval()


def test_material_is_divided(script: ModuleType, size: Any, material: Any) -> None:
    assert [len(material.pairs), len(material.labelled_pairs)] == [24, 24]
    assert [len(material.stories), len(material.dialogues)] == [8, 4]
    assert not {one.story for one in material.stories} & {one.story for one in material.dialogues}
    assert len(material.tested_dialogues) == 3
    for dialogue in material.tested_dialogues:
        assert len(dialogue.questions) == len(dialogue.answers) == 3
        assert all(answer in dialogue.story for answer in dialogue.answers)


def test_answers_alone_are_learned_of_a_dialogue(script: ModuleType, material: Any) -> None:
    tokenizer, dialogue = material.tokenizer, material.dialogues[0]
    encoded = script.encode_dialogue(tokenizer, dialogue)
    ids, labels = encoded["input_ids"], encoded["labels"]
    turns = "".join(
        f" Q: {question} A: {answer}</s>"
        for question, answer in zip(dialogue.questions, dialogue.answers, strict=True)
    )
    assert tokenizer.decode(ids) == f"<s>{dialogue.story}{turns}"
    learned = [one for one in labels if one != script.IGNORED]
    assert tokenizer.decode(learned) == "".join(f" {one}</s>" for one in dialogue.answers)
    assert all(label in (script.IGNORED, one) for one, label in zip(ids, labels, strict=True))
    text = script.encode_dialogue(tokenizer, dialogue, as_text=True)
    assert text == {"input_ids": ids, "labels": ids}


def test_the_task_counts_what_the_loss_is_of(script: ModuleType, material: Any, model: Any) -> None:
    tokenizer = material.tokenizer
    for as_text in (False, True):
        examples = [
            script.encode_dialogue(tokenizer, one, as_text=as_text) for one in material.dialogues
        ]
        task = script.ContinuationTask(tokenizer, examples)
        batch = task.collate(examples)
        assert batch["input_ids"].shape == batch["labels"].shape
        total, count = 0.0, 0
        for one in examples:
            ids = torch.tensor([one["input_ids"]])
            with torch.no_grad():
                scores = model(input_ids=ids).logits[0].log_softmax(-1)
            for place, label in enumerate(one["labels"][1:]):
                if label != script.IGNORED:
                    total -= float(scores[place, label])
                    count += 1
        assert task.count(examples) == count
        with torch.no_grad():
            loss = float(model(**batch).loss)
        assert loss == pytest.approx(total / count, rel=1e-4)
        assert task.count([task.idle(examples[0])]) == 0


def naive(model: Any, ids: list[int], most: int, end: int) -> list[int]:
    """The likeliest token after another, by whole passes without padding."""
    written: list[int] = []
    with torch.no_grad():
        while len(written) < most:
            best = int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
            if best == end:
                break
            written.append(best)
    return written


def test_continuations_do_not_see_padding(script: ModuleType, material: Any, model: Any) -> None:
    tokenizer = material.tokenizer
    prompts = [script.story_ids(tokenizer, one.story)[: 4 + 9 * i] for i, one in
               enumerate(material.stories[:3])]  # fmt: skip
    found = script.write_on(model, tokenizer, prompts, 6)
    assert found == [naive(model, ids, 6, tokenizer.eos_token_id) for ids in prompts]


def test_a_dialogue_goes_on_from_its_own_answers(
    script: ModuleType, material: Any, model: Any
) -> None:
    tokenizer, dialogues = material.tokenizer, material.tested_dialogues
    replies = script.converse(model, tokenizer, dialogues)
    for dialogue, reply in zip(dialogues, replies, strict=True):
        ids = script.story_ids(tokenizer, dialogue.story)
        for question, text in zip(dialogue.questions, reply, strict=True):
            ids += script.question_ids(tokenizer, question)
            written = naive(model, ids, script.ANSWER_TOKENS, tokenizer.eos_token_id)
            assert tokenizer.decode(written).strip() == text
            ids += [*written, tokenizer.eos_token_id]


def test_answers_match_as_squad_counts(script: ModuleType) -> None:
    dialogues = [
        script.Dialogue("", ("a?", "b?"), ("The king", "a red ball")),
        script.Dialogue("", ("c?", "d?"), ("the tree", "the house")),
    ]
    replies = [["the king.", "the red ball"], ["the garden", ""]]
    assert script.exact_match(dialogues, replies) == 50


def test_fine_tuning_starts_where_pre_training_ended(
    script: ModuleType, size: Any, material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, dict[str, torch.Tensor]] = {}
    train = script.train

    def watched(model: Any, *arguments: Any) -> Any:
        begun[arguments[3].name] = {
            name: tensor.clone() for name, tensor in model.state_dict().items()
        }
        return train(model, *arguments)

    monkeypatch.setattr(script, "train", watched)
    for name, half in script.halves(material).items():
        begun.clear()
        row, _ = script.run_half(half, material, size, 1, tmp_path / name)
        assert set(begun) == {"text", "scratch", "pre-trained"}
        updates = {start: row["starts"][start]["update"] for start in script.STARTS}
        assert updates == {"scratch": 2, "scratch, longer": 4, "pre-trained": 2}
        ended = half.language_model.from_pretrained(tmp_path / name / "text" / "model").state_dict()
        shared = [one for one in ended if one in begun["pre-trained"]]
        assert len(shared) > 5
        assert all(torch.equal(ended[one], begun["pre-trained"][one]) for one in shared)
        # From scratch everything is drawn anew.
        key = next(one for one in shared if one.endswith("fc1.weight"))
        assert not torch.equal(begun["scratch"][key], begun["pre-trained"][key])
        # What is called scratch is the longer run on its way: what a shorter one would have been.
        short = dataclasses.replace(size, pretraining=0, finetuning=2)
        settings = script.settings_of(short, 2, 1, half.task.metrics[0])
        model = half.fine_tuned(script.configuration(size, material.tokenizer, **half.options))
        model.load_state_dict(begun["scratch"])
        result = train(
            model,
            material.tokenizer,
            half.task,
            half.examples,
            tmp_path / f"{name}-short",
            settings,
        )
        assert result.validation["loss"] == pytest.approx(row["starts"]["scratch"]["loss"])


def test_it_runs(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["claim_halves.py", "--quick", "--output", str(tmp_path)])
    script.main()
    numbers = json.loads((tmp_path / "halves.json").read_text())["numbers"]
    assert set(numbers["halves"]) == set(script.NAMES)
    for rows in numbers["halves"].values():
        assert set(rows[0]["starts"]) == set(script.STARTS)
    assert len(numbers["examples"]["dialogues"]) == 3
    assert dataclasses.asdict(script.Size(**numbers["size"])) == numbers["size"]
    assert "LaMDA" in (tmp_path / "halves.html").read_text("utf-8")
