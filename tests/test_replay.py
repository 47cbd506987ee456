"""The replay: contiguity at every fill level, the rebalanced sampler's distribution, cost of adding."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from btnn_jax.replay import make_replay

T, B = 4, 3


class Label(NamedTuple):
    """A step which knows where it is from."""

    env: jax.Array  # int32
    time: jax.Array  # int32, since the beginning
    episode: jax.Array  # int32
    age: jax.Array  # int32, since the episode's start
    reward: jax.Array  # float32, the same that is added as reward


def play(num_sequences, seed, mean_length=3, reward_rate=0.3):
    """A stream of labelled rollouts, with a fake core that counts the steps since the reset."""
    rng = np.random.default_rng(seed)
    steps = num_sequences * T
    resets = rng.random((steps, B)) < 1 / mean_length
    resets[0, 0] = True  # the other environments may start in the middle of an episode
    age = np.zeros((steps, B), np.int32)
    # An unfinished episode begins before the first step that is stored.
    before = np.asarray(rng.integers(0, 5, B), np.int32)
    core = np.zeros((steps, B), np.int32)  # before the step, and before its reset
    count = before
    for t in range(steps):
        core[t] = count
        age[t] = np.where(resets[t], 0, count)
        count = age[t] + 1
    label = Label(
        env=np.broadcast_to(np.arange(B, dtype=np.int32), (steps, B)),
        time=np.broadcast_to(np.arange(steps, dtype=np.int32)[:, None], (steps, B)),
        episode=np.cumsum(resets, axis=0, dtype=np.int32),
        age=age,
        reward=np.asarray(
            rng.integers(1, 4, (steps, B)) * (rng.random((steps, B)) < reward_rate), np.float32
        ),
    )
    rollouts = []
    for n in range(num_sequences):
        rows = slice(n * T, (n + 1) * T)
        part = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), label)
        rollouts.append((part, part.reward, jnp.asarray(resets[rows]), jnp.asarray(core[n * T])))
    return rollouts


def empty(replay, rollouts):
    """The state before the first of the rollouts."""
    return replay.init(jax.tree.map(lambda leaf: leaf[0], rollouts[0][0]), rollouts[0][3])


def filled(replay, rollouts):
    """The states after each of the rollouts."""
    add = jax.jit(replay.add)
    state = empty(replay, rollouts)
    for rollout in rollouts:
        state = add(state, *rollout)
        yield state


@functools.partial(jax.jit, static_argnames=("replay", "num", "frames"))
def draw(replay, state, num, seed=0, frames=3):
    """`num` windows and `num` rebalanced samples."""
    key_window, key_frames = jax.random.split(jax.random.key(seed))
    return replay.sample(key_window, state, num), replay.sample_rebalanced(key_frames, state, num, frames)


def test_an_empty_replay_has_nothing_to_sample():
    replay = make_replay(2 * T, T)
    rollouts = play(1, seed=0)
    state = empty(replay, rollouts)
    assert not replay.can_sample(state)
    assert not replay.can_sample_rebalanced(state)
    window, frames = draw(replay, state, 5)
    assert not window.where.any()
    assert not frames.where.any()
    (state,) = filled(replay, rollouts)
    assert replay.can_sample(state)


def test_what_is_stored_may_not_reach_past_burn_in():
    replay = make_replay(4 * T, T, burn_in=T - 1)
    endless = [
        (label, reward, jnp.zeros_like(resets), core) for label, reward, resets, core in play(2, seed=0)
    ]
    one, two = filled(replay, endless)
    assert not replay.can_sample(one)
    assert draw(replay, one, 16)[0].where.sum(0).max() <= 1
    assert replay.can_sample(two)
    assert draw(replay, two, 16)[0].where.sum(0).max() > 1


@pytest.mark.parametrize(
    ("num_sequences", "length", "burn_in"), [(2, None, 0), (3, T + 3, 0), (4, T, 2), (4, 2 * T, T + 1)]
)
def test_windows_are_contiguous_within_one_episode_at_every_fill_level_and_wrap(
    num_sequences, length, burn_in
):
    replay = make_replay(num_sequences * T, T, length=length, burn_in=burn_in)
    sample = jax.jit(functools.partial(replay.sample, num=64))
    for added, state in enumerate(filled(replay, play(3 * num_sequences + 1, seed=length or 0)), start=1):
        newest = added * T - 1
        oldest = max(0, added - num_sequences) * T
        window = jax.tree.map(np.asarray, sample(jax.random.key(added), state))
        steps, where, resets = window.steps, window.where, window.resets
        offset = np.arange(len(where))[:, None]
        run = offset < 1 + np.max(np.where(where, offset, -1), axis=0)  # burn-in and the steps to learn from

        def same(leaf, offset=0, run=run):
            return np.all((leaf == leaf[0] + offset)[run])

        # Where there is something to learn, all from the first step on is one stretch of one episode.
        assert same(steps.env)
        assert same(steps.episode)
        assert same(steps.time, offset)
        assert same(steps.age, offset)
        assert np.all(steps.time[run] >= oldest)
        assert np.all(steps.time[run] <= newest)
        np.testing.assert_array_equal(window.rewards, steps.reward)

        # It is as long as it can be.
        first_end = np.min(np.where((offset > 0) & resets, offset, len(where)), axis=0)
        available = np.minimum(first_end, newest + 1 - steps.time[0])
        skipped = np.where(resets[0], 0, burn_in)
        np.testing.assert_array_equal(where, (offset >= skipped) & (offset < available))

        # The count-up core replayed over the window gives every step's true age: it is the state before.
        count = window.core
        assert np.all(resets[0] | (steps.time[0] % T == 0))
        for t in range(len(where)):
            count = np.where(resets[t], 0, count)
            np.testing.assert_array_equal(count[run[t]], steps.age[t][run[t]])
            count = count + 1


@pytest.mark.parametrize(("num_sequences", "frames"), [(2, 1), (2, T + 2), (3, 3)])
def test_rebalanced_frames_are_all_the_contiguous_ones_at_every_fill_level_and_wrap(num_sequences, frames):
    replay = make_replay(num_sequences * T, T, length=T, burn_in=0)
    sample = jax.jit(
        lambda key, state: (
            replay.can_sample_rebalanced(state, frames),
            replay.sample_rebalanced(key, state, num=2048, frames=frames),
        )
    )
    rollouts = play(3 * num_sequences + 1, seed=frames, mean_length=6)
    for added, state in enumerate(filled(replay, rollouts), start=1):
        first = max(0, added - num_sequences)
        stored = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[r[0] for r in rollouts[first:added]])
        expected = {
            (env, int(stored.time[row, env]))
            for env in range(B)
            for row in range(frames - 1, len(stored.time))
            if stored.episode[row, env] == stored.episode[row - frames + 1, env]
        }
        can_sample, drawn = jax.tree.map(np.asarray, sample(jax.random.key(added), state))
        assert can_sample == bool(expected)
        np.testing.assert_array_equal(drawn.where, bool(expected))
        if not expected:
            continue
        steps = drawn.steps
        back = np.arange(1 - frames, 1)[None]
        assert np.all(steps.env == steps.env[:, -1:])
        assert np.all(steps.episode == steps.episode[:, -1:])
        assert np.all(steps.time == steps.time[:, -1:] + back)
        np.testing.assert_array_equal(drawn.rewards, steps.reward[:, -1])
        # 2048 draws from at most 36 steps: every one is drawn, whatever its class.
        assert set(zip(steps.env[:, -1].tolist(), steps.time[:, -1].tolist(), strict=True)) == expected


def counts_of(labels, num_steps):
    """How often each `(time, env)` was drawn."""
    counts = np.zeros((num_steps, B), int)
    np.add.at(counts, (np.asarray(labels.time), np.asarray(labels.env)), 1)
    return counts


def assert_uniform(counts):
    """Pearson's chi-squared stays within five standard deviations of its mean."""
    counts = counts.ravel()
    mean, freedom = counts.mean(), len(counts) - 1
    statistic = np.sum((counts - mean) ** 2) / mean
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom), statistic


