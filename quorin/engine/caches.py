"""The cache for what follows from a schema alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Schema = TypeVar("Schema", bound=type[Any])
Result = TypeVar("Result")

_ATTRIBUTE = "_quorin_results"


def per_schema(function: Callable[[Schema], Result]) -> Callable[[Schema], Result]:
    """Compute a function once for each schema class. Its result is kept in the class, and freed with it.

    A dictionary keyed by schemas would be slower: it compares schemas, which compares their JSON, itself such a result.
    Threads may call the function at the same time; each then computes it, and an equal result is kept.
    """

    @wraps(function)
    def cached(schema: Schema) -> Result:
        try:
            result: Result = schema.__dict__[_ATTRIBUTE][function]
        except KeyError:
            pass
        else:
            return result
        result = function(schema)
        if _ATTRIBUTE not in schema.__dict__:
            type.__setattr__(schema, _ATTRIBUTE, _Results())
        schema.__dict__[_ATTRIBUTE][function] = result
        return result

    return cached


class _Results(dict[Any, Any]):
    """Results by function. A pickle holds none: cloudpickle stores all attributes of a class that it pickles by value,
    and results may hold what cannot be pickled.
    """

    def __reduce__(self) -> tuple[type[_Results], tuple[()]]:
        return _Results, ()
