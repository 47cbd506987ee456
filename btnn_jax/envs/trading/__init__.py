"""Trading of one or several assets on bars of prices: the environment, and the best that could be done in it."""

from btnn_jax.envs.trading.environment import ACTIONS, TradingEnvironment, TradingState
from btnn_jax.envs.trading.make import make_trading

__all__ = ["ACTIONS", "TradingEnvironment", "TradingState", "make_trading"]
