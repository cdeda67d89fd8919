"""Unpacking untrusted zip files."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inhouse.core.errors import UserError
from inhouse.sources import archive


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            z.writestr(name, content)
    return path


def test_extract_of_a_plain_member_writes_its_bytes(tmp_path):
    path = _zip(tmp_path / "a.whl", {"pkg/data.tab": b"x\ty\n" * 1000})
    seen = []
    with archive.opened(path) as z:
        (info,) = archive.members(z, "pkg/data.tab")
        archive.extract(z, info, tmp_path / "out" / "data.tab", seen.append)
    assert (tmp_path / "out" / "data.tab").read_bytes() == b"x\ty\n" * 1000
    assert sum(seen) == 4000


def test_members_of_a_folder_are_all_found_and_folders_left_out(tmp_path):
    path = _zip(tmp_path / "a.whl", {"m/": b"", "m/a": b"1", "m/b/c": b"2", "mm": b"3"})
    with archive.opened(path) as z:
        assert [i.filename for i in archive.members(z, "m")] == ["m/a", "m/b/c"]


@pytest.mark.parametrize("name", ["../evil", "m/../../evil", "/etc/passwd", "m\\..\\evil", "c:/evil", "a\0b", ""])
def test_name_that_leads_out_is_not_inside(name):
    assert not archive.is_inside(name)


def test_member_that_leads_out_is_refused(tmp_path):
    path = _zip(tmp_path / "a.whl", {"m/../../evil": b"1"})
    with pytest.raises(UserError) as caught, archive.opened(path) as z:
        archive.members(z, "m")
    assert caught.value.code == "sources.archive"
    assert "leads out" in str(caught.value)


def test_member_that_is_a_symbolic_link_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as z:
        info = zipfile.ZipInfo("m/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="symbolic link"), archive.opened(tmp_path / "a.whl") as z:
        archive.members(z, "m/link")


def test_member_that_unpacks_a_thousandfold_is_refused(tmp_path):
    path = _zip(tmp_path / "a.whl", {"m/bomb": b"\0" * (archive.SMALL_BYTES + 1)})
    with pytest.raises(UserError, match="unpacks to"), archive.opened(path) as z:
        archive.members(z, "m/bomb")


def test_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"not a zip")
    with pytest.raises(UserError) as caught, archive.opened(tmp_path / "a.whl"):
        pass
    assert caught.value.code == "sources.archive"


def test_encrypted_member_is_refused(tmp_path):
    path = _zip(tmp_path / "a.whl", {"m/x": b"1"})
    with pytest.raises(UserError, match="encrypted"), archive.opened(path) as z:
        z.infolist()[0].flag_bits |= 1
        archive.members(z, "m/x")


def test_member_larger_than_the_disk_is_refused_before_writing(tmp_path):
    path = _zip(tmp_path / "a.whl", {"m/x": b"1"})
    with archive.opened(path) as z:
        (info,) = archive.members(z, "m/x")
        info.file_size = 2**60
        with pytest.raises(UserError) as caught:
            archive.extract(z, info, tmp_path / "x", lambda n: None)
    assert caught.value.code == "store.no_space"
    assert not (tmp_path / "x").exists()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_archive_gives_a_user_error_or_the_right_bytes(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zip")
    content = bytes(range(256)) * 8
    raw = bytearray(_zip(folder / "a.whl", {"m/x": content}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(raw)))
    (folder / "b.whl").write_bytes(raw if data.draw(st.booleans()) else raw[:cut])
    try:
        with archive.opened(folder / "b.whl") as z:
            for info in archive.members(z, "m/x"):
                archive.extract(z, info, folder / "out", lambda n: None)
                assert (folder / "out").read_bytes() == content[: info.file_size]
    except UserError:
        return
