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


def apply(module, variables, *inputs, **options):
    return jax.jit(functools.partial(module.apply, **options))(variables, *inputs)


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


# Shapes.


@pytest.mark.parametrize("method", ["bilinear", "nearest", "bicubic", "area"])
@pytest.mark.parametrize("pad", ["SAME", "VALID"])
@pytest.mark.parametrize(("config", "shape"), [(SMALL, (2, 3, 13, 1, 2)), (IMAGE, (11, 14, 3))])
def test_reconstructions_have_the_inputs_shape(config, shape, pad, method):
    module = Conv2DAutoencoder(config, method, pad)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    output = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], x)
    assert output.y_hat.shape == shape
    # Layers mirror each other.
    sizes = [x.shape, *(layer.shape for layer in output.encoder_layers)]
    assert tuple(s[-3:] for s in sizes) == encoded_shapes(shape, config, pad)
    assert [layer.shape[:-1] for layer in output.decoder_layers] == [s[:-1] for s in sizes[-2::-1]] + [
        shape[:-1]
    ]
    assert output.z.shape == (*shape[:-3], np.prod(sizes[-1][-3:]))


@pytest.mark.parametrize("pad", ["SAME", "VALID"])
def test_large_images_are_resized_first_to_the_same_end(pad, monkeypatch):
    module, x = Conv2DAutoencoder(IMAGE, pad=pad), normals(1, 11, 14, 3)
    variables = init(module, x)
    answers = []
    for first in (True, False):
        monkeypatch.setattr("btnn_jax.layers.fused_is_cheaper", lambda *shapes, first=first: first)
        answers.append(jax.jit(lambda v: module.apply(v, x).decoder_layers)(variables))
    assert_close(*answers)


@pytest.mark.parametrize("kind", [ChannelWiseConv2DAutoencoder, BetaVAEConv2D])
def test_leading_axes_are_a_batch(kind):
    module, x = kind(SMALL), normals(2, 3, 9, 1, 2)
    variables = init(module, x)

    def run(x):
        options = {"eps": jnp.broadcast_to(normals(7), (*x.shape[:-3], 7))} if kind is BetaVAEConv2D else {}
        return apply(module, variables, x, **options).y_hat

    assert_close(run(x), run(x.reshape(6, 9, 1, 2)).reshape(x.shape))
    assert_close(run(x[1, 2]), run(x)[1, 2])


def test_integer_images_are_pixels():
    x = np.random.default_rng(0).integers(0, 256, (2, 9, 1, 2)).astype(np.uint8)
    module = Conv2DEncoder(SMALL)
    variables = init(module, x)
    run = jax.jit(module.apply)
    assert_close(run(variables, x), run(variables, jnp.asarray(x, jnp.float32) / 255))
    black = jnp.asarray(x > 99)
    assert_close(run(variables, black), run(variables, black.astype(jnp.float32)))


def test_a_level_that_leaves_nothing_is_named():
    with pytest.raises(ValueError, match=r"level 3 .*VALID filter \(3, 1\).*gets \(2, 1, 32\).*\(5, 1, 32\)"):
        Conv2DEncoder(pad="VALID").init(jax.random.key(0), jnp.zeros([12, 1, 3]))
    with pytest.raises(ValueError, match=r"level 1 .* gets \(0, 1, 3\)"):
        encoded_shapes((0, 1, 3))
    with pytest.raises(ValueError, match="'FULL'"):
        encoded_shapes((30, 1, 3), pad="FULL")
    with pytest.raises(ValueError, match=r"at least one layer, got \(30, 1, 3\) and \(\)"):
        encoded_shapes((30, 1, 3), ())


def test_a_decoder_of_other_shapes_is_an_error():
    shapes = encoded_shapes((9, 1, 2), SMALL)
    message = r"\(\(9, 1, 2\), \(5, 1, 4\), \(3, 1, 5\)\).*got .*z \(4, 1, 5\)"
    with pytest.raises(ValueError, match=message):
        Conv2DDecoder(shapes, SMALL).init(jax.random.key(0), jnp.zeros([4, 1, 5]))
    with pytest.raises(ValueError, match=r"got \[\(9, 1, 2\), \(5, 1, 4\)\]"):
        Conv2DDecoder(shapes[:-1], SMALL).init(jax.random.key(0), jnp.zeros([3, 1, 5]))


