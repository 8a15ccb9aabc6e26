//! The live table: what the agent says about its VMs, redrawn in place on a terminal.
//!
//! In: the JSON of `tiering status`. Out: lines. Fields that are not there show as `-`.

use super::config::TENANT;
use serde_json::Value;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

/// A terminal is redrawn this often; a file or a log gets a table less often, since it keeps all of them.
const REDRAW: Duration = Duration::from_secs(2);
const REPEAT: Duration = Duration::from_secs(10);

pub struct Table {
    terminal: bool,
    last: Option<Instant>,
    /// Lines of the table that is on the terminal, right above the cursor.
    drawn: usize,
}

impl Table {
    pub fn new() -> Self {
        Self { terminal: stdout().is_terminal(), last: None, drawn: 0 }
    }

    /// It is time for the next one.
    pub fn due(&self) -> bool {
        let every = if self.terminal { REDRAW } else { REPEAT };
        self.last.is_none_or(|last| last.elapsed() >= every)
    }

    pub fn show(&mut self, status: &Value) {
        let table = render(status);
        if self.terminal && self.drawn > 0 {
            // Up to the first line of the last table, and clear from there.
            print!("\x1b[{}A\x1b[J", self.drawn);
        }
        println!("{table}");
        self.drawn = table.lines().count();
        self.last = Some(Instant::now());
    }

    /// A line that stays.
    pub fn message(&mut self, text: &str) {
        println!("{text}");
        self.drawn = 0;
    }
}

/// A row for each of the demo's VMs, and a line for the events.
pub fn render(status: &Value) -> String {
    let tiers: Vec<&str> = items(&status["tiers"]).filter_map(|tier| tier["name"].as_str()).collect();
    let mut header = vec!["VM", "RAM"];
    header.extend(&tiers);
    header.extend(["faults", "demoted", "promoted", "staged", "used"]);
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for vm in items(&status["vms"]).filter(|vm| vm["tenant"] == TENANT) {
        let mut row = vec![vm["name"].as_str().unwrap_or("-").to_owned(), mib(&vm["ram_bytes"])];
        row.extend(tiers.iter().map(|tier| mib(&vm["tier_bytes"][tier])));
        row.push(count(&vm["faults_total"]));
        row.push(mib(&vm["demoted_bytes_total"]));
        row.push(mib(&vm["promoted_bytes_total"]));
        row.push(count(&vm["prefetch"]["issued_pages"]));
        row.push(count(&vm["prefetch"]["used_pages"]));
        rows.push(row);
    }
    let mut lines = align(&rows);
    let events = &status["events"];
    lines.push(format!(
        "events: {} produced, {} consumed, {} dropped; staged and used are pages",
        count(&events["produced"]),
        count(&events["consumed"]),
        count(&events["dropped"])
    ));
    lines.join("\n")
}

/// The first column to the left, the others to the right, each as wide as its widest cell.
fn align(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect()
}

pub fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub fn mib(bytes: &Value) -> String {
    bytes.as_u64().map_or_else(|| "-".to_owned(), |bytes| format!("{}M", bytes >> 20))
}

pub fn count(number: &Value) -> String {
    number.as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::render;
    use serde_json::json;

    #[test]
    fn a_vm_is_a_row_with_a_column_for_each_tier() {
        let status = json!({
            "tiers": [{"name": "dram"}, {"name": "nvme"}],
            "vms": [{"name": "web-1", "tenant": "demo", "ram_bytes": 268_435_456_u64,
                     "tier_bytes": {"dram": 209_715_200_u64, "nvme": 58_720_256_u64}, "faults_total": 1234,
                     "demoted_bytes_total": 62_914_560_u64, "promoted_bytes_total": 4_194_304_u64,
                     "prefetch": {"issued_pages": 50, "used_pages": 40}}],
            "events": {"produced": 10, "consumed": 9, "dropped": 1},
        });
        assert_eq!(
            render(&status),
            "VM      RAM  dram  nvme  faults  demoted  promoted  staged  used\n\
             web-1  256M  200M   56M    1234      60M        4M      50    40\n\
             events: 10 produced, 9 consumed, 1 dropped; staged and used are pages"
        );
    }

    #[test]
    fn what_an_agent_does_not_say_is_a_dash() {
        let table = render(
            &json!({"vms": [{"name": "db-1", "tenant": "demo"}, {"name": "not-ours", "tenant": "default"}]}),
        );
        assert_eq!(table.lines().nth(1), Some("db-1    -       -        -         -       -     -"));
    }
}
