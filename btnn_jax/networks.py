"""Networks made of layers: convolution stacks, the LSTM, and the heads of an UNREAL agent.

Modules take any number of leading axes (`N...`, for instance `[T, B]`); the LSTM alone wants `[T, B, D]`.
`dtype` is the type of computation (None: that of inputs and parameters), `param_dtype` that of parameters.
What a loss reads (logits, values, q) and the recurrent state are float32 whatever `dtype` is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import Array

from btnn_jax._errors import check_choice
from btnn_jax.heads import (
    ActorCritic,
    DenseAACNetwork,
    DenseRPNetwork,
    DuellingPCNetwork,
    MakeLayer,
    pc_inner_shape,
)
from btnn_jax.layers import Conv1D, Conv2D, DepthwiseConv2D, LayerNorm
from btnn_jax.ops.lstm import LSTMState, lstm
from btnn_jax.ops.pixel_change import pixel_change_2d_estimator, pixel_change_shape

__all__ = [
    "ActorCritic",
    "Conv1DNetwork",
    "Conv2DNetwork",
    "DenseAACNetwork",
    "DenseRPNetwork",
    "DuellingPCNetwork",
    "LSTMNetwork",
    "LayerNorm",
    "MakeLayer",
    "orthogonal_gates",
    "pc_inner_shape",
    "pixel_change_2d_estimator",
    "pixel_change_shape",
]

_MOST_CHANNELS = 2**16  # of depthwise convolutions, whose number grows with each layer


class Conv2DNetwork(nn.Module):
    """A stack of convolution, layer norm, ELU, `[N..., H, W, C] -> [N..., h, w, num_filters[-1]]`.

    Depthwise convolutions multiply channels instead, to `C * prod(num_filters)`: they want 1 to 4 filters a layer, and
    more than 65536 channels are an error.

    The norm takes mean and variance over H, W and C together (Ba et al. 2016, "Layer Normalization").

    Attributes:
      num_filters: filters of each layer.
      filter_size: height and width of the filters.
      stride: stride of every layer.
      pad: "SAME" or "VALID".
      layer: `Conv2D`, `DepthwiseConv2D` or another module with their fields.
      dropout_rate: dropped share of each layer's output, stream `dropout`.
      norm: "layer", or None for no norm.
      norm_epsilon: added to the variance where there is any, see `LayerNorm`; the default is that of BTGym.
      dtype: type of computation.
      param_dtype: type of the parameters.

    >>> network, x = Conv2DNetwork(), jnp.zeros([2, 84, 84, 4])
    >>> network.apply(network.init(jax.random.key(0), x), x).shape
    (2, 6, 6, 64)
    """

    num_filters: tuple[int, ...] = (32, 32, 64, 64)
    filter_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (2, 2)
    pad: str = "SAME"
    layer: MakeLayer = Conv2D
    dropout_rate: float = 0.0
    norm: str | None = "layer"
    norm_epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool = True) -> Array:
        """Maps images to feature maps; `deterministic` switches dropout off."""
        check_choice("norm", self.norm, ("layer", None))
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for k, filters in enumerate(self.num_filters, 1):
            convolution = self.layer(
                filters,
                filter_size=self.filter_size,
                stride=self.stride,
                pad=self.pad,
                name=f"conv_{k}",
                **types,
            )
            if isinstance(convolution, DepthwiseConv2D):
                _check_channels(k, x.shape[-1], filters)
            x = convolution(x)
            if self.norm is not None:
                x = LayerNorm(epsilon=self.norm_epsilon, name=f"norm_{k}", **types)(x)
            x = nn.Dropout(self.dropout_rate)(nn.elu(x), deterministic=deterministic)
        return x


class Conv1DNetwork(nn.Module):
    """A stack of convolution and ELU over signals, `[N..., L, C] -> [N..., l, num_filters]`.

    Attributes:
      num_layers: number of layers.
      num_filters: filters of each layer.
      filter_size: length of the filters.
      stride: stride of every layer.
      pad: "SAME" or "VALID".
      norm: None, or "layer" for a layer norm over L and C together before each ELU.
      norm_epsilon: added to the variance.
      skip: adds each layer's input to its output where their shapes are equal (He et al. 2016).
      dtype: type of computation.
      param_dtype: type of the parameters.
    """

    num_layers: int = 4
    num_filters: int = 32
    filter_size: int = 3
    stride: int = 2
    pad: str = "SAME"
    norm: str | None = None
    norm_epsilon: float = 1e-6
    skip: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps signals to feature maps."""
        check_choice("norm", self.norm, ("layer", None))
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for k in range(1, self.num_layers + 1):
            y = Conv1D(
                self.num_filters,
                filter_size=self.filter_size,
                stride=self.stride,
                pad=self.pad,
                name=f"conv_{k}",
                **types,
            )(x)
            if self.norm is not None:
                y = LayerNorm((-2, -1), self.norm_epsilon, name=f"norm_{k}", **types)(y)
            y = nn.elu(y)
            x = x + y if self.skip and x.shape == y.shape else y
        return x


