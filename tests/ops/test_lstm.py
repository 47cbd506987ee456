import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from btnn_jax.ops.lstm import lstm

T, B, D, H = 7, 3, 4, 5


def example(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return jnp.asarray(rng.normal(0, scale, shape), jnp.float32)

    weights = normal(D, 4 * H, scale=0.5), normal(H, 4 * H, scale=0.5), normal(4 * H)
    return normal(T, B, D), *weights, (normal(B, H), normal(B, H))


def some_resets():
    resets = np.zeros((T, B), bool)
    resets[[0, 3, 2, 6], [0, 0, 1, 1]] = True
    return resets


def plain_lstm(x, kernel_x, kernel_h, bias, state, resets=None, lengths=None, forget_bias=1.0):
    """The definition, with JAX's own gradient."""
    resets = jnp.zeros(x.shape[:2], bool) if resets is None else resets
    lengths = jnp.full(x.shape[1], len(x)) if lengths is None else lengths

    def step(state, at):
        x, reset, runs = at
        c, h = (jnp.where(reset[:, None], 0, s) for s in state)
        gates = x @ kernel_x + h @ kernel_h + bias[None]
        i, j, f, o = jnp.split(gates, 4, axis=1)
        c = nn.sigmoid(f + forget_bias) * c + nn.sigmoid(i) * jnp.tanh(j)
        h = nn.sigmoid(o) * jnp.tanh(c)
        after = jax.tree.map(lambda new, old: jnp.where(runs[:, None], new, old), (c, h), state)
        return after, jnp.where(runs[:, None], h, 0)

    running = jnp.arange(len(x))[:, None] < lengths[None]
    state, y = jax.lax.scan(step, state, (x, resets, running))
    return y, state


def weigh(outputs):
    """A scalar that depends on every number of `outputs` differently."""
    return sum(
        jnp.sum(np.sin(1 + np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape) * leaf)
        for leaf in jax.tree.leaves(outputs)
    )


def assert_close(actual, expected, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-5} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


@pytest.mark.parametrize(
    ("resets", "lengths"),
    [(None, None), (some_resets(), None), (None, np.array([7, 0, 4])), (some_resets(), np.array([7, 0, 4]))],
)
def test_values_and_gradients_are_those_of_the_definition(resets, lengths):
    def value_and_grad(function):
        run = functools.partial(function, resets=resets, lengths=lengths, forget_bias=0.5)
        grad = jax.grad(lambda *a: weigh(run(*a)), argnums=(0, 1, 2, 3, 4))
        return lambda *a: (run(*a), grad(*a))

    both = jax.jit(lambda *a: [value_and_grad(f)(*a) for f in (lstm, plain_lstm)])
    assert_close(*both(*example()))


@functools.cache
def jitted():
    return jax.jit(lstm)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.booleans(), min_size=T * B, max_size=T * B),
    st.lists(st.integers(0, T), min_size=B, max_size=B),
)
def test_state_counts_the_steps_since_the_last_reset(flags, lengths):
    # With saturated gates c grows by 1 per step, so that each state says how old it is.
    resets = np.array(flags).reshape(T, B)
    weights = jnp.zeros((D, 4 * H)), jnp.zeros((H, 4 * H)), jnp.full(4 * H, 50.0)
    state = (jnp.full((B, H), 10.0), jnp.zeros((B, H)))
    y, (c, _) = jitted()(jnp.ones((T, B, D)), *weights, state, resets=resets, lengths=jnp.array(lengths))
    age = np.full(B, 10.0)
    for t in range(T):
        runs = t < np.array(lengths)
        age = np.where(runs, np.where(resets[t], 0, age) + 1, age)
        np.testing.assert_allclose(y[t, :, 0], np.where(runs, np.tanh(age), 0), rtol=1e-6)
    np.testing.assert_array_equal(c[:, 0], age)


def test_packed_episodes_are_the_episodes_alone():
    x, *weights, state = example()
    resets = some_resets()

    def packed(x, *weights):
        return lstm(x, *weights, state, resets=resets)

    def alone(x, *weights):
        outputs, after = [], []
        for b in range(B):
            starts = [0, *(t for t in range(1, T) if resets[t, b])]
            pieces = []
            for start, end in zip(starts, [*starts[1:], T], strict=True):
                fresh = start > 0 or bool(resets[0, b])
                s = tuple(jnp.zeros((1, H)) if fresh else part[b : b + 1] for part in state)
                y, s = lstm(x[start:end, b : b + 1], *weights, s)
                pieces.append(y)
            outputs.append(jnp.concatenate(pieces))
            after.append(s)
        c, h = zip(*after, strict=True)
        return jnp.concatenate(outputs, axis=1), (jnp.concatenate(c), jnp.concatenate(h))

    def results(f):
        gradients = jax.grad(lambda *a: weigh(f(*a)), argnums=(0, 1, 2, 3))
        return jax.jit(lambda *a: (f(*a), gradients(*a)))(x, *weights)

    assert_close(results(packed), results(alone))


