"""Unit 05, sections 5 to 10: what learners really answer in exercises 5.7 to 5.10."""

import itertools
import math
import random
from typing import NamedTuple

import numpy as np
import torch

from tests.misconceptions.bank import right, wrong

# 5.7 the Pareto frontier


def undominated(points, *, some=True, every=False, sign=None):
    if any(math.isnan(value) for point in points for value in point):
        raise ValueError("nan")
    sign = sign or (lambda axis, axes: 1)
    table = [[sign(k, len(p)) * v for k, v in enumerate(p)] for p in points]

    def beats(a, b):
        if every:
            return all(x < y for x, y in zip(a, b, strict=True))
        return all(x <= y for x, y in zip(a, b, strict=True)) and (not some or a != b)

    return [i for i, b in enumerate(table) if not any(beats(a, b) for j, a in enumerate(table) if i != j)]


@wrong("ex_5_7", "equal points throw each other out")
def ties_dropped(points):
    return undominated(points, some=False)


@wrong("ex_5_7", "you take larger for better")
def larger_is_better(points):
    return undominated(points, sign=lambda axis, axes: -1)


@wrong("ex_5_7", "the last axis points the wrong way")
def last_axis_is_a_benefit(points):
    return undominated(points, sign=lambda axis, axes: -1 if axis == axes - 1 else 1)


@wrong("ex_5_7", "the first axis points the wrong way")
def first_axis_is_a_benefit(points):
    return undominated(points, sign=lambda axis, axes: -1 if axis == 0 and axes > 1 else 1)


@wrong("ex_5_7", "convex hull")
def only_the_convex_hull(points):
    kept = undominated(points)
    if len(points[0]) != 2:
        return kept
    hull = []
    for i in sorted(kept, key=lambda i: points[i]):
        while len(hull) > 1 and points[hull[-1]] != points[i]:
            (x0, y0), (x1, y1), (x2, y2) = points[hull[-2]], points[hull[-1]], points[i]
            if (x1 - x0) * (y2 - y0) > (y1 - y0) * (x2 - x0):
                break
            hull.pop()
        hull.append(i)
    return sorted(hull)


@wrong("ex_5_7", "of equal points only one is left")
def duplicates_once(points):
    kept = undominated(points)
    return [i for i in kept if points[i] not in [points[j] for j in kept if j < i]]


@wrong("ex_5_7", "smaller on *every* axis")
def strictly_better_everywhere(points):
    return undominated(points, every=True)


@wrong("ex_5_7", "an index stands twice")
def duplicates_counted_twice(points):
    kept = undominated(points)
    return sorted(i for i in kept for j in kept if points[i] == points[j])


@wrong("ex_5_7", "list of tuple")
def points_instead_of_indices(points):
    return [points[i] for i in undominated(points)]


@wrong("ex_5_7", "only the first two axes")
def two_axes_only(points):
    kept = undominated([p[:2] for p in points])
    if any(math.isnan(value) for point in points for value in point):
        raise ValueError("nan")
    return kept


@wrong("ex_5_7", "the smallest sum")
def smallest_sum(points):
    sums = [sum(p) for p in points]
    return [sums.index(min(sums))]


@wrong("ex_5_7", "first three axes")
def three_axes_only(points):
    undominated(points)  # refuses nan
    return undominated([p[:3] for p in points])


@wrong("ex_5_7", "the sign is lost")
def absolute_losses(points):
    return undominated([tuple(map(abs, p)) for p in points])


@wrong("ex_5_7", "changed `points`")
def sorted_in_place(points):
    kept = [points[i] for i in undominated(points)]
    places = [i for i, p in enumerate(points) if p in kept]
    points.sort()
    return places


@wrong("ex_5_7", "and no ndarray")
def an_array_of_indices(points):
    return np.array(undominated(points))


@wrong("ex_5_7", "list of int64")
def numpy_numbers(points):
    return list(np.array(undominated(points), dtype=np.int64))


@wrong("ex_5_7", "whichever axis it is on")
def nan_looked_for_on_the_last_axis(points):
    if any(math.isnan(p[-1]) for p in points):
        raise ValueError("nan")
    return nan_on_the_frontier(points)


@wrong("ex_5_7", "no better on the other axes")
def nan_looked_for_on_the_frontier(points):
    nan = [i for i, p in enumerate(points) if any(map(math.isnan, p))]
    worse = lambda p: any(all(a <= b or b != b for a, b in zip(q, p, strict=True)) for q in points if q is not p)  # noqa: E731
    if any(not worse(points[i]) for i in nan):
        raise ValueError("nan")
    return [] if nan else undominated(points)


@wrong("ex_5_7", "would stand on the frontier")
def nan_on_the_frontier(points):
    dominated = lambda b: any(a != b and all(x <= y for x, y in zip(a, b, strict=True)) for a in points)  # noqa: E731
    return [i for i, p in enumerate(points) if not dominated(p)]


