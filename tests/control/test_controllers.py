"""Controllers: one contract over the registry, the arithmetic of the policy, and the steps of decisions."""

import copy
import json
import math
import os
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metalr.compare import ablations
from metalr.control import rules
from metalr.control.actions import ActionSpec
from metalr.control.catalog import CONTROLLERS, build_controller
from metalr.control.controller import decision_steps
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.reference import RandomController, ScheduleController
from metalr.learned.export import controller_of
from metalr.learned.policies import GRUPolicy
from metalr.schedules import Constant, Cosine
from metalr.signals.observations import FEATURE_NAMES, FEATURES, NUM_FEATURES
from tests.support.policies import lstm_policy, random_policy, recurrent_policy

LIKE = torch.zeros(1, dtype=torch.float64)


def policy(visible=None, **action) -> PolicyController:
    scales = (NUM_FEATURES**-0.5, 5**-0.5)
    options = {"hidden": 5, "scales": scales, "bias": 0.1, "dtype": torch.float64}
    return random_policy(ActionSpec(**action), schedule=Cosine(), decisions=8, visible=visible, **options)


# Controllers whose constructor needs arguments; any other entry of the registry is made with its defaults.
EXAMPLES = {
    "schedule": [lambda: ScheduleController(Cosine()), lambda: ScheduleController(Cosine(), 7, "doubling")],
    "random": [RandomController, lambda: RandomController(spacing="doubling")],
    "policy": [
        policy,
        lambda: policy(mode="recursive", alpha=0.5),
        lambda: policy(mode="absolute", reference=0.02),
        lambda: policy(levels=7),
        lambda: policy(visible=("progress",)),
        lambda: policy(visible=()),
        lambda: random_policy(spacing="doubling"),
    ],
    "recurrent": [
        lambda: controller_of(GRUPolicy(decisions=20), schedule=Cosine()),
        lambda: recurrent_policy(visible=("polyak", "has_loss"), spacing="doubling"),
    ],
    "lstm": [
        lstm_policy,
        lambda: lstm_policy(levels=5, visible=("polyak", "has_loss"), spacing="doubling"),
    ],
    "replay": [
        lambda: ablations.ReplayController((1.0, 0.5, 0.25), Cosine()),
        lambda: ablations.ReplayController((1.0, 0.5, 0.25), Cosine(), "doubling"),
    ],
}
assert set(rules.RULES) <= set(CONTROLLERS)
CASES = [(kind, build) for kind in CONTROLLERS for build in EXAMPLES.get(kind, [CONTROLLERS[kind]])]
contract = pytest.mark.parametrize(("kind", "build"), CASES, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(CASES)])


def observations(num_decisions=6, num_runs=3, num_groups=2, dtype=torch.float64) -> torch.Tensor:
    """Random observations within the declared bounds, with occasional explosions."""
    low, high = (torch.tensor([getattr(f, end) for f in FEATURES], dtype=dtype) for end in ("low", "high"))
    shape = (num_decisions, num_runs, num_groups, NUM_FEATURES)
    drawn = low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for name in ("has_history", "has_loss", "has_horizon", "has_gradient"):
        drawn[..., FEATURE_NAMES.index(name)] = 1.0
    drawn[0, ..., FEATURE_NAMES.index("has_history")] = 0.0
    exploded = FEATURE_NAMES.index("loss_exploded")
    drawn[..., exploded] = (drawn[..., exploded] > 0.7).to(dtype)
    drawn[0, ..., exploded] = 0.0
    return drawn


def play(controller, seen: torch.Tensor) -> torch.Tensor:
    state = controller.init(seen[0, ..., 0])
    result = []
    for observation in seen:
        multiplier, state = controller(observation, state)
        result.append(multiplier)
    return torch.stack(result)


def leaves(state) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, torch.Generator):
        return [state.get_state()]
    return [leaf for part in state for leaf in leaves(part)]


