"""Attention to the last steps of the same episode, in blocks, so that its cost is linear in the number of steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["attend_once", "window_attention"]


def window_attention(
    query: Array,
    key: Array,
    value: Array,
    position: Array,
    content_bias: Array,
    position_bias: Array,
    reach: Array,
) -> Array:
    """Attends from every step to itself and to the `reach` steps before it, with relative positions.

        logit(t, s) = ((query_t + content_bias) . key_s + (query_t + position_bias) . position_{t - s}) / sqrt(K)

    Dai et al. (2019), "Transformer-XL", arXiv:1901.02860, section 3.3. Steps lie in blocks of `M`, each of which sees
    itself and the block before it.

    Args:
      query: `[B, T, N, K]`, for N heads.
      key: `[B, M + T, N, K]`; row `M + t` is of step t, the first M rows of the steps before the first one.
      value: likewise.
      position: `[M + 1, N, K]`, by distance in steps.
      content_bias: `[N, K]`.
      position_bias: `[N, K]`.
      reach: int `[B, T]`, 0 to M.

    Returns:
      `[B, T, N, K]` in the type of `value`; softmax and sums are float32.
    """
    B, T, N, K = query.shape
    M = position.shape[0] - 1
    C = min(T, M)  # steps of a block
    blocks = -(-T // C)
    pad = blocks * C - T
    query, reach = _pad(query, pad), _pad(reach, pad)

    def in_blocks(x: Array) -> Array:
        """`[B, blocks, M + C, N, K]`: what the steps of each block can see."""
        if blocks == 1:
            return x[:, None]
        x = _pad(x, pad).reshape(B, blocks + 1, M, N, K)
        return jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)

    key, value = in_blocks(key), in_blocks(value)
    query, reach = query.reshape(B, blocks, C, N, K), reach.reshape(B, blocks, C)

    def product(subscripts: str, *arrays: Array) -> Array:
        return jnp.einsum(subscripts, *arrays, preferred_element_type=jnp.float32)

    content = product("bgcnk,bgsnk->bgncs", query + content_bias[None, None, None], key)
    by_distance = product("bgcnk,dnk->bgncd", query + position_bias[None, None, None], position)
    logits = (content + _by_row(by_distance)) * K**-0.5
    distance = jnp.arange(C)[:, None] + M - jnp.arange(C + M)[None]
    seen = (distance[None, None] >= 0) & (distance[None, None] <= reach[..., None])
    weights = jax.nn.softmax(jnp.where(seen[:, :, None], logits, -jnp.inf), axis=-1)
    y = product("bgncs,bgsnk->bgcnk", weights.astype(value.dtype), value)
    return y.reshape(B, blocks * C, N, K)[:, :T].astype(value.dtype)


def attend_once(
    query: Array,
    rows: Array,
    key_kernel: Array,
    value_kernel: Array,
    position: Array,
    content_bias: Array,
    position_bias: Array,
    reach: Array,
) -> Array:
    """`window_attention` for a single step, without computing the keys and values of the memory.

    As `key_s = rows_s @ key_kernel`, the query is mapped to the space of the rows instead: `query . key_s = (key_kernel
    @ query) . rows_s`. Likewise the weighted mean of the rows is taken before its product with `value_kernel`. So a
    step costs two products with one row each rather than with `M + 1`.

    Args:
      query: `[B, N, K]`.
      rows: `[B, M + 1, D]`; the last one is of the step itself.
      key_kernel: `[D, N, K]`.
      value_kernel: `[D, N, K]`.
      position: `[M + 1, N, K]`, by distance in steps.
      content_bias: `[N, K]`.
      position_bias: `[N, K]`.
      reach: int `[B]`, 0 to M.

    Returns:
      `[B, N, K]` in the type of `rows`.
    """

    def product(subscripts: str, *arrays: Array) -> Array:
        return jnp.einsum(subscripts, *arrays, preferred_element_type=jnp.float32)

    dtype, distances = rows.dtype, rows.shape[1]
    as_row = product("bnk,dnk->bnd", query + content_bias[None], key_kernel).astype(dtype)
    by_distance = product("bnk,snk->bns", query + position_bias[None], position)
    logits = (product("bnd,bsd->bns", as_row, rows) + by_distance[..., ::-1]) * query.shape[-1] ** -0.5
    seen = jnp.arange(distances)[None, ::-1] <= reach[:, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf), axis=-1).astype(dtype)
    row = product("bns,bsd->bnd", weights, rows).astype(dtype)
    return product("bnd,dnk->bnk", row, value_kernel).astype(dtype)


def _pad(x: Array, rows: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, rows), *[(0, 0)] * (x.ndim - 2)]) if rows else x


def _by_row(x: Array) -> Array:
    """Turns `[..., C, M + 1]` by distance into `[..., C, C + M]` by row s, which lies `c + M - s` steps before step c.

    Row c holds the distances in falling order, shifted right by c. Padding every row by C numbers and cutting the flat
    array into rows that are one number shorter shifts each row by one more than the row before it.
    """
    *batch, C, distances = x.shape
    x = jnp.pad(x[..., ::-1], [(0, 0)] * (x.ndim - 1) + [(0, C)])
    width = distances - 1 + C
    return x.reshape(*batch, C * (width + 1))[..., : C * width].reshape(*batch, C, width)
