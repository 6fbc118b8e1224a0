"""A search within the run: every update is charged, probes leave no trace, and the LR is found from a wrong guess."""

import pytest
import torch

from metalr.compare.catalog import get_contender
from metalr.compare.comparison import compare
from metalr.compare.contenders import Kind
from metalr.compare.settings import Settings
from metalr.compare.staged_search import StagedSearch, propose, train_in_stages
from metalr.engine.runs import BatchedRuns
from metalr.tasks.catalog import make_task
from metalr.trees import leaves

SEEDS = torch.tensor([3, 8, 5])


def started(horizon: int = 120, **changes) -> BatchedRuns:
    runs = BatchedRuns(make_task("teacher-student", horizon=horizon, **changes), len(SEEDS), dtype=torch.float64)
    runs.init(SEEDS)
    return runs


def base(lr: float) -> torch.Tensor:
    return torch.full((len(SEEDS),), lr, dtype=torch.float64)


@pytest.mark.parametrize("horizon", [2, 3, 11, 12, 13, 47, 48, 200, 1001])
@pytest.mark.parametrize(("stages", "probes", "share"), [(4, 5, 0.5), (1, 1, 0.9), (12, 10, 0.1)])
def test_probes_and_training_make_the_horizon(horizon, stages, probes, share):
    parts = StagedSearch(stages, probes, share).parts(horizon)
    assert 1 <= len(parts) <= stages
    assert sum(probes * part.probe_steps + part.train_steps for part in parts) == horizon
    assert all(part.train_steps >= 2 and part.probe_steps != 1 for part in parts)
    if horizon >= stages * 40:
        probed = sum(probes * part.probe_steps for part in parts)
        assert len(parts) == stages
        assert probed / horizon == pytest.approx(share, abs=probes * stages / horizon + 0.2)


def test_every_update_is_charged(monkeypatch):
    runs, made = started(), []
    unroll = runs.unroll
    monkeypatch.setattr(runs, "unroll", lambda lr, num_steps: made.append(num_steps) or unroll(lr, num_steps))
    stages = list(train_in_stages(StagedSearch(stages=3, probes=4), runs, base(0.1)))
    assert sum(made) == stages[-1].step == 120
    assert [stage.step for stage in stages] == [40, 80, 120]
    assert runs.state.step.tolist() == [60] * len(SEEDS)  # half of them in probes, which were undone


def test_probes_leave_no_trace():
    probed, plain = (started(optimizer="adam") for _ in range(2))
    list(train_in_stages(StagedSearch(stages=2, probes=3, span=1.0), probed, base(0.01)))  # a span of 1: one LR
    for _ in range(2):
        plain.unroll(base(0.01), 30)
    for ours, expected in zip(leaves(probed.state), leaves(plain.state), strict=True):
        assert torch.equal(ours, expected)


def test_it_trains_at_the_probe_that_ended_lowest():
    search, runs = StagedSearch(stages=1, probes=6), started()
    (stage,) = train_in_stages(search, runs, base(0.1))
    losses = {}
    for lr in {*stage.lr.tolist(), 0.1, 0.1 / 32.0, 3.2}:
        probe = started()
        probe.unroll(base(lr), 10)
        losses[lr] = probe.evaluate("train", 1024).loss
    for row, lr in enumerate(stage.lr.tolist()):
        assert losses[lr][row] <= min(losses[0.1][row], losses[0.1 / 32.0][row], losses[3.2][row]) + 1e-12


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_it_finds_the_lr_from_a_wrong_guess(factor):
    found, constant = started(400), started(400)
    right = found.task.base_lr
    list(train_in_stages(StagedSearch(), found, base(right * factor)))
    constant.unroll(base(right * factor), 400)
    assert not found.state.diverged.any()
    assert float(found.evaluate("train").loss.mean()) < 0.8 * float(constant.evaluate("train").loss.mean())


def test_a_proposal_explores_what_is_unknown_then_settles_at_the_minimum():
    place = torch.full((2,), 0.5, dtype=torch.float64)
    lowest = torch.tensor([0.3, 0.8], dtype=torch.float64)
    tried, scores = [], []
    for _ in range(12):
        tried.append(place)
        scores.append((place - lowest).square())
        place = propose(torch.stack(tried, -1), torch.stack(scores, -1))
    assert tried[1].tolist() == [0.0, 0.0]  # the far end of what is not known
    torch.testing.assert_close(place, lowest, rtol=0.0, atol=0.1)


def test_it_is_a_contender_like_any_other(tmp_path):
    contender, task = get_contender("staged-search"), make_task("teacher-student", horizon=60)
    assert contender.kind is Kind.STAGED
    assert contender.batch_key({"stages": 2}, task) != contender.batch_key({"stages": 3}, task)
    settings = Settings(
        contenders=("cosine", "staged-search"), trials=2, tuning_seeds=1, report_seeds=2, factors=(0.1,)
    )
    comparison = compare(task, tmp_path / "c", settings=settings)
    found = [record for record in comparison.records if record.contender == "staged-search"]
    assert {record.phase for record in found} == {"tuning", "report", "wrong-base"}
    assert all(record.train_loss < record.untrained_loss for record in found if not record.diverged)
    assert len({record.train_loss for record in found}) > 2


def test_bad_settings_are_explained():
    with pytest.raises(ValueError, match="expected at least one stage"):
        StagedSearch(stages=0)
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        StagedSearch(share=1.0)
