"""What a recurrent core is, and what cores of several layers share."""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import Array

from btnn_jax._types import PyTree
from btnn_jax.ops.sequence import check_sequence

__all__ = ["Core", "CoreState", "Layers", "check_state", "state_bytes"]

CoreState = tuple[PyTree, ...]


@runtime_checkable
class Core(Protocol):
    """The memory of an agent: a linen module that runs over time-major sequences of one or more episodes.

    A core has the two methods below and keeps these promises, which `tests/test_cores.py` checks:

    - The state is a tuple of arrays, or of trees of arrays, that lead with the batch: `[B, ...]`.
    - A sequence gives the same outputs and state at once, in pieces, or step by step.
    - From a reset on, values and gradients are independent of everything before it.
    - Past a length, outputs are 0, the state stays as it was at the length, and inputs do not matter.
    - Outputs have the type of the computation; the state keeps the types that `initial_state` gives it.

    Gradients may end at the state that a sequence starts with, as they do in GTrXL's memory.

    The replay stores the whole state once per rollout and environment (`state_bytes` tells its size).
    `UnrealConfig.replay_state="zero"` stores none and starts every replayed window from `initial_state`.

    >>> from btnn_jax.ops.linear_recurrence import linear_recurrence
    >>> class Average(nn.Module):  # the mean of all inputs of the episode so far
    ...     size: int
    ...     @nn.nowrap
    ...     def initial_state(self, batch_size):
    ...         return (jnp.zeros([batch_size, self.size + 1]),)
    ...     @nn.compact
    ...     def __call__(self, x, state, *, resets=None, lengths=None, deterministic=True):
    ...         x = nn.Dense(self.size)(x)
    ...         x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)  # sums and their count
    ...         sums, last = linear_recurrence(
    ...             jnp.ones(self.size + 1), x, state[0], resets=resets, lengths=lengths)
    ...         return sums[..., :-1] / jnp.maximum(sums[..., -1:], 1), (last,)
    >>> core, x = Average(4), jnp.ones([5, 2, 3])
    >>> state = core.initial_state(2)
    >>> params = core.init(jax.random.key(0), x, state)
    >>> y, state = core.apply(params, x, state, resets=jnp.zeros([5, 2], bool))
    >>> y.shape, isinstance(core, Core), state_bytes(core)
    ((5, 2, 4), True, 20)
    """

    def initial_state(self, batch_size: int) -> CoreState:
        """The state before any step, which is also the one after a reset. Needs no parameters."""
        ...

    def __call__(
        self,
        x: Array,
        state: CoreState,
        *,
        resets: Array | None = None,
        lengths: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, CoreState]:
        """Runs over a batch of sequences.

        Args:
          x: `[T, B, D]`.
          state: before the first step.
          resets: bool `[T, B]`; `resets[t]` starts a new episode before step t.
          lengths: int `[B]`, steps of each sequence; None for T.
          deterministic: switches dropout off.

        Returns:
          Outputs `[T, B, size]`, and the state after the last step.
        """
        ...


def state_bytes(core: Core) -> int:
    """Size of the state of one environment, in bytes.

    >>> from btnn_jax.cores import GRUNetwork, GTrXLNetwork
    >>> state_bytes(GRUNetwork((128,))), state_bytes(GTrXLNetwork((128,), memory=64))
    (512, 32772)
    """
    state = jax.eval_shape(functools.partial(core.initial_state, 1))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


class Layers(nn.Module):
    """A core of several layers; its state is the tuple of their states.

    Attributes:
      layers: size of each layer.
      dropout_rate: dropped share of each layer's output, stream `dropout`.
      dtype: type of computation.
      param_dtype: type of the parameters.
    """

    layers: tuple[int, ...] = (256,)
    dropout_rate: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def make_layer(self, size: int, **fields: Any) -> nn.Module:
        """One layer: a module that maps `(x, state, resets, lengths)` to `(y, state)`."""
        raise NotImplementedError

    def layer_state(self, size: int, batch_size: int) -> PyTree:
        """The state of one layer before any step."""
        raise NotImplementedError

    @nn.nowrap
    def initial_state(self, batch_size: int) -> CoreState:
        """The state before any step, for each layer. Needs no parameters."""
        return tuple(self.layer_state(size, batch_size) for size in self.layers)

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: CoreState,
        *,
        resets: Array | None = None,
        lengths: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, CoreState]:
        """Runs all layers over a time-major batch of sequences; see `Core`.

        Raises:
          ValueError: a shape or type does not fit the others; the message names it.
        """
        check_sequence(x, resets, lengths)
        check_state(self.initial_state(x.shape[1]), state)
        after = []
        for k, (size, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            layer = self.make_layer(size, dtype=self.dtype, param_dtype=self.param_dtype, name=f"layer_{k}")
            x, layer_state = layer(x, layer_state, resets, lengths)
            x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
            after.append(layer_state)
        return x, tuple(after)


def check_state(expected: CoreState, state: CoreState) -> None:
    """Raises a `ValueError` where `state` has not the structure, shapes and dtypes of `expected`."""

    def shapes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)

    if shapes(expected) != shapes(state):
        raise ValueError(f"state must be as initial_state gives it, {shapes(expected)}, got {shapes(state)}")
