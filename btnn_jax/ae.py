"""Convolutional autoencoders: plain, one per channel, and variational.

Modules take images `[N..., H, W, C]` or signals `[N..., T, 1, C]` with any number of leading axes, of any odd or
even size, and give reconstructions of exactly that shape. uint8 means pixels and is divided by 255.
`dtype` is the type of computation (None: that of inputs and parameters), `param_dtype` that of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import Array

from btnn_jax.kernel_monitor import KernelMonitor
from btnn_jax.layers import Conv2D, LayerNorm, Linear, ResizeConv2D

__all__ = [
    "AutoencoderOutput",
    "BetaVAEConv2D",
    "ChannelWiseConv2DAutoencoder",
    "Conv2DAutoencoder",
    "Conv2DDecoder",
    "Conv2DEncoder",
    "KernelMonitor",
    "encoded_shapes",
    "kl_to_standard_normal",
    "latent_traversal",
]

Shape = tuple[int, ...]
MakeLayer = Callable[..., nn.Module]  # a module's class, or a partial of one
LayerConfig = tuple[tuple[int, tuple[int, int], tuple[int, int]], ...]  # (num_filters, filter_size, stride)
_CONFIG: LayerConfig = ((32, (3, 1), (2, 1)),) * 3


class AutoencoderOutput(NamedTuple):
    """The output of an autoencoder. A channel-wise one has a further axis, of channels, first in every layer."""

    encoder_layers: tuple[Array, ...]  # outer to inner, each [N..., h, w, filters]
    z: Array  # [N..., latent], what the decoder starts from
    decoder_layers: tuple[
        Array, ...
    ]  # inner to outer, each [N..., h, w, filters], and the reconstruction last
    y_hat: Array  # float32 [N..., H, W, C], the reconstruction
    d_kl: Array | None  # float32 [N..., latent], in nats, of a variational autoencoder


def encoded_shapes(
    input_shape: Shape, layer_config: LayerConfig = _CONFIG, pad: str = "SAME"
) -> tuple[Shape, ...]:
    """Shapes `(H, W, C)` of an image and of each layer of its `Conv2DEncoder`, outer to inner.

    Args:
      input_shape: `(..., H, W, C)`.
      layer_config: `(num_filters, filter_size, stride)` of each layer.
      pad: "SAME" or "VALID".

    Raises:
      ValueError: if a layer leaves nothing of what it gets, there is no layer, or `pad` is unknown.

    >>> encoded_shapes((30, 1, 3))
    ((30, 1, 3), (15, 1, 32), (8, 1, 32), (4, 1, 32))
    """
    if pad not in ("SAME", "VALID"):
        raise ValueError(f'pad must be "SAME" or "VALID", got {pad!r}')
    if len(input_shape) < 3 or not layer_config:
        raise ValueError(
            f"expected images [..., H, W, C] and at least one layer, got {input_shape} and {layer_config}"
        )
    shapes = [tuple(input_shape[-3:])]
    for level, (num_filters, filter_size, stride) in enumerate(layer_config, 1):
        lost = (0, 0) if pad == "SAME" else tuple(n - 1 for n in filter_size)
        size = [-(-(n - m) // s) for n, m, s in zip(shapes[-1], lost, stride, strict=False)]
        if min(size) < 1:
            raise ValueError(
                f"level {level} of the encoder leaves nothing: a {pad} filter {tuple(filter_size)} with stride "
                f"{tuple(stride)} gets {shapes[-1]}; the levels before it have shapes {shapes}"
            )
        shapes.append((*size, num_filters))
    return tuple(shapes)


class Conv2DEncoder(nn.Module):
    """Layers of convolution, layer norm, ELU; returns what each gives, outer to inner.

    The norm takes mean and variance over H, W and C together (Ba et al. 2016, "Layer Normalization").

    Attributes:
      layer_config: `(num_filters, filter_size, stride)` of each layer.
      pad: "SAME" or "VALID".
      norm_epsilon: added to the variance where there is any, see `btnn_jax.networks.LayerNorm`; the default is that
        of BTGym.
      dtype: type of computation.
      param_dtype: type of the parameters.

    >>> encoder, x = Conv2DEncoder(), jnp.zeros([2, 30, 1, 3])
    >>> variables = encoder.init(jax.random.key(0), x)
    >>> [layer.shape for layer in encoder.apply(variables, x)]
    [(2, 15, 1, 32), (2, 8, 1, 32), (2, 4, 1, 32)]
    """

    layer_config: LayerConfig = _CONFIG
    pad: str = "SAME"
    norm_epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Maps `[N..., H, W, C]` to the features of each layer, shapes as `encoded_shapes` gives them."""
        encoded_shapes(x.shape, self.layer_config, self.pad)  # checks
        types = _types(self)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            scale = 255 if x.dtype == jnp.uint8 else 1
            x = x.astype(self.dtype or jnp.float32) / scale
        layers = []
        for k, (num_filters, filter_size, stride) in enumerate(self.layer_config, 1):
            convolution = Conv2D(num_filters, filter_size, stride, self.pad, name=f"conv_{k}", **types)
            norm = LayerNorm(epsilon=self.norm_epsilon, name=f"norm_{k}", **types)
            x = nn.elu(norm(convolution(x)))
            layers.append(x)
        return tuple(layers)


