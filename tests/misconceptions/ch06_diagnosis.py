"""Answers to exercise 6.1 (unit 06)."""

import copy

import torch
import torch.ao.quantization as tq
from torch import nn

from helpers import int8
from helpers.int8 import dynamic_int8
from tests.misconceptions.bank import right, wrong


@torch.no_grad()
def run(model, source, target):
    return copy.deepcopy(model).eval()(source, target)


def apart(a, b):
    return bool((a - b).norm() > 1e-3 * a.norm())


# feels_the_batch


@right("ex_6_1", binds="feels_the_batch")
def replaces_the_others(model, source, target):
    generator = torch.Generator().manual_seed(7)
    others = [torch.cat([x[:1], torch.randn(x[1:].shape, generator=generator)]) for x in (source, target)]
    return apart(run(model, source, target)[0], run(model, *others)[0])


@wrong("ex_6_1", "Another order of the other pairs is not enough", binds="feels_the_batch")
def permutes_the_others(model, source, target):
    order = [0, *range(len(source) - 1, 0, -1)]
    return apart(run(model, source, target)[:1], run(model, source[order], target[order])[:1])


@wrong("ex_6_1", "it looks at all sources", binds="feels_the_batch")
def replaces_only_the_targets(model, source, target):
    return apart(run(model, source, target)[0], run(model, source, torch.cat([target[:1], -target[1:]]))[0])


@wrong("ex_6_1", "Look at the answer to the first pair only", binds="feels_the_batch")
def looks_at_all_pairs(model, source, target):
    other = torch.cat([source[:1], -source[1:]])
    return apart(run(model, source, target), run(model, other, target))


@wrong("ex_6_1", "answers every pair alone", binds="feels_the_batch")
def leaves_dropout_on(model, source, target):
    with torch.no_grad():
        trial = copy.deepcopy(model).train()
        return apart(trial(source, target)[:1], trial(source[:1], target[:1]))


@wrong("ex_6_1", "changed the model it was given", binds="feels_the_batch")
def switches_the_model_to_eval(model, source, target):
    model.eval()
    return replaces_the_others(model, source, target)


@wrong("ex_6_1", "changed the source or the target", binds="feels_the_batch")
def writes_into_the_batch(model, source, target):
    before = run(model, source, target)[0]
    source[1:] *= -1
    return apart(before, run(model, source, target)[0])


@wrong("ex_6_1", "no attribute", binds="feels_the_batch")
def reads_batch_first(model, source, target):
    return any(getattr(m, "batch_first", True) is False for m in model.modules())


@wrong("ex_6_1", "targets of other pairs", binds="feels_the_batch")
def replaces_only_the_sources(model, source, target):
    return apart(run(model, source, target)[0], run(model, torch.cat([source[:1], -source[1:]]), target)[0])


@wrong("ex_6_1", "compare all positions", binds="feels_the_batch")
def looks_at_the_first_output_only(model, source, target):
    return apart(run(model, source, target)[0, 0], run(model, source[:1], target[:1])[0, 0])


@wrong("ex_6_1", "Only the second pair touches the first", binds="feels_the_batch")
def leaves_out_only_the_last_pair(model, source, target):
    return apart(run(model, source, target)[0], run(model, source[:-1], target[:-1])[0])


@right("ex_6_1", binds="feels_the_batch")
def restores_the_mode(model, source, target):
    was = model.training
    model.eval()
    with torch.no_grad():
        answer = bool((model(source, target)[0] - model(source[:1], target[:1])[0]).abs().max() > 1e-4)
    model.train(was)
    return answer


@right("ex_6_1", binds="feels_the_batch")
def inference_mode(model, source, target):
    with torch.inference_mode():
        trial = copy.deepcopy(model).eval()
        return not torch.allclose(trial(source, target)[0], trial(source[:1], target[:1])[0], atol=1e-4)


@wrong("ex_6_1", "Only the last pair touches the others", binds="feels_the_batch")
def leaves_out_only_the_second_pair(model, source, target):
    kept = [0, *range(2, len(source))]
    return apart(run(model, source, target)[0], run(model, source[kept], target[kept])[0])


@wrong("ex_6_1", "put other pairs in their place", binds="feels_the_batch")
def doubles_the_others(model, source, target):
    doubled = [torch.cat([x[:1], 2 * x[1:]]) for x in (source, target)]
    return apart(run(model, source, target)[0], run(model, *doubled)[0])


@wrong("ex_6_1", "what you add to all numbers", binds="feels_the_batch", like="doubles_the_others")
def adds_one_to_the_others(model, source, target):
    moved = [torch.cat([x[:1], x[1:] + 1]) for x in (source, target)]
    return apart(run(model, source, target)[0], run(model, *moved)[0])


