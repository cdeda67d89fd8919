"""Tables that are kept on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inhouse.data.kernels.kept import kept


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all"])
def test_table_that_was_damaged_on_the_disk_is_made_again(tmp_path: Path, content: bytes) -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        made.append(1)
        return {"table": np.arange(3)}

    file = str(tmp_path / "made.py")
    for times in (1, 1):
        assert kept(file, "numbers", "", make)["table"].tolist() == [0, 1, 2]
        assert len(made) == times
    (path,) = tmp_path.rglob("numbers-*.npz")
    path.write_bytes(content)
    for times in (2, 2):
        assert kept(file, "numbers", "", make)["table"].tolist() == [0, 1, 2]
        assert len(made) == times
