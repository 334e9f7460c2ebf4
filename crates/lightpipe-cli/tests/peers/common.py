"""What the peers of the interoperability tests share: a test picture, a tone, and meters that say what of them arrived.

The picture is eight colour bars below the timecode strip that `lightpipe_media::timecode` defines, so that whoever decodes it can tell
that the colours are right, that the picture moves, and how old it is.
"""

import asyncio
import fractions
import signal
import time

import aioice.ice
import aiortc.rtcpeerconnection
import numpy
from aiortc import AudioStreamTrack, RTCCertificate, RTCConfiguration, VideoStreamTrack
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcdtlstransport import generate_certificate
from av import AudioFrame, VideoFrame
from cryptography.hazmat.primitives.asymmetric import rsa

SAMPLE_RATE = 48_000
BARS = numpy.array(
    [[255, 255, 255], [191, 191, 0], [0, 191, 191], [0, 191, 0], [191, 0, 191], [191, 0, 0], [0, 0, 191], [0, 0, 0]],
    numpy.uint8,
)
STRIP_BITS = 48
# Left to itself aiortc asks a public STUN server.
NO_STUN = RTCConfiguration(iceServers=[])


def stay_on_this_machine():
    """aioice leaves loopback out of its candidates; the servers of the tests are nowhere else."""
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]


class RsaCertificate(RTCCertificate):
    """What GStreamer and many older programs have; aiortc makes P-256 only."""

    @classmethod
    def generateCertificate(cls):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return cls(key, generate_certificate(key))

    def _create_ssl_context(self, srtp_profiles):
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(b"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256")
        return context


def use_rsa():
    """From now on certificates are RSA."""
    aiortc.rtcpeerconnection.RTCCertificate = RsaCertificate


async def wait_for_the_end(seconds=None):
    """Waits for SIGTERM, or so long."""
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    try:
        await asyncio.wait_for(end.wait(), seconds)
    except TimeoutError:
        pass


def unix_ms():
    return int(time.time() * 1000) & 0xFFFF_FFFF


def crc8(data):
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07 if crc & 0x80 else crc << 1) & 0xFF
    return crc