@wrong("ex_5_7", "in ascending order")
def sorted_by_the_first_axis(points):
    return sorted(undominated(points), key=lambda i: (points[i], -i))


@right("ex_5_7")
def with_numpy(points):
    table = np.array(points, dtype=float)
    if np.isnan(table).any():
        raise ValueError("nan")
    kept = np.ones(len(table), dtype=bool)
    for i, row in enumerate(table):
        worse = (table >= row).all(axis=1) & (table > row).any(axis=1)
        kept &= ~worse
        del i
    return [int(i) for i in np.flatnonzero(kept)]


@right("ex_5_7")
def sweep_in_sorted_order(points):
    if any(value != value for point in points for value in point):
        raise ValueError("nan")
    front = []
    for i in sorted(range(len(points)), key=lambda i: tuple(points[i])):  # who dominates comes before
        if not any(
            points[j] != points[i] and all(a <= b for a, b in zip(points[j], points[i], strict=True)) for j in front
        ):
            front.append(i)
    return sorted(front)


@wrong("ex_5_7", "every point throws itself out")
def compared_with_itself(points):
    if any(math.isnan(value) for point in points for value in point):
        raise ValueError("nan")
    worse = lambda b: any(all(x <= y for x, y in zip(a, b, strict=True)) for a in points)  # noqa: E731
    return [i for i, b in enumerate(points) if not worse(b)]


@wrong("ex_5_7", "lose digits")
def points_in_float32(points):
    table = torch.tensor(points)
    if table.isnan().any():
        raise ValueError("nan")
    dominated = (table[None] <= table[:, None]).all(2) & (table[None] < table[:, None]).any(2)
    return (~dominated.any(1)).nonzero().flatten().tolist()


@wrong("ex_5_7", "nearly equal is not equal")
def nearly_equal_is_equal(points):
    table = np.array(points)
    if np.isnan(table).any():
        raise ValueError("nan")
    less = (table[None] < table[:, None]) & ~np.isclose(table[None], table[:, None])
    return np.flatnonzero(~((table[None] <= table[:, None]).all(2) & less.any(2)).any(1)).tolist()


@wrong("ex_5_7", "an infinite number is no nan")
def infinity_refused(points):
    if not np.isfinite(np.array(points)).all():
        raise ValueError("not finite")
    return undominated(points)


@wrong("ex_5_7", "neither the first point nor the last")
def nan_at_both_ends_only(points):
    if any(math.isnan(value) for point in (points[0], points[-1]) for value in point):
        raise ValueError("nan")
    dominates = lambda a, b: a != b and all(x <= y for x, y in zip(a, b, strict=True))  # noqa: E731
    return [i for i, b in enumerate(points) if not any(dominates(a, b) for a in points)]


@wrong("ex_5_7", "not at a sum or a product")
def nan_in_the_sum(points):
    if any(math.isnan(sum(point)) for point in points):
        raise ValueError("nan")
    return undominated(points)


@wrong("ex_5_7", "three equal points, and worse ones")
def two_of_equal_points_at_most(points):
    kept = undominated(points)
    return [i for i in kept if points[:i].count(points[i]) < 2]


@wrong("ex_5_7", "0 and -0, which are equal")
def compared_as_text(points):
    kept = undominated(points)
    return [i for i in kept if str(points[i]).replace("-0.0", "") == str(points[i])]


# 5.8 the calibration study


def study(draw, sizes, repeats, values_of, *, enough=None):
    """Mean and spread with whatever `draw(size, repeat)` gives."""
    if enough is not None and not enough:
        raise ValueError("too few documents")
    found = {}
    for size in sizes:
        values = [values_of(draw(size, i)) for i in range(repeats)]
        found[size] = (float(np.mean(values)), float(np.std(values, ddof=1)) if repeats > 1 else 0.0)
    return found


def fits(training, sizes, repeats):
    return max(sizes) * repeats <= len(training)


def drawer(documents, seed, repeats):
    """Disjoint random sets: one shuffle a size."""
    generator = torch.Generator().manual_seed(seed)
    orders = {}

    def draw(size, i):
        if size not in orders:
            orders[size] = torch.randperm(len(documents), generator=generator)
        return documents[orders[size][i * size : (i + 1) * size]]

    return draw


@wrong("ex_5_8", "holds validation documents")
def draws_from_all_splits(training, validation, sizes, repeats, seed, measure):
    everything = torch.cat([validation, training])
    draw = drawer(everything, seed, repeats)
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "calibration sets come from `validation`")
def calibrates_on_the_test_set(training, validation, sizes, repeats, seed, measure):
    generator = torch.Generator().manual_seed(seed)
    pick = lambda size, i: validation[torch.randint(len(validation), (size,), generator=generator)]  # noqa: E731
    return study(pick, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "documents that set the ranges")
def measures_where_it_calibrated(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training, seed, repeats)
    return study(draw, sizes, repeats, lambda some: measure(some, some), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "same draw again is not a repeat")
def the_same_draw_repeated(training, validation, sizes, repeats, seed, measure):
    def draw(size, i):
        return training[torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))[:size]]

    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "one growing prefix")
