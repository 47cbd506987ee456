"""One train step on many devices: shards of environments, divided among the devices, that share one agent.

A run of `config.shards` shards computes the same whatever the number of devices: each device holds an equal part of
the shards and `vmap` takes it through them, so that a checkpoint of eight devices goes on with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from btnn_jax._types import PyTree
from btnn_jax.envs.base import AnyEnvironment
from btnn_jax.protocol import Policy
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.objective import Hyperparameters
from btnn_jax.training.unreal import TrainState, hyperparameters, make_unreal

__all__ = ["DEVICES", "SHARDS", "Mapped", "make_mapped", "state_prefix", "with_shardings"]

DEVICES, SHARDS = "devices", "shards"


class Mapped(NamedTuple):
    """A train step over shards, to be jitted by whoever uses it."""

    init: Callable[..., TrainState]  # (key, hyper=None) -> state
    step: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]
    act: Callable[[TrainState], PyTree]  # the rollouts of one step alone, those of all shards
    policy: Policy
    shardings: TrainState  # where each part of the state lives, a prefix of it


def state_prefix(*, each: Any, all_: Any) -> TrainState:
    """A prefix of the state: `each` for what every shard has of its own, `all_` for what they share."""
    return TrainState(
        params=all_,
        opt_state=all_,
        actors=each,
        replay=each,
        hyper=all_,
        key=each,
        update=all_,
        skipped=all_,
    )


def make_mapped(
    config: UnrealConfig,
    env: AnyEnvironment,
    *,
    devices: Sequence[jax.Device] | None = None,
    policy: Policy | None = None,
    pretrained: PyTree | None = None,
) -> Mapped:
    """Binds a configuration and an environment as `make_unreal` does, and maps them over `config.shards` shards.

    What every shard has of its own (environments, replay, key) leads with an axis `[shards]`, split among the devices;
    what they share (parameters, the optimizer's state, counters) has no such axis and lies on all of them.

    Args:
      config: what to learn and how.
      env: one environment.
      devices: a divisor of `config.shards` of them, of all processes; None takes the first.
      policy: see `make_unreal`.
      pretrained: see `make_unreal`.

    Raises:
      ValueError: the shards cannot be divided equally among the devices.
    """
    devices = jax.devices()[:1] if devices is None else devices
    if config.shards % len(devices):
        raise ValueError(f"{config.shards} shards cannot be divided equally among {len(devices)} devices")
    mesh = Mesh(np.asarray(devices), (DEVICES,))
    names = (DEVICES, SHARDS) if len(devices) > 1 else SHARDS
    init, step, act, policy = make_unreal(config, env, policy=policy, pretrained=pretrained, axis_name=names)
    axes = state_prefix(each=0, all_=None)
    mapping: dict[str, Any] = {"axis_name": SHARDS, "axis_size": config.shards // len(devices)}

    start = jax.vmap(init, in_axes=None, out_axes=axes, **mapping)
    advance = jax.vmap(step, in_axes=(axes,), out_axes=(axes, None), **mapping)
    act = jax.vmap(act, in_axes=(axes,))
    specs = state_prefix(each=P(DEVICES), all_=P())
    if len(devices) > 1:
        # The step averages gradients itself. With check_vma=True `shard_map` would add those of replicated parameters
        # up as well, once more than there are.
        over: dict[str, Any] = {"mesh": mesh, "check_vma": False}
        start = jax.shard_map(start, in_specs=(P(), P()), out_specs=specs, **over)
        advance = jax.shard_map(advance, in_specs=(specs,), out_specs=(specs, P()), **over)
        act = jax.shard_map(act, in_specs=(specs,), out_specs=P(DEVICES), **over)

    def init_shards(key: jax.Array, hyper: Hyperparameters | None = None) -> TrainState:
        return start(key, hyperparameters(config) if hyper is None else hyper)

    return Mapped(
        init_shards, advance, act, policy, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    )


def with_shardings(state: TrainState, shardings: TrainState, *, lead: int = 0) -> TrainState:
    """The shapes of `state` with where they lie.

    Args:
      state: the state's shapes, as `jax.ShapeDtypeStruct`.
      shardings: those of `make_mapped`.
      lead: axes of `vmap` before the shards'.
    """

    def with_sharding(sharding: NamedSharding, part: PyTree) -> PyTree:
        spec = P(*[None] * lead, *sharding.spec)
        where = NamedSharding(sharding.mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), part)

    return jax.tree.map(with_sharding, shardings, state)