@pytest.mark.parametrize("kind", [Conv2DAutoencoder, ChannelWiseConv2DAutoencoder, BetaVAEConv2D])
def test_bfloat16_computes_in_it_and_answers_float32(kind):
    module, x = kind(SMALL, dtype=jnp.bfloat16), normals(2, 9, 1, 2)
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    output, variables = jax.eval_shape(lambda x: module.init_with_output(keys, x), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    layers = (*output.encoder_layers, *output.decoder_layers)
    assert {layer.dtype for layer in layers} == {jnp.dtype(jnp.bfloat16)}
    assert output.y_hat.dtype == jnp.float32
    halves = jax.eval_shape(module.copy(param_dtype=jnp.bfloat16).init, keys, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {jnp.dtype(jnp.bfloat16)}


# One autoencoder per channel.


def test_channels_are_autoencoders_of_their_own():
    bank, one, x = ChannelWiseConv2DAutoencoder(SMALL), Conv2DAutoencoder(SMALL), normals(2, 9, 1, 3)
    variables, single = init(bank, x), jax.jit(one.apply)
    output = apply(bank, variables, x)
    for c, z in enumerate(jnp.split(output.z, 3, axis=-1)):
        params = jax.tree.map(lambda leaf, c=c: leaf[c], variables["params"]["channels"])
        alone = single({"params": params}, x[..., c : c + 1])
        assert_close(z, alone.z)
        assert_close(output.y_hat[..., c : c + 1], alone.y_hat)
        for layers in ("encoder_layers", "decoder_layers"):
            ours = tuple(layer[c] for layer in getattr(output, layers))
            assert_close(ours, getattr(alone, layers))


def test_channels_start_differently_and_keep_apart():
    bank, x = ChannelWiseConv2DAutoencoder(SMALL), normals(2, 9, 1, 3)
    variables = bank.init(jax.random.key(0), x)
    kernel = variables["params"]["channels"]["hidden"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])

    def of_channel_1(params, x):
        return jnp.sum(jnp.sin(bank.apply({"params": params}, x).y_hat[..., 1]))

    dparams, dx = jax.jit(jax.grad(of_channel_1, (0, 1)))(variables["params"], x)
    touched = [np.abs(dx[..., c]).max() > 0 for c in range(3)]
    assert touched == [False, True, False]
    for leaf in jax.tree.leaves(dparams):
        assert np.abs(leaf[1]).max() > 0
        assert np.abs(leaf[np.array([0, 2])]).max() == 0


def test_the_dense_layer_may_be_noisy():
    module = ChannelWiseConv2DAutoencoder(SMALL[:1], linear=NoisyLinear)
    x = jnp.broadcast_to(normals(1, 5, 1, 1), (1, 5, 1, 2))
    params = init(module, x)["params"]["channels"]
    same = {"params": {"channels": jax.tree.map(lambda leaf: jnp.stack([leaf[0], leaf[0]]), params)}}
    z = apply(module, same, x, rngs={"noise": jax.random.key(2)}).z
    assert not np.allclose(*jnp.split(z, 2, axis=-1))  # each channel has noise of its own


# The variational autoencoder.


def test_divergence_is_the_analytic_one():
    mean, log_variance = normals(5, 7), 3 * normals(5, 7, seed=1)
    posterior = distrax.Normal(mean, jnp.exp(log_variance / 2))
    expected = posterior.kl_divergence(distrax.Normal(jnp.zeros_like(mean), jnp.ones_like(mean)))
    assert_close(kl_to_standard_normal(mean, log_variance), expected)
    joint = distrax.MultivariateNormalDiag(mean, jnp.exp(log_variance / 2))
    total = joint.kl_divergence(distrax.MultivariateNormalDiag(jnp.zeros_like(mean), jnp.ones_like(mean)))
    assert_close(kl_to_standard_normal(mean, log_variance).sum(-1), total)


def test_samples_are_of_the_posterior():
    vae, x = BetaVAEConv2D(SMALL), jnp.broadcast_to(normals(9, 1, 2), (4000, 9, 1, 2))
    variables = init(vae, x)
    output = apply(vae, variables, x, rngs={"sample": jax.random.key(3)})
    mean, log_variance = apply(vae, variables, x[0], method="encode")
    assert output.z.shape == (4000, 3 * 5 // 2)  # half of h * w * c, rounded down
    deviation = np.exp(log_variance / 2)
    np.testing.assert_allclose((output.z.mean(0) - mean) / deviation, 0, atol=5 / 4000**0.5)
    np.testing.assert_allclose(output.z.std(0) / deviation, 1, atol=5 / 8000**0.5)
    assert_close(output.d_kl[0], kl_to_standard_normal(mean, log_variance))
    at_mean = apply(vae, variables, x[:1], eps=jnp.zeros([1, 7]))
    assert_close(at_mean.z[0], mean)
    decode = functools.partial(vae.apply, image_shape=x.shape, method="decode")
    assert_close(jax.jit(decode)(variables, at_mean.z), at_mean.y_hat)


def test_btgyms_activation_bounds_the_deviation():
    x = normals(3, 9, 1, 2)
    variables = jax.tree.map(lambda leaf: 30 * leaf, init(BetaVAEConv2D(SMALL), x))
    linear, bounded = (
        apply(BetaVAEConv2D(SMALL, activate_posterior=a), variables, x, method="encode")[1]
        for a in (False, True)
    )
    assert np.exp(linear.min() / 2) < 0.1
    assert np.exp(bounded.min() / 2) > 0.6


def test_training_narrows_the_posterior():
    vae, x = BetaVAEConv2D(((4, (3, 1), (2, 1)),)), normals(8, 6, 1, 1)
    optimizer = optax.adam(3e-2)

    @jax.jit
    def train(params):
        def loss(params, key):
            output = vae.apply({"params": params}, x, rngs={"sample": key})
            return beta_vae_loss(x, output.y_hat, output.d_kl, beta=1e-4)[0]

        def step(carry, key):
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params, key)
            with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float32 and int32
                updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.key(1), 300)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params, losses

    keys = {"params": jax.random.key(0), "sample": jax.random.key(2)}
    params, losses = train(vae.init(keys, x)["params"])
    _, log_variance = apply(vae, {"params": params}, x, method="encode")
    assert losses[-1] < losses[0] / 3
    assert np.exp(log_variance / 2).min() < 0.1


