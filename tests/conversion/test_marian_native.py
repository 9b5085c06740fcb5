"""Marian's own models beside their conversion, and beside Marian itself where pymarian is there."""

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer.conversion import convert
from vanilla_transformer.conversion.marian_native import MarianEquations, MarianNativeFamily
from vanilla_transformer.conversion.parity import compare, random_batches
from vanilla_transformer.conversion.weights import build_model
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.tokenization import load_tokenizer

FAMILY = MarianNativeFamily()
needs_marian = pytest.mark.skipif(
    importlib.util.find_spec("pymarian") is None, reason="pymarian 1.12 is not installed"
)

# What Marian 1.12 stores of a Transformer, as far as it is the architecture.
STORED: dict[str, Any] = {
    "type": "transformer",
    "dim-vocabs": [20, 20],
    "dim-emb": 16,
    "enc-depth": 2,
    "dec-depth": 2,
    "input-types": [],
    "tied-embeddings": False,
    "tied-embeddings-src": False,
    "tied-embeddings-all": True,
    "output-omit-bias": False,
    "transformer-heads": 2,
    "transformer-dim-ffn": 24,
    "transformer-decoder-dim-ffn": 0,
    "transformer-ffn-depth": 2,
    "transformer-decoder-ffn-depth": 0,
    "transformer-ffn-activation": "swish",
    "transformer-decoder-autoreg": "self-attention",
    "transformer-tied-layers": [],
    "transformer-preprocess": "",
    "transformer-postprocess-emb": "d",
    "transformer-postprocess": "dan",
    "transformer-postprocess-top": "",
    "transformer-train-position-embeddings": False,
    "transformer-attention-mask": "default",
    "version": "v1.12.0",
}
UNTIED = {"tied-embeddings-all": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "as OPUS-MT": {},
    "relu, sides apart": {
        "transformer-ffn-activation": "relu",
        "enc-depth": 3,
        "dec-depth": 1,
        "transformer-decoder-dim-ffn": 40,
    },
    "wide, no output bias": {"dim-emb": 48, "transformer-heads": 8, "output-omit-bias": True},
    "two vocabularies": UNTIED | {"tied-embeddings": True, "dim-vocabs": [20, 23]},
    "more on the source's side": UNTIED | {"tied-embeddings": True, "dim-vocabs": [27, 20]},
    "output of its own": UNTIED | {"tied-embeddings-src": True},
    "all apart": UNTIED,
}


def shapes(options: dict[str, Any]) -> dict[str, tuple[int, int]]:
    d, (source, target) = options["dim-emb"], options["dim-vocabs"]
    found: dict[str, tuple[int, int]] = {}
    if options["tied-embeddings-all"] or options["tied-embeddings-src"]:
        found["Wemb"] = (source, d)
    else:
        found |= {"encoder_Wemb": (source, d), "decoder_Wemb": (target, d)}
    if not options["tied-embeddings-all"] and not options["tied-embeddings"]:
        found["decoder_ff_logit_out_W"] = (d, target)
    if not options["output-omit-bias"]:
        found["decoder_ff_logit_out_b"] = (1, target)
    for side, depth in (("encoder", "enc-depth"), ("decoder", "dec-depth")):
        inner = options["transformer-dim-ffn"]
        if side == "decoder":
            inner = options["transformer-decoder-dim-ffn"] or inner
        for layer in range(1, options[depth] + 1):
            for kind in ("self", "context")[: 1 + (side == "decoder")]:
                prefix = f"{side}_l{layer}_{kind}"
                for part in "qkvo":
                    found |= {f"{prefix}_W{part}": (d, d), f"{prefix}_b{part}": (1, d)}
                found |= {f"{prefix}_Wo_ln_{part}": (1, d) for part in ("scale", "bias")}
            prefix = f"{side}_l{layer}_ffn"
            found |= {f"{prefix}_W1": (d, inner), f"{prefix}_b1": (1, inner)}
            found |= {f"{prefix}_W2": (inner, d), f"{prefix}_b2": (1, d)}
            found |= {f"{prefix}_ffn_ln_{part}": (1, d) for part in ("scale", "bias")}
    return found


