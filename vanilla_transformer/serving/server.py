"""The JSON API and the web page, as an ASGI application."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import Full
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .batching import BatchingQueue
from .engines import Engines, decoding_for


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        max_batch_tokens: Bound on texts times tokens of the longest in a batch.
        max_waiting: Texts that may wait; more are answered 503.
        max_texts: Of one request.
        max_source_tokens: Of one text, with its end; a longer one is answered 413.
        max_context_tokens: Of a question and its context, which is read in windows; likewise.
        max_body: Bytes of a request; a larger one is answered 413.
        max_beams: That a request may ask for.
    """

    max_batch_tokens: int = 4096
    max_waiting: int = 1024
    max_texts: int = 128
    max_source_tokens: int = 1024
    max_context_tokens: int = 16_384
    max_body: int = 1_000_000
    max_beams: int = 16


def _check_text(text: str) -> str:
    """The text, unless it has half a surrogate pair, which JSON can spell and no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is no character; remove it") from error
    return text


_Text = Annotated[str, AfterValidator(_check_text)]


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class TranslationRequest(_Question):
    """Texts to translate, a sentence each."""

    texts: list[_Text] = Field(min_length=1)
    num_beams: int | None = Field(None, ge=1, description="By default as the model is meant to.")
    num_hypotheses: int = Field(1, ge=1, description="Translations of each text, best first.")
    length_penalty: float | None = Field(None, allow_inf_nan=False, description="alpha")


class Translation(BaseModel):
    """One translation."""

    text: str
    score: float | None = Field(description="log P(y|x) / lp, in nats, where a beam was used.")


class TranslationResponse(BaseModel):
    """Of each text its translations, best first."""

    translations: list[list[Translation]]


class AnswerRequest(_Question):
    """A question about a context."""

    question: _Text
    context: _Text
    top_k: int = Field(1, ge=1, le=20)


class Answer(BaseModel):
    """A piece of the context: characters `start` to `end`."""

    answer: str
    start: int
    end: int
    score: float = Field(description="Probability among all pieces.")


class InferenceRequest(_Question):
    """Does the hypothesis follow from the premise?"""

    premise: _Text
    hypothesis: _Text


class Label(BaseModel):
    """What may hold of a pair, and how probably."""

    label: str
    score: float


class AttentionRequest(_Question):
    """A sentence to look at."""

    text: _Text
    num_beams: int | None = Field(4, ge=2, le=16, description="Beam whose tree is shown.")


class Health(BaseModel):
    """State of the server."""

    status: str
    models: dict[str, str] = Field(description="By task.")
    waiting: int = Field(description="Texts in the queue.")


def build_app(engines: Engines, limits: Limits | None = None) -> FastAPI:
    """Makes the application.

    Only what the models can do has a route. `/docs` documents them, `/openapi.json` describes them
    for programs, `/health` and `/metrics` (Prometheus) are for those who run the server. Nothing
    is fetched from elsewhere.

    Args:
        engines: Of `load_engines`.
        limits: What is taken.
    """
    limits = limits or Limits()
    metrics = _Metrics()
    queue = BatchingQueue(
        lambda kind, values: engines[kind[0]].run(kind[1], values),
        max_batch_tokens=limits.max_batch_tokens,
        max_waiting=limits.max_waiting,
        observe=lambda kind, tokens: metrics.observe_batch(kind[0], tokens),
    )
    metrics.waiting.set_function(lambda: queue.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(queue.close, 30)

    app = FastAPIOffline(
        title="vanilla_transformer",
        version=version("vanilla_transformer"),
        description="The Transformer of “Attention Is All You Need”, serving.",
        lifespan=lifespan,
    )
    app.add_middleware(_BodyLimit, max_body=limits.max_body)

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> Response:
        # Without the values, among which may be what no answer holds: infinity, half a character.
        problems = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]
        return Response(json.dumps({"detail": problems}), 422, media_type="application/json")

    @app.middleware("http")
    async def measure(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        start = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        # Paths that nobody serves share one name: they are without number.
        path = "unknown" if route is None else route.path
        metrics.requests.labels(path, response.status_code).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - start)
        return response

    async def run(
        request: Request, task: str, settings: Any, fields: dict[str, Any], values: list[Any]
    ) -> list[Any]:
        """Checks, queues, waits; what a client that hung up has asked for is not run."""
        engine = engines[task]
        for name, text in fields.items():
            if not text.strip():
                raise HTTPException(422, f"{name} is blank; write something")
        bound = limits.max_context_tokens if engine.has_windows else limits.max_source_tokens
        bound = min(bound, engine.max_tokens or bound)
        counts = [engine.count(value) for value in values]
        if max(counts) > bound:
            raise HTTPException(413, f"{max(counts)} tokens are more than {bound}; split the text")
        try:
            futures = queue.submit((task, settings), values, counts)
        except Full as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        except RuntimeError as error:
            raise HTTPException(503, "the server is closing down") from error
        return await _wait(request, futures)

    if "translation" in engines:

        @app.post("/api/translate", tags=["models"])
        async def translate(body: TranslationRequest, request: Request) -> TranslationResponse:
            """Translates texts; nothing for a blank one."""
            if len(body.texts) > limits.max_texts:
                raise HTTPException(
                    413, f"{len(body.texts)} texts are more than {limits.max_texts}; send fewer"
                )
            beams = max(body.num_beams or 1, body.num_hypotheses)
            if beams > limits.max_beams:
                raise HTTPException(422, f"num_beams ({beams}) exceeds {limits.max_beams}")
            engine = engines["translation"]
            asked = body.num_beams
            if (
                asked is None
                and engine.decoding
                and body.num_hypotheses > engine.decoding.num_beams
            ):
                # As many as are wanted must end the search.
                asked = body.num_hypotheses
            try:
                decoding = decoding_for(engine, asked, body.num_hypotheses, body.length_penalty)
            except ValueError as error:
                raise HTTPException(422, str(error)) from error
            texts = [text for text in body.texts if text.strip()]
            found = await run(request, "translation", decoding, {}, texts) if texts else []
            blank = [Translation(text="", score=None)] * body.num_hypotheses
            results = iter(found)
            return TranslationResponse(
                translations=[
                    [Translation(text=one.text, score=one.score) for one in next(results)]
                    if text.strip()
                    else blank
                    for text in body.texts
                ]
            )

    if "question_answering" in engines:

        @app.post("/api/answer", tags=["models"])
        async def answer(body: AnswerRequest, request: Request) -> list[Answer]:
            """Finds the pieces of the context that answer the question best."""
            fields = {"question": body.question, "context": body.context}
            found = await run(request, "question_answering", body.top_k, fields, [fields])
            return [Answer(**one) for one in found[0]]

    if "inference" in engines:

        @app.post("/api/infer", tags=["models"])
        async def infer(body: InferenceRequest, request: Request) -> list[Label]:
            """Tells what holds between two sentences, likeliest first."""
            fields = {"premise": body.premise, "hypothesis": body.hypothesis}
            found = await run(request, "inference", None, fields, [fields])
            return [Label(**one) for one in found[0]]

    if "attention" in engines:

        @app.post("/api/attention", tags=["models"], response_class=HTMLResponse)
        async def attention(body: AttentionRequest, request: Request) -> str:
            """Draws what the translator attends to, as a page of its own."""
            found = await run(
                request, "attention", body.num_beams, {"text": body.text}, [body.text]
            )
            return str(found[0])

    @app.get("/health", tags=["operation"])
    async def health(response: Response) -> Health:
        """200 while the server works, 503 when it has stopped."""
        is_working = queue.is_working
        response.status_code = 200 if is_working else 503
        return Health(
            status="ok" if is_working else "stopped",
            models={task: engine.name for task, engine in engines.items()},
            waiting=queue.waiting,
        )

    @app.get("/metrics", tags=["operation"])
    async def prometheus() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    page = Path(__file__).with_name("page.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> Annotated[str, "page"]:
        return page

    return app


async def _wait(request: Request, futures: list[Future[Any]]) -> list[Any]:
    """Results, unless the client hangs up first: what still waits is cancelled then."""
    results = asyncio.gather(*map(asyncio.wrap_future, futures))
    try:
        while True:
            done, _ = await asyncio.wait({results}, timeout=0.25)
            if done:
                return list(results.result())
            if await request.is_disconnected():
                # Nobody reads it; the number is nginx's for this case.
                raise HTTPException(499, "the client has hung up")
    except asyncio.CancelledError as error:
        raise HTTPException(503, "the server is closing down") from error
    finally:
        results.cancel()


class _Metrics:
    """What is counted, in a registry of its own: one process may hold several applications."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "requests", "Requests answered", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "request_seconds", "From request to answer", ["path"], registry=self.registry
        )
        self.waiting = Gauge("waiting_texts", "Texts in the queue", registry=self.registry)
        self.batches = Histogram(
            "batch_texts",
            "Texts in a batch",
            ["task"],
            buckets=[2**i for i in range(9)],
            registry=self.registry,
        )
        self.tokens = Counter("source_tokens", "Tokens read", ["task"], registry=self.registry)

    def observe_batch(self, task: str, tokens: list[int]) -> None:
        """Takes note of a batch."""
        self.batches.labels(task).observe(len(tokens))
        self.tokens.labels(task).inc(sum(tokens))


