"""Several seeds at once: `vmap` of the train step makes them one program.

    python seeds.py

The command line does it with `btnn-jax train Catch-bsuite --seeds 4`.
"""

import jax

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.unreal import make_unreal

SEEDS = 4

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
state = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), SEEDS))
step = jax.jit(jax.vmap(step), donate_argnums=0)

for _ in range(config.num_updates):
    state, metrics = step(state)
returns = metrics["episode_return"]  # [SEEDS]
print(f"seeds: return {returns.mean():.2f} with deviation {returns.std():.2f} over {SEEDS} seeds")
