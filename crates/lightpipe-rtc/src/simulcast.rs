//! Simulcast in descriptions (RFC 8851, 8853): which layers of a publisher we take, and which of ours others do.

use str0m::media::{Rid, Simulcast, SimulcastLayer};

use crate::OfferError;

/// Most layers that one publisher may send. Of more in an offer the first are taken, which it prefers (RFC 8853 §5.2).
pub const MAX_LAYERS: usize = 4;

/// Most RIDs of one m-line; nobody who means it writes more.
const MAX_RIDS: usize = 16;

/// Longest RID that the engine tells from others.
const MAX_RID_LEN: usize = 8;

/// The offer with simulcast as we take it: up to [`MAX_LAYERS`] layers on a line, the first of each group of alternatives, and no
/// restriction but what the names say. RIDs without part in it are left out; the engine would wait for them.
pub(crate) fn with_our_layers(offer: &str) -> Result<String, OfferError> {
    if !offer.contains("a=rid:") && !offer.contains("a=simulcast:") {
        return Ok(offer.to_owned());
    }
    let mut taken = String::with_capacity(offer.len());
    let mut rest = offer;
    while !rest.is_empty() {
        let end = rest.find("\nm=").map_or(rest.len(), |at| at + 1);
        let (section, after) = rest.split_at(end);
        rest = after;
        let layers = wanted(section)?;
        for line in section.lines().filter(|l| !l.starts_with("a=rid:") && !l.starts_with("a=simulcast:")) {
            taken.push_str(line.trim_end());
            taken.push_str("\r\n");
        }
        for layer in &layers {
            taken.push_str(&format!("a=rid:{} send\r\n", layer.trim_start_matches('~')));
        }
        if !layers.is_empty() {
            taken.push_str(&format!("a=simulcast:send {}\r\n", layers.join(";")));
        }
    }
    Ok(taken)
}

/// RIDs of the m-line with this mid, best first as its writer ordered them: of an offer that [`with_our_layers`] went over.
pub(crate) fn layers_of(offer: &str, mid: &str) -> Vec<String> {
    let rids = section_of(offer, mid).into_iter().flat_map(|section| listed(section, "send"));
    rids.map(|rid| rid.trim_start_matches('~').to_owned()).collect()
}

/// Simulcast of these RIDs for an offer of ours; none where it would be no choice, or the names are none (RFC 8852 §3).
pub(crate) fn offered(rids: &[String]) -> Option<Simulcast> {
    let good = |rid: &String| (1..=MAX_RID_LEN).contains(&rid.len()) && rid.bytes().all(|b| b.is_ascii_alphanumeric());
    let distinct = rids.iter().enumerate().all(|(at, rid)| !rids[..at].contains(rid));
    if !(2..=MAX_LAYERS).contains(&rids.len()) || !distinct || !rids.iter().all(good) {
        return None;
    }
    let mut simulcast = Simulcast::new();
    rids.iter().for_each(|rid| simulcast.add_send_layer(SimulcastLayer::new(rid)));
    Some(simulcast)
}

/// RIDs that an answer takes of those that we offered on the line with this mid, best first; one that it wants paused it does not want yet.
pub(crate) fn taken(answer: &str, mid: &str, offered: &[String]) -> Vec<Rid> {
    let Some(section) = section_of(answer, mid) else { return Vec::new() };
    let mut taken: Vec<&str> = listed(section, "recv").filter(|rid| offered.iter().any(|ours| ours == rid)).collect();
    taken.sort_by_key(|rid| offered.iter().position(|ours| ours == rid));
    taken.dedup();
    taken.into_iter().map(Rid::from).collect()
}

fn section_of<'a>(sdp: &'a str, mid: &str) -> Option<&'a str> {
    let mut sections = sdp.split("\nm=").skip(1);
    sections.find(|s| s.lines().any(|l| l.strip_prefix("a=mid:").is_some_and(|m| m.trim_end() == mid)))
}

/// RIDs that a section's `a=simulcast` line has for a direction, the first of each group of alternatives; `~` marks those that begin paused.
fn listed<'a>(section: &'a str, direction: &str) -> impl Iterator<Item = &'a str> {
    let line = section.lines().find_map(|line| line.strip_prefix("a=simulcast:")).unwrap_or_default();
    let mut words = line.split_ascii_whitespace();
    let list = words.find(|word| *word == direction).and_then(|_| words.next()).unwrap_or_default();
    list.split(';').filter_map(|group| group.split(',').next()).filter(|rid| !rid.is_empty())
}

