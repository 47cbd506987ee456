import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import losses
from btnn_jax.losses import (
    aac_loss,
    ae_loss,
    beta_vae_loss,
    explained_variance,
    masked_mean,
    pc_loss,
    ppo_loss,
    rp_loss,
    value_fn_loss,
)
from btnn_jax.ops import categorical

N, A, LATENT = 8, 4, 5


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def actions(seed, *shape, depth=A):
    return np.random.default_rng(seed).integers(0, depth, shape, np.int32)


# Each loss by name: the loss, the inputs that learn, the inputs they learn from; all start with the axes N.
CASES = {
    "aac": (
        aac_loss,
        {"logits": normal(0, N, A), "values": normal(1, N)},
        {"actions": actions(2, N), "advantages": normal(3, N), "returns": normal(4, N)},
    ),
    "aac of a dict": (
        aac_loss,
        {"logits": {"a": normal(0, N, A), "b": {"c": normal(5, N, 3)}}, "values": normal(1, N)},
        {
            "actions": {"a": actions(2, N), "b": {"c": actions(6, N, depth=3)}},
            "advantages": normal(3, N),
            "returns": normal(4, N),
        },
    ),
    "ppo": (
        ppo_loss,
        {"logits": normal(0, N, A), "values": normal(1, N)},
        {
            "actions": actions(2, N),
            "advantages": normal(3, N),
            "returns": normal(4, N),
            "old_logits": normal(5, N, A),
        },
    ),
    "value_fn": (value_fn_loss, {"values": normal(0, N)}, {"returns": normal(1, N)}),
    "pc": (
        pc_loss,
        {"q": normal(0, N, 3, 2, A)},
        {"actions": actions(1, N), "targets": normal(2, N, 3, 2)},
    ),
    "rp": (rp_loss, {"logits": normal(0, N, 3)}, {"targets": actions(1, N, depth=3)}),
    "ae": (
        functools.partial(ae_loss, alpha=0.7),
        {"reconstructions": {"a": normal(0, N, 6, 1, 2), "b": normal(1, N, 4)}},
        {"targets": {"a": normal(2, N, 6, 1, 2), "b": normal(3, N, 4)}},
    ),
    "beta_vae": (
        functools.partial(beta_vae_loss, alpha=0.7, beta=3.0),
        {"reconstructions": normal(0, N, 6, 1, 2), "d_kl": normal(1, N, LATENT) ** 2},
        {"targets": normal(2, N, 6, 1, 2)},
    ),
}
each_loss = pytest.mark.parametrize("name", CASES)


@functools.partial(jax.jit, static_argnames=("name", "axis_name"))
def value_and_grad(name, learned, given, **options):
    """`(loss, metrics), gradient` with respect to what is learned."""
    loss = CASES[name][0]
    return jax.value_and_grad(lambda x: loss(**x, **given, **options), has_aux=True)(learned)


def rows(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def assert_close(a, b, **tolerances):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **({"rtol": 1e-5, "atol": 1e-6} | tolerances)), a, b
    )


@pytest.mark.parametrize(
    ("case", "loss", "rename", "options"),
    [
        ("loss_aac", aac_loss, {}, {}),
        ("loss_ppo", ppo_loss, {}, {}),
        ("loss_value_fn", value_fn_loss, {}, {}),
        ("loss_pc", pc_loss, {}, {}),
        ("loss_rp", rp_loss, {}, {}),
        ("loss_ae", ae_loss, {"logits": "reconstructions"}, {}),
        ("loss_beta_vae", beta_vae_loss, {"logits": "reconstructions"}, {"kl_reduction": "mean"}),
    ],
)
def test_values_and_gradients_are_btgyms(golden, case, loss, rename, options):
    case = golden(case)
    inputs = {rename.get(k, k): v for k, v in case.inputs.items()}
    expected = {
        rename.get(k, k): v for k, v in ((k.removeprefix("in/"), v) for k, v in case.gradients.items())
    }

    def total(learned):
        return loss(**(inputs | learned), **case.cfg, **options)[0]

    value, gradients = jax.jit(jax.value_and_grad(total))({k: inputs[k] for k in expected})
    assert_close(value, case.outputs["loss"])
    gradients = jax.tree.map(lambda g: case.cotangents["loss"] * g, gradients)
    assert_close(gradients, expected, rtol=1e-4, atol=1e-7)


