"""Evolution strategies: the estimate against the exact gradient, and learning with a threshold."""

import pytest
import torch

from metalr.agents.meta_gradients import meta_gradient
from metalr.agents.outer_loop import MetaTrainer, OuterConfig
from metalr.agents.pes import PES, Turns
from metalr.engine.runs import BatchedRuns
from metalr.learned.module import MetaVector
from metalr.learned.policies import GRUPolicy, MLPPolicy
from metalr.learned.schedules import ConstantLR, KnotLR, ParameterLR, StepwiseLR
from metalr.tasks.catalog import make_task
from tests.support.policies import randomise

PIECES = 8


def quadratic(horizon: int = 40, dimensions: int = 20):
    return make_task("noisy-quadratic", dimensions=dimensions, horizon=horizon)


def exact(learned, task, meta_loss: str) -> torch.Tensor:
    runs = BatchedRuns(task, 1, dtype=torch.float64)
    return meta_gradient(learned, runs, torch.zeros(1, dtype=torch.int64), meta_loss=meta_loss).vector()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("meta_loss", ["mean-train", "final-train"])
def test_orthogonal_pairs_make_central_differences(meta_loss):
    learned, task = StepwiseLR(PIECES, initial=0.5), quadratic()
    estimator = PES(learned, task, num_pairs=PIECES, sigma=1e-4, meta_loss=meta_loss)
    assert relative(estimator.estimate(0).vector, exact(learned, task, meta_loss)) < 1e-5


@pytest.mark.parametrize(
    ("perturb", "learned", "meta_loss"),
    [
        ("window", StepwiseLR(PIECES, initial=0.5), "mean-train"),
        ("window", KnotLR(PIECES, 0.5), "final-train"),
        ("run", StepwiseLR(PIECES, initial=0.5), "mean-train"),
        ("run", KnotLR(PIECES, 0.5), "mean-train"),
    ],
)
def test_windows_leave_the_estimate_unbiased(perturb, learned, meta_loss):
    task = quadratic()
    options = {"unroll_length": 10, "windows_per_estimate": 4, "perturb": perturb, "meta_loss": meta_loss}
    estimator = PES(learned, task, num_pairs=128, sigma=1e-3, **options)
    estimates = torch.stack([estimator.estimate(step).vector for step in range(12)])
    expected = exact(learned, task, meta_loss)
    error = estimates.std(0) / len(estimates) ** 0.5
    assert bool(((estimates.mean(0) - expected).abs() < 4.5 * error + 1e-5 * expected.abs()).all())
    assert error.norm() < 0.2 * expected.norm()


def test_truncated_windows_alone_would_be_biased():
    learned, task = StepwiseLR(PIECES, initial=0.5), quadratic()
    runs, seeds = BatchedRuns(task, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    cut = meta_gradient(learned, runs, seeds, route="truncated", segment_length=10).vector()
    assert relative(cut, exact(learned, task, "mean-train")) > 0.2


def test_log_is_the_gradient_of_the_log():
    learned, task = StepwiseLR(PIECES, initial=0.5), quadratic()
    estimator = PES(learned, task, num_pairs=PIECES, sigma=1e-4, meta_loss="final-train", log=True)
    estimate = estimator.estimate(0)
    assert relative(estimate.vector, exact(learned, task, "final-train") / estimate.loss) < 1e-3


@pytest.mark.parametrize("policy", [MLPPolicy((4,), decisions=4), GRUPolicy(3, decisions=4)], ids=["mlp", "gru"])
def test_policy_gradient_points_the_same_way(policy):
    """Through a policy the smoothed meta-loss differs from the exact one; the direction must agree."""
    randomise(policy, scale=0.2)
    task = quadratic(horizon=40).with_(base_lr=0.5)
    estimator = PES(policy, task, num_pairs=len(MetaVector(policy)), sigma=1e-4, meta_loss="final-train")
    expected = exact(policy, task, "final-train")
    assert torch.cosine_similarity(estimator.estimate(0).vector, expected, dim=0) > 0.99


@pytest.mark.parametrize("unroll_length", [None, 10])
def test_learns_the_noisy_quadratic_from_a_constant(unroll_length):
    """One LR: the best constant is known from a fine grid."""
    task = quadratic()
    learned = ConstantLR(0.3)
    estimator = PES(learned, task, num_pairs=2, sigma=0.02, unroll_length=unroll_length, meta_loss="final-train")
    MetaTrainer(learned, estimator, OuterConfig(60, lr=0.1, final_lr=1e-3, betas=(0.5, 0.9))).train()
    runs = BatchedRuns(task, 400, dtype=torch.float64)
    grid = torch.linspace(0.1, 1.9, 400, dtype=torch.float64)
    scan = meta_gradient(ConstantLR(), runs, torch.zeros(400, dtype=torch.int64), grid, meta_loss="final-train")
    found = meta_gradient(
        learned, BatchedRuns(task, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), meta_loss="final-train"
    )
    assert found.loss < 1.005 * scan.losses.min().item()


def test_a_diverged_run_counts_as_a_finite_loss():
    learned = ConstantLR(1.0)
    task = make_task("quadratic", horizon=30, base_lr=1.1)  # beyond stability: (1 - 2.2)² > 1
    estimate = PES(learned, task, num_pairs=4, sigma=0.3).estimate(0)
    assert estimate.diverged > 0.0
    assert bool(estimate.vector.isfinite().all())
    assert estimate.vector.item() > 0.0  # the LR must fall


def test_same_seed_same_estimates_and_resume_to_the_bit():
    def build():
        learned = StepwiseLR(PIECES, initial=0.5)
        options = {"num_pairs": 3, "unroll_length": 10}
        tasks = [quadratic(), quadratic(horizon=20)]
        return learned, Turns([PES(learned, t, seed=i, **options) for i, t in enumerate(tasks)])

    _, first = build()
    vectors = [first.estimate(step).vector for step in range(7)]
    _, second = build()
    for step in range(3):
        second.estimate(step)
    state = second.state()
    _, third = build()
    third.load_state(state)
    for step in range(3, 7):
        assert torch.equal(third.estimate(step).vector, vectors[step])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 0}, "num_pairs 0"),
        ({"sigma": 0.0}, "sigma 0.0"),
        ({"unroll_length": 0}, "unroll_length 0"),
        ({"perturb": "step"}, "got perturb 'step'"),
        ({"log": True}, "got log=True"),
        ({"meta_loss": "test"}, "got meta-loss 'test'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PES(KnotLR(3), quadratic(), **options)


def test_initial_weights_are_refused():
    with pytest.raises(ValueError, match="got learned initial weights"):
        PES(ParameterLR(torch.ones(20), 0.1), quadratic())


@pytest.mark.slow
def test_pes_reaches_the_optimum_of_its_own_decisions():
    """T = 100 under the cap: within 0.5 % of L-BFGS-B's optimum for 40 pieces, 0.38441259."""
    learned = StepwiseLR(40, high=2.0)
    options = {"num_pairs": 32, "sigma": 0.05, "final_sigma": 0.002, "unroll_length": 25, "log": True}
    estimator = PES(learned, make_task("noisy-quadratic", horizon=100), meta_loss="final-train", **options)
    MetaTrainer(learned, estimator, OuterConfig(70, lr=0.1, final_lr=1e-4)).train()
    runs = BatchedRuns(make_task("noisy-quadratic", horizon=100), 1, dtype=torch.float64)
    loss = meta_gradient(learned, runs, torch.zeros(1, dtype=torch.int64), meta_loss="final-train").loss
    assert loss < 0.38441259 * 1.005
