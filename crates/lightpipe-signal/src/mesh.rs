//! One member's view of a mesh: who is there, who offers to whom, when a connection is tried again. Time is an argument.
//!
//! ```text
//!              ┌── pause ◀────────────── down, nobody answers ──────────┐
//!              ▼                                                        │
//!   nothing ─▶ offering ─▶ connecting ─▶ up ⇄ silent ─▶ restarting ─▶ (new session)
//!        └───── their offer ───▲
//! ```
//!
//! Of two peers the one whose id is smaller makes the first offer, so that there is exactly one, and it is the impolite one of perfect
//! negotiation: where both offer at once, its offer stands. The other one answers, and offers nothing by itself.
//!
//! A connection outlives the signalling that made it: who is away from the server, or from a server that was restarted, keeps what it has. What
//! peers say of themselves tells a member that came back (the same `session` in its `user_data`) from another one under its name.
//!
//! Calls: one of the methods that take `now`, then [`Mesh::take`] until it is empty; [`Mesh::tick`] at [`Mesh::wake_at`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::reconnect::Backoff;
use crate::room::MAX_MEMBERS;

/// An offer that nobody answered by then is over. Longer than the server lets one stand in the way of the next.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(11);

/// An answered offer that brought no connection by then is over; the session itself gives up a little sooner.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// How long an ICE restart may take; then a new session is tried.
pub const RESTART_LIMIT: Duration = Duration::from_secs(6);

/// Longest pause between two attempts: a network that comes back should not be waited for longer than the eye notices.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Candidates that may come before their offer.
const EARLY_CANDIDATES: usize = 64;

/// Number of a connection; a peer that is tried again has another one.
pub type LinkId = u64;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make a connection and send its offer.
    Offer {
        /// To whom.
        peer: String,
        /// Its number.
        link: LinkId,
    },
    /// Make a connection of this offer and send the answer.
    Answer {
        /// Whose.
        peer: String,
        /// Its number.
        link: LinkId,
        /// The offer.
        sdp: String,
    },
    /// Take another offer on a connection that there is, and send the answer. What we offered ourselves is over.
    Renegotiate {
        /// Whose.
        peer: String,
        /// Which one.
        link: LinkId,
        /// The offer.
        sdp: String,
    },
    /// Take the answer to our offer.
    Accept {
        /// Which one.
        link: LinkId,
        /// The answer.
        sdp: String,
    },
    /// Give a connection a candidate of the other side.
    Candidate {
        /// Which one.
        link: LinkId,
        /// As it was sent: a string, an object, or null.
        candidate: Value,
    },
    /// Offer new ICE credentials on a connection that there is.
    Restart {
        /// To whom.
        peer: String,
        /// Which one.
        link: LinkId,
    },
    /// End a connection.
    Close {
        /// Which one.
        link: LinkId,
    },
    /// Somebody wants to know.
    Tell(News),
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum News {
    /// Somebody came into the room, or is there.
    Joined {
        /// Its id.
        peer: String,
        /// What it says of itself.
        user_data: Value,
    },
    /// Media and data flow.
    Connected {
        /// With whom.
        peer: String,
        /// From the first attempt, or from the loss.
        took: Duration,
        /// It was connected before.
        again: bool,
    },
    /// Nothing comes any more; it is tried again.
    Lost {
        /// From whom.
        peer: String,
    },
    /// It is not there any more.
    Left {
        /// Who.
        peer: String,
    },
}

/// What is known of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Ours, unanswered.
    Offering,
    Connecting,
    Up,
    /// Nothing comes.
    Silent,
    /// The same, and our offer of new credentials is unanswered.
    Restarting,
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    phase: Phase,
    /// When it came into this phase.
    since: Instant,
    /// When it was up first.
    up: Option<Instant>,
    /// New credentials were tried since it fell silent.
    restarted: bool,
    /// Which session of the other side it leads to; unknown until that says something.
    origin: Option<String>,
}

#[derive(Debug)]
struct Peer {
    /// The server says so.
    present: bool,
    user_data: Value,
    link: Option<Link>,
    /// No offer before.
    pause_until: Option<Instant>,
    backoff: Backoff,
    /// Since when it should be connected.
    wanted_since: Instant,
    was_connected: bool,
    /// Whether [`News::Lost`] was the last that was said.
    lost: bool,
    early: Vec<Value>,
}

