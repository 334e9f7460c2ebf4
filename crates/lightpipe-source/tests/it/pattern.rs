//! The pattern source on a real clock.

use lightpipe_media::{EventKind, Size, timecode};
use lightpipe_source::pattern::{self, Config};

use crate::cube::{next, sink, watch};

#[test]
fn pictures_carry_the_time_at_which_they_were_made() {
    let sink = sink("pattern");
    let config = Config { size: Size::new(640, 360), fps: 60.0 };
    let _source = pattern::start(config, sink.clone()).expect("starts anywhere");
    let _viewer = watch(&sink);
    for _ in 0..10 {
        let frame = next(&sink);
        assert_eq!(frame.size(), Size::new(640, 360));
        let expected = (sink.clock.unix_micros(frame.captured) / 1000) as u32;
        assert_eq!(timecode::read(&frame), Some(expected));
    }
    let first = sink.events.since(0).into_iter().next().expect("an event");
    assert_eq!((first.kind, first.stream.as_str()), (EventKind::FirstFrameIngested, "pattern"));
}
