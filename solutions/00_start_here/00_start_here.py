# %% [markdown]
# # Start here
#
# In fifteen minutes you know that your computer is ready, how an exercise works here, and why anybody bothers to make a
# model smaller.
#
# | At a glance | |
# |---|---|
# | **You will** | check your set-up, run a check that fails on purpose, solve your first exercise, compute the memory of a model |
# | **You need** | Python: functions, lists, loops. No PyTorch yet. |
# | **Time** | 15 minutes |
# | **Graded** | 1 exercise, 1 point |
#
# This course follows the chapters of a small book on Transformer quantization and keeps its four story figures:
# Dr. Frankenstein, whose creature needs too much memory; Cronus, who swallows a stone and notices no difference;
# Prometheus, who must choose a fire; and Robin Hood, who takes bits from the rich and has to prove that nobody was
# harmed. The book's code often does not run and some of its claims are not true. Where that is so you will see a box:
# what the book says, what really happens when it is run, and the version that works.

# %% [markdown]
# ## 1. Is everything in place?
#
# A notebook is a list of cells. Click into the next one and press **Shift+Enter**: it runs, its output appears below it,
# and the next cell is selected. If something is wrong with this computer, each problem comes with its cure.

# %% tags=["varies"]
from helpers import environment

environment.report()

# %% [markdown]
# The *int8 engines* are the libraries that multiply 8-bit integers for PyTorch; the one in use is named first. Which ones you
# have depends on your processor and your PyTorch: a PC has several, and on Apple's computers it is `qnnpack`. The course is
# written for each of them, but their results are not equal: some give the numbers between two layers 7 bits, others 8 (unit 02
# shows which, and why). So your int8 results may differ from those in the text, and in more than a last digit.

# %% [markdown]
# ## 2. The warnings you will meet, once
#
# PyTorch is moving its quantization tools from `torch.ao.quantization` to a package of their own, torchao. Both work in the
# versions of this course, and both talk a lot. The next cell listens to their warnings and log lines while one small layer is
# quantized, and prints each message once.

# %% tags=["varies"]
from helpers import known_warnings

with known_warnings.listening() as heard:
    import torch
    import torchao.quantization

    layer = torch.nn.Sequential(torch.nn.Linear(8, 8))
    torch.ao.quantization.quantize_dynamic(layer, {torch.nn.Linear}, dtype=torch.qint8)

for line in heard:
    print("-", line)

# %% [markdown]
# What they mean for you:
#
# - *"is deprecated and will be removed in 2.10"*: this torch is newer than 2.10 and the tools are still there. You will
#   find them in much existing code, so units 01 to 04 teach them, beside their replacement in torchao.
# - *"quantized tensor creation functions … are deprecated"*: one day, PyTorch's special dtypes for quantized tensors will be
#   gone. What is left then is a plain `int8` tensor with its scale beside it, and that is how this course builds by hand.
# - The *log lines* come from torchao: kernels for graphics cards that this PyTorch does not load, and a note to its own
#   developers. The course does not use them.
#
# From now on the first cell of each unit hides a short list of messages, by their text and the place that they come from, with
# `known_warnings.hide()`. What is not in the list you will see.

# %% [markdown]
# ## 3. Why would anybody want a smaller model?
#
# A model is a pile of numbers, its *parameters* or *weights*, and each number takes room. A `float32` number takes 4 bytes, an
# `int8` number takes 1. Here is how much memory the weights of a model with 7 billion parameters need, for several types of
# number:

# %%
import torch

from helpers import plots

known_warnings.hide()

parameters = 7_000_000_000
bytes_each = {"float32": 4, "bfloat16": 2, "int8": 1, "4-bit integers": 0.5}
gigabytes = {name: parameters * size / 1e9 for name, size in bytes_each.items()}

fig, ax = plots.figure(height=2.2)
plots.bars(ax, gigabytes, "gigabytes for the weights of 7 billion parameters")
plots.show(
    fig,
    caption="The same weights in four types of number: parameters times bytes per number. (Integers need a few more numbers beside "
    "them, their scales: unit 02 counts those, too.)",
    alt="Bar chart: 28 gigabytes in float32, 14 in bfloat16, 7 in int8 and 3.5 in 4-bit integers.",
)

# %% [markdown]
# A laptop has perhaps 16 GB, for everything. In `float32` the weights alone do not fit; in `int8` they take less than half of
# it. **Quantization** stores numbers with fewer bits. The rest of this course is about the price: what it does to the model's
# answers, and how to measure that so that you do not fool yourself.

