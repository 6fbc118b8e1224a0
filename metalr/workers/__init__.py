"""Where work runs: in this process, on local cores, or on a Ray cluster.

A unit is a call of a pure function of its arguments and seeds. Units are cut by a plan and never by the number of
workers, so a unit gives the same bits wherever it runs. The caller alone writes results.

    with Workers(2) as workers:
        for index, result in workers.each(train, [Unit((batch,), shared=task) for batch in batches]):
            write(result)

place            `Workers`: this process, local processes or a cluster
units            a piece of work, and the error of work that failed for good
costs            where the time of the workers went
work             units under way: sent, tried again, reported
held             objects that stay in their process from one call to the next
engine           the interface of the two places that follow
local_processes  units in processes of this machine
ray_cluster      units on the nodes of a Ray cluster
in_worker        inside a worker: do a unit, and keep what units share
sending          work as bytes that another process can read

Both engines give a future for each unit: Ray its tasks, and for local cores loky, the part of joblib that starts
processes from any script and sends them any function. joblib's own `Parallel` would leave out the queue of `work`, but
under its Ray backend results come only when all are there, so that nothing could be written meanwhile, and with either
backend one lost worker fails the whole call. Ray alone would leave out twenty lines, and make everyone who has two
cores install and start a cluster.
"""

from metalr.workers.costs import Costs
from metalr.workers.place import Workers
from metalr.workers.units import TRIES, Unit, UnitError

__all__ = ["TRIES", "Costs", "Unit", "UnitError", "Workers"]
