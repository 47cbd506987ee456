"""Learning runs of a minute or more, on real environments, as a user starts them."""

import jax
import pytest

from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.progress import Silent
from btnn_jax.training.run import make_agent, train
from btnn_jax.training.scores import score

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _optimized():
    """As a user's process compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def learn(tmp_path, env, config, env_params=None):
    """Scores of a run, greedy, sampled and random."""
    result = train(env, config, env_params=env_params, folder=tmp_path / "run", reporter=Silent())
    return score(make_agent(result.run), result.state.params, episodes=128)


def test_breakout_by_the_defaults(tmp_path):
    scores = learn(tmp_path, "Breakout-MinAtar", UnrealConfig())
    assert scores["sampled"].mean_return > 10 * scores["random"].mean_return > 2


def test_catch(tmp_path):
    config = UnrealConfig(total_steps=200_000, pc_cell=(2, 1))
    assert learn(tmp_path, "Catch-bsuite", config)["sampled"].mean_return >= 0.95


@pytest.mark.parametrize(
    ("lstm", "low", "high"), [((128,), 0.95, 1.0), ((), -0.3, 0.3)], ids=["lstm", "none"]
)
def test_a_memory_chain_needs_memory(tmp_path, lstm, low, high):
    config = UnrealConfig(total_steps=150_000, pc_weight=0, lstm=lstm)
    scores = learn(tmp_path, "MemoryChain-bsuite", config, {"memory_length": 10})
    assert low <= scores["sampled"].mean_return <= high
    assert low <= scores["greedy"].mean_return <= high
