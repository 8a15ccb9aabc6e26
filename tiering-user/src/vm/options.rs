//! QEMU's option syntax: `implied,key=value,flag` with `,,` for a comma, or one JSON object. In: the value of one
//! command-line option. Out: key and value pairs. Which options matter is `cmdline`'s business.
//!
//! The text is chosen by whoever defines the VM, so every input gives some answer and none panics.

use serde_json::Value;

/// The pairs of one option, in order.
#[derive(Debug, Default)]
pub(super) struct Options(Vec<(String, String)>);

/// One option of a process, and its pairs.
#[derive(Debug)]
pub(super) struct Given {
    /// As a section of a `-readconfig` file is called.
    pub(super) group: String,
    pub(super) options: Options,
}

impl Options {
    /// Pairs that were read elsewhere.
    pub(super) fn of(pairs: Vec<(String, String)>) -> Options {
        Options(pairs)
    }

    /// Gives `key` another value.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.0.push((key.to_owned(), value.to_owned()));
    }

    /// Parses `text`; a first item without `=` is the value of `implied`.
    pub(super) fn parse(text: &str, implied: &str) -> Options {
        if text.starts_with('{')
            && let Ok(Value::Object(object)) = serde_json::from_str(text)
        {
            return Options(
                object.into_iter().filter_map(|(key, value)| Some((key, scalar(value)?))).collect(),
            );
        }
        let mut pairs = Vec::new();
        for (index, item) in split_items(text).into_iter().enumerate() {
            match item.split_once('=') {
                Some((key, value)) => pairs.push((key.to_owned(), value.to_owned())),
                None if index == 0 => pairs.push((implied.to_owned(), item)),
                None => pairs.push((item, "on".to_owned())),
            }
        }
        Options(pairs)
    }

    /// The last value given for `key`, as QEMU reads it.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether `key` is switched on.
    pub(super) fn is_on(&self, key: &str) -> bool {
        matches!(self.get(key), Some("on" | "yes" | "true" | "y"))
    }
}

/// Text of a JSON value in the form the `key=value` syntax has; lists and objects are not needed and dropped.
fn scalar(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(on) => Some(if on { "on" } else { "off" }.to_owned()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn split_items(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.peek() != Some(&',') {
            items.push(String::new());
            continue;
        }
        if c == ',' {
            chars.next();
        }
        if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items
}

/// Bytes of a QEMU size (`4096`, `1.5G`, `1048576k`, `0x40000000`); a number without a suffix counts `default_unit`
/// bytes.
pub(super) fn size_bytes(text: &str, default_unit: u64) -> Option<u64> {
    let text = text.trim();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // QEMU gives the default unit to what ends in a decimal digit (hw/core/machine.c, QEMU 7.2).
        let unit = if digits.ends_with(|c: char| c.is_ascii_digit()) { default_unit } else { 1 };
        return u64::from_str_radix(digits, 16).ok()?.checked_mul(unit);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let unit = match suffix {
        "" => default_unit,
        "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut bytes = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    if !fraction.is_empty() {
        // Nine digits are finer than a byte of a gigabyte; more would only risk an overflow.
        let digits = &fraction[..fraction.len().min(9)];
        let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
        bytes += u128::from(digits.parse::<u64>().ok()?) * u128::from(unit) / scale;
    }
    u64::try_from(bytes).ok()
}

/// The next multiple of `unit`, or the largest number where there is none.
pub(super) fn round_up(bytes: u64, unit: u64) -> u64 {
    bytes.checked_next_multiple_of(unit).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_commas_belong_to_the_value() {
        let options = Options::parse("a,,b,debug-threads=on", "guest");
        assert_eq!(options.get("guest"), Some("a,b"));
        assert!(options.is_on("debug-threads"));
    }

    #[test]
    fn json_and_text_give_the_same_answers() {
        for text in [
            r#"{"qom-type":"memory-backend-memfd","id":"m0","share":true,"size":1048576,"host-nodes":[0]}"#,
            "memory-backend-memfd,id=m0,share=on,size=1048576,host-nodes=0",
        ] {
            let options = Options::parse(text, "qom-type");
            assert_eq!(options.get("qom-type"), Some("memory-backend-memfd"));
            assert_eq!(options.get("id"), Some("m0"));
            assert!(options.is_on("share"));
            assert_eq!(options.get("size"), Some("1048576"));
        }
    }

    #[test]
    fn sizes_with_and_without_suffix() {
        assert_eq!(size_bytes("512", 1 << 20), Some(512 << 20));
        assert_eq!(size_bytes("1048576k", 1 << 20), Some(1 << 30));
        assert_eq!(size_bytes("1.5G", 1), Some(1536 << 20));
        assert_eq!(size_bytes("134217728", 1), Some(128 << 20));
        assert_eq!(size_bytes("0x8000000", 1), Some(128 << 20));
        assert_eq!((size_bytes("0x80", 1 << 20), size_bytes("0x", 1)), (Some(128 << 20), None));
        for nonsense in ["", "G", "4X", "-1", "1..5G", "99999999999999999999", "18446744073709551615P", "4€"]
        {
            assert_eq!(size_bytes(nonsense, 1), None, "{nonsense}");
        }
    }
}
