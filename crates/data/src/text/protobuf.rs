//! Reads the wire format of Protocol Buffers: a message as its fields, without a schema and without recursion.

/// A field's content.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Content<'a> {
    /// A whole number, boolean or enumeration.
    Varint(u64),
    /// Four bytes: a float.
    Four([u8; 4]),
    /// Eight bytes.
    Eight,
    /// A string, bytes, or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message in their order: number and content, or what is wrong and at which byte of the message.
pub(crate) struct Fields<'a> {
    whole: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Fields<'a> {
        Fields { whole: message, rest: message }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// Seven bits a byte, the lowest first; at most ten bytes.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Content<'a>)> {
        let key = self.varint()?;
        let content = match key & 7 {
            0 => Content::Varint(self.varint()?),
            1 => self.take(8).map(|_| Content::Eight)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Content::Bytes(self.take(length)?)
            }
            5 => Content::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, content))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Content<'a>), usize>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.whole.len() - self.rest.len();
        Some(self.field().ok_or_else(|| {
            // Nothing after a damaged field has a meaning.
            self.rest = &[];
            at
        }))
    }
}
