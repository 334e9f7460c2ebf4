//! Files in rooms: `lightpipe join --send` and `--save`, among their own kind and with pages.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lightpipe::{ChannelEvent, Config, FileState, MeshConfig, MeshEvent, Message, ReceiveFiles};
use lightpipe_net::client::mesh::CHAT;
use lightpipe_signal::transfer::WINDOW;
use lightpipe_testkit::netlab::{CLIENT_ADDR, Lab, LinkConfig, SERVER_ADDR};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::lab::server::{program, run};
use crate::lab::{PATIENCE, quiet, send_signal, serve, shared, until};
use crate::mesh::{Member, join, join_from, signalling};
use crate::room;

/// A file of so many bytes by chance.
fn file(folder: &Path, name: &str, len: usize) -> PathBuf {
    let path = folder.join(name);
    let mut bytes = vec![0; len];
    fastrand::fill(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(path: &Path) -> String {
    hex(&Sha256::digest(std::fs::read(path).unwrap()))
}

fn names(folder: &TempDir) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

impl Member {
    /// The end of this many files of a peer, good or bad, in order.
    #[track_caller]
    fn wait_files(&self, peer: &str, count: usize) -> Vec<Value> {
        until(&format!("{count} files of or for {peer} are over"), PATIENCE, || {
            let over = |event: &Value| ["file_done", "file_failed"].iter().any(|over| event["event"] == *over);
            let events: Vec<Value> = self.events().into_iter().filter(|e| e["peer"] == peer && over(e)).collect();
            (events.len() >= count).then_some(events)
        })
    }

    /// Each transfer's progress only grows, and ends with the whole. An empty file has none.
    #[track_caller]
    fn check_progress(&self, peer: &str) {
        for done in self.told("file_done", Some(peer)) {
            let of_it = |event: &Value| event["id"] == done["id"];
            let progress: Vec<u64> = self
                .told("file_progress", Some(peer))
                .iter()
                .filter(|e| of_it(e))
                .map(|e| e["bytes"].as_u64().unwrap())
                .collect();
            assert!(progress.windows(2).all(|pair| pair[0] < pair[1]), "{done}: {progress:?}");
            assert_eq!(progress.last().copied().unwrap_or(0), done["size"].as_u64().unwrap(), "{done}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_two_native_peers_go_both_ways() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let [home, at_ada, at_bob] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let film = file(home.path(), "film.bin", 9_000_001);
    let empty = file(home.path(), "empty", 0);
    let text = file(home.path(), "Grüße, Jörg.txt", 100);
    // The same name from another folder, and one that is there already.
    std::fs::create_dir(home.path().join("more")).unwrap();
    let second = file(&home.path().join("more"), "film.bin", 70_000);
    std::fs::write(at_bob.path().join("empty"), "mine").unwrap();
    let new = at_ada.path().join("new");
    let path = |path: &'_ Path| path.to_str().unwrap().to_owned();
    let (film, empty, text, second) = (path(&film), path(&empty), path(&text), path(&second));
    let ada = join(
        &server,
        "ada",
        &["--send", &film, "--send", &empty, "--send", &text, "--send", &second, "--save", &path(&new)],
    );
    let bob = join(&server, "bob", &["--send", &film, "--to", "ada", "--save", &path(at_bob.path())]);
    // Only for ada, and nothing is taken here.
    let cyd = join(&server, "cyd", &[]);

    let sent = [(&film, "film.bin"), (&empty, "empty (2)"), (&text, "Grüße, Jörg.txt"), (&second, "film (2).bin")];
    for (me, other, outgoing) in [(&ada, "bob", 4), (&bob, "ada", 1)] {
        let over = me.wait_files(other, 5);
        assert!(over.iter().all(|event| event["event"] == "file_done"), "{over:?}");
        assert_eq!(over.iter().filter(|event| event["direction"] == "out").count(), outgoing);
        me.check_progress(other);
        for done in &over {
            assert_eq!(done["sha256"], sha256(Path::new(done["path"].as_str().unwrap())), "{done}");
            assert_eq!(done["carried"], done["size"], "nothing is sent twice: {done}");
        }
    }
    for (sent, kept) in sent {
        assert_eq!(sha256(Path::new(sent)), sha256(&at_bob.path().join(kept)), "{kept}");
    }
    assert_eq!(names(&at_bob), ["Grüße, Jörg.txt", "empty", "empty (2)", "film (2).bin", "film.bin"]);
    assert_eq!(std::fs::read_to_string(at_bob.path().join("empty")).unwrap(), "mine");
    assert_eq!(sha256(&new.join("film.bin")), sha256(Path::new(&film)));
    for (refused, by) in [(&cyd, "ada"), (&ada, "cyd")] {
        for event in refused.wait_files(by, 4) {
            let reason = event["reason"].as_str().unwrap();
            assert_eq!(reason, "refused: files are not taken here", "{event}");
        }
    }
    assert!(cyd.told("file_failed", Some("bob")).is_empty(), "not for cyd");
}

/// Waits until so much of a peer's file is there, and stops the process that takes it.
#[track_caller]
fn stop_within(sender: &Member, receiver: &Member, peer: &str, bytes: u64) {
    until("the middle of the file", PATIENCE, || {
        let there = |event: &Value| event["bytes"].as_u64() >= Some(bytes);
        sender.told("file_progress", Some(peer)).iter().any(there).then_some(())
    });
    send_signal(receiver.child.id(), Signal::STOP);
}

/// The offsets from which a file was sent.
fn offsets(sender: &Member, peer: &str) -> Vec<u64> {
    sender.told("file_began", Some(peer)).iter().map(|event| event["offset"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_file_that_was_cut_only_the_rest_is_sent_again() {
    const SIZE: usize = 96 << 20;
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let [home, folder] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let film = file(home.path(), "film.bin", SIZE);
    let ada = join(&server, "ada", &["--send", film.to_str().unwrap(), "--to", "bob"]);
    let bob = join(&server, "bob", &["--save", folder.path().to_str().unwrap()]);
    // For as long as it takes ada to give up new ICE credentials, too: what comes back is a new connection.
    stop_within(&ada, &bob, "bob", SIZE as u64 / 4);
    ada.wait("lost", Some("bob"));
    std::thread::sleep(Duration::from_secs(8));
    send_signal(bob.child.id(), Signal::CONT);
    let sent = ada.wait_files("bob", 1).remove(0);
    assert_eq!(sent["event"], "file_done", "{sent}");
    let offsets = offsets(&ada, "bob");
    let [0, offset] = offsets[..] else { panic!("taken from {offsets:?}") };
    assert!(offset > 0 && offset < SIZE as u64, "taken up at {offset}");
    // What was on its way when it was cut is at most a window.
    let carried = sent["carried"].as_u64().unwrap();
    assert!(carried <= SIZE as u64 + WINDOW, "{carried} bytes of {SIZE}, taken up at {offset}");
    let received = bob.wait_files("ada", 1).remove(0);
    assert_eq!((&received["carried"], &received["sha256"]), (&SIZE.into(), &sent["sha256"]), "{received}");
    assert_eq!(sha256(&folder.path().join("film.bin")), sha256(&film));
    ada.check_progress("bob");
    bob.check_progress("ada");
    assert_eq!(names(&folder), ["film.bin"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_was_killed_gets_the_file_from_its_beginning() {
    const SIZE: usize = 96 << 20;
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let [home, folder] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let film = file(home.path(), "film.bin", SIZE);
    let save = ["--save", folder.path().to_str().unwrap()];
    let ada = join(&server, "ada", &["--send", film.to_str().unwrap(), "--to", "bob"]);
    let bob = join(&server, "bob", &save);
    stop_within(&ada, &bob, "bob", SIZE as u64 / 4);
    drop(bob); // kill -9
    let left = names(&folder);
    assert!(left.len() == 1 && left[0].ends_with(".part"), "{left:?}");
    ada.wait("left", Some("bob"));
    let bob = join(&server, "bob", &save);
    let received = bob.wait_files("ada", 1).remove(0);
    assert_eq!((&received["event"], &received["sha256"]), (&"file_done".into(), &sha256(&film).into()), "{received}");
    assert_eq!((names(&folder), offsets(&ada, "bob")), (vec!["film.bin".to_owned()], vec![0, 0]));
    // Who leaves in the middle says so, and nothing of it is kept.
    let cyd_folder = tempfile::tempdir().unwrap();
    let mut dan = join(&server, "dan", &["--send", film.to_str().unwrap(), "--to", "cyd"]);
    let cyd = join(&server, "cyd", &["--save", cyd_folder.path().to_str().unwrap()]);
    until("the middle of the file", PATIENCE, || dan.told("file_progress", Some("cyd")).pop());
    send_signal(dan.child.id(), Signal::TERM);
    until("dan's end", PATIENCE, || dan.child.try_wait().unwrap());
    let failed = cyd.wait_files("dan", 1).remove(0);
    // By dan's word, or by the server's, whichever is there first.
    let reasons = ["cancelled by the other side: left the room", "cancelled: the other side left"];
    assert!(reasons.iter().any(|reason| failed["reason"] == *reason), "{failed}");
    // And one whose file becomes shorter.
    let eve = join(&server, "eve", &["--send", film.to_str().unwrap(), "--to", "cyd"]);
    until("the middle of the file", PATIENCE, || eve.told("file_progress", Some("cyd")).pop());
    std::fs::File::options().write(true).open(&film).unwrap().set_len(1).unwrap();
    assert_eq!(eve.wait_files("cyd", 1)[0]["reason"], "cancelled: the file changed meanwhile");
    assert_eq!(cyd.wait_files("eve", 1)[0]["reason"], "cancelled by the other side: the file changed meanwhile");
    assert_eq!(names(&cyd_folder), Vec::<String>::new());
}

/// Bytes of a page's outgoing file, and where it was cut.
const SENT: &str =
    "(one => [one.state, one.sent])(room.transfers.all.findLast(one => one.direction === 'out' && one.peer === 'bob'))";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_and_a_native_peer_send_each_other_files() {
    const SIZE: usize = 24_000_000;
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let [home, folder] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let film = file(home.path(), "film.bin", SIZE);
    let save = folder.path().to_str().unwrap();
    let bob = join(&server, "bob", &["--send", film.to_str().unwrap(), "--to", "ada", "--save", save]);
    let cyd = join(&server, "cyd", &[]);
    let browser = room::chromium().await;
    let page = browser.open(&server.url("/room/lab?id=ada")).await.unwrap();
    page.wait_until("window.room", PATIENCE).await.unwrap();
    page.evaluate(room::ACCEPT).await.unwrap();
    room::join(&page, "Ada").await;

    // To the page, and the path breaks in the middle.
    let half = |direction: &str| {
        format!(
            "room.transfers.all.some(one => one.direction === '{direction}' && one.peer === 'bob' && one.done > {SIZE} / 2)"
        )
    };
    let cut = "room.mesh.peers.get('bob').connection.close()";
    page.wait_until(&half("in"), PATIENCE).await.unwrap();
    page.evaluate(cut).await.unwrap();
    let sent = bob.wait_files("ada", 1).remove(0);
    assert_eq!(page.evaluate(room::RECEIVED).await.unwrap(), json!(["film.bin", SIZE, sha256(&film), true]));
    let [0, offset] = offsets(&bob, "ada")[..] else { panic!("{:?}", offsets(&bob, "ada")) };
    let carried = sent["carried"].as_u64().unwrap();
    assert!(offset > SIZE as u64 / 3 && carried <= SIZE as u64 + WINDOW, "taken up at {offset}, {carried} bytes sent");
    bob.check_progress("ada");

    // From the page, to both.
    let digest = room::send(&page, SIZE, "..\\\\up/holiday.bin").await;
    page.wait_until(&half("out"), PATIENCE).await.unwrap();
    page.evaluate(cut).await.unwrap();
    let received = bob.wait_files("ada", 2).remove(1);
    assert_eq!((&received["sha256"], &received["carried"]), (&digest, &SIZE.into()), "{received}");
    assert_eq!(sha256(&folder.path().join("holiday.bin")), digest);
    bob.check_progress("ada");
    page.wait_until(&format!("{SENT}[0] === 'finished'"), PATIENCE).await.unwrap();
    let sent = page.evaluate(&format!("{SENT}[1]")).await.unwrap().as_u64().unwrap();
    assert!(sent <= SIZE as u64 + WINDOW, "{sent} bytes of {SIZE}");
    assert_eq!(names(&folder), ["holiday.bin"]);
    let refused = "room.transfers.all.find(one => one.peer === 'cyd' && one.state === 'refused')?.reason";
    assert_eq!(page.wait_until(refused, PATIENCE).await.unwrap(), "files are not taken here");
    assert_eq!(cyd.wait_files("ada", 1)[0]["reason"], "refused: files are not taken here");
    browser.close().await.unwrap();
}

/// What a peer of ill will says on the channel for files: an answer, nothing outside of the folder, and nothing left in it.
#[tokio::test(flavor = "multi_thread")]
async fn no_name_leads_out_of_the_folder_and_no_broken_file_stays_in_it() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let [outside, save] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let folder = save.path();
    std::os::unix::fs::symlink(outside.path().join("target"), folder.join("link")).unwrap();
    let bob = join(&server, "bob", &["--save", folder.to_str().unwrap()]);
    let browser = room::chromium().await;
    let page = browser.open(&server.url("/room/lab?id=ada")).await.unwrap();
    page.wait_until("window.room", PATIENCE).await.unwrap();
    room::join(&page, "Ada").await;
    page.wait_until("room.mesh.peers.get('bob')?.files.readyState === 'open'", PATIENCE).await.unwrap();
    let tools = "void (() => {
  window.said = [];
  window.channel = room.mesh.peers.get('bob').files;
  channel.addEventListener('message', ({ data }) => { const said = JSON.parse(data); if (said.type !== 'progress') window.said.push(said); });
  window.say = message => channel.send(JSON.stringify(message));
  window.chunk = (number, offset, length) => { const view = new DataView(new ArrayBuffer(12 + length)); view.setUint32(0, number); view.setBigUint64(4, BigInt(offset)); channel.send(view.buffer); };
})()";
    page.evaluate(tools).await.unwrap();
    let mut number = 0;
    // SHA-256 of one zero byte.
    let right = hex(&Sha256::digest([0]));
    for (name, kept) in [
        ("../../up.txt", Some("up.txt")),
        ("/etc/passwd", Some("passwd")),
        ("C:\\Windows\\win.ini", Some("win.ini")),
        ("up.txt", Some("up (2).txt")),
        ("link", Some("link (2)")),
        ("..", None),
        ("a/..", None),
        ("", None),
        ("a\u{0}b", None),
        ("photo\u{202e}gnp.exe", None),
        (&*"x".repeat(256), None),
    ] {
        number += 1;
        let id = format!("n{number}");
        let offer = json!({ "type": "offer", "id": id, "number": number, "name": name, "size": 1, "mime": "" });
        page.evaluate(&format!("say({offer})")).await.unwrap();
        let answer = page.wait_until("said.shift()", PATIENCE).await.unwrap();
        let Some(kept) = kept else {
            assert_eq!(answer, json!({ "type": "refuse", "id": id, "reason": "bad_name" }), "{name:?}");
            continue;
        };
        assert_eq!(answer, json!({ "type": "accept", "id": id, "offset": 0 }), "{name:?}");
        let end = json!({ "type": "end", "id": id, "size": 1, "sha256": right });
        page.evaluate(&format!("void (chunk({number}, 0, 1), say({end}))")).await.unwrap();
        let answer = page.wait_until("said.shift()", PATIENCE).await.unwrap();
        assert_eq!(answer, json!({ "type": "done", "id": id }), "{name:?}");
        assert_eq!(std::fs::read(folder.join(kept)).unwrap(), [0], "{name:?}");
    }
    // Names are right, contents are not.
    for (script, reason) in [
        ("chunk(NUMBER, 5, 5)", "left a gap"),
        ("chunk(NUMBER, 0, 11)", "sends more than it offered"),
        (
            "say({ type: 'end', id: 'ID', size: 10, sha256: '0'.repeat(64) })",
            "ends before the end: the file is cut off",
        ),
        (
            "(chunk(NUMBER, 0, 10), say({ type: 'end', id: 'ID', size: 10, sha256: '0'.repeat(64) }))",
            "sent something else than it read: wrong checksum",
        ),
    ] {
        number += 1;
        let id = format!("n{number}");
        let offer = json!({ "type": "offer", "id": id, "number": number, "name": "bad", "size": 10, "mime": "" });
        page.evaluate(&format!("say({offer})")).await.unwrap();
        assert_eq!(page.wait_until("said.shift()?.type", PATIENCE).await.unwrap(), "accept");
        let script = script.replace("NUMBER", &number.to_string()).replace("ID", &id);
        page.evaluate(&format!("void {script}")).await.unwrap();
        let answer = page.wait_until("said.shift()", PATIENCE).await.unwrap();
        assert_eq!(answer, json!({ "type": "failed", "id": id, "reason": reason }));
    }
    let kept = ["link", "link (2)", "passwd", "up (2).txt", "up.txt", "win.ini"];
    assert_eq!(names(&save), kept);
    assert!(names(&outside).is_empty(), "nothing went through the link");
    // Nonsense disturbs nobody.
    page.evaluate("['', '{', 'null', new Uint8Array(3), new Uint8Array(40)].forEach(one => channel.send(one))")
        .await
        .unwrap();
    page.evaluate("room.mesh.say('still here')").await.unwrap();
    assert_eq!(bob.wait("chat", Some("ada"))["text"], "still here");
    assert!(!bob.stderr.lock().unwrap().contains("panicked"));
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_or_kept_is_said_at_once() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let folder = tempfile::tempdir().unwrap();
    let one = file(folder.path(), "one", 1);
    let one = one.to_str().unwrap();
    let below = format!("{one}/below");
    let missing = folder.path().join("missing");
    for (args, code, says) in [
        (vec!["--send", folder.path().to_str().unwrap()], 2, "is no file that could be sent"),
        (vec!["--send", missing.to_str().unwrap()], 2, "is no file that could be sent"),
        (vec!["--to", "bob"], 2, "--send"),
        (vec!["--send", one, "--to", "b o b"], 2, "is no name for a room or a peer"),
        (vec!["--save", &below], 3, "Not a directory"),
    ] {
        let url = signalling(&server);
        let told = run(program().args(["join", "--room", "lab", "--host", "127.0.0.1", "--url", &url]).args(&args));
        assert!(told.0 == Some(code) && told.1.contains(says), "{args:?}: {told:?}");
    }
}

/// Losses, a cut that the connection outlives, and one that it does not.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: needs root and namespaces, measures time"]
async fn files_over_a_bad_network_and_over_none() {
    let _machine = quiet().await;
    let far = LinkConfig::default().with_delay_millis(20);
    let lossy = far.clone().with_loss(0.02);
    let lab = Lab::new(lossy.clone(), lossy).unwrap();
    let home = tempfile::tempdir().unwrap();
    let server = lab.in_server(|| serve(&["pattern"]).on_host(SERVER_ADDR).start()).unwrap();
    // Receives until it is dropped; whoever sends says so.
    let send = |size: usize, middle: &dyn Fn(&Member)| -> (Value, Vec<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let film = file(home.path(), "film.bin", size);
        let (film_arg, save) = (film.to_str().unwrap(), folder.path().to_str().unwrap());
        let bob = lab.in_client(|| join_from(CLIENT_ADDR, &server, "bob", &["--save", save])).unwrap();
        bob.wait("in_room", None);
        let args = ["--send", film_arg, "--to", "bob"];
        let ada = lab.in_server(|| join_from(SERVER_ADDR, &server, "ada", &args)).unwrap();
        ada.wait("file_began", Some("bob"));
        let began = Instant::now();
        middle(&ada);
        let sent = until("the end of the file", Duration::from_secs(180), || ada.told("file_done", None).pop());
        println!(
            "{size} bytes in {:?}: {:.2} MiB/s",
            began.elapsed(),
            size as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64()
        );
        assert_eq!(sha256(&folder.path().join("film.bin")), sha256(&film));
        bob.wait_files("ada", 1);
        ada.check_progress("bob");
        bob.check_progress("ada");
        (sent, offsets(&ada, "bob"))
    };
    const SMALL: usize = 8 << 20;
    let (sent, offsets) = send(SMALL, &|_| ());
    assert_eq!((&sent["carried"], offsets), (&SMALL.into(), vec![0]), "losses are the channel's matter");

    const SIZE: usize = 48 << 20;
    let cable = far.with_rate_bps(80_000_000);
    for (seconds, connections) in [(2, 1), (40, 2)] {
        lab.set_links(cable.clone(), cable.clone()).unwrap();
        let (sent, offsets) = send(SIZE, &|ada| {
            let there = || ada.told("file_progress", None).pop().and_then(|event| event["bytes"].as_u64());
            until("the middle of the file", PATIENCE, || there().filter(|bytes| *bytes > SIZE as u64 / 3));
            let none = cable.clone().with_loss(1.0);
            lab.set_links(none.clone(), none).unwrap();
            std::thread::sleep(Duration::from_secs(seconds));
            lab.set_links(cable.clone(), cable.clone()).unwrap();
            let (back, bytes) = (Instant::now(), there());
            until("more of the file", PATIENCE, || (there() > bytes).then_some(()));
            println!("cut for {seconds} s: it goes on {:?} after", back.elapsed());
        });
        let carried = sent["carried"].as_u64().unwrap();
        assert!(carried <= SIZE as u64 + WINDOW, "{carried} bytes, taken from {offsets:?}");
        assert_eq!(offsets.len(), connections, "taken from {offsets:?}");
    }
}

/// 256 MiB between two members in one process, and what a line of chat takes meanwhile.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: measures time"]
async fn a_large_file_is_fast_and_chat_does_not_wait_for_it() {
    const SIZE: usize = 256 << 20;
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let [home, folder] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let film = file(home.path(), "film.bin", SIZE);
    let mut members = Vec::new();
    for name in ["ada", "bob"] {
        let mut config = Config::default();
        config.server.host = "127.0.0.1".parse().unwrap();
        config.server.port = 0;
        let member = lightpipe::Server::headless(config).unwrap();
        let mut mesh_config = MeshConfig::new(signalling(&server).parse().unwrap(), "lab", name);
        mesh_config.receive_files = ReceiveFiles::Into(folder.path().to_owned());
        let mesh = member.join(None, mesh_config).await.unwrap();
        members.push((member, mesh));
    }
    let (_bob, mut at_bob) = members.pop().unwrap();
    let (_ada, mut at_ada) = members.pop().unwrap();
    while !matches!(at_ada.next().await.unwrap(), MeshEvent::Connected { .. }) {}
    // Each line says which it is; bob notes when it came.
    let said: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let when = Arc::clone(&said);
    let reading = tokio::spawn(async move {
        let mut waits = Vec::new();
        while let Some(event) = at_bob.next().await {
            match event {
                MeshEvent::Channel { event: ChannelEvent::Message { message: Message::Text(n), .. }, .. } => {
                    waits.push(when.lock().unwrap()[n.parse::<usize>().unwrap()].elapsed());
                }
                MeshEvent::File { state: FileState::Done { .. }, .. } => break,
                _ => {}
            }
        }
        waits
    });
    let (began, cpu) = (Instant::now(), cpu_ms());
    at_ada.handle().send_file("bob", &film).await.unwrap();
    let mut turn = tokio::time::interval(Duration::from_millis(20));
    let took = loop {
        tokio::select! {
            _ = turn.tick() => {
                let n = said.lock().unwrap().len();
                said.lock().unwrap().push(Instant::now());
                at_ada.handle().send("bob", CHAT.0, Message::Text(n.to_string())).await.unwrap();
            }
            event = at_ada.next() => if let Some(MeshEvent::File { state, .. }) = event {
                match state {
                    FileState::Done { carried, .. } => {
                        assert_eq!(carried, SIZE as u64, "nothing is sent twice");
                        break began.elapsed();
                    }
                    FileState::Failed { reason } => panic!("{reason}"),
                    _ => {}
                }
            },
        }
    };
    let spent = cpu_ms() - cpu;
    let mut waits = reading.await.unwrap();
    waits.sort();
    let rate = (SIZE >> 20) as f64 / took.as_secs_f64();
    let p95 = waits[waits.len() * 95 / 100];
    println!(
        "{rate:.1} MiB/s, {:.1} ms of CPU a MiB; {} lines of chat: p50 {:?}, p95 {p95:?}, worst {:?}",
        spent / (SIZE >> 20) as f64,
        waits.len(),
        waits[waits.len() / 2],
        waits[waits.len() - 1]
    );
    assert_eq!(sha256(&folder.path().join("film.bin")), sha256(&film));
    assert!(rate >= 20.0 && p95 <= Duration::from_millis(20), "{rate:.1} MiB/s, {p95:?}");
}

/// CPU time of this process.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10.0
}
