"""Atari games by the Arcade Learning Environment's own vectorised emulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax._errors import check_known, import_extra
from btnn_jax._types import PyTree
from btnn_jax.envs.host import HostPool, Transition

__all__ = ["PRESETS", "ale_names", "make_ale"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Mnih et al. 2015, "Human-level control through deep reinforcement learning", as most agents are trained.
    "dqn": {"episodic_life": True, "clip_rewards": True, "noop_max": 30, "sticky_actions": 0.0},
    # Machado et al. 2018, "Revisiting the Arcade Learning Environment", section 5.
    "machado": {
        "episodic_life": False,
        "clip_rewards": True,
        "noop_max": 0,
        "sticky_actions": 0.25,
        "full_actions": True,
    },
}


def _import_ale() -> Any:
    return import_extra("ale_py", "an Atari game", extra="atari")


def ale_names() -> tuple[str, ...]:
    """The games whose ROMs are installed, such as `pong`."""
    ale = _import_ale()
    return tuple(sorted(ale.roms.get_all_rom_ids()))


def make_ale(
    game: str,
    *,
    preset: str = "dqn",
    size: int = 84,
    stack: int = 4,
    frame_skip: int = 4,
    noop_max: int | None = None,
    sticky_actions: float | None = None,
    episodic_life: bool | None = None,
    clip_rewards: bool | None = None,
    full_actions: bool | None = None,
    max_frames: int = 108_000,
    threads: int = 0,
    timeout: float = 60.0,
) -> HostPool:
    """Builds an Atari game; observations are uint8 `[size, size, stack]`, the newest frame last.

    Options that are None are those of the preset. Evaluations count the game's own rewards over whole games, whatever
    `clip_rewards` and `episodic_life` are.

    Args:
      game: one of `ale_names()`.
      preset: "dqn" or "machado", see `PRESETS`.
      size: pixels of a side of the grey frames.
      stack: frames of an observation.
      frame_skip: frames of the emulator that an action is repeated for; the last two are combined by their maximum.
      noop_max: most random frames without an action at the start of an episode.
      sticky_actions: probability that a frame repeats the action before.
      episodic_life: whether the loss of a life ends an episode.
      clip_rewards: whether rewards are clipped to -1, 0 and 1.
      full_actions: all 18 actions rather than those that the game uses.
      max_frames: frames of the emulator after which an episode is truncated.
      threads: of the emulator; 0 takes one for each core.
      timeout: seconds after which a reset or a step counts as hung.

    Raises:
      ValueError: the game is unknown, or an option makes no sense.
      ModuleNotFoundError: ale-py is not installed.
    """
    ale = _import_ale()
    vector = import_extra("ale_py.vector_env", "an Atari game", extra="atari").AtariVectorEnv
    check_known("Atari game", [game], ale_names())
    check_known("preset", [preset], PRESETS)
    chosen = {"full_actions": False, **PRESETS[preset]}
    given = {
        "noop_max": noop_max,
        "sticky_actions": sticky_actions,
        "episodic_life": episodic_life,
        "clip_rewards": clip_rewards,
        "full_actions": full_actions,
    }
    chosen |= {name: value for name, value in given.items() if value is not None}
    for name, value in {
        "size": size,
        "stack": stack,
        "frame_skip": frame_skip,
        "max_frames": max_frames,
    }.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= chosen["sticky_actions"] <= 1:
        raise ValueError(f"sticky_actions must be between 0 and 1, got {chosen['sticky_actions']}")
    if chosen["noop_max"] < 0:
        raise ValueError(f"noop_max must be at least 0, got {chosen['noop_max']}")
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)

    def make(num_envs: int, evaluation: bool) -> _Atari:
        return _Atari(
            vector(
                game,
                num_envs,
                num_threads=threads,
                max_num_frames_per_episode=max_frames,
                repeat_action_probability=chosen["sticky_actions"],
                full_action_space=chosen["full_actions"],
                autoreset_mode="NextStep",  # the masked resets of `restart` come first
                img_height=size,
                img_width=size,
                stack_num=stack,
                frameskip=frame_skip,
                noop_max=chosen["noop_max"],
                episodic_life=chosen["episodic_life"] and not evaluation,
                reward_clipping=chosen["clip_rewards"] and not evaluation,
            )
        )

    one = make(1, False)
    depth = int(one.envs.single_action_space.n)
    one.close()
    observation = jax.ShapeDtypeStruct((size, size, stack), jnp.uint8)
    return HostPool(f"ale:{game}", make, observation, depth, timeout=timeout)


class _Atari:
    """ALE's vector of games as a `VectorEnvironment`."""

    def __init__(self, envs: Any) -> None:
        self.envs = envs

    def reset(self, seeds: np.ndarray) -> PyTree:
        return _last_axis(self.envs.reset(seed=np.asarray(seeds))[0])

    def restart(self, where: np.ndarray) -> PyTree:
        return _last_axis(self.envs.reset(options={"reset_mask": where})[0])

    def step(self, action: PyTree) -> Transition:
        observation, reward, terminated, truncated, _ = self.envs.step(np.asarray(action, np.int64))
        return Transition(_last_axis(observation), reward, terminated, truncated)

    def close(self) -> None:
        self.envs.close()


def _last_axis(frames: np.ndarray) -> np.ndarray:
    """`[num_envs, stack, size, size]` as `[num_envs, size, size, stack]`."""
    return np.moveaxis(frames, 1, -1)
