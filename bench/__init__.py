"""Benchmarks of fxcompress. Every number they print is measured by the command that prints it."""

import os

# The profiler announces each start and stop on stderr, between the lines of the tables. Read when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
