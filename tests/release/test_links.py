"""Every link of a released notebook leads somewhere: the file exists, and the heading or cell in it, too.

JupyterLab names a heading by its text with "-" for each space. It shows the cells of a notebook that has just been
opened one after another, and until then it finds a place only as ``#heading=TEXT`` or ``#cell-id=NAME`` (tried with
JupyterLab 4.6). The solution notebooks lie in the same folders below solutions/, so a relative link works in both.
Links and headings are found by a Markdown parser, a cell at a time, as JupyterLab does it.
"""

import re
import subprocess
from pathlib import PurePosixPath
from urllib.parse import unquote

import mistune
import nbformat
import pytest

from grading.course import ROOT
from tests.release.test_release import UNITS, released

PARSE = mistune.create_markdown(renderer="ast", plugins=["table"])
HTML_LINK = re.compile(r"<[^>]*\b(?:href|src)\s*=", re.IGNORECASE)
AS_IT_IS = re.compile(r"[A-Za-z0-9_.,:;?!=/'-]+")  # what neither Markdown nor a browser writes in another way


def tokens(nb):
    """Every token of the Markdown of a notebook, the outer before the inner ones."""

    def walk(found):
        for token in found:
            yield token
            yield from walk(token.get("children", []))

    for cell in nb.cells:
        if cell.cell_type == "markdown":
            yield from walk(PARSE(cell.source))


def text_of(token):
    """What a reader sees of a token."""
    return token.get("raw", "") + "".join(map(text_of, token.get("children", [])))


def links(nb):
    """Targets of all links and pictures but those into the web; the parser writes an apostrophe as %27."""
    targets = [token["attrs"]["url"] for token in tokens(nb) if token["type"] in ("link", "image")]
    return [target.replace("%27", "'") for target in targets if not re.match(r"[a-z]+:", target)]


def links_in_html(nb):
    """Pieces of HTML with a link, which would not be followed here."""
    return [token["raw"] for token in tokens(nb) if token["type"].endswith("html") and HTML_LINK.search(token["raw"])]


def anchors(nb):
    """What may stand behind "#" in a link to this notebook."""
    names = {text_of(token).strip().replace(" ", "-") for token in tokens(nb) if token["type"] == "heading"}
    return names | {f"heading={name}" for name in names} | {f"cell-id={cell.id}" for cell in nb.cells}


def problem(link, unit, notebooks, files):
    """What is wrong with a link in the notebook of `unit`, in a clause; "" if nothing is.

    `notebooks` maps the name of each unit to its released notebook, `files` are all files of the course.
    """
    path, _, fragment = link.partition("#")
    target = unit
    if path:
        place = ["notebooks", unit]
        for part in PurePosixPath(unquote(path)).parts:
            place = place[:-1] if part == ".." else [*place, part]
        if place[0] != "notebooks":
            return "JupyterLab shows notebooks/ only: name the file instead"
        if "/".join(place) not in files:
            return f"there is no file {'/'.join(place)}"
        target = place[-1].removesuffix(".ipynb")
    if not fragment:
        return ""
    if not AS_IT_IS.fullmatch(fragment):
        return "the part behind # holds a character that a browser writes in another way: choose another heading"
    if path and not fragment.startswith(("heading=", "cell-id=")):
        return "in another notebook write #heading=… or #cell-id=…: it has to be found before it is shown"
    if fragment not in anchors(notebooks[target]):
        return f"{target} has no heading or cell #{fragment}"
    return ""


@pytest.fixture(scope="module")
def files():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(names.stdout.split("\0")) | {f"notebooks/{unit}/{unit}.ipynb" for unit in UNITS}


@pytest.fixture(scope="module")
def notebooks():
    return {unit: released(unit) for unit in UNITS}


@pytest.mark.parametrize("unit", UNITS)
def test_every_link_leads_somewhere(unit, notebooks, files):
    wrong = {link: problem(link, unit, notebooks, files) for link in links(notebooks[unit])}
    assert not {link: what for link, what in wrong.items() if what}
    assert not links_in_html(notebooks[unit]), "write links in Markdown: this test follows no others"


def test_the_links_of_all_units_are_seen(notebooks):
    """The test above is not blind: unit 00 leads on to unit 01."""
    assert "../01_transformer_basics/01_transformer_basics.ipynb" in links(notebooks["00_start_here"])


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("| a |\n| --- |\n| [b](c.ipynb) |", ["c.ipynb"]),
        ("[the scale `s[0]`](a.ipynb)", ["a.ipynb"]),
        ('[a](b.ipynb "with a title")', ["b.ipynb"]),
        ("[a](<b.ipynb>)", ["b.ipynb"]),
        ("[a](#f(x))", ["#f(x)"]),
        ("[a](#heading=Robin's-bow)", ["#heading=Robin's-bow"]),
        ("[two\nlines](a.ipynb)", ["a.ipynb"]),
        ("[a][1]\n\n[1]: b.ipynb", ["b.ipynb"]),
        ("[![a](b.png)](c.ipynb)", ["c.ipynb", "b.png"]),
        ("<details><summary>a</summary>\n\n[b](c.ipynb)\n</details>", ["c.ipynb"]),
        ("`[a](b.ipynb)` and https://a.b/c", []),
        ("```\n[a](b.ipynb)\n```", []),
    ],
)
def test_a_link_is_seen_in_each_of_its_forms(text, seen):
    assert links(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])) == seen


def test_a_link_in_html_is_seen():
    cell = nbformat.v4.new_markdown_cell("<details><summary>a</summary>\n<a href='b.ipynb'>c</a>\n</details>")
    assert links_in_html(nbformat.v4.new_notebook(cells=[cell]))


@pytest.mark.parametrize(
    ("link", "what"),
    [
        ("../b/b.ipynb", ""),
        ("../b/b.ipynb#heading=1.-What-is-it,-really?", ""),
        ("../b/b.ipynb#heading=The-method-quantize", ""),
        ("../b/b.ipynb#cell-id=ex_1_1_check", ""),
        ("#Here", ""),
        ("../../docs/page.md#anything", "JupyterLab shows notebooks/ only"),
        ("#There", "has no heading or cell #There"),
        ("../b/b.ipynb#heading=1.-what-is-it,-really?", "has no heading or cell"),
        ("../b/b.ipynb#The-method-quantize", "in another notebook write #heading="),
        ("../b/b.ipynb#1.%20What", "writes in another way"),
        ("../b/b.ipynb#cell-id=ex_1_2_check", "has no heading or cell"),
        ("../b/c.ipynb", "there is no file notebooks/b/c.ipynb"),
        ("b.ipynb", "there is no file notebooks/a/b.ipynb"),
    ],
)
def test_a_wrong_link_is_found(link, what):
    cell = nbformat.v4.new_markdown_cell
    there = [cell("# B\n\n## 1. What is it, really?\n\n## The method `quantize`"), nbformat.v4.new_code_cell()]
    there[1]["id"] = "ex_1_1_check"
    here = nbformat.v4.new_notebook(cells=[cell(f"# Here\n\nSee [the proof]({link}).")])
    course = {"a": here, "b": nbformat.v4.new_notebook(cells=there)}
    assert links(here) == [link]
    found = problem(link, "a", course, {"notebooks/b/b.ipynb"})
    assert what in found if what else not found
