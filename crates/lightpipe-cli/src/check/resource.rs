//! The rows that WHIP and WHEP share: the endpoint, a session's resource, and what PATCH and DELETE do to it.

use http::{Method, StatusCode, Uri, header};

use lightpipe_net::client::reference::{links, resolve};

use super::http::{Answer, Authorization, Client, Request, Unanswered};
use super::sdp::{self, Credentials, Exchange, Offer, Sdp};
use super::{Checklist, Flaw, Verdict, ensure, skip};

/// Media type of offers and answers.
pub(crate) const SDP: &str = "application/sdp";
/// Media type of trickle fragments (RFC 8840 §9).
const FRAGMENT: &str = "application/trickle-ice-sdpfrag";
/// An origin that no server has in its list.
const FOREIGN: &str = "https://lightpipe-check.example";
/// Longer than an offer ever is, and short enough to be sent before a server that refuses it hangs up.
const OVERSIZED: usize = 256 << 10;

/// The rules ask for "an appropriate 4xx"; these say that the request itself is wrong.
const BAD_REQUEST: &[u16] = &[400, 406, 415, 422];

const CANDIDATE: &str = "a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host";

/// What differs between the two protocols.
pub(crate) struct Protocol {
    pub(crate) name: &'static str,
    /// Direction of audio and video in our offers.
    pub(crate) offered: &'static str,
    /// Direction in the answers.
    pub(crate) answered: &'static str,
    /// Whether 406 with an offer of the server's own is an answer.
    pub(crate) counter_offers: bool,
    pub(crate) sections: Sections,
}

/// Where the rules stand.
pub(crate) struct Sections {
    pub(crate) get: &'static str,
    pub(crate) setup: &'static str,
    pub(crate) refusals: &'static str,
    pub(crate) direction: &'static str,
    pub(crate) options: &'static str,
    pub(crate) end: &'static str,
    pub(crate) patch: &'static str,
    pub(crate) trickle: &'static str,
    pub(crate) restart: &'static str,
    pub(crate) ice_servers: &'static str,
    pub(crate) token: &'static str,
    pub(crate) security: &'static str,
}

/// The server under test.
pub(crate) struct Server<'a> {
    pub(crate) protocol: &'static Protocol,
    pub(crate) client: &'a Client,
    pub(crate) endpoint: &'a Uri,
}

/// What a row needs of an earlier one. Where that failed there is nothing to judge.
pub(crate) fn after<T>(earlier: &Result<T, Flaw>) -> Result<&T, Flaw> {
    earlier.as_ref().map_err(|flaw| match flaw {
        Flaw::Failed(_) => Flaw::Unreached("what it needs failed above".into()),
        passed_on => passed_on.clone(),
    })
}

/// A session that the server made for us. Dropping it deletes it.
pub(crate) struct Session<'a> {
    client: &'a Client,
    pub(crate) answer: Answer,
    pub(crate) url: Result<Uri, Flaw>,
    pub(crate) exchange: Result<Exchange, Flaw>,
    ice: Credentials,
    ended: bool,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let (Ok(url), false) = (&self.url, self.ended) {
            _ = self.client.send(&Request::new(Method::DELETE, url));
        }
    }
}

impl Session<'_> {
    fn etag(&self) -> Option<&str> {
        self.answer.header(header::ETAG)
    }

    fn send(&self, request: impl FnOnce(&Uri) -> Result<Answer, Unanswered>) -> Result<Answer, Flaw> {
        Ok(request(after(&self.url)?)?)
    }

    fn patch(&self, content_type: &str, if_match: Option<&str>, body: &str) -> Result<Answer, Flaw> {
        self.send(|url| {
            let request = Request::new(Method::PATCH, url).with("content-type", content_type).with_body(body);
            let request = if_match.into_iter().fold(request, |request, etag| request.with("if-match", etag));
            self.client.send(&request)
        })
    }
}

impl<'a> Server<'a> {
    /// Whether anybody answers.
    pub(crate) fn reach(&self) -> Result<(), Unanswered> {
        self.client.send(&Request::new(Method::OPTIONS, self.endpoint)).map(drop)
    }

    fn ask(&self, method: Method) -> Result<Answer, Flaw> {
        Ok(self.client.send(&Request::new(method, self.endpoint))?)
    }

    /// Posts what must be refused. A session made all the same is deleted.
    pub(crate) fn post_bad(&self, url: &Uri, content_type: Option<&str>, body: &str) -> Result<Answer, Unanswered> {
        let request = Request::new(Method::POST, url).with_body(body);
        let answer = self.client.send(&content_type.into_iter().fold(request, |r, t| r.with("content-type", t)))?;
        if let Some(made) = self.made_by(url, &answer) {
            _ = self.client.send(&Request::new(Method::DELETE, &made));
        }
        Ok(answer)
    }

