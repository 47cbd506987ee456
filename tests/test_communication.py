"""The sums over hosts that `benchmarks.communication` goes through cost what the papers say."""

import importlib.util
import pathlib

import pytest

SOURCE = pathlib.Path(__file__).parents[1] / "benchmarks" / "communication.py"


@pytest.fixture(scope="module")
def communication():
    spec = importlib.util.spec_from_file_location("communication", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("hosts", [1, 2, 8, 64])
def test_both_send_as_little_as_can_be(communication, hosts):
    size, network = 64_000, communication.Network(0.5, 1000.0)
    least, wire = 2 * (hosts - 1) * size // hosts, 2 * (hosts - 1) / hosts * size / 1000
    ring, halves = (way(size, hosts, network) for way in (communication.ring, communication.halving_doubling))
    assert ring.sent == halves.sent == least
    assert ring.seconds == pytest.approx(2 * (hosts - 1) * 0.5 + wire)
    assert halves.seconds == pytest.approx(2 * (hosts.bit_length() - 1) * 0.5 + wire)


def test_parts_of_a_ring_need_not_be_equal(communication):
    assert communication.ring(10, 3, communication.Network(0.0, 1.0)) == (14, 16.0)


def test_halving_needs_a_power_of_two(communication):
    with pytest.raises(ValueError, match="hosts must be a power of two, got 6"):
        communication.halving_doubling(10, 6, communication.Network(0.0, 1.0))
