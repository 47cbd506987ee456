"""`python -m btnn_jax` is `btnn-jax`."""

import sys

from btnn_jax.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
