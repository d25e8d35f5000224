"""Imports run one way, and nothing of another library is replaced."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room of the package, and the rooms below it that it may import.
BELOW = {
    "errors": set(),
    "files": {"errors"},
    "layers": set(),
    "config": {"errors", "files"},
    "modeling": {"config", "errors", "layers"},
    "data": {"config", "errors", "files"},
    "checkpoint": {"config", "errors", "files", "layers", "modeling"},
    "model_zoo": {"checkpoint", "config", "errors", "files", "modeling"},
    "engine": {"checkpoint", "config", "data", "errors", "files", "layers", "modeling"},
}
PROJECTS = {
    **{"Acceleration": "acceleration", "Detection": "detection", "Digits": "digits"},
    **{"Export": "export", "OwnData": "own_data", "Report": "report"},
}


def parsed(folder: Path) -> Iterator[tuple[Path, ast.AST]]:
    """Every import statement below a folder, or of a file."""
    for file in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                yield file, node


def modules(file: Path, node: ast.AST) -> list[str]:
    """The absolute names of what a statement of a file of the package imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    parent = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
    base = ".".join([*parent, *filter(None, [node.module])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


@pytest.mark.parametrize("room", BELOW)
def test_the_package_imports_downwards(room):
    rooms = {*BELOW, "projects", "predictor"} - {room}
    for file, node in parsed(ROOT / "gnws_d2" / room):
        words = [name.split(".") for name in modules(file, node)]
        used = {word[1] for word in words if word[0] == "gnws_d2" and len(word) > 1}
        assert used & rooms <= BELOW[room], file


def test_the_package_imports_no_project():
    for file, node in parsed(ROOT / "gnws_d2"):
        assert not any(n.startswith("gnws_d2.projects.") for n in modules(file, node)), file


@pytest.mark.parametrize("project", [path.name for path in (ROOT / "projects").iterdir()])
def test_a_project_uses_another_through_what_it_documents(project):
    for file, node in parsed(ROOT / "projects" / project):
        for folder, name in PROJECTS.items():
            module = getattr(node, "module", "") or ""
            if folder == project or not f"{module}.".startswith(f"gnws_d2.projects.{name}."):
                continue
            assert module == f"gnws_d2.projects.{name}", (file, module)
            init = (ROOT / "projects" / folder / "__init__.py").read_text(encoding="utf-8")
            assert all(f'"{alias.name}"' in init for alias in node.names), (file, module)


def test_nothing_is_patched_but_where_a_graph_is_recorded():
    files = [*(ROOT / "gnws_d2").rglob("*.py"), *(ROOT / "projects").rglob("*.py")]
    patching = {f.name for f in files if "mock" in f.read_text(encoding="utf-8")}
    assert patching <= {"branch_free.py"}
