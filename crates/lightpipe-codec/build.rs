//! Refuses a build without assembly: openh264-sys2 silently falls back to C when `nasm` is missing, which
//! costs several times the CPU and would make every figure that we publish untrue.

fn main() {
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-env-changed=OPENH264_NO_ASM");
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if !matches!(arch.as_str(), "x86" | "x86_64") {
        return;
    }
    let nasm = std::process::Command::new("nasm").arg("-v").output();
    if std::env::var_os("OPENH264_NO_ASM").is_some() || !nasm.is_ok_and(|out| out.status.success()) {
        println!(
            "cargo::error=OpenH264 would be built without its assembly. Install `nasm` (cargo xtask install does it) \
             and unset OPENH264_NO_ASM, then `cargo clean -p openh264-sys2`."
        );
    }
}
