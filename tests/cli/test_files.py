from __future__ import annotations

from pathlib import Path

import pytest

from mmc.files import new_folder, whole_file, whole_folder


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    place = tmp_path / "below" / "state.json"
    with whole_file(place) as new:
        new.write_text("one")
        assert not place.exists()
    with pytest.raises(RuntimeError), whole_file(place) as new:
        new.write_text("half")
        raise RuntimeError
    assert [path.read_text() for path in place.parent.iterdir()] == ["one"]
    with whole_file(place) as new:
        new.write_text("two")
    assert [path.read_text() for path in place.parent.iterdir()] == ["two"]


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    place = tmp_path / "below" / "step-1"
    with whole_folder(place) as new:
        (new / "old").write_text("1")
    with pytest.raises(RuntimeError), whole_folder(place) as new:
        (new / "half").write_text("2")
        raise RuntimeError
    assert [path.name for path in place.iterdir()] == ["old"]
    with whole_folder(place) as new:
        assert not list(new.iterdir())
        (new / "new").write_text("3")
    assert [str(path.relative_to(place.parent)) for path in place.parent.rglob("*")] == ["step-1", "step-1/new"]


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Of two that make the same one at a time the first stays."""
    place = tmp_path / "v1"
    with pytest.raises(RuntimeError), new_folder(place) as new:
        (new / "half").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError), new_folder(place) as slow:
        (slow / "slow").write_text("2")
        with new_folder(place) as fast:
            (fast / "fast").write_text("3")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["v1", "v1/fast"]
    assert place.stat().st_mode & 0o777 == 0o755
