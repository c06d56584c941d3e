"""The source of local folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import CheckpointCorrupt, ModelNotFound
from runtime.spi import Download
from runtime.testing.models import tiny_llama
from runtime_folder.source import FolderSource


def _ignore(progress: Download) -> None:
    del progress


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "models" / "alone", layers=1)
    tiny_llama(tmp_path / "models" / "org" / "name", layers=1)
    (tmp_path / "models" / "empty").mkdir()
    return tmp_path / "models"


def test_a_path_is_claimed_and_fetched_as_it_is(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FolderSource(())
    assert source.claims(str(models / "alone"))
    assert source.fetch(str(models / "alone"), _ignore) == models / "alone"
    monkeypatch.chdir(models)
    assert source.claims("./alone")
    assert source.fetch("./alone", _ignore) == models / "alone"
    monkeypatch.setenv("HOME", str(models))
    assert source.fetch("~/org/name", _ignore) == models / "org" / "name"


def test_a_name_is_claimed_only_where_a_model_has_it(models: Path) -> None:
    source = FolderSource((models,))
    assert source.claims("alone")
    assert source.claims("org/name")
    assert source.fetch("org/name", _ignore) == models / "org" / "name"
    for name in ("empty", "org", "org/other", "smollm2:135m", "", "a/b/c"):
        assert not source.claims(name)


def test_a_name_cannot_leave_the_configured_folder(models: Path) -> None:
    inner = FolderSource((models / "org",))
    assert not inner.claims("name/../../alone")
    assert not inner.claims("x/../alone")


def test_the_listing_names_what_can_be_asked_for(models: Path) -> None:
    source = FolderSource((models, models.parent / "not-there"))
    listed = source.local()
    assert [listing.name for listing in listed] == ["alone", "org/name"]
    for listing in listed:
        folder = source.fetch(listing.name, _ignore)
        assert listing.bytes == sum(file.stat().st_size for file in folder.iterdir())


def test_a_missing_folder_names_the_nearest_there_is(models: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"/alnoe .*there are alone"):
        FolderSource((models,)).fetch(str(models / "alnoe"), _ignore)


def test_a_folder_that_is_no_model_says_what_it_lacks(models: Path) -> None:
    source = FolderSource(())
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        source.fetch(str(models / "empty"), _ignore)
    (models / "empty" / "m.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"name the file to load it: .*m\.gguf"):
        source.fetch(str(models / "empty"), _ignore)
    (models / "alone" / "model.safetensors").unlink()
    with pytest.raises(CheckpointCorrupt, match="no safetensors"):
        source.fetch(str(models / "alone"), _ignore)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_lists_nothing(models: Path) -> None:
    models.chmod(0)
    try:
        assert FolderSource((models,)).local() == []
    finally:
        models.chmod(0o755)


def test_a_folder_that_may_not_be_looked_into_hides_no_other(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = FolderSource((models,)).local()
    (models / "closed").mkdir()
    real = Path.is_file

    def is_file(path: Path) -> bool:  # what the system says to anybody but root
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    listed = FolderSource((models,)).local()
    assert [each.name for each in listed] == [each.name for each in expected]
    assert all(each.path is not None and each.path.is_dir() for each in listed)
