"""Work in this process and on local cores: the same results, nothing lost, nothing doubled, nothing left behind."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metalr.agents.clone_folder import CloneFolder
from metalr.agents.clone_runs import CloneConfig
from metalr.agents.clone_training import CloneSettings
from metalr.agents.training_folder import CONTROLLER
from metalr.artefacts.controller_file import load_card, load_controller
from metalr.compare.bayesian import search
from metalr.compare.catalog import get_contender
from metalr.compare.comparison import compare
from metalr.compare.oracle import Grid
from metalr.compare.settings import Settings
from metalr.tasks.catalog import make_task
from metalr.tasks.general import draw_task
from metalr.tasks.task import Task
from metalr.workers import TRIES, Costs, Unit, UnitError, Workers
from tests.support import units

pytest.importorskip("joblib")
pytest.importorskip("cloudpickle")

ROOT = Path(__file__).parent.parent
SMALL = Settings(
    contenders=("constant", "cosine", "greedy"),
    trials=4,
    tuning_seeds=2,
    report_seeds=2,
    factors=(0.1, 1.0),
    wrong_base=("cosine",),
    max_runs=6,
)
CLONE = CloneConfig(
    grid=Grid(num_lrs=5, decades=4.0, seeds=(0, 1)),
    decisions=(5, 8),
    runs_per_task=4,
    rounds=1,
    steps=4,
    batch=16,
    hidden_size=4,
)


def tasks() -> list[Task]:
    return [make_task(name, horizon=20) for name in ("teacher-student", "quadratic")]


def draw(index: int) -> Task:
    return draw_task("meta-train", index).with_(horizon=40, batch_size=8)


def clone(folder: Path, workers: Workers) -> dict[str, torch.Tensor]:
    """Train a tiny clone; its weights."""
    files = CloneFolder(folder, draw, CLONE)
    files.train(0, range(4), workers)
    return files.train(1, range(4), workers).state_dict()


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every record and curve of a comparison."""
    return {name: (folder / name).read_bytes() for name in ("records.jsonl", "curves.jsonl")}


