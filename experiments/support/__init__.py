"""The parts that experiments share.

harness           options from the command line, one torch thread, `--smoke`
records           rows as strict JSON, with the hardware and versions behind them
plotting          figures in one style
tables            rows printed in aligned columns
noisy_quadratic   the quadratic whose best schedule is known: loss, gradient, optima, tuned classics
mnist1d_tanh      the task of two experiments on MNIST-1D
readme_tables     the tables of the documents, made from committed records
readme_sentences  the sentences with measured numbers, likewise
general_setup     folders and settings of the general controller
plain_loop        a user's own loop with an exported controller
throughput        loops, rows, record and report of the throughput benchmark
"""
