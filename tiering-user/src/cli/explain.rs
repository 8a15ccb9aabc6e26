//! An explanation as text: the verdict, the page if one was asked about, the last steps.

use std::cmp::Ordering;

use super::savings::can_free;
use super::table::Table;
use super::units::{NONE, location, nanoseconds, or_none, size};
use crate::telemetry::explain::{DecisionInfo, Explanation, PageInfo};

pub fn explanation(answer: &Explanation) -> String {
    let mut table = Table::new(["VM", answer.name.as_str()]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    let reason = || or_none(answer.reason.clone());
    row(
        "movable",
        match (answer.movable, &answer.reason) {
            (true, None) => "yes".to_owned(),
            (true, Some(_)) => format!("between memory tiers only: {}", reason()),
            (false, _) => format!("no: {}", reason()),
        },
    );
    row("limited by", or_none(answer.limited_by.clone()));
    if let Some(gives) = &answer.gives {
        row("gives", gives.clone());
    }
    row("pages chosen by", answer.pages_chosen_by.clone());
    let huge = match answer.huge.as_str() {
        "keep" => format!(
            "kept (huge = \"keep\"): they hold {} of memory, which does not go to swap",
            size(answer.huge_kept_bytes)
        ),
        "split" => "split where they go to swap".to_owned(),
        _ => NONE.to_owned(),
    };
    row("huge pages", huge);
    row("can be freed", can_free(&answer.can_free));
    row("resting", answer.resting_ms.map_or("no".to_owned(), |ms| format!("for {} more", time(ms))));
    row("waiting", format!("{} pages", answer.waiting_pages));
    let before = &answer.known_before;
    row(
        "known before",
        match before.blocks + before.demoted_bytes + before.promoted_bytes {
            0 => NONE.to_owned(),
            _ => format!(
                "{} blocks; {} demoted, {} promoted by earlier agents",
                before.blocks,
                size(before.demoted_bytes),
                size(before.promoted_bytes)
            ),
        },
    );
    let seen = &answer.seen_by;
    let by = [
        (seen.page_fault, "by page_fault"),
        (seen.kvm_page_fault, "by kvm_page_fault"),
        (seen.rearming, "by re-arming"),
        (seen.soft_dirty, "by soft-dirty bits alone"),
        (seen.damon, "guessed from DAMON's regions"),
        (seen.sweeps, "by sweeps"),
    ];
    let by: Vec<_> =
        by.iter().filter(|(count, _)| *count > 0).map(|(count, by)| format!("{count} {by}")).collect();
    row("accesses seen", if by.is_empty() { NONE.to_owned() } else { by.join(", ") });
    let mut text = table.to_string();
    text.push('\n');
    let about = match &answer.page {
        Some(page) => {
            text += &self::page(page);
            text.push('\n');
            &page.decisions
        }
        None => &answer.decisions,
    };
    text + &decisions(about)
}

fn page(page: &PageInfo) -> String {
    let address = format!("{:#x}", page.hva);
    let mut table = Table::new(["PAGE", address.as_str()]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("in the guest", or_none(page.gpa.map(|gpa| format!("{gpa:#x}"))));
    row("in", page.tier.clone());
    row("frame or slot", or_none(page.frame_or_slot.map(location)));
    row("idle", idle(page));
    row(
        "heat",
        match page.heat.cmp(&page.frequency) {
            Ordering::Greater => format!("{}, {} before", page.heat, page.frequency),
            _ => page.heat.to_string(),
        },
    );
    row("back-off", page.backoff.to_string());
    let marks = [(page.staged, "staged"), (page.written, "written")];
    let marks: Vec<_> = marks.iter().filter(|(set, _)| *set).map(|(_, mark)| *mark).collect();
    row("state", if marks.is_empty() { NONE.to_owned() } else { marks.join(", ") });
    row("next", page.next.when.clone());
    table.to_string()
}

/// What is sure, and what may be.
fn idle(page: &PageInfo) -> String {
    match (page.idle_ms, page.surely_idle_ms) {
        (None, _) => NONE.to_owned(),
        (Some(0), _) => time(0),
        (Some(idle), Some(sure)) if sure >= idle => time(idle),
        (Some(idle), None | Some(0)) => {
            format!("{} at most: it is mapped, and may be in use unseen", time(idle))
        }
        (Some(idle), Some(sure)) => format!("{} to {}", time(sure), time(idle)),
    }
}

fn decisions(decisions: &[DecisionInfo]) -> String {
    if decisions.is_empty() {
        return "no step is remembered\n".to_owned();
    }
    let mut table = Table::new([">AGO", "STEP", ">PAGES", ">MOVED", "REASON", "LEFT ALONE", "PAGE THEN IN"]);
    for step in decisions {
        let action = match (step.action.as_str(), &step.to) {
            ("stage", Some(to)) => format!("stage in {to}"),
            (_, Some(to)) => format!("to {to}"),
            ("map_staged", None) => "map what was staged".to_owned(),
            ("drop_stage", None) => "drop stage".to_owned(),
            (other, None) => other.to_owned(),
        };
        let skipped: Vec<_> =
            step.skipped.iter().map(|(reason, pages)| format!("{pages}: {reason}")).collect();
        table.row([
            time(step.ago_ms),
            action,
            step.pages.to_string(),
            step.moved_pages.to_string(),
            step.reason.clone(),
            if skipped.is_empty() { NONE.to_owned() } else { skipped.join("; ") },
            or_none(step.page_in.clone()),
        ]);
    }
    table.to_string()
}

fn time(ms: u64) -> String {
    nanoseconds(ms.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::explain::NextMove;

    #[test]
    fn a_page_is_explained_with_what_comes_next_and_the_steps_that_meant_it() {
        let step = |reason: &str, to: Option<&str>, page_in: Option<&str>| DecisionInfo {
            ago_ms: 2500,
            action: if to.is_some() { "place" } else { "stage" }.to_owned(),
            to: to.map(str::to_owned),
            reason: reason.to_owned(),
            pages: 512,
            moved_pages: 500,
            huge_split_bytes: 0,
            skipped: [("no page there".to_owned(), 12)].into(),
            page_in: page_in.map(str::to_owned),
        };
        let mut answer = Explanation {
            name: "web-1".to_owned(),
            movable: true,
            resting_ms: Some(8000),
            decisions: vec![step("touched next, last time", None, None)],
            ..Explanation::default()
        };
        let text = explanation(&answer);
        assert!(text.contains("for 8.0 s more") && text.contains("touched next, last time"), "{text}");
        assert!(!text.contains("PAGE  "), "{text}");

        answer.page = Some(PageInfo {
            hva: 0x7f00,
            tier: "nvme".to_owned(),
            next: NextMove { when: "goes to qlc after 6 s more".to_owned(), ..NextMove::default() },
            decisions: vec![step("idle for 10 s or more", Some("nvme"), Some("nvme"))],
            ..PageInfo::default()
        });
        let text = explanation(&answer);
        for word in ["0x7f00", "goes to qlc after 6 s more", "to nvme", "idle for 10 s", "12: no page there"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!text.contains("touched next"), "only what meant the page: {text}");
    }

    #[test]
    fn it_is_told_that_huge_pages_are_kept_and_how_much_memory_that_holds() {
        let mut answer =
            Explanation { huge: "keep".to_owned(), huge_kept_bytes: 96 << 20, ..Explanation::default() };
        let text = explanation(&answer);
        assert!(text.contains("kept (huge = \"keep\"): they hold 96.0 MiB of memory"), "{text}");
        answer.huge = "split".to_owned();
        assert!(explanation(&answer).contains("split where they go to swap"));
    }

    #[test]
    fn a_machine_that_is_not_moved_says_why() {
        let answer = Explanation { reason: Some("locked memory".to_owned()), ..Explanation::default() };
        let text = explanation(&answer);
        assert!(text.contains("no: locked memory") && text.contains("no step is remembered"), "{text}");
    }
}
