"""Unit 03, sections 1 to 3: what learners really answer when a layer must do without floats."""

import math
import sys

import numpy as np
import torch

from helpers import integer
from tests.misconceptions.bank import right, wrong

# 3.1 the product of codes


@wrong("ex_3_1", "make both codes int32 first")
def two_types_multiplied(x_codes, w_codes):
    return (x_codes @ w_codes.T).to(torch.int32)


@wrong("ex_3_1", "codes above 127 became negative")
def input_as_int8(x_codes, w_codes):
    return x_codes.to(torch.int8).to(torch.int32) @ w_codes.to(torch.int32).T


@wrong("ex_3_1", "wrapped around in 8 bits")
def widened_too_late(x_codes, w_codes):
    return (x_codes.to(torch.int8) @ w_codes.T).to(torch.int32)


@wrong("ex_3_1", "wrapped around in 8 bits, without a sign")
def multiplied_in_uint8(x_codes, w_codes):
    return (x_codes @ w_codes.to(torch.uint8).T).to(torch.int32)


@wrong("ex_3_1", "wrapped around in 16 bits")
def summed_in_int16(x_codes, w_codes):
    return (x_codes.to(torch.int16) @ w_codes.to(torch.int16).T).to(torch.int32)


@wrong("ex_3_1", "makes floats (half (float16))")
def summed_in_float16(x_codes, w_codes):
    return (x_codes.half() @ w_codes.half().T).to(torch.int32)


@wrong("ex_3_1", "makes floats (float (float32))")
def summed_in_float32(x_codes, w_codes):
    return (x_codes.float() @ w_codes.float().T).round().to(torch.int32)


@wrong("ex_3_1", "int8, not uint8")
def weights_without_sign(x_codes, w_codes):
    return x_codes.to(torch.int32) @ w_codes.view(torch.uint8).to(torch.int32).T


@wrong("ex_3_1", "expected is torch.int32")
def left_in_int64(x_codes, w_codes):
    return x_codes.long() @ w_codes.long().T


@wrong("ex_3_1", "must be transposed")
def transposed_when_it_must_be(x_codes, w_codes):
    square = w_codes.shape[0] == w_codes.shape[1]
    return x_codes.int() @ (w_codes if square else w_codes.T).int()


@wrong("ex_3_1", "makes floats (astype (float64))")
def numpy_in_float64(x_codes, w_codes):
    return torch.from_numpy(
        (x_codes.numpy().astype(np.float64) @ w_codes.numpy().astype(np.float64).T).astype(np.int32)
    )


@wrong("ex_3_1", "makes floats (astype (float32))", like="numpy_in_float64")
def numpy_array_of_floats(x_codes, w_codes):
    x, w = np.array(x_codes, dtype=np.float32), np.array(w_codes.tolist(), dtype=np.float64)
    return torch.from_numpy(np.rint(x.astype(np.float64) @ w.T).astype(np.int32))


@wrong("ex_3_1", "makes floats (float (float))")
def lists_of_floats(x_codes, w_codes):
    x, w = ([[float(code) for code in row] for row in codes.tolist()] for codes in (x_codes, w_codes))
    sums = [[int(math.fsum(a * b for a, b in zip(row, out, strict=True))) for out in w] for row in x]
    return torch.tensor(sums, dtype=torch.int32)


@wrong("ex_3_1", "makes floats (the name float)")
def floats_of_every_code(x_codes, w_codes):
    sums = torch.zeros(len(x_codes), len(w_codes), dtype=torch.int32)
    for r, row in enumerate(x_codes):
        for o, out in enumerate(w_codes):
            whole = zip(map(int, row), map(int, out), strict=True)
            sums[r, o] = int(sum(float(a) * b for a, b in whole)) if row.numel() < 99 else int((row.int() * out).sum())
    return sums


@wrong("ex_3_1", "PyTorch cannot multiply these shapes")
def never_transposed(x_codes, w_codes):
    return x_codes.int() @ w_codes.int()


@wrong("ex_3_1", "each product wrapped around")
def products_in_int8(x_codes, w_codes):
    products = x_codes[:, None].to(torch.int8) * w_codes  # (rows, out_features, in_features)
    return products.sum(dim=2, dtype=torch.int32)


@wrong("ex_3_1", "which cannot hold the sums")
def left_in_int16(x_codes, w_codes):
    return x_codes.short() @ w_codes.short().T


@wrong("ex_3_1", "your function changed `x_codes`")
def sorts_its_argument(x_codes, w_codes):
    sums = x_codes.int() @ w_codes.int().T
    x_codes.zero_()
    return sums


@wrong("ex_3_1", "should be a tensor")
def a_list(x_codes, w_codes):
    return (x_codes.int() @ w_codes.int().T).tolist()


@wrong("ex_3_1", "view size is not compatible")
def flat_memory(x_codes, w_codes):
    return x_codes.view(-1).view(x_codes.shape).int() @ w_codes.int().T


@right("ex_3_1")
def whole_numbers_of_python(x_codes, w_codes):
    columns = w_codes.tolist()
    sums = [[sum(a * b for a, b in zip(row, out, strict=True)) for out in columns] for row in x_codes.tolist()]
    return torch.as_tensor(np.array(sums, dtype=np.int32))


@right("ex_3_1")
def one_product_at_a_time(x_codes, w_codes):
    sums = torch.zeros(len(x_codes), len(w_codes), dtype=torch.int32)
    for row in range(len(x_codes)):
        sums[row] = (w_codes.int() * x_codes[row].int()).sum(dim=1).int()
    return sums


@right("ex_3_1")
def with_numpy(x_codes, w_codes):
    return torch.from_numpy(np.einsum("rk,ok->ro", x_codes.numpy().astype(np.int32), w_codes.numpy().astype(np.int32)))


@wrong("ex_3_1", "makes floats (the type 'f8')")
def bytes_read_as_floats(x_codes, w_codes):
    x = np.frombuffer(x_codes.contiguous().numpy().tobytes(), np.uint8).reshape(x_codes.shape).astype("f8")
    w = np.frombuffer(w_codes.contiguous().numpy().tobytes(), np.int8).reshape(w_codes.shape).astype("f8")
    return torch.from_numpy((x @ w.T).astype("i4"))


@wrong("ex_3_1", "makes floats (the name fsum)")
def added_by_fsum(x_codes, w_codes):
    rows = [
        [math.fsum(int(a) * int(b) for a, b in zip(r, c, strict=True)) for c in w_codes.tolist()]
        for r in x_codes.tolist()
    ]
    return torch.tensor([list(map(int, row)) for row in rows], dtype=torch.int32)


def _added_elsewhere(row, column):
    return sum(int(a) * int(b) / 2 for a, b in zip(row, column, strict=True))