    /// The session that an answer tells of. A redirect's Location is none.
    pub(crate) fn made_by(&self, endpoint: &Uri, answer: &Answer) -> Option<Uri> {
        let made = answer.is_success() || (answer.status == 406 && self.protocol.counter_offers);
        answer.header(header::LOCATION).filter(|_| made).and_then(|location| resolve(endpoint, location))
    }

    /// Posts an offer, and takes what comes back for a session if it may be one.
    pub(crate) fn open(&self, offer: Offer) -> Result<Session<'a>, Flaw> {
        self.open_as(offer, SDP, None)
    }

    fn open_as(&self, offer: Offer, content_type: &str, origin: Option<&str>) -> Result<Session<'a>, Flaw> {
        let ice = Credentials::random();
        let offer = offer.to_sdp(&ice);
        let request = Request::new(Method::POST, self.endpoint).with("content-type", content_type).with_body(&offer);
        let request = origin.into_iter().fold(request, |request, origin| request.with("origin", origin));
        let answer = self.client.send(&request)?;
        Ok(self.session(answer, ice, &offer))
    }

    fn session(&self, answer: Answer, ice: Credentials, offer: &str) -> Session<'a> {
        let failed = |reason: String| Flaw::Failed(reason);
        let url = match answer.header(header::LOCATION) {
            None => Err(failed("there is no Location".into())),
            Some(text) => {
                resolve(self.endpoint, text).ok_or_else(|| failed(format!("{text:?} is no reference to a URL")))
            }
        };
        let exchange = match answer.status {
            406 => skip("the server made a counter-offer"),
            status if !answer.is_success() => Err(Flaw::Unreached(format!("there is no answer, only status {status}"))),
            _ => Sdp::parse(&answer.body)
                .map_err(|reason| failed(format!("the body is no SDP: {reason}")))
                .and_then(|sdp| Ok(Exchange { offer: Sdp::parse(offer).map_err(failed)?, answer: sdp })),
        };
        // A refusal that names a place, a redirect for one, made no session.
        let ended = !answer.is_success() && answer.status != 406;
        Session { client: self.client, answer, url, exchange, ice, ended }
    }
}

/// Fails unless the status is one of these.
pub(crate) fn status(answer: &Answer, wanted: &[u16]) -> Verdict {
    ensure(wanted.contains(&answer.status), || {
        let wanted: Vec<String> = wanted.iter().map(u16::to_string).collect();
        let hint = if answer.status == 401 { "; --token gives it one" } else { "" };
        format!("status {}, expected {}{hint}", answer.status, wanted.join(" or "))
    })
}

fn success_without_content(answer: &Answer) -> Verdict {
    ensure(answer.is_success(), || format!("status {}, expected 2xx", answer.status))?;
    ensure(answer.body.is_empty(), || format!("{} bytes of content", answer.body.len()))
}

/// OPTIONS, CORS, GET and methods that the endpoint does not have.
pub(crate) fn endpoint(server: &Server<'_>, list: &mut Checklist) {
    let s = &server.protocol.sections;
    let options = server.ask(Method::OPTIONS);
    let options_status = options
        .as_ref()
        .map_err(Flaw::clone)
        .and_then(|a| ensure(a.is_success(), || format!("status {}, expected 2xx", a.status)));
    list.row("OPTIONS of the endpoint succeeds", s.options, options_status);
    let accepts = after(&options)
        .and_then(|a| ensure(a.lists("accept-post", SDP), || format!("Accept-Post does not name {SDP}")));
    list.row("OPTIONS names application/sdp in Accept-Post", s.options, accepts);
    preflight(server, list);
    let empty = |method| server.ask(method).and_then(|a| success_without_content(&a));
    list.row("GET of the endpoint succeeds without content", s.get, empty(Method::GET));
    list.row("HEAD of the endpoint succeeds without content", "RFC 9110 §9.3.2", empty(Method::HEAD));
    let put = server.ask(Method::PUT);
    unknown_method(
        list,
        &put,
        ["PUT of the endpoint is refused (405)", "405 of the endpoint has Allow with POST"],
        "POST",
    );
}

