use super::*;
use crate::config::{
    Backing, Class, Huge, KernelDemotion, Listen, Percent, Period, Priors, Rate, Size, SwapPlace,
};
use std::time::Duration;

/// The example that users are shown.
const EXAMPLE: &str = r#"
[agent]
state_dir = "/var/lib/tiering"
dry_run = false
memory_limit = "512MiB"

[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "cxl"
nodes = [1]
[[tier]]
name = "nvme"
swap = { path = "/var/lib/tiering/nvme", size = "64GiB", write_limit = "500MB/s" }
[[tier]]
name = "qlc"
swap = { path = "/mnt/qlc/tiering", size = "512GiB", write_limit = "50MB/s", daily_writes = "1TB" }

[telemetry]
listen = "[::1]:9469"

[discover]
qemu = true
users = ["alice", "1001"]

[tracking]
events = 500_000
vm_events = 50_000

[policy]
demote_after = "90s"
free_target = "12.5%"
psi_limit = "0.5%"
slow_read = "20ms"
refault_limit = "1%"
cpu_limit = "20%"
kernel_demotion = "on"

[prefetch]
enabled = true
threshold = 0.5
tier0_threshold = 0.8

[[vm]]
match = { name = "db-*" }
priority = 90
class = "database"
tenant = "acme"
huge = "keep"
[[vm]]
match = { name = "fw-*" }
managed = false
[[vm]]
match = { name = "*" }
priority = 10
"#;

fn parse(text: &str) -> Config {
    Config::parse(text, "test.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn message(text: &str) -> String {
    Config::parse(text, "test.toml").expect_err("this text must be refused").to_string()
}

/// The message for `text` must start with the position and name all of `words`, on one line.
#[track_caller]
fn assert_refused(text: &str, position: &str, words: &[&str]) {
    let message = message(text);
    assert!(message.starts_with(&format!("test.toml:{position}: ")), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message}");
    }
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn an_empty_file_is_the_default_configuration() {
    let config = parse("");
    assert_eq!(config, Config::default());
    assert_eq!(config.tiers, [], "the ladder is proposed from what the host has");
    assert_eq!(parse("tier = []"), config);
    assert_eq!(config.agent.socket, Path::new("/run/tiering/tiering.sock"));
    assert_eq!(config.policy.demote_after, Period(Duration::from_secs(120)));
}

/// Those in the folder `examples`.
#[test]
fn each_example_can_be_used() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = files
        .map(|path| {
            let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
            assert!(config.tiers.len() > 1, "{}: there is something to be moved to", path.display());
            path.file_name().unwrap().to_str().unwrap().to_owned()
        })
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["cxl-host.toml", "libvirt-two-nvme.toml", "plain-host.toml", "proxmox.toml"]);
}

#[test]
fn the_example_is_read_as_written() {
    let config = parse(EXAMPLE);
    assert_eq!(config.tiers[1].backing, Backing::Nodes(vec![1]));
    let Backing::Swap(qlc) = &config.tiers[3].backing else { panic!("{:?}", config.tiers[3]) };
    assert!(matches!(qlc.place, SwapPlace::Folder { size: Size(bytes), .. } if bytes == 512 << 30));
    assert_eq!(qlc.write_limit, Some(Rate(50_000_000)));
    assert_eq!(qlc.daily_writes, Some(Size(1_000_000_000_000)));
    assert_eq!(config.agent.memory_limit, Some(Size(512 << 20)));
    assert_eq!(parse("").agent.memory_limit, None, "by the host's RAM");
    assert_eq!(config.discover.users, ["alice", "1001"]);
    assert_eq!(config.policy.demote_after, Period(Duration::from_secs(90)));
    assert_eq!(config.policy.free_target, Percent(12.5));
    assert_eq!(config.policy.slow_read, Period(Duration::from_millis(20)));
    assert_eq!(config.telemetry.listen, Some(Listen("[::1]:9469".parse().unwrap())));
    assert_eq!(parse("").telemetry.listen, None, "no port is opened unasked");
    assert_eq!(parse("").policy.slow_read, Period(Duration::from_millis(1)));
    assert_eq!(config.policy.refault_limit, Percent(1.0));
    assert_eq!(parse("").policy.refault_limit, Percent(0.2));
    assert_eq!(config.policy.cpu_limit, Percent(20.0));
    assert_eq!(parse("").policy.cpu_limit, Percent(5.0));
    assert_eq!(config.policy.kernel_demotion, KernelDemotion::On);
    assert_eq!(parse("").policy.kernel_demotion, KernelDemotion::Leave);
}

