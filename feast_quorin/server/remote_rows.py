"""``POST /quorin/read`` and ``/quorin/write``: rows of one view in the engine's form, for remote stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.types as pt
from feast.errors import FeastError

from feast_quorin.names import table_schema_name, version_of
from feast_quorin.remote import messages
from feast_quorin.server.request_bodies import decoded
from feast_quorin.server.services import RegistryObjects
from feast_quorin.views import stored_view
from feast_quorin.write import log
from quorin.errors import (
    NotHeldError,
    NotYetAppliedError,
    QuorinError,
    SchemaMismatchError,
    StaleReplicaError,
    TokenError,
)
from quorin.http import Reply, error_reply, not_held, too_old
from quorin.logging import get_logger

if TYPE_CHECKING:
    from feast_quorin.session import Session
    from feast_quorin.views import StoredView

_log = get_logger(__name__)


class ProjectMismatchError(ValueError):
    """The sender has another project, or other definitions, than this server."""


class RemoteRows:
    """Reads and writes rows of the views of one feature store. Threads may share it."""

    def __init__(self, store: Any, most_rows: int) -> None:
        self._store = store
        self._most_rows = most_rows
        self._views: RegistryObjects[tuple[str, str], StoredView | None] = RegistryObjects(store, self._find_view)
        self.actions: dict[str, Callable[[bytes], Reply]] = {
            messages.READ: lambda body: self._answer(self._read, body),
            messages.WRITE: lambda body: self._answer(self._write, body),
        }

    def _answer(self, action: Callable[[pa.RecordBatch, dict[str, Any]], bytes], body: bytes) -> Reply:
        try:
            batch, about = decoded(body)
            if batch.num_rows > self._most_rows:
                return error_reply(413, f"expected at most {self._most_rows} rows, got {batch.num_rows}")
            check_project(self._store, about)
            return Reply(200, messages.CONTENT_TYPE.encode(), action(batch, about))
        except messages.BadMessageError as error:
            return error_reply(400, str(error))
        except (ProjectMismatchError, SchemaMismatchError) as error:
            return error_reply(409, str(error))
        except NotHeldError as error:
            return not_held(error)
        except StaleReplicaError as error:
            return error_reply(503, str(error))
        except TokenError as error:
            return too_old(error)
        except NotYetAppliedError as error:
            return too_old(error) if error.applied is not None else error_reply(504, str(error))
        except TimeoutError as error:
            return error_reply(504, str(error))
        except QuorinError as error:
            detail = {"detail": str(error), "error": type(error).__name__}
            return Reply(422, b"application/json", orjson.dumps(detail))
        except Exception as error:  # noqa: BLE001 - the server goes on
            _log.exception("request_failed")
            return error_reply(500, f"{type(error).__name__}: {error}")

    def _read(self, batch: pa.RecordBatch, about: dict[str, Any]) -> bytes:
        fields = about.get("fields")
        if batch.schema.names != ["entity_id"] or not pt.is_string(batch.schema.types[0]) or batch.column(0).null_count:
            raise messages.BadMessageError(f"expected a column entity_id of texts, got {batch.schema.names}")
        if not isinstance(fields, list) or not {*map(type, fields)} <= {str}:
            raise messages.BadMessageError("expected a list of texts as fields")
        view = self._view(about, fields)
        stored = {field.name for field in view.schema.fields}
        online_store = self._store.provider.online_store
        _, found = online_store.reading_session(self._store.config).read(
            view, batch.column(0), [name for name in fields if name in stored]
        )
        return messages.encoded(found)

    def _write(self, batch: pa.RecordBatch, about: dict[str, Any]) -> bytes:
        partial, names = about.get("partial", False), batch.schema.names
        if type(partial) is not bool:
            raise messages.BadMessageError("expected true or false as partial")
        view = self._view(about, [name for name in names if name not in ("entity_id", "event_time_ns")])
        known = {"entity_id", "event_time_ns", *(field.name for field in view.schema.fields)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ProjectMismatchError(
                f"feature view {view.name!r} of this server has no field {unknown[0]!r}: run `feast apply` here, or "
                "refresh the registry"
            )
        if batch.num_rows:
            session = self._session()
            log.settle(session, view, log.write(session, view, batch, partial=partial))
        return messages.message({}, rows=batch.num_rows)

    def _session(self) -> Session:
        session: Session = self._store.provider.online_store.session(self._store.config)
        return session

    def _view(self, about: dict[str, Any], fields: Sequence[str]) -> StoredView:
        """The view of a message, as this server has it. If it lacks one of the fields, the registry may be newer than
        the server's copy.

        :raises ProjectMismatchError: if there is none with this name, version and join keys.
        """
        name, schema_name = about.get("view"), about.get("schema")
        if not isinstance(name, str) or not isinstance(schema_name, str):
            raise messages.BadMessageError("expected texts as view and schema")
        view = self._views.get((name, schema_name))
        if view is None or not {*fields} <= {field.name for field in view.schema.fields}:
            self._store.refresh_registry()
            view = self._views.get((name, schema_name))
        if view is None:
            raise ProjectMismatchError(f"this server has no feature view {name!r} with the schema {schema_name!r}")
        expected = about.get("entity")
        if expected is not None and view.schema.entity not in (None, expected):
            raise ProjectMismatchError(
                f"feature view {name!r} of this server has the keys {view.schema.entity}, not {expected}"
            )
        return view

    def _find_view(self, key: tuple[str, str]) -> StoredView | None:
        """The view with a name, in the version whose rows have a schema of a name."""
        name, schema_name = key
        registry, project = self._store.registry, self._store.project
        try:
            table = registry.get_any_feature_view(name, project, allow_cache=True)
            if table_schema_name(self._store.config, table) != schema_name:
                version = version_of(schema_name, project, name)
                if version is None or not self._store.config.registry.enable_online_feature_view_versioning:
                    return None
                table = registry.get_feature_view_by_version(name, project, version, allow_cache=True)
                table.projection.version_tag = version
        except FeastError:
            return None
        return stored_view(self._store.config, table)


def check_project(store: Any, about: dict[str, Any]) -> None:
    """:raises ProjectMismatchError: if the sender of a message names another project."""
    project = about.get("project")
    if project is not None and project != store.project:
        raise ProjectMismatchError(f"this server has the project {store.project!r}, not {project!r}")
