import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from btnn_jax.interop import from_btgym
from btnn_jax.layers import Conv1D, Deconv2D, DepthwiseConv2D, Linear, NoisyLinear
from btnn_jax.networks import (
    Conv1DNetwork,
    Conv2DNetwork,
    DenseAACNetwork,
    DenseRPNetwork,
    DuellingPCNetwork,
    LSTMNetwork,
    pc_inner_shape,
)
from btnn_jax.ops.pixel_change import pixel_change_2d_estimator, pixel_change_shape

ACTIONS = {"arm": {"left": 3, "right": 2}, "leg": 4}


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def init(module, *inputs):
    """Parameters with no zeros among them, so that biases and shifts count."""
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    leaves, structure = jax.tree.flatten(jax.eval_shape(module.init, keys, *inputs))
    return structure.unflatten(
        [(normals(*leaf.shape, seed=k) / 4).astype(leaf.dtype) for k, leaf in enumerate(leaves)]
    )


def apply(module, variables, *inputs, **options):
    return jax.jit(functools.partial(module.apply, **options))(variables, *inputs)


def assert_close(actual, expected, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


# What BTGym computes.


def linear_of(cfg):
    return {"linear": Linear, "noisy": NoisyLinear}[cfg["linear"]]


def conv_2d(cfg):
    return Conv2DNetwork(*(tuple(cfg[f"conv_2d_{k}"]) for k in ("num_filters", "filter_size", "stride")))


def conv_1d(cfg):
    return Conv1DNetwork(
        *(cfg[f"conv_1d_{k}"] for k in ("num_layers", "num_filters", "filter_size", "stride"))
    )


def dense_aac(cfg):
    return DenseAACNetwork(cfg["ac_space_depth"], linear=linear_of(cfg), logits_norm="layer_norm")


def duelling_pc(cfg):
    shapes = (tuple(cfg[f"duell_pc_{k}"]) for k in ("x_inner_shape", "filter_size", "stride"))
    return DuellingPCNetwork(cfg["ac_space"], *shapes, linear=linear_of(cfg))


BTGYM = {
    "net_conv_1d": conv_1d,
    "net_conv_2d": conv_2d,
    "net_conv_2d_signal": conv_2d,
    "net_dense_aac_linear": dense_aac,
    "net_dense_aac_noisy": dense_aac,
    "net_dense_rp_linear": lambda cfg: DenseRPNetwork(linear=linear_of(cfg)),
    "net_dense_rp_noisy": lambda cfg: DenseRPNetwork(linear=linear_of(cfg)),
    "net_duelling_pc_linear": duelling_pc,
    "net_duelling_pc_noisy": duelling_pc,
}


@pytest.mark.parametrize("case", BTGYM)
def test_btgym(case, golden, monkeypatch):
    g = golden(case)
    module = BTGYM[case](g.cfg)
    # Each noisy layer draws its noise of inputs and outputs at once.
    draws = [np.append(i, o) for i, o in zip(g.noise[::2], g.noise[1::2], strict=True)]

    def run(params, x):
        noise = iter(draws)
        monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.asarray(next(noise), dtype))
        y = module.apply({"params": params}, x, rngs={"noise": jax.random.key(0)})
        return y._asdict() if isinstance(y, tuple) else dict.fromkeys(g.outputs, y)

    def loss(params, x):
        y = run(params, x)
        return sum(jnp.sum(y[name] * g.cotangents[name]) for name in y), y

    params = from_btgym(module, g.variables)
    (dparams, dx), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, g.inputs["x"])
    assert_close(y, g.outputs)
    assert_close(dx, g.gradients.pop("in/x"), rtol=1e-3, atol=1e-4)
    assert_close(dparams, from_btgym(module, g.gradients), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["net_lstm", "net_lstm_stacked_lengths"])
def test_btgym_lstm(case, golden):
    g = golden(case)
    network = LSTMNetwork(tuple(g.cfg["lstm_layers"]))
    depth = range(len(network.layers))

    def unpack(arrays):
        return arrays["y"].swapaxes(0, 1), tuple((arrays[f"c{k}"], arrays[f"h{k}"]) for k in depth)

    def loss(params, x, state):
        y = network.apply({"params": params}, x, state, lengths=g.inputs["length"])
        return sum(map(jnp.vdot, jax.tree.leaves(y), jax.tree.leaves(unpack(g.cotangents)))), y

    x, state = unpack(g.inputs | {"y": g.inputs["x"]})
    params = from_btgym(network, g.variables)
    gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, x, state)
    assert_close(y, unpack(g.outputs))
    inputs = {k.removeprefix("in/"): v for k, v in g.gradients.items() if k.startswith("in/")}
    variables = {k: v for k, v in g.gradients.items() if not k.startswith("in/")}
    # BTGym's graph has no gradient for a state that its last step never reads: those are absent, not zero.
    dx, dstate = unpack({"y": inputs["x"]} | inputs)
    assert_close(gradients, (from_btgym(network, variables), dx, dstate), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["net_pixel_change_1d", "net_pixel_change_2d"])
