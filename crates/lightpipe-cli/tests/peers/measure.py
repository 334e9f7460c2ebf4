"""Says of raw pictures (RGB) and raw sound (16 bits, stereo, 48 kHz) in files what view.py says of what it receives itself."""

import argparse
import json

import numpy

from common import PictureMeter, SoundMeter

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures")
    parser.add_argument("sound")
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--columns", type=int, default=8, help="colour bars of the picture")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    picture, sound = PictureMeter(args.columns), SoundMeter()
    # The last picture may be incomplete: its writer was stopped.
    pictures = numpy.fromfile(args.pictures, numpy.uint8)
    for rgb in pictures[: len(pictures) // (width * height * 3) * width * height * 3].reshape(-1, height, width, 3):
        picture.add(rgb)
    samples = numpy.fromfile(args.sound, numpy.int16)
    sound.add(samples[::2] / 32768)
    print(json.dumps({"picture": picture.report(), "sound": sound.report()}))
