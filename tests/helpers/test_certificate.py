"""The certificate: counts what the notebooks announce, and is honest about what cannot be read."""

import json
from pathlib import Path

import pytest

from grading.course import unit_names
from helpers import certificate, progress


def notebook(folder, name, title, points):
    """A released notebook with nothing but a title and check cells."""
    cells = [{"cell_type": "markdown", "metadata": {}, "source": [f"# {title}\n", "\n", "Text."]}]
    for grade_id, value in points.items():
        mark = {"grade": True, "grade_id": grade_id, "points": value, "solution": False}
        cells.append({"cell_type": "code", "metadata": {"nbgrader": mark}, "source": [], "outputs": []})
    cells.append({"cell_type": "code", "metadata": {"nbgrader": {"grade": False, "grade_id": "ex_x"}}, "source": "1"})
    (folder / name).mkdir()
    (folder / name / f"{name}.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}))


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Two units with three exercises, six points, and no progress yet."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    notebook(notebooks, "00_start", "Start <here>", {"ex_0_1_check": 1})
    notebook(notebooks, "01_next", "Next", {"ex_1_1_check": 2, "ex_1_10_2_check": 3})
    monkeypatch.setattr(certificate, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(certificate, "UNITS", ("00_start", "01_next"))
    monkeypatch.setattr(progress, "FILE", tmp_path / "progress.json")
    monkeypatch.delenv("COURSE_PROGRESS", raising=False)
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    pages = []
    monkeypatch.setattr(certificate, "display", lambda page: pages.append(page.data))
    return pages


def test_exercises_and_points_come_from_the_notebooks(course):
    first, second = certificate.units().values()
    assert first == certificate.Unit("00 Start <here>", {"0.1": 1})
    assert second.points == {"1.1": 2, "1.10.2": 3}


def test_solved_is_counted_and_nothing_else(course, shown):
    state = {"0.1": "tried", "1.1": "solved", "1.10.2": "solved", "7.7": "solved", "1.9": 3}
    progress.FILE.write_text(json.dumps(state))
    certificate.show()
    assert "2 of 3 exercises are solved" in shown[0]
    assert ">2 of 2<" in shown[0] and ">5 of 5<" in shown[0] and ">5 of 6<" in shown[0]
    assert "Start &lt;here&gt;" in shown[0]


def test_all_solved(course, shown):
    progress.FILE.write_text(json.dumps(dict.fromkeys(["0.1", "1.1", "1.10.2"], "solved")))
    certificate.show()
    assert "All 3 exercises of the course are solved." in shown[0]


@pytest.mark.parametrize("content", [None, "{}", '{"0.1": null}'])
def test_nothing_is_solved_yet(course, shown, content):
    if content is not None:
        progress.FILE.write_text(content)
    certificate.show()
    assert "No exercise is solved on this computer yet." in shown[0] and ">0 of 3<" in shown[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe"])
def test_a_broken_file_is_not_taken_for_an_empty_one(course, shown, content):
    progress.FILE.write_bytes(content)
    certificate.show({"bytes": 1234})
    assert "progress.json cannot be read" in shown[0] and "run the checks" in shown[0] and "1234" in shown[0]
    assert "No exercise is solved" not in shown[0] and "Points" not in shown[0]
    assert progress.FILE.read_bytes() == content


def test_what_cannot_be_counted_is_named(course, shown):
    notebooks = certificate.NOTEBOOKS
    (notebooks / "00_start" / "00_start.kept-1.ipynb").write_text("{}")  # a copy that the learner keeps
    (notebooks / "01_next" / "01_next.ipynb").write_text('{"cells": [{"cell_type": "markdown"}]}')
    progress.FILE.write_text('{"0.1": "solved"}')
    certificate.show()
    assert "All 1 exercises that were found are solved. Not counted" in shown[0] and "01_next." in shown[0]
    (notebooks / "00_start" / "00_start.ipynb").unlink()
    certificate.show()
    assert "No unit was found" in shown[1]


def test_own_numbers_are_shown_and_saved_only_when_asked(course, shown, capsys):
    before = set(course.rglob("*"))
    certificate.show({"bytes <mine>": 1234}, name="R. Hood & band")
    assert "bytes &lt;mine&gt;" in shown[0] and "1234" in shown[0] and "R. Hood &amp; band" in shown[0]
    assert set(course.rglob("*")) == before
    for file in (course / "mine.html", str(course / "also.html")):
        certificate.show({"1 → 2": 1234}, file=file)
        assert "1 → 2" in Path(file).read_text(encoding="utf-8") and Path(file).name in capsys.readouterr().out


def test_a_stored_notebook_gets_one_constant_sentence(course, shown, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROGRESS", "off")
    progress.FILE.write_text('{"0.1": "solved"}')
    certificate.show({"bytes": 1234}, file=course / "mine.html")
    assert capsys.readouterr().out == certificate.OFF + "\n"
    assert shown == [] and not (course / "mine.html").exists()


def test_every_unit_of_the_course_counts():
    found = certificate.units()
    assert list(found) == unit_names() and all(unit and unit.points for unit in found.values())
    assert found["00_start_here"].title == "00 Start here"
    assert found["02_quantization_apis"].points["2.10.10"] > 0
