r"""Training steps a second: ours beside its peers, in turns, on the same batches.

Every contender is trained the way that its users train it. `benchmark_peers.py` says how they are
made alike; where the architecture is the same, equal losses and gradients are asserted before the
clock starts. A peer that is not installed is named and left out.

The README's figures come from these commands, about 20 minutes on two quiet cores. `OUT` stands for
`--output scripts/results/benchmark_training.json`; each kind of batches is a run of its own there.
Where not all peers take part, the slowest are left out.

    python scripts/benchmark_training.py --size small --batches bucketed --count 1 OUT
    python scripts/benchmark_training.py --size small --batches random --count 1 --rounds 3 \
        --no-memory OUT
    python scripts/benchmark_training.py --size small --count 1 --rounds 3 --no-memory \
        --malloc tuned --contenders vanilla_transformer "vanilla_transformer under Trainer" \
        "MarianMT under Trainer" BART x-transformers OUT
    python scripts/benchmark_training.py --size base --batches bucketed --count 1 --rounds 3 \
        --contenders vanilla_transformer "vanilla_transformer under Trainer" \
        "MarianMT under Trainer" BART torch.nn.Transformer x-transformers eole OUT
    python scripts/benchmark_training.py --size base --batches random --count 1 --rounds 2 \
        --no-memory --contenders vanilla_transformer "vanilla_transformer under Trainer" \
        "MarianMT under Trainer" BART x-transformers OUT
    python scripts/benchmark_training.py --growth 100000 OUT
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import io
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pyarrow as pa
import torch
from benchmark_peers import (
    END,
    FIRST_WORD,
    INSTALL,
    LONGEST,
    MODELS,
    PAD,
    SIZES,
    START,
    Batch,
    LossFunction,
    Setup,
    Size,
    compare,
    find_missing,
    target_tokens,
)
from benchmarking import (
    OURS,
    Load,
    Memory,
    Timing,
    add_shared_options,
    measure,
    peak_memory,
    product_peak,
    start,
    versions,
    whole_number,
    write_results,
)
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.batching import TokenBudgetBatchSampler
from vanilla_transformer.data.corpora import load_parallel
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.modeling_vanilla_transformer import IGNORE_INDEX
from vanilla_transformer.tokenization import load_tokenizer, train_tokenizer
from vanilla_transformer.training.loop import Run, build_accelerator
from vanilla_transformer.training.optimization import build_optimizer, build_scheduler
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.translation import TranslationTask
from vanilla_transformer.training.updates import Update, UpdateStream
from vanilla_transformer.training.watching import Interruption

OURS_UNDER_TRAINER = f"{OURS} under Trainer"
REFERENCE = "MarianMT under Trainer"
MODES = ("bucketed", "random")

LEARNING_RATE = 1e-4
MAX_GRADIENT_NORM = 1.0


# ----------------------------------------------------------------------------------------- batches


@dataclasses.dataclass(frozen=True)
class Workload:
    """Batches of sentence pairs of realistic lengths and random words.

    Attributes:
        mode: `"bucketed"`: pairs of like length together, at most `tokens` padded tokens a side, as
            our training batches them; the batches lie evenly between the shortest and the longest.
            `"random"`: pairs as they come, so many that there are about `tokens` target tokens.
        tokens: Target tokens of a batch.
        count: How many batches.
        seed: Of lengths and words.
        data: A corpus from which lengths are taken, as `load_parallel` reads it (English to
            German), or None for `draw_lengths`.
        tokenizer: Counts its tokens. Without one there are 1.3 (source) and 1.4 (target) to a word,
            about what a joint byte-pair encoding of 37,000 gives.
    """

    mode: str
    tokens: int = 2048
    count: int = 4
    seed: int = 1
    data: str | None = None
    tokenizer: str | None = None

    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the pool that batches are drawn from: tokens a side, `</s>` included."""
        if self.data is None:
            return draw_lengths(20_000, self.seed)
        return read_lengths(self.data, self.tokenizer)

    def batches(self, setup: Setup) -> list[Batch]:
        """The same whenever it is called, on the device of the contenders."""
        source, target = self.lengths()
        # As encoding drops what no batch could hold.
        fits = np.maximum(source, target) <= self.tokens
        source, target = source[fits], target[fits]
        random = np.random.default_rng(self.seed)
        rows: list[list[int]]
        if self.mode == "bucketed":
            every = list(
                TokenBudgetBatchSampler(
                    source,
                    target,
                    max_source_tokens=self.tokens,
                    max_target_tokens=self.tokens,
                    shuffle=False,
                )
            )
            rows = [every[int((i + 0.5) / self.count * len(every))] for i in range(self.count)]
        else:
            sentences = max(1, round(self.tokens / float(target.mean())))
            rows = [
                random.integers(len(source), size=sentences).tolist() for _ in range(self.count)
            ]
        return [
            make_batch(source[chosen], target[chosen], setup.size.vocab_size, random, setup.device)
            for chosen in rows
        ]


