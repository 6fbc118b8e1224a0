"""The mean multipliers of a controller as a table, for programs that can only follow one."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metalr.artefacts.standalone import _new_file
from metalr.control.controller import Controller
from metalr.control.reference import ReplayController, ScheduleController
from metalr.files import whole_file


def write_replay_csv(
    controller: Controller,
    multipliers: Tensor | None,
    path: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    horizon: int | None = None,
) -> Path:
    """Write the LR factor of every decision as a table.

    Args:
        controller: supplies the base schedule, and the multipliers too if it is open-loop.
        multipliers: `(decisions,)` or `(decisions, num_runs, num_groups)`, set by the controller in some runs, such as
            `Episode.multipliers`; their geometric mean is written. None for a schedule or a replay.
        path: ends in `.csv`; must not exist.
        card: facts for people; its `about` goes into the heading.
        horizon: inner steps in those runs; needed for early decisions, whose places depend on it.

    Returns:
        The path.

    Raises:
        ValueError: the path has another ending, the controller is closed-loop and there are no multipliers, or they are
            not those of a run of that horizon.
        FileExistsError: the file already exists.
    """
    path = _new_file(path, ".csv")
    values = _played(controller, multipliers, horizon)
    places = _places(controller, len(values), horizon)
    base_lr = controller.base("base_lr")  # this name, or the LR of an absolute action in its place
    lines = [
        "open-loop replay of a learned LR controller, not the controller itself",
        "WARNING: replay loses the gain: a table sees no run, so it corrects neither a wrong base LR nor an explosion",
        f"use: lr = {base_lr} * lr_factor from update round(progress * horizon) until the next row",
        *(f"{key}: {value}" for key, value in dict((card or {}).get("about", {})).items()),
    ]
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {' '.join(str(line).split())}\n" for line in lines)
        table = csv.writer(file)
        table.writerow(["decision", "progress", "base_schedule", "lr_multiplier", "lr_factor"])
        for decision, (progress, multiplier) in enumerate(zip(places, values, strict=True)):
            base = controller.schedule(progress)
            table.writerow([decision, progress, base, multiplier, base * multiplier])
    return path


def _places(controller: Controller, count: int, horizon: int | None) -> list[float]:
    """The progress at each of `count` decisions."""
    if controller.spacing == "even":
        return [decision / count for decision in range(count)]
    steps = [] if horizon is None else controller.decision_steps(horizon)
    if horizon is None or len(steps) != count:
        raise ValueError(
            f"got {count} multipliers of a controller with early decisions and horizon {horizon}, expected "
            f"{len(steps) or 'to know the horizon'}: pass all multipliers of a run, and its horizon"
        )
    return [step / horizon for step in steps]


def _played(controller: Controller, multipliers: Tensor | None, horizon: int | None) -> list[float]:
    if multipliers is not None:
        return multipliers.double().reshape(len(multipliers), -1).log().mean(1).exp().tolist()
    if isinstance(controller, ScheduleController):
        return [1.0] * (controller.decisions if horizon is None else len(controller.decision_steps(horizon)))
    if isinstance(controller, ReplayController):
        return list(controller.multipliers)
    raise ValueError(
        f"got a {type(controller).__name__} without multipliers, expected those that it set in some run, since they "
        "depend on the run: run it on a task and pass Episode.multipliers"
    )
