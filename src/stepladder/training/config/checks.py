"""Ranges of configuration values."""

from stepladder.errors import ConfigError

__all__ = ["check_at_least", "check_share"]


def check_at_least(config: object, least: int, *names: str, where: str = "") -> None:
    """Checks that fields are at least so much, and finite."""
    for name in names:
        value = getattr(config, name)
        if not least <= value < 2**63:
            place = f"{where}.{name}" if where else name
            raise ConfigError(f"{place} {value} is {_out_of_range(value, least)}. Pass {least} or more.")


def check_share(value: float, name: str) -> None:
    """Checks that a value is a share of the run."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} {value} is outside [0, 1]. It is a share of the run; usual values: 0 to 0.5.")


def _out_of_range(value: float, least: int) -> str:
    return f"less than {least}" if value < least else "too large or no number"