def draw_lengths(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Log-normal lengths of translations, with a median of 22 source and 25 target tokens.

    The parameters are those of newstest2012 to 2014, English to German, at the tokens a word of
    `Workload`: log s is normal with mean 3.09 and deviation 0.59, and log t is 0.94 log s + 0.30
    plus noise with deviation 0.19 (their correlation is 0.95). Cut to 2 to `LONGEST` tokens.
    """
    random = np.random.default_rng(seed)
    log_source = random.normal(3.09, 0.59, count)
    log_target = 0.94 * log_source + 0.30 + random.normal(0.0, 0.19, count)
    source, target = (
        np.exp(side).round().clip(2, LONGEST).astype(np.int64) for side in (log_source, log_target)
    )
    return source, target


def read_lengths(data: str, tokenizer: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of the pairs of a corpus; those over `LONGEST` tokens are left out."""
    pairs, _ = load_parallel(data, "en", "de", "test")
    sides = [list(pairs["source"]), list(pairs["target"])]
    if tokenizer is not None:
        encode = load_tokenizer(tokenizer)
        counts = [np.array([len(ids) for ids in encode(side)["input_ids"]]) for side in sides]
    else:
        counts = [
            np.array([round(rate * len(text.split())) + 1 for text in side])
            for rate, side in zip((1.3, 1.4), sides, strict=True)
        ]
    source, target = counts
    kept = np.maximum(source, target) <= LONGEST
    return source[kept], target[kept]


def make_batch(
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    vocab_size: int,
    random: np.random.Generator,
    device: str = "cpu",
) -> Batch:
    """Random words of given lengths, padded on the right, each side ending in `</s>`.

    Returns:
        `input_ids` and `attention_mask` `[B, S]`, `labels` `[B, T]` with -100 for padding, and
        `decoder_input_ids` `[B, T]`, the same a place to the right.
    """
    sides = []
    for lengths in (source, target):
        words = random.integers(FIRST_WORD, vocab_size, size=(len(lengths), int(lengths.max())))
        place = np.arange(words.shape[1])[None]
        words = np.where(place == lengths[:, None] - 1, END, words)
        sides.append(torch.from_numpy(np.where(place < lengths[:, None], words, PAD)))
    input_ids, output_ids = sides
    started = F.pad(output_ids[:, :-1], (1, 0), value=START)
    batch = {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD).long(),
        "labels": output_ids.masked_fill(output_ids == PAD, IGNORE_INDEX),
        # What follows the end is padding, too.
        "decoder_input_ids": started.masked_fill(started == END, PAD),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def batch_lengths(batch: Batch) -> tuple[list[int], list[int]]:
    """Real tokens of each sentence, of source and of target."""
    targets = (batch["labels"] != IGNORE_INDEX).sum(dim=1)
    return batch["attention_mask"].sum(dim=1).tolist(), targets.tolist()


def forward_flops(size: Size, sources: Sequence[int], targets: Sequence[int]) -> int:
    """Floating-point operations of the matrix products of a forward pass without padding.

    A product of [n, k] and [k, m] counts 2 n k m; norms, activations, softmax and dropout nothing.
    Causal attention counts in full, as it is computed. The backward pass takes twice as many: the
    gradients of both factors of each product.

    Args:
        size: Of the model.
        sources: Tokens of each source.
        targets: Tokens of each target.
    """
    d, ff, layers = size.d_model, size.d_ff, size.num_layers
    s, t = sum(sources), sum(targets)
    encoder = layers * (2 * s * (4 * d * d + 2 * d * ff) + sum(4 * n * n * d for n in sources))
    decoder = layers * (
        # Q, K, V, O of self-attention; Q and O of encoder-decoder attention; feed-forward.
        2 * t * (6 * d * d + 2 * d * ff)
        # K and V of encoder-decoder attention.
        + 2 * s * 2 * d * d
        + sum(4 * m * m * d for m in targets)
        + sum(4 * m * n * d for n, m in zip(sources, targets, strict=True))
    )
    return encoder + decoder + 2 * t * d * size.vocab_size


# -------------------------------------------------------------------------------- training steps


class Contender(ABC):
    """A model, and the update that its users do."""

    def __init__(self, setup: Setup, model: nn.Module):
        self.setup = setup
        self.model = model.to(setup.device).train()

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Forward, backward, clipping and the optimizer's step."""

    def updates(self, batches: Sequence[Batch]) -> None:
        """One for each batch."""
        for batch in batches:
            self.update(batch)


class InPlainLoop(Contender):
    """The loop that every tutorial has, with the fastest optimizer that torch offers."""

    def __init__(self, setup: Setup, model: nn.Module, loss: LossFunction):
        super().__init__(setup, model)
        self.loss = loss
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-9, fused=True
        )

    def update(self, batch: Batch) -> None:
        """As in the base class."""
        with torch.autocast(
            torch.device(self.setup.device).type,
            torch.bfloat16,
            enabled=self.setup.precision == "bf16",
        ):
            loss = self.loss(self.model, batch, self.setup)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


