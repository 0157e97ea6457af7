"""Lists of numbers as one tensor, which :meth:`TensorResponse.to_tensor` adds to Feast's."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from feast.online_response import OnlineResponse
from feast.torch_wrapper import get_torch

from feast_quorin import feast_private
from feast_quorin.convert.codecs import number_lists
from quorin.errors import TensorError

if TYPE_CHECKING:
    from feast_quorin.read.positions import Positions

_MAX_SHOWN = 10
_MAX_HTML_ROWS = _MAX_HTML_COLUMNS = 20


class Stack(NamedTuple):
    """Lists of one length: ``values`` of shape ``(rows, length)``, zeros for null lists. ``missing`` is the bool mask
    of null lists, of shape ``(rows,)``; None if there are none.
    """

    values: np.ndarray[Any, Any]
    missing: np.ndarray[Any, np.dtype[np.bool_]] | None


class TensorResponse(OnlineResponse):
    """Feast's response, whose tensors may hold lists, and which knows the log positions of its rows."""

    def __init__(self, proto: Any, feature_types: Any = None, positions: Positions | None = None) -> None:
        super().__init__(proto, feature_types)
        self._positions = positions

    @classmethod
    def of_feast(cls, response: OnlineResponse, positions: Positions | None = None) -> TensorResponse:
        """The same response with the tensors of this class, and positions."""
        return cls(response.proto, feast_private.feature_types_of(response), positions)

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorResponse, (self.proto, dict(self._feature_types), self.positions())

    def positions(self) -> Positions:
        """The log positions of the writes that made the rows, by name of the view in the request: a list in the order
        of the request, None where the entity has no row. Empty if a version of Feast reads the views itself.
        """
        return dict(self._positions or {})

    def to_arrow(self, include_event_timestamps: bool = False, *, positions: bool = False) -> pa.Table:
        """Feast's table. With ``positions`` it has a column ``<view>__position`` more for each view, int64, null where
        the entity has no row.
        """
        table: pa.Table = super().to_arrow(include_event_timestamps)
        return self.with_positions(table) if positions else table

    def with_positions(self, table: pa.Table) -> pa.Table:
        """A table with a column more for each view."""
        for view, own in self.positions().items():
            table = table.append_column(f"{view}__position", pa.array(own, pa.int64()))
        return table

    def _repr_html_(self) -> str:
        """What notebooks show: the frame, shortened."""
        html: str = self.to_df().to_html(max_rows=_MAX_HTML_ROWS, max_cols=_MAX_HTML_COLUMNS, escape=True)
        return html

    def to_tensor(
        self, kind: str = "torch", default_value: Any = float("nan"), *, stack_lists: bool | Collection[str] = False
    ) -> dict[str, Any]:
        """Tensors of numbers and booleans, ``default_value`` instead of None; lists of everything else, as in Feast.

        With ``stack_lists`` the lists of a feature become one tensor of shape ``(rows, length)`` in the feature's own
        type (float32, float64, int32, int64 or bool): True selects every feature that is a list of numbers or booleans,
        names select single features. A row without a value is filled with ``default_value``; if that is a float,
        integers and booleans become floats, as scalar features do. If no row has a value the length is the field's
        ``vector_length``, 0 if none is declared.

        The tensors are the caller's own.

        :raises TensorError: if the lists of a feature differ in length; if a named feature is not in the response or
            not a list of numbers. :raises ValueError: for values that no tensor can hold, and for another
            ``kind``. :raises ImportError: without torch.
        """
        stacks = self.stacks(stack_lists)
        tensors: dict[str, Any] = super().to_tensor(kind, default_value)
        return tensors | {name: tensor_of(name, stack, default_value) for name, stack in stacks.items()}

    def stacks(self, stack_lists: bool | Collection[str]) -> dict[str, Stack]:
        """The arrays from which the tensors of lists are made, by name. This does not need torch.

        :raises TensorError: as :meth:`to_tensor`.
        """
        if stack_lists is False:
            return {}
        names = self._names()
        requested = frozenset(names) if stack_lists is True else _named(stack_lists, names)
        stacks = {name: stacked(name, lists, length) for name, lists, length in self._number_lists(requested)}
        others = [] if stack_lists is True else sorted(requested - stacks.keys())
        if others:
            raise TensorError(f"stack_lists: expected features that are lists of numbers or booleans, got {others}")
        return stacks

    def _names(self) -> Collection[str]:
        names: Collection[str] = self.proto.metadata.feature_names.val
        return names

    def _number_lists(self, requested: frozenset[str]) -> Iterator[tuple[str, pa.ListArray, int]]:
        """The requested columns that are lists of numbers or booleans, each with its declared length."""
        for name, vector in zip(self._names(), self.proto.results, strict=True):
            lists = number_lists(vector.values, self._feature_types.get(name)) if name in requested else None
            if lists is not None:
                yield name, lists, self.vector_length(name)

    def vector_length(self, name: str) -> int:  # noqa: ARG002
        """The declared length of a feature's lists, 0 if it is not declared."""
        return 0


