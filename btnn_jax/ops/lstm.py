"""The LSTM over time as one pure function with its own gradient.

What does not depend on the previous step is taken out of the loop: the input product runs once over all
`T * B` rows before the forward scan, the weight gradients once over all rows after the backward scan. What
stays in the loop is one recurrent product per step and element-wise arithmetic.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["LSTMState", "lstm"]

LSTMState = tuple[Array, Array]  # cell and hidden state (c, h), each [B, H]


def lstm(
    x: Array,
    kernel_x: Array,
    kernel_h: Array,
    bias: Array,
    state: LSTMState,
    *,
    resets: Array | None = None,
    lengths: Array | None = None,
    forget_bias: float = 1.0,
) -> tuple[Array, LSTMState]:
    """Runs a long short-term memory over a time-major batch of sequences.

    With `i, j, f, o = split(x_t @ kernel_x + h_{t-1} @ kernel_h + bias)`:

        c_t = sigmoid(f + forget_bias) * c_{t-1} + sigmoid(i) * tanh(j)
        h_t = sigmoid(o) * tanh(c_t)

    Gers et al. (2000), "Learning to Forget", section 3. The gates are in the order of TensorFlow's
    `BasicLSTMCell`, whose kernel is `kernel_x` on top of `kernel_h`.

    Products run in the type of `x`; state, gates and sums are float32. No gradient crosses a reset.
    Forward-mode differentiation (`jax.jvp`, `jax.jacfwd`) is not supported.

    Args:
      x: inputs `[T, B, D]`, floating; what is past a length does not matter.
      kernel_x: `[D, 4 * H]`, columns are the gates i, j, f, o.
      kernel_h: `[H, 4 * H]`, likewise.
      bias: `[4 * H]`.
      state: `(c, h)` before the first step, each `[B, H]`.
      resets: bool `[T, B]`; `resets[t]` zeroes the state before step t.
      lengths: int `[B]`; from step `lengths[b]` on, outputs are 0 and the state stays, resets included.
      forget_bias: added to the forget gate before its sigmoid.

    Returns:
      Outputs `[T, B, H]` in the type of `x`, and the state `(c, h)` after the last step.

    Raises:
      ValueError: if a shape does not fit `x` and `state`, or a type is not what it should be.

    >>> x, state = jnp.ones([5, 2, 3]), (jnp.zeros([2, 4]), jnp.zeros([2, 4]))
    >>> y, (c, h) = lstm(x, jnp.zeros([3, 4 * 4]), jnp.zeros([4, 4 * 4]), jnp.zeros(4 * 4), state)
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 4))
    """
    _check(x, kernel_x, kernel_h, bias, state, resets, lengths)
    T, H = x.shape[0], state[1].shape[-1]
    c, h = (s.astype(jnp.float32) for s in state)
    bias = bias.astype(jnp.float32) + jnp.repeat(jnp.array([0, 0, forget_bias, 0], jnp.float32), H)
    running = None
    if lengths is not None:
        running = jnp.arange(T)[:, None] < lengths.astype(jnp.int32)[None, :]
        x = jnp.where(running[..., None], x, 0)  # the weights' gradients multiply it by 0, and 0 * nan is nan
        resets = None if resets is None else resets & running
    return _lstm(x, kernel_x.astype(x.dtype), kernel_h.astype(x.dtype), bias, c, h, resets, running)


def _check(
    x: Array,
    kernel_x: Array,
    kernel_h: Array,
    bias: Array,
    state: LSTMState,
    resets: Array | None,
    lengths: Array | None,
) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must be time-major [T, B, D], got shape {x.shape}")
    T, B, D = x.shape
    H = state[1].shape[-1]
    wanted: dict[str, tuple[Array | None, tuple[int, ...]]] = {
        "c": (state[0], (B, H)),
        "h": (state[1], (B, H)),
        "kernel_x": (kernel_x, (D, 4 * H)),
        "kernel_h": (kernel_h, (H, 4 * H)),
        "bias": (bias, (4 * H,)),
        "resets": (resets, (T, B)),
        "lengths": (lengths, (B,)),
    }
    for name, (array, shape) in wanted.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} for x {x.shape} and hidden size {H}, got {array.shape}"
            )
    if not jnp.issubdtype(x.dtype, jnp.floating):  # weights take its type
        raise ValueError(f"x must be floating, got {x.dtype}")
    if resets is not None and resets.dtype != jnp.bool_:
        raise ValueError(f"resets must be bool, got {resets.dtype}")
    if lengths is not None and not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _product_t(a: Array, b: Array) -> Array:
    """`a @ b.T`, written so that nobody makes `b.T`."""
    return jnp.einsum("...i,oi->...o", a, b, preferred_element_type=jnp.float32)


def _columns(reset: Array | None) -> Array | None:
    return None if reset is None else reset[..., None]


def _forward(x, kernel_x, kernel_h, bias, c, h, resets, running, *, keep):  # type: ignore[no-untyped-def]
    """Runs the cell over time; with `keep` also returns what the backward pass reads."""
    inputs = tuple(jnp.split(_product(x, kernel_x) + bias[None, None], 4, axis=-1))
    # Without the barrier XLA's CPU backend fuses the split into the loop and slices all gates at every step.
    inputs = lax.optimization_barrier(inputs)  # type: ignore[no-untyped-call]

    def step(state, at):  # type: ignore[no-untyped-def]
        c, h = state
        gates_x, reset, run = at
        if reset is not None:
            c, h = jnp.where(reset, 0, c), jnp.where(reset, 0, h)
        gates_h = jnp.split(_product(h.astype(x.dtype), kernel_h), 4, axis=-1)
        i, j, f, o = (a + b for a, b in zip(gates_x, gates_h, strict=True))
        i, j, f, o = jax.nn.sigmoid(i), jnp.tanh(j), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
        c_new = f * c + i * j
        tanh_c = jnp.tanh(c_new)
        y = h_new = o * tanh_c
        if run is not None:
            y = jnp.where(run, h_new, 0)
            c_new, h_new = jnp.where(run, c_new, c), jnp.where(run, h_new, h)
        return (c_new, h_new), (y, ((i, j, f, o), c, tanh_c) if keep else None)

    state, (y, kept) = lax.scan(step, (c, h), (inputs, _columns(resets), _columns(running)))
    return y, state, kept


@jax.custom_vjp
def _lstm(x, kernel_x, kernel_h, bias, c, h, resets, running):  # type: ignore[no-untyped-def]
    y, state, _ = _forward(x, kernel_x, kernel_h, bias, c, h, resets, running, keep=False)  # type: ignore[no-untyped-call]
    return y.astype(x.dtype), state


def _lstm_fwd(x, kernel_x, kernel_h, bias, c, h, resets, running):  # type: ignore[no-untyped-def]
    y, state, kept = _forward(x, kernel_x, kernel_h, bias, c, h, resets, running, keep=True)  # type: ignore[no-untyped-call]
    return (y.astype(x.dtype), state), (x, kernel_x, kernel_h, h, y, kept, resets, running)


def _lstm_bwd(residuals, cotangents):  # type: ignore[no-untyped-def]
    x, kernel_x, kernel_h, h_first, y, kept, resets, running = residuals
    dy, (dc, dh) = cotangents
    dtype = x.dtype

    def step(carry, at):  # type: ignore[no-untyped-def]
        dc_after, dh_after = carry
        dy, ((i, j, f, o), c, tanh_c), reset, run = at
        dh = dh_after + dy
        dc = dc_after + dh * o * (1 - tanh_c * tanh_c)
        gates = (
            dc * j * i * (1 - i),
            dc * i * (1 - j * j),
            dc * c * f * (1 - f),
            dh * tanh_c * o * (1 - o),
        )
        dgates = jnp.concatenate(gates, axis=-1)
        if run is not None:
            dgates = jnp.where(run, dgates, 0)
        dgates = dgates.astype(dtype)
        dc, dh = dc * f, _product_t(dgates, kernel_h)
        if reset is not None:
            dc, dh = jnp.where(reset, 0, dc), jnp.where(reset, 0, dh)
        if run is not None:
            dc, dh = jnp.where(run, dc, dc_after), jnp.where(run, dh, dh_after)
        return (dc, dh), dgates

    steps = (dy.astype(jnp.float32), kept, _columns(resets), _columns(running))
    (dc, dh), dgates = lax.scan(step, (dc, dh), steps, reverse=True)
    h_before = jnp.concatenate([h_first[None], y[:-1]])  # past a length y is not h, but there dgates is 0
    if resets is not None:
        h_before = jnp.where(resets[..., None], 0, h_before)
    dkernel_x = jnp.einsum("tbi,tbo->io", x, dgates, preferred_element_type=jnp.float32)
    dkernel_h = jnp.einsum("tbi,tbo->io", h_before.astype(dtype), dgates, preferred_element_type=jnp.float32)
    dbias = dgates.astype(jnp.float32).sum((0, 1))
    dx = _product_t(dgates, kernel_x)
    return dx.astype(dtype), dkernel_x.astype(dtype), dkernel_h.astype(dtype), dbias, dc, dh, None, None


_lstm.defvjp(_lstm_fwd, _lstm_bwd)
