"""Load on a server from another process: nothing lost, answers a second, how long each one took.

    python scripts/benchmark_serving.py runs/demo --requests 2000 --clients 32

Starts `vanilla-transformer serve MODEL` at a free port, and asks for sentences of the embedded
corpus, or of a file, from as many clients at once as are wanted, each on a connection of its own
and with no pause. Every answer is compared with that of a first, quiet pass over the sentences.
Further options are the server's: `--int8`, `--batch-tokens 2048`.
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from vanilla_transformer.data.corpora import load_parallel
from vanilla_transformer.recipes.models import describe_machine


@contextmanager
def served(model: str, *options: str) -> Iterator[int]:
    """The port of a server in a process of its own."""
    command = [sys.executable, "-m", "vanilla_transformer", "serve", model, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline()
            if not address.startswith("http"):
                raise SystemExit("the server did not start")
            yield int(address.rpartition(":")[2])
        finally:
            process.terminate()


class Client:
    """One connection."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def translate(self, text: str) -> str:
        """The best translation.

        Raises:
            RuntimeError: The server answered something else.
        """
        body = json.dumps({"texts": [text]})
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", "/api/translate", body, headers)
        response = self.connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer.decode()}")
        return str(json.loads(answer)["translations"][0][0]["text"])


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="model or run directory, export or Hub id")
    parser.add_argument("--file", type=Path, help="sentences, one a line [the embedded corpus]")
    parser.add_argument("--sentences", type=int, default=200, help="different ones [200]")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    arguments, options = parser.parse_known_args()
    if arguments.file is None:
        lines = list(load_parallel("tiny_world", "en", "de", "test")[0]["source"])
    else:
        lines = [line for line in arguments.file.read_text("utf-8").splitlines() if line.strip()]
    sentences = lines[: arguments.sentences]
    draw = random.Random(arguments.seed)
    asked = [draw.choice(sentences) for _ in range(arguments.requests)]

    with served(arguments.model, *options) as port:
        quiet = Client(port)
        start = time.perf_counter()
        expected = {text: quiet.translate(text) for text in sentences}
        alone = (time.perf_counter() - start) / len(expected)

        own = threading.local()
        seconds: list[float] = []
        different: list[str] = []

        def ask(text: str) -> None:
            if not hasattr(own, "client"):
                own.client = Client(port)
            begin = time.perf_counter()
            found = own.client.translate(text)
            seconds.append(time.perf_counter() - begin)
            if found != expected[text]:
                different.append(text)

        start = time.perf_counter()
        with ThreadPoolExecutor(arguments.clients) as pool:
            # `list` raises what a client has met.
            list(pool.map(ask, asked))
        total = time.perf_counter() - start

    cuts = statistics.quantiles(seconds, n=100)
    print(f"{describe_machine()}, clients on the same machine")
    print(f"one after another: {1 / alone:,.1f} requests/s, {1000 * alone:.1f} ms each")
    print(
        f"{arguments.clients} clients: {len(seconds) / total:,.1f} requests/s, "
        f"p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms"
    )
    print(
        f"{len(seconds)} of {arguments.requests} answered, {len(different)} other than when alone"
    )
    if len(seconds) != arguments.requests:
        raise SystemExit("answers were lost")


if __name__ == "__main__":
    main()
