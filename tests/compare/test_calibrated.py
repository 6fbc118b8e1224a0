"""The calibrated setting: fitted where the answer is known, on other tasks only, and blind to the guess."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metalr.compare import calibrated, results
from metalr.compare.calibrated import LossCurve, curves_of, fit, leave_one_out, optimizer_kind
from metalr.compare.comparison import Comparison, compare
from metalr.compare.contenders import FixedContender, Kind
from metalr.compare.selection import Criterion, select
from metalr.compare.settings import Settings
from metalr.optimizers.classic import SGD, Adam, AdamW
from metalr.reports import figures, report
from metalr.schedules import WSD, Linear
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task

SETTINGS = Settings(
    contenders=("linear", "wsd-linear-lr"),
    trials=8,
    lr_range=(0.1, 10.0),
    tuning_seeds=2,
    report_seeds=3,
    factors=(0.1, 10.0),
    wrong_base=("linear",),
)


def bowl(task: str, best: float, kind: str = "SGD", weight: float = 1.0) -> LossCurve:
    """Regret grows with the square of the distance of the log LR from the best one's."""
    log_lr = np.log(best) + np.linspace(-4.0, 4.0, 81)
    return LossCurve(task, kind, log_lr, weight * (log_lr - np.log(best)) ** 2)


def students() -> list[Task]:
    shape = {"width": 4, "horizon": 20, "batch_size": 16, "num_variants": 2}
    adam = make_task("teacher-student", **shape, optimizer="adam", base_lr=0.01)
    wide = {**shape, "width": 12, "base_lr": 0.3}
    tasks = [make_task("teacher-student", **shape), make_task("teacher-student", **wide), adam]
    return [replace(task, name=name) for task, name in zip(tasks, ("narrow", "wide", "adam"), strict=True)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(students(), tmp_path_factory.mktemp("calibrated") / "run", SETTINGS)


def test_kinds_are_type_and_momentum() -> None:
    kinds = [optimizer_kind(optimizer) for optimizer in (SGD(), SGD(momentum=0.9), Adam(), AdamW(), SGD(clip_norm=1.0))]
    assert kinds == ["SGD", "SGD, momentum 0.9", "Adam", "AdamW", "SGD"]


def test_the_fit_minimises_the_mean_regret() -> None:
    # Two parabolas, the second three times as steep: their sum is lowest at a quarter of the way from its bottom.
    found = fit([bowl("a", 0.01), bowl("b", 1.0, weight=3.0), bowl("c", 0.5, kind="Adam")])
    assert found["SGD"] == pytest.approx(0.01**0.25 * 1.0**0.75, rel=0.03)
    assert found["Adam"] == pytest.approx(0.5, rel=0.03)


def test_beyond_the_lrs_that_were_tried_the_regret_rises() -> None:
    falling = LossCurve("a", "SGD", np.log([0.01, 0.1]), np.array([1.0, 0.0]))
    assert falling.at(np.log([0.1, 1.0])).tolist() == pytest.approx([0.0, 0.7 * np.log(10.0)])
    assert falling.at(np.log([0.001])).tolist() == pytest.approx([1.0 + 0.7 * np.log(10.0)])
    assert fit([falling, bowl("b", 10.0)])["SGD"] > 0.1


def test_a_task_has_no_say_in_its_own_setting() -> None:
    curves = [bowl("a", 0.01), bowl("b", 1.0), bowl("c", 0.5, kind="Adam")]
    found = leave_one_out(curves)
    assert set(found) == {"a", "b"}  # "c" is alone in its kind
    assert (found["a"], found["b"]) == (pytest.approx(1.0, rel=0.03), pytest.approx(0.01, rel=0.03))


def test_curves_come_from_the_trials_of_one_contender(done: Comparison) -> None:
    curves = curves_of(done.records, {"narrow": "SGD", "wide": "SGD", "nowhere": "SGD"})
    assert [curve.task for curve in curves] == ["narrow", "wide"]
    narrow = curves[0]
    assert len(narrow.log_lr) == SETTINGS.trials
    assert np.all(np.diff(narrow.log_lr) > 0.0)
    assert narrow.regret.min() == 0.0
    trials = select(done.records, task="narrow", contender="wsd-linear-lr", phase="tuning")
    assert {record.trial for record in trials} == set(range(SETTINGS.trials))
    assert all(record.parameters == {} for record in trials)


def test_a_comparison_shows_the_setting_that_was_fitted_on_its_other_tasks(done: Comparison) -> None:
    kinds = {task.name: optimizer_kind(task.optimizer) for task in students()}
    expected = leave_one_out(curves_of(done.records, kinds))
    for task in ("narrow", "wide"):
        runs = select(done.records, task=task, contender=calibrated.NAME)
        assert {run.kind for run in runs} == {Kind.FIXED}
        assert {run.base_lr for run in runs} == {expected[task]}
        assert {run.phase for run in runs} == {"report", "wrong-base"}
        assert len(runs) == 2 * SETTINGS.report_seeds  # one base LR stands for all: it makes no difference
    assert select(done.records, task="adam", contender=calibrated.NAME) == []
    others = [record for record in done.records if record.task != "narrow"]
    assert leave_one_out(curves_of(others, kinds)) == {}


def test_it_is_a_reference_in_the_table_of_wrong_base_lrs(done: Comparison) -> None:
    rows = {(row.contender, row.factor): row for row in results.wrong_base_table(done.records, "narrow")}
    assert rows["calibrated", None].over_calibrated.value == 1.0
    linear = rows["linear", 0.1]
    own = select(done.records, task="narrow", contender="linear", phase="wrong-base", base_lr_factor=0.1)
    reference = select(done.records, task="narrow", contender="calibrated", phase="report")
    ratios = sorted(a.train_loss / b.train_loss for a, b in zip(own, reference, strict=True))
    assert linear.over_calibrated.value == pytest.approx(ratios[1])
    assert all(row.over_calibrated is None for row in results.wrong_base_table(done.records, "adam"))
    assert "calibrated setting's" in report.text(done)


def test_it_is_a_line_in_the_figure(done: Comparison) -> None:
    pytest.importorskip("matplotlib")
    (axis,) = figures.regret_figure(done, "narrow").axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    rows = {row.contender: row for row in results.wrong_base_table(done.records, "narrow")}
    assert set(lines["calibrated"].get_ydata()) == {rows["calibrated"].regret.value}
    assert len(lines["linear"].get_xdata()) == 2


def test_a_fixed_schedule_ignores_the_guess(tmp_path: Path) -> None:
    """Two tasks that differ in their base LR alone: the fixed contender has the same runs on both."""
    task = students()[0]
    fixed = FixedContender(name="mine", schedule=Linear(), lrs={task.name: 0.125})
    settings = replace(SETTINGS, contenders=("linear",), trials=2)
    runs = []
    for base_lr in (task.base_lr, 100.0 * task.base_lr):
        moved = replace(task, base_lr=base_lr)
        found = compare(moved, tmp_path / str(base_lr), settings, more_contenders=[fixed])
        runs.append([record.train_loss for record in select(found.records, contender="mine")])
        row = next(row for row in results.result_table(found.records, task.name, Criterion.TRAIN) if row.trials == 0)
        assert (row.contender, row.base_lr) == ("mine", 0.125)
    assert runs[0] == runs[1]


def test_the_schedule_is_the_one_that_was_fitted() -> None:
    assert calibrated.calibrated({"a": 0.1}).schedule == WSD(shape="linear")
