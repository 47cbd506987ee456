import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from btnn_jax.ae import BetaVAEConv2D, ChannelWiseConv2DAutoencoder, Conv2DAutoencoder
from btnn_jax.encoders import ObservationEncoder, as_image, check_shared, image_stream, one_stream

SHAPES = {"image": (10, 10, 4), "signal": (30, 5), "scalar": (), "vector": (7,)}
RANKS = {name: len(shape) for name, shape in SHAPES.items()}


def draw(shape, lead=(3,), seed=0):
    return jax.random.normal(jax.random.key(seed), (*lead, *shape))


def start(encoder, observation, **fields):
    return jax.jit(functools.partial(encoder.init, **fields))(jax.random.key(1), observation)


def call(encoder, **fields):
    return jax.jit(functools.partial(encoder.apply, **fields))


def test_every_stream_is_encoded_by_its_rank_and_in_the_order_of_the_names():
    encoder = ObservationEncoder(RANKS, num_filters=(2,), hidden=(6, 5))
    observation = {name: draw(shape) for name, shape in SHAPES.items()}
    variables = start(encoder, observation)
    streams = call(encoder, method="streams")(variables, observation)
    assert {name: x.shape for name, x in streams.items()} == dict.fromkeys(sorted(SHAPES), (3, 5))
    features = call(encoder)(variables, observation)
    np.testing.assert_allclose(
        features, jnp.concatenate([streams[name] for name in sorted(streams)], -1), rtol=1e-5
    )
    layers = {f"{name}_dense_{i}" for name in SHAPES for i in (0, 1)} | {"image_conv", "signal_conv"}
    assert set(variables["params"]) == layers
    # Nothing of a stream is in the features of another.
    changed = call(encoder, method="streams")(variables, {**observation, "vector": observation["vector"] + 1})
    assert [name for name in SHAPES if not np.array_equal(changed[name], streams[name])] == ["vector"]


@pytest.mark.parametrize("lead", [(), (2,), (4, 2)])
def test_leading_axes_are_kept(lead):
    encoder = ObservationEncoder(2, num_filters=(2,), hidden=(5,))
    x = draw((30, 5), (4, 2))
    variables = start(encoder, x)
    part = x[(0,) * (2 - len(lead))]
    whole = call(encoder)(variables, x)
    np.testing.assert_allclose(
        call(encoder)(variables, part), whole[(0,) * (2 - len(lead))], rtol=1e-4, atol=1e-6
    )


def test_uint8_is_pixels_and_bool_is_not():
    encoder = ObservationEncoder(3, num_filters=(2,), hidden=(5,))
    pixels = jax.random.randint(jax.random.key(0), (3, 10, 10, 4), 0, 256, jnp.int32).astype(jnp.uint8)
    variables, apply = start(encoder, pixels), call(encoder)
    scaled = apply(variables, pixels.astype(jnp.float32) / 255)
    np.testing.assert_allclose(apply(variables, pixels), scaled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        apply(variables, pixels > 99), apply(variables, (pixels > 99).astype(jnp.float32)), rtol=1e-6
    )


def test_a_black_frame_has_a_gradient_like_any_other():
    encoder = ObservationEncoder(3)
    frames = np.random.default_rng(0).integers(0, 256, (4, 42, 42, 3), np.uint8)
    black = np.where(np.arange(4)[:, None, None, None] == 0, np.uint8(0), frames)
    variables = start(encoder, frames)
    gradient = jax.jit(jax.grad(lambda variables, frames: encoder.apply(variables, frames).sum()))
    norms = [optax.tree.norm(gradient(variables, x)) for x in (frames, black, np.zeros_like(frames))]
    assert max(norms) < 2 * norms[0]


@pytest.mark.parametrize(
    ("shape", "left"),
    [
        ((4, 4, 3), (4, 4)),
        ((3, 3, 2), (3, 3)),
        ((10, 2, 3), (10, 2)),
        ((2, 5), (2, 1)),
        ((4, 1), (4, 1)),
        ((5, 5, 3), (1, 1)),  # enough for two VALID filters of 3
        ((10, 10, 3), (6, 6)),
        ((7, 5), (3, 1)),
    ],
)
def test_the_smallest_images_and_signals_are_encoded(shape, left):
    encoder = ObservationEncoder(len(shape), hidden=())
    features, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), draw(shape))
    assert features.shape == (3, left[0] * left[1] * 32)


def test_no_filters_are_no_convolutions():
    encoder, x = ObservationEncoder(3, num_filters=(), hidden=(5,)), draw((4, 4, 3))
    assert set(start(encoder, x)["params"]) == {"stream_dense_0"}


