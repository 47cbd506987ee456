"""Trading: an account held against plain bookkeeping in float64, and what must hold whatever the prices are."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.data import Series, features
from btnn_jax.envs.trading import optimal_policy
from btnn_jax.envs.trading.account import BrokerRules, fill

HOLD, BUY, SELL, CLOSE = range(4)
BARS = 120


def bars(assets=1, length=BARS, seed=0, volatility=0.01):
    """Bars `[N, A, 4]` with gaps between them."""
    steps = volatility * np.random.default_rng(seed).standard_normal((length, assets, 4))
    path = np.exp(np.cumsum(steps.swapaxes(1, 2).reshape(-1, assets), axis=0)).reshape(length, 4, assets)
    o, c = path[:, 0], path[:, 3]
    return np.stack([o, path.max(1) * 1.001, path.min(1) * 0.999, c], axis=-1)


def make(data=None, **params):
    defaults = {"window": 4, "episode_length": None, "drawdown": 1.0, "sampling": "sequential"}
    return envs.make("trading", data=bars() if data is None else data, **{**defaults, **params})


NUMBERS = (
    "commission",
    "spread",
    "leverage",
    "fraction",
    "unit_size",
)  # of the rules, which nothing branches on


@functools.cache
def compiled(rest):
    """Plays any environment that differs from another in arrays and numbers alone: most of a test is compiling."""
    env, step = dataclasses.replace(rest.env), rest.step

    @jax.jit
    def run(variables, actions, first, keys):
        arrays, rules, limits = variables
        mine = dataclasses.replace(env, **arrays, **limits, rules=env.rules._replace(**rules))

        def one(states, x):
            states, steps = jax.vmap(mine.step if step else mine.move)(x[1], states, x[0])
            return states, (states, steps)

        states, observation = jax.vmap(mine.start)(jnp.full(keys.shape[1], first))
        return observation, *jax.lax.scan(one, states, (actions, keys))[1]

    return run


class Static:
    """All of an environment that is compiled in, to find the program of another one that shares it."""

    def __init__(self, env, step):
        self.env, self.step = env, step
        rules = env.rules._replace(**{name: getattr(env.rules, name) is None for name in NUMBERS})
        fields = {field.name: getattr(env, field.name) for field in dataclasses.fields(env)}
        varying = {"times", "close", "bars", "signal", "rules", "drawdown", "profit_target"}
        self.key = step, rules, tuple((k, v) for k, v in fields.items() if k not in varying)

    def __eq__(self, other):
        return self.key == other.key

    def __hash__(self):
        return hash(self.key)


def play(env, actions, first=None, step=False, seed=0):
    """Plays sequences of actions `[B, T]` (or dicts): first observation, states and steps, numpy `[B, T, ...]`."""
    batch, length = jax.tree.leaves(actions)[0].shape
    steps = max(length, 110 // env.frame_skip)  # the same number for most
    full = (max(batch, 8), steps)

    def padded(x):
        more = [(0, n - m) for m, n in zip(x.shape, full, strict=True)]
        return jnp.asarray(np.pad(x, more).T, jnp.int32)

    arrays = {name: getattr(env, name) for name in ("close", "bars", "signal")}
    rules = {name: getattr(env.rules, name) for name in NUMBERS if getattr(env.rules, name) is not None}
    limits = {"drawdown": env.drawdown, "profit_target": env.profit_target}
    variables = jax.tree.map(jnp.float32, (arrays, rules, limits))
    keys = jax.random.split(jax.random.key(seed), (steps, full[0]))
    first = jnp.int32(env.starts[0] if first is None else first)
    run = compiled(Static(env, step))
    observation, *rest = run(variables, jax.tree.map(padded, actions), first, keys)
    states, outs = jax.tree.map(lambda x: np.asarray(x).swapaxes(0, 1)[:batch, :length], rest)
    return jax.tree.map(lambda x: np.asarray(x)[:batch], observation), states, outs


def at_random(env, batch, steps, seed=0):
    draw = np.random.default_rng(seed)
    depths = env.action_depths
    one = lambda depth: draw.integers(0, depth, (batch, steps))  # noqa: E731
    return {name: one(depth) for name, depth in depths.items()} if isinstance(depths, dict) else one(depths)


def bookkeeping(env, data, actions, first, skip=1):
    """Equity after each step, positions and costs: cash and units in float64, one asset after the other."""
    rules, data = env.rules, np.asarray(data, np.float64)
    assets = data.shape[1]
    cash, units, held, size = env.initial_cash, np.zeros(assets), np.zeros(assets), np.zeros(assets)
    equity, positions, costs = [], [], []
    for step in range(len(jax.tree.leaves(actions)[0])):
        bar = first + 1 + step * skip
        price = data[bar, :, 0]
        worth = cash + units @ price
        wanted, new, changed = held.copy(), units.copy(), np.zeros(assets, bool)
        for i in range(assets):
            action = (actions[env.assets[i]] if isinstance(actions, dict) else actions)[step]
            if env.weights is not None:
                new[i] = env.weights[action] * worth * rules.fraction / assets / price[i]
                changed[i] = True
                continue
            wanted[i] = 0 if action == CLOSE else held[i] + (action == BUY) - (action == SELL)
            wanted[i] = np.clip(wanted[i], -env.max_units, env.max_units)
            changed[i] = wanted[i] != held[i]
            if changed[i]:
                if held[i] == 0:
                    size[i] = rules.unit_size or worth * rules.fraction / assets / price[i]
                new[i] = wanted[i] * size[i]
        used = np.sum(np.minimum(abs(units), abs(new)) * price)
        cost = 0.0
        for i in range(assets):
            more = max(abs(new[i]) - abs(units[i]), 0) * price[i]
            used += more  # of an order that is refused too, as those after it wait in line
            if not changed[i] or (more and used > rules.leverage * worth * (1 + 1e-6)):
                continue
            bought = new[i] - units[i]
            paid = price[i] * (1 + np.sign(bought) * rules.spread / 2)
            fee = rules.commission * abs(bought) * paid
            cash -= bought * paid + fee
            cost += fee + abs(bought) * abs(paid - price[i])
            units[i], held[i] = new[i], wanted[i]
        equity.append(cash + units @ data[bar + skip - 1, :, 3])
        positions.append(units.copy())
        costs.append(cost)
    return np.array(equity), np.array(positions), np.array(costs)


CASES = {
    "one asset": (1, {}),
    "costs": (1, {"commission": 1e-3, "spread": 2e-3}),
    "several units": (1, {"max_units": 3, "fraction": 0.3, "leverage": 1.0}),
    "fixed unit size": (1, {"max_units": 4, "unit_size": 2000.0, "leverage": 0.7}),
    "leverage": (1, {"fraction": 5.0, "leverage": 5.0, "commission": 1e-5}),
    "weights": (1, {"weights": (-1, -0.5, 0, 0.5, 1)}),
    "three assets": (3, {"spread": 1e-3}),
    "three assets, tight margin": (3, {"max_units": 3, "leverage": 0.8, "unit_size": 1500.0}),
    "three weights": (3, {"weights": (-2, 0, 2), "leverage": 2.0}),
    "skipped bars": (1, {"frame_skip": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_bookkeeping(case):
    assets, params = CASES[case]
    data = bars(assets)
    env = make(data, **params)
    skip = params.get("frame_skip", 1)
    actions = at_random(env, 6, 112 // skip)
    _, states, steps = play(env, actions)
    for i in range(6):
        mine = jax.tree.map(lambda x: x[i], actions)  # noqa: B023
        equity, positions, _ = bookkeeping(env, data, mine, env.starts[0], skip)
        np.testing.assert_allclose(states.equity[i], equity, rtol=2e-6)
        np.testing.assert_allclose(states.position[i], positions, rtol=2e-5, atol=1e-5 * env.initial_cash)
    assert not steps.terminated.any()
    assert np.abs(states.position).max() > 0
    # The sum of log rewards is the log of what the equity has grown by.
    np.testing.assert_allclose(
        steps.reward.sum(1), np.log(states.equity[:, -1] / env.initial_cash), atol=2e-6
    )
    np.testing.assert_array_equal(env.prices(states), env.close[states.index])


def test_margin_refuses_as_a_whole_what_is_not_free():
    env = make(max_units=9, unit_size=3000.0, leverage=1.0, commission=0.0)  # prices are about 1: three fit
    _, states, _ = play(env, np.full((1, 10), BUY))
    np.testing.assert_array_equal(states.units[0, :, 0], [1, 2, 3] + [3] * 7)


def test_costs_on_both_legs_exactly():
    flat = np.full((BARS, 1), 2.0)
    for params, each in (
        ({"commission": 1e-3}, 1e-3),
        ({"commission": 0.0, "spread": 4e-3}, 2e-3),
        ({"commission": 1e-3, "spread": 4e-3}, None),
    ):
        for way in (BUY, SELL):
            env = make(flat, unit_size=1000.0, **params)
            _, states, _ = play(env, np.array([[way, HOLD, CLOSE, HOLD]]))
            sign = 1 if way == BUY else -1
            if each is None:
                legs = [2e-3 + 1e-3 * (1 + sign * 2e-3), 2e-3 + 1e-3 * (1 - sign * 2e-3)]
            else:
                legs = [each, each]
            paid = 10_000 - states.equity[0].astype(float)
            right = 2000 * np.array([legs[0], legs[0], sum(legs), sum(legs)])
            np.testing.assert_allclose(paid, right, atol=2e-3)


def test_what_trading_costs_never_helps():
    actions = at_random(make(), 32, 100)
    free = play(make(commission=0.0, unit_size=1000.0), actions)[1].equity
    for params in ({"commission": 1e-3}, {"spread": 1e-3}, {"slippage": 1e-3}):
        costly = play(make(**{"commission": 0.0, "unit_size": 1000.0, **params}), actions)[1].equity
        assert (costly <= free).all()
        assert (np.diff(free - costly, axis=1) >= -2e-3).all()  # an account of 1e4 has so many digits
        assert (costly[:, -1] < free[:, -1]).all()


def test_slippage_is_drawn_between_none_and_the_largest():
    env = make(np.full((BARS, 1), 2.0), unit_size=1000.0, commission=0.0, slippage=1e-2)
    _, states, _ = play(env, np.tile([BUY, CLOSE], (200, 1)))
    legs = -np.diff(np.concatenate([np.full((200, 1), env.initial_cash), states.equity], axis=1))
    assert legs.min() >= 0
    assert legs.max() <= 20
    assert legs.mean() == pytest.approx(10, abs=1)
    assert abs(np.corrcoef(legs.T)[0, 1]) < 0.25
    again = play(env, np.tile([BUY, CLOSE], (200, 1)))[1]
    np.testing.assert_array_equal(again.equity, states.equity)


def test_long_and_short_are_mirror_images():
    data = bars()[..., [0, 3]]
    mirrored = 4.0 - data  # the same moves, the other way
    actions = at_random(make(), 16, 100)
    other = np.where(actions == BUY, SELL, np.where(actions == SELL, BUY, actions))

    def equity(data, actions):
        whole = np.stack([data[..., 0], data.max(-1), data.min(-1), data[..., 1]], axis=-1)
        return play(make(whole, unit_size=1000.0, commission=0.0, leverage=9.0), actions)[1].equity

    np.testing.assert_allclose(equity(data, actions), equity(mirrored, other), rtol=1e-6)


@pytest.mark.parametrize("params", [{}, {"frame_skip": 3}, {"signal": "prices"}, {"weights": (-1, 0, 1)}])
def test_what_comes_later_changes_nothing_before(params):
    row, data = 60, bars()
    later = data.copy()
    later[row:] *= 1.3
    env, other = make(data, **params), make(later, **params)
    actions = at_random(env, 4, 110 // env.frame_skip)
    known = (row - 1 - env.starts[0]) // env.frame_skip  # steps that end before the change
    for ours, theirs in zip(
        jax.tree.leaves(play(env, actions)[1:]), jax.tree.leaves(play(other, actions)[1:]), strict=True
    ):
        np.testing.assert_array_equal(ours[:, :known], theirs[:, :known])
    assert (play(env, actions)[1].equity[:, known:] != play(other, actions)[1].equity[:, known:]).any()


def test_what_is_seen():
    data = bars(2)
    env = make(data, window=5, episode_length=50, drawdown=0.5, fraction=0.5)
    actions = {
        name: np.array([[BUY, HOLD, way, HOLD]]) for name, way in zip(env.assets, (HOLD, CLOSE), strict=True)
    }
    observation, states, steps = play(env, actions)
    table = features(data[..., 3])
    assert observation["external"].shape[1:] == env.observation["external"].shape == (5, 14)
    assert observation["internal"].shape[1:] == env.observation["internal"].shape == (8,)
    np.testing.assert_array_equal(observation["external"][0], table[:5])
    for t in range(4):
        np.testing.assert_array_equal(steps.observation["external"][0, t], table[t + 1 : t + 6])
    first = env.starts[0]
    units = states.position[0, 0]
    moved = data[first + 1 : first + 5, :, 3] - data[first + 1, :, 0]
    profit = units[None] * moved  # at each close
    profit[2:, 1] = 0
    equity = states.equity[0].astype(float)
    peak = np.maximum.accumulate(np.append(env.initial_cash, equity))[1:]
    right = np.concatenate(
        [
            np.array([[1, 1], [1, 1], [1, 0], [1, 0]]),
            profit / env.initial_cash / 0.5,
            np.array([[1, 1], [2, 2], [3, 0], [4, 0]]) / 50,
            (equity / env.initial_cash - 1)[:, None] / 0.5,
            (1 - equity / peak)[:, None] / 0.5,
        ],
        axis=1,
    )
    np.testing.assert_allclose(steps.observation["internal"][0], right, atol=1e-6)
    np.testing.assert_array_equal(observation["internal"], 0)
    np.testing.assert_allclose(states.unrealised[0], profit, atol=2e-3)


def test_skipped_bars_are_one_step_of_the_same_orders():
    single, held = make(), make(frame_skip=5)
    actions = at_random(held, 8, 22)
    spread = np.zeros((8, 110), int)
    spread[:, ::5] = actions
    _, slow, _ = play(single, spread)
    _, fast, steps = play(held, actions)
    np.testing.assert_allclose(fast.equity, slow.equity[:, 4::5], rtol=1e-6)
    np.testing.assert_array_equal(fast.index, slow.index[:, 4::5])
    np.testing.assert_allclose(fast.peak, slow.peak[:, 4::5], rtol=1e-6)
    np.testing.assert_allclose(steps.reward.sum(1), np.log(fast.equity[:, -1] / held.initial_cash), atol=2e-6)
    # The end of an episode cuts a step short.
    short = make(frame_skip=5, episode_length=12)
    _, states, steps = play(short, actions[:, :3])
    np.testing.assert_array_equal(states.index[0] - states.first[0], [5, 10, 12])
    np.testing.assert_array_equal(steps.truncated[0], [False, False, True])
    np.testing.assert_allclose(states.equity[:, 2], slow.equity[:, 11], rtol=1e-6)


def test_what_makes_a_position_smaller_is_never_refused():
    prices = np.where(np.arange(BARS) < 10, 2.0, 1.6)[:, None]
    env = make(prices, unit_size=10_000.0, max_units=2, leverage=4.0, commission=0.0)
    _, states, _ = play(env, np.array([[BUY, BUY] + [HOLD] * 8 + [SELL, BUY]]))
    assert states.equity[0, -1] == pytest.approx(2000)  # where 8,000 in positions are the most
    np.testing.assert_array_equal(states.position[0, [1, 9, 10, 11], 0], [20_000, 20_000, 10_000, 10_000])


def test_without_equity_nothing_more_is_bought():
    rules = BrokerRules(0.0, 0.0, 0.0, leverage=2.0, unit_size=1.0, fraction=1.0, rebalance=False)
    units, wanted = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
    filled = fill(rules, units, jnp.ones(2), units, wanted, jnp.float32(-1), jnp.ones(2), 0.0)
    np.testing.assert_array_equal(filled.position, [0, 0])
    filled = fill(rules, units, jnp.ones(2), units, jnp.ones(2), jnp.float32(-1), jnp.ones(2), 0.0)
    np.testing.assert_array_equal(filled.position, [0, 1])


def test_drawdown_target_and_ruin_terminate_and_time_truncates():
    rising = np.linspace(1.0, 1.5, BARS)[:, None]
    hill = np.concatenate([rising[::2], rising[::-2]])
    # Of a position of twice the equity that leaves nothing at all.
    halved = np.where(np.arange(BARS) < 20, 2.0, 1.0)[:, None]
    levered = {"leverage": 2.0, "fraction": 2.0, "commission": 0.0}
    for prices, params, way, reached in (
        (rising, {"profit_target": 0.2}, BUY, lambda equity, peak: equity >= 12_000),
        (rising, {"drawdown": 0.2}, SELL, lambda equity, peak: equity <= 0.8 * peak),
        (rising, {"drawdown": 0.2, "frame_skip": 7}, SELL, lambda equity, peak: equity <= 0.8 * peak),
        (hill, {"drawdown": 0.2}, BUY, lambda equity, peak: equity <= 0.8 * peak),
        (rising, {"leverage": 4.0, "fraction": 4.0}, SELL, lambda equity, peak: equity <= 0),
        (halved, levered, BUY, lambda equity, peak: equity == 0),
    ):
        env = make(prices, **params)
        _, states, steps = play(env, np.array([[way] + [HOLD] * (110 // env.frame_skip - 1)]))
        end = int(np.argmax(steps.terminated[0]))
        assert steps.terminated[0, end]
        assert not steps.truncated[0, : end + 1].any()
        met = reached(states.equity[0], states.peak[0])
        assert met[end]
        assert not met[:end].any()
        # No bar after the one that ended it is played, though the step had more.
        _, single, _ = play(make(prices, **{**params, "frame_skip": 1}), np.array([[way] + [HOLD] * 109]))
        first = int(np.argmax(reached(single.equity[0], single.peak[0])))
        np.testing.assert_allclose(states.equity[0, end], single.equity[0, first], rtol=1e-6)
        assert np.isfinite(steps.reward).all()
        assert np.isfinite(states.equity).all()
    _, states, steps = play(make(episode_length=10), np.zeros((1, 10), int))
    np.testing.assert_array_equal(steps.truncated[0], np.arange(10) == 9)
    assert not steps.terminated.any()
    # A target reached on the last bar has terminated.
    env = make(rising, profit_target=0.2)
    _, states, steps = play(env, np.array([[BUY] + [HOLD] * 109]))
    end = int(np.argmax(steps.terminated[0]))
    _, _, steps = play(
        make(rising, profit_target=0.2, episode_length=end + 1), np.array([[BUY] + [HOLD] * end])
    )
    assert steps.terminated[0, -1]
    assert not steps.truncated.any()


def test_the_shaped_reward_adds_up():
    actions = at_random(make(), 8, 100)
    env = make(reward="shaped", discount=1.0, reward_scale=10.0)
    _, states, steps = play(env, actions)
    np.testing.assert_allclose(
        steps.reward.sum(1), 10 * (states.equity[:, -1] / env.initial_cash - 1), atol=1e-4
    )
    # Discounted, the potential pays back what it has paid: the discounted sums differ by the last potential alone.
    env = make(reward="shaped", discount=0.9)
    _, states, steps = play(env, actions)
    potential = states.unrealised[..., 0] / env.initial_cash
    before = np.concatenate([np.zeros((8, 1)), potential[:, :-1]], axis=1)
    change = np.diff(states.equity.astype(float), axis=1, prepend=env.initial_cash) / env.initial_cash
    realised = change - (potential - before)
    np.testing.assert_allclose(steps.reward, realised + 0.9 * potential - before, atol=1e-6)
    # Where an episode terminates, what is open is earned, without discount, and no potential is left.
    env = make(np.linspace(1.0, 1.5, BARS)[:, None], reward="shaped", discount=0.9, profit_target=0.2)
    _, states, steps = play(env, np.array([[BUY] + [HOLD] * 109]))
    end = int(np.argmax(steps.terminated[0]))
    last, before = states.unrealised[0, end, 0], states.unrealised[0, end - 1, 0]
    assert steps.reward[0, end] == pytest.approx((last - before) / env.initial_cash, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "ends", "total"), [(-0.03, {"drawdown": 0.1}, -0.1147), (0.03, {"profit_target": 0.1}, 0.1255)]
)
def test_the_shaped_reward_counts_what_is_open_where_an_episode_terminates(change, ends, total):
    """Long through a fall of 3 % a bar until the drawdown ends it, or through a rise until the target is reached."""
    prices = 100 * (1 + change) ** np.arange(BARS)[:, None]
    env = make(prices, reward="shaped", discount=1.0, commission=0.0, **ends)
    _, states, steps = play(env, np.array([[BUY] + [HOLD] * 60]))
    end = int(np.argmax(steps.terminated[0]))
    earned = steps.reward[0, : end + 1].sum()
    assert earned == pytest.approx(states.equity[0, end] / env.initial_cash - 1, abs=1e-5)
    assert earned == pytest.approx(total, abs=1e-3)


def test_an_episode_that_ends_is_followed_by_the_next():
    env = make(episode_length=10, commission=1e-3)
    actions = at_random(env, 4, 35)
    _, states, steps = play(env, actions, step=True)
    np.testing.assert_array_equal(steps.truncated, np.tile(np.arange(35) % 10 == 9, (4, 1)))
    start, observation = env.start(env.starts[0] + 10)
    for ours, theirs in zip(
        jax.tree.leaves((states, steps.observation)), jax.tree.leaves((start, observation)), strict=True
    ):
        np.testing.assert_array_equal(ours[:, 9], np.broadcast_to(theirs, ours[:, 9].shape))
    _, stayed, moved = play(env, actions[:, :10])
    for name in ("external", "internal"):
        np.testing.assert_array_equal(steps.final_observation[name][:, 9], moved.observation[name][:, 9])
        np.testing.assert_array_equal(steps.final_observation[name][:, :9], steps.observation[name][:, :9])
    assert (steps.final_observation["internal"][:, 9] != steps.observation["internal"][:, 9]).any()
    np.testing.assert_array_equal(stayed.equity[:, :9], states.equity[:, :9])


@pytest.mark.parametrize(
    ("params", "starts"),
    [
        ({"sampling": "random"}, range(3, 110)),
        ({"sampling": "sequential"}, range(3, 110, 10)),
        ({"sampling": "sliding", "stride": 4}, range(3, 110, 4)),
        ({"sampling": "sliding", "stride": 53}, range(3, 110, 53)),  # the last of which is the end
    ],
)
def test_where_episodes_begin(params, starts):
    env = make(episode_length=10, **params)
    assert env.starts == (3, 109)
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2000))
    assert set(np.asarray(state.first)) == set(starts)
    _, states, _ = play(env, np.zeros((3, 300), int), step=True)
    firsts = states.first[:, 9::10]
    if params["sampling"] == "random":
        assert len({tuple(row) for row in firsts}) == 3
        assert set(firsts.ravel()) <= set(starts)
    else:
        order = list(itertools.islice(itertools.cycle(starts), 1, 31))
        np.testing.assert_array_equal(firsts, np.tile(order, (3, 1)))


def test_parts_share_no_bar():
    length = 1000
    data = bars(length=length)
    seen = []
    for part in ("train", "validation", "test"):
        env = make(data, part=part, window=16, episode_length=20, sampling="random", periods=(1, 8))
        whole = make(data, part=part, window=16, episode_length=None, periods=(1, 8))
        assert whole.starts[0] == whole.starts[1] == env.starts[0]
        seen.append((env.starts[0] - 15, env.starts[1] + 20))
        assert seen[-1][1] == whole.starts[0] + whole.length
    assert seen[0][0] == 0
    assert seen[-1][1] == length - 1
    for before, after in itertools.pairwise(seen):
        assert after[0] - before[1] == 1 + 8
    # Prices look back at nothing.
    train, validation = (
        make(data, part=part, window=16, signal="prices") for part in ("train", "validation")
    )
    assert validation.starts[0] - 15 == train.starts[0] + train.length + 1


def test_one_at_a_time_or_many_at_once_is_the_same():
    env = make(
        bars(2), max_units=2, leverage=2.0, spread=1e-3, slippage=1e-3, sampling="random", episode_length=7
    )
    actions = at_random(env, 3, 9)
    together = jax.tree.leaves(play(env, actions, first=20, step=True)[1:])
    again = jax.tree.leaves(play(env, actions, first=20, step=True)[1:])
    keys = jax.random.split(jax.random.key(0), (110, 8))[:9, 1]
    step, (state, _) = jax.jit(env.step), env.start(20)
    alone = []
    for t in range(9):
        action = {name: jnp.int32(choices[1, t]) for name, choices in actions.items()}
        state, out = step(keys[t], state, action)
        alone.append((state, out))
    alone = jax.tree.leaves(jax.tree.map(lambda *x: np.stack(x), *alone))
    for many, same, one in zip(together, again, alone, strict=True):
        np.testing.assert_array_equal(many, same)
        np.testing.assert_allclose(many[1], one, rtol=1e-6, atol=1e-6)
        assert many.dtype == one.dtype


def test_data_of_every_kind(tmp_path):
    closes = bars()[:, 0, 3]
    path = tmp_path / "prices.csv"
    rows = [f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00,{x}" for i, x in enumerate(closes)]
    path.write_text("\n".join(["time,Close", *rows]))
    series = Series(("a",), None, closes[:, None])
    right = make(closes)
    for data in (closes[:, None], jnp.asarray(closes), series, path, str(path)):
        env = make(data)
        np.testing.assert_allclose(env.bars, right.bars, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(env.close, right.close, rtol=1e-6)
    assert make(path).times[5] == np.datetime64("2024-01-01T05:00")
    for name in ("sine", "random_walk", "regime_switching"):
        assert make(name, data_params={"length": 99}).close.shape == (99, 1)
    assert (make("random_walk").close != make("random_walk", data_params={"seed": 1}).close).any()
    ohlc = Series(
        ("Open", "High", "Low", "Close", "Volume"),
        None,
        np.concatenate([bars()[:, 0], np.ones((BARS, 1))], 1),
    )
    env = make(ohlc, signal="prices")
    np.testing.assert_allclose(env.signal, bars()[:, 0], rtol=1e-6)
    several = Series(("x", "y", "z"), None, bars(3)[..., 3])
    assert make(several, columns=("z", "x")).action_depths == {"z": 4, "x": 4}
    np.testing.assert_allclose(make(several, columns=("z",)).close, bars(3)[:, 2:, 3], rtol=1e-6)
    assert make(several, columns="z, x").action_depths == {"z": 4, "x": 4}
    np.testing.assert_allclose(make(ohlc, columns="low").close, bars()[:, :, 2], rtol=1e-6)
    assert make(closes, signal=np.ones((BARS, 2))).observation["external"].shape == (4, 2)


@pytest.mark.parametrize(
    ("columns", "assets", "lines"),
    [
        ("Date,Open,High,Low,Close,Adj Close,Volume", ("price",), 4),
        ("Date;1_O;2_H;3_L;4_C;5_V", ("price",), 4),
        ("Date,Volume,Close,Open", ("price",), 2),
        ("Date,Close,Volume", ("Close",), 1),
        ("Date,CLOSE,Adj Close,Vol.", ("Close",), 1),
        ("Date,Adj Close,volume", ("Adj Close",), 1),
        ("Date,C,V,AAPL,VOLV", ("C", "V", "AAPL", "VOLV"), 4),
        ("Date,AAPL,MSFT,AAPL Volume", ("AAPL", "MSFT"), 2),
        ("Date,Open,High,Low,Volume", None, None),
        ("Date,High,Low,Close", None, None),
        ("Date,Open", None, None),
        ("Date,Volume", None, None),
    ],
)
def test_columns_of_a_file(tmp_path, columns, assets, lines):
    path = tmp_path / "prices.csv"
    separator = ";" if ";" in columns else ","
    cells = separator.join(["2"] * columns.count(separator))
    path.write_text("\n".join([columns, *(f"{year}-01-01{separator}{cells}" for year in range(1900, 2000))]))
    if assets is None:
        found = columns[5:].replace(",", ", ")
        with pytest.raises(
            ValueError, match=rf"prices\.csv .* has the columns {found}: expected Open and Close"
        ):
            make(path)
    else:
        env = make(path, signal="prices")
        assert env.assets == assets
        assert env.signal.shape == (100, lines)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {},
            r"99 bars \(all\) are too few for a window of 32 and an episode of 256: at least 288 are needed",
        ),
        ({"part": "test", "embargo": 0}, r"15 bars \(test\) are too few for a window of 32"),
        ({"part": "test"}, "99 rows are too few for parts of"),
    ],
)
def test_a_file_that_is_too_short_is_named_with_its_last_line(tmp_path, params, message):
    path = tmp_path / "prices.csv"
    path.write_text("time,Close\n\n" + "".join(f"{year}-01-01,1\n" for year in range(1900, 1999)))
    with pytest.raises(ValueError, match=rf"prices\.csv \(99 rows to line 101\): {message}"):
        envs.make("trading", data=path, **params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"data": "eurusdd"}, r"unknown data 'eurusdd'; did you mean 'eurusd'\?"),
        ({"data": "missing.csv"}, "cannot read missing.csv: No such file"),
        (
            {"data": np.ones((3, 1, 2))},
            r"closes \[N\] or \[N, A\] or bars \[N, A, 4\], got shape \(3, 1, 2\)",
        ),
        ({"data": -np.ones(99)}, r"above 0, got -1\.0"),
        ({"data": np.array([1.0, np.inf] * 50)}, "finite and above 0, got inf"),
        ({"data_params": {"perod": 3}}, "unknown data_params of sine 'perod'; did you mean 'period'"),
        (
            {"data": np.ones(99), "data_params": {"seed": 3}},
            r"have data_params, got {'seed': 3} for a ndarray",
        ),
        ({"data": np.ones(99), "columns": ("a",)}, "an array has no columns"),
        ({"columns": ("a",)}, "sine is generated and has no columns"),
        ({"data": "eurusd", "data_params": {"missing": "drop"}}, "and files have data_params.* for 'eurusd'"),
        (
            {"data": "missing.csv", "data_params": {"day": 1}},
            "unknown data_params 'day'; did you mean 'day_first'",
        ),
        ({"data": ["missing.csv", "other.csv"]}, "cannot read missing.csv: No such file"),
        (
            {"data": np.ones(99)},
            "99 bars .all. are too few for a window of 32 and an episode of 256: at least 288",
        ),
        ({"data": np.ones(20), "episode_length": None}, "20 bars .all. are too few for a window of 32"),
        ({"part": "tset"}, "unknown part 'tset'; did you mean 'test'"),
        ({"part": "test", "fractions": (0.5, 0.5)}, "fractions are of train, validation, test"),
        ({"sampling": "radom"}, "unknown sampling 'radom'; did you mean 'random'"),
        ({"reward": "logs"}, "unknown reward 'logs'; did you mean 'log'"),
        ({"signal": "price"}, "unknown signal 'price'; did you mean 'prices'"),
        ({"signal": np.ones((5, 2))}, r"signal must be \[4096, C\].*got shape \(5, 2\)"),
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"window": True}, "window must be a whole number of at least 1, got True"),
        ({"frame_skip": 0}, "frame_skip must be a whole number of at least 1, got 0"),
        ({"episode_length": 0}, "episode_length must be a whole number of at least 1, got 0"),
        ({"episode_length": 100.5}, r"episode_length must be a whole number of at least 1, got 100\.5"),
        ({"max_units": 1.5}, r"max_units must be a whole number of at least 1, got 1\.5"),
        ({"stride": "2"}, "stride must be a whole number of at least 1, got '2'"),
        ({"embargo": 0.5}, r"embargo must be a whole number of at least 0, got 0\.5"),
        ({"periods": (1, 1.5)}, r"periods must be a whole number of at least 1, got 1\.5"),
        ({"reward_scale": float("nan")}, "reward_scale must be above 0, got nan"),
        ({"reward_scale": float("inf")}, "reward_scale must be above 0, got inf"),
        ({"discount": float("nan")}, "discount must be at least 0, got nan"),
        ({"discount": 1.5}, r"discount must be at most 1, got 0\.1 and 1\.5"),
        ({"initial_cash": "much"}, "initial_cash must be above 0, got 'much'"),
        ({"initial_cash": True}, "initial_cash must be above 0, got True"),
        ({"commission": -1e-4}, r"commission must be at least 0, got -0\.0001"),
        ({"commission": float("nan")}, "commission must be at least 0, got nan"),
        ({"commission": None}, "commission must be at least 0, got None"),
        ({"commission": 10**400}, r"commission must be below 3\.4e\+38, got 1000"),
        ({"window": None}, "window must be a whole number of at least 1, got None"),
        ({"frame_skip": 10**30}, "frame_skip must be below 2147483648, got 1e"),
        ({"part": 3}, "unknown part 3; known: all"),
        ({"part": []}, r"unknown part \[\]; "),
        ({"spread": 2.0}, "stay below 1, got 1.0"),
        ({"initial_cash": 0}, "initial_cash must be above 0, got 0"),
        ({"drawdown": 1.5}, r"at most 1, got 1\.5"),
        ({"fraction": 2.0}, "positions of 2 times the equity need a leverage of as much, got 1"),
        (
            {"fraction": 0.5, "max_units": 3},
            r"positions of 1\.5 times the equity need a leverage of as much, got 1",
        ),
        ({"weights": (0.5, 1)}, "weights must be numbers, 0 and others"),
        ({"weights": (0, 1), "unit_size": 3.0}, r"leave unit_size \(3.0\)"),
        ({"widnow": 3}, "unknown parameter of trading 'widnow'; did you mean 'window'"),
    ],
)
def test_what_makes_no_sense_is_refused(params, message):
    with pytest.raises(ValueError, match=message) as caught:
        envs.make("trading", **params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [object(), {"a": 1}, ["a.csv", 3], {1, 2}])
def test_what_is_no_prices_is_a_type_error(data):
    with pytest.raises(TypeError, match=r"must be .*, got a"):
        envs.make_trading(data)


def test_a_file_is_read_with_options(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(
        "Date;Close\n" + "".join(f"0{1 + i % 9}/0{1 + i // 9}/2024;1,{i:03}\n" for i in range(60))
    )
    with pytest.raises(ValueError, match=r"choose decimal=',' or decimal='.'"):
        make(str(path))
    options = {"day_first": True, "decimal": ","}
    env = make(str(path), data_params=options)
    np.testing.assert_allclose(env.close[:, 0], 1 + np.arange(60) / 1000, rtol=1e-6)
    assert env.times[-1] == np.datetime64("2024-07-06")
    env = make(str(path), data_params={**options, "missing": "drop"}, columns="Close")
    assert env.assets == ("Close",)


@pytest.mark.parametrize("kind", ["files", "dict", "wide"])
def test_bars_of_several_assets(tmp_path, kind):
    prices = np.exp(
        np.cumsum(np.random.default_rng(0).normal(0, 0.01, (60, 2, 2)), axis=0)
    )  # [N, A, open and close]
    days = np.datetime64("2024-01-01") + np.arange(60)
    names = ("AAPL", "MSFT")
    if kind == "wide":
        header = ",".join(f"{name}_{field}" for name in names for field in ("Open", "Close"))
        rows = "".join(
            f"{day},{','.join(map(str, row))}\n" for day, row in zip(days, prices.reshape(60, 4), strict=True)
        )
        (tmp_path / "wide.csv").write_text(f"Date,{header}\n{rows}")
        data = str(tmp_path / "wide.csv")
    else:
        for i, name in enumerate(names):
            rows = "".join(
                f"{day},{o},{c}\n" for day, (o, c) in zip(days, prices[:, i].tolist(), strict=True)
            )
            (tmp_path / f"{name}.csv").write_text("Date,Open,Close\n" + rows)
        data = {name: str(tmp_path / f"{name}.csv") for name in names}
        data = data if kind == "dict" else list(data.values())
    env = make(data)
    assert env.assets == names
    np.testing.assert_allclose(env.close, prices[..., 1], rtol=1e-6)
    np.testing.assert_allclose(env.bars[0, :60], prices[..., 0], rtol=1e-6)
    np.testing.assert_array_equal(env.times, days)


OPTIMAL = {
    "fraction": {},
    "no costs": {"commission": 0.0},
    "dear": {"commission": 2e-2, "spread": 1e-2},
    "leverage": {"fraction": 2.0, "leverage": 2.0},
    "fixed unit size": {"unit_size": 1000.0, "leverage": 100.0},
    "skipped bars": {"frame_skip": 2},
}


@pytest.mark.parametrize("case", OPTIMAL)
def test_the_optimal_policy_is_the_best_of_all(case):
    params = {"commission": 1e-3, **OPTIMAL[case]}
    env = make(bars(length=4 + 6 * params.get("frame_skip", 1), volatility=0.03), **params)
    best = optimal_policy(env)
    every = np.array([*itertools.product(range(4), repeat=6), best.actions])
    _, states, steps = play(env, every)
    for equity in (states.equity[-1, -1], states.equity[:, -1].max()):
        assert best.equity == pytest.approx(equity, rel=2e-6)
    assert best.log_return == pytest.approx(steps.reward[-1].sum(), abs=5e-6)
    assert best.log_return > 0.001
    assert len(set(best.actions)) > 2


def test_the_optimal_policy_is_never_beaten():
    env = make(spread=1e-4)
    best = optimal_policy(env)
    actions = at_random(env, 500, env.length)
    assert (play(env, actions)[2].reward.sum(1) < best.log_return).all()
    assert play(env, best.actions[None])[2].reward.sum() == pytest.approx(best.log_return, abs=1e-5)
    # Dearer trades are never better, and with the dearest it is best to do nothing.
    results = [optimal_policy(make(commission=c)).log_return for c in (0, 1e-3, 1e-2, 0.5)]
    assert results == sorted(results, reverse=True)
    assert results[-1] == 0
    for params in (
        {"max_units": 2, "leverage": 2.0},
        {"weights": (0, 1)},
        {"slippage": 0.1},
        {"data": bars(2)},
    ):
        with pytest.raises(ValueError, match="one asset without slippage, got"):
            optimal_policy(make(**params))
    with pytest.raises(ValueError, match="first must be from 3 to 3, got 4"):
        optimal_policy(env, 4)
