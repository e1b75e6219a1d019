//! What of a failed connection is worth saying.

use std::error::Error;

/// The cause at the bottom (`Connection refused`), without the layers above it.
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
