"""The learning study's figures: intervals, the probability of improvement, and a report that follows from the data."""

import importlib
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.learning")


def test_the_probability_of_improvement_counts_ties_by_half(study):
    assert study.improvement(np.array([3.0, 5.0]), np.array([1.0, 3.0])) == (0.5 + 1 + 1 + 1) / 4
    assert study.improvement(np.array([1.0]), np.array([2.0])) == 0


def test_the_interval_holds_the_mean_and_shrinks_with_seeds(study):
    few, many = np.array([1.0, 2.0, 3.0]), np.tile([1.0, 2.0, 3.0], 20)
    for values in (few, many):
        low, high = study.interval(values)
        assert 1 <= low < 2 < high <= 3
    assert np.diff(study.interval(many)) < 0.5 * np.diff(study.interval(few))


def test_the_page_is_what_the_data_say(study):
    assert (ROOT / "docs" / "learning.md").read_text() == study.report(study.read())


def test_every_agent_of_the_study_is_a_configuration(study):
    for fields in study.AGENTS.values():
        for task in study.ENVIRONMENTS.values():
            study.UnrealConfig(total_steps=task.steps, **{**fields, **task.fields})
