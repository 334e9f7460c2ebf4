//! The published schema, `/schema/signaling.json`, against the codecs: what one takes, the other does.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Instant;

use jsonschema::Validator;
use lightpipe_signal::transfer::Control;
use lightpipe_signal::{ClientMessage, Conference, ServerMessage, chat, mix};
use serde_json::{Value, json};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../web/schema/signaling.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the schema")).expect("JSON")
});

static VALIDATORS: LazyLock<HashMap<&str, Validator>> = LazyLock::new(|| {
    let names = SCHEMA["$defs"].as_object().expect("definitions").keys();
    let one = |name: &'static str| {
        let part = json!({ "$schema": SCHEMA["$schema"], "$ref": format!("#/$defs/{name}"), "$defs": SCHEMA["$defs"] });
        (name, jsonschema::draft202012::new(&part).expect("a valid schema"))
    };
    names.map(|name| one(name)).collect()
});

fn valid(part: &str, text: &str) -> bool {
    serde_json::from_str(text).is_ok_and(|message: Value| VALIDATORS[part].is_valid(&message))
}

/// Panics unless this is what the schema has under that name.
#[track_caller]
pub(crate) fn check(part: &str, text: &str) {
    let message: Value = serde_json::from_str(text).expect("JSON");
    let errors: Vec<String> = VALIDATORS[part].iter_errors(&message).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{part}: {text}: {errors:?}");
}

#[test]
fn the_schema_itself_is_one() {
    assert!(jsonschema::meta::is_valid(&SCHEMA));
    assert!(jsonschema::draft202012::new(&SCHEMA).is_ok(), "its references lead somewhere");
    assert!(!SCHEMA["$defs"].as_object().expect("definitions").is_empty());
}

