"""Networks made of layers: convolution stacks, the LSTM, and the heads of an UNREAL agent.

Modules take any number of leading axes (`N...`, for instance `[T, B]`); the LSTM alone wants `[T, B, D]`.
`dtype` is the type of computation (None: that of inputs and parameters), `param_dtype` that of parameters.
What a loss reads (logits, values, q) and the recurrent state are float32 whatever `dtype` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze
from flax.typing import Dtype
from jax import Array

from btnn_jax._errors import check_choice
from btnn_jax._types import PyTree
from btnn_jax.layers import Conv1D, Conv2D, DepthwiseConv2D, LayerNorm, NoisyLinear, categorical_sample
from btnn_jax.ops.convolution import deconv2d
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

MakeLayer = Callable[..., nn.Module]  # a module's class, or a partial of one
_MOST_CHANNELS = 2**16  # of depthwise convolutions, whose number grows with each layer


def _call_noisy(layer: nn.Module, x: Array, deterministic: bool) -> Array:
    """Calls a layer that may or may not have noise to switch off, or may have decided that by itself."""
    undecided = getattr(layer, "deterministic", False) is None
    return layer(x, deterministic=deterministic) if undecided else layer(x)


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


class ActorCritic(NamedTuple):
    """The output of an actor-critic head."""

    logits: PyTree  # float32 [N..., A], or a dict of them
    value: Array  # float32 [N...]


def _head_name(name: str, path: tuple[Any, ...]) -> str:
    """Parameter name of one head of a dict action space: `action`, or `action.arm.left`."""
    if not all(isinstance(entry, jax.tree_util.DictKey) for entry in path):
        where = jax.tree_util.keystr(path)
        raise ValueError(f"expected a number of actions, or a (nested) dict of them, got an entry {where}")
    return ".".join([name, *(str(entry.key) for entry in path)])


class DenseAACNetwork(nn.Module):
    """The actor-critic head: action logits and the value of the state, each one dense layer.

    Attributes:
      action_depths: number of actions, or a (nested) dict of them; logits and samples have its structure.
      linear: `NoisyLinear` (stream `noise`), `Linear`, or another module with a `size`.
      logits_norm: None, or "layer_norm" as in BTGym: zero mean and unit variance over the actions, then a
        learned shift. It bounds the largest probability of a fresh head, at .77 for 4 actions.
      dtype: type of computation.
      param_dtype: type of the parameters.

    >>> head, x = DenseAACNetwork(4), jnp.zeros([2, 3])
    >>> variables = head.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x)
    >>> logits, value = head.apply(variables, x, rngs={"noise": jax.random.key(2)})
    >>> logits.shape, value.shape, head.sample(jax.random.key(3), logits).shape
    ((2, 4), (2,), (2, 4))
    """

    action_depths: PyTree
    linear: MakeLayer = NoisyLinear
    logits_norm: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool = False) -> ActorCritic:
        """Maps features `[N..., D]` to logits and value; `deterministic` switches the layers' noise off."""
        check_choice("logits_norm", self.logits_norm, ("layer_norm", None))

        def dense(size: int, name: str) -> Array:
            layer = self.linear(size, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
            return _call_noisy(layer, x, deterministic).astype(jnp.float32)

        def logits(path: tuple[Any, ...], depth: int) -> Array:
            y = dense(depth, _head_name("action", path))
            if self.logits_norm is None:
                return y
            norm = LayerNorm(
                (-1,), use_scale=False, param_dtype=self.param_dtype, name=_head_name("norm", path)
            )
            return norm(y)

        heads = jax.tree_util.tree_map_with_path(logits, unfreeze(self.action_depths))
        return ActorCritic(heads, dense(1, "value").squeeze(-1))

    @nn.nowrap
    def sample(self, key: Array, logits: PyTree) -> PyTree:
        """Samples one-hot actions, float32 like `logits`; the key is consumed. Needs no parameters."""
        leaves, structure = jax.tree.flatten(logits)
        keys = jax.random.split(key, len(leaves))
        samples = [categorical_sample(k, x) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, samples)


class DenseRPNetwork(nn.Module):
    """The reward-prediction head: dense layer, ELU, dense layer, `[N..., D] -> [N..., num_classes]`.

    Jaderberg et al. (2016), "Reinforcement Learning with Unsupervised Auxiliary Tasks", section 3.2.

    Attributes:
      linear: `NoisyLinear` (stream `noise`), `Linear`, or another module with a `size`.
      hidden: size of the first layer.
      num_classes: number of classes of reward, usually zero, positive and negative.
      dtype: type of computation.
      param_dtype: type of the parameters.
    """

    linear: MakeLayer = NoisyLinear
    hidden: int = 128
    num_classes: int = 3
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool = False) -> Array:
        """Maps features to float32 logits; `deterministic` switches the layers' noise off."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.elu(_call_noisy(self.linear(self.hidden, name="hidden", **types), x, deterministic))
        x = _call_noisy(self.linear(self.num_classes, name="classifier", **types), x, deterministic)
        return x.astype(jnp.float32)


class DuellingPCNetwork(nn.Module):
    """The pixel-control head: a duelling Q of every cell and action, `[N..., D] -> [N..., H, W, A]`.

        z = elu(linear(x)),  V = deconv(z),  A = deconv(z),  Q = V + A - mean_a A

    Jaderberg et al. (2016), section 3.1; Wang et al. (2016), "Dueling Network Architectures", equation 9.
    Q is linear in z, so it is one deconvolution with the kernel `K_v + K_a - mean_a K_a`.

    Attributes:
      num_actions: number of actions, or a (nested) dict of them: all heads share V, and Q has this structure.
      inner_shape: height, width and channels of z; `pc_inner_shape` gives the one that fits an observation.
      filter_size: filter of the deconvolutions.
      stride: stride of the deconvolutions; `H = (h - 1) * stride + filter`.
      linear: `NoisyLinear` (stream `noise`), `Linear`, or another module with a `size`.
      dtype: type of computation.
      param_dtype: type of the parameters.
    """

    num_actions: PyTree
    inner_shape: tuple[int, int, int] = (9, 9, 32)
    filter_size: tuple[int, int] = (4, 4)
    stride: tuple[int, int] = (2, 2)
    linear: MakeLayer = NoisyLinear
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool = False) -> PyTree:
        """Maps features to float32 Q; `deterministic` switches the layer's noise off."""
        size = math.prod(self.inner_shape)
        linear = self.linear(size, dtype=self.dtype, param_dtype=self.param_dtype, name="dense")
        z = nn.elu(_call_noisy(linear, x, deterministic)).reshape(*x.shape[:-1], *self.inner_shape)

        def parameters(name: str, outputs: int) -> Array:
            """Kernel `[kh * kw * C, outputs]` with the bias as its last row."""
            shape = (*self.filter_size, self.inner_shape[-1], outputs)
            kernel = self.param(f"{name}_kernel", nn.initializers.glorot_uniform(), shape, self.param_dtype)
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (outputs,), self.param_dtype)
            return jnp.concatenate([kernel.reshape(-1, outputs), bias[None]])

        def head(path: tuple[Any, ...], num_actions: int) -> Array:
            advantage = parameters(_head_name("advantage", path), num_actions)
            return advantage - advantage.mean(-1, keepdims=True) + value

        value = parameters("value", 1)
        heads = jax.tree_util.tree_map_with_path(head, unfreeze(self.num_actions))
        leaves, structure = jax.tree.flatten(heads)
        folded = jnp.concatenate(leaves, axis=-1)
        kernel = folded[:-1].reshape(*self.filter_size, self.inner_shape[-1], folded.shape[-1])
        z, kernel, bias = nn.dtypes.promote_dtype(z, kernel, folded[-1], dtype=self.dtype)
        q = deconv2d(z, kernel, self.stride)
        q = q.astype(jnp.float32) + jnp.broadcast_to(bias.astype(jnp.float32), q.shape)
        ends = [sum(leaf.shape[-1] for leaf in leaves[:k]) for k in range(1, len(leaves))]
        return jax.tree.unflatten(structure, jnp.split(q, ends, axis=-1))


