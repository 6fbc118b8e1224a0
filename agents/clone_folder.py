"""The files of a cloning: oracle curves, rollouts and students.

Each piece is written whole, and what is there is not made again: a training that was cut off continues where it was.
Workers make the pieces, on other machines too; this process writes them.
"""

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from metalr.agents.clone import ClonePolicy, EpisodeStore, averaged, fit
from metalr.agents.clone_runs import CloneConfig, Episodes, Plan, guesses, make_oracle, plan, roll_out
from metalr.agents.disturbed import DisturbedController, draw_offsets
from metalr.compare.oracle import OracleCurve
from metalr.control.controller import Controller, decision_steps
from metalr.control.recurrent import RecurrentPolicyController
from metalr.files import write_whole
from metalr.progress import Progress
from metalr.tasks.task import Task
from metalr.workers import Unit, Workers

log = logging.getLogger("metalr")


class CloneFolder:
    """The files of a training, each made when it is first asked for.

    Oracle curves do not depend on the student, so students of several seeds can share a folder.

    Args:
        folder: of all files; made if it is missing.
        draw: index -> task.
        config: settings.
        name: of the students, before their seed.
    """

    def __init__(self, folder: Path, draw: Callable[[int], Task], config: CloneConfig, name: str = "student") -> None:
        self.folder = folder
        self.student = folder / f"{name}-{config.student_seed}"
        self.draw = draw
        self.config = config

    def plan(self, index: int) -> Plan:
        """How a task is run."""
        return plan(index, self.draw(index), self.config)

    def oracle(self, index: int) -> tuple[OracleCurve, Episodes]:
        """The oracle curve of a task, and its episodes."""
        saved = cached(self._oracle_path(index), lambda: make_oracle_piece((self.draw, self.config), index))
        return OracleCurve(**saved["curve"]), Episodes(**saved["episodes"])

    def rollouts(self, round_index: int, index: int) -> Episodes:
        """The episodes of a task in a round of rollouts, by the student before that round.

        Args:
            round_index: from 1.
            index: of the task.
        """

        def make() -> dict:
            student = self.policy(round_index - 1).controller(self.config)
            return make_rollout_piece((self.draw, self.config, student), round_index, index, self.oracle(index)[0])

        return Episodes(**cached(self.rollouts_path(round_index, index), make))

    def rollouts_path(self, round_index: int, index: int) -> Path:
        """Where the episodes of a task in a round of rollouts are kept."""
        return self.student / f"round-{round_index}" / f"{index:05d}.pt"

    def rounds_trained(self) -> int:
        """How many trainings the student has behind it: the first is round 0."""
        return next(index for index in count() if not self.trained(index))

    def make_oracles(self, indices: Sequence[int], workers: Workers, progress: Progress | None = None) -> None:
        """Make the oracle curves that are missing.

        Args:
            indices: of the tasks.
            workers: where they are made.
            progress: called after every piece.
        """
        missing = [index for index in indices if not self._oracle_path(index).exists()]
        shared = self.draw, self.config
        units = [Unit((index,), shared) for index in missing]
        for done, (place, piece) in enumerate(workers.each(make_oracle_piece, units), start=1):
            save_tensors(self._oracle_path(missing[place]), piece)
            if progress is not None:
                progress(done, len(units), "oracle curves")

    def make_rollouts(
        self, round_index: int, indices: Sequence[int], workers: Workers, progress: Progress | None = None
    ) -> None:
        """Make the rollouts of a round that are missing, by the student before that round; see `make_oracles`."""
        missing = [index for index in indices if not self.rollouts_path(round_index, index).exists()]
        if not missing:
            return
        shared = self.draw, self.config, self.policy(round_index - 1).controller(self.config)
        units = [Unit((round_index, index, self.oracle(index)[0]), shared) for index in missing]
        for done, (place, piece) in enumerate(workers.each(make_rollout_piece, units), start=1):
            save_tensors(self.rollouts_path(round_index, missing[place]), piece)
            if progress is not None:
                progress(done, len(units), f"rollouts of round {round_index}")

    def policy(self, round_index: int) -> ClonePolicy:
        """The student after a round, which must have been trained."""
        return averaged([self._member(round_index, member) for member in range(self.config.members)])

    def trained(self, round_index: int) -> bool:
        """Whether the student has been trained in a round."""
        return all(self._path(round_index, member).exists() for member in range(self.config.members))

    def train(
        self,
        round_index: int,
        indices: Sequence[int],
        workers: Workers | None = None,
        progress: Progress | None = None,
    ) -> ClonePolicy:
        """Train the student on the oracle's episodes and all rounds of rollouts so far; continue from the last one.

        Args:
            round_index: 0 trains on the oracle's episodes alone.
            indices: of the tasks.
            workers: where pieces that are missing are made; this process if None.
            progress: called after every such piece, and after every update of a policy.
        """
        if not self.trained(round_index):
            workers = workers or Workers()
            self.make_oracles(indices, workers, progress)
            for earlier in range(1, round_index + 1):
                self.make_rollouts(earlier, indices, workers, progress)
            pieces = [self.oracle(index)[1] for index in indices]
            pieces += [self.rollouts(r, index) for r in range(1, round_index + 1) for index in indices]
            store = EpisodeStore(pieces)
            for member in range(self.config.members):
                self._train_member(round_index, member, store, progress)
        return self.policy(round_index)

    def _train_member(self, round_index: int, member: int, store: EpisodeStore, progress: Progress | None) -> None:
        path, seed = self._path(round_index, member), self._seed(member)
        if path.exists():
            return
        fresh = ClonePolicy(self.config.hidden_size, seed)
        policy = self._member(round_index - 1, member) if round_index else fresh
        config = self.config
        if config.last_steps is not None and round_index == config.rounds:
            config = replace(config, steps=config.last_steps)
        before = member * config.steps

        def show(done: int, total: int) -> None:
            if progress is not None:
                what = f"round {round_index}: updates of the policy"
                progress(before + done, total * self.config.members, what)

        curve = fit(policy, store, config, 1000 * seed + round_index, show)
        log.info("round %d, member %d: loss %.4f", round_index, member, sum(curve[-200:]) / len(curve[-200:]))
        save_tensors(path, policy.state_dict())

    def _member(self, round_index: int, member: int) -> ClonePolicy:
        policy = ClonePolicy(self.config.hidden_size)
        policy.load_state_dict(torch.load(self._path(round_index, member), weights_only=True))
        return policy

    def _seed(self, member: int) -> int:
        return self.config.student_seed * self.config.members + member

    def _path(self, round_index: int, member: int) -> Path:
        return self.student / f"policy-{round_index}-{member}.pt"

    def _oracle_path(self, index: int) -> Path:
        return self.folder / "oracle" / f"{index:05d}.pt"


