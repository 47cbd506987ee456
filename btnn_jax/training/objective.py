"""The loss of one gradient step: the actor-critic loss and the losses of UNREAL's tasks."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from btnn_jax import losses, targets
from btnn_jax._types import PyTree
from btnn_jax.ops import categorical
from btnn_jax.parameters import frozen_mask, return_scale
from btnn_jax.protocol import AgentInput, Policy, PolicyOutput, RecurrentState
from btnn_jax.replay import Frames, Replay, ReplayState, Window
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.rollout import Rollout

__all__ = [
    "Hyperparameters",
    "OnPolicy",
    "ReplayStep",
    "make_objective",
    "make_terms",
    "select_envs",
    "to_replay",
]

_EPSILON = float(np.finfo(np.float32).eps)
FLOOR_WEIGHT = 1.0  # what `entropy_floor` adds to the entropy's weight where there is no entropy left
Metrics = dict[str, Array]
Terms = dict[str, Array]  # name -> float32 []


class ReplayStep(NamedTuple):
    """One stored step; leaves `[..., B, ...]`. The replay itself keeps rewards, resets and recurrent states."""

    observation: PyTree  # in the environment's dtypes
    last_action: PyTree  # int32, or a dict of them
    last_reward: Array  # float32
    action: PyTree  # int32, or a dict of them
    log_prob: Array  # float32, of the action under the policy that acted
    terminated: Array  # bool
    pixel_change: Array | None  # float32 [..., B, h, w]; None without pixel control


class Hyperparameters(NamedTuple):
    """Values that may differ within one compiled program; float32 `[]` each.

    A task whose weight is 0 in the configuration is not there, whatever its weight here.
    """

    learning_rate: ArrayLike  # before its schedule
    entropy_beta: ArrayLike  # at the start
    pc_weight: ArrayLike
    vr_weight: ArrayLike
    rp_weight: ArrayLike
    ae_weight: ArrayLike


class OnPolicy(NamedTuple):
    """The part of a rollout that a gradient step needs; leaves `[T, B, ...]`, the core's `[B, ...]`."""

    rollout: Rollout
    advantage: Array  # float32
    returns: Array  # float32
    core: RecurrentState  # float32, before the first step


def make_objective(
    config: UnrealConfig,
    policy: Policy,
    replay: Replay | None,
    axis_name: losses.AxisName | None = None,
) -> Callable[..., tuple[Array, Metrics]]:
    """The whole loss of one gradient step, the sum of the terms of `make_terms`, whose arguments it takes.

    Returns:
      `objective(params, batch, stored, noise_key, replay_key, hyper) -> (loss, metrics)`.
    """
    terms = make_terms(config, policy, replay, axis_name)

    def objective(*arguments: Any) -> tuple[Array, Metrics]:
        parts, metrics = terms(*arguments)
        return functools.reduce(jnp.add, parts.values()), metrics

    return objective


def make_terms(
    config: UnrealConfig,
    policy: Policy,
    replay: Replay | None,
    axis_name: losses.AxisName | None = None,
) -> Callable[..., tuple[Terms, Metrics]]:
    """The terms whose sum is the loss of one gradient step.

    Args:
      config: what to learn and how.
      policy: the agent's network.
      replay: None where no task replays.
      axis_name: axis over which the caller averages losses and gradients.

    Returns:
      `terms(params, batch, stored, noise_key, replay_key, hyper) -> (terms, metrics)`; `noise_key` is the one that the
      rollout was played with, so that at the same parameters the same actions have the same probabilities. The
      terms, float32 `[]` each and multiplied by their weights, are `policy value entropy` and, where the configuration
      has them, `autoencoder value_replay pixel_control reward_prediction`; the metrics are the losses before their
      weights.
    """
    agent = _Agent(config, policy, axis_name)

    def terms(
        params: PyTree,
        batch: OnPolicy,
        stored: ReplayState | None,
        noise_key: Array,
        replay_key: Array,
        hyper: Hyperparameters,
    ) -> tuple[Terms, Metrics]:
        if config.frozen:
            mask = frozen_mask(params, config.frozen)
            params = jax.tree.map(lambda x, stays: jax.lax.stop_gradient(x) if stays else x, params, mask)
        parts = [_actor_critic(agent, params, batch, noise_key, hyper)]
        if config.ae_weight:
            replay_key, sample_key = jax.random.split(replay_key)
            parts.append(_reconstruction(agent, params, batch, sample_key, hyper))
        if replay is not None and stored is not None:
            window_key, window_noise_key, frame_key, frame_noise_key = jax.random.split(replay_key, 4)
            if config.vr_weight or config.pc_weight:
                window = replay.sample(window_key, stored, config.replay_batch)
                parts.append(_replayed(agent, params, window, window_noise_key, hyper))
            if config.rp_weight:
                frames = replay.sample_rebalanced(
                    frame_key, stored, config.rp_batch, config.rp_frames, threshold=config.rp_threshold
                )
                parts.append(_reward_prediction(agent, params, frames, frame_noise_key, hyper))
        of_terms, of_metrics = zip(*parts, strict=True)
        return functools.reduce(operator.or_, of_terms), functools.reduce(operator.or_, of_metrics)

    return terms


