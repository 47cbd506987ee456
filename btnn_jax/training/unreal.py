"""The train step: A2C or PPO with UNREAL's auxiliary tasks (Jaderberg et al. 2016, arXiv:1611.05397)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from btnn_jax import categorical, losses, targets
from btnn_jax.envs.base import Environment
from btnn_jax.policies import AgentInput, PolicyOutput, State, UnrealPolicy, init_params, make_policy
from btnn_jax.replay import Frames, Replay, ReplayState, Window, make_replay
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.rollout import Actors, Rollout, make_rollout

PyTree = Any
Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """All that a run depends on, apart from its configuration."""

    params: PyTree
    opt_state: optax.OptState
    actors: Actors
    replay: ReplayState | None  # None when no task replays
    key: jax.Array  # [], the learner's stream: noise, minibatches, replay
    update: jax.Array  # int32 [], calls of `step` so far
    skipped: jax.Array  # int32 [], gradient steps left out because they were not finite


class ReplayStep(NamedTuple):
    """One stored step; leaves `[..., B, ...]`."""

    observation: PyTree
    last_action: PyTree
    last_reward: jax.Array
    action: PyTree
    log_prob: jax.Array  # float32, of the action under the policy that acted
    terminated: jax.Array
    pixel_change: jax.Array | None


class OnPolicy(NamedTuple):
    """What a gradient step needs of the rollout; leaves `[T, B, ...]`, the core's `[B, ...]`."""

    rollout: Rollout
    advantage: jax.Array
    returns: jax.Array
    core: State


def make_unreal_policy(config: UnrealConfig, env: Environment, **overrides: Any) -> UnrealPolicy:
    """The agent's network that `config` describes for `env`; `overrides` go to `make_policy`."""
    fields = {
        "num_filters": config.num_filters,
        "hidden": config.hidden,
        "lstm": config.lstm,
        "noisy": config.noisy,
        "pixel_control": config.pc_weight > 0,
        "pc_cell": config.pc_cell,
        "pc_stream": config.pc_stream,
        "reward_prediction": config.rp_weight > 0,
    }
    return make_policy(env.action_depths, env.observation, **{**fields, **overrides})


