"""Resizing against jax.image's and against what must hold for every method and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.ops.convolution import conv2d
from btnn_jax.ops.resize import fused_is_cheaper, interpolation_matrix, resize2d, resize_conv2d

METHODS = ["bilinear", "nearest", "bicubic", "area"]
SIZES = [(5, 5), (5, 8), (8, 3), (1, 4), (4, 1), (7, 14), (2, 13)]


def image(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("bilinear", "linear"), ("nearest", "nearest"), ("bicubic", "cubic")]
)
@pytest.mark.parametrize(("size", "new_size"), SIZES)
def test_values_are_those_of_jax_image(ours, theirs, size, new_size):
    x = image(size, 3, 2)
    expected = jax.image.resize(x, (new_size, 4, 2), theirs, antialias=False, precision="highest")
    np.testing.assert_allclose(resize2d(x, (new_size, 4), ours), expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "new_size"), SIZES)
def test_weights_are_a_mean_and_mirror(method, size, new_size):
    matrix = interpolation_matrix(size, new_size, method)
    assert matrix.shape == (new_size, size)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    half = method == "nearest"  # a centre on the border of two pixels takes the right one, in both directions
    if not (half and (size / new_size * (np.arange(new_size) + 0.5) % 1 == 0).any()):
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)
    if size == new_size:
        np.testing.assert_allclose(matrix, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_shape_is_the_same_image(method):
    x = image(2, 5, 3, 2)
    np.testing.assert_array_equal(resize2d(x, (5, 3), method), x)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("new_size", [4, 13, 24])
def test_ramps_stay_ramps_away_from_the_edges(method, new_size):
    x = jnp.arange(8, dtype=jnp.float32)[:, None, None]
    centres = (np.arange(new_size) + 0.5) * 8 / new_size - 0.5
    inside = (centres >= 1) & (centres <= 6)
    assert inside.any()
    y = resize2d(x, (new_size, 1), method)[:, 0, 0]
    np.testing.assert_allclose(y[inside], centres[inside], atol=1e-5)


def test_bilinear_repeats_the_edges():
    y = resize2d(jnp.array([1.0, 3.0])[:, None, None], (8, 1))[:, 0, 0]
    np.testing.assert_allclose(y, [1, 1, 1.25, 1.75, 2.25, 2.75, 3, 3], atol=1e-6)


def test_area_is_the_mean_of_what_a_pixel_covers():
    x = image(6, 4, 2)
    means = x.reshape(3, 2, 2, 2, 2).mean((1, 3))
    np.testing.assert_allclose(resize2d(x, (3, 2), "area"), means, atol=1e-6)
    third = interpolation_matrix(4, 3, "area")  # each covers a pixel and a third
    np.testing.assert_allclose(third * 4, [[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 1, 3]], atol=1e-12)
    repeated = resize2d(x, (12, 4), "area")
    np.testing.assert_allclose(repeated, jnp.repeat(x, 2, axis=0), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_the_transpose(method):
    x, g = image(2, 5, 3, 2), image(2, 7, 2, 2)
    y, vjp = jax.vjp(lambda x: resize2d(x, (7, 2), method), x)
    rows, columns = (interpolation_matrix(*sizes, method) for sizes in ((5, 7), (3, 2)))
    np.testing.assert_allclose(y, np.einsum("hH,wW,nHWc->nhwc", rows, columns, x), atol=1e-5)
    np.testing.assert_allclose(vjp(g)[0], np.einsum("hH,wW,nhwc->nHWc", rows, columns, g), atol=1e-5)
    second = jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(resize2d(x, (7, 2), method) ** 3))(x)))(x)
    assert np.abs(second).max() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("filter_size", [(3, 1), (2, 4)])
def test_taps_before_resizing_are_a_convolution_of_the_resized(method, padding, filter_size):
    x, kernel, g = image(2, 4, 3, 2), image(*filter_size, 2, 3), image(2, 9, 5, 3)
    more = [n - 1 if padding == "VALID" else 0 for n in filter_size]

    def resized_first(x, kernel):
        return conv2d(resize2d(x, (9 + more[0], 5 + more[1]), method), kernel, padding=padding)

    def run(function):
        return jax.jit(lambda *args: (function(*args), jax.vjp(function, *args)[1](g)))(x, kernel)

    ours = run(lambda x, kernel: resize_conv2d(x, kernel, (9, 5), method, padding))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, run(resized_first))


def test_taps_come_first_for_signals_and_small_images():
    signal = ((15, 1, 32), (3, 1, 32, 32), (30, 1))
    small, large = (((n, n, 32), (3, 3, 32, 32), (2 * n, 2 * n)) for n in (14, 128))
    assert [fused_is_cheaper(*shapes) for shapes in (signal, small, large)] == [True, True, False]


def test_leading_axes_vmap_and_types():
    x = image(2, 3, 5, 4, 2)
    y = jax.jit(lambda x: resize2d(x, (3, 9)))(x)
    assert y.shape == (2, 3, 3, 9, 2)
    np.testing.assert_allclose(jax.vmap(jax.vmap(lambda x: resize2d(x, (3, 9))))(x), y, atol=1e-6)
    rows = jax.vmap(lambda x: resize2d(x, (3, 4)))(x)
    np.testing.assert_allclose(rows, resize2d(x, (3, 4)), atol=1e-6)
    assert resize2d(x[:0], (3, 9)).shape == (0, 3, 3, 9, 2)
    half = resize2d(x.astype(jnp.bfloat16), (3, 9))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), y, atol=0.05)


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match="'cubic'"):
        resize2d(image(2, 2, 1), (3, 3), "cubic")
    with pytest.raises(ValueError, match=r"int32 \(2, 2, 1\)"):
        resize2d(jnp.ones((2, 2, 1), jnp.int32), (3, 3))
    with pytest.raises(ValueError, match=r"\(2, 0, 1\) to resize to \(3, 3\)"):
        resize2d(image(2, 0, 1), (3, 3))
    with pytest.raises(ValueError, match=r"to resize to \(3, 0\)"):
        resize2d(image(2, 2, 1), (3, 0))
    with pytest.raises(ValueError, match="'FULL'"):
        resize_conv2d(image(2, 2, 1), image(3, 3, 1, 2), (3, 3), padding="FULL")
    with pytest.raises(ValueError, match=r"float32 \(2, 2, 1\); got float32 \(3, 3, 2, 2\)"):
        resize_conv2d(image(2, 2, 1), image(3, 3, 2, 2), (3, 3))
