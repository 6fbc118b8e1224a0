"""The names of the meta-losses and what they mean."""

import pytest

from metalr.agents.meta_losses import MetaLoss


def test_a_name_or_a_member_finds_the_meta_loss():
    assert MetaLoss("final-valid") is MetaLoss.FINAL_VALID
    assert MetaLoss(MetaLoss.FINAL_VALID) is MetaLoss.FINAL_VALID


@pytest.mark.parametrize(
    ("name", "split", "is_final"),
    [("mean-train", "train", False), ("final-train", "train", True), ("final-valid", "valid", True)],
)
def test_each_has_a_split_and_a_time(name, split, is_final):
    assert (MetaLoss(name).split, MetaLoss(name).is_final) == (split, is_final)


def test_the_test_split_is_never_a_meta_loss():
    with pytest.raises(ValueError, match="got meta-loss 'final-test', expected one of mean-train, final-"):
        MetaLoss("final-test")
    assert "test" not in {member.split for member in MetaLoss}
