"""The house stays in order: layout, sizes, arrows between parts, and words that do not belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "otf_workflows"

TOP = [
    "README.md",
    "LICENSE",
    "CITATION.cff",
    "CHANGELOG.md",
    "pyproject.toml",
    "docker-compose.yml",
    ".ci/run",
    "otf_workflows",
    "flows",
    "tests",
    "deploy",
    "docs",
]
INSIDE = [
    "campaign.py",
    "settings.py",
    "flow.py",
    "reconcile.py",
    "jobs",
    "potentials",
    "exploration",
    "uncertainty.py",
    "calibration.py",
    "selection.py",
    "convergence.py",
    "labelers",
    "training",
    "analysis",
    "schemas",
    "store.py",
    "engine",
    "cli",
    "testing",
    "errors.py",
    "types.py",
    "log.py",
    "py.typed",
]

MOST_LINES = 500

# Put together here, so that this file does not contain them.
FOLDERS = [("work", "main"), ("work", "shared"), ("tmp", "venv"), ("opt", "pypi")]
FORBIDDEN = ["/" + "/".join(parts) for parts in FOLDERS]
FORBIDDEN += ["clau" + "de", "anth" + "ropic", "chat" + "gpt", "open" + "ai", "co" + "pilot"]

UNSAFE = {"eval", "exec"}


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("name", TOP)
def test_part_of_the_house_is_there(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", INSIDE)
def test_part_of_the_package_is_there(name):
    assert (PACKAGE / name).exists()


def test_modules_are_small():
    sizes = {
        str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in modules()
    }
    assert not {name: n for name, n in sizes.items() if n > MOST_LINES}


def test_every_module_says_what_it_is_for():
    silent = [str(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_nothing_of_one_machine_is_in_tracked_files():
    found = []
    for file in tracked():
        if "vendor" in file.parts:
            continue  # the words of others, unchanged: VENDOR.toml holds their hashes
        try:
            text = file.read_text(encoding="utf-8").lower()
        except UnicodeDecodeError:
            continue
        found += [f"{file.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert not found


def test_no_large_or_generated_files_are_tracked():
    for file in tracked():
        assert file.stat().st_size < 5 * 1024**2, file
        assert not {"__pycache__", ".venv", ".otf"} & set(file.relative_to(ROOT).parts)


def test_version_stands_in_one_place():
    import otf_workflows

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"].endswith("__version__")
    assert f"## {otf_workflows.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_licence_is_the_one_that_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "BSD-3-Clause"
    assert (ROOT / "LICENSE").read_text().startswith("BSD 3-Clause License")
    assert "license: BSD-3-Clause" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_loads_and_runs_nothing_unsafe(path):
    source = path.read_text()
    tree = ast.parse(source)
    for call in calls(tree):
        name = ast.unparse(call.func)
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        assert name not in UNSAFE
        assert not re.fullmatch(r"(pickle|cloudpickle|dill)\.loads?", name)
        assert name not in {"os.system", "yaml.load", "yaml.unsafe_load"}
        if name == "torch.load":
            assert ast.unparse(words.get("weights_only", ast.Constant(None))) == "True"
        if "shell" in words:
            assert ast.unparse(words["shell"]) == "False"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", source)


def test_arrows_between_parts_point_one_way():
    script = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    checked = subprocess.run(
        [sys.executable, "-c", script, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_front_door_and_the_command_line_import_nothing_heavy():
    heavy = [
        "torch",
        "chgnet",
        "pymatgen",
        "ase",
        "fireworks",
        "jobflow",
        "pymongo",
        "scipy",
        "sklearn",
        "matplotlib",
    ]
    script = (
        "import sys, otf_workflows, otf_workflows.cli.main; "
        f"print(*sorted(set({heavy!r}) & set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == ""
