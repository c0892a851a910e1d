# %% [markdown]
# # The capstone: a quantized Transformer
#
# The book closes with a Transformer that is to be quantized, and cannot be. Find out why, repair it, make it small without making it worse, and hand it over with a report that holds.
#
# | At a glance | |
# |---|---|
# | **You will** | diagnose a model with probes of your own; build an encoder-decoder that PyTorch can quantize from end to end, and prove that it computes what `nn.Transformer` computes; let it read dates in thirteen written forms, in float and in int8; compete against a frontier of reference entries under a byte budget; write the report card that a team can act on |
# | **You need** | unit 04 (quantizable attention and blocks, artefacts) and unit 05 (paired intervals, frontier, latency); from unit 02, section 9: the error clinic |
# | **Time** | about 6 hours, in three sittings: section 1; sections 2 and 3; sections 4 to 6 |
# | **Graded** | 5 exercises, 13 points |
# | **Start here when you come back** | run the next cell; then each of the sections 1 to 6 runs from its first cell on, without the others |
#
# *Robin Hood has won a great clock from a travelling tinker, who swore that it tells the hour, the tides and the feast days. Back in the forest it ticks and tells nothing. Little John reaches for his staff. "Wait,"
# says Robin. "Before anyone mends it: what does it do, exactly, and what does it only seem to do?" And he asks for a lamp.*

# %%
import copy
import datetime
import hashlib
import json
import math
import platform
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import (
    budget,
    certificate,
    challenge,
    checks,
    dates,
    environment,
    errors,
    frontier,
    int8,
    intervals,
    known_warnings,
    latency,
    metrics,
    plots,
    quantizable,
    rounding,
    seq2seq,
    tables,
)
from helpers.checkpoint import DATE_READER, load_card, load_checkpoint, load_date_reader, save_checkpoint
from helpers.models import causal_mask, sinusoidal_positions
from helpers.seq2seq import Seq2Seq

known_warnings.hide()
warnings.filterwarnings(
    "ignore", message="enable_nested_tensor is True"
)  # about speed, at every birth of nn.Transformer
engine = int8.choose_engine()
float_reader = load_date_reader()  # the trained model of sections 3 to 5
my_numbers: dict[str, str] = {}  # what you may want to remember, for the last cell of the course

# %% [markdown]
# ## 1. Diagnose: what is wrong with it?
#
# > **The book says** (its conclusion): `nn.Transformer` between a `QuantStub` and a `DeQuantStub` is a Transformer that is ready for quantization, to be trained and put on a small device.
# >
# > **What happens:** more than ten things go wrong. Some say so. The worst ones do not.
#
# Here is that class in our own spelling, with the same parts in the same order. `nn.Transformer(width, 8, layers, layers)` is PyTorch's finished encoder-decoder with 8 heads. It reads a *source* (what is to be translated) and a *target* (what has been written so far).


# %%
class StubbedTransformer(nn.Module):
    """Stubs around PyTorch's encoder-decoder and a head: the form of the book's last class."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.enter, self.leave = tq.QuantStub(), tq.DeQuantStub()
        self.body = nn.Transformer(hidden_size, 8, num_layers, num_layers)
        self.head = nn.Linear(hidden_size, output_size)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.leave(self.head(self.body(self.enter(source), self.enter(target))))


torch.manual_seed(61)
printed = StubbedTransformer(input_size=45, output_size=45, hidden_size=32, num_layers=1).eval()

noise = torch.Generator().manual_seed(62)
source, target = (torch.randn(3, 6, 32, generator=noise) for _ in range(2))  # (batch, time, width), as in this course
with torch.no_grad():
    logits = printed(source, target)
    without_stubs = printed.head(printed.body(source, target))
print("It runs. Shape of its output:", tuple(logits.shape))
print("Types of its numbers:", {str(tensor.dtype) for tensor in printed.state_dict().values()} | {str(logits.dtype)})
print("Largest change by the stubs:", (logits - without_stubs).abs().max().item())

# %% [markdown]
# It runs, and that proves nothing: everything is float. A stub only marks a place; before `prepare` and `convert` it passes on what it gets.
#
# ### What it says aloud
#
# Now use it as one would use an encoder-decoder, and then quantize it on the three roads of unit 02: dynamic, static, and with training.

# %% tags=["nbval-check-output"]
ids = torch.randint(45, (3, 6), generator=noise)  # three texts of six token ids
vectors = torch.randn(3, 6, 45, generator=noise)  # three texts of six vectors with `input_size` numbers


def converted(model: nn.Module, source: Tensor, target: Tensor) -> nn.Module:
    """A static int8 copy, calibrated with one batch."""
    observed = copy.deepcopy(model)
    observed.qconfig = tq.get_default_qconfig(engine)
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=UserWarning):
        observed = tq.prepare(observed)
        observed(source, target)
        return tq.convert(observed)


def ready_to_train(model: nn.Module) -> nn.Module:
    """A copy with fake quantization."""
    copied = copy.deepcopy(model).train()
    copied.qconfig = tq.get_default_qat_qconfig(engine)
    return tq.prepare_qat(copied)


static = converted(printed, source, target)
for what, call in {
    "token ids": lambda: printed(ids, ids),
    "token ids, after convert": lambda: static(ids, ids),
    "vectors of input_size": lambda: printed(vectors, vectors),
    "a width of 60": lambda: StubbedTransformer(45, 45, 60, 1),
    "n_head, as in its text": lambda: nn.Transformer(d_model=32, n_head=8),
    "a shorter target": lambda: printed(source, target[:, :4]),
    "static int8": lambda: static(source, target),
    "prepare_qat": lambda: ready_to_train(printed),
}.items():
    print(f"{what:26}", end="")
    errors.show_error(call, width=120)

# %% [markdown]
# Eight failures, and each is a friend: it names a place. In this order:
#
# - **Token ids**: there is no embedding. `nn.Transformer` wants vectors whose width is `d_model`, and complains about the last dimension. After `convert`, the stub comes first and complains as well: a stub belongs behind the embedding (unit 02, exercise 2.10.1).
# - **Vectors of `input_size`** fail in the same way, since nothing in the class leads from `input_size` to `hidden_size`.
# - **A width of 60** fails because 8 heads are written into the class. (The book's text calls their number `n_head`; the argument is `nhead`.)
# - **A shorter target** should be ordinary: a translation rarely has as many tokens as its source. But the message speaks of *batches*. Keep that in mind.
# - **Static int8**: `convert` succeeds, and the first input fails, at the first residual connection. A `+` has no scale for its sum (exercise 2.10.2).
# - **`prepare_qat`** refuses the output layer of `nn.MultiheadAttention`, as in unit 04, section 4.
#
# ### What it does not say
#
# A model that fails is easy to repair. What about the questions that raise no error? For them one needs a **probe**: change one thing of the input, and look whether the output moves. And a probe needs two **controls**: a model in which the answer is known to be yes, and one in which it is no.
# A probe that cannot say both says nothing.
#
# Two small tools. A deep copy keeps the model as it was; eval mode turns dropout off, which would move every output; and "the same" means *up to rounding*, because a sum in another order has other last digits.


# %%
@torch.no_grad()
def outputs(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """What a copy of `model` in eval mode answers: (batch, time, output_size)."""
    return copy.deepcopy(model).eval()(source, target)


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are further apart than rounding: by 1/1000 of the largest number."""
    return bool((a - b).abs().max() > 1e-3 * a.abs().max())


# %% [markdown]
# ### Exercise 6.1: six probes
# *Difficulty 3 of 5 · 50 minutes · 2 points*
#
# Write six short functions, two to six lines each. The first three ask a model what its output depends on. `source` and `target` are random vectors, (batch, time, width), for *every* model, and the output is (batch, time, output_size).
#
# | Probe | Question | In a sound model |
# |---|---|---|
# | `feels_the_batch` | Does the answer to the first pair depend on which other pairs are in the batch? | no |
# | `sees_the_future` | Does an output *before* the last one move when the last target vector changes? | no |
# | `knows_the_order` | Does anything move when the source is read from right to left? | yes |
# | `unused_sizes` | Which size arguments have no influence on any tensor of the model? | none |
# | `left_in_float` | Which matrices does `quantize_dynamic` leave in float? | none |
# | `refusals` | What do the three roads say: dynamic, static, QAT? | nothing |
#
# By hand, for `sees_the_future`: if a model's output at each position is the mean of all target vectors up to and including it, then for the targets (2, 4, 6) it answers (2, 3, 4). Replace 6 by 0: (2, 3, 2). Only the last output has moved, as it may. The mean over *all* targets gives (4, 4, 4), then (2, 2, 2): it sees the future.
#
# One warning about *how* to change a vector, in every probe. Many models begin with a LayerNorm, and a LayerNorm subtracts the mean and divides by the spread. To add 1 to all numbers of a vector, or to double them, is to change nothing. Put another vector in its place.
#
# Each probe gets other models than the book's, too: with the layout right or wrong, with and without masks and positions, ours, and a single Linear layer. None may be changed.


# %% nbgrader={"grade": false, "grade_id": "ex_6_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def feels_the_batch(model: nn.Module, source: Tensor, target: Tensor) -> bool:
    """Whether the answer to the first pair depends on the other pairs of the batch.

    Parameters
    ----------
    model : Module
        Called as ``model(source, target)``; it may be in training mode, and is not changed.
    source, target : Tensor, float32, (batch, time, width)
        At least three pairs; source and target have the same number of positions.
    """
    ### BEGIN SOLUTION
    alone = outputs(model, source[:1], target[:1])
    return differ(outputs(model, source, target)[:1], alone)
    ### END SOLUTION


def sees_the_future(model: nn.Module, source: Tensor, target: Tensor) -> bool:
    """Whether any output before the last position changes with the last target vector; arguments as above."""
    ### BEGIN SOLUTION
    other = torch.cat([target[:, :-1], target[:, :1]], dim=1)  # another vector in the last place
    before, after = outputs(model, source, target), outputs(model, source, other)
    return differ(before[:, :-1], after[:, :-1])
    ### END SOLUTION


def knows_the_order(model: nn.Module, source: Tensor, target: Tensor) -> bool:
    """Whether the output changes when the positions of the source are reversed; arguments as above."""
    ### BEGIN SOLUTION
    return differ(outputs(model, source, target), outputs(model, source.flip(1), target))
    ### END SOLUTION


def unused_sizes(build: Callable[..., nn.Module], sizes: dict[str, int]) -> list[str]:
    """Names of those size arguments that change neither name nor shape of any tensor in the state_dict.

    Parameters
    ----------
    build : callable
        ``build(**sizes)`` returns a freshly initialized model, with other random weights each time.
    sizes : dict of str to int
        Every value may be doubled; other values may be refused.

    Returns
    -------
    list of str
        In the order of `sizes`.

    Example
    -------
    >>> unused_sizes(lambda width, depth: nn.Linear(width, 3), {"width": 4, "depth": 2})
    ['depth']
    """

    ### BEGIN SOLUTION
    def shapes(**chosen: int) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in build(**chosen).state_dict().items()}

    usual = shapes(**sizes)
    return [name for name, size in sizes.items() if shapes(**{**sizes, name: 2 * size}) == usual]
    ### END SOLUTION


def left_in_float(model: nn.Module) -> list[str]:
    """Names of the float parameters with at least two dimensions that remain after ``int8.dynamic_int8(model)``."""
    ### BEGIN SOLUTION
    quantized = int8.dynamic_int8(model)
    return [name for name, parameter in quantized.named_parameters() if parameter.dim() >= 2]
    ### END SOLUTION


def refusals(model: nn.Module, source: Tensor, target: Tensor) -> dict[str, str]:
    """What stops each of the three roads to int8.

    Returns
    -------
    dict of str to str
        "dynamic": quantize, then run in eval mode. "static": the engine's default qconfig, prepare,
        calibrate with (source, target), convert, run; eval mode. "qat": the engine's default qat qconfig,
        ``prepare_qat`` in training mode, run. Each value is the text of the exception, and "" if there was none.
    """
    ### BEGIN SOLUTION
    backend = torch.backends.quantized.engine

    def dynamic() -> None:
        outputs(int8.dynamic_int8(model), source, target)

    def static() -> None:
        trial = copy.deepcopy(model).eval()
        trial.qconfig = tq.get_default_qconfig(backend)
        trial = tq.prepare(trial)
        trial(source, target)
        outputs(tq.convert(trial), source, target)

    def qat() -> None:
        trial = copy.deepcopy(model).train()
        trial.qconfig = tq.get_default_qat_qconfig(backend)
        tq.prepare_qat(trial)(source, target)

    said = {}
    for road in (dynamic, static, qat):
        try:
            road()
            said[road.__name__] = ""
        except Exception as error:
            said[road.__name__] = str(error)
    return said
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_6_1_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 6.1: run this cell.
import copy
import warnings
from collections.abc import Callable
from typing import ClassVar
from unittest import mock

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from helpers import checks, witness
from helpers.models import sinusoidal_positions
from helpers.seq2seq import DecoderBlock, EncoderBlock, Seq2SeqConfig


