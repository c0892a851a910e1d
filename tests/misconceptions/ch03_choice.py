"""Unit 03, sections 4 to 8: what learners really answer in exercises 3.8 to 3.11."""

import copy
from itertools import pairwise

import torch
import torch.ao.nn.quantized.dynamic as nnqd
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn

from helpers import int8
from tests.misconceptions.bank import right, wrong

# 3.9 bytes


def bytes_of(d_in, d_out, variant, bias, group, **change):
    """The right sum, each part of which can be replaced."""
    row = {"per tensor": 0, "per channel": 16, "torchao int8": 5}.get(variant, 0)
    part = {
        "codes": {"float": 4 * d_in * d_out, "groups, packed": d_in * d_out // 2}.get(variant, d_in * d_out),
        "rows": row * d_out,
        "once": {"per tensor": 28, "per channel": 12}.get(variant, 0),
        "groups": {"groups, unpacked": 5, "groups, packed": 4}.get(variant, 0) * d_out * (d_in // group),
        "offset": 4 * d_out if bias else 0,
    } | change
    return sum(part.values())


@wrong("ex_3_9", "the scales and zero points were forgotten")
def scales_forgotten(d_in, d_out, variant, bias=True, group=32):
    change = {"rows": 0, "groups": 0} | ({"once": 12} if variant == "per tensor" else {})
    return bytes_of(d_in, d_out, variant, bias, group, **change)


@wrong("ex_3_9", "the overhead of the groups was forgotten")
def group_overhead_forgotten(d_in, d_out, variant, bias=True, group=32):
    return bytes_of(d_in, d_out, variant, bias, group, groups=0)


@wrong("ex_3_9", "a scale for each group of each row, not one a row")
def one_group_a_row(d_in, d_out, variant, bias=True, group=32):
    size = {"groups, unpacked": 5, "groups, packed": 4}.get(variant, 0)
    return bytes_of(d_in, d_out, variant, bias, group, groups=size * d_out)


@wrong("ex_3_9", "you counted those of one row")
def groups_of_one_row(d_in, d_out, variant, bias=True, group=32):
    size = {"groups, unpacked": 5, "groups, packed": 4}.get(variant, 0)
    return bytes_of(d_in, d_out, variant, bias, group, groups=size * (d_in // group))


@wrong("ex_3_9", "the output scale and zero point were forgotten")
def output_scale_forgotten(d_in, d_out, variant, bias=True, group=32):
    return bytes_of(d_in, d_out, variant, bias, group, once=16 if variant == "per tensor" else 0)


@wrong("ex_3_9", "float64, not float32")
def scales_as_float32(d_in, d_out, variant, bias=True, group=32):
    change = {"rows": 12 * d_out} if variant == "per channel" else {}
    return bytes_of(d_in, d_out, variant, bias, group, **change)


@wrong("ex_3_9", "not for each input")
def scale_for_each_input(d_in, d_out, variant, bias=True, group=32):
    size = {"per channel": 16, "torchao int8": 5}.get(variant, 0)
    return bytes_of(d_in, d_out, variant, bias, group, rows=size * d_in)


@wrong("ex_3_9", "two codes in a byte")
def packed_is_not_packed(d_in, d_out, variant, bias=True, group=32):
    change = {} if variant == "float" else {"codes": d_in * d_out}
    return bytes_of(d_in, d_out, variant, bias, group, **change)


@wrong("ex_3_9", "a byte for each code, although only 4 bits")
def unpacked_counted_as_packed(d_in, d_out, variant, bias=True, group=32):
    change = {"codes": d_in * d_out // 2} if variant.startswith("groups") else {}
    return bytes_of(d_in, d_out, variant, bias, group, **change)


@wrong("ex_3_9", "the bias stays float32")
def bias_as_int8(d_in, d_out, variant, bias=True, group=32):
    return bytes_of(d_in, d_out, variant, bias, group, offset=d_out if bias else 0)


@wrong("ex_3_9", "the bias was forgotten")
def bias_forgotten(d_in, d_out, variant, bias=True, group=32):
    return bytes_of(d_in, d_out, variant, bias, group, offset=0)


@wrong("ex_3_9", "there is no bias to count")
def bias_always_counted(d_in, d_out, variant, bias=True, group=32):
    return bytes_of(d_in, d_out, variant, True, group)


@wrong("ex_3_9", "those of the output, were forgotten")
def bits_as_advertised(d_in, d_out, variant, bias=True, group=32):
    bits = {"float": 32, "groups, packed": 4, "groups, unpacked": 8}.get(variant, 8)
    return bits * d_in * d_out // 8 + 4 * d_out * bias


@wrong("ex_3_9", "along the inputs: d_in // group of them in each of the d_out rows")
def groups_along_the_outputs(d_in, d_out, variant, bias=True, group=32):
    size = {"groups, unpacked": 5, "groups, packed": 4}.get(variant, 0)
    return bytes_of(d_in, d_out, variant, bias, group, groups=size * d_in * max(d_out // group, 1))


@wrong("ex_3_9", "not for each input.")
def bias_for_each_input(d_in, d_out, variant, bias=True, group=32):
    return bytes_of(d_in, d_out, variant, bias, group, offset=4 * d_in if bias else 0)


@wrong("ex_3_9", "it should be an int (divide with //)")
def bytes_as_a_float(d_in, d_out, variant, bias=True, group=32):
    return bytes_of(d_in, d_out, variant, bias, group) / 1


@wrong("ex_3_9", "without further arguments")
def groups_of_64_by_default(d_in, d_out, variant, bias=True, group=64):
    return bytes_of(d_in, d_out, variant, bias, group)


@wrong("ex_3_9", "of type Tensor; bytes are whole numbers")
def bytes_as_a_tensor(d_in, d_out, variant, bias=True, group=32):
    return torch.tensor(bytes_of(d_in, d_out, variant, bias, group))


@wrong("ex_3_9", "you counted them for each row")
def output_scale_for_each_row(d_in, d_out, variant, bias=True, group=32):
    change = {"rows": 28 * d_out, "once": 0} if variant == "per channel" else {}
    return bytes_of(d_in, d_out, variant, bias, group, **change)


@wrong("ex_3_9", "4 bytes a group, not 5")
def packed_with_torchaos_scales(d_in, d_out, variant, bias=True, group=32):
    groups = d_out * (d_in // group)
    change = {"groups": 5 * groups} if variant == "groups, packed" else {}
    return bytes_of(d_in, d_out, variant, bias, group, **change)


@wrong("ex_3_9", "5 bytes a group, not 16")
def groups_with_pytorchs_scales(d_in, d_out, variant, bias=True, group=32):
    change = {"groups": 16 * d_out * (d_in // group)} if variant == "groups, unpacked" else {}
    return bytes_of(d_in, d_out, variant, bias, group, **change)


@wrong("ex_3_9", "float32 takes 4")
def one_byte_for_every_weight(d_in, d_out, variant, bias=True, group=32):
    return bytes_of(d_in, d_out, variant, bias, group, **({"codes": d_in * d_out} if variant == "float" else {}))


@right("ex_3_9")
def from_sizes_of_dtypes(d_in, d_out, variant, bias=True, group=32):
    size = {"f64": 8, "i64": 8, "f32": 4, "f16": 2, "i8": 1, "i4": 0.5}
    total = d_out * size["f32"] * bias
    if variant == "float":
        return int(total + d_in * d_out * size["f32"])
    code, scale, zero, how_many = {
        "per tensor": ("i8", "f64", "i64", 1),
        "per channel": ("i8", "f64", "i64", d_out),
        "torchao int8": ("i8", "f32", "i8", d_out),
        "groups, unpacked": ("i8", "f32", "i8", d_in * d_out // group),
        "groups, packed": ("i4", "f16", "f16", d_in * d_out // group),
    }[variant]
    total += d_in * d_out * size[code] + how_many * (size[scale] + size[zero])
    return int(total + (size["f32"] + size["i64"] if variant.startswith("per ") else 0))


@right("ex_3_9")
def one_branch_each(d_in, d_out, variant, bias=True, group=32):
    if variant in ("per tensor", "per channel"):
        rows = d_out if variant == "per channel" else 1
        return d_in * d_out + 16 * rows + 12 + (4 * d_out if bias else 0)
    return bytes_of(d_in, d_out, variant, bias, group)


def _bytes(d_in, d_out, variant, bias, group):
    n, groups = d_in * d_out, d_out * (d_in // group)
    sizes = {"float": 4 * n, "per tensor": n + 28, "per channel": n + 16 * d_out + 12, "torchao int8": n + 5 * d_out,
             "groups, unpacked": n + 5 * groups, "groups, packed": n // 2 + 4 * groups}  # fmt: skip
    return sizes[variant] + (4 * d_out if bias else 0)


@wrong("ex_3_9", "which takes more than 32 bits")
def counted_in_int32(d_in, d_out, variant, bias=True, group=32):
    return torch.tensor(_bytes(d_in, d_out, variant, bias, group)).to(torch.int32).item()


@wrong("ex_3_9", 'your number for linear_bytes(48, 48, "float", bias=True, group=16) is', like="bias_forgotten")
def square_is_tied(d_in, d_out, variant, bias=True, group=32):
    """A square matrix is taken for one without a bias."""
    return _bytes(d_in, d_out, variant, bias and d_in != d_out, group)


# 3.8 fuse list


def calls_of(model):
    """(name, module, numbers of the steps it reads), for each call."""
    nodes = list(torch.fx.symbolic_trace(model).graph.nodes)
    number = {node: i for i, node in enumerate(nodes)}
    return [
        (
            str(n.target),
            model.get_submodule(n.target) if n.op == "call_module" else None,
            [number[s] for s in n.all_input_nodes],
        )
        for n in nodes
    ]


def pairs_of(
    model, *, shared=False, read_elsewhere=False, kind=lambda m, t: type(m) is t, refuse=True, norm=True, order=1
):
    if refuse and model.training:
        raise ValueError("call model.eval() first.")
    calls = calls_of(model)
    times = [id(module) for _, module, _ in calls]
    once = lambda i: shared or times.count(times[i]) == 1  # noqa: E731
    pairs = []
    for i, (name, module, _) in enumerate(calls):
        if not kind(module, nn.Linear) or not once(i):
            continue
        last, mine = i, []
        for wanted in (nn.BatchNorm1d, nn.ReLU) if norm else (nn.ReLU,):
            readers = [j for j, call in enumerate(calls) if last in call[2]]
            fits = [j for j in readers if kind(calls[j][1], wanted) and once(j)]
            if fits and (read_elsewhere or len(readers) == 1):
                mine.append([name, calls[fits[0]][0]])
                last = fits[0]
        pairs += mine[::order]
    return pairs


@wrong("ex_3_8", "the ReLU `relu` is called twice")
def across_a_shared_module(model):
    return pairs_of(model, shared=True)


@wrong("ex_3_8", "read by somebody else, too")
def across_a_residual(model):
    return pairs_of(model, read_elsewhere=True)


@wrong("ex_3_8", "must raise a ValueError")
def in_training_mode(model):
    return pairs_of(model, refuse=False)


@wrong("ex_3_8", "is missing in your list")
def without_batchnorm(model):
    return pairs_of(model, norm=False)


@wrong("ex_3_8", "refuses the order of your list")
def relu_before_batchnorm(model):
    return pairs_of(model, order=-1)


@wrong("ex_3_8", "three names at once")
def triples(model):
    by_linear = {}
    for first, second in pairs_of(model):
        by_linear.setdefault(first, [first]).append(second)
    return list(by_linear.values())


@wrong("ex_3_8", "['b', 'relu']: the ReLU `relu` is called twice")
def neighbours_in_named_modules(model):
    if model.training:
        raise ValueError("call model.eval() first.")
    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    pairs = []
    for i, (name, module) in enumerate(leaves):
        if type(module) is nn.Linear:
            for after, other in leaves[i + 1 :]:
                if type(other) not in (nn.BatchNorm1d, nn.ReLU):
                    break
                pairs.append([name, after])
    return pairs


@wrong("ex_3_8", "is missing in your list")
def nothing_is_safe(model):
    if model.training:
        raise ValueError("call model.eval() first.")
    return []


@wrong("ex_3_8", "`5` does not read what `3` returns, but what `4` returns")
def in_the_order_of_calls(model):
    """Who comes next, not who reads whom; looks past a Dropout, which does nothing in eval mode."""
    pairs = pairs_of(model)
    calls = [call for call in calls_of(model) if type(call[1]) is not nn.Dropout]
    for (name, module, _), (after, other, _) in pairwise(calls):
        alone = sum(call[1] is other for call in calls) == 1 == sum(call[1] is module for call in calls)
        reads = sum(
            call[2].count(calls_of(model).index(next(c for c in calls_of(model) if c[0] == name)))
            for call in calls_of(model)
        )
        if type(module) is nn.Linear and type(other) is nn.ReLU and alone and reads == 1 and [name, after] not in pairs:
            pairs.append([name, after])
    return pairs


@wrong("ex_3_8", "each pair begins with the name of the Linear")
def pairs_of_neighbours(model):
    linear = {}
    for first, second in pairs_of(model):
        linear.setdefault(first, []).append(second)
    return [pair for first, others in linear.items() for pair in map(list, pairwise([first, *others]))]


@wrong("ex_3_8", "use the full names, as in named_modules")
def short_names(model):
    return [[name.rpartition(".")[2] for name in pair] for pair in pairs_of(model)]


@wrong("ex_3_8", "is a subclass, and only what is exactly an nn.Linear can be fused")
def any_kind_of_linear(model):
    return pairs_of(model, kind=lambda m, t: isinstance(m, t) if t is nn.Linear else type(m) is t)


@wrong("ex_3_8", "is a subclass: only what is exactly an nn.BatchNorm1d or nn.ReLU")
def any_kind_of_follower(model):
    return pairs_of(model, kind=lambda m, t: type(m) is t if t is nn.Linear else isinstance(m, t))


@wrong("ex_3_8", "there is no fused module for a Linear and a GELU")
def whatever_follows(model):
    activations = (nn.ReLU, nn.GELU, nn.ReLU6)
    kinds = {nn.Linear: nn.Linear, nn.BatchNorm1d: nn.BatchNorm1d, nn.ReLU: activations}
    return pairs_of(model, kind=lambda m, t: isinstance(m, kinds[t]) and type(m).__name__ != "OwnReLU")


@wrong("ex_3_8", "the result of the Linear `a` is read by somebody else, too", like="across_a_residual")
def readers_that_are_modules(model):
    """Functions, methods and the output are not counted as readers."""
    if model.training:
        raise ValueError("call model.eval() first.")
    calls, pairs = calls_of(model), []
    once = lambda i: sum(call[1] is calls[i][1] for call in calls) == 1  # noqa: E731
    for i, (name, module, _) in enumerate(calls):
        last = i
        for wanted in (nn.BatchNorm1d, nn.ReLU) if type(module) is nn.Linear and once(i) else ():
            readers = [j for j, call in enumerate(calls) if last in call[2] and call[1] is not None]
            if len(readers) == 1 and type(calls[readers[0]][1]) is wanted and once(readers[0]):
                pairs.append([name, calls[readers[0]][0]])
                last = readers[0]
    return pairs


@wrong("ex_3_8", "the result of the BatchNorm `norm` is read by somebody else")
def only_the_linear_is_asked_for_readers(model):
    pairs = pairs_of(model)
    calls = calls_of(model)
    for i, (name, module, _) in enumerate(calls):
        if type(module) is nn.BatchNorm1d and any(pair[1] == name for pair in pairs):
            first = next(pair[0] for pair in pairs if pair[1] == name)
            after = [call[0] for call in calls if i in call[2] and type(call[1]) is nn.ReLU]
            pairs += [[first, one] for one in after if [first, one] not in pairs]
    return pairs


@wrong("ex_3_8", "called twice; fused once", like="across_a_shared_module")
def counted_by_name(model):
    """A module with two names counts as two."""
    if model.training:
        raise ValueError("call model.eval() first.")
    calls = calls_of(model)
    names = {id(m): [n for n, other in model.named_modules(remove_duplicate=False) if other is m] for _, m, _ in calls}
    pairs = pairs_of(model)
    for i, (name, module, _) in enumerate(calls):
        readers = [call for call in calls if i in call[2]]
        if type(module) is nn.Linear and len(readers) == 1 and len(names[id(readers[0][1])]) == 2:
            pairs.append([name, readers[0][0]])
    return pairs


@wrong("ex_3_8", "should hold names (str), not modules")
def modules_for_names(model):
    return [[model.get_submodule(name) for name in pair] for pair in pairs_of(model)]


@wrong("ex_3_8", "your function changed `model`")
def fuses_at_once(model):
    pairs = pairs_of(model)
    if pairs:
        tq.fuse_modules(model, pairs, inplace=True)
    return pairs


@wrong("ex_3_8", "a list of pairs")
def names_in_one_row(model):
    return [name for pair in pairs_of(model) for name in pair]


@wrong("ex_3_8", "must raise a ValueError: also one without a BatchNorm")
def refuses_training_only_with_batchnorm(model):
    if model.training and any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        raise ValueError("call model.eval() first.")
    return pairs_of(model, refuse=False)


@wrong("ex_3_8", "your function changed `model`", like="fuses_at_once")
def switches_to_eval(model):
    if model.training:
        model.eval()
        raise ValueError("it was in training mode.")
    return pairs_of(model)


@right("ex_3_8")
def with_fx_nodes(model):
    if model.training:
        raise ValueError("eval mode, please.")
    graph = torch.fx.symbolic_trace(model).graph
    modules = [model.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]

    def good(node, kind):
        if node.op != "call_module":
            return False
        module = model.get_submodule(node.target)
        return type(module) is kind and sum(m is module for m in modules) == 1

    found = []
    for node in graph.nodes:
        if good(node, nn.Linear):
            end = node
            for kind in (nn.BatchNorm1d, nn.ReLU):
                users = list(end.users)
                if len(users) == 1 and good(users[0], kind):
                    found.append([node.target, users[0].target])
                    end = users[0]
    return found


@right("ex_3_8")
def tuples_in_another_order(model):
    pairs = [tuple(pair) for pair in pairs_of(model)]
    names = list(dict.fromkeys(first for first, _ in pairs))
    return [pair for name in reversed(names) for pair in pairs if pair[0] == name]


@wrong(
    "ex_3_8",
    "for a model whose ReLU comes before its BatchNorm in the alphabet fuse_modules refuses the order",
    like="relu_before_batchnorm",
)
def in_alphabetical_order(model):
    return sorted(pairs_of(model))


@wrong("ex_3_8", "for a model with Linear layers that have no bias the pair", like="without_batchnorm")
def no_bias_no_fusion(model):
    return [pair for pair in pairs_of(model) if model.get_submodule(pair[0]).bias is not None]


@wrong("ex_3_8", "also if a part of it is in eval mode")
def asks_every_module_for_its_mode(model):
    if all(module.training for module in model.modules()):
        raise ValueError("call model.eval() first.")
    return pairs_of(model, refuse=False)


# 3.11 fine-tuning with a frozen layer


def weight_only(bits):
    q = 2 ** (bits - 1) - 1
    weight = tq.FakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0),
        quant_min=-q,
        quant_max=q,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    return tq.QConfig(activation=nn.Identity, weight=weight)


def to_int8(trainee):
    converted = copy.deepcopy(trainee).eval()
    for name, layer in trainee.named_children():
        if hasattr(layer, "weight_fake_quant"):
            fake = layer.weight_fake_quant
            codes = (layer.weight / fake.scale[:, None]).round().clamp(fake.quant_min, fake.quant_max).to(torch.int8)
            zeros = torch.zeros(layer.out_features, dtype=torch.int64)
            stored = torch._make_per_channel_quantized_tensor(codes, fake.scale.double(), zeros, axis=0)
            new = nnqd.Linear(layer.in_features, layer.out_features)
            new.set_weight_bias(stored, layer.bias)
            setattr(converted, name, new)
    return converted


def rows_of(i, x):
    return torch.arange(256 * i, 256 * (i + 1)) % len(x)


def run(trainee, optimizer, x, targets, steps, off=None, zero=True):
    for i in range(steps):
        if i == off:
            trainee.apply(tq.disable_observer)
        rows = rows_of(i, x)
        loss = F.cross_entropy(trainee(x[rows]), targets[rows])
        if zero:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def prepared(body, bits):
    trainee = copy.deepcopy(body).train()
    trainee.qconfig = weight_only(bits)
    return tq.prepare_qat(trainee, inplace=True)


def adam(model, lr=2e-3):
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)


@wrong("ex_3_11", "in a converted layer `weight` is a method")
def freezes_the_converted_layer(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee(x[:8])
    converted = to_int8(trainee)
    converted[0].weight.requires_grad = False
    run(converted, torch.optim.SGD(converted.parameters(), lr=0.01), x, targets, steps)
    return trainee, converted


@wrong("ex_3_11", "train first, convert last")
def optimizer_of_a_converted_model(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee(x[:8])
    converted = to_int8(trainee)
    run(converted, torch.optim.Adam(converted.parameters(), lr=2e-3), x, targets, steps)
    return trainee, converted


@wrong("ex_3_11", "it is stale")
def stale_optimizer(body, x, targets, bits, steps):
    first = copy.deepcopy(body).train()
    first.qconfig = weight_only(bits)
    optimizer = adam(first)
    trainee = tq.prepare_qat(first)  # a copy: the optimizer holds the other one
    trainee[0].requires_grad_(False)
    run(trainee, optimizer, x, targets, steps, off=steps // 2)
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "the observers are still on")
def observers_left_on(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps)
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "switched off only at the end")
def observers_off_at_the_end(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps)
    trainee.eval()(x[:8])
    trainee.apply(tq.disable_observer)
    return trainee, to_int8(trainee)


@wrong("ex_3_11", "with the scales of the untrained weights")
def observers_off_at_once(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps, off=1)
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "the first layer's bias has moved")
def only_the_weight_is_frozen(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].weight.requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps, off=steps // 2)
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "the first layer's weight has moved")
def nothing_frozen(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    run(trainee, adam(trainee), x, targets, steps, off=steps // 2)
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "one of the others has not moved either")
def freezes_all_but_the_last(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[:4].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps, off=steps // 2)
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "only the first layer moved")
def freezes_the_wrong_layers(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[2:].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps, off=steps // 2)
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "train a copy")
def trains_the_original(body, x, targets, bits, steps):
    body.train()
    body[0].requires_grad_(False)
    run(body, adam(body), x, targets, steps)
    trainee = prepared(body, bits)
    trainee(x[:8])
    return trainee.eval().apply(tq.disable_observer), to_int8(trainee)


@wrong("ex_3_11", "set the qconfig, then tq.prepare_qat")
def prepare_in_place_of_prepare_qat(body, x, targets, bits, steps):
    trainee = copy.deepcopy(body).train()
    trainee.qconfig = weight_only(bits)
    trainee = tq.prepare(trainee)
    trainee[0].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps)
    return trainee.eval(), int8.dynamic_int8(trainee)


@wrong("ex_3_11", "call .train() on the copy")
def prepares_in_eval_mode(body, x, targets, bits, steps):
    trainee = copy.deepcopy(body).eval()
    trainee.qconfig = weight_only(bits)
    tq.prepare_qat(trainee, inplace=True)
    return trainee, to_int8(trainee)


@wrong("ex_3_11", "not those that training has seen")
def converts_before_the_last_steps(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    descent, converted = adam(trainee), None
    for i in range(steps):
        if i == steps // 2:
            trainee.apply(tq.disable_observer)
        if i == steps - 5:
            converted = to_int8(trainee)
        descent.zero_grad()
        F.cross_entropy(trainee(x[rows_of(i, x)]), targets[rows_of(i, x)]).backward()
        descent.step()
    return trainee.eval(), converted


@wrong("ex_3_11", "should be what to_int8 returns")
def never_converts(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps, off=steps // 2)
    trainee.eval()
    return trainee, trainee


@wrong("ex_3_11", "the gradients pile up")
def gradients_pile_up(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps, off=steps // 2, zero=False)
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "of what training moved them")
def float_training_then_rounding(body, x, targets, bits, steps):
    trainee = copy.deepcopy(body).train()
    trainee[0].requires_grad_(False)
    run(trainee, adam(trainee, 1e-4), x, targets, steps // 2)
    halfway = prepared(trainee, bits)
    halfway(x[:8])
    halfway.apply(tq.disable_observer)
    trainee.train()
    run(trainee, adam(trainee, 1e-4), x, targets, steps // 2)
    with torch.no_grad():
        for i in (2, 4):
            halfway[i].weight.copy_(trainee[i].weight)
            halfway[i].bias.copy_(trainee[i].bias)
    return halfway.eval(), to_int8(halfway)


def trained_with(body, x, targets, bits, steps, optimizer=adam, rows=rows_of, off=None, made=0, loss=F.cross_entropy):
    """The six steps, one of them changed."""
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    descent = optimizer(trainee)
    for i in range(steps + made):
        if i == (steps // 2 if off is None else off):
            trainee.apply(tq.disable_observer)
        some = rows(i, x)
        descent.zero_grad()
        loss(trainee(x[some]), targets[some]).backward()
        descent.step()
    trainee.eval().apply(tq.disable_observer)
    return trainee, to_int8(trainee)


@wrong("ex_3_11", "those of Adam's default, 1e-3")
def default_learning_rate(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, optimizer=lambda m: adam(m, 1e-3))


@wrong("ex_3_11", "those of 2e-2")
def learning_rate_ten_times_too_large(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, optimizer=lambda m: adam(m, 2e-2))


@wrong("ex_3_11", "not AdamW")
def adam_with_decay(body, x, targets, bits, steps):
    free = lambda m: [p for p in m.parameters() if p.requires_grad]  # noqa: E731
    return trained_with(body, x, targets, bits, steps, optimizer=lambda m: torch.optim.AdamW(free(m), lr=2e-3))


@wrong("ex_3_11", "not SGD")
def stochastic_gradient_descent(body, x, targets, bits, steps):
    free = lambda m: [p for p in m.parameters() if p.requires_grad]  # noqa: E731
    return trained_with(body, x, targets, bits, steps, optimizer=lambda m: torch.optim.SGD(free(m), lr=2e-3))


@wrong("ex_3_11", "a step too many")
def one_step_more(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, made=1)


@wrong("ex_3_11", "a step is missing")
def one_step_fewer(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, made=-1)


@wrong("ex_3_11", "one step late")
def observers_off_one_step_late(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, off=steps // 2 + 1)


@wrong("ex_3_11", "one step early")
def observers_off_one_step_early(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, off=steps // 2 - 1)


@wrong("ex_3_11", "of what training moved them", like="float_training_then_rounding")
def observers_off_after_two_thirds(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, off=2 * steps // 3)


@wrong("ex_3_11", "every step used the first 256 rows")
def always_the_same_rows(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, rows=lambda i, x: torch.arange(256))


@wrong("ex_3_11", "one step too late")
def counts_rows_from_one(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, rows=lambda i, x: rows_of(i + 1, x))


@wrong("ex_3_11", "a step took what was left")
def slices_with_a_short_end(body, x, targets, bits, steps):
    def rows(i, x):
        start = 256 * i % len(x)
        return torch.arange(start, min(start + 256, len(x)))

    return trained_with(body, x, targets, bits, steps, rows=rows)


@wrong("ex_3_11", "the rest was left out")
def whole_batches_only(body, x, targets, bits, steps):
    return trained_with(
        body, x, targets, bits, steps, rows=lambda i, x: torch.arange(256) + 256 * (i % (len(x) // 256))
    )


@wrong("ex_3_11", "of what training moved them", like="float_training_then_rounding")
def slices_past_the_end(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, rows=lambda i, x: torch.arange(len(x))[256 * i : 256 * (i + 1)])


@wrong("ex_3_11", "each step used all rows")
def all_rows_in_each_step(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, rows=lambda i, x: torch.arange(len(x)))


@wrong("ex_3_11", "each step used 128 rows")
def half_a_batch(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, rows=lambda i, x: torch.arange(128 * i, 128 * (i + 1)) % len(x))


@wrong("ex_3_11", "of what training moved them", like="float_training_then_rounding")
def rows_at_random(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps, rows=lambda i, x: torch.randint(len(x), (256,)))


@wrong("ex_3_11", "of what training moved them", like="float_training_then_rounding")
def smoothed_labels(body, x, targets, bits, steps):
    loss = lambda y, t: F.cross_entropy(y, t, label_smoothing=0.05)  # noqa: E731
    return trained_with(body, x, targets, bits, steps, loss=loss)


@wrong("ex_3_11", "of what training moved them", like="float_training_then_rounding")
def weights_decay(body, x, targets, bits, steps):
    free = lambda m: [p for p in m.parameters() if p.requires_grad]  # noqa: E731
    decaying = lambda m: torch.optim.Adam(free(m), lr=2e-3, weight_decay=1e-4)  # noqa: E731
    return trained_with(body, x, targets, bits, steps, optimizer=decaying)


@wrong("ex_3_11", "of what training moved them", like="float_training_then_rounding")
def never_forgets_a_gradient(body, x, targets, bits, steps):
    free = lambda m: [p for p in m.parameters() if p.requires_grad]  # noqa: E731
    variant = lambda m: torch.optim.Adam(free(m), lr=2e-3, amsgrad=True)  # noqa: E731
    return trained_with(body, x, targets, bits, steps, optimizer=variant)


@wrong("ex_3_11", "you trained in float")
def trains_in_float(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    trainee(x[:8])
    trainee.apply(tq.disable_fake_quant)
    run(trainee, adam(trainee), x, targets, steps, off=steps // 2)
    trainee.eval().apply(tq.enable_fake_quant)
    return trainee, to_int8(trainee)


@wrong("ex_3_11", "nothing may observe after the observers are off")
def looks_again_at_the_end(body, x, targets, bits, steps):
    trainee, _ = trained_with(body, x, targets, bits, steps)
    trainee.apply(tq.enable_observer)(x[:8])
    trainee.apply(tq.disable_observer)
    return trainee, to_int8(trainee)


@wrong("ex_3_11", "a bias of the others has not moved")
def biases_frozen(body, x, targets, bits, steps):
    only_weights = lambda m: torch.optim.Adam([m[2].weight, m[4].weight], lr=2e-3)  # noqa: E731
    return trained_with(body, x, targets, bits, steps, optimizer=only_weights)


@wrong("ex_3_11", "the trained copy should be in eval mode")
def left_in_training_mode(body, x, targets, bits, steps):
    trainee, converted = trained_with(body, x, targets, bits, steps)
    return trainee.train(), converted


@wrong("ex_3_11", "use weight_only(bits)")
def always_three_bits(body, x, targets, bits, steps):
    return trained_with(body, x, targets, 4, steps)


@wrong("ex_3_11", "your function changed the original")
def leaves_its_qconfig(body, x, targets, bits, steps):
    answer = trained_with(body, x, targets, bits, steps)
    body.qconfig = weight_only(bits)
    return answer


@wrong("ex_3_11", "your function switched the original to another mode")
def switches_the_original(body, x, targets, bits, steps):
    answer = trained_with(body, x, targets, bits, steps)
    body.train(not body.training)
    return answer


@wrong("ex_3_11", "your function froze a layer of the original")
def freezes_the_original(body, x, targets, bits, steps):
    body[0].requires_grad_(False)
    return trained_with(body, x, targets, bits, steps)


@wrong("ex_3_11", "should return two models")
def only_the_int8_model(body, x, targets, bits, steps):
    return trained_with(body, x, targets, bits, steps)[1]


@right("ex_3_11")
def half_batches_added_up(body, x, targets, bits, steps):
    """The same gradients in two parts; the loss by hand."""
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    descent = torch.optim.Adam(trainee.parameters(), lr=2e-3, betas=(0.9, 0.999))
    for i in range(steps):
        if i == steps // 2:
            trainee.apply(tq.disable_observer)
        descent.zero_grad(set_to_none=False)
        for part in rows_of(i, x).chunk(2):
            picked = trainee(x[part]).log_softmax(dim=1)[torch.arange(len(part)), targets[part]]
            (-picked.sum() / 256).backward()
        descent.step()
    return trainee.eval(), to_int8(trainee)


@right("ex_3_11")
def frozen_before_prepare_with_sgd_style_loop(body, x, targets, bits, steps):
    trainee = copy.deepcopy(body)
    for parameter in trainee[0].parameters():
        parameter.requires_grad = False
    trainee.train()
    trainee.qconfig = weight_only(bits)
    trainee = tq.prepare_qat(trainee)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=2e-3)
    for i in range(steps):
        rows = rows_of(i, x)
        trainee.zero_grad()
        F.cross_entropy(trainee(x[rows]), targets[rows]).backward()
        optimizer.step()
        if i == steps // 2 - 1:
            for module in trainee.modules():
                if isinstance(module, tq.FakeQuantize):
                    module.disable_observer()
    trainee.train(False)
    return trainee, to_int8(trainee)


@right("ex_3_11")
def optimizer_of_the_upper_layers(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    optimizer = torch.optim.Adam(trainee[1:].parameters(), lr=2e-3)
    run(trainee, optimizer, x, targets, steps, off=steps // 2)
    return [trainee.eval(), to_int8(trainee)]


@wrong("ex_3_11", "switched off one step late", like="observers_off_one_step_late")
def half_rounded_up(body, x, targets, bits, steps):
    trainee = prepared(body, bits)
    trainee[0].requires_grad_(False)
    run(trainee, adam(trainee), x, targets, steps, off=-(-steps // 2))
    return trainee.eval(), to_int8(trainee)


@wrong("ex_3_11", "the int8 model should be in eval mode, too")
def int8_in_training_mode(body, x, targets, bits, steps):
    trainee, converted = trained_with(body, x, targets, bits, steps)
    return trainee, converted.train()


@right("ex_3_11")
def fused_adam(body, x, targets, bits, steps):
    fused = lambda m: torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr=2e-3, fused=True)  # noqa: E731
    return trained_with(body, x, targets, bits, steps, optimizer=fused)


# 3.10 the chooser


def chosen_from(
    table, width, batch, max_error, max_bytes, *, fits=None, margin=1.05, by="error", shape=None, faster=min
):
    here = [r for r in table if (shape or (lambda r: (r["width"], r["batch"]) == (width, batch)))(r)]
    if not here:
        raise ValueError("not measured")
    fits = fits or (lambda r: r["error"] <= max_error and r["bytes"] <= max_bytes)
    why = {r["variant"]: "error" if r["error"] > max_error else "bytes" for r in here}
    allowed = [r for r in here if fits(r)]
    if not allowed:
        return None, why
    best = faster(r["ratio"] for r in allowed)
    quick = [r for r in allowed if (r["ratio"] <= margin * best if faster is min else r["ratio"] >= best / margin)]
    winner = min(quick, key=lambda r: r[by])["variant"]
    why |= {r["variant"]: "tie" if r in quick else "time" for r in allowed}
    why.pop(winner)
    return winner, why


@wrong("ex_3_10", "your answer is always static")
def always_static(table, width, batch, max_error, max_bytes):
    names = {r["variant"] for r in table if (r["width"], r["batch"]) == (width, batch)}
    if not names:
        raise ValueError("not measured")
    return "static", dict.fromkeys(names - {"static"}, "time")


@wrong("ex_3_10", "of the rows within both budgets, not of all rows")
def limit_from_all_rows(table, width, batch, max_error, max_bytes):
    here = [r for r in table if (r["width"], r["batch"]) == (width, batch)]
    if not here:
        raise ValueError("not measured")
    limit = 1.05 * min(r["ratio"] for r in here)
    quick = [r for r in here if r["ratio"] <= limit and r["error"] <= max_error and r["bytes"] <= max_bytes]
    return min(quick, key=lambda r: r["error"])["variant"], {}


@wrong("ex_3_10", "whose bytes are over the budget")
def ignores_bytes(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error, max_bytes, fits=lambda r: r["error"] <= max_error)


@wrong("ex_3_10", "whose error is over the budget")
def ignores_the_error(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error, max_bytes, fits=lambda r: r["bytes"] <= max_bytes)


@wrong("ex_3_10", "more exact")
def no_margin_for_noise(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error, max_bytes, margin=1.0)


@wrong("ex_3_10", "expected is")
def the_most_exact(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error, max_bytes, margin=1e9)


@wrong("ex_3_10", "a ratio below 1 means faster")
def larger_ratio_is_faster(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error, max_bytes, faster=max)


@wrong("ex_3_10", "use the rows of this batch only")
def ignores_the_batch(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error, max_bytes, shape=lambda r: r["width"] == width)


@wrong("ex_3_10", "equal to the budget")
def strictly_below_the_budget(table, width, batch, max_error, max_bytes):
    below = lambda r: r["error"] < max_error and r["bytes"] < max_bytes  # noqa: E731
    return chosen_from(table, width, batch, max_error, max_bytes, fits=below)


@wrong("ex_3_10", "your reason against")
def bytes_before_the_error(table, width, batch, max_error, max_bytes):
    answer, why = chosen_from(table, width, batch, max_error, max_bytes)
    large = {r["variant"] for r in table if (r["width"], r["batch"]) == (width, batch) and r["bytes"] > max_bytes}
    return answer, {name: "bytes" if name in large else word for name, word in why.items()}


@wrong("ex_3_10", "your reason against")
def a_tie_counts_as_slower(table, width, batch, max_error, max_bytes):
    answer, why = chosen_from(table, width, batch, max_error, max_bytes)
    return answer, {name: "time" if word == "tie" else word for name, word in why.items()}


@wrong("ex_3_10", "a width that was not measured must raise")
def nearest_width(table, width, batch, max_error, max_bytes):
    near = min({(r["width"], r["batch"]) for r in table}, key=lambda s: (abs(s[0] - width), abs(s[1] - batch)))
    return chosen_from(table, *near, max_error, max_bytes)


@wrong("ex_3_10", "should be a pair")
def only_the_name(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error, max_bytes)[0] or "none"


@wrong("ex_3_10", "the choice is None")
def the_least_bad(table, width, batch, max_error, max_bytes):
    answer, why = chosen_from(table, width, batch, max_error, max_bytes)
    return (answer if answer else "nothing"), why


def within(table, width, batch, max_error, max_bytes, candidates):
    """The rule, with another idea of who is a candidate: `candidates(allowed, here)`."""
    here = [r for r in table if (r["width"], r["batch"]) == (width, batch)]
    if not here:
        raise ValueError("not measured")
    why = {r["variant"]: "error" if r["error"] > max_error else "bytes" for r in here}
    allowed = [r for r in here if r["error"] <= max_error and r["bytes"] <= max_bytes]
    if not allowed:
        return None, why
    quick = candidates(allowed, here)
    winner = min(quick, key=lambda r: r["error"])["variant"]
    why |= {r["variant"]: "tie" if r in quick else "time" for r in allowed}
    why.pop(winner)
    return winner, why


@wrong("ex_3_10", "exactly 1.05 times the smallest ratio is still a candidate")
def margin_not_included(table, width, batch, max_error, max_bytes):
    def candidates(allowed, _):
        best = min(r["ratio"] for r in allowed)
        return [r for r in allowed if r["ratio"] < 1.05 * best or r["ratio"] == best]

    return within(table, width, batch, max_error, max_bytes, candidates)


@wrong("ex_3_10", "although the difference is 0.02")
def five_hundredths(table, width, batch, max_error, max_bytes):
    quick = lambda allowed, _: [r for r in allowed if r["ratio"] <= min(a["ratio"] for a in allowed) + 0.05]  # noqa: E731
    return within(table, width, batch, max_error, max_bytes, quick)


@wrong("ex_3_10", "although 1.0 is more than 0.95 of it")
def the_other_five_percent(table, width, batch, max_error, max_bytes):
    quick = lambda allowed, _: [r for r in allowed if min(a["ratio"] for a in allowed) >= 0.95 * r["ratio"]]  # noqa: E731
    return within(table, width, batch, max_error, max_bytes, quick)


@wrong("ex_3_10", "exactly 1.05 times the smallest ratio is still a candidate", like="margin_not_included")
def rounded_to_two_places(table, width, batch, max_error, max_bytes):
    quick = lambda allowed, _: [  # noqa: E731
        r for r in allowed if round(r["ratio"] / min(a["ratio"] for a in allowed), 3) <= 1.05
    ]
    return within(table, width, batch, max_error, max_bytes, quick)


@wrong("ex_3_10", "not with the next smaller one")
def a_chain_of_ties(table, width, batch, max_error, max_bytes):
    def candidates(allowed, _):
        quick = []
        for row in sorted(allowed, key=lambda r: r["ratio"]):
            if quick and row["ratio"] > 1.05 * quick[-1]["ratio"]:
                break
            quick.append(row)
        return quick

    return within(table, width, batch, max_error, max_bytes, candidates)


@wrong("ex_3_10", "the row with 0.95 is not")
def limit_from_rows_over_the_budget(table, width, batch, max_error, max_bytes):
    def candidates(allowed, here):
        limit = 1.05 * min(r["ratio"] for r in here)
        quick = [r for r in allowed if r["ratio"] <= limit]
        best = min(r["ratio"] for r in allowed)
        return quick or [r for r in allowed if r["ratio"] <= 1.05 * best]

    return within(table, width, batch, max_error, max_bytes, candidates)


@wrong("ex_3_10", "among the candidates the smallest error decides")
def smallest_candidate(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error, max_bytes, by="bytes")


@wrong("ex_3_10", "an error of 0.0 is within a budget of 0.0")
def no_budget_of_zero(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error or 1.0, max_bytes)


@wrong("ex_3_10", "the least bit more is not")
def budgets_with_a_tolerance(table, width, batch, max_error, max_bytes):
    return chosen_from(table, width, batch, max_error + 1e-9, max_bytes)


@wrong("ex_3_10", "your function changed `table`")
def sorts_the_table(table, width, batch, max_error, max_bytes):
    table.sort(key=lambda r: r["ratio"])
    return chosen_from(table, width, batch, max_error, max_bytes)


@wrong("ex_3_10", "your function changed `table`", like="sorts_the_table")
def notes_in_the_rows(table, width, batch, max_error, max_bytes):
    for row in table:
        row["fits"] = row["error"] <= max_error
    return chosen_from(table, width, batch, max_error, max_bytes)


@wrong("ex_3_10", "KeyError: 'threads'")
def only_one_thread(table, width, batch, max_error, max_bytes):
    return chosen_from([r for r in table if r["threads"] == 1], width, batch, max_error, max_bytes)


@wrong("ex_3_10", "a reason against it")
def a_reason_for_the_chosen_one(table, width, batch, max_error, max_bytes):
    answer, why = chosen_from(table, width, batch, max_error, max_bytes)
    return answer, why | ({answer: "tie"} if answer else {})


@wrong("ex_3_10", "a batch that was not measured")
def nearest_batch(table, width, batch, max_error, max_bytes):
    batches = [r["batch"] for r in table if r["width"] == width]
    if not batches:
        raise ValueError("not measured")
    return chosen_from(table, width, min(batches, key=lambda b: abs(b - batch)), max_error, max_bytes)


@wrong("ex_3_10", "a dictionary: variant to word")
def reasons_as_pairs(table, width, batch, max_error, max_bytes):
    answer, why = chosen_from(table, width, batch, max_error, max_bytes)
    return answer, list(why.items())


@right("ex_3_10")
def sorted_by_time(table, width, batch, max_error, max_bytes):
    rows = sorted((r for r in table if r["width"] == width and r["batch"] == batch), key=lambda r: r["ratio"])
    if len(rows) == 0:
        raise ValueError(f"no measurement of {width}, {batch}")
    words, candidates = {}, []
    for r in rows:
        if r["error"] > max_error:
            words[r["variant"]] = "error"
        elif r["bytes"] > max_bytes:
            words[r["variant"]] = "bytes"
        elif not candidates or r["ratio"] <= 1.05 * candidates[0]["ratio"]:
            candidates.append(r)
        else:
            words[r["variant"]] = "time"
    if not candidates:
        return None, words
    candidates.sort(key=lambda r: r["error"])
    return candidates[0]["variant"], words | {r["variant"]: "tie" for r in candidates[1:]}


@right("ex_3_10")
def from_the_general_one(table, width, batch, max_error, max_bytes):
    return chosen_from(copy.deepcopy(table), width, batch, max_error, max_bytes)


@wrong("ex_3_10", "round nothing, and allow nothing on top")
def limit_rounded_to_three_places(table, width, batch, max_error, max_bytes):
    quick = lambda allowed, _: [  # noqa: E731
        r for r in allowed if r["ratio"] <= round(1.05 * min(a["ratio"] for a in allowed), 3)
    ]
    return within(table, width, batch, max_error, max_bytes, quick)


@wrong("ex_3_10", "round nothing, and allow nothing on top", like="limit_rounded_to_three_places")
def limit_with_a_tolerance(table, width, batch, max_error, max_bytes):
    quick = lambda allowed, _: [  # noqa: E731
        r for r in allowed if r["ratio"] <= 1.05 * min(a["ratio"] for a in allowed) + 1e-6
    ]
    return within(table, width, batch, max_error, max_bytes, quick)
