"""Files from strangers, with a true checksum: whatever they hold, LRs stay within the bounds of the card."""

import json
import math
import random
import sys
import time
import tracemalloc
import types
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from metalr.artefacts.controller_file import from_bytes, save_controller, to_bytes
from metalr.artefacts.replay_table import write_replay_csv
from metalr.artefacts.standalone import write_standalone
from metalr.control.lr import interval_lr, schedule_factor
from metalr.control.reference import ReplayController, ScheduleController
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import SCHEDULES, Constant, Cosine, Function, PiecewiseConstant
from tests.artefacts.test_controller_file import forged, parts, with_card
from tests.support.policies import random_policy
from tests.support.schedulers_under_test import CONTROLLERS_UNDER_TEST

BASE = 0.01
SPIKE = PiecewiseConstant(boundaries=(0.50001, 0.50002), values=(1.0, 1e30, 1.0))


def lrs_of(controller, horizon: int = 40, updates: int | None = None, draw: random.Random | None = None) -> list[float]:
    """The LRs of a whole run and what follows it, with losses and gradients that are sometimes none."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=BASE)
    scheduler = LearnedLR(optimizer, controller, horizon, decisions=min(controller.decisions, 6, horizon // 2))
    odd, rates = draw or random.Random(0), []
    hook = optimizer.register_step_post_hook(lambda o, *_: rates.append(float(o.param_groups[0]["lr"])))
    for t in range(updates or 2 * horizon):
        weight.grad = torch.full_like(weight, odd.choice([0.1, 1.0, 3.0]) if odd.random() < 0.95 else math.nan)
        scheduler.observe(odd.choice([1.0, 0.5 / (t + 1), 1e3]) if odd.random() < 0.95 else odd.choice([math.nan, 0.0]))
        optimizer.step()
        with torch.no_grad():
            weight.fill_(1.0)
        scheduler.step()
    hook.remove()
    return rates


def assert_within_card(rates: list[float], card: dict) -> None:
    low, high = card["bounds"]["lr_factor"]
    assert all(low * BASE <= lr <= high * BASE * (1.0 + 1e-9) and math.isfinite(lr) for lr in rates), max(rates)


# Between the points that are looked at


def test_a_spike_between_the_points_that_are_looked_at_is_cut_off():
    controller, card = from_bytes(to_bytes(ScheduleController(SPIKE, 5)))
    horizon = 100_000
    schedule = controller.schedule
    assert max(schedule(t / horizon) for t in range(50_000, 50_010)) == 1e30
    assert card["bounds"]["lr_factor"] == [0.0, 1.1]
    weight = nn.Parameter(torch.ones(3))
    scheduler = LearnedLR(torch.optim.SGD([weight], lr=BASE), controller, horizon)
    factors = [scheduler._ahead.factor(t, horizon) for t in range(49_990, 50_010)]
    assert max(factors) == 1.1
    assert min(factors) == 1.0


@pytest.mark.parametrize("value", [-3.0, math.nan, math.inf, -math.inf])
def test_no_factor_below_zero_and_none_that_is_no_number_reaches_an_optimizer(value):
    odd = Function(lambda progress: torch.where(progress.mul(10).floor() % 2 == 0, 1.0, value))
    rates = lrs_of(ScheduleController(odd, 5))
    assert set(rates) == ({BASE, 1.1 * BASE} if value == math.inf else {BASE, 0.0})
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=BASE)
    scheduler, found = ScheduleLR(optimizer, odd, 40), set()
    for _ in range(60):
        found.add(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == {BASE, 0.0}


def test_the_engine_cuts_what_a_scheduler_cuts():
    one, first = torch.ones(1, dtype=torch.float64), torch.tensor([50_000])
    assert interval_lr(SPIKE, one, one[:, None], first, 4, 100_000).flatten().tolist() == [1.0, 1.1, 1.0, 1.0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_of_ours_is_cut(name):
    schedule = SCHEDULES[name]()
    progress = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.0
    assert torch.equal(schedule_factor(schedule, progress), schedule(progress).clamp(min=0.0))


def test_a_decision_that_is_no_number_keeps_the_last_one():
    class Broken(ReplayController):
        def __call__(self, observation, state):
            multiplier, state = super().__call__(observation, state)
            return multiplier * (math.nan if state.max() == 3 else 1e30 if state.max() == 4 else 1.0), state

    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=BASE)
    scheduler = LearnedLR(optimizer, Broken((1.0, 0.5, 0.25, 0.125, 2.0)), 20)
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    assert [entry["lr_multiplier"][0] for entry in scheduler.history] == [1.0, 0.5, 0.5, 2.0, 2.0]


def test_the_bounds_are_those_of_the_controller_and_not_what_the_file_says():
    content = with_card(lambda card: card.update(bounds={"lr_factor": [0.0, 1e-9]}), to_bytes(random_policy()))
    assert from_bytes(content)[1]["bounds"] == {"lr_multiplier": [0.05, 20.0], "lr_factor": [0.0, 22.0]}


# Cost


def wide(count: int) -> dict:
    parts_ = [{"name": "knots", "values": [1.0] * 1000} for _ in range(count)]
    return {
        "kind": "schedule",
        "decisions": 5,
        "schedule": {
            "name": "sequence",
            "schedules": parts_,
            "milestones": [(i + 1) / count for i in range(count - 1)],
        },
    }


def deep(levels: int) -> dict:
    schedule: dict = {"name": "constant"}
    for _ in range(levels):
        schedule = {"name": "sequence", "schedules": [schedule] * 30, "milestones": [(i + 1) / 30 for i in range(29)]}
    return {"kind": "schedule", "decisions": 5, "schedule": schedule}


@pytest.mark.parametrize(
    "controller",
    [
        wide(9),
        wide(150),
        wide(900),
        deep(2),
        deep(3),
        {"kind": "replay", "multipliers": [1.0] * 1_000_000, "schedule": {"name": "constant"}},
        {"kind": "schedule", "decisions": 5, "schedule": {"name": "constant"}, "more": [[1]] * 100_000},
    ],
    ids=["9 lists", "150 lists", "900 lists", "900 schedules", "27000 schedules", "a million numbers", "more"],
)
def test_the_cost_of_loading_is_bounded_by_the_size(controller):
    content = with_card(lambda card: card.update(controller=controller), to_bytes(ScheduleController(Constant(), 5)))
    tracemalloc.start()
    start = time.process_time()
    try:
        from_bytes(content)
    except ValueError:
        pass
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seconds < 3.0  # and a fraction of it without the tracing
    assert peak < 20 * len(content) + 2**23


def test_a_header_that_is_too_long_is_not_parsed():
    content = with_card(lambda card: card.update(about={"note": "x" * 2**20}))
    with pytest.raises(ValueError, match="its header is longer than 1048576 bytes"):
        from_bytes(content)


# Odd cards

NEST: list = []
for _ in range(300):
    NEST = [NEST]

ODD = {
    "infinite": "1e999",
    "negative infinite": '{"x": [-1e999]}',
    "a list": '[1, 2, "three"]',
    "null": "null",
    "text": '"only text"',
    "a number": "7",
    "nested": json.dumps({"deep": NEST}),
    "surrogates": '{"note": "\\ud800 \\udfff", "\\ud800": 1}',
    "escapes": '{"note": "\\u001b[2J\\u001b]0;owned\\u0007", "\\u001b[31m": "\\u202edesrever\\u0000"}',
    "long key": json.dumps({"k" * 10_000: 1}),
    "newline key": '{"a\\n=cmd()\\nb": "x\\r\\ny"}',
    "quotes": '{"note": "\\"\\"\\" \' \\\\ {braces} %s"}',
    "huge integer": '{"n": 123456789012345678901234567890}',
}


@pytest.mark.parametrize("name", ODD)
def test_odd_facts_break_no_export_and_reach_no_terminal(name, tmp_path, capsys):
    header, payload = parts(to_bytes(random_policy()))
    card = header["__metadata__"]["metalr"]
    odd = card.replace('"about": {}', f'"about": {ODD[name]}')
    assert odd != card
    header["__metadata__"]["metalr"] = odd
    controller, read = from_bytes(forged(header, payload))
    again = save_controller(tmp_path / "again.safetensors", controller, read["about"])
    assert from_bytes(again.read_bytes())[1]["about"] == read["about"]
    module = write_standalone(controller, read, tmp_path / "mine.py")
    names: dict = {"__name__": "mine"}
    sys.modules["mine"] = types.ModuleType("mine")  # dataclasses look themselves up there
    exec(compile(module.read_text(), "mine.py", "exec"), names)
    assert names["CARD"] == read
    table = write_replay_csv(controller, torch.ones(5), tmp_path / "mine.csv", card=read)
    for text in (repr(read), module.read_text(), table.read_text(), json.dumps(read, allow_nan=False)):
        assert not [c for c in text if not c.isprintable() and c != "\n"]
    rows = table.read_text().splitlines()
    assert all(row.startswith(("#", "decision,")) or row[0].isdigit() for row in rows)


@pytest.mark.parametrize("where", ["kind", "schedule", "tensor", "mode"])
def test_a_refusal_shows_nothing_raw(where):
    evil = "\x1b[2J\x1b]0;owned\x07\u202e\ud800"
    header, payload = parts(to_bytes(random_policy()))
    card = json.loads(header["__metadata__"]["metalr"])
    if where == "kind":
        card["controller"]["kind"] = evil
    elif where == "schedule":
        card["controller"]["schedule"] = {"name": "constant", evil: 1}
    elif where == "mode":
        card["controller"]["action"][evil] = 1
    else:
        header[evil.replace("\ud800", "")] = header.pop("layers.0.bias")
    header["__metadata__"]["metalr"] = json.dumps(card)
    with pytest.raises(ValueError, match=r"got the file, which .*, expected ") as refused:
        from_bytes(forged(header, payload))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


# The sweep


def number(draw: random.Random, old: float) -> float | int:
    """A number near an old one, or far from it."""
    kind = draw.randrange(6)
    if kind == 0:
        return old * 10.0 ** draw.uniform(-3.0, 3.0)
    if kind == 1:
        return draw.uniform(0.0, 1.0)
    if kind == 2:
        return draw.choice([0, 1, -1, 2, 5, 1e-300, 1e300, -1e300, 1e6, 1e-9, 2**63, 0.5])
    if kind == 3:
        return old * draw.uniform(0.5, 2.0)
    return old


def changed(value, draw: random.Random, rate: float = 0.3):
    """A card's part with some of its numbers, names and items changed."""
    if isinstance(value, dict):
        return {key: changed(item, draw, rate) for key, item in value.items() if draw.random() > 0.01}
    if isinstance(value, list):
        items = [changed(item, draw, rate) for item in value]
        return items + items[:1] if draw.random() < 0.05 else items[:-1] if draw.random() < 0.05 else items
    if draw.random() > rate or isinstance(value, str | bool | None):
        return draw.choice(["policy", None, 3, [], {}]) if draw.random() < 0.004 else value
    return number(draw, value)


