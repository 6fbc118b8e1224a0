"""Inner optimizers as pure functions of flat parameter matrices.

classic   SGD, RMSprop, Adagrad, Adam and AdamW, each equal to its `torch.optim` class
wrappers  Lookahead, hypergradient descent and a cycled momentum around one of those
"""
