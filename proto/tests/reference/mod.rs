//! The rules of the wire once more, written to be read: whole streams in, lists of what they hold out. Nothing is fast
//! here, nothing is kept between calls, and no code is shared with the crate beyond its public names.

use nats_wire::{
    ClientDecoder, ClientOp, DecodeError, DecodeErrorKind, Headers, IGNORED_BYTES_MAX, Limits, ServerDecoder,
    ServerOp, Step,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Reads what a server sends.
    Client,
    /// Reads what a client sends.
    Server,
}

/// One operation: its verb, its arguments in the order of the protocol, and where its last byte is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub verb: &'static str,
    pub args: Vec<Option<Vec<u8>>>,
    pub headers: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub end: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every byte belongs to an operation.
    Clean,
    /// The last operation is not complete.
    Partial,
    /// The kind of error, without its numbers, and where the operation begins.
    Error(&'static str, usize),
}

/// What `stream` holds.
pub fn read(side: Side, limits: Limits, stream: &[u8]) -> (Vec<Op>, End) {
    let mut ops = Vec::new();
    let mut start = 0;
    loop {
        match read_one(side, limits, &stream[start..]) {
            Ok(Some((mut op, len))) => {
                start += len;
                op.end = start;
                ops.push(op);
            }
            Ok(None) if start == stream.len() => return (ops, End::Clean),
            Ok(None) => return (ops, End::Partial),
            Err(kind) => return (ops, End::Error(kind, start)),
        }
    }
}

fn verbs(side: Side) -> &'static [&'static str] {
    match side {
        Side::Client => &["INFO", "MSG", "HMSG", "PING", "PONG", "+OK", "-ERR"],
        Side::Server => &["CONNECT", "PUB", "HPUB", "SUB", "UNSUB", "PING", "PONG", "+OK", "INFO"],
    }
}

