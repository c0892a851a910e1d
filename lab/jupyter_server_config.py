"""JupyterLab for learners: jupytext belongs to the build and would replace the contents manager."""

c = get_config()  # noqa: F821 (Jupyter defines it)

c.ServerApp.jpserver_extensions = {
    "jupyterlab_jupytext": False,
    "nbgrader.server_extensions.assignment_list": False,
    "nbgrader.server_extensions.course_list": False,
    "nbgrader.server_extensions.formgrader": False,
}
c.LabApp.extension_manager = "readonly"  # its list of extensions would ask PyPI as soon as the side bar is opened
