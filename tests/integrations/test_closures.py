"""Optimizers that compute the gradients in a closure, inside `optimizer.step`."""

import torch

from metalr.schedulers.learned_lr import LearnedLR
from tests.integrations.small_net import loss_of, net
from tests.support.policies import moderate_policy
from tests.support.schedulers_under_test import HORIZON, Training


def test_a_closure_is_seen_after_it_ran():
    by_hand, in_closure = Training(), Training()
    expected = by_hand.run(LearnedLR(by_hand.optimizer, moderate_policy(), HORIZON))
    scheduler = LearnedLR(in_closure.optimizer, moderate_policy(), HORIZON)
    rates = []

    def closure():
        loss = in_closure.loss()
        scheduler.observe(loss)
        return loss

    for t in range(HORIZON):
        returned = in_closure.optimizer.step(closure) if t % 2 else in_closure.optimizer.step(closure=closure)
        assert returned.item() > 0.0
        in_closure.updates += 1
        rates.append([float(lr) for lr in scheduler.get_last_lr()])
        scheduler.step()
    assert rates == expected


def test_lbfgs_asks_its_closure_many_times(monkeypatch):
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    scheduler = LearnedLR(optimizer, moderate_policy(), horizon=10)
    asked, measured, firsts = [], [], []
    measure = scheduler.run.meter.before_last
    monkeypatch.setattr(scheduler.run.meter, "before_last", lambda: (measured.append(len(asked)), measure()))

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        asked.append(loss.item())
        return loss

    for _ in range(10):
        firsts.append(len(asked) + 1)
        scheduler.observe(optimizer.step(closure))
        scheduler.step()
    assert len(asked) > 20
    assert measured == firsts[1:8:2]  # the gradients that the closure leaves when it is asked first, once an update
    assert [e["updates"] for e in scheduler.history] == [0, 2, 4, 6, 8]
