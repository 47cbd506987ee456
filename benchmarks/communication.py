"""What hosts that average their gradients send each other: `python -m benchmarks.communication` prints a table.

Nothing is measured: two ways of adding up are gone through message by message. In a ring (Patarasuk and Yuan 2009,
"Bandwidth optimal all-reduce algorithms for clusters of workstations") each host sends its neighbour a part of the
gradient in each of 2 (N - 1) steps; by halving and doubling (Thakur et al. 2005, "Optimization of collective
communication operations in MPICH") it exchanges ever smaller parts with hosts ever farther away, and then ever larger
ones, in 2 log2(N) steps. A step takes the latency and the longest message's time on the wire.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import jax

from btnn_jax import envs
from btnn_jax.policies import init_params
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.modules import make_unreal_policy

HOSTS = (1, 2, 8, 64, 256, 1024)


class Network(NamedTuple):
    """How hosts are connected."""

    latency: float  # seconds, of a message
    bandwidth: float  # bytes per second, of each host each way


class Cost(NamedTuple):
    """Of one sum over all hosts."""

    sent: int  # bytes, by the host that sends most
    seconds: float


def ring(size: int, hosts: int, network: Network) -> Cost:
    """`size` bytes, in parts that differ by one byte at most, each of which goes round twice but for one step."""
    parts = [size // hosts + (i < size % hosts) for i in range(hosts)]
    sent, seconds = [0] * hosts, 0.0
    for step in range(2 * (hosts - 1)):
        messages = [parts[(host - step) % hosts] for host in range(hosts)]
        sent = [before + message for before, message in zip(sent, messages, strict=True)]
        seconds += network.latency + max(messages) / network.bandwidth
    return Cost(max(sent), seconds)


def halving_doubling(size: int, hosts: int, network: Network) -> Cost:
    """The same for a power of two of hosts: half of what is left in each step, and all of it back."""
    if hosts & (hosts - 1):
        raise ValueError(f"hosts must be a power of two, got {hosts}")
    halves = [math.ceil(size / 2**step) for step in range(1, hosts.bit_length())]
    seconds = sum(network.latency + half / network.bandwidth for half in halves)
    return Cost(2 * sum(halves), 2 * seconds)


def num_parameters(config: UnrealConfig, env: str) -> int:
    """Of the agent that `config` describes."""
    environment = envs.make(env)
    policy = make_unreal_policy(config, environment)
    shapes = jax.eval_shape(
        lambda key: init_params(policy, key, environment.observation, rp_frames=config.rp_frames),
        jax.random.key(0),
    )
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def main() -> None:
    """Prints the table for the default agent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.communication", description=__doc__)
    parser.add_argument("--env", default="Breakout-MinAtar")
    parser.add_argument("--parameters", type=int, help="in place of the default agent's")
    parser.add_argument("--latency", type=float, default=20.0, help="of a message, microseconds (default 20)")
    parser.add_argument("--bandwidth", type=float, default=25.0, help="of a host, Gbit/s (default 25)")
    given = parser.parse_args()
    config = UnrealConfig()
    parameters = given.parameters or num_parameters(config, given.env)
    network = Network(1e-6 * given.latency, 1e9 / 8 * given.bandwidth)
    steps, size = config.gradients_per_update, 4 * parameters
    print(
        f"{parameters:,} parameters, {size / 2**20:.2f} MiB of gradients, {steps} gradient steps an update; "
        f"{given.latency:g} us, {given.bandwidth:g} Gbit/s\n"
    )
    print("| hosts | steps an update | sent by a host, MiB | ring, ms | halving and doubling, ms |")
    print("|---:|---:|---:|---:|---:|")
    for hosts in HOSTS:
        round_, halves = ring(size, hosts, network), halving_doubling(size, hosts, network)
        print(
            f"| {hosts:,} | {hosts * config.steps_per_update:,} | {steps * round_.sent / 2**20:.1f} "
            f"| {1e3 * steps * round_.seconds:.1f} | {1e3 * steps * halves.seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
