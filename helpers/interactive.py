"""Sliders for a live notebook. A rendered page and a test run show nothing here: put a static twin beside it."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets
from IPython.display import display


def sliders(draw: Callable[..., None], **controls: ipywidgets.Widget) -> None:
    """Show `controls` and, below them, what ``draw(name=value, …)`` displays; it is drawn again after each change."""
    picture = ipywidgets.interactive_output(draw, controls)
    display(ipywidgets.VBox([*controls.values(), picture]))
