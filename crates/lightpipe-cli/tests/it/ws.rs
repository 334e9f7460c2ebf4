//! WebSocket signalling, as clients really speak it: dialects *plain*, *room* and *JSON-RPC*.

use std::sync::LazyLock;

use futures_util::{SinkExt, StreamExt};
use jsonschema::Validator;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::lab::browser::{inbound, wait_decoded};
use crate::lab::{PATIENCE, Server, Viewer, chromium, quiet, serve, shared};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(server: &Server, origin: Option<&str>) -> Result<Socket, Error> {
    let mut request = format!("ws://{}/ws", server.address()).into_client_request()?;
    if let Some(origin) = origin {
        request.headers_mut().insert("Origin", origin.parse().unwrap());
    }
    Ok(connect_async(request).await?.0)
}

async fn say(socket: &mut Socket, message: &Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

/// What the server may say, by the schema that it publishes.
static FROM_SERVER: LazyLock<Validator> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../web/schema/signaling.json");
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    schema["anyOf"] = json!([{ "$ref": "#/$defs/fromServer" }]);
    jsonschema::draft202012::new(&schema).unwrap()
});

/// The next JSON message; `Err` with the close code when the server ends it.
async fn hear(socket: &mut Socket) -> Result<Value, Option<u16>> {
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.expect("an answer in time") {
            Some(Ok(Message::Text(text))) => {
                let message = serde_json::from_str(&text).unwrap();
                assert!(FROM_SERVER.is_valid(&message), "not in the schema: {message}");
                return Ok(message);
            }
            Some(Ok(Message::Close(frame))) => return Err(frame.map(|f| f.code.into())),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(None),
        }
    }
}

/// A plain viewer in a page; candidates in the form that FORM makes of them.
const PLAIN: &str = "(async () => {
  const pc = window.pc = new RTCPeerConnection(), ws = window.ws = new WebSocket(`ws://${location.host}/ws`);
  const errors = window.errors = [], trickled = window.trickled = [];
  pc.addTransceiver('video', { direction: 'recvonly' });
  const video = document.body.appendChild(Object.assign(document.createElement('video'), { muted: true, autoplay: true }));
  pc.ontrack = ({ track }) => { video.srcObject = new MediaStream([track]); };
  await new Promise((resolve, reject) => { ws.onopen = resolve; ws.onerror = reject; });
  const say = message => ws.send(JSON.stringify(message));
  const form = FORM;
  pc.onicecandidate = ({ candidate }) => { if (candidate) { trickled.push(candidate.candidate); say(form(candidate)); } };
  ws.onmessage = async ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === 'answer') await pc.setRemoteDescription({ type: 'answer', sdp: message.sdp });
    else if (message.type === 'ready') window.streams = message.streams;
    else errors.push(message);
  };
  say({ type: 'ready' });
  await pc.setLocalDescription();
  say({ type: 'offer', sdp: pc.localDescription.sdp STREAM });
})()";

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_client_plays_whatever_form_its_candidates_have() {
    let _machine = quiet().await;
    let server = serve(&["cube", "pattern"]).start();
    let browser = chromium().await;
    for (form, stream, expected) in [
        ("c => ({ type: 'ice', candidate: c.candidate, sdpMLineIndex: c.sdpMLineIndex })", "", "cube"),
        ("c => ({ type: 'ice', candidate: c.toJSON() })", ", stream: 'pattern'", "pattern"),
        ("c => ({ type: 'ice_candidate', candidate: JSON.stringify(c) })", ", stream: 'cube'", "cube"),
    ] {
        let page = browser.open(&server.url("/healthz")).await.unwrap();
        page.evaluate(&PLAIN.replace("FORM", form).replace("STREAM", stream)).await.unwrap();
        wait_decoded(&page, "pc", 20).await;
        assert!(inbound(&page, "pc").await["framesDecoded"].as_u64().unwrap() >= 20);
        page.wait_until("trickled.length > 0 && streams", PATIENCE).await.unwrap();
        assert_eq!(page.evaluate("[errors, streams]").await.unwrap(), json!([[], ["cube", "pattern"]]), "{form}");
        let peers = server.peers();
        assert_eq!((&peers[0]["transport"], &peers[0]["stream"]), (&"ws-plain".into(), &expected.into()), "{form}");
        // Closing the socket ends the session.
        page.evaluate("ws.close()").await.unwrap();
        server.wait_peers(0, PATIENCE);
        page.close().await.unwrap();
    }
    browser.close().await.unwrap();
}

