"""A WHIP endpoint (RFC 9725) in front of a Janus on port 8088 of this host: what is published goes into room 1 of its VideoRoom.

Its first line of output is its address. `GET /report` tells what a subscriber of that room, on aiortc, decoded; `POST /substream/N` lets it have
another layer of a publisher's simulcast, 0 the least, and begins to count anew.
"""

import argparse
import asyncio
import itertools

import aiohttp
from aiohttp import web
from aiortc import RTCPeerConnection, RTCSessionDescription

from common import NO_STUN, Meters, PictureMeter, wait_for_the_end

ROOM = 1


class Janus:
    """A session of the Janus API with one handle of the VideoRoom."""

    transactions = itertools.count()

    def __init__(self, http, url):
        self.http = http
        self.url = url

    async def ask(self, url, janus, **rest):
        message = {"janus": janus, "transaction": str(next(self.transactions))} | rest
        async with self.http.post(url, json=message) as response:
            answer = await response.json(content_type=None)
            if answer["janus"] == "error":
                raise web.HTTPBadGateway(text=str(answer))
            return answer

    async def open(self):
        self.url = f"{self.url}/{(await self.ask(self.url, 'create'))['data']['id']}"
        attached = await self.ask(self.url, "attach", plugin="janus.plugin.videoroom")
        self.handle = f"{self.url}/{attached['data']['id']}"
        return self

    async def message(self, body, **rest):
        """Sends a request to the plugin and waits for what it says."""
        await self.ask(self.handle, "message", body=body, **rest)
        return await self.event("event")

    async def event(self, kind):
        while True:
            async with self.http.get(self.url, params={"maxev": "1"}) as response:
                event = await response.json(content_type=None)
                if event["janus"] == kind:
                    return event

    async def close(self):
        await self.ask(self.url, "destroy")


class Endpoint:
    def __init__(self, http, janus):
        self.http = http
        self.janus = janus
        self.publisher = None
        self.subscriber = None
        self.subscription = None
        self.videos = []
        self.meters = Meters()
        self.deleted = False

    async def post(self, request):
        self.publisher = await Janus(self.http, self.janus).open()
        joined = await self.publisher.message({"request": "join", "ptype": "publisher", "room": ROOM})
        feed = joined["plugindata"]["data"]["id"]
        offer = {"type": "offer", "sdp": await request.text()}
        published = await self.publisher.message({"request": "publish"}, jsep=offer)
        asyncio.ensure_future(self.subscribe(feed))
        headers = {"Location": "/whip/room/1", "ETag": '"1"'}
        return web.Response(status=201, text=published["jsep"]["sdp"], headers=headers, content_type="application/sdp")

    async def subscribe(self, feed):
        # Before its media is there the room has no such publisher.
        await self.publisher.event("webrtcup")
        janus = self.subscription = await Janus(self.http, self.janus).open()
        offered = await janus.message(
            {"request": "join", "ptype": "subscriber", "room": ROOM, "streams": [{"feed": feed}]}
        )
        streams = offered["plugindata"]["data"]["streams"]
        self.videos = [stream["mid"] for stream in streams if stream["type"] == "video"]
        self.subscriber = RTCPeerConnection(NO_STUN)
        self.meters.watch(self.subscriber)
        await self.subscriber.setRemoteDescription(RTCSessionDescription(offered["jsep"]["sdp"], "offer"))
        await self.subscriber.setLocalDescription(await self.subscriber.createAnswer())
        answer = {"type": "answer", "sdp": self.subscriber.localDescription.sdp}
        await janus.message({"request": "start"}, jsep=answer)

    async def choose(self, request):
        substream = int(request.match_info["n"])
        wanted = [{"mid": mid, "substream": substream} for mid in self.videos]
        await self.subscription.message({"request": "configure", "streams": wanted})
        self.meters.picture = PictureMeter(8)
        return web.Response()

    async def delete(self, _request):
        self.deleted = True
        await self.publisher.close()
        return web.Response()

    async def report(self, _request):
        return web.json_response({"deleted": self.deleted} | self.meters.report())


async def main(args):
    async with aiohttp.ClientSession() as http:
        endpoint = Endpoint(http, f"http://{args.host}:8088/janus")
        app = web.Application()
        app.router.add_post("/whip/room", endpoint.post)
        app.router.add_delete("/whip/room/1", endpoint.delete)
        app.router.add_get("/report", endpoint.report)
        app.router.add_post("/substream/{n}", endpoint.choose)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, args.host, 0).start()
        print(f"http://{args.host}:{runner.addresses[0][1]}", flush=True)
        await wait_for_the_end()
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    asyncio.run(main(parser.parse_args()))
