"""Unit 00: what learners really answer."""

import math
import sys

from tests.misconceptions.bank import right, wrong


@wrong("ex_0_1", "15 is how many numbers it holds")
def counts_numbers_only(x):
    return x.numel()


@wrong("ex_0_1", "4 is the size of one number")
def size_of_one_number(x):
    return x.element_size()


@wrong("ex_0_1", "you counted only the first dimension")
def first_dimension_only(x):
    return x.shape[0] * x.element_size() if x.dim() else x.element_size()


@wrong("ex_0_1", "not every number takes 4 bytes")
def always_four_bytes(x):
    return x.numel() * 4


@wrong("ex_0_1", "the whole tensor that the view looks into")
def whole_storage(x):
    return x.untyped_storage().nbytes()


@wrong("ex_0_1", "the size of a float32 tensor of shape (3, 5) is")
def python_object_size(x):
    return sys.getsizeof(x)


@wrong("ex_0_1", "is None")
def prints_instead_of_returning(x):
    print(x.numel() * x.element_size())


@right("ex_0_1")
def from_shape_and_dtype(x):
    return math.prod(x.shape) * x.dtype.itemsize


@right("ex_0_1")
def as_a_property(x):
    return x.nbytes
