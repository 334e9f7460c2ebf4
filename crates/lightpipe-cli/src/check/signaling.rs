//! Signalling in JSON-RPC 2.0: the specification's examples with real methods, and the peers of `docs/api.md`.

use std::time::{Duration, Instant};

use http::Uri;
use serde_json::{Value, json};

use super::resource::after;
use super::sdp::Credentials;
use super::wire::{Heard, Unreachable, Wire, short, whole};
use super::{Checklist, Flaw, Verdict, ensure};

const API: &str = "docs/api.md, WebSocket";

/// A peer that says nothing of itself is closed after ten seconds; some more for the way.
const ANNOUNCE_LIMIT: Duration = Duration::from_secs(13);

/// Quotes, a backslash and other letters: what goes on verbatim comes back so.
const SDP: &str = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=\u{e4}\\\"\u{1f3a5}\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtpmap:96 VP8/90000\r\n";
const REJECTED: &str = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 UDP/TLS/RTP/SAVPF 96\r\n";
const CANDIDATE: &str = "candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host";

/// The server under test.
pub(crate) struct Server<'a> {
    pub(crate) url: &'a Uri,
    pub(crate) token: Option<&'a str>,
    /// A room that nobody else is in; others begin with it.
    room: String,
}

impl<'a> Server<'a> {
    pub(crate) fn new(url: &'a Uri, token: Option<&'a str>) -> Self {
        let random: String = Credentials::random().pwd.chars().filter(char::is_ascii_alphanumeric).collect();
        Self { url, token, room: format!("check-{random}-{}", std::process::id()) }
    }

    /// Whether anybody speaks WebSocket there.
    pub(crate) fn reach(&self) -> Result<(), Unreachable> {
        Wire::open(self.url, self.token).map(drop)
    }

    fn open(&self) -> Result<Wire, Flaw> {
        Ok(Wire::open(self.url, self.token)?)
    }

    /// A connection that announced itself.
    fn enter(&self, room: &str, id: &str) -> Result<Wire, Flaw> {
        let mut wire = self.open()?;
        let result = wire.call("peer.announce", &json!({ "peer_id": id, "room": room }))?;
        result.map_err(|code| Flaw::Failed(format!("peer.announce of {id:?} was refused ({code})")))?;
        Ok(wire)
    }
}

pub(crate) fn check(server: &Server<'_>, list: &mut Checklist) {
    // Says nothing of itself until the end.
    let mute = Mute::begin(server);
    json_rpc(server, list);
    peers(server, list);
    refusals(server, list);
    rooms(server, list);
    bad_input(server, list);
    list.row("who never announces itself is closed", API, mute.and_then(Mute::ended));
}

/// A connection for the rows of the specification; another one after the server closed it.
struct Caller<'a> {
    server: &'a Server<'a>,
    wire: Option<Wire>,
}

