"""The compiled core: which extensions, which directives. Everything else stands in pyproject.toml.

Switches, through the environment: KOMBULITE_DEBUG=1 (no optimisation, annotated sources), KOMBULITE_SANITIZE=1
(address and undefined-behaviour sanitizers), KOMBULITE_COVERAGE=1 (line tracing for coverage.py).
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("KOMBULITE_DEBUG") == "1"
SANITIZE = os.environ.get("KOMBULITE_SANITIZE") == "1"
COVERAGE = os.environ.get("KOMBULITE_COVERAGE") == "1"

compile_args: list[str] = []
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if os.name == "posix":
    # Cython's generated code declares parameters that it does not always use.
    compile_args += ["-Wall", "-Wextra", "-Wno-unused-parameter"]
    compile_args += ["-O0", "-g"] if DEBUG else ["-O3"]
    if SANITIZE:
        flags = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
        compile_args += flags
        link_args += flags
if DEBUG or COVERAGE:
    macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]
    if os.name == "posix":
        compile_args += ["-Wno-unused-function"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"kombulite._core.{name}",
                [f"ext/kombulite/_core/{name}.pyx"],
                extra_compile_args=compile_args,
                extra_link_args=link_args,
                define_macros=macros,
            )
            for name in ("codecs", "message", "serialization", "envelope", "priority", "queueing", "routing")
        ],
        include_path=["ext"],
        build_dir="build/c",
        annotate=DEBUG,
        compiler_directives={
            "language_level": 3,
            "embedsignature": True,
            "linetrace": DEBUG or COVERAGE,
            "boundscheck": DEBUG or SANITIZE,
            "freethreading_compatible": True,
            "subinterpreters_compatible": "own_gil",
        },
    ),
)
