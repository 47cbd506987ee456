"""Replay on the device: windows for value replay and pixel control, rebalanced frames for reward prediction.

Legend: `T` steps of one added sequence, `B` environments, `L` length of a window, `N` number of samples.

All environments are in step, so the ring is `[capacity, B, ...]` with one write head, and adding a rollout is
one contiguous copy of its `T` steps. Under donation (`jax.jit(replay.add, donate_argnums=0)`, or inside of a
jitted train step whose state is donated) nothing else is touched.
"""

import dataclasses
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from btnn_jax._types import PyTree

__all__ = ["Frames", "Replay", "ReplayState", "Window", "make_replay"]


class ReplayState(NamedTuple):
    """The stored steps. `head` and `size` are multiples of `T`; the step before `head` is the newest one."""

    steps: PyTree  # [capacity, B, ...], as given
    rewards: Array  # float32 [capacity, B], for the action taken at the step
    resets: Array  # bool [capacity, B], the step starts an episode
    ages: Array  # int32 [capacity, B], how many steps of its episode were added before it, at most capacity
    cores: PyTree  # [capacity // T, B, ...], the recurrent state before each sequence's first step
    head: Array  # int32 [], where the next sequence goes
    size: Array  # int32 [], steps stored for each environment


class Window(NamedTuple):
    """Consecutive steps of one episode each, and the recurrent state to start from.

    `where` is one run of steps, which begins with the window or after burn-in, and ends with the window, the
    episode or the newest stored step; it is empty if that comes before the end of burn-in. The run's last
    step is there to bootstrap from, unless the episode terminated with it: learn from step t where `where[t] &
    (terminated[t] | (~truncated[t] & where[t + 1]))`, which is what `targets.window_mask` computes. Steps after the run
    are stored data too, but not a continuation of it.

    Attributes:
        steps: `[burn_in + L + 1, N, ...]`, what was added.
        rewards: float32 `[burn_in + L + 1, N]`, for the action taken at the step.
        resets: bool `[burn_in + L + 1, N]`, the step starts an episode, apply before the step.
        core: `[N, ...]`, the recurrent state before the first step, as it was when the step was played.
        where: bool `[burn_in + L + 1, N]`, the step continues the window's episode and is past burn-in.
    """

    steps: PyTree
    rewards: Array
    resets: Array
    core: PyTree
    where: Array


class Frames(NamedTuple):
    """Consecutive steps of one episode and the reward that follows them.

    Attributes:
        steps: `[N, frames, ...]`, oldest first.
        rewards: float32 `[N]`, for the action taken at the last of the frames.
        where: bool `[N]`, the row is a sample; false only while nothing can be sampled.
    """

    steps: PyTree
    rewards: Array
    where: Array


