"""Noise, errors, descriptions, plots, environment: the small helpers, each by what a learner sees of it."""

import logging
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from helpers import describe, environment, errors, known_warnings, plots

CHILD = """
import sys, time
start = time.perf_counter(); import torch; torch_seconds = time.perf_counter() - start
import helpers.baselines, helpers.checkpoint, helpers.checks, helpers.data, helpers.describe, helpers.environment
import helpers.errors, helpers.int8, helpers.metrics, helpers.models, helpers.known_warnings, helpers.rounding
all_seconds = time.perf_counter() - start
heavy = [name for name in ("matplotlib", "torchao", "pandas", "IPython", "nbgrader") if name in sys.modules]
print(all_seconds / torch_seconds, heavy)
"""


def test_helpers_are_cheap_to_import():
    runs = []
    for _ in range(3):  # a busy machine can spoil one run
        done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
        ratio, heavy = done.stdout.strip().split(" ", 1)
        assert heavy == "[]"
        runs.append(float(ratio))
    assert min(runs) <= 1.3


def quantize():
    """As in a notebook: the warning names the module __main__."""
    code = "quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)"
    names = {"quantize_dynamic": torch.ao.quantization.quantize_dynamic, "nn": nn, "torch": torch}
    exec(code, names | {"__name__": "__main__"})


def test_known_warnings_are_heard_and_then_hidden():
    with known_warnings.listening() as heard:
        quantize()
    assert any("torch.ao.quantization is deprecated" in line for line in heard)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        known_warnings.hide()
        quantize()
    assert caught == []


def test_other_warnings_are_not_hidden():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        known_warnings.hide()
        warnings.warn("torch.ao.something else is deprecated", DeprecationWarning, stacklevel=1)
        warnings.warn("torch.ao.quantization is deprecated", UserWarning, stacklevel=1)
    assert len(caught) == 2


def test_other_log_lines_are_not_hidden(caplog):
    known_warnings.hide()
    logger = logging.getLogger("torchao")
    with caplog.at_level("WARNING", "torchao"):
        logger.warning("Failed to load /somewhere/_C_cutlass.so: no such library")
        logger.warning("something new")
    assert [record.getMessage() for record in caplog.records] == ["something new"]


def test_folders_are_cut_from_messages():
    with known_warnings.listening() as heard:
        logging.getLogger("torchao").warning("Failed to load /a/b/c_C.so: no. More text")
    assert heard == ["log line of torchao: Failed to load c_C.so: no."]


def test_an_error_is_shown_in_one_line(capsys):
    errors.show_error(lambda: int("x"))
    errors.show_error(lambda: None)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("ValueError: invalid literal") and out[1] == "No error was raised."


def test_descriptions_are_plain_data():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.GELU())
    assert describe.layer_types(model)["1"] == "torch.nn.modules.linear.Linear"
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert describe.layer_types(quantized)["1"] == "torch.ao.nn.quantized.dynamic.modules.linear.Linear"
    assert describe.weight_dtypes(quantized) == {"0": "torch.float32", "1": "torch.qint8"}
    assert describe.weight_dtypes(nn.Linear(2, 2)) == {"": "torch.float32"}


@pytest.mark.parametrize(
    ("draw", "kwargs"),
    [
        (plots.heat_map, {"values": np.eye(3), "rows": list("abc"), "columns": list("abc"), "title": "t"}),
        (plots.bars, {"values": {"a": 1.0, "b": 2.0}, "unit": "bytes"}),
        (plots.loss_curve, {"steps": [0, 1], "bits": [8.0, 4.0]}),
        (plots.agreement, {"reference": np.arange(5.0), "other": np.arange(5.0), "names": ("float", "int8")}),
    ],
)
def test_plots_take_axes_and_give_them_back(draw, kwargs):
    fig, ax = plots.figure()
    assert draw(ax, **kwargs) is ax
    plt.close(fig)


def test_a_shown_figure_has_a_text_alternative(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    fig, _ = plots.figure()
    plots.show(fig, caption="A caption.", alt="An empty figure.")
    assert shown[0].alt == "An empty figure." and shown[1].data == "*A caption.*"
    assert not plt.fignum_exists(fig.number)
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match="text alternative"):
        plots.show(fig, caption="A caption.", alt=" ")
    plt.close(fig)


def test_the_same_figure_gives_the_same_bytes(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    for _ in range(2):
        fig, ax = plots.figure()
        plots.bars(ax, {"a": 1.0}, "bytes")
        plots.show(fig, "c", "a")
    assert shown[0].data == shown[2].data


def test_this_environment_is_in_order(capsys):
    assert environment.problems() == []
    environment.report()
    assert "Everything is in place." in capsys.readouterr().out


def test_environment_problems_come_with_their_cure(monkeypatch, capsys):
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(environment, "locked_versions", lambda: {"torch": "9.9.9"})
    monkeypatch.setenv("COURSE_INT8_ENGINE", "no-such-engine")
    monkeypatch.setattr(environment, "NEEDED", ("torch", "not-a-package"))
    found = "\n".join(environment.problems())
    for sentence in ("the course needs 3.11", "built with 9.9.9", "not-a-package is not installed", "no int8 engine"):
        assert sentence in found
    assert found.count("make") >= 4
