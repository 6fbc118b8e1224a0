"""One file per question, and `support/` for whatever several of them share.

The docstring of an experiment holds its question, its command, the expected result and the found one; an expectation
that failed stays. `--smoke` is a quick run with small numbers. Records and figures are in `records/` and `figures/`. No
experiment imports another.
"""
