"""Layers against BTGym's own numbers, and what noise must and must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from btnn_jax import layers, networks
from btnn_jax.layers import (
    Conv1D,
    Conv2D,
    Deconv2D,
    DepthwiseConv2D,
    Linear,
    NoisyLinear,
    categorical_sample,
    noisy_linear,
)


def deconv_kernel(w):
    return w.swapaxes(2, 3)  # BTGym's is [kh, kw, out, in]


def unchanged(w):
    return w


CONVOLUTIONS = [
    ("layer_conv1d_same", Conv1D, "conv/W", "conv/b", unchanged),
    ("layer_conv1d_valid", Conv1D, "conv/W", "conv/b", unchanged),
    ("layer_conv2d_same", Conv2D, "conv/W", "conv/b", unchanged),
    ("layer_conv2d_valid", Conv2D, "conv/W", "conv/b", unchanged),
    ("layer_conv2d_dw_same", DepthwiseConv2D, "dw/W", "dw/b", unchanged),
    ("layer_conv2d_dw_valid", DepthwiseConv2D, "dw/W", "dw/b", unchanged),
    ("layer_deconv2d", Deconv2D, "deconv/d_W", "deconv/d_b", deconv_kernel),
    ("layer_linear", Linear, "lin//w", "lin//b", unchanged),
]


def assert_close(actual, expected, rtol):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize(("case", "layer", "kernel", "bias", "convert"), CONVOLUTIONS)
def test_layers_compute_what_btgyms_do(golden, case, layer, kernel, bias, convert):
    case = golden(case)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in case.cfg.items()}
    params = {"kernel": convert(case.variables[kernel]), "bias": case.variables[bias].reshape(-1)}

    y, vjp = jax.vjp(lambda p, x: layer(**options).apply({"params": p}, x), params, case.inputs["x"])
    params_gradient, x_gradient = vjp(jnp.asarray(case.cotangents["y"]))

    assert_close(y, case.outputs["y"], 1e-4)
    assert_close(params_gradient["kernel"], convert(case.gradients[kernel]), 1e-3)
    assert_close(params_gradient["bias"], case.gradients[bias].reshape(-1), 1e-3)
    assert_close(x_gradient, case.gradients["in/x"], 1e-3)


@pytest.fixture(params=["materialised", "factored"])
def formulation(request, monkeypatch):
    """The same test with the noisy kernel and with products of its factors, whatever the sizes."""
    limit = {"materialised": np.inf, "factored": 0}[request.param]
    monkeypatch.setattr("btnn_jax.layers._MATERIALISE_UP_TO", limit)


def test_a_forward_pass_factors_large_kernels_and_a_gradient_none():
    """A kernel is large beside what goes in and out of it: for one row, and no longer for 256."""

    def products(rows, size, *, gradient=False):
        params = {"kernel_mu": jnp.ones((64, size)), "kernel_sigma": jnp.ones((64, size))}

        def forward(params, x):
            return jnp.sum(jnp.square(noisy_linear(x, params, jnp.ones(64), jnp.ones(size))))

        program = jax.jit(jax.grad(forward) if gradient else forward)
        return program.lower(params, jnp.ones((rows, 64))).as_text().count("dot_general ")

    assert products(1, 64) == 2
    assert products(256, 64) == 1
    assert products(1, 3) == 1
    assert products(1, 64, gradient=True) == 2  # the layer, and the kernel's gradient


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("case", ["layer_noisy_linear", "layer_noisy_linear_nobias"])
def test_noisy_linear_computes_what_btgyms_does(golden, case):
    case = golden(case)
    names = {"kernel_mu": "w_mu", "kernel_sigma": "w_sigma", "bias_mu": "b_mu", "bias_sigma": "b_sigma"}
    found = {
        ours: f"noisy//{theirs}" for ours, theirs in names.items() if f"noisy//{theirs}" in case.variables
    }
    params = {ours: case.variables[theirs] for ours, theirs in found.items()}
    eps_in, eps_out = case.noise[0].reshape(-1), case.noise[1].reshape(-1)

    y, vjp = jax.vjp(lambda p, x: noisy_linear(x, p, eps_in, eps_out), params, case.inputs["x"])
    params_gradient, x_gradient = vjp(jnp.asarray(case.cotangents["y"]))
    assert_close(y, case.outputs["y"], 1e-4)
    assert_close(x_gradient, case.gradients["in/x"], 1e-3)
    for ours, theirs in found.items():
        assert_close(params_gradient[ours], case.gradients[theirs], 1e-3)


def noisy(key, x, **options):
    """A noisy layer's variables and a function of a key that applies it."""
    layer = NoisyLinear(6, **options)
    variables = layer.init(key, x)
    return variables, lambda variables, key: layer.apply(variables, x, rngs={"noise": key})


