r"""Decoding side by side: one set of weights in every peer, equal outputs first, then the times.

The model is copied into MarianMT of transformers and into CTranslate2 (where that is installed), so
that all of them compute the same function. Before anything is timed, what has float32 weights must
give the same token ids (a tie apart), greedily and with a beam, where each sentence must have
`--length` tokens; a run whose peers do not is stopped. Then four things are measured:

- `generate`: the method itself on batches of a few sizes. CTranslate2 has the same batches.
- `bulk`: a file of sentences with a beam, from text to text: `translate` of this package, MarianMT
  in a loop over batches of sentences of like length, CTranslate2 with its own batching.
- `loading`: `from_pretrained` and the first translation, in a fresh process each.
- `growth`: `translate` on a file and on ten of them.

Random weights never end a sentence: in `generate` each output is made to have `--length` tokens, in
`bulk` one more than its source has. All peers have one limit for a whole batch, so that sources
have multiples of 16 words, CTranslate2 gets those of one length together (which leaves it a few
small batches: give it hundreds of lines), and what goes beyond a line's own limit does not count.
With `--model`, a trained checkpoint of ours, sentences also end where the model ends them, and BLEU
is computed where the data have references.

The README's figures come from these commands, about 13 minutes on two quiet cores. `OUT` stands for
`--output scripts/results/benchmark_generation.json`, `DATA` for `--data newstest2014_en-de.parquet`
(a local copy, or a Hub id such as `wmt/wmt14` with `--source-lang` and `--target-lang`).

    python scripts/benchmark_generation.py --measure generate --rounds 3 --no-memory OUT
    python scripts/benchmark_generation.py --measure bulk DATA --limit 300 --rounds 2 --warmup 0 \
        --no-memory OUT
    python scripts/benchmark_generation.py --measure loading --rounds 3 OUT
    python scripts/benchmark_generation.py --measure growth DATA --size small --limit 256 \
        --beams 1 --max-batch-tokens 512 --rounds 3 --contenders vanilla_transformer OUT

What 8 bits cost in quality shows only with a trained model:

    python scripts/benchmark_generation.py --measure bulk --model DIR DATA OUT
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from benchmark_decoders import (
    CONTENDERS,
    CTRANSLATE2,
    INSTALL,
    MARIAN,
    MAX_POSITIONS,
    OURS_INT8,
    SAME_IDS,
    SAME_LOGITS,
    Bulk,
    Checkpoints,
    Contender,
    Search,
    TransformersContender,
    UnequalError,
    check_outputs,
    find_ctranslate2,
    largest_logit_difference,
    news_lengths,
    random_lines,
    random_model,
)
from benchmark_peers import SIZES
from benchmarking import (
    OURS,
    Load,
    Memory,
    Timing,
    add_shared_options,
    measure,
    orders,
    peak_memory,
    product_peak,
    set_allocator,
    start,
    synchronize,
    versions,
    whole_number,
    write_results,
)
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.data.corpora import load_parallel
from vanilla_transformer.recipes.models import load_model

MEASURES = ("generate", "bulk", "loading", "growth")
GROWTH = 10
# Tokens of a word in a joint byte-pair encoding of 37,000, about.
TOKENS_PER_WORD = 1.3
# Lines of random words have a multiple of it, so that many are of one length.
GRAIN = 16


# ------------------------------------------------------------------------------- what is measured


def product_flops(
    config: VanillaTransformerConfig,
    source_lengths: Sequence[int],
    output_lengths: Sequence[int],
    num_beams: int,
) -> int:
    """Floating-point operations of the products with weights that a translation cannot do without.

    A product of [n, k] and [k, m] counts 2 n k m. Each source token goes through the encoder and
    through the keys and values of encoder-decoder attention, each output token through the decoder
    and the output layer once a beam. Attention itself, some hundredths, is left out, and so is
    padding, which is the contender's own affair.
    """
    d, h = config.d_model, config.num_heads
    assert config.d_k is not None
    assert config.d_v is not None
    assert config.decoder_d_ff is not None
    queries, values = d * h * config.d_k, d * h * config.d_v
    attention = 2 * queries + 2 * values
    source = config.num_encoder_layers * (attention + 2 * d * config.d_ff)
    source += config.num_decoder_layers * (queries + values)
    output = config.num_decoder_layers * (
        attention + queries + values + 2 * d * config.decoder_d_ff
    )
    output += d * config.target_vocab_size
    return 2 * (sum(source_lengths) * source + num_beams * sum(output_lengths) * output)


def time_contenders(
    calls: Mapping[str, Callable[[], list[Any]]], *, warmup: int, rounds: int, device: str
) -> tuple[dict[str, Timing], dict[str, list[Any]]]:
    """Times calls in turns; also gives what each returned."""
    outputs: dict[str, list[Any]] = {}

    def keep(name: str) -> None:
        outputs[name] = calls[name]()

    timings = measure(
        {name: partial(keep, name) for name in calls},
        warmup=warmup,
        rounds=rounds,
        device=device,
    )
    return timings, outputs


def make_rows(
    setting: Mapping[str, Any],
    timings: Mapping[str, Timing],
    tokens: Mapping[str, int],
    flops: Mapping[str, int],
    peak: float,
    more: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What was measured of each contender in one setting.

    Args:
        setting: Of all of them.
        timings: Of a call, by contender.
        tokens: Output tokens of a call, by contender.
        flops: Of a call, by contender.
        peak: FLOP/s of the best matrix product.
        more: Other facts, by contender and name.
    """
    return [
        {
            "contender": name,
            "setting": dict(setting),
            "tokens_per_second": tokens[name] / timing.median,
            "ratio": timings[MARIAN].median / timing.median if MARIAN in timings else None,
            "ours_over_it": timing.median / timings[OURS].median,
            **describe_timing(timing),
            "output_tokens": tokens[name],
            "flops_per_second": flops[name] / timing.median,
            "share_of_peak": flops[name] / timing.median / peak,
            **more.get(name, {}),
        }
        for name, timing in timings.items()
    ]


