"""The network of unit 02: its examples are what they say, it learns, and rounding it costs what it should."""

import torch

from helpers import data, next_byte, rounding


def test_examples_are_eight_bytes_and_the_next():
    ids, targets = next_byte.examples("held_out", documents=3, length=20)
    assert ids.shape == (3 * 12, 8) and targets.shape == (36,)
    first = data.windows("held_out", 3, 20)[0]
    assert torch.equal(ids[0], first[:8]) and targets[0] == first[8]
    assert torch.equal(ids[11], first[11:19]) and targets[11] == first[19]


def test_it_learns_and_rounding_costs_more_with_fewer_bits():
    ids, targets = next_byte.examples("training", documents=200)
    torch.manual_seed(0)
    net = next_byte.NextByteNet()
    before = next_byte.bits(net, ids, targets).mean()
    next_byte.fit(net, ids, targets, steps=60, lr=6e-3)
    after = next_byte.bits(net, ids, targets).mean()
    assert not net.training and after < before - 2
    cost = [
        next_byte.bits(rounding.with_rounded_linears(net, bits, "channel"), ids, targets).mean() - after
        for bits in (8, 4, 2)
    ]
    assert abs(cost[0]) < 0.01 and cost[0] < cost[1] < cost[2]


def test_training_repeats_itself():
    ids, targets = next_byte.examples("training", documents=20)
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(next_byte.fit(next_byte.NextByteNet(), ids, targets, steps=3, lr=1e-3))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
