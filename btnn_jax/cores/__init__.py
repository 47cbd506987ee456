"""Recurrent cores, the memory of an agent, behind one protocol.

| core | numbers in the state of a layer of size H | work over T steps |
|---|---|---|
| `btnn_jax.networks.LSTMNetwork` | 2 H | T sequential products with an H x 4H matrix |
| `GRUNetwork` | H | T sequential products with an H x 3H matrix |
| `MinGRUNetwork` | H | products over all steps at once, and a linear recurrence |
| `LRUNetwork` | 2 H | products over all steps at once, and a linear recurrence |
| `GTrXLNetwork` | M H for a memory of M steps | products and attention over all steps at once |
| `StackedCores` | the sum over its cores | the sum over its cores |
"""

from btnn_jax.cores.core import Core, CoreState, state_bytes
from btnn_jax.cores.gru import GRUNetwork, MinGRUNetwork
from btnn_jax.cores.gtrxl import GTrXLNetwork
from btnn_jax.cores.lru import LRUNetwork
from btnn_jax.cores.stack import NETWORKS, StackedCores, make_core

__all__ = [
    "NETWORKS",
    "Core",
    "CoreState",
    "GRUNetwork",
    "GTrXLNetwork",
    "LRUNetwork",
    "MinGRUNetwork",
    "StackedCores",
    "make_core",
    "state_bytes",
]
