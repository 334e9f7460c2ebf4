//! Files and live inputs with sound, in a browser.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::lab::browser::{note_gaps, take_longest_gap, watch};
use crate::lab::hear::{age_heard, age_unheld, apart, hear, skews, wait_tone};
use crate::lab::{LAVFI, PATIENCE, Viewer, chromium, quiet, send_signal, serve, shared, until};

/// A clip of five seconds, white in the first tenth of each; with the same of a beep, or without sound.
fn clip(folder: &Path, sound: bool) -> PathBuf {
    let path = folder.join(if sound { "with sound.mp4" } else { "silent.mp4" });
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-f", "lavfi", "-i"]);
    ffmpeg.arg("color=black:s=320x180:r=30,drawbox=w=iw:h=ih:color=white:t=fill:enable='lt(mod(t,1),0.1)'");
    if sound {
        ffmpeg.args(["-f", "lavfi", "-i", "aevalsrc='0.25*sin(2*PI*1000*t)*lt(mod(t,1),0.1)':s=44100", "-c:a", "aac"]);
    }
    let status = ffmpeg.args(["-t", "5", "-c:v", "libx264", "-bf", "2", "-g", "60"]).arg(&path).status();
    assert!(status.expect("FFmpeg is installed").success());
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn flash_and_beep_of_a_file_stay_together_over_its_loops_and_a_killed_child() {
    let _machine = quiet().await;
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&[&format!("film=file:{}", clip(folder.path(), true).display())]).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "film").await;
    let unheld = age_unheld(&page).await;
    hear(&page).await;
    note_gaps(&page).await;
    // The browser's jitter buffer begins long and shortens itself; then three loops.
    page.wait_until("heard.beeps.length >= 10", PATIENCE).await.unwrap();
    take_longest_gap(&page).await;
    let from = page.evaluate("performance.now()").await.unwrap().as_f64().unwrap();
    page.wait_until("heard.beeps.length >= 28", PATIENCE).await.unwrap();
    let gap = take_longest_gap(&page).await;
    let together = skews(&page).await;
    let age = age_heard(&page, 18).await;
    println!(
        "flash behind beep: {together:.0?} ms from {from:.0} on; sound {age:.0} ms old, pictures unheld {unheld:.0}; longest gap {gap:.0} ms"
    );
    let mut off: Vec<f64> = together.iter().filter(|(at, _)| *at > from).map(|(_, skew)| skew.abs()).collect();
    off.sort_by(f64::total_cmp);
    assert!(off.len() >= 15, "{off:?}");
    // Half of them, because a busy machine shows single pictures late.
    assert!(off[off.len() / 2] <= apart(40.0, age, unheld), "sound of {age} ms, pictures of {unheld}: {off:?}");

    let spawned = server.wait_event(0, "audio_spawned");
    let next = server.next_seq();
    let from = page.evaluate("performance.now()").await.unwrap().as_f64().unwrap();
    send_signal(u32::try_from(spawned["pid"].as_u64().unwrap()).unwrap(), Signal::KILL);
    // What the child had written already is played first.
    let exited = server.wait_event(next, "audio_exited");
    assert!(exited["reason"].as_str().unwrap().contains("killed by signal 9"), "{exited}");
    server.wait_event(next, "first_audio_ingested");
    let before = page.evaluate("heard.beeps.length").await.unwrap().as_u64().unwrap();
    page.wait_until(&format!("heard.beeps.length >= {}", before + 4), PATIENCE).await.unwrap();
    let script = "heard.beeps.slice(1).reduce((longest, at, n) => Math.max(longest, at - heard.beeps[n]), 0)";
    let silent = page.evaluate(script).await.unwrap().as_f64().unwrap();
    let (gap, after) = (take_longest_gap(&page).await, skews(&page).await);
    println!("killed at {from:.0}: {silent:.0} ms between beeps, {gap:.0} ms between pictures; {after:.0?}");
    assert!(silent < 2100.0, "{silent} ms between beeps that are a second apart");
    assert!(gap < 500.0, "pictures stood still for {gap} ms");
    let allowed = apart(60.0, age_heard(&page, 4).await, unheld);
    assert!(after.iter().rev().take(2).all(|(_, skew)| skew.abs() <= allowed), "{allowed} ms: {after:?}");
    let stream = server.stream("film");
    assert_eq!((&stream["health"], &stream["audio"]["health"]), (&"live".into(), &"live".into()), "{stream}");
    assert!(!server.events(0).iter().any(|event| event["event"] == "ffmpeg_exited"), "{:?}", server.events(0));
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_without_sound_have_none_and_are_well() {
    let _machine = shared().await;
    let folder = tempfile::tempdir().unwrap();
    let film = format!("film=file:{}", clip(folder.path(), false).display());
    let server = serve(&[&film, &format!("live={LAVFI}")]).start();
    for name in ["film", "live"] {
        let viewer = Viewer::join(&server, name);
        viewer.wait_pictures(20, PATIENCE);
        let stream = server.stream(name);
        assert_eq!((&stream["health"], &stream["audio"]), (&"live".into(), &serde_json::Value::Null), "{stream}");
    }
    assert!(!server.events(0).iter().any(|event| event["event"] == "audio_exited"), "{:?}", server.events(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sound_that_begins_late_or_in_silence_is_heard_by_who_was_there_before() {
    // Trap: audio silent at the start means no audio for ever.
    let _machine = quiet().await;
    let folder = tempfile::tempdir().unwrap();
    // An FFmpeg whose sound takes its time, longer than a child may be silent by default.
    let slow = folder.path().join("slow-ffmpeg");
    std::fs::write(&slow, "#!/bin/sh\ncase \"$*\" in *pcm_s16le*) sleep 12 ;; esac\nexec ffmpeg \"$@\"\n").unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let late = format!("late=file:{}", clip(folder.path(), true).display());
    let silent = "silent=ffmpeg:-re -f lavfi -i \
                  \"testsrc2=size=320x180:rate=30[out0];aevalsrc=0.25*sin(2*PI*440*t)*gt(t\\,6)[out1]\"";
    let server = serve(&[&late, silent]).env("LIGHTPIPE_FFMPEG_PATH", slow.to_str().unwrap()).start();
    let browser = chromium().await;
    let pages = [watch(&browser, &server, "late").await, watch(&browser, &server, "silent").await];
    for page in &pages {
        hear(page).await;
    }
    assert_eq!(pages[1].evaluate("heard.peak").await.unwrap(), 0.0);
    assert_eq!(server.stream("late")["audio"]["published"], 0, "the sound's child sleeps");
    let first = server.wait_event(0, "first_audio_ingested");
    println!("sound begins: {first}");
    pages[0].wait_until("heard.beeps.length >= 4", PATIENCE).await.unwrap();
    wait_tone(&pages[1], 440.0).await;
    let together = skews(&pages[0]).await;
    println!("flash behind beep: {together:.0?} ms");
    until("sound and pictures live", PATIENCE, || {
        let stream = server.stream("late");
        (stream["health"] == "live" && stream["audio"]["health"] == "live").then_some(())
    });
    assert!(!server.events(0).iter().any(|event| event["event"] == "audio_exited"), "{:?}", server.events(0));
    browser.close().await.unwrap();
}