def test_btgym_pixel_change(case, golden):
    g = golden(case)
    y = pixel_change_2d_estimator(
        jnp.asarray(g.inputs["state"]),
        jnp.asarray(g.inputs["last_state"]),
        stride=tuple(g.cfg["pc_estimator_stride"]),
        pool="max",
    )
    assert_close(y, g.outputs["y"][0, ..., 0])


# What holds of all modules.

MODULES = {
    "conv2d": (Conv2DNetwork((4, 6)), (9, 8, 3)),
    "conv2d, no norm": (Conv2DNetwork((4, 6), pad="VALID", norm=None), (9, 8, 3)),
    "conv2d, depthwise": (Conv2DNetwork((2, 2), layer=DepthwiseConv2D), (9, 8, 3)),
    "conv1d": (Conv1DNetwork(2, 4), (9, 3)),
    "conv1d, options": (Conv1DNetwork(2, 4, stride=1, norm="layer", skip=True), (9, 3)),
    "actor-critic": (DenseAACNetwork(4, logits_norm="layer_norm"), (5,)),
    "actor-critic, dict": (DenseAACNetwork(ACTIONS, linear=Linear), (5,)),
    "reward prediction": (DenseRPNetwork(hidden=6), (5,)),
    "pixel control": (DuellingPCNetwork(4, (2, 3, 4)), (5,)),
    "pixel control, dict": (DuellingPCNetwork(ACTIONS, (2, 3, 4), linear=Linear), (5,)),
}


@pytest.mark.parametrize("name", MODULES)
def test_leading_axes_are_a_batch(name):
    module, shape = MODULES[name]
    x = normals(2, 3, *shape)
    variables = init(module, x)

    @jax.jit
    def both(x):
        rows = x.reshape(6, *shape)
        return [module.apply(variables, v, rngs={"noise": jax.random.key(0)}) for v in (x, rows)]

    y, rows = both(x)
    assert_close(y, jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), rows))


@pytest.mark.parametrize("name", MODULES)
def test_bfloat16_computes_and_heads_answer_in_float32(name):
    module, shape = MODULES[name]
    options = {} if name.startswith("conv1d") else {"deterministic": True}
    x = normals(4, *shape)
    variables = init(module, x)
    small = module.copy(dtype=jnp.bfloat16)
    y, z = jax.jit(lambda x: [m.apply(variables, x, **options) for m in (module, small)])(x)
    wanted = jnp.bfloat16 if name.startswith("conv") else jnp.float32
    assert all(leaf.dtype == wanted for leaf in jax.tree.leaves(z))
    z = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), z)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (y, z)), strict=True))
    assert_close(z, y, rtol=0.1, atol=0.1)
    kept = init(small.copy(param_dtype=jnp.bfloat16), x)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float32])
