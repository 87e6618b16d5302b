"""The wheel: what is in it, and what its metadata promise."""

import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the build backend at hand: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: list[str]) -> Message:
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(name).decode())


def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def test_wheel_is_pure_python(wheel: Path) -> None:
    assert re.fullmatch(r"balanced_sam-[\w.]+-py3-none-any\.whl", wheel.name)


def test_wheel_holds_the_package_and_its_metadata_only(names: list[str]) -> None:
    folders = {name.partition("/")[0] for name in names}
    assert "balanced_sam" in folders
    (other,) = folders - {"balanced_sam"}
    assert re.fullmatch(r"balanced_sam-[\w.]+\.dist-info", other)


def test_wheel_holds_every_source_file_and_no_other(names: list[str]) -> None:
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("balanced_sam/")} == expected
    assert "balanced_sam/py.typed" in expected


def test_wheel_requires_torch_and_numpy_only(metadata: Message) -> None:
    core = {requirement.name for requirement in requirements(metadata) if not requirement.marker}
    assert core == {"torch", "numpy"}


def test_every_other_requirement_belongs_to_an_extra(metadata: Message) -> None:
    extras = metadata.get_all("Provides-Extra", [])
    assert "torchmetrics" in extras
    optional = [requirement for requirement in requirements(metadata) if requirement.marker]
    assert optional
    for requirement in optional:
        assert re.fullmatch(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker))
        assert any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def test_torchmetrics_extra_brings_torchmetrics(metadata: Message) -> None:
    brought = {
        requirement.name
        for requirement in requirements(metadata)
        if requirement.marker and requirement.marker.evaluate({"extra": "torchmetrics"})
    }
    assert brought == {"torchmetrics"}


def test_wheel_runs_on_python_3_10_and_newer_only(metadata: Message) -> None:
    specifiers = SpecifierSet(metadata["Requires-Python"])
    versions = ("3.9.20", "3.10.0", "3.11.7", "3.12.0", "3.13.0", "3.14.0")
    assert [version in specifiers for version in versions] == [False, *[True] * 5]


def test_wheel_carries_the_licence(wheel: Path, names: list[str], metadata: Message) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    (name,) = (name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_metadata_name_the_project_and_a_valid_version(wheel: Path, metadata: Message) -> None:
    assert metadata["Name"] == "balanced-sam"
    version = metadata["Version"]
    assert str(Version(version)) == version
    assert wheel.name.split("-")[1] == version


def test_metadata_show_the_readme(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    body = str(metadata.get_payload())
    assert body.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert metadata["Summary"]
