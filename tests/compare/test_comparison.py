"""The comparison on tiny tasks: equal budgets, fresh seeds, two tables that never mix, and nothing lost on the way."""

import json
import math
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from metalr import schedules
from metalr.compare import comparison, results, selection
from metalr.compare.ablations import ablations_of, mean_replay, untrained
from metalr.compare.batches import batches_of, train_batch
from metalr.compare.catalog import CONTENDERS, get_contender
from metalr.compare.comparison import compare, load
from metalr.compare.contenders import Ablation, Contender, Kind, LearnedContender, of_schedule
from metalr.compare.plan import Plan
from metalr.compare.run_record import NO_TRIAL, PlannedRun, RunRecord
from metalr.compare.selection import Criterion
from metalr.compare.settings import Settings, trials_of
from metalr.control.actions import ActionSpec
from metalr.control.catalog import build_controller
from metalr.control.policy import PolicyController
from metalr.control.reference import RandomController, ReplayController
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.records import RunFolder, difference, from_line, to_line
from metalr.signals.observations import NUM_FEATURES
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task
from tests.support.policies import random_policy

SMALL = Settings(
    contenders=("constant", "linear", "cosine", "greedy"),
    trials=8,
    lr_range=(0.1, 10.0),
    tuning_seeds=2,
    report_seeds=4,
    factors=(0.1, 1.0),
    wrong_base=("cosine",),
    max_runs=16,
)


def policy(decisions: int = 5, scale: float = 0.3) -> PolicyController:
    """A policy with fixed random weights: it moves the LR by what it sees."""
    schedule = schedules.Linear()
    return random_policy(ActionSpec(), schedule=schedule, decisions=decisions, hidden=8, scales=(1.0, scale))


