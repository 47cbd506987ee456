import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad

from btnn_jax import distributions as d
from btnn_jax.ops import categorical
from btnn_jax.spaces import Box

BOX = Box(-2, 2, (1,))
CASES = [(0.0, 0.0), (0.7, -1.0), (-0.9, 0.5), (1.5, -2.0), (-4.0, 1.0)]


def normal(kind, mean, log_std, box=BOX):
    shape = (1, *box.shape)
    return kind(jnp.full(shape, mean, jnp.float32), jnp.full(shape, log_std, jnp.float32), box)


def in_units(kind, u):
    """The action for a number u of the normal distribution, float64, in units of -1 to 1; its limits."""
    if kind is d.SquashedNormal:
        return np.tanh(u) / np.tanh(d.LIMIT), d.LIMIT
    return u, 1.0


def log_probs(part, actions):
    return jax.jit(jax.vmap(lambda a: part.log_prob(a.reshape(1, 1))[0]))(jnp.asarray(actions, jnp.float32))


@pytest.mark.parametrize("kind", [d.ClippedNormal, d.SquashedNormal])
@pytest.mark.parametrize(("mean", "log_std"), CASES)
def test_masses_and_density_make_a_probability_of_1(kind, mean, log_std):
    part = normal(kind, mean, log_std)
    _, limit = in_units(kind, 0.0)
    u = np.linspace(-limit, limit, 20_001)[1:-1]
    x, _ = in_units(kind, u)
    density = np.exp(np.asarray(log_probs(part, 2 * x), np.float64))
    masses = np.exp(np.asarray(log_probs(part, [-2.0, 2.0]), np.float64))
    expected = scipy.stats.norm(mean, math.exp(log_std))
    np.testing.assert_allclose(masses, [expected.cdf(-limit), expected.sf(limit)], rtol=1e-4, atol=1e-12)
    assert np.trapezoid(density, x) + masses.sum() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("kind", [d.ClippedNormal, d.SquashedNormal])
@pytest.mark.parametrize(("mean", "log_std"), CASES)
def test_entropy_and_divergence_are_the_integrals(kind, mean, log_std):
    p, q = normal(kind, mean, log_std), normal(kind, 0.3, -0.4)
    of_p, of_q = scipy.stats.norm(mean, math.exp(log_std)), scipy.stats.norm(0.3, math.exp(-0.4))
    _, limit = in_units(kind, 0.0)

    def log_slope(u):  # of the action, per unit of u
        return -2 * np.log(np.cosh(u)) - np.log(np.tanh(limit)) if kind is d.SquashedNormal else 0.0

    def integral(f):
        places = [x for x in (mean, mean - 3 * of_p.std(), mean + 3 * of_p.std()) if abs(x) < limit]
        return quad(f, -limit, limit, points=places or None, limit=200)[0]

    masses = [(of_p.logcdf(-limit), of_q.logcdf(-limit)), (of_p.logsf(limit), of_q.logsf(limit))]
    entropy = -integral(lambda u: of_p.pdf(u) * (of_p.logpdf(u) - log_slope(u)))
    entropy -= sum(math.exp(a) * a for a, _ in masses)
    divergence = integral(lambda u: of_p.pdf(u) * (of_p.logpdf(u) - of_q.logpdf(u)))
    divergence += sum(math.exp(a) * (a - b) for a, b in masses)
    assert d.entropy(p)[0] == pytest.approx(entropy, rel=1e-4, abs=1e-4)
    assert d.kl_divergence(p, q)[0] == pytest.approx(divergence, rel=1e-3, abs=1e-4)


def test_without_bounds_it_is_the_normal_distribution():
    part = normal(d.ClippedNormal, 0.5, 0.3, Box(-np.inf, np.inf, (2, 3)))
    action = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 3)), jnp.float32)
    expected = scipy.stats.norm(0.5, math.exp(0.3))
    np.testing.assert_allclose(d.log_prob(part, action)[0], expected.logpdf(action).sum(), rtol=1e-5)
    np.testing.assert_allclose(d.entropy(part)[0], 6 * expected.entropy(), rtol=1e-5)


@pytest.mark.parametrize("kind", [d.ClippedNormal, d.SquashedNormal])
@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (30.0, -3.0), (-30.0, 2.0), (5.0, 1.0)])
def test_values_and_gradients_are_finite_up_to_the_bounds(kind, mean, log_std):
    actions = jnp.array([-2.0, np.nextafter(-2, 0), 0.0, np.nextafter(2, 0), 2.0], jnp.float32)

    def total(parameters):
        part = kind(*(x.reshape(1, 1) for x in parameters), BOX)
        log_prob = jnp.stack([d.log_prob(part, a.reshape(1, 1)) for a in actions])
        return jnp.sum(log_prob) + jnp.sum(d.entropy(part))

    value, gradient = jax.jit(jax.value_and_grad(total))((jnp.float32(mean), jnp.float32(log_std)))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("kind", [d.ClippedNormal, d.SquashedNormal])
def test_samples_are_within_the_bounds_and_as_likely_as_it_says(kind):
    box = Box((-2.0, 1.0), (2.0, 5.0))
    part = kind(jnp.tile(jnp.array([[0.4, -0.3]]), (50_000, 1)), jnp.full((50_000, 2), 0.2), box)
    action = d.sample(part, jax.random.key(0))
    assert np.all((action >= np.asarray(box.low)[None]) & (action <= np.asarray(box.high)[None]))
    sampled = -np.asarray(d.log_prob(part, action), np.float64)
    assert sampled.mean() == pytest.approx(
        float(d.entropy(part)[0]), abs=5 * sampled.std() / math.sqrt(len(sampled))
    )