@dataclasses.dataclass(frozen=True)
class _Agent:
    """What learns: a policy and its configuration."""

    config: UnrealConfig
    policy: Policy
    axis_name: losses.AxisName | None

    def apply(
        self, params: PyTree, inputs: AgentInput, core: RecurrentState, noise_key: Array
    ) -> tuple[PolicyOutput, RecurrentState]:
        return self.policy.apply({"params": params}, inputs, core, rngs={"noise": noise_key})

    def head(self, params: PyTree, method: str, x: PyTree, noise_key: Array) -> PyTree:
        return self.policy.apply({"params": params}, x, rngs={"noise": noise_key}, method=method)

    def apply_with_burn_in(
        self, params: PyTree, inputs: AgentInput, core: RecurrentState, noise_key: Array
    ) -> PolicyOutput:
        """Answers to a window; no gradient flows into steps that only refresh the recurrent state."""
        burn_in = self.config.replay_burn_in
        if burn_in == 0:
            return self.apply(params, inputs, core, noise_key)[0]
        first = jax.tree.map(lambda x: x[:burn_in], inputs)
        rest = jax.tree.map(lambda x: x[burn_in:], inputs)
        before, core = self.apply(params, first, core, jax.random.clone(noise_key))
        exact = inputs.reset[0]  # the window starts with its episode and learns from all of it
        core = jax.tree.map(
            lambda x: jnp.where(exact.reshape(-1, *[1] * (x.ndim - 1)), x, jax.lax.stop_gradient(x)), core
        )
        after, _ = self.apply(params, rest, core, noise_key)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), before, after)


def _actor_critic(
    agent: _Agent, params: PyTree, batch: OnPolicy, noise_key: Array, hyper: Hyperparameters
) -> tuple[Terms, Metrics]:
    """A2C or PPO on the rollout."""
    config, axis_name = agent.config, agent.axis_name
    output, _ = agent.apply(params, batch.rollout.inputs, batch.core, noise_key)
    scale = _scale_of(params)
    advantage = batch.advantage / scale
    if config.normalize_advantages:
        advantage = _standardise(advantage, axis_name)
    action, returns, value = batch.rollout.action, batch.returns / scale, output.value / scale
    if config.algorithm == "a2c":
        _, metrics = losses.aac_loss(action, advantage, returns, output.logits, value, axis_name=axis_name)
    else:
        _, metrics = losses.ppo_loss(
            action,
            advantage,
            returns,
            output.logits,
            value,
            batch.rollout.logits,
            epsilon=config.ppo_epsilon,
            axis_name=axis_name,
        )
    entropy_weight = hyper.entropy_beta
    if config.entropy_floor:
        missing = jax.lax.stop_gradient(1 - metrics["entropy"] / config.entropy_floor)
        entropy_weight += FLOOR_WEIGHT * jnp.maximum(missing, 0.0)
        metrics["entropy_weight"] = jnp.asarray(entropy_weight)
    terms = {
        "policy": metrics["policy_loss"],
        "value": config.value_weight * metrics["value_loss"],
        "entropy": -jnp.multiply(entropy_weight, metrics["entropy"]),
    }
    return terms, metrics


