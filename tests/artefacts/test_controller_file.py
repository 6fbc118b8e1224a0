"""Saving and loading controllers: exact round trips, and a clean refusal of every hostile file."""

import hashlib
import json
import random
import re
import resource
import struct
import tracemalloc

import pytest
import safetensors.torch
import torch

import metalr
from metalr.artefacts.controller_file import (
    from_bytes,
    load_card,
    load_controller,
    load_scheduler,
    save_controller,
    to_bytes,
)
from metalr.control.reference import ScheduleController
from metalr.schedules import Constant, Cosine, Function
from metalr.signals.observations import NUM_FEATURES
from tests.support.policies import random_policy, recurrent_policy
from tests.support.schedulers_under_test import CONTROLLERS_UNDER_TEST, Training

REFUSED = r"got .*, expected "


def parts(content: bytes) -> tuple[dict, bytes]:
    """The JSON header and the payload of a file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def forged(header: dict, payload: bytes) -> bytes:
    """A file with a valid checksum, as a hostile author would make it."""
    header["__metadata__"]["sha256"] = "0" * 64

    def pack() -> bytes:
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + payload

    header["__metadata__"]["sha256"] = hashlib.sha256(pack()).hexdigest()
    return pack()


def with_card(change, content: bytes | None = None) -> bytes:
    """A forged file whose card a function has changed in place."""
    header, payload = parts(to_bytes(random_policy()) if content is None else content)
    card = json.loads(header["__metadata__"]["metalr"])
    change(card)
    header["__metadata__"]["metalr"] = json.dumps(card)
    return forged(header, payload)


# Round trips


@pytest.mark.parametrize("name", CONTROLLERS_UNDER_TEST)
def test_a_saved_controller_sets_the_same_lrs(name, tmp_path):
    controller = CONTROLLERS_UNDER_TEST[name]
    path = save_controller(tmp_path / "c.safetensors", controller, {"seed": 3})
    loaded = load_controller(path)
    assert loaded.config() == controller.config()
    assert {k: v.tolist() for k, v in loaded.tensors().items()} == {
        k: v.tolist() for k, v in controller.tensors().items()
    }
    first, second = Training(), Training()
    expected = first.run(metalr.LearnedLR(first.optimizer, controller, 23, decisions=5))
    assert second.run(load_scheduler(path, second.optimizer, 23, decisions=5)) == expected
    assert load_card(path)["about"] == {"seed": 3}


def test_a_forged_file_that_changes_nothing_loads():
    """An unchanged forgery is accepted, so the refusals below are due to the changes."""
    assert from_bytes(with_card(lambda card: None))[0].config() == random_policy().config()


def test_files_that_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        save_controller(tmp_path / "c.pt", random_policy())
    path = save_controller(tmp_path / "c.safetensors", random_policy())
    with pytest.raises(FileExistsError, match="choose another name"):
        save_controller(path, random_policy())
    for card in ({"x": float("nan")}, {"x": object()}, {"x": {1, 2}}):
        with pytest.raises(ValueError, match="a card that JSON cannot hold"):
            to_bytes(random_policy(), card)
    with pytest.raises(ValueError, match="64 zeros in a row"):
        to_bytes(random_policy(), {"x": "0" * 64})
    with pytest.raises(ValueError, match="code in a file"):
        to_bytes(ScheduleController(Function(lambda p: p)))
    with pytest.raises(ValueError, match="base schedule leaves"):
        to_bytes(ScheduleController(Constant(1e300)))


def test_another_base_schedule(tmp_path):
    path = save_controller(tmp_path / "c.safetensors", random_policy(schedule=Constant()))
    scheduler = load_scheduler(path, Training().optimizer, 23, base=Cosine())
    assert scheduler.controller.schedule == Cosine()


@pytest.mark.parametrize(
    "name", ["no-such", "../general", "general/../x", "", ".", "/etc", "~root", "a\0b", "x" * 5000]
)
def test_names_that_lead_nowhere(name):
    with pytest.raises((FileNotFoundError, ValueError), match="expected"):
        load_controller(name)


def test_names_do_not_leave_the_folder_of_shipped_controllers(tmp_path, monkeypatch):
    save_controller(tmp_path / "secret.safetensors", random_policy())
    (tmp_path / "shipped").mkdir()
    monkeypatch.setattr("metalr.artefacts.controller_file.SHIPPED", tmp_path / "shipped")
    with pytest.raises(FileNotFoundError):
        load_controller("../secret")


def test_another_observation_version_says_what_to_do():
    content = with_card(lambda card: card.update(observation_version=99))
    with pytest.raises(ValueError, match=r"observation version 99, expected \d+: train or export the controller again"):
        from_bytes(content)


# Absurd cards, with a true checksum


def nested(depth: int) -> dict:
    schedule: dict = {"name": "constant"}
    for _ in range(depth):
        schedule = {"name": "warmup", "schedule": schedule}
    return schedule


ABSURD = {
    "decisions none": {"decisions": 0},
    "decisions many": {"decisions": 10**9},
    "decisions huge": {"decisions": 10**30},
    "decisions text": {"decisions": "forty"},
    "decisions part": {"decisions": [40]},
    "alpha": {"action": {"mode": "anchored", "alpha": 1e9, "levels": 0, "low": 0.05, "high": 20.0}},
    "levels": {"action": {"mode": "anchored", "alpha": 3.0, "levels": 10**9, "low": 0.05, "high": 20.0}},
    "high": {"action": {"mode": "recursive", "alpha": 3.0, "levels": 0, "low": 0.05, "high": 1e300}},
    "low": {"action": {"mode": "anchored", "alpha": 3.0, "levels": 0, "low": 1e-300, "high": 20.0}},
    "negative": {"action": {"mode": "anchored", "alpha": 3.0, "levels": 0, "low": -1.0, "high": 20.0}},
    "mode": {"action": {"mode": "__import__('os')", "alpha": 3.0, "levels": 0, "low": 0.05, "high": 20.0}},
    "action text": {"action": "anchored"},
    "action more": {"action": {"mode": "anchored", "__class__": "x"}},
    "layers many": {"num_layers": 10**9},
    "layers more": {"num_layers": 3},
    "layers fewer": {"num_layers": 1},
    "layers none": {"num_layers": 0},
    "visible": {"visible": ["__dict__"]},
    "kind": {"kind": "os.system"},
    "kind other": {"kind": "recurrent"},
    "kind list": {"kind": ["policy"]},
    "schedule none": {"schedule": None},
    "schedule name": {"schedule": {"name": "function", "fn": "os.system"}},
    "schedule huge": {"schedule": {"name": "constant", "value": 1e300}},
    "schedule negative": {"schedule": {"name": "constant", "value": -1.0}},
    "schedule deep": {"schedule": nested(50)},
    "schedule wide": {"schedule": {"name": "knots", "values": [1.0] * 5000}},
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_cards_are_refused(name):
    with pytest.raises(ValueError, match=REFUSED):
        from_bytes(with_card(lambda card: card["controller"].update(ABSURD[name])))


@pytest.mark.parametrize(
    "controller",
    [
        {"kind": "replay", "multipliers": [1e300], "schedule": {"name": "constant"}},
        {"kind": "replay", "multipliers": [], "schedule": {"name": "constant"}},
        {"kind": "replay", "multipliers": [1.0] * 200_000, "schedule": {"name": "constant"}},
        {"kind": "greedy", "schedule": {"name": "constant"}, "decisions": 40, "high": 1e300},
        {"kind": "greedy", "schedule": {"name": "constant"}, "decisions": 40.5},
        {"kind": "greedy", "schedule": {"name": "constant"}, "decisions": True},
        {"kind": "greedy", "schedule": {"name": "constant"}, "factor": "2"},
        {"kind": "random", "action": {}, "schedule": {"name": "constant"}, "decisions": 5, "seed": 2**80},
    ],
)
def test_absurd_controllers_without_weights_are_refused(controller):
    content = to_bytes(ScheduleController(Constant(), 5))
    with pytest.raises(ValueError, match=REFUSED):
        from_bytes(with_card(lambda card: card.update(controller=controller), content))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[" * 100_000, '{"a":' * 5000, "1e999", "9" * 5000])
def test_absurd_json_is_refused(text):
    header, payload = parts(to_bytes(random_policy()))
    card = header["__metadata__"]["metalr"]
    for changed in (card.replace('"alpha": 1.0', f'"alpha": {text}'), text):
        assert changed != card
        header["__metadata__"]["metalr"] = changed
        with pytest.raises(ValueError, match=REFUSED):
            from_bytes(forged(header, payload))


def retensored(change) -> bytes:
    """A forged file whose tensors a function has changed."""
    header, _ = parts(to_bytes(random_policy()))
    tensors = random_policy().tensors()
    tensors = change(dict(tensors))
    content = safetensors.torch.save(tensors, {**header["__metadata__"], "sha256": "0" * 64})
    return forged(*parts(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {k: v.to(torch.int32) for k, v in t.items()},
        lambda t: {k: v.half() for k, v in t.items()},
        lambda t: {k: v > 0.0 for k, v in t.items()},
        lambda t: {k: v * torch.nan for k, v in t.items()},
        lambda t: {k: v.T.contiguous() if v.dim() == 2 else v for k, v in t.items()},
        lambda t: {k: v[:1].contiguous() for k, v in t.items()},
        lambda t: {k: v[None].contiguous() for k, v in t.items()},
        lambda t: {},
        lambda t: t | {"more": torch.zeros(3)},
        lambda t: t | {"../../../etc/passwd": torch.zeros(3)},
        lambda t: {f"../{k}": v for k, v in t.items()},
        lambda t: {k: torch.zeros(0) for k in t},
    ],
)
def test_wrong_tensors_are_refused(change):
    with pytest.raises(ValueError, match=REFUSED):
        from_bytes(retensored(change))


@pytest.mark.parametrize("shape", [[2**40, 16], [2**63, 1], [-12, 16], [12, 16, 2**30], [10**30]])
def test_giant_declared_sizes_are_refused_without_memory(shape):
    header, payload = parts(to_bytes(random_policy()))
    header["layers.0.weight"]["shape"] = shape
    header["layers.0.weight"]["data_offsets"] = [0, 2**50]
    assert_refused_without_memory(forged(header, payload))


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_giant_headers_are_refused_without_memory(length):
    content = to_bytes(random_policy())
    assert_refused_without_memory(struct.pack("<Q", length) + content[8:])


def assert_refused_without_memory(content: bytes) -> None:
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with pytest.raises(ValueError, match=REFUSED):
            from_bytes(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(content) + 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB


def test_a_file_too_large_to_be_a_controller_is_not_read(tmp_path):
    path = tmp_path / "c.safetensors"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match="this is not a controller"):
        load_controller(path)


# Fuzz


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One random mutation of a file."""
    data, at = bytearray(content), draw.randrange(len(content))
    kind = draw.randrange(8)
    if kind == 0:  # one bit
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1:  # truncated
        del data[at:]
    elif kind == 2:  # a few bytes
        for _ in range(draw.randrange(1, 9)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == 3:  # a piece moved
        stop = min(len(data), at + draw.randrange(1, 64))
        piece = data[at:stop]
        del data[at:stop]
        other = draw.randrange(len(data) + 1)
        data[other:other] = piece
    elif kind == 4:  # grown
        data[at:at] = draw.randbytes(draw.randrange(1, 64))
    elif kind == 5:  # the length of the header
        data[:8] = struct.pack("<Q", draw.choice([draw.randrange(2**64), draw.randrange(4096), at]))
    elif kind == 6:  # another number in the header
        digits = [i for i, byte in enumerate(data[:900]) if chr(byte).isdigit()]
        data[draw.choice(digits)] = ord(draw.choice("0123456789eE.-"))
    else:  # another dtype or name
        old, new = draw.choice(
            [(b"F32", b"F64"), (b"F32", b"I32"), (b"F32", b"BOO"), (b"layers.0", b"layers.1"), (b"policy", b"replay")]
        )
        data = data.replace(old, new, draw.randrange(1, 4))
    return bytes(data)


def refusal(source) -> str:
    try:
        from_bytes(source) if isinstance(source, bytes) else load_controller(source)
    except ValueError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("controller", [random_policy(), recurrent_policy()], ids=["policy", "recurrent"])
def test_five_thousand_mutated_files_are_refused(controller, tmp_path):
    content = to_bytes(controller, {"trained_on": ["mnist1d"], "seed": 3})
    path, draw = tmp_path / "c.safetensors", random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for count in range(5000):
        while (changed := mutated(content, draw)) == content:
            pass
        if count % 25 == 0:  # through a real file now and then; the disk is what takes long
            path.write_bytes(changed)
        assert re.match(REFUSED, refusal(path if count % 25 == 0 else changed))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def scrambled(value, draw: random.Random):
    """A value of a card, or something else in its place."""
    if isinstance(value, dict) and draw.random() < 0.8:
        key = draw.choice(list(value))
        return {k: scrambled(v, draw) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and draw.random() < 0.5:
        return [*value, *value] if draw.random() < 0.5 else value[:-1]
    return draw.choice(
        [
            0,
            1,
            -1,
            2,
            7,
            0.5,
            1e300,
            -1e300,
            1e-300,
            2**63,
            True,
            None,
            "",
            "policy",
            "constant",
            [],
            {},
            [1.0],
            {"a": 1},
        ]
    )


def test_two_thousand_forged_cards_are_refused_or_stay_in_bounds():
    draw, accepted = random.Random(1), 0
    content = {name: to_bytes(c) for name, c in CONTROLLERS_UNDER_TEST.items()}
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(4, 1, NUM_FEATURES, dtype=torch.float64, generator=generator).clamp(-1.0, 1.0)
    for _ in range(2000):
        forgery = with_card(
            lambda card: card.update(controller=scrambled(card["controller"], draw)),
            draw.choice(list(content.values())),
        )
        try:
            controller, _ = from_bytes(forgery)
        except ValueError:  # anything else would be a defect
            continue
        accepted += 1
        state = controller.init(torch.ones(4, 1, dtype=torch.float64))
        for progress in (0.0, 0.5, 1.0):
            multiplier, state = controller(observation, state)
            factor = multiplier * controller.schedule(progress)
            assert factor.isfinite().all()
            assert (factor >= 0.0).all()
            assert (factor <= 1e12).all()
    assert 100 < accepted < 1500


def test_nothing_is_executed(tmp_path, monkeypatch):
    """A pickle in place of the file or of a tensor is treated as mere bytes."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("executed",))

    bomb = pickle.dumps(Bomb())
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    monkeypatch.setattr(torch, "load", lambda *_: pytest.fail("torch.load"))
    path = tmp_path / "c.safetensors"
    path.write_bytes(bomb)
    with pytest.raises(ValueError, match=REFUSED):
        load_controller(path)
    header, payload = parts(to_bytes(random_policy()))
    path.write_bytes(forged(header, bomb + payload[len(bomb) :]))
    controller = load_controller(path)  # these bytes are finite weights, and only that
    assert controller.config() == random_policy().config()
