"""Try this machine against a running OpenSIPS cluster: join, look, ask, leave.

    python check.py --cluster 1 --node 9 --url bin:10.0.0.20:5555 --neighbour 1=bin:10.0.0.1:5555

Takes the id and the address that the agent will have; both must be free. Prints what it saw, and
ends with 0 when every node was up and took the request. Nothing is changed on the other nodes, but
that they know this id from now on: take it out with `opensips-cli -x mi clusterer:remove_node`.
"""

import argparse
import sys

import trio

from clusternode.gateways.opensips.service import OpenSipsGateway
from clusternode.gateways.opensips.settings import (
    BinUrl,
    MyNodeInfo,
    Neighbour,
    OpenSipsSettings,
)
from clusternode.runtime.resolver import DnsResolver


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", type=int, required=True)
    parser.add_argument("--node", type=int, required=True, help="an id that is free")
    parser.add_argument("--url", type=BinUrl.parse, required=True, help="bin:IP:PORT of ours")
    parser.add_argument("--neighbour", required=True, help="ID=bin:HOST:PORT of a living node")
    parser.add_argument("--text", default="clusternode check", help="what is asked")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to wait for each")
    return parser.parse_args()


async def check(gateway: OpenSipsGateway, text: str, seconds: float) -> bool:
    bus = gateway.bus
    with trio.move_on_after(seconds):
        while True:  # until nothing new comes up any more
            before = [member.node_id for member in bus.members() if member.link == "direct"]
            await trio.sleep(seconds / 7)
            after = [member.node_id for member in bus.members() if member.link == "direct"]
            if after and after == before:
                break
    print("node  state    way      round trip  url")
    for member in bus.members():
        trip = "-" if member.round_trip_s is None else f"{1000 * member.round_trip_s:.1f} ms"
        state = member.tags.get("link", "us")
        print(f"{member.node_id:>4}  {state:7}  {member.link:7}  {trip:>10}  {member.address}")
    print("capabilities:", bus.operate("list_cap", []))

    async with bus.broadcast_request("generic", text, timeout=seconds / 2) as replies:
        async for reply in replies:
            print(f"{reply.node_id} replied in {1000 * reply.round_trip_s:.1f} ms: {reply.text}")
        results = await bus.broadcast("generic", text)
    for node, code in results.items():
        print(f"{node}: {code.name.lower()}")
    print("counters:", dict(bus.snapshot().counters))
    links = [member.tags["link"] for member in bus.members() if not member.local]
    return bool(results) and set(links) == {"Up"} and {*results.values()} == {202}


async def main() -> int:
    given = arguments()
    number, _, url = given.neighbour.partition("=")
    settings = OpenSipsSettings(
        cluster_id=given.cluster,
        my_node_id=given.node,
        my_node_info=MyNodeInfo(given.url, given.url.host),
        neighbor_node_info=(Neighbour(int(number), BinUrl.parse(url)),),
        ping_interval=1.0,
    )
    gateway = OpenSipsGateway("opensips", settings, DnsResolver())
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        is_well = await check(gateway, given.text, given.seconds)
        with trio.move_on_after(2.0):
            await gateway.leave()
        nursery.cancel_scope.cancel()
    print("all well" if is_well else "not all well")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(trio.run(main))
