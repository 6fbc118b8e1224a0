"""Hugging Face's Trainer with a callback alone: horizon, base LR, losses, checkpoints and logs follow from it."""

import pytest
import torch

from metalr.schedulers.adapters import observing
from metalr.schedulers.decision_log import tensorboard
from metalr.schedulers.learned_lr import LearnedLR
from tests.integrations.installed import library
from tests.support.policies import moderate_policy

transformers = library("transformers")
library("accelerate")

from metalr.schedulers.huggingface_callback import ControlledLR  # noqa: E402
from tests.integrations.test_huggingface import Net, Rows, mean_square, target  # noqa: E402

LR = 0.01


class PartsNet(Net):
    """A model that is told how many examples an update has, as the library's own are, and divides by it."""

    def forward(self, x, labels=None, **kwargs):
        output = super().forward(x, labels)
        if labels is not None:
            output["loss"] = mean_square(output, labels, **kwargs)
        return output


class StopAt(transformers.TrainerCallback):
    """Saves a checkpoint and stops, as an interruption does; the Trainer still expects the whole run."""

    def __init__(self, update):
        self.update = update

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = state.global_step == self.update


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=LR)


def make_trainer(folder, callbacks, model=None, optimizer=None, compute_loss=None, scheduler=None, **options):
    model = model or Net()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        learning_rate=LR,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", "num_train_epochs": 2, "warmup_steps": 7, "logging_steps": 8, "seed": 0} | options,
    )
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(),
        eval_dataset=Rows(),
        optimizers=(optimizer(model) if optimizer else None, scheduler),
        compute_loss_func=compute_loss,
        callbacks=callbacks,
    )


def train(folder, callback=None, more=(), resume=None, **options):
    callback = callback or ControlledLR(moderate_policy())
    trainer = make_trainer(folder, [callback, *more], **options)
    trainer.train(resume_from_checkpoint=resume)
    return callback.scheduler, trainer


