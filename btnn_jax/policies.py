"""Whole agents' networks: encoder, recurrent core, and UNREAL's heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from btnn_jax.ae import AutoencoderOutput, BetaVAEConv2D
from btnn_jax.layers import Conv2D, Linear, NoisyLinear
from btnn_jax.networks import (
    Conv2DNetwork,
    DenseAACNetwork,
    DenseRPNetwork,
    DuellingPCNetwork,
    LSTMNetwork,
    pc_inner_shape,
)

PyTree = Any
State = tuple[tuple[jax.Array, jax.Array], ...]


class AgentInput(NamedTuple):
    """What the agent is given at every step; all leaves lead with `[T, B]`."""

    observation: PyTree  # arrays [T, B, ...], or a dict of them
    last_action: PyTree  # int32 [T, B], or a dict of them; ignored where `reset`
    last_reward: jax.Array  # float32 [T, B]; ignored where `reset`
    reset: jax.Array  # bool [T, B], this step starts a new episode


class PolicyOutput(NamedTuple):
    """What the agent answers; float32 whatever the network computes in."""

    logits: PyTree  # [T, B, A], or a dict of them
    value: jax.Array  # [T, B]
    features: jax.Array  # [T, B, D], what the heads saw; the pixel-control head takes it


def action_distribution(logits: PyTree) -> distrax.Distribution:
    """The distribution over actions that `logits` stand for.

    Args:
      logits: `[..., A]`, or a (nested) dict of such for a dict action space, whose heads are independent.

    Returns:
      A distrax distribution with `sample(seed=key)`, `mode()`, `log_prob(actions)` and `entropy()`.
    """
    heads = jax.tree.map(lambda x: distrax.Categorical(logits=x), unfreeze(logits))
    return heads if isinstance(heads, distrax.Distribution) else distrax.Joint(heads)


class ObservationEncoder(nn.Module):
    """Turns an observation, or a dict of several streams, into one feature vector.

    Each stream is treated by its rank, leading axes apart: `[H, W, C]` images and `[L, C]` signals go through a
    convolution stack and a dense layer, vectors and scalars through dense layers; every layer is followed by ELU. The
    streams' features are concatenated in the order of their names. uint8 is read as pixels and divided by 255.

    Attributes:
      shape_ranks: rank of each stream without leading axes, an int or a dict of ints like the observation.
      num_filters: filters of the convolution stack; None takes (32, 32, 64, 64) with stride 2 and SAME padding for
        images and signals longer than 20, and (16, 32) with stride 1 and VALID padding for smaller ones.
      filter_size: side of the square filters; along an axis of size 1 the filter is 1.
      stride: stride of every convolution; None as for `num_filters`.
      hidden: sizes of the dense layers.
      conv_layer: the convolution, `btnn_jax.layers.Conv2D` or a module with its fields.
      autoencoder: one of `btnn_jax.ae` whose latent variables take the place of the convolution stack; of a
        variational one the posterior's mean. `reconstruct` gives its reconstruction, to learn from.
      ae_stream: name of the stream that it encodes, for dict observations of several images or signals.
      dtype: type of computation.
      param_dtype: type of the parameters.
    """

    shape_ranks: Any
    num_filters: tuple[int, ...] | None = None
    filter_size: int = 3
    stride: int | None = None
    hidden: tuple[int, ...] = (256,)
    conv_layer: type[nn.Module] = Conv2D
    autoencoder: Any = None
    ae_stream: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, observation: PyTree) -> jax.Array:
        """Encodes `observation`, leaves `[..., *stream shape]`, into `[..., D]`."""
        if not isinstance(self.shape_ranks, Mapping):
            return self._stream("stream", observation, self.shape_ranks)
        if set(self.shape_ranks) != set(observation):
            raise ValueError(
                f"expected observation streams {sorted(self.shape_ranks)}, got {sorted(observation)}"
            )
        names = sorted(self.shape_ranks)
        return jnp.concatenate([self._stream(n, observation[n], self.shape_ranks[n]) for n in names], axis=-1)

    def _stream(self, name: str, x: jax.Array, rank: int) -> jax.Array:
        lead, shape = x.shape[: x.ndim - rank], x.shape[x.ndim - rank :]
        dtype = self.dtype or jnp.float32
        x = x.astype(dtype) / jnp.asarray(255, dtype) if x.dtype == jnp.uint8 else x.astype(dtype)
        if rank >= 2:
            image = x.reshape(*lead, *as_image(shape))
            x = self._latent(image) if self._autoencodes(name) else self._convolutions(name, image)
        x = x.reshape(*lead, math.prod(x.shape[len(lead) :]))
        for i, size in enumerate(self.hidden):
            x = nn.elu(
                Linear(size, dtype=self.dtype, param_dtype=self.param_dtype, name=f"{name}_dense_{i}")(x)
            )
        return x

    def reconstruct(self, observation: PyTree) -> tuple[jax.Array, AutoencoderOutput]:
        """The images `[..., H, W, C]` of the autoencoder's stream, and what it makes of them.

        A variational autoencoder draws from the stream `sample`.

        Raises:
          ValueError: there is no autoencoder.
        """
        if self.autoencoder is None:
            raise ValueError("this encoder has no autoencoder: give it one")
        images, rank = one_stream(observation, self.ae_stream), one_stream(self.shape_ranks, self.ae_stream)
        shape = images.shape[images.ndim - rank :]
        images = images.reshape(*images.shape[: images.ndim - rank], *as_image(shape))
        return images, self.autoencoder(images)

    def _autoencodes(self, name: str) -> bool:
        return self.autoencoder is not None and self.ae_stream in (None, name)  # None: there is one

    def _latent(self, x: jax.Array) -> jax.Array:
        if isinstance(self.autoencoder, BetaVAEConv2D):
            return self.autoencoder.encode(x)[0]
        return self.autoencoder(x).z

    def _convolutions(self, name: str, x: jax.Array) -> jax.Array:
        height, width, _ = x.shape[-3:]
        small = max(height, width) <= 20
        filters = self.num_filters or ((16, 32) if small else (32, 32, 64, 64))
        stride = self.stride or (1 if small else 2)
        return Conv2DNetwork(
            filters,
            tuple(1 if side == 1 else self.filter_size for side in (height, width)),
            tuple(1 if side == 1 else stride for side in (height, width)),
            pad="VALID" if small else "SAME",
            layer=self.conv_layer,
            norm_epsilon=1e-5,  # a frame of one colour has no variance
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"{name}_conv",
        )(x)


class UnrealPolicy(nn.Module):
    """An actor-critic with a recurrent core and UNREAL's auxiliary heads (Jaderberg et al. 2016, section 3).

    The parts are modules of their own and can be exchanged; `make_policy` puts the usual ones together from the
    shapes of an environment.

    Attributes:
      action_depths: number of actions, or a (nested) dict of them.
      encoder: observation -> features `[..., D]`.
      core: None, or a module with `__call__(x [T, B, D], state, *, resets, deterministic) -> (y, state)` and
        `initial_state(batch_size)`; it gets the features, the last action (one-hot) and the last reward.
      linear: the dense layer of the actor-critic head, `NoisyLinear` (stream `noise`) or `Linear`.
      logits_norm: see `DenseAACNetwork`.
      pc_head: features -> `[..., h, w, A]`, usually a `DuellingPCNetwork`; None for no pixel control.
      rp_head: concatenated features of several frames -> `[..., 3]`, usually a `DenseRPNetwork`; None for none.
      dtype: type of computation of the actor-critic head; the other parts carry their own.
      param_dtype: type of the parameters.
    """

    action_depths: Any
    encoder: nn.Module
    core: nn.Module | None = None
    linear: type[nn.Module] = NoisyLinear
    logits_norm: str | None = None
    pc_head: nn.Module | None = None
    rp_head: nn.Module | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the head that is not given as a module."""
        self.actor_critic = DenseAACNetwork(
            self.action_depths,
            linear=self.linear,
            logits_norm=self.logits_norm,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def initial_state(self, batch_size: int) -> State:
        """The recurrent state before any step: zeros `[B, H]` a layer, or `()` without a core."""
        return () if self.core is None else self.core.initial_state(batch_size)

    def __call__(
        self, inputs: AgentInput, state: State, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, State]:
        """Runs the agent over `T` steps.

        Args:
          inputs: leaves `[T, B, ...]`.
          state: recurrent state before the first step, see `initial_state`.
          deterministic: use the noisy layers' means; otherwise the stream `noise` is needed.

        Returns:
          The outputs `[T, B, ...]` and the recurrent state after the last step.
        """
        features = self.encoder(inputs.observation)
        if self.core is not None:
            features = jnp.concatenate([features, self._feedback(inputs, features.dtype)], axis=-1)
            features, state = self.core(features, state, resets=inputs.reset, deterministic=deterministic)
        head = self.actor_critic(features, deterministic=deterministic)
        return PolicyOutput(head.logits, head.value, features), state

    def _feedback(self, inputs: AgentInput, dtype: Any) -> jax.Array:
        """Last action and reward `[T, B, sum A + 1]`, zero at an episode's first step."""
        actions = jax.tree.map(
            lambda depth, action: jax.nn.one_hot(action, depth, dtype=dtype),
            unfreeze(self.action_depths),
            inputs.last_action,
        )
        rewards = inputs.last_reward[..., None].astype(dtype)
        feedback = jnp.concatenate([*jax.tree.leaves(actions), rewards], axis=-1)
        return jnp.where(inputs.reset[..., None], jnp.zeros((), dtype), feedback)

    def pixel_control(self, features: jax.Array, *, deterministic: bool = False) -> PyTree:
        """Q of every cell and action, `[..., h, w, A]`, from the features of `__call__`."""
        if self.pc_head is None:
            raise ValueError("this policy has no pixel-control head: give it a pc_head")
        return self.pc_head(features, deterministic=deterministic)

    def reward_prediction(self, frames: PyTree, *, deterministic: bool = False) -> jax.Array:
        """Logits `[N, 3]` of the class of the reward that follows `frames`, observations `[N, k, ...]`."""
        if self.rp_head is None:
            raise ValueError("this policy has no reward-prediction head: give it an rp_head")
        features = self.encoder(frames)
        return self.rp_head(
            features.reshape(*features.shape[:-2], features.shape[-2] * features.shape[-1]),
            deterministic=deterministic,
        )

    def reconstruct(self, observation: PyTree) -> tuple[jax.Array, AutoencoderOutput]:
        """What the encoder's autoencoder reconstructs, see `ObservationEncoder.reconstruct`."""
        return self.encoder.reconstruct(observation)

    def init_heads(self, inputs: AgentInput, state: State, frames: int) -> None:
        """Touches every parameter once; `init_params` runs it."""
        output, _ = self(inputs, state)
        if getattr(self.encoder, "autoencoder", None) is not None:
            self.reconstruct(inputs.observation)
        if self.pc_head is not None:
            self.pixel_control(output.features)
        if self.rp_head is not None:
            stack = jax.tree.map(lambda x: jnp.repeat(x[0][:, None], frames, axis=1), inputs.observation)
            self.reward_prediction(stack)


def init_params(policy: UnrealPolicy, key: jax.Array, observation: PyTree, *, rp_frames: int = 3) -> PyTree:
    """Parameters of all heads of `policy`.

    Args:
      policy: the agent's network.
      key: consumed.
      observation: `jax.ShapeDtypeStruct` (or an array) of one observation, or a dict of them, without leading axes.
      rp_frames: number of frames that the reward-prediction head sees.
    """
    params_key, noise_key, sample_key = jax.random.split(key, 3)
    inputs = AgentInput(
        observation=jax.tree.map(lambda x: jnp.zeros((1, 1, *x.shape), x.dtype), observation),
        last_action=jax.tree.map(lambda _: jnp.zeros((1, 1), jnp.int32), unfreeze(policy.action_depths)),
        last_reward=jnp.zeros((1, 1), jnp.float32),
        reset=jnp.ones((1, 1), bool),
    )
    # Lazy: the forward pass is traced for its shapes and not compiled.
    variables = policy.lazy_init(
        {"params": params_key, "noise": noise_key, "sample": sample_key},
        inputs,
        policy.initial_state(1),
        rp_frames,
        method="init_heads",
    )
    return variables["params"]


def with_pretrained(params: PyTree, pretrained: PyTree) -> PyTree:
    """`params` with a part of them exchanged, for instance an encoder's.

    Args:
      params: of a policy, as `init_params` gives them.
      pretrained: nested dicts of arrays under the same names, `{"encoder": {"autoencoder": ...}}` for an
        autoencoder that was trained before.

    Raises:
      ValueError: a parameter is unknown or has another shape; the message names it.

    >>> with_pretrained({"a": jnp.zeros(2), "b": jnp.zeros(1)}, {"a": jnp.ones(2)})
    {'a': Array([1., 1.], dtype=float32), 'b': Array([0.], dtype=float32)}
    """
    known = dict(jax.tree_util.tree_leaves_with_path(params))
    given = dict(jax.tree_util.tree_leaves_with_path(pretrained))
    for path, x in given.items():
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if path not in known:
            raise ValueError(f"the policy has no parameter {name}")
        if known[path].shape != x.shape:
            raise ValueError(
                f"the policy's {name} has shape {known[path].shape}, the pretrained one {x.shape}"
            )
    return jax.tree_util.tree_map_with_path(lambda path, x: jnp.asarray(given.get(path, x), x.dtype), params)


def frozen_mask(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """Which of `params` are to stay as they are, a bool for each: a mask as optax's `masked` takes it.

    Args:
      params: of a policy.
      frozen: how the paths of frozen parameters start, such as `"encoder"` or `"encoder/autoencoder"`.

    Raises:
      ValueError: a path leads to no parameter.

    >>> frozen_mask({"encoder": {"kernel": jnp.zeros(1)}, "core": {"bias": jnp.zeros(1)}}, ("encoder",))
    {'core': {'bias': False}, 'encoder': {'kernel': True}}
    """
    unused = set(frozen)

    def leaf(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = [start for start in frozen if f"{name}/".startswith(f"{start}/")]
        unused.difference_update(found)
        return bool(found)

    mask = jax.tree_util.tree_map_with_path(leaf, params)
    if unused:
        raise ValueError(f"no parameters are in {sorted(unused)}; there are {sorted(params)} at the top")
    return mask


def as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`[H, W, C]` of a stream's shape: a signal `[L, C]` is an image of width 1."""
    if len(shape) == 3:
        return shape
    if len(shape) == 2:
        return (shape[0], 1, shape[1])
    raise ValueError(f"expected an image [H, W, C] or a signal [L, C], got a stream of shape {shape}")


def one_stream(observation: PyTree, name: str | None = None) -> jax.Array:
    """The stream of `observation` that a task looks at.

    Args:
      observation: an array, or a dict of arrays (or of `jax.ShapeDtypeStruct`).
      name: which stream of a dict; None where there is only one.

    Raises:
      ValueError: there is no such stream, or no name to tell several apart.
    """
    if not isinstance(observation, Mapping):
        if name is not None:
            raise ValueError(f"the observation has one stream, without a name, got {name!r}")
        return observation
    if name is None and len(observation) == 1:
        name = next(iter(observation))
    if name not in observation:
        raise ValueError(
            f"expected the name of one observation stream of {sorted(observation)}, got {name!r}"
        )
    return observation[name]


def make_policy(
    action_depths: Any,
    observation: PyTree,
    *,
    num_filters: tuple[int, ...] | None = None,
    filter_size: int = 3,
    stride: int | None = None,
    hidden: tuple[int, ...] = (256,),
    lstm: tuple[int, ...] = (256,),
    noisy: bool = True,
    logits_norm: str | None = None,
    pixel_control: bool = True,
    pc_cell: tuple[int, int] = (2, 2),
    pc_channels: int = 32,
    pc_stream: str | None = None,
    reward_prediction: bool = True,
    conv_layer: type[nn.Module] = Conv2D,
    autoencoder: nn.Module | None = None,
    ae_stream: str | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> UnrealPolicy:
    """Puts an `UnrealPolicy` together whose shapes fit the observation.

    Args:
      action_depths: number of actions, or a (nested) dict of them.
      observation: `jax.ShapeDtypeStruct` of one observation, or a dict of them, without leading axes.
      num_filters: see `ObservationEncoder`.
      filter_size: see `ObservationEncoder`.
      stride: see `ObservationEncoder`.
      hidden: see `ObservationEncoder`.
      lstm: sizes of the recurrent layers; `()` for an agent without memory.
      noisy: heads of `NoisyLinear` rather than `Linear`.
      logits_norm: see `DenseAACNetwork`.
      pixel_control: whether there is a pixel-control head.
      pc_cell: pixels a cell of the pixel-control grid covers, height and width.
      pc_channels: channels of the pixel-control head before its deconvolution.
      pc_stream: name of the stream that pixel control watches, for dict observations of several.
      reward_prediction: whether there is a reward-prediction head.
      conv_layer: see `ObservationEncoder`.
      autoencoder: see `ObservationEncoder`.
      ae_stream: see `ObservationEncoder`.
      dtype: type of computation.
      param_dtype: type of the parameters.

    Raises:
      ValueError: the observation cannot be encoded, or no pixel-control grid fits it.
    """
    linear = NoisyLinear if noisy else Linear
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    if autoencoder is not None:
        as_image(one_stream(observation, ae_stream).shape)  # checks
    pc_head = None
    if pixel_control:
        height, width, channels = as_image(one_stream(observation, pc_stream).shape)
        narrow = width == 1
        deconvolution = {"filter_size": (4, 1) if narrow else (4, 4), "stride": (2, 1) if narrow else (2, 2)}
        inner = pc_inner_shape((height, width, channels), pc_cell, channels=pc_channels, **deconvolution)
        pc_head = DuellingPCNetwork(action_depths, inner, linear=linear, **deconvolution, **types)
    return UnrealPolicy(
        action_depths,
        encoder=ObservationEncoder(
            jax.tree.map(lambda x: len(x.shape), observation),
            num_filters,
            filter_size,
            stride,
            hidden,
            conv_layer,
            autoencoder,
            ae_stream,
            **types,
        ),
        core=LSTMNetwork(lstm, **types) if lstm else None,
        linear=linear,
        logits_norm=logits_norm,
        pc_head=pc_head,
        rp_head=DenseRPNetwork(linear=linear, **types) if reward_prediction else None,
        **types,
    )
