"""NoisyLinear against the textbook form: split the key, draw, make the noisy kernel, multiply.

Both are called many times in one compiled program, each time with a key and inputs of its own, as in a rollout or in
the minibatches of an update: called one by one, waking the threads costs more than drawing the noise.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Case, Program
from btnn_jax.layers import NoisyLinear


def _plain(size: int, params: dict[str, jax.Array], x: jax.Array, key: jax.Array) -> jax.Array:
    key_in, key_out = jax.random.split(key)
    eps_in = jax.random.normal(key_in, (x.shape[-1],))
    eps_out = jax.random.normal(key_out, (size,))
    f_in, f_out = (jnp.sign(e) * jnp.sqrt(jnp.abs(e)) for e in (eps_in, eps_out))
    kernel = params["kernel_mu"] + params["kernel_sigma"] * jnp.outer(f_in, f_out)
    return x @ kernel + (params["bias_mu"] + params["bias_sigma"] * f_out)


def _ours(size: int, params: dict[str, jax.Array], x: jax.Array, key: jax.Array) -> jax.Array:
    return NoisyLinear(size).apply({"params": params}, x, rngs={"noise": key})


CALLS = 100


def _acting(layer: Any, params: Any, x: jax.Array, keys: jax.Array) -> jax.Array:
    return jax.lax.map(lambda now: layer(params, *now), (x, keys))


def _learning(layer: Any, params: Any, x: jax.Array, keys: jax.Array) -> Any:
    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(layer(params, x, key)))

    def learn(params: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        slopes, x_slopes = jax.grad(loss, (0, 1))(params, *now)
        return jax.tree.map(lambda p, slope: p - 0.01 * slope, params, slopes), x_slopes

    return jax.lax.scan(learn, params, (x, keys))


def _make(batch: int, size: int, learning: bool) -> tuple[Program, Program]:
    key, x_key, init_key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(x_key, (CALLS, batch, 256))
    keys = jax.random.split(key, CALLS)
    params = NoisyLinear(size).init(init_key, x[0])["params"]

    def program(layer: Any) -> Program:
        run = jax.jit(partial(_learning if learning else _acting, partial(layer, size)))
        return lambda: run(params, x, keys)

    return program(_ours), program(_plain)


def _case(mode: str, batch: int, size: int, floor: float) -> Case:
    learning = mode == "learning"
    return Case(
        name=f"noisy linear, {mode}, 256 to {size}, B={batch}",
        peer="materialise then multiply",
        make=lambda: _make(batch, size, learning),
        floor=floor,
    )


CASES = (
    *(_case("acting", batch, size, 1.0) for batch in (1, 16) for size in (256, 4)),
    *(_case("learning", batch, size, 1.0) for batch in (20, 256) for size in (256, 4)),
)
