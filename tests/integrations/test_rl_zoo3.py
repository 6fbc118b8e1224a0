"""rl-baselines3-zoo trains on the environment as the guide says; what it saves is exported."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import metalr
from tests.integrations.installed import library

library("rl_zoo3")
yaml = library("yaml")

DOCS = Path(__file__).parents[2] / "docs"


def test_the_guide_trains_and_exports(tmp_path, monkeypatch):
    section = (DOCS / "integrations.md").read_text().split("\n## rl-baselines3-zoo\n")[1].split("\n## ")[0]
    command, block = re.search(r"```bash\n(.*?)```.*```python\n(.*?)```", section, flags=re.DOTALL).groups()
    shutil.copytree(DOCS, tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    _, *words = shlex.split(command)
    run = [sys.executable, *words, "--n-timesteps", "160", "--seed", "0", "--num-threads", "1"]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

    names = {"metalr": metalr}
    exec(compile(block, "guide", "exec"), names)
    model, env = names["model"], names["env"]
    assert model.num_timesteps == 160
    settings = yaml.safe_load((DOCS / "rl_zoo3.yml").read_text())["metalr/LRControl-v0"]
    assert {key: value for key, value in env.spec.kwargs.items() if key in settings["env_kwargs"]} == settings[
        "env_kwargs"
    ]
    controller = metalr.load_controller("zoo.safetensors")
    assert controller.decisions == settings["env_kwargs"]["decisions"] == settings["n_steps"]
    seen, _ = env.reset(seed=0)
    done = False
    while not done:
        action, _ = model.predict(seen, deterministic=True)
        mine = controller.act(torch.as_tensor(seen)[None, None])
        assert np.allclose(mine.numpy()[0], action, rtol=0.0, atol=1e-6)
        seen, _, done, _, _ = env.step(action)
