"""How well a trained autoencoder reconstructs, beside PCA with as many latent variables."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax._errors import import_extra
from btnn_jax.runs.autoencoder import TrainedAutoencoder, load_autoencoder
from btnn_jax.runs.autoencoder_data import Examples
from btnn_jax.runs.folder import EVALUATION, Folder, read_rows, write_json

__all__ = ["ReconstructionErrors", "compare", "compare_run", "errors_table", "pca_errors", "read_errors"]

_SHARE = "of the mean's"


class ReconstructionErrors(NamedTuple):
    """Mean squared errors of the reconstruction, per number of an example."""

    latent: int  # numbers kept of an example
    train: float
    validation: float


def compare_run(folder: Folder) -> dict[str, ReconstructionErrors]:
    """Measures the autoencoder of a run's newest checkpoint and PCA, and writes `evaluation.json` into the folder.

    Returns:
      The errors of the `autoencoder`, of `PCA` with as many latent variables, and of the `mean` of the training
      part, with none.

    Raises:
      RunError: the folder is not an autoencoder's run, its data cannot be had, or its checkpoint cannot be read.
      ModuleNotFoundError: scikit-learn is not installed.
    """
    errors = compare(load_autoencoder(folder))
    content = {"errors": {name: measured._asdict() for name, measured in errors.items()}}
    write_json(pathlib.Path(folder) / EVALUATION, content)
    return errors


def compare(trained: TrainedAutoencoder) -> dict[str, ReconstructionErrors]:
    """The errors of an autoencoder, of PCA and of the mean; see `compare_run`."""
    _, examples, autoencoder, params = trained
    evaluate = jax.jit(autoencoder.evaluate)
    parts = (jnp.asarray(part) for part in (examples.train, examples.validation))
    train, validation = (float(evaluate(params, part)["loss"]) for part in parts)
    return {
        "autoencoder": ReconstructionErrors(autoencoder.latent, train, validation),
        **pca_errors(examples, autoencoder.latent),
    }


def pca_errors(examples: Examples, latent: int) -> dict[str, ReconstructionErrors]:
    """The errors of `PCA` with `latent` components, and of the `mean` alone, both fitted on the training part.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
    """
    decomposition = import_extra("sklearn.decomposition", "comparing with PCA")
    train, validation = (_numbers(part) for part in (examples.train, examples.validation))
    pca = decomposition.PCA(min(latent, *train.shape), random_state=0).fit(train)

    def error(x: np.ndarray) -> float:
        return float(np.mean(np.square(x - pca.inverse_transform(pca.transform(x)))))

    spread = [float(np.mean(np.square(x - pca.mean_))) for x in (train, validation)]
    return {
        "PCA": ReconstructionErrors(pca.n_components_, error(train), error(validation)),
        "mean": ReconstructionErrors(0, *spread),
    }


def read_errors(folder: Folder) -> dict[str, ReconstructionErrors]:
    """The errors that `compare_run` wrote; empty where it has not been called.

    Raises:
      RunError: the file is damaged.
    """
    return read_rows(pathlib.Path(folder) / EVALUATION, "errors", ReconstructionErrors)


def errors_table(errors: Mapping[str, ReconstructionErrors]) -> str:
    """The errors as lines of text; the last column is the validation error's share of that of the mean.

    >>> print(errors_table({"PCA": ReconstructionErrors(16, 0.25, 0.2), "mean": ReconstructionErrors(0, 1.0, 0.8)}))
    squared error    latent    training  validation  of the mean's
    PCA                  16      0.2500      0.2000          25.0%
    mean                  0      1.0000      0.8000         100.0%
    """
    lines = [f"{'squared error':<15}{'latent':>8}{'training':>12}{'validation':>12}{_SHARE:>15}"]
    whole = errors["mean"].validation
    for name, (latent, train, validation) in errors.items():
        share = f"{validation / whole:.1%}" if whole > 0 else "-"
        lines.append(f"{name:<15}{latent:>8}{train:>12.4f}{validation:>12.4f}{share:>15}")
    return "\n".join(lines)


def _numbers(x: np.ndarray | jax.Array) -> np.ndarray:
    """Examples as PCA takes them: float32 `[N, D]`, pixels from 0 to 1, as autoencoders see them."""
    flat = np.asarray(x).reshape(len(x), -1)
    return flat.astype(np.float32) / (255 if flat.dtype == np.uint8 else 1)
