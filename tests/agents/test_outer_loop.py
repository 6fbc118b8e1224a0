"""The outer loop: learning with thresholds, resuming to the bit, and stopping with a clear message."""

import math

import pytest
import torch

from metalr.agents.estimates import Estimate
from metalr.agents.few_shot import few_shot_learner
from metalr.agents.meta_gradients import meta_gradient
from metalr.agents.outer_loop import MetaGradients, MetaTrainer, MetaTrainingError, OuterConfig
from metalr.agents.pes import PES
from metalr.engine.runs import BatchedRuns
from metalr.learned.module import MetaVector
from metalr.learned.schedules import ConstantLR, KnotLR, StepwiseLR
from metalr.tasks.catalog import make_task
from metalr.tasks.sinusoids import sinusoid_task


def quadratic(horizon: int = 20):
    return make_task("noisy-quadratic", dimensions=20, horizon=horizon)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_learns_the_best_constant(optimizer):
    learned = ConstantLR(1.0)
    gradients = MetaGradients(learned, [make_task("quadratic", horizon=2)], num_seeds=1)
    config = OuterConfig(60, optimizer=optimizer, lr=0.1, final_lr=1e-3)
    MetaTrainer(learned, gradients, config).train()
    assert 0.2 * learned.schedule().value == pytest.approx(0.5, rel=0.04)  # (w + 1)² has curvature 2


def test_learned_schedule_beats_the_best_constant_and_the_greedy_start():
    task = quadratic()
    losses = {}
    for name, learned in {"constant": ConstantLR(1.0, high=2.0), "pieces": StepwiseLR(10, high=2.0)}.items():
        gradients = MetaGradients(learned, [task], seeds=torch.zeros(1, dtype=torch.int64), meta_loss="final-train")
        MetaTrainer(learned, gradients, OuterConfig(60, lr=0.1, final_lr=1e-3)).train()
        losses[name] = gradients.estimate(0).loss
    assert losses["pieces"] < 0.9 * losses["constant"]


def test_log_is_the_gradient_of_the_log():
    seeds = torch.zeros(1, dtype=torch.int64)
    plain, log = (
        MetaGradients(KnotLR(3, 0.5), [quadratic()], seeds=seeds, log=log).estimate(0) for log in (False, True)
    )
    torch.testing.assert_close(log.vector * plain.loss, plain.vector)


def make_trainer(kind: str, path, outer_steps: int = 7):
    learned = KnotLR(3, 0.5)
    if kind == "pes":
        estimator = PES(learned, quadratic(), num_pairs=3, unroll_length=5)
    else:
        tasks = [make_task("teacher-student", horizon=4, width=4), make_task("teacher-student", horizon=6, width=3)]
        estimator = MetaGradients(learned, tasks, num_seeds=2, base_lr_range=(0.5, 2.0))
    config = OuterConfig(outer_steps, lr=0.05, final_lr=0.01, clip_norm=0.5, checkpoint=path, checkpoint_every=3)
    return MetaTrainer(learned, estimator, config)


@pytest.mark.parametrize("kind", ["pes", "gradients"])
def test_resumes_to_the_bit(kind, tmp_path):
    whole = make_trainer(kind, tmp_path / "whole.pt")
    whole.train()
    broken = make_trainer(kind, tmp_path / "broken.pt")
    broken.progress = lambda record: (_ for _ in ()).throw(KeyboardInterrupt) if record["outer_step"] == 4 else None
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make_trainer(kind, tmp_path / "broken.pt")
    resumed.train()
    assert torch.equal(MetaVector(resumed.learned).read(), MetaVector(whole.learned).read())
    assert repr(resumed.history) == repr(whole.history)  # repr: NaN equals itself there
    again = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert again["outer_step"] == 7


def test_checkpoint_of_another_module_is_refused(tmp_path):
    make_trainer("pes", tmp_path / "file.pt", outer_steps=1).train()
    learned = KnotLR(5)
    other = MetaTrainer(
        learned, PES(learned, quadratic(), num_pairs=2), OuterConfig(2, checkpoint=tmp_path / "file.pt")
    )
    with pytest.raises(ValueError, match="got a checkpoint of 3 meta-parameters, expected 5"):
        other.train()


