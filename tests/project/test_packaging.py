"""Wheel and source distribution: what they hold and promise, and that they can be made again."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from readme_renderer.markdown import render

ROOT = Path(__file__).parents[2]
# Of the library alone.
TESTS = [
    "tests/*.py",
    *(f"tests/{folder}/*" for folder in ("support", "optimizer", "targets", "metrics")),
    "tests/distributed/*",
    "tests/project/test_arguments.py",
    "tests/project/test_public_api.py",
]


def run(*command: str, **options: object) -> str:
    """Return what a module of this Python prints."""
    result = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(source: Path, folder: Path) -> dict[str, Path]:
    """Build the sdist, and the wheel from it, with the backend at hand: nothing is downloaded."""
    run("build", "--no-isolation", "--outdir", str(folder), str(source))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built: dict[str, Path]) -> Path:
    return built["wheel"]


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
        # Some packages take newer Pythons only.
        marker = r"(python_version >= \"3\.\d+\" and )?extra == \"[\w-]+\""
        assert re.fullmatch(marker, str(requirement.marker))
        newest = {"python_version": "3.14"}
        assert any(requirement.marker.evaluate({"extra": extra} | newest) for extra in extras)


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
    assert metadata["Summary"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    version = metadata["Version"]
    assert str(Version(version)) == version
    assert wheel.name.split("-")[1] == version


def test_hosted_tests_take_each_python_of_the_classifiers_and_the_lowest_torch(
    metadata: Message,
) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    matrix = workflow["jobs"]["library"]["strategy"]["matrix"]
    classifiers = metadata.get_all("Classifier", [])
    pythons = re.findall(
        r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(classifiers), re.M
    )
    assert matrix["python"] == pythons
    (torch,) = (r for r in requirements(metadata) if r.name == "torch")
    (lowest,) = (specifier.version for specifier in torch.specifier)
    assert {"python": pythons[0], "torch": f"torch=={lowest}.0"} in matrix["include"]


def test_changelog_begins_with_the_version(metadata: Message) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert first is not None
    assert first[1] == metadata["Version"]


def test_metadata_lead_to_source_documentation_and_paper(metadata: Message) -> None:
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert {"Source", "Documentation", "Issues", "Changelog", "Paper"} == urls.keys()
    assert all(url.startswith("https://") for url in urls.values())
    assert metadata["Keywords"]


def test_both_pass_the_strict_check_of_the_package_index(built: dict[str, Path]) -> None:
    assert run("twine", "check", "--strict", *map(str, built.values())).count("PASSED") == 2


def test_readme_is_rendered_as_on_the_package_index(metadata: Message) -> None:
    """The index shows it without the files beside it, and without a renderer of equations."""
    page = render(str(metadata.get_payload()))
    assert page is not None
    assert "Balanced Sharpness-Aware Minimization" in page
    assert page.count("<table>") == 1
    addresses = re.findall(r'(?:href|src)="([^"]*)"', page)
    home = f"https://github.com/balanced-sam/balanced-sam/blob/v{metadata['Version']}/"
    raw = home.replace("github.com", "raw.githubusercontent.com").replace("/blob", "")
    files = []
    for address in addresses:
        assert address.startswith(("https://", "#")), address
        if address.startswith((home, raw)):
            files.append(address.removeprefix(home).removeprefix(raw).partition("#")[0])
    assert len(files) > 10
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert "$" not in re.sub(r"<(pre|code)\b.*?</\1>", "", page, flags=re.DOTALL)


def test_sdist_holds_the_library_its_tests_and_the_examples(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        paths = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("src/**/*", *TESTS, "examples/*.py")
        for path in ROOT.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }
    other = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml", "PKG-INFO"}
    assert paths == expected | other | {".gitignore"}


def test_another_build_has_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    """From a copy elsewhere, whose files are of another day and another owner's habits."""
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("src", "tests", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for path in sorted(copy.rglob("*.*")):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o700 if path.is_dir() else 0o600)
    again = build(copy, tmp_path / "dist")
    for kind, path in built.items():
        assert again[kind].name == path.name
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, again[kind])]
        assert digests[0] == digests[1], kind
