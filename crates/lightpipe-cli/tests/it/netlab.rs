//! `lightpipe lab` as people call it.

use serde_json::Value;

use crate::lab::server::program;

#[test]
fn a_session_over_a_bad_network_is_told_as_json_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("lab.html");
    let output = program()
        .args(["lab", "--profile", "cable,lte-weak", "--seconds", "40", "--outage", "10:2", "--json", "-", "--plot"])
        .arg(&page)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reports: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = reports.as_array().unwrap().iter().map(|report| report["profile"].as_str().unwrap()).collect();
    assert_eq!(names, ["cable", "lte-weak"]);
    for report in reports.as_array().unwrap() {
        assert!(report["pictures_shown"].as_u64().unwrap() > 1_000, "{}", report["pictures_shown"]);
        assert_eq!(report["changes"][0]["what"], "outage");
        assert!(report["changes"][0]["picture_after_ms"].as_f64().unwrap() < 3_000.0);
        assert_eq!(report["samples"].as_array().unwrap().len(), 400);
        assert!(report["freezes"]["longest_ms"].as_f64().unwrap() >= 2_000.0, "the outage is one");
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(
        !page.contains("http://") || page.matches("http").count() == page.matches("http://www.w3.org/2000/svg").count()
    );
}

#[test]
fn an_unknown_network_is_a_wrong_flag() {
    let output = program().args(["lab", "--profile", "carrier-pigeon"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("carrier-pigeon") && said.contains("--list"), "{said}");
}