def test_streams_that_share_an_encoder_share_its_parameters():
    own = ObservationEncoder({"a": 2, "b": 2, "c": 1}, num_filters=(2,), hidden=(5,))
    shared = own.clone(shared=("b", "a"))
    observation = {"a": draw((30, 5)), "b": draw((30, 5), seed=1), "c": draw((7,))}
    variables = start(shared, observation)
    assert set(variables["params"]) == {"shared_conv", "shared_dense_0", "c_dense_0"}
    same = {
        name.replace("shared", stream): x
        for stream in "ab"
        for name, x in variables["params"].items()
        if name[0] == "s"
    }
    same["c_dense_0"] = variables["params"]["c_dense_0"]
    expected = call(own)({"params": same}, observation)
    np.testing.assert_allclose(call(shared)(variables, observation), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [Conv2DAutoencoder, ChannelWiseConv2DAutoencoder, BetaVAEConv2D])
def test_an_autoencoder_takes_the_place_of_the_convolutions(model):
    encoder = ObservationEncoder(
        {"bars": 2, "other": 2, "position": 1},
        num_filters=(2,),
        hidden=(5,),
        autoencoder=model(((3, (3, 1), (2, 1)),)),
        ae_stream="bars",
    )
    observation = {"bars": draw((30, 5)), "other": draw((30, 5)), "position": draw((7,))}

    def both(module, observation):
        return module(observation), module.reconstruct(observation)

    keys = {"params": jax.random.key(1), "sample": jax.random.key(2)}
    variables = jax.jit(functools.partial(encoder.init, method=both))(keys, observation)
    assert set(variables["params"]) == {
        "autoencoder", "bars_dense_0", "other_conv", "other_dense_0", "position_dense_0",
    }  # fmt: skip
    _, (images, output) = call(encoder, method=both)(
        variables, observation, rngs={"sample": jax.random.key(3)}
    )
    np.testing.assert_array_equal(images, observation["bars"][..., None, :])
    assert output.y_hat.shape == images.shape == (3, 30, 1, 5)

    # What the agent sees of the stream is the latent variables, without noise, and nothing of the decoder.
    gradient = jax.jit(jax.grad(lambda variables: jnp.sum(jnp.square(encoder.apply(variables, observation)))))
    leaves = jax.tree_util.tree_leaves_with_path(gradient(variables)["params"]["autoencoder"])
    reaches = {jax.tree_util.keystr(path): float(jnp.abs(x).max()) > 0 for path, x in leaves}
    assert {
        any(word in path for word in ("decoder", "generator")) != used for path, used in reaches.items()
    } == {True}
    assert set(reaches.values()) == {True, False}


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("observation", "name", "expected"),
    [
        (spec(30, 5), None, None),
        ({"only": spec(7)}, None, "only"),
        ({"frame": spec(10, 10, 3), "external": spec(7)}, None, "frame"),
        ({"external": spec(30, 5), "internal": spec(30, 2)}, None, "external"),
        ({"external": spec(30, 5), "internal": spec(30, 2)}, "internal", "internal"),
    ],
)
def test_pixel_control_finds_its_stream(observation, name, expected):
    assert image_stream(observation, name) == expected


def test_clear_errors():
    assert as_image((30, 5)) == (30, 1, 5)
    with pytest.raises(ValueError, match=r"a stream of shape \(7,\)"):
        as_image((7,))
    with pytest.raises(ValueError, match="one stream, without a name, got 'a'"):
        one_stream(spec(7), "a")
    two = {"a": spec(30, 5), "b": spec(30, 4)}
    for find in (one_stream, image_stream):
        with pytest.raises(ValueError, match=r"one observation stream of \['a', 'b'\], got None"):
            find(two)
        with pytest.raises(ValueError, match=r"one observation stream of \['a', 'b'\], got 'c'"):
            find(two, "c")
    encoder = ObservationEncoder({"a": 2, "b": 2}, num_filters=(2,), shared=("a", "b"))
    with pytest.raises(ValueError, match=r"expected observation streams \['a', 'b'\], got \['a'\]"):
        encoder.init(jax.random.key(0), {"a": draw((30, 5))})
    with pytest.raises(
        ValueError, match=r"one shape and type, got a float32 \(3, 30, 5\), b float32 \(3, 30, 4\)"
    ):
        encoder.init(jax.random.key(0), {"a": draw((30, 5)), "b": draw((30, 4))})
    with pytest.raises(ValueError, match=r"one shape and type, got a float32 \(7,\), b uint8 \(7,\)"):
        check_shared({"a": jnp.zeros(7), "b": jnp.zeros(7, jnp.uint8)}, ("a", "b"))
    images = {"a": draw((30, 5)), "b": draw((30, 5)), "vector": draw((7,))}
    encoder = ObservationEncoder({"a": 2, "b": 2, "vector": 1}, autoencoder=Conv2DAutoencoder())
    for name in (None, "vector"):
        with pytest.raises(ValueError, match=rf"one observation stream of \['a', 'b'\], got {name!r}"):
            encoder.clone(ae_stream=name).init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="no autoencoder"):
        encoder.clone(autoencoder=None).apply({}, {"a": draw((30, 5))}, method="reconstruct")
