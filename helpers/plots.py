"""Small plot functions: axes in, axes out. One style, colours that survive colour blindness.

`show` is the last step of every figure: it puts the picture, its text alternative and its caption into the page. A
figure is at most PAGE inches wide, so that its text can be read in a column of 700 pixels.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, "Color Universal Design" (2008): distinguishable with every common colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)

PAGE = 8.0  # inches; 10-point letters are then 12 pixels high in a column of 700
PIXELS = 110  # of the page for an inch, where there is room
SHARPNESS = 2  # pixels of the picture for each of the page: screens of phones and new laptops have two

STYLE = {
    "figure.dpi": PIXELS,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": False,
    "image.cmap": "cividis",
    "legend.frameon": False,
}
plt.rcParams.update(STYLE)


def figure(
    columns: int = 1, rows: int = 1, width: float = PAGE, height: float = 3.0
) -> tuple[Figure, np.ndarray | Axes]:
    """A figure in the course's style, with its axes (one, or an array of them).

    `width` and `height` are inches of the whole figure. Three or more axes side by side that would need more than PAGE
    stand two in a row, each as high as `height`; the array of axes is the same.
    """
    if width <= PAGE or columns <= 2 or rows > 1:
        return plt.subplots(rows, columns, figsize=(min(width, PAGE), height))
    lines = -(-columns // 2)
    fig, axes = plt.subplots(lines, 2, figsize=(PAGE, height * lines))
    for spare in axes.flat[columns:]:
        spare.remove()
    return fig, axes.flatten()[:columns]


def show(fig: Figure, caption: str, alt: str) -> None:
    """Display `fig` with a caption below it and `alt` as its text alternative, then close it.

    The caption may hold code in backticks and *emphasis*. Raises ValueError without a text alternative, and if a title
    or a label is cut off or runs into another one.
    """
    if not alt.strip():
        raise ValueError("a figure needs a text alternative: one sentence that says what can be seen.")
    if unreadable := clashes(fig):
        raise ValueError(f"this figure cannot be read: {unreadable[0]}. Shorten the text, or make the figure higher.")
    picture = io.BytesIO()
    fig.savefig(picture, format="png", dpi=PIXELS * SHARPNESS, metadata={"Software": None})
    plt.close(fig)
    # HTML, since JupyterLab drops the text alternative of a plain image/png output.
    data = base64.b64encode(picture.getvalue()).decode()
    page = (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" '
        f'width="{fig.get_figwidth() * PIXELS:.0f}" style="max-width: 100%; height: auto">'
        f"<figcaption><em>{_inline(caption)}</em></figcaption></figure>"
    )
    display({"text/html": page, "text/plain": f"[Figure: {alt}]"}, raw=True)


def clashes(fig: Figure) -> list[str]:
    """Titles and axis labels that leave the figure or run into one of another panel: a sentence for each."""
    fig.draw_without_rendering()
    texts = [
        (text, text.get_window_extent())
        for ax in fig.axes
        for text in (ax.title, ax._left_title, ax._right_title, ax.xaxis.label, ax.yaxis.label)
        if text.get_text().strip() and text.get_visible()
    ]
    page = fig.bbox.padded(3)
    found = [
        f"'{text.get_text()}' is cut off at the edge"
        for text, box in texts
        if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1
    ]
    for (one, box), (other, beside) in itertools.combinations(texts, 2):
        if box.overlaps(beside):
            found.append(f"'{one.get_text()}' runs into '{other.get_text()}'")
    return found


def _inline(text: str) -> str:
    """The little Markdown that captions use, as HTML: `code` and *emphasis*."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"(?<!\w)\*([^*]+)\*(?!\w)", r"</em>\1<em>", text)


def heat_map(ax: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str = "") -> Axes:
    """Matrix (rows, columns) as colours, each row and column labelled; nan is left white."""
    picture = ax.imshow(values, aspect="equal", vmin=0)
    ax.set_xticks(range(len(columns)), columns, family="monospace", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, family="monospace", fontsize=8)
    ax.tick_params(length=0)
    ax.set_title(title)
    ax.figure.colorbar(picture, ax=ax, shrink=0.8)
    return ax


def bars(ax: Axes, values: Mapping[str, float], unit: str, decimals: int = 1) -> Axes:
    """Horizontal bars, the value written at the end of each."""
    names = list(values)
    drawn = ax.barh(names, list(values.values()), color=[PALETTE[i % len(PALETTE)] for i in range(len(names))])
    ax.bar_label(drawn, fmt=f"%.{decimals}f", padding=3)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set_xlabel(unit)
    return ax


def loss_curve(ax: Axes, steps: Sequence[int], bits: Sequence[float]) -> Axes:
    """Bits per byte against training steps."""
    ax.plot(steps, bits)
    ax.set_xlabel("training step")
    ax.set_ylabel("bits per byte")
    return ax


def agreement(ax: Axes, reference: np.ndarray, other: np.ndarray, names: tuple[str, str]) -> Axes:
    """Each value of `other` against the same value of `reference`, with the line of perfect agreement."""
    low, high = float(reference.min()), float(reference.max())
    ax.plot([low, high], [low, high], color=GREY, linewidth=1)
    ax.plot(reference, other, ".", markersize=2, alpha=0.4, color=BLUE)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    ax.set_aspect("equal")
    return ax


def number_line(
    ax: Axes,
    values: Sequence[float],
    codes: Sequence[int],
    back: Sequence[float],
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
) -> Axes:
    """Real values, the marks that are their codes, and the reconstructions, in three rows joined by lines."""
    marks = [scale * (code - zero_point) for code in range(qmin, qmax + 1)]
    ax.plot(marks, [1] * len(marks), "|", color=GREY, markersize=12)
    for code, mark in zip(range(qmin, qmax + 1), marks, strict=True):
        used = code in codes
        ax.text(mark, 1.12, str(code), ha="center", fontsize=8, color="black" if used else GREY)
    for value, rebuilt in zip(values, back, strict=True):
        ax.plot([value, rebuilt, rebuilt], [2, 1, 0], color=BLUE, linewidth=0.8)
    ax.plot(values, [2] * len(values), "o", color=ORANGE)
    ax.plot(back, [0] * len(back), "s", color=GREEN)
    ax.axvline(0, color=GREY, linewidth=0.6, linestyle=":")
    ax.set_yticks([0, 1, 2], ["reconstruction", "code", "real value"])
    ax.set_ylim(-0.3, 2.3)
    ax.set_xlabel("number line")
    return ax


def staircase(ax: Axes, values: np.ndarray, back: np.ndarray) -> Axes:
    """The reconstruction of each value over the value itself, with the line of no error."""
    ax.plot(values, values, color=GREY, linewidth=0.8, linestyle=":")
    ax.plot(values, back, color=BLUE)
    ax.set_xlabel("real value")
    return ax
