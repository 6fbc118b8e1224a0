"""The meta-losses: the loss of a whole run that an outer loop makes small."""

from enum import Enum

from metalr.tasks.data import Split


class MetaLoss(Enum):
    """Which loss of a run counts. `MetaLoss("final-valid")` looks one up by the name that users write.

    mean-train   minibatch loss, mean over all inner steps
    final-train  mean over the training split after the last inner step
    final-valid  the same over the validation split
    """

    MEAN_TRAIN = "mean-train"
    FINAL_TRAIN = "final-train"
    FINAL_VALID = "final-valid"

    @property
    def is_final(self) -> bool:
        """Whether it is taken after the last inner step alone."""
        return self is not MetaLoss.MEAN_TRAIN

    @property
    def split(self) -> Split:
        """The split that it is a mean over."""
        return "valid" if self is MetaLoss.FINAL_VALID else "train"

    @classmethod
    def _missing_(cls, value: object) -> "MetaLoss":
        names = ", ".join(member.value for member in cls)
        raise ValueError(f"got meta-loss {value!r}, expected one of {names}: use one of these")
