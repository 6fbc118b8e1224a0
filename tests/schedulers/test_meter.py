"""The statistics that the meter reads from an optimizer, against those computed from copies of everything."""

import pytest
import torch
from torch.optim import SGD, Adam

from metalr.schedulers import sums
from metalr.schedulers.meter import OptimizerMeter


class Weighted(SGD):
    """An optimizer of a user's own, which changes the weights in a way that its momentum does not show."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                torch._foreach_mul_(group["params"], 0.9)


OPTIMIZERS = {
    "plain": lambda groups: SGD(groups, lr=0.1),
    "momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
    "dampened": lambda groups: SGD(groups, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.3),
    "maximize": lambda groups: SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.3, maximize=True),
    "nesterov": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "tensor_lr": lambda groups: SGD(groups, lr=torch.tensor(0.1, dtype=torch.float64), momentum=0.9),
    "adam": lambda groups: Adam(groups, lr=0.1),
    "subclass": lambda groups: Weighted(groups, lr=0.1, momentum=0.9),
}


def norm(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def product(first, second):
    return sum((a * b).sum() for a, b in zip(first, second, strict=True))


def place(tensor, *, aligned):
    """The same numbers on a boundary at which a scalar product may begin, or eight bytes after it."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return (flat[:-1] if aligned else flat[1:]).view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("on_host", [True, False])  # False: the way of devices, walked on the CPU
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("scope", ["global", "param_group"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_statistics_are_those_of_copies(name, scope, aligned, on_host, monkeypatch):
    monkeypatch.setattr(sums, "on_host", lambda _: on_host)
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (5,), (2, 2))]
    params = [torch.nn.Parameter(place(p, aligned=aligned)) for p in params]
    optimizer = OPTIMIZERS[name]([{"params": params[:2]}, {"params": params[2:]}])
    meter = OptimizerMeter(optimizer, scope)
    gradients, weights = [], []
    for before, after in ((None, None), (meter.before_second_last, None), (meter.before_last, meter.after_last)):
        for p in params:
            p.grad = place(torch.randn(p.shape, generator=generator, dtype=torch.float64), aligned=aligned)
        gradients.append([p.grad.clone() for p in params])
        weights.append([p.detach().clone() for p in params])
        if before:
            before()
        assert all(torch.equal(p, old) for p, old in zip(params, weights[-1], strict=True))  # only read
        assert all(torch.equal(p.grad, old) for p, old in zip(params, gradients[-1], strict=True))
        optimizer.step()
        if after:
            after()
    updates = [new - old for new, old in zip(weights[2], weights[1], strict=True)]
    got = torch.stack(meter.statistics(meter.on_device()))[:, 0].T  # (num_groups, 6)
    for numbers, part in zip(got, [slice(0, 2), slice(2, 3)] if scope == "param_group" else [slice(0, 3)], strict=True):
        first, last, update = gradients[1][part], gradients[2][part], updates[part]
        expected = [
            ((norm(first) ** 2 + norm(last) ** 2) / 2.0).sqrt(),
            product(first, last) / (norm(first) * norm(last)),
            norm(update) / norm(weights[2][part]),
            product(first, update).abs().log(),
            product(last, update) / (norm(last) * norm(update)),
            1.0 - product(last, update) / product(first, update),
        ]
        torch.testing.assert_close(numbers, torch.stack(expected), rtol=1e-12, atol=0.0)
