"""Curves show what the log says; the attention page shows what the model computed, and is safe."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
import torch
from transformers import MarianConfig, MarianMTModel, PreTrainedModel

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.inspection.attention import (
    MAX_TOKENS,
    attention_page,
    explain,
    write_attention_page,
    write_attention_picture,
)
from vanilla_transformer.inspection.curves import plot_training, read_training_log
from vanilla_transformer.modeling_vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.tokenization import train_tokenizer

HOSTILE = [
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=alert(1)>",
    "<!--",
    "&amp;",
    "{{ 7 * 7 }}",
    "\"'`",
    "\u2028",
    "</s>",
]


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text, and the maps' data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._data = ""
        self.feed(text)
        self.examples: list[dict[str, Any]] = json.loads(self._data)
        self.kinds: list[dict[str, Any]] = self.examples[0]["kinds"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if attributes.get("id") == "attention":
            self._data += data
        elif tag not in ("script", "style"):
            self.text += data

    def weights(self, kind: int) -> np.ndarray:
        """[layers, heads, rows, columns]"""
        entry = self.kinds[kind]
        shape = (entry["num_layers"], entry["num_heads"], len(entry["rows"]), len(entry["columns"]))
        integers = np.frombuffer(base64.b64decode(entry["weights"]), dtype="<u2")
        return integers.reshape(shape) / 65_535


def random_weights(heads: int, rows: int, columns: int, layers: int = 2) -> list[np.ndarray]:
    generator = np.random.default_rng(rows * columns)
    return list(generator.dirichlet(np.ones(columns), size=(layers, heads, rows)))


def hostile_page() -> str:
    count = len(HOSTILE)
    weights = random_weights(2, count, count)
    return attention_page(HOSTILE, HOSTILE, weights, weights, weights, title=HOSTILE[0])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    text = ["the dog sees the cat", "the cat sees the dog", "der hund sieht die katze"]
    return train_tokenizer(text * 3, vocab_size=285)


@pytest.fixture(params=["marian", "ours"])
def model(request: pytest.FixtureRequest, tokenizer: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    if request.param == "ours":
        ours = VanillaTransformerConfig(
            vocab_size=len(tokenizer),
            d_model=16,
            d_ff=32,
            num_heads=4,
            num_encoder_layers=2,
            num_decoder_layers=3,
            dropout=0.5,
        )
        return VanillaTransformerForConditionalGeneration(ours)
    theirs = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_layers=2,
        decoder_layers=3,
        dropout=0.5,
        attention_dropout=0.5,
        init_std=0.5,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        bos_token_id=1,
    )
    return MarianMTModel(theirs)


# --- the attention page ---


def test_page_holds_every_weight_and_token() -> None:
    source, read, written = ["a", "▁b", "</s>"], ["<s>", "x"], ["x", "</s>"]
    encoder, decoder, cross = (
        random_weights(4, 3, 3, layers=3),
        random_weights(2, 2, 2),
        random_weights(2, 2, 3),
    )
    page = Page(
        attention_page(source, read, encoder, decoder, cross, title="a b", written_tokens=written)
    )
    labels = [(kind["rows"], kind["columns"]) for kind in page.kinds]
    assert labels == [(source, source), (written, read), (written, source)]
    for kind, expected in enumerate((encoder, decoder, cross)):
        np.testing.assert_allclose(page.weights(kind), np.stack(expected), atol=0.5 / 65_535)
    plain = Page(attention_page(source, read, encoder, decoder, cross, title="a b"))
    assert plain.kinds[1]["rows"] == read


def test_page_is_self_contained_and_works_on_a_phone_in_the_dark_without_scripts() -> None:
    text = hostile_page()
    page = Page(text)
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action")
    ]
    assert links == ["data:,"]
    assert "://" not in text
    policies = [a.get("content") or "" for _, a in page.elements if "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")
    assert any(a.get("name") == "viewport" for _, a in page.elements)
    assert "prefers-color-scheme: dark" in text
    assert any(tag == "noscript" for tag, _ in page.elements)
    assert "switched off" in page.text


def test_hostile_tokens_are_only_text() -> None:
    page = Page(hostile_page())
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert page.kinds[0]["rows"] == HOSTILE
    assert page.text.count(HOSTILE[0]) == 4
    assert "49" not in page.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_attentions": random_weights(2, 3, 2)}, r"Cross.* \[2, 3, 2\] .*\[2, 2, 3\]"),
        ({"encoder_attentions": []}, "Encoder self-attention has no layer"),
        ({"decoder_attentions": [np.full((2, 2, 2), 1.5)]}, "Decoder.* to 1.5"),
        ({"decoder_attentions": [np.full((2, 2, 2), np.nan)]}, "Decoder.*nan"),
        ({"written_tokens": ["x"]}, "1 written_tokens for 2 target_tokens"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "source_tokens": ["a", "b", "c"],
        "target_tokens": ["x", "y"],
        "encoder_attentions": random_weights(2, 3, 3),
        "decoder_attentions": random_weights(2, 2, 2),
        "cross_attentions": random_weights(2, 2, 3),
        "title": "",
    }
    attention_page(**arguments)
    with pytest.raises(ValueError, match=message):
        attention_page(**(arguments | change))


def test_page_of_a_model_shows_what_it_computes_and_leaves_it_as_it_was(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    model.train()
    model.set_attn_implementation("sdpa")
    path = write_attention_page(
        model, tokenizer, "the dog sees", tmp_path / "new" / "page.html", target="der hund"
    )
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]

    page = Page(path.read_text(encoding="utf-8"))
    source_ids = tokenizer("the dog sees")["input_ids"]
    target_ids = tokenizer("der hund")["input_ids"]
    start = model.config.decoder_start_token_id
    model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor([source_ids]),
            decoder_input_ids=torch.tensor([[start, *target_ids[:-1]]]),
            output_attentions=True,
        )
    kinds = (expected.encoder_attentions, expected.decoder_attentions, expected.cross_attentions)
    for kind, layers in enumerate(kinds):
        np.testing.assert_allclose(page.weights(kind), torch.cat(layers), atol=1e-5)
        np.testing.assert_allclose(page.weights(kind).sum(-1), 1, atol=1e-3)
    assert np.all(np.triu(page.weights(1), 1) == 0)
    assert page.weights(0).shape[0] == 2
    assert page.weights(2).shape[0] == 3
    assert "".join(page.kinds[2]["rows"]) == "der▁hund</s>"
    assert "".join(page.kinds[2]["columns"]) == "the▁dog▁sees</s>"
    assert page.kinds[1]["columns"][1:] == page.kinds[1]["rows"][:-1]


# A random Marian repeats one token, greedily and by beams alike.
@pytest.mark.parametrize("model", ["ours"], indirect=True)
def test_without_a_target_the_page_shows_the_greedy_translation(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    model.generation_config.num_beams = 4
    path = write_attention_page(model, tokenizer, "the cat sees", tmp_path / "page.html")
    model.eval()
    model.set_attn_implementation("eager")
    encoded = tokenizer("the cat sees", return_tensors="pt")
    limit = encoded["input_ids"].shape[1] + 50
    greedy = model.generate(**encoded, num_beams=1, max_new_tokens=limit)
    # Else the test could not tell which of the two is shown.
    assert not torch.equal(greedy, model.generate(**encoded, max_new_tokens=limit))
    with torch.no_grad():
        expected = model(**encoded, decoder_input_ids=greedy[:, :-1], output_attentions=True)
    page = Page(path.read_text(encoding="utf-8"))
    np.testing.assert_allclose(page.weights(2), torch.cat(expected.cross_attentions), atol=1e-5)


def test_an_error_in_the_model_leaves_no_page_and_the_model_as_it_was(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    model.train()
    model.set_attn_implementation("sdpa")
    model.config.decoder_start_token_id = 10_000
    model.generation_config.decoder_start_token_id = 10_000
    with pytest.raises(IndexError):
        write_attention_page(model, tokenizer, "the dog", tmp_path / "page.html", target="der")
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_shown_as_text_and_split_characters_as_bytes(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    source = "dog ä\n\u202e <pad>"
    path = write_attention_page(model, tokenizer, source, tmp_path / "page.html", target="ä")
    columns = Page(path.read_text(encoding="utf-8")).kinds[0]["columns"]
    text = "".join(columns)
    assert "<C3><A4>" in text
    assert "<U+000A>" in columns
    assert "\u202e" not in text
    assert text.endswith("<pad></s>")
    assert "Ġ" not in text
    assert "Ã" not in text


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (" \n", None, "must hold some text"),
        (
            "x" * (MAX_TOKENS + 1),
            None,
            f"source has 202 tokens and a page shows at most {MAX_TOKENS}",
        ),
        ("dog", "x" * (MAX_TOKENS + 1), "target has 203 tokens"),
    ],
)
def test_source_must_be_a_sentence(
    model: PreTrainedModel,
    tokenizer: Any,
    tmp_path: Path,
    source: str,
    target: str | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        write_attention_page(model, tokenizer, source, tmp_path / "page.html", target=target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["ours"], indirect=True)
def test_several_sentences_with_all_there_is_to_see(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    sentences = ["the dog sees", "der hund sieht die katze"]
    path = write_attention_page(
        model, tokenizer, sentences, tmp_path / "page.html", word="dog", num_beams=3
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert [example["word"] for example in page.examples] == ["dog", "dog"]
    for example, sentence in zip(page.examples, sentences, strict=True):
        assert example["alignment"]["source"] == [*sentence.split(), "</s>"]
        assert len(example["alignment"]["pairs"]) == len(example["alignment"]["target"])
    # 2 layers of the encoder, twice 3 of the decoder, 4 heads each, in both articles.
    assert page.text.count("encoder") == 2 * 2 * 4
    assert "hypothesis 3, score" in page.text
    with pytest.raises(ValueError, match="give one sentence for the target"):
        write_attention_page(model, tokenizer, sentences, tmp_path / "x.html", target="der")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("model", ["ours"], indirect=True)
def test_a_picture_of_all_heads(model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    example = explain(model, tokenizer, "the $dog$ sees")
    path = write_attention_picture(example, tmp_path / "new" / "heads.png")
    picture = matplotlib.image.imread(path)
    # 8 rows of 4 heads, 225 pixels each.
    assert picture.shape[0] > 8 * 200
    assert picture.shape[1] > 4 * 200
    assert picture[..., :3].std() > 0.01


def in_browser(page: Path, tmp_path: Path) -> Page:
    """The page after its script ran."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to draw the page in")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --dump-dom"
    )
    finished = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Page(finished.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ours"], indirect=True)
def test_a_word_is_shown_across_the_heads(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    path = write_attention_page(
        model, tokenizer, "the dog sees", tmp_path / "page.html", word="dog"
    )
    drawn = in_browser(path, tmp_path)
    assert "▁dog across the heads" in drawn.text
    lines = [attributes for tag, attributes in drawn.elements if tag == "line"]
    assert len(lines) == len(drawn.examples[0]["alignment"]["pairs"])


@pytest.mark.slow
def test_script_draws_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(hostile_page(), encoding="utf-8")
    drawn = in_browser(page, tmp_path)
    maps = [a for tag, a in drawn.elements if tag == "canvas" and a.get("class") == "map"]
    assert len(maps) == 3
    assert all((a.get("style") or "").startswith("width: ") for a in maps)
    # Per kind 2 layers of 2 heads and their mean; and each token of both sentences.
    buttons = sum(tag == "button" for tag, _ in drawn.elements)
    assert buttons == 3 * 2 * 3 + 2 * len(HOSTILE)
    # The title is the first text there is.
    assert drawn.text.strip().startswith(HOSTILE[0])


# --- the curves ---


def training(update: int, loss: float = 3.0, **other: Any) -> str:
    rate = {"learning_rate": 1e-6 * update, "epoch": update / 100}
    return json.dumps({"kind": "train", "update": update, "loss": loss, **rate, **other})


def validation(update: int, loss: float = 2.0, bleu: float | None = None, **other: Any) -> str:
    row = {"kind": "validation", "update": update, "loss": loss, "perplexity": 7.4, **other}
    return json.dumps({**row, "bleu": bleu, "seconds": 1.0, "is_final": False})


def write_log(tmp_path: Path, *lines: str, end: str = "\n") -> Path:
    path = tmp_path / "training_log.jsonl"
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return path


def test_log_is_read_by_kind(tmp_path: Path) -> None:
    path = write_log(tmp_path, training(10), training(20), validation(20), '{"kind": "other"}', "")
    log = read_training_log(path)
    assert [row["update"] for row in log.training] == [10, 20]
    assert [row["update"] for row in log.validation] == [20]
    assert log.training[1]["learning_rate"] == pytest.approx(2e-5)


def test_after_a_resume_the_later_lines_count(tmp_path: Path) -> None:
    path = write_log(
        tmp_path,
        *(training(10), validation(10, 1.0), training(20), validation(20), training(30)),
        # Killed after update 30, resumed at the checkpoint of update 10.
        *(training(15, 9.0), training(20, 9.0), validation(20, 9.0)),
    )
    log = read_training_log(path)
    assert [(r["update"], r["loss"]) for r in log.training] == [(10, 3.0), (15, 9.0), (20, 9.0)]
    assert [(r["update"], r["loss"]) for r in log.validation] == [(10, 1.0), (20, 9.0)]


def test_a_last_line_cut_off_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_log(tmp_path, training(10), training(20)[:30], end="")
    with caplog.at_level(logging.WARNING):
        assert len(read_training_log(path).training) == 1
    assert "line 2 is cut off" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 must be a JSON object with a 'kind'"),
        ('{"update": 1}', "line 2 must be a JSON object with a 'kind'"),
        ('{"kind": "train", "update": 1}', "line 2 must have a number as loss"),
        ('{"kind": "train", "loss": "1"}', "line 2 must have a number as update and loss"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write_log(tmp_path, training(10), line, training(20))
    with pytest.raises(ValueError, match=message):
        read_training_log(path)


def drawn(
    monkeypatch: pytest.MonkeyPatch, log: Path, output: Path, **options: Any
) -> matplotlib.figure.Figure:
    """Draw, and give the figure that went into the file."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure: matplotlib.figure.Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    assert plot_training(log, output, **options) == output
    assert output.read_bytes().startswith(b"\x89PNG\r\n")
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    return figures[0]


def test_curves_show_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        line
        for update in range(10, 1010, 10)
        for line in (
            training(update, 1000 / update),
            *([validation(update, 1.5, update / 20)] if update % 200 == 0 else []),
        )
    ]
    figure = drawn(monkeypatch, write_log(tmp_path, *lines), tmp_path / "pictures" / "curves.png")
    loss, rate, bleu = figure.axes
    labels = [axes.get_ylabel() for axes in (loss, rate, bleu)]
    assert labels == ["loss (nats per item)", "learning rate", "validation BLEU\n(0 to 100)"]
    assert bleu.get_xlabel() == "optimizer updates"
    raw, mean, validated = loss.get_lines()
    np.testing.assert_allclose(raw.get_ydata(), 1000 / np.arange(10, 1010, 10))
    # A centred mean of five points stands at the middle one.
    updates = np.asarray(mean.get_xdata())
    np.testing.assert_allclose(updates, np.arange(30, 990, 10))
    neighbours = updates[:, None] + np.array([-20, -10, 0, 10, 20])
    np.testing.assert_allclose(mean.get_ydata(), (1000 / neighbours).mean(1))
    assert list(validated.get_xdata()) == [200, 400, 600, 800, 1000]
    np.testing.assert_allclose(rate.get_lines()[0].get_ydata(), 1e-6 * np.arange(10, 1010, 10))
    assert list(bleu.get_lines()[0].get_ydata()) == [10, 20, 30, 40, 50]
    assert bleu.get_title(loc="right") == "best BLEU 50.00 at update 1,000"


@pytest.mark.parametrize(
    ("scores", "options", "label", "title"),
    [
        ({"f1": 61.5, "exact_match": 50.0}, {}, "F1\n(0 to 100)", "F1 61.50"),
        ({"accuracy": 70.0, "macro_f1": 68.0}, {}, "accuracy\n(0 to 100)", "accuracy 70.00"),
        (
            {"f1": 61.5, "exact_match": 50.0},
            {"score": "exact_match"},
            "exact match\n(0 to 100)",
            "exact match 50.00",
        ),
        ({"f1": 61.5}, {"score": "perplexity"}, "perplexity", "perplexity 7.40"),
    ],
)
def test_curves_show_the_first_score_of_the_task_or_the_one_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: dict[str, float],
    options: dict[str, str],
    label: str,
    title: str,
) -> None:
    log = write_log(tmp_path, training(1), validation(1, **scores), validation(2, perplexity=9.0))
    panel = drawn(monkeypatch, log, tmp_path / "out" / "c.png", **options).axes[-1]
    assert panel.get_ylabel() == f"validation {label}"
    assert panel.get_title(loc="right") == f"best {title} at update 1"


def test_a_score_that_no_validation_has_is_refused(tmp_path: Path) -> None:
    log = write_log(tmp_path, validation(1))
    with pytest.raises(ValueError, match="no validation has the score 'f1'"):
        plot_training(log, tmp_path / "curves.png", score="f1")


@pytest.mark.parametrize(
    ("lines", "num_panels"),
    [([training(1)], 2), ([validation(1)], 1), ([validation(1, bleu=3.0), training(2)], 3)],
)
def test_curves_of_a_short_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], num_panels: int
) -> None:
    log = write_log(tmp_path, *lines)
    assert len(drawn(monkeypatch, log, tmp_path / "out" / "c.png").axes) == num_panels


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    log = write_log(tmp_path, "")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_training(log, tmp_path / "curves.png")
    assert [file.name for file in tmp_path.iterdir()] == [log.name]
