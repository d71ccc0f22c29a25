"""Files of the library: written whole, with the modes that users set; read as they were written, or refused in our words."""

import errno
import io
import os
import pickle
import stat
import subprocess
import sys
import warnings
import zipfile

import jax
import numpy as np
import optax
import pytest
from _fit_fakes import Objective

from lapilli import inference
from lapilli.inference.fitting.storage import _archive

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
HEADER = {"format": "mine", "numbers": [1, 2.5, None]}
ARRAYS = {
    "a/b": np.arange(7.0),
    "a/c": np.arange(7.0) + 1,
    "flag": np.array(True),
    "none": np.zeros((0, 3), np.int8),
    "table": np.asfortranarray(np.arange(6, dtype=np.uint32).reshape(2, 3)),
}


def run(path, **options):
    options = {"num_steps": 6, "key": jax.random.key(0), "progress": False} | options
    return inference.fit(Objective(), optax.adam(1e-2), (X,), checkpoint=path, **options)


def read(path):
    return _archive.read(path, "file of mine", "mine")


@pytest.fixture
def path(tmp_path):
    _archive.write(tmp_path / "file.npz", HEADER, ARRAYS)
    return tmp_path / "file.npz"


def is_as_written(path):
    header, arrays = read(path)
    return header["numbers"] == HEADER["numbers"] and {
        n: (x.dtype, x.shape, x.tobytes()) for n, x in arrays.items()
    } == {n: (x.dtype, x.shape, x.tobytes()) for n, x in ARRAYS.items()}


def test_a_file_gives_back_what_was_written(path):
    assert is_as_written(path)
    assert np.load(path)["a/b"][2] == 2.0


def rewritten(content, change, compression=zipfile.ZIP_STORED):
    """An archive whose entries `change` has changed, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    change(entries)
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w", compression) as archive:
        for name, raw in entries.items():
            archive.writestr(name, raw)
    return new.getvalue()


def mutated(content, rng):
    """A file that something happened to."""
    kind = rng.integers(8)
    names = [f"{name}.npy" for name in [*ARRAYS, "header"]]
    one, other = rng.choice(names, 2, replace=False)

    def swap(entries):
        entries[one], entries[other] = entries[other], entries[one]

    def flip_inside(entries):
        raw = bytearray(entries[one])
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        entries[one] = bytes(raw)

    if kind == 0:
        return rewritten(content, swap)
    if kind == 1:
        return rewritten(content, lambda e: e.pop(one))
    if kind == 2:
        return rewritten(content, lambda e: e.update({one: e[other]}))
    if kind == 3:
        return rewritten(content, flip_inside)
    if kind == 4:
        return content[: rng.integers(len(content))]
    raw = bytearray(content)
    if kind == 5:
        begin = rng.integers(len(raw))
        raw[begin : begin + 40] = rng.bytes(40)
    else:
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    return bytes(raw)


def check_mutations(path, number, seed):
    content, refused = path.read_bytes(), 0
    rng = np.random.default_rng(seed)
    for _ in range(number):
        path.write_bytes(mutated(content, rng))
        try:
            assert is_as_written(path)
        except ValueError as err:
            assert f"'{path}' " in str(err)
            assert "Delete it or choose another path." in str(err) or "has the format" in str(err)
            refused += 1
    return refused


def test_a_changed_file_is_refused_or_holds_what_was_written(path):
    assert check_mutations(path, 300, 0) > 200


@pytest.mark.slow  # what takes long is their number
def test_many_changed_files_are_refused_or_hold_what_was_written(path):
    assert check_mutations(path, 10_000, 1) > 5_000


@pytest.mark.slow  # 200 reads of a checkpoint into a run
def test_a_changed_checkpoint_is_refused_or_resumed_to_the_bit(tmp_path):
    path, rng = tmp_path / "run.npz", np.random.default_rng(0)
    run(path)
    content, whole = path.read_bytes(), run(None)
    for _ in range(200):
        raw = bytearray(content)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(raw[: len(raw) if rng.random() < 0.7 else rng.integers(len(raw))]))
        try:
            again = run(path)
        except ValueError as err:
            assert "checkpoint" in str(err)
        else:
            np.testing.assert_array_equal(again.history["value"], whole.history["value"])
            assert all(map(np.array_equal, *(jax.tree.leaves(f.params) for f in (again, whole))))


def bomb():
    """Two megabytes that are two gigabytes of zeros: compressed, and by an array's header."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as entry,
    ):
        np.lib.format.write_array_header_1_0(
            entry, {"shape": (300_000_000,), "fortran_order": False, "descr": "<f8"}
        )
        for _ in range(100):
            entry.write(bytes(2**20))
    return file.getvalue()


def claims():
    def change(entries):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            stream, {"shape": (10**12,), "fortran_order": False, "descr": "<f8"}
        )
        entries["flag.npy"] = stream.getvalue() + bytes(100)

    return change


def objects(entries):
    stream = io.BytesIO()
    np.save(stream, np.array([print], object), allow_pickle=True)
    entries["flag.npy"] = stream.getvalue()


