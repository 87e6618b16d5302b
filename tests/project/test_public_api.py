"""The public surface: what is public, that it is documented, and what an import costs."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import balanced_sam
from balanced_sam import torchmetrics as region_metrics

PACKAGE = Path(balanced_sam.__file__).parent
EXTRA_MODULES = {"torchmetrics"}
PUBLIC = {name: getattr(balanced_sam, name) for name in balanced_sam.__all__} | {
    "torchmetrics.RegionMetrics": region_metrics.RegionMetrics
}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if not inspect.isclass(value)}


def own_members(owner: type) -> dict[str, Any]:
    """Return the public methods and properties that the class itself defines."""
    return {
        name: inspect.getattr_static(owner, name)
        for name in vars(owner)
        if not name.startswith("_")
        and (
            isinstance(vars(owner)[name], (property, classmethod, staticmethod))
            or inspect.isfunction(vars(owner)[name])
        )
    }


def unwrap(member: Any) -> Callable[..., Any]:
    """Return the plain function behind a decorated one."""
    function = getattr(member, "__func__", member)
    return inspect.unwrap(function)


MEMBERS = {
    f"{name}.{member}": value
    for name, owner in CLASSES.items()
    for member, value in own_members(owner).items()
}
METHODS = {name: value for name, value in MEMBERS.items() if not isinstance(value, property)}
CALLABLES = FUNCTIONS | CLASSES | METHODS
WITH_EXAMPLE: dict[str, Any] = FUNCTIONS | CLASSES
WITH_EXAMPLE |= {name: value for name, value in METHODS.items() if isinstance(value, classmethod)}
WITH_EXAMPLE["BalancedSAM.perturbed"] = balanced_sam.BalancedSAM.perturbed


def signature(value: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function, or of what makes an object of a class."""
    return inspect.signature(unwrap(value.__init__ if inspect.isclass(value) else value))


def syntax(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def test_all_is_sorted_and_without_repetition() -> None:
    assert balanced_sam.__all__ == sorted(set(balanced_sam.__all__))


def test_all_equals_the_public_names_of_the_package() -> None:
    imported = {
        alias.asname or alias.name
        for node in ast.walk(syntax(PACKAGE / "__init__.py"))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(balanced_sam.__all__) == imported
    present = {
        name
        for name, value in vars(balanced_sam).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert present == imported


def test_init_is_docstring_imports_version_and_all_and_nothing_else() -> None:
    docstring, *imports, version, last = syntax(PACKAGE / "__init__.py").body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    assert isinstance(docstring.value.value, str)
    assert imports
    assert all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in imports)
    for node, name in ((version, "__version__"), (last, "__all__")):
        assert isinstance(node, ast.Assign)
        assert [target.id for target in node.targets if isinstance(target, ast.Name)] == [name]


def test_version_is_that_of_the_package() -> None:
    assert balanced_sam.__version__ == metadata.version("balanced-sam")


def test_every_module_but_the_extra_one_is_private() -> None:
    modules = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert modules
    assert {name for name in modules if not name.startswith("_")} == EXTRA_MODULES
    assert not [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", [*PUBLIC, *MEMBERS])
def test_public_name_has_a_docstring_of_its_own(name: str) -> None:
    value = (PUBLIC | MEMBERS)[name]
    docstring = (value if inspect.isclass(value) else unwrap(value)).__doc__
    assert docstring
    # That is how a dataclass begins what it writes itself.
    assert not docstring.startswith(f"{name}(")


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring_explains_each_parameter(name: str) -> None:
    value = CALLABLES[name]
    docstring = (value if inspect.isclass(value) else unwrap(value)).__doc__
    explained = {line.partition(":")[0].strip(" *") for line in docstring.splitlines()}
    assert signature(value).parameters.keys() - {"self", "cls"} <= explained


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_public_function_or_class_has_an_example_with_its_imports(name: str) -> None:
    docstring = inspect.getdoc(WITH_EXAMPLE[name])
    # Under this heading the site shows it as a block of code.
    _, heading, example = docstring.partition("\nExample:\n    >>> ")
    assert heading
    owner = name.removeprefix("torchmetrics.").partition(".")[0]
    made_by = {"RegionReport": "region_report"}.get(owner, owner)
    assert re.search(rf"from balanced_sam\S* import .*\b{made_by}\b", example)


@pytest.mark.parametrize("name", CALLABLES)
def test_optional_parameters_are_keyword_only_unless_the_base_class_says_otherwise(
    name: str,
) -> None:
    value = CALLABLES[name]
    # These stand in for torch's own or torchmetrics', which take them by position, or come next to
    # the targets.
    expected = {
        "TargetBins.from_targets": ["bins"],
        "TargetGrid.from_targets": ["bins"],
        "TargetWeights.from_targets": ["bins"],
        "BalancedSAM.step": ["closure"],
        "BalancedSAM.zero_grad": ["set_to_none"],
        "LambdaRho": ["last_epoch"],
        "torchmetrics.RegionMetrics.plot": ["val", "ax"],
    }.get(name, [])
    assert [
        parameter.name
        for parameter in signature(value).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is not parameter.empty
    ] == expected


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Return the modules present in a fresh interpreter after each of three imports in a row."""
    names = ("torch", "balanced_sam", "balanced_sam.torchmetrics")
    script = "import sys\n" + "\n".join(f"import {name}; print(*sys.modules)" for name in names)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    return {name: set(line.split()) for name, line in zip(names, lines, strict=True)}


def test_import_loads_nothing_but_torch_and_the_standard_library(
    loaded: dict[str, set[str]],
) -> None:
    added = {name.partition(".")[0] for name in loaded["balanced_sam"] - loaded["torch"]}
    assert "balanced_sam" in added
    assert added <= {"balanced_sam", "torch", *sys.stdlib_module_names}


def test_import_loads_no_extra_and_no_heavy_library(loaded: dict[str, set[str]]) -> None:
    heavy = {"torchmetrics", "lightning", "scipy", "matplotlib", "pandas", "accelerate", "sklearn"}
    assert not heavy & {name.partition(".")[0] for name in loaded["balanced_sam"]}


def test_import_does_not_load_distributed_tensors(loaded: dict[str, set[str]]) -> None:
    assert "torch.distributed.tensor" not in loaded["balanced_sam"] - loaded["torch"]


def test_extra_module_is_imported_by_its_own_name_only(loaded: dict[str, set[str]]) -> None:
    extra = {"balanced_sam.torchmetrics", "torchmetrics"}
    assert not extra & loaded["balanced_sam"]
    assert extra <= loaded["balanced_sam.torchmetrics"]


def test_public_name_is_the_same_object_in_the_module_it_comes_from() -> None:
    for name in balanced_sam.__all__:
        module = importlib.import_module(getattr(balanced_sam, name).__module__)
        assert module.__name__.startswith("balanced_sam._")
        assert getattr(module, name) is getattr(balanced_sam, name)
