"""What all commands share: help, version, errors, exit codes, streams."""

import errno
import os
import signal
import sys

import pytest

import stepladder
from stepladder import errors

COMMANDS = ["reconstruct", "encode", "decode", "evaluate", "benchmark", "train", "distill", "info", "bulk"]
SCRIPT = "from stepladder.cli import main; main()"
WORK = "import os, signal, time\nfrom stepladder.cli import app, main\n"
"""Begins programs with a command of their own, which imports nothing large."""


def raiser(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert all(f"  {command} " in result.stdout for command in COMMANDS)
    assert "--debug" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: stepladder {command} ")


def test_the_version_is_that_of_the_package(run):
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"stepladder {stepladder.__version__}\n")


@pytest.mark.parametrize("arguments", ["--help", "--version", "reconstruct --help", "train --help", "nonsense"])
def test_help_and_usage_errors_load_no_heavy_module(python, arguments):
    code = (
        "import sys\nfrom stepladder.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('loaded', *sorted({'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules)), file=sys.stderr)"
    )
    done = python(code, *arguments.split())
    assert done.stderr.splitlines()[-1] == "loaded"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("reconstruct", "Missing argument 'IMAGE'. See stepladder reconstruct --help."),
        ("reconstruct a.png", "Missing option '--out'. See stepladder reconstruct --help."),
        ("reconstruct a.png --oot x", "No such option: --oot"),
        ("recon", "No such command 'recon'. Did you mean 'reconstruct'? See stepladder --help."),
        ("reconstruct a.png --out o --seed x", "Invalid value for '--seed'"),
        ("reconstruct a.png --out o --seed -1", "Invalid value for '--seed'"),
        ("evaluate photos", "Missing argument 'MODEL@N'"),
        ("evaluate photos m --limit 0", "Invalid value for '--limit'"),
        ("evaluate photos m --batch 0", "Invalid value for '--batch'"),
        ("distill", "Missing argument 'CONFIG'"),
        ("info", "Missing argument 'MODEL'"),
        ("decode z.safetensors", "Missing option '--out'"),
        ("--nonsense", "No such option: --nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(refused, arguments, text):
    line = refused(*arguments.split(), code=2)
    assert text in line
    assert line.endswith("--help.")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.ConfigError("Steps are odd.\nUse even ones."), 2, "Steps are odd. Use even ones."),
        (errors.CheckpointError("Bad model."), 1, "Bad model."),
        (errors.MissingDependencyError("Install it."), 1, "Install it."),
        (OSError(errno.ENOSPC, "No space left on device", "z"), 1, "[Errno 28] No space left on device: 'z'"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "Cannot write to standard output: No space left on device. Make room, or redirect it elsewhere.",
        ),
        (MemoryError(), 1, "Not enough memory. Use smaller images, or a smaller --batch or --tile"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "Not enough memory."),
    ],
)
def test_every_foreseen_error_is_one_line(refused, monkeypatch, error, code, text):
    monkeypatch.setattr("stepladder.tokenizer.Tokenizer.from_pretrained", raiser(error))
    assert refused("info", "photo", code=code).startswith(text)


def test_an_error_that_nobody_foresaw_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr("stepladder.tokenizer.Tokenizer.from_pretrained", raiser(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("info", "photo")


@pytest.mark.parametrize("arguments", ["--debug info nope", "info --debug nope", "info nope --debug"])
def test_debug_shows_the_traceback_wherever_it_stands(run, arguments):
    result = run(*arguments.split())
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.splitlines()[-1].startswith("error: Unknown model 'nope'.")


def test_after_two_dashes_debug_is_an_argument(refused):
    assert refused("info", "--", "--debug").startswith("Unknown model '--debug'.")


def test_an_interrupt_is_one_line_and_exits_with_130(run, monkeypatch):
    monkeypatch.setattr("stepladder.tokenizer.Tokenizer.from_pretrained", raiser(KeyboardInterrupt()))
    result = run("info", "photo")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_a_warning_of_the_library_is_one_line_of_talk(run, model, monkeypatch):
    import logging

    from stepladder.measure.summary import summarise

    def warn(tokenizer):
        logging.getLogger("stepladder.somewhere").warning("%d odd things", 3)
        return summarise(tokenizer)

    monkeypatch.setattr("stepladder.measure.summary.summarise", warn)
    for _ in range(2):
        assert run("info", model).stderr == "warning: 3 odd things\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals and pipes of POSIX")
def test_the_real_script_is_quiet_when_nobody_reads_and_when_interrupted(python):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = python(SCRIPT, "--help", stdout=closed)
    assert (done.returncode, done.stderr) == (1, "")

    code = (
        "import os, signal\nfrom stepladder.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job may ignore it
        "import stepladder.models as m\n"
        "m.parse_model_spec = lambda text: os.kill(os.getpid(), signal.SIGINT)\nmain()"
    )
    done = python(code, "info", "x")
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_a_command_that_is_terminated_leaves_no_temporary_file(python, tmp_path):
    code = WORK + (
        "from pathlib import Path\nfrom stepladder.files import write_atomically\n"
        "def stop(place):\n"
        "    place.write_bytes(b'half')\n"
        "    print(len(list(place.parent.iterdir())), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "@app.command()\n"
        "def work(folder: Path): write_atomically(folder / 'z.bin', stop, force=True)\n"
        "main()"
    )
    done = python(code, "work", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "1\n", "terminated\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_a_signal_that_comes_inside_a_finaliser_ends_a_command(python, number, said):
    code = WORK + (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # jobs in the background ignore it
        "class Last:\n"
        f"    def __del__(self): os.kill(os.getpid(), {int(number)})\n"
        "@app.command()\n"
        "def work():\n"
        "    Last()\n"
        "    time.sleep(60)\n"
        "    os._exit(0)\n"
        "main()"
    )
    done = python(code, "work")
    assert (done.returncode, done.stderr) == (128 + number, f"{said}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of POSIX")
def test_closed_streams_are_no_tracebacks(python, tmp_path):
    def closed(redirection):
        command = [sys.executable, "-c", SCRIPT, "info", "photo"]
        code = (
            f"import subprocess; print(subprocess.run(['sh', '-c', 'exec \"$@\" {redirection}', 'sh', *{command!r}], "
        )
        code += "capture_output=True, text=True))"
        return python(code).stdout

    assert "returncode=1, stdout='', stderr='error: Standard output is closed." in closed(">&-")
    assert "returncode=0" in closed("2>&-")
    assert "returncode=1, stdout='', stderr='')" in closed(">&- 2>&-")
