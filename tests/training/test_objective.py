import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.policies import init_params
from btnn_jax.replay import make_replay
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.objective import (
    FLOOR_WEIGHT,
    OnPolicy,
    make_objective,
    make_terms,
    select_envs,
    to_replay,
)
from btnn_jax.training.rollout import make_rollout
from btnn_jax.training.unreal import hyperparameters, make_unreal, minibatch_rows

CONFIG = UnrealConfig(
    num_envs=8, rollout_length=8, minibatches=4, epochs=3, hidden=(8,), lstm=(8,), replay_length=32, replay_batch=4,
    pc_weight=0, rp_weight=0,
)  # fmt: skip
HYPER = hyperparameters(CONFIG)


@pytest.fixture(scope="module")
def played():
    """Parameters, a batch, and the same steps as a replay keeps them, from an environment of long episodes."""
    env = envs.make("probe-discount", length=30)
    policy = make_unreal_policy(CONFIG, env)
    reset, rollout = make_rollout(env, policy, CONFIG.num_envs, CONFIG.rollout_length)
    params = init_params(policy, jax.random.key(0), env.observation)
    actors, noise_key = reset(jax.random.key(1)), jax.random.key(2)
    replay, rollout = make_replay(32, 8, burn_in=4), jax.jit(rollout)
    stored = None
    for _ in range(3):
        core = actors.core
        actors, record, _ = rollout(params, actors, noise_key)
        if stored is None:
            stored = replay.init(jax.tree.map(lambda x: x[0], to_replay(record)), core)
        stored = replay.add(stored, to_replay(record), record.reward, record.inputs.reset, core)
    advantage = jax.random.normal(jax.random.key(3), record.reward.shape)
    return policy, params, OnPolicy(record, advantage, advantage + 1, core), stored, noise_key


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_the_mean_over_devices_is_the_whole_batch(played, algorithm):
    policy, params, batch, _, noise_key = played
    config = dataclasses.replace(CONFIG, algorithm=algorithm, vr_weight=0)

    def gradient(batch, axis_name):
        objective = make_objective(config, policy, None, axis_name)
        out = jax.value_and_grad(objective, has_aux=True)(
            params, batch, None, noise_key, jax.random.key(4), HYPER
        )
        return out if axis_name is None else jax.lax.pmean(out, axis_name)

    rows = jnp.arange(8).reshape(4, 2)
    parts = jax.tree.map(lambda *xs: jnp.stack(xs), *(select_envs(batch, r) for r in rows))
    shared = jax.vmap(lambda part: gradient(part, "devices"), axis_name="devices")(parts)
    whole = gradient(batch, None)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[2], shared), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("advantage", [0.7, 0.1, 1000.1, 0.0])
@pytest.mark.parametrize("axis_name", [None, "devices"])
def test_advantages_that_are_all_the_same_teach_the_policy_nothing(played, advantage, axis_name):
    """The rounded mean of a constant is not that constant, and the difference is not to be scaled up to 1."""
    policy, params, batch, _, noise_key = played
    config = dataclasses.replace(CONFIG, algorithm="a2c", vr_weight=0, normalize_advantages=True)
    batch = batch._replace(advantage=jnp.full_like(batch.advantage, advantage))
    objective = make_objective(config, policy, None, axis_name)

    def policy_loss(batch):
        return objective(params, batch, None, noise_key, jax.random.key(4), HYPER)[1]["policy_loss"]

    if axis_name is None:
        assert policy_loss(batch) == 0
    else:
        parts = jax.tree.map(lambda *xs: jnp.stack(xs), *(select_envs(batch, r[None]) for r in jnp.arange(7)))
        np.testing.assert_array_equal(jax.vmap(policy_loss, axis_name=axis_name)(parts), 0)


@pytest.mark.parametrize("burn_in", [0, 4])
def test_no_gradient_flows_into_the_burn_in(played, burn_in):
    policy, params, batch, stored, noise_key = played
    config = dataclasses.replace(CONFIG, replay_burn_in=burn_in, replay_length=32)
    objective = make_objective(config, policy, make_replay(32, 8, burn_in=burn_in))

    def loss(cores):
        return objective(params, batch, stored._replace(cores=cores), noise_key, jax.random.key(4), HYPER)[0]

    reaches = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(jax.grad(loss)(stored.cores)))
    assert (reaches == 0) == (burn_in > 0)


def test_a_window_that_starts_its_episode_learns_from_all_of_it(played):
    policy, params, batch, stored, noise_key = played
    stored = stored._replace(head=jnp.int32(8), size=jnp.int32(8))  # of which every window does

    def gradient(burn_in):
        config = dataclasses.replace(CONFIG, replay_burn_in=burn_in)
        objective = make_objective(config, policy, make_replay(32, 8, burn_in=burn_in))
        loss = jax.grad(objective, has_aux=True)
        return loss(params, batch, stored, noise_key, jax.random.key(4), HYPER)[0]

    chex.assert_trees_all_close(gradient(4), gradient(0), rtol=1e-4, atol=1e-6)


def test_an_action_that_would_not_be_taken_any_more_teaches_no_value(played):
    policy, params, batch, stored, noise_key = played
    objective = make_objective(CONFIG, policy, make_replay(32, 8))

    def loss(surer):
        steps = stored.steps._replace(log_prob=stored.steps.log_prob + surer)
        arguments = batch, stored._replace(steps=steps), noise_key, jax.random.key(4), HYPER
        return objective(params, *arguments)[1]["value_replay_loss"]

    assert loss(50.0) < 1e-9 < 1e-5 < loss(0.0)


