"""Environments by name, with parameters as people may give them."""

import inspect

import pytest

from btnn_jax import envs
from btnn_jax.envs import check_environment
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.sources import make_env

VALUES = [
    None,
    -1,
    0,
    1.5,
    "x",
    (),
    (1,),
    {"a": 1},
    True,
    10**30,
    10**400,
    float("nan"),
    "a" * 5000,
    b"x",
    1j,
]


@pytest.mark.parametrize("name", ["trading", "probe-memory", "probe-choice"])
def test_a_parameter_of_any_kind_is_refused_in_one_line_or_works(name):
    faults = []
    for parameter in inspect.signature(envs.registration(name).make).parameters:
        for value in VALUES:
            try:
                check_environment(make_env(name, {parameter: value}))
            except RunError as error:
                if "\n" in str(error):
                    faults.append((parameter, value, str(error)))
            except Exception as error:
                faults.append((parameter, value, repr(error)[:200]))
    assert faults == []


@pytest.mark.parametrize("value", [[], "x", None, 10**400])
def test_a_parameter_that_only_a_step_computes_with_is_refused_in_one_line(value):
    with pytest.raises(
        RunError, match=r"CartPole-v1 makes no sense of its parameters \{'gravity': "
    ) as caught:
        make_env("CartPole-v1", {"gravity": value})
    assert "\n" not in str(caught.value)
