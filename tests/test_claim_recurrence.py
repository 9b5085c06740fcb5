"""Attention against recurrence and convolution: the peers are what they are called."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "scripts")
        return importlib.import_module("claim_recurrence")


SIZE = {"width": 12, "layers": 2, "dropout": 0.0}


def ragged(script: ModuleType) -> dict[str, torch.Tensor]:
    """Two sentences of which one is padded."""
    return {
        "input_ids": torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "labels": torch.tensor([[6, 7, 2], [8, 2, -100]]),
    }


@pytest.mark.parametrize("kind", ["attention", "recurrence", "convolution"])
def test_padding_and_the_future_are_not_seen(script: ModuleType, kind: str) -> None:
    model = script.build(kind, 36, script.Size(16, 1, 0.0), seed=1).eval()
    batch = ragged(script)
    together = model(**batch).logits
    alone = model(
        input_ids=batch["input_ids"][1:, :3],
        attention_mask=batch["attention_mask"][1:, :3],
        labels=batch["labels"][1:, :2],
    ).logits
    torch.testing.assert_close(together[1:, :2], alone, atol=1e-5, rtol=1e-5)
    # The last label is only predicted; any earlier one is read by what follows.
    other = batch["labels"].clone()
    other[0, 1] = 11
    changed = model(**{**batch, "labels": other}).logits
    torch.testing.assert_close(changed[0, :2], together[0, :2])
    assert not torch.allclose(changed[0, 2], together[0, 2])
    # And the source is looked at.
    other = batch["input_ids"].clone()
    other[0, 0] = 12
    assert not torch.allclose(model(**{**batch, "input_ids": other}).logits[0], together[0])


def test_the_recurrent_peer_by_its_equations(script: ModuleType) -> None:
    torch.manual_seed(2)
    peer = script.RecurrentTranslator(20, **SIZE).eval()
    source, target = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[1, 8, 9]])
    found = peer.states(source, torch.ones_like(source).bool(), target)

    def cell(module: torch.nn.LSTM, name: str, x, h, c):
        weights = (getattr(module, f"{part}_{name}") for part in ("weight_ih", "weight_hh"))
        biases = (getattr(module, f"{part}_{name}") for part in ("bias_ih", "bias_hh"))
        (w, u), (a, b) = weights, biases
        i, f, g, o = (w @ x + a + u @ h + b).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    inputs, starts = list(peer.embedding(source[0])), []
    for layer in range(2):
        sides, ends = [], []
        for suffix, order in (("", range(4)), ("_reverse", range(3, -1, -1))):
            h = c = torch.zeros(6)
            states = {}
            for t in order:
                h, c = cell(peer.encoder, f"l{layer}{suffix}", inputs[t], h, c)
                states[t] = h
            sides.append(states)
            ends.append((h, c))
        inputs = [torch.cat((sides[0][t], sides[1][t])) for t in range(4)]
        starts.append([torch.cat((ends[0][i], ends[1][i])) for i in range(2)])
    memory = torch.stack(inputs)
    outputs = []
    for token in target[0]:
        x = peer.embedding(token)
        for layer in range(2):
            starts[layer] = list(cell(peer.decoder, f"l{layer}", x, *starts[layer]))
            x = starts[layer][0]
        weights = torch.softmax(memory @ (peer.query.weight @ x), dim=0)
        outputs.append(torch.tanh(peer.output(torch.cat((x, weights @ memory)))))
    torch.testing.assert_close(found[0], torch.stack(outputs), atol=1e-5, rtol=1e-5)


def test_a_gated_convolution_by_its_equation(script: ModuleType) -> None:
    torch.manual_seed(2)
    for causal in (True, False):
        layer = script.GatedConvolution(4, 3, causal=causal, dropout=0.0)
        x = torch.randn(1, 5, 4)
        padded = F.pad(x[0], (0, 0, 2, 0) if causal else (0, 0, 1, 1))
        weight, bias = layer.convolution.weight, layer.convolution.bias
        rows = []
        for t in range(5):
            value = torch.einsum("kc,ock->o", padded[t : t + 3], weight) + bias
            rows.append(value[:4] * value[4:].sigmoid())
        torch.testing.assert_close(layer(x)[0], torch.stack(rows), atol=1e-5, rtol=1e-5)


def test_all_three_have_as_many_parameters(script: ModuleType) -> None:
    counts = [
        script.parameters_of(script.build(kind, 600, script.Size(), 1)) for kind in script.KINDS
    ]
    assert max(counts) / min(counts) < 1.05


def test_puzzles_have_one_answer_at_the_distance(script: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    for length in (8, 33):
        batch = script.matching(length, 200, generator)
        for source, label in zip(
            batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True
        ):
            assert source[-2] == script.QUERY
            places = [i for i, one in enumerate(source[:-1]) if one == source[-1]]
            # Once, and what follows it is the answer.
            assert len(places) == 1
            assert source[places[0] + 1] == label[0]
            assert len(source) - 1 - places[0] in (length + 1, length - 1)
        assert {row[0] == row[-1] for row in batch["input_ids"].tolist()} == {True, False}
        copy = script.copying(length, 3, generator)
        assert torch.equal(copy["labels"], copy["input_ids"])
        assert copy["labels"].shape == (3, length + 1)


def test_accuracy_counts_symbols_but_not_the_end(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(torch.nn.Module):
        """Right in every other place, and always at the end."""

        def forward(self, input_ids, attention_mask, labels):
            answer = labels.clone()
            answer[:, 0::2] = 0
            answer[:, -1] = labels[:, -1]
            return type("Output", (), {"logits": F.one_hot(answer, 40).float()})

    assert script.puzzle_accuracy(Half(), "copying", 8, "cpu") == 0.5


def test_the_schedule_peaks_where_it_is_told(script: ModuleType) -> None:
    rate = script.rate_of(script.Size(), 100, 2e-3)
    assert rate(100) == pytest.approx(2e-3)
    assert rate(400) == pytest.approx(1e-3)
    assert math.isclose(rate(50), 1e-3)


def test_each_kind_gets_the_rate_that_did_best(script: ModuleType) -> None:
    trials = {
        "attention": {"0.001": 3.0, "0.002": 2.0, "0.005": None},
        "recurrence": {"0.001": 3.0, "0.002": 2.0, "0.005": 1.0},
        "convolution": {"0.001": None, "0.002": None, "0.005": None},
    }
    assert script.best_peaks(trials) == {
        "attention": 0.002,
        "recurrence": 0.005,
        "convolution": 0.001,
    }


def test_it_runs(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["claim_recurrence.py", "--quick", "--output", str(tmp_path)])
    monkeypatch.setattr(script, "PEAKS", (1e-3, 2e-3))
    script.main()
    numbers = json.loads((tmp_path / "recurrence.json").read_text())["numbers"]
    assert [row["kind"] for row in numbers["translation"]] == list(script.KINDS)
    assert all("bleu_at_equal_time" in row for row in numbers["translation"])
    assert len(numbers["puzzles"]) == 6
    for task, kinds in numbers["trials"].items():
        for kind, losses in kinds.items():
            assert list(losses) == [f"{peak:g}" for peak in script.PEAKS]
            assert numbers["peaks"][task][kind] == float(min(losses, key=losses.get))

    # Speeds alone are measured again; the rest of the record stays, and both commands are told.
    again = ["claim_recurrence.py", "--quick", "--speeds-again", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", again)
    monkeypatch.setattr(
        script,
        "speeds",
        lambda shapes, *_: [
            {"sentences": a, "length": b, "tokens_per_second": dict.fromkeys(script.KINDS, 7.0)}
            for a, b in shapes
        ],
    )
    script.main()
    record = json.loads((tmp_path / "recurrence.json").read_text())
    assert record["numbers"]["puzzles"] == numbers["puzzles"]
    assert record["numbers"]["by_length"][0]["tokens_per_second"]["attention"] == 7
    assert record["command"] == (
        "python scripts/claim_recurrence.py --quick && "
        "python scripts/claim_recurrence.py --quick --speeds-again"
    )


def test_the_processors_time_is_for_one_thread(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.torch, "get_num_threads", lambda: 1)
    assert script.clock_of("cpu") is script.time.process_time
    assert script.clock_of("cuda") is script.time.perf_counter
    monkeypatch.setattr(script.torch, "get_num_threads", lambda: 2)
    assert script.clock_of("cpu") is script.time.perf_counter
