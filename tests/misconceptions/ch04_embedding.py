"""Unit 04, the embedding, the positions and the tie: what learners really answer in exercises 4.1, 4.2, 4.3 and 4.9."""

import copy
import functools
import math
import sys

import numpy as np
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn

from tests.misconceptions.bank import right, wrong

# 4.1 int8 rows


def rows_of(weight, *, dim=1, top=255, widen=False, zero=lambda z: z, minus=True):
    """The right codes, each part of which can be replaced."""
    low, high = weight.amin(dim), weight.amax(dim)
    if widen:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = torch.where(high > low, (high - low) / top, 1.0)
    zero_point = zero(-low / scale)
    codes = (weight / scale[:, None] + zero_point[:, None]).round().clamp(0, 255).to(torch.uint8)
    return codes, scale, zero_point if minus else -zero_point


@wrong("ex_4_1", "the codes are int8", binds="quantize_rows")
def signed_codes(weight):
    codes, scale, zero_point = rows_of(weight)
    return (codes.int() - 128).to(torch.int8), scale, zero_point - 128


@wrong("ex_4_1", "one scale for the whole table", binds="quantize_rows")
def per_tensor(weight):
    scale = (weight.max() - weight.min()) / 255
    zero_point = -weight.min() / scale
    return (weight / scale + zero_point).round().clamp(0, 255).to(torch.uint8), scale, zero_point


@wrong("ex_4_1", "that of the whole table (per-tensor)", binds="quantize_rows")
def per_tensor_repeated(weight):
    scale = torch.full((len(weight),), ((weight.max() - weight.min()) / 255).item())
    zero_point = -weight.min() / scale
    return (weight / scale[:, None] + zero_point[:, None]).round().clamp(0, 255).to(torch.uint8), scale, zero_point


@wrong("ex_4_1", "a scale for each column", binds="quantize_rows")
def per_column(weight):
    low, high = weight.amin(0), weight.amax(0)
    scale = (high - low) / 255
    return ((weight - low) / scale).round().to(torch.uint8), scale, -low / scale


@wrong("ex_4_1", "your function changed `weight`, which belongs to its caller: its numbers", binds="quantize_rows")
def in_place(weight):
    kept = rows_of(weight.clone())
    weight.sub_(weight.amin(1, keepdim=True))
    return kept


@wrong("ex_4_1", "the range was widened to include 0", binds="quantize_rows")
def widened_to_zero(weight):
    codes, scale, zero_point = rows_of(weight, widen=True)
    return codes, scale, zero_point


@wrong("ex_4_1", "it is rounded", binds="quantize_rows")
def rounded_zero_point(weight):
    return rows_of(weight, zero=lambda z: z.round())


@wrong("ex_4_1", "rounded and clamped", binds="quantize_rows")
def clamped_zero_point(weight):
    return rows_of(weight, zero=lambda z: z.round().clamp(0, 255))


@wrong("ex_4_1", "the sign is wrong", binds="quantize_rows")
def zero_point_with_plus(weight):
    return rows_of(weight, minus=False)


@wrong("ex_4_1", "255 steps between them", binds="quantize_rows")
def divided_by_256(weight):
    return rows_of(weight, top=256)


@wrong("ex_4_1", "a row of equal numbers needs the scale 1", binds="quantize_rows")
def constant_rows_forgotten(weight):
    low, high = weight.amin(1), weight.amax(1)
    scale = (high - low) / 255
    codes = ((weight - low[:, None]) / scale[:, None]).round().nan_to_num().to(torch.uint8)
    return codes, scale, -low / scale


@wrong("ex_4_1", "are cut off, not rounded", binds="quantize_rows")
def cut_off(weight):
    _, scale, zero_point = rows_of(weight)
    return (weight / scale[:, None] + zero_point[:, None]).clamp(0, 255).to(torch.uint8), scale, zero_point


@wrong("ex_4_1", "a row of equal numbers needs the scale 1", binds="quantize_rows", like="constant_rows_forgotten")
def small_number_added(weight):
    low, high = weight.amin(1), weight.amax(1)
    scale = (high - low) / 255 + 1e-10
    return ((weight - low[:, None]) / scale[:, None]).round().clamp(0, 255).to(torch.uint8), scale, -low / scale


@wrong("ex_4_1", "a quiet row has lost its own scale", binds="quantize_rows")
def quiet_rows_taken_for_constant(weight):
    low, high = weight.amin(1), weight.amax(1)
    scale = (high - low) / 255
    scale = torch.where(scale < 1e-4, 1.0, scale)
    return ((weight - low[:, None]) / scale[:, None]).round().to(torch.uint8), scale, -low / scale


@wrong("ex_4_1", "the scale was kept from being small", binds="quantize_rows")
def scale_kept_above_a_limit(weight):
    low, high = weight.amin(1), weight.amax(1)
    scale = ((high - low) / 255).clamp(min=1e-4)
    return ((weight - low[:, None]) / scale[:, None]).round().to(torch.uint8), scale, -low / scale


@wrong("ex_4_1", "the tensor of scales has dtype torch.float64", binds="quantize_rows")
def float64_scales(weight):
    codes, scale, zero_point = rows_of(weight)
    return codes, scale.double(), zero_point


@wrong("ex_4_1", "the scale is symmetric", binds="quantize_rows")
def symmetric_rows(weight):
    scale = weight.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    codes = ((weight / scale[:, None]).round() + 128).to(torch.uint8)
    return codes, scale, torch.full((len(weight),), 128.0)


@wrong("ex_4_1", "it is clamped to the codes: here", binds="quantize_rows")
def clamped_only(weight):
    return rows_of(weight, zero=lambda z: z.clamp(0, 255))


@wrong("ex_4_1", "this is the bias (the row's minimum, a real number)", binds="quantize_rows")
def bias_for_zero_point(weight):
    codes, scale, _ = rows_of(weight)
    return codes, scale, weight.amin(1)


@wrong("ex_4_1", "begin at 0 and end at 255", binds="quantize_rows")
def largest_code_missing(weight):
    codes, scale, zero_point = rows_of(weight)
    return codes.clamp(max=254), scale, zero_point


@wrong("ex_4_1", "(for a table of a transposed view)", binds="quantize_rows")
def needs_contiguous_rows(weight):
    return rows_of(weight.detach().view(-1).view(weight.shape))


@wrong("ex_4_1", "the tensor of codes of one row has shape", binds="quantize_rows")
def squeezed(weight):
    return tuple(part.squeeze() for part in rows_of(weight))


@wrong("ex_4_1", "the tensor of scales of one column has shape", binds="quantize_rows")
def scales_squeezed_like_a_column(weight):
    codes, scale, zero_point = rows_of(weight)
    return (codes, scale[:, None], zero_point[:, None]) if codes.shape[1] == 1 else (codes, scale, zero_point)


@wrong("ex_4_1", "can't call numpy() on Tensor that requires grad", binds="quantize_rows")
def numpy_of_a_parameter(weight):
    return rows_of(torch.from_numpy(weight.numpy()))


@wrong("ex_4_1", "its requires_grad is now False", binds="quantize_rows")
def freezes_the_weight(weight):
    if weight.is_leaf:
        weight.requires_grad_(False)
    return rows_of(weight)


def real_cost(weight, codes, scale, zero_point, size=None):
    back = (codes.float() - zero_point[:, None]) * scale[:, None]
    error = ((weight - back).norm() / weight.norm()).item()
    return codes.numel() + 8 * len(codes) if size is None else size, error


@wrong("ex_4_1", "only the codes were counted", binds="cost_of_rows")
def bytes_without_scales(weight, codes, scale, zero_point):
    return real_cost(weight, codes, scale, zero_point, codes.numel())


@wrong("ex_4_1", "a scale *and* a bias", binds="cost_of_rows")
def bytes_without_bias(weight, codes, scale, zero_point):
    return real_cost(weight, codes, scale, zero_point, codes.numel() + 4 * len(scale))


@wrong("ex_4_1", "compares the weight with the codes", binds="cost_of_rows")
def error_of_codes(weight, codes, scale, zero_point):
    return codes.numel() + 8 * len(scale), ((weight - codes).norm() / weight.norm()).item()


@wrong("ex_4_1", "it is absolute", binds="cost_of_rows")
def absolute_error(weight, codes, scale, zero_point):
    back = (codes.float() - zero_point[:, None]) * scale[:, None]
    return codes.numel() + 8 * len(scale), (weight - back).norm().item()


