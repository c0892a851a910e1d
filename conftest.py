"""Settings for every test: no progress file, threads that wait without spinning, pictures without a screen."""

import os

os.environ["COURSE_PROGRESS"] = "off"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items: list) -> None:
    """nbval waits 5 seconds for a cell's next message, and then fails: on a busy computer that is too short."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 300
