"""Checks of a machine and of a deployment: the finding, its severity, and advice."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorin.engine.backend import connect
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY, SEQUENCE_BITS
from quorin.engine.log.open_load import SILENT_SECONDS, open_loads
from quorin.engine.ops.event_times import entities_after
from quorin.engine.ops.observe import Observer
from quorin.engine.words import ago, count, counted, duration, size
from quorin.errors import QuorinError, install_command
from quorin.schema import fingerprint, schema_from_json
from quorin.wal import DEFAULT_MAX_ENTRIES

if TYPE_CHECKING:
    from quorin.engine.backend import Backend
    from quorin.engine.ops.observe import Deployment, SegmentState

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_MIN_SHM_BYTES = 1 << 30
_MIN_FREE_SHARE = 0.1
_MAX_CLOCK_SECONDS = 1.0
_MAX_LAG_SECONDS = 10.0
_MAX_FUTURE_SECONDS = 60.0
_MAX_NAMED = 3
_MAX_SILENT_SECONDS = 10.0
_BUSY_ADVICE = (
    "the consumer does not keep up: give it its own CPU core; or it cannot write its history: `history_unavailable` in "
    "its log"
)
_NODE_ADVICE = "see whether it reaches Redis, can write its history, and keeps up: `quorin nodes --schemas`"
_MIN_REDIS = (6, 2)
OLDEST_FEAST, NEWEST_FEAST = (0, 64), (0, 67)
_PTH, _HOOK = "quorin_feast.pth", "feast_quorin"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. ``status`` is ``ok``, ``warning`` or ``problem``; ``advice`` says what to do."""

    name: str
    status: str
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)


