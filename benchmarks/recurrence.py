"""The LSTM against flax's over 20 steps, and the pixel-change targets against their plain definition."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.harness import Case, Program
from btnn_jax.networks import LSTMNetwork
from btnn_jax.ops.pixel_change import pixel_change_2d_estimator

SIZE = 256


class FlaxLSTM(nn.Module):
    """Stacked `RNN(OptimizedLSTMCell)`."""

    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs all layers from a state of zeros."""
        for _ in range(self.depth):
            x = nn.RNN(nn.OptimizedLSTMCell(SIZE), time_major=True)(x)
        return x


def _program(
    module: nn.Module, inputs: tuple[Any, ...], call: Callable[..., jax.Array], gradient: bool
) -> Program:
    params = module.init(jax.random.key(1), *inputs)
    run = (lambda p, *a: jnp.sum(jnp.square(call(p, *a)))) if gradient else call
    compiled = jax.jit(jax.value_and_grad(run, argnums=(0, 1)) if gradient else run)
    return lambda: compiled(params, *inputs)


def lstm(T: int, B: int, depth: int, gradient: bool) -> tuple[Program, Program]:
    x = jax.random.normal(jax.random.key(0), (T, B, SIZE))
    ours, peer = LSTMNetwork((SIZE,) * depth), FlaxLSTM(depth)
    return (
        _program(ours, (x, ours.initial_state(B)), lambda p, x, s: ours.apply(p, x, s)[0], gradient),
        _program(peer, (x,), peer.apply, gradient),
    )


def plain_pixel_change(state: jax.Array, last_state: jax.Array) -> jax.Array:
    change = jnp.abs(state.astype(jnp.float32) - last_state.astype(jnp.float32))
    return nn.avg_pool(change[..., 1:-1, 1:-1, :].mean(-1, keepdims=True), (4, 4), (4, 4), "SAME")


def pixel_change(dtype: Any) -> tuple[Program, Program]:
    frames = jax.random.randint(jax.random.key(0), (2, 320, 84, 84, 3), 0, 256).astype(dtype)
    ours = jax.jit(functools.partial(pixel_change_2d_estimator, stride=(4, 4)))
    peer = jax.jit(plain_pixel_change)
    return lambda: ours(*frames), lambda: peer(*frames)


CASES = [
    *(
        Case(
            f"LSTM {SIZE}, T=20, B={B}, {what}",
            "flax RNN(OptimizedLSTMCell)",
            functools.partial(lstm, 20, B, 1, gradient),
            floor,
        )
        for what, gradient, floors in (
            ("forward", False, (None, None, None)),
            ("forward + backward", True, (1.8, 1.4, 1.0)),
        )
        for B, floor in zip((1, 16, 64), floors, strict=True)
    ),
    *(
        Case(
            f"two LSTMs, T=20, B={B}, forward + backward",
            "flax RNN(OptimizedLSTMCell)",
            functools.partial(lstm, 20, B, 2, True),
        )
        for B in (1, 16, 64)
    ),
    Case(
        "LSTM 256, acting, T=1, B=64", "flax RNN(OptimizedLSTMCell)", functools.partial(lstm, 1, 64, 1, False)
    ),
    Case(
        "pixel change, 320 uint8 frames 84x84x3",
        "mean of floats, avg_pool",
        functools.partial(pixel_change, jnp.uint8),
    ),
    Case(
        "pixel change, 320 float frames 84x84x3",
        "mean of floats, avg_pool",
        functools.partial(pixel_change, jnp.float32),
    ),
]
