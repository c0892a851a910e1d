"""The task of unit 06: right answers, dates apart by split, typos as promised, and clear words for bad input."""

import datetime
import hashlib

import pytest
import torch

from helpers import dates

SPLITS = ("training", "validation", "held_out")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("day month year", "4 july 1976"),
        ("month day, year", "july 4, 1976"),
        ("month ordinal, year", "july 4th, 1976"),
        ("the ordinal of month", "the 4th of july 1976"),
        ("weekday, day month year", "sunday, 4 july 1976"),
        ("short weekday, day mon", "sun, 04 jul 1976"),
        ("day-mon-yy", "4-jul-76"),
        ("mon day 'yy", "jul 4 '76"),
        ("day.month.year", "4.7.1976"),
        ("dd.mm.yy", "04.07.76"),
        ("month/day/year", "7/4/1976"),
        ("year, month day", "1976, july 4"),
        ("day n of year", "day 186 of 1976"),
    ],
)
def test_each_form_of_one_date(form, text):
    assert dates.FORMS[form](datetime.date(1976, 7, 4)) == text


def test_the_test_above_knows_every_form():
    assert len(dates.FORMS) == 13


def test_ordinals():
    written = " ".join(dates.ordinal(n) for n in (1, 2, 3, 4, 10, 11, 12, 13, 20, 21, 22, 23, 30, 31))
    assert written == "1st 2nd 3rd 4th 10th 11th 12th 13th 20th 21st 22nd 23rd 30th 31st"


def test_no_two_dates_are_written_alike_within_a_form():
    days = [day for split in SPLITS for day in dates.dates_of(split)]
    for name, form in dates.FORMS.items():
        assert len({form(day) for day in days}) == len(days), name


def test_the_splits_are_disjoint_complete_and_of_the_right_size():
    parts = {split: set(dates.dates_of(split)) for split in SPLITS}
    total = (dates.LAST - dates.FIRST).days + 1
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == total
    assert 0.09 < len(parts["held_out"]) / total < 0.11
    assert 0.04 < len(parts["validation"]) / total < 0.06
    assert dates.dates_of("held_out") == sorted(parts["held_out"])


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_come_from_their_split_and_are_right(split):
    source, target, texts = dates.pairs(split, 300, seed=4)
    assert source.shape == (300, dates.SOURCE_LENGTH) and target.shape == (300, dates.TARGET_LENGTH)
    assert source.dtype == target.dtype == torch.int64
    for row, answer, text in zip(source, target, texts, strict=True):
        day = datetime.date.fromisoformat(dates.decode(answer))
        assert dates.split_of(day) == split and dates.decode(row) == text
        written = {form(day) for form in dates.FORMS.values()}
        meant = written | {dates.mistyped(w, kind, where) for w in written for kind in range(3) for where in range(20)}
        assert text in meant


def test_pairs_are_the_same_for_the_same_seed_only():
    first, again, other = (dates.pairs("validation", 50, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and first[2] == again[2]
    assert first[2] != other[2]


def test_pairs_in_chosen_forms():
    _, _, texts = dates.pairs("training", 40, seed=0, forms=["month/day/year"])
    assert all(text.count("/") == 2 for text in texts)


def test_a_tenth_of_the_words_is_mistyped():
    _, target, texts = dates.pairs("training", 4000, seed=5, forms=["day month year"])
    right = [
        dates.FORMS["day month year"](datetime.date.fromisoformat(dates.decode(t))) == text
        for t, text in zip(target, texts, strict=True)
    ]
    # "may" has one letter that may change, and "june" and "july" have two; swapping equal letters changes nothing
    assert 0.07 < 1 - sum(right) / len(right) < 0.12


@pytest.mark.parametrize(("kind", "text"), [(0, "4 jly 1976"), (1, "4 juuly 1976"), (2, "4 jluy 1976")])
def test_a_letter_is_missing_doubled_or_swapped(kind, text):
    assert dates.mistyped("4 july 1976", kind, where=0) == text


def test_the_first_letter_is_never_touched_and_figures_never():
    for kind in range(3):
        for where in range(40):
            typo = dates.mistyped("sunday, 4 july 1976", kind, where)
            assert typo.startswith("s") and ", 4 j" in typo and typo.endswith(" 1976")
        assert dates.mistyped("04.07.76", kind, 3) == "04.07.76"


def test_every_mistyped_text_fits():
    days = dates.dates_of("validation")
    longest = max((form(day) for form in dates.FORMS.values() for day in days), key=len)
    assert len(dates.mistyped(longest, 1, 0)) + 1 <= dates.SOURCE_LENGTH


def test_encode_and_decode_are_inverse():
    ids = dates.encode(["may 4, 2001", ""])
    assert ids.shape == (2, dates.SOURCE_LENGTH) and ids[1].tolist() == [dates.END] + [dates.PAD] * 35
    assert [dates.decode(row) for row in ids] == ["may 4, 2001", ""]
    assert dates.decode(torch.tensor([dates.START, 3, dates.PAD])) == "? ?"
    assert ids.max() < dates.VOCAB_SIZE


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="'May 4' holds 'M'; the model reads small letters"):
        dates.encode(["May 4"])
    with pytest.raises(ValueError, match="has 40 characters; at most 35 fit"):
        dates.encode(["4" * 40])
    with pytest.raises(ValueError, match='choose "training", "validation" or "held_out"'):
        dates.dates_of("test")
    with pytest.raises(ValueError, match='there is no split "test"'):
        dates.pairs("test", 3, seed=0)
    with pytest.raises(ValueError, match=r"encode takes a list of texts: encode\(\['may 4, 2001'\]\)"):
        dates.encode("may 4, 2001")
    with pytest.raises(ValueError, match="id 50 is no character: ids go from 0 to"):
        dates.decode(torch.tensor([3, 50]))
    with pytest.raises(ValueError, match="forms is empty"):
        dates.pairs("training", 3, seed=0, forms=[])
    with pytest.raises(ValueError, match="there is no form 'roman': give a list of names"):
        dates.pairs("training", 3, seed=0, forms=["dd.mm.yy", "roman"])
    for kind in (3, -1):
        with pytest.raises(ValueError, match=f"there is no typo of kind {kind}"):
            dates.mistyped("4 july 1976", kind, 0)


def test_pairs_stay_what_the_checkpoint_was_trained_on():
    source, target, texts = dates.pairs("training", 500, seed=0)
    numbers = torch.cat([source.flatten(), target.flatten()])
    assert hashlib.sha256(numbers.numpy().tobytes()).hexdigest().startswith("18e17ea658e5") and len(texts) == 500


def test_a_typo_may_leave_two_right_dates():
    january, june = (datetime.date(1992, month, 5) for month in (1, 6))
    for form in ("day-mon-yy", "mon day 'yy"):
        one, other = (dates.mistyped(dates.FORMS[form](day), 0, 0) for day in (january, june))
        assert one == other
