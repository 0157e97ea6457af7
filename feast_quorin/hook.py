"""Registers the short name ``type: quorin`` with Feast.

Feast looks up a store's short name in a dictionary of its module ``feast.repo_config``, before it imports any user
code, and offers no way to register one. ``quorin_feast.pth`` therefore calls :func:`install` when Python starts.
It adds a finder to ``sys.meta_path`` that does nothing until ``feast.repo_config`` is imported, and then adds one
entry to that dictionary. If Feast is absent or differs, nothing happens; the full class path works without the hook.

Every start of Python runs this file, so it imports only ``sys`` and prints nothing.
"""

import sys

FEAST_MODULE = "feast.repo_config"
TABLE = "ONLINE_STORE_CLASS_FOR_TYPE"
NAME, CLASS_PATH = "quorin", "feast_quorin.QuorinOnlineStore"


def install() -> None:
    """Register the name when Feast is imported, or now if it already is. Calling this again changes nothing."""
    if FEAST_MODULE in sys.modules:
        register(sys.modules[FEAST_MODULE])
    if all(map(_is_another, sys.meta_path)):
        sys.meta_path.insert(0, FeastFinder)


def register(module: object) -> None:
    """Add the name to the table in Feast's module, unless the name is there or the table is not."""
    table = getattr(module, TABLE, None)
    if isinstance(table, dict):
        table.setdefault(NAME, CLASS_PATH)


class FeastFinder:
    """Finds ``feast.repo_config`` through the other finders, and makes its loader call :func:`register`."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        """The spec of ``feast.repo_config``, with a loader that registers the name; None for any other module."""
        if name != FEAST_MODULE:
            return None
        finders = (f for f in sys.meta_path if _is_another(f) and hasattr(f, "find_spec"))
        spec = next((s for s in (f.find_spec(name, path, target) for f in finders) if s is not None), None)
        load = getattr(getattr(spec, "loader", None), "exec_module", None)
        if load is None:
            return spec

        def load_and_register(module: object) -> None:
            load(module)
            register(module)

        try:
            spec.loader.exec_module = load_and_register  # type: ignore[method-assign, union-attr]
        except AttributeError:  # The loader takes no attributes: Feast loads without the short name.
            return spec
        return spec


def _is_another(finder: object) -> bool:
    """Whether a finder is not this module's, nor left by this module before a reload."""
    return getattr(finder, "__module__", None) != __name__