def test_the_step_that_chooses_a_window_is_uniform():
    # Episodes of one step: every window starts at the step that was drawn.
    replay = make_replay(3 * T, T)
    rollouts = play(5, seed=0, mean_length=1)
    *_, state = filled(replay, rollouts)
    window, _ = draw(replay, state, 20_000)
    counts = counts_of(jax.tree.map(lambda leaf: leaf[0], window.steps), 5 * T)
    assert counts[: 2 * T].sum() == 0  # overwritten
    assert_uniform(counts[2 * T :])


def test_windows_reach_every_stored_step():
    replay = make_replay(4 * T, T, burn_in=2)
    *_, state = filled(replay, play(6, seed=3, mean_length=8))
    window, _ = draw(replay, state, 4096)
    drawn = jax.tree.map(lambda leaf: leaf[np.asarray(window.where)], window.steps)
    counts = counts_of(drawn, 6 * T)
    # Only the oldest sequence has nothing before it to burn in on.
    assert np.all(counts[2 * T + replay.burn_in :] > 0)


@pytest.mark.parametrize("reward_rate", [0.05, 0.95])
def test_half_of_the_rebalanced_rewards_are_zero_and_each_half_is_uniform(reward_rate):
    replay = make_replay(6 * T, T)
    rollouts = play(8, seed=1, mean_length=20, reward_rate=reward_rate)
    *_, state = filled(replay, rollouts)
    num = 20_000
    _, drawn = draw(replay, state, num)
    nonzero = np.asarray(drawn.rewards) != 0
    # Binomial(num, 1/2), five standard deviations.
    assert abs(nonzero.sum() - num / 2) < 5 * np.sqrt(num) / 2
    last = jax.tree.map(lambda leaf: np.asarray(leaf[:, -1]), drawn.steps)
    for half in (nonzero, ~nonzero):
        counts = counts_of(jax.tree.map(lambda leaf, half=half: leaf[half], last), 8 * T)
        assert_uniform(counts[counts > 0])


