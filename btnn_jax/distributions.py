"""Distributions of actions behind one interface: sample, mode, log-probability, entropy and divergence.

The parameters of a distribution are a pytree with the structure of its space (`btnn_jax.spaces`), whose parts are

- an array of logits `[N, A]`, for a discrete action: a categorical distribution, as in `btnn_jax.ops.categorical`;
- `MultiCategorical`, for several discrete ones;
- `ClippedNormal` or `SquashedNormal`, for real numbers;

with `N` any leading axes. The parts are independent, so that log-probabilities, entropies and divergences add up over
them. All of it is float32, and derivatives are taken in reverse.

Real actions are measured in units of half their range, -1 to 1; where a bound is infinite, in their own. Densities are
per such unit, so that no entropy depends on the units of an action. To have the density per unit of a bounded action,
subtract the logarithm of half its range for each component that lies between its bounds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.scipy.special import log_ndtr

from btnn_jax._types import PyTree
from btnn_jax.ops import categorical
from btnn_jax.spaces import Box

__all__ = [
    "ClippedNormal",
    "MultiCategorical",
    "SquashedNormal",
    "entropy",
    "kl_divergence",
    "log_prob",
    "log_prob_and_entropy",
    "mask_logits",
    "mode",
    "sample",
]

LIMIT = (
    5.0  # of a number before it is squashed: float32 tells tanh of smaller ones apart to 3e-4 of their size
)
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_NODES, _WEIGHTS = (x.astype(np.float32) for x in np.polynomial.legendre.leggauss(32))


@struct.dataclass
class MultiCategorical:
    """Independent choices at once; actions are int32 `[N, len(depths)]`."""

    logits: Array  # float32 [N, sum(depths)], one choice's after the other's
    depths: tuple[int, ...] = struct.field(pytree_node=False)  # type: ignore[no-untyped-call]

    def heads(self) -> tuple[Array, ...]:
        """The logits of each choice."""
        return tuple(jnp.split(self.logits, np.cumsum(self.depths)[:-1].tolist(), axis=-1))

    def sample(self, key: Array) -> Array:
        """Actions; the key is consumed."""
        keys = jax.random.split(key, len(self.depths))
        drawn = [jax.random.categorical(k, x) for k, x in zip(keys, self.heads(), strict=True)]
        return jnp.stack(drawn, axis=-1).astype(jnp.int32)

    def mode(self) -> Array:
        """The most likely actions."""
        return jnp.stack([jnp.argmax(x, axis=-1) for x in self.heads()], axis=-1).astype(jnp.int32)

    def log_prob(self, action: Array) -> Array:
        """Log-probability of actions, `[N]`."""
        expected = (*self.logits.shape[:-1], len(self.depths))
        if action.shape != expected or not jnp.issubdtype(action.dtype, jnp.integer):
            raise ValueError(f"expected int actions {expected}, got {action.dtype} {action.shape}")
        choices = tuple(action[..., i] for i in range(len(self.depths)))
        return categorical.log_prob(self.heads(), choices)

    def entropy(self) -> Array:
        """Entropy in nats, `[N]`."""
        return categorical.entropy(self.heads())

    def kl_divergence(self, other: MultiCategorical) -> Array:
        """`KL(self || other)`, `[N]`."""
        return categorical.kl_divergence(self.heads(), other.heads())


@struct.dataclass
class ClippedNormal:
    """A normal distribution whose samples are clipped to the bounds of a box, componentwise.

    The bounds themselves have probability: that of all that is clipped to them (Fujita and Maeda 2018, "Clipped Action
    Policy Gradient", arXiv:1802.07564). Between them there is a density. A log-probability, an entropy or a divergence
    adds up both, which makes ratios, importance weights and gradients exact. Without bounds it is the normal
    distribution.
    """

    mean: Array  # float32 [N, *box.shape], in units of half the range from its middle
    log_std: Array  # float32 [N, *box.shape], in the same units
    box: Box = struct.field(pytree_node=False)  # type: ignore[no-untyped-call]

    @property
    def limits(self) -> tuple[Array, Array]:
        """The bounds that the normal distribution is clipped to, float32 `[*1, *box.shape]`, in its units."""
        low, high, middle, half = _bounds(self.box)
        return self._lead((low - middle) / half), self._lead((high - middle) / half)

    def sample(self, key: Array) -> Array:
        """Actions `[N, *box.shape]` of the box's type; the key is consumed."""
        noise = jax.random.normal(key, self.mean.shape, jnp.float32)
        return self._action(self.mean + jnp.exp(self.log_std) * noise)

    def mode(self) -> Array:
        """The mean, clipped to the bounds."""
        return self._action(self.mean)

    def log_prob(self, action: Array) -> Array:
        """Log-probability of actions `[N, *box.shape]`, `[N]`: of what lies at a bound, a mass."""
        u, at_low, at_high = self._position(action)
        low, high = self._standardised()
        std = jnp.exp(self.log_std)
        inside = -0.5 * jnp.square((u - self.mean) / std) - self.log_std - _HALF_LOG_2PI
        inside = inside + self._log_slope(u)
        at = jnp.where(at_low, log_ndtr(_finite(low)), log_ndtr(-_finite(high)))
        return self._sum(jnp.where(at_low | at_high, at, inside))

    def entropy(self) -> Array:
        """Entropy in nats, `[N]`: of the masses and the density together."""
        low, high = self._standardised()
        within, _, second = _moments(low, high)
        inside = (self.log_std + _HALF_LOG_2PI) * within + 0.5 * second
        return self._sum(inside + _point(low) + _point(-high) + self._mean_log_slope(within))

    def kl_divergence(self, other: ClippedNormal) -> Array:
        """`KL(self || other)`, `[N]`, of two distributions over one box."""
        low, high = self._standardised()
        other_low, other_high = other._standardised()
        within, first, second = _moments(low, high)
        gap, std = self.mean - other.mean, jnp.exp(self.log_std)
        squares = jnp.square(gap) * within + 2 * gap * std * first + jnp.square(std) * second
        inside = (other.log_std - self.log_std) * within - 0.5 * second
        inside = inside + 0.5 * squares * jnp.exp(-2 * other.log_std)
        return self._sum(inside + _cross(low, other_low) + _cross(-high, -other_high))

    def _lead(self, x: np.ndarray) -> Array:
        return jnp.asarray(x, jnp.float32).reshape(*[1] * (self.mean.ndim - x.ndim), *x.shape)

    def _sum(self, x: Array) -> Array:
        return jnp.sum(x, axis=tuple(range(x.ndim - len(self.box.shape), x.ndim)))

    def _standardised(self) -> tuple[Array, Array]:
        low, high = self.limits
        std = jnp.exp(self.log_std)
        return (low - self.mean) / std, (high - self.mean) / std

    def _from_units(self, x: Array) -> Array:
        low, high, middle, half = map(self._lead, _bounds(self.box))
        x = jnp.where(x <= -1, low, jnp.where(x >= 1, high, middle + half * x))
        return x.astype(self.box.dtype)

    def _units(self, action: Array) -> tuple[Array, Array, Array]:
        """Actions in units of half the range, and which lie at the lower and at the upper bound."""
        if action.shape != self.mean.shape or not jnp.issubdtype(action.dtype, jnp.floating):
            raise ValueError(
                f"expected floating actions {self.mean.shape}, got {action.dtype} {action.shape}"
            )
        low, high, middle, half = map(self._lead, _bounds(self.box))
        action = jax.lax.stop_gradient(action).astype(jnp.float32)
        return (action - middle) / half, action <= low, action >= high

    def _action(self, u: Array) -> Array:
        low, high, middle, half = map(self._lead, _bounds(self.box))
        return jnp.clip(middle + half * u, low, high).astype(self.box.dtype)

    def _position(self, action: Array) -> tuple[Array, Array, Array]:
        return self._units(action)

    def _log_slope(self, u: Array) -> Array:
        """Logarithm of the normal's density per that of the action."""
        return jnp.zeros_like(u)

    def _mean_log_slope(self, within: Array) -> Array:
        """The part of the entropy that the change of variables makes."""
        return jnp.zeros_like(within)


@struct.dataclass
class SquashedNormal(ClippedNormal):
    """A normal distribution squashed into the bounds of a box, `tanh(u) / tanh(5)` with u clipped to -5 to 5.

    All bounds are finite. Clipped to there, every action has a log-probability that float32 can compute from the action
    alone: at a bound, which the unclipped tanh would reach only by rounding, it is the mass of what is clipped to it.

    The entropy is `E[log |da/du|]` more than that of the clipped normal, by Gauss-Legendre quadrature with 32 points.
    """

    @property
    def limits(self) -> tuple[Array, Array]:
        """The bounds of the number that is squashed."""
        limit = self._lead(np.full(self.box.shape, LIMIT))
        return -limit, limit

    def mode(self) -> Array:
        """The mean, squashed: the median of each component."""
        return super().mode()

    def _action(self, u: Array) -> Array:
        x = jnp.tanh(jnp.clip(u, -LIMIT, LIMIT)) / math.tanh(LIMIT)
        return self._from_units(jnp.where(u <= -LIMIT, -1.0, jnp.where(u >= LIMIT, 1.0, x)))

    def _position(self, action: Array) -> tuple[Array, Array, Array]:
        x, at_low, at_high = self._units(action)
        return jnp.arctanh(jnp.clip(x, -1.0, 1.0) * math.tanh(LIMIT)), at_low, at_high

    def _log_slope(self, u: Array) -> Array:
        """`-log(da/du)`, with `1 - tanh(u)^2` in a form that does not cancel (distrax's, too)."""
        size = jnp.abs(u)
        return math.log(math.tanh(LIMIT)) - 2 * (math.log(2) - size - jax.nn.softplus(-2 * size))

    def _mean_log_slope(self, within: Array) -> Array:
        del within  # what the quadrature integrates over
        std = jnp.exp(self.log_std)
        low = jnp.clip(self.mean - 8 * std, -LIMIT, LIMIT)  # beyond 8 deviations lie 1e-15
        high = jnp.clip(self.mean + 8 * std, -LIMIT, LIMIT)
        half = (high - low)[..., None] / 2
        u = (low + high)[..., None] / 2 + half * _NODES.reshape(*[1] * low.ndim, -1)
        log_density = -0.5 * jnp.square((u - self.mean[..., None]) / std[..., None])
        density = jnp.exp(log_density - self.log_std[..., None] - _HALF_LOG_2PI)
        weights = half * _WEIGHTS.reshape(*[1] * low.ndim, -1)
        return -jnp.sum(weights * density * self._log_slope(u), axis=-1)


_PARTS = (MultiCategorical, ClippedNormal)


def sample(parameters: PyTree, key: Array) -> PyTree:
    """Actions drawn from a distribution, with the structure of its space; the key is consumed."""
    leaves, structure = _flatten(parameters)
    if len(leaves) == 1:
        return jax.tree.unflatten(structure, [_sample(leaves[0], key)])
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [_sample(x, k) for x, k in zip(leaves, keys, strict=True)])