@each_loss
def test_loss_and_metrics_are_float32_scalars_for_bfloat16(name):
    def low(x):
        return x.astype(jnp.bfloat16) if x.dtype == np.float32 else x

    _, learned, given = CASES[name]
    loss, metrics = jax.jit(lambda x, y: CASES[name][0](**x, **y))(*jax.tree.map(low, (learned, given)))
    for x in (loss, *metrics.values()):
        assert (x.shape, x.dtype) == ((), jnp.float32)
    assert_close(loss, value_and_grad(name, learned, given)[0][0], rtol=0.03, atol=0.03)


@each_loss
def test_no_gradient_reaches_the_targets(name):
    loss, learned, given = CASES[name]
    one_hot = {"actions": A, "targets": 3}
    floating = {
        k: np.eye(one_hot[k], dtype=np.float32)[v] if getattr(v, "dtype", None) == np.int32 else v
        for k, v in given.items()
        if not isinstance(v, dict) or k != "actions"
    }
    gradients = jax.jit(jax.grad(lambda x: loss(**learned, **(given | x))[0]))(floating)
    assert floating
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0.0)


@each_loss
def test_masked_is_sliced_whatever_the_excluded_rows_hold(name):
    _, learned, given = CASES[name]
    where = np.array([True, False, True, True, False, False, True, False])
    expected_out, expected_gradient = value_and_grad(name, rows(learned, where), rows(given, where))

    def spoil(x):
        mask = where.reshape(-1, *[1] * (x.ndim - 1))
        return np.where(mask, x, np.full_like(x, np.nan if x.dtype == np.float32 else 0))

    for change in (lambda x: x, spoil):
        out, gradient = value_and_grad(name, *jax.tree.map(change, (learned, given)), where=where)
        assert_close(out, expected_out)
        assert_close(rows(gradient, where), expected_gradient)
        for excluded in jax.tree.leaves(rows(gradient, ~where)):
            np.testing.assert_array_equal(excluded, 0.0)


@each_loss
def test_an_empty_mask_gives_zero(name):
    _, learned, given = CASES[name]
    (loss, metrics), gradients = value_and_grad(name, learned, given, where=np.zeros(N, bool))
    for x in jax.tree.leaves((loss, metrics, gradients)):
        np.testing.assert_array_equal(x, 0.0)


@each_loss
def test_rows_do_not_touch_each_other(name):
    """The gradient of a row is that of the row alone, over N; the loss is the mean of the rows' losses."""
    _, learned, given = CASES[name]
    (loss, _), gradients = value_and_grad(name, learned, given)
    alone = [value_and_grad(name, *rows((learned, given), slice(i, i + 1))) for i in range(N)]
    assert_close(loss, sum(x[0][0] for x in alone) / N)
    assert_close(gradients, jax.tree.map(lambda *g: np.concatenate(g) / N, *(x[1] for x in alone)))


