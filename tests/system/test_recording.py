"""A recording of real processes: written from the start, through SIGKILL, and stepped again."""

import pytest

from tests.system.command_line import CLUSTER, HEALTH, call, clusternode, counter, sees

pytestmark = pytest.mark.slow


async def test_what_a_real_agent_was_told_is_stepped_again_after_sigkill(fleet, tmp_path):
    place = tmp_path / "recording"
    sections = {"health": HEALTH, "node": {"record_dir": str(place)}}
    n1 = fleet.add("n1", cluster=CLUSTER, sections={"health": HEALTH})
    n2 = fleet.add("n2", cluster=CLUSTER, sections=sections)
    await fleet.start()
    for number in range(50):
        await call(n1, "cluster.broadcast", channel="news", body=f"{number}")
    recorded = counter(n2, "recording_inputs")
    await fleet.wait(
        lambda: sum(len(file.read_bytes()) for file in place.glob("*")) > 0, "it is written", 5.0
    )

    n2.kill()
    await sees(fleet, n1, n2="not_active")
    n2.start()
    await sees(fleet, n1, n2="active")
    n2.terminate()
    await sees(fleet, n1, n2="left")

    outcome = await clusternode("replay", str(place))
    assert outcome.status == 0, outcome
    assert "2 segments" in outcome.output
    assert "all as recorded" in outcome.output
    assert recorded > 100