def mode(parameters: PyTree) -> PyTree:
    """The most likely actions; of real ones the means within the bounds."""
    return jax.tree.map(
        lambda x: x.mode() if isinstance(x, _PARTS) else jnp.argmax(x, axis=-1).astype(jnp.int32),
        parameters,
        is_leaf=_is_part,
    )


def log_prob(parameters: PyTree, actions: PyTree) -> Array:
    """Log-probability of actions, `[N]`; at the bound of a real action the logarithm of a mass.

    Raises:
      ValueError: structures, shapes or types do not match.
    """
    return _total(
        _pairs(parameters, actions), categorical.log_prob, lambda part, action: part.log_prob(action)
    )


def entropy(parameters: PyTree) -> Array:
    """Entropy in nats, `[N]`."""
    leaves, _ = _flatten(parameters)
    return _total([(x,) for x in leaves], categorical.entropy, lambda part: part.entropy())


def kl_divergence(p: PyTree, q: PyTree) -> Array:
    """Kullback-Leibler divergence `KL(p || q)` of two distributions over one space, `[N]`.

    Raises:
      ValueError: they are not distributions of one kind.
    """
    pairs = _pairs(p, q, "q")
    for a, b in pairs:
        same = type(a) is type(b) and (not isinstance(a, ClippedNormal) or a.box == b.box)
        if isinstance(a, _PARTS) and not same:
            raise ValueError(f"expected distributions of one kind and one space, got {a} and {b}")
    return _total(pairs, categorical.kl_divergence, lambda a, b: a.kl_divergence(b))


