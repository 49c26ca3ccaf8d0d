"""Every part computes where it is put, and nothing in a step makes the host wait for the device.

What runs is in `fake_accelerator.py`; here stands what has to come out.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CASES = (
    *(f"{what} {name}" for what in ("codes of", "train") for name in ("plain", "kl", "fsq", "vq")),
    *(f"{recipe} {what}" for recipe in ("regress", "adversarial") for what in ("a grid", "tokens")),
    "codes of guided tokens",
    "train with context dropout",
    "regress on a guided teacher",
    "evaluate",
)


@pytest.fixture(scope="module")
def complaints() -> dict[str, str]:
    script = Path(__file__).parent / "fake_accelerator.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_cases_ran(complaints):
    assert set(complaints) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_part_stays_on_its_device_and_reads_no_value_from_it(complaints, case):
    assert not complaints[case]