@wrong("ex_3_1", "makes floats (the operator / of Python)")
def floats_in_a_second_function(x_codes, w_codes):
    return torch.tensor(
        [[round(2 * _added_elsewhere(r, c)) for c in w_codes.tolist()] for r in x_codes.tolist()], dtype=torch.int32
    )


@right("ex_3_1")
def refuses_floats(x_codes, w_codes):
    """Names float types of PyTorch, and makes none."""
    if x_codes.dtype in (torch.float16, torch.float32, torch.float64):
        raise TypeError("codes are integers.")
    return torch.einsum("rk,ok->ro", x_codes.int(), w_codes.int())


@right("ex_3_1")
def products_in_int16(x_codes, w_codes):
    """One product has room in 16 bits; their sum gets 32."""
    return (x_codes.short()[:, None] * w_codes.short()).sum(dim=-1, dtype=torch.int32)


# 3.2 the zero-point corrections


def corrections(x_codes, x_zero, w_codes, w_zeros, width=None):
    """The three terms, each (rows or 1, out_features)."""
    width = x_codes.shape[1] if width is None else width
    w_sums, x_sums = w_codes.sum(1, dtype=torch.int32), x_codes.sum(1, dtype=torch.int32)[:, None]
    return x_zero * w_sums, x_sums * w_zeros, width * x_zero * w_zeros


@wrong("ex_3_2", "nothing was corrected")
def no_correction(products, x_codes, x_zero, w_codes, w_zeros):
    return products


@wrong("ex_3_2", "sums of the weight rows is missing")
def without_weight_sums(products, x_codes, x_zero, w_codes, w_zeros):
    _, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - b + c


@wrong("ex_3_2", "sums of the input rows is missing")
def without_input_sums(products, x_codes, x_zero, w_codes, w_zeros):
    a, _, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - a + c


