"""Inputs that excite each kernel of a convolution layer most, by gradient ascent."""

from __future__ import annotations

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from btnn_jax.ops.categorical import one_hot

__all__ = ["KernelMonitor"]


class KernelMonitor:
    """Finds the input that excites a kernel most, by gradient ascent on its mean activation.

        x <- blur((1 - l2) (x + step g / (rms(g) + 1e-5))),  g = d/dx mean over h, w of layer_fn(x)[h, w, kernel]

    Erhan et al. (2009), "Visualizing Higher-Layer Features of a Deep Network", section 3; `l2` and `blur` keep
    pictures natural: Yosinski et al. (2015), "Understanding Neural Networks Through Deep Visualization",
    section 3. The loop of ascent is one compiled program, whatever the kernel, start and settings.

    Args:
      layer_fn: maps `[B, *input_shape]` to the layer's output `[B, h, w, C]`, each input by itself.
      input_shape: shape of one input, `(H, W, C)`, or `(T, 1, C)` for a signal.

    Raises:
      ValueError: if `input_shape` or the layer's output has another number of axes.

    >>> def layer_fn(x):  # two kernels: the sum and the difference of two channels
    ...     return jnp.stack([x.sum(-1), x[..., 0] - x[..., 1]], axis=-1)
    >>> monitor = KernelMonitor(layer_fn, (5, 1, 2))
    >>> monitor.fit_all(jax.random.key(0), step=0.1).shape
    (2, 5, 1, 2)
    """

    def __init__(self, layer_fn: Callable[[Array], Array], input_shape: tuple[int, int, int]):
        self.layer_fn, self.input_shape = layer_fn, tuple(input_shape)
        if len(self.input_shape) != 3:
            raise ValueError(f"input_shape must be (H, W, C), got {self.input_shape}")
        inputs = jax.ShapeDtypeStruct((1, *self.input_shape), jnp.float32)
        output = jax.eval_shape(layer_fn, inputs).shape
        if len(output) != 4 or output[0] != 1:
            raise ValueError(f"layer_fn must map {inputs.shape} to [1, h, w, C], got {output}")
        self.num_kernels: int = output[-1]
        self._fit = jax.jit(self._ascend)
        self._fit_all = jax.jit(jax.vmap(self._ascend, in_axes=(0, 0, None, None, None, None)))

    def fit(
        self,
        key: Array | None,
        kernel_index: ArrayLike,
        step: ArrayLike = 1e-3,
        num_steps: ArrayLike = 40,
        start: Array | None = None,
        *,
        l2: ArrayLike = 0.0,
        blur: ArrayLike = 0.0,
    ) -> Array:
        """The input that excites one kernel.

        Args:
          key: a typed random key, consumed; without use if there is a start.
          kernel_index: which kernel, from 0.
          step: length of a step; the gradient is divided by its root mean square.
          num_steps: number of steps.
          start: `[*input_shape]`; None for uniform noise between 0 and 1.
          l2: share of the signal lost in each step.
          blur: standard deviation in pixels of the Gaussian blur over height and width after each step.

        Returns:
          float32 `[*input_shape]`.

        Raises:
          ValueError: if there is neither key nor start, or the start has the wrong shape.
          TypeError: if the index is not a whole number.
          IndexError: if there is no such kernel.
        """
        if not isinstance(kernel_index, jax.core.Tracer):
            try:
                kernel_index = operator.index(kernel_index)  # type: ignore[arg-type]
            except TypeError:
                raise TypeError(f"kernel_index must be a whole number, got {kernel_index!r}") from None
            if not 0 <= kernel_index < self.num_kernels:
                raise IndexError(f"the layer has kernels 0 to {self.num_kernels - 1}, got {kernel_index}")
        return self._fit(self._start(key, start), kernel_index, step, num_steps, l2, blur)

    def fit_all(
        self,
        key: Array | None,
        step: ArrayLike = 1e-3,
        num_steps: ArrayLike = 40,
        start: Array | None = None,
        *,
        l2: ArrayLike = 0.0,
        blur: ArrayLike = 0.0,
    ) -> Array:
        """The inputs that excite each kernel, `[kernels, *input_shape]`, in one call: see `fit`.

        All start from the same noise or `start [*input_shape]`, so that what differs is of the kernels; a start
        `[kernels, *input_shape]` is one of each. Entry k equals `fit(key, k, ...)`.
        """
        signals = self._start(key, start, (self.num_kernels, *self.input_shape))
        kernels = jnp.arange(self.num_kernels)
        return self._fit_all(signals, kernels, step, num_steps, l2, blur)

    def _start(self, key: Array | None, start: Array | None, shape: tuple[int, ...] | None = None) -> Array:
        shape = self.input_shape if shape is None else shape
        if start is None:
            if key is None:
                raise ValueError("a fit needs a key to draw its start, or a start")
            start = jax.random.uniform(key, self.input_shape)
        if start.shape not in (self.input_shape, shape):
            raise ValueError(f"start must have shape {self.input_shape} or {shape}, got {start.shape}")
        return jnp.broadcast_to(jnp.asarray(start, jnp.float32), shape)

    def _ascend(
        self, signal: Array, kernel: Array, step: Array, num_steps: Array, l2: Array, blur: Array
    ) -> Array:
        def activation(signal: Array) -> Array:
            activations = self.layer_fn(signal[None]).astype(jnp.float32).mean((0, 1, 2))
            return jnp.vdot(activations, one_hot(kernel, (self.num_kernels,)))

        rows, columns = (_gaussian(size, blur) for size in self.input_shape[:2])

        def ascend(_: int, signal: Array) -> Array:
            gradient = jax.grad(activation)(signal)
            rms = jnp.sqrt(jnp.mean(jnp.square(gradient)))
            signal = (1 - l2) * (signal + step * gradient / (rms + 1e-5))
            return jnp.einsum("ih,jw,hwc->ijc", rows, columns, signal, precision="highest")

        return jax.lax.fori_loop(0, num_steps, ascend, signal)


def _gaussian(size: int, deviation: Array) -> Array:
    """`[size, size]`: weights of a Gaussian blur, the identity for a deviation of 0."""
    places = jnp.arange(size, dtype=jnp.float32)
    squares = jnp.square(places[:, None] - places[None, :])
    weights = jnp.exp(-squares / jnp.maximum(2 * deviation**2, 1e-6))
    return weights / weights.sum(axis=1, keepdims=True)
