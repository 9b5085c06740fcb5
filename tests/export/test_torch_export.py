"""The graphs compute what the model computes, and run without this package."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.saved import SENTENCES, save_model
from tests.generation.cases import EOS, small_model
from vanilla_transformer.export import graphs
from vanilla_transformer.export.graphs import DECODER, ENCODER, export_graphs
from vanilla_transformer.export.parity import native_outputs
from vanilla_transformer.export.torch_export import TorchTranslator, export_torch
from vanilla_transformer.generation import DecodingSettings, translate
from vanilla_transformer.tokenization import load_tokenizer

# Between them whatever changes a graph.
ARCHITECTURES: list[dict[str, Any]] = [
    {"attention_bias": True, "num_encoder_layers": 1, "position_offset": 2, "activation": "gelu"},
    {
        "layer_norm_position": "pre",
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "position_encoding": "learned",
        "max_position_embeddings": 64,
        "num_segments": 2,
        "d_k": 3,
        "d_v": 5,
        "num_heads": 4,
        "decoder_vocab_size": 30,
        "decoder_d_ff": 10,
        "output_bias": False,
        "activation": "swish",
        "eos_token_id": [2, 4],
    },
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=["post-norm", "pre-norm"])
@torch.inference_mode()
def test_graphs_give_the_logits_of_the_model(architecture: dict[str, Any]) -> None:
    model = small_model(**architecture)
    programs = export_graphs(model)
    encoder, decoder = (programs[name].module() for name in (ENCODER, DECODER))
    # One of a kind, which tracing likes to take for a constant, and several.
    for batch, length, hypotheses in [(1, 1, 1), (3, 8, 4), (1, 6, 2), (4, 2, 1)]:
        ids = torch.randint(3, 24, (batch, length))
        ids[:, length // 2] = EOS
        lengths = torch.randint(1, length + 1, (batch,))
        lengths[0] = length
        mask = (torch.arange(length) < lengths[:, None]).long()
        memory = encoder(ids, mask)
        past = [torch.zeros(batch, hypotheses, x.shape[1], 0, x.shape[3]) for x in memory]
        tokens = torch.randint(0, 24, (batch, hypotheses, 4))
        steps = []
        for t in range(tokens.shape[2]):
            logits, past = decoder(tokens[:, :, t], mask, memory, past)
            steps.append(logits)
        found = torch.stack(steps, dim=2)
        for j in range(hypotheses):
            expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=tokens[:, j])
            torch.testing.assert_close(found[:, j], expected.logits, atol=1e-5, rtol=1e-5)


def test_export_translates_as_the_model(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", is_two_sided=True, num_encoder_layers=1)
    model.generation_config.update(
        suppress_tokens=[0, 11],
        min_new_tokens=2,
        num_beams=4,
        early_stopping="never",
        length_penalty=1.5,
    )
    model.generation_config.save_pretrained(tmp_path / "model")
    lines: list[str] = []
    export = export_torch(
        tmp_path / "model", tmp_path / "out", sentences=SENTENCES, report=lines.append
    )
    assert [one.same for one in export.agreements] == [len(SENTENCES)] * 2, lines
    assert not list(tmp_path.glob(".*"))
    translator = TorchTranslator(tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "model")
    texts = ["", *SENTENCES]
    # Whatever the search of this package does, on batches that shrink.
    for decoding in (
        DecodingSettings(num_beams=1, max_tokens_over_source=3),
        DecodingSettings(num_beams=5, length_penalty=0.6),
        DecodingSettings(num_beams=3, length_penalty=1.0, length_penalty_formula="power"),
    ):
        expected = translate(model, tokenizer, texts, decoding)
        found = translator.translate(texts, decoding, max_batch_tokens=500)
        assert found == [hypotheses[0].text for hypotheses in expected]
    sources = [tokenizer(text)["input_ids"] for text in SENTENCES[:3]]
    arguments: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 6}
    assert translator.generate(sources, **arguments) == native_outputs(model, sources, **arguments)
    with pytest.raises(ValueError, match="no_repeat_ngram_size"):
        translator.generate(sources, no_repeat_ngram_size=2)

    # Neither this package nor transformers is needed to run what was written.
    program = f"""
import sys, torch
encoder = torch.export.load({str(tmp_path / "out" / "encoder.pt2")!r}).module()
decoder = torch.export.load({str(tmp_path / "out" / "decoder.pt2")!r}).module()
ids = torch.tensor([{sources[0]}])
mask = torch.ones_like(ids)
memory = encoder(ids, mask)
past = [torch.zeros(1, 1, x.shape[1], 0, x.shape[3]) for x in memory]
token, written = {model.config.decoder_start_token_id}, []
for _ in range(6):
    logits, past = decoder(torch.tensor([[token]]), mask, memory, past)
    token = int(logits[0, 0].argmax())
    written.append(token)
assert not {{"vanilla_transformer", "transformers"}} & set(sys.modules)
print(*written)
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    model.generation_config.update(suppress_tokens=None, min_new_tokens=None)
    (expected_ids,) = native_outputs(model, sources[:1], num_beams=1, max_new_tokens=6)
    assert [int(i) for i in run.stdout.split()][: len(expected_ids)] == expected_ids


def test_an_export_that_writes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", num_encoder_layers=1, num_decoder_layers=1)
    right = graphs._step
    # Values of the source for its keys: where heads are square, the shapes fit.
    monkeypatch.setattr(
        graphs,
        "_step",
        lambda layer, x, is_real, source, past: right(layer, x, is_real, source[::-1], past),
    )
    with pytest.raises(ValueError, match="does not write what the model writes"):
        export_torch(tmp_path / "model", tmp_path / "out", sentences=SENTENCES)
    with pytest.raises(ValueError, match="is in use"):
        export_torch(tmp_path / "model", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
