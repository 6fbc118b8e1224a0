"""Agreement between the ranks of a distributed run on each decision, without a collective that could hang.

Under data parallelism the gradients are the same on every rank, but the losses are not. The two obvious ways to agree
are wrong. A collective at each decision deadlocks under `DistributedDataParallel.join()`: a rank that has run out of
data shadows DDP's own collectives but no others. Waiting for rank 0 deadlocks when rank 0 is the one that ran out. So
the ranks communicate through the key-value store that every process group has, and no rank waits for another:

1. Immediately before the second-to-last update of an interval, each rank appends its losses so far to one key.
2. The backward pass of the last update follows. It reduces gradients over all ranks that are still training, so once it
   has finished on one rank, every such rank has appended. (On a GPU the host may run ahead; copying the gradient
   statistics to the host, the first thing that a decision does, waits for that reduction.)
3. Each rank reads the key and takes the mean over ranks. All read the same text, so all decide alike.
4. Each rank offers its multiplier in an atomic compare-and-set and takes the one that the store holds. That changes
   nothing as long as the ranks compute alike; where their processors round differently, the numbers of the first rank
   to offer hold for all.

The loss of the last update of an interval therefore counts in the next interval, and the first decision, before which
nothing can have been exchanged, sees no loss. Which ranks' losses count does not depend on timing, so a run repeats
exactly.
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

# Losses are averaged over this many ranks: more would add little, and each rank reads all of them.
_SPEAKERS = 8
_numbers = itertools.count()


class Talk(ABC):
    """The exchange between a scheduler and its counterparts on the other ranks."""

    @abstractmethod
    def restart(self) -> None:
        """Forget everything published, because the update count starts over or jumps."""

    @abstractmethod
    def first_loss(self, log: LossLog) -> float | None:
        """The loss that the decision before the first update may see; None if there is none that all ranks know."""

    @abstractmethod
    def publish(self, stop: int, losses: Mapping[int, float]) -> None:
        """Give the other ranks this rank's losses for a decision.

        Args:
            stop: update count at the decision.
            losses: update -> loss.
        """

    @abstractmethod
    def gather(
        self, stop: int, updates: int, log: LossLog, measurement: Tensor | None
    ) -> tuple[list[float], Tensor | None]:
        """Everything that a decision is based on.

        Args:
            stop: update count at the decision.
            updates: made so far.
            log: of this rank's losses.
            measurement: of gradients and updates, on their device; None if there is none.

        Returns:
            The losses in order, and the measurement on the host.
        """

    @abstractmethod
    def agree(self, stop: int, multiplier: Tensor) -> Tensor:
        """The multiplier that all ranks use from update `stop` on.

        Args:
            stop: update count at the decision.
            multiplier: this rank's own, `(1, num_groups)`.

        Returns:
            The agreed one, in the same shape and dtype.
        """

    def furthest_state(self, updates: int, state: dict[str, Any]) -> dict[str, Any] | None:
        """The state of the rank that has made the most updates.

        Args:
            updates: made by this rank.
            state: of this rank.

        Returns:
            That state; None if there are no other ranks.
        """
        return None


class Alone(Talk):
    """The exchange without other ranks."""

    def restart(self) -> None:
        """Do nothing: nothing is ever published."""

    def first_loss(self, log: LossLog) -> float | None:
        """The mean of this rank's losses."""
        return log.mean() if log else None

    def publish(self, stop: int, losses: Mapping[int, float]) -> None:
        """Do nothing: there is no rank to read the losses."""

    def gather(
        self, stop: int, updates: int, log: LossLog, measurement: Tensor | None
    ) -> tuple[list[float], Tensor | None]:
        """This rank's losses and measurement, by a single copy from device to host."""
        # A late decision must not see the loss of the coming update, which `observe` may already have recorded.
        at, values = log.take(updates)
        if measurement is not None and isinstance(values, Tensor):
            flat = torch.cat([measurement.flatten().double(), values.to(measurement.device)]).cpu()
            measurement, values = flat[: measurement.numel()].view(measurement.shape), flat[measurement.numel() :]
        return list(mean_by_update(at, values).values()), None if measurement is None else measurement.cpu()

    def agree(self, stop: int, multiplier: Tensor) -> Tensor:
        """This rank's own multiplier."""
        return multiplier


