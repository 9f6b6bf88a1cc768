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

/// One bit for each byte that is at most a space: the blanks, the line ends, and what looks like them at first sight.
#[inline(always)]
pub(crate) fn ends(window: &[u8; 32]) -> u32 {
    // As numbers of 128 bits, and below with a multiplication of that width, all of this stays in ordinary registers.
    // The compiler would do the same on four numbers of 64 bits in vectors, whose multiplication is slow.
    const HIGHS: u128 = u128::from_le_bytes([0x80; 16]);
    let bits = |half: &[u8; 16]| {
        let half = u128::from_le_bytes(*half);
        // Adding 0x5f carries into the high bit from 0x21 on; no byte carries into its neighbour.
        let above = ((half & !HIGHS) + u128::from_le_bytes([0x5f; 16])) | half;
        let found = !above & HIGHS;
        u32::from(gather(found as u64)) | u32::from(gather((found >> 64) as u64)) << 8
    };
    let (halves, _) = window.as_chunks::<16>();
    bits(&halves[0]) | bits(&halves[1]) << 16
}

/// The high bits of eight bytes as the bits of one, the first byte's lowest.
#[inline(always)]
fn gather(highs: u64) -> u8 {
    // Moves bit 8 j + 7 to bit 64 + j; no other product of two bits ends there.
    const MOVES: u128 = 0x0204_0810_2040_8100;
    ((u128::from(highs) * MOVES) >> 64) as u8
}

/// The value of one to eight digits that are not among the first few bytes.
#[inline(always)]
pub(crate) fn short_number(bytes: &[u8], span: Span) -> Option<u64> {
    let len = span.end.wrapping_sub(span.start);
    let word = u64::from_le_bytes(*bytes.get(span.end.wrapping_sub(8)..span.end)?.first_chunk()?);
    if len.wrapping_sub(1) >= 8 {
        return None;
    }
    // The digits are the last bytes of the word; what stands before them becomes zeros.
    let digits = (word ^ (ONES * b'0' as u64)) & (u64::MAX << (64 - 8 * len));
    if (digits.wrapping_add(ONES * 0x76) | digits) & HIGHS != 0 {
        return None;
    }
    // Digits to pairs, pairs to fours, fours to the number: the sums never leave their lanes.
    let pairs = digits.wrapping_mul(10) + (digits >> 8);
    if len <= 4 {
        // One multiplication less before it is known where the next operation begins.
        return Some((((pairs >> 32) & 0xff) * 100) + ((pairs >> 48) & 0xff));
    }
    const LANES: u64 = 0x0000_00ff_0000_00ff;
    let fours = (pairs & LANES).wrapping_mul(100 + (1_000_000 << 32));
    let twos = ((pairs >> 16) & LANES).wrapping_mul(1 + (10_000 << 32));
    Some((fours.wrapping_add(twos)) >> 32)
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
    fn bytes_up_to_the_space_are_marked_and_no_others() {
        for byte in 0..=u8::MAX {
            for at in 0..32 {
                let mut window = [b'x'; 32];
                window[at] = byte;
                assert_eq!(ends(&window), u32::from(byte <= b' ') << at, "{byte} at {at}");
            }
        }
        assert_eq!(ends(&[0; 32]), u32::MAX);
        assert_eq!(ends(&[0xff; 32]), 0);
    }

    #[test]
    fn a_short_number_is_the_number() {
        let check = |text: &str| {
            let mut window = [b'7'; 64];
            let span = Span::new(20, 20 + text.len());
            window[20..span.end].copy_from_slice(text.as_bytes());
            assert_eq!(short_number(&window, span), number(text.as_bytes()), "{text}");
        };
        for number in [0, 1, 9, 10, 99, 123, 9_999, 10_000, 65_536, 1_048_576, 12_345_678, 99_999_999] {
            let mut text = [0; 8];
            for len in 1..=8 {
                let mut rest = number;
                for digit in text[..len].iter_mut().rev() {
                    *digit = b'0' + (rest % 10) as u8;
                    rest /= 10;
                }
                check(core::str::from_utf8(&text[..len]).unwrap());
            }
        }
        for byte in 0..=0x7f_u8 {
            for at in 0..8 {
                let mut text = *b"12345678";
                text[at] = byte;
                check(core::str::from_utf8(&text).unwrap());
            }
        }
        let window = [b'1'; 64];
        for (start, end) in [(10, 10), (10, 19), (2, 7), (60, 65), (5, 4)] {
            assert_eq!(short_number(&window, Span::new(start, end)), None, "{start}..{end}");
        }
    }

    #[test]
    fn a_number_is_digits_that_fit() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "18446744073709551616", "+1", "-1", "1x", "0x1", " 1", ":", "/"] {
            assert_eq!(number(bad.as_bytes()), None, "{bad}");
        }
    }
}
