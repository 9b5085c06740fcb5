"""Hours of work, watched: nothing lost, nothing out of order, memory and speed as at the start.

    python scripts/soak.py serving runs/demo --minutes 120
    python scripts/soak.py streaming runs/demo --lines 1000000

`serving` starts `vanilla-transformer serve` and sends it what a day might bring: more and fewer
clients, one text or several, beams and penalties of their own, requests that are refused, clients
that hang up. Every tenth of the time brings the same load in another order. `streaming` writes
lines to `vanilla-transformer translate` and reads its output as it comes. Both compare each greedy
translation with that of a first, quiet pass, and end with an error if the rules do not hold.
"""

import argparse
import dataclasses
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from benchmark_serving import Client, served

from vanilla_transformer.atomic_file import atomic_file
from vanilla_transformer.data.corpora import load_parallel
from vanilla_transformer.recipes.models import describe_machine

# Of the memory in the last tenth over that in the second, and of the speed in the last over that
# in the first: the first tenth fills caches and pools.
MOST_GROWTH = 1.05
LEAST_SPEED = 0.95
# In batches of other sizes sums are rounded differently, and what is nearly a tie may turn.
MOST_DIFFERENT = 0.001
TENTHS = 10
# Clients at once, in turns; each tenth has each of them, for as long.
LOADS = (1, 2, 4, 8, 16, 32)
_MIB = 2**20


@dataclasses.dataclass
class Sample:
    """State of the process that is watched.

    Attributes:
        seconds: Since the start.
        memory: Its resident set, bytes.
        processor: Seconds of processor time it has had.
        done: Lines or texts answered by then.
    """

    seconds: float
    memory: int
    processor: float
    done: int


class Watch:
    """Samples a process from a thread of its own.

    Args:
        process: Its number.
        done: Gives how much it has answered.
        interval: Seconds between two samples.
    """

    def __init__(self, process: int, done: Callable[[], int], interval: float):
        self.samples: list[Sample] = []
        self._process, self._done = psutil.Process(process), done
        self._interval, self._end = interval, threading.Event()
        self._start = time.perf_counter()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Watch":
        self.take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def take(self) -> None:
        """One sample, unless the process has ended."""
        try:
            times, memory = self._process.cpu_times(), self._process.memory_info().rss
        except psutil.NoSuchProcess:
            return
        # What has just ended and waits to be read about has no memory any more.
        if memory:
            passed = time.perf_counter() - self._start
            self.samples.append(Sample(passed, memory, times.user + times.system, self._done()))

    def _work(self) -> None:
        while not self._end.wait(self._interval):
            self.take()


def tenths(samples: Sequence[Sample], position: Callable[[Sample], float]) -> list[dict[str, Any]]:
    """What each tenth of a run was like.

    Args:
        samples: In order.
        position: What is cut into ten equal parts: time, or lines done.

    Returns:
        Of each part the median memory (MiB), and texts a second of the clock and of the processor.

    Raises:
        ValueError: A part has fewer than two samples.
    """
    first, last = position(samples[0]), position(samples[-1])
    found = []
    for number in range(TENTHS):
        low, high = (first + (last - first) * (number + more) / TENTHS for more in (0, 1))
        part = [one for one in samples if low <= position(one) <= high]
        if len(part) < 2:
            raise ValueError(
                f"tenth {number + 1} of the run has {len(part)} samples, 2 are needed; run longer"
            )
        done = part[-1].done - part[0].done
        found.append(
            {
                "memory": statistics.median(one.memory for one in part) / _MIB,
                "texts_per_second": done / (part[-1].seconds - part[0].seconds),
                "texts_per_processor_second": done
                / max(1e-9, part[-1].processor - part[0].processor),
            }
        )
    return found


def broken_rules(parts: Sequence[dict[str, Any]], speed: str) -> list[str]:
    """What of the tenths must not be: memory that grows, speed that falls."""
    broken = []
    growth = parts[-1]["memory"] / parts[1]["memory"]
    if growth > MOST_GROWTH:
        broken.append(f"memory grew by a factor of {growth:.3f}, {MOST_GROWTH} is allowed")
    if not parts[0][speed]:
        return [*broken, "no speed to compare with: the first tenth answered nothing; run longer"]
    ratio = parts[-1][speed] / parts[0][speed]
    if ratio < LEAST_SPEED:
        broken.append(f"speed fell to {ratio:.3f} of the first tenth's, {LEAST_SPEED} is the least")
    return broken


# ---------------------------------------------------------------------------------------- serving


def loads(minutes: float, seed: int) -> Iterator[tuple[float, int]]:
    """Until when, in seconds, how many clients ask: each tenth has the same loads, shuffled."""
    draw = random.Random(seed)
    slot = 60 * minutes / TENTHS / len(LOADS)
    for number in range(TENTHS):
        order = draw.sample(LOADS, len(LOADS))
        for place, clients in enumerate(order):
            yield (number * len(LOADS) + place + 1) * slot, clients