class _BodyLimit:
    """Stops reading a request that is too large, whatever its header says."""

    def __init__(self, app: Any, max_body: int):
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = 0

        async def limited() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body:
                raise HTTPException(413, f"a request may have {self.max_body} bytes; send less")
            return message

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body:
            message = f"a request may have {self.max_body:,} bytes, not {int(declared):,}"
            response = Response(f'{{"detail": "{message}"}}', 413, media_type="application/json")
            await response(scope, receive, send)
            return
        await self.app(scope, limited, send)


def listen(app: FastAPI, host: str, port: int, *, report: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM; requests that are under way are answered before it ends.

    Args:
        app: Of `build_app`.
        host: Address to listen on.
        port: 0 takes a free one.
        report: Told of the address, once requests are taken.

    Raises:
        ValueError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only of sockets that say they are TCP does asyncio send each packet at once; the others wait
    # 40 ms between the head of an answer and its body.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"{host}:{port} cannot be listened on ({error}); choose another --port or --host"
        ) from error
    name = f"[{host}]" if ":" in host else host
    server = uvicorn.Server(
        # Far above what the queue takes: a client beyond it is told so, not left waiting.
        uvicorn.Config(app, log_level="warning", limit_concurrency=4096, timeout_keep_alive=30)
    )
    with listener:
        # Listening before it says so: whoever reads the address may connect at once.
        listener.listen(2048)
        report(f"http://{name}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])
