//! The peers of the *JSON-RPC* dialect: who is in which room, and what they tell each other on the way to a mesh.
//!
//! ```text
//!   connection ─▶ peer.announce ─▶ peer.offer, peer.answer, peer.ice_candidate, peer.state_changed, peer.list ─▶ peer.disconnect
//! ```
//!
//! SDP and candidates are handed on verbatim, as a notification of the method's own name. Whoever leaves is told to the others: `peer.left` when it
//! said so, `peer.disconnected` when its connection ended.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::jsonrpc::{self, Call, RpcError};
use crate::message::{MAX_SDP_LEN, name};
use crate::room::{MAX_MEMBERS, MAX_ROOMS, PeerId};

/// The room of peers that name none.
pub const DEFAULT_ROOM: &str = "default";

/// A connection that has not announced itself by then is closed.
pub const ANNOUNCE_LIMIT: Duration = Duration::from_secs(10);

/// An offer without an answer stands in the way of the next one for so long.
const NEGOTIATION_LIMIT: Duration = Duration::from_secs(10);

/// What a peer says about itself, bytes of JSON.
const MAX_USER_DATA_LEN: usize = 1 << 10;

/// A candidate, bytes of JSON.
const MAX_CANDIDATE_LEN: usize = 2 << 10;

/// A reason or a state, bytes.
const MAX_WORD_LEN: usize = 256;

const CAPABILITIES: [&str; 3] = ["audio", "video", "data"];

const PEER_NOT_FOUND: i32 = -32000;
const ROOM_FULL: i32 = -32001;
const OFFER_INVALID: i32 = -32002;
const ANSWER_INVALID: i32 = -32003;
const CANDIDATE_INVALID: i32 = -32004;
const NEGOTIATION_IN_PROGRESS: i32 = -32005;
const NO_COMMON_CODEC: i32 = -32007;

/// Notifications to connections.
pub type Told = Vec<(PeerId, String)>;

#[derive(Debug)]
struct Peer {
    id: String,
    room: String,
    capabilities: Vec<String>,
    user_data: Value,
    /// A secret of its own, by which another connection shows that it is the same peer.
    resume: Option<String>,
    /// Its offers that nobody answered yet, by whom they went to.
    offers: HashMap<String, Instant>,
}

impl Peer {
    fn to_value(&self) -> Value {
        json!({ "peer_id": self.id, "capabilities": self.capabilities, "user_data": self.user_data, "room": self.room })
    }
}

/// All rooms of the dialect.
#[derive(Debug, Default)]
pub struct Conference {
    peers: HashMap<PeerId, Peer>,
    /// Connections by room and peer id.
    rooms: HashMap<String, HashMap<String, PeerId>>,
}

impl Conference {
    /// Nobody is there.
    pub fn new() -> Self {
        Self::default()
    }

    /// A message of `connection`: what it is answered, and what others are told.
    pub fn message(&mut self, now: Instant, connection: PeerId, text: &str) -> (Option<String>, Told) {
        let mut told = Told::new();
        let answer = jsonrpc::answer(text, |call| self.call(now, connection, call, &mut told));
        (answer, told)
    }

    /// Whether a connection has announced itself.
    pub fn knows(&self, connection: PeerId) -> bool {
        self.peers.contains_key(&connection)
    }

    /// A connection ended without a word.
    pub fn gone(&mut self, connection: PeerId) -> Told {
        self.remove(connection, "peer.disconnected", "the connection ended")
    }

