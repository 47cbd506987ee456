"""The configuration of a run, a frozen dataclass for each kind; without JAX, so that help is there at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

__all__ = [
    "ALGORITHMS",
    "KINDS",
    "PADS",
    "POLICIES",
    "PRECISIONS",
    "RESIZE_METHODS",
    "SCHEDULES",
    "AutoencoderConfig",
    "Config",
    "LayerConfig",
    "UnrealConfig",
]

ALGORITHMS = ("a2c", "ppo")
POLICIES = ("unreal", "stacked_lstm")
SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("float32", "bfloat16")
KINDS = ("conv2d", "channel_wise", "beta_vae")
RESIZE_METHODS = ("bilinear", "nearest", "bicubic", "area")
PADS = ("SAME", "VALID")

LayerConfig = tuple[tuple[int, tuple[int, int], tuple[int, int]], ...]  # (num_filters, filter_size, stride)


class Config:
    """What the configurations share: checks of ranges, and the way to JSON and back."""

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The configuration that `to_dict` gave, lists read as tuples.

        Raises:
          ValueError: a field is unknown or out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"unknown fields {unknown}, expected a subset of {sorted(known)}")
        return cls(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class UnrealConfig(Config):
    """Everything that decides what is learned, apart from the environment and the seed.

    Static: it is bound by `make_unreal` and never enters the state. A task whose weight is 0 is compiled away.

    Raises:
      ValueError: a field is out of its range; the message names the field, the value and the range.
    """

    # Experience
    # Learners side by side that average their gradients; devices divide them among themselves.
    shards: int = 1
    num_envs: int = 64  # environments stepped side by side, in each shard
    rollout_length: int = 32  # steps of each environment per update; also the length of replayed sequences
    total_steps: int = 400_000  # environment steps of the whole run; the schedules end there
    discount: float = 0.99
    gae_lambda: float = 0.95

    # Algorithm
    algorithm: str = "ppo"  # "a2c" makes one gradient step per rollout, "ppo" epochs * minibatches of them
    epochs: int = 2
    minibatches: int = 4  # of whole sequences: num_envs must be a multiple
    ppo_epsilon: float = 0.2
    normalize_advantages: bool = True
    # Values are predicted in units of a running scale of the returns, so that rewards of any size learn alike.
    normalize_returns: bool = True
    value_weight: float = 0.5
    entropy_beta: float = 0.01
    entropy_beta_final: float | None = None  # reached linearly at total_steps; None keeps entropy_beta

    # Optimizer
    learning_rate: float = 1e-3
    learning_rate_schedule: str = "linear"  # "constant", "linear" or "cosine", the last two down to 0
    max_grad_norm: float = 0.5  # of all gradients together
    adam_epsilon: float = 1e-5

    # Auxiliary tasks
    pc_weight: float = 0.01  # pixel control
    vr_weight: float = 0.5  # value replay
    rp_weight: float = 0.5  # reward prediction
    pc_discount: float = 0.9
    pc_cell: tuple[int, int] = (2, 2)  # pixels of a cell of the pixel-control grid
    pc_stream: str | None = None  # observation stream that pixel control watches
    rp_frames: int = 3
    rp_threshold: float = 0.0  # rewards within [-threshold, threshold] count as zero
    replay_length: int = 512  # steps kept per environment, a multiple of rollout_length
    replay_batch: int = 8  # sequences (value replay, pixel control) per gradient step
    replay_burn_in: int = 0  # steps that only refresh the recurrent state of a replayed sequence
    rp_batch: int = 32  # frame stacks per gradient step, half of them with a reward

    # Network
    policy: str = "unreal"  # "stacked_lstm" has two LSTMs, for dict observations {"external", "internal"}
    num_filters: tuple[int, ...] | None = None  # None: by the observation's size
    hidden: tuple[int, ...] = (128,)
    lstm: tuple[int, ...] = (128,)  # () for an agent without memory
    noisy: bool = True  # NoisyNet heads
    # "bfloat16" rounds the network's computations; parameters, memory, logits and losses stay float32.
    precision: str = "float32"
    frozen: tuple[str, ...] = ()  # parameters that stay as they start, by how their paths start

    # An autoencoder as encoder
    # One of KINDS, whose latent variables the agent sees; None for convolutions.
    autoencoder: str | None = None
    ae_layers: LayerConfig | None = None  # outer to inner; None: by the observation's shape
    ae_stream: str | None = None  # observation stream that it encodes
    ae_weight: float = 0.0  # of its own loss, on the rollouts
    ae_beta: float = 1.0  # of a beta-VAE

    def __post_init__(self) -> None:
        """Checks every range."""
        for name in (
            "shards",
            "num_envs",
            "rollout_length",
            "total_steps",
            "epochs",
            "minibatches",
            "rp_frames",
        ):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("replay_length", "replay_batch", "rp_batch"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("discount", "gae_lambda", "pc_discount"):
            self._check(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon", "ppo_epsilon"):
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in ("value_weight", "entropy_beta", "rp_threshold", "ae_beta"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("pc_weight", "vr_weight", "rp_weight", "ae_weight"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("policy", self.policy in POLICIES, f"one of {', '.join(POLICIES)}")
        self._check("algorithm", self.algorithm in ALGORITHMS, f"one of {', '.join(ALGORITHMS)}")
        self._check(
            "learning_rate_schedule",
            self.learning_rate_schedule in SCHEDULES,
            f"one of {', '.join(SCHEDULES)}",
        )
        self._check("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        for name in ("hidden", "lstm", "num_filters"):
            self._check(name, all(size >= 1 for size in getattr(self, name) or ()), "sizes of at least 1")
        self._check("num_filters", self.num_filters != (), "None or at least one size")
        self._check("pc_cell", len(self.pc_cell) == 2 and min(self.pc_cell) >= 1, "two sizes of at least 1")
        self._check("autoencoder", self.autoencoder in (None, *KINDS), f"None or one of {', '.join(KINDS)}")
        self._check(
            "ae_weight", self.ae_weight == 0 or self.autoencoder is not None, "0 without an autoencoder"
        )
        final = self.entropy_beta_final
        self._check("entropy_beta_final", final is None or final >= 0, "None or at least 0")
        if self.algorithm == "ppo":
            self._check(
                "minibatches", self.num_envs % self.minibatches == 0, f"a divisor of num_envs={self.num_envs}"
            )
        if self.replays:
            self._check(
                "replay_length",
                self.replay_length % self.rollout_length == 0,
                f"a multiple of rollout_length={self.rollout_length}",
            )
            least = 2 * self.rollout_length + self.replay_burn_in
            self._check(
                "replay_length",
                self.replay_length >= least,
                f"at least 2 * rollout_length + replay_burn_in = {least}",
            )
            self._check(
                "replay_burn_in",
                0 <= self.replay_burn_in < self.rollout_length,
                f"at least 0 and below rollout_length={self.rollout_length}",
            )
            self._check(
                "rp_frames",
                self.rp_frames <= self.replay_length,
                f"at most replay_length={self.replay_length}",
            )

    @property
    def replays(self) -> bool:
        """Whether any task needs the replay."""
        return max(self.pc_weight, self.vr_weight, self.rp_weight) > 0

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one call of `step`, in all shards."""
        return self.shards * self.num_envs * self.rollout_length

    @property
    def num_updates(self) -> int:
        """Calls of `step` that the run takes, at least `total_steps` environment steps."""
        return -(-self.total_steps // self.steps_per_update)

    @property
    def gradients_per_update(self) -> int:
        """Gradient steps of one call of `step`, which all shards make together."""
        return self.epochs * self.minibatches if self.algorithm == "ppo" else 1


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """Everything that decides what an autoencoder learns, apart from where the data lie and the seed.

    Static: it is bound by `make_autoencoder` and never enters the state.

    Raises:
      ValueError: a field is out of its range; the message names the field, the value and the range.
    """

    # Examples
    columns: tuple[str, ...] = ()  # of a series; () for its bars, or else for all but the volume
    window: int = 64  # rows of a window of a series
    stride: int = 1  # rows between the starts of two windows
    frames: int = 20_000  # of an environment
    stream: str | None = None  # of an environment's observations, where there are several
    validation: float = 0.2  # fraction of the time, at its end
    embargo: int = 64  # rows or steps left out before it

    # Network
    kind: str = "conv2d"
    layer_config: LayerConfig | None = None  # outer to inner; None: by the example's shape
    resize_method: str = "bilinear"
    pad: str = "SAME"

    # Loss of a beta-VAE
    beta: float = 1.0  # weight of the divergence, in nats, beside the likelihood of unit variance
    beta_warmup_steps: int = 0  # gradient steps in which beta rises linearly from 0

    # Optimizer
    steps: int = 5_000  # gradient steps of the whole run; the learning rate reaches 0 there
    batch: int = 128  # examples in each
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0  # of all gradients together
    steps_per_update: int = 200  # gradient steps of one compiled call, after which the rest is measured

    def __post_init__(self) -> None:
        """Checks every range."""
        for name in ("window", "stride", "frames", "steps", "batch", "steps_per_update"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("embargo", "beta", "beta_warmup_steps"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("learning_rate", "max_grad_norm"):
            self._check(name, getattr(self, name) > 0, "above 0")
        for name, known in (("kind", KINDS), ("resize_method", RESIZE_METHODS), ("pad", PADS)):
            self._check(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        self._check("validation", 0 < self.validation < 1, "between 0 and 1")
        layers = self.layer_config
        self._check("layer_config", layers != (), "None or at least one layer")
        for filters, size, stride in layers or ():
            self._check("layer_config", min(filters, *size, *stride) >= 1, "layers of sizes of at least 1")

    @property
    def num_updates(self) -> int:
        """Calls of `step` that the run takes, at least `steps` gradient steps."""
        return -(-self.steps // self.steps_per_update)
