"""Every Python block of the README and of the guides runs as it stands there, and is asserted on.

Nothing but the set-ups that a page itself shows comes before a block; each runs alone, in a fresh folder. Every warning
and error of the schedulers has a line in the guide.
"""

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import metalr
from tests.integrations.installed import library
from tests.integrations.ranks import on_ranks
from tests.support.documents import BLOCKS, PAGES, ROOT, Block, sections

TEXTS = {path.name: path.read_text() for path in PAGES}
GUIDE = TEXTS["integrations.md"]
# What a section's blocks import, and the warnings of those libraries about themselves.
NEEDS = {
    "Guess an LR": ("sklearn",),
    "Train one for your own task": ("stable_baselines3",),
    "The environment": ("gymnasium", "sklearn"),
    "Schedules": ("sklearn",),
    "An agent": ("sklearn",),
    "Hugging Face Trainer": ("transformers", "accelerate"),
    "accelerate": ("accelerate",),
    "Lightning": ("lightning",),
    "Stable-Baselines3": ("stable_baselines3",),
    "RecurrentPPO": ("sb3_contrib",),
    "CleanRL": ("gymnasium",),
    "What did it do?": ("sklearn", "matplotlib"),
    "Logging": ("tensorboard",),
}
THEIR_WARNINGS = {
    "Lightning": (
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
        "ignore:The .train_dataloader. does not have many workers",
    ),
    "torch.compile": ("ignore::DeprecationWarning:torch",),
    "Train one for your own task": ("ignore:.*distutils Version classes are deprecated:DeprecationWarning",),
}
ON_RANKS = {"DDP", "FSDP2"}
ON_A_GPU = {"CUDA graphs"}
AFTER_ITS_COMMAND = {"rl-baselines3-zoo"}  # in tests/integrations/test_rl_zoo3.py


# Blocks


def parameters() -> list:
    found = []
    for block in BLOCKS:
        if block.heading in AFTER_ITS_COMMAND:
            continue
        marks = [pytest.mark.filterwarnings(w) for w in THEIR_WARNINGS.get(block.heading, ())]
        marks += [pytest.mark.gpu] * (block.heading in ON_A_GPU)
        found.append(pytest.param(block, marks=marks, id=block.id))
    return found


def execute(block: Block) -> dict[str, Any]:
    """Run a block after its set-ups; the names that it leaves."""
    names: dict[str, Any] = {}
    exec(compile(block.before + block.text, block.id, "exec"), names)
    return names


def decisions(names: dict[str, Any]) -> tuple[list[dict], int]:
    """The decisions of a block's scheduler, and how many there should be."""
    scheduler = names.get("learned") or names.get("scheduler")
    if scheduler is None:  # Lightning holds it
        (scheduler,) = (config.scheduler for config in names["trainer"].lr_scheduler_configs)
    return scheduler.history, len(scheduler.controller.decision_steps(scheduler.horizon))


def on_rank(rank: int, block: Block) -> tuple[list[dict], int]:
    return decisions(execute(block))


def check_of(block: Block) -> Callable[[dict, list[str]], None] | None:
    """What is asserted on a block; None of one that trains to the horizon of a learned scheduler."""
    found = [check for part, check in CHECKS.items() if part in block.text]
    assert len(found) < 2
    assert found or block.page == "integrations.md", "add what it leaves or prints to CHECKS"
    return found[0] if found else None


@pytest.mark.parametrize("block", parameters())
def test_a_block_runs(block, tmp_path, monkeypatch, capsys):
    for needed in NEEDS.get(block.heading, ()):
        library(needed)
    monkeypatch.chdir(tmp_path)
    # The block is the same for every backend; this one needs no compiler of C++ and no half a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    if (check := check_of(block)) is None:
        ranks = on_ranks(on_rank, block) if block.heading in ON_RANKS else [decisions(execute(block))]
        history, expected = ranks[0]
        assert all(rank == ranks[0] for rank in ranks)
        assert len(history) == expected > 0
        # Several ranks cannot know each other's losses before the first update.
        assert all(entry["features"]["has_loss"] for entry in history[int(block.heading in ON_RANKS) :])
    else:
        names = execute(block)
        check(names, capsys.readouterr().out.splitlines())


def saved(path: str) -> bool:
    return metalr.load_controller(path).decisions > 0


def use_it(names: dict, printed: list[str]) -> None:
    losses = [float(re.search(r"loss ([\d.]+)", line)[1]) for line in printed[:5]]
    assert losses[-1] < 0.3 < 0.9 < -torch.tensor(1 / 3).log()
    assert len(decisions(names)[0]) == decisions(names)[1]
    assert printed[-1].startswith("LearnedLR(after 315 of 315 updates, ")


