"""Backtests of a run's agents on held-out time, beside simple strategies: figures, files and tables."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax.envs.trading import TradingEnvironment, make_held_out, performance
from btnn_jax.envs.trading.performance import Performance
from btnn_jax.runs.agent import make_agent
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.folder import BACKTEST, CHECKPOINTS, Folder, RunError, write_json
from btnn_jax.runs.keys import check_seeds, key_of
from btnn_jax.runs.run import read_run
from btnn_jax.training.backtest import DRAWS, NAMES, Account, trade_all, with_commission

__all__ = [
    "COLUMNS",
    "Backtest",
    "StrategyRow",
    "backtest_run",
    "backtest_table",
    "compare",
    "write_backtests",
]


_NUMBERS = 2**25  # in the accounts that are traded side by side; with what measures them a gigabyte


class Backtest(NamedTuple):
    """The backtest of a run's agents on one part of the time, beside simple strategies.

    "greedy" are the agents' most likely actions, "sampled" draws of them; the others are `STRATEGIES`.
    """

    env: TradingEnvironment
    data: str  # what was traded, as the run names it
    part: str
    seeds: tuple[int, ...]
    accounts: dict[str, Account]  # leaves [S or 1, N + 1, ...]; of several draws the one in the middle
    performance: dict[str, Performance]  # leaves [S or 1, D or 1], of every draw


def backtest_run(
    folder: Folder,
    *,
    part: str = "test",
    seed: int = 0,
    best: bool = False,
    commissions: Sequence[float | None] = (None,),
) -> list[Backtest]:
    """Lets the agents of a trading run trade a part of the time, once over all of it.

    Args:
      folder: the run's.
      part: "train", "validation" or "test"; what they learned on tells how much of it they know by heart.
      seed: seed of sampled and random actions, the same at each commission.
      best: the checkpoint with the highest return in training rather than the newest.
      commissions: to trade at, all in one program; None for that which the agents have learned with.

    Returns:
      A `Backtest` for each commission.

    Raises:
      RunError: the folder is not that of a trading run, its agents have learned on all of the time, so that no part is
        one they have not seen, or it has no checkpoint that can be read.
    """
    check_seeds(seed)
    run = read_run(folder)
    if not run.backtested:
        raise RunError(f"{folder} is a run of {run.env}, not of trading")
    learned = run.env_params.get("part", "all")
    if "all" in (learned, part):
        raise RunError(f"{folder} has learned on part={learned} of the time: part={part} tests nothing")
    agent = make_agent(run)
    with Checkpoints(pathlib.Path(folder) / CHECKPOINTS, create=False) as checkpoints:
        params = checkpoints.restore(agent.state, checkpoints.best() if best else None).params
    if run.seeds == 1:
        params = jax.tree.map(lambda x: x[None], params)
    try:
        held_out = make_held_out(run.env_params, part)
    except ValueError as error:
        raise RunError(f"no backtest of {folder} on its {part} part: {error}") from error

    costs = [held_out.rules.commission if x is None else x for x in commissions]
    at_once = _draws_at_once(held_out, run.seeds * len(costs))

    def at_cost(commission: jax.Array, params: Any, key: jax.Array) -> Any:
        return trade_all(with_commission(held_out, commission), agent.policy, params, key, at_once=at_once)

    sweep = jax.jit(jax.vmap(at_cost, in_axes=(0, None, None)))
    swept = jax.device_get(sweep(jnp.asarray(costs, jnp.float32), params, key_of(seed, "backtest")))
    return [
        Backtest(
            dataclasses.replace(held_out, rules=held_out.rules._replace(commission=cost)),
            str(run.env_params.get("data", "sine")),
            part,
            tuple(range(run.seed, run.seed + run.seeds)),
            *jax.tree.map(lambda x, index=index: x[index], swept),
        )
        for index, cost in enumerate(costs)
    ]


def _draws_at_once(env: TradingEnvironment, accounts: int) -> int:
    """Draws side by side, each of so many accounts, that memory has room for; it divides `DRAWS`."""
    numbers = accounts * (env.length + 1) * (2 * len(env.assets) + 4)
    return max(k for k in range(1, DRAWS + 1) if DRAWS % k == 0 and (k == 1 or k * numbers <= _NUMBERS))


class StrategyRow(NamedTuple):
    """How well one strategy did."""

    measures: dict[str, list[float]]  # `[value]`, or `[mean, low, high]`, an interval of 95 % over `over`
    seeds: int
    draws: int  # of actions, for each seed

    @property
    def over(self) -> str:
        """The samples that the intervals are over; "" for a single account, which has none."""
        if self.seeds > 1:
            return f"over {self.seeds} seeds"
        return f"over {self.draws} draws" if self.draws > 1 else ""


def compare(backtest: Backtest) -> dict[str, StrategyRow]:
    """Each strategy's measures; means have an interval over seeds, of each its mean, or of one seed over its draws."""
    rows = {}
    for index, name in enumerate(NAMES):
        values = np.stack([np.asarray(x, np.float32) for x in backtest.performance[name]], axis=-1)
        seeds, draws, _ = values.shape
        runs = values.mean(axis=1) if seeds > 1 else values[0]
        ends = runs.T if len(runs) == 1 else np.stack(_interval(jax.random.key(index), runs), axis=1)
        measures = {field: row.tolist() for field, row in zip(Performance._fields, ends, strict=True)}
        rows[name] = StrategyRow(measures, seeds, draws)
    return rows


