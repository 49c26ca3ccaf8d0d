"""Several processes of this machine that share a job, as `torchrun` would start them."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import stepladder

__all__ = ["in_processes"]

_PATIENCE = 900
"""Seconds: machines that run many tests at once are slow."""
_LAUNCH = """
import os, sys, traceback
from pathlib import Path
import torch._dynamo  # which counts of operations and optimisers would import in each of them
import stepladder.measure.evaluation, stepladder.training.autoencoder, stepladder.training.distillation
program, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
sys.argv = ["program", *sys.argv[4:]]
children = []
for rank in range(count):
    children.append(os.fork())  # nothing was computed yet, so that there are no threads to lose
    if not children[-1]:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.stdout = (folder / f"{rank}.out").open("w")
        code = 1
        try:
            exec(compile(program, "program", "exec"), {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
codes = []
while children:  # as torchrun does, one that fails ends the others
    pid, status = os.wait()
    children.remove(pid)
    codes.append(os.waitstatus_to_exitcode(status))
    if codes[-1]:
        for other in children:
            os.kill(other, 9)
sys.exit(int(any(codes)))
"""


def in_processes(program: str, *words: object, count: int = 2, before: str = "") -> list[str]:
    """Runs a program in `count` processes side by side, on the CPU, with these arguments; what each said on stdout.

    They are forks of one that has imported the library, which saves most of the time of their start; it also runs
    `before`, for further imports.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(stepladder.__file__).parents[1]), str(Path(__file__).parent)]),
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", before + _LAUNCH, program, folder, str(count), *map(str, words)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True) as launcher:
            try:
                _, errors = launcher.communicate(timeout=_PATIENCE)
            except BaseException:
                os.killpg(launcher.pid, 9)  # the forks, too
                raise
        assert launcher.returncode == 0, errors.decode()
        return [(Path(folder) / f"{rank}.out").read_text() for rank in range(count)]
