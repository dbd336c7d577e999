"""Examples: rows of JSONL, JSON or CSV files, split, shuffled, balanced and limited as the spec says.

To add a file format: a function from (path) to rows with their line numbers, put into ``READERS``.
"""

from mmc.data.split import READERS, SPLITS, Example, SplitName, fingerprint, load_split, read_rows, rows_of

__all__ = ["READERS", "SPLITS", "Example", "SplitName", "fingerprint", "load_split", "read_rows", "rows_of"]
