import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from btnn_jax import categorical
from btnn_jax.ae import BetaVAEConv2D, ChannelWiseConv2DAutoencoder, Conv2DAutoencoder
from btnn_jax.layers import NoisyLinear
from btnn_jax.networks import pixel_change_2d_estimator
from btnn_jax.policies import (
    AgentInput,
    UnrealPolicy,
    action_distribution,
    frozen_mask,
    init_params,
    make_policy,
    with_pretrained,
)

IMAGE = jax.ShapeDtypeStruct((10, 10, 4), bool)
PHOTO = jax.ShapeDtypeStruct((42, 42, 3), jnp.uint8)
SIGNAL = jax.ShapeDtypeStruct((30, 5), jnp.float32)
VECTOR = jax.ShapeDtypeStruct((7,), jnp.float32)


def draw(key, spec, lead):
    shape = (*lead, *spec.shape)
    if spec.dtype == bool:
        return jax.random.bernoulli(key, 0.3, shape)
    if spec.dtype == jnp.uint8:
        return jax.random.randint(key, shape, 0, 256, jnp.int32).astype(jnp.uint8)
    return jax.random.normal(key, shape)


def make_inputs(observation, depths, T=5, B=3, seed=0):
    key, action_key, reward_key, reset_key = jax.random.split(jax.random.key(seed), 4)
    leaves, structure = jax.tree.flatten(observation)
    keys = jax.random.split(key, len(leaves))
    return AgentInput(
        structure.unflatten([draw(k, spec, (T, B)) for k, spec in zip(keys, leaves, strict=True)]),
        jax.tree.map(lambda d: jax.random.randint(jax.random.clone(action_key), (T, B), 0, d), depths),
        jax.random.normal(reward_key, (T, B)),
        jax.random.bernoulli(reset_key, 0.2, (T, B)),
    )


def small(observation, depths=4, **fields):
    fields = {"hidden": (16,), "lstm": (8,), "num_filters": (4, 4), **fields}
    policy = make_policy(depths, observation, **fields)
    return policy, init_params(policy, jax.random.key(1), observation)


def means(policy, **fields):
    """`policy.apply` without noise, compiled as one."""
    return jax.jit(functools.partial(policy.apply, deterministic=True, **fields))


@pytest.mark.parametrize("observation", [IMAGE, PHOTO, SIGNAL], ids=["image", "uint8", "signal"])
def test_the_pixel_control_grid_is_the_pixel_changes(observation):
    policy, params = small(observation, pc_cell=(2, 2) if observation is not PHOTO else (4, 4))
    inputs = make_inputs(observation, 4)
    frames = inputs.observation if observation is not SIGNAL else inputs.observation[..., None, :]
    change = pixel_change_2d_estimator(
        frames[1:], frames[:-1], stride=(2, 2) if observation is not PHOTO else (4, 4)
    )
    output, _ = means(policy)({"params": params}, inputs, policy.initial_state(3))
    q = means(policy, method=UnrealPolicy.pixel_control)({"params": params}, output.features)
    assert q.shape == (5, *change.shape[1:], 4)


@pytest.mark.parametrize(
    ("observation", "depths"),
    [
        (VECTOR, 3),
        ({"external": SIGNAL, "internal": VECTOR}, {"EUR": 4, "USD": 4}),
        ({"frame": IMAGE, "scalar": jax.ShapeDtypeStruct((), jnp.float32)}, {"arm": {"left": 2, "right": 3}}),
    ],
    ids=["vector", "streams", "nested"],
)
def test_outputs_have_the_structure_of_the_spaces(observation, depths):
    policy, params = small(observation, depths, pixel_control=False)
    inputs = make_inputs(observation, depths)
    output, core = policy.apply({"params": params}, inputs, policy.initial_state(3), deterministic=True)
    assert jax.tree.map(lambda x: x.shape, output.logits) == jax.tree.map(lambda d: (5, 3, d), depths)
    assert output.value.shape == (5, 3)
    assert jax.tree.map(lambda x: x.shape, core) == (((3, 8), (3, 8)),)
    frames = jax.tree.map(lambda x: jnp.swapaxes(x[:3], 0, 1), inputs.observation)
    logits = policy.apply(
        {"params": params}, frames, deterministic=True, method=UnrealPolicy.reward_prediction
    )
    assert logits.shape == (3, 3)


