"""The Feast repository that a command runs in, and Feast's names: a plugin knows both, as the engine does not."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quorin.engine.words import type_text
from quorin.errors import QuorinError

if TYPE_CHECKING:
    from quorin.engine.backend import Backend
    from quorin.schema import FeatureField, Schema

_GROUP = "quorin.repository"
_WORD = re.compile(r"(?<![\w/.-])\w+(?![\w/]|[.-]\w)")


@cache
def plugin() -> Any | None:
    """The module of the plugin that knows repositories; None if none is installed."""
    return next((entry_point.load() for entry_point in metadata.entry_points(group=_GROUP)), None)


@cache
def repository() -> Any | None:
    """The repository in the working directory; None if there is none.

    :raises RepositoryError: if its ``feature_store.yaml`` names no store that commands can use.
    """
    known = plugin()
    return None if known is None else known.find(Path.cwd())


def project() -> str | None:
    """The project of the repository in the working directory, if there is one that commands can use."""
    from quorin.errors import RepositoryError

    try:
        here = repository()
    except RepositoryError:
        return None
    return None if here is None else str(here.project)


def stored_name(text: str) -> str:
    """How the engine's names contain a name of Feast's."""
    known = plugin()
    return text if known is None else str(known.identifier(text))


def feature_of(field: str) -> tuple[str, str] | None:
    """A Feast feature's name and type, from the name of its field; None if the field is not Feast's."""
    known = plugin()
    return None if known is None else known.shown_feature(field)


def readable_schemas(backend: Backend) -> dict[str, Schema]:
    """The schemas of a deployment, without those that this version cannot read: commands on the others go on."""
    from quorin.schema import schema_from_json

    schemas = {}
    for name, text in sorted(backend.control.schemas().items()):
        with suppress(QuorinError, ValueError, TypeError, KeyError):
            schemas[name] = schema_from_json(text)
    return schemas


class ShownError(QuorinError):
    """An error in the names that Feast's users know; its cause is the error itself."""


def shown_in_names(error: BaseException, backend: Backend) -> None:
    """Put Feast's names into the text of an error of a command.

    :raises ShownError: for an error of Quorin's, which cannot be changed.
    """
    try:
        names = Names.of(backend)
    except QuorinError:  # Such as a control plane that is gone: then that is what the error is about.
        return
    if isinstance(error, typer.BadParameter):
        error.message = names.text(error.message)
    elif isinstance(error, QuorinError) and (shown := names.text(str(error))) != str(error):
        told = ShownError(shown)
        for note in getattr(error, "__notes__", []):
            told.add_note(names.text(note))
        raise told from error


class Names:
    """What schemas, fields and types are called in a command's output: as Feast's users know them, unless ``raw``.

    A view's name that two projects have is shown as the schema's, so that each name stands for one schema.
    """

    def __init__(self, schemas: dict[str, Schema], *, raw: bool = False) -> None:
        known = None if raw else plugin()
        views = {
            name: known and known.shown_view(name, [field.name for field in schema.fields])
            for name, schema in schemas.items()
        }
        counts = {view: list(views.values()).count(view) for view in views.values()}
        self._views = {name: view for name, view in views.items() if view and counts[view] == 1 and view not in schemas}
        self._words = dict(self._views)
        for name in self._views:
            self._words.update({field.name: self._feature(name, field.name)[0] for field in schemas[name].fields})

    @classmethod
    def of(cls, backend: Backend, *, raw: bool = False) -> Names:
        """The names of a deployment's schemas."""
        return cls({} if raw else readable_schemas(backend), raw=raw)

    def text(self, text: str) -> str:
        """A text with what schemas and fields are called in place of their names, but in those of files."""
        return _WORD.sub(lambda word: self._words.get(word[0], word[0]), text)

    def schema(self, name: str) -> str:
        """What a schema is called."""
        return str(self._views.get(name, name))

    def type(self, schema_name: str, field: FeatureField) -> str:
        """What the type of a field is called."""
        return self._feature(schema_name, field.name)[1] or type_text(field)

    def fields(self, schema: Schema) -> dict[str, str]:
        """What each field of a schema is called, by the engine's names; none is that of another, of ids or times."""
        return self._called(schema.__name__, [field.name for field in schema.fields])

    def rows(self, schema_name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with what the fields of a schema are called in place of their names."""
        called = self._called(schema_name, list(rows[0])) if rows else {}
        return [{called[name]: value for name, value in row.items()} for row in rows]

    def json(self, value: Any) -> Any:
        """A report for JSON, with what schemas are called under ``schema`` and as keys of ``schemas``."""
        if isinstance(value, (list, tuple)):
            return [self.json(item) for item in value]
        return {key: self._under(key, item) for key, item in value.items()} if isinstance(value, dict) else value

    def _under(self, key: str, value: Any) -> Any:
        if key == "schema":
            return self.schema(value)
        if key == "schemas" and isinstance(value, dict):
            return {self.schema(name): self.json(item) for name, item in value.items()}
        return self.json(value)

    def _called(self, schema_name: str, fields: list[str]) -> dict[str, str]:
        shown = {name: self._feature(schema_name, name)[0] or name for name in fields}
        taken = [*shown.values(), "entity_id", "event_time_ns"]
        return {name: name if taken.count(text) > 1 else text for name, text in shown.items()}

    def _feature(self, schema_name: str, field: str) -> tuple[str, str]:
        known = feature_of(field) if schema_name in self._views else None
        return known or ("", "")
