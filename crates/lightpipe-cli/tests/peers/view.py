"""Views a stream by WHEP (draft-ietf-wish-whep) with aiortc for some seconds and prints what it decoded as JSON."""

import argparse
import asyncio
import json
from urllib.parse import urljoin

import aiohttp
from aiortc import RTCPeerConnection, RTCSessionDescription

from common import NO_STUN, Meters, stay_on_this_machine, use_rsa, wait_for_the_end


async def main(args):
    stay_on_this_machine()
    if args.rsa:
        use_rsa()
    connection = RTCPeerConnection(NO_STUN)
    meters = Meters(args.columns)
    meters.watch(connection)
    connection.addTransceiver("video", direction="recvonly")
    connection.addTransceiver("audio", direction="recvonly")
    await connection.setLocalDescription(await connection.createOffer())
    async with aiohttp.ClientSession() as http:
        headers = {"Content-Type": "application/sdp"}
        async with http.post(args.url, data=connection.localDescription.sdp, headers=headers) as response:
            answer = await response.text()
            if response.status != 201:
                raise SystemExit(f"HTTP {response.status}: {answer}")
            session = urljoin(args.url, response.headers["Location"])
        await connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await wait_for_the_end(args.seconds)
        async with http.delete(session) as response:
            if response.status != 200:
                raise SystemExit(f"DELETE: HTTP {response.status}")
    await connection.close()
    print(json.dumps(meters.report()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--columns", type=int, default=8, help="colour bars of the picture")
    parser.add_argument("--rsa", action="store_true", help="with an RSA certificate")
    asyncio.run(main(parser.parse_args()))