def test_small_rewards_count_as_zero_up_to_the_threshold():
    replay = make_replay(64, 8)
    state = replay.init(jax.ShapeDtypeStruct((4,), jnp.float32))
    for i in range(8):
        rewards = jnp.full((8, 4), 0.1).at[i, 0].set(-1.0)
        state = replay.add(state, rewards, rewards, jnp.zeros((8, 4), bool).at[0].set(i == 0))
    drawn = replay.sample_rebalanced(jax.random.key(0), state, 4000, 1, threshold=0.5).rewards
    assert abs(np.mean(drawn == -1.0) - 0.5) < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("reward_rate", [0.0, 1.0])
def test_an_empty_class_falls_back_to_the_whole_of_the_other(reward_rate):
    replay = make_replay(2 * T, T)
    *_, state = filled(replay, play(2, seed=0, reward_rate=reward_rate))
    _, drawn = draw(replay, state, 20_000, frames=1)
    assert drawn.where.all()
    np.testing.assert_array_equal(drawn.rewards != 0, bool(reward_rate))
    assert_uniform(counts_of(jax.tree.map(lambda leaf: leaf[:, -1], drawn.steps), 2 * T))


def test_the_age_of_an_endless_episode_stays_bounded():
    replay = make_replay(2 * T, T)
    steps, resets = jnp.zeros((T, B), jnp.uint8), jnp.zeros((T, B), bool)
    state, add = replay.init(steps[0]), jax.jit(replay.add)
    for _ in range(5):
        state = add(state, steps, jnp.zeros((T, B)), resets)
    assert state.ages.max() == replay.capacity


def test_every_dtype_is_kept():
    replay = make_replay(2 * T, T)
    rng = np.random.default_rng(0)
    steps = {
        dtype: jnp.asarray(rng.integers(0, 2, (T, B, 2, 2)).astype(dtype))
        for dtype in ("uint8", "bool", "int32", "float32", "bfloat16")
    }
    core = (jnp.ones((B, 5), jnp.bfloat16),)
    state = replay.init(
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), steps), core
    )
    state = jax.jit(replay.add)(state, steps, jnp.ones((T, B)), jnp.ones((T, B), bool), core)
    window, frames = draw(replay, state, 2, frames=1)
    for name in steps:
        assert state.steps[name].dtype == window.steps[name].dtype == frames.steps[name].dtype == name
    assert window.steps["bool"].shape == (T + 1, 2, 2, 2)
    assert frames.steps["bool"].shape == (2, 1, 2, 2)
    assert window.core[0].dtype == "bfloat16"
    np.testing.assert_array_equal(state.steps["uint8"][:T], steps["uint8"])


def images(capacity):
    """A replay of images, its state's structure, and one rollout's."""
    replay = make_replay(capacity, T)
    spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.uint8)
    state = jax.eval_shape(replay.init, spec((B, 20, 20, 3)))
    rollout = (
        spec((T, B, 20, 20, 3)),
        jax.ShapeDtypeStruct((T, B), jnp.float32),
        jax.ShapeDtypeStruct((T, B), bool),
    )
    return replay, state, rollout


def test_adding_takes_memory_and_work_for_one_rollout_whatever_the_capacity():
    def cost(capacity):
        replay, state, rollout = images(capacity)
        compiled = jax.jit(replay.add, donate_argnums=0).lower(state, *rollout).compile()
        memory = compiled.memory_analysis()
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        assert memory.alias_size_in_bytes == size  # the new state is the old one's memory
        added = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(rollout))
        return memory.temp_size_in_bytes, compiled.cost_analysis()["bytes accessed"], added

    small, large = cost(16 * T), cost(256 * T)
    assert small == large
    temporary, accessed, added = small
    assert temporary < added
    assert accessed < 2.5 * added  # read once, written once


