//! `resource.Quantity`: exact fixed-point numbers with upstream's suffixes and canonical forms.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// Upstream caps every parsed quantity at the largest int64.
const MAX_NANOS: i128 = i64::MAX as i128 * NANO;
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// Decimal suffixes from 10^-9 in steps of 10^3.
const DECIMAL_SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/// How a quantity was written, and will be written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySI,
    /// `12M`
    #[default]
    DecimalSI,
}

/// An exact number of billionths. Comparisons look at the value only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Upstream's complaints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSI,
    };

    pub fn from_units(units: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(units) * NANO,
            format,
        }
    }

    pub fn from_millis(millis: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(millis) * 1_000_000,
            format,
        }
    }

    /// The value in whole units, rounded up.
    pub fn value(&self) -> i64 {
        saturate(div_ceil(self.nanos, NANO))
    }

    /// The value in thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        saturate(div_ceil(self.nanos, 1_000_000))
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn to_wire(&self) -> Wire {
        Wire(self.to_string())
    }

    /// Reads an API object's quantity; the API server has validated it, so an unreadable one counts as nothing.
    pub fn of(wire: &Wire) -> Self {
        wire.0.parse().unwrap_or_default()
    }
}

impl TryFrom<&Wire> for Quantity {
    type Error = ParseError;
    fn try_from(wire: &Wire) -> Result<Self, ParseError> {
        wire.0.parse()
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(ParseError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let number_length = unsigned
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, suffix) = unsigned.split_at(number_length);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(ParseError::Format);
        }
        let (magnitude, format) = match parse_suffix(suffix)? {
            Suffix::Decimal(exponent) => (decimal_nanos(whole, fraction, exponent), Format::DecimalSI),
            Suffix::Exponent(exponent) => (decimal_nanos(whole, fraction, exponent), Format::DecimalExponent),
            Suffix::Binary(power) => {
                let nanos = binary_nanos(whole, fraction, power);
                // A fraction of one has no binary form that keeps its precision.
                (
                    nanos,
                    if nanos > 0 && nanos < NANO {
                        Format::DecimalSI
                    } else {
                        Format::BinarySI
                    },
                )
            }
        };
        let magnitude = magnitude.min(MAX_NANOS);
        Ok(Self {
            nanos: if negative { -magnitude } else { magnitude },
            format,
        })
    }
}

enum Suffix {
    Decimal(i32),
    Binary(u32),
    Exponent(i32),
}