def describe_timing(timing: Timing) -> dict[str, float]:
    """Its part of a row."""
    return {
        "median_seconds": timing.median,
        "best_seconds": timing.best,
        "rounds": len(timing.seconds),
    }


def build_generate(
    checkpoints: Checkpoints, name: str, sources: list[list[int]], search: Search
) -> Callable[[], object]:
    """What `peak_memory` measures of `generate`."""
    contender = checkpoints.load(name, checkpoints.load_tokenizer())
    return partial(contender.generate, sources, search)


def build_translate(
    checkpoints: Checkpoints, name: str, lines: list[str], bulk: Bulk
) -> Callable[[], object]:
    """What `peak_memory` measures of bulk translation."""
    contender = checkpoints.load(name, checkpoints.load_tokenizer())
    return partial(contender.translate, lines, bulk)


def load_and_translate(
    checkpoints: Checkpoints, name: str, line: str, bulk: Bulk, allocator: str
) -> tuple[float, float]:
    """Seconds to load a contender and to translate a first line, in a process that did neither.

    What is imported, and the tokenizer, which all share, are there before the clock starts.
    """
    set_allocator(allocator)
    torch.set_num_threads(checkpoints.threads)
    tokenizer = checkpoints.load_tokenizer()
    if name in CTRANSLATE2:
        find_ctranslate2()
    if torch.device(checkpoints.device).type == "cuda":
        # Waking the GPU is nobody's merit.
        torch.zeros(1, device=checkpoints.device)
    started = time.perf_counter()
    contender = checkpoints.load(name, tokenizer)
    synchronize(checkpoints.device)
    loaded = time.perf_counter()
    contender.translate([line], bulk)
    synchronize(checkpoints.device)
    return loaded - started, time.perf_counter() - loaded


