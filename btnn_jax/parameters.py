"""Functions of a policy's parameters: start from others, freeze some."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["frozen_mask", "with_pretrained"]

PyTree = Any


def with_pretrained(params: PyTree, pretrained: PyTree) -> PyTree:
    """`params` with a part of them exchanged, for instance an encoder's.

    Args:
      params: of a policy, as `init_params` gives them.
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
      params: of a policy.
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
