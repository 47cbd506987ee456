import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.diagnostics import dormant_share, effective_rank, noise_by_layer, trunk_gradients
from btnn_jax.training.unreal import make_unreal

CONFIG = UnrealConfig(
    num_envs=4,
    rollout_length=8,
    total_steps=32 * 60,
    epochs=1,
    minibatches=2,
    hidden=(8,),
    lstm=(),
    num_filters=(2,),
    replay_length=32,
    replay_batch=2,
    rp_batch=4,
)


def test_trunk_is_what_policy_and_value_share():
    def terms(params):
        trunk, policy, value = params["trunk"], params["policy"], params["value"]
        return {
            "policy": trunk @ jnp.array([0.0, 2.0]) + 100 * policy,
            "value": trunk @ jnp.array([3.0, 0.0]) + 100 * value,
            "task": trunk @ jnp.array([-1.0, -1.0]),
            "silent": jnp.zeros(()),
        }

    params = {"trunk": jnp.ones(2), "policy": jnp.ones(()), "value": jnp.ones(())}
    metrics = trunk_gradients(terms, params)
    norms = {"policy": 2.0, "value": 3.0, "task": 2**0.5, "silent": 0.0}
    cosines = {"policy": 1.0, "value": 0.0, "task": -(2**-0.5), "silent": 0.0}
    for name in norms:
        np.testing.assert_allclose(metrics[f"trunk_norm/{name}"], norms[name], rtol=1e-6)
        np.testing.assert_allclose(metrics[f"trunk_cosine/{name}"], cosines[name], rtol=1e-6)
        share = norms[name] / sum(norms.values())
        np.testing.assert_allclose(metrics[f"trunk_share/{name}"], share, rtol=1e-6)
    with pytest.raises(ValueError, match="critic"):
        trunk_gradients(terms, params, other="critic")


def test_trunk_gradients_are_averaged_over_an_axis():
    def on(x):
        return trunk_gradients(lambda w: {"policy": w * x, "value": w}, jnp.ones(()), axis_name="i")

    metrics = jax.vmap(on, axis_name="i")(jnp.array([1.0, -3.0]))
    np.testing.assert_allclose(metrics["trunk_norm/policy"], [1.0, 1.0])
    np.testing.assert_allclose(metrics["trunk_cosine/value"], [-1.0, -1.0])


def test_effective_rank_and_dormant_features():
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (6, 6)))[0]
    features = basis[:, :3] @ basis[:3]  # three equal singular values
    np.testing.assert_allclose(effective_rank(features.reshape(2, 3, 6)), 3.0, rtol=1e-2)
    np.testing.assert_allclose(effective_rank(jnp.ones((5, 4))), 1.0, atol=1e-2)
    assert effective_rank(jnp.zeros((5, 4))) == 0
    sizes = jnp.array([1.0, -1.0, 0.02, 0.04])  # 0.025 of the mean is 0.013
    assert dormant_share(jnp.stack([sizes, -sizes])) == 0
    assert dormant_share(sizes.at[2].set(0.01)) == 0.25


def test_noise_is_reported_for_each_layer():
    sigma = {"kernel_sigma": jnp.array([[-1.0, 3.0]]), "bias_sigma": jnp.ones(2)}
    assert noise_by_layer({"head": {"a": sigma, "b": {"kernel": jnp.ones(1)}}}) == {"noise_sigma/head/a": 2.0}


def test_diagnostics_change_nothing_that_is_learned():
    env = envs.make("probe-pixels")

    def learn(diagnostics):
        config = dataclasses.replace(CONFIG, diagnostics=diagnostics)
        init, step, *_ = make_unreal(config, env)
        return jax.jit(step)(jax.jit(init)(jax.random.key(0)))

    (state, metrics), (measured, more) = learn(False), learn(True)
    chex.assert_trees_all_close(state.params, measured.params, rtol=1e-5, atol=1e-6)  # another program
    terms = {"policy", "value", "entropy", "pixel_control", "value_replay", "reward_prediction"}
    kinds = {f"{kind}/{term}" for kind in ("trunk_norm", "trunk_share", "trunk_cosine") for term in terms}
    noise = {f"noise_sigma/{x}" for x in more if x.startswith("noise_sigma/")}
    assert set(more) - set(metrics) - noise >= kinds | {"effective_rank", "dormant_features", "clipped"}
    assert all(np.isfinite(x) and x.shape == () and x.dtype == jnp.float32 for x in more.values())
    np.testing.assert_allclose(sum(more[f"trunk_share/{term}"] for term in terms), 1.0, rtol=1e-5)
