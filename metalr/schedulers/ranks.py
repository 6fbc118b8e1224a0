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
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metalr.schedulers.loss_log import mean_by_update

# The losses of so many ranks are averaged: more would tell little, and each rank reads all of them.
_SPEAKERS = 8
_numbers = itertools.count()


def connect() -> "Agreement | None":
    """The agreement with the other ranks; None where there are none.

    Schedulers are paired by the order in which they connect: when they are made, if the process group exists by then,
    else at their first updates. It is the same on all ranks that train one model.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    store = dist.distributed_c10d._get_default_store()
    return Agreement(dist.PrefixStore(f"metalr/{next(_numbers)}", store), dist.get_rank())


class Agreement:
    """One scheduler's talk with its twins on the other ranks.

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
        """Forget what was said: the update count begins anew, or jumps."""
        self._epoch += 1

    def publish(self, stop: int, losses: Mapping[int, float]) -> None:
        """Tell the others this rank's losses, by update, for the decision at update `stop`."""
        said = list(losses.items()) if self._rank < _SPEAKERS else []
        self._store.append(self._key("said", stop), json.dumps([self._rank, said]) + "\n")

    def mean_losses(self, stop: int) -> dict[int, float]:
        """The mean over ranks of the losses published for the decision at update `stop`, by update, in order."""
        updates: list[int] = []
        losses: list[float] = []
        for _, said in sorted(self._said(stop).items()):
            updates += [update for update, _ in said]
            losses += [loss for _, loss in said]
        return dict(sorted(mean_by_update(updates, losses).items()))

    def agree(self, stop: int, multiplier: Tensor) -> Tensor:
        """The multiplier that holds for all ranks from update `stop`, `(1, num_groups)` as offered."""
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

    def _said(self, stop: int) -> dict[int, list[tuple[int, float]]]:
        key = self._key("said", stop)
        if not self._store.check([key]):
            return {}
        lines = self._store.get(key).decode().splitlines()
        return dict(json.loads(line) for line in lines)  # of a rank that said it twice the last one counts

    def _key(self, what: str, stop: int) -> str:
        return f"{self._epoch}/{stop}/{what}"


def furthest_state(updates: int, state: dict[str, Any]) -> dict[str, Any]:
    """The state of the rank that has made the most updates; a collective, to be called on all ranks."""
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, updates)
    source = counts.index(max(counts))
    box = [state if dist.get_rank() == source else None]
    dist.broadcast_object_list(box, src=source)
    if box[0] is None:
        raise RuntimeError(f"got no scheduler state from rank {source}, expected one: call synchronize() on all ranks")
    return box[0]
