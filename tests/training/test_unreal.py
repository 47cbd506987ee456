import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.evaluate import make_evaluate, make_evaluate_random
from btnn_jax.training.mapping import make_mapped
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.unreal import make_lr_decay, make_optimizer, make_unreal

TINY = UnrealConfig(
    num_envs=4,
    rollout_length=8,
    total_steps=32 * 100,
    epochs=1,
    minibatches=2,
    hidden=(8,),
    lstm=(8,),
    num_filters=(2,),
    replay_length=32,
    replay_batch=2,
    rp_batch=4,
)
BARE = dataclasses.replace(TINY, pc_weight=0, vr_weight=0, rp_weight=0)
ALWAYS = {
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance", "gradient_norm",
    "episode_return", "episode_length", "skipped", "learning_rate", "noise_sigma", "return_scale",
}  # fmt: skip


def run(config, env, updates, seed=0):
    init, step, *_ = make_unreal(config, env) if config.shards == 1 else make_mapped(config, env)[:2]
    state, step = jax.jit(init)(jax.random.key(seed)), jax.jit(step, donate_argnums=0)
    for _ in range(updates):
        state, metrics = step(state)
    return state, metrics


@pytest.mark.parametrize(
    ("algorithm", "tasks"),
    [("a2c", "pc"), ("ppo", "vr"), ("a2c", "rp"), ("a2c", "pc vr rp"), ("ppo", "pc vr rp")],
)
def test_every_algorithm_runs_with_every_task(algorithm, tasks):
    env = envs.make("probe-pixels")
    off = {f"{task}_weight": 0.0 for task in ("pc", "vr", "rp") if task not in tasks}
    config = dataclasses.replace(TINY, algorithm=algorithm, entropy_beta_final=0.0, **off)
    state, metrics = run(config, env, 3)
    names = {"pc": "pixel_control_loss", "vr": "value_replay_loss", "rp": "reward_prediction_loss"}
    ppo_only = {"approx_kl", "clip_fraction"} if algorithm == "a2c" else set()
    assert set(metrics) == (ALWAYS | {names[t] for t in tasks.split()}) - ppo_only
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    assert all(np.isfinite(value) for value in metrics.values())
    assert state.update == 3
    # a task that is switched off has no parameters
    assert ("pc_head" in state.params) == ("pc" in tasks)
    assert ("rp_head" in state.params) == ("rp" in tasks)


