//! The agent's configuration for the demo.

use super::guests::NAMES;
use std::path::Path;

/// The tenant of all guests of the demo, and of nothing else.
pub const TENANT: &str = "demo";

/// The tiers below memory, fastest first.
pub const SWAP_TIERS: [&str; 2] = ["nvme", "qlc"];

/// Tiers below `folder`; the demo's guests are one tenant's, and no other VM of this machine is touched.
pub fn toml(folder: &Path) -> String {
    let folder = folder.display();
    let [nvme, qlc] = SWAP_TIERS;
    let mut toml = format!(
        r#"[agent]
state_dir = "{folder}/state"

[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "{nvme}"
swap = {{ path = "{folder}/{nvme}", size = "1GiB" }}
[[tier]]
name = "{qlc}"
swap = {{ path = "{folder}/{qlc}", size = "2GiB" }}

[policy]
# A minute is short: pages go early, and the stalls of coming back do not hold the rest up.
demote_after = "1s"
psi_limit = "20%"
refault_limit = "100%"
# So does what watching two emulated guests at full speed costs.
cpu_limit = "50%"
"#
    );
    for name in NAMES {
        toml.push_str(&format!("\n[[vm]]\nmatch = {{ name = \"{name}\" }}\ntenant = \"{TENANT}\"\n"));
    }
    toml.push_str("\n[[vm]]\nmatch = { name = \"*\" }\nmanaged = false\n");
    toml
}
