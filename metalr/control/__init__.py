"""From an observation to an LR.

controller  the interface of a controller, and the inner steps at which it decides
actions     actions as LR multipliers, within bounds and behind a breaker
policy      feed-forward policies as controllers
recurrent   recurrent policies as controllers
lstm        policies with long short-term memory as controllers
reference   controllers that learn nothing: a schedule, random actions, a replay
rules       hand-written reactive rules
catalog     every kind of controller, by name
loop        observe, decide, remember
lr          the LR in force
explanation the reasons of a decision, in numbers and in words
"""
