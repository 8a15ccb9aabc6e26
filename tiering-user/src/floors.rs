//! Holds the order of modules in [`crate`]'s documentation to be true: each imports only what stands before it, and
//! within a module no files import each other in a circle. Tests may import what they like, and the last module all of
//! them.

use std::collections::{BTreeMap, BTreeSet};
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

fn is_of_tests(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name == "tests.rs" || name.ends_with("_tests.rs") || name == "testing.rs"
}

/// What a file says that is neither a comment nor a test.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The first word.
fn word(path: &str) -> &str {
    path.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// The first words of a path, or of all that are in braces.
fn words(rest: &str) -> Vec<&str> {
    let names = rest.strip_prefix('{').and_then(|rest| rest.split('}').next());
    assert!(names.is_none_or(|names| !names.contains('{')), "an import with braces in braces: {rest:.80}");
    names.map_or_else(|| vec![word(rest)], |names| names.split(',').map(|name| word(name.trim())).collect())
}

/// What a module's own file imports of those below it, each name with where it comes from.
fn imported_from(file: &Path) -> BTreeMap<String, String> {
    let text = if file.exists() { code(file) } else { String::new() };
    let mut from = BTreeMap::new();
    for path in text.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        if let Some((module, names)) = path.split_once("::") {
            from.extend(words(names).into_iter().map(|name| (name.to_owned(), module.to_owned())));
        }
    }
    from
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
    for path in sources(&root).into_iter().filter(|path| !is_of_tests(path)) {
        let of = path.strip_prefix(&root).unwrap().iter().next().unwrap().to_str().unwrap();
        let Some(floor) = order.iter().position(|known| *known == of.trim_end_matches(".rs")) else {
            continue;
        };
        let text = code(&path);
        let in_braces = text.contains("use crate::{") && floor + 1 < order.len();
        assert!(!in_braces, "{}: one `use` for each module of the crate", path.display());
        let imports = text.split("crate::").skip(1).map(word);
        let above = imports.filter(|import| order[floor + 1..].contains(import));
        upwards.extend(above.map(|import| format!("{}: crate::{import}", path.display())));
    }
    assert_eq!(upwards, [""; 0]);
}

/// What the files of one folder, and the folders in it as a whole, import of each other.
fn imports(folder: &Path, of_crate: &str) -> BTreeMap<String, BTreeSet<String>> {
    let from = imported_from(&folder.join("mod.rs"));
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in sources(folder).into_iter().filter(|path| !is_of_tests(path)) {
        let inside = path.strip_prefix(folder).unwrap();
        let sibling = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if sibling == "mod" {
            continue;
        }
        // How often `super` leads from there to the folder.
        let is_mod = inside.ends_with("mod.rs");
        let up = "super::".repeat(inside.components().count() - usize::from(is_mod));
        let text = code(&path);
        let mut add = |rest: &str| {
            let names = words(rest).into_iter().map(|name| from.get(name).map_or(name, String::as_str));
            imports.entry(sibling.clone()).or_default().extend(names.map(str::to_owned));
        };
        for (at, _) in text.match_indices(&up) {
            let rest = &text[at + up.len()..];
            if !text[..at].ends_with("super::") && !rest.starts_with("super::") {
                add(rest);
            }
        }
        text.split(&format!("crate::{of_crate}::")).skip(1).for_each(&mut add);
        imports.entry(sibling).or_default();
    }
    let siblings: BTreeSet<String> = imports.keys().cloned().collect();
    for (sibling, imported) in &mut imports {
        imported.retain(|name| name != sibling && siblings.contains(name));
    }
    imports
}

#[test]
fn no_files_of_a_module_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders: BTreeSet<PathBuf> = sources(&root)
        .iter()
        .map(|path| path.parent().unwrap().to_owned())
        .filter(|path| *path != root)
        .collect();
    assert!(folders.len() > 20, "all of them are looked at");
    for folder in folders {
        let of_crate = folder.strip_prefix(&root).unwrap().to_str().unwrap().replace('/', "::");
        let mut left = imports(&folder, &of_crate);
        // Whatever imports nothing of what is left is no part of a circle.
        while let Some(done) =
            left.iter().find(|(_, imported)| imported.is_empty()).map(|(name, _)| name.clone())
        {
            left.remove(&done);
            for imported in left.values_mut() {
                imported.remove(&done);
            }
        }
        assert!(left.is_empty(), "{of_crate}: {left:?}");
    }
}