def make_oracle_piece(shared: tuple[Callable[[int], Task], CloneConfig], index: int) -> dict[str, Any]:
    """A unit: the oracle curve of a task, and its episodes."""
    draw, config = shared
    curve, episodes = make_oracle(plan(index, draw(index), config), config.of_task(index))
    return {"curve": vars(curve), "episodes": episodes._asdict()}


def make_rollout_piece(
    shared: tuple[Callable[[int], Task], CloneConfig, RecurrentPolicyController],
    round_index: int,
    index: int,
    curve: OracleCurve,
) -> dict[str, Any]:
    """A unit: the rollouts of a student on a task."""
    draw, config, student = shared
    planned, config = plan(index, draw(index), config), config.of_task(index)
    log_guess, seeds = guesses(planned, config, round_index)
    controller: Controller = student.with_schedule(planned.schedule)
    if config.disturbance and round_index == config.rounds:
        steps = decision_steps(planned.task.horizon, planned.decisions, config.spacing)
        key = config.student_seed, index, round_index
        offsets = draw_offsets(steps, planned.task.horizon, len(seeds), config.disturbance, key)
        controller = DisturbedController(student.with_schedule(planned.schedule), offsets)
    return roll_out(controller, planned, curve, log_guess, seeds, config)._asdict()


def save_tensors(path: Path, tensors: object) -> None:
    """Write tensors to a file, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def cached(path: Path, make: Callable[[], dict]) -> dict:
    """The content of a file; made, and written whole, if it is not there."""
    if not path.exists():
        save_tensors(path, make())
    return torch.load(path, weights_only=True)
