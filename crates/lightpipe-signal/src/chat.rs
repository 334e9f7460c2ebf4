//! The data channel `chat`: what people write, said once to everybody however often connections are cut, and what their tiles show.
//!
//! [`Chat`] is one member's chat of a room, with all its peers. Ids count up from 1 over everything that it says. What a peer has not acknowledged is said again
//! on the next connection to it, in order; the receiver acknowledges it again and shows it once. Text comes in, text goes out; the Unix time is an argument.
//!
//! A peer that comes back as somebody new (a page that was loaded again) begins at 1 again. A message is known by its id and its time together, so
//! what such a peer says is not taken for said before.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Longest text, in UTF-16 code units: pages count these.
pub const MAX_TEXT_LEN: usize = 4000;

/// Longest message, bytes of JSON.
pub const MAX_MESSAGE_LEN: usize = 16 << 10;

/// Longest name in [`State`], bytes.
pub const MAX_NAME_LEN: usize = 256;

/// Messages that wait for one peer's word. The oldest is given up for a new one, see [`Event::Lost`].
pub const MAX_UNACKED: usize = 256;

/// Messages of one peer that are taken in a second, and at once after a silence. More are ignored, see [`Event::Flood`]. A connection that comes
/// back may bring all that waited.
pub const MESSAGES_PER_SECOND: u64 = 50;
const BURST: u64 = MAX_UNACKED as u64 + 2 * MESSAGES_PER_SECOND;

/// What a peer said last, to know it when it is said again: more than it keeps for that.
const MAX_SEEN: usize = 2 * MAX_UNACKED;

/// A message of the channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Somebody wrote something.
    Chat {
        /// From 1 up, per sender and membership.
        id: u64,
        /// What.
        text: String,
        /// When, Unix time in milliseconds.
        at: u64,
    },
    /// It was heard.
    Ack {
        /// The message's.
        id: u64,
    },
    /// What to show beside the sender's picture.
    State(State),
}

/// What a peer's tile shows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Its microphone is off.
    pub muted: bool,
    /// Its camera is on.
    pub camera: bool,
    /// What it is called; empty where it says none.
    pub name: String,
}

/// Why something is not said or not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// Over a limit; on the way in the other side's fault.
    #[error("{what} is {len} long, {limit} is allowed")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length, in the limit's unit.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// Nothing was written.
    #[error("an empty text")]
    Empty,
    /// The other side sent no message of this channel.
    #[error("no message of this channel: {0}")]
    Malformed(String),
    /// The caller names a peer that is not in the room.
    #[error("nobody is {0:?} here")]
    NoSuchPeer(String),
}

impl Message {
    /// Reads a text message.
    pub fn parse(text: &str) -> Result<Self, ChatError> {
        limit("the message", text.len(), MAX_MESSAGE_LEN)?;
        let message = serde_json::from_str(text).map_err(|error| ChatError::Malformed(error.to_string()))?;
        match &message {
            Self::Chat { id: 0, .. } => return Err(ChatError::Malformed("ids begin at 1".into())),
            Self::Chat { text, .. } => check_text(text)?,
            Self::State(state) => limit("the name", state.name.len(), MAX_NAME_LEN)?,
            Self::Ack { .. } => {}
        }
        Ok(message)
    }

    /// The message's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers under fixed keys always serialize")
    }
}

fn limit(what: &'static str, len: usize, limit: usize) -> Result<(), ChatError> {
    if len > limit { Err(ChatError::TooLong { what, len, limit }) } else { Ok(()) }
}

fn check_text(text: &str) -> Result<(), ChatError> {
    if text.is_empty() { Err(ChatError::Empty) } else { limit("the text", text.encode_utf16().count(), MAX_TEXT_LEN) }
}

/// What the chat asks of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this text to this peer.
    Send {
        /// To whom.
        peer: String,
        /// What.
        text: String,
    },
    /// Something happened.
    Event(Event),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody wrote something; once, whatever was said again.
    Said {
        /// Who.
        peer: String,
        /// Its id.
        id: u64,
        /// What.
        text: String,
        /// When, by the peer's clock: Unix time in milliseconds.
        at: u64,
    },
    /// A peer has heard something.
    Heard {
        /// Who.
        peer: String,
        /// The message's id.
        id: u64,
    },
    /// A peer's tile has changed.
    State {
        /// Whose.
        peer: String,
        /// What it shows now.
        state: State,
    },
    /// A peer was away for too long: this message was not acknowledged and is not said again.
    Lost {
        /// Who will not hear it, or has not said so.
        peer: String,
        /// The message's id.
        id: u64,
    },
    /// A peer says too much; said once per second of it.
    Flood {
        /// Who.
        peer: String,
    },
}

