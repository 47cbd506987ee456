"""Means over included rows, also over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = ["AxisName", "check_rows", "check_where", "explained_variance", "float32", "masked_mean", "pmean"]

AxisName = str | tuple[str, ...]


def masked_mean(x: Array, where: Array | None = None, *, axis_name: AxisName | None = None) -> Array:
    """Mean of `x` over all axes, counting only the included rows: `sum(x where included) / count`.

    Args:
      x: float `[N, ...]`; axes beyond those of `where` are averaged in full.
      where: bool `[N]`, True = include; None includes everything.
      axis_name: mapped axis over which the caller takes `jax.lax.pmean` of the result; the count is then the
        mean count over that axis, so that the `pmean` is the mean over all included rows of all devices.

    Returns:
      float32 `[]`, 0 when nothing is included.

    Raises:
      ValueError: if `where` is not bool or its shape is not how the shape of `x` starts.

    >>> masked_mean(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False]))
    Array(2., dtype=float32)
    """
    x = float32(x)
    if where is not None:
        check_where(where, x.shape[: where.ndim])
    if x.size == 0:
        return jnp.float32(0.0)
    if where is None:
        return jnp.mean(x)
    rows = jnp.mean(x, axis=tuple(range(where.ndim, x.ndim)))
    count = pmean(jnp.sum(where, dtype=jnp.float32), axis_name)
    return jnp.sum(jnp.where(where, rows, 0.0)) / jnp.where(count > 0, count, 1.0)


def explained_variance(
    returns: Array, values: Array, where: Array | None = None, *, axis_name: AxisName | None = None
) -> Array:
    """How much of the returns' variance the values explain: `1 - Var(returns - values) / Var(returns)`.

    Args:
      returns: float `[N]`.
      values: float `[N]`.
      where: bool `[N]`, True = include.
      axis_name: mapped axis whose devices share the batch; every device gets the value for the whole batch.

    Returns:
      float32 `[]`: 1 is perfect, 0 no better than a constant; 0 when the returns do not vary.
    """
    check_rows(returns=returns, values=values)

    def mean(x: Array) -> Array:
        return pmean(masked_mean(x, where, axis_name=axis_name), axis_name)

    def variance(x: Array) -> Array:
        return mean(jnp.square(x - mean(x)))

    returns, values = float32(returns), float32(values)
    total = variance(returns)
    varies = total > 1e-12 * mean(jnp.square(returns))  # the rounded mean of a constant is not that constant
    return jnp.where(varies, 1.0 - variance(returns - values) / jnp.where(varies, total, 1.0), 0.0)


def pmean(x: Array, axis_name: AxisName | None) -> Array:
    """The mean over the places of `axis_name`; `x` itself without an axis."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)  # type: ignore[no-untyped-call]


def float32(x: ArrayLike) -> Array:
    """`x` as a float32 array."""
    return jnp.asarray(x, jnp.float32)


def check_where(where: Array | None, rows: tuple[int, ...]) -> None:
    """Raises a `ValueError` where `where` is not a mask of the shape `rows`."""
    if where is not None and (where.shape != rows or where.dtype != jnp.bool_):
        raise ValueError(f"expected where bool {rows}, got {where.dtype} {where.shape}")


def check_rows(**rows: Array) -> None:
    """Raises a `ValueError` where the arrays, by name, are not of one shape."""
    shapes = {name: x.shape for name, x in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected one shape [N], got {shapes}")
