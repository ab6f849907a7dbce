"""Figures as people read them."""

import pytest

from training.figures import in_digits, with_error


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0.0123, "0.0123"), (-0.00002, "-0.00002"), (-0.000002, "0.00000"), (2.39999, "2.4000"), (-12345.6, "-1.235e+04")],
)
def test_as_many_digits_as_say_something(figure: float, text: str) -> None:
    assert in_digits(figure) == text


def test_an_error_has_the_decimals_of_its_figure() -> None:
    """Rounded alike, two and a half standard errors are not read as one."""
    assert with_error(0.000143, 0.000058) == "0.00014 ± 0.00006"
    assert with_error(2.5, 0.00004) == "2.5000 ± 0.0000"