def log_prob_and_entropy(
    parameters: PyTree, actions: PyTree, rows: tuple[int, ...] | None = None
) -> tuple[Array, Array]:
    """`log_prob` and `entropy` for the price of one; `rows` is the `N` to insist on."""
    leaves, _ = _flatten(parameters)
    if not any(isinstance(x, _PARTS) for x in leaves):
        return categorical.log_prob_and_entropy(parameters, actions, rows)
    log_probs, entropies = log_prob(parameters, actions), entropy(parameters)
    if rows is not None and log_probs.shape != rows:
        raise ValueError(f"expected parameters of a distribution with N = {rows}, got {log_probs.shape}")
    return log_probs, entropies


def mask_logits(logits: Array, legal: Array) -> Array:
    """Logits of a policy that takes legal actions only: those of others are -inf, and have no gradient.

    Entropy, divergence, samples and the most likely action of the result are over the legal ones.

    Args:
      logits: float `[N, A]`.
      legal: bool `[N, A]`.

    Raises:
      ValueError: shapes or types do not match, or a row has no legal action. Where `legal` is traced this cannot be
        seen, and all actions of such a row count as legal: the last observation of an episode may have none.

    >>> mask_logits(jnp.zeros((1, 3)), jnp.array([[True, False, True]]))
    Array([[  0., -inf,   0.]], dtype=float32)
    """
    if legal.shape != logits.shape or legal.dtype != jnp.bool_:
        raise ValueError(f"expected legal bool {logits.shape}, got {legal.dtype} {legal.shape}")
    some = jnp.any(legal, axis=-1, keepdims=True)
    if not isinstance(some, jax.core.Tracer) and not bool(jnp.all(some)):
        raise ValueError(f"expected a legal action in every row, got none in {int(jnp.sum(~some))}")
    return jnp.where(legal | ~some, logits, -jnp.inf)


