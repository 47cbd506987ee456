"""What devices and populations cost: `python -m benchmarks --only scaling`, in a process of its own.

It makes eight devices of the host. They share its cores, so that more of them cannot be faster: against the same shards
by `vmap` on one device they show what dividing them costs.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.harness import Case, Program
from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.mapping import make_mapped
from btnn_jax.training.unreal import TrainState, hyperparameters, make_unreal

jax.config.update("jax_num_cpu_devices", 8)

CONFIG = UnrealConfig(
    num_envs=16, rollout_length=16, hidden=(64,), lstm=(), pc_weight=0, vr_weight=0, rp_weight=0,
)  # fmt: skip
ENV = "Catch-bsuite"


def on_devices(shards: int, devices: int) -> Program:
    """One call is one update of all shards."""
    config = dataclasses.replace(CONFIG, shards=shards)
    mapped = make_mapped(config, envs.make(ENV), devices=jax.devices()[:devices])
    box, step = [jax.jit(mapped.init)(jax.random.key(0))], jax.jit(mapped.step, donate_argnums=0)

    def program() -> jax.Array:
        box[0], metrics = step(box[0])
        return jax.block_until_ready(metrics["gradient_norm"])  # host devices must not lag behind each other

    return program


def population(members: int) -> tuple[Program, Program]:
    """One update of every member: all by `vmap`, and one by one."""
    init, step, *_ = make_unreal(CONFIG, envs.make(ENV))
    hyper = jax.tree.map(lambda x: jnp.full(members, x, jnp.float32), hyperparameters(CONFIG))
    hyper = hyper._replace(learning_rate=jnp.geomspace(1e-4, 1e-2, members, dtype=jnp.float32))
    keys = jax.random.split(jax.random.key(0), members)
    together = [jax.jit(jax.vmap(init))(keys, hyper)]
    one_by_one: list[TrainState] = [
        jax.jit(init)(keys[i], jax.tree.map(lambda x, i=i: x[i], hyper)) for i in range(members)
    ]
    all_, single = (jax.jit(f, donate_argnums=0) for f in (jax.vmap(step), step))

    def ours() -> jax.Array:
        together[0], metrics = all_(together[0])
        return metrics["gradient_norm"]

    def peer() -> list[jax.Array]:
        norms = []
        for i, state in enumerate(one_by_one):
            one_by_one[i], metrics = single(state)
            norms.append(metrics["gradient_norm"])
        return norms

    return ours, peer


def divided(devices: int) -> tuple[Program, Program]:
    """As many shards as devices, on them and on one."""
    return on_devices(devices, devices), on_devices(devices, 1)


CASES = (
    *(
        Case(f"PPO step, {n} shards on {n} host devices", f"{n} shards by vmap on 1", partial(divided, n))
        for n in (2, 4, 8)
    ),
    Case("PPO step, a population of 8 by vmap", "8 single runs", partial(population, 8), 1.0),
)
