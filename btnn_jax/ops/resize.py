"""Resizing of images by interpolation, alone and in front of a convolution.

Each axis is a product with a small matrix of weights, which is as fast in its gradient as in itself; gathering
pixels is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["fused_is_cheaper", "interpolation_matrix", "resize2d", "resize_conv2d"]


def resize2d(x: jax.Array, shape: tuple[int, int], method: str = "bilinear") -> jax.Array:
    """Resizes images: `y[p, q, c] = sum over i, j of rows[p, i] columns[q, j] x[i, j, c]`.

    Pixel i is centred at `i + 1/2`, as in TensorFlow 2's `tf.image.resize` without antialiasing. An axis that
    keeps its size keeps its values.

    Args:
      x: float `[N..., H, W, C]` images, any number of leading axes.
      shape: height and width `(h, w)` to resize to.
      method: "nearest", "bilinear", "bicubic" (Keys 1981, "Cubic Convolution Interpolation for Digital Image
        Processing", with a = -1/2), or "area" (mean over the area that a pixel comes to cover).

    Returns:
      `[N..., h, w, C]`, the dtype of `x`.

    Raises:
      ValueError: if an axis or the method is not one of these.

    >>> import jax.numpy as jnp
    >>> resize2d(jnp.array([0.0, 1.0])[:, None, None], (4, 1))[:, 0, 0]
    Array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    """
    _check(x, shape, method)
    for axis, size in zip((-3, -2), shape, strict=True):
        if x.shape[axis] != size:
            x = _along(axis, interpolation_matrix(x.shape[axis], size, method), x)
    return x


def resize_conv2d(
    x: jax.Array, kernel: jax.Array, shape: tuple[int, int], method: str = "bilinear", padding: str = "SAME"
) -> jax.Array:
    """Resizes images and convolves them: `conv2d(resize2d(x, size, method), kernel, (1, 1), padding)`.

    Both are linear, so the taps' products can be taken before resizing, of as many pixels as `x` has, and there
    is no need for the resized image.

    Args:
      x: float `[N..., H, W, C]` images, any number of leading axes.
      kernel: `[kh, kw, C, O]`, the dtype of `x`.
      shape: height and width `(h, w)` of the output.
      method: the interpolation, as in `resize2d`.
      padding: "SAME" (`size` is `shape`), or "VALID" (`size` is `(h + kh - 1, w + kw - 1)`).

    Returns:
      `[N..., h, w, O]`, the dtype of `x`.

    Raises:
      ValueError: if the shapes do not fit, or the method or the padding is unknown.

    >>> import jax.numpy as jnp
    >>> resize_conv2d(jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 5)), (9, 7)).shape
    (2, 9, 7, 5)
    """
    _check(x, shape, method)
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'padding must be "SAME" or "VALID", got {padding!r}')
    if kernel.ndim != 4 or kernel.shape[2] != x.shape[-1] or kernel.dtype != x.dtype:
        raise ValueError(
            f"kernel must be [kh, kw, C, O] of x, {x.dtype} {x.shape}; got {kernel.dtype} {kernel.shape}"
        )
    *lead, height, width, _ = x.shape
    kh, kw, channels, features = kernel.shape
    rows = _weights(height, shape[0], method, kh, padding)
    columns = _weights(width, shape[1], method, kw, padding)
    # Channels last: so the gradient of the taps, where they are few, is a plain product on CPUs.
    taps = kernel.transpose(1, 0, 3, 2).reshape(kw * kh * features, channels)
    y = jnp.tensordot(x, taps, ((-1,), (1,)))
    y = _along(-2, columns, y.reshape(*lead, height, width * kw, kh * features))
    y = y.reshape(*lead, height, shape[1], kh, features).swapaxes(-3, -2)
    return _along(-3, rows, y.reshape(*lead, height * kh, shape[1], features))


def _check(x: jax.Array, shape: tuple[int, int], method: str) -> None:
    if method not in _WEIGHTS:
        raise ValueError(f"method must be one of {tuple(_WEIGHTS)}, got {method!r}")
    if x.ndim < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating [..., H, W, C], got {x.dtype} {x.shape}")
    if min(*shape, *x.shape[-3:-1]) < 1:
        raise ValueError(f"images must not be empty, got {x.shape} to resize to {tuple(shape)}")


def fused_is_cheaper(image: tuple[int, ...], kernel: tuple[int, ...], shape: tuple[int, int]) -> bool:
    """Whether `resize_conv2d` does less than resizing first, as it does for signals and small images.

    Counted for each feature: multiplications, and the numbers copied into patches.

    Args:
      image: `(..., H, W, C)`.
      kernel: `(kh, kw, C, O)`.
      shape: height and width of the output.
    """
    (height, width), (h, w), (kh, kw, channels, features) = image[-3:-1], shape, kernel
    taps = height * width * channels * kh * kw + height * w * kh * width * kw + h * w * height * kh
    resizing = (height * w * width + h * w * height) * channels / features if (height, width) != (h, w) else 0
    return taps < resizing + h * w * channels * kh * kw * (1 + 1 / features)


def _weights(size: int, new_size: int, method: str, taps: int, padding: str) -> np.ndarray:
    """`[new_size, size * taps]`: new pixel p sees, through tap t, the resized pixel `p + t - low`."""
    more = taps - 1
    low = more // 2 if padding == "SAME" else 0
    resized = interpolation_matrix(size, new_size + (more if padding == "VALID" else 0), method)
    resized = np.pad(resized, ((low, more - low), (0, 0)))
    seen = np.stack([resized[t : t + new_size] for t in range(taps)], axis=-1)
    return seen.reshape(new_size, size * taps)


def _along(axis: int, weights: np.ndarray, x: jax.Array) -> jax.Array:
    """`y[..., p, ...] = sum over i of weights[p, i] x[..., i, ...]` along `axis`, -2 or -3."""
    before, (size, *after) = x.shape[:axis], x.shape[axis:]
    y = _of_each(weights, x.reshape(math.prod(before), size, math.prod(after)))
    return y.reshape(*before, len(weights), *after)


def _of_each(weights: np.ndarray, x: jax.Array) -> jax.Array:
    """`weights [p, i] @ x[n]` for each of `x [n, i, w]`.

    On CPUs as that many products, so that no axis has to move, where the matrices are no larger than what they map.
    """

    def move(x: jax.Array) -> jax.Array:
        matrix = jnp.asarray(weights, x.dtype)
        return jnp.tensordot(x, matrix, ((1,), (1,)), precision="highest").swapaxes(1, 2)

    def multiply(x: jax.Array) -> jax.Array:
        matrices = jnp.broadcast_to(jnp.asarray(weights, x.dtype), (len(x), *weights.shape))
        return jnp.matmul(matrices, x, precision="highest")

    @jax.custom_batching.custom_vmap
    def product(x: jax.Array) -> jax.Array:
        on_cpu = multiply if weights.size <= sum(weights.shape) * x.shape[2] else move
        return jax.lax.platform_dependent(x, cpu=on_cpu, default=move)

    @product.def_vmap
    def batched(axis_size: int, is_batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
        # As more images: `matmul` under `vmap` would move an axis after all.
        y = product(x.reshape(axis_size * x.shape[1], *x.shape[2:]))
        return y.reshape(axis_size, x.shape[1], *y.shape[1:]), True

    linear = jax.custom_vjp(product)
    linear.defvjp(lambda x: (linear(x), None), lambda _, g: (_of_each(weights.T, g),))
    return linear(x)


def interpolation_matrix(size: int, new_size: int, method: str) -> np.ndarray:
    """The weight of each of `size` pixels in each of `new_size`: float64 `[new_size, size]`, each row sums to 1."""
    weights = _WEIGHTS[method](size, new_size)
    return weights / weights.sum(axis=1, keepdims=True)


def _distances(size: int, new_size: int) -> np.ndarray:
    """From the centre of each new pixel to that of each old one, in old pixels."""
    centres = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    return np.abs(centres[:, None] - np.arange(size))


def _nearest(size: int, new_size: int) -> np.ndarray:
    return np.eye(size)[(2 * np.arange(new_size) + 1) * size // (2 * new_size)]


def _bilinear(size: int, new_size: int) -> np.ndarray:
    clipped = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    return np.maximum(0.0, 1.0 - np.abs(clipped[:, None] - np.arange(size)))


def _bicubic(size: int, new_size: int) -> np.ndarray:
    d = _distances(size, new_size)
    near = (1.5 * d - 2.5) * d**2 + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))


def _area(size: int, new_size: int) -> np.ndarray:
    edges = np.arange(new_size + 1) * (size / new_size)
    old = np.arange(size)
    return np.maximum(0.0, np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old))


_WEIGHTS: dict[str, Callable[[int, int], np.ndarray]] = {
    "bilinear": _bilinear,
    "nearest": _nearest,
    "bicubic": _bicubic,
    "area": _area,
}