/// One peer.
#[derive(Debug)]
struct Link {
    connected: bool,
    /// What it has not acknowledged: ids and texts, oldest first.
    unacked: VecDeque<(u64, String)>,
    /// Ids and times of what it said; the oldest is forgotten beyond [`MAX_SEEN`].
    seen: VecDeque<(u64, u64)>,
    state: Option<State>,
    /// The second in which it was counted last, what it may still say, and whether that was told.
    budget: (u64, u64, bool),
}

impl Link {
    const fn new() -> Self {
        Self {
            connected: false,
            unacked: VecDeque::new(),
            seen: VecDeque::new(),
            state: None,
            budget: (0, BURST, false),
        }
    }

    /// Whether it may say something now, and whether that is to be told.
    fn admit(&mut self, unix_ms: u64) -> (bool, bool) {
        let second = unix_ms / 1000;
        let (last, left, told) = &mut self.budget;
        if *last != second {
            // A clock that was set back fills nothing up.
            let passed = second.saturating_sub(*last);
            *left = (*left).saturating_add(passed.saturating_mul(MESSAGES_PER_SECOND)).min(BURST);
            (*last, *told) = (second, false);
        }
        let admitted = *left > 0;
        *left = left.saturating_sub(1);
        let news = !admitted && !*told;
        *told |= news;
        (admitted, news)
    }
}

/// A member's chat with all its peers. Poll after each call until nothing comes.
#[derive(Debug, Default)]
pub struct Chat {
    said: u64,
    state: Option<State>,
    links: BTreeMap<String, Link>,
    /// A few per call, polled after each.
    queue: VecDeque<Output>,
}

impl Chat {
    /// Nobody is there, nothing was said.
    pub fn new() -> Self {
        Self::default()
    }

    /// The channel to a peer is open. It is told our state, and what it has not acknowledged.
    pub fn connected(&mut self, peer: &str) {
        let link = self.links.entry(peer.to_owned()).or_insert_with(Link::new);
        link.connected = true;
        let state = self.state.clone().map(|state| Message::State(state).to_json());
        let texts = state.into_iter().chain(link.unacked.iter().map(|(_, text)| text.clone()));
        self.queue.extend(texts.map(|text| Output::Send { peer: peer.to_owned(), text }));
    }

    /// The channel to a peer is gone; the peer may come back.
    pub fn disconnected(&mut self, peer: &str) {
        if let Some(link) = self.links.get_mut(peer) {
            link.connected = false;
        }
        self.queue.retain(|output| !matches!(output, Output::Send { peer: to, .. } if to == peer));
    }

    /// A peer has left for good.
    pub fn left(&mut self, peer: &str) {
        self.disconnected(peer);
        self.links.remove(peer);
    }

    /// Says something to everybody who is there or was cut off. Returns its id.
    pub fn say(&mut self, unix_ms: u64, text: &str) -> Result<u64, ChatError> {
        let peers: Vec<String> = self.links.keys().cloned().collect();
        self.say_to(unix_ms, &peers, text)
    }

    /// Says something to some.
    pub fn say_to(&mut self, unix_ms: u64, peers: &[String], text: &str) -> Result<u64, ChatError> {
        check_text(text)?;
        if let Some(stranger) = peers.iter().find(|peer| !self.links.contains_key(*peer)) {
            return Err(ChatError::NoSuchPeer(stranger.clone()));
        }
        let id = self.said + 1;
        let text = Message::Chat { id, text: text.to_owned(), at: unix_ms }.to_json();
        limit("the message", text.len(), MAX_MESSAGE_LEN)?;
        self.said = id;
        for peer in peers {
            let Some(link) = self.links.get_mut(peer) else { continue };
            if link.unacked.len() == MAX_UNACKED
                && let Some((lost, _)) = link.unacked.pop_front()
            {
                self.queue.push_back(Output::Event(Event::Lost { peer: peer.clone(), id: lost }));
            }
            link.unacked.push_back((id, text.clone()));
            if link.connected {
                self.queue.push_back(Output::Send { peer: peer.clone(), text: text.clone() });
            }
        }
        Ok(id)
    }

    /// Shows everybody another state.
    pub fn set_state(&mut self, state: State) -> Result<(), ChatError> {
        limit("the name", state.name.len(), MAX_NAME_LEN)?;
        if self.state.as_ref() == Some(&state) {
            return Ok(());
        }
        let text = Message::State(state.clone()).to_json();
        self.state = Some(state);
        let there = self.links.iter().filter(|(_, link)| link.connected);
        self.queue.extend(there.map(|(peer, _)| Output::Send { peer: peer.clone(), text: text.clone() }));
        Ok(())
    }

