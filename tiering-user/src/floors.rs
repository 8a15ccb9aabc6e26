//! Holds the order of modules in [`crate`]'s documentation to be true: each imports only what stands before it. Tests
//! may import what they like, and the last one all of them.

use std::fs;
use std::path::{Path, PathBuf};

const LIB: &str = include_str!("lib.rs");

/// The modules in their order.
fn order() -> Vec<&'static str> {
    let lines = LIB.lines().skip_while(|line| !line.contains('→')).take_while(|line| line.contains('→'));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn each_module_imports_only_what_stands_before_it() {
    let order = order();
    let declared = LIB.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut all: Vec<_> = declared.collect();
    all.sort_by_key(|module| order.iter().position(|known| known == module));
    assert_eq!(order, all, "all modules are in the list");

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut upwards = Vec::new();
    for path in sources(&root) {
        let module = path.strip_prefix(&root).unwrap().iter().next().unwrap().to_str().unwrap();
        let Some(floor) = order.iter().position(|known| *known == module.trim_end_matches(".rs")) else {
            continue;
        };
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        if name == "tests.rs" || name.ends_with("_tests.rs") || name == "testing.rs" {
            continue;
        }
        let in_braces = text.contains("use crate::{") && floor + 1 < order.len();
        assert!(!in_braces, "{}: one `use` for each module of the crate", path.display());
        let imports = text
            .split("crate::")
            .skip(1)
            .map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap_or_default());
        let above = imports.filter(|import| order[floor + 1..].contains(import));
        upwards.extend(above.map(|import| format!("{}: crate::{import}", path.display())));
    }
    assert_eq!(upwards, [""; 0]);
}
