"""The protocol of an agent's network: inputs, outputs, methods, and an adapter for a network of one's own."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze

from btnn_jax._types import PyTree

__all__ = [
    "AgentInput",
    "ModulePolicy",
    "Policy",
    "PolicyOutput",
    "RecurrentState",
    "action_distribution",
    "check_policy",
]

RecurrentState = (
    Any  # a pytree with leaves [B, ...]; of an LSTM tuple[(c [B, H], h [B, H]), ...], () without memory
)


class AgentInput(NamedTuple):
    """The agent's input at every step; all leaves lead with `[T, B]`."""

    observation: PyTree  # arrays [T, B, ...], or a dict of them
    last_action: PyTree  # int32 [T, B], or a dict of them; ignored where `reset`
    last_reward: jax.Array  # float32 [T, B]; ignored where `reset`
    reset: jax.Array  # bool [T, B], this step starts a new episode


class PolicyOutput(NamedTuple):
    """The agent's output: logits and value in float32, features in the network's type of computation."""

    logits: PyTree  # [T, B, A], or a dict of them
    value: jax.Array  # [T, B], in units of the rewards
    features: jax.Array  # [T, B, D], what the heads saw; the pixel-control head takes it


class Policy(Protocol):
    """The interface that `make_unreal` needs of a policy, which is a linen module.

    `btnn_jax.policies.make_policy` makes one from the shapes of an environment, and `ModulePolicy` makes one of a
    module of your own that returns logits and a value.
    """

    action_depths: Any  # number of actions, or a (nested) dict of them, as of the environment
    apply: Any  # flax.linen.Module's own
    lazy_init: Any  # flax.linen.Module's own

    def initial_state(self, batch_size: int) -> RecurrentState:
        """The recurrent state before any step, leaves `[B, ...]`; `()` without memory."""

    def __call__(
        self, inputs: AgentInput, state: RecurrentState, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, RecurrentState]:
        """Runs the agent over `T` steps: leaves `[T, B, ...]` in, outputs and the state after the last step out."""

    def init_heads(self, inputs: AgentInput, state: RecurrentState, frames: int) -> None:
        """Calls everything that has parameters once, for `init`; the reward-prediction head sees `frames` frames."""

    def pixel_control(self, features: jax.Array, *, deterministic: bool = False) -> PyTree:
        """Q `[T, B, h, w, A]` from `PolicyOutput.features`; only pixel control needs it."""

    def reward_prediction(self, frames: PyTree, *, deterministic: bool = False) -> jax.Array:
        """Logits `[N, 3]` from observations `[N, frames, ...]`; only reward prediction needs it."""


_METHODS = ("initial_state", "__call__", "init_heads", "apply", "lazy_init")
_OF_TASKS = {"pixel_control": "pixel control", "reward_prediction": "reward prediction"}


def check_policy(policy: Any, *, pixel_control: bool = False, reward_prediction: bool = False) -> None:
    """Checks that `policy` has what the protocol and the auxiliary tasks ask of it.

    Raises:
      ValueError: of one line that lists what is missing.
    """
    needs = [name for name in _METHODS if not callable(getattr(policy, name, None))]
    if not hasattr(policy, "action_depths"):
        needs.insert(0, "action_depths")
    if needs:
        raise ValueError(
            f"the policy {type(policy).__name__} has no {', '.join(needs)}; see btnn_jax.protocol.Policy, or wrap a "
            "module that returns (logits, value) in btnn_jax.protocol.ModulePolicy"
        )
    wanted = {"pixel_control": pixel_control, "reward_prediction": reward_prediction}
    lacking = [name for name, on in wanted.items() if on and not callable(getattr(policy, name, None))]
    if lacking:
        raise ValueError(
            f"the policy {type(policy).__name__} has no method {' or '.join(lacking)}; give it one, or switch "
            f"{' and '.join(_OF_TASKS[name] for name in lacking)} off"
        )


