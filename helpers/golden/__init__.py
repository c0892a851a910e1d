"""Golden values: numbers of quantization that code other than this course's computed, for checks to compare with.

The oracles are ONNX Runtime, exact fractions, and torchao; tests compare the files with PyTorch's kernels, too. Where
the last bit of a float32 decides a code, correct programs differ; such values were left out, and are printed when the
files are made.

The rule behind all files: round ``x / scale`` half to even, *then* add the zero point, then saturate. Only the cases
whose name has ``odd_zero_point_ties`` can tell it from rounding the sum (as ``torch.quantize_per_tensor`` does on x86,
unlike ``torch.fake_quantize_per_tensor_affine``).

============================  ========================================================================================
dynamic_quantize_linear       ONNX Runtime chooses scale and zero point of a vector (uint8) and quantizes it
quantize_linear               ONNX Runtime quantizes with a given scale and zero point (uint8, int8), and dequantizes
quantize_linear_per_axis      ONNX Runtime quantizes with one scale per row, column or slice (int8, zero point 0)
exact                         the same as quantize_linear, in exact arithmetic, for ranges of 2, 3, 4, 7 and 8 bits
torchao_affine                torchao: 4 bits asymmetric in groups of 32, and 8 bits symmetric per row
============================  ========================================================================================

To make the files again, from the repository's root; the oracles have an environment of their own::

    python3.11 -m venv build/oracles && build/oracles/bin/pip install -r helpers/golden/requirements.txt
    build/oracles/bin/python -m helpers.golden.make_golden
    .venv/bin/python -m helpers.golden.make_golden --torchao
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent


def load(name: str) -> list[dict]:
    """Read the cases of one golden file.

    Parameters
    ----------
    name : str
        Name of a file of this folder, without ``.json``.

    Returns
    -------
    list of dict
        Each case has a "name", inputs and outputs; tensors are flat lists in row-major order, next to a "shape".

    Raises
    ------
    ValueError
        If there is no such file.
    """
    available = sorted(path.stem for path in FOLDER.glob("*.json"))
    if name not in available:
        raise ValueError(f"no golden file {name!r}; there are: {', '.join(available)}.")
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["cases"]