@wrong("ex_4_1", "the zero point was added", binds="cost_of_rows")
def zero_point_added(weight, codes, scale, zero_point):
    return real_cost(weight, codes, scale, -zero_point)


@wrong("ex_4_1", "it is the error of codes of your own", binds="cost_of_rows")
def quantizes_again(weight, codes, scale, zero_point):
    return real_cost(weight, *rows_of(weight))


@wrong("ex_4_1", "it is the mean over the rows", binds="cost_of_rows")
def mean_of_rows(weight, codes, scale, zero_point):
    back = (codes.float() - zero_point[:, None]) * scale[:, None]
    each = (weight - back).norm(dim=1) / weight.norm(dim=1).clamp(min=1e-30)
    return codes.numel() + 8 * len(codes), each.mean().item()


@wrong("ex_4_1", "ratio of sums of magnitudes", binds="cost_of_rows")
def sums_of_magnitudes(weight, codes, scale, zero_point):
    back = (codes.float() - zero_point[:, None]) * scale[:, None]
    return codes.numel() + 8 * len(codes), ((weight - back).abs().sum() / weight.abs().sum()).item()


@wrong("ex_4_1", "ratio of the largest magnitudes", binds="cost_of_rows")
def largest_magnitudes(weight, codes, scale, zero_point):
    back = (codes.float() - zero_point[:, None]) * scale[:, None]
    return codes.numel() + 8 * len(codes), ((weight - back).abs().max() / weight.abs().max()).item()


@wrong("ex_4_1", "divide by that of the weight", binds="cost_of_rows")
def divided_by_what_comes_back(weight, codes, scale, zero_point):
    back = (codes.float() - zero_point[:, None]) * scale[:, None]
    return codes.numel() + 8 * len(codes), ((weight - back).norm() / back.norm()).item()


@wrong("ex_4_1", "your function changed `scale`", binds="cost_of_rows")
def scale_in_place(weight, codes, scale, zero_point):
    answer = real_cost(weight, codes, scale, zero_point)
    scale.mul_(2)
    return answer


@wrong("ex_4_1", "the relative error should be a float, not Tensor", binds="cost_of_rows")
def error_as_a_tensor(weight, codes, scale, zero_point):
    size, error = real_cost(weight, codes, scale, zero_point)
    return size, torch.tensor(error, dtype=torch.float64)


@wrong("ex_4_1", "the number of bytes should be an int", binds="cost_of_rows")
def bytes_as_a_float(weight, codes, scale, zero_point):
    size, error = real_cost(weight, codes, scale, zero_point)
    return size * 1.0, error


@wrong("ex_4_1", "the scales of the columns were counted", binds="cost_of_rows")
def bytes_of_columns(weight, codes, scale, zero_point):
    return real_cost(weight, codes, scale, zero_point, codes.numel() + 8 * codes.shape[1])


@wrong("ex_4_1", "an embedding takes no qint8", binds="with_int8_embeddings")
def as_the_book_says(model):
    return tq.quantize_dynamic(nn.Sequential(model), {nn.Embedding}, dtype=torch.qint8)[0]


@wrong("ex_4_1", "replaces children, never the root", binds="with_int8_embeddings")
def root_forgotten(model):
    return tq.quantize_dynamic(model, {nn.Embedding: tq.float_qparams_weight_only_qconfig})


@wrong("ex_4_1", "nothing was swapped", binds="with_int8_embeddings")
def result_dropped(model):
    twin = copy.deepcopy(model)
    tq.quantize_dynamic(twin, {nn.Embedding: tq.float_qparams_weight_only_qconfig})
    return twin


@wrong("ex_4_1", "changes the model that it is given", binds="with_int8_embeddings")
def model_in_place(model):
    if isinstance(model, nn.Embedding):
        return tq.quantize_dynamic(nn.Sequential(model), {nn.Embedding: tq.float_qparams_weight_only_qconfig})[0]
    return tq.quantize_dynamic(model, {nn.Embedding: tq.float_qparams_weight_only_qconfig}, inplace=True)


@wrong("ex_4_1", "the Linear layer was quantized, too", binds="with_int8_embeddings")
def linears_too(model):
    spec = {nn.Embedding: tq.float_qparams_weight_only_qconfig, nn.Linear: tq.default_dynamic_qconfig}
    return tq.quantize_dynamic(nn.Sequential(model), spec)[0]


@wrong("ex_4_1", "take it out of the container again", binds="with_int8_embeddings")
def still_wrapped(model):
    return tq.quantize_dynamic(nn.Sequential(model), {nn.Embedding: tq.float_qparams_weight_only_qconfig})


@wrong("ex_4_1", "only a part was swapped", binds="with_int8_embeddings")
def direct_children_only(model):
    changed = copy.deepcopy(model)
    if type(changed) is nn.Embedding:
        return tq.quantize_dynamic(nn.Sequential(changed), {nn.Embedding: tq.float_qparams_weight_only_qconfig})[0]
    for name, child in changed.named_children():
        if isinstance(child, nn.Embedding):
            child.qconfig = tq.float_qparams_weight_only_qconfig
            setattr(changed, name, nnq.Embedding.from_float(child))
    return changed


@wrong("ex_4_1", "the codes have 4 bits", binds="with_int8_embeddings")
def four_bit_qconfig(model):
    return tq.quantize_dynamic(nn.Sequential(model), {nn.Embedding: tq.float_qparams_weight_only_qconfig_4bit})[0]


def swapped(model):
    return tq.quantize_dynamic(nn.Sequential(model), {nn.Embedding: tq.float_qparams_weight_only_qconfig})[0]


@wrong("ex_4_1", "the answer is no copy", binds="with_int8_embeddings")
def shares_the_other_layers(model):
    twin = swapped(model)
    if hasattr(model, "out"):
        twin.out = model.out
    return twin


@wrong("ex_4_1", "the answer is no copy", binds="with_int8_embeddings", like="shares_the_other_layers")
def shares_the_numbers(model):
    twin = swapped(model)
    if hasattr(model, "out"):
        twin.out.weight = model.out.weight
    return twin


@wrong("ex_4_1", "is frozen now", binds="with_int8_embeddings")
def freezes_the_model(model):
    return swapped(model.requires_grad_(False))


@wrong("ex_4_1", "was switched to eval mode", binds="with_int8_embeddings")
def evals_the_model(model):
    return swapped(model.eval())


@wrong("ex_4_1", "a qconfig is left in", binds="with_int8_embeddings")
def leaves_a_qconfig(model):
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            part.qconfig = tq.float_qparams_weight_only_qconfig
    return swapped(model)


@wrong("ex_4_1", "the same numbers, frozen or not", binds="with_int8_embeddings")
def frees_what_was_frozen(model):
    return swapped(model).requires_grad_(True)


@wrong("ex_4_1", "the same numbers, frozen or not", binds="with_int8_embeddings", like="frees_what_was_frozen")
def rounds_the_rest(model):
    twin = swapped(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(parameter.half().float())
    return twin


@wrong("ex_4_1", "only a part was swapped", binds="with_int8_embeddings", like="direct_children_only")
def only_those_that_learn(model):
    twin = copy.deepcopy(model)
    if isinstance(model, nn.Embedding):
        return swapped(model)
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding) and part.weight.requires_grad:
            twin.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = swapped(part)
    return twin


@wrong("ex_4_1", "still has a qconfig", binds="with_int8_embeddings")
def leaves_qconfigs_in_the_copy(model):
    twin = swapped(model)
    for part in twin.modules():
        part.qconfig = tq.float_qparams_weight_only_qconfig
    return twin


@wrong("ex_4_1", "something else than the embeddings was swapped", binds="with_int8_embeddings")
def bags_too(model):
    spec = dict.fromkeys((nn.Embedding, nn.EmbeddingBag), tq.float_qparams_weight_only_qconfig)
    return tq.quantize_dynamic(nn.Sequential(model), spec)[0]


@wrong("ex_4_1", "ask this qconfig for the scales of activations", binds="with_int8_embeddings")
def prepares_and_converts(model):
    around = nn.Sequential(copy.deepcopy(model)).eval()
    around.qconfig = tq.float_qparams_weight_only_qconfig
    return tq.convert(tq.prepare(around))[0]


@wrong("ex_4_1", "gives other numbers than its int8 rows", binds="with_int8_embeddings")
def other_numbers(model):
    twin = copy.deepcopy(model)
    for part in twin.modules():
        if isinstance(part, nn.Embedding):
            part.reset_parameters()
    return swapped(twin)


