"""The halves that BERT and GPT kept: pre-trained on text, fine-tuned on few examples.

    python scripts/claim_halves.py

The encoder alone is a masked language model (Devlin et al. 2019, "BERT"), which reads pairs of
sentences and then classifies them; the decoder alone is a causal one (Radford et al. 2018, "GPT"),
which reads stories with what people say about them and then answers questions by continuing the
dialogue (Thoppilan et al. 2022, "LaMDA"). Both run through the package's own training loop.
"""

import dataclasses
import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from claim_runs import parameters_of
from claims import Finding, Table, claim_parser, interval, publish, with_interval
from datasets import Dataset
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForCausalLM,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.data.inference_corpora import LABELS, load_inference
from vanilla_transformer.data.question_answering_corpora import load_question_answering
from vanilla_transformer.evaluation.question_answering import evaluate_question_answering
from vanilla_transformer.tasks.natural_language_inference import encode_inference
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.inference import InferenceTask
from vanilla_transformer.training.initialization import align_keys_with_queries
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.pretraining import MaskedLanguageModelingTask
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.task import Task, Validation
from vanilla_transformer.training.validation import validation_loss, whole_model

# What the loss leaves out.
IGNORED = -100
STARTS = ("scratch", "scratch, longer", "pre-trained")
NAMES = {"encoder": "encoder, classifies pairs", "decoder": "decoder, goes on with dialogues"}
# The longest answer has fewer tokens.
ANSWER_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the data, the models and the runs.

    Attributes:
        pairs, stories: To pre-train on, without labels.
        labelled_pairs, dialogues: To fine-tune on; a dialogue has three questions.
        tested_pairs, tested_dialogues: Of unseen combinations, to measure on.
        vocab_size, width, layers: Of the models.
        pretraining, finetuning: Updates; those of the former a multiple of those of the latter.
        tokens: Of an update, padding included.
        peak: Of the learning rate.
    """

    pairs: int = 20_000
    stories: int = 6000
    labelled_pairs: int = 1200
    dialogues: int = 400
    tested_pairs: int = 600
    tested_dialogues: int = 100
    vocab_size: int = 600
    width: int = 64
    layers: int = 3
    pretraining: int = 900
    finetuning: int = 300
    tokens: int = 1024
    peak: float = 2e-3


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A story, and what is asked and answered about it."""

    story: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Material:
    """What both halves are made of.

    Attributes:
        tokenizer: Trained on all text.
        pairs: Sentences in pairs, of which the labels are not looked at.
        labelled_pairs, tested_pairs: As `load_inference` gives them.
        stories: Dialogues about stories, as text.
        dialogues, tested_dialogues: To be answered.
    """

    tokenizer: PreTrainedTokenizerBase
    pairs: Dataset
    labelled_pairs: Dataset
    tested_pairs: Dataset
    stories: list[Dialogue]
    dialogues: list[Dialogue]
    tested_dialogues: list[Dialogue]


def load_material(size: Size) -> Material:
    """Makes the texts and trains the tokenizer."""
    pairs, _ = load_inference("tiny_world", "train", limit=size.labelled_pairs + size.pairs)
    tested_pairs, _ = load_inference("tiny_world", "test", limit=size.tested_pairs)
    count = size.dialogues + size.stories
    questions, _ = load_question_answering("tiny_world", "train", limit=3 * count)
    tested, _ = load_question_answering("tiny_world", "test", limit=3 * size.tested_dialogues)
    dialogues = dialogues_of(questions)
    columns = (pairs["premise"], pairs["hypothesis"], questions["context"], questions["question"])
    tokenizer = train_tokenizer([*itertools.chain(*columns), "Q: A:"], size.vocab_size)
    return Material(
        tokenizer,
        pairs.select(range(size.labelled_pairs, len(pairs))),
        pairs.select(range(size.labelled_pairs)),
        tested_pairs,
        dialogues[size.dialogues :],
        dialogues[: size.dialogues],
        dialogues_of(tested),
    )


