//! WHIP (RFC 9725): what only publishing has.

use super::resource::{self, Protocol, Sections, Server, after, status};
use super::sdp::{self, Offer};
use super::{Checklist, Flaw, ensure, skip};

pub(crate) const WHIP: Protocol = Protocol {
    name: "WHIP",
    offered: "sendonly",
    answered: "recvonly",
    counter_offers: false,
    sections: Sections {
        get: "RFC 9725 §4.1",
        setup: "RFC 9725 §4.2",
        refusals: "RFC 9725 §4.2",
        direction: "RFC 9725 §4.2",
        options: "RFC 9725 §4.2",
        end: "RFC 9725 §4.2",
        patch: "RFC 9725 §4.3.1",
        trickle: "RFC 9725 §4.3.2",
        restart: "RFC 9725 §4.3.3",
        ice_servers: "RFC 9725 §4.6",
        token: "RFC 9725 §4.7.1",
        security: "RFC 9725 §5",
    },
};

pub(crate) fn check(server: &Server<'_>, list: &mut Checklist) {
    resource::endpoint(server, list);
    resource::refusals(server, list);
    resource::token(server, list);
    // One session at a time: an endpoint may take one publisher only.
    let mut session = resource::open(server, list);
    let whole = after(&session).and_then(|s| sdp::all_accepted(after(&s.exchange)?));
    list.row("no m-line is rejected on its own", "RFC 9725 §4.4.3", whole);
    resource::look_at(&session, server, list);
    resource::patch(&session, server, list);
    resource::end(&mut session, server, list);
    resource::more_sessions(server, &session, list);

    let dtls_client = after(&session).and_then(|_| {
        let session = server.open(Offer { setup: "active", ..Offer::new("sendonly") })?;
        if matches!(session.answer.status, 400 | 422) {
            return skip("the server wants actpass, as it may");
        }
        status(&session.answer, &[201])?;
        let exchange = session.exchange.as_ref().map_err(Flaw::clone)?;
        let setup = sdp::RULES.iter().find(|rule| rule.name == "DTLS role is passive or active");
        setup.map_or(Ok(()), |rule| (rule.check)(exchange))
    });
    list.row("an offer of setup:active is answered passive", "RFC 9725 §4.4.4", dtls_client);
    let simulcast = after(&session).and_then(|_| {
        let session = server.open(Offer { simulcast: true, ..Offer::new("sendonly") })?;
        status(&session.answer, &[200, 201])?;
        sdp::simulcast(session.exchange.as_ref().map_err(Flaw::clone)?)
    });
    list.row("simulcast is answered by its RIDs, or not at all", "RFC 8853 §5.3.2", simulcast);
    let nothing = after(&session).and_then(|_| {
        let session = server.open(Offer { audio: false, video: &[], datachannel: true, ..Offer::new("sendonly") })?;
        let status = session.answer.status;
        ensure((400..500).contains(&status), || format!("status {status}, expected 4xx"))
    });
    list.row("an offer without audio and video is refused (4xx)", "RFC 9725 §4.4.2", nothing);
}
