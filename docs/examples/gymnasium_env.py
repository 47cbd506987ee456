"""An environment of Gymnasium, stepped on the host from inside of the compiled train step."""

import gymnasium
import jax

from btnn_jax import UnrealConfig, envs, make_unreal

env = envs.from_gymnasium(lambda: gymnasium.make("CartPole-v1", max_episode_steps=200))
config = UnrealConfig(num_envs=8, rollout_length=32, total_steps=8 * 32 * 4, minibatches=2, pc_weight=0)
train = make_unreal(config, env)
state = jax.jit(train.init)(jax.random.key(0))
step = jax.jit(train.step, donate_argnums=0)
for _ in range(config.num_updates):
    state, metrics = step(state)
    print(f"return {metrics['episode_return']:.1f}, entropy {metrics['entropy']:.2f}")
env.close()