@pytest.mark.parametrize("name", ["probe-memory", "trading"])
def test_sixty_four_bits_change_no_type_in_the_train_step(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        init, step, *_ = make_unreal(dataclasses.replace(TINY, pc_weight=0), envs.make(name))
        state = jax.eval_shape(init, jax.random.key(0))
        after, metrics = jax.eval_shape(step, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {x.dtype for x in jax.tree.leaves((state.params, metrics))} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
@pytest.mark.parametrize(
    "change",
    [{}, {"precision": "bfloat16"}, {"lstm": (), "noisy": False}, {"replay_burn_in": 4}, {"shards": 2}],
    ids=str,
)
def test_a_hundred_updates_without_a_nan(algorithm, change):
    """Every key is used once, too: the tests' set-up checks that all along."""
    config = dataclasses.replace(TINY, algorithm=algorithm, **change)
    with jax.debug_nans(True):
        state, metrics = run(config, envs.make("probe-pixels"), 100)
    assert metrics["skipped"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_at_unchanged_parameters_the_ratio_is_one():
    config = dataclasses.replace(TINY, minibatches=1, pc_weight=0, vr_weight=0, rp_weight=0)
    _, metrics = run(config, envs.make("probe-memory"), 3)
    np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-6)
    assert metrics["clip_fraction"] == 0
    several = dataclasses.replace(config, epochs=2, learning_rate=0.01, learning_rate_schedule="constant")
    assert run(several, envs.make("probe-memory"), 3)[1]["approx_kl"] > 1e-6


def test_bfloat16_rounds_the_network_and_nothing_else():
    config = dataclasses.replace(
        BARE, precision="bfloat16", epochs=2, learning_rate=1e-30, learning_rate_schedule="constant"
    )
    state, metrics = run(config, envs.make("probe-memory"), 3)
    assert metrics["approx_kl"] == 0  # the ratio is 1, not nearly
    assert metrics["clip_fraction"] == 0
    kinds = {
        leaf.dtype for leaf in jax.tree.leaves((state.params, state.opt_state, state.actors.core, metrics))
    }
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    policy = make_unreal_policy(config, envs.make("probe-memory"))
    inputs = jax.tree.map(lambda x: x[None], state.actors.inputs)
    output, _ = policy.apply({"params": state.params}, inputs, state.actors.core, deterministic=True)
    assert (output.logits.dtype, output.value.dtype) == (jnp.float32, jnp.float32)
    assert output.features.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("minibatches", [1, 4])
@pytest.mark.parametrize("shards", [1, 2])
def test_in_bfloat16_the_ratio_is_one_with_all_optimizations(optimized, minibatches, shards):
    config = dataclasses.replace(
        BARE, precision="bfloat16", num_envs=8, minibatches=minibatches, shards=shards, epochs=2,
        hidden=(32,), lstm=(32,), learning_rate=1e-30, learning_rate_schedule="constant",
    )  # fmt: skip
    _, metrics = run(config, envs.make("probe-pixels"), 3)
    assert metrics["approx_kl"] == metrics["clip_fraction"] == 0


def test_minibatches_see_the_noise_that_acted():
    config = dataclasses.replace(
        BARE, epochs=3, minibatches=4, learning_rate=1e-30, learning_rate_schedule="constant"
    )
    _, metrics = run(config, envs.make("probe-memory"), 3)
    np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-6)
    assert metrics["clip_fraction"] == 0


@pytest.mark.parametrize("noisy", [True, False])
def test_noise_is_new_in_every_update(noisy):
    """The observation and, all but, the parameters stay the same: what changes is the noise."""
    config = dataclasses.replace(
        BARE, noisy=noisy, lstm=(), learning_rate=1e-30, learning_rate_schedule="constant"
    )
    init, step, *_ = make_unreal(config, envs.make("probe-constant"))
    step = jax.jit(step)
    state, first = step(jax.jit(init)(jax.random.key(0)))
    _, second = step(state)
    assert np.allclose(first["entropy"], second["entropy"], rtol=1e-6) != noisy


def test_the_second_call_compiles_nothing_and_keeps_nothing(compiled):
    init, step, *_ = make_unreal(TINY, envs.make("probe-pixels"))
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step, donate_argnums=0)
    state, _ = step(state)
    living, before = len(jax.live_arrays()), len(compiled)
    assert before
    for _ in range(5):
        state, metrics = step(state)
    del metrics
    assert len(compiled) == before
    assert len(jax.live_arrays()) <= living


def test_seeds_differ_and_repeat_in_one_program():
    config = dataclasses.replace(BARE, total_steps=32 * 6)
    init, step, *_ = make_unreal(config, envs.make("probe-choice"))
    seeds = jnp.array([0, 1, 2, 0])
    state = jax.jit(jax.vmap(lambda seed: init(jax.random.key(seed))))(seeds)
    step = jax.jit(jax.vmap(step))
    curves = []
    for _ in range(6):
        state, metrics = step(state)
        curves.append(metrics["policy_loss"])
    curves = np.stack(curves)
    np.testing.assert_array_equal(curves[:, 0], curves[:, 3])
    assert len(np.unique(curves, axis=1).T) == 3


def test_one_seed_alone_is_the_seed_among_others():
    config = dataclasses.replace(BARE, total_steps=32 * 3)
    init, step, *_ = make_unreal(config, envs.make("probe-choice"))
    states = jax.jit(jax.vmap(lambda seed: init(jax.random.key(seed))))(jnp.arange(2))
    alone = jax.jit(init)(jax.random.key(1))
    both, one = jax.jit(jax.vmap(step)), jax.jit(step)
    for _ in range(3):
        states, _ = both(states)
        alone, _ = one(alone)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), states.params, alone.params
    )