#[test]
fn what_is_shown_reads_back_as_the_same_configuration() {
    for config in [Config::default(), parse(EXAMPLE)] {
        assert_eq!(parse(&config.to_toml()), config, "{}", config.to_toml());
        assert_eq!(parse(&config.ladder_toml()).tiers, config.tiers, "{}", config.ladder_toml());
    }
}

#[test]
fn the_first_matching_rule_sets_a_vm() {
    let config = parse(EXAMPLE);
    let database = config.vm_settings("db-1");
    assert_eq!((database.priority, database.class), (Some(90), Some(Class::Database)));
    assert_eq!(database.tenant.as_deref(), Some("acme"));
    assert_eq!(database.huge, Huge::Keep);
    let firewall = config.vm_settings("fw-1");
    assert_eq!((firewall.priority, firewall.managed, firewall.huge), (None, false, Huge::Split));
    assert_eq!(config.vm_settings("web-1").priority, Some(10));
    let unnamed = Config::default().vm_settings("web-1");
    assert_eq!((unnamed.priority, unnamed.tenant, unnamed.managed), (None, None, true));
    assert_eq!(unnamed.huge, Huge::Split, "huge pages are split unless somebody says otherwise");
}

#[test]
fn unknown_keys_are_refused_with_those_that_exist() {
    assert_refused("[policy]\ndemote_aftr = \"2m\"", "2:1", &["demote_aftr", "demote_after", "psi_limit"]);
    assert_refused("[polcy]", "1:2", &["polcy", "policy", "prefetch"]);
    assert_refused("[[vm]]\nmatch = { nam = \"x\" }", "2:11", &["nam", "name"]);
    assert_refused("[[discover.process]]\nexe = \"/usr/bin/redis-server\"", "1:12", &["process", "qemu"]);
    assert_refused(
        "[[tier]]\nname = \"dram\"\nnodes = [0]\n[[tier]]\nname = \"nvme\"\nswap = { devise = \"/dev/sdb\" }",
        "6:10",
        &["devise", "device", "path"],
    );
}

#[test]
fn wrong_values_are_refused_with_what_is_allowed() {
    assert_refused("[policy]\n  demote_after = 120", "2:18", &["integer", "in quotes", "2m"]);
    assert_refused("[policy]\nfree_target = \"ten\"", "2:15", &["ten", "10%"]);
    for address in ["9469", "localhost:9469", "127.0.0.1", "127.0.0.1:0", ":9469"] {
        let text = format!("[telemetry]\nlisten = \"{address}\"");
        assert_refused(&text, "2:10", &[address, "127.0.0.1:9469"]);
    }
    assert_refused("[telemetry]\nlisten = 9469", "2:10", &["in quotes", "127.0.0.1:9469"]);
    assert_refused("[policy]\ncpu_limit = 5", "2:13", &["10%"]);
    assert_refused("[[vm]]\nmatch = { name = \"*\" }\nclass = \"databse\"", "3:9", &["databse", "database"]);
    assert_refused(
        "[[vm]]\nmatch = { name = \"*\" }\nhuge = \"kept\"",
        "3:8",
        &["kept", "`split`", "`keep`"],
    );
    assert_refused("[[vm]]\nmatch = { name = \"*\" }\nhuge = true", "3:8", &["string"]);
    assert_refused("[agent]\ndry_run = \"no\"", "2:11", &["boolean"]);
    assert_refused("[agent\n", "1:7", &[]);
}

