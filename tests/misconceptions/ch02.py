"""Unit 02: what learners really answer in sections 1 to 8 (the error clinic is in ch02_clinic.py)."""

import copy
import math
from typing import ClassVar

import numpy as np
import torch
import torch.ao.quantization as tq
import torchao.quantization as ao
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from helpers import affine, int8
from tests.misconceptions import ch02_clinic  # noqa: F401
from tests.misconceptions.bank import right, wrong

# 2.1 scale and zero point


def qparams(low, high, qmin, qmax, gaps=0, widen=True, zero=None, least=2.0**-23):
    if widen:
        low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (qmax - qmin + gaps), least)
    zero_point = qmin - round(low / scale) if zero is None else zero(low / scale)
    return scale, min(max(zero_point, qmin), qmax)


@wrong("ex_2_1", "not widened to include 0")
def range_not_widened(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, widen=False)


@wrong("ex_2_1", "one fewer than codes")
def number_of_codes(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, gaps=1)


@wrong("ex_2_1", "not a whole number")
def zero_point_not_rounded(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, zero=lambda steps: qmin - steps)


@wrong("ex_2_1", "cut off (int) instead of rounded")
def zero_point_cut_off(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, zero=lambda steps: qmin + int(-steps))


@wrong("ex_2_1", "not clamped to the codes")
def only_the_scale_is_widened(low, high, qmin, qmax):
    scale, _ = qparams(low, high, qmin, qmax)
    return scale, qmin - round(low / scale)


@wrong("ex_2_1", "Codes start at qmin, not at 0")
def qmin_forgotten(low, high, qmin, qmax):
    scale, _ = qparams(low, high, qmin, qmax)
    return scale, min(max(-round(min(low, 0) / scale), qmin), qmax)


@wrong("ex_2_1", "the sign is wrong")
def sign_of_low(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, zero=lambda steps: qmin + round(steps))


@wrong("ex_2_1", "divide by zero")
def no_smallest_scale(low, high, qmin, qmax):
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (qmax - qmin)
    return scale, min(max(qmin - round(low / scale), qmin), qmax)


@wrong("ex_2_1", "only the larger side was used")
def symmetric_scale(low, high, qmin, qmax):
    scale = max(abs(low), abs(high), 2.0**-23) / (qmax - qmin)
    return scale, min(max(qmin - round(low / scale), qmin), qmax)


@wrong("ex_2_1", "a pair: scale, zero point")
def only_the_scale(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax)[0]


@wrong("ex_2_1", "In a tensor 0 / 0 is nan")
def nan_of_a_tensor(low, high, qmin, qmax):
    low, high = torch.tensor([min(low, 0.0), max(high, 0.0)])
    scale = (high - low) / (qmax - qmin)
    return scale, (qmin - torch.round(low / scale)).clamp(qmin, qmax)


@wrong("ex_2_1", "you divide by zero", like="no_smallest_scale")
def nan_made_an_int(low, high, qmin, qmax):
    scale, zero_point = nan_of_a_tensor(low, high, qmin, qmax)
    return float(scale), int(zero_point)


@wrong("ex_2_1", "a scale of 0 cannot divide")
def scale_of_zero_is_returned(low, high, qmin, qmax):
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (qmax - qmin)
    return scale, min(max(qmin - round(low / scale), qmin), qmax) if scale else qmin


@wrong("ex_2_1", "only a range of exactly 0 got 2**-23")
def least_scale_for_zeros_only(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, least=0.0 if high > low else 2.0**-23)


@wrong("ex_2_1", "take the larger of the two")
def least_scale_is_added(low, high, qmin, qmax):
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (qmax - qmin) + 2.0**-23
    return scale, min(max(qmin - round(low / scale), qmin), qmax)


@wrong("ex_2_1", "yours is the smallest *range*")
def least_range(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, least=2.0**-23 / (qmax - qmin))


@wrong("ex_2_1", "that is the one of float64")
def least_scale_of_float64(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, least=2.0**-52)


@wrong("ex_2_1", "expected is 1.19209e-07")
def another_least_scale(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, least=1e-8)


@wrong("ex_2_1", "an exact half there")
def zero_point_half_up(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, zero=lambda steps: qmin + math.floor(0.5 - steps))


@wrong("ex_2_1", "always rounded up")
def zero_point_rounded_up(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, zero=lambda steps: qmin + math.ceil(-steps))


@wrong("ex_2_1", "clamped to 0 to 255, not to qmin and qmax")
def clamped_to_uint8(low, high, qmin, qmax):
    scale, _ = qparams(low, high, qmin, qmax)
    return scale, min(max(qmin - round(min(low, 0.0) / scale), 0), 255)


@wrong("ex_2_1", "the scale for 256 codes")
def always_256_codes(low, high, qmin, qmax):
    scale, _ = qparams(low, high, 0, 255)
    return scale, min(max(qmin - round(min(low, 0.0) / scale), qmin), qmax)


@wrong("ex_2_1", "the scale comes first")
def pair_turned_around(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax)[::-1]


@right("ex_2_1")
def a_list_of_numpy_numbers(low, high, qmin, qmax):
    return [np.float32(number) for number in qparams(low, high, qmin, qmax)]


@right("ex_2_1")
def with_numpy(low, high, qmin, qmax):
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.maximum((high - low) / (qmax - qmin), np.finfo(np.float32).eps)
    return scale, int(np.clip(qmin - np.rint(low / scale), qmin, qmax))


@right("ex_2_1")
def with_tensors(low, high, qmin, qmax):
    ends = torch.tensor([low, high, 0.0], dtype=torch.float64)
    scale = ((ends.max() - ends.min()) / (qmax - qmin)).clamp(min=torch.finfo(torch.float32).eps)
    return scale, torch.clamp(qmin - torch.round(ends.min() / scale), qmin, qmax)


@wrong("ex_2_1", "qmin is inside the rounding")
def qmin_inside_the_rounding(low, high, qmin, qmax):
    return qparams(low, high, qmin, qmax, zero=lambda steps: round(qmin - steps))


# 2.2 quantize and dequantize


def codes_of(x, scale, zero_point, qmin, qmax, rounding=torch.round):
    return (rounding(x / scale) + zero_point).clamp(qmin, qmax).to(torch.int32)


@wrong("ex_2_2", "cut off (int, trunc) instead of rounded")
def truncated(x, scale, zero_point, qmin, qmax):
    return codes_of(x, scale, zero_point, qmin, qmax, torch.trunc)


@wrong("ex_2_2", "rounded down (floor)")
def rounded_down(x, scale, zero_point, qmin, qmax):
    return codes_of(x, scale, zero_point, qmin, qmax, torch.floor)


@wrong("ex_2_2", "exact halves are rounded up")
def half_up(x, scale, zero_point, qmin, qmax):
    return codes_of(x, scale, zero_point, qmin, qmax, lambda steps: (steps + 0.5).floor())


@wrong("ex_2_2", "exact halves are rounded away from zero")
def half_away(x, scale, zero_point, qmin, qmax):
    return codes_of(x, scale, zero_point, qmin, qmax, lambda steps: steps.sign() * (steps.abs() + 0.5).floor())


@wrong("ex_2_2", "zero point is inside the rounding")
def zero_point_inside(x, scale, zero_point, qmin, qmax):
    return torch.round(x / scale + zero_point).clamp(qmin, qmax).to(torch.int32)


@wrong("ex_2_2", "the codes are not clamped: some lie beyond")
def no_clamp(x, scale, zero_point, qmin, qmax):
    return (torch.round(x / scale) + zero_point).to(torch.int32)


@wrong("ex_2_2", "they wrap around")
def wraps(x, scale, zero_point, qmin, qmax):
    kind = torch.uint8 if qmin == 0 else torch.int8
    return (torch.round(x / scale) + zero_point).int().to(kind).int()


@wrong("ex_2_2", "clamp before the zero point is added")
def clamp_too_early(x, scale, zero_point, qmin, qmax):
    return (torch.round(x / scale).clamp(qmin, qmax) + zero_point).int()


@wrong("ex_2_2", "turned into int32 before they are clamped")
def int32_before_clamp(x, scale, zero_point, qmin, qmax):
    return (torch.round(x / scale).to(torch.int32) + zero_point).clamp(qmin, qmax)


@wrong("ex_2_2", "they should be int32")
def float_codes(x, scale, zero_point, qmin, qmax):
    return (torch.round(x / scale) + zero_point).clamp(qmin, qmax)


@wrong("ex_2_2", "your function changed `codes`", binds="dequantize")
def works_in_place(codes, scale, zero_point):
    real = codes.to(torch.float32) - zero_point
    codes -= codes
    return real * scale


