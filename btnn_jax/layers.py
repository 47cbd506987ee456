"""Single layers: linear, noisy linear, convolutions; and sampling of one-hot actions.

Layers take any number of leading axes, so `[T, B, ...]` goes in as it is. Convolutions are channels-last.
`dtype` is the type of computation (None: that of inputs and parameters), `param_dtype` that of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import Array

from btnn_jax.ops.convolution import conv1d, conv2d, deconv2d, depthwise_conv2d
from btnn_jax.ops.resize import fused_is_cheaper, resize2d, resize_conv2d

__all__ = [
    "Conv1D",
    "Conv2D",
    "Deconv2D",
    "DepthwiseConv2D",
    "LayerNorm",
    "Linear",
    "NoisyLinear",
    "ResizeConv2D",
    "categorical_sample",
    "noisy_linear",
]

# A forward pass alone makes its noisy kernel where that has at most this many times the elements of inputs and outputs;
# where it has more, two products with its factors are cheaper.
_MATERIALISE_UP_TO = 3

# Each input channel has its own filters, so it is a batch of the initialisation and not part of the fan.
_depthwise_glorot_uniform = nn.initializers.variance_scaling(
    1.0, "fan_avg", "uniform", in_axis=(), out_axis=-1, batch_axis=-2
)


def categorical_sample(key: jax.Array, logits: jax.Array, depth: int | None = None) -> jax.Array:
    """Samples a class from logits and returns it one-hot.

    Args:
      key: a typed random key, consumed.
      logits: `[N..., A]` unnormalised log-probabilities, read as float32.
      depth: length of the one-hot axis, at least `A`; None for `A`.

    Returns:
      `[N..., depth]` float32.

    Raises:
      ValueError: if `depth` is less than `A`.

    >>> import jax
    >>> categorical_sample(jax.random.key(0), jax.numpy.array([-1e9, 0.0, -1e9]))
    Array([0., 1., 0.], dtype=float32)
    """
    num_classes = logits.shape[-1]
    depth = num_classes if depth is None else depth
    if depth < num_classes:
        raise ValueError(f"depth must be at least the number of logits, {num_classes}; got {depth}.")
    # The Gumbel noise has the type of the logits, and that of bfloat16 is too coarse for rare classes.
    sample = jax.random.categorical(key, logits.astype(jnp.float32))
    return jax.nn.one_hot(sample, depth, dtype=jnp.float32)


class Linear(nn.Module):
    """`y = x @ kernel + bias` over the last axis, `[N..., D] -> [N..., size]`.

    >>> import jax
    >>> layer = Linear(4)
    >>> x = jax.numpy.ones((2, 3, 5))
    >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
    (2, 3, 4)
    """

    size: int
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N..., D]` to `[N..., size]`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.size), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.size,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _add_bias(x @ kernel, bias)


def _add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _signed_sqrt(eps: jax.Array) -> jax.Array:
    return jnp.sign(eps) * jnp.sqrt(jnp.abs(eps))


def noisy_linear(
    x: jax.Array, params: Mapping[str, jax.Array], eps_in: jax.Array, eps_out: jax.Array
) -> jax.Array:
    """A linear map whose weights carry factorised Gaussian noise.

        kernel = kernel_mu + kernel_sigma * outer(f(eps_in), f(eps_out)),  f(e) = sign(e) sqrt(|e|)
        bias   = bias_mu   + bias_sigma * f(eps_out)

    Fortunato et al. (2017), "Noisy Networks for Exploration", section 3, equations 9 to 11.

    Args:
      x: `[N..., D]` inputs.
      params: `kernel_mu`, `kernel_sigma` `[D, size]` and, both or neither, `bias_mu`, `bias_sigma` `[size]`.
      eps_in: standard normals, `[D]` for one noise that all examples share, `[N..., D]` for one per example
        (no kernel per example is ever made).
      eps_out: standard normals, `[size]` or `[N..., size]` likewise.

    Returns:
      `[N..., size]`.

    Raises:
      ValueError: if the noise has neither of the two shapes, or the parameters are not of these names and shapes.

    >>> import jax.numpy as jnp
    >>> params = {"kernel_mu": jnp.ones((2, 1)), "kernel_sigma": jnp.ones((2, 1))}
    >>> noisy_linear(jnp.ones((3, 2)), params, jnp.array([4.0, -1.0]), jnp.array([9.0]))
    Array([[5.], [5.], [5.]], dtype=float32)
    """
    kernel, bias = (x.shape[-1], *eps_out.shape[-1:]), eps_out.shape[-1:]
    kernels = {"kernel_mu": kernel, "kernel_sigma": kernel}
    biases = {"bias_mu": bias, "bias_sigma": bias}
    given = {name: array.shape for name, array in params.items()}
    if given not in (kernels, kernels | biases):
        raise ValueError(
            f"params must have the shapes {kernels} and, both or neither, {biases} for x {x.shape} and eps_out "
            f"{eps_out.shape}; got {given}."
        )
    mu, sigma = params["kernel_mu"], params["kernel_sigma"]
    in_size, size = mu.shape
    lead = x.shape[:-1]
    if (eps_in.shape, eps_out.shape) not in (((in_size,), (size,)), ((*lead, in_size), (*lead, size))):
        raise ValueError(
            f"eps_in and eps_out must be {(in_size,)} and {(size,)} (shared) or {(*lead, in_size)} and "
            f"{(*lead, size)} (per example); got {eps_in.shape} and {eps_out.shape}."
        )
    f_in, f_out = _signed_sqrt(eps_in), _signed_sqrt(eps_out)
    product = _shared_noise_product if eps_in.ndim == 1 else _factored_product
    y = product(x, mu, sigma, f_in, f_out)
    if "bias_mu" not in params:
        return y
    bias_mu, bias_sigma = (jnp.broadcast_to(params[name], f_out.shape) for name in biases)
    return _add_bias(y, bias_mu + bias_sigma * f_out)


def _factored_product(
    x: jax.Array, mu: jax.Array, sigma: jax.Array, f_in: jax.Array, f_out: jax.Array
) -> jax.Array:
    """`x @ (mu + sigma * outer(f_in, f_out))` for one noise or one per example; no kernel is made."""
    f_in, f_out = jnp.broadcast_to(f_in, x.shape), jnp.broadcast_to(f_out, (*x.shape[:-1], mu.shape[1]))
    return x @ mu + ((x * f_in) @ sigma) * f_out


def _materialised_product(
    x: jax.Array, mu: jax.Array, sigma: jax.Array, f_in: jax.Array, f_out: jax.Array
) -> jax.Array:
    return x @ (mu + sigma * jnp.outer(f_in, f_out))


@jax.custom_jvp
def _shared_noise_product(
    x: jax.Array, mu: jax.Array, sigma: jax.Array, f_in: jax.Array, f_out: jax.Array
) -> jax.Array:
    """The same for one noise, in whichever way is faster; where derivatives are asked for, that is the kernel."""
    rows = math.prod(x.shape[:-1])
    factored = mu.size > _MATERIALISE_UP_TO * rows * sum(mu.shape)
    return (_factored_product if factored else _materialised_product)(x, mu, sigma, f_in, f_out)


@_shared_noise_product.defjvp
def _shared_noise_product_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(_materialised_product, primals, tangents)


class NoisyLinear(nn.Module):
    """A linear layer with learned, factorised Gaussian parameter noise: see `noisy_linear`.

    Fortunato et al. (2017), "Noisy Networks for Exploration", sections 3 and 3.2. Each layer draws its own
    noise from the stream `noise`; an `apply` with the same key draws the same again, so it can be held for a
    rollout. Within one `apply` every call of a layer draws anew: what is to share noise and is computed in two calls,
    such as the two sides of a ratio of policies, needs an `apply` each, with the same key.

    Attributes:
      size: number of outputs.
      use_bias: whether there is a (noisy) bias.
      sigma0: initial sigma times sqrt(D).
      noise: "shared" draws one noise for all leading axes, "per_example" one for each of their entries.
      deterministic: use the means alone; here or in the call.
      dtype: type of computation.
      param_dtype: type of parameters.

    >>> import jax
    >>> layer = NoisyLinear(4)
    >>> x = jax.numpy.ones((3, 5))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply(variables, x, rngs={"noise": jax.random.key(1)}).shape
    (3, 4)
    """

    size: int
    use_bias: bool = True
    sigma0: float = 0.5
    noise: str = "shared"
    deterministic: bool | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """Maps `[N..., D]` to `[N..., size]`; noisy unless `deterministic` says otherwise."""
        if self.noise not in ("shared", "per_example"):
            raise ValueError(f'noise must be "shared" or "per_example"; got {self.noise!r}.')
        if self.deterministic is None and deterministic is None:
            deterministic = False
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)

        in_size = x.shape[-1]
        bound = in_size**-0.5
        shapes = {"kernel": (in_size, self.size)} | ({"bias": (self.size,)} if self.use_bias else {})

        def mu_init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        params = {}
        for name, shape in shapes.items():
            params[f"{name}_mu"] = self.param(f"{name}_mu", mu_init, shape, self.param_dtype)
            sigma_init = nn.initializers.constant(self.sigma0 * bound)
            params[f"{name}_sigma"] = self.param(f"{name}_sigma", sigma_init, shape, self.param_dtype)
        names = list(params)
        x, *values = nn.dtypes.promote_dtype(x, *params.values(), dtype=self.dtype)
        params = dict(zip(names, values, strict=True))

        if deterministic:
            return _add_bias(x @ params["kernel_mu"], params.get("bias_mu"))
        lead = x.shape[:-1] if self.noise == "per_example" else ()
        eps = jax.random.normal(self.make_rng("noise"), (*lead, in_size + self.size), x.dtype)
        return noisy_linear(x, params, eps[..., :in_size], eps[..., in_size:])


class Conv2D(nn.Module):
    """A convolution of images, `[N..., H, W, C] -> [N..., h, w, num_filters]`.

    Kernel `[kh, kw, C, num_filters]`.

    >>> import jax
    >>> layer = Conv2D(8, stride=(2, 2))
    >>> x = jax.numpy.ones((2, 13, 11, 3))
    >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
    (2, 7, 6, 8)
    """

    num_filters: int
    filter_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    pad: str = "SAME"
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N..., H, W, C]` to `[N..., h, w, num_filters]`."""
        shape = (*self.filter_size, x.shape[-1], self.num_filters)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias_shape = (self.num_filters,)
        bias = self.param("bias", self.bias_init, bias_shape, self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _add_bias(conv2d(x, kernel, self.stride, self.pad), bias)


class Conv1D(nn.Module):
    """A convolution of sequences `[N..., L, C] -> [N..., l, num_filters]`, kernel `[k, C, num_filters]`."""

    num_filters: int
    filter_size: int = 3
    stride: int = 2
    pad: str = "SAME"
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N..., L, C]` to `[N..., l, num_filters]`."""
        shape = (self.filter_size, x.shape[-1], self.num_filters)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias_shape = (self.num_filters,)
        bias = self.param("bias", self.bias_init, bias_shape, self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _add_bias(conv1d(x, kernel, self.stride, self.pad), bias)


class ResizeConv2D(nn.Module):
    """A `Conv2D` of a resized image, `[N..., H, W, C] -> [N..., *shape, num_filters]`.

    Attributes:
      num_filters: number of output channels.
      filter_size: height and width of the kernel.
      pad: "SAME" or "VALID"; with "VALID" the image is first made larger by what the convolution takes off.
      resize_method: see `btnn_jax.ops.resize.resize2d`.
      dtype: type of computation.
      param_dtype: type of parameters.
    """

    num_filters: int
    filter_size: tuple[int, int] = (3, 3)
    pad: str = "SAME"
    resize_method: str = "bilinear"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Resizes so that the convolution gives `shape`, and convolves."""
        kernel_shape, init = (*self.filter_size, x.shape[-1], self.num_filters), nn.initializers
        kernel = self.param("kernel", init.glorot_uniform(), kernel_shape, self.param_dtype)
        bias = self.param("bias", init.zeros, (self.num_filters,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if fused_is_cheaper(x.shape, kernel.shape, shape):
            y = resize_conv2d(x, kernel, shape, self.resize_method, self.pad)
        else:
            lost = (0, 0) if self.pad == "SAME" else [size - 1 for size in self.filter_size]
            x = resize2d(x, (shape[0] + lost[0], shape[1] + lost[1]), self.resize_method)
            y = conv2d(x, kernel, padding=self.pad)
        return y + jnp.broadcast_to(bias, y.shape)


class Deconv2D(nn.Module):
    """The transpose of a VALID convolution, `[N..., h, w, C] -> [N..., H, W, output_channels]`.

    `H = (h - 1) * stride + filter`; kernel `[kh, kw, C, output_channels]`.
    """

    output_channels: int
    filter_size: tuple[int, int] = (4, 4)
    stride: tuple[int, int] = (2, 2)
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N..., h, w, C]` to `[N..., H, W, output_channels]`."""
        shape = (*self.filter_size, x.shape[-1], self.output_channels)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias_shape = (self.output_channels,)
        bias = self.param("bias", self.bias_init, bias_shape, self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _add_bias(deconv2d(x, kernel, self.stride), bias)


class DepthwiseConv2D(nn.Module):
    """`num_filters` filters on each channel by itself, `[N..., H, W, C] -> [N..., h, w, C * num_filters]`.

    Output channel = input channel * num_filters + filter; kernel `[kh, kw, C, num_filters]`.
    """

    num_filters: int
    filter_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    pad: str = "SAME"
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = _depthwise_glorot_uniform
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[N..., H, W, C]` to `[N..., h, w, C * num_filters]`."""
        shape = (*self.filter_size, x.shape[-1], self.num_filters)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias_shape = (x.shape[-1] * self.num_filters,)
        bias = self.param("bias", self.bias_init, bias_shape, self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _add_bias(depthwise_conv2d(x, kernel, self.stride, self.pad), bias)


_EPSILON = float(np.finfo(np.float32).eps)


class LayerNorm(nn.Module):
    """Zero mean and unit variance over `axes` together, then one scale and shift per channel (the last axis).

    Ba et al. (2016), "Layer Normalization". Computed in float32, returned in `dtype` (None: that of the input). An
    input that does not vary beyond float32's rounding, such as a black image, gives zeros before the shift, and
    gradients as if its variance were 1.
    """

    axes: tuple[int, ...] = (-3, -2, -1)  # height, width and channels
    epsilon: float = 1e-12
    use_scale: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises `[..., C]`."""
        axes = {axis % x.ndim for axis in self.axes}
        y = x.astype(jnp.float32)
        # Relative to one of its own elements, the mean of a constant is that constant to the bit.
        first = jax.lax.stop_gradient(y[tuple(slice(1) if a in axes else slice(None) for a in range(y.ndim))])
        y = y - first
        mean = y.mean(self.axes, keepdims=True)
        y = y - mean
        # Not E[x^2] - E[x]^2, which cancels badly beside so small an epsilon.
        variance = jnp.square(y).mean(self.axes, keepdims=True)
        # What varies by no more than float32 rounds is constant. With zero variance, rsqrt(1e-12) would scale
        # gradients by 1e6 in every layer; divide by 1 instead.
        rounding = jnp.square(4 * _EPSILON * (first + mean))
        y = y * jax.lax.rsqrt(jnp.where(variance > rounding, variance + self.epsilon, 1))
        if self.use_scale:
            y = y * self._channels("scale", nn.initializers.ones, y)
        y = y + self._channels("bias", nn.initializers.zeros, y)
        return y.astype(self.dtype or x.dtype)

    def _channels(self, name: str, initializer: Initializer, y: Array) -> Array:
        values = self.param(name, initializer, y.shape[-1:], self.param_dtype)
        return jnp.broadcast_to(values.astype(jnp.float32), y.shape)
