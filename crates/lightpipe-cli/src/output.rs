//! What people read on a terminal.

#![allow(clippy::print_stdout, clippy::print_stderr)] // This is the program's own output.

/// An error and what caused it, on stderr.
pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("lightpipe: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
}

/// A line on stdout.
pub(crate) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

/// A line on stderr: progress, hints.
pub(crate) fn note(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// Columns aligned, numbers to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: &[String]| {
        let mut out = String::new();
        for (index, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            if index == 0 { out.push_str(&format!("{cell}{pad}")) } else { out.push_str(&format!("  {pad}{cell}")) }
        }
        println!("{}", out.trim_end());
    };
    print(&header.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
    print(&widths.iter().map(|w| "-".repeat(*w)).collect::<Vec<_>>());
    for row in rows {
        print(row);
    }
}

/// Columns of text, aligned to the left. The last one is as wide as it likes.
pub(crate) fn text_table<const N: usize>(header: &[&str; N], rows: &[[&str; N]]) {
    let all = || std::iter::once(header).chain(rows);
    let widths: [usize; N] = std::array::from_fn(|at| all().map(|row| row[at].chars().count()).max().unwrap_or(0));
    for row in all() {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
