"""Convolutions whose gradient costs inside `lax.scan` what it costs outside, on every backend.

XLA's CPU backend runs the gradient of a convolution inside a loop 11 to 15 times slower than outside, and so
every PPO update that loops over minibatches. A convolution is one trilinear form,

    F(x, k, g) = sum over n, p, t, c, o of  x[n, stride * p + t - pad, c]  k[t, c, o]  g[n, p, o],

and its three partial derivatives are all there is to compute: `_correlate` = dF/dg (the convolution),
`_spread` = dF/dx (its transpose) and `_kernel_gradient` = dF/dk. The gradient of each is made of the other
two, so derivatives of any order are right and fast. Forward-mode differentiation (`jax.jvp`) raises an error.

On GPUs and TPUs these are XLA's own convolutions; the choice is made when the program is lowered.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Pair", "conv1d", "conv2d", "deconv2d", "depthwise_conv2d"]

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
      ValueError: if the shapes or strides do not fit or leave no output.

    >>> import jax.numpy as jnp
    >>> conv2d(jnp.ones((2, 84, 84, 4)), jnp.ones((8, 8, 4, 16)), (4, 4), "VALID").shape
    (2, 20, 20, 16)
    """
    _check(x, kernel, stride)
    window = _window(x, kernel, stride, padding)
    return _over_leading_axes(lambda x: _correlate(x, kernel, window), x)


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
      ValueError: if the shapes or strides do not fit or leave no output.

    >>> import jax.numpy as jnp
    >>> deconv2d(jnp.ones((2, 9, 9, 32)), jnp.ones((4, 4, 32, 1))).shape
    (2, 20, 20, 1)
    """
    _check(x, kernel, stride)
    (h, w), (kh, kw), (sh, sw) = x.shape[-3:-1], kernel.shape[:2], stride
    if min(h, w, kh, kw) <= 0:
        raise ValueError(f"x and kernel must not be empty in space; got {x.shape} and {kernel.shape}.")
    window = _Window(((h - 1) * sh + kh, (w - 1) * sw + kw), (h, w), (kh, kw), (sh, sw), (0, 0))
    return _over_leading_axes(lambda x: _spread(x, kernel.swapaxes(2, 3), window), x)


def depthwise_conv2d(
    x: jax.Array, kernel: jax.Array, stride: Pair = (1, 1), padding: str = "SAME"
) -> jax.Array:
    """Convolves each channel: `y[p, c * M + m] = sum over t of x[stride * p + t - pad, c] kernel[t, c, m]`.

    Args:
      x: `[N..., H, W, C]` images, any number of leading axes.
      kernel: `[kh, kw, C, M]`, of the same dtype as `x`.
      stride: step along height and width.
      padding: "SAME" or "VALID", as in `conv2d`.

    Returns:
      `[N..., h, w, C * M]`, the dtype of `x`.

    Raises:
      ValueError: if the shapes or strides do not fit or leave no output.

    >>> import jax.numpy as jnp
    >>> depthwise_conv2d(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 2))).shape
    (2, 8, 8, 6)
    """
    _check(x, kernel, stride)
    window = _window(x, kernel, stride, padding)
    return _over_leading_axes(lambda x: _depthwise(x, kernel, window), x)


def _over_leading_axes(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    lead, image = x.shape[:-3], x.shape[-3:]
    y = function(x.reshape(math.prod(lead), *image))
    return y.reshape(*lead, *y.shape[1:])


def _check(x: jax.Array, kernel: jax.Array, stride: Pair) -> None:
    if kernel.ndim != 4 or x.ndim < 3 or kernel.shape[2] != x.shape[-1]:
        raise ValueError(
            f"x must be [..., H, W, C] and kernel [kh, kw, C, O]; got {x.shape} and {kernel.shape}."
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"x and kernel must have the same dtype; got {x.dtype} and {kernel.dtype}.")
    if not isinstance(stride, Sequence) or len(stride) != 2 or min(stride) < 1:
        raise ValueError(f"stride must be two numbers >= 1; got {stride!r}.")


def _window(x: jax.Array, kernel: jax.Array, stride: Pair, padding: str) -> _Window:
    size, filter_size = x.shape[-3:-1], kernel.shape[:2]
    axes = list(zip(size, filter_size, stride, strict=True))
    if padding == "SAME":
        out = [-(-n // s) for n, _, s in axes]
        low = [max(0, (o - 1) * s + k - n) // 2 for o, (n, k, s) in zip(out, axes, strict=True)]
    elif padding == "VALID":
        out = [(n - k) // s + 1 for n, k, s in axes]
        low = [0, 0]
    else:
        raise ValueError(f'padding must be "SAME" or "VALID"; got {padding!r}.')
    if min(out) <= 0:
        raise ValueError(
            f"A {padding} filter of {filter_size} with stride {tuple(stride)} leaves no output of an image "
            f"of {size}: its size would be {tuple(out)}."
        )
    return _Window(*((a, b) for a, b in (size, out, filter_size, stride, low)))


def _pads(window: _Window) -> list[Pair]:
    """Zeros before and after the image."""
    return [(low, max(0, (o - 1) * s + k - n - low)) for n, o, k, s, low in zip(*window, strict=True)]


_Map = Callable[[jax.Array, jax.Array, _Window], jax.Array]


def _three_maps(cpu: tuple[_Map, _Map, _Map], xla: _Map, filters: Callable[[int, int], int]) -> list[Any]:
    """The three maps of a trilinear form, each with a gradient made of the other two.

    `xla` computes the first map on other backends; the other two are its transposes. `filters` is the length
    of the kernel's last axis, given the channels of x and of g.
    """

    def xla_spread(g: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
        shape = (len(g), *window.size, k.shape[2])
        x = jax.ShapeDtypeStruct(shape, g.dtype)  # type: ignore[no-untyped-call]
        return jax.linear_transpose(lambda x: xla(x, k, window), x)(g)[0]

    def xla_kernel_gradient(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
        shape = (*window.filter, x.shape[-1], filters(x.shape[-1], g.shape[-1]))
        k = jax.ShapeDtypeStruct(shape, g.dtype)  # type: ignore[no-untyped-call]
        return jax.linear_transpose(lambda k: xla(x, k, window), k)(g)[0]

    def choose(cpu: _Map, default: _Map) -> Any:
        def function(a: jax.Array, b: jax.Array, window: _Window) -> jax.Array:
            return lax.platform_dependent(
                a, b, cpu=lambda a, b: cpu(a, b, window), default=lambda a, b: default(a, b, window)
            )

        return jax.custom_vjp(function, nondiff_argnums=(2,))

    def keep(function: _Map) -> Any:
        return lambda a, b, window: (function(a, b, window), (a, b))

    correlate, spread, kernel_gradient = map(choose, cpu, (xla, xla_spread, xla_kernel_gradient))
    correlate.defvjp(
        keep(correlate), lambda window, xk, g: (spread(g, xk[1], window), kernel_gradient(xk[0], g, window))
    )
    spread.defvjp(
        keep(spread), lambda window, gk, x: (correlate(x, gk[1], window), kernel_gradient(x, gk[0], window))
    )
    kernel_gradient.defvjp(
        keep(kernel_gradient), lambda window, xg, k: (spread(xg[1], k, window), correlate(xg[0], k, window))
    )
    return [correlate, spread, kernel_gradient]


def _xla_correlate(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    return lax.conv_general_dilated(x, k, window.stride, _pads(window), dimension_numbers=_LAYOUT)


# The maps on CPUs. Memory traffic is most of their cost, so copies are few and large.
#
# With stride 1 the form is a product of three matrices, x's columns, the kernel and g's rows,
#
#     F = sum over n, i, q, a, b of  columns(x)[n, i, q, a]  K[a, b]  rows(g)[n, i, q, b],
#
# where `columns` sets side by side what the taps of a row of the filter see, and `rows` what the taps of a column
# lead to. Each map is a product of two of them, moved back into space by the adjoint of `columns` or `rows`. Where
# whole patches of x are no wider than the rows of g, as in first layers, their product with the kernel or g is faster.
#
# With other strides the rows of g would be mostly zeros. There: XLA's forward convolution, which is fast in loops too;
# for its transpose, one of stride 1 to stride * stride times the channels, which then move into space; for the
# kernel's gradient, the columns times g, a product for each row of the filter.


def _move(x: jax.Array, axis: int, by: int, size: int) -> jax.Array:
    """Moves entries along an axis of `size` entries from then on; zeros come in."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (by, size - x.shape[axis] - by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def _columns(x: jax.Array, window: _Window) -> jax.Array:
    """`[n, H, W, C]` to `[n, H, w, kw * C]`: what each column of the output sees of each row of the image."""
    taps = [_move(x, 2, window.low[1] - j, window.out[1]) for j in range(window.filter[1])]
    return jnp.concatenate(taps, axis=-1)