def test_step_by_step_equals_all_at_once():
    policy, params = small(IMAGE)
    inputs = make_inputs(IMAGE, 4)
    whole, last = policy.apply({"params": params}, inputs, policy.initial_state(3), deterministic=True)
    core, values = policy.initial_state(3), []
    for t in range(5):
        now = jax.tree.map(lambda x, t=t: x[t : t + 1], inputs)
        output, core = policy.apply({"params": params}, now, core, deterministic=True)
        values.append(output.value[0])
    np.testing.assert_allclose(whole.value, jnp.stack(values), rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), last, core)


def test_an_episodes_first_step_sees_nothing_of_the_one_before():
    policy, params = small(VECTOR, pixel_control=False)
    inputs = make_inputs(VECTOR, 4)
    inputs = inputs._replace(reset=jnp.zeros((5, 3), bool).at[2].set(True))

    def values(inputs):
        return policy.apply({"params": params}, inputs, policy.initial_state(3), deterministic=True)[0].value

    def changed(t):
        return inputs._replace(
            observation=inputs.observation.at[t - 1].add(1.0),
            last_action=inputs.last_action.at[t].set((inputs.last_action[t] + 1) % 4),
            last_reward=inputs.last_reward.at[t].add(1.0),
        )

    np.testing.assert_array_equal(values(inputs)[2:], values(changed(2))[2:])
    assert np.all(values(inputs)[3:] != values(changed(3))[3:])


def test_uint8_is_pixels_and_bool_is_not():
    spec = jax.ShapeDtypeStruct((10, 10, 4), jnp.uint8)
    policy, params = small(spec)
    inputs = make_inputs(spec, 4)

    def value(observation):
        now = inputs._replace(observation=observation)
        return policy.apply({"params": params}, now, policy.initial_state(3), deterministic=True)[0].value

    pixels = inputs.observation
    np.testing.assert_allclose(value(pixels), value(pixels.astype(jnp.float32) / 255), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value(pixels > 99), value((pixels > 99).astype(jnp.float32)), rtol=1e-6)


def test_held_noise_repeats_and_new_noise_differs():
    policy, params = small(VECTOR, pixel_control=False)
    inputs = make_inputs(VECTOR, 4)

    def logits(seed):
        rngs = {"noise": jax.random.key(seed)}
        return policy.apply({"params": params}, inputs, policy.initial_state(3), rngs=rngs)[0].logits

    np.testing.assert_array_equal(logits(0), logits(0))
    assert np.all(logits(0) != logits(1))


def test_bfloat16_computes_but_answers_in_float32():
    policy, params = small(IMAGE, dtype=jnp.bfloat16)
    inputs = make_inputs(IMAGE, 4)
    output, core = means(policy)({"params": params}, inputs, policy.initial_state(3))
    assert {x.dtype for x in jax.tree.leaves((output.logits, output.value, core, params))} == {
        jnp.dtype("float32")
    }
    assert output.features.dtype == jnp.bfloat16
    exact, _ = means(small(IMAGE)[0])({"params": params}, inputs, policy.initial_state(3))
    np.testing.assert_allclose(output.value, exact.value, atol=0.05)


def test_the_distribution_over_a_dict_of_actions_adds_up():
    logits = {
        "a": jax.random.normal(jax.random.key(0), (6, 3)),
        "b": jax.random.normal(jax.random.key(1), (6, 2)),
    }
    distribution = action_distribution(logits)
    actions = distribution.sample(seed=jax.random.key(2))
    np.testing.assert_allclose(
        distribution.log_prob(actions), categorical.log_prob(logits, actions), rtol=1e-5
    )
    np.testing.assert_allclose(distribution.entropy(), categorical.entropy(logits), rtol=1e-5)
    chex.assert_trees_all_equal(distribution.mode(), jax.tree.map(lambda x: x.argmax(-1), logits))


def test_what_cannot_fit_is_said():
    with pytest.raises(ValueError, match=r"\(7,\)"):
        make_policy(4, VECTOR, pixel_control=True)
    with pytest.raises(ValueError, match=r"\(5, 5\).*\(9, 9\)|\(9, 9\).*\(5, 5\)|grid"):
        make_policy(4, jax.ShapeDtypeStruct((7, 7, 1), bool), pixel_control=True)
    with pytest.raises(ValueError, match="'external', 'internal'"):
        make_policy(4, {"external": SIGNAL, "internal": VECTOR}, pixel_control=True)
    policy, params = small(VECTOR, pixel_control=False, reward_prediction=False)
    with pytest.raises(ValueError, match="pc_head"):
        policy.apply({"params": params}, jnp.zeros((2, 8)), method=UnrealPolicy.pixel_control)
    with pytest.raises(ValueError, match="rp_head"):
        policy.apply({"params": params}, jnp.zeros((2, 3, 7)), method=UnrealPolicy.reward_prediction)
    policy, params = small({"external": SIGNAL}, pixel_control=False)
    inputs = make_inputs({"internal": SIGNAL}, 4)
    with pytest.raises(ValueError, match=r"expected observation streams \['external'\], got \['internal'\]"):
        policy.apply({"params": params}, inputs, policy.initial_state(3), deterministic=True)


