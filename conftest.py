"""Settings for every test: no progress file, threads that wait without spinning, pictures without a screen."""

import os

os.environ["COURSE_PROGRESS"] = "off"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")
