"""The train step of an autoencoder: many minibatches per call, drawn on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from btnn_jax import ae, losses
from btnn_jax._types import PyTree
from btnn_jax.training.config import AutoencoderConfig
from btnn_jax.training.gradients import make_gradient_step, mean_over_steps
from btnn_jax.training.modules import default_layers, make_model

__all__ = ["Autoencoder", "AutoencoderState", "make_autoencoder"]

Metrics = dict[str, jax.Array]  # float32 [] each


class AutoencoderState(NamedTuple):
    """All that a run depends on, apart from its configuration and the examples."""

    params: PyTree  # float32
    opt_state: optax.OptState  # float32, and int32 counts
    key: jax.Array  # [], of minibatches and of the posterior's samples
    step: jax.Array  # int32 [], gradient steps so far
    skipped: jax.Array  # int32 [], gradient steps left out because they were not finite


class Autoencoder(NamedTuple):
    """Pure functions of one autoencoder. `x` is `[N, H, W, C]`, of any dtype; what comes out is float32."""

    model: nn.Module
    latent: int  # size of z
    init: Callable[[jax.Array], AutoencoderState]  # key -> state
    step: Callable[[AutoencoderState, jax.Array], tuple[AutoencoderState, Metrics]]  # (state, x)
    evaluate: Callable[[PyTree, jax.Array], Metrics]  # (params, x): means over all of x
    encode: Callable[[PyTree, jax.Array], jax.Array]  # (params, x) -> z [N, latent], of a VAE the mean
    decode: Callable[[PyTree, jax.Array], jax.Array]  # (params, z) -> [N, H, W, C]
    features: Callable[[PyTree, jax.Array], tuple[jax.Array, ...]]  # (params, x) -> the encoder's layers


def make_autoencoder(config: AutoencoderConfig, example: jax.ShapeDtypeStruct) -> Autoencoder:
    """Binds a configuration and the shape of an example into pure, jittable functions.

    `step(state, x)` makes `config.steps_per_update` gradient steps in one `lax.scan`, each on `config.batch` rows
    of `x` drawn with replacement. The loss is the mean squared error (`losses.ae_loss`), or for a beta-VAE

        D / 2 * mean squared error + beta * KL

    of examples of `D` numbers (`losses.beta_vae_loss`): at beta = 1 minus the evidence lower bound, in nats and up
    to a constant, under Gaussian noise of variance 1; a smaller beta is that of a smaller variance.

    Args:
      config: what to learn and how.
      example: one example, `[H, W, C]`, or `[T, 1, C]` of a signal.

    Returns:
      The functions. Metrics of `step` are means over its gradient steps, of those that were finite:
      `reconstruction_loss gradient_norm skipped learning_rate`, of a beta-VAE `kl beta` too; those of `evaluate` are
      `loss`, the mean squared error of the reconstruction, and `kl`.

    Raises:
      ValueError: the layers leave nothing of the example; the message names the level.
    """
    shape = tuple(example.shape)
    layers = default_layers(shape, config.kind) if config.layer_config is None else config.layer_config
    variational = config.kind == "beta_vae"
    model: Any = make_model(config.kind, layers, resize_method=config.resize_method, pad=config.pad)
    streams = ("params", "sample") if variational else ("params",)

    def first(key: jax.Array) -> tuple[ae.AutoencoderOutput, PyTree]:
        keys = dict(zip(streams, jax.random.split(key, len(streams)), strict=True))
        return model.init_with_output(keys, jnp.zeros((1, *shape), example.dtype))

    latent = jax.eval_shape(first, jax.random.key(0))[0].z.shape[-1]

    def apply(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> ae.AutoencoderOutput:
        if not variational:
            return model.apply({"params": params}, x)
        if key is None:
            return model.apply({"params": params}, x, eps=jnp.zeros((len(x), latent)))
        return model.apply({"params": params}, x, rngs={"sample": key})

    optimizer = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam())

    def learning_rate_at(step: jax.Array) -> jax.Array:
        progress = step.astype(jnp.float32) / (config.num_updates * config.steps_per_update)
        return config.learning_rate * (1 + jnp.cos(math.pi * progress)) / 2

    def beta_at(step: jax.Array) -> jax.Array:
        if config.beta_warmup_steps == 0:
            return jnp.float32(config.beta)
        return config.beta * jnp.minimum(step.astype(jnp.float32) / config.beta_warmup_steps, 1.0)

    def init(key: jax.Array) -> AutoencoderState:
        params_key, key = jax.random.split(key)
        params = first(params_key)[1]["params"]
        zero = jnp.zeros((), jnp.int32)
        return AutoencoderState(params, optimizer.init(params), key, zero, zero)

    def loss(params: PyTree, x: jax.Array, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        output = apply(params, x, key)
        if output.d_kl is None:
            return losses.ae_loss(x, output.y_hat)
        weights = {"alpha": math.prod(shape) / 2, "beta": beta_at(step)}
        return losses.beta_vae_loss(x, output.y_hat, output.d_kl, **weights)

    learn = make_gradient_step(loss, optimizer)

    def gradient_step(
        state: AutoencoderState, x: jax.Array
    ) -> tuple[AutoencoderState, tuple[Metrics, jax.Array]]:
        key, batch_key, sample_key = jax.random.split(state.key, 3)
        batch = x[jax.random.randint(batch_key, (config.batch,), 0, len(x))]
        (params, opt_state), out = learn(
            (state.params, state.opt_state), learning_rate_at(state.step), batch, sample_key, state.step
        )
        skipped = state.skipped + out[1].astype(jnp.int32)
        return AutoencoderState(params, opt_state, key, state.step + 1, skipped), out

    def step(state: AutoencoderState, x: jax.Array) -> tuple[AutoencoderState, Metrics]:
        before = state
        state, (metrics, skipped) = jax.lax.scan(
            lambda state, _: gradient_step(state, x), state, length=config.steps_per_update
        )
        means = mean_over_steps(metrics, skipped)
        means["skipped"] = state.skipped.astype(jnp.float32)
        means["learning_rate"] = learning_rate_at(before.step)
        if variational:
            means["beta"] = beta_at(before.step)
        return state, means

    def evaluate(params: PyTree, x: jax.Array) -> Metrics:
        def one(x: jax.Array) -> Metrics:
            output = apply(params, x[None])
            metrics = {"loss": losses.ae_loss(x[None], output.y_hat)[0]}
            return metrics if output.d_kl is None else metrics | {"kl": jnp.sum(output.d_kl)}

        return jax.tree.map(jnp.mean, jax.lax.map(one, x, batch_size=config.batch))

    def encode(params: PyTree, x: jax.Array) -> jax.Array:
        return apply(params, x).z

    def features(params: PyTree, x: jax.Array) -> tuple[jax.Array, ...]:
        return apply(params, x).encoder_layers

    def decode(params: PyTree, z: jax.Array) -> jax.Array:
        if variational:
            return model.apply({"params": params}, z, shape, method="decode")
        channels = shape[-1] if config.kind == "channel_wise" else 1
        shapes = ae.encoded_shapes((*shape[:2], shape[-1] // channels), layers, config.pad)
        decoder = ae.Conv2DDecoder(shapes, layers, config.pad, config.resize_method)
        features = z.reshape(len(z), channels, *shapes[-1])
        if config.kind == "conv2d":
            return decoder.apply({"params": params["decoder"]}, features[:, 0])[-1]
        bank: Any = jax.vmap(
            lambda params, z: decoder.apply({"params": params}, z)[-1], in_axes=(0, 1), out_axes=-2
        )
        return bank(params["channels"]["decoder"], features)[..., 0]

    return Autoencoder(model, latent, init, step, evaluate, encode, decode, features)
