//! WHEP (draft-ietf-wish-whep-03): what only viewing has, media included.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use http::{Method, Uri};
use lightpipe_rtc::receiver::Receiver;
use lightpipe_rtc::{Identity, Output, PeerEvent};

use super::http::Request;
use super::resource::{self, Protocol, SDP, Sections, Server, after, phrase, status};
use super::sdp::{self, Offer, Sdp};
use super::{Checklist, Flaw, Verdict, ensure, skip};

pub(crate) const WHEP: Protocol = Protocol {
    name: "WHEP",
    offered: "recvonly",
    answered: "sendonly",
    counter_offers: true,
    sections: Sections {
        get: "WHEP-03 §4.1",
        setup: "WHEP-03 §4.2.1",
        refusals: "WHEP-03 §4.2.4",
        direction: "WHEP-03 §4.2.5",
        options: "WHEP-03 §4.3",
        end: "WHEP-03 §4.3",
        patch: "WHEP-03 §4.4.1",
        trickle: "WHEP-03 §4.4.2",
        restart: "WHEP-03 §4.4.3",
        // The draft points at WHIP for these two.
        ice_servers: "RFC 9725 §4.6",
        token: "WHEP-03 §4.8.1",
        security: "WHEP-03 §5",
    },
};

/// A picture must be there within this.
const PICTURE_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn check(server: &Server<'_>, list: &mut Checklist) {
    resource::endpoint(server, list);
    resource::refusals(server, list);
    list.row("a stream that is not there is refused (404)", "RFC 9110 §15.5.5", unknown_stream(server));
    resource::token(server, list);
    let mut session = resource::open(server, list);
    let stream = after(&session).and_then(|s| sdp::one_stream(after(&s.exchange)?));
    list.row("all tracks are of one MediaStream", "WHEP-03 §4.5.2", stream);
    let counter = after(&session).and_then(|s| match s.answer.status {
        406 => Sdp::parse(&s.answer.body).map(drop).map_err(|reason| Flaw::Failed(format!("it is no SDP: {reason}"))),
        _ => skip("the offer was taken as it is"),
    });
    list.row("a counter-offer (406) is SDP", "WHEP-03 §4.2.2", counter);
    resource::look_at(&session, server, list);
    resource::patch(&session, server, list);
    resource::extensions(&session, server, list);
    resource::end(&mut session, server, list);
    resource::more_sessions(server, &session, list);
    let video = after(&session).and_then(|_| {
        let session = server.open(Offer { audio: false, ..Offer::new("recvonly") })?;
        // A stream of sound alone has nothing for it.
        if matches!(session.answer.status, 400 | 415 | 422) {
            return skip(format!("the server refuses it ({})", session.answer.status));
        }
        status(&session.answer, &[201, 406])
    });
    list.row("an offer of video alone is taken", "WHEP-03 §4.2.1", video);
    list.row("a whole picture arrives", "WHEP-03 §3.2", after(&session).and_then(|_| picture(server)));
}

fn unknown_stream(server: &Server<'_>) -> Verdict {
    let Some(url) = resource::unknown_endpoint(server.endpoint) else {
        return skip("the URL has no neighbour");
    };
    let offer = Offer::new("recvonly").to_sdp(&sdp::Credentials::random());
    // 409 is the earlier drafts' answer to a stream that nobody publishes.
    status(&server.post_bad(&url, Some(SDP), &offer)?, &[404, 409, 401, 403])
}

/// The session of [`picture`]: deleted on every way out.
struct Viewing<'a> {
    server: &'a Server<'a>,
    url: Option<Uri>,
}

impl Drop for Viewing<'_> {
    fn drop(&mut self) {
        if let Some(url) = &self.url {
            _ = self.server.client.send(&Request::new(Method::DELETE, url));
        }
    }
}

/// Watches until there is a picture: ICE, DTLS, SRTP, and an H.264 access unit that begins with a keyframe.
fn picture(server: &Server<'_>) -> Verdict {
    let failed = |what: &str, error: &dyn std::fmt::Display| Flaw::Failed(format!("{what}: {error}"));
    let socket = local_address(server.endpoint)
        .and_then(|address| UdpSocket::bind((address, 0)))
        .map_err(|error| failed("no socket towards the server", &error))?;
    let here = socket.local_addr().map_err(|error| failed("no socket", &error))?;
    let (mut receiver, offer) = Receiver::offer(&Identity::generate(), here, Instant::now())
        .map_err(|error| failed("no offer for this address", &error))?;
    let request = Request::new(Method::POST, server.endpoint).with("content-type", SDP).with_body(&offer);
    let answer = server.client.send(&request)?;
    let _viewing = Viewing { server, url: server.made_by(server.endpoint, &answer) };
    if matches!(answer.status, 400 | 406 | 415 | 422) {
        return skip(format!("no H.264 to be had ({} {})", answer.status, phrase(answer.status)));
    }
    status(&answer, &[201])?;
    receiver.accept_answer(&answer.body).map_err(|error| failed("the answer is not usable", &error))?;
    let mut buffer = [0; 2048];
    let deadline = Instant::now() + PICTURE_LIMIT;
    while Instant::now() < deadline {
        let wake_at = loop {
            match receiver.poll(Instant::now()) {
                Output::Send { to, payload, .. } => _ = socket.send_to(&payload, to), // a lost datagram is no error
                Output::Event(PeerEvent::Closed(cause)) => {
                    return Err(Flaw::Failed(format!("the server closed the connection: {cause:?}")));
                }
                Output::Event(_) => {}
                Output::WakeAt(at) => break at,
            }
        };
        if receiver.take_picture().is_some() {
            receiver.close();
            return Ok(());
        }
        let wait = wake_at.saturating_duration_since(Instant::now());
        let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(20));
        socket.set_read_timeout(Some(wait)).map_err(|error| failed("socket", &error))?;
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => _ = receiver.handle(Instant::now(), from, here, &buffer[..len]),
            Err(_) => _ = receiver.tick(Instant::now()),
        }
    }
    let counters = receiver.counters();
    ensure(false, || {
        let connected = if receiver.is_connected() { "connected" } else { "no connection" };
        format!("none within {PICTURE_LIMIT:?}: {connected}, {} packets", counters.packets)
    })
}

/// The address of ours from which the server is reached.
fn local_address(endpoint: &Uri) -> std::io::Result<IpAddr> {
    let usual = if endpoint.scheme_str() == Some("https") { 443 } else { 80 };
    let port = endpoint.port_u16().unwrap_or(usual);
    let host = endpoint.host().unwrap_or_default().trim_matches(['[', ']']);
    let unknown = || std::io::Error::other("the host has no address");
    let server: SocketAddr = (host, port).to_socket_addrs()?.next().ok_or_else(unknown)?;
    let any: IpAddr =
        if server.is_ipv4() { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Sends nothing; it makes the kernel choose a route.
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}
