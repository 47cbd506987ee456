"""`btnn-jax`, the command line: train an agent or an autoencoder, evaluate it, plot how it learned."""

from btnn_jax.cli.commands import main
from btnn_jax.cli.parser import make_parser

__all__ = ["main", "make_parser"]