    /// A text message came from a peer.
    pub fn text(&mut self, unix_ms: u64, peer: &str, text: &str) -> Result<(), ChatError> {
        let link = self
            .links
            .get_mut(peer)
            .filter(|link| link.connected)
            .ok_or_else(|| ChatError::NoSuchPeer(peer.to_owned()))?;
        let (admitted, news) = link.admit(unix_ms);
        if news {
            self.queue.push_back(Output::Event(Event::Flood { peer: peer.to_owned() }));
        }
        if !admitted {
            return Ok(());
        }
        let peer = peer.to_owned();
        match Message::parse(text)? {
            Message::Chat { id, text, at } => {
                let again = link.seen.contains(&(id, at));
                self.queue.push_back(Output::Send { peer: peer.clone(), text: Message::Ack { id }.to_json() });
                if !again {
                    if link.seen.len() == MAX_SEEN {
                        link.seen.pop_front();
                    }
                    link.seen.push_back((id, at));
                    self.queue.push_back(Output::Event(Event::Said { peer, id, text, at }));
                }
            }
            Message::Ack { id } => {
                if let Some(at) = link.unacked.iter().position(|(unacked, _)| *unacked == id) {
                    link.unacked.remove(at);
                    self.queue.push_back(Output::Event(Event::Heard { peer, id }));
                }
            }
            Message::State(state) => {
                if link.state.as_ref() != Some(&state) {
                    link.state = Some(state.clone());
                    self.queue.push_back(Output::Event(Event::State { peer, state }));
                }
            }
        }
        Ok(())
    }

    /// What to do next, in this order.
    pub fn poll(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }

