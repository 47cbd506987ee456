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
    """Times compiling a bank, of the peer's number of channels in `peer`."""

    def compiler(channels: int) -> Program:
        module, params, x = _bank(channels, 4)
        lowered = jax.jit(jax.grad(partial(_loss, module))).lower(params, x)

        def compile_anew() -> None:
            lowered.compile()

        return compile_anew

    return compiler(channels), compiler(peer_channels)


def _kernels(kernels: int) -> tuple[Program, Program]:
    """What each kernel of a second layer looks for, in one call and one after the other."""
    encoder = Conv2DEncoder(((16, (3, 3), (2, 2)), (kernels, (3, 3), (2, 2))))
    shape = (12, 12, 3)
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, *shape)))
    monitor = KernelMonitor(lambda x: encoder.apply(variables, x)[-1], shape)
    start = jax.random.uniform(jax.random.key(1), shape)

    def one_by_one() -> Any:
        return [monitor.fit(None, k, start=start) for k in range(kernels)]

    return lambda: monitor.fit_all(None, start=start), one_by_one


_LOOP = "a Python loop of autoencoders"

CASES = (
    Case("3 channel-wise autoencoders, gradient, B=16", _LOOP, lambda: _channel_wise(3, 16)),
    Case("16 channel-wise autoencoders, gradient, B=16", _LOOP, lambda: _channel_wise(16, 16), 1.5),
    Case("3 channel-wise autoencoders, gradient, B=64", _LOOP, lambda: _channel_wise(3, 64)),
    Case("16 channel-wise autoencoders, gradient, B=64", _LOOP, lambda: _channel_wise(16, 64), 1.0),
    Case("compiling 16 channel-wise autoencoders", "compiling 3", lambda: _compilation(16, 3), 0.77),
    Case("what 64 kernels look for, 12x12", "64 calls of fit", lambda: _kernels(64), 10.0),
)
