"""Imports point down: a unit imports only units of a smaller level, lazily or not.

Type-checking imports do not count. Levels are those of docs/architecture.md.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "moonlet"
LEVELS = [
    {"errors"},
    {"config"},
    {"chat", "quant"},
    {"plan", "checkpoint", "kernels"},
    {"model"},
    {"engine"},
    {"train", "gateway", "server", "swarm", "nano"},
    {"evals"},
    {"rl"},
    {"cli"},
]
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units}
WITHOUT_TORCH = ["errors", "config", "chat", "quant", "plan", "gateway", "server", "cli"]


def imported_names(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that `node` and everything in it imports, with their line numbers."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for branch in node.orelse:
            yield from imported_names(branch)
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: write the absolute import"
        yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported_names(child)


def violations(unit: str, tree: ast.AST) -> list[str]:
    """Imports in `tree` (a file of `unit`) that do not point to a smaller level."""
    wrong = []
    for name, line in imported_names(tree):
        parts = name.split(".")
        if parts[0] != "moonlet" or len(parts) < 2 or parts[1] == unit or parts[1] == "__version__":
            continue
        if LEVEL[parts[1]] >= LEVEL[unit]:
            wrong.append(f"line {line}: {unit} -> {parts[1]}")
    return wrong


def unit_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(SRC)}: {violation}"
        for path in sorted(SRC.rglob("*.py"))
        if unit_of(path) not in {"__init__", "__main__"}
        for violation in violations(unit_of(path), ast.parse(path.read_text()))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_unit_has_a_level() -> None:
    units = {unit_of(path) for path in SRC.rglob("*.py")} - {"__init__", "__main__"}
    assert units <= set(LEVEL)


def test_the_rule_catches_every_spelling() -> None:
    for line in (
        "from moonlet.engine import x",
        "from moonlet import engine",
        "import moonlet.engine.x",
        "def f():\n    from moonlet.engine import x",
    ):
        assert violations("model", ast.parse(line)) == [
            f"line {line.count(chr(10)) + 1}: model -> engine"
        ]
    assert violations("model", ast.parse("from moonlet.config import ModelConfig")) == []


def test_lower_levels_do_not_load_torch() -> None:
    present = [u for u in WITHOUT_TORCH if (SRC / u).exists() or (SRC / f"{u}.py").exists()]
    modules = [
        ".".join(("moonlet", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for unit in present
        for path in (
            [SRC / f"{unit}.py"] if (SRC / f"{unit}.py").exists() else (SRC / unit).rglob("*.py")
        )
        if path.stem != "__main__"
    ]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += "assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
