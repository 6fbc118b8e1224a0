"""One contract for every agent that `metalr train` knows: the folder, the card, the resuming, the refusals."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from metalr.agents import clone_folder
from metalr.agents.clone_training import CloneSettings, train_clone
from metalr.agents.dqn import DQNSettings
from metalr.agents.fresh_runs import fresh_rows
from metalr.agents.ppo import PPOSettings
from metalr.agents.run_folder import AGENTS, TrainOptions, build_tasks, clone_config, export_folder, read_options, train
from metalr.agents.training_folder import CONTROLLER
from metalr.artefacts.controller_file import load_card, load_controller, needs_losses
from metalr.control.controller import Controller
from metalr.tasks.catalog import make_task

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*distutils Version classes are deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

CLONE = CloneSettings(rounds=1, runs_per_task=4, num_lrs=5, seeds=2, hidden_size=4, steps=8, batch=16)
OPTIONS = {
    "ppo": TrainOptions(agent="ppo", num_envs=8, episodes=32, ppo=PPOSettings(width=4)),
    "dqn": TrainOptions(agent="dqn", num_envs=8, episodes=32, dqn=DQNSettings(width=4)),
    "clone": TrainOptions(agent="clone", clone=CLONE),
}
OPTIONS = {name: replace(o, task="teacher-student", horizon=20, decisions=5) for name, o in OPTIONS.items()}


def weights(controller: Controller) -> list[torch.Tensor]:
    return [tensor for _, tensor in sorted(controller.tensors().items())]


@pytest.fixture(scope="module", params=sorted(AGENTS))
def trained(request, tmp_path_factory) -> tuple[TrainOptions, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    train(OPTIONS[request.param], folder, tensorboard=False)
    return OPTIONS[request.param], folder


def test_the_card_says_what_the_controller_is_and_how_it_came_about(trained) -> None:
    options, folder = trained
    about = load_card(folder / CONTROLLER)["about"]
    assert about["agent"] == options.agent
    assert about["seed"] == 0
    (task,) = about["tasks"]
    assert (task["name"], task["horizon"], task["base_lr"]) == ("teacher-student", 20, 0.05)
    assert about["versions"]["torch"] == torch.__version__
    assert about["decisions_trained"] > 100
    assert len(about["learning_curve"]) >= 2
    assert about["settings"].items() >= {"hidden_size": 4}.items() or about["settings"]["width"] == 4
    assert needs_losses(load_card(folder / CONTROLLER))  # it never met a run without


def test_the_options_of_a_folder_are_those_it_was_started_with(trained) -> None:
    options, folder = trained
    assert read_options(folder) == options


def test_a_finished_run_stays_as_it_is_and_can_be_exported(trained) -> None:
    options, folder = trained
    written = (folder / CONTROLLER).stat().st_mtime_ns
    again = train(options, folder, tensorboard=False)
    assert (folder / CONTROLLER).stat().st_mtime_ns == written
    exported, about = export_folder(folder)
    loaded = load_controller(folder / CONTROLLER)
    assert exported.config() == again.config() == loaded.config()
    assert all(map(torch.equal, weights(exported), weights(loaded)))
    assert about == load_card(folder / CONTROLLER)["about"]


def test_another_run_in_the_folder_is_refused(trained) -> None:
    options, folder = trained
    with pytest.raises(ValueError, match=r"which holds a run with other options.*seed was 0, is 1"):
        train(replace(options, seed=1), folder)


def test_one_seed_makes_a_run_repeatable_and_another_another(trained, tmp_path) -> None:
    options, folder = trained
    loaded = load_controller(folder / CONTROLLER)
    same = train(options, tmp_path / "same", tensorboard=False)
    other = train(replace(options, seed=1), tmp_path / "other", tensorboard=False)
    assert all(map(torch.equal, weights(same), weights(loaded)))
    assert not all(map(torch.equal, weights(other), weights(loaded)))


def test_progress_is_counted_to_the_end(trained, tmp_path) -> None:
    options, _ = trained
    seen: dict[str, list[tuple[int, int]]] = {}
    counted = lambda done, total, what: seen.setdefault(what, []).append((done, total))  # noqa: E731
    train(options, tmp_path / "run", progress=counted, tensorboard=False)
    for what, counts in seen.items():
        assert counts[-1][0] == counts[-1][1], what
        assert counts == sorted(counts)
    if options.agent != "clone":
        assert seen["episodes"][-1] == (options.episodes, options.episodes)
    else:
        assert next(iter(seen)) == "oracle curves"
        assert list(seen)[-1] == "tasks judged"


def test_a_family_has_a_controller_too(trained, tmp_path) -> None:
    options, _ = trained
    few = replace(options, family="mnist1d", groups=2, clone=replace(CLONE, num_lrs=3), decisions=20)
    assert [task.name for task in build_tasks(few)] == ["mnist1d-mlp"] * 2
    assert len(build_tasks(replace(few, groups=None))) == (16 if options.agent == "clone" else 4)


def test_a_controller_is_tried_on_fresh_seeds_beside_its_base_schedule(trained) -> None:
    options, folder = trained
    controller = load_controller(folder / CONTROLLER)
    own, alone = fresh_rows(controller, build_tasks(options), factors=(1.0, 1e6), num_seeds=3)
    assert (own.alone, alone.alone) == (False, True)
    assert alone.loss[1.0].value < alone.loss[1e6].value
    assert own.loss[1.0] != alone.loss[1.0]


def interrupt_fit(monkeypatch, after: int) -> None:
    """Ctrl-C at a later training of the policy."""
    original, calls = clone_folder.fit, [0]

    def fit(*arguments):
        calls[0] += 1
        if calls[0] > after:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(clone_folder, "fit", fit)


def test_a_clone_that_was_cut_off_ends_as_one_that_was_not(tmp_path, monkeypatch) -> None:
    options = OPTIONS["clone"]
    interrupt_fit(monkeypatch, after=0)
    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match="without a student, expected one"):
        export_folder(tmp_path / "cut")
    monkeypatch.undo()
    interrupt_fit(monkeypatch, after=1)
    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "cut")
    monkeypatch.undo()
    half, about = export_folder(tmp_path / "cut")
    assert [student for student, _ in about["learning_curve"]] == [0]
    whole = train(options, tmp_path / "whole")
    assert not all(map(torch.equal, weights(half), weights(whole)))
    rest = train(read_options(tmp_path / "cut"), tmp_path / "cut")
    assert all(map(torch.equal, weights(rest), weights(whole)))
    cards = [load_card(tmp_path / name / CONTROLLER) for name in ("cut", "whole")]
    assert cards[0] == cards[1]


def test_the_function_takes_tasks_of_ones_own_and_resumes_what_it_began(tmp_path) -> None:
    tasks = [make_task("teacher-student", horizon=horizon, width=8) for horizon in (10, 20)]
    config = CLONE.config(decisions=(5, 5), hide_loss=0.5)
    with pytest.raises(FileNotFoundError, match="to resume, expected a run folder"):
        train_clone(tasks, tmp_path / "run", config=config, resume=True)
    train_clone(tasks, tmp_path / "run", config=config)
    with pytest.raises(FileExistsError, match="expected a new one: resume it"):
        train_clone(tasks, tmp_path / "run", config=config)
    with pytest.raises(ValueError, match=r"different run \(changed: rounds was 1, is 2\)"):
        train_clone(tasks, tmp_path / "run", config=replace(config, rounds=2), resume=True)
    card = load_card(tmp_path / "run" / CONTROLLER)
    assert [task["horizon"] for task in card["about"]["tasks"]] == [10, 20]
    assert not needs_losses(card)
    with pytest.raises(ValueError, match="got no tasks"):
        train_clone([], tmp_path / "none", config=config)


@pytest.mark.parametrize("name", list(asdict(CLONE)))
def test_every_setting_of_a_clone_changes_its_config(name: str) -> None:
    changed = replace(CLONE, **{name: 2 * getattr(CLONE, name)})
    assert changed.config() != CLONE.config()


def test_options_reach_the_clone() -> None:
    changes = {"schedule": "cosine", "mode": "anchored", "alpha": 2.0, "visible": ("progress",), "seed": 4}
    config = clone_config(replace(OPTIONS["clone"], hide_loss=0.2, hide_horizon=0.3, **changes))
    assert (config.action.mode, config.action.alpha) == ("anchored", 2.0)
    assert (config.hide_loss, config.hide_horizon, config.visible) == (0.2, 0.3, ("progress",))
    assert type(config.schedule).__name__ == "Cosine"
    assert (config.seed, config.student_seed, config.decisions) == (4, 4, (5, 5))


def test_plans_of_one_task_have_seeds_of_their_own(tmp_path) -> None:
    config = CLONE.config(decisions=(5, 5))
    assert config.of_task(0).grid.seeds == (0, 1)
    assert config.of_task(3).grid.seeds == (6, 7)
    assert replace(config, own_seeds=False).of_task(3).grid.seeds == (0, 1)


@pytest.mark.slow
def test_a_clone_finds_the_lr_of_its_task_from_guesses_ten_times_wrong(tmp_path) -> None:
    task = make_task("teacher-student", horizon=100)
    controller = train_clone([task], tmp_path / "run", config=CloneSettings(steps=300).config(decisions=(20, 20)))
    own, alone = fresh_rows(controller, [task])
    best = min(interval.value for interval in alone.loss.values())
    assert max(interval.value for interval in own.loss.values()) < 1.25 * best
    assert max(interval.value for interval in alone.loss.values()) > 2.0 * best
