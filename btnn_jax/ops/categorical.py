"""Categorical policies over one action or a (nested) dict of independent ones.

Logits are float `[N, A]`, actions int `[N]` or one-hot `[N, A]`, with `N` any leading axes and `A` the number
of actions. For a dict action space both are pytrees of the same structure, one leaf per head; the heads are
independent, so everything here adds up over them. Results are float32 `[N]` whatever the logits are. A logit
of -inf rules an action out. An int outside of `0..A-1` is no action: its log-probability is 0, without gradient.
A single one-hot row `[A]` is refused, because `[N]` actions beside `[N]` log-probabilities look the same: add an axis.

Derivatives are taken in reverse (`jax.grad`, and forward over that); `jax.jvp` of `log_prob` itself raises.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from btnn_jax._types import PyTree

__all__ = ["entropy", "kl_divergence", "log_prob", "log_prob_and_entropy", "matching_leaves", "one_hot"]


def log_prob(logits: PyTree, actions: PyTree) -> Array:
    """Log-probability of actions: `sum over heads of log softmax(logits)[action]`.

    Args:
      logits: float `[N, A]`, or a pytree of them, one per head of a dict action space.
      actions: int `[N]` or one-hot `[N, A]`, or a matching pytree.

    Returns:
      float32 `[N]`.

    Raises:
      ValueError: if structures or shapes do not match.

    >>> log_prob(jnp.zeros((2, 4)), jnp.array([0, 3]))
    Array([-1.3862944, -1.3862944], dtype=float32)
    """
    return log_prob_and_entropy(logits, actions)[0]


def entropy(logits: PyTree) -> Array:
    """Entropy of a policy in nats: `-sum over heads and actions of p log p`.

    Args:
      logits: float `[N, A]`, or a pytree of them; -inf rules an action out (0 log 0 is 0).

    Returns:
      float32 `[N]`.

    >>> entropy(jnp.zeros((1, 4)))
    Array([1.3862944], dtype=float32)
    """
    heads = jax.tree.leaves(logits)
    _check_heads(heads)
    nothing = [_head(x, jnp.zeros_like(x)) for x in (jnp.asarray(head, jnp.float32) for head in heads)]
    return functools.reduce(jnp.add, [entropies for _, entropies in nothing])


def kl_divergence(logits_p: PyTree, logits_q: PyTree) -> Array:
    """Kullback-Leibler divergence `KL(p || q) = sum over heads and actions of p (log p - log q)`.

    Args:
      logits_p: float `[N, A]`, or a pytree of them.
      logits_q: the same structure and shapes.

    Returns:
      float32 `[N]`.

    Raises:
      ValueError: if structures or shapes do not match.
    """
    pairs = matching_leaves("logits_p", logits_p, "logits_q", logits_q)
    _check_heads([q for _, q in pairs])

    def head(p: Array, q: Array) -> Array:
        if p.shape != q.shape:
            raise ValueError(f"expected logits of one shape, got logits_p {p.shape} and logits_q {q.shape}")
        log_p, log_q = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32), axis=-1) for x in (p, q))
        possible = jnp.exp(log_p) > 0
        difference = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
        return jnp.sum(jnp.exp(log_p) * difference, axis=-1)

    return functools.reduce(jnp.add, [head(p, q) for p, q in pairs])


def log_prob_and_entropy(
    logits: PyTree, actions: PyTree, rows: tuple[int, ...] | None = None
) -> tuple[Array, Array]:
    """`log_prob` and `entropy` for the price of one; `rows` is the `N` to insist on."""
    pairs = matching_leaves("actions", actions, "logits", logits)
    _check_heads([head for _, head in pairs], rows)
    for action, head in pairs:
        if rows is None and jnp.ndim(action) == jnp.ndim(head) == 1:
            raise ValueError(
                f"expected logits [N, A] for actions [N], got logits {head.shape} and actions {action.shape} of "
                f"{action.dtype}; a single one-hot row needs an axis for N"
            )
    heads = [_head(jnp.asarray(head, jnp.float32), one_hot(action, head.shape)) for action, head in pairs]
    log_probs, entropies = zip(*heads, strict=True)
    return functools.reduce(jnp.add, log_probs), functools.reduce(jnp.add, entropies)


def _check_heads(heads: list[Array], rows: tuple[int, ...] | None = None) -> None:
    """A `ValueError` unless there are heads and all have the same `N`, that of `rows` if given."""
    if not heads:
        raise ValueError("expected at least one array of logits, got none")
    for head in heads:
        rows = head.shape[:-1] if rows is None else rows
        if not head.shape or not head.shape[-1]:
            raise ValueError(f"expected logits [N, A] of at least one action, got {head.shape}")
        if head.shape[:-1] != rows:
            raise ValueError(f"expected logits [N, A] with N = {rows}, got {head.shape}")


@jax.custom_vjp
def _head(logits: Array, chosen: Array) -> tuple[Array, Array]:
    """Log-probability of `chosen` (one-hot) and entropy of one head, both `[N]`, from one exponential."""
    return _head_forward(logits, chosen)[0]


def _head_forward(logits: Array, chosen: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    # Actions lead: sums over a short last axis leave a CPU's vector units idle, 2 to 4 times slower in all.
    logits, chosen = jnp.moveaxis(logits, -1, 0), jnp.moveaxis(chosen, -1, 0)
    shifted = logits - jnp.max(logits, axis=0)[None]
    weights = jnp.exp(shifted)
    total = jnp.sum(weights, axis=0)
    # Selects, because 0 times -inf, of an action that was not taken or cannot be, is to be 0.
    taken = jnp.sum(jnp.where(chosen > 0, chosen * shifted, 0.0), axis=0)
    shifted = jnp.where(weights > 0, shifted, 0.0)
    mean = jnp.sum(weights * shifted, axis=0) / total
    log_total = jnp.log(total)
    mass = jnp.sum(chosen, axis=0)  # 1, or 0 where no action was chosen
    return (taken - mass * log_total, log_total - mean), (chosen, shifted, weights, total, mean, mass)


def _head_backward(residuals: tuple[Array, ...], cotangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """`d log p[a] = sum((chosen - mass p) d logits)` and `d entropy = -sum(p (log p + entropy) d logits)`.

    By hand, because autodiff of `p log p` multiplies 0 by infinity at p = 0, and to share what both need.
    """
    chosen, shifted, weights, total, mean, mass = residuals
    for_log_prob, for_entropy = (cotangent[None] for cotangent in cotangents)
    p = weights * (1.0 / total)[None]
    # The shift cancels: log p + entropy = shifted - its mean under p.
    d_logits = for_log_prob * (chosen - mass[None] * p) - for_entropy * p * (shifted - mean[None])
    d_logits = jnp.moveaxis(d_logits, 0, -1)
    return d_logits, jnp.zeros_like(d_logits)


_head.defvjp(_head_forward, _head_backward)


def one_hot(actions: Array, shape: tuple[int, ...]) -> Array:
    """Actions as float32 of `shape`, the logits' `[N, A]`, from int `[N]` or one-hot `[N, A]`.

    Losses multiply with it where one might index, for the gradient of indexing is a slow scatter.

    Raises:
      ValueError: if the shape is neither, or integers are expected and the type is another.
    """
    if actions.shape == shape:
        return jnp.asarray(actions, jnp.float32)
    if actions.shape != shape[:-1] or not jnp.issubdtype(actions.dtype, jnp.integer):
        raise ValueError(f"expected int {shape[:-1]} or one-hot {shape}, got {actions.dtype} {actions.shape}")
    if actions.dtype.itemsize < 4:  # an 8-bit type cannot count 300 classes
        actions = actions.astype(jnp.int32)
    return jax.nn.one_hot(actions, shape[-1], dtype=jnp.float32)


def matching_leaves(name: str, tree: PyTree, like_name: str, like: PyTree) -> list[tuple[Array, Any]]:
    """Leaves of both trees, pair by pair; a `ValueError` if their structures differ or they hold no array."""
    leaves, found = jax.tree.flatten(tree)
    like_leaves, expected = jax.tree.flatten(like)
    if found != expected:  # type: ignore[operator]
        raise ValueError(f"expected {name} of the structure of {like_name}, {expected}, got {found}")
    if not leaves:
        raise ValueError(f"expected at least one array in {name} and {like_name}, got {tree!r}")
    return list(zip(leaves, like_leaves, strict=True))