@wrong("ex_6_1", "Only the last pair", binds="feels_the_batch", like="leaves_out_only_the_second_pair")
def replaces_two_pairs(model, source, target):
    others = [x.clone() for x in (source, target)]
    for x in others:
        x[1:3] = -x[1:3]
    return apart(run(model, source, target)[0], run(model, *others)[0])


@wrong("ex_6_1", "requires_grad", binds="feels_the_batch")
def thaws_the_model(model, source, target):
    model.requires_grad_(True)
    return replaces_the_others(model, source, target)


@right("ex_6_1", binds="feels_the_batch")
def zeros_for_the_others(model, source, target):
    others = [torch.cat([x[:1], torch.zeros_like(x[1:])]) for x in (source, target)]
    return not torch.allclose(run(model, source, target)[0], run(model, *others)[0], atol=1e-4)


# sees_the_future


@right("ex_6_1", binds="sees_the_future")
def one_position_after_the_other(model, source, target):
    before = run(model, source, target)
    other = target.clone()
    other[:, -1] = target[:, -1].flip(-1) - 3 * target[:, 0]
    after = run(model, source, other)
    return any(apart(before[:, t], after[:, t]) for t in range(target.shape[1] - 1))


@wrong("ex_6_1", "Leave the last one out", binds="sees_the_future")
def compares_the_last_output(model, source, target):
    other = torch.cat([target[:, :-1], -target[:, -1:]], dim=1)
    return apart(run(model, source, target), run(model, source, other))


@wrong("ex_6_1", "not only the first", binds="sees_the_future")
def compares_only_the_first_output(model, source, target):
    other = torch.cat([target[:, :-1], -target[:, -1:]], dim=1)
    return apart(run(model, source, target)[:, 0], run(model, source, other)[:, 0])


@wrong("ex_6_1", "put another vector in its place", binds="sees_the_future")
def adds_one(model, source, target):
    other = target.clone()
    other[:, -1] += 1
    return apart(run(model, source, target)[:, :-1], run(model, source, other)[:, :-1])


@wrong("ex_6_1", "not the last pair", binds="sees_the_future")
def takes_dimension_0_for_time(model, source, target):
    other = torch.cat([target[:-1], -target[-1:]])
    return apart(run(model, source, target)[:, :-1], run(model, source, other)[:, :-1])


@wrong("ex_6_1", "only the last output moves", binds="sees_the_future")
def changes_the_source(model, source, target):
    other = torch.cat([source[:, :-1], -source[:, -1:]], dim=1)
    return apart(run(model, source, target)[:, :-1], run(model, other, target)[:, :-1])


@wrong("ex_6_1", "put another vector in its place", binds="sees_the_future", like="adds_one")
def doubles_the_last_target(model, source, target):
    other = torch.cat([target[:, :-1], 2 * target[:, -1:]], dim=1)
    return apart(run(model, source, target)[:, :-1], run(model, source, other)[:, :-1])


@wrong("ex_6_1", "this decoder has no mask", binds="sees_the_future")
def looks_for_a_mask_of_the_module(model, source, target):
    return False


@wrong("ex_6_1", "no attribute", binds="sees_the_future")
def reads_the_mask(model, source, target):
    return getattr(model, "mask", 0) != 0


@wrong("ex_6_1", "feels the last target: compare *all* outputs before the last", binds="sees_the_future")
def only_position_before_the_last(model, source, target):
    other = torch.cat([target[:, :-1], -target[:, -1:]], dim=1)
    return apart(run(model, source, target)[:, -2], run(model, source, other)[:, -2])


@right("ex_6_1", binds="sees_the_future")
def by_gradient(model, source, target):
    trial = copy.deepcopy(model).eval()
    t = target.clone().requires_grad_()
    with torch.enable_grad():
        y = trial(source, t)[:, :-1]
        g = torch.autograd.grad((y * torch.randn(y.shape)).sum(), t)[0]
    return bool(g[:, -1].abs().max() > 1e-5 * g.abs().max())


@right("ex_6_1", binds="sees_the_future")
def cut_off(model, source, target):
    return apart(run(model, source, target)[:, :-1], run(model, source, target[:, :-1]))


@right("ex_6_1", binds="sees_the_future")
def zeros_in_the_last_place(model, source, target):
    other = target.clone()
    other[:, -1] = 0
    return apart(run(model, source, target)[:, :-1], run(model, source, other)[:, :-1])


# knows_the_order


