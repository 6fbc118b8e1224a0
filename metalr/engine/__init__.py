"""Many training runs at once.

runs            `BatchedRuns`: the runs of one task
episodes        runs from start to horizon under a controller
step            one inner step, pure and differentiable
layout          where each parameter lies in a run's flat row
interval        the inner steps between two decisions
executors       how an interval is carried out: step by step or compiled
cuda_graphs     an interval as one CUDA graph
memory          how many runs fit on a device
batched_losses  losses and metrics over many runs
"""
