"""The networks that the benchmarks train."""