@pytest.mark.parametrize("noise", ["shared", "per_example"])
def test_a_key_is_a_noise(noise):
    variables, apply = noisy(jax.random.key(0), jnp.ones((3, 5)), noise=noise)
    with jax.debug_key_reuse(False):  # the same key twice is the point
        assert jnp.array_equal(apply(variables, jax.random.key(1)), apply(variables, jax.random.key(1)))
    assert not jnp.allclose(apply(variables, jax.random.key(1)), apply(variables, jax.random.key(2)))


@pytest.mark.usefixtures("formulation")
def test_shared_noise_is_one_for_all_examples():
    variables, apply = noisy(jax.random.key(0), jnp.ones((2, 5)))
    assert jnp.allclose(*apply(variables, jax.random.key(1)))


def test_per_example_noise_differs_from_example_to_example():
    for rows in (3, 40):
        variables, apply = noisy(jax.random.key(0), jnp.ones((rows, 5)), noise="per_example")
        y = apply(variables, jax.random.key(2))
        assert not jnp.any(jnp.isclose(y[:1], y[1:]))


@pytest.mark.parametrize("use_bias", [True, False])
def test_deterministic_uses_the_means(use_bias):
    x = jax.random.normal(jax.random.key(1), (2, 3, 5))
    variables = NoisyLinear(6, use_bias=use_bias).init(jax.random.key(2), x)
    p = variables["params"]
    means = x @ p["kernel_mu"] + (p["bias_mu"].reshape(1, 1, -1) if use_bias else 0.0)
    assert jnp.array_equal(NoisyLinear(6, use_bias=use_bias).apply(variables, x, deterministic=True), means)
    assert jnp.array_equal(NoisyLinear(6, use_bias=use_bias, deterministic=True).apply(variables, x), means)


def test_calls_within_one_apply_draw_anew():
    variables, _ = noisy(jax.random.key(0), jnp.ones((1, 5)))
    twice = nn.apply(lambda layer, x: (layer(x), layer(x)), NoisyLinear(6))
    first, second = twice(variables, jnp.ones((1, 5)), rngs={"noise": jax.random.key(1)})
    assert not jnp.any(jnp.isclose(first, second))


def test_no_two_layers_share_noise():
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [NoisyLinear(6)(x), NoisyLinear(6)(x)]

    x = jnp.ones((1, 5))
    variables = Pair().init(jax.random.key(0), x)
    one = variables["params"]["NoisyLinear_0"]
    variables = {"params": {"NoisyLinear_0": one, "NoisyLinear_1": one}}
    first, second = Pair().apply(variables, x, rngs={"noise": jax.random.key(1)})
    assert not jnp.any(jnp.isclose(first, second))


@pytest.mark.parametrize("noise", ["shared", "per_example"])
def test_the_variance_is_the_formulas(noise):
    """Var f(e) = E|e| = sqrt(2 / pi), so Var y = (2 / pi) (x^2 @ sigma^2) + sqrt(2 / pi) sigma_bias^2."""
    x = jnp.arange(1.0, 6.0)[None]
    variables, apply = noisy(jax.random.key(0), x, noise=noise)
    y = jax.vmap(lambda key: apply(variables, key))(jax.random.split(jax.random.key(1), 40_000))
    p = variables["params"]
    expected = 2 / jnp.pi * jnp.square(x) @ jnp.square(p["kernel_sigma"])
    expected += jnp.sqrt(2 / jnp.pi) * jnp.square(p["bias_sigma"])[None]
    np.testing.assert_allclose(y.var(0), expected, rtol=0.06)
    means = x @ p["kernel_mu"] + p["bias_mu"][None]
    np.testing.assert_allclose(y.mean(0), means, atol=4 * float(jnp.sqrt(expected.max() / 40_000)))


