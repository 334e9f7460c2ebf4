//! Janus, which has no WHIP of its own: `tests/peers/janus.py` speaks its API for us.

use std::net::TcpStream;
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

#[test]
#[ignore = "nightly: needs root, namespaces and Janus"]
fn a_room_of_janus_shows_what_we_publish() {
    on_a_cable(|| {
        let mut janus = Command::new("janus");
        let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/janus");
        janus.arg("--disable-colors").arg("--configs-folder").arg(settings);
        let _janus = Program::start(janus);
        until("Janus listens", PATIENCE, || TcpStream::connect((SERVER_ADDR, PORT)).ok());
        let mut endpoint = python("janus.py");
        endpoint.arg(SERVER_ADDR.to_string());
        let endpoint = Program::start(endpoint);
        let url = endpoint.line();
        let address = url.strip_prefix("http://").unwrap().parse().unwrap();
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
