//! The rooms of the JSON-RPC dialect under any sequence of calls, beside a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fastrand::Rng;
use lightpipe_signal::Conference;
use lightpipe_signal::room::{MAX_MEMBERS, PeerId};
use serde_json::{Value, json};

const SDP: &str = "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n";

/// Who is where, and what each connection believes of its room by what it was told.
struct Model {
    conference: Conference,
    now: Instant,
    members: BTreeMap<PeerId, (String, String)>,
    views: BTreeMap<PeerId, BTreeSet<String>>,
}

impl Model {
    fn others(&self, who: PeerId, room: &str) -> BTreeSet<String> {
        let there = self.members.iter().filter(|(member, (_, other))| **member != who && other == room);
        there.map(|(_, (id, _))| id.clone()).collect()
    }

    /// The answer's result or code; what others are told is compared with where they are.
    fn say(&mut self, who: PeerId, method: &str, params: &Value) -> (Result<Value, i64>, Vec<(PeerId, Value)>) {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let (answer, told) = self.conference.message(self.now, who, &call.to_string());
        let answer: Value = serde_json::from_str(&answer.expect("a request is answered")).expect("JSON");
        let result = match answer["error"]["code"].as_i64() {
            Some(code) => Err(code),
            None => Ok(answer["result"].clone()),
        };
        (result, read(told))
    }

    fn announce(&mut self, who: PeerId, id: String, room: &str) {
        let inside = self.members.get(&who).is_some_and(|(_, other)| other == room);
        let others = self.others(who, room);
        let expected = match () {
            () if others.contains(&id) => Err(-32602),
            () if others.len() >= MAX_MEMBERS && !inside => Err(-32001),
            () => Ok(()),
        };
        let (result, told) = self.say(who, "peer.announce", &json!({ "peer_id": id, "room": room }));
        assert_eq!(result.as_ref().map(drop), expected.as_ref().map(drop), "{id} in {room}");
        let Ok(result) = result else {
            assert!(told.is_empty(), "{told:?}");
            return;
        };
        let there: BTreeSet<String> = result["peers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|peer| peer["peer_id"].as_str())
            .map(str::to_owned)
            .collect();
        assert_eq!((&there, result["count"].as_u64()), (&others, Some(others.len() as u64)));
        self.members.insert(who, (id, room.to_owned()));
        self.views.insert(who, there);
        self.hear(who, told);
    }

    fn leave(&mut self, who: PeerId, told: Vec<(PeerId, Value)>) {
        self.members.remove(&who);
        self.views.remove(&who);
        self.hear(who, told);
    }

    /// News of who is there: each is new to the one that is told.
    fn hear(&mut self, who: PeerId, told: Vec<(PeerId, Value)>) {
        for (to, news) in told {
            let view = self.views.get_mut(&to).filter(|_| to != who).expect("only others who are there are told");
            let id = news["params"]["peer_id"].as_str().expect("somebody").to_owned();
            let changed = match news["method"].as_str() {
                Some("peer.joined") => view.insert(id),
                Some("peer.left" | "peer.disconnected") => view.remove(&id),
                other => panic!("{other:?}"),
            };
            assert!(changed, "{to} was told before: {news}");
        }
    }

    /// To one peer of the room, or refused.
    fn forward(&mut self, who: PeerId, method: &str, to: &str) {
        let target = self.members.get(&who).and_then(|(_, room)| {
            let found = self.members.iter().find(|(member, (id, other))| **member != who && id == to && other == room);
            found.map(|(member, _)| *member)
        });
        let params = json!({ "to": to, "sdp": SDP, "candidate": null, "state": "x" });
        let (result, told) = self.say(who, method, &params);
        match told.as_slice() {
            [] => assert!(result.is_err(), "{method} was lost"),
            [(got, said)] => {
                assert_eq!((Some(*got), said["method"].as_str()), (target, Some(method)), "{said}");
                assert_eq!(said["params"]["from"], self.members[&who].0);
            }
            _ => panic!("{method} to one: {told:?}"),
        }
    }

    fn check(&self) {
        assert_eq!(self.conference.len(), self.members.len());
        for (who, (_, room)) in &self.members {
            assert!(self.conference.knows(*who));
            let others = self.others(*who, room);
            assert_eq!(self.views[who], others, "what {who} believes of {room}");
            assert!(others.len() < MAX_MEMBERS);
        }
    }
}

fn read(told: Vec<(PeerId, String)>) -> Vec<(PeerId, Value)> {
    told.into_iter().map(|(to, text)| (to, serde_json::from_str(&text).expect("JSON"))).collect()
}

/// Each operation of three bytes: what, who, and about whom and where.
pub(super) fn run(bytes: &[u8], now: Instant) {
    let mut model = Model { conference: Conference::new(), now, members: BTreeMap::new(), views: BTreeMap::new() };
    for operation in bytes.chunks_exact(3) {
        let &[what, who, about] = operation else { continue };
        let (who, id, room) =
            (PeerId::from(who % 28), format!("p{}", about % 13), ["r", "s"][usize::from(about / 13 % 2)]);
        match what % 12 {
            0..4 => model.announce(who, id, room),
            4 => model.forward(who, "peer.offer", &id),
            5 => model.forward(who, "peer.answer", &id),
            6 => model.forward(who, "peer.ice_candidate", &id),
            7 => model.forward(who, "peer.state_changed", &id),
            8 => {
                let (_, told) = model.say(who, "peer.disconnect", &Value::Null);
                model.leave(who, told);
            }
            9 => {
                let told = read(model.conference.gone(who));
                model.leave(who, told);
            }
            10 => {
                let (result, told) = model.say(who, "peer.list", &Value::Null);
                let count = model.members.get(&who).map(|(_, room)| model.others(who, room).len() as u64 + 1);
                assert_eq!((result.ok().and_then(|result| result["count"].as_u64()), told.len()), (count, 0));
            }
            _ => model.now += Duration::from_secs(u64::from(about % 16)),
        }
        model.check();
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let random = |seed: u64| {
        let mut bytes = vec![0; 900];
        Rng::with_seed(seed).fill(&mut bytes);
        bytes
    };
    // Eleven in a room, one of them comes again under another name, and everybody goes.
    let full =
        (0..12).flat_map(|n| [0, n, n]).chain([0, 3, 12, 8, 4, 0, 0, 13, 4]).chain((0..12).flat_map(|n| [9, n, 0]));
    (0..8).map(random).chain([full.collect()]).collect()
}
