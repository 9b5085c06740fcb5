"""onnxruntime writes what the model writes."""

from pathlib import Path

import pytest
import torch

from tests.export.saved import REFERENCES, SENTENCES, save_model
from vanilla_transformer.export.onnx import OnnxTranslator, export_onnx
from vanilla_transformer.generation import DecodingSettings, translate
from vanilla_transformer.tokenization import load_tokenizer

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is not installed")


def test_export_translates_as_the_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # What CTranslate2 could not hold: heads of their own width, segments, several ends.
    model = save_model(
        tmp_path / "model",
        layer_norm_position="pre",
        d_k=3,
        d_v=5,
        num_segments=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        eos_token_id=[2, 7],
    )
    lines: list[str] = []
    capfd.readouterr()
    export = export_onnx(
        tmp_path / "model",
        tmp_path / "out",
        sentences=SENTENCES,
        references=REFERENCES,
        report=lines.append,
    )
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "torchvision" not in printed.err
    assert [one.same for one in export.agreements] == [len(SENTENCES)] * 2, lines
    assert lines[1].endswith("(+0.00)")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"encoder.onnx", "decoder.onnx", "tokenizer.json", "export.json"} <= names

    translator = OnnxTranslator(tmp_path / "out", threads=1)
    ids = torch.tensor([[9, 5, 2, 8, 2], [6, 2, 0, 0, 0]])
    mask = (ids != 0).long()
    memory = translator.encode(ids, mask)
    past = [torch.zeros(2, 3, x.shape[1], 0, x.shape[3]) for x in memory]
    tokens = torch.tensor([[[1, 4, 9], [1, 7, 7], [1, 2, 3]], [[1, 8, 8], [1, 9, 4], [1, 5, 6]]])
    with torch.inference_mode():
        for t in range(3):
            logits, past = translator.step(tokens[:, :, t], mask, memory, past)
            for j in range(3):
                expected = model(
                    input_ids=ids, attention_mask=mask, decoder_input_ids=tokens[:, j, : t + 1]
                ).logits[:, -1]
                torch.testing.assert_close(logits[:, j], expected, atol=1e-5, rtol=1e-5)

    tokenizer = load_tokenizer(tmp_path / "model")
    texts = ["", *SENTENCES]
    for decoding in (DecodingSettings(num_beams=1), DecodingSettings(num_beams=5)):
        found = translator.translate(texts, decoding, max_batch_tokens=500)
        wanted = translate(model, tokenizer, texts, decoding)
        assert found == [hypotheses[0].text for hypotheses in wanted]
