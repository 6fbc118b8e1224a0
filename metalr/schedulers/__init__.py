"""Torch schedulers for a user's own loop.

schedule_lr   `ScheduleLR`: a schedule as a torch scheduler
learned_lr    `LearnedLR`: a controller as a torch scheduler
controlled_run  one run under a controller, independent of torch.optim
clock         the updates at which decisions fall
lookahead     the base schedule, evaluated ahead of time
meter         gradient and update statistics of a `torch.optim` optimizer
sums          squared norms and scalar products of lists of tensors
shards        parameters that are sharded over ranks
loss_log      the losses between two decisions
ranks         agreement between the ranks of a distributed run
alerts        warnings about a user's loop, each given once
history       a record of each decision
param_groups  reading, writing and restoring LRs in parameter groups
hooks         calls around `optimizer.step()`
plain_runs    the runs of a task through its own network, optimizer and loader, one after the other
own_randomness  the random numbers of such a run
decision_log  the decisions of a run for an experiment tracker
adapters      integrations with the loops of other libraries
huggingface_callback  a controller in Hugging Face's Trainer
lightning_callback  a controller in Lightning
"""
