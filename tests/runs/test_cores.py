"""Agents with every core act, learn, replay, stop, go on and are evaluated alike."""

import dataclasses
import functools
import json
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.protocol import AgentInput
from btnn_jax.runs.acting import load_agent
from btnn_jax.runs.agent import resume, train
from btnn_jax.runs.progress import Silent
from btnn_jax.runs.run import Run, create_run, read_run
from btnn_jax.runs.scores import score_run
from btnn_jax.training.config import CORES, UnrealConfig
from btnn_jax.training.mapping import make_mapped
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.unreal import make_unreal

CONFIG = UnrealConfig(
    algorithm="a2c",
    num_envs=4,
    rollout_length=8,
    total_steps=32 * 4,
    hidden=(8,),
    core_size=(8,),
    core_memory=5,
    replay_length=32,
    replay_batch=2,
    replay_burn_in=4,
    pc_weight=0,
    rp_weight=0,
)
OBSERVATION = envs.make("probe-memory").observation
NEW = [name for name in CORES if name != "lstm"]


def run(config, updates, length=5):
    init, step, *_ = make_unreal(config, envs.make("probe-memory", length=length))
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step)
    for _ in range(updates):
        state, metrics = step(state)
    return state, metrics


@pytest.mark.parametrize("core", NEW)
def test_what_acted_is_what_learns(core):
    """The network gives a rollout the same probabilities all at once as it gave them step by step."""
    config = dataclasses.replace(CONFIG, core=core, algorithm="ppo", epochs=1, minibatches=1, vr_weight=0)
    state, metrics = run(config, 3)
    np.testing.assert_allclose(metrics["approx_kl"], 0, atol=1e-6)
    assert metrics["clip_fraction"] == 0
    resets = np.asarray(state.actors.episode_length) == 0
    assert np.array_equal(state.actors.inputs.reset, resets)


class Stops(Silent):
    """Sends a signal after some updates."""

    def __init__(self, after):
        self._left = after

    def update(self, progress):
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("core", ["gru", "mingru", "lru+gtrxl"])
def test_a_run_stops_goes_on_and_is_evaluated(core, tmp_path, raw):
    def start(name, reporter):
        config = dataclasses.replace(CONFIG, core=core)
        return train("probe-memory", config, folder=tmp_path / name, reporter=reporter, log_seconds=0)

    straight = start("straight", Silent())
    assert int(straight.state.skipped) == 0
    assert start("stopped", Stops(after=2)).stopped == signal.SIGINT
    resumed = resume(tmp_path / "stopped", reporter=Silent(), log_seconds=0)

    assert raw(resumed.state) == raw(straight.state)
    first, second = (score_run(tmp_path / name, episodes=3) for name in ("straight", "stopped"))
    assert first == second
    agents = [load_agent(tmp_path / name) for name in ("straight", "stopped")]
    state, observation = agents[0].policy.initial_state(1), np.ones(OBSERVATION.shape, OBSERVATION.dtype)
    one = functools.partial(jnp.full, (1, 1))
    inputs = AgentInput(jnp.asarray(observation)[None, None], one(0), one(0.0), one(True))
    for _ in range(8):  # past the window of GTrXL's memory
        output, state = agents[0].policy.apply(
            {"params": straight.state.params}, inputs, state, deterministic=True
        )
        actions = [agent.act(observation, 0.5) for agent in agents]
        assert actions[0] == actions[1] == int(output.logits[0, 0].argmax())
        inputs = AgentInput(inputs.observation, one(int(actions[0])), one(0.5), one(False))


@pytest.mark.parametrize("core", ["lstm", "gtrxl"])
def test_the_replay_may_store_no_state(core):
    config = dataclasses.replace(CONFIG, core=core)
    stored, _ = jax.eval_shape(lambda: run(config, 1))
    assert jax.tree.leaves(stored.replay.cores)[0].shape[:2] == (4, 4)
    state, metrics = run(dataclasses.replace(config, replay_state="zero"), 3, length=20)
    assert state.replay.cores == ()
    assert metrics["value_replay_loss"] > 0
    assert metrics["skipped"] == 0


def test_a_folder_from_before_there_were_cores_is_an_lstms(tmp_path):
    config = dataclasses.replace(CONFIG, core_size=None, lstm=(6,))
    path = create_run(tmp_path / "run", Run("probe-memory", config)) / "config.json"
    settings = json.loads(path.read_text())
    for name in ("core", "core_size", "core_memory", "replay_state"):
        del settings["config"][name]
    path.write_text(json.dumps(settings))
    config = read_run(tmp_path / "run").config
    assert (config.core, config.core_sizes) == ("lstm", (6,))
    assert make_unreal_policy(config, envs.make("probe-memory")).core.layers == (6,)
    started = resume(tmp_path / "run", reporter=Stops(after=2), log_seconds=0)
    assert resume(tmp_path / "run", reporter=Silent()).steps == config.total_steps > started.steps


@pytest.mark.parametrize("core", ["gru", "mingru", "lru+gtrxl"])
def test_sixty_four_bits_change_no_type_in_the_train_step(core):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        init, step, *_ = make_unreal(dataclasses.replace(CONFIG, core=core), envs.make("probe-memory"))
        state = jax.eval_shape(init, jax.random.key(0))
        after, metrics = jax.eval_shape(step, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {x.dtype for x in jax.tree.leaves((state.params, metrics))} == {jnp.dtype(jnp.float32)}


def test_shards_on_two_devices_are_those_on_one():
    config = dataclasses.replace(CONFIG, core="lru+gtrxl", shards=2)

    def params(devices):
        init, step, *_ = make_mapped(config, envs.make("probe-memory"), devices=jax.devices()[:devices])
        state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step)
        for _ in range(2):
            state, metrics = step(state)
        assert metrics["skipped"] == 0
        return jax.device_get(state.params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params(1), params(2))
