"""One learner on one device: `jit` of the train step, in a loop of your own.

python jit.py
"""

import jax

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.unreal import make_unreal

config = UnrealConfig(
    total_steps=60_000,
    num_envs=32,
    rollout_length=16,
    algorithm="a2c",
    learning_rate=5e-3,
    hidden=(64,),
    lstm=(),
    pc_weight=0,
    vr_weight=0,
    rp_weight=0,
)
init, step, *_ = make_unreal(config, envs.make("Catch-bsuite"))
state = jax.jit(init)(jax.random.key(0))
step = jax.jit(step, donate_argnums=0)  # the new state takes the old one's memory

for update in range(config.num_updates):
    state, metrics = step(state)
    if update % 30 == 0:
        print(f"update {update}: return {metrics['episode_return']:.2f}")
print(f"jit: return {metrics['episode_return']:.2f} after {config.total_steps} steps")
