"""Encoders of observations: what a policy sees of one stream or of several, as one feature vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from btnn_jax._types import PyTree
from btnn_jax.ae import AutoencoderOutput, BetaVAEConv2D
from btnn_jax.layers import Conv2D, Linear
from btnn_jax.networks import Conv2DNetwork

__all__ = ["ObservationEncoder", "as_image", "check_shared", "image_stream", "one_stream"]


class ObservationEncoder(nn.Module):
    """Turns an observation, or a dict of several streams, into one feature vector.

    Each stream is treated by its rank, leading axes apart: `[H, W, C]` images and `[L, C]` signals go through a
    convolution stack and a dense layer, vectors and scalars through dense layers; every layer is followed by ELU. The
    streams' features are concatenated in the order of their names. uint8 is read as pixels and divided by 255.

    Attributes:
      stream_ndims: rank of each stream without leading axes, an int or a dict of ints like the observation.
      num_filters: filters of the convolution stack; None takes (32, 32, 64, 64) with stride 2 and SAME padding for
        images and signals longer than 20, and (16, 32) with stride 1 for smaller ones; () is no convolution. The
        padding of smaller ones is VALID, or SAME where VALID would leave nothing of a side.
      filter_size: side of the square filters; along an axis of size 1 the filter is 1.
      stride: stride of every convolution; None as for `num_filters`.
      hidden: sizes of the dense layers.
      conv_layer: the convolution, `btnn_jax.layers.Conv2D` or a module with its fields.
      autoencoder: one of `btnn_jax.ae` whose latent variables take the place of the convolution stack; of a
        variational one the posterior's mean. `reconstruct` gives its reconstruction, to learn from.
      ae_stream: name of the stream that it encodes; needed where several are images or signals.
      shared: names of streams of one shape that the same weights encode, called `shared`.
      dtype: type of computation.
      param_dtype: type of the parameters.
    """

    stream_ndims: Any
    num_filters: tuple[int, ...] | None = None
    filter_size: int = 3
    stride: int | None = None
    hidden: tuple[int, ...] = (256,)
    conv_layer: type[nn.Module] = Conv2D
    autoencoder: Any = None
    ae_stream: str | None = None
    shared: tuple[str, ...] = ()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __call__(self, observation: PyTree) -> jax.Array:
        """Encodes `observation`, leaves `[..., *stream shape]`, into `[..., D]`."""
        return jnp.concatenate(list(self.streams(observation).values()), axis=-1)

    @nn.compact
    def streams(self, observation: PyTree) -> dict[str, jax.Array]:
        """The features of each stream, `[..., D]`, in the order of their names; of the only one, as `stream`.

        Raises:
          ValueError: the streams are not those of `stream_ndims`, those that share weights differ in shape, or it is
            not said which the autoencoder encodes.
        """
        if not isinstance(self.stream_ndims, Mapping):
            return {"stream": self._stream("stream", observation, self.stream_ndims)}
        if set(self.stream_ndims) != set(observation):
            raise ValueError(
                f"expected observation streams {sorted(self.stream_ndims)}, got {sorted(observation)}"
            )
        if self.autoencoder is not None:
            images = {name: rank for name, rank in self.stream_ndims.items() if rank >= 2}
            one_stream(images, self.ae_stream)  # checks
        features = {}
        if self.shared:
            stacked = jnp.stack([observation[name] for name in check_shared(observation, self.shared)])
            encoded = self._stream("shared", stacked, self.stream_ndims[self.shared[0]])
            features = dict(zip(self.shared, encoded, strict=True))
        return {
            name: features[name] if name in features else self._stream(name, observation[name], rank)
            for name, rank in sorted(self.stream_ndims.items())
        }

    def _stream(self, name: str, x: jax.Array, rank: int) -> jax.Array:
        lead, shape = x.shape[: x.ndim - rank], x.shape[x.ndim - rank :]
        dtype = self.dtype or jnp.float32
        x = x.astype(dtype) / jnp.asarray(255, dtype) if x.dtype == jnp.uint8 else x.astype(dtype)
        if rank >= 2:
            image = x.reshape(*lead, *as_image(shape))
            x = self._latent(image) if self._autoencodes(name) else self._convolutions(name, image)
        x = x.reshape(*lead, math.prod(x.shape[len(lead) :]))
        for i, size in enumerate(self.hidden):
            x = nn.elu(
                Linear(size, dtype=self.dtype, param_dtype=self.param_dtype, name=f"{name}_dense_{i}")(x)
            )
        return x

    def reconstruct(self, observation: PyTree) -> tuple[jax.Array, AutoencoderOutput]:
        """The images `[..., H, W, C]` of the autoencoder's stream, and what it makes of them.

        A variational autoencoder draws from the stream `sample`.

        Raises:
          ValueError: there is no autoencoder.
        """
        if self.autoencoder is None:
            raise ValueError("this encoder has no autoencoder: give it one")
        images, rank = one_stream(observation, self.ae_stream), one_stream(self.stream_ndims, self.ae_stream)
        shape = images.shape[images.ndim - rank :]
        images = images.reshape(*images.shape[: images.ndim - rank], *as_image(shape))
        return images, self.autoencoder(images)

    def _autoencodes(self, name: str) -> bool:
        names = self.shared if name == "shared" else (name,)
        return self.autoencoder is not None and self.ae_stream in (None, *names)  # None: there is one

    def _latent(self, x: jax.Array) -> jax.Array:
        if isinstance(self.autoencoder, BetaVAEConv2D):
            return self.autoencoder.encode(x)[0]
        return self.autoencoder(x).z

    def _convolutions(self, name: str, x: jax.Array) -> jax.Array:
        height, width, _ = x.shape[-3:]
        small = max(height, width) <= 20
        default, stride = ((16, 32), 1) if small else ((32, 32, 64, 64), 2)
        filters = default if self.num_filters is None else self.num_filters
        stride = stride if self.stride is None else self.stride
        valid = small and all(
            side == 1 or _left(side, self.filter_size, stride, len(filters)) > 0 for side in (height, width)
        )
        return Conv2DNetwork(
            filters,
            tuple(1 if side == 1 else self.filter_size for side in (height, width)),
            tuple(1 if side == 1 else stride for side in (height, width)),
            pad="VALID" if valid else "SAME",
            layer=self.conv_layer,
            norm_epsilon=1e-5,  # an almost dark frame has almost no variance
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"{name}_conv",
        )(x)


def _left(side: int, filter_size: int, stride: int, layers: int) -> int:
    """The size of a side after `layers` VALID convolutions; 0 or less if nothing is left."""
    for _ in range(layers):
        side = (side - filter_size) // stride + 1
    return side


def as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`[H, W, C]` of a stream's shape: a signal `[L, C]` is an image of width 1."""
    if len(shape) == 3:
        return shape
    if len(shape) == 2:
        return (shape[0], 1, shape[1])
    raise ValueError(f"expected an image [H, W, C] or a signal [L, C], got a stream of shape {shape}")