class UnderTrainer(Contender):
    """What `Trainer.train` does for one update, by Trainer's own methods.

    Its optimizer is the default, fused AdamW. Left out is what Trainer does besides: callbacks,
    counting operations, looking for NaN.
    """

    def __init__(self, setup: Setup, model: nn.Module, loss: LossFunction):
        super().__init__(setup, model)
        # Our model smooths labels itself, and refuses to have its labels taken away.
        is_ours = isinstance(model, VanillaTransformerForConditionalGeneration)
        self.columns = ["input_ids", "attention_mask", "labels"]
        if not is_ours:
            # As `DataCollatorForSeq2Seq(model=...)` adds them.
            self.columns.append("decoder_input_ids")
        # Trainer makes it, though nothing is saved.
        self.directory = tempfile.TemporaryDirectory()
        self.trainer = trainer = Trainer(
            model=self.model,
            args=TrainingArguments(
                output_dir=self.directory.name,
                label_smoothing_factor=0.0 if is_ours else setup.label_smoothing,
                learning_rate=LEARNING_RATE,
                max_grad_norm=MAX_GRADIENT_NORM,
                bf16=setup.precision == "bf16",
                use_cpu=torch.device(setup.device).type == "cpu",
                report_to=[],
                disable_tqdm=True,
            ),
        )
        trainer.create_optimizer()
        self.wrapped, trainer.optimizer = trainer.accelerator.prepare(self.model, trainer.optimizer)
        trainer.create_scheduler(num_training_steps=1_000_000)
        trainer.current_gradient_accumulation_steps = 1

    def update(self, batch: Batch) -> None:
        """As in the base class."""
        trainer = self.trainer
        inputs = {name: batch[name] for name in self.columns}
        samples, items = trainer.get_batch_samples(iter([inputs]), 1, trainer.args.device)
        trainer.training_step(self.wrapped, samples[0], items)
        trainer.accelerator.clip_grad_norm_(self.wrapped.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.wrapped.zero_grad()


class InOurLoop(Contender):
    """`training.loop.Run.apply`, which is what `vanilla-transformer train` does for an update."""

    def __init__(self, setup: Setup, model: nn.Module, loss: LossFunction):
        super().__init__(setup, model)
        self.directory = tempfile.TemporaryDirectory()
        settings = TrainingSettings(
            updates=1_000_000,
            max_gradient_norm=MAX_GRADIENT_NORM,
            # The words are random and the batches repeat: nothing is to be learnt.
            max_loss_spike=None,
            trackers=(),
            precision="bf16" if setup.precision == "bf16" else "no",
            seed=setup.seed,
        )
        # Left alone, Accelerate would choose a GPU.
        accelerate.PartialState(cpu=torch.device(setup.device).type == "cpu")
        accelerator = build_accelerator(settings)
        tokenizer, task = small_task()
        examples = datasets.Dataset.from_dict({"input_ids": [[END]], "labels": [[END]]})
        # No bar on the terminal: only what looks like one gets it.
        with contextlib.redirect_stderr(io.StringIO()):
            self.run = Run(
                accelerator,
                self.model,
                tokenizer,
                task,
                examples,
                Path(self.directory.name),
                settings,
            )
        optimizer = build_optimizer(self.model)
        scheduler = build_scheduler(optimizer, setup.size.d_model)
        prepared, optimizer = accelerator.prepare(self.model, optimizer)
        self.run.adopt(prepared, optimizer, scheduler)
        self.run.interruption = Interruption()
        self.prepared: list[tuple[Batch, Update]] = []

    def update(self, batch: Batch) -> None:
        """As in the base class."""
        self.run.apply(self.prepare(batch))

    def prepare(self, batch: Batch) -> Update:
        """What the data pipeline hands over; it counts tokens before they are on the device."""
        for known, update in self.prepared:
            if known is batch:
                return update
        piece = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        update = Update([piece], target_tokens(batch), padding_share=0.0)
        self.prepared.append((batch, update))
        return update


@functools.cache
def small_task() -> tuple[Any, TranslationTask]:
    """A tokenizer and a task that pads and counts; what they know of language plays no part."""
    pairs = list(generate_translation("train", 50))
    verbosity = transformers_logging.get_verbosity()
    # It would say that so little text gives no more tokens.
    transformers_logging.set_verbosity_error()
    try:
        tokenizer = train_tokenizer((side for pair in pairs for side in pair.values()), 300)
    finally:
        transformers_logging.set_verbosity(verbosity)
    datasets.disable_progress_bars()
    return tokenizer, TranslationTask(tokenizer, datasets.Dataset.from_list(pairs[:2]))


# -------------------------------------------------------------------------------------- contenders


# How each is trained, beside what.
CONTENDERS: dict[str, tuple[str, Callable[[Setup, nn.Module, LossFunction], Contender]]] = {
    OURS: (OURS, InOurLoop),
    OURS_UNDER_TRAINER: (OURS, UnderTrainer),
    REFERENCE: ("MarianMT", UnderTrainer),
    **{name: (name, InPlainLoop) for name in MODELS if name not in (OURS, "MarianMT")},
}


def build_contender(name: str, setup: Setup) -> Contender:
    """A contender, ready for its first update; the same weights whenever it is called."""
    set_seed(setup.seed)
    model, train = CONTENDERS[name]
    return train(setup, MODELS[model].build(setup), MODELS[model].loss)


def build_call(name: str, setup: Setup, workload: Workload) -> Callable[[], object]:
    """What `peak_memory` measures: an update on each batch of a workload."""
    contender = build_contender(name, setup)
    return functools.partial(contender.updates, workload.batches(setup))


# ----------------------------------------------------------------------------------------- growth


def random_corpus(directory: Path, pairs: int, vocab_size: int, seed: int) -> datasets.Dataset:
    """Encoded pairs of `draw_lengths` and random words, memory-mapped from a file."""
    random = np.random.default_rng(seed)
    columns = {}
    for name, lengths in zip(("input_ids", "labels"), draw_lengths(pairs, seed), strict=True):
        ends = lengths.cumsum()
        words = random.integers(FIRST_WORD, vocab_size, size=int(ends[-1]), dtype=np.int32)
        words[ends - 1] = END
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(words))
    path = directory / f"{pairs}"
    datasets.Dataset(pa.table(columns)).save_to_disk(str(path))
    return datasets.load_from_disk(str(path))


