"""The limit of a container, as the kernel's files tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cgroup import headroom


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def member(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cgroup"
    file.write_text(text)
    return file


def test_version_two_leaves_the_least_of_the_group_and_those_above_it(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    write(root / "slice" / "unit", max="1000", current="300", stat="anon 250\ninactive_file 40")
    write(root / "slice", max="2000", current="1400", stat="inactive_file 0")
    where = member(tmp_path, "0::/slice/unit\n")
    assert headroom(root, where) == 600
    write(root / "slice", max="max")
    assert headroom(root, where) == 740
    write(root / "slice" / "unit", current="5000")
    assert headroom(root, where) == 0


def test_version_one_has_its_own_names_and_a_number_for_no_limit(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    write(root / "memory" / "job", limit_in_bytes="500", usage_in_bytes="450", stat="total_inactive_file 25")
    write(root / "memory", limit_in_bytes="9223372036854771712", usage_in_bytes="100")
    where = member(tmp_path, "3:cpu:/\n4:cpuset,memory:/job\n0::/\n")
    assert headroom(root, where) == 75


def test_in_a_container_whose_path_is_the_hosts_the_mounted_group_counts(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    write(root, max="1000", current="100")
    assert headroom(root, member(tmp_path, "0::/kubepods/pod/abc\n")) == 900


@pytest.mark.parametrize("text", ["", "0::/\n", "3:cpu:/x\n"])
def test_without_a_limit_there_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "fs").mkdir()
    assert headroom(tmp_path / "fs", member(tmp_path, text)) is None
    assert headroom(tmp_path / "fs", tmp_path / "missing") is None
