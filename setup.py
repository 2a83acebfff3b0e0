# SPDX-License-Identifier: Apache-2.0
"""Only the compiled extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["lb/_build_dataplane.py:ffibuilder"], options={"bdist_wheel": {"py_limited_api": "cp311"}})
