"""helpers.watched: what leaves PyTorch for NumPy or Python is watched, too, and whole numbers pass."""

import math

import numpy as np
import pytest
import torch

from helpers import integer, watched

X = torch.randint(0, 256, (5, 13), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
W = torch.randint(-128, 128, (4, 13), generator=torch.Generator().manual_seed(1)).to(torch.int8)


def python_product(x, w):
    return [[sum(a * b for a, b in zip(row, out, strict=True)) for out in w.tolist()] for row in x.tolist()]


WHOLE = {
    "torch": lambda: X.long() @ W.long().T,
    "numpy": lambda: torch.from_numpy(X.numpy().astype(np.int64) @ W.numpy().astype(np.int64).T),
    "einsum": lambda: torch.from_numpy(np.einsum("rk,ok->ro", X.numpy().astype(np.int64), W.numpy().astype(np.int64))),
    "asarray and dot": lambda: torch.as_tensor(np.asarray(X).astype(int).dot(np.asarray(W).astype(int).T)),
    "lists": lambda: torch.tensor(python_product(X, W)),
    "out": lambda: torch.from_numpy(np.matmul(X.long().numpy(), W.long().numpy().T, out=np.empty((5, 4), dtype=int))),
    "entries": lambda: torch.tensor(
        [[sum(int(X[r, k]) * int(W[o, k]) for k in range(13)) for o in range(4)] for r in range(5)]
    ),
}
FLOATS = {
    "torch": lambda: X.double(),
    "astype": lambda: X.numpy().astype(np.float64).astype(int),
    "array": lambda: np.array(X.tolist(), dtype=float).astype(int),
    "asarray": lambda: np.asarray(X, dtype=np.float32),
    "mean": lambda: X.numpy().mean(axis=1).astype(int),
    "a sum of floats": lambda: int(X.numpy().sum(dtype=np.float64)),
    "true division": lambda: [round(a / 3) for a in X[0].tolist()],
    "a power": lambda: [round(3 * 2**-a) for a in X[0, :3].tolist()],
    "a factor": lambda: round(X[0, 0].item() * 0.5),
    "a factor of NumPy's": lambda: round(X[0, 0].item() * np.float32(0.5)),
    "float": lambda: int(float(X[0, 0])),
    "ldexp": lambda: int(math.ldexp(X[0, 0].item(), -1)),
    "the operator": lambda: int(int(X[0, 0]) / 2),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_stay_what_they_are_and_are_not_reported(name):
    with integer.floats_made(WHOLE[name]) as found:
        answer = WHOLE[name]()
    assert found == [] and torch.equal(answer.long(), X.long() @ W.long().T)


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_reported(name):
    with integer.floats_made(FLOATS[name]) as found:
        FLOATS[name]()
    assert found


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "entries"])
def test_a_product_of_matrices_is_reported(name):
    with integer.matrices_multiplied(13, 5 * 13 * 4) as found:
        WHOLE[name]()
    assert found


@pytest.mark.parametrize(
    "sums",
    [
        lambda: X.long() @ torch.ones(13, 4, dtype=torch.int64),
        lambda: X.long() @ torch.arange(4).expand(13, 4),
        lambda: torch.outer(X.sum(1), torch.arange(4)),
        lambda: np.outer(X.numpy().sum(axis=1), np.arange(4)),
        lambda: X.long() * 3,
    ],
)
def test_sums_are_no_product_of_matrices(sums):
    with integer.matrices_multiplied(13, 5 * 13 * 4) as found:
        sums()
    assert found == []


def test_afterwards_all_is_as_it_was():
    before = np.array
    with pytest.raises(ZeroDivisionError), integer.floats_made():
        raise ZeroDivisionError
    assert np.array is before and type(np.zeros(2)) is np.ndarray and type(X.numpy()) is np.ndarray
    assert type(X.tolist()[0][0]) is int and watched.is_float(0.5) and not watched.is_float(np.int8(3))
