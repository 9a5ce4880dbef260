"""Loading and reloading routes files."""

from __future__ import annotations

import functools
import sys

import pytest
import trio.testing

from clusternode.config import ExecRoute
from clusternode.errors import RouteError
from clusternode.routes.loader import load_table

HEADER = "from clusternode import routes\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def (", r"routes\.py:2: SyntaxError"),
        ("\nimport no_such_module", r"routes\.py:3: ModuleNotFoundError: .*no_such_module"),
        ("def f():\n    return 1 / 0\nf()", r"routes\.py:3: ZeroDivisionError"),
        ("raise SystemExit(2)", r"routes\.py:2: SystemExit: 2"),
        ("import broken_helper", r"broken_helper\.py:1: NameError"),
    ],
)
def test_an_error_says_file_line_and_what(tmp_path, text, expected):
    (tmp_path / "broken_helper.py").write_text("nothing")
    (tmp_path / "routes.py").write_text(HEADER + text)
    modules = set(sys.modules)

    with pytest.raises(RouteError, match=expected):
        load_table(tmp_path / "routes.py")
    assert {name for name in set(sys.modules) - modules if "clusternode" not in name} == set()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RouteError, match=r"none\.py: No such file"):
        load_table(tmp_path / "none.py")


def test_a_reload_picks_up_changed_modules_beside_the_file(tmp_path):
    helper = tmp_path / "helper_of_test.py"
    helper.write_text("ANSWER = 1")
    file = tmp_path / "routes.py"
    file.write_text(
        HEADER + "import helper_of_test\n\n@routes.message('c')\ndef f(m):\n"
        "    return helper_of_test.ANSWER\n"
    )
    old = load_table(file)
    helper.write_text("ANSWER = 2")
    new = load_table(file)

    assert [each.handlers[0].function(None) for each in (old, new)] == [1, 2]


def test_a_failed_reload_leaves_the_modules_of_the_old_routes(tmp_path):
    (tmp_path / "kept_helper.py").write_text("STATE = []")
    file = tmp_path / "routes.py"
    file.write_text("import kept_helper")
    load_table(file)
    before = sys.modules["kept_helper"]
    file.write_text("import kept_helper\n1 / 0")

    with pytest.raises(RouteError):
        load_table(file)
    assert sys.modules["kept_helper"] is before


async def test_a_reload_is_swapped_whole_and_a_broken_one_not_at_all(bus, run, tmp_path):
    file = tmp_path / "routes.py"
    file.write_text(HEADER + "@routes.request('a')\ndef f(r):\n    return 'old'\n")
    load = functools.partial(load_table, file)
    async with run(load(), load=load) as dispatcher:
        with dispatcher.events.subscribe("routes:reloaded") as stream:
            file.write_text("1 / 0")
            with pytest.raises(RouteError):
                dispatcher.reload()
            assert (await stream.get()).parameters["ok"] is False
            assert bus.channels == ["a"]
            await bus.finished(bus.request("a", ""))

            file.write_text(HEADER + "@routes.request('b')\ndef f(r):\n    return 'new'\n")
            dispatcher.reload()
            assert (await stream.get()).parameters["ok"] is True
            assert bus.channels == ["b"]
            assert await bus.finished(bus.request("a", "") + bus.request("b", "")) == [404, 200]

    assert [each[2] for each in bus.replied] == [b"old", b"new"]


async def test_what_waits_while_its_route_goes_ends_with_404(bus, run, script, autojump_clock):
    table = script("""
        @routes.message("c")
        async def f(message):
            await trio.sleep(1)
    """)
    async with run(table) as dispatcher:
        first = bus.message("c", "a")
        await trio.testing.wait_all_tasks_blocked()
        second = bus.message("c", "b")
        dispatcher.install(script(""))
        assert await bus.finished(first + second) == [200, 404]


def test_a_decorator_outside_of_a_load_only_returns_its_function():
    from clusternode import routes

    @routes.message("c")
    def handler(message):
        return 3

    assert handler(None) == 3


@pytest.mark.parametrize("on", ["locate", "thing:x", "request:", "message:a b"])
def test_a_wrong_exec_route_is_refused(tmp_path, on):
    with pytest.raises(RouteError):
        load_table(None, [ExecRoute(on=on, exec=("true",))], tmp_path)


def test_a_channel_of_the_agents_themselves_is_refused(tmp_path):
    file = tmp_path / "routes.py"
    file.write_text(
        "from clusternode import routes\n"
        "@routes.request('clusternode:view')\n"
        "def view(request):\n"
        "    return None\n"
    )

    with pytest.raises(RouteError, match="the agent's own"):
        load_table(file)
