"""Autoencoders: a bank of one per channel against a loop of them, and what all kernels of a layer look for."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Case, Program
from btnn_jax.ae import ChannelWiseConv2DAutoencoder, Conv2DAutoencoder, Conv2DEncoder, KernelMonitor


def _loss(module: Any, params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(module.apply({"params": params}, x).y_hat - x))


def _bank(channels: int, batch: int) -> tuple[Any, Any, jax.Array]:
    module = ChannelWiseConv2DAutoencoder()
    x = jax.random.normal(jax.random.key(1), (batch, 30, 1, channels))
    return module, module.init(jax.random.key(0), x)["params"], x


def _channel_wise(channels: int, batch: int) -> tuple[Program, Program]:
    module, params, x = _bank(channels, batch)
    ours = jax.jit(jax.grad(partial(_loss, module)))
    separate = [jax.tree.map(lambda leaf, c=c: leaf[c], params["channels"]) for c in range(channels)]
    inputs = [x[..., c : c + 1] for c in range(channels)]

    @jax.jit
    def peer(separate: Any, inputs: Any) -> Any:
        one = jax.grad(partial(_loss, Conv2DAutoencoder()))
        return [one(p, x) for p, x in zip(separate, inputs, strict=True)]

    return lambda: ours(params, x), lambda: peer(separate, inputs)


def _compilation(channels: int, peer_channels: int) -> tuple[Program, Program]:
    """Tracing and compiling a bank's gradient, of `channels` and of `peer_channels`."""

    def compiler(channels: int) -> Program:
        module, params, x = _bank(channels, 4)

        def compile_anew() -> None:
            jax.jit(lambda p, x: jax.grad(partial(_loss, module))(p, x)).lower(params, x).compile()

        return compile_anew

    return compiler(channels), compiler(peer_channels)


def _kernels(kernels: int, *, dispatch_steps: bool) -> tuple[Program, Program]:
    """What each kernel of a layer looks for, in one call and one after the other."""
    encoder, shape = Conv2DEncoder(((kernels, (3, 1), (2, 1)),)), (30, 1, 3)
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, *shape)))
    monitor = KernelMonitor(lambda x: encoder.apply(variables, x)[-1], shape)
    start = jax.random.uniform(jax.random.key(1), shape)

    def one_by_one() -> Any:
        return [monitor.fit(None, k, start=start) for k in range(kernels)]

    def step_by_step() -> Any:
        signals = []
        for k in range(kernels):
            signal = start
            for _ in range(40):
                signal = monitor.fit(None, k, num_steps=1, start=signal)
            signals.append(signal)
        return signals

    return lambda: monitor.fit_all(None, start=start), step_by_step if dispatch_steps else one_by_one


_LOOP = "a Python loop of autoencoders"

CASES = (
    Case("3 channel-wise autoencoders, gradient, B=16", _LOOP, lambda: _channel_wise(3, 16)),
    Case("16 channel-wise autoencoders, gradient, B=16", _LOOP, lambda: _channel_wise(16, 16), 1.5),
    Case("3 channel-wise autoencoders, gradient, B=64", _LOOP, lambda: _channel_wise(3, 64)),
    Case("16 channel-wise autoencoders, gradient, B=64", _LOOP, lambda: _channel_wise(16, 64), 1.0),
    Case("compiling 16 channel-wise autoencoders", "compiling 3", lambda: _compilation(16, 3), 0.77),
    Case("what 64 kernels look for", "64 calls of fit", lambda: _kernels(64, dispatch_steps=False), 10.0),
    Case("what 64 kernels look for", "a call per step", lambda: _kernels(64, dispatch_steps=True)),
)
