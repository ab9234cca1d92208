"""Compiles the hot modules. Everything else about the project stands in pyproject.toml.

A hot module is an ordinary `.py` file with a `.pxd` beside it, which gives its names C types. The same
source runs uncompiled: `LOCKSTEP_COMPILE=0` skips compiling, `LOCKSTEP_COMPILE=1` makes a missing
compiler an error; otherwise they are compiled where a C compiler and Python's headers are found, and a
compile that fails ends the installation.

`LOCKSTEP_SANITIZE=1` builds them with AddressSanitizer and UndefinedBehaviorSanitizer, for `tox -e sanitize`:
such modules load into a Python that runs with `LD_PRELOAD=libasan.so` alone.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

HOT = [
    "lockstep.batch",
    "lockstep.capture.frames",
    "lockstep.flow.records",
    "lockstep.link.head",
    "lockstep.link.lengths",
    "lockstep.link.libzmq",
    "lockstep.link.sequence",
    "lockstep.link.zmq",
    "lockstep.link.zmtp",
    "lockstep.poller",
    "lockstep.pressure",
    "lockstep.shell",
    "lockstep.vhost.log",
    "lockstep.vhost.memory",
    "lockstep.vhost.ring",
    "lockstep.wire.bytes",
    "lockstep.wire.checksum",
    "lockstep.wire.frame",
    "lockstep.wire.seqnum",
    "lockstep.wire.tcp",
    "lockstep.wire.view",
    "services.comparer.lane",
    "services.comparer.record",
    "services.comparer.side",
    "services.comparer.split",
    "services.mirror.syns",
    "services.redirector.digest",
    "services.rewriter.connection",
    "services.rewriter.lane",
]

#: What Cython puts into each of them, compiled once: nearly half of all C.
SHARED = "lockstep._cython"

#: `-fno-strict-aliasing`: tables are seen as 32-bit and as 64-bit numbers.
CFLAGS = ["-O3", "-fno-strict-aliasing", "-g0"]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZED = os.environ.get("LOCKSTEP_SANITIZE") == "1"


def missing() -> str | None:
    """What compiling lacks on this machine; None if nothing."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"the C compiler {compiler}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h (Debian's python3-dev)"
    return None


def extensions() -> list[Extension]:
    """The hot modules as extensions; none where they are not to be compiled."""
    wanted = os.environ.get("LOCKSTEP_COMPILE", "auto")
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"LOCKSTEP_COMPILE = {wanted}: choose 0, 1, or leave it unset")
    if wanted == "0":
        return []
    lacking = missing()
    if lacking is not None:
        if wanted == "1":
            sys.exit(f"LOCKSTEP_COMPILE = 1, and {lacking} is missing: install it, or set LOCKSTEP_COMPILE=0")
        print(f"lockstep: {lacking} is missing, so the hot modules stay uncompiled and run slower", file=sys.stderr)
        return []
    from Cython.Build import cythonize

    flags = [*CFLAGS, *(SANITIZERS if SANITIZED else [])]
    sources = {name: name.replace(".", "/") + ".py" for name in HOT} | {SHARED: SHARED.replace(".", "/") + ".c"}
    modules = [
        Extension(name, [source], extra_compile_args=flags, extra_link_args=flags) for name, source in sources.items()
    ]
    return cythonize(  # type: ignore[no-any-return]
        modules,
        shared_utility_qualified_name=SHARED,
        build_dir="build/c",
        nthreads=os.cpu_count() or 1,
        language_level=3,
        compiler_directives={"annotation_typing": False},
    )


# Objects of the two kinds may not be mixed, so each has its folder.
setup(
    ext_modules=extensions(),
    options={
        "build": {"build_base": "build/sanitized" if SANITIZED else "build"},
        "build_ext": {"parallel": os.cpu_count() or 1},
    },
)
