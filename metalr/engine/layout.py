"""The flat row in which the trainable parameters of a network lie."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ParameterLayout:
    """Order and shapes of the trainable parameters of a module in one flat row, group after group.

    Args:
        module: gives names, order and shapes.
        groups: "global" (one LR), "module" (one LR for each layer), or lists of parameter names.

    Raises:
        ValueError: the lists do not name every parameter exactly once.
    """

    def __init__(self, module: nn.Module, groups: str | Sequence[Sequence[str]] = "global") -> None:
        shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        self.groups = self._name_groups(list(shapes), groups)
        self.names = [name for group in self.groups for name in group]
        if sorted(self.names) != sorted(shapes):
            raise ValueError(
                f"got groups over {sorted(self.names)}, expected every parameter once: {sorted(shapes)}; "
                "name each parameter in exactly one group"
            )
        self.shapes = [shapes[name] for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.num_params = sum(self.sizes)
        self.group_sizes = [sum(shapes[name].numel() for name in group) for group in self.groups]
        # On the device once and for all: made anew at each step it would be a copy from the host, which waits.
        device = next(module.parameters()).device
        index = torch.arange(len(self.groups)).repeat_interleave(torch.tensor(self.group_sizes))
        self._group_of = index.to(device)  # (num_params,)

    @staticmethod
    def _name_groups(names: list[str], groups: str | Sequence[Sequence[str]]) -> list[list[str]]:
        if groups == "global":
            return [names]
        if groups == "module":
            by_layer: dict[str, list[str]] = {}
            for name in names:
                by_layer.setdefault(name.rpartition(".")[0], []).append(name)
            return list(by_layer.values())
        if isinstance(groups, str):
            raise ValueError(f"got groups {groups!r}, expected 'global', 'module' or lists of parameter names")
        return [list(group) for group in groups]

    @property
    def num_groups(self) -> int:
        """Number of learning rates of a run."""
        return len(self.groups)

    def pieces(self, params: Tensor) -> list[Tensor]:
        """`(…, num_params)` -> one view `(…, *shape)` for each parameter, in the order of `names`."""
        split = torch.split_with_sizes(params, self.sizes, -1)
        lead = params.shape[:-1]
        return [piece.view(lead + shape) for piece, shape in zip(split, self.shapes, strict=True)]

    def unflatten(self, params: Tensor) -> dict[str, Tensor]:
        """`(…, num_params)` -> name -> tensor `(…, *shape)`, as views."""
        return dict(zip(self.names, self.pieces(params), strict=True))

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """One row `(…, num_params)` from name -> `(…, *shape)`."""
        parts = [
            tensors[name].flatten(tensors[name].dim() - len(shape)) if len(shape) else tensors[name][..., None]
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return torch.cat(parts, -1)

    def group_sum(self, values: Tensor) -> Tensor:
        """Sum `(num_runs, num_params)` within each group: `(num_runs, num_groups)`."""
        if self.num_groups == 1:
            return values.sum(-1, keepdim=True)
        return torch.stack([part.sum(-1) for part in values.split(self.group_sizes, -1)], -1)

    def expand(self, lr: Tensor) -> Tensor:
        """`(num_runs, num_groups)` to something that broadcasts against `(num_runs, num_params)`."""
        return lr if self.num_groups == 1 else lr.index_select(-1, self._group_of)


def parameter_places(module: nn.Module) -> list[tuple[dict[str, Any], str, str, nn.Parameter]]:
    """Every place of a trained parameter in a module: the dictionary, the key in it, the full name, the parameter."""
    names = {id(p): name for name, p in module.named_parameters()}
    return [
        (layer._parameters, key, names[id(p)], p)
        for layer in module.modules()
        for key, p in layer._parameters.items()
        if p is not None and p.requires_grad
    ]
