"""Who is at the other end of the control socket is asked of the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import trio

NOBODY = 65534

ASK = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    print("not connected")
else:
    print(sock.makefile().readline())
"""


async def ask_as_nobody(path):
    done = await trio.run_process(
        [sys.executable, "-c", ASK, str(path)], capture_stdout=True, stderr=subprocess.STDOUT
    )
    return done.stdout.decode()


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
async def test_another_user_is_refused_even_where_the_mode_was_changed(server):
    for directory in list(server.path.parents)[:-1]:
        if not directory.stat().st_mode & 0o001:
            directory.chmod(0o755)
    assert await ask_as_nobody(server.path) == "not connected\n"

    server.path.chmod(0o666)
    answer = json.loads(await ask_as_nobody(server.path))

    assert f"user {NOBODY} may not control this agent" in answer["error"]["message"]
