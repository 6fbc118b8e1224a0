"""Cloning an oracle: the policy, its loss, its files, and that it learns."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metalr.agents.clone import Batch, ClonePolicy, averaged, imitation_loss
from metalr.agents.clone_folder import CloneFolder
from metalr.agents.clone_runs import CloneConfig, guesses, plan, roll_out
from metalr.agents.disturbed import draw_offsets
from metalr.compare.oracle import Grid
from metalr.control.actions import ActionSpec
from metalr.schedules import Constant
from metalr.signals.observations import NUM_FEATURES, feature
from metalr.tasks.general import draw_task
from metalr.tasks.task import Task

SMALL = CloneConfig(
    grid=Grid(num_lrs=7, decades=4.0, seeds=(0, 1)),
    decisions=(5, 8),
    runs_per_task=8,
    rounds=1,
    steps=30,
    batch=64,
    hidden_size=8,
    members=2,
)


def draw(index: int) -> Task:
    return draw_task("meta-train", index).with_(horizon=40, batch_size=8)


def trained_weights(policy: ClonePolicy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.parameters()]


def some_policy(seed: int = 0) -> ClonePolicy:
    policy = ClonePolicy(8, seed)
    torch.nn.init.normal_(policy.head.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return policy


def test_the_exported_controller_chooses_what_the_policy_chooses() -> None:
    policy = some_policy()
    observations = torch.randn(6, 3, NUM_FEATURES, generator=torch.Generator().manual_seed(0))
    expected = policy(observations)
    controller = policy.controller(SMALL)
    memory = controller.init(torch.ones(3, 1)).memory
    for decision in range(6):
        action, memory = controller.decide(observations[decision, :, None], memory)
        torch.testing.assert_close(action[:, 0], expected[decision], rtol=0.0, atol=1e-5)


def test_averaged_policies_choose_the_mean_of_their_actions() -> None:
    members = [some_policy(seed) for seed in range(3)]
    observations = torch.randn(6, 4, NUM_FEATURES, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([member(observations) for member in members]).mean(0)
    torch.testing.assert_close(averaged(members)(observations), expected, rtol=0.0, atol=1e-6)


def batch_of(regrets: list[float], log_multiplier: float) -> Batch:
    one = torch.ones(1)
    return Batch(
        torch.zeros(1, 1, NUM_FEATURES),
        torch.full((1, 1), log_multiplier),
        0.0 * one,
        torch.tensor([regrets]),
        -2.0 * one,
        one,
        torch.ones(1, 1),
    )


@pytest.mark.parametrize("mode", ["recursive", "anchored", "absolute"])
def test_the_loss_is_the_regret_of_the_chosen_lr(mode: str) -> None:
    reference = math.exp(0.75) if mode == "absolute" else None
    action = ActionSpec(mode, alpha=2.0, low=0.01, high=100.0, reference=reference)  # type: ignore[arg-type]
    config = replace(SMALL, action=action)
    batch = batch_of([4.0, 3.0, 0.0, 1.0, 2.0], log_multiplier=1.0)  # log LRs -2 … 2
    # A quarter of alpha is 0.5: on top of the multiplier in force, e, or of 1, or of the reference LR.
    expected = {"recursive": 1.5, "anchored": 0.5, "absolute": 1.25}[mode]
    assert imitation_loss(torch.tensor([[0.25]]), batch, config).item() == pytest.approx(expected)


def test_an_action_beyond_its_range_counts_as_its_end_and_leads_back() -> None:
    action = torch.tensor([[3.0]], requires_grad=True)
    config = replace(SMALL, action=ActionSpec("anchored", alpha=2.0, low=0.01, high=100.0))
    loss = imitation_loss(action, batch_of([4.0, 3.0, 0.0, 1.0, 2.0], 0.0), config)
    loss.backward()
    assert loss.item() == pytest.approx(2.0, abs=0.7 * 0.5)
    assert action.grad is not None
    assert action.grad.item() > 0.0


def test_a_plan_is_a_function_of_index_and_seed() -> None:
    task = draw(3)
    first, again = (plan(3, task, SMALL) for _ in range(2))
    assert (first.decisions, first.horizon_known) == (again.decisions, again.horizon_known)
    assert SMALL.decisions[0] <= first.decisions <= SMALL.decisions[1]
    hidden = [plan(index, task, replace(SMALL, hide_horizon=0.5)) for index in range(60)]
    shares = sum(not planned.horizon_known for planned in hidden)
    assert 15 < shares < 45
    assert all(isinstance(planned.schedule, Constant) for planned in hidden if not planned.horizon_known)


def test_guesses_span_the_range_and_most_of_them_its_middle() -> None:
    config = replace(SMALL, runs_per_task=400)
    log_guess, seeds = guesses(plan(0, draw(0), config), config, 1)
    edge = math.log(100.0)
    assert log_guess.abs().max() < edge
    assert 0.9 * edge < log_guess[::3].abs().max()
    assert 0.4 * edge < log_guess[1::3].abs().max() < 0.5 * edge
    assert 0.1 * edge < log_guess[2::3].abs().max() < 0.15 * edge
    assert set(seeds.tolist()) == {0, 1}
    assert not torch.equal(log_guess, guesses(plan(0, draw(0), config), config, 2)[0])


def test_a_rollout_starts_from_the_guess_and_records_the_multiplier_before_each_decision(tmp_path: Path) -> None:
    folder = CloneFolder(tmp_path, draw, SMALL)
    planned = folder.plan(1)
    curve, _ = folder.oracle(1)
    log_guess, seeds = guesses(planned, SMALL, 1)
    episodes = roll_out(
        some_policy().controller(SMALL).with_schedule(planned.schedule), planned, curve, log_guess, seeds, SMALL
    )
    torch.testing.assert_close(episodes.log_base_lr, (curve.best_log_lr + log_guess).float())
    assert (episodes.log_multiplier[0] == 0.0).all()
    in_force = feature(episodes.observations.float(), "lr_multiplier") * 7.0
    torch.testing.assert_close(episodes.log_multiplier, in_force, rtol=0.0, atol=0.02)  # stored in float16


def train(folder: CloneFolder, indices: range) -> ClonePolicy:
    for round_index in range(SMALL.rounds + 1):
        policy = folder.train(round_index, indices)
    return policy


def test_a_training_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = train(CloneFolder(tmp_path / "whole", draw, SMALL), range(3))
    pieces = CloneFolder(tmp_path / "pieces", draw, SMALL)
    pieces.oracle(2)
    pieces.train(0, range(3))
    CloneFolder(tmp_path / "pieces", draw, SMALL).rollouts(1, 1)
    again = train(CloneFolder(tmp_path / "pieces", draw, SMALL), range(3))
    assert all(map(torch.equal, trained_weights(whole), trained_weights(again)))


def test_offsets_are_constant_in_each_part_of_a_run_and_have_the_deviation_asked_for() -> None:
    steps = list(range(0, 1000, 25))
    offsets = draw_offsets(steps, 1000, 4000, 0.5, (0, 3, 1))
    ends = [0, 4, 12, 24, 40]  # decisions before progress 0.1, 0.3 and 0.6
    for start, stop in itertools.pairwise(ends):
        assert torch.equal(offsets[start:stop], offsets[start].expand(stop - start, -1))
    assert offsets[ends[:-1]].std(1).tolist() == pytest.approx([0.5] * 4, rel=0.05)
    assert torch.corrcoef(offsets[ends[:-1]]).fill_diagonal_(0.0).abs().max() < 0.06
    assert not torch.equal(offsets, draw_offsets(steps, 1000, 4000, 0.5, (1, 3, 1)))


def test_the_last_round_alone_is_disturbed_and_starts_from_the_same_guesses(tmp_path: Path) -> None:
    calm = CloneFolder(tmp_path / "calm", draw, replace(SMALL, rounds=2))
    disturbed = CloneFolder(tmp_path / "disturbed", draw, replace(SMALL, rounds=2, disturbance=0.3))
    for folder in (calm, disturbed):
        for round_index in range(2):
            folder.train(round_index, range(2))
    first = [folder.rollouts(1, 0) for folder in (calm, disturbed)]
    assert all(map(torch.equal, *first))
    last = [folder.rollouts(2, 0) for folder in (calm, disturbed)]
    assert torch.equal(last[0].log_base_lr, last[1].log_base_lr)
    planned = disturbed.plan(0)
    steps = disturbed.policy(1).controller(disturbed.config, planned.decisions).decision_steps(planned.task.horizon)
    offsets = draw_offsets(steps, planned.task.horizon, SMALL.runs_per_task, 0.3, (0, 0, 2))
    shift = last[1].log_multiplier[1] - last[0].log_multiplier[1]  # in force after the first decision
    torch.testing.assert_close(shift, offsets[0], rtol=0.0, atol=1e-4)


def test_the_last_round_has_its_own_number_of_updates(tmp_path: Path) -> None:
    config = replace(SMALL, rounds=1, members=1, steps=3, last_steps=5)
    folder, seen = CloneFolder(tmp_path, draw, config), []
    for round_index in range(2):
        folder.train(round_index, range(2), progress=lambda done, total, what: seen.append((what, done, total)))
    updates = [count for what, *count in seen if "updates" in what]
    assert [total for _, total in updates] == [3] * 3 + [5] * 5


@pytest.mark.slow
def test_a_clone_repairs_wrong_guesses_on_tasks_that_it_has_not_seen(tmp_path: Path) -> None:
    config = replace(SMALL, rounds=2, steps=400, batch=256, hidden_size=16, runs_per_task=16, hide_loss=0.0)
    folder = CloneFolder(tmp_path, draw, config)
    for round_index in range(config.rounds + 1):
        policy = folder.train(round_index, range(24))

    def mean_regret(policy: ClonePolicy) -> float:
        regrets = []
        for index in range(100, 108):
            planned = folder.plan(index)
            curve, _ = folder.oracle(index)
            log_guess, seeds = guesses(planned, config, 9)
            student = policy.controller(config).with_schedule(planned.schedule)
            episodes = roll_out(student, planned, curve, log_guess, seeds, config)
            regrets.append((episodes.log_loss - curve.log_loss[curve.best_index].mean()).mean())
        return torch.stack(regrets).mean().item()

    untrained = mean_regret(ClonePolicy(config.hidden_size))
    assert mean_regret(policy) < 0.5 * untrained
