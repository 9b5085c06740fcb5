"""The server: its answers are the models' own, its limits hold, and nothing is lost."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="pip install 'vanilla_transformer[serve]'")

from fastapi.testclient import TestClient
from transformers import pipeline

from vanilla_transformer.generation import DecodingSettings, translate
from vanilla_transformer.recipes import load_model
from vanilla_transformer.serving import Limits, build_app, load_engines

from .browser import CHROMIUM, opened
from .conftest import TEXTS


@pytest.fixture(scope="module")
def client(models: dict[str, Path]) -> Iterator[TestClient]:
    limits = Limits(
        max_texts=5, max_source_tokens=40, max_context_tokens=90, max_body=20_000, max_beams=6
    )
    with TestClient(build_app(load_engines(list(models.values())), limits)) as client:
        yield client


def test_translations_are_those_of_translate(client: TestClient, models: dict[str, Path]) -> None:
    model, tokenizer = load_model(models["translation"])
    for options in ({}, {"num_beams": 1}, {"num_beams": 3, "length_penalty": 1.1}):
        asked = {**options, "num_hypotheses": 1 if options.get("num_beams") == 1 else 3}
        response = client.post("/api/translate", json={"texts": [*TEXTS, " "], **asked})
        assert response.status_code == 200, response.text
        own = dataclasses.replace(DecodingSettings.of_model(model.generation_config), **asked)
        expected = list(translate(model, tokenizer, TEXTS, own))
        got = response.json()["translations"]
        assert got[-1] == [{"text": "", "score": None}] * asked["num_hypotheses"]
        for found, hypotheses in zip(got[:-1], expected, strict=True):
            assert [one["text"] for one in found] == [one.text for one in hypotheses]
            assert [one["score"] for one in found] == [
                one.score if one.score is None else pytest.approx(one.score, abs=1e-5)
                for one in hypotheses
            ]


def test_answers_and_inferences_are_those_of_the_pipelines(
    client: TestClient, models: dict[str, Path]
) -> None:
    question = {"question": TEXTS[2], "context": " ".join(TEXTS)}
    answer = pipeline("vanilla-question-answering", model=str(models["question_answering"]))
    found = client.post("/api/answer", json={**question, "top_k": 2}).json()
    for one, expected in zip(found, answer(**question, top_k=2), strict=True):
        assert one == {**expected, "score": pytest.approx(expected["score"], rel=1e-4)}
    assert found[0]["answer"] == question["context"][found[0]["start"] : found[0]["end"]]

    classify = pipeline("text-classification", model=str(models["inference"]), top_k=None)
    pair = {"premise": TEXTS[0], "hypothesis": TEXTS[3]}
    labels = client.post("/api/infer", json=pair).json()
    expected = classify([{"text": TEXTS[0], "text_pair": TEXTS[3]}])[0]
    assert [one["label"] for one in labels] == [one["label"] for one in expected]
    assert sum(one["score"] for one in labels) == pytest.approx(1)


def test_attention_is_a_page_of_its_own(client: TestClient) -> None:
    response = client.post("/api/attention", json={"text": TEXTS[0]})
    assert response.status_code == 200
    assert f"<h1>{TEXTS[0]} → " in response.text
    assert "hypothesis" in response.text


def test_page_documentation_health_and_metrics(client: TestClient) -> None:
    page = client.get("/")
    assert "<title>vanilla_transformer</title>" in page.text
    # Nothing from elsewhere, in the documentation neither.
    for text in (page.text, client.get("/docs").text):
        assert "https://" not in text
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/api/translate",
        "/api/answer",
        "/api/infer",
        "/api/attention",
        "/health",
        "/metrics",
    }
    health = client.get("/health").json()
    assert health == {
        "status": "ok",
        "models": {
            "translation": "translation",
            "attention": "translation",
            "question_answering": "question_answering",
            "inference": "inference",
        },
        "waiting": 0,
    }
    client.get("/nowhere")
    client.get("/nowhere/else")
    numbers = client.get("/metrics").text
    assert 'requests_total{path="/health",status="200"}' in numbers
    assert 'requests_total{path="unknown",status="404"} 2.0' in numbers
    assert 'source_tokens_total{task="translation"}' in numbers
    assert "nowhere" not in numbers


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("translate", {"texts": ["a"] * 6}, 413, "6 texts are more than 5"),
        ("translate", {"texts": ["cat " * 50]}, 413, "tokens are more than 40; split the text"),
        ("translate", {"texts": []}, 422, "at least 1 item"),
        ("translate", {"texts": "a"}, 422, "valid list"),
        ("translate", {"texts": ["a"], "num_beams": 0}, 422, "greater than or equal to 1"),
        ("translate", {"texts": ["a"], "num_beams": 7}, 422, "num_beams (7) exceeds 6"),
        ("translate", {"texts": ["a"], "num_beams": 2, "num_hypotheses": 3}, 422, "cannot exceed"),
        ("translate", {"texts": ["a"], "beams": 2}, 422, "Extra inputs"),
        ("translate", {"texts": ["a" * 30_000]}, 413, "20,000 bytes"),
        ("answer", {"question": " ", "context": "a"}, 422, "question is blank"),
        ("answer", {"question": "a", "context": "a " * 100}, 413, "split the text"),
        ("infer", {"premise": "a", "hypothesis": "\n"}, 422, "hypothesis is blank"),
        ("infer", {"premise": "a"}, 422, "Field required"),
        ("attention", {"text": "a", "num_beams": 1}, 422, "greater than or equal to 2"),
    ],
)
def test_bad_requests_are_told_why(
    client: TestClient, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = client.post(f"/api/{path}", json=body)
    assert response.status_code == status, response.text
    assert message in response.text
    assert client.get("/health").json()["status"] == "ok"


def test_what_is_no_json_is_refused(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    for content in (b"{", b"\xff\xfe", b"[" * 5000):
        response = client.post("/api/translate", content=content, headers=headers)
        assert response.status_code in (400, 422)


def test_a_long_request_without_a_length_is_cut_off(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'{"texts": ["'
        while sent < 10_000_000:
            sent += 1000
            yield b"a" * 1000

    response = client.post(
        "/api/translate", content=endless(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413


def test_a_full_queue_says_when_to_come_back(models: dict[str, Path]) -> None:
    engines = load_engines([models["translation"]])
    gate, started = threading.Event(), threading.Event()
    run = engines["translation"].run

    def held(settings: Any, values: list[str]) -> Any:
        started.set()
        gate.wait(30)
        return run(settings, values)

    engines["translation"] = dataclasses.replace(engines["translation"], run=held)
    with (
        TestClient(build_app(engines, Limits(max_waiting=2))) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(client.post, "/api/translate", json={"texts": ["a"]})
        started.wait(30)
        second = pool.submit(client.post, "/api/translate", json={"texts": ["b", "c"]})
        while client.get("/health").json()["waiting"] < 2:
            time.sleep(0.01)
        refused = client.post("/api/translate", json={"texts": ["d"]})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "2 texts wait" in refused.json()["detail"]
        gate.set()
        assert first.result(30).status_code == second.result(30).status_code == 200
    assert client.get("/health").status_code == 503


def test_only_one_model_for_a_task(models: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="are both for inference; give one model for each task"):
        load_engines([models["inference"], models["inference"]])
    with pytest.raises(ValueError, match="is neither a directory nor a model"):
        load_engines([models["inference"] / "none"])


# ------------------------------------------------------------------------------ the real program


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command line's own server, in a process of its own, at a free port."""
    command = [sys.executable, "-m", "vanilla_transformer", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate(timeout=30)
        yield process, int(line.rpartition(":")[2])
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def post(port: int, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    found = json.loads(response.read())
    connection.close()
    return response.status, found


def test_the_program_under_load_with_clients_that_hang_up(models: dict[str, Path]) -> None:
    model, tokenizer = load_model(models["translation"])
    own = DecodingSettings.of_model(model.generation_config)
    expected = {text: next(translate(model, tokenizer, [text], own))[0].text for text in TEXTS}
    with served(models["translation"]) as (process, port):

        def ask(number: int) -> bool:
            if number % 10 == 9:
                # Asks, and leaves without waiting.
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    body = json.dumps({"texts": TEXTS}).encode()
                    head = f"POST /api/translate HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"
                    connection.sendall(
                        head.encode() + b"\r\nContent-Type: application/json\r\n\r\n" + body
                    )
                return True
            text = TEXTS[number % len(TEXTS)]
            status, found = post(port, "/api/translate", {"texts": [text]})
            return status == 200 and found["translations"][0][0]["text"] == expected[text]

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(200)))
            late = [pool.submit(ask, number) for number in range(8)]
            time.sleep(0.05)
            # Who has asked is answered before it ends.
            process.send_signal(signal.SIGTERM)
            answered = [one.result(60) for one in late if not one.exception(60)]
        assert all(answered)
        # uvicorn ends by the signal that it was sent.
        assert process.wait(60) in (0, -signal.SIGTERM)


