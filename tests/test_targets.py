import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btnn_jax import targets

# Compiled once for all tests; what is not static is also seen to work traced.
discounted_returns = jax.jit(targets.discounted_returns)
n_step_returns = jax.jit(targets.n_step_returns, static_argnames="n")
lambda_returns = jax.jit(targets.lambda_returns)
gae = jax.jit(targets.gae)
vtrace = jax.jit(targets.vtrace)
pixel_control_targets = jax.jit(targets.pixel_control_targets)
next_values, reward_class, window_mask = targets.next_values, targets.reward_class, targets.window_mask

T, B = 12, 5
DISCOUNT = 0.9


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


class Rollout:
    """Random steps, about a fifth of which terminate and a fifth of which are truncated."""

    def __init__(self, seed, T=T, B=B):
        rng = np.random.default_rng(seed)
        self.rewards, self.values, final_values = rng.standard_normal((3, T, B), np.float32)
        self.last_value = rng.standard_normal(B, np.float32)
        ends = rng.random((T, B))
        self.terminated, self.truncated = ends < 0.2, ends > 0.8
        following = np.concatenate([self.values[1:], self.last_value[None]])
        self.next_values = np.where(self.truncated, final_values, following)
        self.final_values = final_values
        self.log_ratios = 0.5 * rng.standard_normal((T, B), np.float32)

    @property
    def steps(self):
        return self.rewards, self.next_values, self.terminated, self.truncated

    @property
    def steps_with_values(self):
        return self.rewards, self.values, self.next_values, self.terminated, self.truncated


# The definitions, one sequence and one number at a time, as sums over the steps that follow.


def loop_n_step(x, b, t, n):
    total, weight = 0.0, 1.0
    for k in range(t, min(t + n, len(x.rewards))):
        total += weight * x.rewards[k, b]
        weight *= DISCOUNT
        if x.terminated[k, b]:
            return total
        if x.truncated[k, b]:
            break
    return total + weight * x.next_values[k, b]


def loop_lambda(x, b, t, lambda_):
    """(1 - lambda) sum of lambda^(n - 1) G^(n), all of what is left on the longest there is."""
    ends = x.terminated[t:, b] | x.truncated[t:, b]
    longest = int(np.argmax(ends)) + 1 if ends.any() else len(ends)
    weights = [(1 - lambda_) * lambda_ ** (n - 1) for n in range(1, longest)] + [lambda_ ** (longest - 1)]
    return sum(w * loop_n_step(x, b, t, n) for n, w in enumerate(weights, 1))


def loop_vtrace(x, b, t, lambda_, clip_rho, clip_c):
    """Equation 1 of IMPALA: `V(s_t)` and a discounted sum of errors, each times the c before it."""
    total, weight = x.values[t, b], 1.0
    for k in range(t, len(x.rewards)):
        ratio = np.exp(x.log_ratios[k, b])
        worth = 0.0 if x.terminated[k, b] else DISCOUNT * x.next_values[k, b]
        total += weight * min(clip_rho, ratio) * (x.rewards[k, b] + worth - x.values[k, b])
        if x.terminated[k, b] or x.truncated[k, b]:
            break
        weight *= DISCOUNT * lambda_ * min(clip_c, ratio)
    return total


def each_step(loop, x, *args):
    return np.array(
        [[loop(x, b, t, *args) for b in range(x.rewards.shape[1])] for t in range(len(x.rewards))]
    )


seeds = pytest.mark.parametrize("seed", range(3))


@seeds
@pytest.mark.parametrize("n", [1, 3, T, 2 * T])
def test_n_step_returns_are_their_definition(seed, n):
    x = Rollout(seed)
    assert_close(n_step_returns(*x.steps, discount=DISCOUNT, n=n), each_step(loop_n_step, x, n))


@seeds
@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_lambda_returns_and_gae_are_their_definition(seed, lambda_):
    x = Rollout(seed)
    expected = each_step(loop_lambda, x, lambda_)
    assert_close(lambda_returns(*x.steps, discount=DISCOUNT, lambda_=lambda_), expected)
    advantages, returns = gae(*x.steps_with_values, discount=DISCOUNT, lambda_=lambda_)
    # GAE's form telescopes only where next_values continues values, which a rollout's does.
    assert_close(returns, expected)
    assert_close(advantages, expected - x.values)