def _named(stack_lists: Any, names: Collection[str]) -> frozenset[str]:
    if isinstance(stack_lists, str) or not isinstance(stack_lists, Collection):
        raise TensorError(f"stack_lists: expected True, False or a list of feature names, got {stack_lists!r}")
    unknown = [name for name in stack_lists if name not in names]
    if unknown:
        raise TensorError(f"stack_lists: the response has no features {unknown}, it has {[*names]}")
    return frozenset(stack_lists)


def stacked(name: str, lists: pa.ListArray, vector_length: int) -> Stack:
    """Lists of numbers as one new array in the type of their elements; ``vector_length`` is the length if all are null.

    :raises TensorError: if lengths differ.
    """
    counts = lists.value_lengths().drop_null().to_numpy()
    length = int(counts[0]) if len(counts) else vector_length
    if (counts != length).any():
        raise TensorError(
            f"feature {name!r}: expected lists of one length, got lengths "
            f"{np.unique(counts).tolist()[:_MAX_SHOWN]}; leave it out of stack_lists"
        )
    elements = lists.flatten().to_numpy(zero_copy_only=False, writable=True).reshape(len(counts), length)
    if not lists.null_count:
        return Stack(elements, None)
    missing = lists.is_null().to_numpy(zero_copy_only=False)
    values = np.zeros((len(lists), length), elements.dtype)
    values[~missing] = elements
    return Stack(values, missing)


def tensor_of(name: str, values: Any, default_value: Any) -> Any:
    """A tensor of a column, on the device that Feast would choose; the list itself if Feast would make no tensor of it.

    ``values`` is a stack, an array of numbers or booleans, or a list with None for nulls. Arrays become the memory of
    the tensor.

    :raises ValueError: for values that no tensor can hold; a :class:`TensorError` for such a default in a stack.
    """
    torch = get_torch()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(values, Stack):
        return _filled(torch, name, values, default_value).to(device)
    if isinstance(values, np.ndarray):
        tensor = torch.from_numpy(values)
        return tensor.to(device, torch.get_default_dtype() if values.dtype.kind == "f" else tensor.dtype)
    sample = next((value for value in values if value is not None), default_value)
    filled = [default_value if value is None else value for value in values]
    if not isinstance(sample, (int, float, bool)):
        return filled
    try:
        return torch.tensor(filled, device=device)
    except Exception as error:
        raise ValueError(f"Failed to convert values for '{name}' to tensor: {error}") from error


def _filled(torch: Any, name: str, stack: Stack, default_value: Any) -> Any:
    """A stack with the default in its missing rows; its type is promoted as in torch's arithmetic."""
    tensor = torch.from_numpy(stack.values)
    if stack.missing is None:
        return tensor
    try:
        number = np.asarray(default_value).item()  # torch takes only Python's numbers
        tensor = tensor.to(torch.result_type(tensor, number))
        tensor[torch.from_numpy(stack.missing)] = number
    except (TypeError, ValueError, RuntimeError) as error:
        raise TensorError(
            f"feature {name!r}: expected a default_value that fits {tensor.dtype}, got {default_value!r}"
        ) from error
    return tensor
