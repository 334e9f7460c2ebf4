//! Recent console messages of each page.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Messages kept per page; when full the oldest goes.
const LINES: usize = 200;
/// Longest message, bytes; the rest is cut. A page that logs an SDP still fits.
const LINE_BYTES: usize = 8_000;

/// Console messages by page: the key is the protocol's own name of a page (CDP session, BiDi context). Pages that
/// nobody watches are not recorded.
#[derive(Debug, Default)]
pub(crate) struct Consoles(Mutex<HashMap<String, VecDeque<String>>>);

impl Consoles {
    pub(crate) fn watch(&self, page: &str) {
        self.with(|pages| _ = pages.insert(page.to_owned(), VecDeque::new()));
    }

    pub(crate) fn forget(&self, page: &str) {
        self.with(|pages| _ = pages.remove(page));
    }

    pub(crate) fn lines(&self, page: &str) -> Vec<String> {
        self.with(|pages| pages.get(page).map(|lines| lines.iter().cloned().collect()).unwrap_or_default())
    }

    pub(crate) fn push(&self, page: &str, mut line: String) {
        if line.len() > LINE_BYTES {
            let cut = (0..=LINE_BYTES).rev().find(|at| line.is_char_boundary(*at));
            line.truncate(cut.unwrap_or(0));
            line.push('…');
        }
        self.with(|pages| {
            if let Some(lines) = pages.get_mut(page) {
                if lines.len() == LINES {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<String, VecDeque<String>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_keeps_the_newest_lines_and_cuts_long_ones() {
        let consoles = Consoles::default();
        consoles.push("page", "nobody watches yet".to_owned());
        consoles.watch("page");
        for n in 0..LINES + 5 {
            consoles.push("page", n.to_string());
        }
        consoles.push("page", "ä".repeat(LINE_BYTES));
        let lines = consoles.lines("page");
        assert_eq!((lines.len(), lines[0].as_str()), (LINES, "6"));
        assert!(lines[LINES - 1].len() <= LINE_BYTES + '…'.len_utf8());
        consoles.forget("page");
        assert!(consoles.lines("page").is_empty());
    }
}