def schedule(draw: random.Random, depth: int = 2) -> dict:
    """A random schedule, as a file describes it."""
    from metalr.schedules import to_config

    name = draw.choice(sorted(SCHEDULES))
    config = to_config(SCHEDULES[name]())
    if name == "piecewise-constant" or draw.random() < 0.1:
        at = sorted(draw.uniform(0.0, 1.0) for _ in range(2))
        values = [draw.choice([0.0, 1.0, 1e5, 1e30, 1e300]) for _ in range(3)]
        return {"name": "piecewise-constant", "boundaries": at, "values": values}
    for key, value in config.items():
        if isinstance(value, dict) and depth:
            config[key] = schedule(draw, depth - 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict) and depth:
            config[key] = [schedule(draw, depth - 1) for _ in value]
    return {key: value if key == "name" else changed(value, draw, 0.5) for key, value in config.items()}


def stranger(draw: random.Random, contents: list[bytes]) -> bytes:
    """A file that a stranger could have made, with a true checksum."""
    content = draw.choice(contents)
    header, _ = parts(content)
    card = json.loads(header["__metadata__"]["metalr"])
    config = card["controller"]
    if draw.random() < 0.6:
        config = changed(config, draw, draw.choice([0.05, 0.3]))
    if draw.random() < 0.5 and "schedule" in config:
        config["schedule"] = schedule(draw)
    card["controller"] = config
    tensors = safetensors.torch.load(content)
    if tensors and draw.random() < 0.4:
        name = draw.choice(sorted(tensors))
        tensors[name] = tensors[name] * 10.0 ** draw.choice([1, 3, 20, 37, -30])
    saved = safetensors.torch.save(tensors, {"metalr": json.dumps(card), "sha256": "0" * 64})
    return forged(*parts(saved))


def sweep(files: int, seed: int) -> tuple[int, int]:
    """Files that were accepted and refused; every accepted one was driven for a whole run within its bounds."""
    draw, accepted, refused = random.Random(seed), 0, 0
    contents = [to_bytes(c) for c in CONTROLLERS_UNDER_TEST.values()]
    contents += [to_bytes(ScheduleController(Cosine(), 5)), to_bytes(random_policy(decisions=3))]
    for _ in range(files):
        try:
            controller, card = from_bytes(stranger(draw, contents))
        except ValueError:
            refused += 1
            continue
        accepted += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rates = lrs_of(controller, draw.choice([12, 23, 40]), draw=draw)
        assert_within_card(rates, card)
    return accepted, refused


def test_three_hundred_files_of_strangers_stay_within_their_bounds():
    accepted, refused = sweep(300, seed=1)
    assert accepted > 90
    assert refused > 60


@pytest.mark.slow
def test_six_thousand_files_of_strangers_stay_within_their_bounds():
    accepted, refused = sweep(6000, seed=0)
    print(f"{accepted} accepted and driven, {refused} refused")
    assert accepted >= 2000
    assert refused >= 1000
