"""Finding files below a folder, and writing them."""

import os

import pytest

from datamodules.files.files import find_files, walk_files, write_atomically


def names(root):
    return [path.relative_to(root).as_posix() for path in find_files(root, {".png"})]


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_are_sorted_and_have_the_suffix_in_any_case(tmp_path):
    touch(*(tmp_path / name for name in ("b.PNG", "a/z.png", "a/y.jpg", "a.png")))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path) == ["a/z.png", "a.png", "b.PNG"]


def test_linked_files_and_folders_are_followed(tmp_path):
    touch(tmp_path / "elsewhere" / "deep" / "a.png", tmp_path / "b.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "c.png").symlink_to(tmp_path / "b.png")
    assert names(root) == ["c.png", "link/deep/a.png"]
    (tmp_path / "root_link").symlink_to(root)
    assert names(tmp_path / "root_link") == names(root)


def test_links_in_a_circle_end(tmp_path):
    touch(tmp_path / "a" / "b" / "x.png", tmp_path / "y.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    assert names(tmp_path) == ["a/b/x.png", "y.png"]


def test_folder_that_is_also_linked_is_found_once_by_its_own_place(tmp_path):
    touch(tmp_path / "b" / "x.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    (tmp_path / "0").symlink_to(tmp_path / "b")
    assert names(tmp_path) == ["b/x.png"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    root = tmp_path / ".hidden root"
    touch(root / "a.png", root / "._a.png", root / ".thumbs" / "a.png", root / "b" / ".c" / "d" / "a.png")
    assert names(root) == ["a.png"]


@pytest.mark.parametrize(
    "left", ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", "@Recycle", "#snapshot"]
)
def test_what_a_system_leaves_is_left_out(left, tmp_path):
    """Unless the root itself lies there: then the user means it."""
    root = tmp_path / left / "root"
    touch(root / "a.png", root / left / "a.png", root / "b" / left / "a.png" / "thumb.png", root / f"{left}.png")
    (root / "b" / "b.png").touch()
    assert names(root) == sorted([f"{left}.png", "a.png", "b/b.png"])


def test_databases_of_thumbnails_are_no_files_of_the_user(tmp_path):
    touch(tmp_path / "Thumbs.db", tmp_path / "a" / "desktop.ini", tmp_path / "a" / "a.csv")
    assert [path.name for path in walk_files(tmp_path)] == ["a.csv"]


def test_file_and_then_its_folder_are_brought_to_the_disk(tmp_path, monkeypatch):
    target, synced = tmp_path / "a", []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, target.exists())))
    write_atomically(target, lambda file: file.write(b"x"))
    assert synced == [(target.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
