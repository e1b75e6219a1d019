//! Resource quantities: parsed exactly (to 10⁻⁹), written in upstream's canonical form.

/// Upstream's text for a malformed quantity.
pub(crate) const MALFORMED: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalSi,
    DecimalExponent,
    BinarySi,
}

/// A quantity in billionths, with the notation it was written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
const DECIMAL: &[(&str, i32)] = &[
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: &[(&str, u32)] = &[
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];

impl Quantity {
    pub fn parse(text: &str) -> Option<Self> {
        let split = text
            .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (negative, digits) = match number.as_bytes().first()? {
            b'-' => (true, &number[1..]),
            b'+' => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.len() + fraction.len() == 0
            || !(whole
                .bytes()
                .chain(fraction.bytes())
                .all(|byte| byte.is_ascii_digit()))
        {
            return None;
        }
        let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
        let scale = i32::try_from(fraction.len()).ok()?;
        let (nano, format) = if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            (
                scaled(mantissa.checked_mul(1 << shift)?, 9 - scale)?,
                Format::BinarySi,
            )
        } else if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
            (scaled(mantissa, 9 - scale + exponent)?, Format::DecimalSi)
        } else {
            let exponent: i32 = suffix
                .strip_prefix(['e', 'E'])?
                .parse()
                .ok()
                .filter(|exponent: &i32| exponent.unsigned_abs() < 1000)?;
            (scaled(mantissa, 9 - scale + exponent)?, Format::DecimalExponent)
        };
        Some(Self {
            nano: if negative { -nano } else { nano },
            format,
        })
    }

    pub fn whole(count: i64) -> Self {
        Self {
            nano: i128::from(count) * NANO,
            format: Format::DecimalSi,
        }
    }

    /// The sum, in the notation of the first that is not zero.
    pub fn plus(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self {
            nano: self.nano.saturating_add(other.nano),
            format,
        }
    }

    pub fn minus(self, other: Self) -> Self {
        self.plus(Self {
            nano: -other.nano,
            ..other
        })
    }

    /// Rounded up to thousandths, as resource lists are.
    pub fn round_to_milli(self) -> Self {
        let milli = NANO / 1000;
        Self {
            nano: self.nano.div_euclid(milli) * milli
                + if self.nano.rem_euclid(milli) == 0 {
                    0
                } else {
                    milli
                },
            ..self
        }
    }

    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    pub fn nano(self) -> i128 {
        self.nano
    }

    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    pub fn canonical(self) -> String {
        if self.nano == 0 {
            return "0".to_owned();
        }
        let small = self.nano.abs() < 1024 * NANO;
        match self.format {
            Format::BinarySi if !small && self.is_whole() => binary(self.nano / NANO),
            Format::DecimalExponent => decimal(self.nano, true),
            _ => decimal(self.nano, false),
        }
    }
}

/// Amounts compare, however they are written.
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

/// `mantissa × 10^exponent`, rounded away from zero below one.
fn scaled(mantissa: i128, exponent: i32) -> Option<i128> {
    let power = 10_i128.checked_pow(exponent.unsigned_abs());
    if exponent >= 0 {
        return mantissa.checked_mul(power?);
    }
    Some(power.map_or(i128::from(mantissa != 0), |power| {
        mantissa / power + i128::from(mantissa % power != 0)
    }))
}

fn binary(mut value: i128) -> String {
    let mut suffix = "";
    for (name, _) in BINARY {
        if value % 1024 != 0 {
            break;
        }
        value /= 1024;
        suffix = name;
    }
    format!("{value}{suffix}")
}

fn decimal(nano: i128, exponent_form: bool) -> String {
    let mut value = nano;
    let mut exponent = -9;
    while value % 1000 == 0 && exponent < 18 {
        value /= 1000;
        exponent += 3;
    }
    if exponent_form {
        return if exponent == 0 {
            value.to_string()
        } else {
            format!("{value}e{exponent}")
        };
    }
    let suffix = DECIMAL
        .iter()
        .find(|(_, candidate)| *candidate == exponent)
        .map_or("", |(name, _)| name);
    format!("{value}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form_is_upstreams() {
        for (text, expected) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("0.5Ki", "512"),
            ("1024", "1024"),
            ("1e3", "1e3"),
            ("12e2", "1200"),
            ("100000000n", "100m"),
            ("0", "0"),
            ("-1", "-1"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("2Gi", "2Gi"),
            ("0.1Ki", "102400m"),
            (".5", "500m"),
            ("8Ei", "8Ei"),
        ] {
            assert_eq!(Quantity::parse(text).expect(text).canonical(), expected, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in [
            "",
            "x",
            "1x",
            "1e2147483647",
            "9e99",
            "1.2.3",
            "--1",
            "1Kii",
            "1e",
            "Gi",
            "1 Gi",
        ] {
            assert!(Quantity::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn resource_lists_round_up_to_milli() {
        assert_eq!(
            Quantity::parse("1u")
                .expect("parses")
                .round_to_milli()
                .canonical(),
            "1m"
        );
        assert_eq!(
            Quantity::parse("1500m")
                .expect("parses")
                .round_to_milli()
                .canonical(),
            "1500m"
        );
    }
}
