"""The trading environment: bars in, orders out, on the device from end to end."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from btnn_jax._types import PyTree
from btnn_jax.envs.base import TimeStep
from btnn_jax.envs.trading.account import BrokerRules, compensated_add, fill

__all__ = ["ACTIONS", "TradingEnvironment", "TradingState"]

ACTIONS = ("hold", "buy", "sell", "close")
"""The meaning of actions 0 to 3 as orders; with `weights`, an action is an index into them."""


@struct.dataclass
class TradingState:
    """One account at the close of one bar; `A` assets."""

    index: Array  # int32 [], the bar that closed last: a row of the environment's `close` and `times`
    first: Array  # int32 [], `index` when the episode began
    equity: Array  # float32 [], cash and positions at the close
    rounding_error: Array  # float32 [], of `equity`: what rounding has taken from the sum
    peak: Array  # float32 [], the highest equity of the episode
    position: Array  # float32 [A], amount of the asset held, below 0 where short
    units: Array  # float32 [A], units held, or the target weight
    unit_size: Array  # float32 [A], amount of the asset in one unit
    unrealised: Array  # float32 [A], profit of the open positions, their costs aside
    opened: Array  # int32 [A], `index` when the position was ordered; 0 where there is none


@dataclasses.dataclass(frozen=True, eq=False)
class TradingEnvironment:
    """Trades `A` assets; `make_trading` builds it.

    Bar `index` has closed: the agent sees bars up to it, its orders are filled at the open of the next one, and its
    equity is taken at the close of the last of `frame_skip` bars.

    The observation is `{"external": float32 [window, C], "internal": float32 [3 A + 2]}`. Internal, each `[A]`: the
    units held as a share of the largest number; the unrealised profit; the time the position has been held, in
    `time_unit`; then the profit of the episode, and the drawdown from its highest equity. Profits are parts of the
    initial equity, and these and the drawdown come in `profit_unit`. Both are those of training, where the environment
    is made for longer episodes than the agent has seen; times and profits of the episode are cut off at one of them.

    Attributes:
        assets: names, the heads of `action_depths` where there are several.
        times: datetime64 `[N]`, or None where the data have none.
        close: float32 `[N, A]`.
        bars: float32 `[3, N + frame_skip - 1, A]`: opens; their distances from the last closes; from opens to closes.
        signal: float32 `[N, C]`, the external stream at each bar.
        rules: how orders are sized and what they cost.
        weights: an action's target weight, None where actions are orders.
        max_units: the most units of one asset, long or short, where actions are orders.
        initial_cash: the initial equity.
        window: bars seen.
        length: bars of an episode.
        starts: the first and the last `index` that an episode may begin at.
        stride: bars between the starts of episodes.
        random: whether every start is drawn.
        frame_skip: bars of a step.
        drawdown: that ends an episode.
        profit_target: profit that ends an episode.
        profit_unit: what the agent sees as 1, a fraction of the equity: the `drawdown` that ends episodes.
        time_unit: what the agent sees as 1, in bars: the `length` of episodes.
        reward: "log" or "shaped".
        reward_scale: a factor.
        discount: discount of the shaped reward's potential.
    """

    assets: tuple[str, ...]
    times: np.ndarray | None
    close: Array
    bars: Array
    signal: Array
    rules: BrokerRules
    weights: tuple[float, ...] | None
    max_units: int
    initial_cash: float
    window: int
    length: int
    starts: tuple[int, int]
    stride: int
    random: bool
    frame_skip: int
    drawdown: float
    profit_target: float
    profit_unit: float
    time_unit: int
    reward: str
    reward_scale: float
    discount: float
    name: str = "trading"

    @property
    def observation(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The observation's structure, of `jax.ShapeDtypeStruct`."""
        return {
            "external": jax.ShapeDtypeStruct((self.window, self.signal.shape[1]), jnp.float32),
            "internal": jax.ShapeDtypeStruct((3 * len(self.assets) + 2,), jnp.float32),
        }

    @property
    def action_depths(self) -> int | dict[str, int]:
        """The number of actions, for several assets of each of them."""
        depth = len(ACTIONS) if self.weights is None else len(self.weights)
        return depth if len(self.assets) == 1 else dict.fromkeys(self.assets, depth)

    def prices(self, state: TradingState) -> Array:
        """The closes of the bar that a state is at, float32 `[..., A]`."""
        return self.close[state.index]

    def reset(self, key: Array) -> tuple[TradingState, PyTree]:
        """Starts an episode: `(state, observation)`. The key is consumed."""
        return self.start(self._draw(key))

    def start(self, first: Array | int) -> tuple[TradingState, PyTree]:
        """Starts the episode that begins with the close of bar `first`: `(state, observation)`."""
        state = self._begin(jnp.asarray(first, jnp.int32))
        return state, self.observe(state)

    def step(self, key: Array, state: TradingState, action: PyTree) -> tuple[TradingState, TimeStep]:
        """Acts, and starts the next episode by itself where this one ended. The key is consumed."""
        move_key = key
        if self.rules.slippage:  # nothing else in a move is drawn
            move_key, key = jax.random.split(key)
        after, step = self.move(move_key, state, action)
        if self.random:
            following = self._draw(key)
        else:
            following = state.first + self.stride
            following = jnp.where(following > self.starts[1], self.starts[0], following)
        ended = step.terminated | step.truncated
        after = jax.tree.map(lambda new, old: jnp.where(ended, new, old), self._begin(following), after)
        # Where nobody asks for the final observation, one window is cut from the series, not two. Where one does and
        # nothing ended, both are the same to the bit, however XLA rounds what it computes twice.
        observation = self.observe(after)
        final = jax.tree.map(lambda old, new: jnp.where(ended, old, new), step.final_observation, observation)
        return after, step._replace(observation=observation, final_observation=final)

    def move(self, key: Array, state: TradingState, action: PyTree) -> tuple[TradingState, TimeStep]:
        """Acts, and stays where the episode ends: the state that `step` replaces by the next episode's first.

        Both observations of the `TimeStep` are what the action led to. The key is consumed where there is slippage.
        """
        opens, gaps, moves = (
            jax.lax.dynamic_slice_in_dim(line, state.index + 1, self.frame_skip) for line in self.bars
        )
        price, gap = opens[0], gaps[0]
        chance: Array | float = (
            jax.random.uniform(key, price.shape, jnp.float32) if self.rules.slippage else 0.0
        )
        at_open = state.unrealised + state.position * gap
        gained = jnp.sum(state.position * gap)
        filled = fill(
            self.rules, state.units, state.unit_size, state.position, self._wanted(state.units, action),
            state.equity + gained, price, chance,
        )  # fmt: skip
        # How far the prices have come from the open at each close, and what that made of the account.
        ways = jnp.cumsum(moves.at[1:].add(gaps[1:]), axis=0)
        # XLA on a CPU computes a quotient once, with all that leads to it, but a sum anew for each part of the state:
        # so growth here, the fall from the peak below, and the margin used in `fill`.
        base = jnp.where(state.equity == 0, 1.0, state.equity)  # a ruined account may still be moved
        growth = (gained - filled.cost + jnp.sum(filled.position[None] * ways, axis=1)) / base
        changes = growth * base
        equities = state.equity + changes
        peaks = jnp.maximum(state.peak, jax.lax.cummax(equities))
        reached = equities >= (1 + self.profit_target) * self.initial_cash
        terminated = (equities / peaks <= 1 - self.drawdown) | reached
        bar = state.index + 1 + jnp.arange(self.frame_skip, dtype=jnp.int32)
        ended = terminated | (bar == state.first + self.length)
        last: Array | int = 0 if self.frame_skip == 1 else jnp.argmax(ended.at[-1].set(True))

        change, index = changes[last], bar[last]
        equity, rounding_error = compensated_add(state.equity, state.rounding_error, change)
        turned = filled.position * state.position <= 0  # opened, closed or turned round, or nothing at all
        after = TradingState(
            index=index,
            first=state.first,
            equity=equity,
            rounding_error=rounding_error,
            peak=jnp.maximum(peaks[last], equity),
            position=filled.position,
            units=filled.units,
            unit_size=filled.unit_size,
            unrealised=filled.kept * at_open + filled.position * ways[last],
            opened=jnp.where(turned, jnp.where(filled.position == 0, 0, state.index), state.opened),
        )
        if self.reward == "log":
            reward = jnp.log1p(jnp.maximum(growth[last], 1e-6 - 1.0))
        else:
            realised = jnp.sum((1.0 - filled.kept) * at_open) - filled.cost
            # An end by the rules closes what is open: its profit is then earned, and no potential is left.
            later = jnp.where(terminated[last], 1.0, self.discount) * jnp.sum(after.unrealised)
            reward = (realised + later - jnp.sum(state.unrealised)) / self.initial_cash
        observation = self.observe(after)
        return after, TimeStep(
            observation=observation,
            reward=self.reward_scale * reward,
            terminated=terminated[last],
            truncated=ended[last] & ~terminated[last],
            final_observation=observation,
        )

    def observe(self, state: TradingState) -> dict[str, Array]:
        """The observation of a state."""
        most = max(map(abs, self.weights)) if self.weights is not None else self.max_units
        held = jnp.where(state.position == 0, 0, state.index - state.opened).astype(jnp.float32)
        account = jnp.stack([state.equity / self.initial_cash - 1.0, 1.0 - state.equity / state.peak])
        internal = [
            state.units / most,
            state.unrealised / (self.initial_cash * self.profit_unit),
            jnp.minimum(held / self.time_unit, 1.0),
            jnp.clip(account / self.profit_unit, -1.0, 1.0),
        ]
        return {
            "external": jax.lax.dynamic_slice_in_dim(
                self.signal, state.index - (self.window - 1), self.window
            ),
            "internal": jnp.concatenate(internal),
        }

    def _draw(self, key: Array) -> Array:
        """Where an episode begins, int32 `[]`."""
        low, high = self.starts
        count = (high - low) // self.stride + 1
        # The remainder favours some starts by less than count / 2^32.
        drawn = jax.random.bits(key, dtype=jnp.uint32) % jnp.uint32(count)
        return low + self.stride * drawn.astype(jnp.int32)

    def _begin(self, first: Array) -> TradingState:
        assets = len(self.assets)
        nothing, cash = jnp.zeros(assets, jnp.float32), jnp.float32(self.initial_cash)
        # That of a fraction is known when it is filled.
        unit_size = 0.0 if self.rules.unit_size is None else self.rules.unit_size
        return TradingState(
            index=first, first=first, equity=cash, rounding_error=jnp.float32(0), peak=cash, position=nothing,
            units=nothing, unit_size=jnp.full(assets, unit_size, jnp.float32), unrealised=nothing,
            opened=jnp.zeros(assets, jnp.int32),
        )  # fmt: skip

    def _wanted(self, units: Array, action: PyTree) -> Array:
        """Stakes, or weights, that an action asks for, float32 `[A]`."""
        if len(self.assets) == 1:
            choice = jnp.asarray(action)[None]
        else:
            choice = jnp.stack([jnp.asarray(action[asset]) for asset in self.assets])
        if self.weights is not None:
            return jnp.asarray(self.weights, jnp.float32)[choice]
        way = (choice == 1).astype(jnp.float32) - (choice == 2).astype(jnp.float32)
        return jnp.where(choice == 3, 0.0, jnp.clip(units + way, -self.max_units, self.max_units))