def measure_growth(
    pairs: int, *, tokens: int, rounds: int, updates: int, vocab_size: int, seed: int
) -> list[dict[str, Any]]:
    """How fast `UpdateStream` hands out updates at `pairs` and at ten times as many.

    Returns:
        A row for each: target tokens a second of the stream alone, the seconds until the first
        update, and the ratio to the smaller corpus.
    """
    _, task = small_task()
    settings = TrainingSettings(max_source_tokens=tokens, max_target_tokens=tokens, seed=seed)
    streams: dict[str, Iterator[Update]] = {}
    started: dict[str, float] = {}
    served: dict[str, list[int]] = {}

    def advance(name: str) -> None:
        served[name].append(sum(next(streams[name]).items for _ in range(updates)))

    with tempfile.TemporaryDirectory() as directory:
        for count in (pairs, 10 * pairs):
            corpus = random_corpus(Path(directory), count, vocab_size, seed)
            name = f"{count:,} pairs"
            begun = time.perf_counter()
            streams[name] = iter(UpdateStream(corpus, task, settings))
            next(streams[name])
            started[name], served[name] = time.perf_counter() - begun, []
        timings = measure(
            {name: functools.partial(advance, name) for name in streams}, warmup=1, rounds=rounds
        )
    rows: list[dict[str, Any]] = []
    for name, timing in timings.items():
        # The batches of a round differ, so that the speed is that of all of them together.
        speed = sum(served[name][1:]) / sum(timing.seconds)
        rows.append(
            {
                "contender": OURS,
                "setting": {"corpus": name},
                "tokens_per_second": speed,
                "ratio": speed / rows[0]["tokens_per_second"] if rows else 1.0,
                "seconds_to_first_update": started[name],
            }
        )
    return rows


