"""Time series: read from files and from installed packages, generated, split in time and cut into windows.

Knows nothing of agents, environments or the folders of runs.
"""

from btnn_jax.data.features import features, momentum, moving_average, volatility, z_score
from btnn_jax.data.installed import PACKAGED_SERIES, load_installed
from btnn_jax.data.prices import load_csv, load_prices, read_prices
from btnn_jax.data.reading import Reading
from btnn_jax.data.series import Gap, Series, gaps
from btnn_jax.data.windows import Scale, fit_scale, log_returns, split, windows

__all__ = [
    "PACKAGED_SERIES",
    "Gap",
    "Reading",
    "Scale",
    "Series",
    "features",
    "fit_scale",
    "gaps",
    "load_csv",
    "load_installed",
    "load_prices",
    "log_returns",
    "momentum",
    "moving_average",
    "read_prices",
    "split",
    "volatility",
    "windows",
    "z_score",
]
