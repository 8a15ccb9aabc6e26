//! A scenario: a test that carries itself into a lab.
//!
//! On the machine [`Scenario::run`] boots a lab and runs this very executable in it, with this one test; there the same
//! call does what the test is about and notes [`Results`]. Back on the machine the table is printed and kept, so that
//! `cargo xtask test` can show all of them at its end.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use tiering_testkit::kernel;
use tiering_testkit::lab::{Job, Lab, stood_still};
use tiering_testkit::results::Results;
use tiering_testkit::skip::{Skip, need_lab, skip_or_fail};

/// A lab that stands still has shown nothing about what is tested.
const TRIES: u32 = 3;
/// Set in the lab.
const IN_LAB: &str = "TIERING_IN_LAB";

/// The host that a scenario wants.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub kernel: &'static str,
    pub nodes: &'static str,
    pub nvme: &'static str,
    pub qlc: &'static str,
    /// Ends what hangs; emulation may be slow.
    pub limit: Duration,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            kernel: kernel::LINES[0],
            nodes: "dram:1G,cxl:1G",
            nvme: "1G",
            qlc: "2G@iops=2000",
            limit: Duration::from_secs(1100),
        }
    }
}

impl Scenario {
    /// Runs `body` in a lab, and fails where it does, or where one of its results is not as it should be. `test` is the
    /// name of the test that calls it: `module::function`.
    ///
    /// # Panics
    /// With what was wrong.
    pub fn run(self, test: &str, body: impl Fn(&mut Results) -> Result<()>) {
        if std::env::var_os(IN_LAB).is_some() {
            let mut results = Results::new(test);
            let ended = body(&mut results);
            results.save(&PathBuf::from(std::env::var_os("LAB_OUT").unwrap())).unwrap();
            ended.unwrap_or_else(|error| panic!("{error:#}"));
            return;
        }
        let Some(()) = skip_or_fail(need_lab().and_then(|()| self.need_kernel())) else { return };
        let began = Instant::now();
        let out = tempfile::tempdir().unwrap();
        let lab = Lab {
            kernel: kernel::of_line(self.kernel).unwrap(),
            nodes: self.nodes.parse().unwrap(),
            nvme: self.nvme.parse().unwrap(),
            qlc: self.qlc.parse().unwrap(),
            cpus: None,
            job: Job::Command(again_in_lab(test)),
            limit: Some(self.limit),
            out: out.path().to_owned(),
        };
        let mut ended = lab.run(&mut std::io::stdout(), &mut std::io::stderr(), &|| false);
        for _ in 1..TRIES {
            if !ended.as_ref().is_err_and(stood_still) {
                break;
            }
            println!("the lab stood still, which its emulation does now and then: once more from the start");
            ended = lab.run(&mut std::io::stdout(), &mut std::io::stderr(), &|| false);
        }
        let results = Results::load(out.path());
        if let Ok(results) = &results {
            println!("\n{results}\nin {} s, booting included", began.elapsed().as_secs());
            results.keep().unwrap();
        }
        assert_eq!(ended.unwrap(), 0, "the test failed in the lab: see above");
        let wrong = results.expect("no test of this name ran in the lab").wrong();
        assert!(wrong.is_empty(), "not as it should be: {}", wrong.join(", "));
    }

    fn need_kernel(&self) -> Result<(), Skip> {
        kernel::of_line(self.kernel).map(|_| ()).map_err(|error| Skip(format!("{error:#}")))
    }
}

/// This executable with this one test.
fn again_in_lab(test: &str) -> Vec<std::ffi::OsString> {
    let mut command = Command::new("env");
    command.arg(format!("{IN_LAB}=1")).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--include-ignored", "--nocapture"]);
    std::iter::once(command.get_program()).chain(command.get_args()).map(Into::into).collect()
}
