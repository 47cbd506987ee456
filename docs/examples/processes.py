"""One learner on the devices of several hosts.

One command on each of two:

    python processes.py host0:1234 0 2
    python processes.py host0:1234 1 2

The command line does it too, with a folder that all of them see:

    btnn-jax train Catch-bsuite --run /shared/run --coordinator host0:1234 --num-processes 2 --process-id 0
    btnn-jax train Catch-bsuite --run /shared/run --coordinator host0:1234 --num-processes 2 --process-id 1
"""

import sys

import jax

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.mapping import make_mapped

coordinator, index, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.distributed.initialize(coordinator, num_processes=count, process_id=index)  # before anything else of JAX

config = UnrealConfig(
    shards=jax.device_count(),  # of all processes
    total_steps=60_000,
    num_envs=16,  # on each device
    rollout_length=16,
    algorithm="a2c",
    learning_rate=5e-3,
    hidden=(64,),
    lstm=(),
    pc_weight=0,
    vr_weight=0,
    rp_weight=0,
)
mapped = make_mapped(config, envs.make("Catch-bsuite"), devices=jax.devices())
state = jax.jit(mapped.init)(jax.random.key(0))  # the same key everywhere
step = jax.jit(mapped.step, donate_argnums=0)

for _ in range(config.num_updates):
    state, metrics = step(state)
    jax.block_until_ready(metrics)
here = f"process {index}: {jax.local_device_count()} of {jax.device_count()} devices"
print(f"{here}, return {metrics['episode_return']:.2f}")  # the same everywhere