def _is_part(x: Any) -> bool:
    return isinstance(x, _PARTS)


def _flatten(parameters: PyTree) -> tuple[list[Any], Any]:
    leaves, structure = jax.tree.flatten(parameters, is_leaf=_is_part)
    if not leaves:
        raise ValueError(f"expected the parameters of a distribution, got {parameters!r}")
    return leaves, structure


def _pairs(parameters: PyTree, others: PyTree, name: str = "actions") -> list[tuple[Any, Any]]:
    leaves, structure = _flatten(parameters)
    matching, found = jax.tree.flatten(others, is_leaf=_is_part)
    if found != structure:
        raise ValueError(f"expected {name} of the structure {structure}, got {found}")
    return list(zip(leaves, matching, strict=True))


def _total(
    arguments: list[tuple[Any, ...]], of_logits: Callable[..., Array], of_part: Callable[..., Array]
) -> Array:
    """The sum over parts, if all have the same `N`."""
    parts = [of_part(*x) if isinstance(x[0], _PARTS) else of_logits(*x) for x in arguments]
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"expected parts with the same N, got {[part.shape for part in parts]}")
    return functools.reduce(jnp.add, parts)


def _sample(part: Any, key: Array) -> Array:
    if isinstance(part, _PARTS):
        return part.sample(key)
    return distrax.Categorical(logits=part, dtype=jnp.int32).sample(seed=key)


def _bounds(box: Box) -> tuple[np.ndarray, ...]:
    """Bounds, middle and half of the range, float64; 0 and 1 in place of the last two where a bound is infinite."""
    low, high = np.asarray(box.low), np.asarray(box.high)
    finite = np.isfinite(low) & np.isfinite(high)
    with np.errstate(invalid="ignore"):
        return low, high, np.where(finite, (low + high) / 2, 0.0), np.where(finite, (high - low) / 2, 1.0)


def _finite(z: Array) -> Array:
    """Standardised bounds within what float32 can square; beyond 1e4 deviations nothing is left."""
    return jnp.clip(z, -1e4, 1e4)


def _phi(z: Array) -> Array:
    return jnp.exp(-0.5 * jnp.square(_finite(z)) - _HALF_LOG_2PI)


def _moments(low: Array, high: Array) -> tuple[Array, Array, Array]:
    """`E[1]`, `E[z]` and `E[z^2]` of a standard normal z over `low < z < high`."""
    low, high = _finite(low), _finite(high)
    # The smaller tails are subtracted, for near 1 float32 tells no probabilities apart.
    positive = low > 0
    within = jnp.where(
        positive,
        jnp.exp(log_ndtr(-low)) - jnp.exp(log_ndtr(-high)),
        jnp.exp(log_ndtr(high)) - jnp.exp(log_ndtr(low)),
    )
    first = _phi(low) - _phi(high)
    return within, first, within + low * _phi(low) - high * _phi(high)


def _point(z: Array) -> Array:
    """`-P log P` of the mass P below z."""
    log_mass = log_ndtr(_finite(z))
    return -jnp.exp(log_mass) * log_mass


def _cross(z: Array, other: Array) -> Array:
    """`P (log P - log Q)` of the masses below z and `other`."""
    log_p, log_q = log_ndtr(_finite(z)), log_ndtr(_finite(other))
    return jnp.exp(log_p) * (log_p - log_q)