def test_the_gradient_of_a_black_frame_is_finite():
    policy, params = small(PHOTO, pixel_control=False, num_filters=None)
    inputs = make_inputs(PHOTO, 4, T=1, B=2)
    black = inputs._replace(observation=inputs.observation.at[0, 0].set(0))

    def loss(params):
        output, _ = policy.apply({"params": params}, black, policy.initial_state(2), deterministic=True)
        return jnp.sum(output.value)

    assert np.isfinite(optax.tree.norm(jax.jit(jax.grad(loss))(params)))


def test_no_two_noisy_layers_share_noise():
    """With weights of zero and deviations of the biases of one, each layer answers with its own noise."""
    policy, params = small(IMAGE)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.ones_like(x) if path[-1].key == "bias_sigma" else jnp.zeros_like(x), params
    )
    inputs = make_inputs(IMAGE, 4)
    _, state = policy.apply(
        {"params": params}, inputs, policy.initial_state(3), 3, rngs={"noise": jax.random.key(0)},
        method="init_heads", capture_intermediates=lambda module, _: isinstance(module, NoisyLinear),
        mutable=["intermediates"],
    )  # fmt: skip
    noises = [np.unique(x) for x in jax.tree.leaves(state["intermediates"])]
    assert sorted(len(noise) for noise in noises)[:3] == [1, 3, 4]
    assert len(noises) == 5
    assert len(np.unique(np.concatenate(noises))) == sum(map(len, noises))


@pytest.mark.parametrize("model", [Conv2DAutoencoder, ChannelWiseConv2DAutoencoder, BetaVAEConv2D])
def test_an_autoencoder_takes_the_place_of_the_convolutions(model):
    autoencoder = model(((3, (3, 1), (2, 1)),))
    observation = {"bars": SIGNAL, "other": SIGNAL, "position": VECTOR}
    policy, params = small(observation, pixel_control=False, autoencoder=autoencoder, ae_stream="bars")
    assert set(params["encoder"]) == {
        "autoencoder", "bars_dense_0", "other_conv", "other_dense_0", "position_dense_0",
    }  # fmt: skip
    inputs = make_inputs(observation, 4)
    reconstruct = jax.jit(functools.partial(policy.apply, method="reconstruct"))
    images, output = reconstruct({"params": params}, inputs.observation, rngs={"sample": jax.random.key(3)})
    np.testing.assert_array_equal(images, inputs.observation["bars"][..., None, :])
    assert output.y_hat.shape == images.shape == (5, 3, 30, 1, 5)

    # What the agent sees of the stream is the latent variables, without noise, and nothing of the decoder.
    @jax.jit
    @jax.grad
    def gradient(part):
        changed = with_pretrained(params, {"encoder": {"autoencoder": part}})
        return means(policy)({"params": changed}, inputs, policy.initial_state(3))[0].value.sum()

    leaves = jax.tree_util.tree_leaves_with_path(gradient(params["encoder"]["autoencoder"]))
    reaches = {jax.tree_util.keystr(path): float(jnp.abs(x).max()) > 0 for path, x in leaves}
    assert {
        any(word in path for word in ("decoder", "generator")) != used for path, used in reaches.items()
    } == {True}
    assert set(reaches.values()) == {True, False}


def test_pretrained_parameters_must_fit():
    _, params = small(IMAGE)
    kernel = params["actor_critic"]["value"]["kernel_mu"]
    changed = with_pretrained(params, {"actor_critic": {"value": {"kernel_mu": kernel + 1}}})
    np.testing.assert_array_equal(changed["actor_critic"]["value"]["kernel_mu"], kernel + 1)
    chex.assert_trees_all_equal(changed["encoder"], params["encoder"])
    with pytest.raises(ValueError, match=r"no parameter actor_critic/value/kernel$"):
        with_pretrained(params, {"actor_critic": {"value": {"kernel": kernel}}})
    with pytest.raises(ValueError, match=r"actor_critic/value/kernel_mu has shape \(8, 1\), the .* \(9, 1\)"):
        with_pretrained(params, {"actor_critic": {"value": {"kernel_mu": jnp.zeros((9, 1))}}})
    with pytest.raises(ValueError, match=r"no parameters are in \['encode'\]"):
        frozen_mask(params, ("encode", "core"))