# %% [markdown]
# ## 4. How an exercise works
#
# 1. You read what is wanted, and why.
# 2. A cell holds a **stub**: a function with its description, whose body only raises an error. You replace the line
#    `raise NotImplementedError(…)` by your code and run the cell. If that cell stops with an error of its own (a
#    `SyntaxError`, say), your new function does not exist yet: a check would still judge the one from before.
# 3. The cell below is the **check**. You run it, but cannot change it. It says what passed, or what is wrong, and names the
#    mistake if it is a known one. Run it as often as you like: nothing is counted against you. Its code is folded away; a
#    click on the folded line opens it.
# 4. **Hints** are folded away below. They go from a nudge to nearly the answer.
# 5. **Validate**, the button above the notebook, runs the whole notebook in a fresh kernel, as a grader does. Use it
#    when all checks of a unit pass.
#
# The package `helpers` has its own versions of some of what you are going to write. Looking is allowed, best afterwards.
#
# Your teacher's version of a check also holds *hidden tests*: the same question with other numbers and odd cases, so that
# an answer that only fits the visible numbers earns nothing.
#
# Try it: **run the check of exercise 0.1 before you write anything.** It fails, and that is right.

# %% [markdown]
# ### Exercise 0.1: the bytes of a tensor
# *Difficulty 1 of 5 · 5 minutes · 1 point*
#
# A **tensor** is PyTorch's array of numbers. Its numbers take
#
# $$\text{bytes} = \text{numel} \times \text{element\_size}$$
#
# where *numel* is how many numbers it holds (the product of its shape) and *element_size* is the bytes of one of them.
# By hand: a tensor of shape (3, 5) holds 15 numbers; in `float32`, 4 bytes each, that is 60 bytes; in `int8` it is 15.
# PyTorch has many types of number, of 1 to 16 bytes. Ask the tensor: `x.numel()` and `x.element_size()`.
#
# A tensor can also be a *view*, a window into the memory of another one, such as `x[:, :2]`. Count the numbers of the tensor
# that you are given, as its shape says, and not those of the other one.


# %% nbgrader={"grade": false, "grade_id": "ex_0_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def tensor_bytes(x: torch.Tensor) -> int:
    """Bytes that the numbers of a tensor take.

    Parameters
    ----------
    x : Tensor, any shape and dtype

    Returns
    -------
    int
        A whole number, no tensor and no float.

    Example
    -------
    >>> tensor_bytes(torch.zeros(3, 5))
    60
    """
    ### BEGIN SOLUTION
    return x.numel() * x.element_size()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_0_1_check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 0.1: run this cell.
import torch

from helpers import checks


