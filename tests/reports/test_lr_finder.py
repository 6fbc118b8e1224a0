"""The LR range test of a user's own loop: it finds what is known, and leaves no trace to the bit."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metalr.reports.lr_finder import LRFinder
from metalr.schedulers.learned_lr import LearnedLR
from tests.support.policies import moderate_policy

LOSS = nn.functional.cross_entropy


class Net(nn.Module):
    """With everything that training changes besides weights."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.register_buffer("last", None)
        self.layers[4].bias.requires_grad_(False)

    def forward(self, x):
        self.calls = self.calls + 1.0  # a new tensor, unlike those that BatchNorm writes in place
        self.last = x.mean()
        return self.layers(x) + 0.0 * random.random() + 0.0 * np.random.rand()  # noqa: NPY002


class User:
    """A training under way: optimizer state, gradients and random numbers are no longer fresh."""

    def __init__(self, optimizer="adam"):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 -- what a user's old code draws from
        x = torch.randn(240, 6)
        data = TensorDataset(x, x[:, :3].argmax(1))
        self.model = Net()
        groups = [
            {"params": self.model.layers[:2].parameters(), "lr": torch.tensor(0.01)},
            {"params": self.model.layers[2:].parameters(), "lr": torch.tensor(0.02)},
        ]
        self.optimizer = {
            "adam": lambda: torch.optim.AdamW(groups, foreach=False),
            "sgd": lambda: torch.optim.SGD([group | {"lr": float(group["lr"])} for group in groups], momentum=0.9),
        }[optimizer]()
        self.loader = DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))
        self.losses = []

    def train(self, epochs=1):
        for _ in range(epochs):
            for x, y in self.loader:
                self.optimizer.zero_grad()
                loss = LOSS(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                self.losses.append(loss.item())

    def tensors(self):
        """What keeps its identity."""
        return [
            *self.model.parameters(),
            *self.model.buffers(),
            *(group["lr"] for group in self.optimizer.param_groups),
        ]

    def snapshot(self):
        """Everything that may change, as one flat list of bytes and values."""
        found = [
            *((name, t.numpy(force=True).tobytes()) for name, t in self.model.named_parameters()),
            *((name, None if t is None else t.numpy().tobytes()) for name, t in self.model.named_buffers()),
            *((name, module.training) for name, module in self.model.named_modules()),
            *(p.grad if p.grad is None else p.grad.numpy().tobytes() for p in self.model.parameters()),
            str(self.optimizer.state_dict()["param_groups"]),
            torch.get_rng_state().numpy().tobytes(),
            self.loader.generator.get_state().numpy().tobytes(),
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002
        ]
        for state in self.optimizer.state.values():
            found += [(key, v.numpy().tobytes() if isinstance(v, torch.Tensor) else v) for key, v in state.items()]
        return found


@pytest.mark.parametrize("begun", [0, 1])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_it_leaves_no_trace(optimizer, begun):
    def training(finds):
        user = User(optimizer)
        user.train(begun)
        user.model.layers[1].eval()  # a frozen layer
        before = user.snapshot(), user.tensors()
        if finds:
            finder = LRFinder(user.model, user.optimizer, LOSS)
            finder.range_test(user.loader)
            assert len(finder.history["lr"]) > 50
        assert user.snapshot() == before[0]
        assert all(a is b for a, b in zip(user.tensors(), before[1], strict=True))
        user.train(2)
        return user.losses, user.snapshot()

    assert training(True) == training(False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_it_leaves_no_trace_when_interrupted(error):
    user = User()
    user.train()
    before, calls = user.snapshot(), []

    def loss_fn(output, target):
        calls.append(1)
        if len(calls) == 30:
            raise error
        return LOSS(output, target)

    finder = LRFinder(user.model, user.optimizer, loss_fn)
    with pytest.raises(error):
        finder.range_test(user.loader)
    assert len(finder.history["loss"]) == 29
    assert user.snapshot() == before
    with pytest.raises(ValueError, match="call range_test first"):
        _ = finder.suggestion


def test_a_loss_with_weights_of_its_own():
    user = User()

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, output, target):
            return LOSS(output * self.scale, target)

    loss_fn = Loss()
    user.optimizer.add_param_group({"params": [loss_fn.scale], "lr": torch.tensor(0.01)})
    LRFinder(user.model, user.optimizer, loss_fn).range_test(user.loader)
    assert loss_fn.scale.item() == 1.0


def quadratic():
    """The mean of (w - noisy target)², stable below LR 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    targets = -1.0 + 0.1 * torch.randn(64, 1, 1, generator=torch.Generator().manual_seed(0))
    return model, [(torch.ones(1, 1), target) for target in targets]


def test_the_limit_of_stability_bounds_the_suggestion():
    model, loader = quadratic()
    finder = LRFinder(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.functional.mse_loss)
    finder.range_test(loader, 1e-4, 100.0)
    assert 0.005 < finder.curve.steepest <= finder.suggestion <= finder.curve.lowest < 1.0
    assert len(finder.history["lr"]) < 100  # it stopped where the loss exploded


def test_the_suggestion_trains():
    user = User("sgd")
    finder = LRFinder(user.model, user.optimizer, LOSS)
    finder.range_test(user.loader, accumulation_steps=2)
    assert 0.003 < finder.suggestion < 3.0


def test_groups_keep_their_ratios():
    user, seen = User(), []
    user.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([float(group["lr"]) for group in optimizer.param_groups])
    )
    finder = LRFinder(user.model, user.optimizer, LOSS)
    finder.range_test(user.loader, 1e-4, 1.0, 50)
    first = [a for a, _ in seen]
    assert first == pytest.approx(np.geomspace(1e-4, 1.0, 50)[: len(first)], rel=1e-6)
    assert [b / a for a, b in seen] == pytest.approx([2.0] * len(seen), rel=1e-6)


def test_a_second_test_is_the_first():
    user = User()
    finder = LRFinder(user.model, user.optimizer, LOSS)
    finder.range_test(user.loader)
    first = copy.deepcopy(finder.history)
    finder.reset()
    assert finder.history == {"lr": [], "loss": []}
    finder.range_test(user.loader)
    assert finder.history == first


def test_the_curve_is_a_figure(tmp_path):
    pytest.importorskip("matplotlib")
    user = User()
    finder = LRFinder(user.model, user.optimizer, LOSS)
    finder.range_test(user.loader)
    figure = finder.plot()
    figure.savefig(tmp_path / "lr.png")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == "one run"
    assert labels[1] == f"suggestion {finder.suggestion:.3g}"


def test_misuse():
    model, loader = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    finder = LRFinder(model, optimizer, nn.functional.mse_loss)
    with pytest.raises(ValueError, match="expected 0 < start_lr < end_lr"):
        finder.range_test(loader, 1.0, 0.1)
    with pytest.raises(ValueError, match="got a batch of type dict"):
        finder.range_test([{"x": 1.0}])
    with pytest.raises(ValueError, match="got an empty loader"):
        finder.range_test([])
    with pytest.raises(ValueError, match="got no LR between"):
        finder.range_test(loader[:1], 1e-12, 1e-10)
    with pytest.raises(ValueError, match="got a loss of -"):
        LRFinder(model, optimizer, lambda output, target: (output - target).sum() - 10.0).range_test(loader)
    with pytest.raises(ValueError, match="got no LR between"):
        LRFinder(model, optimizer, lambda output, target: output.sum() * torch.nan).range_test(loader)
    assert model.weight.item() == 5.0
    scheduler = LearnedLR(optimizer, moderate_policy(), 100)
    with pytest.raises(ValueError, match="make the scheduler after the test"):
        finder.range_test(loader)
    scheduler.detach()
    finder.range_test(loader)
    scheduler.attach()
    assert scheduler.updates == 0
