"""The README's Python examples, run as they stand."""

import pathlib
import re

import jax
import numpy as np
import pytest

from btnn_jax import UnrealConfig, train
from btnn_jax.runs.progress import Silent

README = pathlib.Path(__file__).parents[1] / "README.md"


def example(heading):
    section = README.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return block


def test_the_loss_is_computed():
    names = {}
    with jax.numpy_dtype_promotion("standard"):  # a user's own settings
        exec(example("A loss in your own loop"), names)
    assert np.isfinite(names["loss"])
    assert names["metrics"]["approx_kl"] == 0


def test_a_trained_agent_acts(tmp_path, monkeypatch):
    pytest.importorskip("gymnax")
    monkeypatch.chdir(tmp_path)
    sizes = {
        "num_envs": 2,
        "rollout_length": 4,
        "total_steps": 8,
        "epochs": 1,
        "minibatches": 1,
        "replay_length": 8,
    }
    config = UnrealConfig(**sizes, hidden=(4,), lstm=(4,), num_filters=(2,), replay_batch=2, rp_batch=2)
    train("Breakout-MinAtar", config, folder="runs/breakout", reporter=Silent())
    names = {}
    exec(example("Use a trained agent"), names)
    assert 0 <= names["action"] < 3
    assert names["agent"].probabilities(names["observation"]).shape == (3,)
