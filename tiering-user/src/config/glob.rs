//! Shell-like patterns for VM names: `*` stands for any run of characters, `?` for one; all else for itself.
//!
//! In: a pattern and a name. Out: whether the whole name matches. Not here: `[a-z]`, `{a,b}`, escapes.

use serde::{Deserialize, Serialize};

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Glob(pub String);

impl Glob {
    /// Whether the pattern covers all of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let name: Vec<char> = name.chars().collect();
        let (mut p, mut n) = (0, 0);
        // After the last `*` seen, and the first name character that it does not swallow yet. Going back to
        // the last star alone is enough, so the time is at most pattern times name, whatever the pattern.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some('*') => {
                    p += 1;
                    retry = Some((p, n));
                }
                Some(&c) if c == '?' || c == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => {
                    let Some((after_star, swallowed)) = retry else { return false };
                    p = after_star;
                    n = swallowed + 1;
                    retry = Some((p, n));
                }
            }
        }
        pattern[p..].iter().all(|&c| c == '*')
    }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn stars_and_question_marks_cover_whole_names() {
        let cases = [
            ("db-*", "db-1", true),
            ("db-*", "db-", true),
            ("db-*", "mydb-1", false),
            ("*-db", "acme-db", true),
            ("*-db", "acme-db-2", false),
            ("web-?", "web-1", true),
            ("web-?", "web-10", false),
            ("web-?", "web-ä", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("prod/*", "prod/db-1", true),
            ("[ab]", "a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Glob(pattern.to_owned()).matches(name), expected, "{pattern:?} on {name:?}");
        }
    }
}