@seeds
def test_gae_at_one_is_monte_carlo_and_at_zero_the_td_error(seed):
    x = Rollout(seed)
    monte_carlo = discounted_returns(*x.steps, discount=DISCOUNT)
    assert_close(gae(*x.steps_with_values, discount=DISCOUNT, lambda_=1.0)[0], monte_carlo - x.values)
    td_error = x.rewards + DISCOUNT * ~x.terminated * x.next_values - x.values
    assert_close(gae(*x.steps_with_values, discount=DISCOUNT, lambda_=0.0)[0], td_error)


def test_gae_adds_up_errors_whatever_the_next_values():
    x = Rollout(0)
    following = np.sin(x.next_values)  # of another network, say
    (errors, _), (advantages, returns) = (
        gae(x.rewards, x.values, following, x.terminated, x.truncated, discount=DISCOUNT, lambda_=lambda_)
        for lambda_ in (0.0, 0.7)
    )
    ends = (x.terminated | x.truncated)[:-1]
    assert_close(advantages[:-1], errors[:-1] + np.where(ends, 0, 0.7 * DISCOUNT * advantages[1:]))
    assert_close(returns, advantages + x.values)


@pytest.mark.parametrize("unread", [np.nan, np.inf])
def test_values_that_are_not_read_may_be_anything(unread):
    x, y = Rollout(0), Rollout(0)
    y.next_values = np.where(x.terminated, unread, x.next_values).astype(np.float32)
    for function, fields, options in [
        (discounted_returns, "steps", {}),
        (lambda_returns, "steps", {"lambda_": 0.7}),
        (n_step_returns, "steps", {"n": 3}),
        (gae, "steps_with_values", {"lambda_": 0.7}),
        (functools.partial(vtrace, x.log_ratios), "steps_with_values", {}),
    ]:
        expected, got = (function(*getattr(z, fields), discount=DISCOUNT, **options) for z in (x, y))
        chex.assert_trees_all_equal(got, expected)
    y.next_values = np.where(x.truncated | (np.arange(T) == T - 1)[:, None], x.next_values, unread).astype(
        np.float32
    )
    chex.assert_trees_all_equal(*(discounted_returns(*z.steps, discount=DISCOUNT) for z in (x, y)))


@seeds
def test_longest_n_step_is_the_lambda_return_at_one(seed):
    x = Rollout(seed)
    expected = lambda_returns(*x.steps, discount=DISCOUNT, lambda_=1.0)
    assert_close(n_step_returns(*x.steps, discount=DISCOUNT, n=T), expected)
    assert_close(discounted_returns(*x.steps, discount=DISCOUNT), expected)


@seeds
@pytest.mark.parametrize(("lambda_", "clip_rho", "clip_c"), [(1.0, 1.0, 1.0), (0.8, 1.3, 0.9)])
def test_vtrace_is_its_definition(seed, lambda_, clip_rho, clip_c):
    x = Rollout(seed)
    options = {"lambda_": lambda_, "clip_rho": clip_rho, "clip_c": clip_c}
    learned, advantages = vtrace(x.log_ratios, *x.steps_with_values, discount=DISCOUNT, **options)
    assert_close(learned, each_step(loop_vtrace, x, *options.values()))
    following = np.concatenate([learned[1:], x.next_values[-1:]])
    following = np.where(x.truncated, x.next_values, following)
    rho = np.minimum(clip_rho, np.exp(x.log_ratios))
    assert_close(advantages, rho * (x.rewards + DISCOUNT * ~x.terminated * following - x.values))


@seeds
def test_on_policy_vtrace_is_the_lambda_return(seed):
    x = Rollout(seed)
    learned, advantages = vtrace(0 * x.log_ratios, *x.steps_with_values, discount=DISCOUNT, lambda_=0.7)
    assert_close(learned, lambda_returns(*x.steps, discount=DISCOUNT, lambda_=0.7))
    _, monte_carlo = vtrace(0 * x.log_ratios, *x.steps_with_values, discount=DISCOUNT)
    assert_close(monte_carlo, gae(*x.steps_with_values, discount=DISCOUNT, lambda_=1.0)[0])
    assert advantages.shape == (T, B)


def every_target(x, discount=DISCOUNT):
    """All that is computed from a rollout, each `[T, B]`."""
    advantages, returns = gae(*x.steps_with_values, discount=discount, lambda_=0.7)
    learned, corrected = vtrace(x.log_ratios, *x.steps_with_values, discount=discount)
    return {
        "gae": advantages,
        "gae returns": returns,
        "lambda": lambda_returns(*x.steps, discount=discount, lambda_=0.7),
        "n-step": n_step_returns(*x.steps, discount=discount, n=3),
        "discounted": discounted_returns(*x.steps, discount=discount),
        "vtrace": learned,
        "vtrace advantages": corrected,
    }


