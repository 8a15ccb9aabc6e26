//! What each command does: load the configuration, ask, print.
//!
//! In: the parsed arguments. Out: text or JSON on standard output. A reader that closes the pipe early
//! (`| head`) ends the command without a failure. Not here: how things look (`render`).

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::failure::{CONFIG, Failure, INTERNAL};
use super::{Cli, Command, ConfigCommand, VmCommand, explain, render, savings, similar, trace};
use crate::telemetry::RunOptions;
use crate::telemetry::client::Client;
use crate::tiers::{Proposal, propose_here};
use crate::{agent, host};

/// How long `tiering doctor` waits for an agent.
const AGENT_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn run(cli: &Cli) -> Result<(), Failure> {
    let (mut config, origin) = cli.load_config()?;
    let proposal = (config.tiers.is_empty() && needs_ladder(&cli.command)).then(|| propose_here(&config));
    if let Some(proposal) = &proposal {
        config.tiers.clone_from(&proposal.tiers);
    }
    let client = Client::new(config.agent.socket.clone());
    match &cli.command {
        Command::Run { dry_run, duration, report } => {
            // A --socket from the command line has not been checked yet.
            config.validate().map_err(|problem| Failure::new(CONFIG, problem.to_string()))?;
            if let Some(proposal) = &proposal {
                say_what_was_proposed(proposal);
            }
            let options = RunOptions {
                dry_run: *dry_run || config.agent.dry_run,
                duration: *duration,
                report: report.clone(),
            };
            Ok(agent::run(config, &options)?)
        }
        Command::Doctor(output) => {
            let mut checks = host::doctor(&config, proposal.as_ref());
            // One that does not answer must not keep its doctor waiting.
            let asked = async { tokio::time::timeout(AGENT_ANSWERS_WITHIN, client.status()).await };
            let status = wait_for(asked)?.ok().and_then(Result::ok);
            checks
                .extend(status.as_ref().and_then(|status| host::demotion(&config, &status.kernel_demotion)));
            checks.push(host::savings(&config, status.as_ref().map(|status| &status.savings), savings::host));
            print(output.json, &checks, |checks| render::doctor(checks, &config, proposal.is_some()))
        }
        Command::Status(output) => print(output.json, &ask(client.status())?, render::status),
        Command::Vm(VmCommand::List(output)) => {
            let status = ask(client.status())?;
            if output.json {
                return print_json(&status.vms);
            }
            print_text(&render::vms(&status))
        }
        Command::Vm(VmCommand::Show { vm, output }) => print(output.json, &ask(client.vm(vm))?, render::vm),
        Command::Map { vm, pages, output } => {
            print(output.json, &ask(client.map(vm, &pages.pages()))?, render::map)
        }
        Command::Explain { vm, page, output } => {
            print(output.json, &ask(client.explain(vm, page.address()))?, explain::explanation)
        }
        Command::Similar { vm, output } => {
            print(output.json, &ask(client.similar(vm.as_deref()))?, similar::table)
        }
        Command::Move { vm, to, range, output } => {
            let outcome = ask(client.move_pages(vm, to, range.hva.as_ref()))?;
            print(output.json, &outcome, |outcome| render::moved(outcome, to))
        }
        Command::Drain { tier, output } => print(output.json, &ask(client.drain(tier))?, render::drained),
        Command::Record { output, vm, duration } => ask(trace::record(&client, vm, output, *duration)),
        Command::Replay { trace: from, decisions, epochs, output } => print(
            output.json,
            &trace::replay(from, &config, decisions.as_deref(), epochs.as_deref())?,
            trace::table,
        ),
        Command::Config(ConfigCommand::Check) => print_text(&format!("{origin}: ok\n")),
        Command::Config(ConfigCommand::Show(output)) => {
            print(output.json, &config, crate::config::Config::to_toml)
        }
    }
}

/// Whether the command is about the tiers themselves: the others ask the agent, which has its own.
fn needs_ladder(command: &Command) -> bool {
    matches!(command, Command::Run { .. } | Command::Doctor(_) | Command::Config(ConfigCommand::Show(_)))
}

fn say_what_was_proposed(proposal: &Proposal) {
    let names: Vec<_> = proposal.tiers.iter().map(|tier| tier.name.as_str()).collect();
    tracing::info!(
        tiers = names.join(", "),
        "the configuration names no tiers: these are used (`tiering doctor` shows them)"
    );
    for what in &proposal.left_out {
        tracing::warn!("left out of the tiers: {what}");
    }
}

/// Waits for the agent's answer.
fn ask<T, E: Into<Failure>>(question: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    wait_for(question)?.map_err(Into::into)
}

fn wait_for<T>(question: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::new(INTERNAL, format!("no event loop ({error}): raise the open file limit"))
    })?;
    Ok(runtime.block_on(question))
}

fn print<T: Serialize>(json: bool, facts: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    if json { print_json(facts) } else { print_text(&text(facts)) }
}

fn print_json(facts: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(facts)
        .map_err(|error| Failure::new(INTERNAL, format!("the answer cannot be written as JSON: {error}")))?;
    print_text(&format!("{json}\n"))
}

fn print_text(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(INTERNAL, format!("standard output: {error}: check where it goes to")))
        }
        _ => Ok(()),
    }
}
