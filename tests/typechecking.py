"""The type checker of `pytest --typecheck`: beartype, where it can check."""

from collections.abc import Callable

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception


def check(function: Callable) -> Callable:
    """Checks types at run time; leaves a signature alone that names a protocol, or `Self` outside a checked class."""
    try:
        return beartype(function)
    except (BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception):
        return function
