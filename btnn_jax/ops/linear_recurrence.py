"""The linear recurrence `h_t = decay_t * h_{t-1} + x_t` over time, with resets, lengths and its own gradient.

The gradient is the same recurrence backwards in time, so nothing but `h` is kept for it. CPUs run it step by step,
which reads memory once and measures fastest there at all lengths; other devices run it as an associative scan,
whose depth is logarithmic in the number of steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from btnn_jax.ops.sequence import within

__all__ = ["linear_recurrence"]


def linear_recurrence(
    decay: Array,
    x: Array,
    state: Array,
    *,
    resets: Array | None = None,
    lengths: Array | None = None,
    parallel: bool | None = None,
) -> tuple[Array, Array]:
    """Runs a linear recurrence, one for each number of the state, over a time-major batch of sequences.

        h_t = decay_t * h_{t-1} + x_t

    Blelloch (1990), "Prefix Sums and Their Applications", section 1.4, computes it in logarithmic depth; a reset is a
    decay of 0. No gradient crosses a reset. Forward-mode differentiation is not supported.

    Args:
      decay: `[T, B, H]`, or `[H]` if it is the same at all steps; of the type of `x`.
      x: `[T, B, H]`, floating or complex; what is past a length does not matter.
      state: h before the first step, `[B, H]`, of the type of `x`.
      resets: bool `[T, B]`; `resets[t]` zeroes h before step t.
      lengths: int `[B]`; from step `lengths[b]` on, outputs are 0 and h stays, resets included.
      parallel: whether to run an associative scan rather than one step after another; None: not on CPUs.

    Returns:
      h after each step `[T, B, H]`, and after the last one `[B, H]`.

    Raises:
      ValueError: shapes or types do not fit each other.

    >>> y, h = linear_recurrence(jnp.array([0.5]), jnp.ones([3, 1, 1]), jnp.zeros([1, 1]))
    >>> y[:, 0, 0].tolist(), h.tolist()
    ([1.0, 1.5, 1.75], [[1.75]])
    """
    if x.ndim != 3:
        raise ValueError(f"x must be time-major [T, B, H], got shape {x.shape}")
    T, B, H = x.shape
    if decay.shape not in ((H,), x.shape):
        raise ValueError(f"decay must have shape {(H,)} or {x.shape}, got {decay.shape}")
    if state.shape != (B, H):
        raise ValueError(f"state must have shape {(B, H)} for x {x.shape}, got {state.shape}")
    if decay.dtype != x.dtype or state.dtype != x.dtype:
        raise ValueError(
            f"decay, x and state must be of one type, got {decay.dtype}, {x.dtype} and {state.dtype}"
        )
    for name, array, shape in (("resets", resets, (T, B)), ("lengths", lengths, (B,))):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} for x {x.shape}, got {array.shape}")
    running = None if lengths is None else within(lengths, T)
    if running is not None:
        x = jnp.where(running[..., None], x, 0)
        decay = decay if decay.ndim == 1 else jnp.where(running[..., None], decay, 0)
        resets = None if resets is None else resets & running
    y = _recurrence(decay, x, state, resets, running, parallel)
    return (y if running is None else jnp.where(running[..., None], y, 0)), y[-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _recurrence(decay, x, state, resets, running, parallel):  # type: ignore[no-untyped-def]
    """All states `[T, B, H]`; past a length the state stays, and there x and decay are 0."""
    return _by_device(parallel, _steps, _scan)(decay, x, state, _columns(resets), _columns(running))


def _recurrence_fwd(decay, x, state, resets, running, parallel):  # type: ignore[no-untyped-def]
    y = _recurrence(decay, x, state, resets, running, parallel)
    return y, (decay, state, y, resets, running)


def _recurrence_bwd(parallel, residuals, dy):  # type: ignore[no-untyped-def]
    decay, state, y, resets, running = residuals
    columns = _columns(resets), _columns(running)
    dh, dstate = _by_device(parallel, _steps_back, _scan_back)(decay, dy, *columns)
    crosses = None
    if columns[0] is not None:
        crosses = ~columns[0]
    if columns[1] is not None:
        dh_in = jnp.where(columns[1], dh, 0)
        crosses = columns[1] if crosses is None else crosses & columns[1]
    else:
        dh_in = dh
    ddecay = dh * jnp.concatenate([state[None], y[:-1]])
    ddecay = ddecay if crosses is None else jnp.where(crosses, ddecay, 0)
    return (ddecay if decay.ndim == 3 else ddecay.sum((0, 1))), dh_in, dstate, None, None


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def _by_device(parallel: bool | None, steps: Callable, scan: Callable) -> Callable:
    if parallel is None:
        return lambda *arguments: lax.platform_dependent(*arguments, cpu=steps, default=scan)
    return scan if parallel else steps


def _columns(mask: Array | None) -> Array | None:
    return None if mask is None else mask[..., None]


def _steps(decay, x, state, resets, running):  # type: ignore[no-untyped-def]
    """One step after another."""
    several = decay.ndim == 3

    def step(h, at):  # type: ignore[no-untyped-def]
        decay_t, x, reset, run = at
        kept = (decay_t if several else decay[None]) * h
        after = (kept if reset is None else jnp.where(reset, 0, kept)) + x
        after = after if run is None else jnp.where(run, after, h)
        return after, after

    return lax.scan(step, state, (decay if several else None, x, resets, running))[1]


def _steps_back(decay, dy, resets, running):  # type: ignore[no-untyped-def]
    """Gradients of the states after each step and before the first, given those of the outputs."""
    several = decay.ndim == 3

    def step(dh, at):  # type: ignore[no-untyped-def]
        decay_t, dy, reset, run = at
        dh = dh + dy
        before = (decay_t if several else decay[None]) * dh
        before = before if reset is None else jnp.where(reset, 0, before)
        before = before if run is None else jnp.where(run, before, dh)
        return before, dh

    steps = (decay if several else None, dy, resets, running)
    dstate, dh = lax.scan(step, jnp.zeros_like(dy[0]), steps, reverse=True)
    return dh, dstate


def _factors(decay: Array, like: Array, resets: Array | None, running: Array | None) -> Array:
    """The factor of the state at each step, `[T, B, H]`: decay, 0 at a reset and 1 past a length."""
    factors = jnp.broadcast_to(decay if decay.ndim == 3 else decay[None, None], like.shape)
    factors = factors if resets is None else jnp.where(resets, 0, factors)
    return factors if running is None else jnp.where(running, factors, 1)


def _scan(decay, x, state, resets, running):  # type: ignore[no-untyped-def]
    """All steps at once."""
    factors = _factors(decay, x, resets, running)
    return lax.associative_scan(_compose, (factors, x.at[0].add(factors[0] * state)))[1]


def _scan_back(decay, dy, resets, running):  # type: ignore[no-untyped-def]
    factors = _factors(decay, dy, resets, running)
    following = jnp.concatenate([factors[1:], jnp.zeros_like(factors[:1])])
    dh = lax.associative_scan(_compose, (following, dy), reverse=True)[1]
    return dh, factors[0] * dh[0]


def _compose(first, second):  # type: ignore[no-untyped-def]
    """The composition of two steps `h -> decay * h + x`, each given as `(decay, x)`."""
    return second[0] * first[0], second[0] * first[1] + second[1]