def train_one(names: dict, printed: list[str]) -> None:
    assert saved("runs/mine/controller.safetensors")
    assert names["controller"].decisions == 10
    assert [line.split("  ")[0] for line in printed] == ["controller", "linear alone"]
    learned, alone = ([float(loss) for loss in re.findall(r"x[\d.]+ ([\d.]+)", line)] for line in printed)
    assert len(learned) == 3
    # From a guess that is ten times too low the controller is ahead by far.
    assert learned[0] < 0.5 * alone[0]


def environment(names: dict, printed: list[str]) -> None:
    assert names["observation"].shape == (32, 28)
    assert names["terminated"].sum() > 16  # all but runs that diverged under a random action, and began anew
    assert [float(number) > 0.0 for number in printed[-1].split()] == [True, True]


def guess_an_lr(names: dict, printed: list[str]) -> None:
    assert len(printed) == 3
    found = [[float(number) for number in re.findall(r" ([\d.]+)(?:,|$)", line)] for line in printed]
    # From a guess that is ten times too low the controller is ahead by far; from no guess does it fail.
    assert found[0][0] < 0.3 * found[0][1]
    assert all(learned < 0.1 for learned, _ in found)


def own_file(names: dict, printed: list[str]) -> None:
    assert saved("mine.safetensors")
    assert "ReplayController(multipliers=(1.0, 0.5, 0.1)" in printed[-1]


def alone(names: dict, printed: list[str]) -> None:
    assert printed == ["1.0", "0.5", "0.25"]


def schedule(names: dict, printed: list[str]) -> None:
    assert float(printed[-1].split()[0]) == names["schedule"](0.5) == pytest.approx(0.54, abs=0.01)
    assert "ScheduleLR(after 0 of 1000 calls of step" in printed[-1]


def knots(names: dict, printed: list[str]) -> None:
    multipliers = metalr.load_controller("knots.safetensors").schedule(torch.linspace(0.0, 1.0, 9))
    assert not torch.equal(multipliers, torch.ones(9))


def a_task(names: dict, printed: list[str]) -> None:
    assert printed == ["49"]


def a_schedule(names: dict, printed: list[str]) -> None:
    assert [float(number) for number in printed] == pytest.approx([0.6])
    assert names["schedule"](0.325) == pytest.approx(0.75**0.5)


def an_agent(names: dict, printed: list[str]) -> None:
    # The guess is ten times too low, so that the best bias is above 0.
    assert names["best"] > 0.0
    assert names["final_loss"](names["best"]) < names["final_loss"](0.0)
    assert saved("searched.safetensors")


def sb3_schedule(names: dict, printed: list[str]) -> None:
    assert names["agent"].lr_schedule(0.0) == pytest.approx(3e-5)
    assert names["agent"].num_timesteps >= 4096


def sb3_controller(names: dict, printed: list[str]) -> None:
    (multiplier,) = ast.literal_eval(printed[-1])
    assert multiplier != 1.0
    assert len(names["callback"].scheduler.history) > 10


def horizon(names: dict, printed: list[str]) -> None:
    assert names["scheduler"].horizon == 2 * names["num_updates"]


def no_horizon(names: dict, printed: list[str]) -> None:
    assert names["scheduler"].horizon is None


def bounds(names: dict, printed: list[str]) -> None:
    assert printed == ["0.001 1000.0"]


def recurrent(names: dict, printed: list[str]) -> None:
    assert metalr.load_controller("recurrent.safetensors").size == 32
    assert names["scheduler"].controller.decisions == 10


def actor(names: dict, printed: list[str]) -> None:
    assert saved("actor.safetensors")


def range_test(names: dict, printed: list[str]) -> None:
    assert 1e-4 < names["finder"].suggestion == names["optimizer"].param_groups[0]["lr"] < 10.0
    assert Path("lr.png").stat().st_size > 10_000


def figures(names: dict, printed: list[str]) -> None:
    history, expected = decisions(names)
    assert len(history) == expected
    assert min(Path(name).stat().st_size for name in ("run.png", "schedules.png")) > 10_000


def figure(names: dict, printed: list[str]) -> None:
    history, expected = decisions(names)
    assert len(history) == expected
    assert all(entry["features"]["has_loss"] == [1.0] for entry in history)
    assert Path("decisions.png").stat().st_size > 10_000
    assert ast.literal_eval(printed[-1])["lr"] == names["scheduler"].get_last_lr()