@checks.isolated
def check_ex_6_1() -> None:
    class Patient(nn.Module):
        """PyTorch's encoder-decoder between stubs, with faults to choose."""

        def __init__(
            self, width: int = 16, layout: str = "batch", mask: int | None = None, places: str = "", pre: bool = False
        ) -> None:
            super().__init__()
            self.mask, self.places = mask, places  # mask: how many positions ahead one may look; None: all
            self.i, self.o = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
            self.core = nn.Transformer(
                width, 8, 1, 1, 2 * width, batch_first=layout == "batch", norm_first=pre, dropout=0.3
            )
            self.last = nn.Linear(width, 7)

        def placed(self, x: torch.Tensor, side: str) -> torch.Tensor:
            axis = int(self.core.batch_first)
            table = 2 * sinusoidal_positions(x.shape[axis], x.shape[-1])
            return x + (table if axis else table[:, None]) if side in self.places else x

        def forward(self, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            length, hidden = t.shape[int(self.core.batch_first)], None
            if self.mask is not None:
                hidden = torch.ones(length, length, dtype=torch.bool).triu(1 + self.mask)  # True: may not look
            s, t = self.placed(self.i(s), "s"), self.placed(self.i(t), "t")
            return self.o(self.last(self.core(s, t, tgt_mask=hidden)))

    class Sound(nn.Module):
        """Our blocks on vectors, with positions for the source: no fault at all."""

        def __init__(self, width: int = 16) -> None:
            super().__init__()
            config = Seq2SeqConfig(5, 12, 12, d_model=width, n_heads=2, n_layers=1, d_ff=2 * width)
            self.reader, self.writer = EncoderBlock(config), DecoderBlock(config)
            self.i, self.j = torch.ao.quantization.QuantStub(), torch.ao.quantization.QuantStub()
            self.last, self.o = nn.Linear(width, 7), torch.ao.quantization.DeQuantStub()
            self.register_buffer("table", 2 * sinusoidal_positions(12, width))
            for part in self.modules():
                if isinstance(part, nn.LayerNorm):
                    part.qconfig = None  # it works on the float residual stream

        def forward(self, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            may = torch.ones(t.shape[1], t.shape[1], dtype=torch.bool).tril()
            every = torch.ones(1, 1, 1, s.shape[1], dtype=torch.bool)
            memory = self.i(self.reader(s + self.table[: s.shape[1]], every))
            return self.o(self.last(self.j(self.writer(t, memory, may, every))))

    class Bare(nn.Module):
        """Two Linear layers and no stubs: prepare and convert pass, the int8 layer is then given a float tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 7)

        def forward(self, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(s) + t)

    class Plain(nn.Module):
        """One layer on the mean source and each target vector; what else it feels shows only when it runs."""

        def __init__(self, fault: Callable = lambda s, t: 0, width: int = 16) -> None:
            super().__init__()
            self.line, self.fault = nn.Linear(width, 7), fault

        def forward(self, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.line(s.mean(dim=1, keepdim=True) + t + self.fault(s, t))

    class Teller(nn.Module):
        """It stops after prepare_qat and after convert, tells what its stub has become, and notes every call."""

        calls: ClassVar[list[tuple[str, bool, float]]] = []  # what it was, training mode or not, a sum of its inputs

        def __init__(self) -> None:
            super().__init__()
            self.i, self.o = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
            self.line = nn.Linear(16, 7)

        def stage(self) -> str:
            if isinstance(self.line, nnqd.Linear):
                return "dynamic"
            if isinstance(self.line, nnq.Linear):
                return "static"
            if hasattr(self.line, "weight_fake_quant"):
                return "qat"
            return "observed" if hasattr(self.line, "activation_post_process") else "float"

        def forward(self, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            stage = self.stage()
            Teller.calls.append((stage, self.training, (s - 2 * t).sum().item()))
            y = self.i((s + t) ** 3 * (3 if self.training else 1))
            if stage == "qat":
                raise RuntimeError(words("ran", self.i.activation_post_process))
            if y.is_quantized:
                raise RuntimeError(f"scale {y.q_scale():.4g}{LAST_WORDS}")
            return self.o(self.line(y))

    LAST_WORDS = "\nand it says so at length, " + "again and " * 30 + "again."

    def words(verb: str, fake: nn.Module) -> str:
        return f"{verb} {type(fake).__name__} from {fake.quant_min} to {fake.quant_max}{LAST_WORDS}"

    def told(s: torch.Tensor, t: torch.Tensor) -> dict[str, str]:
        """What `Teller` says on each road with this engine's default settings."""
        library, name = torch.ao.quantization, torch.backends.quantized.engine
        observer = library.get_default_qconfig(name).activation()
        observer((s + t) ** 3)
        trained = library.get_default_qat_qconfig(name).activation()
        scale = observer.calculate_qparams()[0].item()
        return {"dynamic": "", "static": f"scale {scale:.4g}{LAST_WORDS}", "qat": words("ran", trained)}

    def heard_from(model: nn.Module, s: torch.Tensor, t: torch.Tensor, where: str = "") -> None:
        """`refusals` of the Teller: each road must have been gone, in the right mode, and its words be reported."""
        Teller.calls.clear()
        said, wanted, given = ask(refusals, model, s, t), told(s, t), (s - 2 * t).sum().item()
        open_roads(said)

        def calls(stage: str, training: bool | None = None) -> list[float]:
            return [x for what, mode, x in Teller.calls if what == stage and training in (None, mode)]

        assert Teller.calls, (
            "`refusals` says something, and has called no copy of this model: each road ends with a run."
        )
        assert calls("dynamic"), "refusals: the dynamic road ends before a run. Quantize, then call what you have got."
        assert calls("dynamic", False), (
            "refusals: the dynamic road runs in training mode: it should run in eval mode only."
        )
        assert calls("static") or calls("observed"), (
            "refusals: on the static road nothing is prepared. Without a qconfig, prepare and convert leave the model as it is."
        )
        assert calls("observed"), (
            "refusals: the static road converts what has seen nothing: between prepare and convert, calibrate it with (source, target)."
        )
        assert any(abs(x - given) < 1e-3 for x in calls("observed")), (
            "refusals: the static road calibrates with other numbers than it was given: calibrate it with (source, target)."
        )
        assert calls("static"), (
            "refusals: the static road ends with convert, and convert succeeds: the failure comes with the first input after it."
        )
        assert calls("observed", False) and calls("static", False), (
            "refusals: the static road runs in training mode: give it a copy in eval mode."
        )
        assert calls("qat") or not calls("float", True), (
            "refusals: on the road to training nothing is prepared: give the copy the engine's default qat qconfig."
        )
        assert calls("qat") or said["qat"], (
            "refusals: prepare_qat accepts this model, and then nothing happens: run it, once, in training mode."
        )
        assert calls("qat"), (
            f"refusals: prepare_qat accepts this model, and your probe reports: {said['qat'][:150]} (A copy in training mode?)"
        )
        assert calls("qat", True), "refusals: the road to training runs in eval mode: run it in training mode."
        for road, settings in {"static": "qconfig", "qat": "qat qconfig"}.items():
            cut = len(said[road]) > 8 and wanted[road].startswith(said[road]) and said[road] != wanted[road]
            assert not cut, (
                f"refusals: on the {road} road you report the beginning of what the exception says: report all of it, `str(error)`."
            )
            assert wanted[road] not in said[road] or said[road] == wanted[road], (
                f"refusals: on the {road} road you report more than the text of the exception: `str(error)`, neither its type nor anything else."
            )
            assert said[road] == wanted[road], (
                f'refusals: {where}on the {road} road this model tells what its stub has become, "{wanted[road].splitlines()[0]}", and your probe reports "{said[road][:60].splitlines()[0]}": give the copy the default {settings} of the engine that is switched on, torch.backends.quantized.engine.'
            )

    def under_another_engine(model: nn.Module, s: torch.Tensor, t: torch.Tensor) -> None:
        """The same where another engine is switched on, if this computer has one whose settings differ."""
        before, usual = torch.backends.quantized.engine, told(s, t)
        names = getattr(refusals, "__globals__", {})
        for other in sorted(torch.backends.quantized.supported_engines, key=lambda name: name == "qnnpack"):
            torch.backends.quantized.engine = other
            try:
                if other in ("none", before) or told(s, t) == usual:
                    continue
                # The notebook's own name for the engine follows, in case your function asks it.
                follows = {"engine": other} if isinstance(names.get("engine"), str) else {}
                with mock.patch.dict(names, follows):
                    heard_from(model, s, t, f"with the engine {other} switched on, ")
                return
            finally:
                torch.backends.quantized.engine = before

    def only(position: int, x: torch.Tensor) -> torch.Tensor:
        """`x` at one position, 0 at all others."""
        return x * (torch.arange(x.shape[-2]) == position % x.shape[-2])[:, None]

    class Sized(nn.Module):
        """Of its six sizes some are only remembered."""

        def __init__(
            self, a: int, b: int, c: int, d: int, e: int, f: int, used: str, usual: dict[str, int] | None = None
        ) -> None:
            super().__init__()
            sizes = {"a": a, "b": b, "c": c, "d": d, "e": e, "f": f}
            usual = usual or sizes
            refused = [name for name, size in sizes.items() if size not in (usual[name], 2 * usual[name])]
            assert not refused, f"{refused[0]} = {sizes[refused[0]]} does not go together with the others"
            self.a, self.b, self.c, self.d, self.e, self.f = a, b, c, d, e, f
            get = lambda name: getattr(self, name) if name in used else 8  # noqa: E731
            self.first = nn.MultiheadAttention(get("a"), 4)
            self.rest = nn.ModuleList(nn.Linear(get("c"), 3) for _ in range(get("b")))
            self.register_buffer("table", torch.zeros(get("d"), 2))
            self.split = nn.Parameter(torch.zeros(get("e"), 48 // get("e")))
            self.register_buffer(f"upto_{get('f')}", torch.zeros(1))

    def mixed() -> nn.Module:
        """An embedding, a Linear, a norm, a parameter of three dimensions, a buffer; a part in training mode, one frozen."""
        model = nn.ModuleDict({"table": nn.Embedding(5, 4), "line": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}).eval()
        model.grid = nn.Parameter(torch.zeros(2, 2, 2))
        model.register_buffer("places", torch.zeros(3, 4))
        model["line"].train().weight.requires_grad_(False)
        return model

    def quietly(make: Callable[[], object]) -> object:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            return make()

    def patient(seed: int, **faults: object) -> nn.Module:
        torch.manual_seed(seed)
        model = quietly(lambda: Patient(**faults)).train(seed % 2 == 0)
        model.last.bias.requires_grad_(seed % 3 != 0)  # in some of them it is frozen
        return model

    def pairs(seed: int, batch: int, time: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        return 1.5 * torch.randn(batch, time, width) + 0.2, 1.5 * torch.randn(batch, time, width) - 0.1

    def ask(probe: Callable, model: nn.Module, *inputs: torch.Tensor) -> object:
        """What the probe says; it must leave the model, its inputs and the fast path as they were."""
        kept, fast = copy.deepcopy(model), torch.backends.mha.get_fastpath_enabled()
        before, engine_before = [x.clone() for x in inputs], torch.backends.quantized.engine
        said = quietly(lambda: probe(model, *inputs))
        engine_after, torch.backends.quantized.engine = torch.backends.quantized.engine, engine_before
        switch = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(fast)
        changed = witness.unchanged(kept, model)
        assert changed == "", f"{probe.__name__} changed the model it was given ({changed}): work on a deep copy."
        assert all(map(torch.equal, before, inputs)), (
            f"{probe.__name__} changed the source or the target it was given: build a new tensor."
        )
        assert switch == fast, f"{probe.__name__} leaves PyTorch's fast path switched for the whole process."
        assert engine_after == engine_before, f"{probe.__name__} leaves another int8 engine switched on."
        return said

    def expect(probe: Callable, model: nn.Module, inputs: tuple, wanted: bool, mistake: str) -> None:
        said = ask(probe, model, *inputs)
        assert isinstance(said, bool), f"{probe.__name__} should return True or False, not {type(said).__name__}."
        assert said == wanted, f"{probe.__name__} says {said}, and {wanted} is right: {mistake}"

    def open_roads(said: object) -> list[str]:
        assert isinstance(said, dict) and set(said) == {"dynamic", "static", "qat"}, (
            'refusals should return a dict with the keys "dynamic", "static" and "qat".'
        )
        assert all(isinstance(text, str) for text in said.values()), 'refusals: each value is a text, "" for no error.'
        return [road for road, text in said.items() if not text]

    def sizes_left_out(sizes: dict[str, int], used: str) -> tuple[object, list[str]]:
        """What the learner's function says, and what is right."""
        given = dict(sizes)
        try:
            said = unused_sizes(lambda **chosen: Sized(**chosen, used=used, usual=sizes), given)
        except AssertionError as error:
            raise AssertionError(
                f"unused_sizes asks for a size that the model refuses ({error}): double a size, and leave the others."
            ) from None
        assert given == sizes, "unused_sizes changed the dict of sizes it was given: build another dict."
        return said, [name for name in sizes if name not in used]

    matrices = [
        f"core.{part}.{name}"
        for part in ("encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.multihead_attn")
        for name in ("in_proj_weight", "out_proj.weight")
    ]

    def dependences() -> list[tuple[Callable, Callable, str]]:
        return [
            (
                feels_the_batch,
                lambda s, t: t.mean(dim=0),
                "The targets of other pairs count, not their sources: replace, or leave out, both.",
            ),
            (
                feels_the_batch,
                lambda s, t: only(-1, s.mean(dim=0)),
                "Only its last output feels the other pairs: compare all positions.",
            ),
            (
                feels_the_batch,
                lambda s, t: t[:2].mean(dim=0),
                "Only the second pair touches the first: replace, or leave out, all others.",
            ),
            (
                feels_the_batch,
                lambda s, t: t[-1:],
                "Only the last pair touches the others: replace, or leave out, all of them.",
            ),
            (
                sees_the_future,
                lambda s, t: only(0, t.flip(1)),
                "Its first output feels the last target: compare *all* outputs before the last.",
            ),
            (
                feels_the_batch,
                lambda s, t: nn.functional.layer_norm(s + t, s.shape[-1:])[1:].sum(dim=0),
                "It feels the others through a LayerNorm, which takes away what you add to all numbers of a vector, or multiply them with: put other pairs in their place, or leave them out.",
            ),
            (
                sees_the_future,
                lambda s, t: only(0, nn.functional.layer_norm(t.flip(1), t.shape[-1:])),
                "It feels the last target through a LayerNorm, which takes away what you add to all numbers of a vector, or multiply them with: put another vector in its place.",
            ),
            (knows_the_order, lambda s, t: only(0, s), "Only its first output feels the order: compare all outputs."),
        ]

    with checks.check(
        "6.1", "your six probes tell faulty models from sound ones, on the book's class and on the controls"
    ):
        inputs = pairs(610, 3, 6)
        alone = "a model that takes the batch first answers every pair alone. Look at the answer to the first pair only, and compare up to rounding (`differ`)."
        expect(feels_the_batch, patient(611), inputs, False, alone)
        expect(feels_the_batch, patient(612, places="st", mask=0), inputs, False, alone)
        mixes = "this model takes time first, so it mixes the pairs of the batch."
        expect(
            feels_the_batch,
            patient(613, layout="time"),
            inputs,
            True,
            f"{mixes} Another order of the other pairs is not enough, since attention does not mind the order: replace them, or leave them out.",
        )
        expect(
            feels_the_batch,
            patient(614, layout="time", mask=0),
            inputs,
            True,
            f"{mixes} It has a causal mask, so its first answer cannot look at later *targets*, but it looks at all sources: replace the other sources, too.",
        )

        last = "here only the last output moves, as it may. Leave the last one out when you compare; and change the last position (dimension 1), not the last pair (dimension 0)."
        expect(sees_the_future, patient(615, mask=0), inputs, False, last)
        expect(sees_the_future, patient(616, mask=0, places="st", pre=True), inputs, False, last)
        expect(
            sees_the_future,
            patient(617, places="st"),
            inputs,
            True,
            "this decoder has no mask. Change the last target vector, and compare the outputs before the last.",
        )
        expect(
            sees_the_future,
            patient(618, mask=1),
            inputs,
            True,
            "this mask is one position too generous, so only the last output but one sees the last target: compare *all* outputs before the last, not only the first.",
        )
        expect(
            sees_the_future,
            patient(619, pre=True),
            inputs,
            True,
            "this decoder has no mask, but it begins with a LayerNorm, which takes away what you add to all numbers of a vector: put another vector in its place.",
        )

        expect(
            knows_the_order,
            patient(620),
            inputs,
            False,
            "this model has no positions. Reverse time (dimension 1), not the batch (dimension 0); and compare up to rounding, because a sum in another order has other last digits.",
        )
        expect(
            knows_the_order,
            patient(621, mask=0, places="t"),
            inputs,
            False,
            "only the target of this model has positions, so it cannot know the order of the source: reverse the source, not the target.",
        )
        for model in (patient(622, places="s"), Sound().eval()):
            expect(knows_the_order, model, inputs, True, "this model adds positions to its source. Reverse its time.")

        plainly = (
            "this model is one Linear layer, so no attribute and no type tells what it feels: only its outputs do."
        )
        many = pairs(627, 5, 7)
        views = tuple(x.mT.contiguous().mT for x in many)  # the same numbers, not in one piece
        for probe in (feels_the_batch, sees_the_future, knows_the_order):
            expect(
                probe, Plain(), views, False, f"{plainly} Each output is made of its own target and the mean source."
            )
        for probe, fault, mistake in dependences():
            expect(probe, Plain(fault), many, True, f"{plainly} {mistake}")

        said = unused_sizes(lambda width, depth: nn.Linear(width, 3), {"width": 4, "depth": 2})
        assert isinstance(said, list), f"unused_sizes should return a list of names, not {type(said).__name__}."
        assert said != [], (
            "unused_sizes returns [] for an nn.Linear that depends on one of two sizes: numbers differ between any two births of a model, because they are random. Compare names and shapes."
        )
        assert said == ["depth"], (
            f"unused_sizes returns {said} for an nn.Linear(width, 3), and ['depth'] is right: whether a module keeps an attribute of that name says nothing."
        )
        for used in ("ac", "abcdef", "bdf", "bde", ""):
            said, wanted = sizes_left_out({"f": 7, "b": 2, "a": 8, "e": 3, "c": 5, "d": 6}, used)
            assert said == wanted or sorted(said) != sorted(wanted), (
                f"unused_sizes returns {said}: the right names, but not in the order of `sizes`, {wanted}."
            )
            assert said != [] or wanted == [], (
                f"unused_sizes returns [], and {wanted} is right: to keep a size in an attribute is not to use it. Compare names and shapes of the state_dict."
            )
            assert said == wanted, (
                f"unused_sizes returns {said}, and {wanted} is right for sizes that go into an attention, a number of layers, a Linear, a buffer, two dimensions with a fixed product, and a name: compare names and shapes of the *whole* state_dict."
            )

        said = ask(left_in_float, patient(624))
        assert isinstance(said, list), "left_in_float should return a list of names."
        assert not any("in_proj" in name for name in matrices if name not in said), (
            "left_in_float misses in_proj_weight: it is a parameter of the attention itself and belongs to no Linear layer, so list parameters, not modules."
        )
        assert set(matrices) <= set(said), (
            "left_in_float misses out_proj.weight: its layer is a subclass of nn.Linear that quantize_dynamic passes over."
        )
        extra = sorted(set(said) - set(matrices))
        assert not extra, (
            f"left_in_float lists {extra[0]}, which is int8 or no matrix: list what remains *after* quantization, with two dimensions or more."
        )
        grown = mixed()
        said = ask(left_in_float, grown)
        assert "grid" in said, (
            "left_in_float misses a parameter of three dimensions: with at least two dimensions it counts."
        )
        assert "table.weight" in said, (
            "left_in_float misses the matrix of an embedding, which quantize_dynamic leaves in float: ask all parameters, of whatever layer."
        )
        assert sorted(said) == ["grid", "table.weight"], (
            f"left_in_float returns {said}, and grid and table.weight are right: a buffer is no parameter, and a norm is no matrix."
        )
        assert ask(left_in_float, Sound().eval()) == [], (
            "quantize_dynamic reaches all matrices of our blocks: the list is empty. (A buffer is no parameter.)"
        )

        heard_from(Teller(), *inputs)
        under_another_engine(Teller(), *pairs(628, 4, 5))
        said = ask(refusals, Sound().eval(), *inputs)
        open_roads(said)
        assert not said["qat"], (
            f"refusals: our blocks can be trained for quantization, and your probe reports: {said['qat'][:150]} (A copy in training mode?)"
        )
        assert not said["static"] and not said["dynamic"], (
            f"refusals: our blocks pass all three roads, and your probe reports {said}."
        )
        said = ask(refusals, patient(624, layout="time"), *inputs)
        assert "static" not in open_roads(said), (
            "refusals: static int8 of the book's class fails, and your probe reports nothing. Without a qconfig nothing is prepared; and convert succeeds: the failure comes with the first input after it."
        )
        assert "aten::add.out" in said["static"], (
            f"refusals: static int8 should stop at a `+` of quantized tensors, and yours stops with: {said['static'][:150]}"
        )
        assert "NonDynamicallyQuantizableLinear" in said["qat"], (
            "refusals: prepare_qat refuses a layer of the type NonDynamicallyQuantizableLinear, and your probe does not say so: give the copy a qat qconfig, and training mode."
        )
        assert "dynamic" in open_roads(said), (
            f"refusals: with time first the dynamic road is open, and your probe reports: {said['dynamic'][:150]}"
        )
        said = ask(refusals, patient(626), *inputs)
        assert "no attribute 'device'" in said["dynamic"], (
            "refusals: with the batch first, PyTorch's fast path stops the dynamic road, and your probe does not see it: it is taken in eval mode only."
        )
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        for seed, batch, time, width in [(6101, 4, 5, 16), (6102, 3, 8, 32)]:
            inputs = pairs(seed, batch, time, width)
            for turn, faults in enumerate(
                [{"mask": 0}, {"pre": True}, {"places": "s", "mask": 1}, {"places": "t"}, {"places": "st", "mask": 0}]
            ):
                ill = patient(seed + turn, width=width, **faults)
                for probe, wanted in [
                    (feels_the_batch, False),
                    (sees_the_future, faults.get("mask") != 0),
                    (knows_the_order, "s" in faults.get("places", "")),
                ]:
                    said = ask(probe, ill, *inputs)
                    assert said is wanted, f"{probe.__name__} says {said} of a model with {faults}."
            for turn, faults in enumerate([{}, {"mask": 0}, {"places": "st", "pre": True}]):
                swapped = patient(seed + 10 + turn, width=width, layout="time", **faults)
                assert ask(feels_the_batch, swapped, *inputs) is True, f"a model with time first and {faults}."
            healthy = Sound(width).train()
            answers = [ask(probe, healthy, *inputs) for probe in (feels_the_batch, sees_the_future, knows_the_order)]
            assert answers == [False, False, True], f"the probes say {answers} of our blocks."
            assert sorted(ask(left_in_float, patient(seed, width=width, layout="time"))) == sorted(matrices), (
                "left in float"
            )
            for probe in (feels_the_batch, sees_the_future, knows_the_order):
                assert ask(probe, Plain(width=width), *inputs) is False, (
                    f"{probe.__name__}: one Linear layer, no fault."
                )
                for asked_of, fault, mistake in [
                    *dependences(),
                    (
                        feels_the_batch,
                        lambda s, t: only(1, s[1:2].sum(dim=0)),
                        "Its second output feels the second source.",
                    ),
                    (
                        sees_the_future,
                        lambda s, t: only(-2, t.roll(-1, 1)),
                        "The last output but one feels the last target.",
                    ),
                    (knows_the_order, lambda s, t: only(-1, s.flip(1)), "The last output feels the first source."),
                ]:
                    if asked_of is probe:
                        assert ask(probe, Plain(fault, width), *inputs) is True, f"{probe.__name__}: {mistake}"
            assert not ask(left_in_float, healthy), "nothing of our blocks stays in float."
        assert open_roads(ask(refusals, healthy, *inputs)) == ["dynamic", "static", "qat"], (
            "our blocks, in training mode."
        )
        for layout, texts in {
            "time": (None, "aten::add.out", "NonDynamicallyQuantizableLinear"),
            "batch": ("no attribute 'device'", "in_proj_bias", "NonDynamicallyQuantizableLinear"),
        }.items():
            said = ask(refusals, patient(seed + 20, width=width, layout=layout), *inputs)
            for road, text in zip(("dynamic", "static", "qat"), texts, strict=True):
                assert (text in said[road]) if text else said[road] == "", f"{road}, {layout} first: {said[road][:200]}"
        bare = ask(refusals, Bare(), *pairs(6103, 3, 4))
        assert not bare["dynamic"] and not bare["qat"] and "quantized::linear" in bare["static"], f"no stubs: {bare}"
        for training in (True, False):
            heard_from(Teller().train(training), *pairs(6104, 4, 5))
        under_another_engine(Teller(), *pairs(6105, 3, 6))
        assert sorted(ask(left_in_float, mixed())) == ["grid", "table.weight"], (
            "an embedding and a bare parameter stay float; a buffer is no parameter."
        )
        for used in ("", *"abcdef", "abc", "bcdef", "acdef"):
            said, wanted = sizes_left_out({"d": 3, "f": 2, "c": 9, "b": 1, "e": 6, "a": 12}, used)
            assert said == wanted, f"unused_sizes returns {said}, and {wanted} is right."
    ### END HIDDEN TESTS


check_ex_6_1()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Each of the first three is: the output as it is, the output after one change, and `differ`. Think about *which part* of the two outputs may be compared. For the last three, you only carry out what the docstring says, on a copy.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `feels_the_batch`: give the model the first pair alone, `source[:1]`, and compare with the first row of the whole. `sees_the_future`: `torch.cat` all target vectors but the last with some other vector; compare `[:, :-1]`. `knows_the_order`: `source.flip(1)`. `unused_sizes`: a dict of names and shapes from `state_dict()`, once for the usual sizes
# and once with each size doubled. `refusals`: three inner functions, a `try` around each; the static one must *run* what `convert` returns.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `differ(outputs(model, source, target)[:1], outputs(model, …, …))`; `torch.cat([target[:, :-1], target[:, …]], dim=1)`; `[name for name, parameter in ….named_parameters() if parameter.dim() …]`;
# `trial = copy.deepcopy(model).eval()`, `trial.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)`, `tq.prepare`, one call, `tq.convert`, `outputs(…)`. For QAT: `.train()`, `tq.get_default_qat_qconfig`, `tq.prepare_qat`, one call. In `except Exception as error`: `str(error)`.
# </details>

# %% [markdown]
# ### In which order?
#
# Now let your probes speak. Below, the same model is cured step by step: first its layout (`batch_first=True`), then a causal mask, then positions. (Until your probes are written, the table says so.)
#
# *Predict:* the first row asks three things of a model that takes time first. Which of its three answers will mislead?


# %%
class PartlyCured(nn.Module):
    """PyTorch's encoder-decoder between stubs, with up to three of its faults cured."""

    def __init__(self, batch_first: bool = False, causal: bool = False, positions: bool = False) -> None:
        super().__init__()
        self.causal, self.positions = causal, positions
        self.enter, self.leave = tq.QuantStub(), tq.DeQuantStub()
        self.body = nn.Transformer(32, 8, 1, 1, 64, batch_first=batch_first)
        self.head = nn.Linear(32, 45)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        if self.positions:  # here the batch comes first
            source, target = (x + sinusoidal_positions(x.shape[1], 32) for x in (source, target))
        may_not_look = ~causal_mask(target.shape[1]) if self.causal else None  # PyTorch's True means: may not
        return self.leave(self.head(self.body(self.enter(source), self.enter(target), tgt_mask=may_not_look)))


def partly_cured(**cures: bool) -> nn.Module:
    torch.manual_seed(63)
    return PartlyCured(**cures).eval()


def no_answer(error: Exception) -> str:
    return "(exercise 6.1)" if "is not solved yet" in str(error) else f"(your probe stops: {type(error).__name__})"


def answer_of(probe: Callable[..., bool], *inputs: object) -> str:
    try:
        return "yes" if probe(*inputs) else "no"
    except Exception as error:
        return no_answer(error)


steps = {
    "as printed": partly_cured(),
    "+ the batch first": partly_cured(batch_first=True),
    "+ a causal mask": partly_cured(batch_first=True, causal=True),
    "+ positions": partly_cured(batch_first=True, causal=True, positions=True),
}
tables.show(
    [
        {
            "model": name,
            "feels the batch": answer_of(feels_the_batch, model, source, target),
            "sees the future": answer_of(sees_the_future, model, source, target),
            "knows the order": answer_of(knows_the_order, model, source, target),
        }
        for name, model in steps.items()
    ]
)

# %% [markdown]
# Look at the first row. The model mixes the pairs of a batch, but it seems not to see the future, and it seems to know the order. Both are illusions. The model takes the *first* dimension for time and the second for the batch, so what you call "the last target position" is, to the model, another text; and what you call "the source read from
# right to left" is a batch in which every target has got a wrong source. Only when the layout is right do the other two probes ask what they were written to ask, and then both answers are bad. So the order of a diagnosis matters: **first the axes, then everything else.** (And the message about "the batch number" for a shorter
# target was true: it compared the two lengths, because it took them for batches.)
#
# The same as a picture, with other means: for each output (row), the gradient tells how strongly it feels each target vector (column). Two pairs, a and b, with five positions each:


# %%
def influence(model: nn.Module, source: Tensor, target: Tensor) -> np.ndarray:
    """Size of the gradient of each output (row) by each target vector (column), the largest of a row is 1; nan for 0."""
    target = target.clone().requires_grad_()
    weights = torch.randn(45, generator=torch.Generator().manual_seed(64))
    felt = [
        torch.autograd.grad(number, target, retain_graph=True)[0].norm(dim=-1).flatten()
        for number in (model(source, target) @ weights).flatten()
    ]
    table = torch.stack(felt)  # (pair and position of the output, pair and position of the target)
    table = table / table.amax(dim=1, keepdim=True)
    return table.masked_fill(table == 0, math.nan).numpy()


names = [f"{pair}{position}" for pair in "ab" for position in range(1, 6)]
fig, axes = plots.figure(columns=3, width=10.5, height=3.6)
for ax, (name, model) in zip(axes, steps.items(), strict=False):  # positions change nothing here
    plots.heat_map(ax, influence(model, source[:2, :5], target[:2, :5]), names, names, name)
    ax.set_xlabel("target vector")
axes[0].set_ylabel("output")
plots.show(
    fig,
    "What each output feels of the target; white is nothing at all. As printed, output a3 feels a3 and b3, of two texts that have nothing to do with each other. With the batch first, each text is alone, but every output sees the whole of it. With a mask, it sees what has been written so far.",
    alt="Three tables of ten outputs by ten target vectors. The first has three diagonal stripes: each output feels the same position of both texts. The second has two filled squares on the diagonal. The third has two filled lower triangles.",
)

# %% [markdown]
# One mask is still missing, even with all three cures. Texts of a batch differ in length, and the shorter ones are filled up. What is filled in should not count:

# %%
padded = torch.cat([source, torch.zeros(3, 4, 32)], dim=1)  # four positions of padding behind each source
unpadded, filled = (outputs(steps["+ positions"], text, target) for text in (source, padded))
print(
    f"Four empty positions move the output by up to {(filled - unpadded).abs().max() / unpadded.abs().max():.0%} of its largest number."
)

# %% [markdown]
# ### The roads to int8, and what stays behind
#
# Curing the layout has a price. Your last three probes, on the class as printed, with the first cure, and with all three:

# %%
heard = {}
for name in ("as printed", "+ the batch first", "+ positions"):
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        try:
            heard[name] = {road: str(text) for road, text in refusals(steps[name], source, target).items()}
        except Exception as error:
            heard[name] = dict.fromkeys(("dynamic", "static", "qat"), no_answer(error))
short = lambda text: text.split(". ")[0][:95].replace("|", " ") or "(nothing: it runs)"  # noqa: E731
tables.show(
    [
        {"road": road} | {name: short(said[road]) for name, said in heard.items()}
        for road in ("dynamic", "static", "qat")
    ]
)
print("Sizes without influence: ", end="")
arguments = {"input_size": 45, "output_size": 45, "hidden_size": 32, "num_layers": 1}
errors.show_result(lambda: unused_sizes(StubbedTransformer, arguments))
print("What quantize_dynamic leaves in float: ", end="")
errors.show_result(lambda: ", ".join(name.removeprefix("body.") for name in left_in_float(printed)))

# %% [markdown]
# - **As printed**, of the three roads only the dynamic one is open, and on it all matrices of the attention stay in float.
# - **With the batch first**, the fast path of eval mode (exercise 2.10.4) closes both roads: it asks an int8 layer for the device of its weight, and the attention that `prepare` has put in for a parameter which it does not have.
# - **With mask and positions**, `nn.Transformer` notices that the mask is causal and says so in a second argument; PyTorch's quantizable attention takes a mask or that hint, not both.
#
# `prepare_qat` refuses in any case. Each cure opens another wound, because the parts of `nn.Transformer` were not made for quantizers.
#
# ### One stub, one scale
#
# One fault is left that no probe above can see, because it shows only in numbers. The class sends source and target through *the same* stub. A stub becomes one scale and one zero point. If the source is loud and the target quiet, the target pays. *Predict:* below, the source is 80 times as loud as the target. How large is the target's error through the one stub?


# %%
def share_lost(stub: nn.Module, x: Tensor) -> str:
    """Relative error of a tensor that goes through a converted stub."""
    return f"{((stub(x).dequantize() - x).norm() / x.norm()).item():.1%}"


loud, quiet = 8 * source, 0.1 * target
shared = converted(printed, loud, quiet).enter
tables.show(
    [
        {"through": "one stub for both", "source": share_lost(shared, loud), "target": share_lost(shared, quiet)},
        {
            "through": "a stub for each",
            "source": share_lost(converted(printed, loud, loud).enter, loud),
            "target": share_lost(converted(printed, quiet, quiet).enter, quiet),
        },
    ]
)

# %% [markdown]
# ### The diagnosis
#
# | What breaks | When you notice | The cure | Where |
# |---|---|---|---|
# | nothing is quantized before `prepare` and `convert`; stubs are only marks | never, unless you look at the types | look at the types | unit 02, section 5 |
# | stubs, and the whole model, on token ids | first call | an embedding, the stub behind it | section 3 |
# | `input_size` is never used | first call with such vectors; else never | embeddings lead from ids to the width | section 3 |
# | 8 heads, whatever the width | some widths fail | heads as an argument | section 2 |
# | the first dimension is time | only if source and target differ in length; else **never**: texts of a batch are mixed | batch first, and a probe | section 2 |
# | the decoder sees the future | **never** in training, where all targets are there; perhaps when text is generated one token at a time | a causal mask | section 2 |
# | padding counts as text | **never** | a mask of the source | sections 2 and 3 |
# | the source has no order | **never** | positions | section 3 |
# | one stub, one scale for two inputs | **never**: the quieter one is rounded away | a stub for each tensor with a range of its own | section 3 |
# | `+` on quantized tensors | first call after `convert` | `FloatFunctional`, or a float residual stream | section 2; unit 04, section 7 |
# | all attention stays float in `quantize_dynamic` | **never**, unless you list what is left | four Linear layers in place of `nn.MultiheadAttention` | section 2; unit 04, section 5 |
# | the fast path | first call in eval mode with the batch first | our own blocks have none | section 2 |
# | the quantizable attention refuses a causal mask | calibration | mask in float, in an attention of our own | section 2; unit 04, section 5 |
# | `prepare_qat` refuses | at once | plain `nn.Linear` layers | section 2 |
#
# Read the second column once more. What says "first call", you will repair. What says "never", you will ship, unless you ask.
#
# Most cures in the third column lead to the same place: an encoder-decoder from our own attention. We build it now.


# %% [markdown]
# ## 2. Repair: attention to a memory
#
# You now have a list of what is broken. An encoder-decoder needs one part that the course model did not have: in every block of its decoder, a second attention that looks not at the answer so far, but at the *source*. What the encoder made of the source is called the **memory**, and this second attention is called **cross-attention**:
#
# $$q = W_q\, x + b_q, \qquad k = W_k\, m + b_k, \qquad v = W_v\, m + b_v, \qquad y = W_o\,\mathrm{merge}\Big(\mathrm{softmax}\Big(\frac{q k^T}{\sqrt{d_h}} + \text{mask}\Big)\, v\Big) + b_o$$
#
# $x$ is what arrives in the decoder (batch, target, d_model), $m$ is the memory (batch, source, d_model), $d_h$ the width of a head; *merge* puts the heads side by side. The questions come from the answer so far, the keys and values from the source. With $m = x$ it is the self-attention of exercise 4.4.
#
# So a decoder block looks at two places, and each has a mask of its own. The example is the date of the American Declaration of Independence, two hundred years on, in a batch of texts of which this one is not the longest (`dates.encode` makes ids of texts, ended by END and filled up with `dates.PAD`; section 3 tells more of it):

# %%
source_text, answer_text = "july 4, 1976", "1976-07-04"
july_ids = dates.encode([source_text], 15)
reads = ["START", *answer_text]  # what the decoder reads, to write one character more at each step
source_keys = [*source_text.replace(" ", "_"), "END", "PAD", "PAD"]
may_look = {
    "causal mask: answer to answer": (causal_mask(len(reads)), reads),
    "padding mask: answer to source": ((july_ids != dates.PAD).expand(len(reads), -1), source_keys),
    "both mixed: wrong": ((july_ids != dates.PAD) & torch.ones(len(reads), 15, dtype=torch.bool).tril(), source_keys),
}
fig, axes = plots.figure(columns=3, width=11, height=3.7)
for ax, (title, (mask, keys)) in zip(axes, may_look.items(), strict=True):
    ax.imshow(mask, cmap="cividis", vmin=0, vmax=1, aspect="equal")
    ax.set_xticks(range(len(keys)), keys, rotation=90, family="monospace", fontsize=8)
    ax.set_yticks(range(len(reads)), reads, family="monospace", fontsize=8)
    ax.set_xlabel("key: what may be looked at")
    ax.set_title(title)
axes[0].set_ylabel("query: what has been read")
plots.show(
    fig,
    caption="Yellow: may look. The first two masks belong to the two attentions of a decoder block. The third is what one gets from using the causal mask for the source, too.",
    alt="Three grids of queries against keys. The causal mask allows the lower triangle. The padding mask allows every query all characters of the source and its end sign, and forbids the last two columns. The mixed mask "
    "allows only a lower triangle of the source, so that the first query sees the first letter alone.",
)

# %% [markdown]
# The third picture is the classic mistake. To write the first figure of "1976", the model must read the *end* of the source; with the mixed mask it sees only "j". Nothing crashes: if source and answer have one length, even the shapes fit. The source is there from the start; nothing in it is "the future".
#
# ### Two libraries, two meanings of True
#
# We shall compare with `nn.Transformer`, the library's own layers. They have a trap that you meet as soon as you copy a mask from one place to another:

# %%
torch.manual_seed(0)
their_attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
tokens = torch.randn(1, 4, 8)
with torch.no_grad():
    _, theirs = their_attention(tokens, tokens, tokens, attn_mask=causal_mask(4))
    _, turned = their_attention(tokens, tokens, tokens, attn_mask=~causal_mask(4))
print("nn.MultiheadAttention given causal_mask(4), first query: ", [round(p, 2) for p in theirs[0, 0].tolist()])
print("nn.MultiheadAttention given ~causal_mask(4), first query:", [round(p, 2) for p in turned[0, 0].tolist()])
print("last query of the first one:", theirs[0, -1].tolist())

# %% [markdown]
# In `nn.MultiheadAttention` and `nn.Transformer`, True means *must not look*. In `F.scaled_dot_product_attention` and in this course, True means *may look*. With the wrong one the first query sees only the future, and the last one, which may look nowhere, gets nan. The same holds for their `key_padding_mask`: True marks the padding.
#
# Their weights have other names, too, and query, key and value are stored in one matrix. `seq2seq.our_names` cuts it in three and renames everything, so that both models can hold the same weights:

# %%
layer = nn.TransformerDecoderLayer(8, 2, dim_feedforward=16, batch_first=True, norm_first=True)
print("theirs:", ", ".join(name for name in layer.state_dict() if "multihead" in name))
print("ours:  ", ", ".join(name for name in seq2seq.our_names(layer.state_dict()) if "cross" in name))

# %% [markdown]
# ### Exercise 6.2: a decoder block
# *Difficulty 4 of 5 · 50 minutes · 3 points*
#
# Write two classes. `MemoryAttention` is attention from `x` to `memory`, by the formula above. It inherits from `quantizable.QuantizableAttention`, the solution of [exercise 4.4](../04_component_wise/04_component_wise.ipynb#cell-id=ex_4_4_check), which has everything you need: the Linear layers `q`, `k`, `v`, `out`; `split` and `merge` for the heads; `scores` and `mix`, a `FloatFunctional` for each product; `dequant` and `quant` around the float part (scaling, mask, softmax). Only its `forward` must become one of two tensors.
#
# `DecoderLayer` is the block, on a float residual stream $x$, with the memory $m$ as it comes:
#
# $$a = x + \mathrm{attention}(n_1, n_1)\ \text{ with } n_1 = \mathrm{norm}_1(x), \qquad c = a + \mathrm{cross}(\mathrm{norm}_2(a),\, m), \qquad y = c + \mathrm{ffn}(\mathrm{norm}_3(c))$$
#
# The first attention gets `mask`, the second `memory_mask`; each is a `MemoryAttention` of its own. Both, and the feed-forward network (`quantizable.QuantizableFeedForward(d_model, d_ff)`), take and give quantized tensors once the block is converted; LayerNorms and additions are float. So each of the three parts needs a `QuantStub` behind its norm and a `DeQuantStub` before its addition, as in unit 04, section 7. (That the LayerNorms have no qconfig is left to whoever prepares the model: here the check, later `seq2seq.prepare`. In a recipe of your own, set `norm.qconfig = None` as in unit 04.) `memory` arrives *already quantized*: it is the same for all blocks and all steps, and is rounded once, by whoever made it.
#
# By hand, if the first attention always says 0.5, the second 2, the network −1, and $x = 1$: $a = 1.5$, $c = 3.5$, $y = 2.5$.


# %% nbgrader={"grade": false, "grade_id": "ex_6_2", "locked": false, "schema_version": 3, "solution": true, "task": false}
class MemoryAttention(quantizable.QuantizableAttention):
    """Attention from the positions of `x` to those of `memory`; MemoryAttention(d_model, n_heads)."""

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each position of `x` gathers from the memory.

        Parameters
        ----------
        x : Tensor, (batch, target, d_model)
            Where the queries come from; float, or quantized after `convert`, like the memory.
        memory : Tensor, (batch, source, d_model)
            Where the keys and values come from.
        mask : Tensor, bool, broadcast with (batch, heads, target, source), or None
            True where the query (row) may look at the key (column).

        Returns
        -------
        Tensor, (batch, target, d_model), float or quantized as `x` is
        """
        ### BEGIN SOLUTION
        query, key, value = self.split(self.q(x)), self.split(self.k(memory)), self.split(self.v(memory))
        scores = self.dequant(self.scores.matmul(query, key.transpose(2, 3))) * query.shape[3] ** -0.5
        if mask is not None:
            scores = torch.where(mask, scores, -math.inf)
        weights = self.quant(torch.softmax(scores, dim=3))  # (batch, heads, target, source)
        return self.out(self.merge(self.mix.matmul(weights, value)))
        ### END SOLUTION


class DecoderLayer(nn.Module):
    """A pre-LN decoder block with places for quantizers: float `x` in, float out, quantized memory between.

    Its parts must be called `norm1`, `attention`, `norm2`, `cross`, `norm3` and `ffn`, so that weights can be loaded
    into it by name; the stubs may have any names.

    Parameters
    ----------
    d_model, n_heads, d_ff : int
        Width, number of heads, width of the feed-forward network inside.

    Example
    -------
    >>> block = DecoderLayer(d_model=8, n_heads=2, d_ff=16)
    >>> block(torch.randn(1, 3, 8), torch.randn(1, 5, 8), causal_mask(3), None).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        for place in ("norm1", "norm2", "norm3"):
            setattr(self, place, nn.LayerNorm(d_model))
        for place in ("attention", "cross"):
            setattr(self, place, MemoryAttention(d_model, n_heads))
        self.ffn = quantizable.QuantizableFeedForward(d_model, d_ff)
        self.enter = nn.ModuleList([tq.QuantStub(), tq.QuantStub(), tq.QuantStub()])
        self.leave = nn.ModuleList([tq.DeQuantStub(), tq.DeQuantStub(), tq.DeQuantStub()])
        ### END SOLUTION

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        """`x` (batch, target, d_model) after this block.

        Parameters
        ----------
        x : Tensor, float, (batch, target, d_model)
        memory : Tensor, (batch, source, d_model)
            Float, or quantized after `convert`.
        mask : Tensor, bool, (target, target), or None
            True where a position of the answer may look at another one.
        memory_mask : Tensor, bool, (batch, 1, 1, source), or None
            True where the source holds a character.
        """
        ### BEGIN SOLUTION
        here = self.enter[0](self.norm1(x))
        x = x + self.leave[0](self.attention(here, here, mask))
        asked = self.enter[1](self.norm2(x))
        x = x + self.leave[1](self.cross(asked, memory, memory_mask))
        return x + self.leave[2](self.ffn(self.enter[2](self.norm3(x))))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_6_2_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 6.2: run this cell.
import warnings
from collections import Counter

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import checks, samples, seq2seq


@checks.isolated
def check_ex_6_2() -> None:
    class Kernels(TorchDispatchMode):
        """How often each kernel runs."""

        def __init__(self) -> None:
            super().__init__()
            self.count = Counter()

        def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
            self.count[".".join(str(kernel).split(".")[:2])] += 1
            return kernel(*args, **(kwargs or {}))

    class WithMemory(nn.Module):
        """The learner's block, its memory quantized once before it."""

        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block, self.once = block, tq.QuantStub()

        def forward(self, x, memory, mask, memory_mask):
            return self.block(x, self.once(memory), mask, memory_mask)

    def pytorch_layer(seed: int, width: int, heads: int, d_ff: int) -> nn.TransformerDecoderLayer:
        """The library's layer, every weight of which matters."""
        torch.manual_seed(seed)
        layer = nn.TransformerDecoderLayer(width, heads, d_ff, 0.0, F.gelu, batch_first=True, norm_first=True).eval()
        for name, parameter in layer.named_parameters():
            if "norm" in name and name.endswith("weight"):
                nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                nn.init.normal_(parameter, std=0.3 if parameter.dim() == 1 else 1.2 * width**-0.5)
        return layer

    def example(seed: int, batch: int, target: int, source: int, width: int) -> tuple[torch.Tensor, ...]:
        """x, memory, causal mask, padding mask; True: may look."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, target, width, generator=generator)
        memory = torch.randn(batch, source, width, generator=generator) * 1.5 + 0.3
        seen = torch.arange(source) < torch.arange(source, source - batch, -1).clamp(min=2)[:, None]
        return x, memory, torch.arange(target)[:, None] >= torch.arange(target), seen[:, None, None, :]

    def attend(theirs: nn.MultiheadAttention, x, memory, mask, change: str = "") -> torch.Tensor:
        """The library's attention from torch's functional parts, given our masks; `change` makes a known mistake."""
        weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
        sources = {
            "k and v from x": (x, x, x),
            "only k": (x, memory, x),
            "only v": (x, x, memory),
            "all": (memory,) * 3,
        }
        inputs = sources.get(change, (x, memory, memory))
        q, k, v = (
            F.linear(t, w, b).unflatten(2, (theirs.num_heads, -1)).transpose(1, 2)
            for t, w, b in zip(inputs, weights, biases, strict=True)
        )
        if change == "k, v swapped":
            k, v = (
                F.linear(memory, weights[i], biases[i]).unflatten(2, (theirs.num_heads, -1)).transpose(1, 2)
                for i in (2, 1)
            )
        allowed = None if change == "no mask" or mask is None else ~mask if change == "inverted" else mask
        scale = {"no scale": 1.0, "scaled by width": x.shape[2] ** -0.5}.get(change)
        if change in ("zeroed", "over queries"):
            scores = q @ k.mT / q.shape[3] ** 0.5
            if change == "over queries":
                p = (scores if mask is None else scores.where(mask, -torch.inf)).softmax(dim=2)
            else:
                p = scores.softmax(dim=3) * mask
            y = p @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
        y = y.transpose(1, 2).flatten(2)
        return y if change == "no out" else F.linear(y, theirs.out_proj.weight, theirs.out_proj.bias)

    attention_mistakes = {
        "k and v from x": "keys and values come from x: they should come from the memory (this is self-attention).",
        "only k": "the values come from x: keys *and* values belong to the memory.",
        "only v": "the keys come from x: keys *and* values belong to the memory.",
        "all": "the queries come from the memory: they should come from x.",
        "inverted": "the mask is the wrong way round: True means that the query may look.",
        "no mask": "the mask has no effect.",
        "no scale": "the scores are not divided by the square root of the width of a head.",
        "scaled by width": "the scores are divided by the square root of d_model; it should be that of the width of a *head*.",
        "zeroed": "the probabilities are set to zero behind the softmax, so that they no longer sum to 1: mask the scores before it.",
        "over queries": "the softmax runs over the queries: it should run over the keys, the last dimension.",
        "no out": "the output layer is missing.",
        "k, v swapped": "key and value are swapped.",
    }

    def block(layer: nn.TransformerDecoderLayer, x, memory, mask, memory_mask, change: str = "") -> torch.Tensor:
        """The library's layer from its parts; `change` makes a known mistake."""

        def think(t: torch.Tensor) -> torch.Tensor:
            return layer.linear2(F.gelu(layer.linear1(t)))

        without = {"causal on memory": mask, "swapped masks": mask, "no causal": mask, "no padding": memory_mask}
        if change in without and without[change] is None:
            raise TypeError(change)  # without that mask it would be another mistake
        first, second = mask, memory_mask
        if change == "mixed":
            second = memory_mask & mask
        elif change == "causal on memory":
            second = mask
        elif change == "swapped masks":
            first, second = memory_mask, mask
        elif change == "padding on answer":
            first = mask & memory_mask
        elif change == "no causal":
            first = None
        elif change == "no padding":
            second = None
        elif change == "peeks":
            first = torch.ones_like(mask).tril(1)
        elif change == "own causal":
            first = torch.ones(2 * x.shape[1:2], dtype=torch.bool).tril()
        m = layer.norm2(memory) if change == "memory normed" else memory
        one = layer.norm1(x)
        if change == "post":
            x = layer.norm1(x + attend(layer.self_attn, x, x, first))
            x = layer.norm2(x + attend(layer.multihead_attn, x, m, second))
            return layer.norm3(x + think(x))
        if change == "norm of the sum of parts":
            a = x + layer.norm1(attend(layer.self_attn, x, x, first))
            c = a + layer.norm2(attend(layer.multihead_attn, a, m, second))
            return c + layer.norm3(think(c))
        if change == "residual of the norm":
            a = one + attend(layer.self_attn, one, one, first)
            b = layer.norm2(a)
            c = layer.norm3(b + attend(layer.multihead_attn, b, m, second))
            return c + think(c)
        if change == "cross first":
            x = x + attend(layer.multihead_attn, layer.norm2(x), m, second)
            h = layer.norm1(x)
            x = x + attend(layer.self_attn, h, h, first)
            return x + think(layer.norm3(x))
        looked = attend(layer.self_attn, one, m if change == "self from memory" else one, first)
        a = looked if change == "no first" else x + looked
        asks = a if change == "no norm2" else one if change == "asks x" else layer.norm2(a)
        kept = asks if change == "memory is x" else m
        asked = attend(layer.self_attn if change == "one attention" else layer.multihead_attn, asks, kept, second)
        c = asked if change == "no second" else x + asked if change == "from x" else a + asked
        if change == "no third":
            return think(layer.norm3(c))
        return (a if change == "third from a" else c) + think(layer.norm3(c))

    block_mistakes = {
        "mixed": "the memory mask is mixed with the causal mask: every step may look at the whole source, whatever its own place (only padding is hidden).",
        "no padding": "the attention to the memory gets no mask, so it looks at padding.",
        "causal on memory": "the attention to the memory gets the causal mask: it should get `memory_mask`; nothing in the source is the future.",
        "swapped masks": "the masks are swapped: `mask` belongs to the first attention, `memory_mask` to the second.",
        "padding on answer": "the first attention gets both masks: `memory_mask` speaks of the source, not of the answer.",
        "no causal": "the first attention gets no mask, so each position sees the future.",
        "peeks": "the causal mask is off by one: each position sees the next one.",
        "own causal": "the first attention makes a causal mask of its own: it should use the `mask` that it is given.",
        "memory normed": "the memory is normalized by norm2: norm2 is for x alone; the encoder has a last norm of its own.",
        "post": "the LayerNorms stand behind the additions (post-LN); this block normalizes *before* each part.",
        "norm of the sum of parts": "the LayerNorms stand behind the parts, before the additions; this block normalizes what each part *reads*.",
        "residual of the norm": "what is normalized is added as well: each addition takes x, a or c as it came, only the part reads its norm.",
        "cross first": "the attention to the memory comes first: the answer looks at itself first.",
        "self from memory": "the first attention looks at the memory: it should look at the answer itself.",
        "no first": "the first residual addition is missing: x is added to what the attention says.",
        "no second": "the second residual addition is missing: a is added to what the cross-attention says.",
        "no third": "the third residual addition is missing: c is added to what the network says.",
        "no norm2": "norm2 is missing: the cross-attention asks with norm2(a).",
        "asks x": "the cross-attention asks with norm1(x); it should ask with norm2(a).",
        "memory is x": "the second attention looks at x again: it should look at the memory.",
        "one attention": "`attention` is used twice: `cross` has weights of its own.",
        "from x": "the second addition adds x; it should add a, which holds what the first attention said.",
        "third from a": "the third addition adds a; it should add c, which holds what the cross-attention said.",
    }

    def compare(got: object, wanted: torch.Tensor, what: str, mistaken, sentences: dict[str, str]) -> None:
        assert isinstance(got, torch.Tensor), f"{what} should be a tensor: does your forward end with `return`?"
        assert got.shape == wanted.shape, f"{what} has shape {tuple(got.shape)}; expected is {tuple(wanted.shape)}."
        if torch.allclose(got, wanted, atol=2e-5, rtol=1e-5):
            return
        fits = []
        for change, sentence in sentences.items():
            try:
                other = mistaken(change)
            except (
                RuntimeError,
                IndexError,
                TypeError,
            ):  # this mistake is not possible with these shapes, or without a mask
                continue
            known = other.isfinite() & got.isfinite()  # who may look nowhere gets nan, or zeros
            if known.any() and torch.allclose(got[known], other[known], atol=2e-5, rtol=1e-5):
                fits.append(sentence)
        assert len(fits) != 1, f"before any quantization {what} is wrong: {fits[0]}"
        assert got.isfinite().all(), (
            f"before any quantization {what} holds nan: a query that may look nowhere makes it. Is the mask the right way round, and the softmax over the keys?"
        )
        raise AssertionError(
            f"before any quantization {what} differs from the library's by up to {(got - wanted).abs().max():.3g}; allowed is rounding (2e-5)."
        )

    def judge_attention(seed: int, width: int, heads: int, batch: int, target: int, source: int) -> None:
        layer = pytorch_layer(seed, width, heads, 8)
        mine = MemoryAttention(width, heads).eval()
        mine.load_state_dict(seq2seq.our_names(layer.multihead_attn.state_dict()))
        x, memory, causal, seen = example(seed + 1, batch, target, source, width)
        given, theirs = (x.clone(), memory.clone()), layer.multihead_attn
        own = torch.rand(batch, heads, target, source, generator=torch.Generator().manual_seed(seed)) < 0.6
        own[..., 0] = True  # every query may look somewhere
        for mask in (seen, None, causal if target == source else seen & (torch.arange(source) != 1), own):
            wanted = attend(theirs, x, memory, mask)
            before = None if mask is None else mask.clone()
            if mask is seen:  # our formula above is the library's own attention
                padding = ~seen[:, 0, 0]
                oracle, _ = theirs(x, memory, memory, key_padding_mask=padding, need_weights=False)
                assert torch.allclose(wanted, oracle, atol=2e-5), "the check itself is broken; please report it."
            try:
                got = mine(x, memory, mask)
            except NotImplementedError:
                raise
            except (RuntimeError, IndexError) as error:
                raise AssertionError(
                    f"with {target} positions in x and {source} in the memory MemoryAttention cannot run: {str(error).splitlines()[0]} Are queries made from x, and keys and values from the memory?"
                ) from None
            assert mask is None or torch.equal(mask, before), (
                "MemoryAttention changes its mask in place: make a new one."
            )
            assert torch.equal(x, given[0]) and torch.equal(memory, given[1]), (
                "MemoryAttention changes its inputs in place."
            )
            compare(
                got,
                wanted,
                "the output of MemoryAttention",
                lambda change, mask=mask: attend(theirs, x, memory, mask, change),
                attention_mistakes,
            )
        for form, odd in samples.awkward(memory):
            assert torch.allclose(mine(x, odd, seen), attend(theirs, x, memory, seen), atol=2e-5, rtol=1e-5), (
                f"with {form} as memory MemoryAttention gives another output than with a plain tensor of the same numbers."
            )
        large, only = (12 * x, 12 * memory), torch.arange(source)[None] == source // 2
        assert torch.allclose(mine(*large, only), attend(theirs, *large, only), atol=1e-3, rtol=1e-4), (
            "where the scores of the allowed keys are low, MemoryAttention looks at forbidden ones: give these minus infinity."
        )

    def judge(
        seed: int, width: int, heads: int, d_ff: int, batch: int, target: int, source: int, int8: bool = True
    ) -> None:
        layer = pytorch_layer(seed, width, heads, d_ff)
        mine, weights = DecoderLayer(width, heads, d_ff), seq2seq.our_names(layer.state_dict())
        assert isinstance(mine, nn.Module), "DecoderLayer should be a module."
        absent = [name for name in weights if name not in mine.state_dict()]
        assert not absent, (
            f"DecoderLayer has no {absent[0]}: its parts are norm1, attention, norm2, cross, norm3 and ffn, each an attribute."
        )
        extra = [name for name in mine.state_dict() if name not in weights]
        assert not extra, (
            f"DecoderLayer has a weight that the library's layer has not: {extra[0]}. Its parts are norm1, attention, norm2, cross, norm3 and ffn."
        )
        mine.load_state_dict(weights)
        mine.eval()
        odd = [place for place in ("norm1", "norm2", "norm3") if getattr(getattr(mine, place), "eps", 1e-5) != 1e-5]
        assert not odd, f"`{odd[0]}` has an eps of its own: the library's layer has PyTorch's own eps, 1e-5."
        names = {}
        for name, part in mine.named_modules(remove_duplicate=False):
            names.setdefault(id(part), []).append(name)
        twice = ["` and `".join(each) for each in names.values() if len(each) > 1]
        assert not twice, (
            f"`{twice[0]}` are one module, and convert replaces it under its first name only. Each name needs a module of its own, and each stub its own scale."
        )
        x, memory, causal, seen = example(seed + 1, batch, target, source, width)
        given, alone = [t.clone() for t in (x, memory, causal, seen)], torch.eye(target, dtype=torch.bool)
        for mask, memory_mask in ((causal, seen), (None, None), (None, seen), (causal, None), (alone, seen)):
            oracle = layer(
                x,
                memory,
                tgt_mask=None if mask is None else ~mask,
                memory_key_padding_mask=None if memory_mask is None else ~memory_mask[:, 0, 0],
            )
            try:
                got = mine(x, memory, mask, memory_mask)
            except NotImplementedError:
                raise
            except (RuntimeError, IndexError) as error:
                raise AssertionError(
                    f"with {target} positions in x and {source} in the memory DecoderLayer cannot run: {str(error).splitlines()[0]} Which mask belongs to which attention?"
                ) from None
            assert all(map(torch.equal, (x, memory, causal, seen), given)), (
                "DecoderLayer changes its inputs, or its masks, in place."
            )
            compare(
                got,
                oracle,
                f"the output of DecoderLayer{', called without `mask`,' if mask is None else ''}",
                lambda change, mask=mask, memory_mask=memory_mask: block(layer, x, memory, mask, memory_mask, change),
                block_mistakes,
            )
        faint = 0.003 * x  # so quiet that the eps of a LayerNorm counts
        wanted = layer(faint, memory, tgt_mask=~causal, memory_key_padding_mask=~seen[:, 0, 0])
        assert torch.allclose(mine(faint, memory, causal, seen), wanted, atol=2e-5, rtol=1e-5), (
            "for a quiet x your block differs from the library's: its LayerNorms have PyTorch's own eps."
        )
        for form, odd in samples.awkward(x):
            assert torch.allclose(mine(odd, memory, causal, seen), mine(x, memory, causal, seen), atol=2e-5), (
                f"with {form} as x your block gives another output than with a plain tensor of the same numbers."
            )
        still = mine(x, memory, causal, seen)
        mine.train()
        noisy = mine(x, memory, causal, seen)
        assert all(part.training for part in mine.modules()), "a call switches parts of your block to eval mode."
        assert torch.allclose(noisy, still, atol=2e-5), (
            "in training mode your block gives another output than in eval mode: there is no dropout in the formula."
        )
        with torch.enable_grad():
            try:
                owners, parameters = zip(*mine.named_parameters(), strict=True)
                loss = mine(x, memory, causal, seen).square().sum()
                slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
            except RuntimeError as error:
                raise AssertionError(
                    f"your block cannot be trained, since no gradient passes: {str(error).splitlines()[0]}"
                ) from None
        frozen = [name for name, slope in zip(owners, slopes, strict=True) if slope is None]
        assert not frozen, f"your block cannot be trained: {frozen[0]} gets no gradient. Is something detached?"
        mine.eval()
        if not int8:
            return

        prepared = WithMemory(mine).eval()
        weight = tq.get_default_qconfig(torch.backends.quantized.engine).weight
        prepared.qconfig = tq.QConfig(tq.MinMaxObserver.with_args(quant_min=0, quant_max=127), weight)
        for part in prepared.modules():
            if isinstance(part, nn.LayerNorm):
                part.qconfig = None  # the residual stream is float
        products = {name: m for name, m in mine.named_modules() if isinstance(m, nnq.FloatFunctional)}
        assert len(products) == 4, (
            f"the number of FloatFunctional modules is {len(products)}; expected are four, one for each product of the two attentions (the additions are float)."
        )
        tq.prepare(prepared, inplace=True)
        more = example(seed + 2, batch, target, source, width)
        for inputs in ((x, memory), more[:2]):
            prepared(*inputs, causal, seen)
        idle = [name for name, m in products.items() if not m.activation_post_process.min_val.isfinite().all()]
        with warnings.catch_warnings():  # what has seen nothing is named below
            warnings.simplefilter("ignore")
            converted, used = tq.convert(prepared), []
        for name, part in converted.named_modules():
            if isinstance(part, nnq.Quantize):
                part.register_forward_hook(lambda *_, name=name: used.append(name))
        try:
            with Kernels() as trace:
                got = converted(x, memory, causal, seen)
        except (NotImplementedError, RuntimeError) as error:
            text = str(error).splitlines()[0]
            for name, sentence in {
                "quantized::linear": "a Linear layer gets a float tensor: is there a QuantStub behind each norm, and behind the softmax?",
                "batch_norm": "a LayerNorm gets codes: the QuantStub stands behind the norm, not before it; and dequantize what each part says before it is added.",
                "fill_out": "F.scaled_dot_product_attention takes no codes: use the FloatFunctional modules `scores` and `mix`, and dequantize the scores before the mask.",
                "quantize_per_tensor": "a QuantStub gets codes: the memory arrives quantized, and what an attention returns is quantized, too.",
                "native_layer_norm": "a LayerNorm gets codes: dequantize what each part says before it is added.",
                "aten::add": "an addition gets codes: dequantize what each part says (DeQuantStub), then add in float.",
                "aten::qscheme": "an addition gets one quantized and one float tensor: dequantize what each part says (DeQuantStub), then add in float.",
                "bmm": "`@` takes no codes: use the FloatFunctional modules `scores` and `mix`.",
                "softmax": "torch.softmax takes no codes: dequantize the scores before it.",
                "promoteTypes": "codes and floats meet: dequantize what each part says before it is added to x, and the scores before they are masked.",
                "quantized::matmul": "a product gets one quantized and one float factor: is `quant` behind the softmax?",
                "MatMul operands": "a product gets one quantized and one float factor: is `quant` behind the softmax?",
            }.items():
                assert name not in text, f"after convert it cannot run: {sentence}"
            raise AssertionError(f"after convert it cannot run: {text[:200]}") from None
        assert got.dtype == torch.float32 and not got.is_quantized, "after convert your block should return float32."
        found = {name: trace.count[f"quantized.{name}"] for name in ("linear", "matmul")}
        assert found == {"linear": 10, "matmul": 4}, (
            f"in int8 run {found['linear']} Linear layers of 10 and {found['matmul']} products of 4."
        )
        assert not idle, (
            f"{idle[0]} is never used, and another one makes two products with one scale: each product needs a FloatFunctional of its own."
        )
        into, out_of = trace.count["aten.quantize_per_tensor"], trace.count["aten.dequantize"]
        assert into == 7, (
            f"a call quantizes {into} times; expected is 7: the memory (before your block), behind each of the three norms, behind both softmax, and behind the GELU. The memory is not rounded again."
        )
        assert out_of == 6, f"a call dequantizes {out_of} times; expected is 6: the scores twice, the GELU, three sums."
        often = [used.count(name) for name, m in converted.named_modules() if isinstance(m, nnq.Quantize)]
        assert max(often) == 1, (
            "one QuantStub is used in several places, so they share one scale: each place needs a stub of its own, used once."
        )
        wanted = layer(x, memory, tgt_mask=~causal, memory_key_padding_mask=~seen[:, 0, 0])
        error = ((got - wanted).norm() / (wanted - x).norm()).item()
        assert error < 0.15, (
            f"in int8, what the block adds has a relative error of {error:.3f}; below 0.15 was expected."
        )
        later, hidden = x.clone(), torch.where(seen[:, 0, 0, :, None], memory, more[1])
        later[:, -1] = more[0][:, -1]
        assert torch.allclose(converted(later, memory, causal, seen)[:, :-1], got[:, :-1], atol=1e-6), (
            "in int8 the output at a position depends on later positions of the answer."
        )
        assert torch.allclose(converted(x, hidden, causal, seen), got, atol=1e-6), (
            "in int8 the output depends on the padding of the source."
        )
        kept = [torch.equal(t, mine.state_dict()[name]) for name, t in weights.items()]
        assert all(kept), "the weights were changed by a forward pass."

    with (
        checks.check(
            "6.2",
            "your decoder block is the library's in float, each attention has its own mask, and converted it runs on codes",
        ),
        torch.no_grad(),
    ):
        judge_attention(621, width=16, heads=4, batch=3, target=6, source=6)
        judge_attention(622, width=12, heads=2, batch=2, target=4, source=9)
        judge_attention(625, width=8, heads=2, batch=1, target=1, source=3)
        judge(623, width=16, heads=2, d_ff=24, batch=3, target=7, source=7)
        judge(624, width=24, heads=4, d_ff=40, batch=2, target=5, source=8)
        judge(626, width=12, heads=3, d_ff=8, batch=4, target=9, source=4, int8=False)
    ### BEGIN HIDDEN TESTS
    with torch.no_grad():
        for sizes in [(6201, 8, 1, 4, 9, 3), (6202, 20, 5, 2, 1, 6)]:
            judge_attention(*sizes)
        for sizes in [(6203, 32, 4, 48, 3, 6, 6), (6204, 12, 3, 20, 4, 9, 4)]:
            judge(*sizes)
        last = pytorch_layer(6205, 16, 4, 32)
        block_of_mine = DecoderLayer(16, 4, 32).eval()
        block_of_mine.load_state_dict(seq2seq.our_names(last.state_dict()))
        x, memory, causal, _ = example(6206, 2, 5, 5, 16)
        assert torch.allclose(block_of_mine(x, memory, causal, None), last(x, memory, ~causal), atol=1e-4), (
            "no padding."
        )
    ### END HIDDEN TESTS


check_ex_6_2()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Start from the attention of exercise 4.4 and ask of each of its three Linear layers: is this about who asks, or about what is looked at? Pass the part of the check that speaks of "before any quantization" first; then place the stubs.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `q` reads `x`; `k` and `v` read `memory`. In the block, self-attention is attention to oneself: `self.attention(h, h, mask)` with `h = stub(norm1(x))`. There are three `QuantStub`s, one behind each norm, and three `DeQuantStub`s, one before each `+`; none for the memory.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / math.sqrt(…)`, mask if there is one, `p = self.quant(scores.softmax(dim=-1))`, `self.out(self.merge(self.mix.matmul(p, v)))`. In the block: `x = x + self.dequant2(self.cross(self.quant2(self.norm2(x)), memory, …))`, and the other two parts like it.
# </details>

# %% [markdown]
# What did it buy? Compare with the book's class: there the decoder saw the answer that it was to predict. Here both masks hold, in float and in int8, and padding can hold anything without changing a single output. It cost crossings: outside of its kernels, a call of the block quantizes six times and dequantizes six times, as the check has counted, and two of these pairs are there for the attention to the memory (behind its norm, and around its softmax). The check's seventh quantizer is the memory's own: it works once for all blocks. (What happens inside a kernel is not counted. The four products of activations take codes and give codes, but PyTorch multiplies floats in between: [unit 05 has looked inside](../05_evaluation/05_evaluation.ipynb#heading=8.-What-moved-the-needle).)

# %% [markdown]
# ## 3. Repair: the whole model
#
# The book's class is tried on random numbers, so nobody can say whether it works. Ours gets a task on which it can fail: a date as people write it goes in, the date in the international form ISO 8601 (year-month-day) comes out, letter by letter. `helpers.dates` generates such pairs, with a typo in some of the texts, and splits them by *date*: a held-out date was never seen in training in any form. Here is one held-out date in every form, and a few held-out pairs with whatever typos they have:

# %%
shown_day = datetime.date(1976, 7, 8)
print(f"{shown_day} is in the split: {dates.split_of(shown_day)}")
tables.show([{"form": form, f"how it writes {shown_day}": write(shown_day)} for form, write in dates.FORMS.items()])
_, shown_answers, shown_texts = dates.pairs("held_out", 6, seed=3)
tables.show(
    [{"source": text, "target": dates.decode(row)} for text, row in zip(shown_texts, shown_answers, strict=True)]
)

# %% [markdown]
# This is more than copying. The day and the month change places between 8.7.1976 and 7/8/1976; a year of two digits needs its century; "day 190 of 1976" needs a calendar that knows leap years. And nearly every text has *one right answer*, so quality is simple to state: **exact match**, the share of texts whose answer is right in every character. (Nearly: "jan" without its a and "jun" without its u are both "jn".) We ask for 97 % in float, or more; below that, there would be little to lose.
#
# Training takes some minutes, so a trained model lies beside the course (`make dates` trains it again). Its card:

# %%
card = load_card(DATE_READER)
tables.show(
    [
        {"entry": entry.replace("_", " "), "value": card[entry]}
        for entry in (
            "what",
            "data",
            "training_pairs",
            "steps",
            "pairs_per_step",
            "held_out_pairs",
            "held_out_exact_match",
        )
    ]
)

# %% [markdown]
# ### From ids to logits
#
# What is missing around the blocks are the two ends. Ids become vectors, which get a position:
#
# $$x_t = \sqrt{d}\; E[\mathrm{id}_t] + P_t$$
#
# $E$ is the embedding matrix (vocab_size, $d$), $d$ is d_model, $P_t$ row $t$ of the sinusoidal positions of unit 01 (`sinusoidal_positions(length, d_model)`), counted from 0 in source and target alike. Why $\sqrt d$? The trained model's $E$ began small, with a standard deviation of $1/\sqrt d$ (a plain `nn.Embedding` begins with 1), while the entries of $P$ lie between −1 and 1; without the factor, the positions would have drowned the letters. By hand, for $d = 4$, $t = 0$ and the embedding $(0.5, 0, 0, 0)$: twice that, plus $P_0 = (0, 1, 0, 1)$, is $(1, 1, 0, 1)$.
#
# Source and target have one alphabet, so one embedding serves both. Where are floats, and where are codes?
#
# | step | after `convert` |
# |---|---|
# | ids | whole numbers: they name rows and are never quantized |
# | embedding | an int8 table, read as float; no stub |
# | times $\sqrt d$, plus positions | float |
# | encoder blocks, each with the padding mask of the source | float in, float out; int8 inside |
# | last LayerNorm of the encoder | float |
# | memory | quantized here, **once**: `encode` returns codes |
# | decoder blocks, each with the causal mask, the memory, the padding mask of the source | float in, float out; int8 inside |
# | last LayerNorm of the decoder | float |
# | head, a Linear layer from d_model to vocab_size | quantized before it, dequantized *after* it |
# | logits | float |
#
# The book's class has its one input stub in front of everything, where the ids are. What happens to ids in a stub?

# %%
ids_stub = nn.Sequential(tq.QuantStub(), nn.Embedding(dates.VOCAB_SIZE, 4))
ids_stub.qconfig = tq.default_qconfig
ids_stub[1].qconfig = tq.float_qparams_weight_only_qconfig
tq.prepare(ids_stub.eval(), inplace=True)
some_ids = dates.encode(["8.7.1976"])
print("in float, and while calibrating:", tuple(ids_stub(some_ids).shape))
errors.show_error(lambda: tq.convert(ids_stub)(some_ids))

# %% [markdown]
# Nothing is heard of it until the model is converted. And if codes could be made of them, these would point to other rows of the table: an id is a name, and a name cannot be rounded.
#
# ### Exercise 6.3: the repaired model
# *Difficulty 4 of 5 · 50 minutes · 3 points*
#
# Write the class `DateReader` by the table above, and the function `greedy`, which writes an answer. The blocks come from the helpers and are built like your solution of 6.2: `seq2seq.EncoderBlock(config)`, called with `(x, mask)`, and `seq2seq.DecoderBlock(config)`, called with `(x, memory, mask, memory_mask)`.
#
# *Greedy decoding*: encode the source once. Begin with the id `config.start` alone. At each step, decode what there is; the last position's logits say what comes next; take the largest, append it. Do this `config.target_length` times, and return the ids without the start. (Who has finished early goes on behind its END; `dates.decode` stops there.)
#
# The int8 embedding reads only tensors that lie in memory in one piece: if you pass it a view such as `ids[:, :3]`, call `.contiguous()` first.


# %% nbgrader={"grade": false, "grade_id": "ex_6_3", "locked": false, "schema_version": 3, "solution": true, "task": false}
class DateReader(nn.Module):
    """Encoder-decoder with places for quantizers: ids of source and target in, float logits out.

    So that trained weights can be loaded by name, its parts must be called `embedding` (nn.Embedding), `encoder` and
    `decoder` (an nn.ModuleList of `config.n_layers` blocks each), `encoder_norm` and `decoder_norm` (nn.LayerNorm),
    and `head` (nn.Linear); stubs, and the positions, may have any names. Positions are no parameter: they are computed.

    Parameters
    ----------
    config : Seq2SeqConfig
        vocab_size, source_length, target_length, d_model, n_heads, n_layers, d_ff, pad, start, end.

    Example
    -------
    >>> reader = DateReader(seq2seq.Seq2SeqConfig(dates.VOCAB_SIZE, dates.SOURCE_LENGTH, dates.TARGET_LENGTH))
    >>> reader(dates.encode(["4.7.1976"]), torch.tensor([[dates.START]])).shape
    torch.Size([1, 1, 45])
    """

    def __init__(self, config: seq2seq.Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        ### BEGIN SOLUTION
        width = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.places = sinusoidal_positions(max(config.source_length, config.target_length), width)
        layers = range(config.n_layers)
        self.encoder = nn.ModuleList([seq2seq.EncoderBlock(config) for _ in layers])
        self.decoder = nn.ModuleList([seq2seq.DecoderBlock(config) for _ in layers])
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, config.vocab_size)
        self.memory_in, self.head_in, self.head_out = tq.QuantStub(), tq.QuantStub(), tq.DeQuantStub()
        ### END SOLUTION

    def source_mask(self, source: Tensor) -> Tensor:
        """True where the source holds a character: bool (batch, 1, 1, source), for every head and query."""
        return (source != self.config.pad).unsqueeze(1).unsqueeze(1)

    def embed(self, ids: Tensor) -> Tensor:
        """Vectors with positions: int64 (batch, time) to float (batch, time, d_model)."""
        ### BEGIN SOLUTION
        letters = self.embedding(ids.contiguous()) * self.config.d_model**0.5
        return letters + self.places[: ids.shape[1]]
        ### END SOLUTION

    def encode(self, source: Tensor) -> Tensor:
        """The memory: int64 (batch, source) to (batch, source, d_model), quantized after `convert`."""
        ### BEGIN SOLUTION
        hidden, holds_a_letter = self.embed(source), self.source_mask(source)
        for member in self.encoder:
            hidden = member(hidden, holds_a_letter)
        return self.memory_in(self.encoder_norm(hidden))
        ### END SOLUTION

    def decode(self, target: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Float logits (batch, target, vocab_size) of what follows each position.

        Parameters
        ----------
        target : Tensor, int64, (batch, target)
            What has been written so far; begins with the id `config.start`.
        memory : Tensor, (batch, source, d_model)
            What `encode` returned.
        memory_mask : Tensor, bool, (batch, 1, 1, source)
            What `source_mask` returned.
        """
        ### BEGIN SOLUTION
        hidden, backwards = self.embed(target), causal_mask(target.shape[1])
        for member in self.decoder:
            hidden = member(hidden, memory, backwards, memory_mask)
        return self.head_out(self.head(self.head_in(self.decoder_norm(hidden))))
        ### END SOLUTION

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (batch, target, vocab_size) for a source and what was written so far."""
        return self.decode(target, self.encode(source), self.source_mask(source))


def greedy(model: nn.Module, source: Tensor) -> Tensor:
    """The likeliest id at every step.

    Parameters
    ----------
    model : Module
        Has `config`, `source_mask`, `encode` and `decode`, like DateReader.
    source : Tensor, int64, (batch, source)

    Returns
    -------
    Tensor, int64, (batch, config.target_length)
        Without the start.
    """
    ### BEGIN SOLUTION
    memory, holds_a_letter = model.encode(source), model.source_mask(source)
    written = torch.full((source.shape[0], 1), model.config.start)
    while written.shape[1] <= model.config.target_length:
        following = model.decode(written, memory, holds_a_letter).select(1, -1).argmax(dim=1)
        written = torch.column_stack([written, following])
    return written[:, 1:]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_6_3_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 6.3: run this cell.
import copy
import math
import warnings
from types import SimpleNamespace

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn

from helpers import checks, dates, seq2seq
from helpers.checkpoint import load_date_reader


@checks.isolated
def check_ex_6_3() -> None:
    def pytorch_parts(seed: int, c: seq2seq.Seq2SeqConfig) -> tuple[nn.Transformer, nn.Embedding, nn.Linear]:
        """nn.Transformer of this size, an embedding and a head, every weight of which matters."""
        torch.manual_seed(seed)
        kind = {"dropout": 0.0, "activation": F.gelu, "batch_first": True, "norm_first": True}
        one = nn.TransformerEncoderLayer(c.d_model, c.n_heads, c.d_ff, **kind)
        encoder = nn.TransformerEncoder(one, c.n_layers, nn.LayerNorm(c.d_model), enable_nested_tensor=False)
        layers = nn.Transformer(c.d_model, c.n_heads, 0, c.n_layers, c.d_ff, custom_encoder=encoder, **kind)
        parts = layers.eval(), nn.Embedding(c.vocab_size, c.d_model), nn.Linear(c.d_model, c.vocab_size)
        for part in parts:
            for name, parameter in part.named_parameters():
                if "norm" in name and name.endswith("weight"):
                    nn.init.uniform_(parameter, 0.5, 1.5)
                else:
                    nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else 1.1 * c.d_model**-0.5)
        return parts

    def places(length: int, width: int) -> torch.Tensor:
        """Sinusoidal positions by their formula, number by number."""
        table = torch.zeros(length, width)
        for t in range(length):
            for i in range(0, width, 2):
                angle = t / 10000.0 ** (i / width)
                table[t, i], table[t, i + 1] = math.sin(angle), math.cos(angle)
        return table

    def logits_of(parts, c: seq2seq.Seq2SeqConfig, source, target, change: str = "") -> torch.Tensor:
        """The same model from the library's Transformer; `change` makes a known mistake."""
        layers, embedding, head = parts

        def vectors(ids: torch.Tensor, which: str) -> torch.Tensor:
            letters, where = embedding(ids), places(max(ids.shape) + 1, c.d_model)
            if change in ("no positions", f"none in {which}"):
                where = torch.zeros_like(where)
            rows = where[1:][: ids.shape[1]] if change == "from 1" else where[: ids.shape[1]]
            if change == "by batch":
                rows = where[: ids.shape[0], None]
            if change == "scaled":
                return (letters + rows) * c.d_model**0.5
            return letters * (1.0 if change == "no root" else c.d_model if change == "d" else c.d_model**0.5) + rows

        padding = source == c.pad
        x, y, future = (
            vectors(source, "source"),
            vectors(target, "target"),
            torch.ones(2 * target.shape[1:]).triu(1) > 0,
        )
        norms = layers.encoder.norm, layers.decoder.norm
        hidden = {"encoder padding": None, "pad is 0": source == 0}.get(change, padding)
        m = layers.encoder(x, src_key_padding_mask=hidden)
        if change in ("encoder norm", "decoder norm"):
            kept = norms[change == "decoder norm"]
            owner = layers.decoder if change == "decoder norm" else layers.encoder
            owner.norm = None
            m = layers.encoder(x, src_key_padding_mask=padding)
        out = layers.decoder(
            y,
            x if change == "memory is the embedding" else m,
            tgt_mask=None if change == "no causal" else future.T if change == "turned" else future,
            tgt_key_padding_mask=target == c.pad if change == "answer padding" else None,
            memory_key_padding_mask=None if change == "decoder padding" else padding,
        )
        if change in ("encoder norm", "decoder norm"):
            owner.norm = kept
        return head(out)

    known = {
        "no root": "the embedding is not multiplied by the square root of d_model.",
        "d": "the embedding is multiplied by d_model, not by its square root.",
        "scaled": "the positions are multiplied, too: multiply the embedding by the square root of d_model first, then add them.",
        "no positions": "the positions are missing: the model cannot know the order of the letters.",
        "none in source": "the source has no positions.",
        "none in target": "the target has no positions.",
        "from 1": "the positions begin with row 1 of the table; they are counted from 0.",
        "by batch": "the positions follow the rows of the batch: dimension 0 is the batch, dimension 1 the time.",
        "encoder padding": "the encoder blocks get no mask, so they look at padding.",
        "pad is 0": "the encoder hides the id 0: padding is the id `config.pad`.",
        "decoder padding": "the decoder's attention to the memory does not hide the padding.",
        "no causal": "the decoder blocks get no causal mask, so they see the future.",
        "turned": "the causal mask is the wrong way round: rows are queries, columns keys.",
        "answer padding": "the decoder hides padding in the answer: its mask is the causal one alone.",
        "encoder norm": "the last LayerNorm of the encoder is missing.",
        "decoder norm": "the last LayerNorm of the decoder is missing.",
        "memory is the embedding": "the decoder gets the embedded source: what the encoder made of it is the memory.",
    }

    def ids_for(seed: int, c: seq2seq.Seq2SeqConfig, batch: int, target: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sources of different lengths, filled up with padding, and targets that begin with START."""
        generator = torch.Generator().manual_seed(seed)
        source = torch.randint(3, c.vocab_size, (batch, c.source_length), generator=generator)
        if c.pad != 0:
            source[:, 1] = 0  # then it is a letter like others
        for row in range(batch):
            source[row, 3 + row % (c.source_length - 3) :] = c.pad
        written = torch.randint(3, c.vocab_size, (batch, target), generator=generator)
        written[:, 0] = c.start
        return source, written

    def filled(c: seq2seq.Seq2SeqConfig, weights: dict[str, torch.Tensor]) -> nn.Module:
        """The learner's model with these weights."""
        model, names = DateReader(c), {}
        assert isinstance(model, nn.Module), "DateReader should be a module."
        for name, part in model.named_modules(remove_duplicate=False):
            names.setdefault(id(part), []).append(name)
        twice = ["` and `".join(each[:2]) for each in names.values() if len(each) > 1]
        assert not twice, f"`{twice[0]}` are one module with one set of weights: build a new one for each place."
        own = model.state_dict()
        absent = [name for name in weights if name not in own]
        assert not absent, (
            f"DateReader has no {absent[0]}: its parts are embedding, encoder, encoder_norm, decoder, decoder_norm and head; lists of blocks are nn.ModuleList."
        )
        extra = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in weights]
        assert not extra, f"DateReader has a parameter that the trained model has not: {extra[0]}."
        different = [name for name in weights if own[name].shape != weights[name].shape]
        assert not different, (
            f"{different[0]} has shape {tuple(own[different[0]].shape)}; expected is {tuple(weights[different[0]].shape)}."
        )
        odd = [name for name in ("encoder_norm", "decoder_norm") if getattr(model, name).eps != 1e-5]
        assert not odd, f"{odd[0]} has the eps {getattr(model, odd[0]).eps}: the trained model has PyTorch's own, 1e-5."
        model.load_state_dict(weights, strict=False)
        return model.eval()

    def in_int8(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> nn.Module:
        """Prepared, shown the batches, converted; what feeds a Linear gets as many bits as the engine likes."""
        prepared = copy.deepcopy(model)
        usual = tq.get_default_qconfig(torch.backends.quantized.engine)
        narrow = usual.activation().quant_max
        for name, part in prepared.named_modules():
            probabilities = name.endswith(("attention.quant", "cross.quant"))
            feeds = name.endswith(".mix") or (isinstance(part, tq.QuantStub) and not probabilities)
            part.qconfig = tq.QConfig(
                tq.MinMaxObserver.with_args(quant_min=0, quant_max=narrow if feeds else 255), usual.weight
            )
            if isinstance(part, nn.LayerNorm):
                part.qconfig = None
        prepared.embedding.qconfig = tq.float_qparams_weight_only_qconfig
        tq.prepare(prepared, inplace=True)
        for batch in batches:
            prepared(*batch)
        with warnings.catch_warnings():  # one of our models has seen nothing, and that is what PyTorch says
            warnings.simplefilter("ignore")
            return tq.convert(prepared)

    def watched(model: nn.Module) -> list[str]:
        """Say at once which part of a converted model gets the wrong kind of tensor; list which stubs work."""
        quantized: list[str] = []
        before: list[nn.Module] = []  # which norm or DeQuantStub has run last

        def look(name: str, part: nn.Module):
            def hook(_, inputs) -> None:
                x = inputs[0]
                if isinstance(part, nnq.Linear) and not x.is_quantized:
                    assert name != "head" or not isinstance(before[-1], nnq.DeQuantize), (
                        "after convert the head gets floats: the DeQuantStub comes after the head, not before it."
                    )
                    assert name != "head", (
                        "after convert the head gets floats: quantize behind the last LayerNorm, with a stub of its own."
                    )
                    assert ".cross." not in name, (
                        "after convert the decoder gets a memory of floats: `encode` ends with a QuantStub, and nothing dequantizes after it."
                    )
                    raise AssertionError(f"after convert {name} gets floats.")
                if isinstance(part, nn.LayerNorm | nnq.DeQuantize):
                    before[:] = [part]
                if isinstance(part, nnq.Quantize):
                    assert x.dtype != torch.int64, (
                        "a stub on token ids: an id is the name of a row, not a quantity. No stub stands before the embedding."
                    )
                    assert not x.is_quantized, "after convert a QuantStub gets codes: something is quantized twice."
                    quantized.append(name)
                if isinstance(part, nn.LayerNorm):
                    assert not x.is_quantized, (
                        "after convert a LayerNorm gets codes: the residual stream stays float; no stub stands between the embedding and the blocks."
                    )
                if isinstance(part, nnq.Embedding):
                    assert x.is_contiguous(), (
                        "the int8 embedding gets a view that does not lie in one piece: call `.contiguous()` on the ids."
                    )

            return hook

        for name, part in model.named_modules():
            part.register_forward_pre_hook(look(name, part))
        return quantized

    def judge(seed: int, c: seq2seq.Seq2SeqConfig, batch: int, target: int) -> None:
        parts = pytorch_parts(seed, c)
        weights = seq2seq.our_names(parts[0].state_dict())
        weights |= {"embedding.weight": parts[1].weight, "head.weight": parts[2].weight, "head.bias": parts[2].bias}
        model = filled(c, {name: tensor.detach().clone() for name, tensor in weights.items()})
        source, written = ids_for(seed + 1, c, batch, target)
        given = source.clone(), written.clone()
        wanted = logits_of(parts, c, source, written)
        try:
            got = model(source, written)
        except NotImplementedError:
            raise
        except (RuntimeError, IndexError) as error:
            raise AssertionError(
                f"your model cannot run: {str(error).splitlines()[0]} Which mask belongs where? An encoder block is called with (x, mask of the source), a decoder block with (x, memory, causal mask, mask of the source)."
            ) from None
        assert isinstance(got, torch.Tensor), "`decode` should return a tensor: does it end with `return`?"
        assert got.shape == wanted.shape, (
            f"your logits have shape {tuple(got.shape)}; expected is {tuple(wanted.shape)}."
        )
        assert torch.equal(source, given[0]) and torch.equal(written, given[1]), (
            "your model changes its inputs in place."
        )
        if not torch.allclose(got, wanted, atol=5e-5, rtol=1e-4):
            fits = []
            for change, sentence in known.items():
                try:
                    other = logits_of(parts, c, source, written, change)
                except (RuntimeError, IndexError):  # not possible with these sizes
                    continue
                numbers = other.isfinite() & got.isfinite()
                if numbers.any() and torch.allclose(got[numbers], other[numbers], atol=5e-5, rtol=1e-4):
                    fits.append(sentence)
            assert len(fits) != 1, f"before any quantization your logits are wrong: {fits[0]}"
            assert got.isfinite().all(), (
                "your logits hold nan: some position may look nowhere. True means *may look*, so `causal_mask(…)` and `source_mask(…)` are passed as they are, not inverted."
            )
            raise AssertionError(
                f"before any quantization your logits differ from those of nn.Transformer with the same weights by up to {(got - wanted).abs().max():.3g}; allowed is rounding."
            )
        model.train()
        noisy = model(source, written)
        assert all(part.training for part in model.modules()), "a call switches parts of your model to eval mode."
        assert torch.allclose(noisy, wanted, atol=5e-5, rtol=1e-4), (
            "in training mode your model gives other logits than in eval mode: there is no dropout in the table of steps."
        )
        model.eval()
        other = ids_for(seed + 3, c, batch, target)[0].flip(0)
        first, second = [(model.encode(ids), model.source_mask(ids)) for ids in (source, other)]
        again = model.decode(written, *first)
        exchanged = {
            "memory": model.decode(written, second[0], first[1]),
            "memory_mask": model.decode(written, first[0], second[1]),
        }
        ignored = [what for what, logits in exchanged.items() if torch.allclose(logits, again, atol=5e-5)]
        assert torch.allclose(again, wanted, atol=5e-5, rtol=1e-4), (
            f"`decode` does not use the {' and the '.join(ignored or exchanged)} that it is given, but what the last `encode` left behind."
        )
        try:
            with torch.enable_grad():
                owners, parameters = zip(*model.named_parameters(), strict=True)
                loss = model(source, written).square().sum()
                slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        except RuntimeError as error:
            raise AssertionError(
                f"your model cannot be trained, since no gradient passes: {str(error).splitlines()[0]}"
            ) from None
        frozen = [name for name, slope in zip(owners, slopes, strict=True) if slope is None]
        assert not frozen, f"your model cannot be trained: {frozen[0]} gets no gradient. Is something detached?"

        more = ids_for(seed + 2, c, batch, target)
        answer = in_int8(model, [(source, written), more])
        count = watched(answer)
        codes = answer(source, written)
        assert not codes.is_quantized, "the logits are codes: one DeQuantStub belongs behind the head."
        expected = 10 * c.n_layers + 2
        assert len(count) == expected, (
            f"with {c.n_layers} + {c.n_layers} blocks a call quantizes {len(count)} times; expected is {expected}: {4 * c.n_layers} + {6 * c.n_layers} in the blocks, the memory once, and before the head."
        )
        assert len(set(count)) == expected, (
            "one QuantStub serves both the memory and the head, so they share one scale: each needs a stub of its own."
        )
        assert answer.encode(source).is_quantized, (
            "after convert `encode` returns floats: the memory is quantized there, once, and not in every step of decoding."
        )
        linears = sum(isinstance(part, nnq.Linear) for part in answer.modules())
        floats = [name for name, p in answer.named_parameters() if p.dim() >= 2]
        assert not floats and linears == 16 * c.n_layers + 1, f"after convert there are float matrices: {floats[:3]}."
        error = ((codes - wanted).norm() / wanted.norm()).item()
        assert error < 0.2, f"in int8 the logits have a relative error of {error:.3f}; below 0.2 was expected."
        if target > 1:
            later = written.clone()
            later[:, -1] = (later[:, -1] - 2) % (c.vocab_size - 3) + 3
            assert torch.allclose(answer(source, later)[:, :-1], codes[:, :-1], atol=1e-6), (
                "in int8 the logits of a position depend on later positions."
            )

    class Clockwork:
        """A model that can be computed by hand: each next id is the last one plus the first one of the source."""

        def __init__(self, length: int, start: int) -> None:
            self.config = SimpleNamespace(target_length=length, start=start, pad=0, end=2, vocab_size=23)
            self.encoded, self.lengths = 0, []

        def __call__(self, *_: torch.Tensor) -> None:
            raise AssertionError(
                "`greedy` calls the whole model, which encodes the source at every step: once is enough. Call `encode` once, then `decode` step by step."
            )

        def source_mask(self, source: torch.Tensor) -> torch.Tensor:
            return (source != 0)[:, None, None, :]

        def encode(self, source: torch.Tensor) -> torch.Tensor:
            self.encoded += 1
            return source[:, :1].double()

        def decode(self, target: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor) -> torch.Tensor:
            assert target.shape[1] > 0 and bool((target[:, 0] == self.config.start).all()), (
                "`greedy` decodes something that does not begin with config.start."
            )
            assert memory_mask is not None, (
                "`greedy` passes None as the third argument of decode: pass what source_mask returned."
            )
            masked = (
                isinstance(memory_mask, torch.Tensor) and memory_mask.dtype == torch.bool and memory_mask.dim() == 4
            )
            assert masked, "`greedy` does not pass what source_mask returned as the third argument of decode."
            assert memory.shape[0] == target.shape[0] == memory_mask.shape[0], (
                "`greedy` mixes up the rows of the batch."
            )
            self.lengths.append(target.shape[1])
            return F.one_hot((target + memory.long()) % 23, 23).float() * torch.linspace(3, 1, target.shape[1])[:, None]

    def judge_greedy(batch: int, length: int, start: int) -> None:
        clock = Clockwork(length, start)
        source = torch.arange(1, batch + 1)[:, None].repeat(1, 4)
        with checks.untouched(source=source):
            answer = greedy(clock, source)
        steps = (start + source[:, :1] * torch.arange(1, length + 1)) % 23
        assert isinstance(answer, torch.Tensor), "`greedy` should return a tensor: does it end with `return`?"
        assert answer.shape != (batch, length + 1), (
            f"`greedy` returns {length + 1} ids for each source; expected are {length}, without the start."
        )
        assert length < 3 or answer.shape != (batch, length - 1), (
            f"`greedy` returns {length - 1} ids for each source, one step too few: expected are {length}, config.target_length."
        )
        assert answer.shape == steps.shape, (
            f"`greedy` returns the shape {tuple(answer.shape)}; expected is {tuple(steps.shape)}, (batch, config.target_length). Nobody stops at END."
        )
        assert answer.dtype == torch.int64, f"`greedy` returns {answer.dtype}; ids are torch.int64."
        again = (start + source[:, :1]).expand_as(steps) % 23
        assert batch * length == 1 or torch.equal(answer, steps) or not torch.equal(answer, again), (
            "`greedy` takes the logits of the first position at every step: what comes next stands at the last one."
        )
        ended = (steps == clock.config.end).cumsum(dim=1) > 0
        assert torch.equal(answer, steps) or not torch.equal(answer[~ended], steps[~ended]) or not ended.any(), (
            "`greedy` writes something else behind END: it goes on with each step's likeliest id, `dates.decode` stops there."
        )
        assert batch == 1 or torch.equal(answer, steps) or not torch.equal(answer, steps[:1].expand_as(steps)), (
            "`greedy` gives every source the answer of the first: each row of the batch goes its own way."
        )
        false = int((answer != steps).any(dim=1).int().argmax())  # the first row that differs
        assert torch.equal(answer, steps), (
            f"`greedy` answers {answer[false].tolist()} in row {false}, where each step's likeliest id gives {steps[false].tolist()}."
        )
        assert clock.encoded == 1, (
            f"`greedy` encodes the source {clock.encoded} times: once is enough, since it does not change."
        )

    def judge_dates(count: int, seed: int) -> None:
        trained = load_date_reader()
        model = filled(trained.config, trained.state_dict())
        source, target, _ = dates.pairs("held_out", count, seed)
        calibration = [
            (s, seq2seq.shifted(t))
            for s, t in zip(*(x.split(64) for x in dates.pairs("training", 192, seed)[:2]), strict=True)
        ]
        answer = in_int8(model, calibration)
        watched(answer)
        greedy(answer, source[:2])  # what cannot run in int8 is named before the slow part
        right = [
            (greedy(reader, source) == target).all(dim=1).double().mean().item() for reader in (trained, model, answer)
        ]
        assert abs(right[1] - right[0]) <= 0.01 and right[1] >= 0.97, (
            f"with the trained weights your model reads {right[1]:.1%} of {count} dates right; the trained model reads {right[0]:.1%}."
        )
        assert right[2] >= right[1] - 0.03, (
            f"in int8 your model reads {right[2]:.1%} of {count} dates right, in float {right[1]:.1%}: more than 3 points are lost."
        )
        blind = in_int8(model, [])
        seen_nothing = (greedy(blind, source[:40]) == target[:40]).all(dim=1).double().mean().item()
        assert seen_nothing < right[2] - 0.3, (
            f"a copy that was never calibrated reads {seen_nothing:.1%} right: it does not use the scales of its stubs."
        )

    with (
        checks.check(
            "6.3", "your model is nn.Transformer with embedding, positions and head; in int8 it reads dates as in float"
        ),
        torch.no_grad(),
    ):
        judge(631, seq2seq.Seq2SeqConfig(17, 9, 6, d_model=16, n_heads=2, n_layers=2, d_ff=24), batch=5, target=5)
        judge(
            632,
            seq2seq.Seq2SeqConfig(11, 6, 9, d_model=8, n_heads=4, n_layers=1, d_ff=20, start=3, pad=5),
            batch=2,
            target=8,
        )
        judge_greedy(batch=3, length=5, start=1)
        judge_greedy(batch=2, length=7, start=4)
        judge_greedy(batch=1, length=5, start=1)
        judge_greedy(batch=1, length=1, start=9)
        judge_dates(count=120, seed=633)
    ### BEGIN HIDDEN TESTS
    with torch.no_grad():
        judge(
            6301, seq2seq.Seq2SeqConfig(29, 12, 7, d_model=24, n_heads=3, n_layers=3, d_ff=32, pad=5), batch=4, target=7
        )
        judge(6302, seq2seq.Seq2SeqConfig(13, 5, 5, d_model=12, n_heads=1, n_layers=2, d_ff=8), batch=7, target=1)
        for case in [(1, 1, 1), (1, 6, 1), (6, 12, 2), (4, 3, 9)]:
            judge_greedy(*case)
        judge_dates(count=120, seed=6303)
        quiet = Clockwork(4, 1)
        assert greedy(quiet, torch.full((2, 3), 7)).tolist() == [[8, 15, 22, 6]] * 2, "seven further at each step."
    ### END HIDDEN TESTS


check_ex_6_3()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Follow one source through the table above, line by line; each line is one expression. How many lines say "quantized"? So many stubs has your class (the blocks bring their own).
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Two `QuantStub`s and one `DeQuantStub`: `encode` ends with `self.quant_memory(self.encoder_norm(x))`; `decode` ends with norm, stub, head, dequantize, in this order. The causal mask is `causal_mask(target.shape[1])`. In `greedy`, `model.decode(ids, memory, mask)[:, -1]` are the logits of what comes next, (batch, vocab_size).
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `x = self.embedding(ids.contiguous()) * math.sqrt(…) + self.positions[: ids.shape[1]]`; `for block in self.decoder: x = block(x, memory, …, memory_mask)`; `return self.dequant(self.head(self.quant(self.decoder_norm(x))))`; greedy: `ids = torch.cat([ids, ….argmax(dim=-1, keepdim=True)], dim=1)` in a loop, then `ids[:, 1:]`.
# </details>
# %% [markdown]
# ### Before and after
#
# Now the measurement. As in unit 05, section 2, the margins come first: against float, *dynamic* int8 may lose half a percentage point of exact match, *static* int8 one. All models answer the same held-out texts.
#
# In this unit, from here to the last page, a **change** is the exact match of the candidate minus that of float, so *below 0 something was lost*, as in unit 05 (5.2, 5.10). Its 95 % interval is always that of [exercise 5.10](../05_evaluation/05_evaluation.ipynb#cell-id=ex_5_10_check), for two models that answered the same questions. A margin is kept if the *whole* interval lies above it: above −0.5 points, or above −1.
#
# (Model and functions come from `helpers.seq2seq`, which is built like your solution, so you can read on before you have solved it.) The fourth model asks what calibration is worth: it has seen one single date. (Four models write 2,000 answers each, letter by letter: on a busy machine this takes a while.)

# %%
calibration = [
    (sources, targets)
    for sources, targets in zip(*(ids.split(128) for ids in dates.pairs("training", 512, seed=61)[:2]), strict=True)
]
readers = {
    "float": float_reader,
    "dynamic int8": int8.dynamic_int8(float_reader),
    "static int8": seq2seq.static_int8(float_reader, calibration),
    "static int8, calibrated on one date": seq2seq.static_int8(
        float_reader, [(calibration[0][0][:1], calibration[0][1][:1])]
    ),
}
margins = {"dynamic int8": 0.005, "static int8": 0.01, "static int8, calibrated on one date": 0.01}
held_out_sources, held_out_targets, held_out_texts = dates.pairs("held_out", 2000, seed=62)
read_right = {name: seq2seq.exact_matches(model, held_out_sources, held_out_targets) for name, model in readers.items()}


# %%
def change_of(before: Tensor, after: Tensor) -> tuple[int, int, intervals.Interval]:
    """Broken and repaired answers, and the change of exact match with its interval (a loss is below 0)."""
    broken, repaired = int((before & ~after).sum()), int((~before & after).sum())
    loss = intervals.paired_loss(broken, repaired, len(before))  # float minus candidate: the other sign
    return broken, repaired, intervals.Interval(0 - loss.estimate, -loss.high, -loss.low)


def in_points(interval: intervals.Interval) -> str:
    """An interval of shares, in percentage points."""
    return f"{100 * interval.estimate:+.2f} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"


def margin_kept(change: intervals.Interval, margin: float) -> str:
    """Whether the whole interval lies above the margin, or below it, or neither."""
    return "yes" if change.low > -margin else "no" if change.high < -margin else "not known"


def comparison(name: str) -> dict[str, str]:
    """One row of the table: the model alone, and beside float."""
    right = read_right[name]
    of_all = intervals.wilson(int(right.sum()), len(right))
    row = {
        "model": name,
        "exact match, 95 % interval": f"{of_all.estimate:.2%} ({of_all.low:.2%} to {of_all.high:.2%})",
        "bytes, by torch.save": f"{metrics.file_bytes(readers[name]):,}",
    }
    if name not in margins:
        return row | {"broken": "", "repaired": "", "change in points, 95 % interval": "", "margin": "", "kept?": ""}
    broken, repaired, change = change_of(read_right["float"], right)
    return row | {
        "broken": str(broken),
        "repaired": str(repaired),
        "change in points, 95 % interval": in_points(change),
        "margin": f"{-100 * margins[name]:.1f}",
        "kept?": margin_kept(change, margins[name]),
    }


tables.show([comparison(name) for name in readers])
print(f"{len(held_out_targets):,} held-out texts; engine {engine}")
for name in ("dynamic int8", "static int8"):
    matrices = [part.weight() for part in readers[name].modules() if callable(getattr(part, "weight", None))]
    by_row = sum(matrix.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric) for matrix in matrices)
    print(
        f"{name}: {len(matrices)} int8 matrices, {by_row} with a scale for each row; {len(readers[name].state_dict())} entries in the file"
    )

# %% [markdown]
# The aim of 97 % in float is reached, and the two int8 models stay within their margins: they write the same answers as float, or almost. That the static file is the larger one is no fault: only it makes codes of the embedding, too, but it keeps a scale and a zero point for every tensor inside, as entries of their own, and on most engines for each row of a matrix. Read two things with care.
#
# - *No broken answer is no proof.* 2,000 texts without a broken one do not prove that the next one will not break. The interval knows this: it has a width even where nothing has changed. (The bootstrap of unit 05 would give a single point there; section 5 shows it.)
# - *One date of calibration* breaks a few answers at most, though what no observer has seen is cut off. If its interval contains 0, this table cannot tell the loss from luck: the test is easy for these models.
#
# Which texts does float itself get wrong?

# %%
wrong_ones = (~read_right["float"]).nonzero()[:, 0]
guesses = seq2seq.greedy(float_reader, held_out_sources[wrong_ones])
tables.show(
    [
        {
            "source": f"`{held_out_texts[i]}`",
            "right": dates.decode(held_out_targets[i]),
            "float answers": dates.decode(ids),
        }
        for i, ids in zip(wrong_ones.tolist(), guesses, strict=True)
    ]
)
jn = torch.tensor(["-jn-" in text or text.startswith("jn ") for text in held_out_texts])
print(f"January or June: {int(jn.sum())} of {len(jn):,} texts; {int((jn & ~read_right['float']).sum())} of the faults")

# %% [markdown]
# "jn" without a weekday is January or June, and nothing in the text says which: here even the best model guesses. The other faults are days of the year, where the model must compute.
#
# A harder test tells models apart better. Give each text with a word in it *two more* typos. Where do the models fail?

# %%
with_words = [form for form, write in dates.FORMS.items() if sum(c.isalpha() for c in write(shown_day)) > 2]
hard_right: dict[str, list[Tensor]] = {name: [] for name in list(readers)[:3]}
failing = []
for form in with_words:
    _, hard_targets, hard_texts = dates.pairs("held_out", 60, seed=63, forms=[form])
    draw = torch.Generator().manual_seed(64)
    for _ in range(2):
        kinds, spots = (torch.randint(high, (60,), generator=draw).tolist() for high in (3, 1000))
        hard_texts = [dates.mistyped(*typo) for typo in zip(hard_texts, kinds, spots, strict=True)]
    for name, right in hard_right.items():
        right.append(seq2seq.exact_matches(readers[name], dates.encode(hard_texts), hard_targets))
    missed = (~hard_right["float"][-1]).nonzero()[:3, 0].tolist()
    if form in ("mon day 'yy", "day n of year"):
        failing += [(form, hard_texts[i], dates.decode(hard_targets[i])) for i in missed]

fig, ax = plots.figure(width=9, height=4.4)
styles = [(plots.GREY, ""), (plots.ORANGE, "//"), (plots.BLUE, "..")]
for offset, (name, by_form), (colour, hatch) in zip((-0.27, 0, 0.27), hard_right.items(), styles, strict=True):
    faults = [100 * (1 - right.double().mean().item()) for right in by_form]
    places = [i + offset for i in range(len(with_words))]
    ax.barh(places, faults, height=0.25, color=colour, hatch=hatch, edgecolor="white", label=name)
ax.set_yticks(range(len(with_words)), with_words)
ax.invert_yaxis()
ax.set_xlabel("answers with a fault, %")
ax.legend()
plots.show(
    fig,
    caption="Faults with two more typos in every text, by form; 60 held-out texts each. Float, dynamic and static int8 answered the same texts.",
    alt="Groups of three horizontal bars, one group for each written form with words. Within a group the bars of float, dynamic and static int8 are about equally long; between the groups they differ: day n of year has by far the "
    "longest bars; all other forms have few faults, or none.",
)
hard = {name: torch.cat(by_form) for name, by_form in hard_right.items()}
for name in list(hard)[1:]:
    count_broken, count_repaired, change = change_of(hard["float"], hard[name])
    print(
        f"{name}: change in points {in_points(change)}; broken {count_broken}, repaired {count_repaired} of {len(hard[name])}"
    )

# %% [markdown]
# It is the *form* that decides, one above all, and hardly the precision: float fails on nearly the same texts, and only here and there an answer flips, in either direction. Here are the first faults of float in two forms:

# %%
tables.show(
    [
        {"form": form, "source": f"`{text}`", "right": right, "float answers": dates.decode(ids)}
        for (form, text, right), ids in zip(
            failing, seq2seq.greedy(float_reader, dates.encode([text for _, text, _ in failing])), strict=True
        )
    ]
)

# %% [markdown]
# Two typos can leave too little of a month of three letters: "ma" is March or May, "jn" January or June, for a person as well. The word "day" is another matter. It says nothing that is needed, and a person reads over "da" and "daaay". But one typo alone makes "dy", "daay" or "dya"; the others the model has never seen, and behind them it no longer computes the day rightly.
#
# Look at answers themselves, letter by letter. The last three texts are none that the model was trained for: the ISO date itself, a known form with a date that does not exist, and a name.

# %%
questions = [
    *("thursday, 8 july 1976", "8.7.1976", "7/8/1976", "day 190 of 1976", "the 8th of jluy 1976", "jul 8 '76"),
    *("1976-07-08", "31 february 1976", "robin hood"),
]
their_answers = {name: seq2seq.greedy(readers[name], dates.encode(questions)) for name in hard_right}
try:  # your own model and your own greedy, once they are written
    with torch.no_grad():
        my_reader = DateReader(float_reader.config).eval()
        my_reader.load_state_dict(float_reader.state_dict(), strict=False)
        their_answers["your DateReader, float"] = greedy(my_reader, dates.encode(questions))
        their_answers["your DateReader, static int8"] = greedy(
            seq2seq.static_int8(my_reader, calibration), dates.encode(questions)
        )
except NotImplementedError:
    print("Your own DateReader will stand here, too, when exercise 6.3 is solved.")
tables.show(
    [
        {"source": f"`{text}`"} | {name: f"`{dates.decode(ids[i])}`" for name, ids in their_answers.items()}
        for i, text in enumerate(questions)
    ]
)

# %% [markdown]
# The model answers everything, a date that does not exist and a name as well, in int8 as in float: it was taught to write dates, not to refuse. It even turns a date that is in ISO form already into another one, since no text in training looks like that. That is a limit for the report card of section 5, and no quantization has caused it.
#
# ### Who looks where?
#
# The attention to the memory can be looked at. Each row of the map is a step of writing; bright places are what the model reads at that step. The model writes the year first, and reads a text in which it comes last. Does it look in the right places?

# %%
watched_text, watched_block = "thursday, 8 july 1976", 1
watched_ids = dates.encode([watched_text], len(watched_text) + 1)
watched_answer = dates.encode(["1976-07-08"], dates.TARGET_LENGTH)


@torch.no_grad()
def looks(model: nn.Module) -> Tensor:
    """Probabilities of the attention to the memory in one block: (heads, target, source)."""
    seen = []
    gate = model.decoder[watched_block].cross.quant  # what passes here are the probabilities
    handle = gate.register_forward_hook(lambda _, __, p: seen.append(p.dequantize() if p.is_quantized else p))
    model(watched_ids, seq2seq.shifted(watched_answer))  # what is read: START, then all but the last letter
    handle.remove()
    return seen[0][0]


float_map, static_map = looks(readers["float"]), looks(readers["static int8"])
sharpest = int(float_map.amax(dim=-1).mean(dim=-1).argmax())  # the head with the clearest favourites
fig, axes = plots.figure(columns=3, width=12, height=3.6)
gap = (static_map - float_map)[sharpest]
top = float(gap.abs().max())
pictures = [
    axes[0].imshow(float_map[sharpest], vmin=0, vmax=1, aspect="auto"),
    axes[1].imshow(static_map[sharpest], vmin=0, vmax=1, aspect="auto"),
    axes[2].imshow(gap, cmap="PuOr", vmin=-top, vmax=top, aspect="auto"),
]
for ax, picture, title in zip(axes, pictures, ("float", "static int8", "int8 − float"), strict=True):
    ax.set_title(title)
    letters = [*watched_text.replace(" ", "_"), "END"]
    ax.set_xticks(range(len(letters)), letters, family="monospace", fontsize=8)
    ax.get_xticklabels()[-1].set_rotation(90)
    ax.set_yticks(range(dates.TARGET_LENGTH), [*"1976-07-08", "END"], family="monospace", fontsize=8)
    fig.colorbar(picture, ax=ax, shrink=0.8)
axes[0].set_ylabel("the letter that is written next")
plots.show(
    fig,
    caption="What one head of the decoder's last block looks at, while it writes a date. The first two pictures have one colour scale; the third has its own.",
    alt="Three maps of written letters against letters of the source. Float and int8 look alike: most rows have one or a few bright places, which differ between the rows for year, month and day; the row of the first figure has none, and those of the two zeros are bright at END. The map of the "
    "difference has a much smaller scale, with small errors of both signs, mostly where the probabilities are large.",
)
agree = (float_map.argmax(dim=-1) == static_map.argmax(dim=-1)).float().mean().item()
print(
    f"largest change of a probability: {(static_map - float_map).abs().max():.3f}; same favourite letter: {agree:.0%}"
)

# %% [markdown]
# Mostly, it does. The last figures of the year are read where they stand, the month from letters of its name, and the day from its figure. But in this head the two zeros look at END, where there is nothing of them to read, and the first "1" looks nowhere in particular: what a model looks at need not be what it needs. The int8 model looks at the same places, and only how much it looks moves a little: as in unit 04, section 5, though now between two texts.
#
# What did the repair cost, and what did it buy? The book's class had quantizers at its two ends, floats and crashes between, and no task. This one has masks, positions and one matching head; every matrix, the embedding included, is a table of 8-bit codes; in float it computes what `nn.Transformer` computes, up to rounding, and in int8 it reads dates as float does, within a margin that was stated before. The price is the list of crossings: LayerNorm, softmax, GELU and the residual stream are float, and unit 04 has shown why.
#
# The file is smaller, by the table above, but not to a quarter: under "Why is the file not a quarter?" unit 04 has opened such a file and shown what else is in it. So there is room, and the next section makes it a competition.


# %% [markdown]
# ## 4. The budget challenge
#
# In int8 the file is a good deal smaller. Suppose that this is not enough: the message must fit under a saddle. How small can the date reader become, if you may use everything from six units: fewer bits, groups, mixed precision, training with the error in sight?
#
# A competition needs a rule that cannot be bent, and ours is one sentence: **what counts is what another process can rebuild from the file.** `challenge.submit_entry` takes a model or an artefact, writes its bytes, forgets the original, rebuilds a model from the bytes with the course's own classes, and lets *that* one read held-out dates. Therefore:
#
# - **Bytes** are the length of the file, everything included: codes, scales, biases, names, configuration, hash.
# - **Quality** is the change of exact match on held-out dates, with sign and interval of section 3.
# - **Budget**: the file has at most `challenge.BUDGET` bytes, a tenth of the float file. **Floor**: at most `challenge.MARGIN`, 4 points, of exact match may be lost, and the *whole* 95 % interval of the change must say so: it lies above −4 points. Luck is not enough.
#
# PyTorch has no file for 3 bits, so there is one more form of entry. `challenge.pack(model, plan)` stores integer codes without gaps, as in exercise 4.2, for any width from 2 to 8 bits; a plan gives each matrix a `frontier.Scheme(bits, group, symmetric)`, as in unit 05 (section 5). Scales are float16, zero points one byte, and what the plan does not name stays float32.
# The judge unpacks it into a *float* model, so such an entry saves bytes of the file. It saves no time. That is the same bargain as that of the artefact in exercise 4.10.
#
# By hand: a matrix of 64 × 64 weights at 2 bits, affine, one scale a row, has $4096 \cdot 2 / 8 = 1024$ bytes of codes, $64 \cdot 2$ of scales and $64 \cdot 1$ of zero points: 1216 bytes in place of 16,384. At 3 bits it has 1728. *Predict:* the date reader has 235,136 weights in its matrices. How many bits each fit into the budget?

# %%
print(
    f"budget {challenge.BUDGET:,} bytes, floor {100 * challenge.MARGIN:.0f} percentage points, {challenge.POINTS} points"
)
uniform = {
    "8 bits, a scale a row": frontier.Scheme(8),
    "4 bits, a scale a row": frontier.Scheme(4),
    "3 bits, a scale a row": frontier.Scheme(3),
    "2 bits, a scale a row, affine": frontier.Scheme(2, "channel", symmetric=False),
    "2 bits, one scale a matrix, affine": frontier.Scheme(2, None, symmetric=False),
}
plain_entries = [
    challenge.submit_entry(float_reader, "float"),
    challenge.submit_entry(int8.dynamic_int8(float_reader), "dynamic int8"),
    challenge.submit_entry(
        seq2seq.static_int8(float_reader, [dates.pairs("training", 250, seed)[:2] for seed in (641, 642)]),
        "static int8",
    ),
]
for title, scheme in uniform.items():
    packed_file = challenge.pack(float_reader, frontier.everywhere(float_reader, scheme))
    plain_entries.append(challenge.submit_entry(packed_file, title))
tables.show([result.row() for result in plain_entries])
never_planned = sum(p.numel() for p in float_reader.parameters()) - sum(
    w.numel() for w in frontier.matrices(float_reader).values()
)
print(f"biases and LayerNorms, float32 in every entry: {4 * never_planned:,} bytes")

# %% [markdown]
# No uniform width wins. Down to 4 bits hardly a date is lost, and the file is too large; at 2 bits it is small enough, and reads less than a third of the dates with a scale a row, and none with one scale a matrix. (PyTorch's own two int8 files are larger than the packed one of 8 bits: each is an archive with a name for every tensor, and dynamic int8 keeps the embedding in float. For the same reason the float file, here written by safetensors, has fewer bytes than that of `torch.save` in section 3. Bits per character ask for the whole distribution of each next
# character: they tell 8 bits from 4 where exact match hardly can.)
#
# ### Which matrix pays for it?
#
# Unit 04 asked this of the language model (exercise 4.7). Here is the answer for the date reader: round *one* matrix to 2 bits, leave all others in float, and measure how far the model's predictions move, in bits per character (KL divergence, unit 05, section 1). On validation dates: held-out ones are for the judge alone.


# %%
probe_source, probe_target, _ = dates.pairs("validation", 64, seed=640)
with torch.no_grad():
    float_log_p = float_reader(probe_source, seq2seq.shifted(probe_target)).log_softmax(-1)


@torch.no_grad()
def moved(model: nn.Module) -> float:
    """KL divergence of the model's predictions from those of the float reader, bits per character."""
    found = model(probe_source, seq2seq.shifted(probe_target)).log_softmax(-1)
    return ((float_log_p.exp() * (float_log_p - found)).sum(-1).mean() / math.log(2)).item()


two_bits = uniform["2 bits, a scale a row, affine"]
alone = {name: moved(frontier.rounded(float_reader, {name: two_bits})) for name in frontier.matrices(float_reader)}
rest = sum(alone.values()) - alone["embedding"]
print(f"embedding: {alone['embedding']:.2g} bits per character; the other {len(alone) - 1} together: {rest:.2g}")
bars = {"e": ("encoder", plots.BLUE, ""), "d": ("decoder", plots.ORANGE, "//"), "": ("both ends", plots.RED, "xx")}
fig, ax = plots.figure(width=8, height=6.4)
for row, name in enumerate(sorted(alone, key=alone.get)):
    label, color, hatch = bars["" if name in ("embedding", "head") else name[0]]
    ax.barh(row, max(alone[name], 1e-7), color=color, hatch=hatch, edgecolor="white", label=label)
ax.set_yticks(range(len(alone)), sorted(alone, key=alone.get), fontsize=7)
ax.set(xscale="log", xlabel="KL divergence from float, bits per character (logarithmic)")
handles, labels = ax.get_legend_handles_labels()
one_each = dict(zip(labels, handles, strict=True))
ax.legend(one_each.values(), one_each.keys(), loc="lower right")
plots.show(
    fig,
    caption="One matrix at 2 bits, all others in float: how far the predictions move. Each step of the axis is a factor of ten.",
    alt="Horizontal bars for 34 matrices on a logarithmic axis, sorted. The embedding's bar is by far the longest, far more "
    "than ten times the next one; the other 33 fall off slowly from there.",
)

# %% [markdown]
# The embedding's number is larger than those of all others together (the axis is logarithmic), and it belongs to a small matrix: bits are cheap there. For the rest the picture is only a first guess. It asks for one matrix at a time, but in a file of 2 bits *all* are rounded, and errors meet (unit 05, section 7, under *Does it hold on the model?*).
#
# Two more ideas, as references. First, *mixed precision by component*: 4 bits for the embedding, 3 for all attention layers, 2 for the rest; and as a control the same with attention and feed-forward network exchanged. Second, *training with the error in sight* (unit 04, section 9), in its shortest form: in each step the weights are rounded, and the gradient passes to the float weights as if they were not.


# %%
def trained_with_rounding(model: seq2seq.Seq2Seq, plan: frontier.Plan, steps: int, seed: int = 0) -> seq2seq.Seq2Seq:
    """A float copy of `model`, trained so that it stays good when it is rounded by `plan`."""
    twin = copy.deepcopy(model)
    weights = dict(twin.named_parameters())
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.2)
    sources, targets, _ = dates.pairs("training", 64 * steps, seed)
    for source, target in zip(sources.split(64), targets.split(64), strict=True):
        now = dict(weights)
        for name, scheme in plan.items():
            w = weights[f"{name}.weight"]
            grid = rounding.round_to_nearest(w.detach(), scheme.bits, scheme.group_size(w), scheme.symmetric)
            now[f"{name}.weight"] = w + (grid - w.detach())  # the value of `grid`, the gradient of `w`
        logits = torch.func.functional_call(twin, now, (source, seq2seq.shifted(target)))
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return twin


def by_component(attention: int, ffn: int) -> dict[str, frontier.Scheme]:
    """A plan, affine with a scale a row: 4 bits for the embedding, 2 for the head."""
    bits = {
        name: 4 if name == "embedding" else ffn if ".ffn." in name else 2 if name == "head" else attention
        for name in frontier.matrices(float_reader)
    }
    return {name: frontier.Scheme(b, "channel", symmetric=False) for name, b in bits.items()}


three_bit_plan, two_bit_plan = (frontier.everywhere(float_reader, uniform[t]) for t in list(uniform)[2:4])
packed_entries = {
    "mixed: attention 3 bits, rest 2": challenge.pack(float_reader, by_component(attention=3, ffn=2)),
    "control: feed-forward 3 bits, rest 2": challenge.pack(float_reader, by_component(attention=2, ffn=3)),
    "trained 30 steps, 3 bits": challenge.pack(trained_with_rounding(float_reader, three_bit_plan, 30), three_bit_plan),
    "trained 30 steps, 2 bits, affine": challenge.pack(
        trained_with_rounding(float_reader, two_bit_plan, 30), two_bit_plan
    ),
}
board = plain_entries + [challenge.submit_entry(entry, title) for title, entry in packed_entries.items()]
tables.show([result.row() for result in board[-4:]])

# %% [markdown]
# The mixed plan beats its control, which has *more* bytes: where the bits are spent counts. A few seconds of training give back most of what 2 bits had lost, in the same number of bytes. But look at the last two columns: who has two times *yes*? That place is yours.
#
# ### What the judge refuses
#
# A rule is only as good as what happens to those who bend it. Each of these entries tries to look small, or good, by something that is not in the weights:

# %%
eight = int8.dynamic_int8(float_reader)
two_bit_file = challenge.pack(float_reader, two_bit_plan)


class Pretender(nn.Module):
    """Counts as small, answers with the float model that it keeps beside."""

    def __init__(self) -> None:
        super().__init__()
        self.shown, self.config = eight, float_reader.config
        self.secret = [float_reader]  # in a list, PyTorch does not see it

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.secret[0](source, target)


def altered(change: object) -> nn.Module:
    """A copy of the int8 model after `change`."""
    model = copy.deepcopy(eight)
    change(model)
    return model


def with_metadata(extra: dict[str, str]) -> bytes:
    header = json.loads(two_bit_file[8 : 8 + int.from_bytes(two_bit_file[:8], "little")])["__metadata__"]
    return safetensors.torch.save(safetensors.torch.load(two_bit_file), header | extra)


def pickled(model: nn.Module) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        torch.save(model, Path(name) / "model.pt")
        return (Path(name) / "model.pt").read_bytes()


cheats = {
    "a wrapper that answers with another model": Pretender,
    "float weights in a buffer that is not saved": lambda: altered(
        lambda m: m.register_buffer("spare", float_reader.embedding.weight.detach(), persistent=False)
    ),
    "a hook that improves the output": lambda: altered(lambda m: m.head.register_forward_hook(lambda *_: None)),
    "a method of its own": lambda: altered(lambda m: setattr(m, "decode", types.MethodType(lambda s, *_: None, m))),
    "a larger model": lambda: seq2seq.Seq2Seq(seq2seq.Seq2SeqConfig(**float_reader.config.to_dict() | {"n_layers": 3})),
    "a list of answers in the file's header": lambda: with_metadata({"answers": "1976-07-04 " * 500}),
    "the answers as one more tensor": lambda: safetensors.torch.save(
        safetensors.torch.load(two_bit_file) | {"answers": probe_target},
        json.loads(two_bit_file[8 : 8 + int.from_bytes(two_bit_file[:8], "little")])["__metadata__"],
    ),
    "one scale a weight: floats under another name": lambda: challenge.pack(
        float_reader, {"head": frontier.Scheme(2, 1)}
    ),
    "a pickled model, which is a program": lambda: pickled(float_reader),
    "a flipped bit": lambda: two_bit_file[:-9] + bytes([two_bit_file[-9] ^ 1]) + two_bit_file[-8:],
}
for title, entry in cheats.items():
    print(f"{title}\n    ", end="")
    errors.show_error(lambda entry=entry: challenge.submit_entry(entry()))

# %% [markdown]
# A model in memory can carry wrappers, hooks and methods of its own, so those are looked for, kind by kind. A *file* needs no such hunt: the judge knows what must be in it, writes it a second time from what it has understood, and refuses it if a byte differs. Here is what that leaves: the weights themselves, and nothing that the judge did not ask for.
#
# Two things no judge of a file can see. The first: whether somebody *trained*, or chose, on the held-out dates. New pairs with another seed would not show it, for they are pairs of the same dates. Benchmarks live with the same weakness; the only real cure is data that did not exist when the model was made. (The check watches whether a model reads held-out dates while your function runs. That catches a mistake. It does not catch a plan.)
# The second: the judge in *this* notebook is a function that the notebook can replace. So the grade comes from a process of its own, in which nothing of this notebook runs: `python -m helpers.challenge FILE`. (The check's process is started once and waits for files; it says the same.)
#
# ### Exercise 6.4: your entry
# *Difficulty 4 of 5 · 40 minutes · 3 points*
#
# Write `my_entry`: from the float model it makes an artefact that meets budget *and* floor. Any mix of methods is welcome: widths, groups, symmetric or affine, one plan by hand or one that is searched for, training. `trained_with_rounding`, `moved`, `frontier.rounded` and `budget.greedy` (unit 05, exercise 5.9: it buys bits, and has nothing to do with the `greedy` that writes dates) are there to be used.
#
# - Dates of "training" and "validation" are yours: learn from the one, choose on the other. Held-out dates are for the judge alone. To choose: `exam = challenge.draw_exam(model, seed=1, count=500, split="validation")`, then `challenge.submit_entry(entry, exam=exam).change`. Without `exam`, the judge asks held-out dates, so `my_entry` itself must not call it like that (the check watches).
# - Leave the model as it is, gradients included, and seed what is random. Be done in a minute (that one is a request: nobody stops the time).
# - The check calls your function once, or twice if it draws random numbers, with a date reader whose hidden units stand in another order. It computes the same as `float_reader`; the file must be made of *it*.
# - More than that earns *extra credit*. It is named in the result, and it is worth no points: a file below each size in `challenge.SMALLER` that still meets the floor; a loss that is certainly below `challenge.CLOSER`.
# - **The second prize** is the last of these sizes: *below 80,000 bytes*, floor included. A plan alone hardly gets there: in the first table, 2 bits with a scale a row have more bytes than that already, and with one scale a matrix no date is read. What else can go, and what must then be learned again?


# %% nbgrader={"grade": false, "grade_id": "ex_6_4", "locked": false, "schema_version": 3, "solution": true, "task": false}
def my_entry(model: seq2seq.Seq2Seq) -> bytes:
    """An artefact of `model` for the budget challenge.

    Parameters
    ----------
    model : Seq2Seq
        The trained float model, in eval mode; is not changed.

    Returns
    -------
    bytes
        The file: at most ``challenge.BUDGET`` bytes, as `challenge.pack` makes it.

    Example
    -------
    >>> exam = challenge.draw_exam(float_reader, seed=1, split="validation")
    >>> challenge.submit_entry(my_entry(float_reader), exam=exam).points
    3
    """
    ### BEGIN SOLUTION
    source, target, _ = dates.pairs("validation", 64, seed=64)
    with torch.no_grad():
        goal = model(source, seq2seq.shifted(target)).log_softmax(dim=-1).flatten(0, 1)

    def distance(candidate: frontier.Plan) -> float:
        with torch.no_grad():
            got = frontier.rounded(model, candidate)(source, seq2seq.shifted(target)).log_softmax(dim=-1)
        return F.kl_div(got.flatten(0, 1), goal, reduction="batchmean", log_target=True).item()

    low, high = (frontier.Scheme(bits, "channel", symmetric=False) for bits in (2, 3))
    plan = frontier.everywhere(model, low) | {"embedding": frontier.Scheme(4, "channel", symmetric=False)}
    start, saved = distance(plan), {}
    for name, weight in frontier.matrices(model).items():
        if name != "embedding":  # what does one bit more save here, while all the others have 2?
            saved[name] = (start - distance(plan | {name: high})) / weight.numel()
    for name in sorted(saved, key=saved.get, reverse=True):
        richer = plan | {name: high}
        if saved[name] > 0 and len(challenge.pack(model, richer)) <= challenge.BUDGET:
            plan = richer
    return challenge.pack(model, plan)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_6_4_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 6.4: run this cell.
import contextlib
import pickle
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from helpers import challenge, checkpoint, checks, dates, judge, packed, seq2seq


@checks.isolated
def check_ex_6_4() -> None:
    codes = {ord(c): 3 + i for i, c in enumerate(dates.ALPHABET)}
    texts = (form(day) for day in dates.dates_of("held_out") for form in dates.FORMS.values())
    held_out = {text.translate(codes).encode() + bytes([dates.END]) for text in texts}  # as ids, without typos

    def reordered(seed: int) -> seq2seq.Seq2Seq:
        """The date reader with the hidden units of its feed-forward networks in another order: it computes the same."""
        twin, mixer = checkpoint.load_date_reader(), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for block in [*twin.encoder, *twin.decoder]:
                order = torch.randperm(block.ffn.up.out_features, generator=mixer)
                for tensor in (block.ffn.up.weight, block.ffn.up.bias):
                    tensor.copy_(tensor[order])
                block.ffn.down.weight.copy_(block.ffn.down.weight[:, order])
        return twin

    def likeness(entry: bytes, model: seq2seq.Seq2Seq) -> float:
        """The cosine between weights of the file and those of `model`: near 1, also after training; of others near 0."""
        mine, given = (
            torch.cat([block.ffn.up.weight.detach().flatten() for block in [*m.encoder, *m.decoder]])
            for m in (challenge.unpack(entry), model)
        )
        return torch.cosine_similarity(mine, given, dim=0).item()

    def origin(entry: bytes, model: seq2seq.Seq2Seq) -> None:
        """The file must be one of `model`, not of another reader."""
        if likeness(entry, model) > 0.5:
            return
        assert likeness(entry, checkpoint.load_date_reader()) <= 0.5, (
            "my_entry returns a file of `float_reader`, or of a reader that it loads itself: pack the model that it is given, or a trained copy of it."
        )
        raise AssertionError(
            "my_entry returns a file of another model, whose weights have nothing to do with those of the one it was given: pack the argument, or a trained copy of it."
        )

    def luck() -> bytes:
        return pickle.dumps((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()))

    @contextlib.contextmanager
    def watched(asked: list[str], judges: list[str], dice: list[str]) -> Iterator[None]:
        """Note held-out dates that are read, judges that would read them, and generators without a seed."""
        really, looks_up, starts = dates.dates_of, seq2seq.Seq2Seq.embed, subprocess.Popen.__init__

        def splits(split: str) -> list:
            asked.extend(held_out if split == "held_out" else ())
            return really(split)

        def rows(self: seq2seq.Seq2Seq, ids: torch.Tensor) -> torch.Tensor:
            sources = ids.reshape(-1, ids.shape[-1]).to(torch.uint8).numpy()
            asked.extend(held_out.intersection(row.tobytes().rstrip(b"\0") for row in sources))
            return looks_up(self, ids)

        def process(self: subprocess.Popen, command: object, *others: object, **more: object) -> None:
            judges.extend(["a judge"] if "helpers." in str(command) else [])
            starts(self, command, *others, **more)

        def noted(function: Callable, notes: list[str], always: bool = True) -> Callable:
            def call(*arguments: object, **more: object) -> object:
                if always or not (arguments or more):
                    notes.append(function.__name__)
                return function(*arguments, **more)

            return call

        with contextlib.ExitStack() as stack:
            for place, name, watch in [
                (dates, "dates_of", splits),
                (seq2seq.Seq2Seq, "embed", rows),
                (subprocess.Popen, "__init__", process),
                (challenge, "_usual_exam", noted(challenge._usual_exam, judges)),
                (judge, "judged", noted(judge.judged, judges)),
                (np.random, "default_rng", noted(np.random.default_rng, dice, always=False)),
                (random, "Random", noted(random.Random, dice, always=False)),
            ]:
                stack.enter_context(mock.patch.object(place, name, watch))
            yield

    def entry_of(model: seq2seq.Seq2Seq) -> bytes:
        """What my_entry makes of `model`, watched: the model stays as it is, and no model reads held-out dates."""
        asked, judges, dice, state = [], [], [], luck()
        with checks.untouched(model=model), watched(asked, judges, dice):
            entry = my_entry(model)
        assert not judges, (
            "my_entry asks the judge without `exam=`, and such a judge asks held-out dates: whoever chooses by them cannot report on them. The exercise has the line that draws an exam of validation dates."
        )
        assert len(asked) < 5, (  # a few may be there by accident, in an example of yours
            "my_entry looks at held-out dates: whoever chooses or trains on them cannot report on them. Choose on 'validation' (the exercise has the line for it), train on 'training'."
        )
        assert entry is not None, "my_entry returns nothing: does your function end with `return`?"
        assert not isinstance(entry, torch.nn.Module), (
            "my_entry returns a model, and the competition is about a file: return the bytes that challenge.pack makes."
        )
        assert isinstance(entry, bytes), f"my_entry should return the bytes of a file: not {type(entry).__name__}."
        if dice or luck() != state:  # random numbers were drawn, so far with an unknown seed
            assert my_entry(model) == entry, (
                "my_entry makes another entry the second time: seed what is random, for example with torch.manual_seed."
            )
        return entry

    def advice_for(entry: bytes, model: seq2seq.Seq2Seq) -> str:
        """What the file itself tells about why it reads so badly."""
        if not torch.equal(challenge.unpack(entry).decoder_norm.weight, model.decoder_norm.weight):
            return "It was trained: with steps enough, and with the very plan that is packed?"
        bits = packed.read_header(entry, "packed")["plan"].get("embedding", [32])[0]
        if bits < 4:
            return "Where does one more bit help most? Begin with the embedding."
        return "The embedding has bits enough: which other matrices gain most from one more?"

    with checks.check("6.4", "your entry fits into the budget and stands above the floor, judged by its file alone"):
        model = reordered(64)
        my_entry.file = entry = entry_of(model)  # kept for the leaderboard, which need not call your function again
        try:
            result = challenge.submit_entry(entry, "your entry")
        except challenge.Refused as refusal:
            raise AssertionError(f"the judge refuses your entry: {refusal}") from None
        assert result.kind == "packed", (
            f"your file is one of the kind {result.kind!r}: return the bytes that challenge.pack makes."
        )
        origin(entry, model)
        over = len(entry) - challenge.BUDGET
        assert over <= 0, (
            f"your file has {len(entry):,} bytes, {over:,} more than the budget: which matrices of the picture could do with fewer bits?"
        )
        low, high = 100 * result.loss.low, 100 * result.loss.high
        advice = advice_for(entry, model)
        assert result.loss.low <= challenge.MARGIN, (
            f"the file fits, but it lies below the floor: {low:.1f} to {high:.1f} percentage points of exact match are lost. {advice}"
        )
        assert result.meets_floor, (
            f"near the floor, but not certainly above it: {low:.1f} to {high:.1f} percentage points are lost, and the whole interval must be below {100 * challenge.MARGIN:.0f}. Spend what is left of the budget."
        )
        assert result.points == challenge.POINTS
        print(
            f"your entry: {result.bytes:,} bytes, {result.times_smaller:.1f} times smaller than float, {result.exact.estimate:.2%} exact match"
        )
        print("extra credit:", "; ".join(result.extra) or "none yet")
    ### BEGIN HIDDEN TESTS
    twin = reordered(6400)
    second = entry_of(twin)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "entry.safetensors"
        file.write_bytes(second)
        report, size = judge.judged(file, seed=62, count=2000), file.stat().st_size
    assert "refused" not in report, f"a process of its own refuses the entry: {report}"
    assert report["pairs"] == 2000 and report["seed"] == 62 and report["bytes"] == size
    assert report["kind"] == "packed", "another kind of file."
    origin(second, twin)
    assert size <= 96_000, f"in a process of its own the file has {size} bytes."
    assert report["loss"][2] < 0.04, (
        f"judged by a process of its own, the entry is not certainly above the floor: {report}"
    )
    source, target, _ = dates.pairs("held_out", 600, seed=6401)  # other dates, no judge
    before = torch.cat([torch.ones_like(target[:, :1]), target[:, :-1]], dim=1)
    with torch.no_grad():
        misread = (challenge.unpack(second)(source, before).argmax(-1) != target).any(dim=1).double().mean()
    assert misread < 0.08, "on other held-out dates the entry reads far worse than on those of the judge."
    ### END HIDDEN TESTS


check_ex_6_4()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Start from 2 bits everywhere and ask where more bits help most *per byte*. The picture gives one of the answers away: it is a small matrix. Which kind of scheme loses least at 2 bits, symmetric (three values) or affine (four)?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Give the embedding 4 bits. For every other matrix measure what the *third* bit saves while all others have 2 (not while they are float), divide by the number of weights, and raise the best ones as long as `len(challenge.pack(model, plan))` fits. Or keep 2 bits in the blocks, 4 at both ends, and train for 100 steps or more.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `plan = frontier.everywhere(model, frontier.Scheme(2, "channel", False)) | {"embedding": frontier.Scheme(4, "channel", False)}`; then for each name in order of benefit per weight: `if len(challenge.pack(model, plan | {name: three_bits})) <= challenge.BUDGET: plan |= {name: three_bits}`; at last `return challenge.pack(model, plan)`. With training: `challenge.pack(trained_with_rounding(model, plan, 100), plan)`.
# </details>

# %% [markdown]
# ### The leaderboard
#
# Your entry among the others (run the check first, which keeps your file; without a solution, only the references are drawn). Up and to the left is better. The frontier joins the entries that nobody dominates: where nobody is smaller *and* at least as good.


# %%
def judged_again() -> challenge.Result | None:
    try:
        file = getattr(my_entry, "file", None) or my_entry(float_reader)
        return challenge.submit_entry(file, "your entry", references=board)
    except Exception as error:
        print(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return None


yours = judged_again()
everybody = board + ([yours] if yours else [])
frontier_rows = frontier.frontier([(r.bytes, -r.change.estimate) for r in everybody])
undominated = sorted((everybody[i] for i in frontier_rows), key=lambda r: r.bytes)
fig, ax = plots.figure(width=9, height=4.6)
left_edge = min(75_000, 0.9 * min(r.bytes for r in everybody))
ax.axvspan(left_edge, challenge.BUDGET, color=plots.GREY, alpha=0.15, linewidth=0)
ax.axvline(challenge.BUDGET, color=plots.GREY, linestyle="--")
ax.axhline(-100 * challenge.MARGIN, color=plots.GREY, linestyle=":")
ax.step(
    [r.bytes for r in undominated],
    [100 * r.change.estimate for r in undominated],
    where="post",
    color=plots.GREEN,
    label="frontier",
)
marks = {"PyTorch's own files": ("s", plots.BLUE), "packed": ("o", plots.BLUE), "packed, trained": ("^", plots.ORANGE)}
for number, r in enumerate(everybody, start=1):
    sort = "packed, trained" if r.name.startswith("trained") else "packed" if r.kind == "packed" else next(iter(marks))
    mark, color = ("*", plots.RED) if r is yours else marks[sort]
    ax.plot([r.bytes] * 2, [100 * r.change.low, 100 * r.change.high], color=color, linewidth=1)
    ax.plot(r.bytes, 100 * r.change.estimate, mark, markersize=14 if r is yours else 6, color=color)
    ax.annotate(str(number), (r.bytes, 100 * r.change.estimate), textcoords="offset points", xytext=(6, 5), fontsize=8)
if yours:
    marks["you"] = ("*", plots.RED)
for sort, (mark, color) in marks.items():
    ax.plot([], [], mark, color=color, label=sort)
ax.legend(loc="lower right")
ax.set_yscale("symlog", linthresh=1)
ax.set_xscale("log")
ax.set_xlim(left_edge, 1.15e6)
ax.set_ylim(-110, 0.4)
ax.set_xticks([80_000, 96_000, 150_000, 300_000, 600_000, 1_000_000], ["80", "96", "150", "300", "600", "1000"])
ax.set_yticks([0, -1, -4, -10, -30, -100], ["0", "−1", "−4", "−10", "−30", "−100"])
ax.minorticks_off()
ax.set(xlabel="kilobytes of the file (logarithmic)", ylabel="change of exact match, points")
plots.show(
    fig,
    caption="Bytes against the change of exact match, with 95 % intervals. Dashed: the budget; dotted: the floor; steps: the frontier. "
    "Who is in the shaded strip, above the dotted line with the whole interval, has won. The numbers are rows of the table.",
    alt="Scatter plot with logarithmic axes. Float, dynamic and static int8, 8 and 4 bits lie near zero, right of the dashed budget line. "
    "The two entries of 2 bits lie left of it at the very bottom. A red star, the entry of this exercise, lies just left of the budget line and above the dotted floor line; "
    "the references with 3 bits are between 100 and 120 kilobytes.",
)
tables.show([{"no.": number} | r.row() for number, r in enumerate(everybody, start=1)])
if yours:
    print("points:", yours.points, "of", challenge.POINTS)
    print("extra credit:", "; ".join(yours.extra) or "none yet")
    print("you dominate:", "; ".join(yours.dominates) or "nobody")
    my_numbers["Budget challenge: file"] = f"{yours.bytes:,} bytes, {yours.times_smaller:.1f} times smaller than float"
    my_numbers["Budget challenge: change of exact match"] = f"{100 * yours.change.estimate:+.1f} percentage points"
    my_numbers["Budget challenge: extra credit"] = "; ".join(yours.extra) or "none"

# %% [markdown]
# *Look back.* What did it cost? A few dates in a hundred, with an interval that says so, and no time was saved: an unpacked entry computes in float. What did it buy? A file of a tenth. The large steps were cheap to find: one look at the sensitivities, one plan, one matrix with more bits. And one number stayed the same in every packed entry: biases and LayerNorms in float32. Divide the bytes printed under the first table by those of the float file, and then by those of your entry.
# When the large things have become small, the small things are what is left. Who wants to go on, goes on there.


# %% [markdown]
# ## 5. The report card
#
# > **The book says** (its conclusion): the finished model is small and quick enough for a modest computer.
# >
# > **What happens:** not one number follows. How large is the file? How many answers changed, and how sure is that? On which machine was it tried, and what was it not tried on? And section 1 has shown that the class, once converted, stops at its first input.
# >
# > **What works:** one page which somebody else can check. This section fills it in.
#
# You have a model that fits. Tomorrow a team wants to use it, and you are on holiday. What do they need? The *artefact* (the file that ships, unit 04, section 10), how it was made, what it costs, what it buys, where it fails, and one word: ship it, or not. Three rules keep such a page honest:
#
# 1. **Measure the file, not the object in your notebook.** The file is what ships. So everything on the page is computed from a model that was rebuilt from it.
# 2. **The margin first.** How much may the exact match fall? We say: by at most 1 percentage point. That is section 3's margin for this recipe; it is stated before the pairs of this section are drawn, and it is not moved afterwards.
# 3. **The word follows from the numbers by a rule.** Nobody argues with the page at five in the evening.
#
# Here are three candidates, each written to a file of its own:
#
# | candidate | how it was made |
# |---|---|
# | static int8 | calibrated on training texts with their whole answers |
# | one step | the same recipe, but somebody calibrated only the *first* step of the decoder: its input was START and nothing else |
# | 4 bits, simulated | weights rounded to 4 bits, one scale a row, and saved as the float numbers that they now are |


# %%
def load_reader(path: Path) -> Seq2Seq:
    """Rebuild a date reader from its file alone: float from safetensors, static int8 from a state_dict."""
    if path.suffix == ".safetensors":
        return load_checkpoint(path)
    skeleton = seq2seq.static_int8(load_date_reader(), [dates.pairs("training", 1, seed=0)[:2]])
    # Only its structure counts: every number, each range included, is now replaced by the file's.
    skeleton.load_state_dict(torch.load(path, weights_only=True))
    return skeleton


calibration_pairs = dates.pairs("training", 256, seed=65)[:2]  # sources and targets
first_step = (calibration_pairs[0], calibration_pairs[1][:, :1])
made = tempfile.TemporaryDirectory()  # gone when the kernel ends
files = {
    "static int8": Path(made.name) / "reader.int8.pt",
    "one step": Path(made.name) / "reader.one_step.pt",
    "4 bits, simulated": Path(made.name) / "reader.four_bits.safetensors",
}
for name, batch in {"static int8": calibration_pairs, "one step": first_step}.items():
    int8_reader = seq2seq.static_int8(float_reader, [batch])  # a name, so that it lives until it is saved: see below
    torch.save(int8_reader.state_dict(), files[name])
save_checkpoint(rounding.with_rounded_linears(float_reader, 4, "channel"), files["4 bits, simulated"], {})
MARGIN = 0.01  # at most 1 percentage point of exact match may be lost

# %% [markdown]
# A trap on the way, of the silent kind. The embedding of `int8_reader` hands out a copy of its codes, but its scales are a view of its own memory. So ask twice:

# %% tags=["nbval-check-output"]
first_look, second_look = (int8_reader.state_dict()["embedding._packed_params._packed_weight"] for _ in range(2))
print("codes, the same memory:", first_look.data_ptr() == second_look.data_ptr())
print(
    "scales, the same memory:",
    first_look.q_per_channel_scales().data_ptr() == second_look.q_per_channel_scales().data_ptr(),
)

# %% [markdown]
# In the single line `torch.save(make_model().state_dict(), path)` nobody keeps the model: its memory is free before the file is written, and whatever lies there by then is saved as scales. So give the model a name until it is saved. And it is rule 1 again: whoever measures the object in the notebook never sees such a file.
#
# ### Nothing changed: how sure is that?
#
# The date reader is sturdy, so it may well happen that not a single answer changes. What does the bootstrap of unit 05 say then? Take 50 answers that are all right, before and after:

# %% tags=["nbval-check-output"]
all_right = torch.ones(50)
print("paired bootstrap:", intervals.paired_bootstrap(all_right, all_right))

# %% [markdown]
# An interval of width zero. Of course: whatever is drawn from fifty zeros, the mean is zero. But fifty answers cannot prove that the loss is *exactly* nothing, nor even that it is below 1 point: if one answer in fifty broke, we would quite often have seen none of it. When few answers or none have changed, a formula that knows this is better. You have met it in
# [exercise 5.10](../05_evaluation/05_evaluation.ipynb#cell-id=ex_5_10_check) (Agresti and Min): with $n$ pairs, $b$ answers **broken** (right before, wrong after) and $r$ **repaired** (the other way round),
#
# $$d' = \frac{r - b}{n + 2} \qquad q' = \frac{b + r + 1}{n + 2} \qquad d' \pm 1.96 \sqrt{\frac{q' - d'^2}{n + 2}}$$
#
# It counts two pairs more than were asked, and in these one change more, half of it broken and half of it repaired. $d'$ is the middle of the interval of the change, and $q'$ the share of answers that changed, in either direction; without the added pairs they would be $(r - b)/n$ and $(b + r)/n$. Sections 3 and 4 have used it already. By hand, for 50 pairs and no change: $d' = 0$, $q' = 1/52$, and the half width is $1.96 \cdot \sqrt{1/52^2} = 1.96/52 = 0.038$. So after fifty perfect answers a loss of 3 points is still possible.
#
# How many pairs does the promise "at most 1 point" need?


# %% tags=["nbval-check-output"]
def paired_interval(broken: int, repaired: int, pairs: int) -> tuple[float, float, float]:
    """Middle and bounds of repaired minus broken, as a share of all pairs."""
    size = pairs + 2
    center = (repaired - broken) / size
    spread = 1.96 * ((broken + repaired + 1) / size / size - center**2 / size) ** 0.5
    return center, center - spread, center + spread


for count_broken in (0, 1, 3):
    # Rounded, so that the margin itself does not count as above it.
    enough = next(n for n in range(2, 2000) if round(paired_interval(count_broken, 0, n)[1], 9) > -MARGIN)
    print(f"{count_broken} broken, none repaired: at least {enough} pairs")

# %% [markdown]
# Now on the real file:

# %%
card_sources, card_targets, _ = dates.pairs("held_out", 600, seed=650)
float_right = seq2seq.exact_matches(load_reader(DATE_READER), card_sources, card_targets)
int8_right = seq2seq.exact_matches(load_reader(files["static int8"]), card_sources, card_targets)
fig, ax = plots.figure(width=7.5, height=3.0)
for place, count in enumerate((50, 100, 150, 300, 600)):
    gone = int((float_right & ~int8_right)[:count].sum())
    won = int((~float_right & int8_right)[:count].sum())
    center, low, high = (100 * x for x in paired_interval(gone, won, count))
    ax.plot([place, place], [low, high], color=plots.BLUE, linewidth=3)
    ax.plot(place, center, marker="o", color=plots.BLUE)
    ax.annotate(f"{gone} broken\n{won} repaired", (place, high), (0, 5), textcoords="offset points", ha="center")
ax.axhline(-100 * MARGIN, color=plots.RED, linestyle="--")
ax.text(4.45, -100 * MARGIN - 0.15, "the margin", color=plots.RED, va="top", ha="right")
ax.axhline(0, color=plots.GREY, linewidth=0.8)
ax.set_xticks(range(5), ["50", "100", "150", "300", "600"])
ax.set_yticks([-4, -2, -1, 0, 2, 4])
ax.set(xlabel="held-out pairs", ylabel="change, percentage points", xlim=(-0.5, 4.5), ylim=(-5, 6))
plots.show(
    fig,
    caption="The same comparison, static int8 with float, after more and more pairs. The promise holds when the whole bar is above the margin.",
    alt="Five vertical intervals around zero for 50 to 600 pairs, each narrower than the one before. Those of few pairs reach below the dashed margin at minus 1 point; those of many pairs stay above it.",
)

# %% [markdown]
# Even without a single changed answer, a small test leaves the promise open. "Not yet known" is an honest answer, so the rule has three words and not two. With margin $m$:
#
# | word | when |
# |---|---|
# | `"ship"` | the *lower* bound of the interval is above $-m$, **and** the file is smaller than the reference's |
# | `"do not ship"` | the *upper* bound is below $-m$ (the loss is proven to be too large), **or** the file is not smaller (then quantization has bought nothing) |
# | `"measure more"` | otherwise |
#
# "Above" and "below" are meant strictly: a bound that lies exactly on $-m$ decides nothing. And the rule does not ask where 0 is. A loss that is *proven*, with the whole interval below 0, may still be shipped, if the whole interval lies above $-m$: that is what the margin is for.
#
# ### Exercise 6.5: the report card
# *Difficulty 2 of 5 · 40 minutes · 2 points*
#
# Write `report_card`. It gets two files and the function that rebuilds a model from a file, the pairs, the margin, your notes, the timing and the machine. It returns a new plain `dict` that JSON can hold: text, whole numbers, floats, `None`, and dicts of these. What it was given it leaves as it is, and the card shares nothing with it: who writes on the card later must not change the notes or the machine of somebody else. It writes no file.
#
# | key | holds |
# |---|---|
# | `"model"`, `"scheme"`, `"calibration"`, `"limits"` | the four texts of `notes`; a card without one of them is refused |
# | `"artefact"` | `"file"`: the file's name without its folder; `"bytes"`: its length on disk; `"sha256"`: hexadecimal SHA-256 of its bytes; `"times_smaller"`: bytes of the reference's file / bytes of this one |
# | `"quality"` | `"pairs"`; `"reference_right"`, `"candidate_right"`, `"broken"`, `"repaired"`: exact counts (`int`); `"exact_match"`: the candidate's share with Wilson's interval (`intervals.wilson`), a dict of `"share"`, `"low"`, `"high"`; `"difference"`: $(r - b)/n$; `"low"`, `"high"`: the interval above; `"margin"`; all but the counts as shares, not in per cent |
# | `"latency"` | `"ratio"`, `"low"`, `"high"` of the timing, all `None` if it is a `latency.TooNoisy`; `"machine"`: where it was measured |
# | `"recommendation"` | one of the three words, by the rule |
#
# A ratio of times without its machine means nothing, so an empty `machine` is refused, too. `seq2seq.exact_matches(model, source, target)` tells which answers are right; the interval is `paired_interval` above. By hand: 400 pairs, 2 broken, 1 repaired, $m = 0.02$. Then $d' = -1/402$, $q' = 4/402$, the half width is 0.0097, and the interval goes from $-0.0122$ to $+0.0072$: inside the margin. If the file is smaller, ship.


# %% nbgrader={"grade": false, "grade_id": "ex_6_5", "locked": false, "schema_version": 3, "solution": true, "task": false}
def report_card(
    candidate: Path,
    reference: Path,
    load: Callable[[Path], Seq2Seq],
    source: Tensor,
    target: Tensor,
    margin: float,
    notes: dict[str, str],
    timing: latency.Timing | latency.TooNoisy,
    machine: dict[str, str],
) -> dict[str, object]:
    """What a team must know of an artefact, computed from the files.

    Parameters
    ----------
    candidate, reference : Path
        The artefact to judge, and the one that it is compared with.
    load : callable
        Rebuilds a model, ready for `seq2seq.exact_matches`, from a file.
    source, target : Tensor, int64, (pairs, source_length) and (pairs, target_length)
        Held-out pairs; neither calibration nor any choice has seen them.
    margin : float
        The largest loss of exact match that is acceptable, as a share: 0.01 is 1 percentage point.
    notes : dict of str to str
        "model", "scheme", "calibration", "limits"; others do not belong on the card.
    timing : Timing or TooNoisy
        The candidate's time as a ratio to the reference's; or why there is none.
    machine : dict of str to str
        Where it was timed.

    Returns
    -------
    dict
        The card, as described above.

    Raises
    ------
    ValueError
        If one of the four notes is missing or blank (the sentence names it), or `machine` is empty.

    Example
    -------
    >>> report_card(int8_file, float_file, load_reader, source, target, 0.01, notes, timing, machine)["recommendation"]
    'ship'
    """
    ### BEGIN SOLUTION
    texts = {key: notes.get(key, "").strip() for key in ("model", "scheme", "calibration", "limits")}
    for key, text in texts.items():
        if not text:
            raise ValueError(f'the report card needs a note "{key}": write a sentence.')
    if not machine:
        raise ValueError("a ratio of times means nothing without the machine that it was measured on.")
    was_right, is_right = (seq2seq.exact_matches(load(path), source, target) for path in (reference, candidate))
    pairs = len(source)
    broken, repaired = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    _, low, high = paired_interval(broken, repaired, pairs)
    content, reference_bytes = candidate.read_bytes(), reference.stat().st_size
    share = intervals.wilson(int(is_right.sum()), pairs)
    known = isinstance(timing, latency.Timing)
    if high < -margin or len(content) >= reference_bytes:
        word = "do not ship"
    else:
        word = "ship" if low > -margin else "measure more"
    return texts | {
        "artefact": {
            "file": candidate.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "times_smaller": reference_bytes / len(content),
        },
        "quality": {
            "pairs": pairs,
            "reference_right": int(was_right.sum()),
            "candidate_right": int(is_right.sum()),
            "broken": broken,
            "repaired": repaired,
            # Rounded, because the upper bound of a share of 1 is 0.9999999999999999 otherwise.
            "exact_match": {"share": share.estimate, "low": round(share.low, 6), "high": round(share.high, 6)},
            "difference": (repaired - broken) / pairs,
            "low": low,
            "high": high,
            "margin": margin,
        },
        "latency": {key: getattr(timing, key) if known else None for key in ("ratio", "low", "high")}
        | {"machine": dict(machine)},
        "recommendation": word,
    }
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_6_5_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 6.5: run this cell.
import copy
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from helpers import checks, dates, intervals, latency, metrics, seq2seq
from helpers.checkpoint import DATE_READER, load_checkpoint, load_date_reader


@checks.isolated
def check_ex_6_5() -> None:
    class Scripted(torch.nn.Module):
        """A reader that knows all answers, and errs at the pairs that its file lists."""

        def __init__(self, source: torch.Tensor, target: torch.Tensor, wrong: list[int]) -> None:
            super().__init__()
            self.config = settings
            self.weight = torch.nn.Parameter(torch.zeros(37))
            answers = target.clone()
            answers[wrong, -2] = 3 + (answers[wrong, -2] - 2) % 10  # another last character
            self.book = {tuple(s): a for s, a in zip(source.tolist(), answers, strict=True)}

        def encode(self, source: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.book[tuple(row)] for row in source.tolist()])

        def source_mask(self, source: torch.Tensor) -> torch.Tensor:
            return source > 0

        def decode(self, ids: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(memory[:, : ids.shape[1]], dates.VOCAB_SIZE).float()

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return self.decode(target, self.encode(source), self.source_mask(source))

    settings = load_date_reader().config
    pool = dates.pairs("held_out", 1000, 6500)
    different = list({text: i for i, text in enumerate(pool[2])}.values())
    notes = {
        "model": "a date reader",
        "scheme": "static int8",
        "calibration": "256 training pairs",
        "limits": "English dates from 1950 to 2049",
    }
    machine = {"processor": "an abacus", "threads": "1"}
    steady = latency.Timing(p50=0.02, p95=0.03, ratio=0.75, low=0.7, high=0.8)

    def distinct(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs with no source twice."""
        chosen = np.random.default_rng(seed).choice(different, count, replace=False)
        return pool[0][chosen], pool[1][chosen]

    def rule(low: float, high: float, limit: float, sizes: tuple[int, int]) -> str:
        """The word, from the interval, the margin, and the bytes of candidate and reference."""
        if high < -limit or sizes[0] >= sizes[1]:
            return "do not ship"
        return "ship" if low > -limit else "measure more"

    wrong_rules = {  # each from low, high, difference, margin, and the bytes of candidate and reference
        "every card says so, whatever its numbers are": lambda lo, hi, d, m, a, b: "ship",
        "the difference itself, the middle of the interval, decides that it ships. Ask the lower bound": (
            lambda lo, hi, d, m, a, b: "ship" if d > -m and a < b else "do not ship"
        ),
        "the difference itself decides that it does not ship. Ask the upper bound": (
            lambda lo, hi, d, m, a, b: "do not ship" if d < -m or a >= b else "ship" if lo > -m else "measure more"
        ),
        "the bytes do not count. A file that is not smaller has bought nothing": (
            lambda lo, hi, d, m, a, b: rule(lo, hi, m, (0, 1))
        ),
        "a file of the same length counts as smaller, and it has bought nothing": (
            lambda lo, hi, d, m, a, b: rule(lo, hi, m, (a, b + 1))
        ),
        "a file that is hardly smaller counts as not smaller. One byte less is less": (
            lambda lo, hi, d, m, a, b: rule(lo, hi, m, (a, b if b - a > 1 else a))
        ),
        "the margin is taken for per cent, and it is a share": lambda lo, hi, d, m, a, b: rule(lo, hi, m / 100, (a, b)),
        "a loss that is proven (the whole interval below 0) is refused, though it lies within the margin": (
            lambda lo, hi, d, m, a, b: rule(lo, hi, m, (a, b)) if hi >= 0 else "do not ship"
        ),
        "a loss that is proven (the whole interval below 0) is measured again, though it lies within the margin": (
            lambda lo, hi, d, m, a, b: (
                "measure more" if hi < 0 and rule(lo, hi, m, (a, b)) == "ship" else rule(lo, hi, m, (a, b))
            )
        ),
        "it ships where 0 lies inside the interval. The bounds are compared with the margin, not with 0": (
            lambda lo, hi, d, m, a, b: (
                "do not ship" if hi < -m or a >= b else "ship" if lo <= 0 <= hi else "measure more"
            )
        ),
        "it does not ship where 0 lies inside the interval. The bounds are compared with the margin, not with 0": (
            lambda lo, hi, d, m, a, b: "measure more" if lo <= 0 <= hi and a < b else rule(lo, hi, m, (a, b))
        ),
        "what is not known yet is refused. An interval with the margin inside says: measure more": (
            lambda lo, hi, d, m, a, b: "ship" if lo > -m and a < b else "do not ship"
        ),
        "what is not known yet is shipped. An interval with the margin inside says: measure more": (
            lambda lo, hi, d, m, a, b: "do not ship" if hi < -m or a >= b else "ship"
        ),
        "a file that is not smaller is measured again. No measurement makes it smaller: do not ship": (
            lambda lo, hi, d, m, a, b: "measure more" if a >= b and hi >= -m else rule(lo, hi, m, (a, b))
        ),
        "a file that is not smaller ships where the answers are proven to be better": (
            lambda lo, hi, d, m, a, b: "ship" if lo > 0 else rule(lo, hi, m, (a, b))
        ),
        "a file that is not smaller is refused only where the quality is in doubt": (
            lambda lo, hi, d, m, a, b: "do not ship" if hi < -m or (a >= b and lo <= -m) else rule(lo, hi, m, (0, 1))
        ),
        "a gain that is proven (the whole interval above 0) is not shipped": (
            lambda lo, hi, d, m, a, b: "measure more" if lo > 0 and a < b else rule(lo, hi, m, (a, b))
        ),
        "a lower bound exactly on the margin counts as above it": (
            lambda lo, hi, d, m, a, b: "ship" if lo == -m and a < b else rule(lo, hi, m, (a, b))
        ),
        "an upper bound exactly on the margin counts as below it": (
            lambda lo, hi, d, m, a, b: "do not ship" if hi == -m else rule(lo, hi, m, (a, b))
        ),
        "a bound exactly on the margin decides": (
            lambda lo, hi, d, m, a, b: (
                "do not ship" if hi == -m else "ship" if lo == -m and a < b else rule(lo, hi, m, (a, b))
            )
        ),
    }

    def judge_words(heard: list[tuple]) -> None:
        """All words at once: a wrong rule is named if exactly one gives what all cards say."""
        said = [word for _, word, *_ in heard]
        false = [case for case in heard if case[1] != rule(case[2], case[3], case[5], case[6])]
        if not false:
            return
        fits = [
            sentence
            for sentence, other in wrong_rules.items()
            if said == [other(low, high, d, m, *sizes) for _, _, low, high, d, m, sizes in heard]
        ]
        title, word, low, high, _, limit, sizes = min(false, key=lambda case: "exactly" in case[0])
        reason = (
            f"the file is not smaller than the reference's ({sizes[0]:,} and {sizes[1]:,} bytes), so quantization has bought nothing"
            if sizes[0] >= sizes[1]
            else f"the interval goes from {low:+.4f} to {high:+.4f}, the margin is {limit}, and the file is smaller"
        )
        reason = f"{fits[0]} (here {reason})" if len(fits) == 1 else reason
        raise AssertionError(
            f'{title}: the card says "{word}", and the rule says "{rule(low, high, limit, sizes)}": {reason}.'
        )

    def wanted(was: np.ndarray, now: np.ndarray, limit: float) -> dict:
        """The numbers of "quality" without Wilson's, from the truth about each pair."""
        change = now.astype(int) - was.astype(int)
        n, gone, came = len(change), int(np.sum(change == -1)), int(np.sum(change == 1))
        center = np.sum(change) / (n + 2)
        width = 1.96 * np.sqrt(((gone + came + 1) / (n + 2) - center * center) / (n + 2))
        return {
            "pairs": n,
            "reference_right": int(was.sum()),
            "candidate_right": int(now.sum()),
            "broken": gone,
            "repaired": came,
            "difference": float(change.mean()),
            "low": float(center - width),
            "high": float(center + width),
            "margin": limit,
        }

    def only_plain(value: object, where: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                assert type(key) is str, f"{where} has the key {key!r}: JSON turns every key into text."
                only_plain(part, f'{where}["{key}"]')
            return
        assert value is None or type(value) in (str, int, float, bool), (
            f"{where} is a {type(value).__name__}: JSON knows text, int, float, None and dicts of them. "
            "`.item()`, `int(...)` and `float(...)` make numbers of tensors and arrays."
        )
        assert type(value) is not float or np.isfinite(value), (
            f"{where} is {value}, which is no JSON: what is not known is None."
        )

    def keys_of(part: object, wanted: set[str], where: str, why: str = "") -> None:
        assert isinstance(part, dict), f"{where} should be a dict, not {type(part).__name__}."
        parts = {"missing": sorted(wanted - set(part)), "not expected": sorted(set(part) - wanted)}
        said = ", ".join(f"{what} {names}" for what, names in parts.items() if names)
        assert not said, f"the keys of {where} are not those of the table: {said}.{why if parts['missing'] else ''}"

    def counts(part: dict, names: tuple[str, ...], title: str) -> None:
        for key in names:
            assert type(part[key]) is int, (
                f"{title}: {key} is {part[key]!r}, of type {type(part[key]).__name__}; a count is a whole number, an int."
            )

    def compare(card: dict, candidate: Path, reference: Path, was, now, limit, timing, title: str, load) -> tuple:
        """Each number against the truth, the likely mistakes first; what the word must follow from is returned."""
        checks.given(card, f"{title}: the card")
        assert isinstance(card, dict), f"{title}: the card should be a dict, not {type(card).__name__}."
        only_plain(card, "card")
        keys_of(card, {*notes, "artefact", "quality", "latency", "recommendation"}, f"the card ({title})")
        assert {key: card[key] for key in notes} == notes, f"{title}: the four notes are not those that were given."
        artefact, quality, times = card["artefact"], card["quality"], card["latency"]
        keys_of(artefact, {"file", "bytes", "sha256", "times_smaller"}, f"artefact ({title})")
        assert str(candidate.parent) not in json.dumps(card), (
            f"{title}: the card holds a folder of this computer; nobody else has it. Only the file's name belongs there."
        )
        assert artefact["file"] == candidate.name, f"{title}: file is {artefact['file']!r}, not the candidate's name."
        counts(artefact, ("bytes",), title)
        raw, size = candidate.read_bytes(), reference.stat().st_size
        if artefact["bytes"] != len(raw):
            model = load(candidate)
            assert artefact["bytes"] != metrics.file_bytes(model), (
                f"{title}: bytes is what the model in memory would take if it were written anew; what ships is the file, "
                "and it has its own length."
            )
            assert artefact["bytes"] != sum(p.numel() * p.element_size() for p in model.parameters()), (
                f"{title}: bytes counts the float parameters of the model in memory: packed int8 weights are none, and the "
                "file may hold other things."
            )
            assert artefact["bytes"] != size, f"{title}: bytes is the length of the reference's file."
            raise AssertionError(f"{title}: bytes is {artefact['bytes']}; the file is {len(raw)} bytes long.")
        digest = hashlib.sha256(raw).hexdigest()
        assert not (digest.startswith(str(artefact["sha256"])) and artefact["sha256"] != digest), (
            f"{title}: sha256 is cut off: {len(str(artefact['sha256']))} of 64 digits. Whoever compares needs all of them."
        )
        assert artefact["sha256"] == digest, (
            f"{title}: sha256 is not the hash of the candidate's bytes: of all of them, and of nothing else, such as a name."
        )
        checks.number(artefact["times_smaller"], size / len(raw), f"{title}: times_smaller", {
            "it is upside down: the reference's bytes over the candidate's.": len(raw) / size,
        })  # fmt: skip
        right = wanted(was, now, limit)
        keys_of(quality, {*right, "exact_match"}, f"quality ({title})")
        totals, changes = ("reference_right", "candidate_right"), ("broken", "repaired")
        counts(quality, ("pairs", *totals, *changes), title)
        old, new = (right[key] for key in totals)
        assert old == new or (quality["reference_right"], quality["candidate_right"]) != (new, old), (
            f"{title}: reference_right and candidate_right are swapped."
        )
        for key in ("pairs", *totals):
            assert quality[key] == right[key], (
                f"{title}: {key} is {quality[key]}, and recomputed from the files and all pairs it is {right[key]}: "
                "a number that does not reproduce."
            )
        both, truth = (tuple(numbers[key] for key in changes) for numbers in (quality, right))
        likely = {
            (max(old - new, 0), max(new - old, 0)): "The difference of two totals is not the number of changes.",
            (right["pairs"] - new, right["pairs"] - old): "These are all wrong answers; broken are only those of them "
            "that were right before, repaired only those that were wrong before and are right now.",
            truth[::-1]: "broken and repaired are swapped: broken were right before, and are wrong now.",
        }
        reason = likely.get(both, "broken were right before and are wrong now; repaired are the other way round.")
        assert both == truth, f"{title}: broken and repaired are {both}; pair by pair they are {truth}. {reason}"
        in_per_cent = "it is in per cent; as a share, 1 percentage point is 0.01."
        checks.number(quality["margin"], limit, f"{title}: margin", {in_per_cent: 100 * limit})
        checks.number(quality["difference"], right["difference"], f"{title}: difference", {
            "the sign is turned around: candidate minus reference.": -right["difference"],
            in_per_cent: 100 * right["difference"],
            "it is a number of answers; divide it by the number of pairs.": new - old,
            "it is d', the middle of the interval; the difference itself is divided by n.": (new - old) / (len(was) + 2),
        })  # fmt: skip
        n, p, q = len(was), was.mean(), now.mean()
        apart = 1.96 * np.sqrt((p * (1 - p) + q * (1 - q)) / n)
        width, middle = (right["high"] - right["low"]) / 2, (right["high"] + right["low"]) / 2
        flips = right["broken"] + right["repaired"]
        naive = 1.96 * np.sqrt(max(flips / n - right["difference"] ** 2, 0) / n)
        unspread = 1.96 * np.sqrt(max(flips / (n + 2) - middle**2, 0) / (n + 2))
        drawn = intervals.paired_bootstrap(torch.from_numpy(was).double(), torch.from_numpy(now).double())
        for name, sign in (("low", -1), ("high", 1)):
            checks.number(quality[name], right[name], f"{title}: {name}", {
                "it is the interval of an unpaired difference: both models answered the same pairs, so only changed answers count.": right["difference"] + sign * apart,
                "it is without the added pairs (n + 2, and one change more): with no change at all its width would be zero.": right["difference"] + sign * naive,
                "it is without the change that is added: q' counts b + r + 1.": middle + sign * unspread,
                "it is the bootstrap's, which has no width where nothing has changed; the card takes `paired_interval`.": getattr(drawn, name),
                "it is that of the loss, reference minus candidate: the other sign.": -middle + sign * width,
                "it takes 2 standard errors; 95 % takes 1.96.": middle + sign * width * 2 / 1.96,
                "it is around the difference itself; the middle of this interval is d'.": right["difference"] + sign * width,
                "it is one standard error from the middle; 95 % takes 1.96.": middle + sign * width / 1.96,
                "the bounds are swapped.": middle - sign * width,
                in_per_cent: 100 * right[name],
            }, rtol=1e-4 * width / abs(right[name]))  # fmt: skip
        wilson = quality["exact_match"]
        keys_of(wilson, {"share", "low", "high"}, f"exact_match ({title})")
        checks.number(wilson["share"], q, f"{title}: the share of exact_match", {
            "it is the reference's; the card is about the candidate.": p,
            in_per_cent: 100 * q,
        })  # fmt: skip
        for bound in (wilson["low"], wilson["high"]):
            assert type(bound) in (int, float), f"{title}: a bound of exact_match is {bound!r}, which is no number."
            # Wilson's bounds are where a test of the share just gives way.
            assert abs(abs(q - bound) - 1.96 * np.sqrt(max(bound * (1 - bound), 0) / n)) < 2e-4, (
                f"{title}: exact_match has a bound of {bound:.4f}, which is not Wilson's (helpers.intervals.wilson)."
            )
        assert wilson["low"] <= q + 1e-9 and wilson["high"] >= q - 1e-9 and wilson["low"] < wilson["high"], (
            f"{title}: the bounds of exact_match lie on the wrong sides of the share."
        )
        keys_of(times, {"ratio", "low", "high", "machine"}, f"latency ({title})",
                " A ratio without its machine means nothing, and without its interval not much.")  # fmt: skip
        assert times["machine"] == machine, f"{title}: the machine of latency is not the one that was given."
        measured = (times["ratio"], times["low"], times["high"])
        if isinstance(timing, latency.Timing):
            assert measured == (timing.ratio, timing.low, timing.high), (
                f"{title}: the ratio and its interval are {measured}, not those of the timing."
            )
        else:
            assert measured == (None, None, None), f"{title}: the clock refused, so ratio, low and high are None."
        said = card["recommendation"]
        assert said in ("ship", "do not ship", "measure more"), f"{title}: {said!r} is none of the three words."
        return title, said, right["low"], right["high"], right["difference"], limit, (len(raw), size)

    def card_of(candidate, reference, load, source, target, limit, timing=steady):
        """A card made with a note more than is needed; what is given must stay as it is."""
        given, place = notes | {"author": "a tinker"}, dict(machine)
        folder = sorted(candidate.parent.iterdir())
        with checks.untouched(notes=given, machine=place, source=source, target=target):
            card = report_card(candidate, reference, load, source, target, limit, given, timing, place)
        assert sorted(candidate.parent.iterdir()) == folder, (
            "your function leaves a file beside the artefact: it returns the card, and writes nothing."
        )
        if isinstance(card, dict):
            times = card.get("latency")
            assert card is not given, "your function returns the notes that it was given: build a new dict."
            if isinstance(times, dict) and isinstance(times.get("machine"), dict):
                assert times["machine"] is not place, (
                    "the card holds the very `machine` that was handed over: who writes on the card later changes it for everybody. Put a copy on the card, `dict(machine)`."
                )
        return card

    def scripted(folder: Path, case: dict, seed: int, title: str, timing=steady, bound: str = "") -> tuple[dict, list]:
        """A card of two files that list what is answered wrongly: the truth is known pair by pair.

        With a `bound`, "low" or "high", a second card is made, whose margin is that very number of the first.
        """
        source, target = distinct(case["n"], seed)
        order = torch.randperm(case["n"], generator=torch.Generator().manual_seed(seed)).tolist()
        gone, came, both = (case.get(key, 0) for key in ("broken", "repaired", "both"))
        lists = {
            "before": order[gone : gone + came + both],
            "after": order[:gone] + order[gone + came : gone + came + both],
        }
        files, truth = {}, {}
        for i, (name, wrong) in enumerate(lists.items()):
            files[name] = folder / f"{name}{seed}.json"
            files[name].write_text(json.dumps({"wrong": wrong}).ljust(case.get("sizes", (9000, 2000))[i]))
            truth[name] = ~np.isin(np.arange(case["n"]), wrong)

        def load(path: Path) -> Scripted:
            return Scripted(source, target, json.loads(path.read_text())["wrong"])

        def made(limit: float) -> dict:
            return card_of(files["after"], files["before"], load, source, target, limit, timing)

        kept = [path.read_bytes() for path in files.values()]
        card = made(case["margin"])
        assert [path.read_bytes() for path in files.values()] == kept, "your function changed one of the files."
        heard = [
            compare(
                card,
                files["after"],
                files["before"],
                truth["before"],
                truth["after"],
                case["margin"],
                timing,
                title,
                load,
            )
        ]
        first = json.dumps(card, sort_keys=True)
        assert json.dumps(made(case["margin"]), sort_keys=True) == first, (
            f"{title}: a second card of the same files has other numbers: they do not reproduce."
        )
        edge = card["quality"][bound] if bound else 0
        if edge != round(edge, 9):  # what is rounded is not the bound
            _, _, _, _, middle, _, sizes = heard[0]
            low, high = card["quality"]["low"], card["quality"]["high"]
            word, where = made(-edge)["recommendation"], f"{title}, with the margin exactly on the {bound} end"
            heard.append((where, word, low, high, middle, -edge, sizes))
        return card, heard

    def real(folder: Path, count: int, seed: int, batch: tuple, limit: float, title: str) -> tuple:
        """A static int8 reader, calibrated on `batch`, written and read; its numbers recomputed by hand."""
        path = folder / f"real{seed}.pt"
        kept = seq2seq.static_int8(load_date_reader(), [batch])
        torch.save(kept.state_dict(), path)

        def load(file: Path) -> torch.nn.Module:
            if file == DATE_READER:
                return load_checkpoint(file)
            model = seq2seq.static_int8(load_date_reader(), [[part[:1] for part in batch]])
            model.load_state_dict(torch.load(file, weights_only=True))
            return model

        source, target, _ = dates.pairs("held_out", count, seed)
        truth = []
        for file in (DATE_READER, path):
            model, ids = load(file), torch.ones(count, 1, dtype=torch.long)
            with torch.no_grad():
                memory = model.encode(source)
                for _ in range(target.shape[1]):
                    following = model.decode(ids, memory, model.source_mask(source))[:, -1]
                    ids = torch.cat([ids, following.max(dim=1, keepdim=True).indices], dim=1)
            truth.append(np.array([a == b for a, b in zip(ids[:, 1:].tolist(), target.tolist(), strict=True)]))
        card = card_of(path, DATE_READER, load, source, target, limit)
        return compare(card, path, DATE_READER, *truth, limit, steady, title, load)

    def refused(missing: str) -> None:
        source, target = distinct(8, 6500)
        word = missing.removeprefix("blank ")
        if missing == "machine":
            described = "a card with an empty machine"
        elif word != missing:
            described = f'a card whose note "{word}" is blank'
        else:
            described = f'a card without the note "{word}"'
        given = {key: text for key, text in notes.items() if key != missing}
        given |= {word: " \n"} if word != missing else {}
        place = {} if missing == "machine" else dict(machine)
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "a.json"
            path.write_text("{}")
            try:
                report_card(
                    path, path, lambda _: Scripted(source, target, []), source, target, 0.1, given, steady, place
                )
            except ValueError as error:
                assert missing == "machine" or word in str(error), (
                    f'{described} is refused, but the ValueError should name the note "{word}"; it says: {error}'
                )
                assert missing == "machine" or not all(key in str(error) for key in notes), (
                    f"{described} is refused, but the ValueError names all four notes: say which one is missing."
                )
                return
            except Exception as error:
                raise AssertionError(
                    f"{described} should be refused with a ValueError, not {type(error).__name__}."
                ) from None
        raise AssertionError(f"{described} should be refused with a ValueError.")

    with (
        tempfile.TemporaryDirectory() as name,
        checks.check(
            "6.5", "every number of the card can be recomputed from the files, and the word follows from them"
        ),
    ):
        folder, heard = Path(name), []
        noisy = latency.TooNoisy("the times scatter too much.")
        for seed, (title, case, timing, bound) in enumerate(
            [
                (
                    "400 pairs, 30 of them wrong for both",
                    {"n": 400, "broken": 2, "repaired": 1, "both": 30},
                    steady,
                    "low",
                ),
                ("a loss that is proven", {"n": 700, "broken": 60, "repaired": 9, "both": 40}, steady, "high"),
                ("a loss that is not proven", {"n": 90, "broken": 1, "both": 3, "margin": 0.01}, steady, ""),
                ("60 pairs without any change", {"n": 60}, steady, ""),
                ("a file that grew", {"n": 300, "repaired": 4, "sizes": (2000, 2500)}, steady, ""),
                ("a file of the same size", {"n": 150, "margin": 0.05, "sizes": (2000, 2000)}, steady, ""),
                ("a file that is one byte smaller", {"n": 150, "margin": 0.05, "sizes": (2001, 2000)}, steady, ""),
                ("a clock that refused", {"n": 250, "broken": 1, "both": 2, "margin": 0.05}, noisy, ""),
                ("a loss that is proven, and within the margin", {"n": 600, "broken": 12, "margin": 0.05}, steady, ""),
                ("a loss that is proven, with the margin inside", {"n": 600, "broken": 12}, steady, ""),
                ("a gain that is proven", {"n": 120, "repaired": 25}, steady, ""),
                (
                    "a gain that is proven, in a file that grew",
                    {"n": 120, "repaired": 25, "sizes": (700, 701)},
                    steady,
                    "",
                ),
                ("a file that grew, and too few pairs", {"n": 40, "broken": 1, "sizes": (700, 900)}, steady, ""),
                ("a margin of 0", {"n": 80, "both": 2, "margin": 0.0}, steady, ""),
                ("more broken than the margin, and not proven", {"n": 200, "broken": 6, "repaired": 1}, steady, ""),
                ("fewer broken than the margin, and not sure", {"n": 200, "broken": 5, "repaired": 2}, steady, ""),
            ],
            1,
        ):
            heard += scripted(folder, {"margin": 0.02} | case, seed, title, timing, bound)[1]
        judge_words(heard)
        batch = dates.pairs("training", 64, 65)[:2]
        judge_words(
            [
                real(folder, 180, 651, batch, 0.05, "the date reader in static int8"),
                real(folder, 90, 652, (batch[0], batch[1][:, :1]), 0.05, "the date reader, calibrated on one step"),
            ]
        )
        for missing in (*notes, *(f"blank {key}" for key in notes), "machine"):
            refused(missing)
    ### BEGIN HIDDEN TESTS
    with tempfile.TemporaryDirectory() as name:
        folder, heard = Path(name), []
        cases = [
            ({"n": 211, "broken": 3, "repaired": 3, "both": 20, "margin": 0.04}, "ship", steady, "low"),
            ({"n": 350, "broken": 60, "repaired": 1, "both": 11, "margin": 0.03}, "do not ship", steady, "high"),
            ({"n": 140, "broken": 2, "both": 4, "margin": 0.013}, "measure more", steady, ""),
            ({"n": 640, "broken": 1, "repaired": 2, "both": 9, "margin": 0.02}, "ship", steady, ""),
            ({"n": 160, "repaired": 1, "margin": 0.07, "sizes": (800, 800)}, "do not ship", steady, ""),
            ({"n": 160, "repaired": 1, "margin": 0.07, "sizes": (800, 799)}, "ship", steady, ""),
            ({"n": 120, "repaired": 25, "margin": 0.02}, "ship", latency.TooNoisy("no."), ""),
            ({"n": 130, "both": 5, "margin": 0.09, "sizes": (700, 900)}, "do not ship", steady, ""),
            ({"n": 500, "broken": 11, "both": 3, "margin": 0.06}, "ship", steady, ""),  # proven, within the margin
            ({"n": 500, "broken": 11, "both": 3, "margin": 0.025}, "measure more", steady, ""),  # proven, open
            ({"n": 110, "repaired": 24, "margin": 0.01, "sizes": (700, 950)}, "do not ship", steady, ""),
            ({"n": 45, "broken": 1, "margin": 0.02, "sizes": (700, 950)}, "do not ship", steady, ""),
            ({"n": 70, "both": 1, "margin": 0.0}, "measure more", steady, ""),
        ]
        for seed, (case, expected, timing, bound) in enumerate(cases, 101):
            gone, came, both = case.get("broken", 0), case.get("repaired", 0), case.get("both", 0)
            card, words = scripted(folder, case, seed, f"case {seed}", timing, bound)
            heard += words
            now, was = folder / f"after{seed}.json", folder / f"before{seed}.json"
            assert json.loads(json.dumps(card, allow_nan=False)) == card, "the card does not survive JSON."
            assert name not in json.dumps(card), "a folder stands in the card."
            assert sorted(card) == sorted([*notes, "artefact", "latency", "quality", "recommendation"]), "other keys."
            numbers = [card["quality"][key] for key in ("pairs", "reference_right", "candidate_right")]
            numbers += [card["artefact"]["bytes"], card["quality"]["broken"], card["quality"]["repaired"]]
            assert {type(number) for number in numbers} == {int}, "counts are whole numbers."
            n, found, length = case["n"], card["quality"], len(now.read_bytes())
            assert card["artefact"]["bytes"] == length, "not the file's length."
            assert card["artefact"]["sha256"] == hashlib.sha256(now.read_bytes()).hexdigest(), "another hash."
            assert abs(card["artefact"]["times_smaller"] - was.stat().st_size / length) < 1e-9, "a wrong factor."
            assert (card["artefact"]["file"], found["pairs"]) == (now.name, n), "a wrong file or number of pairs."
            assert (found["broken"], found["repaired"]) == (gone, came), "wrong counts of changes."
            assert (found["reference_right"], found["candidate_right"]) == (n - came - both, n - gone - both), (
                "wrong counts."
            )
            assert abs(found["difference"] - (came - gone) / n) < 1e-6, "a wrong difference."
            d, q = (came - gone) / (n + 2), (gone + came + 1) / (n + 2)
            assert abs((found["low"] + found["high"]) / 2 - d) < 1e-6, "a wrong middle."
            variance = ((found["high"] - found["low"]) / 3.92) ** 2 * (n + 2)
            assert abs(variance / (q - d**2) - 1) < 2e-4, "a wrong width."
            assert found["low"] < found["high"] and found["margin"] == case["margin"], "bounds or margin."
            for bound in (found["exact_match"]["low"], found["exact_match"]["high"]):
                test = (found["exact_match"]["share"] - bound) ** 2 * n - 1.96**2 * bound * (1 - bound)
                assert abs(test) < 1e-3, "not Wilson's interval."
            assert abs(found["exact_match"]["share"] - (n - gone - both) / n) < 1e-9, "a wrong share."
            assert card["latency"]["machine"] == machine, "another machine."
            ratios = [card["latency"][key] for key in ("ratio", "low", "high")]
            assert ratios == ([0.75, 0.7, 0.8] if timing is steady else [None] * 3), "another timing."
            assert card["recommendation"] == expected, f"{card['recommendation']}, expected {expected}."
            assert all(card[key] == notes[key] for key in notes), "other notes."
        judge_words(heard)
        for missing in ("machine", *notes, *(f"blank {key}" for key in notes)):
            refused(missing)
        batch = dates.pairs("training", 48, 651)[:2]
        word = real(folder, 150, 6523, batch, 0.06, "hidden")[1]
        assert word == "ship", "the date reader in static int8."
    ### END HIDDEN TESTS


check_ex_6_5()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Load both models from their files, and get two tensors of booleans: which answers were right, and which are right now. All counts are sums of `&` and `~` of these two.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `candidate.read_bytes()` gives the length and, with `hashlib.sha256(...).hexdigest()`, the hash; `reference.stat().st_size` the other length. Ask for "do not ship" first, then for "ship": what is left is "measure more". `isinstance(timing, latency.TooNoisy)` tells whether there is a ratio. `int(...)` around each count, because JSON knows no tensors.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `was, now = (seq2seq.exact_matches(load(path), source, target) for path in (reference, candidate))`, then `_, low, high = paired_interval(broken, repaired, len(source))` and `word = "do not ship" if high < -margin or … else "ship" if low > … else …`. The notes: `for key in (…): if not notes.get(key, "").strip(): raise ValueError(f"… {key} …")`. The timing: `{key: getattr(timing, key) if … else None for key in ("ratio", "low", "high")}`.
# </details>

# %% [markdown]
# ### Three cards
#
# First the clock (unit 05's harness, which takes turns and refuses what is too noisy): the greedy answers to 32 texts, float against the file `reader.int8.pt`, on one thread.


# %% tags=["varies"]
def this_machine() -> dict[str, str]:
    """What a ratio of times depends on."""
    return {
        "processor": environment.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "int8 engine": engine,
        "threads": "1",
    }


timed = dates.pairs("held_out", 32, seed=650)[0]
programs = {
    "float": lambda: seq2seq.greedy(float_reader, timed),
    **{
        name: lambda model=load_reader(path): seq2seq.greedy(model, timed)  # noqa: B008
        for name, path in files.items()
    },
}
clock = latency.compare_each(programs, repeats=9, threads=1)
for name, result in clock.items():
    print(f"{name:18s} {result}")

# %% [markdown]
# Now the cards, each on the same 400 held-out pairs, drawn with a seed of their own. (`report_card` is yours: solve 6.5 first.) *Predict:* which word does each of the three cards end with, and for which reason?

# %% tags=["varies"]
NOTES = {
    "static int8": {
        "scheme": "static int8: weights per channel, activations per tensor, embedding by rows; norms, softmax and GELU in float",
        "calibration": "256 training pairs, whole answers, minimum and maximum",
    },
    "one step": {
        "scheme": "static int8, as above",
        "calibration": "256 training texts, only the decoder's first step",
    },
    "4 bits, simulated": {
        "scheme": "Linear weights rounded to 4 bits, one scale a row; computed and stored in float32",
        "calibration": "none needed",
    },
}
COMMON = {
    "model": "date reader, encoder-decoder, two layers each; helpers/checkpoints/date_reader.json",
    "limits": "English dates of 1950 to 2049 in 13 written forms, small letters; tried on no other kind of text",
}
report_source, report_target, _ = dates.pairs("held_out", 400, seed=6565)
cards = {
    name: report_card(
        path,
        DATE_READER,
        load_reader,
        report_source,
        report_target,
        MARGIN,
        COMMON | NOTES[name],
        clock[name],
        this_machine(),
    )
    for name, path in files.items()
}


def per_cent(numbers: dict[str, float], name: str, sign: str = "") -> str:
    """A number with its interval, in per cent."""
    return f"{numbers[name]:{sign}.1%} ({numbers['low']:{sign}.1%} to {numbers['high']:{sign}.1%})"


def column(card: dict) -> dict[str, str]:
    """A card in the words of a reader."""
    artefact, quality, times = card["artefact"], card["quality"], card["latency"]
    factor = artefact["times_smaller"]
    smaller = f"{factor:.2f} times smaller" if factor > 1 else "not smaller"
    ratio = (
        "refused by the clock" if times["ratio"] is None else "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**times)
    )
    return {
        "model": card["model"],
        "scheme": card["scheme"],
        "calibration": card["calibration"],
        "file": f"{artefact['file']}, SHA-256 {artefact['sha256'][:8]}…",
        "bytes": f"{artefact['bytes']:,} ({smaller} than float)",
        "exact match": per_cent(quality["exact_match"], "share"),
        "change to float": f"{per_cent(quality, 'difference', '+')}, margin {quality['margin']:.0%}",
        "answers changed": f"{quality['broken']} broken, {quality['repaired']} repaired, of {quality['pairs']}",
        "time, ratio to float": ratio,
        "machine": ", ".join(f"{key} {value}" for key, value in times["machine"].items()),
        "limits": card["limits"],
        "**recommendation**": f"**{card['recommendation']}**",
    }


columns = {name: column(card) for name, card in cards.items()}
tables.show([{"The card": key, "static int8": value} for key, value in columns["static int8"].items()])

# %% [markdown]
# Beside it the other two, where they differ:

# %% tags=["varies"]
differing = [key for key in columns["static int8"] if len({columns[name][key] for name in columns}) > 1]
tables.show([{"": key} | {name: columns[name][key] for name in columns} for key in differing])


def same(a: object, b: object) -> bool:
    """Whether two entries of a state_dict are equal; those of an int8 Linear are pairs of weight and bias."""
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


whole_state, step_state = (torch.load(files[name], weights_only=True) for name in ("static int8", "one step"))
other_entries = [name for name in whole_state if not same(whole_state[name], step_state[name])]
print(f"The two int8 files differ in {len(other_entries)} of {len(whole_state)} entries.")
print("Their modules:", sorted({name.split(".")[0] for name in other_entries}))
print("Their kinds:", sorted({name.split(".")[-1] for name in other_entries}))

# %% [markdown]
# Read the middle column first. Its file hardly differs in size from the left one, its scheme has the same name, it loads without a word, and its weights are the same codes: only scales and zero points of activations differ. The ranges of the decoder are those of one single token, so much of what comes later is cut off. Neither size nor name nor codes show that; questions with known answers do. The right column is no worse than its promise, and its file is not smaller by
# a single byte: the bits were saved in thought only. (Section 4 packs them for real.) So two cards advise against, for opposite reasons, and neither reason can be seen in the other's numbers.
#
# Look at the time, too. On a model this small, int8 need not be faster at all ([where int8 wins](../03_linear_variants/03_linear_variants.ipynb#heading=5.-Where-does-int8-win?) says when it is), and the rule does not ask: here the team wanted a smaller file. If you need time, write it into the rule *before* the clock runs.
#
# What a machine reads is the same card as JSON. `allow_nan=False` makes sure that every reader of JSON understands it, and the round trip that nothing was lost:

# %% tags=["varies"]
text = json.dumps(cards["static int8"], indent=1, allow_nan=False)
assert json.loads(text) == cards["static int8"]
print(text)
int8_card = cards["static int8"]
my_numbers["Report card: exact match of static int8"] = per_cent(int8_card["quality"]["exact_match"], "share")
my_numbers["Report card: change to float"] = per_cent(int8_card["quality"], "difference", "+")
my_numbers["Report card: file"] = columns["static int8"]["bytes"]
my_numbers["Report card: recommendation"] = int8_card["recommendation"]

# %% [markdown]
# *Look back.* The card costs a second of computing and a page of honesty. What it cannot contain: whether the texts of tomorrow look like those of the test. That is why "limits" is a line of its own, why a card without it is refused, and why the hash is there: when somebody says that the model has become worse, the first question is whether it is still the same file.

# %% [markdown]
# ## 6. The close
#
# ### Ten things to take with you
#
# Each is a claim, and each link leads to the cells that prove it. Do not believe it; run it again. (A link opens the unit. If it was not open yet, click once more: JupyterLab then goes to the place.)
#
# | | what is true | the proof |
# |---|---|---|
# | 1 | **An affine grid is two numbers**: a scale and a zero point. What matters is how many values share them. | [exercise 2.1](../02_quantization_apis/02_quantization_apis.ipynb#cell-id=ex_2_1_check), [exercise 2.3](../02_quantization_apis/02_quantization_apis.ipynb#cell-id=ex_2_3_check), [what a finer ruler costs](../02_quantization_apis/02_quantization_apis.ipynb#heading=What-does-a-finer-ruler-cost?) |
# | 2 | **An int8 layer is whole numbers**: integer sums, corrections for the zero points, one multiplication at the end. PyTorch's kernels agree with it within one code; whether they keep the bias as a float or round it is a matter of the engine. | [exercise 3.5](../03_linear_variants/03_linear_variants.ipynb#cell-id=ex_3_5_check), [what runs inside](../03_linear_variants/03_linear_variants.ipynb#heading=Is-that-really-what-runs-inside?) |
# | 3 | **Ranges come from data.** Static quantization remembers them, dynamic asks each input, and a range from the wrong data can ruin a model without a sound. | [exercise 2.4](../02_quantization_apis/02_quantization_apis.ipynb#cell-id=ex_2_4_check), [dynamic: the small print](../01_transformer_basics/01_transformer_basics.ipynb#heading=The-small-print-of-dynamic-quantization), [three cards](#Three-cards) |
# | 4 | **Integers multiply and add; the rest of our Transformer is float.** Softmax, masks, GELU and LayerNorm work on floats in our blocks, and so, inside, does PyTorch's product of two quantized activations. A few loud columns stretch the one scale of the residual stream. | [what integers cannot](../04_component_wise/04_component_wise.ipynb#heading=What-integers-can-do-here,-and-what-they-cannot), [the residual stream](../04_component_wise/04_component_wise.ipynb#heading=What-is-in-the-residual-stream?), [both kinds measured](../04_component_wise/04_component_wise.ipynb#heading=The-whole-model,-measured) |
# | 5 | **The silent failure is the dear one.** A right shape, a file that loads and a run without an error prove nothing. Write the probe first. | [exercise 1.3](../01_transformer_basics/01_transformer_basics.ipynb#cell-id=ex_1_3_check), [the error clinic](../02_quantization_apis/02_quantization_apis.ipynb#heading=9.-The-error-clinic), [exercise 6.1](../06_capstone/06_capstone.ipynb#cell-id=ex_6_1_check) |
# | 6 | **Ask each part alone.** What costs most quality and what saves most bytes can be different parts, as in both models of this course. | [exercise 4.7](../04_component_wise/04_component_wise.ipynb#cell-id=ex_4_7_check), [the whole model in one table](../04_component_wise/04_component_wise.ipynb#heading=The-whole-model-in-one-table,-and-in-one-picture) |
# | 7 | **Below 8 bits, three things help:** finer scales, mixed widths, training; each beside its control. Which helps most depends on the model. | [finer scales](../02_quantization_apis/02_quantization_apis.ipynb#heading=What-does-a-finer-ruler-cost?), [mixed widths](../04_component_wise/04_component_wise.ipynb#heading=Mixed-precision:-the-same-bytes,-better-spent), [training](../04_component_wise/04_component_wise.ipynb#heading=What-is-it-worth-on-the-course-model?), [another model](#Which-matrix-pays-for-it?) |
# | 8 | **Fewer bits are not yet less time.** Width, batch, kernel and processor decide; ask a stopwatch that may refuse. | [where int8 wins](../03_linear_variants/03_linear_variants.ipynb#heading=5.-Where-does-int8-win?), [the real clock](../05_evaluation/05_evaluation.ipynb#heading=The-real-clock), [what moved the needle](../05_evaluation/05_evaluation.ipynb#heading=8.-What-moved-the-needle) |
# | 9 | **Compare answer by answer,** with an interval, and with the margin stated before. Equal scores are not equal models. | [exercise 5.2](../05_evaluation/05_evaluation.ipynb#cell-id=ex_5_2_check), [exercise 5.3](../05_evaluation/05_evaluation.ipynb#cell-id=ex_5_3_check), [exercise 6.5](#Exercise-6.5:-the-report-card) |
# | 10 | **What ships is a file**: numbers, configuration, hash. Its length is its size, and a stranger's process must be able to read it. | [what does one ship?](../04_component_wise/04_component_wise.ipynb#heading=What-does-one-ship?), [parameters that are none](../05_evaluation/05_evaluation.ipynb#heading=A-trap:-parameters-that-are-none), [exercise 4.10](../04_component_wise/04_component_wise.ipynb#cell-id=ex_4_10_check) |
#
# ### Pitfalls to avoid
#
# | do not | because | seen in |
# |---|---|---|
# | calibrate on what is at hand | the ranges of the wrong data look exactly like ranges | [three cards](#Three-cards) |
# | put a `QuantStub` on token ids, or a `+` between quantized tensors | the one quantizes only floats, the other has no scale for its result | [2.10.1](../02_quantization_apis/02_quantization_apis.ipynb#cell-id=ex_2_10_1_check), [2.10.2](../02_quantization_apis/02_quantization_apis.ipynb#cell-id=ex_2_10_2_check) |
# | let a mask of minus infinity reach an observer | the scale becomes infinite | [what integers cannot](../04_component_wise/04_component_wise.ipynb#heading=What-integers-can-do-here,-and-what-they-cannot) |
# | trust `quantize_dynamic` with the library's own Transformer | a third of each layer stays in float, and its fast path crashes on the rest | [section 4 of unit 04](../04_component_wise/04_component_wise.ipynb#heading=4.-Why-not-quantize-PyTorch's-own-Transformer-layer?) |
# | use all 8 bits of the activations on any processor | without VNNI some sums are cut off | [the short memory](../03_linear_variants/03_linear_variants.ipynb#heading=The-instruction-with-the-short-memory), [now for real](../03_linear_variants/03_linear_variants.ipynb#heading=Now-for-real) |
# | call a float file with few different numbers "4 bits" | not one byte is saved | [three cards](#Three-cards) |
# | forget the tie of embedding and head | the quantizer cuts it, and the file can grow | [the tie](../04_component_wise/04_component_wise.ipynb#heading=The-tie), [really smaller](../04_component_wise/04_component_wise.ipynb#heading=Look-back:-really-smaller) |
# | praise QAT without as many float steps beside it | the extra training may be all that helped | [what is it worth?](../03_linear_variants/03_linear_variants.ipynb#heading=What-is-it-worth,-and-how-sure-are-we?) |
# | take the mean of a few stopwatch readings | the first run and the busy neighbour are in it | [the stopwatch](../05_evaluation/05_evaluation.ipynb#heading=A-stopwatch-that-cannot-be-fooled) |
# | choose and report on the same data | the choice has seen the answers | done right in [five ways](../02_quantization_apis/02_quantization_apis.ipynb#heading=Five-ways-to-choose,-compared), [does it hold?](../05_evaluation/05_evaluation.ipynb#heading=Does-it-hold-on-the-model?) |
#
# ### The book's chapter 6, corrected
#
# Its class stands in [section 1](#1.-Diagnose:-what-is-wrong-with-it?): it can be built, and none of the three roads that exercise 6.1 has tried makes int8 of it from end to end. Its conclusions:
#
# > **The book says:** the model with its stubs is already efficient and optimized, and can be deployed on a small device.
# >
# > **What happens:** stubs are marks. Count what they change in a float model:

# %% tags=["nbval-check-output"]
bare = torch.nn.Sequential(torch.nn.Linear(8, 8))
marked = torch.ao.quantization.QuantWrapper(copy.deepcopy(bare))  # a stub in front, a stub behind
some_x = torch.randn(4, 8, generator=torch.Generator().manual_seed(66))
print("same output, bit for bit:", torch.equal(bare(some_x), marked(some_x)))
print("dtypes of the parameters:", {str(parameter.dtype) for parameter in marked.parameters()})
print("bytes of the parameters: ", *(sum(p.numel() * p.element_size() for p in m.parameters()) for m in (bare, marked)))

# %% [markdown]
# > **What works:** stubs, observers, data, `convert`, and then the card of section 5. The work lies between.
#
# Its list of what one has learned names evaluation by metrics and optimization of performance, and the drafts show neither; unit 05 does. And the book closes with words put into a real person's mouth. We leave them out.
#
# ### When not to
#
# Do not quantize a model that nobody has to carry. Do not quantize an encoder-decoder to save time before you have looked at decoding itself: the loop that calls the decoder once for each character may cost more than its products do. And do not ship the smaller file if the team that gets it has no test of its own. A model that cannot be checked should at least be the one that was trained.
#
# ### Where to go next
#
# Topics, each of which begins where a unit ended. The course does not teach these methods; the links are to the papers:
#
# | topic | the question | it begins at |
# |---|---|---|
# | outliers: [LLM.int8()](https://arxiv.org/abs/2208.07339) (Dettmers et al. 2022), [SmoothQuant](https://arxiv.org/abs/2211.10438) (Xiao et al. 2022), [AWQ](https://arxiv.org/abs/2306.00978) (Lin et al. 2023), rotations as in [QuaRot](https://arxiv.org/abs/2404.00456) (Ashkboos et al. 2024) | what if a few channels are a hundred times louder than all others? | [clip search](../02_quantization_apis/02_quantization_apis.ipynb#heading=Cut-off-the-loudest?) |
# | four bits and below: [GPTQ](https://arxiv.org/abs/2210.17323) (Frantar et al. 2022), NF4 of [QLoRA](https://arxiv.org/abs/2305.14314) (Dettmers et al. 2023), MXFP4 of the [microscaling formats](https://arxiv.org/abs/2310.10537) (Rouhani et al. 2023) | can rounding be cleverer than "to the nearest"? | [bits under a byte budget](../05_evaluation/05_evaluation.ipynb#heading=7.-Bits-under-a-byte-budget) |
# | the cache of keys and values: [KVQuant](https://arxiv.org/abs/2401.18079) (Hooper et al. 2024), [KIVI](https://arxiv.org/abs/2402.02750) (Liu et al. 2024) | the cache grows with every token that is written, the weights do not: in how many bits? | [attention](../04_component_wise/04_component_wise.ipynb#heading=5.-Attention) |
# | integers only: [I-BERT](https://arxiv.org/abs/2101.01321) (Kim et al. 2021) | softmax, GELU and LayerNorm without any float? | [what integers can do](../04_component_wise/04_component_wise.ipynb#heading=What-integers-can-do-here,-and-what-they-cannot) |
# | learned ranges: [LSQ](https://arxiv.org/abs/1902.08153) (Esser et al. 2019), [PACT](https://arxiv.org/abs/1805.06085) (Choi et al. 2018) | what if the scale is trained, too? | [QAT with a schedule](../04_component_wise/04_component_wise.ipynb#cell-id=ex_4_8_check) |
# | deployment: PT2E, ONNX Runtime, ExecuTorch (libraries below) | how does the file run where there is no Python? | [the same model elsewhere](../04_component_wise/04_component_wise.ipynb#heading=The-same-model-elsewhere) |
#
# Libraries, and what each is for:
#
# | library | for |
# |---|---|
# | [torchao](https://docs.pytorch.org/ao/stable/index.html) | quantization and QAT in PyTorch from now on; the eager API of units 02 to 06 explains itself better, but is deprecated |
# | [ONNX Runtime](https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html) | running an exported graph on many platforms; its own dynamic and static int8 |
# | [ExecuTorch](https://docs.pytorch.org/executorch/stable/index.html) | PyTorch models on phones and small devices; quantized with PT2E and torchao |
# | [safetensors](https://huggingface.co/docs/safetensors/index) | files that hold tensors and cannot run code |
#
# **References.** Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762) (the encoder-decoder) · Jacob et al. 2018, [Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877) ·
# Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24 · Mitchell et al. 2019, [Model Cards for Model Reporting](https://arxiv.org/abs/1810.03993) (the idea behind such cards) ·
# Prato, Charlaix and Rezagholizadeh 2020, [Fully Quantized Transformer for Machine Translation](https://arxiv.org/abs/1910.10485) (an encoder-decoder in 8 bits)
#
# ### What you have done
#
# The page is read from the progress file on this computer; the cells below [The leaderboard](#The-leaderboard) and [Three cards](#Three-cards) add your own numbers, if they have run. It is no diploma: nobody stops you from editing a file of yours. With `file="my_certificate.html"` it is kept; otherwise nothing is saved.

# %% tags=["varies"]
checks.show_progress("6", 5)

# %% tags=["varies"]
certificate.show(my_numbers, name="")

# %% [markdown]
# *In the evening the band sits around the fire. Somebody asks Robin what he has really taken from the rich. "Nine bytes of every ten, on a good day," he says, "and I can tell you what each has cost." He lays three cards on the stump. Two of them he throws into the fire, and one he gives to the boy who leaves for Nottingham at dawn.*
#
# *The creature sleeps in a smaller bed. Cronus has learned to look at what he swallows. Prometheus has chosen his fire, the sheriff has his table, and the arrow, with a tenth of its weight, is still in the air.*
