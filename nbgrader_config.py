"""nbgrader's settings for this course; each line that is not a plain path says which defect it prevents."""

import os
import secrets

from nbgrader.converters import Autograde, GenerateAssignment
from nbgrader.preprocessors import ClearSolutions, Execute, OverwriteCells

from grading.preprocessors import ExecuteForGrades, RestoreCells, StubWithNumber

c = get_config()  # noqa: F821 (nbgrader defines it)

c.CourseDirectory.course_id = "transformer-quantization"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "notebooks"
c.CourseDirectory.solution_directory = "gradebook/solution"  # its default, "solution", reads like our "solutions"
c.CourseDirectory.submitted_directory = "gradebook/submitted"
c.CourseDirectory.autograded_directory = "gradebook/autograded"
c.CourseDirectory.feedback_directory = "gradebook/feedback"
c.CourseDirectory.db_url = "sqlite:///gradebook/gradebook.db"
# nbgrader copies whatever lies beside a notebook: the .py sources hold the solutions, and a submitted helpers.py
# or torch.py would be imported instead of the real one.
c.CourseDirectory.ignore = [
    ".ipynb_checkpoints", "__pycache__", "feedback", ".*", "*.py", "*.pyc", "*.pth", "*.so", "*.egg-info",
]  # fmt: skip

# Our own steps in nbgrader's order: a stub that names its exercise, deleted test cells put back in the right place, and
# an execution whose outputs can neither fill the memory nor pass for points.
c.GenerateAssignment.preprocessors = [
    StubWithNumber if step is ClearSolutions else step for step in GenerateAssignment.preprocessors.default()
]
c.Autograde.sanitize_preprocessors = [
    RestoreCells if step is OverwriteCells else step for step in Autograde.sanitize_preprocessors.default()
]
c.Autograde.autograde_preprocessors = [
    ExecuteForGrades if step is Execute else step for step in Autograde.autograde_preprocessors.default()
]
c.OverwriteCells.add_missing_cells = True

# Validate and autograde. The default of 30 s interrupts a slow cell and still reports success.
c.Execute.timeout = int(os.environ.get("COURSE_CELL_SECONDS", "300"))
# nbclient skips cells with the tag "skip-execution", and a skipped test cell raises nothing, so it earns its points:
# no learner can know this name, it is another one in every process.
c.Execute.skip_cells_with_tag = secrets.token_hex(16)
c.Execute.shutdown_kernel = "immediate"  # a kernel that ignores a polite shutdown cannot hold up the class
# A busy computer delivers a finished cell's last message late; the default of 4 s takes that for a broken kernel.
c.Execute.iopub_timeout = 60
# Only this computer talks to the kernel: its warning about an unencrypted connection says nothing to an instructor.
c.Execute.extra_arguments = ["--HistoryManager.hist_file=:memory:", "--IPKernelApp.log_level=40"]
# A warning on stderr costs the points of a test cell (nbgrader counts it as a failure): warnings are not grades.
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = r"(?s).*"
