//! Numbers that may be given as a percentage of something.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Upstream's `GetScaledValueFromIntOrPercent`; nothing, or text that is no percentage, is zero.
pub fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|t| t.parse().ok())
                .unwrap_or_default();
            let product = percent * i64::from(total);
            let result = if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(result).unwrap_or(i32::MAX)
        }
    }
}
