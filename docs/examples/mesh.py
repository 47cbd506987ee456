"""One learner on all devices: `jit` over a mesh. You say where the state lies; the compiler divides the program.

    python mesh.py

Environments and replay are sharded, parameters replicated, and the optimizer's moments sharded as in ZeRO
(Rajbhandari et al. 2020, arXiv:1910.02054), so that no device holds them all.
"""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.mapping import make_mapped, state_prefix

jax.config.update("jax_num_cpu_devices", 8)  # where there is nothing but the host

config = UnrealConfig(
    shards=jax.device_count(),
    total_steps=60_000,
    num_envs=4,  # in each shard
    rollout_length=16,
    algorithm="a2c",
    learning_rate=5e-3,
    hidden=(64,),
    lstm=(),
    pc_weight=0,
    rp_weight=0,
    replay_length=64,
    replay_batch=2,
)
mapped = make_mapped(config, envs.make("Catch-bsuite"))  # for one device: the mesh divides it
state = jax.jit(mapped.init)(jax.random.key(0))

mesh = jax.make_mesh((config.shards,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
sharded, replicated = NamedSharding(mesh, P("devices")), NamedSharding(mesh, P())


def by_rows(x):
    """Rows of a moment where they can be divided equally."""
    return sharded if x.ndim and x.shape[0] % config.shards == 0 else replicated


where = state_prefix(each=sharded, all_=replicated).replace(opt_state=jax.tree.map(by_rows, state.opt_state))
state = jax.device_put(state, where)
step = jax.jit(mapped.step, out_shardings=(where, replicated), donate_argnums=0)
for _ in range(config.num_updates):
    state, metrics = step(state)
    jax.block_until_ready(metrics)
moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
divided = sum(not x.is_fully_replicated for x in moments)
print(f"mesh: return {metrics['episode_return']:.2f}, {divided} of {len(moments)} moments divided")
