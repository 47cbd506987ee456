"""Convolutions whose gradient costs inside `lax.scan` what it costs outside, on every backend.

XLA's CPU backend runs the gradient of a convolution inside a loop 11 to 15 times slower than outside, and with it
every PPO update that loops over minibatches. A convolution is one trilinear form,

    F(x, k, g) = sum over n, p, t, c, o of  x[n, stride * p + t - pad, c]  k[t, c, o]  g[n, p, o],

and its three partial derivatives are all there is to compute: `_correlate` = dF/dg (the convolution), `_spread` =
dF/dx (its transpose) and `_kernel_gradient` = dF/dk. The gradient of each is made of the other two, so derivatives
of any order are right and fast. Forward-mode differentiation (`jax.jvp`, `jax.jacfwd`) is not supported.

On GPUs and TPUs these are XLA's own convolutions; the choice is made when the program is lowered.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class _Window(NamedTuple):
    """The static geometry of a convolution, each a pair over height and width."""

    size: Pair  # of the image
    out: Pair  # of the output
    filter: Pair
    stride: Pair
    low: Pair  # zeros in front of the image


def conv2d(x: jax.Array, kernel: jax.Array, stride: Pair = (1, 1), padding: str = "SAME") -> jax.Array:
    """Convolves images: `y[p, o] = sum over t, c of x[stride * p + t - pad, c] kernel[t, c, o]`.

    Args:
      x: `[N..., H, W, C]` images, any number of leading axes.
      kernel: `[kh, kw, C, O]`, of the same dtype as `x`.
      stride: step along height and width.
      padding: "SAME" (`h = ceil(H / stride)`) or "VALID" (`h = ceil((H - kh + 1) / stride)`).

    Returns:
      `[N..., h, w, O]`, the dtype of `x`; sums are taken in float32 or better.

    Raises:
      ValueError: if the shapes do not fit or leave no output.

    >>> import jax.numpy as jnp
    >>> conv2d(jnp.ones((2, 84, 84, 4)), jnp.ones((8, 8, 4, 16)), (4, 4), "VALID").shape
    (2, 20, 20, 16)
    """
    _check(x, kernel, x.shape[-1])
    window = _window(x.shape[-3:-1], kernel.shape[:2], stride, padding)
    y = _correlate(x.reshape(-1, *x.shape[-3:]), kernel, window)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def conv1d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """Convolves sequences `[N..., L, C]` with `kernel [k, C, O]` to `[N..., l, O]`: `conv2d` of height 1."""
    if kernel.ndim != 3 or x.ndim < 2:
        raise ValueError(f"x must be [..., L, C] and kernel [k, C, O]; got {x.shape} and {kernel.shape}.")
    return conv2d(x[..., None, :, :], kernel[None], (1, stride), padding)[..., 0, :, :]


def deconv2d(x: jax.Array, kernel: jax.Array, stride: Pair = (2, 2)) -> jax.Array:
    """The transpose of a VALID convolution: adds `x[p, c] kernel[t, c, o]` to `y[stride * p + t, o]`.

    Args:
      x: `[N..., h, w, C]` images, any number of leading axes.
      kernel: `[kh, kw, C, O]`, of the same dtype as `x`; not flipped.
      stride: step along height and width.

    Returns:
      `[N..., H, W, O]` with `H = (h - 1) * stride + kh`, the dtype of `x`.

    Raises:
      ValueError: if the shapes do not fit.

    >>> import jax.numpy as jnp
    >>> deconv2d(jnp.ones((2, 9, 9, 32)), jnp.ones((4, 4, 32, 1))).shape
    (2, 20, 20, 1)
    """
    _check(x, kernel, x.shape[-1])
    filter_size = kernel.shape[:2]
    size = tuple((n - 1) * s + k for n, k, s in zip(x.shape[-3:-1], filter_size, stride, strict=True))
    window = _window(size, filter_size, stride, "VALID")
    y = _spread(x.reshape(-1, *x.shape[-3:]), kernel.swapaxes(2, 3), window)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def depthwise_conv2d(
    x: jax.Array, kernel: jax.Array, stride: Pair = (1, 1), padding: str = "SAME"
) -> jax.Array:
    """Convolves each channel by itself with `M` filters: `y[p, c * M + m] = sum over t of x[.., c] kernel[t, c, m]`.

    Args:
      x: `[N..., H, W, C]` images, any number of leading axes.
      kernel: `[kh, kw, C, M]`, of the same dtype as `x`.
      stride: step along height and width.
      padding: "SAME" or "VALID", as in `conv2d`.

    Returns:
      `[N..., h, w, C * M]`, the dtype of `x`.

    Raises:
      ValueError: if the shapes do not fit or leave no output.

    >>> import jax.numpy as jnp
    >>> depthwise_conv2d(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 2))).shape
    (2, 8, 8, 6)
    """
    _check(x, kernel, x.shape[-1])
    window = _window(x.shape[-3:-1], kernel.shape[:2], stride, padding)
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-3:]),
        kernel.reshape(*kernel.shape[:2], 1, -1),
        stride,
        _pads(window),
        dimension_numbers=_LAYOUT,
        feature_group_count=x.shape[-1],
    )
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _check(x: jax.Array, kernel: jax.Array, channels: int) -> None:
    if kernel.ndim != 4 or x.ndim < 3 or kernel.shape[2] != channels:
        raise ValueError(
            f"x must be [..., H, W, C] and kernel [kh, kw, C, O]; got {x.shape} and {kernel.shape}."
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"x and kernel must have the same dtype; got {x.dtype} and {kernel.dtype}.")


def _window(size: Pair, filter_size: Pair, stride: Pair, padding: str) -> _Window:
    if padding == "SAME":
        out = tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
        missing = [(o - 1) * s + k - n for n, k, s, o in zip(size, filter_size, stride, out, strict=True)]
        low = tuple(max(m, 0) // 2 for m in missing)
    elif padding == "VALID":
        out = tuple((n - k) // s + 1 for n, k, s in zip(size, filter_size, stride, strict=True))
        low = (0, 0)
    else:
        raise ValueError(f'padding must be "SAME" or "VALID"; got {padding!r}.')
    if min(out) <= 0:
        raise ValueError(
            f"{padding} filter {tuple(filter_size)} with stride {tuple(stride)} leaves no output of an image of "
            f"{tuple(size)}: it would be {out}."
        )
    return _Window(tuple(size), out, tuple(filter_size), tuple(stride), low)  # type: ignore[arg-type]


def _pads(window: _Window) -> list[Pair]:
    """Zeros (or, negative, rows and columns that no filter reaches) before and after the image."""
    return [(low, (o - 1) * s + k - n - low) for n, o, k, s, low in zip(*window, strict=True)]


# The three maps on XLA's own convolution.


def _xla_correlate(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    return lax.conv_general_dilated(x, k, window.stride, _pads(window), dimension_numbers=_LAYOUT)


def _xla_spread(g: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    x = jax.ShapeDtypeStruct((g.shape[0], *window.size, k.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: _xla_correlate(x, k, window), x)(g)[0]


def _xla_kernel_gradient(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    k = jax.ShapeDtypeStruct((*window.filter, x.shape[-1], g.shape[-1]), g.dtype)
    return jax.linear_transpose(lambda k: _xla_correlate(x, k, window), k)(g)[0]


_Map = Callable[[jax.Array, jax.Array, _Window], jax.Array]


def _differentiable(function: _Map) -> jax.custom_vjp:
    return jax.custom_vjp(function, nondiff_argnums=(2,))


@_differentiable
def _correlate(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    return _xla_correlate(x, k, window)


@_differentiable
def _spread(g: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    return _xla_spread(g, k, window)


@_differentiable
def _kernel_gradient(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    return _xla_kernel_gradient(x, g, window)


def _keep(function: _Map):  # type: ignore[no-untyped-def]
    return lambda a, b, window: (function(a, b, window), (a, b))


_correlate.defvjp(
    _keep(_correlate), lambda window, xk, g: (_spread(g, xk[1], window), _kernel_gradient(xk[0], g, window))
)
_spread.defvjp(
    _keep(_spread), lambda window, gk, x: (_correlate(x, gk[1], window), _kernel_gradient(x, gk[0], window))
)
_kernel_gradient.defvjp(
    _keep(_kernel_gradient), lambda window, xg, k: (_spread(xg[1], k, window), _correlate(xg[0], k, window))
)
