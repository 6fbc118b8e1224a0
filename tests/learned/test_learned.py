"""Learned modules: what they compute, export as, refuse, and how their controllers behave."""

import math

import pytest
import torch

from metalr import schedules
from metalr.control.actions import ActionSpec
from metalr.control.recurrent import RecurrentPolicyController
from metalr.control.reference import ScheduleController
from metalr.learned.export import controller_of
from metalr.learned.module import MetaVector, OpenLoop
from metalr.learned.policies import GRUPolicy, MLPPolicy
from metalr.learned.schedules import ConstantLR, KnotLR, ParameterLR, StepwiseLR
from metalr.schedules.knots import Knots
from metalr.signals import observations
from tests.support.policies import randomise

OPEN_LOOP = {
    "constant": lambda: ConstantLR(0.7),
    "knots": lambda: KnotLR(6, [1.0, 2.0, 0.5, 0.5, 0.1, 0.03]),
    "stepwise": lambda: StepwiseLR(7, initial=0.3),
}


@pytest.mark.parametrize("name", OPEN_LOOP)
def test_open_loop_module_equals_its_exported_schedule(name):
    learned: OpenLoop = OPEN_LOOP[name]()
    randomise(learned)
    progress = torch.linspace(0.0, 1.0, 401, dtype=torch.float64)[:-1]
    torch.testing.assert_close(learned(progress)[:, 0], learned.schedule()(progress), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(OPEN_LOOP))
def test_exported_schedule_survives_its_config(name):
    schedule = OPEN_LOOP[name]().schedule()
    assert schedules.from_config(schedules.to_config(schedule)) == schedule


def test_knots_are_lines_in_log_space():
    schedule = Knots(values=(1.0, 4.0, 0.25))
    assert schedule(0.25) == pytest.approx(2.0)
    assert schedule(0.5) == pytest.approx(4.0)
    assert schedule(0.75) == pytest.approx(1.0)
    assert schedule(1.7) == pytest.approx(0.25)


@pytest.mark.parametrize("values", [(1.0,), (1.0, 0.0), (1.0, math.inf), "ab"])
def test_knots_refuse_bad_values(values):
    with pytest.raises(ValueError, match="got Knots"):
        Knots(values=values)


def test_projection_keeps_bounds_and_forward_obeys_them_before_it():
    learned = KnotLR(4, 1.0, low=0.1, high=2.0)
    learned.log_multipliers.data.fill_(5.0)
    assert learned(torch.tensor([0.3])).item() == pytest.approx(2.0)
    learned.project()
    assert learned.log_multipliers.max().item() == pytest.approx(math.log(2.0))


def test_stepwise_has_one_lr_for_each_step_and_layer():
    learned = StepwiseLR(3, num_groups=2)
    learned.log_multipliers.data.copy_(torch.arange(6.0).view(3, 2))
    found = learned(torch.arange(3, dtype=torch.float64) / 3).log()
    torch.testing.assert_close(found, torch.arange(6, dtype=torch.float64).view(3, 2))
    assert len(learned.schedules()) == 2
    with pytest.raises(ValueError, match="2 learned LRs"):
        learned.schedule()


def test_meta_vector_round_trip_and_per_run_values():
    learned = KnotLR(3)
    meta = MetaVector(learned)
    meta.write(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    assert meta.read().tolist() == [0.0, 1.0, 2.0]
    thetas = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    progress = torch.linspace(0, 1, 5, dtype=torch.float64).expand(2, -1)
    found = meta.per_run(thetas)(progress)[..., 0].log()
    torch.testing.assert_close(found, torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 5))


def test_a_meta_vector_shares_no_memory_with_the_module():
    learned = KnotLR(3)
    meta = MetaVector(learned)
    before = meta.read()
    learned.log_multipliers.data.fill_(1.0)
    assert before.tolist() == [0.0, 0.0, 0.0]
    meta.write(before)
    before.fill_(2.0)
    assert meta.read().tolist() == [0.0, 0.0, 0.0]
    meta.write(before.float())
    assert learned.log_multipliers.dtype == torch.float64


def test_a_meta_vector_has_the_trainable_meta_parameters_alone():
    learned = ParameterLR(torch.arange(4.0), 0.1, per_parameter=False, learn_lr=False)
    assert list(learned.meta_params()) == ["params"]
    assert MetaVector(learned).read().tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("policy", [MLPPolicy((8,)), GRUPolicy(5)])
def test_untrained_policy_is_the_base_schedule(policy):
    controller = controller_of(policy)
    observation = torch.randn(3, 2, observations.NUM_FEATURES, dtype=torch.float64)
    observation[..., observations.FEATURE_NAMES.index("loss_exploded")] = 0.0
    multiplier, _ = controller(observation, controller.init(torch.zeros(3, 2, dtype=torch.float64)))
    assert bool((multiplier == 1.0).all())


@pytest.mark.parametrize("policy", [MLPPolicy((8,)), GRUPolicy(5)])
def test_policy_and_its_controller_act_alike(policy):
    randomise(policy)
    controller = controller_of(policy)
    state = controller.init(torch.zeros(4, 2, dtype=torch.float64))
    memory = torch.zeros(4, 2, policy.memory_size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        observation = torch.rand(4, 2, observations.NUM_FEATURES, generator=generator, dtype=torch.float64)
        observation[..., observations.FEATURE_NAMES.index("loss_exploded")] = 0.0
        multiplier, state = controller(observation, state)
        action, memory = policy(observation, memory)
        expected = (3.0 * action.clamp(-1.0, 1.0)).exp().clamp(0.05, 20.0)
        torch.testing.assert_close(multiplier, expected.detach(), rtol=1e-12, atol=0.0)


def test_recurrent_controller_is_rebuilt_from_config_and_tensors():
    policy = GRUPolicy(5, ActionSpec(alpha=2.0), decisions=10)
    randomise(policy)
    first = controller_of(policy)
    second = RecurrentPolicyController.build(first.config(), first.tensors())
    observation = torch.rand(2, 1, observations.NUM_FEATURES, dtype=torch.float64)
    state = first.init(observation[..., 0])
    assert torch.equal(first(observation, state)[0], second(observation, state)[0])
    assert second.config() == first.config()


def test_recurrent_controller_refuses_bad_weights():
    policy = GRUPolicy(5)
    good = controller_of(policy)
    weights = good.tensors()
    with pytest.raises(ValueError, match=r"without \['head.bias'\]"):
        RecurrentPolicyController.build(good.config(), {k: v for k, v in weights.items() if k != "head.bias"})
    with pytest.raises(ValueError, match=r"head\.weight of shape"):
        RecurrentPolicyController.build(good.config(), {**weights, "head.weight": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match="finite"):
        RecurrentPolicyController.build(good.config(), {**weights, "head.bias": torch.tensor([math.nan])})


def test_open_loop_becomes_a_schedule_controller():
    controller = controller_of(KnotLR(3, [1.0, 1.0, 0.1]))
    assert isinstance(controller, ScheduleController)
    assert isinstance(controller.schedule, Knots)
    with pytest.raises(ValueError, match="for an open-loop KnotLR"):
        controller_of(KnotLR(3), schedule=schedules.Cosine())
    with pytest.raises(ValueError, match="single parameters"):
        controller_of(ParameterLR(torch.zeros(3), 0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KnotLR(1), "got 1 knots"),
        (lambda: KnotLR(3, low=2.0, high=1.0), "got bounds"),
        (lambda: StepwiseLR(0), "got 0 pieces"),
        (lambda: MLPPolicy(action=ActionSpec(levels=5)), "levels=0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