@right("ex_6_1", binds="knows_the_order")
def another_order(model, source, target):
    order = [*range(1, source.shape[1]), 0]
    return apart(run(model, source, target), run(model, source[:, order], target))


@wrong("ex_6_1", "not the batch (dimension 0)", binds="knows_the_order")
def reverses_the_batch(model, source, target):
    return apart(run(model, source, target), run(model, source.flip(0), target))


@wrong("ex_6_1", "compare up to rounding", binds="knows_the_order")
def compares_every_digit(model, source, target):
    return not torch.equal(run(model, source, target), run(model, source.flip(1), target))


@wrong("ex_6_1", "reverse the source, not the target", binds="knows_the_order")
def reverses_the_target(model, source, target):
    return apart(run(model, source, target).flip(1), run(model, source, target.flip(1)))


@wrong("ex_6_1", "this model adds positions to its source", binds="knows_the_order")
def never(model, source, target):
    return False


@wrong("ex_6_1", "no attribute", binds="knows_the_order")
def reads_the_places(model, source, target):
    return "s" in getattr(model, "places", "s")


@wrong("ex_6_1", "compare all outputs", binds="knows_the_order")
def looks_at_the_last_position_only(model, source, target):
    return apart(run(model, source, target)[:, -1], run(model, source.flip(1), target)[:, -1])


# unused_sizes


@right("ex_6_1", binds="unused_sizes")
def prints_of_the_tensors(build, sizes):
    def outline(**chosen):
        return sorted((n, tuple(t.shape)) for n, t in build(**chosen).state_dict().items())

    unused = []
    for name in sizes:
        other = dict(sizes)
        other[name] *= 2
        if outline(**other) == outline(**sizes):
            unused.append(name)
    return unused


@wrong("ex_6_1", "whether a module keeps an attribute of that name says nothing", binds="unused_sizes")
def looks_for_attributes(build, sizes):
    model = build(**sizes)
    return [name for name in sizes if not hasattr(model, name)]


@wrong("ex_6_1", "numbers differ between any two births", binds="unused_sizes")
def compares_the_numbers(build, sizes):
    def same(a, b):
        return a.keys() == b.keys() and all(a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)

    usual = build(**sizes).state_dict()
    return [n for n in sizes if same(usual, build(**{**sizes, n: 2 * sizes[n]}).state_dict())]


@wrong("ex_6_1", "double a size", binds="unused_sizes")
def adds_one_to_a_size(build, sizes):
    def shapes(**chosen):
        return [t.shape for t in build(**chosen).state_dict().values()]

    return [name for name in sizes if shapes(**{**sizes, name: sizes[name] + 1}) == shapes(**sizes)]


@wrong("ex_6_1", "of the *whole* state_dict", binds="unused_sizes")
def forgets_the_buffers(build, sizes):
    def shapes(**chosen):
        return {n: p.shape for n, p in build(**chosen).named_parameters()}

    return [name for name in sizes if shapes(**{**sizes, name: 2 * sizes[name]}) == shapes(**sizes)]


@wrong("ex_6_1", "a fixed product", binds="unused_sizes")
def counts_the_numbers(build, sizes):
    def count(s):
        return sum(t.numel() for t in build(**s).state_dict().values())

    return [n for n in sizes if count({**sizes, n: 2 * sizes[n]}) == count(sizes)]


@wrong("ex_6_1", "compare names", binds="unused_sizes")
def shapes_without_names(build, sizes):
    def shapes(s):
        return [t.shape for t in build(**s).state_dict().values()]

    return [n for n in sizes if shapes({**sizes, n: 2 * sizes[n]}) == shapes(sizes)]


@wrong("ex_6_1", "not in the order of `sizes`", binds="unused_sizes")
def names_in_alphabetical_order(build, sizes):
    return sorted(prints_of_the_tensors(build, sizes))


@wrong("ex_6_1", "a list of names, not tuple", binds="unused_sizes")
def a_tuple_of_names(build, sizes):
    return tuple(prints_of_the_tensors(build, sizes))


@wrong("ex_6_1", "and leave the others", binds="unused_sizes", like="adds_one_to_a_size")
def trebles_a_size(build, sizes):
    def outline(**chosen):
        return [(n, t.shape) for n, t in build(**chosen).state_dict().items()]

    return [name for name in sizes if outline(**{**sizes, name: 3 * sizes[name]}) == outline(**sizes)]


# left_in_float


@right("ex_6_1", binds="left_in_float")
def from_the_state_dict(model):
    kept = dict(tq.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8).named_parameters())
    return sorted(n for n in kept if len(kept[n].shape) > 1)


