"""Unit 06, section 5: the report cards that learners really write in exercise 6.5."""

import hashlib
import math
import time

import numpy as np
import torch

from helpers import intervals, latency, metrics, seq2seq
from tests.misconceptions.bank import right, wrong

KEYS = ("model", "scheme", "calibration", "limits")


def numbers(candidate, reference, load, source, target):
    """Which answers were right, and which are."""
    return [seq2seq.exact_matches(load(path), source, target) for path in (reference, candidate)]


def interval(broken, repaired, n):
    middle = (repaired - broken) / (n + 2)
    half = 1.96 * math.sqrt(((broken + repaired + 1) / (n + 2) - middle * middle) / (n + 2))
    return middle - half, middle + half


def decide(low, high, margin, smaller):
    if high < -margin or not smaller:
        return "do not ship"
    return "ship" if low > -margin else "measure more"


def card_with(
    candidate, reference, load, source, target, margin, notes, timing, machine, refuse=True, bounds=interval, **change
):
    """The right card, each part of which can be replaced."""
    if refuse:
        for key in KEYS:
            if not str(notes.get(key, "")).strip():
                raise ValueError(f"{key} is missing")
        if len(machine) == 0:
            raise ValueError("machine is missing")
    was, now = numbers(candidate, reference, load, source, target)
    n, broken, repaired = len(was), (was & ~now).sum().item(), (now & ~was).sum().item()
    low, high = bounds(broken, repaired, n)
    p, below, above = intervals.wilson(now.sum().item(), n)
    size, before = candidate.stat().st_size, reference.stat().st_size
    refused = isinstance(timing, latency.TooNoisy)
    card = {key: notes.get(key) for key in KEYS}
    card["artefact"] = {
        "file": candidate.name,
        "bytes": size,
        "sha256": hashlib.sha256(candidate.read_bytes()).hexdigest(),
        "times_smaller": before / size,
    }
    card["quality"] = {
        "pairs": n,
        "reference_right": was.sum().item(),
        "candidate_right": now.sum().item(),
        "broken": broken,
        "repaired": repaired,
        "exact_match": {"share": p, "low": below, "high": above},
        "difference": (repaired - broken) / n,
        "low": low,
        "high": high,
        "margin": margin,
    }
    card["latency"] = {
        "ratio": None if refused else timing.ratio,
        "low": None if refused else timing.low,
        "high": None if refused else timing.high,
        "machine": dict(machine),
    }
    card["recommendation"] = decide(low, high, margin, size < before)
    for place, value in change.items():
        part, _, key = place.partition("__")
        if key:
            card[part][key] = value
        else:
            card[part] = value
    return card


