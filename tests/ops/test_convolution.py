"""Our convolutions against XLA's own: values, gradients of any order, and under every transformation."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from btnn_jax.ops.convolution import conv1d, conv2d, deconv2d, depthwise_conv2d

LAYOUT = ("NHWC", "HWIO", "NHWC")
COMPILE_FAST = {"xla_backend_optimization_level": 0}  # these programs run once

# Image, filter, stride, paddings: odd sizes, a stride that leaves pixels over, filters larger than the image,
# filters smaller than the stride, sizes per axis; with stride 1, filters wide and narrow.
GEOMETRIES = [
    ((10, 10), (3, 3), (1, 1), ("SAME",)),
    ((9, 8), (4, 3), (1, 1), ("SAME", "VALID")),
    ((8, 9), (3, 1), (1, 1), ("SAME", "VALID")),
    ((2, 3), (5, 5), (1, 1), ("SAME",)),
    ((13, 12), (3, 3), (2, 2), ("SAME", "VALID")),
    ((9, 14), (4, 2), (2, 3), ("SAME", "VALID")),
    ((30, 1), (3, 1), (2, 1), ("SAME",)),
    ((7, 8), (1, 2), (3, 3), ("VALID",)),
    ((2, 3), (5, 5), (2, 1), ("SAME",)),
]


def xla_conv2d(x, kernel, stride=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=LAYOUT)


def xla_deconv2d(x, kernel, stride=(2, 2)):
    pads = [(k - 1, k - 1) for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel[::-1, ::-1], (1, 1), pads, lhs_dilation=stride, dimension_numbers=LAYOUT
    )


def xla_depthwise_conv2d(x, kernel, stride=(1, 1), padding="SAME"):
    groups = x.shape[-1]
    kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    return lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def operations():
    """`(ours, XLA's, image, kernel shape)` for each operation and geometry."""
    for size, filter_size, stride, paddings in GEOMETRIES:
        geometry = "-".join("x".join(map(str, pair)) for pair in (size, filter_size, stride))
        options = [(conv2d, xla_conv2d, {"padding": p}) for p in paddings]
        options += [(depthwise_conv2d, xla_depthwise_conv2d, {"padding": paddings[-1]})]
        options += [(deconv2d, xla_deconv2d, {})]
        for ours, theirs, option in options:
            bound = [functools.partial(f, stride=stride, **option) for f in (ours, theirs)]
            name = "-".join([ours.__name__, geometry, *option.values()])
            yield pytest.param(*bound, (*size, 3), (*filter_size, 3, 4), id=name)


def normal(seed, *shapes):
    return [
        jax.random.normal(k, s)
        for k, s in zip(jax.random.split(jax.random.key(seed), len(shapes)), shapes, strict=True)
    ]


def both(function):
    """The value, and the gradients for a cotangent that is not constant."""

    def run(*args):
        y, vjp = jax.vjp(function, *args)
        cotangent = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).astype(jnp.bfloat16)
        return y, vjp(cotangent.astype(y.dtype).reshape(y.shape))

    return run


def value_and_gradients(function, *args):
    return jax.jit(both(function), compiler_options=COMPILE_FAST)(*args)


def assert_close(ours, theirs, rtol=2e-5):
    def check(a, b):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(1e-9, np.abs(b).max(initial=0.0)))

    jax.tree.map(check, ours, theirs)


@pytest.mark.parametrize(("ours", "theirs", "image", "kernel"), list(operations()))
def test_value_and_gradients_are_xlas(ours, theirs, image, kernel):
    args = normal(0, (2, *image), kernel)
    assert_close(value_and_gradients(ours, *args), value_and_gradients(theirs, *args))


# One of each, for what does not depend on geometry.
EACH = [
    pytest.param(conv2d, xla_conv2d, id="conv2d"),
    pytest.param(
        functools.partial(conv2d, stride=(2, 2)),
        functools.partial(xla_conv2d, stride=(2, 2)),
        id="strided conv2d",
    ),
    pytest.param(deconv2d, xla_deconv2d, id="deconv2d"),
    pytest.param(depthwise_conv2d, xla_depthwise_conv2d, id="depthwise_conv2d"),
]


@pytest.mark.parametrize("function", [conv2d, deconv2d, depthwise_conv2d])
@pytest.mark.parametrize("lead", [(), (0,), (2, 3)])
def test_any_leading_axes(function, lead):
    x, kernel = normal(2, (6, 7, 6, 3), (4, 4, 3, 2))
    flat = function(x, kernel)
    images = math.prod(lead)
    expected = flat[:images].reshape(*lead, *flat.shape[1:])
    assert_close(function(x[:images].reshape(*lead, 7, 6, 3), kernel), expected)


@pytest.mark.parametrize(("ours", "theirs"), EACH)
@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (1, 3)])
def test_vmap(ours, theirs, in_axes):
    x, kernel = normal(3, (2, 7, 6, 3), (4, 4, 3, 2))
    x = x if in_axes[0] is None else jnp.stack([x, -x, x * x], in_axes[0])
    kernel = kernel if in_axes[1] is None else jnp.stack([kernel, kernel * kernel, -kernel], in_axes[1])
    ours, theirs = (jax.vmap(f, in_axes) for f in (ours, theirs))
    assert_close(value_and_gradients(ours, x, kernel), value_and_gradients(theirs, x, kernel))


@pytest.mark.parametrize(("ours", "theirs"), EACH)
def test_gradient_inside_a_scan(ours, theirs):
    x, kernel = normal(5, (3, 2, 7, 6, 3), (4, 4, 3, 2))

    @functools.partial(jax.jit, static_argnums=0, compiler_options=COMPILE_FAST)
    def descend(function, kernel, xs):
        def step(kernel, x):
            gradient = jax.grad(lambda k: jnp.mean(jnp.square(function(x, k))))(kernel)
            return kernel - 0.1 * gradient, gradient

        return lax.scan(step, kernel, xs)

    assert_close(descend(ours, kernel, x), descend(theirs, kernel, x))


@pytest.mark.parametrize(("ours", "theirs"), EACH)
def test_second_derivatives(ours, theirs):
    args = normal(6, (2, 7, 6, 3), (4, 4, 3, 2))

    def penalty(function, x, kernel):
        gradients = jax.grad(lambda *args: jnp.sum(jnp.tanh(function(*args))), (0, 1))(x, kernel)
        return sum(jnp.sum(jnp.square(g)) for g in gradients)

    def second(function):
        gradient = jax.grad(functools.partial(penalty, function), (0, 1))
        return jax.jit(gradient, compiler_options=COMPILE_FAST)(*args)

    assert_close(second(ours), second(theirs))


@pytest.mark.parametrize(("ours", "theirs"), EACH)
def test_forward_mode_is_an_error(ours, theirs):
    args = normal(7, (2, 7, 6, 3), (4, 4, 3, 2))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(ours, args, args)


@pytest.mark.parametrize(("ours", "theirs"), EACH)
def test_bfloat16_sums_in_float32(ours, theirs):
    args = [a.astype(jnp.bfloat16) for a in normal(8, (64, 7, 6, 3), (4, 4, 3, 2))]
    halves = value_and_gradients(ours, *args)
    floats = value_and_gradients(theirs, *(a.astype(jnp.float32) for a in args))
    assert {a.dtype for a in jax.tree.leaves(halves)} == {jnp.dtype(jnp.bfloat16)}
    assert_close(jax.tree.map(lambda a: a.astype(jnp.float32), halves), floats, rtol=2**-7)


def lowered(function, platform):
    args = normal(9, (2, 7, 6, 3), (4, 4, 3, 2))
    traced = jax.jit(both(function)).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("ours", "theirs"), EACH)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_xlas_own_convolutions(ours, theirs, platform):
    def names(text):
        return sorted(re.findall(r"stablehlo\.(?:convolution|dot_general|concatenate|while)", text))

    assert names(lowered(ours, platform)) == names(lowered(theirs, platform)) == ["stablehlo.convolution"] * 3


def test_cpus_get_no_gradient_that_is_slow_in_loops():
    text = lowered(functools.partial(conv2d, stride=(2, 2)), "cpu")
    assert text.count("stablehlo.convolution") == 2  # forward, and the gradient of x as a forward convolution
    assert "feature_group_count = 1 : i64" in text
    assert "stablehlo.dot_general" in text
    assert "stablehlo.convolution" not in lowered(conv2d, "cpu")
    grouped = [
        lowered(depthwise_conv2d, "cpu"),
        lowered(lambda x, k: jax.vmap(conv2d, (None, 0))(x, jnp.stack([k, k])), "cpu"),
    ]
    assert not any("stablehlo.convolution" in text for text in grouped)


@pytest.mark.parametrize(("channels", "features", "matrix"), [(4, 16, "36x16"), (16, 32, "48x96")])
def test_whole_patches_are_multiplied_where_channels_are_few(channels, features, matrix):
    args = normal(9, (2, 7, 6, channels), (3, 3, channels, features))
    text = jax.jit(both(conv2d)).trace(*args).lower(lowering_platforms=("cpu",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert sum(f"tensor<{matrix}xf32>" in line for line in products) >= 2  # forward and the kernel's gradient


def test_one_exported_program_serves_all_platforms():
    x, kernel = normal(10, (2, 7, 6, 3), (4, 4, 3, 2))
    exported = jax.export.export(jax.jit(both(conv2d)), platforms=("cpu", "cuda"))(x, kernel)
    assert_close(exported.call(x, kernel), value_and_gradients(xla_conv2d, x, kernel))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_conv1d_is_xlas(padding):
    def xla(x, kernel):
        return lax.conv_general_dilated(x, kernel, (2,), padding, dimension_numbers=("NWC", "WIO", "NWC"))

    args = normal(11, (3, 29, 4), (3, 4, 8))
    ours = functools.partial(conv1d, stride=2, padding=padding)
    assert_close(value_and_gradients(ours, *args), value_and_gradients(xla, *args))


@pytest.mark.parametrize("function", [conv2d, deconv2d, depthwise_conv2d])
def test_shapes_that_do_not_fit_are_named(function):
    with pytest.raises(ValueError, match=r"\(1, 5, 5, 3\) and \(3, 3, 4, 2\)"):
        function(jnp.ones((1, 5, 5, 3)), jnp.ones((3, 3, 4, 2)))
    with pytest.raises(ValueError, match="bfloat16"):
        function(jnp.ones((1, 5, 5, 3)), jnp.ones((3, 3, 3, 2), jnp.bfloat16))


@pytest.mark.parametrize("function", [conv2d, deconv2d, depthwise_conv2d])
@pytest.mark.parametrize("stride", [2, (0, 1), (2, 2, 2)])
def test_strides_are_two_numbers(function, stride):
    with pytest.raises(ValueError, match=rf"stride must be two numbers >= 1; got {re.escape(repr(stride))}"):
        function(jnp.ones((1, 5, 5, 3)), jnp.ones((3, 3, 3, 2)), stride)


def test_errors_name_what_was_given():
    x, kernel = jnp.ones((1, 2, 5, 3)), jnp.ones((3, 3, 3, 2))
    with pytest.raises(ValueError, match=r"filter of \(3, 3\).*image of \(2, 5\)"):
        conv2d(x, kernel, padding="VALID")
    with pytest.raises(ValueError, match=r"image of \(0, 5\)"):
        depthwise_conv2d(x[:, :0], kernel)
    with pytest.raises(ValueError, match=r"got \(1, 0, 5, 3\)"):
        deconv2d(x[:, :0], kernel)
    with pytest.raises(ValueError, match="'FULL'"):
        conv2d(x, kernel, padding="FULL")
    with pytest.raises(ValueError, match=r"\(2, 5, 3\) and \(3, 3, 3, 2\)"):
        conv1d(x[0], kernel)