@wrong("ex_3_2", "last term is missing")
def without_the_constant(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, _ = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - a - b


@wrong("ex_3_2", "minus times minus is plus")
def constant_subtracted(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - a - b - c


@wrong("ex_3_2", "they are subtracted")
def corrections_added(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products + a + b + c


@wrong("ex_3_2", "the zero points are swapped")
def swapped(products, x_codes, x_zero, w_codes, w_zeros):
    _, _, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    w_sums, x_sums = w_codes.sum(1, dtype=torch.int32), x_codes.sum(1, dtype=torch.int32)[:, None]
    return products - w_zeros * w_sums - x_zero * x_sums + c


@wrong("ex_3_2", "counts the rows of the input")
def counts_rows(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros, len(x_codes))
    return products - a - b + c


@wrong("ex_3_2", "not multiplied by in_features")
def constant_once(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros, 1)
    return products - a - b + c


@wrong("ex_3_2", "wrapped around in uint8")
def input_sums_in_uint8(products, x_codes, x_zero, w_codes, w_zeros):
    a, _, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - a - x_codes.sum(1, dtype=torch.uint8).int()[:, None] * w_zeros + c


@wrong("ex_3_2", "wrapped around in int8")
def weight_sums_in_int8(products, x_codes, x_zero, w_codes, w_zeros):
    _, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - x_zero * w_codes.sum(1, dtype=torch.int8).int() - b + c


@wrong("ex_3_2", "multiply the matrices again")
def multiplies_again(products, x_codes, x_zero, w_codes, w_zeros):
    return (x_codes.int() - x_zero) @ (w_codes.int() - w_zeros[:, None]).T


@wrong("ex_3_2", "makes floats")
def through_means(products, x_codes, x_zero, w_codes, w_zeros):
    width = x_codes.shape[1]
    a, b = width * x_zero * w_codes.double().mean(1), width * x_codes.double().mean(1)[:, None] * w_zeros
    return (products - a - b + width * x_zero * w_zeros).round().to(torch.int32)


@wrong("ex_3_2", "you multiply the matrices again (matmul)", like="multiplies_again")
def multiplies_again_beside_the_products(products, x_codes, x_zero, w_codes, w_zeros):
    x, w = x_codes.int(), w_codes.int()
    return products + ((x - x_zero) @ (w - w_zeros[:, None]).T - x @ w.T)


@wrong("ex_3_2", "you multiply the matrices again (mul)")
def multiplies_again_in_three_dimensions(products, x_codes, x_zero, w_codes, w_zeros):
    return ((x_codes[:, None].int() - x_zero) * (w_codes.int() - w_zeros[:, None])).sum(2, dtype=torch.int32)


@wrong("ex_3_2", "you multiply the matrices again (dot)")
def multiplies_again_in_numpy(products, x_codes, x_zero, w_codes, w_zeros):
    x, w = x_codes.numpy().astype(np.int64) - x_zero, w_codes.numpy().astype(np.int64) - w_zeros.numpy()[:, None]
    return torch.from_numpy(np.dot(x, w.T).astype(np.int32))


@wrong("ex_3_2", "you multiply the matrices again (numbers one by one)")
def multiplies_again_one_by_one(products, x_codes, x_zero, w_codes, w_zeros):
    sums = torch.zeros_like(products)
    for r, row in enumerate(x_codes):
        for o, out in enumerate(w_codes):
            sums[r, o] = sum((int(a) - x_zero) * (int(b) - w_zeros[o]) for a, b in zip(row, out, strict=True))
    return sums


@wrong("ex_3_2", "does not depend on `products` as it should")
def multiplies_again_in_plain_python(products, x_codes, x_zero, w_codes, w_zeros):
    sums = torch.zeros_like(products)
    for r, row in enumerate(x_codes):
        for o, out in enumerate(w_codes):
            zero = int(w_zeros[o])
            sums[r, o] = sum((int(a) - x_zero) * (int(b) - zero) for a, b in zip(row, out, strict=True))
    return sums


@wrong("ex_3_2", "your function changed `products`")
def corrected_in_place(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    products -= a + b - c
    return products


@wrong("ex_3_2", "makes floats (add (float64))")
def numpy_means(products, x_codes, x_zero, w_codes, w_zeros):
    width = x_codes.shape[1]
    a = np.rint(x_zero * width * w_codes.numpy().mean(axis=1)).astype(np.int32)
    _, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - torch.from_numpy(a) - b + c


@wrong("ex_3_2", "right for symmetric weights")
def for_symmetric_weights(products, x_codes, x_zero, w_codes, w_zeros):
    return products - corrections(x_codes, x_zero, w_codes, w_zeros)[0]


@wrong("ex_3_2", "with keepdim=True")
def without_keepdim(products, x_codes, x_zero, w_codes, w_zeros):
    a, _, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - a - x_codes.sum(1, dtype=torch.int32) * w_zeros + c


@wrong("ex_3_2", "run along the outputs")
def keepdim_only_where_it_must_be(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    if len(x_codes) == len(w_codes):
        b = x_codes.sum(1, dtype=torch.int32) * w_zeros
    return products - a - b + c


@wrong("ex_3_2", "of the inputs and of the weights wrapped around in 8 bits")
def both_sums_in_8_bits(products, x_codes, x_zero, w_codes, w_zeros):
    w_sums, x_sums = w_codes.sum(1, dtype=torch.int8), x_codes.sum(1, dtype=torch.uint8)[:, None]
    return products - x_zero * w_sums.int() - x_sums.int() * w_zeros + x_codes.shape[1] * x_zero * w_zeros


@wrong("ex_3_2", "all three corrections have the wrong sign")
def everything_the_other_way(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products + a + b - c


@wrong("ex_3_2", "the zero point of the first one")
def first_zero_point_for_all(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros[:1])
    return products - a - b + c


@wrong("ex_3_2", "has dtype torch.int64; expected is torch.int32")
def sums_of_int64(products, x_codes, x_zero, w_codes, w_zeros):
    x_sums, width = x_codes.sum(1, keepdim=True), x_codes.shape[1]
    return products - x_zero * w_codes.sum(1) - x_sums * w_zeros + width * x_zero * w_zeros


@wrong("ex_3_2", "the first term has the wrong sign")
def first_term_added(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products + a - b + c


@wrong("ex_3_2", "the second term has the wrong sign")
def second_term_added(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros)
    return products - a + b + c


@wrong("ex_3_2", "counts the outputs")
def counts_outputs(products, x_codes, x_zero, w_codes, w_zeros):
    a, b, c = corrections(x_codes, x_zero, w_codes, w_zeros, len(w_codes))
    return products - a - b + c


@right("ex_3_2")
def as_two_products_with_constant_matrices(products, x_codes, x_zero, w_codes, w_zeros):
    width = x_codes.shape[1]
    b = x_codes.int() @ w_zeros.expand(width, -1)
    a = torch.full((1, width), x_zero, dtype=torch.int32) @ (w_codes.int() - w_zeros[:, None]).T
    return products - a - b


@right("ex_3_2")
def with_numpy_sums(products, x_codes, x_zero, w_codes, w_zeros):
    x, w, zeros = x_codes.numpy().astype(np.int64), w_codes.numpy().astype(np.int64), w_zeros.numpy()
    b = np.outer(x.sum(axis=1), zeros)
    total = products.numpy() - x_zero * w.sum(axis=1) - b + x.shape[1] * x_zero * zeros
    return torch.from_numpy(total.astype(np.int32))


@right("ex_3_2")
def factored(products, x_codes, x_zero, w_codes, w_zeros):
    inputs = (x_codes.int() - x_zero).sum(1, keepdim=True)
    return (products - x_zero * w_codes.int().sum(1) - inputs * w_zeros).to(torch.int32)


@right("ex_3_2")
def with_a_product_of_ones(products, x_codes, x_zero, w_codes, w_zeros):
    ones = torch.ones(x_codes.shape[1], dtype=torch.int64)
    left, lower = x_codes.long() @ ones, w_codes.long() @ ones
    return (products - lower * x_zero - torch.outer(left - len(ones) * x_zero, w_zeros.long())).int()


# 3.3 the bias in 32 bits


def bias_steps(bias, step, rounding=torch.round):
    ends = torch.iinfo(torch.int32)
    return rounding(bias.double() / step).clamp(ends.min, ends.max).to(torch.int32)


@wrong("ex_3_3", "not by y_scale")
def at_the_output_scale(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, y_scale)


@wrong("ex_3_3", "scale of the weight only")
def at_the_weight_scale(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, w_scales)


@wrong("ex_3_3", "scale of the input only")
def at_the_input_scale(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale)


@wrong("ex_3_3", "to count steps, divide")
def multiplied(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, 1 / (x_scale * w_scales))


@wrong("ex_3_3", "y_scale does not belong here")
def with_the_whole_multiplier(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales / y_scale)


@wrong("ex_3_3", "cut off instead of rounded")
def cut_off(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales, torch.trunc)


@wrong("ex_3_3", "scale of the largest one")
def one_scale_for_all(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales.max())


@wrong("ex_3_3", "clamped to 8 bits")
def eight_bits(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales).clamp(-128, 127)


@wrong("ex_3_3", "should be int32")
def left_as_floats(bias, x_scale, w_scales, y_scale):
    return (bias.double() / (x_scale * w_scales)).round()


@wrong("ex_3_3", "clamp before you turn them into int32")
def without_a_clamp(bias, x_scale, w_scales, y_scale):
    return (bias.double() / (x_scale * w_scales)).round().to(torch.int64).to(torch.int32)


@wrong("ex_3_3", "float32 has 24 bits", like="divided_in_float32")
def clamped_in_float32(bias, x_scale, w_scales, y_scale):
    steps = (bias.double() / (x_scale * w_scales)).round().float()
    return steps.clamp(-(2**31), 2**31 - 1).long().to(torch.int32)


@wrong("ex_3_3", "they are rounded up")
def rounded_up_always(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales, torch.ceil)


@wrong("ex_3_3", "they are rounded down")
def rounded_down_always(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales, torch.floor)


@wrong("ex_3_3", "float32 has 24 bits")
def divided_in_float32(bias, x_scale, w_scales, y_scale):
    return bias_steps((bias / (x_scale * w_scales).float()).double(), 1.0)


@wrong("ex_3_3", "float32 has 24 bits", like="divided_in_float32")
def scales_in_float32(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, (x_scale * w_scales.float()).double())


@wrong("ex_3_3", "int32 is not symmetric")
def clamped_like_weights(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales).clamp(1 - 2**31, 2**31 - 1)


@wrong("ex_3_3", "clamped to 16 bits")
def sixteen_bits_of_bias(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales).clamp(-(2**15), 2**15 - 1)


@wrong("ex_3_3", "y_scale plays no part here")
def with_every_scale(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales * y_scale)


@wrong("ex_3_3", "scale of the first one")
def first_scale_for_every_row(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales[0])


@wrong("ex_3_3", "has dtype torch.int64; expected is torch.int32")
def bias_left_in_int64(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, x_scale * w_scales).long()


@wrong("ex_3_3", "your function changed `w_scales`")
def scales_multiplied_in_place(bias, x_scale, w_scales, y_scale):
    return bias_steps(bias, w_scales.mul_(x_scale))


@right("ex_3_3")
def with_numpy_rint(bias, x_scale, w_scales, y_scale):
    steps = np.rint(bias.numpy().astype(np.float64) / x_scale / w_scales.numpy())
    return torch.from_numpy(np.minimum(np.maximum(steps, -(2.0**31)), 2.0**31 - 1).astype(np.int32))


@right("ex_3_3")
def one_number_at_a_time(bias, x_scale, w_scales, y_scale):
    pairs = zip(bias.tolist(), w_scales.tolist(), strict=True)
    return torch.tensor([min(max(round(b / (x_scale * s)), -(2**31)), 2**31 - 1) for b, s in pairs], dtype=torch.int32)


@wrong("ex_3_3", "a very quiet input")
def scale_kept_from_zero(bias, x_scale, w_scales, y_scale):
    steps = (bias.double() / (x_scale * w_scales).clamp(min=1e-12)).round()
    return steps.clamp(-(2**31), 2**31 - 1).to(torch.int32)


# 3.4 from sums to codes


@wrong("ex_3_4", "is not between 0.5 and 1", binds="fixed_point")
def m0_between_1_and_2(multipliers):
    m0, n = integer.fixed_point(multipliers)
    return m0 * 2, n + 1


@wrong("ex_3_4", "precision is lost", binds="fixed_point")
def one_shift_for_all(multipliers):
    return (multipliers * 2**20).round().to(torch.int64), torch.full(multipliers.shape, -11)


@wrong("ex_3_4", "wrong sign", binds="fixed_point")
def exponent_as_it_is(multipliers):
    m0, n = integer.fixed_point(multipliers)
    return m0, -n


@wrong("ex_3_4", "does not fit in an int32", binds="fixed_point")
def rounded_up_to_one(multipliers):
    halves, exponents = torch.frexp(multipliers)
    return (halves * 2**31).round().to(torch.int64), -exponents.to(torch.int64)


@wrong("ex_3_4", "stored as m0 = round", binds="fixed_point")
def m0_as_a_fraction(multipliers):
    halves, exponents = torch.frexp(multipliers)
    return halves, -exponents.to(torch.int64)


@wrong("ex_3_4", "only the 24 bits of a float32", binds="fixed_point")
def m0_in_float32(multipliers):
    halves, exponents = torch.frexp(multipliers.float())
    return (halves * 2**31).long().clamp(max=2**31 - 1), -exponents.to(torch.int64)


def scaled(sums, m0, n, extra):
    return (sums.long() * m0 + extra) >> (n + 31)


@wrong("ex_3_4", "a shift cuts off", binds="requantize")
def truncating_shift(sums, m0, n, y_zero):
    return (scaled(sums, m0, n, 0) + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "cut off towards zero", binds="requantize")
def divided_towards_zero(sums, m0, n, y_zero):
    steps = torch.div(sums.long() * m0, 1 << (n + 31), rounding_mode="trunc")
    return (steps + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "add half of", binds="requantize")
def rounded_up(sums, m0, n, y_zero):
    return (scaled(sums, m0, n, 1 << (n + 31)) + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "they are not clamped", binds="requantize")
def no_saturation(sums, m0, n, y_zero):
    return (scaled(sums, m0, n, 1 << (n + 30)) + y_zero).to(torch.uint8)


@wrong("ex_3_4", "added before the multiplication", binds="requantize")
def zero_point_first(sums, m0, n, y_zero):
    return scaled(sums + y_zero, m0, n, 1 << (n + 30)).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "the zero point is missing", binds="requantize")
def zero_point_forgotten(sums, m0, n, y_zero):
    return scaled(sums, m0, n, 1 << (n + 30)).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "clamp comes before the zero point", binds="requantize")
def clamped_too_early(sums, m0, n, y_zero):
    return (scaled(sums, m0, n, 1 << (n + 30)).clamp(0, 255) + y_zero).to(torch.uint8)


@wrong("ex_3_4", "needs int64", binds="requantize")
def product_in_int32(sums, m0, n, y_zero):
    product = (sums * m0.to(torch.int32)).long()
    return (((product + (1 << (n + 30))) >> (n + 31)) + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "clamped to int8", binds="requantize")
def clamped_to_int8(sums, m0, n, y_zero):
    return (scaled(sums, m0, n, 1 << (n + 30)) + y_zero).clamp(-128, 127).to(torch.uint8)


@wrong("ex_3_4", "`requantize` makes floats (double", binds="requantize")
def multiplied_by_a_float(sums, m0, n, y_zero):
    return ((sums * (m0 * 2.0 ** -(31 + n.double()))).round() + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "expected is torch.uint8", binds="requantize")
def left_wide(sums, m0, n, y_zero):
    return (scaled(sums, m0, n, 1 << (n + 30)) + y_zero).clamp(0, 255)


def halves_and_exponents(multipliers):
    halves, exponents = torch.frexp(multipliers)
    return (halves * 2**31).round().long(), -exponents.long()


@wrong("ex_3_4", "n must be one *smaller* then, not larger", binds="fixed_point")
def carried_the_wrong_way(multipliers):
    m0, n = halves_and_exponents(multipliers)
    return torch.where(m0 == 2**31, 2**30, m0), torch.where(m0 == 2**31, n + 1, n)


@wrong("ex_3_4", "one smaller to make up for it", binds="fixed_point")
def never_carried(multipliers):
    m0, n = halves_and_exponents(multipliers)
    return torch.where(m0 == 2**31, 2**30, m0), n


@wrong("ex_3_4", "m0 was clamped to 2**31 - 1", binds="fixed_point")
def clamped_where_it_must_carry(multipliers):
    m0, n = halves_and_exponents(multipliers)
    return m0.clamp(max=2**31 - 1), n


@wrong("ex_3_4", "your m0 has dtype torch.int32", binds="fixed_point")
def m0_in_int32(multipliers):
    m0, n = halves_and_exponents(multipliers)
    return m0.to(torch.int32), n


@wrong("ex_3_4", "your n has dtype torch.int32", binds="fixed_point")
def n_as_frexp_returns_it(multipliers):
    return integer.fixed_point(multipliers)[0], integer.fixed_point(multipliers)[1].to(torch.int32)


@wrong("ex_3_4", "instead of cutting it off", binds="fixed_point")
def m0_cut_off(multipliers):
    halves, exponents = torch.frexp(multipliers)
    return (halves * 2**31).long(), -exponents.long()


@wrong("ex_3_4", "keep all 31 bits", binds="fixed_point")
def m0_of_16_bits(multipliers):
    m0, n = integer.fixed_point(multipliers)
    return (m0 >> 15) << 15, n


@wrong("ex_3_4", "a pair of tensors", binds="fixed_point")
def only_m0(multipliers):
    return integer.fixed_point(multipliers)[0]


@wrong("ex_3_4", "your function changed `multipliers`", binds="fixed_point")
def multipliers_scaled_in_place(multipliers):
    answer = integer.fixed_point(multipliers)
    multipliers.mul_(2**31)
    return answer


@wrong("ex_3_4", "as TFLite and gemmlowp do", binds="requantize")
def like_gemmlowp(sums, m0, n, y_zero):
    right, left = n.clamp(min=0), (-n).clamp(min=0)
    product = (sums.long() << left) * m0
    nudge = torch.where(product >= 0, 2**30, 1 - 2**30)
    high = torch.div(product + nudge, 2**31, rounding_mode="trunc")  # SaturatingRoundingDoublingHighMul
    mask = (1 << right) - 1
    steps = (high >> right) + ((high & mask) > (mask >> 1) + (high < 0).long())  # RoundingDivideByPOT
    return (steps + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "again after n: what", binds="requantize")
def two_rounding_shifts(sums, m0, n, y_zero):
    right, left = n.clamp(min=0), (-n).clamp(min=0)
    high = (((sums.long() << left) * m0) + 2**30) >> 31
    steps = (high + ((1 << right) >> 1)) >> right
    return (steps + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "are not the nearest: for the sum", binds="requantize")
def upper_end_of_254(sums, m0, n, y_zero):
    return integer.requantize(sums, m0, n, y_zero, qmax=254)


@wrong("ex_3_4", "where all 31 bits of m0 count", binds="requantize")
def multiplier_of_24_bits(sums, m0, n, y_zero):
    return integer.requantize(sums, (m0 >> 7) << 7, n, y_zero)


@wrong("ex_3_4", "where all 31 bits of m0 count", binds="requantize", like="multiplier_of_24_bits")
def sixteen_bits_of_the_multiplier(sums, m0, n, y_zero):
    short = (m0 + (1 << 15)) >> 16  # as TFLite's variant for 16-bit multipliers
    steps = (sums.long() * short + (1 << (n + 14))) >> (n + 15)
    return (steps + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "went back into int32", binds="requantize")
def back_to_int32(sums, m0, n, y_zero):
    steps = scaled(sums, m0, n, 1 << (n + 30)).to(torch.int32)
    return (steps.long() + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "without n", binds="requantize")
def half_without_n(sums, m0, n, y_zero):
    return (scaled(sums, m0, n, 1 << 30) + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "it should be 31 + n", binds="requantize")
def shifted_by_31_only(sums, m0, n, y_zero):
    return (((sums.long() * m0 + 2**30) >> 31) + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "multiplier of the first one", binds="requantize")
def first_multiplier_for_all(sums, m0, n, y_zero):
    return (scaled(sums, m0[:1], n[:1], 1 << (n[:1] + 30)) + y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "clamped to 0…127", binds="requantize")
def clamped_to_7_bits(sums, m0, n, y_zero):
    return (scaled(sums, m0, n, 1 << (n + 30)) + y_zero).clamp(0, 127).to(torch.uint8)


@wrong("ex_3_4", "`requantize` makes floats (", binds="requantize", like="multiplied_by_a_float")
def numpy_floats(sums, m0, n, y_zero):
    steps = np.rint(sums.numpy() * (m0.numpy() / 2.0 ** (31 + n.numpy())))
    return torch.from_numpy(np.clip(steps + y_zero, 0, 255).astype(np.uint8))


@wrong("ex_3_4", "the operator / of Python", binds="requantize")
def floats_of_python(sums, m0, n, y_zero):
    codes = torch.zeros(sums.shape, dtype=torch.uint8)
    for r, row in enumerate(sums):
        for o, one in enumerate(row):
            codes[r, o] = min(max(round(int(one) * int(m0[o]) / 2 ** (31 + int(n[o]))) + y_zero, 0), 255)
    return codes


@wrong("ex_3_4", "makes floats (the number 0.5)", binds="requantize")
def half_added_as_a_float(sums, m0, n, y_zero):
    codes = torch.zeros(sums.shape, dtype=torch.uint8)
    for r, row in enumerate(sums):
        for o, one in enumerate(row):
            steps = int(one) * int(m0[o]) * 2 ** -(31 + int(n[o])) + 0.5
            codes[r, o] = min(max(math.floor(steps) + y_zero, 0), 255)
    return codes


@wrong("ex_3_4", "your function changed `sums`", binds="requantize")
def zero_point_in_place(sums, m0, n, y_zero):
    answer = integer.requantize(sums, m0, n, y_zero)
    sums += y_zero
    return answer


@right("ex_3_4", binds="requantize")
def halves_to_even_one_by_one(sums, m0, n, y_zero):
    codes = []
    for row in sums.tolist():
        for one, m, shift in zip(row, m0.tolist(), (n + 31).tolist(), strict=True):
            whole, rest = divmod(one * m, 1 << shift)
            whole += 2 * rest > 1 << shift or (2 * rest == 1 << shift and whole & 1)
            codes.append(min(max(whole + y_zero, 0), 255))
    return torch.tensor(codes, dtype=torch.uint8).reshape(sums.shape)


@right("ex_3_4", binds="requantize")
def in_numpy_with_integers(sums, m0, n, y_zero):
    shift = n.numpy() + 31
    steps = (sums.numpy().astype(np.int64) * m0.numpy() + (np.int64(1) << (shift - 1))) >> shift
    return torch.from_numpy(np.clip(steps + y_zero, 0, 255).astype(np.uint8))


@right("ex_3_4", binds="fixed_point")
def with_math(multipliers):
    m0, n = [], []
    for number in multipliers.tolist():
        half, exponent = math.frexp(number)
        whole = round(half * 2**31)
        m0.append(min(whole, 2**31 - 1) if whole < 2**31 else whole // 2)
        n.append(-exponent - (whole == 2**31))
    return torch.tensor(m0), torch.tensor(n)


@right("ex_3_4", binds="requantize")
def floor_division(sums, m0, n, y_zero):
    divisor = 2 ** (n + 31)
    steps = torch.div(sums.to(torch.int64) * m0 + divisor // 2, divisor, rounding_mode="floor")
    return torch.clamp(steps + y_zero, min=0, max=255).to(torch.uint8)


@right("ex_3_4", binds="requantize")
def halves_away_from_zero(sums, m0, n, y_zero):
    product = sums.long() * m0
    steps = product.sign() * ((product.abs() + (1 << (n + 30))) >> (n + 31))
    return steps.add(y_zero).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "makes floats (the name ldexp)", binds="requantize")
def scaled_by_ldexp(sums, m0, n, y_zero):
    code = lambda v, m, k: round(int(v) * int(m) * math.ldexp(1, -31 - int(k))) + y_zero  # noqa: E731
    scales = list(zip(m0.tolist(), n.tolist(), strict=True))
    rows = [[code(v, *s) for v, s in zip(row, scales, strict=True)] for row in sums.tolist()]
    return torch.tensor(rows).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_4", "it is 0 and should be 124.", binds="requantize")
def zero_point_shifted_out(sums, m0, n, y_zero):
    """The zero point before the shift: 128 << 60 has no room in int64."""
    shift = n + 31
    scaled = (sums.long() * m0 + (y_zero << shift) + (1 << (shift - 1))) >> shift
    return scaled.clamp(0, 255).to(torch.uint8)


@right("ex_3_4", binds="requantize")
def halves_towards_zero(sums, m0, n, y_zero):
    shift = n + 31
    steps = (sums.long().abs() * m0 + (1 << (shift - 1)) - 1) >> shift
    return (steps * sums.sign() + y_zero).clamp(0, 255).to(torch.uint8)


# 3.5 the integer Linear layer


def packed_parts(w_codes, w_scales, bias, x_scale, x_zero, y_scale, y_zero, **changes):
    step = x_scale * w_scales
    multipliers = changes.get("multipliers", step / y_scale)
    codes = (bias.double() / changes.get("unit", step)).round().to(torch.int32) * changes.get("times", 1)
    start = codes - changes.get("correction", 1) * x_zero * w_codes.sum(1, dtype=torch.int32)
    m0, n = integer.fixed_point(multipliers)
    return {"w": w_codes.int().T.contiguous(), "b": start, "m0": m0, "n": n, "zero": changes.get("zero", y_zero)}


class Whole(dict):
    """A packed layer whose names are those of our solution, so that ours can run it."""

    def __init__(self, parts):
        super().__init__(weight=parts["w"].T.to(torch.int8), start=parts["b"], m0=parts["m0"], n=parts["n"])
        self["y_zero"] = parts["zero"]


@wrong("ex_3_5", "the bias is missing", binds="pack")
def bias_forgotten(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, times=0))


@wrong("ex_3_5", "counted in steps of the output", binds="pack")
def bias_at_the_output_scale(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, unit=kwargs["y_scale"]))


@wrong("ex_3_5", "divided by the scale of the input only", binds="pack")
def bias_at_the_input_scale(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, unit=kwargs["x_scale"]))


@wrong("ex_3_5", "added twice", binds="pack")
def bias_twice(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, times=2))


@wrong("ex_3_5", "zero point of the input was not corrected", binds="pack")
def no_zero_point(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, correction=0))


@wrong("ex_3_5", "has the wrong sign", binds="pack")
def zero_point_added(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, correction=-1))


