"""One learner on all devices: `shard_map`; parameters once, environments and replay a part on each device.

    python shard_map.py

`btnn_jax.training.mapping.make_mapped(config, env, devices=jax.devices())` does this for several shards on each device.
"""

import jax
from jax.sharding import PartitionSpec as P

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.mapping import state_prefix
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
specs = state_prefix(each=P("devices"), all_=P())


def own(function, state):
    """What a device has of its own leads with an axis of devices, of which it sees 1."""
    return state.replace(**{name: jax.tree.map(function, getattr(state, name)) for name in ("actors", "key")})


def advance(state):
    """One update, on each device."""
    state, metrics = step(own(lambda x: x[0], state))
    return own(lambda x: x[None], state), metrics


# check_vma=False: the step averages gradients itself; shard_map would add them up once more.
over = {"mesh": jax.make_mesh((config.shards,), ("devices",)), "check_vma": False}
start = jax.shard_map(lambda key: own(lambda x: x[None], init(key)), in_specs=P(), out_specs=specs, **over)
advance = jax.shard_map(advance, in_specs=(specs,), out_specs=(specs, P()), **over)
state, advance = jax.jit(start)(jax.random.key(0)), jax.jit(advance, donate_argnums=0)
for _ in range(config.num_updates):
    state, metrics = advance(state)
    jax.block_until_ready(metrics)
whole = {name: jax.tree.leaves(getattr(state, name))[0].is_fully_replicated for name in ("params", "actors")}
print(f"shard_map: return {metrics['episode_return']:.2f} on {config.shards} devices; whole on each: {whole}")