def _replayed(
    agent: _Agent, params: PyTree, window: Window, noise_key: Array, hyper: Hyperparameters
) -> tuple[Terms, Metrics]:
    """Value replay and pixel control, both from one pass over the replayed sequences."""
    config, axis_name = agent.config, agent.axis_name
    pass_key, pixel_key = jax.random.split(noise_key)
    steps = window.steps
    inputs = AgentInput(steps.observation, steps.last_action, steps.last_reward, window.resets)
    stored = config.replay_state == "stored"
    first = window.core if stored else agent.policy.initial_state(config.replay_batch)
    output = agent.apply_with_burn_in(params, inputs, first, pass_key)
    # A truncated step is the last of its window, so the mask alone says where returns are cut.
    learn, cut = targets.window_mask(window.where, steps.terminated, jnp.zeros_like(steps.terminated))
    terms: Terms = {}
    metrics: Metrics = {}
    if config.vr_weight:
        log_ratios = categorical.log_prob(output.logits, steps.action) - steps.log_prob
        returns, _ = targets.vtrace(
            log_ratios,
            window.rewards,
            output.value,
            targets.next_values(output.value, output.value[-1]),
            steps.terminated,
            cut,
            discount=config.discount,
        )
        scale = _scale_of(params)
        loss, _ = losses.value_fn_loss(
            returns / scale, output.value / scale, where=learn, axis_name=axis_name
        )
        terms["value_replay"] = jnp.multiply(hyper.vr_weight, loss)
        metrics["value_replay_loss"] = loss
    if config.pc_weight:
        q = agent.head(params, "pixel_control", output.features, pixel_key)

        def pixel_returns(head_q: Array) -> Array:
            best = jnp.max(head_q, axis=-1)
            following = jnp.concatenate([best[1:], best[-1:]])
            return targets.pixel_control_targets(
                steps.pixel_change, following, steps.terminated, cut, discount=config.pc_discount
            )

        loss, _ = losses.pc_loss(
            steps.action, jax.tree.map(pixel_returns, q), q, where=learn, axis_name=axis_name
        )
        terms["pixel_control"] = jnp.multiply(hyper.pc_weight, loss)
        metrics["pixel_control_loss"] = loss
    return terms, metrics


def _reward_prediction(
    agent: _Agent, params: PyTree, frames: Frames, noise_key: Array, hyper: Hyperparameters
) -> tuple[Terms, Metrics]:
    """The class of the reward that follows a stack of frames."""
    logits = agent.head(params, "reward_prediction", frames.steps.observation, noise_key)
    classes = targets.reward_class(frames.rewards, agent.config.rp_threshold)
    loss, _ = losses.rp_loss(classes, logits, where=frames.where, axis_name=agent.axis_name)
    return {"reward_prediction": jnp.multiply(hyper.rp_weight, loss)}, {"reward_prediction_loss": loss}


def _reconstruction(
    agent: _Agent, params: PyTree, batch: OnPolicy, sample_key: Array, hyper: Hyperparameters
) -> tuple[Terms, Metrics]:
    """The loss of the encoder's autoencoder over the rollout: per example, in nats of unit variance."""
    images, output = agent.policy.apply(
        {"params": params},
        batch.rollout.inputs.observation,
        rngs={"sample": sample_key},
        method="reconstruct",
    )
    weights = {"alpha": math.prod(images.shape[-3:]) / 2, "axis_name": agent.axis_name}
    if output.d_kl is None:
        loss, _ = losses.ae_loss(images, output.y_hat, **weights)
    else:
        loss, _ = losses.beta_vae_loss(
            images, output.y_hat, output.d_kl, beta=agent.config.ae_beta, **weights
        )
    return {"autoencoder": jnp.multiply(hyper.ae_weight, loss)}, {"autoencoder_loss": loss}


def _scale_of(params: PyTree) -> ArrayLike:
    """The scale of returns, 1 for a policy without one."""
    return jax.lax.stop_gradient(return_scale(params)) if "return_scale" in params else 1.0


def to_replay(record: Rollout) -> ReplayStep:
    """The part of a rollout that the replay stores."""
    return ReplayStep(
        observation=record.inputs.observation,
        last_action=record.inputs.last_action,
        last_reward=record.inputs.last_reward,
        action=record.action,
        log_prob=categorical.log_prob(record.logits, record.action),
        terminated=record.terminated,
        pixel_change=record.pixel_change,
    )


def select_envs(batch: OnPolicy, rows: Array) -> OnPolicy:
    """Whole sequences of some environments."""
    core = jax.tree.map(lambda x: x[rows], batch.core)
    return jax.tree.map(lambda x: x[:, rows], batch._replace(core=()))._replace(core=core)


def _standardise(x: Array, axis_name: losses.AxisName | None) -> Array:
    """`x` with mean 0 and deviation 1 over all devices, 0 where it varies by no more than float32 rounds."""

    def mean(y: Array) -> Array:
        y = jnp.mean(y)
        return y if axis_name is None else jax.lax.pmean(y, axis_name)

    # Relative to one of its own elements, the mean of a constant is that constant but for rounding.
    origin = mean(x.ravel()[:1])
    shift = mean(x - origin)
    centred = x - origin - shift
    deviation = jnp.sqrt(mean(jnp.square(centred)))
    varies = deviation > 4 * _EPSILON * jnp.abs(origin + shift)
    return jnp.where(varies, centred / (deviation + 1e-8), 0.0)