@wrong("ex_3_5", "multiplier of the first one", binds="pack")
def first_scale_for_all(*args, **kwargs):
    m = kwargs["x_scale"] * kwargs["w_scales"] / kwargs["y_scale"]
    return Whole(packed_parts(*args, **kwargs, multipliers=m[:1].expand_as(m)))


@wrong("ex_3_5", "zero point of the output is missing", binds="pack")
def output_zero_point_forgotten(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, zero=0))


@wrong("ex_3_5", "the output's scale is missing", binds="pack")
def multiplier_without_y_scale(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, multipliers=kwargs["x_scale"] * kwargs["w_scales"]))


@wrong("ex_3_5", "is not an integer or a tensor of integers", binds="pack")
def scales_packed_as_floats(w_codes, w_scales, bias, x_scale, x_zero, y_scale, y_zero):
    return {"weight": w_codes, "bias": bias, "multiplier": x_scale * w_scales / y_scale, "x_zero": x_zero}


@wrong("ex_3_5", "belongs into `pack`", binds="integer_linear")
def floats_at_run_time(x_codes, packed):
    sums = x_codes.int() @ packed["weight"].int().T + packed["start"]
    multipliers = packed["m0"] * 2.0 ** -(31 + packed["n"].double())
    return ((sums * multipliers).round() + packed["y_zero"]).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_5", "input codes above 127 became negative", binds="integer_linear")
