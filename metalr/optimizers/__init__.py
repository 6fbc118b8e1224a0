"""Inner optimizers as pure functions of flat parameter matrices.

classic   SGD, RMSprop, Adagrad, Adam and AdamW, each equal to its `torch.optim` class
own       torch's optimizers by class and arguments
wrappers  Lookahead, hypergradient descent and a cycled momentum around one of those
"""
