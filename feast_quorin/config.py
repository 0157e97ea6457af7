"""The settings of the store, checked when Feast reads ``feature_store.yaml``."""

from __future__ import annotations

from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from feast.repo_config import FeastConfigBaseModel, FeastConfigError
from pydantic import (
    Field,
    PrivateAttr,
    StrictBool,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from quorin.errors import QuorinError
from quorin.shm import default_shm_dir
from quorin.urls import REDIS_FORM, URL_FORM, is_malformed, shown

DEFAULT_PATH = "data/quorin"
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_MAX_SHOWN = 200


class ConfigError(QuorinError, FeastConfigError):
    """A setting under ``online_store`` is wrong; the text names it, what it is and what was expected.

    No ``ValueError``: pydantic would wrap one into an error of its own that prints its whole input, passwords included.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, "online_store in feature_store.yaml")


class StoreSettings(FeastConfigBaseModel):
    """Where the store keeps its data, and who applies what is written. Every key has a default.

    Relative paths are relative to the repository, whose own path and ``shm_dir`` are relative to where the process is
    when it first uses these settings; it keeps its files when it changes its directory later.

    Unknown keys, ``path`` together with ``redis_url``, and bad values raise :class:`ConfigError`.
    """

    type: Literal["quorin", "feast_quorin.QuorinOnlineStore", "feast_quorin.online_store.QuorinOnlineStore"] = "quorin"

    path: StrictStr | None = None
    """Directory of the embedded store (control plane and log), default ``data/quorin``, relative to the repo."""

    redis_url: StrictStr | None = Field(default=None, repr=False)
    """Redis as control plane and log instead: ``redis://``, ``rediss://`` or ``unix://``."""

    consumer: Literal["auto", "external", "inline"] = "auto"
    """Who applies writes to shared memory: ``external``, a ``quorin consumer`` process alone; ``inline``, the process
    that writes; ``auto``, the process that writes unless another one holds a view's writer lease."""

    capacity: int = 4096
    """Entities that a new segment has room for at first; it grows by itself."""

    shm_dir: StrictStr = Field(default_factory=default_shm_dir)
    """Directory of the segments; by default ``QUORIN_SHM_DIR`` from the environment, else ``/dev/shm``."""

    offline_path: StrictStr | None = Field(default=None, repr=False)
    """Where the history in Parquet goes, a directory relative to the repo or a URL; none is kept without."""

    wait: Literal["applied", "logged"] = "applied"
    """When a write returns: once readers can see it, or once the log has it."""

    timeout_ms: int = 10_000
    """How long a write waits, in milliseconds, while nothing at all is being applied."""

    enforce_ttl: StrictBool = False
    """Whether rows older than their view's ``ttl`` are answered as null with the status ``OUTSIDE_MAX_AGE``. Feast
    itself serves them like any other."""

    key_ttl_seconds: int | None = None
    """How many seconds after its last write a row is answered like one that was never written; None for ever."""

    _working_directory: Path = PrivateAttr(default_factory=lambda: _working_directory())

    @field_validator("capacity", "timeout_ms", "key_ttl_seconds", mode="before")
    @classmethod
    def _positive(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name == "key_ttl_seconds":
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError("expected a whole number of 1 and more")
        return value

    @field_validator("path", "shm_dir", "offline_path")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("expected a directory")
        return value

    @field_validator("path", "shm_dir")
    @classmethod
    def _no_url(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("expected a directory, no URL")
        return value

    @field_validator("shm_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(_working_directory() / value)

    @field_validator("offline_path")
    @classmethod
    def _directory_or_url(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and is_malformed(value):
            raise ValueError(f"expected a directory or {URL_FORM}")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_form(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(_REDIS_SCHEMES):
            raise ValueError(f"expected a URL that starts with {', '.join(_REDIS_SCHEMES)}")
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
            if settings.path is None or settings.redis_url is None:
                return settings
            problems = [
                f"path {settings.path!r} and redis_url {shown(settings.redis_url)!r} exclude each other: give one"
            ]
        raise ConfigError("; ".join(problems))

    def connection(self, repo_path: Path | None) -> str:
        """What the engine connects to: the Redis URL, or the absolute directory of the embedded store."""
        if self.redis_url is not None:
            return self.redis_url
        return self._in_repo(repo_path, self.path or DEFAULT_PATH)

    def history(self, repo_path: Path | None) -> str | None:
        """Where the history is: the URL, or the absolute directory; None if there is none."""
        if self.offline_path is None or "://" in self.offline_path:
            return self.offline_path
        return self._in_repo(repo_path, self.offline_path)

    def _in_repo(self, repo_path: Path | None, path: str) -> str:
        return str(self._working_directory / (repo_path or ".") / Path(path).expanduser())


def _working_directory() -> Path:
    """Where this process is; absolute paths need none, so it may have been removed."""
    with suppress(FileNotFoundError):
        return Path.cwd()
    return Path()


def _problem(model: Any, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "online_store"
    if problem["type"] == "extra_forbidden":
        meant = get_close_matches(key, model.model_fields, n=1)
        hint = f"did you mean {meant[0]}?" if meant else f"known are {', '.join(model.model_fields)}"
        return f"{key}: unknown key, {hint}"
    expected = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {expected[:1].lower()}{expected[1:]}, got {_got(key, problem['input'])}"


def _got(key: str, value: Any) -> str:
    """A value, of which nothing is shown that may be a password of a URL."""
    if key != "redis_url" and "://" not in repr(value):
        return repr(value)[:_MAX_SHOWN]
    return repr(shown(value)) if isinstance(value, str) else type(value).__name__