def test_lstm_network_may_be_kept_in_bfloat16_and_its_state_is_float32(param_dtype):
    network, x = LSTMNetwork((4, 3), dtype=jnp.bfloat16, param_dtype=param_dtype), normals(5, 2, 3)
    with jax.enable_x64(True):
        state = network.initial_state(2)
    variables = network.init(jax.random.key(0), x, state)
    y, after = apply(network, variables, x, state)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(param_dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves((state, after))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("module", [DenseAACNetwork(4), DenseRPNetwork(), DuellingPCNetwork(4, (2, 3, 4))])
def test_noise_follows_the_key_and_can_be_switched_off(module):
    x = normals(3, 5)
    variables = init(module, x)
    noisy = jax.jit(module.apply)

    def run(seed):
        return jax.tree.leaves(noisy(variables, x, rngs={"noise": jax.random.key(seed)}))

    assert_close(run(0), run(0), atol=0)
    assert all((a != b).any() for a, b in zip(run(0), run(1), strict=True))
    means = apply(module, variables, x, deterministic=True)  # without a key
    silent = module.copy(linear=functools.partial(NoisyLinear, deterministic=True))
    assert_close(apply(silent, variables, x), means)
    linear = module.copy(linear=Linear)
    renamed = {
        layer: {k.removesuffix("_mu"): v for k, v in leaves.items() if not k.endswith("_sigma")}
        if isinstance(leaves, dict)
        else leaves
        for layer, leaves in variables["params"].items()
    }
    assert_close(means, apply(linear, {"params": renamed}, x))


@pytest.mark.parametrize(
    "module", [Conv2DNetwork((4,), dropout_rate=0.5), LSTMNetwork((4, 4), dropout_rate=0.5)]
)
def test_dropout_follows_the_key_and_is_off_by_default(module):
    inputs = (
        (normals(2, 9, 8, 3),)
        if isinstance(module, Conv2DNetwork)
        else (normals(9, 2, 3), module.initial_state(2))
    )
    variables = init(module, *inputs)

    def run(module, **kwargs):
        return jax.tree.leaves(apply(module, variables, *inputs, **kwargs))[0]

    plain, dropped = run(module), run(module, deterministic=False, rngs={"dropout": jax.random.key(0)})
    assert_close(plain, run(module.copy(dropout_rate=0.0)))
    assert 0.2 < (dropped == 0).mean() < 0.8


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Conv2DNetwork(norm="batch"), "norm must be one of"),
        (Conv1DNetwork(norm="batch"), "norm must be one of"),
        (DenseAACNetwork(4, logits_norm="layer"), "logits_norm must be one of"),
        (DenseAACNetwork((2, 3)), r"\(nested\) dict of them, got an entry \[0\]"),
        (DuellingPCNetwork({"a": [2, 3]}, (2, 3, 4)), r"\(nested\) dict of them, got an entry \['a'\]\[0\]"),
        (Conv2DNetwork(layer=DepthwiseConv2D), r"layer 3 would have 3072 \* 64 = 196608 channels"),
    ],
)
def test_unknown_options_are_errors(module, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), normals(1, 9, 9, 3))


# Convolution stacks.


def test_conv2d_network_normalises_each_image_over_height_width_and_channels():
    x = normals(2, 9, 8, 3)
    network = Conv2DNetwork((6,))
    variables = network.init(jax.random.key(0), x)  # scale 1, shift 0, bias 0
    y = apply(network, variables, x)
    pre_elu = np.where(y > 0, y, np.log1p(np.minimum(y, 0)))
    assert_close(pre_elu.mean((1, 2, 3)), np.zeros(2))
    assert_close(pre_elu.var((1, 2, 3)), np.ones(2))
    assert (np.abs(pre_elu.mean((1, 2))) > 1e-3).all()  # not each channel by itself
    assert_close(apply(network, variables, 3 * x), y)


def test_an_image_without_variation_gives_zeros_and_a_gradient_of_ordinary_size():
    x = normals(4, 9, 8, 3)
    network = Conv2DNetwork((4, 4, 4))
    variables = network.init(jax.random.key(0), x)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient(variables, x):
        y = network.apply(variables, x)
        return (y * normals(*y.shape)).sum(), y

    def norm(x):
        (_, y), gradients = gradient(variables, x)
        return np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradients))), y

    (plain, _), (mixed, y) = norm(x), norm(np.where(np.arange(4)[:, None, None, None] == 1, 0, x))
    assert mixed < 2 * plain
    assert not y[1].any()
    assert_close(np.delete(y, 1, 0), np.delete(apply(network, variables, x), 1, 0))


def test_conv1d_network_skips_where_shapes_are_equal():
    x = normals(2, 9, 4)
    network = Conv1DNetwork(3, 4, stride=1, skip=True)
    variables = jax.tree.map(np.zeros_like, init(network, x))
    assert_close(apply(network, variables, x), x)
    narrow = network.copy(num_filters=5)
    variables = init(narrow, x)
    first = nn.elu(Conv1D(5, stride=1).apply({"params": variables["params"]["conv_1"]}, x))
    assert_close(apply(narrow.copy(num_layers=1), variables, x), first)


# LSTM.


def test_lstm_network_resets_every_layer():
    network = LSTMNetwork((4, 6))
    x = normals(6, 2, 3)
    state = jax.tree.map(lambda leaf: leaf + 1, network.initial_state(2))
    variables = init(network, x, state)
    resets = jnp.zeros((6, 2), bool).at[3, 1].set(True)
    run = jax.jit(functools.partial(network.apply, variables))
    y, after = run(x, state, resets=resets)
    whole, whole_after = run(x, state)
    tail, tail_after = run(x[3:], network.initial_state(2))
    assert_close(y[:, 0], whole[:, 0])
    assert_close(y[3:, 1], tail[:, 1])
    for k in range(2):
        for leaf, left, right in zip(after[k], whole_after[k], tail_after[k], strict=True):
            assert_close(leaf, jnp.stack([left[0], right[1]]))


