//! Runs a program: its server, its data, its client again and again.
//!
//! In: the recipe, commands of the console. Out: what the client did, on the console. A line that fails ends the guest,
//! with the end of what it said.

use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tiering_testkit::lines::tail;
use tiering_testkit::pattern::{READY, RESULT};
use tiering_testkit::program::{PROGRESS, Program, ProgramResult, Progress, Recipe};

/// What the server says; the console is too slow for it.
const SERVER_LOG: &str = "/var/log/server.log";
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
const END_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Lines of progress are not closer than this.
const LEAST_PHASE: Duration = Duration::from_secs(1);
const IDLE_PAUSE: Duration = Duration::from_secs(3600);
/// Lines of what failed.
const TAIL: usize = 10;

/// Until it is told to switch off.
pub fn run(program: Program, commands: &Receiver<String>) -> Result<()> {
    sys::loopback_up()?;
    let recipe = Recipe::of(program);
    for (path, content) in recipe.files() {
        write(Path::new(&path), &content)?;
    }
    let mut server = recipe.server.as_deref().map(start).transpose()?;
    wait_for_answer(&recipe.answers, server.as_mut())?;
    shell(&recipe.fill)?;
    println!("{READY}");

    let mut client = Client::new(&recipe, program);
    loop {
        let pause = client.step()?;
        match commands.recv_timeout(pause) {
            Ok(command) if command == "go" => client.go(),
            Ok(command) if command == "ready" => println!("{READY}"),
            Ok(command) if command == "poweroff" => return Ok(()),
            Ok(command) if command == "finish" => break,
            Ok(command) => println!("tg: unknown command {command}"),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
    client.tell()?;
    let data = shell(&recipe.check);
    if let Err(error) = &data {
        println!("tg: {error:#}");
    }
    let ended_well = server.map_or(Ok(true), end)?;
    let result = ProgramResult {
        data_ok: data.is_ok(),
        ended_well,
        rounds: client.rounds,
        operations: client.operations,
    };
    println!("{RESULT}{}", serde_json::to_string(&result)?);
    while commands.recv().is_ok_and(|command| command != "poweroff") {}
    Ok(())
}

/// The client's rounds.
struct Client<'a> {
    recipe: &'a Recipe,
    program: Program,
    /// When the next round is due; none before it is asked for.
    due: Option<Duration>,
    rounds: u64,
    operations: u64,
    told: u64,
    /// What was not told yet.
    phase: Option<Progress>,
}

impl<'a> Client<'a> {
    fn new(recipe: &'a Recipe, program: Program) -> Self {
        let due = (!program.rounds_on_command).then(sys::now);
        Self { recipe, program, due, rounds: 0, operations: 0, told: 0, phase: None }
    }

    /// The next round is due now.
    fn go(&mut self) {
        self.due = Some(sys::now());
    }

    /// Does a round if one is due; how long nothing has to be done then.
    fn step(&mut self) -> Result<Duration> {
        let begin = sys::now();
        let Some(due) = self.due else { return Ok(IDLE_PAUSE) };
        if begin < due {
            return Ok(due - begin);
        }
        let Some(line) = self.recipe.round(self.rounds) else { return Ok(IDLE_PAUSE) };
        let output = shell(&line)?;
        let operations = self.recipe.operations(&output).filter(|operations| *operations > 0);
        let operations =
            operations.with_context(|| format!("`{line}` did nothing:\n{}", tail(&output, TAIL)))?;
        self.rounds += 1;
        self.operations += operations;

        let end = sys::now();
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (number, name) = (self.told + 1, self.program.kind.name().to_owned());
        let phase = self.phase.get_or_insert(Progress {
            number,
            name,
            start_ns: ns(begin),
            end_ns: 0,
            rounds: 0,
            operations: 0,
        });
        phase.end_ns = ns(end);
        phase.rounds += 1;
        phase.operations += operations;
        if self.program.rounds_on_command {
            self.due = None;
            return self.tell().map(|()| IDLE_PAUSE);
        }
        if phase.end_ns - phase.start_ns >= ns(LEAST_PHASE) {
            self.tell()?;
        }
        // A round that took longer than its time is not caught up with.
        let due = (begin + Duration::from_millis(self.recipe.round_every_ms())).max(end);
        self.due = Some(due);
        Ok(due - end)
    }

    fn tell(&mut self) -> Result<()> {
        if let Some(phase) = self.phase.take() {
            self.told = phase.number;
            println!("{PROGRESS}{}", serde_json::to_string(&phase)?);
        }
        Ok(())
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    std::fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

fn command(line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]).current_dir("/srv").stdin(Stdio::null()).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs([("HOME", "/root"), ("LANG", "C.UTF-8")]);
    command
}

/// What a line says that has to succeed.
fn shell(line: &str) -> Result<String> {
    if line.is_empty() {
        return Ok(String::new());
    }
    let output = command(line).output().with_context(|| format!("running `{line}`"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let all = said + &String::from_utf8_lossy(&output.stderr);
        bail!("`{line}`: {}:\n{}", output.status, tail(&all, TAIL));
    }
    Ok(said)
}

fn start(line: &str) -> Result<Child> {
    let log = std::fs::File::create(SERVER_LOG).with_context(|| format!("creating {SERVER_LOG}"))?;
    let mut command = command(line);
    command.stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("starting `{line}`"))
}

fn wait_for_answer(line: &str, mut server: Option<&mut Child>) -> Result<()> {
    let began = sys::now();
    loop {
        let Err(error) = shell(line) else { return Ok(()) };
        let ended = server.as_mut().map_or(Ok(None), |server| server.try_wait())?;
        let log = || tail(&std::fs::read_to_string(SERVER_LOG).unwrap_or_default(), TAIL);
        if let Some(status) = ended {
            bail!("the server ended: {status}:\n{}", log());
        }
        ensure!(sys::now() - began < ANSWER_LIMIT, "no answer: {error:#}; the server says:\n{}", log());
        std::thread::sleep(POLL);
    }
}

/// Whether the server ends well when it is asked to.
fn end(mut server: Child) -> Result<bool> {
    kill(Pid::from_raw(i32::try_from(server.id())?), Signal::SIGTERM).context("ending the server")?;
    let began = sys::now();
    while sys::now() - began < END_LIMIT {
        if let Some(status) = server.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(POLL);
    }
    Ok(false)
}
