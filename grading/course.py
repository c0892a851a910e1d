"""Where the course keeps what, and nbgrader set up for it (in the course folder or in any other one)."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from nbgrader.apps.api import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from sqlalchemy.exc import SAWarning
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

# nbgrader adds rows in an order that SQLAlchemy 2.1 remarks on; the rows are right.
warnings.filterwarnings("ignore", message="Object of type <Submitted", category=SAWarning, module=r"nbgrader\.api")

ROOT = Path(__file__).resolve().parent.parent


def unit_names(root: Path = ROOT) -> list[str]:
    """Names of all units, in order: every folder of solutions/ that holds a notebook source of its own name."""
    return sorted({path.stem for path in (root / "solutions").glob("*/*.*") if path.stem == path.parent.name})


def nbgrader_config(root: Path, **folders: str) -> Config:
    """The settings of nbgrader_config.py for the course in `root`; `folders` replaces single directories.

    Example: ``nbgrader_config(tmp, release_directory="notebooks")``.
    """
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.db_url = f"sqlite:///{root}/gradebook/gradebook.db"
    for name, folder in folders.items():
        config.CourseDirectory[name] = folder
    return config


def nbgrader_api(root: Path, **folders: str) -> NbGraderAPI:
    """nbgrader's own API for the course in `root`; creates the gradebook folder."""
    (root / "gradebook").mkdir(parents=True, exist_ok=True)
    programs = str(Path(sys.executable).parent)  # nbgrader starts alembic by name
    if programs not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = programs + os.pathsep + os.environ["PATH"]
    config = nbgrader_config(root, **folders)
    return NbGraderAPI(CourseDirectory(config=config), config=config)
