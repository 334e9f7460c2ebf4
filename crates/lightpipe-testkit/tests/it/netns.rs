//! The laboratory of namespaces, measured from inside.

use std::io;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lightpipe_testkit::netlab::{CLIENT_ADDR, Lab, LinkConfig, QueueLimit, SERVER_ADDR};

const PINGS: u16 = 1_000;

/// Sends back what comes, until nothing came for a second.
fn echo(socket: &UdpSocket) {
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 2_048];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        _ = socket.send_to(&buffer[..len], from);
    }
}

/// Round-trip times of numbered datagrams, sent each two milliseconds; a lost one has none.
fn ping(socket: &UdpSocket) -> Vec<Option<Duration>> {
    socket.set_nonblocking(true).unwrap();
    let start = Instant::now();
    let mut sent = Vec::new();
    let mut took = vec![None; usize::from(PINGS)];
    let mut buffer = [0; 64];
    while start.elapsed() < Duration::from_millis(2 * u64::from(PINGS) + 500) {
        let due = Duration::from_millis(2 * sent.len() as u64);
        if sent.len() < took.len() && start.elapsed() >= due {
            let number = u16::try_from(sent.len()).unwrap();
            sent.push(Instant::now());
            _ = socket.send(&number.to_be_bytes());
        }
        match socket.recv(&mut buffer) {
            Ok(2) => {
                let number = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
                took[number] = Some(sent[number].elapsed());
            }
            Ok(len) => panic!("{len} bytes came back"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_micros(200)),
            Err(error) => panic!("{error}"),
        }
    }
    took
}

fn round_trips(lab: &Lab) -> (Vec<Duration>, f64) {
    let server = lab.in_server(|| UdpSocket::bind((SERVER_ADDR, 7_007))).unwrap().unwrap();
    let client = lab.in_client(|| UdpSocket::bind((CLIENT_ADDR, 0))).unwrap().unwrap();
    client.connect((SERVER_ADDR, 7_007)).unwrap();
    let echoing = std::thread::spawn(move || echo(&server));
    let took = ping(&client);
    echoing.join().unwrap();
    let mut came: Vec<Duration> = took.into_iter().flatten().collect();
    came.sort();
    let lost = 1.0 - came.len() as f64 / f64::from(PINGS);
    println!(
        "rtt min {:?} p50 {:?} p99 {:?}, lost {lost:.3}",
        came[0],
        came[came.len() / 2],
        came[came.len() * 99 / 100]
    );
    (came, lost)
}

#[test]
#[ignore = "nightly: needs root and namespaces"]
fn pings_take_what_the_links_ask_and_get_lost_as_often() {
    let perfect = Lab::new(LinkConfig::default(), LinkConfig::default()).unwrap();
    let (came, lost) = round_trips(&perfect);
    assert!(lost == 0.0 && came[came.len() / 2] < Duration::from_millis(5), "{lost} {:?}", came[came.len() / 2]);
    drop(perfect);

    let link = LinkConfig::default().with_delay_millis(20);
    let lab = Lab::new(link.clone().with_loss(0.02), link).unwrap();
    let (came, lost) = round_trips(&lab);
    let median = came[came.len() / 2];
    assert!((Duration::from_millis(40)..Duration::from_millis(45)).contains(&median), "median {median:?}");
    assert!((0.005..0.04).contains(&lost), "{lost} lost");
    let (up, down) = lab.counters();
    assert!(up.sent >= u64::from(PINGS) && up.lost > 0 && down.lost == 0, "{up:?} {down:?}");
}

#[test]
#[ignore = "nightly: needs root and namespaces"]
fn a_bottleneck_carries_its_rate_and_the_network_may_change() {
    let slow = LinkConfig::default().with_rate_bps(4_000_000).with_queue(QueueLimit::Time(Duration::from_millis(50)));
    let lab = Lab::new(LinkConfig::default(), LinkConfig::default()).unwrap();
    lab.set_links(slow, LinkConfig::default()).unwrap();
    let server = lab.in_server(|| UdpSocket::bind((SERVER_ADDR, 7_007))).unwrap().unwrap();
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let counting = std::thread::spawn(move || {
        let (mut bytes, mut first, mut last) = (0, None, Instant::now());
        let mut buffer = [0; 2_048];
        while let Ok(len) = server.recv(&mut buffer) {
            last = Instant::now();
            first.get_or_insert(last);
            bytes += len + 28; // the IP and UDP headers count against the rate
        }
        bytes as f64 * 8.0 / (last - first.unwrap()).as_secs_f64()
    });
    let client = lab.in_client(|| UdpSocket::bind((CLIENT_ADDR, 0))).unwrap().unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        _ = client.send_to(&[0; 1_200], (SERVER_ADDR, 7_007));
        std::thread::sleep(Duration::from_millis(1));
    }
    let rate = counting.join().unwrap();
    println!("{rate:.0} bit/s through a link of 4 000 000, {:?}", lab.counters().0);
    assert!((3_700_000.0..4_300_000.0).contains(&rate), "{rate}");
}

#[test]
#[ignore = "nightly: needs root and namespaces"]
fn a_lab_leaves_nothing_behind() {
    let lab = Lab::new(LinkConfig::default(), LinkConfig::default()).unwrap();
    let inside = lab.client_exec("ip").args(["-o", "address", "show", "lp0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&inside.stdout).contains("10.77.0.2"), "{inside:?}");
    let mut sleeper = lab.server_exec("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
    let identify = lab.server_exec("ip").args(["netns", "identify"]).output().unwrap();
    let name = String::from_utf8(identify.stdout).unwrap();
    let namespace = Path::new("/run/netns").join(name.trim());
    assert!(name.starts_with("lightpipe-") && namespace.exists(), "{name:?}");
    // `ip netns exec` needs a moment until it is inside.
    std::thread::sleep(Duration::from_millis(200));
    drop(lab);
    assert!(!namespace.exists(), "{name} is still there");
    let began = Instant::now();
    assert!(!sleeper.wait().unwrap().success() && began.elapsed() < Duration::from_secs(5), "it still sleeps");
}