@dataclasses.dataclass
class Benchmark:
    """One model, its copies, and what to do with them.

    Attributes:
        config: Of the model.
        checkpoints: On disk.
        contenders: In memory, by name.
        missing: Those that are not installed, or cannot run here.
        tokenizer: Of all of them.
        lines: What is translated.
        references: Translations of the lines, where there are any.
        is_trained: Whether the model ends its sentences.
        options: The command line.
        peak: FLOP/s of the best matrix product so far.
    """

    config: VanillaTransformerConfig
    checkpoints: Checkpoints
    contenders: dict[str, Contender]
    missing: list[str]
    tokenizer: PreTrainedTokenizerBase
    lines: list[str]
    references: list[str] | None
    is_trained: bool
    options: argparse.Namespace
    peak: float = 0.0

    @property
    def generators(self) -> dict[str, Contender]:
        """The contenders that have a `generate`."""
        return {name: each for name, each in self.contenders.items() if name != OURS_INT8}

    def bulk(self, max_batch_tokens: int) -> Bulk:
        """How a file is translated."""
        return Bulk(max(self.options.beams), max_batch_tokens, self.is_trained)

    def sources(self, count: int) -> list[list[int]]:
        """Token ids of lines as they come, which are of all lengths."""
        found: list[list[int]] = self.tokenizer(self.lines[:count])["input_ids"]
        return found

    def least(self, search: Search) -> dict[str, float]:
        """Share of sentences for which a contender must find our ids, by its name.

        Not all: sums in another order now and then decide between two words that are as likely.
        CTranslate2 forbids an end by dividing its probability among the other tokens, which
        transformers does not: with a beam that is another search, except where the end was
        unlikely anyway. Where sentences end by themselves its beams stop by a rule of its own,
        which makes a difference for few.
        """
        if self.checkpoints.dtype != torch.float32:
            return {}
        least = {MARIAN: SAME_IDS}
        if search.num_beams == 1 or not self.is_trained or not search.is_forced:
            least["CTranslate2"] = SAME_IDS
        return least

    def check_ids(self) -> None:
        """Has all contenders decode a few sentences before anything is timed.

        Raises:
            UnequalError: One does not give the ids that it must give.
        """
        for num_beams in self.options.beams:
            search = Search(num_beams, min(8, self.options.length), is_forced=True)
            check_outputs(self.generators, self.sources(16), search, self.least(search))

    def check_logits(self) -> None:
        """Compares the logits of MarianMT with ours, in float32.

        Raises:
            UnequalError: They differ by more than the order of sums explains.
        """
        ours, marian = self.contenders.get(OURS), self.contenders.get(MARIAN)
        if marian is None or self.checkpoints.dtype != torch.float32:
            return
        assert isinstance(ours, TransformersContender)
        assert isinstance(marian, TransformersContender)
        apart = largest_logit_difference(ours.model, marian.model, self.sources(4))
        if apart > SAME_LOGITS:
            raise UnequalError(
                f"the logits of {MARIAN} are {apart:.0e} off ours, which its copy of the weights "
                f"must not be by more than {SAME_LOGITS:.0e}"
            )
        print(f"logits of {MARIAN}: {apart:.0e} off")

    def measure_generate(self) -> Iterator[list[dict[str, Any]]]:
        """`generate` on batches: a group of rows for each way to search and each size.

        Raises:
            UnequalError: A contender does not give the ids that it must give.
        """
        options = self.options
        largest = self.sources(max(options.batches))
        searches = [Search(beams, options.length, is_forced=True) for beams in options.beams]
        if self.is_trained:
            longest = max(len(source) for source in largest)
            searches += [Search(beams, longest + 50) for beams in options.beams]
        shares = {}
        for search in searches:
            shares[search] = check_outputs(self.generators, largest, search, self.least(search))
        memory = self.measure_memory(self.generators, build_generate, largest, searches[-1])
        for search, batch in itertools.product(searches, options.batches):
            sources = largest[:batch]
            timings, outputs = time_contenders(
                {
                    name: partial(contender.generate, sources, search)
                    for name, contender in self.generators.items()
                },
                warmup=options.warmup,
                rounds=options.rounds,
                device=options.device,
            )
            lengths = {
                # The end is a token, too.
                name: [len(ids) + (not search.is_forced) for ids in found]
                for name, found in outputs.items()
            }
            is_heaviest = search is searches[-1] and len(sources) == len(largest)
            yield make_rows(
                {
                    "search": search.name,
                    "batch": str(batch),
                    "length": f"{search.max_new_tokens} tokens" if search.is_forced else "own",
                },
                timings,
                {name: sum(lengths[name]) for name in timings},
                {
                    name: product_flops(
                        self.config,
                        [len(source) for source in sources],
                        lengths[name],
                        search.num_beams,
                    )
                    for name in timings
                },
                self.peak,
                {
                    name: {
                        "identical": shares[search][name],
                        **(memory.get(name, {}) if is_heaviest else {}),
                    }
                    for name in timings
                },
            )

    def measure_bulk(self) -> Iterator[list[dict[str, Any]]]:
        """A file from text to text: a group of rows for each budget of a batch."""
        options = self.options
        sources = self.sources(len(self.lines))
        for max_batch_tokens in options.max_batch_tokens:
            bulk = self.bulk(max_batch_tokens)
            timings, outputs = time_contenders(
                {
                    name: partial(contender.translate, self.lines, bulk)
                    for name, contender in self.contenders.items()
                },
                warmup=options.warmup,
                rounds=options.rounds,
                device=options.device,
            )
            # The memory is that of the largest batches, which come first.
            longest = sorted(self.lines, key=len)[-options.memory_lines :]
            memory = self.measure_memory(self.contenders, build_translate, longest, bulk)
            lengths = {
                name: [
                    # What goes beyond a line's own limit is no use.
                    min(len(ids), len(source) + bulk.max_tokens_over_source)
                    for ids, source in zip(self.tokenizer(found)["input_ids"], sources, strict=True)
                ]
                for name, found in outputs.items()
            }
            yield make_rows(
                {"search": f"beam {bulk.num_beams}", "batch_tokens": str(max_batch_tokens)},
                timings,
                {name: sum(lengths[name]) for name in timings},
                {
                    name: product_flops(
                        self.config,
                        [len(source) for source in sources],
                        lengths[name],
                        bulk.num_beams,
                    )
                    for name in timings
                },
                self.peak,
                {
                    name: {
                        "lines": len(self.lines),
                        **self.judge(found, outputs[OURS]),
                        **memory.get(name, {}),
                    }
                    for name, found in outputs.items()
                },
            )

    def judge(self, found: list[str], ours: list[str]) -> dict[str, float]:
        """BLEU, and the share of lines that are ours; both only where sentences end.

        At a line's own limit `translate` lets only `</s>` follow, which peers do not know.
        """
        if not self.is_trained:
            return {}
        same = sum(a == b for a, b in zip(found, ours, strict=True))
        judged = {"identical": same / len(ours)}
        if self.references is not None:
            judged["bleu"] = sacrebleu.corpus_bleu(found, [self.references]).score
        return judged

    def measure_loading(self) -> Iterator[list[dict[str, Any]]]:
        """Loading and the first translation, each contender in a process of its own."""
        options = self.options
        line = sorted(self.lines, key=len)[len(self.lines) // 2]
        bulk = self.bulk(max(options.max_batch_tokens))
        tokens = len(self.tokenizer(line)["input_ids"])
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in self.contenders}
        # The first round brings the files into memory.
        rounds = itertools.islice(orders(list(seconds)), options.rounds + 1)
        for number, order in enumerate(rounds):
            for name in order:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
                    call = executor.submit(
                        load_and_translate, self.checkpoints, name, line, bulk, options.malloc
                    )
                    measured = call.result()
                    if number:
                        seconds[name].append(measured)
        timings = {name: Timing([sum(pair) for pair in pairs]) for name, pairs in seconds.items()}
        marian = timings[MARIAN].median if MARIAN in timings else None
        yield [
            {
                "contender": name,
                "setting": {"source_tokens": str(tokens)},
                # Of the time, not of the speed.
                "ratio": timing.median / marian if marian else None,
                "seconds": timing.median,
                **describe_timing(timing),
                "loading_seconds": statistics.median(pair[0] for pair in seconds[name]),
                "translating_seconds": statistics.median(pair[1] for pair in seconds[name]),
            }
            for name, timing in timings.items()
        ]

    def measure_growth(self) -> Iterator[list[dict[str, Any]]]:
        """Our bulk translation of the file, and of the file `GROWTH` times over."""
        options = self.options
        bulk = self.bulk(max(options.max_batch_tokens))
        ours = self.contenders[OURS]
        files = {f"{times * len(self.lines):,} lines": times for times in (1, GROWTH)}
        timings, outputs = time_contenders(
            {
                name: partial(ours.translate, self.lines * times, bulk)
                for name, times in files.items()
            },
            warmup=options.warmup,
            rounds=options.rounds,
            device=options.device,
        )
        rows: list[dict[str, Any]] = []
        for name, timing in timings.items():
            tokens = sum(len(ids) for ids in self.tokenizer(outputs[name])["input_ids"])
            speed = tokens / timing.median
            rows.append(
                {
                    "contender": OURS,
                    "setting": {"file": name},
                    "tokens_per_second": speed,
                    "ratio": speed / rows[0]["tokens_per_second"] if rows else 1.0,
                    **describe_timing(timing),
                    "output_tokens": tokens,
                }
            )
        yield rows

    def measure_memory(
        self, names: Iterable[str], build: Callable[..., Callable[[], object]], *arguments: Any
    ) -> dict[str, dict[str, int]]:
        """Of each contender, by name; empty where it is not wanted or cannot be told."""
        options = self.options
        found: dict[str, dict[str, int]] = {}
        if not options.memory:
            return found
        for name in names:
            try:
                memory: Memory = peak_memory(
                    partial(build, self.checkpoints, name, *arguments),
                    device=options.device,
                    allocator=options.malloc,
                    calls=1,
                    imports=["ctranslate2"] if name in CTRANSLATE2 else [],
                )
            except RuntimeError as error:
                print(f"the memory of {name} is unknown: {error}")
                continue
            found[name] = {"memory_added": memory.added, "memory_total": memory.total}
        return found


