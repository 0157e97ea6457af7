"""Features of entity rows as the matrix of a model, straight from shared memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from feast.value_type import ValueType

from feast_quorin.online_store import QuorinOnlineStore
from feast_quorin.read.plan import Plans
from feast_quorin.read.request import key_columns
from feast_quorin.views import stored_view
from quorin.assembly import MatrixLayout, MatrixPart, dump_layout, load_layout, matrix_layout
from quorin.errors import InvalidRowError, RepositoryError

if TYPE_CHECKING:
    from feast import FeatureStore

    from feast_quorin.read.plan import Plan
    from feast_quorin.read.resolved import Resolved
    from feast_quorin.read.shape import Shape
    from quorin.schema import Schema

_UNFIT = {ValueType.UNIX_TIMESTAMP}
_Matrix = np.ndarray[Any, Any]
_Mask = np.ndarray[Any, np.dtype[np.bool_]]


def model_reader(
    store: FeatureStore,
    features: Any,
    columns: Sequence[str] | Mapping[str, str] | None = None,
    *,
    full_feature_names: bool = False,
    dtype: Any = np.float32,
    categories: Mapping[str, Any] | None = None,
    unknown: Any = math.nan,
    missing: Any = math.nan,
) -> FeastModelReader:
    """A callable that fills the matrix of a model from entity rows: ``reader(entity_rows)``, without Python objects for
    values.

    ``features`` is a list of references or a feature service. ``columns`` are names of features in the model's order,
    ``view.feature`` where several views have one of that name, or a dict of the model's names to them; by default all
    features, view by view, in the order of ``features``. With ``full_feature_names`` they are called ``view__feature``,
    as in training sets. The rest is as in :func:`quorin.assembly.model_reader`.

    :raises InvalidRowError: as there, and for timestamps and features of on-demand views, which are no stored numbers.
    :raises RepositoryError: for a store that is not Quorin on this machine.
    """
    options = {"dtype": dtype, "categories": categories, "unknown": unknown, "missing": missing}

    def layout(parts: Sequence[_View]) -> MatrixLayout:
        return matrix_layout([view.part for view in parts], columns, **options)

    return FeastModelReader(store, features, layout, full_feature_names=full_feature_names)


class _View(NamedTuple):
    """A view of a request: its schema, and its features that a matrix can hold, as fields."""

    schema: Schema
    part: MatrixPart


class FeastModelReader:
    """Bound to a store, a choice of features and the columns of a model; :func:`model_reader` makes one.

    When the registry changes, the next request notices it as ``FeatureStore.get_online_features`` does. Threads may
    share it. Names of features are resolved without versions in the answer.
    """

    def __init__(self, store: FeatureStore, features: Any, layout: Any, *, full_feature_names: bool = False) -> None:
        online_store = store.provider.online_store
        if not isinstance(online_store, QuorinOnlineStore) or store.config.online_store.remote is not None:
            raise RepositoryError(f"expected an online store with segments here, got {type(online_store).__name__}")
        self._store, self._online_store, self._features = store, online_store, features
        self._full_names, self._layout_of = full_feature_names, layout
        self._plans: Plans | None = None
        self._bound: _Bound | None = None
        self._bind()

    @classmethod
    def from_json(
        cls,
        store: FeatureStore,
        features: Any,
        text: str,
        *,
        full_feature_names: bool = False,
        any_version: bool = False,
    ) -> FeastModelReader:
        """The reader that :meth:`to_json` described, for the same features.

        :raises SchemaMismatchError: if a view is stored with another schema than the model was saved with. With
            ``any_version`` only the features that the model reads must have the same types.
        :raises InvalidRowError: for text that describes no reader.
        """

        def layout(views: Sequence[_View]) -> MatrixLayout:
            return load_layout(
                text, [view.part for view in views], [view.schema for view in views], any_version=any_version
            )

        return cls(store, features, layout, full_feature_names=full_feature_names)

    def to_json(self) -> str:
        """The columns, dtype, categories and missing values, with the views' schemas and their fingerprints."""
        bound = self._bind()
        return dump_layout(bound.layout, [view.schema for view in bound.views])

    @property
    def names(self) -> list[str]:
        """The columns of the matrix, in order."""
        return list(self._bind().layout.names)

    @property
    def width(self) -> int:
        """How many columns the matrix has."""
        return self._bind().layout.width

    def __call__(self, entity_rows: Any, *, out: _Matrix | None = None) -> _Matrix:
        """The matrix of entity rows, shape ``(N, width)``; see :meth:`batch`."""
        return self.batch(entity_rows, out=out)[0]

    def batch(self, entity_rows: Any, *, out: _Matrix | None = None) -> tuple[_Matrix, _Mask]:
        """The matrix of entity rows, shape ``(N, width)``, and which have a row in any view, bool of shape ``(N,)``.

        ``entity_rows`` are dicts, or a dict of lists, as ``FeatureStore.get_online_features`` takes them, or a
        frame of pandas. Rows past their TTL are missing, where the store enforces it.

        :raises InvalidRowError: for rows without the join keys, or with values that cannot be keys.
        :raises UnknownCategoryError: naming row, column and value, if ``unknown="error"`` was chosen.
        """
        keys = key_columns(_rows(entity_rows))
        if keys is None:
            raise InvalidRowError("entity rows: expected a list of dicts or a dict of lists, at least one row long")
        bound = self._bind()
        names, columns = keys
        shape: Shape | None = bound.plan.shape(names)
        reads = None if shape is None else shape.reads(columns)
        if reads is None:
            raise InvalidRowError(
                f"entity rows with the columns {list(names)}: expected the join keys of {[*bound.view_names]}, each "
                "with values of its type"
            )
        matrix = bound.layout.matrix(len(columns[0]), out)
        found: _Mask | None = None
        for number, read in enumerate(reads):
            bound.layout.fill(number, read, matrix)
            found = read.found if found is None else found | read.found
        return matrix, np.zeros(0, np.bool_) if found is None else found

    def _bind(self) -> _Bound:
        """The compiled request and the layout for it: new ones when the registry has changed."""
        session = self._online_store.reads(self._store.config).of(self._features, None).session
        if self._plans is None or self._plans.session is not session:
            self._plans = Plans(session, self._store.config)
        store = self._store
        plan = self._plans.find(self._features, store.registry, store.project, self._full_names, with_versions=False)
        bound = self._bound
        if bound is None or bound.plan is not plan:
            if plan is None or plan.resolved.transforms:
                raise InvalidRowError(
                    "features: expected references or a service of features that are stored, without on-demand views, "
                    f"got {self._features!r}"
                )
            views = self._views(plan.resolved)
            names = tuple(view.part.name for view in views)
            bound = self._bound = _Bound(plan, self._layout_of(views), views, names)
        return bound

    def _views(self, resolved: Resolved) -> list[_View]:
        views, order = [], _order(self._features)
        for view in resolved.views:
            types = {field.name: field.dtype.to_value_type() for field in view.table.features}
            name = view.table.projection.name_to_use()
            prefix = f"{name}__" if self._full_names else ""
            fields = {
                prefix + feature: view.codecs[feature].field(view.fields[feature])
                for feature in sorted(view.requested, key=lambda feature: order.get((name, feature), len(order)))
                if types[feature] not in _UNFIT
            }
            views.append(_View(stored_view(self._store.config, view.table).schema, MatrixPart(name, fields)))
        return views


class _Bound(NamedTuple):
    """What a reader uses until the registry changes."""

    plan: Plan
    layout: MatrixLayout
    views: list[_View]
    view_names: tuple[str, ...]


def _order(features: Any) -> dict[tuple[str, str], int]:
    """The place of each feature of a view in a request. Feast resolves the features of a view in any order."""
    if isinstance(features, list):
        pairs = [tuple(reference.split(":", 1)) for reference in features]
    else:
        projections = features.feature_view_projections
        pairs = [(one.name_to_use(), field.name) for one in projections for field in one.features]
    return {(view, feature): place for place, (view, feature) in enumerate(pairs)}


def _rows(entity_rows: Any) -> Any:
    if type(entity_rows).__name__ == "DataFrame":
        return {str(name): entity_rows[name].tolist() for name in entity_rows.columns}
    return entity_rows
