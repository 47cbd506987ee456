"""The GRU over time as one pure function with its own gradient.

As in the LSTM, the input product runs once over all steps before the loop and the weights' gradients once after it;
one recurrent product per step stays in the loop.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from btnn_jax.ops.sequence import check_sequence, within

__all__ = ["gru"]


def gru(
    x: Array,
    kernel_x: Array,
    kernel_h: Array,
    bias: Array,
    bias_h: Array,
    state: Array,
    *,
    resets: Array | None = None,
    lengths: Array | None = None,
) -> tuple[Array, Array]:
    """Runs a gated recurrent unit over a time-major batch of sequences.

    With `r', z', n' = split(x_t @ kernel_x + bias)` and `hr, hz, hn = split(h_{t-1} @ kernel_h)`:

        r, z = sigmoid(r' + hr), sigmoid(z' + hz)
        n = tanh(n' + r * (hn + bias_h))
        h_t = (1 - z) * n + z * h_{t-1}

    Cho et al. (2014), "Learning Phrase Representations using RNN Encoder-Decoder", arXiv:1406.1078v1, section 2.3,
    where the reset gate multiplies the recurrent product, as it does in cuDNN and flax: one product per step is enough.

    Products run in the type of `x`; state, gates and sums are float32. No gradient crosses a reset.
    Forward-mode differentiation (`jax.jvp`, `jax.jacfwd`) is not supported.

    Args:
      x: inputs `[T, B, D]`, floating; what is past a length does not matter.
      kernel_x: `[D, 3 * H]`, columns are r, z, n.
      kernel_h: `[H, 3 * H]`, likewise.
      bias: `[3 * H]`.
      bias_h: `[H]`.
      state: h before the first step, `[B, H]`.
      resets: bool `[T, B]`; `resets[t]` zeroes h before step t.
      lengths: int `[B]`; from step `lengths[b]` on, outputs are 0 and h stays, resets included.

    Returns:
      Outputs `[T, B, H]` in the type of `x`, and h after the last step, float32 `[B, H]`.

    Raises:
      ValueError: if a shape does not fit `x` and `state`, or a type is not what it should be.

    >>> x, state = jnp.ones([5, 2, 3]), jnp.zeros([2, 4])
    >>> y, h = gru(x, jnp.zeros([3, 12]), jnp.zeros([4, 12]), jnp.zeros(12), jnp.ones(4), state)
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 4))
    """
    H = state.shape[-1]
    check_sequence(
        x,
        resets,
        lengths,
        state=(state, (x.shape[1], H)),
        kernel_x=(kernel_x, (x.shape[-1], 3 * H)),
        kernel_h=(kernel_h, (H, 3 * H)),
        bias=(bias, (3 * H,)),
        bias_h=(bias_h, (H,)),
    )
    running = None
    if lengths is not None:
        running = within(lengths, len(x))
        x = jnp.where(running[..., None], x, 0)  # the weights' gradients multiply it by 0, and 0 * nan is nan
        resets = None if resets is None else resets & running
    bias, bias_h, state = (a.astype(jnp.float32) for a in (bias, bias_h, state))
    return _gru(x, kernel_x.astype(x.dtype), kernel_h.astype(x.dtype), bias, bias_h, state, resets, running)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _product_t(a: Array, b: Array) -> Array:
    """`a @ b.T` without a transposed copy of b."""
    return jnp.einsum("...i,oi->...o", a, b, preferred_element_type=jnp.float32)


def _columns(mask: Array | None) -> Array | None:
    return None if mask is None else mask[..., None]


def _forward(x, kernel_x, kernel_h, bias, bias_h, h, resets, running, *, keep):  # type: ignore[no-untyped-def]
    """Runs the cell over time; with `keep` also returns the residuals of the backward pass."""
    # One product per gate: splitting a single product would copy it.
    inputs = tuple(_product(x, kernel) for kernel in jnp.split(kernel_x, 3, axis=-1))
    biases = jnp.split(bias[None], 3, axis=-1)

    def step(h, at):  # type: ignore[no-untyped-def]
        inputs, reset, run = at
        r, z, n = (a + b for a, b in zip(inputs, biases, strict=True))
        if reset is not None:
            h = jnp.where(reset, 0, h)
        hr, hz, hn = jnp.split(_product(h.astype(x.dtype), kernel_h), 3, axis=-1)
        r, z, hn = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz), hn + bias_h[None]
        n = jnp.tanh(n + r * hn)
        y = after = (1 - z) * n + z * h
        if run is not None:
            y, after = jnp.where(run, after, 0), jnp.where(run, after, h)
        return after, (y, (r, z, n, hn, h) if keep else None)

    h, (y, kept) = lax.scan(step, h, (inputs, _columns(resets), _columns(running)))
    return y, h, kept


@jax.custom_vjp
def _gru(x, kernel_x, kernel_h, bias, bias_h, h, resets, running):  # type: ignore[no-untyped-def]
    y, h, _ = _forward(x, kernel_x, kernel_h, bias, bias_h, h, resets, running, keep=False)  # type: ignore[no-untyped-call]
    return y.astype(x.dtype), h


def _gru_fwd(x, kernel_x, kernel_h, bias, bias_h, h, resets, running):  # type: ignore[no-untyped-def]
    y, after, kept = _forward(x, kernel_x, kernel_h, bias, bias_h, h, resets, running, keep=True)  # type: ignore[no-untyped-call]
    return (y.astype(x.dtype), after), (x, kernel_x, kernel_h, kept, resets, running)


def _gru_bwd(residuals, cotangents):  # type: ignore[no-untyped-def]
    x, kernel_x, kernel_h, kept, resets, running = residuals
    dy, dh = cotangents
    dtype = x.dtype

    def step(dh_after, at):  # type: ignore[no-untyped-def]
        dy, (r, z, n, hn, h), reset, run = at
        dh = dh_after + dy
        dn = dh * (1 - z) * (1 - n * n)
        dr, dz, dhn = dn * hn * r * (1 - r), dh * (h - n) * z * (1 - z), dn * r
        dgates = tuple(d if run is None else jnp.where(run, d, 0) for d in (dr, dz, dn, dhn))
        dr, dz, dn, dhn = dgates = tuple(d.astype(dtype) for d in dgates)
        dh = dh * z + _product_t(jnp.concatenate([dr, dz, dhn], axis=-1), kernel_h)
        if reset is not None:
            dh = jnp.where(reset, 0, dh)
        if run is not None:
            dh = jnp.where(run, dh, dh_after)
        return dh, dgates

    steps = (dy.astype(jnp.float32), kept, _columns(resets), _columns(running))
    dh, (dr, dz, dn, dhn) = lax.scan(step, dh, steps, reverse=True)

    def weights(x: Array, *dgates: Array) -> Array:
        parts = [jnp.einsum("tbi,tbo->io", x, d, preferred_element_type=jnp.float32) for d in dgates]
        return jnp.concatenate(parts, axis=1).astype(dtype)

    dbias = jnp.concatenate([d.astype(jnp.float32).sum((0, 1)) for d in (dr, dz, dn)])
    dbias_h = dhn.astype(jnp.float32).sum((0, 1))
    kernels = jnp.split(kernel_x, 3, axis=-1)
    dx_r, dx_z, dx_n = (_product_t(d, kernel) for d, kernel in zip((dr, dz, dn), kernels, strict=True))
    dx = (dx_r + dx_z + dx_n).astype(dtype)
    dkernel_h = weights(kept[-1].astype(dtype), dr, dz, dhn)
    return dx, weights(x, dr, dz, dn), dkernel_h, dbias, dbias_h, dh, None, None


_gru.defvjp(_gru_fwd, _gru_bwd)