    /// Peers of all rooms.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Nobody is there.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    fn call(&mut self, now: Instant, connection: PeerId, call: &Call, told: &mut Told) -> Result<Value, RpcError> {
        let empty = Map::new();
        let params = match &call.params {
            Value::Null => Params(&empty),
            Value::Object(named) => Params(named),
            _ => return Err(RpcError::invalid_params("parameters have names here: an object, not an array")),
        };
        let method = call.method.strip_prefix("peer.").unwrap_or(&call.method);
        if method == "announce" {
            return self.announce(connection, params, told);
        }
        let known = ["offer", "answer", "ice_candidate", "candidate", "state_changed", "disconnect", "list"];
        if !known.contains(&method) {
            return Err(RpcError::method_not_found(&call.method));
        }
        let Some(me) = self.peers.get(&connection) else {
            return Err(RpcError::invalid_request("peer.announce comes first").because("not_announced"));
        };
        if let Some(from) = params.text("from", "from")?
            && from != me.id
        {
            return Err(RpcError::invalid_params(format!("you are {:?}, not {from:?}", me.id)).because("wrong_sender"));
        }
        match method {
            "offer" => self.offer(now, connection, params, told),
            "answer" => self.answer(connection, params, told),
            "ice_candidate" | "candidate" => self.candidate(connection, params, told),
            "state_changed" => self.state_changed(connection, params, told),
            "disconnect" => {
                let reason = params.word("reason")?.unwrap_or("");
                told.extend(self.remove(connection, "peer.left", reason));
                Ok(json!({}))
            }
            _ => {
                let room = self.others(&me.room, None);
                Ok(json!({ "count": room.len(), "peers": room }))
            }
        }
    }

    fn announce(&mut self, connection: PeerId, params: Params<'_>, told: &mut Told) -> Result<Value, RpcError> {
        let valid = |what: &str, text: &str| {
            name(text.to_owned()).map_err(|error| RpcError::invalid_params(format!("{what}: {error}")))
        };
        let id = params.text("peer_id", "peerId")?.ok_or_else(|| missing("peer_id"))?;
        let id = valid("peer_id", id)?;
        let room = valid("room", params.text("room", "room")?.unwrap_or(DEFAULT_ROOM))?;
        let capabilities = params.capabilities()?;
        let user_data = params.get("user_data", "userData").cloned().unwrap_or_default();
        let len = user_data.to_string().len();
        if len > MAX_USER_DATA_LEN {
            let text = format!("user_data is {len} bytes of JSON, {MAX_USER_DATA_LEN} are allowed");
            return Err(RpcError::invalid_params(text).because("too_large"));
        }
        let resume = params.word("resume")?.filter(|secret| !secret.is_empty()).map(str::to_owned);
        let before = self.peers.get(&connection).filter(|peer| peer.id == id && peer.room == room);
        let already = before.is_some();
        let news = before.is_none_or(|peer| peer.capabilities != capabilities || peer.user_data != user_data);
        match self.rooms.get(&room) {
            // Its network was gone: the server may notice minutes later that the connection before is dead.
            Some(members) if resume.is_some() && self.resume_of(members.get(&id)) == resume => {}
            Some(members) if members.get(&id).is_some_and(|other| *other != connection) => {
                let text = format!("somebody is {id:?} in room {room:?} already");
                return Err(RpcError::invalid_params(text).because("peer_id_taken"));
            }
            Some(members) => {
                // Who renames itself makes no room fuller.
                let inside = members.values().any(|member| *member == connection);
                if members.len() >= MAX_MEMBERS && !inside {
                    return Err(RpcError::new(ROOM_FULL, format!("room {room:?} is full: {MAX_MEMBERS} peers")));
                }
            }
            None if self.rooms.len() >= MAX_ROOMS => {
                return Err(RpcError::new(ROOM_FULL, format!("no more than {MAX_ROOMS} rooms at a time")));
            }
            None => {}
        }
        let offers = if already {
            self.peers.remove(&connection).map(|peer| peer.offers).unwrap_or_default()
        } else {
            told.extend(self.remove(connection, "peer.left", "it is somebody else now"));
            HashMap::new()
        };
        let shadow = self.rooms.get(&room).and_then(|members| members.get(&id)).filter(|other| **other != connection);
        if let Some(shadow) = shadow.copied() {
            self.peers.remove(&shadow);
            self.rooms.entry(room.clone()).or_default().remove(&id);
            // What they offered to it is lost; they may offer again at once.
            for peer in self.peers.values_mut().filter(|peer| peer.room == room) {
                peer.offers.remove(&id);
            }
        }
        let peers = self.others(&room, Some(connection));
        let peer = Peer { id: id.clone(), room: room.clone(), capabilities, user_data, resume, offers };
        let joined = jsonrpc::notification("peer.joined", &peer.to_value());
        let members = self.rooms.entry(room.clone()).or_default();
        if news {
            let others = members.values().filter(|member| **member != connection);
            told.extend(others.map(|member| (*member, joined.clone())));
        }
        members.insert(id.clone(), connection);
        self.peers.insert(connection, peer);
        Ok(json!({ "peer_id": id, "room": room, "count": peers.len(), "peers": peers }))
    }

    fn offer(
        &mut self,
        now: Instant,
        connection: PeerId,
        params: Params<'_>,
        told: &mut Told,
    ) -> Result<Value, RpcError> {
        let sdp = params.sdp(OFFER_INVALID)?;
        let (to, target) = self.target(connection, params)?;
        let me = self.peers.get_mut(&connection).ok_or_else(|| not_found(&to))?;
        if let Some(since) = me.offers.get(&to)
            && now.saturating_duration_since(*since) < NEGOTIATION_LIMIT
        {
            let text = format!("{to:?} has not answered the offer before this one");
            return Err(RpcError::new(NEGOTIATION_IN_PROGRESS, text));
        }
        me.offers.insert(to.clone(), now);
        let said = json!({ "from": me.id, "to": to, "sdp": sdp });
        told.push((target, jsonrpc::notification("peer.offer", &said)));
        Ok(json!({ "forwarded": true }))
    }

    fn answer(&mut self, connection: PeerId, params: Params<'_>, told: &mut Told) -> Result<Value, RpcError> {
        let sdp = params.sdp(ANSWER_INVALID)?;
        let (to, target) = self.target(connection, params)?;
        let from = self.peers.get(&connection).map(|me| me.id.clone()).ok_or_else(|| not_found(&to))?;
        let asked = self.peers.get_mut(&target).is_some_and(|peer| peer.offers.remove(&from).is_some());
        if !asked {
            return Err(RpcError::new(ANSWER_INVALID, format!("{to:?} waits for no answer from you")));
        }
        // Both offered at once, and this side stepped back: its own offer is over.
        if let Some(me) = self.peers.get_mut(&connection) {
            me.offers.remove(&to);
        }
        let said = json!({ "from": from, "to": to, "sdp": sdp });
        told.push((target, jsonrpc::notification("peer.answer", &said)));
        let mut media = sdp.lines().filter_map(|line| line.strip_prefix("m=")).peekable();
        if media.peek().is_some() && media.all(|line| line.split(' ').nth(1) == Some("0")) {
            return Err(RpcError::new(NO_COMMON_CODEC, "the answer takes none of what was offered"));
        }
        Ok(json!({ "forwarded": true }))
    }

    fn candidate(&self, connection: PeerId, params: Params<'_>, told: &mut Told) -> Result<Value, RpcError> {
        let candidate = params.get("candidate", "candidate").cloned().unwrap_or_default();
        let refuse = |text: String| Err(RpcError::new(CANDIDATE_INVALID, text));
        match &candidate {
            Value::Null | Value::Object(_) => {}
            Value::String(text) if text.trim_start().starts_with('{') => {
                if !serde_json::from_str::<Value>(text).is_ok_and(|inner| inner.is_object()) {
                    return refuse("the candidate begins as an object and is none".into());
                }
            }
            Value::String(text) if text.is_empty() || text.trim_start_matches("a=").starts_with("candidate:") => {}
            _ => return refuse("a candidate is \"candidate:…\", an object, or null at the end of candidates".into()),
        }
        let len = candidate.to_string().len();
        if len > MAX_CANDIDATE_LEN {
            return refuse(format!("the candidate is {len} bytes, {MAX_CANDIDATE_LEN} are allowed"));
        }
        let (to, target) = self.target(connection, params)?;
        let from = self.peers.get(&connection).map(|me| me.id.as_str()).unwrap_or_default();
        let mut said = json!({ "from": from, "to": to, "candidate": candidate });
        for (snake, camel) in [("sdp_mid", "sdpMid"), ("sdp_m_line_index", "sdpMLineIndex")] {
            match params.get(snake, camel) {
                Some(value) if value.to_string().len() <= MAX_WORD_LEN => said[snake] = value.clone(),
                Some(_) => return refuse(format!("{snake} is too long")),
                None => {}
            }
        }
        told.push((target, jsonrpc::notification("peer.ice_candidate", &said)));
        Ok(json!({ "forwarded": true }))
    }

    /// To one peer, or to the room.
    fn state_changed(&self, connection: PeerId, params: Params<'_>, told: &mut Told) -> Result<Value, RpcError> {
        let state = params.word("state")?.ok_or_else(|| missing("state"))?;
        let me = self.peers.get(&connection).ok_or_else(|| not_found("you"))?;
        let targets: Vec<PeerId> = match params.text("to", "to")? {
            Some(_) => vec![self.target(connection, params)?.1],
            None => {
                self.members(&me.room).filter(|(_, member)| *member != connection).map(|(_, member)| member).collect()
            }
        };
        let mut said = json!({ "from": me.id, "peer_id": me.id, "state": state });
        if let Some(reason) = params.word("reason")? {
            said["reason"] = reason.into();
        }
        let text = jsonrpc::notification("peer.state_changed", &said);
        told.extend(targets.into_iter().map(|target| (target, text.clone())));
        Ok(json!({ "forwarded": true }))
    }

    /// Whom a message is for.
    fn target(&self, connection: PeerId, params: Params<'_>) -> Result<(String, PeerId), RpcError> {
        let to = params.text("to", "to")?.ok_or_else(|| missing("to"))?;
        let room = self.peers.get(&connection).map(|me| &me.room);
        let found = room.and_then(|room| self.rooms.get(room)?.get(to));
        match found {
            Some(target) if *target == connection => {
                Err(RpcError::invalid_params("a peer needs no connection to itself").because("to_yourself"))
            }
            Some(target) => Ok((to.to_owned(), *target)),
            None => Err(not_found(to)),
        }
    }

    fn resume_of(&self, connection: Option<&PeerId>) -> Option<String> {
        self.peers.get(connection?)?.resume.clone()
    }

    fn members(&self, room: &str) -> impl Iterator<Item = (&str, PeerId)> {
        self.rooms.get(room).into_iter().flatten().map(|(id, member)| (id.as_str(), *member))
    }

    /// A room's peers, by their ids in order.
    fn others(&self, room: &str, but: Option<PeerId>) -> Vec<Value> {
        let mut peers: Vec<&Peer> = self
            .members(room)
            .filter(|(_, member)| Some(*member) != but)
            .filter_map(|(_, member)| self.peers.get(&member))
            .collect();
        peers.sort_by(|a, b| a.id.cmp(&b.id));
        peers.into_iter().map(Peer::to_value).collect()
    }

    fn remove(&mut self, connection: PeerId, method: &str, reason: &str) -> Told {
        let Some(peer) = self.peers.remove(&connection) else { return Told::new() };
        let Some(members) = self.rooms.get_mut(&peer.room) else { return Told::new() };
        members.remove(&peer.id);
        let text = jsonrpc::notification(method, &json!({ "peer_id": peer.id, "room": peer.room, "reason": reason }));
        let told: Told = members.values().map(|member| (*member, text.clone())).collect();
        // Its successor of the same name may be offered to at once.
        for (member, _) in &told {
            if let Some(other) = self.peers.get_mut(member) {
                other.offers.remove(&peer.id);
            }
        }
        if told.is_empty() {
            self.rooms.remove(&peer.room);
        }
        told
    }
}

