import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time

import numpy as np
import pytest

from datamodules.files import cache_building
from datamodules.files.cache import ImageCache, cache_key, content_hashes
from datamodules.files.cache_building import Files, open_or_build
from datamodules.files.errors import UnreadableImageError

SHAPE = (1, 4, 4)


def image(i):
    return np.full(SHAPE, i, np.uint8)


def build(directory, read=image, count=10, bits=8, limit=0.0):
    (cache,) = open_or_build([directory], [f"n{i}" for i in range(count)], lambda i: [read(i)], [SHAPE], bits, limit)
    return cache


def test_images_are_read_once_and_come_back(tmp_path):
    calls = []
    cache = build(tmp_path / "c", lambda i: calls.append(i) or image(i))
    assert sorted(calls) == list(range(10))
    again = build(tmp_path / "c", lambda i: pytest.fail("read again"))
    for one in (cache, again):
        assert one.images.shape == (10, *SHAPE)
        np.testing.assert_array_equal(one.images[:, 0, 0, 0], np.arange(10))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_sixteen_bits_are_kept(tmp_path):
    cache = build(tmp_path / "c", lambda i: np.full(SHAPE, 60_000 + i, np.uint16), bits=12)
    assert cache.images.dtype == np.uint16
    assert int(cache.images[3].max()) == 60_003


def unreadable_at(*bad):
    def read(i):
        if i in bad:
            raise UnreadableImageError(f"n{i}: broken")
        return image(i)

    return read


def test_unreadable_images_are_left_out_and_named(tmp_path):
    cache = build(tmp_path / "c", unreadable_at(2, 5), limit=0.2)
    assert cache.unreadable == ["n2: broken", "n5: broken"]
    assert cache.names == [f"n{i}" for i in range(10) if i not in (2, 5)]
    assert cache.images[2, 0, 0, 0] == 3
    assert build(tmp_path / "c", limit=0.2).unreadable == cache.unreadable  # also the next time


def test_too_many_unreadable_images_are_an_error_and_leave_no_finished_cache(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"3 of 10 files .* more than data.max_unreadable=0.2.*n7: broken"):
        build(tmp_path / "c", unreadable_at(2, 5, 7), limit=0.2)
    assert not (tmp_path / "c").exists()


def test_build_goes_on_after_the_limit_was_raised(tmp_path):
    with pytest.raises(UnreadableImageError):
        build(tmp_path / "c", unreadable_at(2, 5, 7), limit=0.2)
    calls = []
    cache = build(tmp_path / "c", lambda i: calls.append(i) or unreadable_at(2, 5, 7)(i), limit=0.3)
    assert min(calls) == 7
    assert cache.names == [f"n{i}" for i in range(10) if i not in (2, 5, 7)]
    np.testing.assert_array_equal(cache.images[:, 0, 0, 0], [0, 1, 3, 4, 6, 8, 9])


def test_build_goes_on_after_any_error(tmp_path, journal_of_three):
    def full_disk_at_seven(i):
        if i == 7:
            raise OSError("No space left on device")
        return image(i)

    with pytest.raises(OSError):
        build(tmp_path / "c", full_disk_at_seven)
    calls = []
    build(tmp_path / "c", lambda i: calls.append(i) or image(i))
    assert min(calls) == 6


def test_unreadable_files_count_with_their_copies_also_when_the_build_goes_on(tmp_path):
    files = Files([1, 1, 3, 1, 1, 2, 1, 1, 1, 1], others=7)  # 20 in all, of which those of images 2 and 5 are 5
    arguments = [[tmp_path / "c"], [f"n{i}" for i in range(10)], lambda i: [unreadable_at(2, 5)(i)], [SHAPE], 8]
    with pytest.raises(UnreadableImageError, match=r"^at least 3 of 20 files"):
        open_or_build(*arguments, 0.14, files)
    with pytest.raises(
        UnreadableImageError, match=r"^at least 5 of 20 files cannot be used.*: n2: broken; n5: broken$"
    ):
        open_or_build(*arguments, 0.24, files)
    (cache,) = open_or_build(*arguments, 0.25, files)
    assert cache.names == [f"n{i}" for i in range(10) if i not in (2, 5)]
    with pytest.raises(UnreadableImageError, match=r"^5 of 20 files"):
        open_or_build(*arguments, 0.24, files)


