"""Freed memory stays with the process that asks for it: a second large block touches no fresh pages."""

import os
import subprocess
import sys

import pytest

from stepladder.memory import keep_freed_memory

PAGES_OF_A_BLOCK = 2**25 // 4096

SCRIPT = """
import resource, sys
from stepladder.memory import keep_freed_memory
kept = keep_freed_memory() if "keep" in sys.argv else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def touch():
    before = faults()
    block = bytearray(2**25)
    block[::4096] = bytes(len(block) // 4096 * [1])
    return faults() - before
touch()
print(kept, touch())
"""


def run(*words: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


def test_freed_memory_is_used_again():
    kept, faults = run("keep")
    if kept == "False":
        pytest.skip("another C library")
    assert int(faults) < PAGES_OF_A_BLOCK / 10
    assert int(run()[1]) > PAGES_OF_A_BLOCK / 2


def test_the_environment_has_the_last_word():
    assert run("keep", MALLOC_MMAP_THRESHOLD_="1000000")[0] == "False"


def test_another_c_library_is_left_alone(monkeypatch):
    def nothing_there(name: None) -> object:
        return object()

    monkeypatch.setattr("stepladder.memory.ctypes.CDLL", nothing_there)
    assert not keep_freed_memory()


def test_every_command_keeps_freed_memory(monkeypatch):
    called = []
    monkeypatch.setattr("stepladder.cli.keep_freed_memory", lambda: called.append("kept"))
    monkeypatch.setattr(sys, "argv", ["stepladder", "--version"])
    from stepladder.cli import main

    with pytest.raises(SystemExit):
        main()
    assert called == ["kept"]