@dataclasses.dataclass(frozen=True)
class Replay:
    """Pure functions of a `ReplayState`; `make_replay` builds it and documents the attributes."""

    capacity: int
    sequence_length: int
    length: int
    burn_in: int

    def init(self, step: PyTree, core: PyTree = ()) -> ReplayState:
        """An empty replay.

        Args:
            step: one step of all environments, arrays or `jax.ShapeDtypeStruct` of `[B, ...]`; every leaf is
                stored in its own dtype.
            core: the recurrent state, the same of `[B, ...]`; `()` for an agent without memory.
        """
        batches = {leaf.shape[:1] for leaf in jax.tree.leaves((step, core))}
        if len(batches) != 1 or () in batches:
            shapes = [leaf.shape for leaf in jax.tree.leaves((step, core))]
            raise ValueError(f"the leaves of step and core must share a leading axis B; got shapes {shapes}")
        (batch,) = batches

        def ring(size: int, tree: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), tree)

        return ReplayState(
            steps=ring(self.capacity, step),
            rewards=jnp.zeros((self.capacity, *batch), jnp.float32),
            resets=jnp.zeros((self.capacity, *batch), bool),
            ages=jnp.zeros((self.capacity, *batch), jnp.int32),
            cores=ring(self.capacity // self.sequence_length, core),
            head=jnp.zeros((), jnp.int32),
            size=jnp.zeros((), jnp.int32),
        )

    def add(
        self, state: ReplayState, steps: PyTree, rewards: Array, resets: Array, core: PyTree = ()
    ) -> ReplayState:
        """Adds one rollout in place of the oldest.

        Args:
            state: donate it, or all of it is copied.
            steps: `[T, B, ...]`, continuing where the rollout added before ended.
            rewards: float32 `[T, B]`, for the action taken at the step.
            resets: bool `[T, B]`, the step starts an episode.
            core: `[B, ...]`, the recurrent state before the first step (and before that step's reset).
        """
        _check_like("steps", steps, state.steps, (self.sequence_length,))
        _check_like("rewards", rewards, state.rewards, (self.sequence_length,))
        _check_like("resets", resets, state.resets, (self.sequence_length,))
        _check_like("core", core, state.cores, ())

        # The age before the first step: -1 if there is nothing before it.
        last = jnp.where(state.size > 0, state.ages[(state.head - 1) % self.capacity], -1)
        time = jnp.arange(self.sequence_length, dtype=jnp.int32)[:, None]
        start = lax.cummax(jnp.where(resets, time, -1 - last[None]))
        # An episode may go on for ever, its age may not.
        ages = jnp.minimum(time - start, self.capacity)

        def write(ring: Array, rows: Array, at: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(ring, rows, at, axis=0)

        sequence = state.head // self.sequence_length
        return ReplayState(
            steps=jax.tree.map(lambda ring, rows: write(ring, rows, state.head), state.steps, steps),
            rewards=write(state.rewards, rewards, state.head),
            resets=write(state.resets, resets, state.head),
            ages=write(state.ages, ages, state.head),
            cores=jax.tree.map(lambda ring, row: write(ring, row[None], sequence), state.cores, core),
            head=(state.head + self.sequence_length) % self.capacity,
            size=jnp.minimum(state.size + self.sequence_length, self.capacity),
        )

    def can_sample(self, state: ReplayState) -> Array:
        """Bool `[]`: there is something for `sample`, two steps of a window past burn-in."""
        return state.size > self.burn_in + 1

    def sample(self, key: Array, state: ReplayState, num: int) -> Window:
        """Draws windows which contain a uniformly drawn stored step each.

        A window starts at the nearest point before that step where the recurrent state is known: at the start
        of the episode, where it is zero, or of the added sequence, where it is stored. So the state in a
        window is the one that was there, for the parameters of that time; `burn_in` refreshes it for today's.
        Without burn-in every stored step is replayed. With it, a window that does not start its episode
        replays nothing if the episode, or what is stored of it, ends in burn-in: `where` is all false.

        Args:
            key: consumed.
            state: while `can_sample` is false, there may be nothing to learn from.
            num: `N`, number of windows.
        """
        key_step, key_env = jax.random.split(key)
        drawn = jax.random.randint(key_step, (num,), 0, jnp.maximum(state.size, 1))
        env = jax.random.randint(key_env, (num,), 0, state.ages.shape[1])
        # Positions count from the oldest step, which starts a sequence.
        oldest = self._oldest(state)
        age = _gather(state.ages, (oldest + drawn) % self.capacity, env)
        start = drawn - jnp.minimum(age, drawn % self.sequence_length)

        offset = jnp.arange(self.burn_in + self.length + 1, dtype=jnp.int32)[:, None]
        position = start[None] + offset
        row = (oldest + position) % self.capacity
        steps, rewards, resets = _gather((state.steps, state.rewards, state.resets), row, env[None])

        other_episode = jnp.cumsum(resets & (offset > 0), axis=0) > 0
        burning = (offset < self.burn_in) & ~resets[:1]
        return Window(
            steps=steps,
            rewards=rewards,
            resets=resets,
            core=_gather(state.cores, row[0] // self.sequence_length, env),
            where=(position < state.size) & ~other_episode & ~burning,
        )

    def can_sample_rebalanced(self, state: ReplayState, frames: int = 3) -> Array:
        """Bool `[]`: there is something for `sample_rebalanced`."""
        return jnp.any(self._has_frames(state, frames))

    def sample_rebalanced(
        self, key: Array, state: ReplayState, num: int, frames: int = 3, *, threshold: ArrayLike = 0.0
    ) -> Frames:
        """Draws frames before a reward which is zero with probability 1/2; uniformly within either kind.

        Where all rewards are zero, or none is, all are drawn from what there is. Frames never belong to two
        episodes. Jaderberg et al., "Reinforcement learning with unsupervised auxiliary tasks", section 3.2
        (https://arxiv.org/abs/1611.05397).

        Leaves of `steps` that are not used cost nothing under `jax.jit`.

        Args:
            key: consumed.
            state: while `can_sample_rebalanced` is false, `where` is all false.
            num: `N`, number of samples.
            frames: consecutive steps in each sample.
            threshold: rewards within `[-threshold, threshold]` count as zero.
        """
        key_class, key_rank = jax.random.split(key)
        eligible = self._has_frames(state, frames)
        rewarding = eligible & (jnp.abs(state.rewards) > threshold)
        # All entries in line, those without a reward first: one is found by its rank in the running sum.
        entries = jnp.concatenate([eligible & ~rewarding, rewarding])
        running = jnp.cumsum(jnp.sum(entries, axis=1, dtype=jnp.int32))
        zero, total = running[self.capacity - 1], running[-1]

        wanted = jax.random.bernoulli(key_class, shape=(num,))
        reward = jnp.where((zero > 0) & (total > zero), wanted, total > zero)
        low, high = jnp.where(reward, zero, 0), jnp.where(reward, total, zero)
        rank = jax.random.randint(key_rank, (num,), low, jnp.maximum(high, low + 1))

        # The limits hold where there is nothing at all to find.
        line = jnp.minimum(jnp.searchsorted(running, rank, side="right"), 2 * self.capacity - 1)
        within = jnp.cumsum(entries[line], axis=1, dtype=jnp.int32)
        rank_within = rank - (running[line] - within[:, -1])
        env = jnp.sum(within <= rank_within[:, None], axis=1, dtype=jnp.int32)
        env = jnp.minimum(env, entries.shape[1] - 1)
        row = line % self.capacity

        rows = (row[:, None] - jnp.arange(frames - 1, -1, -1, dtype=jnp.int32)[None]) % self.capacity
        return Frames(
            steps=_gather(state.steps, rows, env[:, None]),
            rewards=_gather(state.rewards, row, env),
            where=jnp.broadcast_to(total > 0, (num,)),
        )

    def _oldest(self, state: ReplayState) -> Array:
        """Where in the ring the oldest step is, int32 `[]`."""
        return (state.head - state.size) % self.capacity

    def _has_frames(self, state: ReplayState, frames: int) -> Array:
        """Bool `[capacity, B]`: the step and the `frames - 1` before it are stored and of one episode."""
        if not 1 <= frames <= self.capacity:
            raise ValueError(f"frames must be in 1..capacity, which is {self.capacity}; got {frames}")
        row = jnp.arange(self.capacity, dtype=jnp.int32)
        position = (row - self._oldest(state)) % self.capacity
        stored = (position >= frames - 1) & (position < state.size)
        return stored[:, None] & (state.ages >= frames - 1)


def make_replay(
    capacity: int, sequence_length: int, *, length: int | None = None, burn_in: int = 0
) -> Replay:
    """A replay of rollouts that are added and kept whole.

    Args:
        capacity: steps kept for each environment, a multiple of `sequence_length`.
        sequence_length: `T`, steps of one added rollout.
        length: `L`, steps in a sampled window besides the last one, which is there to bootstrap from; at
            least and by default `sequence_length`, so that the window reaches every step of the sequence it
            starts in.
        burn_in: steps before those, played to refresh the recurrent state and not learnt from. A window that
            starts with its episode needs none: there it learns from all its steps.

    Returns:
        A `Replay` with `init`, `add`, `sample`, `sample_rebalanced`, `can_sample` and
        `can_sample_rebalanced`.

    Raises:
        ValueError: a size is impossible.

    >>> replay = make_replay(capacity=8, sequence_length=4)
    >>> state = replay.init(jax.ShapeDtypeStruct((2, 3), jnp.uint8))  # two environments, three pixels
    >>> resets = jnp.zeros((4, 2), bool).at[0].set(True)
    >>> state = replay.add(state, jnp.ones((4, 2, 3), jnp.uint8), jnp.zeros((4, 2)), resets)
    >>> window = replay.sample(jax.random.key(0), state, num=5)
    >>> window.steps.shape, window.where[:, 0].tolist()
    ((5, 5, 3), [True, True, True, True, False])
    """
    length = sequence_length if length is None else length
    sizes = {"capacity": capacity, "sequence_length": sequence_length, "length": length, "burn_in": burn_in}
    for name, size in sizes.items():
        if not isinstance(size, numbers.Integral):
            raise ValueError(f"{name} must be a whole number, got {size!r}")
    if sequence_length < 1 or capacity < 1 or capacity % sequence_length:
        raise ValueError(
            f"capacity must be a positive multiple of sequence_length; got {capacity} and {sequence_length}"
        )
    if length < sequence_length:
        raise ValueError(
            f"length must be at least sequence_length, {sequence_length}, or the later steps of a sequence "
            f"would never be replayed; got {length}"
        )
    if burn_in < 0 or burn_in + length + 1 > capacity:
        raise ValueError(
            f"capacity must hold a window of burn_in + length + 1 steps, that is {burn_in} + {length} + 1; "
            f"got {capacity}"
        )
    return Replay(capacity, sequence_length, length, burn_in)


def _gather(ring: PyTree, row: Array, env: Array) -> PyTree:
    """Entries `[row, env]` of every leaf."""
    row, env = jnp.broadcast_arrays(row, env)
    return jax.tree.map(lambda leaf: leaf.at[row, env].get(mode="promise_in_bounds"), ring)


def _check_like(name: str, given: PyTree, ring: PyTree, leading: tuple[int, ...]) -> None:
    """Raises unless `given` is what `init` was told of: rows of `ring`, with these leading axes."""
    expected = jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leading, *leaf.shape[1:]]}", ring)
    got = jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", given)
    if got != expected:
        raise ValueError(f"{name} must be as init was told, {expected}; got {got}")
