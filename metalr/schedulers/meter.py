"""Measures gradients and updates of a user's `torch.optim.Optimizer`, in place of the engine's matrices.

Only the last two updates of a decision interval are measured. Between them one copy of the gradients is held,
which then becomes the copy of the weights from which the update is taken, unless the optimizer itself still holds
the update (SGD with momentum). No value is read back to the host before a decision. Parameters that are sharded over
ranks (FSDP) are measured where they lie, and the sums are reduced once for a decision.
"""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from metalr.optimizers.classic import from_torch
from metalr.signals import stats

Scope = Literal["global", "param_group"]
# On a CPU sums are plain numbers, which are quicker to add than tensors; elsewhere tensors, which need no waiting.
Number = float | Tensor

# A copy up to this size in bytes stays allocated between measurements on a CPU, where fresh memory from the system
# costs a page fault for every four kilobytes.
_KEPT_BYTES = 16 * 2**20
# Where torch's own allocations begin, in bytes.
_BOUNDARY = 64
# Of the five columns of a group's measurement the one that is known last; `statistics` names them all.
_SQUARE_UPDATE = 3

_HALF = (torch.float16, torch.bfloat16)


def _float(tensor: Tensor) -> Tensor:
    """At least float32: squares of half-precision gradients overflow."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def _dense(tensor: Tensor) -> Tensor:
    tensor = _local(tensor)
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _is_plain(tensor: Tensor) -> bool:
    """Not a `DTensor`, for one; asking a tensor for an attribute that it lacks takes longer."""
    return type(tensor) in (Tensor, Parameter)


def _is_sharded(tensor: Tensor) -> bool:
    if _is_plain(tensor) or not hasattr(tensor, "placements"):
        return False
    return any(place.is_shard() for place in tensor.placements)


def _local(tensor: Tensor) -> Tensor:
    """The part of a `DTensor` that lies on this rank; any other tensor itself."""
    return tensor if _is_plain(tensor) or not hasattr(tensor, "to_local") else tensor.to_local()


def _on_host(tensors: list[Tensor]) -> bool:
    return tensors[0].is_cpu


def _compare(held: list[Tensor], last: list[Tensor], params: list[Tensor], weights: list[float] | None) -> list[Number]:
    """Squared norms of the three and the scalar product of the first two, which may use up `held`."""
    if _on_host(last):
        # Tensor by tensor: what one pass has brought into the cache serves the next.
        rows = [_compare_on_host(*three) for three in zip(held, last, params, strict=True)]
        return [_total(column, weights) for column in zip(*rows, strict=True)]
    squares = _squares(held + last + params).view(3, -1)
    products = torch.stack([_product(a, b) for a, b in zip(held, last, strict=True)])
    return [*_total(torch.cat([squares, products[None]]), weights)]


def _compare_on_host(held: Tensor, last: Tensor, param: Tensor) -> tuple[float, ...]:
    return _square(held).item(), _square(last).item(), _square(param).item(), _product(held, last).item()


def _square_sum(tensors: list[Tensor], weights: list[float] | None) -> Number:
    if _on_host(tensors):
        return _total([_square(tensor).item() for tensor in tensors], weights)
    return _total(_squares(tensors), weights)


def _squares(tensors: list[Tensor]) -> Tensor:
    half = any(tensor.dtype in _HALF for tensor in tensors)
    norms = torch.stack(torch._foreach_norm(tensors, 2.0, dtype=torch.float32 if half else None))
    return norms * norms


def _square(tensor: Tensor) -> Tensor:
    if _suits_dot(tensor):
        return torch.dot(tensor.view(-1), tensor.view(-1))
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float32 if tensor.dtype in _HALF else None)
    return norm * norm


def _product(held: Tensor, last: Tensor) -> Tensor:
    if _suits_dot(held) and _suits_dot(last):
        return torch.dot(held.view(-1), last.view(-1))
    if held.dtype in _HALF:
        return (_float(held) * _float(last)).sum()
    return held.mul_(last).sum()  # in place, so that no tensor of the products is made


def _suits_dot(tensor: Tensor) -> bool:
    # The last bits of a scalar product depend on where the numbers lie in memory, unless they begin on a boundary, and
    # a resumed run must repeat.
    aligned = tensor.data_ptr() % _BOUNDARY == 0 and tensor.is_contiguous()
    return aligned and tensor.dtype not in _HALF and tensor.numel() < 2**31


def _total(values: Any, weights: list[float] | None) -> Any:
    """Weighted sum over the parameters: of numbers, or over the last axis of a tensor."""
    if isinstance(values, Tensor):
        return (values if weights is None else values * values.new_tensor(weights)).sum(-1)
    return sum(values) if weights is None else sum(v * w for v, w in zip(values, weights, strict=True))


class OptimizerMeter:
    """The gradient statistics of `RunStats` for one optimizer.

    Args:
        optimizer: only read.
        scope: "global" measures all its parameters together, "param_group" each of its present parameter groups alone
            (groups added later are not measured then).
        measure: False measures nothing and holds no memory.
    """

    def __init__(self, optimizer: Optimizer, scope: Scope, *, measure: bool = True) -> None:
        if scope not in ("global", "param_group"):
            raise ValueError(f"got scope {scope!r}, expected 'global' or 'param_group'")
        self.optimizer = optimizer
        self.scope = scope
        self.measure = measure
        self._spare: list[list[Tensor]] | None = None
        self.num_groups = 1 if scope == "global" else len(optimizer.param_groups)
        self.clear()

    def clear(self) -> None:
        """Forget the interval."""
        self.buffers: list[list[Tensor]] | None = None
        self.measured: list[list[Number | None]] = []

    def prospective_ratio(self, lrs: list[float]) -> Tensor:
        """The update ratio that the optimizer's first update would have, `(1, num_groups)` float64 on the host.

        Nothing is changed: the update is computed by formula, one parameter at a time. NaN for an optimizer
        whose formula is not known here, or that has already made updates.

        Args:
            lrs: of that update, one for each parameter group.
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
                row, gradient = (_float(_local(t.detach())).reshape(1, -1) for t in (p, p.grad))
                lr = torch.full((1, 1), group_lr, dtype=row.dtype, device=row.device)
                step = torch.zeros(1, 1, device=row.device)
                new, _ = inner.update(gradient if scale is None else gradient * scale, inner.init(row), row, lr, step)
                total = total + torch.stack([(new - row).square().sum(), row.square().sum()]) * self._weight(p)
            squares.append(self._over_ranks(total))
        together = self._join(torch.stack([s.double().cpu() for s in squares]))
        return stats.ratio(together[:, 0], together[:, 1])[None]

    def _has_history(self, parameter: Tensor) -> bool:
        """Whether an update has been made: Adagrad has buffers before the first, SGD without momentum none after it."""
        state = self.optimizer.state.get(parameter, {})
        return bool(state.get("step", 0) > 0 or state.get("momentum_buffer") is not None)

    @torch.no_grad()
    def before_second_last(self) -> None:
        """Keep the gradients of the interval's last update but one; call before that update."""
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
        """Compare with the gradients of the last update, and keep the weights; call before that update."""
        gradients = self._gradients()
        if self.buffers is None or _shapes(gradients) != _shapes(self.buffers):
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
            square_before, square_last, square_params, product = _compare(held, last, params, weights)
            if scale is not None:
                square_last, product = square_last * scale * scale, product * scale
            self.measured.append([square_before, square_last, product, None, square_params])
            if copies and _shapes([held]) == _shapes([params]):
                torch._foreach_copy_(held, params)

    @torch.no_grad()
    def after_last(self) -> None:
        """Measure the update that was made; call after the interval's last update."""
        if not self.measured or self.buffers is None:
            return
        for index, (row, held, params, weights, copied) in enumerate(
            zip(self.measured, self.buffers, self._params(), self._weights(), self._copies_weights(), strict=True)
        ):
            if held and not copied:
                lr, momentum = self._groups()[index]["lr"], self._momentum(index)
                row[_SQUARE_UPDATE] = _square_sum(momentum, weights) * lr * lr if momentum else None
            elif held and _shapes([held]) == _shapes([params]):
                torch._foreach_sub_(held, params)  # in place: the copy is not needed any more
                row[_SQUARE_UPDATE] = _square_sum(held, weights)
        flat = [buffer for held in self.buffers for buffer in held]
        small = sum(buffer.nbytes for buffer in flat) <= _KEPT_BYTES
        self._spare = self.buffers if small and all(buffer.device.type == "cpu" for buffer in flat) else None
        self.buffers = None

    def state(self) -> dict[str, Any]:
        """What is held between the updates of an interval, as lists of tensors, numbers and None."""
        held = None if self.buffers is None else [[b.clone() for b in group] for group in self.buffers]
        return {"buffers": held, "measured": [list(row) for row in self.measured]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, on the devices of the optimizer's parameters."""
        self.clear()
        devices = [group["params"][0].device for group in self._groups()]
        if state["buffers"] is not None:
            pairs = zip(state["buffers"], devices, strict=True)
            self.buffers = [[b.to(device, copy=True) for b in group] for group, device in pairs]
        self.measured = [list(row) for row in state["measured"]]

    def on_device(self) -> Tensor | None:
        """All measurements as one `(num_param_groups, 5)` tensor where the parameters are; None without any."""
        found = [value for row in self.measured for value in row]
        if all(value is None for value in found):
            return None
        values = [math.nan if value is None else value for value in found]
        like = next((value for value in values if isinstance(value, Tensor)), None)
        if like is None:
            sums = torch.tensor(values, dtype=torch.float64)
        else:  # no number is sent to the device, which would have to be waited for
            sums = torch.stack([v.to(like) if isinstance(v, Tensor) else torch.full_like(like, v) for v in values])
        return self._over_ranks(sums.view(len(self.measured), -1))

    def statistics(self, measurement: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient norm, gradient cosine and update ratio, `(1, num_groups)` each, from `on_device` on the host."""
        if measurement is None:
            unknown = torch.full((1, self.num_groups), torch.nan, dtype=torch.float64)
            return unknown, unknown, unknown
        before, last, product, update, params = self._join(measurement.double())[None].unbind(-1)
        norm = stats.gradient_norm(before, last)
        return norm, stats.cosine(product, before, last), stats.ratio(update, params)

    def _join(self, rows: Tensor) -> Tensor:
        """Sum over parameter groups for the global scope, leaving out groups without gradients."""
        if self.scope == "param_group":
            return rows
        known = [row for row in rows.tolist() if not any(map(math.isnan, row))]
        total = [sum(column) for column in zip(*known, strict=True)] or [math.nan] * rows.shape[1]
        return rows.new_tensor([total])

    def _copies_weights(self) -> list[bool]:
        """For each parameter group whether its update must be seen in the weights.

        SGD with momentum still holds it after the step: it is lr · momentum_buffer.
        """
        is_sgd = type(self.optimizer) is SGD
        return [not (is_sgd and group["momentum"] and not group["nesterov"]) for group in self._groups()]

    def _momentum(self, index: int) -> list[Tensor]:
        held = [self.optimizer.state[p].get("momentum_buffer") for p in self._measured_params()[index]]
        return [] if any(buffer is None for buffer in held) else [_local(buffer) for buffer in held]

    def _unscale(self) -> Tensor | None:
        """What undoes the loss scale: a fused optimizer under a `GradScaler` sees scaled gradients."""
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
        return [[_local(p) for p in group] for group in self._measured_params()]

    # Sharded parameters

    def _shard_groups(self) -> list[dist.ProcessGroup]:
        """The process groups over which parameters are sharded, one for each such axis of their mesh."""
        for group in self._groups():
            for p in group["params"]:
                if _is_sharded(p):
                    axes = [axis for axis, place in enumerate(p.placements) if place.is_shard()]
                    return [p.device_mesh.get_group(axis) for axis in axes]
        return []

    def _over_ranks(self, sums: Tensor) -> Tensor:
        for group in self._shard_groups():
            dist.all_reduce(sums, group=group)
        return sums

    def _weight(self, parameter: Tensor) -> float:
        """What lies whole on every rank is counted by each of them, and must count once."""
        if _is_sharded(parameter):
            return 1.0
        return 1.0 / math.prod(group.size() for group in self._shard_groups())

    def _weights(self) -> list[list[float] | None]:
        """For each parameter group the weights of its parameters; None where nothing is sharded."""
        measured = self._measured_params()
        if not self._shard_groups():
            return [None] * len(measured)
        return [[self._weight(p) for p in group] for group in measured]


def _shapes(groups: list[list[Tensor]]) -> list[list[torch.Size]]:
    return [[tensor.shape for tensor in group] for group in groups]


def _kinds(groups: list[list[Tensor]]) -> list[list[tuple]]:
    return [[(t.shape, t.dtype, t.device, t.stride()) for t in group] for group in groups]
