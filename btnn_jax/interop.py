"""Reads the variables of a trained BTGym model into the parameters of our modules."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from btnn_jax import ae, layers, networks

__all__ = ["Params", "Shape", "from_btgym"]

Params = dict[str, Any]
Shape = tuple[int | None, ...]  # None: any size


def from_btgym(module: nn.Module, variables: Mapping[str, ArrayLike]) -> Params:
    """Parameters of `module` from the variables of its counterpart in BTGym.

    Args:
      module: a module of `btnn_jax.layers`, `networks` or `ae`, with those of BTGym's options that have
        variables: `linear` as it was, `logits_norm="layer_norm"`.
      variables: arrays by the names of BTGym's graph, with or without outer scopes and TensorFlow's `:0`. All
        must be the module's: leave out those of other networks and of the optimizer.

    Returns:
      `params` for `module.apply({"params": params}, ...)`, in the module's `param_dtype`.

    Raises:
      ValueError: if a variable is missing, unused, ambiguous or of the wrong shape, or the module unknown.

    >>> variables = {"policy/dense//w:0": np.ones([3, 2]), "policy/dense//b:0": np.zeros(2)}
    >>> params = from_btgym(layers.Linear(2), variables)
    >>> layers.Linear(2).apply({"params": params}, jnp.ones([1, 3]))
    Array([[3., 3.]], dtype=float32)
    """
    read = _Reader({name: np.asarray(array) for name, array in variables.items()})
    params = _read(module, read)
    if unused := sorted(variables.keys() - read.used):
        raise ValueError(f"{type(module).__name__} has no use for the variables {unused}")
    return jax.tree.map(lambda array: jnp.asarray(array, module.param_dtype), params)


class _Reader:
    """Finds variables by the end of their names and remembers which were asked for."""

    def __init__(self, arrays: dict[str, np.ndarray], scope: str = "", used: set[str] | None = None):
        self.arrays, self.scope = arrays, scope
        self.used: set[str] = set() if used is None else used

    def within(self, scope: str) -> _Reader:
        """The reader of an inner scope; `*` stands for any text without a slash."""
        return _Reader(self.arrays, f"{self.scope}{scope}/", self.used)

    def __call__(self, name: str, shape: Shape) -> np.ndarray:
        """The variable whose name ends in the scope and `name`."""
        wanted = f"{self.scope}{name}"
        found = [candidate for candidate in self.arrays if _ends_in(candidate, wanted)]
        if not found:
            raise ValueError(f"the variable {wanted!r} is missing; there are {sorted(self.arrays)}")
        if len(found) > 1:
            raise ValueError(f"several variables could be {wanted!r}: {sorted(found)}")
        array = self.arrays[found[0]]
        fits = array.ndim == len(shape) and all(
            n in (None, m) for n, m in zip(shape, array.shape, strict=True)
        )
        if not fits:
            expected = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(
                f"the variable {found[0]!r} should have shape ({expected}), it has {array.shape}"
            )
        self.used.add(found[0])
        return array


def _ends_in(name: str, wanted: str) -> bool:
    parts = [
        part for part in name.removesuffix(":0").split("/") if part
    ]  # BTGym writes some scopes as `a//w`
    ends = wanted.split("/")
    return len(parts) >= len(ends) and all(map(fnmatchcase, parts[-len(ends) :], ends))


def _read(module: nn.Module, read: _Reader, inputs: int | None = None) -> Params:
    """Parameters of `module`, whose input has `inputs` features (None: any number)."""
    for kind, reader in _READERS.items():
        if isinstance(module, kind):
            if not getattr(module, "use_bias", True) and not isinstance(module, layers.NoisyLinear):
                raise ValueError(f"BTGym's {kind.__name__} always has a bias, got one without")
            return reader(module, read, inputs)
    known = ", ".join(kind.__name__ for kind in _READERS)
    raise ValueError(f"no counterpart in BTGym is known for {type(module).__name__}, only for {known}")


def _linear(module: layers.Linear, read: _Reader, inputs: int | None) -> Params:
    return {"kernel": read("w", (inputs, module.size)), "bias": read("b", (module.size,))}


def _noisy_linear(module: layers.NoisyLinear, read: _Reader, inputs: int | None) -> Params:
    kernel = read("w_mu", (inputs, module.size))
    params = {"kernel_mu": kernel, "kernel_sigma": read("w_sigma", kernel.shape)}
    if module.use_bias:
        params |= {"bias_mu": read("b_mu", (module.size,)), "bias_sigma": read("b_sigma", (module.size,))}
    return params


def _convolution(read: _Reader, kernel_shape: Shape, outputs: int | None = None) -> Params:
    kernel = read("W", kernel_shape)
    bias = read("b", (*[1] * (kernel.ndim - 1), outputs or kernel.shape[-2] * kernel.shape[-1]))
    return {"kernel": kernel, "bias": bias.reshape(-1)}


def _conv2d(module: layers.Conv2D, read: _Reader, inputs: int | None) -> Params:
    return _convolution(read, (*module.filter_size, inputs, module.num_filters), module.num_filters)


def _conv1d(module: layers.Conv1D, read: _Reader, inputs: int | None) -> Params:
    return _convolution(read, (module.filter_size, inputs, module.num_filters), module.num_filters)


def _depthwise_conv2d(module: layers.DepthwiseConv2D, read: _Reader, inputs: int | None) -> Params:
    return _convolution(read, (*module.filter_size, inputs, module.num_filters))


def _deconv2d(module: layers.Deconv2D, read: _Reader, inputs: int | None) -> Params:
    kernel = read("d_W", (*module.filter_size, module.output_channels, inputs))
    bias = read("d_b", (1, 1, 1, module.output_channels))
    return {"kernel": kernel.swapaxes(-1, -2), "bias": bias.reshape(-1)}


def _conv2d_network(module: networks.Conv2DNetwork, read: _Reader, inputs: int | None) -> Params:
    if module.norm is None:
        raise ValueError("BTGym's Conv2DNetwork always has a layer norm, got norm=None")
    params: Params = {}
    for k, filters in enumerate(module.num_filters, 1):
        layer = module.layer(filters, filter_size=module.filter_size)
        params[f"conv_{k}"] = _read(layer, read.within(f"_layer_{k}"), inputs)
        inputs = params[f"conv_{k}"]["bias"].size
        norm = read.within(f"*_norm_layer_{k}")  # the star is the network's own name once more
        params[f"norm_{k}"] = {"scale": norm("gamma", (inputs,)), "bias": norm("beta", (inputs,))}
    return params


def _conv1d_network(module: networks.Conv1DNetwork, read: _Reader, inputs: int | None) -> Params:
    if module.norm is not None:
        raise ValueError(f"BTGym's Conv1DNetwork has no norm, got norm={module.norm!r}")
    if module.skip:
        raise ValueError("BTGym's Conv1DNetwork has no skips, got skip=True")
    params: Params = {}
    for k in range(1, module.num_layers + 1):
        layer = layers.Conv1D(module.num_filters, filter_size=module.filter_size)
        params[f"conv_{k}"] = _read(layer, read.within(f"conv1d_{k}"), inputs)
        inputs = module.num_filters
    return params


def _lstm_network(module: networks.LSTMNetwork, read: _Reader, inputs: int | None) -> Params:
    params: Params = {}
    for k, size in enumerate(module.layers):
        cell = read.within(f"cell_{k}/basic_lstm_cell")
        kernel = cell("kernel", (None if inputs is None else inputs + size, 4 * size))
        if len(kernel) <= size:
            raise ValueError(
                f"the kernel of LSTM cell {k} should have more than {size} rows, those of the state, it has shape "
                f"{kernel.shape}"
            )
        params[f"layer_{k}"] = {
            "kernel_x": kernel[:-size],
            "kernel_h": kernel[-size:],
            "bias": cell("bias", (4 * size,)),
        }
        inputs = size
    return params


def _dense_aac_network(module: networks.DenseAACNetwork, read: _Reader, inputs: int | None) -> Params:
    depth = _single_head(module, module.action_depths)
    params: Params = {"action": _read(module.linear(depth), read.within("action"), inputs)}
    inputs = next(iter(params["action"].values())).shape[0]
    params["value"] = _read(module.linear(1), read.within("value"), inputs)
    if module.logits_norm is not None:
        params["norm"] = {"bias": read("LayerNorm/beta", (depth,))}
    return params


def _dense_rp_network(module: networks.DenseRPNetwork, read: _Reader, inputs: int | None) -> Params:
    classifier = module.linear(module.num_classes)
    return {
        "hidden": _read(module.linear(module.hidden), read.within("rp_dense"), inputs),
        "classifier": _read(classifier, read.within("rp_classifier"), module.hidden),
    }


def _duelling_pc_network(module: networks.DuellingPCNetwork, read: _Reader, inputs: int | None) -> Params:
    channels = module.inner_shape[-1]
    num_actions = _single_head(module, module.num_actions)
    dense = module.linear(math.prod(module.inner_shape))
    params: Params = {"dense": _read(dense, read.within("pc_dense"), inputs)}
    for name, scope, outputs in (("advantage", "pc_advantage", num_actions), ("value", "pc_value_fn", 1)):
        deconvolution = layers.Deconv2D(outputs, filter_size=module.filter_size)
        weights = _read(deconvolution, read.within(scope), channels)
        params |= {f"{name}_{key}": array for key, array in weights.items()}
    return params


def _single_head(module: nn.Module, depths: Any) -> int:
    if not isinstance(depths, numbers.Integral):  # a space's `n` is one of numpy's
        raise ValueError(f"BTGym's {type(module).__name__} has one discrete action, not {depths}")
    return int(depths)


def _encoder(module: ae.Conv2DEncoder, read: _Reader, inputs: int | None) -> Params:
    params: Params = {}
    for k, (num_filters, filter_size, _) in enumerate(module.layer_config, 1):
        layer = layers.Conv2D(num_filters, filter_size)
        params[f"conv_{k}"] = _read(layer, read.within(f"conv_kernels_{k}"), inputs)
        norm = read.within("LayerNorm" if k == 1 else f"LayerNorm_{k - 1}")
        params[f"norm_{k}"] = {"scale": norm("gamma", (num_filters,)), "bias": norm("beta", (num_filters,))}
        inputs = num_filters
    return params


def _decoder(module: ae.Conv2DDecoder, read: _Reader, inputs: int | None) -> Params:
    params: Params = {}
    inputs = module.layer_config[-1][0]
    for k, (num_filters, filter_size, _) in enumerate(module.layer_config[::-1], 1):
        layer = layers.Conv2D(num_filters, filter_size)
        params[f"conv_{k}"] = _read(layer, read.within(f"conv_kernels_{k}"), inputs)
        inputs = num_filters
    layer = layers.Conv2D(module.layer_shapes[0][-1], module.layer_config[0][1])
    return params | {"reconstruction": _read(layer, read.within("decoded_y_hat"), inputs)}


def _halves(module: Any, read: _Reader, inputs: int | None) -> tuple[Params, Params]:
    """Encoder and decoder of an autoencoder."""
    encoder = _read(ae.Conv2DEncoder(module.layer_config), read.within("encoder"), inputs)
    channels = encoder["conv_1"]["kernel"].shape[2]
    decoder = ae.Conv2DDecoder(((0, 0, channels),), module.layer_config)
    return encoder, _read(decoder, read.within("decoder"))


def _any_size(linear: Callable[..., nn.Module], read: _Reader) -> int:
    """How many features go into a dense layer of unknown size."""
    return next(iter(_read(linear(None), read).values())).shape[0]


def _autoencoder(module: ae.Conv2DAutoencoder, read: _Reader, inputs: int | None) -> Params:
    encoder, decoder = _halves(module, read, inputs)
    dense = read.within("hidden_dense")
    size = _any_size(module.linear, dense)  # depends on the image's
    return {"encoder": encoder, "hidden": _read(module.linear(size), dense, size), "decoder": decoder}


def _channel_wise(module: ae.ChannelWiseConv2DAutoencoder, read: _Reader, inputs: int | None) -> Params:
    found = [re.search(r"(?:^|/)ae_channel_(\d+)/", name) for name in read.arrays]
    channels = 1 + max((int(match[1]) for match in found if match), default=0)
    one = ae.Conv2DAutoencoder(module.layer_config, linear=module.linear)
    bank = [_read(one, read.within(f"ae_channel_{c}"), 1) for c in range(channels)]
    return {"channels": jax.tree.map(lambda *arrays: np.stack(arrays), *bank)}


def _beta_vae(module: ae.BetaVAEConv2D, read: _Reader, inputs: int | None) -> Params:
    encoder, decoder = _halves(module, read, inputs)
    size = _any_size(layers.Linear, read.within("enc_dense"))

    def dense(name: str, inputs: int, outputs: int) -> Params:
        return _read(layers.Linear(outputs), read.within(name), inputs)

    posterior = {"encoder": encoder, "hidden": dense("enc_dense", size, size)}
    posterior["moments"] = dense("hidden_dense", size, size // 2 * 2)
    return {
        "posterior": posterior,
        "generator": {"dense": dense("dec_dense", size // 2, size), "decoder": decoder},
    }


_READERS: dict[type[nn.Module], Callable[[Any, _Reader, int | None], Params]] = {
    layers.Linear: _linear,
    layers.NoisyLinear: _noisy_linear,
    layers.Conv2D: _conv2d,
    layers.Conv1D: _conv1d,
    layers.Deconv2D: _deconv2d,
    layers.DepthwiseConv2D: _depthwise_conv2d,
    networks.Conv2DNetwork: _conv2d_network,
    networks.Conv1DNetwork: _conv1d_network,
    networks.LSTMNetwork: _lstm_network,
    networks.DenseAACNetwork: _dense_aac_network,
    networks.DenseRPNetwork: _dense_rp_network,
    networks.DuellingPCNetwork: _duelling_pc_network,
    ae.Conv2DEncoder: _encoder,
    ae.Conv2DDecoder: _decoder,
    ae.Conv2DAutoencoder: _autoencoder,
    ae.ChannelWiseConv2DAutoencoder: _channel_wise,
    ae.BetaVAEConv2D: _beta_vae,
}
