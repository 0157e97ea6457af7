"""The settings of the store, checked when Feast reads ``feature_store.yaml``."""

from __future__ import annotations

from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from feast.repo_config import FeastConfigBaseModel, FeastConfigError
from pydantic import (
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from feast_quorin.read.ages import Limits, limits_of
from feast_quorin.read.pins import checked_pin
from quorin.errors import QuorinError
from quorin.logging import HTTP_FORM, REDIS_FORM, REDIS_SCHEMES, URL_FORM, is_http, is_malformed, shown
from quorin.shm import default_shm_dir
from quorin.snapshot import Peers

DEFAULT_PATH = "data/quorin"
Pin = Literal["current"] | dict[StrictStr, StrictInt | StrictStr]
_MAX_SHOWN = 200
_OF_SERVERS = frozenset(("token_file", "tls_ca"))
"""Settings of connections to ``quorin serve`` on other machines."""


class ConfigError(QuorinError, FeastConfigError):
    """A setting under ``online_store`` is wrong. The text has its name, its value and what was expected.

    It is not a ``ValueError``, which pydantic would wrap in an error that prints the whole input, passwords included.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, "online_store in feature_store.yaml")


class ServedLogSettings(FeastConfigBaseModel):
    """The keys under ``served_log``."""

    url: StrictStr = Field(repr=False)
    """Where files go: a directory relative to the repo, or a URL."""

    sample: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    """The share of the requests that are logged."""

    every_seconds: Annotated[float, Field(gt=0, strict=True)] = 10.0
    """How often a file is written, at the latest."""

    @field_validator("url")
    @classmethod
    def _directory_or_url(cls, value: str) -> str:
        if not value.strip() or ("://" in value and is_malformed(value)):
            raise ValueError(f"expected a directory or {URL_FORM}")
        return value


class PartitionSettings(FeastConfigBaseModel):
    """What :class:`StoreSettings` says of partitions."""

    partitions: Literal[1, 2, 4, 8, 16, 32, 64, 128, 256] | None = None
    """How many partitions a new deployment has: a power of two up to 256, each with a log of its own. A deployment that
    exists must have this number. None takes what it has, one for a new one."""

    held_partitions: StrictStr | None = None
    """Which partitions this machine holds, such as ``"0-7"``; None for all. The same for all processes of the machine,
    and for a ``quorin consumer --partitions`` on it."""

    missing_partitions: Literal["error", "mask"] = "error"
    """What a read does, on a machine that holds some partitions of the deployment, if no other machine answers for one:
    raise ``NotHeldError``, or return its rows like those of entities that are not found."""

    peer_timeout_ms: int = 1_000
    """Milliseconds for which such a read waits for another machine; then it asks one more, if there is one."""


class ServerSettings(FeastConfigBaseModel):
    """What :class:`StoreSettings` says of servers on other machines."""

    remote: StrictStr | None = None
    """URL of a ``quorin serve`` on a machine that has the segments: ``http://`` or ``https://``. Reads and writes go
    there; settings of segments and of the log are that machine's, and exclude ``remote``."""

    token_file: StrictStr | None = None
    """With ``remote``, ``bootstrap_from`` or ``redis_url``: the file, relative to the repo, with the token that the
    servers of other machines expect."""

    tls_ca: StrictStr | None = None
    """With ``remote``, ``bootstrap_from`` or ``redis_url``: a file, relative to the repo, with the certificates to
    trust in PEM; by default the system's."""

    _server_token: str | None = PrivateAttr(default=None)

    @field_validator("remote")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not is_http(value):
            raise ValueError(f"expected {HTTP_FORM}")
        return value

    @property
    def server_token(self) -> str | None:
        """The token of the server that these settings are used in, with which it asks others without ``token_file``."""
        return self._server_token

    def use_token(self, token: str | None) -> None:
        """Set :attr:`server_token`."""
        self._server_token = token


class StoreSettings(PartitionSettings, ServerSettings):
    """Where the store keeps its data, and which process applies writes. Every key has a default.

    Relative paths are relative to the repository. The repository's own path and ``shm_dir`` are relative to the working
    directory at the first use of these settings; changing the working directory later has no effect.

    Unknown keys, ``path`` together with ``redis_url``, and invalid values raise :class:`ConfigError`.
    """

    type: Literal["quorin", "feast_quorin.QuorinOnlineStore", "feast_quorin.online_store.QuorinOnlineStore"] = "quorin"

    path: StrictStr | None = None
    """Directory of the embedded store (control plane and log), default ``data/quorin``, relative to the repo."""

    redis_url: StrictStr | None = Field(default=None, repr=False)
    """URL of Redis as control plane and log instead: ``redis://``, ``rediss://`` or ``unix://``; of a cluster with
    ``?cluster=true``; of a service behind Sentinel ``redis+sentinel://``."""

    consumer: Literal["auto", "external", "inline"] = "auto"
    """Which process applies writes to shared memory. ``external``: only a ``quorin consumer`` process. ``auto``: with
    Redis, a ``quorin consumer`` of this machine if one runs, else a background thread of one of the processes that
    read; with the embedded store, the process that writes. ``inline`` means the same as ``auto``."""

    capacity: int = 4096
    """Entities that fit in a new segment before it grows."""

    shm_dir: StrictStr = Field(default_factory=default_shm_dir)
    """Directory of the segments; by default the environment variable ``QUORIN_SHM_DIR``, else ``/dev/shm``."""

    shm_group: StrictStr | StrictInt | None = None
    """A group, by name or gid, whose members may read segments that this process creates or writes; by default the
    environment variable ``QUORIN_SHM_GROUP``, else none: only the user that creates a segment reads it."""

    offline_path: StrictStr | None = Field(default=None, repr=False)
    """Where to keep the Parquet history: a directory relative to the repo, or a URL. None keeps no history."""

    snapshots: StrictStr | None = Field(default=None, repr=False)
    """Where a ``quorin consumer --snapshots`` keeps snapshots: a directory relative to the repo, or a URL. New segments
    start from the newest that fits."""

    bootstrap_from: list[StrictStr] | None = None
    """URL, or a list of URLs, of ``quorin serve`` on other machines; a host may have many addresses. New segments start
    from a copy of theirs, where no snapshot fits."""

    wait: Literal["applied", "logged", "fleet"] = "applied"
    """When a write returns: once readers of this machine see it (``applied``), once it is in the log (``logged``), or
    once readers of every machine that is alive see it (``fleet``, which takes about a second)."""

    timeout_ms: int = 10_000
    """Milliseconds after which a write stops waiting if nothing is applied meanwhile. With ``remote``, after which a
    request fails that gets no connection or no further byte of its answer."""

    enforce_ttl: StrictBool = False
    """Whether rows older than their view's ``ttl`` read as null with the status ``OUTSIDE_MAX_AGE``. Feast itself
    serves them like any other row."""

    max_age: Any = None
    """How old values may be, in seconds, for all views or by ``view`` and ``view:feature``. Older ones read as null,
    with the status ``OUTSIDE_MAX_AGE``. Of several limits the shortest holds."""

    consistent_timeout_ms: int | None = None
    """Milliseconds within which all views of an answer are read as they are at one position of the log, or else
    ``InconsistentReadError`` is raised; None to read each view by itself."""

    key_ttl_seconds: int | None = None
    """Seconds after its last write from which a row reads as if it was never written; None for never."""

    max_lag_seconds: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Reads are stale if this machine was last known to have all rows of the log longer ago than this; None for no
    limit. Needs ``redis_url`` or a ``quorin consumer``."""

    stale_reads: Literal["raise", "serve"] = "raise"
    """What stale reads do: raise ``StaleReplicaError``, or serve the rows and count them in
    ``quorin_stale_reads_total``."""

    keep_generations: Annotated[int, Field(ge=0, strict=True)] | None = None
    """How many generations of a view to keep for going back, after a replacement or an upgrade that this process makes;
    by default one after a replacement, none after an upgrade."""

    keep_bytes: Annotated[int, Field(ge=0, strict=True)] | None = None
    """How many bytes the kept generations of all views may take together on this machine; None for no limit."""

    pin: Pin | None = None
    """By view, the generation that reads stay with while it goes on for others: its number, the newest of a version of
    its schema (``v3``), or ``current``, the one at the first read. ``current`` alone pins all views."""

    pins: dict[StrictStr, Pin] | None = None
    """By feature service, what ``pin`` is for all requests: the generations that requests for the service stay with."""

    served_log: ServedLogSettings | None = None
    """Logs what requests are answered with, see :class:`ServedLogSettings`; None logs nothing."""

    _working_directory: Path = PrivateAttr(default_factory=lambda: _working_directory())

    @field_validator(
        "capacity", "timeout_ms", "peer_timeout_ms", "key_ttl_seconds", "consistent_timeout_ms", mode="before"
    )
    @classmethod
    def _positive(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name in ("key_ttl_seconds", "consistent_timeout_ms"):
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError("expected a whole number of 1 or more")
        return value

    @field_validator("max_age", mode="before")
    @classmethod
    def _age_limits(cls, value: Any) -> Any:
        if value is not None:
            limits_of(value)
        return value

    @field_validator("pin", "pins")
    @classmethod
    def _pins(cls, value: Any) -> Any:
        return None if value is None else checked_pin(value)

    @field_validator("shm_group", mode="before")
    @classmethod
    def _group(cls, value: Any) -> Any:
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError("expected a group's name or a gid")
        return value

    @field_validator("bootstrap_from", mode="before")
    @classmethod
    def _peer_urls(cls, value: Any) -> Any:
        urls = [value] if isinstance(value, str) else value
        if urls is None:
            return None
        if not isinstance(urls, list) or not urls or not all(isinstance(url, str) and is_http(url) for url in urls):
            raise ValueError(f"expected a URL or a list of URLs, {HTTP_FORM}")
        return urls

    @field_validator("path", "shm_dir", "offline_path", "snapshots", "token_file", "tls_ca")
    @classmethod
    def _not_empty(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not value.strip():
            raise ValueError(f"expected a {'file' if info.field_name in _OF_SERVERS else 'directory'}")
        return value

    @field_validator("path", "shm_dir")
    @classmethod
    def _no_url(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("expected a directory, not a URL")
        return value

    @field_validator("shm_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(_working_directory() / value)

    @field_validator("offline_path", "snapshots")
    @classmethod
    def _directory_or_url(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and is_malformed(value):
            raise ValueError(f"expected a directory or {URL_FORM}")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_form(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(REDIS_SCHEMES):
            raise ValueError(f"expected a URL that starts with {', '.join(REDIS_SCHEMES)}")
        if value is not None and is_malformed(value):
            raise ValueError(f"expected {REDIS_FORM}")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _one_clear_error(cls, data: Any, handler: Any) -> Any:
        try:
            settings = handler(data)
        except ValidationError as error:
            problems = [_problem(cls, problem) for problem in error.errors(include_url=False)]
        else:
            problems = _conflicts(settings)
            if not problems:
                return settings
        raise ConfigError("; ".join(problems))

    @cached_property
    def age_limits(self) -> Limits:
        """The limits of ``max_age``."""
        return () if self.max_age is None else limits_of(self.max_age)

    def server_files(self, repo_path: Path | None) -> tuple[Path | None, Path | None]:
        """``token_file`` and ``tls_ca`` as absolute paths."""
        token, ca = (
            None if path is None else Path(self._in_repo(repo_path, path)) for path in (self.token_file, self.tls_ca)
        )
        return token, ca

    def peers(self, repo_path: Path | None) -> Peers | None:
        """The nodes of ``bootstrap_from``."""
        token, ca = self.server_files(repo_path)
        return None if self.bootstrap_from is None else Peers(self.bootstrap_from, token_file=token, tls_ca=ca)

    def pin_of(self, view: str) -> int | str | None:
        """The generation that reads of a view stay with; None if they follow."""
        return self.pin if self.pin is None or isinstance(self.pin, str) else self.pin.get(view)

    @property
    def follows(self) -> bool:
        """Whether this process may apply, in the background, what other machines write."""
        return self.redis_url is not None and self.consumer != "external"

    def connection(self, repo_path: Path | None) -> str:
        """The engine's connection: the Redis URL, or the absolute directory of the embedded store."""
        if self.redis_url is not None:
            return self.redis_url
        return self._in_repo(repo_path, self.path or DEFAULT_PATH)

    def places(self, repo_path: Path | None) -> tuple[str, str | None, str | None]:
        """The engine's connection, the history and the snapshots, each an absolute directory, a URL, or None."""
        history, snapshots = (
            place if place is None or "://" in place else self._in_repo(repo_path, place)
            for place in (self.offline_path, self.snapshots)
        )
        return self.connection(repo_path), history, snapshots

    def served_log_url(self, repo_path: Path | None) -> str | None:
        """Where the served log goes: an absolute directory, a URL, or None."""
        url = None if self.served_log is None else self.served_log.url
        return url if url is None or "://" in url else self._in_repo(repo_path, url)

    def _in_repo(self, repo_path: Path | None, path: str) -> str:
        return str(self._working_directory / (repo_path or ".") / Path(path).expanduser())


def _conflicts(settings: StoreSettings) -> list[str]:
    """What settings that are right by themselves get wrong together."""
    conflicts = []
    given = sorted(settings.model_fields_set)
    if settings.remote is None:
        unused = _OF_SERVERS if settings.bootstrap_from is None and settings.redis_url is None else ()
        needs = "needs remote, bootstrap_from or redis_url"
        conflicts += [f"{name} {getattr(settings, name)!r} {needs}" for name in given if name in unused]
    else:
        local = [name for name in given if name not in {"type", "remote", "timeout_ms", *_OF_SERVERS}]
        conflicts += [f"{name} and remote exclude each other: set {name} where the segments are" for name in local]
    if settings.path is not None and settings.redis_url is not None:
        shown_url = shown(settings.redis_url)
        conflicts.append(f"path {settings.path!r} and redis_url {shown_url!r} exclude each other: set one")
    if settings.max_lag_seconds is not None and settings.redis_url is None and settings.consumer != "external":
        conflicts.append(
            f"max_lag_seconds {settings.max_lag_seconds!r} needs redis_url, or consumer: external: with the embedded "
            "store the process that writes applies, so nothing lags"
        )
    return conflicts


def _working_directory() -> Path:
    """The working directory. It may have been removed, which does not matter to absolute paths."""
    with suppress(FileNotFoundError):
        return Path.cwd()
    return Path()


def _problem(model: Any, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "online_store"
    if problem["type"] == "extra_forbidden":
        known = ServedLogSettings.model_fields if problem["loc"][0] == "served_log" else model.model_fields
        similar = get_close_matches(str(problem["loc"][-1]), known, n=1)
        own_first = sorted(known, key=lambda name: name not in StoreSettings.__annotations__)
        hint = f"did you mean {similar[0]}?" if similar else f"expected one of {', '.join(own_first)}"
        return f"{key}: unknown key, {hint}"
    expected = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {expected[:1].lower()}{expected[1:]}, got {_shown_value(key, problem['input'])}"


def _shown_value(key: str, value: Any) -> str:
    """The text of a value, without any part that may be the password of a URL."""
    if key != "redis_url" and "://" not in repr(value):
        return repr(value)[:_MAX_SHOWN]
    return repr(shown(value)) if isinstance(value, str) else type(value).__name__
