//! Files in rooms: `lightpipe join --send` and `--save`, among their own kind and with pages.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::lab::{PATIENCE, serve, shared, until};
use crate::mesh::{Member, join};

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
