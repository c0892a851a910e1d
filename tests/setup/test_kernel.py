"""The kernel that notebooks start, from JupyterLab, VS Code or an own Jupyter."""

from jupyter_client.kernelspec import KernelSpecManager


def test_the_kernel_waits_without_spinning():
    specification = KernelSpecManager().get_kernel_spec("python3")
    assert specification.env.get("OMP_WAIT_POLICY") == "passive", "run: make install"