fn unknown_method(list: &mut Checklist, put: &Result<Answer, Flaw>, names: [&'static str; 2], allowed: &str) {
    let refused = put.as_ref().map_err(Flaw::clone).and_then(|a| status(a, &[405, 501]));
    list.row(names[0], "RFC 9110 §15.5.6", refused);
    let allow = after(put).and_then(|a| match a.status {
        405 => ensure(a.lists(header::ALLOW, allowed), || format!("Allow does not name {allowed}")),
        status => skip(format!("status {status} needs no Allow")),
    });
    list.row(names[1], "RFC 9110 §15.5.6", allow);
}

/// What a page of another origin may do. A server may refuse foreign pages altogether, with 403.
fn preflight(server: &Server<'_>, list: &mut Checklist) {
    let request = |method: &'static str| {
        let request = Request::new(Method::OPTIONS, server.endpoint)
            .with("origin", FOREIGN)
            .with("access-control-request-method", method)
            .with("access-control-request-headers", "authorization,content-type,if-match")
            .with_authorization(Authorization::Absent);
        let answer = server.client.send(&request)?;
        if answer.status == 403 { skip("the server refuses foreign pages (403)") } else { Ok(answer) }
    };
    let answer = request("POST");
    let passes = answer
        .as_ref()
        .map_err(Flaw::clone)
        .and_then(|a| ensure(a.is_success(), || format!("status {}, expected 2xx", a.status)));
    list.row("CORS preflight succeeds, without a token", "Fetch, CORS", passes);
    let origin = after(&answer).and_then(allows_origin);
    list.row("CORS preflight allows a foreign origin", "Fetch, CORS", origin);
    let methods = request("PATCH").and_then(|a| {
        let allowed = |method: &&str| {
            a.lists("access-control-allow-methods", method) || a.lists("access-control-allow-methods", "*")
        };
        let missing: Vec<&str> = ["PATCH", "DELETE"].into_iter().filter(|m| !allowed(m)).collect();
        ensure(missing.is_empty(), || format!("Access-Control-Allow-Methods lacks {}", missing.join(" and ")))
    });
    list.row("CORS preflight allows PATCH and DELETE", "Fetch, CORS", methods);
    let headers = after(&answer).and_then(|a| {
        // An asterisk stands for everything but Authorization.
        let listed = |name: &str| a.lists("access-control-allow-headers", name);
        let allowed = |name: &&str| listed(name) || (*name != "Authorization" && listed("*"));
        let names = ["Content-Type", "If-Match", "Authorization"];
        let missing: Vec<&str> = names.into_iter().filter(|name| !allowed(name)).collect();
        ensure(missing.is_empty(), || format!("Access-Control-Allow-Headers lacks {}", missing.join(", ")))
    });
    list.row("CORS preflight allows Content-Type, If-Match, Authorization", "Fetch, CORS", headers);
    let servers = after(&answer).and_then(|a| {
        let found = ice_servers(a)?;
        ensure(found == 0, || format!("{found} ICE servers are told to whoever asks"))
    });
    list.row("CORS preflight holds no ICE servers", server.protocol.sections.ice_servers, servers);
}

fn allows_origin(answer: &Answer) -> Verdict {
    let allowed = answer.header("access-control-allow-origin");
    ensure(matches!(allowed, Some("*" | FOREIGN)), || {
        format!("Access-Control-Allow-Origin is {}", allowed.unwrap_or("absent"))
    })
}

/// Number of ICE servers in the `Link` headers, each well-formed.
fn ice_servers(answer: &Answer) -> Result<usize, Flaw> {
    let mut count = 0;
    for value in answer.headers.get_all(header::LINK) {
        let value = value.to_str().unwrap_or_default();
        let links = links(value).map_err(|reason| Flaw::Failed(format!("in Link {reason}: {value}")))?;
        for link in links {
            let rel = link.parameter("rel").unwrap_or_default();
            if !rel.split_ascii_whitespace().any(|rel| rel == "ice-server") {
                continue;
            }
            count += 1;
            let (scheme, host) = link.target.split_once(':').unwrap_or_default();
            ensure(["stun", "stuns", "turn", "turns"].contains(&scheme) && !host.is_empty(), || {
                format!("{:?} is no STUN or TURN URI", link.target)
            })?;
            let secret = link.parameter("username").is_some() == link.parameter("credential").is_some();
            ensure(secret, || format!("{:?} has a username or a credential, not both", link.target))?;
        }
    }
    Ok(count)
}

/// Where an extension of a session is, by its `Link`. Servers need not have it.
fn extension(server: &Server<'_>, answer: &Answer, name: &str) -> Result<Uri, Flaw> {
    for value in answer.headers.get_all(header::LINK) {
        // What is malformed is told by the row about ICE servers.
        for link in links(value.to_str().unwrap_or_default()).unwrap_or_default() {
            if link.parameter("rel").unwrap_or_default().split_ascii_whitespace().any(|rel| rel == name) {
                let unusable = || Flaw::Failed(format!("{:?} is no reference to a URL", link.target));
                return resolve(server.endpoint, link.target.as_ref()).ok_or_else(unusable);
            }
        }
    }
    skip(format!("the server announces no {name}"))
}