def words_of(size: int) -> dict[str, int]:
    return {
        word: id for id, word in enumerate(["</s>", "<unk>", *(f"w{i}" for i in range(2, size))])
    }


def save(folder: Path, **changes: Any) -> Path:
    """A model as Marian writes it, with random weights, and what `marian-decoder` reads beside."""
    folder.mkdir(exist_ok=True)
    options = STORED | changes
    random = np.random.RandomState(3)
    arrays = {}
    for name, shape in shapes(options).items():
        # Biases weigh little: else the decoder says one word again and again.
        arrays[name] = (
            0.1 if shape[0] == 1 else 1.2 / options["dim-emb"] ** 0.5
        ) * random.standard_normal(shape)
        if name.endswith("ln_scale"):
            arrays[name] += 1
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    text = yaml.safe_dump(options).encode() + b"\0"
    arrays["special:model.yml"] = np.frombuffer(text, dtype=np.int8)
    np.savez(folder / "model.npz", **arrays)
    for side, size in zip(("source", "target"), options["dim-vocabs"], strict=True):
        (folder / f"{side}.yml").write_text(json.dumps(words_of(size)))
    decoder = {
        "relative-paths": True,
        "models": ["model.npz"],
        "vocabs": ["source.yml", "target.yml"],
        "beam-size": 6,
        "normalize": 1,
    }
    (folder / "decoder.yml").write_text(yaml.safe_dump(decoder))
    return folder


def ask_marian(
    folder: Path, sentences: list[str], beams: int
) -> list[list[tuple[list[str], float]]]:
    """Its hypotheses and their log-probabilities; in a process of its own, which it may abort."""
    code = (
        "import json, sys, pymarian; folder, beams, lines = json.load(sys.stdin); "
        "found = pymarian.Translator(models=folder + '/model.npz', "
        "vocabs=[folder + '/source.yml', folder + '/target.yml'], beam_size=beams, cpu_threads=1, "
        "quiet=True, n_best=True, mini_batch=256, normalize=1, max_length_factor=3)"
        ".translate(lines); print(json.dumps(found))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([str(folder), beams, sentences]),
        capture_output=True,
        text=True,
        check=True,
    )
    answers: list[list[tuple[list[str], float]]] = [[] for _ in sentences]
    for line in json.loads(result.stdout.splitlines()[-1]):
        number, words, score, _ = line.split("|||")
        answers[int(number)].append((words.split(), float(score.split("=")[1])))
    return answers


def sentences_of(size: int) -> list[str]:
    random = np.random.RandomState(0)
    return [
        " ".join(f"w{id}" for id in random.randint(2, size, length))
        for length in (1, 7, 3, 12, 5, 2, 9, 20)
    ]