def _rows(g: jax.Array, window: _Window) -> jax.Array:
    """`[n, h, w, O]` to `[n, H, w, kh * O]`: what each row of the image leads to in each column of the output."""
    taps = [_move(g, 1, i - window.low[0], window.size[0]) for i in range(window.filter[0])]
    return jnp.concatenate(taps, axis=-1)


def _matrix(k: jax.Array) -> jax.Array:
    """`[kh, kw, C, O]` to `[kw * C, kh * O]`."""
    kh, kw, channels, features = k.shape
    return k.transpose(1, 2, 0, 3).reshape(kw * channels, kh * features)


def _unit_correlate(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    taps = jnp.split(_matmul(_columns(x, window), _matrix(k)), window.filter[0], axis=-1)
    moved = [_move(tap, 1, window.low[0] - i, window.out[0]) for i, tap in enumerate(taps)]
    return functools.reduce(jnp.add, moved).astype(x.dtype)


def _unit_spread(g: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    taps = jnp.split(_matmul(_rows(g, window), _matrix(k).T), window.filter[1], axis=-1)
    moved = [_move(tap, 2, j - window.low[1], window.size[1]) for j, tap in enumerate(taps)]
    return functools.reduce(jnp.add, moved).astype(g.dtype)


def _unit_kernel_gradient(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    (kh, kw), channels, features = window.filter, x.shape[-1], g.shape[-1]
    product = _transposed_product(_columns(x, window), _rows(g, window))
    return product.reshape(kw, channels, kh, features).transpose(2, 0, 1, 3).astype(x.dtype)


def _cpu_correlate(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    if window.stride == (1, 1):
        product = _patches_product if _patches_are_narrow(*k.shape[1:]) else _unit_correlate
        return product(x, k, window)
    return _plain_correlate(x, k, window)


def _plain_correlate(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    @jax.custom_batching.custom_vmap
    def correlate(x: jax.Array, k: jax.Array) -> jax.Array:
        return _xla_correlate(x, k, window)

    @correlate.def_vmap
    def batched(axis_size: int, is_batched: list[bool], x: jax.Array, k: jax.Array) -> tuple[jax.Array, bool]:
        x_batched, k_batched = is_batched
        if k_batched:  # would be a grouped convolution, which is slow
            axes = (0 if x_batched else None, 0)
            return jax.vmap(lambda x, k: _patches_product(x, k, window), axes)(x, k), True
        y = correlate(x.reshape(-1, *x.shape[2:]), k)
        return y.reshape(axis_size, -1, *y.shape[1:]), True

    return correlate(x, k)


def _cpu_spread(g: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    """Pixels `stride * q + r` are, for each r, a convolution of g with the taps r, r + stride, ..."""
    if window.stride == (1, 1):
        return _unit_spread(g, k, window)
    (sh, sw), (kh, kw), (h, w) = window.stride, window.filter, window.out
    channels, features = k.shape[2:]
    taps_h, taps_w = -(-kh // sh), -(-kw // sw)
    k = jnp.pad(k, ((0, taps_h * sh - kh), (0, taps_w * sw - kw), (0, 0), (0, 0)))
    k = k.reshape(taps_h, sh, taps_w, sw, channels, features)[::-1, :, ::-1]
    k = k.transpose(0, 2, 5, 1, 3, 4).reshape(taps_h, taps_w, features, sh * sw * channels)
    blocks = (h + taps_h - 1, w + taps_w - 1)
    every = _Window((h, w), blocks, (taps_h, taps_w), (1, 1), (taps_h - 1, taps_w - 1))
    y = _plain_correlate(g, k, every).reshape(-1, *blocks, sh, sw, channels)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(-1, blocks[0] * sh, blocks[1] * sw, channels)
    crop = [
        (-low, size + low - block * s, 0)
        for low, size, block, s in zip(window.low, window.size, blocks, window.stride, strict=True)
    ]
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *crop, (0, 0, 0)])


def _cpu_kernel_gradient(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    narrow = _patches_are_narrow(window.filter[1], x.shape[-1], g.shape[-1])
    if window.stride == (1, 1) and not narrow:
        return _unit_kernel_gradient(x, g, window)
    if window.stride == (1, 1):
        product = _transposed_product(_patches(x, window), g)
    else:
        columns = _strided_columns(_pad(x, window), window)
        rows = [_every_row(columns, i, window) for i in range(window.filter[0])]
        product = jnp.stack([_transposed_product(row, g) for row in rows])
    return product.reshape(*window.filter, x.shape[-1], g.shape[-1]).astype(x.dtype)


def _patches_are_narrow(width: int, channels: int, features: int) -> bool:
    return width * channels <= features


def _patches(x: jax.Array, window: _Window) -> jax.Array:
    """`[n, H, W, C]` to `[n, h, w, kh * kw * C]`."""
    columns = _strided_columns(_pad(x, window), window)
    return jnp.concatenate([_every_row(columns, i, window) for i in range(window.filter[0])], axis=-1)


def _patches_product(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    return _matmul(_patches(x, window), k.reshape(-1, k.shape[-1])).astype(x.dtype)


def _pad(x: jax.Array, window: _Window) -> jax.Array:
    return jnp.pad(x, ((0, 0), *_pads(window), (0, 0)))


def _strided_columns(x: jax.Array, window: _Window) -> jax.Array:
    """`[n, H, W, C]`, padded, to `[n, H, w, kw * C]`: what each column of the output sees of each row."""
    (_, w), (_, kw), (_, s) = window.out, window.filter, window.stride
    return jnp.concatenate([x[:, :, j : j + (w - 1) * s + 1 : s] for j in range(kw)], axis=-1)


def _every_row(columns: jax.Array, i: int, window: _Window) -> jax.Array:
    """Row `i` of the filter: `[n, h, w, kw * C]`."""
    return columns[:, i : i + (window.out[0] - 1) * window.stride[0] + 1 : window.stride[0]]


def _transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[..., i]` and `[..., j]` to `[i, j]`, summed over the leading axes."""
    return _matmul(a.reshape(-1, a.shape[-1]).T, b.reshape(-1, b.shape[-1]))


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=_wide(a.dtype))


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """The type to sum in."""
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


_correlate, _spread, _kernel_gradient = _three_maps(
    (_cpu_correlate, _cpu_spread, _cpu_kernel_gradient), _xla_correlate, lambda channels, features: features
)


# Channel by channel: on CPUs a multiply-add per tap of shifted images, elsewhere a grouped convolution.


def _xla_depthwise(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    channels, filters = k.shape[2:]
    return lax.conv_general_dilated(
        x,
        k.reshape(*window.filter, 1, channels * filters),
        window.stride,
        _pads(window),
        dimension_numbers=_LAYOUT,
        feature_group_count=channels,
    )


def _shifts(x: jax.Array, window: _Window) -> Iterator[tuple[int, int, jax.Array]]:
    """For each tap, its place in the filter and what it sees: `[n, h, w, C]`."""
    (h, w), (sh, sw) = window.out, window.stride
    x = _pad(x, window)
    for i, j in itertools.product(*map(range, window.filter)):
        yield i, j, x[:, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw]


def _cpu_depthwise(x: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    shape = (len(x), *window.out, *k.shape[2:])
    k = k.astype(_wide(k.dtype))
    y = jnp.zeros(shape, k.dtype)
    for i, j, shifted in _shifts(x.astype(k.dtype), window):
        y += shifted[..., None] * jnp.broadcast_to(k[i, j], shape)
    return y.reshape(*shape[:3], shape[3] * shape[4]).astype(x.dtype)


def _cpu_depthwise_spread(g: jax.Array, k: jax.Array, window: _Window) -> jax.Array:
    """The flipped kernel over g, spaced out by the stride; one filter at a time, for sums in order."""
    dtype, filters = g.dtype, k.shape[3]
    spaced = [
        (f - 1 - low, n + low - (o - 1) * s - 1, s - 1) for n, o, f, s, low in zip(*window, strict=True)
    ]
    g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *spaced, (0, 0, 0)]).astype(_wide(g.dtype))
    k = k[::-1, ::-1].astype(g.dtype)
    every = _Window((g.shape[1], g.shape[2]), window.size, window.filter, (1, 1), (0, 0))
    parts = [_cpu_depthwise(g[..., m::filters], k[..., m : m + 1], every) for m in range(filters)]
    return functools.reduce(jnp.add, parts).astype(dtype)


def _cpu_depthwise_kernel_gradient(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    dtype, channels, filters = x.dtype, x.shape[-1], g.shape[-1] // x.shape[-1]
    x, g = x.astype(_wide(x.dtype)), g.astype(_wide(g.dtype))
    taps = [
        [jnp.sum(shifted * g[..., m::filters], (0, 1, 2)) for m in range(filters)]
        for _, _, shifted in _shifts(x, window)
    ]
    kernel = jnp.stack([jnp.stack(tap, -1) for tap in taps])
    return kernel.reshape(*window.filter, channels, filters).astype(dtype)


_depthwise, _, _ = _three_maps(
    (_cpu_depthwise, _cpu_depthwise_spread, _cpu_depthwise_kernel_gradient),
    _xla_depthwise,
    lambda channels, features: features // channels,
)