/// The operation at the start of `bytes` and its length; `None` if more bytes are needed to say.
fn read_one(side: Side, limits: Limits, bytes: &[u8]) -> Result<Option<(Op, usize)>, &'static str> {
    // The verb, letter by letter.
    let starts_with = |verb: &str, len: usize| bytes[..len].eq_ignore_ascii_case(&verb.as_bytes()[..len]);
    let known = verbs(side).iter().find(|verb| bytes.len() >= verb.len() && starts_with(verb, verb.len()));
    let Some(&verb) = known else {
        let may_come =
            verbs(side).iter().any(|verb| bytes.len() < verb.len() && starts_with(verb, bytes.len()));
        return if may_come { Ok(None) } else { Err("unknown verb") };
    };
    let rest = &bytes[verb.len()..];
    let ignores_the_rest = ["PING", "PONG", "+OK"].contains(&verb);
    let needs_no_blank = verb == "CONNECT" || (verb == "INFO" && side == Side::Server);
    if !ignores_the_rest && !needs_no_blank {
        match rest.first() {
            None => return Ok(None),
            Some(b' ' | b'\t') => {}
            Some(_) => return Err("unknown verb"),
        }
    }

    // The line: up to LF, or as far as there are bytes.
    let lf = rest.iter().position(|&byte| byte == b'\n');
    let line = &rest[..lf.unwrap_or(rest.len())];
    let mut op = Op { verb, args: Vec::new(), headers: None, payload: Vec::new(), end: 0 };
    let line_end = verb.len() + line.len() + 1;
    if ignores_the_rest {
        if line.len() > IGNORED_BYTES_MAX {
            return Err("line too long");
        }
        return Ok(lf.map(|_| (op, line_end)));
    }
    let blanks = line.iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
    if blanks > IGNORED_BYTES_MAX {
        return Err("line too long");
    }
    let args = &line[blanks..];
    let args = args.strip_suffix(b"\r").unwrap_or(args);
    let max = if ["INFO", "CONNECT"].contains(&verb) { limits.info_bytes_max } else { limits.line_bytes_max };
    if args.len() > max {
        return Err("line too long");
    }
    if lf.is_none() {
        return Ok(None);
    }

    // The arguments.
    let publishes = ["PUB", "HPUB"].contains(&verb);
    let ends_it = |byte: &u8| *byte == b' ' || *byte == b'\t' || (*byte == b'\r' && !publishes);
    let trailing = args.iter().rev().take_while(|byte| ends_it(byte)).count();
    let args = &args[..args.len() - trailing];
    if ["INFO", "CONNECT", "-ERR"].contains(&verb) {
        if args.is_empty() && verb != "-ERR" {
            return Err("argument count");
        }
        let inner = args.strip_prefix(b"'").and_then(|args| args.strip_suffix(b"'"));
        let text = if verb == "-ERR" { inner.unwrap_or(args) } else { args };
        op.args.push(Some(text.to_vec()));
        return Ok(Some((op, line_end)));
    }
    if side == Side::Server && args.contains(&b'\r') {
        return Err("stray CR");
    }
    let tokens: Vec<&[u8]> =
        args.split(|byte| *byte == b' ' || *byte == b'\t').filter(|token| !token.is_empty()).collect();
    let own = |token: &[u8]| Some(token.to_vec());
    let (subject, optional, sid, sizes): (_, Option<&[u8]>, _, &[&[u8]]) = match (verb, &tokens[..]) {
        ("SUB", [subject, sid]) => {
            op.args = vec![own(subject), None, own(sid)];
            return Ok(Some((op, line_end)));
        }
        ("SUB", [subject, queue, sid]) => {
            op.args = vec![own(subject), own(queue), own(sid)];
            return Ok(Some((op, line_end)));
        }
        ("UNSUB", [sid]) => {
            op.args = vec![own(sid), None];
            return Ok(Some((op, line_end)));
        }
        ("UNSUB", [sid, max]) => {
            let max = nine_digits(max).map(|max| max.to_string().into_bytes());
            op.args = vec![own(sid), max];
            return Ok(Some((op, line_end)));
        }
        ("PUB", [subject, sizes @ ..]) if sizes.len() == 1 => (subject, None, None, sizes),
        ("PUB", [subject, reply, sizes @ ..]) if sizes.len() == 1 => (subject, Some(reply), None, sizes),
        ("HPUB", [subject, sizes @ ..]) if sizes.len() == 2 => (subject, None, None, sizes),
        ("HPUB", [subject, reply, sizes @ ..]) if sizes.len() == 2 => (subject, Some(reply), None, sizes),
        ("MSG", [subject, sid, sizes @ ..]) if sizes.len() == 1 => (subject, None, Some(sid), sizes),
        ("MSG", [subject, sid, reply, sizes @ ..]) if sizes.len() == 1 => {
            (subject, Some(reply), Some(sid), sizes)
        }
        ("HMSG", [subject, sid, sizes @ ..]) if sizes.len() == 2 => (subject, None, Some(sid), sizes),
        ("HMSG", [subject, sid, reply, sizes @ ..]) if sizes.len() == 2 => {
            (subject, Some(reply), Some(sid), sizes)
        }
        _ => return Err("argument count"),
    };
    op.args = vec![own(subject)];
    op.args.extend(sid.map(|sid| own(sid)));
    op.args.push(optional.map(<[u8]>::to_vec));

    // The lengths, and what they count.
    let size = |token: &[u8]| match side {
        Side::Server => nine_digits(token),
        Side::Client => sixty_four_bits(token),
    };
    let sizes: Vec<u64> = sizes.iter().map(|token| size(token)).collect::<Option<_>>().ok_or("size")?;
    let total = sizes[sizes.len() - 1];
    let header = if sizes.len() == 2 { sizes[0] } else { 0 };
    if header > total {
        return Err("header size");
    }
    if total > limits.payload_bytes_max as u64 {
        return Err("payload too large");
    }
    let after = &bytes[line_end..];
    let (header, total) = (header as usize, total as usize);
    for (at, expected) in [(total, b'\r'), (total + 1, b'\n')] {
        match after.get(at) {
            None => return Ok(None),
            Some(byte) if *byte != expected => return Err("terminator"),
            Some(_) => {}
        }
    }
    op.headers = (sizes.len() == 2).then(|| after[..header].to_vec());
    op.payload = after[header..total].to_vec();
    Ok(Some((op, line_end + total + 2)))
}

fn nine_digits(token: &[u8]) -> Option<u64> {
    if token.len() > 9 { None } else { sixty_four_bits(token) }
}

fn sixty_four_bits(token: &[u8]) -> Option<u64> {
    // `parse` would also take a sign.
    if !token.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(token).ok()?.parse().ok()
}

