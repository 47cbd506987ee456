"""Functions of a policy's parameters; `test_policies` has those that need a policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.parameters import return_scale, update_return_scale
from btnn_jax.policies import AgentInput, init_params, make_policy


@pytest.fixture(params=[True, False], ids=["noisy", "plain"])
def predict(request):
    env = envs.make("probe-choice")
    options = {
        "pixel_control": False,
        "hidden": (8,),
        "lstm": (8,),
        "normalize_returns": True,
        "noisy": request.param,
    }
    policy = make_policy(env.action_depths, env.observation, **options)
    params = init_params(policy, jax.random.key(0), env.observation)
    inputs = AgentInput(
        observation=jnp.ones((3, 2, *env.observation.shape)),
        last_action=jnp.zeros((3, 2), jnp.int32),
        last_reward=jnp.ones((3, 2)),
        reset=jnp.ones((3, 2), bool),
    )

    def value(params):
        variables = {"params": params}
        rngs = {"noise": jax.random.key(1)}
        return policy.apply(variables, inputs, policy.initial_state(2), rngs=rngs)[0].value

    return params, value


def test_a_new_scale_changes_no_value(predict):
    params, value = predict
    first = update_return_scale(params, jnp.float32(4.0), 0.1)
    second = update_return_scale(first, jnp.float32(400.0), 0.1)
    assert return_scale(params) == 1
    assert return_scale(first) == 2
    np.testing.assert_allclose(return_scale(second), np.sqrt(0.9 * 4 + 0.1 * 400), rtol=1e-6)
    np.testing.assert_allclose(
        value(first), 2 * value(params), rtol=1e-6
    )  # the first gives the values their units
    np.testing.assert_allclose(value(second), value(first), rtol=1e-5)


@pytest.mark.parametrize("square", [0.0, np.nan, np.inf])
def test_what_is_no_return_leaves_the_scale(predict, square):
    params, _ = predict
    for before in (params, update_return_scale(params, jnp.float32(4.0), 0.1)):
        after = update_return_scale(before, jnp.float32(square), 0.1)
        jax.tree.map(np.testing.assert_array_equal, after, before)


def test_no_gradient_reaches_the_scale(predict):
    params, value = predict
    params = update_return_scale(params, jnp.float32(4.0), 0.1)
    assert jax.grad(lambda p: value(p).sum())(params)["return_scale"] == 0
