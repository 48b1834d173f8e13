"""Patches of what all threads share, for one of them."""

import threading
from collections.abc import Callable
from typing import Any


def in_this_thread(function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """`function` in the thread that asks for it now, `original` in all others, which know nothing of this."""
    owner = threading.get_ident()

    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (function if threading.get_ident() == owner else original)(*args, **kwargs)

    return chosen
