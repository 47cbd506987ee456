import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.ops import categorical
from btnn_jax.ops.categorical import entropy, kl_divergence, log_prob


def naive_log_prob(logits, actions):
    return jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(actions, logits.shape[-1]), axis=-1)


def naive_entropy(logits):
    p = jax.nn.softmax(logits)
    return -jnp.sum(p * jnp.log(p), axis=-1)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return jnp.asarray(2 * rng.standard_normal((5, 3, 6), np.float32)), jnp.asarray(
        rng.integers(0, 6, (5, 3), np.int32)
    )


def test_entropy_and_divergence_are_btgyms(golden):
    case = golden("policy_entropy_kl")
    logits, old_logits = jnp.asarray(case.inputs["logits"]), jnp.asarray(case.inputs["old_logits"])
    np.testing.assert_allclose(entropy(logits), case.outputs["entropy"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        kl_divergence(old_logits, logits), case.outputs["kl_old_new"], rtol=1e-5, atol=1e-6
    )


def test_values_and_hand_written_derivatives_are_those_of_the_plain_formulas(batch):
    logits, actions = batch
    weights = np.random.default_rng(1).standard_normal((2, *actions.shape), np.float32)

    def ours(logits):
        return jnp.sum(weights[0] * log_prob(logits, actions) + weights[1] * entropy(logits))

    def naive(logits):
        return jnp.sum(weights[0] * naive_log_prob(logits, actions) + weights[1] * naive_entropy(logits))

    np.testing.assert_allclose(log_prob(logits, actions), naive_log_prob(logits, actions), rtol=1e-5)
    np.testing.assert_allclose(entropy(logits), naive_entropy(logits), rtol=1e-5)
    np.testing.assert_allclose(*(jax.jit(jax.grad(f))(logits) for f in (ours, naive)), rtol=1e-4, atol=1e-5)
    direction = jnp.cos(logits)
    second = [
        jax.jit(lambda x, d, f=f: jax.jvp(jax.grad(f), (x,), (d,))[1])(logits, direction)
        for f in (ours, naive)
    ]
    np.testing.assert_allclose(*second, rtol=1e-4, atol=1e-5)


def test_int_and_one_hot_actions_agree(batch):
    logits, actions = batch
    for dtype in (jnp.float32, jnp.int32, bool):
        np.testing.assert_array_equal(
            log_prob(logits, jax.nn.one_hot(actions, 6, dtype=dtype)), log_prob(logits, actions)
        )


def test_heads_add_up(batch):
    logits, actions = batch
    tree = {"a": logits, "b": {"c": logits[..., :4]}}
    taken = {"a": actions, "b": {"c": actions % 4}}
    other = jax.tree.map(jnp.sin, tree)
    parts = [(tree["a"], taken["a"], other["a"]), (tree["b"]["c"], taken["b"]["c"], other["b"]["c"])]
    np.testing.assert_allclose(log_prob(tree, taken), sum(log_prob(x, a) for x, a, _ in parts), rtol=1e-6)
    np.testing.assert_allclose(entropy(tree), sum(entropy(x) for x, _, _ in parts), rtol=1e-6)
    np.testing.assert_allclose(
        kl_divergence(tree, other), sum(kl_divergence(x, y) for x, _, y in parts), rtol=1e-6
    )


def test_what_is_no_action_weighs_nothing(batch):
    logits, actions = batch
    for nothing in (jnp.full_like(actions, -1), jnp.full_like(actions, 6), jnp.zeros_like(logits)):
        value, gradient = jax.value_and_grad(lambda x, a=nothing: log_prob(x, a).sum())(logits)
        assert value == 0
        assert not gradient.any()


def test_shapes_that_would_broadcast_are_errors():
    x = jnp.zeros((4, 3))
    for other in (x[:, :1], x[0], x[:1]):
        with pytest.raises(ValueError, match=rf"\(4, 3\).*{re.escape(str(other.shape))}"):
            kl_divergence(x, other)
    with pytest.raises(ValueError, match=r"N = \(4,\), got \(1, 3\)"):
        entropy({"a": x, "b": x[:1]})
    with pytest.raises(ValueError, match=r"N = \(4,\), got \(1, 3\)"):
        kl_divergence({"a": x, "b": x[:1]}, {"a": x, "b": x[:1]})


def test_a_divergence_skips_what_is_as_good_as_impossible():
    np.testing.assert_array_equal(kl_divergence(jnp.array([0.0, -200]), jnp.array([0.0, -jnp.inf])), 0)
    np.testing.assert_array_equal(kl_divergence(jnp.zeros(2), jnp.array([0.0, -jnp.inf])), jnp.inf)


@pytest.mark.parametrize("extreme", [1e4, -1e4, -jnp.inf])
def test_extreme_logits_have_finite_values_and_gradients(extreme):
    logits = jnp.array([[0.0, extreme, 1.0], [extreme, 0.0, 2.0]])
    actions = jnp.array([2, 2])
    for f in (lambda x: log_prob(x, actions), entropy, lambda x: kl_divergence(x, x + 0.0)):
        value, gradient = jax.jit(jax.value_and_grad(lambda x, f=f: jnp.sum(f(x))))(logits)
        assert jnp.isfinite(value)
        assert jnp.all(jnp.isfinite(gradient))


def test_an_impossible_action_changes_nothing():
    logits = np.array([[0.5, -1.0, 2.0]], np.float32)
    padded = np.array([[0.5, -1.0, 2.0, -np.inf]], np.float32)
    np.testing.assert_allclose(entropy(padded), entropy(logits), rtol=1e-6)
    np.testing.assert_allclose(kl_divergence(padded, padded), 0.0, atol=1e-7)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(entropy(x))))
    np.testing.assert_allclose(gradient(padded), np.pad(gradient(logits), ((0, 0), (0, 1))), rtol=1e-5)


