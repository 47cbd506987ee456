"""GRU (Cho et al. 2014) and minGRU (Feng et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import Array

from btnn_jax.cores.core import Layers
from btnn_jax.networks import orthogonal_gates
from btnn_jax.ops.gru import gru
from btnn_jax.ops.linear_recurrence import linear_recurrence
from btnn_jax.ops.sequence import within

__all__ = ["GRUNetwork", "MinGRUNetwork"]


class _GRULayer(nn.Module):
    size: int
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Array, state: Array, resets: Array | None, lengths: Array | None
    ) -> tuple[Array, Array]:
        columns, init = 3 * self.size, nn.initializers
        kernel_x = self.param("kernel_x", init.glorot_uniform(), (x.shape[-1], columns), self.param_dtype)
        kernel_h = self.param("kernel_h", orthogonal_gates, (self.size, columns), self.param_dtype)
        bias = self.param("bias", init.zeros, (columns,), self.param_dtype)
        bias_h = self.param("bias_h", init.zeros, (self.size,), self.param_dtype)
        x, kernel_x, kernel_h, bias, bias_h = nn.dtypes.promote_dtype(
            x, kernel_x, kernel_h, bias, bias_h, dtype=self.dtype
        )
        return gru(x, kernel_x, kernel_h, bias, bias_h, state, resets=resets, lengths=lengths)


class GRUNetwork(Layers):
    """Stacked gated recurrent units over time, see `btnn_jax.ops.gru.gru`.

    Cho et al. (2014), arXiv:1406.1078. The recurrent matrix of each gate starts orthogonal, as in the paper; input
    matrices start as in `LSTMNetwork`, since the paper's deviation of 0.01 is meant for one-hot words.

    The state is h, float32 `[B, H]`, for each layer. Attributes are those of `LSTMNetwork`.

    >>> network, x = GRUNetwork((8,)), jnp.zeros([5, 2, 3])
    >>> state = network.initial_state(2)
    >>> y, state = network.apply(network.init(jax.random.key(0), x, state), x, state)
    >>> y.shape
    (5, 2, 8)
    """

    @nn.nowrap
    def make_layer(self, size: int, **fields: Any) -> nn.Module:
        """One GRU."""
        return _GRULayer(size, **fields)

    @nn.nowrap
    def layer_state(self, size: int, batch_size: int) -> Array:
        """Zeros `[B, H]`."""
        return jnp.zeros((batch_size, size), jnp.float32)


def _uniform_by(fan_in: int) -> Callable[..., Array]:
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class _MinGRULayer(nn.Module):
    size: int
    max_timescale: float | None
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Array, state: Array, resets: Array | None, lengths: Array | None
    ) -> tuple[Array, Array]:
        if lengths is not None:  # 0 * nan is nan in the weights' gradients
            x = jnp.where(within(lengths, len(x))[..., None], x, 0)
        init, columns = _uniform_by(x.shape[-1]), 2 * self.size
        kernel = self.param("kernel", init, (x.shape[-1], columns), self.param_dtype)
        bias = self.param("bias", self._start_bias, init, columns)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias.astype(jnp.float32)[None, None]
        z, candidate = jnp.split(y, 2, axis=-1)
        y, state = linear_recurrence(
            jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * candidate, state, resets=resets, lengths=lengths
        )
        return y.astype(x.dtype), state

    def _start_bias(self, key: Array, init: Callable[..., Array], columns: int) -> Array:
        if self.max_timescale is None:
            return init(key, (columns,), self.param_dtype)
        key_z, key_h = jax.random.split(key)
        time = jax.random.uniform(key_z, (self.size,), jnp.float32, 1, self.max_timescale - 1)
        return jnp.concatenate(
            [-jnp.log(time).astype(self.param_dtype), init(key_h, (self.size,), self.param_dtype)]
        )


class MinGRUNetwork(Layers):
    """Stacked minimal GRUs: their gates see only the input, so all products run over all steps at once.

        z = sigmoid(x W_z + b_z)
        h_t = (1 - z) * h_{t-1} + z * (x W_h + b_h)

    Feng et al. (2024), "Were RNNs All We Needed?", arXiv:2410.01201, section 3.1. Weights and biases start uniform
    within `1 / sqrt(D)`, as the linear layers there do, all but the bias of z: with it an agent would start to forget
    half of its memory in every step. It starts at `-log(T)`, T uniform between 1 and `max_timescale - 1`, as in Tallec
    and Ollivier (2018), "Can Recurrent Neural Networks Warp Time?", arXiv:1804.11188, section 2.1, so that the units
    remember for up to `max_timescale` steps.

    The state is h, float32 `[B, H]`, for each layer.

    Attributes:
      layers: hidden size of each layer.
      dropout_rate: dropped share of each layer's output, stream `dropout`.
      max_timescale: the longest memory at the start, in steps, above 2; None starts the bias of z as in the paper.
      dtype: type of computation.
      param_dtype: type of the parameters.
    """

    max_timescale: float | None = 64.0

    @nn.nowrap
    def make_layer(self, size: int, **fields: Any) -> nn.Module:
        """One minimal GRU."""
        if self.max_timescale is not None and not self.max_timescale > 2:
            raise ValueError(f"max_timescale must be None or above 2 steps, got {self.max_timescale}")
        return _MinGRULayer(size, self.max_timescale, **fields)

    @nn.nowrap
    def layer_state(self, size: int, batch_size: int) -> Array:
        """Zeros `[B, H]`."""
        return jnp.zeros((batch_size, size), jnp.float32)
