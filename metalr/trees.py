"""Traversal of nested tuples of tensors, such as the state of a run or of a controller."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def leaves(tree: Any) -> list[Tensor]:
    """List the tensors of a tree, depth first and in order; anything that is neither tensor nor tuple is skipped.

    Example:
        >>> import torch
        >>> [leaf.item() for leaf in leaves((torch.tensor(1), (torch.tensor(2), None)))]
        [1, 2]
    """
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else []


def replace_leaves(tree: Tree, new: list[Tensor]) -> Tree:
    """Rebuild a tree with other tensors, in the order of `leaves`.

    Raises:
        ValueError: the number of tensors differs from that of the tree.

    Example:
        >>> import torch
        >>> replace_leaves((torch.tensor(1), (torch.tensor(2), None)), [torch.tensor(3), torch.tensor(4)])
        (tensor(3), (tensor(4), None))
    """
    expected = len(leaves(tree))
    if len(new) != expected:
        raise ValueError(f"got {len(new)} tensors, expected {expected}: one for each leaf of the tree")
    remaining = iter(new)

    def rebuild(node: Any) -> Any:
        if isinstance(node, Tensor):
            return next(remaining)
        if not isinstance(node, tuple):
            return node
        return _tuple_like(node, [rebuild(part) for part in node])

    return rebuild(tree)


def _tuple_like(node: tuple, parts: list[Any]) -> Any:
    return type(node)(*parts) if hasattr(node, "_fields") else tuple(parts)


def map_leaves(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Apply a function to the leaves of one or more trees of the same nesting, and return the tree of its results.

    Example:
        >>> import torch
        >>> map_leaves(torch.add, (torch.tensor(1),), (torch.tensor(2),))
        (tensor(3),)
    """

    def walk(*nodes: Any) -> Any:
        if isinstance(nodes[0], Tensor):
            return function(*nodes)
        if not isinstance(nodes[0], tuple):
            return nodes[0]
        return _tuple_like(nodes[0], [walk(*parts) for parts in zip(*nodes, strict=True)])

    return walk(tree, *others)


def concatenate(trees: list[Tree]) -> Tree:
    """One tree of several with the same nesting: each leaf is theirs, joined along its first axis.

    Example:
        >>> import torch
        >>> concatenate([(torch.tensor([1, 2]),), (torch.tensor([3]),)])
        (tensor([1, 2, 3]),)
    """
    return map_leaves(lambda *parts: torch.cat(parts), *trees)