class Conv2DDecoder(nn.Module):
    """The way back of a `Conv2DEncoder`: each layer resizes, convolves with stride 1, and applies ELU.

    The k-th layer has the size of the k-th but last of `layer_shapes`, whatever the padding: before a VALID
    convolution features are resized to as much more as it takes away. A last convolution makes the input's
    channels.

    Attributes:
      layer_shapes: `(..., H, W, C)` of the image and of each layer of the encoder, outer to inner, as
        `encoded_shapes` gives them.
      layer_config: that of the encoder.
      pad: "SAME" or "VALID".
      resize_method: "bilinear", "nearest", "bicubic" or "area", see `btnn_jax.ops.resize.resize2d`.
      dtype: type of computation.
      param_dtype: type of the parameters.

    >>> decoder, z = Conv2DDecoder(encoded_shapes((30, 1, 3))), jnp.zeros([2, 4, 1, 32])
    >>> variables = decoder.init(jax.random.key(0), z)
    >>> [layer.shape for layer in decoder.apply(variables, z)]
    [(2, 8, 1, 32), (2, 15, 1, 32), (2, 30, 1, 32), (2, 30, 1, 3)]
    """

    layer_shapes: tuple[Shape, ...]
    layer_config: LayerConfig = _CONFIG
    pad: str = "SAME"
    resize_method: str = "bilinear"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> tuple[Array, ...]:
        """Maps the innermost features `[N..., h, w, c]` to those of each layer, the reconstruction last."""
        shapes = [tuple(shape[-3:]) for shape in self.layer_shapes]
        expected = encoded_shapes(shapes[0], self.layer_config, self.pad)
        if tuple(shapes) != expected or z.shape[-3:] != expected[-1]:
            raise ValueError(
                f"layer_shapes must be {expected} and z end in the last of them for layer_config "
                f"{self.layer_config} and pad {self.pad!r}, got {shapes} and z {z.shape}"
            )

        def convolve(x: Array, shape: Shape, *settings: Any, name: str) -> Array:
            layer = ResizeConv2D(*settings, self.resize_method, name=name, **_types(self))
            return layer(x, shape[:2])

        x, layers = z, []
        levels = zip(self.layer_config[::-1], shapes[-2::-1], strict=True)
        for k, ((num_filters, filter_size, _), shape) in enumerate(levels, 1):
            x = nn.elu(convolve(x, shape, num_filters, filter_size, self.pad, name=f"conv_{k}"))
            layers.append(x)
        filter_size = self.layer_config[0][1]
        return (*layers, convolve(x, shapes[0], shapes[0][-1], filter_size, "SAME", name="reconstruction"))


class Conv2DAutoencoder(nn.Module):
    """An autoencoder: `Conv2DEncoder`, a dense layer of the size of its innermost features, `Conv2DDecoder`.

    Attributes:
      layer_config: `(num_filters, filter_size, stride)` of each layer of the encoder, outer to inner.
      resize_method: "bilinear", "nearest", "bicubic" or "area".
      pad: "SAME" or "VALID".
      linear: the dense layer, `Linear` or another module with a `size`; noise is drawn from the stream `noise`.
      norm_epsilon: see `Conv2DEncoder`.
      dtype: type of computation.
      param_dtype: type of the parameters.

    >>> autoencoder, x = Conv2DAutoencoder(), jnp.zeros([2, 30, 1, 3])
    >>> output = autoencoder.apply(autoencoder.init(jax.random.key(0), x), x)
    >>> output.z.shape, output.y_hat.shape
    ((2, 128), (2, 30, 1, 3))
    """

    layer_config: LayerConfig = _CONFIG
    resize_method: str = "bilinear"
    pad: str = "SAME"
    linear: MakeLayer = Linear
    norm_epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> AutoencoderOutput:
        """Reconstructs images `[N..., H, W, C]`; z is `[N..., h * w * c]`."""
        types = _types(self)
        encoded = Conv2DEncoder(
            self.layer_config, self.pad, norm_epsilon=self.norm_epsilon, name="encoder", **types
        )(x)
        flat = _flatten(encoded[-1])
        z = self.linear(flat.shape[-1], name="hidden", **types)(flat)
        shapes = encoded_shapes(x.shape, self.layer_config, self.pad)
        decoded = Conv2DDecoder(
            shapes, self.layer_config, self.pad, self.resize_method, name="decoder", **types
        )(z.reshape(encoded[-1].shape))
        return AutoencoderOutput(encoded, z, decoded, decoded[-1].astype(jnp.float32), None)


