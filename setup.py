"""The compiled core: which extensions, which directives. Everything else stands in pyproject.toml.

Switches, through the environment: KOMBULITE_DEBUG=1 (no optimisation, annotated sources, line tracing),
KOMBULITE_SANITIZE=1 (address and undefined-behaviour sanitizers), KOMBULITE_COVERAGE=1 (line tracing for coverage.py).
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

DEBUG, SANITIZE, COVERAGE = (os.environ.get(f"KOMBULITE_{name}") == "1" for name in ("DEBUG", "SANITIZE", "COVERAGE"))
BUILD = "build/" + ("debug" if DEBUG else "sanitize" if SANITIZE else "coverage" if COVERAGE else "release")
MAX_COMPILERS = 4  # at once; a compiler takes up to half a gigabyte

compile_args: list[str] = []
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if os.name == "posix":
    # Cython's own C declares parameters that it does not use.
    compile_args += ["-Wall", "-Wextra", "-Wno-unused-parameter"]
    # CPython's own flags ask for debug information: a quarter of the time to compile, and six sevenths of the wheel.
    compile_args += ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
if SANITIZE:
    link_args += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compile_args += [*link_args, "-fno-omit-frame-pointer", "-g"]
if DEBUG or COVERAGE:
    macros += [("CYTHON_TRACE", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]


class BuildWithHook(build_py):
    """Puts ``kombulite.pth``, which serves KOMBULITE_AS_KOMBU=1, beside the package."""

    def run(self):
        """Build, and put it there."""
        super().run()
        # An editable install builds nothing but takes what lies where a wheel is unpacked.
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        self.mkpath(folder)
        self.copy_file("kombulite.pth", folder)


setup(
    cmdclass={"build_py": BuildWithHook},
    ext_modules=cythonize(
        [
            Extension(
                f"kombulite._core.{name}",
                [f"ext/kombulite/_core/{name}.pyx"],
                extra_compile_args=compile_args,
                extra_link_args=link_args,
                define_macros=macros,
            )
            for name in (
                "aio",
                "channel",
                "codecs",
                "envelope",
                "envelopes",
                "fieldtable",
                "frames",
                "leases",
                "locks",
                "message",
                "outgoing",
                "plain",
                "priority",
                "publishing",
                "queueing",
                "reader",
                "resp",
                "routing",
                "serialization",
            )
        ],
        include_path=["ext"],
        build_dir=None if COVERAGE else f"{BUILD}/c",  # coverage.py wants the C beside the source
        annotate=DEBUG,
        compiler_directives={
            "language_level": 3,
            "embedsignature": True,
            "embedsignature.format": "clinic",
            "binding": False,  # CPython calls such methods faster: 5 % of what a message takes
            # In all builds: what is no index, and what is None, is an error, and never memory that is not ours.
            "boundscheck": True,
            "nonecheck": True,
            "linetrace": DEBUG or COVERAGE,
        },
    ),
    # What a variant has built must not be taken for another one's.
    options={
        "build": {"build_base": BUILD},
        "build_ext": {"build_temp": f"{BUILD}/temp", "parallel": min(os.cpu_count() or 1, MAX_COMPILERS)},
    },
)
