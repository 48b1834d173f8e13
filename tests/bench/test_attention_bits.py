"""Why attention's tensors keep 8 bits: sharp scores multiply the error of queries and keys."""

from bench.attention_bits import STORED, error


def test_few_bits_of_sharp_attention_are_no_gradient_and_eight_are() -> None:
    keys, values = STORED["q, k"], STORED["v, out"]
    assert error(0.1, keys, 4, 0) < 0.1 < 1 < error(6.0, keys, 4, 0)
    assert error(6.0, keys, 8, 0) < 0.1
    assert error(6.0, values, 8, 0) < 0.05 < 0.2 < error(6.0, values, 4, 0)


def test_what_is_not_stored_in_few_bits_makes_no_error() -> None:
    assert error(1.0, (), 2, 0) == 0.0
