"""The solutions and their checks pass on an older x86 processor: int8 instructions newer than AVX2 are switched off.

Without VNNI, an int8 product adds pairs in 16 bits and cuts off what does not fit (unit 03). A graded test that needs
8-bit activations would then fail a right answer, on a learner's computer and not on ours.
"""

import os
import platform
import subprocess
import sys

import pytest
import torch

from grading.course import ROOT, unit_names

SECONDS = 3600  # ends a hang; the slowest unit takes minutes
X86 = platform.machine().lower() in ("x86_64", "amd64") and "x86" in torch.backends.quantized.supported_engines
CAPS = {
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
RUN = """
import sys
from grading.build import read_source
from grading.course import ROOT
unit = sys.argv[1]
names = {"__name__": "__main__"}
for cell in read_source(ROOT / "solutions" / unit / f"{unit}.py").cells:
    if cell.cell_type == "code":
        try:
            exec(compile(cell.source, cell.id, "exec"), names)
        except Exception as error:
            raise RuntimeError(f"cell {cell.id} fails with older instructions") from error
"""
INEXACT = """
import torch
torch.manual_seed(0)
a, b = torch.randint(-128, 128, (64, 256), dtype=torch.int8), torch.randint(-128, 128, (256, 64), dtype=torch.int8)
print("exact" if torch.equal(torch._int_mm(a, b).long(), a.long() @ b.long()) else "cut off")
"""


def capped(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program in a new Python without the newer instructions, with the default int8 engine."""
    environment = {name: value for name, value in os.environ.items() if name != "COURSE_INT8_ENGINE"} | CAPS
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)


@pytest.mark.skipif(not X86, reason="only an x86 processor has these instructions to switch off")
@pytest.mark.parametrize("unit", unit_names())
def test_a_unit_passes_without_the_newer_int8_instructions(unit):
    done = capped(RUN, unit)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not X86, reason="only an x86 processor has these instructions to switch off")
def test_the_newer_instructions_are_really_off():
    """If this fails, a new PyTorch does not obey the variables in CAPS (or needs none): the tests above are blind."""
    assert capped(INEXACT).stdout.strip() == "cut off"