/// The extensions of a viewer's session: server-sent events, and the choice of a layer.
pub(crate) fn extensions(session: &Result<Session<'_>, Flaw>, server: &Server<'_>, list: &mut Checklist) {
    const JSON: &str = "application/json";
    let find = |name| after(session).and_then(|session| extension(server, &session.answer, name));
    let post = |url: &Result<Uri, Flaw>, body: &str| -> Result<Answer, Flaw> {
        Ok(server.client.send(&Request::new(Method::POST, after(url)?).with("content-type", JSON).with_body(body))?)
    };
    let events = find("urn:ietf:params:whep:ext:core:server-sent-events");
    let made = post(&events, r#"["active","inactive"]"#);
    let place = after(&made).and_then(|answer| {
        status(answer, &[201])?;
        let location = answer.header(header::LOCATION).ok_or_else(|| Flaw::Failed("there is no Location".into()))?;
        resolve(after(&events)?, location).ok_or_else(|| Flaw::Failed(format!("{location:?} is no reference to a URL")))
    });
    list.row("POST of event names makes an event stream (201)", EVENTS, place.clone().map(drop));
    let refused = post(&events, "\"active").and_then(|answer| status(&answer, BAD_REQUEST));
    list.row("POST of malformed event names is refused (400)", EVENTS, refused);
    let ended = after(&place).and_then(|url| {
        let answer = server.client.send(&Request::new(Method::DELETE, url))?;
        ensure(answer.is_success(), || format!("status {}, expected 2xx", answer.status))
    });
    list.row("DELETE ends the event stream", EVENTS, ended);
    let layer = find("urn:ietf:params:whep:ext:core:layer");
    let any = post(&layer, "{}")
        .and_then(|answer| ensure(answer.is_success(), || format!("status {}, expected 2xx", answer.status)));
    list.row("a layer selection without a constraint is taken (200)", LAYERS, any);
    let unknown = post(&layer, r#"{"rid":"nosuchlayer"}"#).and_then(|answer| {
        ensure((400..500).contains(&answer.status), || format!("status {}, expected 4xx", answer.status))
    });
    list.row("a layer that is not there is refused (4xx)", LAYERS, unknown);
}

/// POSTs that must be refused.
pub(crate) fn refusals(server: &Server<'_>, list: &mut Checklist) {
    let s = &server.protocol.sections;
    let offer = Offer::new(server.protocol.offered).to_sdp(&Credentials::random());
    let post = |content_type, body: &str| Ok(server.post_bad(server.endpoint, content_type, body)?);
    let refused = |answer: &Result<Answer, Flaw>, wanted| {
        answer.as_ref().map_err(Flaw::clone).and_then(|answer| status(answer, wanted))
    };
    list.row("POST without Content-Type is refused (415)", s.refusals, refused(&post(None, &offer), BAD_REQUEST));
    let wrong = post(Some("application/json"), &offer);
    list.row("POST of another Content-Type is refused (415)", s.refusals, refused(&wrong, BAD_REQUEST));
    list.row("POST without a body is refused (400)", s.refusals, refused(&post(Some(SDP), ""), BAD_REQUEST));
    let malformed = post(Some(SDP), "this is no session description\r\n");
    list.row("POST of what is no SDP is refused (400)", s.refusals, refused(&malformed, BAD_REQUEST));
    let cut = offer.split_inclusive("m=").take(2).collect::<String>();
    list.row("POST of an SDP cut short is refused (400)", s.refusals, refused(&post(Some(SDP), &cut), BAD_REQUEST));
    let padding = "a=lightpipe-check:padding\r\n".repeat(OVERSIZED / 27);
    let oversized = match server.post_bad(server.endpoint, Some(SDP), &format!("{offer}{padding}")) {
        Ok(answer) => status(&answer, &[413, 400, 422]),
        // A server that hangs up on a sender of too much is right, too.
        Err(_) => server.reach().map_err(Flaw::from),
    };
    list.row("POST of 256 KiB is refused (413)", "RFC 9110 §15.5.14", oversized);
    list.row("a refusal as problem+json is well-formed", "RFC 9457 §3", after(&malformed).and_then(problem));
}

fn problem(answer: &Answer) -> Verdict {
    if answer.media_type() != "application/problem+json" {
        return skip("the refusal is no problem+json, which is optional");
    }
    let json: serde_json::Value =
        serde_json::from_str(&answer.body).map_err(|error| Flaw::Failed(format!("the body is no JSON: {error}")))?;
    ensure(json.is_object(), || "the body is no JSON object".into())?;
    let is = |name: &str, right: fn(&serde_json::Value) -> bool| json.get(name).is_none_or(right);
    for name in ["type", "title", "detail", "instance"] {
        ensure(is(name, serde_json::Value::is_string), || format!("{name} is no string"))?;
    }
    ensure(json.get("status").is_none_or(|s| *s == answer.status), || {
        format!("its status says {}, the response {}", json["status"], answer.status)
    })
}