def dialogues_of(questions: Dataset) -> list[Dialogue]:
    """The questions about one story after another, in their order."""
    found = []
    for story, rows in itertools.groupby(questions, key=lambda row: row["context"]):
        some = list(rows)
        asked = tuple(row["question"] for row in some)
        found.append(Dialogue(story, asked, tuple(row["answers"]["text"][0] for row in some)))
    return found


# ------------------------------------------------------------------------ the decoder's two tasks


def story_ids(tokenizer: PreTrainedTokenizerBase, story: str) -> list[int]:
    """`<s>` and the story."""
    return [tokenizer.bos_token_id, *tokenizer.encode(story, add_special_tokens=False)]


def question_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """What one side of the dialogue says, up to where the other one goes on."""
    return list(tokenizer.encode(f" Q: {question} A:", add_special_tokens=False))


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue, *, as_text: bool = False
) -> dict[str, list[int]]:
    """`<s> story Q: question A: answer </s> Q: … A: answer </s>`.

    Every token is learned where it is text, else the answers alone.
    """
    ids = story_ids(tokenizer, dialogue.story)
    labels = [IGNORED] * len(ids)
    for question, answer in zip(dialogue.questions, dialogue.answers, strict=True):
        asked = question_ids(tokenizer, question)
        said = [*tokenizer.encode(f" {answer}", add_special_tokens=False), tokenizer.eos_token_id]
        ids += asked + said
        labels += [IGNORED] * len(asked) + said
    return {"input_ids": ids, "labels": list(ids) if as_text else labels}


def encode_pair_texts(tokenizer: PreTrainedTokenizerBase, pairs: Dataset) -> Dataset:
    """`premise </s> hypothesis </s>`, without a label."""
    ids = tokenizer(list(pairs["premise"]), list(pairs["hypothesis"]))["input_ids"]
    return Dataset.from_dict({"input_ids": ids})


