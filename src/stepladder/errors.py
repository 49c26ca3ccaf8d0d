"""The exception tree: every error that a user can cause is a `StepladderError`.

A message has three parts: what failed, with the value; what is accepted; what to do. It fits one line, because the
command line prints it as it is. Broken invariants of the library itself are `assert`s, not these.

`brief` quotes an error of another library in such a message.
"""

from textwrap import shorten

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "ImageError",
    "MissingDependencyError",
    "OutputError",
    "StepladderError",
    "TrainingError",
    "brief",
    "one_line",
]


class StepladderError(Exception):
    """Base of all errors that a user can cause and fix."""


class ConfigError(StepladderError, ValueError):
    """A configuration value, key or argument outside what is accepted."""


class ImageError(StepladderError):
    """A file that is not a readable image, or an image that cannot be used."""


class DataError(StepladderError):
    """A data set that cannot be found, read, or that holds no usable images."""


class CheckpointError(StepladderError):
    """A model or run folder that is unknown, damaged, or of another format."""


class OutputError(StepladderError):
    """A result that cannot be written: it exists already, or the disk refuses it."""


class ExportError(StepladderError):
    """A model that cannot be exported, or whose export differs from it."""


class MissingDependencyError(StepladderError, ImportError):
    """An optional package that the call needs is not installed."""


class TrainingError(StepladderError):
    """A training run that cannot continue, for example because its loss is not finite."""


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def brief(error: BaseException) -> str:
    """The message of an error as a part of a sentence: at most 200 characters, cut between words, no full stop."""
    return shorten(one_line(error).rstrip("."), 200, placeholder=" ...")
