"""JoeyNMT's checkpoints, against JoeyNMT where it is installed and its equations everywhere."""

import importlib.util
import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.conversion import convert
from vanilla_transformer.conversion.joeynmt import JoeyNMTFamily
from vanilla_transformer.conversion.parity import random_batches
from vanilla_transformer.conversion.source import Checkpoint, Reference
from vanilla_transformer.conversion.weights import build_model
from vanilla_transformer.data.tiny_world import generate_translation

FAMILY = JoeyNMTFamily()
UNK, PAD, BOS, EOS = range(4)
LONGEST = 12


def options(
    layer_norm: str | None = "pre",
    tied: tuple[bool, bool] = (True, True),
    d_model: int = 16,
    heads: int = 2,
    depths: tuple[int, int] = (2, 2),
    scale: bool = True,
    activation: str = "relu",
) -> dict[str, Any]:
    sides = {
        side: {
            "type": "transformer",
            "num_layers": depth,
            "num_heads": heads,
            "embeddings": {"embedding_dim": d_model, "scale": scale, "dropout": 0.1},
            "hidden_size": d_model,
            "ff_size": 3 * d_model,
            "dropout": 0.2,
        }
        for side, depth in zip(("encoder", "decoder"), depths, strict=True)
    }
    if layer_norm is not None:
        for side in sides.values():
            side |= {"layer_norm": layer_norm, "activation": activation}
    return {
        "name": "test",
        "data": {"src": {"lang": "en"}, "trg": {"lang": "de"}},
        "training": {"label_smoothing": 0.1},
        "testing": {"beam_size": 5, "beam_alpha": 1.0, "max_output_length": LONGEST},
        "model": {"tied_embeddings": tied[0], "tied_softmax": tied[1], **sides},
    }


# Options and the sizes of both vocabularies.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "one matrix, pre": (options(), 23, 23),
    "softmax tied, post, deep and shallow": (
        options("post", (False, True), depths=(4, 1), activation="swish"),
        23,
        31,
    ),
    "none tied, gelu": (options("pre", (False, False), 32, 4, activation="gelu"), 37, 29),
    "embeddings tied alone": (options("post", (True, False)), 23, 23),
    "unscaled": (options(scale=False), 23, 23),
    "1.x": (options(None), 23, 23),
}
HAS_JOEY = all(importlib.util.find_spec(name) for name in ("joeynmt", "subword_nmt"))
needs_joey = pytest.mark.skipif(
    not HAS_JOEY, reason="JoeyNMT 2.3.0 is not installed; its equations are tested all the same"
)


