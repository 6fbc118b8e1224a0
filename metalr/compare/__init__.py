"""Comparisons: equal budgets, fresh seeds.

comparison           `compare`: plan, train what is missing, keep records
plan                 settings, trials, and the runs of each phase
contenders           every baseline by name, with its search space
external_optimizers  optimizers of other packages as contenders
ablations            variants of a learned controller that explain it
batches              trains the runs of a comparison
selection            which trial a table reports
results              records become rows of tables
statistics           robust means, bootstrap intervals, profiles
bayesian             Gaussian-process search for one contender
"""