@wrong("ex_6_1", "it is a parameter of the attention itself", binds="left_in_float")
def lists_linear_layers(model):
    quantized = dynamic_int8(model)
    return [f"{n}.weight" for n, part in quantized.named_modules() if isinstance(part, nn.Linear)]


@wrong("ex_6_1", "with two dimensions or more", binds="left_in_float")
def lists_biases_too(model):
    return [n for n, _ in dynamic_int8(model).named_parameters()]


@wrong("ex_6_1", "list what remains *after* quantization", binds="left_in_float")
def lists_the_float_model(model):
    return [n for n, p in model.named_parameters() if p.dim() >= 2]


@wrong("ex_6_1", "changed the model it was given", binds="left_in_float")
def quantizes_in_place(model):
    quantized = tq.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return [n for n, p in quantized.named_parameters() if p.dim() >= 2]


@wrong("ex_6_1", "misses out_proj.weight", binds="left_in_float")
def only_the_packed_projections(model):
    return [n for n, _ in dynamic_int8(model).named_parameters() if n.endswith("in_proj_weight")]


@wrong("ex_6_1", "A buffer is no parameter", binds="left_in_float")
def lists_buffers_too(model):
    q = dynamic_int8(model)
    return [n for n, t in q.state_dict().items() if isinstance(t, torch.Tensor) and t.dim() >= 2]


@wrong("ex_6_1", "a parameter of three dimensions", binds="left_in_float")
def lists_only_two_dimensions(model):
    return [n for n, p in dynamic_int8(model).named_parameters() if p.dim() == 2]


@wrong("ex_6_1", "the matrix of an embedding", binds="left_in_float")
def lists_only_attention(model):
    q = dynamic_int8(model)
    return [n for n, p in q.named_parameters() if p.dim() >= 2 and ("proj" in n or p.dim() == 3)]


# refusals


def tried(call):
    try:
        call()
    except Exception as error:
        return str(error)
    return ""


def prepared(model, settings):
    trial = copy.deepcopy(model).eval()
    trial.qconfig = settings
    return tq.prepare(trial)


def engine():
    return torch.backends.quantized.engine


def static_road(model, source, target, settings=None, run_it=True):
    observed = prepared(model, settings or tq.get_default_qconfig(engine()))
    observed(source, target)
    int8 = tq.convert(observed)
    if run_it:
        run(int8, source, target)


def qat_road(model, source, target, training=True):
    trial = copy.deepcopy(model).train(training)
    trial.qconfig = tq.get_default_qat_qconfig(engine())
    tq.prepare_qat(trial)(source, target)


def dynamic_road(model, source, target):
    run(tq.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8), source, target)


def roads(model, source, target, **other):
    usual = {"dynamic": dynamic_road, "static": static_road, "qat": qat_road} | other
    return {name: tried(lambda road=road: road(model, source, target)) for name, road in usual.items()}


@right("ex_6_1", binds="refusals")
def road_by_road(model, source, target):
    return roads(model, source, target)


@wrong("ex_6_1", "the failure comes with the first input after it", binds="refusals")
def convert_is_enough(model, source, target):
    return roads(model, source, target, static=lambda *a: static_road(*a, run_it=False))


@wrong("ex_6_1", "on the static road nothing is prepared", binds="refusals")
def no_qconfig(model, source, target):
    def static(model, source, target):
        observed = tq.prepare(copy.deepcopy(model).eval())
        observed(source, target)
        run(tq.convert(observed), source, target)

    return roads(model, source, target, static=static)


@wrong("ex_6_1", "A copy in training mode?", binds="refusals")
def qat_in_eval_mode(model, source, target):
    return roads(model, source, target, qat=lambda *a: qat_road(*a, training=False))


@right("ex_6_1", binds="refusals")
def dynamic_with_gradients(model, source, target):
    def dynamic(model, source, target):
        dynamic_int8(copy.deepcopy(model).eval())(source, target)

    return roads(model, source, target, dynamic=dynamic)


@wrong("ex_6_1", "in eval mode only", binds="refusals")
def dynamic_in_training_mode(model, source, target):
    def dynamic(model, source, target):
        dynamic_int8(model).train()(source, target)

    return roads(model, source, target, dynamic=dynamic)


@wrong("ex_6_1", "on the road to training nothing is prepared", binds="refusals")
def qat_without_a_qconfig(model, source, target):
    return roads(model, source, target, qat=lambda m, s, t: tq.prepare_qat(copy.deepcopy(m).train())(s, t))


@wrong("ex_6_1", "changed the model it was given", binds="refusals")
def leaves_a_qconfig(model, source, target):
    answer = roads(model, source, target)
    model.qconfig = tq.get_default_qconfig(engine())
    return answer