def test_traversal_moves_one_latent_variable():
    vae, x = BetaVAEConv2D(SMALL), normals(2, 9, 1, 2)
    variables = init(vae, x)
    mean, _ = apply(vae, variables, x, method="encode")
    images = jax.jit(lambda values: latent_traversal(vae, variables, x, 2, values))(
        jnp.array([-1.0, 0.0, 2.0])
    )
    assert images.shape == (3, *x.shape)
    decode = functools.partial(vae.apply, image_shape=x.shape, method="decode")
    expected = jax.jit(decode)(variables, mean.at[:, 2].set(2.0))
    assert_close(images[2], expected)
    assert not np.allclose(images[1], images[2])
    with pytest.raises(IndexError, match="0 to 6, got 7"):
        latent_traversal(vae, variables, x, 7, jnp.zeros(1))


def test_latent_variables_that_do_not_fit_are_errors():
    vae, x = BetaVAEConv2D(SMALL), normals(2, 9, 1, 2)
    variables = init(vae, x)
    with pytest.raises(ValueError, match=r"\(2, 7\), got \(7,\)"):
        vae.apply(variables, x, eps=jnp.zeros(7))
    with pytest.raises(ValueError, match=r"7 latent variables, got z \(2, 6\)"):
        vae.apply(variables, jnp.zeros([2, 6]), x.shape, method="decode")
    with pytest.raises(ValueError, match=r"two innermost features, got \(1, 1, 1\)"):
        BetaVAEConv2D(((1, (3, 1), (2, 1)),)).init(jax.random.key(0), jnp.zeros([2, 1, 1]))


def test_a_vmapped_population_is_each_model():
    module, x = Conv2DAutoencoder(SMALL), normals(2, 9, 1, 2)
    models = [init(module, x), jax.tree.map(jnp.negative, init(module, x))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)

    def gradient(variables):
        return jax.grad(lambda v: jnp.sum(jnp.sin(module.apply(v, x).y_hat)))(variables)

    together = jax.jit(jax.vmap(gradient))(stacked)
    for k, model in enumerate(models):
        alone = jax.jit(gradient)(model)
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], together), alone, rtol=1e-3, atol=1e-4)
