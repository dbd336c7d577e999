"""Examples: rows of JSONL, JSON or CSV files, or of data sets of the hub; split, shuffled, balanced and limited as the spec says.

To add a file format: a function from (path) to rows with their line numbers, put into ``READERS``.
"""

from mmc.data.split import (
    READERS,
    SPLITS,
    Example,
    SplitName,
    commit_of,
    fingerprint,
    load_split,
    read_rows,
    rows_of,
    source_rows,
)

__all__ = [
    "READERS",
    "SPLITS",
    "Example",
    "SplitName",
    "commit_of",
    "fingerprint",
    "load_split",
    "read_rows",
    "rows_of",
    "source_rows",
]
