//! Beginnings and endings.

use lightpipe_rtc::{DisconnectCause, PeerEvent};
use lightpipe_testkit::netlab::LinkConfig;

use crate::lab::{Lab, Viewer, ms, secs};
use crate::raw::RawConfig;

fn link() -> LinkConfig {
    LinkConfig::default().with_delay_millis(10)
}

/// The peer's endings and when they came, since the start.
fn endings(lab: &Lab, index: usize) -> Vec<(std::time::Duration, DisconnectCause)> {
    let closed = lab.pairs[index].events.iter().filter_map(|(at, event)| match event {
        PeerEvent::Closed(cause) => Some((*at - lab.base, *cause)),
        _ => None,
    });
    closed.collect()
}

#[test]
fn connection_and_first_picture_take_a_few_round_trips() {
    for (delay, estimate, limit) in [(0, false, ms(60)), (0, true, ms(60)), (20, false, ms(200)), (20, true, ms(200))] {
        let link = LinkConfig::default().with_delay_millis(delay);
        let mut lab = Lab::seeded(1);
        lab.config.estimate_bandwidth = estimate;
        let viewer = lab.join(link.clone(), link);
        let connected = lab.connect();
        let picture = connected + lab.run_until(secs(2), |lab| !lab.pairs[viewer].pictures.is_empty());
        println!(
            "{} ms round trip, estimation {estimate}: connected after {connected:?}, first picture after {picture:?}",
            2 * delay
        );
        assert!(picture < limit, "{picture:?}");
        assert!(lab.pairs[viewer].pictures[0].keyframe);
    }
}

#[test]
fn viewer_that_vanishes_is_noticed_within_thirty_seconds() {
    let mut lab = Lab::seeded(2);
    let viewer = lab.join(link(), link());
    lab.connect();
    lab.run_for(secs(5));
    lab.pairs[viewer].viewer = Viewer::Gone;
    lab.run_for(secs(60));
    let endings = endings(&lab, viewer);
    println!("vanished at 5 s: {endings:?}");
    assert!(matches!(endings[..], [(at, DisconnectCause::IceTimeout)] if at < secs(60)), "{endings:?}");
}

/// What nobody takes nobody should encode; and it may only be in a tunnel.
#[test]
fn viewer_that_falls_silent_is_given_nothing_until_it_is_heard_again() {
    let mut lab = Lab::seeded(8);
    let viewer = lab.join(link(), link());
    lab.connect();
    lab.run_for(secs(5));
    let said = |lab: &Lab, event: PeerEvent| lab.pairs[viewer].events.iter().filter(|(_, e)| *e == event).count();
    assert_eq!(said(&lab, PeerEvent::Silent), 0, "reports come every second");
    lab.set_network(viewer, link(), LinkConfig::default().with_loss(1.0));
    let after = lab.run_until(secs(6), |lab| said(lab, PeerEvent::Silent) == 1);
    assert!(after > secs(3), "{after:?}");
    let sent = lab.pairs[viewer].peer.counters().sent_frames;
    lab.run_for(secs(10));
    assert_eq!(lab.pairs[viewer].peer.counters().sent_frames, sent);

    let shown = lab.pairs[viewer].pictures.len();
    lab.set_network(viewer, link(), link());
    let heard = lab.run_until(secs(4), |lab| said(lab, PeerEvent::Heard) == 1);
    let picture = lab.run_until(secs(1), |lab| lab.pairs[viewer].pictures.len() > shown);
    println!("silent after {after:?}, heard again after {heard:?}, a picture {picture:?} later");
    assert!(picture < ms(200) && lab.pairs[viewer].pictures[shown].keyframe, "{picture:?}");
    lab.run_for(secs(60));
    assert_eq!((said(&lab, PeerEvent::Silent), endings(&lab, viewer).len()), (1, 0), "the same session");
}