def test_equal_rows_are_equal_images_not_equal_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_building.zlib, "crc32", lambda content: 7)
    cache = build(tmp_path / "c", lambda i: image(i % 4 if i != 7 else 9))
    assert [rows.tolist() for rows in cache.equal_rows()] == [[0, 4, 8], [1, 5, 9], [2, 6]]
    assert build(tmp_path / "other", image).equal_rows() == []


def test_truncated_cache_is_refused(tmp_path):
    build(tmp_path / "c")
    with (tmp_path / "c" / "images.bin").open("r+b") as file:
        file.truncate(17)
    with pytest.raises(OSError, match="is damaged"):
        ImageCache(tmp_path / "c")


def test_spawned_workers_get_the_place_not_the_images(tmp_path):
    cache = build(tmp_path / "c")
    assert cache.images is not None
    assert len(pickle.dumps(cache)) < 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).images, cache.images)


def slowly(i):
    time.sleep(0.02)
    return image(i)


def _build_and_report(directory, queue):
    calls = []
    build(directory, lambda i: calls.append(i) or slowly(i))
    queue.put(len(calls))


def test_two_processes_build_once(tmp_path):
    queue = multiprocessing.get_context("fork").Queue()
    workers = [
        multiprocessing.get_context("fork").Process(target=_build_and_report, args=(tmp_path / "c", queue))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted([queue.get(timeout=5), queue.get(timeout=5)]) == [0, 10]


@pytest.fixture
def journal_of_three(monkeypatch):
    monkeypatch.setattr(cache_building, "JOURNAL_EVERY", 3)


def pyramid(folder, read, count=10, sizes=(8, 4)):
    shapes = [(1, size, size) for size in sizes]
    directories = [folder / f"c{size}" for size in sizes]
    return open_or_build(directories, [f"n{i}" for i in range(count)], read, shapes, 8, 0.5)


def both_sizes(i):
    return [np.full((1, size, size), i, np.uint8) for size in (8, 4)]


def test_all_sizes_are_built_in_one_pass(tmp_path):
    calls = []
    large, small = pyramid(tmp_path, lambda i: calls.append(i) or both_sizes(i))
    assert sorted(calls) == list(range(10))
    assert large.images.shape == (10, 1, 8, 8) and small.images.shape == (10, 1, 4, 4)
    assert large.names == small.names


def test_only_the_missing_size_is_built(tmp_path):
    pyramid(tmp_path, both_sizes)
    before = (tmp_path / "c8" / "images.bin").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "c4")
    _, small = pyramid(tmp_path, both_sizes)
    np.testing.assert_array_equal(small.images[:, 0, 0, 0], np.arange(10))
    assert (tmp_path / "c8" / "images.bin").stat().st_mtime_ns == before


def test_sizes_that_hold_different_images_are_refused(tmp_path):
    pyramid(tmp_path, both_sizes)
    shutil.rmtree(tmp_path / "c4")

    def now_unreadable(i):
        if i == 3:
            raise UnreadableImageError("n3: broken")
        return both_sizes(i)

    with pytest.raises(OSError, match="hold different images"):
        pyramid(tmp_path, now_unreadable)


def _build_slowly(folder, seen, stop_at=None):
    def read(i):
        time.sleep(60 if i == stop_at else 0.02)
        seen.put(i)
        if i == 2:
            raise UnreadableImageError("n2: broken")
        return both_sizes(i)

    pyramid(folder, read, count=40)


def done(folder):
    journals = [folder / f".c{size}.building" / "journal.json" for size in (8, 4)]
    return min(json.loads(path.read_text())["done"] if path.exists() else 0 for path in journals)


