"""Losses of many runs and their gradients, each by the fastest route that torch offers.

A route is a way to call the network for the runs and a way to take the gradient. All routes give the same numbers, and
`choose_route` picks one.
"""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metalr.engine.batched_losses import over_runs
from metalr.engine.layout import ParameterLayout, parameter_places
from metalr.tasks.data import Batch
from metalr.tasks.models import takes_runs
from metalr.tasks.task import Loss, Task

Network = Literal["alone", "together", "vmap"]


class Route(NamedTuple):
    """A way to the losses and gradients of the runs.

    Attributes:
        network: how the network is called. "alone": for a single run, by the module as it is. "together": once, with
            weights and inputs that have an axis for the runs, which spares the overhead of `vmap`. "vmap": any other
            network.
        gradient: how the gradient is taken. "func": by `torch.func`, which can be differentiated again and compiled.
            "tape": from autograd's own tape, which spares the overhead of `torch.func`. "row": by a single run's
            `backward()` into one flat row, which spares splitting and joining the row at every step.
    """

    network: Network
    gradient: Literal["func", "tape", "row"]


ROUTES = (
    Route("alone", "func"),
    Route("alone", "row"),
    Route("together", "func"),
    Route("together", "tape"),
    Route("vmap", "func"),
    Route("vmap", "tape"),
)


def choose_route(num_runs: int, takes_runs: bool, differentiable: bool) -> Route:
    """The fastest route.

    Args:
        num_runs: whose gradients are wanted.
        takes_runs: the network can be called with the weights of many runs.
        differentiable: the gradient itself is differentiated, or compiled.

    Example:
        >>> choose_route(32, takes_runs=True, differentiable=False)
        Route(network='together', gradient='tape')
    """
    if num_runs == 1:
        return Route("alone", "func" if differentiable else "row")
    return Route("together" if takes_runs else "vmap", "func" if differentiable else "tape")


class RunLosses:
    """Loss of every run of a task, and its gradient.

    Args:
        task: gives the loss.
        layout: where each parameter lies.
        module: a template of the network; only frozen parameters and buffers are read from it.

    Attributes:
        takes_runs: the network can be called with the weights and inputs of many runs.
    """

    def __init__(self, task: Task, layout: ParameterLayout, module: nn.Module) -> None:
        self.task = task
        self.layout = layout
        self.module = module
        # A frozen parameter has no axis for the runs.
        self.takes_runs = takes_runs(module) and all(p.requires_grad for p in module.parameters())
        self._loss_over_runs = over_runs(task.loss)
        self._places = parameter_places(module)
        self._row: _RowGradient | None = None

    def __call__(self, params: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each run, `(num_runs,)`, differentiable.

        Args:
            params: `(num_runs, num_params)`.
            inputs: a minibatch of each run, `(num_runs, batch, …)`.
            targets: theirs, `(num_runs, batch, …)`.
        """
        network = choose_route(len(params), self.takes_runs, differentiable=True).network
        return self._by_network(network, params, inputs, targets)

    def of_one(self, row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of one run with weights `(num_params,)` on a minibatch `(batch, …)`."""
        return self.task.loss(self.call(self.layout.unflatten(row), inputs), targets)

    def gradient(self, params: Tensor, batch: Batch, route: Route | None = None) -> tuple[Tensor, Tensor]:
        """Gradient `(num_runs, num_params)`, not clipped, and loss `(num_runs,)`.

        The runs do not depend on each other, so the gradient of the sum of their losses is that of each.

        Args:
            params: `(num_runs, num_params)`.
            batch: inputs and targets `(num_runs, batch, …)`.
            route: one that applies to these runs; None for the fastest.
        """
        if route is None:
            differentiable = torch.is_grad_enabled() or torch.compiler.is_compiling()
            route = choose_route(len(params), self.takes_runs, differentiable)
        if route.gradient == "func":
            return self._by_func(route.network, params, *batch)
        if route.gradient == "tape":
            return self._by_tape(route.network, params, *batch)
        if self._row is None:
            self._row = _RowGradient(self.module, self.layout)
        return self._row(params[0], batch, self.task.loss)

    def call(self, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs of the network with the given weights.

        This is `functional_call` with the places of the weights known beforehand: looking them up takes as long as
        the forward pass of a small network. The compiler understands `functional_call` only.
        """
        if torch.compiler.is_compiling():
            return functional_call(self.module, weights, (inputs,))
        try:
            for table, key, name, _ in self._places:
                table[key] = weights[name]
            return self.module(inputs)
        finally:
            for table, key, _, parameter in self._places:
                table[key] = parameter

    def _by_network(self, network: Network, params: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        weights = self.layout.unflatten(params[0] if network == "alone" else params)
        return self._of_weights(network, weights, inputs, targets)

    def _of_weights(self, network: Network, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """`(num_runs,)`; a run alone has weights without the axis num_runs."""
        if network == "alone":
            return self.task.loss(self.call(weights, inputs[0]), targets[0])[None]
        if network == "together":
            return self._loss_over_runs(self.call(weights, inputs), targets)
        return vmap(lambda w, x, y: self.task.loss(self.call(w, x), y))(weights, inputs, targets)

    def _by_func(self, network: Network, params: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        def total(params: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            loss = self._by_network(network, params, inputs, targets)
            return loss.sum(), loss

        gradient, (_, loss) = grad_and_value(total, has_aux=True)(params, inputs, targets)
        return gradient, loss

    def _by_tape(self, network: Network, params: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        pieces = [piece.requires_grad_() for piece in self.layout.pieces(params)]
        with torch.enable_grad():
            weights = dict(zip(self.layout.names, pieces, strict=True))
            loss = self._of_weights(network, weights, inputs, targets)
        if not loss.requires_grad:
            return torch.zeros_like(params), loss
        found = torch.autograd.grad(loss, pieces, torch.ones_like(loss), allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten(1) for gradient in found], -1), loss.detach()


class _RowGradient:
    """The gradient of a single run as a user's own loop takes it: `backward()`, but into parts of one row.

    A copy of the module keeps its weights and gradients as views of two flat rows from beginning to end.
    """

    def __init__(self, module: nn.Module, layout: ParameterLayout) -> None:
        self.layout = layout
        self.module = copy.deepcopy(module)
        like = next(module.parameters())
        self.row, self.gradient = (like.new_zeros(layout.num_params).detach() for _ in range(2))
        weights, gradients = layout.unflatten(self.row), layout.unflatten(self.gradient)
        for table, key, name, _ in parameter_places(self.module):
            leaf = weights[name].detach().requires_grad_()
            leaf.grad = gradients[name]
            weights[name] = table[key] = leaf  # a tied weight has several places

    def __reduce__(self) -> tuple:
        return type(self), (self.module, self.layout)  # pickled as they are, views would come back as copies

    def __call__(self, row: Tensor, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        """Gradient `(1, num_params)` and loss `(1,)` of weights `(num_params,)` on a minibatch `(1, batch, …)`."""
        self.row.copy_(row)
        self.gradient.zero_()
        with torch.enable_grad():
            value = loss(self.module(batch[0][0]), batch[1][0])
        if value.requires_grad:
            value.backward()
        return self.gradient[None].clone(), value.detach()[None]
