"""The command line: a thin layer over the library, one file per command.

Results go to stdout, messages and progress to stderr. Exit codes: 0 done; 1 failed, or a part of the inputs failed; 2
wrong usage or configuration; 130 interrupted; 143 terminated. An error is one line; `--debug`, before or after the
command, shows its traceback. Only unexpected errors always show their traceback.

Nothing heavy is imported before a command runs: `stepladder --help` loads neither torch nor PIL.
"""

import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from stepladder import __version__
from stepladder.cli import (
    benchmark,
    bulk,
    cache,
    card,
    decode,
    demo,
    distill,
    encode,
    evaluate,
    export,
    info,
    reconstruct,
    schedule,
    serve,
    train,
)
from stepladder.cli._output import explain, print_text, say, smaller
from stepladder.errors import ConfigError, MissingDependencyError, OutputError, StepladderError
from stepladder.memory import is_out_of_memory, keep_freed_memory

__all__ = ["app", "main"]

_INTERRUPTED = 130
_TERMINATED = 143
_EXTRA_OF = {"accelerate": "train", "gradio": "page"}
"""Packages that whole layers import, and their extras; adapters name theirs themselves."""
_LAST_WORDS = {_INTERRUPTED: "interrupted", _TERMINATED: "terminated"}


class _Terminated(SystemExit):
    """The process was asked to end. It unwinds, so that no half-written file stays behind."""


class _Commands(TyperGroup):
    """The group of commands, which turns errors into one line and an exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        debug, words = _take_debug(words)
        extra["standalone_mode"] = False
        try:
            code = super().main(args=words, prog_name=prog_name or "stepladder", **extra)
            sys.stdout.flush()
        except (typer.Abort, KeyboardInterrupt):
            code = _INTERRUPTED
        except _Terminated:
            code = _TERMINATED
        except BrokenPipeError:
            code = _leave_broken_pipe()
        except Exception as error:
            code = _exit_code(error)
            if code is None:
                raise
            explain(_in_plain_words(error), debug=debug)
        if code in _LAST_WORDS:
            say(_LAST_WORDS[code])
        sys.exit(code or 0)


app = typer.Typer(
    name="stepladder",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Runs the command line; the entry point of the `stepladder` script."""
    if sys.stderr is None:  # closed: what is said goes nowhere, and not into the results
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open until the end)
    if sys.stdout is None:
        say("error: Standard output is closed. Results are printed there. Redirect it to a file or to /dev/null.")
        sys.exit(1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show is no reason to fail
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _again
    keep_freed_memory()
    app()


def _terminate(_signal: int, _frame: object) -> NoReturn:
    raise _Terminated(_TERMINATED)


def _again(dropped: "sys.UnraisableHookArgs") -> None:
    """Sends a signal once more that came inside a finaliser, where Python drops exceptions."""
    number = {_Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(dropped.exc_type)
    if number is None:
        sys.__unraisablehook__(dropped)
        return
    timer = threading.Timer(0.1, os.kill, (os.getpid(), number))  # by then the finaliser is over
    timer.daemon = True
    timer.start()


def _print_version(wanted: bool) -> None:
    if wanted:
        print_text(f"stepladder {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors; also after a command.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Image tokenizers with fast multi-scale diffusion decoders."""
    context.obj = debug
    log = logging.getLogger("stepladder")
    if not any(isinstance(handler, _Talk) for handler in log.handlers):
        log.addHandler(_Talk())


for command in (
    reconstruct.reconstruct,
    encode.encode,
    decode.decode,
    evaluate.evaluate,
    benchmark.benchmark,
    cache.cache,
    train.train,
    distill.distill,
    export.export,
    info.info,
    card.card,
    schedule.schedule,
    serve.serve,
    demo.demo,
):
    app.command()(command)
app.add_typer(bulk.app)


class _Talk(logging.Handler):
    """Prints warnings of the library."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def _take_debug(words: list[str]) -> tuple[bool, list[str]]:
    """Moves `--debug` from anywhere before `--` to the front, where the group expects it."""
    end = words.index("--") if "--" in words else len(words)
    before = [word for word in words[:end] if word != "--debug"]
    debug = len(before) < end
    return debug, [*(["--debug"] if debug else []), *before, *words[end:]]


def _exit_code(error: Exception) -> int | None:
    """Exit code of an expected error; None for others."""
    if isinstance(error, ConfigError) or _is_usage(error):
        return 2
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA_OF:
        return 1
    return 1 if isinstance(error, StepladderError | OSError) or is_out_of_memory(error) else None


def _is_usage(error: Exception) -> bool:
    """Whether the parser refused the arguments; its exceptions have no public name in all versions of typer."""
    return hasattr(error, "format_message")


def _in_plain_words(error: Exception) -> Exception:
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA_OF:
        extra = _EXTRA_OF[error.name]
        said = (
            f"This command needs the package {error.name}, which is not installed. It comes with the extra '{extra}'. "
        )
        return MissingDependencyError(f"{said}Run pip install 'stepladder[{extra}]'.").with_traceback(
            error.__traceback__
        )
    if _is_usage(error):
        context = getattr(error, "ctx", None)
        place = context.command_path if context else "stepladder"
        said = error.format_message()  # type: ignore[attr-defined]
        said += "" if said.endswith((".", "?")) else "."
        return ConfigError(f"{said} See {place} --help.").with_traceback(error.__traceback__)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        return OutputError(
            f"Cannot write to standard output: {error.strerror}. Make room, or redirect it elsewhere."
        ).with_traceback(error.__traceback__)
    if is_out_of_memory(error):
        return MemoryError(f"Not enough memory. {smaller(error)}").with_traceback(error.__traceback__)
    return error


def _leave_broken_pipe() -> int:
    """Handles a closed stdout: prints nothing, even when Python flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
