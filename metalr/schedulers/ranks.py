"""How the ranks of a distributed run come to the same decision, without a collective that could hang.

Under data parallelism the gradients are the same on every rank and the losses are not. Two ways that suggest
themselves are wrong. A collective at each decision deadlocks under `DistributedDataParallel.join()`: a rank that has
run out of data shadows DDP's own collectives and no others. And waiting for rank 0 deadlocks when rank 0 is the one
that ran out. So the ranks talk through the key-value store that every process group has, and nobody waits:

1. Right before the last update but one of an interval each rank appends its losses so far to one key.
2. The backward pass of the last update follows. It reduces gradients over all ranks that still train, so when it is
   done on one rank, every such rank has appended. (On a GPU the host may run ahead; reading the gradient statistics
   to the host, which a decision does first, waits for that reduction.)
3. Each rank reads the key and takes the mean over ranks. All read the same text, so all decide the same.
4. Each offers its multiplier with an atomic compare-and-set and takes what is in the store. That changes nothing as
   long as the ranks compute alike; where their processors round differently, the first one's numbers hold for all.

A loss of the last update of an interval thus counts in the next one. Which ranks' losses count does not depend on
timing, so a run repeats exactly.
"""

import itertools
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metalr.schedulers.loss_log import LossLog, mean_by_update

# The losses of so many ranks are averaged: more would tell little, and each rank reads all of them.
_SPEAKERS = 8
_numbers = itertools.count()


class Talk(ABC):
    """What a scheduler says to the schedulers of the other ranks, and hears from them."""

    @abstractmethod
    def restart(self) -> None:
        """Forget what was said: the update count begins anew, or jumps."""

    @abstractmethod
    def publish(self, stop: int, losses: Mapping[int, float]) -> None:
        """Tell the others this rank's losses, by update, for the decision at update `stop`."""

    @abstractmethod
    def gather(
        self, stop: int, updates: int, log: LossLog, measurement: Tensor | None
    ) -> tuple[list[float], Tensor | None]:
        """The losses that the decision at update `stop` is taken on, in order, and the measurement on the host.

        Args:
            stop: of the decision.
            updates: made so far.
            log: this rank's losses.
            measurement: of gradients and updates, where it lies; None without any.
        """

    @abstractmethod
    def agree(self, stop: int, multiplier: Tensor) -> Tensor:
        """The multiplier that holds for all ranks from update `stop`, `(1, num_groups)` as offered."""

    def furthest_state(self, updates: int, state: dict[str, Any]) -> dict[str, Any] | None:
        """The state of the rank that has made the most updates; None where there are no others."""
        return None


class Alone(Talk):
    """No other ranks."""

    def restart(self) -> None:
        """Nothing to forget."""

    def publish(self, stop: int, losses: Mapping[int, float]) -> None:
        """Nobody listens."""

    def gather(
        self, stop: int, updates: int, log: LossLog, measurement: Tensor | None
    ) -> tuple[list[float], Tensor | None]:
        """This rank's losses, with the measurement by one copy from device to host."""
        # A late decision must not see the loss of the coming update, which `observe` may have brought already.
        at, values = log.take(updates)
        if measurement is not None and isinstance(values, Tensor):
            flat = torch.cat([measurement.flatten().double(), values.to(measurement.device)]).cpu()
            measurement, values = flat[: measurement.numel()].view(measurement.shape), flat[measurement.numel() :]
        return list(mean_by_update(at, values).values()), None if measurement is None else measurement.cpu()

    def agree(self, stop: int, multiplier: Tensor) -> Tensor:
        """Its own."""
        return multiplier


