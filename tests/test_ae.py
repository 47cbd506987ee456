"""Autoencoders against BTGym's, and what must hold for every size, padding and way of resizing."""

import functools

import chex
import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from btnn_jax.ae import (
    BetaVAEConv2D,
    ChannelWiseConv2DAutoencoder,
    Conv2DAutoencoder,
    Conv2DDecoder,
    Conv2DEncoder,
    encoded_shapes,
    kl_to_standard_normal,
    latent_traversal,
)
from btnn_jax.interop import from_btgym
from btnn_jax.layers import NoisyLinear
from btnn_jax.losses import beta_vae_loss

SMALL = ((4, (3, 1), (2, 1)), (5, (3, 1), (2, 1)))
IMAGE = ((4, (3, 3), (2, 2)), (5, (2, 3), (1, 2)))


def normals(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def init(module, *inputs):
    """Parameters with no zeros among them, so that biases and shifts count."""
    keys = {name: jax.random.key(k) for k, name in enumerate(("params", "sample", "noise"))}
    leaves, structure = jax.tree.flatten(jax.eval_shape(module.init, keys, *inputs))
    return structure.unflatten(
        [(normals(*leaf.shape, seed=k) / 3).astype(leaf.dtype) for k, leaf in enumerate(leaves)]
    )


def assert_close(actual, expected, rtol=1e-4, atol=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=atol)


# What BTGym computes.


def config(cfg):
    return tuple((filters, tuple(size), tuple(stride)) for filters, size, stride in cfg["layer_config"])


BTGYM = {
    "ae_encoder": lambda cfg: Conv2DEncoder(config(cfg)),
    "ae_conv2d_bilinear": lambda cfg: Conv2DAutoencoder(config(cfg), cfg["resize_method"]),
    "ae_conv2d_nearest": lambda cfg: Conv2DAutoencoder(config(cfg), cfg["resize_method"]),
    "ae_channel_wise": lambda cfg: ChannelWiseConv2DAutoencoder(config(cfg), cfg["resize_method"]),
    "ae_beta_vae": lambda cfg: BetaVAEConv2D(config(cfg), cfg["resize_method"], activate_posterior=True),
}


@pytest.mark.parametrize("case", BTGYM)
def test_btgym(case, golden):
    g = golden(case)
    module = BTGYM[case](g.cfg)
    options = {"eps": jnp.asarray(g.noise[0])} if g.noise else {}

    def run(params, x):
        y = module.apply({"params": params}, x, **options)
        if isinstance(module, Conv2DEncoder):
            return {f"encoder.{k}": layer for k, layer in enumerate(y)}
        named = {"z": y.z, "y_hat": y.y_hat, "d_kl": y.d_kl}
        for name, layers in (("encoder", y.encoder_layers), ("decoder", y.decoder_layers)):
            named |= {f"{name}.{k}": layer for k, layer in enumerate(layers)}
        return {name: named[name] for name in g.outputs}

    def loss(params, x):
        y = run(params, x)
        return sum(jnp.vdot(y[name], g.cotangents[name]) for name in y), y

    params = from_btgym(module, g.variables)
    (dparams, dx), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, g.inputs["x"])
    assert_close(y, g.outputs)
    assert_close(dx, g.gradients.pop("in/x"), rtol=1e-3, atol=1e-4)
    assert_close(dparams, from_btgym(module, g.gradients), rtol=1e-3, atol=1e-4)