impl Peer {
    fn new(now: Instant, user_data: Value) -> Self {
        Self {
            present: true,
            user_data,
            link: None,
            pause_until: None,
            backoff: Backoff::default(),
            wanted_since: now,
            was_connected: false,
            lost: false,
            early: Vec::new(),
        }
    }
}

/// One member's view of its mesh.
#[derive(Debug)]
pub struct Mesh {
    me: String,
    online: bool,
    peers: BTreeMap<String, Peer>,
    next_link: LinkId,
    actions: VecDeque<Action>,
    random: fastrand::Rng,
}

impl Mesh {
    /// Of this id. The seed is for pauses, so that many that lost each other do not all come back at once.
    pub fn new(me: impl Into<String>, seed: u64) -> Self {
        Self {
            me: me.into(),
            online: false,
            peers: BTreeMap::new(),
            next_link: 1,
            actions: VecDeque::new(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The next thing to do.
    pub fn take(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Self::tick`].
    pub fn wake_at(&self) -> Option<Instant> {
        self.peers.iter().filter_map(|(id, peer)| self.next_step(id, peer)).min()
    }

    /// Everybody that is known, and whether it is connected.
    pub fn peers(&self) -> impl Iterator<Item = (&str, bool)> {
        self.peers
            .iter()
            .map(|(id, peer)| (id.as_str(), peer.link.as_ref().is_some_and(|link| matches!(link.phase, Phase::Up))))
    }

    /// Whose connection this is; none of one that is over.
    pub fn peer_of(&self, link: LinkId) -> Option<&str> {
        self.peers.iter().find(|(_, peer)| peer.link.as_ref().is_some_and(|l| l.id == link)).map(|(id, _)| id.as_str())
    }

    /// The server took us into the room and says who is there: ids and what they say of themselves.
    pub fn announced(&mut self, now: Instant, present: Vec<(String, Value)>) {
        self.online = true;
        let absent: Vec<String> =
            self.peers.keys().filter(|id| !present.iter().any(|(other, _)| other == *id)).cloned().collect();
        for id in absent {
            self.vanished(&id);
        }
        for (id, user_data) in present {
            self.joined(now, &id, user_data);
        }
    }

    /// The server cannot be reached. What is connected stays so.
    pub fn offline(&mut self, now: Instant) {
        self.online = false;
        for peer in self.peers.values_mut() {
            let Some(link) = &mut peer.link else { continue };
            match link.phase {
                // Nobody knows whether it arrived.
                Phase::Offering => {
                    self.actions.push_back(Action::Close { link: link.id });
                    peer.link = None;
                }
                Phase::Restarting => (link.phase, link.since) = (Phase::Silent, now),
                _ => {}
            }
        }
    }

    /// Somebody came into the room, or says something else about itself.
    pub fn joined(&mut self, now: Instant, id: &str, user_data: Value) {
        if id == self.me || (!self.peers.contains_key(id) && self.peers.len() + 1 >= MAX_MEMBERS) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(id) {
            let session = |data: &Value| data.get("session").and_then(Value::as_str).map(str::to_owned);
            let (before, after) = (session(&peer.user_data), session(&user_data));
            // Who says nothing of its session is taken for the same: its next description tells.
            let same = before.is_none() || after.is_none() || before == after;
            peer.present = true;
            peer.user_data = user_data.clone();
            if same {
                self.step(now, id);
                return;
            }
            self.remove(id);
        }
        self.peers.insert(id.to_owned(), Peer::new(now, user_data.clone()));
        self.tell(News::Joined { peer: id.to_owned(), user_data });
        self.step(now, id);
    }

    /// It said goodbye.
    pub fn left(&mut self, id: &str) {
        self.remove(id);
    }

    /// The server lost it, or it is not in the room. Its connection may be there all the same.
    pub fn vanished(&mut self, id: &str) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.present = false;
        if !peer.link.as_ref().is_some_and(|link| link.phase == Phase::Up) {
            self.remove(id);
        }
    }

    /// An offer came.
    pub fn offered(&mut self, now: Instant, from: &str, sdp: String) {
        if !self.peers.contains_key(from) {
            self.joined(now, from, Value::Null);
        }
        let impolite = self.me.as_str() < from;
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.present = true;
        let origin = origin(&sdp);
        if let Some(link) = &mut peer.link {
            let ours_is_under_way = matches!(link.phase, Phase::Offering | Phase::Restarting);
            if ours_is_under_way && impolite {
                return;
            }
            if link.origin.is_some() && link.origin == origin {
                if link.phase == Phase::Restarting {
                    (link.phase, link.since) = (Phase::Silent, now);
                }
                let link = link.id;
                self.actions.push_back(Action::Renegotiate { peer: from.to_owned(), link, sdp });
                return;
            }
            // It began anew.
            self.actions.push_back(Action::Close { link: link.id });
            self.lose(now, from);
        }
        let id = self.next_link;
        self.next_link += 1;
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.link = Some(Link { id, phase: Phase::Connecting, since: now, up: None, restarted: false, origin });
        peer.pause_until = None;
        let early = std::mem::take(&mut peer.early);
        self.actions.push_back(Action::Answer { peer: from.to_owned(), link: id, sdp });
        self.actions.extend(early.into_iter().map(|candidate| Action::Candidate { link: id, candidate }));
    }

    /// An answer came.
    pub fn answered(&mut self, now: Instant, from: &str, sdp: String) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        let Some(link) = &mut peer.link else { return };
        let origin = origin(&sdp);
        match link.phase {
            Phase::Offering => (link.phase, link.since, link.origin) = (Phase::Connecting, now, origin),
            // It does not know the old session any more, and made a new one of our offer: that is of no use.
            Phase::Restarting if link.origin != origin => {
                self.end(now, from, Duration::ZERO);
                return;
            }
            Phase::Restarting => (link.phase, link.since) = (Phase::Silent, now),
            // An answer that nobody waits for: to an offer that is over.
            _ => return,
        }
        let link = link.id;
        let early = std::mem::take(&mut peer.early);
        self.actions.push_back(Action::Accept { link, sdp });
        self.actions.extend(early.into_iter().map(|candidate| Action::Candidate { link, candidate }));
    }

    /// A candidate came.
    pub fn candidate(&mut self, from: &str, candidate: Value) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        match &peer.link {
            Some(link) if link.phase != Phase::Offering => {
                self.actions.push_back(Action::Candidate { link: link.id, candidate });
            }
            _ if peer.early.len() < EARLY_CANDIDATES => peer.early.push(candidate),
            _ => {}
        }
    }

    /// A connection is up.
    pub fn up(&mut self, now: Instant, link: LinkId) {
        let Some((id, peer)) = self.find(link) else { return };
        let Some(link) = &mut peer.link else { return };
        let first = link.up.is_none();
        (link.phase, link.since, link.restarted) = (Phase::Up, now, false);
        link.up.get_or_insert(now);
        if first || peer.lost {
            let took = now.saturating_duration_since(peer.wanted_since);
            let again = std::mem::replace(&mut peer.was_connected, true);
            peer.lost = false;
            self.tell(News::Connected { peer: id, took, again });
        }
    }

    /// Nothing has come on a connection for some seconds.
    pub fn silent(&mut self, now: Instant, link: LinkId) {
        let Some((id, peer)) = self.find(link) else { return };
        if let Some(link) = peer.link.as_mut().filter(|link| link.phase == Phase::Up) {
            (link.phase, link.since) = (Phase::Silent, now);
            peer.wanted_since = now;
        }
        if peer.present {
            self.lost(&id);
            self.restart(now, &id);
        } else {
            self.remove(&id);
        }
    }

    /// Something came again.
    pub fn heard(&mut self, now: Instant, link: LinkId) {
        self.up(now, link);
    }

    /// A connection ended, or could not be made.
    pub fn down(&mut self, now: Instant, link: LinkId) {
        let Some((id, peer)) = self.find(link) else { return };
        let lasted =
            peer.link.take().and_then(|link| link.up).map_or(Duration::ZERO, |up| now.saturating_duration_since(up));
        if peer.present {
            self.pause(now, &id, lasted);
        } else {
            self.remove(&id);
        }
    }

    /// The server did not deliver our offer or answer, or the other side's cannot be used.
    pub fn refused(&mut self, now: Instant, link: LinkId) {
        if let Some((id, _)) = self.find(link) {
            self.end(now, &id, Duration::ZERO);
        }
    }

    /// Time has come.
    pub fn tick(&mut self, now: Instant) {
        for id in self.peers.keys().cloned().collect::<Vec<_>>() {
            self.step(now, &id);
        }
    }

    /// We leave: everything ends.
    pub fn leave(&mut self) {
        self.online = false;
        for id in self.peers.keys().cloned().collect::<Vec<_>>() {
            self.remove(&id);
        }
    }

    /// When something is due for a peer, as things stand.
    fn next_step(&self, id: &str, peer: &Peer) -> Option<Instant> {
        match &peer.link {
            None => {
                let offers = self.online && peer.present && self.me.as_str() < id;
                offers.then_some(peer.pause_until).flatten()
            }
            Some(link) => match link.phase {
                Phase::Offering => Some(link.since + ANSWER_LIMIT),
                Phase::Connecting => Some(link.since + CONNECT_LIMIT),
                Phase::Up => None,
                Phase::Silent | Phase::Restarting => {
                    // Who does not offer waits for the other one, or for the session's own end.
                    (self.me.as_str() < id && self.online).then(|| link.since + RESTART_LIMIT)
                }
            },
        }
    }

    fn step(&mut self, now: Instant, id: &str) {
        let Some(peer) = self.peers.get(id) else { return };
        match &peer.link {
            None => {
                let due = peer.pause_until.is_none_or(|until| now >= until);
                if self.online && peer.present && due && self.me.as_str() < id {
                    self.offer(now, id);
                }
            }
            // The server was away when it fell silent.
            Some(link) if link.phase == Phase::Silent && !link.restarted => self.restart(now, id),
            Some(_) => {
                if self.next_step(id, peer).is_some_and(|due| now >= due) {
                    self.end(now, id, Duration::ZERO);
                }
            }
        }
    }

    fn offer(&mut self, now: Instant, id: &str) {
        let link = self.next_link;
        self.next_link += 1;
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.pause_until = None;
        peer.early.clear();
        peer.link =
            Some(Link { id: link, phase: Phase::Offering, since: now, up: None, restarted: false, origin: None });
        self.actions.push_back(Action::Offer { peer: id.to_owned(), link });
    }

    /// New credentials for a silent connection, once.
    fn restart(&mut self, now: Instant, id: &str) {
        let offers = self.online && self.me.as_str() < id;
        let Some(link) = self.peers.get_mut(id).and_then(|peer| peer.link.as_mut()).filter(|_| offers) else { return };
        if link.phase == Phase::Silent && !std::mem::replace(&mut link.restarted, true) {
            (link.phase, link.since) = (Phase::Restarting, now);
            self.actions.push_back(Action::Restart { peer: id.to_owned(), link: link.id });
        }
    }

    /// Ends a connection of ours; another one follows.
    fn end(&mut self, now: Instant, id: &str, lasted: Duration) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Some(link) = peer.link.take() {
            self.actions.push_back(Action::Close { link: link.id });
        }
        if peer.present {
            self.pause(now, id, lasted);
        } else {
            self.remove(id);
        }
    }

    fn pause(&mut self, now: Instant, id: &str, lasted: Duration) {
        let jitter = self.random.f64();
        self.lose(now, id);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.pause_until = Some(now + peer.backoff.after(lasted, None, jitter).min(LONGEST_PAUSE));
        }
    }

    /// A connection is no more.
    fn lose(&mut self, now: Instant, id: &str) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.link = None;
            if peer.was_connected && !peer.lost {
                peer.wanted_since = now;
            }
        }
        self.lost(id);
    }

    fn lost(&mut self, id: &str) {
        if let Some(peer) = self.peers.get_mut(id)
            && peer.was_connected
            && !std::mem::replace(&mut peer.lost, true)
        {
            self.tell(News::Lost { peer: id.to_owned() });
        }
    }

    fn remove(&mut self, id: &str) {
        let Some(peer) = self.peers.remove(id) else { return };
        if let Some(link) = peer.link {
            self.actions.push_back(Action::Close { link: link.id });
        }
        self.tell(News::Left { peer: id.to_owned() });
    }

    fn find(&mut self, link: LinkId) -> Option<(String, &mut Peer)> {
        let found = self.peers.iter_mut().find(|(_, peer)| peer.link.as_ref().is_some_and(|l| l.id == link));
        found.map(|(id, peer)| (id.clone(), peer))
    }

    fn tell(&mut self, news: News) {
        self.actions.push_back(Action::Tell(news));
    }
}

/// Which session a description is of: `o=`'s user, id and address, which stay for the session's life (RFC 8829 §5.2.2). The version counts up.
fn origin(sdp: &str) -> Option<String> {
    let mut fields = sdp.lines().find_map(|line| line.strip_prefix("o="))?.split_ascii_whitespace();
    let (user, id) = (fields.next()?, fields.next()?);
    Some(format!("{user} {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn sdp(of: &str, session: u64) -> String {
        format!("v=0\r\no={of} {session} 2 IN IP4 0.0.0.0\r\ns=-\r\n")
    }

    fn actions(mesh: &mut Mesh) -> Vec<String> {
        std::iter::from_fn(|| mesh.take())
            .map(|action| match action {
                Action::Offer { peer, link } => format!("offer {peer} {link}"),
                Action::Answer { peer, link, .. } => format!("answer {peer} {link}"),
                Action::Renegotiate { peer, link, .. } => format!("again {peer} {link}"),
                Action::Accept { link, .. } => format!("accept {link}"),
                Action::Candidate { link, .. } => format!("candidate {link}"),
                Action::Restart { peer, link } => format!("restart {peer} {link}"),
                Action::Close { link } => format!("close {link}"),
                Action::Tell(News::Joined { peer, .. }) => format!("joined {peer}"),
                Action::Tell(News::Connected { peer, again, .. }) => {
                    format!("{} {peer}", if again { "back" } else { "up" })
                }
                Action::Tell(News::Lost { peer }) => format!("lost {peer}"),
                Action::Tell(News::Left { peer }) => format!("left {peer}"),
            })
            .collect()
    }

    /// `m` in a room with `a` and `z`, connected to both: links 1 (to `z`, which it offered to) and 2.
    fn connected(now: Instant) -> Mesh {
        let mut mesh = Mesh::new("m", 1);
        mesh.announced(now, vec![("a".into(), json!({ "session": "1" })), ("z".into(), json!({ "session": "1" }))]);
        assert_eq!(actions(&mut mesh), ["joined a", "joined z", "offer z 1"], "the smaller id offers");
        mesh.candidate("a", json!("early"));
        mesh.candidate("z", json!("early"));
        mesh.offered(now, "a", sdp("a", 7));
        mesh.answered(now, "z", sdp("z", 7));
        assert_eq!(actions(&mut mesh), ["answer a 2", "candidate 2", "accept 1", "candidate 1"]);
        mesh.up(now, 1);
        mesh.up(now, 2);
        assert_eq!(actions(&mut mesh), ["up z", "up a"]);
        mesh
    }

    #[test]
    fn of_two_offers_at_once_the_one_of_the_smaller_id_stands() {
        let now = Instant::now();
        let mut mesh = connected(now);
        // Renegotiation by either side.
        mesh.offered(now, "a", sdp("a", 7));
        mesh.offered(now, "z", sdp("z", 7));
        assert_eq!(actions(&mut mesh), ["again a 2", "again z 1"]);
        // Both: ours to `z` is under way.
        mesh.silent(now, 1);
        assert_eq!(actions(&mut mesh), ["lost z", "restart z 1"]);
        mesh.offered(now, "z", sdp("z", 7));
        assert_eq!(actions(&mut mesh), [""; 0], "theirs is ignored");
        mesh.answered(now, "z", sdp("z", 7));
        mesh.heard(now, 1);
        assert_eq!(actions(&mut mesh), ["accept 1", "back z"]);
        mesh.silent(now, 2);
        assert_eq!(actions(&mut mesh), ["lost a"], "the other one offers");
        mesh.offered(now, "a", sdp("a", 7));
        assert_eq!(actions(&mut mesh), ["again a 2"]);
        // Another session of the same peer, and an answer that nobody waits for.
        mesh.offered(now, "a", sdp("a", 8));
        mesh.answered(now, "a", sdp("a", 8));
        assert_eq!(actions(&mut mesh), ["close 2", "answer a 3"]);
    }

    #[test]
    fn a_silent_connection_gets_new_credentials_and_then_a_new_session() {
        let mut now = Instant::now();
        let mut mesh = connected(now);
        now += MS(60_000);
        mesh.silent(now, 1);
        assert_eq!(actions(&mut mesh), ["lost z", "restart z 1"]);
        mesh.answered(now + MS(50), "z", sdp("z", 7));
        assert_eq!(actions(&mut mesh), ["accept 1"]);
        let due = mesh.wake_at().expect("it does not wait for ever");
        assert_eq!(due, now + MS(50) + RESTART_LIMIT);
        mesh.tick(due);
        assert_eq!(actions(&mut mesh), ["close 1"]);
        let again = mesh.wake_at().expect("and tries again");
        assert!(again - due <= Duration::from_secs(1));
        mesh.tick(again);
        assert_eq!(actions(&mut mesh), ["offer z 3"]);
        // Nobody answers, and nobody connects.
        mesh.tick(again + ANSWER_LIMIT);
        assert_eq!(actions(&mut mesh), ["close 3"]);
        // Whoever lost the session makes another one of our offer, which is of no use.
        let mut mesh = connected(now);
        mesh.silent(now, 1);
        mesh.answered(now, "z", sdp("z", 8));
        assert_eq!(actions(&mut mesh), ["lost z", "restart z 1", "close 1"]);
    }

    #[test]
    fn connections_outlive_the_server() {
        let now = Instant::now();
        let mut mesh = connected(now);
        mesh.offline(now);
        mesh.announced(now, vec![("a".into(), json!({ "session": "1" }))]);
        assert_eq!(actions(&mut mesh), [""; 0], "`z` may be on its way back");
        mesh.joined(now, "z", json!({ "session": "1" }));
        assert_eq!(actions(&mut mesh), [""; 0], "it is the same");
        mesh.vanished("z");
        mesh.joined(now, "z", json!({ "session": "2" }));
        assert_eq!(actions(&mut mesh), ["close 1", "left z", "joined z", "offer z 3"], "it is another one");
        mesh.vanished("a");
        mesh.joined(now, "a", Value::Null);
        assert_eq!(actions(&mut mesh), [""; 0], "it does not say, so its next description will");
        mesh.vanished("a");
        mesh.silent(now, 2);
        assert_eq!(actions(&mut mesh), ["close 2", "left a"]);
        mesh.left("z");
        assert_eq!(actions(&mut mesh), ["close 3", "left z"]);
    }

    #[test]
    fn no_more_than_ten_are_in_a_mesh() {
        let now = Instant::now();
        let mut mesh = Mesh::new("m", 1);
        mesh.announced(now, (0..20).map(|n| (format!("p{n:02}"), Value::Null)).collect());
        assert_eq!(mesh.peers().count(), MAX_MEMBERS - 1);
        assert_eq!(actions(&mut mesh).iter().filter(|did| did.starts_with("offer")).count(), MAX_MEMBERS - 1);
    }

    /// A room in virtual time: members, their server, and a network that may be cut.
    struct World {
        now: Instant,
        members: Vec<Member>,
        server_up: bool,
        /// What the server is about to deliver.
        mail: Vec<(Instant, usize, usize, Mail)>,
        sessions: u64,
        /// Whose path to whom is cut.
        cuts: Vec<(usize, usize)>,
    }

    struct Member {
        id: String,
        mesh: Mesh,
        online: bool,
        /// What the engine has: by link the session's number, the other side's member and session, when it fell silent.
        links: BTreeMap<LinkId, Session>,
    }

    #[derive(Clone)]
    struct Session {
        number: u64,
        other: usize,
        remote: Option<u64>,
        up: bool,
        cut_since: Option<Instant>,
        said_silent: bool,
    }

    #[derive(Clone)]
    enum Mail {
        Offer(LinkId, String),
        Answer(LinkId, String),
    }

    impl World {
        fn new(members: usize) -> Self {
            let member = |n: usize| Member {
                id: format!("p{n}"),
                mesh: Mesh::new(format!("p{n}"), n as u64 + 1),
                online: false,
                links: BTreeMap::new(),
            };
            Self {
                now: Instant::now(),
                members: (0..members).map(member).collect(),
                server_up: true,
                mail: Vec::new(),
                sessions: 0,
                cuts: Vec::new(),
            }
        }

        fn go_online(&mut self, who: usize) {
            if !self.server_up || std::mem::replace(&mut self.members[who].online, true) {
                return;
            }
            let data = |n: usize| json!({ "session": n.to_string() });
            let others: Vec<usize> = (0..self.members.len()).filter(|n| *n != who && self.members[*n].online).collect();
            let present = others.iter().map(|n| (self.members[*n].id.clone(), data(*n))).collect();
            let (now, id) = (self.now, self.members[who].id.clone());
            self.members[who].mesh.announced(now, present);
            for other in others {
                self.members[other].mesh.joined(now, &id, data(who));
            }
        }

        fn go_offline(&mut self, who: usize) {
            if !std::mem::replace(&mut self.members[who].online, false) {
                return;
            }
            let (now, id) = (self.now, self.members[who].id.clone());
            self.members[who].mesh.offline(now);
            for other in (0..self.members.len()).filter(|n| *n != who) {
                if self.members[other].online && self.server_up {
                    self.members[other].mesh.vanished(&id);
                }
            }
        }

        fn stop_server(&mut self) {
            self.server_up = false;
            self.mail.clear();
            for who in 0..self.members.len() {
                self.go_offline(who);
            }
        }

        fn member(&self, id: &str) -> usize {
            self.members.iter().position(|member| member.id == id).expect("a member")
        }

        fn is_cut(&self, a: usize, b: usize) -> bool {
            self.cuts.iter().any(|cut| *cut == (a.min(b), a.max(b)))
        }

        fn post(&mut self, from: usize, to: usize, mail: Mail, delay: u64) {
            self.mail.push((self.now + MS(delay), from, to, mail));
        }

        fn obey(&mut self, who: usize) {
            while let Some(action) = self.members[who].mesh.take() {
                match action {
                    Action::Offer { peer, link } | Action::Answer { peer, link, .. }
                        if self.members[who].links.contains_key(&link) =>
                    {
                        panic!("{link} to {peer} is there already");
                    }
                    Action::Offer { peer, link } => {
                        let to = self.member(&peer);
                        assert!(who < to, "only the smaller id offers");
                        self.open(who, link, to, None);
                        let offer = sdp(&self.members[who].id, self.sessions);
                        self.post(who, to, Mail::Offer(link, offer), 30);
                    }
                    Action::Answer { peer, link, sdp: offer } => {
                        let to = self.member(&peer);
                        self.open(who, link, to, session_of(&offer));
                        let answer = sdp(&self.members[who].id, self.sessions);
                        self.post(who, to, Mail::Answer(link, answer), 30);
                    }
                    Action::Renegotiate { peer, link, .. } => {
                        let Some(Session { number, .. }) = self.members[who].links.get(&link).cloned() else {
                            continue;
                        };
                        let answer = sdp(&self.members[who].id, number);
                        let to = self.member(&peer);
                        self.post(who, to, Mail::Answer(link, answer), 30);
                    }
                    Action::Restart { peer, link } => {
                        let Some(Session { number, .. }) = self.members[who].links.get(&link).cloned() else {
                            continue;
                        };
                        let offer = sdp(&self.members[who].id, number);
                        let to = self.member(&peer);
                        self.post(who, to, Mail::Offer(link, offer), 30);
                    }
                    Action::Accept { link, sdp: answer } => {
                        if let Some(session) = self.members[who].links.get_mut(&link) {
                            session.remote = session_of(&answer);
                        }
                    }
                    Action::Close { link } => {
                        // The other side may have been quicker.
                        let Some(closed) = self.members[who].links.remove(&link) else { continue };
                        if let Some((link, _)) = self.far_end(who, &closed) {
                            let far = closed.other;
                            if !self.is_cut(who, far) {
                                self.members[far].links.remove(&link);
                                let now = self.now;
                                self.members[far].mesh.down(now, link);
                            }
                        }
                    }
                    Action::Candidate { .. } | Action::Tell(_) => {}
                }
            }
        }

        fn open(&mut self, who: usize, link: LinkId, other: usize, remote: Option<u64>) {
            self.sessions += 1;
            let number = self.sessions;
            let session = Session { number, other, remote, up: false, cut_since: None, said_silent: false };
            self.members[who].links.insert(link, session);
        }

        fn far_end(&self, who: usize, session: &Session) -> Option<(LinkId, Session)> {
            let far = &self.members[session.other].links;
            let is_it = |(_, other): &(&LinkId, &Session)| {
                other.other == who && Some(other.number) == session.remote && other.remote == Some(session.number)
            };
            far.iter().find(is_it).map(|(link, other)| (*link, other.clone()))
        }

        /// A tenth of a second.
        fn step(&mut self) {
            self.now += MS(100);
            let now = self.now;
            for who in 0..self.members.len() {
                if self.members[who].mesh.wake_at().is_some_and(|at| at <= now) {
                    self.members[who].mesh.tick(now);
                }
                self.obey(who);
            }
            let (due, later): (Vec<_>, Vec<_>) = self.mail.drain(..).partition(|(at, ..)| *at <= now);
            self.mail = later;
            for (_, from, to, mail) in due {
                let delivered = self.members[to].online && self.members[from].online;
                let sender = self.members[from].id.clone();
                match mail {
                    Mail::Offer(link, _) | Mail::Answer(link, _) if !delivered => {
                        if self.members[from].online {
                            self.members[from].mesh.refused(now, link);
                        }
                    }
                    Mail::Offer(_, sdp) => self.members[to].mesh.offered(now, &sender, sdp),
                    Mail::Answer(_, sdp) => self.members[to].mesh.answered(now, &sender, sdp),
                }
                self.obey(from);
                self.obey(to);
            }
            for who in 0..self.members.len() {
                for (link, session) in self.members[who].links.clone() {
                    self.live(who, link, &session);
                    self.obey(who);
                }
            }
            self.check();
        }

        /// What the engine tells of a session.
        fn live(&mut self, who: usize, link: LinkId, session: &Session) {
            let now = self.now;
            let paired = self.far_end(who, session).is_some();
            let flows = paired && !self.is_cut(who, session.other);
            let member = &mut self.members[who];
            let Some(mine) = member.links.get_mut(&link) else { return };
            if flows {
                let silent = std::mem::take(&mut mine.said_silent);
                mine.cut_since = None;
                if !std::mem::replace(&mut mine.up, true) {
                    member.mesh.up(now, link);
                } else if silent {
                    member.mesh.heard(now, link);
                }
                return;
            }
            let since = *mine.cut_since.get_or_insert(now);
            if mine.up && now >= since + MS(5000) && !std::mem::replace(&mut mine.said_silent, true) {
                member.mesh.silent(now, link);
            } else if now >= since + if mine.up { MS(35_000) } else { MS(15_000) } {
                member.links.remove(&link);
                member.mesh.down(now, link);
            }
        }

        /// What a member thinks it has is what its engine has.
        fn check(&self) {
            for member in &self.members {
                let known: Vec<LinkId> =
                    member.mesh.peers.values().filter_map(|p| p.link.as_ref().map(|l| l.id)).collect();
                for link in member.links.keys() {
                    assert!(known.contains(link), "{}: link {link} is nobody's", member.id);
                }
                assert_eq!(known.len(), member.links.len(), "{}: {known:?}", member.id);
                assert!(!member.mesh.peers.contains_key(&member.id));
            }
        }

        fn run(&mut self, seconds: u64) {
            (0..seconds * 10).for_each(|_| self.step());
        }

        /// Whether everybody has a connection with everybody, and it is the same on both sides.
        fn complete(&self) -> bool {
            let n = self.members.len();
            self.members.iter().enumerate().all(|(who, member)| {
                member.mesh.peers().filter(|(_, connected)| *connected).count() == n - 1
                    && member.links.values().all(|session| self.far_end(who, session).is_some())
            })
        }
    }

    fn session_of(sdp: &str) -> Option<u64> {
        sdp.lines().find_map(|line| line.strip_prefix("o="))?.split(' ').nth(1)?.parse().ok()
    }

    #[test]
    fn ten_members_that_come_at_once_are_all_connected_within_a_second() {
        let mut world = World::new(10);
        (0..10).for_each(|who| world.go_online(who));
        world.run(1);
        assert!(world.complete());
        // The server is killed: nobody notices; it is back, and nothing changes.
        let before: Vec<_> = world.members.iter().map(|m| m.links.keys().copied().collect::<Vec<_>>()).collect();
        world.stop_server();
        world.run(5);
        world.server_up = true;
        for who in 0..10 {
            world.go_online(who);
            world.run(1);
        }
        assert!(world.complete());
        let after: Vec<_> = world.members.iter().map(|m| m.links.keys().copied().collect::<Vec<_>>()).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn a_cut_is_over_five_seconds_after_the_network_is_back() {
        for seconds in [2, 10, 40] {
            let mut world = World::new(3);
            (0..3).for_each(|who| world.go_online(who));
            world.run(20);
            world.cuts = vec![(0, 1), (0, 2)];
            world.run(seconds);
            world.cuts.clear();
            world.run(5);
            assert!(world.complete(), "after {seconds} s");
        }
    }

    /// Whatever happens in whatever order: a member knows what its engine has, only the smaller id offers, and when it is quiet for
    /// a while everybody is connected with everybody.
    #[test]
    fn whatever_happens_everybody_finds_everybody_in_the_end() {
        for seed in 0..150_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut next = |n: u64| random.u64(..n);
            let members = 2 + next(4) as usize;
            let mut world = World::new(members);
            for _ in 0..40 {
                let (a, b) = (next(members as u64) as usize, next(members as u64) as usize);
                match next(8) {
                    0..3 => world.go_online(a),
                    3 => world.go_offline(a),
                    4 if next(3) == 0 => world.stop_server(),
                    5 => world.server_up = true,
                    6 if a != b => world.cuts.push((a.min(b), a.max(b))),
                    7 => world.cuts.clear(),
                    _ => {}
                }
                (0..next(80)).for_each(|_| world.step());
            }
            world.cuts.clear();
            world.server_up = true;
            (0..members).for_each(|who| world.go_online(who));
            world.run(60);
            assert!(world.complete(), "seed {seed}");
        }
    }
}
