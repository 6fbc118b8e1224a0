"""Agents that learn controllers: PPO, DQN, clones of the best LR in hindsight, meta-gradients, evolution strategies."""

if __name__ == "agents":
    raise ImportError("got 'import agents', expected 'import metalr.agents': two copies of every class would not mix")
