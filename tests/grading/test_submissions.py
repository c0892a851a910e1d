"""Submissions as editors, browsers and mail programs leave them: each is read, or refused with its own sentence."""

import json

import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator

from grading import submissions
from grading.course import ROOT

UNIT = "00_start_here"
OTHER = "01_transformer_basics"
ANSWER = "def tensor_bytes(*anything):\n    return 0  # mine"


def handed_out(unit=UNIT):
    return json.loads((ROOT / "notebooks" / unit / f"{unit}.ipynb").read_text(encoding="utf-8"))


def solved():
    """The notebook of unit 00 with an answer in it, as plain JSON."""
    raw = handed_out()
    stub(raw)["source"] = ANSWER
    return raw


def stub(raw):
    return next(cell for cell in raw["cells"] if cell["metadata"].get("nbgrader", {}).get("solution"))


def check(raw):
    return next(cell for cell in raw["cells"] if cell["metadata"].get("nbgrader", {}).get("grade"))


def put(root, content, name=f"{UNIT}.ipynb", student="ada", folder=UNIT):
    """Hand something in; `content` is JSON, text or bytes."""
    path = root / "gradebook" / "submitted" / student / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def root(tmp_path):
    """A course folder whose units are the real ones."""
    (tmp_path / "solutions").symlink_to(ROOT / "solutions")
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    return tmp_path


def read(root):
    """What the grader makes of the one submission in `root`."""
    (one,), refused = submissions.find_submissions(root, [UNIT])
    assert not refused
    return submissions.read_submission(one, root)


def code(nb):
    return [cell.source for cell in nb.cells if cell.cell_type == "code"]


def marks(nb):
    return [cell.metadata.nbgrader for cell in nb.cells if "nbgrader" in cell.metadata]


# What an editor may do to the file: none of it has to do with the answers.


def format_4_4_with_ids(raw):
    raw["nbformat_minor"] = 4


def format_4_0_without_ids(raw):
    raw["nbformat_minor"] = 0
    for cell in raw["cells"]:
        del cell["id"]


def a_future_format(raw):
    raw["nbformat"] = 5


def format_3(raw):
    for cell in raw["cells"]:
        if cell["cell_type"] == "code":
            cell["input"] = cell.pop("source")
    raw["worksheets"] = [{"cells": raw.pop("cells")}]
    raw["nbformat"] = 3


def an_output_with_a_foreign_key(raw):
    stub(raw)["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x", "color": "red"}]


def an_output_of_another_type(raw):
    stub(raw)["outputs"] = [{"output_type": "pyout", "text": 1}, None]


def no_outputs(raw):
    for cell in raw["cells"]:
        cell.pop("outputs", None)
        cell.pop("execution_count", None)


def a_text_cell_with_outputs(raw):
    next(cell for cell in raw["cells"] if cell["cell_type"] == "markdown")["outputs"] = []


def no_kernelspec(raw):
    raw["metadata"]["kernelspec"] = None


def no_metadata(raw):
    raw["metadata"] = None


def ids_with_a_space(raw):
    for number, cell in enumerate(raw["cells"]):
        cell["id"] = f"my cell {number}"


def equal_ids(raw):
    for cell in raw["cells"]:
        cell["id"] = "same"


