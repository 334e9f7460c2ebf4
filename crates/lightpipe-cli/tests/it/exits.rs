//! Exit codes and what is said with them.

use crate::lab::server::{program, run};
use crate::lab::{PATIENCE, serve, shared, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_ends_the_program_with_code_3_and_its_number() {
    let _machine = shared().await;
    let first = serve(&["pattern"]).start();
    let port = first.address().port().to_string();
    let (code, said) = run(program().args(["--source", "pattern", "--host", "127.0.0.1", "--port", &port]));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(&port) && said.contains("--port"), "{said}");
    assert_eq!(first.get("/healthz").status, 200, "the first server does not notice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_udp_port_taken_by_another_program_is_named_too() {
    let _machine = shared().await;
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = udp.local_addr().unwrap().port().to_string();
    let (code, said) = run(program().args(["--source", "pattern", "--host", "127.0.0.1", "--port", &port]));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(&port) && said.contains("UDP"), "{said}");
}

#[track_caller]
fn check_usage(args: &[&str], env: &[(&str, &str)], words: &[&str]) {
    let (code, said) = run(program().args(args).args(["--host", "127.0.0.1", "--port", "0"]).envs(env.iter().copied()));
    assert_eq!(code, Some(2), "{args:?} {env:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?} {env:?}: no {word:?} in {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_flags_files_and_variables_end_the_program_with_code_2_and_say_where() {
    let _machine = shared().await;
    check_usage(&["--fpz", "30"], &[], &["--fpz", "--fps"]);
    check_usage(&["--port", "http"], &[], &["--port"]);
    check_usage(&["--fps", "0"], &[], &["video.fps", "1 to 240"]);
    check_usage(&["--renderer", "crayon"], &[], &["crayon"]);
    check_usage(&["--config", "/nonexistent.toml"], &[], &["/nonexistent.toml"]);
    check_usage(&[], &[("LIGHTPIPE_VIDEO_FPZ", "3")], &["LIGHTPIPE_VIDEO_FPS"]);
    check_usage(&[], &[("CS_FPS", "fast")], &["CS_FPS"]);
    check_usage(&["--source", "cubes"], &[], &["cubes", "cube, pattern"]);
    check_usage(&["--source", "a/b=cube"], &[], &["a/b"]);
    check_usage(&["--source", "cube", "--source", "cube"], &[], &["cube"]);

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let unknown = file("unknown.toml", "[video]\nwidht = 640\n");
    check_usage(&["--config", &unknown], &[], &["unknown.toml", "video.widht", "video.width"]);
    let broken = file("broken.toml", "[video\n");
    check_usage(&["--config", &broken], &[], &["broken.toml", "line 1"]);
    let zero = file("zero.toml", "\n[video]\nfps = 0\n");
    check_usage(&["--config", &zero], &[], &["line 3", "video.fps"]);
    let source = file("source.toml", "[sources]\nx = \"cubes\"\n");
    check_usage(&["--config", &source], &[], &["cubes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_in_a_file_have_no_colour_codes_and_json_lines_are_json() {
    let _machine = shared().await;
    let plain = serve(&["gone=exec:exit 7"]).start();
    plain.wait_event(0, "ffmpeg_exited");
    let json = serve(&["gone=exec:exit 7"]).args(&["--log-json"]).start();
    json.wait_event(0, "ffmpeg_exited");
    until("a log line of each", PATIENCE, || {
        (plain.stderr().contains("code 7") && json.stderr().contains("code 7")).then_some(())
    });
    assert!(!plain.stderr().contains('\x1b'), "{}", plain.stderr());
    for line in json.stderr().lines() {
        let parsed: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(parsed["level"].is_string() && parsed["timestamp"].is_string(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_refused_at_the_start_ends_the_program_with_one_sentence() {
    let _machine = shared().await;
    let source = "cam=ffmpeg:-f lavfi";
    let (code, said) =
        run(program().args(["--source", "pattern", "--source", source, "--host", "127.0.0.1", "--port", "0"]));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("cam") && said.contains("no input") && !said.contains("panicked"), "{said}");
}
