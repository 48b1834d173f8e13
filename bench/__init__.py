"""Benchmarks of fxcompress. Every number they print is measured by the command that prints it."""
