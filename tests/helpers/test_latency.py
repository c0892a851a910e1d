"""The latency harness on a simulated clock: drift, outliers, slow first calls, order effects, noise, threads."""

import itertools
import math
import random

import pytest
import torch

from helpers import latency


class World:
    """A clock that programs push forward."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def clock(self):
        return self.now

    def program(self, name, seconds):
        def run():
            took = seconds() if callable(seconds) else seconds
            self.order.append(name)
            self.now += took

        return run


def test_programs_take_turns_in_random_orders_and_their_reverse():
    world = World()
    programs = {name: world.program(name, 1.0) for name in "abcd"}
    latency.compare(programs, repeats=19, warmup=1, clock=world.clock)
    turns = ["".join(world.order[i : i + 4]) for i in range(0, 160, 4)]
    assert all(set(turn) == set("abcd") for turn in turns) and len(set(turns)) > 10
    assert all(second == first[::-1] for first, second in zip(turns[::2], turns[1::2], strict=True))
    for x, y in itertools.permutations("abcd", 2):  # no two are always neighbours
        assert sum(turn.index(x) < turn.index(y) for turn in turns) == 20
        assert sum(x + y in turn for turn in turns) < 20


def test_the_order_is_that_of_the_seed():
    orders = []
    for seed in (1, 1, 2):
        world = World()
        latency.compare({n: world.program(n, 1.0) for n in "abcd"}, clock=world.clock, seed=seed)
        orders.append(world.order)
    assert orders[0] == orders[1] != orders[2]


def test_the_medians_are_those_of_the_simulated_times():
    world = World()
    found = latency.compare({"a": world.program("a", 2.0), "b": world.program("b", 3.0)}, clock=world.clock, calls=4)
    assert found["a"] == latency.Timing(2.0, 2.0, 1.0, 1.0, 1.0, latency.median_level(21))
    assert found["b"] == latency.Timing(3.0, 3.0, 1.5, 1.5, 1.5, latency.median_level(21))
    assert str(found["b"]) == "1.50 (1.50 to 1.50)"
    assert world.order.count("a") == 22 * 2 * 4


def test_a_slow_first_call_is_not_counted():
    world = World()
    slow = lambda: 2.0 if len(world.order) >= 4 else 500.0  # noqa: E731
    found = latency.compare({"a": world.program("a", slow), "b": world.program("b", slow)}, clock=world.clock)
    assert found["b"].ratio == found["b"].high == 1.0 and found["b"].p95 == 2.0


def test_a_computer_that_slows_down_does_not_change_the_ratio():
    world = World()
    drift = lambda base: lambda: base * (1 + len(world.order) / 100)  # noqa: E731
    found = latency.compare(
        {"a": world.program("a", drift(1.0)), "b": world.program("b", drift(0.5))}, clock=world.clock
    )
    assert found["b"].ratio == pytest.approx(0.5, rel=0.01)
    assert found["a"].p95 > 1.1 * found["a"].p50  # the seconds themselves have grown


def test_a_few_interruptions_do_not_change_the_ratio():
    world, count = World(), itertools.count()
    interrupted = lambda: 1.0 + 50.0 * (next(count) % 9 == 4)  # noqa: E731
    found = latency.compare(
        {"a": world.program("a", interrupted), "b": world.program("b", lambda: 0.5)}, repeats=31, clock=world.clock
    )
    assert found["b"].ratio == 0.5
    assert found["a"].p95 > 50


def equal_twins(factor, repeats, seed):
    """The timing of one program against itself, when the second of each two takes `factor` of its time; noise 1 %."""
    world, draw = World(), random.Random(seed)
    seconds = lambda: (factor if len(world.order) % 2 else 1.0) * draw.lognormvariate(0, 0.01)  # noqa: E731
    both = {"a": world.program("a", seconds), "b": world.program("b", seconds)}
    return latency.compare(both, repeats=repeats, clock=world.clock, seed=seed)["b"]


@pytest.mark.parametrize("factor", [0.95, 0.9, 0.8, 1.25])
@pytest.mark.parametrize("repeats", [5, 9, 21])
def test_being_second_is_no_advantage(factor, repeats):
    found = [equal_twins(factor, repeats, seed) for seed in range(200)]
    assert max(abs(one.ratio - 1) for one in found) < 0.02
    assert max(one.high - one.low for one in found) < 0.06  # no wider than without an effect of the order
    held = sum(one.low <= 1 <= one.high for one in found) / len(found)
    assert abs(held - found[0].level) < 0.045  # three standard errors


def test_being_second_is_no_advantage_without_any_noise():
    for factor in (0.9, 0.5):
        world = World()
        second = lambda: factor if len(world.order) % 2 else 1.0  # noqa: B023, E731
        both = {"a": world.program("a", second), "b": world.program("b", second)}
        found = latency.compare(both, repeats=5, clock=world.clock)["b"]
        assert [found.ratio, found.low, found.high] == pytest.approx([1, 1, 1])


def test_the_quick_ratio_bears_an_order_too(monkeypatch):
    world = World()
    monkeypatch.setattr(latency.time, "perf_counter", world.clock)
    second = lambda: 0.9 if len(world.order) % 2 else 1.0  # noqa: E731
    assert latency.ratio(world.program("a", second), world.program("b", second)) == pytest.approx(1)


def test_noise_is_refused_and_the_sentence_says_what_to_do():
    world, draw = World(), random.Random(0)
    noisy = lambda: draw.choice([1.0, 9.0])  # noqa: E731
    programs = {"a": world.program("a", noisy), "b": world.program("b", noisy)}
    with pytest.raises(latency.TooNoisy, match=r"ratio of b to a is known only to ± \d+%.*raise repeats") as caught:
        latency.compare(programs, clock=world.clock)
    assert str(caught.value).count(".") == 1
    assert latency.compare(programs, clock=world.clock, noise=float("inf"))["b"].low > 0


@pytest.mark.parametrize("repeats", [5, 6, 9, 15, 31])
def test_the_interval_holds_the_true_ratio_at_least_as_often_as_it_says(repeats):
    draw, held = random.Random(1), 0
    for seed in range(300):
        world = World()
        found = latency.compare(
            {
                "a": world.program("a", lambda: 1.0 * draw.lognormvariate(0, 0.1)),
                "b": world.program("b", lambda: 0.6 * draw.lognormvariate(0, 0.1)),
            },
            repeats=repeats,
            clock=world.clock,
            noise=float("inf"),
            seed=seed,
        )
        held += found["b"].low <= 0.6 <= found["b"].high
    assert abs(held - 300 * found["b"].level) < 3 * (300 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize(("n", "place"), [(5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (21, 5)])
def test_the_interval_of_a_median_is_that_of_the_sign_test(n, place):
    values = list(range(n))
    random.Random(0).shuffle(values)
    assert latency.median_interval(values) == (place, n - 1 - place)
    tail = 2 * sum(math.comb(n, k) for k in range(place + 1)) / 2**n
    assert (tail <= 0.05 or n == 5) and tail + 2 * math.comb(n, place + 1) / 2**n > 0.05
    assert latency.median_level(n) == 1 - tail and latency.median_level(5) == 0.9375


def test_one_noisy_program_leaves_the_others_reportable():
    world, draw = World(), random.Random(0)
    programs = {
        "a": world.program("a", 1.0),
        "restless": world.program("restless", lambda: draw.lognormvariate(0, 2)),
        "calm": world.program("calm", 2.0),
    }
    with pytest.raises(latency.TooNoisy, match="the ratio of restless to a") as caught:
        latency.compare(programs, clock=world.clock)
    assert set(caught.value.reportable) == {"a", "calm"} and caught.value.reportable["calm"].ratio == 2.0


def test_p95_is_that_of_single_calls():
    world, count = World(), itertools.count()
    slow = lambda: 1.0 + 9.0 * (next(count) % 10 == 3)  # noqa: E731
    programs = {"a": world.program("a", slow), "b": world.program("b", 1.0)}
    found = latency.compare(programs, clock=world.clock, calls=10)
    assert found["a"].p50 == 1.0 and found["a"].p95 == 10.0 and found["b"].ratio == pytest.approx(1 / 1.9)


def test_a_clock_that_does_not_move_is_refused():
    with pytest.raises(latency.TooNoisy, match="before the clock moved"):
        latency.compare({"a": lambda: None, "b": lambda: None}, clock=lambda: 1.0)


@pytest.mark.parametrize("broken", [False, True])
def test_threads_are_pinned_and_restored(broken):
    before, seen, world = torch.get_num_threads(), set(), World()

    def run():
        seen.add(torch.get_num_threads())
        world.now += 1
        if broken and len(seen) and world.now > 3:
            raise OSError("stopped")

    try:
        latency.compare({"a": run, "b": run}, clock=world.clock, threads=before + 1)
    except OSError:
        assert broken
    assert seen == {before + 1} and torch.get_num_threads() == before


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least two programs"):
        latency.compare({"a": lambda: None})
    both = {"a": lambda: None, "b": lambda: None}
    with pytest.raises(ValueError, match="4 turns are too few"):
        latency.compare(both, repeats=4)
    for wrong in ({"calls": 0}, {"warmup": -3}):
        with pytest.raises(ValueError, match="calls should be at least 1, and warmup at least 0"):
            latency.compare(both, **wrong)
    with pytest.raises(ValueError, match="give no ratio"):
        latency.ratio(*both.values(), repeats=0)


def test_the_real_clock_sees_which_program_does_more():
    x = torch.randn(128, 128)
    once, tenfold = (lambda: x @ x), (lambda: [x @ x for _ in range(10)])
    found = latency.compare({"once": once, "ten times": tenfold}, repeats=11, calls=3, noise=float("inf"))
    assert found["ten times"].ratio > 2
    assert latency.ratio(once, tenfold) > 2
