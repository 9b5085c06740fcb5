"""What is made of a model's weights is made anew when they change, and never in the model."""

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.generation.cases import MASK, SOURCES, plain, small_model
from tests.test_generation import make_model
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.generation import preparation, release

Model = VanillaTransformerForConditionalGeneration


def train(model: Model) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.train()(input_ids=SOURCES, attention_mask=MASK, labels=SOURCES).loss.backward()
    optimizer.step()
    model.eval()


def train_fused(model: Model) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model.train()(input_ids=SOURCES, attention_mask=MASK, labels=SOURCES).loss.backward()
    optimizer.step()
    model.eval()


def load(model: Model) -> None:
    model.load_state_dict(make_model(updates=1).state_dict())


def load_by_assignment(model: Model) -> None:
    model.load_state_dict(make_model(updates=1).state_dict(), assign=True)


def edit(model: Model) -> None:
    with torch.no_grad():
        model.model.decoder.layers[1].fc2.weight[3, 5] += 100


def edit_a_bias(model: Model) -> None:
    with torch.no_grad():
        model.lm_head.bias[7] += 50


def edit_in_inference_mode(model: Model) -> None:
    with torch.inference_mode():
        model.lm_head.bias[7] += 50


def edit_the_data(model: Model) -> None:
    # Not counted by torch: `.data` has a count of its own.
    model.model.encoder.layers[0].fc1.weight.data.mul_(-3)


def edit_a_row_of_the_data(model: Model) -> None:
    model.model.shared.weight.data[9] = 4 * torch.ones(16)


def edit_a_bias_of_the_data(model: Model) -> None:
    model.lm_head.bias.data[7] += 50


def replace_a_parameter(model: Model) -> None:
    layer = model.model.decoder.layers[0].self_attn.v_proj
    layer.weight = torch.nn.Parameter(-5 * layer.weight.detach())


def replace_the_data(model: Model) -> None:
    projection = model.model.decoder.layers[0].cross_attn.o_proj
    projection.weight.data = 5 * projection.weight.data


def go_through_half(model: Model) -> None:
    with torch.no_grad():
        model.lm_head.bias[7] += 50
    model.half().float()


def resize(model: Model) -> None:
    torch.manual_seed(1)
    model.resize_token_embeddings(31, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[24:] *= 10


CHANGES: list[Callable[[Model], None]] = [
    train,
    train_fused,
    load,
    load_by_assignment,
    edit,
    edit_a_bias,
    edit_in_inference_mode,
    edit_the_data,
    edit_a_row_of_the_data,
    edit_a_bias_of_the_data,
    replace_a_parameter,
    replace_the_data,
    go_through_half,
    resize,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_changed_weights_are_used(change, options):
    model = make_model(updates=150)
    options = options | {"attention_mask": MASK, "max_new_tokens": 10}
    before = model.generate(SOURCES, **options)
    network = preparation.network_of(model)
    assert preparation.network_of(model) is network
    change(model)
    assert preparation.obstacle(model) is None
    after = model.generate(SOURCES, **options)
    assert preparation.network_of(model) is not network
    assert after.tolist() == plain(model, SOURCES, **options).tolist()
    # Else the test would show nothing.
    assert after.tolist() != before.tolist()


@pytest.mark.parametrize("name", ["self_attn.q_proj", "cross_attn.k_proj", "fc1", "fc2"])
@pytest.mark.parametrize("dimension", [0, 1])
def test_no_row_or_column_of_the_data_changes_unseen(name, dimension):
    model = small_model()
    weight = model.model.decoder.layers[0].get_submodule(name).weight
    for i in range(weight.shape[dimension]):
        network = preparation.network_of(model)
        weight.data.select(dimension, i).add_(1)
        assert preparation.network_of(model) is not network, i


def test_what_changes_unseen_is_released():
    model = small_model()
    network = preparation.network_of(model)
    # The sample takes every 15th number.
    model.model.decoder.layers[0].self_attn.q_proj.weight.data[0, 3] += 1
    assert preparation.network_of(model) is network
    release(model)
    assert preparation.network_of(model) is not network
    release(model)
    release(model)


def test_the_model_stays_as_it_is(tmp_path):
    model = small_model()
    keys, attributes = list(model.state_dict()), set(vars(model))
    wanted = model.generate(SOURCES, attention_mask=MASK).tolist()
    assert list(model.state_dict()) == keys
    assert set(vars(model)) == attributes
    model.save_pretrained(tmp_path)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path),
    ):
        assert twin.generate(SOURCES, attention_mask=MASK).tolist() == wanted
        # Each has its own: a change of one leaves the other alone.
        edit_a_bias(twin)
        changed = twin.generate(SOURCES, attention_mask=MASK).tolist()
        assert changed == plain(twin, SOURCES, attention_mask=MASK).tolist() != wanted
        assert model.generate(SOURCES, attention_mask=MASK).tolist() == wanted


def test_a_new_parameter_in_the_place_of_an_old_one_is_seen():
    model = small_model()
    projection = model.model.decoder.layers[0].self_attn.q_proj
    change = torch.zeros(16, 16)
    # No number of the sample.
    change[0, 3] = 1
    for _ in range(100):
        values = projection.weight.detach().clone()
        projection.weight = torch.nn.Parameter(values + 0)
        network = preparation.network_of(model)
        # What is freed is given out again sooner or later, at the same address.
        projection.weight = torch.nn.Parameter(values + 0)
        changed = torch.nn.Parameter(values + change)
        projection.weight = changed
        assert preparation.network_of(model) is not network


def test_a_model_that_moves_away_takes_its_network_along():
    model = small_model()
    model.generate(SOURCES, attention_mask=MASK)
    assert model in preparation._networks
    model.double().generate(SOURCES, attention_mask=MASK)
    assert model not in preparation._networks


def test_nothing_outlives_the_model():
    gc.collect()
    count = len(preparation._networks)
    model: Any = small_model()
    model.generate(SOURCES, attention_mask=MASK)
    assert len(preparation._networks) == count + 1
    del model
    gc.collect()
    assert len(preparation._networks) == count
