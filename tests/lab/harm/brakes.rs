//! Brakes judge each VM by its own control group, and spare nobody's room.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use tiering_testkit::agent::Agent;
use tiering_testkit::results::Results;

use crate::host::{Host, Memcg, drain_and_end, known_vm, number, shell, wait_for};
use crate::scenario::Scenario;
use crate::still::Still;

const MIB: u64 = 1 << 20;
/// Larger than what its reader may keep of it.
const FILE: &str = "/run/tiers/nvme/read-again-and-again";
/// What its group has for that.
const ROOM: u64 = 12 * MIB;
/// More than what goes first.
const FAR_DOWN: u64 = 4 * MIB;

/// One memory node: pages go from there to swap.
fn scenario() -> Scenario {
    Scenario { nodes: "dram:2G", ..Scenario::default() }
}

fn demoted(agent: &Agent, still: &Still) -> Result<u64> {
    Ok(number(&known_vm(agent, &still.name)?["demoted_bytes_total"]))
}

fn limited_by(agent: &Agent, still: &Still) -> Result<String> {
    Ok(known_vm(agent, &still.name)?["limited_by"].as_str().unwrap_or_default().to_owned())
}

/// A process that reads a file again and again, in the group of a VM that has no room for it. Ended when dropped.
struct Reader(Child);

impl Reader {
    fn beside(group: &Memcg) -> Result<Self> {
        // Of the group page cache gives way, and the VM stays in memory: what goes down is the agent's doing.
        shell("echo 0 > /proc/sys/vm/swappiness")?;
        // Page cache is charged to whoever was the first to touch it.
        let script = format!(
            "sleep 3; head -c 24M /dev/zero > {FILE}; sync {FILE}; while :; do cat {FILE} > /dev/null; done"
        );
        let reader = Self(Command::new("sh").args(["-c", &script]).spawn()?);
        group.add(reader.0.id())?;
        group.set("memory.high", group.bytes("memory.current")? + ROOM)?;
        Ok(reader)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two VMs that go down as soon as they may: a group with a promise keeps all of them until then.
fn start_both(agent: &Agent) -> Result<[(Still, Memcg); 2]> {
    let promise = [("memory.min", 1024 * MIB)];
    Ok([Still::in_group(agent, "calm", &promise)?, Still::in_group(agent, "stalls", &promise)?])
}

fn stalls(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let config = host.config("1s").replace("psi_limit = \"100%\"\n", "");
    let agent = Agent::start(&config, &[])?;
    let [(calm, calm_group), (stalls, stalls_group)] = start_both(&agent)?;
    // What they are like by themselves.
    std::thread::sleep(Duration::from_secs(30));
    let reader = Reader::beside(&stalls_group)?;
    let why = wait_for("its brake", || {
        Ok(Some(limited_by(&agent, &stalls)?).filter(|why| why.contains("waited for memory")))
    })?;
    results.check("a VM whose group stalls: held back by", why, "waited for memory", true);
    for group in [&calm_group, &stalls_group] {
        group.set("memory.min", 0)?;
    }
    let went = wait_for("the other VM to go down", || {
        Ok(Some(demoted(&agent, &calm)?).filter(|bytes| *bytes >= FAR_DOWN))
    });
    let held_back_by = limited_by(&agent, &calm)?;
    let went = went.with_context(|| format!("held back by: {held_back_by}"))?;
    results.check("the VM beside it: MiB demoted", went / MIB, ">= 4", true);
    let went = demoted(&agent, &stalls)?;
    results.check("the VM whose group stalls: KiB demoted meanwhile", went >> 10, "0", went == 0);
    let host_stalls = shell("cat /proc/pressure/memory")?;
    results.note("the host's stalls", host_stalls.lines().next().unwrap_or_default());
    let ended = agent.interrupt()?;
    results.check("agent's exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));

    // Where its room is needed it goes, whatever it waits for.
    let agent = Agent::start(&config.replace("[policy]", "[policy]\nfree_target = \"99%\""), &[])?;
    let went = wait_for("a VM over its share to go down", || {
        Ok(Some(demoted(&agent, &stalls)?).filter(|bytes| *bytes >= FAR_DOWN))
    })?;
    results.check("room is short: MiB demoted of the VM whose group stalls", went / MIB, ">= 4", true);
    drop(reader);
    shell(&format!("rm {FILE}"))?;
    stalls_group.set("memory.high", "max")?;
    for still in [&calm, &stalls] {
        still.check_content(results)?;
    }
    drop((calm, stalls));
    drain_and_end(results, agent, &host)
}

#[test]
#[ignore = "long: an emulated host in which memory goes idle and comes back"]
fn a_vm_whose_own_group_stalls_is_held_back_alone_and_not_where_its_room_is_needed() {
    scenario().run(
        "harm::brakes::a_vm_whose_own_group_stalls_is_held_back_alone_and_not_where_its_room_is_needed",
        stalls,
    );
}
