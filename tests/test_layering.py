"""Who may import whom: the core stands alone, and nothing but the entry points knows the command line."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "dspkd": ROOT / "dspkd",
    "dspkd_export": ROOT / "export" / "dspkd_export",
    "dspkd_bench": ROOT / "benchmarks" / "dspkd_bench",
}


def imported(source, package=""):
    """Every module that a piece of source imports, anywhere in it, also inside functions and by name at run time."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            # `from dspkd import cli` imports dspkd.cli, too.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__", "find_spec"):
                yield str(node.args[0].value)


def modules():
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield path, ".".join([package, *parts[:-1]]), ".".join([package, *parts]).removesuffix(".__init__")


def within(name, package):
    return name == package or name.startswith(package + ".")


MODULES = list(modules())


def test_there_is_something_to_look_at():
    names = {name for _, _, name in MODULES}
    assert {"dspkd.train.run", "dspkd.cli", "dspkd_export.export", "dspkd_bench.bench"} <= names


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    import dspkd_export.verify", "dspkd_export.verify"),
        ("from dspkd_bench import report", "dspkd_bench"),
        ("from dspkd import cli", "dspkd.cli"),
        ("from . import cli", "dspkd.cli"),
        ("from .cli.app import main", "dspkd.cli.app"),
        ("import importlib\nimportlib.import_module('dspkd_export')", "dspkd_export"),
    ],
)
def test_the_search_finds_every_kind_of_import(source, expected):
    assert expected in set(imported(source, package="dspkd"))


def test_the_core_imports_neither_export_nor_bench():
    offenders = [
        f"{name} imports {other}"
        for path, package, name in MODULES
        if within(name, "dspkd") and not within(name, "dspkd.cli")
        for other in imported(path.read_text(encoding="utf-8"), package)
        if within(other, "dspkd_export") or within(other, "dspkd_bench")
    ]
    assert offenders == []


def test_nobody_but_the_entry_points_imports_the_command_line():
    offenders = [
        f"{name} imports {other}"
        for path, package, name in MODULES
        if not within(name, "dspkd.cli") and name != "dspkd.__main__"
        for other in imported(path.read_text(encoding="utf-8"), package)
        if within(other, "dspkd.cli")
    ]
    assert offenders == []


def test_the_entry_point_is_the_command_line():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"dspkd": "dspkd.cli:main"}


def test_the_command_line_is_quick_to_import():
    """`dspkd --help` must not wait for torch."""
    code = "import sys, dspkd.cli; print([m for m in ('torch', 'timm', 'numpy', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
