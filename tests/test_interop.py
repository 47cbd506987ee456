import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from btnn_jax import ae, layers, networks
from btnn_jax.interop import from_btgym

LAYERS = {
    "layer_linear": lambda cfg: layers.Linear(cfg["size"]),
    "layer_noisy_linear": lambda cfg: layers.NoisyLinear(cfg["size"], deterministic=True),
    "layer_noisy_linear_nobias": lambda cfg: layers.NoisyLinear(
        cfg["size"], use_bias=False, deterministic=True
    ),
    "layer_conv2d_valid": lambda cfg: layers.Conv2D(
        cfg["num_filters"], tuple(cfg["filter_size"]), tuple(cfg["stride"]), cfg["pad"]
    ),
    "layer_conv1d_same": lambda cfg: layers.Conv1D(**cfg),
    "layer_deconv2d": lambda cfg: layers.Deconv2D(cfg["output_channels"], tuple(cfg["filter_size"])),
    "layer_conv2d_dw_same": lambda cfg: layers.DepthwiseConv2D(
        cfg["num_filters"], tuple(cfg["filter_size"]), tuple(cfg["stride"])
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_layers(case, golden):
    g = golden(case)
    module = LAYERS[case](g.cfg)
    x = jnp.asarray(g.inputs["x"])
    params = from_btgym(module, g.variables)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, variables["params"])
    if g.noise:  # the noisy values are the layer's own tests
        means = x @ g.variables["noisy//w_mu"]
        expected = means + g.variables["noisy//b_mu"][None] if module.use_bias else means
    else:
        expected = g.outputs["y"]
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def dense_rp(golden):
    return networks.DenseRPNetwork(linear=layers.Linear), golden("net_dense_rp_linear").variables


def conv(golden):
    return networks.Conv2DNetwork((8, 8, 16, 16)), golden("net_conv_2d").variables


CONFIG = ((8, (3, 1), (2, 1)),) * 3

AUTOENCODERS = {
    "ae_encoder": ae.Conv2DEncoder(CONFIG),
    "ae_conv2d_bilinear": ae.Conv2DAutoencoder(CONFIG),
    "ae_channel_wise": ae.ChannelWiseConv2DAutoencoder(CONFIG),
    "ae_beta_vae": ae.BetaVAEConv2D(CONFIG),
}


@pytest.mark.parametrize("case", AUTOENCODERS)
def test_autoencoders_have_the_parameters_of_their_own_initialisation(case, golden):
    g, module = golden(case), AUTOENCODERS[case]
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    expected = jax.eval_shape(module.init, keys, g.inputs["x"])["params"]
    params = from_btgym(module, {f"global/{name}:0": array for name, array in g.variables.items()})
    chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)


def test_a_decoder_alone(golden):
    variables = golden("ae_conv2d_bilinear").variables
    decoder = ae.Conv2DDecoder(ae.encoded_shapes((30, 1, 3), CONFIG), CONFIG)
    expected = from_btgym(ae.Conv2DAutoencoder(CONFIG), variables)["decoder"]
    own = {name: array for name, array in variables.items() if "/decoder/" in name}
    chex.assert_trees_all_equal(from_btgym(decoder, own), expected)


def channel_wise(golden):
    return ae.ChannelWiseConv2DAutoencoder(CONFIG), golden("ae_channel_wise").variables


def beta_vae(golden):
    return ae.BetaVAEConv2D(CONFIG), golden("ae_beta_vae").variables


@pytest.mark.parametrize("rename", ["{}", "{}:0", "global/policy/{}", "worker_1/{}:0"])
@pytest.mark.parametrize("network", [dense_rp, conv, channel_wise])
def test_outer_scopes_do_not_matter(network, rename, golden):
    module, variables = network(golden)
    renamed = from_btgym(module, {rename.format(name): array for name, array in variables.items()})
    chex.assert_trees_all_equal(renamed, from_btgym(module, variables))


def test_parameters_have_the_modules_type(golden):
    module, variables = dense_rp(golden)
    params = from_btgym(module.copy(param_dtype=jnp.bfloat16), variables)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))