class ChannelWiseConv2DAutoencoder(nn.Module):
    """A `Conv2DAutoencoder` for each channel, with weights of its own, all computed at once.

    Every parameter has another axis, of channels, first. The latent variables of channel k are
    `z[..., k * n : (k + 1) * n]`, with n those of one autoencoder.

    Attributes: as those of `Conv2DAutoencoder`.

    >>> autoencoder, x = ChannelWiseConv2DAutoencoder(), jnp.zeros([2, 30, 1, 3])
    >>> output = autoencoder.apply(autoencoder.init(jax.random.key(0), x), x)
    >>> output.z.shape, output.y_hat.shape, output.encoder_layers[0].shape
    ((2, 384), (2, 30, 1, 3), (3, 2, 15, 1, 32))
    """

    layer_config: LayerConfig = _CONFIG
    resize_method: str = "bilinear"
    pad: str = "SAME"
    linear: MakeLayer = Linear
    norm_epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> AutoencoderOutput:
        """Reconstructs images `[N..., H, W, C]`; layers have shapes `[C, N..., h, w, filters]`."""
        bank = nn.vmap(
            Conv2DAutoencoder, variable_axes={"params": 0}, split_rngs={"params": True, "noise": True}
        )
        options = {"resize_method": self.resize_method, "pad": self.pad, "linear": self.linear}
        bank = bank(
            self.layer_config, norm_epsilon=self.norm_epsilon, name="channels", **options, **_types(self)
        )
        output = bank(jnp.moveaxis(x, -1, 0)[..., None])
        z = jnp.moveaxis(output.z, 0, -2)
        return output._replace(
            z=z.reshape(*z.shape[:-2], math.prod(z.shape[-2:])),
            y_hat=jnp.moveaxis(output.y_hat.squeeze(-1), 0, -1),
        )


class BetaVAEConv2D(nn.Module):
    """A variational autoencoder whose posterior is a Gaussian with its own mean and variance per latent variable.

        z = mean + exp(log_variance / 2) eps,  eps ~ N(0, 1),  d_kl = KL(N(mean, exp(log_variance)) || N(0, 1))

    Kingma and Welling (2014), "Auto-Encoding Variational Bayes", section 3 and appendix B; Higgins et al.
    (2017), "beta-VAE". Of h * w * c innermost features half as many latent variables are made, rounded down.
    Train it with `btnn_jax.losses.beta_vae_loss`, whose beta may change as training goes, for instance from 0,
    lest the posterior collapse onto the prior: `optax.linear_schedule(0.0, 4.0, 10_000)(step)`.

    Attributes:
      layer_config: `(num_filters, filter_size, stride)` of each layer of the encoder, outer to inner.
      resize_method: "bilinear", "nearest", "bicubic" or "area".
      pad: "SAME" or "VALID".
      activate_posterior: applies ELU to mean and log-variance as BTGym does, which keeps the standard
        deviation above .6.
      norm_epsilon: see `Conv2DEncoder`.
      dtype: type of computation.
      param_dtype: type of the parameters.

    >>> vae, x = BetaVAEConv2D(), jnp.zeros([2, 30, 1, 3])
    >>> variables = vae.init({"params": jax.random.key(0), "sample": jax.random.key(1)}, x)
    >>> output = vae.apply(variables, x, rngs={"sample": jax.random.key(2)})
    >>> output.z.shape, output.d_kl.shape, output.y_hat.shape
    ((2, 64), (2, 64), (2, 30, 1, 3))
    """

    layer_config: LayerConfig = _CONFIG
    resize_method: str = "bilinear"
    pad: str = "SAME"
    activate_posterior: bool = False
    norm_epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Makes the two halves."""
        types = _types(self)
        self.posterior = _Posterior(
            self.layer_config, self.pad, self.activate_posterior, self.norm_epsilon, **types
        )
        self.generator = _Generator(self.layer_config, self.resize_method, self.pad, **types)

    def __call__(self, x: Array, *, eps: Array | None = None) -> AutoencoderOutput:
        """Reconstructs images from a sample of their posterior.

        Args:
          x: `[N..., H, W, C]`.
          eps: `[N..., latent]` standard normals; None draws them from the stream `sample`. With zeros z is the
            posterior's mean.
        """
        encoded, mean, log_variance = self.posterior(x)
        if eps is None:
            eps = jax.random.normal(self.make_rng("sample"), mean.shape)
        if eps.shape != mean.shape:
            raise ValueError(f"eps must have the shape of the latent variables {mean.shape}, got {eps.shape}")
        z = mean + jnp.exp(log_variance / 2) * eps.astype(jnp.float32)
        decoded = self.generator(z, x.shape)
        d_kl = kl_to_standard_normal(mean, log_variance)
        return AutoencoderOutput(encoded, z, decoded, decoded[-1].astype(jnp.float32), d_kl)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Mean and log-variance of the posterior of images `[N..., H, W, C]`, each float32 `[N..., latent]`."""
        _, mean, log_variance = self.posterior(x)
        return mean, log_variance

    def decode(self, z: Array, image_shape: Shape) -> Array:
        """Images float32 `[N..., H, W, C]` of latent variables `[N..., latent]`; `image_shape` ends in H, W, C."""
        return self.generator(z, image_shape)[-1].astype(jnp.float32)