FOREIGN = {
    "empty": (lambda content: b"", "it is empty"),
    "text": (lambda content: b"step,value\n1,2\n", "it is text"),
    "pickle": (lambda content: pickle.dumps({"a": 1}), "it is a pickle, which is never read"),
    "array": (lambda content: b"\x93NUMPY" + content, "it is a single NumPy array"),
    "netCDF": (lambda content: b"\x89HDF\r\n" + content, "it is an HDF5 or netCDF file"),
    "noise": (lambda content: bytes([0, 200, 3]), "it is of another kind"),
    "cut": (lambda content: content[:700], "it is a damaged or foreign archive"),
    "compressed": (
        lambda content: rewritten(content, lambda e: None, zipfile.ZIP_DEFLATED),
        "entries .*'a/b.npy'.* are compressed",
    ),
    "bomb": (lambda content: bomb(), "are compressed"),
    "claims": (
        lambda content: rewritten(content, claims()),
        "'flag' is no array of numbers of the size that it claims",
    ),
    "objects": (
        lambda content: rewritten(content, objects),
        "'flag' is no array of numbers of the size that it claims",
    ),
    "extra": (
        lambda content: rewritten(content, lambda e: e.update({"more.npy": e["flag.npy"]})),
        r"entries that do not belong to it, \['more'\]",
    ),
    "missing": (
        lambda content: rewritten(content, lambda e: e.pop("flag.npy")),
        r"it lacks its entries \['flag'\]",
    ),
    "no header": (
        lambda content: rewritten(content, lambda e: e.pop("header.npy")),
        "it has no header",
    ),
    "no digest": (
        lambda content: rewritten(content, lambda e: e.pop("digest.npy")),
        "its content has changed since it was written",
    ),
    "swapped": (
        lambda content: rewritten(
            content, lambda e: e.update({"a/b.npy": e["a/c.npy"], "a/c.npy": e["a/b.npy"]})
        ),
        "its content has changed since it was written",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_another_file_is_told_in_words(path, name):
    change, message = FOREIGN[name]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"file.npz' is no file of mine: .*{message}.*Delete it"):
        read(path)


def test_entries_that_lie_over_each_other_are_refused(path):
    """Many names for the same bytes: what they claim together is more than the file has."""
    content = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        info = archive.getinfo("a/b.npy")
        for i in range(200):
            twin = zipfile.ZipInfo(f"twin{i}.npy")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(twin, name, getattr(info, name))
            archive.filelist.append(twin)
        archive._didModify = True
    assert path.stat().st_size < 100 * len(content)
    with pytest.raises(
        ValueError, match="is no file of mine: it.* claim .* bytes, and it has|damaged"
    ):
        read(path)


def test_what_is_no_file_is_told_in_words(tmp_path):
    for make, message in [
        (lambda p: p.mkdir(), "'.*there' is no file of mine: it is a directory"),
        (os.mkfifo, "'.*there' is no file of mine: it is no regular file"),
    ]:
        make(tmp_path / "there")
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "there")
        with pytest.raises(OSError, match="'.*there' could not be written: .*choose a path"):
            _archive.write(tmp_path / "there", HEADER, ARRAYS)
        (tmp_path / "there").rmdir() if (tmp_path / "there").is_dir() else None
    with pytest.raises(
        FileNotFoundError, match="'.*none' cannot be read as a file of mine: No such"
    ):
        read(tmp_path / "none")


def test_a_checkpoint_that_can_never_be_written_is_refused_before_the_run(tmp_path):
    (tmp_path / "text").write_text("")
    with pytest.raises(OSError, match="'.*run.npz' could not be written: Not a directory"):
        run(tmp_path / "text" / "run.npz")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        _archive.write(tmp_path / "new", HEADER, ARRAYS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    (tmp_path / "new").chmod(0o640)
    _archive.write(tmp_path / "new", HEADER, ARRAYS)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_links_are_followed(tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "link"
    link.symlink_to("far/file")  # to nothing yet
    for _ in range(2):
        _archive.write(link, HEADER, ARRAYS)
        assert link.is_symlink() and is_as_written(link) and is_as_written(tmp_path / "far/file")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["far", "file", "link"]


def full(number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="file.npz' could not be written: No space left.*unchanged"):
        _archive.write(path, {"format": "other"}, {})
    assert is_as_written(path) and list(path.parent.iterdir()) == [path]


LARGE = """
import resource, sys
import numpy as np
from lapilli.inference.fitting.storage import _archive
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    _archive.write(sys.argv[1], {"format": "mine"}, {"a": np.zeros(10**6)})
except OSError as err:
    print(err)
"""


@pytest.mark.slow  # a process of its own
def test_a_file_that_is_too_large_leaves_the_old_one(path):
    said = subprocess.run(
        [sys.executable, "-c", LARGE, path], capture_output=True, text=True, check=True
    )
    assert "could not be written: File too large" in said.stdout
    assert is_as_written(path) and list(path.parent.iterdir()) == [path]


def test_what_a_kill_left_is_used_up(path):
    left = path.with_name(f".{path.name}.lapilli-tmp")
    left.write_bytes(b"half of it")
    _archive.write(path, HEADER, ARRAYS)
    assert is_as_written(path) and not left.exists()


def test_a_failed_checkpoint_keeps_the_fit(tmp_path, monkeypatch):
    whole = run(None)
    monkeypatch.setattr(os, "fsync", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = run(tmp_path / "run.npz", checkpoint_every=3)
    said = [str(w.message) for w in caught]
    assert len(said) == 2 and "no checkpoint of step 3 was written. '" in said[0]
    assert "No space left" in said[1] and "its fit is returned" in said[1]
    np.testing.assert_array_equal(fit.history["value"], whole.history["value"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_goes_away_keeps_the_fit(tmp_path):
    path = tmp_path / "deep" / "run.npz"

    def remove(info):
        if info.step == 2:
            path.parent.rename(tmp_path / "gone")

    with pytest.warns(UserWarning, match="no checkpoint of step 6 .*No such file or directory"):
        assert run(path, callbacks=[remove], callback_every=2).steps == 6