class Poisoned:
    """An environment whose reward is not a number when the state says so."""

    def __init__(self, bad_steps):
        self.inner, self.bad_steps = envs.make("probe-constant"), bad_steps
        self.name, self.observation, self.action_depths = "poisoned", self.inner.observation, 2

    def reset(self, key):
        state, observation = self.inner.reset(key)
        return (state, jnp.zeros((), jnp.int32)), observation

    def step(self, key, state, action):
        inner, time = state
        inner, step = self.inner.step(key, inner, action)
        bad = (time >= self.bad_steps[0]) & (time < self.bad_steps[1])
        return (inner, time + 1), step._replace(reward=jnp.where(bad, jnp.nan, step.reward))


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    config = dataclasses.replace(BARE, lstm=(), minibatches=2, epochs=2)
    init, step, *_ = make_unreal(config, Poisoned((8, 16)))
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step)
    first, metrics = step(state)
    assert metrics["skipped"] == 0
    second, metrics = step(first)
    assert metrics["skipped"] == 4
    assert second.skipped == 4
    assert all(np.isfinite(metrics[name]) for name in ("policy_loss", "value_loss", "gradient_norm"))
    chex.assert_trees_all_equal(first.params, second.params)
    chex.assert_trees_all_equal(first.opt_state, second.opt_state)
    third, metrics = step(second)
    assert metrics["skipped"] == 4
    assert not np.array_equal(jax.tree.leaves(second.params)[0], jax.tree.leaves(third.params)[0])


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_the_learning_rate_follows_its_schedule(schedule, middle, end):
    config = dataclasses.replace(TINY, learning_rate_schedule=schedule)
    rate_left = jax.jit(make_lr_decay(config))
    left = [rate_left(jnp.float32(config.num_updates * part)) for part in (0, 0.5, 1)]
    np.testing.assert_allclose(left, [1, middle, end], atol=1e-6)


def test_the_first_update_has_the_whole_learning_rate_and_the_last_a_part():
    config = dataclasses.replace(BARE, lstm=(), total_steps=32 * 4)
    init, step, *_ = make_unreal(config, envs.make("probe-constant"))
    state, step, rates = jax.jit(init)(jax.random.key(0)), jax.jit(step), []
    for _ in range(4):
        state, metrics = step(state)
        rates.append(metrics["learning_rate"])
    np.testing.assert_allclose(rates, config.learning_rate * np.array([1, 0.75, 0.5, 0.25]), rtol=1e-6)


def test_the_weight_of_the_entropy_goes_to_its_end():
    config = dataclasses.replace(
        BARE, algorithm="a2c", lstm=(), entropy_beta=0.5, learning_rate_schedule="constant"
    )
    env = envs.make("probe-choice")
    init, constant, *_ = make_unreal(config, env)
    changing = make_unreal(dataclasses.replace(config, entropy_beta_final=0.1), env)[1]
    init, constant, changing = map(jax.jit, (init, constant, changing))
    for part, beta in ((0, 0.5), (0.5, 0.3), (1, 0.1)):
        late, early = init(jax.random.key(0)), init(jax.random.key(0))
        ours = changing(late.replace(update=jnp.int32(part * config.num_updates)))[0]
        same = constant(early.replace(hyper=early.hyper._replace(entropy_beta=jnp.float32(beta))))[0]
        # The first moment is the gradient's; Adam's first step hides its size.
        ours, same = (optax.tree.get(s.opt_state, "mu") for s in (ours, same))
        chex.assert_trees_all_close(ours, same, rtol=1e-4, atol=1e-8)


def test_the_replay_keeps_the_memory_before_each_rollout():
    config = dataclasses.replace(BARE, vr_weight=1.0)
    init, step, *_ = make_unreal(config, envs.make("probe-memory"))
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step)
    for index in range(3):
        after, _ = step(state)
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x, i=index: x[i], after.replay.cores), state.actors.core
        )
        state = after


def test_only_finished_episodes_are_averaged():
    init, step, *_ = make_unreal(dataclasses.replace(BARE, lstm=()), envs.make("probe-discount", length=30))
    state = jax.jit(init)(jax.random.key(0))
    actors = state.actors._replace(
        last_return=jnp.array([3.0, 0, 1, 0]), last_length=jnp.array([5, 0, 7, 0], jnp.int32)
    )
    _, metrics = jax.jit(step)(state.replace(actors=actors))  # none ends within it
    assert (metrics["episode_return"], metrics["episode_length"]) == (2, 6)