    /// Messages that a peer has not acknowledged.
    pub fn unacked(&self, peer: &str) -> usize {
        self.links.get(peer).map_or(0, |link| link.unacked.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Message) {
        assert_eq!(Message::parse(text), Ok(expected.clone()), "{text}");
        assert_eq!(Message::parse(&expected.to_json()), Ok(expected), "{text} said again");
    }

    fn sent(chat: &mut Chat) -> Vec<String> {
        std::iter::from_fn(|| chat.poll())
            .map(|output| match output {
                Output::Send { peer, text } => format!("{peer}: {text}"),
                Output::Event(event) => format!("{event:?}"),
            })
            .collect()
    }

    #[test]
    fn every_message_is_read_as_it_is_written() {
        check(
            r#"{"type":"chat","id":1,"text":"hé","at":1700000000000}"#,
            Message::Chat { id: 1, text: "hé".into(), at: 1_700_000_000_000 },
        );
        check(r#"{"type":"ack","id":7,"later":1}"#, Message::Ack { id: 7 });
        let state = State { muted: true, camera: false, name: "Ada".into() };
        check(r#"{"type":"state","muted":true,"camera":false,"name":"Ada"}"#, Message::State(state));
        check(r#"{"type":"state"}"#, Message::State(State::default()));
    }

    #[test]
    fn what_is_no_message_is_named() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"type":"dance"}"#,
            r#"{"type":"chat","id":0,"text":"a","at":1}"#,
            r#"{"type":"chat","id":-1,"text":"a","at":1}"#,
            r#"{"type":"chat","id":1,"text":7,"at":1}"#,
            r#"{"type":"chat","id":1,"text":"a"}"#,
            r#"{"type":"ack"}"#,
            r#"{"type":"state","muted":1}"#,
        ] {
            assert!(matches!(Message::parse(bad), Err(ChatError::Malformed(_))), "{bad}: {:?}", Message::parse(bad));
        }
        assert_eq!(Message::parse(r#"{"type":"chat","id":1,"text":"","at":1}"#), Err(ChatError::Empty));
        let long = Message::Chat { id: 1, text: "x".repeat(MAX_TEXT_LEN + 1), at: 1 }.to_json();
        assert!(matches!(Message::parse(&long), Err(ChatError::TooLong { what: "the text", .. })));
        let worst = Message::Chat { id: u64::MAX, text: "漢".repeat(MAX_TEXT_LEN), at: u64::MAX };
        assert_eq!(Message::parse(&worst.to_json()), Ok(worst));
        assert!(Chat::new().say(0, &"\u{1}".repeat(MAX_TEXT_LEN)).is_err(), "six characters each");
        assert!(matches!(
            Message::parse(&" ".repeat(MAX_MESSAGE_LEN + 1)),
            Err(ChatError::TooLong { what: "the message", .. })
        ));
        let named = Message::State(State { name: "x".repeat(257), ..State::default() }).to_json();
        assert!(matches!(Message::parse(&named), Err(ChatError::TooLong { what: "the name", .. })));
    }

    #[test]
    fn what_was_not_acknowledged_is_said_again_and_shown_once() {
        let (mut ada, mut bob) = (Chat::new(), Chat::new());
        ada.connected("bob");
        bob.connected("ada");
        assert_eq!(ada.say(5, "one"), Ok(1));
        let one = r#"{"type":"chat","id":1,"text":"one","at":5}"#;
        assert_eq!(sent(&mut ada), [format!("bob: {one}")]);
        bob.text(6, "ada", one).expect("taken");
        // The acknowledgement is lost.
        assert_eq!(sent(&mut bob).len(), 2);
        ada.disconnected("bob");
        bob.disconnected("ada");
        assert_eq!(ada.say(5, "two"), Ok(2));
        assert_eq!(sent(&mut ada), [""; 0]);
        ada.connected("bob");
        bob.connected("ada");
        let two = r#"{"type":"chat","id":2,"text":"two","at":5}"#;
        assert_eq!(sent(&mut ada), [format!("bob: {one}"), format!("bob: {two}")]);
        bob.text(7, "ada", one).expect("taken");
        assert_eq!(sent(&mut bob), [r#"ada: {"type":"ack","id":1}"#], "shown before");
        bob.text(7, "ada", two).expect("taken");
        assert_eq!(sent(&mut bob)[1], r#"Said { peer: "ada", id: 2, text: "two", at: 5 }"#);
        for id in [1, 2, 2, 9] {
            ada.text(8, "bob", &Message::Ack { id }.to_json()).expect("taken");
        }
        assert_eq!(sent(&mut ada), [r#"Heard { peer: "bob", id: 1 }"#, r#"Heard { peer: "bob", id: 2 }"#]);
        assert_eq!(ada.unacked("bob"), 0);
    }

    #[test]
    fn a_page_that_was_loaded_again_begins_at_one() {
        let mut chat = Chat::new();
        chat.connected("p");
        let mut shown = |id: u64, at: u64| {
            chat.text(0, "p", &Message::Chat { id, text: "x".into(), at }.to_json()).expect("taken");
            sent(&mut chat).len() == 2
        };
        for (id, at, new) in [
            (1, 10, true),
            (5, 10, true),
            (5, 10, false),
            (1, 10, false),
            (6, 8, true),
            (6, 8, false),
            (1, 20, true),
            (1, 20, false),
            (2, 20, true),
        ] {
            assert_eq!(shown(id, at), new, "id {id} at {at}");
        }
    }

    #[test]
    fn queues_are_bounded_and_say_what_they_drop() {
        let mut chat = Chat::new();
        chat.connected("p");
        chat.disconnected("p");
        for n in 0..=MAX_UNACKED {
            chat.say(n as u64, "x").expect("said");
        }
        assert_eq!(
            (sent(&mut chat), chat.unacked("p")),
            (vec![r#"Lost { peer: "p", id: 1 }"#.to_owned()], MAX_UNACKED)
        );
        chat.left("p");
        assert_eq!(chat.say_to(0, &["p".to_owned()], "x"), Err(ChatError::NoSuchPeer("p".into())));
        assert_eq!(chat.text(0, "p", "{}"), Err(ChatError::NoSuchPeer("p".into())));

        chat.connected("q");
        for n in 1..=10_000 {
            chat.text(1_000_000, "q", &Message::Chat { id: n, text: "x".into(), at: 0 }.to_json()).expect("taken");
        }
        let news = sent(&mut chat);
        assert_eq!(news.len() as u64, 2 * BURST + 1, "an answer and an event each, then one word of the flood");
        assert_eq!(news[news.len() - 1], r#"Flood { peer: "q" }"#);
        chat.text(1_001_000, "q", &Message::Ack { id: 1 }.to_json()).expect("taken");
        chat.text(1_001_000, "q", "garbage").expect_err("heard again");
    }

    #[test]
    fn tiles_show_the_last_state_on_each_connection() {
        let mut chat = Chat::new();
        let state = |name: &str| State { name: name.into(), ..State::default() };
        chat.set_state(state("a")).expect("said");
        chat.connected("p");
        let told = |name: &str| format!(r#"p: {{"type":"state","muted":false,"camera":false,"name":"{name}"}}"#);
        assert_eq!(sent(&mut chat), [told("a")]);
        chat.set_state(state("a")).expect("said");
        assert_eq!(sent(&mut chat), [""; 0], "nothing new");
        chat.set_state(state("b")).expect("said");
        assert_eq!(sent(&mut chat), [told("b")]);
        assert!(chat.set_state(state(&"x".repeat(257))).is_err());
        for _ in 0..2 {
            chat.text(0, "p", &Message::State(state("c")).to_json()).expect("taken");
        }
        assert_eq!(sent(&mut chat).len(), 1, "told once");
    }
}
