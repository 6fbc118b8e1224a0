"""Records and curves come back from disk as they were, failures included."""

import json
import math
from dataclasses import fields, replace

import pytest

from metalr.compare.contenders import Kind
from metalr.compare.run_record import PlannedRun, RunCurve, RunRecord
from metalr.records import from_line, to_line

PLANNED = PlannedRun("digits-mlp", "wsd", "report", 3, (("decay", 0.2), ("warmup", 0.05)), 0.1, 0.01, seed=7)
RECORD = RunRecord(
    key=PLANNED.key,
    task="digits-mlp",
    phase="report",
    contender="wsd",
    kind=Kind.SCHEDULE,
    trial=3,
    parameters={"decay": 0.2, "warmup": 0.05},
    base_lr_factor=0.1,
    base_lr=0.01,
    seed=7,
    diverged=False,
    no_progress=False,
    untrained_loss=2.3,
    train_loss=0.1 + 0.2,
    train_metric=0.9,
    valid_loss=0.4,
    valid_metric=0.8,
    test_loss=0.5,
    test_metric=0.7,
    untrained_valid_loss=2.4,
    untrained_test_loss=2.5,
)
FAILED = replace(
    RECORD,
    diverged=True,
    **{f"{split}_loss": math.inf for split in ("train", "valid", "test")},
    **{f"{split}_metric": math.nan for split in ("train", "valid", "test")},
)


def test_a_key_names_everything_that_tells_two_runs_apart() -> None:
    assert PLANNED.key == "digits-mlp|report|wsd|3|x0.1|7"
    changes = {"task": "x", "contender": "x", "phase": "tuning", "trial": 0, "base_lr_factor": 0.2, "seed": 0}
    keys = {replace(PLANNED, **{name: value}).key for name, value in changes.items()}
    assert len({PLANNED.key, *keys}) == 1 + len(changes)
    assert [run.seed for run in PLANNED.at_seeds([4, 5])] == [4, 5]


def test_a_record_survives_json() -> None:
    assert RunRecord.from_json(from_line(to_line(RECORD.to_json()))) == RECORD
    assert json.loads(to_line(RECORD.to_json()))["cell"] == PLANNED.key


@pytest.mark.parametrize("read", [from_line, json.loads])
def test_a_failed_record_survives_json(read) -> None:
    line = to_line(FAILED.to_json())
    assert json.loads(line)["train_loss"] is json.loads(line)["test_metric"] is None
    back = RunRecord.from_json(read(line))
    for field in fields(RunRecord):
        old, new = getattr(FAILED, field.name), getattr(back, field.name)
        assert new == old or (math.isnan(new) and math.isnan(old)), field.name


@pytest.mark.parametrize("read", [from_line, json.loads])
def test_a_curve_survives_json(read) -> None:
    curve = RunCurve("a", [1, 2], [0.1, 0.0], [2.0, math.inf], [])
    assert RunCurve.from_json(read(to_line(curve.to_json()))) == curve
    assert curve.loss("train") == [2.0, math.inf]
    assert curve.loss("valid") == []


def test_losses_by_split() -> None:
    assert [RECORD.loss(split) for split in ("train", "valid", "test")] == [0.1 + 0.2, 0.4, 0.5]


def test_a_loss_counts_between_a_thousandth_of_the_untrained_one_and_all_of_it() -> None:
    assert [RECORD.scored(split) for split in ("train", "valid", "test")] == [0.1 + 0.2, 0.4, 0.5]
    assert [FAILED.scored(split) for split in ("train", "valid", "test")] == [2.3, 2.4, 2.5]
    tiny = replace(RECORD, train_loss=0.0, valid_loss=1e-9, test_loss=0.0026)
    assert [tiny.scored(split) for split in ("train", "valid", "test")] == [2.3e-3, 2.4e-3, 0.0026]
    assert replace(RECORD, train_loss=7.0).scored("train") == 2.3


def test_an_older_record_has_one_untrained_loss() -> None:
    old = {
        name: value
        for name, value in RECORD.to_json().items()
        if name[:11] != "untrained_v" and name[:11] != "untrained_t"
    }
    back = RunRecord.from_json(old)
    assert (back.untrained_loss, back.untrained_valid_loss, back.untrained_test_loss) == (2.3, 2.3, 2.3)


def test_an_older_record_calls_an_ablation_a_control() -> None:
    assert RunRecord.from_json({**RECORD.to_json(), "kind": "control"}).kind is Kind.ABLATION
    with pytest.raises(ValueError, match="'odd' is not a valid Kind"):
        RunRecord.from_json({**RECORD.to_json(), "kind": "odd"})