def block_size(width):
    return 16 if width >= 16 * STRIP_BITS else max(4, (width + 40) // 80)


def paint_timecode(picture, at_ms):
    block = block_size(picture.shape[1])
    data = at_ms.to_bytes(4, "big")
    bits = numpy.unpackbits(numpy.frombuffer(bytes([0b1010_1010]) + data + bytes([crc8(data)]), numpy.uint8))
    picture[:block, : block * STRIP_BITS] = numpy.repeat(bits * 255, block)[None, :, None]


def read_timecode(picture):
    """Unix milliseconds mod 2³², or None."""
    block = block_size(picture.shape[1])
    margin = block // 4
    if picture.shape[1] < block * STRIP_BITS:
        return None
    cells = picture[margin : block - margin, : block * STRIP_BITS].mean(axis=(0, 2)).reshape(STRIP_BITS, block)
    data = numpy.packbits(cells[:, margin : block - margin].mean(axis=1) > 127).tobytes()
    if data[0] != 0b1010_1010 or crc8(data[1:5]) != data[5]:
        return None
    return int.from_bytes(data[1:5], "big")


class Picture(VideoStreamTrack):
    """Colour bars and timecode, 30 pictures a second."""

    def __init__(self, width, height):
        super().__init__()
        columns = numpy.arange(width) * len(BARS) // width
        self.still = numpy.repeat(BARS[columns][None, :, :], height, axis=0)
        self.still[: block_size(width)] = 0

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        picture = self.still.copy()
        paint_timecode(picture, unix_ms())
        frame = VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = pts, time_base
        return frame


class Tone(AudioStreamTrack):
    """A sine of -12 dBFS, in blocks of 20 ms."""

    BLOCK = SAMPLE_RATE // 50

    def __init__(self, pitch_hz):
        super().__init__()
        self.pitch_hz = pitch_hz
        self.samples = 0
        self.began = None

    async def recv(self):
        now = time.monotonic()
        self.began = self.began or now
        await asyncio.sleep(max(0, self.began + self.samples / SAMPLE_RATE - now))
        at = numpy.arange(self.samples, self.samples + self.BLOCK) / SAMPLE_RATE
        mono = 0.25 * 32767 * numpy.sin(2 * numpy.pi * self.pitch_hz * at)
        stereo = numpy.repeat(mono.astype(numpy.int16), 2)[None, :]
        frame = AudioFrame.from_ndarray(stereo, format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self.samples, fractions.Fraction(1, SAMPLE_RATE)
        self.samples += self.BLOCK
        return frame


class PictureMeter:
    """Decoded pictures."""

    def __init__(self, columns):
        self.columns = columns
        self.count = 0
        self.size = (0, 0)
        self.colours = []
        self.timecodes = []
        self.ages = []

    def add(self, picture, now_ms=None):
        """Takes a picture: rows × columns × RGB. Without a time nothing is said of its age."""
        height, width, _ = picture.shape
        self.count += 1
        self.size = (width, height)
        row = int(height * 0.3)
        middles = [int(width * (n + 0.5) / self.columns) for n in range(self.columns)]
        self.colours.append([picture[row - 2 : row + 2, x - 2 : x + 2].mean(axis=(0, 1)) for x in middles])
        timecode = read_timecode(picture)
        if timecode is not None:
            self.timecodes.append(timecode)
            if now_ms is not None:
                self.ages.append(((now_ms - timecode + 2**31) & 0xFFFF_FFFF) - 2**31)

    def report(self):
        median = numpy.median(self.colours, axis=0).round().astype(int).tolist() if self.colours else []
        return {
            "count": self.count,
            "width": self.size[0],
            "height": self.size[1],
            # RGB in the middle of each column, at three tenths of the height. The median, because parts of a test picture move.
            "colours": median,
            "timecodes": len(self.timecodes),
            "span_ms": self.timecodes[-1] - self.timecodes[0] if self.timecodes else 0,
            "age_ms": int(numpy.median(self.ages)) if self.ages else None,
        }


class SoundMeter:
    """Decoded sound, 48 kHz, of which the first channel is looked at."""

    def __init__(self):
        self.blocks = []

    def add(self, samples):
        """Takes samples from -1 to 1."""
        self.blocks.append(samples)

    def report(self):
        samples = numpy.concatenate(self.blocks) if self.blocks else numpy.zeros(1)
        spectrum = numpy.abs(numpy.fft.rfft(samples * numpy.hanning(len(samples))))
        spectrum[:1] = 0
        blocks = samples[: len(samples) // 480 * 480].reshape(-1, 480)
        loud = numpy.sqrt((blocks**2).mean(axis=1)) > 0.02 if len(blocks) else numpy.zeros(1)
        return {
            "seconds": len(samples) / SAMPLE_RATE,
            "rms": float(numpy.sqrt((samples**2).mean())),
            "peak": float(numpy.abs(samples).max()),
            # The strongest line of the whole spectrum.
            "hz": float(spectrum.argmax() * SAMPLE_RATE / len(samples)),
            # Share of the blocks of 10 ms that are not silent.
            "loud": float(loud.mean()),
        }


class Meters:
    """Takes what the tracks of a connection receive."""

    def __init__(self, columns=8):
        self.picture = PictureMeter(columns)
        self.sound = SoundMeter()
        self.tasks = []

    def watch(self, connection):
        connection.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.receive(track))))

    async def receive(self, track):
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return  # the track has ended
            if track.kind == "video":
                self.picture.add(frame.to_ndarray(format="rgb24"), unix_ms())
            else:
                channels = len(frame.layout.channels)
                self.sound.add(frame.to_ndarray()[0, ::channels] / 32768)

    def report(self):
        return {"picture": self.picture.report(), "sound": self.sound.report()}