impl Caller<'_> {
    fn wire(&mut self) -> Result<&mut Wire, Flaw> {
        let wire = match self.wire.take() {
            Some(wire) => wire,
            None => {
                let mut wire = self.server.open()?;
                // Its verdict is a row of its own.
                _ = wire.call("peer.announce", &json!({ "peer_id": "caller", "room": self.server.room }));
                wire
            }
        };
        Ok(self.wire.insert(wire))
    }

    /// What a message is answered.
    fn ask(&mut self, text: &str) -> Result<Value, Flaw> {
        let wire = self.wire()?;
        let answer = wire.say(text).and_then(|()| wire.answer());
        if answer.is_err() {
            self.wire = None;
        }
        answer
    }

    /// Answered by this error, under this id.
    fn refused(&mut self, text: &str, code: i64, id: &Value) -> Verdict {
        let answer = self.ask(text)?;
        expect_code(&whole(&answer, id)?, &[code])
    }

    /// Not answered: the next answer is that to another question.
    fn silent(&mut self, text: &str) -> Verdict {
        let wire = self.wire()?;
        let answer = wire
            .say(text)
            .and_then(|()| wire.say(r#"{"jsonrpc":"2.0","method":"peer.list","id":"fence"}"#))
            .and_then(|()| wire.answer());
        let verdict = match answer {
            Ok(answer) if answer["id"] == "fence" => {
                ensure(self.wire()?.stray().is_none(), || "it was answered late".into())
            }
            Ok(answer) => Err(Flaw::Failed(format!("it was answered: {}", short(&answer)))),
            Err(flaw) => Err(flaw),
        };
        if verdict.is_err() {
            self.wire = None;
        }
        verdict
    }
}

fn expect_code(result: &Result<Value, i64>, codes: &[i64]) -> Verdict {
    let expected = || codes.iter().map(i64::to_string).collect::<Vec<_>>().join(" or ");
    match result {
        Ok(result) => Err(Flaw::Failed(format!("it was taken: {}; expected error {}", short(result), expected()))),
        Err(code) => ensure(codes.contains(code), || format!("error {code}, expected {}", expected())),
    }
}

/// Its cause is in the row of what came before.
fn unreached(flaw: &Flaw) -> Flaw {
    after::<()>(&Err(flaw.clone())).err().unwrap_or_else(|| flaw.clone())
}

fn taken(result: Result<Value, i64>) -> Result<Value, Flaw> {
    result.map_err(|code| Flaw::Failed(format!("it was refused ({code})")))
}

fn same(what: &str, got: &Value, expected: &Value) -> Verdict {
    ensure(got == expected, || format!("{what} is {}, expected {}", short(got), short(expected)))
}

/// The rows of the specification: <https://www.jsonrpc.org/specification>.
fn json_rpc(server: &Server<'_>, list: &mut Checklist) {
    let mut caller = Caller { server, wire: None };
    for (name, id) in [
        ("an id that is a number comes back", json!(1)),
        ("an id that is a text comes back", json!("9f-ä")),
        ("an id that is no whole number comes back", json!(1.5)),
        ("an id below zero comes back", json!(-7)),
        ("an empty text as id comes back", json!("")),
        ("an id of null is an id", Value::Null),
    ] {
        let call = json!({ "jsonrpc": "2.0", "method": "peer.list", "id": id }).to_string();
        let verdict = caller.ask(&call).and_then(|answer| whole(&answer, &id).map(drop));
        list.row(name, "JSON-RPC 2.0 §4", verdict);
    }
    let list_of = |text: &str| {
        json!({ "jsonrpc": "2.0", "method": "peer.list", "params": serde_json::from_str::<Value>(text).unwrap_or_default(), "id": 1 }).to_string()
    };
    let named = caller.ask(&list_of("{}")).and_then(|answer| taken(whole(&answer, &json!(1))?).map(drop));
    list.row("parameters by name are taken", "JSON-RPC 2.0 §4.2", named);
    let positional = caller.ask(&list_of("[42, 23]")).and_then(|answer| match whole(&answer, &json!(1))? {
        Ok(_) => Ok(()),
        refused => expect_code(&refused, &[-32602]),
    });
    list.row("parameters by position are taken, or refused (-32602)", "JSON-RPC 2.0 §4.2", positional);
    for (name, text) in [
        (
            "a notification is not answered",
            r#"{"jsonrpc":"2.0","method":"peer.state_changed","params":{"state":"checking"}}"#,
        ),
        ("a notification of an unknown method is not answered", r#"{"jsonrpc":"2.0","method":"foobar"}"#),
        (
            "a notification with wrong parameters is not answered",
            r#"{"jsonrpc":"2.0","method":"peer.offer","params":[1,2,3,4,5]}"#,
        ),
        (
            "a batch of notifications is not answered",
            r#"[{"jsonrpc":"2.0","method":"peer.state_changed","params":{"state":"a"}},{"jsonrpc":"2.0","method":"foobar","params":[7]}]"#,
        ),
        ("an answer that nobody waits for is not answered", r#"{"jsonrpc":"2.0","result":19,"id":1}"#),
        (
            "an error that nobody waits for is not answered",
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"x"},"id":1}"#,
        ),
    ] {
        list.row(name, "JSON-RPC 2.0 §4.1", caller.silent(text));
    }
    for (name, section, text, code, id) in [
        (
            "an unknown method is refused (-32601)",
            "§7",
            r#"{"jsonrpc":"2.0","method":"foobar","id":"1"}"#,
            -32601,
            json!("1"),
        ),
        (
            "a method that begins with rpc. is refused (-32601)",
            "§4",
            r#"{"jsonrpc":"2.0","method":"rpc.list","id":2}"#,
            -32601,
            json!(2),
        ),
        (
            "a call that is no JSON is refused (-32700)",
            "§7",
            r#"{"jsonrpc":"2.0","method":"peer.list,"params":"bar","baz]"#,
            -32700,
            Value::Null,
        ),
        ("an empty message is refused (-32700)", "§5.1", "", -32700, Value::Null),
        (
            "a method that is no text is refused (-32600)",
            "§7",
            r#"{"jsonrpc":"2.0","method":1,"params":"bar"}"#,
            -32600,
            Value::Null,
        ),
        ("a call without a method is refused (-32600)", "§4", r#"{"jsonrpc":"2.0","id":3}"#, -32600, json!(3)),
        ("a call without jsonrpc is refused (-32600)", "§4", r#"{"method":"peer.list","id":4}"#, -32600, json!(4)),
        (
            "another version is refused (-32600)",
            "§4",
            r#"{"jsonrpc":"1.0","method":"peer.list","id":5}"#,
            -32600,
            json!(5),
        ),
        (
            "parameters that are neither are refused (-32600)",
            "§4.2",
            r#"{"jsonrpc":"2.0","method":"peer.list","params":7,"id":6}"#,
            -32600,
            json!(6),
        ),
        (
            "an id that is an object is refused (-32600)",
            "§4",
            r#"{"jsonrpc":"2.0","method":"peer.list","id":{"a":1}}"#,
            -32600,
            Value::Null,
        ),
        ("a text alone is refused (-32600)", "§4", r#""peer.list""#, -32600, Value::Null),
        (
            "a batch that is no JSON is refused once (-32700)",
            "§7",
            r#"[{"jsonrpc":"2.0","method":"peer.list","id":"1"},{"jsonrpc":"2.0","method"]"#,
            -32700,
            Value::Null,
        ),
        ("an empty batch is refused once (-32600)", "§7", "[]", -32600, Value::Null),
    ] {
        let section = SECTIONS.iter().find(|known| known.ends_with(section)).unwrap_or(&SECTIONS[0]);
        list.row(name, section, caller.refused(text, code, &id));
    }
    for (name, text, count) in [
        ("a batch of one that is no call gets one refusal", "[1]", 1),
        ("a batch of three that are no calls gets three", "[1,2,3]", 3),
    ] {
        let verdict = caller.ask(text).and_then(|answer| {
            let answers = batch(&answer, count)?;
            answers.iter().try_for_each(|answer| expect_code(&whole(answer, &Value::Null)?, &[-32600]))
        });
        list.row(name, "JSON-RPC 2.0 §7", verdict);
    }
    let one = caller
        .ask(r#"[{"jsonrpc":"2.0","method":"peer.list","id":1}]"#)
        .and_then(|answer| whole(&batch(&answer, 1)?[0], &json!(1)).map(drop));
    list.row("a batch of one call is answered by an array", "JSON-RPC 2.0 §6", one);
    let mixed = r#"[{"jsonrpc":"2.0","method":"peer.list","id":"1"},{"jsonrpc":"2.0","method":"peer.state_changed","params":{"state":"b"}},
        {"jsonrpc":"2.0","method":"peer.list","params":{},"id":"2"},{"foo":"boo"},{"jsonrpc":"2.0","method":"foo.get","params":{"name":"myself"},"id":"5"},
        {"jsonrpc":"2.0","method":"peer.list","id":"9"}]"#;
    let mixed = caller.ask(mixed).and_then(|answer| {
        let answers = batch(&answer, 5)?;
        for (id, code) in [
            (json!("1"), None),
            (json!("2"), None),
            (Value::Null, Some(-32600)),
            (json!("5"), Some(-32601)),
            (json!("9"), None),
        ] {
            let found = answers.iter().find(|answer| answer["id"] == id);
            let found = found.ok_or_else(|| Flaw::Failed(format!("nothing answers id {id}")))?;
            match (whole(found, &id)?, code) {
                (result, Some(code)) => expect_code(&result, &[code])?,
                (result, None) => drop(taken(result)?),
            }
        }
        Ok(())
    });
    list.row("a batch is answered call by call, in any order", "JSON-RPC 2.0 §7", mixed);
}

const SECTIONS: [&str; 4] = ["JSON-RPC 2.0 §4", "JSON-RPC 2.0 §4.2", "JSON-RPC 2.0 §5.1", "JSON-RPC 2.0 §7"];

fn batch(answer: &Value, count: usize) -> Result<&[Value], Flaw> {
    let answers =
        answer.as_array().ok_or_else(|| Flaw::Failed(format!("it is answered by no array: {}", short(answer))))?;
    ensure(answers.len() == count, || format!("{} answers, expected {count}", answers.len()))?;
    Ok(answers)
}

/// Two peers of a room, from the first word to the last.
fn peers(server: &Server<'_>, list: &mut Checklist) {
    let room = format!("{}-pair", server.room);
    let first = server.open().map(|mut wire| {
        let early = wire.call("peer.list", &Value::Null).and_then(|result| expect_code(&result, &[-32600]));
        (wire, early)
    });
    let (mut ada, early) = match first {
        Ok((wire, early)) => (Ok(wire), early),
        Err(flaw) => (Err(flaw.clone()), Err(flaw)),
    };
    list.row("before peer.announce nothing else is taken (-32600)", API, early);
    let announce = ada.as_mut().map_err(|flaw| flaw.clone()).and_then(|ada| {
        let params = json!({ "peer_id": "ada", "room": room, "capabilities": ["audio", "video", "data"], "user_data": { "name": "Ada" } });
        let result = taken(ada.call("peer.announce", &params)?)?;
        same("peer_id", &result["peer_id"], &json!("ada"))?;
        same("count", &result["count"], &json!(0))?;
        same("peers", &result["peers"], &json!([]))
    });
    list.row("peer.announce tells who is there: nobody", API, announce.clone());
    let mut ada = announce.and(ada);
    let mut bob = after(&ada).and_then(|_| server.open());
    let camel = after(&bob).map(drop).and_then(|()| {
        let bob = bob.as_mut().map_err(|flaw| flaw.clone())?;
        let result = taken(bob.call("announce", &json!({ "peerId": "bob", "room": room, "userData": 7 }))?)?;
        same("the other one's user_data", &result["peers"][0]["user_data"]["name"], &json!("Ada"))?;
        same("the other one's capabilities", &result["peers"][0]["capabilities"], &json!(["audio", "video", "data"]))
    });
    list.row("announce and camel case are taken as well", API, camel.clone());
    if let Err(flaw) = camel {
        bob = Err(flaw);
    }
    let mut pair = match (ada.as_mut(), bob.as_mut()) {
        (Ok(ada), Ok(bob)) => Ok((ada, bob)),
        (Err(flaw), _) | (_, Err(flaw)) => Err(Flaw::Failed(format!("{flaw:?}"))),
    };
    type Step = fn(&mut Wire, &mut Wire) -> Verdict;
    let steps: &[(&'static str, Step)] = &[
        ("the others are told: peer.joined", |ada, _| {
            let joined = ada.told("peer.joined")?;
            same("peer_id", &joined["peer_id"], &json!("bob"))?;
            same("user_data", &joined["user_data"], &json!(7))
        }),
        ("peer.list has everybody, and how many", |ada, _| {
            let listed = taken(ada.call("peer.list", &Value::Null)?)?;
            let ids: Vec<&str> =
                listed["peers"].as_array().into_iter().flatten().filter_map(|peer| peer["peer_id"].as_str()).collect();
            same("count", &listed["count"], &json!(2))?;
            ensure(ids.contains(&"ada") && ids.contains(&"bob") && ids.len() == 2, || format!("it lists {ids:?}"))
        }),
        ("peer.offer is handed on verbatim", |ada, bob| {
            taken(ada.call("peer.offer", &json!({ "from": "ada", "to": "bob", "sdp": SDP }))?)?;
            let told = bob.told("peer.offer")?;
            same("from", &told["from"], &json!("ada"))?;
            same("to", &told["to"], &json!("bob"))?;
            same("sdp", &told["sdp"], &json!(SDP))
        }),
        ("an offer before the answer is refused (-32005)", |ada, _| {
            expect_code(&ada.call("peer.offer", &json!({ "to": "bob", "sdp": SDP }))?, &[-32005])
        }),
        ("peer.answer is handed on verbatim", |ada, bob| {
            taken(bob.call("peer.answer", &json!({ "to": "ada", "sdp": SDP }))?)?;
            let told = ada.told("peer.answer")?;
            same("from", &told["from"], &json!("bob"))?;
            same("sdp", &told["sdp"], &json!(SDP))
        }),
        ("an answer that nobody asked for is refused (-32003)", |_, bob| {
            expect_code(&bob.call("peer.answer", &json!({ "to": "ada", "sdp": SDP }))?, &[-32003])
        }),
        ("offer and answer without peer. are taken; sdp may be an object", |ada, bob| {
            taken(bob.call("offer", &json!({ "to": "ada", "sdp": { "type": "offer", "sdp": SDP } }))?)?;
            same("sdp", &ada.told("peer.offer")?["sdp"], &json!(SDP))?;
            taken(ada.call("answer", &json!({ "to": "bob", "sdp": { "type": "answer", "sdp": SDP } }))?)?;
            same("sdp", &bob.told("peer.answer")?["sdp"], &json!(SDP))
        }),
        ("both may offer at once", |ada, bob| {
            taken(ada.call("peer.offer", &json!({ "to": "bob", "sdp": SDP }))?)?;
            taken(bob.call("peer.offer", &json!({ "to": "ada", "sdp": SDP }))?)?;
            ada.told("peer.offer")?;
            bob.told("peer.offer")?;
            taken(bob.call("peer.answer", &json!({ "to": "ada", "sdp": SDP }))?)?;
            ada.told("peer.answer").map(drop)
        }),
        ("an answer that takes nothing is reported (-32007)", |ada, bob| {
            taken(ada.call("peer.offer", &json!({ "to": "bob", "sdp": SDP }))?)?;
            bob.told("peer.offer")?;
            expect_code(&bob.call("peer.answer", &json!({ "to": "ada", "sdp": REJECTED }))?, &[-32007])
        }),
        ("peer.ice_candidate is handed on, with its m-line", |ada, bob| {
            candidate(
                ada,
                bob,
                "peer.ice_candidate",
                &json!({ "candidate": CANDIDATE, "sdp_mid": "0", "sdp_m_line_index": 0 }),
                &json!(CANDIDATE),
            )
        }),
        ("a candidate's fields may be in camel case", |ada, bob| {
            candidate(
                ada,
                bob,
                "ice_candidate",
                &json!({ "candidate": CANDIDATE, "sdpMid": "0", "sdpMLineIndex": 0 }),
                &json!(CANDIDATE),
            )
        }),
        ("a candidate may be an object", |ada, bob| {
            let object =
                json!({ "candidate": CANDIDATE, "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "abcd" });
            candidate(ada, bob, "peer.ice_candidate", &json!({ "candidate": object }), &object)
        }),
        ("a candidate may be a text that holds an object", |ada, bob| {
            let text = json!(json!({ "candidate": CANDIDATE, "sdpMid": "0" }).to_string());
            candidate(ada, bob, "peer.ice_candidate", &json!({ "candidate": text }), &text)
        }),
        ("the end of candidates is handed on", |ada, bob| {
            candidate(ada, bob, "peer.ice_candidate", &json!({ "candidate": null }), &Value::Null)?;
            candidate(ada, bob, "peer.ice_candidate", &json!({ "candidate": "" }), &json!(""))
        }),
        ("a notification is handed on like a request", |ada, bob| {
            let params = json!({ "to": "bob", "candidate": CANDIDATE });
            ada.say(json!({ "jsonrpc": "2.0", "method": "peer.ice_candidate", "params": params }).to_string())?;
            same("candidate", &bob.told("peer.ice_candidate")?["candidate"], &json!(CANDIDATE))
        }),
        ("peer.state_changed goes to everybody else", |ada, bob| {
            taken(ada.call("peer.state_changed", &json!({ "state": "connected" }))?)?;
            same("state", &bob.told("peer.state_changed")?["state"], &json!("connected"))
        }),
    ];
    for (name, step) in steps {
        let verdict = match &mut pair {
            Ok((ada, bob)) => step(ada, bob),
            Err(flaw) => Err(unreached(flaw)),
        };
        list.row(name, API, verdict);
    }
    let left = match &mut pair {
        Ok((ada, bob)) => bob.call("peer.disconnect", &json!({ "reason": "lunch" })).and_then(taken).and_then(|_| {
            let left = ada.told("peer.left")?;
            same("peer_id", &left["peer_id"], &json!("bob"))?;
            same("reason", &left["reason"], &json!("lunch"))
        }),
        Err(flaw) => Err(unreached(flaw)),
    };
    list.row("who disconnects has left: peer.left", API, left.clone());
    let again = after(&left).and_then(|()| server.enter(&room, "bob").map(drop));
    list.row("its name is free again", API, again.clone());
    // That one's connection is closed by now.
    let gone = after(&again).and_then(|()| {
        let ada = ada.as_mut().map_err(|flaw| flaw.clone())?;
        same("peer_id", &ada.told("peer.disconnected")?["peer_id"], &json!("bob"))
    });
    list.row("whose connection ends is gone: peer.disconnected", API, gone);
}

/// From one to the other, and what of it arrives.
fn candidate(ada: &mut Wire, bob: &mut Wire, method: &str, params: &Value, expected: &Value) -> Verdict {
    let mut said = params.clone();
    said["to"] = json!("bob");
    taken(ada.call(method, &said)?)?;
    let told = bob.told("peer.ice_candidate")?;
    same("from", &told["from"], &json!("ada"))?;
    same("candidate", &told["candidate"], expected)?;
    for (snake, camel) in [("sdp_mid", "sdpMid"), ("sdp_m_line_index", "sdpMLineIndex")] {
        if let Some(value) = params.get(snake).or_else(|| params.get(camel)) {
            let got = told.get(snake).or_else(|| told.get(camel)).unwrap_or(&Value::Null);
            same(snake, got, value)?;
        }
    }
    Ok(())
}

/// What peers may not say; the one it is about hears none of it.
fn refusals(server: &Server<'_>, list: &mut Checklist) {
    let (room, elsewhere) = (format!("{}-wrong", server.room), format!("{}-else", server.room));
    let both = server
        .enter(&room, "ada")
        .and_then(|ada| Ok((ada, server.enter(&room, "bob")?, server.enter(&elsewhere, "cyd")?)));
    let mut both = both.map(|(mut ada, bob, cyd)| {
        ada.forget();
        (ada, bob, cyd)
    });
    let large = format!("v=0\r\n{}", "a=x:y\r\n".repeat(10_000));
    for (name, method, params, codes) in [
        ("an offer to nobody is refused (-32000)", "peer.offer", json!({ "to": "zoe", "sdp": SDP }), &[-32000][..]),
        (
            "an offer to another room's peer is refused (-32000)",
            "peer.offer",
            json!({ "to": "cyd", "sdp": SDP }),
            &[-32000],
        ),
        (
            "a candidate to nobody is refused (-32000)",
            "peer.ice_candidate",
            json!({ "to": "zoe", "candidate": CANDIDATE }),
            &[-32000],
        ),
        ("an offer to oneself is refused", "peer.offer", json!({ "to": "bob", "sdp": SDP }), &[-32602, -32000]),
        (
            "an offer in another's name is refused (-32602)",
            "peer.offer",
            json!({ "from": "ada", "to": "ada", "sdp": SDP }),
            &[-32602],
        ),
        (
            "a candidate in another's name is refused (-32602)",
            "peer.ice_candidate",
            json!({ "from": "zoe", "to": "ada", "candidate": CANDIDATE }),
            &[-32602],
        ),
        ("an offer to whom nobody says is refused (-32602)", "peer.offer", json!({ "sdp": SDP }), &[-32602]),
        ("an offer without SDP is refused (-32002)", "peer.offer", json!({ "to": "ada" }), &[-32002]),
        (
            "an offer of something else is refused (-32002)",
            "peer.offer",
            json!({ "to": "ada", "sdp": "hello" }),
            &[-32002],
        ),
        ("an offer over 64 KiB is refused (-32002)", "peer.offer", json!({ "to": "ada", "sdp": large }), &[-32002]),
        ("an answer of something else is refused (-32003)", "peer.answer", json!({ "to": "ada", "sdp": 7 }), &[-32003]),
        (
            "a candidate of something else is refused (-32004)",
            "peer.ice_candidate",
            json!({ "to": "ada", "candidate": "hello" }),
            &[-32004],
        ),
        (
            "a candidate that is a number is refused (-32004)",
            "peer.ice_candidate",
            json!({ "to": "ada", "candidate": 7 }),
            &[-32004],
        ),
        (
            "a name that somebody has is refused (-32602)",
            "peer.announce",
            json!({ "peer_id": "ada", "room": room }),
            &[-32602],
        ),
        (
            "a name with spaces is refused (-32602)",
            "peer.announce",
            json!({ "peer_id": "a b", "room": room }),
            &[-32602],
        ),
        (
            "a name of 65 letters is refused (-32602)",
            "peer.announce",
            json!({ "peer_id": "x".repeat(65), "room": room }),
            &[-32602],
        ),
        ("no name is refused (-32602)", "peer.announce", json!({ "room": room }), &[-32602]),
        (
            "a name that is no text is refused (-32602)",
            "peer.announce",
            json!({ "peer_id": 7, "room": room }),
            &[-32602],
        ),
        (
            "user_data over 1 KiB is refused (-32602)",
            "peer.announce",
            json!({ "peer_id": "bob", "room": room, "user_data": "x".repeat(1025) }),
            &[-32602],
        ),
        (
            "unknown capabilities are refused (-32602)",
            "peer.announce",
            json!({ "peer_id": "bob", "room": room, "capabilities": ["smell"] }),
            &[-32602],
        ),
    ] {
        let verdict = match &mut both {
            Ok((_, bob, _)) => bob.call(method, &params).and_then(|result| expect_code(&result, codes)),
            Err(flaw) => Err(unreached(flaw)),
        };
        list.row(name, API, verdict);
    }
    let quiet = match &mut both {
        Ok((ada, _, cyd)) => [ada, cyd].into_iter().try_for_each(|wire| match wire.stray() {
            Some(news) => Err(Flaw::Failed(format!("somebody was told {}", short(&news)))),
            None => Ok(()),
        }),
        Err(flaw) => Err(unreached(flaw)),
    };
    list.row("nobody is told of what was refused, or said in another room", API, quiet);
}

fn rooms(server: &Server<'_>, list: &mut Checklist) {
    let room = format!("{}-full", server.room);
    let mut ten = (0..10).map(|n| server.enter(&room, &format!("p{n}"))).collect::<Result<Vec<Wire>, Flaw>>();
    list.row("ten peers fit into a room", API, ten.as_ref().map(drop).map_err(Flaw::clone));
    let eleventh = after(&ten).map(drop).and_then(|()| {
        let mut wire = server.open()?;
        expect_code(&wire.call("peer.announce", &json!({ "peer_id": "p10", "room": room }))?, &[-32001])?;
        // It may go elsewhere.
        taken(wire.call("peer.announce", &json!({ "peer_id": "p10", "room": format!("{room}-2") }))?).map(drop)
    });
    list.row("the eleventh is refused (-32001), and may go elsewhere", API, eleventh);
    let patient = match &mut ten {
        Ok(ten) => in_list(&mut ten[0], 10),
        Err(flaw) => Err(unreached(flaw)),
    };
    list.row("who announces itself and never offers stays", API, patient);
}

fn in_list(wire: &mut Wire, count: u64) -> Verdict {
    let listed = taken(wire.call("peer.list", &Value::Null)?)?;
    same("count", &listed["count"], &json!(count))
}

/// Each ends the connection, or is answered by an error; in either case the others in the room go on.
fn bad_input(server: &Server<'_>, list: &mut Checklist) {
    let room = format!("{}-bad", server.room);
    let mut bystander = server.enter(&room, "bystander");
    type Attack = fn(&mut Wire);
    let attacks: &[(&'static str, &'static str, Attack)] = &[
        ("invalid UTF-8 is refused or closed", "RFC 6455 §8.1", |wire| {
            wire.say_raw(true, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\xfe\"}".to_vec())
        }),
        ("a binary message is refused or closed", API, |wire| {
            wire.say_raw(false, br#"{"jsonrpc":"2.0","id":1,"method":"peer.dance"}"#.to_vec())
        }),
        ("a message of 2 MiB is refused or closed", API, |wire| wire.say_raw(true, vec![b' '; 2 << 20])),
        ("nesting without end is refused or closed", API, |wire| wire.say_raw(true, vec![b'['; 200_000])),
    ];
    for (name, section, attack) in attacks {
        let verdict = after(&bystander).map(drop).and_then(|()| {
            let mut wire = server.enter(&room, "mallory")?;
            attack(&mut wire);
            match wire.hear_within(Duration::from_secs(3)) {
                Heard::Closed(_) => Ok(()),
                Heard::Message(answer) if answer.get("error").is_some() => Ok(()),
                Heard::Message(answer) => Err(Flaw::Failed(format!("it was taken: {}", short(&answer)))),
                Heard::Nothing => Err(Flaw::Failed("it is neither closed nor answered within 3s".into())),
            }
        });
        list.row(name, section, verdict);
    }
    let flood = after(&bystander).map(drop).and_then(|()| {
        let mut wire = server.enter(&room, "flood")?;
        wire.say_often(r#"{"jsonrpc":"2.0","id":1,"method":"peer.list"}"#, 10_000);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) {
            if matches!(wire.hear_within(Duration::from_secs(1)), Heard::Closed(_)) {
                return Ok(());
            }
        }
        Err(Flaw::Failed("10 000 messages at once are all answered".into()))
    });
    list.row("10 000 messages at once end the connection", API, flood);
    let undisturbed = match &mut bystander {
        Ok(wire) => wire.call("peer.list", &Value::Null).and_then(taken).map(drop),
        Err(flaw) => Err(unreached(flaw)),
    };
    list.row("nobody else in the room is disturbed by that", API, undisturbed);
}

/// A connection that says one thing and never who it is.
struct Mute {
    wire: Wire,
    since: Instant,
}

impl Mute {
    fn begin(server: &Server<'_>) -> Result<Self, Flaw> {
        let mut wire = server.open()?;
        // Which dialect it is the first message tells.
        wire.say(r#"{"jsonrpc":"2.0","id":1,"method":"peer.list"}"#)?;
        wire.answer()?;
        Ok(Self { wire, since: Instant::now() })
    }

    fn ended(mut self) -> Verdict {
        loop {
            let left = ANNOUNCE_LIMIT.saturating_sub(self.since.elapsed());
            match self.wire.hear_within(left) {
                Heard::Closed(_) => return Ok(()),
                Heard::Message(_) => {}
                Heard::Nothing => return Err(Flaw::Failed(format!("it is open after {ANNOUNCE_LIMIT:?}"))),
            }
        }
    }
}
