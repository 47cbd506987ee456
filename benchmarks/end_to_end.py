"""Whole train steps, acting and learning: against rejax, and against our own loop on flax's layers."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
from rejax import get_algo

from benchmarks.harness import Case, Program
from btnn_jax import envs
from btnn_jax.layers import Conv2D
from btnn_jax.policies import AgentInput, PolicyOutput
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.unreal import make_unreal

PPO = UnrealConfig(
    num_envs=64, rollout_length=128, epochs=4, minibatches=8,
    pc_weight=0, vr_weight=0, rp_weight=0,
)  # fmt: skip
UNREAL = UnrealConfig()


class TwoMLPs(nn.Module):
    """rejax's network, two MLPs of 64 and 64 side by side, as a policy of ours."""

    action_depths: int

    @nn.nowrap
    def initial_state(self, batch_size: int) -> tuple:
        """No memory."""
        return ()

    def init_heads(self, inputs: AgentInput, state: tuple, frames: int) -> None:
        """Touches every parameter once."""
        self(inputs, state)

    @nn.compact
    def __call__(self, inputs: AgentInput, state: tuple, *, deterministic: bool = False) -> Any:
        """The agent's answers."""
        rows = inputs.reset.shape
        x = inputs.observation.astype(jnp.float32).reshape(math.prod(rows), -1)  # as rejax's sees it
        actor = nn.swish(nn.Dense(64)(nn.swish(nn.Dense(64)(x))))
        critic = nn.swish(nn.Dense(64)(nn.swish(nn.Dense(64)(x))))
        logits = nn.Dense(self.action_depths)(actor).reshape(*rows, -1)
        return PolicyOutput(logits, nn.Dense(1)(critic).reshape(rows), actor), state


class FlaxConv(nn.Module):
    """`flax.linen.Conv` with the fields of `btnn_jax.layers.Conv2D`."""

    num_filters: int
    filter_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    pad: str = "SAME"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves."""
        return nn.Conv(self.num_filters, self.filter_size, self.stride, self.pad)(x)


class TwoConvolutions(nn.Module):
    """VALID convolutions of 16 and 32 filters, 3x3, and a dense layer of 128, with ReLUs, as a policy of ours."""

    action_depths: int
    conv: type[nn.Module]

    @nn.nowrap
    def initial_state(self, batch_size: int) -> tuple:
        """No memory."""
        return ()

    def init_heads(self, inputs: AgentInput, state: tuple, frames: int) -> None:
        """Touches every parameter once."""
        self(inputs, state)

    @nn.compact
    def __call__(self, inputs: AgentInput, state: tuple, *, deterministic: bool = False) -> Any:
        """The agent's answers."""
        rows = inputs.reset.shape
        x = inputs.observation.astype(jnp.float32)
        x = x.reshape(math.prod(rows), *x.shape[len(rows) :])
        x = nn.relu(self.conv(32, pad="VALID")(nn.relu(self.conv(16, pad="VALID")(x))))
        x = nn.relu(nn.Dense(128)(x.reshape(math.prod(rows), -1)))
        logits = nn.Dense(self.action_depths)(x).reshape(*rows, -1)
        return PolicyOutput(logits, nn.Dense(1)(x).reshape(rows), x), state


class FlaxLSTM(nn.Module):
    """`flax.linen.OptimizedLSTMCell` scanned over time, with resets."""

    size: int

    @nn.nowrap
    def initial_state(self, batch_size: int) -> tuple:
        """Zeros."""
        return ((jnp.zeros((batch_size, self.size)), jnp.zeros((batch_size, self.size))),)

    @nn.compact
    def __call__(self, x: jax.Array, state: tuple, *, resets: jax.Array, deterministic: bool = True) -> Any:
        """Runs over `[T, B, D]`."""

        def one_step(cell: nn.Module, carry: Any, now: Any) -> Any:
            x, reset = now
            return cell(jax.tree.map(lambda leaf: jnp.where(reset[:, None], 0.0, leaf), carry), x)

        scan = nn.scan(one_step, variable_broadcast="params", split_rngs={"params": False})
        state, y = scan(nn.OptimizedLSTMCell(self.size), state[0], (x, resets))
        return y, (state,)


class FiveValues:
    """A gymnax environment with the `step` that rejax unpacks."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.reset, self.default_params = env.reset, env.default_params
        self.action_space, self.observation_space = env.action_space, env.observation_space

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
        """Steps."""
        observation, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        return observation, state, reward, terminated | truncated, info


def ours(config: UnrealConfig, policy: Any = None) -> Program:
    """One call is one update."""
    init, step, *_ = make_unreal(config, envs.make("Breakout-MinAtar"), policy=policy)
    return repeated(jax.jit(init)(jax.random.key(0)), jax.jit(lambda state: step(state)[0], donate_argnums=0))


def repeated(state: Any, step: Any) -> Program:
    """A program that goes on from where its last call ended."""
    box = [state]

    def program() -> Any:
        box[0] = step(box[0])
        return jax.tree.leaves(box[0].params if hasattr(box[0], "params") else box[0].actor_ts.params)[0]

    return program


def against_rejax() -> tuple[Program, Program]:
    """The same networks, environments, batch, epochs and minibatches."""
    env, params = gymnax.make("Breakout-MinAtar")
    algorithm = get_algo("ppo").create(
        env=FiveValues(env), env_params=params, num_envs=PPO.num_envs, num_steps=PPO.rollout_length,
        num_epochs=PPO.epochs, num_minibatches=PPO.minibatches,
    )  # fmt: skip
    state = algorithm.init_state(jax.random.key(0))
    rejax = repeated(state, jax.jit(algorithm.train_iteration, donate_argnums=0))
    return ours(PPO, TwoMLPs(env.num_actions)), rejax


def against_conv() -> tuple[Program, Program]:
    """The same loop and network with our convolution and with flax's."""
    depths = envs.make("Breakout-MinAtar").action_depths
    return ours(PPO, TwoConvolutions(depths, Conv2D)), ours(PPO, TwoConvolutions(depths, FlaxConv))


def unreal_against_flax() -> tuple[Program, Program]:
    """The same loop with `nn.Conv` and flax's LSTM."""
    policy = make_unreal_policy(UNREAL, envs.make("Breakout-MinAtar"), conv_layer=FlaxConv)
    return ours(UNREAL), ours(UNREAL, policy.clone(core=FlaxLSTM(*UNREAL.lstm)))


def _size(config: UnrealConfig) -> str:
    return f"{config.num_envs}x{config.rollout_length}, {config.epochs} epochs x {config.minibatches}"


CASES = (
    Case(f"PPO step, two MLPs of 64 and 64, Breakout-MinAtar, {_size(PPO)}", "rejax", against_rejax, 1.0),
    Case(f"PPO step, convolutions (16, 32), {_size(PPO)}", "nn.Conv", against_conv, 20.0),
    Case(
        f"UNREAL step, `btnn-jax train`'s defaults, {_size(UNREAL)}",
        "nn.Conv, flax's LSTM",
        unreal_against_flax,
    ),
)
