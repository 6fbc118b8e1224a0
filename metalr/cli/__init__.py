"""The command line. A command is a dataclass whose fields are its options, and whose `run` parses, calls and prints.

main      the way in
train     train a controller, try it on fresh seeds
export    a controller as one file
compare   schedules and controllers under equal budgets
explain   why a controller decided as it did
tune      the LR and the parameters of one contender
find_lr   an LR range test
list      what there is
checks    the device and the controller that a command was given

What a command does is a function elsewhere.
"""
