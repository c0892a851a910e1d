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
# The *int8 engines* are the libraries that multiply 8-bit integers for PyTorch. A computer with an Intel or AMD processor
# has several; one with Apple's or another ARM processor has `qnnpack`. The course works with any of them, and a result may
# differ between them in the last digit.

# %% [markdown]
# ## 2. The warnings you will meet, once
#
# PyTorch is moving its quantization tools from `torch.ao.quantization` to a package of their own, torchao. Both work today,
# and both talk a lot. The next cell listens to everything they say while one small layer is quantized, and prints each
# message once.

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
# - *"is deprecated and will be removed in 2.10"*: this torch is newer than 2.10 and the tools are still there. They are
#   the ones you find in most existing code, so units 01 to 04 teach them, beside their replacement in torchao.
# - *"quantized tensor creation functions … are deprecated"*: one day, a quantized tensor will be a plain `int8` tensor with
#   its scale beside it. That is exactly how this course builds everything by hand.
# - The *log lines* come from torchao: its kernels for graphics cards cannot be loaded by a PyTorch without them, and a note
#   to its own developers. Harmless here.
#
# From now on the first cell of each unit hides these messages, exactly these and no others, with
# `known_warnings.hide()`.

# %% [markdown]
# ## 3. Why would anybody want a smaller model?
#
# A model is a pile of numbers, and each number takes room. A `float32` number takes 4 bytes, an `int8` number takes 1. Here
# is how much memory the weights of a model with 7 billion parameters need, for several types of number:

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
    caption="The same weights in four types of number. Memory is parameters times bytes per number, nothing more.",
    alt="Bar chart: 28 gigabytes in float32, 14 in bfloat16, 7 in int8 and 3.5 in 4-bit integers.",
)

# %% [markdown]
# A laptop has perhaps 16 GB, for everything. In `float32` this model does not fit at all; in `int8` it does. **Quantization**
# stores numbers with fewer bits. The rest of this course is about the price: what it does to the model's answers, and how
# to measure that so that nobody can be fooled, yourself included.

# %% [markdown]
# ## 4. How an exercise works
#
# 1. You read what is wanted, and why.
# 2. A cell holds a **stub**: a function with its description, whose body only raises an error. You replace the line
#    `raise NotImplementedError(…)` by your code and run the cell.
# 3. The cell below is the **check**. You run it, but cannot change it. It says what passed, or names your likely mistake.
#    Run it as often as you like: nothing is counted against you. Its code is folded away; a click on the folded line opens it.
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
# A **tensor** is PyTorch's array of numbers. Its memory is
#
# $$\text{bytes} = \text{numel} \times \text{element\_size}$$
#
# where *numel* is how many numbers it holds (the product of its shape) and *element_size* is the bytes of one of them.
# By hand: a tensor of shape (3, 5) holds 15 numbers; in `float32`, 4 bytes each, that is 60 bytes; in `int8` it is 15.
#
# A tensor can also be a *view*, a window into a larger one, such as `x[:, :2]`. Count only the numbers that the tensor
# itself has.


# %% nbgrader={"grade": false, "grade_id": "ex_0_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def tensor_bytes(x: torch.Tensor) -> int:
    """Bytes that the numbers of a tensor take.

    Parameters
    ----------
    x : Tensor, any shape and dtype

    Returns
    -------
    int

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
    with checks.check("0.1", "60 bytes in float32, 15 in int8, and a view counts only its own numbers"):
        x = torch.zeros(3, 5)
        checks.number(
            tensor_bytes(x),
            60,
            "the size of a float32 tensor of shape (3, 5)",
            mistakes={
                "15 is how many numbers it holds: multiply by the bytes of one number.": 15,
                "4 is the size of one number: multiply by how many there are.": 4,
                "you counted only the first dimension: len(x) is 3, but the tensor holds 15 numbers.": 12,
            },
        )
        checks.number(
            tensor_bytes(x.to(torch.int8)),
            15,
            "the size of an int8 tensor of shape (3, 5)",
            mistakes={"not every number takes 4 bytes: ask the tensor, x.element_size().": 60},
        )
        checks.number(
            tensor_bytes(x[:, :2]),
            24,
            "the size of the view x[:, :2]",
            mistakes={"you counted the memory of the whole tensor that the view looks into.": 60},
        )
    ### BEGIN HIDDEN TESTS
    for shape in [(), (0, 4), (7,), (2, 3, 4)]:
        for dtype, size in [
            (torch.float64, 8),
            (torch.bfloat16, 2),
            (torch.uint8, 1),
            (torch.int64, 8),
            (torch.bool, 1),
        ]:
            count = 1
            for length in shape:
                count *= length
            assert tensor_bytes(torch.zeros(shape, dtype=dtype)) == count * size, (
                f"wrong size for shape {shape} and {dtype}."
            )
    assert tensor_bytes(torch.zeros(6, 10).t()) == 240, "a transposed tensor has as many numbers as before."
    assert tensor_bytes(torch.zeros(6, 10)[::2]) == 120, "a view counts only its own numbers."
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
# Your progress is kept in a file on this computer. It is for you; no grade depends on it.

# %% tags=["varies"]
checks.show_progress("0", exercises=1)

# %% [markdown]
# ## Key takeaways
#
# - The memory of a tensor is the number of its elements times the bytes of one: exercise 0.1.
# - `int8` weights take a quarter of the room of `float32` weights: the picture in section 3.
# - A check that fails tells you what to do next; running it costs nothing.
#
# **When not to quantize.** If the model fits, is fast enough and nobody pays for its energy, leave it alone: every method in
# this course costs your time, and most of them some accuracy.
#
# **Further reading.** [PyTorch: what a tensor is](https://docs.pytorch.org/docs/stable/tensors.html) ·
# [JupyterLab: the notebook interface](https://jupyterlab.readthedocs.io/en/stable/user/notebook.html) ·
# [torchao, where PyTorch's quantization is going](https://docs.pytorch.org/ao/stable/index.html)
#
# **Next:** [unit 01, Transformer basics](../01_transformer_basics/01_transformer_basics.ipynb). Dr. Frankenstein has built a mind, and it does not fit into his laboratory.
