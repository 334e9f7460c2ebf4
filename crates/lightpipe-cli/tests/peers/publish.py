"""Publishes a test picture and a tone by WHIP (RFC 9725), with aiortc, until SIGTERM."""

import argparse
import asyncio
from urllib.parse import urljoin

import aiohttp
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription

from common import NO_STUN, Picture, Tone, stay_on_this_machine, wait_for_the_end


async def main(args):
    stay_on_this_machine()
    connection = RTCPeerConnection(NO_STUN)
    codecs = RTCRtpSender.getCapabilities("video").codecs
    video = connection.addTransceiver(Picture(640, 360), direction="sendonly")
    video.setCodecPreferences([codec for codec in codecs if codec.mimeType.lower() == f"video/{args.codec}"])
    connection.addTransceiver(Tone(args.pitch_hz), direction="sendonly")
    await connection.setLocalDescription(await connection.createOffer())
    async with aiohttp.ClientSession() as http:
        headers = {"Content-Type": "application/sdp"}
        async with http.post(args.url, data=connection.localDescription.sdp, headers=headers) as response:
            answer = await response.text()
            if response.status != 201:
                raise SystemExit(f"HTTP {response.status}: {answer}")
            session = urljoin(args.url, response.headers["Location"])
        await connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await wait_for_the_end()
        async with http.delete(session) as response:
            if response.status != 200:
                raise SystemExit(f"DELETE: HTTP {response.status}")
    await connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--codec", default="h264", choices=["h264", "vp8"])
    parser.add_argument("--pitch-hz", type=float, default=660)
    asyncio.run(main(parser.parse_args()))