@pytest.mark.usefixtures("formulation")
def test_shared_and_repeated_noise_agree_in_value_and_every_gradient():
    rows = 3
    keys = jax.random.split(jax.random.key(1), 5)
    x, eps_in, eps_out = (
        jax.random.normal(k, s) for k, s in zip(keys, [(rows, 5), (5,), (6,)], strict=False)
    )
    names = ("kernel_mu", "kernel_sigma"), ("bias_mu", "bias_sigma")
    params = {
        n: jax.random.normal(k, (5, 6)) for n, k in zip(names[0], jax.random.split(keys[3]), strict=True)
    }
    params |= {
        n: jax.random.normal(k, (6,)) for n, k in zip(names[1], jax.random.split(keys[4]), strict=True)
    }

    def loss(x, params, eps_in, eps_out):
        return jnp.sum(jnp.sin(noisy_linear(x, params, eps_in, eps_out)))

    def per_row(x, params, eps_in, eps_out):
        return loss(x, params, jnp.tile(eps_in[None], (rows, 1)), jnp.tile(eps_out[None], (rows, 1)))

    shared, separate = (
        jax.value_and_grad(f, (0, 1, 2, 3))(x, params, eps_in, eps_out) for f in (loss, per_row)
    )
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), shared, separate)
    assert jnp.all(shared[1][1]["kernel_sigma"] != 0)
    assert jnp.all(shared[1][1]["bias_sigma"] != 0)


def test_noisy_initial_values_are_the_papers():
    p = NoisyLinear(200, sigma0=0.4).init(jax.random.key(1), jnp.ones((1, 100)))["params"]
    for name in ("kernel_mu", "bias_mu"):
        assert 0.095 < float(jnp.abs(p[name]).max()) <= 0.1
    for name in ("kernel_sigma", "bias_sigma"):
        assert jnp.allclose(p[name], 0.04)


def test_noise_without_a_stream_or_of_another_kind_is_an_error():
    variables = NoisyLinear(6).init(jax.random.key(1), jnp.ones((1, 5)))
    with pytest.raises(Exception, match="noise"):
        NoisyLinear(6).apply(variables, jnp.ones((1, 5)))
    with pytest.raises(ValueError, match="'gaussian'"):
        NoisyLinear(6, noise="gaussian").init(jax.random.key(2), jnp.ones((1, 5)))
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(6,\)"):
        noisy_linear(jnp.ones((2, 5)), variables["params"], jnp.ones((2, 5)), jnp.ones(6))


@pytest.mark.parametrize(
    ("params", "given"),
    [
        ({"kernel_mu": (5, 6), "kernel_sigma": (1, 6)}, r"'kernel_sigma': \(1, 6\)"),
        ({"kernel_mu": (5, 6), "kernel_sigma": (5, 6), "bias_sigma": (6,)}, r"'bias_sigma': \(6,\)"),
        ({"kernel_mu": (5, 6), "kernel_sigma": (5, 6), "bias_mu": (6,)}, r"'bias_mu': \(6,\)"),
        ({"kernel_sigma": (5, 6)}, r"\{'kernel_sigma': \(5, 6\)\}"),
    ],
)
def test_noisy_parameters_that_do_not_fit_are_named(params, given):
    params = {name: jnp.ones(shape) for name, shape in params.items()}
    with pytest.raises(ValueError, match=rf"params must have .*'bias_mu': \(6,\).*; got .*{given}"):
        noisy_linear(jnp.ones((2, 5)), params, jnp.ones(5), jnp.ones(6))