def memory(names: dict, printed: list[str]) -> None:
    names["scheduler"].run.before_update()
    assert names["scheduler"].run.meter.on_device() is None


def resume(names: dict, printed: list[str]) -> None:
    assert names["saved"].keys() == {"model", "optimizer", "scheduler"}
    assert names["scheduler"].state_dict().keys() == names["saved"]["scheduler"].keys()


# Part of a block -> what is asserted on the names that it leaves and the lines that it prints.
CHECKS: dict[str, Callable[[dict, list[str]], None]] = {
    "print(scheduler)                   ": use_it,
    'train_ppo(core, "runs/mine"': train_one,
    "gymnasium.make_vec": environment,
    "for guess in": guess_an_lr,
    '"mine.safetensors"': own_file,
    "print(multiplier.mean().item())": alone,
    "print(schedule(0.5), scheduler)": schedule,
    "KnotLR(8)": knots,
    "print(task.num_params)": a_task,
    "class SquareRoot(Schedule)": a_schedule,
    "def final_loss(bias)": an_agent,
    "sb3_learning_rate(": sb3_schedule,
    "agent.learn(4096, callback=callback)": sb3_controller,
    "set_horizon(2 * num_updates)": horizon,
    "steps_per_action=50": no_horizon,
    'metalr.load_card("general")': bounds,
    "draw_decisions(": figure,
    '"recurrent.safetensors"': recurrent,
    '"actor.safetensors"': actor,
    "finder.range_test(": range_test,
    "plot_history(": figures,
    "measure=False": memory,
    "torch.save({": resume,
}


def test_every_block_is_found_and_asserted_on():
    assert len(BLOCKS) == sum(text.count("```python\n") for text in TEXTS.values())
    used = {check_of(block) for block in BLOCKS} - {None}
    assert used == set(CHECKS.values())


def test_the_first_screen_changes_the_loop_of_the_example():
    """The marked lines of the first screen, in the order in which the whole example has them."""
    (shown,) = re.findall(r"```diff\n(.*?)```", TEXTS["README.md"], flags=re.DOTALL)
    added = [
        part.strip() for line in shown.splitlines() if line[0] == "+" for part in line[1:].split("#")[0].split(";")
    ]
    example = next(block for block in BLOCKS if block.id == "README: Use it 0").text
    places = [example.find(part) for part in added]
    assert len(added) == 4
    assert -1 not in places
    assert places == sorted(places)


# Links


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^##+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if not link.startswith("http")]
    assert links or page.parent.name == "api"
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


# Warnings and errors

SPEAKERS = (
    # The runs of the plain path speak to environments and comparisons, not in a user's loop.
    *sorted({*(ROOT / "metalr/schedulers").glob("*.py")} - {ROOT / "metalr/schedulers/plain_runs.py"}),
    ROOT / "metalr/artefacts/controller_file.py",
    ROOT / "metalr/control/loop.py",
    ROOT / "metalr/control/controller.py",
    ROOT / "metalr/control/policy.py",
    ROOT / "metalr/reports/decision_figure.py",
    ROOT / "agents/sb3_lr_callback.py",
)


def messages(path: Path) -> list[str]:
    """What a file raises or warns, with … in the place of what is put in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        call = node.exc if isinstance(node, ast.Raise) else node
        is_warning = isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("warn", "_warn_once")
        if isinstance(call, ast.Call) and (isinstance(node, ast.Raise) or is_warning):
            text = " | ".join(filter(None, map(_text, call.args)))
            found.append(text)
    return [text for text in found if text not in ("", "LearnedLR: ….")]  # the frame around every warning


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else ""


def explained() -> list[str]:
    tables = "".join(body for heading, body in sections(GUIDE) if heading in ("Warnings", "Errors"))
    return [quote for row in re.findall(r"^\| (.*) \|$", tables, flags=re.MULTILINE) for quote in quotes(row)]


def quotes(row: str) -> list[str]:
    first, second, _ = row.split(" | ", 2)
    return re.findall("`([^`]+)`", first + " " + (second if "in brackets" in second else ""))


def test_every_warning_and_error_is_explained():
    said = [message for path in SPEAKERS for message in messages(path)]
    assert len(said) > 40
    unexplained = [message for message in said if not any(quote in message for quote in explained())]
    assert not unexplained


def test_what_is_explained_is_said():
    said = [message for path in SPEAKERS for message in messages(path)]
    assert not [quote for quote in explained() if not any(quote in message for message in said)]
