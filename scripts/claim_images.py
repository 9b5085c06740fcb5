"""Not only text: images read through `inputs_embeds`, classified and captioned.

    pip install scikit-learn
    python scripts/claim_images.py

The paper's conclusion (section 7) wants attention for "input and output modalities other than text"
and names images. An image is cut into patches, and one matrix turns the numbers of a patch into a
vector of the model's width, where text has its embedding (Dosovitskiy et al. 2021, 3.1). Nothing in
the model is different.
"""

import dataclasses
import importlib
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from claim_runs import Batch, parameters_of, train
from claims import Finding, Table, claim_parser, publish, with_interval
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedModel

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForSequenceClassification,
)

PAD, START, END = 0, 1, 2
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Of the captions, after the three above: the position is the id.
WORDS = ("<pad>", "<s>", "</s>", "a", "handwritten", "and", *NUMERALS)
# Pixels of a digit, whose brightness is 0 to 16.
SIDE, BRIGHTEST = 8, 16.0
# Places for a digit in an image with a caption.
PLACES = 3


@dataclasses.dataclass(frozen=True)
class Size:
    """Of models and runs.

    Attributes:
        width, layers: Of the model, layers of either stack.
        patch: Pixels of a patch's side.
        updates: Of each run.
        images: Of an update.
        tested: Images with captions to measure on.
        peak: Of the learning rate.
    """

    width: int = 96
    layers: int = 2
    patch: int = 4
    updates: int = 1000
    images: int = 64
    tested: int = 600
    peak: float = 2e-3


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images `[N, 8, 8]` of 0 to 1, and what they show `[N]`."""

    images: torch.Tensor
    labels: torch.Tensor


def load_digits() -> tuple[Digits, Digits]:
    """The two thirds that come first, and the rest to measure on, as scikit-learn ships them.

    Raises:
        ValueError: scikit-learn is not there.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ValueError(
            "the digits come with scikit-learn, which is not installed; pip install scikit-learn"
        ) from error
    found = datasets.load_digits()
    images = torch.tensor(found.images / BRIGHTEST, dtype=torch.float32)
    labels = torch.tensor(found.target)
    border = 2 * len(labels) // 3
    return Digits(images[:border], labels[:border]), Digits(images[border:], labels[border:])


