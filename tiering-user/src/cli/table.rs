//! Aligned tables of plain text.
//!
//! In: a header and rows. Out: lines, columns two spaces apart; a column is right-aligned if its header starts
//! with `>`. Control characters, which a VM's name can bring, are replaced. Not here: colours, line breaking.

use std::fmt;

/// A table that grows by rows.
pub struct Table {
    right_aligned: Vec<bool>,
    /// The header is the first row.
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        let header: Vec<&str> = header.into_iter().collect();
        Self {
            right_aligned: header.iter().map(|name| name.starts_with('>')).collect(),
            rows: vec![header.iter().map(|name| name.trim_start_matches('>').to_owned()).collect()],
        }
    }

    /// Appends a row; it has as many cells as the header.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }
}

/// The text without characters that steer a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> =
            (0..self.right_aligned.len()).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right_aligned) {
                if *right {
                    line += &format!("{cell:>width$}  ");
                } else {
                    line += &format!("{cell:<width$}  ");
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let mut table = Table::new(["NAME", ">PID", "STATE"]);
        table.row(["web-1".to_owned(), "7".to_owned(), "movable".to_owned()]);
        table.row(["db".to_owned(), "1234".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "NAME    PID  STATE\nweb-1     7  movable\ndb     1234\n");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let mut table = Table::new(["NAME"]);
        table.row(["a\x1b[2J\nb".to_owned()]);
        assert_eq!(table.to_string(), "NAME\na?[2J?b\n");
    }
}