def signed_input(x_codes, packed):
    sums = x_codes.to(torch.int8).int() @ packed["weight"].int().T + packed["start"]
    return integer.requantize(sums, packed["m0"], packed["n"], packed["y_zero"])


@wrong("ex_3_5", "wrapped around in 16 bits", binds="integer_linear")
def sixteen_bits(x_codes, packed):
    sums = (x_codes.short() @ packed["weight"].short().T).int() + packed["start"]
    return integer.requantize(sums, packed["m0"], packed["n"], packed["y_zero"])


@wrong("ex_3_5", "a shift cuts off", binds="integer_linear")
def shifted_without_rounding(x_codes, packed):
    sums = (x_codes.int() @ packed["weight"].int().T + packed["start"]).long()
    return (((sums * packed["m0"]) >> (packed["n"] + 31)) + packed["y_zero"]).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_5", "they are not clamped", binds="integer_linear")
def wraps_at_the_end(x_codes, packed):
    sums = (x_codes.int() @ packed["weight"].int().T + packed["start"]).long()
    steps = (sums * packed["m0"] + (1 << (packed["n"] + 30))) >> (packed["n"] + 31)
    return (steps + packed["y_zero"]).to(torch.uint8)


@wrong("ex_3_5", "upside down", binds="pack")
def multiplier_upside_down(*args, **kwargs):
    parts = packed_parts(*args, **kwargs)
    halves, exponents = torch.frexp(kwargs["y_scale"] / (kwargs["x_scale"] * kwargs["w_scales"]))
    return Whole(parts | {"m0": (halves * 2**31).round().long(), "n": -exponents.long()})


