"""Measurements beside the peers, a command each: `python -m benchmarks.step`, and so on."""