/// Refusals by the token, where the server wants one.
pub(crate) fn token(server: &Server<'_>, list: &mut Checklist) {
    let section = server.protocol.sections.token;
    let ice = Credentials::random();
    let offer = Offer::new(server.protocol.offered).to_sdp(&ice);
    let post = |authorization| {
        if !server.client.has_token() {
            return skip("no --token was given");
        }
        let request = Request::new(Method::POST, server.endpoint).with("content-type", SDP).with_body(&offer);
        let answer = server.client.send(&request.with_authorization(authorization))?;
        if answer.is_success() {
            drop(server.session(answer.clone(), ice.clone(), &offer));
        }
        Ok(answer)
    };
    let unknown = post(Authorization::Unknown);
    let refused = |answer: &Result<Answer, Flaw>| {
        answer.as_ref().map_err(Flaw::clone).and_then(|answer| status(answer, &[401, 403]))
    };
    list.row("POST with an unknown token is refused (401, 403)", section, refused(&unknown));
    list.row("POST without a token is refused (401, 403)", section, refused(&post(Authorization::Absent)));
    let challenge = after(&unknown).and_then(|a| match a.status {
        401 => ensure(a.headers.contains_key(header::WWW_AUTHENTICATE), || "there is no WWW-Authenticate".into()),
        status => skip(format!("status {status} needs none")),
    });
    list.row("401 has WWW-Authenticate", "RFC 9110 §15.5.2", challenge);
}

/// A session, from the offer to the rules for its answer.
pub(crate) fn open<'a>(server: &Server<'a>, list: &mut Checklist) -> Result<Session<'a>, Flaw> {
    let (s, protocol) = (&server.protocol.sections, server.protocol);
    let session = server.open(Offer::new(protocol.offered));
    let made = session
        .as_ref()
        .map_err(Flaw::clone)
        .and_then(|session| status(&session.answer, if protocol.counter_offers { &[201, 406] } else { &[201] }));
    // What answers 200 may still hold a session to look at; what refused holds none.
    let session = session.and_then(|session| {
        let refused = !session.answer.is_success() && session.answer.status != 406;
        if refused { Err(Flaw::Unreached("there is no session".into())) } else { Ok(session) }
    });
    list.row("POST of an offer makes a session (201)", s.setup, made);
    let kind = after(&session).and_then(|session| {
        let found = session.answer.media_type();
        ensure(found == SDP, || format!("Content-Type is {found:?}"))
    });
    list.row("the answer's Content-Type is application/sdp", s.setup, kind);
    let location = after(&session).and_then(|session| {
        let url = session.url.as_ref().map_err(Flaw::clone)?;
        ensure(url != server.endpoint, || "Location is the endpoint's own URL".into())
    });
    list.row("Location names the session", s.setup, location);
    let servers = after(&session).and_then(|session| match ice_servers(&session.answer)? {
        0 => skip("the server names no ICE servers"),
        _ => Ok(()),
    });
    list.row("ICE servers in Link are well-formed", s.ice_servers, servers);
    let exchange = match &session {
        Ok(session) => session.exchange.as_ref().map_err(Flaw::clone),
        Err(flaw) => Err(flaw.clone()),
    };
    list.row("the answer is SDP", "RFC 8866 §5", exchange.clone().map(drop));
    for rule in sdp::RULES {
        list.row(rule.name, rule.section, after(&exchange).and_then(|exchange| (rule.check)(exchange)));
    }
    let direction = after(&exchange).and_then(|exchange| sdp::direction(exchange, protocol.answered));
    let name = if protocol.answered == "recvonly" { "the answer is recvonly" } else { "the answer is sendonly" };
    list.row(name, s.direction, direction);
    session
}

/// Texts of WHEP's two extensions, by the section that announces them.
const EVENTS: &str = "WHEP-03 §4.9, events";
const LAYERS: &str = "WHEP-03 §4.9, layer";

