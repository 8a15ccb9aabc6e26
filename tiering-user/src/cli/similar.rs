//! How alike VMs are, as a table.

use super::table::Table;
use crate::telemetry::similar::{Similar, SimilarParts};

/// One line a pair.
pub fn table(similar: &Similar) -> String {
    if similar.pairs.is_empty() {
        return "nothing was compared: only VMs of one tenant are, and of content what has been to swap\n"
            .to_owned();
    }
    let mut table = Table::new([
        "FOLLOWER",
        "LEADER",
        ">SCORE",
        ">CONTENT",
        ">PLACED",
        ">FILES",
        ">BEHAVIOUR",
        ">LAGGED",
        ">STAGED",
        ">USED",
        ">WASTED",
        "WHY",
    ]);
    for pair in &similar.pairs {
        let SimilarParts { content, placed, files, behaviour, lagged } = pair.parts;
        let part = |part: Option<f64>| part.map_or_else(|| "-".to_owned(), |part| format!("{part:.2}"));
        table.row([
            pair.follower.clone(),
            pair.leader.clone(),
            format!("{:.2}", pair.score),
            part(content),
            part(placed),
            part(files),
            part(behaviour),
            part(lagged),
            pair.issued_pages.to_string(),
            pair.used_pages.to_string(),
            pair.wasted_pages.to_string(),
            pair.why.clone(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::similar::SimilarPair;

    #[test]
    fn what_cannot_be_told_is_no_number() {
        assert!(table(&Similar::default()).contains("only VMs of one tenant"));
        let parts = SimilarParts { content: Some(0.756), ..SimilarParts::default() };
        let pair = SimilarPair {
            follower: "a".into(),
            leader: "b".into(),
            score: 0.5,
            parts,
            used_pages: 7,
            why: "used".into(),
            ..SimilarPair::default()
        };
        let text = table(&Similar { pairs: vec![pair] });
        let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["a", "b", "0.50", "0.76", "-", "-", "-", "-", "0", "7", "0", "used"]);
    }
}