@checks.isolated
def check_ex_0_1() -> None:
    import numbers
    import sys

    from helpers import samples

    def size_of(x: torch.Tensor, what: str) -> int:
        with checks.untouched(x=x):
            answer = tensor_bytes(x)
        checks.given(answer, what)
        assert isinstance(answer, numbers.Integral) and not isinstance(answer, bool), (
            f"{what} is a {type(answer).__name__}, and should be an int: bytes come in whole numbers."
        )
        return int(answer)

    with checks.check("0.1", "the numbers that a tensor has times the bytes of one, for every shape, dtype and view"):
        x = torch.zeros(3, 5)
        what = "the size of a float32 tensor of shape (3, 5)"
        checks.number(
            size_of(x, what),
            60,
            what,
            mistakes={
                "15 is how many numbers it holds: multiply by the bytes of one number.": 15,
                "4 is the size of one number: multiply by how many there are.": 4,
                "you counted only the first dimension: len(x) is 3, but the tensor holds 15 numbers.": 12,
                "you counted only the last dimension: it is 5, but the tensor holds 15 numbers.": 20,
                "you added the lengths of the dimensions: 3 rows of 5 numbers are 15, not 8.": 32,
                "these are bits: 8 bits make one byte, and element_size() is in bytes.": 480,
                "sys.getsizeof measures Python's small object around the tensor, not the numbers in it.": sys.getsizeof(
                    x
                ),
            },
        )
        what = "the size of an int8 tensor of shape (3, 5)"
        checks.number(
            size_of(x.to(torch.int8), what),
            15,
            what,
            mistakes={"not every number takes 4 bytes: ask the tensor, x.element_size().": 60},
        )
        for dtype, size in {
            torch.bool: 1,
            torch.uint8: 1,
            torch.float8_e4m3fn: 1,
            torch.float16: 2,
            torch.bfloat16: 2,
            torch.int16: 2,
            torch.int32: 4,
            torch.int64: 8,
            torch.float64: 8,
            torch.complex64: 8,
            torch.complex128: 16,
        }.items():
            what = f"the size of a {dtype} tensor of shape (2, 3)"
            assert (answer := size_of(torch.zeros(2, 3, dtype=dtype), what)) == 6 * size, (
                f"{what} is {answer}; expected is {6 * size}, because one of these numbers takes {size} bytes."
            )
        what = "the size of the view x[:, :2]"
        checks.number(
            size_of(x[:, :2], what),
            24,
            what,
            mistakes={
                "you counted the memory of the whole tensor that the view looks into.": 60,
                "you counted from the view's first number to its last: what lies between them is not its own.": 48,
            },
        )
        for what, view, size in [
            ("the size of the first two rows, x[:2]", x[:2], 40),
            ("the size of the last row, x[2]", x[2], 20),
            ("the size of x.t()", x.t(), 60),
            ("the size of a row that expand shows three times, x[:1].expand(3, 5)", x[:1].expand(3, 5), 60),
            ("the size of a tensor without a dimension, torch.tensor(1.0)", torch.tensor(1.0), 4),
            ("the size of a tensor of four dimensions, (2, 3, 1, 2)", torch.zeros(2, 3, 1, 2), 48),
            ("the size of an empty tensor of shape (0, 4)", torch.zeros(0, 4), 0),
            *((f"the size of {name}", form, 60) for name, form in samples.awkward(x)),
        ]:
            assert (answer := size_of(view, what)) == size, (
                f"{what} is {answer}; expected is {size}: the numbers that its shape says, times the bytes of one."
            )
    ### BEGIN HIDDEN TESTS
    for shape in [(), (0, 4), (7,), (2, 3, 4), (1, 2, 1, 3, 2)]:
        for dtype, size in [
            (torch.float64, 8),
            (torch.float32, 4),
            (torch.bfloat16, 2),
            (torch.float8_e5m2, 1),
            (torch.uint8, 1),
            (torch.int8, 1),
            (torch.int16, 2),
            (torch.int32, 4),
            (torch.int64, 8),
            (torch.bool, 1),
            (torch.complex64, 8),
            (torch.complex128, 16),
        ]:
            count = 1
            for length in shape:
                count *= length
            assert size_of(torch.zeros(shape, dtype=dtype), "the size") == count * size, (
                f"wrong size for shape {shape} and {dtype}."
            )
    large = torch.arange(60.0).view(6, 10)
    for what, view, size in [
        ("a transposed tensor", large.t(), 240),
        ("every second row", large[::2], 120),
        ("every third column", large[:, ::3], 96),
        ("rows from the middle", large[2:5], 120),
        ("one row", large[5], 40),
        ("an expanded column", large[:, :1].expand(6, 4), 96),
        *((name, form, 240) for name, form in samples.awkward(large)),
    ]:
        assert size_of(view, "the size") == size, f"wrong size for {what}: it has as many numbers as its shape says."
    ### END HIDDEN TESTS


check_ex_0_1()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Every tensor knows two numbers about itself: how many elements it has, and how many bytes one of them takes.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Type `x.` in a cell and press Tab, or try `torch.zeros(3, 5).numel()` and `torch.zeros(3, 5).element_size()`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `return x.numel() * …`
# </details>

# %% [markdown]
# ## 5. Where you stand
#
# Your progress is kept in a file on this computer. It is for you; no grade depends on it. An exercise counts as solved once
# its check has passed, also if you change your answer later.

# %% tags=["varies"]
checks.show_progress("0", exercises=1)

# %% [markdown]
# ## Key takeaways
#
# - The numbers of a tensor take as many bytes as it has elements, times the bytes of one: exercise 0.1.
# - `int8` weights take a quarter of the room of `float32` weights, scales not counted: the picture in section 3.
# - A check that fails says what is wrong with your answer; running it costs nothing.
#
# **When not to quantize.** If the model fits, is fast enough and nobody pays for its energy, leave it alone: every method in
# this course costs your time, and how much accuracy it costs has to be measured each time.
#
# **Further reading.** [PyTorch: what a tensor is](https://docs.pytorch.org/docs/stable/tensors.html) ·
# [JupyterLab: the notebook interface](https://jupyterlab.readthedocs.io/en/stable/user/notebook.html) ·
# [torchao, where PyTorch's quantization is going](https://docs.pytorch.org/ao/stable/index.html)
#
# **Next:** [unit 01, Transformer basics](../01_transformer_basics/01_transformer_basics.ipynb). Dr. Frankenstein has built a mind, and it does not fit into his laboratory.