def same_controllers(*paths: Path) -> None:
    """Assert that two controllers have the same bits, and cards that differ in the seconds that they took alone."""
    alone, together = (load_controller(path).tensors() for path in paths)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    alone, together = (load_card(path)["about"] | {"seconds": 0} for path in paths)
    assert alone == together


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison in this process."""
    folder = tmp_path_factory.mktemp("here") / "run"
    compare(tasks(), folder, SMALL)
    return folder


def test_results_are_the_same_and_come_in_order_where_that_is_asked_for(two: Workers) -> None:
    shared = torch.arange(3.0)
    work = [Unit((number,), shared) for number in range(8)]
    with Workers() as alone:
        expected = [(index, result) for index, (result, _, _) in alone.each(units.add, work)]
    assert [index for index, _ in expected] == list(range(8))
    found = list(two.each(units.add, work, ordered=True))
    assert all(torch.equal(result, shared + index) for index, result in expected)
    assert [(index, result.tolist()) for index, (result, _, _) in found] == [(i, r.tolist()) for i, r in expected]
    assert sorted(index for index, _ in two.each(units.add, work)) == list(range(8))
    processes = {process for _, (_, process, _) in found}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {threads for _, (_, _, threads) in found} == {1}


def test_what_units_share_is_built_once_in_each_worker(two: Workers) -> None:
    shared = [[1, 2], [3]]
    found = [result for _, result in two.each(units.identity, [Unit((n,), shared[n // 5]) for n in range(10)])]
    assert len(set(found)) <= 4


@pytest.mark.slow
def test_lost_units_are_done_again_and_bad_ones_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    got: list[tuple[int, int]] = []
    with Workers(2) as workers, caplog.at_level(logging.ERROR, "metalr"):
        results = workers.each(units.fragile, [Unit((n,), tmp_path) for n in range(8)], ordered=True)
        with pytest.raises(UnitError, match=r"2 of 8 units failed 3 times each \(.*unit [34]; all others are done"):
            got.extend(results)
        assert (workers.costs.units, workers.costs.lost, workers.costs.failed) == (6, 1 + TRIES, 1 + TRIES)
    assert got == [(n, n) for n in (0, 1, 2, 5, 6, 7)]
    assert "ValueError: no 3" in caplog.text
    tries = [len(list(tmp_path.glob(f"{n}-*"))) for n in range(8)]
    assert tries == [1, 2, 2, TRIES, TRIES, 1, 1, 1]


def test_in_this_process_an_error_ends_the_work_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no 2"):
        list(Workers().each(units.fragile, [Unit((n,), tmp_path) for n in (0, 2, 5)]))
    assert not list(tmp_path.glob("5-*"))


def test_work_that_was_given_up_leaves_the_workers_free(two: Workers) -> None:
    results = two.each(units.add, [Unit((n,), torch.zeros(1)) for n in range(8)])
    next(results)
    results.close()
    assert len(list(two.each(units.add, [Unit((9,), torch.zeros(1))]))) == 1


def test_what_cannot_be_sent_is_explained(two: Workers) -> None:
    with pytest.raises(ValueError, match="got work that cannot be sent to another process"):
        list(two.each(units.add, [Unit((1,), (number for number in range(3)))]))


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 2, "cluster": "somewhere"}])
def test_senseless_places_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="expected at least 1 worker, or a cluster"):
        Workers(**arguments)


def test_costs_say_how_much_was_overhead() -> None:
    costs = Costs(workers=2, units=8, lost=1, work=6.0, wall=4.0)
    assert costs.overhead == pytest.approx(0.25)
    assert str(costs) == (
        "8 units (1 lost and 0 failed on the way): 6.0 s of work in 4.0 s on 2 workers; 25% of their time was overhead"
    )


def test_a_comparison_is_the_same_on_two_workers(here: Path, two: Workers, tmp_path: Path) -> None:
    shown: list[tuple[int, int, str]] = []
    compare(tasks(), tmp_path, SMALL, workers=two, progress=lambda *seen: shown.append(seen))
    assert contents(tmp_path) == contents(here)
    by_label = {label: [done for done, _, of in shown if of == label] for _, _, label in shown}
    assert all(done == sorted(done) for done in by_label.values())
    assert {label: done[-1] for label, done in by_label.items()} == {label: total for _, total, label in shown}


def test_a_comparison_that_was_stopped_resumes_on_other_workers(here: Path, two: Workers, tmp_path: Path) -> None:
    def stop(done: int, total: int, label: str) -> None:
        if label == "quadratic: tuning":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(tasks(), tmp_path, SMALL, workers=two, progress=stop)
    begun = (tmp_path / "records.jsonl").read_bytes()
    assert begun
    assert contents(here)["records.jsonl"].startswith(begun)
    compare(tasks(), tmp_path, SMALL)
    assert contents(tmp_path) == contents(here)


def test_a_clone_is_the_same_on_two_workers(two: Workers, tmp_path: Path) -> None:
    alone, together = clone(tmp_path / "alone", Workers()), clone(tmp_path / "together", two)
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    for path in sorted((tmp_path / "alone").rglob("*.pt")):
        other = tmp_path / "together" / path.relative_to(tmp_path / "alone")
        first, second = (torch.load(p, weights_only=True) for p in (path, other))
        assert str(first) == str(second)


def test_a_clone_that_the_command_trains_is_the_same_on_two_workers(two: Workers, tmp_path: Path) -> None:
    folders = pytest.importorskip("metalr.agents.run_folder")
    settings = CloneSettings(rounds=1, runs_per_task=4, num_lrs=3, seeds=2, hidden_size=4, steps=4, batch=16)
    options = folders.TrainOptions(agent="clone", task="teacher-student", horizon=20, decisions=5, clone=settings)
    before = two.costs.units
    for name, workers in {"alone": None, "together": two}.items():
        folders.train(options, tmp_path / name, workers=workers)
    assert two.costs.units == before + 3 * 8  # curves and two rounds of rollouts, on eight plans
    same_controllers(tmp_path / "alone" / CONTROLLER, tmp_path / "together" / CONTROLLER)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_an_agent_that_learns_from_several_tasks_is_the_same_on_two_workers(agent: str, tmp_path: Path) -> None:
    folders = pytest.importorskip("metalr.agents.run_folder")
    options = folders.TrainOptions(agent=agent, family="mnist1d", groups=3, num_envs=6, episodes=12)
    folders.train(options, tmp_path / "alone", tensorboard=False)
    with Workers(2) as workers:
        folders.train(options, tmp_path / "together", workers=workers, tensorboard=False)
    assert workers.costs.workers == 2
    assert workers.costs.units > 3 * 2 * 20
    assert 0.0 < workers.costs.work < 2.0 * workers.costs.wall
    same_controllers(tmp_path / "alone" / CONTROLLER, tmp_path / "together" / CONTROLLER)


def test_run_groups_give_the_same_outcomes_wherever_they_are(two: Workers) -> None:
    transitions = pytest.importorskip("metalr.envs.transition")
    wild = make_task("quadratic", horizon=20, base_lr=1e9)  # diverges, so that runs start anew one by one
    config = transitions.EnvConfig(decisions=5, reward="paired")
    places = [transitions.Transition([*tasks(), wild], 6, config, seed=3, workers=where) for where in (None, two)]
    assert [len(place.groups) for place in places] == [3, 0]
    seen = [place.reset() for place in places]
    assert torch.equal(*seen)
    diverged = 0
    for decision in range(8):
        action = torch.linspace(-1.0, 1.0, 6).roll(decision)[:, None]
        alone, together = (place.step(action) for place in places)
        for name in alone._fields:
            torch.testing.assert_close(getattr(alone, name), getattr(together, name), rtol=0, atol=0, equal_nan=True)
        diverged += int((alone.diverged & ~alone.diverged.all()).sum())
        seen = [place.reset(alone.done) for place in places]
        assert torch.equal(*seen)
    assert diverged


def test_what_is_held_by_a_worker_that_died_is_lost(two: Workers, caplog: pytest.LogCaptureFixture) -> None:
    held = two.hold([list, list, list])
    assert held.each(units.append, [(1,), (2,), (3,)]) == [1, 1, 1]
    assert held.each(units.append, [(1,), (2,), (3,)]) == [2, 2, 2]
    with pytest.raises(UnitError, match=r"TypeError: .*append"):
        held.each(units.append, [(1,), (2,), ()])
    assert held.each(units.append, [(1,), (2,), (3,)]) == [4, 4, 3]
    with pytest.raises(UnitError, match=r"a worker died \(TerminatedWorkerError\), and with it .*: give the same"):
        held.each(units.die, [(), (), ()])
    with pytest.raises(UnitError, match="ValueError: got nothing"):
        two.hold([list, units.refuse])


def test_runs_with_a_past_need_several_local_processes_and_several_tasks(two: Workers) -> None:
    with pytest.raises(ValueError, match=r"got one process for training runs that keep their state .* use --workers"):
        Workers().hold([list, list])
    with pytest.raises(ValueError, match=r"got 2 workers for one task, .*: train on a family of them, or leave"):
        two.hold([list])


def test_a_search_depends_on_what_is_proposed_at_once_and_not_on_who_trains_it(two: Workers) -> None:
    pytest.importorskip("optuna")
    task, contender = tasks()[0], get_contender("wsd")
    alone = search(task, contender, num_trials=5, tuning_seeds=1, at_once=2)
    together = search(task, contender, num_trials=5, tuning_seeds=1, at_once=2, workers=two)
    assert together == alone
    assert len(alone.trials) == 5
    with pytest.raises(ValueError, match="got 0 trials at once"):
        search(task, contender, at_once=0)


@pytest.mark.slow
def test_the_command_takes_workers_and_says_what_they_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tyro")
    from metalr.cli import main as cli

    arguments = ["compare", "--task", "teacher-student", "--horizon", "20", "--trials", "2", "--tuning-seeds", "1"]
    arguments += ["--report-seeds", "2", "--contenders", "constant", "cosine", "--factors", "1"]
    cli.main([*arguments, "--folder", str(tmp_path / "here")])
    assert "overhead" not in capsys.readouterr().out
    cli.main([*arguments, "--workers", "2", "--folder", str(tmp_path / "two")])
    assert "on 2 workers; " in capsys.readouterr().out
    assert contents(tmp_path / "two") == contents(tmp_path / "here")
    with pytest.raises(SystemExit, match="metalr: got 0 workers"):
        cli.main([*arguments, "--workers", "0"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_no_process_is_left_behind(kind: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from metalr.workers import Unit, Workers"
        "\nfrom tests.support import units"
        "\nwith Workers(2) as workers:"
        "\n    list(workers.each(units.wait_long, [Unit((n,), Path(sys.argv[1])) for n in range(2)]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE) as caller:
        until(lambda: len(list(tmp_path.iterdir())) == 2, 120.0)
        caller.send_signal(kind)
        caller.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    until(lambda: not any(map(alive, workers)), 20.0)


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended may stay in the list until its parent asks."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(happened, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