LAYERS = [Linear(4), NoisyLinear(4), Conv2D(4), Deconv2D(4), Conv1D(4), DepthwiseConv2D(4)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_leading_axes_are_a_batch(layer):
    x = jax.random.normal(jax.random.key(1), (2, 3, 7, 6, 2))
    variables = layer.init(jax.random.key(2), x)

    def apply(x):
        return layer.apply(variables, x, rngs={"noise": jax.random.key(3)})

    y = apply(x)
    flat = apply(x.reshape(6, 7, 6, 2))
    assert_close(y.reshape(flat.shape), flat, 1e-5)
    assert y.shape[:2] == (2, 3)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_dtype_is_of_the_computation_and_param_dtype_of_parameters(layer):
    x = jnp.ones((2, 7, 6, 2))
    half = layer.clone(dtype=jnp.bfloat16)
    variables = half.init(jax.random.key(1), x)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert half.apply(variables, x, rngs={"noise": jax.random.key(2)}).dtype == jnp.bfloat16
    stored = layer.clone(param_dtype=jnp.bfloat16).init(jax.random.key(3), x.astype(jnp.bfloat16))
    assert {a.dtype for a in jax.tree.leaves(stored)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_without_a_bias(layer):
    variables = layer.clone(use_bias=False).init(jax.random.key(1), jnp.ones((2, 7, 6, 2)))
    assert all("bias" not in name for name in variables["params"])


def test_depthwise_filters_start_as_large_as_their_own_fan():
    kernel = DepthwiseConv2D(1).init(jax.random.key(1), jnp.ones((1, 5, 5, 500)))["params"]["kernel"]
    limit = (6 / (9 + 9)) ** 0.5
    assert 0.98 * limit < float(jnp.abs(kernel).max()) <= limit


def test_categorical_sample_is_one_hot_with_the_logits_frequencies():
    probabilities = jnp.array([0.1, 0.6, 0.3])
    logits = jnp.broadcast_to(jnp.log(probabilities), (20_000, 3))
    sample = categorical_sample(jax.random.key(1), logits, depth=5)
    assert sample.shape == (20_000, 5)
    assert sample.dtype == jnp.float32
    assert jnp.array_equal(jnp.sort(sample, axis=1)[:, 3:], jnp.tile(jnp.array([[0.0, 1.0]]), (20_000, 1)))
    np.testing.assert_allclose(sample.mean(0), [0.1, 0.6, 0.3, 0, 0], atol=0.015)
    assert categorical_sample(jax.random.key(2), logits[0]).shape == (3,)
    with pytest.raises(ValueError, match="3; got 2"):
        categorical_sample(jax.random.key(3), logits, depth=2)


def test_categorical_sample_draws_rare_classes_of_bfloat16_logits():
    """Noise of bfloat16 is too coarse to tell a class of one in 600 from others."""
    logits = jnp.broadcast_to(jnp.array([6.4, 0.0], jnp.bfloat16), (200_000, 2))
    rare = categorical_sample(jax.random.key(1), logits)[:, 1].mean()
    np.testing.assert_allclose(rare, nn.sigmoid(-jnp.float32(logits[0, 0])), rtol=0.2)


@pytest.mark.parametrize("value", [0.7, 0.1, 1e-3, 1.0, 123.4, -0.3])
@pytest.mark.parametrize("shape", [(1, 9, 9, 3), (2, 84, 84, 3)])  # the mean of the first rounds
def test_the_norm_of_a_flat_frame_is_zero(shape, value):
    x = jnp.full(shape, value)
    layer = layers.LayerNorm()
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(variables, x), jnp.zeros_like(x))


def test_a_flat_frame_sends_no_exploding_gradient_through_several_layers():
    x = jnp.full((1, 21, 21, 1), 0.7)
    network = networks.Conv2DNetwork((1, 1, 1, 1), stride=(1, 1), pad="VALID")
    variables = network.init(jax.random.key(0), x)
    gradients = jax.grad(lambda v: jnp.sum(network.apply(v, x)))(variables)
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradients)) < 1e5


def test_the_norm_does_not_depend_on_where_zero_is():
    noise = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    layer = layers.LayerNorm()
    variables = layer.init(jax.random.key(0), noise)
    for shift in (10.0, -300.0):
        moved = layer.apply(variables, noise + shift)
        np.testing.assert_allclose(moved, layer.apply(variables, noise), atol=2e-3)
