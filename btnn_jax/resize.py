"""Resizing of images by interpolation, as a product with one small matrix per axis.

A product is as fast in its gradient as in itself, which gathering pixels is not.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


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
    if method not in _WEIGHTS:
        raise ValueError(f"method must be one of {tuple(_WEIGHTS)}, got {method!r}")
    if x.ndim < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating [..., H, W, C], got {x.dtype} {x.shape}")
    if min(*shape, *x.shape[-3:-1]) < 1:
        raise ValueError(f"images must not be empty, got {x.shape} to resize to {tuple(shape)}")
    for axis, size in zip((-3, -2), shape, strict=True):
        if x.shape[axis] != size:
            x = along(x, interpolation_matrix(x.shape[axis], size, method), axis)
    return x


def along(x: jax.Array, matrix: np.ndarray | jax.Array, axis: int) -> jax.Array:
    """Multiplies `matrix [n, m]` with an axis of length m of `x`: `y[..., p, ...] = matrix[p, i] x[..., i, ...]`."""
    matrix = jnp.asarray(matrix, x.dtype)
    y = jnp.tensordot(x, matrix, ((axis,), (1,)), precision="highest")
    return jnp.moveaxis(y, -1, axis)


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
