"""environment.yml, pyproject.toml, the lock and what is installed agree."""

import importlib.metadata
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from grading.course import ROOT
from helpers.environment import locked_versions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = locked_versions()
EXTRAS = PROJECT["optional-dependencies"]
RANGES = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["pretrained"]]


def test_every_line_of_the_lock_is_a_plain_pin():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        assert re.match(r"^[A-Za-z0-9_.\-]+==[A-Za-z0-9_.]+( ;.*)?\s*(#.*)?$", line), line
    assert len(lines) == len(LOCK)


@pytest.mark.parametrize("requirement", RANGES, ids=lambda r: r.name)
def test_the_lock_is_within_the_ranges(requirement):
    assert LOCK[requirement.name.lower()] in requirement.specifier


@pytest.mark.parametrize("name", sorted(LOCK))
def test_the_locked_version_is_installed(name):
    assert importlib.metadata.version(name).split("+")[0] == LOCK[name]


def test_conda_users_get_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert plain == ["python=3.11", "pip"] and pip == ["-r requirements.lock", "-e ."]
    assert "3.11" in Requirement(f"python{PROJECT['requires-python']}").specifier