def test_bfloat16_gives_float32(batch):
    logits, actions = batch
    low = logits.astype(jnp.bfloat16)
    for out in (log_prob(low, actions), entropy(low), kl_divergence(low, low)):
        assert out.dtype == jnp.float32


def test_mismatches_are_errors(batch):
    logits, actions = batch
    with pytest.raises(ValueError, match=r"got float32 \(5, 3\)"):
        log_prob(logits, actions.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"got int32 \(3,\)"):
        log_prob(logits, actions[0])
    with pytest.raises(ValueError, match="structure"):
        log_prob({"a": logits}, {"b": actions})


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int16, jnp.uint16, jnp.int32, jnp.uint32])
def test_small_integer_types_name_the_action_they_hold(dtype):
    logits = jnp.zeros((2, 300))
    actions = jnp.array([1, 127], dtype)
    np.testing.assert_allclose(categorical.log_prob(logits, actions), [-np.log(300)] * 2, rtol=1e-6)
    hot = categorical.one_hot(actions, (2, 300))
    np.testing.assert_array_equal(hot.argmax(-1), [1, 127])
    np.testing.assert_array_equal(hot.sum(-1), [1, 1])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.float32, bool])
def test_actions_beside_logits_of_their_shape_are_not_one_row(dtype):
    logits, actions = jnp.zeros(3), jnp.array([0, 1, 0]).astype(dtype)
    for tree in (lambda x: x, lambda x: {"a": x}):
        with pytest.raises(
            ValueError, match=r"logits \[N, A\] for actions \[N\], got logits \(3,\) and actions"
        ):
            log_prob(tree(logits), tree(actions))
    np.testing.assert_allclose(log_prob(logits[None], actions[None]), [-np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(log_prob(logits, jnp.int32(1)), -np.log(3), rtol=1e-6)
    np.testing.assert_allclose(entropy(logits), np.log(3), rtol=1e-6)


def test_all_values_of_an_8_bit_type_are_actions():
    logits = jnp.zeros((2, 300))
    np.testing.assert_allclose(log_prob(logits, jnp.array([1, 255], jnp.uint8)), -np.log(300), rtol=1e-6)
    for outside in (jnp.array([-1, -128], jnp.int8), jnp.array([-1, 300], jnp.int16)):
        np.testing.assert_array_equal(log_prob(logits, outside), 0)


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_logits_of_no_action_are_refused(shape):
    logits = jnp.zeros(shape)
    for call in (
        entropy,
        lambda x: kl_divergence(x, x),
        lambda x: log_prob(x, jnp.zeros(shape[:-1], jnp.int32)),
    ):
        with pytest.raises(
            ValueError, match=r"\[N, A\] of at least one action, got " + re.escape(str(shape))
        ):
            call(logits)
