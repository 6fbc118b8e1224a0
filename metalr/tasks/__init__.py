"""The supervised tasks that runs train on.

task       `Task`: a network, data, a loss, an inner optimizer and a budget
catalog    the shipped tasks by name
families   distributions of shipped tasks
general    the wide family of small tasks for a general controller
synthetic  generated datasets of many kinds
draws      random numbers of a task, a function of one integer
data       minibatches as a function of run seed and step; train, valid and test splits
datasets   the shipped datasets
models     small networks that accept many runs at once
losses     losses and metrics that torch lacks
sinusoids  few-shot regression, the classic test of MAML
"""
