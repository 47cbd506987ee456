"""Whether a larger beta disentangles: `python -m benchmarks.disentanglement` prints a table.

Beta-VAEs learn sine windows whose phase, period and level are known, with noise of known variance, so that beta = 1
is the evidence lower bound. The score is the mutual information gap (Chen et al. 2018, "Isolating Sources of
Disentanglement in VAEs", section 4): for each factor, how much more the latent variable that tells most about it
tells than the one that comes second, as a share of the factor's entropy; the mean over factors. 1 is one latent
variable for each factor.
"""

from __future__ import annotations

import argparse
import math

import jax
import numpy as np
import scipy.stats

from btnn_jax.data.generators import sine_windows
from btnn_jax.training.autoencoder import make_autoencoder
from btnn_jax.training.config import AutoencoderConfig

BETAS = (1.0, 4.0, 16.0, 64.0)
NOISE = 0.1
LENGTH, WINDOWS, BINS = 32, 8192, 20
CONFIG = AutoencoderConfig(
    kind="beta_vae", layer_config=((32, (3, 1), (2, 1)), (32, (3, 1), (2, 1)), (2, (3, 1), (1, 1))), batch=64,
    learning_rate=1e-3, steps=4000, steps_per_update=500, beta_warmup_steps=1000,
)  # fmt: skip


def mutual_information_gap(latents: np.ndarray, factors: np.ndarray, bins: int = BINS) -> float:
    """The score of posterior means `[N, latent]` against `factors [N, F]`, both cut into `bins` equal intervals."""
    gaps = []
    for factor in factors.T:
        told = sorted(_information(latent, factor, bins) for latent in latents.T)
        gaps.append((told[-1] - told[-2]) / _information(factor, factor, bins))
    return float(np.mean(gaps))


def _information(a: np.ndarray, b: np.ndarray, bins: int) -> float:
    """Mutual information in nats."""
    joint = np.histogram2d(a, b, bins)[0] / len(a)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log(joint[seen] / independent[seen])))


def train(beta: float, seeds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, mean squared errors and divergences, each `[seeds]`, of windows that were not learned from."""
    config = AutoencoderConfig(**{**CONFIG.to_dict(), "beta": beta * NOISE**2})
    train_key, test_key, seed_key = jax.random.split(jax.random.key(0), 3)
    windows, _ = sine_windows(train_key, WINDOWS, LENGTH, noise=NOISE)
    unseen, factors = sine_windows(test_key, WINDOWS, LENGTH, noise=NOISE)
    autoencoder = make_autoencoder(config, jax.ShapeDtypeStruct(windows.shape[1:], windows.dtype))
    state = jax.jit(jax.vmap(autoencoder.init))(jax.random.split(seed_key, seeds))
    step = jax.jit(jax.vmap(autoencoder.step, in_axes=(0, None)), donate_argnums=0)
    for _ in range(config.num_updates):
        state, metrics = step(state, windows)
    latents = jax.jit(jax.vmap(autoencoder.encode, in_axes=(0, None)))(state.params, unseen)
    scores = [mutual_information_gap(np.asarray(z), np.asarray(factors)) for z in latents]
    return np.array(scores), np.asarray(metrics["reconstruction_loss"]), np.asarray(metrics["kl"])


def interval(x: np.ndarray) -> str:
    """Mean and half the width of its 95% interval (Student's t)."""
    width = scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return f"{x.mean():.3f} +- {width:.3f}"


def main() -> None:
    """Prints a row for each beta, the differences to beta = 1 paired by seed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disentanglement")
    parser.add_argument("--seeds", type=int, default=8)
    seeds = parser.parse_args().seeds
    print("| beta | mutual information gap | difference to beta = 1 | squared error | KL, nats |")
    print("|---:|---:|---:|---:|---:|")
    base = None
    for beta in BETAS:
        scores, errors, divergences = train(beta, seeds)
        base = scores if base is None else base
        difference = "" if base is scores else interval(scores - base)
        row = (interval(scores), difference, f"{errors.mean():.4f}", f"{divergences.mean():.1f}")
        print(f"| {beta:g} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
