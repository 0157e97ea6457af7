"""Where and with what a figure was measured, so that it can be read a year later."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("quorin", "numpy", "numba", "pyarrow", "redis", "feast", "uvicorn")


def describe() -> dict[str, object]:
    """CPU, cores, memory in bytes, kernel, load, Python and the libraries' versions."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def one_line(machine: dict[str, object]) -> str:
    """The same for people."""
    versions = machine["versions"]
    assert isinstance(versions, dict)
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, {machine['kernel']}, "  # type: ignore[operator]
        f"load {machine['load_before']:.2f}; Python {machine['python']}, {libraries}"
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