/// Methods and requests of a session that change nothing.
pub(crate) fn look_at(session: &Result<Session<'_>, Flaw>, server: &Server<'_>, list: &mut Checklist) {
    let s = &server.protocol.sections;
    let ask = |method: Method| {
        let session = after(session)?;
        session.send(|url| session.client.send(&Request::new(method, url)))
    };
    let empty = |method| ask(method).and_then(|a| success_without_content(&a));
    list.row("GET of the session succeeds without content", s.get, empty(Method::GET));
    list.row("HEAD of the session succeeds without content", "RFC 9110 §9.3.2", empty(Method::HEAD));
    let names = ["PUT of the session is refused (405)", "405 of the session has Allow with DELETE"];
    unknown_method(list, &ask(Method::PUT), names, "DELETE");
    let preflight = after(session).and_then(|session| {
        let answer = session.send(|url| {
            let request = Request::new(Method::OPTIONS, url)
                .with("origin", FOREIGN)
                .with("access-control-request-method", "PATCH")
                .with("access-control-request-headers", "authorization,content-type,if-match")
                .with_authorization(Authorization::Absent);
            session.client.send(&request)
        })?;
        if answer.status == 403 {
            return skip("the server refuses foreign pages (403)");
        }
        ensure(answer.is_success(), || format!("status {}, expected 2xx", answer.status))?;
        allows_origin(&answer)
    });
    list.row("CORS preflight of the session succeeds", "Fetch, CORS", preflight);
    let unknown = after(session).and_then(|session| {
        let other: Uri = format!("{}x", after(&session.url)?).parse().or_else(|_| skip("its URL has no neighbour"))?;
        status(&session.client.send(&Request::new(Method::DELETE, &other))?, &[404, 410, 401, 403])
    });
    list.row("DELETE of an unknown session is refused (404)", "RFC 9110 §15.5.5", unknown);
}

/// Trickle ICE and ICE restart. Both are optional; who has them keeps to their rules.
pub(crate) fn patch(session: &Result<Session<'_>, Flaw>, server: &Server<'_>, list: &mut Checklist) {
    let s = &server.protocol.sections;
    let optional = |answer: Answer, what: &str| match answer.status {
        status @ (405 | 422 | 501) => skip(format!("the server does not {what} ({status})")),
        _ => Ok(answer),
    };
    let trickle = |lines: &[&str], if_match: Option<&str>| {
        let session = after(session)?;
        after(&session.exchange)?;
        session.patch(FRAGMENT, if_match, &sdp::fragment(&session.ice, lines))
    };
    // Without an ETag an asterisk matches whatever there is.
    let etag = session.as_ref().ok().and_then(Session::etag).map(str::to_owned);
    let current = etag.as_deref().or(Some("*"));
    let trickled = trickle(&[CANDIDATE], current).and_then(|answer| optional(answer, "trickle"));
    let restart = Credentials::random();
    list.row(
        "the session has a strong ETag",
        s.patch,
        match (&etag, &trickled) {
            (Some(etag), _) => strong(etag),
            (None, Ok(_)) => Err(Flaw::Failed("there is no ETag, but the server trickles".into())),
            (None, Err(_)) => after(&trickled).map(drop),
        },
    );
    let expect = |answer: Result<Answer, Flaw>, wanted: &[u16]| {
        after(&trickled)?;
        status(&answer?, wanted)
    };
    let done = trickled.as_ref().map_err(Flaw::clone).and_then(|answer| status(answer, &[204]));
    list.row("PATCH with a candidate is taken (204)", s.trickle, done);
    let bare = after(&trickled).and_then(|answer| {
        ensure(answer.body.is_empty(), || format!("{} bytes of content", answer.body.len()))?;
        ensure(!answer.headers.contains_key(header::ETAG), || "it has an ETag, which belongs to restarts".into())
    });
    list.row("its answer has neither content nor ETag", s.trickle, bare);
    for (name, candidate) in [
        (
            "PATCH with an mDNS candidate is taken (204)",
            "a=candidate:2 1 udp 2130706431 5ae0eb8e-0c1e.local 50000 typ host",
        ),
        (
            "PATCH with a TCP candidate is taken (204)",
            "a=candidate:3 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active",
        ),
        ("PATCH with end-of-candidates is taken (204)", "a=end-of-candidates"),
    ] {
        list.row(name, s.trickle, expect(trickle(&[candidate], current), &[204]));
    }
    list.row("PATCH without If-Match is refused (428)", s.patch, expect(trickle(&[CANDIDATE], None), &[428]));
    let stale = trickle(&[CANDIDATE], Some("\"lightpipe-check-stale\""));
    list.row("PATCH with a stale If-Match is refused (412)", s.patch, expect(stale, &[412]));
    let raw =
        |content_type: &str, body: &str| after(session).and_then(|session| session.patch(content_type, current, body));
    let wrong_type = raw("text/plain", "a=end-of-candidates\r\n");
    list.row("PATCH of another Content-Type is refused (415)", s.patch, expect(wrong_type, BAD_REQUEST));
    let malformed = raw(FRAGMENT, "this is no fragment\r\n");
    list.row("PATCH of a malformed fragment is refused (400)", s.patch, expect(malformed, BAD_REQUEST));

    let restarted = after(session).and_then(|session| {
        after(&session.exchange)?;
        let body = sdp::fragment(&restart, &[CANDIDATE]);
        optional(session.patch(FRAGMENT, Some("*"), &body)?, "restart ICE")
    });
    let done = restarted.as_ref().map_err(Flaw::clone).and_then(|answer| status(answer, &[200]));
    let restarted = done.clone().and(restarted);
    list.row("PATCH with new credentials restarts ICE (200)", s.restart, done);
    let kind = after(&restarted).and_then(|answer| {
        let found = answer.media_type();
        ensure(found == FRAGMENT, || format!("Content-Type is {found:?}"))
    });
    list.row("a restart is answered by an sdpfrag", s.restart, kind);
    let renewed = after(&restarted).and_then(|answer| {
        let new = sdp::credentials_of_fragment(&answer.body)?;
        let old = session.as_ref().ok().and_then(|s| s.exchange.as_ref().ok()).and_then(|e| e.answer.credentials());
        ensure(old.is_none_or(|old| old.ufrag != new.ufrag && old.pwd != new.pwd), || {
            "the server kept its old credentials".into()
        })
    });
    list.row("a restart gives new ICE credentials", s.restart, renewed);
    let new_etag = after(&restarted).and_then(|answer| {
        let Some(new) = answer.header(header::ETAG) else {
            return Err(Flaw::Failed("there is no ETag".into()));
        };
        strong(new)?;
        ensure(Some(new) != etag.as_deref(), || "it is the old ETag".into())?;
        Ok(new.to_owned())
    });
    list.row("a restart gives a new strong ETag", s.restart, new_etag.clone().map(drop));
    let with = |if_match: &str| {
        let session = after(session)?;
        session.patch(FRAGMENT, Some(if_match), &sdp::fragment(&restart, &[CANDIDATE]))
    };
    let old = after(&new_etag).and_then(|_| match &etag {
        Some(etag) => status(&with(etag)?, &[412]),
        None => skip("there was no old ETag"),
    });
    list.row("after a restart the old ETag is refused (412)", s.patch, old);
    let new = after(&new_etag).and_then(|new| status(&with(new)?, &[204]));
    list.row("after a restart the new ETag is taken (204)", s.trickle, new);
}

