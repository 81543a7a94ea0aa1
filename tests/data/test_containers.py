"""Archives and folders without images, refused in one line before they take minutes; duplicate members of a tar."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.ensure import ensure
from vgg_ddp.data.sources import containers
from vgg_ddp.errors import UserError


def tar_of_empty_files(path: Path, count: int) -> Path:
    """With as many folders, which must not be counted as files."""
    with tarfile.open(path, "w") as archive:
        for k in range(count):
            archive.addfile(tarfile.TarInfo(f"{k}.jpg"))
            folder = tarfile.TarInfo(f"folder {k}")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
    return path


def zip_of_empty_files(path: Path, count: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(count):
            archive.writestr(f"{k}.jpg", b"")
            archive.writestr(f"folder {k}/", b"")
    return path


@pytest.mark.parametrize(
    ("make", "read"), [(tar_of_empty_files, containers.Tar), (zip_of_empty_files, containers.Zip)], ids=["tar", "zip"]
)
def test_more_empty_files_than_any_set_of_images_has(
    make: object, read: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "MOST_EMPTY", 50)
    assert len(read(make(tmp_path / "few", 50)).names) == 50  # type: ignore[operator]
    with pytest.raises(UserError, match="many holds more than 50 empty files; pack it again without them"):
        read(make(tmp_path / "many", 51))  # type: ignore[operator]


def test_of_a_member_that_is_there_twice_the_last_counts(tmp_path: Path) -> None:
    """As `tar -u` writes an archive: each changed file is appended once more."""
    files = [("a.png", b"old"), ("b.png", b"b"), ("./a.png", b"new")]
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    tar = containers.Tar(tmp_path / "set.tar")
    assert tar.names == ["a.png", "b.png"]
    assert list(tar.read(tar.names)) == [("b.png", b"b"), ("a.png", b"new")]


def test_a_folder_that_cannot_be_read_is_one_line_in_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (tmp_path / "set" / "closed").mkdir(parents=True)
    monkeypatch.setattr(containers.os, "scandir", scandir)  # patched, since root can read everything
    config = DataConfig(source=str(tmp_path / "set"), directory=str(tmp_path / "datasets"))
    with pytest.raises(UserError, match=r"set/closed cannot be read: Permission denied$"):
        ensure(config, print)


def test_a_link_to_itself_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"data\.source: .*loop does not exist"):
        ensure(DataConfig(source=str(tmp_path / "loop"), directory=str(tmp_path / "datasets")), print)


def test_everything_is_no_source_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers.os, "scandir", None)  # it must not be walked
    with pytest.raises(UserError, match=r"data\.source: / is no file or folder of images"):
        ensure(DataConfig(source="/", directory=str(tmp_path / "datasets")), print)


def test_a_tar_whose_last_file_is_a_zip_is_a_tar(tmp_path: Path) -> None:
    """A zip is recognised by its end, which here is also the end of the tar, except for the padding."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as inner:
        inner.writestr("a.png", b"x")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, data in (("b.png", b"y"), ("val.zip", packed.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert zipfile.is_zipfile(tmp_path / "set.tar")
    assert containers.open_container(tmp_path / "set.tar").names == ["b.png", "val.zip"]
