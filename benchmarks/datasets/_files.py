"""Files of a data set: read tables, check images once, fetch and unpack, sum up for the record."""

import csv
import hashlib
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

Row = tuple[str, dict[str, str]]
"""Where a row stands, for messages, such as "agedb.csv, row 17"; and its values by column."""


def read_csv(path: Path, columns: Sequence[str], *, header: bool = True) -> list[Row]:
    """Return the rows of a table.

    Args:
        path: A file of comma-separated values.
        columns: The columns that must be there; all there are, in their order, without a header.
        header: Whether the first row names the columns.

    Returns:
        The rows, numbered as an editor numbers the lines: the one below a header is row 2.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text, lacks a column, has a row of another length, or no row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected the table {path}, but there is no such file.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = _read_rows(file, path, None if header else columns)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected comma-separated values in {path}, but got: {error}") from None
    if not rows:
        raise ValueError(f"Expected at least one row in {path}, but got none.")
    missing = [column for column in columns if column not in rows[0][1]]
    if missing:
        raise ValueError(
            f"Expected the columns {list(columns)} in {path}, but got {list(rows[0][1])}: "
            f"{missing} not among them."
        )
    return rows


def _read_rows(file: Iterable[str], path: Path, columns: Sequence[str] | None) -> list[Row]:
    """Return the rows of an open table; its first line names the columns if they are None."""
    reader = csv.DictReader(file, fieldnames=columns)
    rows = []
    for row in reader:
        place = f"{path.name}, row {reader.line_num}"
        # A longer row has an entry None of what is left over, a shorter one lacks values.
        if None in row or None in row.values():
            raise ValueError(f"Expected {len(reader.fieldnames or ())} values in {place} ({path}).")
        rows.append((place, row))
    return rows


def check_images(
    root: Path,
    files: Sequence[tuple[str, str]],
    check: Callable[[Image.Image], None] = lambda image: None,
) -> None:
    """Raise unless every image can be decoded from its first to its last pixel.

    What was found whole is not read again as long as no file changes: a stamp below ``root``
    remembers paths, sizes and times. Where none can be written, each run checks anew.

    Args:
        root: Folder of the data.
        files: Of each image the path below ``root``, and where that path stands, for the message.
        check: Raises ``ValueError`` if a decoded image is not as it should be.

    Raises:
        FileNotFoundError: If an image is missing.
        ValueError: If one is not readable, truncated, or refused by ``check``.
    """
    digest = hashlib.sha256()
    for path, place in files:
        try:
            status = (root / path).stat()
        except OSError:
            raise FileNotFoundError(
                f"Expected an image at {root / path} ({place}), but there is no such file."
            ) from None
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    stamp = root / f".checked-{digest.hexdigest()[:32]}"
    if stamp.exists():
        return
    _decode_all(root, files, check)
    try:
        stamp.write_text(f"{len(files)} images were decoded whole.\n")
    except OSError:
        # A folder that is read only costs time, no more.
        return


def _decode_all(
    root: Path, files: Sequence[tuple[str, str]], check: Callable[[Image.Image], None]
) -> None:
    """Decode and check all images on all cores: Pillow lets other threads run meanwhile."""

    def decode(file: tuple[str, str]) -> None:
        path, place = file
        try:
            with Image.open(root / path) as image:
                image.load()
                check(image)
        # Each of Pillow's decoders has exceptions of its own.
        except Exception as error:
            raise ValueError(
                f"Expected a readable image at {root / path} ({place}), but got: {error}"
            ) from None

    with ThreadPool(os.cpu_count()) as pool:
        checked = pool.imap(decode, files, chunksize=16)
        for _ in tqdm(checked, "Checking images", len(files), delay=2, leave=False):
            pass


def fetch(url: str, path: Path, *, git_blob: str | None = None, retries: int = 5) -> None:
    """Download a file unless it is there, showing progress.

    What an interrupted download has brought stays beside ``path``, and the next call goes on there.

    Args:
        url: Plain, or of a file on Google Drive.
        path: Where the file is to lie.
        git_blob: Its checksum in git, SHA-1 in hexadecimal digits, where it is known.
        retries: How often to go on after the connection broke, with growing pauses.

    Raises:
        ConnectionError: If the download fails.
        ValueError: If the file's checksum is another one.
    """
    # Only those who download need gdown.
    import gdown

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            gdown.download(url, str(path), resume=True, retries=retries, use_cookies=False)
        except (OSError, gdown.exceptions.DownloadError) as error:
            raise ConnectionError(
                f"Expected to fetch {path} from {url}, but got: {error}"
            ) from error
    if git_blob is not None and (found := _git_blob(path)) != git_blob:
        raise ValueError(
            f"Expected the published file with the git checksum {git_blob} at {path}, but got "
            f"{found}. A generated miniature needs no `prepare`; otherwise delete the file to "
            f"fetch it anew from {url}."
        )


def _git_blob(path: Path) -> str:
    """Return the checksum of a file in git."""
    content = path.read_bytes()
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def unpack(archive: Path, folder: Path, *, without: str = "") -> None:
    """Unpack a tar or zip archive into a folder, whose other files stay.

    Args:
        archive: The file.
        folder: Where its files go; made if there is none.
        without: What their paths in a zip archive lose at their start, such as ``"data/"``.

    Raises:
        ValueError: If it is neither, is damaged, or holds a path that leads out of the folder.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for member in packed.infolist():
                    member.filename = member.filename.removeprefix(without)
                    _check_inside(folder, member.filename)
                    if member.filename:
                        packed.extract(member, folder)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"Expected a whole and safe tar or zip archive at {archive}, but got: {error}"
        ) from error


def _check_inside(folder: Path, name: str) -> None:
    """Raise if a path leads out of the folder."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise zipfile.BadZipFile(f"the path {name!r} leads out of the folder")


def checksum(root: Path, tables: Sequence[str], files: Iterable[str]) -> str:
    """Return a SHA-256 of a data set, all paths being below ``root``.

    It covers the bytes of the tables, but only paths and sizes of the files: to read the tens of
    gigabytes of a data set before each run would take longer than the check is worth.
    """
    digest = hashlib.sha256()
    for table in tables:
        content = hashlib.sha256((root / table).read_bytes()).hexdigest()
        digest.update(f"{table}\0{content}\n".encode())
    for path in files:
        digest.update(f"{path}\0{(root / path).stat().st_size}\n".encode())
    return digest.hexdigest()
