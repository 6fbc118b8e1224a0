"""Plain DDP and FSDP2 on two processes: all ranks set the same LRs, and none waits for a rank that has finished."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from metalr.schedulers.learned_lr import LearnedLR
from tests.integrations.ranks import on_ranks
from tests.support.policies import moderate_policy, recurrent_policy

HORIZON, DECISIONS = 24, 6
CONTROLLERS = {"policy": moderate_policy(), "recurrent": recurrent_policy()}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def batch(update: int, rank: int, size: int = 8) -> torch.Tensor:
    """Different data on every rank, with very different losses."""
    generator = torch.Generator().manual_seed(100 * update + rank)
    return torch.randn(size, 4, generator=generator, dtype=torch.float64) * (1.0 + 2.0 * rank)


def loss_of(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return (model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()


def train(rank, updates, controller="policy", scope="global", resume_at=None, losses=True, wrap=None):
    """The LRs of this rank, its losses, and the warnings of the scheduler."""
    model = (wrap or DistributedDataParallel)(net())
    groups = list(model.parameters())
    optimizer = torch.optim.SGD([{"params": groups[:2]}, {"params": groups[2:], "lr": 0.02}], lr=0.05, momentum=0.9)

    def make():
        return LearnedLR(optimizer, CONTROLLERS[controller], HORIZON, decisions=DECISIONS, scope=scope)

    scheduler, rates, seen = make(), [], []
    for t in range(updates):
        if t == resume_at:
            state = scheduler.state_dict()
            scheduler = make()
            scheduler.load_state_dict(state)
        optimizer.zero_grad()
        loss = loss_of(model, batch(t, rank))
        loss.backward()
        if losses:
            scheduler.observe(loss)
        optimizer.step()
        rates.append([float(lr) for lr in scheduler.get_last_lr()])
        scheduler.step()
        seen.append(loss.item())
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]
    return {"lrs": rates, "losses": seen, "history": scheduler.history, "weights": [w.tolist() for w in weights]}


def alone(updates, **options):
    """The same training on one process: the mean over ranks of what each would have seen."""
    model = net()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.02}], lr=0.05, momentum=0.9
    )
    scheduler = LearnedLR(optimizer, CONTROLLERS["policy"], HORIZON, decisions=DECISIONS, **options)
    rates = []
    for t in range(updates):
        optimizer.zero_grad()
        losses = [loss_of(model, batch(t, rank)) for rank in (0, 1)]
        (sum(losses) / 2.0).backward()
        optimizer.step()
        rates.append([float(lr) for lr in scheduler.get_last_lr()])
        scheduler.step()
    return rates, scheduler.history


def trainings(rank):
    """All runs of the tests below in one pair of processes, because starting a pair takes longer than a run."""
    found = {("policy", "global", at): train(rank, HORIZON, resume_at=at) for at in (None, 5, 6, 7, 8)}
    found["again"] = train(rank, HORIZON)
    found["recurrent", "param_group"] = train(rank, HORIZON, "recurrent", "param_group")
    found["no losses"] = train(rank, HORIZON, losses=False)
    for scope in ("global", "param_group"):
        found["fsdp", scope] = train(rank, HORIZON, scope=scope, losses=False, wrap=shard)
    for at in (None, 6, 7):
        found["fsdp with losses", at] = train(rank, HORIZON, resume_at=at, wrap=shard)
    return found


@pytest.fixture(scope="module")
def runs():
    return on_ranks(trainings)


@pytest.mark.parametrize("key", [("policy", "global", None), ("recurrent", "param_group")])
def test_ranks_set_the_same_bits_though_their_losses_differ(runs, key):
    first, second = (rank[key] for rank in runs)
    assert first["lrs"] == second["lrs"]
    assert first["weights"] == second["weights"]
    assert not any(a == b for a, b in zip(first["losses"], second["losses"], strict=True))
    assert len({row[0] for row in first["lrs"]}) == HORIZON
    assert [e["updates"] for e in first["history"]] == [0, 4, 8, 12, 16, 20]
    assert [e["features"]["has_loss"][0] for e in first["history"]] == [0.0] + [1.0] * 5
    assert first["history"] == second["history"]


def test_nothing_depends_on_who_comes_first(runs):
    assert runs[0]["again"] == runs[0]["policy", "global", None]


def test_the_losses_of_all_ranks_count(runs):
    """The log losses behind the features are means over ranks, shifted by the one update that is still to come."""
    both = [rank["policy", "global", None] for rank in runs]
    losses = torch.tensor([result["losses"] for result in both], dtype=torch.float64).mean(0)
    change = (losses[3:7].log().mean() - losses[0:3].log().mean()).item()
    entry = next(e for e in both[0]["history"] if e["updates"] == 8)
    assert entry["features"]["loss_change"][0] == pytest.approx(change / (0.1 + abs(change)), rel=1e-6)


def test_without_losses_ddp_decides_as_one_process_does(runs):
    rates, history = alone(HORIZON)
    for rank in runs:
        result = rank["no losses"]
        torch.testing.assert_close(torch.tensor(result["lrs"]), torch.tensor(rates), rtol=1e-9, atol=0.0)
        assert [e["updates"] for e in result["history"]] == [e["updates"] for e in history]


@pytest.mark.parametrize("at", [5, 6, 7, 8])
def test_a_resume_at_any_place_of_an_interval_changes_nothing(runs, at):
    for rank in runs:
        assert rank["policy", "global", at] == runs[0]["policy", "global", None] | {"losses": rank["again"]["losses"]}


# Uneven inputs


def uneven(rank, counts, synchronize):
    """Two epochs under `join`, of `counts[epoch][rank]` updates."""
    model = DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = LearnedLR(optimizer, moderate_policy(), 40, decisions=10)
    rates, messages = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch, count in enumerate(counts):
            with model.join():
                for t in range(count[rank]):
                    optimizer.zero_grad()
                    loss = loss_of(model, batch(1000 * epoch + t, rank))
                    loss.backward()
                    scheduler.observe(loss)
                    optimizer.step()
                    rates.append((epoch, t, float(scheduler.get_last_lr()[0])))
                    scheduler.step()
            if synchronize:
                scheduler.synchronize()
        messages = [str(w.message) for w in caught]
    return {"lrs": rates, "history": scheduler.history, "messages": messages, "updates": scheduler.updates}


COUNTS = [((13, 18),), ((18, 13),), ((5, 5),), ((3, 17),), ((0, 17),), ((17, 1),)]
LATER = ((10, 15), (12, 12))


def uneven_runs(rank):
    found = {counts: uneven(rank, counts, False) for counts in COUNTS}
    return found | {"synchronized": uneven(rank, LATER, True), "not synchronized": uneven(rank, LATER, False)}


@pytest.fixture(scope="module")
def joined():
    return on_ranks(uneven_runs)


@pytest.mark.parametrize("counts", COUNTS)
def test_uneven_inputs_do_not_deadlock(joined, counts):
    first, second = (rank[counts] for rank in joined)
    shared = {(e, t): lr for e, t, lr in first["lrs"]}
    assert all(shared.get((e, t), lr) == lr for e, t, lr in second["lrs"])
    longest = max((first, second), key=lambda result: len(result["lrs"]))
    assert [e["updates"] for e in longest["history"]] == list(range(0, max(counts[0]) + 1, 4))


def test_synchronize_makes_up_for_an_uneven_epoch(joined):
    first, second = (rank["synchronized"] for rank in joined)
    assert first["updates"] == second["updates"] == 27
    assert [row for row in first["lrs"] if row[0] == 1] == [row for row in second["lrs"] if row[0] == 1]
    assert not [m for m in first["messages"] + second["messages"] if "LearnedLR" in m]


def test_a_rank_that_lags_behind_is_told(joined):
    first, second = (rank["not synchronized"] for rank in joined)
    told = [m for m in first["messages"] if "call scheduler.synchronize()" in m]
    assert len(told) == 1
    assert "rank 0 has made fewer updates than ranks [1]" in told[0]
    assert not [m for m in second["messages"] if "synchronize" in m]


# FSDP2


def shard(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("scope", ["global", "param_group"])
def test_fsdp_ranks_set_the_same_bits_and_those_of_one_process(runs, scope):
    first, second = (rank["fsdp", scope] for rank in runs)
    assert first["lrs"] == second["lrs"]
    rates, history = alone(HORIZON, scope=scope)
    torch.testing.assert_close(torch.tensor(first["lrs"]), torch.tensor(rates), rtol=1e-9, atol=0.0)
    for mine, theirs in zip(first["history"], history, strict=True):
        for name, values in mine["features"].items():
            assert values == pytest.approx(theirs["features"][name], abs=1e-9), name


def test_fsdp_with_losses_sets_the_same_bits_and_resumes(runs):
    whole = runs[0]["fsdp with losses", None]
    assert [e["features"]["has_loss"][0] for e in whole["history"]] == [0.0] + [1.0] * 5
    for rank in runs:
        for at in (None, 6, 7):
            result = rank["fsdp with losses", at]
            assert (result["lrs"], result["history"]) == (whole["lrs"], whole["history"])