@each_loss
def test_any_leading_axes(name):
    _, learned, given = CASES[name]
    where = np.arange(N) % 3 > 0
    folded = jax.tree.map(lambda x: x.reshape(2, N // 2, *x.shape[1:]), (learned, given, where))
    out, gradients = value_and_grad(name, *folded[:2], where=folded[2])
    expected_out, expected = value_and_grad(name, learned, given, where=where)
    assert_close(out, expected_out)
    assert_close(jax.tree.map(lambda g: g.reshape(N, *g.shape[2:]), gradients), expected)


@each_loss
def test_average_over_devices_is_the_whole_batch(name):
    """Two devices whose masks include 1 and 3 rows."""
    assert jax.device_count() == 8
    _, learned, given = CASES[name]
    where = np.array([False, True, False, False, True, True, False, True])
    halves = jax.tree.map(lambda x: x.reshape(2, N // 2, *x.shape[1:]), (learned, given, where))

    def device(learned, given, where):
        out, gradients = value_and_grad(name, learned, given, where=where, axis_name="devices")
        return jax.lax.pmean(out, "devices"), gradients

    mapped = jax.pmap(device, axis_name="devices", devices=jax.devices()[:2])
    out, gradients = mapped(*halves)
    expected_out, expected = value_and_grad(name, learned, given, where=where)
    assert_close(rows(out, 0), expected_out)
    assert_close(rows(out, 1), expected_out)
    # Gradients of the inputs are per row: the average over devices would divide them by 2.
    assert_close(jax.tree.map(lambda g: g.reshape(N, *g.shape[2:]) / 2, gradients), expected)


@each_loss
def test_jit_and_vmap_are_the_plain_call(name):
    loss, learned, given = CASES[name]
    where = np.arange(N) % 3 > 0

    def call(learned, given, where):
        return loss(**learned, **given, where=where)

    plain = call(*jax.tree.map(jnp.asarray, (learned, given, where)))
    assert_close(value_and_grad(name, learned, given, where=where)[0], plain)
    pair = jax.tree.map(lambda x: np.stack([x[::-1], x]), (learned, given, where))
    assert_close(rows(jax.jit(jax.vmap(call))(*pair), 1), plain)


@pytest.mark.parametrize("name", ["aac", "aac of a dict", "ppo"])
def test_entropy_is_in_the_loss_and_hyper_parameters_can_be_mapped(name):
    loss, learned, given = CASES[name]

    def total(beta, weight):
        return loss(**learned, **given, entropy_beta=beta, value_weight=weight)

    (by_beta, by_weight), metrics = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(0.3, 0.5)
    assert_close(by_beta, -metrics["entropy"])
    assert_close(by_weight, metrics["value_loss"])
    betas = jnp.array([0.0, 0.5])
    losses, _ = jax.jit(jax.vmap(total, in_axes=(0, None)))(betas, 0.5)
    assert_close(losses[0] - losses[1], 0.5 * metrics["entropy"])


@pytest.mark.parametrize("name", ["aac", "ppo", "rp"])
@pytest.mark.parametrize("extreme", [1e4, -1e4, -np.inf])
def test_extreme_logits_have_finite_losses_and_gradients(name, extreme):
    _, learned, given = CASES[name]
    taken = given["targets" if name == "rp" else "actions"]
    width = learned["logits"].shape[-1]
    column = (taken if np.isfinite(extreme) else taken + 1) % width
    logits = learned["logits"].copy()
    logits[np.arange(N), column] = extreme
    assert_finite = functools.partial(
        jax.tree.map, lambda x: np.testing.assert_array_equal(jnp.isfinite(x), True)
    )
    assert_finite(value_and_grad(name, learned | {"logits": logits}, given))
    if name == "ppo":
        assert_finite(value_and_grad(name, learned, given | {"old_logits": logits}))


def test_ppo_is_the_clipped_surrogate():
    _, learned, given = CASES["ppo"]
    given = given | {"old_logits": learned["logits"] + 0.1 * given["old_logits"]}

    def naive(learned):
        chosen = jnp.arange(N), given["actions"]
        log_p, log_old = (
            jax.nn.log_softmax(jnp.asarray(x))[chosen] for x in (learned["logits"], given["old_logits"])
        )
        ratio, advantage = jnp.exp(log_p - log_old), given["advantages"]
        surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.9, 1.1) * advantage)
        entropy = -jnp.sum(jax.nn.softmax(learned["logits"]) * jax.nn.log_softmax(learned["logits"]), axis=-1)
        error = jnp.square(given["returns"] - learned["values"])
        metrics = {
            "approx_kl": jnp.mean(ratio - 1 - (log_p - log_old)),
            "clip_fraction": jnp.mean(jnp.asarray(jnp.abs(ratio - 1) > 0.1, jnp.float32)),
        }
        return jnp.mean(-surrogate + error - 0.01 * entropy), metrics

    (loss, metrics), gradients = value_and_grad("ppo", learned, given, epsilon=jnp.float32(0.1))
    (expected, expected_metrics), expected_gradients = jax.jit(jax.value_and_grad(naive, has_aux=True))(
        learned
    )
    assert_close(loss, expected)
    assert_close(gradients, expected_gradients)
    assert 0 < metrics["clip_fraction"] < 1, "choose inputs of which some are clipped"
    for name, value in expected_metrics.items():
        assert_close(metrics[name], value, rtol=1e-4)


def test_ppo_at_unchanged_parameters():
    _, learned, given = CASES["ppo"]
    same = given | {"old_logits": learned["logits"]}
    (_, metrics), gradients = value_and_grad("ppo", learned, same)
    assert metrics["approx_kl"] == metrics["clip_fraction"] == 0
    del same["old_logits"]
    _, aac_gradients = value_and_grad("aac", learned, same, value_weight=1.0)
    assert_close(gradients, aac_gradients)


def test_reward_prediction_accuracy():
    logits = jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    _, metrics = rp_loss(jnp.array([0, 1]), logits)
    assert metrics["reward_prediction_accuracy"] == 0.5


def test_uint8_targets_are_pixels():
    pixels = jnp.array([[0, 51, 255]], jnp.uint8)
    loss, _ = ae_loss(pixels, jnp.array([[0.0, 0.2, 1.0]]))
    assert_close(loss, 0.0)


def test_kl_reductions_differ_by_the_number_of_latents():
    loss, learned, given = CASES["beta_vae"]
    by_sum, by_mean = (loss(**learned, **given, kl_reduction=r)[1]["kl"] for r in ("sum", "mean"))
    assert_close(by_sum, LATENT * by_mean)


def test_masked_mean_of_rows_with_more_axes():
    x, where = normal(0, 4, 3), jnp.array([True, False, True, False])
    assert_close(masked_mean(x, where), np.mean(np.asarray(x)[::2]))
    assert_close(masked_mean(x), np.mean(np.asarray(x)))


def test_explained_variance():
    returns, noise, where = normal(0, 64), 0.3 * normal(1, 64), jnp.arange(64) < 40
    expected = 1 - np.var(noise[:40]) / np.var(returns[:40])
    assert_close(explained_variance(returns, returns + noise, where), expected, rtol=1e-4)
    assert explained_variance(returns, returns) == 1
    assert_close(explained_variance(returns, jnp.zeros(64)), 0.0)
    for constant in (1, 0.1, 7.7, 1000.1):
        assert explained_variance(jnp.full(7, constant, jnp.float32), noise[:7]) == 0
    halves = [x.reshape(2, 32) for x in (returns, returns + noise, where)]
    mapped = jax.vmap(functools.partial(explained_variance, axis_name="i"), axis_name="i")(*halves)
    assert_close(mapped, jnp.full(2, expected), rtol=1e-4)


def test_no_rows_are_no_loss():
    assert masked_mean(jnp.zeros((0, 3))) == 0
    assert rp_loss(jnp.zeros(0, jnp.int32), jnp.zeros((0, 3)))[0] == 0


def test_mismatches_are_errors():
    x = jnp.zeros(N)
    for d_kl in (x, jnp.zeros((2, N, 3)), jnp.zeros((N + 1, 3))):
        with pytest.raises(ValueError, match=r"d_kl \[N, latent\] for targets \[N, ...\] \(8, 2\), got "):
            beta_vae_loss(jnp.zeros((N, 2)), jnp.zeros((N, 2)), d_kl)
    with pytest.raises(ValueError, match=r"'values': \(8, 1\)"):
        value_fn_loss(x, x[:, None])
    with pytest.raises(ValueError, match=r"where bool \(8,\), got float32 \(8,\)"):
        value_fn_loss(x, x, where=x)
    with pytest.raises(ValueError, match=r"N = \(8,\), got \(4, 3\)"):
        aac_loss(jnp.zeros(4, jnp.int32), x, x, jnp.zeros((4, 3)), x)
    with pytest.raises(ValueError, match=r"got \(8, 3, 2\) and \(8, 3, 3, 4\)"):
        pc_loss(jnp.zeros(N, jnp.int32), jnp.zeros((N, 3, 2)), jnp.zeros((N, 3, 3, A)))
    with pytest.raises(ValueError, match="reconstructions"):
        ae_loss(jnp.zeros((N, 2)), jnp.zeros((N, 1)))
    with pytest.raises(ValueError, match="'max'"):
        beta_vae_loss(jnp.zeros((N, 2)), jnp.zeros((N, 2)), jnp.zeros((N, 2)), kl_reduction="max")


def ppo_batch(rows=6, actions=4):
    keys = jax.random.split(jax.random.key(7), 5)
    logits, old_logits = (jax.random.normal(k, (rows, actions)) for k in keys[:2])
    taken = jax.random.randint(keys[2], (rows,), 0, actions)
    advantages, returns = (jax.random.normal(k, (rows,)) for k in keys[3:])
    return taken, advantages, returns, logits, returns * 0.5, old_logits


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 5), (1, 4)])
def test_old_logits_of_another_shape_are_refused(shape):
    *batch, _ = ppo_batch()
    with pytest.raises(ValueError, match=r"old_logits of the shape of logits, \(6, 4\), got"):
        losses.ppo_loss(*batch, jnp.zeros(shape))


