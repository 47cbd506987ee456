"""One learner on all devices: `pmap`, the oldest way; every device holds the whole state, with an axis of devices.

python pmap.py
"""

import jax
import jax.numpy as jnp

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.unreal import make_unreal

jax.config.update("jax_num_cpu_devices", 8)  # where there is nothing but the host

config = UnrealConfig(
    shards=jax.device_count(),  # one for each device
    total_steps=60_000,
    num_envs=4,  # on each device
    rollout_length=16,
    algorithm="a2c",
    learning_rate=5e-3,
    hidden=(64,),
    lstm=(),
    pc_weight=0,
    vr_weight=0,
    rp_weight=0,
)
init, step, *_ = make_unreal(config, envs.make("Catch-bsuite"), axis_name="devices")
keys = jnp.broadcast_to(jax.random.key(0), config.shards)  # the same key: parameters start equal
state = jax.pmap(init, axis_name="devices")(keys)
step = jax.pmap(step, axis_name="devices", donate_argnums=0)

for _ in range(config.num_updates):
    state, metrics = step(state)
    jax.block_until_ready(metrics)
params = jax.tree.leaves(jax.device_get(state.params))
apart = max(abs(x - x[:1]).max() for x in params)  # gradients were averaged, so nowhere are they different
print(f"pmap: return {metrics['episode_return'][0]:.2f} on {config.shards} devices, parameters {apart} apart")
