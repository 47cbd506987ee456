"""Trading of one or several assets on bars of prices: the environment, and the best that could be done in it."""

from btnn_jax.envs.trading.environment import ACTIONS, TradingEnvironment, TradingState
from btnn_jax.envs.trading.make import make_held_out, make_trading
from btnn_jax.envs.trading.optimal import Optimal, optimal_policy

__all__ = [
    "ACTIONS",
    "Optimal",
    "TradingEnvironment",
    "TradingState",
    "make_held_out",
    "make_trading",
    "optimal_policy",
]