@pytest.mark.parametrize("where", [None, jnp.arange(6) > 2])
def test_log_probabilities_take_the_place_of_old_logits(where):
    *batch, old_logits = ppo_batch()
    old = categorical.log_prob(old_logits, batch[0])

    def loss(logits, **given):
        arguments = (*batch[:3], logits, batch[4])
        return losses.ppo_loss(*arguments, where=where, **given)

    gradient = jax.value_and_grad(loss, has_aux=True)
    expected = gradient(batch[3], old_logits=old_logits)
    found = gradient(batch[3], old_log_probs=old)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)


def test_log_probabilities_of_a_dict_action_space_add_up():
    *batch, old_logits = ppo_batch()
    actions, logits = ({"a": x, "b": x} for x in (batch[0], batch[3]))
    old = categorical.log_prob(old_logits, batch[0])
    arguments = (actions, *batch[1:3], logits, batch[4])
    expected = losses.ppo_loss(*arguments, {"a": old_logits, "b": old_logits})
    for given in ({"a": old, "b": old}, 2 * old):
        found = losses.ppo_loss(*arguments, old_log_probs=given)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    with pytest.raises(ValueError, match="structure"):
        losses.ppo_loss(*arguments, old_log_probs={"a": old})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one of old_logits and old_log_probs, got neither"),
        ({"old_logits": jnp.zeros((6, 4)), "old_log_probs": jnp.zeros(6)}, "got both"),
        ({"old_log_probs": jnp.zeros((6, 4))}, r"shape of values, \(6,\), got \(6, 4\)"),
        (
            {"old_logits": jnp.zeros((6, 4)), "old_values": jnp.zeros(6)},
            "old_values and value_epsilon together",
        ),
        ({"old_logits": jnp.zeros((6, 4)), "old_values": jnp.zeros(5), "value_epsilon": 1.0}, "one shape"),
    ],
)
def test_what_the_old_policy_said_is_checked(given, message):
    *batch, _ = ppo_batch()
    with pytest.raises(ValueError, match=message):
        losses.ppo_loss(*batch, **given)


