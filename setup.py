"""Makes an editable install a plain path, which type checkers and editors follow; all else is in setup.cfg."""

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel


class EditableWheel(editable_wheel):
    """For `callbacks/`, which stands at the top, setuptools would map names at run time, where only Python finds them.

    `paddlelite_trainer/__init__.py` finds that folder in a checkout, and `paddlelite_trainer/callbacks.pyi` tells type
    checkers of it.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.package_dir = {"": "."}


setup(cmdclass={"editable_wheel": EditableWheel})