# ----------------------------------------------------------------------------------------- results


def make_rows(
    batches: Sequence[Batch],
    timings: Mapping[str, Timing],
    memory: Mapping[str, Memory],
    size: Size,
    peak: float,
) -> list[dict[str, Any]]:
    """What was measured of each contender on batches of one kind.

    Args:
        batches: That one call trains on.
        timings: Of a call, by contender.
        memory: By contender; may lack some.
        size: Of the models.
        peak: FLOP/s of the best matrix product.
    """
    tokens = sum(map(target_tokens, batches))
    flops = 3 * sum(forward_flops(size, *batch_lengths(batch)) for batch in batches)
    speed = {name: tokens / timing.median for name, timing in timings.items()}
    rows = []
    for name, timing in timings.items():
        row = {
            "contender": name,
            "setting": {},
            "tokens_per_second": speed[name],
            "ratio": speed[name] / speed[REFERENCE] if REFERENCE in speed else None,
            "ours_over_it": speed[OURS] / speed[name] if OURS in speed else None,
            "median_seconds": timing.median,
            "best_seconds": timing.best,
            "rounds": len(timing.seconds),
            "target_tokens": tokens,
            "flops_per_target_token": flops / tokens,
            "flops_per_second": flops / timing.median,
            "share_of_peak": flops / timing.median / peak,
        }
        if name in memory:
            row |= {"memory_added": memory[name].added, "memory_total": memory[name].total}
        rows.append(row)
    return rows


