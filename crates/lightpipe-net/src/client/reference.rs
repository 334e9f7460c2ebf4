//! URLs that a server sends: relative ones in `Location`, lists of them in `Link`.

use http::Uri;

/// A reference against the URL that it came from (RFC 3986 §5.2). None if the result is no http or https URL.
pub fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let (path, query) = reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let has_scheme = reference.split_once(':').is_some_and(|(before, _)| {
        before.starts_with(|c: char| c.is_ascii_alphabetic())
            && before.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    let absolute = if has_scheme {
        reference.to_owned()
    } else if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else {
        let merged = if path.is_empty() {
            base.path().to_owned()
        } else if path.starts_with('/') {
            without_dots(path)
        } else {
            let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            without_dots(&format!("{folder}/{path}"))
        };
        let query = query.or_else(|| base.query().filter(|_| path.is_empty()));
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("{scheme}://{authority}{merged}{query}")
    };
    let url: Uri = absolute.parse().ok()?;
    let complete = matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|h| !h.is_empty());
    complete.then_some(url)
}

/// RFC 3986 §5.2.4, for a path that begins with a slash.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

/// A `Link` header's entries: target and parameters (RFC 8288 §3). Commas inside `<…>` and quotes do not separate.
pub fn links(value: &str) -> Result<Vec<Link>, &'static str> {
    let mut links = Vec::new();
    for entry in split_outside(value, ',') {
        let mut parts = split_outside(entry, ';').into_iter();
        let target = parts.next().unwrap_or_default().trim();
        let target = target.strip_prefix('<').and_then(|t| t.strip_suffix('>')).ok_or("its target is not in <…>")?;
        let mut parameters = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim();
            let quoted = value.strip_prefix('"').map(|v| v.strip_suffix('"').ok_or("a quote is not closed"));
            parameters.push((name.trim().to_ascii_lowercase(), quoted.transpose()?.unwrap_or(value).to_owned()));
        }
        links.push(Link { target: target.to_owned(), parameters });
    }
    Ok(links)
}

/// One entry of a `Link` header.
#[derive(Debug, PartialEq, Eq)]
pub struct Link {
    /// What is in `<…>`.
    pub target: String,
    /// Names in lower case, and values without their quotes.
    pub parameters: Vec<(String, String)>,
}

impl Link {
    /// The first parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn split_outside(text: &str, separator: char) -> Vec<&str> {
    let (mut quoted, mut escaped, mut in_target, mut from) = (false, false, false, 0);
    let mut parts = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if !in_target => quoted = !quoted,
            '<' if !quoted => in_target = true,
            '>' if !quoted => in_target = false,
            c if c == separator && !quoted && !in_target => {
                parts.push(&text[from..at]);
                from = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_resolve(reference: &str, expected: Option<&str>) {
        let base: Uri = "https://a.example:8443/live/cam/whip?key=1".parse().expect("a URL");
        assert_eq!(resolve(&base, reference).map(|url| url.to_string()).as_deref(), expected, "{reference:?}");
    }

    #[test]
    fn locations_of_real_servers_resolve() {
        check_resolve("https://b.example/s/1", Some("https://b.example/s/1"));
        check_resolve("/whip/cam/4fT", Some("https://a.example:8443/whip/cam/4fT"));
        check_resolve("4fT", Some("https://a.example:8443/live/cam/4fT"));
        check_resolve("whip/4fT?secret=x", Some("https://a.example:8443/live/cam/whip/4fT?secret=x"));
        check_resolve("../other/./4fT", Some("https://a.example:8443/live/other/4fT"));
        check_resolve("/a/b/..", Some("https://a.example:8443/a/"));
        check_resolve("//c.example/s", Some("https://c.example/s"));
        check_resolve("?session=7", Some("https://a.example:8443/live/cam/whip?session=7"));
        check_resolve("", Some("https://a.example:8443/live/cam/whip?key=1"));
        check_resolve("/s#part", Some("https://a.example:8443/s"));
        check_resolve("ftp://a.example/s", None);
        check_resolve("https://", None);
        check_resolve("/with space", None);
    }

    #[test]
    fn links_split_where_the_rfc_says() {
        // Target, rel and credential of each.
        let check = |value: &str, expected: Result<&[[&str; 3]], &'static str>| {
            let found = links(value);
            let seen = found.as_ref().map_err(|reason| *reason).map(|all| {
                let text = |link: &Link, name| link.parameter(name).unwrap_or_default().to_owned();
                all.iter().map(|l| [l.target.clone(), text(l, "rel"), text(l, "credential")]).collect::<Vec<_>>()
            });
            let expected = expected.map(|all| all.iter().map(|l| l.map(str::to_owned)).collect::<Vec<_>>());
            assert_eq!(seen, expected, "{value}");
        };
        check("<stun:a.example:3478>; rel=\"ice-server\"", Ok(&[["stun:a.example:3478", "ice-server", ""]]));
        check(
            "<turn:a.example?transport=udp>; rel=ice-server; username=\"u\"; credential=\"a,b;c\", <stun:b.example>; rel=\"ice-server\"",
            Ok(&[["turn:a.example?transport=udp", "ice-server", "a,b;c"], ["stun:b.example", "ice-server", ""]]),
        );
        check("stun:a.example; rel=\"ice-server\"", Err("its target is not in <…>"));
        check("<stun:a.example>; rel=\"ice-server", Err("a quote is not closed"));
        check("", Ok(&[]));
    }
}