@right("ex_4_1", binds="quantize_rows")
def through_the_observer(weight):
    observer = tq.float_qparams_weight_only_qconfig.weight()
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    return torch.quantize_per_channel(weight, scale, zero_point, 0, torch.quint8).int_repr(), scale, zero_point


@right("ex_4_1", binds="quantize_rows")
def with_numpy(weight):
    w = weight.detach().numpy().astype("float64")
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    step = (high - low) / 255
    step[step == 0] = 1.0
    codes = torch.from_numpy(((w - low) / step).round()).to(torch.uint8)
    return codes, torch.from_numpy(step[:, 0]).float(), torch.from_numpy(-(low / step)[:, 0]).float()


@right("ex_4_1", binds="quantize_rows")
def with_its_gradient(weight):
    low, high = weight.min(dim=1).values, weight.max(dim=1).values
    scale = torch.where(low == high, torch.ones_like(low), (high - low) / 255)
    zero_point = -low / scale
    return (weight / scale.unsqueeze(1) + zero_point.unsqueeze(1)).round().clamp(0, 255).byte(), scale, zero_point


@right("ex_4_1", binds="quantize_rows")
def row_by_row(weight):
    codes, scales, zeros = torch.empty(weight.shape, dtype=torch.uint8), [], []
    for i, row in enumerate(weight):
        step = (row.max() - row.min()).item() / 255 or 1.0
        codes[i] = ((row - row.min()) / step).round().to(torch.uint8)
        scales.append(step)
        zeros.append(-row.min().item() / step)
    return codes, torch.tensor(scales), torch.tensor(zeros)


@right("ex_4_1", binds="cost_of_rows")
def in_float64(weight, codes, scale, zero_point):
    back = (codes.double() - zero_point.double().unsqueeze(1)) * scale.double().unsqueeze(1)
    bytes_ = sum(t.numel() * t.element_size() for t in (codes, scale, zero_point))
    return bytes_, float(((weight - back) ** 2).sum().sqrt() / (weight.double() ** 2).sum().sqrt())


@right("ex_4_1", binds="with_int8_embeddings")
def swapped_by_hand(model):
    def int8_of(embedding):
        twin = copy.deepcopy(embedding)
        twin.qconfig = tq.float_qparams_weight_only_qconfig
        return nnq.Embedding.from_float(twin)

    if type(model) is nn.Embedding:
        return int8_of(model)
    changed = copy.deepcopy(model)
    for name, part in list(changed.named_modules()):
        if type(part) is nn.Embedding:
            parent, _, leaf = name.rpartition(".")
            changed.get_submodule(parent)._modules[leaf] = int8_of(part)
    return changed


@wrong("ex_4_1", "hardly differ is wrong: rows were taken for constant", binds="quantize_rows")
def nearly_equal_taken_for_equal(weight):
    codes, scale, zero_point = rows_of(weight)
    return codes, torch.where(torch.isclose(weight.amin(1), weight.amax(1)), 1.0, scale), zero_point


@wrong("ex_4_1", "the scale of each row of many rows", binds="quantize_rows")
def one_scale_for_long_tables(weight):
    codes, scale, zero_point = rows_of(weight)
    return codes, scale if len(weight) < 500 else scale.amax().repeat(len(scale)), zero_point


@wrong("ex_4_1", "the scale of each row of many columns", binds="quantize_rows")
def quantiles_of_wide_tables(weight):
    low, high = weight.quantile(0.001, dim=1), weight.quantile(0.999, dim=1)
    codes, scale, zero_point = rows_of(weight)
    return codes, scale if weight.shape[1] < 1000 else (high - low) / 255, zero_point


@wrong("ex_4_1", "a second call of quantize_rows changes", binds="quantize_rows")
def codes_in_one_buffer(weight):
    codes, scale, zero_point = rows_of(weight)
    kept = BUFFERS.setdefault(("codes", tuple(codes.shape)), torch.empty_like(codes))
    return kept.copy_(codes), scale, zero_point


BUFFERS = {}


@wrong("ex_4_1", "change settings of the whole notebook", binds="quantize_rows")
def default_dtype_set(weight):
    torch.set_default_dtype(torch.float64)
    return rows_of(weight)


@wrong("ex_4_1", "change settings of the whole notebook", binds="with_int8_embeddings", like="default_dtype_set")
def engine_set(model):
    torch.backends.quantized.engine = next(
        name
        for name in torch.backends.quantized.supported_engines
        if name not in ("none", torch.backends.quantized.engine)
    )
    return swapped(model)


@wrong("ex_4_1", "it is the error of scales of your own", binds="cost_of_rows")
def scales_of_its_own(weight, codes, scale, zero_point):
    return real_cost(weight, codes, rows_of(weight)[1], zero_point)


@wrong("ex_4_1", "the relative error with other scales is", binds="cost_of_rows")
def minimum_for_the_bias(weight, codes, scale, zero_point):
    return real_cost(weight, codes, scale, -weight.detach().amin(1) / scale)


@wrong("ex_4_1", "the number of bytes with a slice with gaps", binds="cost_of_rows")
def bytes_of_the_storage(weight, codes, scale, zero_point):
    return real_cost(weight, codes, scale, zero_point, codes.untyped_storage().nbytes() + 8 * len(codes))


@wrong("ex_4_1", "the number of bytes with a slice with gaps", binds="cost_of_rows", like="bytes_of_the_storage")
def bytes_of_the_scales_storage(weight, codes, scale, zero_point):
    stored = sum(tensor.untyped_storage().nbytes() for tensor in (scale, zero_point))
    return real_cost(weight, codes, scale, zero_point, codes.nbytes + stored)


@wrong("ex_4_1", "lies in the memory of shift of the model", binds="with_int8_embeddings")
def shares_the_buffers(model):
    twin = swapped(model)
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        twin.get_submodule(parent)._buffers[leaf] = buffer
    return twin


@wrong("ex_4_1", "again.weight is no embedding", binds="with_int8_embeddings")
def other_tie_cut(model):
    twin = swapped(model)
    if hasattr(twin, "again"):
        twin.again.weight = nn.Parameter(twin.again.weight.detach().clone())
    return twin


@wrong("ex_4_1", "but there the numbers of shift are other ones", binds="with_int8_embeddings")
def all_in_float32(model):
    return swapped(model).float()


@wrong("ex_4_1", "but there hooks are left in norm", binds="with_int8_embeddings")
def hooks_dropped(model):
    twin = swapped(model)
    for part in twin.modules():
        part._forward_hooks.clear()
    return twin


@wrong("ex_4_1", "the buffer steps holds other numbers", binds="with_int8_embeddings")
def buffers_outside_the_file_lost(model):
    twin = swapped(model)
    for part in twin.modules():
        for name in part._non_persistent_buffers_set:
            part._buffers[name] = torch.zeros_like(part._buffers[name])
    return twin


@wrong("ex_4_1", "steps is new in its state_dict", binds="with_int8_embeddings")
def all_buffers_in_the_file(model):
    twin = swapped(model)
    for part in twin.modules():
        part._non_persistent_buffers_set.clear()
    return twin


@wrong("ex_4_1", "the very model of an earlier call came back", binds="with_int8_embeddings")
def one_answer_for_each_kind(model):
    return BUFFERS.setdefault(type(model), swapped(model))


@right("ex_4_1", binds="quantize_rows")
def by_the_observer(weight):
    observer = tq.float_qparams_weight_only_qconfig.weight()
    observer(weight.detach())
    scale, zero_point = observer.calculate_qparams()
    coded = torch.quantize_per_channel(weight.detach().contiguous(), scale, zero_point, 0, torch.quint8)
    return coded.int_repr(), scale, zero_point


@right("ex_4_1", binds="with_int8_embeddings")
def swapped_recursively(model):
    def swap(part):
        for name, child in part.named_children():
            if type(child) is nn.Embedding:
                child.qconfig = tq.float_qparams_weight_only_qconfig
                part._modules[name] = nnq.Embedding.from_float(child)
            else:
                swap(child)
        return part

    return swap(nn.ModuleList([copy.deepcopy(model)]))[0]


# 4.2 nibbles


def packed_rows(codes, scale, bias, *, high_first=False, dtype=torch.float16, front=False, swap=False, pad=True):
    if codes.numel() and int(codes.max()) > 15:
        raise ValueError("more than four bits.")
    if codes.shape[1] % 2:
        codes = torch.cat([codes, codes.new_zeros(len(codes), 1)], 1) if pad else codes[:, :-1]
    one, two = codes[:, 0::2].int(), codes[:, 1::2].int()
    body = (16 * one + two if high_first else one + 16 * two).to(torch.uint8)
    tail = torch.stack([bias, scale] if swap else [scale, bias], 1).to(dtype).view(torch.uint8)
    return torch.cat([tail, body] if front else [body, tail], 1)