def rows(state, run: int):
    """The state of one run."""
    if isinstance(state, torch.Tensor):
        return state[run : run + 1].clone()
    if isinstance(state, tuple):
        parts = [rows(part, run) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return copy.copy(state)


@contract
def test_config_and_tensors_rebuild_the_controller(kind, build):
    controller = build()
    config = json.loads(json.dumps(controller.config()))
    assert config["kind"] == kind
    rebuilt = build_controller(config, controller.tensors())
    seen = observations()
    assert torch.equal(play(controller, seen), play(rebuilt, seen))
    assert rebuilt.decisions == controller.decisions
    assert rebuilt.spacing == controller.spacing
    assert rebuilt.schedule == controller.schedule
    assert rebuilt.config() == controller.config()


@contract
def test_the_multiplier_is_positive_finite_and_of_the_shape_of_runs_and_groups(kind, build):
    for dtype in (torch.float32, torch.float64):
        multiplier = play(build(), observations(dtype=dtype))
        assert multiplier.shape == (6, 3, 2)
        assert multiplier.dtype == dtype
        assert multiplier.isfinite().all()
        assert (multiplier > 0.0).all()


@contract
def test_a_call_is_pure(kind, build):
    controller, seen = build(), observations()
    state = controller.init(seen.new_zeros(3, 2))
    for observation in seen:
        before = [leaf.clone() for leaf in leaves(state)]
        given = observation.clone()
        first, _ = controller(observation, state)
        second, new = controller(observation, state)
        assert torch.equal(first, second)
        assert torch.equal(given, observation)
        assert all(torch.equal(a, b) for a, b in zip(before, leaves(state), strict=True))
        state = new


@contract
def test_a_batch_is_its_runs_one_at_a_time(kind, build):
    controller, seen = build(), observations()
    state = controller.init(seen.new_zeros(3, 2))
    single = [rows(state, run) for run in range(3)]
    for observation in seen:
        together, state = controller(observation, state)
        for run in range(3):
            alone, single[run] = controller(observation[run : run + 1], single[run])
            torch.testing.assert_close(together[run : run + 1], alone, rtol=1e-12, atol=0.0)


@contract
def test_a_state_is_of_tensors_so_that_a_run_can_be_resumed(kind, build):
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves(build().init(torch.zeros(1, 1, dtype=torch.float64))))
    assert "Generator" not in repr(build().init(torch.zeros(1, 1, dtype=torch.float64)))


@contract
def test_another_base_schedule(kind, build):
    controller = build()
    changed = controller.with_schedule(Constant())
    assert changed.schedule == Constant()
    assert type(changed) is type(controller)
    assert changed.decision_steps(1000) == controller.decision_steps(1000)
    assert changed.config() == {**controller.config(), "schedule": changed.config()["schedule"]}


def test_every_kind_is_known_as_soon_as_metalr_is_imported():
    # A saved controller is read in a process that has imported nothing else.
    code = "import metalr; from metalr.control.catalog import CONTROLLERS; print(*CONTROLLERS)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert set(printed.stdout.split()) == set(CONTROLLERS)


def test_an_unknown_kind_names_the_near_match():
    with pytest.raises(ValueError, match=r"got controller kind 'polic', expected .*did you mean 'policy'"):
        build_controller({"kind": "polic"}, {})


# The policy


def test_a_schedule_is_the_controller_that_ignores_the_observation():
    assert torch.equal(play(ScheduleController(Cosine()), observations()), torch.ones(6, 3, 2, dtype=torch.float64))


