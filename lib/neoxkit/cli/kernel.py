"""The kernel in which `neoxkit run` executes notebooks: this very Python.

Jupyter finds kernels by name, in JUPYTER_PATH before the environment at hand: a python3 there may
be any other Python.
"""

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default


class OwnKernel(AsyncKernelManager):
    """A kernel manager that knows no installed kernel: its python3 is the Python it runs in."""

    @default("kernel_spec_manager")
    def _no_installed_kernels(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])