def action_distribution(logits: PyTree) -> distrax.Distribution:
    """The distribution over actions that `logits` stand for.

    Args:
      logits: `[..., A]`, or a (nested) dict of such for a dict action space, whose heads are independent.

    Returns:
      A distrax distribution over int32 with `sample(seed=key)`, `mode()`, `log_prob(actions)` and `entropy()`.
    """
    heads = jax.tree.map(lambda x: distrax.Categorical(logits=x, dtype=jnp.int32), unfreeze(logits))
    return heads if isinstance(heads, distrax.Distribution) else distrax.Joint(heads)


class ModulePolicy(nn.Module):
    """A policy made of a module of your own that returns logits and a value.

    Without memory the network is called as `network(observation)` and returns `(logits, value)`; with a method
    `initial_state(batch_size)` it is called as `network(observation, state, resets)` and returns
    `((logits, value), state)`. Observations are `[T, B, ...]`, `resets` is bool `[T, B]`, logits are `[T, B, A]` (or a
    dict of them) and values `[T, B]`. It has no auxiliary heads, so that pixel control and reward prediction must be
    off; value replay works.

    Attributes:
      network: the module.
      action_depths: number of actions, or a (nested) dict of them.
      normalize_returns: see `btnn_jax.policies.UnrealPolicy`.

    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, observation):
    ...         x = nn.relu(nn.Dense(16)(observation))
    ...         return nn.Dense(2)(x), nn.Dense(1)(x)[..., 0]
    >>> policy = ModulePolicy(Net(), action_depths=2)
    >>> policy.initial_state(8)
    ()
    """

    network: nn.Module
    action_depths: Any
    normalize_returns: bool = True

    def setup(self) -> None:
        """Makes the parameters that keep the scale of returns."""
        if self.normalize_returns:
            self.return_scale = self.param("return_scale", nn.initializers.zeros, (), jnp.float32)
            self.value_gain = self.param("value_gain", nn.initializers.ones, (), jnp.float32)

    def initial_state(self, batch_size: int) -> RecurrentState:
        """That of the network, `()` where it has none.

        Raises:
          ValueError: the method uses a submodule that `setup` makes, which exists only inside of `apply`.
        """
        if not hasattr(self.network, "initial_state"):
            return ()
        try:
            return self.network.initial_state(batch_size)
        except (AttributeError, AssertionError) as error:
            raise ValueError(
                f"initial_state of {type(self.network).__name__} is called outside of apply, where what setup makes "
                "does not exist: make the core a field of the module, core: nn.Module, and call its initial_state"
            ) from error

    def __call__(
        self, inputs: AgentInput, state: RecurrentState, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, RecurrentState]:
        """Runs the network over `T` steps; see `Policy`.

        Raises:
          ValueError: what the network returns has other shapes than logits and values must have.
        """
        del deterministic  # a network with noise of its own decides itself
        if hasattr(self.network, "initial_state"):
            (logits, value), state = self.network(inputs.observation, state, inputs.reset)
        else:
            logits, value = self.network(inputs.observation)
        rows = inputs.reset.shape
        depths = unfreeze(self.action_depths)
        shapes = jax.tree.map(lambda depth: (*rows, depth), depths)
        found = jax.tree.map(lambda x: tuple(x.shape), unfreeze(logits))
        if found != shapes or value.shape != rows:
            raise ValueError(
                f"the network {type(self.network).__name__} must return logits {shapes} and values {rows}, got "
                f"{found} and {value.shape}"
            )
        value = value.astype(jnp.float32)
        if self.normalize_returns:
            scale = jax.lax.stop_gradient(self.return_scale)
            value = value * self.value_gain * jnp.where(scale > 0, scale, 1.0)
        logits = jax.tree.map(lambda x: x.astype(jnp.float32), logits)
        return PolicyOutput(logits, value, jnp.zeros((*rows, 0), jnp.float32)), state

    def init_heads(self, inputs: AgentInput, state: RecurrentState, frames: int) -> None:
        """Calls the network once."""
        del frames
        self(inputs, state)
