"""Lightning with a callback alone: the module knows of no scheduler."""

import pytest
import torch

from tests.integrations.installed import library
from tests.support.policies import moderate_policy

lightning = library("lightning")

from metalr.schedulers.lightning_callback import ControlledLR  # noqa: E402
from tests.integrations.test_lightning import (  # noqa: E402
    BATCHES,
    INPUTS,
    UPDATES,
    assert_same_history,
    loss_of,
    net,
    plain,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .train_dataloader. does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
]


class Module(lightning.LightningModule):
    """Its data depends on the update, because Lightning restarts the loader when it resumes a run."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.net, self.fails_at = net(), fails_at

    def training_step(self, batch, index):
        if self.global_step == self.fails_at:
            raise KeyboardInterrupt
        return loss_of(self.net, batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)


class ByUpdate(Module):
    def training_step(self, batch, index):
        return super().training_step([BATCHES[self.global_step % len(BATCHES)]], index)


def fit(folder, module=None, callback=None, resume=None, logger=False, **options):
    callback = callback or ControlledLR(moderate_policy())
    trainer = lightning.Trainer(
        **options or {"max_epochs": 3},
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[callback],
    )
    data = torch.utils.data.TensorDataset(INPUTS)
    trainer.fit(module or Module(), torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=resume)
    return callback.scheduler, trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_epochs_are_a_plain_loop_with_their_horizon(tmp_path, accumulate):
    scheduler, _ = fit(tmp_path, max_epochs=3 * accumulate, accumulate_grad_batches=accumulate)
    assert scheduler.horizon == scheduler.updates == UPDATES
    assert_same_history(scheduler.history, plain(accumulate=accumulate))
    assert all(e["features"]["has_loss"] == [1.0] for e in scheduler.history)


def test_a_longer_horizon(tmp_path):
    scheduler, _ = fit(tmp_path, callback=ControlledLR(moderate_policy(), horizon=100))
    assert (scheduler.horizon, scheduler.updates) == (100, UPDATES)


class ByHand(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss_of(self.net, batch[0]))
        optimizer.step()


def test_manual_optimization(tmp_path):
    scheduler, _ = fit(tmp_path, ByHand())
    assert_same_history(scheduler.history, plain())


# Update 13 lies between the last two before a decision, where the state holds gradients.
@pytest.mark.parametrize("updates", [12, 13, 14, 16])
def test_a_checkpoint_goes_on_exactly(tmp_path, updates):
    whole, _ = fit(tmp_path, ByUpdate())
    first, trainer = fit(tmp_path, ByUpdate(), ControlledLR(moderate_policy(), horizon=UPDATES), max_steps=updates)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    second, _ = fit(tmp_path, ByUpdate(), resume=tmp_path / "part.ckpt")
    assert len(first.history) < len(second.history)
    assert second.history == whole.history


def test_an_interruption_lets_go_of_the_optimizer(tmp_path):
    callback = ControlledLR(moderate_policy())
    with pytest.raises(SystemExit):
        fit(tmp_path, Module(fails_at=4), callback)
    assert callback.scheduler.updates == 4
    assert not callback.scheduler.optimizer._optimizer_step_pre_hooks
    scheduler, _ = fit(tmp_path, callback=callback)
    assert scheduler.updates == UPDATES


class MemoryLogger(lightning.pytorch.loggers.logger.DummyLogger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))


def test_logs(tmp_path):
    logger, sent = MemoryLogger(), []
    callback = ControlledLR(moderate_policy(), send=lambda values, step: sent.append((step, values)))
    scheduler, _ = fit(tmp_path, callback=callback, logger=logger)
    history = scheduler.history
    assert [step for step, _ in sent] == [entry["updates"] for entry in history]
    assert [values["scheduler/lr_multiplier"] for _, values in sent] == [e["lr_multiplier"][0] for e in history]
    logged = [metrics["lr_multiplier"] for _, metrics in logger.rows if "lr_multiplier" in metrics]
    in_force = [[e["lr_multiplier"][0] for e in history if e["updates"] <= made][-1] for made in range(1, UPDATES + 1)]
    assert logged == pytest.approx(in_force, rel=1e-6)


class Scheduled(Module):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]


def test_another_scheduler_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got a module with 1 optimizers and 1 schedulers, expected one optimizer"):
        fit(tmp_path, Scheduled())