def test_a_policy_is_a_multilayer_perceptron_with_tanh():
    controller = policy()
    first, second = controller.network.weights
    seen = observations()[0]
    expected = torch.tanh(seen @ first.T + controller.network.biases[0]) @ second.T + controller.network.biases[1]
    torch.testing.assert_close(controller.act(seen), expected[..., 0].clamp(-1.0, 1.0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        play(controller, observations()[:1])[0],
        (3.0 * controller.act(seen)).exp().clamp(0.05, 20.0),
        rtol=1e-12,
        atol=0,
    )


def test_a_zero_policy_starts_as_the_base_schedule():
    network = PolicyNetwork([torch.zeros(1, NUM_FEATURES)], [torch.zeros(1)])
    quiet = observations()
    quiet[..., FEATURE_NAMES.index("loss_exploded")] = 0.0
    assert (play(PolicyController(network, ActionSpec(), Cosine(), 8), quiet) == 1.0).all()


def test_levels_take_the_largest_output():
    network = PolicyNetwork([torch.zeros(3, NUM_FEATURES)], [torch.tensor([0.0, 1.0, 3.0])])
    controller = PolicyController(network, ActionSpec(levels=3, alpha=1.0), Constant(), 8)
    assert controller.act(observations()[0]).unique().tolist() == [1.0]
    assert play(controller, observations()[:1]).unique().item() == pytest.approx(math.e)


def test_a_state_blind_policy_sees_what_it_is_shown():
    controller = policy(visible=("progress",))
    seen, changed = observations()[:1], observations()[:1]
    others = [i for i, name in enumerate(FEATURE_NAMES) if name not in ("progress", "loss_exploded", "has_history")]
    changed[..., others] = 0.123
    assert torch.equal(play(controller, seen), play(controller, changed))
    changed[..., FEATURE_NAMES.index("progress")] += 0.1
    assert not torch.equal(play(controller, seen), play(controller, changed))


def test_a_policy_keeps_its_own_copy_of_the_weights():
    weight, bias = torch.ones(1, NUM_FEATURES), torch.zeros(1)
    network = PolicyNetwork([weight], [bias])
    weight.zero_()
    assert network.weights[0].sum() == NUM_FEATURES


@pytest.mark.parametrize(
    ("weight", "bias"),
    [((1, NUM_FEATURES - 1), (1,)), ((1, NUM_FEATURES), (2,)), ((NUM_FEATURES,), (1,))],
)
def test_policy_weights_of_another_shape(weight, bias):
    with pytest.raises(ValueError, match=r"got a policy layer of shapes .*, expected .*observation version"):
        PolicyNetwork([torch.zeros(weight)], [torch.zeros(bias)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_policy_weights_that_are_no_numbers(value):
    with pytest.raises(ValueError, match="got policy weights that are not finite, expected numbers"):
        PolicyNetwork([torch.full((1, NUM_FEATURES), value)], [torch.zeros(1)])


def test_a_policy_with_another_number_of_outputs():
    with pytest.raises(ValueError, match="got a policy with 2 outputs, expected 5"):
        PolicyController(policy(levels=2).network, ActionSpec(levels=5), Constant(), 8)


def test_a_policy_without_layers():
    with pytest.raises(ValueError, match=r"got .*, expected"):
        PolicyController(PolicyNetwork([], []), ActionSpec(), Constant(), 8)


# Decisions


@given(st.integers(1, 200).flatmap(lambda d: st.tuples(st.just(d), st.integers(2 * d, 20_000))))
def test_decisions_are_spread_evenly(case):
    decisions, horizon = case
    steps = decision_steps(horizon, decisions)
    assert len(steps) == decisions
    assert steps[0] == 0
    gaps = [b - a for a, b in zip(steps, [*steps[1:], horizon], strict=True)]
    assert min(gaps) >= 2
    assert max(gaps) - min(gaps) <= 1
    # round(d · T / D), half up, in exact arithmetic.
    assert steps == [math.floor(Fraction(d * horizon, decisions) + Fraction(1, 2)) for d in range(decisions)]


def test_decisions_of_a_horizon_that_does_not_divide():
    assert decision_steps(10, 4) == [0, 3, 5, 8]
    assert decision_steps(53, 7) == [0, 8, 15, 23, 30, 38, 45]


CASE = st.integers(1, 200).flatmap(
    lambda d: st.tuples(st.just(d), st.integers(2 * d, 20 * d) | st.integers(2 * d, 20_000))
)


@given(CASE)
def test_early_decisions_come_after_2_4_8_updates(case):
    decisions, horizon = case
    steps = decision_steps(horizon, decisions, "doubling")
    gaps = [b - a for a, b in zip(steps, [*steps[1:], horizon], strict=True)]
    assert steps[0] == 0
    assert min(gaps) >= 2
    # Rounding the number of the even intervals, at least D - 2 of them, lengthens each by at most half of one's share.
    longest = Fraction(horizon, decisions) * (1 + Fraction(1, 2 * max(decisions - 2, 1)))
    assert max(gaps) <= (longest if decisions > 2 else Fraction(horizon, decisions)) + 1
    doublings = [2**power for power in range(1, 64)]
    early = [step for step, double in zip(steps[1:], doublings, strict=False) if step == double]
    assert steps[1 : 1 + len(early)] == early
    # Doubling lasts as long as the spacing is below T / D, or until the horizon leaves no room.
    last = early[-1] if early else 2
    assert last * decisions >= horizon or 2 * last + 2 > horizon or (not early and horizon < 4)
    even = gaps[len(early) :]
    assert max(even) - min(even) <= 1
    assert all(gap * decisions < 2 * horizon for gap in gaps[: len(early)])


@given(st.integers(1, 500))
def test_at_two_updates_each_both_spacings_are_the_same(decisions):
    assert decision_steps(2 * decisions, decisions, "doubling") == decision_steps(2 * decisions, decisions)


def test_early_decisions_in_numbers():
    # 84 updates are left after 16: eight intervals of 10.5, half rounded up.
    assert decision_steps(100, 10, "doubling") == [0, 2, 4, 8, 16, 27, 37, 48, 58, 69, 79, 90]
    # Of the 21 updates, 17 are left after 4: eight intervals of 2.125.
    assert decision_steps(21, 10, "doubling") == [0, 2, 4, 6, 8, 10, 13, 15, 17, 19]
    assert decision_steps(40, 4, "doubling") == [0, 2, 4, 8, 16, 28]


@pytest.mark.parametrize(
    ("horizon", "decisions", "expected"),
    [
        (2, 1, [0]),
        (3, 1, [0]),
        (4, 1, [0, 2]),
        (100, 1, [0, 2, 4, 8, 16, 32, 64]),
        (5, 2, [0, 2]),
        (6, 2, [0, 2, 4]),
        (9, 2, [0, 2, 4]),
        (33, 2, [0, 2, 4, 8, 16]),
    ],
)
def test_doubling_stops_before_the_horizon(horizon, decisions, expected):
    assert decision_steps(horizon, decisions, "doubling") == expected


@pytest.mark.parametrize("spacing", ["even", "doubling"])
@pytest.mark.parametrize(("horizon", "decisions"), [(7, 4), (1, 1), (0, 1), (10, 0), (10, -2)])
def test_a_horizon_that_is_too_short(horizon, decisions, spacing):
    with pytest.raises(
        ValueError, match=f"got horizon {horizon} with {decisions} decisions, expected .*: use a horizon"
    ):
        decision_steps(horizon, decisions, spacing)


@pytest.mark.parametrize("controller", [random_policy(), recurrent_policy(), ScheduleController(Cosine())])
@pytest.mark.parametrize("spacing", ["tripling", "", None, 2])
def test_an_unknown_spacing(controller, spacing):
    with pytest.raises(ValueError, match=r"got spacing .*, expected 'even' or 'doubling'"):
        build_controller(controller.config() | {"spacing": spacing}, controller.tensors())


def test_a_cell_is_torchs_own():
    torch.manual_seed(0)
    policy = lstm_policy()
    lstm = torch.nn.LSTM(NUM_FEATURES, 4, num_layers=2)
    own = dict(lstm.named_parameters())
    for i, cell in enumerate(policy.cells):
        for name, tensor in cell._asdict().items():
            own[f"{name}_l{i}"].data = tensor
    seen = observations(dtype=torch.float32).flatten(1, 2)  # (decisions, runs · groups, features)
    memory = policy.init(seen[0, :, None, 0]).memory
    state = None
    for observation in seen:
        action, memory = policy.decide(observation[:, None], memory)
        hidden, state = lstm(observation[None], state)
        assert torch.allclose(action[:, 0], policy.head(hidden[0])[:, 0].clamp(-1.0, 1.0), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells.0.weight_ih": torch.zeros(16, 5)}, "got weight_ih of shape"),
        ({"cells.1.bias_hh": torch.full((16,), math.nan)}, "expected finite numbers"),
        ({"layers.0.weight": torch.zeros(6, 5)}, "got a policy layer of shapes"),
    ],
)
def test_hostile_memory_is_refused(change, message):
    policy = lstm_policy()
    with pytest.raises(ValueError, match=message):
        build_controller(policy.config(), {**policy.tensors(), **change})


def test_absurd_numbers_of_cells_are_refused():
    policy = lstm_policy()
    for count in (0, 10**9):
        with pytest.raises(ValueError, match="cells of long short-term memory"):
            build_controller({**policy.config(), "num_cells": count}, policy.tensors())
