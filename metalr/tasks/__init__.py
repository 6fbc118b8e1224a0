"""The supervised tasks that runs train on.

task       `Task`: a network, data, a loss, an inner optimizer and a budget
catalog    the shipped tasks by name
families   distributions of tasks
data       minibatches as a function of run seed and step; train, valid and test splits
datasets   the shipped datasets
models     small networks that accept many runs at once
losses     losses and metrics that torch lacks
sinusoids  few-shot regression, the classic test of MAML
"""