# --------------------------------------------------------------------------------------- the rest


def read_data(options: argparse.Namespace, folder: Path) -> tuple[list[str], list[str] | None]:
    """Sentences of `--data`, and their translations where it has them.

    Args:
        options: `data` is a file or a corpus as `load_parallel` reads it, two text files, or one
            text file (`.txt`) without translations.
        folder: Where a copy goes.

    Raises:
        ValueError: More than two files, or what `load_parallel` refuses.
    """
    data = options.data
    if len(data) > 2:
        raise ValueError(f"--data ({', '.join(data)}) must be one file or two, source and target")
    if len(data) == 1 and data[0].endswith(".txt"):
        try:
            text = Path(data[0]).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--data ({data[0]}) cannot be read: {error.strerror}") from None
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[: options.limit], None
    pairs, _ = load_parallel(
        data[0] if len(data) == 1 else [Path(path) for path in data],
        options.source_lang,
        options.target_lang,
        "test",
        cache_dir=folder / "data",
        limit=options.limit,
    )
    return list(pairs["source"]), list(pairs["target"])


def describe(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for the terminal."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "median_seconds": ("median s", "{:.3f}".format),
        "best_seconds": ("best s", "{:.3f}".format),
        "tokens_per_second": ("tokens/s", "{:,.0f}".format),
        "ratio": ("ratio", "{:.2f}×".format),
        "ours_over_it": ("ours is", "{:.2f}×".format),
        "share_of_peak": ("of peak", "{:.1%}".format),
        "identical": ("same", "{:.1%}".format),
        "bleu": ("BLEU", "{:.2f}".format),
        "loading_seconds": ("load s", "{:.3f}".format),
        "translating_seconds": ("first s", "{:.3f}".format),
        "memory_added": ("added MiB", lambda bytes_: f"{bytes_ / 2**20:,.0f}"),
        "memory_total": ("total MiB", lambda bytes_: f"{bytes_ / 2**20:,.0f}"),
    }
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = [f"{'':24}" + "".join(f"{columns[name][0]:>11}" for name in shown)]
    for row in rows:
        label = row["contender"]
        if "file" in row["setting"]:
            label = row["setting"]["file"]
        cells = ["" if row.get(name) is None else columns[name][1](row[name]) for name in shown]
        lines.append(f"{label:24}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        SystemExit: Options that contradict each other.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"CTranslate2 is measured where it is installed: {INSTALL}",
    )
    add = parser.add_argument
    add("--model", help="a trained checkpoint of ours: directory, run or Hub id [random weights]")
    add("--size", choices=SIZES, default="base", help="of random weights [base]")
    add("--measure", choices=MEASURES, nargs="+", default=list(MEASURES), help="[all]")
    add(
        "--contenders",
        choices=CONTENDERS,
        nargs="+",
        default=list(CONTENDERS),
        metavar="NAME",
        help=f"[all: {', '.join(CONTENDERS)}]",
    )
    add(
        "--data",
        nargs="+",
        metavar="FILE",
        help="corpus, text, or source and target texts; random weights translate random words, as "
        "many as it has [log-normal lengths, as newstest]",
    )
    add("--source-lang", default="en", help="[en]")
    add("--target-lang", default="de", help="[de]")
    number: dict[str, Any] = {"type": whole_number(1), "metavar": "N"}
    add("--limit", **number, help="lines of the data [all of a file; 512 of random words]")
    add("--batches", **number, nargs="+", default=[1, 16, 64], help="for generate [1 16 64]")
    add("--beams", **number, nargs="+", default=[1, 4], help="the rest takes the largest [1 4]")
    add("--length", **number, default=32, help="tokens of each output of generate [32]")
    add("--max-batch-tokens", **number, nargs="+", default=[2048], help="for bulk [2048]")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="[float32]")
    add("--memory-lines", **number, default=256, help="of bulk: its longest lines [256]")
    add_shared_options(parser)
    options = parser.parse_args(arguments)
    if options.model is not None and options.data is None:
        parser.error("--model needs --data, sentences for it to translate")
    if OURS not in options.contenders:
        parser.error(f"--contenders must have {OURS}, which the others are compared with")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line says.

    Raises:
        UnequalError: A peer does not compute what the model computes.
        ValueError: The model cannot be copied, or there are no such data.
    """
    options = parse_arguments(arguments)
    before = start(options)
    with tempfile.TemporaryDirectory() as folder:
        run(prepare(options, Path(folder)), before)


def prepare(options: argparse.Namespace, folder: Path) -> Benchmark:
    """Builds the model and its copies in `folder`, and asserts that they compute the same.

    Raises:
        UnequalError: They do not.
        ValueError: The model cannot be copied, or there are no such data.
    """
    transformers_logging.disable_progress_bar()
    references: list[str] | None = None
    if options.model is None:
        model, tokenizer = random_model(options.size, options.seed)
        lengths = news_lengths(options.limit or 512, options.seed)
        if options.data is not None:
            real, _ = read_data(options, folder)
            lengths = [round(TOKENS_PER_WORD * len(line.split())) for line in real]
        lengths = [GRAIN * max(1, round(length / GRAIN)) for length in lengths]
        lines = random_lines(lengths, model.config.vocab_size, options.seed)
    else:
        loaded, tokenizer = load_model(options.model, "cpu")
        if not isinstance(loaded, VanillaTransformerForConditionalGeneration):
            raise ValueError(
                f"{options.model} is a {type(loaded).__name__}; give a model of this package"
            )
        model = loaded
        lines, references = read_data(options, folder)
    needed = max(options.batches) if "generate" in options.measure else 1
    if len(lines) < needed:
        raise ValueError(
            f"there are {len(lines)} lines, too few for a batch of {needed}; give more by --data "
            "or --limit, or smaller --batches"
        )
    longest = max(len(ids) for ids in tokenizer(lines)["input_ids"])
    if longest > min(options.max_batch_tokens) or longest + 50 > MAX_POSITIONS:
        raise ValueError(
            f"the longest sentence has {longest} tokens, more than --max-batch-tokens "
            f"({min(options.max_batch_tokens)}) or than {MAX_POSITIONS - 50}, so that not all "
            "contenders would translate it; allow more, or take it out of the data"
        )
    checkpoints = Checkpoints.write(
        model,
        tokenizer,
        folder,
        device=options.device,
        dtype=getattr(torch, options.dtype),
        threads=torch.get_num_threads(),
    )
    del model
    names = options.contenders
    missing = []
    if find_ctranslate2() is None and (missing := [name for name in names if name in CTRANSLATE2]):
        print(f"{', '.join(missing)} left out: not installed; {INSTALL}", file=sys.stderr)
    if OURS_INT8 in names and (options.dtype != "float32" or options.device != "cpu"):
        print(f"{OURS_INT8} left out: only for float32 models on a processor", file=sys.stderr)
        missing.append(OURS_INT8)
    names = [name for name in names if name not in missing]
    benchmark = Benchmark(
        checkpoints.load_ours().config,
        checkpoints,
        {name: checkpoints.load(name, tokenizer) for name in names},
        missing,
        tokenizer,
        lines,
        references,
        options.model is not None,
        options,
    )
    benchmark.check_logits()
    benchmark.check_ids()
    return benchmark


def run(benchmark: Benchmark, before: Mapping[str, Any]) -> None:
    """Measures, prints and writes what the command line says; each of the four is a run.

    Raises:
        UnequalError: A peer does not compute what the model computes.
    """
    options = benchmark.options
    # What a processor does not multiply in 16 bits, it does in 32.
    dtype = torch.float32 if options.device == "cpu" else getattr(torch, options.dtype)
    weights = Path(options.model).name if options.model else f"random ({options.size})"
    for measured in options.measure:
        rows = []
        # Whatever else was running may leave it more now.
        benchmark.peak = max(benchmark.peak, product_peak(dtype, options.device))
        with Load() as load:
            for found in getattr(benchmark, f"measure_{measured}")():
                setting = ", ".join(f"{k} {v}" for k, v in found[0]["setting"].items())
                print(f"\n{measured}, {setting}")
                print(describe(found))
                rows += found
        if load.others is not None:
            print(f"Other processes took {load.others:.0%} of the machine meanwhile.")
        if options.output:
            write_results(
                options.output,
                "generation",
                rows,
                setting={
                    "measured": measured,
                    "weights": weights,
                    "malloc": options.malloc,
                    "device": options.device,
                    "dtype": options.dtype,
                },
                machine=before,
                reference="the smaller file" if measured == "growth" else MARIAN,
                missing=benchmark.missing,
                lines=len(benchmark.lines),
                product_peak=benchmark.peak,
                load=load.others,
                peers=versions("ctranslate2"),
            )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, UnequalError) as error:
        raise SystemExit(str(error)) from None
