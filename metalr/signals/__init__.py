"""Measurements of a training run.

stats         raw statistics of a decision interval
observations  the scale-free features that a controller reads
"""