#[test]
fn viewer_that_never_connects_is_given_up_after_fifteen_seconds() {
    for answer_reaches in [false, true] {
        let mut lab = Lab::seeded(3);
        let dead = LinkConfig::default().with_loss(1.0);
        // A firewall that lets nothing in, and one that lets nothing out.
        let (down, up) = if answer_reaches { (dead, link()) } else { (link(), dead) };
        let viewer = lab.join(down, up);
        lab.run_for(secs(40));
        let endings = endings(&lab, viewer);
        assert!(
            matches!(endings[..], [(at, DisconnectCause::IceNeverConnected)] if (secs(15)..secs(16)).contains(&at)),
            "{endings:?}"
        );
        assert_eq!(lab.pairs[viewer].peer.counters().sent_frames, 0);
    }
}

#[test]
fn close_says_goodbye_and_the_viewer_notices_within_a_second() {
    for cause in [DisconnectCause::Shutdown, DisconnectCause::SignallingClosed] {
        let mut lab = Lab::seeded(4);
        let native = lab.join(link(), link());
        let raw = lab.join_raw(&RawConfig { channel: true, ..RawConfig::default() }, link(), link());
        lab.connect();
        lab.run_for(secs(2));
        let at = lab.now;
        for index in [native, raw] {
            let now = lab.now;
            lab.pairs[index].peer.close(now, cause);
            lab.pairs[index].peer.close(now, DisconnectCause::Failed); // the first cause stands
            lab.drain_peer(index);
        }
        lab.run_for(secs(1));
        for index in [native, raw] {
            let noticed = lab.pairs[index].viewer_events.iter().find(|(_, e)| matches!(e, PeerEvent::Closed(_)));
            let (when, event) = noticed.expect("the viewer hears the goodbye");
            println!("goodbye heard after {:?}", *when - at);
            assert_eq!(*event, PeerEvent::Closed(DisconnectCause::ClosedByPeer));
        }
        assert!(lab.pairs[raw].viewer.raw().is_closed());
        let messages = &lab.pairs[raw].viewer.raw().messages;
        let bye =
            messages.iter().any(|(_, text)| text.contains(r#""type":"bye""#) && text.contains(r#""cause":"shutdown""#));
        assert_eq!(bye, cause == DisconnectCause::Shutdown, "{messages:?}");
        lab.run_for(secs(30));
        for index in [native, raw] {
            let endings = endings(&lab, index);
            assert!(
                matches!(endings[..], [(when, of)] if of == cause && when < at - lab.base + secs(1)),
                "{endings:?}"
            );
        }
    }
}

#[test]
fn viewer_that_says_goodbye_is_gone_at_once() {
    let mut lab = Lab::seeded(5);
    let native = lab.join(link(), link());
    let raw = lab.join_raw(&RawConfig::default(), link(), link());
    lab.connect();
    lab.run_for(secs(2));
    lab.pairs[native].viewer.native().close();
    lab.pairs[raw].viewer.raw().close();
    lab.drain_viewer(native);
    lab.drain_viewer(raw);
    lab.run_for(secs(20));
    for index in [native, raw] {
        let endings = endings(&lab, index);
        assert!(matches!(endings[..], [(at, DisconnectCause::ClosedByPeer)] if at < secs(4)), "{endings:?}");
    }
}

#[test]
fn closing_before_the_connection_is_immediate() {
    let mut lab = Lab::seeded(6);
    let viewer = lab.join(link(), link());
    let now = lab.now;
    lab.pairs[viewer].peer.close(now, DisconnectCause::SignallingClosed);
    lab.drain_peer(viewer);
    lab.run_for(secs(20));
    assert!(matches!(endings(&lab, viewer)[..], [(at, DisconnectCause::SignallingClosed)] if at < ms(1)));
}

#[test]
fn nothing_comes_after_the_end() {
    let mut lab = Lab::seeded(7);
    let viewer = lab.join(link(), link());
    lab.connect();
    lab.run_for(secs(1));
    let now = lab.now;
    lab.pairs[viewer].peer.close(now, DisconnectCause::Shutdown);
    lab.drain_peer(viewer);
    lab.run_for(secs(1));
    let (sent, events) = (lab.pairs[viewer].peer.counters().sent_packets, lab.pairs[viewer].events.len());
    lab.run_for(secs(30));
    assert_eq!(lab.pairs[viewer].peer.counters().sent_packets, sent);
    assert_eq!(lab.pairs[viewer].events.len(), events);
}