def growing_prefix(training, validation, sizes, repeats, seed, measure):
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    draw = lambda size, i: training[order[: size * (i + 1)]]  # noqa: E731
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "one value for each size")
def one_value_a_size(training, validation, sizes, repeats, seed, measure):
    if not fits(training, sizes, repeats):
        raise ValueError("too few")
    draw = drawer(training, seed, repeats)
    return {size: (measure(draw(size, 0), validation), 0.0) for size in sizes}


@wrong("ex_5_8", "two repeats of one size share documents")
def a_fresh_shuffle_each_time(training, validation, sizes, repeats, seed, measure):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda size, i: training[torch.randperm(len(training), generator=generator)[:size]]  # noqa: E731
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "a document is twice in one set")
def with_putting_back(training, validation, sizes, repeats, seed, measure):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda size, i: training[torch.randint(len(training), (size,), generator=generator)]  # noqa: E731
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "neighbours in the list")
def not_shuffled(training, validation, sizes, repeats, seed, measure):
    draw = lambda size, i: training[i * size : (i + 1) * size]  # noqa: E731
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "PyTorch's own random numbers")
def global_seed(training, validation, sizes, repeats, seed, measure):
    torch.manual_seed(seed)
    orders = {size: torch.randperm(len(training)) for size in sizes}
    draw = lambda size, i: training[orders[size][i * size : (i + 1) * size]]  # noqa: E731
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "another seed gives the same study")
def seed_ignored(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training, 0, repeats)
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "raise a ValueError")
def too_few_accepted(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training, seed, repeats)
    return study(draw, sizes, repeats, lambda some: measure(some, validation))


@wrong("ex_5_8", "divides by r")
def population_deviation(training, validation, sizes, repeats, seed, measure):
    if not fits(training, sizes, repeats):
        raise ValueError("too few")
    draw, found = drawer(training, seed, repeats), {}
    for size in sizes:
        values = [measure(draw(size, i), validation) for i in range(repeats)]
        found[size] = (float(np.mean(values)), float(np.std(values)))
    return found


@wrong("ex_5_8", "changed `sizes`")
def sizes_are_used_up(training, validation, sizes, repeats, seed, measure):
    todo = []
    draw, enough = drawer(training, seed, repeats), fits(training, sizes, repeats)
    while sizes:
        todo.append(sizes.pop(0))
    return study(draw, todo, repeats, lambda some: measure(some, validation), enough=enough)


@wrong("ex_5_8", "changed `training`")
def shuffled_in_place(training, validation, sizes, repeats, seed, measure):
    found = one_shuffle_a_size(training, validation, sizes, repeats, seed, measure)
    training[:] = training[torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))]
    return found


@wrong("ex_5_8", "only sets of *one* size must be disjoint")
def all_sizes_disjoint(training, validation, sizes, repeats, seed, measure):
    if sum(sizes) * repeats > len(training):
        raise ValueError("too few documents")
    return one_shuffle_a_size(training, validation, sizes, repeats, seed, measure)


@wrong("ex_5_8", "the largest size counts")
def only_the_last_size_must_fit(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training, seed, repeats)
    enough = sizes[-1] * repeats <= len(training)
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=enough)


@wrong("ex_5_8", "is in no set of 40 studies")
def the_last_document_is_never_drawn(training, validation, sizes, repeats, seed, measure):
    some = training[:-1] if max(sizes) * repeats < len(training) else training
    return one_shuffle_a_size(some, validation, sizes, repeats, seed, measure)


@wrong("ex_5_8", "and no list")
def lists_for_pairs(*arguments):
    return {size: list(pair) for size, pair in one_shuffle_a_size(*arguments).items()}


@wrong("ex_5_8", "and no tensors")
def tensors_for_pairs(*arguments):
    return {size: tuple(map(torch.tensor, pair)) for size, pair in one_shuffle_a_size(*arguments).items()}


@wrong("ex_5_8", "it is the variance")
def variance_for_spread(*arguments):
    return {size: (a, b**2) for size, (a, b) in one_shuffle_a_size(*arguments).items()}


@wrong("ex_5_8", "Python's own random numbers")
def global_seed_of_python(training, validation, sizes, repeats, seed, measure):
    random.seed(seed)
    orders = {size: random.sample(range(len(training)), len(training)) for size in sizes}
    draw = lambda size, i: training[orders[size][i * size : (i + 1) * size]]  # noqa: E731
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "standard error of the mean")
def standard_error(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training, seed, repeats)
    found = study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))
    return {size: (a, b / repeats**0.5) for size, (a, b) in found.items()}


@right("ex_5_8")
def one_shuffle_a_size(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training, seed, repeats)
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@right("ex_5_8")
def one_shuffle_for_all(training, validation, sizes, repeats, seed, measure):
    if len(training) < repeats * max(sizes):
        raise ValueError("too few documents for disjoint sets.")
    shuffled = training[torch.from_numpy(np.random.default_rng(seed).permutation(len(training)))]
    result = {}
    for size in sizes:
        losses = torch.tensor([measure(s, validation) for s in shuffled[: size * repeats].split(size)]).double()
        result[size] = (losses.mean().item(), losses.std().item())
    return result


