"""The losses of actor-critic agents with the UNREAL auxiliary tasks, and of autoencoders.

Each loss takes arrays and returns `(loss, metrics)`: a float32 scalar and a dict of float32 scalars, ready
for `jax.value_and_grad(..., has_aux=True)`. What they share:

- `N` stands for any leading axes, `[B]` or `[T, B]`, `A` for actions.
- Actions are int `[N]` or one-hot `[N, A]`, with a dict action space pytrees of them, as in `categorical`.
- Actions, advantages, returns, old logits and targets are behind `stop_gradient`.
- `where`, bool `[N]`: True includes. Means divide by what was included, an empty mask gives 0, and what an
  excluded row contains (padding, even NaN) touches neither the loss nor its gradient.
- `axis_name`: the mapped axis over which the caller averages losses and gradients with `jax.lax.pmean`. Every
  masked mean then divides by the mean count of the devices, so that this average is what one device would
  compute for the whole batch. Without a mask the counts are equal and the name changes nothing. `jax.shard_map`
  needs `check_vma=False` for it: otherwise it has already added up the gradients of replicated parameters,
  and they come out once for each device.
- An action taken must be possible: where its logit is -inf, the loss is infinite or NaN.
- Derivatives are taken in reverse, by `jax.grad`; see `categorical`.
- Hyper-parameters may be traced, so a population can be mapped over them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from btnn_jax._types import PyTree
from btnn_jax.ops.categorical import log_prob, log_prob_and_entropy, matching_leaves, one_hot
from btnn_jax.ops.statistics import (
    AxisName,
    check_rows,
    check_where,
    explained_variance,
    float32,
    masked_mean,
)

__all__ = [
    "AxisName",
    "aac_loss",
    "ae_loss",
    "beta_vae_loss",
    "explained_variance",
    "masked_mean",
    "pc_loss",
    "ppo_loss",
    "rp_loss",
    "value_fn_loss",
]

Metrics = dict[str, Array]

# Clamp the log-ratio so that `exp` cannot overflow.
_MAX_LOG_RATIO = 20.0


def aac_loss(
    actions: PyTree,
    advantages: Array,
    returns: Array,
    logits: PyTree,
    values: Array,
    *,
    entropy_beta: ArrayLike = 0.01,
    value_weight: ArrayLike = 0.5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Array, Metrics]:
    """Advantage actor-critic loss.

    `mean(-log pi(a) advantage) + value_weight mean((return - value)^2) - entropy_beta mean(entropy)`

    Source: Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", section 4.

    Args:
      actions: int `[N]` or one-hot `[N, A]`, or a pytree of them.
      advantages: float `[N]`.
      returns: float `[N]`, what `values` should become.
      logits: float `[N, A]`, or a pytree of them.
      values: float `[N]`.
      entropy_beta: weight of the entropy bonus, per nat.
      value_weight: weight of the squared error of the values.
      where: bool `[N]`, True = include.
      axis_name: mapped axis over which the caller averages.

    Returns:
      The loss, float32 `[]`, and metrics `policy_loss`, `value_loss`, `entropy`, before their weights.

    Raises:
      ValueError: if structures or shapes do not match.

    >>> zeros = jnp.zeros(2)
    >>> loss, metrics = aac_loss(jnp.array([0, 1]), zeros, zeros, jnp.zeros((2, 4)), zeros, entropy_beta=1.0)
    >>> loss
    Array(-1.3862944, dtype=float32)
    """
    check_rows(advantages=advantages, returns=returns, values=values)
    check_where(where, values.shape)
    actions, advantages, returns = jax.lax.stop_gradient((actions, advantages, returns))
    actions, advantages, returns, logits, values = _included(
        where, (actions, advantages, returns, logits, values)
    )
    mean = functools.partial(masked_mean, where=where, axis_name=axis_name)

    log_probs, entropies = log_prob_and_entropy(logits, actions, values.shape)
    return _actor_critic(
        policy_loss=-mean(log_probs * float32(advantages)),
        value_loss=mean(_squared_error(returns, values)),
        entropy=mean(entropies),
        entropy_beta=entropy_beta,
        value_weight=value_weight,
    )


def ppo_loss(
    actions: PyTree,
    advantages: Array,
    returns: Array,
    logits: PyTree,
    values: Array,
    old_logits: PyTree | None = None,
    *,
    old_log_probs: PyTree | None = None,
    old_values: Array | None = None,
    entropy_beta: ArrayLike = 0.01,
    epsilon: ArrayLike = 0.2,
    value_epsilon: ArrayLike | None = None,
    value_weight: ArrayLike = 1.0,
    where: Array | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Array, Metrics]:
    """Proximal policy optimization loss with a clipped ratio `r = pi(a) / pi_old(a)`.

    `-mean(min(r advantage, clip(r, 1 - epsilon, 1 + epsilon) advantage))
    + value_weight mean((return - value)^2) - entropy_beta mean(entropy)`

    With `old_values` and `value_epsilon` the value error is the larger one of `(return - value)^2` and
    `(return - clipped)^2`, where `clipped` is the value kept within `value_epsilon` of the old one.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equations 7 and 9. A ratio above
    exp(20) is clamped to it and has no gradient.

    Args:
      actions: int `[N]` or one-hot `[N, A]`, or a pytree of them.
      advantages: float `[N]`.
      returns: float `[N]`, what `values` should become.
      logits: float `[N, A]`, or a pytree of them.
      values: float `[N]`.
      old_logits: like `logits`, of the policy that took the actions.
      old_log_probs: in place of `old_logits`, the log-probabilities of the actions under that policy: float `[N]`, the
        sum over all heads, or a pytree like `actions` with `[N]` for each head.
      old_values: float `[N]`, the values when the actions were taken; with `value_epsilon`.
      entropy_beta: weight of the entropy bonus, per nat.
      epsilon: how far the ratio may move from 1 before it gains nothing.
      value_epsilon: how far a value may move from the old one before it gains nothing, in units of the returns; None
        does not clip values.
      value_weight: weight of the squared error of the values. Its default is the paper's c1 for Atari, that of
        `aac_loss` is A3C's: the two were published with different weights.
      where: bool `[N]`, True = include.
      axis_name: mapped axis over which the caller averages.

    Returns:
      The loss, float32 `[]`, and metrics: `policy_loss`, `value_loss`, `entropy`, before their weights;
      `approx_kl`, the estimate `mean(r - 1 - log r)` of KL(old || new) from the actions taken (never
      negative, see `kl_divergence` for the exact one); `clip_fraction`, the share of ratios outside `1 +-
      epsilon`.

    Raises:
      ValueError: if structures or shapes do not match, if not exactly one of `old_logits` and `old_log_probs` is
        given, or only one of `old_values` and `value_epsilon`.
    """
    rows = {"advantages": advantages, "returns": returns, "values": values}
    if (old_values is None) != (value_epsilon is None):
        raise ValueError("expected old_values and value_epsilon together, got one of them")
    check_rows(**rows if old_values is None else {**rows, "old_values": old_values})
    check_where(where, values.shape)
    old = _check_old(actions, logits, values.shape, old_logits, old_log_probs)
    actions, advantages, returns, old, old_values = jax.lax.stop_gradient(
        (actions, advantages, returns, old, old_values)
    )
    actions, advantages, returns, logits, values, old, old_values = _included(
        where, (actions, advantages, returns, logits, values, old, old_values)
    )
    mean = functools.partial(masked_mean, where=where, axis_name=axis_name)

    log_probs, entropies = log_prob_and_entropy(logits, actions, values.shape)
    if old_logits is None:
        old = functools.reduce(jnp.add, [float32(x) for x in jax.tree.leaves(old)])
    else:
        old = log_prob_and_entropy(old, actions, values.shape)[0]
    log_ratios = jnp.minimum(log_probs - old, _MAX_LOG_RATIO)
    ratios = jnp.exp(log_ratios)
    advantages = float32(advantages)
    # The minimum of both products, told by the advantage's sign: one bound can bind.
    bounded = jnp.where(
        advantages >= 0, jnp.minimum(ratios, 1.0 + epsilon), jnp.maximum(ratios, 1.0 - epsilon)
    )
    value_errors = _squared_error(returns, values)
    if old_values is not None and value_epsilon is not None:
        moved = float32(values) - float32(old_values)
        clipped = float32(old_values) + jnp.clip(moved, -jnp.asarray(value_epsilon), value_epsilon)
        value_errors = jnp.maximum(value_errors, _squared_error(returns, clipped))
    loss, metrics = _actor_critic(
        policy_loss=-mean(bounded * advantages),
        value_loss=mean(value_errors),
        entropy=mean(entropies),
        entropy_beta=entropy_beta,
        value_weight=value_weight,
    )
    metrics["approx_kl"] = mean(ratios - 1.0 - log_ratios)
    metrics["clip_fraction"] = mean(float32(jnp.abs(ratios - 1.0) > epsilon))
    return loss, metrics


def value_fn_loss(
    returns: Array, values: Array, *, where: Array | None = None, axis_name: AxisName | None = None
) -> tuple[Array, Metrics]:
    """Squared error of a value function, `mean((return - value)^2)`; UNREAL's value replay.

    Source: Jaderberg et al. 2016, "Reinforcement Learning with Unsupervised Auxiliary Tasks", section 3.3.

    Args:
      returns: float `[N]`.
      values: float `[N]`.
      where: bool `[N]`, True = include.
      axis_name: mapped axis over which the caller averages.

    Returns:
      The loss, float32 `[]`, and metric `value_loss`.

    Raises:
      ValueError: if shapes do not match.
    """
    check_rows(returns=returns, values=values)
    check_where(where, values.shape)
    returns, values = _included(where, (jax.lax.stop_gradient(returns), values))
    loss = masked_mean(_squared_error(returns, values), where, axis_name=axis_name)
    return loss, {"value_loss": loss}


def pc_loss(
    actions: PyTree,
    targets: PyTree,
    q: PyTree,
    *,
    where: Array | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Array, Metrics]:
    """Pixel control loss, `mean over N of the sum over the grid of (target - q[action])^2`.

    Source: Jaderberg et al. 2016, "Reinforcement Learning with Unsupervised Auxiliary Tasks", section 3.1.

    Args:
      actions: int `[N]` or one-hot `[N, A]`, or a pytree of them.
      targets: float `[N, h, w]`, returns of the pixel changes (`targets.pixel_control_targets`).
      q: float `[N, h, w, A]`. For a dict action space all three are pytrees of the same structure.
      where: bool `[N]`, True = include.
      axis_name: mapped axis over which the caller averages.

    Returns:
      The loss, float32 `[]`, and metric `pixel_control_loss`.

    Raises:
      ValueError: if structures or shapes do not match.
    """
    pairs = matching_leaves("actions", actions, "q", q)
    grids = [target for target, _ in matching_leaves("targets", targets, "q", q)]
    loss = jnp.float32(0.0)
    for (action, values), target in zip(pairs, grids, strict=True):
        if values.ndim < 3 or target.shape != values.shape[:-1]:
            raise ValueError(
                f"expected targets [N, h, w] and q [N, h, w, A], got {target.shape} and {values.shape}"
            )
        rows = values.shape[:-3]
        check_where(where, rows)
        action, target, values = _included(where, (*jax.lax.stop_gradient((action, target)), values))
        chosen = one_hot(action, (*rows, values.shape[-1]))
        # A product of matrices is up to five times as fast as a sum over so short an axis.
        chosen_values = jnp.einsum("...hwa,...a->...hw", float32(values), chosen, precision="highest")
        errors = float32(target) - chosen_values
        loss += masked_mean(jnp.sum(jnp.square(errors), axis=(-2, -1)), where, axis_name=axis_name)
    return loss, {"pixel_control_loss": loss}


def rp_loss(
    targets: Array, logits: Array, *, where: Array | None = None, axis_name: AxisName | None = None
) -> tuple[Array, Metrics]:
    """Reward prediction loss, the cross-entropy `mean(-log softmax(logits)[target])`.

    Source: Jaderberg et al. 2016, "Reinforcement Learning with Unsupervised Auxiliary Tasks", section 3.2.
    BTGym looks at the first row only; a batch of one row is where both agree.

    Args:
      targets: classes, int `[N]` (`targets.reward_class`) or one-hot `[N, K]`.
      logits: float `[N, K]`.
      where: bool `[N]`, True = include.
      axis_name: mapped axis over which the caller averages.

    Returns:
      The loss, float32 `[]`, and metrics `reward_prediction_loss` and `reward_prediction_accuracy`.

    Raises:
      ValueError: if shapes do not match.
    """
    rows = logits.shape[:-1]
    check_where(where, rows)
    targets, logits = _included(where, (jax.lax.stop_gradient(targets), logits))
    mean = functools.partial(masked_mean, where=where, axis_name=axis_name)
    loss = -mean(log_prob(logits, targets))
    hits = jnp.argmax(logits, axis=-1) == jnp.argmax(one_hot(targets, logits.shape), axis=-1)
    return loss, {"reward_prediction_loss": loss, "reward_prediction_accuracy": mean(float32(hits))}


def ae_loss(
    targets: PyTree,
    reconstructions: PyTree,
    *,
    alpha: ArrayLike = 1.0,
    where: Array | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Array, Metrics]:
    """Autoencoder loss, `alpha sum over streams of mean((target - reconstruction)^2)`.

    Args:
      targets: float `[N, ...]`, or a pytree of streams; uint8 means pixels 0..255 and is divided by 255.
      reconstructions: the same structure and shapes.
      alpha: weight of the reconstruction.
      where: bool `[N]`, True = include.
      axis_name: mapped axis over which the caller averages.

    Returns:
      The loss, float32 `[]`, and metric `reconstruction_loss`, before its weight.

    Raises:
      ValueError: if structures or shapes do not match.
    """
    loss = jnp.float32(0.0)
    for target, reconstruction in matching_leaves("targets", targets, "reconstructions", reconstructions):
        if target.shape != reconstruction.shape:
            raise ValueError(
                f"expected equal shapes, got targets {target.shape}, reconstructions {reconstruction.shape}"
            )
        target, reconstruction = _included(where, (jax.lax.stop_gradient(target), reconstruction))
        pixels = float32(target) / 255.0 if target.dtype == jnp.uint8 else target
        loss += masked_mean(_squared_error(pixels, reconstruction), where, axis_name=axis_name)
    return alpha * loss, {"reconstruction_loss": loss}


def beta_vae_loss(
    targets: PyTree,
    reconstructions: PyTree,
    d_kl: Array,
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 1.0,
    kl_reduction: str = "sum",
    where: Array | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Array, Metrics]:
    """Loss of a beta-VAE, `alpha reconstruction error + beta mean over N of KL(posterior || prior)`.

    Source: Higgins et al. 2017, "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational
    Framework", equation 4.

    Args:
      targets: float `[N, ...]`, or a pytree of streams, as in `ae_loss`.
      reconstructions: the same structure and shapes.
      d_kl: float `[N, latent]`, the divergence of each latent variable, in nats.
      alpha: weight of the reconstruction.
      beta: weight of the divergence.
      kl_reduction: over the latent variables: "sum", as in the paper, or "mean", as in BTGym.
      where: bool `[N]`, True = include.
      axis_name: mapped axis over which the caller averages.

    Returns:
      The loss, float32 `[]`, and metrics `reconstruction_loss` and `kl`, before their weights.

    Raises:
      ValueError: if structures or shapes do not match, or `kl_reduction` is unknown.
    """
    if kl_reduction not in ("sum", "mean"):
        raise ValueError(f'kl_reduction is "sum" or "mean", got {kl_reduction!r}')
    for target in jax.tree.leaves(targets):
        if d_kl.ndim < 2 or target.shape[: d_kl.ndim - 1] != d_kl.shape[:-1]:
            raise ValueError(
                f"expected d_kl [N, latent] for targets [N, ...] {target.shape}, got {d_kl.shape}"
            )
    kl = float32(_included(where, d_kl))
    kl = masked_mean(jnp.sum(kl, axis=-1) if kl_reduction == "sum" else kl, where, axis_name=axis_name)
    loss, metrics = ae_loss(targets, reconstructions, alpha=alpha, where=where, axis_name=axis_name)
    return loss + beta * kl, metrics | {"kl": kl}


def _actor_critic(
    *, policy_loss: Array, value_loss: Array, entropy: Array, entropy_beta: ArrayLike, value_weight: ArrayLike
) -> tuple[Array, Metrics]:
    loss = policy_loss + value_weight * value_loss - entropy_beta * entropy
    return loss, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}


def _check_old(
    actions: PyTree, logits: PyTree, rows: tuple[int, ...], old_logits: PyTree, old_log_probs: PyTree
) -> PyTree:
    """The one of `old_logits` and `old_log_probs` that is given, if its shapes are right."""
    if (old_logits is None) == (old_log_probs is None):
        both = "neither" if old_logits is None else "both"
        raise ValueError(f"expected one of old_logits and old_log_probs, got {both}")
    if old_logits is not None:
        for old, new in matching_leaves("old_logits", old_logits, "logits", logits):
            if old.shape != new.shape:
                raise ValueError(
                    f"expected old_logits of the shape of logits, {new.shape}, got {old.shape}; log-probabilities of "
                    "the actions are passed as old_log_probs"
                )
        return old_logits
    if not hasattr(old_log_probs, "shape"):
        matching_leaves("old_log_probs", old_log_probs, "actions", actions)
    for old in jax.tree.leaves(old_log_probs):
        if old.shape != rows:
            raise ValueError(f"expected old_log_probs of the shape of values, {rows}, got {old.shape}")
    return old_log_probs


def _squared_error(target: Array, estimate: Array) -> Array:
    return jnp.square(float32(target) - float32(estimate))


def _included(where: Array | None, tree: Any) -> Any:
    """`tree` with excluded rows set to 0, so that whatever they held cannot reach a gradient."""
    if where is None:
        return tree

    def leaf(x: Array) -> Array:
        check_where(where, x.shape[: where.ndim])
        return jnp.where(jnp.expand_dims(where, range(where.ndim, x.ndim)), x, jnp.zeros_like(x))

    return jax.tree.map(leaf, tree)
