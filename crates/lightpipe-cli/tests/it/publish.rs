//! Publishing to somebody else's server: our own one, and stand-ins with the manners of others.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::browser::{PLAYER, wait_decoded, watch};
use crate::lab::publishing::{Publishing, publish};
use crate::lab::standin::{Asked, Manner, Real, StandIn};
use crate::lab::{PATIENCE, Server, chromium, quiet, serve, shared, until};

/// Time for a DELETE and a goodbye.
const END: Duration = Duration::from_secs(5);

/// Waits until the server gives pictures and sound of a stream that somebody publishes.
#[track_caller]
fn wait_live(server: &Server, stream: &str) -> Value {
    until("the stream is live, with sound", PATIENCE, || {
        let streams = server.get("/api/v1/streams").json();
        let found = streams["streams"].as_array()?.iter().find(|s| s["name"] == stream)?.clone();
        let live = found["health"] == "live" && found["published"].as_u64() > Some(5);
        (live && found["audio"]["published"].as_u64() > Some(5)).then_some(found)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn our_server_shows_what_our_client_publishes() {
    let _machine = quiet().await;
    let server = serve(&["cube"]).start();
    let mut publishing = publish(&server.url("/whip/up"), &[]);
    let stream = wait_live(&server, "up");
    assert_eq!(
        (&stream["codec"], &stream["width"], &stream["encoder_starts"]),
        (&"h264".into(), &320.into(), &0.into())
    );
    let browser = chromium().await;
    let page = watch(&browser, &server, "up").await;
    wait_decoded(&page, &format!("{PLAYER}.peerConnection"), 30).await;
    // The picture's own clock came through: the time in its strip is that of now.
    page.wait_until(&format!("{PLAYER}.latency?.timecode_ms !== null"), PATIENCE).await.unwrap();
    let figures = until("figures of a whole second", PATIENCE, || {
        let figures = publishing.figures();
        (figures["session"]["sent_frames"].as_u64() > Some(60) && !figures["session"]["rtt_ms"].is_null())
            .then_some(figures)
    });
    assert_eq!((&figures["state"], &figures["attempts"]), (&"connected".into(), &1.into()), "{figures}");
    assert!(
        figures["encode_ms"]["p50"].as_f64() > Some(0.0) && figures["in_state_s"]["connected"].as_f64() > Some(1.0),
        "{figures}"
    );
    assert!(figures["session"]["packets_per_s"].as_f64() > Some(50.0), "{figures}");

    assert!(publishing.end(END).success());
    // Said goodbye by HTTP: no time-out had to tell the server.
    let gone = server.wait_event(0, "publisher_disconnected");
    assert_eq!(gone["cause"], "signalling_closed", "{gone}");
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_is_published_to_again_when_it_is_back() {
    let _machine = quiet().await;
    let server = serve(&["cube"]).start();
    let port = server.address().port();
    let mut publishing = publish(&server.url("/whip/up"), &[]);
    wait_live(&server, "up");
    drop(server); // kill -9
    publishing.wait_said("The server fell silent. Trying again.");
    until("an attempt at nobody", PATIENCE, || {
        (publishing.stderr().matches("Trying again.").count() == 2).then_some(())
    });
    let server = serve(&["cube"]).on_port(port).start();
    let back = Instant::now();
    wait_live(&server, "up");
    // The pause that it was in is 2 s at most.
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    publishing.wait_connected(2);
    let figures = until("figures of the second session", PATIENCE, || {
        let figures = publishing.figures();
        (figures["sessions"] == 2 && figures["state"] == "connected").then_some(figures)
    });
    assert!(figures["in_state_s"]["backing_off"].as_f64() > Some(1.0), "{figures}");
    assert!(publishing.end(END).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_was_killed_gets_its_stream_back_and_its_viewers_stay() {
    let _machine = quiet().await;
    let server = serve(&["cube"]).start();
    let mut first = publish(&server.url("/whip/up"), &[]);
    wait_live(&server, "up");
    let browser = chromium().await;
    let page = watch(&browser, &server, "up").await;
    let session = page.evaluate(&format!("{PLAYER}.sessionUrl")).await.unwrap();
    first.kill();
    let seq = server.next_seq();
    let second = publish(&server.url("/whip/up"), &[]);
    server.wait_event(seq, "first_frame_ingested");
    let began = Instant::now();
    wait_decoded(&page, &format!("{PLAYER}.peerConnection"), 10).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(page.evaluate(&format!("{PLAYER}.sessionUrl")).await.unwrap(), session, "the same session");
    drop(second);
    browser.close().await.unwrap();
}

/// Publishes to a stand-in, waits for the stream at the real server, ends. What the stand-in was asked.
#[track_caller]
fn published_to(
    server: &Server,
    stream: &str,
    path: &str,
    args: &[&str],
    manners: impl Fn(&Asked, usize, &Real) -> Manner + Send + Sync + 'static,
) -> StandIn {
    let stand_in = StandIn::start(Real::new(server.address(), stream), manners);
    let mut publishing = publish(&stand_in.url(path), args);
    publishing.wait_connected(1);
    wait_live(server, stream);
    assert!(publishing.end(END).success(), "{}", publishing.stderr());
    until("the publisher is gone from the real server", Duration::from_secs(20), || {
        server.peers().is_empty().then_some(())
    });
    assert_eq!(stand_in.targets("PATCH"), [""; 0], "offers are complete");
    stand_in
}

/// The real server's answer to an offer, said in another way. A DELETE ends the real session wherever it was sent.
fn as_told(asked: &Asked, real: &Real, tell: impl Fn(&str, &str) -> Manner) -> Manner {
    if asked.method == "DELETE" {
        let session = asked.target.split(['?', '#']).next().unwrap().rsplit('/').next().unwrap();
        let status = real.ask("DELETE", &format!("/{session}"), "").status;
        return Manner::say(status, &[], "");
    }
    let answer = real.ask("POST", "", &asked.body);
    assert_eq!(answer.status, 201, "{answer:?}");
    tell(answer.header("location").rsplit('/').next().unwrap(), &answer.body)
}

const SDP: (&str, &str) = ("Content-Type", "application/sdp");

/// Each stand-in behaves as a row of the interop table: what servers were seen to do.
#[tokio::test(flavor = "multi_thread")]
async fn servers_with_manners_of_their_own() {
    let _machine = shared().await;
    let server = serve(&["cube"]).unlimited().start();

    // MediaMTX: an ETag that is none, a relative Location, ICE servers.
    let asked = published_to(&server, "mediamtx", "/up/whip", &["--token", "secret"], |asked, _, real| {
        as_told(asked, real, |id, sdp| {
            let location = format!("whip/{id}");
            let link = "<stun:192.0.2.1:3478>; rel=\"ice-server\"";
            Manner::say(201, &[SDP, ("ETag", "*"), ("Location", &location), ("Link", link)], sdp)
        })
    });
    assert_eq!(asked.asked()[0].header("authorization"), Some("Bearer secret"));
    assert!(asked.targets("DELETE")[0].starts_with("/up/whip/"), "{:?}", asked.targets("DELETE"));

    // SRS: the right to end a session is in the Location's query; the answer's type has a parameter.
    let asked = published_to(&server, "srs", "/rtc/v1/whip/?app=live&stream=up", &[], |asked, _, real| {
        as_told(asked, real, |id, sdp| {
            let location = format!("/rtc/v1/whip/{id}?action=delete&token=abc");
            Manner::say(201, &[("Content-Type", "application/sdp; charset=utf-8"), ("Location", &location)], sdp)
        })
    });
    assert_eq!(asked.targets("POST"), ["/rtc/v1/whip/?app=live&stream=up"]);
    assert!(asked.targets("DELETE")[0].ends_with("?action=delete&token=abc"));

    // Cloudflare: the secret is the path, no token; an absolute Location. It says 200 to a DELETE.
    let asked = published_to(&server, "cloudflare", "/0123456789abcdef/webRTC/publish", &[], |asked, _, real| {
        let host = asked.header("host").unwrap().to_owned();
        as_told(asked, real, |id, sdp| {
            Manner::say(201, &[SDP, ("Location", &format!("http://{host}/0123456789abcdef/webRTC/publish/{id}"))], sdp)
        })
    });
    assert_eq!(asked.asked()[0].header("authorization"), None);

    // go2rtc: no PATCH (none is sent), 201 with plain text.
    published_to(&server, "go2rtc", "/api/webrtc?dst=up", &[], |asked, _, real| {
        as_told(asked, real, |id, sdp| {
            Manner::say(201, &[("Content-Type", "text/plain"), ("Location", &format!("/api/webrtc/{id}"))], sdp)
        })
    });

    // 200 is not the rule and is seen.
    published_to(&server, "ok", "/whip/up", &[], |asked, _, real| {
        as_told(asked, real, |id, sdp| Manner::say(200, &[SDP, ("Location", &format!("/whip/up/{id}"))], sdp))
    });

    // live777: the stream is taken for a moment, by the session before.
    let asked = published_to(&server, "live777", "/whip/up", &[], |asked, number, real| {
        if number == 0 {
            return Manner::say(409, &[], "stream already exists");
        }
        as_told(asked, real, |id, sdp| Manner::say(201, &[SDP, ("Location", &format!("/whip/up/{id}"))], sdp))
    });
    assert_eq!(asked.targets("POST").len(), 2);

    // Busy, and says for how long.
    published_to(&server, "busy", "/whip/up", &[], |asked, number, real| {
        if number == 0 {
            return Manner::say(503, &[("Retry-After", "1")], "");
        }
        as_told(asked, real, |id, sdp| Manner::say(201, &[SDP, ("Location", &format!("/whip/up/{id}"))], sdp))
    });

    // A load balancer: 307 to the server that has room, 308 to where it moved. The token goes along, the body too.
    let asked =
        published_to(&server, "moved", "/whip/up", &["--token", "secret"], |asked, number, real| match number {
            0 => Manner::say(307, &[("Location", "/node7/whip/up?x=1")], ""),
            1 => Manner::say(308, &[("Location", "../../new/whip/up")], ""),
            _ => as_told(asked, real, |id, sdp| Manner::say(201, &[SDP, ("Location", id)], sdp)),
        });
    assert_eq!(asked.targets("POST"), ["/whip/up", "/node7/whip/up?x=1", "/new/whip/up"]);
    assert!(asked.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    assert!(asked.targets("DELETE")[0].starts_with("/new/whip/"), "the Location is relative to who answered");

    // An old server without retransmission, feedback or extensions.
    published_to(&server, "old", "/whip/up", &[], |asked, _, real| {
        as_told(asked, real, |id, sdp| {
            let known = |l: &&str| {
                !l.starts_with("a=extmap") && !l.contains("rtx/") && !l.contains(" apt=") && !l.contains("transport-cc")
            };
            let without_rtx = |l: &str| match l.strip_prefix("m=video") {
                Some(rest) => format!("m=video{}\r\n", rest.replace(" 109", "").replace(" 121", "")),
                None => format!("{l}\r\n"),
            };
            let plain: String = sdp.lines().filter(known).map(without_rtx).collect();
            Manner::say(201, &[SDP, ("Location", &format!("/whip/up/{id}"))], &plain)
        })
    });
}

/// Servers that make no session that can be ended by HTTP: the media session's own goodbye has to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_location_to_nowhere_does_no_harm() {
    let _machine = shared().await;
    let server = serve(&["cube"]).unlimited().start();
    let locations = [("none", None), ("closed", Some("http://127.0.0.1:1/gone")), ("nonsense", Some("::not a url::"))];
    for (stream, location) in locations {
        let asked = published_to(&server, stream, "/whip/up", &[], move |asked, _, real| {
            as_told(asked, real, |_, sdp| {
                let headers: Vec<_> = [Some(SDP), location.map(|l| ("Location", l))].into_iter().flatten().collect();
                Manner::say(201, &headers, sdp)
            })
        });
        assert_eq!(asked.targets("DELETE"), [""; 0]);
    }
    // A DELETE that is never answered, or refused.
    for (stream, refused) in [("unanswered", false), ("refused", true)] {
        published_to(&server, stream, "/whip/up", &[], move |asked, _, real| {
            if asked.method == "DELETE" {
                return if refused { Manner::say(405, &[], "") } else { Manner::Silence };
            }
            as_told(asked, real, |id, sdp| Manner::say(201, &[SDP, ("Location", &format!("/whip/up/{id}"))], sdp))
        });
    }
}

/// What never gets better ends the program, with the server's own words.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_the_program_and_says_why() {
    let _machine = shared().await;
    let nobody = "127.0.0.1:1".parse().unwrap();
    #[track_caller]
    fn check(stand_in: &StandIn, path: &str, args: &[&str], said: &str) {
        let mut publishing = publish(&stand_in.url(path), args);
        let status = publishing.wait_exit(PATIENCE);
        assert_eq!(status.code(), Some(3), "{}", publishing.stderr());
        until(said, Duration::from_secs(2), || publishing.stderr().contains(said).then_some(()));
    }
    // broadcast-box: 400 without a token.
    let stand_in = StandIn::start(Real::new(nobody, "up"), |asked, _, _| match asked.header("authorization") {
        None => Manner::say(400, &[], "Authorization was not set"),
        Some(_) => Manner::say(401, &[("Content-Type", "application/problem+json")], r#"{"detail":"Not this token."}"#),
    });
    check(&stand_in, "/api/whip", &[], "refuses with 400: Authorization was not set");
    check(&stand_in, "/api/whip", &["--token", "wrong"], "refuses with 401: Not this token.");
    let page = StandIn::start(Real::new(nobody, "up"), |_, _, _| {
        Manner::say(200, &[("Content-Type", "text/html")], "<html>hello</html>")
    });
    check(&page, "/", &[], "is no WHIP endpoint: 200 with \"text/html\"");
    let circle = StandIn::start(Real::new(nobody, "up"), |_, _, _| Manner::say(307, &[("Location", "/again")], ""));
    check(&circle, "/whip/up", &[], "redirects more than 5 times");
    assert_eq!(circle.targets("POST").len(), 6);
    let nowhere = StandIn::start(Real::new(nobody, "up"), |_, _, _| {
        Manner::say(307, &[("Location", "ftp://media.example/x")], "")
    });
    check(&nowhere, "/whip/up", &[], "which is no URL to follow");
}

/// What may get better is tried again, and does not keep us from ending.
#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_tried_again() {
    let _machine = shared().await;
    let server = serve(&["cube"]).unlimited().start();
    #[track_caller]
    fn check(mut publishing: Publishing, said: &str) {
        publishing.wait_said(said);
        assert!(publishing.end(END).success(), "{}", publishing.stderr());
    }
    check(publish("http://127.0.0.1:1/whip", &[]), "Trying again.");
    let failing = StandIn::start(Real::new(server.address(), "up"), |_, _, _| Manner::say(500, &[], "out of cheese"));
    check(publish(&failing.url("/whip/up"), &[]), "answers 500: out of cheese");
    // No SDP, half an SDP: the session on the server is ended all the same.
    for body in ["v=0\r\nnonsense", "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"] {
        let bad = StandIn::start(Real::new(server.address(), "up"), move |_, _, _| {
            Manner::say(201, &[SDP, ("Location", "/s/1")], body)
        });
        check(publish(&bad.url("/whip/up"), &[]), "the answer is not valid");
        assert_eq!(bad.targets("DELETE")[0], "/s/1");
    }
    // A server that takes the offer and never answers does not hold up the end.
    let silent = StandIn::start(Real::new(server.address(), "up"), |_, _, _| Manner::Silence);
    let mut publishing = publish(&silent.url("/whip/up"), &[]);
    until("the offer is there", PATIENCE, || (!silent.asked().is_empty()).then_some(()));
    assert!(publishing.end(END).success());
}
