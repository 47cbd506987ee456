"""Measurements of how the terms of a loss share a network; none of them changes what is learned."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from btnn_jax._types import PyTree
from btnn_jax.losses import AxisName

__all__ = ["DORMANT", "dormant_share", "effective_rank", "noise_by_layer", "trunk_gradients"]

DORMANT = 0.025  # of the layer's mean activation; the threshold of Sokar et al. 2023
Metrics = dict[str, jax.Array]


def trunk_gradients(
    terms: Callable[[PyTree], dict[str, jax.Array]],
    params: PyTree,
    *,
    reference: str = "policy",
    other: str = "value",
    axis_name: AxisName | None = None,
) -> Metrics:
    """Compares the gradients that the terms of a loss send into the parameters that they share.

    The trunk is every parameter array that both the term `reference` and the term `other` reach.

    Args:
      terms: parameters -> float32 `[]` of each term, weights included.
      params: where to differentiate.
      reference: the term that the others are compared with.
      other: the term that, together with `reference`, says what is shared.
      axis_name: mapped axis over which gradients are averaged.

    Returns:
      For each term float32 `[]`: `trunk_norm/TERM`, the norm of its gradient on the trunk; `trunk_share/TERM`, that
      norm over the sum of all; `trunk_cosine/TERM`, the cosine with the gradient of `reference` (0 where a gradient
      is 0).

    Raises:
      ValueError: `terms` has no term of the name `reference` or `other`.

    >>> terms = lambda w: {"policy": w @ jnp.array([3.0, 4.0]), "value": w @ jnp.array([5.0, 0.0])}
    >>> {name: round(float(x), 2) for name, x in trunk_gradients(terms, jnp.zeros(2)).items() if "value" in name}
    {'trunk_norm/value': 5.0, 'trunk_share/value': 0.5, 'trunk_cosine/value': 0.6}
    """
    values, pull_back = jax.vjp(terms, params)
    names = sorted(values)
    first, second = names.index(reference), names.index(other)
    units = dict(zip(names, jnp.eye(len(names), dtype=jnp.float32), strict=True))
    (gradients,) = jax.vmap(pull_back)(units)  # leaves [terms, ...]
    if axis_name is not None:
        gradients = jax.lax.pmean(gradients, axis_name)
    products = jnp.zeros((len(names), len(names)))
    for leaf in jax.tree.leaves(gradients):
        rows = leaf.reshape(len(names), -1).astype(jnp.float32)
        shared = jnp.any(rows[first] != 0) & jnp.any(rows[second] != 0)
        products += jnp.where(shared, rows @ rows.T, 0.0)
    norms = jnp.sqrt(jnp.diag(products))
    shares = _ratio(norms, jnp.sum(norms))
    cosines = _ratio(products[first], norms * norms[first])
    kinds = {"trunk_norm": norms, "trunk_share": shares, "trunk_cosine": cosines}
    return {f"{kind}/{name}": x[i] for kind, x in kinds.items() for i, name in enumerate(names)}


def effective_rank(features: jax.Array) -> jax.Array:
    """The effective rank of features: the exponential of the entropy of their normalised singular values.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.

    Args:
      features: float `[N..., D]`.

    Returns:
      float32 `[]`, from 1 to D; 0 if all features are 0.

    >>> float(effective_rank(jnp.eye(4)))
    4.0
    """
    x = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
    singular = jnp.sqrt(jnp.clip(jnp.linalg.eigvalsh(x.T @ x), 0.0))
    share = _ratio(singular, jnp.sum(singular))
    entropy = -jnp.sum(jax.scipy.special.xlogy(share, share))
    return jnp.where(jnp.any(x != 0), jnp.exp(entropy), 0.0)


def dormant_share(features: jax.Array, threshold: float = DORMANT) -> jax.Array:
    """The share of features whose mean size is at most `threshold` times that of the average feature.

    Source: Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", definition 3.1.

    Args:
      features: float `[N..., D]`.
      threshold: tau of the definition.

    Returns:
      float32 `[]`, from 0 to 1.

    >>> float(dormant_share(jnp.array([[1.0, 0.0], [-1.0, 0.0]])))
    0.5
    """
    size = jnp.mean(jnp.abs(features.reshape(-1, features.shape[-1]).astype(jnp.float32)), axis=0)
    return jnp.mean(size <= threshold * jnp.mean(size), dtype=jnp.float32)


def noise_by_layer(params: PyTree) -> Metrics:
    """The mean size of `kernel_sigma` in each noisy layer, as `noise_sigma/LAYER`."""
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), x)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    end = "/kernel_sigma"
    return {
        f"noise_sigma/{name.removesuffix(end)}": jnp.mean(jnp.abs(x)).astype(jnp.float32)
        for name, x in leaves
        if name.endswith(end)
    }


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x / y`, 0 where `y` is 0."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), 0.0)