class ContinuationTask(Task):
    """Writing on: text, or the answers in a dialogue.

    Args:
        tokenizer: Of the model.
        examples: To validate on, as `encode_dialogue` gives them.
        dialogues: Whose answers are to be written and compared; none for text.
    """

    metrics = ("exact_match", "perplexity")
    item = "tokens"
    columns = ("input_ids", "labels")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        examples: Iterable[dict[str, list[int]]],
        dialogues: Sequence[Dialogue] = (),
    ):
        self.tokenizer, self.dialogues = tokenizer, dialogues
        self.examples = Dataset.from_list(list(examples))

    def count(self, batch: Sequence[dict[str, Any]]) -> int:
        """Tokens to be written: the first of a text is given."""
        return sum(len(one["labels"]) - 1 - one["labels"][1:].count(IGNORED) for one in batch)

    def idle(self, example: dict[str, Any]) -> dict[str, Any]:
        """The text with nothing to be written."""
        return {**example, "labels": [IGNORED] * len(example["labels"])}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels`, `[B, T]`, padded on the right."""

        def padded(rows: list[list[int]], value: int) -> torch.Tensor:
            some = [torch.tensor(row) for row in rows]
            return nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=value)

        ids = [one["input_ids"] for one in examples]
        return {
            "input_ids": padded(ids, self.tokenizer.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded([one["labels"] for one in examples], IGNORED),
        }

    def validate(
        self, accelerator: Accelerator, model: nn.Module, settings: TrainingSettings
    ) -> Validation:
        """Loss and perplexity, and in percent the answers that are right."""
        with whole_model(accelerator, model) as inner:
            loss = validation_loss(accelerator, inner, self, self.examples)
            scores = {"loss": loss, "perplexity": math.exp(min(loss, 700))}
            if self.dialogues:
                replies = converse(inner, self.tokenizer, self.dialogues)
                scores["exact_match"] = exact_match(self.dialogues, replies)
        return Validation(scores)


@torch.no_grad()
def write_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], most: int
) -> list[list[int]]:
    """Greedy continuations of prompts, up to `</s>` and without it."""
    longest = max(map(len, prompts))
    # On the left, so that all go on at the same place.
    padding = [[tokenizer.pad_token_id] * (longest - len(row)) for row in prompts]
    rows = [[*pad, *row] for pad, row in zip(padding, prompts, strict=True)]
    mask = [[0] * len(pad) + [1] * (longest - len(pad)) for pad in padding]
    written = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    tails = written[:, longest:].tolist()
    return [list(itertools.takewhile(lambda one: one not in ends, row)) for row in tails]


def converse(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Dialogue]
) -> list[list[str]]:
    """Answers of each dialogue, turn by turn; each reads the answers that the model gave before.

    Dialogues are of as many questions each.
    """
    said = [story_ids(tokenizer, dialogue.story) for dialogue in dialogues]
    replies: list[list[str]] = [[] for _ in dialogues]
    for turn in range(len(dialogues[0].questions)):
        for dialogue, ids in zip(dialogues, said, strict=True):
            ids += question_ids(tokenizer, dialogue.questions[turn])
        answers = write_on(model, tokenizer, said, ANSWER_TOKENS)
        for ids, answer, reply in zip(said, answers, replies, strict=True):
            ids += [*answer, tokenizer.eos_token_id]
            reply.append(tokenizer.decode(answer).strip())
    return replies


def exact_match(dialogues: Sequence[Dialogue], replies: Sequence[Sequence[str]]) -> float:
    """In percent, as SQuAD counts: case, punctuation and articles do not matter."""
    gold = [answer for dialogue in dialogues for answer in dialogue.answers]
    found = [answer for reply in replies for answer in reply]
    references = [
        {"id": str(number), "answers": {"text": [answer]}} for number, answer in enumerate(gold)
    ]
    predictions = {str(number): answer for number, answer in enumerate(found)}
    scores = evaluate_question_answering(
        references, predictions, version="1.1", bootstrap_samples=0
    )
    return float(scores["exact_match"])


# ------------------------------------------------------------------------------------------- runs


def configuration(
    size: Size, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> VanillaTransformerConfig:
    """Of either half."""
    return VanillaTransformerConfig(
        vocab_size=len(tokenizer),
        d_model=size.width,
        d_ff=4 * size.width,
        num_heads=8,
        num_encoder_layers=size.layers,
        num_decoder_layers=size.layers,
        layer_norm_position="pre",
        label_smoothing=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        # As the recipe for these pairs.
        pooling="max",
        **options,
    )


def settings_of(size: Size, updates: int, seed: int, monitor: str) -> TrainingSettings:
    """A run that is measured whenever fine-tuning would end."""
    warmup = max(1, size.finetuning // 8)
    return TrainingSettings(
        updates=updates,
        warmup=warmup,
        learning_rate_factor=size.peak * math.sqrt(size.width * warmup),
        max_source_tokens=size.tokens,
        max_target_tokens=size.tokens,
        max_gradient_norm=1.0,
        validate_every=size.finetuning,
        checkpoint_every=updates,
        average_last=1,
        log_every=max(1, updates // 10),
        trackers=(),
        monitor=monitor,
        max_loss_spike=None,
        sample_predictions=0,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class Half:
    """What differs between encoder and decoder.

    Attributes:
        language_model: What is pre-trained, on
        text: and its
        texts: examples.
        fine_tuned: What it becomes, for
        task: and its
        examples: few.
        options: Fields of its configuration.
    """

    language_model: type[PreTrainedModel]
    fine_tuned: type[PreTrainedModel]
    text: Task
    texts: Dataset
    task: Task
    examples: Dataset
    options: dict[str, Any]


def halves(material: Material) -> dict[str, Half]:
    """Both, with the data encoded."""
    tokenizer = material.tokenizer
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {b: a for a, b in enumerate(LABELS)}}
    classes = VanillaTransformerConfig(**labels)
    labelled, _ = encode_inference(material.labelled_pairs, tokenizer, classes, for_training=True)

    def dialogues(some: Sequence[Dialogue], as_text: bool) -> Dataset:
        return Dataset.from_list([encode_dialogue(tokenizer, one, as_text=as_text) for one in some])

    tested = material.tested_dialogues
    return {
        "encoder": Half(
            VanillaTransformerForMaskedLM,
            VanillaTransformerForSequenceClassification,
            MaskedLanguageModelingTask(
                tokenizer, encode_pair_texts(tokenizer, material.tested_pairs)
            ),
            encode_pair_texts(tokenizer, material.pairs),
            InferenceTask(tokenizer, classes, material.tested_pairs),
            labelled,
            labels,
        ),
        "decoder": Half(
            VanillaTransformerForCausalLM,
            VanillaTransformerForCausalLM,
            ContinuationTask(tokenizer, dialogues(tested, True)),
            dialogues(material.stories, True),
            ContinuationTask(tokenizer, dialogues(tested, False), tested),
            dialogues(material.dialogues, False),
            {},
        ),
    }


def run_half(
    half: Half, material: Material, size: Size, seed: int, directory: Path
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Pre-trains once, and fine-tunes from each start.

    Returns:
        What was measured, and the pre-trained model after fine-tuning.
    """
    tokenizer = material.tokenizer

    def fresh(kind: type[PreTrainedModel], **options: Any) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = kind(configuration(size, tokenizer, **options))
        # As the recipes for this corpus have it; without it neither half learns in this time.
        align_keys_with_queries(model, 0.9)
        return model

    model = fresh(half.language_model)
    parameters = parameters_of(model)
    settings = settings_of(size, size.pretraining, seed, "loss")
    first = train(model, tokenizer, half.text, half.texts, directory / "text", settings)
    found: dict[str, Any] = {
        "seed": seed,
        "parameters": parameters,
        "text": first.validation,
    }

    def learn(model: PreTrainedModel, updates: int, name: str) -> list[dict[str, float]]:
        """Scores after every so many updates as fine-tuning has."""
        settings = settings_of(size, updates, seed, half.task.metrics[0])
        train(model, tokenizer, half.task, half.examples, directory / name, settings)
        lines = (directory / name / "training_log.jsonl").read_text("utf-8").splitlines()
        entries = [entry for entry in map(json.loads, lines) if entry["kind"] == "validation"]
        names = ("update", "loss", *half.task.metrics)
        return [{name: entry[name] for name in names if name in entry} for entry in entries]

    # As many updates as pre-training and fine-tuning together; on its way it is where fine-tuning
    # ends, since the rate does not depend on how long a run will be.
    scratch = fresh(half.fine_tuned, **half.options)
    curve = learn(scratch, size.pretraining + size.finetuning, "scratch")
    # Loaded as any model is: the head that does not belong is left out.
    torch.manual_seed(seed)
    model = half.fine_tuned.from_pretrained(directory / "text" / "model", **half.options)
    tuned = learn(model, size.finetuning, "pre-trained")
    found["curve"] = curve
    found["starts"] = dict(zip(STARTS, (curve[0], curve[-1], tuned[-1]), strict=True))
    return found, model


@torch.no_grad()
def examples_of(
    models: dict[str, PreTrainedModel], material: Material
) -> dict[str, list[dict[str, Any]]]:
    """What the last models do with the first unseen stories: text continued, dialogues."""
    tokenizer = material.tokenizer
    dialogues = material.tested_dialogues[:3]
    replies = converse(models["dialogue"].eval(), tokenizer, dialogues)
    beginnings = [story_ids(tokenizer, one.story)[:8] for one in dialogues]
    tails = write_on(models["text"].eval(), tokenizer, beginnings, 32)
    return {
        "continuations": [
            {"beginning": tokenizer.decode(begin[1:]), "continued": tokenizer.decode(tail)}
            for begin, tail in zip(beginnings, tails, strict=True)
        ],
        "dialogues": [
            {**dataclasses.asdict(dialogue), "replies": reply}
            for dialogue, reply in zip(dialogues, replies, strict=True)
        ],
    }


def main() -> None:
    """Measures."""
    parser = claim_parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--pretraining", type=int, default=Size.pretraining, help=f"updates [{Size.pretraining}]")
    add("--finetuning", type=int, default=Size.finetuning, help=f"updates [{Size.finetuning}]")
    options = parser.parse_args()
    size = Size(pretraining=options.pretraining, finetuning=options.finetuning)
    if options.quick:
        size = Size(24, 8, 24, 4, 24, 3, 300, 16, 1, 2, 2, 512)
    seeds = 1 if options.quick else options.seeds
    begin = time.perf_counter()
    material = load_material(size)
    both = halves(material)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in both}
    examples: dict[str, Any] = {}
    for seed in range(1, seeds + 1):
        for name, half in both.items():
            print(f"{name}, seed {seed}", flush=True)
            with tempfile.TemporaryDirectory() as directory:
                row, model = run_half(half, material, size, seed, Path(directory))
                found[name].append(row)
                print(name, row, flush=True)
                if name == "decoder":
                    text = half.language_model.from_pretrained(Path(directory) / "text" / "model")
                    # Those of the last seed are kept.
                    examples = examples_of({"text": text, "dialogue": model}, material)
        # After each seed, so that a run that is stopped leaves what it has.
        raw = {
            "size": dataclasses.asdict(size),
            "seeds": seed,
            "halves": found,
            "examples": examples,
        }
        publish(finding(raw), options.output, time.perf_counter() - begin)


SCORES = {"encoder": ("accuracy", "accuracy (%)"), "decoder": ("exact_match", "exact match (%)")}


def finding(raw: dict[str, Any]) -> Finding:
    """The page, from the numbers alone."""
    size, rows = raw["size"], raw["halves"]

    def of(half: str, start: str, score: str) -> list[float]:
        return [row["starts"][start][score] for row in rows[half]]

    def text(half: str, score: str) -> list[float]:
        return [row["text"][score] for row in rows[half]]

    figure = Figure(figsize=(10, 4))
    for axes, half in zip(figure.subplots(1, 2), NAMES, strict=True):
        score, label = SCORES[half]
        curves = [row["curve"] for row in rows[half]]
        updates = [point["update"] for point in curves[0]]
        for curve in curves:
            axes.plot(updates, [point[score] for point in curve], "C0.", ms=5)
        means = [sum(points) / len(points) for points in zip(
            *([point[score] for point in curve] for curve in curves), strict=True)]  # fmt: skip
        axes.plot(updates, means, "C0-", label="from scratch")
        tuned = of(half, "pre-trained", score)
        for place, filled, when in (
            (size["finetuning"], "C1", "its own updates"),
            (size["pretraining"] + size["finetuning"], "none", "pre-training counted"),
        ):
            axes.plot(
                [place] * len(tuned), tuned, "D", color="C1", markerfacecolor=filled, ms=6,
                label=f"pre-trained, {when}",
            )  # fmt: skip
        axes.set(title=NAMES[half].capitalize(), xlabel="updates", ylabel=label)
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
    # A class of three is guessed a third of the time.
    figure.axes[0].axhline(100 / len(LABELS), color="black", ls=":", lw=1, label="chance")
    for axes in figure.axes:
        axes.legend(fontsize=8, loc="upper left")
    figure.tight_layout()

    def shown(half: str, score: str, digits: int) -> list[str]:
        return [with_interval(of(half, start, score), digits) for start in STARTS]

    tables = [
        Table(
            "Fine-tuned on few examples, measured on unseen combinations",
            ["", *STARTS],
            [
                [f"{NAMES[half]}: {what}", *shown(half, score, digits)]
                for half, score, what, digits in (
                    ("encoder", "accuracy", "accuracy (%)", 1),
                    ("encoder", "loss", "loss", 2),
                    ("decoder", "exact_match", "exact match (%)", 1),
                    ("decoder", "loss", "loss a token of the answer", 2),
                )
            ],
        ),
        Table(
            "Pre-trained on text, measured on unseen combinations",
            ["", "parameters", "perplexity", "tokens restored (%)"],
            [
                [
                    f"{half}: {what}",
                    f"{rows[half][0]['parameters']:,}",
                    with_interval(text(half, "perplexity"), 2),
                    with_interval(text(half, "accuracy")) if half == "encoder" else "",
                ]
                for half, what in (
                    ("encoder", "masked tokens"),
                    ("decoder", "every next token"),
                )
            ],
        ),
    ]
    for dialogue in raw["examples"]["dialogues"][:2]:
        tables.append(
            Table(
                dialogue["story"],
                ["question", "answer", "the decoder's"],
                list(
                    zip(
                        dialogue["questions"],
                        dialogue["answers"],
                        dialogue["replies"],
                        strict=True,
                    )
                ),
            )
        )
    tables.append(
        Table(
            "Text continued by the decoder before it is fine-tuned",
            ["beginning", "continuation"],
            [[one["beginning"], one["continued"]] for one in raw["examples"]["continuations"]],
        )
    )
    gains = {
        half: [
            late - early
            for late, early in zip(
                of(half, "pre-trained", SCORES[half][0]),
                of(half, "scratch", SCORES[half][0]),
                strict=True,
            )
        ]
        for half in NAMES
    }
    sure = [half for half, values in gains.items() if interval(values)[0] > interval(values)[1]]
    verdict = f"above zero for the {' and the '.join(sure)}" if sure else "not told from zero"
    reading = [
        f"With {size['finetuning']} updates of fine-tuning, pre-training changes the encoder's "
        f"accuracy by {with_interval(gains['encoder'])} points and the decoder's exact match by "
        f"{with_interval(gains['decoder'])}: {verdict} by these seeds.",
        "Trained from scratch for as many updates as pre-training and fine-tuning take together, "
        f"on the labelled examples again and again, the encoder has "
        f"{with_interval(of('encoder', 'scratch, longer', 'accuracy'))}% and a loss of "
        f"{with_interval(of('encoder', 'scratch, longer', 'loss'), 2)} against "
        f"{with_interval(of('encoder', 'pre-trained', 'loss'), 2)} pre-trained; the decoder "
        f"{with_interval(of('decoder', 'scratch, longer', 'exact_match'))}% and "
        f"{with_interval(of('decoder', 'scratch, longer', 'loss'), 2)} against "
        f"{with_interval(of('decoder', 'pre-trained', 'loss'), 2)}.",
    ]
    return Finding(
        name="halves",
        title="The halves: encoder alone, decoder alone",
        claim="Either stack of the Transformer is a model of its own: BERT is the encoder, "
        "pre-trained by restoring masked tokens, GPT the decoder, pre-trained by writing on, and "
        "LaMDA answers by going on with a dialogue. Pre-training on plain text is said to make "
        "few labelled examples go further.",
        method=f"Each half with {size['layers']} layers, d_model {size['width']}, pre-norm, on the "
        f"embedded corpus. The encoder reads {size['pairs']:,} pairs of sentences without labels, "
        f"{size['pretraining']} updates, and is fine-tuned to classify "
        f"{size['labelled_pairs']:,} labelled pairs (entailment, neutral, contradiction); tested "
        f"on {size['tested_pairs']:,}. The decoder reads {size['stories']:,} stories with "
        f"dialogues about them as plain text, {size['pretraining']} updates, and is fine-tuned on "
        f"the answers of {size['dialogues']:,} other dialogues of three questions; tested on "
        f"{3 * size['tested_dialogues']:,} questions, answers written greedily, each after the "
        f"model's own earlier ones. Updates are of {size['tokens']} tokens; fine-tuning has "
        f"{size['finetuning']}; {raw['seeds']} seeds, mean ± 95% interval. Test stories and pairs "
        "hold combinations of words that no training text has.",
        reading=reading,
        tables=tables,
        figure=figure,
        limits="Minutes of training of small models on one grammar's text; BERT and GPT read "
        "billions of words. The decoder's text holds dialogues, answers included, as the text that "
        "LaMDA was pre-trained on does: what fine-tuning adds there is to learn from the answers "
        "alone. The interval is over seeds of the model, not over test sets.",
        raw=raw,
    )


if __name__ == "__main__":
    main()