#[test]
fn a_tier_has_exactly_one_backing() {
    assert_refused("[[tier]]\nname = \"dram\"", "1:1", &["dram", "nodes", "swap"]);
    let both = "[[tier]]\nname = \"dram\"\nnodes = [0]\nswap = { path = \"/s\", size = \"1GiB\" }";
    assert_refused(both, "1:1", &["dram", "both"]);
}

#[test]
fn the_ladder_starts_with_memory_and_its_tiers_differ() {
    let swap = |name: &str, path: &str, size: &str| {
        format!("[[tier]]\nname = \"{name}\"\nswap = {{ path = \"{path}\", size = \"{size}\" }}\n")
    };
    let node = |name: &str, node: u32| format!("[[tier]]\nname = \"{name}\"\nnodes = [{node}]\n");
    let dram = node("dram", 0);

    assert_refused(&swap("nvme", "/s", "1GiB"), "1:1", &["nvme", "first", "nodes"]);
    assert_refused(&format!("{dram}{}", node("dram", 1)), "5:8", &["two tiers", "dram"]);
    assert_refused(&format!("{dram}{}", node("cxl", 0)), "6:9", &["node 0", "twice"]);
    assert_refused(&format!("{dram}{}", node("CXL", 1)), "5:8", &["CXL", "a-z"]);
    assert_refused(&node("a-name-of-16-chr", 0), "2:8", &["1 to 15"]);
    assert_refused(&node("swap", 0), "2:8", &["swap", "choose another"]);
    assert_refused(&format!("{dram}{}", swap("nvme", "/s", "15MiB")), "6:30", &["15MiB", "16MiB"]);
    assert_refused(&format!("{dram}{}", swap("nvme", "s", "1GiB")), "6:17", &["absolute"]);
    let sunk = format!("{dram}{}{}", swap("nvme", "/s", "1GiB"), node("cxl", 1));
    assert_refused(&sunk, "9:9", &["cxl", "nvme", "above all swap tiers"]);
    let twins = format!("{dram}{}{}", swap("nvme", "/s", "1GiB"), swap("qlc", "/s", "1GiB"));
    assert_refused(&twins, "9:17", &["/s", "another tier"]);
    let nine: String = (0..9).map(|i| node(&format!("n{i}"), i)).collect();
    assert_refused(&nine, "25:1", &["9 tiers", "at most 8"]);
}

#[test]
fn numbers_out_of_range_are_refused_where_they_stand() {
    assert_refused("[policy]\ndemote_after = \"500ms\"", "2:16", &["at least", "1s"]);
    assert_refused("[agent]\nmemory_limit = \"1MiB\"", "2:16", &["memory_limit", "1MiB", "64MiB"]);
    assert_refused("[agent]\nmemory_limit = 512", "2:16", &["in quotes"]);
    assert_refused("[discover]\nusers = [\"alice\", \"b c\"]", "2:19", &["b c", "name or a number"]);
    assert_refused("[discover]\nusers = [\"\"]", "2:10", &["no user"]);
    assert_refused("[prefetch]\nthreshold = 1.5", "2:13", &["0 to 1", "1.5"]);
    assert_refused("[prefetch]\nthreshold = nan", "2:13", &["0 to 1"]);
    assert_refused("[tracking]\nvm_events = 10", "2:13", &["events a second", "1000", "10"]);
    assert_refused("[prefetch]\nthreshold = 0.7\ntier0_threshold = 0.6", "3:19", &["0.6", "0.7"]);
    // The key at fault stands on its default: the table is shown.
    assert_refused("# x\n[prefetch]\nthreshold = 0.9", "2:1", &["0.8", "0.9"]);
    assert_refused("[[vm]]\nmatch = { name = \"*\" }\npriority = 101", "3:12", &["0 to 100"]);
    assert_refused("[[vm]]\nmatch = { name = \"\" }", "2:18", &["empty"]);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/tiering.toml")).expect_err("there is no such file");
    assert!(error.to_string().starts_with("/nonexistent/tiering.toml: "), "{error}");
}

