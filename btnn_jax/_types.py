"""Types that many modules name."""

from __future__ import annotations

from typing import Any

__all__ = ["PyTree"]

PyTree = Any
"""A tree of arrays: nested dicts, tuples, dataclasses, or a single array."""
