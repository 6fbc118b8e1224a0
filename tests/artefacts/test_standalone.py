"""The one-file export sets the same LRs as the library, bit for bit, and depends on torch alone."""

import ast
import csv
import importlib.util
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from metalr.artefacts.replay_table import write_replay_csv
from metalr.artefacts.standalone import standalone_source, write_standalone
from metalr.control.actions import ActionSpec
from metalr.control.policy import PolicyController
from metalr.control.reference import ScheduleController
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Constant, Cosine, Function, Linear, Sequence, Warmup
from tests.support.policies import lstm_policy, random_policy, recurrent_policy
from tests.support.schedulers_under_test import CONTROLLERS_UNDER_TEST, DECISIONS, Training

pytestmark = pytest.mark.filterwarnings("ignore:LearnedLR. the loss exploded")
CARD = {"about": {"trained_on": "nothing, weights are random", "note": 'a "quoted" \\ word and ü'}}
NESTED = Warmup(Sequence((Constant(0.5), Cosine(floor=0.1)), milestones=(0.4,)), length=0.2)


def module_of(controller, folder: Path, name: str = "exported"):
    path = write_standalone(controller, CARD, folder / f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


class Loop(Training):
    """The training of the contract tests, for a scheduler of another module."""

    def update(self, scheduler, **_) -> list[float]:
        loss = self.loss()
        if self.passes_loss:
            scheduler.observe(loss)
        self.optimizer.step()
        self.updates += 1
        rates = [float(lr) for lr in scheduler.get_last_lr()]
        scheduler.step()
        return rates


def lrs(make, seed: int, resume_from=None) -> list:
    """The LRs of a run with random net, base LR, horizon, optimizer and scope, stopped and resumed once."""
    draw = random.Random(seed)
    kind, horizon = draw.choice(["sgd", "adam"]), draw.randrange(2 * DECISIONS, 60)
    lr, passes_loss = 10.0 ** draw.uniform(-3.0, -1.0), draw.random() < 0.8
    options = {"scope": draw.choice(["global", "param_group"]), "decisions": DECISIONS, "hooks": draw.random() < 0.7}
    stop = draw.randrange(1, horizon)
    first = Loop(lr, seed=seed, kind=kind)
    first.passes_loss = passes_loss or not options["hooks"]
    scheduler = make(first.optimizer, horizon, options)
    rates = first.run(scheduler, stop)
    second = Loop(lr, seed=seed, kind=kind)
    second.passes_loss, second.updates = first.passes_loss, stop
    again = (resume_from or make)(second.optimizer, horizon, options)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    again.load_state_dict(scheduler.state_dict())
    return [*rates, *second.run(again, horizon - stop), again.explain()]


@pytest.mark.parametrize("name", CONTROLLERS_UNDER_TEST)
def test_the_same_bits_in_many_random_runs(name, tmp_path):
    controller = CONTROLLERS_UNDER_TEST[name]
    module = module_of(controller, tmp_path)

    def library(optimizer, horizon, options):
        return LearnedLR(optimizer, controller, horizon, **options)

    def exported(optimizer, horizon, options):
        return module.make_scheduler(optimizer, horizon, **options)

    for seed in range(12):
        expected = lrs(library, seed)
        assert lrs(exported, seed) == expected
        # A run may change from one to the other when it resumes.
        assert lrs(library, seed, resume_from=exported) == expected
        assert lrs(exported, seed, resume_from=library) == expected


@pytest.mark.parametrize("schedule", [Constant(), NESTED], ids=["constant", "nested"])
def test_base_schedules(schedule, tmp_path):
    controller = random_policy(schedule=schedule)
    module = module_of(controller, tmp_path)
    for seed in range(5):
        expected = lrs(lambda o, h, k: LearnedLR(o, controller, h, **k), seed)
        assert lrs(lambda o, h, k: module.make_scheduler(o, h, **k), seed) == expected


def test_another_base_schedule(tmp_path):
    module = module_of(random_policy(schedule=NESTED), tmp_path)
    other = random_policy(schedule=Constant())
    expected = lrs(lambda o, h, k: LearnedLR(o, other, h, **k), 0)
    assert lrs(lambda o, h, k: module.make_scheduler(o, h, base=module.Constant(), **k), 0) == expected


def test_it_needs_torch_alone(tmp_path):
    write_standalone(random_policy(), CARD, tmp_path / "mine.py")
    code = """
import sys
for name in ("metalr", "safetensors", "gymnasium", "stable_baselines3"):
    sys.modules[name] = None
import torch, mine
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = mine.make_scheduler(optimizer, horizon=40)
for _ in range(40):
    x = torch.randn(16, 3)
    optimizer.zero_grad(); loss = model(x).square().mean(); loss.backward()
    scheduler.observe(loss); optimizer.step(); scheduler.step()
print(len(scheduler.history), mine.CARD["about"]["note"])
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split(maxsplit=1) == ["5", CARD["about"]["note"] + "\n"]


def test_it_can_be_read():
    source = standalone_source(random_policy(), CARD)
    assert "MIT License" in ast.get_docstring(ast.parse(source))
    assert "CARD = {'about': {'trained_on': 'nothing, weights are random'" in source
    assert "import metalr" not in source
    assert "from metalr" not in source.split('"""', 2)[2]
    assert "# After an explosion the multiplier is held to this fraction" in source  # comments survive
    assert max(map(len, source.splitlines())) <= 120
    assert "OneCycle" not in source  # what is not used is not there
    for line in source.splitlines():
        if line.startswith(("import ", "from ")):
            assert line.split()[1].split(".")[0] in {*sys.stdlib_module_names, "torch"}


def test_a_weight_that_is_changed_shows():
    """The comparison above would prove little if it could not see a change."""
    controller = random_policy()
    changed = PolicyController(controller.network, ActionSpec(alpha=1.0 + 1e-12), controller.schedule, DECISIONS)
    first, second = (lrs(lambda o, h, k, c=c: LearnedLR(o, c, h, **k), 0) for c in (controller, changed))
    assert first != second


def test_files_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one that can be imported"):
        write_standalone(random_policy(), CARD, tmp_path / "my-scheduler.py")
    with pytest.raises(ValueError, match=r"ends in \.py"):
        write_standalone(random_policy(), CARD, tmp_path / "scheduler.txt")
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(FileExistsError, match="choose another name"):
        write_standalone(random_policy(), CARD, tmp_path / "mine.py")
    with pytest.raises(ValueError, match="code in a file"):
        write_standalone(ScheduleController(Function(lambda p: 1.0 - p)), CARD, tmp_path / "code.py")


def test_text_in_the_card_is_never_code(tmp_path):
    card = {"about": {'"""\nimport os\nos.abort()\n"""': "'''\nraise SystemExit\n'''", "x": "\\"}}
    path = write_standalone(random_policy(), card, tmp_path / "mine.py")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        namespace = {"__name__": "mine"}
        exec(compile(path.read_text(), str(path), "exec"), namespace)
    assert namespace["CARD"] == card


def table(path: Path) -> tuple[list[str], list[dict[str, float]]]:
    lines = path.read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [line for line in lines if line.startswith("#")], [{k: float(v) for k, v in row.items()} for row in rows]


def test_the_replay_table(tmp_path):
    multipliers = torch.tensor([[[1.0], [4.0]], [[2.0], [2.0]], [[0.5], [0.125]]])
    controller = random_policy(schedule=Cosine())
    path = write_replay_csv(controller, multipliers, tmp_path / "replay.csv", card=CARD)
    heading, rows = table(path)
    assert "open-loop replay" in heading[0]
    assert "replay loses the gain" in heading[1]
    assert [row["lr_multiplier"] for row in rows] == pytest.approx([2.0, 2.0, 0.25])
    assert [row["progress"] for row in rows] == pytest.approx([0.0, 1 / 3, 2 / 3])
    assert [row["lr_factor"] for row in rows] == pytest.approx([2.0, 1.5, 0.0625])
    with pytest.raises(ValueError, match="pass Episode"):
        write_replay_csv(controller, None, tmp_path / "other.csv")


def test_the_replay_table_of_an_open_loop_controller(tmp_path):
    path = write_replay_csv(ScheduleController(Cosine(), 4), None, tmp_path / "replay.csv")
    assert [row["lr_factor"] for row in table(path)[1]] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_the_replay_table_of_early_decisions(tmp_path):
    """Decisions fall at 0, 2, 4, 8, 16 and 28 of 40 updates, which is not every sixth of them."""
    places = [0.0, 0.05, 0.1, 0.2, 0.4, 0.7]
    controller = random_policy(schedule=Linear(), decisions=4, spacing="doubling")
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    rows = table(write_replay_csv(controller, values, tmp_path / "a.csv", horizon=40))[1]
    assert [row["progress"] for row in rows] == pytest.approx(places)
    expected = [multiplier * (1.0 - place) for multiplier, place in zip(values.tolist(), places, strict=True)]
    assert [row["lr_factor"] for row in rows] == pytest.approx(expected)
    open_loop = ScheduleController(Linear(), 4, "doubling")
    rows = table(write_replay_csv(open_loop, None, tmp_path / "b.csv", horizon=40))[1]
    assert [row["lr_factor"] for row in rows] == pytest.approx([1.0 - place for place in places])
    for horizon in (None, 400):
        with pytest.raises(ValueError, match=r"got 6 multipliers .*, expected .*: pass all multipliers of a run"):
            write_replay_csv(controller, values, tmp_path / "c.csv", horizon=horizon)
    assert not (tmp_path / "c.csv").exists()


@pytest.mark.parametrize("make", [random_policy, recurrent_policy, lstm_policy], ids=["policy", "recurrent", "lstm"])
def test_early_decisions_are_in_the_file(make, tmp_path):
    controller = make(spacing="doubling")
    made = module_of(controller, tmp_path).make_controller()
    assert made.decision_steps(100) == controller.decision_steps(100) != make().decision_steps(100)