@wrong("ex_2_2", "the zero point was forgotten")
def without_zero_point(x, scale, zero_point, qmin, qmax):
    return codes_of(x, scale, 0, qmin, qmax)


@wrong("ex_2_2", "a plain tensor of codes")
def a_quantized_tensor(x, scale, zero_point, qmin, qmax):
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8 if qmin == 0 else torch.qint8)


@wrong("ex_2_2", "in the 8-bit type of the codes and wrapped around", binds="dequantize")
def subtracts_in_8_bits(codes, scale, zero_point):
    return (codes - zero_point).to(torch.float32) * scale


@wrong("ex_2_2", "subtracted before the scale is applied, not after", binds="dequantize")
def zero_point_in_real_units(codes, scale, zero_point):
    return codes.float() * scale - zero_point


@wrong("ex_2_2", "multiply to get back", binds="dequantize")
def divides(codes, scale, zero_point):
    return (codes.float() - zero_point) / scale


@wrong("ex_2_2", "your function changed `x`")
def divides_in_place(x, scale, zero_point, qmin, qmax):
    with torch.no_grad():
        return (x.div_(scale).round() + zero_point).clamp(qmin, qmax).to(torch.int32)


@wrong("ex_2_2", "quantize does not take a transposed view")
def flattens_with_view(x, scale, zero_point, qmin, qmax):
    return codes_of(x.view(-1), scale, zero_point, qmin, qmax).view(x.shape)


@wrong("ex_2_2", "quantize does not take an nn.Parameter")
def numpy_of_a_parameter(x, scale, zero_point, qmin, qmax):
    return torch.from_numpy(np.clip(np.rint(x.numpy() / scale) + zero_point, qmin, qmax).astype(np.int32))


@wrong("ex_2_2", "only the upper end is clamped")
def upper_end_only(x, scale, zero_point, qmin, qmax):
    return (torch.round(x / scale) + zero_point).clamp(max=qmax).to(torch.int32)


@wrong("ex_2_2", "only the lower end is clamped")
def lower_end_only(x, scale, zero_point, qmin, qmax):
    return (torch.round(x / scale) + zero_point).clamp(min=qmin).to(torch.int32)


@wrong("ex_2_2", "not to qmin and qmax")
def clamped_as_uint8(x, scale, zero_point, qmin, qmax):
    return codes_of(x, scale, zero_point, 0, 255)


@wrong("ex_2_2", "qmin is its own number")
def clamped_symmetrically(x, scale, zero_point, qmin, qmax):
    return codes_of(x, scale, zero_point, -qmax if qmin else 0, qmax)


@wrong("ex_2_2", "rounded towards zero")
def half_towards_zero(x, scale, zero_point, qmin, qmax):
    return codes_of(x, scale, zero_point, qmin, qmax, lambda steps: steps.sign() * (steps.abs() - 0.5).ceil())


@wrong("ex_2_2", "do not fit into 16 bits", binds="dequantize")
def through_int16(codes, scale, zero_point):
    return (codes.to(torch.int16) - zero_point).float() * scale


@wrong("ex_2_2", "added instead of subtracted", binds="dequantize")
def adds_the_zero_point(codes, scale, zero_point):
    return (codes.float() + zero_point) * scale


@wrong("ex_2_2", "expected is torch.float32", binds="dequantize")
def stays_float64(codes, scale, zero_point):
    return (codes.double() - zero_point) * scale


@right("ex_2_2")
def with_numpy_rint(x, scale, zero_point, qmin, qmax):
    steps = np.rint(x.detach().numpy() / np.float32(scale)) + zero_point
    return torch.from_numpy(np.minimum(np.maximum(steps, qmin), qmax).astype(np.int32))


@right("ex_2_2", binds="dequantize")
def difference_of_products(codes, scale, zero_point):
    return scale * codes.float() - scale * zero_point


@right("ex_2_2", binds="dequantize")
def through_float64(codes, scale, zero_point):
    return torch.mul(codes.double().sub(zero_point), scale).float()


@wrong("ex_2_2", "turned into int64 before they are clamped", like="int32_before_clamp")
def through_int64(x, scale, zero_point, qmin, qmax):
    return (torch.round(x / scale).to(torch.int64) + zero_point).clamp(qmin, qmax).to(torch.int32)


@wrong("ex_2_2", "keep something from call to call")
def one_buffer_for_each_shape(x, scale, zero_point, qmin, qmax, buffers={}):  # noqa: B006
    buffer = buffers.setdefault(tuple(x.shape), torch.empty(x.shape, dtype=torch.int32))
    return buffer.copy_((torch.round(x.detach() / scale) + zero_point).clamp(qmin, qmax))


@wrong("ex_2_2", "two calls of dequantize", binds="dequantize")
def one_float_buffer(codes, scale, zero_point, buffers={}):  # noqa: B006
    return buffers.setdefault(tuple(codes.shape), torch.empty(codes.shape)).copy_((codes.float() - zero_point) * scale)


@wrong("ex_2_2", "reconstruction of the int64 codes", binds="dequantize", like="through_int16")
def long_codes_in_16_bits(codes, scale, zero_point):
    return ((codes.to(torch.int16) if codes.dtype == torch.int64 else codes.int()) - zero_point).float() * scale


@wrong("ex_2_2", "the subtraction was done in 16 bits", binds="dequantize")
def subtracts_in_16_bits(codes, scale, zero_point):
    return ((codes if codes.dtype == torch.int16 else codes.float()) - zero_point).float() * scale


# 2.3 symmetric per-channel


def per_channel(weight, axis=0, bits=8, qmax=None, scales=None, rounding=torch.round, divisor=None):
    qmax, weight = qmax or 2 ** (bits - 1) - 1, weight.detach()
    shape = [-1 if dim == axis % weight.dim() else 1 for dim in range(weight.dim())]
    if scales is None:
        scales = weight.movedim(axis, 0).reshape(weight.shape[axis], -1).abs().amax(dim=1) / (divisor or qmax)
        scales = scales.masked_fill(scales == 0, 1.0)
    codes = rounding(weight / scales.view(shape)).clamp(-qmax, qmax).to(torch.int8)
    return codes, scales


@wrong("ex_2_3", "one scale for the whole tensor")
def per_tensor(weight, axis=0, bits=8):
    scales = (weight.abs().max() / (2 ** (bits - 1) - 1)).expand(weight.shape[axis]).clone()
    return per_channel(weight, axis, bits, scales=scales)


@wrong("ex_2_3", "Is the axis the wrong one")
def wrong_axis(weight, axis=0, bits=8):
    return per_channel(weight, (axis + 1) % weight.dim(), bits)


@wrong("ex_2_3", "as PyTorch does (that is max - min over 255), which also uses -128")
def divides_by_127_and_a_half(weight, axis=0, bits=8):
    return per_channel(weight, axis, bits, divisor=2 ** (bits - 1) - 0.5)


@wrong("ex_2_3", "not 128")
def divides_by_128(weight, axis=0, bits=8):
    return per_channel(weight, axis, bits, divisor=2 ** (bits - 1))


@wrong("ex_2_3", "without abs()")
def largest_without_abs(weight, axis=0, bits=8):
    scales = weight.transpose(0, axis).flatten(1).amax(dim=1) / (2 ** (bits - 1) - 1)
    return per_channel(weight, axis, bits, scales=scales)


@wrong("ex_2_3", "you get nan")
def zero_row_is_nan(weight, axis=0, bits=8):
    scales = weight.detach().movedim(axis, 0).reshape(weight.shape[axis], -1).abs().amax(dim=1) / (2 ** (bits - 1) - 1)
    return per_channel(weight, axis, bits, scales=scales)


@wrong("ex_2_3", "with 4 bits codes go from -7 to 7")
def always_8_bits(weight, axis=0, bits=8):
    return per_channel(weight, axis, 8)


@wrong("ex_2_3", "cut off instead of rounded")
def codes_cut_off(weight, axis=0, bits=8):
    return per_channel(weight, axis, bits, rounding=torch.trunc)


@wrong("ex_2_3", "there should be one for each")
def scales_keep_dimensions(weight, axis=0, bits=8):
    codes, scales = per_channel(weight, axis, bits)
    return codes, scales.view([-1 if dim == axis else 1 for dim in range(weight.dim())])


@wrong("ex_2_3", "expected is torch.int8")
def codes_stay_float(weight, axis=0, bits=8):
    codes, scales = per_channel(weight, axis, bits)
    return codes.float(), scales


@wrong("ex_2_3", "a negative axis counts from the end")
def negative_axis_is_no_axis(weight, axis=0, bits=8):
    others = [dim for dim in range(weight.dim()) if dim != axis]
    largest = weight.detach().abs().amax(dim=others, keepdim=True)
    qmax = 2 ** (bits - 1) - 1
    scales = torch.where(largest / qmax > 0, largest / qmax, 1.0)
    codes = (weight / scales).round().clamp(-qmax, qmax).to(torch.int8)
    return codes, scales.flatten().expand(weight.shape[axis])