class _Posterior(nn.Module):
    layer_config: LayerConfig
    pad: str
    activate: bool
    norm_epsilon: float
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> tuple[tuple[Array, ...], Array, Array]:
        types = _types(self)
        encoded = Conv2DEncoder(
            self.layer_config, self.pad, norm_epsilon=self.norm_epsilon, name="encoder", **types
        )(x)
        flat, latent = _flatten(encoded[-1]), _latent_size(encoded[-1].shape[-3:])
        hidden = nn.elu(Linear(flat.shape[-1], name="hidden", **types)(flat))
        moments = Linear(2 * latent, name="moments", **types)(hidden).astype(jnp.float32)
        if self.activate:
            moments = nn.elu(moments)
        return encoded, moments[..., :latent], moments[..., latent:]


class _Generator(nn.Module):
    layer_config: LayerConfig
    resize_method: str
    pad: str
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> tuple[Array, ...]:
        types = _types(self)
        shapes = encoded_shapes(image_shape, self.layer_config, self.pad)
        if z.shape[-1] != _latent_size(shapes[-1]):
            raise ValueError(
                f"images {shapes[0]} have {_latent_size(shapes[-1])} latent variables, got z {z.shape}"
            )
        features = nn.elu(Linear(math.prod(shapes[-1]), name="dense", **types)(z))
        decoder = Conv2DDecoder(
            shapes, self.layer_config, self.pad, self.resize_method, name="decoder", **types
        )
        return decoder(features.reshape(*z.shape[:-1], *shapes[-1]))


def kl_to_standard_normal(mean: Array, log_variance: Array) -> Array:
    """`KL(N(mean, exp(log_variance)) || N(0, 1))` in nats of each variable, the shape of both.

        (mean^2 + exp(log_variance) - 1 - log_variance) / 2

    Kingma and Welling (2014), "Auto-Encoding Variational Bayes", appendix B.

    >>> kl_to_standard_normal(jnp.array([0.0, 2.0]), jnp.zeros(2))
    Array([0., 2.], dtype=float32)
    """
    return (jnp.square(mean) + jnp.expm1(log_variance) - log_variance) / 2


def latent_traversal(model: BetaVAEConv2D, variables: Any, x: Array, latent: int, values: Array) -> Array:
    """Decodes images while one latent variable moves and the others keep their posterior mean.

    Args:
      model: the variational autoencoder.
      variables: what its `init` returned, trained.
      x: `[N..., H, W, C]` images to start from.
      latent: which latent variable.
      values: `[K]` values to give it, in standard deviations of the prior.

    Returns:
      float32 `[K, N..., H, W, C]`.

    Raises:
      IndexError: if there is no such latent variable.
    """
    mean, _ = model.apply(variables, x, method="encode")
    if not 0 <= latent < mean.shape[-1]:
        raise IndexError(f"the latent variables are 0 to {mean.shape[-1] - 1}, got {latent}")
    z = jnp.broadcast_to(mean, (len(values), *mean.shape))
    moved = jnp.broadcast_to(jnp.expand_dims(values, range(1, mean.ndim)), z.shape[:-1])
    return model.apply(variables, z.at[..., latent].set(moved), x.shape, method="decode")


def _types(module: Any) -> dict[str, Any]:
    return {"dtype": module.dtype, "param_dtype": module.param_dtype}


def _flatten(features: Array) -> Array:
    return features.reshape(*features.shape[:-3], math.prod(features.shape[-3:]))


def _latent_size(innermost: Shape) -> int:
    size = math.prod(innermost) // 2
    if size < 1:
        raise ValueError(f"a latent variable takes two innermost features, got {innermost}")
    return size