def test_losses_are_means_of_the_gradient_steps_that_were_made():
    config = dataclasses.replace(
        BARE, lstm=(), minibatches=4, noisy=False, learning_rate=1e-30, learning_rate_schedule="constant"
    )
    init, step, *_ = make_unreal(config, Poisoned((8, 16)))
    init, step = jax.jit(init), jax.jit(step)
    _, all_made = step(init(jax.random.key(0)))
    state = init(jax.random.key(0))
    inner, time = state.actors.env_state
    poisoned = state.actors._replace(env_state=(inner, time.at[0].set(8)))  # one of four minibatches
    _, metrics = step(state.replace(actors=poisoned))
    assert metrics["skipped"] == 1
    np.testing.assert_allclose(metrics["entropy"], all_made["entropy"], rtol=1e-6)


def test_lambda_decides_what_the_values_learn():
    configs = [dataclasses.replace(BARE, algorithm="a2c", lstm=(), gae_lambda=x) for x in (0.0, 1.0)]
    short, whole = (run(config, envs.make("probe-discount"), 1)[1]["value_loss"] for config in configs)
    assert abs(short - whole) > 1e-3


def test_the_epsilon_of_adam_is_that_of_the_configuration():
    optimizer = make_optimizer(dataclasses.replace(TINY, adam_epsilon=1e-3))
    gradients = {"a": jnp.full(3, 1e-3)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(gradients, optimizer.init(gradients))
    np.testing.assert_allclose(updates["a"], 0.5, rtol=1e-5)  # g / (|g| + epsilon), at first


def test_the_global_norm_is_bounded():
    config = dataclasses.replace(TINY, max_grad_norm=0.5)
    optimizer = make_optimizer(config)
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    gradients = {"a": jnp.full(3, 100.0), "b": jnp.full(4, -1.0)}
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(gradients, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1 * 0.5, rtol=1e-5)
    # bounded together, not element by element: the direction stays
    np.testing.assert_allclose(first_moment["a"][0] / first_moment["b"][0], -100.0, rtol=1e-5)


def test_the_train_step_bounds_the_global_norm():
    config = dataclasses.replace(BARE, algorithm="a2c", max_grad_norm=1e-4)
    state, metrics = run(config, envs.make("probe-choice"), 1)
    assert metrics["gradient_norm"] > 1e-3  # as it was before
    first_moment = optax.tree.get(state.opt_state, "mu")
    np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1 * 1e-4, rtol=1e-4)


def test_memory_does_not_double_with_the_replay():
    def memory(replay_length):
        config = dataclasses.replace(BARE, vr_weight=1.0, lstm=(), noisy=False, replay_length=replay_length)
        init, step, *_ = make_unreal(config, envs.make("probe-pixels"))
        state = jax.eval_shape(init, jax.random.key(0))
        return jax.jit(step, donate_argnums=0).lower(state).compile().memory_analysis()

    small, large = memory(64), memory(4096)
    stored = (4096 - 64) * 4 * 100  # uint8 pixels of 4 environments
    assert large.alias_size_in_bytes - small.alias_size_in_bytes > stored
    assert large.temp_size_in_bytes - small.temp_size_in_bytes < stored / 10


AUTOENCODER = dataclasses.replace(
    BARE, autoencoder="beta_vae", ae_layers=((4, (3, 3), (2, 2)),), ae_weight=0.1, ae_beta=0.01, lstm=()
)


def test_a_frozen_encoder_stays_and_the_rest_learns():
    env = envs.make("probe-pixels")
    fresh = jax.jit(make_unreal(AUTOENCODER, env)[0])(jax.random.key(5)).params["encoder"]
    part = {"encoder": {"autoencoder": fresh["autoencoder"]}}
    config = dataclasses.replace(AUTOENCODER, frozen=("encoder/autoencoder",))
    init, step, *_ = make_unreal(config, env, pretrained=part)
    state = jax.jit(init)(jax.random.key(0))
    chex.assert_trees_all_equal(state.params["encoder"]["autoencoder"], fresh["autoencoder"])
    after, metrics = jax.jit(step)(state)
    chex.assert_trees_all_equal(after.params["encoder"]["autoencoder"], fresh["autoencoder"])
    for name in ("stream_dense_0", "actor_critic"):
        before, now = ({**s.params, **s.params["encoder"]}[name] for s in (state, after))
        assert not np.array_equal(jax.tree.leaves(before)[-1], jax.tree.leaves(now)[-1])
    assert metrics["autoencoder_loss"] > 0
    assert "autoencoder" not in str(jax.tree_util.tree_leaves_with_path(state.opt_state))


