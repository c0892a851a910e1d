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

from helpers import describe, environment, errors, int8, interactive, known_warnings, latency, plots, tables

CHILD = """
import sys, torch
before = set(sys.modules)
import helpers.baselines, helpers.checkpoint, helpers.checks, helpers.data, helpers.describe, helpers.environment
import helpers.affine, helpers.errors, helpers.golden, helpers.int8, helpers.latency, helpers.metrics, helpers.models
import helpers.known_warnings, helpers.next_byte, helpers.rounding
packages = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(*sorted(name for name in packages if not name.startswith("_")))
"""


def test_helpers_are_cheap_to_import():
    """Beside torch they load two small packages; matplotlib, torchao and IPython come where they are used."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"filelock", "helpers", "numpy", "safetensors"}


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
    monkeypatch.setattr(plots, "display", lambda data, raw: shown.append(data))
    fig, _ = plots.figure()
    plots.show(fig, caption="A `caption`, *really* <b>.", alt='An "empty" figure.')
    page = shown[0]["text/html"]
    assert 'alt="An &quot;empty&quot; figure."' in page and page.startswith("<figure><img src=")
    assert "A <code>caption</code>, </em>really<em> &lt;b&gt;." in page
    assert shown[0]["text/plain"] == '[Figure: An "empty" figure.]'
    assert not plt.fignum_exists(fig.number)
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match="text alternative"):
        plots.show(fig, caption="A caption.", alt=" ")
    plt.close(fig)


def test_a_figure_fits_the_page_and_is_sharp():
    fig, axes = plots.figure(columns=3, width=11, height=2)
    assert fig.get_figwidth() == plots.PAGE and fig.get_figheight() == 4 and axes.shape == (3,) and len(fig.axes) == 3
    plt.close(fig)
    fig, (left, right) = plots.figure(columns=2, width=10)
    assert fig.get_figwidth() == plots.PAGE and left is not right
    plt.close(fig)


def test_labels_that_cannot_be_read_are_refused():
    fig, (left, right) = plots.figure(columns=2)
    left.set_xlabel("a label that is much too long for its half of the page, as one can see")
    right.set_xlabel("a label that is much too long for its half of the page, as one can see")
    with pytest.raises(ValueError, match="cannot be read: 'a label"):
        plots.show(fig, caption="A caption.", alt="Two axes.")
    plt.close(fig)
    fig, ax = plots.figure()
    ax.set_xlabel("short"), ax.set_title("title"), ax.set_ylabel("up")
    assert plots.clashes(fig) == []
    plt.close(fig)


def test_the_same_figure_gives_the_same_bytes(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda data, raw: shown.append(data))
    for _ in range(2):
        fig, ax = plots.figure()
        plots.bars(ax, {"a": 1.0}, "bytes")
        plots.show(fig, "c", "a")
    assert shown[0] == shown[1]


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


def test_latency_takes_turns_and_warms_up(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def program(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds + (100 if len(order) <= 2 else 0)  # the first run of each is slow

        return run

    assert latency.ratio(program("a", 2.0), program("b", 3.0), repeats=3) == pytest.approx(1.5)
    assert order == ["a", "b", "b", "a"] * 3


def test_a_table_has_a_header_and_needs_rows(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(tables, "display", shown.append)
    tables.show([{"name": "a", "bits": "8.0 ± 0.1"}, {"name": "b", "bits": 4}])
    assert shown[0].data.splitlines() == ["| name | bits |", "| --- | ---: |", "| a | 8.0 ± 0.1 |", "| b | 4 |"]
    with pytest.raises(ValueError, match="no rows"):
        tables.show([])


def test_sliders_draw_at_once_and_again_after_a_change():
    import ipywidgets

    drawn = []
    control = ipywidgets.IntSlider(value=3, min=0, max=9)
    interactive.sliders(lambda bits: drawn.append(bits), bits=control)
    control.value = 5
    assert drawn == [3, 5]


def test_int8_linears_are_described_without_the_dynamic_ones():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).train()
    static = int8.static_int8(net, [torch.randn(20, 4)])
    assert net.training and not static.training
    found = describe.int8_linears(static)
    assert [name for name, _, _ in found] == ["module.0", "module.2"]
    assert all(scale > 0 and 0 <= zero_point <= 255 for _, scale, zero_point in found)
    assert describe.int8_linears(int8.dynamic_int8(net)) == []


def test_the_largest_dynamic_code_is_that_of_the_engine():
    torch.manual_seed(0)
    linear = nn.Linear(16, 4)
    layer, x = int8.dynamic_int8(nn.Sequential(linear))[0], torch.randn(30, 16)
    scale = (x.max() - x.min()) / int8.dynamic_activation_qmax()
    x_hat = ((x / scale).round() - (x.min() / scale).round()).clamp(0, int8.dynamic_activation_qmax())
    x_hat = (x_hat + (x.min() / scale).round()) * scale
    y = x_hat @ layer.weight().dequantize().T + linear.bias
    torch.testing.assert_close(y.detach(), layer(x), atol=1e-4, rtol=0)


def test_a_result_or_its_error_is_shown_in_one_line(capsys):
    errors.show_result(lambda: 3)
    errors.show_result(lambda: [][0])
    errors.show_error(lambda: int("x" * 500), width=30)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "3" and out[1] == "IndexError: list index out of range"
    assert out[2].startswith("ValueError: invalid literal") and out[2].endswith(" …") and len(out[2]) < 60
