"""Says of raw pictures (I420 or RGB) and raw sound (16 bits, stereo, 48 kHz) in files what view.py says of what it receives itself."""

import argparse
import json

import numpy
from av import VideoFrame

from common import PictureMeter, SoundMeter

BYTES_OF_TWO_PIXELS = {"i420": 3, "rgb": 6}


def pictures_of(args):
    """Rows × columns × RGB, one after the other."""
    width, height = map(int, args.size.split("x"))
    size = width * height * BYTES_OF_TWO_PIXELS[args.format] // 2
    raw = numpy.fromfile(args.pictures, numpy.uint8)
    # The last picture may be incomplete: its writer was stopped.
    for picture in raw[: len(raw) // size * size].reshape(-1, size):
        if args.format == "rgb":
            yield picture.reshape(height, width, 3)
        else:
            frame = VideoFrame.from_ndarray(picture.reshape(-1, width), format="yuv420p")
            yield frame.to_ndarray(format="rgb24")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures")
    parser.add_argument("sound")
    parser.add_argument("--format", default="rgb", choices=BYTES_OF_TWO_PIXELS)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--columns", type=int, default=8, help="colour bars of the picture")
    args = parser.parse_args()
    picture, sound = PictureMeter(args.columns), SoundMeter()
    for rgb in pictures_of(args):
        picture.add(rgb)
    sound.add(numpy.fromfile(args.sound, numpy.int16)[::2] / 32768)
    print(json.dumps({"picture": picture.report(), "sound": sound.report()}))