fn missing(field: &str) -> RpcError {
    RpcError::invalid_params(format!("{field:?} is missing"))
}

fn not_found(peer: &str) -> RpcError {
    let peer: String = peer.chars().take(64).collect();
    RpcError::new(PEER_NOT_FOUND, format!("nobody is {peer:?} in this room"))
}

/// Named parameters, in snake or in camel case.
#[derive(Debug, Clone, Copy)]
struct Params<'a>(&'a Map<String, Value>);

impl<'a> Params<'a> {
    fn get(self, snake: &str, camel: &str) -> Option<&'a Value> {
        self.0.get(snake).or_else(|| self.0.get(camel)).filter(|value| !value.is_null())
    }

    fn text(self, snake: &str, camel: &str) -> Result<Option<&'a str>, RpcError> {
        match self.get(snake, camel) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(RpcError::invalid_params(format!("{snake:?} must be a string"))),
        }
    }

    /// A short text.
    fn word(self, field: &str) -> Result<Option<&'a str>, RpcError> {
        let word = self.text(field, field)?;
        if word.is_some_and(|word| word.len() > MAX_WORD_LEN) {
            let text = format!("{field:?} is longer than {MAX_WORD_LEN} bytes");
            return Err(RpcError::invalid_params(text).because("too_large"));
        }
        Ok(word)
    }

    /// A description: a text, or the object of a browser with one inside.
    fn sdp(self, code: i32) -> Result<&'a str, RpcError> {
        let sdp = match self.get("sdp", "sdp") {
            Some(Value::String(text)) => text,
            Some(Value::Object(inner)) => match inner.get("sdp") {
                Some(Value::String(text)) => text,
                _ => return Err(RpcError::new(code, "\"sdp\" is an object without a text \"sdp\"")),
            },
            _ => return Err(RpcError::new(code, "\"sdp\" is missing or no text")),
        };
        if sdp.len() > MAX_SDP_LEN {
            return Err(RpcError::new(code, format!("the SDP is {} bytes, {MAX_SDP_LEN} are allowed", sdp.len())));
        }
        if !sdp.starts_with("v=0") {
            return Err(RpcError::new(code, "an SDP begins with \"v=0\""));
        }
        Ok(sdp)
    }

    fn capabilities(self) -> Result<Vec<String>, RpcError> {
        let Some(value) = self.get("capabilities", "capabilities") else { return Ok(Vec::new()) };
        let listed = value.as_array().map(|list| list.iter().map(Value::as_str).collect::<Option<Vec<&str>>>());
        match listed.flatten() {
            Some(list) if list.len() <= CAPABILITIES.len() && list.iter().all(|one| CAPABILITIES.contains(one)) => {
                Ok(list.into_iter().map(str::to_owned).collect())
            }
            _ => {
                let text = format!("\"capabilities\" is a list of {}", CAPABILITIES.join(", "));
                Err(RpcError::invalid_params(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n";

    /// A result, or an error's code and cause.
    type Answer = Result<Value, (i64, Value)>;

    struct Room {
        conference: Conference,
        now: Instant,
    }

    impl Room {
        fn new() -> Self {
            Self { conference: Conference::new(), now: Instant::now() }
        }

        /// The result or the error's code and cause, and who was told what.
        fn say(&mut self, who: PeerId, method: &str, params: Value) -> (Answer, Vec<(PeerId, String)>) {
            let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
            let (answer, told) = self.conference.message(self.now, who, &call);
            let answer: Value = serde_json::from_str(&answer.expect("an answer")).expect("JSON");
            let result = match answer.get("error") {
                None => Ok(answer["result"].clone()),
                Some(error) => Err((error["code"].as_i64().expect("a code"), error["data"]["cause"].clone())),
            };
            let mut told: Vec<(PeerId, String)> = told
                .into_iter()
                .map(|(to, text)| {
                    let said: Value = serde_json::from_str(&text).expect("JSON");
                    let who = said["params"].get("from").or_else(|| said["params"].get("peer_id")).expect("a peer");
                    (to, format!("{} {}", said["method"].as_str().expect("a method"), who.as_str().expect("a name")))
                })
                .collect();
            told.sort();
            (result, told)
        }

        fn enter(&mut self, who: PeerId, id: &str) {
            self.say(who, "peer.announce", json!({ "peer_id": id })).0.expect("room for it");
        }

        #[track_caller]
        fn refused(&mut self, who: PeerId, method: &str, params: Value, code: i64, cause: Option<&str>) {
            let (result, told) = self.say(who, method, params.clone());
            assert_eq!(result, Err((code, cause.map_or(Value::Null, Value::from))), "{method} {params}");
            assert!(told.is_empty() || code == i64::from(NO_COMMON_CODEC), "{told:?}");
        }
    }

    fn told(list: &[(PeerId, &str)]) -> Vec<(PeerId, String)> {
        list.iter().map(|(to, text)| (*to, (*text).to_owned())).collect()
    }

    #[test]
    fn peers_announce_themselves_negotiate_and_leave() {
        let mut room = Room::new();
        let data = json!({ "peer_id": "a", "capabilities": ["audio", "video"], "user_data": { "name": "Ada" } });
        let (result, news) = room.say(1, "peer.announce", data);
        assert_eq!(result.expect("no error"), json!({ "peer_id": "a", "room": "default", "count": 0, "peers": [] }));
        assert!(news.is_empty());
        let (result, news) = room.say(2, "announce", json!({ "peerId": "b", "userData": 7 }));
        assert_eq!(result.expect("no error")["peers"][0]["user_data"]["name"], "Ada");
        assert_eq!(news, told(&[(1, "peer.joined b")]));

        let (_, news) = room.say(2, "announce", json!({ "peer_id": "b", "user_data": 7 }));
        assert_eq!(news, [], "said before");
        let (_, news) = room.say(2, "announce", json!({ "peer_id": "b", "user_data": 8 }));
        assert_eq!(news, told(&[(1, "peer.joined b")]), "something else about the same");

        let (result, news) = room.say(2, "peer.offer", json!({ "from": "b", "to": "a", "sdp": OFFER }));
        assert_eq!((result.expect("no error"), news), (json!({ "forwarded": true }), told(&[(1, "peer.offer b")])));
        let (_, news) = room.say(1, "answer", json!({ "to": "b", "sdp": { "type": "answer", "sdp": OFFER } }));
        assert_eq!(news, told(&[(2, "peer.answer a")]));
        for candidate in [
            json!("candidate:1 1 udp 1 10.0.0.1 9 typ host"),
            json!({ "candidate": "" }),
            json!("{\"candidate\":\"\"}"),
            Value::Null,
        ] {
            let (_, news) =
                room.say(1, "peer.ice_candidate", json!({ "to": "b", "candidate": candidate, "sdpMLineIndex": 0 }));
            assert_eq!(news, told(&[(2, "peer.ice_candidate a")]), "{candidate}");
        }
        let (_, news) = room.say(1, "peer.state_changed", json!({ "state": "connected" }));
        assert_eq!(news, told(&[(2, "peer.state_changed a")]));
        let (list, _) = room.say(1, "peer.list", Value::Null);
        assert_eq!(list.expect("no error")["count"], 2);

        let (_, news) = room.say(2, "peer.disconnect", json!({ "reason": "bye" }));
        assert_eq!(news, told(&[(1, "peer.left b")]));
        room.enter(3, "c");
        let gone = room.conference.gone(1);
        assert!(gone[0].0 == 3 && gone[0].1.contains("peer.disconnected"), "{gone:?}");
        assert_eq!(room.conference.len(), 1);
        room.conference.gone(3);
        assert!(room.conference.is_empty() && room.conference.rooms.is_empty());
    }

    #[test]
    fn sdp_goes_on_verbatim() {
        let mut room = Room::new();
        room.enter(1, "a");
        room.enter(2, "b");
        let sdp = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\n\u{e4}\\\"";
        let call = json!({ "jsonrpc": "2.0", "method": "offer", "params": { "to": "b", "sdp": sdp } }).to_string();
        let (answer, told) = room.conference.message(room.now, 1, &call);
        assert_eq!(answer, None, "a notification is not answered");
        let said: Value = serde_json::from_str(&told[0].1).expect("JSON");
        assert_eq!(
            said,
            json!({ "jsonrpc": "2.0", "method": "peer.offer", "params": { "from": "a", "to": "b", "sdp": sdp } })
        );
    }

    #[test]
    fn what_is_wrong_has_its_code() {
        let mut room = Room::new();
        room.refused(1, "peer.list", Value::Null, -32600, Some("not_announced"));
        room.refused(1, "peer.dance", Value::Null, -32601, None);
        room.refused(1, "peer.announce", json!(["a"]), -32602, None);
        for bad in ["", "a b", "ä", "../x", &"x".repeat(65)] {
            room.refused(1, "peer.announce", json!({ "peer_id": bad }), -32602, None);
        }
        room.refused(1, "peer.announce", json!({ "peer_id": 7 }), -32602, None);
        room.refused(1, "peer.announce", json!({ "peer_id": "a", "room": "a/b" }), -32602, None);
        room.refused(1, "peer.announce", json!({ "peer_id": "a", "capabilities": ["dance"] }), -32602, None);
        room.refused(
            1,
            "peer.announce",
            json!({ "peer_id": "a", "user_data": "x".repeat(1025) }),
            -32602,
            Some("too_large"),
        );
        room.enter(1, "a");
        room.enter(2, "b");
        room.refused(3, "peer.announce", json!({ "peer_id": "a" }), -32602, Some("peer_id_taken"));
        room.refused(1, "peer.offer", json!({ "to": "z", "sdp": OFFER }), -32000, None);
        room.refused(1, "peer.offer", json!({ "to": "a", "sdp": OFFER }), -32602, Some("to_yourself"));
        room.refused(1, "peer.offer", json!({ "from": "b", "to": "b", "sdp": OFFER }), -32602, Some("wrong_sender"));
        room.refused(1, "peer.offer", json!({ "sdp": OFFER }), -32602, None);
        for bad in [
            Value::Null,
            json!(""),
            json!("hello"),
            json!({ "type": "offer" }),
            json!(format!("v=0{}", "x".repeat(64 << 10))),
        ] {
            room.refused(1, "peer.offer", json!({ "to": "b", "sdp": bad }), -32002, None);
            room.refused(1, "peer.answer", json!({ "to": "b", "sdp": bad }), -32003, None);
        }
        room.refused(1, "peer.answer", json!({ "to": "b", "sdp": OFFER }), -32003, None);
        for bad in [json!(7), json!("hello"), json!("{hello"), json!({ "candidate": "x".repeat(2 << 10) })] {
            room.refused(1, "peer.ice_candidate", json!({ "to": "b", "candidate": bad }), -32004, None);
        }
        room.refused(1, "peer.state_changed", json!({}), -32602, None);
        room.refused(1, "peer.state_changed", json!({ "state": "x".repeat(257) }), -32602, Some("too_large"));
    }

    #[test]
    fn one_negotiation_at_a_time_in_each_direction() {
        let mut room = Room::new();
        room.enter(1, "a");
        room.enter(2, "b");
        let to = |peer: &str| json!({ "to": peer, "sdp": OFFER });
        room.say(1, "peer.offer", to("b")).0.expect("no error");
        room.refused(1, "peer.offer", to("b"), -32005, None);
        // Both at once: the polite one steps back and answers.
        room.say(2, "peer.offer", to("a")).0.expect("no error");
        room.say(1, "peer.answer", to("b")).0.expect("no error");
        room.say(1, "peer.offer", to("b")).0.expect("no error");
        // Nobody waits for ever.
        room.now += NEGOTIATION_LIMIT;
        room.say(1, "peer.offer", to("b")).0.expect("no error");
        // A peer that comes again is another one.
        room.conference.gone(2);
        room.enter(3, "b");
        room.say(1, "peer.offer", to("b")).0.expect("no error");
        room.say(3, "peer.answer", json!({ "to": "a", "sdp": OFFER })).0.expect("no error");
        room.say(1, "peer.offer", to("b")).0.expect("no error");
        let nothing = json!({ "to": "a", "sdp": "v=0\r\nm=video 0 UDP/TLS/RTP/SAVPF 96\r\n" });
        room.refused(3, "peer.answer", nothing, -32007, None);
    }

    #[test]
    fn ten_peers_fit_and_the_eleventh_is_told() {
        let mut room = Room::new();
        for n in 0..10 {
            room.enter(n, &format!("p{n}"));
        }
        room.refused(10, "peer.announce", json!({ "peer_id": "p10" }), -32001, None);
        room.say(10, "peer.announce", json!({ "peer_id": "p10", "room": "other" })).0.expect("no error");
        // Another name in the same room.
        let (_, news) = room.say(0, "peer.announce", json!({ "peer_id": "q" }));
        assert_eq!(news.iter().filter(|(_, text)| text == "peer.joined q").count(), 9);
        assert_eq!(news.iter().filter(|(_, text)| text == "peer.left p0").count(), 9);
        room.conference.gone(5);
        room.enter(11, "p5");
    }

    #[test]
    fn a_peer_whose_network_was_gone_takes_its_place_again() {
        let mut room = Room::new();
        let announce = |resume: &str| json!({ "peer_id": "a", "resume": resume });
        room.say(1, "peer.announce", announce("secret")).0.expect("no error");
        (2..11).for_each(|n| room.enter(n, &format!("p{n}")));
        room.say(2, "peer.offer", json!({ "to": "a", "sdp": OFFER })).0.expect("no error");
        for other in ["", "guess"] {
            room.refused(11, "peer.announce", announce(other), -32602, Some("peer_id_taken"));
        }
        // Nobody hears that it was gone, and its shadow is nobody from now on.
        let (result, news) = room.say(11, "peer.announce", announce("secret"));
        assert_eq!(result.expect("no error")["count"], 9);
        assert!(news.len() == 9 && news.iter().all(|(_, text)| text == "peer.joined a"), "{news:?}");
        room.refused(1, "peer.list", Value::Null, -32600, Some("not_announced"));
        assert_eq!(room.conference.gone(1), []);
        let (_, news) = room.say(2, "peer.offer", json!({ "to": "a", "sdp": OFFER }));
        assert_eq!(news, told(&[(11, "peer.offer p2")]), "the offer before was lost");
        room.refused(12, "peer.announce", json!({ "peer_id": "b" }), -32001, None);
    }

    /// Whatever is said in whatever order: every peer is in exactly one room under its own name, no room is empty or too full, and nobody
    /// is told anything who is not there.
    #[test]
    fn rooms_hold_together_under_any_sequence() {
        for seed in 0..200_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut next = |n: u64| random.u64(..n);
            let mut conference = Conference::new();
            let now = Instant::now();
            for step in 0..200 {
                let who = next(14);
                let peer = format!("p{}", next(12));
                let room = ["r", "s"][next(2) as usize];
                let (method, params) = match next(8) {
                    0..3 => ("peer.announce", json!({ "peer_id": peer, "room": room })),
                    3 => ("peer.offer", json!({ "to": peer, "sdp": OFFER })),
                    4 => ("peer.answer", json!({ "to": peer, "sdp": OFFER })),
                    5 => ("peer.disconnect", Value::Null),
                    6 => ("peer.state_changed", json!({ "state": "x", "to": peer })),
                    _ => ("", Value::Null),
                };
                let told = if method.is_empty() {
                    conference.gone(who)
                } else {
                    let call = json!({ "jsonrpc": "2.0", "id": step, "method": method, "params": params });
                    conference.message(now + Duration::from_secs(step), who, &call.to_string()).1
                };
                assert!(told.iter().all(|(to, _)| conference.knows(*to) && *to != who), "seed {seed}, step {step}");
                let seats: usize = conference.rooms.values().map(HashMap::len).sum();
                assert_eq!(seats, conference.peers.len(), "seed {seed}, step {step}");
                for (room, members) in &conference.rooms {
                    assert!((1..=MAX_MEMBERS).contains(&members.len()), "seed {seed}, step {step}");
                    for (id, member) in members {
                        let peer = &conference.peers[member];
                        assert_eq!((&peer.id, &peer.room), (id, room), "seed {seed}, step {step}");
                    }
                }
            }
        }
    }
}