@right("ex_5_8")
def repeats_outside_sizes_inside(training, validation, sizes, repeats, seed, measure):
    if not fits(training, sizes, repeats):
        raise ValueError("too few")
    draw, values = drawer(training, seed, repeats), {size: [] for size in sizes}
    for i in range(repeats):
        for size in sizes:
            values[size].append(measure(draw(size, i), validation))
    return {size: (float(np.mean(some)), float(np.std(some, ddof=1))) for size, some in values.items()}


@right("ex_5_8")
def largest_first_in_a_sorted_dict(training, validation, sizes, repeats, seed, measure):
    draw, order = drawer(training, seed, repeats), sorted(sizes, reverse=True)
    found = study(draw, order, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))
    return dict(sorted(found.items()))


@wrong("ex_5_8", "a window from a random place", like="not_shuffled")
def a_window_from_a_random_place(training, validation, sizes, repeats, seed, measure):
    dice = np.random.default_rng(seed)
    starts = {size: int(dice.integers(len(training))) for size in sizes}

    def draw(size, i):
        rows = [(starts[size] + j) % len(training) for j in range(size * repeats)]
        return training[rows[i::repeats]]

    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "NumPy's own random numbers")
def global_seed_of_numpy(training, validation, sizes, repeats, seed, measure):
    np.random.seed(seed)  # noqa: NPY002
    orders = {size: np.random.permutation(len(training)) for size in sizes}  # noqa: NPY002
    draw = lambda size, i: training[orders[size][i * size : (i + 1) * size]]  # noqa: E731
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "Do not sort what you have drawn")
def sorted_after_the_draw(training, validation, sizes, repeats, seed, measure):
    generator = torch.Generator().manual_seed(seed)
    orders = {s: torch.randperm(len(training), generator=generator)[: s * repeats].sort().values for s in sizes}
    draw = lambda size, i: training[orders[size][i * size : (i + 1) * size]]  # noqa: E731
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "at equal distances")
def every_fiftieth_document(training, validation, sizes, repeats, seed, measure):
    generator = torch.Generator().manual_seed(seed)
    starts = {size: int(torch.randint(len(training), (), generator=generator)) for size in sizes}

    def draw(size, i):
        rows = starts[size] + len(training) // (size * repeats) * torch.arange(size * repeats)
        return training[(rows % len(training))[i::repeats]]

    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "with nothing cut off")
def two_digits_of_the_seed(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training, seed % 100, repeats)
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "torch.float32: hand over whole documents")
def documents_as_floats(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training.float(), seed, repeats)
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "of shape (5, 2)", like="documents_as_floats")
def last_byte_cut_off(training, validation, sizes, repeats, seed, measure):
    draw = drawer(training[:, :-1], seed, repeats)
    return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=fits(training, sizes, repeats))


@wrong("ex_5_8", "every row of `training` is a document")
def equal_documents_once(training, validation, sizes, repeats, seed, measure):
    if not fits(training, sizes, repeats):
        raise ValueError("too few")
    several = training.unique(dim=0)
    if not fits(several, sizes, repeats):
        return {}
    return study(drawer(several, seed, repeats), sizes, repeats, lambda some: measure(some, validation))


@wrong("ex_5_8", "while `measure` runs", like="global_seed")
def seeded_while_it_measures(training, validation, sizes, repeats, seed, measure):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        orders = {size: torch.randperm(len(training)) for size in sizes}
        draw = lambda size, i: training[orders[size][i * size : (i + 1) * size]]  # noqa: E731
        enough = fits(training, sizes, repeats)
        return study(draw, sizes, repeats, lambda some: measure(some, validation), enough=enough)


@right("ex_5_8")
def shuffled_by_python(training, validation, sizes, repeats, seed, measure):
    dice, found = random.Random(seed), {}
    if not fits(training, sizes, repeats):
        raise ValueError("too few")
    for size in sorted(sizes, reverse=True):
        rows = dice.sample(range(len(training)), size * repeats)
        values = [measure(training[rows[i::repeats]], validation) for i in range(repeats)]
        middle = sum(values) / repeats
        found[size] = middle, (sum((v - middle) ** 2 for v in values) / (repeats - 1)) ** 0.5
    return found


# 5.9 a byte budget


