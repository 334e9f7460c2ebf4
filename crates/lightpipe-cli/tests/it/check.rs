//! `check-whip` and `check-whep`: our own server keeps every rule, a naive one does not, and both are told apart from nobody.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

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

/// A server that gives the same answer to whatever comes. It ends with the test's process.
fn naive(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            _ = answer_one(&stream, answer);
        }
    });
    address
}

fn answer_one(stream: &TcpStream, answer: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut len, mut head) = (0, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().unwrap_or(0);
        }
        head.push_str(&line);
    }
    std::io::copy(&mut reader.take(len), &mut std::io::sink())?;
    let mut stream = stream;
    stream.write_all(answer.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_whep_finds_nothing_wrong_with_our_own_server_and_leaves_nothing_behind() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let (code, json) = check_json("check-whep", &server.url("/whep/pattern"), &[]);
    assert_eq!(rows(&json, "fail"), [""; 0], "{json:#}");
    assert_eq!((code, &json["percent"], &json["failed"]), (Some(0), &100.0.into(), &0.into()), "{json:#}");
    assert!(json["passed"].as_u64().unwrap() >= 70, "{json:#}");
    assert!(rows(&json, "pass").contains(&"a whole picture arrives"), "{json:#}");
    let about_tokens = |name: &&str| name.contains("token") || name.contains("401");
    let skipped: Vec<&str> = rows(&json, "skip").into_iter().filter(|name| !about_tokens(name)).collect();
    assert_eq!(skipped, ["ICE servers in Link are well-formed", "a counter-offer (406) is SDP"], "{json:#}");
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
            assert!(json["percent"].as_f64().unwrap() < 50.0, "{json:#}");
            assert!(rows(&json, "skip").contains(&"DELETE ends the session (200)"), "there is no session: {json:#}");
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