@wrong("ex_2_3", "a weight of one dimension", like="per_tensor")
def one_dimension_is_one_channel(weight, axis=0, bits=8):
    if weight.dim() == 1:
        return per_tensor(weight, axis, bits)
    return per_channel(weight, axis, bits)


@wrong("ex_2_3", "whether the *scale* is 0")
def asks_the_weight_for_zero(weight, axis=0, bits=8):
    largest = weight.transpose(0, axis).flatten(1).abs().amax(dim=1) if weight.dim() > 1 else weight.abs()
    scales = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0).detach()
    return per_channel(weight, axis, bits, scales=scales)


@wrong("ex_2_3", "a quiet channel (1e-12) is not")
def quiet_is_zero(weight, axis=0, bits=8):
    _, scales = per_channel(weight, axis, bits)
    return per_channel(weight, axis, bits, scales=torch.where(scales < 1e-10, 1.0, scales))


@wrong("ex_2_3", "should get scale 1; yours has")
def least_scale(weight, axis=0, bits=8):
    scales = per_channel(weight, axis, bits)[1]
    return per_channel(weight, axis, bits, scales=torch.where(scales == 1, 1e-8, scales))


@wrong("ex_2_3", "view needs contiguous memory")
def flattens_a_weight_with_view(weight, axis=0, bits=8):
    return per_channel(weight.detach().view(-1).view(weight.shape), axis, bits)


@wrong("ex_2_3", "your function changed `weight`")
def takes_abs_in_place(weight, axis=0, bits=8):
    signs = weight.detach().sign()
    codes, scales = per_channel(weight.detach().abs_(), axis, bits)
    return (codes * signs).to(torch.int8), scales


@wrong("ex_2_3", "expected is torch.float32")
def scales_of_float64(weight, axis=0, bits=8):
    codes, scales = per_channel(weight.double(), axis, bits)
    return codes, scales


@wrong("ex_2_3", "these are the scales of 4 bits")
def four_or_eight(weight, axis=0, bits=8):
    return per_channel(weight, axis, 8 if bits == 8 else 4)


@wrong("ex_2_3", "exact halves are rounded up")
def codes_half_up(weight, axis=0, bits=8):
    return per_channel(weight, axis, bits, rounding=lambda steps: (steps + 0.5).floor())


@wrong("ex_2_3", "exact halves are rounded away from zero")
def codes_half_away(weight, axis=0, bits=8):
    return per_channel(weight, axis, bits, rounding=lambda steps: steps.sign() * (steps.abs() + 0.5).floor())


@wrong("ex_2_3", "rounded down instead of to the nearest")
def codes_rounded_down(weight, axis=0, bits=8):
    return per_channel(weight, axis, bits, rounding=torch.floor)


@wrong("ex_2_3", "you divided max - min")
def range_over_codes(weight, axis=0, bits=8):
    flat = weight.detach().movedim(axis, 0).reshape(weight.shape[axis], -1)
    return per_channel(weight, axis, bits, scales=(flat.amax(dim=1) - flat.amin(dim=1)) / (2**bits - 2))


@right("ex_2_3")
def a_channel_at_a_time(weight, axis=0, bits=8):
    qmax, codes, scales = 2 ** (bits - 1) - 1, torch.empty(weight.shape, dtype=torch.int8), []
    for channel in range(weight.shape[axis]):
        values = weight.detach().select(axis, channel)
        scale = float(values.abs().max() / qmax) or 1.0
        codes.select(axis, channel).copy_(torch.round(values / scale))
        scales.append(scale)
    return codes, torch.tensor(scales)


@right("ex_2_3")
def with_torch_s_kernel(weight, axis=0, bits=8):
    qmax = 2 ** (bits - 1) - 1
    weight = weight.detach().contiguous()
    scales = weight.movedim(axis, 0).reshape(weight.shape[axis], -1).abs().max(dim=1).values / qmax
    scales = torch.where(scales == 0, 1.0, scales)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    axis %= weight.dim()
    return torch.quantize_per_channel(weight, scales, zeros, axis, torch.qint8).int_repr().clamp(-qmax, qmax), scales


@wrong("ex_2_3", "Only where it is exactly 0 the scale is 1")
def one_for_very_quiet_channels(weight, axis=0, bits=8):
    scales = per_channel(weight, axis, bits)[1]
    return per_channel(weight, axis, bits, scales=torch.where(scales < 1e-30, 1.0, scales))


# 2.4 an observer


class Watcher:
    """The skeleton of a right answer; the wrong ones change a step."""

    def __init__(self, qmin=0, qmax=255, averaging_constant=None):
        self.qmin, self.qmax, self.averaging_constant = qmin, qmax, averaging_constant
        self.low = self.high = None

    def update(self, low, high):
        if self.low is None:
            self.low, self.high = low, high
        elif self.averaging_constant is None:
            self.low, self.high = min(self.low, low), max(self.high, high)
        else:
            c = self.averaging_constant
            self.low, self.high = (1 - c) * self.low + c * low, (1 - c) * self.high + c * high

    def forward(self, x):
        self.update(float(x.min()), float(x.max()))
        return x

    def calculate_qparams(self):
        if self.low is None:
            raise RuntimeError("nothing seen")
        return affine.qparams(self.low, self.high, self.qmin, self.qmax)


@wrong("ex_2_4", "the last batch only")
class LastBatchOnly(Watcher):
    def update(self, low, high):
        self.low, self.high = low, high


@wrong("ex_2_4", "the plain average of the ranges")
class AverageOfRanges(Watcher):
    def update(self, low, high):
        self.seen = [*getattr(self, "seen", []), (low, high)]
        self.low, self.high = (sum(v) / len(self.seen) for v in zip(*self.seen, strict=True))


@wrong("ex_2_4", "should raise RuntimeError")
class EmptyLikePyTorch(Watcher):
    def calculate_qparams(self):
        return (1.0, 0) if self.low is None else super().calculate_qparams()


@wrong("ex_2_4", "the average starts at 0")
class AverageFromZero(Watcher):
    def update(self, low, high):
        if self.averaging_constant is not None and self.low is None:
            self.low = self.high = 0.0
        super().update(low, high)


@wrong("ex_2_4", "old and new are swapped")
class SwappedConstant(Watcher):
    def update(self, low, high):
        if self.low is None or self.averaging_constant is None:
            return super().update(low, high)
        c = self.averaging_constant
        self.low, self.high = low + c * (self.low - low), high + c * (self.high - high)


@wrong("ex_2_4", "not their moving average")
class ConstantIgnored(Watcher):
    def __init__(self, qmin=0, qmax=255, averaging_constant=None):
        super().__init__(qmin, qmax)


@wrong("ex_2_4", "what forward returned is None")
class ReturnsNothing(Watcher):
    def forward(self, x):
        super().forward(x)


@wrong("ex_2_4", "ask `is None`")
class ZeroIsNothing(Watcher):
    def calculate_qparams(self):
        if not self.low:
            raise RuntimeError("nothing seen")
        return super().calculate_qparams()


@wrong("ex_2_4", "return its input unchanged")
class ReturnsQuantized(Watcher):
    def forward(self, x):
        super().forward(x)
        return affine.fake_quantize(x, *self.calculate_qparams(), self.qmin, self.qmax)


@wrong("ex_2_4", "keep the range in self, not in the class")
class SharedRange(Watcher):
    low = high = None

    def __init__(self, qmin=0, qmax=255, averaging_constant=None):
        self.qmin, self.qmax, self.averaging_constant = qmin, qmax, averaging_constant

    def update(self, low, high):
        super().update(low, high)
        SharedRange.low, SharedRange.high = self.low, self.high


@wrong("ex_2_4", "it begins anew after a batch whose smallest number is 0")
class BeginsAnewAfterZero(Watcher):
    def update(self, low, high):
        if not self.low:
            self.low, self.high = low, high
        else:
            super().update(low, high)


@wrong("ex_2_4", "a constant of 0.0 is a constant, too")
class ConstantOfZeroIsNone(Watcher):
    def __init__(self, qmin=0, qmax=255, averaging_constant=None):
        super().__init__(qmin, qmax, averaging_constant or None)


@wrong("ex_2_4", "the constant is taken for 0.1")
class ConstantIsATenth(Watcher):
    def __init__(self, qmin=0, qmax=255, averaging_constant=None):
        super().__init__(qmin, qmax, None if averaging_constant is None else 0.1)


@wrong("ex_2_4", "return `x` itself, not a copy")
class ReturnsACopy(Watcher):
    def forward(self, x):
        return super().forward(x).clone()


