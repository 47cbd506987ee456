"""What kernels look for, against BTGym's and against kernels whose best input is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import ae
from btnn_jax.interop import from_btgym
from btnn_jax.kernel_monitor import KernelMonitor

DIRECTIONS = np.random.default_rng(0).normal(size=(4, 5, 3, 2)).astype(np.float32)


def products(x):
    """Kernel k: the inner product with direction k, over two places of which one sees nothing."""
    y = jnp.einsum("bhwc,khwc->bk", x, DIRECTIONS)
    return jnp.stack([y, jnp.zeros_like(y)], axis=1)[:, :, None]


def test_btgym(golden):
    g = golden("ae_kernel_monitor")
    config = tuple((filters, tuple(size), tuple(stride)) for filters, size, stride in g.cfg["layer_config"])
    encoder = ae.Conv2DEncoder(config)
    params = from_btgym(encoder, g.variables)
    start = jnp.asarray(g.inputs["start"][0])
    monitor = ae.KernelMonitor(lambda x: encoder.apply({"params": params}, x)[g.cfg["layer"]], start.shape)
    index, step, num_steps = (g.cfg[name] for name in ("kernel_index", "step", "num_steps"))
    signal = monitor.fit(None, index, step, num_steps, start)
    np.testing.assert_allclose(signal, g.outputs["signal"][0], atol=1e-5)
    signals = monitor.fit_all(None, step, num_steps, start)
    np.testing.assert_allclose(signals[index], signal, atol=1e-5)


def test_a_linear_kernel_is_climbed_straight():
    monitor = KernelMonitor(products, (5, 3, 2))
    start = jnp.ones((5, 3, 2))
    gradient = DIRECTIONS[1] / 2  # two places
    expected = 1 + 3 * 0.1 * gradient / (np.sqrt(np.mean(gradient**2)) + 1e-5)
    np.testing.assert_allclose(monitor.fit(None, 1, 0.1, 3, start), expected, rtol=1e-5)


def test_all_kernels_are_each_kernel():
    monitor = KernelMonitor(products, (5, 3, 2))
    options = {"step": 0.1, "num_steps": 7, "l2": 0.1, "blur": 0.7}
    signals = monitor.fit_all(jax.random.key(3), **options)
    assert signals.shape == (4, 5, 3, 2)
    for k, signal in enumerate(signals):
        np.testing.assert_allclose(monitor.fit(jax.random.key(3), k, **options), signal, atol=1e-5)
    own = jnp.stack([k * jnp.ones((5, 3, 2)) for k in range(4)])
    np.testing.assert_allclose(monitor.fit_all(None, 0.1, 0, own), own)


def test_starts_are_noise_of_the_key():
    monitor = KernelMonitor(products, (5, 3, 2))
    first, again, other = (monitor.fit_all(jax.random.key(k), num_steps=0) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert first.min() >= 0
    assert first.max() < 1


def test_decay_shrinks_and_blur_smooths():
    monitor = KernelMonitor(lambda x: 0 * x, (9, 1, 1))
    start = jnp.zeros((9, 1, 1)).at[4].set(1.0)
    np.testing.assert_allclose(monitor.fit(None, 0, 0.0, 2, start, l2=0.1), 0.81 * start, rtol=1e-6)
    blurred = monitor.fit(None, 0, 0.0, 1, start, blur=0.8)[:, 0, 0]
    bell = np.exp(-((np.arange(9) - 4.0) ** 2) / (2 * 0.8**2))
    np.testing.assert_allclose(blurred, bell / bell.sum(), atol=1e-3)
    flat = jnp.full((9, 1, 1), 3.0)  # also at the edges
    np.testing.assert_allclose(monitor.fit(None, 0, 0.0, 5, flat, blur=2.0), flat, rtol=1e-5)


def test_errors_name_what_was_given():
    monitor = KernelMonitor(products, (5, 3, 2))
    with pytest.raises(IndexError, match="0 to 3, got 4"):
        monitor.fit(jax.random.key(0), 4)
    with pytest.raises(ValueError, match="a key to draw"):
        monitor.fit(None, 0)
    with pytest.raises(ValueError, match=r"\(5, 3, 2\).*got \(5, 3\)"):
        monitor.fit(None, 0, start=jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"got \(5, 2\)"):
        KernelMonitor(products, (5, 2))
    with pytest.raises(ValueError, match=r"\(1, 5, 3, 2\) to \[1, h, w, C\], got \(1, 30\)"):
        KernelMonitor(lambda x: x.reshape(1, -1), (5, 3, 2))


@pytest.mark.parametrize("index", [2, -1, np.int64(2), np.int32(-1), jnp.int32(5)])
def test_a_kernel_that_is_not_there_is_an_error_whatever_its_type(index):
    monitor = KernelMonitor(lambda x: jnp.concatenate([x, x], axis=-1), (4, 4, 1))
    with pytest.raises(IndexError, match="kernels 0 to 1, got"):
        monitor.fit(jax.random.key(0), index)


@pytest.mark.parametrize("index", [1.0, 0.5, "1", None, np.array([0, 1])])
def test_a_kernel_is_a_whole_number(index):
    monitor = KernelMonitor(lambda x: jnp.concatenate([x, x], axis=-1), (4, 4, 1))
    with pytest.raises(TypeError, match="kernel_index must be a whole number, got"):
        monitor.fit(jax.random.key(0), index)


def test_an_8_bit_index_names_one_kernel_of_many():
    signs = jnp.ones((1, 1, 1, 300)).at[..., 257].set(-1)  # 257 is 1 in 8 bits
    monitor = KernelMonitor(lambda x: x.sum(-1, keepdims=True) * signs, (2, 2, 1))
    start = jnp.zeros((2, 2, 1))
    expected = monitor.fit(None, 1, start=start)
    assert (expected > 0).all()
    np.testing.assert_array_equal(monitor.fit(None, np.uint8(1), start=start), expected)
    np.testing.assert_array_equal(
        jax.jit(lambda k: monitor.fit(None, k, start=start))(jnp.uint8(1)), expected
    )
