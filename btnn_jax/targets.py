"""Learning targets: returns, advantages, V-trace, pixel-control returns, reward classes.

Everything is time-major: row t of `[T, ...]` belongs to the step that left observation `s_t`, any further
axes are batch. What the functions share:

- `rewards[t]` came with the step from `s_t`; `values[t]` is `V(s_t)`; `next_values[t]` is the value of the
  observation that this step led to, before any reset (`next_values` builds it).
- `terminated[t]`: the episode ended by the task's own rule, nothing is worth anything after step t.
- `truncated[t]`: nothing is accumulated past step t, which bootstraps from `next_values[t]`. That is an
  episode cut by a time limit, and just as well the end of what a replay remembers (`window_mask`). The last
  row is always such an end.
- `discount` and `lambda_` are scalars, possibly traced, or `[T, ...]`.
- Results are float32 and behind `stop_gradient`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from btnn_jax.ops.statistics import float32

__all__ = [
    "discounted_returns",
    "gae",
    "lambda_returns",
    "n_step_returns",
    "next_values",
    "pixel_control_targets",
    "reward_class",
    "vtrace",
    "window_mask",
]


def next_values(
    values: Array, last_value: ArrayLike, truncated: Array | None = None, final_values: Array | None = None
) -> Array:
    """Values of what each step led to: `V(s_{t+1})`, or `V(final observation)` where the episode was cut.

    Args:
      values: float `[T, ...]`, V(s_t) for t in [0, T).
      last_value: float `[...]`, V(s_T), of the observation to go on from after the last step.
      truncated: bool `[T, ...]`; where it is set, `s_{t+1}` already belongs to the next episode.
      final_values: float `[T, ...]`, values of the final observations; read where `truncated` is set.

    Returns:
      float32 `[T, ...]`. Where an episode terminated it is the value of another episode's start, which the
      other functions here do not use.

    Raises:
      ValueError: if shapes do not match or only one of `truncated` and `final_values` is given.

    >>> next_values(jnp.array([1.0, 2.0, 3.0]), jnp.array(4.0))
    Array([2., 3., 4.], dtype=float32)
    """
    last_value = jnp.asarray(last_value)
    _check("values", values, values)
    if last_value.shape != values.shape[1:]:
        raise ValueError(f"expected last_value {values.shape[1:]}, got {last_value.shape}")
    shifted = jnp.concatenate([float32(values)[1:], float32(last_value)[None]])
    if truncated is not None and final_values is not None:
        _check("final_values", final_values, values)
        _check_flags(values, truncated=truncated)
        shifted = jnp.where(truncated, float32(final_values), shifted)
    elif truncated is not None or final_values is not None:
        raise ValueError("expected truncated and final_values together, got one of them")
    return jax.lax.stop_gradient(shifted)


def window_mask(where: Array, terminated: Array, truncated: Array) -> tuple[Array, Array]:
    """Which steps of a replayed window can be learned from, and where their returns must be cut.

    A step can be learned from if it is part of the window and what it led to is known: either the episode
    terminated, or the next step of the window holds the observation. Another step, the last of a window or
    the last before a time limit, serves the step before it as the observation to bootstrap from.

    Use it as `learn, cut = window_mask(where, terminated, truncated)`, then pass `cut` for `truncated` and
    `next_values(values, values[-1])` for `next_values`, and `learn` as the losses' `where`. Results at steps
    that are not in `learn` mean nothing.

    Args:
      where: bool `[T, ...]`, the steps that belong to the window.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.

    Returns:
      `learn`, bool `[T, ...]`, and `cut`, bool `[T, ...]`, True where the following step is not in `learn`.

    Raises:
      ValueError: if shapes or dtypes do not match.

    >>> no = jnp.zeros(4, bool)
    >>> learn, cut = window_mask(jnp.array([True, True, True, False]), no, no)
    >>> learn, cut
    (Array([ True,  True, False, False], dtype=bool), Array([False,  True,  True,  True], dtype=bool))
    """
    _check_flags(where, where=where, terminated=terminated, truncated=truncated)
    learn = where & (terminated | (~truncated & _following(where)))
    return learn, ~_following(learn)


def discounted_returns(
    rewards: Array, next_values: Array, terminated: Array, truncated: Array, *, discount: ArrayLike
) -> Array:
    """Discounted sum of rewards, `G_t = r_t + discount G_{t+1}`, bootstrapped where cut.

    Args:
      rewards: float `[T, ...]`.
      next_values: float `[T, ...]`, read where the return is cut.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: per step, a scalar or `[T, ...]`.

    Returns:
      float32 `[T, ...]`.

    Raises:
      ValueError: if shapes do not match.

    >>> no = jnp.zeros(3, bool)
    >>> discounted_returns(jnp.ones(3), jnp.zeros(3), no, no, discount=0.5)
    Array([1.75, 1.5 , 1.  ], dtype=float32)
    """
    return lambda_returns(rewards, next_values, terminated, truncated, discount=discount, lambda_=1.0)


def n_step_returns(
    rewards: Array, next_values: Array, terminated: Array, truncated: Array, *, discount: ArrayLike, n: int
) -> Array:
    """Rewards of at most `n` steps, then the value: `G_t = r_t + ... + discount^n V(s_{t+n})`.

    Source: Sutton and Barto 2018, "Reinforcement Learning: An Introduction", equation 7.1.

    Args:
      rewards: float `[T, ...]`.
      next_values: float `[T, ...]`.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: per step, a scalar or `[T, ...]`.
      n: number of rewards, at least 1, static; the work grows with it.

    Returns:
      float32 `[T, ...]`; fewer than `n` rewards where the return is cut.

    Raises:
      ValueError: if shapes do not match or `n` is less than 1.
    """
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
    _check_steps(rewards, next_values, terminated, truncated)
    rewards, next_values = float32(rewards), float32(next_values)
    discounts = _discounts(discount, terminated)

    def longer(_: int, returns: Array) -> Array:
        following = jnp.concatenate([returns[1:], next_values[-1:]])
        return rewards + _weighted(discounts, jnp.where(truncated, next_values, following))

    returns = rewards + _weighted(discounts, next_values)
    return jax.lax.stop_gradient(jax.lax.fori_loop(1, min(n, rewards.shape[0]), longer, returns))


def lambda_returns(
    rewards: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    *,
    discount: ArrayLike,
    lambda_: ArrayLike,
) -> Array:
    """Mixture of n-step returns, `G_t = r_t + discount ((1 - lambda) V(s_{t+1}) + lambda G_{t+1})`.

    Source: Sutton and Barto 2018, "Reinforcement Learning: An Introduction", section 12.1.

    Args:
      rewards: float `[T, ...]`.
      next_values: float `[T, ...]`.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: per step, a scalar or `[T, ...]`.
      lambda_: 0 bootstraps after one step, 1 where the return is cut; a scalar or `[T, ...]`.

    Returns:
      float32 `[T, ...]`.

    Raises:
      ValueError: if shapes do not match.
    """
    _check_steps(rewards, next_values, terminated, truncated)
    discounts = _discounts(discount, terminated)
    mix = jnp.broadcast_to(_carried(lambda_, truncated), rewards.shape).at[-1].set(0.0)
    gains = float32(rewards) + _weighted(discounts * (1.0 - mix), next_values)
    return jax.lax.stop_gradient(_accumulate(gains, discounts * mix))


def gae(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    *,
    discount: ArrayLike,
    lambda_: ArrayLike,
) -> tuple[Array, Array]:
    """Generalised advantage estimation, `A_t = delta_t + discount lambda A_{t+1}`.

    Here `delta_t = r_t + discount V(s_{t+1}) - V(s_t)`. It is the lambda-return minus `V(s_t)` where
    `next_values[t]` is `values[t + 1]`, as it is of one network.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", equation 16.

    Args:
      rewards: float `[T, ...]`.
      values: float `[T, ...]`.
      next_values: float `[T, ...]`.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: per step, a scalar or `[T, ...]`.
      lambda_: 0 gives the one-step error, 1 the Monte-Carlo advantage; a scalar or `[T, ...]`.

    Returns:
      Advantages, and advantages + values (returns to learn the values from), both float32 `[T, ...]`.

    Raises:
      ValueError: if shapes do not match.

    >>> no = jnp.zeros(2, bool)
    >>> advantages, returns = gae(jnp.ones(2), jnp.ones(2), jnp.ones(2), no, no, discount=0.5, lambda_=1.0)
    >>> advantages, returns
    (Array([0.75, 0.5 ], dtype=float32), Array([1.75, 1.5 ], dtype=float32))
    """
    _check_steps(rewards, next_values, terminated, truncated)
    _check("values", values, rewards)
    values = float32(values)
    discounts = _discounts(discount, terminated)
    errors = float32(rewards) + _weighted(discounts, next_values) - values
    advantages = _accumulate(errors, discounts * _carried(lambda_, truncated))
    return jax.lax.stop_gradient((advantages, advantages + values))


def vtrace(
    log_ratios: Array,
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    *,
    discount: ArrayLike,
    lambda_: ArrayLike = 1.0,
    clip_rho: ArrayLike = 1.0,
    clip_c: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    """V-trace targets and advantages, from steps that an older policy took.

    `v_t = V(s_t) + rho_t delta_t + discount c_t (v_{t+1} - V(s_{t+1}))` and
    `advantage_t = rho_t (r_t + discount v_{t+1} - V(s_t))`, where `rho = min(clip_rho, ratio)`,
    `c = lambda min(clip_c, ratio)` and `delta_t = r_t + discount V(s_{t+1}) - V(s_t)`.

    Source: Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner
    Architectures", section 4.1 and remark 2.

    Args:
      log_ratios: float `[T, ...]`, log-probability of the action now minus when it was taken.
      rewards: float `[T, ...]`.
      values: float `[T, ...]`.
      next_values: float `[T, ...]`.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: per step, a scalar or `[T, ...]`.
      lambda_: a scalar or `[T, ...]`.
      clip_rho: bound of the ratio that decides which policy's values are learned; a scalar or `[T, ...]`.
      clip_c: bound of the ratio that decides how far errors travel back; a scalar or `[T, ...]`.

    Returns:
      Targets for the values and advantages for the policy, both float32 `[T, ...]`. On-policy the targets are
      the lambda-returns, where `next_values[t]` is `values[t + 1]`.

    Raises:
      ValueError: if shapes do not match.
    """
    _check_steps(rewards, next_values, terminated, truncated)
    _check("values", values, rewards)
    _check("log_ratios", log_ratios, rewards)
    rewards, values, next_values = float32(rewards), float32(values), float32(next_values)
    ratios = jnp.exp(float32(log_ratios))
    rhos = jnp.minimum(ratios, _per_step(clip_rho, rewards))
    carried = _carried(lambda_, truncated) * jnp.minimum(ratios, _per_step(clip_c, rewards))
    discounts = _discounts(discount, terminated)
    errors = rhos * (rewards + _weighted(discounts, next_values) - values)
    targets = values + _accumulate(errors, discounts * carried)
    # Within a return the target of the next step takes the place of its value.
    changes = jnp.where(truncated[:-1], 0.0, targets[1:] - next_values[:-1])
    changes = rhos[:-1] * _weighted(discounts[:-1], changes)
    advantages = jnp.concatenate([errors[:-1] + changes, errors[-1:]])
    return jax.lax.stop_gradient((targets, advantages))


def pixel_control_targets(
    pixel_changes: Array, next_q: Array, terminated: Array, truncated: Array, *, discount: ArrayLike = 0.9
) -> Array:
    """Returns of the pixel changes, up to where the window is cut: `G_t = change_t + discount G_{t+1}`.

    Source: Jaderberg et al. 2016, "Reinforcement Learning with Unsupervised Auxiliary Tasks", section 3.1.

    Args:
      pixel_changes: float `[T, ..., h, w]`, from observation t to what the step led to.
      next_q: largest action value of each cell, read where the return is cut: float `[T, ..., h, w]` after
        every step, or `[..., h, w]` when there is one place to cut, the window's end.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: per step, a scalar or `[T, ...]`.

    Returns:
      float32 `[T, ..., h, w]`.

    Raises:
      ValueError: if shapes do not match.
    """
    if pixel_changes.shape[:-2] != terminated.shape:
        raise ValueError(
            f"expected pixel_changes [T, ..., h, w], [T, ...] = {terminated.shape}, got {pixel_changes.shape}"
        )
    if next_q.shape == pixel_changes.shape[1:]:
        next_q = jnp.broadcast_to(next_q[None], pixel_changes.shape)
    _check("next_q", next_q, pixel_changes)
    cells = [jnp.broadcast_to(x[..., None, None], pixel_changes.shape) for x in (terminated, truncated)]
    return discounted_returns(pixel_changes, next_q, *cells, discount=discount)


def reward_class(rewards: Array, threshold: ArrayLike = 0.0) -> Array:
    """Class of a reward, in the order of UNREAL and BTGym: 0 zero, 1 positive, 2 negative.

    Source: Jaderberg et al. 2016, "Reinforcement Learning with Unsupervised Auxiliary Tasks", section 3.2.

    Args:
      rewards: float `[N]`.
      threshold: rewards up to this size, of either sign, count as zero.

    Returns:
      int32 `[N]`.

    >>> reward_class(jnp.array([0.0, 2.0, -3.0]))
    Array([0, 1, 2], dtype=int32)
    """
    rewards = float32(rewards)
    return jnp.where(rewards > threshold, 1, jnp.where(-rewards > threshold, 2, 0)).astype(jnp.int32)


def _accumulate(gains: Array, decays: Array) -> Array:
    """`G_t = gains_t + decays_t G_{t+1}` over the first axis, from 0 after the last row; summed in place.

    Where a decay is 0 the following total is not used, whatever it holds, NaN and infinity included.
    """

    def step(steps: int, totals: Array) -> Array:
        t = len(gains) - 1 - steps
        total = _row(totals, t) + _weighted(_row(decays, t), _row(totals, t + 1))
        return jax.lax.dynamic_update_index_in_dim(totals, total, t, axis=0)

    return jax.lax.fori_loop(1, len(gains), step, gains)


def _row(x: Array, t: ArrayLike) -> Array:
    return jax.lax.dynamic_index_in_dim(x, t, keepdims=False)


def _weighted(weights: Array, values: Array) -> Array:
    """`weights * values`, 0 where the weight is: a value that is not used may be anything, even NaN."""
    return jnp.where(weights == 0, 0.0, weights * float32(values))


def _discounts(discount: ArrayLike, terminated: Array) -> Array:
    """`discount`, 0 where the episode terminated, `[T, ...]`."""
    return jnp.where(terminated, 0.0, _per_step(discount, terminated))


def _carried(lambda_: ArrayLike, truncated: Array) -> Array:
    """`lambda_`, 0 where nothing may be accumulated, `[T, ...]`."""
    return jnp.where(truncated, 0.0, _per_step(lambda_, truncated))


def _per_step(x: ArrayLike, like: Array) -> Array:
    """A scalar, or an array of the shape of `like`, from one that may lack trailing axes."""
    x = float32(x)
    if x.ndim == 0:
        return x
    if x.shape != like.shape[: x.ndim]:
        raise ValueError(f"expected a scalar or an array whose shape starts {like.shape}, got {x.shape}")
    return jnp.broadcast_to(jnp.expand_dims(x, range(x.ndim, like.ndim)), like.shape)


def _following(flags: Array) -> Array:
    return jnp.concatenate([flags[1:], jnp.zeros_like(flags[:1])])


def _check_steps(rewards: Array, next_values: Array, terminated: Array, truncated: Array) -> None:
    _check("next_values", next_values, rewards)
    _check_flags(rewards, terminated=terminated, truncated=truncated)


def _check(name: str, x: Array, like: Array) -> None:
    if x.shape != like.shape or like.ndim == 0:
        raise ValueError(f"expected {name} [T, ...] = {like.shape}, got {x.shape}")
    if like.shape[0] == 0:
        raise ValueError(f"expected {name} [T, ...] of at least one step, got {x.shape}")


def _check_flags(like: Array, **flags: Array) -> None:
    for name, flag in flags.items():
        if flag.shape != like.shape or flag.dtype != jnp.bool_:
            raise ValueError(f"expected {name} bool {like.shape}, got {flag.dtype} {flag.shape}")
