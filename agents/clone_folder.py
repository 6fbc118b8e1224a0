"""The files of a cloning: oracle curves, rollouts and students.

Each piece is written whole, and what is there is not made again: a training that was cut off continues where it was,
and several processes can share the work.
"""

import io
import logging
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import torch

from metalr.agents.clone import ClonePolicy, EpisodeStore, averaged, fit
from metalr.agents.clone_runs import CloneConfig, Episodes, Plan, guesses, make_oracle, plan, roll_out
from metalr.compare.oracle import OracleCurve
from metalr.control.controller import Controller
from metalr.files import write_whole
from metalr.progress import Progress
from metalr.tasks.task import Task

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

        def make() -> dict:
            curve, episodes = make_oracle(self.plan(index), self.config.of_task(index))
            return {"curve": vars(curve), "episodes": episodes._asdict()}

        saved = cached(self.folder / "oracle" / f"{index:05d}.pt", make)
        return OracleCurve(**saved["curve"]), Episodes(**saved["episodes"])

    def rollouts(self, round_index: int, index: int, controller: Controller | None = None) -> Episodes:
        """The episodes of a task in a round of rollouts.

        Args:
            round_index: from 1.
            index: of the task.
            controller: the student before this round; None reads its file.
        """

        def make() -> dict:
            student = controller or self.policy(round_index - 1).controller(self.config)
            planned, config = self.plan(index), self.config.of_task(index)
            curve, _ = self.oracle(index)
            log_guess, seeds = guesses(planned, config, round_index)
            student = student.with_schedule(planned.schedule)
            return roll_out(student, planned, curve, log_guess, seeds, config)._asdict()

        return Episodes(**cached(self.rollouts_path(round_index, index), make))

    def rollouts_path(self, round_index: int, index: int) -> Path:
        """Where the episodes of a task in a round of rollouts are kept."""
        return self.student / f"round-{round_index}" / f"{index:05d}.pt"

    def rounds_trained(self) -> int:
        """How many trainings the student has behind it: the first is round 0."""
        return next(index for index in count() if not self.trained(index))

    def policy(self, round_index: int) -> ClonePolicy:
        """The student after a round, which must have been trained."""
        return averaged([self._member(round_index, member) for member in range(self.config.members)])

    def trained(self, round_index: int) -> bool:
        """Whether the student has been trained in a round."""
        return all(self._path(round_index, member).exists() for member in range(self.config.members))

    def train(self, round_index: int, indices: Sequence[int], progress: Progress | None = None) -> ClonePolicy:
        """Train the student on the oracle's episodes and all rounds of rollouts so far; continue from the last one.

        Args:
            round_index: 0 trains on the oracle's episodes alone.
            indices: of the tasks.
            progress: called after every update of the policy.
        """
        if not self.trained(round_index):
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
        before = member * self.config.steps

        def show(done: int, total: int) -> None:
            if progress is not None:
                what = f"round {round_index}: updates of the policy"
                progress(before + done, total * self.config.members, what)

        curve = fit(policy, store, self.config, 1000 * seed + round_index, show)
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