class Agreement(Talk):
    """One scheduler and its counterparts on the other ranks.

    Args:
        store: shared by all ranks; `append`, `get`, `check` and `compare_set` are used.
        rank: of this process.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._epoch = 0
        self._warned = False

    def restart(self) -> None:
        self._epoch += 1

    def publish(self, stop: int, losses: Mapping[int, float]) -> None:
        said = list(losses.items()) if self._rank < _SPEAKERS else []
        self._store.append(self._key("said", stop), json.dumps([self._rank, said]) + "\n")

    def gather(
        self, stop: int, updates: int, log: LossLog, measurement: Tensor | None
    ) -> tuple[list[float], Tensor | None]:
        # In this order: to read the measurement is to wait for the gradients of all ranks.
        measurement = None if measurement is None else measurement.cpu()
        return list(self.mean_losses(stop).values()), measurement

    def mean_losses(self, stop: int) -> dict[int, float]:
        """The mean over ranks of the losses published for the decision at update `stop`, by update, in order."""
        updates: list[int] = []
        losses: list[float] = []
        for _, said in sorted(self._said(stop).items()):
            updates += [update for update, _ in said]
            losses += [loss for _, loss in said]
        return dict(sorted(mean_by_update(updates, losses).items()))

    def agree(self, stop: int, multiplier: Tensor) -> Tensor:
        ranks = sorted(self._said(stop))
        mine = json.dumps({"ranks": ranks, "multiplier": multiplier.tolist()})
        text = self._store.compare_set(self._key("decision", stop), "", mine)
        decision = json.loads(text)
        if decision["ranks"] and self._rank not in decision["ranks"] and not self._warned:
            self._warned = True
            warnings.warn(
                f"LearnedLR: rank {self._rank} has made fewer updates than ranks {decision['ranks']}, expected the "
                "same on all: after a block of uneven inputs (`with model.join()`) call scheduler.synchronize() on "
                "all ranks.",
                UserWarning,
                stacklevel=6,
            )
        return torch.tensor(decision["multiplier"], dtype=multiplier.dtype)

    def furthest_state(self, updates: int, state: dict[str, Any]) -> dict[str, Any] | None:
        """A collective, to be called on all ranks."""
        counts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(counts, updates)
        source = counts.index(max(counts))
        box = [state if dist.get_rank() == source else None]
        dist.broadcast_object_list(box, src=source)
        if box[0] is None:
            raise RuntimeError(
                f"got no scheduler state from rank {source}, expected one: call synchronize() on all ranks"
            )
        return box[0]

    def _said(self, stop: int) -> dict[int, list[tuple[int, float]]]:
        key = self._key("said", stop)
        if not self._store.check([key]):
            return {}
        lines = self._store.get(key).decode().splitlines()
        return dict(json.loads(line) for line in lines)  # of a rank that said it twice the last one counts

    def _key(self, what: str, stop: int) -> str:
        return f"{self._epoch}/{stop}/{what}"


class Ranks:
    """The talk of a scheduler that may be made before its process group.

    Schedulers are paired by the order in which they look for each other: when they are made, if the process group
    exists by then, else at their first updates. It is the same on all ranks that train one model.

    Args:
        distributed: False where the ranks of a process group train different models.

    Attributes:
        published: stop and losses that were said last, `{"stop": …, "losses": …}`; None before. A checkpoint
            between the last two updates of an interval keeps it, and `resume` says it again.
    """

    def __init__(self, distributed: bool) -> None:
        self.distributed = distributed
        self.published: dict[str, Any] | None = None
        self._talk: Talk | None = _other_ranks() if distributed else Alone()

    @property
    def talk(self) -> Talk:
        """With the other ranks, from the first call on the same; alone where there are none."""
        if self._talk is None:
            self._talk = _other_ranks() or Alone()
        return self._talk

    def publish(self, stop: int, updates: int, log: LossLog) -> None:
        """Say the losses before and of the coming update, for the decision at `stop`."""
        if not isinstance(self.talk, Alone):
            losses = mean_by_update(*log.take(updates + 1))
            self.published = {"stop": stop, "losses": losses}
            self.talk.publish(stop, losses)

    def restart(self) -> None:
        """Begin a new run."""
        self.published = None
        if self._talk is not None:
            self._talk.restart()

    def resume(self, published: dict[str, Any] | None, stop: int | None) -> None:
        """Continue from a checkpoint that had `published` on the way to a decision at `stop`."""
        self.talk.restart()
        self.published = published
        if published is not None and published["stop"] == stop:
            self.talk.publish(published["stop"], published["losses"])

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks for its own counterparts."""
        return {**self.__dict__, "_talk": None if self.distributed else Alone()}


def _other_ranks() -> Agreement | None:
    """The agreement with the other ranks; None where there are none yet."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    store = dist.distributed_c10d._get_default_store()
    return Agreement(dist.PrefixStore(f"metalr/{next(_numbers)}", store), dist.get_rank())