@wrong("ex_6_1", "each value is a text", binds="refusals")
def returns_none_for_no_error(model, source, target):
    return {name: said or None for name, said in roads(model, source, target).items()}


@wrong("ex_6_1", "leaves PyTorch's fast path switched", binds="refusals")
def switches_the_fast_path_off(model, source, target):
    torch.backends.mha.set_fastpath_enabled(False)
    return roads(model, source, target)


@wrong("ex_6_1", "has called no copy of this model", binds="refusals")
def quotes_the_book(model, source, target):
    return {
        "dynamic": "",
        "static": "Could not run 'aten::add.out' with arguments from the 'QuantizedCPU' backend",
        "qat": "",
    }


@wrong("ex_6_1", "run it, once, in training mode", binds="refusals")
def qat_is_not_run(model, source, target):
    def qat(m, s, t):
        trial = copy.deepcopy(m).train()
        trial.qconfig = tq.get_default_qat_qconfig(torch.backends.quantized.engine)
        tq.prepare_qat(trial)

    return roads(model, source, target, qat=qat)


@wrong("ex_6_1", "converts what has seen nothing", binds="refusals")
def static_without_calibration(model, source, target):
    def static(m, s, t):
        observed = prepared(m, tq.get_default_qconfig(torch.backends.quantized.engine))
        run(tq.convert(observed), s, t)

    return roads(model, source, target, static=static)


@wrong("ex_6_1", "default qconfig of the engine", binds="refusals")
def another_qconfig(model, source, target):
    return roads(model, source, target, static=lambda *a: static_road(*a, settings=tq.default_qconfig))


@wrong("ex_6_1", "calibrates with other numbers", binds="refusals")
def calibrates_with_noise(model, source, target):
    def static(m, s, t):
        observed = prepared(m, tq.get_default_qconfig(torch.backends.quantized.engine))
        observed(torch.randn_like(s), torch.randn_like(t))
        run(tq.convert(observed), s, t)

    return roads(model, source, target, static=static)


@wrong("ex_6_1", "default qat qconfig of the engine", binds="refusals")
def qat_with_the_static_qconfig(model, source, target):
    def qat(m, s, t):
        trial = copy.deepcopy(m).train()
        trial.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
        tq.prepare_qat(trial)(s, t)

    return roads(model, source, target, qat=qat)


@wrong("ex_6_1", "has called no copy of this model", binds="refusals", like="quotes_the_book")
def quotes_by_layout(model, source, target):
    core = next((m for m in model.modules() if isinstance(m, nn.Transformer)), None)
    said = dict.fromkeys(("dynamic", "static", "qat"), "")
    if core is not None:
        said["qat"] = "NonDynamicallyQuantizableLinear"
        said["static"] = "in_proj_bias aten::add.out"
        said["dynamic"] = "no attribute 'device'" if core.batch_first else ""
    elif not any(isinstance(m, tq.QuantStub) for m in model.modules()):
        said["static"] = "quantized::linear"
    return said


@wrong("ex_6_1", "a copy in eval mode", binds="refusals")
def static_in_training_mode(model, source, target):
    def static(model, source, target):
        observed = copy.deepcopy(model).train()
        observed.qconfig = tq.get_default_qconfig(engine())
        observed = tq.prepare(observed)
        observed(source, target)
        run(tq.convert(observed), source, target)

    return roads(model, source, target, static=static)


def reported(text):
    """The three roads, each with `text(error)` in place of the exception's own words."""

    def answer(model, source, target):
        said = {}
        for name, road in {"dynamic": dynamic_road, "static": static_road, "qat": qat_road}.items():
            try:
                road(model, source, target)
                said[name] = ""
            except Exception as error:
                said[name] = text(error)
        return said

    answer.__name__ = text.__name__
    return answer


@wrong("ex_6_1", "report all of it", binds="refusals")
@reported
def only_the_first_line(error):
    return str(error).splitlines()[0]


@wrong("ex_6_1", "neither its type nor anything else", binds="refusals")
@reported
def the_type_before_it(error):
    return f"{type(error).__name__}: {error}"


@wrong("ex_6_1", "switched on, on the static road", binds="refusals")
def the_engine_written_in(model, source, target):
    """What the course's engine is on this computer, and not what is switched on."""
    written = int8.course_engine()
    return roads(model, source, target, static=lambda *a: static_road(*a, settings=tq.get_default_qconfig(written)))


@wrong("ex_6_1", "leaves another int8 engine switched on", binds="refusals")
def switches_the_engine(model, source, target):
    answer = roads(model, source, target)
    torch.backends.quantized.engine = int8.engines()[-1]
    return answer
