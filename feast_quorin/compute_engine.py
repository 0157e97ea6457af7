"""The compute engine: ``batch_engine: {type: feast_quorin.QuorinComputeEngine}`` in ``feature_store.yaml``.

It is Feast's local engine with another output. Tables from the offline store stay Arrow tables on their way to the log,
where the local engine converts every value into a ``Value`` proto. Transformations, aggregations, joins, filters and
validation are the local engine's, as is everything if the online store is not Quorin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.arrow_table_value import ArrowTableValue
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.compute_engines.local.local_node import LocalNode
from feast.infra.compute_engines.local.nodes import LocalOutputNode
from feast.repo_config import FeastConfigBaseModel

from feast_quorin import feast_private
from feast_quorin.config import ConfigError
from feast_quorin.feast_versions import ARROW_MATERIALIZATION, has
from feast_quorin.online_store import QuorinOnlineStore
from feast_quorin.references import reference_of
from feast_quorin.views import stored_view
from feast_quorin.write.tables import TableReader

if TYPE_CHECKING:
    import pyarrow as pa
    from feast.infra.compute_engines.dag.context import ExecutionContext
    from feast.infra.compute_engines.dag.node import DAGNode
    from feast.infra.registry.base_registry import BaseRegistry


class QuorinComputeEngineConfig(FeastConfigBaseModel):
    """The keys under ``batch_engine``."""

    type: Literal["feast_quorin.QuorinComputeEngine", "feast_quorin.compute_engine.QuorinComputeEngine"] = (
        "feast_quorin.QuorinComputeEngine"
    )

    backend: Literal["pandas", "polars"] | None = None
    """The library that runs transformations, aggregations and joins, as in Feast's local engine."""

    mode: Literal["upsert", "replace"] = "upsert"
    """``upsert`` writes the rows of the interval over those that are served. ``replace`` serves nothing but them: the
    newest row of each entity in the interval, in one flip, on all machines; entities without one are gone. Each view is
    replaced by itself. Pushes meanwhile are kept."""


class QuorinComputeEngine(LocalComputeEngine):
    """Materializes as Feast's local engine does, with Arrow tables from the offline store to the log.

    If it is killed, every row is whole, at its old or its new version. Running it again writes the rest.
    """

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        replaces = getattr(self.repo_config.batch_engine, "mode", "upsert") == "replace"
        is_ours = isinstance(self.online_store, QuorinOnlineStore) and has(ARROW_MATERIALIZATION)
        if replaces and (not is_ours or getattr(self.repo_config.online_store, "remote", None)):
            raise ConfigError(
                "batch_engine: mode: replace needs the online store quorin without remote, and a release of Feast with "
                "which this engine materializes Arrow tables"
            )
        if not is_ours:
            return super()._materialize_one(registry, task, **kwargs)
        job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        context = self.get_execution_context(registry, task)
        try:
            if replaces:
                _check_whole(task)
            _Builder(registry, task, backend=feast_private.compute_backend(self, context)).build().execute(context)
        except Exception as error:  # noqa: BLE001 - the provider raises the job's error
            return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)


class _Builder(LocalFeatureBuilder):
    """The local engine's plan, without the nodes that only convert a table to pandas and back."""

    def build_filter_node(self, view: Any, input_node: DAGNode) -> DAGNode:
        """Materialization has no entity frame, so only a filter expression of the view can drop rows."""
        if getattr(view, "filter", None):
            node: DAGNode = super().build_filter_node(view, input_node)
            return node
        return input_node

    def build_dedup_node(self, view: Any, input_node: DAGNode) -> DAGNode:
        if view is not self.dag_root.view:
            node: DAGNode = super().build_dedup_node(view, input_node)
            return node
        return self._appended(_NewestNode("dedup", view, inputs=[input_node]))

    def build_output_nodes(self, view: Any, input_node: DAGNode) -> DAGNode:  # noqa: ARG002 - Feast's signature
        return self._appended(_OutputNode("output", self.dag_root.view, self.task, self.registry, inputs=[input_node]))

    def _appended(self, node: DAGNode) -> DAGNode:
        self.nodes.append(node)
        return node


class _NewestNode(LocalNode):
    """Keeps the newest row of each entity."""

    def __init__(self, name: str, view: Any, inputs: list[DAGNode]) -> None:
        super().__init__(name, inputs=inputs)
        self._view = view

    def execute(self, context: ExecutionContext) -> ArrowTableValue:
        table = self.get_single_table(context).data
        reader = TableReader(stored_view(context.repo_config, self._view), self._view)
        return ArrowTableValue(reader.newest(table))


class _OutputNode(LocalOutputNode):
    """Writes the table to the log, and to the offline store if the view asks for it."""

    def __init__(self, name: str, view: Any, task: Any, registry: BaseRegistry, inputs: list[DAGNode]) -> None:
        super().__init__(name, view, inputs=inputs)
        self._task = task
        self._registry = registry

    def execute(self, context: ExecutionContext) -> ArrowTableValue:
        table: pa.Table = self.get_single_table(context).data
        output = ArrowTableValue(data=table)
        replaces = getattr(context.repo_config.batch_engine, "mode", "upsert") == "replace"
        if not (table.num_rows or replaces):
            return output
        if self.feature_view.online:
            store: Any = context.online_store
            target = context.repo_config, self.feature_view, table
            reference = reference_of(context.repo_config, self._registry, self.feature_view) if replaces else None
            with _progress(self._task, table.num_rows) as advance:
                if replaces:
                    store.replace_table(*target, advance, reference)
                else:
                    store.write_table(*target, advance)
        if self.feature_view.offline:
            context.offline_store.offline_write_batch(
                config=context.repo_config, feature_view=self.feature_view, table=table, progress=lambda _: None
            )
        return output


def _check_whole(task: MaterializationTask) -> None:
    """:raises ConfigError: for an interval that begins where the last one ended, as that of an incremental
    materialization does: it would leave only what has changed since.
    """
    ends = [end for _, end in getattr(task.feature_view, "materialization_intervals", [])]
    if ends and task.start_time >= max(ends):
        raise ConfigError(
            f"view {task.feature_view.name!r}: materializing from {task.start_time}, where the last interval ended, "
            "would drop every entity without a newer row: expected an interval with all rows to serve (`feast "
            "materialize`), or batch_engine: mode: upsert"
        )


@contextmanager
def _progress(task: MaterializationTask, rows: int) -> Iterator[Callable[[int], Any]]:
    """Feast's progress bar for a number of rows."""
    if task.tqdm_builder is None:
        yield lambda _: None
        return
    with task.tqdm_builder(rows) as bar:
        yield bar.update