def plain(batches, horizon, accumulate=1):
    """The same training in a plain loop; the Trainer clips gradients to a norm of 1 by default."""
    model = Net()
    optimizer = adamw(model)
    scheduler = LearnedLR(optimizer, moderate_policy(), horizon)
    for start in range(0, len(batches), accumulate):
        optimizer.zero_grad()
        for x in batches[start : start + accumulate]:
            loss = model(x, target(x))["loss"]
            (loss / accumulate).backward()
            scheduler.observe(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return scheduler


def assert_same_decisions(mine, theirs):
    assert [e["updates"] for e in mine] == [e["updates"] for e in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert a["lr_multiplier"] == pytest.approx(b["lr_multiplier"], rel=1e-4)
        for name, values in a["features"].items():
            assert values == pytest.approx(b["features"][name], abs=1e-3), (a["updates"], name)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("net", [Net, PartsNet])
def test_epochs_are_a_plain_loop_with_their_horizon(tmp_path, net, accumulate):
    model = net()
    scheduler, _ = train(tmp_path, model=model, optimizer=adamw, gradient_accumulation_steps=accumulate)
    updates = 32 // accumulate  # 2 epochs of 64 rows in batches of 4
    assert scheduler.horizon == scheduler.updates == updates
    assert len(model.batches) == 32
    assert len({e["lr_multiplier"][0] for e in scheduler.history}) == 5
    assert all(e["features"]["has_loss"] == [1.0] for e in scheduler.history)
    assert_same_decisions(scheduler.history, plain(model.batches, updates, accumulate).history)


def test_steps_and_the_trainers_own_optimizer(tmp_path):
    scheduler, trainer = train(tmp_path, max_steps=20)
    assert scheduler.horizon == scheduler.updates == 20
    assert scheduler.base_lrs == [LR, LR]  # the Trainer has a group of biases, which do not decay
    assert trainer.lr_scheduler.get_last_lr() == scheduler.get_last_lr()


def test_a_longer_horizon(tmp_path):
    scheduler, _ = train(tmp_path, ControlledLR(moderate_policy(), horizon=100))
    assert (scheduler.horizon, scheduler.updates) == (100, 32)


def test_losses_computed_outside_the_model(tmp_path):
    inside, _ = train(tmp_path / "a")
    callback = ControlledLR(moderate_policy())
    outside, _ = train(tmp_path / "b", callback, compute_loss=observing(mean_square, callback))
    assert all(e["features"]["has_loss"] == [1.0] for e in outside.history)
    assert_same_decisions(outside.history, inside.history)


@pytest.mark.parametrize("updates", [11, 12])  # the second lies between the last two updates before a decision
def test_a_checkpoint_goes_on(tmp_path, updates):
    whole, _ = train(tmp_path / "whole")
    half, _ = train(tmp_path / "half", more=[StopAt(updates)])
    assert half.updates == updates
    second, _ = train(tmp_path / "half", resume=str(tmp_path / "half" / f"checkpoint-{updates}"))
    assert len(half.history) < len(second.history)
    assert second.history == whole.history


def test_a_checkpoint_goes_on_without_the_callback(tmp_path):
    train(tmp_path, more=[StopAt(11)])
    trainer = make_trainer(tmp_path, [])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-11"))
    assert trainer.state.global_step == 32


def test_training_again_is_a_new_run(tmp_path):
    callback = ControlledLR(moderate_policy())
    trainer = make_trainer(tmp_path, [callback], optimizer=adamw)
    trainer.train()
    first = callback.scheduler
    before = first.history
    trainer.train()
    assert callback.scheduler is not first
    assert callback.scheduler.updates == first.updates == 32
    assert first.history == before
    assert callback.scheduler.base_lrs == [LR]
    assert not trainer.model._forward_hooks
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks


class Raise(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_after_an_interruption_training_starts_anew(tmp_path):
    callback = ControlledLR(moderate_policy())
    trainer = make_trainer(tmp_path, [callback, Raise()], optimizer=adamw)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Raise)
    trainer.train()
    assert callback.scheduler.updates == 32
    assert not trainer.model._forward_hooks


class Seen(transformers.TrainerCallback):
    """Reports to a tracker, as the library's own callbacks do."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_logs(tmp_path):
    sent, later = [], Seen()
    callback = ControlledLR(moderate_policy(), send=lambda values, step: sent.append((step, values)))
    scheduler, trainer = train(tmp_path, callback, more=[later])
    history = scheduler.history
    assert [step for step, _ in sent] == [entry["updates"] for entry in history]
    assert [values["scheduler/lr_multiplier"] for _, values in sent] == [e["lr_multiplier"][0] for e in history]
    logged = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    assert [entry["step"] for entry in logged] == [8, 16, 24, 32]
    for entry, seen in zip(logged, later.logs, strict=False):
        assert entry["lr_multiplier"] == seen["lr_multiplier"]
        assert entry["lr_multiplier"] in {e["lr_multiplier"][0] for e in history}


def test_tensorboard(tmp_path):
    writer = library("torch.utils.tensorboard").SummaryWriter(tmp_path / "log")
    train(tmp_path, ControlledLR(moderate_policy(), send=tensorboard(writer)))
    writer.close()
    events = library("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert {"scheduler/lr", "scheduler/breaker", "scheduler/features/polyak"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("scheduler/lr")) == 5


@pytest.mark.parametrize("own", [True, False])
def test_another_scheduler_is_refused(tmp_path, own):
    model = Net()
    optimizer = adamw(model)
    theirs = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5)}
    options = theirs if own else {"lr_scheduler_type": "greedy", "eval_strategy": "epoch"}
    trainer = make_trainer(tmp_path, [ControlledLR(moderate_policy())], model, lambda _: optimizer, **options)
    with pytest.raises(ValueError, match=r"got a Trainer with a (StepLR|GreedyLR), expected the scheduler that it"):
        trainer.train()
