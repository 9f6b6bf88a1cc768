//! Looking at eight bytes at a time, in safe code: where a line ends, where its arguments are, what number it holds.

/// Where the bytes of something lie, counted from the operation's first byte. Empty means absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    #[inline]
    pub(crate) fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start..self.end]
    }

    #[inline]
    pub(crate) fn maybe(self, bytes: &[u8]) -> Option<&[u8]> {
        if self.is_empty() { None } else { Some(self.of(bytes)) }
    }
}

pub(crate) const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Index of the first LF at or after `from`.
pub(crate) fn find_lf(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let (words, tail) = rest.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        // The classic test for a zero byte: exact for the lowest one, which is the one we want.
        let word = u64::from_le_bytes(*word) ^ (ONES * b'\n' as u64);
        let zeros = word.wrapping_sub(ONES) & !word & HIGHS;
        if zeros != 0 {
            return Some(from + index * 8 + zeros.trailing_zeros() as usize / 8);
        }
    }
    let at = tail.iter().position(|&byte| byte == b'\n')?;
    Some(from + words.len() * 8 + at)
}

/// Splits `args` at runs of blanks. Returns the first `N` arguments, as spans shifted by `base`, and how many there are.
pub(crate) fn split<const N: usize>(args: &[u8], base: usize) -> ([Span; N], usize) {
    let mut spans = [Span::default(); N];
    let mut count = 0;
    let mut at = 0;
    loop {
        while at < args.len() && is_blank(args[at]) {
            at += 1;
        }
        if at == args.len() {
            return (spans, count);
        }
        let start = at;
        while at < args.len() && !is_blank(args[at]) {
            at += 1;
        }
        if let Some(span) = spans.get_mut(count) {
            *span = Span::new(base + start, base + at);
        }
        count += 1;
    }
}

/// The value of `digits`, if that is what they all are, there is one at least and the value fits.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_feed_is_found_at_every_place_and_from_every_start() {
        let mut bytes = [b'x'; 40];
        for at in 0..bytes.len() {
            bytes[at] = b'\n';
            for from in 0..=at {
                assert_eq!(find_lf(&bytes, from), Some(at));
            }
            assert_eq!(find_lf(&bytes, at + 1), None);
            // The neighbours of LF, and LF with the high bit, must not be taken for it.
            bytes[at] = [0x0b, 0x09, 0x8a][at % 3];
        }
        assert_eq!(find_lf(&bytes, 41), None);
    }

    #[test]
    fn arguments_are_split_at_runs_of_space_and_tab_only() {
        let (spans, count) = split::<2>(b" a\t \tb\x0bb c ", 10);
        assert_eq!((spans, count), ([Span::new(11, 12), Span::new(15, 18)], 3));
        assert_eq!(split::<1>(b" \t", 0).1, 0);
    }

    #[test]
    fn a_number_is_digits_that_fit() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "18446744073709551616", "+1", "-1", "1x", "0x1", " 1", ":", "/"] {
            assert_eq!(number(bad.as_bytes()), None, "{bad}");
        }
    }
}
