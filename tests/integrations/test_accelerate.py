"""accelerate on one process and on two, with gradient accumulation."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metalr.schedulers.learned_lr import LearnedLR
from tests.integrations.installed import library
from tests.integrations.ranks import on_ranks
from tests.support.policies import moderate_policy

accelerate = library("accelerate")

UPDATES = 16
DECISIONS_AT = [0, 3, 6, 10, 13]
INPUTS = torch.randn(256, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss_of(model, inputs):
    return (model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()


def scheduled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, LearnedLR(optimizer, moderate_policy(), horizon=UPDATES)


def train(rank=0, accumulate=1):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, optimizer, own = scheduled()
    loader = DataLoader(TensorDataset(INPUTS), batch_size=4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, own)
    rates, losses = [], []
    for (inputs,) in loader:
        if len(rates) == UPDATES:
            break
        with accelerator.accumulate(model):
            loss = loss_of(model, inputs)
            accelerator.backward(loss)
            own.observe(loss)
            optimizer.step()
            if accelerator.sync_gradients:
                rates.append(float(own.get_last_lr()[0]))
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return {
        "lrs": rates,
        "losses": losses,
        "history": own.history,
        "updates": own.state_dict()["updates"],
        "size": accelerator.num_processes,
        "weights": [p.tolist() for p in model.parameters()],
    }


def several(rank):
    return [train(rank, accumulate) for accumulate in (1, 2)]


def plain(accumulate):
    model, optimizer, scheduler = scheduled()
    batches = INPUTS.split(4)
    for t in range(UPDATES):
        optimizer.zero_grad()
        for inputs in batches[t * accumulate : (t + 1) * accumulate]:
            loss = loss_of(model, inputs)
            (loss / accumulate).backward()
            scheduler.observe(loss)
        optimizer.step()
        scheduler.step()
    return scheduler.history


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_one_process_is_a_plain_loop(accumulate):
    result, expected = train(accumulate=accumulate), plain(accumulate)
    assert result["size"] == 1
    assert result["updates"] == len(result["lrs"]) == UPDATES
    assert [e["updates"] for e in result["history"]] == [e["updates"] for e in expected] == DECISIONS_AT
    for mine, theirs in zip(result["history"], expected, strict=True):
        assert mine["lr_multiplier"] == pytest.approx(theirs["lr_multiplier"], rel=1e-9)
        for name, values in mine["features"].items():
            assert values == pytest.approx(theirs["features"][name], abs=1e-9), name


def test_two_processes():
    for first, second in zip(*on_ranks(several), strict=True):
        assert first["size"] == 2
        assert not any(a == b for a, b in zip(first["losses"], second["losses"], strict=True))
        for what in ("lrs", "history", "weights"):
            assert first[what] == second[what]
        # accelerate calls step() once for each process: updates are counted, not calls.
        assert first["updates"] == UPDATES
        assert [e["updates"] for e in first["history"]] == DECISIONS_AT
        # Before the first update no rank knows the losses of the others.
        assert [e["features"]["has_loss"][0] for e in first["history"]] == [0.0] + [1.0] * 4
        assert len({e["lr_multiplier"][0] for e in first["history"]}) == 5
