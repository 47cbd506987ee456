"""The main paths where JAX's 64-bit types are on, as for a user who has `JAX_ENABLE_X64=1`."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from btnn_jax import envs
from btnn_jax.runs.agent import resume, train
from btnn_jax.runs.autoencoder import train_autoencoder
from btnn_jax.runs.backtests import backtest_run
from btnn_jax.runs.progress import Silent
from btnn_jax.runs.reconstruction import compare_run
from btnn_jax.runs.scores import score_run
from btnn_jax.training.config import AutoencoderConfig, UnrealConfig
import jax

assert jax.numpy.zeros(1).dtype == "float64"
assert envs.make("CartPole-v1").observation.dtype == "float32"
began = jax.eval_shape(envs.make("probe-memory").reset, jax.random.key(0))
assert {str(x.dtype) for x in jax.tree.leaves(began)} <= {"int32", "float32", "bool"}
folder, what = sys.argv[1:]
config = UnrealConfig(
    num_envs=2, rollout_length=4, total_steps=24, epochs=1, minibatches=1, hidden=(4,), lstm=(4,), num_filters=(2,),
    replay_length=8, replay_batch=2, rp_batch=2,
)
if what == "agent":
    result = train("probe-pixels", config, folder=folder, reporter=Silent())
    assert score_run(folder, episodes=2)["greedy"].episodes == 2
elif what == "trading":
    params = {"part": "train", "slippage": 1e-3, "episode_length": 16}
    result = train("trading", config, folder=folder, reporter=Silent(), env_params=params)
    backtest_run(folder)
else:
    settings = AutoencoderConfig(steps=4, steps_per_update=2, frames=320, embargo=1, batch=4)
    result = train_autoencoder("probe-pixels", settings, folder=folder, reporter=Silent())
    compare_run(folder)
leaves = [x for x in jax.tree.leaves(result.state) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]
assert {x.dtype.itemsize for x in leaves} == {4}
print("done", result.steps)
"""


@pytest.mark.parametrize("what", ["agent", "trading", "autoencoder"])
def test_training_evaluation_and_backtests_run(tmp_path, what):
    environment = os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), what]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.startswith("done")