def describe(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for the terminal."""
    lines = [
        f"{'':36}{'median s':>10}{'best s':>10}{'tokens/s':>11}{'ratio':>8}{'ours is':>9}"
        f"{'GFLOP/s':>9}{'of peak':>9}{'added MiB':>11}{'total MiB':>11}"
    ]
    for row in rows:
        ratio, ours = (
            "" if row[name] is None else f"{row[name]:.2f}×" for name in ("ratio", "ours_over_it")
        )
        added, total = (
            f"{row[name] / 2**20:,.0f}" if name in row else ""
            for name in ("memory_added", "memory_total")
        )
        lines.append(
            f"{row['contender']:36}{row['median_seconds']:>10.3f}{row['best_seconds']:>10.3f}"
            f"{row['tokens_per_second']:>11,.0f}{ratio:>8}{ours:>9}"
            f"{row['flops_per_second'] / 1e9:>9,.1f}{row['share_of_peak']:>9.1%}"
            f"{added:>11}{total:>11}"
        )
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        SystemExit: Values that cannot be, or that contradict each other.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"Peers that are not installed: {INSTALL}"
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="small", help="dimensions of all models [small]")
    add("--batches", choices=MODES, nargs="+", default=list(MODES), help="how they are made [both]")
    add(
        "--contenders",
        choices=CONTENDERS,
        nargs="+",
        default=list(CONTENDERS),
        metavar="NAME",
        help=f"[all: {', '.join(CONTENDERS)}]",
    )
    # Fewer would hold no sentence.
    add(
        "--tokens",
        type=whole_number(32),
        metavar="N",
        default=2048,
        help="target tokens of a batch [2048]",
    )
    add(
        "--count",
        type=whole_number(1),
        metavar="N",
        default=4,
        help="batches that one timed call trains on [4]",
    )
    add("--data", help="corpus to take lengths from [log-normal, as newstest]")
    add("--tokenizer", metavar="DIR", help="counts the tokens of --data [1.3 and 1.4 to a word]")
    add("--precision", choices=("no", "bf16"), default="no", help="bf16: autocast [no]")
    add(
        "--growth",
        type=whole_number(1),
        metavar="PAIRS",
        help="no training: how fast our data pipeline serves PAIRS and 10 × PAIRS random pairs",
    )
    add_shared_options(parser)
    options = parser.parse_args(arguments)
    if options.tokenizer and not options.data:
        parser.error("--tokenizer needs --data, a corpus whose tokens it counts")
    return options


def main() -> None:
    """Runs what the command line says."""
    options = parse_arguments()
    before = start(options)
    if options.growth:
        run_growth(options, before)
    else:
        run_training(options, before)


def run_growth(options: argparse.Namespace, before: Mapping[str, Any]) -> None:
    """Measures the data pipeline, prints and writes it."""
    with Load() as load:
        rows = measure_growth(
            options.growth,
            tokens=options.tokens,
            rounds=options.rounds,
            updates=10 * options.count,
            vocab_size=SIZES[options.size].vocab_size,
            seed=options.seed,
        )
    for row in rows:
        print(
            f"{row['setting']['corpus']:>20}: {row['tokens_per_second']:>12,.0f} target tokens/s "
            f"({row['ratio']:.2f}×), first update after {row['seconds_to_first_update']:.2f} s"
        )
    if options.output:
        write_results(
            options.output,
            "training",
            rows,
            setting={"measured": "data pipeline alone"},
            machine=before,
            reference="the smaller corpus",
            load=load.others,
        )


def run_training(options: argparse.Namespace, before: Mapping[str, Any]) -> None:
    """Measures training steps, prints and writes them; each kind of batches is a run.

    Raises:
        ValueError: Nothing that was named is installed, or there is no such corpus.
    """
    setup = Setup(
        SIZES[options.size], device=options.device, precision=options.precision, seed=options.seed
    )
    workloads = {
        mode: Workload(
            mode, options.tokens, options.count, options.seed, options.data, options.tokenizer
        )
        for mode in options.batches
    }
    batches = {mode: workload.batches(setup) for mode, workload in workloads.items()}
    names, missing = choose_contenders(options.contenders)
    models = list(dict.fromkeys(CONTENDERS[name][0] for name in names))
    # A small batch with padding tells as much as a large one.
    differences = compare(models, setup, Workload("random", 256, 1).batches(setup)[0])
    for name, apart in differences.items():
        print(
            f"{name}, our weights: loss {apart['loss']:.0e}, gradient {apart['gradient']:.0e} off"
        )

    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    peak = product_peak(dtype, options.device)
    contenders = {name: build_contender(name, setup) for name in names}
    timings: dict[str, dict[str, Timing]] = {}
    loads: dict[str, float | None] = {}
    for mode, held in batches.items():
        with Load() as load:
            timings[mode] = measure(
                {name: functools.partial(contenders[name].updates, held) for name in names},
                warmup=options.warmup,
                rounds=options.rounds,
                device=options.device,
            )
        loads[mode] = load.others
    # Whatever else was running may have left it more at the other end.
    peak = max(peak, product_peak(dtype, options.device))
    # Nothing of them stays on a GPU while memory is measured.
    contenders.clear()
    gc.collect()
    if torch.device(options.device).type == "cuda":
        torch.cuda.empty_cache()

    for mode, held in batches.items():
        memory = measure_memory(names, setup, workloads[mode], options) if options.memory else {}
        rows = make_rows(held, timings[mode], memory, setup.size, peak)
        padding = share_of_padding(held)
        print(
            f"\n{options.size}, {mode} batches ({options.count} of {rows[0]['target_tokens']:,} "
            f"target tokens together, {padding:.0%} padding), "
            f"{rows[0]['flops_per_target_token'] / 1e6:,.1f} MFLOP a target token, "
            f"products at {peak / 1e9:,.1f} GFLOP/s"
        )
        print(describe(rows))
        if loads[mode] is not None:
            print(f"Other processes took {loads[mode]:.0%} of the machine meanwhile.", flush=True)
        if options.output:
            setting = {"size": options.size, "malloc": options.malloc, "device": options.device}
            if options.precision != "no":
                setting["precision"] = options.precision
            write_results(
                options.output,
                "training",
                rows,
                setting={**setting, "batches": mode},
                machine=before,
                reference=REFERENCE,
                dimensions=dataclasses.asdict(setup.size),
                product_peak=peak,
                padding_share=padding,
                load=loads[mode],
                peers=versions(*(p for model in models for p in MODELS[model].packages)),
                missing=missing,
                differences=differences,
            )


def choose_contenders(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those that can be imported, and the others with the reason, which is printed.

    Raises:
        ValueError: None can.
    """
    reasons = find_missing(sorted({CONTENDERS[name][0] for name in names}))
    missing = {n: reasons[CONTENDERS[n][0]] for n in names if CONTENDERS[n][0] in reasons}
    for name, reason in missing.items():
        print(f"{name} is left out ({reason})", file=sys.stderr)
    found = [name for name in names if name not in missing]
    if not found:
        raise ValueError(f"none of {', '.join(names)} can be imported; {INSTALL}")
    if missing:
        print(f"to install all peers: {INSTALL}", file=sys.stderr)
    return found, missing


def measure_memory(
    names: Sequence[str], setup: Setup, workload: Workload, options: argparse.Namespace
) -> dict[str, Memory]:
    """Of each contender, alone in a process; empty where this system cannot tell."""
    found = {}
    for name in names:
        try:
            found[name] = peak_memory(
                functools.partial(build_call, name, setup, workload),
                device=options.device,
                allocator=options.malloc,
                calls=1,
                imports=MODELS[CONTENDERS[name][0]].modules,
            )
        except RuntimeError as error:
            print(f"memory of {name} is unknown: {error}", file=sys.stderr)
    return found


def share_of_padding(batches: Sequence[Batch]) -> float:
    """Of the padded tensors, both sides, in [0, 1]."""
    real = sum(sum(map(sum, batch_lengths(batch))) for batch in batches)
    places = sum(batch["input_ids"].numel() + batch["labels"].numel() for batch in batches)
    return 1 - real / places


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(str(error)) from None