def test_log_probabilities_are_never_logits():
    taken, advantages, returns, logits, values, _ = ppo_batch()
    log_probs = categorical.log_prob(logits, taken)
    for actions in (taken, values):  # integers, and floats by mistake
        for call in (
            lambda actions: losses.aac_loss(actions, advantages, returns, log_probs, values),
            lambda actions: losses.ppo_loss(actions, advantages, returns, log_probs, values, log_probs),
            lambda actions: losses.rp_loss(actions, log_probs),
        ):
            with pytest.raises(ValueError, match=r"expected logits \[N, A\] .*got .*\(6,\)"):
                call(actions)


def test_a_single_step_may_be_one_hot():
    taken, *rest = (x[0] for x in ppo_batch())
    hot = jax.nn.one_hot(taken, 4, dtype=jnp.int32)
    for loss, arguments in ((losses.aac_loss, rest[:4]), (losses.ppo_loss, rest)):
        assert_close(loss(hot, *arguments), loss(taken, *arguments))


def test_clipped_values_take_the_larger_error():
    actions, logits = jnp.zeros(3, jnp.int32), jnp.zeros((3, 2))
    returns, values, old = jnp.array([1.0, 1.0, 1.0]), jnp.array([0.9, 0.3, 2.0]), jnp.array([0.0, 0.2, 1.9])

    def value_loss(values):
        return losses.ppo_loss(
            actions, jnp.zeros(3), returns, logits, values, logits, old_values=old, value_epsilon=0.5
        )[1]["value_loss"]

    # errors: max(.1, .5)^2, max(.7, .7)^2, max(1, 1)^2
    np.testing.assert_allclose(value_loss(values), (0.25 + 0.49 + 1.0) / 3, rtol=1e-6)
    gradient = jax.grad(value_loss)(values)
    assert gradient[0] == 0  # it has moved further than it may
    assert (gradient[1:] != 0).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.pc_loss({}, {}, {}),
        lambda: losses.ae_loss({}, {}),
        lambda: losses.aac_loss({}, jnp.zeros(2), jnp.zeros(2), {}, jnp.zeros(2)),
        lambda: categorical.entropy({}),
        lambda: categorical.kl_divergence({}, {}),
    ],
)
def test_empty_trees_are_refused(call):
    with pytest.raises(ValueError, match="at least one array"):
        call()


@pytest.mark.parametrize("kl_reduction", ["sum", "mean"])
def test_a_divergence_of_no_latents_is_zero(kl_reduction):
    x = jnp.zeros((3, 2))
    assert losses.beta_vae_loss(x, x, jnp.zeros((3, 0)), kl_reduction=kl_reduction)[0] == 0


def test_the_mean_over_an_empty_axis_is_zero():
    assert losses.masked_mean(jnp.zeros((3, 0)), jnp.ones(3, bool)) == 0
    assert losses.masked_mean(jnp.zeros((0,)), jnp.zeros(0, bool)) == 0


def test_pixel_control_of_a_single_step_without_leading_axes():
    q = jax.random.normal(jax.random.key(0), (2, 3, 4))
    alone, _ = losses.pc_loss(jnp.int32(1), jnp.ones((2, 3)), q)
    batch, _ = losses.pc_loss(jnp.array([1]), jnp.ones((1, 2, 3)), q[None])
    np.testing.assert_allclose(alone, batch, rtol=1e-6)
