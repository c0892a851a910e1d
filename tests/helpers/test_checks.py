"""The friendly checks: what a learner reads, and that progress never gets in the way."""

import json
import os
import re
import stat
import subprocess
import sys

import pytest
import torch

from grading.course import ROOT
from helpers import checks
from helpers import progress as records


@pytest.fixture
def progress(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FILE", tmp_path / "progress.json")
    monkeypatch.delenv("COURSE_PROGRESS", raising=False)
    return tmp_path / "progress.json"


def fail(run):
    with pytest.raises(checks.CheckFailed) as caught, checks.check("9.1", "all good"):
        run()
    return caught.value


def stub():
    raise NotImplementedError("Exercise 9.1 is not solved yet: replace this line.")


def test_a_pass_says_so_and_is_recorded(progress, capsys):
    with checks.check("9.1", "all good"):
        pass
    assert capsys.readouterr().out == "Exercise 9.1 passed: all good.\n"
    assert json.loads(progress.read_text())["9.1"] == "solved"


def test_a_stub_is_neither_right_nor_wrong(progress):
    error = fail(stub)
    assert isinstance(error, checks.NotSolvedYet) and "YOUR CODE HERE" in str(error)
    assert json.loads(progress.read_text())["9.1"] == "untouched"


def test_a_failure_is_one_sentence_without_frames(progress):
    error = fail(lambda: checks.number(3, 4, "the answer"))
    assert str(error) == "Exercise 9.1: not yet. The answer is 3; expected is 4."
    assert error._render_traceback_() == [str(error)]
    assert json.loads(progress.read_text())["9.1"] == "tried"


def test_solved_stays_solved(progress):
    with checks.check("9.1", "all good"):
        pass
    fail(lambda: checks.number(3, 4, "the answer"))
    assert json.loads(progress.read_text())["9.1"] == "solved"


def test_an_error_of_the_learner_is_named_with_its_line(progress):
    def average(values):
        return sum(values) / len(values)

    error = fail(lambda: average([]))
    assert "your code stopped with ZeroDivisionError: division by zero" in str(error)
    assert "in average, line" in str(error) and "return sum(values) / len(values)" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_an_assertion_without_a_text_says_where_it_is(progress):
    def careless():
        raise AssertionError

    assert "An assertion without a text failed in careless" in str(fail(careless))


def test_a_missing_name_says_what_to_run(progress):
    def unknown():
        return undefined_function(1)  # noqa: F821

    sentence = str(fail(unknown))
    assert "name 'undefined_function' is not defined in unknown, line" in sentence and "first cell" in sentence


def check_ex_9_2():
    with checks.check("9.2", ""):
        answer_of_the_learner(1)  # noqa: F821


def test_a_check_that_is_run_before_its_answer_says_so(progress):
    with pytest.raises(checks.CheckFailed, match="no `answer_of_the_learner` in this kernel yet"):
        check_ex_9_2()


def test_a_name_that_is_assigned_further_down_is_explained(progress):
    def late():
        value = batch + 1  # noqa: F821, F841
        for batch in [1]:
            print(batch)

    assert "for the function's own" in str(fail(late))


def test_the_library_is_nobodys_cell(progress):
    def reads():
        return json.loads("{")

    sentence = str(fail(reads))
    assert "in reads, line" in sentence and "decoder" not in sentence


def test_common_errors_of_torch_are_explained(progress):
    assert "call .item()" in str(fail(lambda: round(torch.tensor(1.5))))
    assert "ask its numel()" in str(fail(lambda: bool(torch.tensor([]))))


def test_messages_break_between_words():
    error = checks.CheckFailed("word " * 60)
    lines = error._render_traceback_()[0].splitlines()
    assert max(map(len, lines)) <= checks.COLUMNS and " ".join(lines).split() == str(error).split()


def test_a_missing_kernel_of_torch_is_not_taken_for_a_stub(progress):
    def missing():
        raise NotImplementedError("Could not run 'quantized::linear'")

    error = fail(missing)
    assert not isinstance(error, checks.NotSolvedYet) and "Could not run 'quantized::linear'" in str(error)


def test_warnings_do_not_reach_stderr(progress, capsys, monkeypatch):
    import warnings

    # pytest keeps warnings for itself; a notebook prints them, as here.
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest: print(message, file=sys.stderr))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with checks.check("9.1", "all good"):
            warnings.warn("a warning of the learner's own", stacklevel=1)
    printed = capsys.readouterr()
    assert printed.err == "" and "a warning of the learner's own" in printed.out


@pytest.mark.parametrize("variable", ["NBGRADER_EXECUTION", "COURSE_PROGRESS"])
def test_nothing_is_recorded_while_grading(progress, monkeypatch, variable):
    monkeypatch.setenv(variable, {"NBGRADER_EXECUTION": "autograde", "COURSE_PROGRESS": "off"}[variable])
    with checks.check("9.1", "all good"):
        pass
    assert not progress.exists()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"9.1": 3}', '{"9.1": {"state": null}}'])
