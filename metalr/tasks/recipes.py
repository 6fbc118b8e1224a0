"""`Recipe`: a task by its numbers, so that thousands can be looked at before one is built."""

from dataclasses import dataclass

from torch.nn import functional

from metalr.optimizers.classic import InnerOptimizer
from metalr.tasks.losses import ScaledLoss, accuracy
from metalr.tasks.networks import Network
from metalr.tasks.pretraining import pretrained
from metalr.tasks.synthetic import Synthetic
from metalr.tasks.task import Loss, Task

LOSSES: dict[str, Loss] = {
    "cross-entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
    "smooth-l1": functional.smooth_l1_loss,
}


@dataclass(frozen=True)
class Recipe:
    """A task by its numbers, before anything is built.

    Attributes:
        name: family, index and the main choices.
        data, network, optimizer, base_lr, batch_size, horizon: as in the task.
        loss: a key of `LOSSES`.
        loss_scale: factor of the loss.
        tuned_from: seed of the training that comes before (fine-tuning); None draws fresh weights for each run.
    """

    name: str
    data: Synthetic
    network: Network
    optimizer: InnerOptimizer
    base_lr: float
    batch_size: int
    horizon: int
    loss: str
    loss_scale: float = 1.0
    tuned_from: int | None = None

    def step_seconds(self) -> float:
        """Estimated time of an inner step of 128 runs, as of `Network.step_seconds`."""
        return self.network.step_seconds(self.data.shape, self.data.outputs, self.batch_size)

    def task(self) -> Task:
        """Build the task."""
        model = self.network.builder(self.data.shape, self.data.outputs)
        loss = LOSSES[self.loss]
        settings = {"optimizer": self.optimizer, "base_lr": self.base_lr, "name": self.name}
        return Task(
            model,
            self.data,
            loss if self.loss_scale == 1.0 else ScaledLoss(loss, self.loss_scale),
            horizon=self.horizon,
            batch_size=self.batch_size,
            metric=None if self.data.regression else accuracy,
            initial_weights=None if self.tuned_from is None else pretrained(model, loss, self.data, self.tuned_from),
            **settings,  # type: ignore[arg-type]
        )