def run_ours(
    folder: Path, sentences: list[str], vocabulary: dict[str, int], beams: int
) -> list[list[int]]:
    """What the converted model writes, without the end."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    pad = model.config.pad_token_id
    ids = [[vocabulary[word] for word in sentence.split()] + [0] for sentence in sentences]
    longest = max(map(len, ids))
    batch = torch.tensor([some + [pad] * (longest - len(some)) for some in ids])
    outputs = model.generate(
        batch, attention_mask=(batch != pad).long(), num_beams=beams, max_new_tokens=3 * longest
    )
    return [[id for id in output[1:] if id not in (0, pad)] for output in outputs.tolist()]


@pytest.mark.parametrize("name", OPTIONS)
def test_it_computes_what_its_equations_say(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "marian", **OPTIONS[name])
    found = convert(folder, tmp_path / "out")
    assert (found.family.name, found.is_live) == ("marian-npz", True)
    assert found.parity.log_probabilities <= 1e-5
    assert found.parity.encoder <= 1e-5
    assert found.parity.same_choices == 1
    # The equations on their own, without a cache, for what is generated with one.
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    reference = MarianEquations(FAMILY.read(folder))
    unknown, pad = 1, model.config.pad_token_id
    for ids, mask, _ in random_batches(model, lengths=(6,)):
        ids = ids.where(ids < min((STORED | OPTIONS[name])["dim-vocabs"]), 2).where(mask > 0, pad)
        outputs = torch.full((len(ids), 1), pad)
        for _ in range(12):
            scores = reference.logits(ids, mask, outputs)[:, -1]
            scores[:, unknown] = -torch.inf
            outputs = torch.cat((outputs, scores.argmax(-1, keepdim=True)), 1)
        settings = {"num_beams": 1, "min_new_tokens": 12, "max_new_tokens": 12}
        generated = model.generate(ids, attention_mask=mask, **settings)
        has_ended = (outputs == 0).any(1)
        assert torch.equal(generated[~has_ended], outputs[~has_ended])
        assert not has_ended.all()


@pytest.mark.slow
@needs_marian
@pytest.mark.parametrize("name", OPTIONS)
def test_it_computes_what_marian_does(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "marian", **OPTIONS[name])
    convert(folder, tmp_path / "out")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    source, target = (words_of(size) for size in (STORED | OPTIONS[name])["dim-vocabs"])
    sentences = sentences_of(20)
    answers = ask_marian(folder, sentences, 6)
    for sentence, hypotheses in zip(sentences, answers, strict=True):
        ids = torch.tensor([[source[word] for word in sentence.split()] + [0]])
        for words, score in hypotheses:
            # Cut off, not ended, at three times the longest source's length.
            end = [] if len(words) == 63 else [0]
            outputs = torch.tensor([[target[word] for word in words] + end])
            with torch.inference_mode():
                scores = model(ids, labels=outputs).logits[0].log_softmax(-1)
            total = scores.gather(1, outputs[0, :, None]).sum().item()
            # Marian writes six digits.
            assert score == pytest.approx(total, abs=2e-5, rel=1e-5)
    greedy = [hypotheses[0][0] for hypotheses in ask_marian(folder, sentences, 1)]
    expected = [[target[word] for word in words] for words in greedy]
    assert run_ours(tmp_path / "out", sentences, source, 1) == expected


@pytest.mark.slow
@needs_marian
def test_what_marian_learnt_is_searched_alike(tmp_path: Path) -> None:
    """A model whose files are Marian's own, with which sentences come to an end."""
    vocabulary = words_of(20)
    (tmp_path / "v.yml").write_text("".join(f"{word}: {id}\n" for word, id in vocabulary.items()))
    random = np.random.RandomState(1)
    lines = ["".join(f"w{i} " for i in random.randint(2, 20, 1 + n % 9)) for n in range(2000)]
    (tmp_path / "source").write_text("\n".join(lines) + "\n")
    (tmp_path / "target").write_text("".join(" ".join(s.split()[::-1]) + "\n" for s in lines))
    options = {
        "type": "transformer",
        "model": "model.npz",
        "train-sets": ["source", "target"],
        "vocabs": ["v.yml", "v.yml"],
        "dim-emb": 32,
        "enc-depth": 2,
        "dec-depth": 2,
        "transformer-heads": 4,
        "transformer-dim-ffn": 64,
        "tied-embeddings-all": True,
        "cpu-threads": 1,
        "after": "400u",
        "mini-batch": 32,
        "learn-rate": 0.005,
        "workspace": 256,
        "seed": 1,
        "normalize": 1,
        "beam-size": 6,
        "quiet": True,
    }
    code = "import json, sys, pymarian; pymarian.Trainer(**json.load(sys.stdin)).train()"
    subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(options),
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    found = convert(tmp_path / "model.npz", tmp_path / "out")
    assert found.parity.log_probabilities <= 1e-5
    for side in ("source", "target"):
        (tmp_path / f"{side}.yml").write_text((tmp_path / "v.yml").read_text())
    sentences = [line.strip() for line in lines[:200]]
    for beams in (1, 6):
        answers = ask_marian(tmp_path, sentences, beams)
        expected = [[vocabulary[word] for word in hypotheses[0][0]] for hypotheses in answers]
        ours = run_ours(tmp_path / "out", sentences, vocabulary, beams)
        assert ours == expected