#[test]
fn plain_and_room_messages_are_taken_by_both_or_by_neither() {
    for (part, text, taken) in [
        ("plainFromClient", r#"{"type":"ready"}"#, true),
        ("plainFromClient", r#"{"type":"ready","stream":"cube"}"#, true),
        ("plainFromClient", r#"{"type":"offer","sdp":"v=0"}"#, true),
        ("plainFromClient", r#"{"type":"offer","sdp":{"type":"offer","sdp":"v=0"},"stream":"cube"}"#, true),
        ("plainFromClient", r#"{"type":"ice","candidate":"candidate:1","sdpMLineIndex":0}"#, true),
        ("plainFromClient", r#"{"type":"ice_candidate","candidate":{"candidate":"candidate:1","sdpMid":"0"}}"#, true),
        ("plainFromClient", r#"{"type":"ice","candidate":"{\"candidate\":\"candidate:1\"}"}"#, true),
        ("plainFromClient", r#"{"type":"ice","candidate":null}"#, true),
        ("roomFromClient", r#"{"type":"join","room":"R","from":"me"}"#, true),
        ("roomFromClient", r#"{"type":"leave","from":"me"}"#, true),
        ("roomFromClient", r#"{"type":"bye"}"#, true),
        ("roomFromClient", r#"{"type":"offer","from":"me","to":"ffmpeg-bot","sdp":"v=0"}"#, true),
        ("roomFromClient", r#"{"type":"answer","from":"me","to":"you","sdp":{"sdp":"v=0"}}"#, true),
        ("roomFromClient", r#"{"type":"ice_candidate","from":"me","to":"you","candidate":"candidate:1"}"#, true),
        ("fromClient", "[]", false),
        ("fromClient", "{}", false),
        ("fromClient", r#"{"type":7}"#, false),
        ("fromClient", r#"{"type":"dance"}"#, false),
        ("fromClient", r#"{"type":"offer"}"#, false),
        ("fromClient", r#"{"type":"offer","sdp":4}"#, false),
        ("fromClient", r#"{"type":"offer","sdp":"v=0","from":"me"}"#, false),
        ("fromClient", r#"{"type":"offer","sdp":"v=0","from":"me","to":"a b"}"#, false),
        ("fromClient", r#"{"type":"offer","sdp":"v=0","stream":7}"#, false),
        ("fromClient", r#"{"type":"ice","candidate":[1]}"#, false),
        ("fromClient", r#"{"type":"join","room":"../x","from":"me"}"#, false),
        ("fromClient", r#"{"type":"join","room":"R"}"#, false),
    ] {
        assert_eq!((valid(part, text), ClientMessage::parse(text).is_ok()), (taken, taken), "{text}");
        assert_eq!(valid("fromClient", text), taken, "{text}");
    }
    let name = |text: &str| text.to_owned();
    for (part, message) in [
        ("plainFromServer", ServerMessage::Ready { streams: vec![name("cube")] }),
        ("plainFromServer", ServerMessage::Answer { sdp: name("v=0"), room: None, from: None, to: None }),
        ("plainFromServer", ServerMessage::error("no_such_stream", "gone")),
        ("roomFromServer", ServerMessage::Join { room: name("R"), from: name("me") }),
        ("roomFromServer", ServerMessage::Leave { room: name("R"), from: name("me") }),
        (
            "roomFromServer",
            ServerMessage::Answer {
                sdp: name("v=0"),
                room: Some(name("R")),
                from: Some(name("a")),
                to: Some(name("b")),
            },
        ),
    ] {
        check(part, &message.to_json());
        check("fromServer", &message.to_json());
    }
}

#[test]
fn calls_are_taken_by_both_or_by_neither_and_every_answer_is_in_the_schema() {
    let sdp = "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n";
    let call = |method: &str, params: Value| json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
    let mut conference = Conference::new();
    let now = Instant::now();
    for (who, said, taken) in [
        (1, call("peer.list", Value::Null), true),
        (
            1,
            call(
                "peer.announce",
                json!({ "peer_id": "a", "capabilities": ["audio", "data"], "user_data": { "name": "Ada" } }),
            ),
            true,
        ),
        (2, call("announce", json!({ "peerId": "b", "room": "default", "userData": 7 })), true),
        (3, call("announce", json!({ "peer_id": "a" })), true),
        (3, call("announce", json!({})), false),
        (3, call("announce", json!({ "peer_id": "a b" })), false),
        (3, call("announce", json!({ "peer_id": "c", "capabilities": ["smell"] })), false),
        (1, call("peer.offer", json!({ "from": "a", "to": "b", "sdp": sdp })), true),
        (1, call("peer.offer", json!({ "to": "b", "sdp": sdp })), true),
        (1, call("peer.offer", json!({ "to": "z", "sdp": sdp })), true),
        (1, call("peer.offer", json!({ "to": "a", "sdp": sdp })), true),
        (1, call("peer.offer", json!({ "from": "b", "to": "b", "sdp": sdp })), true),
        (1, call("peer.offer", json!({ "to": "b", "sdp": "hello" })), false),
        (1, call("peer.offer", json!({ "sdp": sdp })), false),
        (1, call("peer.offer", Value::Null), false),
        (2, call("answer", json!({ "to": "a", "sdp": { "type": "answer", "sdp": sdp } })), true),
        (2, call("answer", json!({ "to": "a", "sdp": 7 })), false),
        (
            1,
            call(
                "peer.ice_candidate",
                json!({ "to": "b", "candidate": "candidate:1", "sdp_mid": "0", "sdp_m_line_index": 0 }),
            ),
            true,
        ),
        (
            1,
            call("candidate", json!({ "to": "b", "candidate": { "candidate": "candidate:1" }, "sdpMLineIndex": 1 })),
            true,
        ),
        (1, call("ice_candidate", json!({ "to": "b", "candidate": "{\"candidate\":\"\"}" })), true),
        (1, call("ice_candidate", json!({ "to": "b", "candidate": null })), true),
        (1, call("ice_candidate", json!({ "to": "b", "candidate": "hello" })), false),
        (1, call("ice_candidate", json!({ "to": "b", "candidate": 7 })), false),
        (1, call("peer.state_changed", json!({ "state": "connected", "reason": "x" })), true),
        (1, call("peer.state_changed", json!({})), false),
        (1, call("peer.list", json!({})), true),
        (1, call("peer.list", json!([])), false),
        (1, call("peer.dance", json!({})), false),
        (1, json!({ "jsonrpc": "2.0", "method": "peer.list" }), true),
        (1, json!({ "jsonrpc": "2.0", "method": "peer.list", "id": null }), true),
        (1, json!({ "jsonrpc": "2.0", "method": "peer.list", "id": [1] }), false),
        (1, json!({ "jsonrpc": "1.0", "method": "peer.list", "id": 1 }), false),
        (1, json!({ "method": "peer.list", "id": 1 }), false),
        (1, json!([]), false),
        (1, json!([1]), false),
        (1, json!([call("peer.list", Value::Null), { "jsonrpc": "2.0", "method": "list", "id": "x" }]), true),
        (1, call("peer.disconnect", json!({ "reason": "lunch" })), true),
        (2, call("peer.disconnect", Value::Null), true),
    ] {
        assert_eq!(valid("rpcFromClient", &said.to_string()), taken, "{said}");
        let (answer, told) = conference.message(now, who, &said.to_string());
        for (_, text) in &told {
            check("rpcNotification", text);
            check("rpcFromServer", text);
        }
        // What the schema refuses is refused; what it takes may still be about nobody.
        let structural = |answer: &Value| {
            matches!(
                answer["error"]["code"].as_i64(),
                Some(-32600..=-32600 | -32601 | -32602 | -32002 | -32003 | -32004)
            )
        };
        if let Some(answer) = &answer {
            check("rpcFromServer", answer);
            let answer: Value = serde_json::from_str(answer).expect("JSON");
            let first = answer.get(0).unwrap_or(&answer);
            assert!(taken || structural(first), "{said}: {answer}");
        }
    }
    conference.message(now, 1, &call("announce", json!({ "peer_id": "a" })).to_string());
    conference.message(now, 2, &call("announce", json!({ "peer_id": "b" })).to_string());
    conference.gone(2).iter().for_each(|(_, text)| check("rpcNotification", text));
    assert!(conference.message(now, 1, "{").0.is_some_and(|answer| valid("rpcFromServer", &answer)));
}

#[test]
fn messages_of_data_channels_are_taken_by_both_or_by_neither() {
    let sum = "ab".repeat(32);
    let end = format!(r#"{{"type":"end","id":"a","size":9,"sha256":"{sum}"}}"#);
    for (text, taken) in [
        (r#"{"type":"offer","id":"a","number":7,"name":"ü.txt","size":9,"mime":"text/plain"}"#, true),
        (r#"{"type":"offer","id":"a","number":7,"name":"x","size":0}"#, true),
        (r#"{"type":"accept","id":"a","offset":4096}"#, true),
        (r#"{"type":"refuse","id":"a","reason":"no"}"#, true),
        (r#"{"type":"progress","id":"a","received":5}"#, true),
        (&end, true),
        (r#"{"type":"done","id":"a"}"#, true),
        (r#"{"type":"failed","id":"a"}"#, true),
        (r#"{"type":"cancel","id":"a","reason":"x"}"#, true),
        (r#"{"type":"done"}"#, false),
        (r#"{"type":"done","id":"../a"}"#, false),
        (r#"{"type":"dance","id":"a"}"#, false),
        (r#"{"type":"accept","id":"a","offset":-1}"#, false),
        (r#"{"type":"accept","id":"a","offset":"1"}"#, false),
        (r#"{"type":"offer","id":"a","number":4294967296,"name":"n","size":1}"#, false),
        (r#"{"type":"end","id":"a","size":1,"sha256":"abc"}"#, false),
        (r#"{"type":"chat","id":1,"text":"a","at":1}"#, false),
    ] {
        assert_eq!((valid("files", text), Control::parse(text).is_ok()), (taken, taken), "{text}");
    }
    for (text, taken) in [
        (r#"{"type":"chat","id":1,"text":"hé","at":1700000000000}"#, true),
        (r#"{"type":"ack","id":7}"#, true),
        (r#"{"type":"state","muted":true,"camera":false,"name":"Ada"}"#, true),
        (r#"{"type":"state"}"#, true),
        (r#"{"type":"chat","id":0,"text":"a","at":1}"#, false),
        (r#"{"type":"chat","id":1,"text":"","at":1}"#, false),
        (r#"{"type":"chat","id":1,"text":"a"}"#, false),
        (r#"{"type":"chat","id":1,"text":7,"at":1}"#, false),
        (r#"{"type":"ack"}"#, false),
        (r#"{"type":"state","muted":1}"#, false),
        (r#"{"type":"done","id":"a"}"#, false),
    ] {
        assert_eq!((valid("chat", text), chat::Message::parse(text).is_ok()), (taken, taken), "{text}");
    }
    for (text, taken) in [
        (r#"{"type":"speaker","peer":"ada"}"#, true),
        (r#"{"type":"speaker","peer":null}"#, true),
        (r#"{"type":"speaker"}"#, true),
        (r#"{"type":"levels","levels":{"ada":-20,"bob":-127}}"#, true),
        (r#"{"type":"levels","levels":{}}"#, true),
        (r#"{"type":"speaker","peer":"a b"}"#, false),
        (r#"{"type":"speaker","peer":7}"#, false),
        (r#"{"type":"levels"}"#, false),
        (r#"{"type":"levels","levels":{"ada":1}}"#, false),
        (r#"{"type":"levels","levels":{"ada":-128}}"#, false),
        (r#"{"type":"levels","levels":{"a b":-1}}"#, false),
        (r#"{"type":"ack","id":7}"#, false),
    ] {
        assert_eq!((valid("mix", text), mix::Message::parse(text).is_ok()), (taken, taken), "{text}");
    }
}