def make_tensors(config: Mapping[str, Any], sources: int, targets: int) -> dict[str, Tensor]:
    """Under the names that JoeyNMT saves."""
    model = config["model"]
    d, d_ff = model["encoder"]["hidden_size"], model["encoder"]["ff_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "src_embed.lut.weight": (sources, d),
        "trg_embed.lut.weight": (targets, d),
        "decoder.output_layer.weight": (targets, d),
    }
    norms: list[str] = []
    for side, attentions, kinds in (
        ("encoder", ["src_src_att"], ["layer_norm"]),
        ("decoder", ["trg_trg_att", "src_trg_att"], ["x_layer_norm", "dec_layer_norm"]),
    ):
        for i in range(model[side]["num_layers"]):
            layer = f"{side}.layers.{i}"
            for attention in attentions:
                for part in ("k_layer", "v_layer", "q_layer", "output_layer"):
                    shapes[f"{layer}.{attention}.{part}.weight"] = (d, d)
            shapes[f"{layer}.feed_forward.pwff_layer.0.weight"] = (d_ff, d)
            shapes[f"{layer}.feed_forward.pwff_layer.3.weight"] = (d, d_ff)
            norms += [f"{layer}.{kind}" for kind in (*kinds, "feed_forward.layer_norm")]
        if model[side].get("layer_norm", "pre") == "pre":
            norms.append(f"{side}.layer_norm")
    shapes |= {f"{norm}.weight": (d,) for norm in norms}
    biases = [n for n in shapes if n.startswith(("encoder.", "decoder.layer"))]
    shapes |= {n.replace("weight", "bias"): shapes[n][:1] for n in biases}
    generator = torch.Generator().manual_seed(0)
    tensors = {n: 0.3 * torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    for name in ("trg_embed.lut.weight", "decoder.output_layer.weight"):
        # So that some sentences end before they must.
        tensors[name][EOS] *= 2.5
    if model["tied_embeddings"]:
        tensors["trg_embed.lut.weight"] = tensors["src_embed.lut.weight"]
    if model["tied_softmax"]:
        tensors["decoder.output_layer.weight"] = tensors["trg_embed.lut.weight"]
    table = sinusoids(5000, d).float()
    return tensors | {f"{side}.pe.pe": table.unsqueeze(0) for side in ("encoder", "decoder")}


def sinusoids(length: int, d: int) -> Tensor:
    frequencies = 10000 ** (-torch.arange(0, d, 2, dtype=torch.double) / d)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def save(folder: Path, case: str) -> Path:
    """As a training of JoeyNMT leaves it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CASES[case][0]), "utf-8")
    state = {
        "model_state": make_tensors(*CASES[case]),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.98)}]},
        "scaler_state": None,
        "scheduler_state": {"_step": 10},
        "stats_state": {"best_ckpt_score": np.float64(30.5), "best_ckpt_iter": 10},
    }
    torch.save(state, folder / "10.ckpt")
    (folder / "best.ckpt").symlink_to("10.ckpt")
    torch.save(state, folder / "5.ckpt")
    return folder


class NaiveJoey:
    """JoeyNMT's equations, one sentence at a time, without masks or caches, in double precision."""

    name = "the documented equations"

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]):
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        self.model = config["model"]
        self.d = self.model["encoder"]["hidden_size"]
        self.is_pre = self.model["encoder"].get("layer_norm", "pre") == "pre"

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = torch.zeros(*input_ids.shape, self.d, dtype=torch.double)
        for row, ids, n in zip(states, input_ids, attention_mask.sum(1), strict=True):
            row[:n] = self._run("encoder", ids[:n], None)
        return states

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        memories = self.encode(input_ids, attention_mask)
        lengths = attention_mask.sum(1)
        states = [
            self._run("decoder", ids, memory[:n])
            for ids, memory, n in zip(decoder_input_ids, memories, lengths, strict=True)
        ]
        return torch.stack(states) @ self.tensors["decoder.output_layer.weight"].T

    def _run(self, side: str, ids: Tensor, memory: Tensor | None) -> Tensor:
        x = self.tensors["src_embed.lut.weight" if memory is None else "trg_embed.lut.weight"][ids]
        if self.model[side]["embeddings"]["scale"]:
            x = x * math.sqrt(self.d)
        x = x + sinusoids(len(ids), self.d)
        for i in range(self.model[side]["num_layers"]):
            layer = f"{side}.layers.{i}"
            if memory is None:
                x = self._add(f"{layer}.layer_norm", x, f"{layer}.src_src_att")
            else:
                x = self._add(f"{layer}.x_layer_norm", x, f"{layer}.trg_trg_att", is_causal=True)
                x = self._add(f"{layer}.dec_layer_norm", x, f"{layer}.src_trg_att", memory)
            x = self._add(f"{layer}.feed_forward.layer_norm", x, f"{layer}.feed_forward")
        return self._norm(f"{side}.layer_norm", x) if self.is_pre else x

    def _add(
        self,
        norm: str,
        x: Tensor,
        sublayer: str,
        memory: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        y = self._norm(norm, x) if self.is_pre else x
        if sublayer.endswith("feed_forward"):
            inner = self._activate(self._linear(f"{sublayer}.pwff_layer.0", y))
            y = self._linear(f"{sublayer}.pwff_layer.3", inner)
        else:
            y = self._attend(sublayer, y, y if memory is None else memory, is_causal)
        return x + y if self.is_pre else self._norm(norm, x + y)

    def _attend(self, name: str, x: Tensor, memory: Tensor, is_causal: bool) -> Tensor:
        heads = self.model["encoder"]["num_heads"]
        q, k, v = (
            self._linear(f"{name}.{part}_layer", y).unflatten(-1, (heads, -1)).transpose(0, 1)
            for part, y in (("q", x), ("k", memory), ("v", memory))
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(self.d / heads)
        if is_causal:
            scores += torch.full(scores.shape[1:], -math.inf, dtype=torch.double).triu(1)
        return self._linear(
            f"{name}.output_layer", (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        )

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _activate(self, x: Tensor) -> Tensor:
        name = self.model["encoder"].get("activation", "relu")
        gates = {
            "relu": (x > 0).double(),
            "gelu": (1 + torch.erf(x / math.sqrt(2))) / 2,
            "swish": 1 / (1 + torch.exp(-x)),
        }
        return x * gates[name]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]


def search(reference: Reference, ids: Tensor, beam: int) -> list[int]:
    """The likeliest hypothesis by `reference`'s logits and JoeyNMT's length penalty."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, LONGEST + 1):
        sources = ids.expand(len(alive), -1)
        starts = torch.tensor([[BOS, *tokens] for _, tokens in alive])
        logits = reference.logits(sources, torch.ones_like(sources), starts)[:, -1]
        scores = logits.double().log_softmax(-1)
        scores[:, [PAD, BOS] + [EOS] * (length == 1)] = -math.inf
        candidates = sorted(
            (
                (before + score, [*tokens, i])
                for (before, tokens), row in zip(alive, scores.tolist(), strict=True)
                for i, score in enumerate(row)
            ),
            key=lambda item: -item[0],
        )
        penalty = (5 + length) / 6
        is_last = length == LONGEST
        ended += [
            (score / penalty, tokens)
            for score, tokens in candidates[:beam]
            if tokens[-1] == EOS or is_last
        ]
        ended = sorted(ended, key=lambda item: -item[0])[:beam]
        alive = [item for item in candidates[: 2 * beam] if item[1][-1] != EOS][:beam]
        if len(ended) == beam and (beam == 1 or alive[0][0] / penalty <= ended[-1][0]):
            break
    return ended[0][1]


def sentences(model: VanillaTransformerForConditionalGeneration) -> tuple[Tensor, Tensor]:
    ids, mask, _ = next(iter(random_batches(model, lengths=(9,), sentences=6, seed=3)))
    ids[range(len(ids)), mask.sum(1) - 1] = EOS
    return ids, mask


def generated(model: VanillaTransformerForConditionalGeneration, beam: int) -> list[list[int]]:
    ids, mask = sentences(model)
    out = model.generate(ids, attention_mask=mask, num_beams=beam)
    return [[int(i) for i in row[1:] if i != PAD] for row in out]


def assert_agreement(
    model: VanillaTransformerForConditionalGeneration, reference: Reference
) -> None:
    for ids, mask, decoder_ids in random_batches(model):
        found = model(ids, attention_mask=mask, decoder_input_ids=decoder_ids)
        states = found.encoder_last_hidden_state - reference.encode(ids, mask)
        assert states[mask.bool()].abs().max() <= 1e-5
        logits = found.logits - reference.logits(ids, mask, decoder_ids)
        assert logits.abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_weights_give_what_the_equations_give(tmp_path: Path, case: str) -> None:
    folder = save(tmp_path / "model", case)
    assert FAMILY.recognises(folder)
    assert FAMILY.recognises(folder / "5.ckpt")
    converted = FAMILY.convert(FAMILY.read(folder))
    assert converted.config.layer_norm_position == ("post" if "post" in str(CASES[case]) else "pre")
    model = build_model(converted)
    naive = NaiveJoey(make_tensors(*CASES[case]), CASES[case][0])
    assert_agreement(model, naive)
    ids, mask = sentences(model)
    for beam in (1, 5):
        expected = [search(naive, row[:n], beam) for row, n in zip(ids, mask.sum(1), strict=True)]
        assert generated(model, beam) == expected


@pytest.mark.slow
@needs_joey
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_joeynmt_itself_agrees(tmp_path: Path, case: str) -> None:
    checkpoint = FAMILY.read(save(tmp_path / "model", case))
    model = build_model(FAMILY.convert(checkpoint))
    reference: Any = FAMILY.reference(checkpoint)
    assert reference.name == "JoeyNMT 2.3.0"
    assert_agreement(model, reference)
    ids, mask = sentences(model)
    from joeynmt.search import beam_search, greedy

    # Its beam search forbids pads, its greedy search does not.
    reference.model.lang_tags = [PAD]
    states, src_mask = reference.encode(ids, mask), mask.bool().unsqueeze(1)
    for beam, (found, _, _) in (
        (1, greedy(src_mask, LONGEST, reference.model, states, None)),
        (5, beam_search(reference.model, 5, states, None, src_mask, LONGEST, 1.0)),
    ):
        expected = [row[: [*row, EOS].index(EOS) + 1] for row in torch.as_tensor(found).tolist()]
        assert generated(model, beam) == [[i for i in row if i != PAD] for row in expected]


@pytest.mark.slow
@needs_joey
@torch.no_grad()
def test_what_joeynmt_builds_is_converted(tmp_path: Path) -> None:
    """Its own initialisation, at a larger size, through the whole procedure."""
    config = options(d_model=64, heads=8)
    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(1)
    like = make_tensors(config, 300, 300)
    reference: Any = FAMILY.reference(Checkpoint(like, config))
    from joeynmt.initialization import initialize_model

    initialize_model(reference.model, config["model"], PAD, PAD)
    torch.save({"model_state": reference.model.state_dict()}, folder / "best.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    result = convert(folder, tmp_path / "out")
    assert result.family.name == "joeynmt"
    assert result.is_live
    assert result.parity.log_probabilities <= 1e-5
    assert result.parity.same_choices == 1


def test_the_search_is_that_of_the_configuration() -> None:
    config = options()
    tensors = make_tensors(config, 23, 23)
    found = FAMILY.convert(Checkpoint(tensors, config))
    assert found.generation == {
        "num_beams": 5,
        "length_penalty": 1.0,
        "length_penalty_formula": "paper",
        "min_new_tokens": 1,
        "max_length": LONGEST + 1,
        "suppress_tokens": [PAD, BOS],
    }
    assert len(found.remarks) == 1
    config["data"]["special_symbols"] = {"lang_tags": ["<en>", "<de>"]}
    config["testing"] = {"generate_unk": False, "no_repeat_ngram_size": 4, "alpha": -1}
    found = FAMILY.convert(Checkpoint(tensors, config))
    assert found.generation == {
        "num_beams": 1,
        "length_penalty": 0.0,
        "length_penalty_formula": "paper",
        "min_new_tokens": 1,
        "suppress_tokens": [PAD, BOS, 4, 5, UNK],
    }
    assert [remark for remark in found.remarks if "no_repeat_ngram_size (4)" in remark]


@pytest.mark.parametrize(
    ("place", "name", "value", "message"),
    [
        ("encoder", "type", "recurrent", "model.encoder.type='recurrent'"),
        ("decoder", "alpha", 1.5, "model.decoder.alpha=1.5"),
        ("encoder", "activation", "tanh", "model.encoder.activation='tanh'"),
        ("decoder", "num_heads", 4, "model.decoder.num_heads=4: the encoder has 2"),
        ("decoder", "layer_norm", "post", "model.decoder.layer_norm='post'"),
        ("model", "initializer", "xavier_normal", "model.initializer='xavier_normal'"),
        ("special_symbols", "sep_token", "<sep>", "special_symbols.sep_token='<sep>'"),
        ("encoder", "ff_size", 40, r"of another shape: .*pwff_layer\.0\.weight is \[48, 16\]"),
        ("encoder", "num_layers", 3, r"missing: .*encoder\.layers\.2\.src_src_att\.q_layer"),
        ("encoder", "num_layers", 1, r"unknown to this architecture: encoder\.layers\.1"),
    ],
)
def test_other_architectures_are_refused(place: str, name: str, value: Any, message: str) -> None:
    config = json.loads(json.dumps(options()))
    config["data"]["special_symbols"] = {}
    parts = {
        "model": config["model"],
        "special_symbols": config["data"]["special_symbols"],
        **{side: config["model"][side] for side in ("encoder", "decoder")},
    }
    parts[place][name] = value
    with pytest.raises(ValueError, match=message):
        FAMILY.convert(Checkpoint(make_tensors(options(), 23, 23), config))


def test_norms_that_no_option_tells_are_told_by_the_tensors() -> None:
    config = options(None)
    tensors = make_tensors(config, 23, 23)
    without = {n: t for n, t in tensors.items() if not n.startswith("encoder.layer_norm")}
    with pytest.raises(ValueError, match="pre-norm without a final norm"):
        FAMILY.convert(Checkpoint(without, config))


def test_missing_embeddings_are_listed() -> None:
    tensors = make_tensors(options(), 23, 23)
    del tensors["src_embed.lut.weight"]
    with pytest.raises(ValueError, match=r"missing: src_embed\.lut\.weight"):
        FAMILY.convert(Checkpoint(tensors, options()))


def test_another_table_of_positions_is_refused() -> None:
    tensors = make_tensors(options(), 23, 23)
    tensors["decoder.pe.pe"] = torch.randn(1, 50, 16)
    with pytest.raises(ValueError, match=r"decoder\.pe\.pe .* does not hold JoeyNMT's sinusoids"):
        FAMILY.convert(Checkpoint(tensors, options()))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.yaml").unlink(), "has no config.yaml"),
        (lambda f: (f / "config.yaml").write_text("model: ["), "no whole YAML file"),
        (lambda f: (f / "config.yaml").write_text("a: 1"), "no configuration of JoeyNMT"),
        (lambda f: (f / "best.ckpt").unlink(), r"holds 10\.ckpt, 5\.ckpt and no best\.ckpt"),
        (lambda f: (f / "10.ckpt").write_bytes((f / "5.ckpt").read_bytes()[:5000]), "truncated"),
        (lambda f: torch.save({"model_state": Path("x")}, f / "10.ckpt"), "run code"),
        (lambda f: torch.save({"weights": {}}, f / "10.ckpt"), "no 'model_state'"),
    ],
)
def test_damaged_directories_are_refused(tmp_path: Path, break_it: Any, message: str) -> None:
    folder = save(tmp_path / "model", "1.x")
    break_it(folder)
    with pytest.raises(ValueError, match=message) as caught:
        FAMILY.read(folder)
    assert re.search(str(folder), str(caught.value))


NASTY = [
    "",
    "  two  blanks  ",
    'He said: "It\'s 5\'10\\" tall," and left... at last!',
    "http://www.example.com/path?x=1&y=2#frag user.name@example.co.uk #tag",
    "Mr. Smith vs. Dr. No, e.g. this, the U.S.A. and 1,000,000.50 or 5 %",
    "well-known state-of-the-art A--B – C — D",
    "“Quoted” , ‘single’ and rock’n’roll ?  Yes !",
    "日本語のテキスト。 中文，测试！ 한국어　全角 Ｆｕｌｌ １２",
    "emoji 😀 👨\u200d👩 zero\u200bwidth nbsp 5\xa0cm tab\there",
    "</s> <unk> <pad> @ x@ #1",
    "<b>bold</b> & [brackets] | pipe",
    "ÀÉÎ ß İ ﬁ ½ ²",
]


def lines_of(side: str, count: int = 100) -> list[str]:
    return [pair[side] for pair in generate_translation("train", count)] + NASTY


def joeys_words(line: str, text: dict[str, Any]) -> str:
    """`BasicTokenizer.pre_process`, with `helpers.py`."""
    if text["normalize"]:
        line = unicodedata.normalize("NFKC", line)
        line = line.replace("’", "'").replace("“", '"').replace("”", '"')
        line = spaced(line)
    if text["tokenizer_cfg"].get("pretokenizer") == "moses":
        if text["normalize"]:
            line = sacremoses().MosesPunctNormalizer().normalize(line)
        line = sacremoses().MosesTokenizer(lang=text["lang"]).tokenize(line, return_str=True)
    return line.lower() if text["lowercase"] else line


def spaced(line: str) -> str:
    line = re.sub("[ 　]+", " ", line.replace("\u200b", ""))
    return re.sub(r" ([?!,.:])", r"\1", line).strip()


def sacremoses() -> Any:
    return pytest.importorskip("sacremoses", reason="sacremoses, of the extra conversion")


def cut(word: str, codes: list[tuple[str, str]], known: set[str]) -> list[str]:
    """subword-nmt: the first pair of the codes that there is, wherever it is, till there is none.

    What is no token then is taken apart again by the pairs that made it.
    """
    pieces = [*word[:-1], word[-1] + "</w>"]
    for pair in codes:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == pair:
                pieces[i : i + 2] = ["".join(pair)]
            i += 1
    parts = {"".join(pair): pair for pair in reversed(codes)}

    def split(piece: str) -> list[str]:
        if piece in known or piece not in parts:
            return [piece]
        return [small for half in parts[piece] for small in split(half)]

    return [small for piece in pieces for small in split(piece)]


TEXTS: dict[str, dict[str, Any]] = {
    "plain": {"normalize": False, "lowercase": False, "tokenizer_cfg": {}},
    "normalised": {"normalize": True, "lowercase": True, "tokenizer_cfg": {}},
    "Moses": {"normalize": False, "lowercase": True, "tokenizer_cfg": {"pretokenizer": "moses"}},
    "both": {"normalize": True, "lowercase": False, "tokenizer_cfg": {"pretokenizer": "moses"}},
}
KINDS = [
    *((kind, "subword-nmt") for kind in TEXTS),
    *((kind, "sentencepiece") for kind in ("plain", "both")),
]


@dataclass
class World:
    """A model directory, and what it was made of."""

    folder: Path
    config: dict[str, Any]
    tokens: list[str]
    codes: list[tuple[str, str]]
    processor: Any = None


def make_world(
    folder: Path, kinds: tuple[str, str], sources: list[str], targets: list[str], size: int
) -> World:
    kind, tool = kinds
    config = options()
    folder.mkdir()
    texts = []
    for side, lang, lines in (("src", "en", sources), ("trg", "de", targets)):
        config["data"][side] = {"lang": lang, "level": "bpe", "tokenizer_type": tool}
        config["data"][side] |= json.loads(json.dumps(TEXTS[kind])) | {"voc_file": "a/b/vocab.txt"}
        name = "codes" if tool == "subword-nmt" else "model_file"
        config["data"][side]["tokenizer_cfg"][name] = "a/b/codes"
        texts += [joeys_words(line, config["data"][side]) for line in lines]
    world = (learn_codes if tool == "subword-nmt" else learn_pieces)(folder, texts, size)
    world.config, tokens = config, world.tokens
    (folder / "vocab.txt").write_text("\n".join(["<unk>", "<pad>", *tokens]) + "\n", "utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    tensors = make_tensors(config, len(tokens) + 4, len(tokens) + 4)
    torch.save({"model_state": tensors}, folder / "best.ckpt")
    world.tokens = ["<unk>", "<pad>", "<s>", "</s>", *tokens]
    return world


def learn_codes(folder: Path, texts: list[str], size: int) -> World:
    words = sorted({word for text in texts for word in text.split()})
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=size, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator([" ".join(words)], trainer)
    codes = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # What occurs in the end, and a few letters.
    used = {piece for word in words for piece in learner.encode(word).tokens}
    letters = {letter for piece in used for letter in piece.removesuffix("</w>") if letter < "u"}
    pieces = sorted(used | letters)
    lines = "".join(f"{a} {b}\n" for a, b in codes)
    (folder / "codes").write_text(f"#version: 0.2\n{lines}", "utf-8")
    tokens = [p.removesuffix("</w>") if p.endswith("</w>") else p + "@@" for p in pieces]
    return World(folder, {}, tokens, codes)


def learn_pieces(folder: Path, texts: list[str], size: int) -> World:
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece, of the extra conversion")
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "codes").write_bytes(written.getvalue())
    model = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    model.ParseFromString(written.getvalue())
    tokens = []
    for i, piece in enumerate(model.pieces[3:]):
        if i % 20 or len(piece.piece) == 1:
            tokens.append(piece.piece)
        else:
            # What the vocabulary lacks is unused, as JoeyNMT tells SentencePiece.
            piece.type = 5
    processor = spm.SentencePieceProcessor(model_proto=model.SerializeToString())
    return World(folder, {}, tokens, [], processor)


def expected_ids(world: World, side: str, line: str) -> list[int]:
    ids = {token: number for number, token in enumerate(world.tokens)}
    text = joeys_words(line, world.config["data"][side])
    if world.processor:
        return [*(ids.get(piece, UNK) for piece in world.processor.encode(text, out_type=str)), EOS]
    words = text.split(" ")
    known = {t[:-2] if t[1:].endswith("@@") else f"{t}</w>" for t in world.tokens[4:]}
    pieces = [piece for word in words if word for piece in cut(word, world.codes, known)]
    names = [p.removesuffix("</w>") if p.endswith("</w>") else p + "@@" for p in pieces]
    return [*(ids.get(name, UNK) for name in " ".join(names).split()), EOS]


def expected_text(world: World, side: str, ids: list[int]) -> str:
    tokens = [world.tokens[i] for i in ids if i > EOS]
    text = world.config["data"][side]
    joined = re.sub("@@( |$)", "", " ".join(tokens))
    if world.processor:
        joined = world.processor.decode(tokens).replace("\u2581", " ").strip()
    if text["tokenizer_cfg"].get("pretokenizer") == "moses":
        joined = sacremoses().MosesDetokenizer(lang=text["lang"]).detokenize(joined.split())
    return spaced(joined) if text["normalize"] else joined


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_texts_are_cut_and_put_together_as_by_joeynmt(
    tmp_path: Path, kind: tuple[str, str]
) -> None:
    lines = {"src": lines_of("source"), "trg": lines_of("target")}
    world = make_world(tmp_path / "model", kind, lines["src"], lines["trg"], 400)
    checkpoint = FAMILY.read(world.folder)
    converted = FAMILY.convert(checkpoint)
    build_model(converted)
    found = FAMILY.tokenizers(checkpoint, converted)
    assert found.source is not None
    assert found.target is not None
    differ = [
        x for x in lines["src"] if found.source(x)["input_ids"] != expected_ids(world, "src", x)
    ]
    # As a remark says.
    taken = [line for line in NASTY if line.startswith("</s>")]
    assert differ == (taken if kind == ("plain", "sentencepiece") else [])
    assert max(max(found.target(line)["input_ids"]) for line in lines["trg"]) < len(world.tokens)
    for line in lines["trg"]:
        ids = [i for i in expected_ids(world, "trg", line) if i != UNK]
        for tokenizer in (found.source, found.target):
            text = tokenizer.decode([*ids, PAD], skip_special_tokens=True)
            assert text == expected_text(world, "trg", ids)


def joeys_text(world: World, side: str) -> tuple[Any, Any]:
    """How JoeyNMT itself reads a line, and how it writes ids."""
    if world.processor and not hasattr(world.processor, "SetVocabulary"):
        pytest.skip("JoeyNMT 2.3.0 runs with sentencepiece up to 0.2.1")
    from joeynmt.tokenizers import _build_tokenizer
    from joeynmt.vocabulary import Vocabulary

    text = json.loads(json.dumps(world.config["data"][side]))
    for name in {"codes", "model_file"} & set(text["tokenizer_cfg"]):
        text["tokenizer_cfg"][name] = str(world.folder / "codes")
    tokenizer = _build_tokenizer(text)
    names = ("unk", "pad", "bos", "eos")
    symbols = {f"{name}_id": number for number, name in enumerate(names)}
    symbols |= {f"{name}_token": world.tokens[number] for number, name in enumerate(names)}
    vocabulary = Vocabulary(
        world.tokens[4:], SimpleNamespace(**symbols, sep_token=None, lang_tags=[])
    )
    tokenizer.set_vocab(vocabulary)

    def read(line: str) -> list[int]:
        pieces = tokenizer(tokenizer.pre_process(line, allow_empty=True))
        return vocabulary.sentences_to_ids([pieces], bos=False, eos=True)[0][0]

    def write(ids: list[int]) -> str:
        return tokenizer.post_process([world.tokens[i] for i in ids])

    return read, write


@pytest.mark.slow
@needs_joey
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_joeynmt_itself_reads_and_writes_so(tmp_path: Path, kind: tuple[str, str]) -> None:
    """The reference above, and with it the tokenizers."""
    if kind[0] in ("Moses", "both"):
        sacremoses()
    lines = {"src": lines_of("source", 50), "trg": lines_of("target", 50)}
    world = make_world(tmp_path / "model", kind, lines["src"], lines["trg"], 400)
    checkpoint = FAMILY.read(world.folder)
    found = FAMILY.tokenizers(checkpoint, FAMILY.convert(checkpoint))
    assert found.source is not None
    for side, some in lines.items():
        read, write = joeys_text(world, side)
        for line in some:
            ids = read(line)
            assert ids == expected_ids(world, side, line)
            if side == "trg" and len(ids) > 1 and UNK not in ids:
                assert found.source.decode(ids, skip_special_tokens=True) == write(ids)


@pytest.mark.slow
@needs_joey
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_ten_thousand_lines_of_newstest(
    tmp_path: Path, shared_data: Path, kind: tuple[str, str]
) -> None:
    import pyarrow.parquet

    files = sorted((shared_data / "wmt_newstest").glob("*.parquet"))
    rows = [row["translation"] for f in files for row in pyarrow.parquet.read_table(f).to_pylist()]
    sources = list(dict.fromkeys(row["en"] for row in rows))[:10_000]
    targets = list(dict.fromkeys(row["de"] for row in rows if "de" in row))
    # Learnt from a part, so that some words are new.
    world = make_world(tmp_path / "model", kind, sources[::3], targets[::3], 8000)
    checkpoint = FAMILY.read(world.folder)
    found = FAMILY.tokenizers(checkpoint, FAMILY.convert(checkpoint))
    assert found.source is not None
    read, _ = joeys_text(world, "src")
    ids = {line: found.source(line)["input_ids"] for line in sources}
    wrong = [line for line in sources if ids[line] != read(line)]
    if kind[1] == "sentencepiece":
        # Equally likely ways to cut.
        assert len(wrong) <= 2
    else:
        # The symbols that JoeyNMT takes apart again.
        assert len(wrong) <= 50
        assert all(max(ids[line]) >= len(world.tokens) for line in wrong)
    read, write = joeys_text(world, "trg")
    outputs = [ids for ids in map(read, targets) if UNK not in ids]
    assert len(outputs) > 8400
    texts = found.source.batch_decode(outputs, skip_special_tokens=True)
    assert texts == [write(ids) for ids in outputs]
