"""One walk over nested tuples of tensors."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from metalr.trees import concatenate, leaves, map_leaves, replace_leaves


class Pair(NamedTuple):
    first: Tensor
    second: tuple


TREE = (torch.tensor(1), Pair(torch.tensor(2), ((), torch.tensor(3), None)))


def test_leaves_come_in_order_and_go_back_in_their_places():
    assert [leaf.item() for leaf in leaves(TREE)] == [1, 2, 3]
    again = replace_leaves(TREE, [leaf * 10 for leaf in leaves(TREE)])
    assert isinstance(again[1], Pair)
    assert [leaf.item() for leaf in leaves(again)] == [10, 20, 30]
    assert again[1].second[0] == ()
    assert again[1].second[2] is None


def test_map_takes_trees_side_by_side():
    assert [leaf.item() for leaf in leaves(map_leaves(torch.add, TREE, TREE))] == [2, 4, 6]


@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_number_of_tensors_is_refused(count):
    with pytest.raises(ValueError, match=f"got {count} tensors, expected 3"):
        replace_leaves(TREE, [torch.tensor(0)] * count)


def test_trees_are_joined_along_the_first_axis():
    parts = [(torch.arange(n), Pair(torch.ones(n, 2), ())) for n in (1, 2)]
    joined = concatenate(parts)
    assert joined[0].tolist() == [0, 0, 1]
    assert isinstance(joined[1], Pair)
    assert joined[1].first.shape == (3, 2)


def test_trees_of_another_nesting_are_refused():
    with pytest.raises(ValueError, match="zip"):
        map_leaves(torch.add, TREE, TREE[:1])
