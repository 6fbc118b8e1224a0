"""Torch schedulers for a user's own loop.

schedule_lr   `ScheduleLR`: a schedule as a torch scheduler
learned_lr    `LearnedLR`: a controller as a torch scheduler
controlled_run  a run under a controller, apart from torch.optim
clock         when decisions fall
lookahead     the base schedule, evaluated ahead
meter         gradient and update statistics of a `torch.optim` optimizer
loss_log      the losses between two decisions
ranks         how the ranks of a distributed run reach the same decision
history       what each decision saw and did
param_groups  reading, writing and restoring LRs in parameter groups
hooks         calls around `optimizer.step()`
adapters      thin adapters to the loops of other libraries
"""
