"""wrk as the load: every latency it measured, not only its summary."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
_US = 1_000
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
for name, value in pairs({headers}) do wrk.headers[name] = value end
local bodies = {{}}
for line in io.lines("{bodies}") do bodies[#bodies + 1] = line end
local last = 0
function request()
  last = last % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[last])
end
{delay}
function done(summary, latency, requests)
  local file = io.open("{result}", "w")
  file:write(string.format('{{"requests":%d,"us":%d,"errors":{{', summary.requests, summary.duration))
  for number, kind in ipairs({{"connect", "read", "write", "status", "timeout"}}) do
    file:write(string.format('%s"%s":%d', number > 1 and "," or "", kind, summary.errors[kind]))
  end
  file:write('}},"counts":[')
  for number = 1, #latency do
    local value, count = latency(number)
    file:write(string.format("%s[%d,%d]", number > 1 and "," or "", value, count))
  end
  file:write("]}}")
  file:close()
end
"""
_DELAY = "function delay() return math.random(0, {most}) end"


@dataclass(frozen=True)
class Load:
    """What to send: bodies in turn, over so many connections at a time.

    ``most_delay_ms`` is how long a connection waits at most after an answer, a random time each: 0 asks again at once.
    """

    url: str
    bodies: tuple[bytes, ...]
    connections: int = 1
    most_delay_ms: int = 0
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Answers:
    """The latencies (nanoseconds) by how often each was seen, and the requests a second."""

    nanoseconds: np.ndarray[tuple[int], np.dtype[np.int64]]
    counts: np.ndarray[tuple[int], np.dtype[np.int64]]
    seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return float(self.counts.sum() / self.seconds)

    def quantile(self, share: float) -> float:
        """A latency in nanoseconds, of which that share is not slower."""
        reached = np.cumsum(self.counts)
        return float(self.nanoseconds[np.searchsorted(reached, share * reached[-1])])


def send(load: Load, seconds: int, *, core: int | None = None) -> Answers:
    """Send load for so long, from one thread, on one core if told.

    Raises SystemExit if wrk is missing, fails, or has seen an answer that is none.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("no wrk on PATH: `apt install wrk`")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        script, result, bodies = directory / "load.lua", directory / "result.json", directory / "bodies"
        bodies.write_bytes(b"\n".join(load.bodies) + b"\n")
        headers = ", ".join(f"[{json.dumps(key)}] = {json.dumps(value)}" for key, value in load.headers)
        delay = _DELAY.format(most=load.most_delay_ms) if load.most_delay_ms else ""
        script.write_text(_SCRIPT.format(headers=f"{{{headers}}}", bodies=bodies, result=result, delay=delay))
        command = ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--timeout=60s"]
        command += ["-s", str(script), load.url]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not result.exists():
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        found = json.loads(result.read_text())
    errors = {kind: count for kind, count in found["errors"].items() if count}
    if errors or not found["counts"]:
        raise SystemExit(f"{load.url}: {found['requests']} answers, and errors: {errors}")
    counts = np.array(sorted(found["counts"]), np.int64)
    return Answers(counts[:, 0] * _US, counts[:, 1], found["us"] / 1e6)


def together(parts: list[Answers]) -> Answers:
    """Several runs as one."""
    values, where = np.unique(np.concatenate([part.nanoseconds for part in parts]), return_inverse=True)
    counts = np.bincount(where, weights=np.concatenate([part.counts for part in parts])).astype(np.int64)
    return Answers(values, counts, sum(part.seconds for part in parts))