def test_settings_are_those_of_its_decoder(tmp_path: Path) -> None:
    convert(save(tmp_path / "marian"), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    expected = {"num_beams": 6, "length_penalty": 1.0, "length_penalty_formula": "power"}
    expected |= {"bad_words_ids": [[20], [1]], "decoder_start_token_id": 20, "pad_token_id": 20}
    assert {name: settings[name] for name in expected} == expected
    decoder = {"normalize": 0.6, "allow-unk": True}
    (tmp_path / "marian" / "decoder.yml").write_text(yaml.safe_dump(decoder))
    (tmp_path / "marian" / "source.yml").unlink()
    convert(tmp_path / "marian" / "model.npz", tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    expected |= {"num_beams": 12, "length_penalty": 0.6, "bad_words_ids": [[20]]}
    assert {name: settings[name] for name in expected} == expected


def change_arrays(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with np.load(folder / "model.npz") as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(folder / "model.npz", **arrays)


def test_an_output_matrix_of_later_versions_and_options_beside(tmp_path: Path) -> None:
    folder = save(tmp_path / "marian", **UNTIED)
    found = convert(folder, tmp_path / "out")

    def change(arrays: dict[str, Any]) -> None:
        arrays["decoder_ff_logit_out_Wt"] = arrays.pop("decoder_ff_logit_out_W").T.copy()
        text = arrays.pop("special:model.yml").tobytes().rstrip(b"\0")
        (folder / "model.npz.yml").write_bytes(text)

    change_arrays(folder, change)
    again = convert(folder, tmp_path / "again")
    assert again.parity == found.parity
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "again")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    (folder / "model.npz.yml").unlink()
    with pytest.raises(ValueError, match=r"has no special:model.yml, nor is model.npz.yml beside"):
        convert(folder, tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "s2s"}, "type='s2s'"),
        ({"transformer-decoder-autoreg": "rnn"}, "recurrent .SSRU, as Firefox and Bergamot"),
        ({"transformer-preprocess": "n"}, "transformer-preprocess='n'"),
        ({"transformer-postprocess": "da"}, "transformer-postprocess='da'"),
        ({"transformer-postprocess-top": "n"}, "transformer-postprocess-top='n'"),
        ({"transformer-ffn-activation": "gelu"}, r"x sigmoid\(1.702 x\)"),
        ({"transformer-ffn-depth": 1}, "transformer-ffn-depth=1"),
        ({"transformer-tied-layers": [1, 1]}, "layers that share their weights"),
        ({"transformer-train-position-embeddings": True}, "learned positions"),
        ({"transformer-attention-mask": "alibi"}, "ALiBi"),
        ({"lemma-dim-emb": 8}, "factored vocabularies"),
        ({"input-types": ["sequence", "class"]}, "inputs other than one sentence"),
        ({"dim-vocabs": [20, 21]}, r"dim-vocabs \[20, 21\] differ"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "marian")

    def change(arrays: dict[str, Any]) -> None:
        text = yaml.safe_dump(STORED | changes).encode() + b"\0"
        arrays["special:model.yml"] = np.frombuffer(text, dtype=np.int8)

    change_arrays(folder, change)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_are_accounted_for(tmp_path: Path) -> None:
    folder = save(tmp_path / "marian")

    def change(arrays: dict[str, Any]) -> None:
        del arrays["encoder_l1_self_Wq"]
        arrays["decoder_l2_ffn_W1"] = arrays["decoder_l2_ffn_W1"].T
        arrays["decoder_l1_rnn_Wf"] = np.zeros((16, 16), np.float32)

    change_arrays(folder, change)
    with pytest.raises(ValueError, match=r"missing: encoder_l1_self_Wq") as error:
        convert(folder, tmp_path / "out")
    assert "decoder_l2_ffn_W1 is [24, 16], not [16, 24]" in str(error.value)
    assert "unknown to this architecture: decoder_l1_rnn_Wf" in str(error.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "marian")
    (folder / "decoder.yml").unlink()
    (folder / "other.npz").write_bytes((folder / "model.npz").read_bytes())
    with pytest.raises(ValueError, match=r"holds 2 models of Marian \(model.npz, other.npz\)"):
        convert(folder, tmp_path / "out")
    (folder / "other.npz").unlink()
    # The optimiser's state lies there after training.
    np.savez(folder / "model.npz.optimizer.npz", adam_mt=np.zeros(3, np.float32))
    assert FAMILY.recognises(folder)
    assert not FAMILY.recognises(folder / "model.npz.optimizer.npz")
    assert not FAMILY.recognises(tmp_path / "nothing")

    def add_code(arrays: dict[str, Any]) -> None:
        arrays["encoder_l1_self_Wq"] = np.array([Path("x")], dtype=object)

    change_arrays(folder, add_code)
    with pytest.raises(ValueError, match="of plain arrays; get it again"):
        convert(folder, tmp_path / "out")
    content = (save(folder) / "model.npz").read_bytes()
    (folder / "model.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated"):
        convert(folder / "model.npz", tmp_path / "out")
    (folder / "model.npz").write_bytes(content)
    (folder / "decoder.yml").write_text("a: [")
    with pytest.raises(ValueError, match="are no YAML"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_swap_is_noticed(tmp_path: Path) -> None:
    checkpoint = FAMILY.read(save(tmp_path / "marian"))
    converted = FAMILY.convert(checkpoint)
    prefix = "model.encoder.layers.0.self_attn"
    weights = converted.weights
    for part in ("weight", "bias"):
        names = [f"{prefix}.{side}_proj.{part}" for side in "kv"]
        weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]
    parity = compare(build_model(converted), FAMILY.reference(checkpoint), "")
    assert parity.log_probabilities > 1e-3


def test_it_brings_its_tokenizers(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece, of the extra conversion")
    pytest.importorskip("google.protobuf", reason="protobuf, of the extra conversion")
    folder = tmp_path / "marian"
    folder.mkdir()
    pairs = list(generate_translation("train", 200))
    pieces = {}
    for side in ("source", "target"):
        written = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter([pair[side] for pair in pairs]),
            model_writer=written,
            vocab_size=120,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
        (folder / f"{side}.spm").write_bytes(written.getvalue())
        model = spm.SentencePieceProcessor(str(folder / f"{side}.spm"))
        pieces[side] = [model.id_to_piece(id) for id in range(3, len(model))]
    words = list(dict.fromkeys(["</s>", "<unk>", *pieces["target"], *pieces["source"]]))
    save(folder, **{"dim-vocabs": [len(words), len(words)]})
    text = "".join(f"{json.dumps(word)}: {id}\n" for id, word in enumerate(words))
    for side in ("source", "target"):
        (folder / f"{side}.yml").write_text(text)
    (folder / "preprocess.sh").write_text("#!/bin/sh\n")
    found = convert(folder, tmp_path / "out")
    assert "preprocess.sh" in found.remarks[-1]
    tokenizer = load_tokenizer(tmp_path / "out")
    for side, key in (("source", "text"), ("target", "text_target")):
        model = spm.SentencePieceProcessor(str(folder / f"{side}.spm"))
        for pair in pairs[:50]:
            expected = [words.index(piece) for piece in model.encode(pair[side], out_type=str)]
            assert tokenizer(**{key: pair[side]})["input_ids"] == [*expected, 0]
            if side == "target":
                assert tokenizer.decode([*expected, 0], skip_special_tokens=True) == pair[side]
    assert tokenizer.pad_token_id == len(words)
    # Without these two the words were cut by something else.
    (folder / "source.spm").unlink()
    assert "No tokenizer" in convert(folder, tmp_path / "without").remarks[-1]
