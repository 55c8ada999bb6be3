"""The layer that keeps its weights ready: the numbers of `nn.Linear`, whatever happens to them."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from imagebart import linear
from imagebart.linear import Linear

needs_one_dnn = pytest.mark.skipif(not linear.PRECISIONS, reason="PyTorch without oneDNN")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Linear(24, 40)


@pytest.fixture
def x():
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))


def assert_right(layer: Linear, x: torch.Tensor) -> None:
    """What the layer gives without gradients is what its weights of now say."""
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(), (1,), (16,), (3, 7), (0,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (24, 40), (75, 301)])
def test_it_is_a_linear_layer(shape, bias, rows):
    torch.manual_seed(0)
    assert_right(Linear(*shape, bias=bias), torch.randn(*rows, shape[0]))


@needs_one_dnn
def test_weights_are_made_ready_once(layer, x):
    with torch.no_grad():
        layer(x)
        ready = layer.ready()
        layer(x)
        assert layer.ready() is ready


def step_of_training(layer, x):
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(x).square().mean().backward()
    optimiser.step()


def fused_step(layer, x):
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    layer(x).square().mean().backward()
    optimiser.step()


CHANGES = {
    "a step of training": step_of_training,
    "a step of a fused optimiser": fused_step,
    "weights are loaded": lambda layer, x: layer.load_state_dict(Linear(24, 40).state_dict()),
    "weights are put in place": lambda layer, x: layer.load_state_dict(
        Linear(24, 40).state_dict(), assign=True
    ),
    "another parameter": lambda layer, x: setattr(
        layer, "weight", torch.nn.Parameter(torch.randn(40, 24))
    ),
    "in place": lambda layer, x: layer.weight.detach().mul_(2),
    "in place, in inference mode": torch.inference_mode()(lambda layer, x: layer.weight.mul_(2)),
    "a vector of all weights": lambda layer, x: torch.nn.utils.vector_to_parameters(
        torch.randn(40 * 24 + 40 * (layer.bias is not None)), layer.parameters()
    ),
    "through .data, for evaluation": lambda layer, x: (layer.weight.data.mul_(2), layer.eval()),
    "through .data, and forgotten": lambda layer, x: (layer.weight.data.mul_(2), layer.forget()),
    "through .data, as `to` does": lambda layer, x: layer.double().float().weight.data.mul_(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_new_weights_are_noticed(layer, x, change):
    assert_right(layer, x)
    before = layer.weight.detach().clone()
    CHANGES[change](layer, x)
    assert not torch.equal(layer.weight, before)
    assert_right(layer, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_precision(layer, x, dtype):
    assert_right(layer, x)
    layer, x = layer.to(dtype), x.to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_weights_that_count_no_changes_are_read_each_time(x):
    with torch.inference_mode():
        layer = Linear(24, 40)
        assert_right(layer, x)
        layer.weight.mul_(2)
        assert_right(layer, x)


def test_autocast_decides(layer, x):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_gradients_flow(layer, x):
    assert_right(layer, x)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_files_and_copies_hold_the_weights_once(layer, x):
    names = list(layer.state_dict())
    assert_right(layer, x)
    assert list(layer.state_dict()) == names == ["weight", "bias"]
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same._ready is None
        assert_right(same, x)
        with torch.no_grad():
            same.weight.mul_(2)
        assert_right(same, x)
        assert_right(layer, x)


@needs_one_dnn
def test_tiles_go_together_where_they_round_alike(layer, monkeypatch):
    """One product of 64 rows is allowed only if every bit is that of four of 16."""
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(1))

    def rounds_by_size(x, weight, bias):
        return product(x, weight, bias) * (1 + 1e-6 * (len(x) > 16))

    with torch.no_grad():
        product = linear.product
        linear._rounds_alike.cache_clear()
        if linear.rounds_alike(layer, x, 64, 16):
            assert torch.equal(layer(x), torch.cat([layer(some) for some in x.split(16)]))
        monkeypatch.setattr(linear, "product", rounds_by_size)
        linear._rounds_alike.cache_clear()
        assert not linear.rounds_alike(layer, x, 64, 16)
    linear._rounds_alike.cache_clear()
    assert not linear.rounds_alike(layer, x, 64, 16), "with gradients another library multiplies"
    with torch.no_grad():
        assert not linear.rounds_alike(torch.nn.Linear(24, 40), x, 64, 16)