def test_no_gradient_crosses_a_reset():
    x, *weights, state = example()
    resets = jnp.zeros((T, B), bool).at[4, 1].set(True)

    def after_the_reset(x, state):
        y, final = lstm(x, *weights, state, resets=resets)
        return weigh((y[4:], final))

    dx, (dc, dh) = jax.jit(jax.grad(after_the_reset, argnums=(0, 1)))(x, state)
    assert not dx[:4, 1].any()
    assert not dc[1].any()
    assert not dh[1].any()
    assert dx[4:].all()
    assert dx[:4, ::2].all()
    assert dc[::2].all()


@pytest.mark.parametrize("size", [1, 3])
def test_chunks_with_carried_state_are_one_pass(size):
    x, *weights, state = example()
    resets = some_resets()
    whole = jitted()(x, *weights, state, resets=resets)
    pieces = []
    for start in range(0, T, size):
        chunk = slice(start, start + size)
        y, state = jitted()(x[chunk], *weights, state, resets=resets[chunk])
        pieces.append(y)
    assert_close((jnp.concatenate(pieces), state), whole)


def test_without_resets_it_is_flaxs_lstm():
    x, *weights, state = example()
    kernel_x, kernel_h, bias = (jnp.split(w, 4, axis=-1) for w in weights)
    cell = {}
    for k, gate in enumerate("igfo"):  # flax's g is our j
        cell[f"i{gate}"] = {"kernel": kernel_x[k]}
        cell[f"h{gate}"] = {"kernel": kernel_h[k], "bias": bias[k]}
    rnn = nn.RNN(nn.OptimizedLSTMCell(H), time_major=True, return_carry=True)
    carry, y = rnn.apply({"params": {"cell": cell}}, x, initial_carry=state)
    assert_close(lstm(x, *weights, state, forget_bias=0.0), (y, carry))


def test_vmap_over_parameters_inside_a_scan():
    x, *_, state = example()
    weights = tuple(jnp.stack([example(seed)[k] for seed in range(3)]) for k in (1, 2, 3))

    def loss(*weights):
        return weigh(lstm(x, *weights, state, resets=some_resets(), lengths=jnp.array([7, 2, 5])))

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

    def descend(params, _):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.vmap(grad)(*params)), None

    population, _ = jax.lax.scan(descend, weights, length=2)
    for k in range(3):
        member = jax.tree.map(lambda w, k=k: w[k], weights)
        for _ in range(2):
            member = jax.tree.map(lambda p, g: p - 0.1 * g, member, grad(*member))
        assert_close(jax.tree.map(lambda p, k=k: p[k], population), member)


def test_bfloat16_computes_products_only():
    x, *weights, state = example()
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (x, *weights))

    def results(*inputs):
        loss = lambda *a: weigh(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), lstm(*a, state)))  # noqa: E731
        grad = jax.grad(loss, argnums=(0, 1, 2, 3))
        return jax.jit(lambda *a: (lstm(*a, state), grad(*a)))(*inputs)

    (y, (c, h)), gradients = results(*small)
    assert (y.dtype, c.dtype, h.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    assert all(g.dtype == jnp.bfloat16 for g in gradients)
    as_float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), ((y, (c, h)), gradients))
    assert_close(as_float32, results(x, *weights), rtol=0.05, atol=0.1)


def test_what_is_past_a_length_does_not_matter():
    x, *weights, state = example()
    lengths = jnp.array([7, 0, 4])
    past = jnp.arange(T)[:, None, None] >= lengths[None, :, None]

    @jax.jit
    def results(x):
        run = functools.partial(lstm, lengths=lengths)
        return run(x, *weights, state), jax.grad(lambda *a: weigh(run(*a, state)), (0, 1, 2, 3))(x, *weights)

    assert_close(results(jnp.where(past, jnp.nan, x)), results(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((T, D))}, "time-major"),
        ({"x": jnp.zeros((T, B, D), jnp.int32)}, "x must be floating, got int32"),
        ({"lengths": jnp.full(B, 2.7)}, "lengths must be integers, got float32"),
        ({"resets": jnp.zeros((T, B)), "lengths": jnp.zeros(B, int)}, "resets must be bool, got float32"),
        ({"kernel_h": jnp.zeros((D, 4 * H))}, r"kernel_h must have shape \(5, 20\).*got \(4, 20\)"),
        ({"resets": jnp.zeros((B, T), bool)}, "resets must"),
        ({"lengths": jnp.zeros(T, int)}, "lengths must"),
        ({"state": (jnp.zeros((1, H)), jnp.zeros((B, H)))}, "c must"),
    ],
)
def test_wrong_shapes_and_types_are_named(change, message):
    arguments = dict(zip(("x", "kernel_x", "kernel_h", "bias", "state"), example(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        lstm(**arguments)