class Failing:
    """Finite twice, then not."""

    def __init__(self, learned, loss: float, gradient: float) -> None:
        self.size, self.loss, self.gradient = len(MetaVector(learned)), loss, gradient

    def estimate(self, outer_step, progress=0.0):
        bad = outer_step == 2
        vector = torch.full((self.size,), self.gradient if bad else 0.1, dtype=torch.float64)
        return Estimate(self.loss if bad else 1.0, vector, "a-task", 0.5)

    def state(self):
        return {}

    def load_state(self, state):
        pass


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 0.1), (math.inf, 0.1), (1.0, math.nan)])
def test_non_finite_meta_loss_stops_with_the_facts(loss, gradient, tmp_path):
    learned = ConstantLR()
    path = tmp_path / "good.pt"
    trainer = MetaTrainer(
        learned, Failing(learned, loss, gradient), OuterConfig(5, checkpoint=path, checkpoint_every=1)
    )
    with pytest.raises(MetaTrainingError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "at outer step 2 on task 'a-task'" in message
    assert f"the last good checkpoint is {path} (outer step 2)" in message
    assert math.isfinite(learned.log_multiplier.item())


def test_real_divergence_stops_too():
    learned = ConstantLR()
    gradients = MetaGradients(learned, [make_task("quadratic", horizon=40, base_lr=5.0)], num_seeds=2)
    with pytest.raises(MetaTrainingError, match=r"task 'quadratic' \(100% of its runs diverged\)"):
        MetaTrainer(learned, gradients, OuterConfig(3)).train()


def test_clipping_bounds_the_update_and_records_the_norm():
    learned = ConstantLR(0.3)
    gradients = MetaGradients(learned, [make_task("quadratic", horizon=20)], num_seeds=1)
    before = learned.log_multiplier.item()
    records = []
    config = OuterConfig(1, optimizer="sgd", lr=1.0, clip_norm=0.01)
    MetaTrainer(learned, gradients, config, records.append).train()
    assert abs(learned.log_multiplier.item() - before) == pytest.approx(0.01, rel=1e-6)
    assert records[0]["gradient_norm"] > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer_steps": 0}, "outer_steps 0"),
        ({"optimizer": "lion"}, "got outer optimizer 'lion'"),
        ({"clip_norm": 0.0}, "got clip_norm 0.0"),
    ],
)
def test_bad_config_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OuterConfig(**options)


def few_shot_loss(method: str, outer_steps: int) -> float:
    task = sinusoid_task(10)
    learned = few_shot_learner(task, method)
    gradients = MetaGradients(learned, [task], num_seeds=16, meta_loss="final-valid", dtype=torch.float32)
    MetaTrainer(learned, gradients, OuterConfig(outer_steps, lr=3e-3, clip_norm=10.0)).train()
    runs = BatchedRuns(sinusoid_task(10, queries=50), 400)
    return meta_gradient(learned, runs, 10**9 + torch.arange(400), meta_loss="final-valid", order=1).loss


def test_few_shot_learners_get_better():
    assert few_shot_loss("meta-sgd", 60) < few_shot_loss("meta-sgd", 1)
    with pytest.raises(ValueError, match="got method 'reptile'"):
        few_shot_learner(sinusoid_task(5), "reptile")


@pytest.mark.slow
def test_meta_sgd_beats_maml_on_sinusoids():
    assert few_shot_loss("meta-sgd", 1500) < 0.9 * few_shot_loss("maml", 1500)


def test_sinusoids_are_functions_of_the_variant():
    data = sinusoid_task(5).data
    variants = torch.tensor([3, 4, 3])
    x, y = next(iter(data.batches(variants, variants, variants, 1, 5)))
    assert x.shape == y.shape == (3, 5, 1)
    assert torch.equal(y[0], y[2])
    assert not torch.equal(y[0], y[1])
    assert y.abs().max() <= 5.0
    queries = next(iter(data.chunks("valid", variants, 10, 10)))[0]
    assert not bool(torch.isin(queries, x).any())