#[test]
fn what_a_class_changes_can_be_changed_key_by_key() {
    let config = parse("[class.database]\nidle_age = 3\n[class.other]\npriority = 20");
    let usual = Config::default().classes.of(Some(Class::Database));
    assert_eq!(config.classes.of(Some(Class::Database)), Priors { idle_age: 3.0, ..usual });
    assert_eq!(config.classes.of(Some(Class::Other)).priority, 20);
    assert_eq!(config.classes.of(Some(Class::Web)), Config::default().classes.of(Some(Class::Web)));
    assert_eq!(config.classes.of(None), Priors::NEUTRAL);
    assert_eq!(parse(&config.to_toml()), config);

    assert_refused("[class.databse]\nidle_age = 3", "1:8", &["databse", "database"]);
    assert_refused("[class.web]\nidle_ag = 3", "2:1", &["idle_ag", "idle_age"]);
    assert_refused("[class.web]\nidle_age = 0", "2:12", &["0.01 to 100", "not 0"]);
    assert_refused("[class.web]\nfirst_confidence = 2", "2:20", &["probability", "not 2"]);
    assert_refused("[class.web]\npriority = 101", "2:12", &["0 to 100"]);
}

const DRAM: &str = "[[tier]]\nname = \"dram\"\nnodes = [0]\n";

fn swap_tier(name: &str, swap: &str) -> String {
    format!("[[tier]]\nname = \"{name}\"\nswap = {{ {swap} }}\n")
}

#[test]
fn a_tier_on_a_device_has_its_size_and_stands_last() {
    let folder = swap_tier("nvme", r#"path = "/n", size = "1GiB""#);
    let device = swap_tier("qlc", r#"device = "/dev/disk/by-id/qlc", daily_writes = "1TB""#);
    let config = parse(&format!("{DRAM}{folder}{device}"));
    let Backing::Swap(swap) = &config.tiers[2].backing else { panic!("{:?}", config.tiers[2]) };
    let expected = SwapPlace::Device { path: "/dev/disk/by-id/qlc".into(), allow_unsafe: false };
    assert_eq!((&swap.place, swap.daily_writes), (&expected, Some(Size(1_000_000_000_000))));
    assert_eq!(parse(&config.to_toml()), config, "{}", config.to_toml());

    let allowed = swap_tier("qlc", r#"device = "/dev/loop0", allow_unsafe_device = true"#);
    let config = parse(&format!("{DRAM}{allowed}"));
    assert_eq!(parse(&config.to_toml()), config, "{}", config.to_toml());

    let reversed = format!("{DRAM}{device}{folder}");
    assert_refused(
        &reversed,
        "9:8",
        &["tier `nvme` is below tier `qlc`, which is a device", "put `qlc` last"],
    );
}

#[test]
fn keys_of_a_folder_and_of_a_device_do_not_go_together() {
    let told = |swap: &str| message(&format!("{DRAM}{}", swap_tier("qlc", swap)));
    for (swap, expected) in [
        (r#"path = "/n", size = "1GiB", device = "/dev/sdx""#, "both `path` and `device`"),
        (r#"write_limit = "50MB/s""#, "`swap` needs `path`"),
        (r#"device = "/dev/sdx", size = "1GiB""#, "taken as a whole"),
        (r#"path = "/n", size = "1GiB", allow_unsafe_device = true"#, "belongs to `device`"),
        (r#"path = "/n""#, "missing field `size`"),
        (r#"device = "sdx""#, "`device` of tier `qlc` must be absolute"),
        (r#"device = "/dev/sdx", label = "x""#, "unknown field `label`"),
    ] {
        let text = told(swap);
        assert!(text.contains(expected) && text.lines().count() == 1, "{text}");
    }
}