@pytest.mark.parametrize("after", [0, 8, 20])
def test_killed_build_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path, monkeypatch, journal_of_three, after):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)  # so many files are read ahead
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_build_slowly, args=(tmp_path / "killed", queue, 30))
    worker.start()
    queue.get(timeout=20)
    while done(tmp_path / "killed") < after:
        assert worker.is_alive()
        time.sleep(0.005)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert not (tmp_path / "killed" / "c8").exists()
    start = done(tmp_path / "killed")
    again = context.Queue()
    _build_slowly(tmp_path / "killed", again)
    _build_slowly(tmp_path / "whole", context.Queue())
    for size in (8, 4):
        for name in ("images.bin", "index.json"):
            left, right = (tmp_path / part / f"c{size}" / name for part in ("killed", "whole"))
            assert left.read_bytes() == right.read_bytes()
    assert min(again.get(timeout=5) for _ in range(3)) == start  # two threads read ahead of each other
    assert not list((tmp_path / "killed").glob(".*"))


def test_damaged_journal_means_starting_anew(tmp_path, journal_of_three):
    folder = tmp_path / ".c8.building"
    folder.mkdir()
    (folder / "journal.json").write_text('{"done": 6, "names": ["n0"')
    (folder / "images.bin").write_bytes(b"x" * 7)
    large, _ = pyramid(tmp_path, both_sizes)
    np.testing.assert_array_equal(large.images[:, 0, 7, 7], np.arange(10))


def test_key_follows_content_and_settings():
    key = cache_key({"size": 4}, ["a", "b"], ["1", "2"])
    assert key == cache_key({"size": 4}, ["a", "b"], ["1", "2"])
    assert (
        len({key, cache_key({"size": 8}, ["a", "b"], ["1", "2"]), cache_key({"size": 4}, ["a", "b"], ["1", "3"])}) == 3
    )


def test_hashes_follow_the_content_and_are_remembered(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"same")
    memo = tmp_path / "memo" / "hashes.json"
    first = content_hashes(paths, memo)
    assert first[0] == first[1]
    stamp = paths[1].stat()
    paths[1].write_bytes(b"else")
    os.utime(paths[1], ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    second = content_hashes(paths, memo)
    assert second[0] == first[0] and second[1] != first[1]
    assert len(json.loads(memo.read_text())) == 2


def test_file_that_cannot_be_opened_is_hashed_once_it_can(tmp_path, monkeypatch):
    path, memo = tmp_path / "a", tmp_path / "hashes.json"
    path.write_bytes(b"x")
    opened = type(path).open

    def refused(self, *arguments, **named):
        if self == path:
            raise PermissionError(self)
        return opened(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "open", refused)
        assert content_hashes([path], memo) == [f"cannot be opened: {path}"]
    assert content_hashes([path], memo) == [hashlib.sha256(b"x").hexdigest()]
    assert json.loads(memo.read_text()).keys() == {str(path)}


def test_damaged_memory_of_hashes_is_ignored(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    memo = tmp_path / "hashes.json"
    expected = content_hashes([tmp_path / "a"], memo)
    memo.write_text("{ not json")
    assert content_hashes([tmp_path / "a"], memo) == expected


def test_extremes_are_those_of_each_image_also_after_a_kill(tmp_path):
    images = [np.full((1, 2, 2), value, np.uint8) for value in (0, 7)]
    images.append(np.array([[[0, 9], [0, 200]]], np.uint8))

    def build(read):
        return open_or_build([tmp_path / "a"], ["x", "y", "z"], read, [(1, 2, 2)], 8, 0.0)[0].extremes()

    def killed(i):
        if i == 2:
            raise KeyboardInterrupt
        return [images[i]]

    with pytest.raises(KeyboardInterrupt):
        build(killed)
    expected = {"x": (0, 0), "y": (7, 7), "z": (9, 200)}
    assert build(lambda i: [images[i]]) == expected
    (tmp_path / "a" / "extremes.bin").unlink()  # as in caches from before they were noted
    assert build(lambda i: pytest.fail("read again")) == expected
