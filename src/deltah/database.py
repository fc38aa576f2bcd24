"""duckdb, the one library behind every Parquet file, imported where one is met: it is an extra of its own size."""

from __future__ import annotations

from types import ModuleType

from deltah.errors import missing_dependency


def import_duckdb(purpose: str) -> ModuleType:
    """The module.

    Args:
        purpose: What needs it, as the start of a sentence.

    Raises:
        MissingDependencyError: if it is not installed; names the extra that brings it.
    """
    try:
        import duckdb
    except ImportError as error:
        raise missing_dependency("duckdb", extra="parquet", purpose=purpose) from error
    return duckdb
