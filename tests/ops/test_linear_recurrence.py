import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.ops.linear_recurrence import linear_recurrence

T, B, H = 7, 3, 4


def example(dtype=jnp.float32, constant=False):
    rng = np.random.default_rng(0)

    def normal(*shape):
        x = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
        return jax.lax.complex(*x) if dtype == jnp.complex64 else x[0]

    return 0.7 * normal(*((H,) if constant else (T, B, H))), normal(T, B, H), normal(B, H)


def masks(resets, lengths):
    return {
        "resets": jnp.zeros((T, B), bool).at[jnp.array([0, 3, 4, 5]), jnp.array([0, 0, 0, 2])].set(True)
        if resets
        else None,
        "lengths": jnp.array([T, 2, 0]) if lengths else None,
    }


def definition(decay, x, state, resets=None, lengths=None):
    outputs = []
    for t in range(T):
        kept = state if resets is None else jnp.where(resets[t][:, None], 0, state)
        after = (decay[None] if decay.ndim == 1 else decay[t]) * kept + x[t]
        run = jnp.ones((B, 1), bool) if lengths is None else (t < lengths)[:, None]
        state = jnp.where(run, after, state)
        outputs.append(jnp.where(run, after, 0))
    return jnp.stack(outputs), state


def with_gradients(f, *arguments):
    def weigh(outputs):
        parts = [part for leaf in outputs for part in (leaf.real, leaf.imag)]
        return sum(
            jnp.sum(jnp.sin(1 + jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape) * p) for p in parts
        )

    return jax.jit(lambda *a: (f(*a), jax.grad(lambda *a: weigh(f(*a)), argnums=(0, 1, 2))(*a)))(*arguments)


@pytest.mark.parametrize("parallel", [False, True, None])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize(("resets", "lengths"), [(False, False), (True, False), (False, True), (True, True)])
def test_it_is_its_definition_in_value_and_gradient(dtype, constant, resets, lengths, parallel):
    arguments, given = example(dtype, constant), masks(resets, lengths)
    ours = with_gradients(functools.partial(linear_recurrence, parallel=parallel, **given), *arguments)
    expected = with_gradients(functools.partial(definition, **given), *arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, expected)


@pytest.mark.parametrize("parallel", [False, True])
def test_what_is_past_a_length_does_not_matter(parallel):
    decay, x, state = example()
    lengths = jnp.array([T, 2, 0])
    past = jnp.arange(T)[:, None, None] >= lengths[None, :, None]
    run = functools.partial(linear_recurrence, lengths=lengths, parallel=parallel)
    spoilt = jnp.where(past, jnp.nan, decay), jnp.where(past, jnp.nan, x), state
    jax.tree.map(
        np.testing.assert_array_equal, with_gradients(run, *spoilt), with_gradients(run, decay, x, state)
    )


def test_long_sequences_neither_vanish_nor_explode():
    decay = jnp.full(H, 0.999)
    y, h = jax.jit(functools.partial(linear_recurrence, parallel=True))(
        decay, jnp.zeros((2000, B, H)), jnp.ones((B, H))
    )
    np.testing.assert_allclose(h, 0.999**2000, rtol=1e-3)
    assert y.shape == (2000, B, H)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((T, H))}, "time-major"),
        ({"decay": jnp.zeros((B, H))}, r"decay must have shape \(4,\) or \(7, 3, 4\), got \(3, 4\)"),
        ({"state": jnp.zeros((T, H))}, r"state must have shape \(3, 4\)"),
        ({"state": jnp.zeros((B, H), jnp.complex64)}, "one type, got float32, float32 and complex64"),
        ({"resets": jnp.zeros((B, T), bool)}, r"resets must have shape \(7, 3\)"),
        ({"lengths": jnp.zeros(T, int)}, r"lengths must have shape \(3,\)"),
    ],
)
def test_wrong_shapes_and_types_are_named(change, message):
    arguments = dict(zip(("decay", "x", "state"), example(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        linear_recurrence(**arguments)
