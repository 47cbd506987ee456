"""Convolutions: gradients in and outside a scan, forward passes, depthwise, transposed, many at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from benchmarks.harness import Case, Program
from btnn_jax.ops.convolution import conv2d, deconv2d, depthwise_conv2d

LAYOUT = ("NHWC", "HWIO", "NHWC")
LOOPS = 4
Stack = Callable[[Any, jax.Array], jax.Array]


def _flax_layer(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    layer = nn.Conv(kernel.shape[-1], kernel.shape[:2], (stride, stride), use_bias=False)
    return layer.apply({"params": {"kernel": kernel}}, x)


def _our_layer(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return conv2d(x, kernel, (stride, stride))


def _stack(
    layer: Callable[..., jax.Array], stride: int, kernels: Sequence[jax.Array], x: jax.Array
) -> jax.Array:
    for kernel in kernels:
        x = nn.elu(layer(x, kernel, stride))
    return x


def _kernels(channels: Sequence[int], *, filter_size: tuple[int, int] = (3, 3)) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(channels) - 1)
    pairs = itertools.pairwise(channels)
    initial = nn.initializers.lecun_normal()
    return [initial(key, (*filter_size, *pair)) for key, pair in zip(keys, pairs, strict=True)]


def _gradient(stack: Stack, kernels: Any, x: jax.Array) -> Any:
    return jax.grad(lambda kernels: jnp.mean(jnp.square(stack(kernels, x))))(kernels)


def _descend(stack: Stack, kernels: Any, xs: jax.Array) -> Any:
    """Gradient descent over the leading axis of `xs`, as in every PPO update."""

    def step(kernels: Any, x: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(lambda k, g: k - 1e-3 * g, kernels, _gradient(stack, kernels, x)), None

    return lax.scan(step, kernels, xs)[0]


ATARI = (84, (4, 32, 32, 64, 64), 2)
MINATAR = (10, (4, 16, 32), 1)


def _images(size: int, channels: int, batch: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (LOOPS, batch, size, size, channels))


def _in_a_scan(torso: tuple[int, tuple[int, ...], int], batch: int) -> tuple[Program, Program]:
    size, channels, stride = torso
    kernels, xs = _kernels(channels), _images(size, channels[0], batch)
    ours, flax = (jax.jit(partial(_descend, partial(_stack, f, stride))) for f in (_our_layer, _flax_layer))
    return lambda: ours(kernels, xs), lambda: flax(kernels, xs)


def _against_outside(torso: tuple[int, tuple[int, ...], int], batch: int) -> tuple[Program, Program]:
    size, channels, stride = torso
    kernels, xs = _kernels(channels), _images(size, channels[0], batch)
    stack = partial(_stack, _our_layer, stride)
    inside = jax.jit(partial(_descend, stack))
    once = jax.jit(lambda kernels, x: _descend(stack, kernels, x[None]))
    images = list(xs)

    def outside() -> Any:
        current = kernels
        for x in images:
            current = once(current, x)
        return current

    return lambda: inside(kernels, xs), outside


def _forward(torso: tuple[int, tuple[int, ...], int], batch: int) -> tuple[Program, Program]:
    size, channels, stride = torso
    kernels, x = _kernels(channels), _images(size, channels[0], batch)[0]
    ours, flax = (jax.jit(partial(_stack, f, stride)) for f in (_our_layer, _flax_layer))
    return lambda: ours(kernels, x), lambda: flax(kernels, x)


def _grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    flat = kernel.reshape(*kernel.shape[:2], 1, -1)
    groups = x.shape[-1]
    return lax.conv_general_dilated(
        x, flat, (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=groups
    )


def _transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layer = nn.ConvTranspose(kernel.shape[-1], kernel.shape[:2], (2, 2), "VALID", use_bias=False)
    return layer.apply({"params": {"kernel": kernel}}, x)


def _single(
    ours: Stack, peer: Stack, x: tuple[int, ...], kernel: tuple[int, ...], mode: str
) -> tuple[Program, Program]:
    args = tuple(
        jax.random.normal(k, s) for k, s in zip(jax.random.split(jax.random.key(0)), (kernel, x), strict=True)
    )

    def forward(function: Stack) -> Callable[..., Any]:
        return lambda kernel, x: function(x, kernel)

    def gradients(function: Stack) -> Callable[..., Any]:
        return jax.value_and_grad(lambda kernel, x: jnp.mean(jnp.square(function(x, kernel))), (0, 1))

    def scanned(function: Stack) -> Callable[..., Any]:
        def step(args: Any, _: None) -> tuple[Any, None]:
            return jax.tree.map(lambda a, g: a - 1e-3 * g, args, gradients(function)(*args)[1]), None

        return lambda *args: lax.scan(step, args, length=LOOPS)[0]

    wrap = {"forward": forward, "gradient": gradients, "gradient in a scan": scanned}[mode]
    first, second = jax.jit(wrap(ours)), jax.jit(wrap(peer))
    return lambda: first(*args), lambda: second(*args)


def _many(channels: int, batch: int) -> tuple[Program, Program]:
    """A 3-level encoder with its own weights per channel: one vmap against a Python loop."""
    one = _kernels((1, 32, 32, 32), filter_size=(3, 1))
    kernels = [jnp.stack([k * (1 + 0.01 * i) for i in range(channels)]) for k in one]
    x = jax.random.normal(jax.random.key(1), (channels, batch, 30, 1, 1))

    def encode(kernels: Any, x: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = nn.elu(conv2d(x, kernel, (2, 1)))
        return x

    def loop(kernels: Any, x: jax.Array) -> Any:
        return [_gradient(encode, [k[c] for k in kernels], x[c]) for c in range(channels)]

    ours = jax.jit(jax.vmap(partial(_gradient, encode)))
    peer = jax.jit(loop)
    return lambda: ours(kernels, x), lambda: peer(kernels, x)


_DEPTHWISE = partial(_single, depthwise_conv2d, _grouped, (16, 42, 42, 16), (3, 3, 16, 1))
_DECONV = partial(_single, deconv2d, _transposed, (20, 9, 9, 32), (4, 4, 32, 5))
_SCAN = "gradient in a scan"

CASES = (
    Case("84x84 torso, gradient in a scan, B=16", "nn.Conv in a scan", lambda: _in_a_scan(ATARI, 16), 10.0),
    Case("84x84 torso, gradient in a scan, B=64", "nn.Conv in a scan", lambda: _in_a_scan(ATARI, 64), 10.0),
    Case(
        "10x10 torso, gradient in a scan, B=1024",
        "nn.Conv in a scan",
        lambda: _in_a_scan(MINATAR, 1024),
        10.0,
    ),
    Case(
        "84x84 torso, gradient in a scan, B=16",
        "ours outside a scan",
        lambda: _against_outside(ATARI, 16),
        0.9,
    ),
    Case(
        "84x84 torso, gradient in a scan, B=64",
        "ours outside a scan",
        lambda: _against_outside(ATARI, 64),
        0.9,
    ),
    Case(
        "10x10 torso, gradient in a scan, B=1024",
        "ours outside a scan",
        lambda: _against_outside(MINATAR, 1024),
        0.9,
    ),
    Case("84x84 torso, forward, B=16", "nn.Conv", lambda: _forward(ATARI, 16), 1.0),
    Case("10x10 torso, forward, B=64", "nn.Conv", lambda: _forward(MINATAR, 64), 1.0),
    Case("depthwise 42x42x16, forward", "feature_group_count", lambda: _DEPTHWISE("forward"), 5.0),
    Case("depthwise 42x42x16, gradient", "feature_group_count", lambda: _DEPTHWISE("gradient"), 2.5),
    Case("depthwise 42x42x16, gradient in a scan", "feature_group_count", lambda: _DEPTHWISE(_SCAN), 2.5),
    Case("deconv 9x9x32, forward", "nn.ConvTranspose", lambda: _DECONV("forward")),
    Case("deconv 9x9x32, gradient", "nn.ConvTranspose", lambda: _DECONV("gradient"), 1.0),
    Case("deconv 9x9x32, gradient in a scan", "nn.ConvTranspose", lambda: _DECONV(_SCAN), 5.0),
    Case("3 channel-wise encoders, gradient, B=16", "a Python loop", lambda: _many(3, 16), 1.0),
    Case("16 channel-wise encoders, gradient, B=16", "a Python loop", lambda: _many(16, 16), 1.0),
)
