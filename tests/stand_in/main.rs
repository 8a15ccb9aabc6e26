//! A process that the agent takes for a machine: see `tiering_tests::stand_in`. Started under the name of QEMU.

fn main() -> anyhow::Result<()> {
    tiering_tests::stand_in::run()
}
