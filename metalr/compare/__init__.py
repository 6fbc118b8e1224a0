"""Comparisons: equal budgets, fresh seeds.

comparison           `compare`: plan, train what is missing, keep records
settings             settings, and the trials that follow from them
search               one low-discrepancy sequence over the LR and a contender's own parameters
plan                 who is compared, and the runs of each phase
contenders           the interface and its classes: schedule, rule, search, optimizers, fixed, controller, ablation
catalog              the registered contenders by name, with their search spaces
external_optimizers  optimizers of other packages
staged_search        short probes find the LR of each stage of a run (AutoLRS)
calibrated           one LR for each kind of optimizer, fitted on other tasks
ablations            variants of a learned controller that explain it
run_record           a run: planned, recorded, its curve
fingerprints         JSON descriptions of tasks and controllers
batches              trains planned runs in batches
oracle               curves of the final loss against the LR, and the regret of an LR
selection            the best trial by a criterion
results              records become rows of tables
statistics           robust means, bootstrap intervals, profiles
bayesian             Gaussian-process search for one contender
"""
