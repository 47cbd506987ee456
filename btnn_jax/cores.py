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

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jax import Array, lax

from btnn_jax._types import PyTree
from btnn_jax.layers import Linear
from btnn_jax.networks import LayerNorm, LSTMNetwork, orthogonal_gates
from btnn_jax.ops.gru import gru
from btnn_jax.ops.linear_recurrence import linear_recurrence
from btnn_jax.ops.sequence import check_sequence, within
from btnn_jax.ops.window_attention import attend_once, window_attention

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

    >>> state_bytes(GRUNetwork((128,))), state_bytes(GTrXLNetwork((128,), memory=64))
    (512, 32772)
    """
    state = jax.eval_shape(functools.partial(core.initial_state, 1))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


class _Layers(nn.Module):
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
        _check_state(self.initial_state(x.shape[1]), state)
        after = []
        for k, (size, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            layer = self.make_layer(size, dtype=self.dtype, param_dtype=self.param_dtype, name=f"layer_{k}")
            x, layer_state = layer(x, layer_state, resets, lengths)
            x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
            after.append(layer_state)
        return x, tuple(after)


def _check_state(expected: CoreState, state: CoreState) -> None:
    def shapes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)

    if shapes(expected) != shapes(state):
        raise ValueError(f"state must be as initial_state gives it, {shapes(expected)}, got {shapes(state)}")


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


class GRUNetwork(_Layers):
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


class MinGRUNetwork(_Layers):
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


class _LRULayer(nn.Module):
    size: int
    r_min: float
    r_max: float
    max_phase: float
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Array, state: tuple[Array, Array], resets: Array | None, lengths: Array | None
    ) -> tuple[Array, tuple[Array, Array]]:
        dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": self.param_dtype}
        running = None if lengths is None else within(lengths, len(x))[..., None]
        x = (x if running is None else jnp.where(running, x, 0)).astype(dtype)
        if x.shape[-1] != self.size:
            x = Linear(self.size, name="embed", **types)(x)
        y, state = self._recurrence(LayerNorm((-1,), 1e-6, name="norm", **types)(x), state, resets, lengths)
        left, right = jnp.split(Linear(2 * self.size, name="gate", **types)(nn.gelu(y)), 2, axis=-1)
        y = x + left * nn.sigmoid(right)
        return (y if running is None else jnp.where(running, y, 0)), state

    def _recurrence(
        self, x: Array, state: tuple[Array, Array], resets: Array | None, lengths: Array | None
    ) -> tuple[Array, tuple[Array, Array]]:
        """The linear recurrent unit itself, real `[T, B, size]` to real."""
        size, normal = self.size, nn.initializers.normal
        nu_log = self.param("nu_log", self._start_nu, (size,), self.param_dtype)
        theta_log = self.param("theta_log", self._start_theta, (size,), self.param_dtype)
        gamma_log = self.param("gamma_log", lambda _: _gamma_log(nu_log))
        # Real and imaginary parts side by side, so that each is one real product.
        kernel_in = self.param("kernel_in", normal((2 * size) ** -0.5), (size, 2 * size), self.param_dtype)
        kernel_out = self.param("kernel_out", normal(size**-0.5), (2 * size, size), self.param_dtype)
        skip = self.param("skip", normal(1.0), (size,), self.param_dtype)

        nu, theta, gamma = (jnp.exp(p.astype(jnp.float32)) for p in (nu_log, theta_log, gamma_log))
        decay = jnp.exp(lax.complex(-nu, theta))
        kernel_in, kernel_out, skip = (p.astype(x.dtype) for p in (kernel_in, kernel_out, skip))
        u = jnp.matmul(x, kernel_in, preferred_element_type=jnp.float32) * jnp.tile(gamma, 2)[None, None]
        h, last = linear_recurrence(
            decay, lax.complex(*jnp.split(u, 2, axis=-1)), lax.complex(*state), resets=resets, lengths=lengths
        )
        parts = jnp.concatenate([h.real, h.imag], axis=-1).astype(x.dtype)
        return parts @ kernel_out + skip[None, None] * x, (last.real, last.imag)

    def _start_nu(self, key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
        square = jax.random.uniform(key, shape, jnp.float32, self.r_min**2, self.r_max**2)
        return jnp.log(-0.5 * jnp.log(square)).astype(dtype)

    def _start_theta(self, key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
        return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1e-6, self.max_phase)).astype(dtype)


def _gamma_log(nu_log: Array) -> Array:
    """Logarithm of `sqrt(1 - |decay|^2)`, which gives the state the variance of its inputs."""
    square = jnp.exp(-2 * jnp.exp(nu_log.astype(jnp.float32)))
    return (0.5 * jnp.log1p(-square)).astype(nu_log.dtype)


class LRUNetwork(_Layers):
    """Blocks of linear recurrent units: norm, recurrence and gated linear unit, with a residual connection.

        decay = exp(-exp(nu) + i exp(theta))
        h_t = decay * h_{t-1} + exp(gamma) * (B x_t),   y_t = Re(C h_t) + D * x_t

    Orvieto et al. (2023), "Resurrecting Recurrent Neural Networks for Long Sequences", arXiv:2303.06349, section 3 and
    appendix A, initialisation included: eigenvalues uniform on the ring between `r_min` and `r_max`. A linear layer
    embeds inputs of another size.

    The state is the real and the imaginary part of h, each float32 `[B, H]`, for each layer.

    Attributes:
      layers: size of each block, and of its complex state.
      dropout_rate: dropped share of each block's output, stream `dropout`.
      r_min: smallest absolute value of an eigenvalue at the start.
      r_max: largest one, below 1.
      max_phase: largest angle of an eigenvalue at the start, in radians.
      dtype: type of computation; the recurrence is complex64.
      param_dtype: type of the parameters.
    """

    r_min: float = 0.9
    r_max: float = 0.999
    max_phase: float = 2 * math.pi

    @nn.nowrap
    def make_layer(self, size: int, **fields: Any) -> nn.Module:
        """One block."""
        if not 0 < self.r_min < self.r_max < 1:
            raise ValueError(f"0 < r_min < r_max < 1 must hold, got {self.r_min} and {self.r_max}")
        return _LRULayer(size, self.r_min, self.r_max, self.max_phase, **fields)

    @nn.nowrap
    def layer_state(self, size: int, batch_size: int) -> tuple[Array, Array]:
        """Zeros `[B, H]`, real and imaginary."""
        zeros = jnp.zeros((batch_size, size), jnp.float32)
        return zeros, zeros


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
        B, N, K = len(rows), self.heads, self.size // self.heads

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


class GTrXLNetwork(_Layers):
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


class StackedCores(nn.Module):
    """Cores in sequence, each on the outputs of the one before; the state is the tuple of their states.

    Attributes:
      cores: from the input to the output.

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
