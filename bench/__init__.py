"""Benchmarks: `python -m bench.gateway` measures Headwater beside its peers, `python -m bench.engine` its engines."""
