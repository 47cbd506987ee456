"""The networks that a configuration describes: the agent's policy, and autoencoders."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from btnn_jax import ae
from btnn_jax.encoders import as_image, one_stream
from btnn_jax.envs.base import AnyEnvironment
from btnn_jax.policies import UnrealPolicy, make_policy
from btnn_jax.training.config import LayerConfig, UnrealConfig

__all__ = ["default_layers", "make_model", "make_unreal_policy"]

_NORM_EPSILON = 1e-6  # frames of nearly one colour occur, and are not to blow the gradient up


def default_layers(shape: tuple[int, ...], kind: str) -> LayerConfig:
    """The layers for examples `[H, W, C]`: one latent variable a step of a signal, four every 4 x 4 places of an image.

    >>> default_layers((32, 1, 4), "beta_vae")  # half of the innermost features become latent variables
    ((32, (3, 1), (1, 1)), (2, (3, 1), (1, 1)))
    """
    features = 2 if kind == "beta_vae" else 1
    if shape[1] == 1:
        return ((32, (3, 1), (1, 1)), (features, (3, 1), (1, 1)))
    return ((32, (3, 3), (2, 2)), (32, (3, 3), (2, 2)), (4 * features, (3, 3), (1, 1)))


def make_model(
    kind: str, layers: LayerConfig, *, resize_method: str = "bilinear", pad: str = "SAME"
) -> nn.Module:
    """The module of one of `config.KINDS`."""
    modules: dict[str, Any] = {
        "conv2d": ae.Conv2DAutoencoder,
        "channel_wise": ae.ChannelWiseConv2DAutoencoder,
        "beta_vae": ae.BetaVAEConv2D,
    }
    return modules[kind](layers, resize_method=resize_method, pad=pad, norm_epsilon=_NORM_EPSILON)


def make_unreal_policy(config: UnrealConfig, env: AnyEnvironment, **overrides: Any) -> UnrealPolicy:
    """The agent's network that `config` describes for `env`; `overrides` go to `make_policy`."""
    fields = {
        "kind": config.policy,
        "num_filters": config.num_filters,
        "hidden": config.hidden,
        "lstm": config.lstm,
        "core": config.core,
        "core_size": config.core_size,
        "core_memory": config.core_memory,
        "noisy": config.noisy,
        "pixel_control": config.pc_weight > 0,
        "pc_cell": config.pc_cell,
        "pc_stream": config.pc_stream,
        "reward_prediction": config.rp_weight > 0,
        "normalize_returns": config.normalize_returns,
        "ae_stream": config.ae_stream,
        "dtype": jnp.bfloat16 if config.precision == "bfloat16" else None,
    }
    if config.autoencoder is not None:
        shape = as_image(one_stream(env.observation, config.ae_stream).shape)
        layers = config.ae_layers or default_layers(shape, config.autoencoder)
        fields["autoencoder"] = make_model(config.autoencoder, layers)
    return make_policy(env.action_depths, env.observation, **{**fields, **overrides})
