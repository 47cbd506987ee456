"""A population: `vmap` over learning rates, entropy weights and weights of tasks, and the best member.

    python population.py

These are values of one compiled program, so that eight members compile once. Whatever changes shapes or leaves a part
out (sizes, a task of weight 0) is another program.
"""

import jax
import jax.numpy as jnp

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.unreal import hyperparameters, make_unreal

MEMBERS = 8

config = UnrealConfig(
    total_steps=60_000,
    num_envs=32,
    rollout_length=16,
    algorithm="a2c",
    hidden=(64,),
    lstm=(),
    pc_weight=0,
    rp_weight=0,
    vr_weight=0.5,  # not 0, or there would be no value replay to weigh
    replay_length=64,
)
draw = [jax.random.uniform(key, (MEMBERS,)) for key in jax.random.split(jax.random.key(0), 3)]
hyper = jax.tree.map(lambda x: jnp.full(MEMBERS, x, jnp.float32), hyperparameters(config))._replace(
    learning_rate=10 ** (-4 + 2 * draw[0]),  # 1e-4 to 1e-2
    entropy_beta=10 ** (-3 + 2 * draw[1]),
    vr_weight=draw[2],
)
init, step, *_ = make_unreal(config, envs.make("Catch-bsuite"))
state = jax.jit(jax.vmap(init))(jnp.broadcast_to(jax.random.key(1), MEMBERS), hyper)
step = jax.jit(jax.vmap(step), donate_argnums=0)

total = jnp.zeros(MEMBERS)
for _ in range(config.num_updates):
    state, metrics = step(state)
    total += metrics["episode_return"]
mean = total / config.num_updates  # over the whole run: who learns early is better than who learns late
best, worst = int(mean.argmax()), int(mean.argmin())
for name, member in (("worst", worst), ("best", best)):
    words = ", ".join(f"{key} {getattr(hyper, key)[member]:.2g}" for key in hyper._fields[:2])
    print(f"population: {name} member {member}: mean return {mean[member]:.2f}, {words}")
