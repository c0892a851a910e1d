"""`latency.compare_each`: only the noisy ratio is refused, and it gets one more chance; the bound stays."""

import itertools

import pytest
import torch

from helpers import latency


class World:
    """A clock that programs push forward, and how often each was called."""

    def __init__(self):
        self.now, self.calls = 0.0, {}

    def clock(self):
        return self.now

    def program(self, name, *seconds):
        """Takes these seconds, call by call, and then from the beginning."""
        took = itertools.cycle(seconds)

        def run():
            self.calls[name] = self.calls.get(name, 0) + 1
            self.now += next(took)

        return run


def trio(world, *noisy):
    return {"a": world.program("a", 1.0), "noisy": world.program("noisy", *noisy), "c": world.program("c", 0.5)}


def test_only_the_noisy_program_is_refused():
    world = World()
    found = latency.compare_each(trio(world, 1.0, 1.0, 9.0, 9.0), repeats=9, clock=world.clock)
    assert list(found) == ["a", "noisy", "c"]
    assert isinstance(found["noisy"], latency.TooNoisy) and "noisy to a" in str(found["noisy"])
    assert (found["a"].ratio, found["c"].ratio) == (1.0, 0.5)


def test_compare_still_refuses_everything():
    world = World()
    with pytest.raises(latency.TooNoisy, match="noisy to a"):
        latency.compare(trio(world, 1.0, 1.0, 9.0, 9.0), repeats=9, clock=world.clock)


def test_only_what_was_refused_is_measured_again():
    world = World()
    latency.compare_each(trio(world, 1.0, 1.0, 9.0, 9.0), repeats=9, warmup=1, clock=world.clock)
    assert world.calls == {"a": 40, "noisy": 40, "c": 20}
    world = World()
    latency.compare_each(trio(world, 1.0, 1.0, 9.0, 9.0), repeats=9, warmup=1, clock=world.clock, tries=1)
    assert world.calls == {"a": 20, "noisy": 20, "c": 20}


def test_a_program_that_calms_down_is_reported_and_the_others_keep_their_first_measurement():
    world = World()
    restless = [1.0, 1.0, 9.0, 9.0] * 5
    found = latency.compare_each(trio(world, *restless, *[2.0] * 50), repeats=9, clock=world.clock)
    assert found["noisy"].ratio == 2.0 and found["c"].ratio == 0.5
    assert world.calls["c"] == 20


def test_the_bound_is_the_one_that_was_stated():
    for noise, refused in ((0.15, True), (10.0, False)):
        world = World()
        found = latency.compare_each(trio(world, 1.0, 1.0, 9.0, 9.0), repeats=9, clock=world.clock, noise=noise)
        assert isinstance(found["noisy"], latency.TooNoisy) is refused


def test_threads_are_pinned_and_restored_and_senseless_calls_refused():
    world, before, seen = World(), torch.get_num_threads(), []
    run = world.program("either", 1.0)
    programs = dict.fromkeys("ab", lambda: (seen.append(torch.get_num_threads()), run()))
    latency.compare_each(programs, repeats=5, clock=world.clock, threads=1)
    assert set(seen) == {1} and torch.get_num_threads() == before
    for wrong, repeats in (({}, 9), ({"a": print}, 9), (programs, 4)):
        with pytest.raises(ValueError):
            latency.compare_each(wrong, repeats)