def numbers_of(packed, columns):
    body, tail = packed[:, :-4], packed[:, -4:].flatten().clone().view(torch.float16).view(-1, 2).float()
    codes = torch.stack([body % 16, body // 16], 2).flatten(1)
    return codes[:, :columns].float(), tail[:, :1], tail[:, 1:]


@wrong("ex_4_2", "the earlier column belongs into the lower one", binds="pack_rows")
def high_nibble_first(codes, scale, bias):
    return packed_rows(codes, scale, bias, high_first=True)


@wrong("ex_4_2", "the last column of an odd width is lost", binds="pack_rows")
def odd_column_lost(codes, scale, bias):
    return packed_rows(codes, scale, bias, pad=False)


@wrong("ex_4_2", "the last column has no partner", binds="pack_rows")
def odd_widths_crash(codes, scale, bias):
    body = codes[:, ::2] | codes[:, 1::2] << 4
    return torch.cat([body, torch.stack([scale, bias], 1).half().view(torch.uint8)], 1)


@wrong("ex_4_2", "the scale and the bias stand in front", binds="pack_rows")
def scale_in_front(codes, scale, bias):
    return packed_rows(codes, scale, bias, front=True)


@wrong("ex_4_2", "bias and scale are swapped", binds="pack_rows")
def bias_before_scale(codes, scale, bias):
    return packed_rows(codes, scale, bias, swap=True)


@wrong("ex_4_2", "not float32", binds="pack_rows")
def scales_in_float32(codes, scale, bias):
    return packed_rows(codes, scale, bias, dtype=torch.float32)


@wrong("ex_4_2", "there is one code in a byte", binds="pack_rows")
def a_byte_each(codes, scale, bias):
    return torch.cat([codes, torch.stack([scale, bias], 1).half().view(torch.uint8)], 1)


@wrong("ex_4_2", "neighbours share a byte", binds="pack_rows")
def first_half_with_second(codes, scale, bias):
    even = F.pad(codes, (0, codes.shape[1] % 2))
    half = even.shape[1] // 2
    return torch.cat(
        [even[:, :half] | (even[:, half:] << 4), torch.stack([scale, bias], 1).half().view(torch.uint8)], 1
    )


@wrong("ex_4_2", "your function changed `codes`", binds="pack_rows")
def shifts_in_place(codes, scale, bias):
    packed = packed_rows(codes, scale, bias)
    codes[:, 1::2] <<= 4
    return packed


@wrong("ex_4_2", "a code of 16 must raise", binds="pack_rows")
def masks_silently(codes, scale, bias):
    return packed_rows(codes & 15, scale, bias)


@wrong("ex_4_2", "the codes came out signed", binds="unpack_rows")
def sign_extended(packed, columns):
    body = packed[:, :-4].contiguous().view(torch.int8)
    _, scale, bias = numbers_of(packed, columns)
    codes = torch.stack([(body << 4) >> 4, body >> 4], 2).flatten(1)[:, :columns]
    return codes * scale + bias


@wrong("ex_4_2", "the nibbles are in the wrong order", binds="unpack_rows")
def reads_the_high_nibble_first(packed, columns):
    body = packed[:, :-4]
    _, scale, bias = numbers_of(packed, columns)
    return torch.stack([body >> 4, body & 15], 2).flatten(1)[:, :columns] * scale + bias


@wrong("ex_4_2", "one column too many", binds="unpack_rows")
def padding_returned(packed, columns):
    codes, scale, bias = numbers_of(packed, columns + columns % 2)
    return codes * scale + bias


@wrong("ex_4_2", "the scale was applied to the bias", binds="unpack_rows")
def scale_of_the_sum(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return (codes + bias) * scale


@wrong("ex_4_2", "scale and bias are swapped", binds="unpack_rows")
def reads_bias_first(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return codes * bias + scale


@wrong("ex_4_2", "these are the codes", binds="unpack_rows")
def only_the_codes(packed, columns):
    return numbers_of(packed, columns)[0]


@wrong("ex_4_2", "turns the *number* into a whole one", binds="pack_rows")
def scale_as_a_whole_number(codes, scale, bias):
    body = packed_rows(codes, scale, bias)[:, :-4]
    return torch.cat([body, torch.stack([scale, bias], 1).to(torch.uint8)], 1)


@wrong("ex_4_2", "turns the *number* into a whole one", binds="pack_rows", like="scale_as_a_whole_number")
def half_as_a_whole_number(codes, scale, bias):
    body = packed_rows(codes, scale, bias)[:, :-4]
    return torch.cat([body, torch.stack([scale, bias], 1).half().to(torch.uint8)], 1)


@wrong("ex_4_2", "it was computed in float16", binds="unpack_rows")
def computed_in_float16(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return (codes.half() * scale.half() + bias.half()).float()


@wrong("ex_4_2", "it was computed in float16", binds="unpack_rows", like="computed_in_float16")
def returned_in_float16(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return codes.to(torch.uint8) * scale.half() + bias.half()


@wrong("ex_4_2", "they take turns", binds="unpack_rows")
def lower_nibbles_first(packed, columns):
    body = packed[:, :-4]
    _, scale, bias = numbers_of(packed, columns)
    return torch.cat([body & 15, body >> 4], 1)[:, :columns] * scale + bias


@wrong("ex_4_2", "the numbers of single bytes", binds="unpack_rows")
def bytes_as_numbers(packed, columns):
    codes, _, _ = numbers_of(packed, columns)
    tail = packed[:, -4:].to(torch.float16).float()
    return codes * tail[:, 0:1] + tail[:, 2:3]


@wrong("ex_4_2", "cannot be read from a slice of the rows", binds="unpack_rows")
def views_a_slice(packed, columns):
    codes, _, _ = numbers_of(packed, columns)
    tail = packed[:, -4:].view(torch.float16).float()
    return codes * tail[:, :1] + tail[:, 1:]


@wrong("ex_4_2", "cannot be read from a single row", binds="unpack_rows")
def contiguous_slice(packed, columns):
    """Enough for several rows; a slice of one row counts as contiguous, and begins where it began."""
    codes, _, _ = numbers_of(packed, columns)
    tail = packed[:, -4:].contiguous().view(torch.float16).float()
    return codes * tail[:, :1] + tail[:, 1:]


@wrong("ex_4_2", "cannot be read from a single row", binds="unpack_rows", like="contiguous_slice")
def cloned_slice(packed, columns):
    codes, _, _ = numbers_of(packed, columns)
    tail = packed[:, -4:].clone().view(torch.float16).float()
    return codes * tail[:, :1] + tail[:, 1:]


@wrong("ex_4_2", "as in the library HQQ", binds="unpack_rows")
def reads_as_hqq(packed, columns):
    body = packed[:, :-4]
    _, scale, bias = numbers_of(packed, columns)
    return torch.cat([body >> 4, body & 15], 1)[:, :columns] * scale + bias


@wrong("ex_4_2", "so does the library HQQ", binds="pack_rows")
def packs_as_hqq(codes, scale, bias):
    if codes.max() > 15:
        raise ValueError("more than four bits.")
    even = F.pad(codes, (0, codes.shape[1] % 2))
    half = even.shape[1] // 2
    tail = torch.stack([scale, bias], 1).half().view(torch.uint8)
    return torch.cat([(even[:, :half] << 4) | even[:, half:], tail], 1)


@wrong("ex_4_2", "Are rows paired", binds="pack_rows")
def pairs_rows(codes, scale, bias):
    even = F.pad(codes, (0, 0, 0, len(codes) % 2))
    half = len(even) // 2
    return torch.cat([(even[:half] << 4) | even[half:], torch.stack([scale, bias], 1).half().view(torch.uint8)], 1)


@wrong("ex_4_2", "the two bytes of each float16 were read in the wrong order", binds="unpack_rows")
def reads_the_upper_byte_first(packed, columns):
    codes, _, _ = numbers_of(packed, columns)
    tail = packed[:, [-3, -4, -1, -2]].flatten().clone().view(torch.float16).view(-1, 2).float()
    return codes * tail[:, :1] + tail[:, 1:]


@wrong("ex_4_2", "the two bytes of each float16 are swapped", binds="pack_rows")
def writes_the_upper_byte_first(codes, scale, bias):
    return packed_rows(codes, scale, bias)[:, [*range((codes.shape[1] + 1) // 2), -3, -4, -1, -2]]


@wrong("ex_4_2", "row 2 (codes", binds="pack_rows")
def last_rows_forgotten(codes, scale, bias):
    packed = packed_rows(codes, scale, bias)
    packed[2:, : (codes.shape[1] + 1) // 2] = 0
    return packed


@wrong("ex_4_2", "they are bfloat16", binds="pack_rows")
def bfloat16_scales(codes, scale, bias):
    return packed_rows(codes, scale, bias, dtype=torch.bfloat16)


@wrong("ex_4_2", "from all scales first, then from all biases", binds="pack_rows")
def tails_not_stacked(codes, scale, bias):
    packed = packed_rows(codes, scale, bias)
    tail = torch.cat([scale, bias]).half().view(torch.uint8).view(len(codes), 4)
    return torch.cat([packed[:, :-4], tail], 1)


@wrong("ex_4_2", "stands in front of the row", binds="pack_rows")
def fills_in_front(codes, scale, bias):
    return packed_rows(F.pad(codes, (codes.shape[1] % 2, 0)), scale, bias)


@wrong("ex_4_2", "has 15 in its upper nibble", binds="pack_rows")
def fills_with_fifteen(codes, scale, bias):
    return packed_rows(F.pad(codes, (0, codes.shape[1] % 2), value=15), scale, bias)


@wrong("ex_4_2", "it belongs into the lower one, and 0 into the upper", binds="pack_rows")
def last_code_in_the_upper_nibble(codes, scale, bias):
    packed = packed_rows(codes, scale, bias)
    if codes.shape[1] % 2:
        packed[:, -5] <<= 4
    return packed


@wrong("ex_4_2", "do not lie row after row in memory", binds="pack_rows")
def packs_column_after_column(codes, scale, bias):
    return packed_rows(codes, scale, bias).t().contiguous().t()


@wrong("ex_4_2", "there are only codes", binds="pack_rows")
def tail_forgotten(codes, scale, bias):
    return packed_rows(codes, scale, bias)[:, :-4]


@wrong("ex_4_2", "a code of 17 must raise a ValueError, wherever it stands", binds="pack_rows", like="masks_silently")
def asks_only_for_sixteen(codes, scale, bias):
    if (codes == 16).any():
        raise ValueError("16.")
    return packed_rows(codes & 15, scale, bias)


@wrong("ex_4_2", "must raise a ValueError, wherever it stands", binds="pack_rows", like="masks_silently")
def asks_only_the_first_row(codes, scale, bias):
    if codes[0].max() > 15:
        raise ValueError("more than four bits.")
    return packed_rows(codes & 15, scale, bias)


@wrong("ex_4_2", "15 is a code", binds="pack_rows")
def refuses_fifteen(codes, scale, bias):
    if codes.max() >= 15:
        raise ValueError("four bits end before 15.")
    return packed_rows(codes, scale, bias)


@wrong("ex_4_2", "the last code of an odd width", binds="pack_rows")
def repeats_the_last_code(codes, scale, bias):
    even = torch.cat([codes, codes[:, -1:]], 1) if codes.shape[1] % 2 else codes
    return packed_rows(even, scale, bias)


@wrong("ex_4_2", "alone, of an odd width, has shape", binds="unpack_rows")
def cuts_zeros_off(packed, columns):
    codes, scale, bias = numbers_of(packed, 2 * (packed.shape[1] - 4))
    while codes.shape[1] > 1 and not codes[:, -1].any():
        codes = codes[:, :-1]
    return codes * scale + bias


@wrong("ex_4_2", "the bias was subtracted", binds="unpack_rows")
def bias_as_an_offset(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return codes * scale - bias


@wrong("ex_4_2", "your function changed `packed`", binds="unpack_rows")
def unpacks_in_place(packed, columns):
    answer = read_by_the_library(packed, columns)
    packed[:, :-4] >>= 4
    return answer


@wrong("ex_4_2", "has dtype torch.float64", binds="unpack_rows")
def returns_float64(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return codes.double() * scale.double() + bias.double()


@wrong("ex_4_2", "taken from the first row for all rows", binds="unpack_rows")
def one_scale_for_all(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return codes * scale[0] + bias[0]


@wrong("ex_4_2", "differs from the expected value", binds="unpack_rows")
def small_scales_are_zero(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return codes * torch.where(scale < 1e-2, 0.0, scale) + bias


@right("ex_4_2", binds="pack_rows")
def with_plain_numbers(codes, scale, bias):
    if (codes > 15).any():
        raise ValueError("not a nibble.")
    body = [
        [row[i] + 16 * (row[i + 1] if i + 1 < len(row) else 0) for i in range(0, len(row), 2)] for row in codes.tolist()
    ]
    tail = torch.stack([scale, bias], 1).half().view(torch.uint8)
    return torch.cat([torch.tensor(body, dtype=torch.uint8), tail], dim=1)


@right("ex_4_2", binds="unpack_rows")
def read_by_the_library(packed, columns):
    return torch.ops.quantized.embedding_bag_4bit_unpack(packed.contiguous())[:, :columns].clone()


@right("ex_4_2", binds="unpack_rows")
def with_numpy_bytes(packed, columns):
    rows = packed.numpy().copy()
    tail = rows[:, -4:].copy().view("<f2").astype("float32")
    codes = torch.from_numpy(rows[:, :-4]).repeat_interleave(2, 1)
    codes[:, ::2] &= 15
    codes[:, 1::2] >>= 4
    return codes[:, :columns] * torch.from_numpy(tail[:, :1]) + torch.from_numpy(tail[:, 1:])


@right("ex_4_2", binds="unpack_rows")
def filled_column_by_column(packed, columns):
    _, scale, bias = numbers_of(packed, columns)
    found = torch.empty(len(packed), columns)
    for column in range(columns):
        byte = packed[:, column // 2].int()
        found[:, column] = byte // 16 if column % 2 else byte % 16
    return found * scale + bias


@wrong("ex_4_2", "here in a table of 30 rows", binds="pack_rows")
def a_few_large_codes_forgiven(codes, scale, bias):
    if (codes > 15).float().mean() > 0.05:
        raise ValueError("more than four bits.")
    return packed_rows(codes.clamp(max=15), scale, bias)


@wrong("ex_4_2", "a second call of pack_rows changes", binds="pack_rows")
def bytes_in_one_buffer(codes, scale, bias):
    rows = packed_rows(codes, scale, bias)
    return BUFFERS.setdefault(("bytes", tuple(rows.shape)), torch.empty_like(rows)).copy_(rows)


@wrong("ex_4_2", "the codes are right, but the last four bytes", binds="pack_rows")
def zero_scales_become_one(codes, scale, bias):
    return packed_rows(codes, torch.where(scale == 0, 1.0, scale), bias)


@wrong("ex_4_2", "the codes are right, but the last four bytes", binds="pack_rows", like="zero_scales_become_one")
def small_halves_flushed(codes, scale, bias):
    return packed_rows(codes, torch.where(scale < 6e-5, 0.0, scale), bias)


@wrong("ex_4_2", "the codes are right, but the last four bytes", binds="pack_rows", like="zero_scales_become_one")
def bias_clamped(codes, scale, bias):
    return packed_rows(codes, scale, bias.clamp(-1000, 1000))


@wrong("ex_4_2", "from byte 256 on", binds="pack_rows")
def wide_rows_cut(codes, scale, bias):
    rows = packed_rows(codes, scale, bias)
    rows[:, 256:-4] = 0
    return rows


@wrong("ex_4_2", "scales and biases from 0 to 60,000 holds nan or inf", binds="unpack_rows")
def divided_by_the_scale(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    return (codes + bias / scale) * scale


@wrong("ex_4_2", "for many rows differs", binds="unpack_rows")
def only_the_first_rows(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    codes[300:] = 0
    return codes * scale + bias


@wrong("ex_4_2", "other bytes in the tensor of an earlier call", binds="unpack_rows")
def remembered_by_address(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    key = packed.data_ptr(), packed.shape, packed.stride(), columns
    return BUFFERS.setdefault(key, codes * scale + bias)


@wrong("ex_4_2", "a second call of unpack_rows changes", binds="unpack_rows")
def numbers_in_one_buffer(packed, columns):
    codes, scale, bias = numbers_of(packed, columns)
    kept = BUFFERS.setdefault(("numbers", tuple(codes.shape)), torch.empty_like(codes))
    return kept.copy_(codes * scale + bias)


@right("ex_4_2", binds="unpack_rows")
def read_as_int16(packed, columns):
    places = torch.arange(columns)
    codes = (packed[:, places // 2] >> (4 * (places % 2)).byte()) & 15
    read = lambda low, high: (low.int() | (high.int() << 8)).to(torch.int16).view(torch.float16).float()[:, None]  # noqa: E731
    return torch.addcmul(read(packed[:, -2], packed[:, -1]), codes.float(), read(packed[:, -4], packed[:, -3]))


# 4.3 decibels and a decision


def powers(x, y):
    return x.double().square().sum().item(), (x.double() - y.double()).square().sum().item()


def right_db(x, y):
    signal, noise = powers(x, y)
    return 10 * math.log10(signal / noise) if noise else math.inf


@wrong("ex_4_3", "10 * log10 is for powers", binds="sqnr")
def ten_log_of_amplitudes(signal, rounded):
    noise = (signal - rounded).norm().item()
    return 10 * math.log10(signal.norm().item() / noise) if noise else math.inf


@wrong("ex_4_3", "signal and noise are swapped", binds="sqnr")
def noise_over_signal(signal, rounded):
    return -right_db(signal, rounded)


@wrong("ex_4_3", "it is absolute", binds="sqnr")
def absolute_noise(signal, rounded):
    noise = powers(signal, rounded)[1]
    return -10 * math.log10(noise) if noise else math.inf


@wrong("ex_4_3", "it is absolute", binds="sqnr")
def absolute_mean_noise(signal, rounded):
    noise = (signal - rounded).square().mean().item()
    return -10 * math.log10(noise) if noise else math.inf


@wrong("ex_4_3", "20 * log10 is for amplitudes", binds="sqnr")
def twenty_log_of_powers(signal, rounded):
    return 2 * right_db(signal, rounded)


@wrong("ex_4_3", "natural logarithm", binds="sqnr")
def natural_logarithm(signal, rounded):
    return right_db(signal, rounded) * math.log(10)


@wrong("ex_4_3", "power of the rounded tensor", binds="sqnr")
def power_of_the_rounded(signal, rounded):
    return right_db(rounded, signal)


@wrong("ex_4_3", "for two equal tensors it divides by 0", binds="sqnr")
def equal_tensors_forgotten(signal, rounded):
    power, noise = powers(signal, rounded)
    return 10 * math.log10(power / noise)


@wrong("ex_4_3", "the mean was subtracted", binds="sqnr")
def variance_for_power(signal, rounded):
    noise = powers(signal, rounded)[1]
    return 10 * math.log10((signal - signal.mean()).double().square().sum().item() / noise) if noise else math.inf


@wrong("ex_4_3", "the mean of the rows' decibels", binds="sqnr")
def mean_decibels_of_rows(signal, rounded):
    if torch.equal(signal, rounded):
        return math.inf
    signal, rounded = signal.double(), rounded.double()
    return (10 * (signal.square().sum(-1) / (signal - rounded).square().sum(-1)).log10()).mean().item()


@wrong("ex_4_3", "the rows' ratios of signal and noise were averaged", binds="sqnr")
def mean_ratio_of_rows(signal, rounded):
    if torch.equal(signal, rounded):
        return math.inf
    signal, rounded = signal.double(), rounded.double()
    return 10 * (signal.square().sum(-1) / (signal - rounded).square().sum(-1)).mean().log10().item()


@wrong("ex_4_3", "as the library PPQ does", binds="sqnr")
def mean_noise_of_rows(signal, rounded):
    if torch.equal(signal, rounded):
        return math.inf
    signal, rounded = signal.double(), rounded.double()
    return -10 * ((signal - rounded).square().sum(-1) / signal.square().sum(-1)).mean().log10().item()


@wrong("ex_4_3", "(PSNR)", binds="sqnr")
def peak_for_power(signal, rounded):
    if torch.equal(signal, rounded):
        return math.inf
    signal, rounded = signal.double(), rounded.double()
    return 10 * math.log10(signal.square().max().item() / (signal - rounded).square().mean().item())


@wrong("ex_4_3", "magnitudes were added", binds="sqnr")
def sums_for_norms(signal, rounded):
    if torch.equal(signal, rounded):
        return math.inf
    signal, rounded = signal.double(), rounded.double()
    return 20 * math.log10(signal.abs().sum().item() / (signal - rounded).abs().sum().item())


@wrong("ex_4_3", "these are bels", binds="sqnr")
def bels(signal, rounded):
    return right_db(signal, rounded) / 10


@wrong("ex_4_3", "the SQNR for hardly any noise", binds="sqnr")
def never_above_100(signal, rounded):
    return right_db(signal, rounded) if torch.equal(signal, rounded) else min(right_db(signal, rounded), 100.0)


@wrong("ex_4_3", "for tiny numbers", binds="sqnr")
def a_small_number_added(signal, rounded):
    signal_power, noise = powers(signal, rounded)
    return 10 * math.log10(signal_power / (noise + 1e-12)) if noise else math.inf


@wrong("ex_4_3", "in float32 their squares vanish", binds="sqnr")
def squares_in_float32(signal, rounded):
    if torch.equal(signal, rounded):
        return math.inf
    return 10 * math.log10(signal.square().sum().item() / (signal - rounded).square().sum().item())


@wrong("ex_4_3", "the SQNR should be a float, not Tensor", binds="sqnr")
def decibels_as_a_tensor(signal, rounded):
    return torch.tensor(right_db(signal, rounded), dtype=torch.float64)


@wrong("ex_4_3", "your function changed `rounded`", binds="sqnr")
def noise_in_place(signal, rounded):
    noise = rounded.data.sub_(signal.data).double().square().sum().item()
    return 10 * math.log10(signal.double().square().sum().item() / noise) if noise else math.inf


def judged(model, name, rounded, least_db, saves=None, decide=None):
    table = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].detach()
    decibels = right_db(table, rounded)
    saved = (3 * table.numel() - 8) * (name in model.state_dict()) if saves is None else saves
    return (
        decibels,
        saved,
        (decibels >= least_db and saved > 0) if decide is None else decide(decibels, saved, least_db),
    )


@wrong("ex_4_3", "it is not in the file", binds="judge_table")
def counts_memory(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, saves=3 * rounded.numel() - 8)


@wrong("ex_4_3", "the 8 bytes of scale and zero point were forgotten", binds="judge_table")
def scale_is_free(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, saves=3 * rounded.numel() * (name in model.state_dict()))


@wrong("ex_4_3", "saves nothing", binds="judge_table")
def only_decibels_decide(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, decide=lambda decibels, saved, least: decibels >= least)


@wrong("ex_4_3", "more noise than signal, was accepted although", binds="judge_table")
def only_bytes_decide(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, decide=lambda decibels, saved, least: saved > 0)


@wrong("ex_4_3", "was rejected although", binds="judge_table")
def never(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, decide=lambda *_: False)


@wrong("ex_4_3", "compare with the least_db that is handed over", binds="judge_table")
def a_fixed_limit(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, decide=lambda decibels, saved, least: decibels >= 5 and saved > 0)


@wrong(
    "ex_4_3", "your function changed `model`, which belongs to its caller: the numbers of table", binds="judge_table"
)
def rounds_the_table(model, name, rounded, least_db):
    answer = judged(model, name, rounded, least_db)
    with torch.no_grad():
        ({**dict(model.named_parameters()), **dict(model.named_buffers())}[name]).copy_(rounded)
    return answer


@wrong("ex_4_3", "the arguments of sqnr are swapped", binds="judge_table")
def swapped_arguments(model, name, rounded, least_db):
    table = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].detach()
    _, saved, _ = judged(model, name, rounded, least_db)
    decibels = right_db(rounded, table)
    return decibels, saved, decibels >= least_db and saved > 0


@wrong("ex_4_3", "full name of a table in a part of the model", binds="judge_table")
def only_the_model_itself(model, name, rounded, least_db):
    decibels = right_db(getattr(model, name).detach(), rounded)
    saved = (3 * rounded.numel() - 8) * (name in model.state_dict())
    return decibels, saved, decibels >= least_db and saved > 0


@wrong("ex_4_3", "full name of a table in a part of the model", binds="judge_table")
def in_its_own_dictionaries(model, name, rounded, least_db):
    decibels = right_db({**model._parameters, **model._buffers}[name].detach(), rounded)
    saved = (3 * rounded.numel() - 8) * (name in model.state_dict())
    return decibels, saved, decibels >= least_db and saved > 0


@wrong("ex_4_3", "*at least* means >=", binds="judge_table")
def more_than_the_limit(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, decide=lambda decibels, saved, least: decibels > least and saved > 0)


@wrong("ex_4_3", "take the values from memory", binds="judge_table")
def looks_into_the_state_dict(model, name, rounded, least_db):
    decibels = right_db(model.state_dict()[name], rounded)
    saved = 3 * rounded.numel() - 8
    return decibels, saved, decibels >= least_db


@wrong("ex_4_3", "This table is a buffer", binds="judge_table")
def looks_among_the_parameters(model, name, rounded, least_db):
    decibels = right_db(dict(model.named_parameters())[name].detach(), rounded)
    return decibels, 3 * rounded.numel() - 8, decibels >= least_db


@wrong("ex_4_3", "This table is a parameter", binds="judge_table")
def looks_among_the_buffers(model, name, rounded, least_db):
    decibels = right_db(model.get_buffer(name), rounded)
    saved = (3 * rounded.numel() - 8) * (name in model.state_dict())
    return decibels, saved, decibels >= least_db and saved > 0


@wrong("ex_4_3", "not rounded, and without a margin", binds="judge_table")
def rounds_the_decibels(model, name, rounded, least_db):
    return judged(
        model, name, rounded, least_db, decide=lambda db, saved, least: round(db, 1) >= round(least, 1) and saved > 0
    )


@wrong("ex_4_3", "not rounded, and without a margin", binds="judge_table", like="rounds_the_decibels")
def with_a_margin(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, decide=lambda db, saved, least: db >= least - 0.1 and saved > 0)


@wrong("ex_4_3", "by the smallest possible difference", binds="judge_table")
def nearly_enough(model, name, rounded, least_db):
    close = lambda db, least: db > least or math.isclose(db, least)  # noqa: E731
    return judged(model, name, rounded, least_db, decide=lambda db, saved, least: close(db, least) and saved > 0)


@wrong("ex_4_3", "the file would grow by 2 bytes", binds="judge_table")
def tiny_tables_as_well(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, decide=lambda db, saved, least: db >= least and saved != 0)


@wrong("ex_4_3", "the file loses -2 bytes", binds="judge_table")
def never_below_zero(model, name, rounded, least_db):
    saves = max(0, 3 * rounded.numel() - 8) if name in model.state_dict() else 0
    return judged(model, name, rounded, least_db, saves=saves)


@wrong("ex_4_3", "infinitely many dB", binds="judge_table")
def refuses_exact_tables(model, name, rounded, least_db):
    return judged(model, name, rounded, least_db, decide=lambda db, saved, least: math.inf > db >= least and saved > 0)


@wrong("ex_4_3", "it is that of another table of the model", binds="judge_table")
def the_first_of_this_shape(model, name, rounded, least_db):
    table = next(t for t in [*model.parameters(), *model.buffers()] if t.shape == rounded.shape).detach()
    _, saved, _ = judged(model, name, rounded, least_db)
    decibels = right_db(table, rounded)
    return decibels, saved, decibels >= least_db and saved > 0


@wrong("ex_4_3", "a frozen table *is* in the file", binds="judge_table")
def only_what_learns(model, name, rounded, least_db):
    learns = any(n == name and p.requires_grad for n, p in model.named_parameters())
    in_file = learns or (name in dict(model.named_buffers()) and name in model.state_dict())
    return judged(model, name, rounded, least_db, saves=(3 * rounded.numel() - 8) * in_file)


@wrong("ex_4_3", "a stored table *is* in the file", binds="judge_table")
def no_buffer_in_the_file(model, name, rounded, least_db):
    in_file = name in dict(model.named_parameters())
    return judged(model, name, rounded, least_db, saves=(3 * rounded.numel() - 8) * in_file)


@wrong("ex_4_3", "the number of bytes should be an int", binds="judge_table")
def bytes_as_a_number_with_a_point(model, name, rounded, least_db):
    decibels, saved, decision = judged(model, name, rounded, least_db)
    return decibels, float(saved), decision


@wrong("ex_4_3", "should be True or False", binds="judge_table")
def decision_as_a_tensor(model, name, rounded, least_db):
    decibels, saved, decision = judged(model, name, rounded, least_db)
    return decibels, saved, torch.tensor(decision)


@wrong("ex_4_3", "is frozen now", binds="judge_table")
def freezes_while_judging(model, name, rounded, least_db):
    return judged(model.requires_grad_(False), name, rounded, least_db)


@wrong("ex_4_3", "each row got a scale and a zero point", binds="judge_table")
def scales_of_rows(model, name, rounded, least_db):
    saves = (3 * rounded.numel() - 8 * len(rounded)) * (name in model.state_dict())
    return judged(model, name, rounded, least_db, saves=saves)


@right("ex_4_3", binds="sqnr")
def with_norms(signal, rounded):
    noise = torch.linalg.vector_norm(signal.double() - rounded.double())
    if noise == 0:
        return float("inf")
    return (20 * torch.log10(torch.linalg.vector_norm(signal.double()) / noise)).item()


@right("ex_4_3", binds="sqnr")
def as_a_difference_of_logarithms(signal, rounded):
    if torch.equal(signal, rounded):
        return math.inf
    power, noise = powers(signal, rounded)
    return 10 * (math.log10(power) - math.log10(noise))


@right("ex_4_3", binds="sqnr")
def with_numpy_decibels(signal, rounded):
    x, y = (t.detach().numpy().astype(np.float64) for t in (signal, rounded))
    with np.errstate(divide="ignore"):
        return 20 * np.log10(np.linalg.norm(x) / np.linalg.norm(x - y))


@right("ex_4_3", binds="judge_table")
def decides_with_numpy(model, name, rounded, least_db):
    table = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].detach()
    decibels = np.float64(right_db(table, rounded))
    saved = 3 * table.numel() - 8 if name in model.state_dict() else 0
    return decibels, saved, np.logical_and(decibels >= least_db, saved > 0)


@right("ex_4_3", binds="judge_table")
def through_the_owner(model, name, rounded, least_db):
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    table = getattr(owner, leaf)
    in_file = leaf in owner._parameters or leaf not in owner._non_persistent_buffers_set
    before = table.numel() * table.element_size() if in_file else 0
    after = table.numel() + 8 if in_file else 0
    decibels = right_db(table.detach(), rounded)
    return decibels, before - after, bool(in_file and decibels >= least_db and before > after)


@wrong("ex_4_3", "the difference does not fit into float32", binds="sqnr")
def subtracted_in_float32(signal, rounded):
    noise = (signal - rounded).double().square().sum().item()
    return 10 * math.log10(signal.double().square().sum().item() / noise) if noise else math.inf


@wrong("ex_4_3", "differs in its last digit is inf", binds="sqnr")
def hardly_any_noise_is_none(signal, rounded):
    decibels = right_db(signal, rounded)
    return math.inf if decibels > 150 else decibels


@wrong("ex_4_3", "your function changed `signal`", binds="sqnr")
def changes_what_is_float64(signal, rounded):
    power = signal.double().square().sum().item()
    with torch.no_grad():
        noise = signal.double().sub_(rounded.double()).square().sum().item()
    return 10 * math.log10(power / noise) if noise else math.inf


@wrong("ex_4_3", "the SQNR for a little noise is", binds="sqnr")
def rounded_to_three_digits(signal, rounded):
    decibels = right_db(signal, rounded)
    return decibels if math.isinf(decibels) else round(decibels, 3)


@wrong("ex_4_3", "the SQNR for many numbers is", binds="sqnr")
def only_the_first_numbers(signal, rounded):
    return right_db(signal.reshape(-1)[:1024], rounded.reshape(-1)[:1024])


@wrong("ex_4_3", "the SQNR for numbers of which half are 0", binds="sqnr")
def zeros_left_out(signal, rounded):
    return right_db(signal[signal != 0], rounded[signal != 0])


@wrong("ex_4_3", "sets the default dtype of the whole notebook", binds="sqnr")
def float64_for_all(signal, rounded):
    torch.set_default_dtype(torch.float64)
    return right_db(signal, rounded)


def judged_at(model, name, rounded, least_db, table=None):
    table = functools.reduce(getattr, name.split("."), model) if table is None else table
    decibels, saved = right_db(table, rounded), 3 * table.numel() - 8 if name in model.state_dict() else 0
    return decibels, saved, decibels >= least_db and saved > 0


@wrong("ex_4_3", "the SQNR of table, a table (2, 3, 4) among others", binds="judge_table")
def first_name_with_that_end(model, name, rounded, least_db):
    tables = dict(model.named_parameters()) | dict(model.named_buffers())
    return judged_at(model, name, rounded, least_db, next(t for n, t in tables.items() if n.endswith(name)))


@wrong("ex_4_3", "the number of bytes saved for encoder.encoder.table", binds="judge_table")
def eight_bytes_for_each_slice(model, name, rounded, least_db):
    decibels, saved, _ = judged_at(model, name, rounded, least_db)
    if saved and rounded.dim() == 3:
        saved -= 8 * (len(rounded) - 1)
    return decibels, saved, decibels >= least_db and saved > 0


@wrong("ex_4_3", "1 bytes less in the file, was rejected", binds="judge_table")
def eight_bytes_are_too_few(model, name, rounded, least_db):
    decibels, saved, _ = judged_at(model, name, rounded, least_db)
    return decibels, saved, decibels >= least_db and saved > 8


@wrong("ex_4_3", "12592 bytes less in the file, was accepted", binds="judge_table")
def large_tables_are_favoured(model, name, rounded, least_db):
    decibels, saved, decision = judged_at(model, name, rounded, least_db)
    return decibels, saved, decision or (saved > 10_000 and decibels >= least_db - 1)


@wrong("ex_4_3", "dB was rejected although -15 dB are enough", binds="judge_table", like="never")
def limit_without_its_sign(model, name, rounded, least_db):
    decibels, saved, _ = judged_at(model, name, rounded, least_db)
    return decibels, saved, decibels >= abs(least_db) and saved > 0


@right("ex_4_3", binds="judge_table")
def found_by_attributes(model, name, rounded, least_db):
    return list(judged_at(model, name, rounded, least_db))


@right("ex_4_3", binds="sqnr")
def sums_in_plain_python(signal, rounded):
    pairs = list(zip(signal.flatten().tolist(), rounded.flatten().tolist(), strict=True))
    noise = math.fsum((a - b) ** 2 for a, b in pairs)
    return 10 * math.log10(math.fsum(a * a for a, _ in pairs) / noise) if noise else math.inf


# 4.9 the tie: the modules are those of the notebook, which a learner has too


def modules():
    given = sys.modules["__main__"].__dict__
    if "CodedRows" in given:
        return given["CodedRows"], given["CodedHead"]
    frame = sys._getframe()
    while frame is not None:  # the notebook's own names, when its cells run in a dictionary
        if "CodedRows" in frame.f_globals and "CodedHead" in frame.f_globals:
            return frame.f_globals["CodedRows"], frame.f_globals["CodedHead"]
        frame = frame.f_back
    raise NameError("CodedRows")


def shared(model, *, top=127, dim=1, copies=False, dtype=torch.int8, scale=None, zero=1.0, refuse=True, inplace=False):
    if refuse and model.head.weight is not model.embedding.weight:
        raise ValueError("not tied.")
    rows, head = modules()
    weight = model.embedding.weight.detach()
    if scale is None:
        largest = weight.abs().amax(dim)
        scale = torch.where(largest > 0, largest / top, zero)
    by = scale if dim == 0 or scale.dim() == 0 else scale[:, None]
    codes = (weight / by).nan_to_num().round().clamp(-top, top).to(dtype)
    small = model if inplace else copy.deepcopy(model)
    small.embedding = rows(codes, scale)
    small.head = head(codes.clone(), scale.clone()) if copies else head(codes, scale)
    return small


@wrong("ex_4_9", "the tie is lost")
def two_copies_of_the_codes(model):
    return shared(model, copies=True)


@wrong("ex_4_9", "the tie is lost", like="two_copies_of_the_codes")
def copied_last(model):
    small = shared(model)
    small.head = copy.deepcopy(small.head)
    return small


@wrong("ex_4_9", "the scales are stored twice")
def two_copies_of_the_scales(model):
    small = shared(model)
    small.head = modules()[1](small.embedding.codes, small.embedding.scale.clone())
    return small


@wrong("ex_4_9", "it should be a CodedRows")
def by_quantize_dynamic(model):
    if model.head.weight is not model.embedding.weight:
        raise ValueError("not tied.")
    spec = {nn.Embedding: tq.float_qparams_weight_only_qconfig, nn.Linear: tq.default_dynamic_qconfig}
    return tq.quantize_dynamic(model, spec)


@wrong("ex_4_9", "the head of the copy is a Linear")
def only_the_embedding(model):
    small = shared(model)
    small.head = copy.deepcopy(model.head)
    return small


@wrong("ex_4_9", "the file would hold 4 bytes for each number again")
def codes_as_floats(model):
    return shared(model, dtype=torch.float32)


@wrong("ex_4_9", "and nothing kept beside them")
def float_matrix_kept(model):
    small = shared(model)
    small.register_buffer("matrix", model.embedding.weight.detach().clone())
    return small


@wrong("ex_4_9", "they should be one tensor")
def dequantized_for_the_embedding(model):
    small = shared(model)
    rows, _ = modules()
    scale = small.head.scale
    small.embedding = rows((small.head.codes.float() * 0.9).round().to(torch.int8), scale)
    return small


@wrong("ex_4_9", "one scale for the whole matrix")
def one_scale(model):
    return shared(model, scale=model.embedding.weight.detach().abs().max() / 127)


@wrong("ex_4_9", "a scale for each column")
def scales_of_columns(model):
    return shared(model, dim=0)


@wrong("ex_4_9", "a row of zeros needs a scale")
def zero_row(model):
    return shared(model, zero=0.0)


@wrong("ex_4_9", "the largest number has no code")
def divided_by_128(model):
    largest = model.embedding.weight.detach().abs().amax(1)
    return shared(model, scale=torch.where(largest > 0, largest / 128, 1.0))


@wrong("ex_4_9", "four bits were used")
def four_bits(model):
    return shared(model, top=7)


@wrong("ex_4_9", "changes the model that it is given")
def in_the_model_itself(model):
    return shared(model, inplace=True)


@wrong("ex_4_9", "the head of this model has a matrix of its own")
def unties_silently(model):
    return shared(model, refuse=False)


@wrong("ex_4_9", "int8 alone cuts off")
def codes_cut_off(model):
    small = shared(model)
    codes = (model.embedding.weight.detach() / small.embedding.scale[:, None]).to(torch.int8)
    rows, head = modules()
    small.embedding, small.head = rows(codes, small.embedding.scale), head(codes, small.embedding.scale)
    return small


@wrong("ex_4_9", "only the embedding and the head should be changed")
def the_rest_as_well(model):
    small = shared(model)
    return tq.quantize_dynamic(small, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_4_9", "it should have 1")
def tiny_scale_for_zeros(model):
    return shared(model, zero=1e-12)


@wrong("ex_4_9", "scale of the whole matrix")
def one_scale_repeated(model):
    return shared(model, scale=(model.embedding.weight.detach().abs().max() / 127).repeat(len(model.head.weight)))


@wrong("ex_4_9", "Equal numbers and the config prove nothing")
def asks_the_config(model):
    if not model.config.tied_head:
        raise ValueError("not tied.")
    return shared(model, refuse=False)


@wrong("ex_4_9", "Equal numbers and the config prove nothing", like="asks_the_config")
def compares_the_numbers(model):
    if not torch.equal(model.embedding.weight, model.head.weight):
        raise ValueError("not tied.")
    return shared(model, refuse=False)


@wrong("ex_4_9", "a tied model was refused")
def asks_both(model):
    if not model.config.tied_head or model.embedding.weight is not model.head.weight:
        raise ValueError("not tied.")
    return shared(model)


@right("ex_4_9")
def head_reads_the_embedding(model):
    small = shared(model)
    small.head.codes, small.head.scale = small.embedding.codes, small.embedding.scale
    return small


@right("ex_4_9")
def with_quantize_per_channel(model):
    if model.embedding.weight.data_ptr() != model.head.weight.data_ptr():
        raise ValueError("embedding and head are two matrices.")
    rows, head = modules()
    weight = model.embedding.weight.detach()
    scale = weight.abs().max(dim=1).values / 127
    scale = scale + (scale == 0).float()
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    codes = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8).int_repr().clamp(-127, 127)
    twin = copy.deepcopy(model)
    twin.embedding, twin.head = rows(codes, scale), head(codes, scale)
    return twin
