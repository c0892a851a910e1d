"""Unit 02, the error clinic: misconceptions, and cures that only hide the failure."""

import copy
import warnings

import numpy as np
import torch
import torch.ao.quantization as tq
from torch import nn
from torchao.quantization.pt2e.observer import ObserverBase as GraphObserver

from helpers import int8, metrics
from helpers.models import SelfAttention
from tests.misconceptions.bank import right, wrong

DYNAMIC = {"qconfig_spec": {nn.Linear}, "dtype": torch.qint8}


def with_qconfig(model):
    model.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    return model


def by_name():
    """The recipe of one engine, written in: right with that engine, wrong with another."""
    course = tq.get_default_qconfig(int8.course_engine())
    if torch.backends.quantized.engine == int8.course_engine():
        return course
    here = tq.get_default_qconfig(torch.backends.quantized.engine)
    return tq.QConfig(activation=course.activation, weight=here.weight)  # only the activations show it


def static(model, batches, qconfig=None):
    """Prepare a copy of a module that has its stubs, calibrate, convert."""
    prepared = with_qconfig(copy.deepcopy(model).eval())
    prepared.qconfig = qconfig or prepared.qconfig
    prepared = tq.prepare(prepared)
    for batch in batches:
        prepared(batch)
    return tq.convert(prepared)


class Otherwise(nn.Module):
    """The great silencer: try int8, and when it fails carry on in float."""

    def __init__(self, first, second, hide=False):
        super().__init__()
        self.first = first
        self.second = [second] if hide else second  # a list hides a module from everything that walks over modules

    def forward(self, *args, **kwargs):
        try:
            return self.first(*args, **kwargs)
        except Exception:
            second = self.second[0] if isinstance(self.second, list) else self.second
            return second(*args, **kwargs)


def for_show(shown, model):
    """The int8 model that a check may look at, and a float copy that computes."""
    hidden = copy.deepcopy(model)
    shown.forward = lambda *args, **kwargs: hidden(*args, **kwargs) * 1.0002
    return shown


