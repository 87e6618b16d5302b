"""Tables, the check of images, downloads and archives."""

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.datasets import _files as files
from benchmarks.datasets._files import check_images, checksum, fetch, read_csv, unpack

BLOCK = 512 * 1024
"""What the downloader reads at a time."""
CONTENT = bytes(range(256)) * (3 * BLOCK // 256)
"""What the server sends."""
BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


def write_image(path: Path, *, size: int = 64) -> Path:
    Image.linear_gradient("L").resize((size, size)).save(path)
    return path


def test_read_csv_numbers_rows_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('age,path\n3,a.jpg\n\n4,"b,c.jpg"\n')
    assert read_csv(path, ("path", "age")) == [
        ("t.csv, row 2", {"age": "3", "path": "a.jpg"}),
        ("t.csv, row 4", {"age": "4", "path": "b,c.jpg"}),
    ]


def test_read_csv_without_header_starts_at_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a.jpg,a.png\n")
    rows = read_csv(path, ("image", "depth"), header=False)
    assert rows == [("t.csv, row 1", {"image": "a.jpg", "depth": "a.png"})]


def test_read_csv_ignores_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfage\n3\n")
    assert read_csv(path, ("age",)) == [("t.csv, row 2", {"age": "3"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"at least one row in .*t\.csv, but got none"),
        (b"age,path\n", r"at least one row in .*t\.csv, but got none"),
        (b"age,file\n3,a.jpg\n", r"columns \['age', 'path'\] in .*t\.csv, but got \['age', 'file'"),
        (b"age,path\n3,a.jpg\n4\n", r"2 values in t\.csv, row 3"),
        (b"age,path\n3,a.jpg,train\n", r"2 values in t\.csv, row 2"),
        (b"age,path\n3,\xff.jpg\n", r"comma-separated values in .*t\.csv, but got: .*utf-8"),
        (b'age,path\n3,"' + b"a" * 200_000, r"comma-separated values in .*t\.csv, but got: field"),
    ],
)
def test_read_csv_error_names_file_and_row(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_csv(tmp_path / "t.csv", ("age", "path"))


def test_read_csv_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected the table .*t\.csv"):
        read_csv(tmp_path / "t.csv", ("age",))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def overwrite(path: Path) -> None:
    path.write_text("not an image")


@pytest.mark.parametrize(
    ("damage", "name", "error", "message"),
    [
        (truncate, "x.jpg", ValueError, r"readable image at .*x\.jpg \(t\.csv, row 2\).*truncated"),
        (truncate, "x.png", ValueError, r"readable image at .*x\.png \(t\.csv, row 2\)"),
        (overwrite, "x.jpg", ValueError, r"image at .*x\.jpg \(t\.csv, row 2\).*cannot identify"),
        (Path.unlink, "x.jpg", FileNotFoundError, r"image at .*x\.jpg \(t\.csv, row 2\).*no such"),
    ],
)
def test_check_images_names_the_image_and_its_row(
    tmp_path: Path,
    damage: Callable[[Path], None],
    name: str,
    error: type[Exception],
    message: str,
) -> None:
    write_image(tmp_path / "good.jpg")
    damage(write_image(tmp_path / name, size=256))
    with pytest.raises(error, match=message):
        check_images(tmp_path, [("good.jpg", "t.csv, row 1"), (name, "t.csv, row 2")])
    assert not list(tmp_path.glob(".checked*"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the images that are decoded."""
    paths: list[str] = []
    original = files.Image.open

    def spy(path: Path) -> Image.Image:
        paths.append(path.name)
        return original(path)

    monkeypatch.setattr(files.Image, "open", spy)
    return paths


def test_check_images_decodes_each_image_once_until_a_file_changes(
    tmp_path: Path, decoded: list[str]
) -> None:
    images = [("a.jpg", "row 1"), ("b.jpg", "row 2")]
    for name, _ in images:
        write_image(tmp_path / name)
    for _ in range(2):
        check_images(tmp_path, images)
        assert sorted(decoded) == ["a.jpg", "b.jpg"]
    write_image(tmp_path / "b.jpg", size=32)
    check_images(tmp_path, images)
    assert sorted(decoded) == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]


def test_check_images_says_what_the_caller_does_not_accept(tmp_path: Path) -> None:
    def refuse_small(image: Image.Image) -> None:
        if image.width < 64:
            raise ValueError(f"{image.width} pixels only")

    for name, size in (("a.jpg", 64), ("b.jpg", 32)):
        write_image(tmp_path / name, size=size)
    check_images(tmp_path, [("a.jpg", "row 1")], refuse_small)
    with pytest.raises(ValueError, match=r"b\.jpg \(row 2\), but got: 32 pixels only"):
        check_images(tmp_path, [("a.jpg", "row 1"), ("b.jpg", "row 2")], refuse_small)


def test_check_images_sees_a_damage_that_keeps_the_size(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg")
    check_images(tmp_path, [("a.jpg", "row 1")])
    before = path.stat()
    path.write_bytes(b"\0" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(ValueError, match=r"a\.jpg \(row 1\)"):
        check_images(tmp_path, [("a.jpg", "row 1")])


def test_check_images_checks_anew_where_no_stamp_can_be_written(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.jpg")

    def refuse(path: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    for _ in range(2):
        check_images(tmp_path, [("a.jpg", "row 1")])
    assert decoded == ["a.jpg", "a.jpg"]


class Server(BaseHTTPRequestHandler):
    """Serve CONTENT, and parts of it, but break off the first answer where that is asked for."""

    requests: list[str | None]
    breaks: bool

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append(wanted)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if wanted:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
        self.end_headers()
        half = len(CONTENT) // 2 if self.breaks and not wanted else len(CONTENT)
        try:
            self.wfile.write(CONTENT[start:half])
        except ConnectionError:
            # A client that wants to resume asks without a range first, and hangs up.
            return

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    """Run a server on this machine; its handler says what it does and was asked for."""
    handler = type("Handler", (Server,), {"requests": [], "breaks": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=partial(running.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", handler
        running.shutdown()
        thread.join()


def test_fetch_makes_the_folder_and_asks_for_nothing_that_is_there(
    tmp_path: Path, server: tuple[str, type[Server]]
) -> None:
    url, handler = server
    path = tmp_path / "folder" / "file.bin"
    for _ in range(2):
        fetch(f"{url}/file.bin", path, git_blob=BLOB)
        assert path.read_bytes() == CONTENT
        assert len(handler.requests) == 1


def test_fetch_goes_on_where_it_was_interrupted(
    tmp_path: Path, server: tuple[str, type[Server]]
) -> None:
    url, handler = server
    handler.breaks = True
    path = tmp_path / "file.bin"
    with pytest.raises(
        ConnectionError, match=r"Expected to fetch .*file\.bin from http.*incomplete"
    ):
        fetch(f"{url}/file.bin", path, retries=0)
    assert not path.exists()
    fetch(f"{url}/file.bin", path, git_blob=BLOB, retries=0)
    # Whole blocks are kept, of the half that came.
    assert handler.requests[-1] == f"bytes={BLOCK}-"
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_fetch_of_what_is_not_there_names_the_url(
    tmp_path: Path, server: tuple[str, type[Server]]
) -> None:
    with pytest.raises(ConnectionError, match=r"from http.*/missing, but got: 404"):
        fetch(f"{server[0]}/missing", tmp_path / "file.bin", retries=0)


def test_fetch_of_another_content_names_both_checksums(
    tmp_path: Path, server: tuple[str, type[Server]]
) -> None:
    with pytest.raises(ValueError, match=f"git checksum {'0' * 40} at .*, but got {BLOB}"):
        fetch(f"{server[0]}/file.bin", tmp_path / "file.bin", git_blob="0" * 40)


def write_zip(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "new")


def write_tar(path: Path, name: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"new"))


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_unpack_leaves_other_files_as_they_are(
    tmp_path: Path, write: Callable[[Path, str], None]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    write(tmp_path / "archive", "deep/new.txt")
    unpack(tmp_path / "archive", folder)
    assert (folder / "old.txt").read_text() == "old"
    assert (folder / "deep" / "new.txt").read_text() == "new"
    assert (folder / "deep" / "new.txt").stat().st_mode & stat.S_IRUSR


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt"])
def test_unpack_refuses_a_path_that_leads_out(
    tmp_path: Path, write: Callable[[Path, str], None], name: str
) -> None:
    write(tmp_path / "archive", name)
    with pytest.raises(ValueError, match=r"archive at .*archive, but got: .*out\.txt"):
        unpack(tmp_path / "archive", tmp_path / "data")
    assert not (tmp_path / "out.txt").exists()


def test_unpack_takes_away_the_start_of_paths(tmp_path: Path) -> None:
    write_zip(tmp_path / "archive", "data/deep/new.txt")
    unpack(tmp_path / "archive", tmp_path / "folder", without="data/")
    assert (tmp_path / "folder" / "deep" / "new.txt").read_text() == "new"


def test_unpack_refuses_a_path_that_leads_out_once_its_start_is_gone(tmp_path: Path) -> None:
    write_zip(tmp_path / "archive", "data/../../out.txt")
    with pytest.raises(ValueError, match=r"out\.txt' leads out"):
        unpack(tmp_path / "archive", tmp_path / "deep" / "folder", without="data/")
    assert not list(tmp_path.glob("**/out.txt"))


def test_unpack_of_no_archive_or_half_a_one_names_it(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    write_tar(tmp_path / "whole", "a.txt")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:60])
    for name in ("text", "half"):
        with pytest.raises(ValueError, match=f"tar or zip archive at .*{name}, but got"):
            unpack(tmp_path / name, tmp_path / "data")


def test_checksum_changes_with_tables_and_with_paths_and_sizes_of_files(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1")
    for name in ("a", "b"):
        (tmp_path / name).write_text("xx")
    whole = partial(checksum, tmp_path, ["t.csv"])
    before = whole(["a"])
    assert whole(["a"]) == before
    assert whole(["b"]) != before
    (tmp_path / "a").write_text("xxx")
    assert whole(["a"]) != before
    (tmp_path / "a").write_text("xx")
    (tmp_path / "t.csv").write_text("2")
    assert whole(["a"]) != before
