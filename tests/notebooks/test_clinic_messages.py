"""The error clinic of unit 02 shows what its text discusses: the message of each patient, with this PyTorch."""

import ast
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch

from grading.build import read_source
from grading.course import ROOT

SOURCE = ROOT / "solutions" / "02_quantization_apis" / "02_quantization_apis.py"
MESSAGES = {
    "patient_1": [
        "RuntimeError: Quantize only works on Float Tensor, got Long",
        "NotImplementedError: Could not run 'quantized::linear' with arguments from the 'CPU' backend.",
    ],
    "patient_2": ["NotImplementedError: Could not run 'aten::add.out' with arguments from the 'QuantizedCPU' backend."],
    "patient_3": ["AssertionError: Embedding quantization is only supported with float_qparams_weight_only_qconfig."],
    "patient_4": ["AttributeError: 'function' object has no attribute 'device'"],
    "patient_5": ["RuntimeError: mat1 and mat2 must have the same dtype, but got QUInt8 and Float"],
    "patient_6": ["AssertionError: Guard failed: x.size()[0] == 2"],
    "patient_7": [
        "rare: scale 1.000, zero point 0",
        "must run observer before calling calculate_qparams. Returning default scale and zero point",
    ],
    "patient_8": ["No error was raised.", "largest difference: 0.0\n", "file: 1.00 times smaller"],
    "patient_9": ["No error was raised.", "float file: ", "int8 file: "],
    "patient_10": [
        "No error was raised.",
        "same shape: True - all finite: True",
        "same attention weights: True",
    ],
}
LOUD = [f"patient_{i}" for i in range(1, 7)]


def patients(cell) -> list[str]:
    """Names of the patient functions that a cell defines."""
    functions = [node.name for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
    return [name for name in functions if name.startswith("patient_")]


@pytest.fixture(scope="module")
def clinic() -> dict[str, tuple[str, dict]]:
    """What each broken program prints, and the names that it leaves."""
    if not SOURCE.is_file():
        pytest.skip("unit 02 is not there")
    code = [cell for cell in read_source(SOURCE).cells if cell.cell_type == "code"]
    names: dict = {"__name__": "__main__"}
    exec(compile(code[0].source, code[0].id, "exec"), names)  # the notebook's imports
    shown = {}
    for cell in code:
        if "broken" not in cell.metadata.get("tags", []):
            continue
        printed, names = StringIO(), dict(names)
        with redirect_stdout(printed), torch.random.fork_rng(devices=[]):
            exec(compile(cell.source, cell.id, "exec"), names)
        shown |= {name: (printed.getvalue(), names) for name in patients(cell)}
    return shown


def test_there_are_ten_patients(clinic):
    assert list(clinic) == list(MESSAGES)


@pytest.mark.parametrize("patient", MESSAGES)
def test_the_patient_says_what_the_text_discusses(patient, clinic):
    for message in MESSAGES[patient]:
        assert message in clinic[patient][0], (
            "another PyTorch may say it differently: change the text around this patient"
        )


@pytest.mark.parametrize("patient", MESSAGES)
def test_loud_patients_stop_and_silent_ones_do_not(patient, clinic):
    first = clinic[patient][0].splitlines()[0]
    assert (": " in first and first.split(":")[0].endswith("Error")) == (patient in LOUD)


def test_the_file_of_patient_9_grows(clinic):
    names = clinic["patient_9"][1]
    before, after = names["tied"], names["patient_9"](names["tied"])
    assert names["metrics"].file_bytes(after) > names["metrics"].file_bytes(before)


def test_patient_7_is_right_on_what_it_was_calibrated_with_and_wrong_elsewhere(clinic):
    names = clinic["patient_7"][1]
    with torch.no_grad():
        errors = [
            float((names["patient"](x) - names["gate"](x)).norm() / names["gate"](x).norm())
            for x in (names["calm"], names["wild"])
        ]
    assert errors[0] < 0.1 < 0.3 < errors[1]


def test_patient_10_is_wrong_before_anything_is_quantized(clinic):
    names = clinic["patient_10"][1]
    with torch.no_grad():
        error = float((names["other"] - names["right"]).norm() / names["right"].norm())
    assert error > 0.5, "the library may have been repaired (pytorch#67651): patient 10 has recovered"
