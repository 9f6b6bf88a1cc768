//! How much a peer may make us hold. Plain numbers, counted as nats-server counts them.

/// Upper bounds, in bytes, on what a decoder accepts. Past one of them decoding fails at once, before more is buffered.
///
/// A decoder never makes its caller hold more than the longest line, plus the largest payload, plus
/// [`IGNORED_BYTES_MAX`] and a few bytes of verb and line ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest argument part of a control line: from the first byte after the verb that is not a blank to the one
    /// before CR LF. Trailing blanks count, leading ones do not.
    ///
    /// Source: nats-server, `max_control_line`; server/parser.go, `overMaxControlLineLimit`.
    pub line_bytes_max: usize,
    /// The same for the lines that carry JSON, INFO and CONNECT.
    pub info_bytes_max: usize,
    /// Largest payload, headers included: the last number of PUB, HPUB, MSG and HMSG.
    ///
    /// Source: nats-server, `max_payload`.
    pub payload_bytes_max: usize,
}

impl Limits {
    /// What a client should accept from a server.
    ///
    /// nats-server bounds the lines that clients send, not the ones it sends: a delivered line is the publisher's (up
    /// to 4096 bytes) plus the subscriber's sid, and an INFO lists a whole cluster. So: 32 KiB for lines, 1 MiB for
    /// INFO, and 64 MiB, nats-server's own upper limit for `max_payload`, for payloads.
    #[must_use]
    pub const fn client() -> Self {
        Self { line_bytes_max: 32 << 10, info_bytes_max: 1 << 20, payload_bytes_max: 64 << 20 }
    }

    /// What nats-server accepts from a client unless configured otherwise: 4096 bytes per line, CONNECT included, and
    /// 1 MiB per payload.
    #[must_use]
    pub const fn server() -> Self {
        Self { line_bytes_max: 4096, info_bytes_max: 4096, payload_bytes_max: 1 << 20 }
    }

    /// Upper bound for the length of one operation on the wire, and so for what a caller ever has to hold, in bytes.
    #[must_use]
    pub const fn operation_bytes_max(&self) -> usize {
        let limits = self.clamped();
        let line = if limits.line_bytes_max > limits.info_bytes_max {
            limits.line_bytes_max
        } else {
            limits.info_bytes_max
        };
        // The verb, what is ignored, and two line ends.
        line + limits.payload_bytes_max + IGNORED_BYTES_MAX + 16
    }

    /// Every sum the decoder forms of limits and buffer lengths must fit a `usize`.
    pub(crate) const fn clamped(self) -> Self {
        const MAX: usize = usize::MAX / 4;
        const fn clamp(value: usize) -> usize {
            if value < MAX { value } else { MAX }
        }
        Self {
            line_bytes_max: clamp(self.line_bytes_max),
            info_bytes_max: clamp(self.info_bytes_max),
            payload_bytes_max: clamp(self.payload_bytes_max),
        }
    }
}

/// Most bytes that a line may hold where they mean nothing: after PING, PONG and +OK, and blanks before the first
/// argument.
///
/// nats-server drops such bytes one by one and so needs no limit; a decoder whose caller keeps the line needs one.
pub const IGNORED_BYTES_MAX: usize = 64 << 10;
