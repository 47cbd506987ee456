"""The train step: A2C or PPO with UNREAL's auxiliary tasks (Jaderberg et al. 2016, arXiv:1611.05397)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from btnn_jax import losses, targets
from btnn_jax.envs.base import Environment, check_environment
from btnn_jax.parameters import frozen_mask, return_scale, update_return_scale, with_pretrained
from btnn_jax.policies import UnrealPolicy, init_params
from btnn_jax.replay import ReplayState, make_replay
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.objective import Hyperparameters, OnPolicy, make_objective, take, to_replay
from btnn_jax.training.rollout import Actors, make_rollout

__all__ = [
    "TrainState",
    "hyperparameters",
    "make_optimizer",
    "make_rate_left",
    "make_unreal",
    "minibatch_rows",
]

PyTree = Any
Metrics = dict[str, jax.Array]
RETURN_SCALE_RATE = 0.1  # of the running average, in each update
Learner = tuple[PyTree, optax.OptState]  # parameters and the optimizer's state


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


def make_unreal(
    config: UnrealConfig,
    env: Environment,
    *,
    policy: UnrealPolicy | None = None,
    pretrained: PyTree | None = None,
    axis_name: losses.AxisName | None = None,
) -> tuple[Callable[..., TrainState], Callable[[TrainState], tuple[TrainState, Metrics]]]:
    """Binds a configuration and an environment into `(init, step)`, both pure.

    `step` acts for `config.rollout_length` steps in `config.num_envs` environments, stores them, and makes
    `config.gradients_per_update` gradient steps on

        loss = actor-critic + pc_weight * pixel control + vr_weight * value replay + rp_weight * reward prediction

    Args:
      config: what to learn and how.
      env: one environment.
      policy: the agent's network; None takes `make_unreal_policy(config, env)`.
      pretrained: parameters to start from in place of random ones, a part of the policy's, see
        `btnn_jax.policies.with_pretrained`; those that `config.frozen` names stay as they are.
      axis_name: axis, or axes, of the mapping around both functions (`vmap`, `pmap`, or `shard_map` with
        `check_vma=False`, see `btnn_jax.losses`), of `config.shards` places: one learner with `num_envs` environments
        in each. Give `init` the same key everywhere, as `jax.pmap(init, axis_name)(jnp.broadcast_to(key, n))` does;
        then parameters start equal, environments do not, and gradients and metrics are averaged.
        `btnn_jax.training.mapping` does all of it.

    Returns:
      `init(key, hyper=hyperparameters(config)) -> TrainState` and `step(state) -> (state, metrics)`, where metrics are
      float32 scalars: `policy_loss value_loss entropy explained_variance gradient_norm episode_return episode_length
      skipped learning_rate`, and, where they apply, `approx_kl clip_fraction noise_sigma pixel_control_loss
      value_replay_loss reward_prediction_loss autoencoder_loss`. Losses are means over the gradient steps that were
      made, 0 if all were skipped.

    Raises:
      ValueError: `env` breaks the protocol, its observations do not fit `config`, or the axis has another size than
        `config.shards`.
    """
    check_environment(env)
    policy = policy or make_unreal_policy(config, env)
    reset, rollout = make_rollout(
        env,
        policy,
        config.num_envs,
        config.rollout_length,
        pc_cell=config.pc_cell if config.pc_weight else None,
        pc_stream=config.pc_stream,
        discount=config.discount if config.normalize_returns else None,
    )
    replay = None
    if config.replays:
        replay = make_replay(config.replay_length, config.rollout_length, burn_in=config.replay_burn_in)
    optimizer = make_optimizer(config)
    rate_left = make_rate_left(config)
    objective = make_objective(config, policy, replay, axis_name)

    def init(key: jax.Array, hyper: Hyperparameters | None = None) -> TrainState:
        params_key, actors_key, learner_key = jax.random.split(key, 3)
        _check_shards(config, axis_name)
        if axis_name is not None:
            shard = jax.lax.axis_index(axis_name)
            actors_key, learner_key = (jax.random.fold_in(k, shard) for k in (actors_key, learner_key))
        params = init_params(policy, params_key, env.observation, rp_frames=config.rp_frames)
        if pretrained is not None:
            params = with_pretrained(params, pretrained)
        actors = reset(actors_key)
        stored = None
        if replay is not None:
            record = jax.eval_shape(rollout, params, actors, learner_key)[1]
            first = jax.eval_shape(lambda record: jax.tree.map(lambda x: x[0], to_replay(record)), record)
            stored = replay.init(first, actors.core)
        return TrainState(
            params=params,
            opt_state=optimizer.init(params),
            actors=actors,
            replay=stored,
            hyper=jax.tree.map(jnp.float32, hyperparameters(config) if hyper is None else hyper),
            key=learner_key,
            update=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
        )

    def relearned(params: PyTree, batch: OnPolicy, noise_key: jax.Array) -> PyTree:
        """The logits of a rollout as the learner computes them, a minibatch at a time."""
        data, impl = jax.random.key_data(noise_key), jax.random.key_impl(noise_key)

        def logits(rows: jax.Array) -> PyTree:
            part, key = take(batch, rows), jax.random.wrap_key_data(data, impl=impl)  # the same noise for all
            return policy.apply({"params": params}, part.rollout.inputs, part.core, rngs={"noise": key})[
                0
            ].logits

        parts = jax.lax.map(logits, jnp.arange(config.num_envs).reshape(config.minibatches, -1))
        return jax.tree.map(lambda x: jnp.concatenate(x, axis=1), parts)

    def rescaled(params: PyTree, discounted: jax.Array) -> tuple[PyTree, jax.Array]:
        """Parameters with the newest scale of returns, and by what values change that were predicted before."""
        seen = (
            discounted != 0
        )  # where rewards are rare, the scale is that of the returns and not of their rarity
        square = losses.masked_mean(jnp.square(discounted), seen, axis_name=axis_name)
        if axis_name is not None:
            square = jax.lax.pmean(square, axis_name)
        new = update_return_scale(params, square, RETURN_SCALE_RATE)
        ratio = jnp.where(params["return_scale"] > 0, 1.0, return_scale(new))
        return new, ratio

    def gradient_step(
        learner: Learner,
        batch: OnPolicy,
        replay_key: jax.Array,
        *,
        noise_key: jax.Array,
        stored: ReplayState | None,
        hyper: Hyperparameters,
    ) -> tuple[Learner, tuple[Metrics, jax.Array]]:
        params, opt_state = learner
        (_, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(
            params, batch, stored, jax.random.clone(noise_key), replay_key, hyper
        )
        if axis_name is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
        norm = optax.tree.norm(gradients)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float32 and int32
            updates, new_opt_state = optimizer.update(gradients, opt_state)
        updates = optax.tree.scale(-jnp.asarray(hyper.learning_rate), updates)
        # An update that is not finite would end the run; leaving it out costs one step.
        finite = jnp.isfinite(norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(params, updates), new_opt_state),
            (params, opt_state),
        )
        metrics = {**metrics, "gradient_norm": norm}
        metrics = {name: jnp.where(finite, value, 0.0) for name, value in metrics.items()}
        return (params, opt_state), (metrics, ~finite)

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        _check_shards(config, axis_name)
        key, noise_key, shuffle_key, replay_key = jax.random.split(state.key, 4)
        actors, record, last_value = rollout(state.params, state.actors, noise_key)
        stored = state.replay
        if replay is not None and stored is not None:
            stored = replay.add(
                stored, to_replay(record), record.reward, record.inputs.reset, state.actors.core
            )

        params = state.params
        if config.normalize_returns:
            params, ratio = rescaled(params, record.discounted)
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
            logits = relearned(params, batch, noise_key)
            batch = batch._replace(rollout=record._replace(logits=logits))
        update = state.update.astype(jnp.float32)
        learning_rate = jnp.asarray(state.hyper.learning_rate * rate_left(update), jnp.float32)
        entropy_beta = state.hyper.entropy_beta
        if config.entropy_beta_final is not None:
            entropy_beta += update / config.num_updates * (config.entropy_beta_final - entropy_beta)

        one_step = functools.partial(
            gradient_step,
            noise_key=jax.random.clone(noise_key),
            stored=stored,
            hyper=state.hyper._replace(learning_rate=learning_rate, entropy_beta=entropy_beta),
        )
        learner = (params, state.opt_state)
        if config.algorithm == "a2c":
            (params, opt_state), (learned, skipped) = one_step(learner, batch, replay_key)
        else:

            def minibatch_step(
                carry: tuple[jax.Array, Learner], rows: jax.Array
            ) -> tuple[tuple[jax.Array, Learner], tuple[Metrics, jax.Array]]:
                key, learner = carry
                key, replay_key = jax.random.split(key)
                learner, out = one_step(learner, take(batch, rows), replay_key)
                return (key, learner), out

            (_, (params, opt_state)), (learned, skipped) = jax.lax.scan(
                minibatch_step, (replay_key, learner), minibatch_rows(shuffle_key, config)
            )
        num_skipped = jnp.sum(skipped, dtype=jnp.int32)
        made = jnp.maximum(config.gradients_per_update - num_skipped, 1).astype(jnp.float32)
        metrics = {name: jnp.sum(value) / made for name, value in learned.items()}
        finished = actors.last_length > 0
        experience = {
            "episode_return": losses.masked_mean(actors.last_return, finished, axis_name=axis_name),
            "episode_length": losses.masked_mean(
                actors.last_length.astype(jnp.float32), finished, axis_name=axis_name
            ),
            "explained_variance": losses.explained_variance(returns, record.value, axis_name=axis_name),
        }
        if axis_name is not None:
            experience = jax.lax.pmean(experience, axis_name)
        metrics |= experience
        metrics["skipped"] = (state.skipped + num_skipped).astype(jnp.float32)
        metrics["learning_rate"] = learning_rate
        if config.normalize_returns:
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
            skipped=state.skipped + num_skipped,
        ), metrics

    return init, step


def hyperparameters(config: UnrealConfig) -> Hyperparameters:
    """Those of the configuration."""
    return Hyperparameters(*(getattr(config, name) for name in Hyperparameters._fields))


def make_rate_left(config: UnrealConfig) -> optax.Schedule:
    """What is left of the learning rate, from 1 down to 0, by number of updates."""
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