def make_unreal(
    config: UnrealConfig,
    env: Environment,
    *,
    policy: UnrealPolicy | None = None,
    axis_name: str | None = None,
) -> tuple[Callable[[jax.Array], TrainState], Callable[[TrainState], tuple[TrainState, Metrics]]]:
    """Binds a configuration and an environment into `(init, step)`, both pure.

    `step` acts for `config.rollout_length` steps in `config.num_envs` environments, stores them, and makes
    `config.gradients_per_update` gradient steps on

        loss = actor-critic + pc_weight * pixel control + vr_weight * value replay + rp_weight * reward prediction

    Args:
      config: what to learn and how.
      env: one environment.
      policy: the agent's network; None takes `make_unreal_policy(config, env)`.
      axis_name: axis of the `vmap` or `pmap` around both functions: one learner with `num_envs` environments
        on each device. Give `init` the same key everywhere, as
        `jax.pmap(init, axis_name, in_axes=None, axis_size=n)(key)` does; then parameters start equal,
        environments do not, and gradients and metrics are averaged.

    Returns:
      `init(key) -> TrainState` and `step(state) -> (state, metrics)`, where metrics are float32 scalars:
      `policy_loss value_loss entropy explained_variance gradient_norm episode_return episode_length skipped
      learning_rate`, and, where they apply, `approx_kl clip_fraction noise_sigma pixel_control_loss
      value_replay_loss reward_prediction_loss`. Losses are means over the gradient steps that were made, 0 if
      all were skipped.
    """
    policy = policy or make_unreal_policy(config, env)
    reset, rollout = make_rollout(
        env,
        policy,
        config.num_envs,
        config.rollout_length,
        pc_cell=config.pc_cell if config.pc_weight else None,
        pc_stream=config.pc_stream,
    )
    replay = None
    if config.replays:
        replay = make_replay(config.replay_length, config.rollout_length, burn_in=config.replay_burn_in)
    optimizer = make_optimizer(config)
    learning_rate_at = make_learning_rate(config)
    task_loss = make_task_loss(config, policy, replay, axis_name)

    def init(key: jax.Array) -> TrainState:
        params_key, actors_key, learner_key = jax.random.split(key, 3)
        if axis_name is not None:
            device = jax.lax.axis_index(axis_name)
            actors_key, learner_key = (jax.random.fold_in(k, device) for k in (actors_key, learner_key))
        params = init_params(policy, params_key, env.observation, rp_frames=config.rp_frames)
        actors = reset(actors_key)
        stored = None
        if replay is not None:
            record = jax.eval_shape(rollout, params, actors, learner_key)[1]
            first = jax.eval_shape(lambda record: jax.tree.map(lambda x: x[0], _to_replay(record)), record)
            stored = replay.init(first, actors.core)
        return TrainState(
            params=params,
            opt_state=optimizer.init(params),
            actors=actors,
            replay=stored,
            key=learner_key,
            update=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
        )

    def gradient_step(carry, batch_and_keys, *, noise_key, stored, learning_rate, entropy_beta):
        params, opt_state = carry
        batch, replay_key = batch_and_keys
        (_, metrics), gradients = jax.value_and_grad(task_loss, has_aux=True)(
            params, batch, stored, jax.random.clone(noise_key), replay_key, entropy_beta
        )
        if axis_name is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
        norm = optax.tree.norm(gradients)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float32 and int32
            updates, new_opt_state = optimizer.update(gradients, opt_state)
        updates = optax.tree.scale(-learning_rate, updates)
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
        key, noise_key, shuffle_key, replay_key = jax.random.split(state.key, 4)
        actors, record, last_value = rollout(state.params, state.actors, noise_key)
        stored = state.replay
        if replay is not None:
            stored = replay.add(
                stored, _to_replay(record), record.reward, record.inputs.reset, state.actors.core
            )

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
        learning_rate = jnp.asarray(learning_rate_at(state.update), jnp.float32)
        progress = state.update.astype(jnp.float32) / config.num_updates
        entropy_beta = config.entropy_beta
        if config.entropy_beta_final is not None:
            entropy_beta += progress * (config.entropy_beta_final - config.entropy_beta)

        one_step = functools.partial(
            gradient_step,
            noise_key=jax.random.clone(noise_key),
            stored=stored,
            learning_rate=learning_rate,
            entropy_beta=entropy_beta,
        )
        carry = (state.params, state.opt_state)
        if config.algorithm == "a2c":
            (params, opt_state), (learned, skipped) = one_step(carry, (batch, replay_key))
        else:

            def minibatch_step(carry, rows):
                key, learner = carry
                key, replay_key = jax.random.split(key)
                learner, out = one_step(learner, (_take(batch, rows), replay_key))
                return (key, learner), out

            (_, (params, opt_state)), (learned, skipped) = jax.lax.scan(
                minibatch_step, (replay_key, carry), _minibatch_rows(shuffle_key, config)
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
        if sigmas := _noise_sigmas(params):
            metrics["noise_sigma"] = sum(jnp.sum(jnp.abs(x)) for x in sigmas) / sum(x.size for x in sigmas)
        return TrainState(
            params=params,
            opt_state=opt_state,
            actors=actors,
            replay=stored,
            key=key,
            update=state.update + 1,
            skipped=state.skipped + num_skipped,
        ), metrics

    return init, step


def make_learning_rate(config: UnrealConfig) -> optax.Schedule:
    """The learning rate by number of updates."""
    if config.learning_rate_schedule == "linear":
        return optax.linear_schedule(config.learning_rate, 0.0, config.num_updates)
    if config.learning_rate_schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, config.num_updates)
    return optax.constant_schedule(config.learning_rate)


def make_optimizer(config: UnrealConfig) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) on gradients whose norm, all taken together, is at most `max_grad_norm`.

    Its updates are still to be multiplied by minus the learning rate.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=config.adam_epsilon)
    )


