"""Work on a Ray cluster of two nodes on this machine, one of which is killed in the middle."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray")

from ray.cluster_utils import Cluster

from metalr.compare.comparison import compare
from metalr.workers import Unit, UnitError, Workers
from tests.support import units
from tests.test_workers import SMALL, clone, contents, tasks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray has warnings about itself

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node, of one core each."""
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    yield made
    made.shutdown()


@pytest.fixture
def on_ray(cluster: Any) -> Iterator[Workers]:
    with Workers(cluster=cluster.address) as workers:
        yield workers


def killing_a_node(cluster: Any, when: Callable[[], bool]) -> threading.Thread:
    """Kill the node that is not the head as soon as something has happened; a thread to wait for."""

    def kill() -> None:
        while not when():
            time.sleep(0.02)
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_units_go_to_both_nodes_and_share_what_they_share(on_ray: Workers) -> None:
    shared = torch.arange(3.0)
    found = list(on_ray.each(units.add, [Unit((number,), shared) for number in range(8)], ordered=True))
    assert [(index, result.tolist()) for index, (result, _, _) in found] == [
        (number, (shared + number).tolist()) for number in range(8)
    ]
    assert len({process for _, (_, process, _) in found}) == 2
    assert on_ray.costs.workers == 2


def test_bad_units_are_reported(on_ray: Workers, tmp_path: Path) -> None:
    with pytest.raises(UnitError, match="2 of 6 units failed 3 times"):
        list(on_ray.each(units.fragile, [Unit((n,), tmp_path) for n in range(6)]))
    assert on_ray.costs.units == 4


def test_runs_with_a_past_stay_off_a_cluster(on_ray: Workers) -> None:
    with pytest.raises(ValueError, match="got a cluster for training runs that keep their state"):
        on_ray.hold([list, list])


def test_a_comparison_is_the_same_and_survives_the_loss_of_a_node(cluster: Any, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("here", "two", "ray", "killed")}
    seconds = {}
    for name, folder in folders.items():
        place = {"two": {"count": 2}, "here": {}}.get(name, {"cluster": cluster.address})
        started = time.monotonic()
        with Workers(**place) as workers:
            if name == "killed":
                thread = killing_a_node(cluster, (folder / "records.jsonl").exists)
            compare(tasks(), folder, SMALL, workers=workers)
        seconds[name] = time.monotonic() - started
        print(f"compare, {name}: {seconds[name]:.1f} s, {workers.costs}")
    thread.join()
    cluster.add_node(**NODE)
    whole = contents(folders["here"])
    assert all(contents(folder) == whole for folder in folders.values())
    keys = [line.split(b'"cell":"')[1].split(b'"')[0] for line in whole["records.jsonl"].splitlines()]
    print(f"compare: {len(keys)} records, equal to the bit in all four")
    assert len(set(keys)) == len(keys)


def test_a_clone_is_the_same_and_survives_the_loss_of_a_node(cluster: Any, tmp_path: Path) -> None:
    alone = clone(tmp_path / "alone", Workers())
    first = tmp_path / "ray" / "oracle"
    thread = killing_a_node(cluster, lambda: first.exists() and any(first.iterdir()))
    with Workers(cluster=cluster.address) as workers:
        found = clone(tmp_path / "ray", workers)
    thread.join()
    cluster.add_node(**NODE)
    print(f"clone: {workers.costs}")
    assert all(torch.equal(alone[name], found[name]) for name in alone)
    names = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*.pt")) for n in ("alone", "ray")]
    assert names[0] == names[1]


def test_a_unit_may_take_a_whole_gpu(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=100 << 20)  # as Ray counts them
    with Workers(cluster=cluster.address, gpus=True) as workers:
        found = {seen for _, seen in workers.each(units.visible_gpus, [Unit(()) for _ in range(4)])}
    cluster.remove_node(node, allow_graceful=False)
    assert found <= {"0", "1"}
    assert workers.costs.workers == 2


def test_an_address_without_a_cluster_is_refused() -> None:
    with pytest.raises(ConnectionError, match="where nobody answers"):
        Workers(cluster="127.0.0.1:1")
