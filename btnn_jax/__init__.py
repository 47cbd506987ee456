"""Recurrent actor-critic agents in JAX/Flax: UNREAL auxiliary tasks, NoisyNet heads and on-device replay.

Everything is a pure function or a linen module. The submodules, and the names below, are imported when they are first
used, so that `import btnn_jax` itself is instant and needs no JAX.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btnn_jax import (
        ae,
        cores,
        data,
        encoders,
        envs,
        interop,
        kernel_monitor,
        layers,
        losses,
        networks,
        ops,
        parameters,
        plots,
        policies,
        protocol,
        replay,
        runs,
        targets,
        training,
    )
    from btnn_jax.interop import from_btgym
    from btnn_jax.policies import UnrealPolicy, make_policy
    from btnn_jax.protocol import ModulePolicy
    from btnn_jax.replay import make_replay
    from btnn_jax.runs.acting import Agent, load_agent
    from btnn_jax.runs.agent import resume, train
    from btnn_jax.runs.autoencoder import load_autoencoder, resume_autoencoder, train_autoencoder
    from btnn_jax.runs.export import export_agent
    from btnn_jax.training.autoencoder import make_autoencoder
    from btnn_jax.training.config import AutoencoderConfig, UnrealConfig
    from btnn_jax.training.evaluate import make_evaluate
    from btnn_jax.training.mapping import make_mapped
    from btnn_jax.training.unreal import make_unreal

_SUBMODULES = (
    "ae",
    "cores",
    "data",
    "encoders",
    "envs",
    "interop",
    "kernel_monitor",
    "layers",
    "losses",
    "networks",
    "ops",
    "parameters",
    "plots",
    "policies",
    "protocol",
    "replay",
    "runs",
    "targets",
    "training",
)
_NAMES = {
    "Agent": "runs.acting",
    "AutoencoderConfig": "training.config",
    "ModulePolicy": "protocol",
    "UnrealConfig": "training.config",
    "UnrealPolicy": "policies",
    "export_agent": "runs.export",
    "from_btgym": "interop",
    "load_agent": "runs.acting",
    "load_autoencoder": "runs.autoencoder",
    "make_autoencoder": "training.autoencoder",
    "make_evaluate": "training.evaluate",
    "make_mapped": "training.mapping",
    "make_policy": "policies",
    "make_replay": "replay",
    "make_unreal": "training.unreal",
    "resume": "runs.agent",
    "resume_autoencoder": "runs.autoencoder",
    "train": "runs.agent",
    "train_autoencoder": "runs.autoencoder",
}
"""The names that a newcomer needs, and the module that each comes from."""

__all__ = [
    "Agent",
    "AutoencoderConfig",
    "ModulePolicy",
    "UnrealConfig",
    "UnrealPolicy",
    "ae",
    "cores",
    "data",
    "encoders",
    "envs",
    "export_agent",
    "from_btgym",
    "interop",
    "kernel_monitor",
    "layers",
    "load_agent",
    "load_autoencoder",
    "losses",
    "make_autoencoder",
    "make_evaluate",
    "make_mapped",
    "make_policy",
    "make_replay",
    "make_unreal",
    "networks",
    "ops",
    "parameters",
    "plots",
    "policies",
    "protocol",
    "replay",
    "resume",
    "resume_autoencoder",
    "runs",
    "targets",
    "train",
    "train_autoencoder",
    "training",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("btnn-jax")
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