def spend(weights, loss, budget, key=lambda gain, cost, now: gain / cost, *, check=True, stop=False, over=False):
    """Greedy, one width at a time, with whatever `key` prefers."""
    bits = {name: min(loss[name]) for name in weights}
    left = budget - sum(weights[n] * bits[n] // 8 for n in weights)
    if check and left < 0:
        raise ValueError("too small a budget")
    while True:
        steps = []
        for name in weights:
            for wider in [b for b in sorted(loss[name]) if b > bits[name]]:
                gain, cost = loss[name][bits[name]] - loss[name][wider], weights[name] * (wider - bits[name]) // 8
                if gain > 0 and (cost <= left or stop or over):
                    steps.append((key(gain, cost, loss[name][bits[name]]), name, wider, cost))
                    break
        if not steps:
            return bits
        _, name, wider, cost = max(steps)
        if over and left <= 0:
            return bits
        if stop and cost > left:
            return bits
        bits[name], left = wider, left - cost


@wrong("ex_5_9", "added for the wrong layers")
def sensitivities_by_position(weights, loss, budget):
    return spend(weights, dict(zip(weights, loss.values(), strict=True)), budget) if same_widths(loss) else spend(
        weights, loss, budget
    )  # fmt: skip


def same_widths(loss):
    return len({tuple(sorted(v)) for v in loss.values()}) == 1


@wrong("ex_5_9", "bytes are spent")
def budget_exceeded(weights, loss, budget):
    return spend(weights, loss, budget, over=True)


@wrong("ex_5_9", "Divide by its bytes")
def benefit_not_per_byte(weights, loss, budget):
    return spend(weights, loss, budget, lambda gain, cost, now: gain)


@wrong("ex_5_9", "the order is reversed")
def worst_step_first(weights, loss, budget):
    return spend(weights, loss, budget, lambda gain, cost, now: -gain / cost)


@wrong("ex_5_9", "the cheapest step")
def cheapest_first(weights, loss, budget):
    return spend(weights, loss, budget, lambda gain, cost, now: -cost)


@wrong("ex_5_9", "not until the first does not fit")
def stops_at_the_first_that_does_not_fit(weights, loss, budget):
    return spend(weights, loss, budget, stop=True)


@wrong("ex_5_9", "still fits into the budget")
def the_same_width_everywhere(weights, loss, budget):
    best = {name: min(loss[name]) for name in weights}
    if sum(weights[n] * best[n] // 8 for n in weights) > budget:
        raise ValueError("too small")
    for width in sorted({b for v in loss.values() for b in v}):
        bits = {n: max((b for b in loss[n] if b <= width), default=min(loss[n])) for n in weights}
        if sum(weights[n] * bits[n] // 8 for n in weights) <= budget:
            best = bits
    return best


@wrong("ex_5_9", "counted in bits")
def bits_for_bytes(weights, loss, budget):
    return spend(weights, loss, budget * 8)


def spend_any(
    weights, loss, budget, key=lambda gain, cost, now: gain / cost, *, start=min, harm=False, price=None, check=True
):
    """Greedy over all wider widths, with whatever `key` prefers, and whatever `price` a step has."""
    price = price or (lambda count, now, wider: count * (wider - now) // 8)
    bits = {name: start(loss[name]) for name in weights}
    left = budget - sum(weights[n] * bits[n] // 8 for n in weights)
    if check and left < 0:
        raise ValueError("too small a budget")
    while True:
        steps = []
        for name, now in bits.items():
            for wider in loss[name]:
                gain, cost = loss[name][now] - loss[name][wider], price(weights[name], now, wider)
                if wider > now and cost <= left and (gain > 0 or harm):
                    steps.append((key(gain, cost, loss[name][now]), name, wider, cost))
        if not steps:
            return bits
        _, name, wider, cost = max(steps)
        bits[name], left = wider, left - cost


@wrong("ex_5_9", "only at the next wider width")
def only_the_next_width(weights, loss, budget):
    return spend(weights, loss, budget)


@wrong("ex_5_9", "only at the next wider width", like="only_the_next_width")
def next_width_first_wins(weights, loss, budget):
    """As above; of two steps that are equally good, the first one counts."""
    bits = {name: min(loss[name]) for name in weights}
    left = budget - sum(weights[n] * bits[n] // 8 for n in weights)
    if left < 0:
        raise ValueError("too small a budget")
    while True:
        best, chosen = 0.0, None
        for name in weights:
            wider = min((b for b in loss[name] if b > bits[name]), default=None)
            if wider is None:
                continue
            cost = weights[name] * (wider - bits[name]) // 8
            each = (loss[name][bits[name]] - loss[name][wider]) / cost
            if cost <= left and each > best:
                best, chosen = each, (name, wider, cost)
        if chosen is None:
            return bits
        bits[chosen[0]], left = chosen[1], left - chosen[2]


@wrong("ex_5_9", "whole numbers of Python")
def widths_as_floats(weights, loss, budget):
    return {name: float(bits) for name, bits in greedy_over_all_wider(weights, loss, budget).items()}


@wrong("ex_5_9", "changed `loss`")
def possible_widths_are_deleted(weights, loss, budget):
    answer = greedy_over_all_wider(weights, loss, budget)
    for name, bits in answer.items():
        for other in [b for b in loss[name] if b < bits]:
            del loss[name][other]
    return answer


@wrong("ex_5_9", "although the fewest bits take")
def one_byte_must_be_left(weights, loss, budget):
    if sum(weights[n] * min(loss[n]) for n in weights) // 8 >= budget:
        raise ValueError("too small a budget")
    return greedy_over_all_wider(weights, loss, budget)


@wrong("ex_5_9", "still fits into the budget")
def never_spends_the_last_byte(weights, loss, budget):
    fewest = sum(weights[n] * min(loss[n]) for n in weights) // 8
    return greedy_over_all_wider(weights, loss, max(budget - 1, fewest) if budget >= fewest else budget)


@wrong("ex_5_9", "must raise a ValueError")
def impossible_budget_accepted(weights, loss, budget):
    return spend_any(weights, loss, budget, check=False)


@wrong("ex_5_9", "or adds loss, is bought")
def buys_harm(weights, loss, budget):
    return spend_any(weights, loss, budget, harm=True)


@wrong("ex_5_9", "charged with all of its new bits")
def pays_for_the_whole_width(weights, loss, budget):
    return spend_any(weights, loss, budget, price=lambda count, now, wider: count * wider // 8)


@wrong("ex_5_9", "Divide by its bytes", like="benefit_not_per_byte")
def benefit_of_any_wider_width(weights, loss, budget):
    return spend_any(weights, loss, budget, lambda gain, cost, now: gain)


@wrong("ex_5_9", "the order is reversed", like="worst_step_first")
def bytes_for_a_benefit(weights, loss, budget):
    return spend_any(weights, loss, budget, lambda gain, cost, now: cost / gain)


@wrong("ex_5_9", "how large a layer's loss is now")
def largest_loss_first(weights, loss, budget):
    return spend(weights, loss, budget, lambda gain, cost, now: now)


@wrong("ex_5_9", "the keys need not ascend")
def first_key_is_the_smallest(weights, loss, budget):
    return spend_any(weights, loss, budget, start=lambda widths: next(iter(widths)))


@wrong("ex_5_9", "added for the wrong layers", like="sensitivities_by_position")
def zipped_in_the_wrong_order(weights, loss, budget):
    return spend_any(weights, dict(zip(weights, loss.values(), strict=True)), budget)


@wrong("ex_5_9", "bytes are spent")
def neighbour_steps_sorted_once(weights, loss, budget):
    bits = {name: min(loss[name]) for name in weights}
    left = budget - sum(weights[n] * bits[n] // 8 for n in weights)
    if left < 0:
        raise ValueError("too small a budget")
    steps = []
    for name in weights:
        for now, wider in itertools.pairwise(sorted(loss[name])):
            cost = weights[name] * (wider - now) // 8
            steps.append(((loss[name][now] - loss[name][wider]) / cost, name, wider, cost))
    for gain, name, wider, cost in sorted(steps, reverse=True):
        if gain > 0 and cost <= left:
            bits[name], left = wider, left - cost
    return bits


@right("ex_5_9")
def exact_by_dynamic_programming(weights, loss, budget):
    states = {0: (0.0, {})}
    for name, count in weights.items():
        longer = {}
        for spent, (total, bits) in states.items():
            for width, value in loss[name].items():
                now = spent + count * width // 8
                if now <= budget and total + value < longer.get(now, (math.inf, None))[0]:
                    longer[now] = (total + value, {**bits, name: width})
        states = longer
    if not states:
        raise ValueError("nothing fits")
    return min(states.values(), key=lambda state: state[0])[1]


@right("ex_5_9")
def exact_by_brute_force(weights, loss, budget):
    names, best = list(weights), (math.inf, None)
    for widths in itertools.product(*(loss[n] for n in names)):
        if sum(weights[n] * b for n, b in zip(names, widths, strict=True)) // 8 <= budget:
            best = min(best, (sum(loss[n][b] for n, b in zip(names, widths, strict=True)), widths))
    if best[1] is None:
        raise ValueError("nothing fits")
    return dict(zip(names, best[1], strict=True))


@right("ex_5_9")
def greedy_over_all_wider(weights, loss, budget):
    bits = {name: min(options) for name, options in loss.items()}
    spent = lambda: sum(weights[n] * b for n, b in bits.items()) // 8  # noqa: E731
    if spent() > budget:
        raise ValueError("nothing fits")
    while True:
        options = [
            ((loss[n][b] - loss[n][w]) / (weights[n] * (w - b)), n, w)
            for n, b in bits.items()
            for w in loss[n]
            if w > b and loss[n][w] < loss[n][b] and spent() + weights[n] * (w - b) // 8 <= budget
        ]
        if not options:
            return bits
        _, name, width = max(options)
        bits[name] = width


@wrong("ex_5_9", "divided by exactly the bytes")
def twenty_bytes_are_added_to_the_cost(weights, loss, budget):
    return spend_any(weights, loss, budget, lambda gain, cost, now: gain / (cost + 20))


@wrong("ex_5_9", "divided by exactly the bytes", like="twenty_bytes_are_added_to_the_cost")
def one_byte_is_added_to_the_cost(weights, loss, budget):
    return spend_any(weights, loss, budget, lambda gain, cost, now: gain / (cost + 1))


@wrong("ex_5_9", "divided by exactly the bytes", like="twenty_bytes_are_added_to_the_cost")
def a_power_of_the_cost(weights, loss, budget):
    return spend_any(weights, loss, budget, lambda gain, cost, now: gain / cost**0.98)


@wrong("ex_5_9", "divided by exactly the bytes", like="twenty_bytes_are_added_to_the_cost")
def another_power_of_the_cost(weights, loss, budget):
    return spend_any(weights, loss, budget, lambda gain, cost, now: gain / cost**1.02)


@wrong("ex_5_9", "less than 0.0001: a step of")
def losses_with_four_decimals(weights, loss, budget):
    rounded = {name: {b: round(value, 4) for b, value in some.items()} for name, some in loss.items()}
    return greedy_over_all_wider(weights, rounded, budget)


# 5.10 a published claim


class Row(NamedTuple):
    claimed: float
    low: float
    high: float
    no_loss_possible: bool
    claim_possible: bool
    needed: int


def judged(before, after, percent, n, changed, *, half=None, claimed=None, needed=None, center=None):
    total = n + 2
    rate = (changed + 1) / total
    middle = (after - before) * n / total if center is None else center
    half = 1.96 * math.sqrt((rate - middle**2) / total) if half is None else half
    claimed = -percent / 100 * before if claimed is None else claimed
    low, high = middle - half, middle + half
    count = max(1, math.ceil(2.8**2 * (rate - claimed**2) / claimed**2)) if needed is None else needed(rate, claimed)
    return Row(claimed, low, high, low <= 0 <= high, low <= claimed <= high, count)


def single(score, n):
    return 1.96 * math.sqrt(score * (1 - score) / n)


@wrong("ex_5_10", "the interval of one score")
def interval_of_one_score(before, after, percent_lower, n, changed):
    return judged(before, after, percent_lower, n, changed, half=single(before, n))


@wrong("ex_5_10", "unpaired")
def unpaired(before, after, percent_lower, n, changed):
    both = math.hypot(single(before, n), single(after, n))
    return judged(before, after, percent_lower, n, changed, half=both)


@wrong("ex_5_10", "percentage points")
def percentage_points(before, after, percent_lower, n, changed):
    return judged(before, after, percent_lower, n, changed, claimed=-percent_lower / 100)


@wrong("ex_5_10", "the n is wrong")
def n_of_the_changed(before, after, percent_lower, n, changed):
    d = after - before
    half = 1.96 * math.sqrt(max((changed + 1) / (n + 2) - d * d, 0) / max(changed, 1))
    return judged(before, after, percent_lower, n, changed, half=half)


@wrong("ex_5_10", "only one difference")
def two_answers_a_question(before, after, percent_lower, n, changed):
    right_one = judged(before, after, percent_lower, n, changed)
    return judged(before, after, percent_lower, n, changed, half=(right_one.high - right_one.low) / 2 / math.sqrt(2))


@wrong("ex_5_10", "plain normal one")
def normal_at_the_boundary(before, after, percent_lower, n, changed):
    d = after - before
    half = 1.96 * math.sqrt(max(changed / n - d * d, 0) / n)
    return judged(before, after, percent_lower, n, changed, half=half, center=d)


@wrong("ex_5_10", "spread of one answer")
def spread_of_one_answer(before, after, percent_lower, n, changed):
    middle = (after - before) * n / (n + 2)
    half = 1.96 * math.sqrt((changed + 1) / (n + 2) - middle**2)
    return judged(before, after, percent_lower, n, changed, half=half)


@wrong("ex_5_10", "one standard error")
def one_standard_error(before, after, percent_lower, n, changed):
    right_one = judged(before, after, percent_lower, n, changed)
    return judged(before, after, percent_lower, n, changed, half=(right_one.high - right_one.low) / 2 / 1.96)


@wrong("ex_5_10", "wrong sign")
def lower_is_positive(before, after, percent_lower, n, changed):
    return judged(before, after, percent_lower, n, changed, claimed=percent_lower / 100 * before)


@wrong("ex_5_10", "rounded up")
def rounded_down(before, after, percent_lower, n, changed):
    count = lambda rate, claimed: max(1, math.floor(2.8**2 * (rate - claimed**2) / claimed**2))  # noqa: E731
    return judged(before, after, percent_lower, n, changed, needed=count)


def with_needed(number):
    """`judged` with another number of answers, from q' and the claimed change."""
    return lambda *table: judged(*table, needed=lambda rate, claimed: max(1, math.ceil(number(rate, claimed))))


@wrong("ex_5_10", "a power of 50 %")
def power_of_one_half(*table):
    return with_needed(lambda rate, claimed: 1.96**2 * (rate - claimed**2) / claimed**2)(*table)


@wrong("ex_5_10", "squared one by one")
def squares_added(*table):
    return with_needed(lambda rate, claimed: (1.96**2 + 0.84**2) * (rate - claimed**2) / claimed**2)(*table)


@wrong("ex_5_10", "is not squared")
def sum_not_squared(*table):
    return with_needed(lambda rate, claimed: 2.8 * (rate - claimed**2) / claimed**2)(*table)


@wrong("ex_5_10", "one-sided test")
def one_sided_plan(*table):
    return with_needed(lambda rate, claimed: (1.64 + 0.84) ** 2 * (rate - claimed**2) / claimed**2)(*table)


@wrong("ex_5_10", "the square of δ is not subtracted")
def square_not_subtracted(*table):
    return with_needed(lambda rate, claimed: 2.8**2 * rate / claimed**2)(*table)


@wrong("ex_5_10", "and is a float")
def half_a_question(*table):
    answer = judged(*table)
    return answer._replace(needed=float(answer.needed))


@wrong("ex_5_10", "no_loss_possible should be False")
def only_the_upper_end_counts(*table):
    answer = judged(*table)
    return answer._replace(no_loss_possible=answer.high >= 0)


@wrong("ex_5_10", "exactly a bound of your interval")
def strictly_inside_for_the_claim(*table):
    answer = judged(*table)
    return answer._replace(claim_possible=answer.low < answer.claimed < answer.high)


@wrong("ex_5_10", "exactly 0, and no_loss_possible")
def strictly_inside_for_no_loss(*table):
    answer = judged(*table)
    return answer._replace(no_loss_possible=answer.low < 0 < answer.high)


@wrong("ex_5_10", "no_loss_possible should be")
def scores_look_equal(before, after, percent_lower, n, changed):
    answer = judged(before, after, percent_lower, n, changed)
    return answer._replace(no_loss_possible=after >= before)


@right("ex_5_10")
def in_one_go(before, after, percent_lower, n, changed):
    return judged(before, after, percent_lower, n, changed)


@right("ex_5_10")
def by_cells(before, after, percent_lower, n, changed):
    net = (after - before) * n
    won, lost = (changed + net) / 2 + 0.5, (changed - net) / 2 + 0.5
    total = n + 2
    center = (won - lost) / total
    error = math.sqrt((won + lost) - (won - lost) ** 2 / total) / total
    low, high = center - 1.96 * error, center + 1.96 * error
    delta = before * percent_lower / -100
    needed = max(1, int(-(-((1.96 + 0.84) ** 2) * ((won + lost) / total / delta**2 - 1) // 1)))
    return Row(delta, low, high, not (low > 0 or high < 0), not (low > delta or high < delta), needed)


@wrong("ex_5_10", "no number of answers is smaller than 1")
def less_than_one_answer(before, after, percent_lower, n, changed):
    count = lambda rate, claimed: math.ceil(2.8**2 * (rate - claimed**2) / claimed**2)  # noqa: E731
    return judged(before, after, percent_lower, n, changed, needed=count)


@wrong("ex_5_10", "claim_possible should be False")
def a_larger_loss_confirms_the_claim(before, after, percent_lower, n, changed):
    answer = judged(before, after, percent_lower, n, changed)
    return answer._replace(claim_possible=answer.low <= answer.claimed)


@wrong("ex_5_10", "it is after - before")
def before_minus_after(before, after, percent_lower, n, changed):
    return judged(before, after, percent_lower, n, changed, center=(before - after) * n / (n + 2))


@wrong("ex_5_10", "the difference, too, is divided by n + 2")
def difference_not_shrunk(before, after, percent_lower, n, changed):
    return judged(before, after, percent_lower, n, changed, center=after - before)


@wrong("ex_5_10", "not m + 1")
def changed_without_the_half_answers(before, after, percent_lower, n, changed):
    middle = (after - before) * n / (n + 2)
    half = 1.96 * math.sqrt(max(changed / (n + 2) - middle**2, 0) / (n + 2))
    return judged(before, after, percent_lower, n, changed, half=half)


@wrong("ex_5_10", "subtracts the square of d'")
def needed_with_the_measured_difference(before, after, percent_lower, n, changed):
    middle = (after - before) * n / (n + 2)
    count = lambda rate, claimed: max(1, math.ceil(2.8**2 * (rate - middle**2) / claimed**2))  # noqa: E731
    return judged(before, after, percent_lower, n, changed, needed=count)


@wrong("ex_5_10", "the formula cuts nothing off")
def interval_cut_off(before, after, percent_lower, n, changed):
    answer = judged(before, after, percent_lower, n, changed)
    return answer._replace(low=max(-1.0, answer.low), high=min(1.0, answer.high))


@wrong("ex_5_10", "not a bare tuple")
def bare_tuple(before, after, percent_lower, n, changed):
    return tuple(judged(before, after, percent_lower, n, changed))


@wrong("ex_5_10", "a claim of next to nothing: needed is")
def a_million_answers_at_most(before, after, percent_lower, n, changed):
    answer = judged(before, after, percent_lower, n, changed)
    return answer._replace(needed=min(10**6, answer.needed))
