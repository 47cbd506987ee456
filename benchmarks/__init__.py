"""Speed against named peers, as ratios measured in one interleaved run: `python -m benchmarks`."""
