//! The short way for the operations that come most: whole messages, written as everybody writes them.
//!
//! ```text
//! M S G   a . b   1   5 ␍ ␊ h e …        no token is looked for: one word of bits says where each of them ends
//! 0 0 0 1 0 0 0 1 0 1 0 1 1 0 0
//! ```
//!
//! Says nothing about what it does not take: [`Machine::any`](super::Machine::any) has the rules, and the tests hold one
//! against the other.

use super::{Layout, Sender};
use crate::error::Verb;
use crate::limits::Limits;
use crate::scan::{self, Span};

/// A whole message with its length: upper case, single spaces, CR LF, at most 64 bytes of arguments, and within the
/// limits. `None` says nothing about the bytes.
#[inline(always)]
pub(super) fn message<S: Sender>(bytes: &[u8], limits: Limits) -> Option<(Layout, usize)> {
    let start = u32::from_le_bytes(*bytes.first_chunk()?);
    let [a, b, c] = S::MESSAGE;
    if start == u32::from_le_bytes([a, b, c, b' ']) {
        message_as::<false>(bytes, limits, S::IS_CLIENT)
    } else if start == u32::from_le_bytes([b'H', a, b, c]) {
        message_as::<true>(bytes, limits, S::IS_CLIENT)
    } else {
        None
    }
}

#[inline(always)]
fn message_as<const HEADERS: bool>(
    bytes: &[u8],
    limits: Limits,
    from_client: bool,
) -> Option<(Layout, usize)> {
    // One bit for each byte up to and with the space: the blank after the verb, the ends of the arguments, CR and LF.
    // More of them in the payload do no harm: the first two in a row are the end of the line, or we do not know.
    let verb_len = if HEADERS { 4 } else { 3 };
    let args = bytes.get(verb_len..)?;
    let mut ends = u64::from(scan::ends(args.first_chunk()?));
    let mut pairs = ends & (ends << 1);
    if pairs == 0 {
        ends |= u64::from(scan::ends(args.get(32..)?.first_chunk()?)) << 32;
        pairs = ends & (ends << 1);
        if pairs == 0 {
            return None;
        }
    }
    let cr = verb_len + pairs.trailing_zeros() as usize - 1;
    if cr > verb_len + 1 + limits.line_bytes_max {
        return None;
    }
    let mut next_end = || {
        let end = verb_len + ends.trailing_zeros() as usize;
        ends &= ends.wrapping_sub(1);
        end
    };
    let verb_end = next_end();
    let first_end = next_end();
    let sid_end = if from_client { first_end } else { next_end() };
    let mut optional_end = sid_end;
    let mut header_end = if HEADERS { next_end() } else { sid_end };
    let mut size_end = next_end();
    if size_end != cr {
        (optional_end, header_end) = (if HEADERS { header_end } else { size_end }, size_end);
        size_end = next_end();
    }
    let is_space = |at: usize| bytes.get(at) == Some(&b' ');
    let are_spaces = is_space(verb_end)
        && is_space(first_end)
        && (from_client || is_space(sid_end))
        && is_space(optional_end)
        && (!HEADERS || is_space(header_end));
    if size_end != cr || verb_end != verb_len || !are_spaces || bytes.get(cr..cr + 2) != Some(b"\r\n") {
        return None;
    }
    let header = if HEADERS {
        scan::short_number(bytes, Span::new(optional_end + 1, header_end))? as usize
    } else {
        0
    };
    let total = scan::short_number(bytes, Span::new(header_end + 1, cr))? as usize;
    let (line, end) = (cr + 2, cr + 2 + total);
    if total > limits.payload_bytes_max || header > total || bytes.get(end..end + 2) != Some(b"\r\n") {
        return None;
    }
    let verb = match (from_client, HEADERS) {
        (false, false) => Verb::Msg,
        (false, true) => Verb::Hmsg,
        (true, false) => Verb::Pub,
        (true, true) => Verb::Hpub,
    };
    let layout = Layout {
        verb,
        first: Span::new(verb_end + 1, first_end),
        optional: Span::new(sid_end + 1, optional_end),
        sid: Span::new(first_end + 1, sid_end),
        line,
        header,
        total,
    };
    Some((layout, end + 2))
}
