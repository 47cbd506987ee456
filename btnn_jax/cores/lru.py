"""The linear recurrent unit (Orvieto et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import Array, lax

from btnn_jax.cores.core import Layers
from btnn_jax.layers import LayerNorm, Linear
from btnn_jax.ops.linear_recurrence import linear_recurrence
from btnn_jax.ops.sequence import within

__all__ = ["LRUNetwork"]


class _LRULayer(nn.Module):
    size: int
    r_min: float
    r_max: float
    max_phase: float
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Array, state: tuple[Array, Array], resets: Array | None, lengths: Array | None
    ) -> tuple[Array, tuple[Array, Array]]:
        dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": self.param_dtype}
        running = None if lengths is None else within(lengths, len(x))[..., None]
        x = (x if running is None else jnp.where(running, x, 0)).astype(dtype)
        if x.shape[-1] != self.size:
            x = Linear(self.size, name="embed", **types)(x)
        y, state = self._recurrence(LayerNorm((-1,), 1e-6, name="norm", **types)(x), state, resets, lengths)
        left, right = jnp.split(Linear(2 * self.size, name="gate", **types)(nn.gelu(y)), 2, axis=-1)
        y = x + left * nn.sigmoid(right)
        return (y if running is None else jnp.where(running, y, 0)), state

    def _recurrence(
        self, x: Array, state: tuple[Array, Array], resets: Array | None, lengths: Array | None
    ) -> tuple[Array, tuple[Array, Array]]:
        """The linear recurrent unit itself, real `[T, B, size]` to real."""
        size, normal = self.size, nn.initializers.normal
        nu_log = self.param("nu_log", self._start_nu, (size,), self.param_dtype)
        theta_log = self.param("theta_log", self._start_theta, (size,), self.param_dtype)
        gamma_log = self.param("gamma_log", lambda _: _gamma_log(nu_log))
        # Real and imaginary parts side by side, so that each is one real product.
        kernel_in = self.param("kernel_in", normal((2 * size) ** -0.5), (size, 2 * size), self.param_dtype)
        kernel_out = self.param("kernel_out", normal(size**-0.5), (2 * size, size), self.param_dtype)
        skip = self.param("skip", normal(1.0), (size,), self.param_dtype)

        nu, theta, gamma = (jnp.exp(p.astype(jnp.float32)) for p in (nu_log, theta_log, gamma_log))
        decay = jnp.exp(lax.complex(-nu, theta))
        kernel_in, kernel_out, skip = (p.astype(x.dtype) for p in (kernel_in, kernel_out, skip))
        u = jnp.matmul(x, kernel_in, preferred_element_type=jnp.float32) * jnp.tile(gamma, 2)[None, None]
        h, last = linear_recurrence(
            decay, lax.complex(*jnp.split(u, 2, axis=-1)), lax.complex(*state), resets=resets, lengths=lengths
        )
        parts = jnp.concatenate([h.real, h.imag], axis=-1).astype(x.dtype)
        return parts @ kernel_out + skip[None, None] * x, (last.real, last.imag)

    def _start_nu(self, key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
        square = jax.random.uniform(key, shape, jnp.float32, self.r_min**2, self.r_max**2)
        return jnp.log(-0.5 * jnp.log(square)).astype(dtype)

    def _start_theta(self, key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
        return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1e-6, self.max_phase)).astype(dtype)


def _gamma_log(nu_log: Array) -> Array:
    """Logarithm of `sqrt(1 - |decay|^2)`, which gives the state the variance of its inputs."""
    square = jnp.exp(-2 * jnp.exp(nu_log.astype(jnp.float32)))
    return (0.5 * jnp.log1p(-square)).astype(nu_log.dtype)


class LRUNetwork(Layers):
    """Blocks of linear recurrent units: norm, recurrence and gated linear unit, with a residual connection.

        decay = exp(-exp(nu) + i exp(theta))
        h_t = decay * h_{t-1} + exp(gamma) * (B x_t),   y_t = Re(C h_t) + D * x_t

    Orvieto et al. (2023), "Resurrecting Recurrent Neural Networks for Long Sequences", arXiv:2303.06349, section 3 and
    appendix A, initialisation included: eigenvalues uniform on the ring between `r_min` and `r_max`. A linear layer
    embeds inputs of another size.

    The state is the real and the imaginary part of h, each float32 `[B, H]`, for each layer.

    Attributes:
      layers: size of each block, and of its complex state.
      dropout_rate: dropped share of each block's output, stream `dropout`.
      r_min: smallest absolute value of an eigenvalue at the start.
      r_max: largest one, below 1.
      max_phase: largest angle of an eigenvalue at the start, in radians.
      dtype: type of computation; the recurrence is complex64.
      param_dtype: type of the parameters.
    """

    r_min: float = 0.9
    r_max: float = 0.999
    max_phase: float = 2 * math.pi

    @nn.nowrap
    def make_layer(self, size: int, **fields: Any) -> nn.Module:
        """One block."""
        if not 0 < self.r_min < self.r_max < 1:
            raise ValueError(f"0 < r_min < r_max < 1 must hold, got {self.r_min} and {self.r_max}")
        return _LRULayer(size, self.r_min, self.r_max, self.max_phase, **fields)

    @nn.nowrap
    def layer_state(self, size: int, batch_size: int) -> tuple[Array, Array]:
        """Zeros `[B, H]`, real and imaginary."""
        zeros = jnp.zeros((batch_size, size), jnp.float32)
        return zeros, zeros