def test_concatenated_trajectories_are_the_trajectories_alone():
    first, second = Rollout(0, T=5), Rollout(1, T=7)
    joined = Rollout(2)
    for name in vars(joined):
        if name != "last_value":
            setattr(joined, name, np.concatenate([getattr(first, name), getattr(second, name)]))
    joined.truncated[4] = ~joined.terminated[4]
    expected = jax.tree.map(lambda *a: np.concatenate(a), every_target(first), every_target(second))
    jax.tree.map(assert_close, every_target(joined), expected)


def test_discounts_per_step_and_traced():
    x = Rollout(0)
    expected = every_target(x)
    for discount in (np.full(T, DISCOUNT, np.float32), np.full((T, B), DISCOUNT, np.float32)):
        jax.tree.map(assert_close, every_target(x, discount), expected)
    jax.tree.map(assert_close, jax.jit(lambda d: every_target(x, d))(DISCOUNT), expected)


def test_results_are_float32_and_have_no_gradient():
    def total(values):
        x = Rollout(0)
        x.values, x.next_values = values, values + 1
        return sum(jnp.sum(target) for target in every_target(x).values())

    values = jnp.ones((T, B), jnp.bfloat16)
    value, gradient = jax.jit(jax.value_and_grad(total))(values)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, 0.0)


def test_next_values_shift_and_bootstrap_from_the_final_observation():
    np.testing.assert_array_equal(next_values(jnp.array([1.0, 2.0]), 0.0), [2.0, 0.0])
    x = Rollout(0)
    assert_close(next_values(x.values, x.last_value, x.truncated, x.final_values), x.next_values)
    assert_close(next_values(x.values, x.last_value)[:-1], x.values[1:])


def replayed(length, member, ends_by):
    """A window of steps of one episode, the first `member` of which belong, the last of them ending it."""
    x = Rollout(member, T=length)
    x.terminated[:], x.truncated[:] = False, False
    if ends_by is not None:
        getattr(x, ends_by)[member - 1] = True
    where = np.zeros((length, B), bool)
    where[:member] = True
    return x, where


@pytest.mark.parametrize("member", [1, 4, 6])
@pytest.mark.parametrize("ends_by", [None, "terminated", "truncated"])
def test_a_replayed_window_learns_what_its_steps_alone_would(member, ends_by):
    """The last step lends its observation unless the episode terminated there."""
    x, where = replayed(6, member, ends_by)
    learn, cut = window_mask(where, x.terminated, x.truncated)
    count = member if ends_by == "terminated" else member - 1
    np.testing.assert_array_equal(learn, np.arange(6)[:, None] < np.full((1, B), count))

    x.truncated = np.asarray(cut)
    x.next_values = np.asarray(next_values(x.values, x.values[-1]))
    alone = Rollout(0)
    for name, field in vars(x).items():
        setattr(alone, name, field[:count])
    if count:
        alone.truncated = np.zeros((count, B), bool)
        expected = every_target(alone)
        jax.tree.map(lambda a, b: assert_close(a[:count], b), every_target(x), expected)


def test_a_window_may_start_late_and_hold_two_episodes():
    where = np.array([0, 0, 1, 1, 1, 1, 1, 0], bool)
    terminated = np.array([0, 0, 0, 1, 0, 0, 0, 0], bool)
    truncated = np.array([0, 0, 0, 0, 0, 1, 0, 0], bool)
    learn, cut = window_mask(where, terminated, truncated)
    np.testing.assert_array_equal(learn, np.array([0, 0, 1, 1, 1, 0, 0, 0], bool))
    np.testing.assert_array_equal(cut, np.array([1, 0, 0, 0, 1, 1, 1, 1], bool))


def test_pixel_control_targets_are_discounted_returns_of_every_cell():
    x, (h, w) = Rollout(0), (3, 2)
    rng = np.random.default_rng(7)
    changes, next_q = rng.random((2, T, B, h, w), np.float32)
    for discount in (0.9, np.full(T, 0.9, np.float32), np.full((T, B), 0.9, np.float32)):
        found = pixel_control_targets(changes, next_q, x.terminated, x.truncated, discount=discount)
        for i, j in np.ndindex(h, w):
            steps = changes[..., i, j], next_q[..., i, j], x.terminated, x.truncated
            assert_close(found[..., i, j], discounted_returns(*steps, discount=0.9))


