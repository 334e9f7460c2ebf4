//! Names of files that somebody else chose.

/// Longest name, bytes: what file systems take.
pub const MAX_NAME_LEN: usize = 255;

/// Why a name is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing behind the last separator, or it is the folder itself or the one above.
    #[error("it names no file")]
    NoFile,
    /// Control characters, or those that turn the writing direction and make `exe.txt` of `txt.exe`.
    #[error("it has control characters")]
    Control,
    /// More than [`MAX_NAME_LEN`] bytes.
    #[error("it is longer than {MAX_NAME_LEN} bytes")]
    TooLong,
}

/// The last component of what may be a path of any system; nothing that leads elsewhere.
pub fn safe(name: &str) -> Result<&str, NameError> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    match last {
        _ if last.chars().any(|c| c.is_control() || turns(c)) => Err(NameError::Control),
        _ if last.len() > MAX_NAME_LEN => Err(NameError::TooLong),
        _ if last.trim().is_empty() || last == "." || last == ".." => Err(NameError::NoFile),
        _ => Ok(last),
    }
}

/// The name itself, or with ` (2)`, ` (3)` … before its ending, whichever is not `taken`. Shortened where it would grow too long.
pub fn free(name: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(name) {
        return name.to_owned();
    }
    // A dot in front makes no ending but a hidden file.
    let (stem, ending) = match name.rfind('.') {
        Some(at) if at > 0 => name.split_at(at),
        _ => (name, ""),
    };
    let numbered = |n: u64| {
        let number = format!(" ({n})");
        let ending = if ending.len() + number.len() < MAX_NAME_LEN { ending } else { "" };
        let mut end = stem.len().min(MAX_NAME_LEN - number.len() - ending.len());
        while !stem.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}{number}{ending}", &stem[..end])
    };
    let mut n = 2;
    loop {
        let name = numbered(n);
        if !taken(&name) {
            return name;
        }
        n += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for (name, expected) in [
            ("a.txt", Ok("a.txt")),
            ("Zeugnis für Jörg.pdf", Ok("Zeugnis für Jörg.pdf")),
            ("../../etc/passwd", Ok("passwd")),
            ("/etc/passwd", Ok("passwd")),
            ("C:\\Windows\\system32\\a.dll", Ok("a.dll")),
            ("..\\../b", Ok("b")),
            ("...", Ok("...")),
            (".profile", Ok(".profile")),
            ("", Err(NameError::NoFile)),
            (" ", Err(NameError::NoFile)),
            (".", Err(NameError::NoFile)),
            ("..", Err(NameError::NoFile)),
            ("a/..", Err(NameError::NoFile)),
            ("a/", Err(NameError::NoFile)),
            ("\\", Err(NameError::NoFile)),
            ("a\0.txt", Err(NameError::Control)),
            ("a\n", Err(NameError::Control)),
            ("a\u{85}b", Err(NameError::Control)),
            ("photo\u{202e}gnp.exe", Err(NameError::Control)),
        ] {
            assert_eq!(safe(name), expected, "{name:?}");
        }
        assert!(safe(&"x".repeat(255)).is_ok());
        assert_eq!(safe(&"ä".repeat(128)), Err(NameError::TooLong));
        assert_eq!(safe(&format!("{}/a", "x".repeat(300))), Ok("a"), "the folder's length is nobody's matter");
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        #[track_caller]
        fn check(name: &str, taken: &[&str], expected: &str) {
            assert_eq!(free(name, |name| taken.contains(&name)), expected);
        }
        check("a.txt", &[], "a.txt");
        check("a.txt", &["a.txt"], "a (2).txt");
        check("a.txt", &["a.txt", "a (2).txt", "a (3).txt"], "a (4).txt");
        check("a.tar.gz", &["a.tar.gz"], "a.tar (2).gz");
        check("README", &["README"], "README (2)");
        check(".profile", &[".profile"], ".profile (2)");
        let long = format!("{}.txt", "ä".repeat(125));
        let numbered = free(&long, |name| name == long);
        assert!(numbered.len() <= MAX_NAME_LEN && numbered.ends_with("ä (2).txt"), "{numbered}");
        let dotted = format!("a.{}", "x".repeat(253));
        let numbered = free(&dotted, |name| name == dotted);
        assert!(numbered.len() <= MAX_NAME_LEN && safe(&numbered).is_ok(), "{numbered}");
    }
}
