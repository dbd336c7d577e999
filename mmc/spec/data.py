"""Where the examples of a spec come from."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from mmc.spec.keys import Keys, Name


class DataSource(Keys):
    """Rows of one split: of a file, or of a data set of the Hugging Face hub."""

    file: str | None = None
    """JSONL, JSON (a list) or CSV file."""
    dataset: str | None = None
    """Instead of a file: a data set of the hub, `OWNER/NAME`, or a folder that is one, as in `./my_data` (extra `data`)."""
    config: str | None = None
    """Which configuration of the data set; its default one when left out."""
    split: str | None = None
    """Which split of the data set, `train` when left out; parts too, as in `train[:1000]`."""
    revision: str | None = None
    """Branch, tag or commit of the data set; a build names the commit that it was compiled with."""
    columns: dict[Name, str] = {}
    """Other names for columns: the name in this spec, and that in the data. All keys below mean the former."""
    id: str | None = None
    """Column that names a row; the row's number when left out."""
    shuffle: int | None = None
    """Seed of a shuffle that comes before everything below; the file's own order when left out."""
    where: dict[str, Any] = {}
    """Only rows whose column has this value, or one of these when a list is given: `{num_hops: [3, 4]}`."""
    unique: list[str] = []
    """Columns in which rows differ: a row that agrees in one of them with a row before it is left out, so that splits of one
    file cannot share it."""
    part: tuple[float, float] = (0.0, 1.0)
    """Share of the (shuffled) rows that belongs to this split, such as [0.0, 0.9]."""
    balance: str | None = None
    """A column whose values are to be equally frequent: surplus rows of the commoner ones are left out."""
    limit: int | None = Field(None, gt=0)
    """At most this many rows."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("rows come from either `file` or `dataset`")
        for key in ("config", "split", "revision"):
            if self.dataset is None and getattr(self, key) is not None:
                raise ValueError(f"`{key}` does nothing without `dataset`")
        return self

    @property
    def place(self) -> str:
        """What messages call it."""
        return self.file or self.dataset or ""


class Data(Keys):
    """Where examples come from. Search and training see train, choices are made on dev, scores reported on test."""

    train: DataSource
    """Rows that search and training see."""
    dev: DataSource
    """Rows that choices are made on: candidates, checkpoints, whether a stage stays."""
    test: DataSource
    """Rows that scores are reported on; nothing else touches them."""