def test_lstm_network_keeps_its_state_in_float32():
    network = LSTMNetwork((4,), dtype=jnp.bfloat16)
    x, state = normals(3, 2, 5), network.initial_state(2)
    y, after = apply(network, init(network, x, state), x, state)
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state, after)))


def test_lstm_network_wants_the_state_of_all_layers():
    network = LSTMNetwork((4, 6))
    with pytest.raises(ValueError, match="state of 2 layers"):
        network.init(jax.random.key(0), normals(3, 2, 5), LSTMNetwork((4,)).initial_state(2))


def test_lstm_network_starts_with_orthogonal_recurrence():
    network = LSTMNetwork((4,))
    params = network.init(jax.random.key(0), normals(1, 1, 3), network.initial_state(1))["params"]
    gates = np.stack(np.split(params["layer_0"]["kernel_h"], 4, axis=1))
    assert_close(gates @ gates.swapaxes(1, 2), np.broadcast_to(np.eye(4), (4, 4, 4)))
    assert (gates[0] != gates[1]).any()


def test_lstm_network_starts_under_vmap_without_batched_factorizations():
    """Two of them at once wait for ever for each other's threads on a CPU of two cores."""
    network = LSTMNetwork((4, 3))

    def start(key):
        return network.init(key, normals(1, 1, 3), network.initial_state(1))

    keys = jax.random.split(jax.random.key(0), 5)
    program = str(jax.make_jaxpr(jax.vmap(start))(keys))
    ranks = [shape.count(",") + 1 for shape in re.findall(r"f32\[([\d,]+)\] = qr\[", program)]
    assert ranks
    assert set(ranks) == {2}
    one = jax.tree.map(lambda leaf: leaf[2], jax.jit(jax.vmap(start))(keys))
    chex.assert_trees_all_close(one, jax.jit(start)(keys[2]), atol=1e-6)


# Heads.


def test_layer_norm_bounds_the_largest_probability():
    x = 1e3 * normals(50, 8)

    def largest(norm):
        head = DenseAACNetwork(4, linear=Linear, logits_norm=norm)
        return jax.nn.softmax(apply(head, head.init(jax.random.key(0), x), x).logits).max()

    assert 0.7 < largest("layer_norm") < 0.78
    assert largest(None) > 0.99


def test_a_dict_of_actions_gives_logits_and_samples_of_its_structure():
    head = DenseAACNetwork(ACTIONS, linear=Linear, logits_norm="layer_norm")
    x = normals(500, 5)
    logits, value = apply(head, init(head, x), x)
    assert jax.tree.map(lambda leaf: leaf.shape, logits) == jax.tree.map(lambda depth: (500, depth), ACTIONS)
    assert value.shape == (500,)
    flat = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, :2]), logits)
    samples = head.sample(jax.random.key(0), flat)
    assert jax.tree.structure(samples) == jax.tree.structure(ACTIONS)
    ones = np.stack([leaf[:, 1] for leaf in jax.tree.leaves(samples)])
    assert set(np.unique(ones)) == {0.0, 1.0}
    assert (np.abs(np.corrcoef(ones) - np.eye(3)) < 0.2).all()  # each head has its own key
    certain = jax.tree.map(lambda leaf: jnp.where(jnp.arange(leaf.shape[-1]) == 1, 0.0, -jnp.inf), logits)
    assert all(leaf[1] == 1 for leaf in jax.tree.leaves(head.sample(jax.random.key(0), certain)))


@pytest.mark.parametrize("num_actions", [4, ACTIONS], ids=["int", "dict"])
def test_pixel_control_is_the_duelling_sum_of_two_deconvolutions(num_actions):
    network = DuellingPCNetwork(num_actions, (3, 2, 5), filter_size=(4, 3), stride=(2, 1), linear=Linear)
    x = normals(3, 7)
    params = init(network, x)["params"]
    z = nn.elu(Linear(30).apply({"params": params["dense"]}, x)).reshape(3, 3, 2, 5)

    def deconv(name, outputs):
        weights = {"kernel": params[f"{name}_kernel"], "bias": params[f"{name}_bias"]}
        return Deconv2D(outputs, (4, 3), (2, 1)).apply({"params": weights}, z)

    def q(path, outputs):
        advantage = deconv(".".join(["advantage", *(entry.key for entry in path)]), outputs)
        return deconv("value", 1) + advantage - advantage.mean(-1, keepdims=True)

    assert_close(apply(network, {"params": params}, x), jax.tree_util.tree_map_with_path(q, num_actions))