_interval = jax.jit(performance.bootstrap_interval)


def write_backtests(
    folder: Folder, backtests: Sequence[Backtest], rows: Sequence[Mapping[str, StrategyRow]]
) -> pathlib.Path:
    """Writes `backtest.json` into a run's folder: for each commission what `compare` gave."""
    path = pathlib.Path(folder) / BACKTEST
    costs = [
        {
            "commission": float(backtest.env.rules.commission),
            "accounts": {
                name: {"seeds": row.seeds, "draws": row.draws, **row.measures}
                for name, row in compared.items()
            },
        }
        for backtest, compared in zip(backtests, rows, strict=True)
    ]
    write_json(path, {"part": backtests[0].part, "seeds": list(backtests[0].seeds), "costs": costs})
    return path


COLUMNS = (
    ("total_return", "return %", 100.0),
    ("sharpe_ratio", "Sharpe", 1.0),
    ("sortino_ratio", "Sortino", 1.0),
    ("max_drawdown", "drawdown %", 100.0),
    ("turnover", "turnover %", 100.0),
    ("exposure", "exposure %", 100.0),
    ("num_trades", "trades", 1.0),
    ("hit_rate", "hits %", 100.0),
)


def backtest_table(rows: Mapping[str, StrategyRow]) -> str:
    """Lines of text: for each name the value of each measure, below a mean its interval, and what that is of.

    Args:
      rows: as `compare` gives them.
    """
    lines = [f"{'':<16}" + "".join(f"{words:>16}" for _, words, _ in COLUMNS)]
    for name, row in rows.items():
        cells = [
            [_number(field, scale * value, row.over) for value in row.measures[field]]
            for field, _, scale in COLUMNS
        ]
        lines.append(f"{name:<16}" + "".join(f"{cell[0]:>16}" for cell in cells))
        if row.over:
            lines.append(f"  {row.over:<14}" + "".join(f"{'..'.join(cell[1:]):>16}" for cell in cells))
    return "\n".join(lines + _caption(list(rows.values())))


def _caption(rows: Sequence[StrategyRow]) -> list[str]:
    over_seeds = [row for row in rows if row.seeds > 1]
    over_draws = [row for row in rows if row.seeds == 1 < row.draws]
    lines = ["Below a mean: its interval of 95 %, by bootstrap"] if over_seeds or over_draws else []
    if over_seeds:
        draws = max(row.draws for row in over_seeds)
        each = f"; sampled is of each the mean of {draws} draws" if draws > 1 else ""
        lines.append(f"  over seeds: agents that learned with other seeds{each}")
    if over_draws:
        lines.append("  over draws: actions of the same agent drawn anew; it says nothing of other seeds")
    return lines


def _number(field: str, value: float, over: str) -> str:
    """A count is whole unless it is a mean."""
    if field != "num_trades":
        return f"{value:.2f}"
    return f"{value:.1f}" if over else f"{value:.0f}"
