//! A process that the agent takes for a machine: see `tiering_testkit::stand_in`. Started under the name of QEMU.

fn main() -> anyhow::Result<()> {
    tiering_testkit::stand_in::run()
}