def make_task_loss(
    config: UnrealConfig, policy: UnrealPolicy, replay: Replay | None, axis_name: str | None = None
) -> Callable[..., tuple[jax.Array, Metrics]]:
    """The whole loss of one gradient step, `(params, batch, stored, noise_key, replay_key, entropy_beta)`."""

    def apply(params: PyTree, inputs: AgentInput, core: State, noise_key: jax.Array):
        return policy.apply({"params": params}, inputs, core, rngs={"noise": noise_key})

    def head(params: PyTree, method: Callable, x: PyTree, noise_key: jax.Array):
        return policy.apply({"params": params}, x, rngs={"noise": noise_key}, method=method)

    def on_policy(params, batch: OnPolicy, noise_key, entropy_beta) -> tuple[jax.Array, Metrics]:
        output, _ = apply(params, batch.rollout.inputs, batch.core, noise_key)
        advantage = batch.advantage
        if config.normalize_advantages:
            advantage = _standardise(advantage, axis_name)
        arguments = (batch.rollout.action, advantage, batch.returns, output.logits, output.value)
        weights = {
            "entropy_beta": entropy_beta,
            "value_weight": config.value_weight,
            "axis_name": axis_name,
        }
        if config.algorithm == "a2c":
            return losses.aac_loss(*arguments, **weights)
        return losses.ppo_loss(*arguments, batch.rollout.logits, epsilon=config.ppo_epsilon, **weights)

    def refreshed(params, inputs: AgentInput, core: State, noise_key) -> PolicyOutput:
        """Answers to a window; no gradient flows into steps that only refresh the recurrent state."""
        burn_in = config.replay_burn_in
        if burn_in == 0:
            return apply(params, inputs, core, noise_key)[0]
        first = jax.tree.map(lambda x: x[:burn_in], inputs)
        rest = jax.tree.map(lambda x: x[burn_in:], inputs)
        before, core = apply(params, first, core, jax.random.clone(noise_key))
        exact = inputs.reset[0][:, None]  # the window starts with its episode and learns from all of it
        core = jax.tree.map(lambda x: jnp.where(exact, x, jax.lax.stop_gradient(x)), core)
        after, _ = apply(params, rest, core, noise_key)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), before, after)

    def replayed(params, window: Window, noise_key) -> tuple[jax.Array, Metrics]:
        """Value replay and pixel control, both from one pass over the replayed sequences."""
        pass_key, pixel_key = jax.random.split(noise_key)
        steps = window.steps
        inputs = AgentInput(steps.observation, steps.last_action, steps.last_reward, window.resets)
        output = refreshed(params, inputs, window.core, pass_key)
        # A truncated step is the last of its window, so the mask alone says where returns are cut.
        learn, cut = targets.window_mask(window.where, steps.terminated, jnp.zeros_like(steps.terminated))
        loss, metrics = jnp.zeros(()), {}
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
            value_loss, _ = losses.value_fn_loss(returns, output.value, where=learn, axis_name=axis_name)
            loss += config.vr_weight * value_loss
            metrics["value_replay_loss"] = value_loss
        if config.pc_weight:
            q = head(params, UnrealPolicy.pixel_control, output.features, pixel_key)

            def pixel_returns(head_q: jax.Array) -> jax.Array:
                best = jnp.max(head_q, axis=-1)
                following = jnp.concatenate([best[1:], best[-1:]])
                return targets.pixel_control_targets(
                    steps.pixel_change, following, steps.terminated, cut, discount=config.pc_discount
                )

            pixel_loss, _ = losses.pc_loss(
                steps.action, jax.tree.map(pixel_returns, q), q, where=learn, axis_name=axis_name
            )
            loss += config.pc_weight * pixel_loss
            metrics["pixel_control_loss"] = pixel_loss
        return loss, metrics

    def reward_prediction(params, frames: Frames, noise_key) -> tuple[jax.Array, Metrics]:
        logits = head(params, UnrealPolicy.reward_prediction, frames.steps.observation, noise_key)
        classes = targets.reward_class(frames.rewards, config.rp_threshold)
        loss, _ = losses.rp_loss(classes, logits, where=frames.where, axis_name=axis_name)
        return config.rp_weight * loss, {"reward_prediction_loss": loss}

    def task_loss(params, batch: OnPolicy, stored: ReplayState | None, noise_key, replay_key, entropy_beta):
        loss, metrics = on_policy(params, batch, noise_key, entropy_beta)
        window_key, window_noise_key, frame_key, frame_noise_key = jax.random.split(replay_key, 4)
        parts = []
        if config.vr_weight or config.pc_weight:
            parts.append(
                replayed(params, replay.sample(window_key, stored, config.replay_batch), window_noise_key)
            )
        if config.rp_weight:
            frames = replay.sample_rebalanced(
                frame_key, stored, config.rp_batch, config.rp_frames, threshold=config.rp_threshold
            )
            parts.append(reward_prediction(params, frames, frame_noise_key))
        for part, part_metrics in parts:
            loss, metrics = loss + part, metrics | part_metrics
        return loss, metrics

    return task_loss


def _to_replay(record: Rollout) -> ReplayStep:
    return ReplayStep(
        observation=record.inputs.observation,
        last_action=record.inputs.last_action,
        last_reward=record.inputs.last_reward,
        action=record.action,
        log_prob=categorical.log_prob(record.logits, record.action),
        terminated=record.terminated,
        pixel_change=record.pixel_change,
    )


def _minibatch_rows(key: jax.Array, config: UnrealConfig) -> jax.Array:
    """Which environments each gradient step learns from, int32 `[epochs * minibatches, num_envs // minibatches]`."""
    keys = jax.random.split(key, config.epochs)
    rows = jax.vmap(lambda k: jax.random.permutation(k, config.num_envs))(keys)
    return rows.reshape(config.epochs * config.minibatches, -1)


def _take(batch: OnPolicy, rows: jax.Array) -> OnPolicy:
    """Whole sequences of some environments."""
    core = jax.tree.map(lambda x: x[rows], batch.core)
    return jax.tree.map(lambda x: x[:, rows], batch._replace(core=()))._replace(core=core)


def _standardise(x: jax.Array, axis_name: str | None) -> jax.Array:
    def mean(y: jax.Array) -> jax.Array:
        y = jnp.mean(y)
        return y if axis_name is None else jax.lax.pmean(y, axis_name)

    centred = x - mean(x)
    return centred / (jnp.sqrt(mean(jnp.square(centred))) + 1e-8)


def _noise_sigmas(params: PyTree) -> list[jax.Array]:
    """The `kernel_sigma` of every noisy layer."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [x for path, x in leaves if jax.tree_util.keystr(path[-1:], simple=True) == "kernel_sigma"]