def student(**changes: object) -> Task:
    return make_task("teacher-student", **{"width": 4, "horizon": 20, "batch_size": 16, "num_variants": 2, **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> comparison.Comparison:
    folder = tmp_path_factory.mktemp("comparison") / "run"
    return compare(student(), folder, SMALL, controllers={"ppo": policy()})


def lines(folder: Path) -> list[str]:
    return (folder / "records.jsonl").read_text().splitlines()


def test_every_tuned_contender_has_the_same_number_of_trials(done: comparison.Comparison) -> None:
    tuning = [record for record in done.records if record.phase == "tuning"]
    runs = Counter(record.contender for record in tuning)
    assert set(runs) == set(SMALL.contenders)
    assert set(runs.values()) == {SMALL.trials * SMALL.tuning_seeds}
    for name in SMALL.contenders:
        own = [record for record in tuning if record.contender == name]
        assert {record.trial for record in own} == set(range(SMALL.trials))
        first = next(record for record in own if record.trial == 0)
        assert (first.base_lr_factor, first.parameters) == (1.0, get_contender(name).defaults)
        low, high = SMALL.lr_range
        assert all(low <= record.base_lr_factor <= high for record in own)
        assert len({str(sorted(record.parameters.items())) for record in own}) == (1 if name == "constant" else 8)


def test_changed_fields_of_the_search_change_the_trials() -> None:
    def trials(**changes: object) -> list:
        return trials_of(get_contender("cosine"), replace(SMALL, **changes))

    assert trials(trials=4) == trials()[:4]
    assert len(trials(extension=4)) == 12
    assert trials(lr_range=(0.01, 100.0))[1:] != trials()[1:]
    assert trials(seed=5)[1:] != trials()[1:]


def test_reports_are_on_fresh_seeds_and_all_on_the_same(done: comparison.Comparison) -> None:
    seeds = {phase: {r.seed for r in done.records if r.phase == phase} for phase in ("tuning", "report", "wrong-base")}
    assert seeds["tuning"].isdisjoint(seeds["report"])
    assert seeds["report"] == seeds["wrong-base"] == set(SMALL.seeds("report"))
    other = replace(SMALL, seed=1)
    assert set(other.seeds("tuning")).isdisjoint({*SMALL.seeds("tuning"), *SMALL.seeds("report")})
    for name in selection.contenders_of(done.records, "teacher-student"):
        for criterion in Criterion:
            runs = selection.chosen_runs(done.records, "teacher-student", name, criterion)
            assert [run.seed for run in runs] == SMALL.seeds("report")


def test_the_two_tables_never_mix(done: comparison.Comparison) -> None:
    """Garbling everything that a table must not read changes nothing in it."""
    task = "teacher-student"
    numbers = {f.name for f in fields(RunRecord) if f.name.endswith(("_loss", "_metric"))}
    read = {
        Criterion.TRAIN: {"train_loss", "untrained_loss"},
        Criterion.VALID: {"valid_loss", "untrained_valid_loss", "test_loss", "untrained_test_loss", "test_metric"},
    }
    for criterion, own in read.items():
        before = results.result_table(done.records, task, criterion)
        garbled = [replace(record, **dict.fromkeys(numbers - own, -123.0)) for record in done.records]
        after = results.result_table(garbled, task, criterion)
        assert repr(before) == repr(after)
        assert (before[0].test_metric is not None) == (criterion is Criterion.VALID)


@pytest.mark.parametrize(("criterion", "split"), [(Criterion.TRAIN, "train"), (Criterion.VALID, "test")])
def test_what_is_reported_is_never_what_has_chosen(
    done: comparison.Comparison, criterion: Criterion, split: str
) -> None:
    """The numbers of a row are losses of fresh runs on the reported split, worked out here from the records."""
    task = "teacher-student"
    for row in results.result_table(done.records, task, criterion):
        if not row.trials:
            continue
        by_trial: dict[int, list[RunRecord]] = {}
        for record in done.records:
            if (record.contender, record.phase) == (row.contender, "tuning"):
                by_trial.setdefault(record.trial, []).append(record)
        logs = {
            trial: sum(math.log(record.loss(criterion.selected_on)) for record in runs) / len(runs)
            for trial, runs in by_trial.items()
        }
        winner = min(sorted(logs), key=lambda trial: logs[trial])
        fresh = [r for r in done.records if (r.contender, r.phase, r.trial) == (row.contender, "report", winner)]
        losses = sorted(getattr(record, f"{split}_loss") for record in fresh)
        assert (row.num_runs, len(losses)) == (4, 4)
        assert row.median == pytest.approx((losses[1] + losses[2]) / 2)
        assert row.worst_decile == losses[-1]


def test_selection_reads_the_tuning_seeds_only(done: comparison.Comparison) -> None:
    task = "teacher-student"
    before = selection.best_trial(done.records, task, "cosine", Criterion.TRAIN)
    garbled = [replace(r, train_loss=1e-9) if r.phase != "tuning" else r for r in done.records]
    assert selection.best_trial(garbled, task, "cosine", Criterion.TRAIN) == before
    scores = selection.trial_scores(done.records, task, "cosine", Criterion.TRAIN)
    assert scores[before] == min(scores.values())
    assert selection.tuned_best(garbled, task, Criterion.TRAIN) == selection.tuned_best(
        done.records, task, Criterion.TRAIN
    )


def test_controllers_are_shown_beside_their_ablations(done: comparison.Comparison) -> None:
    names = selection.contenders_of(done.records, "teacher-student")
    beside = ["base schedule", "random policy", "untrained policy", "replay"]
    assert [name for name in names if name.startswith("ppo")] == ["ppo", *(f"ppo: {what}" for what in beside)]
    kinds = {record.contender: record.kind for record in done.records}
    assert kinds["ppo"] is Kind.LEARNED
    assert {kinds[f"ppo: {what}"] for what in beside} == {Kind.ABLATION}
    assert {json.loads(line)["kind"] for line in lines(done.folder)} == {"schedule", "rule", "controller", "ablation"}
    rows = results.result_table(done.records, "teacher-student", Criterion.TRAIN)
    assert next(row for row in rows if row.contender == "ppo").trials == 0


def test_wrong_base_table(done: comparison.Comparison) -> None:
    rows = results.wrong_base_table(done.records, "teacher-student")
    by_name = {(row.contender, row.factor): row for row in rows}
    assert by_name["tuned best", None].regret.value == 0.0
    assert by_name["tuned cosine", None].over_cosine.value == 1.0
    assert {factor for name, factor in by_name if name == "ppo"} == {0.1, 1.0}
    assert by_name["cosine", 0.1].loss.value > by_name["tuned cosine", None].loss.value
    assert ("linear", 0.1) not in by_name
    best = selection.tuned_best(done.records, "teacher-student", Criterion.TRAIN)
    own = [
        r.train_loss for r in selection.select(done.records, contender="ppo", phase="wrong-base", base_lr_factor=0.1)
    ]
    reference = [r.train_loss for r in selection.chosen_runs(done.records, "teacher-student", best, Criterion.TRAIN)]
    regrets = sorted(max(math.log(a / b), 0.0) for a, b in zip(own, reference, strict=True))
    assert by_name["ppo", 0.1].regret.value == pytest.approx((regrets[1] + regrets[2]) / 2)


def test_time_table(done: comparison.Comparison) -> None:
    rows = results.time_table(done.records, done.curves, "teacher-student")
    best = selection.tuned_best(done.records, "teacher-student", Criterion.VALID)
    assert {row.target_by for row in rows} == {best}
    assert all(0.0 <= row.reached <= 1.0 for row in rows)
    assert next(row for row in rows if row.contender == best).reached >= 0.25


def test_a_rerun_skips_everything_and_changes_nothing(done: comparison.Comparison, monkeypatch) -> None:
    before = lines(done.folder)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(comparison, "train_batch", refuse)
    again = compare(student(), done.folder, SMALL, controllers={"ppo": policy()})
    assert lines(done.folder) == before
    assert again.records == done.records


@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_ctrl_c_loses_nothing_and_the_rest_is_identical(
    done: comparison.Comparison, tmp_path: Path, stop_after: int
) -> None:
    calls = 0

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(student(), tmp_path / "run", SMALL, controllers={"ppo": policy()}, progress=interrupt)
    kept = lines(tmp_path / "run")
    assert kept == lines(done.folder)[: len(kept)]
    assert len(kept) >= stop_after
    # A process that dies while it writes leaves half a line, and may leave a batch written in part.
    partly = "".join(line + "\n" for line in kept[:-3]) + kept[-3][:40]
    (tmp_path / "run" / "records.jsonl").write_text(partly)
    compare(student(), tmp_path / "run", SMALL, controllers={"ppo": policy()})
    assert lines(tmp_path / "run") == lines(done.folder)
    assert load(tmp_path / "run").curves == done.curves


def test_a_folder_of_a_different_run_is_refused(done: comparison.Comparison, tmp_path: Path) -> None:
    before = lines(done.folder)
    with pytest.raises(ValueError, match=r"different run \(changed: report_seeds was 4, is 5.*name another folder"):
        compare(student(), done.folder, replace(SMALL, report_seeds=5), controllers={"ppo": policy()})
    with pytest.raises(ValueError, match="horizon was 20, is 22"):
        compare(student(horizon=22), done.folder, SMALL, controllers={"ppo": policy()})
    with pytest.raises(ValueError, match="data was"):
        compare(student(num_variants=3), done.folder, SMALL, controllers={"ppo": policy()})
    with pytest.raises(ValueError, match="sha256"):
        compare(student(), done.folder, SMALL, controllers={"ppo": policy(scale=0.4)})
    other = of_schedule("own", schedules.Linear(end=0.5))
    compare(student(), tmp_path / "own", replace(SMALL, contenders=("cosine",), factors=()), more_contenders=[other])
    changed = of_schedule("own", schedules.Linear(end=0.25))
    with pytest.raises(ValueError, match=r"end was 0\.5, is 0\.25"):
        compare(
            student(), tmp_path / "own", replace(SMALL, contenders=("cosine",), factors=()), more_contenders=[changed]
        )
    (tmp_path / "thesis").mkdir()
    tmp_path = tmp_path / "thesis"
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(ValueError, match="holds files but no run"):
        compare(student(), tmp_path, SMALL)
    assert (tmp_path / "thesis.tex").read_text() == "irreplaceable"
    assert len(list(tmp_path.iterdir())) == 1
    assert lines(done.folder) == before


def test_load_gives_back_what_compare_gave(done: comparison.Comparison) -> None:
    loaded = load(done.folder)
    assert loaded.settings == done.settings
    assert (loaded.records, loaded.curves, loaded.tasks) == (done.records, done.curves, done.tasks)
    assert {"python", "torch"} <= set(loaded.config["versions"])
    with pytest.raises(ValueError, match="expected a comparison"):
        load(done.folder / "nowhere")


def test_a_folder_that_was_written_twice_is_read_as_once(done: comparison.Comparison, tmp_path: Path) -> None:
    twice = Path(shutil.copytree(done.folder, tmp_path / "twice"))
    for name in ("records.jsonl", "curves.jsonl"):
        (twice / name).write_text((done.folder / name).read_text() * 2)
    loaded = load(twice)
    assert (loaded.records, loaded.curves) == (done.records, done.curves)


def test_a_record_without_its_fields_is_named(done: comparison.Comparison, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(done.folder, tmp_path / "damaged"))
    first, *rest = lines(done.folder)
    for record in ({"cell": "a"}, json.loads(first) | {"kind": "odd"}, json.loads(first) | {"more": 1}):
        (damaged / "records.jsonl").write_text("\n".join([json.dumps(record), *rest, ""]))
        with pytest.raises(ValueError, match=r"records\.jsonl with a damaged record of .*delete that line"):
            load(damaged)


def test_an_edge_of_the_grid_is_flagged(tmp_path: Path) -> None:
    settings = replace(SMALL, contenders=("constant",), lr_range=(1e-4, 1.0), factors=(), ablations=False)
    found = compare(make_task("quadratic", horizon=20), tmp_path / "run", settings)
    (row,) = results.result_table(found.records, "quadratic", Criterion.TRAIN)
    assert row.edges == ["lr high"]
    wide = replace(settings, lr_range=(1e-3, 1e3))
    found = compare(make_task("quadratic", horizon=20), tmp_path / "wide", wide)
    (row,) = results.result_table(found.records, "quadratic", Criterion.TRAIN)
    assert row.edges == []


def test_diverged_and_idle_runs_are_counted_and_never_chosen(tmp_path: Path) -> None:
    # The quadratic (w + 1)² diverges above lr 1; its base LR is 0.2.
    settings = replace(SMALL, contenders=("constant",), factors=(1e-6, 1.0, 10.0), wrong_base=None)
    found = compare(make_task("quadratic", horizon=20), tmp_path / "run", settings)
    rows = {row.factor: row for row in results.wrong_base_table(found.records, "quadratic", ["constant"])}
    assert (rows[10.0].diverged, rows[10.0].no_progress) == (4, 0)
    assert rows[10.0].loss.value == 36.0  # the untrained loss
    assert (rows[1e-6].diverged, rows[1e-6].no_progress) == (0, 4)
    assert (rows[1.0].diverged, rows[1.0].no_progress) == (0, 0)
    (row,) = results.result_table(found.records, "quadratic", Criterion.TRAIN)
    assert row.diverged == 0
    assert all(math.isinf(r.train_loss) for r in found.records if r.diverged)
    assert "Infinity" not in (tmp_path / "run" / "records.jsonl").read_text()


def test_targets_and_tuned_controllers(tmp_path: Path) -> None:
    settings = replace(
        SMALL,
        contenders=("cosine", "hypergradient"),
        trials=3,
        targets=True,
        tune_controllers=True,
        factors=(),
    )
    found = compare(
        [student(), make_task("quadratic", horizon=20)], tmp_path / "run", settings, controllers={"ppo": policy()}
    )
    rows = results.time_table(found.records, found.curves, "teacher-student")
    assert rows[0].target_by.startswith("target: ")
    tuned = [
        row.trials
        for row in results.result_table(found.records, "teacher-student", Criterion.TRAIN)
        if row.contender == "ppo"
    ]
    assert sorted(tuned) == [0, 3]
    noisy = make_task("noisy-quadratic", dimensions=5, horizon=20)
    found_noisy = compare(noisy, tmp_path / "noisy", replace(settings, factors=(1.0,), wrong_base=None))
    assert {record.contender for record in found_noisy.records} == {"cosine"}
    assert len(results.result_table(found.records, "quadratic", Criterion.VALID)) == len(
        results.result_table(found.records, "teacher-student", Criterion.VALID)
    )


def test_a_batch_of_many_contenders_is_each_of_them_alone() -> None:
    """The batch driver sets the LRs that `run_episode` sets for one controller."""
    task = student()
    contenders: dict[str, Contender] = {
        "linear": of_schedule("linear", schedules.Linear()),
        "greedy": get_contender("greedy"),
        "ppo": LearnedContender(name="ppo", learned=policy(decisions=10)),
    }
    batch = [
        PlannedRun(task.name, name, "report", NO_TRIAL, (), 0.5, 0.5 * task.base_lr, seed)
        for name in contenders
        for seed in (5, 6, 7)
    ]
    records, curves = train_batch(task, contenders, batch, curves="full", dtype=torch.float64)
    for index, name in enumerate(contenders):
        controller = contenders[name].controller({}, task.horizon)
        runs = BatchedRuns(task, 3, dtype=torch.float64)
        base_lr = torch.full((3,), 0.5 * task.base_lr, dtype=torch.float64)
        episode = run_episode(controller, runs, torch.tensor([5, 6, 7]), base_lr)
        own = records[3 * index : 3 * index + 3]
        for split in ("train", "valid", "test"):
            expected = episode.final[split][0].tolist()
            assert [record.loss(split) for record in own] == pytest.approx(expected, rel=1e-9)
        assert curves[3 * index].lr == pytest.approx(episode.lr[::2, 0, 0].tolist(), rel=1e-5)


def test_batches_separate_what_cannot_share_one() -> None:
    task = student()
    contenders = {name: get_contender(name) for name in ("cosine", "hypergradient")}
    contenders["ppo"] = LearnedContender(name="ppo", learned=policy(decisions=5))
    planned = [
        PlannedRun(task.name, name, "report", NO_TRIAL, (), 1.0, 0.05, seed) for name in contenders for seed in range(5)
    ]
    cut = batches_of(planned, contenders, task, max_runs=4)
    assert [len(batch) for batch in cut] == [4, 1, 4, 1, 4, 1]
    assert all(len({run.contender for run in batch}) == 1 for batch in cut)


def test_the_random_policy_does_not_depend_on_the_batch() -> None:
    """The same seeds move the LR in the same way in a small and in a large batch, to the last bit."""
    task, spec = student(), ActionSpec()
    random = RandomController(spec, schedules.Linear(), decisions=5)
    contenders: dict[str, Contender] = {
        "random": Ablation(name="random", variant=random),
        "linear": of_schedule("linear", schedules.Linear()),
    }

    def lrs(name: str, seeds: list[int]) -> list[PlannedRun]:
        return [PlannedRun(task.name, name, "report", NO_TRIAL, (), 1.0, task.base_lr, seed) for seed in seeds]

    _, alone = train_batch(task, contenders, lrs("random", [7]), curves="train")
    _, among = train_batch(task, contenders, [*lrs("random", [5, 6, 7, 8] * 9)], curves="train")
    assert alone[0].lr == among[2].lr == among[6].lr
    assert among[0].lr != among[1].lr
    assert len(set(alone[0].lr)) == 5
    # The observations do differ: the training itself agrees to rounding only.
    multipliers = {curve.lr[0] for curve in among}
    assert len(multipliers) == 4
    other = Ablation(name="random", variant=replace(random, seed=1))
    _, moved = train_batch(task, {"random": other}, lrs("random", [7]), curves="train")
    assert moved[0].lr != alone[0].lr


def test_a_final_loss_is_the_mean_over_at_most_4096_examples() -> None:
    inputs = torch.linspace(-1.0, 1.0, 5000)[:, None]
    targets = torch.where(torch.arange(5000) < 4096, 0.0, 1e6)[:, None]
    task = Task(
        lambda: torch.nn.Linear(1, 1),
        (inputs, targets),
        torch.nn.functional.mse_loss,
        name="line",
        optimizer="sgd",
        base_lr=1e-9,
        horizon=4,
    )
    run = PlannedRun("line", "constant", "report", NO_TRIAL, (), 1.0, 1e-9, 0)
    (record,), _ = train_batch(task, {"constant": get_contender("constant")}, [run], dtype=torch.float64)
    runs = BatchedRuns(task, 1, dtype=torch.float64)
    runs.init(torch.tensor([0]))
    model = runs.module_of(0)
    with torch.no_grad():
        expected = torch.nn.functional.mse_loss(model(inputs[:4096].double()), targets[:4096].double())
    assert record.untrained_loss == pytest.approx(expected.item())
    assert record.train_loss < 1e3


def test_an_extension_is_made_for_everyone_alike_and_counted(tmp_path: Path) -> None:
    # The base LRs are 0.2 and 2e-4; the quadratic wants 0.5. The second task's best LR lies far beyond its range.
    settings = replace(
        SMALL, contenders=("constant", "linear"), lr_range=(0.1, 10.0), trials=6, extension=2, factors=(), price_at=(1,)
    )
    small = replace(make_task("quadratic", horizon=20, base_lr=2e-4), name="small")
    found = compare([make_task("quadratic", horizon=20), small], tmp_path / "run", settings)
    trials = {
        (task, name): len(selection.trial_scores(found.records, task, name, Criterion.TRAIN))
        for task in ("quadratic", "small")
        for name in ("constant", "linear")
    }
    assert trials["small", "constant"] == trials["small", "linear"] == 8
    rows = results.result_table(found.records, "small", Criterion.TRAIN)
    assert [row.trials for row in rows] == [8, 8]
    assert [row.edges for row in rows] == [["lr high"]] * 2
    beyond = [r.base_lr_factor for r in found.records if r.task == "small" and r.phase == "tuning" and r.trial >= 6]
    assert max(beyond) > 10.0
    assert min(beyond) < 0.1
    assert max(r.trial for r in found.records if r.task == "small" and r.phase == "report") >= 6
    assert compare([make_task("quadratic", horizon=20), small], tmp_path / "run", settings).records == found.records


def test_without_an_edge_there_is_no_extension(tmp_path: Path) -> None:
    # Several LRs reach the lowest loss that counts, so the best, the first of them, is no extreme.
    settings = replace(SMALL, contenders=("constant",), extension=4, factors=())
    found = compare(make_task("quadratic", horizon=60), tmp_path / "run", settings)
    assert len(selection.trial_scores(found.records, "quadratic", "constant", Criterion.TRAIN)) == SMALL.trials


def test_the_price_of_tuning(done: comparison.Comparison) -> None:
    """After n trials: the best of the first n by its tuning score, its loss on fresh seeds."""
    task = "teacher-student"
    for criterion in Criterion:
        rows = {row.contender: row for row in results.price_table(done.records, task, criterion)}
        assert set(rows) == set(SMALL.contenders)
        for name, row in rows.items():
            assert list(row.loss) == [1, 4, 8]
            scores = selection.trial_scores(done.records, task, name, criterion)
            for count, loss in row.loss.items():
                winner = min(range(count), key=lambda trial: scores[trial])
                runs = selection.select(done.records, task=task, contender=name, phase="report", trial=winner)
                assert len(runs) == SMALL.report_seeds
                found = sorted(run.scored(criterion.reported_on) for run in runs)
                assert loss.value == pytest.approx((found[1] + found[2]) / 2)
                assert loss.low <= loss.value <= loss.high
        table = results.result_table(done.records, task, criterion)
        full = {row.contender: row.iqm.value for row in table if row.trials}
        assert {name: row.loss[8].value for name, row in rows.items()} == full
        best = selection.tuned_best(done.records, task, criterion)
        assert rows[best].over_best[8].value == 1.0


def test_prices_are_reported_where_they_are_asked_for(tmp_path: Path) -> None:
    settings = replace(SMALL, contenders=("constant",), price_at=(), factors=())
    found = compare(student(), tmp_path / "run", settings)
    (row,) = results.price_table(found.records, "teacher-student", Criterion.TRAIN)
    assert SMALL.trials in row.loss
    winners = {selection.best_trial(found.records, "teacher-student", "constant", c) for c in Criterion}
    assert {r.trial for r in found.records if r.phase == "report"} == winners


def test_averages_with_and_without_the_tasks_that_rule_them() -> None:
    ratios = {
        "steady": {"a": 1.1, "b": 1.0, "c": 1.1, "d": 1.2},
        "odd": {"a": 1.0, "b": 1.1, "c": 1.0, "d": 12.0},
        "absent": {"a": 1.0, "b": 1.0, "c": 1.0},
    }
    rows, ruling = results.average_table(ratios)
    assert ruling == ["d"]
    by_name = {row.contender: row for row in rows}
    assert [row.contender for row in rows] == ["absent", "steady", "odd"]
    assert by_name["odd"].mean == pytest.approx((1.1 * 12.0) ** 0.25)
    assert by_name["odd"].without_ruling == pytest.approx(1.1 ** (1 / 3))
    assert by_name["odd"].median == pytest.approx(math.sqrt(1.1))
    assert by_name["absent"].mean == by_name["absent"].without_ruling == 1.0
    assert results.average_table({"even": {"a": 1.1, "b": 1.1}})[1] == []


def test_a_learner_is_judged_over_its_training_seeds(done: comparison.Comparison) -> None:
    """Five copies of one controller vary in nothing but their evaluation seeds; other losses make it wider."""
    own = selection.select(done.records, contender="ppo", phase="wrong-base")
    scales = (1.0, 1.0, 1.0, 1.0, 1.0), (0.5, 0.8, 1.0, 1.25, 2.0)
    widths = []
    for scale in scales:
        names = [f"ppo {index}" for index in range(5)]
        copies = [
            replace(record, contender=name, train_loss=record.train_loss * factor, untrained_loss=100.0)
            for name, factor in zip(names, scale, strict=True)
            for record in own
        ]
        rows = results.learner_table([*done.records, *copies], ["teacher-student"], {"ppo": names})
        assert [(row.learner, row.factor, row.training_seeds) for row in rows] == [("ppo", 0.1, 5), ("ppo", 1.0, 5)]
        best = selection.tuned_best_runs(done.records, "teacher-student", Criterion.TRAIN)
        at_one = selection.select(own, base_lr_factor=1.0)
        logs = [math.log(a.train_loss / b.train_loss) for a, b in zip(at_one, best, strict=True)]
        assert rows[1].over_reference.value == pytest.approx(math.exp(sum(logs) / 4))
        widths.append(rows[1].over_reference.high / rows[1].over_reference.low)
    assert widths[1] > 1.5 * widths[0]
    with pytest.raises(ValueError, match="at least 5 training seeds"):
        results.learner_table(done.records, ["teacher-student"], {"ppo": ["ppo"]})


def test_a_failed_search_counts_as_untrained_and_the_ones_that_learn_win(tmp_path: Path) -> None:
    """Geometric means: a trial that diverges on one seed of two is behind one that learns on both."""
    found = compare(student(), tmp_path / "run", replace(SMALL, contenders=("constant",), factors=()))
    tuning = selection.tuning_runs(found.records, "teacher-student", "constant")
    changed = [
        replace(r, train_loss=math.inf if r.seed == 0 else 0.3, diverged=r.seed == 0, untrained_loss=1.2)
        if r.trial == 2
        else replace(r, train_loss=0.5, untrained_loss=1.2)
        for r in tuning
    ]
    scores = selection.trial_scores(changed, "teacher-student", "constant", Criterion.TRAIN)
    assert scores[2] == pytest.approx(math.sqrt(1.2 * 0.3))
    assert scores[0] == pytest.approx(0.5)
    assert selection.best_trial(changed, "teacher-student", "constant", Criterion.TRAIN) != 2


def test_ablations() -> None:
    controller = policy()
    assert set(ablations_of(controller)) == {"base schedule", "random policy", "untrained policy"}
    fresh = untrained(controller, seed=1)
    assert [w.shape for w in fresh.network.weights] == [w.shape for w in controller.network.weights]
    assert not torch.equal(fresh.network.weights[0], controller.network.weights[0])
    multipliers = torch.tensor([[[1.0], [4.0]], [[0.5], [0.5]]])
    replay = mean_replay(controller, multipliers)
    assert replay.multipliers == pytest.approx((2.0, 0.5))
    assert build_controller(json.loads(json.dumps(replay.config())), {}) == replay
    state = replay.init(torch.zeros(1, 1))
    played = []
    for _ in range(3):
        value, state = replay(torch.zeros(1, 1, NUM_FEATURES), state)
        played.append(value.item())
    assert played == pytest.approx([2.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="positive finite"):
        ReplayController((1.0, -1.0))


def test_a_schedule_controllers_replay_is_itself(tmp_path: Path) -> None:
    record = mean_replay(policy(), torch.ones(5, 3, 1))
    assert record.multipliers == (1.0,) * 5


def test_records_survive_json() -> None:
    record = {"cell": "a", "train_loss": math.inf, "test_metric": math.nan, "valid_loss": 0.1 + 0.2}
    back = from_line(to_line(record))
    assert back["train_loss"] == math.inf
    assert math.isnan(back["test_metric"])
    assert back["valid_loss"] == record["valid_loss"]
    assert from_line(to_line({"cell": "a", "valid_loss": [1.0, math.inf]}))["valid_loss"] == [1.0, math.inf]


def test_a_run_folder_writes_each_record_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "test", {"seed": 0})
    folder.append([{"cell": "a"}, {"cell": "b"}])
    folder.append([{"cell": "b"}, {"cell": "c"}], [{"cell": "c"}])
    again = RunFolder(tmp_path / "run", "test", {"seed": 0})
    assert [record["cell"] for record in again.records] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="of a test, expected one of a training"):
        RunFolder(tmp_path / "run", "training", {"seed": 0})
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b was 1, is 3"]


def test_bad_input_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        Settings(contenders=("cosin",))
    with pytest.raises(ValueError, match="0 < low <= 1 <= high"):
        Settings(lr_range=(1.0, 0.1))
    with pytest.raises(ValueError, match="got extension -1"):
        Settings(extension=-1)
    with pytest.raises(ValueError, match="got trials 0"):
        Settings(trials=0)
    with pytest.raises(ValueError, match="got report_seeds 0"):
        Settings(report_seeds=0)
    with pytest.raises(ValueError, match=r"factors \(-1.0,\)"):
        Settings(factors=(-1.0,))
    with pytest.raises(ValueError, match="task names"):
        compare([student(), student()], tmp_path / "run", SMALL)
    with pytest.raises(ValueError, match="contender names"):
        compare(student(), tmp_path / "run", SMALL, controllers={"cosine": policy()})
    with pytest.raises(ValueError, match="at least two inner steps for each decision"):
        compare(student().with_(horizon=1), tmp_path / "run", SMALL, controllers={"ppo": policy(decisions=15)})
    assert not (tmp_path / "run").exists()


def test_a_users_function_is_compared_like_any_other(tmp_path: Path) -> None:
    own = of_schedule("own", schedules.Function(torch.ones_like))
    settings = replace(SMALL, contenders=("constant",), factors=())
    found = compare(student(), tmp_path / "run", settings, more_contenders=[own])
    by_name = {row.contender: row for row in results.result_table(found.records, "teacher-student", Criterion.TRAIN)}
    assert by_name["own"].median == pytest.approx(by_name["constant"].median, rel=1e-6)


def test_a_contender_of_the_users_keeps_its_name_among_the_wrong_bases(tmp_path: Path) -> None:
    own = of_schedule("cosine", schedules.Constant())
    settings = replace(SMALL, contenders=("linear",), wrong_base=("cosine",), factors=(1.0,))
    plan = Plan([student()], settings, {}, {}, [own])
    assert plan.contenders(student())["cosine"] is own


def test_none_is_all() -> None:
    every = Plan([student()], replace(SMALL, contenders=None, wrong_base=None), {}, {}, [])
    assert [contender.name for contender in every.tuned] == list(CONTENDERS)
    assert every.wrong == every.tuned
    assert Plan([student()], replace(SMALL, contenders=()), {}, {}, []).tuned == []


def test_no_contenders_is_not_all(done: comparison.Comparison) -> None:
    rows = results.wrong_base_table(done.records, "teacher-student", contenders=[])
    assert [row.contender for row in rows] == ["tuned cosine", "tuned best"]


def test_progress_counts_every_run(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}
    settings = replace(SMALL, contenders=("constant",), factors=())
    compare(
        student(), tmp_path / "run", settings, progress=lambda d, n, label: seen.setdefault(label, []).extend((d, n))
    )
    assert seen["teacher-student: tuning"][-2:] == [16, 16]


def test_ablations_decide_when_their_controller_does():
    controller = random_policy(spacing="doubling", decisions=5)
    runs = BatchedRuns(make_task("quadratic", horizon=100), 2)
    episode = run_episode(controller, runs, torch.tensor([0, 1]), torch.full((2,), 0.1), splits=())
    replay = mean_replay(controller, episode.multipliers)
    variants = [*ablations_of(controller).values(), replay, untrained(controller)]
    steps = controller.decision_steps(100)
    assert len(steps) > 5
    assert all(variant.decision_steps(100) == steps for variant in variants)
    again = run_episode(replay, runs, torch.tensor([0, 1]), torch.full((2,), 0.1), splits=())
    assert torch.allclose(again.multipliers[:, 0], episode.multipliers.log().mean(1).exp(), rtol=1e-5)