@right("ex_6_5")
def with_numpy_and_early_returns(candidate, reference, load, source, target, margin, notes, timing, machine):
    missing = [key for key in KEYS if not notes.get(key) or notes[key].isspace()]
    if missing:
        raise ValueError("these notes are missing: " + ", ".join(missing))
    if not machine:
        raise ValueError("no machine is named")
    old = seq2seq.exact_matches(load(reference), source, target).numpy()
    new = seq2seq.exact_matches(load(candidate), source, target).numpy()
    change = new.astype(int) - old.astype(int)
    lost, won, n = int((change < 0).sum()), int((change > 0).sum()), len(change)
    d = float(change.sum() / (n + 2))
    half = float(1.96 * np.sqrt(((lost + won + 1) / (n + 2) - d**2) / (n + 2)))
    raw = candidate.read_bytes()
    reference_size = len(reference.read_bytes())

    def word():
        if len(raw) >= reference_size or d + half < -margin:
            return "do not ship"
        if d - half > -margin:
            return "ship"
        return "measure more"

    share, low, high = intervals.wilson(int(new.sum()), n)
    times = dict.fromkeys(("ratio", "low", "high"))
    if not isinstance(timing, Exception):
        times = {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
    return {
        **{key: notes[key] for key in KEYS},
        "artefact": {
            "file": str(candidate.name),
            "bytes": len(raw),
            "sha256": hashlib.new("sha256", raw).hexdigest(),
            "times_smaller": reference_size / len(raw),
        },
        "quality": {
            "pairs": n,
            "reference_right": int(old.sum()),
            "candidate_right": int(new.sum()),
            "broken": lost,
            "repaired": won,
            "exact_match": {"share": share, "low": low, "high": high},
            "difference": float(change.mean()),
            "low": d - half,
            "high": d + half,
            "margin": margin,
        },
        "latency": {**times, "machine": {**machine}},
        "recommendation": word(),
    }


@right("ex_6_5")
def by_hand_one_pair_at_a_time(candidate, reference, load, source, target, margin, notes, timing, machine):
    def answers(path):
        model = load(path)
        ids = torch.cat([seq2seq.greedy(model, rows) for rows in source.split(100)])
        return [a == b for a, b in zip(ids.tolist(), target.tolist(), strict=True)]

    card = card_with(candidate, reference, load, source, target, margin, notes, timing, dict(machine))
    both = list(zip(answers(reference), answers(candidate), strict=True))
    card["quality"]["broken"] = sum(a and not b for a, b in both)
    card["quality"]["repaired"] = sum(b and not a for a, b in both)
    return card


@wrong("ex_6_5", "unpaired difference")
def the_interval_of_two_scores(candidate, reference, load, source, target, *rest):
    was, now = (x.double().mean().item() for x in numbers(candidate, reference, load, source, target))

    def unpaired(broken, repaired, n):
        half = 1.96 * math.sqrt((was * (1 - was) + now * (1 - now)) / n)
        return now - was - half, now - was + half

    return card_with(candidate, reference, load, source, target, *rest, bounds=unpaired)


@wrong("ex_6_5", "without the added pairs")
def width_zero_without_a_change(*given):
    def plain(broken, repaired, n):
        d = (repaired - broken) / n
        half = 1.96 * math.sqrt(((broken + repaired) / n - d * d) / n)
        return d - half, d + half

    return card_with(*given, bounds=plain)


@wrong("ex_6_5", "one standard error")
def one_standard_error(*given):
    def narrow(broken, repaired, n):
        low, high = interval(broken, repaired, n)
        return (low + high) / 2 - (high - low) / 3.92, (low + high) / 2 + (high - low) / 3.92

    return card_with(*given, bounds=narrow)


@wrong("ex_6_5", "the bounds are swapped")
def swapped_bounds(*given):
    return card_with(*given, bounds=lambda b, r, n: interval(b, r, n)[::-1])


@wrong("ex_6_5", "written anew")
def size_of_the_model_in_memory(candidate, reference, load, *rest):
    return card_with(candidate, reference, load, *rest, artefact__bytes=metrics.file_bytes(load(candidate)))


@wrong("ex_6_5", "counts the float parameters")
def size_of_the_float_parameters(candidate, reference, load, *rest):
    count = sum(4 * parameter.numel() for parameter in load(candidate).parameters())
    return card_with(candidate, reference, load, *rest, artefact__bytes=count)


@wrong("ex_6_5", "upside down")
def share_of_the_size(candidate, reference, *rest):
    share = candidate.stat().st_size / reference.stat().st_size
    return card_with(candidate, reference, *rest, artefact__times_smaller=share)


@wrong("ex_6_5", "not the hash of the candidate's bytes")
def hash_of_the_name(candidate, *rest):
    return card_with(candidate, *rest, artefact__sha256=hashlib.sha256(candidate.name.encode()).hexdigest())


@wrong("ex_6_5", "a folder of this computer")
def the_whole_path(candidate, *rest):
    return card_with(candidate, *rest, artefact__file=str(candidate))


@wrong("ex_6_5", "every card says so")
def always_ship(*given):
    return card_with(*given, recommendation="ship")


@wrong("ex_6_5", "decides that it ships. Ask the lower bound")
def the_estimate_decides(candidate, reference, load, source, target, margin, *rest):
    card = card_with(candidate, reference, load, source, target, margin, *rest)
    smaller = card["artefact"]["times_smaller"] > 1
    card["recommendation"] = "ship" if card["quality"]["difference"] > -margin and smaller else "do not ship"
    return card


@wrong("ex_6_5", "the bytes do not count")
def the_size_does_not_count(candidate, reference, load, source, target, margin, *rest):
    card = card_with(candidate, reference, load, source, target, margin, *rest)
    card["recommendation"] = decide(card["quality"]["low"], card["quality"]["high"], margin, True)
    return card


@wrong("ex_6_5", "the margin is taken for per cent")
def the_margin_taken_for_per_cent(candidate, reference, load, source, target, margin, *rest):
    card = card_with(candidate, reference, load, source, target, margin, *rest)
    smaller = card["artefact"]["times_smaller"] > 1
    card["recommendation"] = decide(card["quality"]["low"], card["quality"]["high"], margin / 100, smaller)
    return card


@wrong("ex_6_5", "a ratio without its machine means nothing")
def no_machine(*given):
    card = card_with(*given)
    del card["latency"]["machine"]
    return card


@wrong("ex_6_5", "a card with an empty machine should be refused")
def an_unnamed_machine_is_accepted(candidate, reference, load, source, target, margin, notes, timing, machine):
    named = machine or {"processor": "unknown"}
    card = card_with(candidate, reference, load, source, target, margin, notes, timing, named)
    card["latency"]["machine"] = dict(machine)
    return card


@wrong("ex_6_5", "should be refused with a ValueError")
def missing_notes_become_empty(candidate, reference, load, source, target, margin, notes, timing, machine):
    filled = {key: notes.get(key, "") for key in KEYS}
    return card_with(candidate, reference, load, source, target, margin, filled, timing, machine, refuse=False)


@wrong("ex_6_5", "should be refused with a ValueError, not KeyError")
def missing_notes_are_a_key_error(candidate, reference, load, source, target, margin, notes, timing, machine):
    texts = {key: notes[key] for key in KEYS}
    return card_with(candidate, reference, load, source, target, margin, texts, timing, machine)


@wrong("ex_6_5", "is a Tensor: JSON knows")
def tensors_in_the_card(candidate, reference, load, source, target, *rest):
    now = numbers(candidate, reference, load, source, target)[1]
    return card_with(candidate, reference, load, source, target, *rest, quality__candidate_right=now.sum())


@wrong("ex_6_5", "which is no JSON: what is not known is None")
def nan_where_the_clock_refused(candidate, reference, load, source, target, margin, notes, timing, machine):
    card = card_with(candidate, reference, load, source, target, margin, notes, timing, machine)
    for key in ("ratio", "low", "high"):
        card["latency"][key] = math.nan if card["latency"][key] is None else card["latency"][key]
    return card


@wrong("ex_6_5", "the clock refused, so ratio, low and high are None")
def one_where_the_clock_refused(candidate, reference, load, source, target, margin, notes, timing, machine):
    card = card_with(candidate, reference, load, source, target, margin, notes, timing, machine)
    for key in ("ratio", "low", "high"):
        card["latency"][key] = 1.0 if card["latency"][key] is None else card["latency"][key]
    return card


@wrong("ex_6_5", "broken and repaired are swapped")
def swapped_changes(*given):
    card = card_with(*given)
    quality = card["quality"]
    return card | {"quality": quality | {"broken": quality["repaired"], "repaired": quality["broken"]}}


@wrong("ex_6_5", "difference of two totals")
def totals_subtracted(*given):
    card = card_with(*given)
    loss = card["quality"]["reference_right"] - card["quality"]["candidate_right"]
    card["quality"] |= {"broken": max(loss, 0), "repaired": max(-loss, 0)}
    return card


@wrong("ex_6_5", "the sign is turned around")
def a_loss_is_positive(*given):
    card = card_with(*given)
    card["quality"]["difference"] *= -1
    return card


@wrong("ex_6_5", "a number that does not reproduce")
def measured_on_some_of_the_pairs(candidate, reference, load, source, target, *rest):
    some = torch.randperm(len(source))[: len(source) // 2]
    return card_with(candidate, reference, load, source[some], target[some], *rest, quality__pairs=len(source))


@wrong("ex_6_5", "a number that does not reproduce")
def the_float_model_answers_for_both(candidate, reference, load, source, target, *rest):
    return card_with(candidate, reference, lambda path: load(reference), source, target, *rest)


@wrong("ex_6_5", "are not those of the table: not expected ['made']")
def a_date_of_its_own(*given):
    return card_with(*given) | {"made": time.time()}


@wrong("ex_6_5", "it is the reference's; the card is about the candidate")
def exact_match_of_the_reference(candidate, reference, load, source, target, *rest):
    was = numbers(candidate, reference, load, source, target)[0]
    share, low, high = intervals.wilson(int(was.sum()), len(was))
    wilson = {"share": share, "low": low, "high": high}
    return card_with(candidate, reference, load, source, target, *rest, quality__exact_match=wilson)


@wrong("ex_6_5", "which is not Wilson's")
def exact_match_plus_minus_a_normal_error(*given):
    card = card_with(*given)
    p, n = card["quality"]["exact_match"]["share"], card["quality"]["pairs"]
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    card["quality"]["exact_match"] |= {"low": p - half, "high": p + half}
    return card


@wrong("ex_6_5", "a file of the same length counts as smaller")
def equal_size_counts_as_smaller(candidate, reference, load, source, target, margin, *rest):
    card = card_with(candidate, reference, load, source, target, margin, *rest)
    not_larger = candidate.stat().st_size <= reference.stat().st_size
    card["recommendation"] = decide(card["quality"]["low"], card["quality"]["high"], margin, not_larger)
    return card


@wrong("ex_6_5", "your function changed `notes`")
def written_into_the_notes(candidate, reference, load, source, target, margin, notes, timing, machine):
    card = card_with(candidate, reference, load, source, target, margin, notes, timing, machine)
    notes.update(card)
    return notes


@wrong("ex_6_5", "your function changed `machine`")
def written_into_the_machine(candidate, reference, load, source, target, margin, notes, timing, machine):
    card = card_with(candidate, reference, load, source, target, margin, notes, timing, machine)
    machine["measured at"] = str(time.time())
    card["latency"]["machine"] = machine
    return card


@wrong("ex_6_5", "whole number")
def counts_as_floats(*given):
    card = card_with(*given)
    for key in ("pairs", "reference_right", "candidate_right", "broken", "repaired"):
        card["quality"][key] = float(card["quality"][key])
    card["artefact"]["bytes"] = float(card["artefact"]["bytes"])
    return card


@wrong("ex_6_5", "the keys of the card")
def every_note_is_copied(candidate, reference, load, source, target, margin, notes, timing, machine):
    card = card_with(candidate, reference, load, source, target, margin, notes, timing, machine)
    return {**notes, **card}


@wrong("ex_6_5", "does not reproduce")
def only_the_first_400_pairs(candidate, reference, load, source, target, *rest):
    return card_with(candidate, reference, load, source[:400], target[:400], *rest)


@right("ex_6_5")
def exact_quantile_of_the_normal(*given):
    def precise(broken, repaired, n):
        middle = (repaired - broken) / (n + 2)
        half = 1.959963984540054 * math.sqrt(((broken + repaired + 1) / (n + 2) - middle * middle) / (n + 2))
        return middle - half, middle + half

    return card_with(*given, bounds=precise)


@right("ex_6_5")
def machine_called_by_its_other_name(candidate, reference, load, source, target, margin, notes, timing, machine):
    if not machine:
        raise ValueError("nobody knows on which computer the ratio was measured.")
    return card_with(candidate, reference, load, source, target, margin, notes, timing, machine)


@wrong("ex_6_5", "decides that it does not ship. Ask the upper bound")
def the_estimate_decides_against(candidate, reference, load, source, target, margin, *rest):
    card = card_with(candidate, reference, load, source, target, margin, *rest)
    quality, smaller = card["quality"], card["artefact"]["times_smaller"] > 1
    against = quality["difference"] < -margin or not smaller
    card["recommendation"] = "do not ship" if against else "ship" if quality["low"] > -margin else "measure more"
    return card


@wrong("ex_6_5", "whole number")
def counts_as_truth_values(*given):
    card = card_with(*given)
    for key in ("broken", "repaired"):
        if card["quality"][key] in (0, 1):
            card["quality"][key] = bool(card["quality"][key])
    return card


@wrong("ex_6_5", "before")
def every_wrong_answer_counted(candidate, reference, load, source, target, *rest):
    was, now = numbers(candidate, reference, load, source, target)
    counts = {"quality__broken": int((~now).sum()), "quality__repaired": int((~was).sum())}
    return card_with(candidate, reference, load, source, target, *rest, **counts)


@wrong("ex_6_5", "are swapped")
def totals_swapped(*given):
    card = card_with(*given)
    quality = card["quality"]
    both = quality["candidate_right"], quality["reference_right"]
    quality["reference_right"], quality["candidate_right"] = both
    return card


@wrong("ex_6_5", "margin is wrong: it is in per cent")
def the_margin_stands_in_per_cent(candidate, reference, load, source, target, margin, *rest):
    return card_with(candidate, reference, load, source, target, margin, *rest, quality__margin=100 * margin)


@wrong("ex_6_5", "difference is wrong: it is in per cent")
def the_difference_stands_in_per_cent(*given):
    card = card_with(*given)
    card["quality"]["difference"] *= 100
    return card


@wrong("ex_6_5", "quality (400 pairs, 30 of them wrong for both) should be a dict, not NoneType")
def quality_is_forgotten(*given):
    return card_with(*given) | {"quality": None}


@wrong("ex_6_5", "missing ['margin'], not expected ['limit']")
def a_key_of_another_name(*given):
    card = card_with(*given)
    card["quality"]["limit"] = card["quality"].pop("margin")
    return card


@wrong("ex_6_5", 'whose note "model" is blank should be refused')
def blank_notes_are_accepted(candidate, reference, load, source, target, margin, notes, timing, machine):
    if not set(KEYS) <= set(notes):
        raise ValueError(f"missing: {set(KEYS) - set(notes)}")
    if not machine:
        raise ValueError("machine")
    return card_with(candidate, reference, load, source, target, margin, notes, timing, machine, refuse=False)


def ruled(rule):
    """A card whose word is `rule(low, high, margin, candidate's bytes, reference's bytes)`."""

    def answer(candidate, reference, load, source, target, margin, *rest):
        card = card_with(candidate, reference, load, source, target, margin, *rest)
        size, before = candidate.stat().st_size, reference.stat().st_size
        card["recommendation"] = rule(card["quality"]["low"], card["quality"]["high"], margin, size, before)
        return card

    answer.__name__ = rule.__name__
    return answer


@wrong("ex_6_5", "is refused, though it lies within the margin")
@ruled
def a_proven_loss_is_refused(low, high, margin, size, before):
    return "do not ship" if high < 0 else decide(low, high, margin, size < before)


@wrong("ex_6_5", "it ships where 0 lies inside")
@ruled
def zero_inside_is_no_loss(low, high, margin, size, before):
    if high < -margin or size >= before:
        return "do not ship"
    return "ship" if low <= 0 <= high else "measure more"


@wrong("ex_6_5", "a lower bound exactly on the margin counts as above it")
@ruled
def the_margin_itself_is_enough(low, high, margin, size, before):
    if high < -margin or size >= before:
        return "do not ship"
    return "ship" if low >= -margin else "measure more"


@wrong("ex_6_5", "an upper bound exactly on the margin counts as below it")
@ruled
def the_margin_itself_is_too_much(low, high, margin, size, before):
    if high <= -margin or size >= before:
        return "do not ship"
    return "ship" if low > -margin else "measure more"


@wrong("ex_6_5", "what is not known yet is refused")
@ruled
def two_words_only(low, high, margin, size, before):
    return "ship" if low > -margin and size < before else "do not ship"


@wrong("ex_6_5", "ships where the answers are proven to be better")
@ruled
def better_answers_are_worth_the_bytes(low, high, margin, size, before):
    return "ship" if low > 0 else decide(low, high, margin, size < before)


@wrong("ex_6_5", "is measured again. No measurement makes it smaller")
@ruled
def the_interval_is_asked_first(low, high, margin, size, before):
    if high < -margin:
        return "do not ship"
    return "ship" if low > -margin and size < before else "measure more"


@wrong("ex_6_5", "One byte less is less")
@ruled
def smaller_after_rounding(low, high, margin, size, before):
    return decide(low, high, margin, round(before / size, 2) > 1)


@wrong("ex_6_5", "the very `machine` that was handed over")
def the_machine_itself_on_the_card(candidate, reference, load, source, target, margin, notes, timing, machine):
    card = card_with(candidate, reference, load, source, target, margin, notes, timing, machine)
    card["latency"]["machine"] = machine
    return card


@wrong("ex_6_5", "sha256 is cut off: 16 of 64 digits")
def a_short_hash(*given):
    card = card_with(*given)
    card["artefact"]["sha256"] = card["artefact"]["sha256"][:16]
    return card


@wrong("ex_6_5", "leaves a file beside the artefact")
def the_card_is_written_down(candidate, *rest):
    card = card_with(candidate, *rest)
    candidate.with_suffix(".card").write_text(str(card))
    return card


@wrong("ex_6_5", "names all four notes")
def every_note_is_named(candidate, reference, load, source, target, margin, notes, timing, machine):
    if not all(str(notes.get(key, "")).strip() for key in KEYS):
        raise ValueError(f"a card needs {KEYS}")
    return card_with(candidate, reference, load, source, target, margin, notes, timing, machine)


@wrong("ex_6_5", "it is the bootstrap's")
def the_interval_of_the_bootstrap(candidate, reference, load, source, target, *rest):
    was, now = numbers(candidate, reference, load, source, target)

    def drawn(broken, repaired, n):
        return intervals.paired_bootstrap(was.double(), now.double())[1:]

    return card_with(candidate, reference, load, source, target, *rest, bounds=drawn)


@wrong("ex_6_5", "it is that of the loss, reference minus candidate")
def the_interval_of_the_loss(*given):
    return card_with(*given, bounds=lambda *counts: intervals.paired_loss(*counts)[1:])


@wrong("ex_6_5", "without the change that is added")
def two_pairs_more_and_no_change(*given):
    def narrow(broken, repaired, n):
        d = (repaired - broken) / (n + 2)
        half = 1.96 * math.sqrt(((broken + repaired) / (n + 2) - d * d) / (n + 2))
        return d - half, d + half

    return card_with(*given, bounds=narrow)


@wrong("ex_6_5", "it takes 2 standard errors")
def two_standard_errors(*given):
    def wide(broken, repaired, n):
        low, high = interval(broken, repaired, n)
        return (low + high) / 2 - (high - low) / 1.96, (low + high) / 2 + (high - low) / 1.96

    return card_with(*given, bounds=wide)


@right("ex_6_5")
def bounds_that_are_rounded_for_print(*given):
    card = card_with(*given)
    card["quality"] |= {key: round(card["quality"][key], 7) for key in ("low", "high", "difference")}
    return card


@right("ex_6_5")
@ruled
def the_rule_from_its_other_end(low, high, margin, size, before):
    smaller = size < before
    if smaller and low + margin > 0:
        return "ship"
    return "measure more" if smaller and not high + margin < 0 else "do not ship"
