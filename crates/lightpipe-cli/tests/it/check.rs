//! `check-whip`, `check-whep` and `check-signaling`: our own server keeps every rule, a naive one does not, and both are told apart from nobody.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::lab::server::program;
use crate::lab::{serve, shared};

/// Runs a checker to its end.
#[track_caller]
fn check(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

/// Its exit code and its JSON.
#[track_caller]
fn check_json(command: &str, url: &str, more: &[&str]) -> (Option<i32>, Value) {
    let output = check(&[&[command, url, "--json"], more].concat());
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), json)
}

/// Names of the rows that ended this way.
fn rows<'a>(json: &'a Value, result: &str) -> Vec<&'a str> {
    let rows = json["rows"].as_array().unwrap().iter().filter(|row| row["result"] == result);
    rows.map(|row| row["check"].as_str().unwrap()).collect()
}

/// A request as the servers of these tests read it.
struct Asked {
    method: String,
    path: String,
    /// Names in lower case.
    headers: HashMap<String, String>,
    body: String,
}

/// A server of one connection after the other. It ends with the test's process.
fn server(mut answer: impl FnMut(&Asked) -> String + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            if let Some(asked) = read(&stream) {
                _ = stream.write_all(answer(&asked).as_bytes());
            }
        }
    });
    address
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        lines.read_line(&mut line).ok().filter(|len| *len > 0).map(|_| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    while let Some((name, value)) = line()?.split_once(':') {
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let len = headers.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    let mut body = String::new();
    lines.take(len).read_to_string(&mut body).ok()?;
    Some(Asked { method, path, headers, body })
}

/// A server that gives the same answer to whatever comes.
fn naive(answer: &'static str) -> SocketAddr {
    server(|_| answer.to_owned())
}

/// A WHIP server by the book, without media: for its answers it turns the offer around.
#[derive(Default)]
struct ByTheBook {
    /// What it does wrong.
    fault: &'static str,
    made: u32,
    /// The ICE session's ETag and the client's ufrag, by path.
    sessions: HashMap<String, (String, String)>,
}

const FRAGMENT: &str = "application/trickle-ice-sdpfrag";

impl ByTheBook {
    fn answer(&mut self, asked: &Asked) -> String {
        let (status, mut headers, body) = self.judge(asked);
        if self.fault != "no CORS" {
            for header in [
                "Access-Control-Allow-Origin: *",
                "Access-Control-Allow-Methods: POST, PATCH, DELETE",
                "Access-Control-Allow-Headers: authorization, content-type, if-match",
                "Access-Control-Expose-Headers: location, etag, link",
            ] {
                headers.push(header.to_owned());
            }
        }
        let length = if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        format!("HTTP/1.1 {status} X\r\n{}\r\n{length}Connection: close\r\n\r\n{body}", headers.join("\r\n"))
    }

    fn judge(&mut self, asked: &Asked) -> (u16, Vec<String>, String) {
        let plain = |status: u16| (status, vec![], String::new());
        let kind = asked.headers.get("content-type").map(|t| t.split(';').next().unwrap().trim().to_lowercase());
        let token = asked.headers.get("authorization").map(String::as_str);
        if asked.method == "OPTIONS" {
            return (204, vec!["Accept-Post: application/sdp".to_owned()], String::new());
        }
        if token != Some("Bearer secret") {
            return (401, vec!["WWW-Authenticate: Bearer".to_owned()], String::new());
        }
        let endpoint = asked.path == "/whip/cam";
        match asked.method.as_str() {
            "GET" | "HEAD" if endpoint || self.sessions.contains_key(&asked.path) => plain(204),
            "POST" if endpoint && kind.as_deref() == Some("application/sdp") => self.create(&asked.body),
            "POST" if endpoint => plain(415),
            "PATCH" if !endpoint && self.sessions.contains_key(&asked.path) => match kind.as_deref() {
                Some(FRAGMENT) => self.patch(asked),
                _ => plain(415),
            },
            "DELETE" if !endpoint => {
                plain(if self.sessions.remove(&asked.path).is_some() || self.fault == "no 404" { 200 } else { 404 })
            }
            "GET" | "HEAD" | "PATCH" if !endpoint => plain(404),
            _ => {
                let allowed = if endpoint { "GET, HEAD, OPTIONS, POST" } else { "DELETE, GET, HEAD, OPTIONS, PATCH" };
                (405, vec![format!("Allow: {allowed}")], String::new())
            }
        }
    }

    fn create(&mut self, offer: &str) -> (u16, Vec<String>, String) {
        let complete = |line: &str| line.contains('=') && (!line.starts_with("m=") || line.split(' ').count() > 3);
        let media = offer.contains("m=audio") || offer.contains("m=video");
        if !offer.starts_with("v=0") || !media || !offer.lines().all(complete) {
            return (400, vec!["Content-Type: text/plain".to_owned()], "no offer".to_owned());
        }
        if offer.len() > 64 << 10 {
            return (413, vec![], String::new());
        }
        self.made += 1;
        let secret = if self.fault == "numbered" { String::new() } else { format!("-{:x}", offer.len() * 7919) };
        let location = format!("/whip/cam/{}{secret}", self.made);
        let etag = format!("\"{}-0\"", self.made);
        self.sessions.insert(location.clone(), (etag.clone(), value(offer, "a=ice-ufrag:")));
        let dropped = ["a=msid:", "a=ssrc:", "a=ice-ufrag:", "a=ice-pwd:"];
        let mut answer = String::new();
        for line in offer.lines().filter(|line| !dropped.iter().any(|start| line.starts_with(start))) {
            let line = match line {
                "a=sendonly" if self.fault != "direction" => "a=recvonly",
                "a=setup:actpass" | "a=setup:active" if self.fault != "actpass" => "a=setup:passive",
                line => line,
            };
            let simulcast = line.starts_with("a=rid:") || line.starts_with("a=simulcast:");
            if simulcast && self.fault != "simulcast" {
                answer.push_str(&format!("{}\r\n", line.replace("send", "recv")));
                continue;
            }
            answer.push_str(&format!("{line}\r\n"));
            if line.starts_with("c=") {
                answer.push_str(&format!("a=ice-ufrag:book{}\r\na=ice-pwd:0123456789abcdefghijkl\r\n", self.made));
                answer.push_str("a=candidate:1 1 udp 2130706431 192.0.2.9 9 typ host\r\n");
            }
        }
        let etag = if self.fault == "weak" { format!("W/{etag}") } else { etag };
        let headers = vec![
            "Content-Type: application/sdp".to_owned(),
            format!("Location: {location}"),
            format!("ETag: {etag}"),
            "Link: <turn:turn.example?transport=udp>; rel=\"ice-server\"; username=\"u\"; credential=\"p\"".to_owned(),
        ];
        (if self.fault == "200" { 200 } else { 201 }, headers, answer)
    }

    fn patch(&mut self, asked: &Asked) -> (u16, Vec<String>, String) {
        let plain = |status: u16| (status, vec![], String::new());
        if self.fault == "no PATCH" {
            return plain(405);
        }
        let (etag, ufrag) = self.sessions.get_mut(&asked.path).unwrap();
        let Some(if_match) = asked.headers.get("if-match").map(|text| text.trim_start_matches("W/")) else {
            return plain(if self.fault == "no 428" { 204 } else { 428 });
        };
        if if_match != "*" && if_match != etag {
            return plain(412);
        }
        if !asked.body.lines().all(|line| line.contains('=')) {
            return plain(400);
        }
        let new = value(&asked.body, "a=ice-ufrag:");
        if new.is_empty() || new == *ufrag {
            let told = if self.fault == "ETag" { vec![format!("ETag: {etag}")] } else { vec![] };
            return (204, told, String::new());
        }
        if self.fault == "no restart" {
            return plain(422);
        }
        (*etag, *ufrag) = (etag.replace("-0", "-1"), new);
        let headers = vec![format!("Content-Type: {FRAGMENT}"), format!("ETag: {etag}")];
        (200, headers, "a=ice-ufrag:again\r\na=ice-pwd:abcdefghijkl0123456789\r\na=end-of-candidates\r\n".to_owned())
    }
}

fn value(sdp: &str, start: &str) -> String {
    sdp.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn check_whip_passes_a_server_by_the_book_and_each_fault_costs_its_own_rows() {
    let _machine = shared().await;
    let (trickle, restart) = ("does not trickle (405)", "does not restart ICE (405)");
    for (fault, failed, skipped) in [
        // Skipped: its refusals are no problem+json.
        ("", &[][..], 1),
        ("no PATCH", &[], 16),
        ("no restart", &[], 7),
        ("weak", &["the session has a strong ETag"], 1),
        ("ETag", &["its answer has neither content nor ETag"], 1),
        ("no 428", &["PATCH without If-Match is refused (428)"], 1),
        ("numbered", &["each session has a URL of its own, not to be guessed"], 1),
        ("no 404", &["DELETE of an unknown session is refused (404)", "a second DELETE finds nothing (404)"], 1),
        ("direction", &["the answer is recvonly"], 1),
        ("simulcast", &["simulcast is answered by its RIDs, or not at all"], 1),
        (
            "actpass",
            &[
                "DTLS role is passive or active",
                "an offer with a data channel is answered",
                "an offer of setup:active is answered passive",
            ],
            1,
        ),
        (
            "200",
            &[
                "POST of an offer makes a session (201)",
                "Content-Type in other case, with a parameter, is taken",
                "an offer with a data channel is answered",
                "an offer of setup:active is answered passive",
            ],
            1,
        ),
        (
            "no CORS",
            &[
                "CORS preflight allows a foreign origin",
                "CORS preflight allows PATCH and DELETE",
                "CORS preflight allows Content-Type, If-Match, Authorization",
                "CORS preflight of the session succeeds",
                "CORS lets a foreign page read the answer",
                "CORS exposes Location, ETag and Link",
            ],
            1,
        ),
    ] {
        let mut book = ByTheBook { fault, ..ByTheBook::default() };
        let url = format!("http://{}/whip/cam", server(move |asked| book.answer(asked)));
        let (code, json) = check_json("check-whip", &url, &["--token", "secret"]);
        assert_eq!(rows(&json, "fail"), failed, "{fault}: {json:#}");
        assert_eq!(code, Some(i32::from(!failed.is_empty())), "{fault}: {json:#}");
        assert_eq!((rows(&json, "skip").len(), &json["unreached"]), (skipped, &0.into()), "{fault}: {json:#}");
        let text = json.to_string();
        assert_eq!((text.contains(trickle), text.contains(restart)), (fault == "no PATCH", fault == "no PATCH"));
        assert!(json["rows"].as_array().unwrap().len() >= 70, "{json:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_whep_finds_nothing_wrong_with_our_own_server_and_leaves_nothing_behind() {
    let _machine = shared().await;
    let turn = [("SERVER", "turn:turn.example:3478?transport=udp"), ("USER", "u"), ("PASS", "a \"quoted\", one")];
    let launch = turn.iter().fold(serve(&["pattern"]), |l, (name, value)| l.env(&format!("CS_TURN_{name}"), value));
    let server = launch.start();
    let (code, json) = check_json("check-whep", &server.url("/whep/pattern"), &[]);
    assert_eq!(rows(&json, "fail"), [""; 0], "{json:#}");
    assert_eq!((code, &json["percent"], &json["failed"]), (Some(0), &100.0.into(), &0.into()), "{json:#}");
    assert!(json["passed"].as_u64().unwrap() >= 70, "{json:#}");
    assert!(rows(&json, "pass").contains(&"a whole picture arrives"), "{json:#}");
    let about_tokens = |name: &&str| name.contains("token") || name.contains("401");
    let skipped: Vec<&str> = rows(&json, "skip").into_iter().filter(|name| !about_tokens(name)).collect();
    assert_eq!(skipped, ["a counter-offer (406) is SDP"], "{json:#}");
    // Every session was deleted: none waits for its timeout of 15 s.
    server.wait_peers(0, Duration::from_secs(5));
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());

    let table = String::from_utf8(check(&["check-whep", &server.url("/whep/pattern")]).stdout).unwrap();
    let passed = json["passed"].as_u64().unwrap();
    assert!(table.contains(&format!("{passed} of {passed}, 100 %")), "{table}");
    assert!(table.contains("DELETE ends the session (200)") && table.contains("WHEP-03 §4.3"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_whip_finds_nothing_wrong_with_our_own_server() {
    let _machine = shared().await;
    let closed = serve(&["cube"]).env("LIGHTPIPE_PUBLISH_TOKEN", "s3cret");
    let open = serve(&["cube"]).env("LIGHTPIPE_PUBLISH_ORIGINS", "*");
    for (server, token, skips) in
        [(closed.start(), &["--token", "s3cret"][..], "foreign pages"), (open.start(), &[], "--token")]
    {
        let (code, json) = check_json("check-whip", &server.url("/whip/probe"), token);
        assert_eq!(rows(&json, "fail"), [""; 0], "{json:#}");
        assert_eq!((code, &json["percent"]), (Some(0), &100.0.into()), "{json:#}");
        assert!(json["passed"].as_u64().unwrap() >= 70, "{json:#}");
        let reasons: Vec<&str> =
            json["rows"].as_array().unwrap().iter().filter_map(|row| row["reason"].as_str()).collect();
        assert!(reasons.iter().any(|reason| reason.contains(skips)), "{reasons:?}");
        server.wait_peers(0, Duration::from_secs(5));
        assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_told_a_token_and_wants_none_loses_the_rows_about_it() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let (code, json) = check_json("check-whep", &server.url("/whep/pattern"), &["--token", "secret"]);
    let expected = ["POST with an unknown token is refused (401, 403)", "POST without a token is refused (401, 403)"];
    assert_eq!((code, rows(&json, "fail")), (Some(1), expected.to_vec()), "{json:#}");
    server.wait_peers(0, Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_naive_server_fails_many_rows_and_is_told_why() {
    let _machine = shared().await;
    let fine = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let nowhere = "HTTP/1.1 201 Created\r\nContent-Type: application/sdp\r\nContent-Length: 5\r\nConnection: close\r\n\r\nv=0\r\n";
    for (answer, expected) in [
        (fine, ["POST of an offer makes a session (201)", "the answer is SDP", "Location names the session"]),
        (nowhere, ["POST of what is no SDP is refused (400)", "the answer is SDP", "Location names the session"]),
    ] {
        let url = format!("http://{}/live/cam", naive(answer));
        for command in ["check-whip", "check-whep"] {
            let (code, json) = check_json(command, &url, &[]);
            let failed = rows(&json, "fail");
            assert_eq!(code, Some(1), "{json:#}");
            assert!(failed.len() >= 8 && expected.iter().all(|name| failed.contains(name)), "{failed:#?}");
            assert!(json["percent"].as_f64().unwrap() < 30.0, "{json:#}");
            assert!(
                rows(&json, "unreached").contains(&"DELETE ends the session (200)"),
                "there is no session: {json:#}"
            );
            for row in json["rows"].as_array().unwrap() {
                assert_eq!(row["reason"].is_string(), row["result"] != "pass", "{row}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_reached_gets_no_score_but_code_3() {
    let _machine = shared().await;
    let silent = naive("");
    let plain = naive("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [
        format!("http://{nobody}/whep/cam"),
        format!("http://{silent}/whep/cam"),
        // TLS with a server that has none.
        format!("https://{plain}/whep/cam"),
    ] {
        for command in ["check-whip", "check-whep"] {
            let output = check(&[command, &url]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0), "{said}");
            assert!(said.contains("cannot reach") && said.contains(&url) && said.contains("because"), "{said}");
        }
    }
    let output = check(&["check-whip", "media.example/whip"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_signaling_finds_nothing_wrong_with_our_own_server_and_leaves_nothing_behind() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let url = format!("ws://{}/ws", server.address());
    let (code, json) = check_json("check-signaling", &url, &[]);
    assert_eq!(rows(&json, "fail"), [""; 0], "{json:#}");
    let counts = (&json["percent"], &json["failed"], &json["unreached"], &json["skipped"]);
    assert_eq!((code, counts), (Some(0), (&100.0.into(), &0.into(), &0.into(), &0.into())), "{json:#}");
    assert!(json["passed"].as_u64().unwrap() >= 80, "{json:#}");
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

/// A WebSocket server that says what `answer` makes of each text, and nothing of its own. It ends with the test's process.
fn web_sockets(answer: fn(&str) -> Option<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let Ok(mut socket) = tungstenite::accept(stream) else { return };
                while let Ok(message) = socket.read() {
                    let Ok(text) = message.to_text() else { continue };
                    if let Some(said) = answer(text).filter(|_| message.is_text())
                        && socket.send(Message::text(said)).is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn naive_signalling_fails_many_rows_and_is_told_why() {
    let _machine = shared().await;
    for (what, answer) in [
        ("an echo", (|text| Some(text.to_owned())) as fn(&str) -> Option<String>),
        // Calls are looked at one by one, anything is taken, and everything is answered.
        ("a yes", |text| {
            let call: Value = serde_json::from_str(text).unwrap_or_default();
            Some(serde_json::json!({ "jsonrpc": "2.0", "result": {}, "id": call["id"] }).to_string())
        }),
    ] {
        let (code, json) = check_json("check-signaling", &format!("ws://{}/ws", web_sockets(answer)), &[]);
        let failed = rows(&json, "fail");
        assert_eq!(code, Some(1), "{what}: {json:#}");
        for row in [
            "a notification is not answered",
            "an unknown method is refused (-32601)",
            "who never announces itself is closed",
        ] {
            assert!(failed.contains(&row), "{what}: {failed:#?}");
        }
        assert!(failed.len() >= 8 && json["percent"].as_f64().unwrap() < 30.0, "{what}: {json:#}");
        assert!(rows(&json, "unreached").contains(&"peer.offer is handed on verbatim"), "{what}: {json:#}");
        for row in json["rows"].as_array().unwrap() {
            assert_eq!(row["reason"].is_string(), row["result"] != "pass", "{what}: {row}");
        }
    }
    // No WebSocket is there.
    let plain = naive("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let output = check(&["check-signaling", &format!("http://{plain}/ws")]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0), "{said}");
    assert!(said.contains("cannot reach") && said.contains("because"), "{said}");
    assert_eq!(check(&["check-signaling", "media.example/ws"]).status.code(), Some(2));
}
