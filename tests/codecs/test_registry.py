"""Names and parameters: what the registry makes, and how it refuses."""

import pytest

from fxcompress import codecs
from fxcompress.errors import OptionError


def test_names_are_sorted() -> None:
    assert list(codecs.names()) == sorted(codecs.names()) and "affine" in codecs.names()


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(OptionError, match="did you mean 'affine'"):
        codecs.make("afine")


def test_unknown_parameters_get_a_hint() -> None:
    with pytest.raises(OptionError, match=r"no parameter 'bit'.*did you mean 'bits'"):
        codecs.make("affine", bit=4)


def test_params_are_plain_data() -> None:
    assert codecs.params(codecs.make("affine", bits=2)) == {
        "bits": 2,
        "group": 64,
        "rounding": "stochastic",
        "sign_preserving": False,
        "zero_preserving": False,
        "heads": 0,
        "dim": 0,
    }
