"""Inductor's compile caches: where they lie, and when they are emptied."""

from typing import Any


def default_cache_dir() -> str:
    """Where Inductor keeps its caches if nobody says; `runtime.cache_dir_utils.default_cache_dir`: run in 2.13, read in
    2.11."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir as folder

    return str(folder())


def compile_cache_dir() -> str:
    """Where Inductor keeps its caches; `runtime.cache_dir_utils.cache_dir`: run in 2.13, read in 2.11."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return str(cache_dir())


def clear_with_compile_caches(cached: Any) -> None:
    """Let Inductor's `fresh_cache` and `clear_caches` empty a `functools.cache` too.

    `torch._inductor.utils.clear_on_fresh_cache`: run in 2.13, read in 2.11.
    """
    from torch._inductor.utils import clear_on_fresh_cache

    clear_on_fresh_cache(cached)
