//! The agent's configuration for the demo.

use super::guests::NAMES;
use std::path::Path;

/// The tenant of all guests of the demo, and of nothing else.
pub const TENANT: &str = "demo";

/// Tiers below `folder`; the demo's guests are one tenant's, and no other VM of this machine is touched.
pub fn toml(folder: &Path) -> String {
    let folder = folder.display();
    let mut toml = format!(
        r#"[agent]
state_dir = "{folder}/state"

[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "nvme"
swap = {{ path = "{folder}/nvme", size = "1GiB" }}
[[tier]]
name = "qlc"
swap = {{ path = "{folder}/qlc", size = "2GiB" }}

[policy]
demote_after = "5s"
"#
    );
    for name in NAMES {
        toml.push_str(&format!("\n[[vm]]\nmatch = {{ name = \"{name}\" }}\ntenant = \"{TENANT}\"\n"));
    }
    toml.push_str("\n[[vm]]\nmatch = { name = \"*\" }\nmanaged = false\n");
    toml
}
