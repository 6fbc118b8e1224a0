"""The supervised tasks that runs train on.

task         `Task`: a network, data, a loss, an inner optimizer and a budget
catalog      the shipped tasks by name
imported     a task of your own by module and function
families     distributions of shipped tasks
general      the wide family of small tasks that a general controller is trained and chosen on
meta_test    the fixed tasks that it is tested on
recipes      a task by its numbers
networks     a small network by its numbers, and what an inner step of it costs
synthetic    generated datasets of many kinds
pretraining  weights for fine-tuning
draws        random numbers of a task, a function of one integer
data         minibatches as a function of run seed and step; train, valid and test splits
datasets     the shipped datasets
models       small networks that accept many runs at once
losses       losses and metrics that torch lacks
sinusoids    few-shot regression, the classic test of MAML
"""
