"""`GradScaler`, fused and not, with overflows."""

import math

import pytest
import torch

from metalr.schedulers.learned_lr import LearnedLR
from tests.integrations.small_net import UPDATES, loss_of, net
from tests.support.policies import moderate_policy


def mixed(kind, fused, overflows, scaled=True):
    """The LRs of the updates made, and the history, under a `GradScaler` that overflows at some attempts."""
    model = net()
    optimizer = kind(model.parameters(), lr=0.01, fused=fused)
    scheduler = LearnedLR(optimizer, moderate_policy(), horizon=UPDATES)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7, enabled=scaled)
    rates, made, attempt = [], 0, 0
    while made < UPDATES:
        optimizer.zero_grad()
        loss = loss_of(model, made)
        scaler.scale(loss).backward()
        spoilt = attempt in overflows
        if spoilt:
            model[0].weight.grad[0, 0] = math.inf
        scheduler.observe(loss)
        before = model[0].weight.detach().clone()
        rate = float(optimizer.param_groups[0]["lr"])
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        attempt += 1
        assert torch.equal(before, model[0].weight) == spoilt
        if not spoilt:
            made += 1
            rates.append(rate if made > 1 else None)
    return rates[1:], scheduler.history, scheduler.state_dict()["updates"]


OVERFLOWS = {"none": (), "first": (0, 1), "middle": (7, 8), "before decisions": (3, 4, 5, 10, 15), "last": (23,)}


def assert_same_decisions(history, expected):
    assert [e["updates"] for e in history] == [e["updates"] for e in expected]
    for mine, theirs in zip(history, expected, strict=True):
        for name, values in mine["features"].items():
            assert values == pytest.approx(theirs["features"][name], abs=1e-5), name
        assert mine["lr_multiplier"] == pytest.approx(theirs["lr_multiplier"], rel=1e-5)


# torch's own, of every scheduler, when the very first update overflows.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("when", OVERFLOWS)
def test_a_gradscaler_changes_nothing(kind, fused, when):
    """Skipped updates do not count and gradients are unscaled: the decisions are those of a run without a scaler."""
    rates, history, updates = mixed(kind, fused, OVERFLOWS[when])
    expected_rates, expected, _ = mixed(kind, fused, (), scaled=False)
    assert updates == UPDATES
    assert rates == pytest.approx(expected_rates, rel=1e-5)
    assert_same_decisions(history, expected)
