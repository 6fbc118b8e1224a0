"""Gradient and update statistics of a user's `torch.optim.Optimizer`, in place of the engine's matrices.

Only the last two gradients of a decision interval are measured, with the update between them. From the first to the
second a copy of the gradients is held, and one of the weights unless the optimizer itself holds the update (SGD with
momentum). Nothing is read back to the host before a decision. Parameters that are sharded over ranks (FSDP) are
measured where they lie, and their sums are reduced once per decision.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import SGD, Optimizer

from metalr.optimizers.classic import from_torch
from metalr.schedulers.param_groups import copy_of
from metalr.schedulers.shards import real_part, shard_groups, share_of_rank, sum_over_ranks
from metalr.schedulers.sums import Number, as_float, compare
from metalr.signals import stats
from metalr.signals.stats import UpdateSums

Scope = Literal["global", "param_group"]

# On a CPU a copy of up to this many bytes stays allocated between measurements: fresh memory from the system costs a
# page fault for every four kilobytes.
_KEPT_BYTES = 16 * 2**20
# Columns of a group's measurement.
_COLUMNS = len(UpdateSums._fields)


class Held(NamedTuple):
    """Copies from before the second-to-last update of an interval; lists of tensors, one list per parameter group.

    Attributes:
        gradients: of the parameters that have one.
        weights: of the same parameters, which become the update once it has been made; empty where the optimizer
            itself holds the update.
        lrs: of that update.
    """

    gradients: list[list[Tensor]]
    weights: list[list[Tensor]]
    lrs: list[float | Tensor]


class OptimizerMeter:
    """The gradient statistics of `RunStats` for one optimizer.

    Args:
        optimizer: only read.
        scope: "global" measures all parameters together, including those of groups added later; "param_group" measures
            each of the present parameter groups separately.
        measure: False measures nothing and holds no memory.

    Raises:
        ValueError: an unknown scope.
    """

    def __init__(self, optimizer: Optimizer, scope: Scope, *, measure: bool = True) -> None:
        if scope not in ("global", "param_group"):
            raise ValueError(f"got scope {scope!r}, expected 'global' or 'param_group'")
        self.optimizer = optimizer
        self.scope = scope
        self.measure = measure
        self._spare: Held | None = None
        self.num_groups = 1 if scope == "global" else len(optimizer.param_groups)
        self.clear()

    def clear(self) -> None:
        """Forget what was measured of the interval."""
        self.held: Held | None = None
        self.measured: list[list[Number | None]] = []

    def prospect(self, lrs: list[float]) -> tuple[Tensor, Tensor]:
        """The optimizer's first update, before it is made.

        Nothing is changed: the update is computed by formula, one parameter at a time.

        Args:
            lrs: of that update, one for each parameter group.

        Returns:
            `update_ratio` and `log_descent` of `metalr.signals.stats.Prospect`, `(1, num_groups)` float64 on the host;
            NaN for an optimizer whose formula is not known here, or which has already made updates.
        """
        rows = []
        scale = self._unscale()
        for group, group_lr in zip(self._groups(), lrs, strict=False):
            inner = from_torch(self.optimizer, group) if self.measure else None
            params = [p for p in group["params"] if p.grad is not None and not p.grad.is_sparse]
            if inner is None or not params or any(map(self._has_history, params)):
                rows.append(torch.full((3,), torch.nan))
                continue
            total = torch.zeros(3, device=params[0].device)
            for p in params:
                row, gradient = (as_float(real_part(t.detach())).reshape(1, -1) for t in (p, p.grad))
                gradient = gradient if scale is None else gradient * scale
                lr = torch.full((1, 1), group_lr, dtype=row.dtype, device=row.device)
                step = torch.zeros(1, 1, device=row.device)
                new, _ = inner.update(gradient, inner.init(row), row, lr, step)
                update = new - row
                sums = torch.stack([update.square().sum(), row.square().sum(), (gradient * update).sum()])
                total = total + sums * self._share(p)
            rows.append(sum_over_ranks(total, self._shard_groups()))
        update_square, params_square, slope = self._join(torch.stack([r.double().cpu() for r in rows]))[None].unbind(-1)
        return stats.ratio(update_square, params_square), stats.log_size(slope)

    def _has_history(self, parameter: Tensor) -> bool:
        """Whether the optimizer has updated the parameter, as far as its state shows.

        Adagrad has buffers before its first update, SGD without momentum has none after it.
        """
        state = self.optimizer.state.get(parameter, {})
        return bool(state.get("step", 0) > 0 or state.get("momentum_buffer") is not None)

    @torch.no_grad()
    def before_second_last(self) -> None:
        """Keep gradients and weights before the second-to-last update of the interval."""
        if not self.measure:
            return
        gradients = self._gradients()
        params = [[] if self._holds_update(g) else p for g, p in zip(self._groups(), self._params(), strict=True)]
        lrs = [copy_of(group["lr"]) for group in self._groups()]
        spare, self._spare = self._spare, None
        if spare is None or _kinds(spare.gradients + spare.weights) != _kinds(gradients + params):
            spare = Held(_empty_like(gradients), _empty_like(params), lrs)
        self.held, self.measured = spare._replace(lrs=lrs), []
        for held, group in zip(spare.gradients + spare.weights, gradients + params, strict=True):
            if held:
                torch._foreach_copy_(held, group)
        scale = self._unscale()
        for held in spare.gradients:
            if held and scale is not None:
                torch._foreach_mul_(held, scale)

    @torch.no_grad()
    def before_last(self) -> None:
        """Compare them with gradients and weights before the last update.

        It may be called again, because that update failed or because its gradients were not complete; the last call
        counts.
        """
        gradients, params = self._gradients(), self._params()
        if self.held is None or _shapes(gradients) != _shapes(self.held.gradients):
            self.clear()
            return
        if not self.measured:
            for held, now in zip(self.held.weights, params, strict=True):
                if held:  # the weights before the update become the update, in place
                    torch._foreach_sub_(held, now)
                    torch._foreach_neg_(held)
        scale = self._unscale()
        self.measured = [
            [None] * _COLUMNS if sums is None else [*(sums if scale is None else _unscaled(sums, scale))]
            for sums in map(self._sums, range(len(gradients)), gradients, params, self._weights())
        ]

    def _sums(
        self, index: int, after: list[Tensor], params: list[Tensor], weights: list[float] | None
    ) -> UpdateSums | None:
        """The sums of a parameter group; None if it has no gradients, or no update is known."""
        assert self.held is not None
        before, update, factor = self.held.gradients[index], self.held.weights[index], None
        if not update and after:
            update, factor = self._momentum(index), -self.held.lrs[index]
        if not update:
            return None
        sums = UpdateSums(*compare(before, after, update, params, weights))
        if factor is None:
            return sums
        return sums._replace(
            slope_before=sums.slope_before * factor,
            slope_after=sums.slope_after * factor,
            square_update=sums.square_update * factor * factor,
        )

    def after_last(self) -> None:
        """Let go of the copies; call after the last update of the interval."""
        if self.held is None:
            return
        flat = [tensor for group in self.held.gradients + self.held.weights for tensor in group]
        small = sum(tensor.nbytes for tensor in flat) <= _KEPT_BYTES
        self._spare = self.held if small and all(tensor.device.type == "cpu" for tensor in flat) else None
        self.held = None

    def state(self) -> dict[str, Any]:
        """The measurements and copies held within an interval, as lists of tensors, numbers and None."""
        held = None
        if self.held is not None:
            held = [_clones(self.held.gradients), _clones(self.held.weights), [copy_of(lr) for lr in self.held.lrs]]
        return {"held": held, "measured": [list(row) for row in self.measured]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`, on the devices of the optimizer's parameters."""
        self.clear()
        devices = [next((p.device for p in group["params"]), torch.device("cpu")) for group in self._groups()]
        if state["held"] is not None:
            gradients, weights, lrs = state["held"]
            self.held = Held(_on(gradients, devices), _on(weights, devices), list(lrs))
        self.measured = [list(row) for row in state["measured"]]

    def on_device(self) -> Tensor | None:
        """All measurements as one `(num_param_groups, 7)` tensor on the parameters' device; None if there are none."""
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

    def statistics(self, measurement: Tensor | None) -> tuple[Tensor, ...]:
        """The fields of `RunStats` that describe gradients and the update between them.

        Args:
            measurement: the result of `on_device`, on the host.

        Returns:
            `(1, num_groups)` float64 each; NaN where not measured.
        """
        if measurement is None:
            measurement = torch.full((self.num_groups, _COLUMNS), torch.nan)
        return stats.update_stats(UpdateSums(*self._join(measurement.double())[None].unbind(-1)))

    def _join(self, rows: Tensor) -> Tensor:
        """For the global scope, the sum over the parameter groups that have gradients."""
        if self.scope == "param_group":
            return rows
        known = [row for row in rows.tolist() if not any(map(math.isnan, row))]
        total = [sum(column) for column in zip(*known, strict=True)] or [math.nan] * rows.shape[1]
        return rows.new_tensor([total])

    def _holds_update(self, group: dict[str, Any]) -> bool:
        """Whether the optimizer still holds its update after the step.

        For SGD with momentum it is -lr · momentum_buffer; the updates of others can only be seen in the weights.
        """
        return type(self.optimizer) is SGD and group["momentum"] > 0.0 and not group["nesterov"]

    def _momentum(self, index: int) -> list[Tensor]:
        held = [self.optimizer.state[p].get("momentum_buffer") for p in self._measured_params()[index]]
        return [] if any(buffer is None for buffer in held) else [real_part(buffer) for buffer in held]

    def _unscale(self) -> Tensor | None:
        """The factor that undoes the loss scale: a fused optimizer under a `GradScaler` sees scaled gradients."""
        scale = getattr(self.optimizer, "grad_scale", None)
        return None if scale is None else 1.0 / scale

    def _groups(self) -> list[dict[str, Any]]:
        groups = self.optimizer.param_groups
        return groups if self.scope == "global" else groups[: self.num_groups]

    def _measured_params(self) -> list[list[Tensor]]:
        # Of a sparse gradient the rows change from update to update: there is nothing to compare it with.
        return [[p for p in g["params"] if p.grad is not None and not p.grad.is_sparse] for g in self._groups()]

    def _gradients(self) -> list[list[Tensor]]:
        return [[real_part(p.grad) for p in group if p.grad is not None] for group in self._measured_params()]

    def _params(self) -> list[list[Tensor]]:
        return [[real_part(p.detach()) for p in group] for group in self._measured_params()]

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


def _unscaled(sums: UpdateSums, scale: Tensor) -> UpdateSums:
    """The sums without the loss scale on the gradients after the update; those before it were copied without."""
    return sums._replace(
        square_after=sums.square_after * scale * scale,
        product=sums.product * scale,
        slope_after=sums.slope_after * scale,
    )


def _clones(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[tensor.clone() for tensor in group] for group in groups]


def _shapes(groups: list[list[Tensor]]) -> list[list[torch.Size]]:
    return [[tensor.shape for tensor in group] for group in groups]


def _kinds(groups: list[list[Tensor]]) -> list[list[tuple]]:
    return [[(t.shape, t.dtype, t.device, t.stride()) for t in group] for group in groups]


def _empty_like(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[torch.empty_like(tensor) for tensor in group] for group in groups]


def _on(groups: list[list[Tensor]], devices: list[torch.device]) -> list[list[Tensor]]:
    return [[t.to(device, copy=True) for t in group] for group, device in zip(groups, devices, strict=True)]
