"""The rules of docs/contributing.md that no off-the-shelf tool checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "clusternode"
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 500
CONSTRUCTOR_ATTRIBUTES_MAX = 12

MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.slow
def test_imports_point_down():
    command = Path(sys.executable).with_name("lint-imports")

    ran = subprocess.run(
        [command, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_generated_documentation_is_up_to_date():
    ran = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_nothing_committed_names_a_machine_or_a_registry():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")

    ran = subprocess.run(
        [ROOT / ".ci" / "check-portable"], capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_lives_in_them_and_stay_short(path):
    text = path.read_text(encoding="utf-8")

    assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"
    lines = len(text.splitlines())
    assert lines <= MODULE_LINES_MAX, f"{name_of(path)}: {lines} lines"


def test_functions_stay_short():
    too_long = [
        f"{name_of(path)}:{function.lineno} {function.name}: {lines} lines"
        for path in MODULES
        for function in functions_of(tree_of(path))
        if (lines := lines_without_docstring(function)) > FUNCTION_LINES_MAX
    ]

    assert not too_long, "\n".join(too_long)


def test_no_object_has_too_many_parts():
    too_many = [
        f"{name_of(path)}:{cls.lineno} {cls.name}: {count} attributes"
        for path in MODULES
        for cls in ast.walk(tree_of(path))
        if isinstance(cls, ast.ClassDef)
        if (count := constructor_attributes(cls)) > CONSTRUCTOR_ATTRIBUTES_MAX
    ]

    assert not too_many, "\n".join(too_many)


def test_the_core_never_iterates_over_a_set():
    """Strings hash differently in every process, so the order of a set would not be repeatable."""
    core = sorted((PACKAGE / "core").rglob("*.py"))
    set_attributes = {
        name for path in core for name in annotated_sets(tree_of(path), attributes=True)
    }

    found = [f"{name_of(path)}:{line}" for path in core for line in set_loops(path, set_attributes)]

    assert not found, "\n".join(found)


def test_no_test_sleeps_on_the_real_clock():
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in TESTS
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute | ast.ImportFrom) and is_time_sleep(node)
    ]

    assert not found, "\n".join(found)


# Reading the code


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def constructor_attributes(cls: ast.ClassDef) -> int:
    """Count what `__init__` sets, or the fields of an `attrs.define` class that holds state.

    Frozen classes are values, and so are the messages: as long as what they say.
    """
    for statement in cls.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return len(set(assigned_to_self(statement)))
    if not any(is_attrs_define(decorator) for decorator in cls.decorator_list):
        return 0
    fields = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
    if any("TYPE" in ast.unparse(node.target) for node in fields):
        return 0
    return len([node for node in fields if "ClassVar" not in ast.unparse(node.annotation)])


def is_attrs_define(decorator: ast.expr) -> bool:
    text = ast.unparse(decorator)
    return text.startswith("attrs.define") and "frozen=True" not in text


def assigned_to_self(function: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            yield node.attr


def annotated_sets(tree: ast.AST, *, attributes: bool) -> Iterator[str]:
    """Yield the names annotated as sets: fields and `self.x`, or plain variables and arguments."""
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(target=ast.Attribute(attr=name), annotation=kind) if attributes:
                pass
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind):
                pass
            case ast.arg(arg=name, annotation=ast.expr() as kind) if not attributes:
                pass
            case _:
                continue
        head = ast.unparse(kind).partition("[")[0].rpartition(".")[2]
        if head in {"set", "frozenset", "Set", "AbstractSet", "MutableSet"}:
            yield name


def set_loops(path: Path, set_attributes: set[str]) -> Iterator[int]:
    """Yield the lines where the order of a set decides something."""
    tree = tree_of(path)
    set_names = set(annotated_sets(tree, attributes=False))
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if is_set(
                value, set(), set()
            ):
                set_names.add(name)
    for node in ast.walk(tree):
        match node:
            case ast.For(iter=iterable) | ast.comprehension(iter=iterable):
                pass
            case ast.Call(
                func=ast.Name(id="list" | "tuple" | "next" | "iter"), args=[iterable, *_]
            ):
                pass
            case _:
                continue
        if is_set(iterable, set_names, set_attributes):
            yield iterable.lineno


def is_set(value: ast.expr, names: set[str], attributes: set[str]) -> bool:
    match value:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.Name(id=name):
            return name in names
        case ast.Attribute(attr=name):
            return name in attributes
        case ast.BinOp(left=left, op=ast.BitOr() | ast.BitAnd() | ast.Sub()):
            return is_set(left, names, attributes)
    return False


def is_time_sleep(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="time"), attr="sleep"):
            return True
        case ast.ImportFrom(module="time", names=names):
            return any(name.name == "sleep" for name in names)
    return False


@pytest.mark.parametrize(
    "text",
    [
        "for x in {1, 2}: pass",
        "[x for x in set(y)]",
        "class A:\n    waiting: set[int]\n    def f(self):\n        return list(self.waiting)",
        "a = set(b)\nfor x in a - c: pass",
        "def f(known: frozenset[str]):\n    return list(known)",
    ],
)
def test_the_check_for_set_iteration_finds(text, tmp_path):
    path = tmp_path / "example.py"
    path.write_text(text)

    assert list(set_loops(path, set(annotated_sets(ast.parse(text), attributes=True))))


def test_the_check_for_set_iteration_accepts_sorted_and_membership(tmp_path):
    path = tmp_path / "example.py"
    path.write_text("a = set(b)\nfor x in sorted(a): pass\ny = 1 in a\n")

    assert not list(set_loops(path, set()))
