"""Many training runs at once.

base            `Runs`: the interface of the runs of a task
runs            `BatchedRuns`: the runs of one task
episodes        runs from start to horizon under a controller
step            one inner step, pure and differentiable
gradients       losses and gradients of many runs, by the fastest route
batched_losses  losses and metrics over many runs
layout          the place of each parameter in a run's flat row
interval        the inner steps between two decisions
executors       an interval step by step or with a compiled step
cuda_graphs     an interval as one CUDA graph
compilation     the step by `torch.compile`
chunks          runs that go through a CPU's cache together
initial_weights  weights of constructed modules, from the seed
evaluation      loss and metric on a split
memory          the number of runs that fit on a device
"""