def test_a_reward_within_the_threshold_is_none(played):
    _, _, batch, stored, noise_key = played
    env = envs.make("probe-discount", length=30)
    small = jax.random.bernoulli(jax.random.key(5), shape=stored.rewards.shape).astype(jnp.float32) / 2

    def loss(rewards, threshold):
        config = dataclasses.replace(CONFIG, vr_weight=0, rp_weight=1.0, rp_threshold=threshold)
        policy = make_unreal_policy(config, env)
        params = init_params(policy, jax.random.key(0), env.observation)
        objective = make_objective(config, policy, make_replay(32, 8))
        arguments = batch, stored._replace(rewards=rewards), noise_key, jax.random.key(4), HYPER
        return objective(params, *arguments)[1]["reward_prediction_loss"]

    assert loss(small, 0.5) == loss(jnp.zeros_like(small), 0.0) != loss(small, 0.0)


def test_every_epoch_takes_every_environment_once_and_whole(played):
    _, _, batch, _, _ = played
    rows = minibatch_rows(jax.random.key(0), CONFIG)
    assert rows.shape == (12, 2)
    for epoch in np.asarray(rows).reshape(3, 8):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(8))
    assert not np.array_equal(rows[:4], rows[4:8])
    part = select_envs(batch, rows[0])
    for t in range(8):
        for column, env in enumerate(np.asarray(rows[0])):
            chex.assert_trees_all_equal(
                jax.tree.map(lambda x, t=t, c=column: x[t, c], part.rollout),
                jax.tree.map(lambda x, t=t, e=env: x[t, e], batch.rollout),
            )
            chex.assert_trees_all_equal(
                jax.tree.map(lambda x, c=column: x[c], part.core),
                jax.tree.map(lambda x, e=env: x[e], batch.core),
            )


def test_the_loss_of_the_autoencoder_is_in_nats_and_beta_weighs_the_divergence():
    env = envs.make("probe-pixels")
    config = dataclasses.replace(CONFIG, algorithm="a2c", vr_weight=0, lstm=(), noisy=False)
    policy, noise_key = make_unreal_policy(config, env), jax.random.key(2)
    reset, rollout = make_rollout(env, policy, CONFIG.num_envs, CONFIG.rollout_length)
    params = init_params(policy, jax.random.key(0), env.observation)
    _, record, _ = jax.jit(rollout)(params, reset(jax.random.key(1)), noise_key)
    batch, seen = OnPolicy(record, record.value, record.value, ()), record.inputs.observation

    def found(kind, beta):
        changed = dataclasses.replace(config, autoencoder=kind, ae_weight=1.0, ae_beta=beta)
        policy = make_unreal_policy(changed, env)
        params = init_params(policy, jax.random.key(0), env.observation)
        arguments = params, batch, None, jax.random.clone(noise_key), jax.random.key(4), HYPER
        loss = jax.jit(make_objective(changed, policy, None))(*arguments)[1]["autoencoder_loss"]
        return loss, lambda: policy.apply({"params": params}, seen, method=type(policy).reconstruct)

    loss, reconstruct = found("conv2d", 1.0)
    images, output = reconstruct()
    squares = np.square(np.asarray(images, np.float32) / 255 - output.y_hat)
    np.testing.assert_allclose(loss, squares.sum((2, 3, 4)).mean() / 2, rtol=1e-5)
    none, once, thrice = (found("beta_vae", beta)[0] for beta in (0.0, 1.0, 3.0))
    assert once > none
    np.testing.assert_allclose(thrice - none, 3 * (once - none), rtol=1e-3)


def test_entropy_weight_rises_linearly_below_the_floor(played):
    policy, params, batch, _, noise_key = played

    def measure(floor):
        config = dataclasses.replace(CONFIG, vr_weight=0, entropy_floor=floor)
        terms = make_terms(config, policy, None)
        return terms(params, batch, None, noise_key, jax.random.key(4), HYPER)

    terms, metrics = measure(0.0)
    entropy = float(metrics["entropy"])
    assert "entropy_weight" not in metrics
    np.testing.assert_allclose(terms["entropy"], -HYPER.entropy_beta * entropy, rtol=1e-5)
    for floor, extra in [
        (entropy / 2, 0.0),
        (2 * entropy, FLOOR_WEIGHT / 2),
        (4 * entropy, 0.75 * FLOOR_WEIGHT),
    ]:
        terms, metrics = measure(floor)
        weight = HYPER.entropy_beta + extra
        np.testing.assert_allclose(metrics["entropy_weight"], weight, rtol=1e-4)
        np.testing.assert_allclose(terms["entropy"], -weight * entropy, rtol=1e-4)


def test_floor_holds_an_entropy_that_would_collapse():
    env = envs.make("probe-action")

    def entropy_at_the_end(floor):
        config = dataclasses.replace(
            CONFIG, vr_weight=0, lstm=(), epochs=1, noisy=False, entropy_beta=0, entropy_floor=floor,
            learning_rate=0.02, learning_rate_schedule="constant",
        )  # fmt: skip
        init, step, *_ = make_unreal(config, env)
        advance = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s), state, length=100))
        return np.mean(advance(jax.jit(init)(jax.random.key(0)))[1]["entropy"][-20:])

    assert entropy_at_the_end(0.0) < 0.05
    assert 0.12 < entropy_at_the_end(0.4) < 0.4
