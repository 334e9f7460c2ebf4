//! A WHIP server that is our own one behind another one's manners: media is real, HTTP is changed on the way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::http::{self, Answer};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What the stand-in does with a request.
pub(crate) enum Manner {
    /// Says this, as it is.
    Say(String),
    /// Never says anything.
    Silence,
}

impl Manner {
    /// An answer of a status, with headers and a body.
    pub(crate) fn say(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let mut text = format!("HTTP/1.1 {status} So\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        Self::Say(format!("{text}\r\n{body}"))
    }
}

/// The real server behind a stand-in, and the stream to publish there.
#[derive(Debug, Clone)]
pub(crate) struct Real {
    address: SocketAddr,
    stream: String,
}

impl Real {
    pub(crate) fn new(address: SocketAddr, stream: &str) -> Self {
        Self { address, stream: stream.to_owned() }
    }

    /// Lets it answer an offer, or end a session.
    pub(crate) fn ask(&self, method: &str, session: &str, body: &str) -> Answer {
        let headers = if body.is_empty() { &[][..] } else { &[("Content-Type", "application/sdp")] };
        let path = format!("/whip/{}{session}", self.stream);
        http::request(self.address, method, &path, headers, body.as_bytes()).unwrap()
    }
}

/// A running stand-in. Its thread ends with the test's process.
pub(crate) struct StandIn {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl StandIn {
    /// Stands in front of `real`; `manners` sees each request, its number from 0 on, and who could answer it.
    pub(crate) fn start(real: Real, manners: impl Fn(&Asked, usize, &Real) -> Manner + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, manners, real) = (Arc::clone(&asked), Arc::new(manners), Arc::new(real));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, manners, real) = (Arc::clone(&log), Arc::clone(&manners), Arc::clone(&real));
                std::thread::spawn(move || serve(&stream, &log, |asked, n| manners(asked, n, &real)));
            }
        });
        Self { address, asked }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Targets of all requests of a method.
    pub(crate) fn targets(&self, method: &str) -> Vec<String> {
        self.asked().into_iter().filter(|asked| asked.method == method).map(|asked| asked.target).collect()
    }
}

fn serve(stream: &TcpStream, log: &Mutex<Vec<Asked>>, manners: impl Fn(&Asked, usize) -> Manner) {
    let Some(asked) = read(stream) else { return };
    let number = {
        let mut log = log.lock().unwrap();
        log.push(asked.clone());
        log.len() - 1
    };
    match manners(&asked, number) {
        Manner::Say(text) => {
            let mut stream = stream;
            _ = stream.write_all(text.as_bytes());
        }
        Manner::Silence => std::thread::sleep(Duration::from_secs(60)),
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (method, target) =
        line.split_once(' ').map(|(m, rest)| (m.to_owned(), rest.split(' ').next().unwrap().to_owned()))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let length =
        headers.iter().find(|(k, _)| k.eq_ignore_ascii_case("content-length")).map_or(0, |(_, v)| v.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { method, target, headers, body: String::from_utf8(body).ok()? })
}