def test_a_missing_variable_is_named(golden):
    module, variables = dense_rp(golden)
    for name in variables:
        kept = {k: v for k, v in variables.items() if k != name}
        with pytest.raises(ValueError, match=f"{name.replace('//', '/')}' is missing"):
            from_btgym(module, kept)


def test_a_missing_channel_is_named(golden):
    module, variables = channel_wise(golden)
    kept = {name: array for name, array in variables.items() if "/ae_channel_1/" not in name}
    with pytest.raises(ValueError, match="ae_channel_1/encoder/conv_kernels_1/W' is missing"):
        from_btgym(module, kept)


def test_unused_variables_are_named(golden):
    module, variables = dense_rp(golden)
    with pytest.raises(ValueError, match=r"no use for .*\['policy/action//w', 'rp_dense//w/Adam'\]"):
        from_btgym(module, variables | {"policy/action//w": np.zeros(1), "rp_dense//w/Adam": np.zeros(1)})


def test_variables_of_two_networks_are_named(golden):
    module, variables = dense_rp(golden)
    with pytest.raises(ValueError, match=r"several .*\['b/rp_dense//w', 'rp_dense//w'\]"):
        from_btgym(module, variables | {f"b/{k}": v for k, v in variables.items()})


@pytest.mark.parametrize(
    ("network", "name", "shape", "expected"),
    [
        (dense_rp, "rp_dense//w", (12, 127), "any, 128"),
        (dense_rp, "rp_dense//b", (128, 1), "128"),
        (dense_rp, "rp_classifier//w", (127, 3), "128, 3"),  # the input is the first layer's output
        (conv, "conv2d/_layer_2/W", (3, 3, 7, 8), "3, 3, 8, 8"),
        (conv, "conv2d/_layer_2/b", (8,), "1, 1, 1, 8"),
        (conv, "conv2d/conv2d_norm_layer_3/gamma", (8,), "16"),
        (channel_wise, "cw_conv2d_autoencoder/ae_channel_1/hidden_dense//w", (32, 31), "32, 32"),
        (beta_vae, "vae_conv2d/encoder/LayerNorm_1/beta", (7,), "8"),
        (beta_vae, "vae_conv2d/decoder/decoded_y_hat/W", (3, 1, 8, 2), "3, 1, 8, 3"),
        (beta_vae, "vae_conv2d/dec_dense//w", (32, 32), "16, 32"),
    ],
)
def test_a_wrong_shape_is_named(network, name, shape, expected, golden):
    module, variables = network(golden)
    message = f"the variable {name!r} should have shape ({expected}), it has {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        from_btgym(module, variables | {name: np.zeros(shape)})


def test_a_kernel_without_rows_for_inputs_is_named():
    cell = "rnn/multi_rnn_cell/cell_0/basic_lstm_cell"
    variables = {f"{cell}/kernel": np.zeros((3, 16)), f"{cell}/bias": np.zeros(16)}
    with pytest.raises(ValueError, match=r"kernel of LSTM cell 0 .* more than 4 rows, .* \(3, 16\)"):
        from_btgym(networks.LSTMNetwork((4,)), variables)


def test_numpys_integers_are_numbers_of_actions(golden):
    g = golden("net_dense_aac_linear")
    heads = [
        networks.DenseAACNetwork(depth, linear=layers.Linear, logits_norm="layer_norm")
        for depth in (g.cfg["ac_space_depth"], np.int64(g.cfg["ac_space_depth"]))
    ]
    chex.assert_trees_all_equal(*(from_btgym(head, g.variables) for head in heads))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Dense(3), "known for Dense, only for Linear"),
        (networks.DenseAACNetwork({"a": 2}), "one discrete action"),
        (layers.Linear(3, use_bias=False), "always has a bias"),
        (networks.Conv2DNetwork((4,), norm=None), "Conv2DNetwork always has a layer norm, got norm=None"),
        (networks.Conv1DNetwork(norm="layer"), "Conv1DNetwork has no norm, got norm='layer'"),
        (networks.Conv1DNetwork(skip=True), "Conv1DNetwork has no skips, got skip=True"),
    ],
)
def test_modules_that_btgym_has_not_are_errors(module, message):
    with pytest.raises(ValueError, match=message):
        from_btgym(module, {})
