"""The train step: A2C or PPO with UNREAL's auxiliary tasks (Jaderberg et al. 2016, arXiv:1611.05397)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from btnn_jax import losses, targets
from btnn_jax._types import PyTree
from btnn_jax.envs.base import AnyEnvironment, check_environment
from btnn_jax.parameters import frozen_mask, return_scale, update_return_scale, with_pretrained
from btnn_jax.policies import init_params
from btnn_jax.protocol import Policy, check_policy
from btnn_jax.replay import Replay, ReplayState, make_replay
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.diagnostics import dormant_share, effective_rank, noise_by_layer, trunk_gradients
from btnn_jax.training.gradients import Learner, make_gradient_step, mean_over_steps
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.objective import (
    Hyperparameters,
    OnPolicy,
    Terms,
    make_objective,
    make_terms,
    select_envs,
    to_replay,
)
from btnn_jax.training.rollout import Actors, Rollout, make_rollout

__all__ = [
    "TrainState",
    "TrainStep",
    "hyperparameters",
    "make_lr_decay",
    "make_optimizer",
    "make_unreal",
    "minibatch_rows",
]

Metrics = dict[str, jax.Array]
RETURN_SCALE_RATE = 0.1  # of the running average, in each update


@struct.dataclass
class TrainState:
    """All that a run depends on, apart from its configuration."""

    params: PyTree  # float32
    opt_state: optax.OptState  # float32, and int32 counts
    actors: Actors
    replay: ReplayState | None  # None when no task replays
    hyper: Hyperparameters
    key: jax.Array  # [], the learner's stream: noise, minibatches, replay
    update: jax.Array  # int32 [], calls of `step` so far
    skipped: jax.Array  # int32 [], gradient steps left out because they were not finite


class TrainStep(NamedTuple):
    """A train step and its parts, all pure; `make_unreal` binds them."""

    init: Callable[..., TrainState]  # (key, hyper=hyperparameters(config)) -> state
    step: Callable[[TrainState], tuple[TrainState, Metrics]]
    act: Callable[[TrainState], PyTree]  # the rollout of one step alone, without learning
    policy: Policy


class _Parts(NamedTuple):
    """Values that the functions of a train step share."""

    config: UnrealConfig
    env: AnyEnvironment
    policy: Policy
    reset: Callable[..., Actors]
    rollout: Callable[..., tuple[Actors, Rollout, jax.Array]]
    replay: Replay | None
    optimizer: optax.GradientTransformation
    terms: Callable[..., tuple[Terms, Metrics]]
    gradient_step: Callable[..., tuple[Learner, tuple[Metrics, jax.Array]]]
    axis_name: losses.AxisName | None


def make_unreal(
    config: UnrealConfig,
    env: AnyEnvironment,
    *,
    policy: Policy | None = None,
    pretrained: PyTree | None = None,
    axis_name: losses.AxisName | None = None,
) -> TrainStep:
    """Binds a configuration and an environment into a pure train step.

    `step` acts for `config.rollout_length` steps in `config.num_envs` environments, stores them, and makes
    `config.gradients_per_update` gradient steps on

        loss = actor-critic + pc_weight * pixel control + vr_weight * value replay + rp_weight * reward prediction

    Args:
      config: what to learn and how.
      env: one environment.
      policy: the agent's network, see `btnn_jax.protocol.Policy`; None takes `make_unreal_policy(config, env)`. The
        fields of `config` about the network do not change one that is given.
      pretrained: parameters to start from in place of random ones, a part of the policy's, see
        `btnn_jax.parameters.with_pretrained`; those that `config.frozen` names stay as they are.
      axis_name: axis, or axes, of the mapping around both functions (`vmap`, `pmap`, or `shard_map` with
        `check_vma=False`, see `btnn_jax.losses`), of `config.shards` places: one learner with `num_envs` environments
        in each. Give `init` the same key everywhere, as `jax.pmap(init, axis_name)(jnp.broadcast_to(key, n))` does;
        then parameters start equal, environments do not, and gradients and metrics are averaged.
        `btnn_jax.training.mapping` does all of it.

    Returns:
      A `TrainStep`: `init(key, hyper=hyperparameters(config)) -> TrainState`, `step(state) -> (state, metrics)`,
      `act(state)` and the `policy`. The metrics are float32 scalars: `policy_loss value_loss entropy
      explained_variance gradient_norm episode_return episode_length skipped learning_rate`, and, where they apply,
      `approx_kl clip_fraction noise_sigma return_scale entropy_weight pixel_control_loss value_replay_loss
      reward_prediction_loss autoencoder_loss`. Losses are means over the gradient steps that were made, 0 if all were
      skipped. With `config.diagnostics` also those of `btnn_jax.training.diagnostics` and `clipped`, the share of
      gradient steps whose gradient was longer than `max_grad_norm`.

    Raises:
      ValueError: `env` or `policy` breaks its protocol, the observations do not fit `config`, or the axis has another
        size than `config.shards`.
    """
    check_environment(env)
    policy = policy or make_unreal_policy(config, env)
    check_policy(policy, pixel_control=config.pc_weight > 0, reward_prediction=config.rp_weight > 0)
    reset, rollout = make_rollout(
        env,
        policy,
        config.num_envs,
        config.rollout_length,
        pc_cell=config.pc_cell if config.pc_weight else None,
        pc_stream=config.pc_stream,
        discount=config.discount if getattr(policy, "normalize_returns", False) else None,
    )
    replay = None
    if config.replays:
        replay = make_replay(config.replay_length, config.rollout_length, burn_in=config.replay_burn_in)
    optimizer = make_optimizer(config)
    terms = make_terms(config, policy, replay, axis_name)
    objective = make_objective(config, policy, replay, axis_name)
    gradient_step = make_gradient_step(objective, optimizer, axis_name=axis_name)
    parts = _Parts(config, env, policy, reset, rollout, replay, optimizer, terms, gradient_step, axis_name)

    def init(key: jax.Array, hyper: Hyperparameters | None = None) -> TrainState:
        return _init(parts, pretrained, key, hyper)

    def act(state: TrainState) -> PyTree:
        actors = state.actors._replace(keys=jax.random.clone(state.actors.keys))  # the step will use them
        return rollout(state.params, actors, jax.random.clone(state.key))

    return TrainStep(init, functools.partial(_step, parts), act, policy)


def _init(
    parts: _Parts, pretrained: PyTree | None, key: jax.Array, hyper: Hyperparameters | None
) -> TrainState:
    config, axis_name = parts.config, parts.axis_name
    params_key, actors_key, learner_key = jax.random.split(key, 3)
    _check_shards(config, axis_name)
    if axis_name is not None:
        shard = jax.lax.axis_index(axis_name)
        actors_key, learner_key = (jax.random.fold_in(k, shard) for k in (actors_key, learner_key))
    params = init_params(parts.policy, params_key, parts.env.observation, rp_frames=config.rp_frames)
    if pretrained is not None:
        params = with_pretrained(params, pretrained)
    actors = parts.reset(actors_key)
    stored = None
    if parts.replay is not None:
        record = jax.eval_shape(parts.rollout, params, actors, learner_key)[1]
        first = jax.eval_shape(lambda record: jax.tree.map(lambda x: x[0], to_replay(record)), record)
        stored = parts.replay.init(first, _stored_state(config, actors))
    return TrainState(
        params=params,
        opt_state=parts.optimizer.init(params),
        actors=actors,
        replay=stored,
        hyper=jax.tree.map(jnp.float32, hyperparameters(config) if hyper is None else hyper),
        key=learner_key,
        update=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def _stored_state(config: UnrealConfig, actors: Actors) -> PyTree:
    """The recurrent state that the replay stores: the whole of it or nothing."""
    return actors.core if config.replay_state == "stored" else ()


def _step(parts: _Parts, state: TrainState) -> tuple[TrainState, Metrics]:
    config, axis_name = parts.config, parts.axis_name
    _check_shards(config, axis_name)
    key, noise_key, shuffle_key, replay_key = jax.random.split(state.key, 4)
    actors, record, last_value = parts.rollout(state.params, state.actors, noise_key)
    stored = state.replay
    if parts.replay is not None and stored is not None:
        before = _stored_state(config, state.actors)
        stored = parts.replay.add(stored, to_replay(record), record.reward, record.inputs.reset, before)
    params = state.params
    if record.discounted is not None:
        params, ratio = _rescale(params, record, axis_name)
        record = record._replace(value=record.value * ratio, final_value=record.final_value * ratio)
        last_value = last_value * ratio
    following = targets.next_values(record.value, last_value, record.truncated, record.final_value)
    advantage, returns = targets.gae(
        record.reward,
        record.value,
        following,
        record.terminated,
        record.truncated,
        discount=config.discount,
        lambda_=config.gae_lambda,
    )
    batch = OnPolicy(record, advantage, returns, state.actors.core)
    if config.precision != "float32" and config.algorithm == "ppo":
        # Rounded that coarsely, one step at a time and whole sequences at once give different probabilities.
        logits = _recompute_logits(parts, params, batch, noise_key)
        batch = batch._replace(rollout=record._replace(logits=logits))
    hyper = _at_update(config, state.hyper, state.update)
    extra: Metrics = {}
    if config.diagnostics:
        extra = _diagnose(parts, params, batch, stored, noise_key, replay_key, hyper)
    (params, opt_state), (learned, skipped) = _learn(
        parts, (params, state.opt_state), batch, stored, hyper, noise_key, shuffle_key, replay_key
    )
    total_skipped = state.skipped + jnp.sum(skipped, dtype=jnp.int32)
    metrics = mean_over_steps(learned, skipped) | _episode_metrics(actors, axis_name) | extra
    explained = losses.explained_variance(returns, record.value, axis_name=axis_name)
    metrics["explained_variance"] = explained if axis_name is None else jax.lax.pmean(explained, axis_name)
    metrics["skipped"] = total_skipped.astype(jnp.float32)
    metrics["learning_rate"] = jnp.asarray(hyper.learning_rate)
    if config.diagnostics:
        metrics["clipped"] = jnp.mean(learned["gradient_norm"] > config.max_grad_norm, dtype=jnp.float32)
    if record.discounted is not None:
        metrics["return_scale"] = return_scale(params)
    if sigmas := _noise_sigmas(params):
        total = jnp.sum(jnp.stack([jnp.sum(jnp.abs(x)) for x in sigmas]))
        metrics["noise_sigma"] = total / sum(x.size for x in sigmas)
    return TrainState(
        params=params,
        opt_state=opt_state,
        actors=actors,
        replay=stored,
        hyper=state.hyper,
        key=key,
        update=state.update + 1,
        skipped=total_skipped,
    ), metrics


def _diagnose(
    parts: _Parts,
    params: PyTree,
    batch: OnPolicy,
    stored: ReplayState | None,
    noise_key: jax.Array,
    replay_key: jax.Array,
    hyper: Hyperparameters,
) -> Metrics:
    """How the terms of the loss share the trunk, before the first gradient step of an update."""

    def terms(params: PyTree) -> Terms:
        keys = jax.random.clone(noise_key), jax.random.clone(replay_key)
        return parts.terms(params, batch, stored, *keys, hyper)[0]

    output, _ = parts.policy.apply(
        {"params": params}, batch.rollout.inputs, batch.core, rngs={"noise": jax.random.clone(noise_key)}
    )
    metrics = {
        "effective_rank": effective_rank(output.features),
        "dormant_features": dormant_share(output.features),
    }
    if parts.axis_name is not None:
        metrics = jax.lax.pmean(metrics, parts.axis_name)
    shares = trunk_gradients(terms, params, axis_name=parts.axis_name)
    return shares | metrics | noise_by_layer(params)


def _learn(
    parts: _Parts,
    learner: Learner,
    batch: OnPolicy,
    stored: ReplayState | None,
    hyper: Hyperparameters,
    noise_key: jax.Array,
    shuffle_key: jax.Array,
    replay_key: jax.Array,
) -> tuple[Learner, tuple[Metrics, jax.Array]]:
    """The gradient steps of one update; metrics and `skipped` have an axis of them for PPO."""
    rate = jnp.asarray(hyper.learning_rate)

    def one_step(
        learner: Learner, batch: OnPolicy, key: jax.Array
    ) -> tuple[Learner, tuple[Metrics, jax.Array]]:
        return parts.gradient_step(learner, rate, batch, stored, jax.random.clone(noise_key), key, hyper)

    if parts.config.algorithm == "a2c":
        return one_step(learner, batch, replay_key)

    def minibatch_step(
        carry: tuple[jax.Array, Learner], rows: jax.Array
    ) -> tuple[tuple[jax.Array, Learner], tuple[Metrics, jax.Array]]:
        key, learner = carry
        key, step_key = jax.random.split(key)
        learner, out = one_step(learner, select_envs(batch, rows), step_key)
        return (key, learner), out

    rows = minibatch_rows(shuffle_key, parts.config)
    (_, learner), out = jax.lax.scan(minibatch_step, (replay_key, learner), rows)
    return learner, out


def _rescale(params: PyTree, record: Rollout, axis_name: losses.AxisName | None) -> tuple[PyTree, jax.Array]:
    """Parameters with the newest scale of returns, and the factor of values that were predicted before it."""
    assert record.discounted is not None
    seen = record.discounted != 0  # where rewards are rare, the scale must not be that of their rarity
    square = losses.masked_mean(jnp.square(record.discounted), seen, axis_name=axis_name)
    if axis_name is not None:
        square = jax.lax.pmean(square, axis_name)
    new = update_return_scale(params, square, RETURN_SCALE_RATE)
    return new, jnp.where(params["return_scale"] > 0, 1.0, return_scale(new))


def _recompute_logits(parts: _Parts, params: PyTree, batch: OnPolicy, noise_key: jax.Array) -> PyTree:
    """The logits of a rollout as the learner computes them, a minibatch at a time."""
    data, impl = jax.random.key_data(noise_key), jax.random.key_impl(noise_key)

    def logits(rows: jax.Array) -> PyTree:
        part, key = (
            select_envs(batch, rows),
            jax.random.wrap_key_data(data, impl=impl),
        )  # the same noise for all
        output, _ = parts.policy.apply(
            {"params": params}, part.rollout.inputs, part.core, rngs={"noise": key}
        )
        return output.logits

    rows = jnp.arange(parts.config.num_envs).reshape(parts.config.minibatches, -1)
    return jax.tree.map(lambda x: jnp.concatenate(x, axis=1), jax.lax.map(logits, rows))


def _at_update(config: UnrealConfig, hyper: Hyperparameters, update: jax.Array) -> Hyperparameters:
    """The hyperparameters after their schedules."""
    passed = update.astype(jnp.float32)
    learning_rate = jnp.asarray(hyper.learning_rate * make_lr_decay(config)(passed), jnp.float32)
    entropy_beta = hyper.entropy_beta
    if config.entropy_beta_final is not None:
        entropy_beta += passed / config.num_updates * (config.entropy_beta_final - entropy_beta)
    return hyper._replace(learning_rate=learning_rate, entropy_beta=entropy_beta)


def _episode_metrics(actors: Actors, axis_name: losses.AxisName | None) -> Metrics:
    finished, lengths = actors.last_length > 0, actors.last_length.astype(jnp.float32)
    metrics = {
        "episode_return": losses.masked_mean(actors.last_return, finished, axis_name=axis_name),
        "episode_length": losses.masked_mean(lengths, finished, axis_name=axis_name),
    }
    return metrics if axis_name is None else jax.lax.pmean(metrics, axis_name)


def hyperparameters(config: UnrealConfig) -> Hyperparameters:
    """The `Hyperparameters` of a configuration."""
    return Hyperparameters(*(getattr(config, name) for name in Hyperparameters._fields))


def make_lr_decay(config: UnrealConfig) -> optax.Schedule:
    """The factor of the learning rate, from 1 down to 0, by number of updates."""
    if config.learning_rate_schedule == "linear":
        return optax.linear_schedule(1.0, 0.0, config.num_updates)
    if config.learning_rate_schedule == "cosine":
        return optax.cosine_decay_schedule(1.0, config.num_updates)
    return optax.constant_schedule(1.0)


def make_optimizer(config: UnrealConfig) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) on gradients whose norm, all taken together, is at most `max_grad_norm`.

    Its updates are still to be multiplied by minus the learning rate.
    """
    adam = optax.scale_by_adam(eps=config.adam_epsilon)
    if config.frozen:  # no moments of what does not move
        adam = optax.masked(
            adam, lambda params: jax.tree.map(operator.not_, frozen_mask(params, config.frozen))
        )
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)


def minibatch_rows(key: jax.Array, config: UnrealConfig) -> jax.Array:
    """Which environments each gradient step learns from, int32 `[epochs * minibatches, num_envs // minibatches]`."""
    keys = jax.random.split(key, config.epochs)
    rows = jax.vmap(lambda k: jax.random.permutation(k, config.num_envs))(keys)
    return rows.reshape(config.epochs * config.minibatches, -1)


def _check_shards(config: UnrealConfig, axis_name: losses.AxisName | None) -> None:
    if axis_name is None and config.shards > 1:
        raise ValueError(f"{config.shards} shards need an axis_name; btnn_jax.training.mapping gives one")
    if axis_name is not None and (size := jax.lax.axis_size(axis_name)) != config.shards:
        raise ValueError(
            f"config.shards must be the size of the axis {axis_name!r}, {size}, got {config.shards}"
        )


def _noise_sigmas(params: PyTree) -> list[jax.Array]:
    """The `kernel_sigma` of every noisy layer."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [x for path, x in leaves if jax.tree_util.keystr(path[-1:], simple=True) == "kernel_sigma"]
