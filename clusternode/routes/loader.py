"""Loads a user's routes file, and the modules beside it, afresh into a new table."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from clusternode.config import ExecRoute
from clusternode.errors import RouteError
from clusternode.routes.api import table_being_loaded
from clusternode.routes.execute import exec_handler
from clusternode.routes.table import RESERVED_PREFIX, RouteTable, is_reserved

_numbers = itertools.count(1)
_helpers: dict[str, ModuleType] = {}
"""Modules that routes files imported from beside them: name → module. Never other modules."""


def load_table(
    file: Path | None, exec_routes: Sequence[ExecRoute] = (), directory: Path | None = None
) -> RouteTable:
    """Return a table with the handlers of a routes file and of the executables, in this order.

    Nothing that was loaded before changes, whether this succeeds or not. Modules beside the file
    are imported again, so a reload picks their changes up.

    Args:
        file: The user's Python file, if there is one.
        exec_routes: The `[[route]]` sections.
        directory: Where the executables run; None: where the routes file is, else here.

    Raises:
        RouteError: The file cannot be read or run, or a route is wrong; says file, line and why.
    """
    table = RouteTable()
    if file is not None:
        _load_file(file, table)
    where = directory or (file.parent if file is not None else Path.cwd())
    for route in exec_routes:
        table.add(exec_handler(route, where))
    for handler in table.handlers:
        if is_reserved(handler.on):
            raise RouteError(
                f"{handler.name}: channels that begin with {RESERVED_PREFIX} are the agent's own"
            )
    return table


def _load_file(file: Path, table: RouteTable) -> None:
    path = file.absolute()
    name = f"clusternode_routes_{next(_numbers)}"
    module = ModuleType(name)
    module.__file__ = str(path)
    token = table_being_loaded.set(table)
    try:
        with _fresh_modules_of(path.parent):
            sys.modules[name] = module  # dataclasses and pickle look their module up by name
            try:
                code = compile(path.read_bytes(), str(path), "exec")
                exec(code, module.__dict__)  # noqa: S102  # to run the user's file is the point
            except BaseException:
                del sys.modules[name]
                raise
    except OSError as error:
        raise RouteError(f"{file}: {error.strerror or error}") from error
    except SyntaxError as error:
        where = Path(error.filename or str(path))
        raise RouteError(f"{where}:{error.lineno or 0}: SyntaxError: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise RouteError(_describe(error, path)) from error
    finally:
        table_being_loaded.reset(token)


@contextlib.contextmanager
def _fresh_modules_of(directory: Path) -> Iterator[None]:
    """Import what lies in a directory anew; on an error put the modules of before back."""
    before = dict(_helpers)
    for name in before:
        sys.modules.pop(name, None)
    _helpers.clear()
    known = set(sys.modules)
    write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # its timestamps are
    # whole seconds: a helper that changes twice in one would be loaded from the old bytecode
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    except BaseException:
        for name in _modules_in(directory, known):
            del sys.modules[name]
        sys.modules.update(before)
        _helpers.update(before)
        raise
    else:
        for name in _modules_in(directory, known):
            _helpers[name] = sys.modules[name]
    finally:
        sys.dont_write_bytecode = write_bytecode
        sys.path.remove(str(directory))
        if str(directory) not in sys.path:
            sys.path.append(str(directory))  # for imports inside functions; behind everything


def _modules_in(directory: Path, known: set[str]) -> list[str]:
    found = []
    for name, module in sys.modules.items():
        file = getattr(module, "__file__", None)
        if name not in known and file is not None and Path(file).is_relative_to(directory):
            found.append(name)
    return found


def _describe(error: BaseException, path: Path) -> str:
    """Say where in the user's own files an exception came from, and what it was."""
    line, where = 0, path
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).is_relative_to(path.parent):
            line, where = frame.lineno or 0, Path(frame.filename)
    return f"{where}:{line}: {type(error).__name__}: {error}"