/// What the crate's decoder makes of the same stream, cut into `pieces`. The second list says how many bytes had come
/// when each operation came out.
pub fn decode(
    side: Side,
    limits: Limits,
    pieces: &[&[u8]],
) -> (Vec<Op>, End, Vec<usize>, Option<DecodeError>) {
    match side {
        Side::Client => run(pieces, ClientDecoder::new(limits), |decoder, bytes| {
            Ok(match decoder.decode(bytes)? {
                Step::Op { op, used } => Ok((server_op(op), used)),
                Step::More { missing } => Err(missing),
            })
        }),
        Side::Server => run(pieces, ServerDecoder::new(limits), |decoder, bytes| {
            Ok(match decoder.decode(bytes)? {
                Step::Op { op, used } => Ok((client_op(op), used)),
                Step::More { missing } => Err(missing),
            })
        }),
    }
}

type Decoded = Result<Result<(Op, usize), usize>, DecodeError>;

fn run<D>(
    pieces: &[&[u8]],
    mut decoder: D,
    mut decode: impl FnMut(&mut D, &[u8]) -> Decoded,
) -> (Vec<Op>, End, Vec<usize>, Option<DecodeError>) {
    let (mut ops, mut came_by) = (Vec::new(), Vec::new());
    let (mut buffer, mut came) = (Vec::new(), 0);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        came += piece.len();
        let mut start = 0;
        loop {
            match decode(&mut decoder, &buffer[start..]) {
                Ok(Ok((mut op, used))) => {
                    start += used;
                    op.end = came - buffer.len() + start;
                    ops.push(op);
                    came_by.push(came);
                }
                Ok(Err(missing)) => {
                    assert!(missing > 0);
                    break;
                }
                Err(error) => {
                    assert_eq!(decode(&mut decoder, b"PING\r\n").err(), Some(error), "an error stays");
                    let end = End::Error(error_name(error.kind), error.offset as usize);
                    assert!(!error.to_string().is_empty());
                    return (ops, end, came_by, Some(error));
                }
            }
        }
        buffer.drain(..start);
    }
    let end = if buffer.is_empty() { End::Clean } else { End::Partial };
    (ops, end, came_by, None)
}

fn error_name(kind: DecodeErrorKind) -> &'static str {
    match kind {
        DecodeErrorKind::UnknownVerb => "unknown verb",
        DecodeErrorKind::ArgumentCount { .. } => "argument count",
        DecodeErrorKind::Size => "size",
        DecodeErrorKind::HeaderSize { .. } => "header size",
        DecodeErrorKind::PayloadTooLarge { .. } => "payload too large",
        DecodeErrorKind::LineTooLong { .. } => "line too long",
        DecodeErrorKind::Terminator { .. } => "terminator",
        DecodeErrorKind::StrayCr => "stray CR",
        _ => "a kind that the reference does not know",
    }
}

fn op(verb: &'static str, args: &[Option<&[u8]>]) -> Op {
    let args = args.iter().map(|arg| arg.map(<[u8]>::to_vec)).collect();
    Op { verb, args, headers: None, payload: Vec::new(), end: 0 }
}

fn with_body(mut op: Op, headers: Option<Headers<'_>>, payload: &[u8]) -> Op {
    op.headers = headers.map(|headers| headers.as_bytes().to_vec());
    op.payload = payload.to_vec();
    op
}

fn server_op(decoded: ServerOp<'_>) -> Op {
    match decoded {
        ServerOp::Info(json) => op("INFO", &[Some(json)]),
        ServerOp::Ping => op("PING", &[]),
        ServerOp::Pong => op("PONG", &[]),
        ServerOp::Ok => op("+OK", &[]),
        ServerOp::Err(text) => op("-ERR", &[Some(text.as_bytes())]),
        ServerOp::Message(message) => {
            let verb = if message.headers.is_some() { "HMSG" } else { "MSG" };
            let op = op(verb, &[Some(message.subject), Some(message.sid), message.reply]);
            with_body(op, message.headers, message.payload)
        }
    }
}

fn client_op(decoded: ClientOp<'_>) -> Op {
    match decoded {
        ClientOp::Connect(json) => op("CONNECT", &[Some(json)]),
        ClientOp::Info(json) => op("INFO", &[Some(json)]),
        ClientOp::Ping => op("PING", &[]),
        ClientOp::Pong => op("PONG", &[]),
        ClientOp::Ok => op("+OK", &[]),
        ClientOp::Subscribe(sub) => op("SUB", &[Some(sub.subject), sub.queue, Some(sub.sid)]),
        ClientOp::Unsubscribe(unsub) => {
            let max = unsub.max.map(|max| max.to_string().into_bytes());
            op("UNSUB", &[Some(unsub.sid), max.as_deref()])
        }
        ClientOp::Publish(publish) => {
            let verb = if publish.headers.is_some() { "HPUB" } else { "PUB" };
            with_body(op(verb, &[Some(publish.subject), publish.reply]), publish.headers, publish.payload)
        }
    }
}