fn parse_suffix(suffix: &str) -> Result<Suffix, ParseError> {
    if let Some(index) = DECIMAL_SUFFIXES.iter().position(|s| *s == suffix) {
        return Ok(Suffix::Decimal(index as i32 * 3 - 9));
    }
    if let Some(index) = BINARY_SUFFIXES.iter().position(|s| *s == suffix) {
        return Ok(Suffix::Binary(index as u32));
    }
    let rest = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    if !rest
        .trim_start_matches(['-', '+'])
        .bytes()
        .all(|b| b.is_ascii_digit())
    {
        return Err(ParseError::Format);
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
    exponent
        .parse()
        .map(Suffix::Exponent)
        .map_err(|_| ParseError::Suffix)
}

/// `whole.fraction × 10^exponent` in billionths, any remainder rounded up.
fn decimal_nanos(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let digits = [whole, fraction].concat();
    let point = i64::try_from(whole.len())
        .unwrap_or(i64::MAX)
        .saturating_add(i64::from(exponent))
        .saturating_add(9);
    let mut nanos: i128 = 0;
    let mut rest = false;
    for (position, digit) in digits.bytes().enumerate() {
        let digit = i128::from(digit - b'0');
        if (position as i64) < point {
            nanos = nanos.saturating_mul(10).saturating_add(digit);
        } else {
            rest |= digit != 0;
        }
    }
    for _ in 0..(point - digits.len() as i64).clamp(0, 40) {
        nanos = nanos.saturating_mul(10);
    }
    nanos.saturating_add(i128::from(rest))
}

/// `whole.fraction × 1024^power` in billionths, any remainder rounded up. Digits of the fraction beyond the 18th
/// only take part in the rounding.
fn binary_nanos(whole: &str, fraction: &str, power: u32) -> i128 {
    const FRACTION_DIGITS: usize = 18;
    let scale = 1i128 << (10 * power);
    let units = whole.bytes().fold(0i128, |n, b| {
        n.saturating_mul(10).saturating_add(i128::from(b - b'0'))
    });
    let (head, tail) = fraction.split_at(fraction.len().min(FRACTION_DIGITS));
    let mut numerator = head.bytes().fold(0i128, |n, b| n * 10 + i128::from(b - b'0'));
    numerator *= 10i128.pow((FRACTION_DIGITS - head.len()) as u32);
    let scaled = numerator * scale;
    let rest = scaled % NANO != 0 || tail.bytes().any(|b| b != b'0');
    units
        .saturating_mul(scale)
        .saturating_mul(NANO)
        .saturating_add(scaled / NANO)
        .saturating_add(i128::from(rest))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let units = self.nanos / NANO;
        if self.format == Format::BinarySI && units.abs() >= 1024 && self.nanos % NANO == 0 {
            let (mut number, mut power) = (units, 0);
            while number % 1024 == 0 && power + 1 < BINARY_SUFFIXES.len() {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", BINARY_SUFFIXES[power]);
        }
        let (mut number, mut step) = (self.nanos, 0);
        while number % 1000 == 0 && step + 1 < DECIMAL_SUFFIXES.len() {
            number /= 1000;
            step += 1;
        }
        match (self.format, step as i32 * 3 - 9) {
            (Format::DecimalExponent, 0) => write!(f, "{number}"),
            (Format::DecimalExponent, exponent) => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{}", DECIMAL_SUFFIXES[step]),
        }
    }
}

fn div_ceil(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}
impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_add(other.nanos);
    }
}
impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_sub(other.nanos);
    }
}
impl Add for Quantity {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}
impl Sub for Quantity {
    type Output = Self;
    fn sub(mut self, other: Self) -> Self {
        self -= other;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn canonical_forms_are_upstreams() {
        for (input, canonical) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("1", "1"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1Ki", "1Ki"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("1500Mi", "1500Mi"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("0.5Mi", "512Ki"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e6", "12e6"),
            ("100e-2", "1"),
            ("1000000", "1M"),
            ("1k", "1k"),
            ("1000k", "1M"),
            ("1E", "1E"),
            ("-1Gi", "-1Gi"),
            ("+2", "2"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("1.0000000001", "1000000001n"),
            ("0.001Ki", "1024m"),
            ("1.1Ki", "1126400m"),
            ("100E", "9223372036854775807"),
            ("1e100", "9223372036854775807e0"),
            ("110", "110"),
            ("16391952Ki", "16391952Ki"),
            ("0.0000000000000000001Ki", "1n"),
        ] {
            let canonical = canonical.trim_end_matches("e0");
            assert_eq!(quantity(input).to_string(), canonical, "{input}");
        }
    }

    #[test]
    fn malformed_text_names_the_complaint() {
        for (input, error) in [
            ("", ParseError::Format),
            ("-", ParseError::Format),
            ("Mi", ParseError::Format),
            (".", ParseError::Format),
            ("1.1.1", ParseError::Format),
            ("1 Mi", ParseError::Format),
            ("1x", ParseError::Format),
            ("1mi", ParseError::Suffix),
            ("1K", ParseError::Suffix),
            ("1e", ParseError::Suffix),
            ("1e1.2", ParseError::Format),
            ("1Mi2", ParseError::Suffix),
        ] {
            assert_eq!(input.parse::<Quantity>(), Err(error), "{input:?}");
        }
    }

    #[test]
    fn arithmetic_is_exact_and_keeps_the_first_format() {
        assert_eq!(
            (quantity("0") + quantity("1Gi") + quantity("512Mi")).to_string(),
            "1536Mi"
        );
        assert_eq!((quantity("250m") + quantity("0.75")).to_string(), "1");
        assert_eq!((quantity("1Gi") - quantity("1")).to_string(), "1073741823");
        assert!(quantity("1Gi") > quantity("1G"));
        assert_eq!(quantity("1000m"), quantity("1"));
    }

    #[test]
    fn values_round_up() {
        for (input, value, milli) in [
            ("1", 1, 1000),
            ("1m", 1, 1),
            ("100u", 1, 1),
            ("1.5", 2, 1500),
            ("-1.5", -1, -1500),
            ("1Ki", 1024, 1_024_000),
        ] {
            assert_eq!(
                (quantity(input).value(), quantity(input).milli_value()),
                (value, milli),
                "{input}"
            );
        }
    }

    #[test]
    fn printing_and_parsing_again_keeps_the_value() {
        let mut seed = 42u64;
        for _ in 0..2000 {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let suffixes = ["", "m", "u", "n", "k", "M", "G", "Ki", "Mi", "Gi", "e3", "e-3"];
            let text = format!(
                "{}{}",
                (seed >> 40) as f64 / 100.0,
                suffixes[(seed >> 33) as usize % suffixes.len()]
            );
            let parsed = quantity(&text);
            assert_eq!(quantity(&parsed.to_string()), parsed, "{text}");
        }
    }
}
