"""A WHIP and WHEP server on aiortc and a free port of 127.0.0.1. Its first line of output is its address.

`/whip/live` (RFC 9725) takes a publisher; `GET /report` tells what was decoded of the last one, and whether that has ended its session.
`/whep/live` (draft-ietf-wish-whep) shows the test picture and a tone of 660 Hz.
"""

import argparse
import asyncio

from aiohttp import web
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import candidate_from_sdp

from common import NO_STUN, Meters, Picture, Tone, stay_on_this_machine, use_rsa, wait_for_the_end


class Server:
    def __init__(self, token):
        self.token = token
        self.sessions = {}
        self.count = 0
        self.last = None

    async def publish(self, request):
        meters = Meters()
        response, connection, offer = await self.answer(request, meters.watch)
        self.last = {"offer": offer, "meters": meters, "connection": connection, "deleted": False}
        return response

    async def view(self, request):
        def send(connection):
            connection.addTrack(Picture(640, 360))
            connection.addTrack(Tone(660))

        response, _, _ = await self.answer(request, send)
        return response

    async def answer(self, request, prepare):
        if request.content_type != "application/sdp":
            raise web.HTTPUnsupportedMediaType
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        connection = RTCPeerConnection(NO_STUN)
        prepare(connection)
        offer = await request.text()
        await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
        self.count += 1
        name = str(self.count)
        self.sessions[name] = connection
        headers = {"Location": f"{request.path}/{name}", "ETag": f'"{name}"'}
        answer = connection.localDescription.sdp
        response = web.Response(status=201, text=answer, headers=headers, content_type="application/sdp")
        return response, connection, offer

    async def patch(self, request):
        connection = self.sessions.get(request.match_info["session"])
        if connection is None:
            raise web.HTTPNotFound
        mid = None
        for line in (await request.text()).splitlines():
            if line.startswith("a=mid:"):
                mid = line.removeprefix("a=mid:")
            elif line.startswith("a=candidate:"):
                candidate = candidate_from_sdp(line.removeprefix("a=candidate:"))
                candidate.sdpMid = mid
                await connection.addIceCandidate(candidate)
        return web.Response(status=204)

    async def delete(self, request):
        connection = self.sessions.pop(request.match_info["session"], None)
        if connection is None:
            raise web.HTTPNotFound
        if self.last is not None and connection is self.last["connection"]:
            self.last["deleted"] = True
        await connection.close()
        return web.Response()

    async def report(self, _request):
        if self.last is None:
            return web.json_response(None)
        told = {"state": self.last["connection"].connectionState, "deleted": self.last["deleted"]}
        return web.json_response(told | {"offer": self.last["offer"]} | self.last["meters"].report())


async def main(args):
    stay_on_this_machine()
    if args.rsa:
        use_rsa()
    server = Server(args.token)
    app = web.Application()
    app.router.add_post("/whip/live", server.publish)
    app.router.add_post("/whep/live", server.view)
    for endpoint in ("whip", "whep"):
        app.router.add_patch(f"/{endpoint}/live/{{session}}", server.patch)
        app.router.add_delete(f"/{endpoint}/live/{{session}}", server.delete)
    app.router.add_get("/report", server.report)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await wait_for_the_end()
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--token", help="what publishers must know")
    parser.add_argument("--rsa", action="store_true", help="with an RSA certificate")
    asyncio.run(main(parser.parse_args()))