def pc_inner_shape(
    frame_shape: tuple[int, ...],
    estimator_stride: tuple[int, int] = (2, 2),
    *,
    filter_size: tuple[int, int] = (4, 4),
    stride: tuple[int, int] = (2, 2),
    channels: int = 32,
) -> tuple[int, int, int]:
    """The `inner_shape` with which `DuellingPCNetwork` gives the grid of `pixel_change_2d_estimator`.

    Args:
      frame_shape: `(H, W, C)` of the frames.
      estimator_stride: `stride` of the estimator.
      filter_size: `filter_size` of the network.
      stride: `stride` of the network.
      channels: channels of the inner shape.

    Returns:
      `(h, w, channels)`.

    Raises:
      ValueError: if no inner shape fits; it names the grid, the nearest output and what would fit.

    >>> pc_inner_shape((80, 80, 3), (4, 4))
    (9, 9, 32)
    """
    grid = pixel_change_shape(frame_shape, estimator_stride)
    sizes = list(zip(grid, filter_size, stride, strict=True))
    inner = [max(1, (g - f) // s + 1) for g, f, s in sizes]
    output = tuple((n - 1) * s + f for n, (_, f, s) in zip(inner, sizes, strict=True))
    if output != grid:
        fitting = tuple(
            min((abs(f - wanted), f) for f in range(1, g + 1) if (g - f) % s == 0)[1]
            for g, wanted, s in sizes
        )
        raise ValueError(
            f"no inner shape gives the pixel-change grid {grid} of frames {frame_shape} with estimator "
            f"stride {estimator_stride}: filter_size {filter_size} with stride {stride} comes nearest with "
            f"{output}; filter_size {fitting} would fit, or another estimator stride"
        )
    return inner[0], inner[1], channels


def _check_channels(layer: int, channels: int, filters: int) -> None:
    if channels * filters > _MOST_CHANNELS:
        raise ValueError(
            f"layer {layer} would have {channels} * {filters} = {channels * filters} channels: depthwise convolutions "
            "multiply them, take fewer num_filters"
        )