/// Both decoders on one stream, whole, byte by byte and in the pieces given: operations, end and error must be the
/// same, and each operation must come with its last byte.
pub fn compare(side: Side, limits: Limits, stream: &[u8], pieces: &[&[u8]]) {
    let (expected_ops, expected_end) = read(side, limits, stream);
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    let mut errors = Vec::new();
    for (how, pieces) in [("whole", &[stream][..]), ("byte by byte", &bytes), ("in pieces", pieces)] {
        let (ops, end, came_by, error) = decode(side, limits, pieces);
        let shown = || format!("{side:?}, {limits:?}, {how}: {}", stream.escape_ascii());
        assert_eq!(ops, expected_ops, "{}", shown());
        assert_eq!(end, expected_end, "{}", shown());
        if how == "byte by byte" {
            let ends: Vec<usize> = ops.iter().map(|op| op.end).collect();
            assert_eq!(came_by, ends, "late: {}", shown());
        }
        errors.push(error);
    }
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}: {}", stream.escape_ascii());
}

/// A header block as its status, description and lines; `None` if anything is wrong with it.
pub type Block = Option<(Option<u16>, Option<Vec<u8>>, Vec<(Vec<u8>, Vec<u8>)>)>;

pub fn read_headers(block: &[u8]) -> Block {
    let mut lines = block.split_inclusive(|&byte| byte == b'\n').map(|line| {
        let line = line.strip_suffix(b"\n")?;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    });
    let first = trim(lines.next()??.strip_prefix(b"NATS/1.0")?);
    let status = match first {
        [] => None,
        [a, b, c, ..] if [a, b, c].iter().all(|byte| byte.is_ascii_digit()) => {
            Some([a, b, c].iter().fold(0, |status, digit| 10 * status + u16::from(**digit - b'0')))
        }
        _ => return None,
    };
    let description = first.get(3..).map(trim).filter(|text| !text.is_empty()).map(<[u8]>::to_vec);
    let mut entries = Vec::new();
    loop {
        let line = lines.next()??;
        if line.is_empty() {
            return Some((status, description, entries));
        }
        let colon = line.iter().position(|&byte| byte == b':')?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        entries.push((name.to_vec(), value.to_vec()));
    }
}

fn trim(bytes: &[u8]) -> &[u8] {
    let blank = |byte: &&u8| **byte == b' ' || **byte == b'\t';
    let start = bytes.iter().take_while(blank).count();
    let rest = &bytes[start..];
    &rest[..rest.len() - rest.iter().rev().take_while(blank).count()]
}

/// The crate's view of a block must say the same, and `get` must find the first line of each name.
pub fn compare_headers(block: &[u8]) {
    let headers = Headers::new(block);
    let came: Block = headers.check().ok().map(|()| {
        let lines = headers.iter().map(|line| line.expect("the block was checked"));
        let lines: Vec<_> = lines.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        (headers.status(), headers.description().map(<[u8]>::to_vec), lines)
    });
    assert_eq!(came, read_headers(block), "{}", block.escape_ascii());
    for (name, _) in headers.iter().flatten() {
        let name = std::str::from_utf8(name).expect("names are ASCII");
        let first = headers.iter().flatten().find(|line| line.0 == name.as_bytes()).map(|line| line.1);
        assert_eq!(headers.get(name), first);
    }
}

/// One input of the fuzz targets: the first bytes choose limits and pieces, the rest is the stream.
pub fn fuzz_input(side: Side, input: &[u8]) {
    let [choice, cut, stream @ ..] = input else { return };
    let limits = match choice % 4 {
        0 => Limits { line_bytes_max: 16, info_bytes_max: 24, payload_bytes_max: 32 },
        1 => Limits { line_bytes_max: 100, info_bytes_max: 100, payload_bytes_max: 1000 },
        2 => Limits::client(),
        _ => Limits::server(),
    };
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*cut) + 1).collect();
    compare(side, limits, stream, &pieces);
}