def orthogonal_gates(key: Array, shape: tuple[int, int], dtype: Dtype) -> Array:
    """One orthogonal matrix per gate, side by side `[H, gates * H]`, made in float32: QR knows no bfloat16.

    `vmap` over it goes from one matrix to the next: two batched QR factorizations at once can block XLA's threads on a
    CPU of two cores for ever (jaxlib 0.10).
    """

    @jax.custom_batching.sequential_vmap
    def gate(key: Array) -> Array:
        return nn.initializers.orthogonal()(key, (shape[0], shape[0]), jnp.float32)

    return jnp.concatenate([gate(k) for k in jax.random.split(key, shape[1] // shape[0])], axis=1).astype(
        dtype
    )


class _LSTMLayer(nn.Module):
    size: int
    forget_bias: float
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Array, state: LSTMState, resets: Array | None, lengths: Array | None
    ) -> tuple[Array, LSTMState]:
        columns, init = 4 * self.size, nn.initializers
        kernel_x = self.param("kernel_x", init.glorot_uniform(), (x.shape[-1], columns), self.param_dtype)
        kernel_h = self.param("kernel_h", orthogonal_gates, (self.size, columns), self.param_dtype)
        bias = self.param("bias", init.zeros, (columns,), self.param_dtype)
        x, kernel_x, kernel_h, bias = nn.dtypes.promote_dtype(x, kernel_x, kernel_h, bias, dtype=self.dtype)
        return lstm(
            x, kernel_x, kernel_h, bias, state, resets=resets, lengths=lengths, forget_bias=self.forget_bias
        )


class LSTMNetwork(nn.Module):
    """Stacked LSTM layers over time, see `btnn_jax.ops.lstm.lstm`.

    Attributes:
      layers: hidden size of each layer.
      dropout_rate: dropped share of each layer's output, stream `dropout`.
      forget_bias: added to the forget gates.
      dtype: type of computation.
      param_dtype: type of the parameters.

    >>> network, x = LSTMNetwork((8,)), jnp.zeros([5, 2, 3])
    >>> state = network.initial_state(2)
    >>> y, state = network.apply(network.init(jax.random.key(0), x, state), x, state)
    >>> y.shape
    (5, 2, 8)
    """

    layers: tuple[int, ...] = (256,)
    dropout_rate: float = 0.0
    forget_bias: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.nowrap
    def initial_state(self, batch_size: int) -> tuple[LSTMState, ...]:
        """The state before any step: for each layer `(c, h)`, float32 zeros `[B, H]`. Needs no parameters."""
        shapes = [(batch_size, size) for size in self.layers]
        return tuple((jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)) for shape in shapes)

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: tuple[LSTMState, ...],
        *,
        resets: Array | None = None,
        lengths: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[LSTMState, ...]]:
        """Runs all layers over a time-major batch of sequences.

        Args:
          x: `[T, B, D]`.
          state: for each layer `(c, h)`, each `[B, H]`, before the first step.
          resets: bool `[T, B]`; `resets[t]` zeroes the state before step t.
          lengths: int `[B]`; outputs past a length are 0 and the state stays.
          deterministic: switches dropout off.

        Returns:
          Outputs `[T, B, layers[-1]]` in the type of computation, and the state after the last step, float32.
        """
        if not isinstance(state, tuple | list):
            raise ValueError(
                "state must be a tuple of (c, h) for each layer, as initial_state(batch_size) gives it, got "
                f"{state!r:.60}"
            )
        if len(state) != len(self.layers):
            raise ValueError(
                f"expected the state of {len(self.layers)} layers {self.layers}, got {len(state)}"
            )
        after = []
        for k, (size, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            layer = _LSTMLayer(size, self.forget_bias, self.dtype, self.param_dtype, name=f"layer_{k}")
            x, layer_state = layer(x, layer_state, resets, lengths)
            x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
            after.append(layer_state)
        return x, tuple(after)


def _check_channels(layer: int, channels: int, filters: int) -> None:
    if channels * filters > _MOST_CHANNELS:
        raise ValueError(
            f"layer {layer} would have {channels} * {filters} = {channels * filters} channels: depthwise convolutions "
            "multiply them, take fewer num_filters"
        )
