//! Whether the lab goes on, is done, or went wrong. Pure: what was seen in, the verdict out.

use std::fmt;
use std::time::Duration;

/// What the kernel prints first when it gives up; oopses and soft lock-ups are panics in the lab.
const PANIC: &str = "Kernel panic";
/// For a panic to print its trace.
const TRACE_LIMIT: Duration = Duration::from_secs(3);

/// A lab that is alive writes once a second; one whose processor is busy, a little less often.
const LIFELESS_LIMIT: Duration = Duration::from_secs(40);

/// What one look at the lab showed.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The job's exit code, once there.
    pub code: Option<u8>,
    /// QEMU ended, before the exit code was looked for.
    pub ended: bool,
    pub console: &'a str,
    /// How long ago the console changed.
    pub quiet: Duration,
    /// How long ago the lab gave its last sign of life; none before the first.
    pub lifeless: Option<Duration>,
    pub stopped: bool,
    pub elapsed: Duration,
    pub limit: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    GoesOn,
    /// The job's exit code.
    Done(u8),
    Wrong(Wrong),
}

/// Why there will be no exit code.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// What the kernel said.
    Panic(String),
    Ended,
    /// For so long the lab gave no sign of life.
    Frozen(Duration),
    TimeUp(Duration),
    Interrupted,
}

impl std::error::Error for Wrong {}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(panic) => write!(f, "the lab's kernel gave up: {panic}"),
            Self::Ended => f.write_str(
                "the lab ended before its job did: it was switched off from within, or QEMU failed",
            ),
            Self::Frozen(lifeless) => write!(
                f,
                "the lab stands still: no sign of life for {} s (under emulation that happens: docs/lab.md)",
                lifeless.as_secs()
            ),
            Self::TimeUp(limit) => write!(
                f,
                "the lab is not done after {limit:?}: the job hangs or needs more time (`--timeout`)"
            ),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

pub fn verdict(seen: Seen<'_>) -> Verdict {
    if let Some(code) = seen.code {
        return Verdict::Done(code);
    }
    if seen.stopped {
        return Verdict::Wrong(Wrong::Interrupted);
    }
    if let Some(panic) =
        seen.console.lines().find_map(|line| line.find(PANIC).map(|at| line[at..].trim_end()))
    {
        let whole = seen.ended || seen.quiet > TRACE_LIMIT;
        return if whole { Verdict::Wrong(Wrong::Panic(panic.to_owned())) } else { Verdict::GoesOn };
    }
    match seen.limit {
        _ if seen.ended => Verdict::Wrong(Wrong::Ended),
        _ if seen.lifeless.is_some_and(|lifeless| lifeless > LIFELESS_LIMIT) => {
            Verdict::Wrong(Wrong::Frozen(LIFELESS_LIMIT))
        }
        Some(limit) if seen.elapsed > limit => Verdict::Wrong(Wrong::TimeUp(limit)),
        _ => Verdict::GoesOn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BOOTING: Seen<'_> = Seen {
        code: None,
        ended: false,
        console: "lab: booting\n",
        quiet: SECOND,
        lifeless: None,
        stopped: false,
        elapsed: SECOND,
        limit: Some(Duration::from_secs(600)),
    };
    const PANICKED: &str =
        "x\n[    2.1] Kernel panic - not syncing: softlockup: hung tasks\r\n[    2.2] Call Trace:\r\n";

    fn why(seen: Seen<'_>) -> String {
        match verdict(seen) {
            Verdict::Wrong(why) => why.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lab_that_boots_goes_on_and_an_exit_code_ends_it() {
        assert_eq!(verdict(BOOTING), Verdict::GoesOn);
        let done = Seen { code: Some(3), ended: true, console: PANICKED, stopped: true, ..BOOTING };
        assert_eq!(verdict(done), Verdict::Done(3));
    }

    #[test]
    fn a_panic_is_told_with_its_own_words_when_its_trace_is_out() {
        let panicked = Seen { console: PANICKED, ..BOOTING };
        assert_eq!(verdict(panicked), Verdict::GoesOn);
        let expected = "the lab's kernel gave up: Kernel panic - not syncing: softlockup: hung tasks";
        assert_eq!(why(Seen { ended: true, ..panicked }), expected);
        assert_eq!(why(Seen { quiet: 4 * SECOND, ..panicked }), expected);
    }

    #[test]
    fn an_early_end_a_hang_and_a_signal_are_told_apart() {
        assert!(why(Seen { ended: true, ..BOOTING }).contains("switched off from within"));
        assert!(why(Seen { elapsed: 601 * SECOND, ..BOOTING }).contains("not done after 600s"));
        assert_eq!(why(Seen { stopped: true, console: PANICKED, ..BOOTING }), "interrupted");
        let frozen = Seen { lifeless: Some(41 * SECOND), limit: None, ..BOOTING };
        assert!(why(frozen).contains("no sign of life for 40 s"));
        assert_eq!(verdict(Seen { lifeless: Some(30 * SECOND), ..BOOTING }), Verdict::GoesOn);
        let patient = Seen { elapsed: 9999 * SECOND, limit: None, ..BOOTING };
        assert_eq!(verdict(patient), Verdict::GoesOn);
    }
}
