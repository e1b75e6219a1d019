//! Protobuf's wire format: tags, varints, length-delimited fields.

pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const BYTES: u8 = 2;

/// One field as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    pub fn bytes(self) -> Result<&'a [u8], &'static str> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err("wrong wire type: expected a length-delimited field"),
        }
    }

    pub fn varint(self) -> Result<u64, &'static str> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err("wrong wire type: expected a varint"),
        }
    }
}

/// The fields of a message, in their order.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, &'static str> {
        loop {
            if self.0.is_empty() {
                return Ok(None);
            }
            let tag = self.varint()?;
            let number = u32::try_from(tag >> 3).map_err(|_| "illegal tag")?;
            if number == 0 {
                return Err("illegal tag 0");
            }
            match (tag & 7) as u8 {
                VARINT => return Ok(Some((number, Wire::Varint(self.varint()?)))),
                FIXED64 => {
                    let (head, rest) = self.0.split_first_chunk::<8>().ok_or("unexpected EOF")?;
                    self.0 = rest;
                    return Ok(Some((number, Wire::Fixed64(u64::from_le_bytes(*head)))));
                }
                BYTES => {
                    let length = usize::try_from(self.varint()?).map_err(|_| "illegal length")?;
                    let (head, rest) = self.0.split_at_checked(length).ok_or("unexpected EOF")?;
                    self.0 = rest;
                    return Ok(Some((number, Wire::Bytes(head))));
                }
                // No API type has a 32-bit fixed field: skip it like any unknown one.
                5 => self.0 = self.0.get(4..).ok_or("unexpected EOF")?,
                _ => return Err("illegal wireType"),
            }
        }
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or("unexpected EOF")?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("integer overflow")
    }
}

fn put_raw_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_raw_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

pub(crate) fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    put_tag(out, number, VARINT);
    put_raw_varint(out, value);
}

pub(crate) fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_tag(out, number, FIXED64);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, BYTES);
    put_raw_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_survive_the_wire() {
        let mut out = Vec::new();
        put_varint(&mut out, 1, u64::MAX);
        put_bytes(&mut out, 200, b"abc");
        put_double(&mut out, 3, 1.5);
        let mut reader = Reader(&out);
        assert_eq!(reader.next(), Ok(Some((1, Wire::Varint(u64::MAX)))));
        assert_eq!(reader.next(), Ok(Some((200, Wire::Bytes(b"abc")))));
        assert_eq!(reader.next(), Ok(Some((3, Wire::Fixed64(1.5_f64.to_bits())))));
        assert_eq!(reader.next(), Ok(None));
    }

    #[test]
    fn truncated_or_absurd_input_is_an_error() {
        for bytes in [
            &[0x0a][..],
            &[0x0a, 5, 1],
            &[0x08, 0xff],
            &[0x00],
            &[0x0b],
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            assert!(Reader(bytes).next().is_err(), "{bytes:?}");
        }
    }
}