def test_a_damaged_progress_file_does_no_harm(progress, content, capsys):
    progress.write_text(content)
    with checks.check("9.1", "all good"):
        pass
    checks.show_progress("9", 2)
    out = capsys.readouterr().out
    assert "1 of 2 exercises solved" in out
    kept = progress.with_suffix(".damaged-1.json")
    assert "is kept as progress.damaged-1.json" in out and kept.read_text() == content


def test_a_second_damage_keeps_the_first_file_and_is_said(progress, capsys):
    for content in ("{", "["):
        progress.write_text(content)
        checks.show_progress("9", 2)
        with checks.check("9.1", "all good"):
            pass
    assert capsys.readouterr().out.count("it is damaged") == 2
    assert [progress.with_suffix(f".damaged-{i}.json").read_text() for i in (1, 2)] == ["{", "["]


def test_two_notebooks_lose_nothing(progress):
    code = (
        "import sys; from pathlib import Path; from helpers import progress\n"
        "progress.FILE = Path(sys.argv[1])\n"
        "for i in range(40): progress.record(f'{sys.argv[2]}.{i}', 'solved')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "COURSE_PROGRESS"}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(progress), name], cwd=ROOT, env=environment) for name in "78"
    ]
    assert [writer.wait(timeout=100) for writer in writers] == [0, 0]
    assert len(json.loads(progress.read_text())) == 80


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [("the sum is wrong", "The sum"), ("my_sum is wrong", "my_sum"), ('card["a"] is', 'card["a"]')],
)
def test_a_sentence_begins_with_a_capital_and_a_name_as_it_is(progress, sentence, shown):
    with pytest.raises(checks.CheckFailed, match=rf"not yet. {re.escape(shown)}"), checks.check("9.1", ""):
        raise AssertionError(sentence)


def test_parts_of_an_exercise_count_each(progress, capsys):
    for name in ("9.1", "9.2.2"):
        with checks.check(name, "all good"):
            pass
    checks.show_progress("9", 2, parts={2: 3})
    out = capsys.readouterr().out
    assert "2 of 4 exercises solved" in out and "Still open: 9.2.1, 9.2.3." in out


def test_a_folder_that_cannot_be_written_is_only_mentioned(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "FILE", tmp_path / "absent" / "progress.json")
    monkeypatch.delenv("COURSE_PROGRESS", raising=False)
    with checks.check("9.1", "all good"):
        pass
    out = capsys.readouterr().out
    assert "was not saved" in out and "passed" in out
    assert stat.S_ISDIR(tmp_path.stat().st_mode)


def test_a_check_leaves_the_random_state_alone(progress):
    before = torch.get_rng_state()
    with checks.check("9.1", "all good"):
        torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_number_is_not_a_text():
    with pytest.raises(AssertionError, match="should be a number, not text"):
        checks.number("60", 60, "it")


def test_close_names_the_mistake():
    expected = torch.tensor([1.0, 2.0])
    with pytest.raises(AssertionError, match="wrong: doubled"):
        checks.close(expected * 2, expected, "it", {"doubled.": expected * 2})
    with pytest.raises(AssertionError, match=r"at index \[1\] it is 2.5 and should be 2"):
        checks.close(torch.tensor([1.0, 2.5]), expected, "it", {"doubled.": expected * 2})
    with pytest.raises(AssertionError, match="nan or inf"):
        checks.close(torch.tensor([1.0, torch.nan]), expected, "it")
    with pytest.raises(AssertionError, match=r"by up to 2"):  # two mistakes fit: to name one would be a guess
        checks.close(expected * 2, expected, "it", {"doubled.": expected * 2, "added to itself.": expected + expected})
    checks.close(expected + 1e-7, expected, "it")


def test_close_judges_by_the_maximum_not_the_mean():
    expected = torch.zeros(10_000)
    answer = expected.clone()
    answer[77] = 0.01
    with pytest.raises(AssertionError):
        checks.close(answer, expected, "it")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [(None, "does your function end with `return`"), ([1.0], "should be a tensor"), (torch.zeros(3), "has shape")],
)
def test_tensor_says_what_is_wrong_with_the_form(answer, sentence):
    with pytest.raises(AssertionError, match=sentence):
        checks.tensor(answer, (2,), "it")


def test_raises_wants_the_kind_of_error_it_names():
    checks.raises(ValueError, lambda: int("x"), "must refuse")
    with pytest.raises(AssertionError, match=r"must refuse \(It raised TypeError"):
        checks.raises(ValueError, lambda: int(None), "must refuse")
    with pytest.raises(AssertionError, match="must refuse"):
        checks.raises(ValueError, lambda: 1, "must refuse")


def test_gradients_that_stay_off_are_named_and_switched_on(progress):
    import torch

    with pytest.raises(checks.CheckFailed, match="switches gradients off"), checks.check("9.1", "all good"):
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()


def check_ex_9_1():
    def inner():
        return {}["what a learner's function returned"]

    with checks.check("9.1", ""):
        inner()


def test_an_error_inside_the_check_is_not_blamed_on_a_line_of_the_learner(progress):
    with pytest.raises(checks.CheckFailed, match="what your function returned stopped the check with KeyError"):
        check_ex_9_1()
