"""The configuration of a run, a frozen dataclass for each kind; imports no JAX, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass

from btnn_jax.training.fields import Config, option

__all__ = [
    "ALGORITHMS",
    "CORES",
    "KINDS",
    "PADS",
    "POLICIES",
    "PRECISIONS",
    "REPLAY_STATES",
    "RESIZE_METHODS",
    "SCHEDULES",
    "AutoencoderConfig",
    "Config",
    "LayerConfig",
    "UnrealConfig",
]

ALGORITHMS = ("a2c", "ppo")
POLICIES = ("unreal", "stacked_lstm")
CORES = ("lstm", "gru", "mingru", "lru", "gtrxl")
REPLAY_STATES = ("stored", "zero")
SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("float32", "bfloat16")
KINDS = ("conv2d", "channel_wise", "beta_vae")
RESIZE_METHODS = ("bilinear", "nearest", "bicubic", "area")
PADS = ("SAME", "VALID")

LayerConfig = tuple[tuple[int, tuple[int, int], tuple[int, int]], ...]  # (num_filters, filter_size, stride)


@dataclass(frozen=True)
class UnrealConfig(Config):
    """Everything that decides what an agent learns, apart from the environment and the seed.

    It is static: `make_unreal` binds it, and it never enters the state. A task whose weight is 0 is not compiled.

    Raises:
      ValueError: a field has the wrong type or is out of its range; the message names the field, the value and what
        was expected.
    """

    shards: int = option(
        1, "learners side by side that average their gradients", topic="experience", at_least=1
    )
    num_envs: int = option(64, "environments stepped side by side, in each shard", at_least=1)
    rollout_length: int = option(
        32, "steps of each environment per update; also the length of replayed sequences", at_least=1
    )
    total_steps: int = option(
        400_000, "environment steps of the whole run; the schedules end there", at_least=1, most=2**63 - 1
    )
    discount: float = option(0.99, "discount of rewards per step", at_least=0, at_most=1)
    gae_lambda: float = option(0.95, "lambda of generalized advantage estimation", at_least=0, at_most=1)

    algorithm: str = option(
        "ppo",
        "a2c makes one gradient step per rollout, ppo epochs * minibatches of them",
        topic="algorithm",
        choices=ALGORITHMS,
    )
    epochs: int = option(2, "ppo: passes over each rollout", at_least=1)
    minibatches: int = option(4, "ppo: parts of each rollout, a divisor of num_envs", at_least=1)
    ppo_epsilon: float = option(0.2, "ppo: clip range of the policy's probability ratio", above=0)
    normalize_advantages: bool = option(True, "scale advantages to mean 0 and deviation 1")
    normalize_returns: bool = option(
        True,
        "predict values in units of a running scale of the returns, so that rewards of any size learn alike",
        former=False,
    )
    value_weight: float = option(0.5, "weight of the value loss", at_least=0)
    entropy_beta: float = option(0.03, "weight of the policy's entropy", at_least=0)
    entropy_beta_final: float | None = option(
        None, "value that entropy_beta reaches linearly at the end; none keeps it constant", at_least=0
    )
    entropy_floor: float = option(
        0.0,
        "nats below which the weight of the entropy rises, linearly by up to 1; 0 never raises it",
        at_least=0,
    )
    diagnostics: bool = option(
        False, "measure in each update how the losses share the trunk, and the rank of the features"
    )

    learning_rate: float = option(3e-3, "Adam's step size", topic="optimizer", above=0)
    learning_rate_schedule: str = option("linear", "linear and cosine go down to 0", choices=SCHEDULES)
    max_grad_norm: float = option(0.5, "bound on the global norm of the gradients", above=0)
    adam_epsilon: float = option(1e-5, "epsilon in Adam's denominator", above=0)

    pc_weight: float = option(
        0.01, "weight of pixel control", topic="auxiliary tasks (a weight of 0 leaves a task out)", at_least=0
    )
    vr_weight: float = option(0.5, "weight of value replay", at_least=0)
    rp_weight: float = option(0.5, "weight of reward prediction", at_least=0)
    pc_discount: float = option(0.9, "discount of pixel changes per step", at_least=0, at_most=1)
    pc_cell: tuple[int, int] = option(
        (2, 2), "pixels of a cell of the pixel-control grid: height,width", at_least=1
    )
    pc_stream: str | None = option(
        None, "observation stream that pixel control watches; none for the only one"
    )
    rp_frames: int = option(3, "frames that reward prediction sees", at_least=1)
    rp_threshold: float = option(0.0, "rewards within [-X, X] count as zero", at_least=0)
    replay_length: int = option(
        512, "steps kept of each environment, a multiple of rollout_length", at_least=1
    )
    replay_batch: int = option(8, "replayed sequences per gradient step", at_least=1)
    replay_burn_in: int = option(
        0, "steps that only refresh the recurrent state of a replayed sequence", at_least=0
    )
    replay_state: str = option(
        "stored",
        "recurrent state at the start of a replayed sequence: stored with the rollout, or zero, which stores none",
        choices=REPLAY_STATES,
    )
    rp_batch: int = option(32, "frame stacks per gradient step, half of them with a reward", at_least=1)

    policy: str = option(
        "unreal",
        "stacked_lstm has two cores, for observation streams external and internal",
        topic="network",
        choices=POLICIES,
    )
    num_filters: tuple[int, ...] | None = option(
        None, "channels of each convolution; none chooses by the observation's size", at_least=1
    )
    hidden: tuple[int, ...] = option((128,), "sizes of the dense layers after the convolutions", at_least=1)
    core: str = option("lstm", f"the agent's memory: one of {', '.join(CORES)}, or several joined by +")
    core_size: tuple[int, ...] | None = option(
        None, "sizes of the core's layers; none takes those of lstm", at_least=1
    )
    core_memory: int = option(64, "steps that gtrxl looks back", at_least=1)
    lstm: tuple[int, ...] = option(
        (128,), "sizes of an LSTM's layers; none for an agent without memory", at_least=1
    )
    noisy: bool = option(True, "NoisyNet heads, which explore by noise in their weights")
    precision: str = option(
        "float32",
        "of the network's computations; parameters, memory, logits and losses are float32",
        choices=PRECISIONS,
    )
    frozen: tuple[str, ...] = option(
        (), "parameters that stay as they start, by how their paths start: encoder/autoencoder"
    )

    autoencoder: str | None = option(
        None,
        "whose latent variables the agent sees in place of convolutions",
        topic="an autoencoder as encoder",
        choices=KINDS,
    )
    ae_layers: LayerConfig | None = option(
        None, "filters:size:stride of each of its layers; none chooses by the observation's shape", at_least=1
    )
    ae_stream: str | None = option(None, "observation stream that it encodes; none for the only one")
    ae_weight: float = option(0.0, "weight of its own loss, on what the agent sees", at_least=0)
    ae_beta: float = option(1.0, "weight of a beta_vae's divergence in its loss", at_least=0)

    def __post_init__(self) -> None:
        """Checks every field, and what several of them must fulfil together."""
        super().__post_init__()
        self._check("num_filters", self.num_filters != (), "None or at least one size")
        self._check("ae_layers", self.ae_layers != (), "None or at least one layer")
        self._check_core()
        self._check(
            "ae_weight", self.ae_weight == 0 or self.autoencoder is not None, "0 without an autoencoder"
        )
        self._check("total_steps", self.num_updates < 2**31, "at most 2^31 updates")
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

    def _check_core(self) -> None:
        names, sizes = self.core.split("+"), "lstm" if self.core_size is None else "core_size"
        known = all(name in CORES for name in names)
        self._check("core", known, f"one of {', '.join(CORES)}, or several joined by '+'")
        self._check("core_size", self.core_size != (), "None or at least one size")
        if self.core != "lstm":
            self._check(sizes, self.core_sizes != (), f"at least one size for core {self.core!r}")
        if len(names) > 1:
            fits = len(self.core_sizes) in (1, len(names))
            self._check(sizes, fits, f"one size, or {len(names)} for core {self.core!r}")

    @property
    def core_sizes(self) -> tuple[int, ...]:
        """Sizes of the core's layers; `()` for an agent without memory."""
        return self.lstm if self.core_size is None else self.core_size

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

    It is static: `make_autoencoder` binds it, and it never enters the state.

    Raises:
      ValueError: a field has the wrong type or is out of its range; the message names the field, the value and what
        was expected.
    """

    columns: tuple[str, ...] = option(
        (),
        "columns of a series; none for its bars, or for all but the volume where it has none",
        topic="examples",
    )
    window: int = option(64, "rows of a window of a series", at_least=1)
    stride: int = option(1, "rows between the starts of two windows", at_least=1)
    frames: int = option(20_000, "frames of an environment, seen by random actions", at_least=1)
    stream: str | None = option(None, "which of an environment's observation streams; none for the only one")
    validation: float = option(
        0.2, "fraction of the time, at its end, that nothing is learned from", above=0, below=1
    )
    embargo: int = option(64, "rows or steps left out before it", at_least=0)

    kind: str = option(
        "conv2d",
        "channel_wise has weights for each channel; beta_vae is variational",
        topic="network",
        choices=KINDS,
    )
    layer_config: LayerConfig | None = option(
        None,
        "filters:size:stride of each layer of the encoder; none chooses by the example's shape",
        at_least=1,
    )
    resize_method: str = option("bilinear", "how the decoder makes features larger", choices=RESIZE_METHODS)
    pad: str = option("SAME", "padding of the convolutions", choices=PADS)

    beta: float = option(
        1.0,
        "weight of the divergence in nats, beside the likelihood of variance 1",
        topic="loss of a beta_vae",
        at_least=0,
    )
    beta_warmup_steps: int = option(0, "gradient steps in which beta rises linearly from 0", at_least=0)

    steps: int = option(
        5_000,
        "gradient steps of the whole run; the learning rate falls to 0 there",
        topic="optimizer",
        at_least=1,
    )
    batch: int = option(128, "examples of a gradient step", at_least=1)
    learning_rate: float = option(1e-3, "Adam's first step size", above=0)
    max_grad_norm: float = option(1.0, "bound on the global norm of the gradients", above=0)
    steps_per_update: int = option(
        200, "gradient steps between two measurements of the validation part", at_least=1
    )

    def __post_init__(self) -> None:
        """Checks every field."""
        super().__post_init__()
        self._check("layer_config", self.layer_config != (), "None or at least one layer")

    @property
    def num_updates(self) -> int:
        """Calls of `step` that the run takes, at least `steps` gradient steps."""
        return -(-self.steps // self.steps_per_update)
