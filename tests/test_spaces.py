import re

import jax
import numpy as np
import pytest

from btnn_jax.spaces import Box, Discrete, MultiDiscrete, check_space, is_continuous


def test_a_box_takes_arrays_and_can_be_hashed():
    box = Box(np.array([-1.0, -2.0]), 3)
    assert box == Box((-1, -2), (3, 3))
    assert hash(box) == hash(Box((-1, -2), 3, (2,)))
    assert (box.shape, box.size, box.dtype) == ((2,), 2, "float32")
    assert Box(0, 1).shape == ()


def test_descriptions_are_leaves():
    space = {"a": Box(0, 1, (2,)), "b": (Discrete(2), MultiDiscrete((2, 3)))}
    assert len(jax.tree.leaves(space)) == 3
    assert check_space({"a": 3, "b": [Discrete(2)]}) == {"a": Discrete(3), "b": (Discrete(2),)}
    assert not is_continuous(space)
    assert is_continuous((Box(0, 1), {"x": Box(0, 1)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Discrete(0), "at least 1, got 0"),
        (lambda: Discrete(True), "got True"),
        (lambda: MultiDiscrete(()), "got ()"),
        (lambda: MultiDiscrete((2, 0)), "got (2, 0)"),
        (lambda: Box(1, 1), "lower bounds below the upper ones, got low=1, high=1"),
        (lambda: Box(float("nan"), 1), "low=nan"),
        (lambda: Box(0, 1, (0,)), "lower bounds below"),
        (lambda: Box((0, 0), 1, (3,)), "bounds of one shape"),
        (lambda: Box("a", 1), "low='a'"),
        (lambda: Box(0, 255, (1,), "uint8"), "a floating type, got dtype='uint8'"),
        (lambda: check_space({}), "not empty, got {}"),
        (lambda: check_space({"a": (2, -1)}), "got -1"),
        (lambda: check_space({"a": None}), "got None"),
    ],
)
def test_bad_spaces_are_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
