//! A pattern as words of the kernel command line, `tg.FIELD=VALUE`, and back.
//!
//! In: a pattern, or a command line with words of others. Out: the other. What is missing keeps its default; what is
//! wrong is an error that names the word.

use super::{Access, Pattern};
use crate::words::Words;
use anyhow::{Result, bail};

impl Pattern {
    /// The words for the kernel command line.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        let Self { seed, mem_mib, write_one_in, touches_per_s, round_touches, rounds_on_command, .. } = self;
        let mut line = format!(
            "tg.access={} tg.seed={seed} tg.mem_mib={mem_mib} tg.write_one_in={write_one_in} \
             tg.touches_per_s={touches_per_s} tg.round_touches={round_touches} tg.rounds_on_command={}",
            self.access.name(),
            u8::from(*rounds_on_command)
        );
        if let Some(image_seed) = self.image_seed {
            line += &format!(" tg.image_seed={image_seed}");
        }
        if self.on_disk {
            line += " tg.on_disk=1";
        }
        if self.reorder {
            line += " tg.reorder=1";
        }
        line += &match self.access {
            Access::HotAndLoop { hot_mib, loop_mib, loop_every_ms } => {
                format!(" tg.hot_mib={hot_mib} tg.loop_mib={loop_mib} tg.loop_every_ms={loop_every_ms}")
            }
            Access::Zipf { set_mib, skew_percent } => {
                format!(" tg.set_mib={set_mib} tg.skew_percent={skew_percent}")
            }
            Access::Uniform { set_mib } | Access::Sequential { set_mib } => format!(" tg.set_mib={set_mib}"),
            Access::Stride { set_mib, stride_pages } => {
                format!(" tg.set_mib={set_mib} tg.stride_pages={stride_pages}")
            }
            Access::PhaseChange { part_mib, every_touches } => {
                format!(" tg.part_mib={part_mib} tg.every_touches={every_touches}")
            }
            Access::Periodic { set_mib, every_ms } => format!(" tg.set_mib={set_mib} tg.every_ms={every_ms}"),
            Access::Ages { hot_mib, warm_mib, tail_mib, warm_ppm, tail_ppm } => format!(
                " tg.hot_mib={hot_mib} tg.warm_mib={warm_mib} tg.tail_mib={tail_mib} \
                 tg.warm_ppm={warm_ppm} tg.tail_ppm={tail_ppm}"
            ),
            Access::Idle => String::new(),
            Access::Follow { set_mib, order_seed, overlap_percent } => {
                format!(
                    " tg.set_mib={set_mib} tg.order_seed={order_seed} tg.overlap_percent={overlap_percent}"
                )
            }
        };
        line
    }

    /// Reads the `tg.` words of a kernel command line; fields that are not there keep their default. A set is then all
    /// memory, the set of followers half of it.
    ///
    /// # Errors
    /// A `tg.` word that is unknown or not one of this access, a value that is no number, or what [`Pattern::check`]
    /// finds.
    pub fn from_cmdline(cmdline: &str) -> Result<Self> {
        let mut words = Words::read(cmdline)?;
        let default = Self::default();
        let Access::HotAndLoop { hot_mib, loop_mib, loop_every_ms } = default.access else {
            bail!("the default pattern is not hot_and_loop");
        };
        let mem_mib = words.number("mem_mib", default.mem_mib)?;
        let name = words.take("access").unwrap_or(default.access.name());
        let access = match name {
            "hot_and_loop" => Access::HotAndLoop {
                hot_mib: words.number("hot_mib", hot_mib)?,
                loop_mib: words.number("loop_mib", loop_mib)?,
                loop_every_ms: words.number("loop_every_ms", loop_every_ms)?,
            },
            "zipf" => Access::Zipf {
                set_mib: words.number("set_mib", mem_mib)?,
                skew_percent: words.number("skew_percent", 100)?,
            },
            "uniform" => Access::Uniform { set_mib: words.number("set_mib", mem_mib)? },
            "sequential" => Access::Sequential { set_mib: words.number("set_mib", mem_mib)? },
            "stride" => Access::Stride {
                set_mib: words.number("set_mib", mem_mib)?,
                stride_pages: words.number("stride_pages", 16)?,
            },
            "phase_change" => Access::PhaseChange {
                part_mib: words.number("part_mib", mem_mib / 4)?,
                every_touches: words.number("every_touches", 10_000)?,
            },
            "periodic" => Access::Periodic {
                set_mib: words.number("set_mib", mem_mib)?,
                every_ms: words.number("every_ms", 10_000)?,
            },
            "ages" => Access::Ages {
                hot_mib: words.number("hot_mib", mem_mib / 16)?,
                warm_mib: words.number("warm_mib", mem_mib / 8)?,
                tail_mib: words.number("tail_mib", mem_mib / 4)?,
                warm_ppm: words.number("warm_ppm", 50_000)?,
                tail_ppm: words.number("tail_ppm", 300)?,
            },
            "idle" => Access::Idle,
            "follow" => Access::Follow {
                set_mib: words.number("set_mib", mem_mib / 2)?,
                order_seed: words.number("order_seed", 1)?,
                overlap_percent: words.number("overlap_percent", 100)?,
            },
            _ => bail!("tg.access={name} is unknown"),
        };
        let image = words.has("image_seed");
        let pattern = Self {
            seed: words.number("seed", default.seed)?,
            mem_mib,
            write_one_in: words.number("write_one_in", default.write_one_in)?,
            touches_per_s: words.number("touches_per_s", default.touches_per_s)?,
            round_touches: words.number("round_touches", default.round_touches)?,
            rounds_on_command: words.flag("rounds_on_command")?,
            image_seed: image.then(|| words.number("image_seed", 0)).transpose()?,
            on_disk: words.flag("on_disk")?,
            reorder: words.flag("reorder")?,
            access,
        };
        words.end(&format!("tg.access={name}"))?;
        pattern.check()?;
        Ok(pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_survives_the_command_line() {
        let accesses = [
            Access::HotAndLoop { hot_mib: 4, loop_mib: 60, loop_every_ms: 500 },
            Access::Zipf { set_mib: 32, skew_percent: 99 },
            Access::Uniform { set_mib: 31 },
            Access::Sequential { set_mib: 30 },
            Access::Stride { set_mib: 29, stride_pages: 3 },
            Access::PhaseChange { part_mib: 8, every_touches: 77 },
            Access::Periodic { set_mib: 28, every_ms: 1234 },
            Access::Ages { hot_mib: 4, warm_mib: 9, tail_mib: 20, warm_ppm: 301, tail_ppm: 3 },
            Access::Idle,
            Access::Follow { set_mib: 27, order_seed: 5, overlap_percent: 90 },
        ];
        for access in accesses {
            let plain = Pattern { mem_mib: 64, access, ..Pattern::default() };
            let paced = match access {
                Access::HotAndLoop { .. } => 0,
                _ => 300,
            };
            let set = Pattern {
                seed: 99,
                write_one_in: 1,
                touches_per_s: paced,
                round_touches: 12,
                rounds_on_command: true,
                ..plain.clone()
            };
            let image = plain.clone().on_image(64, 13);
            let disk = plain.clone().on_disk(64, 13);
            for pattern in [plain, set, image, disk] {
                let cmdline = format!("quiet console=ttyS0 {} panic=-1", pattern.to_cmdline());
                assert_eq!(Pattern::from_cmdline(&cmdline).unwrap(), pattern);
            }
        }
    }

    #[test]
    fn other_words_are_none_of_ours() {
        assert_eq!(Pattern::from_cmdline("quiet seed=1 root=/dev/vda").unwrap(), Pattern::default());
    }

    #[test]
    fn a_set_that_is_not_told_is_all_memory() {
        let pattern = Pattern::from_cmdline("tg.access=uniform tg.mem_mib=9").unwrap();
        assert_eq!(pattern.access, Access::Uniform { set_mib: 9 });
    }

    #[test]
    fn mistakes_are_named() {
        for (cmdline, named) in [
            ("tg.sed=1", "tg.sed is unknown"),
            ("tg.seed", "tg.seed has no value"),
            ("tg.mem_mib=16M", "tg.mem_mib=16M: not a number"),
            ("tg.mem_mib=0", "tg.mem_mib is 0"),
            ("tg.mem_mib=99999999999", "more than a TiB"),
            ("tg.mem_mib=8 tg.hot_mib=8 tg.loop_mib=1", "larger than the memory"),
            ("tg.touches_per_s=5", "hot_and_loop has a pace of its own"),
            ("tg.rounds_on_command=2", "tg.rounds_on_command=2: neither"),
            ("tg.access=zip", "tg.access=zip is unknown"),
            ("tg.access=zipf tg.skew_percent=1001", "tg.skew_percent is more than"),
            ("tg.access=uniform tg.skew_percent=1", "tg.skew_percent is unknown with tg.access=uniform"),
            ("tg.access=uniform tg.mem_mib=8 tg.set_mib=9", "1 to 8 MiB, not 9"),
            ("tg.access=sequential tg.set_mib=0", "1 to 160 MiB, not 0"),
            ("tg.access=stride tg.stride_pages=0", "tg.stride_pages has to be 1 to"),
            ("tg.access=phase_change tg.mem_mib=8 tg.part_mib=5", "two parts or more"),
            ("tg.access=phase_change tg.every_touches=0", "tg.every_touches is 0"),
            ("tg.access=ages tg.hot_mib=0", "have to be 1 MiB or more"),
            ("tg.access=ages tg.warm_ppm=999999", "more than a million together"),
            ("tg.access=follow tg.overlap_percent=101", "tg.overlap_percent is more than 100"),
            (
                "tg.access=follow tg.mem_mib=10 tg.set_mib=8 tg.overlap_percent=50",
                "tg.mem_mib has to be 12 or more",
            ),
            ("tg.image_seed=1", "set tg.write_one_in to 0"),
            ("tg.on_disk=1", "set tg.image_seed"),
        ] {
            let error = format!("{:#}", Pattern::from_cmdline(cmdline).unwrap_err());
            assert!(error.contains(named), "{cmdline}: {error}");
        }
    }
}