def test_pixel_control_with_one_value_for_the_end():
    never, changes, q = (
        np.zeros((T, B), bool),
        np.ones((T, B, 3, 2), np.float32),
        np.ones((B, 3, 2), np.float32),
    )
    found = pixel_control_targets(changes, 10 * q, never, never, discount=0.5)
    assert_close(found[-1], np.full((B, 3, 2), 6.0))
    cut = never.copy()
    cut[4] = True
    assert_close(pixel_control_targets(changes, 10 * q, never, cut, discount=0.5)[4], np.full((B, 3, 2), 6.0))


def test_reward_classes():
    rewards = jnp.array([0.0, 0.1, -0.1, 2.0, -2.0])
    np.testing.assert_array_equal(reward_class(rewards), [0, 1, 2, 1, 2])
    np.testing.assert_array_equal(reward_class(rewards, 0.5), [0, 0, 0, 1, 2])
    assert reward_class(rewards).dtype == jnp.int32


def test_mismatches_are_errors():
    x = Rollout(0)
    with pytest.raises(ValueError, match=r"next_values .*\(12, 5\), got \(11, 5\)"):
        discounted_returns(x.rewards, x.next_values[1:], x.terminated, x.truncated, discount=DISCOUNT)
    with pytest.raises(ValueError, match=r"terminated bool .* got float32"):
        discounted_returns(x.rewards, x.next_values, x.rewards, x.truncated, discount=DISCOUNT)
    with pytest.raises(ValueError, match="got 0"):
        n_step_returns(*x.steps, discount=DISCOUNT, n=0)
    with pytest.raises(ValueError, match="together"):
        next_values(x.values, x.last_value, x.truncated)
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        discounted_returns(*x.steps, discount=np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"got \(12, 4, 3, 2\)"):
        pixel_control_targets(np.ones((T, 4, 3, 2)), np.ones((4, 3, 2)), x.terminated, x.truncated)
    with pytest.raises(ValueError, match=r"next_q .*\(12, 5, 3, 2\), got \(2, 3\)"):
        pixel_control_targets(np.ones((T, B, 3, 2)), np.ones((2, 3)), x.terminated, x.truncated)
    with pytest.raises(ValueError, match="last_value"):
        targets.next_values(x.values, x.last_value[1:])
    with pytest.raises(ValueError, match=r"next_values .* at least one step, got \(0, 5\)"):
        lambda_returns(*(x[:0] for x in x.steps), discount=DISCOUNT, lambda_=0.5)


