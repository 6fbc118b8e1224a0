"""The library's networks: initial scale, residual blocks, and a recurrent unit with any number of outputs."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from metalr.engine.runs import BatchedRuns
from metalr.tasks.models import MLP, ConvNet, GRUClassifier, ResidualMLP, seeded_parameters
from metalr.tasks.task import Task

SEEDS = torch.tensor([5, 6])
WITH_GAIN = {
    "mlp": partial(MLP, [5, 4, 3]),
    "residual": partial(ResidualMLP, [5, 4, 4, 3]),
    "residual-norm": partial(ResidualMLP, [5, 4, 4, 3], norm=True),
    "conv1d": partial(ConvNet, 1, 2, [4, 4], 3),
    "conv2d": partial(ConvNet, 2, 1, [4, 4], 3),
    "gru": partial(GRUClassifier, 3, 4, 2),
}


def is_norm(module: nn.Module, name: str) -> bool:
    layer = module.get_submodule(name.rpartition(".")[0])
    return isinstance(layer, (nn.LayerNorm, nn.GroupNorm))


@pytest.mark.parametrize("kind", WITH_GAIN)
def test_gain_scales_every_drawn_layer_and_no_normalisation(kind):
    plain, scaled = WITH_GAIN[kind](), WITH_GAIN[kind](gain=0.5)
    before, after = seeded_parameters(plain, SEEDS), seeded_parameters(scaled, SEEDS)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], weight if is_norm(plain, name) else 0.5 * weight), name


@pytest.mark.parametrize("kind", WITH_GAIN)
def test_gain_scales_a_constructed_network_alike(kind):
    networks = []
    for gain in (1.0, 0.5):
        torch.manual_seed(0)
        networks.append(WITH_GAIN[kind](gain=gain))
    plain, scaled = (dict(network.named_parameters()) for network in networks)
    for name, weight in plain.items():
        assert torch.equal(scaled[name], weight if is_norm(networks[0], name) else 0.5 * weight), name


def test_a_run_starts_from_weights_with_the_gain():
    inputs, targets = torch.randn(20, 5), torch.randn(20, 3)
    starts = []
    for gain in (1.0, 2.0):
        runs = BatchedRuns(Task(partial(MLP, [5, 4, 3], gain=gain), (inputs, targets), functional.mse_loss), 2)
        runs.init(SEEDS)
        starts.append(runs.state.params)
    assert torch.equal(starts[1], 2.0 * starts[0])


@pytest.mark.parametrize("norm", [False, True])
def test_a_residual_net_by_hand(norm):
    network = ResidualMLP([5, 4, 4, 4, 3], torch.tanh, norm)
    inputs = torch.randn(7, 5)
    hidden = inputs @ network.first.weight.T + network.first.bias
    for layer in network.layers[:2]:
        normal = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        hidden = hidden + torch.tanh(normal if norm else hidden) @ layer.weight.T + layer.bias
    normal = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = torch.tanh(normal if norm else hidden) @ network.layers[2].weight.T + network.layers[2].bias
    torch.testing.assert_close(network(inputs), expected)


@pytest.mark.parametrize("sizes", [[4, 3], [4, 8, 9, 3]])
def test_a_residual_net_has_one_width(sizes):
    with pytest.raises(ValueError, match=r"got sizes \[4, .*expected input, one width repeated, and output: pass"):
        ResidualMLP(sizes)


@pytest.mark.parametrize("outputs", [1, 4])
def test_a_recurrent_unit_learns_numbers(outputs):
    inputs = torch.randn(200, 6, 3, generator=torch.Generator().manual_seed(0))
    targets = inputs[:, 0, :1].expand(-1, outputs) * torch.arange(1, outputs + 1)
    model = partial(GRUClassifier, 3, 8, outputs)
    runs = BatchedRuns(Task(model, (inputs, targets), functional.mse_loss, "adam", batch_size=32), 2)
    runs.init(SEEDS)
    before = runs.evaluate("train").loss
    runs.unroll(torch.full((2,), 0.02), 200)
    assert (runs.evaluate("train").loss < 0.3 * before).all()
