"""Gradient and update statistics of a user's `torch.optim.Optimizer`, in place of the engine's matrices.

Only the last two updates of a decision interval are measured. Between them one copy of the gradients is held; it then
becomes the copy of the weights from which the update is taken, unless the optimizer itself still holds the update (SGD
with momentum). Nothing is read back to the host before a decision. Parameters that are sharded over ranks (FSDP) are
measured where they lie, and their sums are reduced once per decision.
"""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import SGD, Optimizer

from metalr.optimizers.classic import from_torch
from metalr.schedulers.shards import local_part, shard_groups, share_of_rank, sum_over_ranks
from metalr.schedulers.sums import Number, as_float, compare, square_sum
from metalr.signals import stats

Scope = Literal["global", "param_group"]

# On a CPU a copy of up to this many bytes stays allocated between measurements: fresh memory from the system costs a
# page fault for every four kilobytes.
_KEPT_BYTES = 16 * 2**20
# Columns of a group's measurement; `statistics` names all five.
_SQUARE_LAST, _SQUARE_UPDATE = 1, 3


class OptimizerMeter:
    """The gradient statistics of `RunStats` for one optimizer.

    Args:
        optimizer: only read.
        scope: "global" measures all parameters together, including those of groups added later; "param_group" measures
            each of the present parameter groups separately.
        measure: False measures nothing and holds no memory.
        repeatable: the calls before an update may come several times, each with the gradients as they are by then; the
            last one counts. It takes a second copy of the gradients during the last update of an interval.

    Raises:
        ValueError: an unknown scope.
    """

    def __init__(self, optimizer: Optimizer, scope: Scope, *, measure: bool = True, repeatable: bool = False) -> None:
        if scope not in ("global", "param_group"):
            raise ValueError(f"got scope {scope!r}, expected 'global' or 'param_group'")
        self.optimizer = optimizer
        self.scope = scope
        self.measure = measure
        self.repeatable = repeatable
        self._spare: list[list[Tensor]] | None = None
        self.num_groups = 1 if scope == "global" else len(optimizer.param_groups)
        self.clear()

    def clear(self) -> None:
        """Forget what was measured of the interval."""
        self.buffers: list[list[Tensor]] | None = None
        self.measured: list[list[Number | None]] = []
        self._kept: list[list[Tensor]] | None = None

    def prospective_ratio(self, lrs: list[float]) -> Tensor:
        """The update ratio of the optimizer's first update, before it is made.

        Nothing is changed: the update is computed by formula, one parameter at a time.

        Args:
            lrs: of that update, one for each parameter group.

        Returns:
            |update| / |weights|, `(1, num_groups)` float64 on the host; NaN for an optimizer whose formula is not known
            here, or which has already made updates.
        """
        squares = []
        scale = self._unscale()
        for group, group_lr in zip(self._groups(), lrs, strict=False):
            inner = from_torch(self.optimizer, group) if self.measure else None
            params = [p for p in group["params"] if p.grad is not None and not p.grad.is_sparse]
            if inner is None or not params or any(map(self._has_history, params)):
                squares.append(torch.full((2,), torch.nan))
                continue
            total = torch.zeros(2, device=params[0].device)
            for p in params:
                row, gradient = (as_float(local_part(t.detach())).reshape(1, -1) for t in (p, p.grad))
                lr = torch.full((1, 1), group_lr, dtype=row.dtype, device=row.device)
                step = torch.zeros(1, 1, device=row.device)
                new, _ = inner.update(gradient if scale is None else gradient * scale, inner.init(row), row, lr, step)
                total = total + torch.stack([(new - row).square().sum(), row.square().sum()]) * self._share(p)
            squares.append(sum_over_ranks(total, self._shard_groups()))
        together = self._join(torch.stack([s.double().cpu() for s in squares]))
        return stats.ratio(together[:, 0], together[:, 1])[None]

    def _has_history(self, parameter: Tensor) -> bool:
        """Whether the optimizer has updated the parameter, as far as its state shows.

        Adagrad has buffers before its first update, SGD without momentum has none after it.
        """
        state = self.optimizer.state.get(parameter, {})
        return bool(state.get("step", 0) > 0 or state.get("momentum_buffer") is not None)

    @torch.no_grad()
    def before_second_last(self) -> None:
        """Keep the gradients of the second-to-last update of the interval; call before that update."""
        if self.measure:
            scale, gradients = self._unscale(), self._gradients()
            if self._spare is None or _kinds(self._spare) != _kinds(gradients):
                self._spare = [[torch.empty_like(g) for g in group] for group in gradients]
            self.buffers, self._spare, self.measured = self._spare, None, []
            for held, group in zip(self.buffers, gradients, strict=True):
                if held:
                    torch._foreach_copy_(held, group)
                if held and scale is not None:
                    torch._foreach_mul_(held, scale)

    @torch.no_grad()
    def before_last(self) -> None:
        """Compare them with the gradients of the last update, and keep the weights; call before that update.

        Called again because that update failed, it keeps what it has measured if the gradients are the same; otherwise
        nothing is known of this interval, since the gradients to compare with have made room for the weights. A
        repeatable meter compares anew.
        """
        gradients = self._gradients()
        if self.measured and self._same_as_measured(gradients):
            return
        if self.repeatable and self.measured and self._kept is not None:
            self.buffers, self.measured = _clones(self._kept), []
        elif self.repeatable and self.buffers is not None:
            self._kept = _clones(self.buffers)
        if self.measured or self.buffers is None or _shapes(gradients) != _shapes(self.buffers):
            self.clear()
            return
        self.measured = []
        scale = self._unscale()
        for held, last, params, weights, copies in zip(
            self.buffers, gradients, self._params(), self._weights(), self._copies_weights(), strict=True
        ):
            if not last:
                self.measured.append([None] * 5)
                continue
            square_before, square_last, square_params, product = compare(held, last, params, weights)
            if scale is not None:
                square_last, product = square_last * scale * scale, product * scale
            self.measured.append([square_before, square_last, product, None, square_params])
            if copies and _shapes([held]) == _shapes([params]):
                torch._foreach_copy_(held, params)

    def _same_as_measured(self, gradients: list[list[Tensor]]) -> bool:
        scale = self._unscale()
        for row, last, weights in zip(self.measured, gradients, self._weights(), strict=True):
            square = square_sum(last, weights) if last else None
            if square is not None and scale is not None:
                square = square * scale * scale
            if (square is None) != (row[_SQUARE_LAST] is None) or square != row[_SQUARE_LAST]:
                return False
        return True

    @torch.no_grad()
    def after_last(self) -> None:
        """Measure the last update of the interval; call after it."""
        if not self.measured or self.buffers is None:
            return
        for index, (row, held, params, weights, copied) in enumerate(
            zip(self.measured, self.buffers, self._params(), self._weights(), self._copies_weights(), strict=True)
        ):
            if held and not copied:
                lr, momentum = self._groups()[index]["lr"], self._momentum(index)
                row[_SQUARE_UPDATE] = square_sum(momentum, weights) * lr * lr if momentum else None
            elif held and _shapes([held]) == _shapes([params]):
                torch._foreach_sub_(held, params)  # in place: the copy is no longer needed
                row[_SQUARE_UPDATE] = square_sum(held, weights)
        flat = [buffer for held in self.buffers for buffer in held]
        small = sum(buffer.nbytes for buffer in flat) <= _KEPT_BYTES
        self._spare = self.buffers if small and all(buffer.device.type == "cpu" for buffer in flat) else None
        self.buffers = self._kept = None

    def state(self) -> dict[str, Any]:
        """The measurements and copies held within an interval, as lists of tensors, numbers and None."""
        held = None if self.buffers is None else _clones(self.buffers)
        return {"buffers": held, "measured": [list(row) for row in self.measured]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`, on the devices of the optimizer's parameters."""
        self.clear()
        devices = [group["params"][0].device for group in self._groups()]
        if state["buffers"] is not None:
            pairs = zip(state["buffers"], devices, strict=True)
            self.buffers = [[b.to(device, copy=True) for b in group] for group, device in pairs]
        self.measured = [list(row) for row in state["measured"]]

    def on_device(self) -> Tensor | None:
        """All measurements as one `(num_param_groups, 5)` tensor on the parameters' device; None if there are none."""
        found = [value for row in self.measured for value in row]
        if all(value is None for value in found):
            return None
        values = [math.nan if value is None else value for value in found]
        like = next((value for value in values if isinstance(value, Tensor)), None)
        if like is None:
            sums = torch.tensor(values, dtype=torch.float64)
        else:  # sending a number to the device would mean waiting for it
            sums = torch.stack([v.to(like) if isinstance(v, Tensor) else torch.full_like(like, v) for v in values])
        return sum_over_ranks(sums.view(len(self.measured), -1), self._shard_groups())

    def statistics(self, measurement: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient fields of `RunStats`.

        Args:
            measurement: the result of `on_device`, on the host.

        Returns:
            Gradient norm, gradient cosine and update ratio, each `(1, num_groups)` float64; NaN where not measured.
        """
        if measurement is None:
            unknown = torch.full((1, self.num_groups), torch.nan, dtype=torch.float64)
            return unknown, unknown, unknown
        before, last, product, update, params = self._join(measurement.double())[None].unbind(-1)
        norm = stats.gradient_norm(before, last)
        return norm, stats.cosine(product, before, last), stats.ratio(update, params)

    def _join(self, rows: Tensor) -> Tensor:
        """For the global scope, the sum over the parameter groups that have gradients."""
        if self.scope == "param_group":
            return rows
        known = [row for row in rows.tolist() if not any(map(math.isnan, row))]
        total = [sum(column) for column in zip(*known, strict=True)] or [math.nan] * rows.shape[1]
        return rows.new_tensor([total])

    def _copies_weights(self) -> list[bool]:
        """For each parameter group, whether its update can only be seen in the weights.

        SGD with momentum still holds the update after the step: it is lr · momentum_buffer.
        """
        is_sgd = type(self.optimizer) is SGD
        return [not (is_sgd and group["momentum"] and not group["nesterov"]) for group in self._groups()]

    def _momentum(self, index: int) -> list[Tensor]:
        held = [self.optimizer.state[p].get("momentum_buffer") for p in self._measured_params()[index]]
        return [] if any(buffer is None for buffer in held) else [local_part(buffer) for buffer in held]

    def _unscale(self) -> Tensor | None:
        """The factor that undoes the loss scale: a fused optimizer under a `GradScaler` sees scaled gradients."""
        scale = getattr(self.optimizer, "grad_scale", None)
        return None if scale is None else 1.0 / scale

    def _groups(self) -> list[dict[str, Any]]:
        groups = self.optimizer.param_groups
        return groups if self.scope == "global" else groups[: self.num_groups]

    def _measured_params(self) -> list[list[Tensor]]:
        return [[p for p in group["params"] if p.grad is not None] for group in self._groups()]

    def _gradients(self) -> list[list[Tensor]]:
        return [[_dense(p.grad) for p in group if p.grad is not None] for group in self._measured_params()]

    def _params(self) -> list[list[Tensor]]:
        return [[local_part(p) for p in group] for group in self._measured_params()]

    # Sharded parameters

    def _shard_groups(self) -> list[dist.ProcessGroup]:
        return shard_groups(p for group in self._groups() for p in group["params"])

    def _share(self, parameter: Tensor) -> float:
        return share_of_rank(parameter, self._shard_groups())

    def _weights(self) -> list[list[float] | None]:
        """For each parameter group, the weights of its parameters in the sums; None where nothing is sharded."""
        measured = self._measured_params()
        if not self._shard_groups():
            return [None] * len(measured)
        return [[self._share(p) for p in group] for group in measured]


def _dense(gradient: Tensor) -> Tensor:
    gradient = local_part(gradient)
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _clones(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[tensor.clone() for tensor in group] for group in groups]


def _shapes(groups: list[list[Tensor]]) -> list[list[torch.Size]]:
    return [[tensor.shape for tensor in group] for group in groups]


def _kinds(groups: list[list[Tensor]]) -> list[list[tuple]]:
    return [[(t.shape, t.dtype, t.device, t.stride()) for t in group] for group in groups]