class Agreement(Talk):
    """The exchange through a key-value store.

    Args:
        store: shared by all ranks, with `append`, `get`, `check` and `compare_set`.
        rank: of this process.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._epoch = 0
        self._warned = False

    def restart(self) -> None:
        self._epoch += 1

    def first_loss(self, log: LossLog) -> float | None:
        """None: with its own loss each rank would decide otherwise, and whoever came first would decide for all."""
        return None

    def publish(self, stop: int, losses: Mapping[int, float]) -> None:
        said = list(losses.items()) if self._rank < _SPEAKERS else []
        self._store.append(self._key("said", stop), json.dumps([self._rank, said]) + "\n")

    def gather(
        self, stop: int, updates: int, log: LossLog, measurement: Tensor | None
    ) -> tuple[list[float], Tensor | None]:
        # In this order, because reading the measurement waits for the gradients of all ranks.
        measurement = None if measurement is None else measurement.cpu()
        return list(self.mean_losses(stop).values()), measurement

    def mean_losses(self, stop: int) -> dict[int, float]:
        """The mean over ranks of the losses published for the decision at update `stop`: update -> loss, in order."""
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
        """The state of the rank that has made the most updates; a collective, to be called on all ranks.

        Raises:
            RuntimeError: that rank did not take part.
        """
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
        return dict(json.loads(line) for line in lines)  # if a rank has published twice, the last line counts

    def _key(self, what: str, stop: int) -> str:
        return f"{self._epoch}/{stop}/{what}"


class Ranks:
    """The exchange of a scheduler that may be made before its process group.

    Schedulers on different ranks are paired by the order in which they look for each other: when they are made, if the
    process group exists by then, otherwise at their first updates. That order is the same on all ranks that train one
    model.

    Args:
        distributed: False if the ranks of a process group train different models.

    Attributes:
        published: `{"stop": …, "losses": …}` as published last; None if nothing was. A checkpoint between the last two
            updates of an interval contains it, and `resume` publishes it again.
    """

    def __init__(self, distributed: bool) -> None:
        self.distributed = distributed
        self.published: dict[str, Any] | None = None
        self._talk: Talk | None = _other_ranks() if distributed else Alone()

    @property
    def talk(self) -> Talk:
        """The exchange with the other ranks, or `Alone` if there are none; settled at the first call."""
        if self._talk is None:
            self._talk = _other_ranks() or Alone()
        return self._talk

    def publish(self, stop: int, updates: int, log: LossLog) -> None:
        """Publish the losses up to and including the coming update.

        Args:
            stop: update count at the decision that they are for.
            updates: made so far.
            log: from which they are taken.
        """
        if not isinstance(self.talk, Alone):
            losses = mean_by_update(*log.take(updates + 1))
            if self.published is not None and self.published["stop"] == stop:  # said before, for the same update
                losses = self.published["losses"] | losses
            self.published = {"stop": stop, "losses": losses}
            self.talk.publish(stop, losses)

    def restart(self) -> None:
        """Start a new run."""
        self.published = None
        if self._talk is not None:
            self._talk.restart()

    def resume(self, published: dict[str, Any] | None, stop: int | None) -> None:
        """Continue from a checkpoint.

        Args:
            published: the attribute of that name in the checkpoint.
            stop: update count at the next decision; None after the last one.
        """
        self.talk.restart()
        self.published = published
        if published is not None and published["stop"] == stop:
            self.talk.publish(published["stop"], published["losses"])

    def __getstate__(self) -> dict[str, Any]:
        # A copy looks for counterparts of its own.
        return {**self.__dict__, "_talk": None if self.distributed else Alone()}


def _other_ranks() -> Agreement | None:
    """The exchange with the other ranks; None if there are none yet."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    store = dist.distributed_c10d._get_default_store()
    return Agreement(dist.PrefixStore(f"metalr/{next(_numbers)}", store), dist.get_rank())