def one_stream(observation: PyTree, name: str | None = None) -> jax.Array:
    """The stream of `observation` that a task looks at.

    Args:
      observation: an array, or a dict of arrays (or of `jax.ShapeDtypeStruct`).
      name: which stream of a dict; None where there is only one.

    Raises:
      ValueError: there is no such stream, or no name to tell several apart.
    """
    if not isinstance(observation, Mapping):
        if name is not None:
            raise ValueError(f"the observation has one stream, without a name, got {name!r}")
        return observation
    if name is None and len(observation) == 1:
        name = next(iter(observation))
    if name not in observation:
        raise ValueError(
            f"expected the name of one observation stream of {sorted(observation)}, got {name!r}"
        )
    return observation[name]


def image_stream(observation: PyTree, name: str | None = None) -> str | None:
    """The name of the stream that pixel control watches; None where there is one without a name.

    Args:
      observation: `jax.ShapeDtypeStruct` of one observation, or a dict of them, without leading axes.
      name: None takes the only stream, the only image or signal, or the one of those that is called `external`.

    Raises:
      ValueError: there is no such stream, or no name to tell several apart.

    >>> bars, position = jax.ShapeDtypeStruct((30, 5), float), jax.ShapeDtypeStruct((), float)
    >>> image_stream({"bars": bars, "position": position})
    'bars'
    """
    if isinstance(observation, Mapping) and name is None:
        images = [stream for stream, spec in observation.items() if len(spec.shape) >= 2]
        names = images or list(observation)
        name = "external" if "external" in images else names[0] if len(names) == 1 else None
    one_stream(observation, name)  # checks
    return name


def check_shared(observation: PyTree, shared: tuple[str, ...]) -> tuple[str, ...]:
    """`shared`, if the same weights can encode these streams of `observation`.

    Raises:
      ValueError: they differ in shape or type, or a name is unknown.
    """
    streams = [one_stream(observation, name) for name in shared]
    if len({(x.shape, jnp.dtype(x.dtype)) for x in streams}) > 1:
        given = ", ".join(f"{name} {x.dtype} {x.shape}" for name, x in zip(shared, streams, strict=True))
        raise ValueError(f"streams that share an encoder must have one shape and type, got {given}")
    return shared