def patches(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images `[N, H, W]` as patches `[N, H·W / side², side²]`, row by row as one reads."""
    tiles = images.unfold(1, side, side).unfold(2, side, side)
    return tiles.reshape(len(images), -1, side * side)


class ImageReader(nn.Module):
    """A model whose input is patches: the one matrix that is new, and the model as it is."""

    def __init__(self, model: PreTrainedModel, patch: int):
        super().__init__()
        self.model, self.patch = model, patch
        width = model.config.d_model
        self.projection = nn.Linear(patch * patch, width)
        # The model multiplies embeddings by √d (3.4): vectors of length 1 come in, as rows do.
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        nn.init.zeros_(self.projection.bias)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, H, W]` to `[N, S, d]`."""
        embedded: torch.Tensor = self.projection(patches(images, self.patch))
        return embedded

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """What the model gives for images `[N, H, W]`."""
        return self.model(inputs_embeds=self.embed(images), labels=labels)


def build(kind: type[PreTrainedModel], size: Size, seed: int, **options: Any) -> ImageReader:
    """A fresh reader with one of the package's heads."""
    torch.manual_seed(seed)
    config = VanillaTransformerConfig(
        vocab_size=len(WORDS),
        d_model=size.width,
        d_ff=4 * size.width,
        num_heads=4,
        num_encoder_layers=size.layers,
        num_decoder_layers=size.layers,
        label_smoothing=0.0,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
        **options,
    )
    return ImageReader(kind(config), size.patch)


# --------------------------------------------------------------------------------------- captions


def caption(digits: list[int]) -> str:
    """What an image shows, from left to right."""
    return "a handwritten " + " and ".join(NUMERALS[digit] for digit in digits)


def encode(text: str) -> list[int]:
    """Ids of a caption's words, and the end."""
    return [*(WORDS.index(word) for word in text.split()), END]


def decode(ids: list[int]) -> str:
    """The words before the end."""
    kept = itertools.takewhile(lambda one: one != END, ids)
    return " ".join(WORDS[one] for one in kept if one not in (PAD, START))


@dataclasses.dataclass(frozen=True)
class Scene:
    """One to three digits on a strip of three places.

    Attributes:
        image: `[8, 24]`.
        rows: Of the digits, by place; None where there is none.
        digits: What they are, from left to right.
    """

    image: torch.Tensor
    rows: tuple[int | None, ...]
    digits: list[int]


def draw_scene(source: Digits, generator: torch.Generator) -> Scene:
    """One, two or three digits, alike often, at places drawn at random."""

    def drawn(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    count = 1 + drawn(PLACES)
    taken = sorted(torch.randperm(PLACES, generator=generator)[:count].tolist())
    rows = tuple(drawn(len(source.labels)) if place in taken else None for place in range(PLACES))
    blank = torch.zeros(SIDE, SIDE)
    image = torch.cat([blank if row is None else source.images[row] for row in rows], dim=1)
    return Scene(image, rows, [int(source.labels[row]) for row in rows if row is not None])


def digit_batches(source: Digits, count: int, seed: int) -> Iterator[Batch]:
    """Endless batches of single digits, all of them once an epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(source.labels), generator=generator)
        for rows in order.split(count):
            yield {"images": source.images[rows], "labels": source.labels[rows]}


def caption_batches(source: Digits, count: int, seed: int) -> Iterator[Batch]:
    """Endless batches of new scenes with their captions, -100 where a caption has ended."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        scenes = [draw_scene(source, generator) for _ in range(count)]
        texts = [torch.tensor(encode(caption(scene.digits))) for scene in scenes]
        labels = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-100)
        yield {"images": torch.stack([scene.image for scene in scenes]), "labels": labels}


@torch.no_grad()
def write_captions(reader: ImageReader, images: torch.Tensor) -> list[str]:
    """Greedy captions, by the model's own `generate`."""
    reader.eval()
    found = []
    for some in images.split(100):
        ids = reader.model.generate(
            inputs_embeds=reader.embed(some), max_new_tokens=10, do_sample=False, num_beams=1
        )
        found += [decode(row) for row in ids.tolist()]
    return found


# ------------------------------------------------------------------------------------------- runs


def rate_of(size: Size) -> Any:
    """Up over a tenth of the updates, then down with the square root (5.3)."""
    warmup = max(1, size.updates // 10)
    return lambda update: size.peak * min(update / warmup, math.sqrt(warmup / update))


def classify(training: Digits, unseen: Digits, size: Size, seed: int) -> dict[str, Any]:
    """The encoder with a classifier on top."""
    kind = VanillaTransformerForSequenceClassification
    reader = build(kind, size, seed, num_labels=len(NUMERALS))
    data = digit_batches(training, size.images, seed)
    run = train(reader, data, rate_of(size), updates=size.updates, max_norm=1.0)
    reader.eval()
    with torch.no_grad():
        right = reader(unseen.images).logits.argmax(-1) == unseen.labels
    return {
        "seed": seed,
        "parameters": parameters_of(reader),
        "seconds": run.seconds,
        "accuracy": 100 * float(right.float().mean()),
    }


def write(
    training: Digits, scenes: list[Scene], size: Size, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """The whole model; a caption counts if every word of it is right."""
    reader = build(VanillaTransformerForConditionalGeneration, size, seed)
    data = caption_batches(training, size.images, seed)
    run = train(reader, data, rate_of(size), updates=size.updates, max_norm=1.0)
    found = write_captions(reader, torch.stack([scene.image for scene in scenes]))
    right = [text == caption(scene.digits) for text, scene in zip(found, scenes, strict=True)]
    row = {
        "seed": seed,
        "parameters": parameters_of(reader),
        "seconds": run.seconds,
        "right": by_count(right, scenes),
    }
    return row, found


def by_count(right: list[bool], scenes: list[Scene]) -> list[float]:
    """Percent of scenes that are right, of one digit, of two and of three."""
    return [
        100 * float(np.mean([ok for ok, one in zip(right, scenes, strict=True) if number(one)]))
        for number in (
            lambda one: len(one.digits) == 1,
            lambda one: len(one.digits) == 2,
            lambda one: len(one.digits) == 3,
        )
    ]


def linear_baseline(training: Digits, unseen: Digits, scenes: list[Scene]) -> dict[str, Any]:
    """Logistic regression on the pixels of a digit; for captions it is told where digits are."""
    linear = importlib.import_module("sklearn.linear_model")
    fitted = linear.LogisticRegression(max_iter=2000).fit(
        training.images.flatten(1).numpy(), training.labels.numpy()
    )
    found = torch.tensor(fitted.predict(unseen.images.flatten(1).numpy()))
    right = [
        [int(found[row]) for row in scene.rows if row is not None] == scene.digits
        for scene in scenes
    ]
    return {
        "accuracy": 100 * float((found == unseen.labels).float().mean()),
        "right": by_count(right, scenes),
    }


def main() -> None:
    """Measures."""
    parser = claim_parser(__doc__.split("\n")[0])
    parser.add_argument(
        "--updates", type=int, default=Size.updates, help=f"of each run [{Size.updates}]"
    )
    options = parser.parse_args()
    size = Size(updates=options.updates)
    if options.quick:
        size = Size(16, 1, 4, 2, 8, 30)
    seeds = 1 if options.quick else options.seeds
    begin = time.perf_counter()
    training, unseen = load_digits()
    generator = torch.Generator().manual_seed(0)
    scenes = [draw_scene(unseen, generator) for _ in range(size.tested)]
    classified, written = [], []
    found: list[str] = []
    for seed in range(1, seeds + 1):
        classified.append(classify(training, unseen, size, seed))
        row, found = write(training, scenes, size, seed)
        written.append(row)
        print(classified[-1], written[-1], flush=True)
    raw = {
        "size": dataclasses.asdict(size),
        "seeds": seeds,
        "training": len(training.labels),
        "unseen": len(unseen.labels),
        "classification": classified,
        "captions": written,
        "linear": linear_baseline(training, unseen, scenes),
        # The last model's, the first eight that are right or not as they come.
        "examples": [
            {
                "image": (BRIGHTEST * scene.image).int().tolist(),
                "caption": caption(scene.digits),
                "written": text,
            }
            for scene, text in zip(scenes[:8], found, strict=False)
        ],
    }
    publish(finding(raw), options.output, time.perf_counter() - begin)


def finding(raw: dict[str, Any]) -> Finding:
    """The page, from the numbers alone."""
    size, linear = raw["size"], raw["linear"]
    accuracy = [row["accuracy"] for row in raw["classification"]]
    by_digits = list(zip(*(row["right"] for row in raw["captions"]), strict=True))
    names = ("one digit", "two digits", "three digits")

    figure = Figure(figsize=(11, 5.2))
    grid = figure.add_gridspec(4, 3, width_ratios=(1, 1, 1.3))
    for number, example in enumerate(raw["examples"]):
        axes = figure.add_subplot(grid[number % 4, number // 4])
        axes.imshow(example["image"], cmap="gray_r", vmin=0, vmax=BRIGHTEST)
        is_right = example["written"] == example["caption"]
        axes.set_title(example["written"], fontsize=8, color="black" if is_right else "tab:red")
        axes.set(xticks=[], yticks=[])
    axes = figure.add_subplot(grid[:, 2])
    groups = [("class of\na digit", accuracy, linear["accuracy"])]
    groups += [
        (f"caption,\n{name}", list(values), baseline)
        for name, values, baseline in zip(names, by_digits, linear["right"], strict=True)
    ]
    for place, (_, values, baseline) in enumerate(groups):
        mean = sum(values) / len(values)
        axes.bar(place - 0.2, mean, 0.38, color="tab:blue", label=None if place else "Transformer")
        axes.plot([place - 0.2] * len(values), values, "k.", ms=4)
        label = None if place else "logistic regression"
        axes.bar(place + 0.2, baseline, 0.38, color="tab:gray", label=label)
    axes.set_xticks(range(len(groups)), [name for name, _, _ in groups], fontsize=8)
    axes.set(ylabel="right (%)", ylim=(0, 100), title="Unseen digits (dots: seeds)")
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    axes.grid(alpha=0.3, axis="y")
    figure.tight_layout()

    tables = [
        Table(
            "Unseen digits, percent right",
            ["", "class of a digit", *(f"caption, {name}" for name in names)],
            [
                [
                    "Transformer",
                    with_interval(accuracy),
                    *(with_interval(list(values)) for values in by_digits),
                ],
                [
                    "logistic regression",
                    f"{linear['accuracy']:.1f}",
                    *(f"{value:.1f}" for value in linear["right"]),
                ],
            ],
        ),
        Table(
            "The two models",
            ["", "parameters"],
            [
                [name, f"{rows[0]['parameters']:,}"]
                for name, rows in (
                    ("encoder and classifier", raw["classification"]),
                    ("encoder and decoder", raw["captions"]),
                )
            ],
        ),
    ]
    reading = [
        f"Of {raw['unseen']} unseen digits the encoder classifies {with_interval(accuracy)}% "
        f"rightly, logistic regression on the same pixels {linear['accuracy']:.1f}%.",
        "Captions of which every word is right: "
        + ", ".join(
            f"{with_interval(list(values))}% ({name})"
            for name, values in zip(names, by_digits, strict=True)
        )
        + "; logistic regression, told where the digits are and how many, would write "
        + ", ".join(f"{value:.1f}%" for value in linear["right"])
        + ".",
    ]
    return Finding(
        name="images",
        title="Not only text: digits classified and captioned",
        claim="Attention serves inputs and outputs other than text (section 7).",
        method=f"The digits that scikit-learn ships, {SIDE} × {SIDE} pixels: the first "
        f"{raw['training']} to learn from, the last {raw['unseen']} to measure on. Patches of "
        f"{size['patch']} × {size['patch']} pixels through one matrix and `inputs_embeds`; "
        f"d_model {size['width']}, {size['layers']} layers a stack, {size['updates']} updates of "
        f"{size['images']} images, {raw['seeds']} seeds, mean ± 95% interval. Captions are of "
        f"strips with one to three digits at {PLACES} places, drawn anew for each batch; "
        f"{size['tested']} strips of unseen digits to measure on, written greedily by `generate`.",
        reading=reading,
        tables=tables,
        figure=figure,
        limits="Small pictures of one kind. The interval is over seeds of the model; the test set "
        "is one, of a size that leaves about one percent uncertain. Neither model is tuned, and "
        "nothing is augmented but the places on the strip.",
        raw=raw,
    )


if __name__ == "__main__":
    main()