def check_machine(shm_dir: str | os.PathLike[str]) -> list[Check]:
    """Checks that do not depend on a deployment."""
    directory = Path(shm_dir)
    return [
        _shared_memory(directory),
        *_limits(),
        _huge_pages(Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        _logind([Path("/etc/systemd/logind.conf"), *sorted(Path("/etc/systemd/logind.conf.d").glob("*.conf"))]),
        _kernels(),
        _feast(),
    ]


def check_deployment(
    connection: Any,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    stream_key: str = DEFAULT_STREAM_KEY,
    shm_dir: str | os.PathLike[str],
) -> list[Check]:
    """Checks of the control plane, its segments on this machine, and its log."""
    try:
        backend = connect(connection, namespace=namespace, must_answer=False)
    except QuorinError as error:
        return [Check("control plane", PROBLEM, str(error), "check that it runs, and that the address is right")]
    try:
        with Observer(backend, shm_dir=shm_dir, stream_key=stream_key) as observer:
            return _checks(backend, observer)
    except QuorinError as error:  # The observer can't be had: no log has this name.
        return [Check("control plane", PROBLEM, str(error), "check that it runs, and that this user has access")]
    finally:
        backend.close()


def _checks(backend: Backend, observer: Observer) -> list[Check]:
    try:
        seen = observer.observe(readers=False)
        checks = [*_store(backend), _clock(backend, seen)]
        for state in seen.segments:
            checks += _segment(state, observer, backend)
        return [*checks, *_nodes(seen, backend), *_log(seen), *_loads(backend)]
    except QuorinError as error:
        advice = "check that it runs, and that this user has access; reads go on meanwhile, writes fail"
        return [Check("control plane", PROBLEM, str(error), advice), *_here(observer)]


def _here(observer: Observer) -> Iterator[Check]:
    """What this node serves while the control plane is away."""
    try:
        here = observer.here()
    except QuorinError:  # The node has never met the deployment.
        return
    for state in here.segments:
        name = f"segment of {state.schema_name}"
        if state.stats is None:
            yield Check(name, PROBLEM, state.problem or "not readable", "it is rebuilt once the control plane is back")
            continue
        age = here.confirmed_ages[state.schema_name]
        known = "never known to be up to date" if math.isinf(age) else f"last up to date {ago(age)}"
        found = f"{counted(state.stats['rows'], 'row')}, {known}"
        yield Check(name, WARNING if age > _MAX_LAG_SECONDS else OK, found, "served, and older by the second")


def _loads(backend: Backend) -> Iterator[Check]:
    """The views that are being replaced."""
    for name, (load, silent_seconds) in open_loads(backend.control).items():
        found, advice = f"committed at position {max(load.ends, default=0)}; not all nodes have applied it yet", ""
        if load.state != "committed":
            found = f"{load.state} since position {load.begin}, by {load.coordinator}, seen {ago(silent_seconds)}"
            if silent_seconds > SILENT_SECONDS:
                advice = f"its process seems dead: `quorin replace {name} --abort`, or begin anew"
        yield Check(f"replacement of {name}", WARNING if advice else OK, found, advice)


def _nodes(seen: Deployment, backend: Backend) -> Iterator[Check]:
    """This node's freshness, and each other node that is silent or far behind."""
    own = next((node for node in seen.nodes if node.node == seen.node and node.is_alive), None)
    # With the embedded log a writer may apply its rows itself, and end.
    if own is None and any(backend.is_remote or (state.lag and state.lag.entries) for state in seen.segments):
        advice = "run `quorin consumer` here, or serve with consumer: auto; without either its rows grow stale"
        yield Check("this node", WARNING, "no process applies the log here", advice)
    for node in seen.nodes:
        name, lag = f"node {node.node or '?'} ({', '.join(node.hosts)})", node.lag_seconds
        if not node.is_alive:
            advice = "if it is gone for good, nothing is to be done; if it serves, its rows are stale"
            yield Check(name, WARNING, f"silent for {duration(node.silent_seconds)}", advice)
        elif lag is None or lag > _MAX_LAG_SECONDS:
            since = "it was never known to be up to date" if lag is None else f"last up to date {duration(lag)} ago"
            yield Check(name, WARNING, since, _NODE_ADVICE)
        else:
            yield Check(name, OK, f"{counted(len(node.replicas), 'schema')}, up to date {duration(lag)} ago")


def _shared_memory(directory: Path) -> Check:
    name = f"shared memory in {directory}"
    try:
        usage = os.statvfs(directory)
    except OSError as error:
        return Check(name, PROBLEM, str(error.strerror), "mount a tmpfs there, or set QUORIN_SHM_DIR to a directory")
    if not os.access(directory, os.R_OK | os.X_OK):
        return Check(name, PROBLEM, "not readable by this user", "give the user access, or set QUORIN_SHM_DIR")
    if not os.access(directory, os.W_OK):
        found = "read-only for this user: it can read segments, not create any"
        return Check(name, WARNING, found, "right for a reader; give a user that writes access, or set QUORIN_SHM_DIR")
    total, free = usage.f_blocks * usage.f_frsize, usage.f_bavail * usage.f_frsize
    found = f"{free / 2**20:,.0f} MiB free of {total / 2**20:,.0f} MiB"
    larger = "docker: --shm-size; Kubernetes: emptyDir with medium Memory; else: mount -o remount,size=… /dev/shm"
    if free < _MIN_FREE_SHARE * total:
        return Check(name, PROBLEM, found, f"segments cannot grow without room: {larger}")
    if total < _MIN_SHM_BYTES:
        return Check(name, WARNING, found, f"growth needs room for the old and the new segment at once: {larger}")
    return Check(name, OK, found)


def _limits() -> Iterator[Check]:
    for name, limit, minimum in (
        ("limit of address space (ulimit -v)", resource.RLIMIT_AS, 1 << 40),
        ("limit of file size (ulimit -f)", resource.RLIMIT_FSIZE, 1 << 40),
        ("limit of open files (ulimit -n)", resource.RLIMIT_NOFILE, 256),
    ):
        soft, _ = resource.getrlimit(limit)
        if soft == resource.RLIM_INFINITY or soft >= minimum:
            yield Check(name, OK, "none" if soft == resource.RLIM_INFINITY else f"{soft:,}")
        else:
            yield Check(name, WARNING, f"{soft:,}", "segments are large files, mapped as a whole: raise the limit")


def _huge_pages(path: Path) -> Check:
    name = "huge pages for shared memory"
    try:
        selected = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return Check(name, OK, "this kernel has no such setting")
    setting = selected[1] if selected else "unknown"
    if setting in ("advise", "always", "within_size", "force"):
        return Check(name, OK, setting)
    advice = f"to speed up random reads of large segments: echo advise | sudo tee {path}"
    return Check(name, WARNING, setting, advice)


def _logind(files: list[Path]) -> Check:
    """Logind removes a user's shared memory at logout, unless it is a system user's or RemoveIPC is off."""
    name, setting = "RemoveIPC of logind", "yes (its default)"
    if not Path("/run/systemd/system").is_dir():
        return Check(name, OK, "systemd is not running")
    for path in files:
        try:
            lines = re.findall(r"^\s*RemoveIPC\s*=\s*(\w+)", path.read_text(), flags=re.MULTILINE)
        except OSError:
            continue
        setting = lines[-1] if lines else setting
    if setting.lower() in ("no", "false", "0", "off"):
        return Check(name, OK, setting)
    if os.getuid() < 1000:
        return Check(name, OK, f"{setting}; does not apply to system users")
    advice = (
        "segments vanish when this user's last session ends: set RemoveIPC=no in logind.conf, or run as a system user"
    )
    return Check(name, WARNING, setting, advice)


def _kernels() -> Check:
    name = "compiled kernels"
    try:
        from quorin.engine.kernels import READING, cache, described, load

        loadings = load(READING).values()
    except QuorinError as error:
        return Check(name, PROBLEM, str(error), "unset it: without kernels nothing can be read or written")
    directory = cache.directory()
    found = f"of reads: {described(loadings)}; numba {importlib.metadata.version('numba')}, "
    found += f"cached in {directory}" if directory else "not cached: this user has no home directory"
    if directory is None or not os.access(directory, os.W_OK | os.X_OK):
        advice = "every process compiles for seconds: make it writable, or set XDG_CACHE_HOME or NUMBA_CACHE_DIR"
        return Check(name, WARNING, found, advice)
    was_compiled = any(loading.was_compiled for loading in loadings)
    return Check(name, OK, found, "`quorin prewarm` compiles the others now, not at first use" if was_compiled else "")


def _feast() -> Check:
    name = "Feast"
    try:
        version = importlib.metadata.version("feast")
    except importlib.metadata.PackageNotFoundError:
        return Check(name, OK, "not installed; only the engine is available")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    oldest, newest = (".".join(map(str, one)) for one in (OLDEST_FEAST, NEWEST_FEAST))
    if numbers < OLDEST_FEAST:
        return Check(name, PROBLEM, f"version {version}, expected {oldest} or newer", install_command("feast"))
    if numbers > NEWEST_FEAST:
        advice = f"tested up to {newest}: what differs takes Feast's own path, see `feast_differs` in the log"
        return Check(name, WARNING, f"version {version}", advice)
    if not any(getattr(finder, "__module__", "").startswith(_HOOK) for finder in sys.meta_path):
        advice = f"install the wheel so that {_PTH} is in site-packages, or write type: feast_quorin.QuorinOnlineStore"
        return Check(name, WARNING, f"version {version}, the short name `type: quorin` is not registered", advice)
    return Check(name, OK, f"version {version}, `type: quorin` is registered")


def _store(backend: Backend) -> Iterator[Check]:
    facts = backend.facts()
    name = f"{'Redis' if facts['kind'] == 'redis' else 'SQLite'} at {backend.address}"
    if facts["kind"] != "redis":
        synchronous = {"0": "OFF", "1": "NORMAL", "2": "FULL", "3": "EXTRA"}.get(facts["synchronous"], "?")
        found = f"SQLite {facts['version']}, {facts['journal_mode']}, synchronous {synchronous}, "
        yield Check(name, OK, found + f"{int(facts['file_bytes']) / 2**20:,.1f} MiB")
        return
    numbers = tuple(int(part) for part in re.findall(r"\d+", facts["version"])[:2])
    if numbers < _MIN_REDIS:
        yield Check(name, PROBLEM, f"version {facts['version']}", "upgrade to Redis 6.2 or newer")
    else:
        yield Check(name, OK, f"version {facts['version']}, {facts.get('role', '?')}")
    if "cluster" in (facts.get("redis_mode"), facts.get("server_mode")):  # The second is Valkey's.
        yield _replication(facts)
    yield _persistence(facts)
    yield _eviction(facts)


def _replication(facts: dict[str, str]) -> Check:
    count = int(facts.get("connected_slaves", 0))
    advice = "" if count else "if it fails, nothing takes over: add one"
    found = f"the master of this namespace has {count or 'none'}"
    return Check("replicas of Redis", OK if count else WARNING, found, advice)


def _persistence(facts: dict[str, str]) -> Check:
    name, sync = "persistence of Redis", facts["appendfsync"]
    if facts.get("aof_enabled") != "1":
        advice = "a crash of Redis loses acknowledged writes: appendonly yes, appendfsync always (or everysec)"
        return Check(name, WARNING, "append-only file off", advice)
    if facts.get("aof_last_write_status", "ok") != "ok":
        return Check(name, PROBLEM, "the last write of the append-only file failed", "check Redis's disk")
    if sync == "everysec":
        return Check(name, OK, "append-only file, synced each second: a crash of the machine can lose the last second")
    if sync == "no":
        return Check(name, WARNING, "append-only file, never synced", "set appendfsync always, or everysec")
    return Check(name, OK, f"append-only file, appendfsync {sync}")


def _eviction(facts: dict[str, str]) -> Check:
    name, policy = "memory of Redis", facts.get("maxmemory_policy", "?")
    limit, used = int(facts.get("maxmemory", 0)), int(facts.get("used_memory", 0))
    found = f"{policy}, {used / 2**20:,.0f} MiB used" + (f" of {limit / 2**20:,.0f} MiB" if limit else ", no limit")
    if policy != "noeviction":
        return Check(name, PROBLEM, found, "Redis may evict the log when it is full: set maxmemory-policy noeviction")
    if limit and used > 0.9 * limit:
        return Check(name, PROBLEM, found, "Redis will refuse writes: raise maxmemory, or let a consumer trim the log")
    return Check(name, OK, found)


def _clock(backend: Backend, seen: Deployment) -> Check:
    """Event times decide which row wins, and positions start with the clock of the log's machine."""
    name, advice = "clock", "synchronise the clocks (chrony, systemd-timesyncd): event times decide which row wins"
    ahead = (seen.log.last >> SEQUENCE_BITS) / 1000 - time.time()
    if ahead > _MAX_CLOCK_SECONDS:
        return Check(name, WARNING, f"the log's last entry is from {ahead:,.0f} s in the future", advice)
    server_time = backend.facts().get("time")
    difference = abs(float(server_time) - time.time()) if server_time else 0.0
    if difference > _MAX_CLOCK_SECONDS:
        return Check(name, WARNING, f"the clocks of this machine and Redis differ by {difference:,.1f} s", advice)
    return Check(name, OK, "agrees with the log's" if server_time else "not behind the log")


def _segment(state: SegmentState, observer: Observer, backend: Backend) -> Iterator[Check]:
    name = f"segment of {state.schema_name}"
    if state.stats is None or state.lag is None:
        advice = "run `quorin consumer`, which rebuilds it from the log, or `quorin hydrate`, from the history"
        yield Check(name, PROBLEM, state.problem or "not readable", advice)
        return
    stats = state.stats
    view = observer.segment(state.schema_name).current_view()
    stored = schema_from_json(backend.control.schemas()[state.schema_name])
    if fingerprint(stored) != fingerprint(view.schema):
        advice = "readers with the new schema are refused: run `quorin upgrade`, or `feast apply`"
        yield Check(name, PROBLEM, "holds rows of another schema than the control plane has", advice)
    elif not stats["writer_pid"] and not view.books_add_up:
        yield Check(name, WARNING, "its last writer died while writing", "nothing to do: the next writer repairs it")
    else:
        found = f"{counted(stats['rows'], 'row')} in {size(stats['bytes'])}, checksum valid, {stats['load']:.0%} full"
        yield Check(name, OK, found)
    yield _event_times(state, observer)
    yield _lag(state, name)


def _event_times(state: SegmentState, observer: Observer) -> Check:
    """A row from the future blocks writes: no present event is newer."""
    name = f"event times of {state.schema_name}"
    newest_ns = state.events.newest_ns if state.events else None
    if newest_ns is None:
        return Check(name, OK, "no rows")
    age = (time.time_ns() - newest_ns) / 1e9
    if age >= -_MAX_FUTURE_SECONDS:
        return Check(name, OK, f"the newest event was {ago(max(0.0, age))}")
    limit_ns = time.time_ns() + int(_MAX_FUTURE_SECONDS * 1e9)
    ahead, rows = entities_after(observer.segment(state.schema_name), limit_ns, _MAX_NAMED)
    entities = ", ".join(repr(entity_id) for _, entity_id in ahead) + (
        f" and {rows - len(ahead):,} more" * (rows > len(ahead))
    )
    found = f"the newest event is {duration(-age)} in the future: writes to {entities} with older times are ignored"
    advice = "fix the source of such times (clock, time zone or unit); `quorin put --event-time` overwrites the row"
    if ahead:
        advice += f" of {ahead[0][1]!r} from {ahead[0][0]} on"
    return Check(name, WARNING, found, advice)


def _lag(state: SegmentState, name: str) -> Check:
    stats, lag = state.stats or {}, state.lag
    assert lag is not None  # noqa: S101 - a segment with stats has a lag
    name = f"lag of {name.removeprefix('segment of ')}"
    if not lag.entries:
        return Check(name, OK, "none" if lag.is_exact else "none in the part of the log that was read")
    rows = counted(lag.rows, "row") if lag.is_exact else f"{count(lag.rows)} or more rows"
    found = f"{rows}, the first has waited {lag.seconds:,.1f} s"
    if lag.seconds < _MAX_LAG_SECONDS:
        return Check(name, OK, found)
    if stats["writer_pid"] is None:
        return Check(name, PROBLEM, f"{found}; the log is not applied", "start `quorin consumer`")
    if stats["writer_heartbeat_age_seconds"] > _MAX_SILENT_SECONDS:
        silent = f"{stats['writer_heartbeat_age_seconds']:,.0f} s"
        found += f"; the writer, process {stats['writer_pid']}, has been silent for {silent}"
        return Check(name, PROBLEM, found, "check that process; a second `quorin consumer` overtakes a frozen one")
    return Check(name, WARNING, found, _BUSY_ADVICE)


def _log(seen: Deployment) -> Iterator[Check]:
    share = seen.log_entries / DEFAULT_MAX_ENTRIES
    found = f"{counted(seen.log_entries, 'entry')}, trimmed to position {seen.log.trimmed}"
    if share > 0.9:
        yield Check("log", PROBLEM, found, "writes fail at a million entries: consume with --offline or --trim")
    elif share > 0.5:
        yield Check("log", WARNING, found, "it approaches its limit of a million entries: let a consumer trim it")
    else:
        yield Check("log", OK, found)
    advice = "`quorin deadletter list` shows the reasons; fix the cause, then `quorin deadletter replay`"
    none = Check("dead letters", OK, "none")
    yield Check("dead letters", WARNING, f"{seen.dead_letters:,}", advice) if seen.dead_letters else none
