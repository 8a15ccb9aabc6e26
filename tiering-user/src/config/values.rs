//! Values with a unit, written as text in the file: `"2m"`, `"64GiB"`, `"500MB/s"`, `"10%"`; and addresses:
//! `"127.0.0.1:9469"`.
//!
//! In: text. Out: newtypes over plain values; `Display` writes text that parses back to the same value.
//! Not here: bare numbers (a number without a unit is an error that names the units) and negative ones.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Bytes a second, above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Percent(pub f64);

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

/// An IP address and a port, above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

/// The text is no such value; the message shows what one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error(
        "`{0}` is not a size: write a number and one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB, such as \"64GiB\""
    )]
    Size(String),
    #[error("`{0}` is not a rate: write a size above zero and /s, such as \"500MB/s\"")]
    Rate(String),
    #[error("`{0}` is not a share: write a number from 0 to 100 and %, such as \"10%\"")]
    Percent(String),
    #[error("`{0}` is not a duration: write a number and one of ms, s, m, h, d, such as \"2m\"")]
    Period(String),
    #[error("`{0}` is not an address: write an IP address and a port, such as \"127.0.0.1:9469\"")]
    Listen(String),
}

/// Single letters such as `G` are left out: programs disagree on whether they mean 1000 or 1024.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::Size(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start();
        let scale = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(error)?.1;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let whole: u64 = whole.parse().map_err(|_| error())?;
        // Exact: at most nine decimals of a number of bytes, cut to whole bytes.
        let fraction_bytes = match fraction {
            "" => return Err(error()),
            f if f.len() > 9 => return Err(error()),
            f => {
                let decimals: u128 = f.parse().map_err(|_| error())?;
                let divisor = (0..f.len()).fold(1_u128, |d, _| d * 10);
                u64::try_from(u128::from(scale) * decimals / divisor).map_err(|_| error())?
            }
        };
        let bytes = whole.checked_mul(scale).and_then(|b| b.checked_add(fraction_bytes));
        bytes.map(Size).ok_or_else(error)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The unit that divides it exactly and leaves the smallest number: 500MB, not 488281.25KiB.
        let exact = UNITS.iter().filter(|(_, scale)| self.0.is_multiple_of(*scale));
        match exact.min_by_key(|(_, scale)| self.0 / scale) {
            Some((unit, scale)) if self.0 > 0 => write!(f, "{}{unit}", self.0 / scale),
            _ => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for Rate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let size = text.trim().strip_suffix("/s").and_then(|size| size.parse::<Size>().ok());
        match size {
            Some(Size(bytes)) if bytes > 0 => Ok(Rate(bytes)),
            _ => Err(ValueError::Rate(text.to_owned())),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}

impl FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = text.trim().strip_suffix('%').and_then(|n| n.trim_end().parse::<f64>().ok());
        match number {
            Some(percent) if (0.0..=100.0).contains(&percent) => Ok(Percent(percent)),
            _ => Err(ValueError::Percent(text.to_owned())),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Period {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        humantime::parse_duration(text.trim()).map(Period).map_err(|_| ValueError::Period(text.to_owned()))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.trim().parse::<SocketAddr>() {
            Ok(address) if address.port() > 0 => Ok(Self(address)),
            _ => Err(ValueError::Listen(text.to_owned())),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads and writes each type as its text. A visitor rather than `String`, so that a bare number in the file
/// is answered with what to write instead.
macro_rules! serde_as_text {
    ($($type:ty: $expecting:literal),+ $(,)?) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    )+};
}

serde_as_text! {
    Size: "a size in quotes, such as \"64GiB\"",
    Rate: "a rate in quotes, such as \"500MB/s\"",
    Percent: "a share in quotes, such as \"10%\"",
    Period: "a duration in quotes, such as \"2m\"",
    Listen: "an address in quotes, such as \"127.0.0.1:9469\"",
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_mean_what_their_unit_says() {
        let cases = [
            ("64GiB", 64 << 30),
            ("64 gib", 64 << 30),
            ("500MB", 500_000_000),
            ("1TB", 1_000_000_000_000),
            ("1.5KiB", 1536),
            ("0.001kB", 1),
            ("0B", 0),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn wrong_values_are_refused_with_an_example() {
        for text in ["", "64", "64G", "GiB", "-1GiB", "1.GiB", ".5GiB", "1e3MB", "99999999TiB"] {
            let error = text.parse::<Size>().expect_err(text).to_string();
            assert!(error.contains("64GiB"), "{error}");
        }
        for text in ["500MB", "0MB/s", "500/s", "fast"] {
            let error = text.parse::<Rate>().expect_err(text).to_string();
            assert!(error.contains("500MB/s"), "{error}");
        }
        for text in ["10", "101%", "-1%", "NaN%", "%"] {
            let error = text.parse::<Percent>().expect_err(text).to_string();
            assert!(error.contains("10%"), "{error}");
        }
        for text in ["", "2", "-2m", "2 fortnights"] {
            let error = text.parse::<Period>().expect_err(text).to_string();
            assert!(error.contains("2m"), "{error}");
        }
    }

    #[test]
    fn values_are_shown_in_the_unit_they_were_written_in() {
        for text in ["64GiB", "500MB", "1TB", "1536MiB", "7B"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("50MB/s".parse::<Rate>().unwrap().to_string(), "50MB/s");
        assert_eq!("0.5%".parse::<Percent>().unwrap().to_string(), "0.5%");
        assert_eq!("90s".parse::<Period>().unwrap().to_string(), "1m 30s");
    }

    proptest! {
        #[test]
        fn every_value_survives_being_written_and_read(
            bytes in any::<u64>(), percent in 0.0..=100.0_f64, millis in any::<u32>(),
        ) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            prop_assert_eq!(Rate(bytes.max(1)).to_string().parse(), Ok(Rate(bytes.max(1))));
            prop_assert_eq!(Percent(percent).to_string().parse(), Ok(Percent(percent)));
            let period = Period(Duration::from_millis(millis.into()));
            prop_assert_eq!(period.to_string().parse(), Ok(period));
        }
    }
}