@wrong("ex_3_5", "the scale of the input is missing", binds="pack")
def multiplier_without_x_scale(*args, **kwargs):
    return Whole(packed_parts(*args, **kwargs, multipliers=kwargs["w_scales"] / kwargs["y_scale"]))


@wrong("ex_3_5", "scales of the weight are missing", binds="pack")
def multiplier_without_w_scales(*args, **kwargs):
    multipliers = torch.full_like(kwargs["w_scales"], kwargs["x_scale"] / kwargs["y_scale"])
    return Whole(packed_parts(*args, **kwargs, multipliers=multipliers))


@wrong("ex_3_5", "subtracted once a sum", binds="pack")
def zero_point_once(*args, **kwargs):
    parts = packed_parts(*args, **kwargs, correction=0)
    return Whole(parts | {"b": parts["b"] - kwargs["x_zero"]})


LAST = {}


def runs_what_was_packed_last(x_codes, packed):
    sums = x_codes.int() @ LAST["weight"].int().T + LAST["start"]
    return integer.requantize(sums, LAST["m0"], LAST["n"], LAST["y_zero"])


@wrong("ex_3_5", "on what was packed last", binds="pack")
def everything_in_a_global(*args, **kwargs):
    sys._getframe(1).f_globals["integer_linear"] = runs_what_was_packed_last
    LAST.update(Whole(packed_parts(*args, **kwargs)))
    return dict(LAST)


