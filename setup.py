"""Puts the shipped examples into the wheel; everything else stands in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("specs", "templates", "examples/helpdesk")


class WithExamples(build_py):
    """Copies the examples into the package, below ``shipped``, laid out as in the repository."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in SHIPPED:
                shutil.copytree(name, Path(self.build_lib) / "mmc/shipped" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithExamples})