# Pixel change.


def slow_pixel_change(state, last_state, stride, pool):
    width = state.shape[1]
    columns = range(width) if width <= 3 else range(1, width - 1)
    change = np.abs(state.astype(np.float64) - last_state.astype(np.float64)).mean(-1)
    change = change[1:-1, columns[0] : columns[-1] + 1]
    cells = [-(-n // s) for n, s in zip(change.shape, stride, strict=True)]
    before = [(n * s - m) // 2 for n, s, m in zip(cells, stride, change.shape, strict=True)]
    y = np.zeros(cells)
    for i, j in np.ndindex(*cells):
        top, left = i * stride[0] - before[0], j * stride[1] - before[1]
        cell = change[max(top, 0) : top + stride[0], max(left, 0) : left + stride[1]]
        y[i, j] = cell.mean() if pool == "mean" else cell.max()
    return y


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float32", "int32", "float16"])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pixel_change_is_that_of_a_loop(dtype, pool):
    rng = np.random.default_rng(0)
    for shape, stride in [
        ((9, 8, 3), (2, 2)),
        ((12, 11, 1), (4, 3)),
        ((10, 1, 2), (3, 1)),
        ((5, 3, 2), (5, 2)),
    ]:
        a, b = rng.integers(0, 256 if dtype != "bool" else 2, (2, 2, 3, *shape)).astype(dtype)
        y = jax.jit(pixel_change_2d_estimator, static_argnums=(2, 3))(a, b, stride, pool)
        slow = [[slow_pixel_change(a[t, k], b[t, k], stride, pool) for k in range(3)] for t in range(2)]
        assert y.dtype == jnp.float32
        assert y.shape[2:] == pixel_change_shape(shape, stride)
        assert_close(y, np.array(slow))


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ((np.zeros((9, 9, 3)), np.zeros((9, 9, 1))), {}, r"\(9, 9, 3\).*\(9, 9, 1\)"),
        ((np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3), np.float32)), {}, "uint8.*float32"),
        ((np.zeros((9, 9)), np.zeros((9, 9))), {}, r"\[N..., H, W, C\]"),
        ((np.zeros((2, 9, 3)), np.zeros((2, 9, 3))), {}, "H >= 3"),
        ((np.zeros((9, 9, 3)), np.zeros((9, 9, 3))), {"stride": (0, 1)}, "strides >= 1"),
        ((np.zeros((9, 9, 3)), np.zeros((9, 9, 3))), {"pool": "min"}, "pool must be one of"),
    ],
)
def test_pixel_change_names_what_is_wrong(frames, options, message):
    with pytest.raises(ValueError, match=message):
        pixel_change_2d_estimator(*frames, **options)


def test_pc_inner_shape_fits_the_grid_or_says_what_would():
    fits = 0
    for side in range(6, 100, 3):
        for stride in (1, 2, 4):
            grid = pixel_change_shape((side, 1, 4), (stride, 1))
            options = {"filter_size": (4, 1), "stride": (2, 1)}
            try:
                inner = pc_inner_shape((side, 1, 4), (stride, 1), channels=2, **options)
            except ValueError as error:
                assert grid[0] < 4 or grid[0] % 2 == 1
                assert str(grid) in str(error)  # noqa: PT017
                continue
            fits += 1
            network = DuellingPCNetwork(3, inner, linear=Linear, **options)
            q, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros((1, 2)))
            assert q.shape == (1, *grid, 3)
    assert fits > 20
    with pytest.raises(ValueError, match=r"\(21, 21\).*\(20, 20\); filter_size \(3, 3\) would fit"):
        pc_inner_shape((84, 84, 4), (4, 4))
    assert pc_inner_shape((84, 84, 4), (4, 4), filter_size=(3, 3)) == (10, 10, 32)


def test_an_lstm_without_a_state_says_where_one_comes_from():
    with pytest.raises(
        ValueError, match=r"state must be a tuple of \(c, h\).* as initial_state\(batch_size\) .* got None"
    ):
        LSTMNetwork((5,)).init(jax.random.key(0), jnp.zeros((3, 2, 4)), None)
