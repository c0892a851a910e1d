"""The solutions and their checks pass with another int8 engine than the default one (a Mac has only qnnpack)."""

import os
import subprocess
import sys

import pytest
import torch

from grading.course import ROOT, unit_names

SECONDS = 3600  # ends a hang; the slowest unit takes minutes
RUN = """
import sys
from grading.build import read_source
from grading.course import ROOT
unit = sys.argv[1]
names = {"__name__": "__main__"}
for cell in read_source(ROOT / "solutions" / unit / f"{unit}.py").cells:
    if cell.cell_type == "code":
        exec(compile(cell.source, cell.id, "exec"), names)
import torch
print("engine", torch.backends.quantized.engine)
"""


@pytest.mark.skipif("qnnpack" not in torch.backends.quantized.supported_engines, reason="this torch has no qnnpack")
@pytest.mark.parametrize("unit", unit_names())
def test_a_unit_passes_with_qnnpack(unit):
    environment = os.environ | {"COURSE_INT8_ENGINE": "qnnpack"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, unit], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "engine qnnpack" in done.stdout
    assert "reduce_range" not in done.stderr, "a warning on stderr costs a learner the points in Validate"
