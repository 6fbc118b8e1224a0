"""The parts of the throughput benchmark.

loops   the engine and its rivals, timed in turns
rows    one function for each kind of row
record  rows on disk, and rows that fail or take too long
report  the table and the figure
"""