def test_a_donated_state_is_reused_in_place():
    replay = make_replay(4 * T, T)
    steps = jnp.ones((T, B, 64), jnp.uint8)
    add = jax.jit(replay.add, donate_argnums=0)
    state = replay.init(steps[0])
    pointer = state.steps.unsafe_buffer_pointer()
    for _ in range(6):
        old, state = state, add(state, steps, jnp.zeros((T, B)), jnp.zeros((T, B), bool))
        assert old.steps.is_deleted()
        assert state.steps.unsafe_buffer_pointer() == pointer


def test_unused_leaves_are_not_gathered():
    replay = make_replay(4 * T, T)
    step = {
        "seen": jax.ShapeDtypeStruct((B, 7), jnp.float32),
        "unseen": jax.ShapeDtypeStruct((B, 11), jnp.float32),
    }
    state = jax.eval_shape(replay.init, step)

    def seen(key, state):
        return (
            replay.sample(key, state, 5).steps["seen"],
            replay.sample_rebalanced(jax.random.fold_in(key, 1), state, 5).steps["seen"],
        )

    text = jax.jit(seen).lower(jax.random.key(0), state).compile().as_text()
    assert f"{4 * T},{B},7]" in text
    assert ",11]" not in text.split("ENTRY", 1)[1].replace(f"f32[{4 * T},{B},11]", "")


def test_keys_decide_what_is_drawn():
    replay = make_replay(4 * T, T)
    *_, state = filled(replay, play(4, seed=0))
    one, again, other = (draw(replay, state, 32, seed) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one, again)
    for drawn, differently in zip(one, other, strict=True):
        assert np.any(drawn.steps.time != differently.steps.time)


def test_vmap_over_seeds_is_each_seed_alone():
    replay = make_replay(3 * T, T, burn_in=1)
    streams = [play(4, seed) for seed in range(2)]

    def run(seed, rollouts):
        state, _ = lax.scan(lambda state, rollout: (replay.add(state, *rollout), None), start, rollouts)
        return state, draw(replay, state, 6, seed)

    def stack(trees):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    start = empty(replay, streams[0])
    streams = [stack(stream) for stream in streams]
    together = jax.jit(jax.vmap(run))(np.arange(2), stack(streams))
    run_one = jax.jit(run)
    alone = stack([run_one(seed, stream) for seed, stream in enumerate(streams)])
    chex.assert_trees_all_equal(together, alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 10, "sequence_length": 4}, "multiple of sequence_length; got 10 and 4"),
        ({"capacity": 0, "sequence_length": 4}, "got 0 and 4"),
        ({"capacity": 8, "sequence_length": 4, "length": 3}, "at least sequence_length, 4, .* got 3"),
        ({"capacity": 4, "sequence_length": 4}, "0 \\+ 4 \\+ 1; got 4"),
        ({"capacity": 8, "sequence_length": 4, "burn_in": -1}, "-1 \\+ 4"),
        ({"capacity": 8, "sequence_length": 4, "length": 7.0}, "length must be a whole number, got 7.0"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_replay(**arguments)


def test_what_does_not_fit_is_refused():
    replay = make_replay(2 * T, T)
    steps, rewards, resets = jnp.zeros((T, B, 2), jnp.uint8), jnp.zeros((T, B)), jnp.zeros((T, B), bool)
    core = jnp.zeros((B, 5))
    state = replay.init(steps[0], core)
    with pytest.raises(ValueError, match=r"steps .* uint8\[4, 3, 2\]; got float32\[4, 3, 2\]"):
        replay.add(state, steps.astype(jnp.float32), rewards, resets, core)
    with pytest.raises(ValueError, match=r"rewards .* float32\[4, 3\]; got float32\[3, 3\]"):
        replay.add(state, steps, rewards[1:], resets, core)
    with pytest.raises(ValueError, match=r"core .* float32\[3, 5\]; got \(\)"):
        replay.add(state, steps, rewards, resets)
    with pytest.raises(ValueError, match=r"axis B; got shapes \[\(4, 3, 2\), \(3, 5\)\]"):
        replay.init(steps, core)
    with pytest.raises(ValueError, match=r"frames must be in 1..capacity, which is 8; got 9"):
        replay.sample_rebalanced(jax.random.key(0), state, 2, frames=9)