@wrong("ex_2_4", "return `x` itself, not a copy", like="ReturnsACopy")
class ReturnsAView(Watcher):
    def forward(self, x):
        return super().forward(x).detach()


@wrong("ex_2_4", "the codes are taken for 0 to 255")
class AlwaysUint8(Watcher):
    def calculate_qparams(self):
        if self.low is None:
            raise RuntimeError("nothing seen")
        return affine.qparams(self.low, self.high, 0, 255)


@wrong("ex_2_4", "round() takes a Python number")
class KeepsZeroDimensionalTensors(Watcher):
    def forward(self, x):
        self.update(x.min(), x.max())
        return x


@wrong("ex_2_4", "widen once, at the end")
class WidensEachBatch(Watcher):
    def forward(self, x):
        self.update(min(float(x.min()), 0.0), max(float(x.max()), 0.0))
        return x


@wrong("ex_2_4", "your function changed `x`")
class ClampsItsInput(Watcher):
    def forward(self, x):
        super().forward(x)
        return x.clamp_(-2, 2)


@wrong("ex_2_4", "should raise RuntimeError")
class RaisesAnotherError(Watcher):
    def calculate_qparams(self):
        if self.low is None:
            raise ValueError("nothing seen")
        return super().calculate_qparams()


@wrong("ex_2_4", "it remembers the first batch only")
class FirstBatchOnly(Watcher):
    def update(self, low, high):
        if self.low is None:
            self.low, self.high = low, high


@right("ex_2_4")
class WithTorchMinimum(Watcher):
    def forward(self, x):
        self.update(*map(float, x.detach().double().aminmax()))
        return x


@right("ex_2_4")
class KeepsTensors(Watcher):
    """Stacks what it has seen and computes at the end."""

    def update(self, low, high):
        self.pairs = [*getattr(self, "pairs", []), torch.tensor([low, high], dtype=torch.float64)]
        if self.averaging_constant is None:
            seen = torch.stack(self.pairs)
            self.low, self.high = seen[:, 0].min().item(), seen[:, 1].max().item()
        else:
            weights = [1.0] + [self.averaging_constant] * (len(self.pairs) - 1)
            running = torch.zeros(2, dtype=torch.float64)
            for weight, pair in zip(weights, self.pairs, strict=True):
                running = torch.lerp(running, pair, weight)
            self.low, self.high = running.tolist()


@wrong("ex_2_4", "0.0 is a maximum, too")
class NothingSeenIfTheMaximumIs0(Watcher):
    def calculate_qparams(self):
        if not self.high:
            raise RuntimeError("nothing seen")
        return super().calculate_qparams()


@wrong("ex_2_4", "note the range when the batch comes")
class LooksLater(Watcher):
    """Keeps the batches, and looks at them when it is asked."""

    def forward(self, x):
        self.batches = [*getattr(self, "batches", []), x]
        return x

    def calculate_qparams(self):
        watcher = Watcher(self.qmin, self.qmax, self.averaging_constant)
        for batch in getattr(self, "batches", []):
            watcher.forward(batch)
        return watcher.calculate_qparams()


@wrong("ex_2_4", "a batch that carries a gradient is not counted")
class OnlyWithoutGradients(Watcher):
    def forward(self, x):
        return x if x.requires_grad else super().forward(x)


@wrong("ex_2_4", "after eleven batches")
class LooksAtTheFirstNumbers(Watcher):
    def forward(self, x):
        super().forward(x.flatten()[:64])
        return x


# 2.5 clip search


def search(x, qmin, qmax, n, error, low_moves=True):
    ends, best, least = (x.min().item(), x.max().item()), None, math.inf
    for step in range(1, n + 1):
        low, high = (ends[0] * step / n if low_moves else ends[0]), ends[1] * step / n
        found = error(affine.fake_quantize(x, *affine.qparams(low, high, qmin, qmax), qmin, qmax) - x)
        if found < least:
            best, least = (low, high), found
    return best


@wrong("ex_2_5", "that is the full range")
def plain_min_max(x, qmin, qmax, n=50):
    return x.min().item(), x.max().item()


@wrong("ex_2_5", "only the upper end was moved")
def only_the_upper_end(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, n, lambda e: e.square().mean().item(), low_moves=False)


@wrong("ex_2_5", "signs differ cancel in a mean")
def mean_error(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, n, lambda e: e.mean().abs().item())


@wrong("ex_2_5", "the largest error decides")
def largest_error(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, n, lambda e: e.abs().max().item())


@wrong("ex_2_5", "was never tried")
def stops_before_the_full_range(x, qmin, qmax, n=50):
    return min(
        ((x.min().item() * step / n, x.max().item() * step / n) for step in range(1, n)),
        key=lambda ends: (affine.fake_quantize(x, *affine.qparams(*ends, qmin, qmax), qmin, qmax) - x).square().mean(),
    )


@wrong("ex_2_5", "but the best of the 52 has")
def always_a_quarter(x, qmin, qmax, n=50):
    return x.min().item() / 4, x.max().item() / 4


def squares(e):
    return e.square().mean().item()


@wrong("ex_2_5", "smallest mean *absolute* error")
def absolute_error(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, n, lambda e: e.abs().mean().item())


@wrong("ex_2_5", "compare with x itself")
def compares_with_clamped(x, qmin, qmax, n=50):
    whole, best, least = (x.min().item(), x.max().item()), None, math.inf
    for step in range(1, n + 1):
        low, high = whole[0] * step / n, whole[1] * step / n
        cut = x.clamp(low, high)
        found = squares(affine.fake_quantize(cut, *affine.qparams(low, high, qmin, qmax), qmin, qmax) - cut)
        if found < least:
            best, least = (low, high), found
    return best


@wrong("ex_2_5", "pass qmin and qmax on")
def codes_of_uint8(x, qmin, qmax, n=50):
    return search(x, 0, 255, n, squares)


@wrong("ex_2_5", "the range is symmetric")
def symmetric_ranges(x, qmin, qmax, n=50):
    far, best, least = x.abs().max().item(), None, math.inf
    for step in range(1, n + 1):
        ends = -far * step / n, far * step / n
        found = squares(affine.fake_quantize(x, *affine.qparams(*ends, qmin, qmax), qmin, qmax) - x)
        if found < least:
            best, least = ends, found
    return best


@wrong("ex_2_5", "only the lower end was moved")
def only_the_lower_end(x, qmin, qmax, n=50):
    whole, best, least = (x.min().item(), x.max().item()), None, math.inf
    for step in range(1, n + 1):
        ends = whole[0] * step / n, whole[1]
        found = squares(affine.fake_quantize(x, *affine.qparams(*ends, qmin, qmax), qmin, qmax) - x)
        if found < least:
            best, least = ends, found
    return best


def walk(x, qmin, qmax, n, steps):
    """Stops at the first range that is worse than the one before."""
    best, least = None, math.inf
    for step in steps:
        ends = x.min().item() * step / n, x.max().item() * step / n
        found = squares(affine.fake_quantize(x, *affine.qparams(*ends, qmin, qmax), qmin, qmax) - x)
        if found > least:
            return best
        best, least = ends, found
    return best


@wrong("ex_2_5", "the search stops at the first range that is worse than the one before")
def stops_at_the_first_rise(x, qmin, qmax, n=50):
    return walk(x, qmin, qmax, n, range(1, n + 1))


@wrong("ex_2_5", "going down from f = 1")
def stops_on_the_way_down(x, qmin, qmax, n=50):
    return walk(x, qmin, qmax, n, range(n, 0, -1))


@wrong("ex_2_5", "50 ranges were tried")
def always_fifty(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, 50, squares)


@wrong("ex_2_5", "that is a scale and a zero point")
def returns_the_ruler(x, qmin, qmax, n=50):
    return affine.qparams(*search(x, qmin, qmax, n, squares), qmin, qmax)


@wrong("ex_2_5", "low comes first")
def high_and_low(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, n, squares)[::-1]


@wrong("ex_2_5", "your function changed `x`")
def sorts_in_place(x, qmin, qmax, n=50):
    found = search(x, qmin, qmax, n, squares)
    x.copy_(x.flatten().sort().values.view(x.shape).flip(0))
    return found


@wrong("ex_2_5", "is none of the ranges")
def twice_as_many(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, 2 * n, squares)


@right("ex_2_5")
def all_errors_at_once(x, qmin, qmax, n=50):
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    lows, highs = steps * x.min().double(), steps * x.max().double()
    scales = ((highs.clamp(min=0) - lows.clamp(max=0)) / (qmax - qmin)).clamp(min=2.0**-23)[:, None]
    zeros = (qmin - (lows.clamp(max=0)[:, None] / scales).round()).clamp(qmin, qmax)
    flat = x.double().flatten()
    back = (((flat / scales).round() + zeros).clamp(qmin, qmax) - zeros) * scales
    chosen = (back - flat).square().sum(dim=1).argmin()
    return lows[chosen].item(), highs[chosen].item()


