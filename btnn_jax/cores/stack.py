"""Cores by name, and several in sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import Array

from btnn_jax.cores.core import CoreState
from btnn_jax.cores.gru import GRUNetwork, MinGRUNetwork
from btnn_jax.cores.gtrxl import GTrXLNetwork
from btnn_jax.cores.lru import LRUNetwork
from btnn_jax.networks import LSTMNetwork

__all__ = ["NETWORKS", "StackedCores", "make_core"]


class StackedCores(nn.Module):
    """Cores in sequence, each on the outputs of the one before; the state is the tuple of their states.

    Attributes:
      cores: from the input to the output.

    >>> import jax
    >>> from btnn_jax.cores import GRUNetwork, LRUNetwork
    >>> core, x = StackedCores((LRUNetwork((8,)), GRUNetwork((4,)))), jnp.zeros([5, 2, 3])
    >>> state = core.initial_state(2)
    >>> y, state = core.apply(core.init(jax.random.key(0), x, state), x, state)
    >>> y.shape
    (5, 2, 4)
    """

    cores: tuple[nn.Module, ...]

    @nn.nowrap
    def initial_state(self, batch_size: int) -> CoreState:
        """The states of all cores before any step. Needs no parameters."""
        return tuple(core.initial_state(batch_size) for core in self.cores)

    def __call__(
        self,
        x: Array,
        state: CoreState,
        *,
        resets: Array | None = None,
        lengths: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, CoreState]:
        """Runs all cores over a time-major batch of sequences; see `Core`."""
        if len(state) != len(self.cores):
            raise ValueError(f"expected the state of {len(self.cores)} cores, got {len(state)}")
        after = []
        for core, core_state in zip(self.cores, state, strict=True):
            x, core_state = core(x, core_state, resets=resets, lengths=lengths, deterministic=deterministic)
            after.append(core_state)
        return x, tuple(after)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "lstm": LSTMNetwork,
    "gru": GRUNetwork,
    "mingru": MinGRUNetwork,
    "lru": LRUNetwork,
    "gtrxl": GTrXLNetwork,
}
"""The cores by name."""


def make_core(
    name: str,
    sizes: tuple[int, ...],
    *,
    memory: int = 64,
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
) -> nn.Module:
    """A core by its name.

    Args:
      name: a key of `NETWORKS`, or several joined by `+`, from the input to the output.
      sizes: size of each layer; with several cores the size of each, or one size for all.
      memory: number of steps that a GTrXL looks back.
      dtype: type of computation.
      param_dtype: type of the parameters.

    Raises:
      ValueError: a name is unknown, or the number of sizes does not fit.

    >>> make_core("lru+gru", (32,)).initial_state(1)[1][0].shape
    (1, 32)
    """
    names = name.split("+")
    for part in names:
        if part not in NETWORKS:
            raise ValueError(f"a core must be one of {', '.join(NETWORKS)}, got {part!r}")
    if not sizes or (len(names) > 1 and len(sizes) not in (1, len(names))):
        raise ValueError(f"core {name!r} needs {len(names)} sizes, got {sizes}")

    def make(part: str, sizes: tuple[int, ...]) -> nn.Module:
        fields: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        return NETWORKS[part](sizes, **fields, **({"memory": memory} if part == "gtrxl" else {}))

    if len(names) == 1:
        return make(name, sizes)
    sizes = sizes * len(names) if len(sizes) == 1 else sizes
    return StackedCores(tuple(make(part, (size,)) for part, size in zip(names, sizes, strict=True)))