/// A member of room R who watches the default stream.
const ROOM: &str = "(async () => {
  const pc = window.pc = new RTCPeerConnection(), ws = window.ws = new WebSocket(`ws://${location.host}/ws`);
  const heard = window.heard = [];
  pc.addTransceiver('video', { direction: 'recvonly' });
  const video = document.body.appendChild(Object.assign(document.createElement('video'), { muted: true, autoplay: true }));
  pc.ontrack = ({ track }) => { video.srcObject = new MediaStream([track]); };
  await new Promise((resolve, reject) => { ws.onopen = resolve; ws.onerror = reject; });
  const say = message => ws.send(JSON.stringify({ room: 'R', from: 'me', ...message }));
  pc.onicecandidate = ({ candidate }) => { if (candidate) say({ type: 'ice_candidate', to: 'ffmpeg-bot', candidate }); };
  ws.onmessage = async ({ data }) => {
    const message = JSON.parse(data);
    heard.push(message);
    if (message.type === 'join' && message.from === 'ffmpeg-bot') {
      await pc.setLocalDescription();
      say({ type: 'offer', to: 'ffmpeg-bot', sdp: pc.localDescription.sdp });
    } else if (message.type === 'answer') await pc.setRemoteDescription({ type: 'answer', sdp: message.sdp });
  };
  say({ type: 'join' });
})()";

