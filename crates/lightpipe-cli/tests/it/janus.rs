//! Janus, which has no WHIP of its own: `tests/peers/janus.py` speaks its API for us.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lightpipe_testkit::netlab::SERVER_ADDR;
use rustix::process::Signal;

use crate::lab::http;
use crate::lab::peers::{BARS, Program, Report, on_a_cable, python};
use crate::lab::server::program;
use crate::lab::{PATIENCE, until};

/// Port of its HTTP interface, as `tests/peers/janus/janus.transport.http.jcfg` says.
const PORT: u16 = 8088;

/// A room with a WHIP endpoint in front of it.
struct Room {
    _janus: Program,
    endpoint: Program,
    url: String,
    address: SocketAddr,
}

impl Room {
    fn start() -> Self {
        let mut janus = Command::new("janus");
        let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/janus");
        janus.arg("--disable-colors").arg("--configs-folder").arg(settings);
        let janus = Program::start(janus);
        until("Janus listens", PATIENCE, || TcpStream::connect((SERVER_ADDR, PORT)).ok());
        let mut endpoint = python("janus.py");
        endpoint.arg(SERVER_ADDR.to_string());
        let endpoint = Program::start(endpoint);
        let url = endpoint.line();
        let address = url.strip_prefix("http://").unwrap().parse().unwrap();
        Self { _janus: janus, endpoint, url, address }
    }
}

#[test]
#[ignore = "nightly: needs root, namespaces and Janus"]
fn a_room_of_janus_shows_what_we_publish() {
    on_a_cable(|| {
        let Room { _janus, endpoint, url, address } = Room::start();
        let told = || Report(http::request(address, "GET", "/report", &[], &[]).unwrap().json());

        let mut publish = program();
        publish.args(["publish", "--source", "pattern", "--whip", &format!("{url}/whip/room")]);
        publish.args(["--width", "640", "--height", "360", "--host", &SERVER_ADDR.to_string()]);
        let publisher = Program::start(publish);
        until("five seconds of picture and sound", PATIENCE, || {
            let report = told();
            (report.pictures() >= 120 && report.sound_seconds() > 4.0).then_some(())
        });
        publisher.end(Signal::TERM);
        let report = told();
        assert_eq!(report.0["deleted"], true, "{report:?}");
        report.check_picture(120, BARS);
        report.check_timecodes();
        report.check_age(Duration::from_secs(1));
        report.check_beep();
        endpoint.end(Signal::TERM);
    });
}

/// Three RIDs side by side (RFC 8853): the room shows each of them whole and in its size, and asks for keyframes of the one that it changes to.
#[test]
#[ignore = "nightly: needs root, namespaces and Janus"]
fn a_room_of_janus_shows_every_layer_that_we_publish() {
    on_a_cable(|| {
        let Room { _janus, endpoint, url, address } = Room::start();
        let mut publish = program();
        publish.args(["publish", "--source", "pattern", "--whip", &format!("{url}/whip/room"), "--json"]);
        publish.args(["--width", "640", "--height", "360", "--host", &SERVER_ADDR.to_string()]);
        publish.args(["--simulcast", "f:640x360:800,h:320x180:250,q:192x108:120"]);
        let publisher = Program::start(publish);
        let told = || Report(http::request(address, "GET", "/report", &[], &[]).unwrap().json());
        until("pictures", PATIENCE, || (told().pictures() >= 30).then_some(()));
        for (substream, width) in [(0, 192), (1, 320), (2, 640), (0, 192)] {
            let chosen = http::request(address, "POST", &format!("/substream/{substream}"), &[], &[]).unwrap();
            assert_eq!(chosen.status, 200, "{}", chosen.body);
            let shown = |report: &Report| report.0["picture"]["width"] == width;
            until("the layer", PATIENCE, || shown(&told()).then_some(()));
            // What came before the change is not to be looked at.
            let again = http::request(address, "POST", &format!("/substream/{substream}"), &[], &[]).unwrap();
            assert_eq!(again.status, 200, "{}", again.body);
            until("three seconds of the layer", PATIENCE, || (told().pictures() >= 90).then_some(()));
            let report = told();
            println!("substream {substream}: {report:?}");
            assert!(shown(&report), "{report:?}");
            report.check_picture(90, BARS);
            report.check_timecodes();
            report.check_age(Duration::from_secs(1));
        }
        publisher.end(Signal::TERM);
        endpoint.end(Signal::TERM);
    });
}