def post(client: Client, body: Any) -> tuple[int, Any]:
    """Status and answer."""
    headers = {"Content-Type": "application/json"}
    client.connection.request("POST", "/api/translate", json.dumps(body), headers)
    response = client.connection.getresponse()
    return response.status, json.loads(response.read())


class Visitor(threading.Thread):
    """A client that asks whatever comes to its mind until it is told to stop.

    Args:
        port: Of the server.
        number: Which visitor it is; only those below `active[0]` ask.
        active: How many do, in a list of one, which changes.
        expected: Greedy translations by text.
        seed: Of its whims.
    """

    def __init__(
        self, port: int, number: int, active: list[int], expected: dict[str, str], seed: int
    ):
        super().__init__(daemon=True)
        self.port, self.number, self.active, self.expected = port, number, active, expected
        self.draw = random.Random(f"{seed} {number}")
        self.texts = list(expected)
        self.client = Client(port)
        self.counts: Counter[str] = Counter()
        self.error: Exception | None = None

    def run(self) -> None:
        """Asks."""
        try:
            while self.active[0]:
                if self.number < self.active[0]:
                    self.visit()
                else:
                    time.sleep(0.05)
        except Exception as error:
            # Told by whoever started the thread.
            self.error = error

    def visit(self) -> None:
        """One request of one kind or another."""
        whim = self.draw.random()
        if whim < 0.02:
            self.hang_up()
        elif whim < 0.05:
            self.ask_wrongly()
        else:
            count = 1 if whim < 0.8 else self.draw.randint(2, 16)
            texts = self.draw.choices(self.texts, k=count)
            options: dict[str, Any] = {"num_beams": 1}
            if whim > 0.95:
                alpha = self.draw.uniform(0.2, 1.5)
                options = {"num_beams": self.draw.randint(2, 5), "length_penalty": alpha}
            status, answer = post(self.client, {"texts": texts, **options})
            if status != 200:
                raise RuntimeError(f"{status}: {answer}")
            found = [one[0]["text"] for one in answer["translations"]]
            if len(found) != count:
                raise RuntimeError(f"{len(found)} answers to {count} texts")
            self.counts["texts"] += count
            if options["num_beams"] == 1:
                wanted = [self.expected[text] for text in texts]
                self.counts["compared"] += count
                self.counts["different"] += sum(map(str.__ne__, found, wanted))

    def ask_wrongly(self) -> None:
        """What the server refuses, it must refuse with a reason."""
        wrong: Any = self.draw.choice(
            [
                {},
                {"texts": []},
                {"texts": ["a"], "num_beams": 0},
                {"texts": ["a"], "num_beams": 10**9},
                {"texts": ["word " * 5000]},
                {"texts": ["a"] * 1000},
                {"texts": "no list"},
            ]
        )
        status, answer = post(self.client, wrong)
        if not 400 <= status < 500 or not answer["detail"]:
            raise RuntimeError(f"{status} for {str(wrong)[:60]}: {answer}")
        self.counts["refused"] += 1

    def hang_up(self) -> None:
        """Asks and does not wait."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = json.dumps({"texts": self.draw.choices(self.texts, k=8), "num_beams": 4})
        connection.request("POST", "/api/translate", body, {"Content-Type": "application/json"})
        connection.close()
        self.counts["hung up"] += 1


def soak_serving(
    arguments: argparse.Namespace, options: list[str], sentences: list[str]
) -> dict[str, Any]:
    """Serves for so many minutes."""
    with served(arguments.model, *options) as port:
        # The server is the one child that this process has.
        (server,) = psutil.Process().children()
        quiet = Client(port)
        expected = {}
        for text in sentences:
            _, answer = post(quiet, {"texts": [text], "num_beams": 1})
            expected[text] = answer["translations"][0][0]["text"]
        active = [1]
        visitors = [
            Visitor(port, number, active, expected, arguments.seed) for number in range(max(LOADS))
        ]

        def answered() -> int:
            return sum(visitor.counts["texts"] for visitor in visitors)

        with Watch(server.pid, answered, arguments.interval) as watch:
            start = time.perf_counter()
            for visitor in visitors:
                visitor.start()
            for until, clients in loads(arguments.minutes, arguments.seed):
                active[0] = clients
                while time.perf_counter() - start < until:
                    time.sleep(min(0.2, max(0.0, until - (time.perf_counter() - start))))
                    failed = [visitor.error for visitor in visitors if visitor.error is not None]
                    if failed:
                        raise SystemExit(f"a client failed: {failed[0]!r}")
            watch.take()
        active[0] = 0
        for visitor in visitors:
            visitor.join()
        quiet.connection.request("GET", "/health")
        health = json.loads(quiet.connection.getresponse().read())
    counts = sum((visitor.counts for visitor in visitors), Counter[str]())
    broken = [] if health["status"] == "ok" and not health["waiting"] else [f"health: {health}"]
    return {
        "counts": {
            name: counts[name] for name in ("texts", "compared", "different", "refused", "hung up")
        },
        "tenths": tenths(watch.samples, lambda sample: sample.seconds),
        "broken": broken,
    }


# -------------------------------------------------------------------------------------- streaming


def soak_streaming(
    arguments: argparse.Namespace, options: list[str], sentences: list[str]
) -> dict[str, Any]:
    """Translates a stream of so many lines, some of them blank."""
    command = [sys.executable, "-m", "vanilla_transformer", "translate", arguments.model]
    command += ["--beams", "1", *options]
    quiet = subprocess.run(
        command, input="\n".join(sentences) + "\n", capture_output=True, text=True, check=True
    )
    expected = dict(zip(sentences, quiet.stdout.splitlines(), strict=True)) | {"": ""}
    choices = [*sentences, ""]

    def lines() -> Iterator[str]:
        draw = random.Random(arguments.seed)
        return (draw.choice(choices) for _ in range(arguments.lines))

    read = different = 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def write(stream: Any) -> None:
            for line in lines():
                stream.write(line + "\n")
            stream.close()

        threading.Thread(target=write, args=(process.stdin,), daemon=True).start()
        with Watch(process.pid, lambda: read, arguments.interval) as watch:
            for wanted, found in zip(lines(), process.stdout, strict=False):
                different += found.rstrip("\n") != expected[wanted]
                read += 1
                if read == 1:
                    # Loading the model is no part of what is watched.
                    watch.samples.clear()
                    watch.take()
            watch.take()
            left = process.stdout.read()
    broken = []
    if process.returncode or read != arguments.lines or left:
        broken.append(f"{read:,} lines of {arguments.lines:,}, exit status {process.returncode}")
    return {
        "counts": {"texts": read, "compared": read, "different": different},
        "tenths": tenths(watch.samples, lambda sample: sample.seconds),
        "broken": broken,
    }


# ------------------------------------------------------------------------------------------- main


def show(report: dict[str, Any]) -> None:
    """Prints the tenths and what was counted."""
    print("tenth  MiB  texts/s  texts/s of processor time")
    for number, part in enumerate(report["tenths"], 1):
        print(
            f"{number:5}  {part['memory']:.0f}  {part['texts_per_second']:.1f}  "
            f"{part['texts_per_processor_second']:.1f}"
        )
    print(", ".join(f"{count:,} {name}" for name, count in report["counts"].items()))


def main() -> None:
    """Soaks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("measure", choices=("serving", "streaming"))
    add("model", help="translator: model or run directory, export or Hub id")
    add("--minutes", type=float, default=120, help="of serving [120]")
    add("--lines", type=int, default=1_000_000, help="of the stream [1000000]")
    add("--sentences", type=int, default=500, help="different ones, of the embedded corpus [500]")
    add("--interval", type=float, default=2.0, metavar="SECONDS", help="between samples [2]")
    add(
        "--speed",
        choices=("clock", "processor"),
        default="clock",
        help="whose seconds speed is of: the processor's own where others share it [clock]",
    )
    add("--record", type=Path, metavar="FILE", help="results file (JSON) to write it to")
    add("--seed", type=int, default=1)
    # Further options are those of the verb that is watched.
    arguments, options = parser.parse_known_args()
    lines = dict.fromkeys(load_parallel("tiny_world", "en", "de", "test")[0]["source"])
    sentences = list(lines)[: arguments.sentences]
    start = time.perf_counter()
    soak = soak_serving if arguments.measure == "serving" else soak_streaming
    report = soak(arguments, options, sentences)
    show(report)
    kind = "texts_per_second" if arguments.speed == "clock" else "texts_per_processor_second"
    broken = report["broken"] + broken_rules(report["tenths"], kind)
    counts = report["counts"]
    if counts["different"] > counts["compared"] * MOST_DIFFERENT:
        broken.append(f"{counts['different']:,} of {counts['compared']:,} translated differently")
    for rule in broken:
        print(f"broken: {rule}")
    if arguments.record:
        with atomic_file(arguments.record) as path:
            exists = arguments.record.exists()
            earlier = json.loads(arguments.record.read_text("utf-8")) if exists else {}
            size = (
                f"--minutes {arguments.minutes:g}"
                if arguments.measure == "serving"
                else f"--lines {arguments.lines}"
            )
            earlier[arguments.measure] = {
                "command": f"python scripts/soak.py {arguments.measure} MODEL {size}"
                f" --speed {arguments.speed}",
                "machine": describe_machine(),
                "minutes": round((time.perf_counter() - start) / 60, 1),
                **report,
                "broken": broken,
            }
            path.write_text(json.dumps(earlier, indent=1) + "\n", "utf-8")
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