/// RFC 9110 §8.8.3.
fn strong(etag: &str) -> Verdict {
    let opaque = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let clean = |text: &str| text.bytes().all(|byte| byte == 0x21 || byte >= 0x23 && byte != 0x7f);
    ensure(!etag.starts_with("W/"), || format!("{etag} is weak"))?;
    ensure(opaque.is_some_and(clean), || format!("{etag} is not in quotes, or has something strange in them"))
}

/// The session's end, and what comes after.
pub(crate) fn end(session: &mut Result<Session<'_>, Flaw>, server: &Server<'_>, list: &mut Checklist) {
    const DONE: &[u16] = &[200, 202, 204];
    const GONE: &[u16] = &[404, 410];
    let s = &server.protocol.sections;
    let delete = |session: &Result<Session<'_>, Flaw>, if_match: Option<&str>| {
        let session = after(session)?;
        session.send(|url| {
            let request = Request::new(Method::DELETE, url);
            session.client.send(&if_match.into_iter().fold(request, |request, etag| request.with("if-match", etag)))
        })
    };
    let first = delete(session, Some("\"lightpipe-check-stale\""));
    let ignored = first
        .as_ref()
        .map_err(Flaw::clone)
        .and_then(|answer| ensure(answer.status != 412, || "status 412: the session stays".into()));
    let ended = if ignored.is_ok() { first } else { delete(session, None) };
    list.row("DELETE ignores If-Match", s.patch, ignored);
    let done = ended.and_then(|answer| status(&answer, DONE));
    list.row("DELETE ends the session (200)", s.end, done.clone());
    let again = after(&done).and_then(|()| status(&delete(session, None)?, GONE));
    list.row("a second DELETE finds nothing (404)", "RFC 9110 §15.5.5", again);
    let patched = after(&done).and_then(|()| {
        let session = after(session)?;
        let answer = session.patch(FRAGMENT, session.etag().or(Some("*")), "a=end-of-candidates\r\n")?;
        if matches!(answer.status, 405 | 501) {
            return skip(format!("the server does not trickle ({})", answer.status));
        }
        status(&answer, GONE)
    });
    list.row("PATCH of an ended session finds nothing (404)", "RFC 9110 §15.5.5", patched);
    if let (Ok(()), Ok(session)) = (done, session) {
        session.ended = true;
    }
}

