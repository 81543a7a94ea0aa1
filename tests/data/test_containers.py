"""Archives that are no archives of images: refused in one line, before their headers have taken minutes."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from vgg_ddp.data.sources import containers
from vgg_ddp.errors import UserError


def tar_of_empty_files(path: Path, count: int) -> Path:
    """Folders are no files, however many there are."""
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