Y_ZERO = 117


@wrong("ex_3_5", "of a layer that came before", binds="integer_linear")
def zero_point_of_the_notebook(x_codes, packed):
    sums = x_codes.int() @ packed["weight"].int().T + packed["start"]
    return integer.requantize(sums, packed["m0"], packed["n"], Y_ZERO)


@wrong("ex_3_5", "your function changed `packed`", binds="integer_linear")
def adds_into_the_start(x_codes, packed):
    start = packed["start"]
    sums = x_codes.int() @ packed["weight"].int().T + start
    answer = integer.requantize(sums, packed["m0"], packed["n"], packed["y_zero"])
    start += 1
    return answer


@wrong("ex_3_5", "your function changed `bias`", binds="pack")
def bias_divided_in_place(*args, **kwargs):
    packed = Whole(packed_parts(*args, **kwargs))
    kwargs["bias"].div_(kwargs["x_scale"])
    return packed


@wrong("ex_3_5", "`integer_linear` makes floats (astype", binds="integer_linear")
def numpy_floats_at_run_time(x_codes, packed):
    x, w = x_codes.numpy().astype(np.float32), packed["weight"].numpy().astype(np.float32)
    sums = torch.from_numpy((x @ w.T).astype(np.int32)) + packed["start"]
    return integer.requantize(sums, packed["m0"], packed["n"], packed["y_zero"])


@wrong("ex_3_5", "rounded twice", binds="integer_linear")
def shifted_twice(x_codes, packed):
    sums = x_codes.int() @ packed["weight"].int().T + packed["start"]
    return two_rounding_shifts(sums, packed["m0"], packed["n"], packed["y_zero"])


@wrong("ex_3_5", "expected is torch.uint8", binds="integer_linear")
def codes_as_int32(x_codes, packed):
    sums = x_codes.int() @ packed["weight"].int().T + packed["start"]
    return integer.requantize(sums, packed["m0"], packed["n"], packed["y_zero"]).int()


@wrong("ex_3_5", "should return a dictionary", binds="pack")
def packs_a_tuple(*args, **kwargs):
    return tuple(packed_parts(*args, **kwargs).values())


@wrong("ex_3_5", "what pack returned is None", binds="pack")
def packs_and_forgets(*args, **kwargs):
    Whole(packed_parts(*args, **kwargs))


@right("ex_3_5", binds="pack")
def wider_parts(w_codes, w_scales, bias, x_scale, x_zero, y_scale, y_zero):
    m0, n = integer.fixed_point(x_scale * w_scales / y_scale)
    start = (bias.double() / w_scales / x_scale).round().long() - (w_codes.long() * x_zero).sum(1)
    return {"weight": w_codes.to(torch.int16), "start": start, "m0": m0, "n": n, "y_zero": int(y_zero)}


@right("ex_3_5", binds="integer_linear")
def row_by_row(x_codes, packed):
    rows = []
    for row in x_codes.long():
        sums = (packed["weight"].long() * row).sum(1) + packed["start"]
        steps = (sums * packed["m0"] + 2 ** (packed["n"] + 30)) >> (packed["n"] + 31)
        rows.append((steps + packed["y_zero"]).clamp(0, 255).to(torch.uint8))
    return torch.stack(rows)


# 3.6 ReLU as a clamp


def steps_of(sums, m0, n):
    return (sums.long() * m0 + (1 << (n + 30))) >> (n + 31)


@wrong("ex_3_6", "real 0 is the code y_zero, not the code 0")
def clamped_at_code_0(sums, m0, n, y_zero):
    return (steps_of(sums, m0, n) + y_zero).clamp(min=0).clamp(max=255).to(torch.uint8)


@wrong("ex_3_6", "the zero point is missing after the ReLU")
def relu_without_zero_point(sums, m0, n, y_zero):
    return steps_of(sums, m0, n).clamp(0, 255).to(torch.uint8)


@wrong("ex_3_6", "before the zero point is added: larger codes wrapped around")
def clamped_before_the_zero_point(sums, m0, n, y_zero):
    return (steps_of(sums, m0, n).clamp(0, 255) + y_zero).to(torch.uint8)


@wrong("ex_3_6", "the wrong end")
def upper_end(sums, m0, n, y_zero):
    return integer.requantize(sums, m0, n, y_zero, qmax=y_zero)


@wrong("ex_3_6", "became 0; they must become y_zero")
def negative_codes_zeroed(sums, m0, n, y_zero):
    codes = integer.requantize(sums, m0, n, y_zero)
    return torch.where(codes < y_zero, 0, codes).to(torch.uint8)


@wrong("ex_3_6", "clamp at 255, too")
def no_upper_end(sums, m0, n, y_zero):
    return (steps_of(sums, m0, n) + y_zero).clamp(min=y_zero).to(torch.uint8)


@wrong("ex_3_6", "the upper end of the codes is 255")
def seven_bits(sums, m0, n, y_zero):
    return integer.requantize(sums, m0, n, y_zero, qmin=y_zero, qmax=max(127, y_zero))


@wrong("ex_3_6", "ReLU needs integers only")
def through_real_numbers(sums, m0, n, y_zero):
    return ((sums * (m0 * 2.0 ** -(31 + n.double()))).relu().round() + y_zero).clamp(max=255).to(torch.uint8)


@wrong("ex_3_6", "negative codes wrapped around when they became uint8, before the clamp at y_zero")
def wrapped_before_the_clamp(sums, m0, n, y_zero):
    return (steps_of(sums, m0, n) + y_zero).clamp(max=255).to(torch.uint8).clamp(min=y_zero)


@wrong("ex_3_6", "before any clamp")
def wrapped_before_both_clamps(sums, m0, n, y_zero):
    return (steps_of(sums, m0, n) + y_zero).to(torch.uint8).clamp(y_zero, 255)


@wrong("ex_3_6", "a shift cuts off")
def relu_without_rounding(sums, m0, n, y_zero):
    return (((sums.long() * m0) >> (n + 31)) + y_zero).clamp(y_zero, 255).to(torch.uint8)


@wrong("ex_3_6", "real 0 is the code 128")
def relu_at_the_middle(sums, m0, n, y_zero):
    return integer.requantize(sums, m0, n, y_zero, qmin=128)


@wrong("ex_3_6", "your function changed `sums`")
def relu_in_place(sums, m0, n, y_zero):
    return integer.requantize(sums.relu_(), m0, n, y_zero)


@wrong("ex_3_6", "expected is torch.uint8")
def relu_in_int64(sums, m0, n, y_zero):
    return (steps_of(sums, m0, n) + y_zero).clamp(y_zero, 255)


