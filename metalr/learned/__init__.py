"""Modules that hold meta-parameters.

module     what all of them share, and their parameters as one vector
schedules  learned schedules: one number, knots, pieces, one LR for each parameter
policies   learned closed loops: a perceptron and a gated recurrent unit
export     the controller that a learned module becomes
"""
