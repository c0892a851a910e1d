"""The benchmark of the residual stream and of learning rates: a tiny run, and what unit 04 says of the stored one."""

import json

from benchmarks import components, qat
from benchmarks.round_to_nearest import RESULTS
from helpers import data, int8
from helpers.checkpoint import load_course_model


def test_the_stored_float_residual_is_better_with_each_calibration_set():
    rows = json.loads((RESULTS / "components.json").read_text())["residuals"]
    assert [int(count) for count in rows] == components.CALIBRATION
    for row in rows.values():
        found = row["int8 minus float"]
        assert found["difference"] > 2 * found["standard_error"]


def test_the_stored_rates_are_the_best_of_those_tried_and_imitation_is_ahead_at_each():
    rates = json.loads((RESULTS / "components.json").read_text())["rates"]
    for aim, row in rates.items():
        assert float(min(row, key=lambda rate: row[rate]["difference"])) == qat.RATES[aim]
    for rate, found in rates["next byte"].items():
        assert rates["imitation"][rate]["difference"] < found["difference"]


def test_a_tiny_run_fills_both_tables():
    int8.choose_engine()
    model, windows = load_course_model(), data.windows("held_out", 2, 33)
    report = {
        "machine": {"threads": 1},
        "date": "today",
        "seconds": 0,
        "held_out": list(windows.shape),
        "validation": list(windows.shape),
        "steps": 2,
        "residuals": components.residuals(model, windows, [2]),
        "rates": components.rates(model, windows, 2, [1e-4]),
    }
    page = components.as_page(report)
    assert page.count("| 2 | ") == 1 and "| imitation | " in page and page.count("±") == 6