/// The layers of one section that we take.
fn wanted(section: &str) -> Result<Vec<&str>, OfferError> {
    let mut defined: Vec<(&str, bool)> = Vec::new();
    for line in section.lines().filter_map(|line| line.strip_prefix("a=rid:")) {
        let (rid, direction) = line.split_once(' ').unwrap_or((line, ""));
        // RFC 8851 §10. RFC 8852 §3 allows letters and digits only; `-` and `_` are seen all the same.
        if rid.is_empty() || !rid.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(OfferError::Malformed(format!("bad RID {:?}", rid.chars().take(40).collect::<String>())));
        }
        if defined.iter().any(|(other, _)| *other == rid) {
            return Err(OfferError::Malformed(format!("RID {rid:?} twice on one m-line")));
        }
        if defined.len() == MAX_RIDS {
            return Err(OfferError::TooLarge { what: format!("{} RIDs on an m-line", MAX_RIDS + 1), limit: MAX_RIDS });
        }
        defined.push((rid, direction.trim_end().split(' ').next() == Some("send")));
    }
    let mut layers: Vec<&str> = Vec::new();
    for layer in listed(section, "send") {
        let rid = layer.trim_start_matches('~');
        // RFC 8853 §5.1: a list names a RID once. One without its own line is not there (§5.3.2).
        if layers.iter().any(|other| other.trim_start_matches('~') == rid) {
            return Err(OfferError::Malformed(format!("RID {rid:?} twice in a=simulcast")));
        }
        let distinct = rid.len() <= MAX_RID_LEN
            && layers.iter().all(|other| Rid::from(other.trim_start_matches('~')) != Rid::from(rid));
        if distinct && defined.contains(&(rid, true)) && layers.len() < MAX_LAYERS {
            layers.push(layer);
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "v=0\r\nm=audio 9 x 111\r\na=mid:0\r\nm=video 9 x 96\r\na=mid:1\r\n";

    fn rids(ids: &[&str]) -> String {
        ids.iter().map(|id| format!("a=rid:{id}\r\n")).collect()
    }

    #[test]
    fn up_to_four_layers_are_taken_in_their_order() {
        #[track_caller]
        fn check(ids: &[&str], line: &str, expected: &[&str]) {
            let offer = format!("{HEAD}{}a=simulcast:{line}\r\na=rtcp-mux\r\n", rids(ids));
            let taken = with_our_layers(&offer).expect("a good offer");
            assert_eq!(layers_of(&taken, "1"), expected, "{taken}");
            assert!(layers_of(&taken, "0").is_empty());
            assert_eq!(taken.matches("a=rid:").count(), expected.len(), "{taken}");
            assert_eq!(taken.matches("a=simulcast:").count(), usize::from(!expected.is_empty()), "{taken}");
            assert!(taken.starts_with(HEAD) && taken.contains("a=rtcp-mux\r\n"), "{taken}");
            assert_eq!(with_our_layers(&taken).as_ref(), Ok(&taken), "nothing more to do");
        }
        check(&["f send", "h send", "q send"], "send f;h;q", &["f", "h", "q"]);
        check(&["q send", "f send max-width=1280;max-br=2000000"], "send f;~q", &["f", "q"]);
        check(&["f send", "g send pt=96", "q send"], "send f,g;q recv x", &["f", "q"]);
        check(&["a send", "b send", "c send", "d send", "e send"], "send a;b;c;d;e", &["a", "b", "c", "d"]);
        check(&["0 send", "hi-1 send", "hi_1 send"], "send 0;hi-1;hi_1", &["0", "hi-1"]);
        check(&["f send", "muchtoolong send"], "send f;muchtoolong", &["f"]);
        check(&["f send"], "send f;nowhere", &["f"]);
        check(&["f recv", "h recv"], "recv f;h", &[]);
        check(&["f recv", "h send"], "send f;h", &["h"]);
        check(&["f send"], "", &[]);
        check(&["f send"], "send", &[]);
    }

    #[test]
    fn paused_layers_stay_paused_and_rids_without_simulcast_are_left_out() {
        let offer = format!("{HEAD}{}a=simulcast:send f;~q\r\n", rids(&["f send", "q send"]));
        assert!(with_our_layers(&offer).is_ok_and(|taken| taken.contains("a=simulcast:send f;~q\r\n")));
        let offer = format!("{HEAD}{}", rids(&["f send", "q send"]));
        assert_eq!(with_our_layers(&offer).as_deref(), Ok(HEAD));
        assert_eq!(with_our_layers(HEAD).as_deref(), Ok(HEAD));
    }

    #[test]
    fn an_answer_takes_all_some_or_none_of_what_we_offered() {
        let ours = ["f", "h", "q"].map(str::to_owned);
        let check = |line: &str, expected: &[&str]| {
            let answer = format!("{HEAD}{}{line}\r\n", rids(&["f recv", "h recv", "q recv"]));
            let expected: Vec<Rid> = expected.iter().copied().map(Rid::from).collect();
            assert_eq!(taken(&answer, "1", &ours), expected, "{line}");
        };
        check("a=simulcast:recv f;h;q", &["f", "h", "q"]);
        check("a=simulcast:recv q;f", &["f", "q"]);
        check("a=simulcast:recv ~f;h,q;x", &["h"]);
        check("a=simulcast:send f;h", &[]);
        check("a=rtcp-mux", &[]);
        assert!(taken("v=0", "1", &ours).is_empty());
        let offers = |rids: &[&str]| offered(&rids.iter().map(|rid| (*rid).to_owned()).collect::<Vec<_>>()).is_some();
        assert!(offers(&["f", "h", "q"]) && offers(&["f", "q"]));
        for none in [&["f"][..], &[], &["f", "f"], &["f", "h-1"], &["f", "muchtoolong"], &["a", "b", "c", "d", "e"]] {
            assert!(!offers(none), "{none:?}");
        }
    }

    #[test]
    fn broken_rids_are_refused() {
        #[track_caller]
        fn check(lines: &str) {
            let refused = with_our_layers(&format!("{HEAD}{lines}"));
            assert!(matches!(refused, Err(OfferError::Malformed(_) | OfferError::TooLarge { .. })), "{refused:?}");
        }
        check("a=rid:f send\r\na=rid:f send\r\na=simulcast:send f\r\n");
        check("a=rid:f send\r\na=simulcast:send f;f\r\n");
        check("a=rid:f send\r\na=rid:h send\r\na=simulcast:send f;~f\r\n");
        check("a=rid: send\r\na=simulcast:send f\r\n");
        check("a=rid:\u{e4} send\r\n");
        let hundred: String = (0..100).map(|n| format!("a=rid:r{n} send\r\n")).collect();
        check(&hundred);
    }
}