def test_the_autoencoder_learns_beside_the_agent():
    env = envs.make("probe-pixels")
    config = dataclasses.replace(AUTOENCODER, learning_rate=0.01, learning_rate_schedule="constant")
    init, step, *_ = make_unreal(config, env)
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step)
    losses = []
    for _ in range(60):
        state, metrics = step(state)
        losses.append(metrics["autoencoder_loss"])
    assert losses[-1] < losses[0] / 2


LEARN = dataclasses.replace(
    BARE, algorithm="a2c", num_envs=32, hidden=(16,), lstm=(), noisy=False, learning_rate=0.01, gae_lambda=0.9,
    discount=0.9, value_weight=1.0, total_steps=32 * 8 * 300, learning_rate_schedule="constant",
)  # fmt: skip


def learned_values(name, observations, **fields):
    """Values of `observations [N, ...]` after training on a probe."""
    env = envs.make(name)
    config = dataclasses.replace(LEARN, **fields)
    state, _ = run(config, env, config.num_updates)
    policy = make_unreal_policy(config, env)
    zeros = jnp.zeros((1, len(observations)))
    inputs = (observations[None], zeros.astype(jnp.int32), zeros, zeros.astype(bool))
    inputs = type(state.actors.inputs)(*inputs)
    return policy.apply({"params": state.params}, inputs, (), deterministic=True)[0].value[0]


def test_learns_a_constant_value():
    np.testing.assert_allclose(learned_values("probe-constant", jnp.ones((1, 1))), 1.0, atol=0.05)


def test_learns_a_value_that_depends_on_the_observation():
    observations = jnp.array([[1.0], [-1.0]])
    np.testing.assert_allclose(learned_values("probe-observation", observations), [1, -1], atol=0.05)


def test_learns_discounted_values():
    values = learned_values("probe-discount", jnp.eye(5))
    np.testing.assert_allclose(values, 0.9 ** np.arange(4, -1, -1), atol=0.05)


@pytest.mark.parametrize("fields", [{}, {"vr_weight": 1.0}], ids=["on-policy", "value replay"])
def test_a_time_limit_is_not_an_end(fields):
    observations = jnp.array([[1.0], [-1.0]])
    np.testing.assert_allclose(
        learned_values("probe-truncation", observations, **fields), [10, -10], atol=1.0
    )


def evaluate(config, env, state, greedy=True):
    policy = make_unreal_policy(config, env)
    return jax.jit(make_evaluate(env, policy, num_episodes=256, greedy=greedy))(
        state.params, jax.random.key(7)
    )


@pytest.mark.parametrize("name", ["probe-action", "probe-choice", "probe-heads"])
@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_learns_to_choose(name, algorithm):
    env = envs.make(name)
    config = dataclasses.replace(LEARN, algorithm=algorithm, noisy=True, total_steps=32 * 8 * 100)
    state, _ = run(config, env, config.num_updates)
    episodes = evaluate(config, env, state)
    assert episodes.finished.all()
    assert episodes.returns.mean() > 0.98


def test_memory_is_learned_with_the_lstm_and_not_without():
    env = envs.make("probe-memory")
    config = dataclasses.replace(
        LEARN, algorithm="ppo", lstm=(16,), entropy_beta=0.003, total_steps=32 * 8 * 250
    )
    state, _ = run(config, env, config.num_updates)
    assert evaluate(config, env, state).returns.mean() > 0.95
    config = dataclasses.replace(config, lstm=())
    state, _ = run(config, env, config.num_updates)
    assert evaluate(config, env, state).returns.mean() < 0.45


