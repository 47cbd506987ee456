"""Functions of a policy's parameters: start from others, freeze some, rescale the value head."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from btnn_jax._types import PyTree

__all__ = ["frozen_mask", "return_scale", "update_return_scale", "with_pretrained"]


def with_pretrained(params: PyTree, pretrained: PyTree) -> PyTree:
    """`params` with a part of them exchanged, for instance an encoder's.

    Args:
      params: parameters of a policy, as `init_params` gives them.
      pretrained: nested dicts of arrays under the same names, `{"encoder": {"autoencoder": ...}}` for an
        autoencoder that was trained before.

    Raises:
      ValueError: a parameter is unknown or has another shape; the message names it.

    >>> with_pretrained({"a": jnp.zeros(2), "b": jnp.zeros(1)}, {"a": jnp.ones(2)})
    {'a': Array([1., 1.], dtype=float32), 'b': Array([0.], dtype=float32)}
    """
    known = dict(jax.tree_util.tree_leaves_with_path(params))
    given = dict(jax.tree_util.tree_leaves_with_path(pretrained))
    for path, x in given.items():
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if path not in known:
            raise ValueError(f"the policy has no parameter {name}")
        if known[path].shape != x.shape:
            raise ValueError(
                f"the policy's {name} has shape {known[path].shape}, the pretrained one {x.shape}"
            )
    return jax.tree_util.tree_map_with_path(lambda path, x: jnp.asarray(given.get(path, x), x.dtype), params)


def frozen_mask(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """Which of `params` are to stay as they are, a bool for each: a mask as optax's `masked` takes it.

    Args:
      params: parameters of a policy.
      frozen: how the paths of frozen parameters start, such as `"encoder"` or `"encoder/autoencoder"`.

    Raises:
      ValueError: a path leads to no parameter.

    >>> frozen_mask({"encoder": {"kernel": jnp.zeros(1)}, "core": {"bias": jnp.zeros(1)}}, ("encoder",))
    {'core': {'bias': False}, 'encoder': {'kernel': True}}
    """
    unused = set(frozen)

    def leaf(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = [start for start in frozen if f"{name}/".startswith(f"{start}/")]
        unused.difference_update(found)
        return bool(found)

    mask = jax.tree_util.tree_map_with_path(leaf, params)
    if unused:
        raise ValueError(f"no parameters are in {sorted(unused)}; there are {sorted(params)} at the top")
    return mask


def return_scale(params: PyTree) -> jax.Array:
    """The scale of returns of a policy with `normalize_returns`, float32 `[]`; 1 until a reward has been seen."""
    scale = params["return_scale"]
    return jnp.where(scale > 0, scale, 1.0)


def update_return_scale(params: PyTree, mean_square: jax.Array, rate: float) -> PyTree:
    """Updates the scale of returns without changing any value that the policy predicts.

    The square of the scale is an exponential average of `mean_square`. The value head is multiplied by the old scale
    over the new one, as in PopArt (van Hasselt et al. 2016, "Learning values across many orders of magnitude",
    arXiv:1602.07714), here without the shift by a mean. The first scale leaves the head as it is, because until then
    the head has predicted returns of unknown size.

    Args:
      params: parameters of a policy with `normalize_returns`.
      mean_square: float32 `[]`, mean of squared returns; the scale stays where it is 0 or not finite.
      rate: weight of `mean_square` in the average, between 0 and 1.

    Returns:
      The parameters with another `return_scale` and value head.
    """
    old = params["return_scale"]
    known = (mean_square > 0) & jnp.isfinite(mean_square)
    square = jnp.where(old > 0, jnp.square(old) + rate * (mean_square - jnp.square(old)), mean_square)
    new = jnp.where(known, jnp.sqrt(square), old)
    ratio = jnp.where(old > 0, old / jnp.where(new > 0, new, 1.0), 1.0)
    if "value_gain" in params:  # of a `ModulePolicy`, whose network has a value head that is not known here
        return {**params, "return_scale": new, "value_gain": params["value_gain"] * ratio}
    head = params["actor_critic"]
    value = jax.tree.map(lambda x: (x * ratio).astype(x.dtype), head["value"])
    return {**params, "return_scale": new, "actor_critic": {**head, "value": value}}
