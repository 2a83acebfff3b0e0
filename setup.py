# SPDX-License-Identifier: Apache-2.0
"""The compiled extension, and the manual pages that are made of the commands; everything else is in pyproject.toml.

One wheel serves every Python from 3.11 on: the limited API makes a call from Python some 5 % slower (235 ns instead
of 224), and no packet, for packets never meet Python.
"""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from setuptools import setup

# isort: split
from distutils.command.install_data import install_data  # since Python 3.12 it is setuptools that has it

HERE = Path(__file__).resolve().parent


class InstallData(install_data):
    """With manual pages and completions: whoever makes them has to import the programs, so they are built before."""

    def run(self):
        build = self.get_finalized_command("build")
        made = Path(build.build_temp).resolve() / "manual"
        path = os.pathsep.join([str(Path(build.build_lib).resolve()), str(HERE)])
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run([sys.executable, HERE / "deploy" / "manual.py", made], check=True, env=environment)
        found = defaultdict(list)
        for file in sorted(made.rglob("*")):
            if file.is_file():
                found[str(Path("share") / file.parent.relative_to(made))].append(str(file))
        self.data_files = [*self.data_files, *found.items()]
        super().run()


setup(
    cffi_modules=["native/api/build_extension.py:ffibuilder"],
    cmdclass={"install_data": InstallData},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