def test_pixel_control_knows_what_an_action_changes():
    env = envs.make("probe-pixels")
    config = dataclasses.replace(
        LEARN, pc_weight=1.0, pc_discount=0.0, pc_cell=(2, 2), hidden=(32,), entropy_beta=1.0, replay_length=64,
        replay_batch=32, learning_rate=0.003, total_steps=32 * 8 * 300,
    )  # fmt: skip
    state, _ = run(config, env, config.num_updates)
    policy = make_unreal_policy(config, env)
    inputs = jax.tree.map(lambda x: x[None], state.actors.inputs)

    def q(module):
        output, _ = module(inputs, (), deterministic=True)
        return module.pixel_control(output.features, deterministic=True)

    q = np.mean(policy.apply({"params": state.params}, method=q)[0], axis=0)  # [4, 4, 5]
    wanted = np.zeros((4, 4, 5))
    for k, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)], 1):
        wanted[row : row + 2, column : column + 2, k] = 1
    np.testing.assert_allclose(q, wanted, atol=0.15)


def test_evaluation_counts_each_environments_first_episode():
    env = envs.make("probe-discount", length=5)
    episodes = jax.jit(make_evaluate_random(env, num_episodes=64))(jax.random.key(0))
    np.testing.assert_array_equal(episodes.returns, np.ones(64))
    np.testing.assert_array_equal(episodes.lengths, np.full(64, 5))
    cut = jax.jit(make_evaluate_random(env, num_episodes=64, max_steps=3))(jax.random.key(0))
    assert not cut.finished.any()
    np.testing.assert_array_equal(cut.lengths, np.full(64, 3))
    random = jax.jit(make_evaluate_random(envs.make("probe-choice"), num_episodes=4096))(jax.random.key(0))
    depths = envs.make("probe-choice").action_depths
    np.testing.assert_allclose(random.returns.mean(), 1 / depths, atol=0.04)


class Scaled:
    """Another environment whose rewards are multiplied by a factor."""

    def __init__(self, env, factor):
        self.env, self.factor = env, factor
        self.name, self.observation, self.action_depths = env.name, env.observation, env.action_depths

    def reset(self, key):
        return self.env.reset(key)

    def step(self, key, state, action):
        state, step = self.env.step(key, state, action)
        return state, step._replace(reward=step.reward * self.factor)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_rewards_of_any_size_learn_the_same_to_the_bit(algorithm):
    """A power of two only shifts exponents, so that in one program not even rounding may differ."""
    config = dataclasses.replace(BARE, algorithm=algorithm, vr_weight=0.5, rp_weight=0.5)

    @jax.jit
    def learn(factor):
        init, step, *_ = make_unreal(config, Scaled(envs.make("probe-memory"), factor))
        state, metrics = jax.lax.scan(lambda state, _: step(state), init(jax.random.key(0)), length=4)
        return state.params, jax.tree.map(lambda x: x[-1], metrics)

    plain, metrics = learn(1.0)
    scale = plain.pop("return_scale")
    assert scale > 0
    for factor in (2.0**7, 2.0**-7):
        scaled, scaled_metrics = learn(factor)
        assert scaled.pop("return_scale") == factor * scale
        chex.assert_trees_all_equal(scaled, plain)
        for name in ("policy_loss", "value_loss", "entropy", "gradient_norm", "value_replay_loss"):
            assert scaled_metrics[name] == metrics[name]


def test_without_normalization_the_size_of_rewards_matters():
    config = dataclasses.replace(BARE, normalize_returns=False)
    env = envs.make("probe-memory")
    plain, scaled = (run(config, each, 3)[0].params for each in (env, Scaled(env, 128.0)))
    assert "return_scale" not in plain
    assert not np.allclose(
        plain["encoder"]["stream_dense_0"]["kernel"], scaled["encoder"]["stream_dense_0"]["kernel"]
    )


def test_the_scale_is_that_of_the_discounted_rewards():
    config = dataclasses.replace(BARE, lstm=(), discount=0.5)
    state, metrics = run(
        config, envs.make("probe-constant"), 1
    )  # a reward of 1 at every step, episodes of one step
    assert metrics["return_scale"] == 1
    state, metrics = run(config, Scaled(envs.make("probe-constant"), 3.0), 2)
    np.testing.assert_allclose([metrics["return_scale"], state.params["return_scale"]], 3.0, rtol=1e-6)


def test_shards_share_one_scale():
    config = dataclasses.replace(BARE, lstm=(), shards=2)
    state, _ = run(config, envs.make("probe-choice"), 3)
    assert state.params["return_scale"].shape == ()
    assert state.params["return_scale"] > 0
