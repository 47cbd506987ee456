"""Gated transformer-XL (Parisotto et al. 2020)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jax import Array, lax

from btnn_jax.cores.core import Layers
from btnn_jax.layers import LayerNorm, Linear
from btnn_jax.ops.sequence import within
from btnn_jax.ops.window_attention import attend_once, window_attention

__all__ = ["GTrXLNetwork"]


class _GRUGate(nn.Module):
    """GTrXL's replacement of the residual `x + y`: a GRU of state x and input y that starts near x."""

    bias: float
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        size, init = x.shape[-1], nn.initializers
        types: dict[str, Any] = {
            "use_bias": False,
            "kernel_init": init.lecun_normal(),
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        bias = self.param("bias", init.constant(self.bias), (size,), self.param_dtype).astype(x.dtype)
        r_y, z_y, n_y = jnp.split(Linear(3 * size, name="y", **types)(y), 3, axis=-1)
        r_x, z_x = jnp.split(Linear(2 * size, name="x", **types)(x), 2, axis=-1)
        z = nn.sigmoid(z_y + z_x - bias[None, None])
        n = jnp.tanh(n_y + Linear(size, name="candidate", **types)(nn.sigmoid(r_y + r_x) * x))
        return (1 - z) * x + z * n


class _GTrXLLayer(nn.Module):
    size: int
    heads: int
    feedforward: int
    gate_bias: float
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Array, state: tuple[Array, Array], resets: Array | None, lengths: Array | None
    ) -> tuple[Array, tuple[Array, Array]]:
        dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": self.param_dtype}
        linear = functools.partial(Linear, kernel_init=nn.initializers.lecun_normal(), **types)
        gate = functools.partial(_GRUGate, self.gate_bias, **types)
        T = len(x)
        running = None if lengths is None else within(lengths, T)[..., None]
        x = (x if running is None else jnp.where(running, x, 0)).astype(dtype)
        x = jnp.swapaxes(x, 0, 1)
        if x.shape[-1] != self.size:
            x = linear(self.size, name="embed")(x)

        memory, age = lax.stop_gradient(state[0]), state[1]
        M = memory.shape[1]
        reach = _steps_before(T, age, resets, M)
        rows = jnp.concatenate([memory, _standardise(x).astype(memory.dtype)], axis=1)
        x = gate(name="attention_gate")(x, nn.relu(self._attend(rows.astype(dtype), T, reach)))
        y = LayerNorm((-1,), 1e-6, name="feedforward_norm", **types)(x)
        y = linear(self.size, name="feedforward_out")(
            nn.relu(linear(self.feedforward, name="feedforward")(y))
        )
        y = jnp.swapaxes(gate(name="feedforward_gate")(x, nn.relu(y)), 0, 1)

        if lengths is None or running is None:
            rows, age = rows[:, T:], jnp.minimum(reach[:, -1] + 1, M)
        else:
            y = jnp.where(running, y, 0)
            lengths = jnp.clip(lengths.astype(jnp.int32), 0, T)
            rows = jnp.take_along_axis(rows, (lengths[:, None] + jnp.arange(M)[None])[..., None], axis=1)
            last = jnp.take_along_axis(reach, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
            age = jnp.where(lengths > 0, jnp.minimum(last + 1, M), age)
        # Rows of an earlier episode are never read; without them equal memories are equal states.
        kept = jnp.arange(M)[None] >= M - age[:, None]
        return y, (lax.stop_gradient(jnp.where(kept[..., None], rows, 0)), age)

    def _attend(self, rows: Array, T: int, reach: Array) -> Array:
        """Attention of the last T of `rows` `[B, M + T, size]`, which are standardised inputs."""
        size, init, dtype = self.size, nn.initializers, rows.dtype
        B, N, K = rows.shape[0], self.heads, self.size // self.heads

        def weights(name: str, initializer: Callable, *shape: int) -> Array:
            return self.param(name, initializer, shape, self.param_dtype).astype(dtype)

        scale, shift = weights("norm_scale", init.ones, size), weights("norm_bias", init.zeros, size)
        rows = rows * scale[None, None] + shift[None, None]
        kernels = {
            name: weights(name, init.lecun_normal(), size, size).reshape(size, N, K)
            for name in ("query", "key", "value", "position")
        }
        content_bias, position_bias = (
            weights(name, init.normal(0.02), N, K) for name in ("content_bias", "position_bias")
        )
        M = rows.shape[1] - T
        position = jnp.einsum("sd,dnk->snk", jnp.asarray(_sinusoids(M + 1, size), dtype), kernels["position"])

        def heads(x: Array, name: str) -> Array:
            return (x @ kernels[name].reshape(size, size)).reshape(B, -1, N, K)

        query = heads(rows[:, M:], "query")
        if T == 1:
            y = attend_once(
                query[:, 0],
                rows,
                kernels["key"],
                kernels["value"],
                position,
                content_bias,
                position_bias,
                reach[:, 0],
            )
        else:
            key, value = heads(rows, "key"), heads(rows, "value")
            y = window_attention(query, key, value, position, content_bias, position_bias, reach)
        return y.reshape(B, T, size) @ weights("out", init.lecun_normal(), size, size)


def _steps_before(T: int, age: Array, resets: Array | None, most: int) -> Array:
    """How many steps of its episode come before each step, at most `most`; int32 `[B, T]`."""
    time = jnp.arange(T, dtype=jnp.int32)[None]
    start = -age[:, None]
    if resets is not None:
        start = lax.cummax(jnp.where(resets.T, time, start), axis=1)
    return jnp.minimum(time - start, most)


def _standardise(x: Array) -> Array:
    """Zero mean and unit variance over the last axis, float32: a layer norm before its scale and shift."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def _sinusoids(distances: int, size: int) -> np.ndarray:
    """Sines and cosines of distances `[distances, size]` at wavelengths from 2 pi to 10000 * 2 pi."""
    angles = np.arange(distances)[:, None] / 10_000 ** (np.arange(0, size, 2) / size)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :size]


class GTrXLNetwork(Layers):
    """Gated transformer-XL: attention to the last `memory` steps of the episode, with GRU-like gates.

        y = gate(x, relu(attention(norm([memory, x]))))
        z = gate(y, relu(feedforward(norm(y))))

    Parisotto et al. (2019), "Stabilizing Transformers for Reinforcement Learning", arXiv:1910.06764, section 3, with
    the relative positions of Dai et al. (2019), "Transformer-XL", arXiv:1901.02860. As in the paper the gates start
    near the identity (`gate_bias`); it says nothing of the matrices, which start with variance `1 / D`. However a
    sequence is cut, every step attends to itself and to the `memory` steps before it, never across a reset. A linear
    layer embeds inputs of another size. No gradient flows into the memory that a sequence starts with.

    The state of each layer is its inputs of the last `memory` steps, standardised, `[B, memory, size]`, and the number
    of those steps that belong to the current episode, int32 `[B]`. It is large: 32 KiB for each environment and each
    stored rollout with one layer of 128 and 64 steps, half of that in bfloat16.

    Attributes:
      layers: size of each layer.
      dropout_rate: dropped share of each layer's output, stream `dropout`.
      memory: how many steps to look back.
      heads: of the attention; a divisor of all sizes.
      feedforward: size of the layer within the feedforward part, in multiples of the layer's.
      gate_bias: of the gates; the larger, the nearer to the identity a layer starts.
      dtype: type of computation, and of the memory (None: float32).
      param_dtype: type of the parameters.
    """

    memory: int = 64
    heads: int = 4
    feedforward: int = 4
    gate_bias: float = 2.0

    @nn.nowrap
    def make_layer(self, size: int, **fields: Any) -> nn.Module:
        """One gated transformer layer."""
        if size % self.heads:
            raise ValueError(f"heads must divide the size of every layer, got {self.heads} for {size}")
        return _GTrXLLayer(size, self.heads, self.feedforward * size, self.gate_bias, **fields)

    @nn.nowrap
    def layer_state(self, size: int, batch_size: int) -> tuple[Array, Array]:
        """An empty memory."""
        if self.memory < 1:
            raise ValueError(f"memory must be at least 1 step, got {self.memory}")
        rows = jnp.zeros((batch_size, self.memory, size), self.dtype or jnp.float32)
        return rows, jnp.zeros(batch_size, jnp.int32)