/// Further sessions, each for one question.
pub(crate) fn more_sessions(server: &Server<'_>, first: &Result<Session<'_>, Flaw>, list: &mut Checklist) {
    let s = &server.protocol.sections;
    let offer = Offer::new(server.protocol.offered);
    let made: &[u16] = if server.protocol.counter_offers { &[201, 406] } else { &[201] };

    let foreign = after(first).and_then(|_| server.open_as(offer, SDP, Some(FOREIGN))).and_then(|session| {
        if session.answer.status == 403 { skip("the server refuses foreign pages (403)") } else { Ok(session) }
    });
    let readable = after(&foreign).and_then(|session| allows_origin(&session.answer));
    list.row("CORS lets a foreign page read the answer", "Fetch, CORS", readable);
    let exposed = after(&foreign).and_then(|session| {
        let answer = &session.answer;
        let names = [header::LOCATION, header::ETAG, header::LINK];
        let exposed = |name: &header::HeaderName| {
            answer.lists("access-control-expose-headers", name.as_str())
                || answer.lists("access-control-expose-headers", "*")
        };
        let hidden = names.iter().find(|name| answer.headers.contains_key(*name) && !exposed(name));
        ensure(hidden.is_none(), || {
            format!(
                "Access-Control-Expose-Headers lacks {}",
                hidden.map(header::HeaderName::as_str).unwrap_or_default()
            )
        })
    });
    list.row("CORS exposes Location, ETag and Link", "Fetch, CORS", exposed);
    let own_url = after(first).and_then(|first| {
        let second = after(&foreign)?;
        not_guessable(after(&first.url)?, after(&second.url)?)
    });
    list.row("each session has a URL of its own, not to be guessed", s.security, own_url);
    drop(foreign);

    let parameter = after(first).and_then(|_| {
        let session = server.open_as(offer, "Application/SDP; charset=utf-8", None)?;
        status(&session.answer, made)
    });
    list.row("Content-Type in other case, with a parameter, is taken", "RFC 9110 §8.3.1", parameter);
    let datachannel = after(first).and_then(|_| {
        let session = server.open(Offer { datachannel: true, ..offer })?;
        status(&session.answer, made)?;
        match &session.exchange {
            Ok(exchange) => sdp::RULES.iter().try_for_each(|rule| match (rule.check)(exchange) {
                Err(Flaw::Failed(reason)) => Err(Flaw::Failed(format!("{}: {reason}", rule.name))),
                _ => Ok(()),
            }),
            Err(flaw) => Err(flaw.clone()),
        }
    });
    list.row("an offer with a data channel is answered", "RFC 8841 §10", datachannel);
}

/// Two URLs must differ, and by more than a counter.
fn not_guessable(first: &Uri, second: &Uri) -> Verdict {
    ensure(first != second, || "two sessions have the same URL".into())?;
    let (first, second) = (first.to_string(), second.to_string());
    let separators = |c: char| "/?&=".contains(c);
    let differing = first.split(separators).zip(second.split(separators)).filter(|(a, b)| a != b);
    let counter = |text: &str| text.len() < 12 && text.bytes().all(|b| b.is_ascii_digit());
    let counted = differing.clone().count() > 0 && differing.clone().all(|(a, b)| counter(a) && counter(b));
    ensure(!counted, || format!("{first} and {second} are numbered"))
}

/// The endpoint of a stream that is not there: the last part of the path replaced.
pub(crate) fn unknown_endpoint(endpoint: &Uri) -> Option<Uri> {
    let name = sdp::random_ice_chars(12).replace(['+', '/'], "x");
    resolve(endpoint, &format!("no-such-stream-{name}"))
}

/// Phrase of a status, for reasons.
pub(crate) fn phrase(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strong_entity_tags_are_told_from_weak_and_bare_ones() {
        for (etag, good) in [
            ("\"4fT-0\"", true),
            ("\"\"", true),
            ("W/\"4fT\"", false),
            ("4fT", false),
            ("*", false),
            ("\"", false),
            ("\"a\"b\"", false),
        ] {
            assert_eq!(strong(etag).is_ok(), good, "{etag}");
        }
    }

    #[test]
    fn numbered_sessions_can_be_guessed() {
        let check = |first: &str, second: &str, good: bool| {
            let (first, second) = (first.parse().expect("a URL"), second.parse().expect("a URL"));
            assert_eq!(not_guessable(&first, &second).is_ok(), good, "{first} {second}");
        };
        check("http://a/whep/cam/DOynAgXaRL", "http://a/whep/cam/9f3kAgXaRL", true);
        check("http://a/whep/7", "http://a/whep/8", false);
        check("http://a/whep?session=17&x=1", "http://a/whep?session=18&x=1", false);
        check("http://a/whep/same", "http://a/whep/same", false);
        check("http://a/s/2f0c", "http://a/s/7711", true);
    }

    #[test]
    fn a_stream_that_is_not_there_lies_beside_the_one_that_is() {
        let endpoint: Uri = "https://a.example/whep/cam?x=1".parse().expect("a URL");
        let unknown = unknown_endpoint(&endpoint).expect("a URL").to_string();
        assert!(unknown.starts_with("https://a.example/whep/no-such-stream-"), "{unknown}");
    }
}