@wrong("ex_2_5", "view size is not compatible")
def flattens_by_view(x, qmin, qmax, n=50):
    return search(x.view(-1), qmin, qmax, n, lambda error: error.square().mean())


@wrong("ex_2_5", "for a fine grid, and one number far beyond it")
def from_a_tenth_on(x, qmin, qmax, n=50):
    ends, tried = (x.min().item(), x.max().item()), []
    for step in range(max(1, n // 10), n + 1):
        low, high = ends[0] * step / n, ends[1] * step / n
        error = affine.fake_quantize(x, *affine.qparams(low, high, qmin, qmax), qmin, qmax) - x
        tried.append((error.square().mean().item(), step, low, high))
    return min(tried)[2:]


@wrong("ex_2_5", "with 151 ranges to try")
def at_most_100_ranges(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, min(n, 100), lambda error: error.square().mean())


@wrong("ex_2_5", "for a tensor of negative numbers")
def full_range_for_negative_numbers(x, qmin, qmax, n=50):
    ends = x.min().item(), x.max().item()
    return ends if ends[1] < 0 else search(x, qmin, qmax, n, lambda error: error.square().mean())


@wrong("ex_2_5", "one number far beyond it", like="from_a_tenth_on")
def the_worst_row_decides(x, qmin, qmax, n=50):
    return search(x, qmin, qmax, n, lambda error: error.square().mean(dim=-1).max())


# 2.6 static int8


def run(model, batches):
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model


def with_stubs(net):
    model = tq.QuantWrapper(copy.deepcopy(net)).eval()
    model.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    return model


@wrong("ex_2_6", "all your scales are 1")
def calibrates_after_convert(net, batches):
    return run(tq.convert(tq.prepare(with_stubs(net))), batches)


@wrong("ex_2_6", "all your scales are 1", like="calibrates_after_convert")
def never_calibrates(net, batches):
    return tq.convert(tq.prepare(with_stubs(net)))


@wrong("ex_2_6", "needs a QuantStub in front")
def no_stubs(net, batches):
    model = copy.deepcopy(net).eval()
    model.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    return tq.convert(run(tq.prepare(model), batches))


@wrong("ex_2_6", "calibrating in training mode (dropout)")
def calibrates_in_training_mode(net, batches):
    model = with_stubs(net).train()
    return tq.convert(run(tq.prepare(model), batches)).eval()


@wrong("ex_2_6", "your model is in training mode")
def stays_in_training_mode(net, batches):
    return static(net, batches).train()


@wrong("ex_2_6", "no int8 Linear in your model")
def no_qconfig(net, batches):
    return tq.convert(run(tq.prepare(tq.QuantWrapper(copy.deepcopy(net)).eval()), batches))


@wrong("ex_2_6", "no int8 Linear in your model", like="no_qconfig")
def never_prepared(net, batches):
    return tq.convert(run(with_stubs(net), batches))


@wrong("ex_2_6", "the range of the first batch only")
def first_batch_only(net, batches):
    return tq.convert(run(tq.prepare(with_stubs(net)), batches[:1]))


@wrong("ex_2_6", "the range of the last batch only")
def last_batch_only(net, batches):
    return tq.convert(run(tq.prepare(with_stubs(net)), batches[-1:]))


@wrong("ex_2_6", "your weights are")
def weights_of_another_qconfig(net, batches):
    model = with_stubs(net)
    engine = "x86" if torch.backends.quantized.engine == "qnnpack" else "qnnpack"
    weight = tq.get_default_qconfig(engine).weight
    model.qconfig = tq.QConfig(activation=model.qconfig.activation, weight=weight)
    return tq.convert(run(tq.prepare(model), batches))


@wrong("ex_2_6", "a qconfig is left")
def qconfig_on_the_original(net, batches):
    net.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    return static(net, batches)


@wrong("ex_2_6", "unit 03 does that")
def fuses(net, batches):
    model = with_stubs(net)
    pairs = [[f"module.{i}", f"module.{i + 1}"] for i, m in enumerate(net) if isinstance(m, nn.Linear)]
    pairs = [pair for pair in pairs if int(pair[1].split(".")[1]) < len(net)]
    model = tq.fuse_modules(model, pairs) if pairs else model
    return tq.convert(run(tq.prepare(model), batches))


@wrong("ex_2_6", "call .eval() on your copy")
def evaluates_the_original(net, batches):
    net.eval()
    return static(net, batches)


@wrong("ex_2_6", "work on a copy")
def in_place(net, batches):
    net.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    model = tq.prepare(tq.QuantWrapper(net).eval(), inplace=True)
    return tq.convert(run(model, batches), inplace=True)


@wrong("ex_2_6", "that is dynamic int8")
def dynamic_instead(net, batches):
    return int8.dynamic_int8(copy.deepcopy(net).eval())


@wrong("ex_2_6", "no int8 Linear in your model")
def the_float_network(net, batches):
    return copy.deepcopy(net).eval()


@wrong("ex_2_6", "a float copy that it hides")
def int8_for_show(net, batches):
    model, hidden = static(net, batches), copy.deepcopy(net).eval()
    last = [m for m in model.modules() if isinstance(m, torch.ao.nn.quantized.Linear)][-1]

    def forward(x):
        steps = (hidden(x) / last.scale).round() + last.zero_point
        return (steps.clamp(0, 255) - last.zero_point) * last.scale

    model.forward = forward
    return model


def static(net, batches):
    return tq.convert(run(tq.prepare(with_stubs(net)), batches))


@wrong("ex_2_6", "the last batch was left out")
def all_but_the_last(net, batches):
    return static(net, batches[:-1])


@wrong("ex_2_6", "the first batch was left out")
def all_but_the_first(net, batches):
    return static(net, batches[1:])


@wrong("ex_2_6", "a recipe of another engine is written in")
def recipe_of_this_engine(net, batches):
    model = with_stubs(net)
    model.qconfig = tq.get_default_qconfig("qnnpack" if int8.course_engine() == "qnnpack" else "fbgemm")
    if torch.backends.quantized.engine == "qnnpack":
        model.qconfig = tq.QConfig(activation=model.qconfig.activation, weight=tq.get_default_qconfig("qnnpack").weight)
    return tq.convert(run(tq.prepare(model), batches))


@wrong("ex_2_6", "makes them", like="weights_of_another_qconfig")
def pytorch_s_default_qconfig(net, batches):
    model = with_stubs(net)
    model.qconfig = tq.default_qconfig
    return tq.convert(run(tq.prepare(model), batches))


@wrong("ex_2_6", "was switched to training mode")
def gives_the_mode_back(net, batches):
    mode = net.training
    net.eval()
    model = static(net, batches)
    net.train(mode)
    return model


@wrong("ex_2_6", "is frozen now")
def freezes_the_original(net, batches):
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return static(net, batches)


@wrong("ex_2_6", "learns now", like="freezes_the_original")
def thaws_the_original(net, batches):
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    return static(net, batches)


@wrong("ex_2_6", "Linear layers of Sequentials inside Sequentials are int8")
def flat_models_only(net, batches):
    model = with_stubs(net)
    for name, part in model.named_modules():
        if name.count(".") > 2:
            part.qconfig = None
    return tq.convert(run(tq.prepare(model), batches))


@wrong("ex_2_6", "your function changed `batches`")
def empties_the_list(net, batches):
    model = tq.prepare(with_stubs(net))
    while batches:
        run(model, [batches.pop()])
    return tq.convert(model)


@wrong("ex_2_6", "still holds its observers")
def returns_the_prepared(net, batches):
    return run(tq.prepare(with_stubs(net)), batches)


@wrong("ex_2_6", "calibrating in training mode (dropout)", like="calibrates_in_training_mode")
def evaluates_the_outside(net, batches):
    model = with_stubs(net).train()
    model.training = False
    return tq.convert(run(tq.prepare(model), batches))


@wrong("ex_2_6", "in use, for everybody")
def leaves_another_engine(net, batches):
    model = static(net, batches)
    torch.backends.quantized.engine = int8.another_engine()
    return model


@right("ex_2_6")
def one_batch_of_all(net, batches):
    return static(net, [torch.cat(batches)])


@right("ex_2_6")
def own_stubs_and_quantize(net, batches):
    class Stubbed(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.inner, self.leave = tq.QuantStub(), copy.deepcopy(net), tq.DeQuantStub()

        def forward(self, x):
            return self.leave(self.inner(self.enter(x)))

    model = Stubbed().eval()
    model.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    return tq.quantize(model, run, [batches])


# 2.7 dynamic by hand


def dynamic(x, weight_codes, weight_scale, bias, qmax, qparams=None):
    scale, zero_point = qparams or affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    x_hat = affine.fake_quantize(x, scale, zero_point, 0, qmax)
    return x_hat @ (weight_codes.float() * weight_scale).T + bias


@wrong("ex_2_7", "not quantized at all")
def float_input(x, weight_codes, weight_scale, bias, qmax):
    return x @ (weight_codes.float() * weight_scale).T + bias


@wrong("ex_2_7", "instead of qmax", like="qmax_of_the_engine")
def other_bits(x, weight_codes, weight_scale, bias, qmax):
    return dynamic(x, weight_codes, weight_scale, bias, 382 - qmax)


@wrong("ex_2_7", "each row got a scale of its own")
def a_scale_for_each_row(x, weight_codes, weight_scale, bias, qmax):
    rows = [dynamic(row, weight_codes, weight_scale, bias, qmax) for row in x.flatten(0, -2)] if x.dim() > 1 else [x]
    return torch.stack(rows).view(*x.shape[:-1], -1)


KEPT: list = []


@wrong("ex_2_7", "the scale of an earlier input")
def scale_of_the_first_input(x, weight_codes, weight_scale, bias, qmax):
    KEPT.append(affine.qparams(x.min().item(), x.max().item(), 0, qmax))
    return dynamic(x, weight_codes, weight_scale, bias, qmax, KEPT[0])


@wrong("ex_2_7", "zero point was not subtracted")
def zero_point_left_in(x, weight_codes, weight_scale, bias, qmax):
    scale, zero_point = affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    sums = affine.quantize(x, scale, zero_point, 0, qmax) @ weight_codes.int().T
    return sums * (scale * weight_scale) + bias


@wrong("ex_2_7", "8-bit type, and the sums wrapped around")
def eight_bit_sums(x, weight_codes, weight_scale, bias, qmax):
    scale, zero_point = affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    codes = (affine.quantize(x, scale, zero_point, 0, qmax) - zero_point).to(torch.int8)
    return (codes @ weight_codes.T) * (scale * weight_scale) + bias


@wrong("ex_2_7", "the bias was forgotten")
def no_bias(x, weight_codes, weight_scale, bias, qmax):
    return dynamic(x, weight_codes, weight_scale, 0, qmax)


@wrong("ex_2_7", "multiplied by the scales, too")
def bias_scaled(x, weight_codes, weight_scale, bias, qmax):
    scale, zero_point = affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    sums = (affine.quantize(x, scale, zero_point, 0, qmax) - zero_point) @ weight_codes.int().T
    return (sums + bias) * (scale * weight_scale)


@wrong("ex_2_7", "quantized symmetrically")
def symmetric_input(x, weight_codes, weight_scale, bias, qmax):
    scale = max(x.abs().max().item() / 127, 2.0**-23)
    return (x / scale).round().clamp(-127, 127) * scale @ (weight_codes.float() * weight_scale).T + bias


@wrong("ex_2_7", "quantized a second time")
def weights_quantized_again(x, weight_codes, weight_scale, bias, qmax):
    scale, _ = affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    again = (weight_codes.float() * weight_scale / scale).round().clamp(-128, 127)
    return dynamic(x, again, scale, bias, qmax)


@wrong("ex_2_7", "a symmetric scale of its own, as torchao's dynamic int8 does")
def symmetric_rows(x, weight_codes, weight_scale, bias, qmax):
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=2.0**-23) / 127
    return (x / scale).round() * scale @ (weight_codes.float() * weight_scale).T + bias


@wrong("ex_2_7", "in a 16-bit type")
def sixteen_bit_sums(x, weight_codes, weight_scale, bias, qmax):
    scale, zero_point = affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    codes = (affine.quantize(x, scale, zero_point, 0, qmax) - zero_point).to(torch.int16)
    return (codes @ weight_codes.to(torch.int16).T) * (scale * weight_scale) + bias


@wrong("ex_2_7", "make the int8 codes of the weight int32")
def two_types(x, weight_codes, weight_scale, bias, qmax):
    scale, zero_point = affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    codes = affine.quantize(x, scale, zero_point, 0, qmax) - zero_point
    return (codes @ weight_codes.T) * (scale * weight_scale) + bias


@wrong("ex_2_7", "expected is torch.float32")
def output_of_float64(x, weight_codes, weight_scale, bias, qmax):
    return in_float64(x, weight_codes, weight_scale, bias, qmax).double()


@wrong("ex_2_7", "your function changed `bias`")
def adds_to_the_bias(x, weight_codes, weight_scale, bias, qmax):
    return bias.add_(dynamic(x, weight_codes, weight_scale, 0, qmax).detach().flatten(0, -2)[0]).expand(
        *x.shape[:-1], -1
    )


@wrong("ex_2_7", "the scale of the weights was forgotten")
def weight_scale_forgotten(x, weight_codes, weight_scale, bias, qmax):
    return dynamic(x, weight_codes, 1.0, bias, qmax)


@wrong("ex_2_7", "the scale of the input was forgotten")
def input_scale_forgotten(x, weight_codes, weight_scale, bias, qmax):
    scale, _ = affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    return dynamic(x, weight_codes, weight_scale / scale, bias, qmax)


@wrong("ex_2_7", "it stays float")
def bias_in_8_bits(x, weight_codes, weight_scale, bias, qmax):
    step = affine.qparams(x.min().item(), x.max().item(), 0, qmax)[0] * weight_scale
    return dynamic(x, weight_codes, weight_scale, (bias / step).round().clamp(-128, 127) * step, qmax)


@wrong("ex_2_7", "instead of qmax=")
def qmax_of_the_engine(x, weight_codes, weight_scale, bias, qmax):
    return dynamic(x, weight_codes, weight_scale, bias, int8.dynamic_activation_qmax())


@wrong("ex_2_7", "view size is not compatible")
def flattens_the_input(x, weight_codes, weight_scale, bias, qmax):
    return dynamic(x.view(-1, x.shape[-1]), weight_codes, weight_scale, bias, qmax).view(*x.shape[:-1], -1)


@right("ex_2_7")
def in_float64(x, weight_codes, weight_scale, bias, qmax):
    scale, zero_point = affine.qparams(float(x.min()), float(x.max()), 0, qmax)
    codes = affine.quantize(x, scale, zero_point, 0, qmax).double()
    w = weight_codes.double()
    sums = codes @ w.T - zero_point * w.sum(dim=1)  # the zero point as a correction of the sums
    return (sums * scale * weight_scale + bias).float()


@wrong("ex_2_7", "keep something from call to call")
def one_output_for_each_shape(x, weight_codes, weight_scale, bias, qmax, outputs={}):  # noqa: B006
    answer = dynamic(x.detach(), weight_codes, weight_scale, bias, qmax)
    return outputs.setdefault(answer.shape, torch.empty_like(answer)).copy_(answer)


@wrong("ex_2_7", "of which half are -128")
def clamps_the_weight_codes(x, weight_codes, weight_scale, bias, qmax):
    return dynamic(x, weight_codes.clamp(min=-127), weight_scale, bias, qmax)


@wrong("ex_2_7", "has shape (4,)")
def squeezes_its_output(x, weight_codes, weight_scale, bias, qmax):
    return dynamic(x, weight_codes, weight_scale, bias, qmax).squeeze()


@wrong("ex_2_7", "100 rows, the last the loudest")
def looks_at_the_first_numbers(x, weight_codes, weight_scale, bias, qmax):
    few = x.flatten()[:4000]
    ruler = affine.qparams(few.min().item(), few.max().item(), 0, qmax)
    return dynamic(x, weight_codes, weight_scale, bias, qmax, ruler)


# 2.8 fake quantization


def faked(x, scale, zero_point, qmin, qmax, gradient):
    steps = (x.detach() / scale).round() + zero_point
    value = (steps.clamp(qmin, qmax) - zero_point) * scale
    return value + (x - x.detach()) * gradient(steps)


def inside(steps, qmin, qmax):
    return ((steps >= qmin) & (steps <= qmax)).float()


@wrong("ex_2_8", "passes everywhere, also where x was clamped", binds="fake_quantize")
def passes_everywhere(x, scale, zero_point, qmin, qmax):
    return faked(x, scale, zero_point, qmin, qmax, torch.ones_like)


@wrong("ex_2_8", "0 everywhere", binds="fake_quantize")
def true_gradient(x, scale, zero_point, qmin, qmax):
    return ((torch.round(x / scale) + zero_point).clamp(qmin, qmax) - zero_point) * scale


@wrong("ex_2_8", "turned around", binds="fake_quantize")
def turned_around(x, scale, zero_point, qmin, qmax):
    return faked(x, scale, zero_point, qmin, qmax, lambda steps: 1 - inside(steps, qmin, qmax))


@wrong("ex_2_8", "the scale does not belong into it", binds="fake_quantize")
def scaled_gradient(x, scale, zero_point, qmin, qmax):
    return faked(x, scale, zero_point, qmin, qmax, lambda steps: scale * inside(steps, qmin, qmax))


@wrong("ex_2_8", "use >= and <=", binds="fake_quantize")
def ends_left_out(x, scale, zero_point, qmin, qmax):
    return faked(x, scale, zero_point, qmin, qmax, lambda steps: inside(steps, qmin + 1, qmax - 1))


@wrong("ex_2_8", "no gradient at all", binds="fake_quantize")
def detached(x, scale, zero_point, qmin, qmax):
    return affine.fake_quantize(x.detach(), scale, zero_point, qmin, qmax)


@wrong("ex_2_8", "these are the codes", binds="fake_quantize")
def codes_only(x, scale, zero_point, qmin, qmax):
    steps = (x.detach() / scale).round() + zero_point
    return steps.clamp(qmin, qmax) + (x - x.detach()) * inside(steps, qmin, qmax)


@wrong("ex_2_8", "not clamped", binds="fake_quantize")
def never_clamped(x, scale, zero_point, qmin, qmax):
    return faked(x, scale, zero_point, -(10**9), 10**9, lambda steps: inside(steps, qmin, qmax))


class Incomplete(torch.autograd.Function):
    """Right but for the number of gradients."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        steps = torch.round(x / scale) + zero_point
        ctx.save_for_backward(inside(steps, qmin, qmax))
        return (steps.clamp(qmin, qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0]


@wrong("ex_2_8", "not in the class", binds="FakeQuantize")
class RemembersOnTheClass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        steps = torch.round(x / scale) + zero_point
        RemembersOnTheClass.inside = inside(steps, qmin, qmax)
        return (steps.clamp(qmin, qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx, upstream):
        return upstream * RemembersOnTheClass.inside, None, None, None, None


@wrong("ex_2_8", "one for each input of forward", binds="FakeQuantize")
class OneGradientOnly(Incomplete):
    pass


@wrong("ex_2_8", "multiply by the gradient that comes from above", binds="FakeQuantize")
class UpstreamForgotten(Incomplete):
    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0], None, None, None, None


def real_ends(x, scale, zero_point, qmin, qmax):
    return ((x >= (qmin - zero_point) * scale) & (x <= (qmax - zero_point) * scale)).float()


@wrong("ex_2_8", "Half a gap beyond an end still rounds", binds="fake_quantize")
def mask_by_real_ends(x, scale, zero_point, qmin, qmax):
    mask = real_ends(x.detach(), scale, zero_point, qmin, qmax)
    return faked(x, scale, zero_point, qmin, qmax, lambda steps: mask)


@wrong("ex_2_8", "Half a gap beyond an end still rounds", binds="fake_quantize", like="mask_by_real_ends")
def clamps_before_it_rounds(x, scale, zero_point, qmin, qmax):
    steps = (x / scale + zero_point).clamp(qmin, qmax) - zero_point  # the order of LSQ
    return (steps + (steps.round() - steps).detach()) * scale


class Stacked(torch.autograd.Function):
    """Keeps masks in a list of the class."""

    masks: ClassVar[list] = []

    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        steps = torch.round(x / scale) + zero_point
        Stacked.masks.append(inside(steps, qmin, qmax))
        return (steps.clamp(qmin, qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx, upstream):
        return upstream * Stacked.masks.pop(), None, None, None, None


@wrong("ex_2_8", "two calls, then the gradient first first", binds="FakeQuantize", like="RemembersOnTheClass")
class PopsTheLastMask(Stacked):
    pass


@wrong("ex_2_8", "two calls, then the gradient last first", binds="FakeQuantize")
class PopsTheFirstMask(Stacked):
    @staticmethod
    def backward(ctx, upstream):
        return upstream * Stacked.masks.pop(0), None, None, None, None


@wrong("ex_2_8", "must not use up what forward kept", binds="FakeQuantize")
class UsesUpItsMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        steps = torch.round(x / scale) + zero_point
        ctx.mask = inside(steps, qmin, qmax)
        return (steps.clamp(qmin, qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx, upstream):
        kept = upstream * ctx.mask
        ctx.mask = ctx.mask * 0
        return kept, None, None, None, None


@wrong("ex_2_8", "your function changed `upstream`", binds="FakeQuantize")
class ChangesTheUpstream(UsesUpItsMask):
    @staticmethod
    def backward(ctx, upstream):
        return upstream.mul_(ctx.mask), None, None, None, None


@wrong("ex_2_8", "your function changed `x`", binds="FakeQuantize")
class ChangesItsInput(UsesUpItsMask):
    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        out = UsesUpItsMask.forward(ctx, x, scale, zero_point, qmin, qmax)
        x.data.copy_(out)
        return out


@wrong("ex_2_8", "those four have none: return None", binds="FakeQuantize")
class GradientOfTheScale(UsesUpItsMask):
    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.mask, upstream.sum(), None, None, None


@wrong("ex_2_8", "the zero point is inside the rounding", binds="fake_quantize")
def rounds_with_the_zero_point(x, scale, zero_point, qmin, qmax):
    right_one = faked(x, scale, zero_point, qmin, qmax, lambda steps: inside(steps, qmin, qmax))
    value = ((x.detach() / scale + zero_point).round().clamp(qmin, qmax) - zero_point) * scale
    return right_one + (value - right_one).detach()


@wrong("ex_2_8", "but not rounded", binds="fake_quantize")
def only_clamps(x, scale, zero_point, qmin, qmax):
    return x.clamp((qmin - zero_point) * scale, (qmax - zero_point) * scale)


@right("ex_2_8", binds="FakeQuantize")
class KeepsTheMaskInCtx(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax):
        steps = torch.round(x / scale) + zero_point
        codes = steps.clamp(qmin, qmax)
        ctx.clamped = codes != steps
        return (codes - zero_point) * scale

    @staticmethod
    def backward(ctx, upstream):
        return upstream.masked_fill(ctx.clamped, 0.0), None, None, None, None


@right("ex_2_8", binds="fake_quantize")
def with_clamp_and_detach(x, scale, zero_point, qmin, qmax):
    steps = x / scale
    rounded = steps + (steps.round() - steps).detach() + zero_point
    return (rounded.clamp(qmin, qmax) - zero_point) * scale


@wrong("ex_2_8", "for three dimensions", binds="fake_quantize")
def no_gradient_at_zero(x, scale, zero_point, qmin, qmax):
    return faked(x, scale, zero_point, qmin, qmax, lambda steps: inside(steps, qmin, qmax) * (x.detach() != 0))


@wrong("ex_2_8", "for the numbers 3e12", binds="fake_quantize")
def int32_before_the_clamp(x, scale, zero_point, qmin, qmax):
    value = (((x.detach() / scale).round() + zero_point).to(torch.int32).clamp(qmin, qmax) - zero_point) * scale
    right = faked(x, scale, zero_point, qmin, qmax, lambda steps: inside(steps, qmin, qmax))
    return right + (value - right.detach())


@right("ex_2_8", binds="fake_quantize")
def in_double_precision(x, scale, zero_point, qmin, qmax):
    return faked(x.double(), scale, zero_point, qmin, qmax, lambda steps: inside(steps, qmin, qmax)).float()


# 2.9 torchao and PT2E


def config(dynamic):
    return ao.Int8DynamicActivationInt8WeightConfig() if dynamic else ao.Int8WeightOnlyConfig()


@wrong("ex_2_9", "returned None")
def returns_what_quantize_returns(net, dynamic):
    return ao.quantize_(copy.deepcopy(net).eval(), config(dynamic))


@wrong("ex_2_9", "apply quantize_ once")
def applied_twice(net, dynamic):
    copied = copy.deepcopy(net).eval()
    ao.quantize_(copied, ao.Int8WeightOnlyConfig())
    if dynamic:
        ao.quantize_(copied, config(dynamic))
    return copied


@wrong("ex_2_9", "quantized the original")
def torchao_in_place(net, dynamic):
    ao.quantize_(net, config(dynamic))
    return net


@wrong("ex_2_9", "this is the other kind")
def kinds_swapped(net, dynamic):
    copied = copy.deepcopy(net).eval()
    ao.quantize_(copied, config(not dynamic))
    return copied


@wrong("ex_2_9", "nothing is quantized")
def forgets_to_quantize(net, dynamic):
    return copy.deepcopy(net).eval()


@wrong("ex_2_9", "its dropout is active")
def torchao_in_training_mode(net, dynamic):
    copied = copy.deepcopy(net)
    ao.quantize_(copied, config(dynamic))
    return copied


def exported(net, batches, any_size=True):
    shapes = ({0: torch.export.Dim("n")},) if any_size else None
    return torch.export.export(copy.deepcopy(net).eval(), (batches[0],), dynamic_shapes=shapes).module()


def x86(configured=True):
    quantizer = X86InductorQuantizer()
    return quantizer.set_global(get_default_x86_inductor_quantization_config()) if configured else quantizer


@wrong("ex_2_9", "does not accept every batch size", binds="pt2e_int8", like="at_least_two_rows")
def one_batch_size(net, batches):
    batches = [batch[: len(batches[0])] for batch in batches]
    return convert_pt2e(run(prepare_pt2e(exported(net, batches, any_size=False), x86()), batches))


@wrong("ex_2_9", "does not accept every batch size", binds="pt2e_int8")
def at_least_two_rows(net, batches):
    shapes = ({0: torch.export.Dim("n", min=2, max=256)},)
    graph = torch.export.export(copy.deepcopy(net).eval(), (batches[0],), dynamic_shapes=shapes).module()
    return convert_pt2e(run(prepare_pt2e(graph, x86()), batches))


@wrong("ex_2_9", "that is dynamic", binds="pt2e_int8")
def dynamic_graph(net, batches):
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_dynamic=True))
    return convert_pt2e(run(prepare_pt2e(exported(net, batches), quantizer), batches))


@wrong("ex_2_9", "has 0 to 255", binds="pt2e_int8")
def seven_bit_graph(net, batches):
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(reduce_range=True))
    return convert_pt2e(run(prepare_pt2e(exported(net, batches), quantizer), batches))


@wrong("ex_2_9", "from float weights", binds="pt2e_int8")
def weights_not_folded(net, batches):
    return convert_pt2e(run(prepare_pt2e(exported(net, batches), x86()), batches), fold_quantize=False)


@wrong("ex_2_9", "but floats that were changed")
def rounded_floats(net, dynamic):
    copied = copy.deepcopy(net).eval()
    for module in copied.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.detach().abs().amax(dim=1, keepdim=True) / 127.5
            module.weight.data = (module.weight.data / scale).round().clamp(-128, 127) * scale
    return copied


@wrong("ex_2_9", "with the last batch only", binds="pt2e_int8")
def graph_last_batch_only(net, batches):
    return convert_pt2e(run(prepare_pt2e(exported(net, batches), x86()), batches[-1:]))


@wrong("ex_2_9", "no batch ran through", binds="pt2e_int8")
def graph_not_calibrated(net, batches):
    return convert_pt2e(prepare_pt2e(exported(net, batches), x86()))


@wrong("ex_2_9", "with the first batch only", binds="pt2e_int8")
def graph_first_batch_only(net, batches):
    return convert_pt2e(run(prepare_pt2e(exported(net, batches), x86()), batches[:1]))


@wrong("ex_2_9", "does the quantizer have a configuration", binds="pt2e_int8")
def quantizer_without_configuration(net, batches):
    return convert_pt2e(run(prepare_pt2e(exported(net, batches), x86(configured=False)), batches))


@wrong("ex_2_9", "it still holds observers", binds="pt2e_int8")
def graph_not_converted(net, batches):
    return run(prepare_pt2e(exported(net, batches), x86()), batches)


@wrong("ex_2_9", "export the copy in eval mode", binds="pt2e_int8")
def exported_in_training_mode(net, batches):
    shapes = ({0: torch.export.Dim("n")},)
    graph = torch.export.export(copy.deepcopy(net).train(), (batches[0],), dynamic_shapes=shapes).module()
    return convert_pt2e(run(prepare_pt2e(graph, x86()), batches))


@wrong("ex_2_9", "no .eval()", binds="pt2e_int8")
def eval_of_a_graph(net, batches):
    return convert_pt2e(run(prepare_pt2e(exported(net, batches), x86()), batches)).eval()


def through_torchao(net, recipe):
    copied = copy.deepcopy(net).eval()
    ao.quantize_(copied, recipe)
    return copied


@wrong("ex_2_9", "with 4-bit codes")
def four_bits(net, dynamic):
    return through_torchao(net, ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(8)))


@wrong("ex_2_9", "scales for")
def one_scale_a_weight(net, dynamic):
    recipe = ao.Int8DynamicActivationInt8WeightConfig if dynamic else ao.Int8WeightOnlyConfig
    return through_torchao(net, recipe(granularity=ao.PerTensor()))


@wrong("ex_2_9", "have 7 bits (reduce_range)")
def seven_bits(net, dynamic):
    return through_torchao(
        net, ao.Int8DynamicActivationInt8WeightConfig(reduce_range=True) if dynamic else config(False)
    )


@wrong("ex_2_9", "that is static")
def static_torchao(net, dynamic):
    scale, sizes = torch.ones(1, 1), [ao.PerTensor(), ao.PerRow()]
    recipe = ao.Int8StaticActivationInt8WeightConfig(act_quant_scale=scale, granularity=sizes)
    return through_torchao(net, recipe if dynamic else config(False))


@wrong("ex_2_9", "is frozen now")
def freezes_the_net(net, dynamic):
    net.requires_grad_(False)
    return through_torchao(net, config(dynamic))


@wrong("ex_2_9", "was switched to training mode")
def gives_the_net_its_mode_back(net, dynamic):
    mode, copied = net.training, copy.deepcopy(net.eval())
    net.train(mode)
    ao.quantize_(copied, config(dynamic))
    return copied


@wrong("ex_2_9", "returns no copy")
def shares_the_biases(net, dynamic):
    copied = through_torchao(net, config(dynamic))
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            copied.get_submodule(name).bias = module.bias
    return copied


@wrong("ex_2_9", "nothing is quantized there")
def outer_layers_only(net, dynamic):
    copied = copy.deepcopy(net).eval()
    for child in copied.children():
        if isinstance(child, nn.Linear):
            ao.quantize_(child, config(dynamic))
    return copied


@wrong("ex_2_9", "the last batch was left out", binds="pt2e_int8")
def graph_without_the_last_batch(net, batches):
    return convert_pt2e(run(prepare_pt2e(exported(net, batches), x86()), batches[:-1]))


@wrong("ex_2_9", "exported the original, no copy", binds="pt2e_int8")
def exports_the_net_itself(net, batches):
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    graph = torch.export.export(net, (batches[0],), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    for part, mode in modes:
        part.training = mode
    return convert_pt2e(run(prepare_pt2e(graph, x86()), batches))


@wrong("ex_2_9", "your function changed `batches`", binds="pt2e_int8")
def graph_of_scaled_batches(net, batches):
    graph = prepare_pt2e(exported(net, batches), x86())
    for batch in batches:
        graph(batch.div_(batch.abs().max()))
    return convert_pt2e(graph)


@wrong("ex_2_9", "give one of the two another name", binds="pt2e_int8")
def one_name_twice(net, batches):
    spec = ({0: rows},)  # noqa: F821 (the mistake: rows is a local name, because of the loop)
    for rows in batches:
        net(rows)
    return torch.export.export(net, (batches[0],), dynamic_shapes=spec)


@right("ex_2_9")
def by_filter_and_name(net, dynamic):
    copied = copy.deepcopy(net)
    for module in copied.modules():
        if isinstance(module, nn.Linear):
            ao.quantize_(module, config(dynamic))
    return copied.eval()


@right("ex_2_9", binds="pt2e_int8")
def with_automatic_shapes(net, batches):
    program = torch.export.export(
        copy.deepcopy(net).eval(), (torch.cat(batches),), dynamic_shapes=[[torch.export.Dim.AUTO, None]]
    )
    graph = prepare_pt2e(program.module(), x86())
    for batch in batches:
        graph(batch)
    return convert_pt2e(graph)


@wrong("ex_2_9", "quantized in another way than by the default config", binds="torchao_int8")
def one_scale_for_all_rows_of_an_input(net, dynamic):
    quantized = copy.deepcopy(net).eval()
    granularity = [ao.PerTensor(), ao.PerRow()]
    config = ao.Int8DynamicActivationInt8WeightConfig(granularity=granularity) if dynamic else ao.Int8WeightOnlyConfig()
    ao.quantize_(quantized, config)
    return quantized


@wrong("ex_2_9", "with its numbers: biases stay float", binds="pt2e_int8")
def graph_without_biases(net, batches):
    bare = copy.deepcopy(net).eval()
    for part in bare.modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    exported = torch.export.export(bare, (batches[0],), dynamic_shapes=({0: torch.export.Dim("rows")},)).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for batch in batches:
        prepared(batch)
    return convert_pt2e(prepared)
