//! The demo's three guests, and what became of each.

use anyhow::Result;
use tiering_testkit::guest::Guest;
use tiering_testkit::pattern::{Access, GuestResult, Pattern};

/// Their names, as the agent sees them.
pub const NAMES: [&str; 3] = ["web-1", "web-2", "db-1"];

/// A guest, and how it ended: with a result, or otherwise.
pub struct Player {
    pub guest: Guest,
    pub result: Option<GuestResult>,
    /// Why there is no result.
    pub death: Option<String>,
}

pub struct Guests(Vec<Player>);

fn pattern(name: &str) -> Pattern {
    match name {
        "web-1" => Pattern { seed: 11, ..Pattern::default() },
        "web-2" => Pattern {
            seed: 12,
            access: Access::HotAndLoop { hot_mib: 16, loop_mib: 48, loop_every_ms: 15_000 },
            ..Pattern::default()
        },
        // Writes more and has a larger working set.
        _ => Pattern {
            seed: 21,
            access: Access::HotAndLoop { hot_mib: 32, loop_mib: 64, loop_every_ms: 20_000 },
            write_one_in: 3,
            ..Pattern::default()
        },
    }
}

impl Guests {
    /// Starts all; their pids are kept for the look at what is left behind.
    pub fn start(pids: &mut Vec<u32>) -> Result<Self> {
        let mut players = Vec::new();
        for name in NAMES {
            let guest = Guest::builder(name).memory_mib(256).pattern(pattern(name)).start()?;
            pids.push(guest.pid());
            players.push(Player { guest, result: None, death: None });
        }
        Ok(Self(players))
    }

    /// All have filled their memory. A guest that does not get that far is an error.
    pub fn ready(&mut self) -> Result<bool> {
        let mut all = true;
        for player in &mut self.0 {
            all &= player.guest.is_ready()?;
        }
        Ok(all)
    }

    /// Takes results in, and tells which guests have died since the last look.
    pub fn look(&mut self) -> Vec<String> {
        let mut deaths = Vec::new();
        for player in self.0.iter_mut().filter(|player| !player.ended()) {
            match player.guest.result() {
                Ok(result) => player.result = result,
                Err(error) => {
                    let death = format!("{error:#}");
                    deaths.push(death.clone());
                    player.death = Some(death);
                }
            }
        }
        deaths
    }

    pub fn send_finish(&mut self) {
        for player in self.0.iter_mut().filter(|player| !player.ended()) {
            if let Err(error) = player.guest.send_finish() {
                player.death = Some(format!("{error:#}"));
            }
        }
    }

    /// Each has a result or is dead.
    pub fn finished(&self) -> bool {
        self.0.iter().all(Player::ended)
    }

    /// Each has a result, and every page was right.
    pub fn all_well(&self) -> bool {
        self.0.iter().all(|player| player.result.as_ref().is_some_and(|result| result.checksum_ok))
    }

    pub fn poweroff(&mut self) {
        for player in &mut self.0 {
            if !player.ended() {
                player.death =
                    Some(format!("guest {} did not verify its memory in time", player.guest.name()));
            }
            if player.result.is_none() {
                player.guest.kill();
            } else if let Err(error) = player.guest.poweroff() {
                eprintln!("{error:#}");
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Player> {
        self.0.iter()
    }
}

impl Player {
    fn ended(&self) -> bool {
        self.result.is_some() || self.death.is_some()
    }
}
