"""The type checker of `pytest --typecheck`: beartype, where it can check."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number is a float, as for mypy


def check(function: Callable) -> Callable:
    """Checks types at run time; leaves a signature alone that names a protocol, or `Self` outside a checked class."""
    try:
        return _beartype(function)
    except (BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception):
        return function
