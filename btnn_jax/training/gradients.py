"""One gradient step, shared by the train steps of agents and of autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from btnn_jax._types import PyTree
from btnn_jax.losses import AxisName, Metrics

__all__ = ["Learner", "make_gradient_step", "mean_over_steps"]

Learner = tuple[PyTree, optax.OptState]  # parameters and the optimizer's state


def make_gradient_step(
    loss: Callable[..., tuple[jax.Array, Metrics]],
    optimizer: optax.GradientTransformation,
    *,
    axis_name: AxisName | None = None,
) -> Callable[..., tuple[Learner, tuple[Metrics, jax.Array]]]:
    """Binds a loss and an optimizer into one step that leaves a gradient out unless it is finite.

    Args:
      loss: `(params, *arguments) -> (loss, metrics)`.
      optimizer: its updates are multiplied by minus the learning rate here.
      axis_name: mapped axis over which gradients and metrics are averaged.

    Returns:
      `gradient_step(learner, learning_rate, *arguments) -> (learner, (metrics, skipped))`. The metrics are those of the
      loss and `gradient_norm`, before any clipping; all are 0 where `skipped`, bool `[]`, is set.
    """

    def gradient_step(
        learner: Learner, learning_rate: jax.Array, *arguments: Any
    ) -> tuple[Learner, tuple[Metrics, jax.Array]]:
        params, opt_state = learner
        gradients, metrics = jax.grad(loss, has_aux=True)(params, *arguments)
        if axis_name is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
        norm = optax.tree.norm(gradients)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float32 and int32
            updates, new_opt_state = optimizer.update(gradients, opt_state)
        updates = optax.tree.scale(-learning_rate, updates)
        # An update that is not finite would end the run; leaving it out costs one step.
        finite = jnp.isfinite(norm)
        learner = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(params, updates), new_opt_state),
            learner,
        )
        metrics = {name: jnp.where(finite, x, 0.0) for name, x in {**metrics, "gradient_norm": norm}.items()}
        return learner, (metrics, ~finite)

    return gradient_step


def mean_over_steps(metrics: Metrics, skipped: jax.Array) -> Metrics:
    """Means over the gradient steps that were made.

    Args:
      metrics: float32 `[steps]` each, 0 where `skipped`.
      skipped: bool `[steps]`.

    Returns:
      float32 `[]` each, 0 if all were skipped.
    """
    made = jnp.maximum(jnp.sum(~skipped, dtype=jnp.int32), 1).astype(jnp.float32)
    return {name: jnp.sum(x) / made for name, x in metrics.items()}