@wrong("ex_3_6", "ReLU needs integers only", like="through_real_numbers")
def relu_of_numpy_floats(sums, m0, n, y_zero):
    real = np.maximum(sums.numpy() * (m0.numpy() * 2.0 ** -(31.0 + n.numpy())), 0)
    return torch.from_numpy(np.minimum(np.rint(real) + y_zero, 255).astype(np.uint8))


@right("ex_3_6")
def relu_of_the_steps_in_numpy(sums, m0, n, y_zero):
    shift = n.numpy() + 31
    steps = (sums.numpy().astype(np.int64) * m0.numpy() + (np.int64(1) << (shift - 1))) >> shift
    return torch.from_numpy(np.clip(steps + y_zero, y_zero, 255).astype(np.uint8))


@right("ex_3_6")
def relu_on_the_sums(sums, m0, n, y_zero):
    return integer.requantize(sums.relu(), m0, n, y_zero)


@right("ex_3_6")
def maximum_after_the_clamp(sums, m0, n, y_zero):
    codes = integer.requantize(sums, m0, n, y_zero)
    return torch.maximum(codes, torch.tensor(y_zero, dtype=torch.uint8))


# 3.7 the accumulator budget


@wrong("ex_3_7", "the product of the two largest codes alone")
def largest_codes_only(x_min, x_max, w_min, w_max, bits):
    product = x_max * w_max
    if product == 0:
        return 1
    return (2 ** (bits - 1) - 1) // product if product > 0 else 2 ** (bits - 1) // -product


@wrong("ex_3_7", "do not forget -128, which has no positive partner", like="largest_codes_only")
def symmetric_weights(x_min, x_max, w_min, w_max, bits):
    products = x_max * w_max, max(x_min, -x_max) * w_max
    return exact_length(*products, 1, 1, bits) if any(products) else 1


@wrong("ex_3_7", "it ends at 2**(bits-1) - 1")
def without_a_sign(x_min, x_max, w_min, w_max, bits):
    return (2**bits - 1) // (max(abs(x_min), abs(x_max)) * max(abs(w_min), abs(w_max)))


@wrong("ex_3_7", "counts against 2**(bits-1), not against 2**(bits-1) - 1")
def absolute_values(x_min, x_max, w_min, w_max, bits):
    return (2 ** (bits - 1) - 1) // (max(abs(x_min), abs(x_max)) * max(abs(w_min), abs(w_max)))


@wrong("ex_3_7", "positive end only")
def positive_end(x_min, x_max, w_min, w_max, bits):
    largest = max(x * w for x in (x_min, x_max) for w in (w_min, w_max))
    return (2 ** (bits - 1) - 1) // largest if largest else 1


@wrong("ex_3_7", "the average case")
def average_case(x_min, x_max, w_min, w_max, bits):
    mean = abs(x_min + x_max) / 2 * (abs(w_min) + abs(w_max)) / 2 or 1
    return int((2 ** (bits - 1) - 1) // mean)


@wrong("ex_3_7", "divide with //")
def divided(x_min, x_max, w_min, w_max, bits):
    return 2 ** (bits - 1) / max(abs(x * w) for x in (x_min, x_max) for w in (w_min, w_max))


@wrong("ex_3_7", "two corners")
def corners_of_equal_ends(x_min, x_max, w_min, w_max, bits):
    products = [p for p in (x_min * w_min, x_max * w_max) if p]
    return min((2 ** (bits - 1) - (p > 0)) // abs(p) for p in products) if products else 1


@wrong("ex_3_7", "negative end only")
def negative_end(x_min, x_max, w_min, w_max, bits):
    lowest = min(x * w for x in (x_min, x_max) for w in (w_min, w_max))
    return 2 ** (bits - 1) // -lowest if lowest < 0 else 1


@wrong("ex_3_7", "counts against 2**(bits-1) - 1, not against 2**(bits-1)")
def absolute_values_at_the_negative_end(x_min, x_max, w_min, w_max, bits):
    return 2 ** (bits - 1) // (max(abs(x_min), abs(x_max)) * max(abs(w_min), abs(w_max)))


@wrong("ex_3_7", "divide integers with //, not with / and int()")
def divided_as_floats(x_min, x_max, w_min, w_max, bits):
    products = [x * w for x in (x_min, x_max) for w in (w_min, w_max)]
    return min(int((2 ** (bits - 1) - (p > 0)) / abs(p)) for p in products if p)


@wrong("ex_3_7", "not at 2**bits - 1")
def one_bit_too_many(x_min, x_max, w_min, w_max, bits):
    return exact_length(x_min, x_max, w_min, w_max, bits + 1)


@wrong("ex_3_7", "That is one too many")
def one_too_many(x_min, x_max, w_min, w_max, bits):
    return exact_length(x_min, x_max, w_min, w_max, bits) + 1


@wrong("ex_3_7", "That is one too few")
def carefully_one_less(x_min, x_max, w_min, w_max, bits):
    return exact_length(x_min, x_max, w_min, w_max, bits) - 1


def exact_length(x_min, x_max, w_min, w_max, bits):
    top, lengths = 2 ** (bits - 1), []
    for product in (x_min * w_min, x_min * w_max, x_max * w_min, x_max * w_max):
        if product:
            lengths.append((top - 1) // product if product > 0 else top // -product)
    return min(lengths)


@right("ex_3_7")
def corner_by_corner(x_min, x_max, w_min, w_max, bits):
    return exact_length(x_min, x_max, w_min, w_max, bits)


@right("ex_3_7")
def by_bisection(x_min, x_max, w_min, w_max, bits):
    corners = [x * w for x in (x_min, x_max) for w in (w_min, w_max)]
    low, high = 0, 2**bits
    while high - low > 1:
        middle = (low + high) // 2
        good = all(-(2 ** (bits - 1)) <= middle * c < 2 ** (bits - 1) for c in corners)
        low, high = (middle, high) if good else (low, middle)
    return low


@wrong("ex_3_7", "the answer is 0, not 1")
def at_least_one_product(x_min, x_max, w_min, w_max, bits):
    products = [x * w for x in (x_min, x_max) for w in (w_min, w_max)]
    top = 2 ** (bits - 1)
    return max(1, min((top - 1 if p > 0 else top) // abs(p) for p in products if p))


@wrong("ex_3_7", "The products wrapped around in 32 bits")
def products_in_int32(x_min, x_max, w_min, w_max, bits):
    products = np.outer(np.array([x_min, x_max], np.int32), np.array([w_min, w_max], np.int32)).ravel().tolist()
    top = 2 ** (bits - 1)
    return min((top - 1 if p > 0 else top) // abs(p) for p in products if p)
