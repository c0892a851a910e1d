"""How many bits for which layer, when all of them together may take so many bytes? Greedy, and exactly.

Losses of layers are added, as if one layer's rounding did not care about another's; unit 05 measures how true that is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

Losses = Mapping[str, Mapping[int, float]]  # layer -> bits -> what it costs to give the layer so few bits


def size(weights: Mapping[str, int], bits: Mapping[str, int]) -> int:
    """Bytes of all codes; scales, of which every width has as many, are not counted."""
    return sum(weights[name] * bits[name] // 8 for name in weights)


def greedy(weights: Mapping[str, int], loss: Losses, budget: int, worst_first: bool = False) -> dict[str, int]:
    """Begin with the fewest bits everywhere; again and again buy the step that takes away most loss for a byte.

    A step that takes away nothing, or adds loss, is left. `worst_first` buys the step that takes away least, even if it
    adds loss, as long as bytes are left: a control.

    Raises
    ------
    ValueError
        If even the fewest bits do not fit.
    """
    bits = {name: min(loss[name]) for name in weights}
    left = budget - size(weights, bits)
    if left < 0:
        raise ValueError(f"the fewest bits already take {-left} bytes more than the budget of {budget}.")
    while True:
        steps = []
        for name, now in bits.items():
            for more in loss[name]:
                price = weights[name] * (more - now) // 8
                benefit = loss[name][now] - loss[name][more]
                if more > now and price <= left and (benefit > 0 or worst_first):
                    each = benefit / price if price else math.copysign(math.inf, benefit)  # too few weights for a byte
                    steps.append((each, name, more, price))
        if not steps:
            return bits
        _, name, more, price = min(steps) if worst_first else max(steps)
        bits[name], left = more, left - price


def exact(weights: Mapping[str, int], loss: Losses, budget: int) -> dict[str, int]:
    """The allocation with the smallest sum of losses: dynamic programming over the bytes that are spent.

    Raises
    ------
    ValueError
        If even the fewest bits do not fit.
    """
    states: dict[int, tuple[float, dict[str, int]]] = {0: (0.0, {})}  # bytes -> the least loss they can have
    for name, count in weights.items():
        longer: dict[int, tuple[float, dict[str, int]]] = {}
        for spent, (sum_, chosen) in states.items():
            for width, cost in loss[name].items():
                now = spent + count * width // 8
                if now <= budget and (now not in longer or sum_ + cost < longer[now][0]):
                    longer[now] = (sum_ + cost, chosen | {name: width})
        states = longer
    if not states:
        raise ValueError(f"the fewest bits do not fit into a budget of {budget} bytes.")
    return min(states.values(), key=lambda state: state[0])[1]
