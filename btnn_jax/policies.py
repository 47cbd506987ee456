"""Whole agents' networks: encoder, recurrent core, and UNREAL's heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from btnn_jax._types import PyTree
from btnn_jax.ae import AutoencoderOutput
from btnn_jax.cores import make_core
from btnn_jax.encoders import ObservationEncoder, as_image, check_shared, image_stream, one_stream
from btnn_jax.layers import Conv2D, Linear, NoisyLinear
from btnn_jax.networks import (
    ActorCritic,
    DenseAACNetwork,
    DenseRPNetwork,
    DuellingPCNetwork,
    pc_inner_shape,
)
from btnn_jax.ops.categorical import matching_leaves, one_hot
from btnn_jax.ops.pixel_change import pixel_change_shape
from btnn_jax.protocol import AgentInput, Policy, PolicyOutput, RecurrentState, action_distribution

__all__ = [
    "AgentInput",
    "PolicyOutput",
    "RecurrentState",
    "StackedLSTMPolicy",
    "UnrealPolicy",
    "action_distribution",
    "init_params",
    "make_policy",
]


class UnrealPolicy(nn.Module):
    """An actor-critic with a recurrent core and UNREAL's auxiliary heads (Jaderberg et al. 2016, section 3).

    The parts are modules of their own and can be exchanged; `make_policy` puts the usual ones together from the
    shapes of an environment.

    Attributes:
      action_depths: number of actions, or a (nested) dict of them.
      encoder: observation -> features `[..., D]`.
      core: None, or a `btnn_jax.cores.Core`; it gets the features, the last action (one-hot) and the last reward.
      linear: the dense layer of the actor-critic head, `NoisyLinear` (stream `noise`) or `Linear`.
      logits_norm: see `DenseAACNetwork`.
      pc_head: features -> `[..., h, w, A]`, usually a `DuellingPCNetwork`; None for no pixel control.
      rp_head: concatenated features of several frames -> `[..., 3]`, usually a `DenseRPNetwork`; None for none.
      normalize_returns: the value head predicts returns in units of the parameter `return_scale`, which the train step
        updates (`update_return_scale`); values leave the policy in units of the rewards, and the last reward enters the
        core divided by the scale. Rewards of any size then look the same to every layer.
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
    normalize_returns: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the head that is not given as a module."""
        if self.normalize_returns:
            self.return_scale = self.param("return_scale", nn.initializers.zeros, (), jnp.float32)
        self.actor_critic = DenseAACNetwork(
            self.action_depths,
            linear=self.linear,
            logits_norm=self.logits_norm,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def initial_state(self, batch_size: int) -> RecurrentState:
        """The recurrent state before any step: the core's, or `()` without a core."""
        return () if self.core is None else self.core.initial_state(batch_size)

    def __call__(
        self, inputs: AgentInput, state: RecurrentState, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, RecurrentState]:
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
            features = jnp.concatenate([features, *self._feedback(inputs, features.dtype)], axis=-1)
            features, state = self.core(features, state, resets=inputs.reset, deterministic=deterministic)
        head = self.actor_critic(features, deterministic=deterministic)
        return PolicyOutput(head.logits, self._in_reward_units(head.value), features), state

    def _scale(self) -> jax.Array:
        """The scale of returns, 1 until a reward has been seen."""
        scale = jax.lax.stop_gradient(self.return_scale)
        return jnp.where(scale > 0, scale, 1.0)

    def _in_reward_units(self, value: jax.Array) -> jax.Array:
        return value * self._scale() if self.normalize_returns else value

    def _feedback(self, inputs: AgentInput, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Last action `[T, B, sum A]` and reward `[T, B, 1]`, zero at an episode's first step."""
        heads = matching_leaves(
            "last_action", unfreeze(inputs.last_action), "action_depths", unfreeze(self.action_depths)
        )
        given = [("last_reward", inputs.last_reward), *(("last_action", action) for action, _ in heads)]
        for name, x in given:
            if x.shape != inputs.reset.shape:  # a size of 1 would be broadcast
                raise ValueError(f"{name} must have shape {inputs.reset.shape} like reset, got {x.shape}")
        for action, _ in heads:
            if not jnp.issubdtype(action.dtype, jnp.integer):
                raise ValueError(f"last_action must be integers, got {action.dtype}")
        actions = [one_hot(action, (*action.shape, depth)).astype(dtype) for action, depth in heads]
        reward = inputs.last_reward[..., None]
        if self.normalize_returns:
            reward = reward / self._scale()
        reward = reward.astype(dtype)
        first, zero = inputs.reset[..., None], jnp.zeros((), dtype)
        action = jnp.concatenate(actions, axis=-1)
        return jnp.where(first, zero, action), jnp.where(first, zero, reward)

    def pixel_control(self, features: jax.Array, *, deterministic: bool = False) -> PyTree:
        """Q of every cell and action, `[..., h, w, A]`, from the features of `__call__`."""
        if self.pc_head is None:
            raise ValueError(
                "this policy has no pixel-control head: give it a pc_head, or leave the task out"
            )
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
        """The images and the output of the encoder's autoencoder; see `ObservationEncoder.reconstruct`."""
        return self.encoder.reconstruct(observation)

    def init_heads(self, inputs: AgentInput, state: RecurrentState, frames: int) -> None:
        """Touches every parameter once; `init_params` runs it."""
        output, _ = self(inputs, state)
        if getattr(self.encoder, "autoencoder", None) is not None:
            self.reconstruct(inputs.observation)
        if self.pc_head is not None:
            self.pixel_control(output.features)
        if self.rp_head is not None:
            stack = jax.tree.map(lambda x: jnp.repeat(x[0][:, None], frames, axis=1), inputs.observation)
            self.reward_prediction(stack)


class StackedLSTMPolicy(UnrealPolicy, kw_only=True):  # type: ignore[call-arg]
    """An actor-critic with two cores, LSTMs in the paper: the first follows the world, the second the agent in it.

        x = first([external, last reward])
        features = core([external, internal, further streams, x, last action, last reward])

    Mirowski et al. (2016), "Learning to Navigate in Complex Environments", section 3 (Nav A3C), arXiv:1611.03673.
    Observations are dicts with the streams `external`, an image or a signal, and `internal`, what the agent knows of
    itself; each is encoded and there may be more. All else is as in `UnrealPolicy`, and its heads see the features.

    Attributes:
      first: the first core.
      core: the second one.
      trunk: size of a dense layer (ELU) between the cores and the actor-critic head; 0 for none.
      heads: what logits and value are made of: "shared", of the features, in the paper; "separate", of the features,
        with a trunk each; "split", as in BTGym, the logits of the first core and the value of the features.
    """

    encoder: ObservationEncoder
    first: nn.Module
    core: nn.Module
    trunk: int = 0
    heads: str = "shared"

    def setup(self) -> None:
        """Makes the layers that are not given as modules."""
        super().setup()
        if self.heads not in ("shared", "separate", "split"):
            raise ValueError(f"heads must be 'shared', 'separate' or 'split', got {self.heads!r}")
        if self.heads == "separate" and not self.trunk:
            raise ValueError(f"separate heads need a size of their trunks, got trunk={self.trunk}")
        if self.trunk:
            self.trunks = [
                Linear(self.trunk, dtype=self.dtype, param_dtype=self.param_dtype)
                for _ in range(1 if self.heads == "shared" else 2)
            ]

    def initial_state(self, batch_size: int) -> RecurrentState:
        """The recurrent state before any step: that of the first core and then of the second."""
        return (*self.first.initial_state(batch_size), *self.core.initial_state(batch_size))

    def __call__(
        self, inputs: AgentInput, state: RecurrentState, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, RecurrentState]:
        """Runs the agent over `T` steps; see `UnrealPolicy`.

        Raises:
          ValueError: the observation has no stream `external` or `internal`.
        """
        _check_stacked(inputs.observation)
        streams = self.encoder.streams(inputs.observation)
        action, reward = self._feedback(inputs, streams["external"].dtype)
        how: dict[str, Any] = {"resets": inputs.reset, "deterministic": deterministic}
        layers = len(self.first.initial_state(1))
        world = jnp.concatenate([streams["external"], reward], axis=-1)
        x, first_state = self.first(world, state[:layers], **how)
        agent = jnp.concatenate([*streams.values(), x, action, reward], axis=-1)
        features, core_state = self.core(agent, state[layers:], **how)
        head = self._heads(x, features, deterministic)
        return PolicyOutput(head.logits, self._in_reward_units(head.value), features), (
            *first_state,
            *core_state,
        )

    def _heads(self, x: jax.Array, features: jax.Array, deterministic: bool) -> ActorCritic:
        if self.heads == "shared":
            features = nn.elu(self.trunks[0](features)) if self.trunk else features
            return self.actor_critic(features, deterministic=deterministic)
        parts = [x if self.heads == "split" else features, features]
        if self.trunk:
            parts = [nn.elu(trunk(part)) for trunk, part in zip(self.trunks, parts, strict=True)]
        if parts[0].shape != parts[1].shape:
            raise ValueError(
                f"split heads need LSTMs of one size, or a trunk, got outputs {parts[0].shape} and {parts[1].shape}"
            )
        # Apply the head once to both inputs (same parameters, same noise): logits from one, the value from the other.
        both = self.actor_critic(jnp.stack(parts), deterministic=deterministic)
        return ActorCritic(jax.tree.map(lambda logits: logits[0], both.logits), both.value[1])


def _check_stacked(observation: PyTree) -> None:
    streams = sorted(observation) if isinstance(observation, Mapping) else "one without a name"
    if not {"external", "internal"} <= set(streams):
        raise ValueError(
            f"a stacked-LSTM policy needs the observation streams 'external' and 'internal', got {streams}"
        )


def _check_streams(observation: PyTree) -> None:
    streams = observation if isinstance(observation, Mapping) else {"stream": observation}
    for name, stream in streams.items():
        if not hasattr(stream, "shape"):
            raise ValueError(f"observation streams must be arrays, got {stream} as {name!r}")


def init_params(policy: Policy, key: jax.Array, observation: PyTree, *, rp_frames: int = 3) -> PyTree:
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


def make_policy(
    action_depths: Any,
    observation: PyTree,
    *,
    num_filters: tuple[int, ...] | None = None,
    filter_size: int = 3,
    stride: int | None = None,
    hidden: tuple[int, ...] = (256,),
    lstm: tuple[int, ...] = (256,),
    core: str = "lstm",
    core_size: tuple[int, ...] | None = None,
    core_memory: int = 64,
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
    shared: tuple[str, ...] = (),
    kind: str = "unreal",
    trunk: int = 0,
    heads: str = "shared",
    normalize_returns: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> UnrealPolicy:
    """Puts a policy together whose shapes fit the observation.

    Args:
      action_depths: number of actions, or a (nested) dict of them.
      observation: `jax.ShapeDtypeStruct` of one observation, or a dict of them, without leading axes.
      num_filters: see `ObservationEncoder`.
      filter_size: see `ObservationEncoder`.
      stride: see `ObservationEncoder`.
      hidden: see `ObservationEncoder`.
      lstm: sizes of an LSTM's layers; `()` for an agent without memory.
      core: the agent's memory, see `btnn_jax.cores.make_core`. A stacked-LSTM policy takes two names joined by `+`,
        of the first and the second core, or one for both.
      core_size: sizes of the core's layers; None takes those of `lstm`. A stacked-LSTM policy takes one size for the
        first core and one for the second, or one for both.
      core_memory: number of steps that a GTrXL looks back.
      noisy: heads of `NoisyLinear` rather than `Linear`.
      logits_norm: see `DenseAACNetwork`.
      pixel_control: whether there is a pixel-control head. Its deconvolution has a filter of 4, of 3 along an axis
        with an odd number of cells, fewer where there are fewer cells.
      pc_cell: pixels a cell of the pixel-control grid covers, height and width.
      pc_channels: channels of the pixel-control head before its deconvolution.
      pc_stream: name of the stream that pixel control watches, see `btnn_jax.encoders.image_stream`.
      reward_prediction: whether there is a reward-prediction head.
      conv_layer: see `ObservationEncoder`.
      autoencoder: see `ObservationEncoder`.
      ae_stream: see `ObservationEncoder`.
      shared: see `ObservationEncoder`.
      kind: "unreal" for an `UnrealPolicy`, "stacked_lstm" for a `StackedLSTMPolicy`.
      trunk: see `StackedLSTMPolicy`.
      heads: see `StackedLSTMPolicy`.
      normalize_returns: see `UnrealPolicy`.
      dtype: type of computation.
      param_dtype: type of the parameters.

    Raises:
      ValueError: the observation cannot be encoded, has nothing for pixel control, or the kind of policy is unknown or
        cannot be what is asked for.
    """
    if kind not in ("unreal", "stacked_lstm"):
        raise ValueError(f"kind must be 'unreal' or 'stacked_lstm', got {kind!r}")
    _check_streams(observation)
    sizes, names = lstm if core_size is None else core_size, core.split("+")
    if kind == "stacked_lstm":
        _check_stacked(observation)
        if len(sizes) not in (1, 2):
            name = "lstm" if core_size is None else "core_size"
            raise ValueError(f"stacked LSTMs need one or two sizes, got {name}={sizes}")
        if len(names) > 2:
            raise ValueError(f"stacked LSTMs have two cores, got core={core!r}")
    linear = NoisyLinear if noisy else Linear
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    if autoencoder is not None:
        as_image(one_stream(observation, ae_stream).shape)  # checks
    check_shared(observation, shared)
    pc_head = None
    if pixel_control:
        try:
            shape = as_image(one_stream(observation, image_stream(observation, pc_stream)).shape)
            # The filter is even where the grid is, for a stride of 2 reaches no other sizes.
            rows, columns = pixel_change_shape(shape, pc_cell)
            filters = min(rows, 4 - rows % 2), min(columns, 4 - columns % 2)
        except ValueError as error:
            raise ValueError(f"{error}; pixel control needs frames, leave it out") from error
        inner = pc_inner_shape(shape, pc_cell, filter_size=filters, channels=pc_channels)
        pc_head = DuellingPCNetwork(action_depths, inner, filters, linear=linear, **types)
    parts: dict[str, Any] = {
        "encoder": ObservationEncoder(
            jax.tree.map(lambda x: len(x.shape), observation),
            num_filters,
            filter_size,
            stride,
            hidden,
            conv_layer,
            autoencoder,
            ae_stream,
            shared,
            **types,
        ),
        "linear": linear,
        "logits_norm": logits_norm,
        "pc_head": pc_head,
        "rp_head": DenseRPNetwork(linear=linear, **types) if reward_prediction else None,
        "normalize_returns": normalize_returns,
        **types,
    }
    memory: dict[str, Any] = {"memory": core_memory, **types}
    if kind == "unreal":
        without = core == "lstm" and not sizes
        return UnrealPolicy(
            action_depths, core=None if without else make_core(core, sizes, **memory), **parts
        )
    return StackedLSTMPolicy(
        action_depths,
        first=make_core(names[0], sizes[:1], **memory),
        core=make_core(names[-1], sizes[-1:], **memory),
        trunk=trunk,
        heads=heads,
        **parts,
    )