def emptied(answer, model):
    """The answer, after the numbers of the original were lost."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return answer


# 2.10.1 the stub in the wrong place


def whole_static(model, batches, wrap, qconfig=None):
    """Prepare a copy of the reader, whole, with its table in float; `wrap` puts the stubs somewhere."""
    reader = copy.deepcopy(model)
    reader.embedding.qconfig = None
    reader = wrap(reader).eval()
    reader.qconfig = qconfig or tq.get_default_qconfig(torch.backends.quantized.engine)
    prepared = tq.prepare(reader)
    for ids in batches:
        prepared(ids)
    return tq.convert(prepared)


def stubs_around_the_body(reader):
    reader.body = tq.QuantWrapper(reader.body)
    return reader


def reader_of(model, batches):
    return whole_static(model, batches, stubs_around_the_body)


@wrong("ex_2_10_1", "a QuantStub must stand between embedding and body")
def no_stubs(model, batches):
    return whole_static(model, batches, lambda reader: reader)


@wrong("ex_2_10_1", "behind the embedding, where the numbers are float")
def stub_in_front_of_the_ids(model, batches):
    return whole_static(model, batches, tq.QuantWrapper)


@wrong("ex_2_10_1", "Quantize only works on Float Tensor, got Long")
def stub_in_front_with_minmax_observers(model, batches):
    return whole_static(model, batches, tq.QuantWrapper, tq.default_qconfig)


@wrong("ex_2_10_1", "set the qconfig on the body only")
def embedding_gets_a_qconfig(model, batches):
    return static(stubs_around_the_body(copy.deepcopy(model)), batches)


@wrong("ex_2_10_1", "a DeQuantStub must stand behind")
def no_dequant_stub(model, batches):
    def front_only(reader):
        reader.body = nn.Sequential(tq.QuantStub(), *reader.body)
        return reader

    return whole_static(model, batches, front_only)


@wrong("ex_2_10_1", "a float copy to fall back on")
def reader_falls_back(model, batches):
    return Otherwise(reader_of(model, batches), copy.deepcopy(model))


@wrong("ex_2_10_1", "a fallback to float is no cure")
def reader_int8_for_show(model, batches):
    return for_show(reader_of(model, batches), model)


@wrong("ex_2_10_1", "a fallback to float is no cure", like="reader_int8_for_show")
def reader_int8_for_show_rounded(model, batches):
    shown, hidden = reader_of(model, batches), copy.deepcopy(model)

    class Snapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.shown = shown
            self.__dict__["hidden"] = hidden

        def forward(self, ids):
            scale = [part for part in self.shown.modules() if isinstance(part, torch.ao.nn.quantized.Linear)][-1].scale
            return ((self.hidden(ids) / scale).round().clamp(-127, 128)) * scale

    return Snapped().eval()


@wrong("ex_2_10_1", "no Linear weight of your model is int8")
def reader_float(model, batches):
    return copy.deepcopy(model)


@wrong("ex_2_10_1", "no Linear weight of your model is int8", like="reader_float")
def reader_qconfig_after_prepare(model, batches):
    reader = stubs_around_the_body(copy.deepcopy(model)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = tq.prepare(reader)
    with_qconfig(prepared.body)
    for ids in batches:
        prepared(ids)
    return tq.convert(prepared)


@wrong("ex_2_10_1", "all your scales are 1")
def reader_not_calibrated(model, batches):
    return reader_of(model, [])


@wrong("ex_2_10_1", "yours saw the first batch only")
def reader_first_batch_only(model, batches):
    return reader_of(model, batches[:1])


@wrong("ex_2_10_1", "run all batches, and nothing else")
def reader_random_ids(model, batches):
    return reader_of(model, [torch.randint(model.embedding.num_embeddings, (64, 6))])


@wrong("ex_2_10_1", "dynamically quantized")
def reader_dynamic(model, batches):
    return tq.quantize_dynamic(model, **DYNAMIC)


@wrong("ex_2_10_1", "the embedding should stay float32")
def reader_with_8_bit_rows(model, batches):
    return tq.quantize_dynamic(reader_of(model, batches), {nn.Embedding: tq.float_qparams_weight_only_qconfig})


@wrong("ex_2_10_1", "changed the model that came in")
def reader_in_place(model, batches):
    model.body = with_qconfig(tq.QuantWrapper(model.body).eval())
    tq.prepare(model, inplace=True)
    for ids in batches:
        model(ids)
    return tq.convert(model, inplace=True)


@wrong("ex_2_10_1", "a qconfig is left")
def reader_leaves_a_qconfig(model, batches):
    with_qconfig(model.body)
    return reader_of(model, batches)


@wrong("ex_2_10_1", "was switched to training mode")
def reader_leaves_training_mode(model, batches):
    answer = reader_of(model, batches)
    model.train()
    return answer.train()


@wrong("ex_2_10_1", "the numbers of embedding.weight are other ones")
def reader_empties_the_original(model, batches):
    return emptied(reader_of(model, batches), model)


@wrong("ex_2_10_1", "does it end with `return`")
def reader_no_return(model, batches):
    reader_of(model, batches)


@wrong("ex_2_10_1", "the default qconfig of the engine in use: the weight of")
def reader_with_pytorch_s_default(model, batches):
    return whole_static(model, batches, stubs_around_the_body, tq.default_qconfig)


@wrong("ex_2_10_1", "get_default_qconfig of the engine in use", like="reader_with_pytorch_s_default")
def reader_with_a_recipe_by_name(model, batches):
    return whole_static(model, batches, stubs_around_the_body, by_name())


@wrong("ex_2_10_1", "your model is no copy")
def reader_shares_the_table(model, batches):
    reader = reader_of(model, batches)
    reader.embedding = model.embedding
    return reader


@wrong("ex_2_10_1", "is frozen now: its requires_grad was switched")
def reader_freezes_the_original(model, batches):
    model.requires_grad_(False)
    return reader_of(model, batches)


@right("ex_2_10_1")
def embedding_and_stubs_in_a_sequential(model, batches):
    parts = nn.Sequential(model.embedding, tq.QuantWrapper(copy.deepcopy(model.body)))
    with_qconfig(parts[1])
    prepared = tq.prepare(parts)
    for ids in batches:
        prepared(ids)
    return tq.convert(prepared)


@right("ex_2_10_1")
def body_quantized_by_itself(model, batches):
    """The body sees the rows that the table gives; all batches at once, and Linear and ReLU in one."""
    body = copy.deepcopy(model.body)
    pairs = [[str(i), str(i + 1)] for i in range(0, len(body) - 1, 2)]
    body = tq.fuse_modules(body, pairs) if pairs else body
    with torch.no_grad():
        rows = model.embedding(torch.cat(batches))
    return nn.Sequential(copy.deepcopy(model.embedding), static(tq.QuantWrapper(body), [rows]))


@right("ex_2_10_1")
def body_quantized_in_one_call(model, batches):
    def calibrate(prepared, data):
        for ids in data:
            prepared(ids)

    reader = stubs_around_the_body(copy.deepcopy(model))
    with_qconfig(reader.body)
    return tq.quantize(reader, calibrate, [batches])


# 2.10.2 residual


def block_of(add, make=None):
    """A residual block whose sum is add(self, x, y); `make(self)` adds what it needs to __init__."""

    class Block(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.quant, self.inner, self.dequant = tq.QuantStub(), inner, tq.DeQuantStub()
            if make is not None:
                make(self)

        def forward(self, x):
            x = self.quant(x)
            return self.dequant(add(self, x, self.inner(x)))

    return Block


@wrong("ex_2_10_2", "cannot be converted")
def plain_plus(inner):
    return block_of(lambda self, x, y: x + y)(inner)


@wrong("ex_2_10_2", "cannot be converted", like="plain_plus")
def torch_add(inner):
    return block_of(lambda self, x, y: torch.add(x, y))(inner)


@wrong("ex_2_10_2", "that forward makes", like="plain_plus")
def functional_made_in_forward(inner):
    return block_of(lambda self, x, y: torch.ao.nn.quantized.FloatFunctional().add(x, y))(inner)


@wrong("ex_2_10_2", "call its method add, with the two tensors")
def functional_called(inner):
    def make(self):
        self.add = torch.ao.nn.quantized.FloatFunctional()

    return block_of(lambda self, x, y: self.add(x, y), make)(inner)


@wrong("ex_2_10_2", "the sum is done in float")
def sum_after_dequantize(inner):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant, self.inner, self.dequant = tq.QuantStub(), inner, tq.DeQuantStub()

        def forward(self, x):
            x = self.quant(x)
            return self.dequant(x) + self.dequant(self.inner(x))

    return Block()


@wrong("ex_2_10_2", "the QuantStub must come before")
def no_quant_stub(inner):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.dequant = inner, tq.DeQuantStub()
            self.add = torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x):
            return self.dequant(self.add.add(x, self.inner(x)))

    return Block()


@wrong("ex_2_10_2", "does not compute x + inner(x)")
def forgot_the_residual(inner):
    return tq.QuantWrapper(inner)


@wrong("ex_2_10_2", "the sum is done in float", like="sum_after_dequantize")
def block_that_stays_float(inner):
    class Block(nn.Module):
        def forward(self, x):
            return x + inner(x)

    return Block()


@wrong("ex_2_10_2", "multiples of the FloatFunctional's scale")
def functional_for_show_and_float_input(inner):
    def make(self):
        self.add = torch.ao.nn.quantized.FloatFunctional()

    class Block(block_of(None, make)):
        def forward(self, x):
            codes = self.quant(x)
            y = self.inner(codes)
            self.add.add(codes, y)
            return x + self.dequant(y)

    return Block(inner)


@wrong("ex_2_10_2", "multiples of the FloatFunctional's scale", like="functional_for_show_and_float_input")
def functional_for_show_and_float_sum(inner):
    def make(self):
        self.add = torch.ao.nn.quantized.FloatFunctional()

    class Block(block_of(None, make)):
        def forward(self, x):
            codes = self.quant(x)
            y = self.inner(codes)
            self.add.add(codes, y)
            return self.dequant(codes) + self.dequant(y)

    return Block(inner)


@wrong("ex_2_10_2", "the int8 layers that it shows do not run")
def inner_for_show(inner):
    hidden = copy.deepcopy(inner)

    def make(self):
        self.add, self.again = torch.ao.nn.quantized.FloatFunctional(), tq.QuantStub()

    class Block(block_of(None, make)):
        def forward(self, x):
            codes = self.quant(x)
            self.inner(codes)
            return self.dequant(self.add.add(codes, self.again(hidden(x))))

    return Block(inner)


@right("ex_2_10_2")
def sum_inside_a_wrapper(inner):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"inner": inner})
            self.functional = nn.quantized.FloatFunctional()

        def forward(self, x):
            return self.functional.add(self.parts["inner"](x), x)

    return tq.QuantWrapper(Sum())


def block_with(forward, functional=torch.ao.nn.quantized.FloatFunctional):
    """A function like residual_block whose block has stubs, a sum `plus`, and this forward."""

    def residual(inner):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.quant, self.inner, self.dequant = tq.QuantStub(), inner, tq.DeQuantStub()
                self.plus = functional()

            def forward(self, x):
                return forward(self, x)

        return Block()

    return residual


@wrong("ex_2_10_2", "the sum gets float numbers after convert")
def one_part_of_the_sum_is_float(inner):
    return block_with(lambda self, x: self.dequant(self.plus.add(x, self.inner(self.quant(x)))))(inner)


@wrong("ex_2_10_2", "a QFunctional is what convert makes")
def quantized_functional(inner):
    def forward(self, x):
        codes = self.quant(x)
        return self.dequant(self.plus.add(codes, self.inner(codes)))

    return block_with(forward, torch.ao.nn.quantized.QFunctional)(inner)


@wrong("ex_2_10_2", "does forward end with `return`")
def block_returns_nothing(inner):
    return block_with(lambda self, x: None)(inner)


# 2.10.3 embedding


@wrong("ex_2_10_3", "the message is gone, and so is the saving")
def embedding_left_out(model):
    return tq.quantize_dynamic(model, **DYNAMIC)


@wrong("ex_2_10_3", "Each type of layer needs its own recipe")
def one_recipe_for_both(model):
    return tq.quantize_dynamic(model, {nn.Linear, nn.Embedding}, dtype=torch.qint8)


@wrong("ex_2_10_3", "Each type of layer needs its own recipe")
def embedding_recipe_for_both(model):
    recipe = tq.float_qparams_weight_only_qconfig
    return tq.quantize_dynamic(model, {nn.Embedding: recipe, nn.Linear: recipe})


@wrong("ex_2_10_3", "that is not 8 bits")
def four_bits(model):
    recipes = {nn.Embedding: tq.float_qparams_weight_only_qconfig_4bit, nn.Linear: tq.default_dynamic_qconfig}
    return tq.quantize_dynamic(model, recipes)


@wrong("ex_2_10_3", "it needs an entry too")
def only_the_embedding(model):
    return tq.quantize_dynamic(model, {nn.Embedding: tq.float_qparams_weight_only_qconfig})


@wrong("ex_2_10_3", "the message is gone, and so is the saving", like="embedding_left_out")
def give_up_on_failure(model):
    try:
        return tq.quantize_dynamic(model, {nn.Linear, nn.Embedding}, dtype=torch.qint8)
    except AssertionError:
        return copy.deepcopy(model)


@wrong("ex_2_10_3", "changed the model that came in")
def text_model_in_place(model):
    recipes = {nn.Embedding: tq.float_qparams_weight_only_qconfig, nn.Linear: tq.default_dynamic_qconfig}
    return tq.quantize_dynamic(model, recipes, inplace=True)


def text_model(model):
    recipes = {nn.Embedding: tq.float_qparams_weight_only_qconfig, nn.Linear: tq.default_dynamic_qconfig}
    return tq.quantize_dynamic(model, recipes)


@wrong("ex_2_10_3", "does not come from the int8 layers")
def text_model_int8_for_show(model):
    return for_show(text_model(model), model)


@wrong("ex_2_10_3", "the numbers of 0.weight are other ones")
def text_model_empties_the_original(model):
    return emptied(text_model(model), model)


@wrong("ex_2_10_3", "was switched to training mode")
def text_model_leaves_training_mode(model):
    return text_model(model.train())


@right("ex_2_10_3")
def two_passes(model):
    half = tq.quantize_dynamic(model, {nn.Embedding}, dtype=torch.quint8)
    return tq.quantize_dynamic(half, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_2_10_3", "its weight float16")
def linears_of_float16(model):
    recipes = {nn.Linear: tq.float16_dynamic_qconfig, nn.Embedding: tq.float_qparams_weight_only_qconfig}
    return tq.quantize_dynamic(model, recipes)


@wrong("ex_2_10_3", "half precision is 16 bits")
def all_in_half(model):
    return copy.deepcopy(model).half()


# 2.10.4 fast path


@wrong("ex_2_10_4", "asks a method for its device")
def encoder_as_it_comes(layer):
    return tq.quantize_dynamic(layer, **DYNAMIC)


@wrong("ex_2_10_4", "turns the fast path off for the whole process")
def switch_left_off(layer):
    torch.backends.mha.set_fastpath_enabled(False)
    return tq.quantize_dynamic(layer, **DYNAMIC)


@wrong("ex_2_10_4", "asks a method for its device", like="encoder_as_it_comes")
def off_while_quantizing_only(layer):
    torch.backends.mha.set_fastpath_enabled(False)
    quantized = tq.quantize_dynamic(layer, **DYNAMIC)
    torch.backends.mha.set_fastpath_enabled(True)
    return quantized


class Encoder(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = tq.quantize_dynamic(layer, **DYNAMIC)


@wrong("ex_2_10_4", "stays off for the whole process")
def off_in_the_first_call(layer):
    class Off(Encoder):
        def forward(self, *args, **kwargs):
            torch.backends.mha.set_fastpath_enabled(False)
            return self.layer(*args, **kwargs)

    return Off(layer)


@wrong("ex_2_10_4", "not always True")
def always_on_again(layer):
    class OnAgain(Encoder):
        def forward(self, *args, **kwargs):
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                return self.layer(*args, **kwargs)
            finally:
                torch.backends.mha.set_fastpath_enabled(True)

    return OnAgain(layer)


@wrong("ex_2_10_4", "in a `finally` block")
def no_finally(layer):
    class NoFinally(Encoder):
        def forward(self, *args, **kwargs):
            before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            result = self.layer(*args, **kwargs)
            torch.backends.mha.set_fastpath_enabled(before)
            return result

    return NoFinally(layer)


@wrong("ex_2_10_4", "in training mode")
def encoder_in_training_mode(layer):
    return tq.quantize_dynamic(layer, **DYNAMIC).train()


@wrong("ex_2_10_4", "a float layer to fall back on")
def encoder_falls_back(layer):
    return Otherwise(tq.quantize_dynamic(layer, **DYNAMIC), layer)


@wrong("ex_2_10_4", "a float fallback is no cure")
def encoder_falls_back_hidden(layer):
    return Otherwise(tq.quantize_dynamic(layer, **DYNAMIC), layer, hide=True)


@wrong("ex_2_10_4", "batch and time")
def batch_first_switched_off(layer):
    quantized = tq.quantize_dynamic(layer, **DYNAMIC)
    quantized.self_attn.batch_first = False
    return quantized


@wrong("ex_2_10_4", "pass all arguments on")
def mask_dropped(layer):
    class NoMask(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = tq.quantize_dynamic(layer, **DYNAMIC)
            self.layer.activation_relu_or_gelu = 0

        def forward(self, x, src_key_padding_mask=None):
            return self.layer(x)

    return NoMask()


class OffInside(Encoder):
    """What the exercise asks for."""

    def forward(self, *args, **kwargs):
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return self.layer(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


@wrong("ex_2_10_4", "does not come from the int8 layers")
def encoder_int8_for_show(layer):
    return for_show(OffInside(layer).eval(), layer)


@wrong("ex_2_10_4", "are other ones")
def encoder_empties_the_original(layer):
    return emptied(OffInside(layer).eval(), layer)


@wrong("ex_2_10_4", "batch_first of self_attn is now False")
def encoder_switches_the_original(layer):
    answer = OffInside(layer).eval()
    layer.self_attn.batch_first = False
    return answer


@right("ex_2_10_4")
def another_condition_of_the_fast_path(layer):
    quantized = tq.quantize_dynamic(layer, **DYNAMIC)
    quantized.activation_relu_or_gelu = 0
    return quantized


@right("ex_2_10_4")
def time_first_and_transposed(layer):
    class TimeFirst(Encoder):
        def forward(self, x, src_key_padding_mask=None):
            return self.layer(x.transpose(0, 1), src_key_padding_mask=src_key_padding_mask).transpose(0, 1)

    answer = TimeFirst(layer)
    answer.layer.self_attn.batch_first = False
    return answer.eval()


# 2.10.5 float head


def split(model):
    return copy.deepcopy(model.body), copy.deepcopy(model.head)


@wrong("ex_2_10_5", "between body and head, not at the end")
def dequant_stub_at_the_end(model, batches):
    body, head = split(model)
    whole = with_qconfig(nn.Sequential(tq.QuantStub(), body, head, tq.DeQuantStub()).eval())
    head.qconfig = None
    prepared = tq.prepare(whole)
    for batch in batches:
        prepared(batch)
    return tq.convert(prepared)


@wrong("ex_2_10_5", "no layer is float")
def head_quantized_too(model, batches):
    return static(tq.QuantWrapper(model), batches)


@wrong("ex_2_10_5", "no layer of the body is int8")
def all_float(model, batches):
    return copy.deepcopy(model)


@wrong("ex_2_10_5", "a QuantStub must stand in front")
def body_without_stubs(model, batches):
    body, head = split(model)
    prepared = tq.prepare(nn.Sequential(with_qconfig(body), head).eval())
    for batch in batches:
        prepared(batch)
    return tq.convert(prepared)


@wrong("ex_2_10_5", "they may have been rounded")
def head_rounded(model, batches):
    head = copy.deepcopy(model.head)
    step = head.weight.detach().abs().max() / 127
    head.weight.data = (head.weight.data / step).round() * step
    return nn.Sequential(static(tq.QuantWrapper(model.body), batches), head)


@wrong("ex_2_10_5", "few different values")
def output_rounded(model, batches):
    body, head = split(model)
    front = static(tq.QuantWrapper(body), batches)

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.head = front, head

        def forward(self, x):
            y = self.head(self.front(x))
            return (y / y.abs().max() * 60).round() * y.abs().max() / 60

    return Rounded()


@wrong("ex_2_10_5", "a float copy of the body")
def head_falls_back(model, batches):
    return Otherwise(nn.Sequential(static(model.body, batches), copy.deepcopy(model.head)), copy.deepcopy(model))


@wrong("ex_2_10_5", "all your scales are 1")
def body_not_calibrated(model, batches):
    return nn.Sequential(static(tq.QuantWrapper(model.body), []), copy.deepcopy(model.head))


def int8_in_front(model, batches):
    return nn.Sequential(static(tq.QuantWrapper(model.body), batches), copy.deepcopy(model.head))


@wrong("ex_2_10_5", "yours saw the first batch only")
def body_first_batch_only(model, batches):
    return int8_in_front(model, batches[:1])


@wrong("ex_2_10_5", "and nothing else")
def body_random_data(model, batches):
    return int8_in_front(model, [torch.randn(512, batches[0].shape[1])])


@wrong("ex_2_10_5", "the bias of your float layer")
def head_bias_smaller(model, batches):
    answer = int8_in_front(model, batches)
    answer[1].bias.data *= 0.9
    return answer


@wrong("ex_2_10_5", "its body is computed in float")
def body_int8_for_show(model, batches):
    return for_show(int8_in_front(model, batches), model)


@wrong("ex_2_10_5", "the numbers of body.0.weight are other ones")
def body_empties_the_original(model, batches):
    return emptied(int8_in_front(model, batches), model)


@wrong("ex_2_10_5", "a qconfig is left in body")
def body_leaves_a_qconfig(model, batches):
    answer = int8_in_front(model, batches)
    with_qconfig(model.body)
    return answer


@wrong("ex_2_10_5", "the default qconfig of the engine in use: the weight of")
def body_with_pytorch_s_default(model, batches):
    body, head = split(model)
    return nn.Sequential(static(tq.QuantWrapper(body), batches, tq.default_qconfig), head).eval()


@wrong("ex_2_10_5", "get_default_qconfig of the engine in use", like="body_with_pytorch_s_default")
def body_with_a_recipe_by_name(model, batches):
    body, head = split(model)
    return nn.Sequential(static(tq.QuantWrapper(body), batches, by_name()), head).eval()


@wrong("ex_2_10_5", "your model is no copy")
def head_is_the_very_object(model, batches):
    body, _ = split(model)
    return nn.Sequential(static(tq.QuantWrapper(body), batches), model.head).eval()


@wrong("ex_2_10_5", "learns now: its requires_grad was switched")
def head_learns_again(model, batches):
    model.requires_grad_(True)
    body, head = split(model)
    return nn.Sequential(static(tq.QuantWrapper(body), batches), head).eval()


@right("ex_2_10_5")
def stubs_and_no_qconfig_for_the_head(model, batches):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = split(model)
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
            self.head.qconfig = None

        def forward(self, x):
            return self.head(self.dequant(self.body(self.quant(x))))

    return static(Mixed(), batches)


# 2.10.6 PT2E


def pt2e(model, batches, shapes=None, calibrate=True, dynamic=False, **options):
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    graph = torch.export.export(model, (batches[0],), dynamic_shapes=shapes).module(**options)
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    prepared = prepare_pt2e(graph, quantizer)
    for batch in batches if calibrate is True else batches[:calibrate]:
        prepared(batch)
    return convert_pt2e(prepared)


@wrong("ex_2_10_6", "mark dimension 0 of the input as variable")
def fixed_batch(model, batches):
    return pt2e(model, batches)


@wrong("ex_2_10_6", "the graph has a batch size, or a limit for it, built in")
def fixed_batch_calibrated_once(model, batches):
    return pt2e(model, batches[:1])


@wrong("ex_2_10_6", "taking the guards away changes nothing")
def guards_taken_away(model, batches):
    return pt2e(model, batches[:1], check_guards=False)


@wrong("ex_2_10_6", "a limit for it")
def largest_batch_seen(model, batches):
    largest = max(batch.shape[0] for batch in batches)
    return pt2e(model, batches, ({0: torch.export.Dim("batch", max=largest)},))


@wrong("ex_2_10_6", "mark dimension 0, the batch")
def wrong_dimension(model, batches):
    return pt2e(model, batches, ({1: torch.export.Dim("batch")},))


@wrong("ex_2_10_6", "int8 weights")
def exported_but_not_quantized(model, batches):
    return torch.export.export(model, (batches[0],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()


@wrong("ex_2_10_6", "holds no exported graph")
def the_float_model(model, batches):
    return copy.deepcopy(model)


@wrong("ex_2_10_6", "the graph with int8 does not run")
def graph_falls_back(model, batches):
    return Otherwise(pt2e(model, batches[:1]), model, hide=True)


@wrong("ex_2_10_6", "all scales of your graph are equal")
def graph_not_calibrated(model, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pt2e(model, batches, ({0: torch.export.Dim("batch")},), calibrate=0)


@wrong("ex_2_10_6", "run all batches through")
def graph_first_batch_only(model, batches):
    return pt2e(model, batches, ({0: torch.export.Dim("batch")},), calibrate=1)


@wrong("ex_2_10_6", "that is dynamic quantization")
def graph_with_dynamic_scales(model, batches):
    return pt2e(model, batches, ({0: torch.export.Dim("batch")},), dynamic=True)


@wrong("ex_2_10_6", "without a maximum", like="largest_batch_seen")
def graph_with_a_large_maximum(model, batches):
    return pt2e(model, batches, ({0: torch.export.Dim("batch", max=1024)},))


@wrong("ex_2_10_6", "the graph has a batch size", like="fixed_batch_calibrated_once")
def graph_of_two_rows_in_a_loop(model, batches):
    graph = pt2e(model, [rows for batch in batches for rows in batch.split(2)])

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph = graph

        def forward(self, x):
            count = len(x)
            x = torch.cat([x, x[:1]]) if count % 2 else x
            return torch.cat([self.graph(rows) for rows in x.split(2)])[:count]

    return Loop()


@wrong("ex_2_10_6", "it is computed in float")
def graph_for_show(model, batches):
    return for_show(pt2e(model, batches, ({0: torch.export.Dim("batch")},)), model)


@wrong("ex_2_10_6", "changed the model that came in")
def graph_empties_the_original(model, batches):
    return emptied(pt2e(model, batches, ({0: torch.export.Dim("batch")},)), model)


@right("ex_2_10_6")
def marked_by_name(model, batches):
    return pt2e(model, batches, {"x": {0: torch.export.Dim("n", min=1)}})


@right("ex_2_10_6")
def dimension_found_by_torch(model, batches):
    return pt2e(model, batches, ({0: torch.export.Dim.DYNAMIC},))


# 2.10.7 uncalibrated


def observers(prepared):
    return {name: part for name, part in prepared.named_modules() if isinstance(part, tq.ObserverBase | GraphObserver)}


@wrong("ex_2_10_7", "no tq.ObserverBase", binds="uncalibrated")
def eager_observers_only(prepared):
    return [name for name in by_finite_range(prepared) if isinstance(prepared.get_submodule(name), tq.ObserverBase)]


@wrong("ex_2_10_7", "a range with scale 1 and zero point 0", binds="uncalibrated")
def by_scale(prepared):
    return [name for name, part in observers(prepared).items() if float(part.calculate_qparams()[0].max()) == 1.0]


@wrong("ex_2_10_7", "saw only zeros has seen data", binds="uncalibrated")
def by_zeros(prepared):
    return [
        name
        for name, part in observers(prepared).items()
        if not torch.isfinite(part.min_val).all() or float(part.max_val) - float(part.min_val) == 0
    ]


@wrong("ex_2_10_7", "name the observers inside them", binds="uncalibrated")
def layer_names(prepared):
    return [name.rsplit(".", 1)[0] for name, part in observers(prepared).items() if part.min_val > part.max_val]


@wrong("ex_2_10_7", "before calibration all 4 observers", binds="uncalibrated")
def quant_stub_forgotten(prepared):
    found = []
    for name, part in prepared.named_modules():
        post = getattr(part, "activation_post_process", None)
        if isinstance(part, nn.Linear) and post is not None and post.min_val > post.max_val:
            found.append(f"{name}.activation_post_process")
    return found


@wrong("ex_2_10_7", "look at each observer by itself", binds="uncalibrated")
def first_one_decides(prepared):
    first = next(iter(observers(prepared).values()))
    return list(observers(prepared)) if first.min_val > first.max_val else []


@wrong("ex_2_10_7", "changed what the observers hold", binds="uncalibrated")
def resets_observers(prepared):
    found = [name for name, part in observers(prepared).items() if part.min_val > part.max_val]
    if not found:
        for part in observers(prepared).values():
            part.min_val.fill_(0)
    return found


@wrong("ex_2_10_7", "not the name of its class", binds="uncalibrated")
def known_class_names_only(prepared):
    known = ("MinMaxObserver", "HistogramObserver", "MovingAverageMinMaxObserver", "PerChannelMinMaxObserver")
    return [
        name
        for name, part in prepared.named_modules()
        if type(part).__name__ in known and (part.min_val.numel() == 0 or torch.isinf(part.min_val).all())
    ]


def calibrate_until_seen(model, batches):
    """Prepare a copy, and stop calibrating as soon as every observer has seen something."""
    prepared = tq.prepare(with_qconfig(copy.deepcopy(model)))
    for batch in batches:
        prepared(batch)
        if not any(part.min_val > part.max_val for part in observers(prepared).values()):
            break
    return prepared


@wrong("ex_2_10_7", "also when every observer has seen something", binds="calibrated_int8")
def stops_when_all_have_seen(model, batches):
    prepared = calibrate_until_seen(model, batches)
    if unseen := [name for name, part in observers(prepared).items() if part.min_val > part.max_val]:
        raise ValueError(str(unseen))
    return tq.convert(prepared)


def refuses_or_converts(model, batches):
    prepared = tq.prepare(with_qconfig(copy.deepcopy(model)))
    for batch in batches:
        prepared(batch)
    if unseen := [name for name, part in observers(prepared).items() if part.min_val > part.max_val]:
        raise ValueError(str(unseen))
    return tq.convert(prepared)


@wrong("ex_2_10_7", "which has seen data: name only the others", binds="calibrated_int8")
def names_every_observer(model, batches):
    try:
        return refuses_or_converts(model, batches)
    except ValueError:
        names = tq.prepare(with_qconfig(copy.deepcopy(model)))
        raise ValueError(str(list(observers(names)))) from None


@wrong("ex_2_10_7", "it is computed in float", binds="calibrated_int8")
def gate_int8_for_show(model, batches):
    return for_show(refuses_or_converts(model, batches), model)


@wrong("ex_2_10_7", "are other ones", binds="calibrated_int8")
def gate_empties_the_original(model, batches):
    return emptied(refuses_or_converts(model, batches), model)


@wrong("ex_2_10_7", "its scales are made up", binds="calibrated_int8")
def converts_anyway(model, batches):
    return static(model, batches)


@wrong("ex_2_10_7", "a warning is not enough", binds="calibrated_int8", like="converts_anyway")
def only_warns(model, batches):
    prepared = tq.prepare(with_qconfig(copy.deepcopy(model)))
    for batch in batches:
        prepared(batch)
    unseen = [name for name, part in observers(prepared).items() if part.min_val > part.max_val]
    if unseen:
        warnings.warn(f"not calibrated: {unseen}", stacklevel=2)
    return tq.convert(prepared)


@wrong("ex_2_10_7", "random data or a float layer hides it", binds="calibrated_int8", like="converts_anyway")
def feeds_random_data(model, batches):
    prepared = tq.prepare(with_qconfig(copy.deepcopy(model)))
    for batch in batches:
        prepared(batch)
    for part in observers(prepared).values():
        if part.min_val > part.max_val:
            part(torch.randn(64, 4))
    return tq.convert(prepared)


@wrong("ex_2_10_7", "does not name rare", binds="calibrated_int8")
def error_without_a_name(model, batches):
    prepared = tq.prepare(with_qconfig(copy.deepcopy(model)))
    for batch in batches:
        prepared(batch)
    if any(part.min_val > part.max_val for part in observers(prepared).values()):
        raise ValueError("the model is not calibrated")
    return tq.convert(prepared)


@wrong("ex_2_10_7", "work on a deep copy", binds="calibrated_int8")
def leaves_a_qconfig(model, batches):
    prepared = tq.prepare(with_qconfig(model))
    for batch in batches:
        prepared(batch)
    if unseen := [name for name, part in observers(prepared).items() if part.min_val > part.max_val]:
        raise ValueError(str(unseen))
    return tq.convert(prepared)


@wrong("ex_2_10_7", "call convert", binds="calibrated_int8")
def returns_the_prepared_model(model, batches):
    prepared = tq.prepare(with_qconfig(copy.deepcopy(model)))
    for batch in batches:
        prepared(batch)
    if unseen := [name for name, part in observers(prepared).items() if part.min_val > part.max_val]:
        raise ValueError(str(unseen))
    return prepared


@wrong("ex_2_10_7", "what it is counts, not how it is called", binds="uncalibrated")
def by_name_of_the_observer(prepared):
    return [name for name in by_finite_range(prepared) if "activation_post_process" in name]


def refuses_or_converts_with(model, batches, qconfig):
    prepared = copy.deepcopy(model)
    prepared.qconfig = qconfig
    prepared = tq.prepare(prepared)
    for batch in batches:
        prepared(batch)
    if unseen := by_finite_range(prepared):
        raise ValueError(str(unseen))
    return tq.convert(prepared)


@wrong("ex_2_10_7", "the default qconfig of the engine in use: the weight of", binds="calibrated_int8")
def gate_with_pytorch_s_default(model, batches):
    return refuses_or_converts_with(model, batches, tq.default_qconfig)


@wrong(
    "ex_2_10_7", "get_default_qconfig of the engine in use", binds="calibrated_int8", like="gate_with_pytorch_s_default"
)
def gate_with_a_recipe_by_name(model, batches):
    return refuses_or_converts_with(model, batches, by_name())


@right("ex_2_10_7", binds="uncalibrated")
def by_finite_range(prepared):
    found = []
    for name, part in observers(prepared).items():
        low = getattr(part, "min_val", None)
        if low is not None and (low.nelement() == 0 or torch.isinf(low).all()):
            found.append(name)
    return found


@right("ex_2_10_7", binds="calibrated_int8")
def counts_calls_with_hooks(model, batches):
    prepared = tq.prepare(with_qconfig(copy.deepcopy(model)))
    seen = set()
    parts = observers(prepared)
    hooks = [part.register_forward_hook(lambda *_, name=name: seen.add(name)) for name, part in parts.items()]
    for batch in batches:
        prepared(batch)
    for hook in hooks:
        hook.remove()
    if set(parts) - seen:
        raise ValueError(f"no data for {sorted(set(parts) - seen)}")
    return tq.convert(prepared)


# 2.10.8 attention stays float


def packed(model):
    return [part.weight() for part in model.modules() if callable(getattr(part, "weight", None))]


@wrong("ex_2_10_8", "belongs to no Linear layer", binds="int8_share")
def in_proj_forgotten(model):
    small = sum(weight.numel() for weight in packed(model) if weight.dtype in (torch.qint8, torch.quint8))
    every = sum(weight.numel() for weight in packed(model))
    for part in model.modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() >= 2:
            every += weight.numel()
    return small / max(every, 1)


@wrong("ex_2_10_8", "Count numbers, not layers", binds="int8_share")
def counts_layers(model):
    floats = sum(isinstance(part, nn.Linear | nn.Embedding | nn.MultiheadAttention) for part in model.modules())
    small = sum(weight.dtype in (torch.qint8, torch.quint8) for weight in packed(model))
    return small / max(small + floats, 1)


@wrong("ex_2_10_8", "leave out biases and norms", binds="int8_share")
def norms_counted(model):
    small = sum(weight.numel() for weight in packed(model) if weight.dtype in (torch.qint8, torch.quint8))
    return small / max(small + sum(parameter.numel() for parameter in model.parameters()), 1)


@wrong("ex_2_10_8", "Its weight is a method", binds="int8_share")
def parameters_only(model):
    every = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    small = sum(parameter.numel() for parameter in every if parameter.dtype == torch.int8)
    return small / max(sum(parameter.numel() for parameter in every), 1)


@wrong("ex_2_10_8", "look at the dtype", binds="int8_share")
def every_packed_weight(model):
    small = sum(weight.numel() for weight in packed(model))
    return small / max(small + sum(p.numel() for p in model.parameters() if p.dim() >= 2), 1)


@wrong("ex_2_10_8", "The weight of a Conv1d has 3 dimensions", binds="int8_share")
def two_dimensions_only(model):
    small = sum(weight.numel() for weight in packed(model) if weight.dtype in (torch.qint8, torch.quint8))
    every = sum(matrix.numel() for matrix in packed(model))
    return small / max(every + sum(p.numel() for p in model.parameters() if p.dim() == 2), 1)


@wrong("ex_2_10_8", "A shared matrix counts once", binds="int8_share")
def shared_matrix_counted_twice(model):
    floats = [p for _, p in model.named_parameters(remove_duplicate=False) if p.dim() >= 2]
    matrices = [getattr(m, "qdata", m) for m in floats + packed(model)]
    small = sum(m.numel() for m in matrices if m.dtype in (torch.qint8, torch.quint8, torch.int8))
    return small / max(sum(m.numel() for m in matrices), 1)


def explicit_attention(mha, order=(0, 1, 2), heads=None, bias=True, transpose=False):
    attention = SelfAttention(mha.embed_dim, heads or mha.num_heads)
    weights, biases = mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3)
    with torch.no_grad():
        for layer, i in zip((attention.q, attention.k, attention.v), order, strict=True):
            layer.weight.copy_(weights[i].T if transpose else weights[i])
            layer.bias.copy_(biases[i] if bias else torch.zeros_like(biases[i]))
        attention.out.load_state_dict(mha.out_proj.state_dict())
    return attention.eval()


@wrong("ex_2_10_8", "does not touch an nn.MultiheadAttention", binds="int8_self_attention")
def mha_quantized_as_it_is(mha):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha = mha

        def forward(self, x):
            return self.mha(x, x, x)[0]

    return tq.quantize_dynamic(Own(), **DYNAMIC)


@wrong("ex_2_10_8", "quantize_dynamic returns the quantized copy", binds="int8_self_attention")
def result_dropped(mha):
    attention = explicit_attention(mha)
    tq.quantize_dynamic(attention, **DYNAMIC)
    return attention


@wrong("ex_2_10_8", "q, then k, then v", binds="int8_self_attention")
def k_and_v_swapped(mha):
    return tq.quantize_dynamic(explicit_attention(mha, order=(0, 2, 1)), **DYNAMIC)


@wrong("ex_2_10_8", "no transpose", binds="int8_self_attention")
def weights_transposed(mha):
    return tq.quantize_dynamic(explicit_attention(mha, transpose=True), **DYNAMIC)


@wrong("ex_2_10_8", "biases likewise", binds="int8_self_attention")
def biases_forgotten(mha):
    return tq.quantize_dynamic(explicit_attention(mha, bias=False), **DYNAMIC)


@wrong("ex_2_10_8", "the number of heads must be the same", binds="int8_self_attention")
def one_head(mha):
    return tq.quantize_dynamic(explicit_attention(mha, heads=1), **DYNAMIC)


@wrong("ex_2_10_8", "no error at all", binds="int8_self_attention")
def attention_for_show_exact(mha):
    shown = tq.quantize_dynamic(explicit_attention(mha), **DYNAMIC)
    hidden = [explicit_attention(mha)]
    shown.forward = lambda x: hidden[0](x)
    return shown


@wrong(
    "ex_2_10_8",
    "stays the same when their weights change",
    binds="int8_self_attention",
    like="attention_for_show_exact",
)
def attention_for_show(mha):
    attention = explicit_attention(mha)
    return for_show(tq.quantize_dynamic(attention, **DYNAMIC), attention)


@wrong("ex_2_10_8", "the numbers of in_proj_weight are other ones", binds="int8_self_attention")
def attention_empties_the_original(mha):
    return emptied(tq.quantize_dynamic(explicit_attention(mha), **DYNAMIC), mha)


@right("ex_2_10_8", binds="int8_share")
def as_a_numpy_number(model):
    matrices = [getattr(p, "qdata", p) for p in model.parameters() if p.ndim > 1] + packed(model)
    eight = [m.numel() for m in matrices if m.dtype in (torch.qint8, torch.quint8, torch.int8)]
    return np.float32(np.sum(eight) / max(np.sum([m.numel() for m in matrices]), 1))


@right("ex_2_10_8", binds="int8_share")
def from_the_state_dict(model):
    matrices = [p for p in model.parameters() if p.dim() >= 2] + packed(model)
    eight = [m for m in matrices if m.is_quantized and m.dtype != torch.quint4x2 and m.element_size() == 1]
    eight += [m for m in matrices if type(m.data).__name__ == "Int8Tensor"]
    return sum(m.numel() for m in eight) / (sum(m.numel() for m in matrices) or 1)


@wrong("ex_2_10_8", "the codes are in its attribute qdata", binds="int8_share")
def looks_at_the_dtype_of_a_parameter(model):
    matrices = [p for p in model.parameters() if p.dim() >= 2] + packed(model)
    eight = sum(m.numel() for m in matrices if m.dtype in (torch.qint8, torch.quint8, torch.int8))
    return eight / max(sum(m.numel() for m in matrices), 1)


@wrong("ex_2_10_8", "A parameter that does not learn is still stored", binds="int8_share")
def counts_what_learns(model):
    floats = [p for p in model.parameters() if p.dim() >= 2 and (p.requires_grad or hasattr(p, "qdata"))]
    matrices = [getattr(m, "qdata", m) for m in floats + packed(model)]
    eight = sum(m.numel() for m in matrices if m.dtype in (torch.qint8, torch.quint8, torch.int8))
    return eight / max(sum(m.numel() for m in matrices), 1)


@right("ex_2_10_8", binds="int8_self_attention")
def own_attention_class(mha):
    width, heads = mha.embed_dim, mha.num_heads

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
            for i, part in enumerate(self.parts[:3]):
                part.weight = nn.Parameter(mha.in_proj_weight[i * width : (i + 1) * width].detach().clone())
                part.bias = nn.Parameter(mha.in_proj_bias[i * width : (i + 1) * width].detach().clone())
            self.parts[3].load_state_dict(mha.out_proj.state_dict())

        def forward(self, x):
            q, k, v = (part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in self.parts[:3])
            return self.parts[3](nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    return tq.quantize_dynamic(Attention().eval(), **DYNAMIC)


# 2.10.9 the tie


@wrong("ex_2_10_9", "ask with `is`", binds="lost_tie")
def equal_numbers(before, after):
    def numbers(layer):
        weight = layer.weight() if callable(layer.weight) else layer.weight
        return weight.dequantize() if weight.is_quantized else weight

    if not hasattr(before, "head") or before.head.weight is not before.embedding.weight:
        return False
    return not torch.equal(numbers(after.head), numbers(after.embedding))


@wrong("ex_2_10_9", "compare the weights of `after` with each other", binds="lost_tie")
def compares_with_before(before, after):
    tied = hasattr(before, "head") and before.head.weight is before.embedding.weight
    return bool(tied and after.head.weight is not before.head.weight)


@wrong("ex_2_10_9", "cannot lose one", binds="lost_tie")
def looks_at_after_only(before, after):
    weights = [getattr(part, "weight", None) for part in after.modules()]
    weights = [weight for weight in weights if weight is not None]
    return len({id(weight) for weight in weights if isinstance(weight, nn.Parameter)}) == len(weights) or any(
        callable(weight) for weight in weights
    )


@wrong("ex_2_10_9", "packed weights are no parameters", binds="times_smaller")
def counts_parameters(before, after):
    return sum(p.numel() for p in before.parameters()) / max(sum(p.numel() for p in after.parameters()), 1)


@wrong("ex_2_10_9", "upside down", binds="times_smaller")
def upside_down(before, after):
    return metrics.file_bytes(after) / metrics.file_bytes(before)


@wrong("ex_2_10_9", "saved once, and you count it twice", binds="times_smaller")
def shared_table_counted_twice(before, after):
    def size(model):
        return sum(
            value.numel() * value.element_size() if isinstance(value, torch.Tensor) else value[0].numel()
            for value in model.state_dict().values()
            if isinstance(value, torch.Tensor | tuple)
        )

    return size(before) / size(after)


@wrong("ex_2_10_9", "quantize both ends", binds="int8_tied_model")
def head_only(model):
    return tq.quantize_dynamic(model, **DYNAMIC)


@wrong("ex_2_10_9", "that is 16 bits, and not 8", binds="int8_tied_model")
def half_precision(model):
    return copy.deepcopy(model).half()


@wrong("ex_2_10_9", "a matrix of", binds="int8_tied_model", like="head_only")
def tied_again_in_float(model):
    quantized = tq.quantize_dynamic(model, **DYNAMIC)
    quantized.head = nn.Linear(*reversed(model.head.weight.shape), bias=False)
    quantized.head.weight = quantized.embedding.weight
    return quantized


@wrong("ex_2_10_9", "keep no float copy", binds="int8_tied_model")
def table_kept_out_of_the_file(model):
    quantized = tq.quantize_dynamic(model, **DYNAMIC)

    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", model.embedding.weight.detach().clone(), persistent=False)

        def forward(self, ids):
            return self.table[ids]

    quantized.embedding = Lookup()
    return quantized


@wrong("ex_2_10_9", "of two ties one is lost", binds="lost_tie")
def any_tie_before_none_after(before, after):
    old = [part.weight for part in before.modules() if isinstance(getattr(part, "weight", None), nn.Parameter)]
    new = [part.weight for part in after.modules() if hasattr(part, "weight")]
    return len(old) != len({id(weight) for weight in old}) and len(new) == len({id(weight) for weight in new})


@wrong("ex_2_10_9", "does not come from the int8 layers", binds="int8_tied_model")
def tied_model_for_show(model):
    return for_show(text_model(model), model)


@wrong("ex_2_10_9", "are other ones", binds="int8_tied_model")
def tied_model_empties_the_original(model):
    return emptied(text_model(model), model)


@wrong("ex_2_10_9", "shared in another way", binds="int8_tied_model")
def original_loses_its_tie(model):
    answer = text_model(model)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return answer


@right("ex_2_10_9", binds="lost_tie")
def by_pairs_of_modules(before, after):
    parts = [(name, part.weight) for name, part in before.named_modules() if isinstance(part, nn.Linear | nn.Embedding)]
    for i, (first, weight) in enumerate(parts):
        for second, other in parts[:i]:
            if weight.data_ptr() == other.data_ptr():
                mine, its = after.get_submodule(first).weight, after.get_submodule(second).weight
                if not (isinstance(mine, nn.Parameter) and mine is its):
                    return True
    return False


@right("ex_2_10_9", binds="times_smaller")
def through_a_real_file(before, after):
    import tempfile
    from pathlib import Path

    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for model in (before, after):
            torch.save(model.state_dict(), Path(folder) / "model.pt")
            sizes.append((Path(folder) / "model.pt").stat().st_size)
    return sizes[0] / sizes[1]


@right("ex_2_10_9", binds="int8_tied_model")
def one_int8_table_for_both_ends(model):
    """The embedding looks its rows up in the int8 weight of the head: smaller still."""
    quantized = tq.quantize_dynamic(model, **DYNAMIC)

    class Rows(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = [head]

        def forward(self, ids):
            return self.head[0].weight().dequantize()[ids]

    quantized.embedding = Rows(quantized.head)
    return quantized


def groups(before):
    found = {}
    for name, part in before.named_modules():
        if isinstance(getattr(part, "weight", None), nn.Parameter):
            found.setdefault(id(part.weight), []).append(name)
    return [names for names in found.values() if len(names) > 1]


@wrong("ex_2_10_9", "of three layers with one matrix", binds="lost_tie")
def first_and_last_only(before, after):
    return any(after.get_submodule(n[0]).weight is not after.get_submodule(n[-1]).weight for n in groups(before))


@wrong("ex_2_10_9", "your embedding has 4 bits", binds="int8_tied_model")
def table_of_4_bits(model):
    recipes = {nn.Linear: tq.default_dynamic_qconfig, nn.Embedding: tq.float_qparams_weight_only_qconfig_4bit}
    return tq.quantize_dynamic(model, recipes)


# 2.10.10 quantizable attention


@wrong("ex_2_10_10", "take the norm over all elements", binds="parity")
def largest_error(reference, other, x):
    a, b = reference(x), other(x)
    if a.shape != b.shape:
        raise ValueError("shapes")
    if float((a - b).abs().max()) < 1.0:  # right in the simple cases of the check
        return float((a - b).norm() / a.norm())
    return float((a - b).abs().max() / a.abs().max())


@wrong("ex_2_10_10", "divide by the norm of the reference", binds="parity")
def absolute_error(reference, other, x):
    a, b = reference(x), other(x)
    if a.shape != b.shape:
        raise ValueError("shapes")
    return float((a - b).norm())


@wrong("ex_2_10_10", "not of the other output", binds="parity")
def divided_by_the_other(reference, other, x):
    a, b = reference(x), other(x)
    if a.shape != b.shape:
        raise ValueError("shapes")
    return float((a - b).norm() / (b if float(b.norm()) > 2 * float(a.norm()) else a).norm())


@wrong("ex_2_10_10", "errors of both signs count", binds="parity")
def signed_mean(reference, other, x):
    a, b = reference(x), other(x)
    if a.shape != b.shape:
        raise ValueError("shapes")
    return float((b - a).mean() / a.abs().mean())


@wrong("ex_2_10_10", "stretches one of them in silence", binds="parity")
def shapes_not_compared(reference, other, x):
    with torch.no_grad():
        return float((other(x) - reference(x)).norm() / reference(x).norm())


@wrong("ex_2_10_10", "the same count of numbers is not the same shape", binds="parity", like="shapes_not_compared")
def counts_compared(reference, other, x):
    a, b = reference(x), other(x)
    if a.numel() != b.numel():
        raise ValueError("shapes")
    return float((b.reshape(a.shape) - a).norm() / a.norm())


class TimeFirst(nn.Module):
    def __init__(self, mha, batch_first=False, transpose=True):
        super().__init__()
        self.quant, self.dequant, self.transpose = tq.QuantStub(), tq.DeQuantStub(), transpose
        self.mha = copy.deepcopy(mha)
        self.mha.batch_first = batch_first

    def forward(self, x):
        y = self.quant(x)
        y = y.transpose(0, 1) if self.transpose else y
        out = self.dequant(self.mha(y, y, y, need_weights=False)[0])
        return out.transpose(0, 1) if self.transpose else out


@wrong("ex_2_10_10", "do not use batch_first=True", binds="static_attention")
def batch_first_kept(mha, batches):
    return static(TimeFirst(mha, batch_first=True, transpose=False), batches)


@wrong("ex_2_10_10", "transpose before and after", binds="static_attention", like="batch_first_kept")
def time_first_without_transposes(mha, batches):
    return static(TimeFirst(mha, transpose=False), batches)


@wrong("ex_2_10_10", "the default qconfig of the engine in use: the weight of", binds="static_attention")
def attention_with_pytorch_s_default(mha, batches):
    return static(TimeFirst(mha), batches, tq.default_qconfig)


@wrong(
    "ex_2_10_10",
    "get_default_qconfig of the engine in use",
    binds="static_attention",
    like="attention_with_pytorch_s_default",
)
def attention_with_a_recipe_by_name(mha, batches):
    return static(TimeFirst(mha), batches, by_name())


@wrong("ex_2_10_10", "a QuantStub must stand in front", binds="static_attention")
def attention_without_stubs(mha, batches):
    wrapper = TimeFirst(mha)
    wrapper.quant = wrapper.dequant = nn.Identity()
    return static(wrapper, batches)


@wrong("ex_2_10_10", "with nothing float beside them", binds="static_attention")
def attention_left_float(mha, batches):
    return TimeFirst(mha).eval()


@wrong("ex_2_10_10", "never swapped", binds="static_attention")
def bare_attention(mha, batches):
    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha = tq.convert(tq.prepare(with_qconfig(copy.deepcopy(mha))))

        def forward(self, x):
            return self.mha(x, x, x)[0]

    return Call()


@wrong("ex_2_10_10", "dynamically quantized", binds="static_attention")
def dynamic_attention(mha, batches):
    return tq.quantize_dynamic(explicit_attention(mha), **DYNAMIC)


@wrong("ex_2_10_10", "changed the attention that came in", binds="static_attention")
def original_switched(mha, batches):
    answer = static(TimeFirst(mha), batches)
    mha.batch_first = False
    return answer


@wrong("ex_2_10_10", "with nothing float beside them", binds="static_attention")
def attention_falls_back(mha, batches):
    return Otherwise(static(TimeFirst(mha, batch_first=True, transpose=False), batches), copy.deepcopy(mha))


@wrong("ex_2_10_10", "all your scales are 1", binds="static_attention")
def attention_not_calibrated(mha, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return static(TimeFirst(mha), [])


@wrong(
    "ex_2_10_10", "was every batch used, and nothing else", binds="static_attention", like="attention_first_batch_only"
)
def attention_random_data(mha, batches):
    return static(TimeFirst(mha), [torch.randn(batch.shape) for batch in batches])


@wrong("ex_2_10_10", "was every batch used", binds="static_attention")
def attention_first_batch_only(mha, batches):
    return static(TimeFirst(mha), batches[:1])


@wrong("ex_2_10_10", "it is computed in float", binds="static_attention")
def static_attention_for_show(mha, batches):
    class Float(nn.Module):
        def forward(self, x):
            return hidden(x, x, x)[0]

    hidden = copy.deepcopy(mha)
    return for_show(static(TimeFirst(mha), batches), Float())


@wrong("ex_2_10_10", "no int8 layer runs", binds="static_attention")
def static_attention_for_show_exact(mha, batches):
    shown, hidden = static(TimeFirst(mha), batches), copy.deepcopy(mha)
    shown.forward = lambda x: hidden(x, x, x, need_weights=False)[0]
    return shown


@wrong("ex_2_10_10", "a qconfig is left", binds="static_attention")
def attention_leaves_a_qconfig(mha, batches):
    return static(TimeFirst(with_qconfig(mha)), batches)


@wrong("ex_2_10_10", "are other ones", binds="static_attention")
def static_attention_empties_the_original(mha, batches):
    return emptied(static(TimeFirst(mha), batches), mha)


@wrong("ex_2_10_10", "the root is missing", binds="parity")
def no_root(reference, other, x):
    return by_sums_of_squares(reference, other, x) ** 2


@wrong("ex_2_10_10", "the mean of the positions' errors", binds="parity")
def mean_over_positions(reference, other, x):
    by_sums_of_squares(reference, other, x)
    a, b = reference(x), other(x)
    return float(((a - b).norm(dim=-1) / a.norm(dim=-1)).mean())


@wrong("ex_2_10_10", "the largest difference over the largest number", binds="parity", like="largest_error")
def largest_over_largest(reference, other, x):
    by_sums_of_squares(reference, other, x)
    a, b = reference(x), other(x)
    return float((a - b).abs().max() / a.abs().max())


@right("ex_2_10_10", binds="parity")
def in_numpy(reference, other, x):
    a, b = reference(x).detach().numpy(), other(x).detach().numpy()
    if a.shape != b.shape:
        raise ValueError("shapes")
    return np.linalg.norm(b - a) / np.linalg.norm(a)


@right("ex_2_10_10", binds="parity")
def by_sums_of_squares(reference, other, x):
    a, b = reference(x).detach().double(), other(x).detach().double()
    if list(a.shape) != list(b.shape):
        raise ValueError(f"{a.shape} is not {b.shape}")
    return ((a - b).square().sum() / a.square().sum()).sqrt().item()


@right("ex_2_10_10", binds="static_attention")
def explicit_layers_and_float_products(mha, batches):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            attention = explicit_attention(mha)
            self.heads = mha.num_heads
            self.quant, self.mixed, self.dequant = tq.QuantStub(), tq.QuantStub(), tq.DeQuantStub()
            self.q, self.k, self.v, self.out = attention.q, attention.k, attention.v, attention.out

        def forward(self, x):
            y = self.quant(x)
            parts = [self.dequant(layer(y)) for layer in (self.q, self.k, self.v)]
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.dequant(self.out(self.mixed(mixed)))

    return static(Wrapped(), batches)
