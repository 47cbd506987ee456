import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from btnn_jax.ops.gru import gru

T, B, D, H = 7, 3, 4, 5


def example(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return jnp.asarray(rng.normal(0, scale, shape), jnp.float32)

    kernels = normal(D, 3 * H, scale=0.5), normal(H, 3 * H, scale=0.5)
    return normal(T, B, D), *kernels, normal(3 * H), normal(H), normal(B, H)


def plain_gru(x, kernel_x, kernel_h, bias, bias_h, state, resets=None, lengths=None):
    """The definition, with JAX's own gradient."""
    resets = jnp.zeros((T, B), bool) if resets is None else resets
    lengths = jnp.full(B, T) if lengths is None else lengths
    outputs = []
    for t in range(T):
        h = jnp.where(resets[t][:, None], 0, state)
        r, z, n = jnp.split(x[t] @ kernel_x + bias[None], 3, axis=1)
        hr, hz, hn = jnp.split(h @ kernel_h, 3, axis=1)
        z = nn.sigmoid(z + hz)
        h = (1 - z) * jnp.tanh(n + nn.sigmoid(r + hr) * (hn + bias_h[None])) + z * h
        run = (t < lengths)[:, None]
        state = jnp.where(run, h, state)
        outputs.append(jnp.where(run, h, 0))
    return jnp.stack(outputs), state


def with_gradients(f, *arguments):
    def weigh(outputs):
        return sum(
            jnp.sum(
                jnp.sin(1 + jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
                * leaf.astype(jnp.float32)
            )
            for leaf in outputs
        )

    gradients = jax.grad(lambda *a: weigh(f(*a)), argnums=tuple(range(len(arguments))))
    return jax.jit(lambda *a: (f(*a), gradients(*a)))(*arguments)


def assert_close(actual, expected, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


@pytest.mark.parametrize(("resets", "lengths"), [(False, False), (True, False), (False, True), (True, True)])
def test_it_is_its_definition_in_value_and_gradient(resets, lengths):
    given = {
        "resets": jnp.zeros((T, B), bool).at[jnp.array([0, 3, 4]), jnp.array([0, 0, 1])].set(True)
        if resets
        else None,
        "lengths": jnp.array([T, 4, 0]) if lengths else None,
    }
    arguments = example()
    expected = with_gradients(functools.partial(plain_gru, **given), *arguments)
    assert_close(with_gradients(functools.partial(gru, **given), *arguments), expected)


def test_without_resets_it_is_flaxs_gru():
    x, kernel_x, kernel_h, bias, bias_h, state = example()
    cell = {}
    for k, gate in enumerate("rzn"):
        cell[f"i{gate}"] = {
            "kernel": jnp.split(kernel_x, 3, axis=1)[k],
            "bias": jnp.split(bias, 3)[k],
        }
        cell[f"h{gate}"] = {"kernel": jnp.split(kernel_h, 3, axis=1)[k]}
    cell["hn"]["bias"] = bias_h
    rnn = nn.RNN(nn.GRUCell(H), time_major=True, return_carry=True)
    carry, y = rnn.apply({"params": {"cell": cell}}, x, initial_carry=state)
    assert_close(gru(x, kernel_x, kernel_h, bias, bias_h, state), (y, carry))


def test_bfloat16_computes_products_only():
    *weights, state = example()
    small = [leaf.astype(jnp.bfloat16) for leaf in weights]
    (y, h), gradients = with_gradients(gru, *small, state)
    assert (y.dtype, h.dtype) == (jnp.bfloat16, jnp.float32)
    assert all(g.dtype == jnp.bfloat16 for g in gradients[:5])
    as_float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), ((y, h), gradients))
    assert_close(as_float32, with_gradients(gru, *weights, state), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((T, D))}, "time-major"),
        ({"x": jnp.zeros((T, B, D), jnp.int32)}, "x must be floating, got int32"),
        ({"kernel_h": jnp.zeros((D, 3 * H))}, r"kernel_h must have shape \(5, 15\).*got \(4, 15\)"),
        ({"bias_h": jnp.zeros(3 * H)}, r"bias_h must have shape \(5,\)"),
        ({"state": jnp.zeros((1, H))}, r"state must have shape \(3, 5\)"),
        ({"resets": jnp.zeros((T, B))}, "resets must be bool, got float32"),
        ({"lengths": jnp.full(B, 2.7)}, "lengths must be integers, got float32"),
    ],
)
def test_wrong_shapes_and_types_are_named(change, message):
    names = ("x", "kernel_x", "kernel_h", "bias", "bias_h", "state")
    with pytest.raises(ValueError, match=message):
        gru(**dict(zip(names, example(), strict=True)) | change)
