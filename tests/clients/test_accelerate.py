"""accelerate on one process and two, with gradient accumulation."""

import pytest
import torch
from ranks import on_ranks
from schedulers_under_test import random_policy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metalr.learned_scheduler import LearnedLR

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

UPDATES = 16
INPUTS = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))


def loss_of(model, inputs):
    return (model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()


def train(rank=0, accumulate=1):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    own = LearnedLR(optimizer, random_policy(), horizon=UPDATES)
    loader = DataLoader(TensorDataset(INPUTS), batch_size=4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, own)
    rates, losses = [], []
    for (inputs,) in loader:
        if len(rates) == UPDATES:
            break
        with accelerator.accumulate(model):
            loss = loss_of(model, inputs)
            accelerator.backward(loss)
            scheduler.scheduler.observe(loss)
            optimizer.step()
            if accelerator.sync_gradients:
                rates.append(float(own.get_last_lr()[0]))
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return {"lrs": rates, "history": own.history, "updates": own._updates, "size": accelerator.num_processes} | {
        "losses": losses
    }


def several(rank):
    return [train(rank, accumulate) for accumulate in (1, 2)]


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_one_process(accumulate):
    result = train(accumulate=accumulate)
    assert result["size"] == 1
    assert result["updates"] == len(result["lrs"]) == UPDATES
    assert [e["updates"] for e in result["history"]] == [0, 3, 6, 10, 13]
    assert all(e["features"]["has_loss"][0] == 1.0 for e in result["history"])


def test_two_processes():
    for first, second in zip(*on_ranks(several), strict=True):
        assert first["size"] == 2
        assert first["losses"] != second["losses"]
        assert first["lrs"] == second["lrs"]
        assert first["history"] == second["history"]
        # accelerate calls step() once for each process: updates are counted, not calls.
        assert first["updates"] == UPDATES
        assert [e["updates"] for e in first["history"]] == [0, 3, 6, 10, 13]
