"""Heads of an agent: action and value, reward prediction, pixel control."""

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
from btnn_jax.layers import LayerNorm, NoisyLinear, categorical_sample
from btnn_jax.ops.convolution import deconv2d
from btnn_jax.ops.pixel_change import pixel_change_shape

__all__ = [
    "ActorCritic",
    "DenseAACNetwork",
    "DenseRPNetwork",
    "DuellingPCNetwork",
    "MakeLayer",
    "pc_inner_shape",
]

MakeLayer = Callable[..., nn.Module]  # a module's class, or a partial of one


def _call_noisy(layer: nn.Module, x: Array, deterministic: bool) -> Array:
    """Calls a layer that may or may not have noise to switch off, or may have decided that by itself."""
    undecided = getattr(layer, "deterministic", False) is None
    return layer(x, deterministic=deterministic) if undecided else layer(x)


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
