"""How much the cells of a frame change, the pseudo-reward of UNREAL's pixel control.

Jaderberg et al. (2016), "Reinforcement Learning with Unsupervised Auxiliary Tasks", section 3.1.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from btnn_jax._errors import check_choice

__all__ = ["pixel_change_2d_estimator", "pixel_change_shape"]


def pixel_change_2d_estimator(
    state: Array, last_state: Array, stride: tuple[int, int] = (2, 2), pool: str = "mean"
) -> Array:
    """How much each cell of a frame has changed, the pseudo-reward of pixel control.

    One pixel is cropped from each side (from top and bottom alone where `W <= 3`, as in signals), the
    absolute difference is averaged over channels and pooled over cells of `stride` pixels. Cells that stick
    out (padding SAME) average the pixels they have. Jaderberg et al. (2016), section 3.1.

    Args:
      state: frame `[N..., H, W, C]` of any type, bool and integers included.
      last_state: the frame before it, same shape and type.
      stride: height and width of a cell, in pixels.
      pool: "mean" as in the paper, or "max" as in BTGym.

    Returns:
      float32 `[N..., h, w]` in the units of the frames (0 to 255 for uint8), see `pixel_change_shape`.

    Raises:
      ValueError: if shapes or types differ, nothing is left after the crop, or `pool` is unknown.

    >>> frame = jnp.zeros([84, 84, 3], jnp.uint8)
    >>> pixel_change_2d_estimator(frame, frame, stride=(4, 4)).shape
    (21, 21)
    """
    check_choice("pool", pool, ("mean", "max"))
    if state.shape != last_state.shape or state.dtype != last_state.dtype or state.ndim < 3:
        raise ValueError(
            "state and last_state must be [N..., H, W, C] of one shape and type, "
            f"got {state.shape} {state.dtype} and {last_state.shape} {last_state.dtype}"
        )
    channels = state.shape[-1]
    cells = pixel_change_shape(state.shape[-3:], stride)
    rows, columns = slice(1, -1), slice(None) if state.shape[-2] <= 3 else slice(1, -1)
    change = _difference(state[..., rows, columns, :], last_state[..., rows, columns, :])

    missing = [n * s - size for n, s, size in zip(cells, stride, change.shape[-3:-1], strict=True)]
    pads = [(m // 2, m - m // 2) for m in missing]
    inside = [np.pad(np.ones(n * s - m), p) for n, s, m, p in zip(cells, stride, missing, pads, strict=True)]
    # 0 changes neither sum nor maximum.
    change = jnp.pad(change, [(0, 0)] * (change.ndim - 3) + [*pads, (0, 0)])

    # Sums of strided slices compile to one pass over the frames, a windowed reduction does not.
    def over_channels(pixels: Array) -> Array:
        return functools.reduce(jnp.add, [pixels[..., k].astype(jnp.float32) for k in range(channels)])

    pixels = [over_channels(change[..., i :: stride[0], j :: stride[1], :]) for i, j in np.ndindex(*stride)]
    if pool == "max":
        return functools.reduce(jnp.maximum, pixels) / channels
    counts = np.outer(*(axis.reshape(n, s).sum(1) for axis, n, s in zip(inside, cells, stride, strict=True)))
    total = functools.reduce(jnp.add, pixels)
    return total * jnp.broadcast_to(jnp.asarray(1 / (counts * channels), jnp.float32), total.shape)


def _difference(a: Array, b: Array) -> Array:
    """`|a - b|`, in one byte per pixel where the frames have one."""
    if a.dtype == jnp.bool_:
        return a ^ b
    if jnp.issubdtype(a.dtype, jnp.unsignedinteger):
        return jnp.maximum(a, b) - jnp.minimum(a, b)
    return jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))


def pixel_change_shape(frame_shape: tuple[int, ...], stride: tuple[int, int] = (2, 2)) -> tuple[int, int]:
    """Height and width of the grid that `pixel_change_2d_estimator` makes of frames `[H, W, C]`.

    >>> pixel_change_shape((84, 84, 3), (4, 4))
    (21, 21)
    """
    height, width, _ = frame_shape
    if height < 3 or width < 1 or min(stride) < 1:
        raise ValueError(
            f"pixel change needs frames [H >= 3, W, C] and strides >= 1, got {frame_shape} and {stride}"
        )
    return -(-(height - 2) // stride[0]), -(-(width if width <= 3 else width - 2) // stride[1])
