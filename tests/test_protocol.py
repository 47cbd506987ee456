"""Networks of one's own in the train step."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.networks import LSTMNetwork
from btnn_jax.parameters import update_return_scale
from btnn_jax.protocol import AgentInput, ModulePolicy, check_policy
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.evaluate import make_evaluate
from btnn_jax.training.unreal import make_unreal

CONFIG = UnrealConfig(
    num_envs=16, rollout_length=8, total_steps=128 * 100, epochs=2, minibatches=2, pc_weight=0, rp_weight=0,
    replay_length=32, replay_batch=4, learning_rate=0.01, entropy_beta=0.01,
)  # fmt: skip


class Plain(nn.Module):
    actions: int

    @nn.compact
    def __call__(self, observation):
        x = nn.relu(nn.Dense(16)(observation))
        return nn.Dense(self.actions)(x), nn.Dense(1)(x)[..., 0]


class Remembering(nn.Module):
    actions: int
    memory: nn.Module = LSTMNetwork((16,))

    def setup(self):
        self.heads = Plain(self.actions)

    def initial_state(self, batch_size):
        return self.memory.initial_state(batch_size)

    def __call__(self, observation, state, resets):
        x, state = self.memory(observation, state, resets=resets)
        return self.heads(x), state


@pytest.mark.parametrize(("network", "name"), [(Plain, "probe-choice"), (Remembering, "probe-memory")])
def test_a_module_of_ones_own_learns(network, name):
    env = envs.make(name)
    policy = ModulePolicy(network(env.action_depths), env.action_depths)
    init, step, *_ = make_unreal(CONFIG, env, policy=policy)
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step)
    for _ in range(100):
        state, metrics = step(state)
    assert metrics["skipped"] == 0
    evaluate = jax.jit(make_evaluate(env, policy, num_episodes=64, greedy=True))
    assert evaluate(state.params, jax.random.key(1)).returns.mean() > 0.9


class Forgetful(nn.Module):
    def setup(self):
        self.memory = LSTMNetwork((16,))

    def initial_state(self, batch_size):
        return self.memory.initial_state(batch_size)


def test_a_state_of_a_submodule_that_is_not_there_yet_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"initial_state of Forgetful is called outside of apply.*make the core a field"
    ):
        ModulePolicy(Forgetful(), 2).initial_state(4)


def test_a_new_scale_changes_no_value_of_an_own_module():
    policy = ModulePolicy(Plain(2), 2)
    inputs = AgentInput(
        jnp.ones((3, 4, 5)), jnp.zeros((3, 4), jnp.int32), jnp.zeros((3, 4)), jnp.ones((3, 4), bool)
    )
    params = policy.init(jax.random.key(0), inputs, ())["params"]
    first = update_return_scale(params, jnp.float32(4.0), 0.1)
    second = update_return_scale(first, jnp.float32(400.0), 0.1)
    before, after = (policy.apply({"params": p}, inputs, ())[0].value for p in (first, second))
    np.testing.assert_allclose(after, before, rtol=1e-5)


class Nothing:
    action_depths = 2

    def initial_state(self, batch_size):
        return ()


@pytest.mark.parametrize(
    ("policy", "tasks", "message"),
    [
        (
            Nothing(),
            {},
            "the policy Nothing has no __call__, init_heads, apply, lazy_init; see btnn_jax.protocol.Policy",
        ),
        (object(), {}, "the policy object has no action_depths, initial_state"),
        (
            ModulePolicy(Plain(2), 2),
            {"pixel_control": True},
            "no method pixel_control; .*switch pixel control off",
        ),
        (ModulePolicy(Plain(2), 2), {"reward_prediction": True}, "no method reward_prediction; .* off"),
    ],
)
def test_what_a_policy_lacks_is_listed(policy, tasks, message):
    with pytest.raises(ValueError, match=message):
        check_policy(policy, **tasks)


def test_the_train_step_checks_its_policy():
    env = envs.make("probe-choice")
    with pytest.raises(ValueError, match="no method reward_prediction"):
        make_unreal(dataclasses.replace(CONFIG, rp_weight=1.0), env, policy=ModulePolicy(Plain(2), 2))


def test_a_network_that_returns_other_shapes_is_named():
    env = envs.make("probe-choice")
    policy = ModulePolicy(Plain(env.action_depths + 1), env.action_depths)
    init, *_ = make_unreal(CONFIG, env, policy=policy)
    with pytest.raises(ValueError, match="network Plain must return logits"):
        jax.eval_shape(init, jax.random.key(0))