def test_small_answers_come_at_once(models: dict[str, Path]) -> None:
    """A socket that gathers what it sends waits 40 ms for the other side between head and body."""
    with served(models["inference"]) as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        seconds = []
        for _ in range(30):
            start = time.perf_counter()
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            seconds.append(time.perf_counter() - start)
        connection.close()
    assert statistics.median(seconds) < 0.03


def test_a_port_in_use_is_told(models: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "vanilla_transformer", "serve", "--port", str(port)]
        done = subprocess.run(
            [*command, str(models["inference"])], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_the_page_in_a_browser(models: dict[str, Path], tmp_path: Path) -> None:
    async def look(port: int) -> None:
        url = f"http://127.0.0.1:{port}/?task=translation&texts=the+cat&num_hypotheses=2"
        async with opened(url, tmp_path / "profile") as page:
            await page.wait_for("document.querySelectorAll('#translation td').length == 4")
            assert await page.evaluate("document.querySelector('#translation th').textContent") == (
                "the cat"
            )
            await page.evaluate("document.querySelector('#look').click()")
            await page.wait_for("document.querySelector('#attention').srcdoc.includes('<h1>')")
            tabs = "[...document.querySelectorAll('nav button')].map((one) => one.textContent)"
            assert await page.evaluate(tabs) == ["Translate", "Answer", "Infer"]

            await page.evaluate("document.querySelector('[data-task=inference]').click()")
            fill = "Object.assign(document.querySelector('#inference [name={}]'), {{value: '{}'}})"
            await page.evaluate(fill.format("premise", "the <b>cat</b> sat") + ".value")
            await page.evaluate(fill.format("hypothesis", "who is it") + ".value")
            await page.evaluate("document.querySelector('#inference form').requestSubmit()")
            await page.wait_for("document.querySelectorAll('#inference td').length == 6")

            await page.evaluate("document.querySelector('[data-task=question_answering]').click()")
            fill = fill.replace("inference", "question_answering")
            await page.evaluate(fill.format("context", "the cat " * 20000) + ".value")
            await page.evaluate(fill.format("question", "who") + ".value")
            await page.evaluate(
                "document.querySelector('#question_answering form').requestSubmit()"
            )
            error = "document.querySelector('#question_answering .error')?.textContent"
            assert "split the text" in await page.wait_for(error)

    with served(*models.values()) as (_, port):
        asyncio.run(look(port))
