"""From an observation to an LR.

controller  the interface of a controller, and when its decisions fall
actions     an action becomes an LR multiplier, inside bounds and behind a breaker
policy      feed-forward policies as controllers
recurrent   recurrent policies as controllers
reference   controllers without learning: a schedule, random actions, a replay
rules       reactive rules written by hand
catalog     every kind of controller by name
loop        observe, decide, remember
lr          the LR in force
"""