def test_the_score_has_mean_0_with_clipping():
    # Without the masses at the bounds the mean of the gradient is far from 0.
    part = normal(d.ClippedNormal, 0.8, 0.0)

    def score(mean, key):
        action = d.sample(part, key)
        return jax.grad(lambda m: d.log_prob(part.replace(mean=m.reshape(1, 1)), action)[0])(mean)

    scores = np.asarray(
        jax.vmap(score, (None, 0))(jnp.float32(0.8), jax.random.split(jax.random.key(1), 20_000))
    )
    assert abs(scores.mean()) < 5 * scores.std() / math.sqrt(len(scores))


def test_parts_of_a_nested_space_add_up():
    rng = np.random.default_rng(2)
    logits, several = (jnp.asarray(rng.standard_normal((4, 5)), jnp.float32) for _ in range(2))
    parts = {
        "a": logits,
        "b": (d.MultiCategorical(several, (2, 3)), normal(d.ClippedNormal, 0.1, 0.0).replace(
            mean=jnp.zeros((4, 1)), log_std=jnp.zeros((4, 1)))),
    }  # fmt: skip
    action = d.sample(parts, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), action) == {
        "a": ((4,), "int32"), "b": (((4, 2), "int32"), ((4, 1), "float32")),
    }  # fmt: skip
    box = parts["b"][1]
    heads, chosen = (several[:, :2], several[:, 2:]), tuple(action["b"][0].T)
    expected = categorical.log_prob(logits, action["a"]) + categorical.log_prob(heads, chosen)
    np.testing.assert_allclose(d.log_prob(parts, action), expected + box.log_prob(action["b"][1]), rtol=1e-6)
    expected = categorical.entropy((logits, *heads)) + box.entropy()
    np.testing.assert_allclose(d.entropy(parts), expected, rtol=1e-6)
    np.testing.assert_allclose(d.kl_divergence(parts, parts), 0, atol=1e-6)
    both = d.log_prob_and_entropy(parts, action, (4,))
    np.testing.assert_array_equal(both[0], d.log_prob(parts, action))
    np.testing.assert_array_equal(d.mode(parts)["b"][0][:, 1], np.argmax(several[:, 2:], axis=-1))


def test_of_logits_alone_everything_is_the_categoricals():
    logits = {"x": jnp.asarray(np.random.default_rng(3).standard_normal((6, 4)), jnp.float32)}
    action = d.sample(logits, jax.random.key(0))
    for ours, theirs in zip(
        d.log_prob_and_entropy(logits, action), categorical.log_prob_and_entropy(logits, action), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_illegal_actions_are_neither_taken_nor_learned_from():
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.standard_normal((64, 5)), jnp.float32).at[:, 3].set(1e4)
    legal = jnp.asarray(rng.random((64, 5)) < 0.5).at[:, 3].set(False).at[:, 0].set(True)
    masked = d.mask_logits(logits, legal)
    keys = jax.random.split(jax.random.key(0), 200)
    drawn = np.asarray(jax.vmap(functools.partial(d.sample, masked))(keys))
    assert np.all(np.take_along_axis(np.asarray(legal), drawn.T, axis=1))
    assert np.all(np.take_along_axis(np.asarray(legal), np.asarray(d.mode(masked))[:, None], axis=1))
    row = np.asarray(logits[0])[np.asarray(legal[0])]
    alone = jnp.asarray(row)[None]
    np.testing.assert_allclose(d.entropy(masked)[0], d.entropy(alone)[0], rtol=1e-5)
    other = d.mask_logits(jnp.flip(logits, 0), legal)
    divergence = d.kl_divergence(masked, other)
    assert np.all(np.isfinite(divergence))

    def total(x):
        p = d.mask_logits(x, legal)
        taken = d.log_prob(p, jnp.asarray(drawn[0]))
        return jnp.sum(taken + d.entropy(p) + d.kl_divergence(p, other))

    gradient = np.asarray(jax.grad(total)(logits))
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[~np.asarray(legal)] == 0)
    assert np.any(gradient[np.asarray(legal)] != 0)


def test_a_row_without_a_legal_action():
    logits, legal = jnp.zeros((2, 3)), jnp.array([[False] * 3, [True, False, False]])
    with pytest.raises(ValueError, match="expected a legal action in every row, got none in 1"):
        d.mask_logits(logits, legal)
    np.testing.assert_array_equal(jax.jit(d.mask_logits)(logits, legal)[0], 0)


@pytest.mark.parametrize(
    ("parameters", "actions", "message"),
    [
        ({"a": jnp.zeros((2, 3))}, jnp.zeros(2, jnp.int32), "expected actions of the structure"),
        (normal(d.ClippedNormal, 0, 0), jnp.zeros((1, 2)), r"expected floating actions \(1, 1\).*\(1, 2\)"),
        (normal(d.ClippedNormal, 0, 0), jnp.zeros((1, 1), jnp.int32), "expected floating actions.*int32"),
        (d.MultiCategorical(jnp.zeros((2, 5)), (2, 3)), jnp.zeros(2, jnp.int32), r"int actions \(2, 2\)"),
        ((jnp.zeros((2, 3)), jnp.zeros((3, 3))), (jnp.zeros(2, jnp.int32), jnp.zeros(3, jnp.int32)), "same N"),
        ({}, {}, "expected the parameters"),
    ],
)  # fmt: skip
def test_what_does_not_match_is_refused(parameters, actions, message):
    with pytest.raises(ValueError, match=message):
        d.log_prob(parameters, actions)


def test_divergence_needs_one_kind_and_one_box():
    p = normal(d.ClippedNormal, 0, 0)
    for q in (normal(d.SquashedNormal, 0, 0), normal(d.ClippedNormal, 0, 0, Box(-1, 2, (1,)))):
        with pytest.raises(ValueError, match="of one kind"):
            d.kl_divergence(p, q)
