"""Unit 00: what learners really answer."""

import io
import math
import sys

import numpy as np
import torch

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


@wrong("ex_0_1", "you counted only the last dimension")
def last_dimension_only(x):
    return x.shape[-1] * x.element_size() if x.dim() else x.element_size()


@wrong("ex_0_1", "you added the lengths of the dimensions")
def sum_of_the_shape(x):
    return sum(x.shape) * x.element_size()


@wrong("ex_0_1", "not every number takes 4 bytes")
def always_four_bytes(x):
    return x.numel() * 4


@wrong("ex_0_1", "the whole tensor that the view looks into")
def whole_storage(x):
    return x.untyped_storage().nbytes()


@wrong("ex_0_1", "from the view's first number to its last")
def from_first_to_last(x):
    if x.numel() == 0:
        return 0
    last = sum((length - 1) * step for length, step in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


@wrong("ex_0_1", "the first two rows, x[:2]")
def storage_of_what_is_contiguous(x):
    return x.contiguous().untyped_storage().nbytes()


@wrong("ex_0_1", "these are bits")
def in_bits(x):
    return x.numel() * x.element_size() * 8


@wrong("ex_0_1", "sys.getsizeof measures")
def python_object_size(x):
    return sys.getsizeof(x)


@wrong("ex_0_1", "the size of a float32 tensor of shape (3, 5) is")
def size_of_a_file(x):
    file = io.BytesIO()
    torch.save(x, file)
    return len(file.getvalue())


@wrong("ex_0_1", "is None")
def prints_instead_of_returning(x):
    print(x.numel() * x.element_size())


@wrong("ex_0_1", "is a float, and should be an int")
def as_a_float(x):
    return x.numel() * 1.0 * x.element_size()


@wrong("ex_0_1", "is a Tensor, and should be an int")
def as_a_tensor(x):
    return torch.tensor(x.shape).prod().long() * x.element_size()


@wrong("ex_0_1", "your function changed `x`")
def counts_ones_in_place(x):
    return int(x.detach().fill_(1).sum().real) * x.element_size()


@wrong("ex_0_1", "KeyError: torch.bool")
def a_table_of_some_dtypes(x):
    size = {torch.float64: 8, torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.int8: 1}
    return x.numel() * size[x.dtype]


@wrong("ex_0_1", "a torch.bool tensor of shape (2, 3)")
def a_table_with_a_default(x):
    size = {torch.float64: 8, torch.float16: 2, torch.bfloat16: 2, torch.int8: 1, torch.int64: 8}
    return x.numel() * size.get(x.dtype, 4)


@wrong("ex_0_1", "a torch.complex64 tensor of shape (2, 3)")
def bytes_from_the_name(x):
    digits = "".join(c for c in str(x.dtype).split("_")[0] if c.isdigit())
    return x.numel() * max(1, min(int(digits or 8), 64) // 8) if not x.is_complex() else x.numel() * 4


@wrong("ex_0_1", "a tensor of four dimensions")
def three_dimensions_at_most(x):
    return math.prod(x.shape[:3]) * x.element_size()


@wrong("ex_0_1", "without a dimension, torch.tensor(1.0)")
def a_scalar_is_nothing(x):
    return (math.prod(x.shape) if x.dim() else 0) * x.element_size()


@right("ex_0_1")
def from_shape_and_dtype(x):
    return math.prod(x.shape) * x.dtype.itemsize


@right("ex_0_1")
def as_a_property(x):
    return x.nbytes


@right("ex_0_1")
def with_numpy_integers(x):
    return np.prod(x.shape, dtype=np.int64) * x.element_size()


@right("ex_0_1")
def by_a_loop(x):
    total = x.element_size()
    for length in x.size():
        total = total * length
    return total