def widgets_without_state(raw):
    raw["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def schema_version_2(raw):
    check(raw)["metadata"]["nbgrader"]["schema_version"] = 2


def schema_version_99(raw):
    for cell in (stub(raw), check(raw)):
        cell["metadata"]["nbgrader"] |= {"schema_version": 99, "new": True}


def half_a_mark(raw):
    check(raw)["metadata"]["nbgrader"] = {"grade_id": check(raw)["metadata"]["nbgrader"]["grade_id"]}


def a_mark_that_is_a_word(raw):
    check(raw)["metadata"]["nbgrader"] = "x"


def no_mark_at_all(raw):
    for cell in raw["cells"]:
        cell["metadata"] = {}


def points_in_words(raw):
    check(raw)["metadata"]["nbgrader"] |= {"points": "many", "grade": False}


def sources_in_lines(raw):
    for cell in raw["cells"]:
        cell["source"] = cell["source"].splitlines(True) if isinstance(cell["source"], str) else cell["source"]


def a_damaged_picture(raw):
    next(c for c in raw["cells"] if c["cell_type"] == "markdown")["attachments"] = {"a.png": "not a bundle"}


DAMAGE = [
    format_4_4_with_ids, format_4_0_without_ids, a_future_format, format_3, an_output_with_a_foreign_key,
    an_output_of_another_type, no_outputs, a_text_cell_with_outputs, no_kernelspec, no_metadata, ids_with_a_space,
    equal_ids, widgets_without_state, schema_version_2, schema_version_99, half_a_mark, a_mark_that_is_a_word,
    no_mark_at_all, points_in_words, sources_in_lines, a_damaged_picture,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
def test_what_an_editor_did_costs_nothing(root, damage):
    raw = solved()
    before = nbformat.from_dict(json.loads(json.dumps(raw)))
    damage(raw)
    path = put(root, raw)
    stored = path.read_bytes()
    nb = read(root).nb
    nbformat.validate(nb)
    MetadataValidator().validate_nb(nb)
    assert code(nb) == ["".join(cell.source) for cell in before.cells if cell.cell_type == "code"]
    assert "widgets" not in nb.metadata and path.read_bytes() == stored
    # Lost metadata of cells is found again by the cells' ids.
    assert [mark["grade_id"] for mark in marks(nb)] == ["ex_0_1", "ex_0_1_check"]
    assert marks(nb)[1]["points"] == 1 and marks(nb)[1]["grade"] and marks(nb)[1]["locked"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_unicode_encoding_is_read(root, encoding):
    raw = solved()
    stub(raw)["source"] += " é 🙂"
    put(root, json.dumps(raw, ensure_ascii=False).encode(encoding))
    assert ANSWER + " é 🙂" in code(read(root).nb)


def test_half_an_emoji_becomes_the_sign_for_a_broken_letter(root):
    raw = solved()
    stub(raw)["source"] = ANSWER + " \ud83d"
    put(root, raw)
    nb = read(root).nb
    assert ANSWER + " \ufffd" in code(nb)
    nbformat.writes(nb).encode()


def test_a_picture_in_a_text_cell_is_kept(root):
    raw = solved()
    picture = {"a.png": {"image/png": "iVBORw0KGgo="}}
    raw["cells"].append({"cell_type": "markdown", "id": "p", "metadata": {}, "source": "mine", "attachments": picture})
    put(root, raw)
    assert read(root).nb.cells[-1].attachments == picture


def test_a_copied_check_keeps_its_mark_twice_and_nbgrader_decides(root):
    raw = solved()
    raw["cells"].append(json.loads(json.dumps(check(raw))))
    put(root, raw)
    nb = read(root).nb
    assert [mark["grade_id"] for mark in marks(nb)] == ["ex_0_1", "ex_0_1_check", "ex_0_1_check"]
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)


# What cannot be graded is refused with its own sentence.

REFUSED = {
    "empty file": ("", "it is empty"),
    "broken JSON": (json.dumps(solved())[:3000], "it breaks in line 1"),
    "merge marks": ('{\n<<<<<<< HEAD\n "cells": []\n=======\n>>>>>>> x\n}', "the marks of a merge in git"),
    "Latin letters": (b'{"cells": [], "a": "\xe9"}', "its letters are not in UTF-8"),
    "a web page": ("<!DOCTYPE html><html></html>", "it is a web page"),
    "a zip archive": (b"PK\x03\x04\x00\x00", "it is a zip archive"),
    "a list": ("[1, 2]", "it has no list of cells"),
    "no cells": ('{"nbformat": 4}', "it has no list of cells"),
    "a cell that is none": ('{"cells": [1]}', "it has no list of cells"),
    "deep nesting": ("[" * 200_000, "is not a valid notebook"),
    "a notebook of one's own": (
        '{"cells": [{"cell_type": "code", "source": "1 + 1"}]}',
        "holds no cell of this course",
    ),
    "another unit's notebook": (handed_out(OTHER), f"holds the notebook of unit {OTHER}, not of {UNIT}"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_notebook_is_refused_with_its_own_sentence(root, case):
    content, sentence = REFUSED[case]
    put(root, content)
    with pytest.raises(submissions.NotGraded) as refused:
        read(root)
    assert sentence in str(refused.value)
    assert "Error" not in str(refused.value)


def test_a_name_in_capitals_is_read_and_mentioned(root):
    put(root, solved(), name=f"{UNIT.upper()}.IPYNB")
    reading = read(root)
    assert ANSWER in code(reading.nb) and reading.notes == [f"read from {UNIT.upper()}.IPYNB"]


@pytest.mark.parametrize("second", [f"{UNIT} (1).ipynb", f"{UNIT}-Copy1.ipynb", f"{UNIT.upper()}.IPYNB"])
def test_an_untouched_notebook_beside_a_worked_one_is_named(root, second):
    put(root, handed_out())
    put(root, solved(), name=second)
    with pytest.raises(submissions.NotGraded, match="as it was handed out, but beside it there is"):
        read(root)


def test_an_untouched_notebook_beside_an_unreadable_one_is_named(root):
    put(root, handed_out())
    put(root, "", name=f"{UNIT} (1).ipynb")
    with pytest.raises(submissions.NotGraded, match="Keep the one that counts"):
        read(root)


def test_a_worked_notebook_beside_another_is_graded_and_said(root):
    put(root, solved())
    put(root, solved(), name=f"{UNIT} (1).ipynb")
    assert read(root).notes == [f"only {UNIT}.ipynb is graded; beside it there is {UNIT} (1).ipynb"]


def test_two_untouched_notebooks_are_graded(root):
    put(root, handed_out())
    put(root, handed_out(), name=f"{UNIT} (1).ipynb")
    assert read(root).notes


def test_hidden_files_are_no_submissions(root):
    put(root, solved())
    for name in (f"._{UNIT}.ipynb", ".DS_Store", "Thumbs.db", "desktop.ini"):
        put(root, b"\x00", name=name)
        (root / "gradebook" / "submitted" / name).write_bytes(b"\x00")
        (root / "gradebook" / "submitted" / "ada" / name).write_bytes(b"\x00")
    assert not read(root).notes


@pytest.mark.parametrize("inside", [(), (f"{UNIT} (1).ipynb",), (f"{UNIT}.ipynb.txt",)])
def test_a_missing_notebook_names_what_is_there(root, inside):
    folder = root / "gradebook" / "submitted" / "ada" / UNIT
    folder.mkdir(parents=True)
    for name in inside:
        put(root, solved(), name=name)
    with pytest.raises(submissions.NotGraded) as refused:
        read(root)
    assert f"there is no {UNIT}.ipynb in its folder (found: {', '.join(inside) or 'nothing'})" in str(refused.value)


def test_a_folder_in_other_letters_is_the_units(root):
    put(root, solved(), folder=UNIT.upper())
    (one,), refused = submissions.find_submissions(root, [UNIT])
    assert (one.unit, one.folder.name, refused) == (UNIT, UNIT.upper(), [])


def test_of_two_folders_the_exact_one_counts_and_the_other_is_named(root):
    put(root, solved(), folder=UNIT.upper())
    put(root, solved(), folder=UNIT)
    (one,), (other,) = submissions.find_submissions(root, [UNIT])
    assert one.folder.name == UNIT and other.unit == UNIT.upper() and "that one is graded" in other.why


def test_every_misplaced_entry_is_named(root):
    top = root / "gradebook" / "submitted"
    put(root, "", folder="__MACOSX")
    put(root, solved(), student="bob", folder="00_start")
    put(root, solved(), student="__MACOSX", folder="ada")
    (top / "carl").mkdir()
    (top / "dora").mkdir()
    (top / "dora" / UNIT).write_text("a file with a folder's name")
    (top / "loose.ipynb").write_text("{}")
    found, refused = submissions.find_submissions(root, [UNIT])
    assert found == []
    named = {(line.student, line.unit): line.why for line in refused}
    assert "Mac's zip archive" in named["ada", "__MACOSX"] and "Mac's zip archive" in named["__MACOSX", ""]
    assert "is not the folder of a unit" in named["bob", "00_start"] and "the folder is empty" in named["carl", ""]
    assert "is not the folder of a unit" in named["dora", UNIT] and "not a student's folder" in named["loose.ipynb", ""]
    assert len(named) == len(refused) == 6


def test_another_unit_that_is_not_graded_now_is_left_alone(root):
    put(root, handed_out(OTHER), folder=OTHER)
    assert submissions.find_submissions(root, [UNIT]) == ([], [])


@pytest.mark.parametrize(
    ("text", "kept"),
    [("2026-03-01 12:00:00 UTC", True), ("last Tuesday", False), ("", False), ("99999999999999999999", False)],
)
def test_a_timestamp_in_words_is_left_out_and_said(root, text, kept):
    put(root, solved())
    put(root, text, name="timestamp.txt")
    put(root, "1 2 3", name="data.txt")
    (one,), _ = submissions.find_submissions(root, [UNIT])
    reading = submissions.read_submission(one, root)
    submissions.write_copy(reading, one, root / "copy")
    made = root / "copy" / "ada" / UNIT
    assert (
        sorted(p.name for p in made.iterdir()) == sorted([f"{UNIT}.ipynb", "data.txt"] + ["timestamp.txt"] * kept)
        and bool(reading.notes) != kept
    )
    assert ANSWER in code(nbformat.read(made / f"{UNIT}.ipynb", as_version=4))


def test_links_beside_a_notebook_are_not_followed(root):
    put(root, solved())
    folder = root / "gradebook" / "submitted" / "ada" / UNIT
    (folder / "secret").symlink_to(ROOT / "solutions")
    (folder / "nowhere").symlink_to(root / "missing")
    (one,), _ = submissions.find_submissions(root, [UNIT])
    submissions.write_copy(submissions.read_submission(one, root), one, root / "copy")
    assert [p.name for p in (root / "copy" / "ada" / UNIT).iterdir()] == [f"{UNIT}.ipynb"]