#[tokio::test(flavor = "multi_thread")]
async fn a_room_member_plays_what_ffmpeg_bot_shows_and_hears_of_the_others() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/healthz")).await.unwrap();
    page.evaluate(ROOM).await.unwrap();
    wait_decoded(&page, "pc", 20).await;
    let answer = page.evaluate("heard.find(m => m.type === 'answer')").await.unwrap();
    assert_eq!((&answer["from"], &answer["to"], &answer["room"]), (&"ffmpeg-bot".into(), &"me".into(), &"R".into()));
    assert_eq!(page.evaluate("heard.filter(m => m.type === 'error')").await.unwrap(), json!([]));
    assert_eq!(server.peers()[0]["transport"], "ws-room");

    // Somebody else comes, says something to the page, and goes.
    let mut other = connect(&server, None).await.unwrap();
    say(&mut other, &json!({ "type": "join", "room": "R", "from": "other" })).await;
    page.wait_until("heard.some(m => m.type === 'join' && m.from === 'other')", PATIENCE).await.unwrap();
    let candidate =
        json!({ "type": "ice_candidate", "room": "R", "from": "other", "to": "me", "candidate": "x", "extra": 1 });
    say(&mut other, &candidate).await;
    let heard = page.wait_until("heard.find(m => m.type === 'ice_candidate')", PATIENCE).await.unwrap();
    assert_eq!(heard, candidate, "handed on as it came");
    other.close(None).await.unwrap();
    page.wait_until("heard.some(m => m.type === 'leave' && m.from === 'other')", PATIENCE).await.unwrap();
    page.evaluate("ws.send(JSON.stringify({ type: 'leave', room: 'R', from: 'me' }))").await.unwrap();
    server.wait_peers(0, PATIENCE);
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_may_not_signal() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    for origin in ["https://evil.example", "http://127.0.0.1:1", "null"] {
        match connect(&server, Some(origin)).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), 403, "{origin}"),
            other => panic!("{origin}: {other:?}"),
        }
    }
    let own = server.url("");
    assert!(connect(&server, Some(&own)).await.is_ok(), "{own}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_are_answered_by_name_and_nobody_else_is_disturbed() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let bystander = Viewer::join(&server, "pattern");
    bystander.wait_pictures(5, PATIENCE);
    bystander.take_longest_gap();

    let mut socket = connect(&server, None).await.unwrap();
    let good = "candidate:1 1 udp 2130706431 127.0.0.1 50000 typ host";
    for (message, code) in [
        ("garbage".to_owned(), "bad_message"),
        ("[]".to_owned(), "bad_message"),
        ("{}".to_owned(), "bad_message"),
        (r#"{"type":"wave"}"#.to_owned(), "bad_message"),
        (r#"{"type":7}"#.to_owned(), "bad_message"),
        (r#"{"type":"offer"}"#.to_owned(), "bad_message"),
        (r#"{"type":"offer","sdp":"hello"}"#.to_owned(), "bad_offer"),
        (r#"{"type":"offer","sdp":"v=0","stream":"nobody"}"#.to_owned(), "no_such_stream"),
        (format!(r#"{{"type":"offer","sdp":"{}"}}"#, "v".repeat(70_000)), "bad_message"),
        (r#"{"type":"answer","sdp":"v=0"}"#.to_owned(), "unexpected_answer"),
        (r#"{"type":"ice","candidate":"nonsense"}"#.to_owned(), "bad_candidate"),
        (r#"{"type":"ice","candidate":7}"#.to_owned(), "bad_message"),
        (r#"{"type":"offer","sdp":"v=0","from":"me","to":"you"}"#.to_owned(), "not_joined"),
        (r#"{"type":"join","room":"a room","from":"me"}"#.to_owned(), "bad_message"),
        (r#"{"type":"join","room":"R","from":"ffmpeg-bot"}"#.to_owned(), "name_taken"),
    ] {
        socket.send(Message::text(message.clone())).await.unwrap();
        let answer = hear(&mut socket).await.unwrap_or_else(|code| panic!("{message}: closed with {code:?}"));
        assert_eq!((&answer["type"], &answer["code"]), (&"error".into(), &code.into()), "{message}: {answer}");
        assert!(answer["message"].as_str().unwrap().len() > 5, "{answer}");
    }
    // Candidates in all their forms are no errors, before any offer: the next answer is that to `ready`.
    for candidate in [
        json!(good),
        json!({ "candidate": good, "sdpMLineIndex": 0 }),
        json!(format!("{{\"candidate\":\"{good}\"}}")),
        Value::Null,
    ] {
        say(&mut socket, &json!({ "type": "ice", "candidate": candidate })).await;
    }
    say(&mut socket, &json!({ "type": "ready" })).await;
    assert_eq!(hear(&mut socket).await, Ok(json!({ "type": "ready", "streams": ["pattern"] })));

    socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(hear(&mut socket).await, Err(Some(1003)), "signalling is text");

    let mut socket = connect(&server, None).await.unwrap();
    // The server may hang up in the middle of it.
    _ = socket.send(Message::text(" ".repeat((1 << 20) + 1))).await;
    assert!(hear(&mut socket).await.is_err(), "over a mebibyte");

    let mut socket = connect(&server, None).await.unwrap();
    for _ in 0..300 {
        _ = socket.send(Message::text(r#"{"type":"ready"}"#)).await;
    }
    let end = loop {
        if let Err(end) = hear(&mut socket).await {
            break end;
        }
    };
    assert!(end.is_none_or(|code| code == 1008), "a flood is ended: {end:?}");

    bystander.wait_pictures(15, PATIENCE);
    let gap = bystander.take_longest_gap();
    assert!(gap.as_millis() < 1000, "stood still for {gap:?}");
    assert_eq!(server.peers().len(), 1);
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

/// A peer who shows a canvas of one colour to whoever is or comes into its room; the later one offers.
const MESH: &str = "(async () => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 320, height: 180 }), context = canvas.getContext('2d');
  setInterval(() => { context.fillStyle = 'COLOUR'; context.fillRect(0, 0, 320, 180); }, 50);
  const ws = window.ws = new WebSocket(`ws://${location.host}/ws`), peers = window.peers = {}, news = window.news = [];
  const calls = new Map();
  const call = (method, params) => new Promise((resolve, reject) => {
    const id = calls.size + 1;
    calls.set(id, { resolve, reject });
    ws.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }));
  });
  const meet = id => {
    const pc = new RTCPeerConnection(), video = document.body.appendChild(Object.assign(document.createElement('video'), { muted: true, autoplay: true }));
    const stream = canvas.captureStream(20);
    pc.addTrack(stream.getTracks()[0], stream);
    pc.ontrack = ({ track }) => { video.srcObject = new MediaStream([track]); };
    pc.onicecandidate = ({ candidate }) => { if (candidate) call('peer.ice_candidate', { to: id, candidate: candidate.candidate, sdp_mid: candidate.sdpMid, sdp_m_line_index: candidate.sdpMLineIndex }); };
    return peers[id] = { pc, video };
  };
  ws.onmessage = async ({ data }) => {
    const { id, result, error, method, params } = JSON.parse(data);
    if (!method) { const waits = calls.get(id); if (error) waits.reject(error); else waits.resolve(result); return; }
    news.push([method, params.peer_id ?? params.from]);
    if (method === 'peer.offer') {
      const { pc } = meet(params.from);
      await pc.setRemoteDescription({ type: 'offer', sdp: params.sdp });
      await pc.setLocalDescription();
      await call('peer.answer', { to: params.from, sdp: pc.localDescription.sdp });
    } else if (method === 'peer.answer') await peers[params.from].pc.setRemoteDescription({ type: 'answer', sdp: params.sdp });
    else if (method === 'peer.ice_candidate') {
      await peers[params.from].pc.addIceCandidate({ candidate: params.candidate, sdpMid: params.sdp_mid, sdpMLineIndex: params.sdp_m_line_index });
    }
  };
  await new Promise((resolve, reject) => { ws.onopen = resolve; ws.onerror = reject; });
  window.call = call;
  window.colour = id => {
    const { video } = peers[id], reader = new OffscreenCanvas(1, 1).getContext('2d');
    reader.drawImage(video, 0, 0, 1, 1);
    return [...reader.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => Math.round(value / 128));
  };
  const { peers: present } = await call('peer.announce', { peer_id: 'NAME', capabilities: ['video'], room: 'lab' });
  for (const { peer_id } of present) {
    const { pc } = meet(peer_id);
    await pc.setLocalDescription();
    await call('peer.offer', { to: peer_id, sdp: pc.localDescription.sdp });
  }
})()";

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_a_room_see_each_other_by_json_rpc() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let mut pages = Vec::new();
    let colours =
        [("ada", "#f00", json!([2, 0, 0])), ("bob", "#0f0", json!([0, 2, 0])), ("cyd", "#00f", json!([0, 0, 2]))];
    for (name, colour, _) in &colours {
        let page = browser.open(&server.url("/healthz")).await.unwrap();
        page.evaluate(&MESH.replace("NAME", name).replace("COLOUR", colour)).await.unwrap();
        pages.push(page);
    }
    for (page, (me, ..)) in pages.iter().zip(&colours) {
        for (other, _, seen) in colours.iter().filter(|(other, ..)| other != me) {
            let shows = format!("'{other}' in peers && JSON.stringify(colour('{other}')) === '{seen}'");
            page.wait_until(&shows, PATIENCE)
                .await
                .unwrap_or_else(|error| panic!("{me} does not see {other}: {error}"));
        }
    }
    let listed =
        pages[0].evaluate("call('peer.list').then(room => room.peers.map(peer => peer.peer_id))").await.unwrap();
    assert_eq!(listed, json!(["ada", "bob", "cyd"]));
    pages[2].evaluate("ws.close()").await.unwrap();
    pages[1].evaluate("call('peer.disconnect', { reason: 'lunch' })").await.unwrap();
    let news = "news.filter(([method]) => !['peer.offer', 'peer.answer', 'peer.ice_candidate'].includes(method))";
    pages[0].wait_until(&format!("{news}.length === 4"), PATIENCE).await.unwrap();
    let news = pages[0].evaluate(news).await.unwrap();
    assert_eq!(news.as_array().unwrap()[..2], [json!(["peer.joined", "bob"]), json!(["peer.joined", "cyd"])]);
    let mut ends = news.as_array().unwrap()[2..].to_vec();
    ends.sort_by_key(|end| end[1].to_string());
    assert_eq!(ends, [json!(["peer.left", "bob"]), json!(["peer.disconnected", "cyd"])]);
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_is_served_for_programs_of_any_origin() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let answer = server.get("/schema/signaling.json");
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/schema+json"));
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    let schema: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(jsonschema::meta::is_valid(&schema));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_rpc_over_the_socket_is_answered_batched_and_ended() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    // Says nothing of itself: closed after ten seconds, while the others talk.
    let mut mute = connect(&server, None).await.unwrap();
    say(&mut mute, &json!({ "jsonrpc": "2.0", "id": 1, "method": "peer.list" })).await;
    assert_eq!(hear(&mut mute).await.unwrap()["error"]["code"], -32600);

    let announce = |name: &str, id: u64| json!({ "jsonrpc": "2.0", "id": id, "method": "peer.announce", "params": { "peer_id": name } });
    let mut peers = Vec::new();
    for n in 0..10 {
        let mut socket = connect(&server, None).await.unwrap();
        say(&mut socket, &announce(&format!("p{n}"), 7)).await;
        let welcome = hear(&mut socket).await.unwrap();
        assert_eq!((&welcome["id"], &welcome["result"]["count"]), (&json!(7), &json!(n)), "{welcome}");
        peers.push(socket);
    }
    let mut eleventh = connect(&server, None).await.unwrap();
    say(&mut eleventh, &json!([announce("p10", 1), announce("p3", 2), { "jsonrpc": "2.0", "method": "peer.list" }, 1]))
        .await;
    let refused = hear(&mut eleventh).await.unwrap();
    let codes: Vec<_> = refused.as_array().unwrap().iter().map(|answer| answer["error"]["code"].as_i64()).collect();
    assert_eq!(codes, [Some(-32001), Some(-32602), Some(-32600)], "{refused}");
    eleventh.send(Message::text("{\"jsonrpc\":")).await.unwrap();
    assert_eq!(hear(&mut eleventh).await.unwrap()["error"]["code"], -32700);

    // Ten thousand messages end the one who sends them, and are news of nobody.
    for _ in 0..300 {
        _ = peers[9].send(Message::text(announce("p9", 1).to_string())).await;
    }
    while hear(&mut peers[9]).await.is_ok() {}
    let gone = loop {
        let news = hear(&mut peers[0]).await.unwrap();
        if news["method"] == "peer.disconnected" {
            break news;
        }
    };
    assert_eq!(gone["params"]["peer_id"], "p9");
    assert_eq!(hear(&mut mute).await, Err(Some(1008)), "nobody announced itself there");
    say(&mut peers[0], &json!({ "jsonrpc": "2.0", "id": 9, "method": "list" })).await;
    assert_eq!(hear(&mut peers[0]).await.unwrap()["result"]["count"], 9);
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}