BAD = [jnp.nan, jnp.inf, -jnp.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("name", ["discounted", "n_step", "lambda", "gae", "vtrace", "pixel_control"])
def test_nothing_behind_an_episodes_end_reaches_what_is_before_it(name, end, bad):
    def compute(rewards, values, following):
        flags = {"terminated": jnp.zeros(4, bool), "truncated": jnp.zeros(4, bool)}
        flags[end] = flags[end].at[1].set(True)
        ends = (flags["terminated"], flags["truncated"])
        if name == "discounted":
            return targets.discounted_returns(rewards, following, *ends, discount=0.9)
        if name == "n_step":
            return targets.n_step_returns(rewards, following, *ends, discount=0.9, n=3)
        if name == "lambda":
            return targets.lambda_returns(rewards, following, *ends, discount=0.9, lambda_=0.8)
        if name == "gae":
            return jnp.stack(targets.gae(rewards, values, following, *ends, discount=0.9, lambda_=0.8))
        if name == "vtrace":
            return jnp.stack(targets.vtrace(values / 7, rewards, values, following, *ends, discount=0.9))
        cells = [jnp.broadcast_to(x[:, None, None], (4, 1, 1)) for x in (rewards, following)]
        return targets.pixel_control_targets(*cells, *ends)[:, 0, 0]

    values = jnp.array([1.0, 2.0, 3.0, 4.0])
    following = jnp.array([2.0, 5.0, 4.0, 6.0])
    rewards = jnp.array([0.5, 1.5, 2.5, 3.5])
    right = compute(rewards, values, following)
    late = jnp.arange(4) > 1
    spoilt = [jnp.where(late, bad, x) for x in (rewards, values, following)]
    if end == "terminated":  # the value of the next episode's start is not used either
        spoilt[2] = spoilt[2].at[1].set(bad)
    found = compute(*spoilt)
    np.testing.assert_array_equal(found[..., :2], right[..., :2])
    assert np.isfinite(right).all()


@jax.jit
def every_target_and_gradients(rewards, values, following, log_ratios, terminated, truncated):
    """All targets `[T, B]` by name, and the gradient of their sum with respect to what they are made of."""

    def compute(arrays):
        rewards, values, following, log_ratios = arrays
        ends, how = (terminated, truncated), {"discount": 0.9}
        grid = [x[..., None, None] for x in (rewards, following)]
        found = {
            "discounted": targets.discounted_returns(rewards, following, *ends, **how),
            "n-step": targets.n_step_returns(rewards, following, *ends, **how, n=3),
            "lambda": targets.lambda_returns(rewards, following, *ends, **how, lambda_=0.8),
            "gae": targets.gae(rewards, values, following, *ends, **how, lambda_=0.8),
            "vtrace": targets.vtrace(log_ratios, rewards, values, following, *ends, **how, lambda_=0.8),
            "pixel control": targets.pixel_control_targets(*grid, *ends, **how)[..., 0, 0],
        }
        return sum(jnp.sum(x) for x in jax.tree.leaves(found)), found

    (_, found), gradients = jax.value_and_grad(compute, has_aux=True)(
        (rewards, values, following, log_ratios)
    )
    return found, gradients


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    end=st.integers(0, T - 1),
    by=st.sampled_from(["terminated", "truncated", "both"]),
    bad=st.sampled_from([np.nan, np.inf, -np.inf, 3e38]),
)
def test_what_follows_an_episodes_end_changes_nothing_up_to_it(seed, end, by, bad):
    x = Rollout(seed)
    x.terminated[end], x.truncated[end] = by != "truncated", by != "terminated"
    arrays = x.rewards, x.values, x.next_values, x.log_ratios
    expected, _ = every_target_and_gradients(*arrays, x.terminated, x.truncated)
    spoilt = [np.where(np.arange(T)[:, None] > end, bad, array).astype(np.float32) for array in arrays]
    if by != "truncated":
        spoilt[2][end] = bad  # the value of the next episode's start
    found, gradients = every_target_and_gradients(*spoilt, x.terminated, x.truncated)
    before = functools.partial(jax.tree.map, lambda array: array[: end + 1])
    chex.assert_trees_all_equal(before(found), before(expected))
    chex.assert_tree_all_finite(before(expected))
    chex.assert_trees_all_equal(gradients, jax.tree.map(np.zeros_like, gradients))


def test_bounds_of_ratios_may_differ_by_step_but_are_not_broadcast_over_time():
    x = Rollout(0, T=B)  # square, so that a bound for each column would fit the rows
    arguments = (x.log_ratios, *x.steps_with_values)
    bounds = np.linspace(0.5, 1.5, B, dtype=np.float32)
    found = targets.vtrace(*arguments, discount=DISCOUNT, clip_rho=bounds, clip_c=bounds)
    full = np.repeat(bounds[:, None], B, axis=1)
    assert_close(found, targets.vtrace(*arguments, discount=DISCOUNT, clip_rho=full, clip_c=full))
    with pytest.raises(ValueError, match=r"starts \(5, 5\), got \(1, 5\)"):
        targets.vtrace(*arguments, discount=DISCOUNT, clip_rho=bounds[None])


def test_a_nan_of_the_next_episode_stays_there():
    no = jnp.zeros(2, bool)
    ends = jnp.array([True, False])
    for flags in ((ends, no), (no, ends)):
        advantages, returns = targets.gae(
            jnp.array([1.0, jnp.nan]), jnp.zeros(2), jnp.zeros(2), *flags, discount=0.99, lambda_=0.95
        )
        assert (advantages[0], returns[0]) == (1, 1)
        assert np.isnan(advantages[1])


@pytest.mark.parametrize("n", [2.0, True, 0, "3", jnp.float32(2)])
def test_the_number_of_steps_is_a_whole_number(n):
    no = jnp.zeros(3, bool)
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got"):
        targets.n_step_returns(jnp.ones(3), jnp.ones(3), no, no, discount=0.9, n=n)


def test_values_of_no_steps_are_refused():
    with pytest.raises(ValueError, match=r"at least one step, got \(0, 2\)"):
        targets.next_values(jnp.zeros((0, 2)), jnp.zeros(2))
