"""The codec registry: every storage format by name."""

from dataclasses import asdict, fields

from fxcompress.codecs.affine import Affine
from fxcompress.codecs.base import Codec
from fxcompress.codecs.block2d import Block2d
from fxcompress.codecs.bounded import Bounded
from fxcompress.codecs.dual import Dual
from fxcompress.codecs.float8 import Float8
from fxcompress.codecs.running import Running
from fxcompress.codecs.valueset import Valueset
from fxcompress.errors import OptionError, nearest

_REGISTRY = {
    "affine": Affine,
    "block2d": Block2d,
    "bounded": Bounded,
    "dual": Dual,
    "float8": Float8,
    "running": Running,
    "valueset": Valueset,
}


def names() -> tuple[str, ...]:
    """Every registered codec's name, sorted."""
    return tuple(sorted(_REGISTRY))


def make(name: str, **params: object) -> Codec:
    """The codec `name` configured by `params`; what is left out takes the codec's default."""
    if name not in _REGISTRY:
        raise OptionError(f"unknown codec {name!r}; {nearest(name, _REGISTRY)}")
    kind = _REGISTRY[name]
    known = [field.name for field in fields(kind)]
    for param in params:
        if param not in known:
            raise OptionError(f"codec {name!r} has no parameter {param!r}; {nearest(param, known)}")
    codec: Codec = kind(**params)
    return codec


def params(codec: Codec) -> dict[str, object]:
    """The configuration of `codec`: `make(codec.name, **params(codec)) == codec`."""
    return asdict(codec)  # type: ignore[call-overload, no-any-return]


__all__ = ["make", "names", "params"]
