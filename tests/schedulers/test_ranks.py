"""Agreement of ranks through a store: two of them in one process, on torch's own in-memory store."""

import pickle
import warnings

import pytest
import torch
import torch.distributed as dist

from metalr.schedulers.loss_log import LossLog
from metalr.schedulers.ranks import Agreement, Alone, Ranks


def log_of(*losses: float) -> LossLog:
    log = LossLog()
    for update, loss in enumerate(losses):
        log.add(loss, update)
    return log


def pair() -> tuple[Agreement, Agreement]:
    store = dist.HashStore()
    return Agreement(store, 0), Agreement(store, 1)


def test_losses_are_averaged_over_ranks_and_everybody_reads_the_same():
    first, second = pair()
    first.publish(5, {0: 1.0, 1: 2.0})
    second.publish(5, {0: 3.0, 2: 8.0})
    for rank in (first, second):
        losses, measurement = rank.gather(5, 5, log_of(99.0), torch.ones(2))
        assert losses == [2.0, 2.0, 8.0]
        assert measurement.tolist() == [1.0, 1.0]


def test_the_first_decision_sees_no_loss_that_other_ranks_do_not_know():
    first, _ = pair()
    assert first.first_loss(log_of(1.0)) is None
    assert Alone().first_loss(log_of(1.0, 2.0)) == 1.5
    assert Alone().first_loss(log_of()) is None


def test_the_first_offer_holds_for_all():
    first, second = pair()
    for rank in (first, second):
        rank.publish(5, {})
    offers = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[1.0 + 1e-15]], dtype=torch.float64)
    assert torch.equal(second.agree(5, offers[1]), offers[1])
    assert torch.equal(first.agree(5, offers[0]), offers[1])


def test_a_rank_that_fell_behind_is_told_once():
    first, second = pair()
    second.publish(5, {})
    second.agree(5, torch.ones(1, 1))
    with pytest.warns(UserWarning, match=r"rank 0 has made fewer updates than ranks \[1\]"):
        first.agree(5, torch.ones(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.agree(5, torch.ones(1, 1))


def test_after_a_restart_the_same_stop_is_another():
    first, _ = pair()
    first.publish(5, {0: 1.0})
    first.restart()
    assert first.mean_losses(5) == {}


def test_alone_only_the_losses_of_updates_already_made_count():
    losses, measurement = Alone().gather(2, 2, log_of(1.0, 2.0, 3.0), None)
    assert losses == [1.0, 2.0]
    assert measurement is None


def test_alone_losses_and_measurement_come_by_one_copy():
    log = LossLog()
    log.add(torch.tensor(4.0, device="meta"), 0)
    with pytest.raises((NotImplementedError, RuntimeError)):  # the meta device has nothing to copy
        Alone().gather(1, 1, log, torch.ones(1, 2, device="meta"))


def test_without_a_process_group_a_scheduler_is_alone_for_good():
    ranks = Ranks(distributed=True)
    assert isinstance(ranks.talk, Alone)
    assert ranks.talk is ranks.talk
    assert torch.equal(ranks.talk.agree(0, torch.ones(1, 1)), torch.ones(1, 1))
    assert ranks.talk.furthest_state(3, {}) is None
    ranks.publish(5, 3, log_of(1.0))
    assert ranks.published is None


def test_a_resumed_rank_says_again_what_its_checkpoint_had_said(monkeypatch):
    first, second = pair()
    ranks = Ranks(distributed=True)
    monkeypatch.setattr(ranks, "_talk", first)
    ranks.publish(5, 3, log_of(1.0, 2.0))
    assert ranks.published == {"stop": 5, "losses": {0: 1.0, 1: 2.0}}
    saved = ranks.published
    ranks.resume(saved, stop=5)
    second.restart()
    assert second.mean_losses(5) == {0: 1.0, 1: 2.0}
    ranks.resume(saved, stop=9)
    second.restart()
    assert second.mean_losses(5) == {}


def test_a_copy_looks_for_its_own_counterparts():
    ranks = Ranks(distributed=True)
    assert isinstance(ranks.talk, Alone)
    assert pickle.loads(pickle.dumps(ranks)).talk is not ranks.talk
