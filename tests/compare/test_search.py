"""The search: prefixes, even spread, the same LRs for everyone, and nothing drawn from a shared generator."""

import math

import pytest
import torch

from metalr.compare.catalog import CONTENDERS
from metalr.compare.search import Choice, Range, lr_trials, points

SPACE = {
    "floor": Range(0.0, 1e-3, 0.3, log=True),
    "every": Range(3, 1, 4, whole=True),
    "shape": Choice("b", ("a", "b")),
}
LRS = (1.0 / 32.0, 32.0)


def trials(count: int, space: dict | None = None, **more: int) -> list[tuple[dict, float]]:
    return lr_trials(SPACE if space is None else space, count, LRS, **more)


def test_a_smaller_search_is_the_beginning_of_a_larger_one() -> None:
    assert all(trials(count) == trials(64)[:count] for count in (1, 4, 16, 63))
    assert trials(16, extension=8)[:16] == trials(16)
    assert trials(16, extension=8)[:20] == trials(16, extension=4)


def test_the_first_trial_is_the_defaults_at_the_base_lr() -> None:
    assert trials(1) == [({"floor": 0.0, "every": 3, "shape": "b"}, 1.0)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [4, 16, 64])
def test_trials_fill_the_lr_range_evenly(seed: int, count: int) -> None:
    """Each of `count` equal parts of the log range holds one LR; the defaults lie on a border, in the upper part."""
    shares = [math.log(factor / LRS[0]) / math.log(LRS[1] / LRS[0]) for _, factor in trials(count, seed=seed)]
    assert sorted(int(share * count + 1e-6) for share in shares) == list(range(count))


def test_every_value_of_a_choice_and_of_a_whole_range_comes_equally_often() -> None:
    found = [parameters for parameters, _ in trials(64)]
    assert [sum(p["shape"] == shape for p in found) for shape in "ab"] == [32, 32]
    assert [sum(p["every"] == every for p in found) for every in (1, 2, 3, 4)] == [16] * 4
    assert all(isinstance(p["every"], int) and (p["floor"] == 0.0 or 1e-3 <= p["floor"] <= 0.3) for p in found)


def test_everyone_sees_the_same_lrs_in_the_same_order() -> None:
    spaces = [contender.space for contender in CONTENDERS.values()]
    assert len({tuple(factor for _, factor in trials(16, dict(space), extension=8)) for space in spaces}) == 1


def test_the_seed_decides_and_nothing_else() -> None:
    before = torch.get_rng_state()
    assert trials(16, seed=3) == trials(16, seed=3)
    assert trials(16, seed=3)[1:] != trials(16, seed=4)[1:]
    assert torch.equal(before, torch.get_rng_state())


def test_an_extension_lies_beyond_both_ends() -> None:
    factors = [factor for _, factor in trials(16, extension=8)[16:]]
    low, high = [f for f in factors if f < LRS[0]], [f for f in factors if f > LRS[1]]
    assert len(low) == len(high) == 4
    assert min(low) >= LRS[0] / 8.0
    assert max(high) <= LRS[1] * 8.0


def test_points_without_dimensions_are_one() -> None:
    assert points({}, 12) == [{}]
    assert points(SPACE, 12, seed=1) == points(SPACE, 30, seed=1)[:12]


def test_scales() -> None:
    assert Range(1.0, 0.25, 4.0, log=True).at(0.75) == 2.0
    assert Range(1.0, 0.0, 4.0).at(0.75) == 3.0
    assert [Range(2, 1, 4, whole=True).at(share) for share in (0.0, 0.3, 0.6, 0.999)] == [1, 2, 3, 4]
    assert [Choice("b", ("a", "b", "c")).at(share) for share in (0.0, 0.5, 0.999)] == ["a", "b", "c"]


def test_bad_ranges_are_explained() -> None:
    with pytest.raises(ValueError, match="expected one of the listed values"):
        Choice(0.2, (0.1,))
    with pytest.raises(ValueError, match=r"from 2.0 to 1.0, expected finite numbers low < high"):
        Range(1.5, 2.0, 1.0)
    with pytest.raises(ValueError, match="above 0 on a logarithmic scale"):
        Range(0.5, 0.0, 1.0, log=True)
