"""Autoencoders: a bank of one per channel against a loop of them, and what all kernels of a layer look for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.harness import Case, Program
from btnn_jax.ae import AutoencoderOutput, ChannelWiseConv2DAutoencoder, Conv2DAutoencoder, Conv2DEncoder
from btnn_jax.kernel_monitor import KernelMonitor

STEPS = 8


def _loss(module: Any, params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(module.apply({"params": params}, x).y_hat - x))


def _bank(channels: int, batch: int) -> tuple[Any, Any, jax.Array]:
    module = ChannelWiseConv2DAutoencoder()
    x = jax.random.normal(jax.random.key(1), (batch, 30, 1, channels))
    return module, module.init(jax.random.key(0), x)["params"], x


class Textbook(nn.Module):
    """`Conv2DAutoencoder()` on flax's layers and `jax.image.resize`, parameter for parameter."""

    @nn.compact
    def __call__(self, x: jax.Array) -> AutoencoderOutput:
        """Reconstructs signals `[B, T, 1, 1]`."""
        encoded, batch = [x], len(x)
        for _ in range(3):
            y = nn.Conv(32, (3, 1), (2, 1))(encoded[-1])
            norm = nn.LayerNorm(epsilon=1e-12, reduction_axes=(1, 2, 3), feature_axes=-1)
            encoded.append(nn.elu(norm(y)))
        z = nn.Dense(encoded[-1][0].size)(encoded[-1].reshape(batch, -1))
        y = z.reshape(encoded[-1].shape)
        for outer in encoded[-2::-1]:
            y = jax.image.resize(y, (batch, *outer.shape[1:3], 32), "bilinear")
            y = nn.elu(nn.Conv(32, (3, 1))(y))
        y_hat = nn.Conv(1, (3, 1))(y)
        return AutoencoderOutput(tuple(encoded[1:]), z, (y_hat,), y_hat, None)


def _descend(loss: Callable[..., jax.Array], params: Any, x: Any, *, steps: int) -> Any:
    """Parameters after so many steps of gradient descent in a scan, as `btnn-jax train-ae` takes them."""

    def step(params: Any, _: None) -> tuple[Any, None]:
        gradients = jax.grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients), None

    return jax.lax.scan(step, params, length=steps)[0]


def _channel_wise(channels: int, batch: int, one: nn.Module, *, scanned: bool) -> tuple[Program, Program]:
    """A bank against one autoencoder after the other, for each channel."""
    module, params, x = _bank(channels, batch)
    learn = partial(_descend, steps=STEPS) if scanned else lambda loss, *args: jax.grad(loss)(*args)
    inputs = [x[..., c : c + 1] for c in range(channels)]
    separate = [one.init(jax.random.key(c), inputs[c])["params"] for c in range(channels)]

    def size(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert size(params) == size(separate)

    def one_by_one(separate: Any, inputs: Any) -> Any:
        return sum(_loss(one, p, x) for p, x in zip(separate, inputs, strict=True))

    ours, peer = jax.jit(partial(learn, partial(_loss, module))), jax.jit(partial(learn, one_by_one))
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


def _bank_case(
    channels: int, batch: int, floor: float | None = None, *, textbook: bool, scanned: bool = False
) -> Case:
    one = Textbook() if textbook else Conv2DAutoencoder()
    return Case(
        f"{channels} channel-wise autoencoders, {f'{STEPS} steps in a scan' if scanned else 'gradient'}, B={batch}",
        "a Python loop, nn.Conv" if textbook else "a Python loop of ours",
        lambda: _channel_wise(channels, batch, one, scanned=scanned),
        floor,
    )


CASES = (
    _bank_case(3, 16, textbook=True),
    _bank_case(16, 16, 1.5, textbook=True),
    _bank_case(16, 16, textbook=True, scanned=True),
    _bank_case(3, 64, textbook=True),
    _bank_case(16, 64, 1.0, textbook=True),
    _bank_case(16, 64, textbook=True, scanned=True),
    _bank_case(16, 16, textbook=False),
    _bank_case(16, 16, textbook=False, scanned=True),
    _bank_case(16, 64, textbook=False),
    _bank_case(16, 64, textbook=False, scanned=True),
    Case("compiling 16 channel-wise autoencoders", "compiling 3", lambda: _compilation(16, 3), 0.77),
    Case("what 64 kernels look for", "64 calls of fit", lambda: _kernels(64, dispatch_steps=False), 10.0),
    Case("what 64 kernels look for", "a call per step", lambda: _kernels(64, dispatch_steps=True)),
)
