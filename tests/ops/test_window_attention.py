import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.ops.window_attention import attend_once, window_attention

B, N, K = 2, 3, 4


def example(T, M, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    reach = jnp.asarray(rng.integers(0, M + 1, (B, T)), jnp.int32)
    sequences = normal(B, T, N, K), normal(B, M + T, N, K), normal(B, M + T, N, K)
    return *sequences, normal(M + 1, N, K), normal(N, K), normal(N, K), reach


def definition(query, key, value, position, content_bias, position_bias, reach):
    """One step, head and row after another."""
    T, M = query.shape[1], len(position) - 1
    y = np.zeros(query.shape)
    for b, t, n in np.ndindex(B, T, N):
        distances = range(int(reach[b, t]) + 1)
        logits = [
            (
                (query[b, t, n] + content_bias[n]) @ key[b, M + t - d, n]
                + (query[b, t, n] + position_bias[n]) @ position[d, n]
            )
            / np.sqrt(K)
            for d in distances
        ]
        weights = np.exp(logits) / np.exp(logits).sum()
        y[b, t, n] = sum(w * value[b, M + t - d, n] for w, d in zip(weights, distances, strict=True))
    return y


@pytest.mark.parametrize(("T", "M"), [(1, 3), (2, 3), (3, 3), (4, 3), (6, 3), (8, 3), (5, 1)])
def test_it_is_its_definition(T, M):
    arguments = example(T, M)
    expected = definition(*map(np.asarray, arguments))
    np.testing.assert_allclose(jax.jit(window_attention)(*arguments), expected, rtol=1e-4, atol=1e-5)


def test_rows_that_are_not_seen_have_no_gradient():
    query, key, value, *rest, reach = example(6, 3)
    reach = jnp.zeros_like(reach)
    gradient = jax.grad(
        lambda key, value: window_attention(query, key, value, *rest, reach)[:, 4].sum(), (0, 1)
    )
    _, dvalue = gradient(key, value)
    assert dvalue.any((0, 2, 3)).tolist() == [row == 3 + 4 for row in range(9)]


def test_a_single_step_needs_no_keys_and_values():
    M, D = 5, 6
    rng = np.random.default_rng(1)
    rows, key_kernel, value_kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, M + 1, D), (D, N, K), (D, N, K))
    )
    query, _, _, *rest, reach = example(1, M)
    key, value = (jnp.einsum("bsd,dnk->bsnk", rows, kernel) for kernel in (key_kernel, value_kernel))

    def once(query, rows, key_kernel, value_kernel):
        return attend_once(query[:, 0], rows, key_kernel, value_kernel, *rest, reach[:, 0])

    expected = window_attention(query, key, value, *rest, reach)[:, 0]
    np.testing.assert_allclose(
        jax.jit(once)(query, rows, key_kernel, value_kernel), expected, rtol=1e-4, atol=1e-5
    )
